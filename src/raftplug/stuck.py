"""A leader that makes no progress lets another one lead: its disk hangs, or its state machine does not come back.

A slow disk or machine costs no election, so this waits for long.  What is stuck may be so on every replica (a
transition without an end): then handing over does not help, so the wait doubles with each time.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from raftplug.constants import LEADER
from raftplug.frames import Id
from raftplug.settings import Settings

TIMEOUTS: Final = 8
"""Election timeouts without progress before a leader gives up leadership for the first time."""


class Stuck:
    """Watches what one leader waits for.

    Args:
        raft: its rules.
        settings: the election timeout.
    """

    __slots__ = ("_election_us", "_machine_us", "_patience_us", "_raft", "_stable", "_stable_us", "_tried")

    def __init__(self, raft: Any, settings: Settings) -> None:
        self._raft = raft
        self._election_us = 1000 * settings.election_timeout_ms
        self._patience_us = self._machine_us = TIMEOUTS * self._election_us
        self._stable = -1  # What is durable while the disk has something to do; -1 while it has not …
        self._stable_us = 0  # … and since when no more is.
        self._tried = 0  # How often leadership was handed over.

    def turn(self, now: int, working_since: int | None, unfit: Iterable[Id]) -> str | None:
        """Give up leadership if the disk or the machine has stood still for too long.

        Args:
            now: microseconds.
            working_since: when the machine was given what it does now; None if it has nothing to do.
            unfit: members that must not be asked to lead.

        Returns: None, or what is stuck, in words: leadership was given up.
        """
        raft = self._raft
        if raft.stable == raft.log.last_index or raft.role != LEADER:
            self._stable = -1  # The disk has nothing to do, perhaps for long: a group that has gone quiet has no turns.
        elif raft.stable != self._stable:
            self._stable, self._stable_us = raft.stable, now
        if working_since is None:
            self._machine_us = self._patience_us
        if raft.role != LEADER or raft.transferee is not None:
            return None
        disk = self._stable >= 0 and now - self._stable_us >= self._patience_us
        machine = working_since is not None and now - working_since >= self._machine_us
        if not (disk or machine):
            return None
        others = heard(raft, now - self._election_us, unfit)
        if not others:
            return None
        if disk:  # To be asked to campaign, another one would need what this disk does not take.
            raft.resign()
            return "disk"
        self._machine_us = 2 * (now - (working_since or 0))
        self._tried += 1
        raft.transfer(others[self._tried % len(others)])
        return "state machine"


def heard(raft: Any, oldest: int, unfit: Iterable[Id]) -> list[Id]:
    """The other voters that may lead and have answered this leader since then, microseconds."""
    configuration, unfit = raft.configuration, set(unfit)
    others = [id for id in configuration.voters if configuration.may_lead(id) and id != raft.id and id not in unfit]
    return [id for id in others if raft.progress[id].contact > oldest]
