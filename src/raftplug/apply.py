"""The applier: runs a state machine on committed entries, in the order of the log, each once.

It knows no log, no rules and no network: its owner, the driver, hands it entries and gets what became of them.  So its
work may be done in the event loop or in another thread, as long as it is done by one at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from typing import Any, Final

import msgpack

from raftplug import core as chosen_core
from raftplug import plain
from raftplug.constants import (
    FAILED,
    NEVER,
    NOOP,
    OK,
    SESSION_OPEN,
    SESSION_TRANSITION,
    TRANSITION,
    UNKNOWN,
)
from raftplug.errors import InvalidTransition, MachineFailed, MalformedMessage, TransitionFailed, WrongDirectory
from raftplug.pace import Pace
from raftplug.sessions import UNDER_WAY, Sessions, decode_open, decode_transition
from raftplug.settings import Settings
from raftplug.snapshots import PLAIN, STREAM, WITNESS, Reader
from raftplug.state_machine import Snapshot, TransitionState, abilities

_logger = logging.getLogger("raftplug")
_ERROR_CHARACTERS: Final = 1_000
_RUN_ENTRIES: Final = 1_024
_STRETCH_ENTRIES: Final = 64
_DIGEST_BYTES: Final = 16
_MACHINE_DIGEST_BYTES: Final = 64

Outcome = tuple[int, Any]
"""What became of one entry: OK, FAILED or, for a session's entry, why it was not executed; and what the machine
returned, or TransitionFailed if it raised, or for a session's entry the value of the reply."""

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
        pace: is told what the machine did, and measures it.

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

    # ---------------------------------------------------------------- entries

    def apply(self, first: int, entries: list[tuple[int, int, bytes]], until: int, *, tell: bool) -> list[Outcome]:
        """Apply the entries from index `first` on, one run of them at least, until the clock says `until`.

        Args:
            first: the index after `applied`.
            entries: kind, term and payload of each.
            until: microseconds; what is left is not touched.
            tell: whether the machine, or an observer, wants to know of each.

        Raises:
            MemoryError, OSError, MachineFailed: the replica must stop.
        """
        outcomes = self._outcomes = []
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
                self._execute(first, entries, done, end, machine, plain.decode, _failure, self._take, outcomes)
            self._execute_run()
            self.applied = first + end - 1
            if self.abilities.on_disk and self.applied > self.on_disk:
                self.machine.set_applied_index(self.applied)
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
            return self._join(transition, (session, sequence)) if known is None else _as_reply(*known)
        if kind == SESSION_OPEN:
            self._execute_run()  # It may end a session that is in the run.
            return OK, self.sessions.open(index, *decode_open(payload))
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
            return _as_reply(*(known or (UNKNOWN, b"")))
        if kind == SESSION_OPEN:
            return OK, self.sessions.open(index, *decode_open(payload))
        return _DONE

    def _join(self, encoded: bytes, once: tuple[int, int] | None) -> Outcome:
        try:
            transition = plain.decode(encoded)
        except MalformedMessage as raised:
            return self._settle(once, _failure(raised))
        if self.abilities.batches:
            self._run.append((len(self._outcomes), transition, once))
            return _UNDECIDED
        return self._settle(once, self._apply_one(transition))

    def _execute_run(self) -> None:
        run, self._run = self._run, []
        if run:
            results = self._apply_batch([transition for _, transition, _ in run])
            for (at, _, once), result in zip(run, results, strict=True):
                self._outcomes[at] = self._settle(once, result)

    def _apply_one(self, transition: Any) -> Any:
        """A deterministic exception is the transition's result; MemoryError and OSError stop the replica."""
        try:
            return self.machine.apply_transition(transition)
        except Exception as raised:
            return _failure(raised)

    def _apply_batch(self, transitions: list[Any]) -> list[Any]:
        """Batches differ from replica to replica, so what befalls one as a whole cannot be anybody's result."""
        count, name = len(transitions), type(self.machine).__name__
        try:
            results = self.machine.apply_batch(transitions)
        except (MemoryError, OSError):
            raise
        except Exception as raised:
            raise MachineFailed(
                f"group {self._group}: apply_batch of {name} raised {type(raised).__name__}: {text_of(raised)}; how "
                "much of the batch was applied nobody can tell: it must return a transition's exception as its result"
            ) from raised
        if type(results) is not list or len(results) != count:
            found = f"{len(results)} results" if type(results) is list else type(results).__name__
            raise MachineFailed(
                f"group {self._group}: apply_batch of {name} returned {found} for {count} transitions: it must return "
                "a list of as many results"
            )
        return [_failure(result) if isinstance(result, BaseException) else result for result in results]

    def _settle(self, once: tuple[int, int] | None, result: Any) -> Outcome:
        """The result of an entry that was executed; a session's is kept, so that it is never executed again."""
        failed = result if isinstance(result, TransitionFailed) else None
        if once is None:
            return FAILED if failed is not None else OK, result
        code, value = OK, b""
        if failed is None:
            try:
                value = plain.encode(result)
            except InvalidTransition as unencodable:
                failed = TransitionFailed("InvalidTransition", f"the result: {unencodable}")
        if failed is not None:
            code, value = FAILED, plain.encode([failed.kind, failed.message])
        self.sessions.record(*once, code, value)
        return _as_reply(code, value)

    # ------------------------------------------------------------------ reads

    def look(self, looks: Sequence[Look], until: int) -> list[tuple[Any, Exception | None]]:
        """Answer reads, one at least, until the clock says `until`: what each found, or what it raised."""
        found: list[tuple[Any, Exception | None]] = []
        for look in looks:
            try:
                found.append((look(self.machine), None))
            except Exception as raised:
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
        found = self.machine.applied_index()
        name = type(self.machine).__name__
        if type(found) is not int or found < 0:
            raise MachineFailed(f"group {self._group}: applied_index of {name} returned {found!r}, which is no index")
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

    def load(self, reader: Reader) -> None:
        """Replace machine and sessions by those of a snapshot.

        Raises:
            MalformedMessage: it is of another kind than the machine takes.
        """
        index, term = reader.snapshot.index, reader.snapshot.term
        if reader.kind == WITNESS:
            raise MalformedMessage("a witness's snapshot, which holds no state")
        if index <= self.on_disk:
            pass  # The machine has all of it.
        elif reader.kind == STREAM:
            if not self.abilities.streams:
                raise MalformedMessage("a snapshot of a state machine that streams, for one that does not")
            self.machine.load_snapshot(index, term, reader.stream())
        else:
            self.machine.set_snapshot(Snapshot(index, term, reader.data()))
        if self.abilities.on_disk and index > self.on_disk:
            self.machine.set_applied_index(index)
        self.sessions = reader.sessions
        self.applied = index

    # ---------------------------------------------------------------- digests

    def _take_digest(self) -> None:
        """A digest of machine and sessions; a machine that fails to give one is not asked again."""
        if self.is_ahead():
            return
        try:
            digest = self.machine.digest()
            if type(digest) is not bytes or len(digest) > _MACHINE_DIGEST_BYTES:
                raise ValueError(f"digest must return at most {_MACHINE_DIGEST_BYTES} bytes")
        except (MemoryError, OSError):
            raise
        except Exception as raised:
            self._digest_entries = 0
            self.problem = f"the state machine has no digest: {type(raised).__name__}: {text_of(raised)}"
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
        except Exception:
            _logger.exception("group %s: register_transition_state raised", self._group)
            return
        self.told.append((identity, state))


def _failure(raised: BaseException) -> TransitionFailed:
    """What a machine raised as a transition's result, unless it is none."""
    if isinstance(raised, (MemoryError, OSError)) or not isinstance(raised, Exception):
        raise raised
    return TransitionFailed(type(raised).__name__, text_of(raised))


def _as_reply(code: int, value: bytes | None) -> Outcome:
    return (code, plain.decode(value)) if code == FAILED and value is not None else (code, value)


def text_of(raised: BaseException) -> str:
    """The text of a machine's exception as it is kept and sent: encodable, and not without bound."""
    return str(raised)[:_ERROR_CHARACTERS].encode("utf-8", "replace").decode()
