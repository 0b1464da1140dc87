"""The three node processes of level 3, and how they are told what to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

from raftplug.benchmarks.floor import server_cpu_s
from raftplug.errors import Unavailable

GROUP: Final = "bench"
_IDS: Final = ("n1", "n2", "n3")
_START_S: Final = 30.0
_STOP_S: Final = 10.0


class Members:
    """Three node processes of one cluster, on directories of their own.

    Raises:
        Unavailable: there was no leader in time, or a process ended.
    """

    def __init__(self, url: str, directory: Path, core: str) -> None:
        self.url, self.prefix = url, f"bench-{directory.name}"
        directory.mkdir()
        self._processes: dict[str, subprocess.Popen[str]] = {}
        try:
            for id in _IDS:
                options = {
                    "id": id,
                    "peers": _IDS,
                    "redis": url,
                    "group": GROUP,
                    "prefix": self.prefix,
                    "data_dir": str(directory / id),
                }
                with (directory.parent / f"{directory.name}-{id}.log").open("w") as log:
                    self._processes[id] = subprocess.Popen(
                        [sys.executable, "-m", "raftplug.benchmarks.member", json.dumps(options)],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=log,
                        text=True,
                        env={**os.environ, "RAFTPLUG_CORE": core},
                        start_new_session=True,
                    )
            self.leader = self._wait_for_leader()
        except BaseException:
            self.close()
            raise

    def tell(self, id: str, task: str, **arguments: Any) -> Any:
        """Have a member do a task, and return its answer."""
        process = self._processes[id]
        if process.stdin is None or process.stdout is None:
            raise Unavailable(f"{id} was closed")
        try:
            print(json.dumps({"task": task, **arguments}), file=process.stdin, flush=True)
            return json.loads(process.stdout.readline())
        except (OSError, ValueError):
            raise Unavailable(f"the node process {id} ended: exit code {process.wait()}") from None

    def cpu_s(self) -> float:
        """CPU seconds of the members and the server so far."""
        return sum(self.tell(id, "state")["cpu_s"] for id in _IDS) + server_cpu_s(self.url)

    def close(self) -> None:
        """End all members; each removes its directory."""
        for process in self._processes.values():
            if process.stdin is not None:
                process.stdin.close()
        for process in self._processes.values():
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()

    def __enter__(self) -> Members:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _wait_for_leader(self) -> str:
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            leaders = {self.tell(id, "state")["leader"] for id in _IDS}
            if len(leaders) == 1 and None not in leaders:
                return str(leaders.pop())
            time.sleep(0.02)
        raise Unavailable(f"the three nodes elected no leader within {_START_S:.0f} s")
