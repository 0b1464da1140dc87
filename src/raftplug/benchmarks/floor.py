"""What a durable commit costs at least, with no raftplug in it: two hops through the server, and one commit to disk.

As in a real commit, two processes write the same bytes at once: ours, and a partner that answers when it has written
what it was sent.  Sockets are raw, entry ids are given, and XREAD waits before the clock starts, so that nothing is
measured but the server, the kernel and the disk.

Run as a module this is the partner; it ends when the server hangs up, and takes the directory with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from typing import Any, Final
from urllib.parse import urlsplit

DISKS: Final = ("sqlite", "fdatasync")
"""One SQLite transaction with synchronous=FULL, or a bare write and fdatasync."""


class Floor:
    """The exchange, and the partner it needs.

    Args:
        url: of the server.
        directory: a new one; both write there.
        disk: one of DISKS.
        size: bytes that are sent and written.
    """

    def __init__(self, url: str, directory: Path, disk: str, size: int) -> None:
        directory.mkdir()
        names = (f"floor:{secrets.token_hex(4)}:", directory)
        options = {"url": url, "prefix": names[0], "directory": str(directory), "disk": disk, "size": size}
        self._hop = _Hop(url, f"{names[0]}there", f"{names[0]}back", size)
        self._disk = _disk(disk, directory / "a")
        self._partner = subprocess.Popen(
            [sys.executable, "-m", "raftplug.benchmarks.floor", json.dumps(options)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    def exchange(self) -> float:
        """One exchange.  Returns: seconds."""
        self._hop.listen()
        begin = perf_counter()
        self._hop.send()
        self._disk.commit(self._hop.payload)
        self._hop.receive()
        elapsed = perf_counter() - begin
        self._hop.settle()
        return elapsed

    def close(self) -> None:
        """End the partner."""
        self._hop.close()
        self._partner.kill()
        self._partner.wait()
        self._disk.close()

    def __enter__(self) -> Floor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Hop:
    """Two connections: one adds to `there`, the other waits for the next entry of `back`."""

    def __init__(self, url: str, there: str, back: str, size: int) -> None:
        self.payload = b"x" * size
        self._there, self._back = there.encode(), back.encode()
        self._writer, self._reader = connect(url), connect(url)
        self._listened = self._sent = 0

    def listen(self) -> None:
        command = (b"XREAD", b"BLOCK", b"0", b"STREAMS", self._back, b"%d-0" % self._listened)
        self._reader.sendall(resp(*command))
        self._listened += 1

    def receive(self) -> None:
        _read(self._reader, self.payload + b"\r\n")

    def send(self) -> None:
        self._sent += 1
        identity = b"%d-0" % self._sent
        command = (b"XADD", self._there, b"MAXLEN", b"~", b"1000", identity, b"v", self.payload)
        self._writer.sendall(resp(*command))

    def settle(self) -> None:
        """Read the answer to `send`."""
        _read(self._writer, b"-0\r\n")

    def close(self) -> None:
        self._writer.close()
        self._reader.close()


class _Sqlite:
    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        for statement in (
            "PRAGMA journal_mode = WAL",
            "PRAGMA synchronous = FULL",
            "CREATE TABLE log (number INTEGER PRIMARY KEY, block BLOB)",
        ):
            self._connection.execute(statement)

    def commit(self, data: bytes) -> None:
        self._connection.execute("INSERT INTO log (block) VALUES (?)", (data,))

    def close(self) -> None:
        self._connection.close()


class _File:
    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def commit(self, data: bytes) -> None:
        os.write(self._fd, data)
        os.fdatasync(self._fd)

    def close(self) -> None:
        os.close(self._fd)


def _disk(name: str, path: Path) -> _Sqlite | _File:
    return _Sqlite(path) if name == "sqlite" else _File(path)


def connect(url: str) -> socket.socket:
    """A raw connection to the server at a redis:// or unix:// URL."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(parts.path)
        return connection
    connection = socket.create_connection((parts.hostname or "127.0.0.1", parts.port or 6379))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def resp(*words: bytes) -> bytes:
    """A command as the server reads it."""
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


def _read(connection: socket.socket, end: bytes) -> bytes:
    """Read to the end of the answer, which nothing before it looks like.

    Raises:
        ConnectionError: the server hung up, or refused.
    """
    data = b""
    while not data.endswith(end):
        more = connection.recv(1 << 16)
        if not more or data.startswith(b"-"):
            raise ConnectionError(f"the server hung up after {data[:80]!r}")
        data += more
    return data


def server_cpu_s(url: str) -> float:
    """CPU seconds that the server has used."""
    with connect(url) as connection:
        connection.sendall(resp(b"INFO", b"cpu"))
        text = _read(connection, b"\r\n\r\n").decode()
    fields = dict(line.split(":", 1) for line in text.split("\r\n") if ":" in line)
    return float(fields["used_cpu_user"]) + float(fields["used_cpu_sys"])


def _answer(options: dict[str, Any]) -> None:
    """The partner: write what comes, then say so."""
    directory = Path(options["directory"])
    try:
        hop = _Hop(options["url"], f"{options['prefix']}back", f"{options['prefix']}there", options["size"])
        disk = _disk(options["disk"], directory / "b")
        with contextlib.suppress(ConnectionError):
            while True:
                hop.listen()
                hop.receive()
                disk.commit(hop.payload)
                hop.send()
                hop.settle()
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        with contextlib.suppress(OSError):
            directory.parent.rmdir()  # Where it was the last in there.


if __name__ == "__main__":
    _answer(json.loads(sys.argv[1]))
