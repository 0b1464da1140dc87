"""The applier: runs a state machine on committed entries, in the order of the log, each once.

It knows no log, no rules and no network: its owner, the driver, hands it entries and gets what became of them.  So its
work may be done in the event loop or in another thread, as long as it is done by one at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from hashlib import blake2b
from typing import Any, Final

import msgpack

from raftplug import core as chosen_core
from raftplug import plain
from raftplug.constants import (
    FAILED,
    HIGHEST,
    NEVER,
    NOOP,
    OK,
    SESSION_EXPIRED,
    SESSION_OPEN,
    SESSION_TRANSITION,
    TRANSITION,
    UNKNOWN,
)
from raftplug.errors import MachineFailed, MalformedMessage, RaftplugError, TransitionFailed, WrongDirectory
from raftplug.foreign import described, is_interrupt, log_raised, short, text_of, type_name
from raftplug.pace import Pace
from raftplug.results import Encoded, encoded, encoded_failure, failure, handled, is_exhausted, local, stops
from raftplug.sessions import UNDER_WAY, Sessions, decode_bounds, decode_open, decode_transition
from raftplug.settings import Settings
from raftplug.snapshots import PLAIN, STREAM, WITNESS, Reader
from raftplug.state_machine import Snapshot, TransitionState, abilities

_logger = logging.getLogger("raftplug")
_RUN_ENTRIES: Final = 1_024
_STRETCH_ENTRIES: Final = 64
_DIGEST_BYTES: Final = 16
_MACHINE_DIGEST_BYTES: Final = 64

Outcome = tuple[int, Any]
"""What became of one entry: OK, FAILED or, for a session's entry, why it was not executed; and what the machine
returned, or TransitionFailed if it raised, or for a session's entry the value of the reply."""

_OTHER_MACHINE: Final = (
    "what is stored was not changed; start this node with the state machine that made the snapshot, or correct this one"
)
_UNDECIDED: Final[Outcome] = (UNKNOWN, None)  # It is in the run.
_DONE: Final[Outcome] = (OK, None)

Look = Callable[[Any], Any]
"""A read: looks at the state machine, changes nothing, and returns what it found."""


class Applier:
    """A state machine with its table of sessions, as of the entry `applied`.

    Args:
        group: the group's name, for messages to people.
        machine: the state machine.
        settings: the limits.
        clock: monotonic time in µs.
        noop_transition: what the machine is given for a leader's no-op; None gives it nothing.
        core: the namespace of one of the two cores; None is the one that was chosen for this process.
        pace: measures what the machine does.

    Attributes:
        applied: index of the last entry that the state holds.
        digests: (index, digest) of the state there, until somebody takes them out.
        told: (transition's id, state) that the machine was told, likewise.
        problem: what is wrong with the machine, for `status`; None while nothing is known.
    """

    def __init__(
        self,
        *,
        group: str,
        machine: Any,
        settings: Settings,
        clock: Callable[[], int],
        noop_transition: Any = None,
        core: Any = None,
        pace: Pace | None = None,
    ) -> None:
        self.machine = machine
        self.abilities = abilities(machine)
        self.sessions = Sessions()
        self.applied = 0
        self.digests: list[tuple[int, bytes]] = []
        self.told: list[tuple[Any, TransitionState]] = []
        self.problem: str | None = None
        self.on_disk = 0
        """Index of the last entry that a machine with a disk of its own had at the start: it is given none up to it."""
        self._group = group
        self._clock = clock
        self._pace = pace or Pace(clock, NEVER)
        self._execute = (core or chosen_core).execute
        self._noop_transition = noop_transition
        self._budget_us = settings.apply_budget_us
        self._digest_entries = settings.digest_entries if self.abilities.has_digest else 0
        # Entries between two looks at the clock, at once if the machine takes batches: as many as a turn has time for.
        self._size, self._most = (16, _RUN_ENTRIES) if self.abilities.batches else (1, _STRETCH_ENTRIES)
        self._outcomes: list[Outcome] = []  # Of the entries that are being applied.
        self._run: list[tuple[int, Any, tuple[int, int] | None]] = []  # Where the outcome goes, transition, session's.
        self._outside: BaseException | None = None  # What is handled around the job: the machine did not raise it.
        self._wanted = True  # Whether anybody waits for the results of this job.

    # ---------------------------------------------------------------- entries

    def apply(
        self, first: int, entries: list[tuple[int, int, bytes]], until: int, *, tell: bool, wanted: bool = True
    ) -> list[Outcome]:
        """Apply the entries from index `first` on, one run of them at least, until the clock says `until`.

        Args:
            first: the index after `applied`.
            entries: kind, term and payload of each.
            until: microseconds; what is left is not touched.
            tell: whether the machine, or an observer, wants to know of each.
            wanted: whether a caller in this process waits for the result of an entry that belongs to no session.

        Raises:
            BaseException: the replica must stop, see `results`; MachineFailed where `apply_batch` failed.
        """
        outcomes = self._outcomes = []
        outside = self._outside = handled()
        self._wanted = wanted
        began, done = self._clock(), 0
        while done < len(entries) and (not done or began < until):
            end = min(done + self._size, len(entries))
            if self._digest_entries:  # Taken at the same indexes everywhere: no run reaches beyond one.
                end = min(end, done + self._digest_entries - self.applied % self._digest_entries)
            if self.abilities.batches or first + done <= self.on_disk:
                for kind, _, payload in entries[done:end]:
                    outcomes.append(self._take(first + len(outcomes), kind, payload))
            else:  # The shortest way, for what there is most of.
                machine = self.machine.apply_transition
                kept = partial(local, outside=outside) if wanted else _unwanted
                failed = partial(failure, outside=outside)
                self._execute(first, entries, done, end, machine, plain.decode, kept, failed, self._take, outcomes)
            self._execute_run()
            self.applied = first + end - 1
            if self.abilities.on_disk and self.applied > self.on_disk:
                self._set_applied_index(self.applied)
            if tell:
                for index, (kind, term, payload) in enumerate(entries[done:end], first + done):
                    self.tell(index, kind, term, payload, TransitionState.Applied)
            if self._digest_entries and self.applied % self._digest_entries == 0:
                self._take_digest()
            now = self._pace.did(end - done)
            took_us, began, done = now - began, now, end
            if took_us > self._budget_us:
                self._size = max(1, self._size // 2)
            elif took_us < self._budget_us // 4:
                self._size = min(self._most, 2 * self._size)
        self._outcomes = []
        return outcomes

    def _take(self, index: int, kind: int, payload: bytes) -> Outcome:
        """Decide on an entry: what the machine must execute may join the run, all else is done here.

        One that cannot be decoded fails, on every replica; no caller waits for it.
        """
        try:
            return self._take_decoded(index, kind, payload)
        except MalformedMessage as error:
            return FAILED, ["MalformedEntry", str(error)]

    def _take_decoded(self, index: int, kind: int, payload: bytes) -> Outcome:
        if index <= self.on_disk:
            return self._take_again(index, kind, payload)
        if kind == TRANSITION:
            return self._join(payload, None)
        if kind == SESSION_TRANSITION:
            time_us, session, sequence, below, transition = decode_transition(payload)
            known = self.sessions.admit(session, sequence, below, time_us)
            if known is UNDER_WAY:  # A repetition within the run.
                self._execute_run()
                known = self.sessions.admit(session, sequence, below, time_us)
            return self._join(transition, (session, sequence)) if known is None else self._known(session, known)
        if kind == SESSION_OPEN:
            self._execute_run()  # It may end a session that is in the run.
            return OK, self.sessions.open(index, *decode_open(payload), decode_bounds(payload))
        if kind == NOOP and self._noop_transition is not None:
            return self._join(plain.encode(self._noop_transition), None)
        return _DONE

    def _take_again(self, index: int, kind: int, payload: bytes) -> Outcome:
        """An entry that the machine has on its disk: of what came of it only that it was executed is known."""
        if kind == SESSION_TRANSITION:
            time_us, session, sequence, below, _ = decode_transition(payload)
            known = self.sessions.admit(session, sequence, below, time_us)
            if known is None:
                self.sessions.record(session, sequence, UNKNOWN, b"")
            return self._known(session, known or (UNKNOWN, b""))
        if kind == SESSION_OPEN:
            return OK, self.sessions.open(index, *decode_open(payload), decode_bounds(payload))
        return _DONE

    def _known(self, session: int, known: tuple[int, bytes | None]) -> Outcome:
        """The answer of the table to a transition that must not be executed."""
        return (known[0], self.sessions.why_gone(session)) if known[0] == SESSION_EXPIRED else _as_reply(*known)

    def _join(self, encoded: bytes, once: tuple[int, int] | None) -> Outcome:
        try:
            transition = plain.decode(encoded)
        except MalformedMessage as raised:
            self._execute_run()  # Results are recorded in the order of the log.
            return self._settle_failed(once, failure(raised, self._outside))
        if self.abilities.batches:
            self._run.append((len(self._outcomes), transition, once))
            return _UNDECIDED
        try:
            value = self.machine.apply_transition(transition)
        except Exception as raised:
            return self._settle_failed(once, failure(raised, self._outside))
        return self._settle(once, value)

    def _execute_run(self) -> None:
        run, self._run = self._run, []
        if run:
            results = self._apply_batch([transition for _, transition, _ in run])
            for (at, _, once), result in zip(run, results, strict=True):
                if issubclass(type(result), BaseException):
                    self._outcomes[at] = self._settle_failed(once, failure(result, self._outside))
                else:
                    self._outcomes[at] = self._settle(once, result)

    def _apply_batch(self, transitions: list[Any]) -> list[Any]:
        """Batches differ from replica to replica, so what befalls one as a whole cannot be anybody's result."""
        count, name = len(transitions), type_name(self.machine)
        try:
            results = self.machine.apply_batch(transitions)
        except Exception as raised:
            if stops(raised, self._outside):
                raise
            raise MachineFailed(
                f"group {self._group}: apply_batch of {name} raised {type_name(raised)}: {text_of(raised)}; how "
                "much of the batch was applied nobody can tell: it must return a transition's exception as its result"
            ) from raised
        if type(results) is not list or len(results) != count:
            found = f"{len(results)} results" if type(results) is list else type_name(results)
            raise MachineFailed(
                f"group {self._group}: apply_batch of {name} returned {found} for {count} transitions: it must return "
                "a list of as many results"
            )
        return results

    def _settle(self, once: tuple[int, int] | None, value: Any) -> Outcome:
        """An entry was executed and gave `value`."""
        if once is None:
            return local(value, self._outside) if self._wanted else _DONE
        return self._keep(once, encoded(value, self._outside))

    def _settle_failed(self, once: tuple[int, int] | None, failed: TransitionFailed) -> Outcome:
        """An entry was executed, and the machine raised."""
        return (FAILED, failed) if once is None else self._keep(once, encoded_failure(failed))

    def _keep(self, once: tuple[int, int], result: Encoded) -> Outcome:
        """The result of a session's entry is kept, so that it is never executed again."""
        self.sessions.record(*once, *result)
        return _as_reply(*result)

    # ------------------------------------------------------------------ reads

    def look(self, looks: Sequence[Look], until: int) -> list[tuple[Any, BaseException | None]]:
        """Answer reads, one at least, until the clock says `until`: what each found, or what it raised."""
        found: list[tuple[Any, BaseException | None]] = []
        for look in looks:
            try:
                found.append((look(self.machine), None))
            except BaseException as raised:  # A read changes nothing: whatever it raises is its answer.
                if is_interrupt(raised):
                    raise
                found.append((None, raised))
            if self._pace.did() >= until:
                break
        return found

    # -------------------------------------------------------------- snapshots

    def start(self, last: int) -> None:
        """Ask a machine with a disk of its own how far it is.  `last` is the end of the log.

        Raises:
            WrongDirectory: it is ahead of the log: one of the two is of another node, or older.
            MachineFailed: it says no index.
        """
        if not self.abilities.on_disk:
            return
        name = type_name(self.machine)
        with self._guarded("applied_index"):
            found = self.machine.applied_index()
        if type(found) is not int or found < 0:
            raise MachineFailed(
                f"group {self._group}: applied_index of {name} returned {short(found)}, which is no index"
            )
        if found > last:
            raise WrongDirectory(
                f"group {self._group}: {name} has applied entry {found} already, and the log here ends at {last}: "
                "one of the two is older than the other, or another node's"
            )
        self.on_disk = found

    def is_ahead(self) -> bool:
        """Whether the machine has, on its disk, entries that were not taken again yet: its state is not that here."""
        return self.applied < self.on_disk

    def capture(self, index: int, term: int) -> tuple[int, Iterator[bytes]]:
        """The state as it is now, for a snapshot: of what kind it is, and its bytes, to be made later.

        Raises:
            Exception: whatever the machine raises.
        """
        if self.abilities.streams:
            return STREAM, iter(self.machine.stream_snapshot(index, term))
        snapshot = self.machine.create_snapshot(index, term)
        if (snapshot.last_included_index, snapshot.last_included_term) != (index, term):
            raise ValueError("create_snapshot must keep the index and the term that it was given")
        return PLAIN, plain.encode_in_parts(snapshot.data)

    def initial_snapshot(self) -> tuple[int, int, bytes] | None:
        """Index, term and encoded data of the snapshot that the machine keeps by itself, if it has one, and takes it.

        Raises:
            MachineFailed: it raised, or what it returned is none.
        """
        if not (self.abilities.initial_snapshot and self.abilities.takes_plain):
            return None
        with self._guarded("get_snapshot"):
            own = self.machine.get_snapshot()
            if own is None:
                return None
            index, term = own.last_included_index, own.last_included_term
            if type(index) is not int or type(term) is not int or not 0 < index <= HIGHEST or not 0 <= term <= HIGHEST:
                raise ValueError(f"index {short(index)} and term {short(term)} are those of no snapshot")
            data = plain.encode(own.data, plain.SNAPSHOT_DEPTH)
        with self._guarded("set_snapshot"):
            self.machine.set_snapshot(own)
        self.applied = index
        return index, term, data

    def load(self, reader: Reader) -> None:
        """Replace machine and sessions by those of a snapshot.

        Raises:
            MachineFailed: the machine raised, or takes no such snapshot.
            MalformedMessage: it is damaged, or holds no state.
        """
        index, term = reader.snapshot.index, reader.snapshot.term
        if reader.kind == WITNESS:
            raise MalformedMessage("a witness's snapshot, which holds no state")
        if index <= self.on_disk:
            pass  # The machine has all of it.
        elif reader.kind == STREAM:
            if not self.abilities.streams:
                raise MalformedMessage("a snapshot of a state machine that streams, for one that does not")
            damage: list[RaftplugError] = []
            try:
                with self._guarded("load_snapshot", index):
                    self.machine.load_snapshot(index, term, _noticing(reader.stream(), damage))
            except MachineFailed:
                if damage:  # It is what the machine was given, and no fault of its own.
                    raise damage[0] from None
                raise
        elif self.abilities.takes_plain:
            snapshot = Snapshot(index, term, reader.data())
            with self._guarded("set_snapshot", index):
                self.machine.set_snapshot(snapshot)
        else:
            name = type_name(self.machine)
            text = f"{name} has no set_snapshot, and the snapshot at {index} needs it: {_OTHER_MACHINE}"
            raise MachineFailed(f"group {self._group}: {text}")
        if self.abilities.on_disk and index > self.on_disk:
            self._set_applied_index(index)
        self.sessions = reader.sessions
        self.applied = index

    def _set_applied_index(self, index: int) -> None:
        with self._guarded("set_applied_index"):
            self.machine.set_applied_index(index)

    @contextmanager
    def _guarded(self, method: str, at: int | None = None) -> Iterator[None]:
        """Whatever a method of the machine raises here stops the replica: MachineFailed says which, and what to do.

        Args:
            method: its name.
            at: index of the snapshot that it was given, if it was given one.
        """
        try:
            yield
        except BaseException as raised:
            if is_interrupt(raised):
                raise
            what = f"{method} of {type_name(self.machine)} raised {described(raised)}"
            advice = "correct the machine, and start this node again"
            if at is not None:
                what, advice = f"{what}, for the snapshot at {at}", _OTHER_MACHINE
            raise MachineFailed(f"group {self._group}: {what}: {advice}") from raised

    # ---------------------------------------------------------------- digests

    def _take_digest(self) -> None:
        """A digest of machine and sessions; a machine that fails to give one is not asked again."""
        if self.is_ahead():
            return
        try:
            digest = self.machine.digest()
            if type(digest) is not bytes or len(digest) > _MACHINE_DIGEST_BYTES:
                raise ValueError(f"digest must return at most {_MACHINE_DIGEST_BYTES} bytes")
        except Exception as raised:
            if is_exhausted(raised):
                raise
            self._digest_entries = 0
            self.problem = f"the state machine has no digest: {type_name(raised)}: {text_of(raised)}"
            _logger.error("group %s: %s", self._group, self.problem)
            return
        # Of what a machine has on its disk, not every replica knows the results: see `_take_again`.
        state = msgpack.packb([digest, self.sessions.snapshot(with_results=not self.abilities.on_disk)])
        self.digests.append((self.applied, blake2b(state, digest_size=_DIGEST_BYTES).digest()))

    # -------------------------------------------------------------- observers

    def tell(self, index: int, kind: int, term: int, payload: bytes, state: TransitionState) -> None:
        """Tell the machine what became of the transition in an entry, if there is one."""
        if kind == NOOP and self._noop_transition is not None:
            transition = self._noop_transition
        elif kind in (TRANSITION, SESSION_TRANSITION):
            try:
                transition = plain.decode(payload if kind == TRANSITION else decode_transition(payload)[4])
            except MalformedMessage:
                return
        else:
            return
        self.tell_of(transition, (term, index), state)

    def tell_all(self, notes: Sequence[tuple[int, int, int, bytes, TransitionState]]) -> None:
        """Tell it several things, in their order."""
        for note in notes:
            self.tell(*note)

    def tell_of(self, transition: Any, default: Any, state: TransitionState) -> None:
        """Likewise, of a transition whose id is `default` unless the machine says otherwise.

        A machine that raises here is logged, and hurts nobody.
        """
        try:
            identity = self.machine.get_id(transition) if self.abilities.has_ids else None
            identity = default if identity is None else identity
            if self.abilities.observes_states:
                self.machine.register_transition_state(identity, state)
        except BaseException as raised:
            if is_interrupt(raised):
                raise
            log_raised(_logger, raised, "group %s: register_transition_state, or get_id, raised", self._group)
            return
        self.told.append((identity, state))


def _noticing(pieces: Iterator[bytes], damage: list[RaftplugError]) -> Iterator[bytes]:
    """Pass on pieces, and notice why there are no more of them: the machine may raise something else for it."""
    try:
        yield from pieces
    except RaftplugError as error:
        damage.append(error)
        raise


def _unwanted(value: Any) -> Outcome:
    """No caller waits for the result, and none asks for it later."""
    return _DONE


def _as_reply(code: int, value: bytes | None) -> Outcome:
    return (code, plain.decode(value)) if code == FAILED and value is not None else (code, value)
