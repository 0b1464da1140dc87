"""The consensus rules of one replica of one group, written once, without I/O.

`Raft` is handed messages (`step`), proposals (`propose`), read requests (`read`), the time (`tick`) and the completion
of its own writes (`persisted`); after any number of these, `ready` says what must happen now: messages to send, a write
to make durable, reads that may be answered.  It knows no clock, socket, thread or random source.

Two rules run through everything:

* **Nothing that depends on a write leaves before the write is durable.**  A message that carries a term or a vote waits
  until both are on disk (`_held`); an acknowledgement never claims more than `stable`, the last index on our own disk;
  a leader and a candidate count themselves by the same rule (Ongaro 2014 §3.8, §10.2.1).
* **One write at a time** is under way.  What changes meanwhile belongs to the next one; a truncation meanwhile lowers
  what the completion will count, so that a completion can never vouch for entries that were replaced (`_writing_last`).

Times are microseconds of a monotonic clock, of any origin.  The rules follow Ongaro 2014 ("Consensus: Bridging Theory
and Practice") with pre-vote (§9.6), check-quorum (§6.2) and ReadIndex (§6.4).
"""

from typing import Any

from raftplug import _cy as cython
from raftplug.constants import (
    APPEND,
    APPEND_RESPONSE,
    CANDIDATE,
    CONFIGURATION,
    FOLLOWER,
    HIGHEST,
    INSTALL,
    LEADER,
    NOOP,
    PRE_CANDIDATE,
    PRE_VOTE,
    PRE_VOTE_RESPONSE,
    PROBE,
    REPLICATE,
    SNAPSHOT,
    TERMS_AHEAD,
    TIMEOUT_NOW,
    VOTE,
    VOTE_RESPONSE,
)
from raftplug.errors import ChangeRefused, InvariantViolated, MalformedMessage, NotLeader, RaftplugError

if not cython.compiled:
    from raftplug._core_py import Log, Message, Progress, Ready, new_message, new_ready, quorum_match
    from raftplug.configuration import Configuration


@cython.final
@cython.cclass
class Raft:
    """One replica's rules.

    Args:
        id: this replica; int or str.
        configuration: the members as of the log's base.
        log: what was durable at the start; all of it counts as stable.
        term, vote: the durable hard state; the term is at least that of the log's last entry.
        now: the time.
        election_timeout, heartbeat: microseconds.
        draw: draw(n) gives a random int in [0, n]; the only randomness there is.
        max_append_bytes, window_bytes, window_appends: see `Settings`.
        storage: uuid of the data directory that this is; None if there is none.
        lease: how long a leader may answer reads after it sent a round that a quorum answered, microseconds, less than
            the election timeout by what clocks may differ; 0 is never (Ongaro 2014 §6.4.1).
        joined: whether its log began empty, in a group that had one: see `_may_vote`.

    Raises:
        InvariantViolated: the hard state is behind the log.

    Invariants: commit <= log.last_index; stable <= log.last_index; log.base_index <= commit; for a peer's Progress,
    0 <= match < next; a leader's log is only appended to.
    """

    id: Any = cython.declare(object, visibility="readonly")
    configuration: Configuration = cython.declare(Configuration, visibility="readonly")
    configuration_index: cython.longlong = cython.declare(cython.longlong, visibility="readonly")
    log: Log = cython.declare(Log, visibility="readonly")
    term: cython.longlong = cython.declare(cython.longlong, visibility="readonly")
    vote: Any = cython.declare(object, visibility="readonly")
    role: cython.longlong = cython.declare(cython.longlong, visibility="readonly")
    leader: Any = cython.declare(object, visibility="readonly")
    commit: cython.longlong = cython.declare(cython.longlong, visibility="readonly")
    stable: cython.longlong = cython.declare(cython.longlong, visibility="readonly")
    now: cython.longlong = cython.declare(cython.longlong, visibility="readonly")
    progress: dict[Any, Any] = cython.declare(dict, visibility="readonly")
    snapshot_index: cython.longlong = cython.declare(cython.longlong, visibility="readonly")
    snapshot_term: cython.longlong = cython.declare(cython.longlong, visibility="readonly")
    writing: cython.bint = cython.declare(cython.bint, visibility="readonly")
    installing: Any = cython.declare(object, visibility="readonly")
    contact: cython.longlong = cython.declare(cython.longlong, visibility="readonly")
    transferee: Any = cython.declare(object, visibility="readonly")
    removed: cython.bint = cython.declare(cython.bint, visibility="readonly")
    storage: Any = cython.declare(object, visibility="readonly")
    quiet: cython.bint = cython.declare(cython.bint, visibility="readonly")

    _joined: cython.bint
    _configurations: list[Any]
    _mark: cython.longlong
    _lease: cython.longlong
    _lease_until: cython.longlong
    _transferred: cython.bint
    _unsettled: cython.bint
    _handed_over: cython.bint
    _transfer_deadline: cython.longlong
    _draw: Any
    _election_timeout: cython.longlong
    _heartbeat: cython.longlong
    _max_append_bytes: cython.longlong
    _window_bytes: cython.longlong
    _window_appends: cython.longlong
    _election_deadline: cython.longlong
    _election_delay: cython.longlong
    _heartbeat_deadline: cython.longlong
    _quorum_deadline: cython.longlong
    _votes: set[Any]
    _out: list[Any]
    _held: list[Any]
    _hard_durable: cython.bint
    _durable_term: cython.longlong
    _durable_vote: Any
    _writing_term: cython.longlong
    _writing_vote: Any
    _writing_last: cython.longlong
    _submitted: cython.longlong
    _verified: cython.longlong
    _ack_due: cython.bint
    _context: cython.longlong
    _term_start: cython.longlong
    _round: cython.longlong
    _new_reads: list[Any]
    _rounds: list[Any]
    _reads: list[Any]
    _failed_reads: list[Any]
    _truncated: list[Any]
    _nothing: Ready

    def __init__(
        self,
        id: Any,
        configuration: Configuration,
        log: Log,
        term: cython.longlong,
        vote: Any,
        now: cython.longlong,
        election_timeout: cython.longlong,
        heartbeat: cython.longlong,
        draw: Any,
        max_append_bytes: cython.longlong = 65536,
        window_bytes: cython.longlong = 262144,
        window_appends: cython.longlong = 128,
        storage: Any = None,
        lease: cython.longlong = 0,
        joined: cython.bint = False,
    ) -> None:
        if term < log.last_term:
            raise InvariantViolated(f"the hard state's term {term} is behind the log's {log.last_term}")
        self.id = id
        self.storage = storage
        self._joined = joined
        self._lease = min(lease, election_timeout)
        self._lease_until = 0
        self._transferred = False
        self._mark = int.from_bytes(storage[:7], "big") if storage else 0
        self.log = log
        self.set_configuration(configuration)
        self.term = term
        self.vote = vote
        self.role = FOLLOWER
        self.leader = None
        self.commit = log.base_index
        self.stable = log.last_index
        self.now = min(now, HIGHEST // 2)  # No sum of the time and a timeout is out of range.
        self.progress = {}
        self.snapshot_index = log.base_index
        self.snapshot_term = log.base_term
        self.writing = False
        self._draw = draw
        self._election_timeout = min(election_timeout, HIGHEST // 8)
        self._heartbeat = min(heartbeat, HIGHEST // 8)
        self._max_append_bytes = max_append_bytes
        self._window_bytes = window_bytes
        self._window_appends = window_appends
        self._election_deadline = now
        self._election_delay = self._election_timeout
        self._heartbeat_deadline = now
        self._quorum_deadline = now
        self.contact = now
        self._votes = set()
        self._out = []
        self._held = []
        self._hard_durable = True
        self._durable_term = term
        self._durable_vote = vote
        self._writing_term = term
        self._writing_vote = vote
        self._writing_last = log.last_index
        self._submitted = log.last_index
        self.installing = None
        self._verified = 0
        self._ack_due = False
        self._context = 0
        self._term_start = 0
        self._round = 0
        self._new_reads = []
        self._rounds = []
        self._reads = []
        self._failed_reads = []
        self._truncated = []
        self._nothing = new_ready()
        self.transferee = None
        self.removed = False
        self.quiet = False
        self._unsettled = False
        self._handed_over = False
        self._transfer_deadline = 0
        self._adopt(log.base_index + 1)
        # A sole voter has nobody to wait for.
        if self.configuration.members() != [self.id]:
            self.draw_election_timer()

    # ---------------------------------------------------------------- inputs

    def tick(self, now: cython.longlong) -> None:
        """Let the time be `now`; start an election, step down or send heartbeats if that is due.

        Step the messages that wait before this: after a pause of the process they show who is alive.
        """
        self.set_time(now)
        if self.role == LEADER:
            if self.now >= self._quorum_deadline:
                self._check_quorum()
            if self.transferee is not None and self.now >= self._transfer_deadline:
                self.transferee = None  # It did not take over: writes resume (Ongaro 2014 §3.10).
            if self.role == LEADER and self.now >= self._heartbeat_deadline:
                # All groups of a process at the same times: one frame to a node carries the heartbeats of all.
                self._heartbeat_deadline = (self.now // self._heartbeat + 1) * self._heartbeat
                self._handed_over = False
                if self._lease and self.commit >= self._term_start:
                    self._begin_round()
                for progress in self.progress.values():
                    self._send_empty(progress, False)
        elif self.now >= self._election_deadline:
            self._campaign()

    @cython.ccall
    def set_time(self, now: cython.longlong) -> None:
        """Let the time be `now`, never earlier than it was, and do nothing else yet."""
        if now > self.now:
            self.now = min(now, HIGHEST // 2)

    def deadline(self) -> cython.longlong:
        """When `tick` should be called next, if nothing else happens: microseconds."""
        if self.role == LEADER:
            return min(self._heartbeat_deadline, self._quorum_deadline)
        return self._election_deadline

    def step(self, message: Message, source: Any) -> None:
        """Take a message from `source`.

        Raises:
            MalformedBlock: its entries are damaged; log and commit index are as they were, only who leads was learned.
            MalformedMessage: it cannot be; likewise, and a higher term may have been learned.
            InvariantViolated: what must never be; the replica must stop.
        """
        kind: cython.longlong = message.kind
        message.peer = source
        if message.term > HIGHEST:
            raise MalformedMessage("a term that leaves no room for an election")
        if self.quiet:
            self.wake()
        if kind == PRE_VOTE:
            self._on_pre_vote(message)
            return
        if kind == PRE_VOTE_RESPONSE:
            self._on_pre_vote_response(message)
            return
        if kind == VOTE and not message.flag and self._hears_leader():
            return  # A removed or returning server must not disturb (Ongaro 2014 §4.2.3); before its term is adopted.
        if message.term > self.term:
            self._become_follower(message.term, None)  # Figure 3.1, "Rules for all servers".
        elif message.term < self.term:
            self._refuse_stale(message)
            return
        if message.term > self.term:
            return  # Its term is reached in steps: see `_become_follower`.
        if kind == APPEND:
            self._on_append(message)
        elif kind == APPEND_RESPONSE:
            if self.role == LEADER:
                self._on_append_response(message)
        elif kind == VOTE:
            self._on_vote(message)
        elif kind == VOTE_RESPONSE:
            self._on_vote_response(message)
        elif kind == SNAPSHOT:
            self._on_snapshot(message)
        elif kind == TIMEOUT_NOW:
            self._on_timeout_now(message)
        else:
            raise MalformedMessage(f"a message of kind {kind}")

    def set_configuration(self, configuration: Configuration) -> None:
        """The members that an installed snapshot names count from now on."""
        self._configurations = [(self.log.base_index, configuration)]
        self._use_last_configuration()

    def configuration_at(self, index: cython.longlong) -> Configuration:
        """The members as of entry `index`, which is not compacted away: what belongs into a snapshot there."""
        found: Configuration = self._configurations[0][1]
        for at, configuration in self._configurations:
            if at <= index:
                found = configuration
        return found

    def is_displaced(self) -> cython.bint:
        """Whether the group knows this member by another data directory: ours is new, or a copy."""
        return bool(self.configuration.storages.get(self.id, self.storage) != self.storage)

    @cython.ccall
    def is_early(self, answer: Message, source: Any) -> cython.bint:
        """Whether we lead, and `source` may have said it before it came as a member: of another directory, then."""
        progress: Progress | None = self.progress.get(source)
        if progress is None or progress.since == 0:
            return False
        return answer.kind != APPEND_RESPONSE or answer.context < progress.since

    def propose(self, kind: cython.longlong, payload: bytes) -> cython.longlong:
        """Append an entry; it leaves with the next `ready`.

        Returns: its index.

        Raises:
            NotLeader: nothing was appended; also while leadership is handed over (Ongaro 2014 §3.10).
        """
        if self.role != LEADER or self.transferee is not None:
            raise NotLeader(leader=self.leader)
        return self.log._append(self.term, kind, payload)

    def change(self, target: Configuration) -> cython.longlong:
        """Begin to change the members to `target`, through a joint configuration if its voters differ.

        Returns: the index of the first entry of the change.  What follows the joint one is appended by itself.

        Raises:
            NotLeader: nothing was appended.
            ChangeRefused: likewise: another change is under way, or nothing of this leader's term is committed yet
                (the bug in the dissertation's single-server change, raft-dev 2015); or nobody would vote.
        """
        if self.role != LEADER or self.transferee is not None:
            raise NotLeader(leader=self.leader)
        if self.commit < self._term_start or self.commit < self.configuration_index or self.configuration.outgoing:
            raise ChangeRefused("another change of the members is under way: try again later")
        if not [peer for peer in target.voters if target.may_lead(peer)]:
            raise ChangeRefused("a group needs a voter that may lead")
        return self._append_configuration(self.configuration.towards(target))

    def transfer(self, target: Any) -> None:
        """Hand leadership over to `target` once it holds all of our log (Ongaro 2014 §3.10); None takes who is closest.

        Until it leads, or an election timeout has passed, nothing is appended.

        Raises:
            NotLeader: this replica does not lead.
            ChangeRefused: `target` is no other voter, or a witness; or leadership is being handed over.
        """
        if self.role != LEADER:
            raise NotLeader(leader=self.leader)
        others: list[Any] = [p for p in self.configuration.voters if p != self.id and self.configuration.may_lead(p)]
        if target is None and others:
            target = max(others, key=self._closeness)
        if target not in others or self.transferee is not None:
            raise ChangeRefused(f"leadership cannot be handed over to {target!r} now")
        self.transferee = target
        self._transferred = True  # No lease any more in this term: the target may campaign at any time.
        self._handed_over = False
        self._transfer_deadline = self.now + self._election_timeout

    def read(self, request: object, lease: cython.bint = False) -> None:
        """Ask for a read index for `request` (any object); the answer comes in `Ready.reads` (Ongaro 2014 §6.4).

        With `lease`, a leader that holds one answers without a round: nobody else can lead before it ends (§6.4.1).
        After a transfer began, and while the group is quiet, there is none.

        Raises:
            NotLeader: ask the leader.
        """
        if self.role != LEADER:
            raise NotLeader(leader=self.leader)
        if lease and self.now < self._lease_until and not (self.quiet or self._transferred):
            self._reads.append((request, self.commit))
        else:
            self._new_reads.append(request)

    def resign(self) -> None:
        """Give up leadership: this replica cannot do a leader's work now (its disk is full, say)."""
        self.wake()
        if self.role == LEADER:
            self._become_follower(self.term, None)

    @cython.ccall
    def is_idle(self) -> cython.bint:
        """Whether all is committed and on our disk, somebody leads, and a leader has nothing else under way.

        A round that only renews a lease is nothing: nobody waits for it.
        """
        asked: list[Any] = [requests for _, _, requests, _ in self._rounds if requests]
        if self._new_reads or asked or self.transferee is not None or (self.role == LEADER and self._unsettled):
            return False
        return self._hard_durable and self.leader is not None and self.commit == self.stable == self.log.last_index

    def rest(self) -> None:
        """Go quiet, if idle: neither heartbeats nor check-quorum nor an election until something wakes us.

        For owners that watch the nodes instead of the groups: see `quiescence`.
        """
        if self.is_idle():
            self.quiet = True
            self._election_deadline = self._heartbeat_deadline = self._quorum_deadline = HIGHEST

    @cython.ccall
    def wake(self, lost: cython.bint = False) -> None:
        """Watch the time again, if quiet: any message does this, and whatever a leader has to do.

        Until now the leader's node was heard, which counts as having heard the leader (Ongaro 2014 §4.2.3); unless it
        is `lost`, or another process now: then an election begins within an election timeout.
        """
        if not self.quiet:
            return
        self.quiet = False
        self._heartbeat_deadline = self.now
        self._quorum_deadline = self.now + self._election_timeout
        self.draw_election_timer()
        if lost:
            self._election_deadline -= self._election_timeout
        else:
            self.contact = self.now

    @cython.ccall
    def draw_election_timer(self) -> None:
        """Start the election timer with a new random delay, so that split votes do not repeat (Ongaro 2014 §3.4).

        An owner of many groups may also do this to one whose time has come, if too many campaign already.
        """
        drawn: cython.longlong = self._draw(self._election_timeout)
        self._election_delay = self._election_timeout + drawn
        self._election_deadline = self.now + self._election_delay

    def snapshot_stored(self, index: cython.longlong, keep: cython.longlong) -> None:
        """A snapshot of our own state up to `index` is durable: compact the log, but for its last `keep` entries.

        One that a newer snapshot has overtaken meanwhile changes nothing.
        """
        if index <= self.snapshot_index:
            return
        if index > self.commit or index > self.stable:
            raise InvariantViolated(f"a snapshot at {index} is ahead of what is committed and stable")
        self.snapshot_term = self.log.term_at(index)
        self.snapshot_index = index
        if index - max(keep, 0) > self.log.base_index:
            self.log.compact(index - max(keep, 0))
            while len(self._configurations) > 1 and self._configurations[1][0] <= self.log.base_index:
                self._configurations.pop(0)

    # --------------------------------------------------------------- outputs

    def applicable(self) -> cython.longlong:
        """The last index that may be applied: committed, and on our own disk, so no snapshot can outrun the log."""
        return min(self.commit, self.stable)

    def ready(self, may_write: cython.bint = True) -> Ready:
        """Take what must happen now; without `may_write` what is to be written waits for a later turn."""
        if self.role == LEADER:
            if self.quiet and not self.is_idle():
                self.wake()
            if self._unsettled:
                self._settle()
            if self._new_reads and self.commit >= self._term_start:
                self._begin_round()
            self._replicate()
            if self.transferee is not None and not self._handed_over:
                self._hand_over()
        last: cython.longlong = self.log.last_index
        changed: cython.bint = not self._hard_durable or self._submitted < last or self.installing is not None
        write: cython.bint = changed and may_write and not self.writing
        if not (write or self._out or self._reads or self._failed_reads or self._truncated):
            return self._nothing
        result: Ready = new_ready()
        if self._out:
            result.messages, self._out = self._out, []
        if self._reads:
            result.reads, self._reads = self._reads, []
        if self._failed_reads:
            result.failed_reads, self._failed_reads = self._failed_reads, []
        if self._truncated:
            result.truncated, self._truncated = self._truncated, []
        if write:
            result.write = True
            result.term = self.term
            result.vote = self.vote
            result.snapshot = self.installing
            if self._submitted < last:
                result.first = self._submitted + 1
                result.block = self.log._slice(result.first, last + 1)
            self.writing = True
            self._writing_term = self.term
            self._writing_vote = self.vote
            self._writing_last = last
            self._submitted = last
            self.installing = None
        return result

    def persisted(self) -> None:
        """The write of the last `Ready` that had one is durable: count it, and release what waited for it."""
        if not self.writing:
            raise InvariantViolated("a completion, but no write is under way")
        self.writing = False
        self._durable_term = self._writing_term
        self._durable_vote = self._writing_vote
        self._hard_durable = self._durable_term == self.term and self._durable_vote == self.vote
        # Truncations since the write began have lowered _writing_last (etcd-io/raft's ABA race).
        self.stable = max(self.stable, self._writing_last)
        if self._hard_durable:
            if self._held:
                self._out += [message for message in self._held if message.term == self.term]
                self._held = []
            if self.role == CANDIDATE:
                self._count_vote(self.id)  # Our own vote counts once it is on disk, like any other.
        if self.role == LEADER:
            self._advance_commit()
        elif self._ack_due and self.leader is not None:
            self._acknowledge(self.leader)

    # ----------------------------------------------------------------- roles

    @cython.cfunc
    def _hears_leader(self) -> cython.bint:
        """Whether a leader was heard within the minimum election timeout (Ongaro 2014 §4.2.3).

        A leader always says yes: it steps down by check-quorum when it no longer hears a quorum.  Where leaders hold
        leases this is a promise: a newer term does not end it, nor does a restart, which may have forgotten one.
        """
        heard: cython.bint = self.now < self.contact + self._election_timeout
        return self.role == LEADER or (heard and (self.leader is not None or self._lease > 0))

    @cython.cfunc
    def _become_follower(self, term: cython.longlong, leader: Any) -> None:
        """Follow in this term; in a higher one, as far as one message may raise it, so that no forged one ends all."""
        if term > self.term:
            self._enter_term(term if term - self.term < TERMS_AHEAD else self.term + TERMS_AHEAD, None)
        if self.role == LEADER:
            self.draw_election_timer()
            self._failed_reads.extend(self._new_reads)
            for _, _, requests, _ in self._rounds:
                self._failed_reads.extend(requests)
            self._new_reads = []
            self._rounds = []
            self.progress = {}
            self.transferee = None
        self.role = FOLLOWER
        self.leader = leader

    @cython.cfunc
    def _enter_term(self, term: cython.longlong, vote: Any) -> None:
        """A new term: nothing owed or known in the old one counts.  Within a term a vote is never taken back."""
        self.term = term
        self.vote = vote
        self._hard_durable = False
        self._held = []
        self._verified = 0
        self._ack_due = False
        self._context = 0

    @cython.cfunc
    def _campaign(self) -> None:
        """Ask whether an election could be won, without raising the term (Ongaro 2014 §9.6)."""
        self.draw_election_timer()
        if not self._may_campaign() or self.term >= HIGHEST:
            return
        self.role = PRE_CANDIDATE
        self.leader = None
        self._votes = {self.id}
        if self.configuration.has_quorum(self._votes):
            self._become_candidate(False)
            return
        for peer in self.configuration.members():
            if peer != self.id and self.configuration.is_voter(peer):
                self._emit(peer, self._vote_request(PRE_VOTE, self.term + 1))

    @cython.cfunc
    def _standing(self) -> list[Any]:
        """The newest configuration, and those before it of which it is not known to be over."""
        over: cython.longlong = len([index for index, _ in self._configurations if index <= self.commit]) - 1
        return [configuration for _, configuration in self._configurations[over:]]

    @cython.cfunc
    def _may_vote(self) -> cython.bint:
        """Whether we have a part in elections: who joined has none until its log names it, by its own directory.

        Before, a member that it knows, or is, by id alone may be one whose disk is lost, with what it acknowledged:
        new disks under old ids would found the group anew.  Nobody becomes a voter before (`_has_caught_up`).
        """
        members: list[Any] = [each for each in self._standing() if self.id in each.members()]
        return not self._joined or self.storage in [each.storages.get(self.id) for each in members]

    @cython.cfunc
    def _may_campaign(self) -> cython.bint:
        """Whether we vote, and are no witness, by the newest configuration or by one not yet known to be over.

        Whoever is to leave may hold the only copy of the entry that says so: until that is committed it must be able to
        lead, or nobody could (Ongaro 2014 §4.2.2).  Who lost its disk holds less than it once acknowledged: it does not
        lead, nor count itself.
        """
        voting: list[Any] = [each for each in self._standing() if each.may_lead(self.id)]
        return len(voting) > 0 and not self.is_displaced() and self._may_vote()

    @cython.cfunc
    def _become_candidate(self, transfer: cython.bint) -> None:
        """Ask for votes; with `transfer` also of those who hear the leader, which asked for it (§3.10)."""
        self.draw_election_timer()
        self.role = CANDIDATE
        self._enter_term(self.term + 1, self.id)
        self._votes = set()
        for peer in self.configuration.members():
            if peer != self.id and self.configuration.is_voter(peer):
                vote: Message = self._vote_request(VOTE, self.term)
                vote.flag = transfer
                self._send(peer, vote)

    @cython.cfunc
    def _vote_request(self, kind: cython.longlong, term: cython.longlong) -> Message:
        """A request whose answer counts on this disk only: one that was lost may have asked in the same term."""
        return Message(kind, term, index=self.log.last_index, log_term=self.log.last_term, context=self._mark)

    @cython.cfunc
    def _count_vote(self, voter: Any) -> None:
        if not self.configuration.is_voter(voter):
            return
        self._votes.add(voter)  # A set: a grant that is delivered twice is one vote.
        if self.configuration.has_quorum(self._votes):
            self._become_leader()

    @cython.cfunc
    def _become_leader(self) -> None:
        if self.role != CANDIDATE or self._durable_term != self.term or self._durable_vote != self.id:
            raise InvariantViolated("a leader whose own vote is not on its disk")
        self.role = LEADER
        self.leader = self.id
        next_index: cython.longlong = self.log.last_index + 1
        self.progress = {
            peer: Progress(peer, next_index, self.now) for peer in self.configuration.members() if peer != self.id
        }
        self._heartbeat_deadline = (self.now // self._heartbeat + 1) * self._heartbeat
        self._quorum_deadline = self.now + self._election_timeout
        self._round = 0
        self._transferred = False
        self._lease_until = 0
        self._unsettled = True
        # An entry of the own term, so that what earlier leaders left can commit (§3.6.2) and reads may begin (§6.4).
        self._term_start = self.log.append(self.term, NOOP, b"")

    @cython.cfunc
    def _check_quorum(self) -> None:
        """Step down unless a quorum was heard within an election timeout (Ongaro 2014 §6.2)."""
        self._quorum_deadline = self.now + self._election_timeout
        heard: set[Any] = {self.id}
        progress: Progress
        for peer, progress in self.progress.items():
            if self.now - progress.contact < self._election_timeout:
                heard.add(peer)
            elif progress.state == REPLICATE:
                # A silent peer gets heartbeats only, until it answers one.
                progress.state = PROBE
                progress.next = progress.match + 1
                progress.paused = True
        if not self.configuration.has_quorum(heard):
            self._become_follower(self.term, None)

    # ---------------------------------------------------------------- voting

    @cython.cfunc
    def _may_elect(self, message: Message) -> cython.bint:
        """Whether we vote, and the sender's log is at least as up to date as ours: last term, then length (§3.6.1)."""
        if not self._may_vote():
            return False
        if message.log_term != self.log.last_term:
            return message.log_term > self.log.last_term
        return message.index >= self.log.last_index

    @cython.cfunc
    def _on_pre_vote(self, message: Message) -> None:
        # Nothing of ours changes: no term, no vote, no timer.
        granted: cython.bint = message.term > self.term and not self._hears_leader() and self._may_elect(message)
        answer: Message = Message(PRE_VOTE_RESPONSE, message.term if granted else self.term, flag=granted)
        answer.context = message.context
        settled: cython.bint = self.commit >= self.configuration_index and self.commit >= self._term_start
        if self.role == LEADER and settled and message.peer not in self.configuration.members():
            answer.hint = 1  # It was removed while it was down, and would ask for ever.
        self._emit(message.peer, answer)

    @cython.cfunc
    def _on_pre_vote_response(self, message: Message) -> None:
        if message.context != self._mark:
            return
        if message.flag:
            if (
                self.role == PRE_CANDIDATE
                and message.term == self.term + 1
                and self.configuration.is_voter(message.peer)
            ):
                self._votes.add(message.peer)
                if self.configuration.has_quorum(self._votes):
                    self._become_candidate(False)
            return
        if message.hint and self.role == PRE_CANDIDATE:
            self.removed = True
        if message.term > self.term:
            self._become_follower(message.term, None)

    @cython.cfunc
    def _on_vote(self, message: Message) -> None:
        # A known leader of this term has had its quorum: nobody else can win, and our vote stays unspent.
        granted: cython.bint = (
            self.vote == message.peer or (self.vote is None and self.leader is None)
        ) and self._may_elect(message)
        if granted:
            self.role = FOLLOWER
            self._hard_durable = self._hard_durable and self.vote == message.peer
            self.vote = message.peer
            self.draw_election_timer()
        self._send(message.peer, Message(VOTE_RESPONSE, self.term, context=message.context, flag=granted))

    @cython.cfunc
    def _on_vote_response(self, message: Message) -> None:
        if self.role == CANDIDATE and message.flag and message.context == self._mark:
            self._count_vote(message.peer)

    # -------------------------------------------------------------- follower

    @cython.cfunc
    def _refuse_stale(self, message: Message) -> None:
        """Tell a sender of an older term ours, so that it steps down; count nothing that it says."""
        if message.kind == APPEND or message.kind == SNAPSHOT:
            self._send(message.peer, Message(APPEND_RESPONSE, self.term, index=message.index))
        elif message.kind == VOTE:
            self._send(message.peer, Message(VOTE_RESPONSE, self.term))

    @cython.cfunc
    def _follow(self, leader: Any) -> None:
        """`leader` leads our term: any message of its is contact, whatever it asks."""
        if self.role == LEADER:
            raise InvariantViolated(f"two leaders in term {self.term}: {self.id!r} and {leader!r}")
        if self.leader is not None and self.leader != leader:
            raise InvariantViolated(f"two leaders in term {self.term}: {self.leader!r} and {leader!r}")
        if self.role != FOLLOWER or self.leader is None:
            self._become_follower(self.term, leader)
            self.draw_election_timer()
        self.contact = self.now
        self._election_deadline = self.now + self._election_delay

    @cython.cfunc
    def _on_append(self, message: Message) -> None:
        self._follow(message.peer)
        previous: cython.longlong = message.index
        if previous < self.commit:
            # All up to our commit index is the leader's too (Leader Completeness): say how far we are instead.
            self._verified = max(self._verified, self.commit)
            self._answer(message, True)
            return
        if self.log._term_at(previous) != message.log_term:
            self._reject(message)
            return
        verified: cython.longlong = previous
        if message.data:
            first: cython.longlong
            first, verified = self.log._check_block(message.data, previous, message.term)
            if first:  # Only a real conflict truncates: a late duplicate of old entries must not (Figure 3.1, step 3).
                if first <= self.log.last_index:
                    self._truncate(first)
                self.log._extend(message.data, first)
                try:
                    self._adopt(first)
                except RaftplugError as error:
                    self._truncate(first)  # A member of a later version may know configurations that we cannot read.
                    raise MalformedMessage(f"entries from {first} on cannot be taken: {error}") from None
        self._verified = max(self._verified, verified)
        # Never beyond what this leader has verified: our tail may be another's (Figure 3.1, step 5).
        self.commit = max(self.commit, min(message.commit, verified))
        if message.flag and self.commit >= self.configuration_index and self.id not in self.configuration.members():
            self.removed = True  # The leader parts from us.
        # A notice of the commit index wants no answer, but for a new read round: heartbeats show who is there, and
        # what was lost (etcd-io/raft answers each; that is half of an idle cluster's messages).
        self._answer(message, self._verified <= self.stable if message.data else not message.hint)

    @cython.cfunc
    def _truncate(self, index: cython.longlong) -> None:
        if index <= self.commit:
            raise InvariantViolated(f"entry {index} is committed and must not be truncated (commit is {self.commit})")
        for offset, entry in enumerate(self.log.entries(index, self.log.last_index + 1)):
            self._truncated.append((index + offset, *entry))
        self.log.truncate(index)
        self.stable = min(self.stable, index - 1)
        self._submitted = min(self._submitted, index - 1)
        self._writing_last = min(self._writing_last, index - 1)
        if self.configuration_index >= index:
            while self._configurations[-1][0] >= index:
                self._configurations.pop()
            self._use_last_configuration()  # A configuration is undone with its entry (Ongaro 2014 §4.1).

    @cython.cfunc
    def _answer(self, message: Message, at_once: cython.bint) -> None:
        """Acknowledge, at once or when the entries are durable; a read round is never kept waiting for the disk."""
        if message.context > self._context:
            self._context = message.context
            at_once = True
        self._ack_due = self._verified > self.stable
        if at_once:
            self._acknowledge(message.peer)

    @cython.cfunc
    def _acknowledge(self, leader: Any) -> None:
        """Say what is durable (index), what is verified (hint), and the last read round heard (context)."""
        self._ack_due = self._verified > self.stable
        durable: cython.longlong = min(self._verified, self.stable)
        self._send(
            leader, new_message(APPEND_RESPONSE, self.term, durable, 0, 0, self._context, self._verified, True, b"")
        )

    @cython.cfunc
    def _reject(self, message: Message) -> None:
        """The previous entry does not match: say where it might, skipping whole terms (Ongaro 2014 §3.5)."""
        self._context = max(self._context, message.context)
        hint: cython.longlong = min(message.index, self.log.last_index)
        while hint > self.commit and self.log.term_at(hint) > message.log_term:
            hint -= 1
        answer: Message = Message(APPEND_RESPONSE, self.term, index=message.index, context=self._context, hint=hint)
        answer.log_term = max(self.log.term_at(hint), 0)
        self._send(message.peer, answer)

    @cython.cfunc
    def _on_snapshot(self, message: Message) -> None:
        if message.index > HIGHEST or message.hint >= 1 << 32:
            raise MalformedMessage("a snapshot with an index or a check that cannot be")
        self._follow(message.peer)
        if message.index > self.commit:
            if self.log.term_at(message.index) == message.log_term:
                self.commit = message.index  # We hold all of it already: what follows it stays (Figure 5.3, step 6).
            else:
                # Whatever log we had conflicts or ends before it: all of it goes (Figure 5.3, step 7).
                if self.log.last_index > message.index:
                    self._truncate(message.index + 1)
                self.log.reset(message.index, message.log_term, message.hint)
                self.commit = message.index
                self.snapshot_index = message.index
                self.snapshot_term = message.log_term
                self.stable = 0
                self._submitted = message.index
                self._writing_last = 0
                self.installing = message
        self._verified = max(self._verified, self.commit)
        self._answer(message, True)

    @cython.cfunc
    def _on_timeout_now(self, message: Message) -> None:
        """Our leader hands over: campaign at once.  A repeated request is of an older term then (Ongaro 2014 §3.10)."""
        if self.leader == message.peer and self.term < HIGHEST and self._may_campaign():
            self.leader = None
            self._become_candidate(True)

    # --------------------------------------------------------------- members

    @cython.cfunc
    def _adopt(self, first: cython.longlong) -> None:
        """Configurations among the entries from `first` on count at once, committed or not (Ongaro 2014 §4.1)."""
        index: cython.longlong = self.log._find(CONFIGURATION, first)
        while index:
            try:
                self._configurations.append((index, Configuration.decode(self.log.payload_at(index))))
                self._use_last_configuration()
            except MalformedMessage:
                pass  # It is none, on every replica: the members stay.
            index = self.log._find(CONFIGURATION, index + 1)

    @cython.cfunc
    def _use_last_configuration(self) -> None:
        self.configuration_index, self.configuration = self._configurations[-1]

    @cython.cfunc
    def _append_configuration(self, configuration: Configuration) -> cython.longlong:
        before: list[Any] = self.configuration.members()
        index: cython.longlong = self.log.append(self.term, CONFIGURATION, configuration.encode())
        self._adopt(index)
        self._unsettled = True
        for peer in configuration.members():
            # Who comes back may have lost what it had: nothing that was known of it counts, nor what it said before.
            if peer != self.id and peer not in before:
                self._round += 1
                progress: Progress = Progress(peer, index, self.now)
                progress.since = self._round
                self.progress[peer] = progress
        return index

    @cython.cfunc
    def _settle(self) -> None:
        """Once a configuration is committed: leave a joint one, let in who has caught up, part from who left."""
        if self.commit < self.configuration_index or self.commit < self._term_start or self.transferee is not None:
            return  # While leadership moves nothing is appended; the next leader ends what is left.
        configuration: Configuration = self.configuration
        if configuration.outgoing:
            self._append_configuration(configuration.left())
            return
        members: list[Any] = configuration.members()
        peer: Any
        progress: Progress
        for peer, progress in list(self.progress.items()):
            if peer in members:
                continue
            # Who was removed is told so (camunda#57390), and stops; when it is silent, that is over.
            if self.now - progress.contact >= 2 * self._election_timeout:
                del self.progress[peer]
        if not configuration.is_voter(self.id):
            for progress in self.progress.values():
                self._send_empty(progress, False)
            successor: Any = max([p for p in configuration.voters if configuration.may_lead(p)], key=self._closeness)
            self._send(successor, Message(TIMEOUT_NOW, self.term))
            self._become_follower(self.term, None)  # Ongaro 2014 §4.2.2.
            self.removed = self.id not in members
            return
        ready: list[Any] = [peer for peer in configuration.joining if self._has_caught_up(peer)]
        if ready:
            learners: list[Any] = [peer for peer in configuration.learners if peer not in ready]
            joining: list[Any] = [peer for peer in configuration.joining if peer not in ready]
            voters: list[Any] = [*configuration.voters, *ready]
            target: Configuration = Configuration(voters, (), learners, joining, configuration.storages)
            self._append_configuration(configuration.towards(target))
            return
        self._unsettled = bool(configuration.joining) or len(self.progress) + 1 > len(members)

    @cython.cfunc
    def _has_caught_up(self, peer: Any) -> cython.bint:
        """Whether what `peer` lacks goes out at once, so that as a voter it holds up no commit (Ongaro 2014 §4.2.1).

        And whether it can vote: the configuration that names it by its directory is on its disk.
        """
        progress: Progress = self.progress[peer]
        heard: cython.bint = self.now - progress.contact < self._election_timeout
        named: cython.bint = self.storage is None or peer in self.configuration.storages
        if not heard or not named or progress.match < self.configuration_index:
            return False
        return progress.state == REPLICATE and self._lag(progress) <= self._window_bytes

    @cython.cfunc
    def _lag(self, progress: Progress) -> cython.longlong:
        """Bytes of entries that are not known to be durable there."""
        low: cython.longlong = max(progress.match, self.log.base_index) + 1
        return self.log.bytes_between(low, self.log.last_index + 1)

    @cython.cfunc
    def _closeness(self, peer: Any) -> tuple[Any, ...]:
        """Who would lead soonest: has answered lately, and holds most."""
        progress: Progress = self.progress[peer]
        return (self.now - progress.contact < self._election_timeout, progress.match)

    @cython.cfunc
    def _hand_over(self) -> None:
        """Ask the transferee to campaign once it holds everything; again with each heartbeat."""
        progress: Progress = self.progress[self.transferee]
        if progress.match == self.log.last_index and self.stable == self.log.last_index:
            self._handed_over = True
            self._send(self.transferee, Message(TIMEOUT_NOW, self.term))

    # ---------------------------------------------------------------- leader

    @cython.cfunc
    def _on_append_response(self, message: Message) -> None:
        progress: Progress | None = self.progress.get(message.peer)
        if progress is None or self.is_early(message, message.peer):
            return
        if message.flag and (message.hint > self.log.last_index or message.index > message.hint):
            raise MalformedMessage(f"an acknowledgement of {message.hint}, which this leader has not sent")
        progress.contact = self.now
        if message.context > progress.round and message.context <= self._round:
            progress.round = message.context
            self._confirm_rounds()
        if not message.flag and message.index <= progress.match:
            self._doubt(progress, message.context)
        if message.flag:
            self._on_success(progress, message)
        elif progress.state == REPLICATE:
            if message.index > progress.match:  # Else a late rejection of something acknowledged since.
                progress.state = PROBE
                progress.next = progress.match + 1
                progress.paused = False
        elif progress.state == PROBE:
            if message.index == progress.next - 1:  # Else an answer to an earlier probe.
                hint: cython.longlong = min(message.hint, self.log.last_index)
                while hint > self.log.base_index and self.log.term_at(hint) > message.log_term:
                    hint -= 1
                lower: cython.longlong = max(progress.match + 1, min(message.index, hint + 1))
                progress.paused = lower == progress.next  # Heartbeats only: see `_doubt`.
                progress.next = lower
        else:
            self._look_again(progress, message.hint)

    @cython.cfunc
    def _doubt(self, progress: Progress, context: cython.longlong) -> None:
        """It rejects what it acknowledged: a late answer, or its disk lost that (Ongaro 2014 §3.8 forbids it).

        An answer to a round that begins now is not late.
        """
        if not progress.doubted:
            self._round += 1
            progress.doubted = self._round
        elif context >= progress.doubted:
            progress.lost = progress.match

    @cython.cfunc
    def _on_success(self, progress: Progress, message: Message) -> None:
        if message.index > progress.match:
            progress.match = message.index
            progress.next = max(progress.next, progress.match + 1)  # Also while a snapshot is under way.
        if progress.state == INSTALL:
            if progress.match < progress.pending_snapshot and progress.match < self.log.base_index:
                if message.hint < progress.pending_snapshot:
                    self._look_again(progress, message.hint)
                return
            progress.state = REPLICATE
            progress.next = progress.match + 1
        elif progress.state == PROBE:
            progress.state = REPLICATE
        progress.paused = False
        progress.next = max(progress.next, message.hint + 1)
        if progress.match > self.commit:
            self._advance_commit()

    @cython.cfunc
    def _advance_commit(self) -> None:
        """Commit what a quorum has on disk, if the last of it is of our term (Ongaro 2014 §3.6.2, figure 3.7)."""
        index: cython.longlong = quorum_match(self.configuration.voters, self.progress, self.id, self.stable)
        if self.configuration.outgoing:
            index = min(index, quorum_match(self.configuration.outgoing, self.progress, self.id, self.stable))
        if index > self.commit and self.log._term_at(index) == self.term:
            self.commit = index

    @cython.cfunc
    def _replicate(self) -> None:
        """Send every peer what it lacks, as far as its window allows (Ongaro 2014 §10.2.1)."""
        last: cython.longlong
        progress: Progress
        for progress in self.progress.values():
            # Who may not lead gets what is on our disk: if a witness's log alone were the newest, also that of one that
            # is being removed, nobody could lead (§3.6.1).
            last = self.log.last_index
            if self.stable < last and not self.configuration.may_lead(progress.peer):
                last = self.stable
            if progress.state == REPLICATE:
                while progress.next <= last and self._has_room(progress):
                    if not self._send_entries(progress, last):
                        break
                # Followers apply, and answer reads, without waiting for a heartbeat.
                if progress.state == REPLICATE and progress.commit < min(self.commit, progress.next - 1):
                    self._send_empty(progress, progress.asked == self._round)
            elif progress.state == PROBE and not progress.paused and progress.next <= last:
                progress.paused = self._send_entries(progress, last)
            if progress.asked < self._round:
                self._send_empty(progress, False)

    @cython.cfunc
    def _has_room(self, progress: Progress) -> cython.bint:
        """Whether another append may leave: what was sent and is not acknowledged as durable stays in bounds."""
        low: cython.longlong = max(progress.match, self.log.base_index) + 1
        size: cython.longlong = self.log._bytes_between(low, progress.next) if progress.next > low else 0
        return size < self._window_bytes and progress.in_flight() < self._window_appends

    @cython.cfunc
    def _send_entries(self, progress: Progress, last: cython.longlong) -> cython.bint:
        """One append message, up to `last`; False if what comes next is compacted: a snapshot was sent instead."""
        previous_term: cython.longlong = self.log._term_at(progress.next - 1)
        if previous_term < 0:
            self._send_snapshot(progress)
            return False
        end: cython.longlong = min(self.log._fit(progress.next, self._max_append_bytes), last + 1)
        self._send_append(progress, progress.next - 1, previous_term, False, False, self.log._slice(progress.next, end))
        if progress.state == REPLICATE:
            progress._advance(end)
        return True

    @cython.cfunc
    def _send_empty(self, progress: Progress, notice: cython.bint) -> None:
        """A heartbeat: also shows a lost frame, spreads the commit index and confirms read rounds.

        As a `notice` it only spreads the commit index: it wants no answer, and may wait for what goes there next.
        """
        previous: cython.longlong = progress.next - 1
        if progress.state == INSTALL:
            previous = self.log.base_index
        previous_term: cython.longlong = self.log._term_at(previous)
        if previous_term < 0:
            self._send_snapshot(progress)
            return
        gone: cython.bint = self._unsettled and progress.match >= self.configuration_index
        gone = gone and progress.peer not in self.configuration.members()
        self._send_append(progress, previous, previous_term, notice, gone, b"")

    @cython.cfunc
    def _send_append(
        self,
        progress: Progress,
        previous: cython.longlong,
        previous_term: cython.longlong,
        notice: cython.bint,
        gone: cython.bint,
        block: bytes,
    ) -> None:
        """Any append also tells the commit index, and asks for the newest read round."""
        progress.commit = self.commit
        progress.asked = self._round
        message: Message = new_message(
            APPEND, self.term, previous, previous_term, self.commit, self._round, notice, gone, block
        )
        self._send(progress.peer, message)

    @cython.cfunc
    def _send_snapshot(self, progress: Progress) -> None:
        if self.snapshot_index < self.log.base_index:
            raise InvariantViolated("the log is compacted beyond the last snapshot")
        progress.state = INSTALL
        progress.pending_snapshot = self.snapshot_index
        progress.asked = self._round
        progress.sent = self.now
        self._send(
            progress.peer,
            Message(
                SNAPSHOT,
                self.term,
                index=self.snapshot_index,
                log_term=self.snapshot_term,
                commit=self.commit,
                context=self._round,
            ),
        )

    @cython.cfunc
    def _look_again(self, progress: Progress, hint: cython.longlong) -> None:
        """A snapshot had its time: it was lost, or its answer was, or we have compacted beyond it meanwhile.

        Probe from where the peer says its log ends; if that is compacted, the newest snapshot goes out.
        """
        if self.now - progress.sent >= 2 * self._election_timeout:
            progress.state = PROBE
            progress.next = max(progress.match, min(hint, self.log.last_index)) + 1
            progress.paused = False

    # ----------------------------------------------------------------- reads

    @cython.cfunc
    def _begin_round(self) -> None:
        """Give the reads that came since the last turn one round of their own (Ongaro 2014 §6.4).

        Rounds are numbered within the term, so that a late answer to an earlier one confirms nothing.  A leader that
        has not committed an entry of its own term does not know the commit index yet: reads wait.
        """
        self._round += 1
        self._rounds.append((self._round, self.commit, self._new_reads, self.now))
        self._new_reads = []
        self._confirm_rounds()  # A sole voter has nobody to ask.

    @cython.cfunc
    def _confirm_rounds(self) -> None:
        """A quorum has answered a round: nobody else led when it began, so its commit index is current."""
        progress: Progress
        while self._rounds:
            number: cython.longlong = self._rounds[0][0]
            answered: set[Any] = {self.id}
            for peer, progress in self.progress.items():
                if progress.round >= number:
                    answered.add(peer)
            if not self.configuration.has_quorum(answered):
                return
            _, index, requests, began = self._rounds.pop(0)
            self._lease_until = began + self._lease
            for request in requests:
                self._reads.append((request, index))

    # --------------------------------------------------------------- sending

    @cython.cfunc
    def _send(self, peer: Any, message: Message) -> None:
        """Send what carries our term or vote: at once if both are durable, else with the write that makes them so."""
        message.peer = peer
        if self._hard_durable:
            self._out.append(message)
        else:
            self._held.append(message)

    @cython.cfunc
    def _emit(self, peer: Any, message: Message) -> None:
        """Send what promises nothing."""
        message.peer = peer
        self._out.append(message)
