"""`Node` as people use it: the README's examples, futures and asyncio, and what is refused."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import raftplug
import servers
from raftplug import errors
from raftplug.embedded import EmbeddedServer
from servers import wait_until

valkey_server = servers.valkey_server
README = (Path(__file__).parent.parent / "README.md").read_text()


class Counter(raftplug.StateMachine):
    def __init__(self) -> None:
        self.value = 0

    def apply_transition(self, transition: Any) -> Any:
        if transition["add"] is None:
            raise ValueError("nothing to add")
        self.value += transition["add"]
        return self.value

    def query(self, request: Any) -> Any:
        return self.value


@pytest.fixture
def node(valkey_server: EmbeddedServer, tmp_path: Path) -> Iterator[raftplug.Node]:
    """A cluster of one."""
    data_dir = tmp_path / "n1"
    options: Any = {"redis": valkey_server.url, "data_dir": data_dir, "state_machine": Counter(), "bootstrap": True}
    with raftplug.Node("n1", peers=["n1"], **options) as node:
        yield node


@pytest.fixture
def three(valkey_server: EmbeddedServer, tmp_path: Path) -> Iterator[SimpleNamespace]:
    """Three nodes in this process: `leader` and `follower`."""
    with ExitStack() as stack:
        nodes = [
            stack.enter_context(
                raftplug.Node(
                    name,
                    peers=["n1", "n2", "n3"],
                    redis=valkey_server.url,
                    data_dir=tmp_path / name,
                    state_machine=Counter(),
                    bootstrap=True,
                )
            )
            for name in ("n1", "n2", "n3")
        ]
        wait_until(lambda: len({node.leader for node in nodes} - {None}) == 1, "one leader that all know")
        yield SimpleNamespace(
            leader=next(node for node in nodes if node.is_leader),
            follower=next(node for node in nodes if not node.is_leader),
        )


def test_the_readmes_counter_runs_as_it_stands(
    valkey_server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    found = re.search(r"```python\n(import raftplug.*?)```", README, re.DOTALL)
    assert found is not None
    example = found.group(1).replace("redis://localhost:6379", valkey_server.url)
    exec(compile(example, "README.md", "exec"), {})  # noqa: S102
    assert capsys.readouterr().out == "1\n1\n"


def test_a_future_can_be_waited_for_and_awaited(node: raftplug.Node) -> None:
    assert node.propose({"add": 1}).result(timeout=10) == 1

    async def add() -> list[Any]:
        first = node.propose({"add": 1})
        return [await first, *await asyncio.gather(*[_awaited(node.propose({"add": 1})) for _ in range(10)])]

    async def _awaited(future: raftplug.Future) -> Any:
        return await future

    assert asyncio.run(add()) == list(range(2, 13))


def test_a_read_can_be_awaited_and_sees_the_write_before_it(three: SimpleNamespace) -> None:
    async def add(node: raftplug.Node) -> tuple[Any, Any]:
        total = await node.propose({"add": 1})
        return total, await node.read_async(lambda counter: counter.value)

    for node in (three.leader, three.follower):
        total, seen = asyncio.run(add(node))
        assert seen >= total


def test_propose_and_read_work_on_every_node(three: SimpleNamespace) -> None:
    assert three.follower.propose({"add": 2}).result(timeout=10) == 2
    assert three.leader.propose({"add": 2}).result(timeout=10) == 4
    for node in (three.leader, three.follower):
        assert node.read(lambda counter: counter.value) == 4
        assert node.read(None) == 4  # the machine's own query


def test_a_transition_that_raises_has_its_error_as_its_result_on_every_node(three: SimpleNamespace) -> None:
    for node in (three.leader, three.follower):
        with pytest.raises(errors.TransitionFailed, match="ValueError: nothing to add"):
            node.propose({"add": None}).result(timeout=10)


def test_a_query_that_raises_is_the_readers_error_and_hurts_nobody(node: raftplug.Node) -> None:
    with pytest.raises(errors.QueryFailed, match="ZeroDivisionError"):
        node.read(lambda counter: 1 // counter.value)
    assert node.propose({"add": 1}).result(timeout=10) == 1


def test_what_cannot_be_proposed_is_refused_at_once(node: raftplug.Node) -> None:
    with pytest.raises(errors.InvalidTransition):
        node.propose({"add": {1, 2}})
    with pytest.raises(errors.TooLarge):
        node.propose({"add": b"x" * (2 << 20)})
    assert node.propose({"add": 1}).result(timeout=10) == 1


def test_a_stopped_node_answers_what_is_pending_and_refuses_more(node: raftplug.Node) -> None:
    futures = [node.propose({"add": 1}) for _ in range(1000)]
    node.stop()
    for future in futures:
        error = future.exception(timeout=0)
        assert error is None or isinstance(error, (errors.OutcomeUnknown, errors.Unavailable))
    with pytest.raises(errors.Unavailable):
        node.propose({"add": 1})


def test_a_node_that_was_restarted_has_its_state_and_must_not_be_bootstrapped_again(
    node: raftplug.Node, valkey_server: EmbeddedServer, tmp_path: Path
) -> None:
    for _ in range(10):
        node.propose({"add": 1}).result(timeout=10)
    node.stop()
    again: Any = {"redis": valkey_server.url, "data_dir": tmp_path / "n1", "state_machine": Counter()}
    with pytest.raises(errors.WrongDirectory, match="bootstrap"):
        raftplug.Node("n1", peers=["n1"], bootstrap=True, **again).start()
    with raftplug.Node("n1", **again) as restarted:
        assert restarted.read(lambda counter: counter.value, timeout=10) == 10


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"id": "n 1"}, "id 'n 1'"),
        ({"peers": ["n2", "n3"]}, "itself is missing"),
        ({"peers": ["n1", "n1"]}, "stands twice"),
        ({"redis": None}, "Redis URL"),
        ({"data_dir": None}, "data directory"),
        ({"state_machine": None}, "state machine"),
        ({"group": "a/b"}, "group"),
    ],
)
def test_arguments_that_cannot_be_are_named(tmp_path: Path, arguments: dict[str, Any], why: str) -> None:
    given: dict[str, Any] = {
        "id": "n1",
        "peers": ["n1"],
        "redis": "redis://127.0.0.1:1",
        "data_dir": tmp_path / "n1",
        "state_machine": Counter(),
        "bootstrap": True,
        **arguments,
    }
    with pytest.raises(errors.InvalidArgument, match=why):
        raftplug.Node(given.pop("id"), **given)
    assert not (tmp_path / "n1").exists()


def test_a_state_machine_without_memory_stops_its_node_and_says_so(
    valkey_server: EmbeddedServer, tmp_path: Path
) -> None:
    class Exhausted(Counter):
        def apply_transition(self, transition: Any) -> Any:
            raise MemoryError("no memory")

    options: Any = {"redis": valkey_server.url, "data_dir": tmp_path / "n1", "state_machine": Exhausted()}
    node = raftplug.Node("n1", peers=["n1"], bootstrap=True, **options).start()
    error = node.propose({"add": 1}).exception(timeout=10)
    assert isinstance(error, errors.OutcomeUnknown)
    assert node.join(10)
    assert isinstance(node.failure, MemoryError)


def test_a_stopped_node_answers_the_reads_that_no_quorum_confirmed(
    valkey_server: EmbeddedServer, tmp_path: Path
) -> None:
    options: Any = {"redis": valkey_server.url, "data_dir": tmp_path / "n1", "state_machine": Counter()}
    with raftplug.Node("n1", peers=["n1", "n2"], bootstrap=True, **options) as node:
        futures = [node.read_async(lambda counter: counter.value, timeout=60) for _ in range(10)]
        futures += [node.propose({"add": 1}, timeout=60)]
    assert all(isinstance(future.exception(timeout=0), errors.Unavailable) for future in futures)


@pytest.mark.parametrize("whose", ["leader", "follower"])
def test_a_disk_that_hangs_for_seconds_costs_no_election(
    three: SimpleNamespace, whose: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = getattr(three, whose)
    three.leader.propose({"add": 1}).result(timeout=10)
    both = three.leader, three.follower
    before = [(row["term"], row["leader"]) for row in (each.status() for each in both)]
    hangs, goes_on = threading.Event(), threading.Event()
    apply = node._storage._rows.apply

    def hang(changes: Any) -> None:
        hangs.set()
        assert goes_on.wait(60)
        apply(changes)

    with monkeypatch.context() as patch:
        patch.setattr(node._storage._rows, "apply", hang)
        future = three.leader.propose({"add": 1}, timeout=60)
        try:
            assert hangs.wait(10)
            began = time.monotonic()
            while time.monotonic() < began + 3:
                found = [each.status() for each in both]
                assert [(row["term"], row["leader"]) for row in found] == before
                assert found[0]["contact_ms"] is None and found[1]["contact_ms"] < 500
                time.sleep(0.01)  # The nodes are threads of this process: who looks all the time starves them.
            assert future.done() is (whose == "follower"), "a leader applies no more than its own disk has"
        finally:
            goes_on.set()
    assert future.result(timeout=10) == 2
    assert three.leader.propose({"add": 1}).result(timeout=10) == 3
    wait_until(lambda: node.status()["applied"] >= three.leader.status()["applied"], "its disk has caught up")
