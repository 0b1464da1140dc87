"""`raftplug restore`: the data directory of a node of a new cluster, from a backup.  Offline."""

from __future__ import annotations

from pathlib import Path

import click

from raftplug.cli import options, output
from raftplug.frames import Id


@click.command("restore")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE")
@click.option("--id", type=options.NODE_ID, required=True, metavar="ID", help="The node, such as n1.")
@click.option(
    "--peers",
    type=options.NODE_IDS,
    required=True,
    metavar="IDS",
    help="The members of the new cluster, this node among them, such as n1,n2,n3: the same for each.",
)
@click.option(
    "--data-dir",
    type=options.NamedPath(file_okay=False, path_type=Path),
    required=True,
    metavar="DIR",
    help="Its data directory: not there yet, or empty.",
)
@click.option("--group", type=options.GROUP, metavar="NAME", help="Refuse a file that is of another group.")
@options.as_json
def command(id: Id, peers: tuple[Id, ...], file: Path, data_dir: Path, group: str | None, as_json: bool) -> None:
    """Make a node's data directory from such a file.

    FILE is what `raftplug backup` wrote. Do so for every node of the new cluster, from the same file and with the
    same --peers; then start them without --bootstrap. They are another cluster than the one that the file came
    from: stop that one first, or use another Redis or --prefix, since clients could not tell the two apart.

    The new cluster has an id of its own, and a client stays with the cluster that it found first: start every client
    anew that ran before the restore, or it gets nothing but errors.

    \b
    Example, and alike for n2 and n3:
      raftplug restore accounts.backup --id n1 --peers n1,n2,n3 --data-dir n1
      raftplug node --id n1 --redis redis://localhost:6379 --group accounts --machine kv --data-dir n1
    """
    from raftplug.backup import Backup, restore
    from raftplug.settings import Settings

    with output.progress(f"restore of {id}") as progress:
        restored = restore(file, data_dir, id=id, peers=peers, group=group, settings=Settings.load(), progress=progress)
    with Backup(file) as backup:
        told = backup.describe()
    if as_json:
        output.emit_json({"node": id, "data_dir": str(data_dir), "cluster": restored.cluster.hex(), **told})
    else:
        click.echo(
            f"{data_dir}: node {id} of {', '.join(map(str, peers))}, group {told['group']} up to entry {told['index']}"
        )
        click.echo(
            f"start it without --bootstrap: raftplug node --id {id} --group {told['group']} --data-dir {data_dir} …"
        )
