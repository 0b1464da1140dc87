"""Plain data: the values that transitions, queries, results and snapshots are made of, and their bytes.

Plain are None, bool, int from -2^63 to 2^64 - 1, float, str, bytes, list, and dict with str or int keys: nothing that
comes back from its bytes as something else.  So a tuple is refused rather than turned into a list, and a subclass
rather than stripped of what it adds.  The bytes are msgpack.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final, Protocol

import msgpack

from raftplug.errors import InvalidTransition, MalformedMessage
from raftplug.foreign import described, short, text_of, type_name

DEPTH: Final = 100
"""In a transition, query or result lists and dicts may be nested this deep; it also ends a list that holds itself."""
SNAPSHOT_DEPTH: Final = 300
"""In a snapshot, deeper: a machine wraps what it was given, so that what was accepted can always be snapshotted."""

_PART_BYTES: Final = 64 << 10
_SCALARS: Final = frozenset({type(None), bool, int, float, str, bytes})
_KEYS: Final = frozenset({str, int})
_packers: list[msgpack.Packer] = []  # Idle: to make one costs more than to use it.
_WHAT = "use None, bool, int, float, str, bytes, list, or dict with str or int keys"


def encode(value: object, depth: int = DEPTH) -> bytes:
    """Return the bytes of plain data, in which lists and dicts are nested at most `depth` deep.

    Raises:
        InvalidTransition: it is not plain data; the message says which part, and where.
    """
    try:
        if type(value) in _SCALARS or _is_plain(value, depth):
            # Types are checked above, since msgpack takes more than is plain (bytearray, any key); strict_types stays,
            # so that what another thread puts in meanwhile is not turned into something else.
            try:
                packer = _packers.pop()  # It is nobody else's until it is put back.
            except IndexError:
                packer = msgpack.Packer(strict_types=True)
            data: bytes = packer.pack(value)
            if len(data) <= _PART_BYTES:  # Else it would keep as much memory.
                _packers.append(packer)
            return data
    except MemoryError:
        raise
    except Exception as error:  # Also what a metaclass raises while its class is looked up.
        raise InvalidTransition(_fault(value, depth) or f"not plain data: {described(error)}") from None
    raise InvalidTransition(_fault(value, depth) or "it was changed while it was encoded: copy it first")


def decode(data: bytes, depth: int = DEPTH) -> Any:
    """Return the plain data that `data` encodes.  What it claims to hold is bounded by its own length.

    Raises:
        MalformedMessage: it encodes none.
    """
    try:
        value = msgpack.unpackb(data, raw=False, strict_map_key=False, timestamp=1, ext_hook=_refuse)
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException, RecursionError) as error:
        why = text_of(error) or type_name(error)
        raise MalformedMessage(f"these {len(data)} bytes are not plain data: {why}") from None
    if type(value) in _SCALARS or _is_plain(value, depth):
        return value
    raise MalformedMessage(f"these {len(data)} bytes are not plain data: {_fault(value, depth)}")


def encode_in_parts(value: object, depth: int = SNAPSHOT_DEPTH) -> Iterator[bytes]:
    """The bytes of plain data a part at a time, so that they need not all be there at once.

    Raises:
        InvalidTransition: while it goes on: it is not plain data, or was changed meanwhile.
    """
    packer = msgpack.Packer(strict_types=True, autoreset=False)
    try:
        for _ in _pack(packer, value, depth):
            if packer.getbuffer().nbytes >= _PART_BYTES:
                yield packer.bytes()
                packer.reset()
    except MemoryError:
        raise
    except Exception as error:
        raise InvalidTransition(_fault(value, depth) or f"not plain data: {described(error)}") from None
    yield packer.bytes()


def _pack(packer: msgpack.Packer, value: Any, depth: int) -> Iterator[None]:
    """Pack `value`, with a stop after each item in it."""
    kind = type(value)
    if kind is not list and kind is not dict:
        if kind not in _SCALARS:
            raise TypeError(type_name(value))
        packer.pack(value)
        yield
        return
    if depth <= 0:
        raise ValueError("nested too deep")
    if kind is dict:
        if not _KEYS.issuperset(map(type, value)):
            raise TypeError("a key")
        packer.pack_map_header(len(value))
    else:
        packer.pack_array_header(len(value))
    for key in value:
        item = key
        if kind is dict:
            packer.pack(key)
            item = value[key]
        if type(item) in _SCALARS:
            packer.pack(item)
            yield
        else:
            yield from _pack(packer, item, depth - 1)


class Source(Protocol):
    """Where `Decoder` gets bytes from: as a file, it gives at most `count` of them, and none at its end."""

    def read(self, count: int, /) -> bytes: ...


class Decoder:
    """Decodes values that stand one after another, without having all of their bytes at once.

    Args:
        source: their bytes.
        limit: no value claims to hold more items or bytes than this.
    """

    def __init__(self, source: Source, limit: int) -> None:
        self._unpacker = msgpack.Unpacker(
            source,
            raw=False,
            strict_map_key=False,
            timestamp=1,
            ext_hook=_refuse,
            read_size=_PART_BYTES,
            max_buffer_size=max(limit, _PART_BYTES),
        )

    def next(self, depth: int = SNAPSHOT_DEPTH) -> Any:
        """The next value.

        Raises:
            MalformedMessage: there is none.
        """
        try:
            value = self._unpacker.unpack()
        except (ValueError, TypeError, OverflowError, msgpack.UnpackException, RecursionError) as error:
            raise MalformedMessage(f"not plain data: {text_of(error) or type_name(error)}") from None
        if not _is_plain(value, depth):
            raise MalformedMessage(f"not plain data: {_fault(value, depth)}")
        return value

    def position(self) -> int:
        """How many bytes the values took so far."""
        return int(self._unpacker.tell())


def _refuse(code: int, data: bytes) -> None:
    raise ValueError(f"an extension type ({code})")


def _is_plain(value: object, depth: int) -> bool:
    """True if every type in `value` is plain.  One pass over each container runs in C; only containers recurse."""
    kind = type(value)
    if kind in _SCALARS:
        return True
    inside: Iterable[object]
    if kind is dict:
        if not _KEYS.issuperset(map(type, value)):  # type: ignore[call-overload]
            return False
        inside = value.values()  # type: ignore[attr-defined]
    elif kind is list:
        inside = value  # type: ignore[assignment]
    else:
        return False
    if depth == 0:
        return False
    if _SCALARS.issuperset(map(type, inside)):
        return True
    for item in inside:  # noqa: SIM110  # `all` would take two frames a level.
        if type(item) not in _SCALARS and not _is_plain(item, depth - 1):
            return False
    return True


def _fault(value: object, depth: int) -> str | None:
    """Where `value` is not plain data, and why.  It runs only after a refusal, so it may take its time."""
    pending: list[tuple[object, tuple[object, ...]]] = [(value, ())]
    while pending:
        here, path = pending.pop()
        where = "".join(f"[{short(step, 40)}]" for step in path[:8]) + ("…" if len(path) > 8 else "")
        reason = _fault_of_one(here, depth - len(path))
        if reason is not None:
            return f"at {where}: {reason}" if path else reason
        if type(here) is dict:
            pairs = list(here.items())
        elif type(here) is list:
            pairs = list(enumerate(here))
        else:
            continue
        for key, _ in pairs:
            if type(here) is dict and (not _is_one_of(type(key), _KEYS) or _fault_of_one(key, depth)):
                reason = _fault_of_one(key, depth) or f"{type_name(key)} cannot be a key"
                return f"in the keys{' at ' + where if path else ''}: {reason}; {_WHAT}"
        pending.extend((item, (*path, key)) for key, item in reversed(pairs))
    return None


def _fault_of_one(value: object, depth: int) -> str | None:
    kind = type(value)
    if kind is int and not -(1 << 63) <= value < 1 << 64:  # type: ignore[operator]
        return "an int outside -2^63 … 2^64 - 1 is not plain data: send it as a str"
    if kind is str:
        try:
            value.encode()  # type: ignore[attr-defined]
        except UnicodeEncodeError:
            return "a str with a lone surrogate is not plain data: send it as bytes"
    if (kind is list or kind is dict) and depth <= 0:
        return "nested too deep"
    if kind is tuple:
        return "tuple is not plain data: use a list"
    if not _is_one_of(kind, _SCALARS) and kind is not list and kind is not dict:
        return f"{type_name(value)} is not plain data; {_WHAT}"
    return None


def _is_one_of(kind: type, kinds: frozenset[type]) -> bool:
    """By identity: a metaclass can say that it equals any class, or raise."""
    return any(kind is each for each in kinds)
