"""The threads of a node or a client: its event loop's, those that work beside it, and who continues a loop held up.

Each of them says, to whom it calls, what it is (`here`): a thread in which a wait would never end refuses to wait, and
the callbacks of futures that a loop ends are run beside it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from raftplug import forks
from raftplug.errors import InvalidArgument, Unavailable

_logger = logging.getLogger("raftplug")
_RETRY_S = 1.0  # Where no thread could be started, another attempt is made after so long.

Opened = TypeVar("Opened")
Job = Callable[[], None]
Done = Callable[[BaseException | None], None]
Executor = Callable[[Job, Done], None]
"""Runs a job, here and now or somewhere else, and calls the second argument, at once or in a later turn, with the error
it raised or None."""


class _Here(threading.local):
    """What the current thread is.

    Attributes:
        is_own: whether a node or client started it; False in a thread of the program.
        may_wait: False in a thread that ends futures, or runs a state machine: there a wait could last for ever.
        callbacks: runs the callbacks of the futures that this thread ends; None runs them in this thread.
    """

    is_own = False
    may_wait = True
    callbacks: Worker | None = None


here = _Here()


def _forked() -> None:
    """In a child: the thread that forked is now a thread of the program, whatever it was."""
    here.is_own, here.may_wait, here.callbacks = False, True, None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def require_waiting(what: str, remedy: str) -> None:
    """Refuse to wait in a thread that must not.

    Raises:
        InvalidArgument: this is the thread of a loop, or of a state machine.
    """
    if not here.may_wait:
        raise InvalidArgument(
            f"{what} waits, which a state machine, a query and a transport must not do, since this thread answers: "
            f"use {remedy}"
        )


def run_callback(job: Job) -> None:
    """Run a callback of a future that this thread has ended: beside the loop, if this is a loop's thread."""
    worker = here.callbacks
    if worker is None:
        job()
    else:
        worker.submit(job)


def start(name: str, target: Callable[..., object], *arguments: Any) -> threading.Thread:
    """Start a daemon thread.

    Raises:
        Unavailable: this process can have no more.
    """
    thread = threading.Thread(target=target, args=arguments, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        raise Unavailable(
            f"no thread could be started ({error}): end some, or raise the limit of this user's or this container's "
            "threads (ulimit -u, pids.max)"
        ) from None
    return thread


async def beside(job: Job) -> None:
    """Run a job that waits in a thread of its own, while the asyncio loop goes on; in this one if none can be started.

    Raises:
        BaseException: what the job raised.
    """
    import asyncio  # Here, since what runs in an asyncio loop has it loaded.

    loop = asyncio.get_running_loop()
    ended = loop.create_future()

    def finish(error: BaseException | None) -> None:
        if not ended.done():  # A task that was cancelled meanwhile has cancelled it.
            ended.set_result(error)

    def run() -> None:
        error = _outcome(job)
        with contextlib.suppress(RuntimeError):  # The loop is closed: none awaits the job any more.
            loop.call_soon_threadsafe(finish, error)

    try:
        start("raftplug-awaited", run)
    except Unavailable:
        job()
        return
    error = await ended
    if error is not None:
        raise error


async def opened(open: Callable[[], Opened], close: Job) -> Opened:
    """What `open` returns, of a thread of its own; if this task is cancelled meanwhile, it is closed again."""
    found: list[Opened] = []
    wanted = [None]  # What pops it decides: it is opened, or no longer wanted.

    def begin() -> None:
        found.append(open())
        try:
            wanted.pop()
        except IndexError:
            close()

    try:
        await beside(begin)
    except BaseException:
        try:
            wanted.pop()
        except IndexError:
            start("raftplug-close", close)
        raise
    return found[0]


def run_here(job: Job, done: Done) -> None:
    """The executor that runs a job here and now."""
    done(_outcome(job))


class Worker:
    """A thread that runs one job at a time, in order, and tells each one's end from there.

    It begins with its first job, or with `start`.  While it cannot be started the jobs wait: see `tend`.

    Args:
        name: of the thread.
        may_wait: whether its jobs may wait: see `here`.
    """

    def __init__(self, name: str, *, may_wait: bool = True) -> None:
        self._name = name
        self._may_wait = may_wait
        self._jobs: queue.SimpleQueue[tuple[Job, Done | None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._retry_at = 0.0

    def start(self) -> None:
        """Start the thread, unless it was.

        Raises:
            Unavailable: this process can have no more threads.
        """
        with self._starting:
            if self._thread is None:
                self._thread = start(self._name, self._begin)

    def submit(self, job: Job, done: Done | None = None) -> None:
        """Run `job` after those before it, then call `done` with the error that it raised, or None."""
        self._jobs.put((job, done))
        self.tend()

    def tend(self) -> None:
        """Start the thread if jobs wait for it, and it could not be started before."""
        if self._thread is None and not self._jobs.empty() and time.monotonic() >= self._retry_at:
            try:
                self.start()
            except Unavailable as error:
                if not self._retry_at:
                    _logger.error("%s: %s; what it has to do waits", self._name, error)
                self._retry_at = time.monotonic() + _RETRY_S

    def stop(self, timeout_s: float | None = None) -> bool:
        """Finish what was submitted, and end.  Returns whether it did within `timeout_s`, seconds.

        If the thread could never be started, what was submitted is done here.
        """
        if self._thread is None:
            if self._jobs.empty():
                return True
            with contextlib.suppress(Unavailable):
                self.start()
        self._jobs.put(None)
        if self._thread is None:
            self._run()
            return True
        return self.join(timeout_s)

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait, after `stop`, until the thread has ended.  Returns whether it has within `timeout_s`, seconds."""
        thread = self._thread
        if thread is None or thread is threading.current_thread():
            return thread is None
        thread.join(timeout_s)
        return not thread.is_alive()

    def _begin(self) -> None:
        here.is_own, here.may_wait = True, self._may_wait
        self._run()

    def _run(self) -> None:
        generation = forks.generation
        while (task := self._jobs.get()) is not None:
            job, done = task
            error = _outcome(job)
            if generation != forks.generation:
                return  # In a child that the job forked: this thread is the parent's.
            if done is not None:
                done(error)
            elif error is not None:
                _logger.error("%s: a job raised %s", self._name, type(error).__name__, exc_info=error)


class _Relieved(BaseException):
    """Another thread has the loop: this one has nothing more to do, and must touch nothing."""


class LoopThread:
    """Runs an event loop, and continues it in another thread while a job of its own keeps the first.

    A state machine is applied, and a write is committed, in the loop's thread, as the last thing of a turn, since a
    hand-over to another thread costs more than most of them take.  But one that takes long must not hold up heartbeats:
    a second thread looks after the job now and then, and takes the loop over.  A third one is then started to look
    after its jobs; while none can be started, the loop goes on without, and starting one is tried again.  The first
    thread ends with its job, or looks after the loop if none does.

    Args:
        name: of the threads.
        run: runs the loop until it shall end; called again by each thread that takes the loop over.
        end: called once, by the thread that has the loop last, with the error that `run` raised or None.
        hand_back: has the loop call a function with an argument in its next turn; from any thread.
        patience_s: how long the jobs of a turn may keep the loop.
        callbacks: runs the callbacks of the futures that the loop ends; None runs them in the loop's thread.
    """

    def __init__(
        self,
        name: str,
        *,
        run: Callable[[], None],
        end: Callable[[BaseException | None], None],
        hand_back: Callable[[Done, BaseException | None], None],
        patience_s: float,
        callbacks: Worker | None = None,
    ) -> None:
        self._name = name
        self._run = run
        self._end = end
        self._hand_back = hand_back
        self._patience_s = patience_s
        self._callbacks = callbacks
        self.held_up_us = 0
        """What the thread that looks after the jobs woke later than it wanted to, in all, µs."""
        self._turn_began = 0.0
        self._job: tuple[list[None], float] = ([], 0.0)  # What pops the claim has the loop; and since when.
        self._kept: list[tuple[list[None], threading.Event]] = []  # The claims of jobs that took too long, until done.
        self._unwatched: list[None] = []  # Holds one item while no thread looks after the jobs.
        self._retry_at = 0.0
        self._generation = forks.generation
        self._may_run = threading.Event()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def prepare(self) -> None:
        """Start the threads; they wait for `start`, or `cancel`.

        Raises:
            Unavailable: this process can have no more threads; none is left.
        """
        try:
            start(f"{self._name}-watch", self._serve, True)
            self._thread = start(self._name, self._serve, False)
        except Unavailable:
            self.cancel()
            raise

    def cancel(self) -> None:
        """End the threads before `start`: nothing is run."""
        self._ended.set()
        self._may_run.set()

    def start(self) -> None:
        """Run the loop.  Raises as `prepare`, unless that was done."""
        if self._thread is None:
            self.prepare()
        self._may_run.set()

    def is_current(self) -> bool:
        """Whether the caller's thread has the loop."""
        return threading.current_thread() is self._thread

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait until the loop has ended; whether it has."""
        return self._ended.wait(timeout_s)

    def join_kept(self, timeout_s: float) -> bool:
        """Wait for the jobs that took too long; whether they are done."""
        until = time.monotonic() + timeout_s
        return all(done.wait(max(0.0, until - time.monotonic())) for _, done in self._kept)

    def begin_turn(self) -> None:
        """A turn begins, in the loop's own thread: the time that its jobs take counts from here."""
        self._turn_began = time.monotonic()
        if self._unwatched and self._turn_began >= self._retry_at:
            self._have_watched()

    def execute(self, job: Job, done: Done) -> None:
        """Run `job` in the loop's own thread, then `done` with its error or None; later, if the job took too long.

        The loop calls it as the last thing of a turn: that turn may end here.
        """
        claim = [None]
        self._job = (claim, self._turn_began or time.monotonic())
        error = _outcome(job)
        if self._generation != forks.generation:
            raise _Relieved  # In a child that the job forked: the loop is the parent's.
        try:
            claim.pop()
        except IndexError:
            self._hand_back(done, error)
            for kept, is_done in self._kept:
                if kept is claim:
                    is_done.set()
            raise _Relieved from None
        done(error)

    def _serve(self, watches: bool) -> None:
        """A thread of the loop: looks after its jobs, or has the loop, by turns."""
        here.is_own, here.may_wait, here.callbacks = True, False, self._callbacks
        self._may_run.wait()
        while True:
            if watches and not self._watch():
                return
            if not self._have() or self._generation != forks.generation:
                return
            try:
                self._unwatched.pop()
            except IndexError:
                return  # Another one watches.
            watches = True

    def _watch(self) -> bool:
        """Look after the jobs.  Returns whether this thread has the loop now; else that has ended."""
        while not self._ended.is_set():
            until = time.monotonic() + self._patience_s
            if self._ended.wait(self._patience_s):
                return False
            self.held_up_us += max(0, int((time.monotonic() - until) * 1e6))
            if self._callbacks is not None:
                self._callbacks.tend()
            claim, since = self._job
            if claim and time.monotonic() - since > self._patience_s:
                kept = claim, threading.Event()
                self._kept = [each for each in self._kept if not each[1].is_set()] + [kept]
                try:
                    claim.pop()
                except IndexError:  # It is done after all.
                    self._kept.remove(kept)
                    continue
                self._thread = threading.current_thread()
                self._unwatched.append(None)
                self._have_watched()
                return True
        return False

    def _have_watched(self) -> None:
        """Have another thread look after the jobs, unless one does."""
        try:
            self._unwatched.pop()
        except IndexError:
            return
        try:
            start(f"{self._name}-watch", self._serve, True)
        except Unavailable as error:
            self._unwatched.append(None)
            if not self._retry_at:
                _logger.error("%s: %s; until then a job that takes long holds up heartbeats", self._name, error)
            self._retry_at = time.monotonic() + _RETRY_S
        else:
            self._retry_at = 0.0

    def _have(self) -> bool:
        """Run the loop.  Returns whether another thread has it now; else it has ended."""
        if self._ended.is_set():
            return False
        error: BaseException | None = None
        try:
            self._run()
        except _Relieved:
            return True
        except BaseException as raised:
            error = raised
        if self._generation != forks.generation:
            return False
        try:
            self._end(error)
        finally:
            self._ended.set()
        return False


def _outcome(job: Callable[[], Any]) -> BaseException | None:
    try:
        job()
    except BaseException as raised:
        return raised
    return None
