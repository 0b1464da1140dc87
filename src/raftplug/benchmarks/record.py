"""What was measured: medians that never go without their runs, and the machine and versions they hold for."""

from __future__ import annotations

import os
import platform
import sqlite3
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from raftplug import core as cores
from raftplug.errors import InvalidArgument
from raftplug.version import VERSION


@dataclass(frozen=True)
class Record:
    """One figure: `value` is the median of `runs`, in `unit`.

    Attributes:
        suite: the level: "core", "parts", "e2e", "peers" or "growth".
        name: what was measured.
        core: "cython" or "python"; None for what does not depend on it.
        payload_bytes: of one transition, encoded; None where there is none.
        window: how many transitions were outstanding; None where the word means nothing.
    """

    suite: str
    name: str
    core: str | None
    payload_bytes: int | None
    window: int | None
    value: float
    unit: str
    runs: list[float]


@dataclass
class Report:
    """All figures of one run of the bench.  Ratios are medians over the pairs of the same round.

    Attributes:
        failed: what was not measured although it should have been, and why.
        skipped: what is not installed, and how to install it.
        promises: what each of the peers that were measured promises.
    """

    records: list[Record] = field(default_factory=list)
    ratios: dict[str, float] = field(default_factory=dict)
    ratio_runs: dict[str, list[float]] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    promises: dict[str, str] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=lambda: machine())

    def add(
        self,
        suite: str,
        name: str,
        runs: Sequence[float],
        unit: str,
        *,
        core: str | None = None,
        payload_bytes: int | None = None,
        window: int | None = None,
    ) -> None:
        """Record the median of `runs`."""
        kept = [_rounded(run) for run in runs]
        self.records.append(Record(suite, name, core, payload_bytes, window, median(kept), unit, kept))

    def add_ratio(self, name: str, above: Sequence[float], below: Sequence[float]) -> None:
        """Record the median of what each run above is over its neighbour below: what slowed one slowed the other."""
        runs = [_rounded(over / under) for over, under in zip(above, below, strict=True)]
        self.ratio_runs[name] = runs
        self.ratios[name] = median(runs)

    def plain(self) -> dict[str, Any]:
        """The object of --json."""
        return asdict(self)


def rounds(count: int, names: Sequence[str]) -> Iterator[tuple[int, str]]:
    """A, B, A, B, …: so that a slow minute of the machine hits all alike."""
    for number in range(count):
        for name in names:
            yield number, name


def present_cores() -> list[str]:
    """The cores that can be measured here: "python", and "cython" where it is compiled."""
    try:
        cores.load("cython")
    except InvalidArgument:
        return ["python"]
    return ["python", "cython"]


def machine() -> dict[str, Any]:
    """What the figures hold for: machine and versions, nothing that names the machine or its user."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "python": f"{platform.python_implementation()} {platform.python_version()} ({platform.python_compiler()})",
        "switch_interval_ms": sys.getswitchinterval() * 1000,
        "sqlite": sqlite3.sqlite_version,
        "raftplug": VERSION,
        "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _rounded(value: float) -> float:
    """Six digits: more would claim what was not measured."""
    return float(f"{value:.6g}")
