"""What must hold after every event (Ongaro 2014, figure 3.2), and that an acknowledgement means synced on a quorum."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raftplug import snapshots
from raftplug.constants import CANDIDATE, CONFIGURATION, FOLLOWER, LEADER, NOOP, PRE_CANDIDATE
from raftplug.frames import Id
from raftplug.node import NodeLoop
from raftplug.sessions import SESSION_TIMEOUT_US, Sessions
from raftplug.testing.simulation.part import Part
from raftplug.testing.simulation.plan import GROUP, NEVER
from raftplug.testing.simulation.report import Violation

if TYPE_CHECKING:
    from raftplug.testing.simulation.process import Process
    from raftplug.testing.simulation.world import Simulation

_ENTRIES_BYTES = 1_000
"""What a leader may hold beyond its bound: one transition, and what it appends itself."""


class Invariants(Part):
    """What all nodes must agree on, and each must keep to."""

    def __init__(self, world: Simulation) -> None:
        super().__init__(world)
        self.committed: dict[int, int] = {0: 0}  # Of each entry by index: its check.
        self.highest_commit = 0
        self.leapt_us = 0  # How much logged time may be ahead of all clocks that run as they should.
        self._commit_term = 0  # No lower than that of the leader that committed it.
        self._leaders: dict[int, Id] = {}  # By term.
        self._checks: dict[tuple[int, int], int] = {}  # Of the entries up to a last one: index, term.

    def begin_anew(self, term: int) -> None:
        """Another cluster goes on with what is committed, from a term that the one before may have left behind."""
        self._commit_term = term
        self._leaders.clear()
        self._checks.clear()

    def check(self, process: Process, clock: int) -> None:
        """The invariants, as far as this process can have broken them since its last turn."""
        node, disk = process.node, process.disk
        if node is None:
            return
        driver = node.drivers[GROUP]
        raft, log, sessions = driver.raft, driver.raft.log, driver.applier.sessions
        role, term, commit, last, configuration = raft.role, raft.term, raft.commit, log.last_index, raft.configuration
        last_check = log.check_at(last)  # It stands for all entries up to there.
        state = (role, term, commit, driver._applied, last, last_check, log.base_index, raft.configuration_index)
        is_new = state != process.state or configuration is not process.configuration
        if is_new:
            self._check_progress(process, term, commit, driver._applied)
            self._check_behind(process, driver)
            if self._checks.setdefault((last, log.last_term), last_check) != last_check:
                text = f"{process.id} has another history up to entry {last}, term {log.last_term}"
                raise Violation(f"log matching: {text}")
        if role == PRE_CANDIDATE:
            self._check_patience(process, driver, clock)
        elif role == CANDIDATE:
            self._check_candidate(process, term)
        elif role == LEADER:
            self._check_leader(process, raft, clock, (term, last, last_check))
        if is_new:
            self._check_committed(process, log, commit)
            self._check_members(process, raft)
        if self.plan.witnesses:
            self._check_witnesses(process, driver)
        if process.observer.leader != raft.leader or configuration is not process.configuration:
            process.observer.check_told(raft)
        for group, each in node.drivers.items():
            if each.raft.quiet:
                self._check_quiet(process, node, group, clock)
            elif process.quiet_under:
                process.quiet_under.pop(group, None)
            if each is not driver:
                self.world.companions.check(process, group, each.raft)
        if driver._diverged and not self.world.diverged:
            raise Violation(f"divergence: {process.id} says {', '.join(map(str, driver._diverged.values()))}")
        if sessions.now_us > SESSION_TIMEOUT_US + self.leapt_us:  # No run is as long as a session lives.
            raise Violation(f"sessions: logged time leapt to {sessions.now_us} us on {process.id}")
        if len(driver._pending) > self.plan.settings.max_pending:
            raise Violation(f"bounded queues: {process.id} holds {len(driver._pending)} proposals")
        self.check_calls(process.id, driver.requester)
        is_kept = term != disk.term or raft.vote is None or disk.votes.get(term) == raft.vote
        if not (is_kept or raft.writing or node._writing or GROUP in node._unwritten):
            raise Violation(f"durability: the vote of {process.id} in term {term} is not on its disk")
        if driver.snapshots.fetch is not None:
            self.world.faults.moments.fetches(process, driver.snapshots.fetch)
        if driver._loading is not None and driver.is_witness is None:
            self.world.faults.moments.waits(process, driver._loading.snapshot)
        if role == LEADER or term != process.term or commit != process.commit:
            self.world.note(f"{process.id} {role} {term} {last} {commit} {driver._applied}")
        if is_new:
            process.state, process.configuration = state, configuration
            process.term, process.commit, process.applied = term, commit, driver._applied

    def _goes_by_its_disk(self, process: Process, raft: Any, peer: str) -> bool:
        """Whether a member came, is known by no directory yet, and the latest leader has to go by what is there now.

        An earlier directory was gone before the member came; who has left is told that, and counts no more.
        """
        members = raft.configuration
        if peer in members.storages or peer not in members.members() or self.world.processes[peer].displaced:
            return False
        return bool(raft.progress[peer].since) and self.world.leading() is process

    def _check_progress(self, process: Process, term: int, commit: int, applied: int) -> None:
        if term < process.term:
            raise Violation(f"monotony: term of {process.id} went from {process.term} to {term}")
        if commit < process.commit or applied < process.applied:
            raise Violation(f"monotony: commit or applied index of {process.id} went back")

    def _check_behind(self, process: Process, driver: Any) -> None:
        """Whose machine has been behind by more than it may be, since the last look, has taken nothing since."""
        applied, log = driver._applied, driver.raft.log
        if not process.state or driver.is_witness is not False or applied < log.base_index:
            return
        _, _, commit, applied_before, last, *_ = process.state
        if applied != applied_before or log.last_index <= last or log.kind_at(log.last_index) in (NOOP, CONFIGURATION):
            return  # What a leader appends itself does not count.
        if commit > applied and log.bytes_between(applied + 1, commit + 1) > self.plan.settings.max_unapplied_bytes:
            raise Violation(f"bounded queues: {process.id} takes entries, though its machine is too far behind")

    def _check_patience(self, process: Process, driver: Any, clock: int) -> None:
        """Nobody campaigns before an election timeout without a leader, who prefers not to lead later (§3.4).

        Whose group was quiet may have been woken because the leader is gone, and need not wait for as long.
        """
        settings, waited = driver.settings, clock - driver.raft.contact
        least = 1_000 * settings.election_timeout_ms * (1 + settings.lead_reluctance)
        if waited < least and not settings.quiet_after_ms:
            raise Violation(f"priority: {process.id} campaigns after {waited} us, and was to wait for {least}")

    def check_calls(self, id: Id, requester: Any) -> None:
        """Nobody has more under way than it may; what opens its session is no call of anybody's."""
        if len(requester._calls) > self.plan.settings.max_pending + 1:
            raise Violation(f"bounded queues: {id} waits for {len(requester._calls)} answers")

    def _check_committed(self, process: Process, log: Any, commit: int) -> None:
        base = log.base_index
        if commit > process.commit:
            for index in range(max(process.commit, base) + 1, commit + 1):
                self._commit(process, index, log.check_at(index))
        elif commit >= base and commit in self.committed and log.check_at(commit) != self.committed[commit]:
            raise Violation(f"state machine safety: {process.id} replaced the committed entry {commit}")

    def _check_candidate(self, process: Process, term: int) -> None:
        if term != process.term_campaigned:
            process.term_campaigned = term
            self.world.faults.leaders.deafen(process)
        if process.disk.votes.get(term) == process.id and term != process.term_asked:
            process.term_asked = term
            self.world.faults.moments.asked_for_votes(process)

    def _check_leader(self, process: Process, raft: Any, clock: int, log_now: tuple[int, int, int]) -> None:
        """One a term; it only appends, counts what is on disks, and hears a quorum."""
        (term, last, _), log, base = log_now, raft.log, raft.log.base_index
        if self._leaders.setdefault(term, process.id) != process.id:
            raise Violation(f"election safety: {self._leaders[term]} and {process.id} lead term {term}")
        before = process.last_as_leader
        if before is not None and before[0] == term:
            if last < before[1] or (before[1] >= base and log.check_at(before[1]) != before[2]):
                raise Violation(f"leader append-only: {process.id} changed its log in term {term}")
        else:
            process.led_from = last
            self._elected(process, term, log, clock)
        process.last_as_leader = log_now
        window = self.plan.settings.window_appends
        for peer, progress in raft.progress.items():
            holder, match = self.world.processes[peer], progress.match
            # What is below a snapshot, there or here, was committed.
            is_new = holder.disk.term == term and match > base and match > holder.disk.base
            counts = is_new and not holder.holds(match, log.check_at(match))
            if not counts and match and self._goes_by_its_disk(process, raft, peer):
                counts = match > max(holder.disk.durable, default=holder.disk.base)
            if counts:
                raise Violation(f"durability: {process.id} counts entry {match}, which is not on the disk of {peer}")
            if progress.in_flight() > window:
                raise Violation(f"window: {process.id} has more appends on their way to {peer} than it may")
        if "little_room" in self.plan.faults:
            own = max(raft.commit, base, process.led_from)  # What it found may be committed without its knowledge.
            held = log.bytes_between(own + 1, last + 1) if last > own else 0
            if held > self.plan.settings.max_uncommitted_bytes + _ENTRIES_BYTES:
                raise Violation(f"bounded queues: {process.id} holds {held} bytes that are not committed")
        if raft.configuration is not process.configuration or raft.quiet or GROUP in process.quiet_under:
            process.elected_at = clock  # New members, and those who were quiet, had no time to say anything.
        oldest = clock - 2_000 * self.plan.settings.election_timeout_ms
        if process.elected_at < oldest and not is_quorum(raft.configuration, process.heard_since(oldest)):
            raise Violation(f"check-quorum: {process.id} leads, and has not heard of a quorum for too long")

    def _check_quiet(self, process: Process, node: NodeLoop, group: str, clock: int) -> None:
        """Nobody sleeps on whose leader's node is lost or another process now, or who leads and hears no quorum."""
        raft = node.drivers[group].raft
        oldest = clock - 2_000 * self.plan.settings.election_timeout_ms
        under = (raft.term, raft.leader, node._life_of(raft.leader))
        before, process.quiet_under[group] = process.quiet_under.get(group, under), under
        if before[0] == raft.term and before != under:  # In one turn it may have woken, and slept in a later term.
            raise Violation(f"quiet: {process.id} sleeps on in {group}, and another process is {raft.leader} now")
        heard = process.heard_since(oldest)
        alone = raft.leader not in heard or (raft.role == LEADER and not is_quorum(raft.configuration, heard))
        if alone and process.late_at < oldest:  # Who did not look cannot have heard.
            raise Violation(f"quiet: {process.id} sleeps on in {group}, and has not heard who must be there")
        if raft.commit != raft.log.last_index:
            raise Violation(f"quiet: {process.id} sleeps in {group}, and does not know all to be committed")
        # Whoever a quiet leader's node hears holds, durably, all that the leader holds.
        for peer, progress in raft.progress.items() if raft.role == LEADER else ():
            if peer not in node._lost and progress.match != raft.log.last_index:
                raise Violation(f"quiet: {process.id} sleeps and leads {group}, and {peer} lacks entries")

    def _check_witnesses(self, process: Process, driver: Any) -> None:
        """A witness never leads and executes nothing; what it holds, somebody holds who may lead."""
        if driver.raft.transferee in self.plan.witnesses:
            raise Violation(f"witnesses: {process.id} hands leadership to one")
        if process.id not in self.plan.witnesses:
            return
        if driver.raft.role in (CANDIDATE, LEADER):
            raise Violation(f"witnesses: {process.id} is one, and wants to lead")
        if driver.machine.count or driver.sessions.snapshot() != Sessions().snapshot():
            raise Violation(f"witnesses: {process.id} is one, and executed something")
        others = [each for each in self.world.processes.values() if each.id not in self.plan.witnesses]
        if not any(each.lost or each.disk.last >= process.disk.last for each in others):
            raise Violation(f"witnesses: {process.id} alone holds the newest entries")

    def _check_members(self, process: Process, raft: Any) -> None:
        """The configuration is the log's; one change at a time, by leaders that know what is committed."""
        index, log = raft.configuration_index, raft.log
        if index > log.base_index and (index > log.last_index or log.kind_at(index) != CONFIGURATION):
            raise Violation(f"members: {process.id} goes by entry {index}, which is no configuration of its log")
        known = raft.configuration.storages.get(process.id)
        if known is not None and known != process.disk.storage and raft.role != FOLLOWER:
            raise Violation(f"members: {process.id} is known by another disk, and wants to lead")
        if raft.role == LEADER and raft.configuration is not process.configuration:
            if log.term_at(index) == raft.term and log.term_at(raft.commit) != raft.term:
                raise Violation(f"members: {process.id} changes them before it committed anything in its term")
            self.world.faults.moments.changed_members(
                process, set(raft.configuration.voters) - set(process.configuration.voters)
            )
            if sum(each > self.highest_commit for each in process.disk.configurations) > 1:
                raise Violation(f"members: {process.id} has two changes under way")

    def _elected(self, process: Process, term: int, log: Any, clock: int) -> None:
        """A process leads a new term."""
        process.elected_at = clock
        # Who leaves may lead until that is committed (Ongaro 2014 §4.2.2).
        if not any(members.is_voter(process.id) for members in process.disk.configurations.values()):
            raise Violation(f"election safety: {process.id} leads term {term} and is no voter")
        # Of another disk than the one by which a member is known, nothing counts.
        members = process.driver().raft.configuration
        everybody = self.world.processes.values()
        voters = {each.id for each in everybody if each.voted_for(process.id, term, members.storages.get(each.id))}
        if not is_quorum(members, voters):
            raise Violation(f"election safety: {process.id} leads term {term} with votes on {len(voters)} disks")
        self._check_completeness(process.id, term, log)
        self.world.faults.moments.elected(process)

    def _check_completeness(self, id: str, term: int, log: Any) -> None:
        """A new leader holds what leaders of earlier terms have committed; later terms may be ahead of it already."""
        highest = self.highest_commit
        if term <= self._commit_term or highest < log.base_index:
            return
        if highest > log.last_index or log.check_at(highest) != self.committed[highest]:
            raise Violation(f"leader completeness: {id} leads term {term} without what is committed")

    def _commit(self, process: Process, index: int, check: int) -> None:
        if self.committed.setdefault(index, check) != check:
            raise Violation(f"state machine safety: {process.id} committed another entry {index}")
        if index > self.highest_commit:
            self.highest_commit, self._commit_term = index, process.driver().raft.term
            # The configuration that counted may have been replaced since.
            for members in (process.configuration, process.driver().raft.configuration):
                everybody = self.world.processes.values()
                holders = {each.id for each in everybody if each.holds(index, check, members.storages.get(each.id))}
                if is_quorum(members, holders):
                    break
            else:
                raise Violation(f"durability: entry {index} is committed, and on {len(holders)} disks only")
            self._check_electable(index, check)

    def _check_electable(self, index: int, check: int) -> None:
        """Nobody who lacks what is committed could yet win an election (Ongaro 2014 §3.6.1, figure 3.7)."""
        known = [each for each in self.world.processes.values() if not each.displaced and each.disk.may_vote(each.id)]
        for each in known:
            members = each.disk.members()
            if each.disk.durable.get(index) != check and each.disk.base < index and members.is_voter(each.id):
                # The vote of another disk than the one by which it knows a member does not count.
                counted = [
                    other for other in known if other.disk.storage == members.storages.get(other.id, other.disk.storage)
                ]
                voters = {other.id for other in counted if other.disk.last <= each.disk.last}
                if is_quorum(members, voters):
                    raise Violation(f"leader completeness: entry {index} is committed, {each.id} could win without it")

    def check_given(self, process: Process, body: bytes) -> None:
        """Whoever fetches a snapshot gets all of it, though a newer one was made meanwhile."""
        digest, _, data = snapshots.decode_piece(body)
        now, recently = process.clock(), 2_000 * self.plan.settings.election_timeout_ms
        if data is not None:
            process.given[digest] = now
        elif digest in process.kept[-2:] and now - process.given.get(digest, -NEVER) < recently:
            raise Violation(f"snapshots: {process.id} dropped one that is being fetched")


def is_quorum(configuration: Any, ids: set[str]) -> bool:
    """Whether `ids` hold a majority of the voters, and of the outgoing ones; by our own count, not by the rules'."""
    voters, outgoing = configuration.voters, configuration.outgoing
    if outgoing and 2 * len(ids.intersection(outgoing)) <= len(outgoing):
        return False
    return 2 * len(ids.intersection(voters)) > len(voters) if voters else bool(outgoing)
