"""What a follower is sent ahead, and what a leader holds, stays bounded: in real nodes over a real server."""

from __future__ import annotations

import contextlib
import signal
import time
from typing import Any

import pytest
import redis

from processes import Cluster, cluster, server, wait_until
from raftplug import Client, Node, Settings
from raftplug.errors import Overloaded, RaftplugError, TooLarge
from test_reads import leading

__all__ = ["cluster", "server"]


def put(number: int, size: int = 1_000) -> dict[str, Any]:
    return {"op": "put", "key": f"k{number}", "value": "v" * size}


@contextlib.contextmanager
def stopped(cluster: Cluster, *ids: str) -> Any:
    """Processes stand still meanwhile."""
    cluster.hold(*ids)
    try:
        yield
    finally:
        for id in ids:
            cluster.nodes[id].process.send_signal(signal.SIGCONT)


@pytest.mark.parametrize(
    ("settings", "most"),
    [
        (Settings(max_uncommitted_bytes=100_000), 150),
        (Settings(max_pending=50), 60),
    ],
    ids=["bytes", "proposals"],
)
def test_beyond_the_bounds_a_leader_without_a_quorum_refuses_at_once_and_goes_on_later(
    cluster: Cluster, settings: Settings, most: int
) -> None:
    with leading(cluster, settings) as node:
        with stopped(cluster, "n2", "n3"):
            began = time.monotonic()
            futures, refused = [], 0
            for number in range(500):
                try:
                    futures.append(node.propose(put(number), timeout=60))
                except Overloaded:  # Before the loop has even seen it.
                    refused += 1
                if number % 25 == 24:
                    time.sleep(0.005)  # The loop takes what waits for it.
            wait_until(lambda: refused + sum(each.done() for each in futures) >= 500 - most, "the others are refused")
            assert time.monotonic() - began < 5, "at once"
            errors = [each.exception(0) for each in futures if each.done()]
            assert all(isinstance(error, Overloaded) for error in errors)
            accepted = [each for each in futures if not each.done()]
            assert 0 < len(accepted) <= most
        for each in accepted:
            with contextlib.suppress(RaftplugError):  # It may have stepped down meanwhile: then nobody can know.
                each.result(60)
        with Client(cluster.server.url, group="g") as client:
            client.propose(put(1_000), timeout=60)


def test_a_transition_over_the_limit_is_refused_at_once_by_nodes_and_clients(cluster: Cluster) -> None:
    small = Settings(max_transition_bytes=10_000)
    with leading(cluster, small, RAFTPLUG_MAX_TRANSITION_BYTES="10000") as node:
        with pytest.raises(TooLarge):
            node.propose(put(1, 10_001))
        with Client(cluster.server.url, group="g") as client, pytest.raises(TooLarge):
            client.propose(put(1, 10_001))


@pytest.mark.parametrize(
    "settings",
    [Settings(window_bytes=64 << 10), Settings(window_appends=8, max_append_bytes=8 << 10)],
    ids=["bytes", "messages"],
)
def test_a_follower_that_takes_nothing_is_sent_a_window_and_then_only_heartbeats(
    cluster: Cluster, settings: Settings
) -> None:
    with leading(cluster, settings) as node, contextlib.closing(redis.Redis.from_url(cluster.server.url)) as looking:
        (inbox,) = [key for key in looking.keys("*") if b"n3" in key and looking.type(key) == b"stream"]
        with stopped(cluster, "n3"):
            before = looking.memory_usage(inbox)
            for number in range(0, 4_000, 200):
                for each in [node.propose(put(number + n), timeout=60) for n in range(200)]:
                    each.result(60)
            grown = looking.memory_usage(inbox) - before
        # 4 MB were written.  It was sent a window, what was under way, and some hundred bytes a heartbeat.
        assert grown < 1 << 20, grown
        wait_until(lambda: caught_up(cluster), "it has caught up")


def test_a_follower_that_is_a_little_behind_needs_no_snapshot_and_one_that_is_far_behind_does(cluster: Cluster) -> None:
    compacting = Settings(snapshot_entries=50, keep_entries=200)
    with leading(cluster, compacting) as node:
        for count, installs in ((150, False), (600, True)):
            cluster.kill("n3")
            for each in [node.propose(put(number, 10), timeout=60) for number in range(count)]:
                each.result(60)
            wait_until(lambda: is_compacted(node), "the log is compacted")
            cluster.start("n3")
            wait_until(lambda: caught_up(cluster), "it has caught up")
            assert ("snapshot installed" in cluster.nodes["n3"].stderr()) is installs, count


def is_compacted(node: Node) -> bool:
    assert node._loop is not None
    log = node._loop.drivers["g"].raft.log
    return bool(log.base_index > log.last_index - 300)


def caught_up(cluster: Cluster) -> bool:
    rows = {row["id"]: row for row in cluster.status()["nodes"]}
    return bool(rows["n3"]["applied"] and rows["n3"]["applied"] == rows["n1"]["commit"])
