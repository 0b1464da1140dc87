"""The threads of a node: its event loop's, those that work beside it, and who takes over when the loop is held up."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

Job = Callable[[], None]
Done = Callable[[BaseException | None], None]
Executor = Callable[[Job, Done], None]
"""Runs a job, here and now or somewhere else, and calls the second argument, at once or in a later turn, with the error
it raised or None."""


def run_here(job: Job, done: Done) -> None:
    """The executor that runs a job here and now."""
    done(_outcome(job))


class Worker:
    """A thread that runs one job at a time, in order, and tells each one's end from there."""

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[tuple[Job, Done] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, job: Job, done: Done) -> None:
        """Run `job` after those before it, then call `done` with the error that it raised, or None."""
        self._jobs.put((job, done))

    def stop(self, timeout_s: float | None = None) -> bool:
        """Finish what was submitted, and end.  Returns whether it did within `timeout_s`."""
        self._jobs.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (task := self._jobs.get()) is not None:
            job, done = task
            done(_outcome(job))


class _Relieved(BaseException):
    """Another thread has the loop: this one has nothing more to do, and must touch nothing."""


class LoopThread:
    """Runs an event loop, and goes on with it in another thread while a job of its own keeps the first.

    A state machine is applied, and a write is committed, in the loop's thread, as the last thing of a turn, since a
    hand-over to another thread costs more than most of them take.  But one that takes long must not hold up heartbeats:
    a watchman looks after the job now and then, and lets another thread have the loop.  The first one ends with its
    job.

    Args:
        name: of the threads.
        run: runs the loop until it shall end; called anew by each thread that has it.
        end: called once, by the thread that has it last, with the error that `run` raised or None.
        hand_back: has the loop call a function with an argument in its next turn; from any thread.
        patience_s: how long a job may keep the loop.
    """

    def __init__(
        self,
        name: str,
        *,
        run: Callable[[], None],
        end: Callable[[BaseException | None], None],
        hand_back: Callable[[Done, BaseException | None], None],
        patience_s: float,
    ) -> None:
        self._name = name
        self._run = run
        self._end = end
        self._hand_back = hand_back
        self._patience_s = patience_s
        self._job: tuple[list[None], float] = ([], 0.0)  # Whoever pops the claim has the loop; and since when.
        self._kept: list[threading.Thread] = []  # By a job that took too long.
        self._ended = threading.Event()
        self._thread = threading.Thread()

    def start(self) -> None:
        """Run the loop."""
        self._go_on()
        threading.Thread(target=self._watch, name=f"{self._name}-watch", daemon=True).start()

    def is_current(self) -> bool:
        """Whether the caller's thread has the loop."""
        return threading.current_thread() is self._thread

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait until the loop has ended; whether it has."""
        return self._ended.wait(timeout_s)

    def join_kept(self, timeout_s: float) -> bool:
        """Wait for the jobs that took too long; whether they are done."""
        until = time.monotonic() + timeout_s
        for thread in self._kept:
            thread.join(max(0.0, until - time.monotonic()))
        return not any(thread.is_alive() for thread in self._kept)

    def execute(self, job: Job, done: Done) -> None:
        """Run `job` in the loop's own thread, then `done` with its error or None; later, if the job took too long.

        The loop calls it as the last thing of a turn: that turn may end here.
        """
        claim = [None]
        self._job = (claim, time.monotonic())
        error = _outcome(job)
        try:
            claim.pop()
        except IndexError:
            self._hand_back(done, error)
            raise _Relieved from None
        done(error)

    def _watch(self) -> None:
        while not self._ended.wait(self._patience_s):
            claim, since = self._job
            if claim and time.monotonic() - since > self._patience_s:
                try:
                    claim.pop()
                except IndexError:
                    continue  # It is done after all.
                self._kept = [thread for thread in self._kept if thread.is_alive()] + [self._thread]
                self._go_on()

    def _go_on(self) -> None:
        self._thread = threading.Thread(target=self._have, name=self._name, daemon=True)
        self._thread.start()

    def _have(self) -> None:
        error: BaseException | None = None
        try:
            self._run()
        except _Relieved:
            return
        except BaseException as raised:
            error = raised
        try:
            self._end(error)
        finally:
            self._ended.set()


def _outcome(job: Callable[[], Any]) -> BaseException | None:
    try:
        job()
    except BaseException as raised:
        return raised
    return None
