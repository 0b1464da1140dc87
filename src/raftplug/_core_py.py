"""The log, what a leader knows of a peer, and the message between replicas: in plain Python.

`_core.pyx` holds the same three classes compiled: same names, same bytes, same exceptions.  A change here is a change
there; tests/test_cores.py runs both in lockstep.

An entry is the same bytes in memory, on the wire and on disk: index, term, kind, length of the payload, check (struct
`<QQBII`), payload.  The check is the CRC-32 of all but itself, begun with the check of the entry before: so it vouches
for the whole log up to there.  A *block* is any number of entries, one after the other.
"""

from __future__ import annotations

from bisect import bisect_right
from struct import Struct
from typing import Any, final
from zlib import crc32

from raftplug import _refusals as refusals
from raftplug.constants import ENTRY_HEADER_BYTES, LAST_MESSAGE_KIND, LIMIT, PROBE

_HEADER = Struct("<QQBII")
_CHECKED = Struct("<QQBI")
_CHECK = Struct("<I")
_MESSAGE = Struct("<BBQQQQQQ")
_CHECKED_BYTES = 21
_MESSAGE_BYTES = 50


def _read_entry(block: bytes, position: int, index: int, lowest: int, highest: int) -> tuple[int, int, int, int]:
    """Return term, check and the bounds of the payload of the entry at `position`, which must be entry `index`.

    Raises:
        MalformedBlock: it is cut off, has another index, or a term outside [lowest, highest].
    """
    left = len(block) - position - ENTRY_HEADER_BYTES
    if left < 0:
        raise refusals.header_cut(index, left + ENTRY_HEADER_BYTES)
    found, term, _, length, check = _HEADER.unpack_from(block, position)
    if found != index or index > refusals.LARGEST_INDEX:
        raise refusals.wrong_index(index, found)
    if not lowest <= term <= highest:
        raise refusals.wrong_term(index, term, lowest, highest)
    if length > left:
        raise refusals.payload_cut(index, length, left)
    start = position + ENTRY_HEADER_BYTES
    return term, check, start, start + length


@final
class Log:
    """The entries of one replica that are not yet compacted away, base_index + 1 to last_index.

    Args:
        base_index: index of the last entry that is no longer here; 0 for a new log.
        base_term: its term.
        base_check: its chain value.

    Raises:
        InvariantViolated: an argument is out of range; so do all methods.
    """

    __slots__ = (
        "_check",
        "_ends",
        "_entries",
        "_head",
        "_terms",
        "base_check",
        "base_index",
        "base_term",
        "last_index",
        "last_term",
    )

    def __init__(self, base_index: int = 0, base_term: int = 0, base_check: int = 0) -> None:
        self.reset(base_index, base_term, base_check)

    def reset(self, index: int, term: int, check: int) -> None:
        """Forget everything: an empty log that follows entry `index`, of term `term` and chain value `check`."""
        index = refusals.whole("index", index)
        term = refusals.whole("term", term)
        check = refusals.whole("check", check)
        if index > refusals.LARGEST_INDEX:
            raise refusals.base_index_too_large(index)
        if check >= 1 << 32:
            raise refusals.base_check_too_large(check)
        self.base_index = self.last_index = index
        self.base_term = self.last_term = term
        self.base_check = self._check = check
        # Entry i lies at [i - base_index - 1 + _head].  Slots below _head are dead: compaction empties them and closes
        # the gap only when it is larger than the rest, so that it costs O(dropped), not O(log).
        self._head = 0
        self._entries: list[bytes] = []
        self._terms: list[int] = []
        self._ends: list[int] = [0]  # where entry [k] ends, in bytes since the last reset, is _ends[k + 1]

    def __len__(self) -> int:
        return self.last_index - self.base_index

    def __repr__(self) -> str:
        return refusals.describe(self, ("base_index", "base_term", "base_check", "last_index", "last_term"))

    def __reduce__(self) -> Any:
        raise refusals.copied(self)

    def append(self, term: int, kind: int, payload: bytes) -> int:
        """Add one entry of the leader's own and return its index.

        Raises:
            InvariantViolated: the term is below the last one, or an argument is out of range.
        """
        if type(payload) is not bytes:
            raise refusals.not_bytes("payload", payload)
        if type(term) is not int or not 0 <= term < LIMIT:
            term = refusals.whole("term", term)
        if type(kind) is not int or not 0 <= kind < 256:
            kind = refusals.whole("kind", kind)
            if kind >= 256:
                raise refusals.kind_too_large(kind)
        if term < self.last_term:
            raise refusals.term_goes_back(term, self.last_term)
        length = len(payload)
        if length >= 1 << 32:
            raise refusals.payload_too_long(length)
        index = self.last_index + 1
        if index > refusals.LARGEST_INDEX:
            raise refusals.log_full()
        head = _CHECKED.pack(index, term, kind, length)
        check = crc32(payload, crc32(head, self._check))
        self._entries.append(head + _CHECK.pack(check) + payload)
        self._terms.append(term)
        self._ends.append(self._ends[-1] + ENTRY_HEADER_BYTES + length)
        self.last_index = index
        self.last_term = term
        self._check = check
        return index

    def check_block(self, block: bytes, prev_index: int, max_term: int) -> tuple[int, int]:
        """Validate a received block, whose entries follow our entry `prev_index`, and change nothing.

        Returns:
            The first index that is new, or where our entry has another term, 0 if all entries are here already; and
            the index of the block's last entry.

        Raises:
            MalformedBlock: the block is empty or cut off, an index is not the next one, a term falls or exceeds
                `max_term`, a check does not continue ours, or an entry differs from ours of the same term.
            InvariantViolated: `prev_index` is not in [base_index, last_index].
        """
        if type(block) is not bytes:
            raise refusals.not_bytes("block", block)
        prev_index = refusals.whole("prev_index", prev_index)
        max_term = refusals.whole("max_term", max_term)
        if not self.base_index <= prev_index <= self.last_index:
            raise refusals.outside("prev_index", prev_index, self.base_index, self.last_index)
        index = prev_index
        term = self.term_at(index)
        check = self.check_at(index)
        first = position = 0
        size = len(block)
        if not size:
            raise refusals.empty_block()
        while position < size:
            index += 1
            term, stated, start, end = _read_entry(block, position, index, term, max_term)
            check = crc32(block[start:end], crc32(block[position : position + _CHECKED_BYTES], check))
            if check != stated:
                raise refusals.wrong_check(index)
            if not first:
                if index > self.last_index or self.term_at(index) != term:
                    first = index
                elif self.check_at(index) != check:
                    raise refusals.other_content(index, term)
            position = end
        return first, index

    def extend(self, block: bytes, first: int) -> None:
        """Append the entries from index `first` on of a block that `check_block` found good.

        Raises:
            InvariantViolated: `first` is not the next index, or not in the block.
            MalformedBlock: the block is not well formed; checks are not verified again.
        """
        if type(block) is not bytes:
            raise refusals.not_bytes("block", block)
        first = refusals.whole("first", first)
        if first != self.last_index + 1:
            raise refusals.not_next(first, self.last_index)
        size = len(block)
        if size < ENTRY_HEADER_BYTES:
            raise refusals.not_in_block(first)
        index = int.from_bytes(block[:8], "little")
        position = 0
        while index < first:
            position = _read_entry(block, position, index, 0, LIMIT - 1)[3]
            index += 1
            if position == size:
                break
        if index != first or position == size:
            raise refusals.not_in_block(first)
        self._take(block, position)

    def _take(self, block: bytes, position: int) -> None:
        """Append the entries from `position` on; nothing has changed if this raises."""
        entries, terms, ends = [], [], []
        index, term, check = self.last_index, self.last_term, self._check
        size = len(block)
        already = self._ends[-1] - position
        while position < size:
            index += 1
            term, check, _, end = _read_entry(block, position, index, term, LIMIT - 1)
            entries.append(block[position:end])
            terms.append(term)
            ends.append(already + end)
            position = end
        self._entries += entries
        self._terms += terms
        self._ends += ends
        self.last_index, self.last_term, self._check = index, term, check

    def restore(self, block: bytes) -> None:
        """Append a block from storage at start-up; entries that are here already, or compacted away, are skipped.

        Raises:
            MalformedBlock: the block is not well formed, does not follow the log, contradicts it, or its entry at
                base_index is not the one that the base stands for.  Nothing has changed.
        """
        if type(block) is not bytes:
            raise refusals.not_bytes("block", block)
        size = len(block)
        if not size:
            return
        index = int.from_bytes(block[:8], "little") if size >= ENTRY_HEADER_BYTES else self.last_index + 1
        if index == 0 or index > self.last_index + 1:
            raise refusals.gap(index, self.last_index)
        # The chain value before the block's first entry is unknown if that lies in the compacted part: then the chain
        # is checked from the second entry on, and ties the block to the log where it reaches the base.
        check = self.check_at(index - 1)
        term = max(self.term_at(index - 1), 0)
        position = fresh = 0
        while position < size:
            term, stated, start, end = _read_entry(block, position, index, term, LIMIT - 1)
            if check >= 0 and crc32(block[start:end], crc32(block[position : position + 21], check)) != stated:
                raise refusals.wrong_check(index)
            if index == self.base_index and (stated != self.base_check or term != self.base_term):
                raise refusals.base_differs(index)
            if self.base_index < index <= self.last_index and (
                stated != self.check_at(index) or term != self.term_at(index)
            ):
                raise refusals.other_content(index, term)
            check = stated
            position = end
            if index <= self.last_index:
                fresh = position
            index += 1
        self._take(block, fresh)

    def term_at(self, index: int) -> int:
        """The term of entry `index`, also of the base; -1 if it is compacted away or beyond the end."""
        return self._term_at(index if type(index) is int else refusals.place("index", index))

    def _term_at(self, index: int) -> int:
        if self.base_index < index <= self.last_index:
            return self._terms[index - self.base_index - 1 + self._head]
        return self.base_term if index == self.base_index else -1

    def check_at(self, index: int) -> int:
        """The chain value of entry `index`, also of the base; -1 if it is compacted away or beyond the end."""
        if type(index) is not int:
            index = refusals.place("index", index)
        if self.base_index < index <= self.last_index:
            entry = self._entries[index - self.base_index - 1 + self._head]
            return int.from_bytes(entry[_CHECKED_BYTES:ENTRY_HEADER_BYTES], "little")
        return self.base_check if index == self.base_index else -1

    def _entry(self, index: int) -> bytes:
        if type(index) is not int:
            index = refusals.place("index", index)
        if not self.base_index < index <= self.last_index:
            raise refusals.no_entry(index, self.base_index, self.last_index)
        return self._entries[index - self.base_index - 1 + self._head]

    def kind_at(self, index: int) -> int:
        """The kind of entry `index`.

        Raises:
            IndexError: it is not here.
        """
        return self._entry(index)[16]

    def payload_at(self, index: int) -> bytes:
        """The payload of entry `index`.

        Raises:
            IndexError: it is not here.
        """
        return self._entry(index)[ENTRY_HEADER_BYTES:]

    def _slots(self, lo: int, hi: int) -> tuple[int, int]:
        """Where entries lo to hi - 1 lie in the lists."""
        if not self.base_index < lo <= hi <= self.last_index + 1:
            raise refusals.no_entries(lo, hi, self.base_index, self.last_index)
        shift = self._head - self.base_index - 1
        return lo + shift, hi + shift

    def slice(self, lo: int, hi: int) -> bytes:
        """Entries lo to hi - 1 as a block.

        Raises:
            IndexError: one is not here.
        """
        if type(lo) is not int or type(hi) is not int:
            lo, hi = refusals.place("lo", lo), refusals.place("hi", hi)
        start, stop = self._slots(lo, hi)
        return b"".join(self._entries[start:stop])

    def fit(self, lo: int, max_bytes: int) -> int:
        """The end (exclusive) of the longest run of entries from `lo` on that takes at most `max_bytes` as a block.

        The run has at least one entry, however large that is.

        Raises:
            IndexError: entry `lo` is not here.
        """
        max_bytes = refusals.whole("max_bytes", max_bytes)
        if type(lo) is not int:
            lo = refusals.place("lo", lo)
        if not self.base_index < lo <= self.last_index:
            raise refusals.no_entry(lo, self.base_index, self.last_index)
        shift = self._head - self.base_index - 1
        start = lo + shift
        return max(bisect_right(self._ends, self._ends[start] + max_bytes, start + 1) - 1 - shift, lo + 1)

    def bytes_between(self, lo: int, hi: int) -> int:
        """How many bytes entries lo to hi - 1 take as a block, in constant time.

        Raises:
            IndexError: one is not here.
        """
        return self._bytes_between(refusals.place("lo", lo), refusals.place("hi", hi))

    def _bytes_between(self, lo: int, hi: int) -> int:
        start, stop = self._slots(lo, hi)
        return self._ends[stop] - self._ends[start]

    def entries(self, lo: int, hi: int) -> list[tuple[int, int, bytes]]:
        """Kind, term and payload of entries lo to hi - 1.

        Raises:
            IndexError: one is not here.
        """
        if type(lo) is not int or type(hi) is not int:
            lo, hi = refusals.place("lo", lo), refusals.place("hi", hi)
        start, stop = self._slots(lo, hi)
        return [
            (entry[16], term, entry[ENTRY_HEADER_BYTES:])
            for entry, term in zip(self._entries[start:stop], self._terms[start:stop], strict=True)
        ]

    def find(self, kind: int, lo: int) -> int:
        """The first entry of `kind` from index `lo` on; 0 if there is none.

        Raises:
            IndexError: `lo` is compacted away, or beyond the end by more than one.
        """
        return self._find(refusals.whole("kind", kind), refusals.place("lo", lo))

    def _find(self, kind: int, lo: int) -> int:
        start, stop = self._slots(lo, self.last_index + 1)
        for slot in range(start, stop):
            if self._entries[slot][16] == kind:
                return lo + slot - start
        return 0

    def truncate(self, index: int) -> None:
        """Drop entry `index` and all after it.

        Raises:
            InvariantViolated: `index` is not above base_index.
        """
        index = refusals.whole("index", index)
        if index <= self.base_index:
            raise refusals.outside("index", index, self.base_index + 1, LIMIT - 1)
        if index > self.last_index:
            return
        slot = index - self.base_index - 1 + self._head
        term, check = self.term_at(index - 1), self.check_at(index - 1)
        del self._entries[slot:], self._terms[slot:], self._ends[slot + 1 :]
        self.last_index, self.last_term, self._check = index - 1, term, check

    def compact(self, index: int) -> None:
        """Drop all entries up to `index`, which becomes the base; nothing happens if it is not above base_index.

        Raises:
            InvariantViolated: `index` is above last_index.
        """
        index = refusals.whole("index", index)
        if index <= self.base_index:
            return
        if index > self.last_index:
            raise refusals.outside("index", index, 0, self.last_index)
        term, check = self.term_at(index), self.check_at(index)
        dropped = index - self.base_index
        head = self._head
        self._entries[head : head + dropped] = [b""] * dropped
        head += dropped
        self.base_index, self.base_term, self.base_check = index, term, check
        if head >= self.last_index - index:
            del self._entries[:head], self._terms[:head], self._ends[:head]
            head = 0
        self._head = head

    # For the rules: compiled, these take C integers.
    _append, _check_block, _extend, _fit, _slice = append, check_block, extend, fit, slice


@final
class Progress:
    """What a leader knows of one peer.  All numbers are ints in [0, 2^63); times are microseconds.

    Args:
        peer: its id.
        next: the index to send next.
        now: the time; the peer counts as heard of now.

    Invariant: 0 <= match < next.
    """

    __slots__ = (
        "_ends",
        "asked",
        "commit",
        "contact",
        "doubted",
        "lost",
        "match",
        "next",
        "paused",
        "peer",
        "pending_snapshot",
        "round",
        "sent",
        "since",
        "state",
    )

    def __init__(self, peer: int | str | None, next: int, now: int) -> None:
        next, now = refusals.whole("next", next), refusals.whole("now", now)
        self.peer = peer
        self.match = 0  # the last index known to be durable there
        self.next = next
        self.state: int = PROBE  # PROBE, REPLICATE or INSTALL
        self.pending_snapshot = 0  # index of the snapshot on its way there, in state INSTALL
        self.commit = 0  # the last commit index that was sent to it
        self.asked = 0  # the last read round that was sent to it
        self.round = 0  # the newest read round that it confirmed
        self.since = 0  # the first round after it came as a member, while we lead: nothing that it said before counts
        self.doubted = 0  # if it rejects what it had acknowledged in answer to this read round or later, it lost that
        self.lost = 0  # the last index that it had acknowledged, and has lost
        self.contact = now  # when it last answered
        self.sent = now  # when something was last sent to it
        self.paused = False  # a probe is on its way: send nothing more before the answer
        self._ends: list[int] = []  # where the appends on their way there end

    def advance(self, end: int) -> None:
        """An append with the entries up to `end`, exclusive, is on its way."""
        self._advance(refusals.whole("end", end))

    def _advance(self, end: int) -> None:
        self.in_flight()
        self._ends.append(end)
        self.next = end

    def in_flight(self) -> int:
        """How many appends are on their way whose entries are not known to be durable there."""
        while self._ends and self._ends[-1] > self.next:
            self._ends.pop()  # It was lost: everything from `next` on is sent again.
        done = 0
        while done < len(self._ends) and self._ends[done] - 1 <= self.match:
            done += 1
        del self._ends[:done]
        return len(self._ends)

    def __repr__(self) -> str:
        return refusals.describe(self, refusals.PROGRESS_FIELDS)

    def __reduce__(self) -> Any:
        raise refusals.copied(self)


@final
class Message:
    """What one replica tells another: one flat record for every kind.

    Attributes: those of the constructor, and `peer`: to whom it goes or from whom it came; the frame carries that.  One
    that is set to no value of its kind is refused by the compiled core at once, by this one in `encode`.

    Raises:
        InvariantViolated: a number is out of range, or the kind unknown.
    """

    __slots__ = ("commit", "context", "data", "flag", "hint", "index", "kind", "log_term", "peer", "term")

    def __init__(
        self,
        kind: int,
        term: int,
        index: int = 0,
        log_term: int = 0,
        commit: int = 0,
        context: int = 0,
        hint: int = 0,
        flag: bool = False,
        data: bytes = b"",
    ) -> None:
        if type(data) is not bytes:
            raise refusals.not_bytes("data", data)
        try:
            # Any number below 0 or above 2^63 leaves a bit here.
            fine = not (kind | term | index | log_term | commit | context | hint) >> 63
            fine = fine and 1 <= kind <= LAST_MESSAGE_KIND
        except TypeError:
            fine = False
        if not fine:
            refusals.message_fields(kind, term, index, log_term, commit, context, hint)
        self.kind = kind
        self.term = term
        self.index = index
        self.log_term = log_term
        self.commit = commit
        self.context = context
        self.hint = hint
        self.flag = bool(flag)
        self.data = data
        self.peer: int | str | None = None

    def __repr__(self) -> str:
        return refusals.describe(self, (*refusals.MESSAGE_FIELDS, "flag", "data", "peer"))

    def __reduce__(self) -> Any:
        raise refusals.copied(self)

    def encode(self) -> bytes:
        """The bytes that `decode` reads: struct `<BBQQQQQQ` and the data.

        Raises:
            InvariantViolated: a number is out of range.
        """
        numbers = (self.term, self.index, self.log_term, self.commit, self.context, self.hint)
        refusals.message_fields(self.kind, *numbers)
        if type(self.data) is not bytes:
            raise refusals.not_bytes("data", self.data)
        return _MESSAGE.pack(self.kind, 1 if self.flag else 0, *numbers) + self.data

    @staticmethod
    def decode(data: bytes) -> Message:
        """Read what `encode` wrote.

        Raises:
            MalformedMessage: it is cut off, of unknown kind, the flag not 0 or 1, or a number not below 2^63.
        """
        if type(data) is not bytes:
            raise refusals.not_bytes("data", data)
        if len(data) < _MESSAGE_BYTES:
            raise refusals.message_cut(len(data))
        kind, flag, term, index, log_term, commit, context, hint = _MESSAGE.unpack_from(data)
        if not 1 <= kind <= LAST_MESSAGE_KIND:
            raise refusals.unknown_kind(kind)
        if flag > 1:
            raise refusals.wrong_flag(flag)
        if (term | index | log_term | commit | context | hint) >> 63:
            raise refusals.number_too_large(term, index, log_term, commit, context, hint)
        return Message(kind, term, index, log_term, commit, context, hint, flag == 1, data[_MESSAGE_BYTES:])


new_message = Message  # For the rules: compiled, it takes C integers.


def quorum_match(voters: tuple[int | str, ...], peers: dict[Any, Any], own_id: object, stable: int) -> int:
    """The last index that a majority of `voters` is known to have on disk."""
    matches = sorted([stable if voter == own_id else peers[voter].match for voter in voters])
    return matches[(len(matches) - 1) // 2]


class Ready:
    """What must happen now, and only once.

    Attributes:
        messages: to send at once, each to its `peer`.  A SNAPSHOT message lacks its data: the driver fills it in.
        write: whether there is something to make durable, in one transaction; then call `Raft.persisted`.
        term, vote: the hard state to write.
        first, block: the log from index `first` on is to be replaced by the entries of `block`; first = 0 leaves it.
        snapshot: a SNAPSHOT message to install, which replaces all of the log before `block` is added; or None.
        reads: pairs (request, index): answer the request once `index` is applied.
        failed_reads: requests that this replica can no longer answer; they may be asked again elsewhere.
        truncated: entries that another leader's have replaced: (index, kind, term, payload).
    """

    __slots__ = (
        "block",
        "failed_reads",
        "first",
        "messages",
        "reads",
        "snapshot",
        "term",
        "truncated",
        "vote",
        "write",
    )

    def __init__(self) -> None:
        # Lists come only where something is in them: much is asked, and most of the answer is empty.
        self.messages: list[Message] | tuple[()] = ()
        self.write = False
        self.term = 0
        self.vote: Any = None
        self.first = 0
        self.block = b""
        self.snapshot: Message | None = None
        self.reads: list[Any] | tuple[()] = ()
        self.failed_reads: list[Any] | tuple[()] = ()
        self.truncated: list[Any] | tuple[()] = ()

    def __reduce__(self) -> Any:
        raise refusals.copied(self)


new_ready = Ready  # For the rules, too.
