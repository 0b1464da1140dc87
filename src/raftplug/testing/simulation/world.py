"""The world that a seed makes: its time, its chance, its trace, and who lives in it."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from typing import Any

from raftplug import core as chosen_core
from raftplug.constants import LEADER
from raftplug.frames import Id, cluster_uuid
from raftplug.testing.simulation.answers import Answers
from raftplug.testing.simulation.broken import Broken
from raftplug.testing.simulation.callers import Callers
from raftplug.testing.simulation.client import Client
from raftplug.testing.simulation.companions import Companions
from raftplug.testing.simulation.faults.scheduler import Faults
from raftplug.testing.simulation.faults.table import FAULTS
from raftplug.testing.simulation.invariants import Invariants
from raftplug.testing.simulation.keys import Keys
from raftplug.testing.simulation.ledger import Ledger
from raftplug.testing.simulation.liveness import Liveness
from raftplug.testing.simulation.messages import Messages
from raftplug.testing.simulation.named import NamedClient
from raftplug.testing.simulation.network import Network
from raftplug.testing.simulation.plan import EVENTS, GROUP, MS, draw
from raftplug.testing.simulation.process import Process
from raftplug.testing.simulation.report import Report, Violation
from raftplug.testing.simulation.settled import Settled


class Simulation:
    """One seeded run.

    Args:
        seed: decides everything.
        core: one of the two cores; None is the process's.
        nodes: how many.
        events: how many before the liveness phase.
        operations: of clients, how many at least before the liveness phase.
        faults: the names of those that may happen; None lets the seed choose among all.
        clients: how many.
        keep_trace: whether the report holds the trace's lines.
    """

    def __init__(
        self,
        seed: int,
        *,
        core: Any = None,
        nodes: int = 5,
        events: int = EVENTS,
        operations: int = 0,
        faults: Sequence[str] | None = None,
        clients: int = 2,
        keep_trace: bool = False,
    ) -> None:
        self.core = core or chosen_core
        self.random = random.Random(seed)
        self.plan = draw(seed, self.random, nodes, operations, faults)
        self.report = Report(seed, chosen=tuple(name for name in FAULTS if name in self.plan.faults))
        self.events = events
        self._operations = operations
        self._keep_trace = keep_trace
        self._hash = hashlib.sha256()
        self.now = 1_000_000  # µs
        self.queue: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._number = 0
        self.quiet = False  # No more faults, and nobody asks anything by itself.
        self.silent_until = 0  # Nobody asks anything before.
        self.ended = False
        self.diverged = False  # Whether a state was ever changed behind everybody's back.
        self.network = Network(self)
        self.keys = Keys(self)
        self.messages = Messages(self)
        self.invariants = Invariants(self)
        self.companions = Companions(self)
        self.ledger = Ledger(self)
        self.callers = Callers(self)
        self.answers = Answers(self)
        self.faults = Faults(self)
        self.liveness = Liveness(self)
        self.settled = Settled(self)
        self.broken = Broken(self)
        founders, witnesses = self.plan.founders, self.plan.witnesses
        self.uuid = cluster_uuid(GROUP, founders)
        self.processes: dict[Id, Process] = {}
        self.originals: list[Process] = []  # Those whose directory was copied, and started elsewhere.
        for id in self.plan.ids:
            first = self.core.Configuration(tuple(founders) if id in founders else (), witnesses=list(witnesses))
            process = self.processes[id] = Process(self, id, first)
            process.boot()
        self.clients: list[Client] = [Client(self, number) for number in range(clients)]
        if self.plan.named:
            self.clients.append(NamedClient(self, clients))

    def run(self) -> Report:
        """Run to the end or to the first violation."""
        report = self.report
        try:
            self.after(self.random.randint(0, 50 * MS), self.faults.next)
            self.after(self.random.randint(0, 50 * MS), self.answers.next_probe)
            self.after(self.random.randint(0, 50 * MS), self.callers.next)
            if self.plan.companions:
                self.after(self.random.randint(0, 50 * MS), self.companions.next)
            while not self.ended and (report.events < self.events or self._wants_operations()):
                self.step()
            if not self.liveness.is_bereft():
                self.liveness.reach()
                self.answers.check_counters()
            self.ledger.check()
            self.answers.check_history()
        except Violation as violation:
            report.violation = f"{violation} (event {report.events})"
            self.note("VIOLATION", report.violation)
        report.trace_sha256 = self._hash.hexdigest()
        return report

    def _wants_operations(self) -> bool:
        """Whether there are too few, or too few reads: one that fails has certainly not happened, unlike a write."""
        if self.report.events % 1_000 == 0 and self.liveness.is_bereft():  # There will be no more.
            return False
        return len(self.report.history) < self._operations or 10 * self.answers.reads < 3 * self._operations

    def step(self) -> None:
        """The next event."""
        at, _, function, arguments = heappop(self.queue)
        if at > self.now:
            self.now = at
        self.report.events += 1
        function(*arguments)

    def after(self, delay: int, function: Callable[..., None], *arguments: Any) -> None:
        """Call a function so many µs later."""
        self._number = number = self._number + 1
        heappush(self.queue, (self.now + delay, number, function, arguments))

    def note(self, *words: Any) -> None:
        """A line of the trace."""
        line = f"{self.now} {words[0] if len(words) == 1 else ' '.join(map(str, words))}\n"
        self._hash.update(line.encode())
        if self._keep_trace:
            self.report.trace.append(line[:-1])

    def fault(self, name: str, *words: Any) -> None:
        """A fault happens, and is counted."""
        self.report.faults[name] += 1
        self.note(name, *words)

    def may(self, name: str) -> bool:
        """Whether a fault may happen now."""
        return name in self.plan.faults and not self.quiet

    def strikes(self, name: str) -> bool:
        """Whether a fault that waits for its moment takes this one; not when only operations are missing any more."""
        return self.report.events < self.events and self.may(name) and self.random.random() < self.plan.strike_chance

    def raise_soon(self, violation: Violation) -> None:
        """For who must not raise it: to the one who called it that would be something else."""
        self.after(0, _raise, violation)

    def some_node(self, up: bool = True) -> Process | None:
        """Any node that is up, or down; of those that are up, a leader every other time: that is where bugs live."""
        fitting = [each for each in self.processes.values() if (each.node is not None) == up]
        leading = [each for each in fitting if up and each.driver().raft.role == LEADER]
        if leading and self.random.random() < 0.5:
            return self.random.choice(leading)
        return self.random.choice(fitting) if fitting else None

    def leaders(self) -> list[Process]:
        """All that think that they lead."""
        return [each for each in self.processes.values() if each.node and each.driver().raft.role == LEADER]

    def leading(self) -> Process | None:
        """The leader of the latest term, if any is up."""
        return max(self.leaders(), key=lambda each: each.term, default=None)

    def newest(self) -> tuple[Process, list[Process]]:
        """Who has the newest log, if need be a witness, and all whose disk is the one that the others know."""
        known = [each for each in self.processes.values() if not each.displaced]
        return max(known, key=self.rank), known

    def rank(self, process: Process) -> tuple[tuple[int, int], bool, str]:
        """Whose log is newer."""
        return process.disk.last, process.id not in self.plan.witnesses, process.id


def _raise(error: Violation) -> None:
    raise error
