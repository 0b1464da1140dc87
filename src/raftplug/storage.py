"""What must survive: hard state, log and snapshot of every group, checked when they are written and when they are read.

Two layers.  `Transactional` is rows of bytes that change all at once or not at all: a dict, an SQLite file, a simulated
disk.  `RecordStorage` is everything that is ours, written once above it::

    table           name    number            value
    node            ""      0                 seal, node id, cluster uuid, storage uuid, boot counter, nonce, the last
                                              life of every other node that was heard, our own earlier nonces
    configuration   group   0                 seal, the configuration that the group was founded with
    state           group   0                 seal, term, vote, last index and its check, snapshot's index and its check
    snapshot        group   0                 seal, what there is to know of the snapshot but its bytes, and their slot
    snapshot        group   1                 seal, the same of the one that is being fetched, and from whom
    piece           group   slot and number   seal, a piece of a snapshot's bytes
    log             group   first index       a block: the bytes that the wire carries, unchanged

A *seal* is a CRC-32 of the row and its place.  The log needs none: its entries are chained, and the state, rewritten
by every commit, says where the chain ends.  So a flipped bit, a row that is missing, older than the rest or in the
place of another, and a log without its end are all found by `load`.

A snapshot is too large for one row or one transaction: its pieces are written into a *slot* of their own, and the row
that makes them the snapshot follows when all are there.  Slots that no row names are leftovers, which `load` reports.
"""

from __future__ import annotations

import os
import secrets
import threading
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from struct import Struct
from typing import Any, Final, NamedTuple
from zlib import crc32

import msgpack

from raftplug import core
from raftplug.constants import ENTRY_HEADER_BYTES, LIMIT
from raftplug.directory import WAL, Directory, exists, os_errors, parts, path_of
from raftplug.errors import (
    Corrupt,
    DiskFull,
    InvalidArgument,
    InvariantViolated,
    MalformedMessage,
    StorageError,
    StorageFailed,
    WrongDirectory,
)
from raftplug.forks import follow
from raftplug.rows import REPLACE, Planned, SQLiteRows, Transactional, translated
from raftplug.rows import Delete as Delete
from raftplug.rows import MemoryRows as MemoryRows
from raftplug.rows import Put as Put

FILE_NAME: Final = "raftplug.sqlite3"

_LAST_NUMBER: Final = LIMIT - 1
_ROW_BYTES: Final = 1 << 20
_WAL_HEADER_BYTES: Final = 32
_HEADER: Final = Struct("<QQBII")
_CHECKED_BYTES: Final = 21
_SNAPSHOT: Final = Struct("<QQIQI32sI")
_CURRENT: Final = 0
_INCOMING: Final = 1
_PAST: Final = 4_096  # Lives of ours that we remember.
_SLOT: Final = 1 << 32  # Numbers of pieces from one slot to the next.
_SEAL: Final = Struct("<I")
_PLACES_REMEMBERED: Final = 4_096


# ------------------------------------------------------------------------------------------------------ what is stored


@dataclass(frozen=True, slots=True)
class StoredSnapshot:
    """A snapshot: everything up to entry `index`, of `term` and chain value `check`.

    Args:
        size, count: bytes, and how many pieces they lie in.
        digest: of place and bytes, 32 bytes (`snapshots.digest`): two snapshots of one digest are the same.
        slot: where this storage has them, in [0, 2^31).
    """

    index: int
    term: int
    check: int
    size: int
    count: int
    digest: bytes
    slot: int = 0


@dataclass(frozen=True, slots=True)
class Incoming:
    """A snapshot that is being fetched.

    Args:
        snapshot: what it will be.
        source: who has it.
        have: so many of its pieces, from the first on, are here.
    """

    snapshot: StoredSnapshot
    source: str | int
    have: int = 0


class Piece(NamedTuple):
    """A piece of a snapshot: where it lies, and its bytes."""

    slot: int
    number: int
    data: bytes


class Discarded(NamedTuple):
    """Pieces that are not needed any more: the numbers [low, high) of a slot."""

    slot: int
    low: int
    high: int


class Write(NamedTuple):
    """One group's part of a transaction.

    Args:
        group: its name.
        term: the current term; never below the stored one.
        vote: whom the replica voted for in that term.
        first: the log from this index on is replaced by `block`; 0 leaves the log as it is.
        block: contiguous entries, the first of them `first`.
        snapshot: the snapshot from now on, whose pieces are all there; one older than the stored one is ignored.
        snapshot_resets_log: it came from the leader: the whole log goes first, then comes `block`.
        compact: what lies in the log up to this index may be deleted, as far as the stored snapshot covers it.
        pieces: of a snapshot that is being made or fetched.
        incoming: the snapshot that is being fetched from now on; None leaves that as it is.
        discard: pieces that go first; with the first piece of the snapshot that was being fetched, also its name.
        resets_term: the term may go back: for `recovery` only, with which another cluster begins.
    """

    group: str
    term: int
    vote: str | int | None
    first: int = 0
    block: bytes = b""
    snapshot: StoredSnapshot | None = None
    snapshot_resets_log: bool = False
    compact: int = 0
    pieces: Sequence[Piece] = ()
    incoming: Incoming | None = None
    discard: Sequence[Discarded] = ()
    resets_term: bool = False


@dataclass(slots=True)
class Stored:
    """What `load` found of a group.

    Args:
        term, vote: the hard state.
        snapshot: the newest snapshot, if there is one.
        blocks: the log in index order; it may begin below the snapshot's index, and has no gap after it.
        first: index of the first entry in `blocks`; where the next one will go when there are none.
        incoming: the snapshot that was being fetched.
        leftovers: pieces that belong to neither.
    """

    term: int
    vote: str | int | None
    snapshot: StoredSnapshot | None
    blocks: list[bytes]
    first: int
    incoming: Incoming | None = None
    leftovers: tuple[Discarded, ...] = ()

    def log(self, core: Any) -> Any:
        """The log that this is, from the snapshot on, as a `Log` of one of the two cores.

        Raises:
            MalformedMessage: it is damaged.
        """
        base = self.snapshot
        log = core.Log() if base is None else core.Log(base.index, base.term, base.check)
        for block in self.blocks:
            log.restore(block)
        return log


@dataclass(frozen=True, slots=True)
class Identity:
    """Who writes here.

    Args:
        node: id of the node.
        cluster: digest of the names of its cluster's founders, 16 bytes: see `frames.cluster_uuid`.
        storage: random uuid of this storage, 16 bytes, made with it.
        boot: how often it has been opened, from 1 on.
        nonce: random, 63 bits, another one at each opening: tells a copied directory from the original.
        past: the nonces of the boots before this one, as far back as they are remembered, the last one last.
        founded: the cluster's id, 16 bytes: see `founding`; zeros while it is unknown.
        replaced: the ids that the cluster had before each `recovery`, 16 bytes each, the last one last.
    """

    node: str | int
    cluster: bytes
    storage: bytes
    boot: int
    nonce: int
    past: tuple[int, ...] = ()
    founded: bytes = bytes(16)
    replaced: bytes = b""


class Heard(NamedTuple):
    """The last life of another node's data directory that was heard: whatever is older there lacks something.

    Args:
        node: id of that node.
        storage, boot, nonce: as in its `Identity`.
    """

    node: str | int
    storage: bytes
    boot: int
    nonce: int


class Storage(ABC):
    """Durable state of all replicas of a node.  One thread at a time commits; any thread reads."""

    identity: Identity
    heard: Sequence[Heard] = ()
    """What the last commit that said something of other nodes said."""

    watched: bool = False
    """Whether `verify` can find something."""

    def begin(self) -> None:  # noqa: B027
        """Write what the start of a node writes; may be called again.  `commit` does so by itself.

        Raises:
            DiskFull, StorageFailed: nothing was written, or none of it counts.
        """

    def verify(self) -> None:  # noqa: B027
        """Check that what is written here is where a later start will look for it.  Any thread.

        Raises:
            StorageFailed: it is not, and nothing may be acknowledged any more; each later commit raises it, too.
        """

    @abstractmethod
    def groups(self) -> list[str]:
        """The groups that were created here, sorted."""

    def create(self, group: str, configuration: bytes) -> None:
        """Found one group: see `create_all`."""
        self.create_all([group], configuration)

    @abstractmethod
    def create_all(self, groups: Sequence[str], configuration: bytes) -> None:
        """Found groups, all or none of them, each with the configuration that its log begins with.

        Raises:
            InvalidArgument: one is here already.
            DiskFull, StorageFailed: as from `commit`.
        """

    @abstractmethod
    def configuration(self, group: str) -> bytes:
        """The configuration that the group was founded with.

        Raises:
            InvalidArgument: the group was never created here.
            Corrupt: it is damaged.
        """

    @abstractmethod
    def load(self, group: str) -> Stored | None:
        """Read a group back and check everything; None if it was never created here.

        Raises:
            Corrupt: something is damaged or missing; the message names file, group and index.
            StorageFailed: it cannot be read.
        """

    @abstractmethod
    def snapshot(self, group: str) -> StoredSnapshot | None:
        """The newest durable snapshot, or None.  Any thread, also while another one commits.

        Raises:
            Corrupt, StorageFailed: as from `load`.
        """

    @abstractmethod
    def piece(self, group: str, slot: int, number: int) -> bytes:
        """A durable piece of a snapshot.  Any thread, also while another one commits.

        Raises:
            Corrupt: it is damaged, or not there.
            StorageFailed: it cannot be read.
        """

    @abstractmethod
    def commit(self, writes: Sequence[Write], heard: Sequence[Heard] | None = None) -> None:
        """Make the writes durable, all or none of them; return when they are.

        Args:
            writes: one at most of each group.
            heard: takes the place of all that is remembered of other nodes; None leaves that as it is.

        Raises:
            DiskFull: no space; nothing was written, and the same writes may be committed later.
            StorageFailed: a write or a sync failed.  Every later commit raises it too: what is on the disk is not known
                until the storage is opened anew.
            InvariantViolated: a term goes back, a second vote in a term, a gap in the log; nothing was written.
        """

    def found(self, cluster: bytes, replaced: bytes = b"") -> None:
        """Take the cluster's id into the identity.  It is on the disk with the next commit that says who was heard."""
        self.identity = replace(self.identity, founded=cluster, replaced=replaced)

    @abstractmethod
    def close(self) -> None:
        """Let go of it.  May be called again."""


# --------------------------------------------------------------------------------------------------------- the records


class _State(NamedTuple):
    """The state row: hard state, and where log and snapshot end."""

    term: int
    vote: str | int | None
    last: int
    check: int
    base: int
    base_check: int


class _Damaged(Exception):
    """A block is not what it should be: at which index, and how."""

    def __init__(self, index: int, what: str) -> None:
        super().__init__(f"entry {index} {what}")


def _entries(block: bytes, index: int) -> Iterator[tuple[int, int, int, int]]:
    """Walk the headers of a block that begins with entry `index`: start, end, term and check of each entry."""
    position, size, unpack = 0, len(block), _HEADER.unpack_from
    while position < size:
        if position + ENTRY_HEADER_BYTES > size:
            raise _Damaged(index, "is cut off")
        found, term, _, length, check = unpack(block, position)
        end = position + ENTRY_HEADER_BYTES + length
        if found != index:
            raise _Damaged(index, f"says that it is entry {found}")
        if end > size:
            raise _Damaged(index, "is cut off")
        yield position, end, term, check
        position = end
        index += 1


def _end_of(block: bytes, first: int, before: int, highest: int) -> tuple[int, int] | None:
    """Last index of a good block, and its check, by the compiled core's log; None where a walk must tell."""
    if core.name != "cython":
        return None  # The Python log would take longer than the walk.
    log = core.Log(first - 1, 0, before)
    try:
        fresh, last = log.check_block(block, first - 1, highest)
        log.extend(block, fresh)
    except MalformedMessage:
        return None
    return last, log.check_at(last)


def _check_of(block: bytes, start: int, end: int, before: int) -> int:
    """The check that the entry at [start, end) must carry after one that carries `before`."""
    return crc32(block[start + ENTRY_HEADER_BYTES : end], crc32(block[start : start + _CHECKED_BYTES], before))


class RecordStorage(Storage):
    """The record layer: identity, sealing, cutting and checking, over any `Transactional`.

    Args:
        rows: where the rows are; closed with this object.
        node: the id that it must belong to.
        cluster: the cluster's uuid, 16 bytes, that it must belong to; None takes what is there.
        bootstrap: it must be new, and is founded; or some, and not all, of `groups` are in it.
        groups: that the caller will have in it.
        entropy: gives so many random bytes, for uuids and nonces; a simulation hands in its own.

    Raises:
        WrongDirectory: another node's, another cluster's, used where a new one is wanted, new where a used one is.
        Corrupt, DiskFull, StorageFailed: as from `load` and `commit`.
    """

    def __init__(
        self,
        rows: Transactional,
        node: str | int,
        *,
        cluster: bytes | None = None,
        bootstrap: bool = False,
        groups: Iterable[str] = (),
        entropy: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        if cluster is not None and len(cluster) != 16:
            raise InvalidArgument("a cluster uuid has 16 bytes")
        self._rows = rows
        self._lock = threading.RLock()
        self._states: dict[str, _State] = {}
        self._failed: str | None = None
        self._entropy = entropy
        self._packer = msgpack.Packer()  # For who holds the lock.
        self.identity = self._identify(node, cluster, bootstrap, set(groups))
        self._apply([self._seal_identity(self.heard)])

    def _identify(self, node: str | int, cluster: bytes | None, bootstrap: bool, groups: set[str]) -> Identity:
        where, used = self._rows.where, self.groups()
        extends = bool(groups.intersection(used)) and not groups.issubset(used)
        record = self._unsealed("node", "")
        if record is None and used:
            raise Corrupt(f"{where}: the row that says whose it is is gone: {REPLACE}")
        found: Identity | None = None
        if record is not None:
            found, heard = self._read_identity(record)
        storage, boot = (found.storage, found.boot + 1) if found is not None else (self._entropy(16), 1)
        past = (*found.past, found.nonce)[-_PAST:] if found is not None else ()
        if found is not None and used:
            if found.node != node:
                text = f"{where} belongs to node {found.node!r}, not {node!r}"
                raise WrongDirectory(f"{text}: start that node, or give this one a directory of its own")
            if bootstrap and not extends:
                raise WrongDirectory(f"{where} is in use already: start without bootstrap=True")
            if cluster is not None and not bootstrap and found.cluster != cluster:
                text = f"{where} belongs to cluster {found.cluster.hex()}, not {cluster.hex()}"
                raise WrongDirectory(f"{text}: give this node a directory of its own")
            cluster, self.heard = found.cluster, heard
        elif not bootstrap:
            # No group yet: a founding died halfway.  It promised nothing to anybody, so it can be begun again.
            raise _is_new(where)
        nonce = int.from_bytes(self._entropy(8), "little") & _LAST_NUMBER
        fresh = Identity(node, cluster or self._entropy(16), storage, boot, nonce, past)
        return replace(fresh, founded=found.founded, replaced=found.replaced) if found is not None and used else fresh

    def _read_identity(self, body: bytes) -> tuple[Identity, list[Heard]]:
        record = self._unpacked("node", "", body, 5, 7, 9)  # The first versions remembered nobody.
        default: tuple[Any, ...] = ([], [], bytes(16), b"")
        heard, past, founded, replaced = (*record[5:], *default[len(record) - 5 :])
        try:
            node, cluster, storage, boot, nonce = record[:5]
            identity = Identity(node, cluster, storage, boot, nonce, tuple(past), founded, replaced)
            return identity, [Heard(*each) for each in heard]
        except TypeError:
            raise self._corrupt("", "the node row is not one of ours") from None

    def _seal_identity(self, heard: Sequence[Heard]) -> Put:
        i = self.identity
        record = [
            i.node,
            i.cluster,
            i.storage,
            i.boot,
            i.nonce,
            [list(each) for each in heard],
            i.past,
            i.founded,
            i.replaced,
        ]
        return self._sealed("node", "", msgpack.packb(record))

    # -------------------------------------------------------------------- rows

    def _sealed(self, table: str, name: str, body: bytes, number: int = 0) -> Put:
        return Put(table, name, number, _SEAL.pack(crc32(body, _place_check(table, name, number))) + body)

    def _unsealed(self, table: str, name: str, number: int = 0) -> bytes | None:
        value = self._rows.get(table, name, number)
        if value is None:
            return None
        body = value[_SEAL.size :]
        if value[: _SEAL.size] != _SEAL.pack(crc32(body, _place_check(table, name, number))):
            raise self._corrupt(name, f"the {table} row fails its checksum")
        return body

    def _unpacked(self, table: str, name: str, body: bytes, *lengths: int) -> list[Any]:
        try:
            record = msgpack.unpackb(body)
            if len(record) in lengths:
                return list(record)
        except (ValueError, TypeError, msgpack.exceptions.UnpackException):
            pass
        raise self._corrupt(name, f"the {table} row is not one of ours")

    def _corrupt(self, group: str, what: str) -> Corrupt:
        of = f"group {group!r}: " if group else ""
        return Corrupt(f"{self._rows.where}: {of}{what}: {REPLACE}")

    def _apply(self, changes: Sequence[Put | Delete]) -> None:
        """Apply; after a failure never again: a second sync may report success for pages that the first one lost."""
        if self._failed is not None:
            raise StorageFailed(self._failed)
        try:
            self._rows.apply(changes)
        except DiskFull:
            raise
        except BaseException as error:
            text = str(error) if isinstance(error, StorageError) else f"{type(error).__name__}: {error}"
            self._failed = f"an earlier commit failed, restart the node once the disk is mended: {text}"
            if isinstance(error, StorageFailed) or not isinstance(error, Exception):
                raise
            raise StorageFailed(text) from error

    # ------------------------------------------------------------------- reads

    def groups(self) -> list[str]:
        # Of both tables: if one row of a group is lost, the group is damaged, not gone.
        return sorted({*self._rows.names("configuration"), *self._rows.names("state")})

    def configuration(self, group: str) -> bytes:
        body = self._unsealed("configuration", group)
        if body is not None:
            return body
        if self._rows.get("state", group, 0) is None:
            raise InvalidArgument(f"{self._rows.where}: there is no group {group!r}")
        raise self._corrupt(group, "the configuration row is gone")

    def snapshot(self, group: str) -> StoredSnapshot | None:
        body = self._unsealed("snapshot", group, _CURRENT)
        if body is None:
            return None
        if len(body) != _SNAPSHOT.size:
            raise self._corrupt(group, "the snapshot row is not one of ours")
        return StoredSnapshot(*_SNAPSHOT.unpack(body))

    def _incoming(self, group: str) -> Incoming | None:
        body = self._unsealed("snapshot", group, _INCOMING)
        if body is None:
            return None
        (source,) = self._unpacked("snapshot", group, body[_SNAPSHOT.size :], 1)
        snapshot = StoredSnapshot(*_SNAPSHOT.unpack_from(body))
        return Incoming(snapshot, source, self._pieces_in(group, snapshot.slot))

    def _incoming_slot(self, group: str) -> int | None:
        body = self._unsealed("snapshot", group, _INCOMING)
        return StoredSnapshot(*_SNAPSHOT.unpack_from(body)).slot if body is not None else None

    def piece(self, group: str, slot: int, number: int) -> bytes:
        body = self._unsealed("piece", group, slot * _SLOT + number)
        if body is None:
            raise self._corrupt(group, f"piece {number} of the snapshot in slot {slot} is gone")
        return body

    def _pieces_in(self, group: str, slot: int) -> int:
        """How many pieces a slot holds: they come, and go, at its end."""
        last = self._rows.floor("piece", group, slot * _SLOT + _SLOT - 1)
        return last[0] - slot * _SLOT + 1 if last is not None and last[0] >= slot * _SLOT else 0

    def _leftovers(self, group: str, named: set[int]) -> tuple[Discarded, ...]:
        found = []
        last = self._rows.floor("piece", group, _LAST_NUMBER)
        while last is not None:
            slot, number = divmod(last[0], _SLOT)
            if slot not in named:
                found.append(Discarded(slot, 0, number + 1))
            last = self._rows.floor("piece", group, slot * _SLOT - 1)
        return tuple(found)

    def _state(self, group: str) -> _State | None:
        state = self._states.get(group)
        if state is None:
            body = self._unsealed("state", group)
            if body is not None:
                state = self._states[group] = _State(*self._unpacked("state", group, body, 6))
        return state

    def load(self, group: str) -> Stored | None:
        with self._lock:
            self._states.pop(group, None)  # What was cached is not what is stored.
            state = self._state(group)
            if state is None:
                if self._rows.get("configuration", group, 0) is None:
                    return None
                raise self._corrupt(group, "the state row is gone")
            self.configuration(group)
            snapshot = self.snapshot(group)
            rows = self._rows.scan("log", group)
            incoming = self._incoming(group)
            kept = [each for each in (snapshot, incoming.snapshot if incoming else None) if each is not None]
            leftovers = self._leftovers(group, {each.slot for each in kept})
        if snapshot is None:
            snapshot_is_right = state.base == 0
        else:
            snapshot_is_right = (snapshot.index, snapshot.check) == (state.base, state.base_check)
            if snapshot_is_right and self._pieces_in(group, snapshot.slot) != snapshot.count:
                raise self._corrupt(group, f"the snapshot at index {state.base} lacks its last piece")
        if not snapshot_is_right:
            raise self._corrupt(group, f"the snapshot is not the one at index {state.base} that was committed last")
        try:
            self._verify(state, snapshot.term if snapshot is not None else 0, rows)
        except _Damaged as damage:
            raise self._corrupt(group, f"the log is damaged: {damage}") from None
        first = rows[0][0] if rows else state.base + 1
        return Stored(state.term, state.vote, snapshot, [block for _, block in rows], first, incoming, leftovers)

    @staticmethod
    def _verify(state: _State, base_term: int, rows: list[tuple[int, bytes]]) -> None:
        """Follow the chain from the snapshot to the end that the state row names."""
        if base_term > state.term:
            raise _Damaged(state.base, f"has term {base_term}, above the current term {state.term}")
        index = state.base + 1
        before: int | None = state.base_check
        lowest = base_term
        if rows and rows[0][0] < index:
            # Below the snapshot; the chain value before it is known only at the log's very beginning.
            index, lowest = rows[0][0], 0
            before = 0 if index == 1 else None
        for number, block in rows:
            if number != index or not block or number < 1:
                raise _Damaged(index, f"is missing: the next row begins at {number}")
            for start, end, term, check in _entries(block, number):
                if before is not None and _check_of(block, start, end, before) != check:
                    raise _Damaged(index, "fails its checksum")
                if not lowest <= term <= state.term:
                    raise _Damaged(index, f"has term {term}, outside [{lowest}, {state.term}]")
                if index == state.base and (check, term) != (state.base_check, base_term):
                    raise _Damaged(index, "is not the one that the snapshot ends with")
                before, lowest = check, term
                index += 1
        if index != state.last + 1 or before != state.check:
            raise _Damaged(index, f"is missing: the log should end with entry {state.last}")

    # ------------------------------------------------------------------ writes

    def create_all(self, groups: Sequence[str], configuration: bytes) -> None:
        with self._lock:
            for group in set(groups).intersection(self.groups()):
                raise InvalidArgument(f"{self._rows.where}: there is a group {group!r} already")
            state = _State(0, None, 0, 0, 0, 0)
            changes: list[Put | Delete] = []
            for group in groups:
                changes += [self._sealed("configuration", group, configuration), self._seal_state(group, state)]
            self._apply(changes)
            self._states.update(dict.fromkeys(groups, state))

    def _seal_state(self, group: str, state: _State) -> Put:
        return self._sealed("state", group, self._packer.pack(state))

    def commit(self, writes: Sequence[Write], heard: Sequence[Heard] | None = None) -> None:
        with self._lock:
            if self._failed is not None:
                raise StorageFailed(self._failed)
            changes: list[Put | Delete] = []
            after: dict[str, _State] = {}
            for write in writes:
                if write.group in after:
                    raise InvariantViolated(f"two writes of group {write.group!r} in one commit")
                after[write.group] = self._plan(write, changes)
            if heard is not None:
                changes.append(self._seal_identity(heard))
            if changes:
                self._apply(changes)
                self._states.update(after)
                self.heard = self.heard if heard is None else heard

    def _plan(self, write: Write, changes: list[Put | Delete]) -> _State:
        """Add to `changes` what the write asks for; return the state after it."""
        group, state, snapshot = write.group, self._state(write.group), write.snapshot
        if state is None:
            raise InvariantViolated(f"a write of group {group!r}, which was never created")
        if write.resets_term:
            state = state._replace(term=0, vote=None)
        if not state.term <= write.term < LIMIT:
            raise _wrong(write, f"term {write.term} after term {state.term}")
        if write.term == state.term and state.vote is not None and write.vote != state.vote:
            raise _wrong(write, f"a vote for {write.vote!r} in term {state.term} after one for {state.vote!r}")
        base, base_check, last, check = state.base, state.base_check, state.last, state.check
        resets = snapshot is not None and write.snapshot_resets_log
        if snapshot is not None and snapshot.index < base:
            if resets:
                raise _wrong(write, f"an installed snapshot at {snapshot.index} after one at {base}")
            snapshot = None  # It was overtaken while it was made.
        starts: list[int] = []
        for slot, low, high in write.discard:
            changes.append(Delete("piece", group, slot * _SLOT + low, slot * _SLOT + high - 1))
            if not low and slot == self._incoming_slot(group):  # Nothing of it is left, and no fetch goes on.
                changes.append(Delete("snapshot", group, _INCOMING, _INCOMING))
        for slot, number, data in write.pieces:
            changes.append(self._sealed("piece", group, data, slot * _SLOT + number))
        if write.incoming is not None:
            body = _SNAPSHOT.pack(*_fields(write.incoming.snapshot)) + msgpack.packb([write.incoming.source])
            changes.append(self._sealed("snapshot", group, body, _INCOMING))
        if snapshot is not None and resets:
            changes.append(Delete("log", group, 0, _LAST_NUMBER))
            base, base_check = last, check = snapshot.index, snapshot.check
        if write.first:
            if not base < write.first <= last + 1:
                raise _wrong(write, f"entries from {write.first} on after a log of ({base}, {last}]")
            if write.first <= last:
                check = self._cut(group, write.first, base_check, changes)
            last = write.first - 1
            if write.block:
                last, check, starts = self._place(write, check, changes)
        elif write.block:
            raise _wrong(write, "entries without their first index")
        if snapshot is not None:
            if not 0 < snapshot.index <= last or snapshot.term > write.term:
                text = f"a snapshot at {snapshot.index}, term {snapshot.term}"
                raise _wrong(write, f"{text}, with a log that ends at {last}, term {write.term}")
            comes = (snapshot.slot, snapshot.count - 1) in {(slot, number) for slot, number, _ in write.pieces}
            if not comes and self._pieces_in(group, snapshot.slot) != snapshot.count:
                raise _wrong(write, f"a snapshot at {snapshot.index}, whose pieces are not all there")
            changes.append(self._sealed("snapshot", group, _SNAPSHOT.pack(*_fields(snapshot)), _CURRENT))
            if resets:
                changes.append(Delete("snapshot", group, _INCOMING, _INCOMING))
            base, base_check = snapshot.index, snapshot.check
        covered = min(write.compact, base)
        if covered:
            self._compact(group, covered, last, starts, changes)
        after = _State(write.term, write.vote, last, check, base, base_check)
        changes.append(self._seal_state(group, after))
        return after

    def _cut(self, group: str, first: int, base_check: int, changes: list[Put | Delete]) -> int:
        """Remove the entries from `first` on; return the check of the one before."""
        changes.append(Delete("log", group, first, _LAST_NUMBER))
        row = self._rows.floor("log", group, first - 1)
        if row is None:
            return base_check
        number, block = row
        try:
            for index, (_, end, _, check) in enumerate(_entries(block, number), number):
                if index == first - 1:
                    if end < len(block):
                        changes.append(Put("log", group, number, block[:end]))
                    return check
        except _Damaged as damage:
            raise self._corrupt(group, f"the log is damaged: {damage}") from None
        raise self._corrupt(group, f"the log is damaged: entry {first - 1} is missing")

    @staticmethod
    def _place(write: Write, before: int, changes: list[Put | Delete]) -> tuple[int, int, list[int]]:
        """Add the block, in rows of some 1 MB: last index, its check, and the rows' first indexes."""
        ended = _end_of(write.block, write.first, before, write.term) if len(write.block) <= _ROW_BYTES else None
        if ended is not None:
            changes.append(Put("log", write.group, write.first, write.block))
            return *ended, [write.first]
        block, index, lowest, check = write.block, write.first, 0, 0
        starts, begin = [index], 0
        try:
            for start, end, term, check in _entries(block, index):
                if not start and _check_of(block, 0, end, before) != check:
                    raise _Damaged(index, "does not follow the one before it")
                if not lowest <= term <= write.term:
                    raise _Damaged(index, f"has term {term}, outside [{lowest}, {write.term}]")
                if end - begin > _ROW_BYTES and start > begin:
                    changes.append(Put("log", write.group, starts[-1], block[begin:start]))
                    starts.append(index)
                    begin = start
                lowest = term
                index += 1
        except _Damaged as damage:
            raise _wrong(write, str(damage)) from None
        changes.append(Put("log", write.group, starts[-1], block[begin:] if begin else block))
        return index - 1, check, starts

    def _compact(self, group: str, covered: int, last: int, starts: list[int], changes: list[Put | Delete]) -> None:
        """Delete the rows that hold no entry above `covered`."""
        if covered >= last:
            changes.append(Delete("log", group, 0, _LAST_NUMBER))
            return
        at = bisect_right(starts, covered + 1)  # The rows of this very write are not there to be read yet.
        row = None if at else self._rows.floor("log", group, covered + 1)
        keep = starts[at - 1] if at else row[0] if row is not None else 0
        if keep:
            changes.append(Delete("log", group, 0, keep - 1))

    def close(self) -> None:
        with self._lock:
            self._failed = self._failed or f"{self._rows.where} is closed"
            self._rows.close()


@lru_cache(_PLACES_REMEMBERED)
def _place_check(table: str, name: str, number: int) -> int:
    return crc32(f"{table}/{name}/{number}".encode())


def _fields(snapshot: StoredSnapshot) -> tuple[Any, ...]:
    return tuple(getattr(snapshot, field.name) for field in fields(snapshot))


def pieces_named_by(row: bytes) -> range:
    """The numbers of the pieces that a snapshot row names: for who looks at a disk from outside."""
    snapshot = StoredSnapshot(*_SNAPSHOT.unpack_from(row, _SEAL.size))
    return range(snapshot.slot * _SLOT, snapshot.slot * _SLOT + snapshot.count)


def _wrong(write: Write, what: str) -> InvariantViolated:
    return InvariantViolated(f"group {write.group!r}: a write has {what}")


def _is_new(where: str) -> WrongDirectory:
    what = "start with bootstrap=True and peers= to found a cluster, or with join=True to become a member of one"
    return WrongDirectory(f"{where} is new: {what}")


class MemoryStorage(RecordStorage):
    """As durable as the object: for tests, and for replicas that are never restarted.

    Args:
        node: id of the node.
        cluster: the cluster's uuid, 16 bytes; None makes one up.
        rows: those of an earlier MemoryStorage, to open it again.
    """

    def __init__(self, node: str | int, cluster: bytes | None = None, *, rows: Transactional | None = None) -> None:
        super().__init__(MemoryRows() if rows is None else rows, node, cluster=cluster, bootstrap=rows is None)


def is_new(data_dir: str) -> bool:
    """Whether a data directory holds nothing of a node, or is not there.

    Raises:
        StorageFailed: it is no directory, or may not be read.
    """
    with os_errors(data_dir, "read"):
        return not exists(data_dir) or not parts(os.listdir(data_dir), FILE_NAME)


class SQLiteStorage(RecordStorage):
    """One SQLite file in a data directory that belongs to one process at a time.

    Args:
        data_dir: the directory; it is made when a cluster is founded.
        node: id of the node that the directory must belong to.
        cluster: uuid of the cluster that it must belong to; None takes what is there.
        bootstrap: the directory must be new, and is founded; or some, and not all, of `groups` are in it.
        groups: that the caller will have in it.
        synchronous: FULL; only tests give another, and lose data by it.
        begin: False leaves the directory as it is until `begin` or `commit` is called, or for good.

    Raises:
        InvalidArgument: the path is none.
        DirectoryInUse: another process, or another object of this one, holds it.
        WrongDirectory: another node's, another cluster's, used where a new one is wanted, new where a used one is.
        Corrupt: the file is not a database of ours, or is damaged, or a part of the directory is missing.
        DiskFull, StorageFailed: it cannot be made, opened or written.
    """

    watched = True

    def __init__(
        self,
        data_dir: str | bytes | os.PathLike[str],
        node: str | int,
        *,
        cluster: bytes | None = None,
        bootstrap: bool = False,
        groups: Iterable[str] = (),
        synchronous: str = "FULL",
        begin: bool = True,
    ) -> None:
        self._directory = Directory(path_of(data_dir), FILE_NAME)
        self._synchronous = synchronous
        self._is_new = self._is_unclean = False
        rows: Transactional | None = None
        try:
            with translated(self._directory.path, "opened"):
                rows = self._found(bootstrap)
            super().__init__(Planned(rows), node, cluster=cluster, bootstrap=bootstrap, groups=groups)
            follow(self)
            if begin:
                self.begin()
        except BaseException:
            if rows is not None:
                rows.close()
            self._directory.release()
            raise

    def _found(self, bootstrap: bool) -> Transactional:
        """Take the directory, and open what is there; nothing is written."""
        directory, path = self._directory, self._directory.file
        directory.lock()
        found = directory.parts()
        if FILE_NAME not in found:
            if found:
                there = ", ".join(sorted(found))
                raise Corrupt(f"{path} is missing, though {there} is there: put it back, or {REPLACE}")
            if not bootstrap:
                raise _is_new(directory.path)
            self._is_new = True
            rows = MemoryRows()
            rows.where = path
            return rows
        directory.hold()
        log_bytes = directory.size(WAL)
        if SQLiteRows.is_in_use(directory.header()) and log_bytes < _WAL_HEADER_BYTES:
            how = "missing" if log_bytes < 0 else "cut off"
            text = f"{path}{WAL} is {how}: it held what the database does not, since no process has closed it"
            raise Corrupt(f"{text}: put it back, or {REPLACE}")
        self._is_unclean = log_bytes >= 0 or directory.is_linked()
        return SQLiteRows(path, self._synchronous, directory, only_read=log_bytes < 0)

    def begin(self) -> None:
        with self._lock:
            planned = self._rows
            if not isinstance(planned, Planned):
                return
            if self._failed is not None:
                raise StorageFailed(self._failed)
            self._failed = "its start failed"
            planned.close()
            with translated(self._directory.path, "written"):
                self._begin(planned.changes)
            self._failed = None

    def _begin(self, changes: Sequence[Put | Delete]) -> None:
        directory, rows = self._directory, None
        was_closed = not (self._is_new or self._is_unclean)
        try:
            if self._is_new:
                directory.make()
                if FILE_NAME in directory.parts():
                    self._is_new = False
                    raise WrongDirectory(f"{directory.path} was founded by another process meanwhile: start again")
                SQLiteRows.make(directory.file)
                directory.hold()
            elif self._is_unclean:
                directory.renew()
            rows = SQLiteRows(directory.file, self._synchronous, directory, checked=was_closed)
            rows.begin(changes)
        except BaseException:
            if rows is not None:
                rows.close()
            if self._is_new:
                directory.unmake()
            elif was_closed and not SQLiteRows.is_in_use(directory.header()):
                directory.remove(WAL)
            raise
        self._rows = rows
        if self._is_unclean:
            self._reread()
        directory.tighten()
        directory.tell_pid()

    def _reread(self) -> None:
        """Check what was copied: what was read before may not have been what the disk gave for the copy."""
        for group, before in list(self._states.items()):
            self._states.pop(group)
            self.load(group)
            if self._states.get(group) != before:
                raise StorageFailed(f"{self._rows.where}: the disk gave two answers for group {group!r}: look at it")

    def commit(self, writes: Sequence[Write], heard: Sequence[Heard] | None = None) -> None:
        self.begin()
        super().commit(writes, heard)

    def verify(self) -> None:
        if not self._lock.acquire(blocking=False):
            return  # A commit is under way, and looks itself.
        try:
            if self._failed is None and isinstance(self._rows, SQLiteRows):
                try:
                    self._directory.verify()
                except StorageError as error:
                    self._failed = str(error)
            if self._failed is not None:
                raise StorageFailed(self._failed)
        finally:
            self._lock.release()

    def held_over_fork(self) -> list[Any]:
        """What is locked while a thread is inside SQLite, which has locks of its own."""
        rows = self._rows
        return [self._lock, *([rows.read_lock] if isinstance(rows, SQLiteRows) else [])]

    def forked(self) -> None:
        """Let go of the directory, and leave everything as it is: for the child of a fork, in its only thread."""
        self._lock = threading.RLock()  # A thread of the parent's may have had it.
        self._failed = f"{self._directory.path} belongs to the process that was forked: open it there"
        self._rows = MemoryRows()

    def close(self) -> None:
        with self._lock:
            ends_well = self._failed is None and isinstance(self._rows, SQLiteRows)
            try:
                try:
                    if ends_well and isinstance(self._rows, SQLiteRows):
                        self._rows.finish()
                finally:
                    super().close()
                if ends_well:
                    self._directory.remove(WAL)
            finally:
                self._directory.release()
