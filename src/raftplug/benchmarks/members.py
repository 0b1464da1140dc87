"""The three node processes of level 3, and how they are told what to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final, Self

from raftplug.benchmarks.floor import server_cpu_s
from raftplug.errors import Unavailable

GROUP: Final = "bench"
_IDS: Final = ("n1", "n2", "n3")
_START_S: Final = 30.0
_STOP_S: Final = 10.0
_TRIES: Final = 3


class Processes:
    """Processes that are told what to do by lines of JSON, and elect a leader among themselves.

    Args:
        commands: id -> the command that runs it.
        environment: what they get besides our own.

    Raises:
        Unavailable: there was no leader in time, or a process ended.
    """

    def __init__(self, commands: Mapping[str, Sequence[str]], environment: Mapping[str, str]) -> None:
        self._errors: dict[str, IO[bytes]] = {}  # Files without a name: nothing to leave behind.
        self._processes: dict[str, subprocess.Popen[str]] = {}
        self.ids = list(commands)
        try:
            for id, command in commands.items():
                self._errors[id] = tempfile.TemporaryFile()  # noqa: SIM115 (`close` closes it)
                self._processes[id] = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self._errors[id],
                    text=True,
                    env={**os.environ, **environment},
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
            code = process.wait()
            self._errors[id].seek(0)
            words = self._errors[id].read().decode(errors="replace").splitlines()[-1:]
            raise Unavailable(f"the node process {id} ended with {code}: {' '.join(words)}") from None

    def lead(self, task: str, **arguments: Any) -> Any:
        """Have the leader do a task; again, when it did not lead to the end."""
        for _ in range(_TRIES):
            told = self.tell(self.leader, task, **arguments)
            if told["led"]:
                return told
            self.leader = self._wait_for_leader()
        raise Unavailable(f"the leader changed {_TRIES} times under the load")

    def close(self) -> None:
        """End them all, by the end of their stdin."""
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
        for file in self._errors.values():
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _wait_for_leader(self) -> str:
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            leaders = {self.tell(id, "state")["leader"] for id in self._processes}
            if len(leaders) == 1 and None not in leaders:
                return str(leaders.pop())
            time.sleep(0.02)
        raise Unavailable(f"the processes elected no leader within {_START_S:.0f} s")


class Members(Processes):
    """Three node processes of one cluster.

    Each has a directory of its own under `directory`, an empty one; it removes its own, and the last one that too.
    """

    def __init__(self, url: str, directory: Path, core: str) -> None:
        self.url, self.prefix = url, f"bench-{directory.name}"
        commands = {}
        for id in _IDS:
            options = {
                "id": id,
                "peers": _IDS,
                "redis": url,
                "group": GROUP,
                "prefix": self.prefix,
                "data_dir": str(directory / id),
            }
            commands[id] = [sys.executable, "-m", "raftplug.benchmarks.member", json.dumps(options)]
        super().__init__(commands, {"RAFTPLUG_CORE": core})

    def cpu_s(self) -> float:
        """CPU seconds of the members and the server so far."""
        return float(sum(self.tell(id, "state")["cpu_s"] for id in _IDS)) + server_cpu_s(self.url)
