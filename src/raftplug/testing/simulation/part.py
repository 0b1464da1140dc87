"""What every part of the world has."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from raftplug.testing.simulation.world import Simulation


class Part:
    """A part of the world: it has the world at hand, and the world's chance and plan.

    Args:
        world: that it is a part of; parts reach each other by way of it.
    """

    def __init__(self, world: Simulation) -> None:
        self.world = world
        self.random = world.random
        self.plan = world.plan
