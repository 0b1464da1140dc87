"""A future that costs a node almost nothing until somebody waits for it.

It is written in Cython's pure-Python mode, as the rules are, and each core has it: take it from `raftplug.core`.

`concurrent.futures.Future` makes a condition with a lock for every transition, though most are never waited for one by
one.  This one makes a lock only inside `result` and `exception`, when the answer is not there yet.

Why a callback can neither be lost nor run twice.  The setter first stores the outcome, then looks at the waiting list;
a waiter first appends itself to the list, then looks at the outcome.  Whichever of the two is later sees what the other
stored, so at least one of them drains the list; each entry is taken out by `list.pop`, which gives it to exactly one of
them.  The list itself is made under one module-wide lock, since two waiters may both find none.  The GIL gives
the order of the stores; a free-threaded interpreter does not promise it, so there the setter goes through the same
lock (`_FENCE`), which does.
"""

import logging
import os
import sys
import threading
from collections.abc import Callable, Generator
from functools import partial
from typing import Any, Final

from raftplug import _cy as cython
from raftplug import _refusals as refusals
from raftplug import threads
from raftplug.arguments import Seconds, seconds
from raftplug.errors import InvariantViolated
from raftplug.foreign import is_interrupt, log_raised, short
from raftplug.forks import refusal

_logger = logging.getLogger("raftplug")
_registering = threading.RLock()  # Reentrant: a signal handler may wait while its thread registers.
_LockType = type(threading.Lock())
_SIGNAL_S: Final = 0.25  # For so long a signal handler may have to wait for the main thread.
_FENCE: Final = not getattr(sys, "_is_gil_enabled", lambda: True)()


class _Pending:
    __slots__ = ()

    def __repr__(self) -> str:
        return "<pending>"


_PENDING: Final = _Pending()


_forks = cython.declare(cython.longlong, 0)  # How often this process was forked, itself or what it was forked from.


def _forked() -> None:
    """In a forked child: no thread is left that ends a future of before, or that releases the lock."""
    global _forks, _registering
    _forks += 1
    _registering = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


class _Callback:
    """A registered callable.  It compares by identity, so that removing it runs no `__eq__` of a caller.

    Args:
        call: is given the future.
        is_own: it never waits and runs no code of a program's: then the thread that sets the future calls it.
    """

    __slots__ = ("call", "is_own")

    def __init__(self, call: Callable[[Any], object], is_own: bool) -> None:
        self.call = call
        self.is_own = is_own


@cython.trashcan(True)
@cython.cclass
class Future:
    """The outcome of a transition or a read that is under way.

    It has the interface of `concurrent.futures.Future` and can be awaited in any running asyncio loop, by any number of
    tasks.  It cannot be cancelled: what was proposed may be executed whatever the caller wishes.
    `concurrent.futures.wait` and `as_completed` look inside the standard class and do not take it; `asyncio.gather`,
    `asyncio.wait_for`, `asyncio.wrap_future` and `add_done_callback` do.

    Attributes:
        transition_id: the id of the transition, once it is known; else None.
    """

    __slots__ = ("__weakref__", "_error", "_forks", "_transition_id", "_value", "_waiting")

    __weakref__: object
    _value: Any
    _error: Any
    _waiting: Any
    _transition_id: Any
    _forks: cython.longlong

    def __cinit__(self) -> None:
        self._value = _PENDING  # Compiled, also for one that is made by `__new__` alone.

    def __init__(self) -> None:
        self._value = _PENDING  # Stored last, so that who sees a value also sees the error.
        self._error = None
        self._waiting = None
        self._transition_id = None
        self._forks = _forks

    @property
    def transition_id(self) -> Any:
        return self._transition_id

    @transition_id.setter
    def transition_id(self, value: Any) -> None:
        self._transition_id = value

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """What `isinstance` finds besides the type: `asyncio.wrap_future` takes the standard class alone."""
        from concurrent.futures import Future as Standard

        return Standard

    # -- whoever waits ---------------------------------------------------------------------------------------------

    def done(self) -> bool:
        """True once there is a result or an error."""
        return self._value is not _PENDING

    def running(self) -> bool:
        """True until it is done."""
        return self._value is _PENDING

    def cancelled(self) -> bool:
        """Always False."""
        return False

    def cancel(self) -> bool:
        """Always False: nothing is cancelled."""
        return False

    def result(self, timeout: Seconds = None) -> Any:
        """Wait for the outcome and return it, or raise it.

        Args:
            timeout: seconds, see `arguments`; None waits without limit, and a negative number not at all.

        Raises:
            TimeoutError: it is not done in time; it goes on all the same.
            InvalidArgument: `timeout` is no number of seconds; or it is not done, and in this thread a wait could never
                end: a state machine's, for one; or this process was forked from the one that would end it.
            RaftplugError: what it ended with.
        """
        if timeout is not None:
            timeout = seconds(timeout, past=True)
        if self._value is _PENDING:
            self._wait(timeout)
        if self._error is not None:
            try:
                raise self._error
            finally:
                del self  # The error keeps this frame by its traceback: do not make it a cycle.
        return self._value

    def exception(self, timeout: Seconds = None) -> BaseException | None:
        """Wait for the outcome and return its error, or None.  `timeout` and what is raised as for `result`."""
        if timeout is not None:
            timeout = seconds(timeout, past=True)
        if self._value is _PENDING:
            self._wait(timeout)
        error: BaseException | None = self._error
        return error

    def add_done_callback(self, fn: Callable[[Any], object]) -> None:
        """Call `fn(self)` once it is done: at once here, or later in the thread that its node or client has for that.

        That thread runs one callback at a time, so one that takes long delays the others, and nothing else.  A callback
        may call anything, and wait.  What `fn` raises is logged and goes no further.  Callbacks run in the order in
        which they were added.
        """
        if self._value is _PENDING:
            self._register(_Callback(fn, False))
        else:
            self._call(fn)

    def when_done(self, fn: Callable[[Any], object]) -> None:
        """As `add_done_callback`, but the thread that sets the future calls `fn`: for what never waits."""
        if self._value is _PENDING:
            self._register(_Callback(fn, True))
        else:
            self._call(fn)

    def _get_snapshot(self) -> tuple[bool, bool, Any, BaseException | None]:
        """What asyncio of Python 3.14 asks: whether it is done, whether it was cancelled, its result, its error."""
        done = self._value is not _PENDING
        return done, False, self._value if done else None, self._error

    def __await__(self) -> Generator[Any, None, Any]:
        if self._value is _PENDING:
            self._require_setter()
            threads.require_waiting("await of a future", "add_done_callback")
            import asyncio  # Here, since who awaits has it loaded already and nobody else needs it.

            loop = asyncio.get_running_loop()
            waiter = loop.create_future()

            def release() -> None:
                if not waiter.done():  # A task that was cancelled meanwhile has cancelled it.
                    waiter.set_result(None)

            def wake(_: Any) -> None:
                try:
                    loop.call_soon_threadsafe(release)
                except RuntimeError:
                    pass  # The loop is closed: nobody waits any more.

            entry = _Callback(wake, True)
            self._register(entry)
            try:
                yield from waiter
            finally:
                self._forget(entry)
        return self.result()

    # -- whoever sets ----------------------------------------------------------------------------------------------

    @cython.ccall
    def set_result(self, value: Any) -> None:
        """End with `value`.  One thread sets, once.

        Raises:
            InvariantViolated: it is done already.
        """
        if self._value is not _PENDING:
            raise InvariantViolated("a future was set twice")
        self._value = value
        if self._waiting is not None or _FENCE:
            self._drain()

    def set_exception(self, error: BaseException) -> None:
        """End with `error`.  One thread sets, once.

        Raises:
            InvariantViolated: it is done already.
        """
        if self._value is not _PENDING:
            raise InvariantViolated("a future was set twice")
        self._error = error
        self._value = None
        if self._waiting is not None or _FENCE:
            self._drain()

    # -- inside ----------------------------------------------------------------------------------------------------

    def _require_setter(self) -> None:
        if self._forks != _forks:
            raise refusal("this future", "ask again in this process, with a client made after the fork")

    def _wait(self, timeout: Seconds) -> None:
        self._require_setter()
        if timeout is None or timeout > 0:
            threads.require_waiting("the result of a future", "add_done_callback, or await it elsewhere")
        lock = threading.Lock()
        lock.acquire()
        self._register(lock)
        limit = threading.TIMEOUT_MAX if timeout is None else min(timeout, threading.TIMEOUT_MAX)
        released = False
        try:
            # A signal just before the main thread blocks does not end the acquire: its handler runs once that returns.
            while limit > _SIGNAL_S and threading.current_thread() is threading.main_thread() and not released:
                limit -= _SIGNAL_S
                released = lock.acquire(timeout=_SIGNAL_S)
            released = released or lock.acquire(timeout=limit)
        finally:
            if not released:  # Else whoever did so has taken it out of the list.
                self._forget(lock)
        if not released and self._value is _PENDING:
            raise TimeoutError("no answer yet: the future goes on, wait for it again")

    def _register(self, entry: Any) -> None:
        with _registering:
            if self._waiting is None:
                self._waiting = []
            self._waiting.append(entry)
        if self._value is not _PENDING:
            self._drain()

    def _forget(self, entry: Any) -> None:
        try:
            self._waiting.remove(entry)  # Only who registered forgets.
        except ValueError:
            pass  # It was called.

    def _drain(self) -> None:
        if _FENCE:
            with _registering:
                waiting = self._waiting
        else:
            waiting = self._waiting
        while waiting:
            try:
                entry = waiting.pop(0)
            except IndexError:
                return  # The other side took the last one.
            if type(entry) is _LockType:
                entry.release()
            elif entry.is_own:
                self._call(entry.call)
            else:
                threads.run_callback(partial(self._call, entry.call))

    def _call(self, fn: Callable[[Any], object]) -> None:
        try:
            fn(self)
        except BaseException as raised:
            if is_interrupt(raised):
                raise
            log_raised(_logger, raised, "a callback of a future raised; the future's outcome stands")

    def __repr__(self) -> str:
        if self._value is _PENDING:
            return "<Future pending>"
        return (
            f"<Future error={short(self._error)}>"
            if self._error is not None
            else f"<Future result={short(self._value)}>"
        )

    def __reduce__(self) -> Any:
        raise refusals.copied(self)
