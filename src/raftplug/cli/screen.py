"""What the demo shows while it runs: a live table on a terminal that has rich, else a line now and then."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from raftplug.cli.ycsb import Load

_EVERY_S: Final = {True: 0.25, False: 2.0}  # Live, and in plain lines.
_COLUMNS: Final = ("node", "role", "term", "commit", "applied", "lag")


class Screen:
    """Where people look.  One thread.

    Args:
        to_stderr: because stdout is a program's to read.
    """

    def __init__(self, *, to_stderr: bool) -> None:
        self._to_stderr = to_stderr
        self._begun = time.monotonic()
        self._shown_at = self._begun
        self._shown_operations = 0
        self._marks: list[int] = []
        self._numbers = ""
        self._live = _live(to_stderr)

    def say(self, text: str) -> None:
        """Tell what happens now: a line that stays."""
        line = f"{time.monotonic() - self._begun:6.1f} s  {text}"
        if self._live is not None:
            self._live.console.print(line, markup=False, highlight=False)
        else:
            click.echo(line, err=self._to_stderr)

    def show(self, status: Mapping[str, Any], dead: Collection[str], load: Load | None) -> None:
        """Show how things are, unless that was done just now.

        Args:
            status: the newest of `Client.status`; {} when there is none yet.
            dead: nodes that were killed.
            load: what runs, if anything does.
        """
        now = time.monotonic()
        if now - self._shown_at < _EVERY_S[self._live is not None]:
            return
        operations = load.done() if load is not None else 0
        if load is not None and operations:
            p50, p99 = load.recent_ms(self._marks)
            rate = (operations - self._shown_operations) / (now - self._shown_at)
            self._shown_operations = operations
            self._numbers = (
                f"{rate:7,.0f} operations/s   p50 {_ms(p50)}   p99 {_ms(p99)}   "
                f"{load.history.acknowledged:,} writes acknowledged"
            )
        self._shown_at = now
        if self._live is not None:
            self._live.update(_table(status, dead, self._numbers))
        elif self._numbers:
            leader = status.get("leader")
            leads = "no leader" if leader is None or leader in dead else f"{leader} leads"
            click.echo(f"{now - self._begun:6.1f} s  {self._numbers}   {leads}", err=self._to_stderr)

    def close(self) -> None:
        """Leave the terminal as it was.  May be called twice."""
        live, self._live = self._live, None
        if live is not None:
            with contextlib.suppress(Exception):
                live.stop()


def _live(to_stderr: bool) -> Any:
    """rich's live display, or None without rich or a terminal."""
    stream = sys.stderr if to_stderr else sys.stdout
    if not stream.isatty():
        return None
    try:
        from rich.console import Console
        from rich.live import Live
    except ImportError:
        return None
    console = Console(file=stream)
    if not console.is_terminal or console.is_dumb_terminal:
        return None
    # Without threads of its own and without taking over stdout: `show` alone draws.
    live = Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False, transient=True)
    return _Live(live, console)


class _Live:
    """rich's display, drawn only when it is told to, from its first update on."""

    def __init__(self, live: Any, console: Any) -> None:
        self.console = console
        self._live = live

    def update(self, drawn: Any) -> None:
        if not self._live.is_started:
            self._live.start()
        self._live.update(drawn, refresh=True)

    def stop(self) -> None:
        self._live.stop()


def _table(status: Mapping[str, Any], dead: Collection[str], numbers: str) -> Any:
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in _COLUMNS:
        table.add_column(name, justify="left" if name in ("node", "role") else "right", min_width=8)
    for row in status.get("nodes", []):
        killed = row["id"] in dead
        role = "killed" if killed else row["role"] or "no answer"
        style = "bold green" if role == "leader" else "red" if killed else "yellow" if row["role"] is None else ""
        numbers_of = ["" if killed or row[name] is None else f"{row[name]:,}" for name in _COLUMNS[2:]]
        table.add_row(Text(str(row["id"])), Text(role), *map(Text, numbers_of), style=style)
    return Group(table, Text(numbers))


def _ms(value: float | None) -> str:
    return "     - ms" if value is None else f"{value:6.1f} ms"
