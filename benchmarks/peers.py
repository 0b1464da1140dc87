"""Level 4: peers from package registries, on the same machine and in the same run as raftplug; see README.md.

    python benchmarks/peers.py --json peers.json

A peer that is not installed is skipped with a line.  What a peer promises less or more is printed beside its figures.
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
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import click

from raftplug import core as cores
from raftplug.benchmarks.core import WINDOWS, Group, entries_per_s
from raftplug.benchmarks.members import Members, Processes
from raftplug.benchmarks.record import Report, present_cores, rounds
from raftplug.cli import output
from raftplug.embedded import EmbeddedServer

HERE = Path(__file__).parent
GOCODE = Path("/usr/share/gocode")  # Where Debian puts the source of Go libraries.
PAYLOAD = 16
PROMISES = {
    "raftplug": "synced to disk on a quorum before it answers; any transition",
    "pysyncobj": "less: memory only, nothing is synced; a member that restarts has forgotten what it acknowledged",
    "etcd": "synced like ours; more: a versioned key-value store, asked by a client over gRPC from another process",
    "etcd_raft": "as our core alone: no disk, no network; no checksums over the entries",
}
# What we leave when we are killed: the directory, once those that work in it have ended.
REMOVER = 'read -r _; sleep 3; exec rm -rf -- "$1"'
# The etcd process ends, and its directory goes, when our end of the pipe does, whatever ended us.
GUARD = 'dir=$1; shift; "$@" </dev/null & pid=$!; read -r _; kill -9 $pid; wait $pid; exec rm -rf -- "$dir"'


@click.command()
@click.option("--seconds", type=float, default=1.0, show_default=True, help="How long each run takes.")
@click.option("--runs", type=click.IntRange(1), default=9, show_default=True, help="Runs of each, in turn.")
@click.option("--json", "file", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures.")
def main(seconds: float, runs: int, file: Path | None) -> None:
    """Measure raftplug and its peers in turn."""
    report = Report()
    with tempfile.TemporaryDirectory(prefix="raftplug-peers-", ignore_cleanup_errors=True) as made:
        command = ["/bin/sh", "-c", REMOVER, "remover", made]
        remover = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        try:
            libraries(report, Path(made), seconds / 4, runs)
            clusters(report, Path(made), seconds, runs)
        finally:
            remover.kill()
            remover.communicate()
    if file is not None:
        file.write_text(json.dumps({**report.plain(), "promises": PROMISES}, indent=1) + "\n")
    rows = [(r.name, r.window, r.value, min(r.runs), max(r.runs), r.unit) for r in report.records]
    output.table(("what", "window", "median", "from", "to", "unit"), rows)
    ratios = [
        (name, value, min(report.ratio_runs[name]), max(report.ratio_runs[name]))
        for name, value in report.ratios.items()
    ]
    output.table(("ratio", "median", "from", "to"), ratios)
    for name, promise in PROMISES.items():
        click.echo(f"{name}: {promise}")


def libraries(report: Report, made: Path, seconds: float, runs: int) -> None:
    """Our core and etcd's library, each in one process."""
    program = built("etcd_raft", made)
    if program is None:
        return
    core = present_cores()[-1]
    for window in WINDOWS:
        group = Group(cores.load(core))

        def theirs(window: int = window) -> float:
            command = [program, f"-window={window}", f"-payload={PAYLOAD}", f"-seconds={seconds}"]
            return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

        def ours(window: int = window, group: Group = group) -> float:
            return entries_per_s(group, window, bytes(PAYLOAD), seconds)

        found = in_turn(runs, {"raftplug_core": ours, "etcd_raft": theirs})
        for name, values in found.items():
            add(report, name, values, window)
        report.add_ratio(f"peers.core.w{window}.{core}_over_etcd_raft", found["raftplug_core"], found["etcd_raft"])


def clusters(report: Report, made: Path, seconds: float, runs: int) -> None:
    """Three processes each: raftplug, PySyncObj and etcd, all running, one under load at a time."""
    with ExitStack() as stack:
        server = stack.enter_context(EmbeddedServer())
        (made / "raftplug").mkdir()
        members = stack.enter_context(Members(server.url, made / "raftplug", present_cores()[-1]))
        peers: dict[str, Callable[[int], dict[str, float]]] = {"raftplug": told(members, seconds)}
        if find_spec("pysyncobj") is None:
            output.note("skipped: PySyncObj is not installed")
        else:
            peers["pysyncobj"] = awake(stack.enter_context(pysyncobj(made)), seconds)
        load = built("etcd_load", made)
        if shutil.which("etcd") is None:
            output.note("skipped: etcd is not installed")
        elif load is not None:
            endpoints = etcd(stack, made)
            peers["etcd"] = loaded(load, endpoints, seconds)
        for window in WINDOWS:
            found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
            for _, name in rounds(runs, list(peers)):
                for what, value in peers[name](window).items():
                    found[what][name].append(value)
            for name, values in found["per_s"].items():
                add(report, name, values, window)
                if name != "raftplug":
                    report.add_ratio(f"peers.w{window}.raftplug_over_{name}", found["per_s"]["raftplug"], values)
            if window == 1:
                for what in ("p50_us", "p99_us"):
                    for name, values in found[what].items():
                        report.add("peers", f"{name}.{what[:3]}", values, "us", payload_bytes=PAYLOAD, window=1)


def told(members: Processes, seconds: float) -> Callable[[int], dict[str, float]]:
    """A load by processes that are told what to do."""

    def run(window: int) -> dict[str, float]:
        if window > 1:
            return {"per_s": members.lead("window", window=window, seconds=seconds, payload_bytes=PAYLOAD)["per_s"]}
        count = max(20, round(seconds / median(members.lead("loop", count=20, payload_bytes=PAYLOAD)["elapsed"])))
        elapsed = sorted(members.lead("loop", count=count, payload_bytes=PAYLOAD)["elapsed"])
        return {
            "per_s": count / sum(elapsed),
            "p50_us": elapsed[count // 2] * 1e6,
            "p99_us": elapsed[count * 99 // 100] * 1e6,
        }

    return run


def awake(members: Processes, seconds: float) -> Callable[[int], dict[str, float]]:
    """The same for processes that poll every millisecond, in their best configuration: only while it is their turn."""
    asked = told(members, seconds)

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


def pysyncobj(made: Path) -> Processes:
    """Three PySyncObj processes."""
    addresses = [f"127.0.0.1:{port}" for port in free_ports(3)]
    commands = {}
    for own in addresses:
        options = {"own": own, "others": [address for address in addresses if address != own]}
        commands[own] = [sys.executable, str(HERE / "pysyncobj_member.py"), json.dumps(options)]
    return Processes(commands, {})


def etcd(stack: ExitStack, made: Path) -> list[str]:
    """Three etcd processes that end with the stack.  Returns: where they answer clients."""
    ports = free_ports(6)
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
            ["/bin/sh", "-c", GUARD, "guard", str(directory), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        stack.callback(process.wait)
        if process.stdin is not None:
            stack.callback(process.stdin.close)
    return urls[3:]


def loaded(load: str, endpoints: Sequence[str], seconds: float) -> Callable[[int], dict[str, float]]:
    """A load on etcd by its own client."""

    def run(window: int) -> dict[str, float]:
        command = [load, f"-endpoints={','.join(endpoints)}", f"-window={window}", f"-payload={PAYLOAD}"]
        done = subprocess.run([*command, f"-seconds={seconds}"], check=True, capture_output=True, text=True, timeout=60)
        return dict(json.loads(done.stdout))

    return run


def built(name: str, made: Path) -> str | None:
    """The path of a Go program of ours, built; None, and a line, where that cannot be."""
    if shutil.which("go") is None or not (GOCODE / "src/go.etcd.io/etcd/raft").is_dir():
        output.note(f"skipped: {name} needs Go and Debian's golang-etcd-server-dev")
        return None
    path = str(made / f"{name}.bin")
    environment = {**os.environ, "GOPATH": str(GOCODE), "GO111MODULE": "off", "GOCACHE": str(made / "gocache")}
    done = subprocess.run(
        ["go", "build", "-o", path, f"./{name}"], cwd=HERE, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        output.note(f"skipped: {name} could not be built: {done.stderr[-300:]}")
        return None
    return path


def in_turn(runs: int, what: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    """What each gives, A, B, A, B, …; the first time is to warm up."""
    found: dict[str, list[float]] = {name: [] for name in what}
    for number, name in rounds(runs + 1, list(what)):
        value = what[name]()
        if number:
            found[name].append(value)
    return found


def add(report: Report, name: str, values: Sequence[float], window: int) -> None:
    core: Any = present_cores()[-1] if name.startswith("raftplug") else None
    report.add("peers", name, values, "entries/s", core=core, payload_bytes=PAYLOAD, window=window)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


if __name__ == "__main__":
    main()
