"""`raftplug members`: who is a member of a group, and how that is changed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from raftplug.cli import options, output
from raftplug.errors import InvalidArgument, Unavailable
from raftplug.frames import Id

_Command = TypeVar("_Command", bound=Callable[..., Any])
_LOOK_S: Final = 0.1


@click.group("members")
def command() -> None:
    """Show and change who is a member of a group.

    One change at a time, through joint consensus: writes go on meanwhile. A new node is started with
    `raftplug node … --join` and then added.

    \b
    Example:
      raftplug members list --redis redis://localhost:6379 --group accounts
      raftplug members replace n1 n4 --redis redis://localhost:6379 --group accounts
    """


def _asks(function: _Command) -> _Command:
    """The options of every subcommand."""
    for option in (options.as_json, options.timeout(30.0), options.key, options.prefix, options.group, options.redis):
        function = option(function)
    return function


def _id(name: str, metavar: str = "ID") -> Callable[[_Command], _Command]:
    return click.argument(name, type=options.NODE_ID, metavar=metavar)


@command.command("list")
@_asks
def list_(redis: str, group: str, prefix: str, key: options.KeyOption, timeout: float, as_json: bool) -> None:
    """Show the members as the leader knows them.

    \b
    Example:
      raftplug members list --redis redis://localhost:6379 --group accounts
    """
    with options.open_client(redis, group, prefix, key) as client:
        _show(client.members(timeout=timeout), as_json)


@command.command("add")
@_id("id")
@click.option("--learner", is_flag=True, help="Let it stay a learner: it holds everything, and has no vote.")
@click.option("--witness", is_flag=True, help="It votes and holds the log, keeps no state machine, and never leads.")
@_asks
def add(
    id: Id,
    learner: bool,
    witness: bool,
    redis: str,
    group: str,
    prefix: str,
    key: options.KeyOption,
    timeout: float,
    as_json: bool,
) -> None:
    """Add a node; it is a learner until it has caught up, and then becomes a voter by itself.

    \b
    Example:
      raftplug members add n4 --witness --redis redis://localhost:6379 --group accounts
    """
    if learner and witness:
        raise click.UsageError("a witness votes, and a learner does not: give --learner or --witness")
    with options.open_client(redis, group, prefix, key) as client:
        until = time.monotonic() + timeout
        action = "witness" if witness else "learn" if learner else "add"
        members = client.change_members(action, id, timeout=timeout)
        if not learner:
            members = client.wait_for_voter(id, max(0.0, until - time.monotonic()))
        _show(members, as_json)


@command.command("remove")
@_id("id")
@_asks
def remove(id: Id, redis: str, group: str, prefix: str, key: options.KeyOption, timeout: float, as_json: bool) -> None:
    """Remove a node; it stops by itself when it learns of it.

    \b
    Example:
      raftplug members remove n1 --redis redis://localhost:6379 --group accounts
    """
    with options.open_client(redis, group, prefix, key) as client:
        if id not in {member for members in client.members(timeout=timeout).values() for member in members}:
            raise InvalidArgument(f"{id} is no member of group {group}")
        _show(client.change_members("remove", id, timeout=timeout), as_json)


@command.command("promote")
@_id("id")
@_asks
def promote(id: Id, redis: str, group: str, prefix: str, key: options.KeyOption, timeout: float, as_json: bool) -> None:
    """Make a learner a voter once it has caught up.

    \b
    Example:
      raftplug members promote n4 --redis redis://localhost:6379 --group accounts
    """
    with options.open_client(redis, group, prefix, key) as client:
        until = time.monotonic() + timeout
        client.change_members("promote", id, timeout=timeout)
        _show(client.wait_for_voter(id, max(0.0, until - time.monotonic())), as_json)


@command.command("demote")
@_id("id")
@_asks
def demote(id: Id, redis: str, group: str, prefix: str, key: options.KeyOption, timeout: float, as_json: bool) -> None:
    """Make a voter a learner.

    \b
    Example:
      raftplug members demote n1 --redis redis://localhost:6379 --group accounts
    """
    with options.open_client(redis, group, prefix, key) as client:
        _show(client.change_members("demote", id, timeout=timeout), as_json)


@command.command("replace")
@_id("old", "OLD")
@_id("new", "NEW")
@_asks
def replace(
    old: Id, new: Id, redis: str, group: str, prefix: str, key: options.KeyOption, timeout: float, as_json: bool
) -> None:
    """Add NEW, wait until it votes, then remove OLD: there is never a voter less.

    \b
    Example:
      raftplug members replace n1 n4 --redis redis://localhost:6379 --group accounts
    """
    with options.open_client(redis, group, prefix, key) as client:
        _show(client.change_members("replace", old, new, timeout=timeout), as_json)


@command.command("transfer")
@click.argument("id", type=options.NODE_ID, metavar="[ID]", required=False)
@_asks
def transfer(
    id: Id | None, redis: str, group: str, prefix: str, key: options.KeyOption, timeout: float, as_json: bool
) -> None:
    """Have the leader hand over to ID, or to whom it thinks best.

    \b
    Example:
      raftplug members transfer n2 --redis redis://localhost:6379 --group accounts
    """
    with options.open_client(redis, group, prefix, key) as client:
        until = time.monotonic() + timeout
        target = client.transfer_leadership(id, timeout=timeout)
        while (leader := client.status(timeout=3.0)["leader"]) != target:
            if time.monotonic() > until:
                raise Unavailable(f"{target} did not take over in time: {'nobody' if leader is None else leader} leads")
            time.sleep(_LOOK_S)
        if as_json:
            output.emit_json({"leader": target})
        else:
            click.echo(f"{target} leads")


_WHAT_IS_LOST: Final = """\
This makes {id} the only voter of every group in {data_dir}, from what lies there:
- What only the lost nodes had is lost, even if it was acknowledged.
- What this node had, and nobody had acknowledged, comes true.
- The other old nodes must never run again: start new ones on new directories, with --join, and add them.
Take the directory of the node whose log is longest: `raftplug status`, or the logs of the nodes, may tell.
"""


@command.command("recover")
@click.option("--id", type=options.NODE_ID, required=True, metavar="ID", help="The node whose directory it is.")
@click.option(
    "--data-dir",
    type=options.NamedPath(exists=True, file_okay=False, path_type=Path),
    required=True,
    metavar="DIR",
    help="Its data directory; the node must not run.",
)
@click.option("--unsafe", is_flag=True, help="Do it, though acknowledged transitions may be lost.")
@options.as_json
def recover(id: Id, data_dir: Path, unsafe: bool, as_json: bool) -> None:
    """Go on from one data directory after most nodes were lost for good. Offline.

    \b
    Example:
      raftplug members recover --id n1 --data-dir n1 --unsafe
    """
    click.echo(_WHAT_IS_LOST.format(id=id, data_dir=data_dir), err=True)
    if not unsafe:
        raise click.UsageError("nothing was changed: give --unsafe if that is what you want")
    from raftplug.recovery import recover

    groups = recover(data_dir, id)
    if as_json:
        output.emit_json({"node": id, "groups": groups})
    else:
        rows = [
            (each["group"], each["last"], each["term"], ", ".join(map(str, each["voters_before"]))) for each in groups
        ]
        output.table(("group", "last", "term", "voters before"), rows)
        click.echo(f"{id} is the only voter now: start it as before, without --bootstrap")


def _show(members: dict[str, list[Any]], as_json: bool) -> None:
    if as_json:
        output.emit_json(members)
        return
    witnesses = members["witnesses"]
    rows = [(id, "witness" if id in witnesses else "voter") for id in members["voters"]]
    rows += [(id, "voter that leaves") for id in members["outgoing"] if id not in members["voters"]]
    soon = {id: "learner, soon a witness" if id in witnesses else "learner, soon a voter" for id in members["joining"]}
    rows += [(id, soon.get(id, "learner")) for id in members["learners"]]
    output.table(("id", "is"), rows)
