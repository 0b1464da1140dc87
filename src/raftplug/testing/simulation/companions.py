"""The groups that have little to do, and so go quiet, on the same nodes."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from raftplug import plain
from raftplug.constants import LEADER
from raftplug.core import Future
from raftplug.frames import Id
from raftplug.testing.simulation.part import Part
from raftplug.testing.simulation.plan import MS
from raftplug.testing.simulation.report import Violation

if TYPE_CHECKING:
    from raftplug.testing.simulation.process import Process
    from raftplug.testing.simulation.world import Simulation


class Companions(Part):
    """Proposes little to them, and checks in brief what must hold of any group."""

    def __init__(self, world: Simulation) -> None:
        super().__init__(world)
        self._leaders: dict[tuple[str, int], Id] = {}  # By group and term.
        self._committed: dict[tuple[str, int], int] = {}  # Of each entry by group and index: its check.
        self._adds: Counter[tuple[str, str]] = Counter()  # Of each: begun and acknowledged.

    def check(self, process: Process, group: str, raft: Any) -> None:
        """One leader a term, and one entry an index; the first group is looked at more closely."""
        if raft.role == LEADER and self._leaders.setdefault((group, raft.term), process.id) != process.id:
            raise Violation(f"election safety: two lead term {raft.term} of {group}")
        check = raft.log.check_at(raft.commit)
        if check >= 0 and self._committed.setdefault((group, raft.commit), check) != check:
            raise Violation(f"state machine safety: {process.id} committed another entry {raft.commit} of {group}")

    def next(self) -> None:
        """Propose something now and then."""
        if self.world.quiet:
            return
        self.world.after(self.random.choice((30, 300, 3_000)) * MS, self.next)
        process, group = self.world.some_node(), self.random.choice(self.plan.companions)
        if process is not None and self.world.now >= self.world.silent_until:
            self.add(process, group)

    def add(self, process: Process, group: str) -> Future:
        """Propose something to a companion, as the node's own process would."""
        node, future = process.node, Future()
        if node is None:
            return future
        counts = self._adds
        counts[group, "begun"] += 1

        def ended(_: Future) -> None:
            counts[group, "acknowledged"] += future.exception(0) is None

        future.add_done_callback(ended)
        transition, deadline = plain.encode({"op": "add", "key": "c0", "value": 1}), process.clock() + 2_000 * MS
        process.deadlines.add(f"a proposal to {group}", future, deadline)
        node.propose(node.drivers[group], transition, future, deadline)
        process.wake()
        return future

    def check_counters(self) -> None:
        """Exactly once: a counter holds what was acknowledged, and at most what is unknown on top of it."""
        for group in self.plan.companions:
            # Whoever acknowledged it may be the only one yet that knows it to be committed.
            machines = [
                each.node.drivers[group].machine for each in self.world.processes.values() if each.node is not None
            ]
            value = max(machine.values.get("c0", 0) for machine in machines)
            low, high = (self._adds[group, what] for what in ("acknowledged", "begun"))
            if not low <= value <= high:
                raise Violation(f"exactly once: {group} counts {value}, acknowledged {low} of {high}")

    def agree(self, chosen: list[Process], group: str, add: Future) -> bool:
        """Whether a companion has executed what it was asked for, everywhere: also if none of the chosen leads it."""
        drivers = [each.node.drivers[group] for each in chosen if each.node is not None]
        running = [each.node.drivers[group] for each in self.world.processes.values() if each.node is not None]
        commit = max(driver.raft.commit for driver in running)
        return add.done() and {(driver.applied, driver.machine.history) for driver in drivers} == {
            (commit, drivers[0].machine.history)
        }
