"""Code of the program that raftplug calls may call raftplug: it is answered or refused at once, and delays nothing."""

from __future__ import annotations

import asyncio
import concurrent.futures
import signal
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import raftplug
import servers
from processes import story
from raftplug import errors
from raftplug.embedded import EmbeddedServer
from raftplug.events import Event, Subscription
from raftplug.plugins import Plugins

valkey_server = servers.valkey_server
PATIENCE_S = 60.0
AT_ONCE_S = 3.0  # On a machine that does other things, too; a wait that is not refused lasts longer.
IDS = ("n1", "n2", "n3")


class Calling(raftplug.StateMachine):
    """Calls what it is told to, once in each of its methods, and remembers what that raised and how long it took."""

    def __init__(self) -> None:
        self.value = 0
        self.calls: dict[str, Callable[[], object]] = {}
        self.called: dict[str, str] = {}
        self.longest_s = 0.0

    def _call(self, where: str) -> None:
        for name, call in list(self.calls.items()):
            if f"{where}: {name}" in self.called:
                continue
            self.called[f"{where}: {name}"] = "nothing"  # Before, since it may propose, and end here again.
            began = time.monotonic()
            try:
                call()
                said = "nothing"
            except BaseException as error:
                said = type(error).__name__
            self.longest_s = max(self.longest_s, time.monotonic() - began)
            self.called[f"{where}: {name}"] = said

    def apply_transition(self, transition: Any) -> int:
        self._call("apply_transition")
        self.value += transition
        return self.value

    def query(self, request: Any) -> int:
        self._call("query")
        return self.value

    def register_transition_state(self, transition_id: Any, state: Any) -> None:
        self._call("register_transition_state")

    def get_id(self, transition: Any) -> Any:
        self._call("get_id")
        return None

    def digest(self) -> bytes:
        self._call("digest")
        return b"%d" % self.value

    def create_snapshot(self, last_included_index: int, last_included_term: int) -> raftplug.Snapshot:
        self._call("create_snapshot")
        return raftplug.Snapshot(last_included_index, last_included_term, self.value)

    def set_snapshot(self, snapshot: raftplug.Snapshot) -> None:
        self.value = snapshot.data


def founded(url: str, data_dir: object, id: str = "n1", peers: Any = ("n1",), **options: Any) -> raftplug.Node:
    options.setdefault("state_machine", Calling())
    return raftplug.Node(id, peers=peers, redis=url, data_dir=str(data_dir), bootstrap=True, **options)


def in_time(done: threading.Event) -> None:
    assert done.wait(PATIENCE_S), "it hangs"


# -- callbacks of futures, and observers -------------------------------------------------------------------------------


def wait_in_callbacks(url: str, data_dir: str) -> None:
    with founded(url, data_dir) as node, raftplug.Client(url) as client:
        client.propose(1, PATIENCE_S)
        seen: dict[str, object] = {}

        def use(name: str, done: threading.Event) -> None:
            try:
                seen[name] = [
                    node.propose(1, timeout=PATIENCE_S).result(PATIENCE_S),
                    client.propose(1, PATIENCE_S),
                    client.propose_async(1, PATIENCE_S).exception(PATIENCE_S),
                    node.read(lambda machine: machine.value, timeout=PATIENCE_S),
                    client.read(None, PATIENCE_S),
                    node.status()["role"],
                    client.status()["leader"],
                    client.wait_for_voter("n1", PATIENCE_S)["voters"],
                    node.join(0),
                ]
            except BaseException as error:
                seen[name] = error
            finally:
                done.set()

        for name, ask in {
            "of a node": lambda: node.propose(1, timeout=PATIENCE_S),
            "of a node's read": lambda: node.read_async(lambda machine: machine.value, timeout=PATIENCE_S),
            "of a client": lambda: client.propose_async(1, PATIENCE_S),
            "of a client's read": lambda: client.read_async(None, PATIENCE_S),
        }.items():
            done = threading.Event()
            ask().add_done_callback(lambda _, name=name, done=done: use(name, done))  # type: ignore[misc]
            in_time(done)
        done = threading.Event()
        node.subscribe("leader_changed", callback=lambda event: use("an observer", done))
        node._events.publish("raftplug_leader_changed", group="default", node="n1", leader="n1", term=1)
        in_time(done)
    for name, found in seen.items():
        assert isinstance(found, list), (name, found)
        assert found[2] is None and found[3] == found[4] and found[5:] == ["leader", "n1", ["n1"], False], (name, found)


def test_a_callback_and_an_observer_may_wait_for_anything(
    core: SimpleNamespace, valkey_server: EmbeddedServer, tmp_path: Path
) -> None:
    story(core, wait_in_callbacks, valkey_server.url, tmp_path / "n1")


def stop_in_callbacks(url: str, base: str) -> None:
    def ask(node: raftplug.Node, stop: Callable[[Any], None]) -> None:
        node.propose(1, timeout=PATIENCE_S).add_done_callback(stop)

    def observe(node: raftplug.Node, stop: Callable[[Any], None]) -> None:
        node.subscribe("leader_changed", callback=stop)
        node._events.publish("raftplug_leader_changed", group="default", node="n1", leader="n1", term=1)

    def apply(node: raftplug.Node, stop: Callable[[Any], None]) -> None:
        machine: Any = node._machines["default"]
        machine.calls["stop"] = lambda: stop(None)
        node.propose(1, timeout=PATIENCE_S)

    def apply_slowly(node: raftplug.Node, stop: Callable[[Any], None]) -> None:
        machine: Any = node._machines["default"]
        machine.calls["sleep"] = lambda: time.sleep(0.3)  # By now another thread has the loop.
        apply(node, stop)

    for number, arrange in enumerate((ask, observe, apply, apply_slowly)):
        stopped, took_s = threading.Event(), []
        node = founded(url, f"{base}/{number}", prefix=f"p{number}").start()
        node.propose(1, timeout=PATIENCE_S).result()
        pending = []

        def stop(_: Any, node: raftplug.Node = node, stopped: threading.Event = stopped) -> None:
            pending.append(node.read_async(lambda machine: machine.value, timeout=PATIENCE_S))  # noqa: B023
            began = time.monotonic()
            node.stop()
            took_s.append(time.monotonic() - began)  # noqa: B023
            stopped.set()

        began = time.monotonic()
        arrange(node, stop)
        in_time(stopped)
        assert node.join(PATIENCE_S)
        assert took_s[0] < AT_ONCE_S and time.monotonic() - began < AT_ONCE_S + 0.3, (arrange.__name__, took_s)
        node.stop()
        assert node.failure is None
        assert all(each.exception(PATIENCE_S) is None or each.done() for each in pending)
        founded(url, f"{base}/{number}", prefix=f"p{number}")  # The directory is free again:
        raftplug.Node(
            "n1", redis=url, data_dir=f"{base}/{number}", state_machine=Calling(), prefix=f"p{number}"
        ).start().stop()


def test_a_node_is_stopped_at_once_by_a_callback_an_observer_and_its_state_machine(
    core: SimpleNamespace, valkey_server: EmbeddedServer, tmp_path: Path
) -> None:
    story(core, stop_in_callbacks, valkey_server.url, tmp_path)


@pytest.mark.parametrize("where", ["callbacks", "machines"])
def test_nodes_that_stop_each_other_both_stop_at_once(
    valkey_server: EmbeddedServer, tmp_path: Path, where: str
) -> None:
    nodes = [founded(valkey_server.url, tmp_path / name, prefix=name).start() for name in ("a", "b")]
    for node in nodes:
        node.propose(1, timeout=PATIENCE_S).result()
    both = threading.Barrier(2)
    for node, other in zip(nodes, reversed(nodes), strict=True):

        def stop(_: Any = None, other: raftplug.Node = other) -> None:
            both.wait(PATIENCE_S)
            other.stop()

        machine: Any = node._machines["default"]
        if where == "machines":
            machine.calls["stop"] = stop
        future = node.propose(1, timeout=PATIENCE_S)
        if where == "callbacks":
            future.add_done_callback(stop)
    began = time.monotonic()
    assert all(node.join(PATIENCE_S) for node in nodes)
    assert time.monotonic() - began < AT_ONCE_S and not any(node.failure for node in nodes)


def test_what_is_pending_when_a_node_or_client_ends_is_called_back_before_that_returns(
    valkey_server: EmbeddedServer, tmp_path: Path
) -> None:
    seen: list[Any] = []
    node = founded(valkey_server.url, tmp_path / "n1", peers=("n1", "n2"))  # It never has a quorum.
    with node:
        node.propose(1, timeout=PATIENCE_S).add_done_callback(seen.append)
    with raftplug.Client(valkey_server.url, "other") as client:
        client.propose_async(1, PATIENCE_S).add_done_callback(seen.append)
    assert [type(each.exception(0)) for each in seen] == [errors.Unavailable] * 2


@pytest.fixture
def three(valkey_server: EmbeddedServer, tmp_path: Path) -> Any:
    """Three nodes in this process, the leader first."""
    with ExitStack() as stack:
        nodes = [stack.enter_context(founded(valkey_server.url, tmp_path / id, id, IDS)) for id in IDS]
        assert nodes[0].propose(1, timeout=PATIENCE_S).result() == 1
        leader = servers.wait_until(lambda: nodes[0].leader, "a leader")
        yield sorted(nodes, key=lambda node: node.id != leader)


@pytest.mark.parametrize("raises", [False, True])
def test_a_callback_that_sleeps_costs_no_leadership_and_holds_up_nothing_but_callbacks(
    three: list[raftplug.Node], raises: bool
) -> None:
    leader, began, order = three[0], threading.Event(), []
    before = leader.status()
    woken = threading.Event()

    def sleep(_: Any) -> None:
        began.set()
        time.sleep(3)
        woken.set()
        if raises:
            raise SystemExit(1)  # Also of such an error the others hear nothing.

    leader.propose(1, timeout=PATIENCE_S).add_done_callback(sleep)
    in_time(began)
    later = threading.Event()
    future = leader.propose(1, timeout=PATIENCE_S)
    future.add_done_callback(lambda _: order.append("first"))
    future.add_done_callback(lambda _: (order.append("second"), later.set()))
    while not woken.is_set():
        assert leader.propose(1, timeout=PATIENCE_S).result(PATIENCE_S)
        after = leader.status()
        assert (after["role"], after["term"]) == ("leader", before["term"])
        time.sleep(0.05)
    in_time(later)
    assert order == ["first", "second"]


# -- state machines ----------------------------------------------------------------------------------------------------


def wait_in_machines(url: str, base: str) -> None:
    """Each method of a machine, in the loop's thread and in one of its own, on the leader."""
    for slow in (False, True):
        wait_in_a_machine(url, base, slow)


async def awaited(node: raftplug.Node) -> Any:
    return await node.propose(1, timeout=PATIENCE_S)


def wait_in_a_machine(url: str, base: str, slow: bool) -> None:
    plugins = Plugins()
    settings = raftplug.Settings(digest_entries=4, snapshot_entries=0)
    options: Any = {"plugins": plugins, "settings": settings, "prefix": f"slow{slow}"}
    with founded(url, f"{base}/{slow}", **options) as node, raftplug.Client(url, prefix=f"slow{slow}") as client:
        machine: Any = node._machines["default"]
        assert client.propose(1, PATIENCE_S) == 1
        if slow:
            machine.calls["sleep"] = lambda: time.sleep(0.2)
            client.propose(1, PATIENCE_S)
            servers.wait_until(lambda: node.status()["apply"] == "thread", "a thread of its own")
        machine.called.clear()
        machine.longest_s = 0.0
        machine.calls = {
            "Node.propose, result": lambda: node.propose(1, timeout=PATIENCE_S).result(),
            "Node.propose, exception": lambda: node.propose(1, timeout=PATIENCE_S).exception(PATIENCE_S),
            "await": lambda: asyncio.run(awaited(node)),
            "Node.read": lambda: node.read(lambda machine: machine.value, timeout=PATIENCE_S),
            "Node.status": node.status,
            "Node.join": node.join,
            "Client.propose": lambda: client.propose(1, PATIENCE_S),
            "Client.read": lambda: client.read(None, PATIENCE_S),
            "Client.status": lambda: client.status(PATIENCE_S),
            "Client.members": lambda: client.members(PATIENCE_S),
            "Client.wait_for_voter": lambda: client.wait_for_voter("n1", PATIENCE_S),
            "Client.snapshot": lambda: client.snapshot(timeout=PATIENCE_S),
            "Subscription.get": lambda: Subscription("n1").get(PATIENCE_S),
        }
        futures = [client.propose_async(1, PATIENCE_S), client.read_async(None, PATIENCE_S)]
        for future in futures:
            future.result()
        client.snapshot("n1", PATIENCE_S)
        machine.calls = {}
        for _ in range(4):
            client.propose(1, PATIENCE_S)
        where = {name.partition(":")[0] for name in machine.called}
        wanted = {"apply_transition", "query", "register_transition_state", "get_id", "create_snapshot"}
        assert where >= wanted, where
        refused = {name: said for name, said in machine.called.items() if said != "InvalidArgument"}
        assert not refused, refused
        assert machine.longest_s < AT_ONCE_S
        assert node.failure is None and node.status()["role"] == "leader"


def test_a_state_machine_that_waits_is_refused_at_once_and_its_node_goes_on(
    core: SimpleNamespace, valkey_server: EmbeddedServer, tmp_path: Path
) -> None:
    story(core, wait_in_machines, valkey_server.url, tmp_path)


@pytest.mark.parametrize("method", ["apply_transition", "register_transition_state", "query"])
def test_a_state_machine_that_sleeps_costs_no_leadership(three: list[raftplug.Node], method: str) -> None:
    leader = three[0]
    before = leader.status()
    machine: Any = leader._machines["default"]
    slept: list[None] = []

    def sleep(where: str) -> None:
        if where == method and not slept:
            slept.append(None)
            time.sleep(3)

    machine._call = sleep
    future = leader.propose(1, timeout=PATIENCE_S)
    read = leader.read_async(lambda machine: machine.query(None), timeout=PATIENCE_S)
    until = time.monotonic() + 3
    while time.monotonic() < until:
        after = three[1].status()
        assert (after["leader"], after["term"]) == (leader.id, before["term"])
        time.sleep(0.05)
    future.result(PATIENCE_S)
    read.result(PATIENCE_S)
    assert slept and leader.status()["term"] == before["term"]


# -- asyncio -----------------------------------------------------------------------------------------------------------


def use_asyncio(url: str, data_dir: str) -> None:
    async def main() -> None:
        async with founded(url, data_dir) as node, raftplug.Client(url) as client:
            assert await asyncio.wrap_future(node.propose(1, timeout=PATIENCE_S)) == 1
            assert await asyncio.wrap_future(client.propose_async(1, PATIENCE_S)) == 2
            assert await client.propose_async(1, PATIENCE_S) == 3
            assert isinstance(node.propose(1), concurrent.futures.Future)
            with pytest.raises(errors.InvalidTransition):
                await asyncio.wrap_future(client.propose_async(object()))
        with pytest.raises(errors.Unavailable):
            node.propose(1)
        with pytest.raises(errors.Unavailable):
            await client.propose_async(1)

    asyncio.run(main())


def test_nodes_and_clients_are_opened_and_closed_by_async_with_and_futures_can_be_wrapped(
    core: SimpleNamespace, valkey_server: EmbeddedServer, tmp_path: Path
) -> None:
    story(core, use_asyncio, valkey_server.url, tmp_path / "n1")


def test_a_start_that_is_cancelled_leaves_no_node_running(valkey_server: EmbeddedServer, tmp_path: Path) -> None:
    for pause_s in (0.0, 0.001, 0.01, 0.05, 0.2, 1.0):
        node = founded(valkey_server.url, tmp_path / str(pause_s), prefix=f"p{pause_s}")

        async def main(node: raftplug.Node = node, pause_s: float = pause_s) -> None:
            task = asyncio.create_task(node.__aenter__())
            await asyncio.sleep(pause_s)
            if not task.cancel():
                assert task.result() is node
                await node.__aexit__(None)

        asyncio.run(main())
        servers.wait_until(lambda node=node: node._thread is None or node.join(0), "it has stopped, or never started")
        threads = [each.name for each in threading.enumerate()]
        servers.wait_until(
            lambda: not any(each.name.startswith("raftplug-") for each in threading.enumerate()),
            f"no thread: {threads}",
        )


# -- signal handlers ---------------------------------------------------------------------------------------------------


def test_a_signal_that_does_not_wake_the_main_thread_is_handled_while_that_waits(core: Any) -> None:
    """Another thread receives it, as if it had come a moment before the main thread blocks."""
    future, before = core.Future(), signal.signal(signal.SIGUSR1, lambda *_: future.set_result("handled"))

    def receive() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)

    thread = threading.Timer(0.05, receive)
    try:
        thread.start()
        began = time.monotonic()
        assert future.result(30) == "handled"
        assert time.monotonic() - began < 20  # At the end of the wait it would be, too.
    finally:
        thread.join()
        signal.signal(signal.SIGUSR1, before)


def test_a_signal_handler_may_close_what_its_thread_iterates_over() -> None:
    """The handler runs anywhere in the main thread, also where that holds a lock, or is about to block."""
    current: list[Subscription] = []
    before = signal.signal(signal.SIGALRM, lambda *_: [each.close() for each in current])
    try:
        for number in range(300):
            subscription = Subscription("n1")
            current[:] = [subscription]
            subscription.put(Event("peer", None, "n1", {}))
            signal.setitimer(signal.ITIMER_REAL, 0.0001 + 0.00002 * (number % 50))
            for _ in range(20):
                subscription.get(0)
            assert [each.kind for each in subscription] == []
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
