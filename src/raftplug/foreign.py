"""Text of foreign objects: of what a state machine, a plugin or a caller made.

Such an object can have a `__str__` or `__repr__` that raises or returns no text, a text of many megabytes or with lone
surrogates, and a class whose name is as odd.  The functions here never raise because of that; what they return is an
exact str, can be encoded, and has a bound.
"""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Callable
from typing import Any, Final

from raftplug.errors import RaftplugError

MOST: Final = 1_000
"""Characters of an exception's text that are kept, sent and logged."""
_NAME_CHARACTERS: Final = 100
_SHORT_CHARACTERS: Final = 60
_NOTES: Final = 10
_TRACE_CHARACTERS: Final = 20_000
_name_of: Final = type.__dict__["__name__"].__get__  # A metaclass can have a property of that name.


def is_interrupt(error: BaseException) -> bool:
    """Whether it is Ctrl-C, which only the main thread gets, rather than something that foreign code raised."""
    return isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread()


def _never(error: BaseException) -> bool:
    return False


def type_name(value: object) -> str:
    """The name of the class of `value`."""
    return short_name(type(value))


def short_name(kind: type) -> str:
    """The name of a class."""
    return _bounded(_name_of(kind), _NAME_CHARACTERS)


def text_of(error: BaseException, most: int = MOST, *, passes: Callable[[BaseException], bool] = _never) -> str:
    """The text of an exception.

    Args:
        error: the exception.
        most: characters; what is longer is cut off.
        passes: is asked about what its `__str__` raises; where it says True, that is raised.  By default nothing is.
    """
    try:
        return _bounded(str(error), most)
    except BaseException as raised:
        if passes(raised):
            raise
        return f"its text cannot be made: __str__ raised {type_name(raised)}"


def described(error: BaseException) -> str:
    """An exception in one line: its class, its text and its notes; an error of raftplug without its class."""
    is_ours = isinstance(error, RaftplugError)
    text = " ".join(text_of(error, _TRACE_CHARACTERS if is_ours else MOST).split())
    if not (is_ours and text):
        text = f"{type_name(error)}: {text}" if text else type_name(error)
    return " ".join([text, *notes_of(error)])


def notes_of(error: BaseException) -> list[str]:
    """The notes that were added to an exception, each in one line and in parentheses."""
    try:
        notes = list(getattr(error, "__notes__", ()))[:_NOTES]
        return [f"({' '.join(_bounded(note, MOST).split())})" for note in notes]
    except BaseException:
        return []


def short(value: object, most: int = _SHORT_CHARACTERS) -> str:
    """The `repr` of a value in one line, cut off after `most` characters."""
    try:
        text = " ".join(_bounded(repr(value), 10 * most).split())
    except BaseException:
        text = f"<{type_name(value)}>"
    return text if len(text) <= most else text[: most - 1] + "…"


def trace_of(error: BaseException, most: int = _TRACE_CHARACTERS) -> str:
    """The traceback of an exception, as `logging` shows it; of a longer one the last `most` characters."""
    try:
        return _bounded("".join(traceback.format_exception(error)).rstrip()[-most:], most)
    except BaseException:
        return described(error)


def log_raised(logger: logging.Logger, error: BaseException, text: str, *arguments: object) -> None:
    """Log what foreign code raised, at level ERROR, with `exc_info` and a traceback that is safe to show."""
    if logger.isEnabledFor(logging.ERROR):
        where = logger.findCaller(stacklevel=2)[:3]
        info = (type(error), error, error.__traceback__)
        record = logger.makeRecord(logger.name, logging.ERROR, *where[:2], text, arguments, info, where[2])
        record.exc_text = trace_of(error)  # A formatter that finds it there makes none of its own.
        logger.handle(record)


def _bounded(text: Any, most: int) -> str:
    """An exact str of the beginning of `text`, which can be encoded."""
    exact = str.__str__(text)  # A subclass could override what follows.
    return exact[:most].encode("utf-8", "replace").decode()
