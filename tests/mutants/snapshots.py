"""Snapshots: made, fetched, stored."""

from mutants.mutant import Mutant

SNAPSHOTS = "snapshots.py"
MACHINES = "testing/simulation/machines.py"

MUTANTS = (
    Mutant(
        "number of a piece ignored",
        SNAPSHOTS,
        "Fetch.take",
        "self._arrived.setdefault(number, data)",
        "self._arrived.setdefault(next(each for each in self._asked if each not in self._arrived), data)",
    ),
    Mutant(
        "damaged piece taken",
        SNAPSHOTS,
        "decode_piece",
        " or crc32(data, number) != check",
        "",
    ),
    Mutant(
        "pieces count as stored before they are",
        SNAPSHOTS,
        "Snapshots.written",
        "if writing is not None and writing is self.fetch:\n            self._notice_end(writing)",
        "if self.fetch is not None:\n            self.fetch.have = self.fetch.snapshot.count\n            self._notice_end(self.fetch)",
    ),
    Mutant(
        "current snapshot dropped while it is fetched",
        SNAPSHOTS,
        "Snapshots.adopt",
        "if self._is_fetched(before, now):",
        "if False:",
    ),
    Mutant(
        "snapshot that grows while it is written",
        MACHINES,
        "_Streaming.stream_snapshot",
        "return (captured[at : at + 50] for at in range(0, len(captured), 50))",
        "return (plain.encode(self.create_snapshot(index, term).data)[at : at + 50] for at in range(0, len(captured), 50))",
    ),
)
