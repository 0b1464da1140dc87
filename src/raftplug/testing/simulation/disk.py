"""The rows of a disk, which can be full, fail and be damaged."""

from __future__ import annotations

import random
from collections.abc import Sequence

from raftplug.errors import DiskFull, StorageFailed
from raftplug.storage import Delete, MemoryRows, Put, pieces_named_by
from raftplug.testing.simulation.plan import GROUP


class SimulatedRows(MemoryRows):
    """A disk: rows that are durable once `apply` returns, and can be damaged while nobody has them open."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.where = f"disk of {name}"
        self.full = False
        self.failing = False
        self._damaged: dict[tuple[tuple[str, str], int], tuple[bytes, bytes | None]] = {}  # What was there, and then.

    def apply(self, changes: Sequence[Put | Delete]) -> None:
        """Make the changes, unless there is no space or the disk fails."""
        if self.full:
            raise DiskFull(f"{self.where}: no space left")
        if self.failing:
            raise StorageFailed(f"{self.where}: input/output error")
        super().apply(changes)

    def rows(self) -> list[tuple[tuple[str, str], int]]:
        """Where every row is, in a fixed order."""
        return [(place, number) for place in sorted(self._values) for number in self._numbers[place]]

    def copy(self) -> dict[tuple[str, str], dict[int, bytes]]:
        """All rows, to put back later."""
        return {place: dict(rows) for place, rows in self._values.items()}

    def put_back(self, copy: dict[tuple[str, str], dict[int, bytes]]) -> None:
        """Make the rows those of `copy` again."""
        self._values = copy
        self._numbers = {place: sorted(rows) for place, rows in copy.items()}

    def value(self, place: tuple[str, str], number: int) -> bytes:
        """One row."""
        return self._values[place][number]

    def damage(self, place: tuple[str, str], number: int, value: bytes | None) -> None:
        """Change a row behind everybody's back; None removes it."""
        self._damaged[place, number] = (self._values[place][number], value)
        if value is None:
            del self._values[place][number]
            self._numbers[place].remove(number)
        else:
            self._values[place][number] = value

    def damaged_pieces(self) -> dict[tuple[tuple[str, str], int], bytes]:
        """The damaged pieces of snapshots that are still there, and what they were: not every start reads them."""
        return {
            (place, number): before
            for (place, number), (before, now) in self._damaged.items()
            if place[0] == "piece" and now is not None and self._values.get(place, {}).get(number) == now
        }

    def mend_pieces(self) -> bool:
        """Make damaged pieces what they were; False if there are none."""
        pieces = self.damaged_pieces()
        for (place, number), before in pieces.items():
            self._values[place][number] = before
        return bool(pieces)


def flipped(value: bytes, chance: random.Random) -> bytes:
    """`value` with one bit turned over."""
    flipped = bytearray(value)
    flipped[chance.randrange(len(flipped))] ^= 1 << chance.randrange(8)
    return bytes(flipped)


def current_pieces(rows: SimulatedRows) -> set[tuple[tuple[str, str], int]]:
    """The rows of the snapshots that a disk has; other pieces are of no use to anybody yet."""
    found: set[tuple[tuple[str, str], int]] = set()
    for place, number in rows.rows():
        if place[0] == "snapshot" and number == 0:
            found.update((("piece", place[1]), each) for each in pieces_named_by(rows.value(place, 0)))
    return found


def fetched_pieces(rows: SimulatedRows) -> list[tuple[tuple[str, str], int]]:
    """The rows of the snapshot that is being fetched."""
    incoming = rows.get("snapshot", GROUP, 1)
    named = pieces_named_by(incoming) if incoming is not None else range(0)
    return [row for row in rows.rows() if row[0] == ("piece", GROUP) and row[1] in named]
