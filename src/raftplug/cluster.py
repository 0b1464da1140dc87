"""The transport: a mover of bytes between processes.  What a transport author subclasses, and the one in memory.

Two methods are a whole transport, as in the seed: `send_message` and `receive_messages`.  A message is opaque bytes; it
may be lost, repeated by the network, delayed or reordered without harm, since safety never depends on a transport
(DESIGN 1).  The other methods have working defaults; override them for speed and comfort.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar, Final, NamedTuple

from raftplug.constants import LARGEST_MESSAGE, MESSAGE_OVERHEAD
from raftplug.errors import InvalidArgument
from raftplug.foreign import type_name
from raftplug.frames import NO_CLUSTER, Id, check_id
from raftplug.settings import Settings

_POLL_S: Final = 0.005  # How often the default `wait` looks: a plain transport cannot say when something arrives.
_INBOX_MESSAGES: Final = 65_536  # A receiver that never looks costs no more than this many messages.


class Cluster:
    """How a process talks to the others.  One thread, its owner's, calls every method but `wake`.

    Nodes are addressed by their id within their cluster; ids of clients start with "~" and are unique everywhere.  No
    method raises because of what the network does: `problems` says what is wrong.

    Attributes:
        largest_message: bytes of the largest message that it delivers; at least 2 MB.  A transport that delivers less
            than the default, 8 MB, says so in its class.
    """

    largest_message: int = LARGEST_MESSAGE

    def send_message(self, to_id: Id, message: bytes) -> None:
        """Send `message` to the process `to_id`.

        It must not block, and is allowed to fail silently: what is lost is sent again by the rules.

        Args:
            to_id: an id of this cluster, or a client's.
            message: opaque; whole on arrival or not delivered at all.
        """
        raise NotImplementedError(f"{type(self).__name__} must override send_message(to_id, message)")

    def receive_messages(self) -> list[bytes]:
        """Return what has arrived since the last call, oldest first.

        It must not block, and never returns the same message twice.
        """
        raise NotImplementedError(f"{type(self).__name__} must override receive_messages()")

    def halt(self) -> bool:
        """Return True to end `Replica.start`.  Asked once a turn."""
        return False

    def register_leader(self, leader_id: Id | None) -> None:
        """Learn who leads, None while nobody is known to.  Called when that changes."""

    # Beyond the seed: for Node and Client.

    def set_cluster(self, cluster: bytes) -> None:
        """Address the nodes of this cluster from now on: a client learns which one from the directory.

        Args:
            cluster: 16 bytes that identify the cluster.
        """

    def wait(self, timeout_s: float) -> None:
        """Return when something may have arrived, `wake` was called, or `timeout_s` seconds have passed.

        It may return early.  The default returns after 5 ms at most, since it cannot know of arrivals; a transport
        that can should override it together with `wake`, and may do its sending here.
        """
        woken = self._woken()
        woken.wait(min(max(timeout_s, 0.0), _POLL_S))
        woken.clear()

    def flush(self) -> None:
        """Send what is queued, if `wait` would do that: the caller is busy for a while.  It must not block."""

    def wake(self) -> None:
        """Make the current or the next `wait` return at once.  Any thread."""
        self._woken().set()

    def announce(self, record: dict[str, Any]) -> None:
        """Publish this process's record in the directory.  It must not block.

        Args:
            record: plain data with at least "id" and "cluster" (32 hexadecimal digits); it replaces the one before.
        """

    def directory(self) -> list[dict[str, Any]]:
        """Return the newest record of each process that was seen: hints, perhaps stale or none.  It must not block."""
        return []

    def directory_is_complete(self) -> bool:
        """Whether `directory` shows every process that announces itself, as far as can be known."""
        return True

    def believe(self, is_believed: Callable[[dict[str, Any]], bool]) -> None:
        """Learn which records the owner believes: a transport that bounds what it keeps keeps these first.

        Args:
            is_believed: asked about a record; may be called in any method, in the owner's thread.
        """

    def problems(self) -> list[str]:
        """Return what is wrong now, one line each; an empty list when nothing is."""
        return []

    def close(self) -> None:
        """Withdraw this process's record, and release everything.  Called once; may take half a second."""

    def _woken(self) -> threading.Event:
        # A subclass need not call __init__, so the event is made when it is first wanted; setdefault is atomic.
        event: threading.Event | None = self.__dict__.get("_cluster_woken")
        if event is None:
            event = self.__dict__.setdefault("_cluster_woken", threading.Event())
        return event


def check_cluster(cluster: object) -> None:
    """Refuse what is no `Cluster`: a node and a client need all of its methods, and their defaults.

    Raises:
        InvalidArgument: it is none.
    """
    if not issubclass(type(cluster), Cluster):
        raise InvalidArgument(f"cluster must be a raftplug.Cluster: {type_name(cluster)} is no subclass of it")


def room_in_messages(cluster: Cluster, settings: Settings) -> int:
    """How many bytes one item may have, so that a message of it is delivered.

    Raises:
        InvalidArgument: the settings allow larger ones of what must be delivered.
    """
    room = getattr(cluster, "largest_message", LARGEST_MESSAGE) - MESSAGE_OVERHEAD
    for name in ("max_transition_bytes", "max_append_bytes", "snapshot_piece_bytes"):
        if getattr(settings, name) > room:
            raise InvalidArgument(f"settings: {name} must be at most {room}: no larger message is delivered")
    return room


_Address = tuple[bytes, Id]  # The cluster (empty for a client) and the id.


def is_client(id: Id) -> bool:
    """Whether `id` is a client's: it starts with "~" and needs no cluster."""
    return isinstance(id, str) and id.startswith("~")


class MemoryHub:
    """Where the `MemoryCluster`s of one process meet: inboxes, and a directory.

    It has no clock, thread or chance in it, so a test on a fake clock that uses one thread is deterministic.

    Args:
        drop: asked about every message as drop(source id, target id, message); True loses it.  None loses none.
        inbox_messages: an inbox that holds so many drops what else arrives.
    """

    _named: ClassVar[dict[str, MemoryHub]] = {}

    def __init__(
        self, drop: Callable[[Id, Id, bytes], bool] | None = None, inbox_messages: int = _INBOX_MESSAGES
    ) -> None:
        self.drop = drop
        self.inbox_messages = inbox_messages
        self.members: dict[_Address, MemoryCluster] = {}
        self.records: dict[tuple[Any, Any], dict[str, Any]] = {}
        self.lock = threading.Lock()

    @classmethod
    def named(cls, name: str) -> MemoryHub:
        """The process-wide hub of that name."""
        return cls._named.setdefault(name, cls())


class MemoryCluster(Cluster):
    """A transport within one process: every node and client on the same hub reaches every other.

    Opening one under an id that is in use takes the inbox over, as a restarted process does.

    Args:
        hub: where the others are.
        own_id: of this node or client.
        cluster: 16 bytes that identify the cluster.
    """

    def __init__(self, hub: MemoryHub, own_id: Id, cluster: bytes = bytes(16)) -> None:
        self._hub = hub
        self._id = own_id
        self._cluster = cluster
        self._inbox: deque[bytes] = deque()
        self._event = threading.Event()
        self._announced: tuple[Any, Any] | None = None
        self._address = self._address_of(own_id)
        with hub.lock:
            hub.members[self._address] = self

    def send_message(self, to_id: Id, message: bytes) -> None:
        """Put `message` into the inbox of `to_id`; it is lost when there is none, or it is full."""
        hub = self._hub
        target = hub.members.get(self._address_of(to_id))
        if target is None or len(target._inbox) >= hub.inbox_messages:
            return
        if hub.drop is not None and hub.drop(self._id, to_id, message):
            return
        target._inbox.append(bytes(message))
        target._event.set()

    def receive_messages(self) -> list[bytes]:
        """Return what has arrived since the last call, oldest first."""
        inbox = self._inbox
        # Others may append meanwhile; only this thread takes.
        return [inbox.popleft() for _ in range(len(inbox))]

    def set_cluster(self, cluster: bytes) -> None:
        """Address the nodes of this cluster from now on.  The own address stays, so this is for clients."""
        self._cluster = cluster

    def wait(self, timeout_s: float) -> None:
        """Return when something arrived, `wake` was called, or `timeout_s` seconds have passed."""
        if not self._inbox:
            self._event.wait(max(timeout_s, 0.0))
        self._event.clear()

    def wake(self) -> None:
        """Make the current or the next `wait` return at once.  Any thread."""
        self._event.set()

    def announce(self, record: dict[str, Any]) -> None:
        """Publish this process's record."""
        with self._hub.lock:
            self._announced = (record.get("cluster"), record.get("id"))
            self._hub.records[self._announced] = dict(record)

    def directory(self) -> list[dict[str, Any]]:
        """The record of each process on the hub."""
        with self._hub.lock:
            return [dict(record) for record in self._hub.records.values()]

    def close(self) -> None:
        """Withdraw the record and the inbox, unless another took them over."""
        with self._hub.lock:
            if self._hub.members.get(self._address) is self:
                del self._hub.members[self._address]
                if self._announced is not None:
                    self._hub.records.pop(self._announced, None)

    def _address_of(self, id: Id) -> _Address:
        return (b"" if is_client(id) else self._cluster, id)


def open_memory(url: str, *, own_id: Id, cluster: bytes, **options: Any) -> MemoryCluster:
    """Open `memory://NAME`: the process-wide hub of that name.

    Args:
        url: memory://NAME
        own_id: of this node or client.
        cluster: 16 bytes that identify the cluster.
        options: what other transports take; there is nothing to set here.

    Raises:
        InvalidArgument: the URL has no name.
    """
    name = url.partition("://")[2].strip("/")
    if not name:
        raise InvalidArgument("memory:// needs a name that the processes' nodes share, such as memory://test")
    return MemoryCluster(MemoryHub.named(name), own_id, cluster)


class Record(NamedTuple):
    """What a node says of itself in the directory.

    Args:
        names: digest of the names of its cluster's founders, to which its messages are addressed; 16 bytes.
        cluster: the cluster's id, 16 bytes; empty while the node does not know it.
        replaces: ids that the cluster had before it was recovered, 16 bytes each: records with them are of lost nodes.
        id: of the node.
        leader: of the group, as far as the node knows; None if it knows none.
        when_ms: the node's wall-clock time, milliseconds.
    """

    names: bytes
    cluster: bytes
    replaces: bytes
    id: Id
    leader: Any
    when_ms: float


def read_record(record: Any, group: str) -> Record | None:
    """A directory record of a node of the group; None for any other."""
    try:
        if group not in record["groups"]:
            return None
        id, names = check_id(record["id"]), bytes.fromhex(record["cluster"])
        cluster, replaces = bytes.fromhex(record.get("founded") or ""), bytes.fromhex(record.get("replaces") or "")
        if is_client(id) or len(names) != 16 or names == NO_CLUSTER or len(cluster) not in (0, 16):
            return None
        leaders, at = record.get("leader"), record.get("at")
        leader = leaders.get(group) if isinstance(leaders, dict) else None
        when = float(at) if isinstance(at, int | float) else 0.0
        return Record(names, cluster, replaces, id, leader if isinstance(leader, int | str) else None, when)
    except (TypeError, KeyError, ValueError, AttributeError, OverflowError, InvalidArgument):
        return None
