"""Durable state: each node's own disk holds the truth.

One SQLite file a node (WAL, synchronous=FULL) holds the node's identity and, for each of its groups, the hard state
(term and vote), the log as the encoded blocks that the wire carries too, and the newest snapshot.  `Storage.commit` is
one transaction for all groups; it returns when the data has been synced.

The record layer (`Storage`) decides what a record is, what it replaces and which checksum vouches for it.  Below it lies
a small interface of ordered keys and values with transactions (`Table`): SQLite here, a dict in memory, and a simulated
disk in tests.  What is read is checked before it is believed: every record but a log row begins with its CRC-32, and a log
row is vouched for by the chain of its entries.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import sqlite3
import struct
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

import msgpack

from raftplug.constants import LIMIT
from raftplug.errors import Corrupt, DirectoryInUse, DiskFull, StorageFailed, WrongDirectory
from raftplug.frames import Id

_ENTRY = struct.Struct("<QQBII")
_CHECKED_BYTES = 21
_CRC = struct.Struct("<I")
_KEY = struct.Struct(">Q")  # Big-endian, so that the order of the bytes is that of the numbers.
_ROW_BYTES = 1 << 20
_FILE = "raftplug.sqlite3"
_APPLICATION_ID = 0x52504C47
_VERSION = 1


@dataclass(frozen=True, slots=True)
class StoredSnapshot:
    """A state machine's state after entry `index`, of `term` and chain value `check`; `data` is opaque here."""

    index: int
    term: int
    check: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Write:
    """One group's part of a transaction.

    Args:
        group: its name.
        term, vote: the hard state.
        first: index from which on `block` replaces the log; 0 leaves the log as it is.
        block: encoded entries, the first of them at `first`.
        snapshot: replaces an older one; a newer one stays.
        snapshot_resets_log: the snapshot was installed: what was in the log before `block` is dropped.
        compact: rows of the log that end at or before this index may go, if a snapshot covers them.
    """

    group: str
    term: int
    vote: Id | None
    first: int = 0
    block: bytes = b""
    snapshot: StoredSnapshot | None = None
    snapshot_resets_log: bool = False
    compact: int = 0


@dataclass(slots=True)
class Stored:
    """What is durable of one group: `blocks` in index order, the first of them beginning with entry `first`."""

    term: int = 0
    vote: Id | None = None
    snapshot: StoredSnapshot | None = None
    blocks: list[bytes] = field(default_factory=list)
    first: int = 0


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose storage it is.

    Args:
        node: the node's id.
        cluster: uuid of its cluster, 16 bytes.
        storage: uuid of this storage, made with it, 16 bytes.
        boot: how often it was opened.
        nonce: random, 63 bits, of this opening.
    """

    node: Id
    cluster: bytes
    storage: bytes
    boot: int
    nonce: int


class Table(ABC):
    """Ordered keys and values with transactions; what a disk must be able to do.

    Raises:
        StorageFailed, DiskFull: from every method; after DiskFull nothing of the transaction is there.
    """

    @abstractmethod
    def begin(self) -> None:
        """Begin a transaction."""

    @abstractmethod
    def commit(self) -> None:
        """Return when all of the transaction is durable."""

    @abstractmethod
    def rollback(self) -> None:
        """Undo the transaction."""

    @abstractmethod
    def get(self, key: bytes) -> bytes | None:
        """The value at `key`."""

    @abstractmethod
    def put(self, key: bytes, value: bytes) -> None:
        """Set the value at `key`."""

    @abstractmethod
    def delete(self, low: bytes, high: bytes) -> None:
        """Delete low <= key < high."""

    @abstractmethod
    def last_before(self, low: bytes, high: bytes) -> tuple[bytes, bytes] | None:
        """The greatest of low <= key < high, with its value."""

    @abstractmethod
    def scan(self, low: bytes, high: bytes) -> Iterator[tuple[bytes, bytes]]:
        """All of low <= key < high, in order."""

    @abstractmethod
    def close(self) -> None:
        """Release it."""


class Storage:
    """The record layer over a table.

    `commit` may be called from another thread than the rest; calls exclude each other.

    Args:
        table: where the records lie.
        name: for messages: the file.
        node: the node's id.
        cluster: uuid of the cluster; None takes the stored one.
        bootstrap: whether it may be new; None takes either.

    Raises:
        WrongDirectory: it is another node's or cluster's; or new without `bootstrap`, or used with it.
        Corrupt: a record is damaged.
    """

    def __init__(self, table: Table, name: str, node: Id, cluster: bytes | None, bootstrap: bool | None) -> None:
        self._table = table
        self._name = name
        self._lock = threading.RLock()
        self._failed: str | None = None
        self._last: dict[str, int] = {}  # Last durable index of a group's log: what follows it need not look for a cut.
        self.identity = self._open(node, cluster, bootstrap)

    # -------------------------------------------------------------- identity

    def _open(self, node: Id, cluster: bytes | None, bootstrap: bool | None) -> Identity:
        stored = self._read(b"identity")
        used = stored is not None and bool(self.groups())
        if used and bootstrap:
            raise WrongDirectory(f"{self._name} is in use already: start this node without --bootstrap")
        if not used and bootstrap is False:
            raise WrongDirectory(f"{self._name} is new: start with --bootstrap and --peers to found a cluster")
        if stored is None or not used:
            identity = Identity(node, cluster or bytes(16), secrets.token_bytes(16), 1, secrets.randbits(63))
        else:
            try:
                owner, uuid, storage, boot = msgpack.unpackb(stored)
            except ValueError:
                raise Corrupt(f"{self._name}: the identity record cannot be read: restore a backup") from None
            if owner != node or type(owner) is not type(node):
                raise WrongDirectory(f"{self._name} belongs to node {owner!r}, not {node!r}: give each node its own")
            if cluster is not None and cluster != uuid:
                raise WrongDirectory(f"{self._name} belongs to another cluster: give each node its own directory")
            identity = Identity(node, uuid, storage, boot + 1, secrets.randbits(63))
        with self._transaction():
            record = msgpack.packb([identity.node, identity.cluster, identity.storage, identity.boot])
            self._put(b"identity", record)
        return identity

    # ---------------------------------------------------------------- groups

    def groups(self) -> list[str]:
        """The names of the groups that were created here."""
        with self._lock:
            return [key[2:].decode() for key, _ in self._table.scan(b"g/", b"g0")]

    def create(self, group: str, configuration: bytes) -> None:
        """Begin a group with its bootstrap configuration (opaque)."""
        with self._lock, self._transaction():
            self._put(b"g/" + group.encode(), configuration)
            self._put(_key(b"h", group), msgpack.packb([0, None]))

    def configuration(self, group: str) -> bytes:
        """The bootstrap configuration that `create` was given.

        Raises:
            WrongDirectory: there is no such group.
        """
        with self._lock:
            found = self._read(b"g/" + group.encode())
        if found is None:
            raise WrongDirectory(f"{self._name} carries no group {group!r}")
        return found

    def snapshot(self, group: str) -> StoredSnapshot | None:
        """The newest durable snapshot of a group.  Any thread.

        Raises:
            Corrupt: it is damaged.
        """
        with self._lock:
            record = self._read(_key(b"s", group))
        if record is None:
            return None
        try:
            index, term, check, data = msgpack.unpackb(record)
        except ValueError:
            raise Corrupt(f"{self._name}: group {group!r}: the snapshot cannot be read: restore a backup") from None
        return StoredSnapshot(index, term, check, data)

    def load(self, group: str) -> Stored | None:
        """Everything durable of a group, checked; None if it was never created.

        Raises:
            Corrupt: a record is damaged, missing or out of order; the message names file, group and index.
        """
        with self._lock:
            if self._table.get(b"g/" + group.encode()) is None:
                return None
            hard = self._read(_key(b"h", group))
            if hard is None:
                raise Corrupt(f"{self._name}: group {group!r}: term and vote are missing: restore a backup")
            snapshot = self.snapshot(group)
            low, high = _log_range(group)
            rows = list(self._table.scan(low, high))
        term, vote = msgpack.unpackb(hard)
        base = snapshot or StoredSnapshot(0, 0, 0, b"")
        checker = _ChainChecker(f"{self._name}: group {group!r}", base, term)
        for key, row in rows:
            checker.row(_KEY.unpack(key[-8:])[0], row)
        blocks = [row for _, row in rows]
        return Stored(term, vote, snapshot, blocks, checker.first)

    # ---------------------------------------------------------------- commit

    def commit(self, writes: Sequence[Write]) -> None:
        """Make the writes durable, all or none; returns when they are.

        Raises:
            DiskFull: nothing was written; the same writes may be tried again.
            StorageFailed: whether they are on disk is unknown; every later commit fails too.
        """
        with self._lock:
            if self._failed is not None:
                raise StorageFailed(f"{self._name}: an earlier write failed ({self._failed}): restart this node")
            last, self._last = self._last, {}
            try:
                with self._transaction():
                    for write in writes:
                        last[write.group] = self._apply(write, last.get(write.group, -1))
                self._last = last
            except DiskFull:
                raise
            except StorageFailed as error:
                self._failed = str(error)
                raise

    def close(self) -> None:
        """Release the table.  What was committed stays."""
        with self._lock:
            self._table.close()

    def _apply(self, write: Write, last: int) -> int:
        """Put one write into the transaction.  Takes and returns the last index of the log; -1 is unknown."""
        low, high = _log_range(write.group)
        self._put(_key(b"h", write.group), msgpack.packb([write.term, write.vote]))
        covered = 0
        if write.snapshot is not None or write.compact:
            known = self.snapshot(write.group)
            covered = known.index if known is not None else 0
        if write.snapshot is not None and write.snapshot.index > covered:
            covered = write.snapshot.index
            snapshot = write.snapshot
            record = msgpack.packb([snapshot.index, snapshot.term, snapshot.check, snapshot.data])
            self._put(_key(b"s", write.group), record)
            if write.snapshot_resets_log:
                self._table.delete(low, high)
                last = -1
        if write.first:
            if write.first != last + 1:
                self._truncate(write.group, write.first)
            last = write.first - 1
            for index, count, row in _rows(write.first, write.block):
                self._table.put(low + _KEY.pack(index), row)
                last = index + count - 1
        if write.compact:
            # A row may go when the next one begins at or before compact + 1.
            keep = self._table.last_before(low, low + _KEY.pack(min(write.compact, covered) + 2))
            if keep is not None:
                self._table.delete(low, keep[0])
        return last

    def _truncate(self, group: str, first: int) -> None:
        """Drop entries >= first; cut the row that straddles it, in the same transaction."""
        low, high = _log_range(group)
        straddling = self._table.last_before(low, low + _KEY.pack(first))
        self._table.delete(low + _KEY.pack(first), high)
        if straddling is not None:
            key, row = straddling
            position, index = 0, _KEY.unpack(key[-8:])[0]
            while position < len(row) and index < first:
                position += _ENTRY.size + _ENTRY.unpack_from(row, position)[3]
                index += 1
            if position < len(row):
                self._table.put(key, row[:position])

    # --------------------------------------------------------------- records

    def _transaction(self) -> _Transaction:
        return _Transaction(self._table)

    def _put(self, key: bytes, record: bytes) -> None:
        self._table.put(key, _CRC.pack(crc32(record, crc32(key))) + record)

    def _read(self, key: bytes) -> bytes | None:
        value = self._table.get(key)
        if value is None:
            return None
        record = value[_CRC.size :]
        if len(value) < _CRC.size or _CRC.unpack_from(value)[0] != crc32(record, crc32(key)):
            raise Corrupt(f"{self._name}: the record {key!r} is damaged: restore a backup, or replace this node")
        return record


class _Transaction:
    def __init__(self, table: Table) -> None:
        self._table = table

    def __enter__(self) -> None:
        self._table.begin()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            try:
                self._table.commit()
            except DiskFull:
                self._table.rollback()
                raise
        else:
            self._table.rollback()


class _ChainChecker:
    """Walks the rows of one log and says where they stop being a log."""

    def __init__(self, what: str, base: StoredSnapshot, term: int) -> None:
        self._what = what
        self._base = base
        self._term = term
        self._last_term = 0
        self._next: int | None = None
        self._check: int | None = 0 if base.index == 0 else None
        self.first = 0

    def _corrupt(self, index: int, text: str) -> Corrupt:
        return Corrupt(f"{self._what}: log entry {index} {text}: restore a backup, or replace this node")

    def row(self, start: int, row: bytes) -> None:
        if self._next is None:
            self.first = self._next = start
            if start > self._base.index + 1:
                raise self._corrupt(self._base.index + 1, "is missing")
            if start == self._base.index + 1:
                self._check = self._base.check
        position, index = 0, self._next
        while position < len(row):
            if len(row) - position < _ENTRY.size:
                raise self._corrupt(index, "is cut off")
            found, term, _, length, check = _ENTRY.unpack_from(row, position)
            end = position + _ENTRY.size + length
            if found != index or (position == 0 and start != index):
                raise self._corrupt(index, "is missing or out of order")
            if end > len(row):
                raise self._corrupt(index, "is cut off")
            if not self._last_term <= term <= min(self._term, LIMIT - 1):
                raise self._corrupt(index, "has a term that cannot be")
            if self._check is not None:
                head = crc32(row[position : position + _CHECKED_BYTES], self._check)
                if crc32(row[position + _ENTRY.size : end], head) != check:
                    raise self._corrupt(index, "fails its checksum")
            if index == self._base.index and (check, term) != (self._base.check, self._base.term):
                raise self._corrupt(index, "is not the one that the snapshot ends with")
            self._check = check
            self._last_term = term
            position, index = end, index + 1
        self._next = index


def _key(kind: bytes, group: str) -> bytes:
    name = group.encode()
    return kind + b"/" + struct.pack(">H", len(name)) + name + b"/"


def _log_range(group: str) -> tuple[bytes, bytes]:
    low = _key(b"l", group)
    return low, low[:-1] + b"0"  # "0" follows "/".


def _rows(first: int, block: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Cut a block into rows of about 1 MB at most, so that no truncation rewrites more: (index, entries, bytes)."""
    start = position = 0
    start_index = index = first
    while position < len(block):
        end = position + _ENTRY.size + _ENTRY.unpack_from(block, position)[3]
        if end - start > _ROW_BYTES and position > start:
            yield start_index, index - start_index, block[start:position]
            start, start_index = position, index
        position, index = end, index + 1
    if block:
        yield start_index, index - start_index, block[start:]


# -------------------------------------------------------------------- memory


class DictTable(Table):
    """A table in memory: ordered by sorting, for tests and for replicas that are never restarted."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self._undo: dict[bytes, bytes | None] = {}

    def begin(self) -> None:
        self._undo = {}

    def commit(self) -> None:
        self._undo = {}

    def rollback(self) -> None:
        for key, value in self._undo.items():
            if value is None:
                self.values.pop(key, None)
            else:
                self.values[key] = value
        self._undo = {}

    def get(self, key: bytes) -> bytes | None:
        return self.values.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        self._undo.setdefault(key, self.values.get(key))
        self.values[key] = value

    def delete(self, low: bytes, high: bytes) -> None:
        for key in [key for key in self.values if low <= key < high]:
            self._undo.setdefault(key, self.values[key])
            del self.values[key]

    def last_before(self, low: bytes, high: bytes) -> tuple[bytes, bytes] | None:
        key = max((key for key in self.values if low <= key < high), default=None)
        return None if key is None else (key, self.values[key])

    def scan(self, low: bytes, high: bytes) -> Iterator[tuple[bytes, bytes]]:
        return iter([(key, self.values[key]) for key in sorted(self.values) if low <= key < high])

    def close(self) -> None:
        """Nothing to release: what it holds can be opened again."""


class MemoryStorage(Storage):
    """A storage that forgets everything with its process.

    Args:
        node: the node's id.
        cluster: uuid of its cluster.
        table: of an earlier one, to open it again as a restarted process would.
    """

    def __init__(self, node: Id, *, cluster: bytes = bytes(16), table: DictTable | None = None) -> None:
        super().__init__(table or DictTable(), "memory", node, cluster, None)


# -------------------------------------------------------------------- SQLite


class SQLiteTable(Table):
    """A table in one SQLite file.

    Args:
        path: of the file; made if it is not there.
        synchronous: FULL; anything less is for tests that show that it matters.

    Raises:
        Corrupt: it is no SQLite file of ours, or damaged.
        StorageFailed: it cannot be opened.
    """

    def __init__(self, path: Path, synchronous: str = "FULL") -> None:
        self._path = path
        try:
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
        except sqlite3.Error as error:
            raise StorageFailed(f"{path} cannot be opened: {error}") from None
        try:
            self._prepare(synchronous)
        except BaseException:
            self._connection.close()
            raise

    def _prepare(self, synchronous: str) -> None:
        application, version = self._pragma("application_id"), self._pragma("user_version")
        tables = self._run("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if tables and (application, version) != (_APPLICATION_ID, _VERSION):
            raise Corrupt(f"{self._path} is not a data file of this version of raftplug: use another directory")
        self._pragma("journal_mode=WAL")
        self._pragma(f"synchronous={synchronous}")
        self._pragma("wal_autocheckpoint=4000")
        if not tables:
            self._run("BEGIN IMMEDIATE")
            self._run("CREATE TABLE records (key BLOB PRIMARY KEY, value BLOB NOT NULL)")
            self._run(f"PRAGMA application_id={_APPLICATION_ID}")
            self._run(f"PRAGMA user_version={_VERSION}")
            self._run("COMMIT")
            _sync_directory(self._path.parent)
        elif (found := self._run("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise Corrupt(f"{self._path} is damaged ({found}): restore a backup, or replace this node")

    def _pragma(self, text: str) -> Any:
        row = self._run(f"PRAGMA {text}").fetchone()
        return row[0] if row else None

    def _run(self, statement: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        try:
            return self._connection.execute(statement, values)
        except sqlite3.Error as error:
            raise self._translated(error) from None

    def _translated(self, error: sqlite3.Error) -> DiskFull | StorageFailed | Corrupt:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            return DiskFull(f"{self._path}: no space left: free some, the node goes on by itself")
        if isinstance(error, sqlite3.DatabaseError) and (
            getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
        ):
            return Corrupt(f"{self._path} is damaged or no database ({error}): restore a backup, or replace this node")
        return StorageFailed(f"{self._path}: {error}")

    def begin(self) -> None:
        self._run("BEGIN IMMEDIATE")

    def commit(self) -> None:
        self._run("COMMIT")

    def rollback(self) -> None:
        if self._connection.in_transaction:
            self._run("ROLLBACK")

    def get(self, key: bytes) -> bytes | None:
        row = self._run("SELECT value FROM records WHERE key = ?", (key,)).fetchone()
        return None if row is None else row[0]

    def put(self, key: bytes, value: bytes) -> None:
        self._run("INSERT OR REPLACE INTO records VALUES (?, ?)", (key, value))

    def delete(self, low: bytes, high: bytes) -> None:
        self._run("DELETE FROM records WHERE key >= ? AND key < ?", (low, high))

    def last_before(self, low: bytes, high: bytes) -> tuple[bytes, bytes] | None:
        statement = "SELECT key, value FROM records WHERE key >= ? AND key < ? ORDER BY key DESC LIMIT 1"
        row = self._run(statement, (low, high)).fetchone()
        return None if row is None else (row[0], row[1])

    def scan(self, low: bytes, high: bytes) -> Iterator[tuple[bytes, bytes]]:
        statement = "SELECT key, value FROM records WHERE key >= ? AND key < ? ORDER BY key"
        cursor = self._run(statement, (low, high))
        try:
            for key, value in cursor:
                yield key, value
        except sqlite3.Error as error:
            raise self._translated(error) from None

    def close(self) -> None:
        try:
            self._connection.close()
        except sqlite3.Error as error:
            raise self._translated(error) from None


class SQLiteStorage(Storage):
    """A node's data directory: its database, and the lock that keeps a second process out.

    Args:
        data_dir: the directory; made if it is not there.
        node: the node's id.
        cluster: uuid of the cluster; None takes the stored one.
        bootstrap: True for a new directory, False for a used one, None for either.
        synchronous: FULL; anything less is for tests that show that it matters.

    Raises:
        DirectoryInUse: another process has it open.
        WrongDirectory, Corrupt, StorageFailed: see `Storage` and `SQLiteTable`.
    """

    def __init__(
        self,
        data_dir: str | os.PathLike[str],
        node: Id,
        *,
        cluster: bytes | None = None,
        bootstrap: bool | None = None,
        synchronous: str = "FULL",
    ) -> None:
        directory = Path(data_dir)
        path = directory / _FILE
        if bootstrap is False and not path.exists():
            raise WrongDirectory(f"{directory} is new: start with --bootstrap and --peers to found a cluster")
        made = _make_directory(directory)
        self._lock_fd = _lock(directory)
        try:
            table = SQLiteTable(path, synchronous)
            try:
                super().__init__(table, str(path), node, cluster, bootstrap)
            except BaseException:
                table.close()
                raise
        except BaseException:
            os.close(self._lock_fd)
            if made:
                _remove_directory(directory)
            raise

    def close(self) -> None:
        """Close the database, then let others have the directory."""
        super().close()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1


def _make_directory(directory: Path) -> bool:
    """Make it if it is not there; True if it was not."""
    made = not directory.exists()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if made:
            _sync_directory(directory.parent)
    except OSError as error:
        raise StorageFailed(f"the data directory {directory} cannot be made: {error.strerror}") from None
    return made


def _remove_directory(directory: Path) -> None:
    """Undo `_make_directory`: nothing half made stays behind."""
    for name in (_FILE, f"{_FILE}-wal", f"{_FILE}-shm", "lock"):
        (directory / name).unlink(missing_ok=True)
    try:
        directory.rmdir()
    except OSError:
        return  # Somebody else put something there.


def _lock(directory: Path) -> int:
    path = directory / "lock"
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageFailed(f"{path} cannot be opened: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.read(lock, 32).decode(errors="replace").strip()
        os.close(lock)
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise StorageFailed(f"{path} cannot be locked: {error.strerror}") from None
        by = f" (process {holder})" if holder else ""
        raise DirectoryInUse(f"{directory} is in use by another process{by}: stop it, or use another one") from None
    os.ftruncate(lock, 0)
    os.pwrite(lock, str(os.getpid()).encode(), 0)
    return lock


def _sync_directory(directory: Path) -> None:
    """So that a file that was just made is still there after a power loss."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
