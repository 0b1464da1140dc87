"""Checks of the times, counts and sizes that callers hand in: one rule for every public function, on both cores.

A time is a number of seconds: an int, a float, or what `float` takes as a number (a Decimal, a number of numpy).  None,
infinity and every number above 10^9 (31 years) are no limit.  A bool, a text, NaN and a negative number are refused
with InvalidArgument, before anything is sent or changed; where one only waits for what is under way (`Future.result`,
`Subscription.get`, `Node.join`) a negative number is 0, as in the standard library, since it is what is left of a time
that is over.

A count or a size is a whole number within bounds that the function names.
"""

from __future__ import annotations

import math
import operator
from typing import Any, Final

from raftplug.constants import NEVER
from raftplug.errors import InvalidArgument
from raftplug.foreign import short

Seconds = float | None
"""A time as a caller gives it.  (In compiled code `float | None` would be converted before it is checked.)"""
LONGEST_S: Final = 1e9
"""A longer time is no limit."""


def seconds(value: Any, what: str = "timeout", *, past: bool = False) -> float | None:
    """The time that `value` says, in seconds; None for no limit.

    Args:
        value: as the caller gave it.
        what: its name, for the message.
        past: whether a negative number is taken, as 0.

    Raises:
        InvalidArgument: it is no time.
    """
    if value is None:
        return None
    number = _number(value)
    if number is None or (number < 0 and not past):
        least = "" if past else " from 0 on"
        raise InvalidArgument(f"{what} must be a number of seconds{least}, or None for no limit, not {short(value)}")
    return None if number > LONGEST_S else max(number, 0.0)


def finite(value: Any, what: str) -> float:
    """The time that `value` says, in seconds, where there must be a limit.

    Raises:
        InvalidArgument: it is no time above 0, or has no limit.
    """
    number = _number(value)
    if number is None or not 0 < number <= LONGEST_S:
        raise InvalidArgument(f"{what} must be a number of seconds above 0, not {short(value)}")
    return number


def ends_at(now_us: int, timeout: Any, what: str = "timeout") -> int:
    """When a time that begins now is over, in microseconds of the caller's clock; `NEVER` without a limit.

    Raises:
        InvalidArgument: it is no time.
    """
    if type(timeout) is not float or not 0.0 <= timeout <= LONGEST_S:  # Checked here since this is asked for each call.
        timeout = seconds(timeout, what)
        if timeout is None:
            return NEVER
    return now_us + int(timeout * 1e6)


def whole(value: Any, what: str, least: int, most: int) -> int:
    """The whole number that `value` is.

    Raises:
        InvalidArgument: it is none, or not in [least, most].
    """
    number = None
    if type(value) is not bool:
        try:
            number = int(operator.index(value))
        except Exception:
            number = None
    if number is None or not least <= number <= most:
        raise InvalidArgument(f"{what} must be a whole number from {least} to {most}, not {short(value)}")
    return number


def _number(value: Any) -> float | None:
    """The float that a number says; infinity for one that is too large; None if it is no number, or NaN."""
    kind = type(value)
    if kind is not float:
        try:
            if kind is bool or not (hasattr(kind, "__float__") or hasattr(kind, "__index__")):
                return None  # `float` would take a text.
            value = float(value)
        except OverflowError:
            return _infinity(value)
        except Exception:
            return None
    return None if math.isnan(value) else float(value)


def _infinity(value: Any) -> float | None:
    try:
        return math.inf if value > 0 else -math.inf
    except Exception:
        return None
