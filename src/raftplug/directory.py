"""A data directory: it belongs to one process, its files stay the ones that its path names, and other users read none.

The lock is `flock` on the directory itself and on the database in it, so it cannot be deleted apart from the data.  Two
paths to one directory, or a hard link to its database, find the same lock.  What `flock` cannot prevent is noticed by
`verify`: a directory or a file that was deleted, moved, replaced, cut off or written to by another process.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from raftplug.errors import DirectoryInUse, DiskFull, InvalidArgument, StorageError, StorageFailed
from raftplug.forks import follow

_logger = logging.getLogger("raftplug")
WAL: Final = "-wal"
"""What SQLite adds to the name of a database for that of its write-ahead log."""
PID_NAME: Final = "pid"
"""The file that says which process has the directory, for error messages; it locks nothing."""
_COPY: Final = ".copy"
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_OTHERS: Final = 0o077  # What a mode must not hold: rights of other users.
_RESTORE: Final = "put back what was there and start the node again, or replace it by a new one with a new id"


def path_of(given: Any, what: str = "the data directory") -> str:
    """The absolute path that a caller gave.

    Args:
        given: a str, bytes or os.PathLike; relative to the working directory.
        what: what it is of, for the message.

    Raises:
        InvalidArgument: it is no path, or an empty one.
        StorageFailed: there is no working directory.
    """
    try:
        path = os.fsdecode(given)
        os.fsencode(path)
    except (TypeError, ValueError):
        raise InvalidArgument(f"{what} must be a path, not {type(given).__name__}") from None
    if not path or "\0" in path:
        raise InvalidArgument(f"{what} must be a path, not {'an empty one' if not path else ascii(path)}")
    with os_errors(path, "found"):
        return os.path.abspath(path)


def exists(path: str) -> bool:
    """As os.path.exists, which takes a path that may not be looked at for one that is not there.

    Raises:
        OSError: nothing can be said.
    """
    try:
        os.stat(path)
    except FileNotFoundError:
        return False
    return True


def parts(names: Iterable[str], database: str) -> set[str]:
    """Those of the names in a directory that a node has put there, without what a founding left that did not end."""
    unfinished = database + ".new"
    return {n for n in names if n == PID_NAME or (n.startswith(database) and not n.startswith(unfinished))}


def missing(path: str) -> list[str]:
    """The directories that have to be made for `path` to be one, outermost first.

    Raises:
        StorageFailed: one of them is a symbolic link that leads nowhere.
        OSError: nothing can be said.
    """
    found: list[str] = []
    while not exists(path):
        if os.path.islink(path):
            raise StorageFailed(f"{path} is a symbolic link that leads nowhere: make the directory that it names")
        found.append(path)
        path = os.path.dirname(path)
    return found[::-1]


def remove_empty(paths: Sequence[str]) -> None:
    """Remove directories that `missing` named and that were made since, if they hold nothing."""
    for path in reversed(paths):
        with contextlib.suppress(OSError):
            os.rmdir(path)


def sync(path: str) -> None:
    """Wait until a file, or the entries of a directory, are on the disk.

    Raises:
        OSError: they may not be there.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def create(path: str) -> int:
    """Make a file that no other user reads, whatever the umask; returns its descriptor, for writing.

    Raises:
        OSError: it is there already, or cannot be made.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    os.fchmod(descriptor, 0o600)
    return descriptor


@contextlib.contextmanager
def room(directory: str, size: int, what: str) -> Iterator[None]:
    """Check that `size` bytes can be written in a directory, before they are.

    Raises:
        DiskFull: they cannot; the message says how many are needed, and for what.
    """

    def full(free: int) -> DiskFull:
        text = f"{directory}: {size:,} bytes are needed for {what}, {free:,} are free"
        return DiskFull(f"{text}: nothing was changed, make room for it")

    free = shutil.disk_usage(directory).free
    if free < size:
        raise full(free)
    try:
        yield
    except DiskFull:
        raise full(free) from None
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise full(free) from None


@contextlib.contextmanager
def os_errors(where: str, done: str) -> Iterator[None]:
    """Raise DiskFull or StorageFailed for an OSError; `done` is what could not be done to the file `where`."""
    try:
        yield
    except OSError as error:
        raise os_error(error, where, done) from None


def os_error(error: OSError, where: str, done: str) -> StorageError:
    """The error that says so: see `os_errors`."""
    if error.errno in _FULL:
        return DiskFull(f"{where}: no space left on the disk, nothing was written: make some")
    reason = error.strerror or str(error)
    if error.errno == errno.EIO:
        return StorageFailed(f"{where} could not be {done} ({reason}): look at the disk")
    return StorageFailed(f"{where} could not be {done} ({reason}): look at its path and permissions")


class _Seen(NamedTuple):
    """A file as it was seen last."""

    device: int
    inode: int
    size: int
    modified_ns: int


def _seen(status: os.stat_result) -> _Seen:
    return _Seen(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


class Directory:
    """A data directory, and the lock on it.

    All methods but `verify` and `note` raise OSError where the disk or the permissions fail.

    Args:
        path: its absolute path.
        name: the name of the database in it.
    """

    def __init__(self, path: str, name: str) -> None:
        self.path = path
        self.file = os.path.join(path, name)
        self._name = name
        self._watched = (name, name + WAL)
        self._place = self._database = -1
        self._is = (-1, -1)  # Device and inode.
        self._seen: dict[str, _Seen] = {}
        self._made: list[str] = []
        follow(self)

    # -------------------------------------------------------------------- lock

    def lock(self) -> bool:
        """Take the directory; False if it is not there.

        Raises:
            DirectoryInUse: another process, or another object of this one, has it.
        """
        if not exists(self.path):
            return False
        place = self._locked(os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        self._is = _seen(os.fstat(place))[:2]
        self._place = place
        if _seen(os.stat(self.path))[:2] != self._is:
            raise DirectoryInUse(f"{self.path} was moved while it was opened: start again")
        return True

    def hold(self) -> None:
        """Take the database, which is there, too: a hard link to it may lie in another directory.

        Raises:
            DirectoryInUse: as `lock`.
        """
        database = self._locked(os.open(self.file, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC))
        before, self._database = self._database, database
        if before >= 0:
            os.close(before)

    def _locked(self, descriptor: int) -> int:
        """Lock what a descriptor is of; what another process has is left alone, also by `unmake`."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            text = f"{self.path} is in use by {self._holder()}"
            raise DirectoryInUse(f"{text}: stop it, or give this node a directory of its own") from None
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _holder(self) -> str:
        with contextlib.suppress(OSError), open(os.path.join(self.path, PID_NAME), "rb") as file:
            pid = file.read(20).decode("ascii", "replace").strip()
            if pid.isdigit():
                return f"the process with pid {pid}"
        return "another process"

    def tell_pid(self) -> None:
        """Say in the directory which process has it."""
        with contextlib.suppress(OSError):  # It is for error messages only.
            self._remove(PID_NAME)
            descriptor = create(os.path.join(self.path, PID_NAME))
            try:
                os.write(descriptor, b"%d\n" % os.getpid())
            finally:
                os.close(descriptor)

    def release(self) -> None:
        """Let go; may be called again."""
        if self._place >= 0 and self._seen:
            with contextlib.suppress(OSError):
                self._remove(PID_NAME)
        self.forked()

    close = release

    def forked(self) -> None:
        """Let go, and leave everything as it is: what a forked child does with its parent's directory."""
        place, self._place = self._place, -1
        database, self._database = self._database, -1
        for descriptor in (database, place):
            if descriptor >= 0:
                os.close(descriptor)

    # ------------------------------------------------------------------- parts

    def parts(self) -> set[str]:
        """The names of what a node has put there: see `parts`."""
        return parts(os.listdir(self._place), self._name) if self._place >= 0 else set()

    def header(self) -> bytes:
        """The first 100 bytes of the database."""
        return os.pread(self._database, 100, 0)

    def size(self, suffix: str) -> int:
        """The size of the file whose name is the database's with a suffix; -1 if it is not there."""
        try:
            return os.stat(self._name + suffix, dir_fd=self._place).st_size
        except FileNotFoundError:
            return -1

    def read_all(self) -> None:
        """Read the files to their ends, to see whether the disk gives them."""
        at = 0
        while part := os.pread(self._database, 1 << 20, at):
            at += len(part)
        with contextlib.suppress(FileNotFoundError), open(self.file + WAL, "rb", 0) as log:
            while log.read(1 << 20):
                pass

    def is_linked(self) -> bool:
        """Whether the database has another name, so that what is written to it would be written there, too."""
        return os.fstat(self._database).st_nlink > 1

    def remove(self, suffix: str) -> None:
        """Remove the file whose name is the database's with a suffix, if it is there."""
        self._remove(self._name + suffix)

    def _remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._place)

    def make(self) -> None:
        """Make the directory, and those above it, if it is not there; then take it.

        Raises:
            DirectoryInUse: as `lock`.
        """
        if self._place >= 0:
            return
        for path in missing(self.path):
            with contextlib.suppress(FileExistsError):
                os.mkdir(path, 0o700)
                self._made.append(path)
                os.chmod(path, 0o700)  # Whatever the umask.
                sync(os.path.dirname(path))
        if not self.lock():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    def unmake(self) -> None:
        """Remove what `make` made, and the database that was to be in it."""
        if self._place < 0:
            return  # Another process has it.
        for suffix in ("", WAL, "-journal", ".new", ".new-journal", ".new-wal"):
            self.remove(suffix)
        remove_empty(self._made)

    def renew(self) -> None:
        """Copy, sync and rename the files of a process that did not end well.

        After a failed sync the kernel may hold pages that it believes written and the disk does not have: reading them
        back would prove nothing.  The copy is written from them, and its sync is a first one.

        Raises:
            DiskFull: there is no room for a copy; nothing was changed.
        """
        sizes = {suffix: self.size(suffix) for suffix in ("", WAL)}
        with room(self.path, max(sizes.values()), "a copy of what a process left that did not end well"):
            for suffix, size in sizes.items():
                if size >= 0:
                    self._copy(self.file + suffix)
        self.hold()

    def _copy(self, path: str) -> None:
        copy = path + _COPY
        with contextlib.suppress(FileNotFoundError):
            os.unlink(copy)
        try:
            with open(create(copy), "wb") as new, open(path, "rb") as old:
                shutil.copyfileobj(old, new, 1 << 20)
                new.flush()
                os.fsync(new.fileno())
            os.replace(copy, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(copy)
            raise
        sync(self.path)

    def tighten(self) -> None:
        """Take the rights of other users away from the node's files, and from the directory if it holds nothing else.

        A directory that holds more, or belongs to another user, stays as it is: a warning says so.
        """
        for name in (*self._watched, PID_NAME):
            with contextlib.suppress(FileNotFoundError):
                if stat.S_IMODE(os.stat(name, dir_fd=self._place).st_mode) & _OTHERS:
                    os.chmod(name, 0o600, dir_fd=self._place)
                    _logger.warning("%s: other users could read it; its mode is 600 now", os.path.join(self.path, name))
        mode = stat.S_IMODE(os.fstat(self._place).st_mode)
        if not mode & _OTHERS:
            return
        if set(os.listdir(self._place)) == self.parts():
            with contextlib.suppress(PermissionError):
                os.fchmod(self._place, 0o700)
                _logger.warning("%s: other users could open it (mode %o); its mode is 700 now", self.path, mode)
                return
        _logger.warning("%s: other users can open it (mode %o): give the node a directory of its own", self.path, mode)

    # ------------------------------------------------------------------- watch

    def note(self) -> None:
        """Remember the files as they are, after this process has written to them.

        Raises:
            StorageFailed: the path names other files than before: what was written may be lost.
        """
        seen = self._look()
        for name, before in self._seen.items():
            if seen[name][:2] != before[:2]:
                raise self._changed(name, "replaced")
        self._seen = seen

    def verify(self) -> None:
        """Check that nothing was done to the directory and its files since `note`; any thread, about 10 µs.

        Raises:
            StorageFailed: a directory or file was deleted, moved, replaced, cut off, or written to.
        """
        seen = self._look()
        for name, before in self._seen.items():
            now = seen[name]
            if now != before:
                replaced, cut = now[:2] != before[:2], now.size < before.size
                raise self._changed(name, "replaced" if replaced else "cut off" if cut else "written to")

    def _look(self) -> dict[str, _Seen]:
        name = ""
        try:
            if _seen(os.stat(self.path))[:2] != self._is:
                raise self._changed("", "replaced")
            seen = {}
            for name in self._watched:
                seen[name] = _seen(os.stat(name, dir_fd=self._place))
        except (FileNotFoundError, NotADirectoryError):
            raise self._changed(name, "deleted or moved") from None
        except OSError as error:
            raise os_error(error, os.path.join(self.path, name), "looked at") from None
        return seen

    def _changed(self, name: str, how: str) -> StorageFailed:
        path = os.path.join(self.path, name) if name else self.path
        return StorageFailed(f"{path} was {how} by another process while this one had it: {_RESTORE}")
