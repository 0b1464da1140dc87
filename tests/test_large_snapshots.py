"""Snapshots that are larger than anybody's memory should be, in real processes over a real server."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from processes import Running, installed, server
from raftplug import Client
from raftplug.embedded import EmbeddedServer
from raftplug.storage import SQLiteStorage

__all__ = ["server"]

MEGABYTES = int(os.environ.get("RAFTPLUG_TEST_SNAPSHOT_MB", "200"))
PATIENCE_S = 60 + MEGABYTES / 2
GROWTH_MB = 64
NODES = ("n1", "n2", "n3")

# Its state is a seed, a size and a few counters, so that the memory that is seen is the snapshots' and not the state's;
# what it streams is as long as it says, and checked by whoever loads it.
MACHINE = """
import hashlib, os
from raftplug import StateMachine, hookimpl

PART = 100_000

def part(seed, number):
    return hashlib.blake2b(b"%d %d" % (seed, number), digest_size=50).digest() * (PART // 50)

class Large(StateMachine):
    def __init__(self):
        self.seed = self.megabytes = self.count = 0

    def apply_transition(self, transition):
        self.count += 1
        if "megabytes" in transition:
            self.seed, self.megabytes = transition["seed"], transition["megabytes"]
        return self.count

    def query(self, request):
        return [self.seed, self.megabytes, self.count]

    def stream_snapshot(self, index, term):
        seed, megabytes, count = self.seed, self.megabytes, self.count
        yield_head = b"%d %d %d\\n" % (seed, megabytes, count)
        def parts():
            yield yield_head
            for number in range(megabytes * 1_000_000 // PART):
                yield part(seed, number)
        return parts()

    def load_snapshot(self, index, term, pieces):
        buffer = bytearray(next(pieces))
        while b"\\n" not in buffer:
            buffer += next(pieces)
        head, _, rest = bytes(buffer).partition(b"\\n")
        seed, megabytes, count = map(int, head.split())
        buffer, number = bytearray(rest), 0
        for piece in pieces:
            buffer += piece
            while len(buffer) >= PART:
                if buffer[:PART] != part(seed, number):
                    raise ValueError(f"part {number} is another")
                del buffer[:PART]
                number += 1
        if buffer or number != megabytes * 1_000_000 // PART:
            raise ValueError(f"{number} parts and {len(buffer)} bytes")
        self.seed, self.megabytes, self.count = seed, megabytes, count

@hookimpl
def raftplug_state_machines():
    return {"large": Large}
"""


class Large:
    """Processes with that machine."""

    def __init__(self, server: EmbeddedServer, directory: Path) -> None:
        self.path = installed(directory, "large", MACHINE)
        self.server = server
        self.directory = directory
        self.nodes: dict[str, Running] = {}
        self.client = Client(server.url, group="g")
        self.written = 0
        self.longest_s = 0.0
        self.errors: list[BaseException] = []
        self._writing = False

    def start(self, *names: str, bootstrap: bool = False) -> None:
        for name in names:
            options = ["--id", name, "--machine", "large", "--data-dir", str(self.directory / name)]
            options += ["--redis", self.server.url, "--group", "g"]
            options += ["--peers", ",".join(NODES), "--bootstrap"] if bootstrap else []
            # A snapshot when the test says so.
            more = {"PYTHONPATH": self.path, "RAFTPLUG_SNAPSHOT_ENTRIES": "0", "RAFTPLUG_KEEP_ENTRIES": "0"}
            self.nodes[name] = Running(self.directory / f"{name}.log", "node", *options, **more)
        for name in names:
            self.nodes[name].wait_for_line(rf"^{name}: node of group g, ")

    def row(self, name: str) -> dict[str, Any]:
        rows = {row["id"]: row for row in self.client.status()["nodes"]}
        return dict(rows.get(name, {"applied": None, "problems": []}))

    def fetched(self, name: str) -> int | None:
        """How many pieces of a snapshot it has fetched; None when it fetches none."""
        for problem in self.row(name)["problems"]:
            if problem.startswith("fetches the snapshot"):
                return int(problem.split(": ")[1].split(" ")[0])
        return None

    def term(self) -> int:
        return int(self.client.status()["term"])

    def begin_writing(self) -> None:
        """One write after another, in a thread, until `end_writing`."""
        self._writing = True
        self._thread = threading.Thread(target=self._write)
        self._thread.start()

    def _write(self) -> None:
        while self._writing:
            began = time.monotonic()
            try:
                self.client.propose({"add": 1}, timeout=30)
            except BaseException as error:
                self.errors.append(error)
                return
            self.written += 1
            self.longest_s = max(self.longest_s, time.monotonic() - began)

    def end_writing(self) -> None:
        self._writing = False
        self._thread.join()
        assert not self.errors, self.errors

    def memory_mb(self, name: str, key: str) -> float:
        """VmRSS (now) or VmHWM (at most, since `forget_peak`) of a node, MB."""
        status = Path(f"/proc/{self.nodes[name].process.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith(key + ":")).split()[1]) / 1000

    def forget_peak(self, name: str) -> None:
        Path(f"/proc/{self.nodes[name].process.pid}/clear_refs").write_text("5")

    def end(self) -> None:
        self._writing = False
        self.client.close()
        for node in self.nodes.values():
            node.end()


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    """The first true result of `condition`, if it comes in a time that fits the size of the snapshots."""
    deadline = time.monotonic() + PATIENCE_S
    while not (result := condition()):
        assert time.monotonic() < deadline, f"not within {PATIENCE_S:g} s: {what}"
        time.sleep(0.02)
    return result


@pytest.fixture
def large(server: EmbeddedServer, tmp_path: Path) -> Iterator[Large]:
    large = Large(server, tmp_path)
    try:
        yield large
    finally:
        large.end()


def one_behind(large: Large) -> tuple[str, str]:
    """Leader, and a node that is down and needs a large snapshot."""
    large.start(*NODES, bootstrap=True)
    large.client.propose({"add": 1})
    leader = str(large.client.status()["leader"])
    behind = next(name for name in NODES if name != leader)
    assert large.nodes.pop(behind).end(signal.SIGTERM) == 0
    large.client.propose({"seed": 7, "megabytes": MEGABYTES})
    return leader, behind


@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
def test_a_large_snapshot_is_made_and_installed_while_writes_go_on_in_little_memory(large: Large) -> None:
    leader, behind = one_behind(large)
    term = large.term()
    for name in large.nodes:
        large.forget_peak(name)
    before = {name: large.memory_mb(name, "VmRSS") for name in large.nodes}
    large.begin_writing()
    began = time.monotonic()
    assert large.client.snapshot(leader, timeout=PATIENCE_S)["bytes"] > MEGABYTES * 1_000_000
    made_in = time.monotonic() - began
    large.start(behind)
    before[behind] = min(before.values())  # What a node needs that fetches nothing.
    began = time.monotonic()
    wait_for(lambda: large.fetched(behind), "a snapshot is fetched")
    written = large.written
    target = large.row(leader)["applied"]
    wait_for(lambda: (large.row(behind)["applied"] or 0) >= target, "it is installed")
    took = time.monotonic() - began
    large.end_writing()
    growth = {name: large.memory_mb(name, "VmHWM") - before[name] for name in NODES}
    each = ", ".join(f"{name} {mb:.0f}" for name, mb in growth.items())
    print(
        f"{MEGABYTES} MB: made in {made_in:.1f} s, installed in {took:.1f} s; memory grew at most by MB: {each}; "
        f"{large.written} writes meanwhile, the longest {1000 * large.longest_s:.0f} ms"
    )
    assert large.written > written, "writes went on"
    assert large.term() == term, "it cost no election"
    assert max(growth.values()) <= GROWTH_MB, growth
    assert large.client.read(None)[:2] == [7, MEGABYTES]


def test_a_fetch_that_was_killed_in_the_middle_goes_on_where_it_stopped(large: Large) -> None:
    leader, behind = one_behind(large)
    large.client.snapshot(leader, timeout=PATIENCE_S)
    large.start(behind)
    pieces = MEGABYTES * 1_000_000 // (64 << 10)
    wait_for(lambda: (large.fetched(behind) or 0) > pieces // 4, "some are fetched")
    large.nodes.pop(behind).end()
    with contextlib.closing(SQLiteStorage(large.directory / behind, behind)) as storage:
        stored = storage.load("g")
    assert stored is not None and stored.incoming is not None
    assert stored.incoming.have > pieces // 5  # All but the few whose write was under way.
    large.start(behind)
    assert wait_for(lambda: large.fetched(behind), "the fetch goes on") >= stored.incoming.have
    target = large.row(leader)["applied"]
    wait_for(lambda: (large.row(behind)["applied"] or 0) >= target, "it is installed")
