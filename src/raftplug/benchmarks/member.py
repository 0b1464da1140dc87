"""A node process of level 3, told what to do by lines of JSON on stdin, which it answers on stdout.

It proposes in its own process, as a program with a node in it does.  When stdin ends, whoever started it is gone: it
stops, and removes its directory.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import time
from collections import deque
from pathlib import Path
from time import perf_counter
from typing import Any

from raftplug import plain
from raftplug.core import Future
from raftplug.node import Node
from raftplug.state_machine import Snapshot, StateMachine

_PATIENCE_S = 10.0


class Counter(StateMachine):
    """Counts what it is given."""

    def __init__(self) -> None:
        self.value = 0

    def apply_transition(self, transition: Any) -> int:
        self.value += 1
        return self.value

    def create_snapshot(self, last_included_index: int, last_included_term: int) -> Snapshot:
        return Snapshot(last_included_index, last_included_term, self.value)

    def set_snapshot(self, snapshot: Snapshot) -> None:
        self.value = snapshot.data


def transition_of(payload_bytes: int) -> bytes:
    """A transition whose encoding has so many bytes; at least 3."""
    size = payload_bytes - 2
    while len(plain.encode(bytes(size))) > payload_bytes:
        size -= 1
    return bytes(size)


class _Tasks:
    def __init__(self, node: Node) -> None:
        self._node = node

    def state(self) -> dict[str, Any]:
        return {"leader": self._node.leader, "cpu_s": time.process_time()}

    def loop(self, count: int, payload_bytes: int) -> dict[str, Any]:
        """One client, which waits for each answer."""
        transition, propose, elapsed = transition_of(payload_bytes), self._node.propose, []
        for _ in range(count):
            begin = perf_counter()
            propose(transition).result(_PATIENCE_S)
            elapsed.append(perf_counter() - begin)
        return {"elapsed": elapsed, "led": self._node.is_leader}

    def window(self, window: int, seconds: float, payload_bytes: int) -> dict[str, Any]:
        """Keep `window` transitions outstanding for so long; count those that were answered."""
        transition, propose = transition_of(payload_bytes), self._node.propose
        waiting: deque[Future] = deque()
        count = 0
        begin = perf_counter()
        while (now := perf_counter()) < begin + seconds:
            for _ in range(window - len(waiting)):
                waiting.append(propose(transition, timeout=_PATIENCE_S))
            waiting[0].result(_PATIENCE_S)
            while waiting and waiting[0].done():
                waiting.popleft().result()
                count += 1
        result = {"per_s": count / (now - begin), "count": count + len(waiting)}
        for future in waiting:
            future.result(_PATIENCE_S)
        return {**result, "led": self._node.is_leader}


def main() -> None:
    options = json.loads(sys.argv[1])
    directory = Path(options["data_dir"])
    try:
        with Node(state_machine=Counter(), bootstrap=True, **options) as node:
            tasks = _Tasks(node)
            for line in sys.stdin:
                task = json.loads(line)
                print(json.dumps(getattr(tasks, task.pop("task"))(**task)), flush=True)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        with contextlib.suppress(OSError):
            directory.parent.rmdir()  # Once the last of us is gone.


if __name__ == "__main__":
    main()
