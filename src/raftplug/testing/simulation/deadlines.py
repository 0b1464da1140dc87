"""No caller waits for ever: each future ends by its deadline, at the latest in the first turn that follows it."""

from __future__ import annotations

from heapq import heappop, heappush

from raftplug.core import Future
from raftplug.frames import Id
from raftplug.testing.simulation.report import Violation


class Deadlines:
    """The futures for which a caller waits in one life of a process, or of a client.

    Args:
        id: whose.
    """

    def __init__(self, id: Id) -> None:
        self._id = id
        self._number = 0
        self._awaited: list[tuple[int, int, str, Future]] = []

    def add(self, what: str, future: Future, deadline: int) -> None:
        """A caller waits for `future`, in words `what`, until `deadline`, µs of the owner's clock."""
        self._number += 1
        heappush(self._awaited, (deadline, self._number, what, future))

    def check(self, now: int) -> None:
        """The owner has taken a turn."""
        awaited = self._awaited
        while awaited and awaited[0][0] <= now:
            deadline, _, what, future = heappop(awaited)
            if not future.done():
                raise Violation(f"no limbo: {what} on {self._id} has no answer {now - deadline} us after its deadline")

    def check_closed(self) -> None:
        """The owner has stopped: everybody was answered."""
        for _, _, what, future in self._awaited:
            if not future.done():
                raise Violation(f"no limbo: {what} on {self._id} has no answer, and that has stopped")

    def are_over(self) -> bool:
        """Whether no caller waits any more."""
        return all(future.done() for _, _, _, future in self._awaited)
