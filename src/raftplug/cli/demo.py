"""`raftplug demo`: three real nodes, a real server and a load; kill both under it, and judge by the record.

Nothing is left behind.  The demo ends what it started, in `_Stage.close`; should the demo itself be killed with -9, a
shell in the nodes' process group reads the end of a pipe, ends the group and removes the directory.
"""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from raftplug import plain
from raftplug.cli import output
from raftplug.cli.screen import Screen
from raftplug.cli.ycsb import History, Keys, Load, Verdict
from raftplug.client import Client
from raftplug.core import Future
from raftplug.errors import InvalidArgument, RaftplugError, Unavailable
from raftplug.frames import Id, cluster_uuid
from raftplug.plugins import default
from raftplug.settings import Settings

if TYPE_CHECKING:
    from raftplug.embedded import EmbeddedServer

_NODES: Final = ("n1", "n2", "n3")
_GROUP: Final = "demo"
_LEAST_S: Final = 5.0
_CLIENTS: Final = 3
_WORKERS: Final = 24
_START_S: Final = 30.0
_RECOVER_S: Final = 30.0
_AGREE_S: Final = 60.0
_STOP_S: Final = 5.0
_READS_AT_ONE_NODE: Final = 0.25
_PATIENCE_S: Final = 1.0  # With one node; then the group is asked.
_TICK_S: Final = 0.02
_DARK_S: Final = 0.5  # How long the server stays dead.
# The whole group is told to end, then the directory goes, then what is left of the group, the shell among it.
_GUARD: Final = (
    'trap "" HUP INT TERM; read -r word; [ "$word" = done ] || { kill -TERM 0; sleep 2; }; rm -rf -- "$1"; kill -KILL 0'
)


@click.command("demo")
@click.option(
    "--redis",
    metavar="URL",
    help="Use this server, under a prefix of the demo's own; it is not killed. Without it the demo brings its own.",
)
@click.option("--seconds", type=float, metavar="N", default=20.0, show_default=True, help="How long the load runs.")
@click.option(
    "--core",
    type=click.Choice(["cython", "python"]),
    help="Which core the nodes run. Also from the environment: RAFTPLUG_CORE.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, as the last line of stdout.")
def command(redis: str | None, seconds: float, core: str | None, as_json: bool) -> None:
    """Replicate a key-value store, kill things, lose nothing.

    Three node processes, each with its own data directory, replicate the kv plugin's state through a Valkey that the
    demo brings. Clients read and update (YCSB-A: half and half, zipfian keys, values of 1 KB) while the leader is
    killed with SIGKILL, then the server; both come back. At the end every acknowledged write is looked for on every
    node. The exit code is 0 only if nothing was lost, executed twice or stale, and all nodes hold the same. It takes a
    few seconds more than the load, and leaves no process, key or file behind.

    \b
    Examples:
      raftplug demo
      raftplug demo --seconds 60 --core python --json
    """
    if not _LEAST_S <= seconds <= 86_400.0:  # Also refuses NaN.
        raise InvalidArgument(
            f"--seconds must be from {_LEAST_S:.0f} to 86400: the kills and recoveries need that long"
        )
    with _signals_raise():
        stage = _Stage(redis, core, Screen(to_stderr=as_json))
        try:
            result, in_words = _play(stage, seconds)
        except (KeyboardInterrupt, SystemExit):
            stage.say("told to end: everything is ended and removed")
            raise
        finally:
            _ignore_signals()  # What follows is bounded in time, and leaving half of it undone helps nobody.
            stage.close()
    good = result["replicas_equal"] and not result["lost"] + result["duplicated"] + result["stale_reads"]
    if as_json:
        output.emit_json(result)
    else:
        click.echo(in_words)
    if not good:
        raise click.exceptions.Exit(1)


def _play(stage: _Stage, seconds: float) -> tuple[dict[str, Any], str]:
    """The whole demonstration.  Returns: the object of --json, and the same in words."""
    history, keys = History(), Keys()
    stage.open()
    load = stage.load = Load(stage.clients, _WORKERS, history, keys)
    stage.say(f"{len(keys.names):,} keys of 1 KB are written")
    load.insert(stage.clients[0])
    stage.say(f"YCSB-A from {_CLIENTS} clients, {_WORKERS} operations under way")
    load.start()
    begun = time.monotonic()

    def until(share: float, rest_s: float = 0.0) -> None:
        """Wait for that share of the time, but at least so long."""
        end = max(begun + share * seconds, time.monotonic() + rest_s)
        stage.pause(end - time.monotonic())

    until(0.25)
    leader = stage.leader()
    stage.say(f"the leader, {leader}, is killed with SIGKILL")
    origin = time.monotonic()
    stage.kill(leader)
    recovery = history.recovery(origin)
    stage.wait(recovery.done.is_set, _RECOVER_S, "no write was acknowledged after the leader had been killed")
    failover_ms = recovery.seconds * 1000.0
    stage.say(f"the others go on: a write was acknowledged {failover_ms:,.0f} ms after the kill")
    until(0.5, 0.05 * seconds)
    if stage.server is not None:
        stage.say(f"the server ({stage.server_name}) is killed with SIGKILL")
        origin = time.monotonic()
        stage.server.kill()
        stage.pause(_DARK_S)
        stage.server.start()
        recovery = history.recovery(origin)
        stage.say("the server is back, empty, on the same port")
        stage.wait(recovery.done.is_set, _RECOVER_S, "no write was acknowledged after the server had been killed")
        stage.say(f"the nodes go on by themselves, {recovery.seconds * 1000.0:,.0f} ms after the kill")
    until(0.7, 0.05 * seconds)
    stage.say(f"{leader} is started again, on its data directory")
    stage.run(leader)
    until(1.0)
    load.stop()
    stage.wait(lambda: load.join(0.0), 40.0, "operations of the load did not end")
    stage.say("the load has ended: every acknowledged write is looked for on every node")
    states = stage.states(history, keys)
    verdict = history.judge(states)
    p50, p99 = load.latencies_ms()
    result = {
        "nodes": len(_NODES),
        "core": stage.core_in_use(),
        "server": stage.server_name,
        "embedded": stage.server is not None,
        "acknowledged": history.acknowledged,
        "lost": verdict.lost,
        "duplicated": verdict.duplicated,
        "reads": history.reads,
        "stale_reads": history.stale_reads,
        "leader_kills": 1,
        "server_kills": int(stage.server is not None),
        "failover_ms": [round(failover_ms, 1)],
        "throughput_per_s": round(load.done() / load.seconds(), 1),
        "latency_ms": {"p50": _rounded(p50), "p99": _rounded(p99)},
        "replicas_equal": verdict.equal,
    }
    return result, _in_words(result, history, verdict, len(states[_NODES[0]]))


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _in_words(result: dict[str, Any], history: History, verdict: Verdict, keys: int) -> str:
    """The last lines, for people."""
    equal = "hold exactly the same" if verdict.equal else "DIFFER in their"
    latency = result["latency_ms"]
    lines = [
        "",
        f"{result['acknowledged']:,} writes acknowledged, {result['lost']:,} lost, {result['duplicated']:,} executed "
        f"twice; {result['reads']:,} reads, {result['stale_reads']:,} stale; "
        f"the {result['nodes']} nodes {equal} {keys:,} keys.",
        f"The leader was killed: writes went on after {result['failover_ms'][0]:,.0f} ms. "
        + ("The server was killed, too, and came back empty." if result["server_kills"] else "Your server was not."),
        f"{result['throughput_per_s']:,.0f} operations a second, outages included, on the {result['core']} core over "
        f"{result['server']}; p50 {latency['p50']} ms, p99 {latency['p99']} ms.",
    ]
    if history.unknown or history.refused:
        lines.append(
            f"{history.unknown:,} writes ended with an unknown outcome and {history.refused:,} were refused: "
            "the former may be there, the latter must not."
        )
    return "\n".join(lines)


class _Client(Client):
    """A client that asks some of its reads of one node by itself; what that answers is linearizable all the same."""

    alive: Collection[str] = ()
    """The nodes that may be asked by themselves."""

    def read(self, query: Any, timeout: float | None = 10.0, *, consistency: str = "linearizable") -> Any:
        """As a client reads; but one read in four is asked of one node, a follower as well as the leader."""
        nodes = list(self.alive) if random.random() < _READS_AT_ONE_NODE else []
        if nodes:
            with contextlib.suppress(Unavailable):  # It may just have been killed.
                return plain.decode(self.read_at(random.choice(nodes), query, _PATIENCE_S).result())
        return super().read(query, timeout, consistency=consistency)

    def read_at(self, node: Id, query: Any, timeout: float) -> Future:
        """Ask that node's state machine; the future gets the encoded answer."""
        return self._submit(self._read_at, timeout, node, plain.encode(query))

    def _read_at(self, node: Id, future: Future, deadline_us: int, query: bytes) -> None:
        self._loop.requester.ask("read", [query, "linearizable"], future, deadline_us, to=node)


class _Stage:
    """Server, nodes, clients and screen: everything that must be gone at the end.

    Args:
        url: of the user's server; None starts one.
        core: of the nodes; None leaves it to the environment.
        screen: where people look.
    """

    def __init__(self, url: str | None, core: str | None, screen: Screen) -> None:
        self.server: EmbeddedServer | None = None
        self.server_name = ""
        self.clients: list[_Client] = []
        self.load: Load | None = None
        self._url = url or ""
        self._embedded = url is None
        self._core = core
        self._screen = screen
        self._prefix = f"raftplug-demo-{secrets.token_hex(8)}"
        self._key = secrets.token_hex(32)
        self._directory: Path | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._killed: set[str] = set()
        self._status: dict[str, Any] = {}
        self._observer: threading.Thread | None = None
        self._closing = threading.Event()

    def open(self) -> None:
        """Start everything, and return when a leader is there and all nodes answer.

        Raises:
            TransportError, UnknownMachine, Unavailable: it cannot be.
        """
        try:
            default().machine("kv")
        except InvalidArgument as error:
            raise type(error)(f"{error}; the demo needs the kv plugin: pip install ./plugins/raftplug-kv") from None
        if self._embedded:
            from raftplug.embedded import EmbeddedServer

            self.server = EmbeddedServer()
            self.server.start()
            self._url, self.server_name = self.server.url, self.server.version
        else:
            self.server_name = self._look_at_server()
        self.say(f"server: {self.server_name} at {_without_password(self._url)}")
        directory = Path(tempfile.gettempdir()) / f"raftplug-demo-{secrets.token_hex(8)}"
        # The guard comes first: no moment at which our death would leave anything behind.
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "raftplug", str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            process_group=0,
        )
        directory.mkdir(mode=0o700)
        self._directory = directory
        self.say(f"three nodes: {', '.join(_NODES)}")
        for node in _NODES:
            self.run(node, "--bootstrap")
        for _ in range(_CLIENTS):
            self.clients.append(_Client(self._url, _GROUP, prefix=self._prefix, key=self._key))
        self._tell_clients()
        self._observer = threading.Thread(target=self._observe, daemon=True)
        self._observer.start()
        self.wait(self._complete, _START_S, "the three nodes did not elect a leader")
        self.say(f"{self._status['leader']} leads in term {self._status['term']}")

    def close(self) -> None:
        """End and remove everything.  Never raises; what cannot be ended in peace is killed."""
        self._closing.set()
        if self.load is not None:
            self.load.stop()
        for process in self._processes.values():
            _signal(process, signal.SIGTERM)
        for client in self.clients:
            with contextlib.suppress(RaftplugError):
                client.close()
        deadline = time.monotonic() + _STOP_S
        for process in self._processes.values():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                _signal(process, signal.SIGKILL)
                process.wait()
        if self._observer is not None:
            self._observer.join(_STOP_S)
        if self.load is not None:
            self.load.join(_STOP_S)
        if not self._embedded and self._processes:
            self._remove_keys()
        if self.server is not None:
            self.server.stop()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
        if self._guard is not None and self._guard.stdin is not None:
            with contextlib.suppress(OSError):
                self._guard.stdin.write(b"done\n")
                self._guard.stdin.close()
            self._guard.wait()
        self._screen.close()

    # ----------------------------------------------------------------- nodes

    def run(self, node: str, *more: str) -> None:
        """Start a node's process."""
        if self._directory is None or self._guard is None:
            raise Unavailable("the demo has ended")
        environment = dict(os.environ)
        if self._core is not None:
            environment["RAFTPLUG_CORE"] = self._core
        # The URL may hold a password: the environment is not for all to see, as arguments are.
        environment["RAFTPLUG_REDIS"] = self._url
        environment["RAFTPLUG_CLUSTER_KEY"] = self._key
        arguments = {
            "--id": node,
            "--peers": ",".join(_NODES),
            "--group": _GROUP,
            "--machine": "kv",
            "--data-dir": str(self._directory / node),
            "--prefix": self._prefix,
        }
        words = [word for pair in arguments.items() for word in pair]
        with open(self._directory / f"{node}.log", "ab") as log:
            self._processes[node] = subprocess.Popen(
                [sys.executable, "-m", "raftplug", "node", *words, *more],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                process_group=self._guard.pid,  # Ctrl-C is the demo's to handle; and the guard ends its own group.
            )
        self._killed.discard(node)
        self._tell_clients()

    def kill(self, node: str) -> None:
        """SIGKILL a node, and wait until it is dead."""
        self._killed.add(node)
        self._tell_clients()
        self._processes[node].kill()
        self._processes[node].wait()

    def _tell_clients(self) -> None:
        for client in self.clients:
            client.alive = tuple(node for node in _NODES if node not in self._killed)

    def leader(self) -> str:
        """Who leads at this moment, asked afresh."""
        found: list[str] = []

        def ask() -> bool:
            found[:] = [row["id"] for row in self.clients[0].status()["nodes"] if row["role"] == "leader"]
            return len(found) == 1

        self.wait(ask, _RECOVER_S, "no leader was found")
        return found[0]

    def core_in_use(self) -> str:
        """What the nodes say that they run."""
        return "+".join(sorted({str(row["core"]) for row in self._status["nodes"]}))

    def states(self, history: History, keys: Keys) -> dict[str, dict[str, Any]]:
        """Every key, asked from each node by itself, once all have applied the same.

        Before that, every key is read as a client reads it, and held against the history as every read is.
        """
        self.wait(self._agreed, _AGREE_S, "the nodes did not apply the same index")
        client = self.clients[0]
        pending = [(history.begin_read(name), client.read_async(_get(name))) for name in keys.names]
        for read, future in pending:
            self.wait(future.done, _RECOVER_S, "a read was not answered")
            history.end_read(read, future.result(0))
        states: dict[str, dict[str, Any]] = {}
        for node in _NODES:
            answers = {key: client.read_at(node, _get(key), _RECOVER_S) for key in history.written()}
            for future in answers.values():
                self.wait(future.done, _RECOVER_S, f"{node} did not answer a read")
            states[node] = {key: plain.decode(future.result(0)) for key, future in answers.items()}
        return states

    # --------------------------------------------------------------- waiting

    def say(self, text: str) -> None:
        """Tell people what happens now."""
        self._screen.say(output.clean(text))

    def pause(self, seconds: float) -> None:
        """Let so many seconds pass."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._tick()

    def wait(self, condition: Callable[[], bool], limit_s: float, complaint: str) -> None:
        """Wait until `condition()`, while people see what happens.

        Raises:
            Unavailable: it does not come true within `limit_s`, or a node or the load ended by itself.
        """
        deadline = time.monotonic() + limit_s
        while not condition():
            if time.monotonic() > deadline:
                raise Unavailable(f"{complaint} within {limit_s:.0f} s; {self._complaints()}")
            self._tick()

    def _tick(self) -> None:
        """See that everything lives, show it, and let 20 ms pass."""
        if self.load is not None and self.load.error is not None:
            error = self.load.error
            raise Unavailable(f"the load stopped: {type(error).__name__}: {error}")
        for node, process in self._processes.items():
            if process.poll() is not None and node not in self._killed:
                words = self._last_words(node)
                raise Unavailable(f"node {node} ended by itself, with exit code {process.returncode}: {words}")
        self._screen.show(self._status, self._killed, self.load)
        time.sleep(_TICK_S)

    def _observe(self) -> None:
        """Keep `_status` fresh.  A thread of its own, since status waits for nodes that do not answer."""
        while not self._closing.wait(0.2):
            with contextlib.suppress(RaftplugError):
                # Who is dead is waited for to the end: not for long, or what is shown is old.
                self._status = self.clients[-1].status(timeout=0.5 if self._killed else 3.0)

    def _rows(self) -> list[dict[str, Any]]:
        return [row for row in self._status.get("nodes", []) if row["role"] is not None]

    def _complete(self) -> bool:
        return self._status.get("leader") is not None and len(self._rows()) == len(_NODES)

    def _agreed(self) -> bool:
        """Whether all nodes have applied everything that the leader has in its log."""
        indexes = {index for row in self._rows() for index in (row["last"], row["applied"])}
        return self._complete() and len(indexes) == 1

    def _last_words(self, node: str) -> str:
        if self._directory is None:
            return ""
        lines = (self._directory / f"{node}.log").read_text(errors="replace").splitlines()
        return lines[-1] if lines else "it said nothing"

    def _complaints(self) -> str:
        """What the nodes say is wrong."""
        found = {problem for row in self._rows() for problem in row["problems"] or []}
        return "; ".join(sorted(found)) or f"{len(self._rows())} of {len(_NODES)} nodes answer"

    # ------------------------------------------------------- a user's server

    def _look_at_server(self) -> str:
        """What the user's server is.  Raises TransportError or InvalidArgument: it cannot be used."""
        cluster = self._transport("~demo")
        try:
            check = getattr(cluster, "check", None)
            found = check() if check is not None else {}
        finally:
            cluster.close()
        for problem in found.get("problems", []):
            self.say(problem)
        return str(found.get("server") or self._url.partition(":")[0])

    def _transport(self, own_id: str) -> Any:
        uuid = cluster_uuid(_GROUP, _NODES)
        return default().open_cluster(self._url, own_id=own_id, cluster=uuid, prefix=self._prefix, settings=Settings())

    def _remove_keys(self) -> None:
        """Withdraw each node once more in its name: a killed one could not; the last one takes the directory along."""
        for node in _NODES:
            with contextlib.suppress(RaftplugError):
                cluster = self._transport(node)
                cluster.announce({"id": node, "cluster": cluster_uuid(_GROUP, _NODES).hex()})
                deadline = time.monotonic() + 2.0
                while time.monotonic() < deadline:
                    cluster.wait(0.05)
                    if any(record.get("id") == node for record in cluster.directory()):
                        break
                cluster.close()


def _get(key: str) -> dict[str, Any]:
    return {"op": "get", "key": key}


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)


def _without_password(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"


_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
    """SIGTERM and SIGHUP end the demo as Ctrl-C does: by an exception, so that everything is ended and removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def end(number: int, _: Any) -> None:
        _ignore_signals()
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)

    for number in _SIGNALS:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ignore_signals() -> None:
    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
