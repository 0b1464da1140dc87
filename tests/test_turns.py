"""What a node's loop owes its groups, its disk and its peers, on a clock that only the test moves."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import pytest

from raftplug.constants import APPEND
from raftplug.core import Future
from raftplug.errors import DiskFull, Removed
from raftplug.frames import decode_frame
from raftplug.node import _FRAME_BYTES
from raftplug.settings import Settings
from raftplug.storage import MemoryStorage, Write
from raftplug.stuck import TIMEOUTS
from raftplug.threads import run_here
from test_fake_clock import GROUP, IDS, World


class Disk(MemoryStorage):
    """A disk that may have no space."""

    is_full = False
    attempts = 0

    def commit(self, writes: Sequence[Write], *arguments: Any) -> None:
        self.attempts += 1
        if self.is_full:
            raise DiskFull("no space is left")
        super().commit(writes, *arguments)


@pytest.fixture
def world(core: Any) -> World:
    world = World(core)
    for id in IDS:
        world.storages[id].__class__ = Disk
        world.boot(id, own_executor=run_here)
    return world


def disk_of(world: World, id: str) -> Disk:
    storage = world.storages[id]
    assert isinstance(storage, Disk)
    return storage


def test_a_leader_whose_disk_is_full_leaves_the_lead_to_who_has_space(world: World) -> None:
    old = world.elect()
    world.result(world.propose(old, {"add": 1}))
    disk_of(world, old).is_full = True
    lost = world.propose(old, {"add": 1, "tag": "no space"}, timeout_ms=60_000)
    world.until(lambda: world.leader() not in (None, old), 5 * world.settings.election_timeout_ms)
    new = world.leader()
    assert new is not None
    done = [world.result(world.propose(new, {"add": 1})) for _ in range(3)]
    assert done[-1] - done[0] == 2
    assert any("disk full" in each for each in world.nodes[old].drivers[GROUP].status()["problems"])
    disk_of(world, old).is_full = False
    world.until(lambda: world.machines[old].value == world.machines[new].value)
    world.until(lost.done)
    assert not any("disk full" in each for each in world.nodes[old].drivers[GROUP].status()["problems"])


def test_a_full_disk_that_shows_when_no_group_writes_costs_the_lead_once_one_would(world: World) -> None:
    """Found by `raftplug sim --seed 20 --events 1000 --faults disk_full`: what was to be written waited for ever."""
    old = world.elect()
    world.result(world.propose(old, {"add": 1}))
    world.run(500)
    disk_of(world, old).is_full = True
    world.nodes[old]._senders.unkept = True  # It has heard a new life of some node, and nothing else.
    world.run(100)
    world.propose(old, {"add": 1})
    world.until(lambda: world.leader() not in (None, old), 6 * world.settings.election_timeout_ms)


def test_a_leader_whose_disk_hangs_gives_up_the_lead_and_not_before_a_slow_one_would_be_done(core: Any) -> None:
    world = World(core)
    old = world.elect()
    world.result(world.propose(old, {"add": 1}))
    world.stuck[old] = []
    world.propose(old, {"add": 1})
    patience = TIMEOUTS * world.settings.election_timeout_ms
    world.run(patience - 100)
    assert world.leader() == old
    world.until(lambda: world.leader() not in (None, old), 5 * world.settings.election_timeout_ms)
    new = world.leader()
    assert new is not None
    assert world.result(world.propose(new, {"add": 1})) == 3


def test_a_leader_whose_machine_is_stuck_hands_over_and_waits_longer_each_time(core: Any) -> None:
    world = World(core)
    jobs: list[Any] = []
    for id in IDS:
        world.boot(id, apply_executor=lambda job, done: jobs.append((job, done)))
    old = world.elect()
    patience = TIMEOUTS * world.settings.election_timeout_ms
    led = [old]
    for _ in range(20 * patience // 50):
        world.run(50)
        leader = world.leader()
        if leader is not None:
            world.propose(leader, {"add": 1})  # It is not quiet.
            led += [leader] if leader != led[-1] else []
    assert 3 <= len(led) <= 12  # It is stuck everywhere: they soon try less and less often.


def test_a_disk_that_was_full_is_tried_again_now_and_then_and_not_all_the_time(world: World) -> None:
    leader = world.elect()
    follower = next(id for id in IDS if id != leader)
    world.run(200)
    disk = disk_of(world, follower)
    disk.is_full, disk.attempts = True, 0
    world.result(world.propose(leader, {"add": 1}))
    world.run(5_000)
    assert world.machines[follower].value == 0
    assert 3 <= disk.attempts <= 10
    disk.is_full = False
    world.until(lambda: world.machines[follower].value == 1, 2_000)


def test_no_frame_is_longer_than_it_may_be_however_much_there_is_to_say(core: Any) -> None:
    world = World(core, settings=Settings(max_append_bytes=200_000, window_bytes=8 << 20))
    leader = world.elect()
    world.run(200)
    sizes: list[int] = []
    appends: list[int] = []

    def see(source: Any, target: Any, message: bytes) -> bool:
        if source == leader:
            sizes.append(len(message))
            appends.append(sum(item.kind == APPEND for item in decode_frame(message).items))
        return False

    world.hub.drop = see
    futures = [world.propose(leader, {"add": 1, "tag": "x" * 150_000}) for _ in range(12)]
    assert [world.result(each) for each in futures] == list(range(1, 13))
    assert max(appends) > 1, "several appends share a frame"
    assert max(sizes) <= _FRAME_BYTES + 200_000 + 1_000


def test_what_a_leader_knows_of_a_member_goes_with_it(world: World) -> None:
    leader = world.elect()
    driver: Any = world.nodes[leader].drivers[GROUP]
    gone = next(id for id in IDS if id != leader)
    world.until(lambda: gone in driver._heard_storages)
    driver._lost[gone] = 1
    assert any(gone in each for each in driver.status()["problems"])
    answer = Future()
    world.client().requester.ask(
        "members", ["remove", [gone], driver.raft.configuration_index], answer, world.now + 60_000_000
    )
    with contextlib.suppress(Removed):  # What it says late is of no member any more.
        world.until(answer.done)
    world.nodes.pop(gone)
    world.result(answer)
    assert gone not in driver.raft.configuration.members()
    assert gone not in driver._heard_storages and gone not in driver._lost
    assert not any(gone in each for each in driver.status()["problems"])


def test_what_a_node_remembers_of_frames_that_it_refused_is_bounded(world: World) -> None:
    node = world.nodes[world.elect()]
    for number in range(1_000):
        node._refuse(f"a frame for 'n{number}'")
    assert len(node.refused) <= 101
