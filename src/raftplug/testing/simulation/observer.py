"""Who observes the events of a process, and checks what it is told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raftplug.events import LOST, Event, Subscription, call_for_each
from raftplug.frames import Id
from raftplug.testing.simulation.plan import GROUP, NEVER
from raftplug.testing.simulation.report import Violation

if TYPE_CHECKING:
    from raftplug.testing.simulation.process import Process


_EVENTS_WAIT = 4


class Observer:
    """Observes a process: one callback, and one queue that is taken from at times; for one life of the process.

    Args:
        process: that is observed.
    """

    def __init__(self, process: Process) -> None:
        self._process = process
        # What it was told last.
        self.leader: Id | None = None
        self.term = 0
        self.members: Any = None
        # The queue; how many events there were, and how many it took or was told to have lost.
        self._queue = Subscription(process.id, most=_EVENTS_WAIT)
        self._count = self._seen = 0
        self.observes_at = 0  # It takes nothing before.
        self.raises = False

    def observe(self, name: str, arguments: dict[str, Any]) -> None:
        """Observers are told what is so, in order; what arrives damaged or twice is sorted out before it is stored."""
        self._tell()
        if arguments.get("group") == GROUP and name == "raftplug_leader_changed":
            if arguments["term"] < self.term:
                raise Violation(f"events: {self._process.id} tells of term {arguments['term']} after {self.term}")
            self.leader, self.term = arguments["leader"], arguments["term"]
        elif arguments.get("group") == GROUP and name == "raftplug_configuration_changed":
            self.members = arguments["configuration"]
        refused = name == "raftplug_snapshot" and arguments["kind"] == "refused" and arguments["group"] == GROUP
        if refused and not self._process.rows.damaged_pieces():
            raise Violation(f"snapshots: {self._process.id} put the pieces of one together as something else")

    def _tell(self) -> None:
        """An event for the observer with a queue: it takes what is there, unless it is slow."""
        self._count += 1
        self._queue.put(Event("peer", None, self._process.id, {"number": self._count}))
        if self._process.world.now < self.observes_at:
            return
        taken, self._queue = self._queue, Subscription(self._process.id, most=_EVENTS_WAIT)
        taken.close()

        def observe(event: Event) -> None:
            if event.kind == LOST:
                self._seen += event.details["count"]
            else:
                self._seen += 1
                if event.details["number"] != self._seen:
                    self._seen = -NEVER  # It must not raise this here.
            if self.raises:
                raise ValueError("an observer raises")

        call_for_each(taken, observe)
        if self._seen != self._count:
            raise Violation(f"events: an observer of {self._process.id} lost some, and is not told how many")

    def check_told(self, raft: Any) -> None:
        """Observers were told of every change: of who leads, and of the members."""
        if self.leader != raft.leader:
            raise Violation(f"events: {self._process.id} follows {raft.leader}, and told of {self.leader}")
        members = [*raft.configuration.plain()[:4], list(raft.configuration.witnesses)]
        if self.members is not None and self.members != members:
            raise Violation(f"events: the members that {self._process.id} told of are not those that it has")
