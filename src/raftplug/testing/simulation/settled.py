"""Nothing is left over: when no caller asks any more, tables and queues are empty, disks hold what they name.

This is looked at from outside, never by asking a node whether it is done; `deadlines` has seen to it that everybody was
answered.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from raftplug.storage import pieces_named_by
from raftplug.testing.simulation.part import Part
from raftplug.testing.simulation.plan import MS
from raftplug.testing.simulation.report import Violation

if TYPE_CHECKING:
    from raftplug.testing.simulation.client import Client
    from raftplug.testing.simulation.process import Process

_TIMEOUTS = 60  # Election timeouts; for so many a snapshot is kept for who fetches it, and then some.
_LOOK_US = 20 * MS
_TIMERS = 200  # That ended calls may leave behind: see `Requester._tidy`.

# What must be empty of each; anything else that they hold is bounded by what there is of members and groups.
_DRIVER = ("_pending", "_cut", "_confirming", "_reads", "_looking", "_waiting", "_changes", "_notes", "_notices")
_NODE = ("calls", "_outgoing", "_to_self", "_writing", "_busy", "_unwritten")
_REQUESTER = ("_calls", "_counters", "_writes", "_reads", "_ready")
_CLIENT = ("_calls", "_outgoing", "_gatherings", "_downloads")
_NONE = ("making", "fetch", "fetched", "_previous", "_unwritten", "_writing")


class Settled(Part):
    """Waits until no caller waits, and looks at what is left."""

    def reach(self, chosen: list[Process]) -> None:
        """The group has converged on these processes; who is no member may wait for ever to be one."""
        leader = self.world.leading()
        members = leader.driver().raft.configuration.members() if leader is not None else []
        chosen = [each for each in chosen if each.id in members]
        limit = self.world.now + _TIMEOUTS * self.plan.settings.election_timeout_ms * MS
        while True:
            left = next(self._left(chosen), None)
            if left is None:
                return
            if self.world.now > limit:
                raise Violation(f"left over: {left}")
            until = self.world.now + _LOOK_US
            while self.world.now < until and self.world.queue:
                self.world.step()

    def _left(self, chosen: list[Process]) -> Iterator[str]:
        """Whatever is not gone yet, in words."""
        for client in self.world.clients:
            yield from self._of_client(client)
        for process in chosen:
            if process.node is not None:
                yield from self._of_process(process)

    def _of_client(self, client: Client) -> Iterator[str]:
        yield from _filled(client.id, client.loop, _CLIENT)
        yield from _of_requester(str(client.id), client.loop.requester)

    def _of_process(self, process: Process) -> Iterator[str]:
        node: Any = process.node
        yield from _filled(process.id, node, _NODE)
        for group, driver in node.drivers.items():
            who = f"{process.id} in {group}"
            yield from _filled(who, driver, _DRIVER)
            yield from _of_requester(who, driver.requester)
            for name in _NONE:
                if getattr(driver.snapshots, name) is not None:
                    yield f"{who} is at work with the snapshot {name}"
            yield from _filled(who, driver.snapshots, ("_garbage",))
            members = driver.raft.configuration.members()
            strangers = [id for id in driver._heard_storages if id not in members]
            if strangers:
                yield f"{who} remembers directories of {strangers}, who are no members"
            yield from self._on_disk(process, group)

    def _on_disk(self, process: Process, group: str) -> Iterator[str]:
        """Exactly the pieces that the snapshots name, and no entry that is compacted away."""
        rows, who = process.rows, f"the disk of {process.id} in {group}"
        named: set[int] = set()
        for _, value in rows.scan("snapshot", group):
            named.update(pieces_named_by(value))
        found = {number for number, _ in rows.scan("piece", group)}
        if found != named:
            yield f"{who} holds {len(found - named)} pieces of no snapshot, and lacks {len(named - found)}"
        numbers = [number for number, _ in rows.scan("log", group)]
        base = process.node.drivers[group].snapshots.current if process.node is not None else None
        if base is not None and len(numbers) > 1 and numbers[1] <= base.index + 1:
            yield f"{who} holds entries from {numbers[0]} on, and its snapshot covers all up to {base.index}"


def _filled(who: Any, owner: Any, names: tuple[str, ...]) -> Iterator[str]:
    for name in names:
        count = len(getattr(owner, name))
        if count:
            yield f"{who} holds {count} of {type(owner).__name__}.{name}"


def _of_requester(who: str, requester: Any) -> Iterator[str]:
    yield from _filled(who, requester, _REQUESTER)
    if len(requester._timers) > _TIMERS:
        yield f"{who} holds {len(requester._timers)} timers"
    if requester._bytes or requester._writes_sent or requester._reads_sent or requester._opening is not None:
        yield f"{who} counts {requester._bytes} bytes, {requester._writes_sent} writes, {requester._reads_sent} reads"
