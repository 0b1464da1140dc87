"""`raftplug backup`: a whole group in one file."""

from __future__ import annotations

from pathlib import Path

import click

from raftplug.cli import options, output
from raftplug.frames import Id


@click.command("backup")
@click.argument("file", type=options.NamedPath(dir_okay=False, path_type=Path), metavar="FILE")
@click.option("--id", type=options.NODE_ID, metavar="ID", help="The node to take it from; without it, the leader.")
@click.option("--force", is_flag=True, help="Replace FILE if it is there.")
@options.redis
@options.group
@options.prefix
@options.key
@options.timeout(600.0)
@options.as_json
def command(
    file: Path,
    id: Id | None,
    force: bool,
    redis: str,
    group: str,
    prefix: str,
    key: options.KeyOption,
    timeout: float,
    as_json: bool,
) -> None:
    """Write the whole of a group into a file.

    That is its state, its sessions, and who its members were. It holds everything that was acknowledged before, and
    is verified by its digest before it gets its name. Writes go on meanwhile. `raftplug restore` makes a new
    cluster of it.

    \b
    Example:
      raftplug backup accounts.backup --redis redis://localhost:6379 --group accounts
    """
    with options.open_client(redis, group, prefix, key) as client, output.progress(f"backup of {group}") as progress:
        done = client.backup(file, id=id, overwrite=force, timeout=timeout, progress=progress)
    if as_json:
        output.emit_json(done)
    else:
        click.echo(f"{file}: group {group} up to entry {done['index']}, {done['bytes']:,} bytes, {done['digest'][:16]}")
