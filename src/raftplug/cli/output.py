"""What commands print: results on stdout, everything else on stderr.

With --json a command's last line on stdout is exactly one object.  What came from elsewhere is printed without control
characters, so that no peer's text can drive the terminal.
"""

from __future__ import annotations

import base64
import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import click

# What an error of the library calls an argument, and a command an option.
_OPTIONS: Final = {
    "bootstrap": "--bootstrap",
    "data_dir": "--data-dir",
    "group": "--group",
    "groups": "--group",
    "id": "--id",
    "join": "--join",
    "key": "--key-file",
    "machine": "--machine",
    "overwrite": "--force",
    "peers": "--peers",
    "prefix": "--prefix",
    "redis": "--redis",
    "session": "--session",
    "timeout": "--timeout",
}
_ARGUMENT: Final = re.compile(rf"\b({'|'.join(_OPTIONS)})=(True\b)?(?=[\s:;,.)?]|$)")

MISSING: Final = "-"
"""What a table shows for a value that was not measured."""


def as_json(value: Any) -> str:
    """Plain data as JSON, in one line of ASCII.

    JSON has no bytes: they become {"base64": "…"}; and no NaN or infinity: they become null, as in JavaScript.
    """
    try:
        return json.dumps(value, allow_nan=False, default=_bytes)
    except ValueError:  # Rare, so only now a copy is made.
        return json.dumps(_finite(value), allow_nan=False, default=_bytes)


def with_options(text: str) -> str:
    """The text of an error of the library, with options in place of the arguments that it names."""
    return _ARGUMENT.sub(lambda found: _OPTIONS[found[1]], text)


def emit_json(obj: Any) -> None:
    """Print `obj` as JSON in one line on stdout.  A command that is given --json ends with it."""
    click.echo(as_json(obj))


def error(text: str) -> None:
    """Print one line on stderr that says what went wrong."""
    click.echo(f"Error: {clean(text)}", err=True)


def note(text: str) -> None:
    """Print one line of progress on stderr."""
    click.echo(clean(text), err=True)


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print rows under a header on stdout: in plain aligned columns, or by rich on a terminal where it is installed.

    Args:
        header: the columns' names.
        rows: a cell each; None is shown as missing, a list by its items, numbers are aligned to the right.
    """
    right = [bool(rows) and all(_is_number(row[column]) for row in rows) for column in range(len(header))]
    cells = [[_cell(value) for value in row] for row in rows]
    if sys.stdout.isatty() and _rich_table(header, cells, right):
        return
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    for row in ([name.upper() for name in header], *cells):
        aligned = zip(row, widths, right, strict=True)
        click.echo("  ".join(text.rjust(width) if r else text.ljust(width) for text, width, r in aligned).rstrip())


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show on stderr, if that is a terminal, how far `what` has come: gives a function of bytes done and in all."""
    shown = ""

    def show(done: int, of: int) -> None:
        nonlocal shown
        share = done / of if of else 1.0
        text = f"{clean(what)}  [{'#' * round(30 * share):<30}]  {100 * share:3.0f} %  {done / 1e6:,.0f} MB"
        if text != shown:
            shown = text
            click.echo("\r" + text, nl=False, err=True)

    is_terminal = sys.stderr.isatty()
    try:
        yield show if is_terminal else lambda done, of: None
    finally:
        if shown:
            click.echo(err=True)


def clean(text: str) -> str:
    """`text` in one line, with `?` for what is not printable."""
    return "".join(character if character.isprintable() else "?" for character in " ".join(text.split()))


def _rich_table(header: Sequence[str], cells: list[list[str]], right: list[bool]) -> bool:
    try:
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        return False
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, to_the_right in zip(header, right, strict=True):
        drawn.add_column(name, justify="right" if to_the_right else "left")
    for row in cells:
        drawn.add_row(*map(Text, row))  # As Text, since a str would be read as markup.
    Console(file=sys.stdout).print(drawn)
    return True


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _cell(value: Any) -> str:
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(_cell, value)) or MISSING
    return clean(str(value)) or MISSING


def _bytes(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    raise TypeError(f"{type(value).__name__} is not plain data")


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return value
