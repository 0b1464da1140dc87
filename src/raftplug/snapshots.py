"""Snapshots in pieces: how they are made, kept for those who need them, fetched, and read.

A snapshot may be larger than memory, and than any frame.  So it is a sequence of pieces, each at most `Settings.
snapshot_piece_bytes`, that goes from the machine to the disk, from disk to disk over the network, and from the disk to
the machine, a few pieces at a time.

**The follower fetches.**  What the rules call a snapshot message is an *offer*: place, size and digest, no data.
Whoever needs the snapshot asks for its pieces, several at a time (`snapshot_window_bytes`), asks again for what does
not come, and stores what does at once; so the sender keeps no state for anybody.  Only when all pieces are on its own
disk and their digest is right does it show the snapshot to the rules.  What was fetched survives a lost frame, another
leader and a restart.

The bytes of a snapshot are, one after the other: plain data [format, kind, configuration], plain data of the session
table, and what the machine gave: plain data (`create_snapshot`), or bytes of its own (`stream_snapshot`).  That of a
witness, which has no state, ends after an empty session table; it is never offered to anybody.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from struct import Struct
from typing import Any, Final
from zlib import crc32

from raftplug import plain
from raftplug.constants import HIGHEST, PIECE, PIECE_REQUEST
from raftplug.errors import MalformedMessage
from raftplug.foreign import type_name
from raftplug.frames import Id
from raftplug.sessions import Sessions
from raftplug.settings import Settings
from raftplug.storage import Discarded, Incoming, Piece, Stored, StoredSnapshot

FORMAT: Final = 2
PLAIN: Final = 0
STREAM: Final = 1
WITNESS: Final = 2
LARGEST_PIECE: Final = 1 << 20
_DIGEST_BYTES: Final = 32
_WRITTEN_AT_ONCE: Final = 1 << 20
_DISCARDED_AT_ONCE: Final = 32
_PLACE: Final = Struct("<QQI")
_OFFER: Final = Struct("<QI32s")
_REQUEST: Final = Struct("<32sI")
_ANSWER: Final = Struct("<32sIBI")
_MOST_PIECES: Final = 1 << 31
_KEPT_TIMEOUTS: Final = 20  # Election timeouts after which nobody fetches a snapshot any more.
_NEVER: Final = 1 << 62
_END: Final = object()
_HERE: Final = 1
_GONE: Final = 0

Send = Callable[[Id, int, bytes], None]
ReadPiece = Callable[[int, int], bytes]
"""Gives a durable piece, by slot and number; raises Corrupt where it is damaged."""


def digest(index: int, term: int, check: int) -> Any:
    """A BLAKE2b hash of a snapshot's place, to be fed its bytes: no two snapshots have the same."""
    return hashlib.blake2b(
        _PLACE.pack(index, term, check), digest_size=_DIGEST_BYTES, person=b"raftplug snap", usedforsecurity=False
    )


# --------------------------------------------------------------------------------------------------------- on the wire


def encode_offer(snapshot: StoredSnapshot) -> bytes:
    """The data of a SNAPSHOT message."""
    return _OFFER.pack(snapshot.size, snapshot.count, snapshot.digest)


def decode_offer(message: Any) -> StoredSnapshot:
    """What a SNAPSHOT message offers; its slot is nobody's yet.

    Raises:
        MalformedMessage: it cannot be.
    """
    if len(message.data) != _OFFER.size:
        raise MalformedMessage("an offer of a snapshot with a wrong length")
    size, count, found = _OFFER.unpack(message.data)
    return checked(StoredSnapshot(message.index, message.log_term, message.hint, size, count, found))


def checked(snapshot: StoredSnapshot) -> StoredSnapshot:
    """Return `snapshot` if there can be one like it.

    Raises:
        MalformedMessage: there cannot.
    """
    if not 0 < snapshot.index <= HIGHEST or not 0 <= snapshot.check < 1 << 32 or len(snapshot.digest) != _DIGEST_BYTES:
        raise MalformedMessage("a snapshot with an index, a check or a digest that cannot be")
    if not 0 < snapshot.count <= min(snapshot.size, _MOST_PIECES) or snapshot.size > snapshot.count * LARGEST_PIECE:
        raise MalformedMessage(f"a snapshot of {snapshot.size} bytes in {snapshot.count} pieces")
    return snapshot


def fields_of(snapshot: StoredSnapshot) -> tuple[int, int, int, int, int, bytes]:
    """All that is said of a snapshot in a reply; the arguments of another StoredSnapshot."""
    return snapshot.index, snapshot.term, snapshot.check, snapshot.size, snapshot.count, snapshot.digest


def from_fields(fields: Any) -> StoredSnapshot:
    """What `fields_of` was given; its slot is nobody's.

    Raises:
        MalformedMessage: there can be no such snapshot.
    """
    kinds = [type(field) for field in fields] if isinstance(fields, list) else []
    if kinds != [int, int, int, int, int, bytes]:
        raise MalformedMessage("a reply that describes no snapshot")
    return checked(StoredSnapshot(*fields))


def encode_request(snapshot: StoredSnapshot, number: int) -> bytes:
    """The body of a PIECE_REQUEST."""
    return _REQUEST.pack(snapshot.digest, number)


def decode_piece(body: bytes) -> tuple[bytes, int, bytes | None]:
    """Digest of the snapshot, number and data of a PIECE; no data if the snapshot is gone.

    Raises:
        MalformedMessage: it is not one, or damaged.
    """
    if len(body) < _ANSWER.size:
        raise MalformedMessage("a piece of a snapshot that is cut off")
    found, number, here, check = _ANSWER.unpack_from(body)
    data = body[_ANSWER.size :]
    if here > _HERE or len(data) > LARGEST_PIECE or crc32(data, number) != check or bool(data) is not bool(here):
        raise MalformedMessage("a piece of a snapshot that is damaged")
    return found, number, data if here else None


def _encode_piece(found: bytes, number: int, data: bytes) -> bytes:
    return _ANSWER.pack(found, number, _HERE if data else _GONE, crc32(data, number)) + data


# ------------------------------------------------------------------------------------------------------- what is in it


def contents(configuration: list[Any], sessions: Any, kind: int, machine: Iterable[bytes]) -> Iterator[bytes]:
    """The bytes of a snapshot.

    Args:
        configuration, sessions: as of its index, plain data.
        kind, machine: PLAIN and the parts of encoded plain data, STREAM and a machine's own bytes, or WITNESS and
            nothing.
    """
    yield plain.encode([FORMAT, kind, configuration])
    yield from plain.encode_in_parts(sessions)
    yield from machine


class Reader:
    """Reads a snapshot from its pieces.

    Args:
        snapshot: which.
        read: gives a piece by its number.

    Attributes:
        configuration, sessions: what every snapshot holds.
        kind: PLAIN, STREAM or WITNESS.

    Raises:
        MalformedMessage: it is no snapshot of this version.
    """

    def __init__(self, snapshot: StoredSnapshot, read: Callable[[int], bytes]) -> None:
        self.snapshot = snapshot
        self._read = read
        self._decoder = plain.Decoder(_Bytes(self.pieces()), snapshot.size)
        head = self._decoder.next(plain.DEPTH)
        if not isinstance(head, list) or len(head) != 3 or head[0] != FORMAT or head[1] not in (PLAIN, STREAM, WITNESS):
            raise MalformedMessage("not a snapshot of this version")
        self.kind: int = head[1]
        self.configuration: list[Any] = head[2]
        self.sessions = Sessions.restore(self._decoder.next())

    def pieces(self) -> Iterator[bytes]:
        """All of its bytes."""
        return (self._read(number) for number in range(self.snapshot.count))

    def data(self) -> Any:
        """The plain data of a PLAIN one."""
        return self._decoder.next()

    def stream(self) -> Iterator[bytes]:
        """The machine's own bytes of a STREAM one."""
        skip = self._decoder.position()
        for piece in self.pieces():
            if skip < len(piece):
                yield piece[skip:]
            skip = max(0, skip - len(piece))


def verify(snapshot: StoredSnapshot, pieces: Iterable[bytes]) -> Iterator[None]:
    """Compare bytes with what they should be, with a stop after each piece.

    Raises:
        MalformedMessage: at the end: they are others.
    """
    hasher, size = digest(snapshot.index, snapshot.term, snapshot.check), 0
    for piece in pieces:
        hasher.update(piece)
        size += len(piece)
        yield
    if (size, hasher.digest()) != (snapshot.size, snapshot.digest):
        raise MalformedMessage(f"the digest of the snapshot at index {snapshot.index} is wrong: it was refused")


class _Bytes:
    """What `plain.Decoder` reads from: pieces, one after another."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._left = b""

    def read(self, count: int, /) -> bytes:
        if not self._left:
            self._left = next(self._pieces, b"")
        given, self._left = self._left[:count], self._left[count:]
        return given


# -------------------------------------------------------------------------------------------------------------- making


class Making:
    """A snapshot that is being made, piece by piece, of what a machine gave.

    Args:
        index, term, check: its place.
        slot: where its pieces go.
        stream: its bytes, in parts of any size.
        piece_bytes: how large the pieces are.
    """

    def __init__(self, index: int, term: int, check: int, slot: int, stream: Iterator[bytes], piece_bytes: int) -> None:
        self.index = index
        self.slot = slot
        self.count = 0
        self._place = (index, term, check)
        self._hasher = digest(index, term, check)
        self._size = 0
        self._stream = stream
        self._piece_bytes = piece_bytes
        self._buffer = bytearray()
        self._ended = False

    def next(self) -> Piece | None:
        """The next piece, or None when all were given; raises whatever the machine does."""
        buffer = self._buffer
        while len(buffer) < self._piece_bytes and not self._ended:
            part = next(self._stream, _END)
            if part is _END:
                self._ended = True
            elif not isinstance(part, bytes | bytearray | memoryview):
                raise TypeError(f"stream_snapshot gives bytes, not {type_name(part)}")
            else:
                buffer += part
        if not buffer:
            return None
        data = bytes(buffer[: self._piece_bytes])
        del buffer[: self._piece_bytes]
        self._hasher.update(data)
        self._size += len(data)
        self.count += 1
        return Piece(self.slot, self.count - 1, data)

    def made(self) -> StoredSnapshot:
        """What it has become, after the last piece."""
        return StoredSnapshot(*self._place, self._size, self.count, self._hasher.digest(), self.slot)


# ------------------------------------------------------------------------------------------------------------ fetching


class Fetch:
    """A snapshot that is being fetched: which pieces to ask for, and which can be stored.

    Pieces are stored in their order, so that how many there are says which.

    Args:
        snapshot: which; its slot is ours.
        source: who has it.
        have: so many pieces are stored already.
        window_bytes: how much may be asked for and not stored yet.
        patience_us: when a piece is asked for again.
    """

    def __init__(self, snapshot: StoredSnapshot, source: Id, have: int, window_bytes: int, patience_us: int) -> None:
        self.snapshot = snapshot
        self.source = source
        self.have = have
        self.gone = False
        """Whether the source said that it has it no more."""
        self.heard_us: int | None = None
        """When the source last gave something, or was first asked."""
        self._window = max(1, window_bytes * snapshot.count // snapshot.size)
        self._patience_us = patience_us
        self._asked: dict[int, int] = {}
        self._arrived: dict[int, bytes] = {}

    def is_complete(self) -> bool:
        """Whether nothing more need be asked for."""
        return self.have == self.snapshot.count

    def wanted(self, now: int) -> list[int]:
        """The pieces to ask for now; to be called again at `deadline`, and after every `take`."""
        if self.gone:
            return []
        if self.heard_us is None:
            self.heard_us = now
        due = [
            number
            for number in range(self.have, min(self.have + self._window, self.snapshot.count))
            if number not in self._arrived and self._asked.get(number, -self._patience_us) + self._patience_us <= now
        ]
        self._asked.update(dict.fromkeys(due, now))
        return due

    def deadline(self) -> int:
        """When a piece is to be asked for again: microseconds."""
        times = [at for number, at in self._asked.items() if number not in self._arrived]
        return _NEVER if self.gone or not times else min(times) + self._patience_us

    def turn_to(self, source: Id) -> None:
        """Ask somebody else from now on, who offers the same."""
        self.source, self.gone, self.heard_us = source, False, None
        self._asked.clear()

    def take(self, number: int, data: bytes | None, now: int) -> None:
        """A piece came, or the word that there is none.  What was not asked for changes nothing."""
        if number not in self._asked:
            return
        if data is None:
            self.gone = True
        else:
            self.heard_us = now
            self._arrived.setdefault(number, data)

    def storable(self) -> list[Piece]:
        """What goes to the store now, in order; it counts as stored from now on."""
        pieces = []
        while self.have in self._arrived:
            pieces.append(Piece(self.snapshot.slot, self.have, self._arrived.pop(self.have)))
            self._asked.pop(self.have, None)  # It may have come before we turned to another source.
            self.have += 1
        return pieces

    def is_silent(self, now: int, time_us: int) -> bool:
        """Whether the source gives it no more, or has said nothing for that long."""
        return self.gone or (self.heard_us is not None and now - self.heard_us >= time_us)


class Part:
    """What a write holds of snapshots."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self.incoming: Incoming | None = None
        self.discard: list[Discarded] = []
        self.made: StoredSnapshot | None = None

    def __bool__(self) -> bool:
        return bool(self.pieces or self.incoming or self.discard or self.made)


class Snapshots:
    """The snapshots of one replica: the current one, perhaps the one before, one in the making, one being fetched.

    Args:
        stored: what the storage holds.
        settings: sizes and times.
        send: queues an item for another process.
        read: see `ReadPiece`.

    Attributes:
        current: the snapshot that is offered; durable.
        making: the one that is being made of our own state, or None.
        fetch: the one that is being fetched, or None.
        fetched: the one that was fetched, is durable, and not verified yet; or None.
    """

    def __init__(self, *, stored: Stored, settings: Settings, send: Send, read: ReadPiece) -> None:
        self.current = stored.snapshot
        self.making: Making | None = None
        self.fetch: Fetch | None = None
        self.fetched: StoredSnapshot | None = None
        self._settings = settings
        self._send = send
        self._read = read
        self._patience_us = 1000 * settings.election_timeout_ms
        self._previous: StoredSnapshot | None = None  # Overtaken, and still fetched by somebody.
        self._asked_us: dict[int, int] = {}  # When a snapshot was last asked for, by slot.
        self._garbage: deque[Discarded] = deque(stored.leftovers)
        self._unwritten: Incoming | None = None
        self._writing: Fetch | None = None  # Its last pieces are being written.
        self._wanted = False  # Whether a leader has offered something that we need.
        incoming = stored.incoming
        slots = [each.slot for each in stored.leftovers]
        slots += [each.slot for each in (self.current, incoming.snapshot if incoming else None) if each is not None]
        self._next_slot = max(slots, default=-1) + 1
        if incoming is not None:
            self.fetch = self._new_fetch(incoming.snapshot, incoming.source, incoming.have)
            self._notice_end(self.fetch)

    def reader(self, snapshot: StoredSnapshot) -> Callable[[int], bytes]:
        """Gives the pieces of `snapshot` by number."""
        return lambda number: self._read(snapshot.slot, number)

    # -- for others ------------------------------------------------------------------------------------------------

    def on_request(self, source: Id, body: bytes, now: int) -> None:
        """Somebody asks for a piece.

        Raises:
            MalformedMessage: it is no such request.
        """
        if len(body) != _REQUEST.size:
            raise MalformedMessage("a request for a piece of a snapshot with a wrong length")
        found, number = _REQUEST.unpack(body)
        data = b""
        for snapshot in (self.current, self._previous):
            if snapshot is not None and snapshot.digest == found:
                if number >= snapshot.count:
                    raise MalformedMessage(f"a request for piece {number} of a snapshot of {snapshot.count}")
                self._asked_us[snapshot.slot] = now
                data = self._read(snapshot.slot, number)
                break
        self._send(source, PIECE, _encode_piece(found, number, data))

    def held_index(self, now: int) -> int | None:
        """The index of the oldest snapshot that somebody fetches: they will need what follows it."""
        kept = (each for each in (self.current, self._previous) if each is not None)
        return min((each.index for each in kept if self._is_fetched(each, now)), default=None)

    def _is_fetched(self, snapshot: StoredSnapshot, now: int) -> bool:
        # Whoever fetches it may be started anew meanwhile.
        return now < self._asked_us.get(snapshot.slot, -_NEVER) + _KEPT_TIMEOUTS * self._patience_us

    # -- our own ---------------------------------------------------------------------------------------------------

    def may_make(self, now: int) -> bool:
        """Whether one of our own state may be begun: not while it would take one away that somebody fetches."""
        if self.making is not None or self.fetch is not None or self.fetched is not None:
            return False
        return self._previous is None or not self._is_fetched(self._previous, now)

    def make(self, index: int, term: int, check: int, stream: Iterator[bytes]) -> None:
        """Begin one; what it holds was captured already."""
        self.making = Making(index, term, check, self._new_slot(), stream, self._settings.snapshot_piece_bytes)

    def abandon_making(self) -> None:
        """It was overtaken, or failed."""
        if self.making is not None:
            self._discard(self.making.slot, self.making.count)
            self.making = None

    # -- fetching --------------------------------------------------------------------------------------------------

    def consider(self, offer: StoredSnapshot, source: Id, now: int) -> None:
        """A leader offers what we need: fetch it, unless one is being fetched, and still given, already."""
        self._wanted = True
        if self.fetched is not None:
            return
        fetch = self.fetch
        if fetch is not None and fetch.snapshot.digest == offer.digest:
            if fetch.source != source and fetch.is_silent(now, 2 * self._patience_us):
                fetch.turn_to(source)
            return
        if fetch is not None and not fetch.is_silent(now, 4 * self._patience_us):
            return
        self.abandon_fetch()
        slot = self._new_slot()
        ours = StoredSnapshot(offer.index, offer.term, offer.check, offer.size, offer.count, offer.digest, slot)
        self.fetch = self._new_fetch(ours, source, 0)
        self._unwritten = Incoming(ours, source)
        self.abandon_making()

    def on_piece(self, source: Id, body: bytes, now: int) -> None:
        """A piece came: it is kept if we asked for it.

        Raises:
            MalformedMessage: it is none, or damaged.
        """
        found, number, data = decode_piece(body)
        if self.fetch is not None and (self.fetch.source, self.fetch.snapshot.digest) == (source, found):
            self.fetch.take(number, data, now)

    def abandon_fetch(self) -> None:
        """What was fetched is not needed, or not what it should be."""
        for slot, count in [
            *(
                [(self.fetch.snapshot.slot, max(1, self.fetch.have))] if self.fetch else []
            ),  # And the row that names it.
            *([(self.fetched.slot, self.fetched.count)] if self.fetched else []),
        ]:
            self._discard(slot, count)
        self.fetch = self.fetched = self._unwritten = None

    def tick(self, now: int) -> None:
        """Ask for what is wanted, and let go of what nobody fetches any more."""
        if self._previous is not None and not self._is_fetched(self._previous, now):
            self._discard(self._previous.slot, self._previous.count)
            self._previous = None
        if self.fetch is not None and self._wanted:
            for number in self.fetch.wanted(now):
                self._send(self.fetch.source, PIECE_REQUEST, encode_request(self.fetch.snapshot, number))

    def deadline(self) -> int:
        """When `tick` is due: microseconds."""
        due = _NEVER
        if self.fetch is not None and self._wanted:
            due = self.fetch.deadline()
        if self._previous is not None:
            due = min(due, self._asked_us[self._previous.slot] + _KEPT_TIMEOUTS * self._patience_us)
        return due

    # -- the store -------------------------------------------------------------------------------------------------

    def is_at_work(self) -> bool:
        """Whether `part` may have something."""
        return bool(self._garbage) or self.fetch is not None or self.making is not None

    def part(self, is_over: Callable[[], bool]) -> Part:
        """What goes into the next write: `written` must follow before it is asked for again.

        Args:
            is_over: whether the time of this turn is.

        Raises:
            Exception: whatever the machine raises while its state is put into pieces.
        """
        part = Part()
        size = 0
        while self._garbage and len(part.discard) < 1:
            slot, low, high = self._garbage.popleft()
            middle = max(low, high - _DISCARDED_AT_ONCE)  # From the end on: see `RecordStorage._pieces_in`.
            part.discard.append(Discarded(slot, middle, high))
            if middle > low:
                self._garbage.appendleft(Discarded(slot, low, middle))
        if self.fetch is not None:
            part.incoming, self._unwritten = self._unwritten, None
            part.pieces = self.fetch.storable()
            self._writing = self.fetch
        elif self.making is not None:
            while size < _WRITTEN_AT_ONCE:
                piece = self.making.next()
                if piece is None:
                    part.made, self.making = self.making.made(), None
                    break
                part.pieces.append(piece)
                size += len(piece.data)
                if is_over():
                    break
        return part

    def written(self) -> None:
        """The last `part` is durable."""
        writing, self._writing = self._writing, None
        if writing is not None and writing is self.fetch:
            self._notice_end(writing)

    def _notice_end(self, fetch: Fetch) -> None:
        if fetch.is_complete():
            self.fetch, self.fetched = None, fetch.snapshot

    def adopt(self, snapshot: StoredSnapshot, now: int) -> None:
        """`snapshot` is the current one on the disk."""
        if self.fetched is not None and self.fetched.slot == snapshot.slot:
            self.fetched = None
        before, self.current = self.current, snapshot
        if before is None:
            return
        if self._is_fetched(before, now):
            before, self._previous = self._previous, before
        if before is not None:
            self._discard(before.slot, before.count)

    def _discard(self, slot: int, count: int) -> None:
        self._asked_us.pop(slot, None)
        if count:
            self._garbage.append(Discarded(slot, 0, count))

    def _new_slot(self) -> int:
        self._next_slot += 1
        return self._next_slot - 1

    def _new_fetch(self, snapshot: StoredSnapshot, source: Id, have: int) -> Fetch:
        return Fetch(snapshot, source, have, self._settings.snapshot_window_bytes, self._patience_us)
