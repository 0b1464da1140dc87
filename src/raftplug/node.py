"""A node: one process's event loop, transport and store, and the replicas they carry.

`NodeLoop` is the loop without a thread: a test or the simulator hands it a clock, a transport, a store and an executor
and calls `turn`.  `Node` is what people use: it opens these for real and runs the loop in a thread.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from inspect import iscoroutinefunction
from typing import Any

from raftplug import core as chosen_core
from raftplug import forks, plain, results, threads
from raftplug.agenda import Agenda
from raftplug.apply import Look
from raftplug.arguments import ends_at, seconds
from raftplug.cluster import Cluster, MemoryCluster, check_cluster, is_client, read_record, room_in_messages
from raftplug.constants import (
    CANDIDATE,
    DISPLACED,
    GREETING,
    LEADER,
    LINEARIZABLE,
    LIVES,
    LIVES_WANTED,
    NEVER,
    NO_GROUP,
    NODE_HEARTBEAT,
    PRE_CANDIDATE,
    REPLY,
)
from raftplug.core import Future
from raftplug.directory import path_of
from raftplug.driver import Driver, ignore
from raftplug.errors import (
    DiskFull,
    InvalidArgument,
    MachineFailed,
    MalformedMessage,
    Overloaded,
    RaftplugError,
    Removed,
    StorageFailed,
    TooLarge,
    Unavailable,
    WrongDirectory,
)
from raftplug.events import Event, Events, Subscription
from raftplug.foreign import described, notes_of, short, text_of, type_name
from raftplug.founding import BELIEVED, FOREIGN, Founding, greeting
from raftplug.frames import (
    NO_CLUSTER,
    Frame,
    Id,
    Key,
    Sender,
    check_group,
    check_id,
    check_ids,
    cluster_uuid,
    decode_frame,
    group_number,
    is_ours,
    life,
    sign_record,
)
from raftplug.keys import Given, cluster_keys, other_key, unsigned
from raftplug.pace import Used, used_by_thread
from raftplug.plugins import Plugins, default
from raftplug.requester import check_consistency
from raftplug.senders import ABOUT_LIVES, Senders, boot_wanted, tell_lives
from raftplug.settings import Settings, settings_of
from raftplug.state_machine import abilities
from raftplug.storage import Heard, SQLiteStorage, Storage, Write, is_new
from raftplug.threads import Executor, LoopThread, Worker, run_here
from raftplug.version import VERSION

_logger = logging.getLogger("raftplug")
_FRAME_BYTES = 512 << 10
_ANNOUNCE_US = 3_000_000
_FEW_GROUPS = 100  # A node of more names no leaders in its announcements, and makes fewer.
_ANNOUNCE_MANY_US = 10_000_000
_CAMPAIGNS = 32  # At once, of one node that keeps up.
_ELECTION_US = 3_000  # What one costs, amply, where three nodes share two cores.
_NEWS_US = 100_000  # However many leaders change, one announcement in this time tells of them.
_RETRY_WRITE_US = 1_000_000
_FAST_COMMIT_US = 5_000
_VERIFY_US = 500_000  # How often a node looks whether its files are still there.
_REDIRECT_S = 0.1
_FINISH_S = 5.0  # How long a node that stops waits for its state machines, and then for observers and callbacks.
_FIND_S = 5.0  # How long a node that joins looks for the cluster.


class NodeLoop:
    """The loop of one node, a turn at a time.

    Args:
        storage: open, with its identity.
        cluster: the transport.
        machines: the state machine of each group that the node carries.
        settings: the limits.
        executor: runs commits of the storage; one is under way at a time.
        own_executor: runs them, while they are fast, in the loop's own thread: a hand-over costs more than most of
            them take.  It is called as the last thing of a turn, which may end there.  None is never.
        clock: monotonic time, µs.
        generator: the source of randomness.
        wall_ms: wall-clock time, only for the directory's readers to tell a record of today from one of yesterday.
        core: one of the two cores; None is the process's.
        on_event: called with a hook's name and its arguments.
        keys: of the cluster: the first signs, all verify; none for frames without a signature.
        apply_executor: runs what state machines have to do; by default at the end of the turn.  It calls its second
            argument at once, or has `call` do so later.
        own_thread: gives the executor for the state machine of a group that is slow; None leaves it where it is.
        used: what a job costs its thread: see `pace`.
        is_watched: whether an observer wants to know of every transition.
    """

    def __init__(
        self,
        *,
        storage: Storage,
        cluster: Cluster,
        machines: Mapping[str, Any],
        settings: Settings,
        executor: Executor,
        own_executor: Executor | None = None,
        clock: Callable[[], int],
        generator: random.Random,
        wall_ms: Callable[[], int] = lambda: 0,
        core: Any = None,
        on_event: Callable[..., None] | None = None,
        keys: Sequence[Key] = (),
        apply_executor: Executor = run_here,
        own_thread: Callable[[str], Executor] | None = None,
        used: Used | None = None,
        is_watched: Callable[[], bool] = lambda: False,
    ) -> None:
        identity = storage.identity
        self.id = identity.node
        self.cluster = cluster
        self.core = core or chosen_core
        self.refused: dict[str, int] = {}
        self._room = room_in_messages(cluster, settings)  # For one item.
        self._storage = storage
        self._settings = settings
        self._executor = executor
        self._own_executor = own_executor
        self._clock = clock
        self._wall_ms = wall_ms
        self._keys = keys
        key = keys[0] if keys else None
        self._founding = Founding(identity.cluster, identity.founded, min(storage.groups(), default=""), identity.nonce)
        self._sender = Sender(identity.node, identity.founded, identity.storage, identity.boot, identity.nonce, key)
        self.calls = self.core.Calls(clock, cluster.wake, self._run_calls)
        """What other threads want."""
        self._outgoing: dict[Id, list[tuple[int, int, bytes]]] = {}
        self._to_self: list[tuple[int, int, bytes]] = []
        self._identity = identity
        self._senders = Senders(storage.heard)
        self._introduced: set[Id] = set()  # Whom we have told which lives our directory had.
        self._keeping = False  # The commit that is under way, or waits for space, says so.
        self._lives: dict[Id, int] = {}  # The nonce that was heard last.
        self._writing: list[tuple[Driver, Write]] = []
        self._uncommitted: tuple[list[Write], list[Heard] | None] | None = None  # What the next commit is of.
        self._commit_us = 0  # What the last commit took.
        self._retry_at: int | None = None
        self._verify_at: int | None = 0 if storage.watched else None  # None while it is being done, too.
        self._announced_at = -_ANNOUNCE_MANY_US
        self._news = False  # Somebody leads whom the last announcement did not name.
        self._leaders: dict[str, Id | None] = {}
        self._told: set[str] = set()  # The problems of the transport that the log names.
        self._on_event = on_event or ignore
        self._now = 0
        self._beat_at = 0  # When the nodes that share a group are next looked at, and told that we are here.
        self._peers: dict[Id, int] = {}  # Those nodes, and when each was last heard.
        self._lost: set[Id] = set()  # Those of them that have not been heard for an election timeout.
        self._members_changed = True
        self._campaigns: dict[Driver, int] = {}  # Elections of ours that may be under way, and when each began.
        self._campaigns_counted_at = 0
        self._most_campaigns = _CAMPAIGNS
        self._agenda = Agenda()
        self._busy: dict[str, Driver] = {}  # Whom this turn visits, in the order in which they were called upon.
        self._unwritten: dict[str, Driver] = {}  # Whoever was visited while no write could begin.
        self._closed = False
        self.drivers: dict[str, Driver] = {}
        self._by_number: dict[int, Driver] = {}
        self._leaderless = len(machines)

        def heard_at(id: Id) -> int:
            return self._peers.get(id, 0)

        initial: list[Write] = []
        for group, machine in machines.items():
            stored = storage.load(group)
            if stored is None:
                raise InvalidArgument(f"group {group!r} is not in this data directory")
            number = group_number(group)
            driver = Driver(
                id=self.id,
                group=group,
                configuration=plain.decode(storage.configuration(group)),
                machine=machine,
                stored=stored,
                read_piece=functools.partial(storage.piece, group),
                settings=settings,
                send=self._queue_for(number),
                clock=clock,
                generator=generator,
                nonce=identity.nonce,
                on_event=on_event,
                core=self.core,
                more_status=self._more_status,
                life_of=self._life_of,
                storage=identity.storage,
                heard_at=heard_at,
                election_spread_us=self._election_spread,
                is_lost=self._lost.__contains__,
                executor=apply_executor,
                own_thread=partial(self._with_thread, own_thread) if own_thread is not None else None,
                used=used,
                is_watched=is_watched,
                founding=self._founding,
            )
            if driver.initial_write is not None:
                initial.append(driver.initial_write)
            driver.members_changed = False
            self.drivers[group] = driver
            self._by_number[number] = driver
            self._leaders[group] = None
            self._agenda.arm(group, driver.deadline())
        if initial:
            storage.commit(initial)

    @property
    def cluster_id(self) -> bytes | None:
        """The cluster's id, 16 bytes; None while it is unknown: see `founding`."""
        return self._founding.id

    def call(self, function: Callable[..., None], *arguments: Any) -> None:
        """Have the loop call `function(*arguments)` in its next turn.  Any thread.

        If it is a driver's method, that turn visits the driver; see `attend` for any other function.
        """
        self.calls.add((None, function, *arguments))

    def propose(self, driver: Driver, transition: bytes, future: Future, deadline: int) -> None:
        """Have the loop call `driver.propose` in its next turn.  Any thread.  See also `Calls.propose`."""
        self.calls.add((driver, transition, future, deadline))

    def attend(self, driver: Driver) -> None:
        """Visit the driver in this turn.  In the loop's own thread, before anything is done to the driver."""
        if driver.group not in self._busy and driver.group in self.drivers:
            self._busy[driver.group] = driver
            driver.set_time(self._now)

    def turn(self) -> None:
        """One turn (DESIGN 4): drain, step, send what may leave, hand the writes to the store or commit them here.

        It visits the drivers that have something to do, so its cost does not grow with those that have not.

        Raises:
            StorageFailed, InvariantViolated: the node must stop.
            Removed: it is a member of no group any more.
            WrongDirectory: the group knows this member by another data directory.
        """
        self._now = self._clock()
        for data in self.cluster.receive_messages():
            self._receive(data)
        self._visit(self._now)
        if self._commit_here() and any(each.raft.role != LEADER or not each.raft.progress for each, _ in self._writing):
            # What waited for that need not wait for anything else; but a leader goes on with what its followers answer,
            # which the next turn brings.  The time is the same: what arrived meanwhile has not shown yet who is alive.
            self._visit(self._now)
            self._commit_here()

    def _visit(self, now: int) -> None:
        """Visit those that have something to do."""
        to_self, self._to_self = self._to_self, []
        for number, kind, body in to_self:
            self._deliver(self.id, self._sender.nonce, number, kind, body, self._sender.storage)
        self._run_calls()
        beats = now >= self._beat_at
        if beats:
            self._watch_nodes(now)
        for name in self._agenda.take(now, self._deadline_of):
            if self._may_stand(self.drivers[name], now):
                self.attend(self.drivers[name])
        may_write = not (self._writing or self._keeping)
        busy, self._busy = self._busy, {}
        for name, driver in busy.items():
            write = driver.turn(now, may_write)
            if write is not None:
                self._writing.append((driver, write))
            if driver.members_changed:
                driver.members_changed, self._members_changed = False, True
            if driver.leader != self._leaders[name]:
                self._leaderless += (driver.leader is None) - (self._leaders[name] is None)
                self._leaders[name] = driver.leader
                self._news = True
        if self._founding.id is not None and self._sender.cluster == NO_CLUSTER:
            self._learn_cluster(self._founding.id)
        if not may_write:
            self._unwritten.update(busy)
        if beats:
            self._show_life()
        if self._outgoing:
            self._flush()
        begins = may_write or (self._retry_at is not None and now >= self._retry_at)
        self._keeping = self._keeping or (begins and self._senders.unkept)
        if begins and (self._writing or self._keeping):
            self._retry_at = None
            self._uncommitted = [write for _, write in self._writing], self._to_keep()
            if self._own_executor is None or self._commit_us > _FAST_COMMIT_US:
                self._commit(self._executor)
        if now >= self._announce_at():
            self._announce(now)
        if self._verify_at is not None and now >= self._verify_at:
            self._verify_at = None
            self._executor(self._storage.verify, lambda error: self.call(self._verified, error))
        # From here on another thread may go on with the next turn, while a machine or a disk that is stuck keeps this
        # one: that turn finds in `_busy` and `_uncommitted` what this one did not come to.
        self._busy.update(busy)
        if self._uncommitted and not any(driver.raft.role == LEADER for driver in busy.values()):
            return  # The leader waits for our disk, and nobody for what is applied here.
        self.cluster.flush()
        for name, driver in busy.items():
            driver.apply()
            self._busy.pop(name, None)
            self._agenda.arm(name, driver.deadline())
        if self._outgoing:
            self._flush()
        for driver in busy.values():
            if driver.raft.removed:
                self._part(driver)

    def sleep(self) -> None:
        """Wait until there is something to do."""
        self.calls.sleeping = True  # Before the look at the queue: whoever appends after it sees this, and wakes us.
        self.cluster.wait(max(0.0, (self.due() - self._clock()) / 1e6))
        self.calls.sleeping = False

    def due(self) -> int:
        """When the next turn is due if nothing arrives: microseconds of the clock; 0 is at once."""
        if self.calls or self._to_self or self._busy:
            return 0
        due = min(self._agenda.next(), self._beat_at, self._announce_at())
        for at in (self._retry_at, self._verify_at):
            due = due if at is None else min(due, at)
        return due

    def close(self) -> None:
        """Answer what is pending, send those answers, and forget the rest.  Does not close transport or storage."""
        for driver in self.drivers.values():
            driver.close()
        self._flush()
        # Before the look at the queue: whoever appends after it sees this, and looks itself.
        self._closed = self.calls.closed = True
        self._run_calls()

    def _run_calls(self) -> None:
        """Make the calls that wait; each is taken by one thread.  A closed driver only refuses."""
        calls, attended = self.calls, None
        left = len(calls)
        while left > 0:
            proposals: deque[tuple[Any, ...]] = deque()
            call = calls.take(left, proposals)
            left -= len(proposals)
            if proposals:
                self._propose(proposals)  # What was proposed to one driver is handed over as a whole.
            if call is None:
                return
            if call[0] is not None:
                calls.put_back([call])  # Proposed to another one.
                continue
            left -= 1
            _, function, *arguments = call
            owner = getattr(function, "__self__", None)
            if owner is not attended and isinstance(owner, Driver):
                self.attend(owner)
                attended = owner
            function(*arguments)

    def _propose(self, proposals: deque[tuple[Any, ...]]) -> None:
        driver: Driver = proposals[0][0]
        self.attend(driver)
        try:
            driver.propose_all(proposals)
        finally:
            self.calls.put_back(proposals)  # If it raised: whoever closes the loop answers the others.

    def _deadline_of(self, group: str) -> int:
        driver = self.drivers.get(group)
        return driver.deadline() if driver is not None else NEVER

    def _may_stand(self, driver: Driver, now: int) -> bool:
        """Whether the driver, whose time has come, may be visited: not if that began one campaign too many at once.

        What a node cannot do within an election timeout it should not begin: thousands of groups that campaign at one
        instant answer each other too late, and begin again.  It waits as if it had lost an election.  A node that does
        not keep up begins one at a time: what it leads then can go quiet, and makes room for more.
        """
        if driver.raft.role == LEADER or driver.raft.deadline() > now:
            return True
        if len(self._campaigns) >= self._most_campaigns and self._campaigns_counted_at != now:
            self._campaigns_counted_at = now
            recent = now - 500 * self._settings.election_timeout_ms
            self._campaigns = {
                each: at
                for each, at in self._campaigns.items()
                if at == now or (at > recent and each.raft.role in (PRE_CANDIDATE, CANDIDATE))
            }
        if len(self._campaigns) < self._most_campaigns:
            self._campaigns[driver] = now
            return True
        driver.set_time(now)
        driver.raft.draw_election_timer()
        self._agenda.arm(driver.group, driver.deadline())
        return False

    def _election_spread(self, leaderless: bool) -> int:
        """The random part of an election timeout: while thousands have no leader, as long as electing them takes."""
        least = 1000 * self._settings.election_timeout_ms
        return max(least, _ELECTION_US * self._leaderless) if leaderless else least

    def _part(self, driver: Driver) -> None:
        """The group goes on without us; what is stored of it stays where it is."""
        text = f"{self.id} was removed from group {driver.group!r}"
        if len(self.drivers) == 1:
            raise Removed(text)
        _logger.warning("%s: it goes on with its other groups", text)
        driver.close()
        for known in (self.drivers, self._leaders, self._busy):
            known.pop(driver.group, None)
        del self._by_number[group_number(driver.group)]
        self._leaderless = sum(leader is None for leader in self._leaders.values())
        self._news = True

    # ----------------------------------------------------------------- nodes

    def _watch_nodes(self, now: int) -> None:
        """Once a heartbeat: find the nodes that are lost.  What they concern wakes (see `quiescence`)."""
        heartbeat = 1000 * self._settings.heartbeat_ms
        late = now - self._beat_at
        kept_up = 2 * late <= heartbeat
        self._most_campaigns = (
            min(_CAMPAIGNS, self._most_campaigns + 1) if kept_up else max(1, self._most_campaigns // 2)
        )
        if late > heartbeat:  # We did not look for so long: what they said meanwhile may not have been read yet.
            self._peers = {id: min(now, heard + late) for id, heard in self._peers.items()}
        self._beat_at = (now // heartbeat + 1) * heartbeat  # When the leaders' heartbeats are due, too.
        if self._members_changed:
            self._members_changed = False
            members = dict.fromkeys(id for driver in self.drivers.values() for id in driver.requester.nodes)
            self._peers = {id: self._peers.get(id, now) for id in members}
            self._lost.intersection_update(members)
        oldest = now - 1000 * self._settings.election_timeout_ms
        for id, heard in self._peers.items():
            if heard < oldest and id not in self._lost:
                self._lost.add(id)
                self._on_event("raftplug_peer", node=self.id, peer=id, reachable=False)
                self._wake(id)

    def _hear(self, id: Id, is_new: bool) -> None:
        """A frame of `id` arrived; `is_new`: of another process than the last one."""
        if id not in self._peers:
            return
        self._peers[id] = self._now
        if is_new or id in self._lost:
            if id in self._lost:
                self._on_event("raftplug_peer", node=self.id, peer=id, reachable=True)
            self._lost.discard(id)
            self._wake(id)

    def _wake(self, id: Id) -> None:
        """Wake the groups that the node `id` leads, and those that are led here and have it as a member."""
        for driver in self.drivers.values():
            if driver.quiescence.concerns(id):
                self.attend(driver)
                driver.quiescence.wake()

    def _show_life(self) -> None:
        """A node heartbeat to whomever no heartbeat of a group goes at the same time."""
        for id in self._peers:
            if id not in self._outgoing:
                self._outgoing[id] = [(NO_GROUP, NODE_HEARTBEAT, b"")]

    def _learn_cluster(self, id: bytes) -> None:
        """From now on every frame carries the cluster's id, and any other is refused; the disk remembers it."""
        self._news = self._senders.unkept = True
        self._announced_at = -_ANNOUNCE_MANY_US  # At once: clients wait for it.
        self._sender.cluster = id
        self._storage.found(id)
        for driver in self.drivers.values():
            if driver.has_waiting():
                self.attend(driver)  # What waited for it goes on.

    # ------------------------------------------------------------------ disk

    def _commit_here(self) -> bool:
        """Commit in this thread, if there is something to commit; whether that was done."""
        if self._uncommitted is None or self._own_executor is None:
            return False
        self.cluster.flush()
        self._commit(self._own_executor)
        return True

    def _commit(self, executor: Executor) -> None:
        (writes, heard), self._uncommitted = self._uncommitted or ([], None), None

        def commit() -> None:
            began = self._clock()
            self._storage.commit(writes, heard)
            self._commit_us = self._clock() - began

        executor(commit, lambda error: self.call(self._committed, error))

    def _verified(self, error: BaseException | None) -> None:
        if error is not None and not self._closed:
            raise error
        self._verify_at = self._clock() + _VERIFY_US

    def _to_keep(self) -> list[Heard] | None:
        """What the disk is to remember of other nodes from this commit on; None if that is what it remembers."""
        if not self._keeping:
            return None
        self._senders.unkept = False
        return self._senders.lives()

    def _with_thread(self, start: Callable[[str], Executor], group: str) -> Executor:
        """A thread for a slow state machine; what it did comes back by `call`."""
        submit = start(group)
        return lambda job, done: submit(job, lambda error: self.call(done, error))

    def _committed(self, error: BaseException | None) -> None:
        if self._closed:
            return
        if isinstance(error, DiskFull):
            # Rolled back: nothing is durable, nothing is acknowledged.  Somebody with space should lead.
            _logger.error("%s", error)
            self._retry_at = self._clock() + _RETRY_WRITE_US
            self.refused["disk full: this node acknowledges nothing until there is space"] = 1
            # Also those whose writes wait for this one, which may hold nothing but the lives that were heard.
            for driver in dict.fromkeys([*(driver for driver, _ in self._writing), *self._unwritten.values()]):
                self.attend(driver)
                driver.raft.resign()
            return
        if error is not None:
            raise error if isinstance(error, RaftplugError) else StorageFailed(described(error))
        self.refused.pop("disk full: this node acknowledges nothing until there is space", None)
        done, self._writing = self._writing, []
        self._keeping = False
        for driver, _ in done:
            self.attend(driver)
            driver.written()
        unwritten, self._unwritten = self._unwritten, {}
        for driver in unwritten.values():
            self.attend(driver)

    # --------------------------------------------------------------- network

    def _receive(self, data: bytes) -> None:
        """Take a frame, or refuse it; what is damaged or foreign is counted, and changes nothing."""
        try:
            frame = decode_frame(data, self._keys)
            refusal = self._is_foreign(frame)
            if refusal is not None:
                self._refuse(refusal)
                return
            verdict = self._founding.judge(frame)
            if verdict == FOREIGN:
                text = (
                    f"a frame of another cluster, from {frame.source!r}: does it use our prefix and group by mistake?"
                )
                self._refuse(text)
                return
            if verdict == BELIEVED:
                believed = self._believes(frame)
            else:
                believed = False
                self._greet(frame)
            for item in frame.items:
                if item.kind in ABOUT_LIVES:
                    self._learn_of_lives(frame.source, item.kind, item.body)
                elif believed and item.kind != NODE_HEARTBEAT:
                    self._deliver(frame.source, frame.nonce, item.group, item.kind, item.body, frame.storage)
        except MalformedMessage as error:
            self._refuse(str(error))

    def _is_foreign(self, frame: Frame) -> str | None:
        if frame.target != self.id:
            return f"a frame for {frame.target!r}"
        if frame.source == self.id and frame.nonce != self._sender.nonce:
            return "a frame of another process with this node's id: stop one of the two"
        return None

    def _greet(self, frame: Frame) -> None:
        """Show a node, of which it is not known whether it is of this cluster, that we are there and hear it."""
        if is_client(frame.source):
            return  # It finds in the directory which id to use.
        items = self._outgoing.setdefault(frame.source, [])
        if not any(kind == GREETING for _, kind, _ in items):
            items.append((NO_GROUP, GREETING, greeting(frame.nonce)))

    def _believes(self, frame: Frame) -> bool:
        """Whether it is of the latest life of its sender.  (Whether a new directory counts, others decide.)"""
        verdict = self._senders.judge(frame, is_client(frame.source))
        if verdict.kind:
            self._outgoing.setdefault(frame.source, []).append((NO_GROUP, verdict.kind, verdict.body))
        if not verdict.believed:
            if verdict.reason is not None:
                self._refuse(verdict.reason)
            return False
        self._hear(frame.source, self._lives.get(frame.source) != frame.nonce)
        self._lives[frame.source] = frame.nonce
        if self._senders.forgotten is not None:
            self._lives.pop(self._senders.forgotten, None)
        return True

    def _life_of(self, id: Id) -> int:
        if id == self.id:
            return self._sender.nonce
        return self._lives.get(id, 0)

    def _refuse(self, reason: str) -> None:
        if reason not in self.refused:
            if len(self.refused) > 100:
                self.refused.clear()
            _logger.warning("%s: refused %s", self.id, reason)
        self.refused[reason] = count = self.refused.get(reason, 0) + 1
        _logger.debug("%s: refused %s (%d times)", self.id, reason, count)

    def _learn_of_lives(self, source: Id, kind: int, body: bytes) -> None:
        """Take what somebody says of the lives of our directory, or asks; what is meant for another one is for that."""
        if kind == DISPLACED and body == life(self._sender.storage, self._sender.nonce):
            raise WrongDirectory(
                f"the others know {self.id} by another data directory; this one is new, or old, or a copy, and may "
                f"lack what that one acknowledged. If that one is lost: raftplug members remove {self.id}, "
                f"then start with join=True on a new directory, and raftplug members add {self.id}"
            )
        if kind == LIVES_WANTED and (boot := boot_wanted(self._identity, body)) is not None:
            self._outgoing.setdefault(source, []).append((NO_GROUP, LIVES, tell_lives(self._identity, boot)))

    def _deliver(self, source: Id, nonce: int, group: int, kind: int, body: bytes, storage: bytes) -> None:
        driver = self._by_number.get(group)
        if driver is None:
            self._refuse(f"a message for a group that this node does not carry, from {source!r}")
            return
        self.attend(driver)
        driver.receive(source, nonce, kind, body, storage)

    def _queue_for(self, group: int) -> Callable[[Id, int, bytes], None]:
        def queue_item(target: Id, kind: int, body: bytes) -> None:
            if kind == REPLY and len(body) > self._room:
                body = results.undeliverable(body)
            if target == self.id:
                self._to_self.append((group, kind, body))
            else:
                self._outgoing.setdefault(target, []).append((group, kind, body))

        return queue_item

    def _flush(self) -> None:
        """One frame a destination, unless it grew too large."""
        outgoing, self._outgoing = self._outgoing, {}
        for target, items in outgoing.items():
            if target not in self._introduced and not is_client(target):
                self._introduced.add(target)
                items.insert(0, (NO_GROUP, LIVES, tell_lives(self._identity)))
            cluster: bytes | None = None
            if self._sender.cluster == NO_CLUSTER:
                cluster = self._founding.id_for(target)
                if target in self._lives and not is_client(target):
                    items.insert(0, (NO_GROUP, GREETING, greeting(self._lives[target])))
            start = size = 0
            for end, item in enumerate(items):
                if size and size + len(item[2]) > _FRAME_BYTES:
                    self.cluster.send_message(target, self._sender.encode(target, items[start:end], cluster))
                    start, size = end, 0
                size += len(item[2])
            self.cluster.send_message(target, self._sender.encode(target, items[start:], cluster))

    def _tell_problems(self) -> None:
        """Log what is wrong with the transport when it begins, and that it is over."""
        problems = set(self.cluster.problems())
        for text in sorted(problems - self._told):
            _logger.warning("%s: %s", self.id, text)
        for text in sorted(self._told - problems):
            _logger.info("%s: it is over: %s", self.id, text)
        self._told = problems

    def _announce(self, now: int) -> None:
        if self._news:
            self.cluster.register_leader(next(iter(self._leaders.values()), None))
        self._announced_at, self._news = now, False
        record = {
            "id": self.id,
            "cluster": self._founding.names.hex(),
            "founded": self._founding.id.hex() if self._founding.id is not None else None,
            "replaces": self._identity.replaced.hex(),
            "groups": list(self.drivers),
            "leader": dict(self._leaders) if len(self.drivers) <= _FEW_GROUPS else {},
            "core": self.core.name,
            "version": VERSION,
            "boot": self._sender.boot,
            "nonce": self._sender.nonce,
            "at": self._wall_ms(),
        }
        self.cluster.announce(sign_record(record, self._keys))
        self._tell_problems()

    def _announce_at(self) -> int:
        """When the next announcement is due: at 10,000 groups it has 100 KB or more."""
        if len(self.drivers) > _FEW_GROUPS:
            return self._announced_at + _ANNOUNCE_MANY_US
        return self._announced_at + (_NEWS_US if self._news else _ANNOUNCE_US)

    def _more_status(self) -> dict[str, Any]:
        problems = [f"{reason} ({count} times)" for reason, count in self.refused.items() if count > 0]
        now = self._clock()
        peers = [[id, max(0, now - heard) // 1000, id in self._lost] for id, heard in self._peers.items()]
        own = {"core": self.core.name, "version": VERSION, "peers": peers}
        return {**own, "problems": self.cluster.problems() + problems}


class Node(forks.OfOneProcess):
    """A process's part of a cluster.

    ::

        with raftplug.Node("n1", peers=["n1"], redis="redis://localhost:6379", data_dir="n1",
                           state_machine=Counter(), bootstrap=True) as node:
            node.propose({"add": 1}).result(timeout=5)
            node.read(lambda counter: counter.value)

    One node can carry many groups, with one transport, one store and one thread for all of them::

        with raftplug.Node("n1", peers=["n1"], redis="redis://localhost:6379", data_dir="n1",
                           groups={"accounts": Accounts(), "names": "kv"}, bootstrap=True) as node:
            node.propose({"op": "put", "key": "a", "value": 1}, group="names").result(timeout=5)

    It is a context manager, also of `async with`.  Once it was started it belongs to its process: in a forked child
    every method raises InvalidArgument, at once.  A state machine, and a query, must not wait: there `read`, `status`,
    and `result` of a future that is not done, raise InvalidArgument.  Callbacks of futures, and observers, may call
    anything.

    Args:
        id: this node: a whole number, or up to 64 letters, digits, '.', '_' and '-', but not of digits alone.
        peers: ids of the first voters, itself among them.  Counts only with `bootstrap`; later the log's membership
            wins.
        redis: URL of the Redis that carries the messages: redis://, rediss://, unix://, or another transport's.
        data_dir: the directory that holds this node's durable state; one process at a time.
        state_machine: the machine; or
        machine: the name of an installed plugin's.
        group: the group's name.
        groups: instead of the three: the machine, or the name of an installed one, of each group.  The first group is
            the one that is meant wherever none is named.
        bootstrap: found the cluster: only on a new directory, and the same peers and groups on every node.  In a used
            directory it founds the groups that are not in it yet.
        join: on a new directory, become a member of the cluster that serves the group, once `Client.change_members` or
            `raftplug members add` names this node.
        prefix: what every key in Redis begins with.
        settings: the limits; the defaults are for a network of one site.
        key: the cluster's key, at least 16 bytes, the same for every node and client; or two while it is rotated: the
            first signs, both verify.  None takes RAFTPLUG_CLUSTER_KEY.  Without any, a Redis must be on a loopback
            address or a unix socket.
        cluster: a transport, instead of `redis`.
        storage: an open storage, instead of `data_dir`.
        plugins: where machines, transports and observers are found; the installed ones by default.

    Raises:
        InvalidArgument, UnknownMachine: the arguments cannot be.
        WrongDirectory, DirectoryInUse, Corrupt, StorageError: from `start`, the data directory.
        MachineFailed: from `start`, a state machine cannot take over the stored snapshot.
        TransportError: from `start`, at once: the Redis cannot be used.  Its `may_pass` says whether that may pass by
            itself; then nothing was written, and `start` may be called again, as `raftplug node` does.
        Unavailable: from `start`, no thread could be started.
    """

    REMEDY = "make a new one after the fork, with a data directory of its own, or use a raftplug.Client there"

    def __init__(
        self,
        id: Id,
        *,
        peers: Sequence[Id] = (),
        redis: str | None = None,
        data_dir: str | os.PathLike[str] | None = None,
        state_machine: Any = None,
        machine: str | None = None,
        group: str = "default",
        groups: Mapping[str, Any] | None = None,
        bootstrap: bool = False,
        join: bool = False,
        prefix: str = "raftplug",
        settings: Settings | None = None,
        key: Given | None = None,
        cluster: Cluster | None = None,
        storage: Storage | None = None,
        plugins: Plugins | None = None,
    ) -> None:
        self.id = check_id(id)
        self._peers = check_ids(peers)
        if len(set(self._peers)) != len(self._peers):
            raise InvalidArgument("an id stands twice in peers=")
        if bootstrap and self.id not in self._peers:
            raise InvalidArgument(
                f"{self.id!r} itself is missing in peers=: name every first member, the same on every node"
            )
        if (redis is None) == (cluster is None):
            raise InvalidArgument("give either redis=, a Redis URL, or cluster=, an open transport")
        if (data_dir is None) == (storage is None):
            raise InvalidArgument(
                "give data_dir=, a data directory, or storage=: what a node acknowledged must survive it"
            )
        if cluster is not None:
            check_cluster(cluster)
        if groups is None:
            if (state_machine is None) == (machine is None):
                raise InvalidArgument(
                    "give either state_machine=, a state machine, or machine=, the name of an installed one"
                )
            groups = {check_group(group): state_machine if machine is None else machine}
        elif state_machine is not None or machine is not None or not isinstance(groups, Mapping) or not groups:
            raise InvalidArgument("give the state machine of each group in groups=, of one group at least")
        for name in groups:
            check_group(name)
        self._plugins = plugins or default()
        self._events = Events(id, self._plugins)
        self._machines = {
            name: self._plugins.machine(given) if isinstance(given, str) else given for name, given in groups.items()
        }
        for each in self._machines.values():
            abilities(each)
        self.group = next(iter(self._machines))
        """The group that is meant wherever none is named."""
        self._settings = settings_of(settings)
        self._keys = cluster_keys(key)
        own = "memory://" if isinstance(cluster, MemoryCluster) else f"{type(cluster).__name__}://"
        self._unsigned = unsigned(own if redis is None else redis, self._keys)
        self._redis = redis
        self._cluster = cluster
        self._data_dir = None if data_dir is None else path_of(data_dir)
        self._storage = storage
        if bootstrap and join:
            raise InvalidArgument("give bootstrap=True to found a cluster, or join=True to become a member of one")
        self._bootstrap = bootstrap
        self._join = join
        self._prefix = prefix
        self._loop: NodeLoop | None = None
        self._thread: LoopThread | None = None
        self._workers: dict[str, Worker] = {}  # Of each group whose state machine ever had a thread of its own.
        self._callbacks = Worker(f"raftplug-callbacks-{self.id}")
        self._stopping = False
        self.failure: BaseException | None = None
        """Why the node stopped by itself; None while it runs or when it was stopped."""
        forks.follow(self)

    def forked(self) -> None:
        """In a child: a node that was started, or has observers, refuses; another one may be started there."""
        if self._thread is not None or self._events.has_threads():
            super().forked()
            self.failure, self._stopping = self._refused, True

    # ------------------------------------------------------------------ life

    def start(self) -> Node:
        """Open the store and the transport and run; returns at once, before a leader is elected."""
        self._require_own_process()
        if self._thread is not None:
            raise InvalidArgument("a node is started once: make a new one")
        storage = self._storage or self._open_storage()
        store = Worker(f"raftplug-store-{self.id}", may_wait=False)
        thread = self._thread = LoopThread(
            f"raftplug-{self.id}",
            run=lambda: self._run(loop, thread),
            end=lambda error: self._end(loop, storage, store, error),
            hand_back=lambda done, error: loop.call(done, error),
            patience_s=self._settings.heartbeat_ms / 2000,
            callbacks=self._callbacks,
        )
        cluster = self._cluster
        try:
            if cluster is None:
                cluster = self._plugins.open_cluster(
                    self._redis or "",
                    signed=bool(self._keys),
                    own_id=self.id,
                    cluster=storage.identity.cluster,
                    prefix=self._prefix,
                    settings=self._settings,
                )
                check = getattr(cluster, "check", None)
                if check is not None:
                    for problem in check()["problems"]:
                        _logger.warning("%s", problem)
            store.start()
            thread.prepare()
            self._found(storage)
            loop = self._loop = NodeLoop(
                storage=storage,
                cluster=cluster,
                machines=self._machines,
                settings=self._settings,
                executor=store.submit,
                own_executor=lambda job, done: thread.execute(job, done),
                clock=chosen_core.now_us,
                generator=random.Random(storage.identity.nonce),
                wall_ms=lambda: time.time_ns() // 1_000_000,
                on_event=self._events.publish,
                is_watched=self._events.is_watched,
                keys=self._keys,
                apply_executor=lambda job, done: thread.execute(job, done),
                own_thread=self._new_worker,
                used=used_by_thread(lambda: thread.held_up_us),
            )
            storage.begin()  # Last: a start that is refused has written nothing.
        except BaseException as error:
            thread.cancel()
            self._thread = None
            store.stop()
            if cluster is not None:
                cluster.close()
            storage.close()
            if isinstance(error, MachineFailed) and self._data_dir is not None:
                raise MachineFailed(f"{self._data_dir}: {error}") from error.__cause__
            raise
        if self._unsigned is not None:
            _logger.warning("%s", self._unsigned)
        self._storage = storage
        self._cluster = cluster
        thread.start()
        return self

    def stop(self) -> None:
        """Stop cleanly: a leader hands over first.  What is pending gets OutcomeUnknown.

        It waits until the node has stopped; then 5 seconds at most for observers to see the last events, and for
        callbacks of futures, unless it is called by one of those.  In a state machine, or a query, it returns at once.
        """
        self._require_own_process()
        thread, loop = self._thread, self._loop
        if thread is None or loop is None:
            self._stopping = True
            return
        if not threads.here.may_wait:
            with contextlib.suppress(Unavailable):
                threads.start(f"raftplug-stop-{self.id}", self.stop)
                return
            self._stopping = True  # Without a hand-over, since that waits.
            loop.cluster.wake()
            return
        self._hand_over(loop)
        self._stopping = True
        loop.cluster.wake()
        thread.join()
        self._finish_observers()

    def _hand_over(self, loop: NodeLoop) -> None:
        """Let somebody else lead, so that stopping costs no election timeout (Ongaro 2014 §3.10)."""
        if self._stopping or self.failure is not None:
            return
        over: list[Driver] = []

        def begin() -> None:
            for driver in loop.drivers.values():
                with contextlib.suppress(RaftplugError):
                    if driver.leader == self.id:
                        loop.attend(driver)
                    driver.raft.transfer(None)
                    over.append(driver)
            begun.set()

        begun = threading.Event()
        loop.call(begin)
        until = time.monotonic() + self._settings.election_timeout_ms / 1000
        begun.wait(self._settings.election_timeout_ms / 1000)
        while time.monotonic() < until and any(driver.leader in (None, self.id) for driver in over):
            time.sleep(0.002)
        if over:
            time.sleep(_REDIRECT_S)  # Whoever still asks us learns who leads now.

    def join(self, timeout: float | None = None) -> bool:
        """Wait until the node has stopped, at most `timeout` seconds (None: no limit); True if it has.

        Raises:
            InvalidArgument: `timeout` is no number of seconds; or this is called by a state machine, or a query.
        """
        self._require_own_process()
        limit = seconds(timeout, past=True)
        threads.require_waiting("join", "another thread")
        if self._thread is not None:
            if not self._thread.join(None if limit is None else min(limit, threading.TIMEOUT_MAX)):
                return False
            self._finish_observers()
        return True

    def __enter__(self) -> Node:
        return self.start()

    def __exit__(self, kind: object, *_: object) -> None:
        if self._refused is None or kind is None:  # A child that leaves by an error, or by sys.exit, still does.
            self.stop()

    async def __aenter__(self) -> Node:
        return await threads.opened(self.start, self.stop)

    async def __aexit__(self, kind: object, *_: object) -> None:
        if self._refused is not None:
            self.__exit__(kind)  # In a child, whose asyncio loop is its parent's, too.
        else:
            await threads.beside(self.stop)

    # ------------------------------------------------------------------- use

    def propose(self, transition: Any, *, timeout: float | None = 10.0, group: str | None = None) -> Future:
        """Propose a transition; it is executed exactly once, or not at all, whichever node it is proposed on.

        Args:
            transition: plain data.
            timeout: seconds after which the future gets an error at the latest; None is no limit: see `arguments`.
            group: to which group; the node's first one unless given.

        Returns: a future of what `apply_transition` returned.  Its errors: TransitionFailed (the machine raised),
        OutcomeUnknown; and, certainly not executed: NotLeader, Unavailable, Overloaded.

        Raises:
            InvalidTransition, TooLarge, Overloaded, Unavailable: at once; nothing was proposed.
            InvalidArgument: likewise: this node carries no such group, or `timeout` is no number of seconds.
        """
        encoded = plain.encode(transition)
        if len(encoded) > self._settings.max_transition_bytes:
            raise TooLarge(
                f"the transition has {len(encoded)} bytes, the limit is {self._settings.max_transition_bytes} "
                "(max_transition_bytes)"
            )
        loop = self._enter()
        future: Future = loop.calls.propose(self._driver(loop, group), encoded, timeout)
        return future

    def read_async(
        self, query: Any, *, timeout: float | None = 5.0, group: str | None = None, consistency: str = LINEARIZABLE
    ) -> Future:
        """Read linearizably: as `read`, but returns a future."""
        look = query if callable(query) else _asking(plain.encode(query))
        if iscoroutinefunction(look):
            raise InvalidArgument("a function that reads must be a plain one: no async def")
        consistency = check_consistency(consistency)
        until = ends_at(chosen_core.now_us(), timeout)
        loop = self._enter()
        future = Future()
        loop.call(self._driver(loop, group).read, look, future, until, consistency)
        return future

    def read(
        self, query: Any, *, timeout: float | None = 5.0, group: str | None = None, consistency: str = LINEARIZABLE
    ) -> Any:
        """Read linearizably: see everything that was acknowledged before the call, on any node (Ongaro 2014 §6.4).

        Args:
            query: a function of the state machine, which must change nothing and not keep it; or the argument of the
                machine's own `query`.
            timeout: seconds; None is no limit: see `arguments`.
            group: of which group; the node's first one unless given.
            consistency: weaker by name only. "lease": the leader answers by its lease, if it holds one, without asking
                the others; it needs `Settings.lease_ms` on every node, and trusts clocks as that says. "stale": what
                this node has applied, however old that is; it needs no leader.

        Returns: what the function, or `query`, returned.

        Raises:
            QueryFailed: it raised.
            InvalidTransition: what is to be asked is not plain data.
            Unavailable: no leader confirmed the read in time.
            InvalidArgument: this node carries no such group, or `timeout` is no number of seconds.
        """
        limit = seconds(timeout)
        threads.require_waiting("read", "read_async")
        try:
            future = self.read_async(query, timeout=limit, group=group, consistency=consistency)
            return future.result(None if limit is None else limit + 1.0)
        except TimeoutError:
            raise Unavailable("this node is too busy to answer the read in time") from None

    def subscribe(self, *kinds: str, callback: Callable[[Event], object] | None = None) -> Subscription:
        """Observe what happens in this node, from now on: see `raftplug.events`.  Also before `start`.

        Args:
            kinds: of events, such as "leader_changed"; all of them unless given.
            callback: called with each event, in a thread of its own; without one, iterate over what is returned.

        Raises:
            InvalidArgument: there is no event of such a kind, or the callback is no function.
        """
        self._require_own_process()
        return self._events.subscribe(kinds, callback)

    def status(self, group: str | None = None) -> dict[str, Any]:
        """This node's row of `raftplug status`, of a group; of the first one unless given."""
        threads.require_waiting("status", "raftplug status, from outside")
        loop, future = self._running(), Future()
        driver = self._driver(loop, group)
        loop.call(lambda: future.set_result(driver.status()))
        try:
            row: dict[str, Any] = future.result(5.0)
        except TimeoutError:
            raise Unavailable("this node is too busy to answer") from None
        return row

    @property
    def leader(self) -> Id | None:
        """Id of the leader as far as this node knows; of the first group, if it carries several."""
        return self.leaders()[self.group] if self._loop is not None else None

    @property
    def is_leader(self) -> bool:
        """Whether this node leads, as far as it knows; the first group, if it carries several."""
        return self.leader == self.id

    def leaders(self) -> dict[str, Id | None]:
        """Id of each group's leader as far as this node knows."""
        self._require_own_process()
        drivers = self._loop.drivers if self._loop is not None else {}
        return {group: drivers[group].leader if group in drivers else None for group in self._machines}

    # -------------------------------------------------------------- internal

    def _driver(self, loop: NodeLoop, group: str | None) -> Driver:
        name = self.group if group is None else group
        driver = loop.drivers.get(name) if type(name) is str else None
        if driver is None:
            raise InvalidArgument(f"this node carries no group {short(name)}; it carries: {_named(loop.drivers)}")
        return driver

    def _running(self) -> NodeLoop:
        self._require_own_process()
        if self._loop is None or self._stopping or self.failure is not None:
            raise Unavailable("this node is not running" + (f": {text_of(self.failure)}" if self.failure else ""))
        return self._loop

    def _enter(self) -> NodeLoop:
        """The loop, if it takes one more call."""
        loop = self._loop
        if loop is None or self._stopping or self.failure is not None:
            loop = self._running()  # It says why.
        if len(loop.calls) >= self._settings.max_pending:
            raise Overloaded("too many calls wait for this node's event loop: try again later")
        return loop

    def _open_storage(self) -> Storage:
        """Open the data directory; nothing is written there before `begin`."""
        directory = self._data_dir or ""
        if self._join and is_new(directory):
            return SQLiteStorage(directory, self.id, cluster=self._find_cluster(), bootstrap=True, begin=False)
        if not self._bootstrap:
            return SQLiteStorage(directory, self.id, begin=False)
        # A new group in a used directory belongs to the cluster of those that are there: so `cluster` is for a new one.
        uuid = cluster_uuid(",".join(sorted(self._machines)), self._peers)
        return SQLiteStorage(directory, self.id, cluster=uuid, bootstrap=True, groups=self._machines, begin=False)

    def _find_cluster(self) -> bytes:
        """The cluster that serves the groups, by the directory."""
        own_id = "~" + os.urandom(8).hex()
        groups = f"group {self.group!r}" if len(self._machines) == 1 else f"any of the groups {_named(self._machines)}"
        directory = self._cluster or self._plugins.open_cluster(
            self._redis or "",
            signed=bool(self._keys),
            own_id=own_id,
            cluster=NO_CLUSTER,
            prefix=self._prefix,
            settings=self._settings,
        )
        directory.believe(lambda record: is_ours(record, self._keys))
        strangers = False
        try:
            until = time.monotonic() + _FIND_S
            while time.monotonic() < until:
                named = [
                    (known.names, record)
                    for record in directory.directory()
                    for group in self._machines
                    if (known := read_record(record, group))
                ]
                found = {uuid for uuid, record in named if is_ours(record, self._keys)}
                strangers = bool(named)
                if len(found) > 1:
                    raise InvalidArgument(f"{groups} is served by two clusters: give one of them another prefix=")
                if found:
                    return found.pop()
                directory.wait(0.05)
        finally:
            if directory is not self._cluster:
                directory.close()
        if strangers:
            raise Unavailable(other_key(self.group, self._keys))
        raise Unavailable(f"no node of {groups} was found to join: is one running, with this prefix= and group=?")

    def _found(self, storage: Storage) -> None:
        """Write the bootstrap configuration into a new storage; in a used one, the stored membership wins."""
        carried = set(storage.groups())
        new = [group for group in self._machines if group not in carried]
        if new and not (self._bootstrap or self._join):
            raise InvalidArgument(
                f"the data directory carries no group {new[0]!r}; it carries: {_named(carried)}; to found another one, "
                "give bootstrap=True and peers=, alike on every node"
            )
        founders = chosen_core.Configuration(tuple(self._peers if self._bootstrap else ()))
        if new:
            storage.create_all(new, plain.encode(founders.plain()))
        left = carried - self._machines.keys()
        if left:
            _logger.warning("the data directory carries groups that were not given and stay down: %s", _named(left))
        for group in self._machines if self._peers and not self._join else ():
            stored = chosen_core.Configuration.from_plain(plain.decode(storage.configuration(group)))
            if stored != founders and set(self._peers) != set(stored.members()):
                text = "peers= differs from the stored membership %s of group %s, which wins"
                _logger.warning(text, stored.members(), group)

    def _run(self, loop: NodeLoop, thread: LoopThread) -> None:
        while not self._stopping:
            thread.begin_turn()
            loop.turn()
            loop.sleep()

    def _end(self, loop: NodeLoop, storage: Storage, store: Worker, error: BaseException | None) -> None:
        """The loop has ended: by `stop`, or by an error."""
        if error is not None:
            self.failure = error
            text = " ".join([text_of(error), *notes_of(error)])
            _logger.critical("node %s stops: %s: %s", self.id, type_name(error), text)
            self._events.publish("raftplug_stopped", node=self.id, error=f"{type_name(error)}: {text}")
        for step in (
            self._finish_applies,
            loop.close,
            store.stop,
            loop.cluster.close,
            storage.close,
            self._events.close,
        ):
            try:
                step()
            except Exception as raised:
                _logger.error("while node %s stopped: %s", self.id, described(raised))

        self._callbacks.stop(0)

    def _finish_observers(self) -> None:
        """Wait for observers and callbacks to see what has ended, but not for ever, and not in any of their threads."""
        if not threads.here.is_own:
            until = time.monotonic() + _FINISH_S
            self._events.close(_FINISH_S)
            self._callbacks.join(max(0.0, until - time.monotonic()))

    def _finish_applies(self) -> None:
        """Wait for state machines and commits at work, but not for ever."""
        until = time.monotonic() + _FINISH_S
        done = [worker.stop(max(0.0, until - time.monotonic())) for worker in self._workers.values()]
        if self._thread is not None:
            done.append(self._thread.join_kept(max(0.0, until - time.monotonic())))
        if not all(done):
            text = "node %s: a state machine, or the disk, is still at work after %g s: it is left alone"
            _logger.error(text, self.id, _FINISH_S)

    def _new_worker(self, group: str) -> Executor:
        worker = self._workers.get(group)
        if worker is None:
            worker = Worker(f"raftplug-apply-{self.id}-{group}", may_wait=False)
            worker.start()
            self._workers[group] = worker
        return worker.submit


def _asking(query: bytes) -> Look:
    """Asks a machine's own `query`; request and answer are copies, as they are of a client."""
    return lambda machine: plain.decode(results.ask(machine, query))


def _named(groups: Iterable[str]) -> str:
    """The names of groups for a message, not without end."""
    names = sorted(groups)
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "") or "none"
