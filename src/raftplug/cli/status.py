"""`raftplug status`: who leads, how many more failures the group survives, and a row a node."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import click

from raftplug.cli import options, output
from raftplug.errors import RaftplugError
from raftplug.status import COLUMNS, has_quorum, own_problems

if TYPE_CHECKING:
    from raftplug.client import Client

_COLUMNS: Final = (*COLUMNS, "problems")
_WATCH_S: Final = 1.0


@click.command("status")
@options.redis
@options.group
@options.prefix
@options.key
@options.timeout(3.0)  # So that the whole command takes less than five.
@options.as_json
@click.option("--watch", is_flag=True, help="Show it again every second, until Ctrl-C.")
def command(
    redis: str, group: str, prefix: str, key: options.KeyOption, timeout: float, as_json: bool, watch: bool
) -> None:
    """Show leader, quorum and nodes of a group.

    It works without a leader, too. A value that was not measured is a dash, and null with --json. The columns:
    last, commit and applied are indexes of the log; lag is how many entries a node is behind the leader; contact_ms is
    how long ago it was last heard of: of a follower, how long ago it heard the leader; of a node that does not answer
    here, how long ago another node heard it.

    A node that does not answer is asked again until --timeout, unless no other node hears it, either. Its row says
    "no answer here, but n1 hears it" (it runs, and this client does not hear it), "down" (nor does any node that
    answers), or "no answer" (nothing is known).

    \b
    Exit codes: 0 a quorum of the voters is up; 1 it is not, or no node was found; 2 a wrong option.

    \b
    Example:
      raftplug status --redis redis://localhost:6379 --group accounts
    """
    with options.open_client(redis, group, prefix, key) as client:
        if watch:
            _watch(client, timeout, as_json)
        status = client.status(timeout=timeout)
        _show(status, as_json)
    if not has_quorum(status):
        raise click.exceptions.Exit(1)


def _watch(client: Client, timeout: float, as_json: bool) -> None:
    while True:
        try:
            status = client.status(timeout=timeout)
        except RaftplugError as error:
            output.error(output.with_options(str(error)))  # It may come back: that is what one watches for.
        else:
            if not as_json:
                click.clear()
            _show(status, as_json)
        time.sleep(_WATCH_S)


def _show(status: dict[str, Any], as_json: bool) -> None:
    if as_json:
        output.emit_json(status)
        return
    click.echo(output.clean(headline(status)))
    rows = [{**node, "problems": list(map(output.with_options, node["problems"]))} for node in status["nodes"]]
    output.table(_COLUMNS, [[row[column] for column in _COLUMNS] for row in rows])
    for node in status["nodes"]:
        for note in node.get("notes", []):
            click.echo(output.clean(f"{node['id']}: {note}"))


def headline(status: dict[str, Any]) -> str:
    """The first line: leader, term, quorum, and how many more failures the group survives; or what it waits for.

    Args:
        status: as `Client.status` returns it.
    """
    needed, reachable = status["quorum"]["needed"], status["quorum"]["reachable"]
    up = f"{reachable} of {len(status['nodes'])} up"
    ours = own_problems(status)
    if needed is None and ours:
        return f"group {status['group']}: not known, since this client hears no node: {ours[0]}"
    if needed is None:
        return f"group {status['group']}: waiting for quorum: {up}"
    if reachable < needed:
        return f"group {status['group']}: waiting for quorum: {up}, {needed} needed"
    if status["leader"] is None:
        return f"group {status['group']}: no leader: an election is under way, {up}"
    more = reachable - needed
    survives = "survives no more failure" if not more else f"survives {more} more failure{'s' if more > 1 else ''}"
    return (
        f"group {status['group']}: leader {status['leader']}, term {status['term']}, quorum {needed}, {up}, {survives}"
    )
