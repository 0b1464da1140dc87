"""A PySyncObj process that is told what to do by lines of JSON on stdin, like `raftplug.benchmarks.member`.

PySyncObj keeps its log in memory and never syncs it: it promises less than raftplug, and is asked for less.
"""

from __future__ import annotations

import json
import queue
import sys
import threading
import time
from collections import deque
from time import perf_counter
from typing import Any

from pysyncobj import SyncObj, SyncObjConf, replicated

_TICK_S = 0.001
_PATIENCE_S = 30.0
# One at a time is fastest when each is sent at once, many are when they are sent together.  By default PySyncObj does
# that every 100 ms; of 0.5 to 10 ms, the shortest gave most at 64, and as much as 1 ms at 1,024.
_BATCH_S = 0.0005
_IDLE_S = 0.1


class Counter(SyncObj):  # type: ignore[misc]
    """Counts what it is given, like the machine of our own nodes."""

    def __init__(self, own: str, others: list[str]) -> None:
        self.options = SyncObjConf(autoTick=False, appendEntriesUseBatch=False)  # PySyncObj reads them at every tick.
        super().__init__(own, others, self.options)
        self.value = 0

    @replicated  # type: ignore[untyped-decorator]
    def add(self, transition: bytes) -> int:
        self.value += 1
        return self.value


class Tasks:
    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._done = 0
        self.pause_s = _TICK_S

    def pace(self, pause_s: float, window: int) -> dict[str, Any]:
        """How long a tick may wait while there is no task, and the best configuration for `window` outstanding.

        Others measure while the window is 0: nothing is sent then but heartbeats.
        """
        self.pause_s = pause_s
        self._counter.options.appendEntriesUseBatch = window > 1
        self._counter.options.appendEntriesPeriod = _BATCH_S if window > 1 else _IDLE_S
        return {}

    def state(self) -> dict[str, Any]:
        leader = self._counter._getLeader()
        return {"leader": None if leader is None else str(leader), "cpu_s": time.process_time()}

    def loop(self, count: int, payload_bytes: int) -> dict[str, Any]:
        elapsed, payload = [], bytes(payload_bytes)
        for _ in range(count):
            begin, target = perf_counter(), self._done + 1
            self._counter.add(payload, callback=self._answered)
            self._tick_until(target)
            elapsed.append(perf_counter() - begin)
        return {"elapsed": elapsed, "led": self._counter._isLeader()}

    def window(self, window: int, seconds: float, payload_bytes: int) -> dict[str, Any]:
        payload = bytes(payload_bytes)
        self._counter.add(payload, callback=self._answered)
        self._tick_until(self._done + 1)  # Untimed: the first batch still waits for the time that was set before.
        before, proposed = self._done, 0
        begin = perf_counter()
        while (now := perf_counter()) < begin + seconds or self._done == before:
            while proposed - (self._done - before) < window:
                self._counter.add(payload, callback=self._answered)
                proposed += 1
            self._counter.doTick(_TICK_S)
        result = {"per_s": (self._done - before) / (now - begin), "count": proposed}
        self._tick_until(before + proposed)
        return {**result, "led": self._counter._isLeader()}

    def _answered(self, result: Any, error: Any) -> None:
        if error:
            raise RuntimeError(f"PySyncObj refused: {error}")
        self._done += 1

    def _tick_until(self, target: int) -> None:
        deadline = perf_counter() + _PATIENCE_S
        while self._done < target:
            self._counter.doTick(_TICK_S)
            if perf_counter() > deadline:
                raise TimeoutError("PySyncObj answered nothing")


def main() -> None:
    options = json.loads(sys.argv[1])
    counter = Counter(options["own"], options["others"])
    tasks, lines = Tasks(counter), queue.SimpleQueue[str | None]()

    def read() -> None:
        for line in sys.stdin:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    waiting: deque[str | None] = deque()
    while True:
        counter.doTick(tasks.pause_s)
        while not lines.empty():
            waiting.append(lines.get())
        if waiting:
            line = waiting.popleft()
            if line is None:
                break
            task = json.loads(line)
            print(json.dumps(getattr(tasks, task.pop("task"))(**task)), flush=True)
    counter.destroy()


if __name__ == "__main__":
    main()
