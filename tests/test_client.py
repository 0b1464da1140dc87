"""A client finds its group, asks it through frames, and lets nothing but our own errors out."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import pytest

import raftplug
from raftplug import errors, plain
from raftplug.cli.status import headline
from raftplug.client import Client, ClientLoop
from raftplug.cluster import Cluster, MemoryCluster, MemoryHub
from raftplug.constants import FAILED, OK, REFUSED_NOT_LEADER, REPLY, REQUEST
from raftplug.core import Future
from raftplug.embedded import EmbeddedServer
from raftplug.errors import (
    InvalidArgument,
    InvalidTransition,
    OutcomeUnknown,
    QueryFailed,
    SessionExpired,
    TooLarge,
    TransitionFailed,
    Unavailable,
)
from raftplug.frames import Sender, addressed, decode_frame, group_number
from raftplug.plugins import default
from raftplug.sessions import Sessions
from raftplug.settings import Settings
from raftplug.status import merge_status, own_problems

SECOND = 1_000_000
UUID = bytes(range(16))
OTHER = bytes(range(1, 17))
GROUP = "things"


class FakeNode:
    """What a node is to a client: it announces itself and answers; its log is its session table and a list."""

    def __init__(self, cluster: Cluster, id: Any, uuid: bytes = UUID, group: str = GROUP, **record: Any) -> None:
        self.cluster = cluster
        self.id = id
        self.group = group_number(group)
        self.sender = Sender(id, uuid, bytes(16), 1, 5)
        self.leads = True
        self.mute = False
        self.row: dict[str, Any] = {}
        self.requests: list[tuple[Any, int, str, list[Any]]] = []
        self.sessions = Sessions()
        self.index = 0
        self.executed: list[Any] = []
        self.frames = 0
        seen = {"id": id, "cluster": uuid.hex(), "groups": [group], "leader": {group: None}, "nonce": 5}
        cluster.announce({**seen, **record})

    def turn(self) -> None:
        for data in self.cluster.receive_messages():
            frame = decode_frame(data)
            self.frames += 1
            for item in frame.items:
                assert (item.kind, item.group) == (REQUEST, self.group)
                counter, op, args = msgpack.unpackb(addressed(item.body)[1])
                self.requests.append((frame.source, counter, op, args))
                if not self.mute:
                    self.reply(frame.source, frame.nonce, counter, *self.answer(op, args))

    def reply(self, to: Any, nonce: int, counter: Any, code: int, value: Any, **change: Any) -> None:
        body = change.get("body", msgpack.packb([nonce, counter, code, value]))
        item = (change.get("group", self.group), change.get("kind", REPLY), body)
        self.cluster.send_message(to, self.sender.encode(change.get("target", to), [item]))

    def answer(self, op: str, args: list[Any]) -> tuple[int, Any]:
        if op == "status":
            return OK, {"id": self.id, **self.row}
        if op == "read":
            query = plain.decode(args[0])
            return (FAILED, ["KeyError", "no"]) if query == "bad" else (OK, plain.encode(len(self.executed)))
        if not self.leads:
            return REFUSED_NOT_LEADER, None
        self.index += 1
        if op == "open":
            return OK, self.sessions.open(self.index, 0, args[0] or "")
        session, sequence, below, transition = args
        known = self.sessions.admit(session, sequence, below, 0)
        if known is not None:
            return known
        value = plain.decode(transition)
        if value == "bad":
            return FAILED, ["ValueError", "no"]
        self.executed.append(value)
        self.sessions.record(session, sequence, OK, plain.encode(value))
        return OK, plain.encode(value)


class World:
    """A client's loop and fake nodes in one thread, on a clock of the test's."""

    def __init__(self, *ids: Any, **options: Any) -> None:
        self.hub = MemoryHub()
        self.now = 0
        self.nodes = [self.node(id) for id in ids]
        self.cluster = MemoryCluster(self.hub, "~c")
        self.loop = ClientLoop(
            cluster=self.cluster,
            own_id="~c",
            group=GROUP,
            settings=Settings(),
            generator=random.Random(1),
            **options,
        )

    def node(self, id: Any, uuid: bytes = UUID, **options: Any) -> FakeNode:
        return FakeNode(MemoryCluster(self.hub, id, uuid), id, uuid, **options)

    def run(self, milliseconds: int = 20) -> None:
        for _ in range(milliseconds):
            self.now += 1_000
            self.loop.turn(self.now)
            for node in self.nodes:
                node.turn()

    def ask(self, function: Callable[..., None], *arguments: Any, seconds: float = 10) -> Future:
        future = Future()
        function(*arguments, future, self.now + int(seconds * SECOND))
        return future

    def propose(self, value: Any, seconds: float = 10) -> Future:
        return self.ask(self.loop.propose, plain.encode(value), seconds=seconds)

    def read(self, value: Any = None, seconds: float = 10) -> Future:
        return self.ask(self.loop.read, plain.encode(value), seconds=seconds)

    def status(self, seconds: float = 4) -> Future:
        return self.ask(self.loop.status, seconds=seconds)

    def until(self, future: Future, milliseconds: int = 20_000) -> Any:
        for _ in range(milliseconds):
            if future.done():
                return future.result(0)
            self.run(1)
        raise AssertionError("no answer")


def test_it_finds_the_group_and_writes_and_reads() -> None:
    world = World("n1")
    assert world.until(world.propose({"add": 1})) == {"add": 1}
    assert world.until(world.read()) == 1
    with pytest.raises(TransitionFailed, match="ValueError: no"):
        world.until(world.propose("bad"))
    with pytest.raises(QueryFailed, match="KeyError: no"):
        world.until(world.read("bad"))


def test_it_waits_for_a_group_that_comes_later() -> None:
    world = World()
    future = world.propose(1)
    world.run(500)
    assert not future.done()
    world.nodes.append(world.node(7))
    assert world.until(future) == 1


def test_without_a_group_a_write_and_a_read_are_unavailable_and_say_why() -> None:
    world = World()
    for future in (world.propose(1, seconds=1), world.read(seconds=1), world.status(seconds=1)):
        with pytest.raises(Unavailable, match="no node of group 'things' was found"):
            world.until(future)


def test_what_the_transport_complains_of_is_in_the_message() -> None:
    world = World()
    world.cluster.problems = lambda: ["the server is down"]  # type: ignore[method-assign]
    with pytest.raises(Unavailable, match="the server is down"):
        world.until(world.propose(1, seconds=1))


def test_records_of_other_groups_and_records_that_make_no_sense_are_ignored() -> None:
    world = World()
    good = {"id": "n1", "cluster": UUID.hex(), "groups": [GROUP], "leader": {GROUP: None}}
    bad: list[Any] = [
        None,
        [],
        {},
        {**good, "id": "n9", "groups": ["others"]},
        {**good, "id": "n9", "groups": 5},
        {**good, "id": "~client"},
        {**good, "id": ["x"]},
        {**good, "id": "a b"},
        {**good, "cluster": "zz"},
        {**good, "cluster": 5},
        {**good, "cluster": "00" * 16},
        {**good, "cluster": "ab"},
    ]
    world.cluster.directory = lambda: bad  # type: ignore[method-assign]
    world.propose(1)
    world.run(100)
    assert world.loop._nodes == []
    for odd in ({"leader": 5}, {"leader": {GROUP: [1]}}, {"leader": {GROUP: "n9"}}, {"at": "noon"}, {"at": 10**400}):
        world.cluster.directory = lambda odd=odd: [*bad, {**good, **odd}]  # type: ignore[method-assign,misc]
        world.run(2000)
    assert world.loop._nodes == ["n1"]


def test_two_clusters_of_one_group_name_are_refused_by_name() -> None:
    world = World("n1")
    world.nodes.append(world.node("n2", OTHER))
    for future in (world.propose(1), world.read(), world.status()):
        with pytest.raises(InvalidArgument, match=f"{UUID.hex()} and {OTHER.hex()}"):
            world.until(future)
    assert all(not node.requests for node in world.nodes)


def test_a_cluster_that_has_not_been_heard_of_for_long_is_no_conflict() -> None:
    world = World()
    world.node("old", OTHER, at=1_000_000)
    world.nodes.append(world.node("n1", at=1_040_000))
    assert world.until(world.propose(1)) == 1


def test_a_client_stays_with_the_cluster_that_it_found() -> None:
    world = World("n1")
    world.until(world.propose(1))
    world.nodes.append(world.node("n2", OTHER))
    world.run(2000)
    assert world.until(world.propose(2)) == 2
    world.nodes.pop(0).cluster.close()
    with pytest.raises(OutcomeUnknown):
        world.until(world.propose(3, seconds=3))
    with pytest.raises(Unavailable, match="open a new client"):
        world.until(world.read(seconds=3))
    assert not world.nodes[0].requests


def test_the_directory_names_the_leader() -> None:
    world = World("n1", "n2")
    world.nodes.append(world.node("n3", leader={GROUP: "n3"}))
    for node in world.nodes[:2]:
        node.leads = False
    world.until(world.propose(1))
    assert [len(node.requests) for node in world.nodes] == [0, 0, 2]


def test_what_is_asked_in_one_turn_travels_in_one_frame_unless_it_is_large() -> None:
    world = World("n1")
    world.until(world.propose(0))
    before = world.nodes[0].frames
    futures = [world.propose(number) for number in range(100)]
    world.run(5)
    assert all(future.done() for future in futures)
    assert world.nodes[0].frames == before + 1
    futures = [world.propose(bytes(200_000)) for _ in range(5)]
    world.run(5)
    assert all(future.done() for future in futures)
    assert world.nodes[0].frames == before + 6


def test_frames_and_replies_that_are_not_for_us_change_nothing() -> None:
    world = World("n1")
    node = world.nodes[0]
    node.mute = True
    future = world.read()
    world.run(5)
    ((source, counter, *_),) = node.requests
    nonce, value = world.loop._sender.nonce, plain.encode("forged")
    foreign = world.node("n2", OTHER)
    foreign.reply(source, nonce, counter, OK, value)
    node.reply(source, nonce, counter, OK, value, target="~other")
    node.reply(source, nonce, counter, OK, value, group=5)
    node.reply(source, nonce, counter, OK, value, kind=REQUEST)
    node.reply(source, nonce + 1, counter, OK, value)
    node.reply(source, nonce, counter + 9, OK, value)
    node.reply(source, nonce, [counter], OK, value)
    node.reply(source, nonce, counter, OK, 5)
    for body in (b"", b"\xc1", msgpack.packb(5), msgpack.packb([1, 2, 3]), msgpack.packb({1: 2})):
        node.reply(source, nonce, counter, OK, value, body=body)
    for garbage in (b"", b"x" * 500, node.sender.encode("~c", [])[:-1]):
        node.cluster.send_message("~c", garbage)
    world.run(5)
    assert not future.done()
    node.reply(source, nonce, counter, OK, plain.encode("real"))
    assert world.until(future) == "real"


def test_a_lost_frame_is_sent_again_and_executed_once() -> None:
    world = World("n1")
    losses = iter([True, False, False, True, True, False, False, True])
    world.hub.drop = lambda source, target, message: next(losses, False)
    assert [world.until(world.propose(number)) for number in range(3)] == [0, 1, 2]
    assert world.nodes[0].executed == [0, 1, 2]


def test_a_named_session_repeats_a_load_without_applying_anything_twice() -> None:
    world = World("n1", session="load")
    node = world.nodes[0]

    def load(world: World) -> list[Any]:
        futures = []
        for number in range(1, 51):
            future = Future()
            world.loop.propose(plain.encode(number), future, world.now + 10 * SECOND, number)
            futures.append(future)
        return [world.until(future) for future in futures]

    assert load(world) == list(range(1, 51))
    second = World(session="load")
    second.hub.members, second.hub.records, second.nodes = world.hub.members, world.hub.records, world.nodes
    second.cluster = MemoryCluster(world.hub, "~c")
    second.loop.cluster = second.cluster
    load(second)
    assert node.executed == list(range(1, 51))


def test_closing_ends_all_and_refuses_the_rest() -> None:
    world = World("n1")
    world.until(world.propose(1))
    world.nodes[0].mute = True
    sent, status = world.propose(2), world.status()
    world.run(5)
    world.loop.close()
    assert isinstance(sent.exception(0), OutcomeUnknown)
    assert isinstance(status.exception(0), Unavailable)
    late = Future()
    world.loop.call(world.loop.propose, b"\xc0", late, LONG)
    later = Future()
    world.loop.call(world.loop.status, later, LONG)
    world.loop.drain()
    assert isinstance(late.exception(0), Unavailable)
    assert isinstance(later.exception(0), Unavailable)


LONG = 1 << 60


# -- status ------------------------------------------------------------------------------------------------------------


def row(**values: Any) -> dict[str, Any]:
    return {
        "role": "follower",
        "leader": "n1",
        "term": 3,
        "last": 10,
        "commit": 10,
        "applied": 8,
        "contact_ms": 12,
        "core": "python",
        "version": "0.1.0",
        "voters": ["n1", "n2", "n3"],
        "problems": [],
        **values,
    }


def test_status_asks_everybody_and_has_exactly_the_documented_fields() -> None:
    world = World("n1", "n2", "n3")
    world.nodes[0].row = row(role="leader", contact_ms=None, commit=12, last=12)
    world.nodes[1].row = row(surprise=1)
    world.nodes[2].row = row(problems=["disk full"], applied=None)
    status = world.until(world.status())
    assert status == {
        "group": GROUP,
        "leader": "n1",
        "term": 3,
        "quorum": {"needed": 2, "reachable": 3},
        "nodes": [
            {
                "id": "n1",
                "role": "leader",
                "term": 3,
                "last": 12,
                "commit": 12,
                "applied": 8,
                "lag": 4,
                "contact_ms": None,
                "core": "python",
                "version": "0.1.0",
                "problems": [],
            },
            {**shown("n2"), "lag": 4},
            {**shown("n3"), "applied": None, "lag": None, "problems": ["disk full"]},
        ],
    }


def shown(id: str) -> dict[str, Any]:
    values = row()
    del values["leader"], values["voters"]
    return {"id": id, **values}


def test_status_waits_only_a_moment_for_a_node_that_is_down() -> None:
    world = World("n1", "n2")  # n3 is not even in the directory.
    world.nodes[0].row = row(role="candidate", leader=None, term=4)
    world.nodes[1].mute = True
    started = world.now
    status = world.until(world.status())
    assert world.now - started < 2 * SECOND
    assert (status["leader"], status["term"], status["quorum"]) == (None, 4, {"needed": 2, "reachable": 1})
    silent = {"role": None, "term": None, "last": None, "commit": None, "applied": None, "lag": None}
    silent |= {"contact_ms": None, "core": None, "version": None, "problems": ["no answer"]}
    assert status["nodes"][1:] == [{"id": "n2", **silent}, {"id": "n3", **silent}]


def test_status_asks_again_until_its_timeout_whoever_the_others_hear() -> None:
    """One answer, or one question, may be lost: that is no death."""
    world = World("n1", "n2", "n3")
    for node in world.nodes:
        node.row = row(role="leader" if node.id == "n1" else "follower", peers=[["n3", 20, False]])
    world.nodes[2].mute = True
    status = world.status()
    world.run(2_500)
    assert not status.done()
    world.nodes[2].mute = False
    found = world.until(status)
    assert found["quorum"] == {"needed": 2, "reachable": 3}
    assert [node["problems"] for node in found["nodes"]] == [[], [], []]


def test_status_tells_who_is_not_heard_here_from_who_is_down_and_from_what_is_not_known() -> None:
    world = World("n1", "n2", "n3", "n4")
    voters = ["n1", "n2", "n3", "n4", "n5"]
    peers = [["n2", 1, False], ["n3", 70, False], ["n4", 9_000, True]]
    world.nodes[0].row = row(role="leader", voters=voters, peers=peers)
    world.nodes[1].row = row(voters=voters, peers=[["n3", 600, True], ["n4", 8_000, True], ["n1", 2, False]])
    world.nodes[2].mute = world.nodes[3].mute = True
    started = world.now
    status = world.until(world.status(seconds=3))
    assert 2.9 * SECOND < world.now - started <= 3.1 * SECOND, "it was asked for to the end"
    assert [(node["id"], node["contact_ms"], node["problems"]) for node in status["nodes"][2:]] == [
        ("n3", 70, ["no answer here, but n1 hears it: it runs, and this client does not hear it"]),
        ("n4", 8_000, ["down: no answer, and n1, n2 do not hear it, either"]),
        ("n5", None, ["no answer"]),
    ]
    assert status["quorum"] == {"needed": 3, "reachable": 3}, "a node that another one hears is there"


def test_status_ends_soon_when_a_node_has_just_died_and_the_others_notice() -> None:
    world = World("n1", "n2")
    leader = row(role="leader", voters=["n1", "n2"])
    world.nodes[0].row = {**leader, "peers": [["n2", 100, False]]}
    world.nodes[1].mute = True
    status = world.status(seconds=60)
    world.run(600)
    world.nodes[0].row = {**leader, "peers": [["n2", 700, True]]}
    world.run(1_500)
    assert status.result(0)["nodes"][1]["problems"] == ["down: no answer, and n1 does not hear it, either"]


@pytest.mark.parametrize(("seconds", "text"), [(0.3, "no answer"), (3, "no answer")])
def test_status_obeys_its_timeout(seconds: float, text: str) -> None:
    world = World("n1", "n2")
    for node in world.nodes:
        node.mute = True
    started = world.now
    status = world.until(world.status(seconds=seconds))
    assert abs(world.now - started - seconds * SECOND) <= 0.1 * SECOND
    assert [node["problems"] for node in status["nodes"]] == [[text], [text]]


def test_status_names_what_is_wrong_with_the_clients_own_way_and_how_old_an_announcement_is() -> None:
    rows = {"n1": {"id": "n1", **row(role="leader", peers=[["n2", 9_000, True], ["n3", 1_500, True]])}}
    # n3 announced itself before it was last heard: it has died since.
    status = merge_status(GROUP, rows, {"n2", "n3"}, {"n2": 2_000.0, "n3": 2_000.0}, ["redis is full"])
    assert [node["problems"] for node in status["nodes"][1:]] == [
        [
            "no answer, and n1 does not hear it; but it announced itself 2 s ago: it is cut off from them",
            "this client: redis is full",
        ],
        ["down: no answer, and n1 does not hear it, either", "this client: redis is full"],
    ]
    assert own_problems(status) == ["redis is full"]
    nothing = merge_status(GROUP, {}, {"n1"}, {}, ["redis is full"])
    assert headline(nothing) == "group things: not known, since this client hears no node: redis is full"
    status = merge_status(GROUP, {}, {"n1", "n2"}, {"n1": 2_000.0})
    assert [node["problems"] for node in status["nodes"]] == [
        ["no answer; it announced itself 2 s ago"],
        ["no answer"],
    ]


@pytest.mark.parametrize("peers", [5, [5], [[]], [["n2", "x", True]], [["n2", 1]], [[["n2"], 1, True]], [{"n2": 1}]])
def test_status_survives_strange_words_about_peers(peers: Any) -> None:
    status = merge_status(GROUP, {"n1": {"id": "n1", **row(peers=peers)}}, {"n2"})
    assert status["nodes"][1]["problems"] == ["no answer"]


def test_what_needs_no_action_is_a_note_and_no_problem() -> None:
    rows = {"n1": {"id": "n1", **row(role="leader", notes=["the state machine has a thread of its own"])}}
    (node, *_) = merge_status(GROUP, rows, set())["nodes"]
    assert (node["problems"], node["notes"]) == ([], ["the state machine has a thread of its own"])


def test_status_asks_voters_that_the_directory_does_not_know() -> None:
    world = World("n1")
    world.nodes[0].row = row(role="leader")
    hidden = world.node("n2")
    hidden.row = row()
    world.nodes.append(hidden)
    world.hub.records.pop((UUID.hex(), "n2"))
    status = world.until(world.status())
    assert [node["role"] for node in status["nodes"]] == ["leader", "follower", None]


def test_status_of_a_group_that_never_answers_still_names_its_nodes() -> None:
    world = World("n1", "n2")
    for node in world.nodes:
        node.mute = True
    status = world.until(world.status())
    assert (status["leader"], status["term"], status["quorum"]) == (None, None, {"needed": None, "reachable": 0})
    assert [(node["id"], node["problems"]) for node in status["nodes"]] == [
        ("n1", ["no answer"]),
        ("n2", ["no answer"]),
    ]


def test_status_believes_a_quorum_that_follows_a_leader_we_cannot_hear() -> None:
    rows = {"n2": {"id": "n2", **row()}, "n3": {"id": "n3", **row()}}
    assert merge_status(GROUP, rows, {"n1"})["leader"] == "n1"
    rows["n3"]["leader"] = None
    assert merge_status(GROUP, rows, {"n1"})["leader"] is None


def test_status_believes_the_leader_of_the_highest_term_and_survives_strange_rows() -> None:
    rows = {"n1": {"id": "n1", **row(role="leader", term=2)}, "n2": {"id": "n2", **row(role="leader", term=5)}}
    assert merge_status(GROUP, rows, set())["leader"] == "n2"
    strange = {"n1": {"id": "n1", "role": "leader", "term": "x", "commit": None, "voters": 5, "problems": "no list"}}
    status = merge_status(GROUP, strange, set())
    assert status["quorum"] == {"needed": None, "reachable": None}
    assert status["nodes"][0]["problems"] == []


def test_a_row_that_is_not_the_nodes_own_is_no_answer() -> None:
    world = World("n1")
    world.nodes[0].row = row(id="n5")
    status = world.until(world.status())
    assert status["nodes"][0]["problems"] == ["no answer"]


# -- the thread --------------------------------------------------------------------------------------------------------


class Serving:
    """A fake node with a thread of its own."""

    def __init__(self, node: FakeNode) -> None:
        self.node = node
        self.stopping = False
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self) -> None:
        while not self.stopping:
            self.node.turn()
            self.node.cluster.wait(10)

    def stop(self) -> None:
        self.stopping = True
        self.node.cluster.wake()
        self.thread.join()
        self.node.cluster.close()


@pytest.fixture
def hub() -> MemoryHub:
    return MemoryHub()


@pytest.fixture
def node(hub: MemoryHub) -> Iterator[FakeNode]:
    serving = Serving(FakeNode(MemoryCluster(hub, "n1", UUID), "n1"))
    yield serving.node
    serving.stop()


def connect(hub: MemoryHub, **options: Any) -> Client:
    return Client(group=GROUP, cluster=MemoryCluster(hub, "~me"), id="~me", **options)


def test_a_client_blocks_and_returns(hub: MemoryHub, node: FakeNode) -> None:
    node.row = row(role="leader", voters=["n1"])
    with connect(hub) as client:
        assert client.propose([1, "two", b"3"], timeout=60) == [1, "two", b"3"]
        assert client.read(None, timeout=60) == 1
        assert client.propose_async("x").result(60) == "x"
        assert client.read_async("x").result(60) == 2
        assert client.status(timeout=60)["leader"] == "n1"
    assert raftplug.Client is Client


def test_many_threads_share_a_client_and_each_write_is_executed_once(hub: MemoryHub, node: FakeNode) -> None:
    with connect(hub) as client:

        def work(who: int) -> None:
            for number in range(50):
                assert client.propose([who, number], timeout=60) == [who, number]

        threads = [threading.Thread(target=work, args=(who,)) for who in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(node.executed) == [[who, number] for who in range(8) for number in range(50)]


def test_it_is_used_from_asyncio(hub: MemoryHub, node: FakeNode) -> None:
    async def main(client: Client) -> list[Any]:
        return await asyncio.gather(*(client.propose_async(number, 60) for number in range(20)))

    with connect(hub) as client:
        assert asyncio.run(main(client)) == list(range(20))


def test_only_our_own_errors_come_out(hub: MemoryHub, node: FakeNode) -> None:
    with connect(hub) as client:
        for bad in (object(), {1.5: 2}, (1,), {"x": {1}}, 2**64):
            for ask in (client.propose, client.read, client.propose_async, client.read_async):
                with pytest.raises(InvalidTransition):
                    ask(bad)
        for timeout in ("1", -1, float("nan"), True, [], 1j):
            for ask in (client.propose, client.read, client.propose_async):
                with pytest.raises(InvalidArgument):
                    ask(1, timeout)
            with pytest.raises(InvalidArgument):
                client.status(timeout)  # type: ignore[arg-type]
        with pytest.raises(TooLarge):
            client.propose(bytes(2 << 20))
        with pytest.raises(InvalidArgument):
            client.propose(1, sequence=1)
        with pytest.raises(TransitionFailed):
            client.propose("bad", 60)
        with pytest.raises(QueryFailed):
            client.read("bad", 60)
        with pytest.raises(Unavailable):
            client.propose(1, timeout=0)
    for call in (client.propose, client.read):
        with pytest.raises(Unavailable, match="closed"):
            call(1)
    with pytest.raises(Unavailable, match="closed"):
        client.status()
    client.close()


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"redis": "redis://localhost", "cluster": Cluster(), "id": "~x"},
        {"redis": "redis://localhost", "id": "~x"},
        {"cluster": Cluster()},
        {"cluster": Cluster(), "id": "n1"},
        {"cluster": Cluster(), "id": "~"},
        {"redis": 5},
        {"redis": "nowhere"},
        {"redis": "nosuch://x"},
        {"redis": "redis://localhost", "group": ""},
        {"redis": "redis://localhost", "group": 5},
        {"redis": "redis://localhost", "group": "a b"},
        {"redis": "redis://localhost", "prefix": 5},
        {"redis": "redis://localhost", "prefix": "{}"},
        {"redis": "redis://localhost", "settings": 5},
        {"redis": "redis://localhost", "settings": Settings(max_pending=0)},
        {"redis": "redis://localhost", "session": 5},
        {"redis": "redis://localhost", "session": "x" * 300},
    ],
)
def test_arguments_that_cannot_be_are_refused_before_anything_starts(arguments: dict[str, Any]) -> None:
    before = threading.active_count()
    with pytest.raises(InvalidArgument):
        Client(**arguments)
    assert threading.active_count() == before


def test_closing_ends_what_waits(hub: MemoryHub, node: FakeNode) -> None:
    client = connect(hub)
    assert client.propose(1, 60) == 1
    node.mute = True
    sent = client.propose_async(2, None)
    while not any(plain.decode(args[3]) == 2 for _, _, op, args in list(node.requests) if op == "propose"):
        node.cluster.wake()
    client.close()
    with pytest.raises(OutcomeUnknown):
        sent.result(60)
    assert not client._thread.is_alive()


def test_what_waits_in_a_clients_own_thread_is_told_so_instead_of_hanging(hub: MemoryHub, node: FakeNode) -> None:
    seen: list[BaseException] = []

    with connect(hub) as client:

        def wait(_: object) -> None:
            try:
                client.propose(2)
            except errors.RaftplugError as error:
                seen.append(error)

        client._loop.call(wait, None)
        client.propose(1, 60)
    assert [type(error) for error in seen] == [InvalidArgument]
    assert node.executed == [1]  # Who was refused has sent nothing.


def test_a_callback_may_wait_for_its_own_client_and_close_it(hub: MemoryHub, node: FakeNode) -> None:
    seen: list[object] = []
    done = threading.Event()
    client = connect(hub)

    def callback(_: object) -> None:
        seen.append(client.propose(2, 60))
        seen.append(client.propose_async(3, 60).result(60))
        client.close()
        done.set()

    client.propose_async(1, 60).add_done_callback(callback)
    assert done.wait(60)
    assert seen == [2, 3] and node.executed == [1, 2, 3]
    assert not client._thread.is_alive()


def test_a_client_that_was_forgotten_ends_its_thread(hub: MemoryHub, node: FakeNode) -> None:
    client = connect(hub)
    thread, watch = client._thread, weakref.ref(client)
    del client
    gc.collect()
    assert watch() is None
    thread.join(60)
    assert not thread.is_alive()


class Raising(MemoryCluster):
    failing = True

    def receive_messages(self) -> list[bytes]:
        if self.failing:
            raise OSError("broken pipe")
        return super().receive_messages()


def test_a_transport_that_raises_ends_what_waits_and_the_client_goes_on(hub: MemoryHub, node: FakeNode) -> None:
    cluster = Raising(hub, "~me")
    with Client(group=GROUP, cluster=cluster, id="~me") as client:
        futures = []
        cluster.failing = False
        assert client.propose(1, 60) == 1
        cluster.failing = True
        cluster.wake()
        futures = [client.propose_async(2, None)]
        cluster.failing = False
        assert client.propose(3, 60) == 3
        error = futures[0].exception(60)
        assert error is None or isinstance(error, errors.ClusterError)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_is_refused_and_leaves_the_parents_client_alone(hub: MemoryHub, node: FakeNode) -> None:
    with connect(hub) as client:
        assert client.propose(1, 60) == 1
        child = os.fork()
        if child == 0:
            status = 1
            try:
                client.propose(2)
            except InvalidArgument:
                client.close()
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        assert client.propose(3, 60) == 3
    assert node.executed == [1, 3]


def test_an_expired_session_is_told_and_the_next_write_works(hub: MemoryHub, node: FakeNode) -> None:
    with connect(hub) as client:
        client.propose(1, 60)
        node.sessions = Sessions()
        node.index = 1_000
        with pytest.raises(SessionExpired):
            client.propose(2, 60)
        assert client.propose(3, 60) == 3
    assert node.executed == [1, 3]


def test_over_a_real_server() -> None:
    with EmbeddedServer() as server:
        cluster = default().open_cluster(server.url, own_id="n1", cluster=UUID, prefix="raftplug", settings=Settings())
        serving = Serving(FakeNode(cluster, "n1"))
        serving.node.row = row(role="leader", voters=["n1"])
        try:
            with Client(server.url, GROUP) as client:
                assert client.status(30)["leader"] == "n1"
                futures = [client.propose_async(number, 60) for number in range(2_000)]
                assert [future.result(60) for future in futures] == list(range(2_000))
                assert client.read(None, 60) == 2_000
        finally:
            serving.stop()
    assert serving.node.executed == list(range(2_000))
