"""The seed's API: one replica of one group that talks through a `Cluster` of the user's and blocks its caller's thread.

`Replica` is little-raft's, line for line: a machine, a cluster, wake-ups on two queues, `start` until `halt`.  For a
process with its own thread, store and transport see `raftplug.Node`.
"""

from __future__ import annotations

import functools
import logging
import queue
import random
import secrets
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from raftplug import core as chosen_core
from raftplug import plain
from raftplug.arguments import finite, whole
from raftplug.cluster import Cluster
from raftplug.constants import LEADER, REPLY, REQUEST
from raftplug.driver import Driver
from raftplug.errors import InvalidArgument, InvalidTransition, MachineFailed, MalformedMessage, Overloaded
from raftplug.foreign import described, is_interrupt, short, type_name
from raftplug.frames import Id, Sender, check_id, check_ids, cluster_uuid, decode_frame, group_number
from raftplug.settings import MOST, Settings
from raftplug.storage import MemoryStorage, Storage

_logger = logging.getLogger("raftplug")
_GROUP = "replica"
_POLL_S = 0.005


class Replica:
    """One member of one Raft group.

    Args:
        id: this replica, int or str.
        peer_ids: the others.
        cluster: sends and receives; may be the same object as the state machine.
        state_machine: the machine.
        snapshot_delta: a snapshot is made after so many applied transitions; 0 for never.
        noop_transition: given to the machine when a leader begins its term.
        heartbeat_timeout: seconds between a leader's heartbeats.
        election_timeout_range: (min, max) seconds; two to three heartbeats at least.
        storage: where term, vote, log and snapshots live; in memory unless given.

    Raises:
        InvalidArgument: an argument cannot be.
        InvalidTransition: `noop_transition` is not plain data.
    """

    def __init__(
        self,
        id: Id,
        peer_ids: Sequence[Id],
        cluster: Cluster,
        state_machine: Any,
        snapshot_delta: int,
        noop_transition: Any,
        heartbeat_timeout: float,
        election_timeout_range: tuple[float, float],
        storage: Storage | None = None,
        *,
        core: Any = None,
    ) -> None:
        heartbeat = finite(heartbeat_timeout, "heartbeat_timeout")
        if not isinstance(election_timeout_range, Sequence) or len(election_timeout_range) != 2:
            raise InvalidArgument(f"election_timeout_range must be (min, max), not {short(election_timeout_range)}")
        shortest, longest = (finite(each, "election_timeout_range") for each in election_timeout_range)
        if heartbeat > shortest / 2 or longest < shortest:
            raise InvalidArgument("the election timeout must be at least twice the heartbeat, and (min, max) in order")
        members = [check_id(id), *check_ids(peer_ids)]
        plain.encode(noop_transition)  # It is refused here rather than when it is applied.
        configuration = (core or chosen_core).Configuration(members)
        uuid = cluster_uuid(_GROUP, members)
        if storage is None:
            _logger.warning("replica %s keeps term, vote and log in memory only: it must never be restarted", id)
            storage = MemoryStorage(id, cluster=uuid)
        if storage.load(_GROUP) is None:
            storage.create(_GROUP, plain.encode(configuration.plain()))
        stored = storage.load(_GROUP)
        if stored is None:
            raise InvalidArgument("the storage forgets what it was just given")
        self._storage = storage
        self._cluster = cluster
        self._machine = state_machine
        identity = storage.identity
        self._sender = Sender(id, uuid, identity.storage, identity.boot, secrets.randbits(62))
        self._group = group_number(_GROUP)
        self._outgoing: dict[Id, list[tuple[int, int, bytes]]] = {}
        election_ms = max(2, round(shortest * 1000))
        settings = Settings(
            election_timeout_ms=election_ms,
            heartbeat_ms=min(max(1, round(heartbeat * 1000)), election_ms // 2),
            snapshot_entries=whole(snapshot_delta, "snapshot_delta", 0, MOST),
        ).validate()
        self._driver = Driver(
            id=id,
            group=_GROUP,
            configuration=plain.decode(storage.configuration(_GROUP)),
            machine=state_machine,
            stored=stored,
            read_piece=functools.partial(storage.piece, _GROUP),
            settings=settings,
            send=self._queue,
            clock=_now,
            generator=random.Random(self._sender.nonce),
            nonce=self._sender.nonce,
            noop_transition=noop_transition,
            election_spread_us=lambda leaderless: round((longest - shortest) * 1e6),
            core=core,
        )
        if self._driver.initial_write is not None:
            storage.commit([self._driver.initial_write])
        self._leader: Id | None = None
        self._pending: deque[Any] = deque()

    def start(self, recv_msg: queue.SimpleQueue[Any], recv_transition: queue.SimpleQueue[Any]) -> None:
        """Run until the cluster's `halt` says so.

        Args:
            recv_msg: an item means that `Cluster.receive_messages` has something.
            recv_transition: an item means that `StateMachine.get_pending_transitions` has something; may be the same.
        """
        try:
            while not self._cluster.halt():
                self._turn()
                self._wait(recv_msg, recv_transition)
        finally:
            self._driver.close()

    def _turn(self) -> None:
        driver = self._driver
        driver.set_time(_now())
        for data in self._cluster.receive_messages():
            self._receive(data)
        self._propose_pending()
        write = driver.turn(_now(), True)
        self._flush()
        while write is not None:
            self._storage.commit([write])
            driver.written()
            write = driver.turn(_now(), True)
            self._flush()
        driver.apply()
        self._flush()
        if driver.leader != self._leader:
            self._leader = driver.leader
            self._cluster.register_leader(self._leader)

    def _propose_pending(self) -> None:
        """Propose what the machine has; what there is no room for waits here, since the machine gives it once."""
        if self._driver.abilities.has_pending:
            try:
                self._pending.extend(self._machine.get_pending_transitions())
            except BaseException as raised:
                if is_interrupt(raised):
                    raise
                text = f"get_pending_transitions of {type_name(self._machine)} raised {described(raised)}"
                raise MachineFailed(f"{text}: correct the machine, and start this replica again") from raised
        while self._pending:
            try:
                self._driver.propose_here(self._pending[0])
            except Overloaded:
                return
            except InvalidTransition as error:
                _logger.error("replica %s: a pending transition was not proposed: %s", self._driver.id, error)
            self._pending.popleft()

    def _receive(self, data: bytes) -> None:
        try:
            frame = decode_frame(data)
            if frame.target != self._driver.id or frame.cluster != self._sender.cluster:
                raise MalformedMessage(f"a frame for {frame.target!r}, or of another cluster")
            for item in frame.items:
                if item.group == self._group and item.kind not in (REQUEST, REPLY):
                    self._driver.receive(frame.source, frame.nonce, item.kind, item.body)
        except MalformedMessage as error:
            _logger.warning("replica %s: refused %s", self._driver.id, error)

    def _queue(self, target: Id, kind: int, body: bytes) -> None:
        if kind not in (REQUEST, REPLY):  # The seed forwards nothing.
            self._outgoing.setdefault(target, []).append((self._group, kind, body))

    def _flush(self) -> None:
        outgoing, self._outgoing = self._outgoing, {}
        for target, items in outgoing.items():
            self._cluster.send_message(target, self._sender.encode(target, items))

    def _wait(self, recv_msg: queue.SimpleQueue[Any], recv_transition: queue.SimpleQueue[Any]) -> None:
        """Until a wake-up or a deadline.  Two queues cannot be waited for at once: the second one is polled."""
        deadline = min(self._driver.deadline(), _now() + 100_000)
        while (left := (deadline - _now()) / 1e6) > 0:
            try:
                recv_msg.get(timeout=left if recv_transition is recv_msg else min(left, _POLL_S))
                break
            except queue.Empty:
                if not recv_transition.empty():
                    break
        for wake_ups in (recv_msg, recv_transition):
            while not wake_ups.empty():
                wake_ups.get()

    @property
    def is_leader(self) -> bool:
        """Whether this replica leads, as far as it knows."""
        return bool(self._driver.raft.role == LEADER)


def _now() -> int:
    return time.monotonic_ns() // 1000
