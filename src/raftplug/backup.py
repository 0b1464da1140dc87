"""A whole group in one file, and a new cluster from it.

A backup is a snapshot with a head that says of what::

    "RAFTPLUG"  version  length     struct HEAD
    head                            plain data: group, index, term, check, size, digest; and when, for people
    digest of all before            32 bytes, BLAKE2b
    the bytes of the snapshot       as `snapshots` describes them: configuration, session table, the machine's

`restore` makes a data directory of it, for one node of a cluster of its own: other members, and another identity, so
that nothing of the old cluster and nothing of the new one take each other's word.  Offline.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Any, BinaryIO, Final

import msgpack

from raftplug import core, plain, snapshots
from raftplug.directory import Directory, create, missing, os_errors, path_of, remove_empty, room, sync
from raftplug.errors import InvalidArgument, MalformedMessage
from raftplug.frames import Id, check_id, check_ids
from raftplug.settings import Settings, settings_of
from raftplug.snapshots import Making, Reader
from raftplug.storage import FILE_NAME, Piece, RecordStorage, SQLiteStorage, StoredSnapshot, Write

_MAGIC: Final = b"RAFTPLUG"
_VERSION: Final = 1
_HEAD: Final = Struct("<8sHI")
_DIGEST_BYTES: Final = 32
_HEAD_BYTES: Final = 64 << 10
_PART_BYTES: Final = 256 << 10
_SLOT: Final = 0

Progress = Callable[[int, int], None]
"""Is told how many bytes of how many are done."""


def _ignore(done: int, of: int) -> None:
    """Nobody looks."""


class Writer:
    """Writes a backup: it appears under its name when it is complete, verified and durable.

    Args:
        path: where.
        group: of which group.
        snapshot: which.

    Raises:
        StorageFailed, DiskFull: the file cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], group: str, snapshot: StoredSnapshot) -> None:
        self._path = path_of(path, "the backup")
        self._new = f"{self._path}.{os.getpid()}.new"
        self._size = snapshot.size
        self.written = 0
        with self._errors():
            self._file = open(create(self._new), "wb")  # noqa: SIM115
        head = {
            "group": group,
            "index": snapshot.index,
            "term": snapshot.term,
            "check": snapshot.check,
            "size": snapshot.size,
            "digest": snapshot.digest,
            "made_at_ms": time.time_ns() // 1_000_000,
        }
        data = plain.encode(head)
        data = _HEAD.pack(_MAGIC, _VERSION, len(data)) + data
        try:
            self.write(data + _digest(data))
        except BaseException:
            self.abandon()
            raise
        self.written = 0

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        with (
            os_errors(self._path, "written"),
            room(os.path.dirname(self._path), self._size - self.written, "the backup"),
        ):
            yield

    def write(self, data: bytes) -> None:
        """The next bytes of the snapshot."""
        with self._errors():
            self._file.write(data)
        self.written += len(data)

    def finish(self) -> Backup:
        """Verify what was written, and give it its name.

        Raises:
            MalformedMessage: it is not the snapshot that it should be.
        """
        with self._errors():
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            with Backup(self._new) as written:
                written.verify()
            os.replace(self._new, self._path)
            sync(os.path.dirname(self._path))
        return written

    def abandon(self) -> None:
        """Leave nothing behind."""
        with contextlib.suppress(OSError):
            self._file.close()  # It may still have something to write.
        with contextlib.suppress(OSError):
            os.unlink(self._new)


class Backup:
    """A backup that is there.

    Args:
        path: the file.

    Attributes:
        group: its name.
        snapshot: what it is of; its pieces are parts of the file, its slot means nothing.
        made_at_ms: when, by the clock of whoever asked for it.

    Raises:
        MalformedMessage: it is no backup of this version, or is cut off.
        StorageFailed: it cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        with os_errors(self.path, "read"):
            self._file: BinaryIO = open(path, "rb")  # noqa: SIM115
        try:
            self._read_head()
        except BaseException:
            self._file.close()
            raise

    def _read_head(self) -> None:
        size = os.fstat(self._file.fileno()).st_size
        fixed = self._file.read(_HEAD.size)
        if len(fixed) < _HEAD.size or fixed[: len(_MAGIC)] != _MAGIC:
            raise MalformedMessage(f"{self.path} is no backup of raftplug's")
        _, version, length = _HEAD.unpack(fixed)
        if version != _VERSION:
            raise MalformedMessage(f"{self.path} is a backup of version {version}, this raftplug reads {_VERSION}")
        data = self._file.read(min(length, _HEAD_BYTES))
        if self._file.read(_DIGEST_BYTES) != _digest(fixed + data):
            raise MalformedMessage(f"{self.path} is damaged: its head has another digest")
        head = plain.decode(data)  # It is as it was written: its digest says so.
        self.group: str = head["group"]
        self.made_at_ms: int = head["made_at_ms"]
        self._start = self._file.tell()
        count = -(-head["size"] // _PART_BYTES)
        self.snapshot = snapshots.checked(
            StoredSnapshot(head["index"], head["term"], head["check"], head["size"], count, head["digest"])
        )
        if size - self._start != self.snapshot.size:
            held = f"{size - self._start} bytes of a snapshot of {self.snapshot.size}"
            raise MalformedMessage(f"{self.path} is cut off, or too long: it holds {held}")

    def part(self, number: int) -> bytes:
        """The part of that number of the snapshot's bytes."""
        with os_errors(self.path, "read"):
            self._file.seek(self._start + number * _PART_BYTES)
            return self._file.read(min(_PART_BYTES, self.snapshot.size - number * _PART_BYTES))

    def verify(self, progress: Progress = _ignore) -> None:
        """Read all of it.

        Raises:
            MalformedMessage: it has another digest than its head says.
        """
        parts = map(self.part, range(self.snapshot.count))
        try:
            for number, _ in enumerate(snapshots.verify(self.snapshot, parts), 1):
                progress(min(number * _PART_BYTES, self.snapshot.size), self.snapshot.size)
        except MalformedMessage as error:
            raise MalformedMessage(f"{self.path} is damaged: {error}") from None

    def reader(self) -> Reader:
        """What is in it."""
        return Reader(self.snapshot, self.part)

    def describe(self) -> dict[str, Any]:
        """What a person wants to know."""
        snapshot = self.snapshot
        return {
            "file": self.path,
            "group": self.group,
            "index": snapshot.index,
            "term": snapshot.term,
            "bytes": snapshot.size,
            "digest": snapshot.digest.hex(),
        }

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Backup:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class Restored:
    """What `restore` made: the directory, whose cluster, and of which snapshot."""

    data_dir: str
    cluster: bytes
    snapshot: StoredSnapshot


def restore(
    file: str | os.PathLike[str],
    data_dir: str | os.PathLike[str],
    *,
    id: Id,
    peers: Sequence[Id],
    group: str | None = None,
    settings: Settings | None = None,
    progress: Progress = _ignore,
) -> Restored:
    """Make the data directory of one node of a new cluster.

    Every node that was restored from the same file, for the same peers, holds the same state: together they are the
    cluster, with the file's transitions and sessions, and with new members.

    Args:
        file: the backup.
        data_dir: must be empty, or not there yet; it appears when it is complete.
        id: the node.
        peers: the voters of the new cluster, itself among them; the same for each.
        group: what the group must be called; None takes the file's name for it.
        settings: `snapshot_piece_bytes` counts.
        progress: see `Progress`.

    Raises:
        MalformedMessage: the file is damaged, or no backup; nothing was changed.
        InvalidArgument: the arguments cannot be, or the directory holds something; likewise.
        StorageError: the file cannot be read, or the directory not written.
    """
    voters = check_ids(peers)
    if check_id(id) not in voters or len(set(voters)) != len(voters):
        raise InvalidArgument(f"name every node of the new cluster once in peers=, {id!r} among them")
    directory = path_of(data_dir)
    with os_errors(directory, "read"):
        if os.path.lexists(directory):
            if not os.path.isdir(directory):
                raise InvalidArgument(f"{directory} is no directory: give one that is not there yet")
            if os.listdir(directory):
                raise InvalidArgument(f"{directory} is not empty: give a directory that is not there yet")
            if os.path.ismount(directory):
                raise InvalidArgument(f"{directory} is a mount point: give a directory in it")
        directory = os.path.realpath(directory)
    with Backup(file) as backup:
        if group is not None and group != backup.group:
            raise InvalidArgument(f"{backup.path} is of group {backup.group!r}, not {group!r}")
        backup.verify(progress)
        reader = backup.reader()
        configuration = core.Configuration(voters).plain()
        uuid = restored_cluster(backup.group, voters, backup.snapshot)
        piece_bytes = settings_of(settings).snapshot_piece_bytes
        with (
            _made(directory, backup.snapshot.size) as new,
            contextlib.closing(SQLiteStorage(new, id, cluster=uuid, bootstrap=True)) as storage,
        ):
            storage.create(backup.group, plain.encode(configuration))
            made = fill(storage, backup.group, backup.snapshot, reader, configuration, piece_bytes, progress)
        return Restored(directory, uuid, made)


@contextlib.contextmanager
def _made(directory: str, size: int) -> Iterator[str]:
    """The path at which to make a directory that gets its name when it is complete; if it fails, nothing is left."""
    new = directory + ".restoring"
    with os_errors(directory, "made"):
        _remove_unfinished(new)
        made = missing(os.path.dirname(directory))
        try:
            above = os.path.dirname(made[0] if made else directory)
            with room(above, size, "what is in the backup"):
                yield new
            os.rename(new, directory)
            sync(os.path.dirname(directory))
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            remove_empty(made)
            raise


def _remove_unfinished(path: str) -> None:
    """Remove what a restore has left that was killed.

    Raises:
        DirectoryInUse: it is still at work.
        InvalidArgument: it is something else.
    """
    with contextlib.closing(Directory(path, FILE_NAME)) as unfinished:
        if unfinished.lock():
            if set(os.listdir(path)) - unfinished.parts():
                raise InvalidArgument(f"{path} holds something else than a restore that did not end: move it away")
            shutil.rmtree(path)


def fill(
    storage: RecordStorage,
    group: str,
    snapshot: StoredSnapshot,
    reader: Reader,
    configuration: Any,
    piece_bytes: int,
    progress: Progress = _ignore,
) -> StoredSnapshot:
    """Make what a snapshot holds, but with other members, that of a group that was created and is empty.

    Args:
        storage: has the group, with that configuration and nothing else; pieces are written a few a transaction.
        group: its name.
        snapshot: which it is.
        reader: what is in it.
        configuration: the members from now on, as plain data.
        piece_bytes: how long a piece is to be.
        progress: see `Progress`.
    """
    stream = snapshots.contents(configuration, reader.sessions.snapshot(), reader.kind, reader.stream())
    making = Making(snapshot.index, snapshot.term, snapshot.check, _SLOT, stream, piece_bytes)
    for pieces in _handfuls(making):
        storage.commit([Write(group, 0, None, pieces=pieces)])
    made = making.made()
    storage.commit([Write(group, made.term, None, snapshot=made, snapshot_resets_log=True)])
    pieces_there = (storage.piece(group, _SLOT, number) for number in range(made.count))
    for number, _ in enumerate(snapshots.verify(made, pieces_there), 1):
        progress(made.size * number // made.count, made.size)
    return made


def _handfuls(making: Making) -> Iterator[list[Piece]]:
    held: list[Piece] = []
    while (piece := making.next()) is not None:
        held.append(piece)
        if sum(len(each.data) for each in held) >= 4 * snapshots.LARGEST_PIECE:
            yield held
            held = []
    yield held


def restored_cluster(group: str, voters: Sequence[Id], snapshot: StoredSnapshot) -> bytes:
    """The identity of a new cluster with those voters: the same for all of its nodes, and nobody else's."""
    members = sorted(voters, key=lambda peer: (isinstance(peer, str), peer))
    told = msgpack.packb([group, members, snapshot.digest])
    return hashlib.blake2b(told, digest_size=16, person=b"raftplug restore").digest()


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES, person=b"raftplug backup").digest()
