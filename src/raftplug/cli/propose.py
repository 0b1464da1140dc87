"""`raftplug propose`: one transition, or a file of them, each executed once, also when the file is run again."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING, Any, Final

import click

from raftplug.cli import INTERRUPTED, options, output
from raftplug.errors import InvalidArgument, OutcomeUnknown, RaftplugError, TooLarge, TransitionFailed
from raftplug.foreign import text_of

if TYPE_CHECKING:
    from raftplug.client import Client
    from raftplug.core import Future

_ONE_S: Final = 10.0
_EACH_S: Final = 60.0  # A load should outlive an election, or a restart of the Redis.
_GRACE_S: Final = 10.0
_LINE_BYTES: Final = 64 << 20
_WINDOW: Final = 1000
_WINDOW_BYTES: Final = 4 << 20  # Of JSON; what it encodes may be a few times larger.
_SHOW_S: Final = 0.2


@click.command("propose")
@options.redis
@options.group
@options.prefix
@options.key
@click.option(
    "--timeout",
    type=options.SECONDS,
    metavar="S",
    help=f"Seconds to wait for each answer.  [default: {_ONE_S:.0f}; with -: {_EACH_S:.0f}]",
)
@options.as_json
@click.option(
    "--session",
    metavar="NAME",
    help="Propose in the session of this name, which outlives the command: in it, each line is executed once, however "
    "often it is proposed. [default for -: a new one]",
)
@click.option(
    "--window",
    type=click.IntRange(1, 100_000),
    default=_WINDOW,
    show_default=True,
    metavar="N",
    help="With -: how many lines may wait for an answer at a time. When leaders change, these may be executed in "
    "another order; 1 keeps the order.",
)
@click.argument("transition")
def command(
    redis: str,
    group: str,
    prefix: str,
    key: options.KeyOption,
    timeout: float | None,
    as_json: bool,
    session: str | None,
    window: int,
    transition: str,
) -> None:
    """Propose a transition, or many, and print the result.

    TRANSITION is JSON, and what it may be is the machine's affair; so is the result, which is printed as JSON, too
    (with --json wrapped: {"result": …}). JSON has no bytes, so a transition with bytes cannot be proposed here; in a
    result they are {"base64": "…"}.

    With - as TRANSITION, each line of standard input is one; empty lines are skipped, but counted. At the end it says
    how many were acknowledged; at an error also which line, and in which session: run the same file with that --session
    again, and nothing is executed twice. With --json it ends with
    {"acknowledged", "lines", "failed_line", "error", "session"}.

    \b
    Examples:
      raftplug propose --redis redis://localhost:6379 --group accounts '{"op":"put","key":"alice","value":7}'
      raftplug propose --redis redis://localhost:6379 --group accounts --session load-1 - < accounts.jsonl
    """
    if session == "":
        raise InvalidArgument("the name of a session cannot be empty")
    if transition == "-":
        if sys.stdin is None:
            raise InvalidArgument("standard input is closed: give the lines there, as in `raftplug propose … - < FILE`")
        load = _Load(sys.stdin.buffer, timeout or _EACH_S, window, session or f"load-{secrets.token_hex(8)}")
        load.check()
        with options.open_client(redis, group, prefix, key, load.session) as client:
            load.run(client)
        load.tell(as_json)
        return
    value = options.parse_json(transition, "the transition")
    with options.open_client(redis, group, prefix, key, session) as client:
        # In a named session, a single transition is line 1.
        sequence = None if session is None else 1
        result = client.propose(value, timeout=timeout or _ONE_S, sequence=sequence)
    output.emit_json({"result": result} if as_json else result)


class _Load:
    """A file's lines on their way.  A line's number is its sequence in the session."""

    def __init__(self, source: IO[bytes], timeout: float, window: int, session: str) -> None:
        self.session = session
        self._source = source
        self._timeout = timeout
        self._window = window
        self._total: int | None = None
        self._lines = 0
        self._acknowledged = 0
        self._failed_line: int | None = None
        self._error: BaseException | None = None
        self._flying: deque[tuple[int, Future, int]] = deque()
        self._flying_bytes = 0

    def check(self) -> None:
        """Look at all lines before the first is proposed, where they lie in a file that can be read twice.

        Raises:
            InvalidArgument: one cannot be proposed; nothing was.
        """
        from raftplug import plain
        from raftplug.settings import Settings

        try:
            if not stat.S_ISREG(os.fstat(self._source.fileno()).st_mode):
                return
            start = self._source.tell()
        except (OSError, ValueError):
            return
        limit = Settings.load().max_transition_bytes
        for number, line in _numbered(self._source):
            self._total = number
            try:
                value = _parse(line)
                size = 0 if value is _BLANK else len(plain.encode(value))
                if size > limit:
                    raise TooLarge(f"{size} bytes encoded; at most {limit} are taken")
            except RaftplugError as error:
                raise InvalidArgument(f"line {number}: {error}; nothing was proposed") from None
        self._source.seek(start)

    def run(self, client: Client) -> None:
        """Propose the lines until one fails, and wait for those that are under way."""
        with _progress(self._total) as show:
            try:
                for number, line in _numbered(self._source):
                    self._lines = number
                    while self._flying and not self._has_room(len(line)):
                        self._wait_for_one()
                    self._take_answers()
                    if self._error is not None or not self._propose(client, number, line):
                        break
                    show(self._acknowledged, number)
                while self._flying:
                    self._wait_for_one()
                    show(self._acknowledged, self._lines)
            except KeyboardInterrupt as error:
                self._take_answers()
                self._error = self._error or error
                self._failed_line = self._failed_line or (self._flying[0][0] if self._flying else None)

    def tell(self, as_json: bool) -> None:
        """Print how it ended.

        Raises:
            RaftplugError: it failed.
        """
        error, session = self._error, self.session
        why = "interrupted" if isinstance(error, KeyboardInterrupt) else output.clean(text_of(error)) if error else None
        if as_json:
            output.emit_json(
                {
                    "acknowledged": self._acknowledged,
                    "lines": self._lines,
                    "failed_line": self._failed_line,
                    "error": why,
                    "session": session,
                }
            )
        elif error is None:
            click.echo(f"{self._acknowledged} acknowledged, {self._lines} lines, session {output.clean(session)}")
        if error is None:
            return
        where = f"line {self._failed_line}: " if self._failed_line is not None else ""
        what = f"{where}{why}; {self._acknowledged} acknowledged"
        again = f"run it again with --session {session}: nothing is executed twice"
        if isinstance(error, TransitionFailed):
            # Its failure is its result for good: the line must not be tried again, and the others keep their numbers.
            raise RaftplugError(f"{what}; empty that line, but leave it there, and {again}")
        if isinstance(error, InvalidArgument):
            raise InvalidArgument(f"{what}; correct that line and {again}")
        if isinstance(error, KeyboardInterrupt):
            output.error(f"{what}; {again}")
            raise click.exceptions.Exit(INTERRUPTED)
        raise RaftplugError(f"{what}; {again}")

    # -- inside ----------------------------------------------------------------------------------------------------

    def _has_room(self, size: int) -> bool:
        return len(self._flying) < self._window and self._flying_bytes + size <= _WINDOW_BYTES

    def _propose(self, client: Client, number: int, line: bytes) -> bool:
        try:
            value = _parse(line)
            if value is not _BLANK:
                future = client.propose_async(value, timeout=self._timeout, sequence=number)
                self._flying.append((number, future, len(line)))
                self._flying_bytes += len(line)
        except RaftplugError as error:
            self._fail(number, error)
            return False
        return True

    def _take_answers(self) -> None:
        while self._flying and self._flying[0][1].done():
            self._wait_for_one()

    def _wait_for_one(self) -> None:
        number, future, size = self._flying[0]
        try:
            error = future.exception(self._timeout + _GRACE_S)
        except TimeoutError:
            error = OutcomeUnknown("no answer in time: the transition may have been executed, or may be yet")
        self._flying.popleft()
        self._flying_bytes -= size
        if error is None:
            self._acknowledged += 1
        else:
            self._fail(number, error)

    def _fail(self, number: int, error: BaseException) -> None:
        if self._failed_line is None or number < self._failed_line:
            self._failed_line, self._error = number, error


_BLANK: Final = object()


def _numbered(source: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Each line and its number, from 1.  A line that is too long comes cut, as what cannot be parsed."""
    number = 0
    while line := source.readline(_LINE_BYTES + 1):
        number += 1
        yield number, line
        if len(line) > _LINE_BYTES:
            return


def _parse(line: bytes) -> Any:
    if len(line) > _LINE_BYTES:
        raise TooLarge(f"it is longer than {_LINE_BYTES} bytes")
    return options.parse_json(line.rstrip(b"\r\n"), "it") if line.strip() else _BLANK


@contextlib.contextmanager
def _progress(total: int | None) -> Iterator[Callable[[int, int], None]]:
    """Shows how far it is, on a terminal; takes the number of acknowledged ones and of lines."""
    if not sys.stderr.isatty():
        yield lambda acknowledged, lines: None
        return
    shown_at = 0.0
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:

        def show_plainly(acknowledged: int, lines: int) -> None:
            nonlocal shown_at
            if time.monotonic() - shown_at > _SHOW_S:
                shown_at = time.monotonic()
                click.echo(f"\r{acknowledged} acknowledged", err=True, nl=False)

        yield show_plainly
        click.echo("\r", err=True, nl=False)
        return
    columns = (
        TextColumn("lines"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[acknowledged]} acknowledged"),
    )
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=total, acknowledged=0)

        def show(acknowledged: int, lines: int) -> None:
            nonlocal shown_at
            if time.monotonic() - shown_at > _SHOW_S:
                shown_at = time.monotonic()
                progress.update(task, completed=lines, acknowledged=acknowledged)

        yield show
