"""What every kind of faults has."""

from __future__ import annotations

from raftplug.testing.simulation.part import Part
from raftplug.testing.simulation.plan import MS


class Kind(Part):
    """Faults of one kind: a method `do_NAME` does what the table says of NAME, if there is anybody to do it to."""

    def down_for(self) -> int:
        """How long a process is down, µs."""
        return self.random.choice((1, 50, 1_000, 3_000)) * MS

    def for_a_while(self) -> int:
        """How long something else lasts, µs."""
        return self.random.choice((100, 700, 3_000)) * MS
