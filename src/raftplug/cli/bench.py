"""`raftplug bench`: what raftplug costs on this machine, each figure with its spread."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from raftplug.cli import options, output
from raftplug.errors import RaftplugError

if TYPE_CHECKING:
    from raftplug.benchmarks.record import Record, Report
    from raftplug.benchmarks.svg import Panel

_SUITES: Final = ("core", "parts", "e2e", "peers")
_FILE: Final = click.Path(dir_okay=False, path_type=Path)


@click.command("bench")
@click.option("--quick", is_flag=True, help="The essential figures, within a minute; peers only by --only.")
@click.option("--only", type=click.Choice(_SUITES), multiple=True, help="Only this level; may be given again.")
@click.option(
    "--seconds", type=options.SECONDS, metavar="S", help="How long each run takes, instead of the level's own."
)
@click.option("--json", "json_file", type=_FILE, metavar="FILE", help="Write every run, the machine and the versions.")
@click.option("--plot", "plot_file", type=_FILE, metavar="FILE.svg", help="Draw what was measured.")
@click.option(
    "--directory",
    type=click.Path(exists=True, file_okay=False, writable=True, path_type=Path),
    metavar="DIR",
    help="Where levels e2e and peers make data directories: on the disk that is meant. By default the temporary one.",
)
def command(
    quick: bool,
    only: tuple[str, ...],
    seconds: float | None,
    json_file: Path | None,
    plot_file: Path | None,
    directory: Path | None,
) -> None:
    """Measure throughput and latency.

    Four levels: `core` is the compiled and the Python core alone, three voters in one process; `parts` is each part of
    them in ns; `e2e` is three node processes with synced directories over an embedded server, beside the floor: the
    same hops and the same commit to disk without raftplug; `peers` is raftplug beside PySyncObj, etcd and etcd's raft
    library, as far as they are installed. What is compared takes turns in the same minute; each figure is a median with
    its range.

    \b
    Example:
      raftplug bench --quick
      raftplug bench --json bench.json --plot bench.svg
    """
    from raftplug.benchmarks import core, e2e, parts, peers
    from raftplug.benchmarks.record import Report

    if plot_file is not None and plot_file.suffix != ".svg":
        raise click.UsageError(f"--plot writes SVG: name it {plot_file.stem}.svg")
    for file in (json_file, plot_file):
        if file is not None and not file.parent.is_dir():  # Now, not when everything is measured.
            raise click.UsageError(f"there is no directory for {str(file)!r}")
    report = Report()
    suites: dict[str, Any] = {"core": core, "parts": parts, "e2e": e2e, "peers": peers}
    chosen = [name for name in _SUITES if name in (only or (_SUITES[:-1] if quick else _SUITES))]
    total = sum(suites[name].steps(quick=quick) for name in chosen)
    hidden = not sys.stderr.isatty()
    with click.progressbar(
        length=total, file=sys.stderr, hidden=hidden, label="bench", item_show_func=lambda name: name
    ) as bar:
        for name in chosen:
            bar.update(0, name)
            more = {"directory": directory} if name in ("e2e", "peers") else {}
            try:
                suites[name].measure(report, quick=quick, seconds=seconds, step=partial(bar.update, 1), **more)
            except RaftplugError as error:  # The other levels' figures are none the worse for it.
                report.failed.append(f"{name} was not measured: {error}")
    if json_file is not None:
        json_file.write_text(json.dumps(report.plain(), indent=1) + "\n")
    if plot_file is not None:
        from raftplug.benchmarks.svg import draw

        plot_file.write_text(draw(_panels(report), _caption(report)))
    _print(report)
    for line in report.skipped:
        output.note(f"skipped: {line}")
    for failure in report.failed:
        output.error(failure)
    if report.failed:
        raise click.exceptions.Exit(1)


def _print(report: Report) -> None:
    output.table(
        ("level", "what", "core", "bytes", "window", "median", "from", "to", "unit"),
        [
            (
                r.suite,
                r.name,
                r.core,
                r.payload_bytes,
                r.window,
                *map(_short, (r.value, min(r.runs), max(r.runs))),
                r.unit,
            )
            for r in report.records
        ],
    )
    if report.ratios:
        click.echo()
        output.table(
            ("ratio", "median", "from", "to"),
            [(name, round(value, 2), *_range(report.ratio_runs[name])) for name, value in report.ratios.items()],
        )
    if report.promises:
        click.echo()
        output.table(("who", "promises"), list(report.promises.items()))
    click.echo(f"\n{_caption(report)}")


def _range(runs: list[float]) -> tuple[float, float]:
    return round(min(runs), 2), round(max(runs), 2)


def _short(value: float) -> float | int:
    """Three digits that count, and no others."""
    return round(value) if value >= 100 else float(f"{value:.3g}")


def _caption(report: Report) -> str:
    it = report.machine
    versions = [it["python"].partition(" (")[0], it.get("server"), f"raftplug {it['raftplug']}"]
    load = f"load {it['load_average'][0]:.1f} at the start"
    return f"{it['cpu']}, {it['cores']} cores, {load}; {', '.join(filter(None, versions))}"


def _panels(report: Report) -> list[Panel]:
    """What is worth a picture: how things change with the window and with the number of voters."""
    from raftplug.benchmarks.svg import Panel

    def lines(suite: str, name: str, x: Callable[[Record], float | None]) -> dict[str, list[tuple[float, list[float]]]]:
        found: dict[str, list[tuple[float, list[float]]]] = {}
        for r in report.records:
            place = x(r)
            if r.suite == suite and name in r.name and place is not None:
                transport = r.name.partition(".")[0] if suite == "e2e" else ""
                line = r.name if suite == "peers" else f"{r.core} {r.payload_bytes} B {transport}".strip()
                found.setdefault(line, []).append((place, r.runs))
        return found

    def voters(r: Record) -> float | None:
        number = r.name.rpartition(".")[2]
        return float(number) if number.isdigit() else None

    panels = [
        Panel("Core, in process", "window", "entries/s", lines("core", "commit", lambda r: r.window)),
        Panel("Commit of an entry", "voters", "ns", lines("parts", "commit.", voters)),
        Panel("End to end, durable", "window", "entries/s", lines("e2e", ".throughput", lambda r: r.window)),
        Panel("CPU of all processes", "window", "s per million", lines("e2e", ".cpu", lambda r: r.window)),
        Panel(
            "Beside peers",
            "window",
            "entries/s",
            lines("peers", "", lambda r: r.window if r.unit == "entries/s" else None),
        ),
    ]
    return [panel for panel in panels if panel.lines]
