"""Bugs that shipped in real Raft systems, each as the property that holds here.

The numbers and the places where a bug was reported stand in each docstring.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mutants import MUTANTS
from mutants.mutant import Mutant
from raftplug import plain
from raftplug.constants import (
    APPEND,
    APPEND_RESPONSE,
    CANDIDATE,
    CONFIGURATION,
    FOLLOWER,
    LEADER,
    PRE_CANDIDATE,
    PRE_VOTE,
    PRE_VOTE_RESPONSE,
    SNAPSHOT,
    TRANSITION,
    VOTE,
    VOTE_RESPONSE,
)
from raftplug.errors import (
    ChangeRefused,
    InvariantViolated,
    MalformedMessage,
    NotLeader,
    RaftplugError,
    WrongDirectory,
)
from raftplug.future import Future
from raftplug.plugins import default
from raftplug.storage import MemoryStorage
from rules import ELECTION, HEARTBEAT, Disk, Net, mutated
from test_fake_clock import GROUP, IDS, World

LEASE_US = ELECTION * 9 // 10


def test_an_entry_of_an_older_term_is_not_committed_by_counting_replicas(core: Any) -> None:
    """1: PySyncObj#169, async-raft#108, canonical/raft#220, logcabin#44 (Ongaro 2014, figure 3.7)."""
    logs = {1: [1, 2], 2: [1, 2], 3: [1], 4: [1], 5: [1, 3]}
    net = Net(core, 5, {id: Disk(core, terms) for id, terms in logs.items()})
    net.rafts[1].step(net.message(APPEND_RESPONSE, 3), 2)  # Hears of term 3.
    net.cut = {5}
    net.campaign(1)
    net.deliver(lambda source, target, message: message.kind not in (APPEND, APPEND_RESPONSE))
    leader = net.rafts[1]
    assert leader.role == LEADER and net.terms(1) == [1, 2, 4]
    net.sent.clear()
    for voter in (2, 3):  # With the leader a majority holds entry 2, of term 2 …
        net.step(1, voter, net.message(APPEND_RESPONSE, 4, index=2, hint=2, flag=True))
    assert leader.commit < 2
    for voter in (2, 3):  # … which commits with an entry of the leader's own term.
        net.step(1, voter, net.message(APPEND_RESPONSE, 4, index=3, hint=3, flag=True))
    assert leader.commit == 3


def test_a_follower_commits_nothing_that_its_leader_has_not_verified(core: Any) -> None:
    """2: atomix/copycat#265, scylladb#9965.  An old leader's own tail must not commit by a newer one's commit index."""
    net = Net(core, 3, {1: Disk(core, [1] * 10)})
    net.append(1, source=2, term=2, previous=(9, 1), terms=[], commit=11)
    assert net.rafts[1].commit == 9


def test_an_acknowledgement_claims_only_what_the_leader_has_verified(core: Any) -> None:
    """3: microsoft/CCF#6016.  Entries past the verified one may be another leader's."""
    net = Net(core, 3, {1: Disk(core, [1, 1, 1])})
    answer = net.append(1, source=2, term=2, previous=(1, 1), terms=[])
    assert (answer.flag, answer.index, answer.hint) == (True, 1, 1)


def test_a_late_append_of_known_entries_truncates_nothing(core: Any) -> None:
    """4: hashicorp/raft#113, microsoft/CCF#5991, zhebrak/raftos#26."""
    net = Net(core, 3)
    net.append(1, source=2, term=1, previous=(0, 0), terms=[1] * 5)
    answer = net.append(1, source=2, term=1, previous=(0, 0), terms=[1] * 2)
    assert net.terms(1) == [1] * 5
    assert answer.flag and answer.index == 5


def test_an_append_that_begins_below_the_snapshot_matches_and_deletes_nothing(core: Any) -> None:
    """5: databendlabs/openraft#511."""
    net = Net(core, 3)
    net.append(1, source=2, term=1, previous=(0, 0), terms=[1] * 8, commit=6)
    net.rafts[1].snapshot_stored(6, 0)
    log = core.Log()
    for index in range(1, 5):
        log.append(1, TRANSITION, b"%d/1" % index)
    late = net.message(APPEND, 1, index=2, log_term=1, data=log.slice(3, 5))
    answer = net.step(1, 2, late)[-1]
    assert answer.flag and answer.index >= 6
    assert net.rafts[1].log.base_index == 6 and net.terms(1) == [1, 1]


def test_a_snapshot_replaces_a_log_that_conflicts_with_it(core: Any) -> None:
    """6: openraft#753.  Leftovers of an older term must not be replicated by a later leader."""
    net = Net(core, 3, {1: Disk(core, [1] * 10)})
    answer = net.step(1, 2, net.message(SNAPSHOT, 2, index=5, log_term=2, hint=77, data=b"state"))[-1]
    raft = net.rafts[1]
    assert (raft.log.base_index, raft.log.last_index, raft.commit) == (5, 5, 5)
    assert answer.flag and answer.index == 5
    assert net.boot(1).log.last_index == 5


def test_a_snapshot_that_the_log_already_holds_keeps_the_entries_after_it(core: Any) -> None:
    """6, its other half (Ongaro 2014, figure 5.3, step 6)."""
    net = Net(core, 3, {1: Disk(core, [1] * 10)})
    net.step(1, 2, net.message(SNAPSHOT, 2, index=5, log_term=1, hint=77, data=b"state"))
    assert net.rafts[1].log.last_index == 10 and net.rafts[1].commit == 5


def test_an_older_snapshot_changes_nothing(core: Any) -> None:
    """7: hashicorp/raft#248, openraft eed681d5.  Neither a late one of the leader's nor one of our own, overtaken."""
    net = Net(core, 3)
    net.append(1, source=2, term=1, previous=(0, 0), terms=[1] * 4, commit=4)
    net.step(1, 2, net.message(SNAPSHOT, 1, index=10, log_term=1, hint=77, data=b"new"))
    raft = net.rafts[1]
    net.step(1, 2, net.message(SNAPSHOT, 1, index=7, log_term=1, hint=66, data=b"old"))
    raft.snapshot_stored(4, 0)
    assert (raft.log.base_index, raft.commit, raft.snapshot_index) == (10, 10, 10)
    net.append(1, source=2, term=1, previous=(10, 1), terms=[1])
    assert net.disks[1].log.base_index == 10 and net.disks[1].log.last_index == 11


def test_a_vote_of_an_older_term_is_not_counted(core: Any) -> None:
    """8: little-raft#44, ktoso/akka-raft#46."""
    net = Net(core, 3)
    net.campaign(1)
    net.step(1, 2, net.message(PRE_VOTE_RESPONSE, 1, flag=True))
    assert net.rafts[1].role == CANDIDATE and net.rafts[1].term == 1
    net.step(1, 3, net.message(VOTE_RESPONSE, 2))  # A refusal, from a later term.
    net.campaign(1)
    net.step(1, 2, net.message(PRE_VOTE_RESPONSE, 3, flag=True))
    assert net.rafts[1].role == CANDIDATE and net.rafts[1].term == 3
    net.step(1, 2, net.message(VOTE_RESPONSE, 1, flag=True))
    assert net.rafts[1].role == CANDIDATE
    net.step(1, 2, net.message(VOTE_RESPONSE, 3, flag=True))
    assert net.rafts[1].role == LEADER


def test_a_vote_that_is_delivered_twice_is_one_vote(core: Any) -> None:
    """9: PySyncObj, whose candidates count answers."""
    net = Net(core, 5)
    net.campaign(1)
    for _ in range(3):
        net.step(1, 2, net.message(PRE_VOTE_RESPONSE, 1, flag=True))
    assert net.rafts[1].role != CANDIDATE
    net.step(1, 3, net.message(PRE_VOTE_RESPONSE, 1, flag=True))
    assert net.rafts[1].role == CANDIDATE
    for _ in range(3):
        net.step(1, 2, net.message(VOTE_RESPONSE, 1, flag=True))
    assert net.rafts[1].role == CANDIDATE
    net.step(1, 4, net.message(VOTE_RESPONSE, 1, flag=True))
    assert net.rafts[1].role == LEADER


def test_a_vote_is_never_taken_back_within_its_term(core: Any) -> None:
    """10: ktoso/akka-raft#56.  A candidate that steps down to a leader of its own term has still voted."""
    net = Net(core, 4)
    net.campaign(1)
    for voter in (2, 3):
        net.step(1, voter, net.message(PRE_VOTE_RESPONSE, 1, flag=True))
    assert net.rafts[1].role == CANDIDATE
    net.append(1, source=2, term=1, previous=(0, 0), terms=[])
    assert net.rafts[1].role == FOLLOWER
    net.wait(10 * ELECTION)
    net.campaign(1)  # No longer hears its leader.
    answer = net.step(1, 3, net.message(VOTE, 1, index=9, log_term=1))[-1]
    assert answer.kind == VOTE_RESPONSE and not answer.flag
    assert net.rafts[1].vote == 1


def test_a_vote_survives_a_restart_and_leaves_only_when_it_will(core: Any) -> None:
    """11: PySyncObj#84, tikv#8381."""
    net = Net(core, 3)
    net.slow = {1}
    assert net.step(1, 2, net.message(VOTE, 5)) == []  # Granted, and not on disk: nobody hears of it.
    net.boot(1)
    assert net.rafts[1].term == 0
    assert net.step(1, 3, net.message(VOTE, 5)) == []
    assert [answer.flag for answer in net.sync(1)] == [True]
    net.boot(1)
    assert (net.rafts[1].term, net.rafts[1].vote) == (5, 3)
    net.slow = set()
    assert [answer.flag for answer in net.step(1, 2, net.message(VOTE, 5))] == [False]


def test_a_term_is_never_behind_the_log_after_a_restart(core: Any) -> None:
    """11: PySyncObj#202.  A term that starts at 0 again over a log of term 5 lets a laggard erase what commits."""
    with pytest.raises(InvariantViolated, match="behind the log"):
        Net(core, 3, {1: Disk(core, [1, 5], term=0)})


@pytest.mark.parametrize(
    ("own", "theirs", "granted"),
    [
        ([1] * 5, (3, 2), True),  # A later last term wins, however short the log.
        ([1, 1, 2], (5, 1), False),
        ([1] * 5, (5, 1), True),
        ([1] * 5, (6, 1), True),
        ([1] * 5, (4, 1), False),
    ],
)
def test_logs_are_compared_by_last_term_and_then_by_length(
    core: Any, own: list[int], theirs: tuple[int, int], granted: bool
) -> None:
    """12: openraft a48a3282; little-raft asks for both at once (Ongaro 2014 §3.6.1)."""
    net = Net(core, 3, {1: Disk(core, own)})
    fields = {"index": theirs[0], "log_term": theirs[1]}
    assert net.step(1, 2, net.message(PRE_VOTE, 9, **fields))[-1].flag == granted
    assert net.step(1, 2, net.message(VOTE, 9, **fields))[-1].flag == granted


def test_a_vote_is_decided_on_the_log_as_it_is_now(core: Any) -> None:
    """13: sofa-jraft#882 (braft).  An entry that arrived just before counts, also while it is not on the disk."""
    net = Net(core, 3, {1: Disk(core, [1])})
    net.slow = {1}
    net.append(1, source=2, term=1, previous=(1, 1), terms=[1])
    net.wait(ELECTION)
    net.step(1, 3, net.message(VOTE, 2, index=1, log_term=1))
    net.slow = set()
    answers = [message for message in net.sync(1) if message.kind == VOTE_RESPONSE]
    assert [answer.flag for answer in answers] == [False]
    assert net.disks[1].log.last_index == 2 and net.disks[1].vote is None


def test_no_change_of_members_before_the_leaders_own_no_op_is_committed(core: Any) -> None:
    """14: copycat#23, baidu/braft#182, openraft#2051.  And one change at a time."""
    net = Net(core, 3)
    leader = net.elect(1)
    net.cut |= {2, 3}
    net.rafts[1].resign()
    net.cut.clear()
    net.campaign(2)
    net.deliver(lambda source, target, message: message.kind in (PRE_VOTE, PRE_VOTE_RESPONSE, VOTE, VOTE_RESPONSE))
    leader = net.rafts[2]
    assert leader.role == LEADER
    target = core.Configuration((1, 2))
    with pytest.raises(ChangeRefused):
        leader.change(target)
    net.deliver()
    leader.change(target)
    with pytest.raises(ChangeRefused):
        leader.change(core.Configuration((2, 3)))


def test_a_configuration_counts_from_its_append_on(core: Any) -> None:
    """15: etcd#11284, #7280, #5004.  Committed or not, and no longer than its entry is there."""
    net = Net(core, 3)
    leader = net.elect(1)
    leader.change(core.Configuration((1, 2)))
    net.pump(1)
    net.deliver(lambda source, target, message: target == 2 and message.kind == APPEND)
    follower = net.rafts[2]
    assert follower.commit < follower.configuration_index
    assert (follower.configuration.voters, follower.configuration.outgoing) == ((1, 2), (1, 2, 3))
    joint = follower.configuration_index
    # Another leader's entry takes its place: the configuration before it holds again.
    net.now += 2 * ELECTION
    message = net.message(APPEND, 7, index=joint - 1, log_term=1, commit=joint - 1)
    log = core.Log(joint - 1, 1, follower.log.check_at(joint - 1))
    log.append(7, TRANSITION, b"x")
    message.data = log.slice(joint, joint + 1)
    net.step(2, 3, message)
    assert (follower.configuration.voters, follower.configuration.outgoing) == ((1, 2, 3), ())


def test_a_leader_that_removes_itself_counts_for_nothing_and_leaves_when_that_is_committed(core: Any) -> None:
    """16: hashicorp/raft#81, etcd#11038, #10563 (two nodes), camunda#57390."""
    net = Net(core, 2)
    leader = net.elect(1)
    leader.change(core.Configuration((2,)))
    net.pump(1)
    assert leader.commit < leader.configuration_index  # Its own disk alone commits nothing.
    net.deliver()
    assert leader.role == FOLLOWER and leader.removed
    assert net.rafts[2].configuration.voters == (2,)
    if net.rafts[2].role != LEADER:
        net.elect(2)
    net.rafts[2].propose(TRANSITION, b"x")
    net.pump(2)
    assert net.rafts[2].commit == net.rafts[2].log.last_index


def test_a_member_votes_although_it_does_not_know_yet_that_it_may(core: Any) -> None:
    """17: tikv/raft-rs#57.  The asker's configuration decides: a promoted learner may be the vote that is needed."""
    net = Net(core, 4, configuration=core.Configuration((1, 2, 3), (), (4,)))
    assert net.step(4, 3, net.message(PRE_VOTE, 1))[-1].flag
    assert net.step(4, 3, net.message(VOTE, 1))[-1].flag
    assert net.disks[4].vote == 3


def test_a_learner_never_campaigns_and_never_counts(core: Any) -> None:
    """18: hashicorp/raft#398, #524, redpanda#8495, openraft#1805."""
    net = Net(core, 5, configuration=core.Configuration((1, 2, 3), (), (4, 5)))
    for _ in range(3):
        assert net.campaign(4) == []
    assert (net.rafts[4].role, net.rafts[4].term) == (FOLLOWER, 0)
    net.cut = {2, 3}
    net.campaign(1)
    for learner in (4, 5):  # With the asker these would be three of five.
        net.step(1, learner, net.message(PRE_VOTE_RESPONSE, 1, flag=True))
    assert net.rafts[1].role != CANDIDATE
    net.cut = set()
    leader = net.elect(1)
    net.deliver()
    net.cut = {2, 3}
    committed = leader.commit
    leader.propose(TRANSITION, b"x")
    net.pump(1)
    net.deliver()
    assert leader.progress[4].match == leader.progress[5].match == committed + 1
    assert leader.commit == committed


def test_a_read_is_not_answered_before_the_leader_has_committed_in_its_own_term(core: Any) -> None:
    """19: etcd#7331, tikv#6340, tikv#9239."""
    net = Net(core, 3, {id: Disk(core, [1, 1]) for id in (1, 2, 3)})
    net.campaign(1)
    net.deliver(lambda source, target, message: message.kind not in (APPEND, APPEND_RESPONSE))
    leader = net.rafts[1]
    assert leader.role == LEADER and leader.commit == 0
    leader.read("r")
    for voter in (2, 3):
        net.step(1, voter, net.message(APPEND_RESPONSE, leader.term, index=2, hint=2, flag=True))
    assert not leader.ready().reads
    net.sent.clear()
    net.heartbeat(1)
    net.deliver(lambda source, target, message: leader.commit < 3)
    reads: list[Any] = []
    while not reads:
        reads = leader.ready().reads
        if not reads:
            net.pump(1)
            source, target, message = net.sent.pop(0)
            net.rafts[target].step(message, source)
            if target != 1:
                net.pump(target)
    assert reads == [("r", 3)]


def test_an_answer_to_an_earlier_round_confirms_no_later_read(core: Any) -> None:
    """20: etcd#20418.  Rounds are numbered by the leader; a deposed one finds nobody to confirm a new one."""
    net = Net(core, 3)
    leader = net.elect(1)
    net.deliver()
    leader.read("first")
    first = leader.ready()
    assert {message.context for message in first.messages if message.kind == APPEND} == {1}
    leader.read("second")
    leader.ready()
    late = net.message(APPEND_RESPONSE, leader.term, index=1, hint=1, context=1, flag=True)
    net.rafts[1].step(late, 2)
    assert [request for request, _ in leader.ready().reads] == ["first"]
    newer = net.message(APPEND_RESPONSE, leader.term, index=1, hint=1, context=2, flag=True)
    net.rafts[1].step(newer, 2)
    assert [request for request, _ in leader.ready().reads] == ["second"]


def test_a_lease_ends_with_the_beginning_of_a_transfer(core: Any) -> None:
    """21: etcd#12704, openraft#1747, #1749, raft-rs#141, sofa-jraft#34."""
    net = Net(core, 3, lease=LEASE_US)
    leader = net.elect(1)
    net.heartbeat(1)
    net.deliver()
    leader.read("by lease", lease=True)
    assert [request for request, _ in leader.ready().reads] == ["by lease"]
    leader.transfer(2)
    leader.read("during the transfer", lease=True)
    assert not leader.ready().reads
    net.cut.add(2)
    for _ in range(ELECTION // HEARTBEAT + 1):
        net.heartbeat(1)
        net.deliver()
    assert leader.transferee is None
    leader.read("after it", lease=True)  # The target may still have been told to campaign.
    assert not leader.ready().reads


def test_a_lease_begins_when_the_round_was_sent(core: Any) -> None:
    """Ongaro 2014 §6.4.1: the followers' promise is as old as the message that they answered."""
    net = Net(core, 3, lease=LEASE_US)
    leader = net.elect(1)
    net.heartbeat(1)
    sent = net.now
    net.now += LEASE_US - 1
    leader.set_time(net.now)
    net.deliver()
    leader.read("in time", lease=True)
    assert [request for request, _ in leader.ready().reads] == ["in time"]
    net.now = sent + LEASE_US
    leader.set_time(net.now)
    leader.read("late", lease=True)
    assert not leader.ready().reads


def test_neither_a_newer_term_nor_a_restart_ends_the_promise_behind_a_lease(core: Any) -> None:
    net = Net(core, 3, lease=LEASE_US)
    net.elect(1)
    net.heartbeat(1)
    net.deliver()
    term = net.rafts[1].term
    net.step(3, 2, net.message(PRE_VOTE_RESPONSE, term + 1))
    assert net.rafts[3].term == term + 1 and net.rafts[3].leader is None
    last = net.rafts[3].log
    vote = {"index": last.last_index, "log_term": last.last_term}
    assert not net.step(3, 2, net.message(VOTE, term + 1, **vote))
    net.boot(3)
    assert not net.step(3, 2, net.message(VOTE, term + 2, **vote))
    net.now += ELECTION
    answers = net.step(3, 2, net.message(VOTE, term + 2, **vote))
    assert [(answer.kind, answer.flag) for answer in answers] == [(VOTE_RESPONSE, True)]


def test_a_transfer_ends_in_time_and_writes_resume(core: Any) -> None:
    """22: hashicorp/raft#487, #581, canonical/raft#203, openraft#1747.  The target is dead."""
    net = Net(core, 3)
    leader = net.elect(1)
    net.cut.add(2)
    leader.transfer(2)
    with pytest.raises(NotLeader):
        leader.propose(TRANSITION, b"x")
    for _ in range(ELECTION // HEARTBEAT + 1):
        net.heartbeat(1)
        net.deliver()
    assert leader.role == LEADER
    leader.propose(TRANSITION, b"x")
    net.pump(1)
    net.deliver()
    assert leader.commit == leader.log.last_index


def test_a_transfer_is_not_stopped_by_those_who_hear_the_leader(core: Any) -> None:
    """22: canonical/raft#203.  The vote that a leader asked for is not refused for its sake, and skips the pre-vote."""
    net = Net(core, 3)
    net.elect(1).transfer(2)
    net.pump(1)
    net.deliver()
    assert net.rafts[2].role == LEADER and net.rafts[1].role == FOLLOWER
    with pytest.raises(ChangeRefused):
        net.rafts[2].transfer(4)


def test_a_target_that_may_not_lead_any_more_is_refused(core: Any) -> None:
    """22: etcd#11326.  It is demoted: leadership does not move to it."""
    net = Net(core, 3)
    leader = net.elect(1)
    leader.change(core.Configuration((1, 3), (), (2,)))
    net.pump(1)
    net.deliver()
    with pytest.raises(ChangeRefused):
        leader.transfer(2)
    assert leader.transferee is None


def test_granting_a_pre_vote_changes_nothing(core: Any) -> None:
    """23: canonical/raft#196, hashicorp/raft#609.  No term, no vote, no election timer."""
    net = Net(core, 3)
    raft = net.rafts[1]
    before = (raft.term, raft.vote, raft.role, raft.deadline())
    net.wait(ELECTION // 2)
    assert net.step(1, 2, net.message(PRE_VOTE, 1))[-1].flag
    assert (raft.term, raft.vote, raft.role, raft.deadline()) == before


def test_a_pre_vote_is_not_taken_for_a_vote(core: Any) -> None:
    """23: canonical/raft#196."""
    net = Net(core, 3)
    net.campaign(1)
    net.step(1, 2, net.message(VOTE_RESPONSE, 0, flag=True))
    assert net.rafts[1].role not in (CANDIDATE, LEADER)
    net.step(1, 2, net.message(PRE_VOTE_RESPONSE, 1, flag=True))
    assert net.rafts[1].role == CANDIDATE
    net.step(1, 3, net.message(PRE_VOTE_RESPONSE, 1, flag=True))
    net.step(1, 3, net.message(PRE_VOTE_RESPONSE, 2, flag=True))
    assert net.rafts[1].role == CANDIDATE


def test_a_short_log_of_a_high_term_and_a_long_log_of_a_low_one_elect_a_leader(core: Any) -> None:
    """23: etcd#8501, canonical/raft#279.  A refused pre-vote teaches the asker the higher term."""
    net = Net(
        core, 3, {1: Disk(core, [1], term=10), 2: Disk(core, [1, 2, 2], term=2), 3: Disk(core, [1, 2, 2], term=2)}
    )
    net.cut = {3}
    for _ in range(2):
        net.campaign(2)
        net.deliver()
    assert net.rafts[2].role == LEADER and net.rafts[2].term > 10


def test_a_former_leader_may_be_elected_again(core: Any) -> None:
    """23: hashicorp/raft#606.  Who remembers it as leader grants its pre-vote once it has been silent."""
    net = Net(core, 3)
    net.elect(1)
    net.deliver()
    net.rafts[1].resign()
    assert net.rafts[2].leader == net.rafts[3].leader == 1
    net.wait(ELECTION)
    assert net.elect(1).term == 2


def test_an_append_that_is_rejected_is_still_contact_with_the_leader(core: Any) -> None:
    """23: redpanda#30817."""
    net = Net(core, 3)
    net.wait(ELECTION - 1)
    answer = net.step(1, 2, net.message(APPEND, 1, index=9, log_term=1))[-1]
    assert not answer.flag
    assert net.rafts[1].leader == 2
    net.wait(HEARTBEAT)
    net.rafts[1].tick(net.now)
    assert net.rafts[1].role == FOLLOWER


def test_a_leader_that_hears_no_quorum_steps_down(core: Any) -> None:
    """24: openraft#2080.  One bridge that still hears it must not keep the others from electing."""
    net = Net(core, 5)
    leader = net.elect(1)
    for _ in range(12):
        net.heartbeat(1)
        net.deliver(lambda source, target, message: {source, target} == {1, 2})
        net.sent.clear()
    assert leader.role != LEADER


def test_a_bridge_to_a_cut_off_leader_does_not_keep_a_quorum_from_electing(core: Any) -> None:
    """24: openraft#2080.  The leader reaches the bridge only; the bridge reaches two others, which are a quorum."""
    net = Net(core, 5)
    net.draws = {4: 0, 5: ELECTION}
    net.elect(1)
    net.deliver()
    links = ({1, 3}, {3, 4}, {3, 5}, {4, 5})
    leaders: list[int] = []
    for _ in range(20 * ELECTION // HEARTBEAT):
        net.wait(HEARTBEAT)
        for id in (1, 3, 4, 5):
            if net.rafts[id].deadline() <= net.now:
                net.rafts[id].tick(net.now)
            net.pump(id)
        net.deliver(lambda source, target, message: {source, target} in links)
        net.sent.clear()
        leaders = [id for id in (3, 4, 5) if net.rafts[id].role == LEADER and net.rafts[id].commit > 1]
        if leaders:
            break
    assert leaders
    assert net.rafts[1].role != LEADER


def test_a_sole_voter_commits_nothing_before_its_own_sync(core: Any) -> None:
    """25: etcd#14370."""
    net = Net(core, 1)
    net.slow = {1}
    net.campaign(1)
    raft = net.rafts[1]
    assert raft.role == CANDIDATE  # Its own vote is not on its disk yet.
    net.sync(1)
    assert raft.role == LEADER and raft.commit == 0
    net.sync(1)
    assert raft.commit == 1
    raft.propose(TRANSITION, b"x")
    net.pump(1)
    assert raft.commit == 1 and raft.applicable() == 1
    net.sync(1)
    assert raft.commit == 2


def test_a_leader_that_gave_up_never_uses_an_index_again_in_that_term(core: Any) -> None:
    """26: canonical/raft#320.  After a failed write another entry must not get the same term and index."""
    net = Net(core, 3)
    leader = net.elect(1)
    net.deliver()
    net.slow = {1}
    leader.propose(TRANSITION, b"sent and not written")
    net.pump(1)
    term, last = leader.term, leader.log.last_index
    leader.resign()
    with pytest.raises(NotLeader):
        leader.propose(TRANSITION, b"another")
    assert leader.log.last_index == last
    net.slow = set()
    net.boot(1)  # Without the entry, which others may have.
    net.wait(2 * ELECTION)
    net.sent.clear()
    net.elect(2)
    net.deliver()
    assert net.rafts[2].term > term
    assert all(raft.log.payload_at(last) == b"sent and not written" for raft in net.rafts.values()) or all(
        raft.log.term_at(last) > term for raft in net.rafts.values()
    )


def test_a_restart_commits_nothing_that_its_log_does_not_hold(core: Any) -> None:
    """27: PySyncObj#197.  The commit index is not stored; what a leader says of it is clamped to what was verified."""
    net = Net(core, 3, {1: Disk(core, [1, 1, 1])})
    assert net.rafts[1].commit == 0
    net.append(1, source=2, term=1, previous=(3, 1), terms=[], commit=9)
    assert net.rafts[1].commit == net.rafts[1].applicable() == 3


def test_the_completion_of_an_old_write_vouches_for_no_newer_entry(core: Any) -> None:
    """28: etcd-io/raft's ABA race.  Entries of three leaders at the same indexes, while one write is under way."""
    net = Net(core, 5)
    net.slow = {1}
    net.append(1, source=2, term=1, previous=(0, 0), terms=[1, 1, 1])
    net.append(1, source=3, term=2, previous=(0, 0), terms=[2, 2, 2])
    net.append(1, source=2, term=3, previous=(0, 0), terms=[1, 1, 1])
    assert net.terms(1) == [1, 1, 1]
    acknowledged = [m.index for m in net.sync(1) if m.kind == APPEND_RESPONSE and m.flag]
    assert acknowledged == [] or max(acknowledged) == 0
    assert net.rafts[1].stable == 0
    net.sync(1)
    assert net.rafts[1].stable == 3 and net.disks[1].term == 3


def test_the_members_are_in_the_snapshot_as_of_its_index(core: Any) -> None:
    """29: openraft dba24036, PySyncObj#133, matrixone#24966.  Not as the process was started, and not as of later."""
    net = Net(core, 3)
    leader = net.elect(1)
    before = leader.log.last_index
    leader.change(core.Configuration((1, 2)))
    net.pump(1)
    net.deliver()
    assert leader.configuration_at(before).voters == (1, 2, 3)
    assert leader.configuration_at(leader.log.last_index).voters == (1, 2)
    leader.snapshot_stored(leader.commit, 0)
    assert leader.configuration_at(leader.commit).voters == (1, 2)


def test_a_restart_goes_by_the_members_in_the_log_not_by_those_of_the_start(core: Any) -> None:
    """29: PySyncObj#133."""
    net = Net(core, 3)
    net.elect(1).change(core.Configuration((1, 2)))
    net.pump(1)
    net.deliver()
    assert net.boot(2).configuration.voters == (1, 2)


def test_progress_never_goes_back_on_late_rejections(core: Any) -> None:
    """32: etcd-io/raft#148, little-raft#18, raft-rs#555.  0 <= match < next, whatever arrives in whatever order."""
    net = Net(core, 3)
    leader = net.elect(1)
    net.deliver()
    for _ in range(5):
        leader.propose(TRANSITION, b"x")
    net.pump(1)
    net.deliver()
    matched = leader.progress[2].match
    assert matched == 6
    for index in (0, 1, 3, 6, 9, 1 << 40):
        for hint in (0, 1, 1 << 40):
            net.step(1, 2, net.message(APPEND_RESPONSE, leader.term, index=index, hint=hint))
            progress = leader.progress[2]
            assert matched <= progress.match < progress.next <= leader.log.last_index + 1
    with pytest.raises(MalformedMessage):
        net.step(1, 2, net.message(APPEND_RESPONSE, leader.term, index=99, hint=99, flag=True))


@pytest.mark.xfail(strict=True, reason="there is no lock plugin yet, and a machine is not told the logged time")
def test_a_lock_expires_by_logged_time_and_hands_out_fencing_tokens() -> None:
    """31: PySyncObj#108, #113."""
    assert "lock" in default().machines()


def test_a_member_that_lost_its_disk_does_not_count_under_its_old_id(core: Any) -> None:
    """33: etcd#21271, hyperledger/fabric#442.  It has acknowledged what it does not hold any more."""
    world = World(core)
    leader = world.elect()
    lagging, wiped = (id for id in IDS if id != leader)
    world.run(1_000)
    assert set(world.raft(lagging).configuration.storages) == set(IDS)
    world.cut.add(lagging)
    assert world.result(world.propose(leader, {"add": 1, "tag": "acknowledged"})) == 1  # On the leader and `wiped`.
    world.cut = {leader}
    world.storages[wiped] = MemoryStorage(wiped, cluster=world.uuid)
    world.storages[wiped].create(GROUP, plain.encode(core.Configuration(IDS).plain()))
    world.boot(wiped)
    world.run(20_000)
    assert world.leader() is None  # Else what was acknowledged is gone.
    world.cut = set()
    with pytest.raises(WrongDirectory, match=f"raftplug members remove {wiped}"):
        world.run(20_000)


def test_a_late_answer_of_an_earlier_directory_does_not_make_it_the_one_that_the_group_knows(core: Any) -> None:
    """`raftplug sim --seed 249 --long`: the member's new directory was refused, and its node stopped."""
    world = World(core)
    late = IDS[-1]
    world.cut = {late}
    leader = world.elect()
    driver, late_answer = world.nodes[leader].drivers[GROUP], core.Message(APPEND_RESPONSE, world.raft(leader).term - 1)
    driver.receive(late, 1, APPEND_RESPONSE, late_answer.encode(), b"the directory before")
    world.cut = set()
    world.run(2_000)
    assert world.raft(leader).configuration.storages[late] == world.storages[late].identity.storage


def test_what_a_removed_directory_said_tells_nothing_of_the_one_that_takes_its_id(core: Any) -> None:
    """`raftplug sim --seed 200423 --nodes 4`: in one term, a late answer came after the id was added again."""
    world = World(core)
    leader = world.elect()
    driver, raft = world.nodes[leader].drivers[GROUP], world.raft(leader)
    world.storages["n4"] = MemoryStorage("n4", cluster=world.uuid)
    world.storages["n4"].create(GROUP, plain.encode(core.Configuration(()).plain()))
    world.boot("n4")
    world.cut = {"n4"}
    for _ in range(3):
        world.result(world.read(leader))  # Rounds of reads are counted within a term.
    world.client().requester.ask("members", ["add", ["n4"], raft.configuration_index], Future(), world.now + 60_000_000)
    world.until(lambda: "n4" in raft.configuration.members())
    before = raft.progress["n4"].since - 1
    for answer in (
        core.Message(APPEND_RESPONSE, raft.term, index=1, hint=1, flag=True, context=before),
        core.Message(APPEND_RESPONSE, raft.term, index=raft.progress["n4"].next - 1, context=before),
        core.Message(VOTE_RESPONSE, raft.term, context=1 << 40),
    ):
        driver.receive("n4", 1, answer.kind, answer.encode(), b"the directory before")
    assert raft.progress["n4"].match == 0
    world.cut = set()
    world.until(lambda: "n4" in raft.configuration.voters)
    assert raft.configuration.storages["n4"] == world.storages["n4"].identity.storage


def test_who_was_removed_and_starts_again_beside_a_sole_voter_waits_for_it(core: Any) -> None:
    """`raftplug sim --seed 281 --nodes 3`: a configuration of one other passed for one of ourselves alone."""
    members, log = core.Configuration((1, 2)), core.Log()
    log.append(1, CONFIGURATION, core.Configuration((1,)).encode())
    raft = core.Raft(2, members, log, 1, None, 0, ELECTION, HEARTBEAT, lambda bound: 0)
    raft.tick(ELECTION - 1)
    assert raft.role == FOLLOWER
    raft.tick(ELECTION)
    assert raft.role == PRE_CANDIDATE  # By the configuration that is not known to be over.


def test_who_lost_its_disk_asks_for_no_vote(core: Any) -> None:
    """33, at the level of the rules: it does not count itself either."""
    members = core.Configuration((1, 2, 3), storages={1: b"first", 2: b"second", 3: b"third"})
    log = core.Log()
    options = (0, None, 0, ELECTION, HEARTBEAT, lambda bound: 0)
    new, old = (core.Raft(1, members, log, *options, storage=uuid) for uuid in (b"new", b"first"))
    for raft in (new, old):
        raft.tick(2 * ELECTION)
    assert not new.ready().messages
    assert [message.kind for message in old.ready().messages] == [PRE_VOTE, PRE_VOTE]


def test_who_joined_has_no_part_in_elections_until_the_log_names_its_directory(core: Any) -> None:
    """33: as members of old, by id alone, new disks would found the group anew (`raftplug sim --seed 102945`)."""
    old, new = {2: b"second"}, {1: b"new", 2: b"second"}

    def part(of: Any, *storages: dict[int, bytes] | None, joined: bool = True) -> tuple[bool, bool]:
        """Whether it would vote for another, and campaign, by a log that names members with these directories."""
        log = of.Log()
        for number, each in enumerate(storages):
            members = (1, 2, 3) if each is not None else (2, 3)
            log.append(number + 1, CONFIGURATION, of.Configuration(members, storages=each).encode())
        first = of.Configuration(() if joined else (1, 2, 3))
        limits = (ELECTION, HEARTBEAT, lambda bound: 0)
        raft = of.Raft(1, first, log, log.last_term, None, 0, *limits, storage=b"new", joined=joined)
        raft.tick(2 * ELECTION)
        campaigns = [message.kind for message in raft.ready().messages] == [PRE_VOTE, PRE_VOTE]
        raft.step(of.Message(PRE_VOTE, log.last_term + 1, index=9, log_term=log.last_term), 2)
        (answer,) = raft.ready().messages
        return bool(answer.flag), campaigns

    assert part(core) == part(core, {}) == part(core, old) == (False, False)
    assert part(core, old, new) == part(core, new, None) == (True, True)
    assert part(core, joined=False) == part(core, old, joined=False) == (True, True)
    bug = _here("_may_vote", "not self._joined or", "self.id in self.configuration.members() or")
    assert part(mutated(bug), old)[0]


def test_nobody_becomes_a_voter_who_does_not_know_its_own_directory_in_the_log(core: Any) -> None:
    """17 with 33: who joined votes only once the log names it, so as a voter it has to have that on its disk."""

    def promotes(storages: dict[int, bytes], match: int) -> bool:
        members = core.Configuration((1,), (), (2,), (2,), {1: b"first", **storages})
        log = core.Log()
        log.append(1, CONFIGURATION, members.encode())
        raft = core.Raft(1, members, log, 1, 1, 0, ELECTION, HEARTBEAT, lambda bound: 0, storage=b"first")
        raft.tick(2 * ELECTION)
        for _ in range(3):
            if raft.ready().write:
                raft.persisted()
        answer = {"index": match, "hint": match, "flag": True}
        raft.step(core.Message(APPEND_RESPONSE, raft.term, **answer), 2)
        raft.ready()
        return 2 in raft.configuration.voters

    assert promotes({2: b"second"}, 1)
    assert not promotes({2: b"second"}, 0)
    assert not promotes({}, 1)


def test_an_answer_to_a_request_of_a_lost_disk_elects_nobody(core: Any) -> None:
    """33: the lost disk asked in the same term, and may have led it (found by `raftplug sim --seed 1233`)."""
    raft = core.Raft(
        1,
        core.Configuration((1, 2, 3)),
        core.Log(),
        0,
        None,
        0,
        ELECTION,
        HEARTBEAT,
        lambda bound: 0,
        storage=b"new disk",
    )
    raft.tick(2 * ELECTION)
    asked = raft.ready().messages[0]

    def answer(kind: int, context: int) -> None:
        raft.step(core.Message(kind, 1, flag=True, context=context), 2)

    answer(PRE_VOTE_RESPONSE, asked.context ^ 1)
    assert raft.role == PRE_CANDIDATE
    answer(PRE_VOTE_RESPONSE, asked.context)
    assert raft.role == CANDIDATE
    answer(VOTE_RESPONSE, asked.context ^ 1)
    assert raft.ready().write
    raft.persisted()
    assert raft.role == CANDIDATE
    answer(VOTE_RESPONSE, asked.context)
    assert raft.role == LEADER


def test_a_follower_whose_answer_about_a_snapshot_was_lost_still_catches_up(core: Any) -> None:
    """Found by `raftplug sim --seed 1016`: the leader had compacted beyond the snapshot before the answer came."""
    net = Net(core, 3)
    leader = net.elect(1)
    net.cut = {3}
    _grow(net, leader, 10)
    net.cut = set()
    net.heartbeat(1)
    net.deliver(lambda source, target, message: not (source == 3 and message.kind == APPEND_RESPONSE and message.flag))
    assert net.rafts[3].log.base_index == 11  # It has the snapshot, and what it said of it …
    net.sent.clear()  # … is lost.
    net.cut = {3}
    _grow(net, leader, 10)
    net.cut = set()
    for _ in range(2 * ELECTION // HEARTBEAT + 3):
        net.heartbeat(1)
        net.deliver()
    assert net.rafts[3].log.last_index == leader.log.last_index == 21
    assert net.rafts[3].commit == 21


def test_a_follower_with_a_longer_conflicting_log_is_sent_the_snapshot_again(core: Any) -> None:
    """Found by `raftplug sim --seed 2944`: the snapshot was lost, and the follower's own log reached beyond it."""
    net = Net(core, 3, {3: Disk(core, [1] * 15), 1: Disk(core, [1, 2], term=2), 2: Disk(core, [1, 2], term=2)})
    net.cut = {3}
    leader = net.elect(1)
    _grow(net, leader, 9)
    net.cut = set()
    net.heartbeat(1)
    net.deliver(lambda source, target, message: message.kind != SNAPSHOT)
    assert any(message.kind == SNAPSHOT for _, _, message in net.sent)
    net.sent.clear()
    for _ in range(2 * ELECTION // HEARTBEAT + 3):
        net.heartbeat(1)
        net.deliver()
    assert net.terms(3) == [] or net.rafts[3].log.last_index == leader.log.last_index
    assert net.rafts[3].commit == leader.commit == 12


def _grow(net: Net, leader: Any, entries: int) -> None:
    """The leader commits so many more entries, and compacts its log up to the last of them."""
    for _ in range(entries):
        leader.propose(TRANSITION, b"x")
        net.pump(leader.id)
        net.deliver()
    leader.snapshot_stored(leader.commit, 0)


def _planted(name: str) -> Mutant:
    return next(each for each in MUTANTS if each.name == name)


def _here(method: str, old: str, new: str) -> Mutant:
    return Mutant("here", "raft.py", f"Raft.{method}", old, new)


def _each_comparison(core: Any) -> None:
    for own, theirs, granted in (([1] * 5, (3, 2), True), ([1, 1, 2], (5, 1), False), ([1] * 5, (4, 1), False)):
        test_logs_are_compared_by_last_term_and_then_by_length(core, own, theirs, granted)


@pytest.mark.parametrize(
    ("test", "mutant"),
    [
        (
            test_an_entry_of_an_older_term_is_not_committed_by_counting_replicas,
            _planted("commit by counting an old-term entry"),
        ),
        (
            test_a_follower_commits_nothing_that_its_leader_has_not_verified,
            _planted("commit not clamped to what was verified"),
        ),
        (
            test_an_acknowledgement_claims_only_what_the_leader_has_verified,
            _planted("match index from the follower's last index"),
        ),
        (test_a_late_append_of_known_entries_truncates_nothing, _planted("truncate always on append")),
        (
            test_an_append_that_begins_below_the_snapshot_matches_and_deletes_nothing,
            _here("_on_append", "if previous < self.commit:", "if False:"),
        ),
        (
            test_a_snapshot_replaces_a_log_that_conflicts_with_it,
            _here(
                "_on_snapshot",
                "if self.log.term_at(message.index) == message.log_term:",
                "if self.log.last_index >= message.index:",
            ),
        ),
        (
            test_a_snapshot_that_the_log_already_holds_keeps_the_entries_after_it,
            _here("_on_snapshot", "if self.log.term_at(message.index) == message.log_term:", "if False:"),
        ),
        (test_an_older_snapshot_changes_nothing, _planted("older snapshot installed")),
        (
            test_an_older_snapshot_changes_nothing,
            _here(
                "snapshot_stored",
                "if index <= self.snapshot_index:",
                "if index < self.log.base_index:\n            self.snapshot_index = index",
            ),
        ),
        (test_a_vote_of_an_older_term_is_not_counted, _planted("stale vote response counted")),
        (
            test_a_vote_that_is_delivered_twice_is_one_vote,
            _here(
                "_count_vote",
                "self._votes.add(voter)",
                "self._votes.add(next(each for each in self.configuration.voters if each not in self._votes))",
            ),
        ),
        (
            test_a_vote_is_never_taken_back_within_its_term,
            _here("_become_follower", "self.leader = leader", "self.leader = leader\n        self.vote = None"),
        ),
        (test_a_vote_survives_a_restart_and_leaves_only_when_it_will, _planted("vote before fsync")),
        (
            test_a_term_is_never_behind_the_log_after_a_restart,
            _here("__init__", "if term < log.last_term:", "if False:"),
        ),
        (_each_comparison, _planted("log comparison by index only")),
        (_each_comparison, _planted("log comparison left out")),
        (
            _each_comparison,
            _here(
                "_may_elect",
                "return message.log_term > self.log.last_term",
                "return message.log_term > self.log.last_term and message.index >= self.log.last_index",
            ),
        ),
    ],
)
def test_with_the_bug_planted_its_test_fails(test: Callable[[Any], None], mutant: Mutant) -> None:
    """1 to 12: each test above can fail, shown on the Python core's rules with one place changed."""
    with pytest.raises((AssertionError, RaftplugError, pytest.fail.Exception)):
        test(mutated(mutant))
