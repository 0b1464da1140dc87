"""`raftplug plugins`: what is installed, what it gives, what is wrong with it."""

from __future__ import annotations

import click

from raftplug.cli import output
from raftplug.plugins import default


@click.command("plugins")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(as_json: bool) -> None:
    """List the plugins, what each gives, and what is wrong with it."""
    from raftplug.cli import built_in_commands

    plugins = default()
    plugins.commands(built_in_commands())  # So that a command whose name is taken is among the errors.
    listing = plugins.listing()
    if as_json:
        output.emit_json({"plugins": listing})
        return
    columns = ("name", "version", "machines", "transports", "commands", "events")
    output.table(columns, [[plugin[column] for column in columns] for plugin in listing])
    for plugin in listing:
        for error in plugin["errors"]:
            click.echo(output.clean(f"{plugin['name']}: {error}"))
