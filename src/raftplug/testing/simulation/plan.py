"""What a run is about: all that its seed chooses before anything happens."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from raftplug.settings import Settings
from raftplug.testing.simulation.faults.table import CLOCKS, FAULTS, LEASED, LONG, OF_DIRECTORIES, THEMED, THEMES
from raftplug.testing.simulation.machines import (
    BatchRegister,
    DiskBatchRegister,
    DiskRegister,
    Register,
    StreamBatchRegister,
    StreamRegister,
)

GROUP = "simulated"
COMPANIONS = ("idle", "idler")  # Groups that have little to do, and so go quiet, on the same nodes.
EVENTS = 8_000
KEYS = 5  # Of each kind: texts and counters.
MS = 1_000  # Microseconds.
NEVER = 1 << 62


@dataclass(frozen=True, slots=True)
class Plan:
    """All that a seed chooses before anything happens.

    Args:
        faults: the names of those that may happen.
        settings: of all nodes and clients.
        machines: what nodes may run, one of them each.
        fault_ms: the longest time between two faults.
        falls_behind: whether one follower must fall behind, over and over.
        pace: how many times slower clients ask.
        strike_chance: how often a fault that waits for its moment takes it.
        ends_in_change: whether the faults end in the middle of a change of the members.
        companions: the names of the other groups.
        founders: the ids of the first members.
        ids: theirs, and those of nodes that may be added.
        witnesses: which of them are witnesses.
        reluctant: which of them prefers not to lead, where there is that fault.
        named: whether there is a client whose session has a name.
        breaks: whether something stays broken in the end: see `broken`.
    """

    faults: frozenset[str]
    settings: Settings
    machines: tuple[type[Register], ...]
    fault_ms: int
    falls_behind: bool
    pace: int
    strike_chance: float
    ends_in_change: bool
    companions: tuple[str, ...]
    founders: list[str]
    ids: list[str]
    witnesses: set[str]
    reluctant: str
    named: bool
    breaks: bool


def draw(seed: int, chance: random.Random, nodes: int, operations: int, faults: Sequence[str] | None) -> Plan:
    """What a seed is about.

    Args:
        seed: of the run.
        chance: made from it.
        nodes: how many found the group.
        operations: of clients, how many are wanted.
        faults: those that may happen; None lets the seed choose.  Where they are given, the rest is chosen such that
            they matter: a theme of theirs, if there is one, and leases, if they are about these.
    """
    density = chance.choice((0.15, 0.3, 0.5))  # With few kinds of faults, long stories can happen.
    themes = [each for each in THEMES if faults is not None and set(each[0]).intersection(faults)]
    theme, limits = chance.choice(themes or THEMES)
    # Leases trust clocks: such a seed has no faults of these.
    leases = chance.random() < 0.2 if faults is None else bool(set(LEASED).intersection(faults))
    alone = (leases or (theme, limits) in LONG) and chance.random() < 0.7
    if alone:
        density, theme = 0.05, () if leases else theme
    elsewhere = THEMED.union(LEASED)
    # Of each its own chance, so that what a seed is stays when faults are added that it does not have.
    drawn = [name for name in FAULTS if random.Random(f"{seed} {name}").random() < density]
    chosen = [name for name in FAULTS if (name in drawn and name not in elsewhere) or name in theme]
    if leases:
        chosen = [name for name in chosen if name not in CLOCKS]
        chosen += [name for name in LEASED if chance.random() < 0.7]
    may = frozenset(chosen if faults is None else faults)
    # A snapshot every few entries, or hardly ever: both ways of catching up are met.
    settings = Settings(
        **{
            "snapshot_entries": chance.choice((0, 20, 100, 1000)),
            "keep_entries": chance.choice((0, 5, 50)),
            "max_append_bytes": chance.choice((200, 65536)),
            "window_bytes": chance.choice((400, 262144)),
            "window_appends": chance.choice((2, 128)),
            "max_pending": chance.choice((10, 100_000)),
            "quiet_after_ms": chance.choice((0, 0, 200) if leases else (0, 200, 200)),
            "lease_ms": 450 if leases else 0,
            "digest_entries": chance.choice((0, 8, 64)),
            "snapshot_piece_bytes": chance.choice((60, 500, 65536)),
            "snapshot_window_bytes": chance.choice((1, 300, 65536)),
            **limits,
            "max_uncommitted_bytes": 2_000 if "little_room" in may else 64 << 20,
        }
    )
    machines = chance.choice(
        ((Register, BatchRegister), (StreamRegister, StreamBatchRegister), (DiskRegister, DiskBatchRegister))
    )
    # A storm, weather, or calm in which long stories can happen.
    fault_ms = 800 if operations or alone else chance.choice((60, 200, 800))
    # Few requests leave room for many elections; but who is to fetch snapshots must fall behind.
    falls_behind = "crash_in_fetch" in theme
    pace = 1 if operations or falls_behind else 4 if "overtake_snapshot" in theme else chance.choice((1, 4, 10))
    strike_chance = chance.choice((0.1, 0.3, 0.7))
    # Half of the seeds with changing members end in the middle of a change, which not all may know of.
    ends_in_change = "change_members" in may and chance.random() < 0.5 and not operations
    operated = may & {"change_members", *OF_DIRECTORIES}  # An operator knows of one group.
    companions = () if operated else COMPANIONS[: chance.choice((0, 0, 1, 2))]
    founders = [f"n{number}" for number in range(1, nodes + 1)]
    spare = 2 if may & {"change_members", "overtake_snapshot"} else 0
    ids = founders + [f"n{number}" for number in range(nodes + 1, nodes + 1 + spare)]
    # Nobody, one that is to be added, or one of the founders.
    witnesses = chance.choice(([], ids[-1:], founders[1:][-1:])) if spare else []
    return Plan(
        faults=may,
        settings=settings,
        machines=machines,
        fault_ms=fault_ms,
        falls_behind=falls_behind,
        pace=pace,
        strike_chance=strike_chance,
        ends_in_change=ends_in_change,
        companions=companions,
        founders=founders,
        ids=ids,
        witnesses=set(witnesses),
        reluctant=chance.choice(ids),
        named=chance.random() < 0.5,
        breaks=faults is not None or chance.random() < 0.3,
    )
