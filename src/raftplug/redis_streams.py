"""The default transport: everybody reads a stream of his own on a Redis, and appends to the others' (DESIGN 7).

Nothing here has a thread at work: the owner's loop calls `send_message`, `receive_messages` and `wait`, and `wait`
polls a reader's socket (one XREAD BLOCK under way), a writer's (everything else, pipelined) and a wake-up.  redis-py
connects, encrypts and authenticates, in a short thread, since names and handshakes block; then the socket is ours.

What lies on the server, all of it with a time to live of ten minutes::

    PREFIX:{CLUSTER/ID}:inbox   a node's stream    entries "f": a frame; "o": its owner opened it
    PREFIX:{~CLIENT}:inbox      a client's
    PREFIX:directory            a stream           entries "r": the record of one process, msgpack

Only an owner makes its inbox; others append with NOMKSTREAM, so that what a dead process leaves behind ends by itself.
The least that a user of the server must be allowed, here for the prefix "raftplug"::

    ACL SETUSER raftplug on >PASSWORD resetkeys ~raftplug:* resetchannels -@all
        +xadd +xread +xinfo|stream +xtrim +expire +ping

URLs: redis://, rediss:// (TLS) and unix:// as redis-py reads them; redis+sentinel://HOST:PORT,HOST:PORT/SERVICE/DB and
redis+cluster://HOST:PORT,HOST:PORT.  No key is ever searched for, and no script is run.
"""

from __future__ import annotations

import contextlib
import errno
import inspect
import re
import select
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import hiredis
import msgpack
import redis
from redis.connection import AbstractConnection, Connection, parse_url

from raftplug.cluster import Cluster, is_client
from raftplug.embedded import server_version
from raftplug.errors import InvalidArgument, TransportError
from raftplug.frames import Id
from raftplug.settings import Settings

_TTL_S: Final = 600
_REFRESH_S: Final = 60.0
_CONNECT_S: Final = 1.0
_ANSWER_S: Final = 3.0  # A connection that owes a reply for so long is given up.
_BACKOFF_S: Final = (0.05, 1.0)
_CLOSE_S: Final = 0.5
_RETRY_S: Final = 0.25  # After an error reply, before the same is asked again.
_PROBLEM_S: Final = 10.0  # What has not happened again for so long is over.
_DIRECTORY_S: Final = 0.5
_DIRECTORY_CHECK_S: Final = 2.0
_DIRECTORY_ENTRIES: Final = 1000
_DIRECTORY_MEMBERS: Final = 10_000
_FRAME_BYTES: Final = 8 << 20
_UNANSWERED_BYTES: Final = 16 << 20  # Sent or waiting to be; beyond it frames are dropped, which Raft tolerates.
_HELD_BYTES: Final = 256 << 10  # Kept for the time after a reconnect: enough for a request, too little to be a backlog.
_COMMAND_BYTES: Final = 256  # What one command costs us besides its frame.
_READ_BYTES: Final = 1 << 16
_READ_ENTRIES: Final = 1000
_TARGETS: Final = 10_000
# MAXLEN counts entries, and we want to bound bytes: 16 MB of 64 KB frames, and many more of small ones, since a burst
# of small frames from many clients is no reason to lose any.  So an inbox of such frames holds some 32 MB at most.
_INBOX_BYTES: Final = 16 << 20
_LARGE: Final = _INBOX_BYTES // (64 << 10)
_SMALL_BYTES: Final = 4 << 10
_SMALL: Final = _INBOX_BYTES // _SMALL_BYTES

_START: Final = b"0-0"
_PREFIX: Final = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_PARTIAL: Final = object()
_WOULD_BLOCK: Final = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)

# What a reply answers.
_KEPT, _SENT, _MADE, _INFO, _READ, _ANNOUNCED, _LISTED, _LISTED_INFO = range(8)
_HEALTHY: Final = frozenset((_SENT, _MADE, _READ, _ANNOUNCED))  # A server that does this is a server again.
# How far the own inbox is: not looked at since the last connect, asked about, readable.
_UNKNOWN, _ASKED, _READY = range(3)

_REPLIES: Final = {
    "WRONGTYPE": "{key} holds another type: another program uses that name; choose another prefix, or delete the key",
    "OOM": "the server is out of memory and refuses writes: raise its maxmemory, or make room",
    "READONLY": "the server is a read-only replica: give the address of the primary",
    "MOVED": "the server is part of a Redis Cluster: use redis+cluster:// instead of redis://",
    "ASK": "the server is moving {key} to another node of its Redis Cluster: messages flow again when that is done",
    "LOADING": "the server is still loading its data",
    "MISCONF": "the server refuses writes since it cannot save its data: see its log",
    "NOREPLICAS": "the server refuses writes since it has too few replicas",
    "MASTERDOWN": "the server is a replica that has lost its primary",
    "CLUSTERDOWN": "the Redis Cluster is down",
    "UNBLOCKED": "the server became a replica",
    "NOAUTH": "the server wants a password: put it into the URL, as in redis://USER:PASSWORD@HOST",
    "WRONGPASS": "the server refuses the user name or password of the URL",
    "NOPERM": "the user may not do what raftplug needs (python -m pydoc raftplug.redis_streams prints the ACL): {text}",
}
_RECONNECT: Final = frozenset(("READONLY", "UNBLOCKED"))
_PASSING: Final = frozenset(("OOM", "READONLY", "LOADING", "MISCONF", "NOREPLICAS", "MASTERDOWN", "CLUSTERDOWN", "ASK"))


class _Lost(Exception):
    """A connection ended; the text says why."""


class _Wire:
    """One connection after its handshake: a non-blocking socket, what waits to be sent, and an incremental parser."""

    __slots__ = ("_buffer", "_connection", "_ending", "_reader", "_socket", "fd", "out")

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._socket: socket.socket = connection._sock  # The one thing here that redis-py does not make public.
        self._socket.setblocking(False)
        self._reader = hiredis.Reader(notEnoughData=_PARTIAL)
        self._buffer = bytearray(_READ_BYTES)
        self._ending = ""
        self.fd = self._socket.fileno()
        self.out = bytearray()

    def flush(self) -> None:
        """Send what can be sent without blocking."""
        out = self.out
        while out:
            try:
                count = self._socket.send(out)
            except _WOULD_BLOCK:
                return
            except OSError as error:
                raise _Lost(_os_text(error)) from None
            del out[:count]

    def read(self) -> list[Any]:
        """The whole replies that have arrived.  What came before the end of a connection is still returned."""
        while not self._ending:
            try:
                count = self._socket.recv_into(self._buffer)
            except _WOULD_BLOCK:
                break
            except OSError as error:
                self._ending = _os_text(error)
                break
            if not count:
                self._ending = "the server closed the connection"
                break
            self._reader.feed(self._buffer, 0, count)  # type: ignore[arg-type]  # Its stub forgets bytearray.
            if count < _READ_BYTES and not isinstance(self._socket, ssl.SSLSocket):
                break  # The socket is empty: one system call less.
        replies = []
        try:
            while (reply := self._reader.gets()) is not _PARTIAL:
                if not isinstance(reply, hiredis.PushNotification):
                    replies.append(reply)
        except hiredis.ProtocolError:
            raise _Lost(_NO_REDIS) from None
        if self._ending and not replies:
            raise _Lost(self._ending)
        return replies

    def close(self) -> None:
        self._connection.disconnect()


class _Slot:
    """A connection that should exist: present, being made, or due for another try."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.wire: _Wire | None = None
        self.connecting = False
        self.retired = False  # What its connecting thread brings is not wanted any more.
        self.results: deque[_Wire | str] = deque()  # What the connecting thread hands over: a wire, or why not.
        self.retry_at = 0.0
        self.backoff = _BACKOFF_S[0]
        self.expected: deque[tuple[int, bytes, int]] = deque()  # One for each reply owed: what it answers, key, bytes.
        self.unanswered = 0
        self.controls = 0  # Owed replies that are worth waking up for.
        self.since = 0.0  # When the oldest owed reply was asked for, or the last one came.
        self.mask = 0


class _Target:
    """Another process's inbox, and the constant beginnings of the commands that append to it."""

    __slots__ = ("key", "large", "small")

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.small = _begin(b"XADD", key, b"NOMKSTREAM", b"MAXLEN", b"~", b"%d" % _SMALL, b"*", b"f")
        self.large = _begin(b"XADD", key, b"NOMKSTREAM", b"MAXLEN", b"~", b"%d" % _LARGE, b"*", b"f")


class RedisStreams(Cluster):
    """A transport over Redis streams.  See the module's documentation for keys, rights and URLs.

    Args:
        url: where the Redis is.
        own_id: of this node or client.
        cluster: 16 bytes that identify the cluster.
        prefix: what the names of all keys begin with: 1 to 64 letters, digits, and . _ : -
        settings: half of their election timeout is the idle check's interval; the default's without.
        idle_s: after so many seconds without a message the cursor is compared with the stream.
        clock: monotonic seconds.
        options: of later versions; not used.

    Raises:
        InvalidArgument: the URL or prefix cannot be.  An unreachable server raises nothing: see `check`, `problems`.
    """

    def __init__(
        self,
        url: str,
        *,
        own_id: Id,
        cluster: bytes,
        prefix: str = "raftplug",
        settings: Settings | None = None,
        idle_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        **options: Any,
    ) -> None:
        if not _PREFIX.fullmatch(prefix):
            raise InvalidArgument(f"prefix {prefix!r} cannot be: use 1 to 64 letters, digits, and . _ : -")
        self._route = _route(url)
        self._prefix = prefix
        self._cluster = cluster
        self._clock = clock
        self._closed = False
        if idle_s is None:
            idle_s = (settings or Settings()).election_timeout_ms / 2000
        self._block_ms = max(1, round(idle_s * 1000))
        self._inbox = self._inbox_of(own_id)
        self._inbox_state = _UNKNOWN
        self._inbox_retry_at = 0.0
        self._refresh_at = 0.0
        self._cursor: bytes | None = None
        self._arm_at = 0.0
        self._messages: list[bytes] = []
        self._queue: deque[tuple[_Target, bytes]] = deque()
        self._queued = 0
        self._targets: dict[Id, _Target] = {}
        self._problems: dict[tuple[str | int, Any], tuple[str, float]] = {}

        self._list = f"{prefix}:directory".encode()
        self._list_cursor = _START
        self._list_asked = False
        self._list_at = -1e9
        self._list_checked_at = -1e9
        self._records: dict[tuple[Any, Any], tuple[int, dict[str, Any]]] = {}
        self._news = False
        self._record: dict[str, Any] | None = None
        self._announce_due = False

        self._poll = select.poll()
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._wake_fd = self._wake_in.fileno()
        self._poll.register(self._wake_fd, select.POLLIN)
        self._nudged = False
        self._wake_called = False
        self._waited = False
        self._by_fd: dict[int, _Slot] = {}
        self._reader = _Slot(self._route.address(self._inbox))
        self._writers: dict[str, _Slot] = {}
        self._writer(self._inbox)
        self._tend(self._clock())

    # ------------------------------------------------------------- the owner

    def set_cluster(self, cluster: bytes) -> None:
        """Address the nodes of this cluster from now on.  The own inbox stays, so this is for clients."""
        self._cluster = cluster
        self._targets.clear()

    def send_message(self, to_id: Id, message: bytes) -> None:
        """Queue a frame for `to_id`; the next `wait` sends it.  Over 8 MB, or over a full queue, it is dropped."""
        size = len(message) + _COMMAND_BYTES
        if size > _FRAME_BYTES:
            self._problem("size", to_id, f"a message of {len(message)} bytes for {to_id} was dropped: too large")
            return
        target = self._targets.get(to_id)
        if target is None:
            if len(self._targets) >= _TARGETS:
                self._targets.clear()  # Clients come and go.
            target = self._targets[to_id] = _Target(self._inbox_of(to_id))
        if self._queued + size > _UNANSWERED_BYTES:
            self._problem("full", None, "messages are dropped: the server does not take them fast enough")
            return
        self._queue.append((target, message))
        self._queued += size

    def receive_messages(self) -> list[bytes]:
        """Return what has arrived since the last call, oldest first."""
        if not self._messages and not self._waited:
            self.wait(0)  # For an owner that never waits, as the seed's.
        self._waited = False
        messages, self._messages = self._messages, []
        return messages

    def wait(self, timeout_s: float) -> None:
        """Send what is queued, then return when something arrived, `wake` was called, or the timeout passed.

        It never blocks on the server: connecting happens elsewhere, and all sockets are non-blocking.
        """
        self._waited = True
        if self._closed:
            return
        now = self._clock()
        deadline = now + timeout_s
        while True:
            self._turn(now)
            remaining = 0.0 if self._messages or self._news else deadline - now
            # What is due by time alone (retries, refreshes, an answer overdue) is looked at this often.
            limit = min(remaining, 0.25 if self._inbox_state == _READY else 0.05)
            woken = self._select(limit)
            if woken or self._messages or self._news or remaining <= 0.0:
                self._news = False
                return
            now = self._clock()

    def wake(self) -> None:
        """Make the current or the next `wait` return at once.  Any thread."""
        self._wake_called = True
        self._nudge()

    def announce(self, record: dict[str, Any]) -> None:
        """Publish this process's record, now and after each loss of the connection or the directory."""
        self._record = dict(record)
        self._announce_due = True

    def directory(self) -> list[dict[str, Any]]:
        """The newest record of each process seen; asks the server for more, at most every half second."""
        if not self._closed:
            now = self._clock()
            slot = self._writer(self._list)
            if slot.wire is not None and not self._list_asked and now - self._list_at >= _DIRECTORY_S:
                self._ask_directory(now)
                self._flush_slot(slot)
        return [dict(record) for _, record in self._records.values()]

    def problems(self) -> list[str]:
        """What is wrong now, one line each, without passwords."""
        now = self._clock()
        for key in [key for key, (_, over_at) in self._problems.items() if over_at < now]:
            del self._problems[key]
        return sorted({text for text, _ in self._problems.values()})

    def check(self) -> dict[str, Any]:
        """Look at the server over a connection of its own.  It blocks, a second or so at most each step.

        Returns:
            "reachable" (True), "latency_ms" (the median of five), "server" ("valkey 9.1.2"; None if it may not be
            asked), "maxmemory_policy" (None likewise) and "problems" (one line each).

        Raises:
            TransportError: it cannot be used; one line that says why and what to do.
        """
        address = self._route.address(self._inbox)
        try:
            connection = self._route.connect(address)
            try:
                return self._look(connection)
            finally:
                connection.disconnect()
        except _Lost as error:
            raise TransportError(self._at(address, str(error))) from None
        except (OSError, hiredis.HiredisError) as error:
            raise TransportError(self._at(address, _connect_text(error, self._route.has_password))) from None

    def close(self) -> None:
        """Send what is queued, withdraw the record, delete the own inbox, disconnect: within half a second or so."""
        if self._closed:
            return
        now = self._clock()
        deadline = now + _CLOSE_S
        writer, lister = self._writer(self._inbox), self._writer(self._list)
        with contextlib.suppress(_Lost):
            self._turn(now)
            if writer.wire is not None:
                self._command(writer, _KEPT, self._inbox, b"EXPIRE", self._inbox, b"0")
            if self._record is not None and lister.wire is not None:
                self._withdraw(lister, now)
            self._drain(deadline)
            if self._record is not None and lister.wire is not None and not self._records and not self._list_asked:
                # We were the last: nobody else's record is there, so the directory need not wait for its end.
                self._command(lister, _KEPT, self._list, b"EXPIRE", self._list, b"0")
                self._drain(deadline)
        self._closed = True
        for slot in [self._reader, *self._writers.values()]:
            if slot.wire is not None:
                slot.wire.close()
                slot.wire = None
            while slot.results:
                self._discard(slot.results.popleft())
        self._wake_in.close()
        self._wake_out.close()

    # ----------------------------------------------------------------- turns

    def _turn(self, now: float) -> None:
        """All that can be done without waiting: adopt, read, keep, flush, and then arm."""
        self._tend(now)
        for slot in list(self._writers.values()):
            if slot.expected:
                self._read_slot(slot, now)
        self._keep(now)
        self._pack(now)
        for slot in self._writers.values():
            self._flush_slot(slot)
        reader = self._reader
        if reader.wire is not None:
            if self._inbox_state == _READY and not reader.expected and now >= self._arm_at:
                count, block = b"%d" % _READ_ENTRIES, b"%d" % self._block_ms
                words = (b"XREAD", b"COUNT", count, b"BLOCK", block, b"STREAMS", self._inbox, self._cursor or _START)
                self._command(reader, _READ, self._inbox, *words)
            self._flush_slot(reader)

    def _select(self, limit_s: float) -> bool:
        """Wait for sockets, and read.  Returns whether `wake` was called."""
        # Replies to what was sent wake nobody: they are read when the next turn comes by.
        for slot in self._by_fd.values():
            wire = slot.wire
            if wire is None:
                continue
            mask = select.POLLOUT if wire.out else 0
            if slot is self._reader or slot.controls:
                mask |= select.POLLIN
            if mask != slot.mask:
                slot.mask = mask
                self._poll.modify(wire.fd, mask)
        woken = False
        for fd, _ in self._poll.poll(max(0, -int(-limit_s * 1000 // 1))):
            if fd == self._wake_fd:
                with contextlib.suppress(BlockingIOError):
                    self._wake_in.recv(4096)
                self._nudged = False
                woken, self._wake_called = bool(self._wake_called), False
                continue
            ready = self._by_fd.get(fd)
            if ready is not None:
                self._read_slot(ready, self._clock())
        return woken

    def _nudge(self) -> None:
        if not self._nudged:
            self._nudged = True
            with contextlib.suppress(OSError):  # Full, which wakes as well, or closed.
                self._wake_out.send(b"!")

    def _drain(self, deadline: float) -> None:
        """Wait until the writers have had every answer, or time is up."""
        while any(slot.wire is not None and slot.expected for slot in self._writers.values()):
            for slot in self._writers.values():
                self._flush_slot(slot)
            now = self._clock()
            if now >= deadline:
                return
            self._poll_all(min(deadline - now, 0.1))
            for slot in list(self._writers.values()):
                self._read_slot(slot, now)

    def _poll_all(self, limit_s: float) -> None:
        poll = select.poll()
        for slot in self._writers.values():
            if slot.wire is not None:
                poll.register(slot.wire.fd, select.POLLIN | (select.POLLOUT if slot.wire.out else 0))
        poll.poll(limit_s * 1000)

    # ----------------------------------------------------------- connections

    def _writer(self, key: bytes) -> _Slot:
        address = self._route.address(key)
        slot = self._writers.get(address)
        if slot is None:
            slot = self._writers[address] = _Slot(address)
        return slot

    def _tend(self, now: float) -> None:
        """Adopt connections that were made, and have missing ones made."""
        for slot in [self._reader, *self._writers.values()]:
            if slot.wire is None:
                if slot.results:
                    self._adopt(slot, slot.results.popleft(), now)
                elif not slot.connecting and now >= slot.retry_at:
                    if slot is self._reader:
                        slot.address = self._route.address(self._inbox)  # It may be elsewhere by now.
                    slot.connecting = True
                    name = f"raftplug-connect-{slot.address}"
                    threading.Thread(target=self._connect, args=(slot, slot.address), name=name, daemon=True).start()
            elif slot.expected and now - slot.since > _ANSWER_S + (
                self._block_ms / 1000 if slot is self._reader else 0
            ):
                self._read_slot(slot, now)  # It may lie there unread: we may have been the ones who slept.
                if slot.wire is not None and slot.expected and slot.since < now:
                    self._lose(slot, "the server does not answer", now)

    def _connect(self, slot: _Slot, address: str) -> None:
        """In a thread of its own, which ends with it."""
        result: _Wire | str
        try:
            result = _Wire(self._route.connect(address))
        except _Lost as error:
            result = str(error)
        except Exception as error:
            result = f"cannot connect ({type(error).__name__})"
        slot.results.append(result)
        if self._closed or slot.retired:
            with contextlib.suppress(IndexError):
                self._discard(slot.results.popleft())
        self._nudge()

    def _adopt(self, slot: _Slot, result: _Wire | str, now: float) -> None:
        slot.connecting = False
        if isinstance(result, str):
            self._route.failed(slot.address)
            self._back_off(slot, result, now)
            needed = (self._route.address(self._inbox), self._route.address(self._list))
            if slot is not self._reader and slot.address not in needed:
                del self._writers[slot.address]  # A node of a Redis Cluster that is no more.
            return
        self._problems.pop(("connection", slot.address), None)
        slot.wire = result
        slot.mask = select.POLLIN
        slot.since = now
        self._by_fd[result.fd] = slot
        self._poll.register(result.fd, slot.mask)
        if slot is self._writers.get(self._route.address(self._list)):
            self._list_asked = False
            self._list_cursor = _START  # The records are few, and reading them again is harmless.
            self._announce_due = self._record is not None

    def _lose(self, slot: _Slot, text: str, now: float) -> None:
        """The connection is of no use any more: forget what it owed, and have another made."""
        wire, slot.wire = slot.wire, None
        if wire is None:
            return
        with contextlib.suppress(KeyError):
            self._poll.unregister(wire.fd)
        self._by_fd.pop(wire.fd, None)
        wire.close()
        slot.expected.clear()
        slot.unanswered = slot.controls = 0
        if slot is self._reader or slot.address == self._route.address(self._inbox):
            self._inbox_state = _UNKNOWN
        if slot.address == self._route.address(self._list) and slot is not self._reader:
            self._list_asked = False
        self._back_off(slot, text, now)

    def _back_off(self, slot: _Slot, text: str, now: float) -> None:
        slot.retry_at = now + slot.backoff
        slot.backoff = min(slot.backoff * 2, _BACKOFF_S[1])
        self._problem("connection", slot.address, self._at(slot.address, text))

    def _flush_slot(self, slot: _Slot) -> None:
        if slot.wire is not None and slot.wire.out:
            try:
                slot.wire.flush()
            except _Lost as error:
                self._lose(slot, str(error), self._clock())

    def _read_slot(self, slot: _Slot, now: float) -> None:
        if slot.wire is None:
            return
        try:
            replies = slot.wire.read()
        except _Lost as error:
            self._lose(slot, str(error), now)
            return
        if replies:
            slot.since = now
        for reply in replies:
            if not slot.expected:
                self._lose(slot, _NO_REDIS, now)
                return
            kind, key, size = slot.expected.popleft()
            slot.unanswered -= size
            if kind > _SENT:
                slot.controls -= 1
            if isinstance(reply, hiredis.ReplyError):
                self._refused(slot, kind, key, str(reply), now)
                if slot.wire is None:
                    return
                continue
            slot.backoff = _BACKOFF_S[0] if kind in _HEALTHY else slot.backoff
            if self._problems:
                self._problems.pop((kind, key), None)
            if kind > _SENT:
                try:
                    self._answer(slot, kind, reply, now)
                except (TypeError, ValueError, IndexError, KeyError, AttributeError):
                    self._lose(slot, "the server's reply has a shape that raftplug does not know", now)
                    return

    def _discard(self, result: _Wire | str) -> None:
        if isinstance(result, _Wire):
            result.close()

    # -------------------------------------------------------------- commands

    def _command(self, slot: _Slot, kind: int, key: bytes, *words: bytes) -> None:
        """Queue a command about `key`."""
        if slot.wire is None:
            return
        if not slot.expected:
            slot.since = self._clock()
        slot.wire.out += _pack(*words)
        slot.expected.append((kind, key, _COMMAND_BYTES))
        slot.unanswered += _COMMAND_BYTES
        if kind > _SENT:
            slot.controls += 1

    def _pack(self, now: float) -> None:
        """Move queued frames into the writers' buffers: one batch a turn."""
        queue = self._queue
        if not queue:
            return
        held: deque[tuple[_Target, bytes]] = deque()
        held_bytes = 0
        while queue:
            target, message = queue.popleft()
            slot = self._writer(target.key)
            wire = slot.wire
            size = len(message) + _COMMAND_BYTES
            if wire is None:
                held.append((target, message))
                held_bytes += size
                continue
            if slot.unanswered + size > _UNANSWERED_BYTES:
                self._problem("full", None, "messages are dropped: the server does not take them fast enough")
                continue
            if not slot.expected:
                slot.since = now
            out = wire.out
            out += target.small if len(message) <= _SMALL_BYTES else target.large
            out += b"$%d\r\n" % len(message)
            out += message
            out += b"\r\n"
            slot.expected.append((_SENT, target.key, size))
            slot.unanswered += size
        while held_bytes > _HELD_BYTES:
            held_bytes -= len(held.popleft()[1]) + _COMMAND_BYTES
        self._queue, self._queued = held, held_bytes

    def _keep(self, now: float) -> None:
        """See to the own inbox and to the directory."""
        slot = self._writer(self._inbox)
        if slot.wire is not None:
            if self._inbox_state == _UNKNOWN and now >= self._inbox_retry_at:
                self._inbox_state = _ASKED
                if self._cursor is not None:
                    # Before the marker is added: its id would hide that the stream had fallen behind the cursor.
                    self._command(slot, _INFO, self._inbox, b"XINFO", b"STREAM", self._inbox)
                self._make_inbox(slot, now)
            elif self._inbox_state == _READY and now >= self._refresh_at:
                self._refresh_at = now + _REFRESH_S
                self._command(slot, _KEPT, self._inbox, b"EXPIRE", self._inbox, b"%d" % _TTL_S)
        if self._announce_due and self._record is not None:
            slot = self._writer(self._list)
            if slot.wire is not None:
                self._announce_due = False
                self._add_record(slot, self._record)

    def _make_inbox(self, slot: _Slot, now: float) -> None:
        self._refresh_at = now + _REFRESH_S
        self._command(slot, _MADE, self._inbox, b"XADD", self._inbox, b"MAXLEN", b"~", b"%d" % _LARGE, b"*", b"o", b"")
        self._command(slot, _KEPT, self._inbox, b"EXPIRE", self._inbox, b"%d" % _TTL_S)

    def _add_record(self, slot: _Slot, record: dict[str, Any]) -> None:
        data: bytes = msgpack.packb(record)
        words = (b"XADD", self._list, b"MAXLEN", b"~", b"%d" % _DIRECTORY_ENTRIES, b"*", b"r", data)
        self._command(slot, _ANNOUNCED, self._list, *words)
        self._command(slot, _KEPT, self._list, b"EXPIRE", self._list, b"%d" % _TTL_S)

    def _withdraw(self, slot: _Slot, now: float) -> None:
        if self._record is None:
            return
        gone = {"id": self._record.get("id"), "cluster": self._record.get("cluster"), "gone": True}
        self._add_record(slot, gone)
        self._ask_directory(now)

    def _ask_directory(self, now: float) -> None:
        self._list_at = now
        self._list_asked = True
        count = b"%d" % _READ_ENTRIES
        words = (b"XREAD", b"COUNT", count, b"STREAMS", self._list, self._list_cursor)
        self._command(self._writer(self._list), _LISTED, self._list, *words)

    # --------------------------------------------------------------- replies

    def _answer(self, slot: _Slot, kind: int, reply: Any, now: float) -> None:
        if kind == _READ:
            entries = _entries(reply)
            if entries:
                self._messages += [fields[1] for _, fields in entries if fields[0] == b"f"]
                self._cursor = entries[-1][0]
            elif (writer := self._writer(self._inbox)).wire is not None:
                # Idle: perhaps nobody speaks, perhaps the stream is gone or has fallen behind the cursor.
                self._inbox_state = _ASKED
                self._command(writer, _INFO, self._inbox, b"XINFO", b"STREAM", self._inbox)
        elif kind == _MADE:
            if self._cursor is None:
                self._cursor = bytes(reply)
            self._inbox_state = _READY
        elif kind == _INFO:
            if self._cursor is not None and _number(_last_id(reply)) < _number(self._cursor):
                self._cursor = _START
            if not self._making(slot):
                self._inbox_state = _READY
        elif kind == _LISTED:
            self._list_asked = False
            entries = _entries(reply)
            self._learn(entries)
            if len(entries) >= _READ_ENTRIES:
                self._ask_directory(now)
            elif not entries and now - self._list_checked_at >= _DIRECTORY_CHECK_S and not self._closed:
                self._list_checked_at = now
                self._command(slot, _LISTED_INFO, self._list, b"XINFO", b"STREAM", self._list)
        elif kind == _LISTED_INFO and _number(_last_id(reply)) < _number(self._list_cursor):
            self._list_cursor = _START

    def _refused(self, slot: _Slot, kind: int, key: bytes, text: str, now: float) -> None:
        """An error reply."""
        word = text.partition(" ")[0]
        if kind in (_INFO, _LISTED_INFO) and "no such key" in text:
            if kind == _INFO:
                self._gone(slot, now)
            else:
                self._list_cursor = _START
                self._announce_due = self._record is not None
            return
        if word in ("MOVED", "ASK") and self._route.moved(key, text):
            self._follow(key, now)
            return
        known = _REPLIES.get(word, "the server says: {text}")
        line = self._at(slot.address, known.format(key=key.decode(errors="replace"), text=text))
        # What is asked but once a minute is wrong until it is asked again.
        self._problem(kind, key, line, _REFRESH_S + _PROBLEM_S if kind == _KEPT else _PROBLEM_S)
        if word in _RECONNECT:
            self._route.failed(slot.address)
            self._lose(slot, line.partition(": ")[2], now)
            if slot is not self._reader:
                self._lose(self._reader, line.partition(": ")[2], now)
        elif kind == _READ:
            self._arm_at = now + _RETRY_S
        elif kind == _MADE:
            if self._cursor is None:
                self._inbox_state = _UNKNOWN
                self._inbox_retry_at = now + _RETRY_S
            else:
                self._inbox_state = _READY
        elif kind == _INFO and not self._making(slot):
            self._inbox_state = _READY
        elif kind == _LISTED:
            self._list_asked = False

    def _gone(self, slot: _Slot, now: float) -> None:
        """The own inbox is not there any more: whatever comes next is new."""
        self._cursor = _START
        self._announce_due = self._record is not None
        if not self._making(slot):
            self._make_inbox(slot, now)

    def _making(self, slot: _Slot) -> bool:
        return any(kind == _MADE for kind, _, _ in slot.expected)

    def _follow(self, key: bytes, now: float) -> None:
        """A key lives elsewhere: see whether that concerns what is ours."""
        if key == self._inbox:
            self._inbox_state = _UNKNOWN
            old, address = self._reader, self._route.address(key)
            if address != old.address:
                self._lose(old, "", now)
                self._problems.pop(("connection", old.address), None)
                old.retired = True
                while old.results:
                    self._discard(old.results.popleft())
                self._reader = _Slot(address)
        elif key == self._list:
            self._list_asked = False
            self._list_cursor = _START
            self._announce_due = self._record is not None
        self._writer(key)

    def _learn(self, entries: list[Any]) -> None:
        """Take in directory records; they are hints from anybody, so anything may be in them."""
        for identity, fields in entries:
            self._list_cursor = identity
            if fields[0] != b"r":
                continue
            try:
                record = msgpack.unpackb(fields[1], strict_map_key=True)
                key = (record["cluster"], record["id"])
                hash(key)
                gone = bool(record.get("gone"))
            except (ValueError, TypeError, KeyError, AttributeError):
                continue
            self._records.pop(key, None)
            if not gone and isinstance(record, dict):
                self._records[key] = (_number(identity)[0], record)
                self._news = True
        if entries:
            # The server's clock stamped both, so what has not been said again for a time to live is over.
            oldest = _number(self._list_cursor)[0] - _TTL_S * 1000
            while self._records:
                first = next(iter(self._records))
                if self._records[first][0] >= oldest and len(self._records) <= _DIRECTORY_MEMBERS:
                    break
                del self._records[first]

    # ----------------------------------------------------------------- words

    def _inbox_of(self, id: Id) -> bytes:
        tag = id if is_client(id) else f"{self._cluster.hex()[:16]}/{id}"
        return f"{self._prefix}:{{{tag}}}:inbox".encode()

    def _problem(self, kind: str | int, about: Any, text: str, lasting_s: float = _PROBLEM_S) -> None:
        self._problems[(kind, about)] = (text, self._clock() + lasting_s)

    def _at(self, address: str, text: str) -> str:
        return f"redis {address}: {text}"

    def _look(self, connection: Any) -> dict[str, Any]:
        made, reader = connection._sock, hiredis.Reader(notEnoughData=_PARTIAL)
        address = self._route.address(self._inbox)

        def ask(*words: bytes) -> Any:
            made.sendall(_pack(*words))
            while (reply := reader.gets()) is _PARTIAL:
                data = made.recv(_READ_BYTES)
                if not data:
                    raise _Lost("the server closed the connection: is that a Redis?")
                reader.feed(data)
            return reply

        times, problems = [], []
        for _ in range(5):
            before = time.perf_counter()
            self._insist(address, self._inbox, ask(b"PING"))
            times.append(time.perf_counter() - before)
        for key in (self._inbox, self._list):
            self._insist(address, key, ask(b"XINFO", b"STREAM", key))
        # A stream that nobody has: with NOMKSTREAM, what the transport does all day can be tried without a trace.
        nobody = self._inbox_of("~check")
        for words in (
            (b"XADD", nobody, b"NOMKSTREAM", b"*", b"o", b""),
            (b"XREAD", b"COUNT", b"1", b"STREAMS", nobody, _START),
            (b"EXPIRE", nobody, b"%d" % _TTL_S),
        ):
            problem = self._insist(address, nobody, ask(*words))
            if problem:
                problems.append(problem)
        info = ask(b"INFO", b"server")
        config = ask(b"CONFIG", b"GET", b"maxmemory-policy")
        if isinstance(config, dict):
            config = [word for pair in config.items() for word in pair]
        policy = _text(config[1]) if isinstance(config, list) and len(config) == 2 else None
        if policy not in (None, "noeviction"):
            text = f"maxmemory-policy is {policy}, so inboxes may be evicted and messages lost: set it to noeviction"
            problems.append(self._at(address, text))
        return {
            "reachable": True,
            "latency_ms": round(sorted(times)[len(times) // 2] * 1000, 3),
            "server": (server_version(info) if isinstance(info, bytes) else "") or None,
            "maxmemory_policy": policy,
            "problems": problems,
        }

    def _insist(self, address: str, key: bytes, reply: Any) -> str | None:
        """Raise TransportError for an error reply that only a human can mend; return the text of any other."""
        if not isinstance(reply, hiredis.ReplyError):
            return None
        text = str(reply)
        word = text.partition(" ")[0]
        if "no such key" in text or (self._route.clustered and word in ("MOVED", "ASK")):
            return None
        line = self._at(address, _REPLIES.get(word, "the server says: {text}").format(key=key.decode(), text=text))
        if word in _PASSING:
            return line
        raise TransportError(line)


# ----------------------------------------------------------------------------
# Where the server of a key is.


class _Route:
    """One server, and how to connect to it; the other kinds of URL refine it."""

    clustered = False

    def __init__(self, url: str) -> None:
        try:
            options: dict[str, Any] = dict(parse_url(url))  # type: ignore[no-untyped-call]
            self._class: Any = options.pop("connection_class", Connection)
            for name in ("max_connections", "timeout", "retry", "retry_on_error", "health_check_interval"):
                options.pop(name, None)
            options.update(socket_timeout=_CONNECT_S, socket_connect_timeout=_CONNECT_S, retry_on_timeout=False)
            # CLIENT SETINFO is a right that the minimal ACL does not give.
            if "driver_info" in inspect.signature(AbstractConnection.__init__).parameters:
                options["driver_info"] = None
            else:
                options.update(lib_name=None, lib_version=None)
            self._options = options
            self._class(**options)
        except Exception as error:  # Whatever redis-py makes of a text that a user typed; it may hold a password.
            raise InvalidArgument(f"the Redis URL cannot be ({type(error).__name__}): {_WRITE_URLS}") from None
        self.has_password = bool(options.get("password"))
        self._address = str(options.get("path") or _join(options.get("host", "localhost"), options.get("port", 6379)))

    def address(self, key: bytes) -> str:
        """host:port, or a socket's path, of the server that holds `key`."""
        return self._address

    def moved(self, key: bytes, text: str) -> bool:
        """Take note of a MOVED or ASK; False if this kind of server has no business saying so."""
        return False

    def failed(self, address: str) -> None:
        """Take note that a server cannot be used."""

    def connect(self, address: str) -> Any:
        """Connect and authenticate; it blocks.  Raises _Lost."""
        return self._open({})

    def _open(self, place: dict[str, Any]) -> Any:
        connection = self._class(**{**self._options, **place})
        try:
            connection.connect()
        except (redis.RedisError, OSError, hiredis.HiredisError) as error:
            connection.disconnect()
            raise _Lost(_connect_text(error, self.has_password)) from None
        made = connection._sock
        if made.family != socket.AF_UNIX and made.getsockname() == made.getpeername():
            # The kernel gave our end the very port that we looked for: nobody listens there but we.
            connection.disconnect()
            raise _Lost(_REFUSED)
        return connection


class _SentinelRoute(_Route):
    """redis+sentinel://HOST:PORT,HOST:PORT/SERVICE/DB: each connect asks a sentinel for the primary."""

    def __init__(self, url: str) -> None:
        before, self._sentinels, path, query = _split(url, 26379)
        service, _, database = path.partition("/")
        if not service:
            raise InvalidArgument(f"a redis+sentinel:// URL needs the service's name: {_WRITE_URLS}")
        self._service = service
        super().__init__(f"redis://{before}sentinel/{database}{query}")
        self._sentinel_options = {
            "username": self._options.pop("sentinel_username", None),
            "password": self._options.pop("sentinel_password", None),
        }

    def address(self, key: bytes) -> str:
        return self._service

    def connect(self, address: str) -> Any:
        text = "no sentinel"
        for host, port in list(self._sentinels):
            try:
                sentinel = self._open({"host": host, "port": port, "db": 0, **self._sentinel_options})
            except _Lost as error:
                text = f"sentinel {_join(host, port)}: {error}"
                continue
            try:
                sentinel.send_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._service)
                found = sentinel.read_response()
            except redis.RedisError as error:
                text = f"sentinel {_join(host, port)}: {_connect_text(error, self.has_password)}"
                continue
            finally:
                sentinel.disconnect()
            if not found:
                text = f"sentinel {_join(host, port)} knows no service {self._service}"
                continue
            return self._open({"host": _text(found[0]), "port": int(found[1])})
        raise _Lost(text)


class _ClusterRoute(_Route):
    """redis+cluster://HOST:PORT,HOST:PORT: where a key is, the servers' MOVED replies tell; no map is fetched."""

    clustered = True

    def __init__(self, url: str) -> None:
        before, self._seeds, _, query = _split(url, 6379)
        super().__init__(f"redis://{before}{self._seeds[0][0]}{query}")
        self._places: dict[bytes, str] = {}

    def address(self, key: bytes) -> str:
        return self._places.get(key) or _join(*self._seeds[0])

    def moved(self, key: bytes, text: str) -> bool:
        word, _, place = text.split(" ")[:3]
        if word != "MOVED" or ":" not in place:
            return False
        if place.startswith(":"):  # An old server that does not know its own name: the one we asked.
            place = self._seeds[0][0] + place
        if len(self._places) > _TARGETS:
            self._places.clear()
        self._places[key] = place
        return True

    def failed(self, address: str) -> None:
        self._places = {key: place for key, place in self._places.items() if place != address}
        if address == _join(*self._seeds[0]):
            self._seeds.append(self._seeds.pop(0))

    def connect(self, address: str) -> Any:
        host, _, port = address.rpartition(":")
        return self._open({"host": host.strip("[]"), "port": int(port)})


def _route(url: str) -> _Route:
    scheme = url.partition("://")[0].lower()
    kinds = {"redis+sentinel": _SentinelRoute, "redis+cluster": _ClusterRoute}
    return kinds.get(scheme, _Route)(url)


def _split(url: str, port: int) -> tuple[str, list[tuple[str, int]], str, str]:
    """Of a URL with several hosts: the user's part with its @, the hosts, the path, and the query with its ?."""
    rest, mark, query = url.partition("://")[2].partition("?")
    place, _, path = rest.partition("/")
    before, at, hosts = place.rpartition("@")
    found = []
    for text in hosts.split(","):
        host, colon, number = text.rpartition(":")
        if colon and not number.isdecimal():
            raise InvalidArgument(f"the Redis URL cannot be: {_WRITE_URLS}")
        found.append((host.strip("[]"), int(number)) if colon else (text, port))
    if not all(host for host, _ in found):
        raise InvalidArgument(f"the Redis URL has no host: {_WRITE_URLS}")
    return before + at, found, path, mark + query


# ----------------------------------------------------------------------------
# Bytes, replies, errors.

_NO_REDIS: Final = "what answers there is no Redis: check host and port"
_REFUSED: Final = "connection refused: is the server running, and are host and port right?"
_WRITE_URLS: Final = (
    "write it like redis://HOST:6379, rediss://USER:PASSWORD@HOST:6379, unix:///run/redis.sock, "
    "redis+sentinel://HOST:26379/SERVICE or redis+cluster://HOST:6379"
)


def _pack(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join([b"$%d\r\n%b\r\n" % (len(word), word) for word in words])


def _begin(*words: bytes) -> bytes:
    """A command that lacks its last word."""
    return b"*%d\r\n" % (len(words) + 1) + b"".join([b"$%d\r\n%b\r\n" % (len(word), word) for word in words])


def _entries(reply: Any) -> list[Any]:
    """The entries of an XREAD of one stream: a map in RESP3, a list of pairs in RESP2, nothing when idle."""
    if not reply:
        return []
    entries: list[Any] = next(iter(reply.values())) if isinstance(reply, dict) else reply[0][1]
    return entries


def _last_id(reply: Any) -> bytes:
    """last-generated-id of an XINFO STREAM: a map in RESP3, a flat list in RESP2."""
    fields = reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))
    return bytes(fields[b"last-generated-id"])


def _number(identity: bytes) -> tuple[int, int]:
    """A stream id as what it is, so that ids compare."""
    milliseconds, _, sequence = identity.partition(b"-")
    return int(milliseconds), int(sequence)


def _join(host: Any, port: Any) -> str:
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _os_text(error: OSError) -> str:
    if isinstance(error, ConnectionRefusedError):
        return _REFUSED
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its TLS certificate is not trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return "TLS failed: does the server speak TLS on that port? (rediss:// does, redis:// does not)"
    if isinstance(error, socket.gaierror):
        return "the host's name is unknown"
    if isinstance(error, ConnectionResetError | BrokenPipeError):
        return "the server closed the connection"
    if isinstance(error, TimeoutError):
        return (
            f"no answer within {_CONNECT_S:g} s: is it a Redis, does it run, and is redis:// or rediss:// (TLS) right?"
        )
    if error.errno == errno.ENOENT:
        return "there is no such socket: is the server running?"
    return error.strerror or type(error).__name__


def _connect_text(error: BaseException, has_password: bool) -> str:
    """Why connecting, or asking, failed: our words, never the URL's."""
    cause: BaseException | None = error
    for _ in range(8):
        if isinstance(cause, OSError) and not isinstance(cause, redis.RedisError):
            return _os_text(cause)
        if cause is None:
            break
        cause = cause.__cause__ or cause.__context__
    text = str(error)
    word = text.partition(" ")[0]
    if isinstance(error, redis.AuthenticationError):
        return _REPLIES["WRONGPASS" if has_password else "NOAUTH"]
    if word in _REPLIES:
        return _REPLIES[word].format(key="the key", text=text)
    if isinstance(error, redis.exceptions.NoPermissionError):
        return _REPLIES["NOPERM"].format(text=text)
    if isinstance(error, redis.BusyLoadingError):
        return _REPLIES["LOADING"]
    if isinstance(error, redis.InvalidResponse | hiredis.ProtocolError):
        return _NO_REDIS
    if isinstance(error, redis.TimeoutError):
        return _os_text(TimeoutError())
    if isinstance(error, redis.ResponseError):
        return f"the server says: {text}"
    if "max number of clients" in text:
        return "the server has as many clients as it allows"
    return "the connection was closed: is it a Redis, and is redis:// or rediss:// (TLS) right?"
