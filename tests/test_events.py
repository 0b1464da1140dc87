"""What happens in a node is told to observers, and none of them can hurt it."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import servers
from processes import PEERS, Cluster, succeeded
from processes import cluster as cluster
from processes import server as server
from raftplug import Client, Node, Settings, Snapshot, StateMachine, hookimpl
from raftplug.embedded import EmbeddedServer
from raftplug.errors import InvalidArgument
from raftplug.events import KINDS, LOST, Event, Events, Subscription
from raftplug.plugins import Plugins

valkey_server, wait_until = servers.valkey_server, servers.wait_until


class Echo(StateMachine):
    def apply_transition(self, transition: Any) -> Any:
        return transition


@pytest.fixture
def node(valkey_server: EmbeddedServer, tmp_path: Path) -> Iterator[Node]:
    with Node(
        "n1", peers=["n1"], redis=valkey_server.url, data_dir=str(tmp_path / "n1"), state_machine=Echo(), bootstrap=True
    ) as node:
        yield node


def event(number: int) -> Event:
    return Event("peer", None, "n1", {"number": number})


def test_events_come_in_order_and_end_with_the_subscription() -> None:
    subscription = Subscription("n1")
    for number in range(3):
        subscription.put(event(number))
    subscription.close()
    subscription.put(event(3))
    assert [each.details["number"] for each in subscription] == [0, 1, 2]


def test_a_slow_observer_loses_the_oldest_and_is_told_how_many() -> None:
    subscription = Subscription("n1", most=2)
    for number in range(5):
        subscription.put(event(number))
    subscription.close()
    first, *rest = subscription
    assert (first.kind, first.details) == (LOST, {"count": 3})
    assert [each.details["number"] for each in rest] == [3, 4]


def test_who_waits_for_nothing_is_told_in_time() -> None:
    assert Subscription("n1").get(0.01) is None


def test_what_was_lost_is_told_once() -> None:
    subscription = Subscription("n1", most=2)
    for number in range(5):
        subscription.put(event(number))
    taken = [subscription.get(0.0) for _ in range(4)]
    assert [each.kind if each is not None else None for each in taken] == [LOST, "peer", "peer", None]


def test_who_waits_for_events_is_told_of_the_end() -> None:
    subscription, ended = Subscription("n1"), threading.Event()

    def wait() -> None:
        assert subscription.get() is None
        ended.set()

    threading.Thread(target=wait, daemon=True).start()
    wait_until(lambda: subscription._news is not None, "it waits")
    subscription.close()
    assert ended.wait(30.0)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="no event 'leader'"):
        Subscription("n1", ("leader",))


def test_an_observer_that_raises_sees_the_next_event(caplog: pytest.LogCaptureFixture) -> None:
    events = Events("n1", Plugins())
    seen: list[int] = []

    def observe(event: Event) -> None:
        seen.append(event.details["number"])
        raise ValueError("no")

    events.subscribe((), observe)
    for number in range(2):
        events.publish("raftplug_peer", node="n1", number=number)
    events.close(10.0)
    assert seen == [0, 1]
    assert [record.getMessage() for record in caplog.records] == [
        "an observer of events raised, and will not be logged again"
    ]


class Hooked:
    """A plugin that observes peers."""

    def __init__(self, observe: Callable[[Any], object]) -> None:
        self.observe = observe

    @hookimpl
    def raftplug_peer(self, peer: Any) -> None:
        self.observe(peer)


def test_a_hook_that_hangs_or_raises_keeps_nobody_waiting_nor_another_plugin() -> None:
    hangs, seen, threads = threading.Event(), [], set()

    def observe(peer: Any) -> None:
        seen.append(peer)
        threads.add(threading.current_thread())

    plugins = Plugins()
    plugins.register(Hooked(lambda peer: hangs.wait()), name="hangs")
    plugins.register(Hooked(lambda peer: 1 // 0), name="raises")
    plugins.register(Hooked(observe), name="sound")
    events = Events("n1", plugins)
    for peer in range(100):
        events.publish("raftplug_peer", node="n1", peer=peer, reachable=True)
    wait_until(lambda: len(seen) == 100, "the sound one sees all")
    assert seen == list(range(100))
    assert len(threads) == 1 and threading.current_thread() not in threads
    events.close(0.01)
    hangs.set()


def test_a_closed_subscription_is_gone_and_costs_no_transition_anything() -> None:
    events = Events("n1", Plugins())
    for _ in range(100):
        with events.subscribe(("transition_state",), None):
            assert events.is_watched()
        assert not events.is_watched()
    events.subscribe(("peer",), None)
    assert len(events._subscriptions) == 1


def test_the_end_of_a_node_is_the_end_of_every_observer() -> None:
    plugins = Plugins()
    plugins.register(Hooked(lambda peer: None), name="plugin")
    events = Events("n1", plugins)
    subscriptions = [events.subscribe((), None), events.subscribe((), lambda event: None)]
    events.publish("raftplug_peer", node="n1", peer="n2", reachable=True)
    events.close(30.0)
    assert all(each.is_closed() for each in subscriptions)
    assert len(events._threads) == 2 and not any(thread.is_alive() for thread in events._threads)


def test_whoever_subscribes_after_the_end_waits_for_nothing() -> None:
    events = Events("n1", Plugins())
    events.close(1.0)
    assert events.subscribe((), None).is_closed()
    assert list(events.subscribe((), None)) == []
    called: list[Event] = []
    events.subscribe((), called.append)
    events.publish("raftplug_peer", node="n1", peer="n2", reachable=True)
    assert called == []


def test_what_cannot_be_called_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="not str"):
        Events("n1", Plugins()).subscribe((), "print")  # type: ignore[arg-type]


def test_events_can_be_awaited_in_any_loop_while_another_thread_tells_them() -> None:
    events = Events("n1", Plugins())
    subscription = events.subscribe(("peer",), None)

    def tell() -> None:
        for number in range(200):
            events.publish("raftplug_peer", node="n1", number=number)
        events.close(1.0)

    async def observe() -> list[int]:
        return [event.details["number"] async for event in subscription]

    teller = threading.Timer(0.05, tell)
    teller.start()
    assert asyncio.run(observe()) == list(range(200))
    teller.join()


def test_a_waiting_reader_is_woken_by_an_event_and_by_the_end() -> None:
    subscription, seen = Subscription("n1"), []
    reader = threading.Thread(target=lambda: seen.extend(subscription))
    reader.start()
    for number in range(50):
        subscription.put(event(number))
    subscription.close()
    reader.join(30.0)
    assert not reader.is_alive()
    assert [each.details["number"] for each in seen] == list(range(50))


def test_every_kind_of_event_is_a_hook() -> None:
    from raftplug import hooks

    assert {f"raftplug_{kind}" for kind in KINDS} <= set(vars(hooks))


def test_a_node_tells_of_its_leader_and_of_each_transition(node: Node) -> None:
    with node.subscribe("transition_state") as states:
        assert node.propose({"a": 1}).result(timeout=10) == {"a": 1}
        seen = []
        while "Applied" not in seen:
            told = states.get(10.0)
            assert told is not None
            seen.append(str(told.details["state"]).rpartition(".")[2])
    assert seen == ["Queued", "Committed", "Applied"]


def test_a_plugin_observes_what_a_subscription_does(valkey_server: EmbeddedServer, tmp_path: Path) -> None:
    led = threading.Event()

    class Observer:
        @hookimpl
        def raftplug_leader_changed(self, leader: Any) -> None:
            if leader == "n1":
                led.set()

    plugins = Plugins()
    plugins.register(Observer(), name="observer")
    told: list[Event] = []
    node = Node(
        "n1",
        peers=["n1"],
        redis=valkey_server.url,
        data_dir=str(tmp_path / "n1"),
        state_machine=Echo(),
        bootstrap=True,
        plugins=plugins,
    )
    node.subscribe("leader_changed", callback=told.append)
    with node:
        assert node.propose(1).result(timeout=10) == 1
        assert led.wait(10.0)
    assert [each.details["leader"] for each in told][:1] == ["n1"]


def test_processes_tell_in_a_line_who_leads_who_is_a_member_and_who_is_silent(cluster: Cluster) -> None:
    cluster.start(*PEERS, bootstrap=True)
    cluster.propose({"op": "put", "key": "a", "value": 1})
    leader = cluster.leader()
    cluster.nodes[leader].wait_for_line(rf"^{leader}: leads in term \d+$")
    gone, other = [name for name in PEERS if name != leader]
    cluster.nodes[other].wait_for_line(rf"^{other}: follows {leader} in term \d+$")
    cluster.kill(gone)
    cluster.nodes[leader].wait_for_line(rf"^{leader}: {gone} is silent$")
    cluster.start(gone)
    cluster.nodes[leader].wait_for_line(rf"^{leader}: {gone} is heard again$")
    succeeded(cluster.run("members demote", gone))
    cluster.nodes[leader].wait_for_line(rf"^{leader}: voters (?=.*{leader})(?=.*{other}).*; learners {gone}$")


def test_snapshots_members_divergence_and_slowness_are_told_over_a_real_server(
    valkey_server: EmbeddedServer, tmp_path: Path
) -> None:
    """n3's machine is wrong once, and slow; n2 is away for so long that it needs a snapshot."""

    class Total(StateMachine):
        def __init__(self, wrong: bool = False) -> None:
            self.total, self.wrong = 0, wrong

        def apply_transition(self, transition: Any) -> Any:
            if transition == "slow" and self.wrong:
                time.sleep(0.2)  # More than half a heartbeat: it would hold up the loop.
            self.total += 1 + (transition == "wrong" and self.wrong)
            return self.total

        def digest(self) -> bytes:
            return b"%d" % self.total

        def create_snapshot(self, last_included_index: int, last_included_term: int) -> Snapshot:
            return Snapshot(last_included_index, last_included_term, self.total)

        def set_snapshot(self, snapshot: Snapshot) -> None:
            self.total = snapshot.data

    settings = Settings(snapshot_entries=0, keep_entries=0, digest_entries=20)
    told: dict[str, list[Event]] = {name: [] for name in PEERS}

    def start(name: str, bootstrap: bool) -> Node:
        options: Any = {"redis": valkey_server.url, "data_dir": str(tmp_path / name), "settings": settings}
        node = Node(name, peers=PEERS, bootstrap=bootstrap, state_machine=Total(name == "n3"), **options)
        node.subscribe(callback=told[name].append)
        return node.start()

    def seen(name: str, kind: str) -> list[Any]:
        return [each.details for each in told[name] if each.kind == kind]

    with contextlib.ExitStack() as stack:
        nodes = {name: start(name, True) for name in PEERS}
        for name in PEERS:
            stack.callback(lambda name=name: nodes[name].stop())
        client = stack.enter_context(Client(valkey_server.url))
        client.propose("first", 30)
        nodes["n2"].stop()
        for transition in ["right"] * 30:
            client.propose(transition, 30)
        for name in ("n1", "n3"):
            made = client.snapshot(name, 30)
            wait_until(lambda name=name, made=made: seen(name, "snapshot"), f"{name} made one")
            assert seen(name, "snapshot")[-1] == {"index": made["index"], "kind": "made"}
        nodes["n2"] = start("n2", False)
        wait_until(lambda: [each["kind"] for each in seen("n2", "snapshot")] == ["installed"], "n2 installed one")
        client.change_members("demote", "n2", timeout=30)
        wait_until(
            lambda: [list(each["configuration"][2]) for each in seen("n1", "configuration_changed")][-1:] == [["n2"]],
            "n2 learns",
        )
        client.change_members("promote", "n2", timeout=30)
        client.wait_for_voter("n2", 30)
        client.propose("slow", 30)
        wait_until(lambda: [each["took_ms"] >= 50 for each in seen("n3", "slow_apply")] == [True], "n3 is slow")
        client.propose("wrong", 30)
        for transition in ["right"] * 40:
            client.propose(transition, 30)
        wait_until(lambda: seen("n3", "diverged"), "n3 is told")
        leader = wait_until(
            lambda: nodes["n1"].leader in ("n1", "n2") and nodes["n1"].leader, "one that has not diverged"
        )
        wait_until(lambda: seen(leader, "diverged"), "so is the leader")
        assert {each["replica"] for name in PEERS for each in seen(name, "diverged")} == {"n3"}
        assert not seen("n1", "slow_apply")


def test_whoever_watches_a_node_sees_leadership_move_and_a_peer_fall_silent(
    valkey_server: EmbeddedServer, tmp_path: Path
) -> None:
    def node(name: str) -> Node:
        options: Any = {"redis": valkey_server.url, "data_dir": str(tmp_path / name), "state_machine": Echo()}
        return Node(name, peers=list(PEERS), bootstrap=True, **options)

    nodes = {name: node(name) for name in PEERS}
    told: dict[str, list[Event]] = {name: [] for name in PEERS}
    for name, each in nodes.items():
        each.subscribe("leader_changed", "peer", callback=told[name].append)
    with contextlib.ExitStack() as stack:
        for each in nodes.values():
            stack.enter_context(each)
        assert nodes["n1"].propose(1).result(timeout=10) == 1
        leader = wait_until(lambda: nodes["n1"].leader, "a leader")
        nodes[leader].stop()
        silent = {"peer": leader, "reachable": False}
        for name in set(PEERS) - {leader}:

            def leaders(name: str = name) -> list[Any]:
                return [each.details["leader"] for each in told[name] if each.kind == "leader_changed"]

            wait_until(lambda: leaders()[-1] not in (None, leader), f"{name} sees another leader")
            assert leader in leaders()
            wait_until(lambda name=name: silent in [each.details for each in told[name]], f"{name} misses {leader}")
