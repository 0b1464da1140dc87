"""`raftplug bench`: what raftplug costs on this machine, each figure with its spread."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from raftplug.cli import output

SUITES: Final = ("core", "parts", "e2e")


@click.command("bench")
@click.option("--quick", is_flag=True, help="The essential figures, within a minute.")
@click.option("--only", type=click.Choice(SUITES), multiple=True, help="Only this level; may be given again.")
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write all figures."
)
def command(quick: bool, only: tuple[str, ...], json_file: Path | None) -> None:
    """Measure throughput and latency."""
    from raftplug.benchmarks import core, e2e, record

    report = record.Report()
    suites: list[Any] = [core, e2e] if not only else [{"core": core, "e2e": e2e}[n] for n in only]
    total = sum(suite.steps(quick=quick) for suite in suites)
    with click.progressbar(length=total, file=sys.stderr, hidden=not sys.stderr.isatty(), label="bench") as bar:
        step: Callable[[], None] = lambda: bar.update(1)
        for suite in suites:
            suite.measure(report, quick=quick, step=step)
    if json_file is not None:
        json_file.write_text(json.dumps(report.plain(), indent=1) + "\n")
    output.table(
        ("suite", "name", "core", "bytes", "window", "median", "from", "to", "unit"),
        [
            (r.suite, r.name, r.core, r.payload_bytes, r.window, r.value, min(r.runs), max(r.runs), r.unit)
            for r in report.records
        ],
    )
    output.table(
        ("ratio", "median", "from", "to"),
        [
            (name, value, min(report.ratio_runs[name]), max(report.ratio_runs[name]))
            for name, value in report.ratios.items()
        ],
    )
