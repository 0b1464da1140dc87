"""Level 2: what one entry costs in each part of the core, in ns, beside a bare copy of the same bytes.

The clock is this thread's CPU time: a part is over so soon that one interruption would be all that is measured.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from time import thread_time_ns
from typing import Any, Final

from raftplug import core as cores
from raftplug.benchmarks.core import PAYLOADS, Group, filled
from raftplug.benchmarks.record import Report, present_cores, rounds
from raftplug.constants import APPEND, APPEND_RESPONSE, ENTRY_HEADER_BYTES, TRANSITION

VOTERS: Final = (3, 5, 7, 9)
_ENTRIES: Final = 1024
_ONCE_EACH: Final = 20  # What is over in a microsecond is repeated.


def steps(*, quick: bool) -> int:
    """How many times `measure` calls back."""
    return 1 if quick else len(PAYLOADS)


def measure(report: Report, *, quick: bool, seconds: float | None = None, step: Callable[[], None]) -> None:
    """Measure every part on both cores in turn.

    Args:
        report: gets the records; their window is how many entries went at once.
        quick: only 16 bytes, and fewer rounds.
        seconds: means nothing here: a part takes the time it takes.
        step: called after each payload.
    """
    names = present_cores()
    count = 7 if quick else 21
    for payload_bytes in PAYLOADS[:1] if quick else PAYLOADS:
        payload = bytes(payload_bytes)
        for part, run in _parts().items():
            runs: dict[str, list[float]] = {name: [] for name in names}
            for _, name in rounds(count, names):
                gc.collect()
                runs[name].append(run(cores.load(name), payload))
            for name in names:
                report.add(
                    "parts", part, runs[name], "ns/entry", core=name, payload_bytes=payload_bytes, window=_ENTRIES
                )
        copies = [_copy(payload) for _ in range(count)]
        report.add("parts", "memcpy", copies, "ns/entry", payload_bytes=payload_bytes, window=_ENTRIES)
        step()


def _parts() -> dict[str, Callable[[Any, bytes], float]]:
    parts: dict[str, Callable[[Any, bytes], float]] = {
        "append": _append,
        "encode": _encode,
        "check": _check,
        "acknowledge": _acknowledge,
    }
    for voters in VOTERS:
        parts[f"commit.{voters}"] = _commit_over(voters)
    for voters in VOTERS:
        parts[f"vote_count.{voters}"] = _vote_count_over(voters)
    return parts


def _append(core: Any, payload: bytes) -> float:
    """One call an entry: the entry is encoded as it will travel."""
    log = core.Log()
    log.append(1, TRANSITION, payload)
    append = log.append
    begin = thread_time_ns()
    for _ in range(_ENTRIES):
        append(1, TRANSITION, payload)
    return (thread_time_ns() - begin) / _ENTRIES


def _encode(core: Any, payload: bytes) -> float:
    """All entries into the bytes of one message."""
    log = filled(core, _ENTRIES, payload)
    begin = thread_time_ns()
    for _ in range(_ONCE_EACH):
        core.Message(APPEND, 1, data=log.slice(1, _ENTRIES + 1)).encode()
    return (thread_time_ns() - begin) / _ENTRIES / _ONCE_EACH


def _check(core: Any, payload: bytes) -> float:
    """A follower's part: read the message, check the entries and append them."""
    data = core.Message(APPEND, 1, data=filled(core, _ENTRIES, payload).slice(1, _ENTRIES + 1)).encode()
    log = core.Log()
    begin = thread_time_ns()
    block = core.Message.decode(data).data
    first, _ = log.check_block(block, 0, 1)
    log.extend(block, first)
    return (thread_time_ns() - begin) / _ENTRIES


def _leading(core: Any, payload: bytes, voters: int) -> tuple[Any, int]:
    """A leader that has sent its entries, and the index before the first of them."""
    group = Group(core, tuple(range(1, voters + 1)))
    leader = group.leader
    base = int(leader.log.last_index)
    for _ in range(_ENTRIES):
        leader.propose(TRANSITION, payload)
    leader.ready()
    leader.persisted()
    return leader, base


def _answers(core: Any, leader: Any, base: int, peers: range) -> list[tuple[Any, int]]:
    """An acknowledgement of every entry by every peer, entry by entry."""
    answers: list[tuple[Any, int]] = []
    for index in range(base + 1, base + _ENTRIES + 1):
        for peer in peers:
            answer = core.Message(APPEND_RESPONSE, leader.term, index=index, hint=index, flag=True)
            answers.append((answer, peer))
    return answers


def _steps(leader: Any, answers: list[tuple[Any, int]]) -> float:
    step = leader.step
    begin = thread_time_ns()
    for answer, peer in answers:
        step(answer, peer)
    return (thread_time_ns() - begin) / _ENTRIES


def _acknowledge(core: Any, payload: bytes) -> float:
    """One acknowledgement an entry, of what another peer has made committed before."""
    leader, base = _leading(core, payload, 3)
    _steps(leader, _answers(core, leader, base, range(2, 3)))
    return _steps(leader, _answers(core, leader, base, range(3, 4)))


def _commit_over(voters: int) -> Callable[[Any, bytes], float]:
    """As many acknowledgements an entry as commit it; the leader's own disk was first."""

    def run(core: Any, payload: bytes) -> float:
        leader, base = _leading(core, payload, voters)
        elapsed = _steps(leader, _answers(core, leader, base, range(2, voters // 2 + 2)))
        if leader.commit != base + _ENTRIES:
            raise AssertionError("the acknowledgements of a quorum committed nothing")
        return elapsed

    return run


def _vote_count_over(voters: int) -> Callable[[Any, bytes], float]:
    """Whether a bare majority is one."""

    def run(core: Any, payload: bytes) -> float:
        has_quorum = core.Configuration(tuple(range(1, voters + 1))).has_quorum
        supporters = set(range(1, voters // 2 + 2))
        begin = thread_time_ns()
        for _ in range(_ENTRIES):
            has_quorum(supporters)
        return (thread_time_ns() - begin) / _ENTRIES

    return run


def _copy(payload: bytes) -> float:
    """The same bytes as in a block of entries, copied at once."""
    block = memoryview(bytes((ENTRY_HEADER_BYTES + len(payload)) * _ENTRIES))
    begin = thread_time_ns()
    for _ in range(_ONCE_EACH):
        bytes(block)
    return (thread_time_ns() - begin) / _ENTRIES / _ONCE_EACH
