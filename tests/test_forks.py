"""A forked child is refused by what its parent started, holds nothing of it, and removes nothing of it.

Each story runs in a process of its own, on each core: its name is that of a function here, and what it asserts counts.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import raftplug
import servers
from processes import story
from raftplug import errors, forks
from raftplug.embedded import EmbeddedServer
from raftplug.events import Subscription
from raftplug.storage import SQLiteStorage

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]
valkey_server = servers.valkey_server
PATIENCE_S = 60.0
AT_ONCE_S = 3.0  # On a machine that does other things, too.


class Sum(raftplug.StateMachine):
    """Adds; a function among what it is given is a name of one below, which it calls."""

    def __init__(self) -> None:
        self.value = 0
        self.calls: dict[str, Callable[[], object]] = {}

    def apply_transition(self, transition: Any) -> int:
        if isinstance(transition, str):
            self.calls[transition]()
            transition = 1
        self.value += transition
        return self.value


def node_at(url: str, data_dir: str, **options: Any) -> raftplug.Node:
    options.setdefault("state_machine", Sum())
    return raftplug.Node("n1", redis=url, data_dir=data_dir, **options)


def founded(url: str, data_dir: str, **options: Any) -> raftplug.Node:
    return node_at(url, data_dir, peers=["n1"], bootstrap=True, **options)


# -- children ----------------------------------------------------------------------------------------------------------


def in_child(do: Callable[[], object]) -> str:
    """What `do()` said in a child process: the type and text of its error, or nothing."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        said = ""
        try:
            do()
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        finally:
            os.write(writer, said.encode())
            os._exit(0)
    os.close(writer)
    assert ended(pid, AT_ONCE_S) == 0
    with open(reader) as file:
        return file.read()


def ended(pid: int, patience_s: float = PATIENCE_S) -> int:
    """The exit code of a child; it must end by itself in time."""
    until = time.monotonic() + patience_s
    while time.monotonic() < until:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError(f"a child did not end within {patience_s:g} s")


# -- refused -----------------------------------------------------------------------------------------------------------


def use_everything(url: str, data_dir: str) -> None:
    with founded(url, data_dir) as node, raftplug.Client(url) as client, EmbeddedServer() as server:
        assert node.propose(1, timeout=PATIENCE_S).result() == 1
        assert client.propose(1, PATIENCE_S) == 2
        subscription = node.subscribe()

        def iterate(each: Any) -> None:
            for _ in each:
                pass

        async def iterate_async() -> None:
            async for _ in subscription:
                pass

        pending = type(node.propose(1))()
        calls: dict[str, Callable[[], object]] = {
            "Node.propose": lambda: node.propose(1, timeout=1),
            "Node.read": lambda: node.read(lambda machine: machine.value, timeout=1),
            "Node.read_async": lambda: node.read_async(lambda machine: machine.value, timeout=1),
            "Node.status": node.status,
            "Node.leader": lambda: node.leader,
            "Node.is_leader": lambda: node.is_leader,
            "Node.leaders": node.leaders,
            "Node.subscribe": node.subscribe,
            "Node.start": node.start,
            "Node.stop": node.stop,
            "Node.join": node.join,
            "Node.__enter__": node.__enter__,
            "Node.__exit__": lambda: node.__exit__(None, None, None),
            "Node.__aenter__": lambda: asyncio.run(node.__aenter__()),
            "Subscription.get": subscription.get,
            "Subscription.close": subscription.close,
            "Subscription.__iter__": lambda: iterate(subscription),
            "Subscription.__aiter__": lambda: asyncio.run(iterate_async()),
            "Subscription.__enter__": subscription.__enter__,
            "Client.propose": lambda: client.propose(1, 1),
            "Client.propose_async": lambda: client.propose_async(1, 1),
            "Client.read": lambda: client.read(1, 1),
            "Client.status": client.status,
            "Client.members": client.members,
            "Client.wait_for_voter": lambda: client.wait_for_voter("n1", 1),
            "Client.transfer_leadership": client.transfer_leadership,
            "Client.snapshot": client.snapshot,
            "Client.backup": lambda: client.backup(f"{data_dir}.backup"),
            "Client.__enter__": client.__enter__,
            "Client.__aenter__": lambda: asyncio.run(client.__aenter__()),
            "EmbeddedServer.start": server.start,
            "EmbeddedServer.stop": server.stop,
            "EmbeddedServer.kill": server.kill,
            "EmbeddedServer.restart": server.restart,
            "EmbeddedServer.pause": server.pause,
            "EmbeddedServer.resume": server.resume,
            "EmbeddedServer.__enter__": server.__enter__,
            "Future.result": pending.result,
            "Future.exception": lambda: pending.exception(timeout=PATIENCE_S),
        }
        for name, call in calls.items():
            said = in_child(call)
            assert said.startswith("InvalidArgument: "), (name, said)
            assert "forked" in said and ("fork" in said.partition(": it")[2] or ":" in said[17:]), (name, said)
        assert not os.path.exists(f"{data_dir}.backup")
        for name, leave in {
            "Node": lambda: node.__exit__(SystemExit, SystemExit(), None),
            "Subscription": lambda: subscription.__exit__(SystemExit, SystemExit(), None),
            "Client": client.close,
            "EmbeddedServer": lambda: server.__exit__(SystemExit, SystemExit(), None),
        }.items():
            assert in_child(leave) == "", name
        assert in_child(lambda: [server.url, server.unix_url, server.pid]) == ""
        # The parent's go on, all of them.
        assert server._look() is not None
        assert node.propose(1, timeout=PATIENCE_S).result() == 4
        assert client.propose(1, PATIENCE_S) == 5
        assert subscription.get(PATIENCE_S) is not None


def test_everything_that_a_parent_started_refuses_a_child_at_once_and_goes_on(
    core: SimpleNamespace, valkey_server: EmbeddedServer, tmp_path: Path
) -> None:
    story(core, use_everything, valkey_server.url, tmp_path / "n1")


def use_while_locks_are_held(url: str, data_dir: str) -> None:
    """Whatever a thread that is not in the child had locked, the child may use what it makes by itself."""
    import raftplug.plugins
    from raftplug.core import Future

    with founded(url, data_dir) as node, raftplug.Client(url) as client:
        assert client.propose(1, PATIENCE_S) == 1
        subscription = node.subscribe()
        registering = getattr(sys.modules[Future.__module__], "_registering", None)
        plugins = raftplug.plugins.default()
        locks: list[Any] = [subscription._lock, node._events._lock, raftplug.plugins._default_lock, plugins._lock]
        locks += [registering, node._storage._lock]  # type: ignore[union-attr]
        locks += [node._storage._rows.read_lock, node._callbacks._starting]  # type: ignore[union-attr]
        assert None not in locks
        held, release = threading.Event(), threading.Event()

        def hold() -> None:
            for lock in locks:
                lock.acquire()
            held.set()
            release.wait()
            for lock in locks:
                lock.release()

        holder = threading.Thread(target=hold)
        holder.start()
        assert held.wait(PATIENCE_S)
        child = os.fork()
        if child == 0:
            for call in (node.status, node.stop, subscription.get, lambda: client.propose(1), node.subscribe):
                try:
                    call()
                except errors.InvalidArgument:
                    continue
                os._exit(3)
            with raftplug.Client(url) as own:
                assert own.propose(1, PATIENCE_S) == 2
            sys.exit(7)  # By way of the interpreter's end, and of two `with` blocks.
        time.sleep(0.1)
        release.set()
        holder.join()
        assert ended(child) == 7
        assert client.propose(1, PATIENCE_S) == 3


def test_a_child_that_was_forked_while_threads_held_locks_is_refused_uses_its_own_and_ends(
    core: SimpleNamespace, valkey_server: EmbeddedServer, tmp_path: Path
) -> None:
    story(core, use_while_locks_are_held, valkey_server.url, tmp_path / "n1")


@pytest.mark.parametrize("hangs", [False, True])
def test_a_fork_waits_until_no_thread_is_inside_the_storage_but_not_for_ever(tmp_path: Path, hangs: bool) -> None:
    """SQLite has locks of its own: one that a thread holds at the fork would be held in the child for ever."""
    storage = SQLiteStorage(tmp_path / "n1", "n1", cluster=bytes(16), bootstrap=True)
    inside, leave, left = threading.Event(), threading.Event(), threading.Event()

    def hold() -> None:
        with storage._lock:
            inside.set()
            leave.wait(PATIENCE_S if hangs else 0.3)
            left.set()

    holder = threading.Thread(target=hold)
    holder.start()
    assert inside.wait(PATIENCE_S)
    began = time.monotonic()
    said = in_child(lambda: assert_(left.is_set() is not hangs))
    assert said == "" and time.monotonic() - began < 1.0 + AT_ONCE_S
    leave.set()
    holder.join()
    with storage._lock, storage._rows.read_lock:  # type: ignore[attr-defined]
        pass  # The parent has let go of both.
    storage.close()


def use_multiprocessing(url: str, data_dir: str) -> None:
    context = multiprocessing.get_context("fork")
    with founded(url, data_dir) as node, raftplug.Client(url) as client:
        assert client.propose(1, PATIENCE_S) == 1

        def parents() -> None:
            with pytest.raises(errors.InvalidArgument, match="fork"):
                client.propose(1)
            with pytest.raises(errors.InvalidArgument, match="fork"):
                node.propose(1)

        def own() -> None:
            with raftplug.Client(url) as mine:
                mine.propose(1, PATIENCE_S)

        for target in (parents, own):
            process = context.Process(target=target)
            process.start()
            process.join(PATIENCE_S)
            assert process.exitcode == 0, target.__name__
        assert client.propose(1, PATIENCE_S) == 3


def test_a_child_of_multiprocessing_is_refused_and_uses_a_client_of_its_own(
    core: SimpleNamespace, valkey_server: EmbeddedServer, tmp_path: Path
) -> None:
    story(core, use_multiprocessing, valkey_server.url, tmp_path / "n1")


def start_in_child(url: str, data_dir: str) -> None:
    """What was made before the fork, and not started, is nobody's yet."""
    node, server = founded(url, data_dir), EmbeddedServer()

    def start() -> None:
        with server, node:
            assert node.propose(1, timeout=PATIENCE_S).result() == 1

    process = multiprocessing.get_context("fork").Process(target=start)
    process.start()
    process.join(PATIENCE_S)
    assert process.exitcode == 0
    with node_at(url, data_dir) as again:
        assert again.propose(1, timeout=PATIENCE_S).result() == 2


def test_a_node_that_was_made_and_not_started_can_be_started_in_a_child(
    core: SimpleNamespace, valkey_server: EmbeddedServer, tmp_path: Path
) -> None:
    story(core, start_in_child, valkey_server.url, tmp_path / "n1")


def test_what_belongs_to_a_process_is_not_pickled() -> None:
    for thing in (Subscription("n1"), EmbeddedServer()):
        with pytest.raises(errors.InvalidArgument, match="pickled"):
            pickle.dumps(thing)


# -- what a child holds, and removes -----------------------------------------------------------------------------------


def leave_in_every_way(url: str, data_dir: str) -> None:
    """Children end by way of the interpreter's end, with all that they inherited; the parent's goes on."""
    with EmbeddedServer() as server, founded(url, data_dir) as node, raftplug.Client(url) as client:
        assert client.propose(1, PATIENCE_S) == 1
        directory = Path(server.unix_url.removeprefix("unix://")).parent
        for number in range(3):
            child = os.fork()
            if child == 0:
                if number == 1:
                    del node, client, server
                if number == 2:
                    raise SystemExit(0)
                sys.exit(0)
            assert ended(child) == 0
        assert directory.exists() and server._look() is not None
        assert node.propose(1, timeout=PATIENCE_S).result() == 2
        assert client.propose(1, PATIENCE_S) == 3
        assert node.failure is None


def test_a_child_that_ends_removes_nothing_of_its_parents(
    core: SimpleNamespace, valkey_server: EmbeddedServer, tmp_path: Path
) -> None:
    story(core, leave_in_every_way, valkey_server.url, tmp_path / "n1")


def outlive_the_parent(url: str, data_dir: str) -> None:
    """The parent is killed while a child of it lives; a new node starts; then the child ends, in an orderly way."""
    (told, tell), (told_to_end, end) = os.pipe(), os.pipe()
    parent = os.fork()
    if parent == 0:
        server, node = EmbeddedServer().start(), founded(url, data_dir).start()
        for _ in range(50):
            node.propose(1, timeout=PATIENCE_S).result()
        child = os.fork()
        if child == 0:
            os.close(end)
            os.read(told_to_end, 1)
            sys.exit(0)
        directory = Path(server.unix_url.removeprefix("unix://")).parent
        os.write(tell, f"{server.port} {directory}\n".encode())
        time.sleep(PATIENCE_S)
    os.close(tell)
    port, directory = os.read(told, 1000).decode().split()
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)

    def is_gone() -> bool:
        with socket.socket() as probe:
            return not os.path.exists(directory) and probe.connect_ex(("127.0.0.1", int(port))) != 0

    servers.wait_until(is_gone, "the parent's server has gone with it")
    with node_at(url, data_dir) as node:
        for number in range(50):
            assert node.propose(1, timeout=PATIENCE_S).result() == 51 + number
        before = {name: os.stat(os.path.join(data_dir, name)).st_ino for name in os.listdir(data_dir)}
        os.close(end)  # The child ends now.
        os.close(told_to_end)
        assert os.read(told, 1) == b""  # Has ended: it held the other end of this pipe.
        assert {name: os.stat(os.path.join(data_dir, name)).st_ino for name in os.listdir(data_dir)} == before
        assert node.propose(1, timeout=PATIENCE_S).result() == 101
        time.sleep(1.0)  # By then a node has looked at its files.
        assert node.propose(1, timeout=PATIENCE_S).result() == 102 and node.failure is None
    with node_at(url, data_dir) as node:
        assert node.propose(1, timeout=PATIENCE_S).result() == 103


def test_a_child_that_outlives_its_parent_holds_nothing_and_spoils_nothing(
    core: SimpleNamespace, valkey_server: EmbeddedServer, tmp_path: Path
) -> None:
    story(core, outlive_the_parent, valkey_server.url, tmp_path / "n1")


def inherit(url: str, data_dir: str) -> None:
    """A child has no descriptor of the parent's directory, pipes or connections."""

    def descriptors() -> list[str]:
        found = []
        for number in os.listdir("/proc/self/fd"):
            try:
                found.append(os.readlink(f"/proc/self/fd/{number}"))
            except OSError:
                pass  # That of the listing itself.
        return found

    with EmbeddedServer(), founded(url, data_dir) as node, raftplug.Client(url) as client:
        assert client.propose(1, PATIENCE_S) == 1
        assert any(each.startswith("socket:") for each in descriptors())

        def check() -> None:
            kept = [each for each in descriptors() if each.startswith("socket:") or each == data_dir]
            assert not kept, kept

        assert in_child(check) == ""
        assert node.propose(1, timeout=PATIENCE_S).result() == 2


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="no /proc here")
def test_a_child_keeps_neither_the_directory_nor_a_connection(
    core: SimpleNamespace, valkey_server: EmbeddedServer, tmp_path: Path
) -> None:
    story(core, inherit, valkey_server.url, tmp_path / "n1")


# -- forked in a thread of the node's ----------------------------------------------------------------------------------


def fork_in_its_threads(url: str, data_dir: str) -> None:
    """Code of the program that a node's thread runs forks, and the child does not leave by itself."""
    forked: list[int] = []

    def fork() -> None:
        child = os.fork()
        if child:
            forked.append(child)

    def work() -> None:
        with raftplug.Client(url) as own:
            assert own.propose(1, PATIENCE_S)

    worker = multiprocessing.get_context("fork").Process(target=work)
    machine = Sum()
    machine.calls.update(fork=fork, work=worker.start)
    with founded(url, data_dir, state_machine=machine) as node, raftplug.Client(url) as client:
        assert client.propose(1, PATIENCE_S) == 1
        assert client.propose("fork", PATIENCE_S) == 2  # In the loop's thread.
        client.propose("work", PATIENCE_S)
        worker.join(PATIENCE_S)
        assert worker.exitcode == 0, "a child forked by a state machine is none, and may wait"
        node.read(lambda _: fork(), timeout=PATIENCE_S)
        done = threading.Event()

        def called(_: Any) -> None:
            fork()
            done.set()

        for ask in (lambda: node.propose(1, timeout=PATIENCE_S), lambda: client.propose_async(1, PATIENCE_S)):
            done.clear()
            ask().add_done_callback(called)
            assert done.wait(PATIENCE_S)
        done.clear()
        node.subscribe("leader_changed", callback=called)
        node._events.publish("raftplug_leader_changed", group="default", node="n1", leader="n1", term=1)
        assert done.wait(PATIENCE_S)
        assert len(forked) == 5
        for child in forked:
            ended(child, AT_ONCE_S)
        assert client.propose(1, PATIENCE_S) == 7
        assert node.failure is None
    with node_at(url, data_dir) as again:
        again.propose(1, timeout=PATIENCE_S).result()


def test_a_child_that_was_forked_in_a_nodes_own_thread_does_not_go_on_as_the_node(
    core: SimpleNamespace, valkey_server: EmbeddedServer, tmp_path: Path
) -> None:
    story(core, fork_in_its_threads, valkey_server.url, tmp_path / "n1")


def test_each_fork_is_counted_in_the_child_alone() -> None:
    before = forks.generation

    def check() -> None:
        assert forks.generation == before + 1
        assert in_child(lambda: assert_(forks.generation == before + 2)) == ""

    assert in_child(check) == ""
    assert forks.generation == before


def assert_(condition: bool) -> None:
    assert condition
