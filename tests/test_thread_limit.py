"""When a process can start no more threads, nothing ends, nothing is lost, and all is well once it can again."""

from __future__ import annotations

import logging
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import raftplug
import servers
from processes import story
from raftplug import errors, hookimpl
from raftplug.embedded import EmbeddedServer
from raftplug.plugins import Plugins
from raftplug.threads import LoopThread, Worker
from test_threads import Loop, assert_

valkey_server = servers.valkey_server
PATIENCE_S = 60.0


@contextmanager
def no_threads(most: int | None = None) -> Iterator[list[str]]:
    """raftplug can start no thread, or only `most` more; gives the names of those that it wanted."""
    original, wanted, started = threading.Thread.start, list[str](), list[str]()

    def start(thread: threading.Thread) -> None:
        if thread.name.startswith(("raftplug", "test")):
            wanted.append(thread.name)
            if most is None or len(started) >= most:
                raise RuntimeError("can't start new thread")
            started.append(thread.name)
        original(thread)

    threading.Thread.start = start  # type: ignore[method-assign]
    try:
        yield wanted
    finally:
        threading.Thread.start = original  # type: ignore[method-assign]


class Counter(raftplug.StateMachine):
    def __init__(self) -> None:
        self.value = 0
        self.node: Any = None

    def apply_transition(self, transition: Any) -> int:
        if transition == "compute":
            began = time.thread_time()
            while time.thread_time() - began < 0.02:
                pass
        elif transition == "wait":
            time.sleep(0.5)
        elif transition == "stop":
            self.node.stop()
        self.value += 1
        return self.value


def founded(url: str, data_dir: object, **options: Any) -> raftplug.Node:
    options.setdefault("state_machine", Counter())
    return raftplug.Node("n1", peers=["n1"], redis=url, data_dir=str(data_dir), bootstrap=True, **options)


@pytest.fixture
def node(valkey_server: EmbeddedServer, tmp_path: Path) -> Iterator[raftplug.Node]:
    with founded(valkey_server.url, tmp_path / "n1") as node:
        node.propose(1, timeout=PATIENCE_S).result()
        yield node


def own_threads() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name.startswith("raftplug")]


# -- the loop ----------------------------------------------------------------------------------------------------------


def test_a_loop_that_is_held_up_goes_on_although_no_thread_can_be_started(caplog: pytest.LogCaptureFixture) -> None:
    loop, release, began = Loop(), threading.Event(), threading.Event()
    ended: list[Any] = []
    loop.thread.start()
    loop.more_turns(3)

    def job() -> None:
        began.set()
        assert_(release.wait(PATIENCE_S))

    with no_threads() as wanted:
        loop.jobs.append((job, ended.append))
        assert began.wait(PATIENCE_S)
        loop.more_turns(20)
        assert wanted and not ended
        release.set()
        assert loop.thread.join_kept(PATIENCE_S)
        loop.more_turns(3)
        assert ended == [None]
        # The first thread looks after the second one now.
        release.clear()
        began.clear()
        loop.jobs.append((job, ended.append))
        assert began.wait(PATIENCE_S)
        loop.more_turns(20)
        loop.stopping = True
        assert loop.thread.join(PATIENCE_S)
    assert loop.together == 1
    release.set()
    assert any("no thread could be started" in record.message for record in caplog.records)


def test_a_loop_without_a_watch_gets_one_as_soon_as_a_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raftplug.threads._RETRY_S", 0.01)
    loop, release, began = Loop(), threading.Event(), [threading.Event(), threading.Event()]
    loop.each_turn = loop.thread.begin_turn
    loop.thread.start()
    loop.more_turns(3)
    with no_threads():
        loop.jobs.append((lambda: (began[0].set(), assert_(release.wait(PATIENCE_S))), lambda error: None))
        assert began[0].wait(PATIENCE_S)
        loop.more_turns(20)
    servers.wait_until(lambda: not loop.thread._unwatched, "another thread watches")
    loop.jobs.append((lambda: (began[1].set(), assert_(release.wait(PATIENCE_S))), lambda error: None))
    assert began[1].wait(PATIENCE_S)
    loop.more_turns(20)
    loop.stopping = True
    assert loop.thread.join(PATIENCE_S)
    release.set()


@pytest.mark.parametrize("most", [0, 1])
def test_a_loop_that_cannot_start_leaves_no_thread(most: int) -> None:
    ends: list[Any] = []
    thread = LoopThread(
        "test", run=lambda: ends.append("run"), end=ends.append, hand_back=lambda done, error: None, patience_s=0.01
    )
    with no_threads(most), pytest.raises(errors.Unavailable, match="no thread could be started"):
        thread.start()
    servers.wait_until(lambda: not [e for e in threading.enumerate() if e.name.startswith("test")], "no thread is left")
    assert not ends


def test_a_worker_without_a_thread_keeps_its_jobs_in_order_until_it_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raftplug.threads._RETRY_S", 0.01)
    worker, seen = Worker("test"), []
    with no_threads():
        for number in range(5):
            worker.submit(lambda number=number: seen.append(number))  # type: ignore[misc]
        with pytest.raises(errors.Unavailable):
            worker.start()
    assert not seen
    servers.wait_until(lambda: worker.tend() or seen == list(range(5)), "they are done")
    assert worker.stop(PATIENCE_S)
    poor, seen = Worker("test"), []
    with no_threads():
        poor.submit(lambda: seen.append(1))
        assert poor.stop(PATIENCE_S) and seen == [1], "what ends does them by itself"
    assert Worker("test").stop(), "there was nothing to do"


# -- a node, a client --------------------------------------------------------------------------------------------------


def test_a_node_or_client_that_cannot_start_its_threads_says_so_and_can_be_started_later(
    valkey_server: EmbeddedServer, tmp_path: Path
) -> None:
    url, before = valkey_server.url, own_threads()
    for most in range(4):  # Two connect, one stores, one has the loop, one looks after it.
        node = founded(url, tmp_path / "n1")
        with no_threads(most) as wanted, pytest.raises(errors.Unavailable, match="no thread could be started"):
            node.start()
        assert len(wanted) > most
        servers.wait_until(lambda: own_threads() == before, f"none of {wanted} is left")
        assert not (tmp_path / "n1").exists()
    for most in range(3):  # Two connect, one has the loop.
        with no_threads(most), pytest.raises(errors.Unavailable, match="no thread could be started"):
            raftplug.Client(url)
        servers.wait_until(lambda: own_threads() == before, "no thread is left")
    with node:
        assert node.propose(1, timeout=PATIENCE_S).result() == 1
        with no_threads(), pytest.raises(errors.Unavailable):
            node.subscribe(callback=print)
        assert not [each for each in own_threads() if "events" in each]


def test_connections_are_made_again_as_soon_as_a_thread_can_be_started(
    valkey_server: EmbeddedServer, node: raftplug.Node, caplog: pytest.LogCaptureFixture
) -> None:
    with raftplug.Client(valkey_server.url) as client:
        assert client.propose(1, PATIENCE_S) == 2
        with no_threads() as wanted:
            valkey_server.restart()
            servers.wait_until(lambda: len(wanted) > 10, "it tries again")
            assert node.failure is None
            assert node.propose(1, timeout=PATIENCE_S).result() == 3, "a cluster of one needs no connection"
            servers.wait_until(lambda: any("no thread" in each for each in node.status()["problems"]), "status says so")
            with pytest.raises(errors.RaftplugError):
                client.propose(1, 1.0)
        assert client.propose(1, PATIENCE_S) >= 4
    assert any("no thread could be started" in record.message for record in caplog.records)


def test_a_slow_machine_stays_in_the_loop_until_there_is_a_thread_for_it(node: raftplug.Node) -> None:
    with no_threads() as wanted:
        for _ in range(3):
            node.propose("compute", timeout=PATIENCE_S).result()
        assert "raftplug-apply-n1-default" in wanted and node.status()["apply"] == "loop"
        node.propose("wait", timeout=PATIENCE_S).result()
        assert node.failure is None
    time.sleep(1.1)  # It is not tried at each transition.
    node.propose("compute", timeout=PATIENCE_S).result()
    servers.wait_until(lambda: node.status()["apply"] == "thread", "it has a thread")


def test_callbacks_and_observers_are_told_later_and_in_order(valkey_server: EmbeddedServer, tmp_path: Path) -> None:
    seen: list[Any] = []
    called: list[int] = []

    class Observer:
        @hookimpl
        def raftplug_peer(self, peer: Any) -> None:
            seen.append(peer)

    plugins = Plugins()
    plugins.register(Observer(), name="observer")
    with founded(valkey_server.url, tmp_path / "n1", plugins=plugins) as node:
        node.propose(1, timeout=PATIENCE_S).result()
        with no_threads():
            for number in range(5):
                future = node.propose(1, timeout=PATIENCE_S)
                future.add_done_callback(lambda _, number=number: called.append(number))
                node._events.publish("raftplug_peer", node="n1", peer=number, reachable=True)
                future.result()
            assert not seen and not called
        servers.wait_until(lambda: called == list(range(5)), "callbacks are called")
        time.sleep(1.0)
        node._events.publish("raftplug_peer", node="n1", peer=5, reachable=True)
        servers.wait_until(lambda: seen == list(range(6)), "the observer is told")
        with no_threads():
            node.propose(1, timeout=PATIENCE_S).add_done_callback(lambda _: called.append(5))
    assert called == list(range(6))


@pytest.mark.parametrize("who", ["main", "machine"])
def test_stop_ends_although_no_thread_can_be_started(valkey_server: EmbeddedServer, tmp_path: Path, who: str) -> None:
    machine = Counter()
    node = founded(valkey_server.url, tmp_path / "n1", state_machine=machine).start()
    machine.node = node
    client = raftplug.Client(valkey_server.url)
    assert client.propose(1, PATIENCE_S) == 1
    with no_threads():
        node.propose("wait", timeout=PATIENCE_S)
        future = node.propose("stop" if who == "machine" else 1, timeout=PATIENCE_S)
        if who == "main":
            node.stop()
        assert node.join(PATIENCE_S)
        future.exception(PATIENCE_S)
        client.close()
    assert node.failure is None


# -- a real limit ------------------------------------------------------------------------------------------------------


def meet_a_real_limit(url: str, base: str) -> None:
    """Each thread wants a stack for which there is no address space left: the kernel refuses it."""
    logging.disable(logging.CRITICAL)
    node = founded(url, f"{base}/n1").start()
    client = raftplug.Client(url)
    assert client.propose(1, PATIENCE_S) == 1
    called = threading.Event()
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = threading.stack_size(1 << 30)
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 29), hard))
    try:
        with pytest.raises(RuntimeError, match="can't start new thread"):
            threading.Thread(target=print).start()
        for call in (lambda: raftplug.Client(url), lambda: node.subscribe(callback=print)):
            with pytest.raises(errors.Unavailable, match="no thread could be started"):
                call()
        with pytest.raises(errors.Unavailable, match="no thread could be started"):
            founded(url, f"{base}/n2", prefix="other").start()
        for transition in ("compute", "wait", "compute"):
            future = node.propose(transition, timeout=PATIENCE_S)
            future.add_done_callback(lambda _: called.set())
            future.result()
            assert client.propose(1, PATIENCE_S)
        assert not called.is_set()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        threading.stack_size(before)
    assert called.wait(PATIENCE_S)
    assert client.propose(1, PATIENCE_S) == 8
    client.close()
    node.stop()
    assert node.failure is None


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc here")
def test_a_node_and_a_client_survive_a_real_limit_of_threads(
    core: SimpleNamespace, valkey_server: EmbeddedServer, tmp_path: Path
) -> None:
    story(core, meet_a_real_limit, valkey_server.url, tmp_path)
