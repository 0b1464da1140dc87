"""A client whose session has a name: it comes back under that name, and asks again for what it has no answer to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raftplug import plain
from raftplug.core import Future
from raftplug.errors import SessionExpired, TransitionFailed
from raftplug.sessions import NAMED_SESSION_TIMEOUT_US
from raftplug.testing.simulation.client import Client
from raftplug.testing.simulation.plan import MS
from raftplug.testing.simulation.report import Violation

if TYPE_CHECKING:
    from raftplug.testing.simulation.world import Simulation


class NamedClient(Client):
    """A client outside the group that remembers, over restarts, what was asked for in the session.

    A sequence is one transition, however often it is asked for; also what was answered is asked for again.  Once the
    session has expired, another name follows.
    """

    def __init__(self, world: Simulation, number: int) -> None:
        self._generation = 0
        self._transitions: dict[int, dict[str, Any]] = {}  # By sequence.
        self._open: set[int] = set()  # Those that have no answer yet.
        super().__init__(world, number)

    def session(self) -> str:
        return f"session {self._number}.{self._generation}"

    def crash(self) -> None:
        super().crash()
        for sequence in sorted(self._open):
            self._ask(sequence)

    def operation(self, chance: Any) -> dict[str, Any]:
        """Any operation that changes something, on a key of its own: the order of the others says nothing of it."""
        value = str(chance.randrange(1_000_000))
        return {"op": chance.choice(("put", "delete", "add", "fail")), "key": f"named {value[:1]}", "value": int(value)}

    def propose(self, operation: dict[str, Any]) -> Future:
        chance = self.world.random
        if self._transitions and chance.random() < 0.3:
            return self._ask(chance.choice(sorted(self._open) or [*self._transitions]))
        if self._transitions and chance.random() < 0.1:
            return self._ask(chance.choice([*self._transitions]))
        sequence = len(self._transitions) + 1
        self._transitions[sequence] = self.world.ledger.named(operation)
        self._open.add(sequence)
        return self._ask(sequence, again=False)

    def _ask(self, sequence: int, again: bool = True) -> Future:
        world, future, generation = self.world, Future(), self._generation
        transition = self._transitions[sequence]
        self._pending += 1
        life = self._lives

        def ended(_: Future) -> None:
            error = future.exception(0)
            self._pending -= life == self._lives
            if generation == self._generation and isinstance(error, (type(None), TransitionFailed)):
                self._open.discard(sequence)
            elif generation == self._generation and isinstance(error, SessionExpired):
                self._go_on_under_another_name()
            world.note(self.id, "sequence", sequence, type(error).__name__ if error else "ok")

        world.ledger.propose(self.id, transition, future, again=again)
        future.add_done_callback(ended)
        deadline = world.now + world.random.choice((100, 1_000, 5_000, 5_000)) * MS
        self.deadlines.add(f"sequence {sequence}", future, deadline)
        self.loop.propose(plain.encode(transition), future, deadline, sequence)
        world.invariants.check_calls(self.id, self.loop.requester)
        self.turn()
        return future

    def _go_on_under_another_name(self) -> None:
        if self.world.invariants.leapt_us + self.world.now < NAMED_SESSION_TIMEOUT_US:
            self.world.raise_soon(Violation(f"sessions: {self.session()} has ended before its time"))
        self._generation += 1
        self._transitions, self._open = {}, set()
        self.world.after(0, self.crash)
