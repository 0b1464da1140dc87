"""Of one data directory only the latest life is believed, also by who has restarted since it was heard (DESIGN 7)."""

from __future__ import annotations

from typing import Any

import pytest

import test_groups
from raftplug.cluster import Cluster
from raftplug.constants import DISPLACED
from raftplug.errors import WrongDirectory
from raftplug.frames import decode_frame
from raftplug.storage import MemoryRows, MemoryStorage
from test_groups import PEERS

OLDER = "a frame of an older or copied data directory of 'n1'"


class World(test_groups.World):
    """Three nodes with one group, and what they said."""

    def __init__(self, core: Any) -> None:
        self.said: list[tuple[Any, Any, bytes]] = []
        super().__init__(core, groups=1)

    def _lost(self, source: Any, target: Any, message: bytes) -> bool:
        self.said.append((source, target, message))
        return super()._lost(source, target, message)

    def rows(self, id: str) -> MemoryRows:
        rows = self.storages[id]._rows
        assert isinstance(rows, MemoryRows)
        return rows

    def copy(self, id: str) -> MemoryRows:
        """The directory of a node as it is now."""
        copied = MemoryRows()
        copied._values = {place: dict(rows) for place, rows in self.rows(id)._values.items()}
        copied._numbers = {place: list(numbers) for place, numbers in self.rows(id)._numbers.items()}
        return copied

    def start_on(self, id: str, rows: MemoryRows) -> None:
        """Start a node on other rows than it had."""
        self.storages[id]._rows = rows
        self.boot(id)

    def knows(self, id: str, other: str) -> tuple[int, int] | None:
        """Boot and nonce of the life of `other` that the disk of `id` remembers."""
        found = [each for each in MemoryStorage(id, self.uuid, rows=self.copy(id)).heard if each.node == other]
        return (found[0].boot, found[0].nonce) if found else None

    def life(self, id: str) -> tuple[int, int]:
        return self.storages[id].identity.boot, self.storages[id].identity.nonce


@pytest.fixture
def world(core: Any) -> World:
    world = World(core)
    world.elect()
    world.run(1_000)
    return world


def test_the_disk_remembers_the_latest_life_of_every_other_node(world: World) -> None:
    world.boot("n1")
    world.run(1_000)
    for id in ("n2", "n3"):
        assert world.knows(id, "n1") == world.life("n1")
        assert world.life("n1")[0] == 2
        assert world.knows(id, id) is None


def test_a_restarted_node_is_heard_at_once(world: World) -> None:
    for _ in range(3):
        world.boot("n1")
        world.run(1_000)
    assert world.result(world.propose("n1", world.names[0], 1)) == 1
    assert all(OLDER not in world.nodes[id].refused for id in PEERS)


@pytest.mark.parametrize("restarted", [(), ("n2", "n3")])
def test_an_older_file_is_refused_and_its_node_stops_with_the_error_that_says_what_to_do(
    world: World, restarted: tuple[str, ...]
) -> None:
    older = world.copy("n1")
    for _ in range(2):
        world.boot("n1")
        world.run(1_000)
    for id in restarted:
        world.boot(id)
    world.start_on("n1", older)
    assert world.life("n1")[0] == 2  # One below the last that was heard.
    with pytest.raises(WrongDirectory, match="raftplug members remove n1"):
        world.run(2_000)
    del world.nodes["n1"]
    assert any(OLDER in loop.refused for loop in world.nodes.values())
    world.run(3_000)
    assert world.result(world.propose("n2", world.names[0], 1)) == 1


@pytest.mark.parametrize("restarted", [(), ("n2", "n3")])
def test_of_a_directory_and_its_copy_the_one_that_was_started_first_stops(
    world: World, restarted: tuple[str, ...]
) -> None:
    original = world.nodes["n1"]
    world.start_on("n1", world.copy("n1"))
    world.run(1_000)
    for id in restarted:
        world.boot(id)
    original.cluster = SameInbox(original.cluster, world.said)
    world.nodes["the original"] = original
    with pytest.raises(WrongDirectory, match="or a copy"):
        world.run(2_000)
    del world.nodes["the original"]
    world.run(1_000)
    assert world.result(world.propose("n1", world.names[0], 1)) == 1


class SameInbox(Cluster):
    """The inbox of n1 for a second process: over a Redis both read all of it."""

    def __init__(self, own: Cluster, said: list[tuple[Any, Any, bytes]]) -> None:
        self.own, self.said, self.read = own, said, len(said)

    def receive_messages(self) -> list[bytes]:
        new, self.read = self.said[self.read :], len(self.said)
        return [message for _, target, message in new if target == "n1"]

    def send_message(self, to_id: Any, message: bytes) -> None:
        self.own.send_message(to_id, message)


def test_an_old_frame_that_is_said_again_stops_nobody_who_lives_now(world: World) -> None:
    before = [message for source, target, message in world.said if (source, target) == ("n1", "n2")]
    world.boot("n1")
    world.run(1_000)
    for restart in (False, True):
        if restart:
            world.boot("n2")
        refused = world.nodes["n2"].refused.get(OLDER, 0)
        for message in before[-10:]:
            world.nodes["n2"]._receive(message)
        assert world.nodes["n2"].refused[OLDER] == refused + len(before[-10:])
        world.run(1_000)  # n2 answers them all, and n1 does not stop.
    assert world.result(world.propose("n1", world.names[0], 1)) == 1


def test_a_refused_frame_is_answered_once_and_to_its_own_life_only(world: World) -> None:
    old = [message for source, target, message in world.said if (source, target) == ("n1", "n2")][-1]
    world.boot("n1")
    world.run(1_000)
    world.said.clear()
    world.nodes["n2"]._receive(old)
    world.run(1)
    frame = decode_frame(old)
    answers = [
        decode_frame(message).items for source, target, message in world.said if (source, target) == ("n2", "n1")
    ]
    bodies = [item.body for items in answers for item in items if item.kind == DISPLACED]
    assert bodies == [frame.storage + frame.nonce.to_bytes(8, "little")]


def test_an_older_file_is_refused_however_often_it_was_started(world: World) -> None:
    """A counter alone would be overtaken: by a supervisor that starts it again and again while no Redis is there."""
    older = world.copy("n1")
    for _ in range(3):
        world.boot("n1")
        world.run(1_000)
    for _ in range(10):
        older_storage = MemoryStorage("n1", world.uuid, rows=older)
    assert older_storage.identity.boot > world.life("n1")[0]
    world.start_on("n1", older)
    with pytest.raises(WrongDirectory, match="raftplug members remove n1"):
        world.run(2_000)
    assert any(OLDER in loop.refused for loop in world.nodes.values())


def test_who_was_not_heard_for_many_lives_and_whose_first_frames_are_lost_is_asked_and_believed(world: World) -> None:
    world.cut.add("n1")
    for _ in range(150):
        for id in PEERS:
            world.boot(id)
        world.run(1)
    world.run(100)
    world.cut.clear()
    world.run(3_000)
    for id in PEERS:
        assert all(world.knows(id, other) == world.life(other) for other in PEERS if other != id)
    assert world.result(world.propose("n1", world.names[0], 1)) == 1


def test_two_who_do_not_believe_each_other_do_not_go_on_about_it(world: World) -> None:
    """Both directories are older than what the other one has heard."""
    older = {id: world.copy(id) for id in ("n1", "n2")}
    for id in ("n1", "n2", "n1", "n2"):
        world.boot(id)
        world.run(300)
    world.cut.add("n3")
    known = {id: world.storages[id].heard for id in older}
    for id, rows in older.items():
        stored = MemoryStorage(id, world.uuid, rows=rows)
        stored.commit([], known[id])
        world.start_on(id, rows)
    world.said.clear()
    with pytest.raises(WrongDirectory):
        world.run(2_000)
    assert len([each for each in world.said if "n3" not in each]) < 20


def test_a_follower_that_lost_what_it_acknowledged_is_reported_and_stops(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Its disk is as it was before: to the others that looks like a restart, and the leader sends it nothing more."""
    group = world.names[0]
    leader = world.leader(group)
    assert leader is not None
    follower = next(id for id in PEERS if id != leader)
    world.run(200)
    rows = world.rows(follower)
    older = {place: dict(found) for place, found in rows._values.items()}
    numbers = {place: list(found) for place, found in rows._numbers.items()}
    for _ in range(5):
        world.result(world.propose(leader, group, 1))
    world.run(200)
    acknowledged = world.driver(leader, group).raft.progress[follower].match
    told: list[tuple[str, dict[str, Any]]] = []
    world.driver(leader, group)._on_event = lambda name, **arguments: told.append((name, arguments))
    rows._values, rows._numbers = older, numbers
    world.boot(follower)
    with pytest.raises(WrongDirectory, match="may lack what that one acknowledged"):
        world.run(3_000)
    assert ("raftplug_lost_entries", {"replica": follower, "acknowledged": acknowledged}) in [
        (name, {key: each[key] for key in ("replica", "acknowledged") if key in each}) for name, each in told
    ]
    text = f"{follower} has lost entries that it had acknowledged, up to {acknowledged}"
    assert any(text in problem for problem in world.driver(leader, group).status()["problems"])
    assert any(text in record.getMessage() and record.levelname == "ERROR" for record in caplog.records)
    del world.nodes[follower]
    assert world.result(world.propose(leader, group, 1)) is not None
