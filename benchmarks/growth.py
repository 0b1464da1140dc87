"""How the cost of one entry grows with the log, the voters, the payload and the number of groups.

    python benchmarks/growth.py --json growth.json --plot growth.svg

Each figure is ns of this process's CPU for one entry, committed and applied on all voters.  It should be flat over the
length of the log and the number of busy groups, and in proportion to the voters, and to the bytes once they outweigh
the rest.
"""

from __future__ import annotations

import gc
import json
import random
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from time import process_time_ns
from typing import Any

import click

from raftplug import core as cores
from raftplug import plain
from raftplug.benchmarks.core import Group
from raftplug.benchmarks.member import Counter, transition_of
from raftplug.benchmarks.record import Report, present_cores, rounds
from raftplug.benchmarks.svg import Panel, draw
from raftplug.cli import output
from raftplug.cluster import MemoryCluster, MemoryHub
from raftplug.constants import LEADER
from raftplug.future import Future
from raftplug.node import NodeLoop
from raftplug.settings import Settings
from raftplug.storage import MemoryStorage

WINDOW = 64
ENTRIES = 4096  # In one run, or as many as take so many bytes:
BYTES = 16 << 20
PYTHON_LENGTH = 10**6  # A log of Python objects takes 10 times the memory.
IDS = ("n1", "n2", "n3")
NOTICED_US = 10_000  # So long after a commit, every follower has been told of it.

Make = Callable[[Any, int], Callable[[], float]]
"""Given a core and a size, what runs once and returns ns for an entry."""


@click.command()
@click.option("--longest", type=click.IntRange(10**3), default=10**7, show_default=True, help="Entries of the log.")
@click.option("--groups", type=click.IntRange(1), default=1000, show_default=True, help="How many groups at most.")
@click.option("--runs", type=click.IntRange(1), default=7, show_default=True, help="Runs of each, in turn.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures.")
@click.option("--plot", "plot_file", type=click.Path(dir_okay=False, path_type=Path), help="Draw them as SVG.")
def main(longest: int, groups: int, runs: int, json_file: Path | None, plot_file: Path | None) -> None:
    """Measure how the cost of an entry grows."""
    report = Report()
    curves: dict[str, tuple[Make, list[int], str]] = {
        "log_length": (over_length, powers(3, longest), "entries in the log"),
        "voters": (over_voters, [3, 5, 7, 9], "voters"),
        "payload": (over_payload, [16, 256, 4096, 65536, 1 << 20], "bytes"),
        "groups": (over_groups, powers(0, groups), "groups in a process, all busy"),
        "idle_groups": (over_idle_groups, powers(0, groups), "groups in a process, one busy"),
    }
    panels = []
    for name, (make, sizes, along) in curves.items():
        lines: dict[str, list[tuple[float, list[float]]]] = defaultdict(list)
        for size in sizes:
            for core, values in measured(make, size, runs, name).items():
                payload = size if name == "payload" else 16
                report.add(
                    "growth", f"{name}.{size}", values, "ns/entry", core=core, payload_bytes=payload, window=WINDOW
                )
                lines[core].append((size, values))
                output.note(f"{name} {size:,} {core}: {min(values):,.0f} to {max(values):,.0f} ns")
        panels.append(Panel(name.replace("_", " ").capitalize(), along, "ns of CPU for an entry", lines))
    if json_file is not None:
        json_file.write_text(json.dumps(report.plain(), indent=1) + "\n")
    if plot_file is not None:
        plot_file.write_text(draw(panels, str(report.machine["cpu"])))
    rows = [(r.name, r.core, round(r.value), round(min(r.runs)), round(max(r.runs)), r.unit) for r in report.records]
    output.table(("what", "core", "median", "from", "to", "unit"), rows)


def powers(first: int, last: int) -> list[int]:
    """10^first and so on, up to `last`."""
    return [10**power for power in range(first, 10) if 10**power <= last]


def measured(make: Make, size: int, runs: int, name: str) -> dict[str, list[float]]:
    """Runs of each core, in turn; the first one is to warm up."""
    names = [core for core in present_cores() if name != "log_length" or core == "cython" or size <= PYTHON_LENGTH]
    ready = {core: make(cores.load(core), size) for core in names}
    found: dict[str, list[float]] = defaultdict(list)
    gc.collect()
    gc.freeze()  # What was made to be measured is not what collections should cost.
    for number, core in rounds(runs + 1, names):
        value = ready[core]()
        if number:
            found[core].append(value)
    gc.unfreeze()
    return found


def committing(group: Group, payload: bytes) -> Callable[[], float]:
    window = max(1, min(WINDOW, BYTES // 16 // len(payload)))
    count = max(1, min(ENTRIES, BYTES // len(payload)) // window)

    def run() -> float:
        begin = process_time_ns()
        for _ in range(count):
            group.commit([payload] * window)
        return (process_time_ns() - begin) / count / window

    return run


def over_length(core: Any, length: int) -> Callable[[], float]:
    return committing(Group(core, length=length, compact_every=1 << 62), bytes(16))  # Else it would soon be short.


def over_voters(core: Any, voters: int) -> Callable[[], float]:
    return committing(Group(core, tuple(range(1, voters + 1))), bytes(16))


def over_payload(core: Any, size: int) -> Callable[[], float]:
    return committing(Group(core, compact_every=max(10, min(10_000, BYTES // size))), bytes(size))


def over_groups(core: Any, count: int) -> Callable[[], float]:
    """Every group gets one transition at a time, as the busy node's turns find them."""
    return Cluster(core, count).driving(list(range(count)), max(1, 1000 // count))


def over_idle_groups(core: Any, count: int) -> Callable[[], float]:
    """One group gets all transitions, one at a time; the others only have a place in the node."""
    return Cluster(core, count).driving([0], 50)


class Cluster:
    """Three whole nodes with so many groups, in one thread; network and disk are memory, the clock stands still."""

    def __init__(self, core: Any, groups: int) -> None:
        hub = MemoryHub()
        self._now = 1_000_000
        self._names = [f"g{number}" for number in range(groups)]
        self._machines = [{name: Counter() for name in self._names} for _ in IDS]
        configuration = plain.encode(core.Configuration(IDS).plain())
        self._loops = []
        for number, id in enumerate(IDS):
            storage = MemoryStorage(id, bytes(16))
            for name in self._names:
                storage.create(name, configuration)
            loop = NodeLoop(
                storage=storage,
                cluster=MemoryCluster(hub, id),
                machines=self._machines[number],
                settings=Settings(),
                executor=done_at_once,
                clock=lambda: self._now,
                generator=random.Random(number),
                core=core,
            )
            self._loops.append(loop)
        for _ in IDS:
            self._turn()  # They greet each other.
        for driver in self._loops[0].drivers.values():
            # The first node is the first to stand for election, everywhere.
            self._loops[0].call(driver.turn, driver.raft.deadline(), False)
        while not all(driver.raft.role == LEADER for driver in self._loops[0].drivers.values()):
            self._turn()
        while self._loops[0].cluster_id is None:
            self._turn()

    def driving(self, busy: list[int], times: int) -> Callable[[], float]:
        """Give each busy group one transition, wait for its answer, and so on; at last, until all nodes are level."""
        encoded = plain.encode(transition_of(16))
        drivers = [self._loops[0].drivers[self._names[number]] for number in busy]
        applied = [[loop.drivers[self._names[number]] for number in busy] for loop in self._loops]

        def run() -> float:
            begin = process_time_ns()
            for _ in range(times):
                futures = [Future() for _ in drivers]
                for driver, future in zip(drivers, futures, strict=True):
                    self._loops[0].call(driver.propose, encoded, future, self._now + 10_000_000)
                while not all(future.done() for future in futures):
                    self._turn()
            self._now += NOTICED_US
            while not level(applied):
                self._turn()
            return (process_time_ns() - begin) / times / len(drivers)

        return run

    def _turn(self) -> None:
        for loop in self._loops:
            loop.turn()


def level(drivers: list[list[Any]]) -> bool:
    """Whether all nodes have applied as much as the first one."""
    return all(
        mine.applied == first.applied for row in drivers[1:] for mine, first in zip(row, drivers[0], strict=True)
    )


def done_at_once(job: Callable[[], None], done: Callable[[BaseException | None], None]) -> None:
    job()
    done(None)


if __name__ == "__main__":
    main()
