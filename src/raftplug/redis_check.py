"""A look at a Redis over a connection of its own: can it be used, what is it, and what is wrong with it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final

import hiredis

from raftplug.embedded import server_version
from raftplug.errors import TransportError
from raftplug.redis_connection import (
    PARTIAL,
    READ_BYTES,
    Lost,
    Route,
    as_text,
    connect_text,
    may_pass,
    pack,
    reply_text,
)
from raftplug.stream_ids import START

_PASSING: Final = frozenset(("OOM", "READONLY", "LOADING", "MISCONF", "NOREPLICAS", "MASTERDOWN", "CLUSTERDOWN", "ASK"))
_PINGS: Final = 5


def look(route: Route, streams: Sequence[bytes], nobody: bytes, ttl_s: int) -> dict[str, Any]:
    """See whether the server does all that the transport asks of it.  It blocks, a second or so at most each step.

    Args:
        route: to the server.
        streams: the keys of the transport's own, its inbox first; they are only looked at.
        nobody: the key of a stream that no process has: with NOMKSTREAM, what the transport does can be tried on it
            without a trace.
        ttl_s: the time to live that the transport gives its keys, seconds.

    Returns: what `RedisStreams.check` does.

    Raises:
        TransportError: it cannot be used; one line that says why and what to do.  Its `may_pass` says whether waiting
            may help.
    """
    address = route.address(streams[0])
    try:
        connection = route.connect(address)
        try:
            return _Look(route, address, connection._sock).look(streams, nobody, ttl_s)
        finally:
            connection.disconnect()
    except Lost as error:
        text = str(error)
    except (OSError, hiredis.HiredisError) as error:
        text = connect_text(error, route.has_password)
    refusal = TransportError(f"redis {address}: {text}")
    refusal.may_pass = may_pass(text)
    raise refusal


class _Look:
    def __init__(self, route: Route, address: str, socket: Any) -> None:
        self._route = route
        self._address = address
        self._socket = socket
        self._reader = hiredis.Reader(notEnoughData=PARTIAL)

    def look(self, streams: Sequence[bytes], nobody: bytes, ttl_s: int) -> dict[str, Any]:
        times, problems = [], []
        for _ in range(_PINGS):
            before = time.perf_counter()
            self._insist(streams[0], self._ask(b"PING"))
            times.append(time.perf_counter() - before)
        for key in streams:
            self._insist(key, self._ask(b"XINFO", b"STREAM", key))
        for words in (
            (b"XADD", nobody, b"NOMKSTREAM", b"*", b"o", b""),
            (b"XREAD", b"COUNT", b"1", b"STREAMS", nobody, START),
            (b"EXPIRE", nobody, b"%d" % ttl_s),
        ):
            problem = self._insist(nobody, self._ask(*words))
            if problem:
                problems.append(problem)
        info = self._ask(b"INFO", b"server")
        config = self._ask(b"CONFIG", b"GET", b"maxmemory-policy")
        if isinstance(config, dict):
            config = [word for pair in config.items() for word in pair]
        policy = as_text(config[1]) if isinstance(config, list) and len(config) == 2 else None
        if policy not in (None, "noeviction"):
            text = f"maxmemory-policy is {policy}, so inboxes may be evicted and messages lost: set it to noeviction"
            problems.append(f"redis {self._address}: {text}")
        return {
            "reachable": True,
            "latency_ms": round(sorted(times)[len(times) // 2] * 1000, 3),
            "server": (server_version(info) if isinstance(info, bytes) else "") or None,
            "maxmemory_policy": policy,
            "problems": problems,
        }

    def _ask(self, *words: bytes) -> Any:
        self._socket.sendall(pack(*words))
        while (reply := self._reader.gets()) is PARTIAL:
            data = self._socket.recv(READ_BYTES)
            if not data:
                raise Lost("the server closed the connection: is that a Redis?")
            self._reader.feed(data)
        return reply

    def _insist(self, key: bytes, reply: Any) -> str | None:
        """Raise TransportError for an error reply that only a human can mend; return the text of any other."""
        if not isinstance(reply, hiredis.ReplyError):
            return None
        text = str(reply)
        word = text.partition(" ")[0]
        if "no such key" in text or (self._route.clustered and word in ("MOVED", "ASK")):
            return None
        line = f"redis {self._address}: {reply_text(text, key)}"
        if word in _PASSING:
            return line
        raise TransportError(line)
