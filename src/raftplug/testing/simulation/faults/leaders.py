"""Faults of leadership that is about to pass on: they are what leases must bear."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from raftplug.constants import LEADER, LINEARIZABLE
from raftplug.errors import RaftplugError
from raftplug.testing.simulation.faults.kind import Kind
from raftplug.testing.simulation.plan import MS

if TYPE_CHECKING:
    from raftplug.testing.simulation.process import Process


class LeaderFaults(Kind):
    """What happens while a leader may think that it has a lease."""

    def do_deaf_leader(self) -> None:
        """A leader's own process hands over, as at its end, and a read begins a round at the same moment."""
        leader = self.world.leading()
        if leader is None or leader.node is None:
            return
        node, driver = leader.node, leader.driver()

        def hand_over() -> None:
            node.attend(driver)
            with contextlib.suppress(RaftplugError):
                driver.raft.transfer(None)

        self.world.answers.probe(leader, LINEARIZABLE)
        node.call(hand_over)

    def deafen(self, successor: Process) -> None:
        """Who hands over to `successor` does not learn that this one campaigns, nor that others vote."""
        if not self.world.may("deaf_leader"):
            return
        for leader in self.world.processes.values():
            raft = leader.driver().raft if leader.node is not None else None
            if raft is not None and raft.role == LEADER and raft.transferee == successor.id:
                self.world.fault("deaf_leader", leader.id)
                self.world.network.cut_links(
                    [(other, leader.id) for other in self.plan.ids if other != leader.id], 1_000 * MS
                )
                self.ask_deposed(leader, leader.life)

    def do_late_answers(self) -> None:
        leader = self.world.leading()
        if leader is None:
            return
        self.world.fault("late_answers", leader.id)
        self.world.answers.probe(leader, LINEARIZABLE)  # The round that is answered late.
        delay = self.random.randint(200, 900) * MS
        for link in [(other, leader.id) for other in self.plan.ids if other != leader.id]:
            if link not in self.world.network.clogged:
                self.world.network.clogged[link] = []
                self.world.after(delay, self.world.network.unclog, link)
        self.world.after(20 * MS, self.world.faults.moments.strike, "late_answers", leader, leader.life)

    def do_early_rival(self) -> None:
        """The rival's log must be as good as any: nobody writes meanwhile."""
        leader = self.world.leading()
        rivals = [id for id in leader.driver().raft.configuration.voters if id != leader.id] if leader else []
        if leader is None or not rivals or self.world.now < self.world.silent_until:
            return
        rival = self.random.choice(rivals)
        self.world.silent_until = self.world.now + 1_500 * MS
        self.world.after(150 * MS, self.world.network.cut_links, [(leader.id, rival)], 1_500 * MS)
        self.world.after(400 * MS, self._await_rival, leader, leader.life, self.world.processes[rival])

    def _await_rival(self, leader: Process, life: int, rival: Process) -> None:
        """Strike a moment before it campaigns."""
        if rival.node is not None and rival.driver().raft.role != LEADER:
            patience = rival.driver().raft.deadline() - rival.clock() - self.random.randint(5, 100) * MS
            self.world.after(max(0, patience), self.world.faults.moments.strike, "early_rival", leader, life, rival.id)

    def ask_deposed(self, process: Process, life: int, left: int = 60) -> None:
        """A leader is asked again and again; whoever leads a later term meanwhile adds to what it is asked for."""
        if self.world.quiet or life != process.life or process.node is None or process.driver().raft.role != LEADER:
            return
        successor = self.world.leading()
        if successor is not None and successor.term > process.term:
            self.world.callers.count_up(successor, "c0")
        self.world.answers.probe(process, key="c0")
        if left:
            self.world.after(20 * MS, self.ask_deposed, process, life, left - 1)
