"""Members come and go, and leadership moves, on real processes over a real server."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from processes import PEERS, Cluster, Running, raftplug, refused, succeeded, wait_until
from processes import cluster as cluster
from processes import server as server
from raftplug import Client
from raftplug.errors import InvalidArgument, NotLeader, OutcomeUnknown, Unavailable


@pytest.fixture
def three(cluster: Cluster) -> Cluster:
    """Three nodes that have just been bootstrapped, and hold something."""
    cluster.start(*PEERS, bootstrap=True)
    cluster.propose({"op": "put", "key": "a", "value": "before"})
    return cluster


def members(cluster: Cluster, action: str, *arguments: str) -> dict[str, Any]:
    done = succeeded(cluster.run(f"members {action}", *arguments, "--json"))
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


class Load:
    """A client that writes all the time: `gap` is the longest time, s, between two acknowledgements."""

    def __init__(self, cluster: Cluster) -> None:
        self.written: list[int] = []
        self.errors: list[BaseException] = []
        self.gap = 0.0
        self._stopping = False
        self._client = Client(cluster.server.url, group="g")
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        last = time.monotonic()
        while not self._stopping:
            try:
                self._client.propose({"op": "append", "key": "load", "value": f"{len(self.written)};"})
            except Exception as error:
                self.errors.append(error)
                return
            self.written.append(len(self.written))
            now = time.monotonic()
            last, self.gap = now, max(self.gap, now - last)

    def end(self) -> None:
        self._stopping = True
        self._thread.join()
        self._client.close()


def test_a_node_joins_catches_up_and_votes_while_writes_go_on(three: Cluster) -> None:
    load = Load(three)
    three.start("n4", join=True)
    assert members(three, "add", "n4")["voters"] == ["n1", "n2", "n3", "n4"]
    wait_until(lambda: len(load.written) > 100, "writes go on")
    load.end()
    assert not load.errors
    # With two of the first three gone, n4 is needed for a quorum of three of four: one may go.
    three.kill(next(name for name in PEERS if name != three.leader()))
    assert three.read("a") == "before"
    three.propose({"op": "put", "key": "a", "value": "after"})
    assert three.read("a") == "after"


def test_every_node_is_replaced_one_by_one_and_nothing_is_lost(three: Cluster) -> None:
    load = Load(three)
    for old, new in (("n1", "m1"), ("n2", "m2"), ("n3", "m3")):
        three.start(new, join=True)
        now = members(three, "replace", old, new)
        assert new in now["voters"] and old not in now["voters"]
        process = three.nodes[old]
        assert process.wait() == 0, process.stderr()  # It stops by itself.
        assert "was removed" in process.stderr()
    load.end()
    assert not load.errors
    assert members(three, "list")["voters"] == ["m1", "m2", "m3"]
    assert three.read("load") == "".join(f"{number};" for number in load.written)


def test_a_removed_leader_hands_over_by_stepping_down(three: Cluster) -> None:
    leader = three.leader()
    now = members(three, "remove", leader)
    assert leader not in now["voters"]
    assert three.nodes[leader].wait() == 0, three.nodes[leader].stderr()
    assert wait_until(lambda: three.status()["leader"] not in (None, leader), "another leader")
    three.propose({"op": "put", "key": "a", "value": "after"})


def test_a_member_set_survives_a_restart_of_all(three: Cluster) -> None:
    three.start("n4", join=True)
    members(three, "add", "n4", "--learner")
    members(three, "demote", next(name for name in PEERS if name != three.leader()))
    before = members(three, "list")
    assert "n4" in before["learners"] and len(before["voters"]) == 2
    assert {row["id"]: row["role"] for row in three.status()["nodes"]}["n4"] == "learner"
    three.kill(*PEERS, "n4")
    three.start(*PEERS, "n4")
    assert members(three, "list") == before


def test_leadership_moves_to_a_named_node_at_once(three: Cluster) -> None:
    other = next(name for name in PEERS if name != three.leader())
    done = succeeded(three.run("members transfer", other, "--json"))
    assert json.loads(done.stdout) == {"leader": other}
    assert three.leader() == other


def test_a_transfer_to_a_node_that_stands_still_ends_and_writes_resume(three: Cluster) -> None:
    leader = three.leader()
    target = next(name for name in PEERS if name != leader)
    with Client(three.server.url, group="g") as client:
        three.hold(target)
        assert client.transfer_leadership(target) == target
        began = time.monotonic()
        client.propose({"op": "put", "key": "a", "value": "after"})
        took = time.monotonic() - began
        # It waited while leadership moved: an election timeout (500 ms), and there is room for a busy machine.
        assert took < 3, took
        assert client.status()["leader"] == leader
        three.nodes[target].process.send_signal(signal.SIGCONT)

        def leads() -> bool:
            client.transfer_leadership(target)
            return bool(client.status()["leader"] == target)

        wait_until(leads, "it leads once it has caught up")


def test_whoever_prefers_not_to_lead_leaves_it_to_the_others(cluster: Cluster) -> None:
    cluster.start("n3", bootstrap=True)  # First: whoever is alone with the other reluctant one leads at last.
    cluster.start("n1", "n2", bootstrap=True, RAFTPLUG_LEAD_RELUCTANCE="3")
    for _ in range(3):  # By chance alone it would not be n3 each time.
        assert cluster.leader() == "n3"
        cluster.kill(*PEERS)
        cluster.start("n3")
        cluster.start("n1", "n2", RAFTPLUG_LEAD_RELUCTANCE="3")
    cluster.kill("n3")
    assert cluster.leader() in ("n1", "n2"), "they lead where nobody else can"


def test_a_node_that_was_down_when_it_was_removed_disturbs_nobody_and_stops(three: Cluster) -> None:
    removed = next(name for name in PEERS if name != three.leader())
    three.kill(removed)
    members(three, "remove", removed)
    before = three.status()
    directory = three.directory / f"{removed}.log"
    options = ("--id", removed, "--machine", "kv", "--data-dir", str(three.directory / removed), *three.options)
    process = Running(directory, "node", *options)
    three.others.append(process)
    assert process.wait() == 0, process.stderr()
    assert "was removed" in process.stderr()
    after = three.status()
    assert (after["term"], after["leader"]) == (before["term"], before["leader"])


def test_a_lost_disk_counts_for_nothing_under_its_old_id_until_it_is_added_anew(three: Cluster) -> None:
    leader = three.leader()
    lost, other = (name for name in PEERS if name != leader)
    three.kill(lost)
    shutil.rmtree(three.directory / lost)
    three.start(lost, bootstrap=True)
    with Client(three.server.url, group="g") as client:
        three.kill(other)
        # Two of three processes run, but only one of them has what the group acknowledged.
        with pytest.raises((OutcomeUnknown, NotLeader, Unavailable)):
            client.propose({"op": "put", "key": "a", "value": "lost"}, timeout=3)
        three.start(other)
        client.propose({"op": "put", "key": "a", "value": "after"}, timeout=30)
        client.change_members("remove", lost, timeout=30)
        three.nodes.pop(lost).end()
        shutil.rmtree(three.directory / lost)
        three.start(lost, join=True)
        client.change_members("add", lost, timeout=30)
        assert client.wait_for_voter(lost)["voters"] == list(PEERS)
    three.kill(other)
    three.propose({"op": "put", "key": "b", "value": "it counts"})
    assert three.read("a") == "after"


def test_a_leader_that_is_told_to_stop_hands_over_first(three: Cluster) -> None:
    load = Load(three)
    wait_until(lambda: len(load.written) > 20, "writes go on")
    leader = three.leader()
    process = three.nodes[leader]
    process.end(signal.SIGTERM)
    count = len(load.written)
    wait_until(lambda: len(load.written) > count + 20, "writes go on under another leader")
    load.end()
    assert not load.errors
    assert three.status()["leader"] not in (None, leader)


def test_what_cannot_be_is_one_line(three: Cluster) -> None:
    refused(three.run("members remove", "n9"), 2, "n9", "no member")
    refused(three.run("members promote", "n9"), 2, "n9", "no learner")
    refused(three.run("members transfer", "n9"), 2, "n9", "no voter")
    refused(three.run("members demote", "n9"), 2, "n9", "no member")
    refused(three.run("members replace", "n9", "n5"), 2, "n9", "no voter")
    refused(three.run("members replace", "n1", "n1"), 2, "another")
    refused(three.run("members add", "n2", "--learner"), 2, "n2", "demote")
    with Client(three.server.url, group="g") as client:
        for action, ids, why in (
            ("remove", PEERS, "last voter"),
            ("replace", ["n1"], "two members"),
            ("replace", ["n1", "n1"], "another"),
        ):
            with pytest.raises(InvalidArgument, match=why):
                client.change_members(action, *ids)
    assert members(three, "list") == {
        "voters": list(PEERS),
        "outgoing": [],
        "learners": [],
        "joining": [],
        "witnesses": [],
    }


def test_a_replacement_by_the_client_is_made_once_however_often_it_is_asked_for(three: Cluster) -> None:
    three.start("n4", join=True)
    with Client(three.server.url, group="g") as client:
        for _ in range(2):
            assert client.change_members("replace", "n1", "n4", timeout=30)["voters"] == ["n2", "n3", "n4"]


def test_one_directory_goes_on_after_a_quorum_is_lost_for_good(three: Cluster) -> None:
    three.kill(*PEERS)
    recover = ("members", "recover", "--id", "n1", "--data-dir", str(three.directory / "n1"))
    explained = raftplug(*recover)
    assert explained.returncode == 2 and "nothing was changed: give --unsafe" in explained.stderr
    done = succeeded(raftplug(*recover, "--unsafe", "--json"))
    assert "must never run again" in done.stderr
    (told,) = json.loads(done.stdout.splitlines()[-1])["groups"]
    assert sorted(told["voters_before"]) == sorted(PEERS)
    three.start("n1")
    assert three.read("a") == "before"
    three.start("n4", join=True)
    assert members(three, "add", "n4")["voters"] == ["n1", "n4"]
    three.propose({"op": "put", "key": "b", "value": "after"})


def test_an_empty_directory_holds_nothing_to_recover(tmp_path: Path) -> None:
    told = raftplug("members", "recover", "--id", "n1", "--data-dir", str(tmp_path), "--unsafe")
    assert told.returncode == 2
    assert told.stderr.splitlines()[-1].startswith(f"Error: there is nothing to recover in {tmp_path}")
    assert "--bootstrap" not in told.stderr and not list(tmp_path.iterdir())
