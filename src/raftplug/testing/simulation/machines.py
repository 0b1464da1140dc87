"""The state machines that simulated nodes run: one register, with every optional ability that a machine may have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol
from zlib import crc32

from raftplug import plain
from raftplug.state_machine import Snapshot, StateMachine

WRONG = "flipped"
"""What each answer begins with that comes of a state which a fault has changed."""


class Told(Protocol):
    """What a machine tells of its work: see `ledger`."""

    def executed(self, count: int, history: int, transition: Any, outcome: Any) -> None:
        """It has executed a transition: its number, the check of all up to it, and what came of it."""

    def loaded(self, count: int, history: int) -> None:
        """It holds the state after so many transitions."""


class Register(StateMachine):
    """The machine of the built-in workload: keys, and a checksum of everything that was ever applied.

    Args:
        told: of each transition; None tells none.
    """

    def __init__(self, told: Told | None = None) -> None:
        self.values: dict[str, Any] = {}
        self.count = 0
        self.history = 0
        self.flipped = 0  # No transition touches it: only a fault changes it, and then each answer is wrong.
        self._told = told

    def apply_transition(self, transition: Any) -> Any:
        self.count += 1
        self.history = crc32(plain.encode(transition), self.history)
        try:
            outcome: Any = self._execute(transition["op"], transition["key"], transition)
        except ValueError as raised:
            outcome = raised
        if self._told is not None:
            self._told.executed(self.count, self.history, transition, outcome)
        if isinstance(outcome, ValueError):
            raise outcome
        return [WRONG, outcome] if self.flipped else outcome

    def _execute(self, operation: str, key: str, transition: Any) -> Any:
        old = self.values.get(key)
        if operation == "put":
            self.values[key] = transition["value"]
            return None
        if operation == "delete":
            return self.values.pop(key, None) is not None
        if operation == "append":
            self.values[key] = (old or "") + transition["value"]
            return self.values[key]
        if operation == "cas":
            if old == transition["expect"]:
                self.values[key] = transition["value"]
                return True
            return False
        if operation == "add":
            self.values[key] = (old or 0) + transition["value"]
            return self.values[key]
        if operation == "fail":
            self.values[key] = transition["value"]  # What a machine has done before it raises stays done.
            raise ValueError(f"{transition['value']} fails")
        raise ValueError(f"no operation {operation!r}")

    def query(self, request: Any) -> Any:
        found = self.values.get(request["key"])
        return [WRONG, found] if self.flipped else found

    def digest(self) -> bytes:
        return b"%d %d %d" % (self.count, self.history, self.flipped)

    def create_snapshot(self, last_included_index: int, last_included_term: int) -> Snapshot:
        data = [dict(self.values), self.count, self.history]
        return Snapshot(last_included_index, last_included_term, data)

    def set_snapshot(self, snapshot: Snapshot) -> None:
        values, self.count, self.history = snapshot.data
        self.values = dict(values)
        self.flipped = 0
        if self._told is not None:
            self._told.loaded(self.count, self.history)


def is_wrong(answer: Any) -> bool:
    """Whether it came of a state that a fault had changed."""
    return type(answer) is list and answer[:1] == [WRONG]


class Batching(StateMachine):
    """Takes many transitions at once: on some replicas, and must not matter."""

    def apply_batch(self, transitions: list[Any]) -> list[Any]:
        results: list[Any] = []
        for transition in transitions:
            try:
                results.append(self.apply_transition(transition))
            except ValueError as raised:
                results.append(raised)
        return results


class BatchRegister(Batching, Register):
    """The same machine in batches."""


class _Streaming:
    """A register that gives its snapshots as bytes, in parts."""

    def stream_snapshot(self, index: int, term: int) -> Iterator[bytes]:
        captured = plain.encode(self.create_snapshot(index, term).data)  # type: ignore[attr-defined]
        return (captured[at : at + 50] for at in range(0, len(captured), 50))

    def load_snapshot(self, index: int, term: int, pieces: Iterator[bytes]) -> None:
        self.set_snapshot(Snapshot(index, term, plain.decode(b"".join(pieces))))  # type: ignore[attr-defined]


class StreamRegister(_Streaming, Register):
    """The register that streams."""


class StreamBatchRegister(_Streaming, BatchRegister):
    """Likewise, with batches."""


class DiskRegister(_Streaming, Register):
    """The register with a disk of its own, on which it commits now and then."""

    def open(self, disk: dict[str, Any]) -> None:
        """Go on from what is on the disk: nothing in the beginning."""
        self.disk = disk
        if disk:
            self.set_snapshot(Snapshot(0, 0, plain.decode(disk["state"])))

    def applied_index(self) -> int:
        return int(self.disk.get("index", 0))

    def set_applied_index(self, index: int) -> None:
        if index % 3 == 0:  # It waits for more before it commits.
            self.disk.update(index=index, state=plain.encode(self.create_snapshot(index, 0).data))


class DiskBatchRegister(DiskRegister, BatchRegister):
    """Likewise, with batches."""
