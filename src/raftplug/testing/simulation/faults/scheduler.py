"""Which fault comes next, and when."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from raftplug.testing.simulation.faults.callers import CallerFaults
from raftplug.testing.simulation.faults.directories import DirectoryFaults
from raftplug.testing.simulation.faults.disks import DiskFaults
from raftplug.testing.simulation.faults.kind import Kind
from raftplug.testing.simulation.faults.leaders import LeaderFaults
from raftplug.testing.simulation.faults.moments import Moments
from raftplug.testing.simulation.faults.network import NetworkFaults
from raftplug.testing.simulation.faults.operators import Operators
from raftplug.testing.simulation.faults.processes import ProcessFaults
from raftplug.testing.simulation.faults.strangers import Strangers
from raftplug.testing.simulation.faults.table import FAULTS, LEASED
from raftplug.testing.simulation.part import Part
from raftplug.testing.simulation.plan import MS

if TYPE_CHECKING:
    from raftplug.testing.simulation.world import Simulation


class Faults(Part):
    """Chooses a fault now and then."""

    def __init__(self, world: Simulation) -> None:
        super().__init__(world)
        self.network = NetworkFaults(world)
        self.processes = ProcessFaults(world)
        self.disks = DiskFaults(world)
        self.directories = DirectoryFaults(world)
        self.operators = Operators(world)
        self.leaders = LeaderFaults(world)
        self.callers = CallerFaults(world)
        self.strangers = Strangers(world)
        self.moments = Moments(world)
        kinds: list[Kind] = [self.network, self.processes, self.disks, self.directories, self.operators]
        kinds += [self.leaders, self.callers, self.strangers]
        # What does each that may happen, in the order of the table; some wait for their moment and are not here.
        self._do: dict[str, Callable[[], None]] = {
            name: getattr(kind, f"do_{name}")
            for name in FAULTS
            for kind in kinds
            if name in self.plan.faults and hasattr(kind, f"do_{name}")
        }
        self._leased = [name for name in LEASED if name in self.plan.faults]

    def next(self) -> None:
        """A fault, and the next one after a while."""
        if self.world.quiet:
            return
        self.world.after(self.random.randint(1, self.plan.fault_ms) * MS, self.next)
        changing = "change_members" in self.plan.faults
        if changing and self.random.random() < (0.5 if self.operators.is_ending() else 0.2):
            self.operators.do_change_members()
        elif "overtake_snapshot" in self._do and self.random.random() < 0.3:
            self._do["overtake_snapshot"]()
        elif self.plan.settings.lease_ms and self.random.random() < 0.2 and self._leased:
            self._do[self.random.choice(self._leased)]()
        elif self.plan.falls_behind and self.random.random() < 0.4:
            self.network.do_isolate()
        elif self._do:
            self._do[self.random.choice([*self._do])]()
