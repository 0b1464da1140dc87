"""The agenda of a node's loop: which of many groups want to be looked at, at a cost that only those bear.

A heap with lazy deletion.  Each group has at most one entry that counts: its earliest.  A deadline that moves later, as
a follower's does with each heartbeat, leaves that entry where it is; when its time comes the group is asked again.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

from raftplug.constants import NEVER


class Agenda:
    """When each of many groups wants to be looked at."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, str]] = []
        self._at: dict[str, int] = {}  # The entry of each group that counts.

    def arm(self, group: str, at: int) -> None:
        """Look at `group` at the time `at`, microseconds, at the latest."""
        if at < self._at.get(group, NEVER):
            self._at[group] = at
            heapq.heappush(self._heap, (at, group))

    def take(self, now: int, deadline: Callable[[str], int]) -> list[str]:
        """The groups whose time has come, in the order of their times.

        Args:
            now: microseconds.
            deadline: asked of each group whose entry is due: it may be later by now.
        """
        due = []
        while self._heap and self._heap[0][0] <= now:
            at, group = heapq.heappop(self._heap)
            if self._at.get(group) != at:
                continue  # An earlier entry took its place.
            del self._at[group]
            later = deadline(group)
            if later > now:
                self.arm(group, later)
            else:
                due.append(group)
        return due

    def next(self) -> int:
        """When something may be due next: microseconds, or NEVER."""
        heap = self._heap
        while heap:
            at, group = heap[0]
            if self._at.get(group) == at:
                return at
            heapq.heappop(heap)
        return NEVER
