"""A few replicas' rules on a fake clock, message by message: what the tests of the rules tell their stories with."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import raftplug.raft
from mutants.mutant import Mutant
from raftplug.constants import APPEND, LEADER, SNAPSHOT, TRANSITION

HEARTBEAT = 100_000
ELECTION = 500_000


class Disk:
    """What is durable of one replica."""

    def __init__(self, core: Any, terms: Iterable[int] = (), term: int | None = None, vote: Any = None) -> None:
        self.log = core.Log()
        for number, each in enumerate(terms, 1):
            self.log.append(each, TRANSITION, b"%d/%d" % (number, each))
        self.term = self.log.last_term if term is None else term
        self.vote = vote

    def write(self, ready: Any) -> None:
        self.term, self.vote = ready.term, ready.vote
        if ready.snapshot is not None:
            self.log.reset(ready.snapshot.index, ready.snapshot.log_term, ready.snapshot.hint)
        if ready.first:
            if ready.first <= self.log.last_index:
                self.log.truncate(ready.first)
            self.log.restore(ready.block)


class Net:
    """Replicas 1 to n.  `sent` holds what left and was not delivered: (source, target, message)."""

    def __init__(
        self, core: Any, size: int, logs: dict[int, Disk] | None = None, configuration: Any = None, **limits: int
    ) -> None:
        self.core = core
        self.configuration = configuration
        self.limits = limits
        self.draws: dict[int, int] = {}
        self.joined: dict[int, bool] = {}
        self.ids = list(range(1, size + 1))
        self.now = 1_000_000
        self.disks = {id: (logs or {}).get(id) or Disk(core) for id in self.ids}
        self.rafts: dict[int, Any] = {}
        self.sent: list[tuple[int, int, Any]] = []
        self.cut: set[int] = set()
        self.slow: set[int] = set()
        self.writing: dict[int, Any] = {}
        for id in self.ids:
            self.boot(id)

    def boot(self, id: int) -> Any:
        """Start a replica from what its disk holds; what was under way is lost."""
        disk = self.disks[id]
        log = self.core.Log(disk.log.base_index, disk.log.base_term, disk.log.base_check)
        if disk.log.last_index > disk.log.base_index:
            log.restore(disk.log.slice(disk.log.base_index + 1, disk.log.last_index + 1))
        self.writing.pop(id, None)
        configuration = self.configuration or self.core.Configuration(tuple(self.ids))
        self.joined[id] = self.joined.get(id, not configuration.voters)
        self.rafts[id] = self.core.Raft(
            id,
            configuration,
            log,
            disk.term,
            disk.vote,
            self.now,
            ELECTION,
            HEARTBEAT,
            lambda bound: self.draws.get(id, 0),
            joined=self.joined[id],
            **self.limits,
        )
        return self.rafts[id]

    def message(self, kind: int, term: int, **fields: Any) -> Any:
        return self.core.Message(kind, term, **fields)

    def step(self, id: int, source: int, message: Any) -> list[Any]:
        """Hand one message to a replica; return what it sends at once or, on a fast disk, after its write."""
        self.rafts[id].set_time(self.now)
        self.rafts[id].step(message, source)
        return self.pump(id)

    def pump(self, id: int) -> list[Any]:
        """Take what is ready until nothing is; a slow disk keeps its write under way."""
        raft, sent = self.rafts[id], []
        while True:
            ready = raft.ready()
            sent += ready.messages
            if not ready.write:
                break
            self.writing[id] = ready
            if id in self.slow:
                break
            self.sync(id, pump=False)
        self.sent += [(id, message.peer, message) for message in sent]
        return sent

    def sync(self, id: int, pump: bool = True) -> list[Any]:
        """Let the write that is under way become durable."""
        self.disks[id].write(self.writing.pop(id))
        self.rafts[id].persisted()
        return self.pump(id) if pump else []

    def deliver(self, wanted: Callable[[int, int, Any], bool] = lambda source, target, message: True) -> None:
        """Deliver what was sent, and what that causes, until nothing wanted is left; what is cut off is lost."""
        while True:
            index = next((i for i, each in enumerate(self.sent) if wanted(*each)), None)
            if index is None:
                return
            source, target, message = self.sent.pop(index)
            if {source, target} & self.cut:
                continue
            if message.kind == SNAPSHOT:
                message.hint, message.data = self.disks[source].log.check_at(message.index), b"state"
            self.step(target, source, self.core.Message.decode(message.encode()))

    def wait(self, microseconds: int) -> None:
        self.now += microseconds

    def campaign(self, id: int) -> list[Any]:
        """Let a replica's election timer run out, and nobody else's."""
        self.now = max(self.now + ELECTION, self.rafts[id].deadline())
        self.rafts[id].tick(self.now)
        return self.pump(id)

    def elect(self, id: int) -> Any:
        """Make a replica the leader by the votes of all that it can reach."""
        self.campaign(id)
        self.deliver()
        assert self.rafts[id].role == LEADER, f"{id} was not elected"
        return self.rafts[id]

    def heartbeat(self, id: int) -> None:
        self.now += HEARTBEAT
        self.rafts[id].tick(self.now)
        self.pump(id)

    def append(
        self, id: int, source: int, term: int, previous: tuple[int, int], terms: list[int], commit: int = 0
    ) -> Any:
        """An append message whose entries continue the receiver's own log at `previous`; returns the last answer."""
        log = self.core.Log(previous[0], previous[1], self.rafts[id].log.check_at(previous[0]))
        for each in terms:
            log.append(each, TRANSITION, b"%d/%d" % (log.last_index + 1, each))
        data = log.slice(previous[0] + 1, log.last_index + 1) if terms else b""
        fields = {"index": previous[0], "log_term": previous[1], "commit": commit, "data": data}
        answers = self.step(id, source, self.message(APPEND, term, **fields))
        return answers[-1] if answers else None

    def terms(self, id: int) -> list[int]:
        """The terms of a replica's log after its base."""
        log = self.rafts[id].log
        return [log.term_at(index) for index in range(log.base_index + 1, log.last_index + 1)]


def mutated(mutant: Mutant) -> SimpleNamespace:
    """The Python core with one place of raft.py changed: to show that a test can fail.

    Raises:
        LookupError: the place does not stand there exactly once.
    """
    text = mutant.plant(Path(raftplug.raft.__file__).read_text())
    names: dict[str, Any] = {"__name__": "mutated_raft"}
    exec(compile(text, "raft.py (mutated)", "exec"), names)  # noqa: S102
    classes = {name: names[name] for name in ("Raft", "Ready", "Log", "Message", "Progress", "Configuration")}
    return SimpleNamespace(name="mutant", **classes)
