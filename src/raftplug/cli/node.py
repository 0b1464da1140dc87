"""`raftplug node`: one node in the foreground, until SIGTERM or SIGINT ends it cleanly or its disk ends it."""

from __future__ import annotations

import logging
import os
import queue
import signal
import sys
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from raftplug.cli import options, output
from raftplug.errors import InvalidArgument, RaftplugError, Removed, StorageFailed
from raftplug.hooks import hookimpl

if TYPE_CHECKING:
    from raftplug.node import Node

_logger = logging.getLogger("raftplug")


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
@options.group
@click.option("--machine", required=True, metavar="NAME", help="The state machine: see `raftplug plugins`.")
@click.option(
    "--data-dir",
    required=True,
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="The directory of this node's durable state, of one process at a time.",
)
@click.option(
    "--bootstrap", is_flag=True, help="Found the cluster. Only on a new directory; the same --peers on every node."
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
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
def command(
    id: str,
    peers: tuple[str, ...],
    redis: str,
    group: str,
    machine: str,
    data_dir: Path,
    bootstrap: bool,
    join: bool,
    prefix: str,
    key: options.KeyOption,
    config: Path | None,
    core: str | None,
    verbose: bool,
) -> None:
    """Run a node until it is told to stop.

    SIGTERM and SIGINT stop it cleanly; a leader hands over first. Everything that it acknowledged is in its data
    directory: start it again without --bootstrap.

    \b
    Example, the first time, and alike for n2 and n3:
      raftplug node --id n1 --peers n1,n2,n3 --redis redis://localhost:6379 \\
          --group accounts --machine kv --data-dir n1 --bootstrap
    """
    # A SimpleQueue, since its put may be called from a signal handler at any moment.
    wishes: queue.SimpleQueue[None] = queue.SimpleQueue()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: wishes.put(None))
    _log_to_stderr(id, verbose)
    if core is not None:
        os.environ["RAFTPLUG_CORE"] = core  # The core is chosen when it is first imported: below.
    from raftplug import core as chosen
    from raftplug.node import Node
    from raftplug.plugins import default
    from raftplug.settings import Settings

    settings = Settings.load(config)
    plugins = default()
    for problem in plugins.problems():
        _logger.warning("%s", problem)
    node = Node(
        id,
        peers=peers,
        redis=redis,
        data_dir=data_dir,
        machine=machine,
        group=group,
        bootstrap=bootstrap,
        join=join,
        prefix=prefix,
        settings=settings,
        key=key,
        plugins=plugins,
    )
    plugins.register(_Observer(), name="raftplug node")
    node.start()
    leader = node.leader
    following = "no leader yet" if leader is None else "leading" if leader == id else f"following {leader}"
    output.note(f"{id}: node of group {group}, {chosen.name} core, {following}")
    threading.Thread(target=_watch, args=(node, wishes), daemon=True).start()
    wishes.get()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # A second Ctrl-C ends what hangs.
    node.stop()
    if isinstance(node.failure, Removed):
        output.note(f"{id}: stopped: {node.failure}")  # As an operator wished: no error.
        return
    if node.failure is not None:
        raise _as_error(node.failure)
    output.note(f"{id}: stopped")


def _watch(node: Node, wishes: queue.SimpleQueue[None]) -> None:
    node.join()
    wishes.put(None)


def _as_error(failure: BaseException) -> RaftplugError:
    """Why the node stopped, in one line."""
    what = str(failure) if isinstance(failure, RaftplugError) else f"{type(failure).__name__}: {failure}"
    text = f"the node stopped: {what}"
    return InvalidArgument(text) if isinstance(failure, InvalidArgument) else StorageFailed(text)


def _log_to_stderr(id: str, verbose: bool) -> None:
    """Log lines go to stderr, each in one line; what the command itself tells as its error is not told twice."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine(f"{id}: %(levelname)s %(message)s"))
    handler.addFilter(lambda record: record.levelno < logging.CRITICAL)
    _logger.addHandler(handler)
    _logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    warnings.showwarning = lambda message, *_, **__: _logger.warning("%s", message)


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return output.clean(super().format(record))


class _Observer:
    """Tells every change of leader in a line."""

    @hookimpl
    def raftplug_leader_changed(self, group: str, node: Any, leader: Any, term: int) -> None:
        text = "no leader" if leader is None else "leads" if leader == node else f"follows {leader}"
        output.note(f"{node}: {text} in term {term}")
