"""Level 1: the core alone, in process: three voters, no disk, no network.

W transitions are proposed, each by its own call; then messages are moved until all W are committed and applied on all
three.  The machine only counts: a replica hands it the block of entries, as the log holds them; `applied_objects` has
each replica make an object of every payload, which a machine that looks at it needs.  The log is compacted as a node
does it, so a run may be as long as one likes.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, Final

from raftplug import core as cores
from raftplug.benchmarks.record import Report, present_cores, rounds
from raftplug.constants import TRANSITION
from raftplug.settings import Settings

WINDOWS: Final = (1, 64, 1024)
PAYLOADS: Final = (16, 256)
_IDS: Final = (1, 2, 3)
_COMPACT_EVERY: Final = 10_000
_LOG_ENTRIES: Final = 500_000
_BETWEEN_LOOKS: Final = 256  # So many entries between looks at the clock, which cost something too.


def filled(core: Any, length: int, payload: bytes = bytes(16)) -> Any:
    """A log of so many entries of term 1."""
    log = core.Log()
    append = log.append
    for _ in range(length):
        append(1, TRANSITION, payload)
    return log


class Group:
    """Voters of one group in one process; the first one leads.

    Args:
        core: a namespace of `raftplug.core.load`.
        ids: the voters.
        length: how many entries of 16 bytes are in the log from the start, applied.
        compact_every: the log is compacted after so many entries.
        objects: whether applying makes an object of each payload.
    """

    def __init__(
        self,
        core: Any,
        ids: tuple[int, ...] = _IDS,
        length: int = 0,
        compact_every: int = _COMPACT_EVERY,
        *,
        objects: bool = False,
    ) -> None:
        limits = Settings()
        self.rafts = [
            core.Raft(
                id,
                core.Configuration(ids),
                filled(core, length),
                1,
                None,
                0,
                limits.election_timeout_ms * 1000,
                limits.heartbeat_ms * 1000,
                lambda _: 0,
                limits.max_append_bytes,
                limits.window_bytes,
                limits.window_appends,
            )
            for id in ids
        ]
        self.leader = self.rafts[0]
        self.applied = length
        self._compact_every = compact_every
        self._compact_at = length + compact_every
        # Methods that are looked up once: what is measured should be the core, as far as that is possible.
        self._propose = self.leader.propose
        self._steps = [None, *(raft.step for raft in self.rafts)]
        self._machines = [(r.applicable, r.log.entries if objects else r.log.slice) for r in self.rafts]
        # The leader sends, the followers write, then answer, and the leader says what that has committed.
        followers = self.rafts[1:]
        self._turn = [(r.id, r.ready, r.persisted) for r in (self.leader, *followers, *followers, self.leader)]
        self.leader.tick(self.leader.deadline())
        while self.leader.commit <= length:
            self.turn()

    def turn(self) -> None:
        """Let everybody have two turns: what is sent arrives, and what is to be written is durable at once."""
        steps = self._steps
        for id, ready_of, persisted in self._turn:
            ready = ready_of()
            for message in ready.messages:
                steps[message.peer](message, id)
            if ready.write:
                persisted()

    def commit(self, payloads: Sequence[bytes]) -> None:
        """Propose so many transitions, and move messages until all are applied by all."""
        propose = self._propose
        for payload in payloads:
            last = propose(TRANSITION, payload)
        first, end = self.applied + 1, last + 1
        self.turn()
        for applicable, entries_of in self._machines:
            while applicable() < last:
                self.turn()
            entries_of(first, end)  # The machine gets all at once, and only counts.
        self.applied = last
        if last >= self._compact_at:
            self._compact_at = last + self._compact_every
            for raft in self.rafts:
                raft.snapshot_stored(last, self._compact_every // 10)


def entries_per_s(group: Group, window: int, payload: bytes, seconds: float) -> float:
    """Commit windows for so long.  Returns: entries a second."""
    commit, payloads, count = group.commit, [payload] * window, 0
    between_looks = range(max(1, _BETWEEN_LOOKS // window))
    begin = perf_counter()
    end = begin + seconds
    while (now := perf_counter()) < end:
        for _ in between_looks:
            commit(payloads)
        count += len(between_looks) * window
    return count / (now - begin)


def log_bytes_per_entry(core: Any, payload_bytes: int) -> float:
    """How much the process grows by an entry of the log: its resident pages, for what is not touched costs nothing."""
    payload = bytes(payload_bytes)
    filled(core, 1_000, payload)  # What is loaded with the first use is not the log's.
    gc.collect()
    before = _resident_bytes()
    log = filled(core, _LOG_ENTRIES, payload)
    return (_resident_bytes() - before) / len(log)


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def steps(*, quick: bool) -> int:
    """How many times `measure` calls back."""
    return len(list(_grid(quick))) + 1


def measure(report: Report, *, quick: bool, seconds: float | None = None, step: Callable[[], None]) -> None:
    """Measure both cores in turn, for every window and payload.

    Args:
        report: gets the records and, for 16 bytes, the ratios core.wW.cython_over_python.
        quick: only 16 bytes, and shorter.
        seconds: how long one run takes.
        step: called after each window.
    """
    names = present_cores()
    if sys.platform.startswith("linux"):
        # First, and the compiled core before the other: what Python keeps of freed objects would be used again.
        for name in reversed(names):
            grown = log_bytes_per_entry(cores.load(name), PAYLOADS[0])
            report.add("core", "log_bytes_per_entry", [grown], "bytes", core=name, payload_bytes=PAYLOADS[0])
    step()
    count, each_s = (7, 0.15) if quick else (15, 0.4)
    for payload_bytes, window, objects in _grid(quick):
        payload = bytes(payload_bytes)
        runs: dict[str, list[float]] = {name: [] for name in names}
        groups = {name: Group(cores.load(name), objects=objects) for name in names}
        for group in groups.values():
            group.commit([payload] * window)
        for _, name in rounds(count, names):
            gc.collect()
            runs[name].append(entries_per_s(groups[name], window, payload, seconds or each_s))
        what = "applied_objects" if objects else "commit"
        for name in names:
            report.add("core", what, runs[name], "entries/s", core=name, payload_bytes=payload_bytes, window=window)
        if "cython" in runs and payload_bytes == PAYLOADS[0] and not objects:
            report.add_ratio(f"core.w{window}.cython_over_python", runs["cython"], runs["python"])
        step()


def _grid(quick: bool) -> Iterator[tuple[int, int, bool]]:
    """Payload, window, and whether applying makes objects."""
    for payload_bytes in PAYLOADS[:1] if quick else PAYLOADS:
        for window in WINDOWS:
            yield payload_bytes, window, False
    yield PAYLOADS[0], WINDOWS[-1], True
