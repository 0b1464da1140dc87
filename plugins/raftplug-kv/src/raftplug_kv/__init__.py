"""A key-value store that raftplug replicates: the state machine "kv"."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from typing import Any, Final

import msgpack

from raftplug import Snapshot, StateMachine, hookimpl

__all__ = ["KV", "raftplug_state_machines"]

_PART_BYTES: Final = 64 << 10

_ABSENT = object()
_MOST_CHANGED = 4_096

_FIELDS = {
    "put": {"op", "key", "value"},
    "delete": {"op", "key"},
    "append": {"op", "key", "value"},
    "cas": {"op", "key", "expect", "value"},
    "get": {"op", "key"},
}


@hookimpl
def raftplug_state_machines() -> dict[str, type[KV]]:
    return {"kv": KV}


class KV(StateMachine):
    """Keys are strings, values any plain data; an absent key reads as None.

    A stored value is never changed in place, only replaced: so a snapshot need not copy the values, and a list or dict
    is copied where it comes in and where it leaves.
    """

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}
        # The digest is a sum over the items, so that it costs what changed since it was asked for, not what there is.
        self._sum: int | None = 0  # None after a snapshot: made when it is first asked for.
        self._changed: dict[str, Any] = {}  # key -> its value when the sum was made; absent ones as _ABSENT

    def apply_transition(self, transition: Any) -> Any:
        """Apply a put, delete, append or cas (see README.md).

        Raises:
            ValueError: it is none of these, or does not fit what is stored; nothing was changed.
        """
        op, key = _check(transition, {"put", "delete", "append", "cas"})
        if op == "put":
            self._store(key, _copy(transition["value"]))
            return None
        if op == "delete":
            found = key in self._values
            if found:
                self._note(key)
                del self._values[key]
            return found
        if op == "append":
            return self._append(key, transition["value"])
        if not same(self._values.get(key), transition["expect"]):
            return False
        self._store(key, _copy(transition["value"]))
        return True

    def query(self, request: Any) -> Any:
        """Answer a get.

        Raises:
            ValueError: it is none.
        """
        _, key = _check(request, {"get"})
        return _copy(self._values.get(key))

    def digest(self) -> bytes:
        """Return 16 bytes that are the same wherever the items are: the sum of the items' hashes."""
        if self._sum is None:
            self._sum = sum(_hash(key, value) for key, value in self._values.items())
        for key, before in self._changed.items():
            self._sum += _hash(key, self._values.get(key, _ABSENT)) - _hash(key, before)
        self._changed.clear()
        return (self._sum % (1 << 128)).to_bytes(16, "little")

    def create_snapshot(self, last_included_index: int, last_included_term: int) -> Snapshot:
        return Snapshot(last_included_index, last_included_term, dict(self._values))

    def set_snapshot(self, snapshot: Snapshot) -> None:
        """Take over the state of a snapshot.

        Raises:
            ValueError: it is none of this machine's; nothing was changed.
        """
        data = snapshot.data
        if type(data) is not dict or any(type(key) is not str for key in data):
            raise ValueError("this is no snapshot of a kv machine: a dict with str keys is wanted")
        self._values = dict(data)
        self._sum, self._changed = None, {}

    def stream_snapshot(self, last_included_index: int, last_included_term: int) -> Iterator[bytes]:
        return _packed(dict(self._values))

    def load_snapshot(self, last_included_index: int, last_included_term: int, pieces: Iterator[bytes]) -> None:
        """Take over the state that `stream_snapshot` gave.

        Raises:
            ValueError: it is none of this machine's; what was there before is gone all the same, to make room.
        """
        self._values = {}
        self._sum, self._changed = None, {}
        unpacker = msgpack.Unpacker(strict_map_key=False, max_buffer_size=0)
        key = None
        for piece in pieces:
            unpacker.feed(piece)
            for item in unpacker:
                if key is None:
                    key = item
                    if type(key) is not str:
                        raise ValueError("this is no snapshot of a kv machine: keys are strings")
                else:
                    self._values[key], key = item, None
        if key is not None:
            raise ValueError(f"this snapshot of a kv machine ends after the key {_short(key)}")

    def _append(self, key: str, addition: Any) -> str:
        if type(addition) is not str:
            raise ValueError(f"append: value must be a string, not {_kind(addition)}")
        value = self._values.get(key)
        if value is None:
            value = ""
        if type(value) is not str:
            raise ValueError(f"append: the value of {_short(key)} is not a string but {_kind(value)}")
        self._store(key, value + addition)
        return value + addition

    def _store(self, key: str, value: Any) -> None:
        self._note(key)
        self._values[key] = value

    def _note(self, key: str) -> None:
        """The item is about to change."""
        if self._sum is not None and key not in self._changed:
            self._changed[key] = self._values.get(key, _ABSENT)
            if len(self._changed) >= _MOST_CHANGED:
                self.digest()


def _hash(key: str, value: Any) -> int:
    """Of an item; `ascii` writes plain data in one way, on every machine and version."""
    if value is _ABSENT:
        return 0
    return int.from_bytes(blake2b(ascii([key, value]).encode(), digest_size=16).digest(), "little")


def _packed(values: dict[str, Any]) -> Iterator[bytes]:
    """Key, value, key, value … as msgpack, in parts."""
    packer = msgpack.Packer(autoreset=False)
    for key, value in values.items():
        packer.pack(key)
        packer.pack(value)
        if packer.getbuffer().nbytes >= _PART_BYTES:
            yield packer.bytes()
            packer.reset()
    yield packer.bytes()


def same(a: Any, b: Any) -> bool:
    """True if two pieces of plain data are the same: of the same types too, so that True is not 1, nor 1 1.0.

    NaN is the same as NaN, and 0.0 the same as -0.0.
    """
    if type(a) is not type(b):
        return False
    if type(a) is list:
        return len(a) == len(b) and all(map(same, a, b))
    if type(a) is dict:
        return len(a) == len(b) and all(key in b and same(value, b[key]) for key, value in a.items())
    return bool(a == b) or (a != a and b != b)


def _check(request: Any, allowed: set[str]) -> tuple[str, str]:
    """The op and key of a transition or query, or a ValueError that says what is wrong with it."""
    if type(request) is not dict:
        raise ValueError(f'a dict like {{"op": …, "key": …}} is wanted, not {_kind(request)}')
    op = request.get("op")
    if type(op) is not str or op not in allowed:
        raise ValueError(f"op must be one of {', '.join(sorted(allowed))}, not {_short(op)}")
    if request.keys() != _FIELDS[op]:
        for field in sorted(_FIELDS[op]):
            if field not in request:
                raise ValueError(f"{op}: {field!r} is missing")
        extra = next(field for field in request if field not in _FIELDS[op])
        raise ValueError(f"{op}: unknown field {_short(extra)}")
    key = request["key"]
    if type(key) is not str:
        raise ValueError(f"{op}: key must be a string, not {_kind(key)}")
    return op, key


def _copy(value: Any) -> Any:
    if type(value) is list:
        return [_copy(item) for item in value]
    if type(value) is dict:
        return {key: _copy(item) for key, item in value.items()}
    return value


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
