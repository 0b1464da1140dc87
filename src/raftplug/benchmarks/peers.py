"""Level 4: peers from package registries, on the same machine and in the same run as raftplug.

Each is optional: what is not installed is skipped, with a line that says how to install it.  What a peer promises less
or more stands beside its figures.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, Final

from raftplug import core as cores
from raftplug.benchmarks.core import WINDOWS, Group, entries_per_s
from raftplug.benchmarks.members import Members, Processes
from raftplug.benchmarks.record import Report, present_cores, rounds
from raftplug.embedded import EmbeddedServer
from raftplug.errors import Unavailable

_PROMISES: Final = {
    "raftplug": "synced to disk on a quorum before it answers; any transition",
    "pysyncobj": "less: memory only, nothing is synced; a member that restarts has forgotten what it acknowledged",
    "etcd": "synced like ours; more: a versioned key-value store, asked by a client over gRPC from another process",
    "etcd_raft": "as our core alone: no disk, no network; no checksums over the entries",
}
_GOCODE: Final = Path("/usr/share/gocode")  # Where Debian puts the source of Go libraries.
_GO_PACKAGES: Final = "golang-go golang-etcd-server-dev"
_PAYLOAD: Final = 16
_PATIENCE_S: Final = 60.0
# What we leave when we are killed: the directory, once those that work in it have ended.
_REMOVER: Final = 'read -r _; sleep 3; exec rm -rf -- "$1"'
# The etcd process ends, and its directory goes, when our end of the pipe does, whatever ended us.
_GUARD: Final = 'dir=$1; shift; "$@" </dev/null & pid=$!; read -r _; kill -9 $pid; wait $pid; exec rm -rf -- "$dir"'


def steps(*, quick: bool) -> int:
    """How many times `measure` calls back."""
    return 2 * len(WINDOWS)


def measure(
    report: Report,
    *,
    quick: bool,
    seconds: float | None = None,
    step: Callable[[], None],
    directory: Path | None = None,
) -> None:
    """Measure raftplug and each peer that is installed, in turn, for every window.

    Args:
        report: gets the records, the ratios peers.wW.raftplug_over_PEER and peers.core.wW.CORE_over_etcd_raft, what was
            skipped, and what is promised by whom.
        quick: shorter, and fewer runs.
        seconds: how long one run takes.
        step: called after each window.
        directory: where the data directories are made; the system's temporary one if None.

    Raises:
        TransportError: there is no embedded server.
        Unavailable: a cluster did not start, or a process ended.
    """
    runs, library_s, cluster_s = (3, 0.1, 0.3) if quick else (9, 0.25, 1.0)
    with tempfile.TemporaryDirectory(prefix="raftplug-peers-", dir=directory, ignore_cleanup_errors=True) as made:
        command = ["/bin/sh", "-c", _REMOVER, "remover", made]
        remover = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        try:
            _libraries(report, Path(made), seconds or library_s, runs, step)
            _clusters(report, Path(made), seconds or cluster_s, runs, step)
        finally:
            remover.kill()
            remover.communicate()


def _libraries(report: Report, made: Path, seconds: float, runs: int, step: Callable[[], None]) -> None:
    """Our core and etcd's library, each in one process."""
    program = None
    if _has_go():
        program = _built("etcd_raft", made)
        report.machine["go"] = _output(["go", "version"]).strip()
        report.promises["etcd_raft"] = _PROMISES["etcd_raft"]
    else:
        report.skipped.append(f"etcd's raft library, which needs Go and its source: apt-get install {_GO_PACKAGES}")
    core = present_cores()[-1]
    for window in WINDOWS:
        if program is not None:
            group, command = Group(cores.load(core)), [program, f"-window={window}", f"-payload={_PAYLOAD}"]
            ours, theirs = [], []
            for number in range(runs + 1):  # The first time is to warm up.
                mine = entries_per_s(group, window, bytes(_PAYLOAD), seconds)
                other = float(_output([*command, f"-seconds={seconds}"]))
                if number:
                    ours.append(mine)
                    theirs.append(other)
            _add(report, "raftplug_core", ours, window)
            _add(report, "etcd_raft", theirs, window)
            report.add_ratio(f"peers.core.w{window}.{core}_over_etcd_raft", ours, theirs)
        step()


def _clusters(report: Report, made: Path, seconds: float, runs: int, step: Callable[[], None]) -> None:
    """Three processes each: raftplug, PySyncObj and etcd, all running, one under load at a time."""
    with ExitStack() as stack:
        server = stack.enter_context(EmbeddedServer())
        report.machine["server"] = server.version
        (made / "raftplug").mkdir()
        members = stack.enter_context(Members(server.url, made / "raftplug", present_cores()[-1]))
        peers: dict[str, Callable[[int], dict[str, float]]] = {"raftplug": _told(members, seconds)}
        if find_spec("pysyncobj") is None:
            report.skipped.append("PySyncObj, which is not installed: pip install pysyncobj")
        else:
            peers["pysyncobj"] = _awake(stack.enter_context(_pysyncobj()), seconds)
            report.machine["pysyncobj"] = version("pysyncobj")
        if shutil.which("etcd") is None or not _has_go():
            report.skipped.append(
                f"etcd, which needs its server and its client: apt-get install etcd-server {_GO_PACKAGES}"
            )
        else:
            load = _built("etcd_load", made)
            report.machine["etcd"] = _output(["etcd", "--version"]).partition("\n")[0]
            peers["etcd"] = _loaded(load, _etcd(stack, made), seconds)
        report.promises.update({name: _PROMISES[name] for name in peers})
        for window in WINDOWS:
            found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
            for _, name in rounds(runs, list(peers)):
                for what, value in peers[name](window).items():
                    found[what][name].append(value)
            for name, values in found["per_s"].items():
                _add(report, name, values, window)
                if name != "raftplug":
                    report.add_ratio(f"peers.w{window}.raftplug_over_{name}", found["per_s"]["raftplug"], values)
            if window == 1:
                for what in ("p50_us", "p99_us"):
                    for name, values in found[what].items():
                        _add(report, f"{name}.{what[:3]}", values, window, "us")
            step()


def _told(members: Processes, seconds: float) -> Callable[[int], dict[str, float]]:
    """A load by processes that are told what to do."""

    def run(window: int) -> dict[str, float]:
        if window > 1:
            return {"per_s": members.lead("window", window=window, seconds=seconds, payload_bytes=_PAYLOAD)["per_s"]}
        count = max(20, round(seconds / median(members.lead("loop", count=20, payload_bytes=_PAYLOAD)["elapsed"])))
        elapsed = sorted(members.lead("loop", count=count, payload_bytes=_PAYLOAD)["elapsed"])
        return {
            "per_s": count / sum(elapsed),
            "p50_us": elapsed[count // 2] * 1e6,
            "p99_us": elapsed[count * 99 // 100] * 1e6,
        }

    return run


def _awake(members: Processes, seconds: float) -> Callable[[int], dict[str, float]]:
    """The same for processes that poll every millisecond, in their best configuration: only while it is their turn."""
    asked = _told(members, seconds)

    def pace(pause_s: float, window: int) -> None:
        for id in members.ids:
            members.tell(id, "pace", pause_s=pause_s, window=window)

    def run(window: int) -> dict[str, float]:
        pace(0.001, window)
        try:
            return asked(window)
        finally:
            pace(0.05, 0)

    return run


def _pysyncobj() -> Processes:
    """Three PySyncObj processes."""
    addresses = [f"127.0.0.1:{port}" for port in _free_ports(3)]
    commands = {}
    for own in addresses:
        options = {"own": own, "others": [address for address in addresses if address != own]}
        commands[own] = [sys.executable, "-m", "raftplug.benchmarks.pysyncobj_member", json.dumps(options)]
    return Processes(commands, {})


def _etcd(stack: ExitStack, made: Path) -> list[str]:
    """Three etcd processes that end with the stack.  Returns: where they answer clients."""
    ports = _free_ports(6)
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    cluster = ",".join(f"e{number}={urls[number]}" for number in range(3))
    for number in range(3):
        directory = made / f"e{number}"
        options = {
            "name": f"e{number}",
            "data-dir": directory,
            "listen-peer-urls": urls[number],
            "initial-advertise-peer-urls": urls[number],
            "listen-client-urls": urls[number + 3],
            "advertise-client-urls": urls[number + 3],
            "initial-cluster": cluster,
            "initial-cluster-state": "new",
            "log-level": "error",
        }
        command = ["etcd", *(f"--{name}={value}" for name, value in options.items())]
        process = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "guard", str(directory), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        stack.callback(process.wait)
        if process.stdin is not None:
            stack.callback(process.stdin.close)
    return urls[3:]


def _loaded(load: str, endpoints: Sequence[str], seconds: float) -> Callable[[int], dict[str, float]]:
    """A load on etcd by its own client."""

    def run(window: int) -> dict[str, float]:
        options = {"endpoints": ",".join(endpoints), "window": window, "payload": _PAYLOAD, "seconds": seconds}
        return dict(json.loads(_output([load, *(f"-{name}={value}" for name, value in options.items())])))

    return run


def _has_go() -> bool:
    """Whether our programs in Go can be built here, without a network."""
    return shutil.which("go") is not None and (_GOCODE / "src/go.etcd.io/etcd/raft").is_dir()


def _built(name: str, made: Path) -> str:
    """The path of a program in Go of ours, built."""
    path = str(made / f"{name}.bin")
    go = {"GOPATH": str(_GOCODE), "GO111MODULE": "off", "GOFLAGS": "", "GOCACHE": str(made / "gocache")}
    source = str(Path(__file__).with_name(f"{name}.go"))
    _output(["go", "build", "-o", path, source], {**os.environ, **go}, patience_s=10 * _PATIENCE_S)
    return path


def _output(command: Sequence[str], environment: dict[str, str] | None = None, patience_s: float = _PATIENCE_S) -> str:
    """What a program prints that ends by itself.

    Raises:
        Unavailable: it failed, or did not end in time.
    """
    name = Path(command[0]).name
    try:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=patience_s
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{name} did not end within {patience_s:.0f} s") from None
    if done.returncode:
        raise Unavailable(f"{name} ended with {done.returncode}: {' '.join(done.stderr.splitlines()[-1:])}")
    return done.stdout


def _add(report: Report, name: str, values: Sequence[float], window: int, unit: str = "entries/s") -> None:
    core: Any = present_cores()[-1] if name.startswith("raftplug") else None
    report.add("peers", name, values, unit, core=core, payload_bytes=_PAYLOAD, window=window)


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
