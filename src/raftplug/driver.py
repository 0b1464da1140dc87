"""The driver of one replica: what `Raft.ready` asks for is persisted, sent, applied and answered here.

The driver has no thread, socket or clock.  Its owner (a `Node`, a `Replica`, a test) hands it messages and the time,
calls `turn`, makes the write that `turn` returns durable, and says so with `written`.
"""

from __future__ import annotations

import contextlib
import logging
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgpack

from raftplug import core as chosen_core
from raftplug import plain, results, snapshots
from raftplug.apply import Applier, Look, Outcome
from raftplug.constants import (
    APPEND,
    APPEND_RESPONSE,
    CONFIGURATION,
    DIGESTS,
    DISPLACED,
    FAILED,
    LEADER,
    LEASE,
    LINEARIZABLE,
    MALFORMED,
    MOVED,
    OK,
    PIECE,
    PIECE_REQUEST,
    PRE_VOTE_RESPONSE,
    QUIET,
    QUIET_RESPONSE,
    REFUSED_NOT_LEADER,
    REFUSED_OVERLOADED,
    REFUSED_TOO_LARGE,
    REFUSED_UNAVAILABLE,
    REPLY,
    REQUEST,
    ROLE_NAMES,
    SESSION_OPEN,
    SESSION_TRANSITION,
    SNAPSHOT,
    STALE,
    TRANSITION,
    UNKNOWN,
    VOTE_RESPONSE,
)
from raftplug.core import Future
from raftplug.divergence import Digests, Divergence, decode_digests, encode_digests
from raftplug.errors import (
    ChangeRefused,
    Corrupt,
    Diverged,
    InvalidArgument,
    InvariantViolated,
    MalformedMessage,
    NotLeader,
    OutcomeUnknown,
    Overloaded,
    QueryFailed,
    RaftplugError,
    Unavailable,
    WrongDirectory,
)
from raftplug.foreign import described, is_interrupt, text_of, type_name
from raftplug.founding import Founding
from raftplug.frames import Id, address, addressed, check_id, life
from raftplug.pace import Pace, Used
from raftplug.quiescence import Quiescence
from raftplug.requester import Requester, check_consistency
from raftplug.sessions import Sessions, encode_open, encode_transition
from raftplug.settings import Settings
from raftplug.snapshots import ReadPiece, Snapshots
from raftplug.state_machine import TransitionAbandonedReason, TransitionState
from raftplug.storage import Piece, Stored, StoredSnapshot, Write
from raftplug.stuck import Stuck, heard
from raftplug.threads import Executor, run_here

_logger = logging.getLogger("raftplug")
_HELD_BYTES = 64 << 20  # How much of the log is kept for those who fetch a snapshot.
_NEVER = 1 << 62
_COUNTED = (PRE_VOTE_RESPONSE, VOTE_RESPONSE, APPEND_RESPONSE)
_NOTICES_A_HEARTBEAT = 20
_JOB_ENTRIES = 1_024
_THREAD_BUDGET_US = 10_000  # There, after so long what was done is handed back.
_COMPARE_TIMEOUTS = 10  # Election timeouts that the leader waits for digests before it goes by its own.

Finish = Callable[[RaftplugError | None, Any], None]


class Read:
    """A linearizable read under way.

    Attributes:
        look: looks at the machine once it may; None if only the read index is wanted.
        finish: called once, with an error, or None and what `look` returned.
        deadline: microseconds.
        index: what must be applied before; 0 while that is unknown.
    """

    __slots__ = ("_finish", "deadline", "index", "look")

    def __init__(self, look: Look | None, finish: Finish, deadline: int) -> None:
        self.look = look
        self.deadline = deadline
        self.index = 0
        self._finish: Finish | None = finish

    def finish(self, error: RaftplugError | None, value: Any = None) -> None:
        """Answer; only the first answer counts."""
        finish, self._finish = self._finish, None
        if finish is not None:
            finish(error, value)


class Asker:
    """A request of another process: where its answer goes."""

    __slots__ = ("counter", "nonce", "source")

    def __init__(self, source: Id, nonce: int, counter: int) -> None:
        self.source = source
        self.nonce = nonce
        self.counter = counter


_WITNESS = "{} is a witness: it votes, and keeps no state machine that could be read or saved; ask another node"
_IN_PLACE = "{!r} cannot become a witness, nor cease to be one: remove it, then add it with a new data directory"
_REMEDY = "stop this node, remove its data directory, and let it join again, once its state machine is mended"

Send = Callable[[Id, int, bytes], None]
"""Queues an item for another process: target, kind (a message's, REQUEST or REPLY) and body."""


class Driver:
    """Drives one replica of one group.

    Args:
        id: this replica.
        group: its group's name, for messages to people and to hooks.
        configuration: plain data of the bootstrap configuration; a stored snapshot's wins.
        machine: the state machine.
        stored: what the storage holds of this group.
        read_piece: gives a durable piece of a snapshot.
        settings: the limits.
        send: queues an item for another process.
        clock: monotonic time in µs, for any thread; only `turn` and `apply` read it, besides what their callers give.
        generator: the source of randomness.
        nonce: of this process; replies carry it.
        noop_transition: what the machine is given for a leader's no-op; None gives it nothing.
        election_spread_us: an election timeout is drawn from [E, E + spread]; called with whether nobody leads the
            group, as far as we know.  None is E.
        on_event: called with a hook's name and its arguments.
        core: the namespace of one of the two cores; None is the one that was chosen for this process.
        more_status: adds to `status` what only the owner knows.
        life_of: the nonce of a process that was heard, 0 if it was not.
        storage: uuid of the data directory; None where members are not known by theirs.
        heard_at: when a node was last heard, microseconds; None where nobody watches the nodes: see `quiescence`.
        is_lost: whether a node has not been heard for an election timeout.
        executor: runs what the machine has to do, one job at a time; by default within `apply`.
        own_thread: gives the executor for a machine that is slow, or raises Unavailable; None leaves it where it is.
        used: what a job costs its thread; None takes all time for CPU time.
        is_watched: whether an observer wants to know of every transition.
        founding: what the node knows of the cluster's id; None where there is none to know.

    Raises:
        Corrupt: the stored log or snapshot is damaged.
        WrongDirectory: it is that of a witness, and the group knows this member as none.
    """

    def __init__(
        self,
        *,
        id: Id,
        group: str,
        configuration: list[Any],
        machine: Any,
        stored: Stored,
        read_piece: ReadPiece,
        settings: Settings,
        send: Send,
        clock: Callable[[], int],
        generator: random.Random,
        nonce: int,
        noop_transition: Any = None,
        election_spread_us: Callable[[bool], int] | None = None,
        on_event: Callable[..., None] | None = None,
        core: Any = None,
        more_status: Callable[[], dict[str, Any]] | None = None,
        life_of: Callable[[Id], int] = lambda id: 0,
        storage: bytes | None = None,
        heard_at: Callable[[Id], int] | None = None,
        is_lost: Callable[[Id], bool] = lambda id: False,
        executor: Executor = run_here,
        own_thread: Callable[[str], Executor] | None = None,
        used: Used | None = None,
        is_watched: Callable[[], bool] = lambda: False,
        founding: Founding | None = None,
    ) -> None:
        self.core = core or chosen_core
        self.id = id
        self.group = group
        self.settings = settings
        self._pace = Pace(clock, 500 * settings.heartbeat_ms, used)
        self.applier = Applier(
            group=group,
            machine=machine,
            settings=settings,
            clock=clock,
            noop_transition=noop_transition,
            core=core,
            pace=self._pace,
        )
        self.leader: Id | None = None
        self.initial_write: Write | None = None
        """To be made durable before the first turn: a snapshot that the machine brought along."""
        self.abilities = self.applier.abilities
        self._bounds = settings.max_sessions, settings.max_session_bytes
        self._send = send
        self._clock = clock
        self._nonce = nonce
        self._applied = 0
        self._on_event = on_event or ignore
        self._more_status = more_status or dict
        self._pending: dict[int, tuple[int, int, Future | Asker]] = {}  # index -> term, deadline, whom to answer
        self._cut: list[tuple[int, int, int, Future | Asker]] = []  # Likewise of entries that our log has no more.
        self._truncated: dict[int, list[tuple[Any, ...]]] = {}  # index -> kind, term, payload of what was there
        self._next_expiry = _NEVER  # Nothing that is pending, and no read, has an earlier deadline.
        self._confirming: dict[Read, None] = {}  # Those that the rules have, for a quorum to confirm.
        self._reads: deque[Read] = deque()  # confirmed, waiting until their index is applied; ascending
        self._looking: list[Read] = []  # Those that look at the machine now.
        self._executor = executor
        self._loop_executor = executor
        self._own_thread = own_thread
        self._is_watched = is_watched
        self._then: Callable[[Any], None] | None = None  # What follows the machine's job; None while it has none.
        self._result: Any = None
        self._working_since = 0
        self._notes: list[tuple[int, int, int, bytes, TransitionState]] = []  # What the machine is to be told.
        self._again = False  # A turn must follow at once.
        self._writing_own: StoredSnapshot | None = None
        self._asked_index = 0  # Somebody wants a snapshot there or later.
        self._offer: tuple[Id, Any] | None = None  # Who offered something we lack, by the last such SNAPSHOT message.
        self._verifying: Iterator[None] | None = None  # What was fetched is read again, and compared.
        self._verified: snapshots.Reader | None = None  # A snapshot that was fetched, for the rules to see.
        self._installing: snapshots.Reader | None = None
        self._writing_install: snapshots.Reader | None = None
        self._loading: snapshots.Reader | None = None  # Durable; the machine has not taken it over yet.
        self._digests = Digests(id, _COMPARE_TIMEOUTS * 1000 * settings.election_timeout_ms)
        self._handed_over = 0  # How often we tried to, having diverged.
        self._diverged: dict[Id, Divergence] = {}  # Who is known to have diverged: on the leader, and our own self.
        self._committed_seen = 0
        self._elected_term = 0
        self._elected_us = 0
        self._elected_logged_us = 0
        self._role_term = (0, 0)
        self._snapshot_failed = False
        self._notices: dict[Id, Any] = {}  # Notices of the commit index that wait to be overtaken, by an append.
        self._notices_at = _NEVER
        self._notice_us = settings.heartbeat_ms * 1000 // _NOTICES_A_HEARTBEAT
        self._closed = False
        self._waiting: list[tuple[Id, int, bytes]] = []  # Requests that came while leadership moved.
        self._moving_until = 0
        # Who waits for a change of the members to be over, and the index with which that begins.
        self._changes: list[tuple[int, Asker]] = []
        self._configuration: Any = None
        self.members_changed = False
        """Set whenever others are members than before; its owner may reset it."""
        self.is_witness: bool | None = None
        """Whether this member keeps no state machine; None until a committed configuration says so or not.

        Until then nothing is executed: a new member hears what is committed before it hears what it is itself.
        """

        self.snapshots = Snapshots(stored=stored, settings=settings, send=self._send_piece, read=read_piece)
        adopted: Any = None
        if stored.snapshot is None and self.abilities.snapshots and not stored.blocks:
            # The seed's: a snapshot that the machine keeps by itself counts only when storage is empty.
            own = self.applier.initial_snapshot()
            if own is not None:
                index, term, data = own
                stream = snapshots.contents(configuration, self.sessions.snapshot(), snapshots.PLAIN, [data])
                self.snapshots.make(index, term, 0, stream)
                self.initial_write = self._initial_write(term)
                adopted = self.core.Log(index, term, 0)
        try:
            log = stored.log(self.core) if adopted is None else adopted
        except MalformedMessage as error:
            raise Corrupt(f"group {group!r}: the stored log: {error}") from None
        joined = not configuration[0]
        self.applier.start(log.last_index)
        if stored.snapshot is not None:
            try:
                self._loading = snapshots.Reader(stored.snapshot, self.snapshots.reader(stored.snapshot))
            except MalformedMessage as error:
                raise Corrupt(f"group {group!r}: the stored snapshot at {stored.snapshot.index}: {error}") from None
            configuration = self._loading.configuration
        spread = election_spread_us or (lambda leaderless: settings.election_timeout_ms * 1000)
        reluctance = settings.lead_reluctance * settings.election_timeout_ms * 1000
        self.raft: Any = None
        self.raft = self.core.Raft(
            id,
            self.core.Configuration.from_plain(configuration),
            log,
            max(stored.term, log.last_term),
            stored.vote,
            clock(),
            settings.election_timeout_ms * 1000,
            settings.heartbeat_ms * 1000,
            lambda _: reluctance + generator.randint(0, spread(self.raft is None or self.raft.leader is None)),
            settings.max_append_bytes,
            settings.window_bytes,
            settings.window_appends,
            storage,
            settings.lease_ms * 1000,
            joined,
        )
        self._storage = storage
        self._founding = founding
        self._joined = joined
        self._transfers = 0  # How often this leader was asked to hand over in this term.
        self._lost: dict[Id, int] = {}  # Members that lost what they had acknowledged in this term, and up to where.
        self._heard_storages: dict[Id, bytes] = {}  # Of those who answered us in this term.
        self._life_of = life_of
        self.quiescence = Quiescence(self.raft, settings, send, heard_at, is_lost)
        self._stuck = Stuck(self.raft, settings)
        self.requester = Requester(settings=settings, generator=generator, send=self._send_request)
        self._notice_configuration()
        self._load_stored()

    def _load_stored(self) -> None:
        """Take over the stored snapshot, if it is known already whether we keep a state machine."""
        reader = self._loading
        if reader is not None and reader.kind == snapshots.WITNESS:
            self.is_witness = True
            self._check_witness(self.raft.configuration)
        self._learn_whether_witness()
        if reader is not None and self.is_witness is False:
            try:
                self.applier.load(reader)
            except MalformedMessage as error:
                text = f"group {self.group!r}: the stored snapshot at {reader.snapshot.index}: {error}"
                raise Corrupt(text) from None
            self._loading = None
        self._applied = self.applier.applied

    def _learn_whether_witness(self) -> None:
        """See whether the committed configuration says what we are; it is never taken back."""
        self._check_witness(self.raft.configuration_at(self.raft.applicable()))

    def _check_witness(self, configuration: Any) -> None:
        if self.id not in configuration.members():
            return
        found = self.id in configuration.witnesses
        if self.is_witness not in (None, found):
            now, before = ("a", "no") if found else ("no", "a")
            raise WrongDirectory(
                f"group {self.group!r}: {self.id} is {now} witness now, and was {before} witness with this data "
                f"directory: raftplug members remove {self.id}, remove the directory, and add it again"
            )
        self.is_witness = found

    # ---------------------------------------------------------------- inputs

    def receive(self, source: Id, nonce: int, kind: int, body: bytes, storage: bytes | None = None) -> None:
        """Take an item that process `source` (of that boot nonce and data directory) sent to this group.

        Raises:
            MalformedMessage: it is not one; nothing was changed.
            InvariantViolated: the replica must stop.
        """
        if kind == REQUEST:
            self._on_request(source, nonce, body)
        elif kind == REPLY:
            self._on_reply(source, body)
        elif kind in (QUIET, QUIET_RESPONSE):
            self.quiescence.receive(source, kind, body)
        elif kind == DIGESTS:
            self._on_digests(source, body)
        elif kind == PIECE_REQUEST:
            self.snapshots.on_request(source, body, self.raft.now)
        elif kind == PIECE:
            self.snapshots.on_piece(source, body, self.raft.now)
        else:
            self._on_message(source, nonce, kind, body, storage)

    def set_time(self, now: int) -> None:
        """The time of this turn, before its messages are handed in: microseconds."""
        self.raft.set_time(now)
        self.quiescence.look()

    def propose(self, transition: bytes, future: Future, deadline: int) -> None:
        """Propose an encoded transition; the future gets its result.  A follower forwards it.

        Args:
            transition: its encoding by `plain.encode`.
            future: gets the result, or TransitionFailed, OutcomeUnknown, NotLeader, Unavailable, Overloaded.
            deadline: when the future gets an error at the latest; microseconds of the clock.
        """
        self.propose_all(deque([(self, transition, future, deadline)]))

    def propose_all(self, proposals: deque[tuple[Any, bytes, Future, int]]) -> None:
        """Take proposals to this driver out of a queue, one after the other: the driver and the arguments of each."""
        raft, pending = self.raft, self._pending
        if self._closed or (self._diverged and self.diverged is not None):
            while proposals:
                proposals.popleft()[2].set_exception(self._refusal())
            return
        if raft.role != LEADER or raft.transferee is not None or self._is_founding():
            while proposals:
                self.requester.propose(*proposals.popleft()[1:])
            return
        error, places, room = self._room()
        queued = self._register_queued if self._observes() else None
        soonest = self.core.append_proposals(raft, proposals, pending, places, room, queued)
        self._next_expiry = min(self._next_expiry, soonest)
        while proposals:
            proposals.popleft()[2].set_exception(Overloaded(error))

    def _register_queued(self, index: int, transition: bytes) -> None:
        self._register(index, TRANSITION, self.raft.term, transition, TransitionState.Queued)

    def propose_here(self, transition: Any) -> None:
        """The seed's way: a leader appends it, anyone else registers it as Abandoned(NotLeader)."""
        try:
            index = self._append(TRANSITION, plain.encode(transition))
        except NotLeader:
            abandoned = TransitionState.Abandoned(TransitionAbandonedReason.NotLeader)
            self.applier.tell_of(transition, None, abandoned)
            self._tell_observers()
            return
        self._pending[index] = (self.raft.term, _NEVER, Future())

    def read(self, query: Callable[[Any], Any], future: Future, deadline: int, consistency: str = LINEARIZABLE) -> None:
        """Read: the future gets query(machine), run where transitions are applied.

        Args:
            query: looks at the machine and changes nothing.
            future: gets what it returns, or QueryFailed, Unavailable.
            deadline: when the future gets an error at the latest; microseconds of the clock.
            consistency: LINEARIZABLE, LEASE or STALE.
        """

        def finish(error: RaftplugError | None, value: Any) -> None:
            if isinstance(error, NotLeader) and self.raft.now < deadline and not self._closed:
                self._begin_read(query, finish, deadline, consistency)  # Reading twice hurts nobody.
            elif error is not None:
                future.set_exception(error)
            else:
                future.set_result(value)

        if self._closed or self.diverged is not None or self.is_witness:
            future.set_exception(self._refusal())
            return
        try:
            self._begin_read(query, finish, deadline, consistency)
        except InvalidArgument as error:
            future.set_exception(error)

    def turn(self, now: int, may_write: bool) -> Write | None:
        """Do what is due.

        Args:
            now: microseconds.
            may_write: whether the owner could begin a write now.

        Returns: what to make durable; `written` must follow before the next one is asked for.
        """
        self.raft.tick(now)
        stuck = self._stuck.turn(now, self._working_since if self._then is not None else None, self._diverged)
        if stuck is not None:
            _logger.error("group %s: the %s of this node is stuck: it gives up leadership", self.group, stuck)
        self.requester.tick(now)
        self._expire(now)
        self._tick_snapshots(now)
        self._look_after_successor()
        ready = self.raft.ready(may_write)
        if ready.truncated:
            self._notice_truncated(ready.truncated)
        for message in ready.messages:
            if message.kind == SNAPSHOT:
                self._fill_offer(message)
            if message.kind == APPEND:
                if message.hint:  # A notice of the commit index.
                    self._notices[message.peer] = message
                    self._notices_at = min(self._notices_at, now + self._notice_us)
                    continue
                if self._notices.pop(message.peer, None) and not self._notices:  # This tells as much.
                    self._notices_at = _NEVER
            self._send(message.peer, message.kind, message.encode())
        if now >= self._notices_at:
            self._tell_committed()
        for read in ready.failed_reads:
            self._confirming.pop(read, None)
            read.finish(NotLeader("this replica ceased to lead before the read was confirmed"))
        for read, index in ready.reads:
            self._confirming.pop(read, None)
            read.index = index
            if read.look is None:
                read.finish(None)
            else:
                self._await_index(read)
        self._notice_role(now)
        self._learn_cluster()
        pinned = self._pin_storages()
        self.quiescence.turn(now)
        if self.raft.configuration is not self._configuration:
            self._notice_configuration()
        if self._diverged:
            self._keep_from_serving()
        if now >= self._digests.deadline():
            self._judge()
        self._again = pinned  # It leaves with the next turn, also if the group has gone quiet in this one.
        if not may_write:
            return None
        return self._write(ready)

    def _notice_truncated(self, entries: Sequence[tuple[Any, ...]]) -> None:
        """Entries are gone from our log, not for certain for good: their indexes may be proposed for again first."""
        for index, kind, term, payload in entries:
            if self._observes():
                self._truncated.setdefault(index, []).append((kind, term, payload))
            if index in self._pending and self._pending[index][0] == term:
                self._cut.append((index, *self._pending.pop(index)))

    def _tell_committed(self) -> None:
        """Send the notices that nothing has overtaken: a busy leader's appends tell its followers what is committed.

        Only what followers show without being asked waits for that: a linearizable read brings its own round.
        """
        for peer, message in self._notices.items():
            self._send(peer, message.kind, message.encode())
        self._notices.clear()
        self._notices_at = _NEVER

    def written(self) -> None:
        """The write that the last `turn` returned is durable."""
        own, self._writing_own = self._writing_own, None
        install, self._writing_install = self._writing_install, None
        if self.raft.writing:
            self.raft.persisted()
        self.snapshots.written()
        if install is not None:
            self.snapshots.adopt(install.snapshot, self.raft.now)
            self._loading = install  # Not now: the machine may be at work, and has to finish that first.
        if own is not None:
            self.snapshots.adopt(own, self.raft.now)
            self.raft.snapshot_stored(own.index, self._entries_to_keep(own.index))
            self._event("raftplug_snapshot", index=own.index, kind="made")

    def deadline(self) -> int:
        """When the next turn is due if nothing happens: microseconds."""
        if self._again or self._is_unverified() or (self._then is None and self._has_work()):
            return 0
        founding = self._is_founding()
        pin_at = self._pin_at() if founding and self.raft.role == LEADER else _NEVER
        return min(
            pin_at if pin_at > self.raft.now else _NEVER,
            int(self.raft.deadline()),
            self.requester.deadline(),
            self._next_expiry,
            self._moving_until if self._waiting and not founding else _NEVER,
            self._notices_at,
            self._digests.deadline(),
            self.snapshots.deadline(),
        )

    def close(self) -> None:
        """Answer everything that is pending: what was accepted may still be executed by the others."""
        self._closed = True
        self.requester.close()
        for whom in [each[2] for each in self._pending.values()] + [each[3] for each in self._cut]:
            self._resolve_error(whom, OutcomeUnknown("this node stopped before the transition was applied"), UNKNOWN)
        self._pending.clear()
        self._cut.clear()
        waiting, self._waiting, self._moving_until = self._waiting, [], 0
        self.raft.resign()
        for request in waiting:
            self._on_request(*request)
        for read in [*self.raft.ready(False).failed_reads, *self._reads, *self._looking]:
            read.finish(_stopped())
        self._reads.clear()

    def status(self) -> dict[str, Any]:
        """This replica's row for `raftplug status`, and what a client needs to merge rows; unknown values are None."""
        raft = self.raft
        problems: list[str] = []
        notes: list[str] = []
        if not self.abilities.snapshots and self.applied - raft.log.base_index > self.settings.snapshot_entries > 0:
            problems.append("the state machine makes no snapshots: the log grows without end")
        if self._snapshot_failed:
            problems.append("the state machine failed to make a snapshot")
        if self.applier.problem is not None:
            problems.append(self.applier.problem)
        if self.on_thread:
            notes.append(f"the state machine took {self._pace.took_ms} ms for one thing: it has a thread of its own")
        problems += [str(each) for each in self._diverged.values()]
        if self.diverged is not None:
            problems.append(_REMEDY)
        problems += [self._loss(member) for member in self._lost]
        fetch = self.snapshots.fetch
        if fetch is not None:
            have, count = fetch.have, fetch.snapshot.count
            problems.append(f"fetches the snapshot at {fetch.snapshot.index}: {have} of {count} pieces are here")
        elif self._loading is not None:
            problems.append(f"loads the snapshot at {self._loading.snapshot.index}")
        contact = None
        if raft.role != LEADER and raft.leader is not None:
            contact = (self._clock() - self.quiescence.contact()) // 1000
        more = self._more_status()
        return {
            **more,
            "id": self.id,
            "role": ROLE_NAMES[raft.role],
            "leader": raft.leader,
            "term": raft.term,
            "last": raft.log.last_index,
            "commit": raft.commit,
            "applied": self.applied,
            "apply": "thread" if self.on_thread else "loop",
            "contact_ms": contact,
            "quiet": bool(raft.quiet),
            "voters": list(raft.configuration.voters),
            "learners": list(raft.configuration.learners),
            "witness": bool(self.is_witness),
            "problems": problems + more.get("problems", []),
            "notes": notes,
        }

    # -------------------------------------------------------------- messages

    def _on_message(self, source: Id, nonce: int, kind: int, body: bytes, storage: bytes | None) -> None:
        message = self.core.Message.decode(body)
        if message.kind != kind:
            raise MalformedMessage("an item whose kind is not its message's")
        if kind in _COUNTED and storage is not None and not self._is_known(message, source, storage):
            # Another disk may lack what the first one acknowledged: nothing that it says is counted (DESIGN 7).
            configuration, index = self.raft.configuration, self.raft.configuration_index
            if self.raft.role == LEADER and source in configuration.storages and self.raft.commit >= index:
                self._send(source, DISPLACED, life(storage, nonce))
            if message.flag:
                raise MalformedMessage(f"an answer of {source!r} with another data directory than the group knows")
            message.context = 0
        if kind == APPEND and self._is_behind():
            message.data = b""  # As a heartbeat: what we have no room for is sent again, and costs no election.
        if kind != SNAPSHOT:
            self.raft.step(message, source)
            if kind == APPEND and self._is_founding():
                self._check_founding()
            elif kind == APPEND_RESPONSE and not message.flag and storage is not None:
                self._notice_loss(source, nonce, storage)
            return
        offer = snapshots.decode_offer(message)
        if not self.abilities.snapshots:
            raise MalformedMessage("a snapshot, for a state machine that takes none")
        if message.term < self.raft.term or not self._lacks(offer):
            self.raft.step(message, source)  # It installs nothing.
            return
        self._offer = source, message
        self.snapshots.consider(offer, source, self.raft.now)
        self._install()

    def _notice_loss(self, source: Id, nonce: int, storage: bytes) -> None:
        """As the leader, report a member that lost what it had acknowledged, and have its node stop.

        A member that was removed, and comes back on a new disk, has lost nothing.
        """
        progress = self.raft.progress.get(source)
        if progress is None or not progress.lost or self.raft.configuration.storages.get(source) != storage:
            return
        self._send(source, DISPLACED, life(storage, nonce))
        if source not in self._lost:
            self._lost[source] = progress.lost
            _logger.error("group %s: %s", self.group, self._loss(source))
            self._event("raftplug_lost_entries", replica=source, acknowledged=progress.lost)

    def _loss(self, member: Id) -> str:
        return (
            f"{member} has lost entries that it had acknowledged, up to {self._lost[member]}: its disk is damaged or "
            f"older. Replace it: raftplug members remove {member}, start it with join=True on a new data directory, "
            f"and raftplug members add {member}"
        )

    def _is_known(self, answer: Any, source: Id, storage: bytes) -> bool:
        """Whether `storage` is the one by which the group knows the member, or else the one that answered first.

        An answer of another term, or to what was sent before its member came, counts for nothing, and may be of a
        member's directory before the present one; and an answer of a process that is no member counts for nothing.
        """
        configuration = self.raft.configuration
        known = configuration.storages.get(source)
        if known is None and (answer.term != self.raft.term or self.raft.is_early(answer, source)):
            return True
        if known is None and source not in configuration.members():
            return True
        return storage == (known or self._heard_storages.setdefault(source, storage))

    def _pin_storages(self) -> bool:
        """As the leader, write down by which data directories the group knows its members, once they were heard.

        Returns whether it was begun now.

        The first time this fixes the cluster's id, by as many founders as answer within half an election timeout.
        """
        now, founding = self.raft.configuration, self._founding
        if self._storage is None or self.raft.role != LEADER:
            return False
        fixes = not now.cluster and founding is not None and self.group == founding.group
        if not fixes and self.id in now.storages and self._heard_storages.keys() <= now.storages.keys():
            return False
        members, cluster = now.members(), now.cluster
        known = {self.id: self._storage, **self._heard_storages, **now.storages}
        storages = {id: uuid for id, uuid in known.items() if id in members}
        if founding is not None and founding.id is not None:
            cluster = founding.id  # Of other groups, too: a node that joins only those learns it there.
        elif founding is not None and fixes:
            if self.raft.now < self._pin_at() and len(storages) < len(members):
                return False
            cluster = founding.fix(storages)
        if not fixes and len(storages) == len(now.storages):
            return False
        target = self.core.Configuration(now.voters, (), now.learners, now.joining, storages, now.witnesses, cluster)
        with contextlib.suppress(ChangeRefused, NotLeader):  # It waits until no other change is under way.
            self.raft.change(target)
            self.raft.wake()
            return True
        return False

    def _pin_at(self) -> int:
        """When a leader fixes the cluster's id even if not all founders have answered: microseconds."""
        return self._elected_us + 500 * self.settings.election_timeout_ms

    def _learn_cluster(self) -> None:
        """The cluster's id counts once the entry that fixes it is committed.

        A node that joins may read an id in the log that the cluster had before a recovery: its leader has another.
        """
        founding, leader = self._founding, self.raft.leader
        if founding is None or founding.id is not None or leader is None:
            return
        cluster = self.raft.configuration_at(self.raft.commit).cluster
        if cluster and (leader == self.id or founding.id_for(leader) in (founding.names, cluster)):
            founding.id = cluster

    def has_waiting(self) -> bool:
        """Whether requests wait for the cluster's id, or for leadership to settle."""
        return bool(self._waiting)

    def _is_founding(self) -> bool:
        """Whether the cluster has no id yet, as far as we know: until then nothing is acknowledged."""
        return self._founding is not None and self._founding.id is None

    def _check_founding(self) -> None:
        """A founder takes no part in a cluster that was founded with another directory under its id.

        Raises:
            WrongDirectory: this is one; nothing of that cluster was acknowledged or written.
        """
        if not self._joined and self.raft.configuration.cluster and self.raft.is_displaced():
            raise WrongDirectory(
                f"group {self.group!r} was founded with another data directory of {self.id}: if that one is lost, "
                f"raftplug members remove {self.id}, then start with join=True on a new directory, and raftplug "
                f"members add {self.id}"
            )

    def _fill_offer(self, message: Any) -> None:
        stored = self.snapshots.current
        if stored is None or stored.index < message.index:
            raise InvariantViolated(f"the snapshot at {message.index} is not in storage")
        message.index, message.log_term = stored.index, stored.term
        message.hint, message.data = stored.check, snapshots.encode_offer(stored)

    def _send_piece(self, target: Id, kind: int, body: bytes) -> None:
        self._send(target, kind, body)

    # -------------------------------------------------------------- requests

    def _send_request(self, target: Id, body: bytes) -> bool:
        """Returns whether it is addressed to one life of the target."""
        nonce = self._life_of(target)
        self._send(target, REQUEST, address(body, nonce))
        return nonce != 0

    def _on_request(self, source: Id, nonce: int, request: bytes) -> None:
        addressee, body = addressed(request)
        try:
            counter, operation, args = msgpack.unpackb(body, strict_map_key=False)
            if type(counter) is not int or not isinstance(operation, str) or not isinstance(args, list):
                raise ValueError
        except (ValueError, TypeError, msgpack.exceptions.UnpackException):
            raise MalformedMessage("a request that cannot be read") from None
        asker = Asker(source, nonce, counter)
        if addressee not in (0, self._nonce):
            # To an earlier life of ours: if that refused it, it stays undone; if it took it, nobody here knows.
            self._reply(asker, UNKNOWN, "the node has restarted")
            return
        try:
            match operation, args:
                case "propose", [int(session), int(sequence), int(below), bytes(transition)]:
                    if len(transition) > self.settings.max_transition_bytes:
                        limit = self.settings.max_transition_bytes
                        self._reply(asker, REFUSED_TOO_LARGE, f"a transition may have {limit} bytes")
                        return
                    self._require_leader()
                    payload = encode_transition(self._logged_us(), session, sequence, below, transition)
                    self._pend(asker, self._append(SESSION_TRANSITION, payload))
                case "open", [(str() | None) as name]:
                    self._require_leader()
                    self._pend(
                        asker, self._append(SESSION_OPEN, encode_open(self._logged_us(), name or "", self._bounds))
                    )
                case "index", [bool(lease)]:
                    self._require_leader()
                    self._begin_index(asker, lease)
                case "read", [bytes(query), str(consistency)]:
                    self._answer_query(asker, query, check_consistency(consistency))
                case "members", [str(action), list(members), int(index)]:
                    self._change_members(asker, action, members, index)
                case "leadership", []:
                    self._require_leader()
                    self._reply(asker, OK, [self.id, self.raft.term, self._transfers])
                case "transfer", [target, int(term), int(transfers)]:
                    self._require_leader()
                    if (term, transfers) == (self.raft.term, self._transfers):
                        self._reply(asker, OK, self._transfer(target))
                    else:
                        self._reply(asker, MOVED, "leadership has moved, or was asked to move, since the request")
                case "snapshot", [(int() | None) as index]:
                    self._reply(asker, OK, self._ask_for_snapshot(index))
                case "status", []:
                    self._reply(asker, OK, self.status())
                case _:
                    self._reply(asker, MALFORMED, f"no request {operation!r} with such arguments")
        except NotLeader:
            if self._is_moving() and len(self._waiting) < self.settings.max_pending:
                self._waiting.append((source, nonce, request))
            else:
                self._reply(asker, REFUSED_NOT_LEADER, self.raft.leader)
        except Overloaded as error:
            self._reply(asker, REFUSED_OVERLOADED, str(error))
        except ChangeRefused as error:
            self._reply(asker, REFUSED_UNAVAILABLE, str(error))
        except RaftplugError as error:
            self._reply(asker, MALFORMED, str(error))

    def _on_reply(self, source: Id, body: bytes) -> None:
        try:
            nonce, counter, code, value = msgpack.unpackb(body, strict_map_key=False)
        except (ValueError, TypeError, msgpack.exceptions.UnpackException):
            raise MalformedMessage("a reply that cannot be read") from None
        if nonce == self._nonce:  # Else it answers a request of an earlier life of this process.
            self.requester.on_reply(source, counter, code, value)

    def _reply(self, asker: Asker, code: int, value: Any) -> None:
        self._send(asker.source, REPLY, msgpack.packb([asker.nonce, asker.counter, code, value]))

    def _require_leader(self) -> None:
        if self.raft.role != LEADER or self.diverged is not None or self._is_founding():
            raise NotLeader

    def _is_moving(self) -> bool:
        """Whether this leader hands over, or has, and does not know yet to whom; or the cluster has no id yet."""
        if self.raft.role == LEADER and self._is_founding():
            return True
        return self.raft.transferee is not None or (self.raft.leader is None and self.raft.now < self._moving_until)

    def _look_after_successor(self) -> None:
        """While leadership moves, what needs a leader waits here, instead of being sent back and forth."""
        if self.raft.transferee is not None:
            self._moving_until = self.raft.now + 1000 * self.settings.election_timeout_ms
        if self._waiting and not self._is_moving():
            waiting, self._waiting = self._waiting, []
            for request in waiting:
                self._on_request(*request)

    def _pend(self, asker: Asker, index: int) -> None:
        self._pending[index] = (self.raft.term, _NEVER, asker)

    def _append(self, kind: int, payload: bytes) -> int:
        error, places, room = self._room()
        if room < 0 or places <= 0:
            raise Overloaded(error)
        index: int = self.raft.propose(kind, payload)
        if self._observes():
            self._register(index, kind, self.raft.term, payload, TransitionState.Queued)
        return index

    def _room(self) -> tuple[str, int, int]:
        """What to say when this leader takes no more entries; how many it does take, and of how many bytes.

        An entry may be appended while the bytes are not below 0, however long it is.
        """
        if self._is_behind():
            return "the leader's state machine is behind by as much as it may be: try again later", 0, 0
        log, low = self.raft.log, self.raft.commit + 1  # Never below the log's base.
        uncommitted = log.bytes_between(low, log.last_index + 1) if low <= log.last_index else 0
        text = "the leader holds as many uncommitted transitions as it may: try again later"
        settings = self.settings
        return text, settings.max_pending - len(self._pending), settings.max_uncommitted_bytes - uncommitted

    def _is_behind(self) -> bool:
        """Whether the state machine is behind by as much as it may be."""
        if self.is_witness is not False:
            return False  # It executes nothing, or only once we know what we are: the log says it.
        commit = self.raft.commit
        if commit <= self._applied:
            return False
        low = max(self._applied, self.raft.log.base_index) + 1
        return low <= commit and bool(self.raft.log.bytes_between(low, commit + 1) > self.settings.max_unapplied_bytes)

    def _change_members(self, asker: Asker, action: str, members: list[Any], index: int) -> None:
        """Change the members, and answer once that is over; a request for what is so for good is answered at once.

        The request names the index of the configuration that it was made for: a recorded one changes nothing again.
        """
        self._require_leader()
        now = self.raft.configuration
        if action == "list" and now.outgoing:  # The one way to see that a change is under way.
            self._reply(asker, OK, [*_members(now), self.raft.configuration_index])
            return
        voters, learners, joining = list(now.voters), list(now.learners), list(now.joining)
        witnesses = list(now.witnesses)
        for member in members:
            check_id(member, "member")
            if action != "remove" and member in now.members() and (member in now.witnesses) != (action == "witness"):
                raise InvalidArgument(_IN_PLACE.format(member))
            if (action == "learn" and member in voters) or (action == "demote" and member not in now.members()):
                what = "a voter: demote it" if member in voters else "no member"
                raise InvalidArgument(f"{member!r} is {what}")
            if action == "witness" and member not in witnesses:
                witnesses.append(member)
            if action in ("add", "witness") and member not in voters:  # A learner first, and a voter once it caught up.
                learners = [*(each for each in learners if each != member), member]
                joining = [*(each for each in joining if each != member), member]
            elif (action == "learn" and member not in learners) or (action == "demote" and member in voters):
                voters = [each for each in voters if each != member]
                learners.append(member)
            elif action == "promote" and member not in voters:
                if member not in learners:
                    raise InvalidArgument(f"{member!r} is no learner: add it first")
                joining = [*(each for each in joining if each != member), member]
            elif action == "remove":
                voters, learners, joining = ([e for e in each if e != member] for each in (voters, learners, joining))
            elif action not in ("add", "witness", "learn", "demote", "promote"):
                raise InvalidArgument(f"members cannot {action!r}")
        target = self.core.Configuration(voters, (), learners, joining, now.storages, witnesses, now.cluster)
        if not any(target.may_lead(voter) for voter in voters):
            raise InvalidArgument("the last voter that may lead cannot leave")
        if target != now and index != self.raft.configuration_index:
            self._reply(
                asker, MOVED, "the members have changed since the request was made: look at them, and try again"
            )
        elif target != now:
            if self._founding is not None:  # A node that joins learns the id from the entry that names it.
                cluster = self._founding.id or b""
                target = self.core.Configuration(voters, (), learners, joining, now.storages, witnesses, cluster)
            self._changes.append((self.raft.change(target), asker))
        elif self.raft.commit < self.raft.configuration_index:  # It may be rolled back yet.
            self._changes.append((self.raft.configuration_index, asker))
        else:
            self._reply(asker, OK, [*_members(now), self.raft.configuration_index])

    def _transfer(self, target: Any) -> Any:
        """Begin to hand over leadership; returns to whom."""
        if target == self.id:
            return target
        if target is not None and target not in self.raft.configuration.voters:
            raise InvalidArgument(f"{target!r} is no voter")
        if target in self.raft.configuration.witnesses:
            raise InvalidArgument(f"{target!r} is a witness: it never leads")
        self.raft.transfer(target)
        self._transfers += 1
        return self.raft.transferee

    def _notice_configuration(self) -> None:
        """Tell who must know that the members changed: from now on they count, committed or not."""
        before, self._configuration = self._configuration, self.raft.configuration
        if before is not None:  # Who comes back may have a new disk.
            stay = set(self._configuration.members()).intersection(before.members())
            self._heard_storages = {id: uuid for id, uuid in self._heard_storages.items() if id in stay}
            self._lost = {id: index for id, index in self._lost.items() if id in stay}
        self.members_changed = True
        self.requester.set_nodes([member for member in self._configuration.members() if member != self.id])
        if before is not None:
            self._event("raftplug_configuration_changed", configuration=_members(self._configuration))

    def _logged_us(self) -> int:
        """Logged time: the last logged time plus our monotonic time since the election (DESIGN 7)."""
        if self.raft.term != self._elected_term:
            # The turn in which we were elected has not come to `_notice_role` yet.  Counted from anything else, the
            # time since this machine was switched on might pass at once, and end every session.
            self._elected_term, self._elected_us = self.raft.term, int(self.raft.now)
            self._elected_logged_us = self.sessions.now_us
        return self._elected_logged_us + int(self.raft.now) - self._elected_us

    # ----------------------------------------------------------------- reads

    def _begin_read(self, look: Look, finish: Finish, deadline: int, consistency: str) -> None:
        if consistency == LEASE and not self.settings.lease_ms:
            raise InvalidArgument("leases are off: set lease_ms on every node, and read what it assumes of clocks")
        if consistency == STALE:  # Before all that wait for something: it shows what is there.
            self._await_index(Read(look, finish, deadline), at_once=True)
            return
        if self.raft.role == LEADER:
            read = Read(look, finish, deadline)
            self.raft.read(read, consistency == LEASE)
            self._confirming[read] = None
            self._next_expiry = min(self._next_expiry, deadline)
            return
        answer = Future()

        def confirmed(_: Future) -> None:
            error = answer.exception(0)
            if error is not None:
                finish(error if isinstance(error, RaftplugError) else InvariantViolated(str(error)), None)
                return
            read = Read(look, finish, deadline)
            read.index = answer.result(0)
            self._await_index(read)

        answer.when_done(confirmed)
        self.requester.ask("index", [consistency == LEASE], answer, deadline)

    def _await_index(self, read: Read, at_once: bool = False) -> None:
        if at_once:
            self._reads.appendleft(read)
        else:
            self._reads.append(read)
        self._next_expiry = min(self._next_expiry, read.deadline)

    def _begin_index(self, asker: Asker, lease: bool) -> None:
        def finish(error: RaftplugError | None, _: Any) -> None:
            if error is None:
                self._reply(asker, OK, read.index)
            else:
                self._reply(asker, REFUSED_NOT_LEADER, self.raft.leader)

        read = Read(None, finish, _NEVER)
        self.raft.read(read, lease)

    def _answer_query(self, asker: Asker, encoded: bytes, consistency: str) -> None:
        plain.decode(encoded)  # What is no plain data is refused here and now.
        if not self.abilities.has_query:
            self._reply(asker, FAILED, ["QueryFailed", "this state machine answers no queries"])
            return
        if self.is_witness or self.diverged is not None:
            raise NotLeader  # Who asks any node is to ask another.

        def look(machine: Any) -> tuple[int, Any]:
            try:
                return OK, results.ask(machine, encoded)
            except BaseException as raised:
                if is_interrupt(raised):
                    raise
                return FAILED, [type_name(raised), text_of(raised)]

        def finish(error: RaftplugError | None, value: Any) -> None:
            self._reply(asker, *((REFUSED_NOT_LEADER, self.raft.leader) if error is not None else value))

        # The asker asks again when its own patience ends; this process need not remember for longer.
        self._begin_read(look, finish, self.raft.now + 4000 * self.settings.election_timeout_ms, consistency)

    # ------------------------------------------------------------------ apply

    @property
    def on_thread(self) -> bool:
        """Whether the machine has a thread of its own."""
        return self._pace.on_thread

    @property
    def machine(self) -> Any:
        """The state machine."""
        return self.applier.machine

    @property
    def sessions(self) -> Sessions:
        """Its table of sessions."""
        return self.applier.sessions

    @property
    def applied(self) -> int:
        """Index of the last entry that was applied and answered."""
        return self._applied

    def apply(self) -> None:
        """Let the machine do what waits for it, within the turn's budget; one job at a time, in the log's order.

        Call it as the last thing of a turn.  The executor may keep a job for longer; the rules go on meanwhile.
        """
        if self.raft.role == LEADER:
            self._register_committed()
        if self.is_witness is None:
            self._learn_whether_witness()
        if self.is_witness:
            self._pass_over()
        until = self._clock() + (_THREAD_BUDGET_US if self.on_thread else self.settings.apply_budget_us)
        while self._then is None and self._begin(until) and self._clock() < until:
            pass

    def _has_work(self) -> bool:
        """Whether there is something that the machine could do now."""
        if self._is_overtaken():
            return False
        if self._notes or self._is_snapshot_due() or self._may_look():
            return True
        return self.is_witness is not None and (self._loading is not None or self.raft.applicable() > self._applied)

    def _pass_over(self) -> None:
        """A witness executes nothing of what is committed, and loads no snapshot; so no observer hears of any."""
        self._check_witness(self.raft.configuration_at(self.raft.applicable()))
        for read in self._reads:
            read.finish(self._refusal())
        self._reads.clear()
        self._truncated.clear()
        if self._loading is not None:
            install, self._loading = self._loading, None
            self.applier.applied = install.snapshot.index
            self._loaded(install)
        self.applier.applied = self._applied = max(self._applied, self.raft.applicable())

    def _may_look(self) -> bool:
        """Whether what the first read must see is applied."""
        return bool(self._reads) and self._reads[0].index <= self._applied

    def _is_overtaken(self) -> bool:
        """Whether a newer snapshot takes the place of the one that is to be loaded next, whose pieces then go."""
        return self._loading is not None and (self._installing is not None or self._writing_install is not None)

    def _begin(self, until: int) -> bool:
        """Give the machine its next job; False if there is none."""
        applier = self.applier
        if self._is_overtaken():
            return False
        if self._loading is not None and self.is_witness is False:
            install = self._loading
            self._run(lambda: applier.load(install), lambda _: self._loaded(install))
        elif self._notes:
            notes, self._notes = self._notes, []
            self._run(lambda: applier.tell_all(notes), lambda _: None)
        elif self._may_look():
            while self._may_look():
                self._looking.append(self._reads.popleft())
            looks = [read.look for read in self._looking if read.look is not None]
            self._run(lambda: applier.look(looks, until), self._looked)
        elif self._is_snapshot_due():
            self._begin_snapshot()
        elif self.raft.applicable() > self._applied and self.is_witness is False:
            first, log = self._applied + 1, self.raft.log
            end = min(log.fit(first, self.settings.max_append_bytes), self.raft.applicable() + 1, first + _JOB_ENTRIES)
            entries, tell, wanted = log.entries(first, end), self._observes(), bool(self._pending)
            self._run(
                lambda: applier.apply(first, entries, until, tell=tell, wanted=wanted),
                lambda outcomes: self._answer(first, entries, outcomes),
            )
        else:
            return False
        return True

    def _run(self, job: Callable[[], Any], then: Callable[[Any], None]) -> None:
        """Have the machine do a job, and call then(its result) once that is done and this replica still runs."""

        def run() -> None:
            self._pace.begin()
            self._result = job()
            self._pace.end()

        self._then = then
        self._working_since = int(self.raft.now)
        self._executor(run, self._ran)

    def _ran(self, error: BaseException | None) -> None:
        then, result = self._then, self._result
        self._then = self._result = None
        if self._closed or then is None:
            return
        if error is not None:
            raise results.stopping(self.group, self.machine, error)
        then(result)
        self._tell_observers()
        if self._own_thread is not None and self._pace.judge():
            self._change_thread(self._own_thread)

    def _change_thread(self, own_thread: Callable[[str], Executor]) -> None:
        """Give the machine a thread of its own, or have it come back to the loop, before its next job."""
        if not self.on_thread:
            self._executor = self._loop_executor
            _logger.info("group %s: the state machine is fast again: it is back in the event loop", self.group)
            return
        took_ms = self._pace.took_ms
        try:
            self._executor = own_thread(self.group)
        except Unavailable as error:
            self._pace.stay()
            text = "group %s: the state machine took %d ms for one thing, and stays in the event loop: %s"
            _logger.error(text, self.group, took_ms, error)
            return
        text = "group %s: the state machine took %d ms for one thing: it gets a thread of its own"
        _logger.warning(text, self.group, took_ms)
        self._event("raftplug_slow_apply", index=self.applied, took_ms=took_ms)

    def _answer(self, first: int, entries: Sequence[tuple[int, int, bytes]], outcomes: list[Outcome]) -> None:
        """Entries from index `first` on were applied, as many as there are outcomes: tell who waits for them."""
        usual = not (self._truncated or self._cut) and self.diverged is None
        self.core.answer(first, entries, outcomes, self._pending, usual, self._answer_one)
        self._applied = self.applier.applied
        if self.applier.digests:
            self._announce_digests()

    def _answer_one(self, index: int, kind: int, term: int, pended: Any, code: int, value: Any) -> None:
        if kind == CONFIGURATION:
            self._apply_configuration(index)
        if self._truncated and index in self._truncated:
            self._register_overwritten(index, term)
        if self._cut:
            for _, proposed_term, _, whom in [each for each in self._cut if each[0] == index]:
                self._answer_to(whom, proposed_term, term, code, value)
            self._cut = [each for each in self._cut if each[0] != index]
        if pended is not None:
            self._answer_to(pended[2], pended[0], term, code, value)

    def _answer_to(self, whom: Future | Asker, proposed_term: int, term: int, code: int, value: Any) -> None:
        """Tell who proposed an entry in `proposed_term` what became of the one of `term` in its place."""
        if proposed_term != term:
            self._resolve_error(whom, _overwritten(), REFUSED_UNAVAILABLE)
        elif self.diverged is not None:
            self._resolve_error(whom, OutcomeUnknown(f"it was executed, but {self.diverged}"), UNKNOWN)
        elif isinstance(whom, Asker):
            self._reply(whom, code, value)
        elif code == FAILED:
            whom.set_exception(value)
        else:
            whom.set_result(value)

    def _looked(self, found: list[tuple[Any, BaseException | None]]) -> None:
        """Reads have looked at the machine; those that had no time left will."""
        looking, self._looking = self._looking, []
        self._reads.extendleft(reversed(looking[len(found) :]))
        for read, (value, raised) in zip(looking, found, strict=False):
            if self.diverged is not None:
                read.finish(self._refusal())
            elif raised is not None:
                read.finish(QueryFailed(f"{type_name(raised)}: {text_of(raised)}"))
            else:
                read.finish(None, value)

    def _apply_configuration(self, index: int) -> None:
        """A configuration is committed: with one that is not joint, a change is over."""
        configuration = self.raft.configuration_at(index)
        self._check_witness(configuration)
        if configuration.outgoing:
            return
        waiting, self._changes = self._changes, []
        for first, asker in waiting:
            if first <= index:
                self._reply(asker, OK, [*_members(configuration), index])
            else:  # An earlier change is over: the machine may be behind what is committed.
                self._changes.append((first, asker))

    # ------------------------------------------------------------ divergence

    @property
    def diverged(self) -> Divergence | None:
        """How this replica's state differs from the others', if it is known to: then it serves nothing."""
        return self._diverged.get(self.id)

    def _announce_digests(self) -> None:
        for index, digest in self.applier.digests:
            self._digests.add(self.id, index, digest)
        self.applier.digests.clear()
        if self.raft.role == LEADER:
            self._judge()
        elif self.raft.leader is not None:
            self._send(self.raft.leader, DIGESTS, encode_digests(self._digests.latest(), False))

    def _on_digests(self, source: Id, body: bytes) -> None:
        """The leader's verdict on us, or for the leader digests of another replica; repeated or late it is harmless."""
        digests, is_verdict = decode_digests(body)
        if is_verdict:
            for index, right in digests if source == self.raft.leader else ():
                own = self._digests.own(index)
                if own is not None and own != right:
                    self._name(Divergence(self.id, index, own, right))
        elif self.raft.role == LEADER and source in self.raft.configuration.members():
            for index, digest in digests:
                if index <= self.raft.commit:
                    self._digests.add(source, index, digest)
            self._judge()

    def _judge(self) -> None:
        if self.raft.role != LEADER:
            self._digests.wait_no_more()
            return
        configuration = self.raft.configuration
        voters = [voter for voter in configuration.voters if configuration.may_lead(voter)]  # A witness has no state.
        index, wrong, right = self._digests.judge(voters, int(self.raft.now))
        for each in wrong:
            self._name(each)
            if each.replica != self.id:
                self._send(each.replica, DIGESTS, encode_digests([(index, each.expected)], True))
        for replica in right:
            if replica in self._diverged and self._diverged[replica].index < index:
                del self._diverged[replica]  # It came back with another state.

    def _name(self, divergence: Divergence) -> None:
        """Say loudly who has diverged, once."""
        if divergence.replica in self._diverged:
            return
        self._diverged[divergence.replica] = divergence
        _logger.error("group %s: %s", self.group, divergence)
        self._event(
            "raftplug_diverged",
            replica=divergence.replica,
            index=divergence.index,
            digest=divergence.digest.hex(),
            expected=divergence.expected.hex(),
        )

    def _keep_from_serving(self) -> None:
        """Whoever has diverged answers nothing, and lets another lead."""
        if self.diverged is None:
            return
        for read in self._reads:
            read.finish(self._refusal())
        self._reads.clear()
        raft = self.raft
        if raft.role == LEADER and raft.transferee is None:
            others = heard(raft, int(raft.now) - 1000 * self.settings.election_timeout_ms, self._diverged)
            if others:  # One after the other: who was asked last may be unable to win (sim seed 502232).
                self._handed_over += 1
                raft.transfer(others[self._handed_over % len(others)])

    def _refusal(self) -> RaftplugError:
        if self.is_witness:
            return InvalidArgument(_WITNESS.format(self.id))
        return _stopped() if self._closed else Diverged(f"{self.diverged}; {_REMEDY}")

    # ------------------------------------------------------------- snapshots

    def _is_snapshot_due(self) -> bool:
        """Whether enough entries were applied since the last snapshot of our own state, or one was asked for."""
        every, last = self.settings.snapshot_entries, self.raft.snapshot_index
        if not (0 < every <= self._applied - last or last < self._asked_index <= self._applied):
            return False
        may = (self.abilities.snapshots or self.is_witness) and not self._snapshot_failed and self.diverged is None
        return bool(may) and self._may_make() and not self.applier.is_ahead()

    def _ask_for_snapshot(self, index: int | None) -> list[Any]:
        """Begin a snapshot at `index` or later, unless there is one.  None begins none: it asks for the index of now.

        So a request has an effect once: a recorded one names an index at which there is a snapshot, or a later one.

        Returns: the index, and the snapshot's fields once it is durable, else None: ask again with the index then.
        """
        if self.is_witness:
            raise self._refusal()
        if not self.abilities.snapshots:
            raise InvalidArgument("the state machine makes no snapshots")
        if self._snapshot_failed:
            raise InvalidArgument("the state machine failed to make a snapshot: its node's log says why")
        least = self.applied if index is None else index
        if least <= 0:
            raise ChangeRefused("this replica has applied nothing yet")
        current = self.snapshots.current
        if current is not None and current.index >= least:
            return [least, [*snapshots.fields_of(current)]]
        if index is not None and least <= self.raft.commit:
            self._asked_index = max(self._asked_index, least)
        return [least, None]

    def _may_make(self) -> bool:
        return self._writing_own is None and not self._is_installing() and self.snapshots.may_make(self.raft.now)

    def _begin_snapshot(self) -> None:
        """Have the machine capture its state as it is now; it is put into pieces, and written, in the turns to come."""
        index, term, check = self.applied, self.raft.log.term_at(self.applied), self.raft.log.check_at(self.applied)
        configuration = self.raft.configuration_at(index).plain()

        def capture() -> Iterator[bytes] | Exception:
            try:
                kind, machine = snapshots.WITNESS, iter(list[bytes]())
                if not self.is_witness:
                    kind, machine = self.applier.capture(index, term)
                stream = snapshots.contents(configuration, self.sessions.snapshot(), kind, machine)
            except Exception as error:
                if results.is_exhausted(error):
                    raise
                return error
            self._pace.did()
            return stream

        def captured(stream: Iterator[bytes] | Exception) -> None:
            if isinstance(stream, Exception):
                self._fail_snapshot(stream)
            elif index > self.raft.snapshot_index and self._may_make():
                self.snapshots.make(index, term, check, stream)
                self._again = True

        self._run(capture, captured)

    def _fail_snapshot(self, error: Exception) -> None:
        """The log stays as it is: nothing is lost but space."""
        self._snapshot_failed = True
        self.snapshots.abandon_making()
        text = "the state machine made no snapshot"
        _logger.error("group %s: %s: %s", self.group, text, described(error))

    def _entries_to_keep(self, index: int) -> int:
        """How many entries before a snapshot at `index` stay: those that who fetches an older one will need."""
        keep, held = self.settings.keep_entries, self.snapshots.held_index(self.raft.now)
        log = self.raft.log
        if held is None or index - held <= keep or held < log.base_index:
            return keep
        return index - held if log.bytes_between(held + 1, index + 1) <= _HELD_BYTES else keep

    def _initial_write(self, term: int) -> Write:
        """Everything of the snapshot that is being made, in one write."""
        pieces: list[Piece] = []
        made = None
        while made is None:
            part = self.snapshots.part(lambda: False)
            pieces += part.pieces
            made = part.made
        self.snapshots.adopt(made, 0)
        return Write(self.group, term, None, snapshot=made, snapshot_resets_log=True, pieces=pieces)

    # -- from the leader: offered, fetched, verified, shown to the rules, written, loaded -----------------------------

    def _lacks(self, snapshot: StoredSnapshot) -> bool:
        """Whether the rules would install it."""
        return bool(snapshot.index > self.raft.commit and self.raft.log.term_at(snapshot.index) != snapshot.term)

    def _is_installing(self) -> bool:
        if self._installing is not None or self._writing_install is not None:
            return True
        # What waits until we know whether we keep a state machine may be overtaken.
        return self._loading is not None and self.is_witness is not None

    def _is_unverified(self) -> bool:
        return self.snapshots.fetched is not None and self._verified is None and not self._is_installing()

    def _tick_snapshots(self, now: int) -> None:
        fetch, fetched = self.snapshots.fetch, self.snapshots.fetched
        if fetch is not None and not self._lacks(fetch.snapshot):
            self.snapshots.abandon_fetch()  # The entries came.
        elif fetched is not None and not self._is_installing():
            if not self._lacks(fetched):
                self._verifying = self._verified = None
                self.snapshots.abandon_fetch()
            elif self._verified is None:
                self._verify(fetched)
        self.snapshots.tick(now)

    def _verify(self, fetched: StoredSnapshot) -> None:
        """Read what was fetched from the disk, as far as a turn has time, and compare: then the rules may see it."""
        until = self._clock() + self.settings.apply_budget_us
        read = self.snapshots.reader(fetched)
        try:
            if self._verifying is None:
                self._verifying = snapshots.verify(fetched, map(read, range(fetched.count)))
            for _ in self._verifying:
                if self._clock() >= until:
                    return
            reader = snapshots.Reader(fetched, read)
            if reader.kind == snapshots.WITNESS:
                raise MalformedMessage(f"the snapshot at {fetched.index} is a witness's: it was refused")
            self.core.Configuration.from_plain(reader.configuration)
        except (MalformedMessage, Corrupt, InvalidArgument) as error:
            _logger.error("group %s: %s", self.group, error)
            self.snapshots.abandon_fetch()
            self._event("raftplug_snapshot", index=fetched.index, kind="refused")
        else:
            self._verified = reader
            self._install()
        self._verifying = None

    def _install(self) -> None:
        """Show the rules the snapshot that is here, as what the leader that offers one gave."""
        reader, raft = self._verified, self.raft
        if reader is None or self._offer is None or self._is_installing():
            return  # The leader's next offer comes soon.
        source, offer = self._offer
        if offer.term != raft.term:
            return  # Likewise.
        self._verified = None
        snapshot = reader.snapshot
        if not self._lacks(snapshot):
            self.snapshots.abandon_fetch()
            return
        message = self.core.Message(
            SNAPSHOT,
            offer.term,
            index=snapshot.index,
            log_term=snapshot.term,
            commit=offer.commit,
            context=offer.context,
            hint=snapshot.check,
        )
        raft.step(message, source)
        if raft.installing is not message:
            raise InvariantViolated("the rules do not install the snapshot that they lack")
        raft.set_configuration(self.core.Configuration.from_plain(reader.configuration))
        if self._is_founding():
            self._check_founding()
        self._installing = reader

    def _loaded(self, install: snapshots.Reader) -> None:
        """An installed snapshot was taken over."""
        index = install.snapshot.index
        if self._loading is install:  # Else another one came meanwhile.
            self._loading = None
        self._applied = self.applier.applied
        self._snapshot_failed = False
        self._digests.forget()
        self._diverged.pop(self.id, None)
        self._answer_covered(index)
        self._event("raftplug_snapshot", index=index, kind="installed")

    # ----------------------------------------------------------------- write

    def _write(self, ready: Any) -> Write | None:
        install = None
        if ready.snapshot is not None:
            install, self._installing = self._installing, None
            if install is None:
                raise InvariantViolated("the rules install a snapshot that the driver did not verify")
            self.snapshots.abandon_making()  # Overtaken.
        if not ready.write and not self.snapshots.is_at_work():
            return None
        part = self._part_of_snapshots()
        if not ready.write and not part:
            return None
        own = part.made
        self._writing_own, self._writing_install = own, install
        snapshot = install.snapshot if install is not None else own
        return Write(
            group=self.group,
            term=self.raft.term,
            vote=self.raft.vote,
            first=ready.first,
            block=ready.block,
            snapshot=snapshot,
            snapshot_resets_log=install is not None,
            compact=own.index if own is not None else 0,
            pieces=part.pieces,
            incoming=part.incoming,
            discard=part.discard,
        )

    def _part_of_snapshots(self) -> snapshots.Part:
        if not self.snapshots.is_at_work():
            return snapshots.Part()
        until = self._clock() + self.settings.apply_budget_us
        try:
            return self.snapshots.part(lambda: self._clock() >= until)
        except BaseException as error:
            if results.is_exhausted(error) or not isinstance(error, Exception):
                raise results.stopping(self.group, self.machine, error)  # noqa: B904  (It may be the same.)
            self._fail_snapshot(error)
            return snapshots.Part()

    # --------------------------------------------------------------- answers

    def _register_overwritten(self, index: int, applied_term: int) -> None:
        """Truncated entries are gone once another is committed in their place: until then they may return."""
        for kind, term, payload in self._truncated.pop(index):
            if term != applied_term:
                abandoned = TransitionState.Abandoned(TransitionAbandonedReason.ConflictWithLeader)
                self._register(index, kind, term, payload, abandoned)

    def _answer_covered(self, index: int) -> None:
        """A snapshot covers entries that were proposed here: whether it holds them cannot be told."""
        for truncated in [truncated for truncated in self._truncated if truncated <= index]:
            del self._truncated[truncated]
        covered = [self._pending.pop(pended) for pended in [pended for pended in self._pending if pended <= index]]
        covered += [(term, deadline, whom) for at, term, deadline, whom in self._cut if at <= index]
        self._cut = [each for each in self._cut if each[0] > index]
        for _, _, whom in covered:
            text = "a snapshot of the leader's replaced the log before the transition was applied here"
            self._resolve_error(whom, OutcomeUnknown(text), UNKNOWN)

    def _resolve_error(self, whom: Future | Asker, error: RaftplugError, code: int) -> None:
        if isinstance(whom, Asker):
            self._reply(whom, code, str(error))
        else:
            whom.set_exception(error)

    def _expire(self, now: int) -> None:
        """Futures whose time is up: transitions were appended, so nobody knows; reads were not answered."""
        if now < self._next_expiry:
            return
        past = [self._pending.pop(index) for index in [i for i, each in self._pending.items() if each[1] <= now]]
        past += [(term, deadline, whom) for _, term, deadline, whom in self._cut if deadline <= now]
        self._cut = [each for each in self._cut if each[2] > now]
        for _, _, whom in past:
            self._resolve_error(whom, OutcomeUnknown("no quorum confirmed the transition in time"), UNKNOWN)
        late = [read for read in (*self._confirming, *self._reads, *self._looking) if read.deadline <= now]
        if late:
            self._confirming = {read: None for read in self._confirming if read.deadline > now}
            self._reads = deque(read for read in self._reads if read.deadline > now)
        for read in late:
            read.finish(Unavailable("this replica did not hear in time of what it was to show"))
        deadlines = [deadline for _, deadline, _ in self._pending.values()] + [each[2] for each in self._cut]
        waiting = (*self._confirming, *self._reads, *self._looking)
        deadlines += [read.deadline for read in waiting if read.deadline > now]
        self._next_expiry = min(deadlines, default=_NEVER)

    def _notice_role(self, now: int) -> None:
        """Tell who must know when leadership changed."""
        raft = self.raft
        role_term = (raft.role, raft.term)
        if raft.role == LEADER and role_term != self._role_term:
            self._logged_us()  # It passes from now on.
            self._committed_seen = raft.commit
        elif self._role_term[0] == LEADER and raft.role != LEADER:
            # Askers elsewhere can ask the next leader: their session makes that safe.  Our own futures stay pending.
            for index in [index for index, entry in self._pending.items() if isinstance(entry[2], Asker)]:
                _, _, whom = self._pending.pop(index)
                self._resolve_error(whom, OutcomeUnknown("the leader stepped down before the answer"), UNKNOWN)
            for _, asker in self._changes:
                self._reply(asker, UNKNOWN, "the leader stepped down before the change was over")
            self._changes.clear()
        if raft.term != self._role_term[1]:
            self._heard_storages.clear()
            self._lost.clear()
            self._transfers = 0
        self._role_term = role_term
        if raft.leader != self.leader:
            self.leader = raft.leader
            self.requester.set_leader(self.leader)
            self._event("raftplug_leader_changed", leader=self.leader, term=raft.term)

    def _register_committed(self) -> None:
        raft = self.raft
        if raft.commit > self._committed_seen and self._observes():
            low = max(self._committed_seen, raft.log.base_index) + 1
            for offset, (kind, term, payload) in enumerate(raft.log.entries(low, raft.commit + 1)):
                self._register(low + offset, kind, term, payload, TransitionState.Committed)
        self._committed_seen = raft.commit

    def _observes(self) -> bool:
        """Whether the machine, or an observer, wants to know what becomes of each transition."""
        return self.abilities.observes_states or self._is_watched()

    def _register(self, index: int, kind: int, term: int, payload: bytes, state: TransitionState) -> None:
        """Tell the machine, and the hooks, what became of a transition: as a job, since the machine may take long."""
        self._notes.append((index, kind, term, payload, state))

    def _tell_observers(self) -> None:
        if self.applier.told:
            told, self.applier.told = self.applier.told, []
            for identity, state in told:
                self._event("raftplug_transition_state", transition_id=identity, state=state)

    def _event(self, name: str, **arguments: Any) -> None:
        self._on_event(name, group=self.group, node=self.id, **arguments)


def _members(configuration: Any) -> list[Any]:
    """What people and observers are told of it: voters, outgoing, learners, joining, witnesses."""
    return [*configuration.plain()[:4], list(configuration.witnesses)]


def _overwritten() -> NotLeader:
    return NotLeader("another leader's entry took the place of the transition: it was not executed, propose it again")


def _stopped() -> Unavailable:
    return Unavailable("this node has stopped")


def ignore(name: str, **arguments: Any) -> None:
    """Nobody listens."""
