"""What a process asks of a group: proposals and reads with retries, and the truth about how each of them ended.

A `Requester` has no clock, thread, socket or chance of its own: its owner (a client's loop, or a follower that forwards
its own proposals) hands it the time, replies and what it knows of leaders, and it hands out requests to send.

The rules of truth.  Every *attempt* at a call has its own counter.  An attempt is settled by an answer that says what
became of it.  While an attempt at a write is unsettled (no answer, or UNKNOWN) it may be executed at any time, so
whatever else goes wrong the write ends as OutcomeUnknown; only when each attempt was refused for certain, or none was
ever sent, does it end as NotLeader, Overloaded, Unavailable or TooLarge.  Asking again is safe, since every attempt
carries the same session and sequence (`sessions.py`).  Reads change nothing, and are simply asked again.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgpack

from raftplug import plain, results
from raftplug.constants import (
    ALREADY,
    FAILED,
    LEASE,
    LIMIT,
    LINEARIZABLE,
    MALFORMED,
    MOVED,
    OK,
    REFUSED_NOT_LEADER,
    REFUSED_OVERLOADED,
    REFUSED_TOO_LARGE,
    REFUSED_UNAVAILABLE,
    SESSION_EXPIRED,
    STALE,
    UNDELIVERABLE,
)
from raftplug.errors import (
    ChangeRefused,
    InvalidArgument,
    InvariantViolated,
    MalformedMessage,
    NotLeader,
    OutcomeUnknown,
    Overloaded,
    QueryFailed,
    RaftplugError,
    SessionExpired,
    TooLarge,
    TransitionFailed,
    Unavailable,
)
from raftplug.foreign import short
from raftplug.frames import Id
from raftplug.sessions import MAX_RESULTS, SESSION_TIMEOUT_US, check_name
from raftplug.settings import Settings

if TYPE_CHECKING:
    from raftplug.core import Future

WINDOW: Final = 1024
"""Writes, and again reads, that were sent and are not finished; more wait in the queue, in the order of the calls."""
SPAN: Final = MAX_RESULTS // 2
"""How far ahead of the oldest unfinished sequence of a session a new one may be: what the replicated table can keep."""
ATTEMPTS: Final = 8
"""Attempts at one call whose answers are still awaited; an older one counts as unsettled for good."""
_MOST_SILENT: Final = 64
_TIDY: Final = 64  # Entries that ended calls may leave behind, beside two a live one.

_PROPOSE: Final = 0
_READ: Final = 1
_ASK: Final = 2
_OPEN: Final = 3

# Where a call is.  Each that is not _DONE has an entry in the heap of timers.
_QUEUED: Final = 0  # in the queue of writes or of reads, never sent
_READY: Final = 1  # to be sent in the next tick
_FLYING: Final = 2  # sent, its answer is awaited
_RESTING: Final = 3  # refused, to be sent again in a while
_DONE: Final = 4


class _Session:
    """One session of ours, and which of its sequences are finished."""

    __slots__ = ("below", "finished", "id", "next", "used_us")

    def __init__(self, id: int, now: int) -> None:
        self.id = id
        self.next = 1
        self.below = 1  # Every sequence below it is finished: the replicas need not keep its result.
        self.finished: set[int] = set()  # Finished sequences above `below`.
        self.used_us = now

    def finish(self, sequence: int) -> None:
        if sequence >= self.below and len(self.finished) < MAX_RESULTS:  # One left out only holds `below` back.
            self.finished.add(sequence)
            while self.below in self.finished:
                self.finished.remove(self.below)
                self.below += 1


class _Call:
    __slots__ = (
        "attempts",
        "blind",
        "body",
        "consistency",
        "deadline",
        "due",
        "follows",
        "future",
        "kind",
        "number",
        "op",
        "open",
        "refusal",
        "rests",
        "sent_us",
        "sequence",
        "session",
        "silences",
        "size",
        "state",
        "tainted",
        "target",
        "timer",
        "to",
    )

    def __init__(self, number: int, kind: int, op: str, body: Any, future: Future | None, deadline: int) -> None:
        self.number = number
        self.kind = kind
        self.op = op
        self.body = body
        self.consistency = LINEARIZABLE
        self.future = future
        self.deadline = deadline
        self.due = deadline  # When it must be looked at; never later than the deadline.
        self.timer = deadline  # Its earliest entry in the heap of timers; never later than due.
        self.state = _QUEUED
        self.size = len(body) if isinstance(body, bytes) else 0
        self.session: _Session | None = None
        self.sequence = 0
        self.to: Id | None = None  # The only node to ask, if there is one.
        self.target: Id | None = None  # Whom the newest attempt went to.
        self.sent_us = 0
        self.attempts = 0
        self.rests = 0  # Attempts that were refused and led nowhere …
        self.silences = 0  # … and those that were left unanswered for too long.
        self.follows = 0  # Hints followed at once since the last rest: two nodes may point at each other.
        self.open: list[int] = []  # Counters of the attempts that are not answered, oldest first.
        self.tainted = False  # An attempt will never be settled.
        self.blind = False  # An attempt went to whatever process now has the target's id.
        self.refusal: RaftplugError | None = None  # The last certain one.

    def unsettled(self) -> bool:
        return self.tainted or bool(self.open)


def check_consistency(consistency: object) -> str:
    """The consistency of a read, or InvalidArgument."""
    if type(consistency) is str and consistency in (LINEARIZABLE, LEASE, STALE):
        return consistency
    raise InvalidArgument(f"consistency must be {LINEARIZABLE!r}, {LEASE!r} or {STALE!r}, not {short(consistency)}")


class Requester:
    """Asks one group on behalf of one process.

    Nothing is sent outside `tick`: call it once a turn, after everything else.  Futures are resolved within the calls.

    Args:
        settings: the election timeout, from which the patience with one attempt follows, and the bounds.
        generator: the source of randomness.
        send: takes the id of a node and the body of a REQUEST; it must not raise, and may lose it.  It returns False
            if a later process of that id could take the request, too: then no refusal is certain.
        name: of a session that outlives this process.  The caller then gives every sequence, counted from 1; the same
            sequence is the same transition, also after a restart.
        explain: says in a few words what is wrong with the way to the group, or nothing.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        generator: random.Random,
        send: Callable[[Id, bytes], bool | None],
        name: str | None = None,
        explain: Callable[[], str] | None = None,
    ) -> None:
        check_name(name)
        self._settings = settings
        self._random = generator
        self._send = send
        self._name = name or None
        self._explain = explain or (lambda: "")
        self._now = 0
        self._patience_us = 1000 * settings.election_timeout_ms  # A dead leader's successor is there soon after.
        self._pause_us = 1000 * max(1, settings.election_timeout_ms // 20)
        self._leader: Id | None = None
        self._nodes: list[Id] = []
        self._target: Id | None = None  # Whom to ask: the leader, or who is being tried.
        self._heard_us = 0  # When the target last said anything.
        self._silent: dict[Id, int] = {}  # Who left an attempt unanswered, and when that was noticed.
        self._session: _Session | None = None
        self._opening: _Call | None = None
        self._open_refusal: RaftplugError | None = None
        self._why_gone = ""
        self._expired = False  # A named session that expired is not opened again: its sequences could run twice.
        self._calls: dict[int, _Call] = {}  # Everything that is not done, by number.
        self._counters: dict[int, _Call] = {}  # By the counter of each unanswered attempt.
        self._writes: deque[_Call] = deque()
        self._reads: deque[_Call] = deque()
        self._ready: deque[_Call] = deque()
        self._timers: list[tuple[int, int, _Call]] = []
        self._numbers = 0
        self._counter = 0
        self._writes_sent = 0  # Writes that hold a place in the window.
        self._reads_sent = 0
        self._bytes = 0
        self._closed: str | None = None

    # -- asking ----------------------------------------------------------------------------------------------------

    def propose(self, transition: bytes, future: Future, deadline_us: int, sequence: int | None = None) -> None:
        """Propose an encoded transition.

        Args:
            transition: the bytes of plain data.
            future: gets the result (None if it had been executed before and its result is no longer kept), or
                TransitionFailed, SessionExpired, TooLarge, Overloaded, NotLeader, Unavailable: not executed now;
                OutcomeUnknown: it may have been, or may be yet; TooLarge with `executed`: it was, and its result cannot
                be delivered.
            deadline_us: on the owner's clock.
            sequence: of a named session: which transition this is, from 1.
        """
        if self._name is None and sequence is not None:
            future.set_exception(InvalidArgument("a sequence needs a session with a name: give session="))
            return
        if self._name is not None and (type(sequence) is not int or not 1 <= sequence < LIMIT):
            text = "a session with a name needs sequence= with each transition, a whole number from 1"
            future.set_exception(InvalidArgument(text))
            return
        if self._expired:
            future.set_exception(self._session_expired(self._why_gone))
            return
        call = self._begin(_PROPOSE, "propose", transition, future, deadline_us)
        if call is not None:
            call.sequence = sequence or 0
            self._writes.append(call)

    def read(self, query: bytes, future: Future, deadline_us: int, consistency: str = LINEARIZABLE) -> None:
        """Ask the state machine.

        Args:
            query: the bytes of plain data.
            consistency: LINEARIZABLE, LEASE or STALE.
            future: gets the answer, or QueryFailed, TooLarge (the query, or the answer), Overloaded, Unavailable.
            deadline_us: on the owner's clock.
        """
        call = self._begin(_READ, "read", query, future, deadline_us)
        if call is not None:
            call.consistency = consistency
            self._reads.append(call)

    def ask(self, op: str, args: list[Any], future: Future, deadline_us: int, to: Id | None = None) -> None:
        """Ask anything that may be asked twice; the future gets the value as it comes, or an error as a read does.

        Args:
            op, args: the request.
            to: the only node to ask; None asks the leader.
        """
        call = self._begin(_ASK, op, args, future, deadline_us)
        if call is not None:
            call.to = to
            call.state = _READY
            self._ready.append(call)

    def pending(self) -> int:
        """How many calls have no answer yet."""
        return len(self._calls)

    # -- what the owner knows --------------------------------------------------------------------------------------

    def set_leader(self, leader: Id | None) -> None:
        """The owner learned who leads.  What waits, or was asked of another node, goes there."""
        if leader == self._leader:
            return
        self._leader = leader
        if leader is None:
            return  # Go on asking the old one: it knows better, and answers.
        before, heard_us = self._target, self._heard_us
        self._aim(leader)
        for call in self._calls.values():
            if call.to is not None:
                continue
            if call.state == _RESTING:
                self._set_due(call, self._now)
            elif call.state == _FLYING and call.target != leader:
                silent = call.target in self._silent or (call.target == before and heard_us <= call.sent_us)
                if call.kind == _READ and not silent:
                    continue  # A follower reads, too, while it is there.
                # Not more often than every pause, should two hints contend.
                self._set_due(call, min(call.due, max(self._now, call.sent_us + self._pause_us)))

    def suggest_leader(self, leader: Id, now: int) -> bool:
        """A directory names who leads: that may be a second old, and counts only if nobody answers who is thought to.

        Returns: whether it counted.
        """
        answers = self._leader is not None and now - self._heard_us < self._patience_us
        if answers and leader != self._leader:
            return False
        self.set_leader(leader)
        return True

    def set_nodes(self, nodes: Sequence[Id]) -> None:
        """The nodes to try while the leader is unknown."""
        self._nodes = list(nodes)
        if self._target is not None and self._target != self._leader and self._target not in self._nodes:
            self._target = None
        self._find_target()

    @property
    def nodes(self) -> Sequence[Id]:
        """The nodes to try while the leader is unknown."""
        return self._nodes

    @property
    def leader(self) -> Id | None:
        """Who is thought to lead, by what the owner and the answers said."""
        return self._leader

    def on_reply(self, source: Id, counter: int, code: int, value: Any) -> None:
        """An answer arrived.  One that is unknown, late or makes no sense is ignored."""
        if type(counter) is not int or type(code) is not int:
            return
        call = self._counters.get(counter)
        if call is None:
            return
        outcome = None
        if code in (OK, FAILED):
            outcome = _outcome(call, code, value)
            if outcome is None:
                return  # Not an answer that a node of ours gives: as good as none.
        newest = call.state == _FLYING and call.open[-1] == counter
        del self._counters[counter]
        call.open.remove(counter)
        self._silent.pop(source, None)
        if source == self._target:
            self._heard_us = self._now
        if outcome is not None:
            if code == OK and call.kind in (_PROPOSE, _OPEN) and self._leader is None:
                self.set_leader(source)
            self._finish(call, *outcome)
        elif code == ALREADY and call.kind == _PROPOSE:
            self._finish(call, None, None)
        elif code == SESSION_EXPIRED and call.kind == _PROPOSE:
            self._on_session_expired(call, _text(value, "it was idle for too long"))
        elif code == MOVED and call.kind == _ASK:
            self._refuse_for_good(call, ChangeRefused(_text(value, "the group has changed meanwhile")))
        elif code == UNDELIVERABLE:
            size = value if type(value) is bytes else b"too many"
            self._finish(call, None, results.too_large(size, call.kind == _PROPOSE))
        elif code in (REFUSED_TOO_LARGE, MALFORMED):
            kind = TooLarge if code == REFUSED_TOO_LARGE else InvalidArgument
            self._refuse_for_good(call, kind(_text(value, "the node refused the request")))
        else:
            self._on_refusal(call, source, code, value, newest)

    # -- time ------------------------------------------------------------------------------------------------------

    def tick(self, now: int) -> None:
        """Do what is due, and send.  `now` in µs never goes back."""
        if now > self._now:
            self._now = now
        busy = bool(self._calls)
        if busy:
            self._run_timers()
        if self._target is None:
            self._find_target()
        if busy:
            if self._ready:
                self._send_ready()
            if self._reads or self._writes:
                self._send_queued()
        if len(self._timers) + len(self._writes) + len(self._reads) + len(self._ready) > _TIDY:
            self._tidy()

    def deadline(self) -> int:
        """When `tick` is due if nothing happens; 0 if there is something to send, 2^63 if there is nothing at all."""
        if not self._calls:
            return LIMIT
        if self._ready and (self._target is not None or any(call.to is not None for call in self._ready)):
            return 0
        if self._target is not None and (self._may_send_read() or self._may_send_write()):
            return 0
        while self._timers and self._timers[0][2].state == _DONE:
            heapq.heappop(self._timers)
        return self._timers[0][0] if self._timers else LIMIT

    def close(self, reason: str = "it was closed") -> None:
        """End everything: what may have been sent as OutcomeUnknown, the rest as Unavailable; later calls too."""
        self._closed = reason
        self.abort(reason)

    def abort(self, reason: str, error: RaftplugError | None = None) -> None:
        """End everything that is pending, as `close` does, but go on taking calls.

        Args:
            reason: why, in a few words.
            error: what ends the calls that certainly were not executed; None is Unavailable.
        """
        for call in list(self._calls.values()):
            if call.state != _DONE:
                call.refusal = error or Unavailable(f"not executed: {reason}")
                self._give_up(call, reason)
        self._tidy()

    # -- inside: beginning and ending ------------------------------------------------------------------------------

    def _begin(self, kind: int, op: str, body: Any, future: Future, deadline: int) -> _Call | None:
        size = len(body) if isinstance(body, bytes) else 0
        error: RaftplugError | None = None
        if self._closed is not None:
            error = Unavailable(f"not executed: {self._closed}")
        elif size > self._settings.max_transition_bytes:
            limit = self._settings.max_transition_bytes
            error = TooLarge(f"{size} bytes encoded; at most {limit} are taken: send less at a time")
        elif len(self._calls) >= self._settings.max_pending:
            error = Overloaded(f"{len(self._calls)} calls wait for an answer already: try again later")
        elif self._bytes and self._bytes + size > self._settings.max_uncommitted_bytes:
            error = Overloaded(f"{self._bytes} bytes wait for an answer already: try again later")
        if error is not None:
            future.set_exception(error)
            return None
        return self._add(kind, op, body, future, deadline)

    def _add(self, kind: int, op: str, body: Any, future: Future | None, deadline: int) -> _Call:
        self._numbers += 1
        call = _Call(self._numbers, kind, op, body, future, min(deadline, LIMIT))
        self._calls[call.number] = call
        self._bytes += call.size
        heapq.heappush(self._timers, (call.due, call.number, call))
        return call

    def _finish(self, call: _Call, value: Any, error: RaftplugError | None, executed: bool = True) -> None:
        """The one way in which a call ends.  `executed`: it is known that the sequence was executed."""
        if call.state == _DONE:
            return
        call.state = _DONE
        del self._calls[call.number]
        for counter in call.open:
            self._counters.pop(counter, None)
        self._bytes -= call.size
        call.body = None
        session = call.session
        if call.kind == _OPEN:
            self._opening = None
            if error is None:
                self._session = _Session(value, self._now)
                self._open_refusal = None
        elif call.kind == _READ and call.attempts:
            self._reads_sent -= 1
        elif session is not None:
            self._writes_sent -= 1
            # Nobody asks again for an anonymous sequence that has ended.  A named one is finished only if it was
            # executed: the caller may come back with any other, and must not be told that it was.
            if executed or self._name is None:
                session.finish(call.sequence)
        future, call.future = call.future, None
        if future is not None:
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(value)

    def _give_up(self, call: _Call, why: str) -> None:
        """End a call without an answer, and say no more than what is known."""
        if call.kind == _PROPOSE and call.unsettled():
            text = f"{why}: the transition may have been executed, or may be yet; look at the state"
            self._finish(call, None, OutcomeUnknown(text), executed=False)
            return
        error = call.refusal
        if error is None and call.kind == _PROPOSE and call.state == _QUEUED:
            error = self._open_refusal  # It waited for its session.
        if call.kind in (_READ, _ASK) and isinstance(error, NotLeader):
            error = None
        if error is None:
            error = Unavailable(f"{why}: {self._why()}")
        self._finish(call, None, error, executed=False)

    def _refuse_for_good(self, call: _Call, error: RaftplugError) -> None:
        """Asking again would give the same answer."""
        if call.kind == _OPEN:
            self._finish(call, None, error)
            for waiting in list(self._writes):
                self._finish(waiting, None, error, executed=False)
            return
        call.refusal = error
        self._give_up(call, str(error))

    def _why(self) -> str:
        explained = self._explain()
        if explained:
            return explained
        if not self._nodes and self._leader is None:
            return "no node of the group is known"
        return "no leader answered"

    # -- inside: answers -------------------------------------------------------------------------------------------

    def _on_refusal(self, call: _Call, source: Id, code: int, value: Any, newest: bool) -> None:
        hint: Id | None = None
        if code == REFUSED_NOT_LEADER:
            if isinstance(value, str) or (type(value) is int and 0 <= value < LIMIT):
                hint = value
            call.refusal = NotLeader("no leader took the transition: it was not executed", hint)
        elif code == REFUSED_OVERLOADED:
            call.refusal = Overloaded(_text(value, "the group holds as many transitions as it may: try again later"))
        elif code == REFUSED_UNAVAILABLE:
            call.refusal = Unavailable(_text(value, "the node could not take the request"))
        else:  # UNKNOWN, or a code of a later version: this attempt will never be settled.
            call.tainted = True
        # The inbox outlives the process: its successor may meet the same request again, and lead.
        call.tainted = call.tainted or call.blind
        if call.kind == _OPEN:
            self._open_refusal = call.refusal
        if not newest:
            return  # An older attempt's answer: the newest goes on.
        if code == REFUSED_NOT_LEADER and call.to is None and source == call.target:
            # A follower names a dead leader until it campaigns itself: do not go and wait there again.
            if hint is not None and hint != source and call.follows < 3 and not self._is_silent(hint):
                call.follows += 1
                if self._target == source:
                    self.set_leader(hint)
                    self._aim(hint)
                self._make_ready(call)
                return
            if self._target == source:
                self._try_next()
            elif self._target is not None and call.follows < 3:
                call.follows += 1  # Another answer has found us a better target meanwhile.
                self._make_ready(call)
                return
        elif code == REFUSED_UNAVAILABLE and call.to is None and source == self._target:
            self._try_next()
        self._rest(call)

    def _on_session_expired(self, call: _Call, why: str) -> None:
        if call.session is self._session:
            self._session = None
            self._expired = self._name is not None
            self._why_gone = why
        error: RaftplugError = self._session_expired(why)
        if call.unsettled():
            text = f"the group forgot the session ({why}) before an earlier attempt was answered"
            error = OutcomeUnknown(f"{text}: the transition may have been executed; look at the state")
        self._finish(call, None, error, executed=False)
        if self._expired:
            for waiting in list(self._writes):
                self._finish(waiting, None, self._session_expired(why), executed=False)

    def _session_expired(self, why: str) -> SessionExpired:
        if self._name is None:
            return SessionExpired(f"the group forgot the session: {why}; this was not executed: propose it again")
        return SessionExpired(
            f"the group forgot session {self._name!r}: {why}; this was not executed, but what was executed earlier "
            "under that name is forgotten, too: look at the state, then go on under another name"
        )

    # -- inside: timers --------------------------------------------------------------------------------------------

    def _set_due(self, call: _Call, due: int) -> None:
        """Look at `call` at `due`.  If that is later than before, its timer is put off when it comes."""
        call.due = min(due, call.deadline)
        if call.due < call.timer:
            call.timer = call.due
            heapq.heappush(self._timers, (call.due, call.number, call))

    def _run_timers(self) -> None:
        timers = self._timers
        while timers and timers[0][0] <= self._now:
            due, _, call = heapq.heappop(timers)
            if call.state == _DONE or due != call.timer:
                continue  # An earlier entry of the call took its place.
            call.timer = LIMIT + 1
            if call.due <= self._now:
                self._on_due(call)
            if call.state != _DONE:
                self._set_due(call, call.due)

    def _on_due(self, call: _Call) -> None:
        if self._now >= call.deadline:
            self._give_up(call, "no answer in time")
            return
        if call.kind == _OPEN and not self._writes:
            self._finish(call, None, Unavailable("no write needs the session any more"))
            return
        if call.state == _FLYING:
            call.silences += 1
        if call.state == _FLYING and call.to is None and call.target == self._target:
            # Silent since the attempt; or lately, if it died just after it had said something.
            silent = self._heard_us <= max(call.sent_us, call.due - self._patience_us // 2)
            if silent and call.target is not None:
                if len(self._silent) >= _MOST_SILENT:
                    self._silent.clear()
                self._silent[call.target] = self._now
                self._try_next()
        self._make_ready(call)  # In the queue and when ready, a call is due at its deadline only.

    def _make_ready(self, call: _Call) -> None:
        call.state = _READY
        call.due = call.deadline
        self._ready.append(call)

    def _rest(self, call: _Call) -> None:
        """Ask again after a pause that grows each time, and differs from everybody else's."""
        call.state = _RESTING
        call.follows = 0
        pause = self._pause_us << min(call.rests, 4)
        call.rests += 1
        self._set_due(call, self._now + pause // 2 + self._random.randrange(pause))

    def _tidy(self) -> None:
        """Calls that ended leave entries behind; never let these outnumber the live ones by much."""
        limit = 2 * len(self._calls) + _TIDY
        if len(self._timers) > 2 * limit:
            self._timers = [(call.timer, call.number, call) for call in self._calls.values()]
            heapq.heapify(self._timers)
        for name in ("_writes", "_reads", "_ready"):
            waiting = getattr(self, name)
            if len(waiting) > limit:
                setattr(self, name, deque(call for call in waiting if call.state != _DONE))

    # -- inside: targets -------------------------------------------------------------------------------------------

    def _aim(self, target: Id | None) -> None:
        if target != self._target:
            self._target = target
            self._heard_us = 0

    def _find_target(self) -> None:
        if self._target is None:
            if self._leader is not None:
                self._aim(self._leader)
            elif self._nodes:
                self._aim(self._random.choice(self._nodes))

    def _try_next(self) -> None:
        """The target does not help: forget the leader, and try the node that follows it in the list."""
        if self._leader == self._target:
            self._leader = None
        if not self._nodes:
            return
        at = self._nodes.index(self._target) + 1 if self._target in self._nodes else 0
        ring = self._nodes[at:] + self._nodes[:at]
        self._aim(next((node for node in ring if not self._is_silent(node)), ring[0]))

    def _is_silent(self, node: Id) -> bool:
        """Whether it has just left an attempt unanswered, and said nothing since.  After a while it is tried again."""
        return self._now - self._silent.get(node, -self._patience_us) < self._patience_us

    # -- inside: sending -------------------------------------------------------------------------------------------

    def _send_ready(self) -> None:
        for _ in range(len(self._ready)):
            call = self._ready.popleft()
            if call.state != _READY:
                continue
            if call.to is None and self._target is None:
                self._ready.append(call)  # In their order, once there is a target.
                continue
            self._attempt(call)

    def _send_queued(self) -> None:
        if self._target is None:
            return
        while self._may_send_read():
            call = self._reads.popleft()
            self._reads_sent += 1
            self._attempt(call)
        while self._may_send_write():
            session = self._usable_session()
            if session is None:
                if self._opening is None:
                    self._opening = self._add(_OPEN, "open", [self._name], None, LIMIT)
                    self._attempt(self._opening)
                return
            call = self._writes.popleft()
            call.session = session
            session.used_us = self._now
            self._writes_sent += 1
            if not call.sequence:
                call.sequence = session.next
                session.next += 1
            self._attempt(call)

    def _may_send_read(self) -> bool:
        while self._reads and self._reads[0].state == _DONE:
            self._reads.popleft()
        return bool(self._reads) and self._reads_sent < WINDOW

    def _may_send_write(self) -> bool:
        while self._writes and self._writes[0].state == _DONE:
            self._writes.popleft()
        if not self._writes or self._writes_sent >= WINDOW or self._opening is not None:
            return False
        session = self._session
        return session is None or self._name is not None or session.next - session.below < SPAN

    def _usable_session(self) -> _Session | None:
        session = self._session
        if session is None or self._name is not None or self._writes_sent:
            return session
        # It may expire soon, by other clocks than ours.  Nothing is under way in it: take a new one in time.
        if self._now - session.used_us > SESSION_TIMEOUT_US // 2:
            self._session = None
        return self._session

    def _attempt(self, call: _Call) -> None:
        target = self._target if call.to is None else call.to
        if target is None:
            raise InvariantViolated("a request without anybody to ask")
        self._counter += 1
        counter = self._counter
        call.attempts += 1
        call.state = _FLYING
        call.target = target
        call.sent_us = self._now
        call.open.append(counter)
        self._counters[counter] = call
        if len(call.open) > ATTEMPTS:
            del self._counters[call.open.pop(0)]
            call.tainted = True
        patience = self._patience_us << min(call.silences, 2)
        spread = self._random.randrange(self._patience_us // 2) if call.silences else 0
        self._set_due(call, self._now + patience + spread)
        session = call.session
        args: list[Any]
        if session is not None:
            # Never above its own sequence: a named one may come a second time after it was finished.
            args = [session.id, call.sequence, min(session.below, call.sequence), call.body]
        elif call.kind == _READ:
            args = [call.body, call.consistency]
        else:
            args = call.body
        if self._send(target, msgpack.packb([counter, call.op, args])) is False:
            call.blind = True


def _outcome(call: _Call, code: int, value: Any) -> tuple[Any, RaftplugError | None] | None:
    """What an OK or FAILED says, as (value, error); None if it says nothing that can be understood."""
    if code == FAILED:
        if call.kind == _OPEN or type(value) is not list or len(value) != 2:
            return None
        kind, message = str(value[0]), str(value[1])
        if call.kind == _PROPOSE:
            return None, TransitionFailed(kind, message)
        return None, QueryFailed(f"{kind}: {message}")
    if call.kind == _ASK:
        return value, None
    if call.kind == _OPEN:
        return (value, None) if type(value) is int and 0 < value < LIMIT else None
    try:
        return (plain.decode(value), None) if type(value) is bytes else None
    except MalformedMessage:
        return None


def _text(value: Any, otherwise: str) -> str:
    return value if isinstance(value, str) and value else otherwise
