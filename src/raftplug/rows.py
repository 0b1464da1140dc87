"""Rows of bytes that change all at once or not at all, and where they are kept: a dict, or an SQLite file.

All that the records of `storage` need of a disk.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from abc import ABC, abstractmethod
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import quote

from raftplug.directory import WAL, Directory, create, os_errors, sync
from raftplug.errors import Corrupt, DirectoryInUse, DiskFull, InvalidArgument, StorageError, StorageFailed
from raftplug.forks import follow, keep_for_ever

_Result = TypeVar("_Result")
REPLACE: Final = "replace this node by a new one, with an empty directory and a new id"
_APPLICATION_ID: Final = 0x52414654  # "RAFT"
_SCHEMA_VERSION: Final = 2
_IN_USE: Final = 1 << 16  # Added to it, from a node's start until it has ended well: see `SQLiteRows.begin`.
_TABLES: Final = ("node", "configuration", "state", "snapshot", "piece", "log")
# Not REPLACE: what is updated in its place leaves the page of the index alone.
_PUT: Final = {
    table: f"INSERT INTO {table} (name, number, value) VALUES (?, ?, ?) "
    "ON CONFLICT DO UPDATE SET value = excluded.value"
    for table in _TABLES
}
_CHECKPOINT_BYTES: Final = 4 << 20
_VERSION_AT: Final = 60  # Where the header of an SQLite file has it.


class Put(NamedTuple):
    """Write a row, in the place of the one that was there."""

    table: str
    name: str
    number: int
    value: bytes


class Delete(NamedTuple):
    """Remove the rows of `name` whose numbers lie in [low, high]."""

    table: str
    name: str
    low: int
    high: int


class Transactional(ABC):
    """Rows (table, name, number) -> bytes, changed in transactions: all that `RecordStorage` asks of a disk.

    All methods raise only StorageError.  `apply` is called by one thread at a time, the others by any, also meanwhile;
    they see what is durable.
    """

    where: str
    """What an error message calls it: the file."""

    @abstractmethod
    def names(self, table: str) -> list[str]:
        """Every name that has a row numbered 0 in `table`, sorted."""

    @abstractmethod
    def get(self, table: str, name: str, number: int) -> bytes | None:
        """A row's value, or None."""

    @abstractmethod
    def floor(self, table: str, name: str, number: int) -> tuple[int, bytes] | None:
        """The row of the greatest number that is not above `number`: its number and value, or None."""

    @abstractmethod
    def scan(self, table: str, name: str) -> list[tuple[int, bytes]]:
        """All rows of a name as (number, value), ascending."""

    @abstractmethod
    def apply(self, changes: Sequence[Put | Delete]) -> None:
        """Make the changes in their order, all or none; return when they are durable.

        Raises:
            DiskFull: no space; nothing was changed.
            StorageFailed: anything else.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of it.  May be called again."""


class MemoryRows(Transactional):
    """Rows in a dict: as durable as the object."""

    def __init__(self) -> None:
        self.where = "memory"
        self._values: dict[tuple[str, str], dict[int, bytes]] = {}
        self._numbers: dict[tuple[str, str], list[int]] = {}
        self._lock = threading.Lock()

    def names(self, table: str) -> list[str]:
        with self._lock:
            return sorted(name for (of, name), rows in self._values.items() if of == table and 0 in rows)

    def get(self, table: str, name: str, number: int) -> bytes | None:
        with self._lock:
            return self._values.get((table, name), {}).get(number)

    def floor(self, table: str, name: str, number: int) -> tuple[int, bytes] | None:
        with self._lock:
            numbers = self._numbers.get((table, name), [])
            at = bisect_right(numbers, number)
            return (numbers[at - 1], self._values[table, name][numbers[at - 1]]) if at else None

    def scan(self, table: str, name: str) -> list[tuple[int, bytes]]:
        with self._lock:
            rows = self._values.get((table, name), {})
            return [(number, rows[number]) for number in self._numbers.get((table, name), [])]

    def apply(self, changes: Sequence[Put | Delete]) -> None:
        with self._lock:
            for change in changes:
                rows = self._values.setdefault((change.table, change.name), {})
                numbers = self._numbers.setdefault((change.table, change.name), [])
                if isinstance(change, Put):
                    if change.number not in rows:
                        insort(numbers, change.number)
                    rows[change.number] = change.value
                else:
                    low, high = bisect_left(numbers, change.low), bisect_right(numbers, change.high)
                    for number in numbers[low:high]:
                        del rows[number]
                    del numbers[low:high]

    def close(self) -> None:
        pass


class Planned(Transactional):
    """Rows that are to be written, over those that are there: a start that is refused has written nothing.

    Args:
        base: those that are there; closed with this object.
    """

    def __init__(self, base: Transactional) -> None:
        self.where = base.where
        self.changes: list[Put | Delete] = []
        self._base = base
        self._new = MemoryRows()  # Whole names only, but for the node's own row.

    def names(self, table: str) -> list[str]:
        return sorted({*self._base.names(table), *self._new.names(table)})

    def get(self, table: str, name: str, number: int) -> bytes | None:
        found = self._new.get(table, name, number)
        return self._base.get(table, name, number) if found is None else found

    def floor(self, table: str, name: str, number: int) -> tuple[int, bytes] | None:
        return self._base.floor(table, name, number)

    def scan(self, table: str, name: str) -> list[tuple[int, bytes]]:
        return self._base.scan(table, name)

    def apply(self, changes: Sequence[Put | Delete]) -> None:
        self._new.apply(changes)
        self.changes += changes

    def close(self) -> None:
        self._base.close()


class SQLiteRows(Transactional):
    """Rows in one SQLite file, in WAL mode: a transaction is one sequential write and one sync.

    The file's header says from `begin` to `finish` that it is in use: that tells a database whose write-ahead log is
    missing from one that was closed.

    Args:
        path: the file; it exists.
        synchronous: FULL, but for tests that want to see something lost.
        directory: what is asked before and after each transaction whether the files are still the ones of the path.
        only_read: whether nothing is written, not even by SQLite; the file was closed, so it has no write-ahead log.
        checked: whether all of it was read before, and found whole.

    Raises:
        Corrupt: not an SQLite file, not ours, of another version, or damaged.
        DirectoryInUse: another program has it open.
        StorageFailed: it cannot be opened.
    """

    def __init__(
        self,
        path: str,
        synchronous: str = "FULL",
        directory: Directory | None = None,
        *,
        only_read: bool = False,
        checked: bool = False,
    ) -> None:
        if synchronous not in ("OFF", "NORMAL", "FULL", "EXTRA"):
            raise InvalidArgument(f"synchronous must be OFF, NORMAL, FULL or EXTRA, not {synchronous!r}")
        self.where = path
        self._directory = directory
        self._since_checkpoint = 0
        self.read_lock = threading.Lock()
        """Held while a thread reads, or closes."""
        # In this order: the last connection to be closed, also by the interpreter's end, can only read.  A writer would
        # move the write-ahead log into the database then, ignore every error, and delete it by its name.
        self._writer: sqlite3.Connection | None = None
        self._reader: sqlite3.Connection | None = None
        follow(self)
        try:
            self._twice(lambda: self._open(synchronous, only_read, checked))
        except BaseException:
            self.close()
            raise

    def _open(self, synchronous: str, only_read: bool, checked: bool) -> None:
        with self._translated("opened"):
            if os.path.getsize(self.where) < 512:
                raise Corrupt(f"{self.where} is cut off, not a database: {REPLACE}")
            if not only_read:
                # unix-excl: no other process opens it, and the index of the write-ahead log is no file.
                self._writer = _connect(self.where, "vfs=unix-excl")
                self._check(self._writer.execute, checked)
                self._prepare(self._writer.execute, synchronous)
            # A connection of its own: a reader never waits for the sync of a commit.
            self._reader = _connect(self.where, f"mode=ro&{'immutable=1' if only_read else 'vfs=unix-excl'}")
            if only_read:
                self._check(self._reader.execute, checked)
            self._reader.execute("SELECT count(*) FROM node").fetchone()  # From here on it keeps the writer's lock.

    def _twice(self, read: Callable[[], _Result]) -> _Result:
        with self._doubting(read):
            return read()

    @contextmanager
    def _doubting(self, read_again: Callable[[], object]) -> Iterator[None]:
        """Read again what seems damaged: SQLite says that it is, too, where the disk gave nothing.

        Raises:
            Corrupt: the disk gives it all, and it is damaged.
            StorageFailed: the disk does not give it all, or did not at first.
        """
        try:
            yield
        except Corrupt:
            if self._writer is None or self._reader is None:  # It was not open yet.
                self.close()
            with self._translated("read"):
                if self._directory is not None:
                    self._directory.read_all()
            read_again()
            raise StorageFailed(f"{self.where} could not be read, and then it could: look at the disk") from None

    def _check(self, execute: Callable[[str], sqlite3.Cursor], checked: bool) -> None:
        """Refuse what is not ours, before anything is written."""
        if execute("PRAGMA application_id").fetchone() != (_APPLICATION_ID,):
            raise Corrupt(f"{self.where} is not a database of raftplug's: {REPLACE}")
        (version,) = execute("PRAGMA user_version").fetchone()
        if version & ~_IN_USE != _SCHEMA_VERSION:
            text = f"{self.where} has format {version & ~_IN_USE}, this raftplug reads format {_SCHEMA_VERSION}"
            raise Corrupt(f"{text}: run the raftplug that wrote it")
        (verdict,) = ("ok",) if checked else execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise Corrupt(f"{self.where} is damaged ({' '.join(str(verdict).split())}): {REPLACE}")

    def _check_all(self) -> None:
        with self.read_lock, self._translated("read"):
            self._check(self._opened(self._reader).execute, False)

    def _prepare(self, execute: Callable[[str], sqlite3.Cursor], synchronous: str) -> None:
        if execute("PRAGMA journal_mode = WAL").fetchone() != ("wal",):
            raise StorageFailed(f"{self.where}: the file system cannot keep a write-ahead log: use a local one")
        execute(f"PRAGMA synchronous = {synchronous}")
        # SQLite's own checkpoints swallow their errors, a failed sync among them; ours do not.
        execute("PRAGMA wal_autocheckpoint = 0")
        execute(f"PRAGMA journal_size_limit = {16 * _CHECKPOINT_BYTES}")
        # Some builds overwrite what is deleted: compaction would write as much as it frees.
        execute("PRAGMA secure_delete = OFF")

    @staticmethod
    def make(path: str) -> None:
        """Make an empty file of our format; it appears under its name only when it is complete and durable."""
        new = path + ".new"
        for leftover in (new, new + "-journal", new + WAL):
            if os.path.exists(leftover):
                os.unlink(leftover)
        os.close(create(new))  # What SQLite puts beside it gets the same mode.
        connection = _connect(new, "vfs=unix-excl")
        try:
            connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
            for table in _TABLES:
                # With a rowid: the blobs lie in leaves of their own kind, which hold 4 times more of a row before they
                # overflow.  Measured against WITHOUT ROWID: as fast at 100 bytes, 1.6 times as fast at 256 KB.
                connection.execute(
                    f"CREATE TABLE {table} (name TEXT NOT NULL, number INTEGER NOT NULL, value BLOB NOT NULL, "
                    "PRIMARY KEY (name, number))"
                )
            connection.execute("PRAGMA journal_mode = WAL")
        finally:
            connection.close()
        sync(new)
        os.replace(new, path)
        sync(os.path.dirname(path) or ".")

    @staticmethod
    def is_in_use(header: bytes) -> bool:
        """Whether an SQLite file's first bytes say that it was not closed well: then the rest is in its log."""
        return bool(int.from_bytes(header[_VERSION_AT : _VERSION_AT + 4], "big") & _IN_USE)

    def begin(self, changes: Sequence[Put | Delete]) -> None:
        """Make the first changes, and write into the database itself that it is in use.

        Raises:
            DiskFull, StorageFailed: as from `apply`.
        """
        self._mark(_SCHEMA_VERSION | _IN_USE, changes)

    def finish(self) -> None:
        """Move everything into the database, and write there that it is closed.

        Raises:
            DiskFull, StorageFailed: it is still in use.
        """
        self._mark(_SCHEMA_VERSION, ())
        self._checkpoint("TRUNCATE")

    def _mark(self, version: int, changes: Sequence[Put | Delete]) -> None:
        self._apply(changes, f"PRAGMA user_version = {version}")
        self._checkpoint("FULL")

    def names(self, table: str) -> list[str]:
        return [name for (name,) in self._read(f"SELECT name FROM {table} WHERE number = 0 ORDER BY name")]

    def get(self, table: str, name: str, number: int) -> bytes | None:
        rows = self._read(f"SELECT number, value FROM {table} WHERE name = ? AND number = ?", name, number)
        return rows[0][1] if rows else None

    def floor(self, table: str, name: str, number: int) -> tuple[int, bytes] | None:
        where = "name = ? AND number <= ? ORDER BY number DESC LIMIT 1"
        rows = self._read(f"SELECT number, value FROM {table} WHERE {where}", name, number)
        return rows[0] if rows else None

    def scan(self, table: str, name: str) -> list[tuple[int, bytes]]:
        return self._read(f"SELECT number, value FROM {table} WHERE name = ? ORDER BY number", name)

    def _read(self, query: str, *arguments: str | int) -> list[Any]:
        return self._twice(lambda: self._read_once(query, arguments))

    def _read_once(self, query: str, arguments: Sequence[str | int]) -> list[Any]:
        with self.read_lock, self._translated("read"):
            rows: list[Any] = self._opened(self._reader).execute(query, arguments).fetchall()
        for row in rows:
            # SQLite keeps a type with each value: damage can make a number of a blob.
            if tuple(map(type, row)) not in ((str,), (int, bytes)):
                raise Corrupt(f"{self.where} is damaged (a value of another type): {REPLACE}")
        return rows

    def apply(self, changes: Sequence[Put | Delete]) -> None:
        self._apply(changes)
        if self._since_checkpoint >= _CHECKPOINT_BYTES:
            self._since_checkpoint = 0
            try:
                self._checkpoint("PASSIVE")
            except DiskFull:
                pass  # The transaction is durable in the write-ahead log; that grows until there is space.

    def _apply(self, changes: Sequence[Put | Delete], *more: str) -> None:
        writer, directory = self._opened(self._writer), self._directory
        if directory is not None:
            directory.verify()  # Nothing is written into what another process has changed.
        try:
            with self._doubting(self._check_all), self._translated("written"):
                self._transact(writer, changes, *more)
        finally:
            if directory is not None:
                directory.note()  # Nor does it count when it went into files that no later start finds.

    def _transact(self, writer: sqlite3.Connection, changes: Sequence[Put | Delete], *more: str) -> None:
        execute = writer.execute
        try:
            execute("BEGIN IMMEDIATE")
            for change in changes:
                if isinstance(change, Put):
                    execute(_PUT[change.table], change[1:])
                    self._since_checkpoint += len(change.value) + 4096
                else:
                    execute(f"DELETE FROM {change.table} WHERE name = ? AND number BETWEEN ? AND ?", change[1:])
            for statement in more:
                execute(statement)
            execute("COMMIT")
        except BaseException:
            if writer.in_transaction:
                execute("ROLLBACK")
            raise

    def _checkpoint(self, mode: str) -> None:
        try:
            with self._doubting(self._check_all), self._translated("checkpointed"):
                ((busy, _, _),) = self._opened(self._writer).execute(f"PRAGMA wal_checkpoint({mode})").fetchall()
        finally:
            if self._directory is not None:
                self._directory.note()
        if busy and mode != "PASSIVE":
            raise StorageFailed(f"{self.where} could not be checkpointed: another program reads it")

    def forked(self) -> None:
        """In a child: leave the files as they are.

        SQLite would write at the end of a connection, from what it knew at the fork; so there must be no end.
        """
        self.read_lock = threading.Lock()  # A thread of the parent's may have had it.
        keep_for_ever((self._writer, self._reader))
        self._writer = self._reader = None

    def close(self) -> None:
        writer, self._writer = self._writer, None
        reader, self._reader = self._reader, None
        with self.read_lock, self._translated("closed"):
            if writer is not None:
                writer.interrupt()  # Before there is a reader: it must not move and delete the write-ahead log either.
                writer.close()
            if reader is not None:
                reader.close()

    def _opened(self, connection: sqlite3.Connection | None) -> sqlite3.Connection:
        if connection is None:
            raise StorageFailed(f"{self.where} is closed")
        return connection

    def _translated(self, done: str) -> AbstractContextManager[None]:
        return translated(self.where, done)


@contextmanager
def translated(where: str, done: str) -> Iterator[None]:
    """Raise only StorageErrors; `done` is what could not be done to the file `where`."""
    try:
        with os_errors(where, done):
            yield
    except sqlite3.Error as error:
        raise _sqlite_error(error, where, done) from None


def _sqlite_error(error: sqlite3.Error, where: str, done: str) -> StorageError:
    extended = getattr(error, "sqlite_errorcode", 0)
    code = extended & 0xFF
    text = " ".join(str(error).split())
    # The second: the shared index of the write-ahead log could not grow.
    if code == sqlite3.SQLITE_FULL or extended == sqlite3.SQLITE_IOERR_SHMSIZE:
        return DiskFull(f"{where}: no space left on the disk, nothing was written: make some")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return DirectoryInUse(f"{where} is open in another program, such as sqlite3: end that one")
    # What has no code was raised by the Python module, over a value that it could not make sense of.
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR) or (
        code == 0 and isinstance(error, sqlite3.OperationalError)
    ):
        return Corrupt(f"{where} is damaged ({text}): {REPLACE}")
    return StorageFailed(f"{where} could not be {done} ({text}): look at the disk")


def _connect(path: str, options: str) -> sqlite3.Connection:
    uri = f"file:{quote(os.fsencode(path))}?{options}"
    return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
