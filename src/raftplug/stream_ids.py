"""Ids of the entries of a Redis stream: read, compared and judged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

START: Final = b"0-0"
_AHEAD_MS: Final = 3_600_000  # Clocks of one cluster differ by less.
_NO_CLOCK_MS: Final = 1 << 53  # 285,000 years after 1970.


class Cursor:
    """Up to where a stream was read.

    A server that lost its data, or a successor whose clock is slower, gives new entries ids below the cursor, and an
    XREAD then returns nothing, silently, for ever: so a reader compares now and then with the stream's last id.
    """

    def __init__(self, id: bytes | None = None) -> None:
        self.id = id

    def compare(self, last: bytes) -> None:
        """Start again if the stream, whose last id this is, has fallen behind; frames know what was delivered."""
        if self.id is not None and number(last) < number(self.id):
            self.id = START


class FarFuture:
    """Finds ids that no server's clock gave, since an entry was written with an id of its writer's choice.

    The server continues from such an id, so that ids say nothing about time any more; and behind the last possible
    one a stream takes no entry, for ever.  Such a stream has to be deleted and made again.

    Args:
        wall_ms: wall-clock time, milliseconds since 1970.
    """

    def __init__(self, wall_ms: Callable[[], int]) -> None:
        self._wall_ms = wall_ms
        self._trusts_clock = True

    def holds(self, identity: bytes) -> bool:
        """Whether an id is of the far future."""
        at_ms = number(identity)[0]
        return at_ms >= _NO_CLOCK_MS or (self._trusts_clock and at_ms > self._wall_ms() + _AHEAD_MS)

    def learn(self, identity: bytes) -> None:
        """Take note of the id that the server gave the first entry of a stream that was made again.

        If that is of the far future, too, then it is our clock that is wrong, and it is not asked any more.
        """
        self._trusts_clock = self._trusts_clock and not self.holds(identity)


def number(identity: bytes) -> tuple[int, int]:
    """A stream id as what it is, so that ids compare: milliseconds and sequence."""
    milliseconds, _, sequence = identity.partition(b"-")
    return int(milliseconds), int(sequence)


def entries_of(reply: Any) -> list[Any]:
    """The entries of an XREAD of one stream: a map in RESP3, a list of pairs in RESP2, nothing when idle."""
    if not reply:
        return []
    entries: list[Any] = next(iter(reply.values())) if isinstance(reply, dict) else reply[0][1]
    return entries


def last_id_of(reply: Any) -> bytes:
    """last-generated-id of an XINFO STREAM: a map in RESP3, a flat list in RESP2."""
    fields = reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))
    return bytes(fields[b"last-generated-id"])
