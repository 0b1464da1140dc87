"""`raftplug read`: ask a group's state machine, linearizably."""

from __future__ import annotations

import click

from raftplug.cli import options, output


@click.command("read")
@options.redis
@options.group
@options.prefix
@options.key
@options.timeout(10.0)
@click.option(
    "--consistency",
    type=click.Choice(["linearizable", "lease", "stale"]),
    default="linearizable",
    show_default=True,
    help="lease: the leader answers without asking the others (needs RAFTPLUG_LEASE_MS on every node, and trusts "
    "clocks); stale: what some node has applied, however old.",
)
@options.as_json
@click.argument("query")
def command(
    redis: str,
    group: str,
    prefix: str,
    key: options.KeyOption,
    timeout: float,
    consistency: str,
    as_json: bool,
    query: str,
) -> None:
    """Ask a state machine and print the answer.

    QUERY is JSON, and what it may be is the machine's affair; the answer is printed as JSON, too, and shows everything
    that was acknowledged before. JSON has no bytes: in an answer they are {"base64": "…"}. With --json the answer is
    wrapped: {"result": …}.

    \b
    Example:
      raftplug read --redis redis://localhost:6379 --group accounts '{"op":"get","key":"alice"}'
    """
    request = options.parse_json(query, "the query")
    with options.open_client(redis, group, prefix, key) as client:
        value = client.read(request, timeout=timeout, consistency=consistency)
    output.emit_json({"result": value} if as_json else value)
