"""Faults of whole data directories: lost, put back, copied; and what an operator does about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raftplug.backup import fill, restored_cluster
from raftplug.constants import LEADER
from raftplug.recovery import commit, sole_voter
from raftplug.snapshots import Reader
from raftplug.storage import RecordStorage, Write
from raftplug.testing.simulation.disk import SimulatedRows
from raftplug.testing.simulation.faults.kind import Kind
from raftplug.testing.simulation.plan import GROUP, MS
from raftplug.testing.simulation.report import Violation

if TYPE_CHECKING:
    from raftplug.testing.simulation.process import Process
    from raftplug.testing.simulation.world import Simulation


class DirectoryFaults(Kind):
    """What happens to a data directory, after which its node is no longer the member that it was."""

    def __init__(self, world: Simulation) -> None:
        super().__init__(world)
        self._recovered_term = 0
        self._deposes = False  # Whether the leader's term ends when the member that was removed last comes back.

    def do_lose_disk(self) -> None:
        """Only where all know the node by that disk: nobody can tell a lost one from a new one before."""
        node = self.world.some_node()
        if node is not None and self.random.random() < 0.7 and self._is_expendable(node):
            self.world.fault("lose_disk", node.id)
            node.displaced = True
            self._go_without(node)
            node.lose_disk(node.first)

    def do_lose_quorum(self) -> None:
        """Now and then."""
        if self.random.random() < 0.3:
            self.lose_quorum()

    def lose_quorum(self) -> None:
        """`members recover`, where the disk that is left holds all that is committed: else nothing were promised.

        One of the others may be founded again by mistake, instead of joining.
        """
        if self.world.quiet or self.world.originals or any(each.displaced for each in self.world.processes.values()):
            return
        last = self.world.invariants.highest_commit
        fitting = [
            each
            for each in self.world.processes.values()
            if each.good_rows is None and each.id not in self.plan.witnesses and each.disk.members().is_voter(each.id)
            if last <= each.disk.base or each.disk.durable.get(last) == self.world.invariants.committed[last]
            if each.disk.term >= self._recovered_term  # Else what was recovered before would be lost.
        ]
        if not fitting:
            return
        survivor = self.random.choice(fitting)
        if self.random.random() < 0.5:  # Who knows least of what the others may have begun.
            survivor = min(fitting, key=lambda each: each.disk.term)
        self.world.fault("lose_quorum", survivor.id)
        for client in self.world.clients:  # They speak to the cluster that they found when they began.
            client.crash()
        before = survivor.disk.members().members()
        mistaken, nobody = self.random.choice([None, *self.plan.founders]), self.world.core.Configuration(())
        for each in self.world.processes.values():
            each.kill(None)
            if each is not survivor:
                each.lose_disk(each.first if each.id == mistaken else nobody)
                each.mistaken = each.id == mistaken
                self.world.after(self.down_for(), each.boot_if_down)
                if each.id in before:
                    self.world.after(self.for_a_while(), self.replace, each.id)
        survivor.rows.full = survivor.rows.failing = False
        storage = RecordStorage(survivor.rows, survivor.id, entropy=self.random.randbytes)
        write, _ = sole_voter(storage, GROUP, survivor.id)
        commit(storage, [write])
        survivor.record(write, storage)
        self._recovered_term = survivor.disk.term
        survivor.boot()

    def do_restore_backup(self) -> None:
        """Once nobody has asked for anything for a while, an operator asks for a snapshot."""
        self.world.silent_until = self.world.now + 2_000 * MS
        self.world.after(1_000 * MS, self._back_up)

    def _back_up(self) -> None:
        leader = self.world.leading()
        if leader is not None:
            self.world.faults.operators.snapshot(leader.id)
            self.world.after(50 * MS, self._restore_backup)

    def _restore_backup(self) -> None:
        """Where the newest snapshot of some node holds all that is committed: else nothing were promised.

        What only the old cluster knew, its terms above all, is as if it had never been; and nobody believes it.
        """
        fitting = [
            each
            for each in self.world.processes.values()
            if each.good_rows is None and not each.rows.damaged_pieces()
            if each.disk.base >= self.world.invariants.highest_commit > 0
        ]
        if self.world.quiet or not fitting or self.plan.witnesses or self.world.originals:
            return
        if any(each.displaced for each in self.world.processes.values()):
            return
        source = self.random.choice(fitting)
        self.world.fault("restore_backup", source.id)
        rows = SimulatedRows(source.id)
        rows.put_back(source.rows.copy())
        backup = RecordStorage(rows, source.id, entropy=self.random.randbytes)
        stored = backup.load(GROUP)
        if stored is None or stored.snapshot is None:
            raise Violation(f"durability: {source.id} has lost its snapshot")
        snapshot, founders = stored.snapshot, self.world.core.Configuration(tuple(self.plan.founders))
        self.world.uuid = restored_cluster(GROUP, self.plan.founders, snapshot)
        self.world.invariants.begin_anew(snapshot.term)
        self.world.messages.false.update(self.world.messages.boots)
        self._recovered_term = 0
        self.world.network.directory.clear()  # Under another prefix, or after the old records have aged.
        for client in self.world.clients:  # They speak to the cluster that they found when they began.
            client.crash()
        for each in self.world.processes.values():
            each.kill(None)
            is_founder = each.id in self.plan.founders
            each.lose_disk(founders if is_founder else self.world.core.Configuration(()))
            each.lost = []
            if is_founder:
                storage = RecordStorage(each.rows, each.id, entropy=self.random.randbytes)
                reader = Reader(snapshot, lambda number: backup.piece(GROUP, snapshot.slot, number))
                piece_bytes = self.plan.settings.snapshot_piece_bytes
                made = fill(storage, GROUP, snapshot, reader, founders.plain(), piece_bytes)
                each.record(Write(GROUP, made.term, None, snapshot=made, snapshot_resets_log=True), storage)
            self.world.after(self.down_for(), each.boot_if_down)

    def do_overtake_snapshot(self) -> None:
        """A node that was not founded comes, on an empty disk, or goes; what follows waits for its moment."""
        if self.world.quiet or self.world.originals or any(each.displaced for each in self.world.processes.values()):
            return
        leader = self.world.leading()
        if leader is None or not leader.driver().raft.log.base_index or self.world.faults.operators.may_be_changing():
            return
        newcomers = [id for id in self.plan.ids if id not in (*self.plan.founders, *self.plan.witnesses)]
        strangers = [id for id in newcomers if self._is_stranger(id)]
        if strangers:
            self._add_anew(self.random.choice(strangers), 0)
        elif newcomers:
            self.world.faults.operators.ask("members", ["remove", [self.random.choice(newcomers)]])

    def do_come_back(self) -> None:
        """First a member is removed, and what it says to the leader is held up."""
        leader = self.world.leading()
        if leader is None or self.world.originals or any(each.displaced for each in self.world.processes.values()):
            return
        configuration = leader.driver().raft.configuration
        others = [id for id in configuration.members() if id != leader.id]
        if len(configuration.voters) > 2:
            id = self.random.choice(others)
            self._deposes = self.random.random() < 0.7
            self.world.faults.network.clog((id, leader.id), (3_000 if self._deposes else 300) * MS)
            self.world.faults.operators.ask("members", ["remove", [id]])

    def come_back(self, id: str) -> None:
        """Whoever was removed a moment ago comes back with another directory; the leader's term may end then."""
        leader = self.world.leading()
        if leader is None or self.world.quiet or self.world.processes[id].displaced or not self._is_stranger(id):
            return
        self.world.fault("come_back", id)
        self._add_anew(id, self.random.choice((1, 100, 1_000, 3_000)) * MS)
        if self._deposes:
            self.world.after(self.random.choice((20, 200)) * MS, self._depose, leader, leader.life)

    def _depose(self, leader: Process, life: int) -> None:
        """It leads again, in a later term: the others stand still until it asks for their votes."""
        if not self.world.quiet and leader.node is not None and leader.life == life:
            leader.kill(1 * MS)
            for each in self.world.processes.values():
                if each is not leader:
                    each.paused_until = max(each.paused_until, self.world.now + 1_500 * MS)

    def _is_stranger(self, id: str) -> bool:
        """Whether a node is no member, and none of the members, nor of the founders, takes it for one."""
        leader = self.world.leading()
        if leader is None or self.world.originals or self.world.faults.operators.may_be_changing():
            return False
        members = leader.driver().raft.configuration.members()
        nodes = [each for each in self.plan.ids if each != id and (each in members or each in self.plan.founders)]
        return id not in members and not any(id in each.members() for each in self._known(nodes))

    def _add_anew(self, id: str, delay: int) -> None:
        """A stranger's disk is empty when it starts, after so many µs; what it said before may still be on its way."""
        node = self.world.processes[id]
        node.kill(None)
        node.lose_disk(self.world.core.Configuration(()))
        self.world.after(delay, node.boot_if_down)
        self.world.faults.operators.ask("members", ["witness" if id in self.plan.witnesses else "add", [id]])

    def _known(self, ids: list[str]) -> list[Any]:
        """The members as these nodes' disks say, and their processes: a change under way may be on no disk yet."""
        nodes = [self.world.processes[id] for id in ids]
        known = [each.disk.members() for each in nodes]
        known += [each.driver().raft.configuration for each in nodes if each.node is not None]
        return [each for each in known if each.voters]

    def _is_expendable(self, node: Process) -> bool:
        """Whether all know the node by its disk, the others are enough without it, and no other one is gone."""
        if self.world.originals or any(each.displaced for each in self.world.processes.values()):
            return False
        if self.world.faults.operators.may_be_changing():  # To where this node is needed.
            return False
        known = self._known(self.plan.ids)
        return all(len(each.voters) > 2 and each.storages.get(node.id) == node.disk.storage for each in known)

    def _go_without(self, node: Process) -> None:
        """The node's disk is not what it was: until an operator has replaced the node, the others must do."""
        down = self.down_for()
        node.kill(down)
        if self.random.random() < 0.5:
            self.world.after(down + self.random.randint(10, 500) * MS, self._need, node.id)
        self.world.after(self.for_a_while(), self.replace, node.id)

    def do_older_file(self) -> None:
        """First copies are made of disks, and after restarts one is put back.

        Only if that would be a start which all others know, on their disks, to have been, with another nonce: whoever
        knows of no later one has to take it for a restart, and nothing could be safe (see docs/divergence.md).  Nor
        could it where the node was the only voter then: it asks nobody.
        """
        fitting = [each for each in self.world.processes.values() if each.good_rows is None and not each.displaced]
        for node in fitting:
            if node.older is None:
                node.older = node.keep_copy()
        known = [
            each
            for each in fitting
            if each.older is not None and self._all_know(each, each.older.boots + 1)
            if not each.older.disk.members().has_quorum({each.id})
        ]
        known = [each for each in known if self._is_expendable(each)]
        if not known:  # Of these some restart, for the others to hear.
            self.world.faults.processes.do_crash()
        else:
            node = self.random.choice(known)
            self.world.fault("older_file", node.id)
            node.displaced = True
            self._go_without(node)
            node.put_back()

    def _all_know(self, node: Process, boot: int) -> bool:
        """Whether all others have on their disks that this boot of the node's directory, or a later one, has been."""
        others = [each for each in self.world.processes.values() if each.id != node.id]
        return all(each.disk.kept_lives.get((node.id, node.disk.storage), (0, 0))[0] >= boot for each in others)

    def do_start_twice(self) -> None:
        """The original stands still until all others know of the copy, on their disks.

        What it acknowledges before, the copy may lack, and who was not told of the copy has to believe it.  A directory
        itself is not opened twice: that its lock sees to, which lies below what is simulated (tests/test_storage.py).
        """
        node = self.world.some_node()
        if node is None or node.node is None or node.good_rows is not None or not self._is_expendable(node):
            return
        busy = node.job is not None or node.node._writing or node.node._keeping or node.node._unwritten
        if busy or node.rows.full or node.rows.failing:  # What is written later is not on the copy.
            return
        self.world.fault("start_twice", node.id)
        copied = self.world.processes[node.id] = node.copied()
        self.world.originals.append(node)
        node.displaced = True
        copied.boot()
        self._hold(node, copied.boots)

    def _hold(self, original: Process, boot: int) -> None:
        """Let the original go on when that is safe; if it never is, somebody kills it."""
        if original.node is None:
            return
        if self._all_know(original, boot):
            original.paused_until = self.world.now
            original.wake()
        elif self.world.quiet:
            original.kill(None)
        else:
            original.paused_until = self.world.now + 50 * MS
            self.world.after(20 * MS, self._hold, original, boot)

    def _need(self, id: str) -> None:
        """So many others die that the rest could go on with the node, if it counted, and cannot without it."""
        node = self.world.processes[id]
        up = [each for each in self.world.processes.values() if each.node is not None and each is not node]
        if not self.world.quiet and node.displaced and node.node is not None:
            stays = self.random.sample(up, min(len(up), len(node.first.voters) // 2))
            for each in up:
                if each not in stays:
                    each.kill(self.random.choice((1_500, 3_000)) * MS)

    def replace(self, id: str) -> None:
        """What an operator does about a node whose disk is lost."""
        if self.world.quiet:
            return
        node = self.world.processes[id]
        leading = [each.driver().raft for each in self.world.processes.values() if each.node and each.id != node.id]
        settled = [each for each in leading if each.role == LEADER and each.commit >= each.configuration_index]
        if (
            node.displaced
            and settled
            and node.id not in max(settled, key=lambda each: each.term).configuration.members()
        ):
            if node.node is not None:
                node.kill(None)
            node.displaced = False
            node.lose_disk(self.world.core.Configuration(()))
            node.boot()
        elif node.displaced:
            self.world.faults.operators.ask("members", ["remove", [node.id]])
        elif any(node.id in each.configuration.members() for each in settled):
            return
        else:
            self.world.faults.operators.ask(
                "members", ["witness" if node.id in self.plan.witnesses else "add", [node.id]]
            )
        self.world.after(1_000 * MS, self.replace, node.id)
