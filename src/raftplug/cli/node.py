"""`raftplug node`: one node in the foreground, until SIGTERM or SIGINT ends it cleanly or its disk ends it."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import queue
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from raftplug import threads
from raftplug.cli import options, output
from raftplug.errors import InvalidArgument, RaftplugError, Removed, StorageFailed, TransportError
from raftplug.foreign import described, text_of
from raftplug.frames import Id, check_group
from raftplug.version import VERSION

if TYPE_CHECKING:
    from raftplug.events import Event
    from raftplug.node import Node

_logger = logging.getLogger("raftplug")
_MOST_TOLD = 100  # A node of more groups would tell of nothing else.
_SIGNAL_S: Final = 0.25
_BACKOFF_S: Final = (0.2, 5.0)  # Between two looks for a Redis that is not there yet.
_END: Final = {"is_end": True}  # Of the log record that says why the process ends, where that is no line of its own.


@click.command("node")
@click.option("--id", "id", type=options.NODE_ID, required=True, metavar="ID", help="This node, such as n1.")
@click.option(
    "--peers",
    type=options.NODE_IDS,
    default=(),
    metavar="IDS",
    help="The first members, this node among them, such as n1,n2,n3. Counts only with --bootstrap; later the "
    "membership in the log wins.",
)
@options.redis
@click.option(
    "--group",
    "groups",
    multiple=True,
    default=("default",),
    show_default=True,
    metavar="NAME[=MACHINE]",
    help="A group that this node carries, and its state machine. Once for each group.",
)
@click.option(
    "--machine",
    metavar="NAME",
    help="The state machine of every --group that names none: see `raftplug plugins`.",
)
@click.option(
    "--data-dir",
    required=True,
    metavar="DIR",
    type=options.NamedPath(file_okay=False, path_type=Path),
    help="The directory of this node's durable state, of one process at a time.",
)
@click.option(
    "--bootstrap",
    is_flag=True,
    help="Found the cluster. Only on a new directory; the same --peers and --group on every node. In a used directory "
    "it founds the groups that are not in it yet.",
)
@click.option(
    "--join", is_flag=True, help="Join a cluster that is there. Only on a new directory; then `raftplug members add`."
)
@options.prefix
@options.key
@click.option(
    "--config",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Settings: TOML with a table [raftplug], such as election_timeout_ms = 1000. Each also from the environment, "
    "which wins: RAFTPLUG_ELECTION_TIMEOUT_MS=1000.",
)
@click.option(
    "--core",
    type=click.Choice(["auto", "cython", "python"]),
    help="Which core to run. Also from the environment: RAFTPLUG_CORE.",
)
@click.option("-v", "--verbose", is_flag=True, help="Log more: versions, settings, each frame that is refused.")
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="json: one object a line, with time, level, node and message.",
)
def command(
    id: Id,
    peers: tuple[Id, ...],
    redis: str,
    groups: tuple[str, ...],
    machine: str | None,
    data_dir: Path,
    bootstrap: bool,
    join: bool,
    prefix: str,
    key: options.KeyOption,
    config: Path | None,
    core: str | None,
    verbose: bool,
    log_format: str,
) -> None:
    """Run a node until it is told to stop.

    SIGTERM and SIGINT stop it cleanly; a leader hands over first. Everything that it acknowledged is in its data
    directory: start it again without --bootstrap. A Redis that is not there yet is waited for.

    The log goes to stderr, a line each: time (UTC), level, node, and what happened.

    \b
    Exit codes: 0 stopped by a signal, or removed from its groups; 1 it could not run, or not go on; 2 a wrong option.

    \b
    Example, the first time, and alike for n2 and n3:
      raftplug node --id n1 --peers n1,n2,n3 --redis redis://localhost:6379 \\
          --group accounts --machine kv --data-dir n1 --bootstrap

    \b
    Two groups on the same nodes, each with a log and a leader of its own:
      raftplug node --id n1 --peers n1,n2,n3 --redis redis://localhost:6379 \\
          --group accounts=kv --group names=kv --data-dir n1 --bootstrap
    """
    machines = _machines(groups, machine)
    # A SimpleQueue, since its put may be called from a signal handler at any moment.
    wishes: queue.SimpleQueue[None] = queue.SimpleQueue()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: wishes.put(None))
    _log_to_stderr(id, verbose, log_format == "json")
    with _logged_end() if log_format == "json" else contextlib.nullcontext():
        _run_node(
            id, wishes, machines, core=core, config=config, peers=peers, redis=redis, data_dir=data_dir,
            bootstrap=bootstrap, join=join, prefix=prefix, key=key,
        )  # fmt: skip


def _run_node(
    id: Id,
    wishes: queue.SimpleQueue[None],
    machines: dict[str, str],
    *,
    core: str | None,
    config: Path | None,
    **more: Any,
) -> None:
    """Run the node until there is a wish, or it stops by itself; `more` is what `Node` takes."""
    if core is not None:
        os.environ["RAFTPLUG_CORE"] = core  # The core is chosen when it is first imported: below.
    from raftplug import core as chosen
    from raftplug.node import Node
    from raftplug.plugins import default
    from raftplug.settings import Settings

    settings = Settings.load(config)
    _logger.debug("raftplug %s, Python %s, %s core: %s", VERSION, platform.python_version(), chosen.name, chosen.why)
    _logger.debug("settings: %s", ", ".join(f"{name} {value}" for name, value in asdict(settings).items()))
    plugins = default()
    for problem in plugins.problems():
        _logger.warning("%s", problem)
    node = Node(id, groups=machines, settings=settings, plugins=plugins, **more)
    node.subscribe(*_Teller.KINDS, callback=_Teller(len(machines)))
    if not _start(node, wishes):
        _logger.info("stopped")
        return
    leader = node.leader
    following = "no leader yet" if leader is None else "leading" if leader == id else f"following {leader}"
    carried = f"group {node.group}" if len(machines) == 1 else f"{len(machines)} groups"
    _logger.info("node of %s, %s core, %s", carried, chosen.name, following)
    threads.start("raftplug-ended", _watch, node, wishes)
    # Not without a limit: the handler of a signal that comes just before this blocks runs only once it returns.
    wished = False
    while not wished:
        with contextlib.suppress(queue.Empty):
            wishes.get(timeout=_SIGNAL_S)
            wished = True
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # A second Ctrl-C ends what hangs.
    node.stop()
    if isinstance(node.failure, Removed):
        _logger.info("stopped: %s", node.failure)  # As an operator wished: no error.
        return
    if node.failure is not None:
        raise _as_error(node.failure)
    _logger.info("stopped")


def _start(node: Node, wishes: queue.SimpleQueue[None]) -> bool:
    """Start the node as soon as its Redis can be used; returns False if there was a wish to stop before."""
    pause, told = _BACKOFF_S[0], ""
    while True:
        try:
            node.start()
        except TransportError as error:
            if not error.may_pass:
                raise
            if str(error) != told:
                told = str(error)
                _logger.warning("waits for its Redis: %s", told)
        else:
            return True
        try:
            wishes.get(timeout=pause)
        except queue.Empty:
            pause = min(2 * pause, _BACKOFF_S[1])
        else:
            return False


def _machines(groups: tuple[str, ...], machine: str | None) -> dict[str, str]:
    """The machine of each group, by the options."""
    machines: dict[str, str] = {}
    for given in groups:
        name, equals, own = given.partition("=")
        check_group(name)
        if name in machines:
            raise InvalidArgument(f"--group {name} stands twice")
        chosen = own if equals else machine
        if not chosen:
            raise InvalidArgument(f"group {name} has no state machine: write --group {name}=kv, or --machine kv")
        machines[name] = chosen
    return machines


def _watch(node: Node, wishes: queue.SimpleQueue[None]) -> None:
    node.join()
    wishes.put(None)


def _as_error(failure: BaseException) -> RaftplugError:
    """Why the node stopped, in one line."""
    text = f"the node stopped: {described(failure)}"
    return InvalidArgument(text) if isinstance(failure, InvalidArgument) else StorageFailed(text)


@contextlib.contextmanager
def _logged_end() -> Iterator[None]:
    """Log why the process ends, in place of the line that other commands print."""
    try:
        yield
    except RaftplugError as error:
        _logger.critical("%s", error, extra=_END)
        raise click.exceptions.Exit(2 if isinstance(error, InvalidArgument) else 1) from None


def _log_to_stderr(id: Id, verbose: bool, as_json: bool) -> None:
    """Log lines go to stderr, each in one line; what the command itself tells as its error is not told twice."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter((_JsonLine if as_json else _OneLine)(id))
    handler.addFilter(lambda record: record.levelno < logging.CRITICAL or hasattr(record, "is_end"))
    logging.getLogger().addHandler(handler)  # Of plugins, too.
    _logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    warnings.showwarning = lambda message, *_, **__: _logger.warning("%s", text_of(message))


class _OneLine(logging.Formatter):
    """Time, level, node and message, such as `2026-01-31T12:00:00.123Z INFO n1: leads in term 2`."""

    def __init__(self, id: Id) -> None:
        super().__init__()
        self._id = id

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """ISO 8601, UTC, milliseconds."""
        return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03}Z"

    def format(self, record: logging.LogRecord) -> str:
        return f"{self.formatTime(record)} {record.levelname} {self._id}: {output.clean(self._text(record))}"

    def _text(self, record: logging.LogRecord) -> str:
        text = output.with_options(record.getMessage().removeprefix(f"{self._id}: "))
        if record.exc_info is None:
            return text
        # What foreign code raised comes with a text that is safe to show: see `foreign.log_raised`.
        return f"{text}: {record.exc_text or self.formatException(record.exc_info)}"


class _JsonLine(_OneLine):
    """The same as an object."""

    def format(self, record: logging.LogRecord) -> str:
        line = {"time": self.formatTime(record), "level": record.levelname, "node": self._id}
        return output.as_json({**line, "logger": record.name, "message": output.clean(self._text(record))})


class _Teller:
    """Tells what happens in a line each; of which group, where there are several, and of a few only.

    Slow and diverged state machines are told by the log.

    Args:
        groups: how many the node carries.
    """

    KINDS = ("leader_changed", "configuration_changed", "snapshot", "peer")

    def __init__(self, groups: int) -> None:
        self._groups = groups

    def __call__(self, event: Event) -> None:
        details, where = event.details, ""
        if event.group is not None and self._groups > 1:
            where = f"group {event.group}: "
            if self._groups > _MOST_TOLD:
                return
        if event.kind == "leader_changed":
            leader = details["leader"]
            what = "no leader" if leader is None else "leads" if leader == event.node else f"follows {leader}"
            text = f"{what} in term {details['term']}"
        elif event.kind == "configuration_changed":
            names = ("voters", "outgoing voters", "learners", "voters to be", "witnesses")
            lists = zip(names, details["configuration"], strict=True)
            text = "; ".join(f"{name} {', '.join(map(str, ids))}" for name, ids in lists if ids) or "no members yet"
        elif event.kind == "snapshot":
            text = f"snapshot {details['kind']} at {details['index']}"
        elif event.kind == "peer":
            text = f"{details['peer']} is {'heard again' if details['reachable'] else 'silent'}"
        else:
            text = f"{details['count']} events were lost"
        _logger.info("%s%s", where, text)
