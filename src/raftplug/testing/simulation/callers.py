"""What a node's own process proposes: it needs no session where its node leads, and its node forwards it elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raftplug.core import Future
from raftplug.errors import OutcomeUnknown
from raftplug.testing.simulation.part import Part
from raftplug.testing.simulation.plan import MS
from raftplug.testing.simulation.report import Recorded

if TYPE_CHECKING:
    from raftplug.testing.simulation.process import Process


class Callers(Part):
    """Proposes on nodes, as their own processes would."""

    def next(self) -> None:
        """Propose something on some node now and then."""
        if self.world.quiet:
            return
        self.world.after(self.random.randint(1, 120) * MS * self.plan.pace, self.next)
        process = self.world.some_node()
        if process is not None and self.world.now >= max(self.world.silent_until, process.paused_until):
            self.propose(process, self.operation())

    def operation(self) -> dict[str, Any]:
        """What nothing else looks at; now and then it fails."""
        value = self.random.randrange(1_000_000)
        return {"op": "fail" if self.random.random() < 0.2 else "put", "key": "own", "value": f"{value};"}

    def propose(self, process: Process, operation: dict[str, Any]) -> Future:
        """Propose an operation on a node that is up."""
        node, driver, future = process.node, process.driver(), Future()
        if node is None:
            return future

        def ended(_: Future) -> None:
            # What was forwarded was answered when it left, and may have been on its way since.
            if future.exception(0) is None and future.transition_id is not None:
                self.world.answers.check_state(process.id, driver, future.result(0))

        future.add_done_callback(ended)
        deadline = process.clock() + self.random.choice((50, 500, 2_000, 5_000)) * MS
        process.deadlines.add("a proposal", future, deadline)
        node.propose(driver, self.world.ledger.encode(process.id, operation, future), future, deadline)
        process.wake()
        return future

    def burst(self, process: Process) -> None:
        """Propose many at once."""
        for _ in range(self.random.randint(2, 20)):
            self.propose(process, self.operation())

    def count_up(self, process: Process, key: str) -> None:
        """Add to a counter on a node."""
        answers = self.world.answers
        recorded = Recorded(process.id, {"op": "add", "key": key, "value": 1}, self.world.now)
        self.world.report.history.append(recorded)
        answers.adds_begun[key] += 1

        def ended(_: Future) -> None:
            error = future.exception(0)
            if error is None:
                recorded.answered = self.world.now
                answers.adds_acknowledged[key] += 1
            elif not isinstance(error, OutcomeUnknown):
                self.world.report.history.remove(recorded)

        future = self.propose(process, recorded.operation)
        future.add_done_callback(ended)
