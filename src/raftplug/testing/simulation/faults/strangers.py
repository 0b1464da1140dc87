"""Frames of another cluster of the same names, with the same keys: recorded in a run of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raftplug.frames import Id
from raftplug.testing.simulation.faults.kind import Kind
from raftplug.testing.simulation.plan import MS

if TYPE_CHECKING:
    from raftplug.testing.simulation.world import Simulation

_EVENTS = 600  # Of the other cluster: it is founded, elects, and commits.
_AT_THE_FOUNDING = 6  # So many times while this cluster is founded.


class Strangers(Kind):
    """What another cluster said."""

    def __init__(self, world: Simulation) -> None:
        super().__init__(world)
        self._recorded: list[tuple[Id, Id, bytes]] = []
        if "foreign_frames" in self.plan.faults:
            for _ in range(_AT_THE_FOUNDING):
                world.after(self.random.randint(1, 1_500) * MS, self._say, 0)

    def do_foreign_frames(self) -> None:
        recorded = self._record()
        self._say(self.random.randrange(len(recorded)))

    def _say(self, start: int) -> None:
        if self.world.quiet:
            return
        self.world.fault("foreign_frames")
        recorded = self._record()
        for source, target, message in recorded[start : start + self.random.randint(1, 60)]:
            self.world.network.deliver(self.random.randint(1, 20 * MS), source, target, message)

    def _record(self) -> list[tuple[Id, Id, bytes]]:
        if not self._recorded:
            signed = [name for name in ("rotate_keys", "frame_damaged") if name in self.plan.faults]
            other = type(self.world)(
                self.random.getrandbits(30), core=self.world.core, nodes=len(self.plan.founders), faults=signed
            )
            tap = other.network.tap = []
            while other.report.events < _EVENTS:
                other.step()
            self._recorded = [each for each in tap if each[0] in self.plan.founders and each[1] in self.plan.founders]
        return self._recorded
