"""Faults of links and of the Redis."""

from __future__ import annotations

from raftplug.testing.simulation.faults.kind import Kind
from raftplug.testing.simulation.plan import MS


class NetworkFaults(Kind):
    """What happens to links and inboxes."""

    def do_replay(self) -> None:
        fitting = [link for link in self.world.network.links.values() if link.stream.entries]
        if fitting:
            link = self.random.choice(fitting)
            self.world.fault("replay", link.id)
            link.inbox.append(self.random.choice(link.stream.entries)[1])
            link.arrived.update(self.plan.ids)
            link.wake_owner()

    def _pair(self) -> tuple[str, str]:
        first, second = self.random.sample(self.plan.ids, 2)
        return first, second

    def do_cut_one_way(self) -> None:
        first, second = self._pair()
        self.world.fault("cut_one_way", first, second)
        self.world.network.cut_links([(first, second)], self.for_a_while())

    def do_cut_both_ways(self) -> None:
        first, second = self._pair()
        self.world.fault("cut_both_ways", first, second)
        self.world.network.cut_links([(first, second), (second, first)], self.for_a_while())

    def do_isolate(self) -> None:
        some = self.world.some_node()
        node = some.id if some is not None else self.random.choice(self.plan.ids)
        leader = self.world.leading()
        if self.plan.falls_behind and leader is not None:  # One follower, and the others go on.
            node = self.random.choice([id for id in self.plan.ids if id != leader.id])
        self.isolate(node, 800 * MS if self.plan.falls_behind else self.for_a_while())

    def isolate(self, node: str, time: int) -> None:
        """Cut a node off for so long, µs."""
        self.world.fault("isolate", node)
        self.world.network.cut_off(node, time)

    def do_partition(self) -> None:
        size = self.random.randint(1, len(self.plan.ids) - 1)
        half = self.random.sample(self.plan.ids, size)
        self.world.fault("partition", *half)
        rest = [id for id in self.plan.ids if id not in half]
        self.world.network.cut_links(
            [(a, b) for a in half for b in rest] + [(b, a) for a in half for b in rest], self.for_a_while()
        )

    def do_clog(self) -> None:
        self.clog(self._pair(), self.for_a_while())

    def clog(self, link: tuple[str, str], time: int) -> None:
        """Hold what goes there for so long, µs, then give it at once."""
        if link not in self.world.network.clogged:
            self.world.fault("clog", *link)
            self.world.network.clogged[link] = []
            self.world.after(time, self.world.network.unclog, link)

    def do_redis_down(self) -> None:
        self.world.fault("redis_down")
        self.world.network.down_until = self.world.now + self.for_a_while()

    def do_redis_full(self) -> None:
        self.world.fault("redis_full")
        self.world.network.down_until = self.world.now + self.for_a_while()

    def do_redis_flush(self) -> None:
        self.world.fault("redis_flush")
        for stream in self.world.network.streams.values():
            stream.epoch += 1
            stream.entries.clear()

    def do_redis_lose_suffix(self) -> None:
        node = self.world.some_node()
        if node is not None:
            self.world.fault("redis_lose_suffix", node.id)
            self.world.network.streams[node.id].epoch += 1

    def do_redis_rewind(self) -> None:
        node = self.world.some_node()
        if node is not None:
            self.world.fault("redis_rewind", node.id)
            stream = self.world.network.streams[node.id]
            for _ in range(self.random.choice((0, self.random.randint(0, len(stream.entries))))):
                stream.entries.pop()
            stream.last = stream.entries[-1][0] if stream.entries else 1
            stream.behind += self.random.choice((1, 1_000, 60_000)) * MS
