"""What became of each transition, and whether all who proposed it were told the truth.

Each transition carries an id of its own, which the machines report when they execute it.  At the end every answer is
compared with that: a result is the one that the machine gave; TransitionFailed says what it raised; OutcomeUnknown
claims nothing; every other error claims that the transition was not executed, and never will be.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raftplug import plain
from raftplug.core import Future
from raftplug.errors import OutcomeUnknown, RaftplugError, TransitionFailed
from raftplug.frames import Id
from raftplug.sessions import NAMED_SESSION_TIMEOUT_US
from raftplug.testing.simulation.machines import is_wrong
from raftplug.testing.simulation.part import Part
from raftplug.testing.simulation.report import Violation

if TYPE_CHECKING:
    from raftplug.testing.simulation.world import Simulation


@dataclass(slots=True, eq=False)
class _Call:
    """One proposal of a transition.

    Args:
        who: proposed it.
        id: of the transition.
        future: how it ended.
        known: whether, when it ended, such a call had been told that it was executed: its result need not be kept then.
    """

    who: Id
    id: int
    future: Future
    known: bool = False


class Ledger(Part):
    """Names transitions, and keeps account of them."""

    def __init__(self, world: Simulation) -> None:
        super().__init__(world)
        self._names = 0
        self._histories: dict[int, int] = {0: 0}  # Of what was executed, by its number.
        self._outcomes: dict[int, Any] = {}  # Of each transition that was executed, by its id; in that order.
        self._in_sessions: dict[int, bool] = {}  # Those in a session with a name: whether a caller got an outcome.
        self._again: set[int] = set()  # Those of them that were proposed by several calls.
        self._repeated: set[int] = set()  # Those of them that were executed again once their session had expired.
        self._calls: list[_Call] = []

    def named(self, transition: dict[str, Any]) -> dict[str, Any]:
        """The same transition, with an id that no other one has."""
        self._names = number = self._names + 1
        return {**transition, "id": number}

    def encode(self, who: Id, transition: dict[str, Any], future: Future) -> bytes:
        """A transition that is proposed once, for `who`, with this future: named and encoded."""
        named = self.named(transition)
        self.propose(who, named, future)
        return plain.encode(named)

    def propose(self, who: Id, transition: dict[str, Any], future: Future, *, again: bool | None = None) -> None:
        """A caller proposes a transition that is named: see `_Call`.  In a session with a name, `again` is not None."""
        id, heard = transition["id"], self._in_sessions
        call = _Call(who, id, future)
        self._calls.append(call)
        if again is None:
            return
        heard.setdefault(id, False)
        if again:
            self._again.add(id)

        def ended(_: Future) -> None:
            call.known = heard[id]
            heard[id] = heard[id] or isinstance(future.exception(0), (type(None), TransitionFailed))

        future.add_done_callback(ended)

    # -- what machines tell ------------------------------------------------------------------------------------------

    def loaded(self, count: int, history: int) -> None:
        """A machine holds the state after so many transitions; `history` is their check."""
        if self._histories.setdefault(count, history) != history:
            # The machine must not raise this: to the driver it would be the transition's result.
            self.world.raise_soon(Violation(f"state machine safety: transition {count} differs between machines"))

    def executed(self, count: int, history: int, transition: Any, outcome: Any) -> None:
        """A machine has executed transition number `count`; only the first that does is news."""
        known = self._histories.get(count)
        if known is not None:
            if known != history:
                self.loaded(count, history)
            return
        self._histories[count] = history
        id = transition["id"]
        if id in self._outcomes and not self._may_repeat(id):
            self.world.raise_soon(Violation(f"exactly once: transition {transition} was executed twice"))
        self._outcomes[id] = outcome

    def _may_repeat(self, id: int) -> bool:
        """Whether a transition was executed in a session with a name that may have been forgotten since."""
        if id in self._in_sessions and self.world.invariants.leapt_us + self.world.now > NAMED_SESSION_TIMEOUT_US:
            self._repeated.add(id)
        return id in self._repeated

    # -- what callers were told --------------------------------------------------------------------------------------

    def check(self) -> None:
        """Compare what everybody was told with what happened."""
        for call in self._calls:
            if call.future.done() and call.id not in self._repeated:
                self._check_answer(call)

    def _check_answer(self, call: _Call) -> None:
        error, told = call.future.exception(0), f"outcome: {call.who} was told that transition {call.id}"
        if isinstance(error, OutcomeUnknown):
            return
        if error is not None and not isinstance(error, RaftplugError):
            raise Violation(f"{told} ended with {type(error).__name__}: {error}")
        executed = call.id in self._outcomes
        outcome = self._outcomes.get(call.id)
        if error is None:
            result = call.future.result(0)
            if not executed:
                raise Violation(f"{told} was executed, and it was not")
            if result != outcome and not is_wrong(result) and not (call.known and result is None):
                raise Violation(f"{told} gave {result!r}, and it gave {outcome!r}")
        elif isinstance(error, TransitionFailed):
            if not executed:
                raise Violation(f"{told} failed, and it was not executed")
            if (error.kind, error.message) != (type(outcome).__name__, str(outcome)):
                raise Violation(f"{told} failed with {error}, and it gave {outcome!r}")
        elif executed and call.id not in self._again:
            raise Violation(f"{told} was certainly not executed ({type(error).__name__}: {error}), and it was")
