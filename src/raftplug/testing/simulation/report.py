"""What a run found, and what a client saw."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from raftplug.frames import Id
from raftplug.testing import linearizability


class Violation(Exception):
    """An invariant does not hold; the first word of the message names it."""


@dataclass(slots=True)
class Report:
    """What a run found.

    Args:
        seed: of the run.
        events: how many there were.
        violation: None, or what does not hold and at which event.
        faults: how often each happened.
        chosen: those that could have.
        acknowledged, unknown: outcomes of the clients' writes.
        history: every client operation: see `raftplug.testing.linearizability`.
        trace_sha256: over the trace, which is the same on both cores.
        trace: its lines, if they were asked for.
    """

    seed: int
    events: int = 0
    violation: str | None = None
    faults: Counter[str] = field(default_factory=Counter)
    chosen: tuple[str, ...] = ()
    acknowledged: int = 0
    unknown: int = 0
    history: list[Recorded] = field(default_factory=list)
    trace_sha256: str = ""
    trace: list[str] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Recorded:
    """One operation of a client: when it was called and answered, and how.  An unknown outcome has no `answered`."""

    client: Id
    operation: dict[str, Any]
    called: int
    answered: int | None = None
    result: Any = None

    def as_operation(self) -> linearizability.Operation:
        """The same for the checker."""
        operation, known = self.operation, self.answered is not None
        return linearizability.Operation(
            self.client,
            operation["key"],
            operation["op"],
            operation.get("value"),
            operation.get("expect"),
            self.called,
            self.answered,
            self.result,
            known,
        )
