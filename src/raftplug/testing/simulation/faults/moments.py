"""Faults that wait for their moment: an election, a change of the members, a snapshot under way."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raftplug import snapshots
from raftplug.storage import StoredSnapshot
from raftplug.testing.simulation.faults.kind import Kind
from raftplug.testing.simulation.plan import MS

if TYPE_CHECKING:
    from raftplug.testing.simulation.process import Process


class Moments(Kind):
    """The checks tell it of moments that matter."""

    def elected(self, process: Process) -> None:
        """A process leads a new term."""
        if self.world.quiet:
            return
        for name in ("crash_new_leader", "cut_off_new_leader"):
            if self.world.strikes(name):
                self.world.after(self.random.randint(0, 30) * MS, self.strike, name, process, process.life)
        if self.world.strikes("lose_quorum"):
            self.world.after(self.random.randint(0, 30) * MS, self.world.faults.directories.lose_quorum)
        if self.random.random() < 0.5:
            self.world.answers.probe(process)

    def asked_for_votes(self, process: Process) -> None:
        """A candidate has voted for itself, and its requests are on their way."""
        if self.world.strikes("mute_candidate"):
            others = [id for id in self.plan.ids if id != process.id]
            lost = self.random.sample(others, self.random.randint(1, len(others))) if others else []
            self.world.fault("mute_candidate", process.id, *lost)
            self.world.network.cut_links([(process.id, other) for other in lost], self.for_a_while())
        if self.world.strikes("early_request"):
            self.world.fault("early_request", process.id)
            process.paused_until = self.world.now + 10 * MS
            for client in self.world.clients:
                client.expect(process.id)

    def changed_members(self, process: Process, new_voters: set[str]) -> None:
        """A leader has begun to change the members."""
        if self.world.strikes("crash_in_change"):
            delay = self.random.choice((0, 300, 1_000, 5_000))
            self.world.after(delay, self.strike, "crash_in_change", process, process.life)
        # Most end with somebody who may not know yet that it votes.
        last = self.world.faults.operators.is_ending() and (bool(new_voters) or self.random.random() < 0.2)
        if last:
            self.world.after(self.random.choice((1, 5, 20, 100)) * MS, setattr, self.world, "ended", True)
            for each in self.world.processes.values():  # What is written in these last moments is lost on some disks.
                each.disk_us = self.random.choice((100, 3_000 * MS))
        cuts = self.world.strikes("cut_off_newcomer")
        if cuts or last:
            for newcomer in sorted(new_voters):
                self.world.fault("cut_off_newcomer", newcomer)
                self.world.network.cut_off(newcomer, 3_000 * MS)

    def fetches(self, process: Process, fetch: snapshots.Fetch | None) -> None:
        """A process fetches a snapshot, if it does."""
        if fetch is None or not 0 < fetch.have < fetch.snapshot.count or process.struck == fetch.snapshot.digest:
            return
        process.struck = fetch.snapshot.digest
        if self.world.strikes("crash_in_fetch"):
            self.world.after(self.random.randint(0, 3) * MS, self.strike, "crash_in_fetch", process, process.life)

    def waits(self, process: Process, snapshot: StoredSnapshot) -> None:
        """A process has a snapshot on its disk, and does not know yet whether it keeps a state machine.

        The next one tells it, and takes the place of the first, if the leader that keeps what follows the first is
        killed; a machine that takes its time is at work meanwhile, if it was given the first one.
        """
        if process.waited == snapshot.digest or not self.world.may("overtake_snapshot"):
            return
        process.waited = snapshot.digest
        self.world.fault("overtake_snapshot", process.id)
        self.world.network.cut_off(process.id, 2_500 * MS)
        leader = self.world.leading()
        if leader is not None:
            leader.kill(1 * MS)
        self.world.after(2_000 * MS, self._snapshot_on_leader)
        process.apply_us = 300 * MS
        self.world.after(5_000 * MS, setattr, process, "apply_us", 0)

    def _snapshot_on_leader(self) -> None:
        leader = self.world.leading()
        if leader is not None and not self.world.quiet:
            self.world.faults.operators.snapshot(leader.id)

    def strike(self, name: str, process: Process, life: int, *more: str) -> None:
        """The moment is there; nothing happens if the process has started anew since it was chosen."""
        if self.world.quiet or life != process.life or process.node is None:
            return
        if name in ("crash_new_leader", "crash_in_change", "crash_in_fetch"):
            self.world.fault(name, process.id)
            process.kill(self.down_for())
            if name == "crash_in_fetch" and "snapshot_piece_rot" in self.plan.faults:
                self.world.faults.disks.do_snapshot_piece_rot()
        elif name == "late_answers":
            self.world.network.cut_off(process.id, 2_000 * MS)
            self.world.faults.leaders.ask_deposed(process, life)
        elif name == "early_rival":
            self.world.fault(name, process.id, *more)
            self.world.network.cut_off(process.id, 1_000 * MS)
            for each in self.world.processes.values():
                if each.node is not None and each.id not in (process.id, *more):
                    each.kill(1)
            self.world.silent_until = self.world.now
            self.world.faults.leaders.ask_deposed(process, life)
        else:
            others = [id for id in self.plan.ids if id != process.id]
            lost = self.random.sample(others, self.random.randint(1, len(others))) if others else []
            self.world.fault(name, process.id, *lost)
            self.world.network.cut_links(
                [(process.id, other) for other in lost] + [(other, process.id) for other in lost], self.for_a_while()
            )
            if "node_burst" in self.plan.faults:
                self.world.faults.callers.burst(process)
