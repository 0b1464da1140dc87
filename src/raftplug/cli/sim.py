"""`raftplug sim`: many seeds of the simulator, and how to replay the ones that fail."""

from __future__ import annotations

import gc
import hashlib
import logging
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from raftplug.cli import options, output

if TYPE_CHECKING:
    from raftplug.testing.simulation import Report


@click.command("sim")
@click.option("--seeds", type=click.IntRange(1), default=100, show_default=True, help="How many seeds to run.")
@click.option("--start", type=click.IntRange(0), default=0, show_default=True, help="The first of them.")
@click.option("--seed", type=click.IntRange(0), help="Run this one seed.")
@click.option("--nodes", type=click.IntRange(1, 9), default=5, show_default=True, help="How many nodes.")
@click.option("--events", type=click.IntRange(1), help="Events before the liveness phase; 8,000 unless given.")
@click.option("--long", "long_profile", is_flag=True, help="1,000 client operations and 30,000 events at least.")
@click.option("--faults", help="Only these faults, with commas between them; by default each seed chooses its own.")
@click.option("--core", type=click.Choice(["cython", "python"]), help="Which core; by default this process's.")
@click.option("--trace", type=click.Path(dir_okay=False, path_type=Path), help="Write the readable trace of --seed.")
@options.as_json
def command(
    seeds: int,
    start: int,
    seed: int | None,
    nodes: int,
    events: int | None,
    long_profile: bool,
    faults: str | None,
    core: str | None,
    trace: Path | None,
    as_json: bool,
) -> None:
    """Run the cluster in a simulator, with faults.

    Whole nodes and clients run in one thread on a fake clock, network and disk; the seed decides everything, and the
    same seed gives the same trace on both cores. After every event the invariants of Raft are checked; at the end the
    faults stop, and a majority must elect, commit and converge. Exit code 1 if anything did not hold; each failing
    seed is shown with the one command that replays it.

    \b
    Example:
      raftplug sim --seeds 300
      raftplug sim --seed 17 --trace trace.txt
    """
    from raftplug import core as cores
    from raftplug.testing.simulation import EVENTS, FAULTS, Simulation

    if trace is not None and seed is None:
        raise click.UsageError("--trace needs --seed: a trace is of one run")
    chosen = None if faults is None else tuple(name for name in faults.split(",") if name)
    unknown = sorted(set(chosen or ()) - set(FAULTS))
    if unknown:
        raise click.UsageError(f"no fault {unknown[0]!r}: choose among {', '.join(FAULTS)}")
    limit = events or (30_000 if long_profile else EVENTS)
    given: dict[str, Any] = {"core": cores.load(core or cores.name), "nodes": nodes}
    if long_profile:
        given |= {"operations": 1_050, "clients": 6}
    logging.getLogger("raftplug").setLevel(logging.CRITICAL)  # What nodes log under faults is no news here.

    gc.set_threshold(50_000, 20, 100)  # Much is made and little of it in circles: a tenth of the time was the search.

    def run(number: int, names: tuple[str, ...] | None, most: int, keep: bool = False) -> Report:
        return Simulation(number, faults=names, events=most, keep_trace=keep, **given).run()

    numbers = range(start, start + seeds) if seed is None else range(seed, seed + 1)
    total, counted, failing, digest = 0, Counter[str](), [], hashlib.sha256()
    began = time.monotonic()
    with click.progressbar(numbers, file=sys.stderr, hidden=not sys.stderr.isatty(), label="seeds") as progress:
        for number in progress:
            report = run(number, chosen, limit, keep=trace is not None)
            total += report.events
            counted += report.faults
            digest.update(report.trace_sha256.encode())
            if trace is not None:
                trace.write_text("\n".join(report.trace) + "\n")
            if report.violation is not None:
                names, most, shrunk = _shrink(run, report, chosen, limit)
                replay = f"raftplug sim --seed {number} --nodes {nodes} --events {most} --trace trace.txt"
                if long_profile:
                    replay += " --long"
                if names is not None:
                    replay += f" --faults {','.join(names)}"
                failing.append({"seed": number, "violation": shrunk.violation, "replay": replay})
                output.note(f"seed {number}: {shrunk.violation}: {replay}")
    rate = round(total / max(time.monotonic() - began, 1e-9))
    if as_json:
        output.emit_json(
            {
                "seeds": len(numbers),
                "events": total,
                "events_per_s": rate,
                "violations": failing,
                "faults": {name: counted[name] for name in FAULTS},
                "trace_sha256": digest.hexdigest(),
            }
        )
    else:
        output.table(("fault", "times", "what"), [(name, counted[name], text) for name, text in FAULTS.items()])
        click.echo(f"{len(numbers):,} seeds, {total:,} events, {rate:,} a second; violations: {len(failing)}")
    if failing:
        raise click.exceptions.Exit(1)


def _shrink(
    run: Any, report: Report, chosen: tuple[str, ...] | None, limit: int
) -> tuple[tuple[str, ...] | None, int, Report]:
    """Fewer kinds of faults, and fewer events, that still break the same invariant."""
    kind = str(report.violation).partition(":")[0]
    names, best = chosen, report
    for name in sorted(report.faults):
        fewer = tuple(each for each in (names if names is not None else report.chosen) if each != name)
        shorter = run(report.seed, fewer, limit)
        if str(shorter.violation).partition(":")[0] == kind and shorter.events <= best.events:
            names, best = fewer, shorter
    return names, min(limit, best.events + 1) if kind != "liveness" else limit, best
