"""The phase that ends every run: faults stop, and a majority must recover."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raftplug.testing.simulation.client import Client
from raftplug.testing.simulation.faults.table import OF_DIRECTORIES
from raftplug.testing.simulation.invariants import is_quorum
from raftplug.testing.simulation.part import Part
from raftplug.testing.simulation.plan import KEYS, MS, NEVER
from raftplug.testing.simulation.report import Violation

if TYPE_CHECKING:
    from raftplug.testing.simulation.process import Process


_EVENTS = 200_000


class Liveness(Part):
    """Who can go on, and whether they do."""

    def reach(self) -> None:
        """Faults stop for a random majority: it must elect, commit and converge within 20 election timeouts."""
        self.world.quiet = True
        self.world.network.cut_until.clear()
        self.world.network.down_until = 0
        for link in sorted(self.world.network.clogged, key=str):
            self.world.network.unclog(link)
        if self.plan.faults & {"change_members", *OF_DIRECTORIES}:
            for client in self.world.clients:  # No change that is still on its way makes another majority count.
                client.crash()
            for reader in self.world.network.links.values():
                reader.inbox.clear()
                reader.stream.epoch += 1
            for process in self.world.processes.values():  # Nobody leads: what is on the disks must be enough.
                if process.node is not None:
                    process.kill(None)
            majority, bridged = self._majority_of_the_newest(), None
        else:
            majority = self._majority()
            bridged = self._bridged(majority)
        self.world.note("liveness", *majority, "with", bridged)
        for id, process in self.world.processes.items():
            process.rows.full = process.rows.failing = False
            process.paused_until = 0
            process.disk_us = 300
            process.apply_us = 0
            for finish in process.applies:
                self.world.after(MS, finish)
            if id == bridged:  # By a clock that hardly runs it would not notice in time that it reaches one only.
                process.set_rate(1.0)
                process.wake()
            elif id not in majority and not process.outdated:
                if process.node is not None:
                    process.kill(None)
                process.life += 1
            elif process.node is None:
                if process.good_rows is not None:
                    process.rows.put_back(process.good_rows)
                    process.good_rows = None
                process.boot()
            else:
                process.set_rate(1.0)
                self.world.after(MS, process.complete)  # A slow disk is fast again.
                process.wake()
        chosen = [self.world.processes[id] for id in majority]
        for id, process in self.world.processes.items():
            if process.node is None:
                self.world.network.directory.pop(id, None)  # A client need not look for it: records age.
        limit = self.world.now + 20 * self.plan.settings.election_timeout_ms * MS
        client = Client(self.world, len(self.world.clients), idle=True)
        self.world.clients.append(client)
        # First a read: a leader must be able to answer it before anybody writes.
        key = f"c{KEYS}"
        future = client.propose({"op": "get", "key": key})
        written = False
        asked = chosen[0].node
        adds = {group: self.world.companions.add(chosen[0], group) for group in self.plan.companions}
        most = self.world.report.events + _EVENTS
        while self.world.now < limit and self.world.queue and self.world.report.events < most:
            self.world.step()
            for group, add in adds.items():  # A process that stops takes what it was asked along.
                if chosen[0].node is not asked or (add.done() and add.exception(0) is not None):
                    adds[group] = self.world.companions.add(chosen[0], group)
            asked = chosen[0].node
            if not future.done():
                continue
            if future.exception(0) is not None:  # Its own time was up first: ask again.
                future = client.propose({"op": "add", "key": key, "value": 1} if written else {"op": "get", "key": key})
            elif not written:
                written, future = True, client.propose({"op": "add", "key": key, "value": 1})
            elif (
                self.converged(chosen)
                and all(self.world.companions.agree(chosen, *each) for each in adds.items())
                and not self._unwanted()
            ):
                self.world.companions.check_counters()
                self._divergence(chosen, client)
                self.world.settled.reach(chosen)
                self.world.broken.reach(client)
                return
        if self._unwanted():
            raise Violation(f"identity: {', '.join(self._unwanted())} runs on, though all others know a later life")
        raise Violation(f"liveness: {', '.join(sorted(majority))} did not elect, commit and converge in time")

    def _unwanted(self) -> list[str]:
        """Who runs on an older file, or on a directory of which a copy was started: they must be told to stop.

        But for one that waits to be added: it says nothing before somebody speaks to it, and nobody does.
        """
        members = self.world.newest()[0].disk.members().members()
        older = [each for each in self.world.processes.values() if each.outdated]
        running = [each for each in (*older, *self.world.originals) if each.node is not None]
        return [each.id for each in running if each.id in members or each.driver().raft.configuration.voters]

    def is_bereft(self) -> bool:
        """Whether nobody can go on: a demotion was on its way when a disk was lost, which all the others now need.

        Or that disk alone, beside a witness's, held the newest entries.
        """
        newest, known = self.world.newest()
        members, lost = newest.disk.members(), any(each.lost for each in self.world.processes.values())
        voters = [each for each in known if members.is_voter(each.id)]  # A learner that holds it all cannot help.
        if lost and voters and max(voters, key=self.world.rank).id in self.plan.witnesses:
            return True
        return bool(members.voters) and not is_quorum(members, {each.id for each in known})

    def _majority(self) -> list[str]:
        fitting = [each.id for each in self.world.processes.values() if not each.displaced]
        return self.random.sample(fitting, len(self.plan.ids) // 2 + 1)

    def _divergence(self, chosen: list[Process], client: Client) -> None:
        """A replica whose state was changed is named, by digests, before much more is applied."""

        def is_named() -> bool:
            return any(each.node is not None and each.driver()._diverged for each in self.world.processes.values())

        def is_there() -> bool:
            return any(each.node is not None and each.driver().machine.flipped for each in chosen)

        leader = self.world.leading()
        members = leader.driver().raft.configuration.members() if leader is not None else []
        comparable = [
            each
            for each in chosen
            if each.node is not None and each.id in members and each.id not in self.plan.witnesses
        ]
        if self.plan.settings.digest_entries and "diverge" in self.plan.faults and not is_there() and comparable[1:]:
            # Whoever was changed before has started anew since, or taken another state over.
            self.world.faults.processes.diverge(self.random.choice(comparable))
        limit = self.world.now + 40 * self.plan.settings.election_timeout_ms * MS
        future = None
        while is_there() and not is_named():
            if future is None or future.done():
                future = client.propose({"op": "add", "key": f"c{KEYS}", "value": 1})
            if self.world.now > limit:
                raise Violation("divergence: a state differs from the others, and nobody says so")
            self.world.step()

    def _majority_of_the_newest(self) -> list[str]:
        """Enough to elect whoever has the newest log, by its own configuration, whatever the others know of it."""
        newest, known = self.world.newest()
        members = newest.disk.members()
        if not members.is_voter(newest.id) or self.random.random() < 0.3:
            return [each.id for each in known]
        chosen = [newest.id]
        # Those first who know least, perhaps not even that they are voters.
        for each in sorted(known, key=lambda each: (each.disk.members().is_voter(each.id), each.disk.last)):
            id = each.id
            if id not in chosen and not is_quorum(members, set(chosen)):
                chosen.append(id)
        return chosen

    def _bridged(self, majority: list[str]) -> str | None:
        """A leader that is left running, and reaches one of the majority only: it must not hinder the others."""
        leading = [each.id for each in self.world.leaders()]
        if not leading or len(self.plan.ids) < 4 or self.random.random() < 0.5:
            return None
        bridged = leading[-1]
        if bridged in majority:
            majority[majority.index(bridged)] = self.random.choice([id for id in self.plan.ids if id not in majority])
        for id in self.plan.ids:
            if id not in (bridged, majority[0]):
                self.world.network.cut_until[bridged, id] = self.world.network.cut_until[id, bridged] = NEVER
        return bridged

    def converged(self, chosen: list[Process]) -> bool:
        """Whether these hold the same, and no change of the members is under way."""
        leading = self.world.leaders()
        if not leading:
            return False
        members = max(leading, key=lambda each: each.term).driver().raft.configuration
        if members.outgoing or (members.joining and len(chosen) == len(self.plan.ids)):
            return False
        chosen = [each for each in chosen if each.id in members.members()]
        drivers = [each.driver() for each in chosen if each.node is not None]
        full = [driver for driver in drivers if driver.id not in self.plan.witnesses]
        return (
            len(drivers) == len(chosen)
            and len({driver.applied for driver in drivers}) == 1
            and len({driver.machine.history for driver in full}) <= 1
        )
