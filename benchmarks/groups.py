"""Many groups on three nodes: how long they take to elect, and what they cost when nothing happens.

Three processes over one embedded Valkey, with so many groups each; all are bootstrapped at once.

    python benchmarks/groups.py --groups 1000 --groups 10000 --json FILE

What it prints, of each number of groups and of each node, from the worst of the three:

    loaded_s        from the start of the processes until the last node has founded and loaded its groups
    elected_s       the same until every node knows a leader of every group
    elections       terms in all groups, less one each: elections that had to be held again
    frames          sent by all nodes until then
    election_cpu_s  CPU of the node until then
    quiet_s         until every group was quiet on every node, from the start
    quiet_cpu       part of one core that a node takes in quiet state
    group_kb        memory of a quiet group on one node: resident set, less that of a node with one group
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from raftplug.benchmarks.member import Counter
from raftplug.benchmarks.members import Processes
from raftplug.benchmarks.record import machine
from raftplug.embedded import EmbeddedServer
from raftplug.node import Node

IDS = ("n1", "n2", "n3")
QUIET_SECONDS = 15.0
PATIENCE_S = 600.0


@click.command()
@click.option("--groups", "counts", type=click.IntRange(2), multiple=True, default=(1000,), show_default=True)
@click.option("--core", default="cython", show_default=True)
@click.option("--json", "file", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures.")
def main(counts: tuple[int, ...], core: str, file: Path | None) -> None:
    """Measure what many groups cost."""
    report: dict[str, Any] = {"machine": machine(), "core": core, "groups": []}
    alone = measure(1, core)["rss_kb"]
    for count in counts:
        figures = measure(count, core)
        figures["group_kb"] = round((figures.pop("rss_kb") - alone) / (count - 1), 2)
        report["groups"].append(figures)
        click.echo(json.dumps(figures))
    if file is not None:
        file.write_text(json.dumps(report, indent=2) + "\n")


def measure(count: int, core: str) -> dict[str, Any]:
    """The figures of three nodes of so many groups each."""
    directory = Path(tempfile.mkdtemp(prefix="raftplug-groups-"))
    try:
        with EmbeddedServer() as server:
            options = {"redis": server.url, "directory": str(directory), "groups": count, "at": time.monotonic()}
            commands = {id: [sys.executable, __file__, "child", json.dumps({**options, "id": id})] for id in IDS}
            with Members(commands, {"RAFTPLUG_CORE": core}) as members:
                return members.measure(count, options["at"])
    finally:
        shutil.rmtree(directory, ignore_errors=True)


class Members(Processes):
    """Three nodes of many groups."""

    def _wait_for_leader(self) -> str:
        return ""  # Each group has its own.

    def measure(self, count: int, started: float) -> dict[str, Any]:
        """Follow them from their start into the quiet."""
        loaded = max(told["loaded_at"] for told in self._all()) - started
        told = self._until(lambda told: told["known"] == count, 0.2)
        figures = {
            "groups": count,
            "loaded_s": round(loaded, 2),
            "elected_s": round(time.monotonic() - started, 2),
            "elections": max(each["terms"] for each in told) - count,
            "frames": sum(each["frames"] for each in told),
            "election_cpu_s": round(max(each["cpu_s"] for each in told), 2),
            "led_by_each": [each["led"] for each in told],
        }
        before = self._until(lambda told: told["quiet"] == count, 0.5)
        figures["quiet_s"] = round(time.monotonic() - started, 2)
        figures["elections_until_quiet"] = max(each["terms"] for each in before) - count
        before, begin = self._all(), time.monotonic()
        time.sleep(QUIET_SECONDS)
        after, elapsed = self._all(), time.monotonic() - begin
        parts = [(b["cpu_s"] - a["cpu_s"]) / elapsed for a, b in zip(before, after, strict=True)]
        figures["quiet_cpu"] = round(max(parts), 4)
        frames = sum(each["frames"] for each in after) - sum(each["frames"] for each in before)
        figures["quiet_frames_per_s"] = round(frames / elapsed, 1)
        figures["still_quiet"] = min(each["quiet"] for each in after)
        figures["rss_kb"] = max(each["rss_kb"] for each in after)
        return figures

    def _all(self) -> list[dict[str, Any]]:
        return [self.tell(id, "state") for id in self.ids]

    def _until(self, fits: Any, pause_s: float) -> list[dict[str, Any]]:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            told = self._all()
            if all(fits(each) for each in told):
                return told
            if time.monotonic() > deadline:
                raise click.ClickException(f"not within {PATIENCE_S:.0f} s: {told}")
            time.sleep(pause_s)


def child(options: dict[str, Any]) -> None:
    """One node, told what to do by lines on stdin."""
    names = [f"group{number:05}" for number in range(options["groups"])]
    node = Node(
        options["id"],
        peers=IDS,
        redis=options["redis"],
        data_dir=Path(options["directory"]) / options["id"],
        groups={name: Counter() for name in names},
        bootstrap=True,
    )
    with node:
        loaded_at, loop = time.monotonic(), node._loop
        assert loop is not None
        for line in sys.stdin:
            assert json.loads(line)["task"] == "state"
            rafts = [driver.raft for driver in loop.drivers.values()]
            told = {
                "loaded_at": loaded_at,
                "known": sum(raft.leader is not None for raft in rafts),
                "led": sum(raft.leader == node.id for raft in rafts),
                "quiet": sum(raft.quiet for raft in rafts),
                "terms": sum(raft.term for raft in rafts),
                "frames": loop._sender.sequence,
                "cpu_s": time.process_time(),
                "rss_kb": rss_kb(),
            }
            print(json.dumps(told), flush=True)


def rss_kb() -> float:
    """The resident set of this process, now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1024


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        with contextlib.suppress(KeyboardInterrupt):
            child(json.loads(sys.argv[2]))
        os._exit(0)
    main()
