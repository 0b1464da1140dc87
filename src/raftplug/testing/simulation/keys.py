"""The cluster's keys: one after another is rotated in three steps, which all processes take one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from raftplug.frames import Id, Key
from raftplug.testing.simulation.part import Part

if TYPE_CHECKING:
    from raftplug.testing.simulation.world import Simulation

CLIENTS: Final = "~"
"""All of them take a step together."""


class Keys(Part):
    """Who signs with what, and verifies what: the old key; the old one and the new one; the new one and the old one."""

    def __init__(self, world: Simulation) -> None:
        super().__init__(world)
        self._signs = bool(self.plan.faults & {"rotate_keys", "frame_damaged"})
        self._steps: dict[Id, int] = dict.fromkeys([*self.plan.ids, CLIENTS], 0)

    def of(self, id: Id) -> tuple[Key, ...]:
        """The keys that a process is started with."""
        if not self._signs:
            return ()
        rotations, step = divmod(self._steps.get(id, self._steps[CLIENTS]), 3)
        old, new = (Key(1 + number % 255, b"secret %9d" % number) for number in (rotations, rotations + 1))
        return ((old,), (old, new), (new, old))[step]

    def advance(self) -> Id:
        """Somebody takes the next step, nobody two before the others; returns who, with its next start."""
        least = min(self._steps.values())
        id = self.random.choice([each for each, step in self._steps.items() if step == least])
        self._steps[id] += 1
        return id
