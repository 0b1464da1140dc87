"""`raftplug snapshot`: nodes make a snapshot of their state now."""

from __future__ import annotations

import time
from typing import Any

import click

from raftplug.cli import options, output
from raftplug.errors import Unavailable
from raftplug.frames import Id


@click.command("snapshot")
@click.option(
    "--id",
    type=options.NODE_ID,
    metavar="ID",
    help="Only this one; without it, every node that answers and holds a state.",
)
@options.redis
@options.group
@options.prefix
@options.key
@options.timeout(300.0)
@options.as_json
def command(
    id: Id | None, redis: str, group: str, prefix: str, key: options.KeyOption, timeout: float, as_json: bool
) -> None:
    """Have nodes make a snapshot now.

    It is of all that they have applied, and their logs are compacted behind it. Nodes do so by themselves after
    every snapshot_entries entries; this is for the time before a backup of the disks, or before a new node joins.

    \b
    Example:
      raftplug snapshot --redis redis://localhost:6379 --group accounts
    """
    until = time.monotonic() + timeout
    made: list[dict[str, Any]] = []
    failed: list[str] = []
    with options.open_client(redis, group, prefix, key) as client:
        ids = [id]
        if id is None:  # A witness holds no state that there could be a snapshot of.
            rows = client.status()["nodes"]
            ids = [row["id"] for row in rows if row["role"] not in (None, "witness")]
        for each in ids:
            try:
                made.append(client.snapshot(each, timeout=max(0.1, until - time.monotonic())))
            except Unavailable as error:
                failed.append(f"{each}: {error}")
    if as_json:
        output.emit_json({"group": group, "snapshots": made})
    else:
        rows = [(each["id"], each["index"], each["term"], each["bytes"], each["digest"][:16]) for each in made]
        output.table(("id", "index", "term", "bytes", "digest"), rows)
    if failed:
        raise Unavailable("; ".join(failed))
