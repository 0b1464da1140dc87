"""A rolling restart under load: each of three nodes in turn is stopped by SIGTERM and started again.

Three `raftplug node` processes with synced directories over one embedded Valkey; some threads write through one
`raftplug.Client` all the while, each its next transition once the last is acknowledged.

    python benchmarks/rolling.py --rounds 10 --json FILE

What it prints, over all restarts:

    restarts          how many
    gap_ms            the longest time in which no write was acknowledged, from a SIGTERM until the node is back:
                      median, 99th percentile and largest
    slowest_ms        the same of the slowest single write
    writes_per_s      acknowledged, with the restarts
    errors            writes that failed at the client
    terms             by how much the term rose: one for each leader that handed over, if none was missed
"""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress

from raftplug import Client
from raftplug.benchmarks.record import machine
from raftplug.cli.ycsb import percentile
from raftplug.embedded import EmbeddedServer
from raftplug.errors import RaftplugError

IDS = ("n1", "n2", "n3")
PATIENCE_S = 60.0


class Load:
    """Writers, and when each of their writes began and was acknowledged."""

    def __init__(self, client: Client, writers: int) -> None:
        self.writes: list[tuple[float, float]] = []
        self.errors: list[str] = []
        self._client = client
        self._going = True
        self._threads = [threading.Thread(target=self._write, args=(number,)) for number in range(writers)]
        for thread in self._threads:
            thread.start()

    def _write(self, writer: int) -> None:
        while self._going:
            began = time.monotonic()
            try:
                self._client.propose({"op": "put", "key": f"writer{writer}", "value": began}, timeout=PATIENCE_S)
            except RaftplugError as error:
                self.errors.append(f"{type(error).__name__}: {error}")
                continue
            self.writes.append((began, time.monotonic()))

    def end(self) -> None:
        self._going = False
        for thread in self._threads:
            thread.join()

    def longest_ms(self, since: float, until: float) -> tuple[float, float]:
        """The longest gap between two acknowledgements in that time, and the slowest write."""
        met = [(began, ended) for began, ended in self.writes if ended >= since and began <= until]
        times = sorted([since, *(ended for _, ended in met)])
        gap = max(later - earlier for earlier, later in itertools.pairwise(times))
        return 1000 * gap, 1000 * max(ended - began for began, ended in met)


def start(id: str, directory: Path, url: str, *more: str) -> subprocess.Popen[bytes]:
    """A node, as an operator starts it."""
    options = ["--id", id, "--machine", "kv", "--group", "g", "--redis", url, "--data-dir", str(directory / id), *more]
    with (directory / f"{id}.log").open("ab") as log:
        return subprocess.Popen([sys.executable, "-m", "raftplug", "node", *options], stdout=log, stderr=log)


def wait_for(client: Client, id: str | None = None) -> int:
    """Wait until there is a leader, and until node `id` says how far it is behind that.

    Returns: the term.
    """
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        with contextlib.suppress(RaftplugError):
            status = client.status()
            lags = {row["id"]: row["lag"] for row in status["nodes"] if row["role"] is not None}
            if status["leader"] is not None and (id is None or lags.get(id) is not None):
                return int(status["term"])
        time.sleep(0.05)
    raise click.ClickException(f"{id or 'a leader'} is not there within {PATIENCE_S:.0f} s")


def spread(values: list[float]) -> dict[str, float]:
    """Median, 99th percentile (of fewer than 100 values the largest), and the largest; there must be one."""
    p99 = percentile(sorted(values), 99)
    assert p99 is not None
    return {"median": round(statistics.median(values), 1), "p99": round(p99, 1), "largest": round(max(values), 1)}


def measure(rounds: int, writers: int, directory: Path) -> dict[str, Any]:
    """The figures of so many times three restarts."""
    nodes: dict[str, subprocess.Popen[bytes]] = {}
    restarts: list[tuple[float, float]] = []
    with EmbeddedServer() as server, Client(redis=server.url, group="g") as client:
        try:
            for id in IDS:
                nodes[id] = start(id, directory, server.url, "--peers", ",".join(IDS), "--bootstrap")
            term = wait_for(client)
            load = Load(client, writers)
            try:
                time.sleep(2)
                began = time.monotonic()
                with Progress(console=Console(stderr=True), transient=True) as progress:
                    for id in progress.track(list(IDS) * rounds, description="restarts"):
                        since = time.monotonic()
                        nodes[id].send_signal(signal.SIGTERM)
                        if nodes[id].wait(PATIENCE_S) != 0:
                            raise click.ClickException(f"{id} ended with {nodes[id].returncode}")
                        nodes[id] = start(id, directory, server.url)
                        wait_for(client, id)
                        restarts.append((since, time.monotonic()))
                        time.sleep(0.5)
                elapsed = time.monotonic() - began
                terms = wait_for(client) - term
            finally:
                load.end()
        finally:
            for process in nodes.values():
                process.kill()
                process.wait()
    longest = [load.longest_ms(*restart) for restart in restarts]
    return {
        "restarts": len(restarts),
        "writers": writers,
        "gap_ms": spread([gap for gap, _ in longest]),
        "slowest_ms": spread([slowest for _, slowest in longest]),
        "writes_per_s": round(sum(began <= end for _, end in load.writes) / elapsed),
        "errors": load.errors,
        "terms": terms,
    }


@click.command()
@click.option("--rounds", type=click.IntRange(1), default=10, show_default=True, help="Each node so many times.")
@click.option("--writers", type=click.IntRange(1), default=4, show_default=True)
@click.option("--json", "file", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures.")
def main(rounds: int, writers: int, file: Path | None) -> None:
    """Measure what a rolling restart costs."""
    directory = Path(tempfile.mkdtemp(prefix="raftplug-rolling-"))
    try:
        figures = measure(rounds, writers, directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    click.echo(json.dumps(figures))
    if file is not None:
        file.write_text(json.dumps({"machine": machine(), "rolling": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
