"""The default transport: everybody reads a stream of his own on a Redis, and appends to the others' (DESIGN 7).

Nothing here has a thread at work: the owner's loop calls `send_message`, `receive_messages` and `wait`, and `wait`
polls a reader's socket (one XREAD BLOCK under way), a writer's (everything else, pipelined) and a wake-up.  redis-py
connects, encrypts and authenticates, in a short thread, since names and handshakes block; then the socket is ours.

What lies on the server, all of it with a time to live of ten minutes::

    PREFIX:{CLUSTER/ID}:inbox   a node's stream    entries "f": a frame; "o": its owner opened it, with a random mark
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
import logging
import os
import re
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import hiredis
import msgpack

from raftplug import threads
from raftplug.cluster import Cluster, is_client
from raftplug.constants import LARGEST_MESSAGE
from raftplug.errors import InvalidArgument, Unavailable
from raftplug.forks import follow
from raftplug.frames import Id
from raftplug.redis_check import look
from raftplug.redis_connection import (
    NO_REDIS,
    Lost,
    Wire,
    pack,
    pack_beginning,
    pack_last,
    reply_text,
    route,
)
from raftplug.redis_directory import ENTRIES, TTL_S, Directory
from raftplug.settings import Settings
from raftplug.stream_ids import START as START
from raftplug.stream_ids import Cursor as Cursor
from raftplug.stream_ids import FarFuture, entries_of, last_id_of

_logger = logging.getLogger("raftplug")

_REFRESH_S: Final = 60.0
_ANSWER_S: Final = 3.0  # A connection that owes a reply for so long is given up.
_BACKOFF_S: Final = (0.05, 0.2)  # Within an election timeout of the server's return, so that it costs no election.
_TEND_S: Final = 0.25
_CLOSE_S: Final = 0.5
_RETRY_S: Final = 0.25  # After an error reply, before the same is asked again.
_PROBLEM_S: Final = 10.0  # What has not happened again for so long is over.
_DIRECTORY_S: Final = 0.5
_DIRECTORY_CHECK_S: Final = 2.0
_FRAME_BYTES: Final = LARGEST_MESSAGE + 256  # And a command.
_UNANSWERED_BYTES: Final = 16 << 20  # Sent or waiting to be; beyond it frames are dropped, which Raft tolerates.
# Nobody waits for the reply to a frame: they are read when there are so many, or so old.
_OWED: Final = 64
_OWED_BYTES: Final = 1 << 20
_OWED_S: Final = 0.02
_HELD_BYTES: Final = 256 << 10  # Kept for the time after a reconnect: enough for a request, too little to be a backlog.
_COMMAND_BYTES: Final = 256  # What one command costs us besides its frame.
_READ_ENTRIES: Final = 1000
_TARGETS: Final = 10_000
# MAXLEN counts entries, and we want to bound bytes: 16 MB of 64 KB frames, and many more of small ones, since a burst
# of small frames from many clients is no reason to lose any.  So an inbox of such frames holds some 32 MB at most.
_INBOX_BYTES: Final = 16 << 20
_LARGE: Final = _INBOX_BYTES // (64 << 10)
_SMALL_BYTES: Final = 4 << 10
_SMALL: Final = _INBOX_BYTES // _SMALL_BYTES

_PREFIX: Final = re.compile(r"[A-Za-z0-9._:-]{1,64}")

# What a reply answers.
_KEPT, _SENT, _MADE, _INFO, _READ, _ANNOUNCED, _LISTED, _LISTED_INFO, _PLACED = range(9)
_HEALTHY: Final = frozenset((_SENT, _MADE, _READ, _ANNOUNCED, _PLACED))  # A server that does this is a server again.
# How far the own inbox is: not looked at since the last connect, asked about, readable.
_UNKNOWN, _ASKED, _READY = range(3)

_FRAMES: Final = frozenset((_SENT, _PLACED))
_EXHAUSTED: Final = "exhausted the last possible ID"
_HOPS: Final = 5  # So often a frame follows its key through a Redis Cluster.

_RECONNECT: Final = frozenset(("READONLY", "UNBLOCKED"))
_AGAIN_S: Final = 1.0  # A stream of an id of the far future is made again at most so often.
_MARK_S: Final = 3.0
_TWIN: Final = (
    "another live process uses the id {id} in this cluster, and each reads what is meant for the other: stop one of "
    "the two, or give it another id"
)
_FAR_INBOX: Final = "the inbox {key} had an entry of the far future, which another process wrote: it was made again"
_FAR_LIST: Final = "the directory {key} had an entry of the far future, which another process wrote: it was made again"


class _Slot:
    """A connection that should exist: present, being made, or due for another try."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.wire: Wire | None = None
        self.connecting = False
        self.is_starved = False  # No thread could be started to connect.
        self.retired = False  # What its connecting thread brings is not wanted any more.
        self.results: deque[Wire | str] = deque()  # What the connecting thread hands over: a wire, or why not.
        self.retry_at = 0.0
        self.backoff = _BACKOFF_S[0]
        self.expected: deque[tuple[int, bytes, int]] = deque()  # One for each reply owed: what it answers, key, bytes.
        self.sent: deque[tuple[_Target, bytes]] = deque()  # In a Redis Cluster: the frames among these.
        self.unanswered = 0
        self.controls = 0  # Owed replies that are worth waking up for.
        self.since = 0.0  # When the oldest owed reply was asked for, or the last one came.
        self.mask = 0


class _Target:
    """Another process's inbox, and the constant beginnings of the commands that append to it."""

    __slots__ = ("hops", "key", "large", "owed", "place", "small")

    def __init__(self, key: bytes) -> None:
        self.key = key
        # In a Redis Cluster: where the last frame went, how many replies are owed there, and how often frames came back
        # since one was taken.
        self.place = ""
        self.owed = self.hops = 0
        self.small = pack_beginning(b"XADD", key, b"NOMKSTREAM", b"MAXLEN", b"~", b"%d" % _SMALL, b"*", b"f")
        self.large = pack_beginning(b"XADD", key, b"NOMKSTREAM", b"MAXLEN", b"~", b"%d" % _LARGE, b"*", b"f")


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
        signed: whether a cluster key signs what is sent; without one, a sentinel or a Redis Cluster of this machine may
            not lead to another machine.
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
        signed: bool = True,
        **options: Any,
    ) -> None:
        if not _PREFIX.fullmatch(prefix):
            raise InvalidArgument(f"prefix {prefix!r} cannot be: use 1 to 64 letters, digits, and . _ : -")
        self._route = route(url)
        self._route.only_local = self._route.is_local and not signed
        self._prefix = prefix
        self._cluster = cluster
        self._clock = clock
        self._closed = False
        if idle_s is None:
            idle_s = (settings or Settings()).election_timeout_ms / 2000
        self._block_ms = max(1, round(idle_s * 1000))
        self._id = own_id
        self._inbox = self._inbox_of(own_id)
        self._token = os.urandom(8)  # In what marks the inbox as ours.
        self._mark_at = 0.0
        self._again_at = {self._inbox: 0.0}  # When a stream may be made again.
        self._made_again = False  # The inbox is, and its first id was not seen yet.
        self._far = FarFuture(lambda: time.time_ns() // 1_000_000)
        self._inbox_state = _UNKNOWN
        self._inbox_retry_at = 0.0
        self._refresh_at = 0.0
        self._cursor = Cursor()
        self._arm_at = 0.0
        count, block = b"%d" % _READ_ENTRIES, b"%d" % self._block_ms
        self._read_words = pack_beginning(b"XREAD", b"COUNT", count, b"BLOCK", block, b"STREAMS", self._inbox)
        self._messages: list[bytes] = []
        self._queue: deque[tuple[_Target, bytes]] = deque()
        self._queued = 0
        self._targets: dict[Id, _Target] = {}
        self._problems: dict[tuple[str | int, Any], tuple[str, float]] = {}

        self._list = f"{prefix}:directory".encode()
        self._directory = Directory(self._far)
        self._listed = False  # Whether the directory ever took a record of ours.
        self._list_asked = False
        self._list_at = -1e9
        self._list_checked_at = -1e9
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
        self._polling = False
        self._waited = False
        self._by_fd: dict[int, _Slot] = {}
        self._reader = _Slot(self._route.address(self._inbox))
        self._writers: dict[str, _Slot] = {}
        self._tend_at = 0.0  # When the connections are to be looked after; at once if one is missing.
        self._writer(self._inbox)
        follow(self)
        self._tend(self._clock())

    def forked(self) -> None:
        """In a child: close its copies of the sockets, else the server takes a dead parent for a live one."""
        self._closed = True
        for slot in [self._reader, *self._writers.values()]:
            for wire in (slot.wire, *slot.results):
                if isinstance(wire, Wire):
                    wire.forked()
        self._wake_in.close()
        self._wake_out.close()

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
            limit = min(remaining, _TEND_S if self._inbox_state == _READY else 0.05)
            woken = self._select(limit)
            if woken or self._messages or self._news or remaining <= 0.0:
                self._news = False
                return
            now = self._clock()

    def flush(self) -> None:
        """Send what is queued."""
        if self._queue and not self._closed:
            self._send(self._clock())

    def wake(self) -> None:
        """Make the current or the next `wait` return at once.  Any thread."""
        self._wake_called = True
        if self._polling:
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
        return self._directory.records()

    def directory_is_complete(self) -> bool:
        """Whether `directory` shows every process that announces itself."""
        return self._directory.is_complete(self._clock())

    def believe(self, is_believed: Callable[[dict[str, Any]], bool]) -> None:
        """Keep the records of which `is_believed` says so before all others."""
        self._directory.is_believed = is_believed

    def problems(self) -> list[str]:
        """What is wrong now, one line each, without passwords."""
        now = self._clock()
        for slot in list(self._writers.values()):
            if slot.expected:
                self._read_slot(slot, now)
        for key in [key for key, (_, over_at) in self._problems.items() if over_at < now]:
            del self._problems[key]
        return sorted({text for text, _ in self._problems.values()})

    def check(self) -> dict[str, Any]:
        """Look at the server over a connection of its own.  It blocks, a second or so at most each step.

        Returns:
            "reachable" (True), "latency_ms" (the median of five), "server" ("valkey 9.1.2"; None if it may not be
            asked), "maxmemory_policy" (None likewise) and "problems" (one line each).

        Raises:
            TransportError: it cannot be used; one line that says why and what to do.  Its `may_pass` says whether
                waiting may help.
        """
        return look(self._route, (self._inbox, self._list), self._inbox_of("~check"), TTL_S)

    def close(self) -> None:
        """Send what is queued, withdraw the record, delete the own inbox, disconnect: within half a second or so."""
        if self._closed:
            return
        now = self._clock()
        deadline = now + _CLOSE_S
        writer, lister = self._writer(self._inbox), self._writer(self._list)
        with contextlib.suppress(Lost):
            self._turn(now)
            if self._cursor.id is None:
                self._drain(deadline)  # The inbox may have been made, and not been answered yet.
            if writer.wire is not None and self._cursor.id is not None:
                self._command(writer, _KEPT, self._inbox, b"EXPIRE", self._inbox, b"0")
            if self._record is not None and lister.wire is not None:
                self._withdraw(lister, now)
            self._drain(deadline)
            alone = self._listed and self._directory.is_empty() and not self._list_asked
            if self._record is not None and lister.wire is not None and alone:
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
        if now >= self._tend_at:
            self._tend(now)
        for slot in tuple(self._writers.values()):
            if slot.expected and (
                len(slot.expected) >= _OWED or slot.unanswered >= _OWED_BYTES or now - slot.since >= _OWED_S
            ):
                self._read_slot(slot, now)
        if self._inbox_state == _UNKNOWN or self._announce_due or now >= self._refresh_at:
            self._keep(now)
        self._send(now)

    def _send(self, now: float) -> None:
        """Send what is queued, and only then have the server tell of what comes next."""
        if self._queue:
            self._pack_queued(now)
        for slot in self._writers.values():
            if slot.wire is not None and slot.wire.out:
                self._flush_slot(slot)
        reader = self._reader
        if reader.wire is not None:
            if self._inbox_state == _READY and not reader.expected and now >= self._arm_at:
                self._ask(reader, _READ, self._inbox, self._read_words + pack_last(self._cursor.id or START), now)
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
        self._polling = True  # Before the look at the other: whoever calls `wake` after it sees this, and nudges.
        ready = self._poll.poll(0 if self._wake_called else max(0, -int(-limit_s * 1000 // 1)))
        self._polling = False
        for fd, _ in ready:
            if fd == self._wake_fd:
                with contextlib.suppress(BlockingIOError):
                    self._wake_in.recv(4096)
                self._nudged = False
            elif fd in self._by_fd:
                self._read_slot(self._by_fd[fd], self._clock())
        woken = self._wake_called
        if woken:
            self._wake_called = False
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
            self._tend_at = 0.0
        return slot

    def _tend(self, now: float) -> None:
        """Adopt connections that were made, and have missing ones made."""
        self._tend_at = now + _TEND_S
        for slot in [self._reader, *self._writers.values()]:
            if slot.wire is None:
                if slot.results:
                    self._adopt(slot, slot.results.popleft(), now)
                elif not slot.connecting and now >= slot.retry_at:
                    if slot is self._reader:
                        slot.address = self._route.address(self._inbox)  # It may be elsewhere by now.
                    self._begin_to_connect(slot, now)
            elif slot.expected and now - slot.since > _ANSWER_S + (
                self._block_ms / 1000 if slot is self._reader else 0
            ):
                self._read_slot(slot, now)  # It may lie there unread: we may have been the ones who slept.
                if slot.wire is not None and slot.expected and slot.since < now:
                    self._lose(slot, "the server does not answer", now)
            if slot.wire is None:
                self._tend_at = 0.0

    def _begin_to_connect(self, slot: _Slot, now: float) -> None:
        slot.connecting = True
        try:
            threads.start(f"raftplug-connect-{slot.address}", self._connect, slot, slot.address)
        except Unavailable as error:  # Threads may end, and the next attempt succeed.
            slot.connecting = False
            if not slot.is_starved:
                _logger.error("%s", self._at(slot.address, str(error)))
            slot.is_starved = True
            self._back_off(slot, str(error), now)
        else:
            slot.is_starved = False

    def _connect(self, slot: _Slot, address: str) -> None:
        """In a thread of its own, which ends with it."""
        result: Wire | str
        try:
            result = Wire(self._route.connect(address))
        except Lost as error:
            result = str(error)
        except Exception as error:
            result = f"cannot connect ({type(error).__name__})"
        slot.results.append(result)
        if self._closed or slot.retired:
            with contextlib.suppress(IndexError):
                self._discard(slot.results.popleft())
        self._nudge()

    def _adopt(self, slot: _Slot, result: Wire | str, now: float) -> None:
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
            self._directory.start_again()  # The records are few, and reading them again is harmless.
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
        self._tend_at = 0.0
        slot.expected.clear()
        for target, _ in slot.sent:
            target.owed = 0
        slot.sent.clear()
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
            except Lost as error:
                self._lose(slot, str(error), self._clock())

    def _read_slot(self, slot: _Slot, now: float) -> None:
        if slot.wire is None:
            return
        try:
            replies = slot.wire.read()
        except Lost as error:
            self._lose(slot, str(error), now)
            return
        if slot.wire.moved:
            slot.wire.moved = False
            slot.since = now
        returned: list[tuple[_Target, bytes]] = []
        for reply in replies:
            if not slot.expected:
                unasked = reply_text(str(reply)) if isinstance(reply, hiredis.ReplyError) else NO_REDIS
                self._lose(slot, unasked, now)
                break
            kind, key, size = slot.expected.popleft()
            slot.unanswered -= size
            if kind > _SENT:
                slot.controls -= 1
            if slot.sent and kind in _FRAMES:
                frame = slot.sent.popleft()
                frame[0].owed -= 1
                if not isinstance(reply, hiredis.ReplyError):
                    frame[0].hops = 0
                elif str(reply).startswith("MOVED"):
                    returned.append(frame)
            if isinstance(reply, hiredis.ReplyError):
                self._refused(slot, kind, key, str(reply), now)
                if slot.wire is None:
                    break
                continue
            slot.backoff = _BACKOFF_S[0] if kind in _HEALTHY else slot.backoff
            if self._problems:
                self._problems.pop((kind, key), None)
            if kind > _SENT:
                try:
                    self._answer(slot, kind, key, reply, now)
                except (TypeError, ValueError, IndexError, KeyError, AttributeError):
                    self._lose(slot, "the server's reply has a shape that raftplug does not know", now)
                    break
        if returned:
            self._send_again(returned)

    def _send_again(self, frames: list[tuple[_Target, bytes]]) -> None:
        """Queue, before all others, the frames that a server of a Redis Cluster did not take since another has the key.

        A key's place is known by such an answer alone, so without this the first frame to every process would be lost.
        """
        for target in {frame[0] for frame in frames}:
            target.hops += 1
        for target, message in reversed(frames):
            if target.hops <= _HOPS:
                self._queue.appendleft((target, message))
                self._queued += len(message) + _COMMAND_BYTES

    def _discard(self, result: Wire | str) -> None:
        if isinstance(result, Wire):
            result.close()

    # -------------------------------------------------------------- commands

    def _command(self, slot: _Slot, kind: int, key: bytes, *words: bytes) -> None:
        """Queue a command about `key`."""
        self._ask(slot, kind, key, pack(*words), self._clock())

    def _ask(self, slot: _Slot, kind: int, key: bytes, command: bytes, now: float) -> None:
        if slot.wire is None:
            return
        if not slot.expected:
            slot.since = now
        slot.wire.out += command
        slot.expected.append((kind, key, _COMMAND_BYTES))
        slot.unanswered += _COMMAND_BYTES
        if kind > _SENT:
            slot.controls += 1

    def _pack_queued(self, now: float) -> None:
        """Move queued frames into the writers' buffers: one batch a turn."""
        queue, clustered = self._queue, self._route.clustered
        homeless = clustered and self._cursor.id is None  # An answer would find no inbox: it is on another connection.
        held: deque[tuple[_Target, bytes]] = deque()
        held_bytes = 0
        while queue:
            target, message = queue.popleft()
            slot = self._writer(target.key)
            wire = slot.wire
            size = len(message) + _COMMAND_BYTES
            if wire is None or homeless or (target.owed and target.place != slot.address):
                # In the last case what went to another place may come back, and goes first.
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
            slot.unanswered += size
            if not clustered:
                slot.expected.append((_SENT, target.key, size))
                continue
            target.place = slot.address
            target.owed += 1
            slot.sent.append((target, message))
            if self._route.knows(target.key):
                slot.expected.append((_SENT, target.key, size))
            else:  # The reply may say that the key is elsewhere, and is waited for.
                slot.expected.append((_PLACED, target.key, size))
                slot.controls += 1
        while held_bytes > _HELD_BYTES:
            held_bytes -= len(held.popleft()[1]) + _COMMAND_BYTES
        self._queue, self._queued = held, held_bytes

    def _keep(self, now: float) -> None:
        """See to the own inbox and to the directory."""
        slot = self._writer(self._inbox)
        if slot.wire is not None:
            if self._inbox_state == _UNKNOWN and now >= self._inbox_retry_at:
                self._inbox_state = _ASKED
                if self._cursor.id is not None:
                    # Before the marker is added: its id would hide that the stream had fallen behind the cursor.
                    self._command(slot, _INFO, self._inbox, b"XINFO", b"STREAM", self._inbox)
                self._make_inbox(slot, now)
            elif self._inbox_state == _READY and now >= self._refresh_at:
                self._refresh_at = now + _REFRESH_S
                self._command(slot, _KEPT, self._inbox, b"EXPIRE", self._inbox, b"%d" % TTL_S)
        if self._announce_due and self._record is not None:
            slot = self._writer(self._list)
            if slot.wire is not None:
                self._announce_due = False
                self._add_record(slot, self._record)

    def _make_inbox(self, slot: _Slot, now: float) -> None:
        self._refresh_at = now + _REFRESH_S
        self._mark(slot, _MADE)

    def _mark(self, slot: _Slot, kind: int) -> None:
        """Add to the inbox that this process reads it, so that another process that reads it, too, finds the mark."""
        words = (b"XADD", self._inbox, b"MAXLEN", b"~", b"%d" % _LARGE, b"*", b"o", self._token)
        self._command(slot, kind, self._inbox, *words)

    def _may_make_again(self, key: bytes, text: str, now: float) -> bool:
        """Whether a stream that holds an id of the far future may be made again now; a log line says so."""
        if now < self._again_at.get(key, 0.0):
            return False
        self._again_at[key] = now + _AGAIN_S
        self._problem("far", key, text.format(key=key.decode()))
        return True

    def _make_inbox_again(self, slot: _Slot, now: float) -> bool:
        if not self._may_make_again(self._inbox, _FAR_INBOX, now):
            return False
        self._command(slot, _KEPT, self._inbox, b"EXPIRE", self._inbox, b"0")  # DEL is a right that we need not have.
        self._cursor.id = START
        self._inbox_state = _ASKED
        self._made_again = True
        self._make_inbox(slot, now)
        return True

    def _make_list_again(self, slot: _Slot, now: float) -> None:
        if self._record is not None and self._may_make_again(self._list, _FAR_LIST, now):
            self._command(slot, _KEPT, self._list, b"EXPIRE", self._list, b"0")
            self._directory.start_again()
            self._announce_due = True

    def _add_record(self, slot: _Slot, record: dict[str, Any]) -> None:
        data: bytes = msgpack.packb(record)
        words = (b"XADD", self._list, b"MAXLEN", b"~", b"%d" % ENTRIES, b"*", b"r", data)
        self._command(slot, _ANNOUNCED, self._list, *words)

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
        words = (b"XREAD", b"COUNT", count, b"STREAMS", self._list, self._directory.cursor.id or START)
        self._command(self._writer(self._list), _LISTED, self._list, *words)

    # --------------------------------------------------------------- replies

    def _answer(self, slot: _Slot, kind: int, key: bytes, reply: Any, now: float) -> None:
        if kind == _READ:
            entries = entries_of(reply)
            if entries:
                self._messages += [fields[1] for _, fields in entries if fields[0] == b"f"]
                self._cursor.id = last = entries[-1][0]
                if any(fields[0] == b"o" and fields[1] not in (b"", self._token) for _, fields in entries):
                    self._see_twin(now)
                if self._far.holds(last) and (writer := self._writer(self._inbox)).wire is not None:
                    self._make_inbox_again(writer, now)
            elif (writer := self._writer(self._inbox)).wire is not None:
                # Idle: perhaps nobody speaks, perhaps the stream is gone or has fallen behind the cursor.
                self._inbox_state = _ASKED
                self._command(writer, _INFO, self._inbox, b"XINFO", b"STREAM", self._inbox)
        elif kind == _MADE:
            if self._made_again:
                self._made_again = False
                self._far.learn(reply)
            elif self._far.holds(reply) and self._make_inbox_again(slot, now):
                return
            if self._cursor.id is None:
                self._cursor.id = bytes(reply)
            self._inbox_state = _READY
            # Only now: a key that refuses an XADD is somebody else's, and must not be given an end.
            self._command(slot, _KEPT, self._inbox, b"EXPIRE", self._inbox, b"%d" % TTL_S)
        elif kind == _ANNOUNCED:
            self._listed = True
            self._command(slot, _KEPT, self._list, b"EXPIRE", self._list, b"%d" % TTL_S)
            if self._far.holds(reply):
                self._make_list_again(slot, now)
        elif kind == _INFO:
            last = last_id_of(reply)
            if self._far.holds(last) and self._make_inbox_again(slot, now):
                return
            self._cursor.compare(last)
            if not self._making(slot):
                self._inbox_state = _READY
        elif kind == _LISTED:
            self._list_asked = False
            entries = entries_of(reply)
            self._news |= self._directory.learn(entries, len(entries) < _READ_ENTRIES, now)
            if len(entries) >= _READ_ENTRIES:
                self._ask_directory(now)
            elif not entries and now - self._list_checked_at >= _DIRECTORY_CHECK_S and not self._closed:
                self._list_checked_at = now
                self._command(slot, _LISTED_INFO, self._list, b"XINFO", b"STREAM", self._list)
        elif kind == _LISTED_INFO:
            self._directory.compare(last_id_of(reply))
        elif kind == _PLACED:
            self._route.settle(key, slot.address)

    def _refused(self, slot: _Slot, kind: int, key: bytes, text: str, now: float) -> None:
        """An error reply."""
        word = text.partition(" ")[0]
        if kind in (_INFO, _LISTED_INFO) and "no such key" in text:
            if kind == _INFO:
                self._gone(slot, now)
            else:
                self._directory.start_again()
                self._announce_due = self._record is not None
            return
        if word in ("MOVED", "ASK") and self._route.moved(key, text):
            self._follow(key, now)
            return
        if _EXHAUSTED in text and self._make_again(slot, kind, now):
            return
        line = self._at(slot.address, reply_text(text, key))
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
            if self._cursor.id is None:
                self._inbox_state = _UNKNOWN
                self._inbox_retry_at = now + _RETRY_S
            else:
                self._inbox_state = _READY
        elif kind == _INFO and not self._making(slot):
            self._inbox_state = _READY
        elif kind == _LISTED:
            self._list_asked = False

    def _make_again(self, slot: _Slot, kind: int, now: float) -> bool:
        """Make a stream of ours again that takes no entry any more; whether it was one."""
        if kind == _MADE:
            self._made_again = False
            return self._make_inbox_again(slot, now)
        if kind == _ANNOUNCED:
            self._make_list_again(slot, now)
        return kind == _ANNOUNCED

    def _see_twin(self, now: float) -> None:
        """Another process reads our inbox: say so, here and there."""
        self._problem("twin", None, _TWIN.format(id=self._id))
        slot = self._writer(self._inbox)
        if now >= self._mark_at and slot.wire is not None:
            self._mark_at = now + _MARK_S
            self._mark(slot, _KEPT)

    def _gone(self, slot: _Slot, now: float) -> None:
        """The own inbox is not there any more: whatever comes next is new."""
        self._cursor.id = START
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
                self._tend_at = 0.0
        elif key == self._list:
            self._list_asked = False
            self._list_at = -1e9
            self._directory.start_again()
            self._announce_due = self._record is not None
        self._writer(key)

    # ----------------------------------------------------------------- words

    def _inbox_of(self, id: Id) -> bytes:
        tag = id if is_client(id) else f"{self._cluster.hex()[:16]}/{id}"
        return f"{self._prefix}:{{{tag}}}:inbox".encode()

    def _problem(self, kind: str | int, about: Any, text: str, lasting_s: float = _PROBLEM_S) -> None:
        self._problems[(kind, about)] = (text, self._clock() + lasting_s)

    def _at(self, address: str, text: str) -> str:
        return f"redis {address}: {text}"
