"""What both cores say when they refuse something: each sentence is written once, so that they cannot differ.

Nothing here runs while all is well.
"""

from __future__ import annotations

from typing import Any, Final

from raftplug.constants import ENTRY_HEADER_BYTES, LAST_MESSAGE_KIND, LIMIT
from raftplug.errors import InvariantViolated, MalformedBlock, MalformedMessage

LARGEST_INDEX: Final = LIMIT - 2
"""So that the index after the last one, as an exclusive end, is below LIMIT too."""


def whole(name: str, value: object) -> int:
    """Return `value` as an int in [0, 2^63).

    Raises:
        TypeError: it is no int.
        InvariantViolated: it is out of range.
    """
    if type(value) is int and 0 <= value < LIMIT:
        return value
    number = place(name, value)
    if not 0 <= number < LIMIT:
        raise InvariantViolated(f"{name} must be in [0, 2^63), not {number}")
    return number


def place(name: str, value: object) -> int:
    """Return `value` as an int of any size: for methods that say themselves what is outside.

    Raises:
        TypeError: it is no int.
    """
    if not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {type(value).__name__}")
    return int.__index__(value)  # The number itself, whatever a subclass makes of it.


def not_bytes(name: str, value: object) -> TypeError:
    """An argument that must be bytes is something else.  The words are the ones that Cython's own check uses."""
    return TypeError(f"Argument '{name}' has incorrect type (expected bytes, got {type(value).__name__})")


def base_check_too_large(check: int) -> InvariantViolated:
    """A chain value is a CRC-32."""
    return InvariantViolated(f"a chain value must be in [0, 2^32), not {check}")


def kind_too_large(kind: int) -> InvariantViolated:
    """The kind of an entry is one byte."""
    return InvariantViolated(f"the kind of an entry must be in [0, 256), not {kind}")


def payload_too_long(length: int) -> InvariantViolated:
    """The length of a payload is four bytes."""
    return InvariantViolated(f"the payload of an entry must be shorter than 2^32 bytes, not {length}")


def term_goes_back(term: int, last_term: int) -> InvariantViolated:
    """An append with a term below the last entry's."""
    return InvariantViolated(f"cannot append an entry of term {term} after one of term {last_term}")


def log_full() -> InvariantViolated:
    """The last possible index is taken."""
    return InvariantViolated("the log holds the last possible index, 2^63 - 2")


def base_index_too_large(index: int) -> InvariantViolated:
    """No entry could follow."""
    return InvariantViolated(f"an index must be below 2^63 - 1, not {index}")


def outside(what: str, index: int, lowest: int, highest: int) -> InvariantViolated:
    """An index that the caller must choose in [lowest, highest]."""
    return InvariantViolated(f"{what} must be in [{lowest}, {highest}], not {index}")


def not_next(first: int, last_index: int) -> InvariantViolated:
    """`extend` from an index that is not the next one."""
    return InvariantViolated(f"cannot extend a log that ends at {last_index} from index {first}")


def not_in_block(first: int) -> InvariantViolated:
    """`extend` from an index that the block does not hold."""
    return InvariantViolated(f"the block does not hold entry {first}")


def no_entry(index: int, base_index: int, last_index: int) -> IndexError:
    """An index outside the log."""
    return IndexError(f"no entry {place('index', index)}: the log holds {base_index + 1} to {last_index}")


def no_entries(lo: int, hi: int, base_index: int, last_index: int) -> IndexError:
    """A range outside the log."""
    first, end = place("lo", lo), place("hi", hi)
    return IndexError(f"no entries {first} to {end - 1}: the log holds {base_index + 1} to {last_index}")


def empty_block() -> MalformedBlock:
    """No entries at all: a heartbeat has no block."""
    return MalformedBlock("an empty block")


def header_cut(index: int, left: int) -> MalformedBlock:
    """The block ends within an entry's header."""
    return MalformedBlock(f"entry {index}: its header is cut off after {left} of {ENTRY_HEADER_BYTES} bytes")


def wrong_index(index: int, found: int) -> MalformedBlock:
    """The block does not go on with the index that must follow, or that index would not fit."""
    if index > LARGEST_INDEX:
        return MalformedBlock(f"entry {index}: an index must be below 2^63 - 1")
    return MalformedBlock(f"entry {index}: the block says index {found}")


def wrong_term(index: int, term: int, lowest: int, highest: int) -> MalformedBlock:
    """Terms never fall along a log, and never exceed the sender's."""
    return MalformedBlock(f"entry {index}: term {term} is not in [{lowest}, {highest}]")


def payload_cut(index: int, length: int, left: int) -> MalformedBlock:
    """The block ends within a payload."""
    return MalformedBlock(f"entry {index}: its payload is cut off after {left} of {length} bytes")


def wrong_check(index: int) -> MalformedBlock:
    """The bytes, or what comes before them, are not what was written."""
    return MalformedBlock(f"entry {index}: its checksum is wrong")


def other_content(index: int, term: int) -> MalformedBlock:
    """Two different entries with one index and term: never by Raft's rules (Ongaro 2014 figure 3.2, Log Matching)."""
    return MalformedBlock(f"entry {index}: differs from the entry of the same term {term} in this log")


def gap(index: int, last_index: int) -> MalformedBlock:
    """A stored block that does not follow on what was restored before it."""
    return MalformedBlock(f"entry {index}: does not follow entry {last_index}")


def base_differs(index: int) -> MalformedBlock:
    """The stored entry at the snapshot's index is not the one that the snapshot covers."""
    return MalformedBlock(f"entry {index}: is not the entry that the snapshot ends with")


PROGRESS_FIELDS = (
    "peer",
    "match",
    "next",
    "state",
    "pending_snapshot",
    "commit",
    "asked",
    "round",
    "since",
    "doubted",
    "lost",
    "contact",
    "sent",
    "paused",
)
MESSAGE_FIELDS = ("kind", "term", "index", "log_term", "commit", "context", "hint")


def message_fields(*values: object) -> tuple[int, ...]:
    """Return the seven numbers of a message as ints, each in its range.

    Raises:
        TypeError: one is no int.
        InvariantViolated: one is out of range.
    """
    numbers = tuple(whole(name, value) for name, value in zip(MESSAGE_FIELDS, values, strict=True))
    if not 1 <= numbers[0] <= LAST_MESSAGE_KIND:
        raise InvariantViolated(f"the kind of a message must be in [1, {LAST_MESSAGE_KIND}], not {numbers[0]}")
    return numbers


def deleted(name: str) -> AttributeError:
    """`del` of an attribute that must always have a value."""
    return AttributeError(f"{name} must have a value: it is not deleted")


def copied(thing: object) -> TypeError:
    """`copy` or `pickle` of what is one thing: a second one would go its own way, or share its parts."""
    return TypeError(f"a {type(thing).__name__} must not be copied or pickled")


def message_cut(length: int) -> MalformedMessage:
    """Fewer bytes than a message's header."""
    return MalformedMessage(f"a message has at least 50 bytes, not {length}")


def unknown_kind(kind: int) -> MalformedMessage:
    """A kind that this version does not know."""
    return MalformedMessage(f"unknown kind of message: {kind}")


def wrong_flag(flag: int) -> MalformedMessage:
    """A flag is 0 or 1."""
    return MalformedMessage(f"the flag of a message must be 0 or 1, not {flag}")


def number_too_large(*values: int) -> MalformedMessage:
    """A decoded number that does not fit into 63 bits: term, index, log_term, commit, context or hint."""
    name, value = next((n, v) for n, v in zip(MESSAGE_FIELDS[1:], values, strict=True) if v >= LIMIT)
    return MalformedMessage(f"the {name} of a message must be below 2^63, not {value}")


def describe(thing: Any, names: tuple[str, ...]) -> str:
    """The `repr` of a Log, a Progress or a Message: its public numbers."""
    return f"{type(thing).__name__}({', '.join(f'{name}={getattr(thing, name)!r}' for name in names)})"
