"""A node's beginning and end: what it leaves behind, whom it tells, and what it refuses meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from raftplug import Node, Settings, StateMachine
from raftplug.cluster import MemoryCluster, MemoryHub
from raftplug.errors import InvalidArgument, OutcomeUnknown, Overloaded, Unavailable

PATIENCE_S = 30.0


class Sum(StateMachine):
    def __init__(self) -> None:
        self.value = 0

    def apply_transition(self, transition: Any) -> Any:
        self.value += transition
        return self.value


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Node]]:
    """Starts nodes of one cluster, in memory but for their directories."""
    hub, nodes = MemoryHub(), list[Node]()

    def start_node(id: str = "n1", peers: tuple[str, ...] = ("n1",), **more: Any) -> Node:
        given = {"state_machine": Sum(), "bootstrap": True, "data_dir": tmp_path / id, **more}
        node = Node(id, peers=peers, cluster=MemoryCluster(hub, id), **given)
        nodes.append(node)
        return node.start()

    yield start_node
    for node in nodes:
        node.stop()


def wait_until(condition: Callable[[], Any], what: str) -> None:
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until, f"not in time: {what}"
        time.sleep(0.005)


def test_calls_that_the_loop_does_not_come_to_are_bounded(start: Callable[..., Node]) -> None:
    node = start(settings=Settings(max_pending=10))
    assert node.propose(1, timeout=PATIENCE_S).result(PATIENCE_S) == 1
    held, release = threading.Event(), threading.Event()
    assert node._loop is not None
    node._loop.call(lambda: (held.set(), release.wait(PATIENCE_S)))
    assert held.wait(PATIENCE_S)
    futures = [node.propose(1, timeout=PATIENCE_S) for _ in range(10)]
    for ask in (lambda: node.propose(1), lambda: node.read_async(lambda machine: machine.value)):
        with pytest.raises(Overloaded):
            ask()
    release.set()
    assert [future.result(PATIENCE_S) for future in futures] == list(range(2, 12))


def test_a_stop_ends_everything_that_somebody_waits_for(start: Callable[..., Node]) -> None:
    """Without a quorum nothing is answered before."""
    node = start(peers=("n1", "n2"))
    events = node.subscribe()
    seen = threading.Thread(target=lambda: list(events), daemon=True)
    seen.start()
    futures = [node.propose(1, timeout=600), node.read_async(lambda machine: machine.value, timeout=600)]
    node.stop()
    assert all(future.done() for future in futures)
    assert all(isinstance(future.exception(0), (OutcomeUnknown, Unavailable)) for future in futures)
    assert events.is_closed()
    seen.join(PATIENCE_S)
    assert not seen.is_alive()


def test_a_node_that_fails_ends_everything_that_somebody_waits_for(start: Callable[..., Node]) -> None:
    class Exhausted(Sum):
        def apply_transition(self, transition: Any) -> Any:
            raise MemoryError("no memory")

    node = start(state_machine=Exhausted())
    events = node.subscribe("leader_changed")
    seen = threading.Thread(target=lambda: list(events), daemon=True)
    seen.start()
    futures = [node.propose(1, timeout=600) for _ in range(3)]
    assert all(isinstance(future.exception(PATIENCE_S), (OutcomeUnknown, Unavailable)) for future in futures)
    seen.join(PATIENCE_S)
    assert not seen.is_alive(), "nobody stops or joins the node"
    assert node.join(PATIENCE_S)
    assert isinstance(node.failure, MemoryError)
    with pytest.raises(Unavailable, match="no memory"):
        node.propose(1)


def test_a_leader_that_stops_has_a_successor_before_it_is_gone(start: Callable[..., Node]) -> None:
    ids = ("n1", "n2", "n3")
    patient = Settings(election_timeout_ms=1_500)  # The hand-over may take as long on a busy machine.
    nodes = {id: start(id, ids, settings=patient) for id in ids}
    wait_until(lambda: any(node.is_leader for node in nodes.values()), "a leader")
    leader = next(id for id, node in nodes.items() if node.is_leader)
    assert nodes[leader].propose(1, timeout=PATIENCE_S).result(PATIENCE_S) == 1
    nodes[leader].stop()
    assert any(node.leader not in (None, leader) for id, node in nodes.items() if id != leader)


def test_a_start_that_is_refused_keeps_no_hold_of_the_directory(start: Callable[..., Node]) -> None:
    start().stop()
    with pytest.raises(InvalidArgument, match="no group 'other'"):
        start(group="other", bootstrap=False)
    assert start(bootstrap=False).propose(1, timeout=PATIENCE_S).result(PATIENCE_S) == 1
