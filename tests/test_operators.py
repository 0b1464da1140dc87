"""What operators are told: by `status`, by logs, by errors; over real servers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import raftplug
import servers

valkey_server = servers.valkey_server
redis_server = servers.redis_server
start_server = servers.start_server
start_redis_cluster = servers.start_redis_cluster
wait_until = servers.wait_until

KEY = "the-key-of-these-tests"
PEERS = ("n1", "n2", "n3")


class Sum(raftplug.StateMachine):
    def __init__(self) -> None:
        self.value = 0

    def apply_transition(self, transition: Any) -> int:
        self.value += transition
        return self.value

    def query(self, request: Any) -> int:
        return self.value


Start = Callable[..., raftplug.Node]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """A function that starts the node `id` on the Redis at `url`; all end with the test."""
    with ExitStack() as stack:

        def start(id: str, url: str, peers: tuple[str, ...] = PEERS, place: str | None = None, **more: Any) -> Any:
            data_dir = tmp_path / (place or id)
            options = {"peers": peers, "bootstrap": not data_dir.exists(), "key": KEY, **more}
            node = raftplug.Node(id, redis=url, data_dir=data_dir, state_machine=Sum(), **options)
            return stack.enter_context(node)

        yield start


def test_over_a_redis_cluster_status_hears_every_node_at_once(
    start: Start, start_redis_cluster: Callable[..., servers.RedisCluster]
) -> None:
    url = start_redis_cluster(3).url
    nodes = [start(id, url) for id in PEERS]
    assert nodes[0].propose(1, timeout=30).result(timeout=31) == 1
    for _ in range(12):
        began = time.monotonic()
        with raftplug.Client(url, key=KEY) as client:
            status = client.status(timeout=10)
        assert status["quorum"] == {"needed": 2, "reachable": 3}
        assert [node["problems"] for node in status["nodes"]] == [[], [], []]
        assert time.monotonic() - began < 5, "nobody was waited for"
