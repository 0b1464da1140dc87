"""The rules, property by property, and a storm over them.

Bugs that shipped elsewhere are in test_known_bugs.py.  Here stand the defects of the seed (L2 … L13, by the list of
them) that none of those covers, and what raft.py promises in its own docstrings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from raftplug import plain
from raftplug.constants import (
    APPEND,
    APPEND_RESPONSE,
    CANDIDATE,
    CONFIGURATION,
    FOLLOWER,
    HIGHEST,
    INSTALL,
    LEADER,
    LIMIT,
    PRE_CANDIDATE,
    PRE_VOTE,
    PRE_VOTE_RESPONSE,
    PROBE,
    REPLICATE,
    SNAPSHOT,
    TERMS_AHEAD,
    TRANSITION,
    VOTE,
    VOTE_RESPONSE,
)
from raftplug.errors import InvariantViolated, MalformedBlock, MalformedMessage, NotLeader
from rules import ELECTION, HEARTBEAT, Disk, Net
from storm import Storm

LATER = plain.encode([[1, 2], [], [], [], [], [], b"", "as a later version writes it"])


def _proposed(net: Net, leader: Any, count: int, payload: bytes = b"x") -> None:
    for _ in range(count):
        leader.propose(TRANSITION, payload)
    net.pump(leader.id)


def _kinds(*kinds: int) -> Callable[[int, int, Any], bool]:
    return lambda source, target, message: message.kind in kinds


def _state(raft: Any) -> tuple[Any, ...]:
    log = raft.log
    entries = log.slice(log.base_index + 1, log.last_index + 1) if len(log) else b""
    return (raft.term, raft.vote, raft.role, raft.commit, raft.stable, log.base_index, entries)


# ------------------------------------------------------------------ quorums


def test_a_single_node_elects_itself_and_commits_alone(core: Any) -> None:
    net = Net(core, 1)
    leader = net.elect(1)
    _proposed(net, leader, 3)
    assert leader.commit == leader.applicable() == 4
    assert net.sent == []


@pytest.mark.parametrize(("size", "needed"), [(2, 2), (3, 2), (4, 3), (5, 3), (6, 4)])
def test_fewer_than_a_majority_neither_elect_nor_commit(core: Any, size: int, needed: int) -> None:
    """L2: the seed elects with 2 votes of 4 and 3 of 6."""
    net = Net(core, size)
    net.cut = set(range(needed, size + 1))  # One fewer than needed is left.
    net.campaign(1)
    net.deliver()
    assert net.rafts[1].role == PRE_CANDIDATE
    net.cut = set()
    leader = net.elect(1)
    net.deliver()
    committed = leader.commit
    net.cut = set(range(needed, size + 1))
    _proposed(net, leader, 1)
    net.deliver()
    assert leader.commit == committed
    net.cut = set(range(needed + 1, size + 1))
    net.heartbeat(1)
    net.deliver()
    net.heartbeat(1)
    net.deliver()
    assert leader.commit == committed + 1


def test_half_of_the_votes_of_an_election_proper_elect_nobody(core: Any) -> None:
    """L2, after a pre-vote that a majority granted."""
    net = Net(core, 4)
    net.campaign(1)
    net.deliver(_kinds(PRE_VOTE, PRE_VOTE_RESPONSE))
    assert net.rafts[1].role == CANDIDATE
    net.step(1, 2, net.message(VOTE_RESPONSE, 1, flag=True))
    assert net.rafts[1].role == CANDIDATE
    net.step(1, 3, net.message(VOTE_RESPONSE, 1, flag=True))
    assert net.rafts[1].role == LEADER


# -------------------------------------------------------- terms and elections


def test_entries_of_a_newer_term_are_safe_from_a_stale_leader(core: Any) -> None:
    """L4: the seed's follower stays in its old term, so that the old leader can still truncate."""
    net = Net(core, 3)
    net.append(1, source=2, term=1, previous=(0, 0), terms=[1, 1])
    net.append(1, source=3, term=2, previous=(1, 1), terms=[2, 2], commit=3)
    assert net.rafts[1].term == net.disks[1].term == 2
    answer = net.append(1, source=2, term=1, previous=(1, 1), terms=[1])
    assert not answer.flag and answer.term == 2
    assert net.terms(1) == [1, 2, 2]


@pytest.mark.parametrize("kind", [APPEND, SNAPSHOT, APPEND_RESPONSE, VOTE_RESPONSE])
def test_a_leader_that_meets_a_higher_term_steps_down(core: Any, kind: int) -> None:
    """L5: the seed's leader drops every request, whatever its term."""
    net = Net(core, 3)
    leader = net.elect(1)
    net.step(1, 2, net.message(kind, leader.term + 1, index=leader.log.last_index, log_term=leader.term))
    assert leader.role == FOLLOWER and leader.term == net.disks[1].term == 2


def test_a_stale_vote_request_is_refused_once_and_spends_no_vote(core: Any) -> None:
    """L12: the seed refuses it, and goes on to grant it."""
    net = Net(core, 3, {1: Disk(core, term=5)})
    answers = net.step(1, 2, net.message(VOTE, 4, index=9, log_term=4))
    assert [(answer.flag, answer.term) for answer in answers] == [(False, 5)]
    assert net.rafts[1].vote is None
    assert [answer.flag for answer in net.step(1, 3, net.message(VOTE, 5))] == [True]


def test_a_replica_that_hears_its_leader_ignores_candidates(core: Any) -> None:
    """Ongaro 2014 §4.2.3: not even their term is adopted; once the leader is silent, it is."""
    net = Net(core, 3)
    net.elect(1)
    net.deliver()
    for raft in (net.rafts[1], net.rafts[2]):
        before = _state(raft)
        assert net.step(raft.id, 3, net.message(VOTE, 9, index=99, log_term=8)) == []
        assert not net.step(raft.id, 3, net.message(PRE_VOTE, 9, index=99, log_term=8))[-1].flag
        assert _state(raft) == before
    net.wait(ELECTION)
    assert net.step(2, 3, net.message(VOTE, 9, index=99, log_term=8))[-1].flag


@pytest.mark.parametrize("granted", [True, False])
def test_a_voter_is_the_same_after_a_pre_vote(core: Any, granted: bool) -> None:
    net = Net(core, 3, {1: Disk(core, [1, 1], vote=3)})
    raft = net.rafts[1]
    before = (*_state(raft), raft.leader, raft.deadline(), raft.contact)
    net.wait(ELECTION)
    fields = {"index": 2 if granted else 1, "log_term": 1}
    answers = net.step(1, 2, net.message(PRE_VOTE, 7, **fields))
    assert [answer.flag for answer in answers] == [granted]
    assert (*_state(raft), raft.leader, raft.deadline(), raft.contact) == before


def test_an_isolated_replica_does_not_raise_its_term(core: Any) -> None:
    net = Net(core, 3)
    leader = net.elect(1)
    net.cut = {3}
    for _ in range(20):
        net.campaign(3)
        net.deliver()
    assert net.rafts[3].term == 1
    net.cut = set()
    net.now = leader.now
    net.heartbeat(1)
    net.deliver()
    assert leader.role == LEADER and net.rafts[3].leader == 1


# ----------------------------------------------------------------- durability


def test_nothing_that_depends_on_a_write_leaves_before_it(core: Any) -> None:
    """Vote requests, grants and acknowledgements, each in turn."""
    net = Net(core, 3)
    net.slow = {1, 2}
    net.campaign(1)
    net.step(1, 3, net.message(PRE_VOTE_RESPONSE, 1, flag=True))
    assert net.rafts[1].role == CANDIDATE
    assert not [message for _, _, message in net.sent if message.kind == VOTE]
    assert {message.kind for message in net.sync(1)} == {VOTE}
    net.deliver(_kinds(VOTE))
    assert not [source for source, _, message in net.sent if message.kind == VOTE_RESPONSE and source == 2]
    assert [message.kind for message in net.sync(2)] == [VOTE_RESPONSE]
    net.sent.clear()
    net.append(2, source=1, term=1, previous=(0, 0), terms=[1])
    assert not [message for _, _, message in net.sent if message.index]
    assert [(message.index, message.flag) for message in net.sync(2)] == [(1, True)]


@pytest.mark.parametrize("context", [0, 1], ids=["heartbeat", "read round"])
def test_an_answer_that_is_due_during_a_write_claims_nothing_of_it(core: Any, context: int) -> None:
    net = Net(core, 3)
    net.slow = {1}
    net.append(1, source=2, term=1, previous=(0, 0), terms=[1])
    net.sync(1)  # The term, and entry 1.
    net.append(1, source=2, term=1, previous=(1, 1), terms=[1, 1])
    answer = net.step(1, 2, net.message(APPEND, 1, index=3, log_term=1, context=context))[-1]
    assert (answer.flag, answer.index, answer.hint, answer.context) == (True, 1, 3, context)
    assert net.sync(1)[-1].index == 3


def test_a_leader_counts_itself_only_when_its_own_disk_has_it(core: Any) -> None:
    net = Net(core, 4)
    leader = net.elect(1)
    net.deliver()
    net.slow, net.cut = {1}, {4}
    _proposed(net, leader, 1)
    net.deliver()
    assert leader.progress[2].match == leader.progress[3].match == 2
    assert leader.commit == 1  # Two of four: its own disk would be the third.
    net.sync(1)
    assert leader.commit == 2


def test_others_may_commit_what_the_leader_has_not_written_but_it_applies_nothing(core: Any) -> None:
    """Ongaro 2014 §10.2.1; a snapshot could otherwise outrun the log on the disk."""
    net = Net(core, 3)
    leader = net.elect(1)
    net.deliver()
    net.slow = {1}
    _proposed(net, leader, 1)
    net.deliver()
    assert (leader.commit, leader.applicable()) == (2, 1)
    net.sync(1)
    assert leader.applicable() == 2


def test_a_completion_counts_only_what_was_not_replaced_meanwhile(core: Any) -> None:
    """Several truncations at different depths while one write is under way."""
    net = Net(core, 5, {1: Disk(core, [1])})
    net.slow = {1}
    net.append(1, source=2, term=1, previous=(1, 1), terms=[1, 1, 1, 1])
    net.append(1, source=3, term=2, previous=(4, 1), terms=[2, 2])
    net.append(1, source=4, term=3, previous=(2, 1), terms=[3])
    net.append(1, source=5, term=4, previous=(2, 1), terms=[4, 4, 4])
    net.sync(1)
    assert net.rafts[1].stable == 2  # Of the five that were written, two are still the log's.
    assert [net.rafts[1].log.check_at(i) == net.disks[1].log.check_at(i) for i in (1, 2)] == [True, True]
    net.sync(1)
    assert net.rafts[1].stable == 5
    assert net.disks[1].log.last_term == 4 and net.disks[1].log.last_index == 5


def test_a_write_of_an_older_term_releases_nothing_of_the_newer(core: Any) -> None:
    net = Net(core, 3)
    net.slow = {1}
    net.step(1, 2, net.message(VOTE, 1))
    net.step(1, 3, net.message(VOTE, 2))
    assert net.sync(1) == []
    assert [(message.peer, message.term, message.flag) for message in net.sync(1)] == [(3, 2, True)]


def test_two_completions_of_one_write_are_refused(core: Any) -> None:
    with pytest.raises(InvariantViolated, match="no write is under way"):
        Net(core, 3).rafts[1].persisted()


# ------------------------------------------------------------------ following


def test_a_conflict_behind_a_compacted_log_is_truncated_where_it_is(core: Any) -> None:
    """L8: the seed truncates its vector at the global index, keeps the conflicting tail, and reports success."""
    net = Net(core, 3)
    net.append(1, source=2, term=1, previous=(0, 0), terms=[1] * 8, commit=5)
    net.rafts[1].snapshot_stored(5, 0)
    net.disks[1].log.compact(5)
    answer = net.append(1, source=3, term=2, previous=(6, 1), terms=[2])
    assert (answer.flag, answer.index) == (True, 7)
    assert net.terms(1) == [1, 2]
    assert net.boot(1).log.last_index == 7


def test_what_is_replaced_is_reported_once(core: Any) -> None:
    net = Net(core, 3, {1: Disk(core, [1, 1, 1])})
    raft = net.rafts[1]
    log = core.Log(1, 1, raft.log.check_at(1))
    log.append(2, TRANSITION, b"new")
    message = net.message(APPEND, 2, index=1, log_term=1, data=log.slice(2, 3))
    raft.step(message, 2)
    assert raft.ready().truncated == [(2, TRANSITION, 1, b"2/1"), (3, TRANSITION, 1, b"3/1")]
    assert not raft.ready().truncated


def test_entries_with_a_configuration_that_cannot_be_read_are_not_taken(core: Any) -> None:
    """A member of a later version may know more; whoever acknowledged its entries could not start from them again."""
    net = Net(core, 3)
    net.append(1, source=2, term=1, previous=(0, 0), terms=[1], commit=1)
    before = core.Configuration((1, 2, 3))
    log = core.Log(1, 1, net.rafts[1].log.check_at(1))
    log.append(1, TRANSITION, b"x")
    log.append(1, CONFIGURATION, core.Configuration((1, 2)).encode())
    log.append(1, CONFIGURATION, LATER)
    message = net.message(APPEND, 1, index=1, log_term=1, commit=4, data=log.slice(2, 5))
    with pytest.raises(MalformedMessage, match="cannot be taken"):
        net.step(1, 2, message)
    assert net.pump(1) == []
    assert (net.terms(1), net.rafts[1].commit, net.rafts[1].configuration) == ([1], 1, before)
    assert net.boot(1).configuration == before
    net.append(1, source=2, term=1, previous=(1, 1), terms=[], commit=1)


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"garbage",
        plain.encode(5),
        plain.encode([[1, 2], "few"]),
        plain.encode([[1], [], [], [], [[1, 5]]]),
        plain.encode([[1, 1], [], [], [], []]),
        plain.encode([[1], [], [], [], [], [], b"short"]),
    ],
)
def test_an_entry_that_holds_no_configuration_changes_no_members_on_any_replica(core: Any, garbage: bytes) -> None:
    net = Net(core, 3)
    net.elect(1)
    before = net.rafts[1].configuration
    net.rafts[1].propose(CONFIGURATION, garbage)
    net.pump(1)
    net.deliver()
    net.heartbeat(1)
    net.deliver()
    for id in (1, 2, 3):
        assert (net.rafts[id].commit, net.rafts[id].configuration) == (2, before)
        assert net.boot(id).configuration == before


def test_a_configuration_is_forgotten_with_the_entries_that_are_not_taken(core: Any) -> None:
    net = Net(core, 3)
    net.append(1, source=2, term=1, previous=(0, 0), terms=[1], commit=1)
    log = core.Log(1, 1, net.rafts[1].log.check_at(1))
    log.append(1, CONFIGURATION, core.Configuration((1, 2)).encode())
    log.append(1, CONFIGURATION, LATER)
    with pytest.raises(MalformedMessage, match="cannot be taken"):
        net.step(1, 2, net.message(APPEND, 1, index=1, log_term=1, data=log.slice(2, 4)))
    net.append(1, source=2, term=1, previous=(1, 1), terms=[1, 1])
    assert net.rafts[1].configuration == core.Configuration((1, 2, 3))


@pytest.mark.parametrize("kind", [APPEND_RESPONSE, VOTE_RESPONSE, PRE_VOTE_RESPONSE, APPEND, SNAPSHOT])
def test_one_message_does_not_use_up_the_terms(core: Any, kind: int) -> None:
    """A forged acknowledgement of term 2^63 - 3 left no term for an election."""
    net = Net(core, 3)
    leader = net.elect(1)
    net.step(1, 2, net.message(kind, LIMIT - 3, index=1, log_term=1))
    assert (leader.role, leader.term, leader.leader) == (FOLLOWER, 1 + TERMS_AHEAD, None)
    for _ in range(2):
        for id in net.rafts:
            net.rafts[id].set_time(net.now + 2 * ELECTION)
        net.campaign(1)
        net.deliver()
    assert leader.role == LEADER and TERMS_AHEAD < leader.term < TERMS_AHEAD + 10
    assert {raft.term for raft in net.rafts.values()} == {leader.term}


def test_nodes_whose_terms_are_far_apart_reach_the_highest_in_steps(core: Any) -> None:
    net = Net(core, 3)
    net.elect(1)
    for steps, id in ((5, 2), (3, 3)):
        for _ in range(steps):
            net.step(id, 1, net.message(APPEND_RESPONSE, LIMIT - 3))
    for _ in range(20):
        for id in (1, 2, 3):
            net.campaign(id)
            net.deliver()
    assert len({raft.term for raft in net.rafts.values()}) == 1
    assert 5 * TERMS_AHEAD < net.rafts[1].term < 6 * TERMS_AHEAD
    assert [raft.role for raft in net.rafts.values()].count(LEADER) == 1


def test_a_restart_from_a_compacted_log_begins_at_its_base(core: Any) -> None:
    """L13: the seed begins at 0 and underflows when it first applies."""
    net = Net(core, 1, {1: Disk(core, [1, 1, 2])})
    net.disks[1].log.compact(2)
    raft = net.boot(1)
    assert (raft.commit, raft.snapshot_index, raft.snapshot_term, raft.applicable()) == (2, 2, 1, 2)
    assert net.elect(1).commit == 4


def test_what_would_replace_a_committed_entry_stops_the_replica(core: Any) -> None:
    net = Net(core, 3)
    net.append(1, source=2, term=1, previous=(0, 0), terms=[1, 1], commit=2)
    before = net.terms(1)
    net.append(1, source=3, term=2, previous=(1, 1), terms=[2])
    assert net.terms(1) == before  # Below the commit index nothing is even looked at.
    with pytest.raises(InvariantViolated, match="two leaders"):
        net.append(1, source=2, term=2, previous=(2, 1), terms=[2])


# ------------------------------------------------------------------ snapshots


def test_an_installed_snapshot_never_takes_a_term_or_vote_back(core: Any) -> None:
    """L10: the seed sets its term to that of the snapshot, and votes again in terms it has voted in."""
    net = Net(core, 3, {1: Disk(core, [1], term=7, vote=2)})
    net.step(1, 2, net.message(SNAPSHOT, 7, index=5, log_term=3, hint=77, data=b"state"))
    assert (net.rafts[1].term, net.rafts[1].vote) == (net.disks[1].term, net.disks[1].vote) == (7, 2)


def test_a_snapshot_is_acknowledged_when_it_is_on_the_disk(core: Any) -> None:
    net = Net(core, 3)
    net.slow = {1}
    first = net.step(1, 2, net.message(SNAPSHOT, 1, index=5, log_term=1, hint=77, data=b"state"))
    assert [message for message in first if message.index] == []
    assert net.rafts[1].applicable() == 0
    assert max(message.index for message in net.sync(1)) == 5
    assert net.rafts[1].applicable() == 5


def test_a_snapshot_that_is_delivered_again_installs_nothing_again(core: Any) -> None:
    net = Net(core, 3)
    snapshot = {"index": 5, "log_term": 1, "hint": 77, "data": b"state"}
    net.step(1, 2, net.message(SNAPSHOT, 1, **snapshot))
    net.append(1, source=2, term=1, previous=(5, 1), terms=[1, 1], commit=7)
    before = _state(net.rafts[1])
    answer = net.step(1, 2, net.message(SNAPSHOT, 1, **snapshot))[-1]
    assert (answer.flag, answer.index) == (True, 7)
    assert _state(net.rafts[1]) == before and net.rafts[1].installing is None


def test_match_stays_below_next_while_a_snapshot_is_on_its_way(core: Any) -> None:
    """32: an acknowledgement of earlier entries comes after the leader turned to a snapshot (storm, seed 73)."""
    net = Net(core, 3)
    leader = net.elect(1)
    net.deliver()
    net.cut = {3}
    for _ in range(4):
        _proposed(net, leader, 1)
        net.deliver()
    leader.snapshot_stored(5, 0)
    net.step(1, 3, net.message(APPEND_RESPONSE, 1, index=5, hint=1))  # A rejection: what comes next is compacted.
    progress = leader.progress[3]
    assert progress.state == INSTALL
    net.step(1, 3, net.message(APPEND_RESPONSE, 1, index=3, hint=3, flag=True))
    assert progress.state == INSTALL
    assert 3 == progress.match < progress.next


# ---------------------------------------------------------------- replication


@pytest.mark.parametrize(
    ("own", "follower"),
    [
        ([1] * 10 + [4] * 400, [1] * 10 + [2] * 300 + [3] * 300),  # The leader skips its own later term …
        ([1] * 10 + [2] * 400 + [5], [1] * 10 + [3] * 300),  # … the follower its own.
    ],
)
def test_a_diverged_follower_is_found_in_a_few_messages(core: Any, own: list[int], follower: list[int]) -> None:
    """Ongaro 2014 §3.5: a rejection skips a whole term, not one entry."""
    net = Net(core, 3, {1: Disk(core, own), 2: Disk(core, own), 3: Disk(core, follower)})
    net.cut = {3}
    leader = net.elect(1)
    net.deliver()
    net.cut = set()
    rejections: list[Any] = []

    def seen(source: int, target: int, message: Any) -> bool:
        if target == 1 and message.kind == APPEND_RESPONSE and not message.flag and message not in rejections:
            rejections.append(message)
        return True

    net.heartbeat(1)
    net.deliver(seen)
    assert 1 <= len(rejections) <= 5
    assert net.terms(3) == net.terms(1)
    assert leader.progress[3].match == leader.log.last_index


def test_no_more_than_the_window_is_under_way(core: Any) -> None:
    net = Net(core, 3, max_append_bytes=200, window_bytes=1_000)
    leader = net.elect(1)
    net.deliver()
    net.sent.clear()
    _proposed(net, leader, 100, b"y" * 75)
    under_way = [len(message.data) for _, target, message in net.sent if target == 2]
    assert all(size <= 200 for size in under_way)
    assert 1_000 <= sum(under_way) < 1_000 + 200
    net.deliver(lambda source, target, message: 2 in (source, target))
    assert leader.progress[2].match == leader.log.last_index


def test_no_more_appends_than_the_window_has_are_under_way(core: Any) -> None:
    """Also when an earlier one was lost and everything is sent again."""
    net = Net(core, 3, window_appends=3)
    leader = net.elect(1)
    net.deliver()
    net.sent.clear()
    for lost in (True, False):
        for _ in range(10):
            _proposed(net, leader, 1)
        under_way = [message for _, target, message in net.sent if target == 2 and message.data]
        assert len(under_way) == 3
        net.sent = [] if lost else net.sent
        net.heartbeat(1)
        most = 0
        while net.sent:
            most = max(most, sum(target == 2 and bool(message.data) for _, target, message in net.sent))
            net.deliver(lambda source, target, message, first=net.sent[0][2]: message is first)
        assert 1 <= most <= 3
    assert leader.progress[2].match == leader.commit == leader.log.last_index == 21


def test_an_entry_larger_than_a_message_travels_alone(core: Any) -> None:
    net = Net(core, 3, max_append_bytes=10, window_bytes=10)
    leader = net.elect(1)
    _proposed(net, leader, 2, b"z" * 5_000)
    net.deliver()
    assert net.rafts[2].log.last_index == net.rafts[3].log.last_index == leader.commit == 3


def test_lost_frames_are_recovered_by_heartbeats(core: Any) -> None:
    net = Net(core, 3)
    leader = net.elect(1)
    net.deliver()
    _proposed(net, leader, 5)
    net.sent.clear()
    assert leader.progress[2].state == REPLICATE
    net.heartbeat(1)
    net.deliver()
    assert net.rafts[2].log.last_index == leader.log.last_index == leader.commit == 6


def test_followers_learn_what_is_committed_without_waiting_for_a_heartbeat(core: Any) -> None:
    net = Net(core, 3)
    leader = net.elect(1)
    net.deliver()
    _proposed(net, leader, 1)
    net.deliver()
    assert net.rafts[2].commit == net.rafts[3].commit == leader.commit == 2


def test_a_silent_peer_is_sent_heartbeats_only(core: Any) -> None:
    net = Net(core, 3)
    leader = net.elect(1)
    net.deliver()
    net.cut = {3}
    for _ in range(12):
        net.heartbeat(1)
        net.deliver()
    assert leader.progress[3].state == PROBE
    _proposed(net, leader, 5, b"big" * 1_000)
    assert not [message for _, target, message in net.sent if target == 3 and message.data]
    net.cut = set()
    net.heartbeat(1)
    net.deliver()
    assert net.rafts[3].log.last_index == leader.log.last_index


# ---------------------------------------------------------------------- reads


def test_reads_fail_when_their_leader_steps_down(core: Any) -> None:
    """30: whether their round has begun or not."""
    net = Net(core, 3)
    leader = net.elect(1)
    net.deliver()
    leader.read("begun")
    net.pump(1)
    leader.read("waiting")
    message = net.message(APPEND, 2, index=1, log_term=1)
    leader.step(message, 2)
    ready = leader.ready()
    assert (list(ready.reads), sorted(ready.failed_reads)) == ([], ["begun", "waiting"])
    with pytest.raises(NotLeader):
        leader.read("late")
    with pytest.raises(NotLeader):
        leader.propose(TRANSITION, b"late")


def test_a_deposed_leader_answers_no_read(core: Any) -> None:
    net = Net(core, 3)
    old = net.elect(1)
    net.deliver()
    net.cut = {1}
    net.wait(ELECTION)
    new = net.elect(2)
    _proposed(net, new, 1)
    net.deliver()
    assert old.role == LEADER and new.commit > old.commit  # It does not know yet.
    old.read("stale")
    assert not old.ready().reads
    net.cut = set()
    net.sent.clear()
    old.tick(net.now + HEARTBEAT)
    assert old.role != LEADER
    assert old.ready().failed_reads == ["stale"]


def test_an_answer_of_an_older_term_confirms_no_round(core: Any) -> None:
    """Rounds begin at 1 in every term."""
    net = Net(core, 3)
    net.elect(1)
    net.deliver()
    net.rafts[1].resign()
    net.wait(2 * ELECTION)
    leader = net.elect(1)
    net.deliver()
    leader.read("r")
    leader.ready()
    late = net.message(APPEND_RESPONSE, leader.term - 1, index=1, hint=1, context=1, flag=True)
    leader.step(late, 2)
    assert not leader.ready().reads


def test_a_read_waits_for_no_disk(core: Any) -> None:
    net = Net(core, 3)
    leader = net.elect(1)
    net.deliver()
    net.slow = {2, 3}
    leader.propose(TRANSITION, b"x")
    leader.read("r")
    sent = leader.ready().messages  # The round travels with the entry, which takes its time on their disks.
    assert all(message.data and message.context for message in sent)
    answers: list[Any] = []
    for message in sent:
        if message.peer == 2:
            answers += net.step(2, 1, core.Message.decode(message.encode()))
    for answer in answers:
        leader.step(answer, 2)
    assert leader.ready().reads == [("r", 1)]


# ---------------------------------------------------------------- bad messages


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"kind": APPEND, "term": HIGHEST + 1}, MalformedMessage),
        ({"kind": VOTE, "term": HIGHEST + 1}, MalformedMessage),
        ({"kind": SNAPSHOT, "term": 2, "index": HIGHEST + 1, "log_term": 1}, MalformedMessage),
        ({"kind": SNAPSHOT, "term": 2, "index": 9, "log_term": 1, "hint": 1 << 32}, MalformedMessage),
        ({"kind": APPEND, "term": 2, "index": 2, "log_term": 2, "data": b"garbage"}, MalformedBlock),
        ({"kind": APPEND, "term": 2, "index": 2, "log_term": 2, "data": bytes(25)}, MalformedBlock),
    ],
)
def test_garbage_is_refused_and_leaves_no_trace_in_the_log(
    core: Any, fields: dict[str, Any], error: type[Exception]
) -> None:
    net = Net(core, 3, {1: Disk(core, [1, 2], vote=3)})
    before = _state(net.rafts[1])
    with pytest.raises(error):
        net.step(1, 2, net.message(**fields))
    assert _state(net.rafts[1]) == before
    assert not net.rafts[1].ready().write


@pytest.mark.parametrize(("index", "hint"), [(99, 99), (0, 99), (1, 0)])
def test_an_acknowledgement_of_what_was_never_sent_is_refused(core: Any, index: int, hint: int) -> None:
    net = Net(core, 3)
    leader = net.elect(1)
    before = (_state(leader), repr(leader.progress[2]))
    with pytest.raises(MalformedMessage):
        net.step(1, 2, net.message(APPEND_RESPONSE, leader.term, index=index, hint=hint, flag=True))
    assert (_state(leader), repr(leader.progress[2])) == before


def test_strangers_count_for_nothing(core: Any) -> None:
    net = Net(core, 3)
    net.campaign(1)
    net.step(1, 9, net.message(PRE_VOTE_RESPONSE, 1, flag=True))
    assert net.rafts[1].role == PRE_CANDIDATE
    net.step(1, 2, net.message(PRE_VOTE_RESPONSE, 1, flag=True))
    net.step(1, 9, net.message(VOTE_RESPONSE, 1, flag=True))
    assert net.rafts[1].role == CANDIDATE
    net.step(1, 2, net.message(VOTE_RESPONSE, 1, flag=True))
    leader = net.rafts[1]
    net.step(1, 9, net.message(APPEND_RESPONSE, 1, index=1, hint=1, flag=True))
    assert leader.commit == 0


# ---------------------------------------------------------------------- storm

BLOCKS = [range(start, start + 10) for start in range(0, 100, 10)]


@pytest.mark.parametrize("seeds", BLOCKS, ids=lambda seeds: f"{seeds.start}-{seeds.stop - 1}")
def test_no_storm_breaks_an_invariant_and_both_cores_go_through_it_alike(seeds: range, both_cores: Any) -> None:
    """`python tests/storm.py --start SEED --seeds 1` replays one."""
    for seed in seeds:
        python, cython = (Storm(each, seed).run(3_000) for each in both_cores)
        assert (python.digest, python.highest) == (cython.digest, cython.highest), f"seed {seed}"


def test_a_storm_is_one(core: Any) -> None:
    """Most events do something: there are leaders, commits, reads and snapshots in it."""
    storms = [Storm(core, seed).run(3_000) for seed in range(10)]
    assert sum(storm.highest for storm in storms) > 200
    assert sum(len(storm.leaders) for storm in storms) > 50
    assert sum(storm.requests for storm in storms) > 200
    assert any(replica.raft.snapshot_index > 0 for storm in storms for replica in storm.replicas.values())


# ------------------------------------------------------------------ what ends with a term, or begins with a commit


def test_a_lease_ends_with_the_term_in_which_it_was_held(core: Any) -> None:
    """Another led meanwhile: who leads again within the lease has to ask a quorum before it answers."""
    net = Net(core, 3, lease=450_000)
    first = net.elect(1)
    net.heartbeat(1)
    net.deliver()
    first.read("a round", lease=True)
    net.pump(1)
    net.deliver()
    for target in (2, 1):  # At once, so that the lease would not be over.
        source = 3 - target
        net.rafts[source].set_time(net.now)
        net.rafts[source].transfer(target)
        net.pump(source)
        net.deliver()
        assert net.rafts[target].role == LEADER
    first.read("by lease", lease=True)
    assert [request for request, _ in first.ready(False).reads] == []


def test_a_removal_is_obeyed_once_it_is_committed_and_not_before(core: Any) -> None:
    """It may be rolled back yet."""
    net = Net(core, 3)
    log = core.Log(0, 0, 0)
    log.append(1, CONFIGURATION, core.Configuration((1, 2)).encode())
    fields = {"data": log.slice(1, 2), "flag": True}
    net.step(3, 1, net.message(APPEND, 1, **fields))
    assert net.rafts[3].log.last_index == 1 and not net.rafts[3].removed
    net.step(3, 1, net.message(APPEND, 1, index=1, log_term=1, commit=1, flag=True))
    assert net.rafts[3].removed


def test_what_an_earlier_leader_verified_is_not_acknowledged_to_the_next(core: Any) -> None:
    """Its log may go on otherwise (Ongaro 2014, figure 3.1)."""
    net = Net(core, 3)
    net.append(3, 1, 1, (0, 0), [1, 1, 1, 1])
    answer = net.append(3, 2, 2, (2, 1), [])
    assert (answer.kind, bool(answer.flag), answer.index) == (APPEND_RESPONSE, True, 2)


def test_in_a_joint_phase_a_leaving_voter_is_known_by_its_directory(core: Any) -> None:
    """An answer of another disk counts for nothing as long as the member has a vote."""
    directories = {id: bytes([id]) * 16 for id in (1, 2, 3)}
    before = core.Configuration((1, 2, 3), storages=directories)
    joint = before.towards(core.Configuration((1, 2), storages={1: directories[1], 2: directories[2]}))
    assert joint.outgoing == (1, 2, 3) and joint.storages == directories
    assert joint.left().storages == {1: directories[1], 2: directories[2]}
