"""Faults of disks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from raftplug.testing.simulation.disk import SimulatedRows, current_pieces, fetched_pieces, flipped
from raftplug.testing.simulation.faults.kind import Kind
from raftplug.testing.simulation.plan import GROUP, MS

if TYPE_CHECKING:
    from raftplug.testing.simulation.process import Process


class DiskFaults(Kind):
    """What happens to a disk whose node goes on with it."""

    def do_slow_disk(self) -> None:
        node = self.world.some_node()
        if node is not None:
            self.world.fault("slow_disk", node.id)
            node.disk_us = self.random.choice((20, 200, 1_500)) * MS
            self.world.after(self.for_a_while(), setattr, node, "disk_us", 300)

    def do_write_error(self) -> None:
        node = self.world.some_node()
        if node is not None:
            self.world.fault("write_error", node.id)
            node.rows.failing = True

    def do_disk_full(self) -> None:
        node = self.world.some_node()
        if node is not None:
            self.world.fault("disk_full", node.id)
            node.rows.full = True
            self.world.after(self.for_a_while(), setattr, node.rows, "full", False)

    def _damage(self, name: str, change: Callable[[SimulatedRows], bool]) -> None:
        node = self.world.some_node(up=False)
        if node is not None and node.good_rows is None:
            copy = node.rows.copy()
            if change(node.rows):
                self.world.fault(name, node.id)
                node.good_rows = copy

    def do_bit_flip(self) -> None:
        def flip(rows: SimulatedRows) -> bool:
            place, number = self.random.choice(rows.rows())
            value = rows.value(place, number)
            if not value or (place[0] == "piece" and (place, number) not in current_pieces(rows)):
                return False
            rows.damage(place, number, flipped(value, self.random))
            return True

        self._damage("bit_flip", flip)

    def do_snapshot_piece_rot(self) -> None:
        """Nobody relies on it yet: it is found before anybody does."""
        self._rot(list(self.world.processes.values()))

    def rot_at_the_end(self, process: Process) -> None:
        """The last piece is there, and nobody has read it yet."""
        fetch = process.driver().snapshots.fetch
        if fetch is not None and fetch.is_complete() and self.random.random() < self.plan.strike_chance:
            self._rot([process], last=True)

    def _rot(self, processes: list[Process], last: bool = False) -> None:
        """Flip a bit in what was fetched; with `last` in what came last, of which little is read before it is used."""
        fitting = [
            (each, row)
            for each in processes
            if each.good_rows is None and (each.node is None or each.driver().snapshots.fetch is not None)
            for row in fetched_pieces(each.rows)
        ]
        if fitting:
            process, row = fitting[-1] if last else self.random.choice(fitting)
            self.world.fault("snapshot_piece_rot", process.id)
            process.rows.damage(*row, flipped(process.rows.value(*row), self.random))

    def do_row_loss(self) -> None:
        def lose(rows: SimulatedRows) -> bool:
            fitting = [row for row in rows.rows() if row[0] == ("log", GROUP)]
            if not fitting or rows.get("snapshot", GROUP, 0) is not None:
                return False  # With a snapshot the row may be one that it covers.
            rows.damage(*self.random.choice(fitting), None)
            return True

        self._damage("row_loss", lose)

    def do_row_swap(self) -> None:
        def swap(rows: SimulatedRows) -> bool:
            fitting = [row for row in rows.rows() if row[0] == ("log", GROUP)]
            if len(fitting) < 2 or rows.get("snapshot", GROUP, 0) is not None:
                return False
            (place, first), (_, second) = self.random.sample(fitting, 2)
            one, other = rows.value(place, first), rows.value(place, second)
            rows.damage(place, first, other)
            rows.damage(place, second, one)
            return True

        self._damage("row_swap", swap)
