"""What callers are told when their node stops, is removed, diverges, steps down or takes a snapshot over."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from raftplug import plain
from raftplug.constants import (
    DIGESTS,
    LEADER,
    OK,
    REFUSED_NOT_LEADER,
    REFUSED_OVERLOADED,
    REFUSED_TOO_LARGE,
    REPLY,
    REQUEST,
    STALE,
    UNKNOWN,
)
from raftplug.divergence import encode_digests
from raftplug.errors import Diverged, NotLeader, OutcomeUnknown, Unavailable
from raftplug.frames import address
from raftplug.settings import Settings
from raftplug.storage import MemoryStorage
from test_apply import DigestedCounter, Slow, SlowWorld, work
from test_fake_clock import GROUP, IDS, World


class Told:
    """Requests of a client, handed to a node's replica, and what it answers."""

    def __init__(self, world: World, id: str) -> None:
        self.driver: Any = world.nodes[id].drivers[GROUP]
        self.answers: dict[int, tuple[int, Any]] = {}
        send = self.driver._send

        def say(target: Any, kind: int, body: bytes) -> None:
            if target == "~asker" and kind == REPLY:
                _, counter, code, value = msgpack.unpackb(body)
                self.answers[counter] = code, value
            else:
                send(target, kind, body)

        self.driver._send = say

    def ask(self, counter: int, operation: str, *arguments: Any) -> None:
        request = msgpack.packb([counter, operation, list(arguments)])
        self.driver.receive("~asker", 1, REQUEST, address(request, self.driver._nonce))

    def codes(self) -> dict[int, int]:
        return {counter: code for counter, (code, _) in self.answers.items()}


@pytest.fixture
def world(core: Any) -> World:
    return World(core)


class SlowDigested(DigestedCounter, Slow):
    """Takes as long as a transition says, and has a digest."""


def error_of(future: Any) -> BaseException | None:
    assert future.done(), "nobody answers"
    error: BaseException | None = future.exception(0)
    return error


def others_of(id: str) -> list[str]:
    return [each for each in IDS if each != id]


def test_what_a_snapshot_covers_ends_as_unknown_as_soon_as_it_is_taken_over(core: Any) -> None:
    """It may be in the snapshot: the deposed leader cannot see."""
    world = World(core, settings=Settings(snapshot_entries=10, keep_entries=0))
    old = world.elect()
    world.cut.add(old)
    told = Told(world, old)
    futures = [world.propose(old, {"add": 1, "tag": number}, timeout_ms=600_000) for number in range(3)]
    told.ask(1, "open", None)
    new = world.elect()
    for number in range(30):
        world.result(world.propose(new, {"add": 1, "tag": f"new {number}"}))
    assert world.raft(new).log.base_index > world.raft(old).log.last_index
    assert not any(future.done() for future in futures)
    world.cut.clear()
    world.until(lambda: all(future.done() for future in futures))
    assert all(isinstance(error_of(future), OutcomeUnknown) for future in futures)
    assert told.codes() == {1: UNKNOWN}


def test_the_rejection_by_another_directory_confirms_no_read(core: Any) -> None:
    """Of three one is cut off, and another has a new directory: who leads cannot know that nobody else does."""
    world = World(core)
    leader = world.elect()
    world.result(world.propose(leader, {"add": 1}))
    gone, fresh = others_of(leader)
    world.until(lambda: set(world.raft(leader).configuration.storages) == set(IDS))
    world.run(300)
    world.cut.update((gone, fresh))
    world.run(50)
    world.storages[fresh] = MemoryStorage(fresh, cluster=world.uuid)
    world.storages[fresh].create(GROUP, plain.encode(core.Configuration(()).plain()))
    world.boot(fresh)
    rejections: list[Any] = []
    driver = world.nodes[leader].drivers[GROUP]
    receive = driver.receive

    def hear(source: Any, *arguments: Any) -> None:
        rejections.append(source)
        receive(source, *arguments)

    driver.receive = hear  # type: ignore[method-assign]
    world.cut.remove(fresh)
    future = world.read(leader, timeout_ms=1_000)
    for _ in range(200):
        world.now += 1_000
        world.nodes[leader].turn()
        if fresh in rejections:
            break
        world.nodes[fresh].turn()
    assert fresh in rejections
    assert not future.done() or isinstance(error_of(future), Unavailable)


def test_what_was_read_of_a_state_is_not_told_once_the_state_is_known_to_be_wrong(core: Any) -> None:
    world = SlowWorld(core, settings=Settings(digest_entries=10), machine=SlowDigested)
    leader = world.make_slow()
    other = others_of(leader)[0]
    work(world, 30)
    world.run(100)
    driver = world.nodes[other].drivers[GROUP]
    world.hold = True
    future = world.read(other, consistency=STALE)
    world.until(lambda: bool(driver._looking))
    index = max(index for index, _ in driver._digests.latest())
    driver.receive(leader, 0, DIGESTS, encode_digests([(index, b"another")], True))
    assert driver.diverged is not None
    world.hold = False
    world.release()
    world.until(future.done)
    assert isinstance(error_of(future), Diverged)


def test_a_leader_that_has_diverged_appends_nothing_of_anybody(core: Any) -> None:
    world = World(core, settings=Settings(digest_entries=10), machine=DigestedCounter)
    leader = world.elect()
    world.machines[leader].flipped = 1  # type: ignore[attr-defined]
    driver = world.nodes[leader].drivers[GROUP]
    while driver.diverged is None:
        work(world, 1)
    assert driver.raft.role == LEADER
    last, told = driver.raft.log.last_index, Told(world, leader)
    told.ask(1, "open", None)
    told.ask(2, "index", False)
    future = world.propose(leader, {"add": 1})
    world.until(future.done)
    assert isinstance(error_of(future), Diverged)
    assert driver.raft.log.last_index == last
    world.until(lambda: world.leader() not in (None, leader))
    world.run(500)
    assert told.codes() == {1: REFUSED_NOT_LEADER, 2: REFUSED_NOT_LEADER}


def test_when_a_node_stops_everybody_who_waits_is_told_what_is_known(world: World) -> None:
    leader = world.elect()
    world.result(world.propose(leader, {"add": 1}))
    world.run(300)
    world.cut.update(others_of(leader))
    told = Told(world, leader)
    write = world.propose(leader, {"add": 1}, timeout_ms=600_000)
    read = world.read(leader, timeout_ms=600_000)
    told.ask(1, "open", None)
    told.ask(2, "index", False)
    world.run(5)
    late_write, late_read = world.propose(leader, {"add": 1}), world.read(leader)
    world.nodes[leader].close()
    after_write, after_read = world.propose(leader, {"add": 1}), world.read(leader)
    assert isinstance(error_of(write), OutcomeUnknown)
    for future in (read, late_write, late_read, after_write, after_read):
        assert isinstance(error_of(future), Unavailable)
    assert told.codes() == {1: UNKNOWN, 2: REFUSED_NOT_LEADER}


def test_when_a_node_stops_a_read_that_looks_at_the_machine_ends(core: Any) -> None:
    world = SlowWorld(core)
    leader = world.make_slow()
    world.hold = True
    looking = world.read(leader, timeout_ms=600_000, consistency=STALE)
    world.until(lambda: bool(world.jobs[leader]))
    waiting = world.read(leader, timeout_ms=600_000, consistency=STALE)
    world.run(5)
    world.nodes[leader].close()
    assert all(isinstance(error_of(each), Unavailable) for each in (looking, waiting))
    world.release()


def test_a_read_that_looks_at_the_machine_ends_at_its_deadline(core: Any) -> None:
    world = SlowWorld(core)
    leader = world.make_slow()
    world.hold = True
    looking = world.read(leader, timeout_ms=1_000, consistency=STALE)
    world.until(lambda: bool(world.jobs[leader]))
    waiting = world.read(leader, timeout_ms=1_000, consistency=STALE)
    world.run(1_002)
    assert all(isinstance(error_of(each), Unavailable) for each in (looking, waiting))


def test_an_answer_to_an_earlier_life_of_a_node_is_not_taken(world: World) -> None:
    leader = world.elect()
    other = others_of(leader)[0]
    world.result(world.propose(other, {"add": 1}))
    driver = world.nodes[other].drivers[GROUP]
    world.cut.add(other)
    future = world.propose(other, {"add": 1})
    world.run(5)
    (counter,) = driver.requester._counters
    for nonce in (driver._nonce + 1, driver._nonce):
        assert not future.done()
        driver.receive(leader, 0, REPLY, msgpack.packb([nonce, counter, OK, plain.encode(99)]))
    assert future.result(0) == 99


def test_what_waits_for_a_successor_is_bounded(core: Any) -> None:
    world = World(core, settings=Settings(max_pending=3))
    leader = world.elect()
    world.result(world.propose(leader, {"add": 1}))
    target = others_of(leader)[0]
    told = Told(world, leader)
    world.cut.add(target)
    world.raft(leader).transfer(target)
    for counter in range(10):
        told.ask(counter, "open", None)
    assert told.codes() == dict.fromkeys(range(3, 10), REFUSED_NOT_LEADER)
    world.run(800)  # The transfer is given up.
    assert sorted(told.answers) == list(range(10))


def test_what_clients_ask_counts_against_the_bounds_of_a_leader(core: Any) -> None:
    world = World(core, settings=Settings(max_pending=3, max_transition_bytes=100))
    leader = world.elect()
    world.result(world.propose(leader, {"add": 1}))
    world.cut.update(others_of(leader))
    told = Told(world, leader)
    told.ask(0, "propose", 1, 1, 1, b"x" * 101)
    for counter in range(1, 6):
        told.ask(counter, "propose", 1, counter, 1, b"x")
    assert told.codes() == {0: REFUSED_TOO_LARGE, 4: REFUSED_OVERLOADED, 5: REFUSED_OVERLOADED}


def test_a_leader_that_steps_down_says_of_what_it_appended_that_it_is_unknown(world: World) -> None:
    old = world.elect()
    world.result(world.propose(old, {"add": 1}))
    world.cut.add(old)
    told = Told(world, old)
    told.ask(1, "open", None)
    told.ask(2, "index", False)
    own = world.propose(old, {"add": 1}, timeout_ms=600_000)
    world.until(lambda: world.raft(old).role != LEADER)
    world.run(1)
    assert told.codes() == {1: UNKNOWN, 2: REFUSED_NOT_LEADER}
    assert not own.done(), "it knows its log: it waits until the entry is committed or replaced"
    world.cut.clear()
    new = world.elect()
    world.result(world.propose(new, {"add": 1}))
    world.until(own.done)
    assert isinstance(error_of(own), NotLeader)
