"""Witnesses: voters that keep no state machine and never lead."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import raftplug
from processes import PEERS, Cluster, refused, succeeded
from processes import cluster as cluster
from processes import raftplug as run
from processes import server as server
from raftplug import snapshots
from raftplug.constants import LINEARIZABLE, STALE
from raftplug.core import Future
from raftplug.errors import InvalidArgument, Removed, WrongDirectory
from raftplug.recovery import recover
from raftplug.settings import Settings
from test_fake_clock import GROUP, Counter, World


def test_a_configuration_with_a_witness_comes_back_as_it_was(core: SimpleNamespace) -> None:
    first = core.Configuration(("a", "b", "w"), storages={"a": b"1"}, witnesses=("w",))
    again = core.Configuration.decode(first.encode())
    assert again == first
    assert again.witnesses == ("w",)
    assert again.is_voter("w") and not again.may_lead("w") and again.may_lead("a")


def test_a_configuration_without_witnesses_has_the_bytes_it_always_had(core: SimpleNamespace) -> None:
    assert core.Configuration((1, 2)).plain() == [[1, 2], [], [], [], []]


@pytest.mark.parametrize("witnesses", [(3, 3), 3, (True,)], ids=["twice", "one", "bool"])
def test_witnesses_that_cannot_be_are_refused(core: SimpleNamespace, witnesses: Any) -> None:
    data = [[1, 2, 3], [], [4], [], [], list(witnesses) if isinstance(witnesses, tuple) else witnesses]
    with pytest.raises(InvalidArgument):
        core.Configuration.from_plain(data)


def test_a_change_passes_through_every_witness_of_both_halves(core: SimpleNamespace) -> None:
    before = core.Configuration((1, 2, 3), witnesses=(3,))
    joint = before.towards(core.Configuration((1, 2, 4), witnesses=(4,)))
    assert joint.witnesses == (3, 4)
    assert joint.left().witnesses == (4,)


def test_who_neither_votes_nor_is_to_is_no_witness(core: SimpleNamespace) -> None:
    assert core.Configuration((1, 2, 3), learners=(4,), witnesses=(3, 4, 9)).witnesses == (3,)


@pytest.fixture
def world(core: Any) -> World:
    """Two full nodes and the witness n3; a snapshot every ten entries."""
    return World(core, settings=Settings(snapshot_entries=10, keep_entries=0), witnesses=("n3",))


def driver(world: World, id: str = "n3") -> Any:
    return world.nodes[id].drivers[GROUP]


def add_to(world: World, count: int) -> None:
    leader = world.elect()
    for _ in range(count):
        world.result(world.propose(leader, {"add": 1}))


def change(world: World, action: str, *ids: str) -> Any:
    future = Future()
    client = world.clients[0] if world.clients else world.client()
    index = world.raft(world.elect()).configuration_index
    client.requester.ask("members", [action, list(ids), index], future, world.now + 10_000_000)
    return world.result(future)


def test_a_witness_executes_nothing_and_its_log_is_compacted(world: World) -> None:
    add_to(world, 50)
    world.until(lambda: driver(world).applied >= 50 and driver(world).raft.snapshot_index >= 40)
    machine = world.machines["n3"]
    assert (machine.value, machine.executed) == (0, [])
    current = driver(world).snapshots.current
    assert snapshots.Reader(current, driver(world).snapshots.reader(current)).kind == snapshots.WITNESS
    world.boot("n3")  # From that snapshot.
    world.until(lambda: driver(world).applied == driver(world, world.elect()).applied)
    assert driver(world).is_witness and not world.machines["n3"].executed


def test_a_witness_makes_a_quorum_with_one_other_node(world: World) -> None:
    add_to(world, 1)
    world.cut.add(next(id for id in ("n1", "n2") if id != world.elect()))
    add_to(world, 5)
    assert not world.machines["n3"].executed


def test_a_snapshot_is_adopted_by_a_witness_without_loading_it(world: World) -> None:
    add_to(world, 1)
    world.cut.add("n3")
    add_to(world, 40)
    assert driver(world, world.elect()).raft.log.base_index > driver(world).raft.log.last_index
    world.cut.clear()
    world.until(lambda: driver(world).applied >= 40)
    assert any(name == "raftplug_snapshot" and told["kind"] == "installed" for name, told in world.events)
    assert (world.machines["n3"].value, world.machines["n3"].executed) == (0, [])


@pytest.mark.parametrize("consistency", [LINEARIZABLE, STALE])
def test_a_witness_refuses_reads_and_forwards_proposals(world: World, consistency: str) -> None:
    add_to(world, 1)
    with pytest.raises(InvalidArgument, match="n3 is a witness"):
        world.result(world.read("n3", consistency=consistency))
    assert world.result(world.propose("n3", {"add": 1})) == 2


def test_a_client_that_asks_a_witness_is_answered_by_another_node(world: World) -> None:
    add_to(world, 1)
    client = world.client()
    future = Future()
    client.requester.set_nodes(["n3"])
    client.requester.read(raftplug.plain.encode(None), future, world.now + 10_000_000)
    assert world.result(future) == 1


@pytest.mark.parametrize(
    ("action", "id"),
    [("demote", "n3"), ("promote", "n3"), ("add", "n3"), ("learn", "n3"), ("witness", "n1")],
)
def test_no_member_becomes_a_witness_in_place_or_ceases_to_be_one(world: World, action: str, id: str) -> None:
    add_to(world, 1)
    before = driver(world, "n1").raft.configuration
    with pytest.raises(InvalidArgument, match=f"'{id}' cannot become a witness, nor cease to be one: remove it"):
        change(world, action, id)
    assert driver(world, "n1").raft.configuration == before


def test_the_last_voter_that_may_lead_cannot_leave(world: World) -> None:
    add_to(world, 1)
    with pytest.raises(InvalidArgument, match="may lead"):
        change(world, "remove", "n1", "n2")


def test_a_witness_that_is_added_again_as_another_member_needs_another_directory(world: World) -> None:
    add_to(world, 30)
    world.until(lambda: driver(world).raft.snapshot_index > 0)
    with contextlib.suppress(Removed):
        change(world, "remove", "n3")
        world.run(5_000)
    world.boot("n3")
    node = world.nodes.pop("n3")
    assert change(world, "add", "n3")[4] == []
    world.nodes["n3"] = node
    with pytest.raises(WrongDirectory, match="n3 is no witness now, and was a witness"):
        world.run(10_000)
    with pytest.raises(WrongDirectory, match="remove the directory, and add it again"):
        world.boot("n3")
    assert not world.machines["n3"].executed


class Full(Counter):
    """A machine that a real node runs, in this process."""


@pytest.fixture
def witnessed(cluster: Cluster, tmp_path: Path) -> Iterator[tuple[Cluster, Any, Full]]:
    """n1 and n2 as processes, and the witness w in this one."""
    cluster.start(*PEERS, bootstrap=True)
    succeeded(cluster.run("members remove", "n3"))
    assert cluster.nodes.pop("n3").wait() == 0
    machine = Full()
    for number in range(20):
        cluster.propose({"op": "put", "key": "before", "value": number})
    place = {"redis": cluster.server.url, "group": "g", "data_dir": tmp_path / "w", "state_machine": machine}
    with raftplug.Node("w", peers=["w"], join=True, **place) as node:
        done = succeeded(cluster.run("members add", "w", "--witness", "--json"))
        assert json.loads(done.stdout.splitlines()[-1])["witnesses"] == ["w"]
        yield cluster, node, machine


def test_writes_go_on_with_one_full_node_and_a_witness(witnessed: tuple[Cluster, Any, Full], tmp_path: Path) -> None:
    cluster, node, machine = witnessed
    assert "witness" in succeeded(cluster.run("members list")).stdout
    refused(cluster.run("members demote", "w"), 2, "w", "remove it, then add it")
    refused(cluster.run("members transfer", "w"), 2, "w", "never leads")
    refused(cluster.run("members add", "x", "--witness", "--learner"), 2, "--learner or --witness")
    refused(cluster.run("snapshot", "--id", "w"), 2, "w is a witness")
    refused(cluster.run("backup", str(tmp_path / "file"), "--id", "w"), 2, "w is a witness")
    assert not (tmp_path / "file").exists()
    leader = cluster.leader()
    cluster.kill(leader)
    cluster.propose({"op": "put", "key": "a", "value": "after"})
    assert cluster.read("a") == "after"
    assert cluster.leader() in ("n1", "n2")
    with pytest.raises(InvalidArgument, match="w is a witness"):
        node.read(lambda machine: machine.value, timeout=10)
    assert (machine.value, machine.executed) == (0, [])
    node.stop()
    with pytest.raises(InvalidArgument, match="w is a witness of group 'g'"):
        recover(tmp_path / "w", "w")
    told = run("members", "recover", "--id", "w", "--data-dir", str(tmp_path / "w"), "--unsafe")
    assert told.returncode == 2 and "it has no state; take another node's directory" in told.stderr
