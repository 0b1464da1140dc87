"""The network: links that can be cut and clogged, and a Redis with one inbox a process."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from math import log
from typing import TYPE_CHECKING, Any

from raftplug.cluster import Cluster
from raftplug.frames import Id
from raftplug.redis_streams import START, Cursor
from raftplug.testing.simulation.disk import flipped
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
        last, time = self.last + 1, now - self.behind
        self.last = last = time if time > last else last
        self.entries.append((last, message))


class Link(Cluster):
    """A process's transport: what `redis_streams` does with one inbox, less the sockets.

    Args:
        world: in which it is.
        id: of its owner.
        wake_owner: called when there is something in the inbox.
    """

    def __init__(self, world: Simulation, id: Id, wake_owner: Callable[[], None]) -> None:
        self.world = world
        self.id = id
        self.wake_owner = wake_owner
        self.stream = world.network.streams[id]
        self.read_to = self.stream.last  # The cursor.
        self.inbox: list[bytes] = []
        self.arrived: set[Id] = set()  # Whose frames the owner's next turn finds.
        self.looking = False

    def read(self) -> None:
        """XREAD: what lies beyond the cursor.  If that is nothing, the idle check comes in its time."""
        read_to, entries = self.read_to, self.stream.entries
        if entries and entries[-1][0] > read_to:
            self.read_to = entries[-1][0]
            if len(entries) == 1 or entries[-2][0] <= read_to:  # Mostly it is one.
                self.inbox.append(entries[-1][1])
            else:
                self.inbox += [message for id, message in entries if id > read_to]
            self.wake_owner()
        elif not self.looking:
            self.looking = True
            self.world.after(self.world.plan.settings.election_timeout_ms * MS // 2, self._look)

    def _look(self) -> None:
        self.looking = False
        cursor = Cursor(b"%d-0" % self.read_to)
        cursor.compare(b"%d-0" % self.stream.last)
        if cursor.id == START and self.read_to:
            self.read_to = 0
            if self.world.network.links.get(self.id) is self:
                self.world.network.reread(self)

    def send_message(self, to_id: Id, message: bytes) -> None:
        """Put a frame on its way."""
        world, network = self.world, self.world.network
        chance, link, now = world.random, (self.id, to_id), world.now
        if network.tap is not None:
            network.tap.append((self.id, to_id, message))
        if now < network.down_until or network.cut_until.get(link, 0) > now:
            return
        if link in network.clogged:
            network.clogged[link].append(message)
            return
        delay = 150 + int(-log(1.0 - chance.random()) * 200)  # An exponential distribution.
        if network.has_faults and not world.quiet:
            faults = world.plan.faults
            if "drop" in faults and chance.random() < 0.02:
                world.fault("drop", *link)
                return
            if "frame_damaged" in faults and chance.random() < 0.02:
                world.fault("frame_damaged", *link)
                message = flipped(message, chance)
            if "duplicate" in faults and chance.random() < 0.02:
                world.fault("duplicate", *link)
                network.deliver(delay + chance.randint(0, 100 * MS), *link, message)
            if "delay" in faults and chance.random() < 0.005:
                world.fault("delay", *link)
                delay += chance.randint(1, 2_000) * MS
            if "reorder" in faults and chance.random() < 0.02:
                world.fault("reorder", *link)
                network.deliver(delay + chance.randint(1, 20) * MS, *link, message)
                return
        arrival = max(now + delay, network.last_arrival.get(link, 0) + 1)
        network.last_arrival[link] = arrival
        world.after(arrival - now, network.arrive, *link, message, network.streams[to_id].epoch)

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
        self.tap: list[tuple[Id, Id, bytes]] | None = None  # Takes all that is sent.
        self.down_until = 0  # The Redis takes and gives nothing before.
        self.last_arrival: dict[tuple[Id, Id], int] = {}
        self.has_faults = bool(self.plan.faults & {"drop", "frame_damaged", "duplicate", "delay", "reorder"})

    def deliver(self, delay: int, source: Id, target: Id, message: bytes) -> None:
        """Have a frame in the target's inbox so many µs later, unless that is flushed before."""
        self.world.after(delay, self.arrive, source, target, message, self.streams[target].epoch)

    def arrive(self, source: Id, target: Id, message: bytes, epoch: int) -> None:
        """A frame is added to the target's inbox."""
        stream, link = self.streams[target], self.links.get(target)
        if epoch != stream.epoch:
            return  # The inbox was flushed meanwhile.
        stream.add(self.world.now, message)
        if link is not None:
            link.arrived.add(source)
            link.read()
        for original in self.world.originals:
            if original.id == target and original.link is not None:
                original.link.arrived.add(source)
                original.link.read()

    def reread(self, link: Link) -> None:
        """An inbox is read from its beginning."""
        link.arrived.update(self.plan.ids)
        link.read()

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
            self.deliver(self.random.randint(0, 5 * MS), *link, message)
