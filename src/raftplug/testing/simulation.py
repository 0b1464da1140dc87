"""The simulator: whole nodes and clients on a fake clock, network and disk, under faults, one seed at a time.

One thread, one seed, no wall clock: the same seed gives the same trace on both cores.  What runs is what runs in
production (`NodeLoop`, `Driver`, `RecordStorage`, `ClientLoop`); what is faked lies below it: the clock, the transport,
the rows of the disk, the process.  After every event the invariants of Raft are checked (Ongaro 2014, figure 3.2), and
that an acknowledgement means synced on a quorum of disks.  Then the faults stop for a random majority, which must
elect, commit and converge.

::

    report = Simulation(seed=7).run()
    assert report.violation is None, report.violation
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import heapq
import random
import struct
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from zlib import crc32

from raftplug import core as chosen_core
from raftplug import plain, snapshots
from raftplug.client import ClientLoop
from raftplug.cluster import Cluster
from raftplug.constants import (
    CANDIDATE,
    CONFIGURATION,
    FOLLOWER,
    LEADER,
    LEASE,
    LINEARIZABLE,
    PIECE,
    PIECE_REQUEST,
    SNAPSHOT,
    STALE,
    VOTE,
    VOTE_RESPONSE,
)
from raftplug.errors import Corrupt, DiskFull, OutcomeUnknown, RaftplugError, Removed, StorageFailed, WrongDirectory
from raftplug.events import LOST, Event, Subscription, call_for_each
from raftplug.frames import Id, cluster_uuid
from raftplug.future import Future
from raftplug.node import NodeLoop
from raftplug.recovery import sole_voter
from raftplug.redis_streams import START, Cursor
from raftplug.sessions import SESSION_TIMEOUT_US, Sessions
from raftplug.settings import Settings
from raftplug.state_machine import Snapshot, StateMachine
from raftplug.storage import Delete, MemoryRows, Put, RecordStorage, Write, pieces_named_by
from raftplug.testing import linearizability
from raftplug.threads import run_here

GROUP = "simulated"
COMPANIONS = ("idle", "idler")  # Groups that have little to do, and so go quiet, on the same nodes.
EVENTS = 8_000
_ENTRY = struct.Struct("<QQBII")
_MS = 1_000
_KEYS = 5
_LIVENESS_EVENTS = 200_000
_INBOX_ENTRIES = 50
_EVENTS_WAIT = 4
_NEVER = 1 << 62
_CHECK_STEPS = 1_000_000
_UPTIME_US = 30 * 24 * 3_600 * 1_000_000  # A machine may have been on for so long when a process starts on it.
_Send = Callable[[Id, int, bytes], None]

FAULTS: dict[str, str] = {
    "drop": "a frame is lost",
    "duplicate": "a frame is delivered twice",
    "delay": "a frame takes up to two seconds",
    "reorder": "a frame overtakes those before it",
    "replay": "an old frame is delivered again",
    "resend": "a node says something again, up to two seconds later, as if it were new",
    "late_vote": "the answer to a vote request takes up to two seconds",
    "lose_snapshot": "a snapshot that a leader offers is not heard of",
    "snapshot_piece_lost": "a piece of a snapshot, or the request for it, is lost",
    "snapshot_piece_damaged": "a piece of a snapshot arrives as something else",
    "snapshot_piece_rot": "a bit of what a process has fetched of a snapshot flips on its disk",
    "operator_snapshot": "an operator has some node make a snapshot now",
    "crash_in_fetch": "a process is killed while it fetches a snapshot",
    "cut_one_way": "a link loses everything in one direction for a while",
    "cut_both_ways": "a link loses everything in both directions for a while",
    "clog": "a link holds everything for a while, then delivers it at once",
    "isolate": "a node is cut off from all others for a while",
    "partition": "the nodes fall into two halves for a while",
    "redis_down": "the Redis takes and gives nothing for a while",
    "redis_flush": "everything that was under way is gone",
    "redis_lose_suffix": "one inbox loses what came last",
    "redis_full": "the Redis refuses every write for a while",
    "redis_rewind": "a successor of the Redis lacks an inbox's last entries, and its clock is behind",
    "old_inbox": "a process that starts reads again what its inbox still holds",
    "crash": "a process is killed; a write under way is lost",
    "crash_after_sync": "a process is killed after a sync and before it heard of it",
    "crash_new_leader": "a leader is killed a moment after its election",
    "cut_off_new_leader": "a leader loses some of its links a moment after its election",
    "restart_all": "all processes are killed at once",
    "pause": "a process stands still for a while, then goes on",
    "clock_fast": "a process's clock runs up to twice as fast",
    "clock_slow": "a process's clock runs two or ten times too slow",
    "clock_jump": "a process's monotonic clock leaps ahead",
    "slow_disk": "a process's writes take up to three seconds each for a while",
    "write_error": "a write fails, and nobody can say how much of it is on disk",
    "disk_full": "a disk has no space for a while",
    "bit_flip": "a bit on the disk of a dead process flips; its restart must notice",
    "row_loss": "a row on the disk of a dead process is gone; its restart must notice",
    "row_swap": "two rows on the disk of a dead process change places; its restart must notice",
    "lose_disk": "a node's disk is lost; it starts on an empty one, and an operator makes it a new member",
    "lose_quorum": "all disks but one are lost; an operator makes that one's node the only voter, then adds the others",
    "older_file": "a dead node's disk is put back as it was before its last start; the others must refuse it",
    "start_twice": "a copy of a running node's directory is started; the original must stop",
    "node_burst": "a node's own process proposes many transitions at once",
    "early_request": "a candidate hears its voters, and of clients that count on it, all at once",
    "mute_candidate": "a candidate is not heard by some any more once it has asked for votes",
    "strand_leader": "a leader is cut off from all others, and its clock hardly runs",
    "change_members": "an operator adds, removes, promotes or demotes a node, or adds a witness",
    "crash_in_change": "a leader is killed a moment after it began to change the members",
    "cut_off_newcomer": "a node is cut off from all others the moment it is to become a voter",
    "transfer_leadership": "an operator moves leadership to some node",
    "quiet_wanted": "nobody asks anything for a while, so that groups go quiet",
    "slow_apply": "a state machine takes up to ten seconds for whatever it does, for a while",
    "diverge": "a state machine's state changes by itself; its replica must be named",
    "reluctant_node": "a node that starts prefers not to lead, and waits longer before it campaigns",
    "deaf_leader": "a leader that hands over hears nobody any more once its successor campaigns, and is asked",
    "late_answers": "answers to a leader come up to a second late, and nothing else does; it is asked meanwhile",
    "early_rival": "all who hear a leader start anew while one who does not campaigns; the leader is asked meanwhile",
    "slow_observer": "an observer of a node's events takes none for a while; it is told how many it missed",
    "raising_observer": "an observer of a node's events raises at each of them",
    "client_crash": "a client is gone, with everything that it waited for",
    "client_burst": "a client begins many operations at once",
}


# What a seed may be about, beside what chance brings: nothing, elections that half succeed, snapshots, members, slow
# and broken state machines.
_THEMES: tuple[tuple[tuple[str, ...], dict[str, int]], ...] = (
    ((), {}),
    (
        ("mute_candidate", "cut_off_new_leader", "crash_new_leader", "node_burst", "late_vote", "resend", "isolate"),
        {"max_append_bytes": 200, "max_pending": 100_000},
    ),
    (
        ("lose_snapshot", "resend", "old_inbox", "redis_rewind", "crash", "cut_both_ways"),
        {"snapshot_entries": 20, "keep_entries": 0},
    ),
    (
        (
            "snapshot_piece_lost",
            "snapshot_piece_damaged",
            "snapshot_piece_rot",
            "crash_in_fetch",
            "operator_snapshot",
            "isolate",
            "cut_both_ways",
            "restart_all",
        ),
        {"snapshot_entries": 20, "keep_entries": 0, "snapshot_piece_bytes": 60, "snapshot_window_bytes": 150},
    ),
    (
        (
            "change_members",
            "cut_off_newcomer",
            "crash_in_change",
            "transfer_leadership",
            "lose_disk",
            "cut_off_new_leader",
            "crash",
        ),
        {},
    ),
    (
        ("quiet_wanted", "crash", "isolate", "cut_one_way", "pause", "clock_jump"),
        {"quiet_after_ms": 200},
    ),
    (
        ("slow_apply", "diverge", "lose_snapshot", "old_inbox", "cut_both_ways", "isolate"),
        {"snapshot_entries": 20, "keep_entries": 0, "digest_entries": 8, "max_unapplied_bytes": 2_000},
    ),
    (("lose_disk", "lose_quorum"), {}),
    (("older_file", "start_twice", "restart_all", "crash"), {}),
)
# Those of them that are long stories: mostly they are told where little else happens.
_LONG = tuple(
    theme for theme in _THEMES if theme[0][:1] in (("lose_disk",), ("older_file",)) or "crash_in_fetch" in theme[0]
)
_CLOCKS = frozenset({"clock_fast", "clock_slow", "clock_jump", "strand_leader"})
_OF_DIRECTORIES = frozenset({"lose_disk", "lose_quorum", "older_file", "start_twice"})
_THEMED = frozenset({"diverge"})  # Faults that happen only where a seed is about them.
# Somebody else leads while a leader may think that it has a lease: only where there are any.
_LEASED = ("deaf_leader", "late_answers", "early_rival")


class Violation(Exception):
    """An invariant does not hold; the first word of the message names it."""


@dataclass(slots=True)
class Report:
    """What a run found.

    Args:
        seed: of the run.
        events: how many there were.
        violation: None, or what does not hold and at which event.
        faults: how often each happened.
        chosen: those that could have.
        acknowledged, unknown: outcomes of the clients' writes.
        history: every client operation: see `raftplug.testing.linearizability`.
        trace_sha256: over the trace, which is the same on both cores.
        trace: its lines, if they were asked for.
    """

    seed: int
    events: int = 0
    violation: str | None = None
    faults: Counter[str] = field(default_factory=Counter)
    chosen: tuple[str, ...] = ()
    acknowledged: int = 0
    unknown: int = 0
    history: list[Recorded] = field(default_factory=list)
    trace_sha256: str = ""
    trace: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Recorded:
    """One operation of a client: when it was called and answered, and how.  An unknown outcome has no `answered`."""

    client: Id
    operation: dict[str, Any]
    called: int
    answered: int | None = None
    result: Any = None

    def as_operation(self) -> linearizability.Operation:
        """The same for the checker."""
        operation, known = self.operation, self.answered is not None
        return linearizability.Operation(
            self.client,
            operation["key"],
            operation["op"],
            operation.get("value"),
            operation.get("expect"),
            self.called,
            self.answered,
            self.result,
            known,
        )


class SimulatedRows(MemoryRows):
    """A disk: rows that are durable once `apply` returns, and can be damaged while nobody has them open."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.where = f"disk of {name}"
        self.full = False
        self.failing = False

    def apply(self, changes: Sequence[Put | Delete]) -> None:
        """Make the changes, unless there is no space or the disk fails."""
        if self.full:
            raise DiskFull(f"{self.where}: no space left")
        if self.failing:
            raise StorageFailed(f"{self.where}: input/output error")
        super().apply(changes)

    def rows(self) -> list[tuple[tuple[str, str], int]]:
        """Where every row is, in a fixed order."""
        return [(place, number) for place in sorted(self._values) for number in self._numbers[place]]

    def copy(self) -> dict[tuple[str, str], dict[int, bytes]]:
        """All rows, to put back later."""
        return {place: dict(rows) for place, rows in self._values.items()}

    def put_back(self, copy: dict[tuple[str, str], dict[int, bytes]]) -> None:
        """Make the rows those of `copy` again."""
        self._values = copy
        self._numbers = {place: sorted(rows) for place, rows in copy.items()}

    def value(self, place: tuple[str, str], number: int) -> bytes:
        """One row."""
        return self._values[place][number]

    def damage(self, place: tuple[str, str], number: int, value: bytes | None) -> None:
        """Change a row behind everybody's back; None removes it."""
        if value is None:
            del self._values[place][number]
            self._numbers[place].remove(number)
        else:
            self._values[place][number] = value


class Register(StateMachine):
    """The machine of the built-in workload: keys, and a checksum of everything that was ever applied."""

    def __init__(self, applied: Callable[[int, int], None] = lambda count, history: None) -> None:
        self.values: dict[str, Any] = {}
        self.count = 0
        self.history = 0
        self.flipped = 0  # No transition touches it, and no answer shows it: only a fault changes it.
        self._applied = applied

    def apply_transition(self, transition: Any) -> Any:
        self.count += 1
        self.history = crc32(plain.encode(transition), self.history)
        self._applied(self.count, self.history)
        operation, key = transition["op"], transition["key"]
        old = self.values.get(key)
        if operation == "put":
            self.values[key] = transition["value"]
            return None
        if operation == "delete":
            return self.values.pop(key, None) is not None
        if operation == "append":
            self.values[key] = (old or "") + transition["value"]
            return self.values[key]
        if operation == "cas":
            if old == transition["expect"]:
                self.values[key] = transition["value"]
                return True
            return False
        if operation == "add":
            self.values[key] = (old or 0) + transition["value"]
            return self.values[key]
        raise ValueError(f"no operation {operation!r}")

    def query(self, request: Any) -> Any:
        return self.values.get(request["key"])

    def digest(self) -> bytes:
        return b"%d %d %d" % (self.count, self.history, self.flipped)

    def create_snapshot(self, last_included_index: int, last_included_term: int) -> Snapshot:
        data = [dict(self.values), self.count, self.history]
        return Snapshot(last_included_index, last_included_term, data)

    def set_snapshot(self, snapshot: Snapshot) -> None:
        values, self.count, self.history = snapshot.data
        self.values = dict(values)
        self.flipped = 0
        self._applied(self.count, self.history)


class Batching(StateMachine):
    """Takes many transitions at once: on some replicas, and must not matter."""

    def apply_batch(self, transitions: list[Any]) -> list[Any]:
        results: list[Any] = []
        for transition in transitions:
            try:
                results.append(self.apply_transition(transition))
            except ValueError as raised:
                results.append(raised)
        return results


class BatchRegister(Batching, Register):
    """The same machine in batches."""


class _Streaming:
    """A register that gives its snapshots as bytes, in parts."""

    def stream_snapshot(self, index: int, term: int) -> Iterator[bytes]:
        captured = plain.encode(self.create_snapshot(index, term).data)  # type: ignore[attr-defined]
        return (captured[at : at + 50] for at in range(0, len(captured), 50))

    def load_snapshot(self, index: int, term: int, pieces: Iterator[bytes]) -> None:
        self.set_snapshot(Snapshot(index, term, plain.decode(b"".join(pieces))))  # type: ignore[attr-defined]


class StreamRegister(_Streaming, Register):
    """The register that streams."""


class StreamBatchRegister(_Streaming, BatchRegister):
    """Likewise, with batches."""


class DiskRegister(_Streaming, Register):
    """The register with a disk of its own, on which it commits now and then."""

    def open(self, disk: dict[str, Any]) -> None:
        """Go on from what is on the disk: nothing in the beginning."""
        self.disk = disk
        if disk:
            self.set_snapshot(Snapshot(0, 0, plain.decode(disk["state"])))

    def applied_index(self) -> int:
        return int(self.disk.get("index", 0))

    def set_applied_index(self, index: int) -> None:
        if index % 3 == 0:  # It waits for more before it commits.
            self.disk.update(index=index, state=plain.encode(self.create_snapshot(index, 0).data))


class DiskBatchRegister(DiskRegister, BatchRegister):
    """Likewise, with batches."""


class _Stream:
    """An inbox on the Redis: entries with the ids that the server's clock gives them."""

    def __init__(self) -> None:
        self.entries: deque[tuple[int, bytes]] = deque(maxlen=_INBOX_ENTRIES)
        self.last = 1
        self.behind = 0  # The server's clock, µs.
        self.epoch = 0  # What was on its way before a flush does not arrive.

    def add(self, now: int, message: bytes) -> None:
        self.last = max(self.last + 1, now - self.behind)
        self.entries.append((self.last, message))

    def last_id(self) -> bytes:
        return b"%d-0" % self.last


class _Link(Cluster):
    """A process's transport: what `redis_streams` does with one inbox, less the sockets."""

    def __init__(self, world: Simulation, id: Id, stream: _Stream) -> None:
        self.world = world
        self.id = id
        self.stream = stream
        self.cursor = Cursor(stream.last_id())
        self.inbox: list[bytes] = []
        self.looking = False

    def read(self) -> None:
        """XREAD: what lies beyond the cursor.  If that is nothing, the idle check comes in its time."""
        read = int((self.cursor.id or START).partition(b"-")[0])
        new = []
        for id, message in reversed(self.stream.entries):
            if id <= read:
                break
            new.append(message)
        if new:
            self.inbox += reversed(new)
            self.cursor.id = b"%d-0" % self.stream.entries[-1][0]
            self.world.wake_owner(self.id)
        elif not self.looking:
            self.looking = True
            self.world.after(self.world.settings.election_timeout_ms * _MS // 2, self._look)

    def _look(self) -> None:
        self.looking = False
        before = self.cursor.id
        self.cursor.compare(self.stream.last_id())
        if self.cursor.id != before and self.world.links.get(self.id) is self:
            self.world.reread(self)

    def send_message(self, to_id: Id, message: bytes) -> None:
        self.world.send(self.id, to_id, message)

    def receive_messages(self) -> list[bytes]:
        messages, self.inbox = self.inbox, []
        return messages

    def announce(self, record: dict[str, Any]) -> None:
        self.world.directory[self.id] = dict(record)

    def directory(self) -> list[dict[str, Any]]:
        return [self.world.directory[id] for id in sorted(self.world.directory, key=str)]


@dataclass(frozen=True, slots=True)
class _Disk:
    """What the checks know of a disk: what it holds, with the checks of entries, and where it cast its votes."""

    storage: bytes
    durable: dict[int, int]
    base: int
    votes: dict[int, Any]


@dataclass(frozen=True, slots=True)
class _Older:
    """A disk as it was, and what was known of it: values of those attributes of its process that say so."""

    boot: int
    rows: dict[tuple[str, str], dict[int, bytes]]
    account: dict[str, Any]


class _Process:
    """A node's process: what dies with it, and its disk, which does not."""

    def __init__(self, id: str, configuration: Any) -> None:
        self.id = id
        self.rows = SimulatedRows(id)
        self.first = configuration
        self.configuration = configuration  # As of the last look …
        self.configurations: dict[int, Any] = {0: configuration}  # … and what is on the disk, by index.
        self.node: NodeLoop | None = None
        self.link: _Link | None = None
        self.life = 0
        self.wake_at = -1  # When there is to be a turn …
        self.timer_at = -1  # … and when the first timer comes, which may be before.
        self.paused_until = 0
        self.started_at = 0
        self.rate = 1.0
        self.offset = 0
        self.disk_us = 300
        self.job: Callable[[], None] | None = None
        self.complete: Callable[[], None] = lambda: None
        self.storage = b""
        self.apply_us = 0
        self.applies: list[Callable[[], None]] = []  # What machines are at: calls that end it.
        self.good_rows: Any = None  # The rows before they were damaged.
        self.arrived: set[Id] = set()  # Whose frames the next turn finds …
        self.heard: dict[Id, int] = {}  # … and when, by our own clock, there were any.
        # What observers were told last.
        self.told_leader: Id | None = None
        self.told_term = 0
        self.told_members: Any = None
        # An observer with a queue; how many events there were, and how many it took or was told to have lost.
        self.events = Subscription(id, most=_EVENTS_WAIT)
        self.event_count = self.events_seen = 0
        self.observes_at = 0
        self.observer_raises = False
        # What the checks remember of this life, and of the disk.
        self.term = self.commit = self.applied = 0
        self.last_as_leader: tuple[int, int, int] | None = None  # term, last index, its check
        self.turned_at = self.late_at = 0  # By our own clock: the last turn, and the last that was late.
        self.quiet_under: dict[str, tuple[int, Any, int]] = {}  # Term, leader and its life, of each quiet group.
        self.elected_at = self.term_asked = self.term_campaigned = 0
        self.durable: dict[int, int] = {}  # index -> check of what is on disk
        self.durable_base = 0
        self.durable_term = 0
        self.durable_last = (0, 0)  # term, index
        self.votes: dict[int, Any] = {}
        self.machine_disk: dict[str, Any] = {}  # Of a machine that has one of its own.
        self.struck = b""  # The snapshot that it fetched when it was killed for that.
        self.rotten = False  # A snapshot that it fetches was damaged on its disk.
        self.kept: list[bytes] = []  # The snapshots of this life, the current one last, by digest …
        self.given: dict[bytes, int] = {}  # … and when, by our own clock, a piece of each was given last.
        self.lost: list[_Disk] = []
        self.displaced = False  # On another disk than the one by which it still is a member, or with an older life.
        self.outdated = False  # That disk was put back as it was.
        self.older: _Older | None = None
        # The latest life of each directory of which it took something, by id and uuid; and what its disk must say.
        self.heard_lives: dict[tuple[Id, bytes], tuple[int, int]] = {}
        self.kept_lives: dict[tuple[Id, bytes], tuple[int, int]] = {}
        self.boot = 0

    def disks(self, known: bytes | None = None) -> list[_Disk]:
        """This disk and those that are lost; only the one with this uuid, if there is one."""
        disks = [] if self.outdated else [_Disk(self.storage, self.durable, self.durable_base, self.votes)]
        disks += self.lost
        return [disk for disk in disks if known in (None, disk.storage)]

    def holds(self, index: int, check: int, known: bytes | None = None) -> bool:
        """Whether the entry is, or was, on such a disk."""
        return any(disk.durable.get(index) == check or disk.base >= index for disk in self.disks(known))

    def voted_for(self, id: Any, term: int, known: bytes | None = None) -> bool:
        return any(disk.votes.get(term) == id for disk in self.disks(known))

    def members(self) -> Any:
        """The last configuration that is on this disk."""
        return self.configurations[max(self.configurations)]

    def known_from_snapshot(self) -> list[Any]:
        """The configurations that a new member is told of."""
        first = max(index for index in self.configurations if index <= self.durable_base)
        return [members for index, members in self.configurations.items() if index >= first]

    def keep_copy(self) -> _Older:
        """The disk as it is now."""
        names = ("machine_disk", "durable", "votes", "configurations", "kept_lives")
        account: dict[str, Any] = {name: dict(getattr(self, name)) for name in names}
        for name in ("configuration", "durable_base", "durable_term", "durable_last"):
            account[name] = getattr(self, name)
        return _Older(self.boot, self.rows.copy(), account)

    def put_back(self) -> None:
        """Make the disk what it was; what was on it is lost."""
        older, self.older = self.older, None
        if older is None:
            return
        self.lost = self.disks()
        self.outdated = True
        self._take(older)

    def _take(self, older: _Older) -> None:
        self.rows.put_back(older.rows)
        self.rows.full = self.rows.failing = False
        self.good_rows, self.term_asked = None, 0
        for name, value in older.account.items():
            setattr(self, name, value)

    def copied(self) -> _Process:
        """Another process, on a copy of the disk."""
        other = copy.copy(self)
        other.rows = SimulatedRows(self.id)
        older = self.keep_copy()
        other.node, other.link, other.applies = None, None, []
        other.wake_at = other.timer_at = -1
        other.arrived, other.heard, other.quiet_under = set(), {}, {}
        other.lost = list(self.lost)
        other._take(older)
        return other

    def driver(self) -> Any:
        return self.node.drivers[GROUP] if self.node is not None else None


class Simulation:
    """One seeded run.

    Args:
        seed: decides everything.
        core: one of the two cores; None is the process's.
        nodes: how many.
        events: how many before the liveness phase.
        operations: of clients, how many at least before the liveness phase.
        faults: the names of those that may happen; None lets the seed choose among all.
        clients: how many.
        keep_trace: whether the report holds the trace's lines.
    """

    def __init__(
        self,
        seed: int,
        *,
        core: Any = None,
        nodes: int = 5,
        events: int = EVENTS,
        operations: int = 0,
        faults: Sequence[str] | None = None,
        clients: int = 2,
        keep_trace: bool = False,
    ) -> None:
        self.core = core or chosen_core
        self.random = random.Random(seed)
        self.report = Report(seed)
        self.now = 1_000_000
        self.directory: dict[Id, dict[str, Any]] = {}
        self._limit = events
        self._operations = operations
        self._keep_trace = keep_trace
        self._hash = hashlib.sha256()
        self._queue: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._number = 0
        self._quiet = False
        chance = self.random
        density = chance.choice((0.15, 0.3, 0.5))  # With few kinds of faults, long stories can happen.
        theme, limits = chance.choice(_THEMES)
        # Leases trust clocks: such a seed has no faults of these.
        leases = faults is None and chance.random() < 0.2
        alone = (leases or (theme, limits) in _LONG) and chance.random() < 0.7
        if alone:
            density, theme = 0.05, () if leases else theme
        elsewhere = _THEMED.union(_LEASED)
        # Of each its own chance, so that what a seed is stays when faults are added that it does not have.
        drawn = [name for name in FAULTS if random.Random(f"{seed} {name}").random() < density]
        chosen = [name for name in FAULTS if (name in drawn and name not in elsewhere) or name in theme]
        if leases:
            chosen = [name for name in chosen if name not in _CLOCKS]
            chosen += [name for name in _LEASED if chance.random() < 0.7]
        self.report.chosen = tuple(chosen if faults is None else faults)
        self.faults = frozenset(self.report.chosen)
        # A snapshot every few entries, or hardly ever: both ways of catching up are met.
        self.settings = Settings(
            **{
                "snapshot_entries": chance.choice((0, 20, 100, 1000)),
                "keep_entries": chance.choice((0, 5, 50)),
                "max_append_bytes": chance.choice((200, 65536)),
                "window_bytes": chance.choice((400, 262144)),
                "window_appends": chance.choice((2, 128)),
                "max_pending": chance.choice((10, 100_000)),
                "quiet_after_ms": chance.choice((0, 0, 200) if leases else (0, 200, 200)),
                "lease_ms": 450 if leases else 0,
                "digest_entries": chance.choice((0, 8, 64)),
                "snapshot_piece_bytes": chance.choice((60, 500, 65536)),
                "snapshot_window_bytes": chance.choice((1, 300, 65536)),
                **limits,
            }
        )
        self._machines = chance.choice(
            ((Register, BatchRegister), (StreamRegister, StreamBatchRegister), (DiskRegister, DiskBatchRegister))
        )
        # A storm, weather, or calm in which long stories can happen.
        self._fault_ms = 800 if operations or alone else chance.choice((60, 200, 800))
        # Few requests leave room for many elections; but who is to fetch snapshots must fall behind.
        self._falls_behind = "crash_in_fetch" in theme
        self._pace = 1 if operations or self._falls_behind else chance.choice((1, 4, 10))
        self._strike_chance = chance.choice((0.1, 0.3, 0.7))
        # Half of the seeds with changing members end in the middle of a change, which not all may know of.
        self._ends_in_change = "change_members" in self.faults and chance.random() < 0.5 and not operations
        self._ended = False
        self._change_asked_at = -_NEVER
        self._cut: dict[tuple[Id, Id], int] = {}
        self._clogged: dict[tuple[Id, Id], list[bytes]] = {}
        self._last_arrival: dict[tuple[Id, Id], int] = {}
        self._redis_down_until = 0
        self._silent_until = 0  # Nobody asks anything before.
        self.links: dict[Id, _Link] = {}
        self._streams: defaultdict[Id, _Stream] = defaultdict(_Stream)
        # What all nodes must agree on.
        self._leaders: dict[int, Id] = {}
        self._checks: dict[tuple[int, int], int] = {}
        self._committed: dict[int, int] = {0: 0}
        self._highest_commit = 0
        self._commit_term = 0  # No lower than that of the leader that committed it.
        self._histories: dict[int, int] = {0: 0}
        self._adds_begun: Counter[str] = Counter()
        self._adds_acknowledged: Counter[str] = Counter()
        one = self.faults & {"change_members", *_OF_DIRECTORIES}  # An operator knows of one group.
        self._companions = () if one else COMPANIONS[: chance.choice((0, 0, 1, 2))]
        self._companions_leaders: dict[tuple[str, int], Id] = {}
        self._companions_committed: dict[tuple[str, int], int] = {}
        self._companions_adds: Counter[tuple[str, str]] = Counter()  # Of each: begun and acknowledged.
        self._reads = 0  # In the history.
        self._diverged = False  # Whether a state was ever changed behind everybody's back.
        self._boots: dict[int, int] = {}  # Of each nonce that a node had: its boot.
        self._false: set[int] = set()  # Nonces of lives on disks that were put back.
        self._probes: list[tuple[_Process, int, int, Future]] = []
        founders = [f"n{number}" for number in range(1, nodes + 1)]
        spare = 2 if "change_members" in self.faults else 0
        self._ids = founders + [f"n{number}" for number in range(nodes + 1, nodes + 1 + spare)]
        # Nobody, one that is to be added, or one of the founders.
        witnesses = chance.choice(([], self._ids[-1:], founders[1:][-1:])) if spare else []
        self._witnesses = set(witnesses)
        self._reluctant = chance.choice(self._ids)
        self._uuid = cluster_uuid(GROUP, founders)
        self.processes = {}
        self._originals: list[_Process] = []  # Those whose directory was copied, and started elsewhere.
        for id in self._ids:
            first = self.core.Configuration(tuple(founders) if id in founders else (), witnesses=witnesses)
            process = self.processes[id] = _Process(id, first)
            self._new_disk(process)
            self._boot(process)
        self._clients: list[_Client] = [_Client(self, number) for number in range(clients)]

    # ------------------------------------------------------------------- run

    def run(self) -> Report:
        """Run to the end or to the first violation."""
        report = self.report
        try:
            self.after(self.random.randint(0, 50 * _MS), self._next_fault)
            self.after(self.random.randint(0, 50 * _MS), self._next_probe)
            if self._companions:
                self.after(self.random.randint(0, 50 * _MS), self._next_companion)
            while not self._ended and (report.events < self._limit or self._wants_operations()):
                self._step()
            if not self._is_bereft():
                self._liveness()
                self._check_counters()
            self._check_probes()
            self._check_history()
        except Violation as violation:
            report.violation = f"{violation} (event {report.events})"
            self._note("VIOLATION", report.violation)
        report.trace_sha256 = self._hash.hexdigest()
        return report

    def _wants_operations(self) -> bool:
        """Whether there are too few, or too few reads: one that fails has certainly not happened, unlike a write."""
        if self.report.events % 1_000 == 0 and self._is_bereft():  # There will be no more.
            return False
        return len(self.report.history) < self._operations or 10 * self._reads < 3 * self._operations

    def _step(self) -> None:
        at, _, function, arguments = heapq.heappop(self._queue)
        self.now = max(self.now, at)
        self.report.events += 1
        function(*arguments)

    def after(self, delay: int, function: Callable[..., None], *arguments: Any) -> None:
        self._number += 1
        heapq.heappush(self._queue, (self.now + delay, self._number, function, arguments))

    def _note(self, *words: Any) -> None:
        line = f"{self.now} {' '.join(map(str, words))}"
        self._hash.update(line.encode() + b"\n")
        if self._keep_trace:
            self.report.trace.append(line)

    def _fault(self, name: str, *words: Any) -> None:
        self.report.faults[name] += 1
        self._note(name, *words)

    # ------------------------------------------------------------- processes

    def _clock(self, process: _Process) -> int:
        return process.offset + int((self.now - process.started_at) * process.rate)

    def _new_disk(self, process: _Process) -> None:
        storage = RecordStorage(
            process.rows, process.id, cluster=self._uuid, bootstrap=True, entropy=self.random.randbytes
        )
        storage.create_all([GROUP, *self._companions], plain.encode(process.configurations[0].plain()))
        process.storage = storage.identity.storage

    def _lose_disk(self, process: _Process, configuration: Any) -> None:
        """An empty disk takes the place of this one; the configuration is what a new node is started with."""
        process.lost = process.disks()
        process.outdated, process.older = False, None
        process.rows.put_back({})
        process.machine_disk = {}
        process.good_rows = None
        process.rows.full = process.rows.failing = False
        process.durable, process.durable_base, process.votes = {}, 0, {}
        process.kept_lives = {}
        process.durable_term, process.durable_last, process.term_asked = 0, (0, 0), 0
        process.configuration = configuration
        process.configurations = {0: configuration}
        self._new_disk(process)

    def _boot(self, process: _Process) -> None:
        process.life += 1
        process.wake_at = process.timer_at = -1
        process.started_at = self.now
        process.offset = self.random.randint(0, _UPTIME_US)
        process.rate = 1.0
        process.paused_until = 0
        process.job = None
        process.rows.failing = False
        process.disk_us = self.random.choice((100, 300, 2_000))
        process.apply_us = 0
        process.applies = []
        process.told_leader, process.told_term, process.told_members = None, 0, None
        process.events = Subscription(process.id, most=_EVENTS_WAIT)
        process.event_count = process.events_seen = process.observes_at = 0
        process.observer_raises = False
        settings = self.settings
        if "reluctant_node" in self.faults and process.id == self._reluctant:
            self._fault("reluctant_node", process.id)
            settings = replace(settings, lead_reluctance=1)
        machine = self.random.choice(self._machines)(self._applied)
        if isinstance(machine, DiskRegister):
            machine.open(process.machine_disk)
        life = process.life
        try:
            storage = RecordStorage(process.rows, process.id, entropy=self.random.randbytes)
            link = _Link(self, process.id, self._streams[process.id])
            node = NodeLoop(
                storage=storage,
                cluster=link,
                machines={GROUP: machine} | {group: Register() for group in self._companions},
                settings=settings,
                executor=lambda job, done: self._execute(process, life, storage, job, done),
                clock=lambda: self._clock(process),
                generator=random.Random(self.random.getrandbits(32)),
                core=self.core,
                apply_executor=lambda job, done: self._apply(process, life, job, done),
                on_event=lambda name, **arguments: self._observe(process, name, arguments),
            )
        except DiskFull:
            self.after(500 * _MS, self._boot_if_down, process)
            return
        except Corrupt:
            if process.good_rows is None:
                raise Violation(f"durability: {process.id} finds a disk damaged that nobody damaged") from None
            # An operator puts the good disk back.
            process.rows.put_back(process.good_rows)
            process.good_rows = None
            self._note("restored", process.id)
            self._boot(process)
            return
        except Exception as error:
            raise Violation(f"no crash: {process.id} does not start: {type(error).__name__}: {error}") from error
        if process.good_rows is not None:
            good = SimulatedRows(process.id)
            good.put_back(process.good_rows)
            process.good_rows = None
            undamaged = RecordStorage(good, process.id, entropy=random.Random(process.id).randbytes)
            if any(self._used(storage, group) != self._used(undamaged, group) for group in (GROUP, *self._companions)):
                raise Violation(f"corruption: {process.id} started on a damaged disk")
        process.node, process.link = node, link
        self.links[process.id] = link
        if "old_inbox" in self.faults and not self._quiet and self.random.random() < 0.3:
            self._fault("old_inbox", process.id)
            link.cursor.id = START
            self.reread(link)
        identity = storage.identity
        self._boots[identity.nonce] = process.boot = identity.boot
        if process.outdated:
            self._false.add(identity.nonce)
        process.heard_lives = dict(process.kept_lives)
        for each in node.drivers.values():
            each._send = each.quiescence._send = self._speech(process, each._send)
            each.receive = self._hearing(process, each.receive)  # type: ignore[method-assign]
        process.quiet_under = {}
        driver = process.driver()
        process.kept = [driver.snapshots.current.digest] if driver.snapshots.current is not None else []
        process.given = {}
        process.commit, process.applied = driver.raft.commit, driver.applied
        if driver.raft.term < process.durable_term:
            raise Violation(f"durability: {process.id} forgot term {process.durable_term}")
        process.term = driver.raft.term
        process.last_as_leader = None
        self._note("boot", process.id, driver.raft.term, driver.raft.log.last_index)
        self._wake(process, 0)

    def _used(self, storage: RecordStorage, group: str) -> Any:
        """What a start reads.  Nothing reads entries that a snapshot covers: damage there harms nobody."""
        stored = storage.load(group)
        if stored is None:
            return None
        log = stored.log(self.core)
        return stored.term, stored.vote, stored.snapshot, log.slice(log.base_index + 1, log.last_index + 1)

    def _boot_if_down(self, process: _Process) -> None:
        if process.node is None and self.processes[process.id] is process:
            self._boot(process)

    def _kill(self, process: _Process, restart_after: int | None) -> None:
        process.node = None
        process.job = None
        if process in self._originals:
            self._originals.remove(process)
        else:
            self.links.pop(process.id, None)
        self._note("down", process.id)
        if restart_after is not None:
            self.after(restart_after, self._boot_if_down, process)

    def _wake(self, process: _Process, delay: int) -> None:
        at = self.now + max(0, delay)
        if process.wake_at < 0 or at < process.wake_at or process.wake_at < self.now:
            process.wake_at = at
            self._set_timer(process)

    def _set_timer(self, process: _Process) -> None:
        """One that comes too early is set again then."""
        at = process.wake_at
        if at >= 0 and not 0 <= process.timer_at <= at:
            process.timer_at = at
            self.after(at - self.now, self._turn, process, process.life, at)

    def _turn(self, process: _Process, life: int, at: int) -> None:
        node = process.node
        if life == process.life and at == process.timer_at:
            process.timer_at = -1
        if node is None or life != process.life or at != process.wake_at:
            self.report.events -= 1  # A timer that was overtaken is no event.
            if node is not None and life == process.life:
                self._set_timer(process)
            return
        process.wake_at = -1
        if self.now < process.paused_until:
            self._wake(process, process.paused_until - self.now)
            return
        clock = self._clock(process)
        process.heard.update((source, clock) for source in process.arrived)
        process.arrived.clear()
        if clock - process.turned_at > self.settings.heartbeat_ms * _MS:
            process.late_at = clock
        process.turned_at = clock
        try:
            node.turn()
        except WrongDirectory:
            if not process.displaced:
                raise Violation(f"no crash: {process.id} is not known by its own disk") from None
            self._note("stops", process.id, "WrongDirectory")
            self._kill(process, None)
            return
        except (StorageFailed, Removed) as error:
            self._note("stops", process.id, type(error).__name__)
            self._kill(process, self.random.randint(1, 2_000) * _MS)
            return
        except Violation:
            raise
        except Exception as error:
            raise Violation(f"no crash: {process.id} stops: {type(error).__name__}: {error}") from error
        self._check(process, clock)
        due = node.due()
        self._wake(process, int((due - self._clock(process)) / process.rate) + 1 if due else 0)

    def _execute(
        self,
        process: _Process,
        life: int,
        storage: RecordStorage,
        job: Callable[[], None],
        done: Callable[[BaseException | None], None],
    ) -> None:
        """A commit of the node's: durable after a while, and heard of then."""

        heard = dict(process.heard_lives)

        def durable() -> None:
            job()
            process.kept_lives.update(heard)
            for _, write in process.node._writing if process.node is not None else ():
                if write.group == GROUP:
                    self._record(process, write, storage)
                    if write.pieces and "snapshot_piece_rot" in self.faults and not self._quiet:
                        self._rot_at_the_end(process)

        def complete() -> None:
            if process.life != life or process.node is None or process.job is not durable:
                return
            process.job = None
            error: BaseException | None = None
            try:
                durable()
            except RaftplugError as raised:
                error = raised
            self._note("synced", process.id, type(error).__name__ if error else "")
            done(error)
            self._wake(process, 0)

        process.job = durable
        process.complete = complete
        self.after(max(1, int(self.random.expovariate(1 / process.disk_us))), complete)

    def _apply(
        self, process: _Process, life: int, job: Callable[[], None], done: Callable[[BaseException | None], None]
    ) -> None:
        """What a state machine does: within the turn, or over a while in a thread of its own."""
        if not process.apply_us:
            run_here(job, done)
            return

        def finish() -> None:
            node = process.node
            if process.life != life or node is None or finish not in process.applies:
                return
            if self.now < process.paused_until:
                self.after(process.paused_until - self.now, finish)
                return
            process.applies.remove(finish)
            run_here(job, lambda error: node.call(done, error))
            self._wake(process, 0)

        process.applies.append(finish)
        self.after(self.random.randint(1, process.apply_us), finish)
        slow = process.apply_us >= 3_000 * _MS
        if slow and "isolate" in self.faults and not self._quiet and self.random.random() < self._strike_chance:
            self._isolate(process.id, 3_000 * _MS)  # So that a snapshot comes while the machine is at work.

    # --------------------------------------------------------------- network

    def send(self, source: Id, target: Id, message: bytes) -> None:
        """Put a frame on its way."""
        chance, link = self.random, (source, target)
        if self.now < self._redis_down_until:
            return
        if self._cut.get(link, 0) > self.now:
            return
        if link in self._clogged:
            self._clogged[link].append(message)
            return
        delay = 150 + int(chance.expovariate(1 / 200))
        if not self._quiet:
            faults = self.faults
            if "drop" in faults and chance.random() < 0.02:
                self._fault("drop", source, target)
                return
            if "duplicate" in faults and chance.random() < 0.02:
                self._fault("duplicate", source, target)
                self.after(
                    delay + chance.randint(0, 100 * _MS),
                    self._arrive,
                    source,
                    target,
                    message,
                    self._streams[target].epoch,
                )
            if "delay" in faults and chance.random() < 0.005:
                self._fault("delay", source, target)
                delay += chance.randint(1, 2_000) * _MS
            if "reorder" in faults and chance.random() < 0.02:
                self._fault("reorder", source, target)
                self.after(
                    delay + chance.randint(1, 20) * _MS,
                    self._arrive,
                    source,
                    target,
                    message,
                    self._streams[target].epoch,
                )
                return
        arrival = max(self.now + delay, self._last_arrival.get(link, 0) + 1)
        self._last_arrival[link] = arrival
        self.after(arrival - self.now, self._arrive, source, target, message, self._streams[target].epoch)

    def _arrive(self, source: Id, target: Id, message: bytes, epoch: int) -> None:
        stream, link = self._streams[target], self.links.get(target)
        if epoch != stream.epoch:
            return  # The inbox was flushed meanwhile.
        stream.add(self.now, message)
        if link is not None:
            if target in self.processes:
                self.processes[str(target)].arrived.add(source)
            link.read()
        for process in self._originals:
            if process.id == target and process.link is not None:
                process.arrived.add(source)
                process.link.read()
                self._wake(process, 0)

    def reread(self, link: _Link) -> None:
        """An inbox is read from its beginning."""
        process = self.processes.get(str(link.id))
        if process is not None:
            process.arrived.update(self._ids)
        link.read()

    def wake_owner(self, target: Id) -> None:
        process = self.processes.get(str(target))
        if process is not None:
            self._wake(process, 0)
        else:
            for client in self._clients:
                if client.id == target:
                    client.turn()

    def _speech(self, process: _Process, send: _Send) -> _Send:
        """What a node says, sometimes late or twice.

        Frames are numbered, so what is repeated or overtaken on the way is dropped there: the rules must bear it all
        the same, so this lies above the numbers.
        """
        life = process.life

        def later(target: Id, kind: int, body: bytes) -> None:
            if process.life == life and process.node is not None:
                send(target, kind, body)
                self._wake(process, 0)

        def say(target: Id, kind: int, body: bytes) -> None:
            if kind == PIECE:
                self._check_given(process, body)
            chance, election = self.random, kind in (VOTE, VOTE_RESPONSE, SNAPSHOT)
            if kind in (PIECE, PIECE_REQUEST) and not self._quiet:
                if "snapshot_piece_lost" in self.faults and chance.random() < 0.2:
                    self._fault("snapshot_piece_lost", process.id, target)
                    return
                if kind == PIECE and "snapshot_piece_damaged" in self.faults and chance.random() < 0.2:
                    self._fault("snapshot_piece_damaged", process.id, target)
                    body = _flipped(body, chance)
            if not self._quiet and "resend" in self.faults and chance.random() < (0.2 if election else 0.05):
                self._fault("resend", process.id, target)
                self.after(chance.choice((1, 100, 700, 2_000)) * _MS, later, target, kind, body)
            if not self._quiet and "late_vote" in self.faults and kind == VOTE_RESPONSE and chance.random() < 0.3:
                self._fault("late_vote", process.id, target)
                self.after(chance.randint(1, 2_000) * _MS, later, target, kind, body)
            elif not self._quiet and "lose_snapshot" in self.faults and kind == SNAPSHOT and chance.random() < 0.5:
                self._fault("lose_snapshot", process.id, target)
            else:
                send(target, kind, body)

        return say

    def _hearing(self, process: _Process, receive: Callable[..., None]) -> Callable[..., None]:
        """What a node hears: never an earlier life, or a copy, of a directory of which it took something already."""

        def hear(source: Id, nonce: int, kind: int, body: bytes, storage: bytes) -> None:
            boot = self._boots.get(nonce)
            if boot is not None and source != process.id:
                heard = process.heard_lives.get((source, storage), (0, nonce))
                if boot < heard[0] or (boot == heard[0] and nonce != heard[1]):
                    raise Violation(f"identity: {process.id} takes what boot {boot} of {source} says, after {heard[0]}")
                if nonce in self._false:
                    raise Violation(f"identity: {process.id} takes what {source} says on a disk that was put back")
                process.heard_lives[source, storage] = (boot, nonce)
            receive(source, nonce, kind, body, storage)

        return hear

    # ---------------------------------------------------------------- faults

    def _next_fault(self) -> None:
        if self._quiet:
            return
        self.after(self.random.randint(1, self._fault_ms) * _MS, self._next_fault)
        scheduled = [name for name in FAULTS if name in self.faults and hasattr(self, f"_do_{name}")]
        if "change_members" in self.faults and self.random.random() < (0.5 if self._is_ending() else 0.2):
            self._do_change_members()
        elif self.settings.lease_ms and self.random.random() < 0.2 and self.faults.intersection(_LEASED):
            getattr(self, f"_do_{self.random.choice([name for name in _LEASED if name in self.faults])}")()
        elif self._falls_behind and self.random.random() < 0.4:
            self._do_isolate()
        elif scheduled:
            getattr(self, f"_do_{self.random.choice(scheduled)}")()

    def _some_node(self, up: bool = True) -> _Process | None:
        """Any node that is up, or down; of those that are up, a leader every other time: that is where bugs live."""
        fitting = [each for each in self.processes.values() if (each.node is not None) == up]
        leading = [each for each in fitting if up and each.driver().raft.role == LEADER]
        if leading and self.random.random() < 0.5:
            return self.random.choice(leading)
        return self.random.choice(fitting) if fitting else None

    def _leading(self) -> _Process | None:
        """The leader of the latest term, if any is up."""
        leading = [each for each in self.processes.values() if each.node and each.driver().raft.role == LEADER]
        return max(leading, key=lambda each: each.term, default=None)

    def _down_for(self) -> int:
        return self.random.choice((1, 50, 1_000, 3_000)) * _MS

    def _while(self) -> int:
        return self.random.choice((100, 700, 3_000)) * _MS

    def _do_replay(self) -> None:
        fitting = [link for link in self.links.values() if link.stream.entries]
        if fitting:
            link = self.random.choice(fitting)
            self._fault("replay", link.id)
            link.inbox.append(self.random.choice(link.stream.entries)[1])
            if link.id in self.processes:
                self.processes[str(link.id)].arrived.update(self._ids)
            self.wake_owner(link.id)

    def _cut_links(self, links: Sequence[tuple[Id, Id]], time: int | None = None) -> None:
        if self._quiet:
            return
        until = self.now + (time or self._while())
        for link in links:
            self._cut[link] = until

    def _pair(self) -> tuple[str, str]:
        first, second = self.random.sample(self._ids, 2)
        return first, second

    def _do_cut_one_way(self) -> None:
        first, second = self._pair()
        self._fault("cut_one_way", first, second)
        self._cut_links([(first, second)])

    def _do_cut_both_ways(self) -> None:
        first, second = self._pair()
        self._fault("cut_both_ways", first, second)
        self._cut_links([(first, second), (second, first)])

    def _do_isolate(self) -> None:
        some = self._some_node()
        node = some.id if some is not None else self.random.choice(self._ids)
        leader = self._leading()
        if self._falls_behind and leader is not None:  # One follower, and the others go on.
            node = self.random.choice([id for id in self._ids if id != leader.id])
        self._isolate(node, 800 * _MS if self._falls_behind else None)

    def _isolate(self, node: str, time: int | None = None) -> None:
        self._fault("isolate", node)
        self._cut_off(node, time)

    def _cut_off(self, node: str, time: int | None = None) -> None:
        others = [id for id in self._ids if id != node]
        self._cut_links([(node, other) for other in others] + [(other, node) for other in others], time)

    def _do_strand_leader(self) -> None:
        node = self._some_node()
        if node is not None and node.driver().raft.role == LEADER:
            self._fault("strand_leader", node.id)
            node.offset, node.started_at, node.rate = self._clock(node), self.now, 0.1
            self._cut_off(node.id, 3_000 * _MS)

    def _do_partition(self) -> None:
        size = self.random.randint(1, len(self._ids) - 1)
        half = self.random.sample(self._ids, size)
        self._fault("partition", *half)
        rest = [id for id in self._ids if id not in half]
        self._cut_links([(a, b) for a in half for b in rest] + [(b, a) for a in half for b in rest])

    def _do_clog(self) -> None:
        link = self._pair()
        if link not in self._clogged:
            self._fault("clog", *link)
            self._clogged[link] = []
            self.after(self._while(), self._unclog, link)

    def _unclog(self, link: tuple[Id, Id]) -> None:
        for message in self._clogged.pop(link, []):
            self.after(self.random.randint(0, 5 * _MS), self._arrive, *link, message, self._streams[link[1]].epoch)

    def _do_redis_down(self) -> None:
        self._fault("redis_down")
        self._redis_down_until = self.now + self._while()

    def _do_redis_full(self) -> None:
        self._fault("redis_full")
        self._redis_down_until = self.now + self._while()

    def _do_redis_flush(self) -> None:
        self._fault("redis_flush")
        for stream in self._streams.values():
            stream.epoch += 1
            stream.entries.clear()

    def _do_redis_lose_suffix(self) -> None:
        node = self._some_node()
        if node is not None:
            self._fault("redis_lose_suffix", node.id)
            self._streams[node.id].epoch += 1

    def _do_redis_rewind(self) -> None:
        node = self._some_node()
        if node is not None:
            self._fault("redis_rewind", node.id)
            stream = self._streams[node.id]
            for _ in range(self.random.choice((0, self.random.randint(0, len(stream.entries))))):
                stream.entries.pop()
            stream.last = stream.entries[-1][0] if stream.entries else 1
            stream.behind += self.random.choice((1, 1_000, 60_000)) * _MS

    def _do_crash(self) -> None:
        node = self._some_node()
        if node is not None:
            self._fault("crash", node.id)
            self._kill(node, self._down_for())

    def _do_crash_after_sync(self) -> None:
        fitting = [each for each in self.processes.values() if each.job is not None and not each.rows.full]
        if fitting:
            node = self.random.choice(fitting)
            self._fault("crash_after_sync", node.id)
            job = node.job
            if job is not None and not node.rows.failing:
                job()
            self._kill(node, self._down_for())

    def _do_restart_all(self) -> None:
        if self.random.random() < 0.2:
            self._fault("restart_all")
            for node in self.processes.values():
                if node.node is not None:
                    self._kill(node, self.random.randint(1, 500) * _MS)

    def _do_pause(self) -> None:
        node = self._some_node()
        if node is not None:
            self._fault("pause", node.id)
            node.paused_until = self.now + self._while()

    def _set_rate(self, name: str, rate: float) -> None:
        node = self._some_node()
        if node is not None:
            self._fault(name, node.id)
            node.offset, node.started_at, node.rate = self._clock(node), self.now, rate
            self._wake(node, 0)

    def _do_clock_fast(self) -> None:
        self._set_rate("clock_fast", 1.0 + self.random.random())

    def _do_clock_slow(self) -> None:
        self._set_rate("clock_slow", self.random.choice((0.5, 0.1)))

    def _do_clock_jump(self) -> None:
        node = self._some_node()
        if node is not None:
            self._fault("clock_jump", node.id)
            node.offset += self.random.randint(1, 5_000) * _MS
            self._wake(node, 0)

    def _do_slow_disk(self) -> None:
        node = self._some_node()
        if node is not None:
            self._fault("slow_disk", node.id)
            node.disk_us = self.random.choice((20, 200, 1_500)) * _MS
            self.after(self._while(), setattr, node, "disk_us", 300)

    def _do_write_error(self) -> None:
        node = self._some_node()
        if node is not None:
            self._fault("write_error", node.id)
            node.rows.failing = True

    def _do_disk_full(self) -> None:
        node = self._some_node()
        if node is not None:
            self._fault("disk_full", node.id)
            node.rows.full = True
            self.after(self._while(), setattr, node.rows, "full", False)

    def _damage(self, name: str, change: Callable[[SimulatedRows], bool]) -> None:
        node = self._some_node(up=False)
        if node is not None and node.good_rows is None:
            copy = node.rows.copy()
            if change(node.rows):
                self._fault(name, node.id)
                node.good_rows = copy

    def _do_bit_flip(self) -> None:
        def flip(rows: SimulatedRows) -> bool:
            place, number = self.random.choice(rows.rows())
            value = rows.value(place, number)
            if not value or (place[0] == "piece" and (place, number) not in _current_pieces(rows)):
                return False
            rows.damage(place, number, _flipped(value, self.random))
            return True

        self._damage("bit_flip", flip)

    def _do_snapshot_piece_rot(self) -> None:
        """Nobody relies on it yet: it is found before anybody does."""
        self._rot(list(self.processes.values()))

    def _rot_at_the_end(self, process: _Process) -> None:
        """The last piece is there, and nobody has read it yet."""
        fetch = process.driver().snapshots.fetch
        if fetch is not None and fetch.is_complete() and self.random.random() < self._strike_chance:
            self._rot([process], last=True)

    def _rot(self, processes: list[_Process], last: bool = False) -> None:
        """Flip a bit in what was fetched; with `last` in what came last, of which little is read before it is used."""
        fitting = [
            (each, row)
            for each in processes
            if each.good_rows is None and (each.node is None or each.driver().snapshots.fetch is not None)
            for row in _fetched_pieces(each.rows)
        ]
        if fitting:
            process, row = fitting[-1] if last else self.random.choice(fitting)
            self._fault("snapshot_piece_rot", process.id)
            process.rotten = True
            process.rows.damage(*row, _flipped(process.rows.value(*row), self.random))

    def _do_row_loss(self) -> None:
        def lose(rows: SimulatedRows) -> bool:
            fitting = [row for row in rows.rows() if row[0] == ("log", GROUP)]
            if not fitting or rows.get("snapshot", GROUP, 0) is not None:
                return False  # With a snapshot the row may be one that it covers.
            rows.damage(*self.random.choice(fitting), None)
            return True

        self._damage("row_loss", lose)

    def _do_row_swap(self) -> None:
        def swap(rows: SimulatedRows) -> bool:
            fitting = [row for row in rows.rows() if row[0] == ("log", GROUP)]
            if len(fitting) < 2 or rows.get("snapshot", GROUP, 0) is not None:
                return False
            (place, first), (_, second) = self.random.sample(fitting, 2)
            one, other = rows.value(place, first), rows.value(place, second)
            rows.damage(place, first, other)
            rows.damage(place, second, one)
            return True

        self._damage("row_swap", swap)

    def _do_lose_disk(self) -> None:
        """Only where all know the node by that disk: nobody can tell a lost one from a new one before."""
        node = self._some_node()
        if node is not None and self.random.random() < 0.7 and self._is_expendable(node):
            self._fault("lose_disk", node.id)
            node.displaced = True
            self._go_without(node)
            self._lose_disk(node, node.first)

    def _do_lose_quorum(self) -> None:
        """`members recover`, where the disk that is left holds all that is committed: else nothing could be promised.

        The others come back under their ids, and are given the log: no members may stand in it that are known by id
        alone, since by those these empty disks were a quorum.  (Hence an operator has to give them new ids.)
        """
        if self._originals or any(each.displaced for each in self.processes.values()):
            return
        last = self._highest_commit
        fitting = [
            each
            for each in self.processes.values()
            if each.good_rows is None and each.id not in self._witnesses and each.members().is_voter(each.id)
            if last <= each.durable_base or each.durable.get(last) == self._committed[last]
            if all(known.storages.keys() >= set(known.members()) for known in each.known_from_snapshot())
        ]
        if not fitting or self.random.random() < 0.7:
            return
        survivor = self.random.choice(fitting)
        self._fault("lose_quorum", survivor.id)
        before = survivor.members().members()
        for each in self.processes.values():
            self._kill(each, None)
            if each is not survivor:
                self._lose_disk(each, self.core.Configuration(()))
                self.after(self._down_for(), self._boot_if_down, each)
                if each.id in before:
                    self.after(self._while(), self._replace, each.id)
        survivor.rows.full = survivor.rows.failing = False
        storage = RecordStorage(survivor.rows, survivor.id, entropy=self.random.randbytes)
        write, _ = sole_voter(storage, GROUP, survivor.id)
        storage.commit([write])
        self._record(survivor, write, storage)
        self._boot(survivor)

    def _is_expendable(self, node: _Process) -> bool:
        """Whether all know the node by its disk, the others are enough without it, and no other one is gone."""
        if self._originals or any(each.displaced for each in self.processes.values()):
            return False
        if self.now - self._change_asked_at < 4_000 * _MS:  # It may be on its way: to where this node is needed.
            return False
        known = [each.members() for each in self.processes.values()]
        # A change that is under way may be on no disk yet.
        known += [each.driver().raft.configuration for each in self.processes.values() if each.node is not None]
        known = [each for each in known if each.voters]
        return all(len(each.voters) > 2 and each.storages.get(node.id) == node.storage for each in known)

    def _go_without(self, node: _Process) -> None:
        """The node's disk is not what it was: until an operator has replaced the node, the others must do."""
        down = self._down_for()
        self._kill(node, down)
        if self.random.random() < 0.5:
            self.after(down + self.random.randint(10, 500) * _MS, self._need, node.id)
        self.after(self._while(), self._replace, node.id)

    def _do_older_file(self) -> None:
        """First copies are made of disks, and after restarts one is put back.

        Only if that would be a start which all others know, on their disks, to have been, with another nonce: whoever
        knows of no later one has to take it for a restart, and nothing could be safe (see docs/divergence.md).
        """
        fitting = [each for each in self.processes.values() if each.good_rows is None and not each.displaced]
        for node in fitting:
            if node.older is None:
                node.older = node.keep_copy()
        known = [each for each in fitting if each.older is not None and self._all_know(each, each.older.boot + 1)]
        known = [each for each in known if self._is_expendable(each)]
        if not known:  # Of these some restart, for the others to hear.
            self._do_crash()
        else:
            node = self.random.choice(known)
            self._fault("older_file", node.id)
            node.displaced = True
            self._go_without(node)
            node.put_back()

    def _all_know(self, node: _Process, boot: int) -> bool:
        """Whether all others have on their disks that this boot of the node's directory, or a later one, has been."""
        others = [each for each in self.processes.values() if each.id != node.id]
        return all(each.kept_lives.get((node.id, node.storage), (0, 0))[0] >= boot for each in others)

    def _do_start_twice(self) -> None:
        """The original stands still until all others know of the copy, on their disks.

        What it acknowledges before, the copy may lack, and who was not told of the copy has to believe it.  A directory
        itself is not opened twice: that its lock sees to, which lies below what is simulated (tests/test_storage.py).
        """
        node = self._some_node()
        if node is None or node.node is None or node.good_rows is not None or not self._is_expendable(node):
            return
        busy = node.job is not None or node.node._writing or node.node._keeping or node.node._unwritten
        if busy or node.rows.full or node.rows.failing:  # What is written later is not on the copy.
            return
        self._fault("start_twice", node.id)
        copied = self.processes[node.id] = node.copied()
        self._originals.append(node)
        node.displaced = True
        self._boot(copied)
        self._hold(node, copied.boot)

    def _hold(self, original: _Process, boot: int) -> None:
        """Let the original go on when that is safe; if it never is, somebody kills it."""
        if original.node is None:
            return
        if self._all_know(original, boot):
            original.paused_until = self.now
            self._wake(original, 0)
        elif self._quiet:
            self._kill(original, None)
        else:
            original.paused_until = self.now + 50 * _MS
            self.after(20 * _MS, self._hold, original, boot)

    def _need(self, id: str) -> None:
        """So many others die that the rest could go on with the node, if it counted, and cannot without it."""
        node = self.processes[id]
        up = [each for each in self.processes.values() if each.node is not None and each is not node]
        if not self._quiet and node.displaced and node.node is not None:
            stays = self.random.sample(up, min(len(up), len(node.first.voters) // 2))
            for each in up:
                if each not in stays:
                    self._kill(each, self.random.choice((1_500, 3_000)) * _MS)

    def _replace(self, id: str) -> None:
        """What an operator does about a node whose disk is lost."""
        if self._quiet:
            return
        node = self.processes[id]
        leading = [each.driver().raft for each in self.processes.values() if each.node and each.id != node.id]
        settled = [each for each in leading if each.role == LEADER and each.commit >= each.configuration_index]
        if (
            node.displaced
            and settled
            and node.id not in max(settled, key=lambda each: each.term).configuration.members()
        ):
            if node.node is not None:
                self._kill(node, None)
            node.displaced = False
            self._lose_disk(node, self.core.Configuration(()))
            self._boot(node)
        elif node.displaced:
            self._ask("members", ["remove", [node.id]])
        elif any(node.id in each.configuration.members() for each in settled):
            return
        else:
            self._ask("members", ["witness" if node.id in self._witnesses else "add", [node.id]])
        self.after(1_000 * _MS, self._replace, node.id)

    def _do_slow_apply(self) -> None:
        node = self._some_node()
        if node is not None:
            self._fault("slow_apply", node.id)
            node.apply_us = self.random.choice((20, 300, 3_000, 10_000)) * _MS
            self.after(self._while(), setattr, node, "apply_us", 0)

    def _do_diverge(self) -> None:
        node = self._some_node()
        if node is not None and not self._diverged and self.settings.digest_entries and node.id not in self._witnesses:
            self._fault("diverge", node.id)
            self._diverged = True
            node.driver().machine.flipped = 1

    def _do_node_burst(self) -> None:
        node = self._some_node()
        if node is not None:
            self._burst(node)

    def _burst(self, process: _Process) -> None:
        self._fault("node_burst", process.id)
        node, driver, deadline = process.node, process.driver(), self._clock(process) + 2_000 * _MS
        if node is None:
            return
        for _ in range(self.random.randint(2, 20)):
            transition = plain.encode({"op": "put", "key": "burst", "value": self.random.randrange(1_000_000)})
            node.call(driver.propose, transition, Future(), deadline)
        self._wake(process, 0)

    def _do_change_members(self) -> None:
        """By way of a client.  Whoever is added is running."""
        leading = [each for each in self.processes.values() if each.node and each.driver().raft.role == LEADER]
        if not leading or self._originals or any(each.displaced for each in self.processes.values()):
            return
        members = leading[-1].configuration
        id = self.random.choice([*self._ids, *self._witnesses])
        strangers = [id for id in self._ids if not members.is_voter(id)]
        if strangers and self._is_ending() and self.random.random() < 0.5:
            id, action = self.random.choice(strangers), "add"
        elif id in members.learners:
            action = self.random.choice(("promote", "remove"))
        elif members.is_voter(id):
            few = len(members.voters) < 2 + (self.random.random() < 0.5)  # Of two, one may go, too.
            action = "add" if few else self.random.choice(("remove", "demote"))
        else:
            action = self.random.choice(("add", "add", "learn"))
        if id in self._witnesses:  # The same node always: what is on its disk tells what it is.
            action = "witness" if action in ("add", "learn") else self.random.choice((action, "remove"))
        self._fault("change_members", action, id)
        self._boot_if_down(self.processes[id])
        self._change_asked_at = self.now
        self._ask("members", [action, [id]])

    def _do_operator_snapshot(self) -> None:
        target = self.random.choice(self._ids)
        self._fault("operator_snapshot", target)
        self._ask("snapshot", [None], target)

    def _do_transfer_leadership(self) -> None:
        target = self.random.choice([None, self.random.choice(self._ids)])
        self._fault("transfer_leadership", target)
        self._ask("transfer", [target])

    def _ask(self, operation: str, arguments: list[Any], to: Id | None = None) -> None:
        client = self.random.choice(self._clients)
        client.loop.requester.ask(operation, arguments, Future(), self.now + 3_000 * _MS, to)
        client.turn()

    def _do_deaf_leader(self) -> None:
        """A leader's own process hands over, as at its end, and a read begins a round at the same moment."""
        leader = self._leading()
        if leader is None or leader.node is None:
            return
        node, driver = leader.node, leader.driver()

        def hand_over() -> None:
            node.attend(driver)
            with contextlib.suppress(RaftplugError):
                driver.raft.transfer(None)

        self._probe(leader, LINEARIZABLE)
        node.call(hand_over)

    def _deafen(self, successor: _Process) -> None:
        """Who hands over to `successor` does not learn that this one campaigns, nor that others vote."""
        for leader in self.processes.values():
            raft = leader.driver().raft if leader.node is not None else None
            if raft is not None and raft.role == LEADER and raft.transferee == successor.id:
                self._fault("deaf_leader", leader.id)
                self._cut_links([(other, leader.id) for other in self._ids if other != leader.id], 1_000 * _MS)
                self._ask_deposed(leader, leader.life)

    def _do_late_answers(self) -> None:
        leader = self._leading()
        if leader is None:
            return
        self._fault("late_answers", leader.id)
        self._probe(leader, LINEARIZABLE)  # The round that is answered late.
        delay = self.random.randint(200, 900) * _MS
        for link in [(other, leader.id) for other in self._ids if other != leader.id]:
            if link not in self._clogged:
                self._clogged[link] = []
                self.after(delay, self._unclog, link)
        self.after(20 * _MS, self._strike, "late_answers", leader, leader.life)

    def _do_early_rival(self) -> None:
        """The rival's log must be as good as any: nobody writes meanwhile."""
        leader = self._leading()
        rivals = [id for id in leader.driver().raft.configuration.voters if id != leader.id] if leader else []
        if leader is None or not rivals or self.now < self._silent_until:
            return
        rival = self.random.choice(rivals)
        self._silent_until = self.now + 1_500 * _MS
        self.after(150 * _MS, self._cut_links, [(leader.id, rival)], 1_500 * _MS)
        self.after(400 * _MS, self._await_rival, leader, leader.life, self.processes[rival])

    def _await_rival(self, leader: _Process, life: int, rival: _Process) -> None:
        """Strike a moment before it campaigns."""
        if rival.node is not None and rival.driver().raft.role != LEADER:
            patience = rival.driver().raft.deadline() - self._clock(rival) - self.random.randint(5, 100) * _MS
            self.after(max(0, patience), self._strike, "early_rival", leader, life, rival.id)

    def _ask_deposed(self, process: _Process, life: int, left: int = 60) -> None:
        """A leader is asked again and again; whoever leads a later term meanwhile adds to what it is asked for."""
        if self._quiet or life != process.life or process.node is None or process.driver().raft.role != LEADER:
            return
        successor = self._leading()
        if successor is not None and successor.term > process.term:
            self._count_up(successor, "c0")
        self._probe(process, key="c0")
        if left:
            self.after(20 * _MS, self._ask_deposed, process, life, left - 1)

    def _count_up(self, process: _Process, key: str) -> None:
        """Add to a counter on a node, as its own process would."""
        node, future = process.node, Future()
        if node is None:
            return
        operation = {"op": "add", "key": key, "value": 1}
        recorded = Recorded(process.id, operation, self.now)
        self.report.history.append(recorded)
        self._adds_begun[key] += 1

        def ended(_: Future) -> None:
            error = future.exception(0)
            if error is None:
                recorded.answered = self.now
                self._adds_acknowledged[key] += 1
            elif not isinstance(error, OutcomeUnknown):
                self.report.history.remove(recorded)

        future.add_done_callback(ended)
        node.call(process.driver().propose, plain.encode(operation), future, self._clock(process) + 2_000 * _MS)
        self._wake(process, 0)

    def _do_quiet_wanted(self) -> None:
        self._silent_until = self.now + self.random.choice((500, 1_500, 4_000)) * _MS
        self._fault("quiet_wanted")

    def _do_slow_observer(self) -> None:
        node = self._some_node()
        if node is not None:
            self._fault("slow_observer", node.id)
            node.observes_at = self.now + self._while()

    def _do_raising_observer(self) -> None:
        node = self._some_node()
        if node is not None:
            self._fault("raising_observer", node.id)
            node.observer_raises = True

    def _do_client_burst(self) -> None:
        client = self.random.choice(self._clients)
        self._fault("client_burst", client.id)
        for _ in range(self.random.randint(5, 30)):
            client.propose(client.operation(self.random))

    def _do_client_crash(self) -> None:
        client = self.random.choice(self._clients)
        self._fault("client_crash", client.id)
        client.crash()

    # ---------------------------------------------------------------- checks

    def _check(self, process: _Process, clock: int) -> None:
        """The invariants, as far as this process can have broken them since its last turn."""
        driver = process.driver()
        raft = driver.raft
        log = raft.log
        term, commit, last, base = raft.term, raft.commit, log.last_index, log.base_index
        if term < process.term:
            raise Violation(f"monotony: term of {process.id} went from {process.term} to {term}")
        if commit < process.commit or driver.applied < process.applied:
            raise Violation(f"monotony: commit or applied index of {process.id} went back")
        last_check = log.check_at(last)
        if self._checks.setdefault((last, log.last_term), last_check) != last_check:
            raise Violation(f"log matching: {process.id} has another history up to entry {last}, term {log.last_term}")
        if raft.role == CANDIDATE and term != process.term_campaigned:
            process.term_campaigned = term
            if "deaf_leader" in self.faults and not self._quiet:
                self._deafen(process)
        if raft.role == CANDIDATE and process.votes.get(term) == process.id and term != process.term_asked:
            process.term_asked = term
            self._asked_for_votes(process)
        if raft.role == LEADER:
            if self._leaders.setdefault(term, process.id) != process.id:
                raise Violation(f"election safety: {self._leaders[term]} and {process.id} lead term {term}")
            before = process.last_as_leader
            if before is not None and before[0] == term:
                if last < before[1] or (before[1] >= base and log.check_at(before[1]) != before[2]):
                    raise Violation(f"leader append-only: {process.id} changed its log in term {term}")
            else:
                self._elected(process, term, log, clock)
            process.last_as_leader = (term, last, last_check)
            for peer, progress in raft.progress.items():
                holder, match = self.processes[peer], progress.match
                on_disk = holder.durable_term != term or match <= max(holder.durable_base, base)
                if not on_disk and not holder.holds(match, log.check_at(match)):
                    raise Violation(
                        f"durability: {process.id} counts entry {match}, which is not on the disk of {peer}"
                    )
                if progress.in_flight() > self.settings.window_appends:
                    raise Violation(f"window: {process.id} has more appends on their way to {peer} than it may")
            if raft.configuration is not process.configuration or raft.quiet or GROUP in process.quiet_under:
                process.elected_at = clock  # New members, and those who were quiet, had no time to say anything.
            oldest = clock - 2_000 * self.settings.election_timeout_ms
            heard = {id for id in self._ids if process.heard.get(id, -1) >= oldest} | {process.id}
            if not _is_quorum(raft.configuration, heard) and process.elected_at < oldest:
                raise Violation(f"check-quorum: {process.id} leads, and has not heard of a quorum for too long")
        if commit > process.commit:
            for index in range(max(process.commit, base) + 1, commit + 1):
                self._commit(process, index, log.check_at(index))
        elif commit >= base and commit in self._committed and log.check_at(commit) != self._committed[commit]:
            raise Violation(f"state machine safety: {process.id} replaced the committed entry {commit}")
        self._check_witnesses(process, driver)
        self._check_members(process, raft)
        if process.told_leader != raft.leader or raft.configuration is not process.configuration:
            self._check_told(process, raft)
        self._check_quiet(process, clock)
        for group in self._companions:
            self._check_companion(process, group)
        if driver._diverged and not self._diverged:
            raise Violation(f"divergence: {process.id} says {', '.join(map(str, driver._diverged.values()))}")
        if driver.sessions.now_us > SESSION_TIMEOUT_US:  # No run is as long as a session lives.
            raise Violation(f"sessions: logged time leapt to {driver.sessions.now_us} us on {process.id}")
        if len(driver._pending) > self.settings.max_pending:
            raise Violation(f"bounded queues: {process.id} holds {len(driver._pending)} proposals")
        waits = process.node is not None and (process.node._writing or GROUP in process.node._unwritten)
        at_rest = not (raft.writing or waits) and raft.vote is not None and term == process.durable_term
        if at_rest and process.votes.get(term) != raft.vote:
            raise Violation(f"durability: the vote of {process.id} in term {term} is not on its disk")
        process.configuration = raft.configuration
        self._fetches(process, driver.snapshots.fetch)
        changed = (term, commit) != (process.term, process.commit)
        process.term, process.commit, process.applied = term, commit, driver.applied
        if changed or raft.role == LEADER:
            self._note(process.id, raft.role, term, last, commit, driver.applied)

    def _check_quiet(self, process: _Process, clock: int) -> None:
        """Nobody sleeps on whose leader's node is lost or another process now, or who leads and hears no quorum."""
        oldest = clock - 2_000 * self.settings.election_timeout_ms
        node = process.node
        if node is None:
            return
        for group, driver in node.drivers.items():
            raft = driver.raft
            if not raft.quiet:
                process.quiet_under.pop(group, None)
                continue
            under = (raft.term, raft.leader, node._life_of(raft.leader))
            before, process.quiet_under[group] = process.quiet_under.get(group, under), under
            if before[0] == raft.term and before != under:  # In one turn it may have woken, and slept in a later term.
                raise Violation(f"quiet: {process.id} sleeps on in {group}, and another process is {raft.leader} now")
            heard = {id for id in self._ids if process.heard.get(id, -1) >= oldest} | {process.id}
            alone = raft.leader not in heard or (raft.role == LEADER and not _is_quorum(raft.configuration, heard))
            if alone and process.late_at < oldest:  # Who did not look cannot have heard.
                raise Violation(f"quiet: {process.id} sleeps on in {group}, and has not heard who must be there")
            if raft.commit != raft.log.last_index:
                raise Violation(f"quiet: {process.id} sleeps in {group}, and does not know all to be committed")
            # Whoever a quiet leader's node hears holds, durably, all that the leader holds.
            for peer, progress in raft.progress.items() if raft.role == LEADER else ():
                if peer not in node._lost and progress.match != raft.log.last_index:
                    raise Violation(f"quiet: {process.id} sleeps and leads {group}, and {peer} lacks entries")

    def _check_companion(self, process: _Process, group: str) -> None:
        """What must hold of any group, in brief: the first group is looked at closely."""
        raft = process.node.drivers[group].raft if process.node is not None else None
        if raft is None:
            return
        if raft.role == LEADER and self._companions_leaders.setdefault((group, raft.term), process.id) != process.id:
            raise Violation(f"election safety: two lead term {raft.term} of {group}")
        check = raft.log.check_at(raft.commit)
        if check >= 0 and self._companions_committed.setdefault((group, raft.commit), check) != check:
            raise Violation(f"state machine safety: {process.id} committed another entry {raft.commit} of {group}")

    def _next_companion(self) -> None:
        if self._quiet:
            return
        self.after(self.random.choice((30, 300, 3_000)) * _MS, self._next_companion)
        process, group = self._some_node(), self.random.choice(self._companions)
        if process is not None and self.now >= self._silent_until:
            self._add(process, group)

    def _add(self, process: _Process, group: str) -> Future:
        """Propose something to a companion, as the node's own process would."""
        node, future = process.node, Future()
        if node is None:
            return future
        counts = self._companions_adds
        counts[group, "begun"] += 1

        def ended(_: Future) -> None:
            counts[group, "acknowledged"] += future.exception(0) is None

        future.add_done_callback(ended)
        transition = plain.encode({"op": "add", "key": "c0", "value": 1})
        node.call(node.drivers[group].propose, transition, future, self._clock(process) + 2_000 * _MS)
        self._wake(process, 0)
        return future

    def _check_companions_counters(self) -> None:
        for group in self._companions:
            # Whoever acknowledged it may be the only one yet that knows it to be committed.
            machines = [each.node.drivers[group].machine for each in self.processes.values() if each.node is not None]
            value = max(machine.values.get("c0", 0) for machine in machines)
            low, high = (self._companions_adds[group, what] for what in ("acknowledged", "begun"))
            if not low <= value <= high:
                raise Violation(f"exactly once: {group} counts {value}, acknowledged {low} of {high}")

    def _fetches(self, process: _Process, fetch: snapshots.Fetch | None) -> None:
        if fetch is None or not 0 < fetch.have < fetch.snapshot.count or process.struck == fetch.snapshot.digest:
            return
        process.struck = fetch.snapshot.digest
        if "crash_in_fetch" in self.faults and not self._quiet and self.random.random() < self._strike_chance:
            self.after(self.random.randint(0, 3) * _MS, self._strike, "crash_in_fetch", process, process.life)

    def _observe(self, process: _Process, name: str, arguments: dict[str, Any]) -> None:
        """Observers are told what is so, in order; what arrives damaged or twice is sorted out before it is stored."""
        self._tell(process)
        if arguments.get("group") == GROUP and name == "raftplug_leader_changed":
            if arguments["term"] < process.told_term:
                raise Violation(f"events: {process.id} tells of term {arguments['term']} after {process.told_term}")
            process.told_leader, process.told_term = arguments["leader"], arguments["term"]
        elif arguments.get("group") == GROUP and name == "raftplug_configuration_changed":
            process.told_members = arguments["configuration"]
        if name == "raftplug_snapshot" and arguments["kind"] == "refused" and arguments["group"] == GROUP:
            if not process.rotten:
                raise Violation(f"snapshots: {process.id} put the pieces of one together as something else")
            process.rotten = False

    def _tell(self, process: _Process) -> None:
        """An event for the observer with a queue: it takes what is there, unless it is slow."""
        process.event_count += 1
        process.events.put(Event("peer", None, process.id, {"number": process.event_count}))
        if self.now < process.observes_at:
            return
        taken, process.events = process.events, Subscription(process.id, most=_EVENTS_WAIT)
        taken.close()

        def observe(event: Event) -> None:
            if event.kind == LOST:
                process.events_seen += event.details["count"]
            else:
                process.events_seen += 1
                if event.details["number"] != process.events_seen:
                    process.events_seen = -_NEVER  # It must not raise this here.
            if process.observer_raises:
                raise ValueError("an observer raises")

        call_for_each(taken, observe)
        if process.events_seen != process.event_count:
            raise Violation(f"events: an observer of {process.id} lost some, and is not told how many")

    def _check_told(self, process: _Process, raft: Any) -> None:
        """Observers were told of every change: of who leads, and of the members."""
        if process.told_leader != raft.leader:
            raise Violation(f"events: {process.id} follows {raft.leader}, and told of {process.told_leader}")
        members = [*raft.configuration.plain()[:4], list(raft.configuration.witnesses)]
        if process.told_members is not None and process.told_members != members:
            raise Violation(f"events: the members that {process.id} told of are not those that it has")

    def _check_given(self, process: _Process, body: bytes) -> None:
        """Whoever fetches a snapshot gets all of it, though a newer one was made meanwhile."""
        digest, _, data = snapshots.decode_piece(body)
        now, recently = self._clock(process), 2_000 * self.settings.election_timeout_ms
        if data is not None:
            process.given[digest] = now
        elif digest in process.kept[-2:] and now - process.given.get(digest, -_NEVER) < recently:
            raise Violation(f"snapshots: {process.id} dropped one that is being fetched")

    def _check_witnesses(self, process: _Process, driver: Any) -> None:
        """A witness never leads and executes nothing; what it holds, somebody holds who may lead."""
        if driver.raft.transferee in self._witnesses:
            raise Violation(f"witnesses: {process.id} hands leadership to one")
        if process.id not in self._witnesses:
            return
        if driver.raft.role in (CANDIDATE, LEADER):
            raise Violation(f"witnesses: {process.id} is one, and wants to lead")
        if driver.machine.count or driver.sessions.snapshot() != Sessions().snapshot():
            raise Violation(f"witnesses: {process.id} is one, and executed something")
        others = [each for each in self.processes.values() if each.id not in self._witnesses]
        if not any(each.lost or each.durable_last >= process.durable_last for each in others):
            raise Violation(f"witnesses: {process.id} alone holds the newest entries")

    def _check_members(self, process: _Process, raft: Any) -> None:
        """The configuration is the log's; one change at a time, by leaders that know what is committed."""
        index, log = raft.configuration_index, raft.log
        if index > log.base_index and (index > log.last_index or log.kind_at(index) != CONFIGURATION):
            raise Violation(f"members: {process.id} goes by entry {index}, which is no configuration of its log")
        known = raft.configuration.storages.get(process.id, process.storage)
        if known != process.storage and raft.role != FOLLOWER:
            raise Violation(f"members: {process.id} is known by another disk, and wants to lead")
        if raft.role == LEADER and raft.configuration is not process.configuration:
            if log.term_at(index) == raft.term and log.term_at(raft.commit) != raft.term:
                raise Violation(f"members: {process.id} changes them before it committed anything in its term")
            self._changed_members(process, set(raft.configuration.voters) - set(process.configuration.voters))
            if sum(each > self._highest_commit for each in process.configurations) > 1:
                raise Violation(f"members: {process.id} has two changes under way")

    def _is_ending(self) -> bool:
        """Whether the next change of the members is where the faults end."""
        return self._ends_in_change and 2 * self.report.events > self._limit and not self._quiet

    def _changed_members(self, process: _Process, new_voters: set[str]) -> None:
        if "crash_in_change" in self.faults and not self._quiet and self.random.random() < self._strike_chance:
            delay = self.random.choice((0, 300, 1_000, 5_000))
            self.after(delay, self._strike, "crash_in_change", process, process.life)
        # Most end with somebody who may not know yet that it votes.
        last = self._is_ending() and (bool(new_voters) or self.random.random() < 0.2)
        if last:
            self.after(self.random.choice((1, 5, 20, 100)) * _MS, setattr, self, "_ended", True)
            for each in self.processes.values():  # What is written in these last moments is lost on some disks.
                each.disk_us = self.random.choice((100, 3_000 * _MS))
        cuts = "cut_off_newcomer" in self.faults and not self._quiet and self.random.random() < self._strike_chance
        if cuts or last:
            for newcomer in sorted(new_voters):
                self._fault("cut_off_newcomer", newcomer)
                self._cut_off(newcomer, 3_000 * _MS)

    def _asked_for_votes(self, process: _Process) -> None:
        if "mute_candidate" in self.faults and not self._quiet and self.random.random() < self._strike_chance:
            others = [id for id in self._ids if id != process.id]
            lost = self.random.sample(others, self.random.randint(1, len(others))) if others else []
            self._fault("mute_candidate", process.id, *lost)
            self._cut_links([(process.id, other) for other in lost])
        if "early_request" in self.faults and not self._quiet and self.random.random() < self._strike_chance:
            self._fault("early_request", process.id)
            process.paused_until = self.now + 10 * _MS
            for client in self._clients:
                client.expect(process.id)

    def _elected(self, process: _Process, term: int, log: Any, clock: int) -> None:
        """A process leads a new term: what must be true, and what may happen to it now."""
        process.elected_at = clock
        # Who leaves may lead until that is committed (Ongaro 2014 §4.2.2).
        if not any(members.is_voter(process.id) for members in process.configurations.values()):
            raise Violation(f"election safety: {process.id} leads term {term} and is no voter")
        # Of another disk than the one by which a member is known, nothing counts.
        members = process.driver().raft.configuration
        everybody = self.processes.values()
        voters = {each.id for each in everybody if each.voted_for(process.id, term, members.storages.get(each.id))}
        if not _is_quorum(members, voters):
            raise Violation(f"election safety: {process.id} leads term {term} with votes on {len(voters)} disks")
        self._check_completeness(process.id, term, log)
        if self._quiet:
            return
        for name in ("crash_new_leader", "cut_off_new_leader"):
            if name in self.faults and self.random.random() < self._strike_chance:
                self.after(self.random.randint(0, 30) * _MS, self._strike, name, process, process.life)
        if self.random.random() < 0.5:
            self._probe(process)

    def _strike(self, name: str, process: _Process, life: int, *more: str) -> None:
        if self._quiet or life != process.life or process.node is None:
            return
        if name in ("crash_new_leader", "crash_in_change", "crash_in_fetch"):
            self._fault(name, process.id)
            self._kill(process, self._down_for())
            if name == "crash_in_fetch" and "snapshot_piece_rot" in self.faults:
                self._do_snapshot_piece_rot()
        elif name == "late_answers":
            self._cut_off(process.id, 2_000 * _MS)
            self._ask_deposed(process, life)
        elif name == "early_rival":
            self._fault(name, process.id, *more)
            self._cut_off(process.id, 1_000 * _MS)
            for each in self.processes.values():
                if each.node is not None and each.id not in (process.id, *more):
                    self._kill(each, 1)
            self._silent_until = self.now
            self._ask_deposed(process, life)
        else:
            others = [id for id in self._ids if id != process.id]
            lost = self.random.sample(others, self.random.randint(1, len(others))) if others else []
            self._fault(name, process.id, *lost)
            self._cut_links([(process.id, other) for other in lost] + [(other, process.id) for other in lost])
            if "node_burst" in self.faults:
                self._burst(process)

    def _check_completeness(self, id: str, term: int, log: Any) -> None:
        """A new leader holds what leaders of earlier terms have committed; later terms may be ahead of it already."""
        highest = self._highest_commit
        if term <= self._commit_term or highest < log.base_index:
            return
        if highest > log.last_index or log.check_at(highest) != self._committed[highest]:
            raise Violation(f"leader completeness: {id} leads term {term} without what is committed")

    def _commit(self, process: _Process, index: int, check: int) -> None:
        if self._committed.setdefault(index, check) != check:
            raise Violation(f"state machine safety: {process.id} committed another entry {index}")
        if index > self._highest_commit:
            self._highest_commit, self._commit_term = index, process.driver().raft.term
            # The configuration that counted may have been replaced since.
            for members in (process.configuration, process.driver().raft.configuration):
                everybody = self.processes.values()
                holders = {each.id for each in everybody if each.holds(index, check, members.storages.get(each.id))}
                if _is_quorum(members, holders):
                    break
            else:
                raise Violation(f"durability: entry {index} is committed, and on {len(holders)} disks only")
            self._check_electable(index, check)

    def _check_electable(self, index: int, check: int) -> None:
        """Nobody who lacks what is committed could yet win an election (Ongaro 2014 §3.6.1, figure 3.7)."""
        known = [each for each in self.processes.values() if not each.displaced]
        for each in known:
            members = each.members()
            if each.durable.get(index) != check and each.durable_base < index and members.is_voter(each.id):
                # The vote of another disk than the one by which it knows a member does not count.
                counted = [other for other in known if other.storage == members.storages.get(other.id, other.storage)]
                voters = {other.id for other in counted if other.durable_last <= each.durable_last}
                if _is_quorum(members, voters):
                    raise Violation(f"leader completeness: entry {index} is committed, {each.id} could win without it")

    def _applied(self, count: int, history: int) -> None:
        if self._histories.setdefault(count, history) != history:
            # The machine must not raise this: to the driver it would be the transition's result.
            self.after(0, _raise, Violation(f"state machine safety: transition {count} differs between machines"))

    def _record(self, process: _Process, write: Write, storage: RecordStorage) -> None:
        """Keep account of what is on a disk now."""
        process.durable_term = max(process.durable_term, write.term)
        voted = process.votes.setdefault(write.term, write.vote) if write.vote is not None else None
        if voted != write.vote:
            raise Violation(f"one vote a term: {process.id} voted for {voted} and {write.vote} in term {write.term}")
        if write.snapshot is not None:
            slot = write.snapshot.slot
            try:
                reader = snapshots.Reader(write.snapshot, lambda number: storage.piece(GROUP, slot, number))
                deque(snapshots.verify(write.snapshot, reader.pieces()), 0)
            except RaftplugError as error:
                raise Violation(f"snapshots: that of {process.id} at {write.snapshot.index}: {error}") from None
            members = self.core.Configuration.from_plain(reader.configuration)
            process.kept.append(write.snapshot.digest)
        if write.snapshot is not None and write.snapshot_resets_log:
            process.durable.clear()
            process.durable_last = (write.snapshot.term, write.snapshot.index)
            process.configurations = {write.snapshot.index: members}
        elif write.snapshot is not None:
            known = max(index for index in process.configurations if index <= write.snapshot.index)
            if members != process.configurations[known]:
                raise Violation(f"members: a snapshot of {process.id} holds another configuration than its index had")
        if write.snapshot is not None:
            process.durable_base = max(process.durable_base, write.snapshot.index)
            process.durable[write.snapshot.index] = write.snapshot.check
        if write.first:
            for account in (process.durable, process.configurations):
                for index in [index for index in account if index >= write.first]:
                    del account[index]
            at = 0
            while at < len(write.block):
                index, term, kind, length, check = _ENTRY.unpack_from(write.block, at)
                if kind == CONFIGURATION:
                    start = at + _ENTRY.size
                    process.configurations[index] = self.core.Configuration.decode(write.block[start : start + length])
                process.durable[index] = check
                process.durable_last = (term, index)
                at += _ENTRY.size + length

    def _check_counters(self) -> None:
        """Exactly once: a counter holds what was acknowledged, and at most what is unknown on top of it."""
        machine = max((each.driver().machine for each in self.processes.values() if each.node), key=lambda m: m.count)
        for key in range(_KEYS):
            adds = [
                each for each in self.report.history if each.operation == {"op": "add", "key": f"c{key}", "value": 1}
            ]
            low = sum(each.answered is not None for each in adds)
            value = machine.values.get(f"c{key}", 0)
            if not low <= value <= len(adds):
                raise Violation(f"exactly once: counter {key} is {value}, acknowledged {low} of {len(adds)}")

    def _check_history(self) -> None:
        """What the clients saw of the keys has an order that explains it."""
        verdict = linearizability.check(
            [each.as_operation() for each in self.report.history if each.operation["key"].startswith("k")], _CHECK_STEPS
        )
        if verdict.linearizable is False:
            raise Violation(f"linearizability: {verdict}")

    def check_count(self, key: str, low: int, value: Any, who: Id) -> None:
        """A counter that is read shows what was acknowledged before, and nothing that was not begun."""
        if not low <= (value or 0) <= self._adds_begun[key]:
            text = f"{value or 0}, with {low} acknowledged before and {self._adds_begun[key]} begun"
            raise Violation(f"linearizable reads: {who} reads {key} as {text}")

    def _next_probe(self) -> None:
        if self._quiet:
            return
        self.after(self.random.randint(1, 30) * _MS * self._pace, self._next_probe)
        if self.now < self._silent_until:
            return
        process = self._some_node()
        leading = [each for each in self.processes.values() if each.node and each.driver().raft.role == LEADER]
        if len(leading) > 1:  # A deposed leader that does not know it yet is whom to ask.
            process = min(leading, key=lambda each: each.term)
        if process is not None:
            self._probe(process)

    def _probe(self, process: _Process, consistency: str | None = None, key: str | None = None) -> None:
        """Read a counter on a node, as its own process would: any way it may be read, unless that is given."""
        node = process.node
        if node is None or self.now < process.paused_until:
            return
        key = key or f"c{self.random.randrange(_KEYS)}"
        low, future = self._adds_acknowledged[key], Future()
        if consistency is None and self.random.random() < 0.05:
            consistency, low = STALE, 0
        elif consistency is None:
            consistency = LEASE if self.settings.lease_ms and self.random.random() < 0.7 else LINEARIZABLE

        def ended(_: Future) -> None:
            if future.exception(0) is None:
                self._found(key, low, future.result(0), process.id)

        future.add_done_callback(ended)
        deadline = self._clock(process) + 2_000 * _MS
        self._probes.append((process, process.life, deadline, future))
        node.call(process.driver().read, lambda machine: machine.values.get(key), future, deadline, consistency)
        self._wake(process, 0)

    def _found(self, key: str, low: int, value: Any, who: Id) -> None:
        # A future's callback must not raise: what it found is raised by the next event.
        try:
            self.check_count(key, low, value, who)
        except Violation as violation:
            self.after(0, _raise, violation)

    def _check_probes(self) -> None:
        """Nothing is left in limbo: a read whose time was up long ago has an answer."""
        for process, life, deadline, future in self._probes:
            alive = process.life == life and process.node is not None
            if alive and self._clock(process) - deadline > 4_000 * _MS and not future.done():
                raise Violation(f"no limbo: {process.id} never answered a read")

    # -------------------------------------------------------------- liveness

    def _liveness(self) -> None:
        """Faults stop for a random majority: it must elect, commit and converge within 20 election timeouts."""
        self._quiet = True
        self._cut.clear()
        self._redis_down_until = 0
        for link in sorted(self._clogged, key=str):
            self._unclog(link)
        if self.faults & {"change_members", *_OF_DIRECTORIES}:
            for client in self._clients:  # No change that is still on its way makes another majority count.
                client.crash()
            for reader in self.links.values():
                reader.inbox.clear()
                reader.stream.epoch += 1
            for process in self.processes.values():  # Nobody leads: what is on the disks must be enough.
                if process.node is not None:
                    self._kill(process, None)
            majority, bridged = self._majority_of_the_newest(), None
        else:
            majority = self._majority()
            bridged = self._bridged(majority)
        self._note("liveness", *majority, "with", bridged)
        for id, process in self.processes.items():
            process.rows.full = process.rows.failing = False
            process.paused_until = 0
            process.disk_us = 300
            process.apply_us = 0
            for finish in process.applies:
                self.after(_MS, finish)
            if id == bridged:  # By a clock that hardly runs it would not notice in time that it reaches one only.
                process.offset, process.started_at, process.rate = self._clock(process), self.now, 1.0
                self._wake(process, 0)
            elif id not in majority and not process.outdated:
                if process.node is not None:
                    self._kill(process, None)
                process.life += 1
            elif process.node is None:
                if process.good_rows is not None:
                    process.rows.put_back(process.good_rows)
                    process.good_rows = None
                self._boot(process)
            else:
                process.offset, process.started_at, process.rate = self._clock(process), self.now, 1.0
                self.after(_MS, process.complete)  # A slow disk is fast again.
                self._wake(process, 0)
        chosen = [self.processes[id] for id in majority]
        for id, process in self.processes.items():
            if process.node is None:
                self.directory.pop(id, None)  # A client need not look for it: records age.
        limit = self.now + 20 * self.settings.election_timeout_ms * _MS
        client = _Client(self, len(self._clients), idle=True)
        self._clients.append(client)
        # First a read: a leader must be able to answer it before anybody writes.
        key = f"c{_KEYS}"
        future = client.propose({"op": "get", "key": key})
        written = False
        asked = chosen[0].node
        adds = {group: self._add(chosen[0], group) for group in self._companions}
        most = self.report.events + _LIVENESS_EVENTS
        while self.now < limit and self._queue and self.report.events < most:
            self._step()
            for group, add in adds.items():  # A process that stops takes what it was asked along.
                if chosen[0].node is not asked or (add.done() and add.exception(0) is not None):
                    adds[group] = self._add(chosen[0], group)
            asked = chosen[0].node
            if not future.done():
                continue
            if future.exception(0) is not None:  # Its own time was up first: ask again.
                future = client.propose({"op": "add", "key": key, "value": 1} if written else {"op": "get", "key": key})
            elif not written:
                written, future = True, client.propose({"op": "add", "key": key, "value": 1})
            elif (
                self._converged(chosen)
                and all(self._agree(chosen, *each) for each in adds.items())
                and not self._unwanted()
            ):
                self._check_companions_counters()
                self._divergence(chosen, client)
                return
        if self._unwanted():
            raise Violation(f"identity: {', '.join(self._unwanted())} runs on, though all others know a later life")
        raise Violation(f"liveness: {', '.join(sorted(majority))} did not elect, commit and converge in time")

    def _unwanted(self) -> list[str]:
        """Who runs on an older file, or on a directory of which a copy was started: they must be told to stop.

        But for one that waits to be added: it says nothing before somebody speaks to it, and nobody does.
        """
        members = self._newest()[0].members().members()
        older = [each for each in self.processes.values() if each.outdated]
        running = [each for each in (*older, *self._originals) if each.node is not None]
        return [each.id for each in running if each.id in members or each.driver().raft.configuration.voters]

    def _is_bereft(self) -> bool:
        """Whether nobody can go on: a demotion was on its way when a disk was lost, which all the others now need.

        Or that disk alone, beside a witness's, held the newest entries.
        """
        newest, known = self._newest()
        members, lost = newest.members(), any(each.lost for each in self.processes.values())
        voters = [each for each in known if members.is_voter(each.id)]  # A learner that holds it all cannot help.
        if lost and voters and max(voters, key=self._rank).id in self._witnesses:
            return True
        return bool(members.voters) and not _is_quorum(members, {each.id for each in known})

    def _newest(self) -> tuple[_Process, list[_Process]]:
        """Who has the newest log, if need be a witness, and all whose disk is the one that the others know."""
        known = [each for each in self.processes.values() if not each.displaced]
        return max(known, key=self._rank), known

    def _rank(self, process: _Process) -> tuple[tuple[int, int], bool, str]:
        return process.durable_last, process.id not in self._witnesses, process.id

    def _majority(self) -> list[str]:
        fitting = [id for id, each in self.processes.items() if not each.displaced]
        return self.random.sample(fitting, len(self._ids) // 2 + 1)

    def _divergence(self, chosen: list[_Process], client: _Client) -> None:
        """A replica whose state was changed is named, by digests, before much more is applied."""

        def is_named() -> bool:
            return any(each.node is not None and each.driver()._diverged for each in self.processes.values())

        def is_there() -> bool:
            return any(each.node is not None and each.driver().machine.flipped for each in chosen)

        limit = self.now + 40 * self.settings.election_timeout_ms * _MS
        future = None
        while is_there() and not is_named():
            if future is None or future.done():
                future = client.propose({"op": "add", "key": f"c{_KEYS}", "value": 1})
            if self.now > limit:
                raise Violation("divergence: a state differs from the others, and nobody says so")
            self._step()

    def _majority_of_the_newest(self) -> list[str]:
        """Enough to elect whoever has the newest log, by its own configuration, whatever the others know of it."""
        newest, known = self._newest()
        members = newest.members()
        if not members.is_voter(newest.id) or self.random.random() < 0.3:
            return [each.id for each in known]
        chosen = [newest.id]
        # Those first who know least, perhaps not even that they are voters.
        for each in sorted(known, key=lambda each: (each.members().is_voter(each.id), each.durable_last)):
            id = each.id
            if id not in chosen and not _is_quorum(members, set(chosen)):
                chosen.append(id)
        return chosen

    def _bridged(self, majority: list[str]) -> str | None:
        """A leader that is left running, and reaches one of the majority only: it must not hinder the others."""
        leading = [id for id, each in self.processes.items() if each.node and each.driver().raft.role == LEADER]
        if not leading or len(self._ids) < 4 or self.random.random() < 0.5:
            return None
        bridged = leading[-1]
        if bridged in majority:
            majority[majority.index(bridged)] = self.random.choice([id for id in self._ids if id not in majority])
        for id in self._ids:
            if id not in (bridged, majority[0]):
                self._cut[bridged, id] = self._cut[id, bridged] = _NEVER
        return bridged

    def _converged(self, chosen: list[_Process]) -> bool:
        leading = [each for each in self.processes.values() if each.node and each.driver().raft.role == LEADER]
        if not leading:
            return False
        members = max(leading, key=lambda each: each.term).driver().raft.configuration
        if members.outgoing or (members.joining and len(chosen) == len(self._ids)):
            return False
        chosen = [each for each in chosen if each.id in members.members()]
        drivers = [each.driver() for each in chosen if each.node is not None]
        full = [driver for driver in drivers if driver.id not in self._witnesses]
        return (
            len(drivers) == len(chosen)
            and len({driver.applied for driver in drivers}) == 1
            and len({driver.machine.history for driver in full}) <= 1
        )

    def _agree(self, chosen: list[_Process], group: str, add: Future) -> bool:
        """Whether a companion has executed what it was asked for, everywhere: also if none of the chosen leads it."""
        drivers = [each.node.drivers[group] for each in chosen if each.node is not None]
        running = [each.node.drivers[group] for each in self.processes.values() if each.node is not None]
        commit = max(driver.raft.commit for driver in running)
        return add.done() and {(driver.applied, driver.machine.history) for driver in drivers} == {
            (commit, drivers[0].machine.history)
        }


def _is_quorum(configuration: Any, ids: set[str]) -> bool:
    """Whether `ids` hold a majority of the voters, and of the outgoing ones; by our own count, not by the rules'."""
    halves = [half for half in (configuration.voters, configuration.outgoing) if half]
    return bool(halves) and all(2 * len(ids.intersection(half)) > len(half) for half in halves)


def _flipped(value: bytes, chance: random.Random) -> bytes:
    """`value` with one bit turned over."""
    flipped = bytearray(value)
    flipped[chance.randrange(len(flipped))] ^= 1 << chance.randrange(8)
    return bytes(flipped)


def _current_pieces(rows: SimulatedRows) -> set[tuple[tuple[str, str], int]]:
    """The rows of the snapshots that a disk has; other pieces are of no use to anybody yet."""
    found: set[tuple[tuple[str, str], int]] = set()
    for place, number in rows.rows():
        if place[0] == "snapshot" and number == 0:
            found.update((("piece", place[1]), each) for each in pieces_named_by(rows.value(place, 0)))
    return found


def _fetched_pieces(rows: SimulatedRows) -> list[tuple[tuple[str, str], int]]:
    """The rows of the snapshot that is being fetched."""
    incoming = rows.get("snapshot", GROUP, 1)
    named = pieces_named_by(incoming) if incoming is not None else range(0)
    return [row for row in rows.rows() if row[0] == ("piece", GROUP) and row[1] in named]


def _raise(error: Violation) -> None:
    raise error


class _Client:
    """A client that keeps a few operations under way."""

    def __init__(self, world: Simulation, number: int, idle: bool = False) -> None:
        self.world = world
        self.id: Id = f"~c{number}"
        self._number = number
        self._idle = idle
        self._lives = 0
        self._wake_at = -1
        self._got: dict[str, Any] = {}  # What the last get of a key gave.
        self._start()

    def _start(self) -> None:
        world = self.world
        self._lives += 1
        self.id = f"~c{self._number}.{self._lives}"
        link = _Link(world, self.id, world._streams[self.id])
        world.links[self.id] = link
        self.loop = ClientLoop(
            cluster=link,
            own_id=self.id,
            group=GROUP,
            settings=world.settings,
            generator=random.Random(world.random.getrandbits(32)),
        )
        self._pending = 0
        if not self._idle:
            world.after(world.random.randint(0, 100 * _MS), self._next, self._lives)

    def crash(self) -> None:
        """Be gone; another client takes over.  What was under way is unknown."""
        self.world.links.pop(self.id, None)
        self.loop.close()
        self._start()

    def expect(self, leader: Id) -> None:
        """Ask `leader`, and it only, from now on."""
        self.loop.requester.set_leader(leader)
        self.turn()

    def turn(self) -> None:
        deadline = self.loop.turn(self.world.now)
        at = max(self.world.now + 1, deadline)
        if deadline < 1 << 62 and (self._wake_at <= self.world.now or at < self._wake_at):
            self._wake_at = at
            self.world.after(at - self.world.now, self._timer, self._lives, at)

    def _timer(self, life: int, at: int) -> None:
        if life == self._lives and at == self._wake_at:
            self._wake_at = -1
            self.turn()

    def _next(self, life: int) -> None:
        world = self.world
        if life != self._lives or world._quiet:
            return
        world.after(world.random.randint(1, 40) * _MS * world._pace, self._next, life)
        if self._pending < 4 and world.now >= world._silent_until:
            self.propose(self.operation(world.random))

    def operation(self, chance: random.Random) -> dict[str, Any]:
        key, token = f"k{chance.randrange(_KEYS)}", chance.randrange(1_000_000)
        kind = chance.choice(("get", "get", "get", "get", "put", "append", "cas", "delete", "add", "add"))
        if kind == "get":
            return {"op": "get", "key": chance.choice((key, f"c{key[1:]}"))}
        if kind == "put":
            return {"op": "put", "key": key, "value": f"{token};"}
        if kind == "append":
            return {"op": "append", "key": key, "value": f"{token};"}
        if kind == "cas":
            return {"op": "cas", "key": key, "expect": chance.choice((None, self._got.get(key))), "value": f"{token};"}
        if kind == "delete":
            return {"op": "delete", "key": key}
        return {"op": "add", "key": f"c{chance.randrange(_KEYS)}", "value": 1}

    def propose(self, operation: dict[str, Any]) -> Future:
        """Begin an operation, and keep its history."""
        world, report = self.world, self.world.report
        future = Future()
        recorded = Recorded(self.id, operation, world.now)
        key, counts = operation["key"], operation["key"].startswith("c")
        low = world._adds_acknowledged[key]
        if operation["op"] == "add":
            world._adds_begun[key] += 1
        world._reads += operation["op"] == "get"
        self._pending += 1

        def ended(_: Future) -> None:
            self._pending -= 1
            error = future.exception(0)
            if error is None:
                recorded.answered, recorded.result = world.now, future.result(0)
                if operation["op"] == "get":
                    self._got[key] = recorded.result
                report.acknowledged += 1
                if counts:
                    world._found(key, low + (operation["op"] == "add"), recorded.result, self.id)
                if operation["op"] == "add":
                    world._adds_acknowledged[key] += 1
            elif isinstance(error, OutcomeUnknown):
                report.unknown += 1
            else:
                report.history.remove(recorded)  # It certainly did not happen.
                world._reads -= operation["op"] == "get"
            world._note(self.id, operation["op"], operation["key"], type(error).__name__ if error else "ok")

        report.history.append(recorded)
        future.add_done_callback(ended)
        deadline = world.now + 5_000 * _MS
        if operation["op"] == "get":
            consistency = LEASE if world.settings.lease_ms and world.random.random() < 0.7 else LINEARIZABLE
            self.loop.read(plain.encode(operation), future, deadline, consistency)
        else:
            self.loop.propose(plain.encode(operation), future, deadline)
        self.turn()
        return future
