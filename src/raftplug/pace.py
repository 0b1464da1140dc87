"""How fast a state machine is: whether it belongs in the event loop, or in a thread of its own.

What it computes is judged by the CPU time of its thread, so that a busy host, or another thread that has the
interpreter, makes no machine slow.  What it waits for (a disk, a lock, `sleep`) costs no CPU time, and holds up the
loop all the same.  That is seen by the clock, where the thread gave up the CPU by itself: at once, if one job waited
as long as a loop may be held up, else after many jobs in a row of which each waited long enough to be slow.  A thread
that wants the interpreter gives up the CPU, too: so what another thread of the process was held up meanwhile, which
only wants to wake at regular times, is not counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

SLOW_US: Final = 5_000
"""What takes longer than this for one thing is slow."""
BACK_US: Final = 5_000_000
"""After so long without anything slow a machine comes back to the loop; at first."""
_MOST_BACK_US: Final = 320_000_000
_AGAIN_US: Final = 60_000_000  # What is slow so soon after it came back stays away for twice as long.
_IN_A_ROW: Final = 8
_RETRY_US: Final = 1_000_000  # Where no thread could be started, the next attempt is made after so long.

Used = Callable[[], tuple[int, int, int]]
"""The CPU time of the caller's thread, µs; how often it has given up the CPU by itself; and what other threads of the
process were held up, µs, by whatever holds up all of them."""


def used_by_thread(held_up_us: Callable[[], int] = lambda: 0) -> Used:
    """The measure of this system.

    Args:
        held_up_us: the third of its numbers.
    """
    try:
        from resource import RUSAGE_THREAD, getrusage
    except ImportError:
        # Not Linux: it cannot be told from a wait that another thread, or process, had the CPU.
        return lambda: (time.thread_time_ns() // 1000, time.monotonic_ns(), held_up_us())

    def used() -> tuple[int, int, int]:
        # The times of getrusage may be as old as the kernel's last tick.
        return time.thread_time_ns() // 1000, getrusage(RUSAGE_THREAD).ru_nvcsw, held_up_us()

    return used


class Pace:
    """Measures the jobs of one state machine, in whatever thread they are done, one at a time.

    Args:
        clock: monotonic time, µs.
        patience_us: how long a job may wait for something in the event loop.
        used: see `Used`; None takes all time for CPU time.

    Attributes:
        on_thread: whether the machine belongs in a thread of its own.
        took_ms: what it took for one thing, when it was sent there.
    """

    def __init__(self, clock: Callable[[], int], patience_us: int, used: Used | None = None) -> None:
        self.on_thread = False
        self.took_ms = 0
        self._clock = clock
        self._patience_us = patience_us
        self._used = used or (lambda: (clock(), 0, 0))
        self._began = self._seen = self._cpu_began = self._cpu = self._waits = self._held_up_us = 0
        self._slowest_us = 0  # CPU time of one thing, since the last judgement.
        self._waited_us = 0  # What the last job waited, if that was slow.
        self._row = 0  # How many such jobs came one after the other.
        self._back_us = BACK_US
        self._back_at = 0  # When the machine comes back, or came back.
        self._retry_at = 0

    def begin(self) -> None:
        """A job begins, in this thread."""
        self._began = self._seen = self._clock()
        self._cpu, self._waits, self._held_up_us = self._used()
        self._cpu_began = self._cpu

    def did(self, count: int = 1) -> int:
        """So many things were done since `begin`, or since this was called last.  Returns the time, µs."""
        now = self._clock()
        took, self._seen = now - self._seen, now
        # A mean, since of several things nothing else is known.  CPU time is asked for, which costs a system call, only
        # where it can matter; in a thread of its own, so that what came before is not counted.
        if took > self._slowest_us * count or self.on_thread:
            cpu, _, _ = self._used()
            spent, self._cpu = min(took, cpu - self._cpu), cpu
            self._slowest_us = max(self._slowest_us, spent // count)
        return now

    def end(self) -> None:
        """The job is done, in the thread in which it began."""
        took, self._waited_us = self._clock() - self._began, 0
        if took > SLOW_US:
            cpu, waits, held_up_us = self._used()
            idle = took - (cpu - self._cpu_began) - (held_up_us - self._held_up_us)
            if waits > self._waits and idle > SLOW_US:
                self._waited_us = idle
        self._row = self._row + 1 if self._waited_us else 0

    def judge(self) -> bool:
        """After a job: whether the machine belongs somewhere else from now on; `on_thread` says where."""
        now, slowest = self._clock(), self._slowest_us
        self._slowest_us = 0
        took = slowest if slowest > SLOW_US else 0
        if self._waited_us >= self._patience_us or self._row >= _IN_A_ROW:
            took = max(took, self._waited_us)
        if not self.on_thread:
            if not took or now < self._retry_at:
                return False
            again = self._back_at and now - self._back_at < _AGAIN_US
            self._back_us = min(2 * self._back_us, _MOST_BACK_US) if again else BACK_US
            self.on_thread, self.took_ms = True, took // 1000
            self._back_at = now + self._back_us
            return True
        if took:
            self._back_at = now + self._back_us
        elif now >= self._back_at:
            self.on_thread, self._back_at = False, now
            return True
        return False

    def stay(self) -> None:
        """There is no thread for it now: it stays in the loop, and is judged again in a while."""
        self.on_thread, self._back_at = False, 0
        self._retry_at = self._clock() + _RETRY_US
