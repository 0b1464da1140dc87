"""Faults of those who ask: too much at once, nothing at all, no more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raftplug.testing.simulation.faults.kind import Kind
from raftplug.testing.simulation.plan import MS

if TYPE_CHECKING:
    from raftplug.testing.simulation.process import Process


class CallerFaults(Kind):
    """What clients, and nodes' own callers, do to a group."""

    def do_node_burst(self) -> None:
        node = self.world.some_node()
        if node is not None:
            self.burst(node)

    def burst(self, process: Process) -> None:
        """Its own process proposes many transitions at once."""
        self.world.fault("node_burst", process.id)
        self.world.callers.burst(process)

    def do_quiet_wanted(self) -> None:
        self.world.silent_until = self.world.now + self.random.choice((500, 1_500, 4_000)) * MS
        self.world.fault("quiet_wanted")

    def do_client_burst(self) -> None:
        client = self.random.choice(self.world.clients)
        self.world.fault("client_burst", client.id)
        for _ in range(self.random.randint(5, 30)):
            client.propose(client.operation(self.random))

    def do_client_crash(self) -> None:
        client = self.random.choice(self.world.clients)
        self.world.fault("client_crash", client.id)
        client.crash()
