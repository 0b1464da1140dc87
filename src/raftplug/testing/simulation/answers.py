"""What is read: counters, on nodes and by clients, and the histories of clients."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from raftplug.constants import LEASE, LINEARIZABLE, STALE
from raftplug.core import Future
from raftplug.frames import Id
from raftplug.testing import linearizability
from raftplug.testing.simulation.machines import is_wrong
from raftplug.testing.simulation.part import Part
from raftplug.testing.simulation.plan import KEYS, MS
from raftplug.testing.simulation.report import Violation

if TYPE_CHECKING:
    from raftplug.testing.simulation.process import Process
    from raftplug.testing.simulation.world import Simulation


_CHECK_STEPS = 1_000_000


class Answers(Part):
    """Keeps account of what was asked and answered, and asks nodes to read."""

    def __init__(self, world: Simulation) -> None:
        super().__init__(world)
        self.adds_begun: Counter[str] = Counter()  # By key.
        self.adds_acknowledged: Counter[str] = Counter()
        self.reads = 0  # In the history.

    def check_counters(self) -> None:
        """Exactly once: a counter holds what was acknowledged, and at most what is unknown on top of it."""
        machine = max(
            (each.driver().machine for each in self.world.processes.values() if each.node), key=lambda m: m.count
        )
        for key in range(KEYS):
            adds = [
                each
                for each in self.world.report.history
                if each.operation == {"op": "add", "key": f"c{key}", "value": 1}
            ]
            low = sum(each.answered is not None for each in adds)
            value = machine.values.get(f"c{key}", 0)
            if not low <= value <= len(adds):
                raise Violation(f"exactly once: counter {key} is {value}, acknowledged {low} of {len(adds)}")

    def check_history(self) -> None:
        """What the clients saw of the keys has an order that explains it."""
        verdict = linearizability.check(
            [each.as_operation() for each in self.world.report.history if each.operation["key"].startswith("k")],
            _CHECK_STEPS,
        )
        if verdict.linearizable is False:
            raise Violation(f"linearizability: {verdict}")

    def _check_count(self, key: str, low: int, value: Any, who: Id) -> None:
        """A counter that is read shows what was acknowledged before, and nothing that was not begun."""
        if not low <= (value or 0) <= self.adds_begun[key]:
            text = f"{value or 0}, with {low} acknowledged before and {self.adds_begun[key]} begun"
            raise Violation(f"linearizable reads: {who} reads {key} as {text}")

    def next_probe(self) -> None:
        """Read on some node now and then."""
        if self.world.quiet:
            return
        self.world.after(self.random.randint(1, 30) * MS * self.plan.pace, self.next_probe)
        if self.world.now < self.world.silent_until:
            return
        process = self.world.some_node()
        leading = self.world.leaders()
        if len(leading) > 1:  # A deposed leader that does not know it yet is whom to ask.
            process = min(leading, key=lambda each: each.term)
        if process is not None:
            self.probe(process)

    def probe(self, process: Process, consistency: str | None = None, key: str | None = None) -> None:
        """Read a counter on a node, as its own process would: any way it may be read, unless that is given."""
        node, driver = process.node, process.driver()
        if node is None or self.world.now < process.paused_until:
            return
        key = key or f"c{self.random.randrange(KEYS)}"
        low, future = self.adds_acknowledged[key], Future()
        if consistency is None and self.random.random() < 0.05:
            consistency = STALE
        elif consistency is None:
            consistency = LEASE if self.plan.settings.lease_ms and self.random.random() < 0.7 else LINEARIZABLE

        if consistency == STALE:
            low = 0

        def ended(_: Future) -> None:
            if future.exception(0) is None:
                self.check_state(process.id, driver, future.result(0))
                self.found(key, low, future.result(0), process.id)

        future.add_done_callback(ended)
        deadline = process.clock() + self.random.choice((50, 500, 2_000, 2_000)) * MS
        process.deadlines.add("a read", future, deadline)
        node.call(driver.read, lambda machine: machine.query({"key": key}), future, deadline, consistency)
        process.wake()

    def check_state(self, who: Id, driver: Any, answer: Any) -> None:
        """A replica that is known to have diverged shows nothing of that state to its own callers."""
        if is_wrong(answer) and driver.diverged is not None:
            self.world.raise_soon(Violation(f"divergence: {who} answers out of a state that it knows to be wrong"))

    def found(self, key: str, low: int, value: Any, who: Id) -> None:
        """Somebody has read a counter.  A future's callback must not raise: the next event does."""
        if is_wrong(value):
            return
        try:
            self._check_count(key, low, value, who)
        except Violation as violation:
            self.world.raise_soon(violation)
