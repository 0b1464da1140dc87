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
@options.as_json
@click.argument("query")
def command(
    redis: str, group: str, prefix: str, key: options.KeyOption, timeout: float, as_json: bool, query: str
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
        value = client.read(request, timeout=timeout)
    output.emit_json({"result": value} if as_json else value)
