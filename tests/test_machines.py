"""What state machines may be, in real processes on a real server: slow, diverged, in batches, with their own disk."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import raftplug
from processes import PEERS, Cluster, Running, installed, server, wait_until
from raftplug import errors
from raftplug.embedded import EmbeddedServer

__all__ = ["server"]

MACHINE = """
import os, random, time
from raftplug import StateMachine, hookimpl

class Odd(StateMachine):
    def __init__(self):
        self.total = 0

    def apply_transition(self, transition):
        time.sleep(transition.get("sleep", 0))
        self.total += transition.get("add", 0)
        if "moody" in transition and os.environ.get("MOODY"):
            self.total += random.randint(1, 1_000_000)
        return None

    def query(self, request):
        return self.total

    def digest(self):
        return b"%d" % self.total

@hookimpl
def raftplug_state_machines():
    return {"odd": Odd}
"""


class Odd:
    """Three processes with that machine."""

    def __init__(self, server: EmbeddedServer, directory: Path) -> None:
        self.path = installed(directory, "odd", MACHINE)
        self.cluster = Cluster(server, directory)
        self.server = server
        self.directory = directory

    def start(self, **environment: dict[str, str]) -> None:
        nodes = self.cluster.nodes
        for name in PEERS:
            options = ("--id", name, "--machine", "odd", "--data-dir", str(self.directory / name), "--bootstrap")
            options += ("--peers", ",".join(PEERS), *self.cluster.options)
            more = {"PYTHONPATH": self.path, "RAFTPLUG_DIGEST_ENTRIES": "20", **environment.get(name, {})}
            nodes[name] = Running(self.directory / f"{name}.log", "node", *options, **more)
        for name in PEERS:
            nodes[name].wait_for_line(rf"^{name}: node of group g, ")
        wait_until(lambda: self.status()["leader"], "a leader")

    def status(self) -> dict[str, Any]:
        return self.cluster.status()

    def problems(self, name: str, column: str = "problems") -> str:
        return " ".join(next(row.get(column, []) for row in self.status()["nodes"] if row["id"] == name))


@pytest.fixture
def odd(server: EmbeddedServer, tmp_path: Path) -> Iterator[Odd]:
    odd = Odd(server, tmp_path)
    try:
        yield odd
    finally:
        odd.cluster.end()


@pytest.fixture
def client(odd: Odd) -> Iterator[raftplug.Client]:
    with raftplug.Client(redis=odd.server.url, group="g") as client:
        yield client


def test_an_apply_of_two_seconds_on_every_replica_costs_no_election(odd: Odd, client: raftplug.Client) -> None:
    odd.start()
    client.propose({"add": 1})
    before = client.status()
    began = time.monotonic()
    futures = [client.propose_async({"add": 1, "sleep": 2}), client.propose_async({"add": 1, "sleep": 2})]
    looks = 0
    while not all(future.done() for future in futures):
        found = client.status()
        assert (found["leader"], found["quorum"]["reachable"]) == (before["leader"], 3)
        assert {row["term"] for row in found["nodes"]} == {row["term"] for row in before["nodes"]}
        looks += 1
        time.sleep(0.05)
    assert time.monotonic() - began >= 4, "one after the other"
    assert looks > 10, "the nodes answered all the time"
    assert [future.result(0) for future in futures] == [None, None]
    assert client.read(None) == 3
    for name in PEERS:
        wait_until(lambda name=name: "thread of its own" in odd.problems(name, "notes"), f"{name} says that it is slow")
        assert odd.problems(name) == "", "it needs no action"
    assert all("term" not in line or "in term 1" in line for line in odd.cluster.nodes["n1"].stderr().splitlines())


def test_the_replica_whose_machine_is_not_deterministic_is_named_and_serves_nothing(
    odd: Odd, client: raftplug.Client
) -> None:
    odd.start(n2={"MOODY": "1"})
    for number in range(60):
        client.propose({"add": 1, "moody": 1} if number == 5 else {"add": 1})
    problems = wait_until(lambda: odd.problems("n2"), "n2 is named")
    assert "n2 has diverged: after entry " in problems
    assert "remove its data directory" in problems
    odd.cluster.nodes["n2"].wait_for_line("n2 has diverged")
    wait_until(lambda: odd.status()["leader"] not in (None, "n2"), "another leader")
    client.propose({"add": 1})
    assert [client.read(None) for _ in range(5)] == [61] * 5
    leader = odd.status()["leader"]
    odd.cluster.nodes[leader].wait_for_line("n2 has diverged")
    third = next(name for name in PEERS if name not in (leader, "n2"))
    assert "has diverged" not in odd.problems(third)
    assert json.dumps(odd.status())


def test_a_node_stops_in_bounded_time_while_its_machine_is_at_work(odd: Odd, client: raftplug.Client) -> None:
    odd.start()
    client.propose({"add": 1})
    future = client.propose_async({"sleep": 60}, timeout=20)
    leader = client.status()["leader"]
    wait_until(
        lambda: any(row["id"] == leader and row["commit"] > row["applied"] for row in client.status()["nodes"]),
        "the machine is at work",
    )
    began = time.monotonic()
    node = odd.cluster.nodes.pop(leader)
    node.end(15)
    assert time.monotonic() - began < 20
    assert "still at work" in node.stderr()
    assert isinstance(future.exception(30), errors.OutcomeUnknown)


ON_DISK = """
import json, os
from pathlib import Path
from raftplug import StateMachine, hookimpl

class OnDisk(StateMachine):
    # A line for each transition, and what it knows in a file of its own; snapshots carry the lines.
    def __init__(self):
        self.path = Path(os.environ["ON_DISK"])
        self.lines, self.index, self.batches = [], 0, []
        if self.path.exists():
            self.index, self.lines = json.loads(self.path.read_text())

    def _save(self):
        new = self.path.with_suffix(".new")
        with open(new, "w") as file:
            file.write(json.dumps([self.index, self.lines]))
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, self.path)

    def applied_index(self):
        return self.index

    def set_applied_index(self, index):
        self.index = index
        self._save()

    def apply_transition(self, transition):
        return self.apply_batch([transition])[0]

    def apply_batch(self, transitions):
        self.batches.append(len(transitions))
        self.lines += [each["line"] for each in transitions]
        return [len(self.lines)] * len(transitions)

    def query(self, request):
        return {"lines": self.lines, "largest": max(self.batches, default=0), "applied": sum(self.batches)}

    def create_snapshot(self, index, term):
        from raftplug import Snapshot
        return Snapshot(index, term, list(self.lines))

    def set_snapshot(self, snapshot):
        self.lines = list(snapshot.data)

@hookimpl
def raftplug_state_machines():
    return {"on_disk": OnDisk}
"""


def test_a_machine_with_its_own_disk_is_given_batches_and_after_a_kill_nothing_twice(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    path = installed(tmp_path, "on_disk", ON_DISK)
    options = ("--id", "n1", "--machine", "on_disk", "--data-dir", str(tmp_path / "n1"), "--redis", server.url)

    def start(*more: str) -> Running:
        environment = {"PYTHONPATH": path, "ON_DISK": str(tmp_path / "state"), "RAFTPLUG_SNAPSHOT_ENTRIES": "0"}
        node = Running(tmp_path / "log", "node", *options, "--group", "g", *more, **environment)
        node.wait_for_line("^n1: node of group g, ")
        return node

    node = start("--peers", "n1", "--bootstrap")
    try:
        with raftplug.Client(server.url, group="g") as client:
            futures = [client.propose_async({"line": number}, 60) for number in range(500)]
            for future in futures:
                future.result(60)
            found = client.read(None, 30)
            assert sorted(found["lines"]) == list(range(500)) and found["applied"] == 500
            assert found["largest"] > 1, "what is committed together is applied together"
            node.end()
            node = start()
            client.propose({"line": 500}, 60)
            again = client.read(None, 60)
            assert again["lines"] == [*found["lines"], 500]
            assert again["applied"] == 1, "the others were on its disk"
    finally:
        node.end()
