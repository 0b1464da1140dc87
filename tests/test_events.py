"""What happens in a node is told to observers, and none of them can hurt it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import servers
from raftplug import Node, StateMachine, hookimpl
from raftplug.embedded import EmbeddedServer
from raftplug.errors import InvalidArgument
from raftplug.events import KINDS, LOST, Event, Events, Subscription
from raftplug.plugins import Plugins

valkey_server = servers.valkey_server


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


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="no event 'leader'"):
        Subscription("n1", ("leader",))


def test_an_observer_that_raises_sees_the_next_event(caplog: pytest.LogCaptureFixture) -> None:
    events = Events("n1", lambda name, **arguments: None, lambda name: False)
    seen: list[int] = []

    def observe(event: Event) -> None:
        seen.append(event.details["number"])
        raise ValueError("no")

    events.subscribe((), observe)
    for number in range(2):
        events.publish("raftplug_peer", node="n1", number=number)
    events.close(10.0)
    assert seen == [0, 1]


def test_a_hook_that_hangs_keeps_nobody_waiting() -> None:
    hangs = threading.Event()
    events = Events("n1", lambda name, **arguments: hangs.wait(), lambda name: True)
    for number in range(100):
        events.publish("raftplug_peer", node="n1", number=number)
    events.close(0.01)
    hangs.set()


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
