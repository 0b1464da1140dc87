"""What a process knows of the directory, the stream in which the processes of a prefix announce themselves.

The records are hints, from anybody who can write to the Redis: so what is kept is bounded, and what the owner believes
is kept before all that it does not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgpack

from raftplug.stream_ids import START, Cursor, FarFuture, number

ENTRIES: Final = 1000
"""The length at which the stream is trimmed, by every process that announces itself."""
TTL_S: Final = 600
_MEMBERS: Final = 10_000
_STRANGERS: Final = 100
_ANNOUNCED_S: Final = 4.0  # By then every node has announced itself again.


class Directory:
    """The newest record of each process, as far as the stream was read.

    Args:
        far: judges ids.

    Attributes:
        cursor: up to where the stream was read.
        is_believed: says of a record whether its owner can believe it.  Of the others only the newest few are kept.
    """

    def __init__(self, far: FarFuture) -> None:
        self.cursor = Cursor(START)
        self.is_believed: Callable[[dict[str, Any]], bool] = lambda record: True
        self._far = far
        self._records: dict[tuple[Any, Any], tuple[int, dict[str, Any]]] = {}
        self._strangers: dict[tuple[Any, Any], tuple[int, dict[str, Any]]] = {}
        self._newest_ms = 0
        self._read = 0  # Entries since the beginning of the stream.
        self._read_all_at: float | None = None

    def start_again(self) -> None:
        """Read the stream from its beginning: it is another one, or may be.  What is known stays known."""
        self.cursor.id = START
        self._read = 0
        self._read_all_at = None

    def compare(self, last: bytes) -> None:
        """See by the stream's last id whether it has fallen behind what was read."""
        self.cursor.compare(last)
        if self.cursor.id == START:
            self.start_again()

    def learn(self, entries: list[Any], is_all: bool, now: float) -> bool:
        """Take in entries that were read; returns whether there was any news.

        Args:
            entries: pairs of an id and fields.
            is_all: whether they were all that there were.
            now: seconds of the owner's clock.
        """
        self._read += len(entries)
        if is_all and self._read_all_at is None:
            self._read_all_at = now
        news = False
        for identity, fields in entries:
            self.cursor.id = identity
            if not self._far.holds(identity):
                self._newest_ms = number(identity)[0]
            if fields[0] != b"r":
                continue
            try:
                record = msgpack.unpackb(fields[1], strict_map_key=True)
                key = (record["cluster"], record["id"])
                hash(key)
                gone = bool(record.get("gone"))
            except (ValueError, TypeError, KeyError, AttributeError):
                continue
            if not isinstance(record, dict):
                continue
            believed = self._is_believed(record)
            known = self._records if believed or gone else self._strangers
            known.pop(key, None)
            if not gone:
                known[key] = (self._newest_ms, record)
                news = True
        if entries:
            # The server's clock stamped both, so what has not been said again for a time to live is over.
            oldest = self._newest_ms - TTL_S * 1000
            _forget(self._records, oldest, _MEMBERS)
            _forget(self._strangers, oldest, _STRANGERS)
        return news

    def records(self) -> list[dict[str, Any]]:
        """What is known: records that are believed, and some of those that are not."""
        return [dict(record) for known in (self._records, self._strangers) for _, record in known.values()]

    def is_empty(self) -> bool:
        """Whether no process is known."""
        return not (self._records or self._strangers)

    def is_complete(self, now: float) -> bool:
        """Whether every process that is there, and announces itself, is known.

        Where so much was written that the stream may have been trimmed before it was read, that takes until each
        has announced itself again.
        """
        if self._read_all_at is None:
            return False
        return self._read < ENTRIES // 2 or now - self._read_all_at >= _ANNOUNCED_S

    def _is_believed(self, record: dict[str, Any]) -> bool:
        try:
            return self.is_believed(record)
        except Exception:
            return False


def _forget(known: dict[tuple[Any, Any], tuple[int, dict[str, Any]]], oldest_ms: int, most: int) -> None:
    while known:
        first = next(iter(known))
        if known[first][0] >= oldest_ms and len(known) <= most:
            return
        del known[first]
