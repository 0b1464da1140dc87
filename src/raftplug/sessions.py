"""Exactly once: a replicated table of which (session, sequence) was executed, and with what result.

A client that got no answer asks again, perhaps another leader.  Every replica applies the same log to this table, so a
transition that is already in it is answered from it and not executed again (Ongaro 2014 §6.3).  The table keeps the
*set* of executed sequences from the client's watermark on, never a maximum: a client has many transitions on their way,
and a retried lower one must not be swallowed by a higher one that came first.

It is a pure function of the log.  There is no clock in it: time is what the entries say, the highest seen so far.  The
limits are part of the replicated state, too: replicas that disagree on them diverge.  So those of one session are
constants of this version.  The bounds of the whole table are settings, and travel in the log: the leader writes its own
into each opening of a session, and every replica goes by the ones that were applied last.

**Batches.**  Several transitions may be admitted before the result of the first is recorded, how many differs from
replica to replica, and must not matter.  What is decided while a result is recorded depends on the bytes that are kept;
so bytes that a later admission frees count until all that was admitted before it is recorded (`_later`).
"""

from __future__ import annotations

import struct
from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Any, Final

from raftplug.constants import ALREADY, FAILED, LIMIT, OK, REFUSED_OVERLOADED, SESSION_EXPIRED, UNDELIVERABLE, UNKNOWN
from raftplug.errors import InvalidArgument, InvariantViolated, MalformedMessage
from raftplug.foreign import type_name

SESSION_TIMEOUT_US: Final = 3_600 * 1_000_000
"""A session without a name that was idle for longer than this, in logged time, is dropped."""
NAMED_SESSION_TIMEOUT_US: Final = 7 * 24 * 3_600 * 1_000_000
"""The same for a session with a name: its user may come back and repeat everything under that name."""
MAX_SESSIONS: Final = 10_000
"""Sessions without a name, and again sessions with one; opening one more drops the least recently used of its kind.
Until an opening says otherwise."""
MAX_SESSION_BYTES: Final = 256 << 20
"""Bytes of the results of all sessions, likewise: one beyond it is not kept, and an opening beyond three quarters of it
drops the least recently used sessions until there is room."""
_SEQUENCE_BYTES: Final = 100
"""What an executed sequence costs besides its result: of these, too, the table keeps as many bytes and no more."""
MAX_RESULTS: Final = 100_000
"""Executed sequences that one session keeps; beyond it transitions are refused, until the watermark rises."""
MAX_RESULT_BYTES: Final = 64 << 20
"""Bytes of results that one session keeps, and a quarter of the table's at most; one beyond it is not kept, and UNKNOWN
is the answer to a client that asks for it again."""
MAX_NAME_BYTES: Final = 256

_CODES: Final = (OK, FAILED, UNKNOWN, UNDELIVERABLE)
UNDER_WAY: Final = (UNKNOWN, None)
"""What `admit` says of a transition that was let through, and has no result yet."""

_EVICTED: Final = 1_000  # So many sessions are remembered that were dropped to make room: for the error's text.

Bounds = tuple[int, int]
"""Sessions of each kind, and bytes of results of all of them."""

_TIME = struct.Struct("<q")
_BOUNDS = struct.Struct("<BQQ")
_MARK: Final = 0xFF  # No byte of a name: UTF-8 has none like it.
_LARGEST_BOUND: Final = 1 << 40
_HEAD = struct.Struct("<qQQQ")


def encode_open(time_us: int, name: str | None = None, bounds: Bounds | None = None) -> bytes:
    """The payload of a SESSION_OPEN entry.

    Args:
        time_us: logged time, µs.
        name: the session's; None or empty is none.
        bounds: of the table from here on; None leaves them as they are.

    Raises:
        InvalidArgument: the name is longer than 256 bytes or no text; the time is not in [0, 2^63).
    """
    payload = _TIME.pack(_checked(time_us)) + check_name(name)
    return payload if bounds is None else payload + _BOUNDS.pack(_MARK, *bounds)


def decode_open(payload: bytes) -> tuple[int, str]:
    """(time in µs, name or "") of a SESSION_OPEN entry.

    Raises:
        MalformedMessage: it is not such a payload.
    """
    payload, _ = _split(payload)
    if not _TIME.size <= len(payload) <= _TIME.size + MAX_NAME_BYTES:
        raise MalformedMessage("the opening of a session has a wrong length")
    (time_us,) = _TIME.unpack_from(payload)
    try:
        name = payload[_TIME.size :].decode()
    except UnicodeDecodeError:
        raise MalformedMessage("the opening of a session has a name that is not text") from None
    if time_us < 0:
        raise MalformedMessage("the opening of a session has a time out of range")
    return time_us, name


def decode_bounds(payload: bytes) -> Bounds | None:
    """The bounds in the payload of a SESSION_OPEN entry; None if it has none.

    Raises:
        MalformedMessage: it has some that no table can have.
    """
    return _split(payload)[1]


def _split(payload: bytes) -> tuple[bytes, Bounds | None]:
    """The payload of an opening without its bounds, and these."""
    start = len(payload) - _BOUNDS.size
    if start < _TIME.size or payload[start] != _MARK:
        return payload, None
    _, sessions, kept = _BOUNDS.unpack_from(payload, start)
    if not (0 < sessions <= _LARGEST_BOUND and 0 < kept <= _LARGEST_BOUND):
        raise MalformedMessage("the opening of a session has bounds out of range")
    return payload[:start], (sessions, kept)


def encode_transition(time_us: int, session: int, sequence: int, below: int, transition: bytes) -> bytes:
    """The payload of a SESSION_TRANSITION entry.

    Args:
        time_us: logged time, µs.
        session, sequence: which transition of which session.
        below: the client never asks again for a lower sequence than this; at most `sequence`.
        transition: the transition itself, encoded.

    Raises:
        InvalidArgument: a number is not in [0, 2^63), or below > sequence.
    """
    if below > sequence:
        raise InvalidArgument(f"the watermark {below} is above the sequence {sequence}")
    return _HEAD.pack(_checked(time_us), _checked(session), _checked(sequence), _checked(below)) + transition


def decode_transition(payload: bytes) -> tuple[int, int, int, int, bytes]:
    """(time in µs, session, sequence, below, transition) of a SESSION_TRANSITION entry.

    Raises:
        MalformedMessage: it is not such a payload.
    """
    if len(payload) < _HEAD.size:
        raise MalformedMessage("a transition of a session is too short")
    time_us, session, sequence, below = _HEAD.unpack_from(payload)
    if time_us < 0 or session >= LIMIT or sequence >= LIMIT or below > sequence:
        raise MalformedMessage("a transition of a session has a number out of range")
    return time_us, session, sequence, below, payload[_HEAD.size :]


def check_name(name: str | None) -> bytes:
    """The bytes of a session's name.

    Raises:
        InvalidArgument: it cannot be a name.
    """
    if name is not None and not isinstance(name, str):
        raise InvalidArgument(f"a session's name must be text, not {type_name(name)}")
    try:
        data = (name or "").encode()
    except UnicodeEncodeError:
        raise InvalidArgument("a session's name must be text that UTF-8 can express") from None
    if len(data) > MAX_NAME_BYTES:
        raise InvalidArgument(f"a session's name must be at most {MAX_NAME_BYTES} bytes long, not {len(data)}")
    return data


def _checked(value: int) -> int:
    if not 0 <= value < LIMIT:
        raise InvalidArgument(f"{value} is not in [0, 2^63)")
    return value


class _Session:
    __slots__ = ("bytes", "name", "results", "used_us", "watermark")

    def __init__(self, name: str, used_us: int) -> None:
        self.name = name
        self.used_us = used_us
        self.watermark = 0  # Every sequence below it is finished for the client; watermark <= every key of results.
        self.results: dict[int, tuple[int, bytes | None]] = {}
        self.bytes = 0  # The summed length of the results, and of those that count yet: see `Sessions._later`.

    def raise_watermark(self, below: int) -> list[tuple[int, tuple[int, bytes | None]]]:
        """Finish every sequence below; returns those that were kept, and their results."""
        results = self.results
        if below - self.watermark <= len(results):
            finished = range(self.watermark, below)
            dropped = [(sequence, results.pop(sequence)) for sequence in finished if sequence in results]
        else:  # A leap: walk the table, not the numbers.
            dropped = [(sequence, result) for sequence, result in results.items() if sequence < below]
            self.results = {sequence: result for sequence, result in results.items() if sequence >= below}
        self.watermark = below
        return dropped


class Sessions:
    """The table.  `open`, `admit` and `record` are called for each entry, in log order, on every replica.

    Attributes:
        now_us: logged time: the highest that any entry carried.
    """

    __slots__ = (
        "_admitted",
        "_anonymous",
        "_bounds",
        "_bytes",
        "_doomed",
        "_evicted",
        "_later",
        "_max_results",
        "_max_sessions",
        "_named",
        "_names",
        "_recorded",
        "_restored",
        "_sequences",
        "now_us",
    )

    def __init__(self, *, max_sessions: int | None = None, max_results: int = MAX_RESULTS) -> None:
        self.now_us = 0
        self._max_sessions = MAX_SESSIONS if max_sessions is None else max_sessions
        self._max_results = max_results
        self._bounds: Bounds | None = None  # What the last opening said.
        self._bytes = 0  # Of all results, as `_Session.bytes`.
        self._sequences = 0  # Always the number of results of all sessions, those under way too.
        self._admitted = self._recorded = 0  # How many transitions were let through, and have their result.
        # What was freed after so many were admitted, and by whom, in that order: it counts until they are recorded.
        self._later: deque[tuple[int, _Session, int]] = deque()
        # Transitions under way that are not needed any more, and after how many were admitted that was so.
        self._doomed: dict[tuple[int, int], tuple[int, _Session]] = {}
        self._evicted: OrderedDict[int, str] = OrderedDict()  # Why; no part of the replicated state.
        self._restored = False
        # Both in the order of their last use, the least recent first: expiry looks at the front only.
        self._anonymous: OrderedDict[int, _Session] = OrderedDict()
        self._named: OrderedDict[int, _Session] = OrderedDict()
        self._names: dict[str, int] = {}  # The ids of the named ones: exactly the keys of _named.

    def __len__(self) -> int:
        return len(self._anonymous) + len(self._named)

    def __contains__(self, session: int) -> bool:
        """True while the session is in the table; it may be there and be too old to be used."""
        return session in self._anonymous or session in self._named

    def open(self, index: int, time_us: int, name: str = "", bounds: Bounds | None = None) -> int:
        """Apply the SESSION_OPEN entry at `index` and return the session's id: `index`, or the id that lives by `name`.

        Sessions that were idle for too long are dropped first, then, while there are too many, the least recently used
        of its kind, and while they keep too much, the least recently used of all.  Nothing may be under way.

        Args:
            index, time_us, name, bounds: of the entry; see `encode_open`.
        """
        self._advance(time_us)
        self._expire()
        if bounds is not None:
            self._bounds = bounds
        if name and name in self._names:
            session = self._names[name]
            self._named[session].used_us = self.now_us
            self._named.move_to_end(session)
            return session
        if index in self:
            raise InvariantViolated(f"the log opens session {index} twice")
        table = self._named if name else self._anonymous
        most, kept = self._limits()
        while len(table) >= most:
            kind = "with" if name else "without"
            self._evict(next(iter(table)), f"more than {most} sessions {kind} a name were used since")
        while 4 * max(self._bytes, self._sequences * _SEQUENCE_BYTES) > 3 * kept and len(self):
            oldest = min(self._oldest(), key=lambda each: (each[0], each[1]))[1]
            self._evict(oldest, f"the results of all sessions had more than {kept} bytes, and others were used since")
        table[index] = _Session(name, self.now_us)
        if name:
            self._names[name] = index
        return index

    def admit(self, session: int, sequence: int, below: int, time_us: int) -> tuple[int, bytes | None] | None:
        """Decide on one SESSION_TRANSITION entry.

        Several may be let through before their results are recorded: what is decided of the next one is the same.

        Returns: None if the transition is new: execute it and `record` its result.  `UNDER_WAY` itself if one that was
            let through has no result yet: record that first, and ask again.  Else it must not be executed, and this is
            the answer: (OK or FAILED, the result it had), (UNKNOWN, b"") if that was not kept, (ALREADY, None) if it
            is below the watermark, (SESSION_EXPIRED, None), or (REFUSED_OVERLOADED, None) if the session keeps too
            many results.
        """
        self._advance(time_us)
        found = self._anonymous.get(session)
        table, timeout_us = self._anonymous, SESSION_TIMEOUT_US
        if found is None:
            found = self._named.get(session)
            table, timeout_us = self._named, NAMED_SESSION_TIMEOUT_US
            if found is None:
                return SESSION_EXPIRED, None
        if self.now_us - found.used_us > timeout_us:
            self._drop(session)
            return SESSION_EXPIRED, None
        found.used_us = self.now_us
        table.move_to_end(session)
        if below > found.watermark:
            self._free(session, found, found.raise_watermark(below))
        if sequence < found.watermark:
            return ALREADY, None
        result = found.results.get(sequence)
        if result is not None:
            return result
        if len(found.results) >= self._max_results or self._sequences * _SEQUENCE_BYTES >= self._limits()[1]:
            return REFUSED_OVERLOADED, None
        found.results[sequence] = UNDER_WAY
        self._sequences += 1
        self._admitted += 1
        return None

    def record(self, session: int, sequence: int, code: int, value: bytes) -> None:
        """Keep the result of a transition that `admit` let through.

        OK or FAILED goes with its encoded value, UNDELIVERABLE with its size, and UNKNOWN with nothing.

        Nothing is kept if its session has ended since, or if the client needs it no more.

        Raises:
            InvariantViolated: `admit` did not.
        """
        self._settle()
        after, found = self._doomed.get((session, sequence), (None, None))
        if found is None:
            found = self._anonymous.get(session) or self._named.get(session)
            if found is None or sequence < found.watermark:
                return
            if found.results.get(sequence) is not UNDER_WAY or code not in _CODES:
                raise InvariantViolated(f"session {session}: a result for sequence {sequence} that was not admitted")
        kept = self._limits()[1]
        if found.bytes + len(value) > min(MAX_RESULT_BYTES, kept // 4) or self._bytes + len(value) > kept:
            code, value = UNKNOWN, b""
        found.bytes += len(value)
        self._bytes += len(value)
        self._recorded += 1
        if after is None:
            found.results[sequence] = (code, value)
        else:
            del self._doomed[session, sequence]
            # In the order of `after`: what was freed by earlier admissions is settled already, or stands before it.
            at = sum(each[0] <= after for each in self._later)
            self._later.insert(at, (after, found, len(value)))
        self._settle()

    def why_gone(self, session: int) -> str:
        """Why a session is not in the table any more; for people."""
        why = self._evicted.get(session)
        if why is not None:
            return why
        idle = "it was idle for too long"
        return f"{idle}, or others needed the room" if self._restored or len(self._evicted) == _EVICTED else idle

    def snapshot(self, *, with_results: bool = True) -> list[Any]:
        """The whole table as plain data: equal tables give equal data, however they came about.

        Without results it says which sequences were executed, and not how they ended.
        """
        table: list[Any] = [
            self.now_us,
            *(
                [
                    [
                        session,
                        found.name,
                        found.used_us,
                        found.watermark,
                        [
                            [sequence, *found.results[sequence]] if with_results else sequence
                            for sequence in sorted(found.results)
                        ],
                    ]
                    for session, found in table.items()
                ]
                for table in (self._anonymous, self._named)
            ),
        ]
        return table if self._bounds is None else [*table, list(self._bounds)]

    @classmethod
    def restore(cls, data: object, *, max_sessions: int | None = None, max_results: int = MAX_RESULTS) -> Sessions:
        """The table that `snapshot` described.

        Raises:
            MalformedMessage: it does not describe one.
        """
        sessions = cls(max_sessions=max_sessions, max_results=max_results)
        try:
            sessions._load(data)
        except (TypeError, ValueError):
            raise MalformedMessage("a snapshot's table of sessions cannot be read") from None
        return sessions

    # -- inside ----------------------------------------------------------------------------------------------------

    def _load(self, data: Any) -> None:
        now_us, anonymous, named, *bounds = data
        self.now_us = _number(now_us)
        self._restored = True
        if bounds:
            ((sessions, kept),) = bounds
            if not (0 < _number(sessions) <= _LARGEST_BOUND and 0 < _number(kept) <= _LARGEST_BOUND):
                raise ValueError
            self._bounds = sessions, kept
        for table, rows in ((self._anonymous, anonymous), (self._named, named)):
            last_us = 0
            for session, name, used_us, watermark, results in rows:
                if not isinstance(name, str) or bool(name) is not (table is self._named) or name in self._names:
                    raise ValueError
                if session in self or not last_us <= _number(used_us) <= self.now_us:
                    raise ValueError
                last_us = used_us
                loaded = _Session(name, used_us)
                loaded.watermark = _number(watermark)
                for sequence, code, value in results:
                    if _number(sequence) < watermark or code not in _CODES or type(value) is not bytes:
                        raise ValueError
                    loaded.results[sequence] = (code, value)
                    loaded.bytes += len(value)
                self._bytes += loaded.bytes
                self._sequences += len(loaded.results)
                table[_number(session)] = loaded
                if name:
                    self._names[name] = session

    def _advance(self, time_us: int) -> None:
        if time_us > self.now_us:
            self.now_us = time_us

    def _expire(self) -> None:
        for table, timeout_us in ((self._anonymous, SESSION_TIMEOUT_US), (self._named, NAMED_SESSION_TIMEOUT_US)):
            while table:
                session, oldest = next(iter(table.items()))
                if self.now_us - oldest.used_us <= timeout_us:
                    break
                self._drop(session)

    def _drop(self, session: int) -> None:
        dropped = self._anonymous.pop(session, None) or self._named.pop(session)
        if dropped.name:
            del self._names[dropped.name]
        self._free(session, dropped, list(dropped.results.items()))

    def _evict(self, session: int, why: str) -> None:
        """Drop a session that could have been used on, to make room."""
        self._evicted[session] = why
        if len(self._evicted) > _EVICTED:
            self._evicted.popitem(last=False)
        self._drop(session)

    def _oldest(self) -> Iterator[tuple[int, int]]:
        """The least recently used session of each kind: when it was used, and its id."""
        for table in (self._anonymous, self._named):
            for session, found in table.items():
                yield found.used_us, session
                break

    def _limits(self) -> Bounds:
        return self._bounds or (self._max_sessions, MAX_SESSION_BYTES)

    def _free(self, session: int, found: _Session, dropped: list[tuple[int, tuple[int, bytes | None]]]) -> None:
        """Results are not needed any more: their bytes are free once all that was admitted until now is recorded."""
        freed = 0
        for sequence, result in dropped:
            self._sequences -= 1
            if result is UNDER_WAY:
                self._doomed[session, sequence] = self._admitted, found
            else:
                freed += len(result[1] or b"")
        if freed:
            self._later.append((self._admitted, found, freed))
            self._settle()

    def _settle(self) -> None:
        while self._later and self._later[0][0] <= self._recorded:
            _, found, freed = self._later.popleft()
            found.bytes -= freed
            self._bytes -= freed


def _number(value: object) -> int:
    if type(value) is not int or not 0 <= value < LIMIT:
        raise ValueError
    return value
