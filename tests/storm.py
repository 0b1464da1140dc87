"""A seeded storm over the rules alone: loss, repeats, disorder, crashes, slow disks, cuts; checked after every event.

    python tests/storm.py --seeds 1000 [--start 0] [--events 3000] [--core cython]

`raftplug sim` runs whole nodes; here nothing lies between the events and the rules, so that turns, writes and
completions come in orders that no driver would choose, and a seed takes milliseconds.  Everything is decided by the
seed; the digest of a run is the same on both cores.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
from collections.abc import Callable
from typing import Any

from raftplug.constants import (
    APPEND_RESPONSE,
    FOLLOWER,
    LEADER,
    PRE_VOTE,
    PRE_VOTE_RESPONSE,
    SNAPSHOT,
    TRANSITION,
    VOTE,
    VOTE_RESPONSE,
)
from raftplug.errors import RaftplugError
from rules import ELECTION, HEARTBEAT, Disk

MOST_IN_FLIGHT = 300


class Violation(Exception):
    """An invariant does not hold; its message names it and the event."""


class Replica:
    """One replica's disk, and what the checks remember of its present life."""

    def __init__(self, core: Any) -> None:
        self.disk = Disk(core)
        self.votes: dict[int, Any] = {}
        self.raft: Any = None
        self.writing: Any = None
        self.slow = False  # Its disk takes its time.
        self.asleep = False  # It neither hears anything nor looks at the clock, as a stopped process.
        self.term = self.commit = 0
        self.led: tuple[int, int, int] | None = None  # term, last index, its check
        self.reads: dict[int, int] = {}  # request -> what was committed when it was asked
        self.accepted: dict[int, int] = {}  # index -> term of what was proposed here and is neither applied nor dropped


class Storm:
    """One run.  `digest` is over everything that was sent, written, answered and dropped.

    Raises:
        Violation: from `run`, with the seed.
    """

    def __init__(self, core: Any, seed: int, size: int | None = None) -> None:
        self.core = core
        self.seed = seed
        chance = self.random = random.Random(seed)
        size = size or chance.choice((3, 3, 4, 5))
        self.ids = list(range(1, size + 1))
        voters = self.ids[:-1] if size > 3 and chance.random() < 0.2 else self.ids
        self.configuration = core.Configuration(tuple(voters), (), tuple(self.ids[len(voters) :]))
        self.voters = voters
        self.now = 1_000_000
        self.events = 0
        self.hash = hashlib.blake2b(digest_size=16)
        self.net: list[tuple[int, int, bytes]] = []
        self.cut: set[tuple[int, int]] = set()
        self.quiet = False
        self.limits = {
            "max_append_bytes": chance.choice((30, 100, 65536)),
            "window_bytes": chance.choice((1, 200, 262144)),
            "window_appends": chance.choice((1, 3, 128)),
        }
        self.drop = chance.choice((0.0, 0.02, 0.1, 0.3))
        self.repeat = chance.choice((0.0, 0.05, 0.2))
        self.disorder = chance.choice((0.0, 0.2, 0.8))
        self.pace = chance.choice((200, 1_000, 5_000))  # microseconds an event, on average half
        self.patience = chance.choice((0.7, 0.95, 1.0))
        self.deeds = [
            (self.arrive, 50),
            (self.look_at_the_clock, 14),
            (self.complete, chance.choice((3, 12, 30))),
            (self.propose, chance.choice((1, 6, 12))),
            (self.read, 3),
            (self.snapshot, chance.choice((0, 0.3, 2))),
            (self.crash, chance.choice((0, 0.1, 0.6))),
            (self.change_the_links, chance.choice((0, 0.3, 1))),
            (self.change_a_disk, chance.choice((0, 0.5))),
            (self.doze, chance.choice((0, 0.3, 1))),
            (self.resign, 0.02),
            (self.look, 2),
        ]
        self.checks: dict[tuple[int, int], int] = {}
        self.committed: dict[int, int] = {}
        self.highest = 0
        self.leaders: dict[int, int] = {}
        self.requests = 0
        self.replicas = {id: Replica(core) for id in self.ids}
        for id in self.ids:
            self.boot(id)

    # ------------------------------------------------------------------- run

    def run(self, events: int) -> Storm:
        """So many events, then a majority without faults, which must elect, commit, answer and agree."""
        deeds, weights = [deed for deed, _ in self.deeds], [weight for _, weight in self.deeds]
        try:
            for deed in self.random.choices(deeds, weights, k=events):
                self.events += 1
                self.now += self.random.randrange(self.pace)
                deed(self.random.choice(self.ids))
            self.calm()
        except RaftplugError as error:
            self.fail(f"the rules refuse what an honest replica said: {error}")
        return self

    @property
    def digest(self) -> str:
        return self.hash.hexdigest()

    def fail(self, what: str) -> None:
        raise Violation(f"{what}: seed {self.seed}, event {self.events}")

    def boot(self, id: int) -> None:
        replica = self.replicas[id]
        stored = replica.disk.log
        log = self.core.Log(stored.base_index, stored.base_term, stored.base_check)
        if stored.last_index > stored.base_index:
            log.restore(stored.slice(stored.base_index + 1, stored.last_index + 1))
        replica.raft = self.core.Raft(
            id,
            self.configuration,
            log,
            replica.disk.term,
            replica.disk.vote,
            self.now,
            ELECTION,
            HEARTBEAT,
            lambda bound: self.random.randint(0, bound),
            **self.limits,
        )
        replica.writing = replica.led = None
        replica.term, replica.commit = replica.disk.term, log.base_index
        replica.reads, replica.accepted = {}, {}

    # ---------------------------------------------------------------- events

    def arrive(self, id: int) -> None:
        chance = self.random
        if not self.net:  # Nothing to wait for but a disk or the time.
            if chance.random() < self.patience and any(each.writing is not None for each in self.replicas.values()):
                self.complete(id)
            else:
                self.now = max(self.now, self.replicas[id].raft.deadline())
                self.look_at_the_clock(id)
            return
        place = chance.randrange(len(self.net)) if chance.random() < self.disorder else 0
        source, target, data = self.net[place]
        if self.quiet or chance.random() >= self.repeat:
            del self.net[place]
        if (source, target) in self.cut or (not self.quiet and chance.random() < self.drop):
            return
        if self.replicas[target].asleep:
            return
        message = self.core.Message.decode(data)
        raft = self.replicas[target].raft
        raft.set_time(self.now)
        before = (raft.term, raft.vote, raft.role, raft.deadline()) if message.kind == PRE_VOTE else None
        raft.step(message, source)
        if before is not None and before != (raft.term, raft.vote, raft.role, raft.deadline()):
            self.fail(f"pre-vote: {target} changed by being asked")
        self.turn(target)

    def look_at_the_clock(self, id: int) -> None:
        raft = self.replicas[id].raft
        if raft.deadline() <= self.now and not self.replicas[id].asleep:
            raft.tick(self.now)
            self.turn(id)
            if raft.role == LEADER:
                heard = {peer for peer, each in raft.progress.items() if self.now - each.contact < 2 * ELECTION}
                if not self.configuration.has_quorum(heard | {id}):
                    self.fail(f"check-quorum: {id} leads and has heard no quorum for two election timeouts")

    def complete(self, id: int) -> None:
        """A write that is under way becomes durable."""
        id = self.one_that(id, lambda replica: replica.writing is not None)
        replica = self.replicas[id]
        if replica.writing is None or (replica.slow and self.random.random() < 0.9):
            return
        self.store(id)
        replica.raft.set_time(self.now)
        replica.raft.persisted()
        self.turn(id)

    def store(self, id: int) -> None:
        replica, ready = self.replicas[id], self.replicas[id].writing
        replica.writing = None
        if ready.term < replica.disk.term:
            self.fail(f"durability: the term on the disk of {id} goes back")
        if ready.vote is not None and replica.votes.setdefault(ready.term, ready.vote) != ready.vote:
            self.fail(f"one vote a term: {id} voted for {replica.votes[ready.term]} and {ready.vote}")
        if replica.disk.term == ready.term and replica.disk.vote not in (None, ready.vote):
            self.fail(f"one vote a term: {id} takes back its vote in term {ready.term}")
        replica.disk.write(ready)

    def one_that(self, id: int, wanted: Callable[[Replica], bool]) -> int:
        """Any replica that is wanted, else replica `id`."""
        found = [each for each in self.ids if wanted(self.replicas[each])]
        return self.random.choice(found) if found else id

    def propose(self, id: int) -> None:
        id = self.one_that(id, lambda replica: replica.raft.role == LEADER)
        raft = self.replicas[id].raft
        if raft.role == LEADER:
            index = raft.propose(TRANSITION, b"%d" % self.events * self.random.choice((1, 1, 9)))
            self.replicas[id].accepted[index] = raft.term
            if self.random.random() < 0.7:  # Else the next turn takes several at once.
                self.turn(id)

    def read(self, id: int) -> None:
        id = self.one_that(id, lambda replica: replica.raft.role == LEADER)
        raft = self.replicas[id].raft
        if raft.role == LEADER:
            self.requests += 1
            self.replicas[id].reads[self.requests] = self.highest
            raft.read(self.requests)
            self.turn(id)

    def snapshot(self, id: int) -> None:
        replica = self.replicas[id]
        low, high = replica.raft.snapshot_index, replica.raft.applicable()
        if low < high:
            index, keep = self.random.randint(low + 1, high), self.random.choice((0, 0, 3))
            if index - keep > replica.disk.log.base_index:
                replica.disk.log.compact(index - keep)
            replica.raft.snapshot_stored(index, keep)
            self.turn(id)

    def crash(self, id: int) -> None:
        if self.replicas[id].writing is not None and self.random.random() < 0.5:
            self.store(id)  # It was durable, and nobody was told.
        self.boot(id)
        self.turn(id)

    def change_the_links(self, id: int) -> None:
        choice = self.random.random()
        if choice < 0.5:
            self.cut.clear()
        elif choice < 0.7:
            self.cut |= {(id, other) for other in self.ids} | {(other, id) for other in self.ids}
        elif choice < 0.85:
            half = set(self.random.sample(self.ids, len(self.ids) // 2))
            self.cut = {(a, b) for a in self.ids for b in self.ids if (a in half) != (b in half)}
        else:
            self.cut.add((id, self.random.choice(self.ids)))

    def change_a_disk(self, id: int) -> None:
        self.replicas[id].slow = not self.replicas[id].slow

    def doze(self, id: int) -> None:
        """A process stands still, most likely a leader, and does not know it when it goes on."""
        id = self.one_that(id, lambda replica: replica.raft.role == LEADER or replica.asleep)
        self.replicas[id].asleep = not self.replicas[id].asleep

    def resign(self, id: int) -> None:
        self.replicas[id].raft.resign()
        self.turn(id)

    def look(self, id: int) -> None:
        """A turn in which nothing may be written, as when the store is busy."""
        self.turn(id, may_write=False)

    # ---------------------------------------------------------------- checks

    def turn(self, id: int, may_write: bool = True) -> None:
        """Take what is ready, send it, and check everything that one replica can have broken."""
        replica = self.replicas[id]
        raft, disk = replica.raft, replica.disk
        ready = raft.ready(may_write)
        for message in ready.messages:
            self.check_sent(id, disk, message)
            if message.kind == SNAPSHOT:
                message.hint = raft.log.check_at(message.index)
            data = message.encode()
            self.hash.update(b"%d>%d" % (id, message.peer) + data)
            if not self.quiet or (id, message.peer) not in self.cut:
                self.net.append((id, message.peer, data))
        if len(self.net) > MOST_IN_FLIGHT and not self.quiet:
            del self.net[:-MOST_IN_FLIGHT]
        if ready.write:
            if replica.writing is not None:
                self.fail(f"one write at a time: {id} begins a second")
            replica.writing = ready
            self.hash.update(b"%d %d %r %d" % (id, ready.term, ready.vote, ready.first) + ready.block)
        for request, index in ready.reads:
            self.hash.update(b"%d answers %d at %d" % (id, request, index))
            asked = replica.reads.pop(request, None)
            if asked is None or index < asked or index > raft.commit:
                self.fail(f"linearizable reads: {id} reads at {index}, after {asked} was committed")
        for request in ready.failed_reads:
            if replica.reads.pop(request, None) is None:
                self.fail(f"no limbo: {id} answers a read twice")
        for index, _, term, payload in ready.truncated:
            self.hash.update(b"%d drops %d/%d" % (id, index, term) + payload)
            if replica.accepted.get(index) == term:
                del replica.accepted[index]
        self.check(id)

    def check_sent(self, id: int, disk: Disk, message: Any) -> None:
        """Nothing leaves before what it promises is on the disk."""
        kind = message.kind
        if kind in (PRE_VOTE, PRE_VOTE_RESPONSE):
            return
        if message.term != disk.term:
            self.fail(f"durability: {id} speaks in term {message.term} and {disk.term} is on its disk")
        if kind == VOTE and disk.vote != id:
            self.fail(f"durability: {id} asks for votes and its own is not on its disk")
        if kind == VOTE_RESPONSE and message.flag and disk.vote != message.peer:
            self.fail(f"durability: {id} grants a vote that is not on its disk")
        if kind == APPEND_RESPONSE and message.flag and message.index > disk.log.last_index:
            self.fail(f"durability: {id} acknowledges {message.index}, which is not on its disk")

    def check(self, id: int) -> None:
        replica = self.replicas[id]
        raft, log = replica.raft, replica.raft.log
        term, commit, last, base = raft.term, raft.commit, log.last_index, log.base_index
        if term < replica.term or commit < replica.commit:
            self.fail(f"monotony: term or commit index of {id} went back")
        if not base <= commit <= last or raft.stable > last:
            self.fail(f"order: {id} has base {base}, commit {commit}, stable {raft.stable}, last {last}")
        check = log.check_at(last)
        if self.checks.setdefault((last, log.last_term), check) != check:
            self.fail(f"log matching: {id} has another history up to {last}/{log.last_term}")
        if commit > replica.commit:
            for index in range(max(replica.commit, base) + 1, commit + 1):
                found = log.check_at(index)
                if self.committed.setdefault(index, found) != found:
                    self.fail(f"state machine safety: {id} commits another entry {index}")
            if commit > self.highest:
                self.highest = commit
                self.check_quorum_of_disks(commit, log.check_at(commit))
        elif self.committed.get(commit, 0) != log.check_at(commit) and commit:
            self.fail(f"no committed entry is replaced: {id} has another entry {commit}")
        replica.term, replica.commit = term, commit
        if raft.role == LEADER:
            self.check_leader(id, replica, raft, log, last, check)

    def check_quorum_of_disks(self, index: int, check: int) -> None:
        on_disk = 0
        for voter in self.voters:
            log = self.replicas[voter].disk.log
            on_disk += log.check_at(index) == check or log.base_index > index
        if 2 * on_disk <= len(self.voters):
            self.fail(f"durability: entry {index} is committed, and on {on_disk} disks only")

    def check_leader(self, id: int, replica: Replica, raft: Any, log: Any, last: int, check: int) -> None:
        term = raft.term
        if self.leaders.setdefault(term, id) != id:
            self.fail(f"election safety: {self.leaders[term]} and {id} lead term {term}")
        before = replica.led
        if before is not None and before[0] == term:
            if last < before[1] or (before[1] >= log.base_index and log.check_at(before[1]) != before[2]):
                self.fail(f"leader append-only: {id} changed its log in term {term}")
        elif self.highest > last or (
            self.highest > log.base_index and log.check_at(self.highest) != self.committed[self.highest]
        ):
            self.fail(f"leader completeness: {id} leads term {term} without what is committed")
        replica.led = (term, last, check)
        for peer, progress in raft.progress.items():
            match = progress.match
            if not 0 <= match < progress.next <= last + 1:
                self.fail(f"order: {id} has match {match}, next {progress.next} of {peer}, and last {last}")
            disk = self.replicas[peer].disk
            known = match > log.base_index and disk.term <= term and disk.log.base_index <= match
            if known and disk.log.check_at(match) != log.check_at(match):
                self.fail(f"durability: {id} counts {match}, which is not on the disk of {peer}")

    # -------------------------------------------------------------- liveness

    def calm(self) -> None:
        """A random majority is left alone: within 20 election timeouts it answers a read, commits and agrees."""
        chosen = sorted(self.random.sample(self.voters, len(self.voters) // 2 + 1))
        self.quiet, self.disorder = True, 0.0
        self.cut = {(a, b) for a in self.ids for b in self.ids if a not in chosen or b not in chosen}
        self.net = [each for each in self.net if each[:2] not in self.cut]
        if self.random.random() < 0.3:
            self.net.clear()
        for id in chosen:
            self.replicas[id].slow = self.replicas[id].asleep = False
            self.turn(id)
        end = self.now + 20 * ELECTION
        asked = written = (0, 0)  # In which term, and what.
        most = self.events + 20_000
        while self.now < end and self.events < most:
            self.events += 1
            busy = [id for id in chosen if self.replicas[id].writing is not None]
            if self.net:
                self.arrive(0)
                continue
            if busy:
                self.complete(busy[0])
                continue
            rafts = [self.replicas[id].raft for id in chosen]
            leader = next((raft for raft in rafts if raft.role == LEADER), None)
            if leader is not None and asked[0] != leader.term:
                self.requests += 1  # A leader must be able to answer before anybody writes.
                asked = (leader.term, self.requests)
                self.replicas[leader.id].reads[self.requests] = self.highest
                leader.read(self.requests)
                self.turn(leader.id)
                continue
            if leader is not None and asked[1] not in self.replicas[leader.id].reads:
                if written[0] != leader.term:
                    written = (leader.term, leader.propose(TRANSITION, b"last"))
                    self.turn(leader.id)
                    continue
                if all(raft.commit == raft.stable == raft.log.last_index >= written[1] for raft in rafts):
                    self.check_limbo(chosen)
                    return
            self.now = max(self.now, min(raft.deadline() for raft in rafts))
            for id in chosen:
                self.look_at_the_clock(id)
        self.fail(f"liveness: {chosen} did not elect, commit and agree")

    def check_limbo(self, chosen: list[int]) -> None:
        """What a living replica took is answered: reads by an index or a failure, proposals by the log or a drop."""
        for id in chosen:
            replica, log = self.replicas[id], self.replicas[id].raft.log
            if replica.reads:
                self.fail(f"no limbo: {id} never answered reads {sorted(replica.reads)}")
            for index, term in replica.accepted.items():
                if index > log.base_index and log.term_at(index) != term:
                    self.fail(f"no limbo: {id} replaced its proposal {index}/{term} and did not say so")
            if replica.raft.role not in (LEADER, FOLLOWER):
                self.fail(f"liveness: {id} still campaigns")


def main() -> int:
    from raftplug import core as cores

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--events", type=int, default=3_000)
    parser.add_argument("--core", default="cython")
    arguments = parser.parse_args()
    core = cores.load(arguments.core)
    events = failed = entries = 0
    for seed in range(arguments.start, arguments.start + arguments.seeds):
        storm = Storm(core, seed)
        try:
            storm.run(arguments.events)
        except Violation as violation:
            failed += 1
            print(violation, flush=True)
        events += storm.events
        entries += storm.highest
    print(f"{arguments.seeds} seeds, {events} events, {entries} entries committed, {failed} violations")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
