"""What a forked child may do with the objects of its parent: refuse, and close its own copies of their descriptors.

A fork copies the objects and their descriptors, and of the threads only the one that forked.  What needs its threads
would wait for ever in the child; a descriptor that the child keeps holds a lock, or a pipe, after the parent has died.
So each object with threads, processes or descriptors asks for `follow`, and its `forked` is called in the child, before
`os.fork` returns there.  `forked` takes no lock: a thread that is not in the child may hold it.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from typing import Any, Final, Protocol

from raftplug.errors import InvalidArgument

_PAUSE_S: Final = 1.0


class _Follower(Protocol):
    def forked(self) -> None: ...


generation = 0
"""How many forks lie between this process and the one that imported this module first."""

_followed: weakref.WeakSet[Any] = weakref.WeakSet()
_held: dict[int, list[Any]] = {}  # By the thread that forks.
_kept: list[object] = []


def follow(follower: _Follower) -> None:
    """Call `follower.forked()` in each child that this process forks, once, while the object lives.

    If it has a method `held_over_fork`, the locks that this returns, in the order in which others take them, are held
    during each fork: so no other thread is inside a library that has locks of its own, which would stay locked in the
    child.  A fork waits a second at most for all of them.
    """
    _followed.add(follower)


def refusal(what: str, remedy: str) -> InvalidArgument:
    """The error of an object of the parent's in a child: `what` it is, and the `remedy`."""
    return InvalidArgument(f"{what} belongs to the process that this one was forked from: {remedy}")


class OfOneProcess:
    """An object that cannot be used in a forked child, nor be pickled or copied.

    Attributes:
        REMEDY: what to do instead.
    """

    REMEDY = "make a new one after the fork"
    _refused: InvalidArgument | None = None

    def forked(self) -> None:
        """In a child: refuse from now on."""
        self._refused = refusal(f"this {type(self).__name__}", self.REMEDY)

    def _require_own_process(self) -> None:
        if self._refused is not None:
            raise self._refused.with_traceback(None)

    def __reduce__(self) -> Any:
        raise InvalidArgument(f"a {type(self).__name__} cannot be pickled or copied: make a new one where it is needed")


def keep_for_ever(thing: object) -> None:
    """Never free an object of the parent's whose end would change what the parent has.

    A reference of a module would be dropped when the interpreter ends.
    """
    with contextlib.suppress(ImportError):
        import ctypes

        ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))
    _kept.append(thing)


def _before() -> None:
    held = _held.setdefault(threading.get_ident(), [])
    until = time.monotonic() + _PAUSE_S
    for follower in list(_followed):
        if hasattr(follower, "held_over_fork"):
            for lock in follower.held_over_fork():
                if lock.acquire(timeout=max(0.0, until - time.monotonic())):
                    held.append(lock)


def _forked_in_parent() -> None:
    for lock in reversed(_held.pop(threading.get_ident(), [])):
        lock.release()


def _forked() -> None:
    global generation
    generation += 1
    _held.clear()
    for follower in list(_followed):
        with contextlib.suppress(Exception):  # The others follow all the same.
            follower.forked()
    _followed.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_forked_in_parent, after_in_child=_forked)
