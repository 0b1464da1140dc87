"""Faults of processes: of their lives, their clocks, their machines and their observers."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from raftplug.constants import LEADER, LINEARIZABLE, STALE
from raftplug.errors import RaftplugError
from raftplug.sessions import NAMED_SESSION_TIMEOUT_US, SESSION_TIMEOUT_US
from raftplug.testing.simulation.faults.kind import Kind
from raftplug.testing.simulation.plan import MS

if TYPE_CHECKING:
    from raftplug.testing.simulation.process import Process


class ProcessFaults(Kind):
    """What happens to a process."""

    def do_strand_leader(self) -> None:
        node = self.world.some_node()
        if node is not None and node.driver().raft.role == LEADER:
            self.world.fault("strand_leader", node.id)
            node.set_rate(0.1)
            self.world.network.cut_off(node.id, 3_000 * MS)

    def do_crash(self) -> None:
        node = self.world.some_node()
        if node is not None:
            self.world.fault("crash", node.id)
            node.kill(self.down_for())

    def do_stop(self) -> None:
        """As a node stops on request: a leader hands over first, and has an election timeout for that."""
        node = self.world.some_node()
        if node is None or node.node is None:
            return
        self.world.fault("stop", node.id)
        if self.random.random() < 0.7:  # A caller waits for it, or asks just before it stops.
            self.world.callers.burst(node)
            self.world.answers.probe(node)
        loop, driver, until = node.node, node.driver(), self.world.now + self.plan.settings.election_timeout_ms * MS

        def hand_over() -> None:
            with contextlib.suppress(RaftplugError):
                loop.attend(driver)
                driver.raft.transfer(None)

        loop.call(hand_over)
        node.wake()
        self.world.after(2 * MS, self._stop, node, node.life, until)

    def _stop(self, node: Process, life: int, until: int) -> None:
        if self.world.quiet or node.node is None or node.life != life:
            return
        if self.world.now < until and node.driver().leader in (None, node.id):
            self.world.after(2 * MS, self._stop, node, life, until)
        else:
            node.end(self.down_for())

    def do_crash_after_sync(self) -> None:
        fitting = [each for each in self.world.processes.values() if each.job is not None and not each.rows.full]
        if fitting:
            node = self.random.choice(fitting)
            self.world.fault("crash_after_sync", node.id)
            job = node.job
            if job is not None and not node.rows.failing:
                job()
            node.kill(self.down_for())

    def do_restart_all(self) -> None:
        if self.random.random() < 0.2:
            self.world.fault("restart_all")
            for node in self.world.processes.values():
                if node.node is not None:
                    node.kill(self.random.randint(1, 500) * MS)

    def do_pause(self) -> None:
        node = self.world.some_node()
        if node is not None:
            self.world.fault("pause", node.id)
            node.paused_until = self.world.now + self.for_a_while()

    def _set_rate(self, name: str, rate: float) -> None:
        node = self.world.some_node()
        if node is not None:
            self.world.fault(name, node.id)
            node.set_rate(rate)
            node.wake()

    def do_clock_fast(self) -> None:
        self._set_rate("clock_fast", 1.0 + self.random.random())

    def do_clock_slow(self) -> None:
        self._set_rate("clock_slow", self.random.choice((0.5, 0.1)))

    def do_clock_jump(self) -> None:
        node = self.world.some_node()
        if node is not None:
            self.world.fault("clock_jump", node.id)
            node.offset += self.random.randint(1, 5_000) * MS
            node.wake()

    def do_session_expiry(self) -> None:
        """Mostly clients do not hear what became of their last transitions, and ask again when it has happened."""
        leader = self.world.leading()
        if leader is None:
            return
        for client in self.world.clients:
            client.expect(leader.id)
            client.propose(client.operation(self.random))
            if self.random.random() < 0.7:
                self.world.network.cut_links([(leader.id, client.id)], self.for_a_while())
        self.world.after(self.random.choice((2, 20, 200)) * MS, self._leap, leader, leader.life, False)

    def _leap(self, leader: Process, life: int, hears: bool) -> None:
        """The answers to a round of its own wait until a leader looks at its clock that leapt: so it leads on."""
        if not self.world.may("session_expiry") or leader.node is None or leader.life != life:
            return
        if not hears:
            self.world.answers.probe(leader, LINEARIZABLE)
            self.world.after(1, self._leap, leader, life, True)
            return
        self.world.fault("session_expiry", leader.id)
        timeout_us = NAMED_SESSION_TIMEOUT_US if self.random.random() < 0.2 else SESSION_TIMEOUT_US
        leap_us = self.random.randint(timeout_us // 2, 2 * timeout_us)
        leader.offset += leap_us
        self.world.invariants.leapt_us += leap_us
        leader.paused_until = self.world.now + 20 * MS

    def do_slow_apply(self) -> None:
        node = self.world.some_node()
        if node is not None:
            self.world.fault("slow_apply", node.id)
            node.apply_us = self.random.choice((20, 300, 3_000, 10_000)) * MS
            self.world.after(self.for_a_while(), setattr, node, "apply_us", 0)
            if "node_burst" in self.plan.faults:  # It has something to be behind with.
                self.world.faults.callers.burst(node)

    def do_diverge(self) -> None:
        node = self.world.some_node()
        if (
            node is not None
            and not self.world.diverged
            and self.plan.settings.digest_entries
            and node.id not in self.plan.witnesses
        ):
            self.diverge(node)

    def diverge(self, node: Process) -> None:
        """Change what a running node's machine holds."""
        self.world.fault("diverge", node.id)
        self.world.diverged = True
        node.driver().machine.flipped = 1
        if self.world.may("slow_apply"):  # When it is named it has something to answer yet.
            node.apply_us = 20 * MS
            self.world.after(2_000 * MS, setattr, node, "apply_us", 0)
        self._press(node, node.life)

    def _press(self, node: Process, life: int) -> None:
        """Ask a node that has changed, until it knows."""
        driver = node.driver()
        if self.world.quiet or node.life != life or driver is None or driver.diverged is not None:
            return
        self.world.callers.burst(node)
        self.world.answers.probe(node, STALE)
        self.world.after(15 * MS, self._press, node, life)

    def do_slow_observer(self) -> None:
        node = self.world.some_node()
        if node is not None:
            self.world.fault("slow_observer", node.id)
            node.observer.observes_at = self.world.now + self.for_a_while()

    def do_raising_observer(self) -> None:
        node = self.world.some_node()
        if node is not None:
            self.world.fault("raising_observer", node.id)
            node.observer.raises = True
