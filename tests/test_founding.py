"""A cluster has an id that is unique per founding, and nothing that was recorded is obeyed again (DESIGN 7)."""

from __future__ import annotations

from typing import Any

import pytest

import test_fake_clock
from raftplug import plain
from raftplug.client import ClientLoop
from raftplug.constants import DISPLACED, HIGHEST, REQUEST, TRANSITION
from raftplug.core import Future
from raftplug.errors import ChangeRefused, WrongDirectory
from raftplug.frames import NO_CLUSTER, Sender, decode_frame, group_number
from raftplug.recovery import commit, sole_voter
from raftplug.settings import Settings
from raftplug.storage import MemoryStorage, Write
from test_fake_clock import GROUP, IDS


class World(test_fake_clock.World):
    """Three whole nodes, and every frame that they were sent."""

    def __init__(self, core: Any, **options: Any) -> None:
        self.said: list[tuple[Any, Any, bytes]] = []
        self.lost_kinds: set[int] = set()
        super().__init__(core, **options)

    def _drop(self, source: Any, target: Any, message: bytes) -> bool:
        self.said.append((source, target, message))
        if any(item.kind in self.lost_kinds for item in decode_frame(message).items):
            return True
        return super()._drop(source, target, message)

    def id(self, node: str) -> bytes | None:
        return self.nodes[node].cluster_id

    def founded(self) -> bytes:
        self.elect()
        self.until(lambda: all(self.id(node) is not None for node in self.nodes if node not in self.cut))
        id = self.id(self.elect())
        assert id is not None
        return id

    def restart(self, node: str) -> None:
        """Another process on the same rows, as they are on the disk."""
        self.storages[node] = MemoryStorage(node, cluster=self.uuid, rows=self.storages[node]._rows)
        self.boot(node)

    def wipe(self, node: str, voters: tuple[str, ...] = IDS) -> None:
        """A new directory, founded or, without voters, to join."""
        self.storages[node] = MemoryStorage(node, cluster=self.uuid)
        self.storages[node].create(GROUP, plain.encode(self.core.Configuration(voters).plain()))
        self.boot(node)

    def hear(self, frames: list[tuple[Any, Any, bytes]]) -> None:
        """The nodes are sent frames that were recorded."""
        for _, target, message in frames:
            if target in self.nodes:
                self.nodes[target]._receive(message)

    def add(self, count: int) -> None:
        for _ in range(count):
            self.result(self.propose(self.elect(), {"add": 1}))


def test_each_founding_of_the_same_names_has_its_own_id_and_all_nodes_know_it(core: Any) -> None:
    one, other = World(core), World(core)
    assert one.founded() != other.founded()
    assert one.uuid == other.uuid
    for world in (one, other):
        assert len({world.id(node) for node in IDS}) == 1
        configuration = world.raft("n1").configuration
        assert configuration.cluster == world.id("n1")
        assert configuration.storages == {node: world.storages[node].identity.storage for node in IDS}


def test_frames_of_another_cluster_of_the_same_names_change_nothing(core: Any) -> None:
    """Of its founding, of its elections, entries and answers; whenever they come, with whatever term."""
    theirs = World(core, seed=2)
    theirs.founded()
    theirs.add(20)
    for _ in range(3):  # Into later terms than ours.
        theirs.cut = {theirs.elect()}
        theirs.add(1)
        theirs.cut = set()
        theirs.run(2_000)
    ours = World(core, seed=1)
    for _ in range(40):  # While we found, too.
        ours.hear(theirs.said)
        ours.run(50)
    ours.founded()
    ours.add(5)
    ours.hear(theirs.said)
    ours.run(2_000)
    assert ours.raft(ours.elect()).term < theirs.raft(theirs.elect()).term
    ours.add(1)
    ours.until(lambda: all(ours.machines[node].value == 6 for node in IDS))
    assert all(any("another cluster" in reason for reason in ours.nodes[node].refused) for node in IDS)


def test_what_an_earlier_founding_of_a_wiped_cluster_said_is_not_obeyed_by_the_next(core: Any) -> None:
    world = World(core)
    world.founded()
    world.add(10)
    recorded, before = list(world.said), world.id("n1")
    for node in IDS:
        world.wipe(node)
    for _ in range(40):
        world.hear(recorded)
        world.run(50)
    assert world.founded() != before
    world.add(3)
    world.until(lambda: all(world.machines[node].value == 3 for node in IDS))


def test_nothing_is_acknowledged_before_the_cluster_has_an_id(core: Any) -> None:
    world = World(core)
    world.until(lambda: world.leader() is not None)
    leader = world.leader()
    assert leader is not None and world.id(leader) is None
    future, client = world.propose(leader, {"add": 1}), world.client()
    asked = world.ask(client, {"add": 1})
    while world.id(leader) is None:
        assert not future.done() and not asked.done()
        world.run(1)
    assert sorted((world.result(future), world.result(asked))) == [1, 2]


def test_a_founder_that_was_down_at_the_founding_learns_the_id(core: Any) -> None:
    world = World(core)
    late = IDS[-1]
    world.cut = {late}
    founded = world.founded()
    world.add(3)
    world.cut = set()
    world.until(lambda: world.id(late) == founded)
    world.until(lambda: late in world.raft(world.elect()).configuration.storages)
    world.until(lambda: world.machines[late].value == 3)


def with_a_late_founder(core: Any) -> tuple[World, bytes, str, str]:
    """A cluster of which only a node that knows the id and a founder that does not are there: their ids come last."""
    world = World(core)
    first, second, late = IDS
    world.cut = {late}
    founded = world.founded()
    world.add(3)
    world.cut = {second}
    return world, founded, first, late


def test_a_founder_that_knows_no_id_makes_a_quorum_with_one_that_does(core: Any) -> None:
    world, founded, first, late = with_a_late_founder(core)
    for node in (first, late):
        world.restart(node)
    assert world.id(late) is None and world.id(first) == founded
    world.add(1)
    world.until(lambda: world.id(late) == founded)
    world.until(lambda: world.machines[late].value == 4)


def test_a_founder_that_knows_no_id_hears_a_node_that_knows_it_again_after_its_restart(core: Any) -> None:
    """`tests/mutation_gate.py`, seed 15 of three nodes: the two were there, and never elected."""
    world, founded, first, late = with_a_late_founder(core)
    world.restart(first)
    world.restart(late)
    world.until(lambda: world.nodes[late]._founding.id_for(first) == founded)
    assert world.id(late) is None
    world.restart(first)
    world.add(1)
    world.until(lambda: world.id(late) == founded)


def test_a_new_directory_that_is_founded_under_a_known_id_stops_and_says_what_to_do(core: Any) -> None:
    """By itself: it need not be told that the others know another one."""
    world = World(core)
    world.founded()
    world.lost_kinds = {DISPLACED}
    world.add(3)
    for node in ("n1", "n2"):  # Whoever leads sends all of its log.
        world.restart(node)
    world.wipe("n3")
    with pytest.raises(WrongDirectory, match="raftplug members remove n3"):
        world.run(5_000)
    assert world.raft("n3").commit == 0


def test_the_id_is_known_after_a_restart_and_no_other_is_taken(core: Any) -> None:
    world = World(core)
    founded = world.founded()
    founding = [each for each in world.said if decode_frame(each[2]).cluster == world.uuid]
    world.run(1_000)
    for node in IDS:
        world.restart(node)
        assert world.id(node) == founded
    world.hear(founding)
    assert all(world.raft(node).leader is None for node in IDS)
    world.add(1)


def test_a_cluster_that_is_recovered_has_another_id_and_hears_the_lost_nodes_no_more(core: Any) -> None:
    world = World(core)
    before = world.founded()
    world.add(5)
    lost = [id for id in IDS if id != "n1"]
    world.restart("n1")
    write, _ = sole_voter(world.storages["n1"], GROUP, "n1")
    commit(world.storages["n1"], [write])
    world.restart("n1")
    assert world.id("n1") not in (None, before)
    world.run(5_000)  # Those that were given up are there, and go on by themselves.
    assert world.raft("n1").leader == "n1" and world.leader() == "n1"
    assert world.nodes[lost[0]].drivers[GROUP].leader in lost
    world.add(1)
    assert world.machines["n1"].value == 6 and world.machines[lost[0]].value == 5


def test_a_node_that_joins_a_recovered_cluster_takes_its_last_id(core: Any) -> None:
    world = World(core, settings=Settings(max_append_bytes=200))  # It hears of the ids one after the other.
    world.founded()
    world.add(3)
    del world.nodes["n2"], world.nodes["n3"]
    for _ in range(2):
        world.restart("n1")
        write, _ = sole_voter(world.storages["n1"], GROUP, "n1")
        commit(world.storages["n1"], [write])
    world.restart("n1")
    world.wipe("n2", ())
    world.add(1)
    change(world, "add", "n2")
    world.until(lambda: "n2" in world.raft("n1").configuration.voters)
    assert world.id("n2") == world.id("n1")
    world.until(lambda: world.machines["n2"].value == 4)


# ------------------------------------------------------------------ requests


def change(world: World, action: str, *ids: str, index: int | None = None) -> Any:
    client, future = world.clients[0] if world.clients else world.client(), Future()
    index = world.raft(world.elect()).configuration_index if index is None else index
    client.requester.ask("members", [action, list(ids), index], future, world.now + 10_000_000)
    return world.result(future)


def settled(world: World) -> bool:
    raft = world.raft(world.elect())
    return not raft.configuration.outgoing and raft.commit >= raft.configuration_index


def requests(world: World, since: int = 0) -> list[tuple[Any, Any, bytes]]:
    return [
        each
        for each in world.said[since:]
        if each[0] == "~client" and any(item.kind == REQUEST for item in decode_frame(each[2]).items)
    ]


def forget_clients(world: World, count: int = 10_050) -> None:
    """So many other clients ask something that each node forgets those before."""
    for number in range(count):
        sender = Sender(f"~other{number}", world.id("n1") or b"", NO_CLUSTER, 0, 5)
        for node in IDS:
            world.nodes[node]._receive(sender.encode(node, [(group_number(GROUP), REQUEST, b"")]))


@pytest.mark.parametrize("forgotten", [False, True])
def test_a_recorded_request_to_change_members_changes_nothing_again(core: Any, forgotten: bool) -> None:
    world = World(core)
    world.founded()
    change(world, "list")
    since = len(world.said)
    change(world, "demote", "n3")
    recorded = requests(world, since)
    change(world, "promote", "n3")
    world.until(lambda: settled(world) and "n3" in world.raft(world.elect()).configuration.voters)
    index = world.raft(world.elect()).configuration_index
    if forgotten:
        forget_clients(world)
    world.clients = []
    for node in IDS:
        if not forgotten:
            world.restart(node)  # It forgets whom it heard.
    for _, _, message in recorded:
        for node in IDS:
            world.nodes[node]._receive(message)
    world.run(3_000)
    assert world.raft(world.elect()).configuration_index == index
    world.clients = []
    with pytest.raises(ChangeRefused):
        change(world, "demote", "n3", index=index - 1)


def test_a_recorded_request_to_hand_over_moves_no_leadership_again(core: Any) -> None:
    world = World(core)
    world.founded()
    leader = world.elect()
    client = world.client()
    asked = [Future(), Future()]
    term = world.raft(leader).term
    cut = next(id for id in IDS if id != leader)
    world.cut = {cut}  # It does not take over, and the term goes on.
    for future in asked:
        client.requester.ask("transfer", [cut, term, 0], future, world.now + 3_000_000)
        world.run(1_500)
    assert asked[0].result(0) == cut
    with pytest.raises(ChangeRefused):
        asked[1].result(0)
    assert world.raft(leader).transferee is None


def test_a_client_that_was_forgotten_is_asked_to_count_on_and_goes_on(core: Any) -> None:
    world = World(core)
    world.founded()
    client = world.client()
    assert world.result(world.ask(client, {"add": 1})) == 1
    recorded = requests(world)
    forget_clients(world)
    value = world.machines["n1"].value
    for _, _, message in recorded:
        for node in IDS:
            world.nodes[node]._receive(message)
    world.run(1_000)
    assert world.machines["n1"].value == value
    assert world.result(world.ask(client, {"add": 1})) == 2
    assert isinstance(client, ClientLoop) and client._sender.boot == 1


@pytest.mark.parametrize("entries", [False, True])
@pytest.mark.parametrize("snapshot", [False, True])
def test_a_directory_whose_terms_are_used_up_can_be_recovered(core: Any, entries: bool, snapshot: bool) -> None:
    """An attacker, before there was a bound, could leave no term for an election."""
    settings = Settings(snapshot_entries=5, keep_entries=2) if snapshot else None
    world = World(core, settings=settings)
    world.founded()
    world.add(12)
    world.run(1_000)
    storage, raft = world.storages["n1"], world.raft("n1")
    last, end = raft.log.last_index, HIGHEST - 1
    if entries:
        log = core.Log(last, raft.log.last_term, raft.log.check_at(last))
        log.append(end, TRANSITION, plain.encode({"add": 5}))
        storage.commit([Write(GROUP, end, None, first=last + 1, block=log.slice(last + 1, last + 2))])
    else:
        storage.commit([Write(GROUP, end, None)])
    for node in IDS[1:]:
        del world.nodes[node]
    world.restart("n1")
    write, told = sole_voter(world.storages["n1"], GROUP, "n1")
    assert told["term"] == end and sorted(told["voters_before"]) == list(IDS)
    commit(world.storages["n1"], [write])
    world.restart("n1")
    assert world.result(world.propose(world.elect(), {"add": 1})) == 13 + 5 * entries
    assert world.raft("n1").term < 1 << 40
    world.wipe("n2", ())
    world.hub.records.clear()
    change(world, "add", "n2")
    world.until(lambda: "n2" in world.raft("n1").configuration.voters)
    world.until(lambda: world.machines["n2"].value == 13 + 5 * entries)


def test_a_removed_member_that_comes_back_on_a_new_disk_has_lost_nothing(core: Any) -> None:
    """`raftplug sim --seed 251`: the leader still tells the removed member, and had its acknowledgements."""
    world = World(core)
    world.founded()
    world.add(5)
    change(world, "demote", "n3")
    world.until(lambda: settled(world))
    world.cut = {"n3"}
    change(world, "remove", "n3")
    world.wipe("n3", ())
    world.cut = set()
    world.run(400)
    change(world, "add", "n3")
    world.until(lambda: settled(world) and "n3" in world.raft(world.elect()).configuration.voters)
    world.until(lambda: world.machines["n3"].value == 5)


def test_a_client_goes_on_with_a_cluster_that_was_recovered(core: Any) -> None:
    """`Simulation(6, operations=1_050)`: clients of before asked for ever."""
    world = World(core)
    world.founded()
    client = world.client()
    assert world.result(world.ask(client, {"add": 1})) == 1
    del world.nodes["n2"], world.nodes["n3"]
    world.restart("n1")
    write, _ = sole_voter(world.storages["n1"], GROUP, "n1")
    commit(world.storages["n1"], [write])
    world.restart("n1")
    assert world.result(world.ask(client, {"add": 1})) == 2
    assert client._sender.cluster == world.id("n1")
