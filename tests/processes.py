"""Real `raftplug` processes for tests: run to their end, or kept running and ended by their pid whatever happens."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest

from raftplug.embedded import EmbeddedServer
from raftplug.status import has_quorum

PATIENCE_S = 60.0
PEERS = ("n1", "n2", "n3")


def raftplug(*arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `raftplug` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "raftplug", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env=_environment(environment),
        check=False,
    )


def story(core: SimpleNamespace, tell: Callable[..., None], *arguments: object) -> None:
    """Run a function of a test file, on a core, in a process of its own; it must end by itself and well.

    Args:
        core: the core.
        tell: the function.
        arguments: its arguments, as text.
    """
    module = tell.__module__.rpartition(".")[2]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", f"import sys, {module}; {module}.{tell.__name__}(*sys.argv[1:])"]
        + [str(each) for each in arguments],
        cwd=Path(__file__).parent,
        env={**os.environ, "RAFTPLUG_CORE": core.name},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr, done.stderr[-3000:]


def wait_until(condition: Callable[[], Any], what: str) -> Any:
    """Return the first true result of `condition`, or fail after a minute."""
    deadline = time.monotonic() + PATIENCE_S
    while not (result := condition()):
        assert time.monotonic() < deadline, f"not within {PATIENCE_S:g} s: {what}"
        time.sleep(0.02)
    return result


def installed(directory: Path, name: str, source: str) -> str:
    """The PYTHONPATH of a process in which `source` is installed as the plugin `name`."""
    site = directory / "site"
    info = site / f"{name}_machine-1.0.dist-info"
    info.mkdir(parents=True)
    (site / f"{name}_machine.py").write_text(source)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-machine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[raftplug]\n{name} = {name}_machine\n")
    return os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])


LOG_LINE: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (DEBUG|INFO|WARNING|ERROR) ")
"""What a line of a node's log begins with; the node and what happened follow."""


class Running:
    """A `raftplug` process that was started and runs; what it prints goes to files."""

    def __init__(self, directory: Path, *arguments: str, stdin: Any = subprocess.DEVNULL, **environment: str) -> None:
        directory.mkdir(exist_ok=True, parents=True)
        number = len(list(directory.iterdir()))
        self._out = directory / f"{number}.out"
        self._err = directory / f"{number}.err"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "raftplug", *arguments],
                stdin=stdin,
                stdout=out,
                stderr=err,
                env=_environment(environment),
            )

    def stdout(self) -> str:
        return self._out.read_text()

    def stderr(self) -> str:
        return self._err.read_text()

    def wait_for_line(self, pattern: str) -> str:
        """Wait until a line on stderr, less time and level, matches; fail at once when the process ends without."""

        def look() -> str | None:
            ended = self.process.poll() is not None
            lines = [LOG_LINE.sub("", line) for line in self.stderr().splitlines()]
            found = next((line for line in lines if re.search(pattern, line)), None)
            assert found or not ended, f"ended with {self.process.returncode}: {self.stderr()}"
            return found

        return str(wait_until(look, f"a line like {pattern!r}"))

    def end(self, number: int = signal.SIGKILL) -> int:
        """Send a signal, wait for the end, and return the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        return self.process.wait(PATIENCE_S)


class Cluster:
    """Three nodes of the group "g" with the kv machine, each with its directory, on one server."""

    def __init__(self, server: EmbeddedServer, directory: Path, prefix: str = "raftplug") -> None:
        self.prefix = prefix
        self.server = server
        self.directory = directory
        self.nodes: dict[str, Running] = {}
        self.others: list[Running] = []

    @property
    def options(self) -> tuple[str, ...]:
        return ("--redis", self.server.url, "--group", "g", "--prefix", self.prefix)

    def start(
        self, *names: str, bootstrap: bool = False, join: bool = False, core: str = "auto", **environment: str
    ) -> None:
        """Start nodes, and wait until each is ready."""
        for name in names:
            more = ("--peers", ",".join(PEERS), "--bootstrap") if bootstrap else ("--join",) if join else ()
            data_dir = str(self.directory / name)
            options = ("--id", name, "--machine", "kv", "--data-dir", data_dir)
            more += () if core == "auto" else ("--core", core)
            words = ("node", *options, *self.options, *more)
            self.nodes[name] = Running(self.directory / f"{name}.log", *words, **environment)
        for name in names:
            self.nodes[name].wait_for_line(rf"^{name}: node of group g, ")

    def kill(self, *names: str) -> None:
        for name in names:
            assert self.nodes.pop(name).end() == -signal.SIGKILL

    def hold(self, *names: str) -> None:
        """Let nodes stand still until they get a SIGCONT.

        It takes effect once the thread that takes the signal has its turn: on a busy machine others go on until then.
        """
        for name in names:
            self.nodes[name].process.send_signal(signal.SIGSTOP)
        for name in names:
            os.waitid(os.P_PID, self.nodes[name].process.pid, os.WSTOPPED)

    def run(self, command: str, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        words = command.split()  # "members list": the options follow both.
        return raftplug(*words, *self.options, *arguments, stdin=stdin)

    def begin(self, command: str, *arguments: str, **more: Any) -> Running:
        running = Running(self.directory / "others", command, *self.options, *arguments, **more)
        self.others.append(running)
        return running

    def propose(self, transition: Any) -> Any:
        return json.loads(succeeded(self.run("propose", json.dumps(transition))).stdout)

    def read(self, key: str) -> Any:
        return json.loads(succeeded(self.run("read", json.dumps({"op": "get", "key": key}))).stdout)

    def status(self) -> dict[str, Any]:
        done = self.run("status", "--json")
        status = dict(json.loads((done.stdout if done.returncode == 1 else succeeded(done).stdout).splitlines()[-1]))
        assert (done.returncode == 0) == has_quorum(status), (done.returncode, status)
        return status

    def leader(self) -> str:
        """Wait until there is one that runs, and return its id."""

        def look() -> str | None:
            leader = self.status()["leader"]
            return leader if leader in self.nodes else None

        return str(wait_until(look, "a leader"))

    def end(self) -> None:
        for running in [*self.nodes.values(), *self.others]:
            running.end()


def succeeded(done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    assert done.returncode == 0, done.stderr
    return done


def refused(done: subprocess.CompletedProcess[str], code: int, *words: str) -> str:
    """The one line on stderr of a command that refused, which holds all `words`."""
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in lines[0]
    for word in words:
        assert word in lines[0], f"{word!r} is not in {lines[0]!r}"
    return lines[0]


@pytest.fixture
def server() -> Iterator[EmbeddedServer]:
    with EmbeddedServer() as server:
        yield server


@pytest.fixture
def cluster(server: EmbeddedServer, tmp_path: Path) -> Iterator[Cluster]:
    """A cluster without nodes; those that a test starts end with it."""
    cluster = Cluster(server, tmp_path)
    try:
        yield cluster
    finally:
        cluster.end()


def _environment(more: dict[str, str]) -> dict[str, str]:
    return {**os.environ, "PYTHONWARNINGS": "default", **more}
