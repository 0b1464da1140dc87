"""The network: links that can be cut and clogged, and a Redis with one inbox a process."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from raftplug.cluster import Cluster
from raftplug.frames import Id
from raftplug.redis_streams import START, Cursor
from raftplug.testing.simulation.part import Part
from raftplug.testing.simulation.plan import MS

if TYPE_CHECKING:
    from raftplug.testing.simulation.world import Simulation


_INBOX_ENTRIES = 50


class Stream:
    """An inbox on the Redis: entries with the ids that the server's clock gives them."""

    def __init__(self) -> None:
        self.entries: deque[tuple[int, bytes]] = deque(maxlen=_INBOX_ENTRIES)
        self.last = 1
        self.behind = 0  # The server's clock, µs.
        self.epoch = 0  # What was on its way before a flush does not arrive.

    def add(self, now: int, message: bytes) -> None:
        """XADD."""
        self.last = max(self.last + 1, now - self.behind)
        self.entries.append((self.last, message))

    def last_id(self) -> bytes:
        """As XINFO has it."""
        return b"%d-0" % self.last


class Link(Cluster):
    """A process's transport: what `redis_streams` does with one inbox, less the sockets."""

    def __init__(self, world: Simulation, id: Id, stream: Stream) -> None:
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
            self.world.network.wake_owner(self.id)
        elif not self.looking:
            self.looking = True
            self.world.after(self.world.plan.settings.election_timeout_ms * MS // 2, self._look)

    def _look(self) -> None:
        self.looking = False
        before = self.cursor.id
        self.cursor.compare(self.stream.last_id())
        if self.cursor.id != before and self.world.network.links.get(self.id) is self:
            self.world.network.reread(self)

    def send_message(self, to_id: Id, message: bytes) -> None:
        self.world.network.send(self.id, to_id, message)

    def receive_messages(self) -> list[bytes]:
        messages, self.inbox = self.inbox, []
        return messages

    def announce(self, record: dict[str, Any]) -> None:
        self.world.network.directory[self.id] = dict(record)

    def directory(self) -> list[dict[str, Any]]:
        return [self.world.network.directory[id] for id in sorted(self.world.network.directory, key=str)]


class Network(Part):
    """What is on its way, and what waits in inboxes."""

    def __init__(self, world: Simulation) -> None:
        super().__init__(world)
        self.directory: dict[Id, dict[str, Any]] = {}
        self.links: dict[Id, Link] = {}  # Of who is up.
        self.streams: defaultdict[Id, Stream] = defaultdict(Stream)
        self.cut_until: dict[tuple[Id, Id], int] = {}
        self.clogged: dict[tuple[Id, Id], list[bytes]] = {}
        self.down_until = 0  # The Redis takes and gives nothing before.
        self._last_arrival: dict[tuple[Id, Id], int] = {}

    def send(self, source: Id, target: Id, message: bytes) -> None:
        """Put a frame on its way."""
        chance, link = self.random, (source, target)
        if self.world.now < self.down_until:
            return
        if self.cut_until.get(link, 0) > self.world.now:
            return
        if link in self.clogged:
            self.clogged[link].append(message)
            return
        delay = 150 + int(chance.expovariate(1 / 200))
        if not self.world.quiet:
            faults = self.plan.faults
            if "drop" in faults and chance.random() < 0.02:
                self.world.fault("drop", source, target)
                return
            if "duplicate" in faults and chance.random() < 0.02:
                self.world.fault("duplicate", source, target)
                self._deliver(delay + chance.randint(0, 100 * MS), source, target, message)
            if "delay" in faults and chance.random() < 0.005:
                self.world.fault("delay", source, target)
                delay += chance.randint(1, 2_000) * MS
            if "reorder" in faults and chance.random() < 0.02:
                self.world.fault("reorder", source, target)
                self._deliver(delay + chance.randint(1, 20) * MS, source, target, message)
                return
        arrival = max(self.world.now + delay, self._last_arrival.get(link, 0) + 1)
        self._last_arrival[link] = arrival
        self._deliver(arrival - self.world.now, source, target, message)

    def _deliver(self, delay: int, source: Id, target: Id, message: bytes) -> None:
        self.world.after(delay, self._arrive, source, target, message, self.streams[target].epoch)

    def _arrive(self, source: Id, target: Id, message: bytes, epoch: int) -> None:
        stream, link = self.streams[target], self.links.get(target)
        if epoch != stream.epoch:
            return  # The inbox was flushed meanwhile.
        stream.add(self.world.now, message)
        if link is not None:
            if target in self.world.processes:
                self.world.processes[str(target)].arrived.add(source)
            link.read()
        for process in self.world.originals:
            if process.id == target and process.link is not None:
                process.arrived.add(source)
                process.link.read()
                process.wake(0)

    def reread(self, link: Link) -> None:
        """An inbox is read from its beginning."""
        process = self.world.processes.get(str(link.id))
        if process is not None:
            process.arrived.update(self.plan.ids)
        link.read()

    def wake_owner(self, target: Id) -> None:
        """There is something in an inbox."""
        process = self.world.processes.get(str(target))
        if process is not None:
            process.wake(0)
        else:
            for client in self.world.clients:
                if client.id == target:
                    client.turn()

    def cut_links(self, links: Sequence[tuple[Id, Id]], time: int) -> None:
        """Let links lose everything for so long, µs."""
        if self.world.quiet:
            return
        until = self.world.now + time
        for link in links:
            self.cut_until[link] = until

    def cut_off(self, node: str, time: int) -> None:
        """Likewise all links of a node."""
        others = [id for id in self.plan.ids if id != node]
        self.cut_links([(node, other) for other in others] + [(other, node) for other in others], time)

    def unclog(self, link: tuple[Id, Id]) -> None:
        """Let a link give what it held."""
        for message in self.clogged.pop(link, []):
            self._deliver(self.random.randint(0, 5 * MS), *link, message)
