"""What becomes of what a state machine returns or raises: a result, the same on every replica, or the replica stops.

An exception is a transition's result where every replica raises it alike.  MemoryError, RecursionError and an OSError
with an errno tell of this process, its stack or its disk: another replica may have executed the transition, so this one
stops.  So does everything that is no `Exception`: SystemExit, KeyboardInterrupt, GeneratorExit, asyncio's
CancelledError.  An exception that was raised while one of these was handled, or because of it, or that groups one of
them, is no better.  docs/plugins.md has the table.
"""

from __future__ import annotations

import sys
from typing import Any, Final

import msgpack

from raftplug import plain
from raftplug.constants import FAILED, LARGEST_RESULT, OK, UNDELIVERABLE
from raftplug.errors import InvalidTransition, MachineFailed, RaftplugError, TooLarge, TransitionFailed
from raftplug.foreign import described, is_interrupt, text_of, type_name
from raftplug.state_machine import NotOverridden

_ERRNO: Final = OSError.__dict__["errno"]  # A subclass can have a property of that name.
_CHAIN: Final = 1_000
_SHORT: Final = 1_000_000  # Characters of a text that can be delivered whatever they are.

Encoded = tuple[int, bytes]
"""A result as it is kept and sent: OK and plain data; FAILED and [kind, message]; or UNDELIVERABLE and its size."""


def handled() -> BaseException | None:
    """What the caller of raftplug handles at the moment: Python says it is the context of whatever is raised."""
    return sys.exc_info()[1]


def is_exhausted(raised: BaseException) -> bool:
    """Whether an exception says that this process has no memory left, or that its system refused something."""
    return isinstance(raised, MemoryError) or (isinstance(raised, OSError) and isinstance(_ERRNO.__get__(raised), int))


def stops(raised: BaseException, outside: BaseException | None = None) -> bool:
    """Whether what a machine raised stops its replica, rather than be a result.

    Args:
        raised: the exception.
        outside: what was `handled` when the machine was called: the machine has nothing to do with that.
    """
    pending: list[BaseException | None] = [raised]
    seen: set[int] = set()
    while pending and len(seen) < _CHAIN:
        each = pending.pop()
        if each is None or each is outside or id(each) in seen:
            continue
        seen.add(id(each))
        if not isinstance(each, Exception) or isinstance(each, RecursionError) or is_exhausted(each):
            return True
        pending += [each.__cause__, each.__context__]
        if isinstance(each, BaseExceptionGroup):
            pending += BaseExceptionGroup.exceptions.__get__(each)
    return False


def failure(raised: BaseException, outside: BaseException | None = None) -> TransitionFailed:
    """What a machine raised as a transition's result.

    Raises:
        BaseException: it is none, or the making of its text is none: the replica must stop.
    """
    if stops(raised, outside):
        raise raised
    return TransitionFailed(type_name(raised), text_of(raised, passes=lambda error: stops(error, outside)))


def stopping(group: str, machine: object, error: BaseException) -> BaseException:
    """Why a replica stops, when what its machine did ended with `error`; with a note of what to do."""
    if isinstance(error, RaftplugError) or is_interrupt(error):
        return error
    if isinstance(error, RecursionError) or is_exhausted(error):
        advice = "start this node again once the cause is gone"
        if isinstance(error, RecursionError):
            advice = (
                "raise the recursion limit (sys.setrecursionlimit) alike on every node, or let the machine go less "
                "deep, and start this node again"
            )
        error.add_note(
            f"group {group}: {type_name(machine)} raised it here, and perhaps not on the other replicas, so this one "
            f"stops: {advice}"
        )
        return error
    made = MachineFailed(
        f"group {group}: {type_name(machine)} raised {described(error)}: that is no result, since other replicas may "
        "have gone on, so this one stops: correct the machine, and start this node again"
    )
    made.__cause__ = error
    return made


def encoded(value: Any, outside: BaseException | None = None) -> Encoded:
    """What a transition returned, as it is kept and sent."""
    try:
        data = plain.encode(value)
    except InvalidTransition as unencodable:
        if stops(unencodable, outside):
            raise  # It is the stack here that does not suffice.
        return encoded_failure(TransitionFailed("InvalidTransition", f"the result: {unencodable}"))
    if len(data) > LARGEST_RESULT:
        return UNDELIVERABLE, b"%d" % len(data)
    return OK, data


def encoded_failure(failed: TransitionFailed) -> Encoded:
    """What a transition raised, as it is kept and sent."""
    return FAILED, plain.encode([failed.kind, failed.message])


def local(value: Any, outside: BaseException | None = None) -> tuple[int, Any]:
    """What a transition returned, for who waits for it in this process: the same as for anybody elsewhere.

    Returns: OK and the result, a copy of what the machine may go on to change; or FAILED and the error.
    """
    kind = type(value)
    if value is None or kind is bool or kind is float or (kind is int and -(1 << 63) <= value < 1 << 64):
        return OK, value
    if kind is str and len(value) <= _SHORT and value.isascii():
        return OK, value
    code, data = encoded(value, outside)
    if code == OK:
        return OK, value if kind is str or kind is bytes else plain.decode(data)
    if code == UNDELIVERABLE:
        return FAILED, too_large(data)
    return FAILED, TransitionFailed(*plain.decode(data))


def too_large(size: bytes, executed: bool = True) -> TooLarge:
    """The error that tells of an UNDELIVERABLE result, or, where nothing was executed, answer."""
    what = "the transition was executed, and its result" if executed else "the answer"
    many = size.decode("ascii", "replace")
    text = f"{what} has {many} bytes, more than can be delivered: let the state machine give it in parts"
    return TooLarge(text, executed)


def undeliverable(reply: bytes) -> bytes:
    """The reply in place of one that is too large for the transport."""
    nonce, counter, _, _ = msgpack.unpackb(reply, strict_map_key=False)
    data: bytes = msgpack.packb([nonce, counter, UNDELIVERABLE, b"%d" % len(reply)])
    return data


def ask(machine: Any, query: bytes) -> bytes:
    """The encoded answer of a machine to an encoded query.

    Raises:
        BaseException: whatever the machine raises.
        InvalidTransition: its answer is not plain data.
        NotOverridden: it answers no queries.
    """
    method = getattr(machine, "query", None)
    if method is None:
        raise NotOverridden(f"{type_name(machine)} answers no queries: write query, or read with a function")
    return plain.encode(method(plain.decode(query)))
