"""A node as a process: it starts, takes its turns, writes, applies, and dies; its disk stays."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from raftplug import plain
from raftplug.errors import Corrupt, DiskFull, RaftplugError, Removed, StorageFailed, WrongDirectory
from raftplug.frames import Id
from raftplug.node import NodeLoop
from raftplug.storage import RecordStorage, Write
from raftplug.testing.simulation.account import Account
from raftplug.testing.simulation.deadlines import Deadlines
from raftplug.testing.simulation.disk import SimulatedRows
from raftplug.testing.simulation.machines import DiskRegister, Register
from raftplug.testing.simulation.network import Link
from raftplug.testing.simulation.observer import Observer
from raftplug.testing.simulation.part import Part
from raftplug.testing.simulation.plan import GROUP, MS
from raftplug.testing.simulation.report import Violation
from raftplug.threads import run_here

if TYPE_CHECKING:
    from raftplug.testing.simulation.world import Simulation


_UPTIME_US = 30 * 24 * 3_600 * 1_000_000  # A machine may have been on for so long when a process starts on it.


@dataclass(frozen=True, slots=True)
class Older:
    """A disk as it was, and what was known of it.

    Args:
        boots: how often a process had started on it.
        rows: all of them.
        disk: what the checks knew.
        configuration: by which its process went.
    """

    boots: int
    rows: dict[tuple[str, str], dict[int, bytes]]
    disk: Account
    configuration: Any


class Process(Part):
    """A node's process: what dies with it, and its disk, which does not.

    Args:
        world: in which it lives.
        id: of the node.
        configuration: with which its first disk is made.
    """

    def __init__(self, world: Simulation, id: str, configuration: Any) -> None:
        super().__init__(world)
        self.id = id
        self.first = configuration
        self.configuration = configuration  # As of the last look.
        self.node: NodeLoop | None = None
        self.link: Link | None = None
        self.life = 0
        self.boots = 0  # How often the disk was started on.
        self.wake_at = -1  # When there is to be a turn …
        self.timers: list[int] = []  # … and when timers come, the last one first; one may come before.
        self.paused_until = 0
        self.started_at = 0
        self.rate = 1.0
        self.offset = 0
        self._heartbeat_us = self.plan.settings.heartbeat_ms * MS
        self.disk_us = 300
        self.job: Callable[[], None] | None = None
        self.complete: Callable[[], None] = lambda: None
        self.apply_us = 0
        self.applies: list[Callable[[], None]] = []  # What machines are at: calls that end it.
        self.heard: dict[Id, int] = {}  # From whom frames came, and when, by our own clock.
        self.observer = Observer(self)
        self.deadlines = Deadlines(id)
        # What the checks remember of this life.
        self.state: tuple[int, ...] = ()  # What the last look found of the rules' state: see `Invariants.check`.
        self.term = self.commit = self.applied = 0
        self.last_as_leader: tuple[int, int, int] | None = None  # term, last index, its check
        self.turned_at = self.late_at = 0  # By our own clock: the last turn, and the last that was late.
        self.quiet_under: dict[str, tuple[int, Any, int]] = {}  # Term, leader and its life, of each quiet group.
        self.led_from = 0  # Where its log ended when it was elected.
        self.elected_at = self.term_asked = self.term_campaigned = 0
        self.struck = b""  # The snapshot that it fetched when it was killed for that …
        self.waited = b""  # … and the last one that it could not take over yet.
        self.kept: list[bytes] = []  # The snapshots of this life, the current one last, by digest …
        self.given: dict[bytes, int] = {}  # … and when, by our own clock, a piece of each was given last.
        # The latest life of each directory of which it took something, by id and uuid; its disk must keep it.
        self.heard_lives: dict[tuple[Id, bytes], tuple[int, int]] = {}
        # Its disk.
        self.rows = SimulatedRows(id)
        self.good_rows: Any = None  # The rows before they were damaged.
        self.lost: list[Account] = []  # Of disks that it had.
        self.displaced = False  # On another disk than the one by which it still is a member, or with an older life.
        self.mistaken = False  # An operator founds it again, though its group is there.
        self.outdated = False  # That disk was put back as it was.
        self.older: Older | None = None
        self._new_disk(configuration)

    def driver(self) -> Any:
        """That of the group which is looked at closely; None while the process is down."""
        return self.node.drivers[GROUP] if self.node is not None else None

    def clock(self) -> int:
        """Its monotonic clock, µs."""
        run = self.world.now - self.started_at
        return self.offset + (run if self.rate == 1.0 else int(run * self.rate))

    def heard_since(self, oldest: int) -> set[str]:
        """Of whom there were frames since then, by its own clock; itself among them."""
        return {id for id in self.plan.ids if self.heard.get(id, -1) >= oldest} | {self.id}

    def set_rate(self, rate: float) -> None:
        """Let its clock run so fast from now on."""
        self.offset, self.started_at, self.rate = self.clock(), self.world.now, rate

    # ------------------------------------------------------------------ disk

    def disks(self, known: bytes | None = None) -> list[Account]:
        """This disk and those that are lost; only the one with this uuid, if there is one."""
        disks = self.lost if self.outdated else [self.disk, *self.lost]
        return disks if known is None else [disk for disk in disks if disk.storage == known]

    def holds(self, index: int, check: int, known: bytes | None = None) -> bool:
        """Whether the entry is, or was, on such a disk."""
        return any(disk.durable.get(index) == check or disk.base >= index for disk in self.disks(known))

    def voted_for(self, id: Any, term: int, known: bytes | None = None) -> bool:
        """Whether it voted so on such a disk."""
        return any(disk.votes.get(term) == id for disk in self.disks(known))

    def record(self, write: Write, storage: RecordStorage) -> None:
        """A write is on the disk now."""
        self.disk.record(self.id, write, storage, self.world.core)
        if write.snapshot is not None:
            self.kept.append(write.snapshot.digest)

    def keep_copy(self) -> Older:
        """The disk as it is now."""
        return Older(self.boots, self.rows.copy(), self.disk.copy(), self.configuration)

    def put_back(self) -> None:
        """Make the disk what it was; what was on it is lost."""
        older, self.older = self.older, None
        if older is None:
            return
        self.lost = self.disks()
        self.outdated = True
        self._take(older)

    def _take(self, older: Older) -> None:
        self.rows.put_back(older.rows)
        self.rows.full = self.rows.failing = False
        self.good_rows, self.term_asked = None, 0
        self.disk, self.configuration = older.disk, older.configuration

    def copied(self) -> Process:
        """Another process, on a copy of the disk."""
        other = copy.copy(self)
        other.rows = copy.copy(self.rows)
        other.node, other.link, other.applies = None, None, []
        other.wake_at, other.timers = -1, []
        other.heard, other.quiet_under = {}, {}
        other.lost = list(self.lost)
        other._take(self.keep_copy())
        return other

    def _new_disk(self, configuration: Any) -> None:
        self.disk = Account(configuration)
        storage = RecordStorage(
            self.rows, self.id, cluster=self.world.uuid, bootstrap=True, entropy=self.random.randbytes
        )
        storage.create_all([GROUP, *self.plan.companions], plain.encode(configuration.plain()))
        self.disk.storage = storage.identity.storage

    def lose_disk(self, configuration: Any) -> None:
        """An empty disk takes the place of this one; the configuration is what a new node is started with."""
        self.lost = self.disks()
        self.outdated, self.older, self.mistaken = False, None, False
        self.rows.put_back({})
        self.good_rows, self.term_asked = None, 0
        self.rows.full = self.rows.failing = False
        self.configuration = configuration
        self._new_disk(configuration)

    # ------------------------------------------------------------------ life

    def boot(self) -> None:
        """Start on the disk as it is."""
        self.life += 1
        self.wake_at, self.timers = -1, []
        self.started_at = self.world.now
        self.offset = self.random.randint(0, _UPTIME_US)
        self.rate = 1.0
        self.paused_until = 0
        self.job = None
        self.rows.failing = False
        self.disk_us = self.random.choice((100, 300, 2_000))
        self.apply_us = 0
        self.applies = []
        self.observer = Observer(self)
        self.deadlines = Deadlines(self.id)
        settings = self.plan.settings
        if self.world.may("little_room"):
            self.world.fault("little_room", self.id)
        if "reluctant_node" in self.plan.faults and self.id == self.plan.reluctant:
            self.world.fault("reluctant_node", self.id)
            settings = replace(settings, lead_reluctance=1)
        machine = self.random.choice(self.plan.machines)(self.world.ledger)
        if isinstance(machine, DiskRegister):
            machine.open(self.disk.machine)
        life = self.life
        try:
            storage = RecordStorage(self.rows, self.id, entropy=self.random.randbytes)
            link = Link(self.world, self.id, self.wake)
            node = NodeLoop(
                storage=storage,
                cluster=link,
                machines={GROUP: machine} | {group: Register() for group in self.plan.companions},
                settings=settings,
                executor=lambda job, done: self._execute(life, storage, job, done),
                clock=self.clock,
                generator=random.Random(self.random.getrandbits(32)),
                core=self.world.core,
                apply_executor=lambda job, done: self._apply(life, job, done),
                on_event=lambda name, **arguments: self.observer.observe(name, arguments),
                keys=self.world.keys.of(self.id),
            )
        except DiskFull:
            self.world.after(500 * MS, self.boot_if_down)
            return
        except Corrupt:
            # An operator puts the good disk back.
            if self.good_rows is not None:
                self.rows.put_back(self.good_rows)
            elif not self.rows.mend_pieces():
                raise Violation(f"durability: {self.id} finds a disk damaged that nobody damaged") from None
            self.good_rows = None
            self.world.note("restored", self.id)
            self.boot()
            return
        except Exception as error:
            raise Violation(f"no crash: {self.id} does not start: {type(error).__name__}: {error}") from error
        if self.good_rows is not None:
            good = SimulatedRows(self.id)
            good.put_back(self.good_rows)
            self.good_rows = None
            undamaged = RecordStorage(good, self.id, entropy=random.Random(self.id).randbytes)
            groups = (GROUP, *self.plan.companions)
            if any(self._used(storage, group) != self._used(undamaged, group) for group in groups):
                raise Violation(f"corruption: {self.id} started on a damaged disk")
        self.node, self.link = node, link
        self.world.network.links[self.id] = link
        if self.world.may("old_inbox") and self.random.random() < 0.3:
            self.world.fault("old_inbox", self.id)
            link.read_to = 0
            self.world.network.reread(link)
        identity = storage.identity
        self.world.messages.boots[identity.nonce] = self.boots = identity.boot
        if self.outdated:
            self.world.messages.false.add(identity.nonce)
        self.heard_lives = dict(self.disk.kept_lives)
        for each in node.drivers.values():
            each._send = each.quiescence._send = self.world.messages.speech(self, each._send)
            each.receive = self.world.messages.hearing(self, each.receive)  # type: ignore[method-assign]
        self.quiet_under = {}
        driver = self.driver()
        self.kept = [driver.snapshots.current.digest] if driver.snapshots.current is not None else []
        self.given = {}
        self.commit, self.applied = driver.raft.commit, driver.applied
        if driver.raft.term < self.disk.term:
            raise Violation(f"durability: {self.id} forgot term {self.disk.term}")
        self.term = driver.raft.term
        self.state, self.last_as_leader = (), None
        self.world.note("boot", self.id, driver.raft.term, driver.raft.log.last_index)
        self.wake()

    def _used(self, storage: RecordStorage, group: str) -> Any:
        """What a start reads.  Nothing reads entries that a snapshot covers: damage there harms nobody."""
        stored = storage.load(group)
        if stored is None:
            return None
        log = stored.log(self.world.core)
        return stored.term, stored.vote, stored.snapshot, log.slice(log.base_index + 1, log.last_index + 1)

    def boot_if_down(self) -> None:
        """Start, unless it runs, or a copy of its directory does."""
        if self.node is None and self.world.processes[self.id] is self:
            self.boot()

    def kill(self, restart_after: int | None) -> None:
        """Be gone, with all that is not on the disk; back after so many µs, if at all."""
        self.node = None
        self.job = None
        if self in self.world.originals:
            self.world.originals.remove(self)
        else:
            self.world.network.links.pop(self.id, None)
        self.world.note("down", self.id)
        if restart_after is not None:
            self.world.after(restart_after, self.boot_if_down)

    def end(self, restart_after: int | None) -> None:
        """Stop as a node does on request, or must: each caller that waits for it is answered; then be gone."""
        if self.node is not None:
            self.node.close()
            self.deadlines.check_closed()
        self.kill(restart_after)

    def wake(self, delay: int = 0) -> None:
        """Take a turn in so many µs, or before."""
        now = self.world.now
        at = now + delay if delay > 0 else now
        if self.wake_at < 0 or at < self.wake_at or self.wake_at < now:
            self.wake_at = at
            if not self.timers or at < self.timers[-1]:  # One that comes too early is set again then.
                self.timers.append(at)
                self.world.after(at - now, self._turn, self.life)

    def _turn(self, life: int) -> None:
        node, now = self.node, self.world.now
        if life == self.life:
            self.timers.pop()
        if node is None or life != self.life or now != self.wake_at:
            self.world.report.events -= 1  # A timer that was overtaken is no event.
            if node is not None and life == self.life and self.wake_at > now:
                later, self.wake_at = self.wake_at, -1
                self.wake(later - now)
            return
        self.wake_at = -1
        if now < self.paused_until:
            self.wake(self.paused_until - now)
            return
        clock = self.clock()
        if self.link is not None and self.link.arrived:
            self.heard.update(dict.fromkeys(self.link.arrived, clock))
            self.link.arrived.clear()
        if clock - self.turned_at > self._heartbeat_us:
            self.late_at = clock
        self.turned_at = clock
        try:
            node.turn()
        except WrongDirectory:
            if not (self.displaced or self.mistaken):
                raise Violation(f"no crash: {self.id} is not known by its own disk") from None
            self.world.note("stops", self.id, "WrongDirectory")
            self.end(None)
            if not self.displaced:
                self.displaced = True
                self.world.faults.directories.replace(self.id)
            return
        except (StorageFailed, Removed) as error:
            self.world.note("stops", self.id, type(error).__name__)
            self.end(self.random.randint(1, 2_000) * MS)
            return
        except Corrupt as error:  # In a snapshot that it is asked for, and did not read itself when it started.
            if not self.rows.mend_pieces():
                raise Violation(f"durability: {self.id} finds damage that nobody did: {error}") from None
            self.world.note("stops", self.id, "Corrupt")
            self.end(self.random.randint(1, 2_000) * MS)
            return
        except Violation:
            raise
        except Exception as error:
            raise Violation(f"no crash: {self.id} stops: {type(error).__name__}: {error}") from error
        self.deadlines.check(clock)
        self.world.invariants.check(self, clock)
        due = node.due()
        if due and self.rate == 1.0:
            self.wake(due - clock + 1)
        else:
            self.wake(int((due - clock) / self.rate) + 1 if due else 0)

    def _execute(
        self,
        life: int,
        storage: RecordStorage,
        job: Callable[[], None],
        done: Callable[[BaseException | None], None],
    ) -> None:
        """A commit of the node's: durable after a while, and heard of then."""
        heard = dict(self.heard_lives)

        def durable() -> None:
            job()
            self.disk.kept_lives.update(heard)
            for _, write in self.node._writing if self.node is not None else ():
                if write.group == GROUP:
                    self.record(write, storage)
                    if write.pieces and self.world.may("snapshot_piece_rot"):
                        self.world.faults.disks.rot_at_the_end(self)

        def complete() -> None:
            if self.life != life or self.node is None or self.job is not durable:
                return
            self.job = None
            error: BaseException | None = None
            try:
                durable()
            except RaftplugError as raised:
                error = raised
            self.world.note("synced", self.id, type(error).__name__ if error else "")
            done(error)
            self.wake()

        self.job = durable
        self.complete = complete
        self.world.after(max(1, int(self.random.expovariate(1 / self.disk_us))), complete)

    def _apply(self, life: int, job: Callable[[], None], done: Callable[[BaseException | None], None]) -> None:
        """What a state machine does: within the turn, or over a while in a thread of its own."""
        if not self.apply_us:
            run_here(job, done)
            return

        def finish() -> None:
            node = self.node
            if self.life != life or node is None or finish not in self.applies:
                return
            if self.world.now < self.paused_until:
                self.world.after(self.paused_until - self.world.now, finish)
                return
            self.applies.remove(finish)
            run_here(job, lambda error: node.call(done, error))
            self.wake()

        self.applies.append(finish)
        self.world.after(self.random.randint(1, self.apply_us), finish)
        slow = self.apply_us >= 3_000 * MS
        if slow and self.world.strikes("isolate"):  # So that a snapshot comes while the machine is at work.
            self.world.faults.network.isolate(self.id, 3_000 * MS)
