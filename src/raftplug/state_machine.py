"""What a plugin author subclasses: a state machine, the seed's trait of that name.

A machine is handed the same transitions in the same order on every replica, and must end in the same state: no clock,
no random numbers, no files or sockets, no iteration over a set, nothing from outside the transition.  Its methods run
one at a time, never two at once, on one replica, though not always in the same thread: a machine that is slow gets a
thread of its own.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from inspect import isasyncgenfunction, iscoroutinefunction, isgeneratorfunction
from typing import Any, ClassVar

from raftplug.errors import InvalidArgument
from raftplug.foreign import described, short, short_name, type_name


class TransitionAbandonedReason(enum.Enum):
    """Why a transition was abandoned."""

    NotLeader = "NotLeader"
    """A replica that is not the leader was handed it."""
    ConflictWithLeader = "ConflictWithLeader"
    """A leader had accepted it, and a later leader overwrote it before it was committed."""

    def __repr__(self) -> str:
        return f"TransitionAbandonedReason.{self.name}"


@dataclass(frozen=True, slots=True, repr=False)
class TransitionState:
    """How far a transition has come: `Queued`, `Committed`, `Applied` or `Abandoned(reason)`.

    Compare with `==`, or match::

        match state:
            case TransitionState.Applied: ...
            case TransitionState.Abandoned(reason): ...
    """

    name: str

    Queued: ClassVar[TransitionState]
    """The leader has appended it to its log."""
    Committed: ClassVar[TransitionState]
    """A quorum holds it; told on the leader only."""
    Applied: ClassVar[TransitionState]
    """The state machine has applied it; told on every replica, in index order."""
    Abandoned: ClassVar[type[AbandonedState]]
    """It will not be applied at this index; `reason` says why."""

    def __repr__(self) -> str:
        return f"TransitionState.{self.name}"


@dataclass(frozen=True, slots=True, repr=False, init=False)
class AbandonedState(TransitionState):
    """`TransitionState.Abandoned(reason)`."""

    reason: TransitionAbandonedReason
    __match_args__ = ("reason",)

    def __init__(self, reason: TransitionAbandonedReason) -> None:
        if not isinstance(reason, TransitionAbandonedReason):
            raise InvalidArgument(f"a transition is abandoned for a TransitionAbandonedReason, not {short(reason)}")
        object.__setattr__(self, "name", "Abandoned")
        object.__setattr__(self, "reason", reason)

    def __repr__(self) -> str:
        return f"TransitionState.Abandoned({self.reason.name})"


TransitionState.Queued = TransitionState("Queued")
TransitionState.Committed = TransitionState("Committed")
TransitionState.Applied = TransitionState("Applied")
TransitionState.Abandoned = AbandonedState


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state after the entry at `last_included_index`, which stands for every entry up to it.

    Attributes:
        last_included_index: index of the last entry that `data` covers.
        last_included_term: its term.
        data: the state as plain data (None, bool, int, float, str, bytes, list, dict).
    """

    last_included_index: int
    last_included_term: int
    data: Any


class NotOverridden(InvalidArgument, NotImplementedError):
    """A state machine was asked for something that its author did not write."""


class StateMachine(ABC):
    """A deterministic state machine.  Only `apply_transition` must be written; `abilities` tells what else was.

    An object of any class with these methods will do; a method that is missing is one that was not overridden.
    """

    @abstractmethod
    def apply_transition(self, transition: Any) -> Any:
        """Apply `transition` and return its result; both are plain data.

        An exception is the transition's result, the same on every replica, so raise it before anything is changed, and
        for no reason but the transition and the state.  MemoryError, RecursionError, an OSError with an errno, and what
        is no Exception are no results: they stop the replica.  docs/plugins.md has the whole table.
        """

    def apply_batch(self, transitions: list[Any]) -> list[Any]:
        """Apply `transitions` in their order and return their results, one each: for machines that gain by it.

        It is asked in place of `apply_transition`, with what is committed when it is asked.  So how transitions are
        cut into batches differs from replica to replica, and must not matter: the state and the results must be those
        of applying them one by one.

        A transition's exception is its result: put the exception itself into the list, and go on with the next.
        Whatever `apply_batch` raises stops the replica, since nobody can tell how much of the batch was applied; so
        does anything but a list of as many results, and an exception in it that is no result.
        """
        raise NotOverridden(f"{type_name(self)} applies transitions one by one: write apply_batch")

    def digest(self) -> bytes:
        """Return up to 64 bytes that are equal where the state is equal, and hardly ever equal where it is not.

        It is asked every `Settings.digest_entries` entries, at the same indexes on every replica, and the answers are
        compared: a replica that has diverged is named and serves nothing any more.  The best ones are kept up to date
        as the state changes, and cost nothing when they are asked for.
        """
        raise NotOverridden(f"{type_name(self)} has no digest: write digest")

    def register_transition_state(self, transition_id: Any, state: TransitionState) -> None:  # noqa: B027
        """Be told how far a transition has come on this replica.  Must return soon.

        Args:
            transition_id: what `get_id` says, else the pair (term, index) that `propose` gave it.
            state: see `TransitionState` for what is told where.
        """

    def get_pending_transitions(self) -> list[Any]:
        """Return the transitions to propose, each of them once, ever.

        `Replica` asks when it is woken up.  A `Node` never asks: propose with `Node.propose` there.
        """
        return []

    def get_snapshot(self) -> Snapshot | None:
        """Return the snapshot to start from, or None.  Asked once, and only if storage is empty.

        It is where the group's history begins, so the machines of all first members must bring the same one along.
        """
        return None

    def create_snapshot(self, last_included_index: int, last_included_term: int) -> Snapshot:
        """Return the state as it is now, with this index and term.  Later transitions must not change what is returned.

        Without it and `set_snapshot` the log is never compacted, and a replica that is far behind gets every entry.

        Raises:
            NotOverridden: the machine makes no snapshots.
        """
        raise NotOverridden(f"{type_name(self)} makes no snapshots: write create_snapshot and set_snapshot")

    def set_snapshot(self, snapshot: Snapshot) -> None:
        """Replace the whole state by the one in `snapshot.data`.

        Raises:
            NotOverridden: the machine takes no snapshots.
        """
        raise NotOverridden(f"{type_name(self)} takes no snapshots: write create_snapshot and set_snapshot")

    def stream_snapshot(self, last_included_index: int, last_included_term: int) -> Iterator[bytes]:
        """Return the state as it is now, as bytes in parts of any size: for machines whose state is large.

        The call itself captures the state, and must be quick: transitions are applied while the parts are asked for, a
        few at a time, and must not change what they say.  A generator function captures nothing when it is called:
        capture first, and return a generator.  It is asked in place of `create_snapshot`; `load_snapshot` goes with it.

        Raises:
            NotOverridden: the machine does not stream.
        """
        raise NotOverridden(f"{type_name(self)} does not stream: write stream_snapshot and load_snapshot")

    def load_snapshot(self, last_included_index: int, last_included_term: int, pieces: Iterator[bytes]) -> None:
        """Replace the whole state by the one whose bytes `stream_snapshot` gave, here or elsewhere, cut anew.

        Take them one after another: they need not all be in memory.  A machine that streams and has `set_snapshot` too
        is given by it what was stored before it did.

        Raises:
            NotOverridden: the machine does not stream.
        """
        raise NotOverridden(f"{type_name(self)} does not stream: write stream_snapshot and load_snapshot")

    def applied_index(self) -> int:
        """Return the index that `set_applied_index` was last given, as far as that is durable; 0 in the beginning.

        For machines that keep their state on a disk of their own, such as a database: they are given only what follows,
        and a stored snapshot at or below this index is not loaded again.  Asked once, at the start.  Snapshots are
        made all the same, for replicas that need one.
        """
        raise NotOverridden(f"{type_name(self)} keeps no index: write applied_index and set_applied_index")

    def set_applied_index(self, index: int) -> None:
        """Be told that all transitions up to `index` have been applied, or that a snapshot there has been loaded.

        Keep the number where the state is, in one transaction with it: whatever was changed since the last call becomes
        durable together with `index`, now or later, or not at all.  It is called often, so a machine may wait for more
        before it commits; raftplug keeps what it may have to repeat.
        """
        raise NotOverridden(f"{type_name(self)} keeps no index: write applied_index and set_applied_index")

    def get_id(self, transition: Any) -> Any:
        """Return the id of `transition`; None means the one that `propose` gave it, the pair (term, index)."""
        return None

    def query(self, request: Any) -> Any:
        """Answer a read without changing anything; request and answer are plain data.

        Raises:
            NotOverridden: the machine answers no queries.
        """
        raise NotOverridden(f"{type_name(self)} answers no queries: write query, or read with a function")


@dataclass(frozen=True, slots=True)
class Abilities:
    """What the author of a state machine has written: call a method only where its field is True."""

    snapshots: bool
    """create_snapshot and set_snapshot, both; or stream_snapshot and load_snapshot."""
    initial_snapshot: bool
    """get_snapshot."""
    observes_states: bool
    """register_transition_state."""
    has_pending: bool
    """get_pending_transitions."""
    has_ids: bool
    """get_id."""
    has_query: bool
    """query."""
    batches: bool = False
    """apply_batch."""
    has_digest: bool = False
    """digest."""
    streams: bool = False
    """stream_snapshot and load_snapshot, both."""
    takes_plain: bool = field(default=False, compare=False)
    """set_snapshot, with or without create_snapshot."""
    on_disk: bool = False
    """applied_index and set_applied_index, both."""


def abilities(machine: object) -> Abilities:
    """Find out what `machine` can do, by its methods: it need not be a subclass of StateMachine.

    Raises:
        InvalidArgument: it has no method apply_transition, so it is no state machine; or a method of it is a coroutine
            function or a generator function, which does nothing when it is called.
    """
    if isinstance(machine, type):
        name = short_name(machine)
        raise InvalidArgument(f"{name} is a class: give a state machine, {name}()")
    if not _has(machine, "apply_transition"):
        raise InvalidArgument(f"{type_name(machine)} is no state machine: it has no method apply_transition")
    _check_methods(machine)
    streams = _has(machine, "stream_snapshot") and _has(machine, "load_snapshot")
    return Abilities(
        snapshots=streams or (_has(machine, "create_snapshot") and _has(machine, "set_snapshot")),
        initial_snapshot=_has(machine, "get_snapshot"),
        observes_states=_has(machine, "register_transition_state"),
        has_pending=_has(machine, "get_pending_transitions"),
        has_ids=_has(machine, "get_id"),
        has_query=_has(machine, "query"),
        batches=_has(machine, "apply_batch"),
        has_digest=_has(machine, "digest"),
        streams=streams,
        takes_plain=_has(machine, "set_snapshot"),
        on_disk=_has(machine, "applied_index") and _has(machine, "set_applied_index"),
    )


def _check_methods(machine: object) -> None:
    name = type_name(machine)
    for each in _METHODS:
        method = _method(machine, each)
        found = [method, getattr(type(method), "__call__", None)]  # noqa: B004  (It is looked at.)
        if any(iscoroutinefunction(one) or isasyncgenfunction(one) for one in found):
            raise InvalidArgument(f"{name}.{each} is async: write a plain method, it is called in no event loop")
        if each != "get_pending_transitions" and any(isgeneratorfunction(one) for one in found):
            raise InvalidArgument(
                f"{name}.{each} is a generator function, which does nothing when it is called: no yield in it"
                + (", return an iterator" if each == "stream_snapshot" else "")
            )


def _method(machine: object, name: str) -> object:
    try:
        return getattr(machine, name, None)
    except Exception as error:
        raise InvalidArgument(f"{name} of {type_name(machine)} cannot be looked at: {described(error)}") from error


def _has(machine: object, name: str) -> bool:
    method = _method(machine, name)
    return callable(method) and getattr(method, "__func__", method) is not getattr(StateMachine, name)


_METHODS = tuple(name for name, value in vars(StateMachine).items() if callable(value) and not name.startswith("_"))
