"""Reads by each consistency, in real nodes over a real server; the rules behind them are tested elsewhere."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

import raftplug
from processes import PEERS, Cluster, cluster, server, wait_until
from raftplug import Client, Node, Settings
from raftplug.errors import InvalidArgument, NotLeader, QueryFailed, RaftplugError, Unavailable

__all__ = ["cluster", "server"]

GET = {"op": "get", "key": "k"}
LEASES = {"RAFTPLUG_LEASE_MS": "400"}


def put(value: Any) -> dict[str, Any]:
    return {"op": "put", "key": "k", "value": value}


@contextlib.contextmanager
def node_of(cluster: Cluster, id: str, settings: Settings | None = None, **more: Any) -> Iterator[Node]:
    """A node of the cluster in this process."""
    options: Any = {"redis": cluster.server.url, "group": "g", "machine": "kv", "settings": settings, **more}
    with Node(id, data_dir=cluster.directory / id, **options) as node:
        yield node


@contextlib.contextmanager
def leading(cluster: Cluster, settings: Settings | None = None, **environment: str) -> Iterator[Node]:
    """n1 in this process leads; n2 and n3 are processes."""
    with node_of(cluster, "n1", settings, peers=PEERS, bootstrap=True) as node:
        cluster.start("n2", "n3", bootstrap=True, **environment)
        with Client(cluster.server.url, group="g") as client:
            client.propose(put(0), timeout=30)

            def leads() -> bool:
                if node.leader != "n1":
                    client.transfer_leadership("n1", timeout=30)
                return node.leader == "n1"

            wait_until(leads, "n1 leads")
        yield node


def test_followers_and_learners_answer_linearizably(cluster: Cluster) -> None:
    cluster.start(*PEERS, bootstrap=True)
    with node_of(cluster, "n4", join=True) as learner, Client(cluster.server.url, group="g") as client:
        client.propose(put(0), timeout=30)
        client.change_members("learn", "n4", timeout=30)
        for value in range(50):
            client.propose(put(value), timeout=30)
            assert learner.read(GET, timeout=30) == value
        assert client.members()["learners"] == ["n4"]


def test_reads_that_come_together_share_a_round(cluster: Cluster) -> None:
    with leading(cluster) as node:
        node.read(GET, timeout=30)
        assert node._loop is not None
        before = node._loop._sender.sequence  # How many frames it has sent.
        answers = [node.read_async(GET, timeout=30) for _ in range(2_000)]
        assert [answer.result(30) for answer in answers] == [0] * 2_000
        # A round of its own for each would be 4,000 frames; heartbeats and announcements are among these.
        assert node._loop._sender.sequence - before < 400


def test_a_stale_read_needs_no_quorum_and_a_linearizable_one_does(cluster: Cluster) -> None:
    with leading(cluster) as node:
        cluster.kill("n2", "n3")
        assert node.read(GET, consistency="stale") == 0
        with pytest.raises((Unavailable, NotLeader)):
            node.read(GET, timeout=1)
        with Client(cluster.server.url, group="g") as client:
            assert client.read(GET, consistency="stale") == 0
            with pytest.raises(RaftplugError):
                client.read(GET, timeout=1)


def test_a_lease_answers_alone_until_it_ends_and_is_refused_where_there_are_none(cluster: Cluster) -> None:
    awake = Settings(lease_ms=400, quiet_after_ms=0)
    with (
        leading(cluster, awake, RAFTPLUG_QUIET_AFTER_MS="0", **LEASES) as node,
        Client(cluster.server.url, group="g") as client,
    ):
        wait_until(lambda: reads_alone(cluster, node, client), "it holds a lease")
        cluster.hold("n2", "n3")
        time.sleep(1.0)  # Longer than any lease of this cluster.
        with pytest.raises((Unavailable, NotLeader)):
            node.read(GET, timeout=1, consistency="lease")
    with Client(cluster.server.url, group="g") as client, pytest.raises(InvalidArgument):
        client.read(GET, consistency="for lunch")


def reads_alone(cluster: Cluster, node: Node, client: Client) -> bool:
    """Whether the leader answers while nobody else can."""
    client.transfer_leadership(node.id, timeout=30)  # Whoever stood still on a busy machine may have elected another.
    node.read(GET, timeout=30)  # A quorum answers: a lease begins.
    cluster.hold("n2", "n3")
    try:
        return bool(node.read(GET, timeout=0.2, consistency="lease") == 0)
    except RaftplugError:
        return False
    finally:
        for id in ("n2", "n3"):
            cluster.nodes[id].process.send_signal(signal.SIGCONT)


def test_a_quiet_group_holds_no_lease_and_wakes_on_a_read(cluster: Cluster) -> None:
    with leading(cluster, Settings(lease_ms=400), **LEASES) as node:
        wait_until(lambda: node.status()["quiet"], "it is quiet")
        assert node.read(GET, timeout=30, consistency="lease") == 0
        wait_until(lambda: node.status()["quiet"], "it is quiet again")
        cluster.hold("n2", "n3")
        with pytest.raises((Unavailable, NotLeader)):  # At once: a lease that had been kept would answer.
            node.read(GET, timeout=0.3, consistency="lease")


def test_a_lease_is_not_kept_over_a_transfer(cluster: Cluster) -> None:
    """Whoever led keeps nothing that it could answer by, and shows what its successor acknowledged."""
    with leading(cluster, Settings(lease_ms=400), **LEASES) as node, Client(cluster.server.url, group="g") as client:
        for value in range(1, 11):
            target = "n2" if node.leader == "n1" else "n1"
            client.transfer_leadership(target, timeout=30)
            client.propose(put(value), timeout=30)
            assert node.read(GET, timeout=30, consistency="lease") == value


def test_what_a_query_raises_is_the_readers_error_by_every_consistency(cluster: Cluster) -> None:
    with leading(cluster, Settings(lease_ms=400), **LEASES) as node, Client(cluster.server.url, group="g") as client:
        for consistency in ("linearizable", "lease", "stale"):
            with pytest.raises(QueryFailed):
                client.read({"op": "no such"}, timeout=30, consistency=consistency)
            with pytest.raises(raftplug.errors.QueryFailed):
                node.read({"op": "no such"}, timeout=30, consistency=consistency)
