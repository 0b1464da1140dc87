"""Level 3: end to end and durable: three node processes, each with its own synced directory, and a real server.

A round starts a new cluster.  In it the closed loop and its floor take turns, so that each pair shares its minute.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from typing import Final

from raftplug.benchmarks.floor import DISKS, Floor
from raftplug.benchmarks.member import transition_of
from raftplug.benchmarks.members import GROUP, Members
from raftplug.benchmarks.record import Report, present_cores
from raftplug.client import Client
from raftplug.constants import ENTRY_HEADER_BYTES
from raftplug.embedded import EmbeddedServer

WINDOWS: Final = (64, 1024, 10_000)
_PAYLOAD: Final = 16
_ENTRY: Final = ENTRY_HEADER_BYTES + _PAYLOAD  # What the log, the wire and the disk carry of one transition.
_WARM_UP: Final = 50

Runs = dict[tuple[str, str, int], list[float]]
"""What was measured: name, unit and window, and its runs."""


def steps(*, quick: bool) -> int:
    """How many times `measure` calls back."""
    return sum(rounds for _, _, rounds in _variants(quick))


def measure(
    report: Report,
    *,
    quick: bool,
    seconds: float | None = None,
    step: Callable[[], None],
    directory: Path | None = None,
) -> None:
    """Measure whole clusters, in turn over unix socket and TCP and on both cores; the ratio is that of the best core.

    Args:
        report: gets the records, and e2e.w1.p50_over_floor.
        quick: TCP and one core only, and fewer runs.
        seconds: how long one run takes.
        step: called after each round.
        directory: where the data directories are made; the system's temporary one if None.

    Raises:
        TransportError: there is no embedded server.
        Unavailable: a cluster did not start, or a node process ended.
    """
    found: dict[tuple[str, str], Runs] = {}
    with EmbeddedServer() as server:
        report.machine["server"] = server.version
        variants = _variants(quick)
        for _ in range(max(rounds for _, _, rounds in variants)):
            for core, transport, _ in variants:
                url = server.url if transport == "tcp" else server.unix_url
                runs = found.setdefault((core, transport), defaultdict(list))
                # A directory for each, so that its last process can remove it, should we be killed.
                with tempfile.TemporaryDirectory(
                    prefix="raftplug-bench-", dir=directory, ignore_cleanup_errors=True
                ) as made:
                    _round(url, Path(made), core, runs, quick, seconds)
                step()
    merged: dict[tuple[str, str | None, str, int], list[float]] = defaultdict(list)
    for (core, transport), runs in found.items():
        for (name, unit, window), values in runs.items():
            own = None if name.startswith("floor") else core  # One floor, whichever cluster was measured beside it.
            merged[f"{transport}.{name}", own, unit, window] += values
    for (name, own, unit, window), values in merged.items():
        report.add("e2e", name, values, unit, core=own, payload_bytes=_PAYLOAD, window=window)
    best = found[_variants(quick)[0][:2]]
    loop = best["loop_p50", "us", 1]
    report.add_ratio("e2e.w1.p50_over_floor", loop, best["floor_sqlite_p50", "us", 1])
    report.add_ratio("e2e.w1.p50_over_fdatasync_floor", loop, best["floor_fdatasync_p50", "us", 1])
    report.add_ratio("e2e.w1.client_p50_over_floor", best["client_p50", "us", 1], best["floor_sqlite_p50", "us", 1])


def _variants(quick: bool) -> list[tuple[str, str, int]]:
    """Core, transport and number of rounds; the ratios are the first one's."""
    core = present_cores()[-1]
    if quick:
        return [(core, "tcp", 1)]
    return [(core, "tcp", 3), (core, "unix", 3)] + [("python", "tcp", 3)] * (core != "python")


def _round(url: str, directory: Path, core: str, runs: Runs, quick: bool, seconds: float | None) -> None:
    """One cluster: pairs of floor and closed loop, then the windows in turn."""
    loop_s, window_s = (0.25, 0.5) if quick else (0.7, 2.0)
    with Members(url, directory, core) as members, ExitStack() as stack:
        client = stack.enter_context(Client(redis=url, group=GROUP, prefix=members.prefix))
        floors = {disk: stack.enter_context(Floor(url, directory / disk, disk, _ENTRY)) for disk in DISKS}
        _loops(members, floors, client, runs, 9, seconds or loop_s)
        for _ in range(3):
            for window in WINDOWS:
                before = members.cpu_s()
                told = members.lead("window", window=window, seconds=seconds or window_s, payload_bytes=_PAYLOAD)
                runs["throughput", "entries/s", window].append(told["per_s"])
                runs["cpu", "CPU s/M", window].append((members.cpu_s() - before) / told["count"] * 1e6)


def _loops(members: Members, floors: dict[str, Floor], client: Client, runs: Runs, pairs: int, each_s: float) -> None:
    """Closed loops: each floor, the node, the client, in turn and equally often.  The first time is to warm up."""
    transition = transition_of(_PAYLOAD)

    def ask() -> float:
        begin = perf_counter()
        client.propose(transition)
        return perf_counter() - begin

    count = _WARM_UP
    for number in range(pairs + 1):
        elapsed = {f"floor_{disk}": [floor.exchange() for _ in range(count)] for disk, floor in floors.items()}
        before = members.cpu_s()
        told = members.lead("loop", count=count, payload_bytes=_PAYLOAD)
        cpu_s = (members.cpu_s() - before) / count
        elapsed["loop"] = told["elapsed"]
        elapsed["client"] = [ask() for _ in range(count)]
        if number == 0:
            count = max(20, int(each_s / (sum(elapsed["loop"]) / count)))
            continue
        runs["cpu", "CPU s/M", 1].append(cpu_s * 1e6)
        for name, times in elapsed.items():
            for share in (50, 99):
                runs[f"{name}_p{share}", "us", 1].append(_percentile(times, share) * 1e6)


def _percentile(values: Sequence[float], share: int) -> float:
    """The smallest value that `share` percent of them do not exceed."""
    return sorted(values)[max(0, -(-len(values) * share // 100) - 1)]
