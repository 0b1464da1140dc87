"""What is done once for each transition is done alike on both cores."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any

import pytest

from raftplug.constants import CONFIGURATION, FAILED, NEVER, OK, SESSION_OPEN, TRANSITION
from raftplug.errors import InvalidArgument


def calls_of(core: Any, said: list[str] | None = None) -> Any:
    words = said if said is not None else []
    return core.Calls(lambda: 5, lambda: words.append("woken"), lambda: words.append("late"))


def test_proposals_to_one_driver_are_taken_together_and_all_calls_in_their_order(core: Any) -> None:
    calls, taken = calls_of(core), []
    given = [("a", 1), ("a", 2), ("b", 3), (None, 4), ("a", 5), (None, 6), (None, 7)]
    for call in given:
        calls.add(call)
    while calls:
        together: deque[Any] = deque()
        after = calls.take(len(calls), together)
        assert len({driver for driver, _ in together}) <= 1
        taken += [*together, *([after] if after is not None else [])]
    assert taken == given


def test_no_more_calls_are_taken_than_asked_for_and_what_is_put_back_comes_next(core: Any) -> None:
    calls, together = calls_of(core), deque[Any]()
    for number in range(5):
        calls.add(("a", number))
    assert calls.take(3, together) is None and len(together) == 3 and len(calls) == 2
    calls.put_back(together)
    again: deque[Any] = deque()
    assert calls.take(9, again) is None and [number for _, number in again] == list(range(5))


def test_a_loop_is_woken_if_it_sleeps_and_is_told_of_what_comes_when_it_has_ended(core: Any) -> None:
    said: list[str] = []
    calls = calls_of(core, said)
    calls.add((None, 1))
    assert not said
    calls.sleeping = True
    calls.propose("a", b"x", 1.5)
    assert said == ["woken"]
    calls.closed = True
    calls.add((None, 3))
    assert said == ["woken", "late"] and len(calls) == 3


def test_a_proposal_ends_when_its_caller_said(core: Any) -> None:
    calls, together = calls_of(core), deque[Any]()
    future = calls.propose("a", b"x", 1.5)
    calls.take(1, together)
    assert together[0] == ("a", b"x", future, 1_500_005) and type(future) is core.Future
    for timeout in (float("nan"), -1, "1"):
        with pytest.raises(InvalidArgument):
            calls.propose("a", b"x", timeout)
    assert not calls, "what was refused is not in the queue"
    for timeout in (float("inf"), None):
        calls.propose("a", b"x", timeout)
    calls.take(2, together)
    assert [call[3] for call in together][1:] == [NEVER, NEVER]


def test_many_threads_add_and_each_call_is_taken_once(core: Any) -> None:
    calls, taken, ended = calls_of(core), deque[Any](), threading.Event()

    def take() -> None:
        while not ended.is_set() or calls:
            after = calls.take(7, taken)
            if after is not None:
                taken.append(after)

    adders = [threading.Thread(target=lambda: [calls.add((None, i)) for i in range(3_000)]) for _ in range(3)]
    takers = [threading.Thread(target=take) for _ in range(2)]
    for thread in adders + takers:
        thread.start()
    for thread in adders:
        thread.join()
    ended.set()
    for thread in takers:
        thread.join()
    assert sorted(number for _, number in taken) == sorted(3 * list(range(3_000)))


def test_a_machine_is_given_transitions_only_and_what_it_raises_is_an_outcome(core: Any) -> None:
    entries = [(TRANSITION, 1, b"1"), (SESSION_OPEN, 1, b"s"), (TRANSITION, 1, b"x"), (TRANSITION, 1, b"2")]
    entries.append((TRANSITION, 1, b"0"))
    outcomes: list[Any] = []
    given = [lambda value: value + 1 if value else None, int, lambda value: (OK, {value}), lambda error: type(error)]
    core.execute(10, entries, 0, 5, *given, lambda *what: what, outcomes)
    assert outcomes == [(OK, {2}), (11, SESSION_OPEN, b"s"), (FAILED, ValueError), (OK, {3}), (OK, None)]


def test_who_waits_gets_the_result_of_its_own_term_and_all_else_is_left_to_the_driver(core: Any) -> None:
    mine, other, failed = core.Future(), core.Future(), core.Future()
    entries = [(TRANSITION, 2, b""), (TRANSITION, 2, b""), (TRANSITION, 2, b""), (CONFIGURATION, 2, b"")]
    outcomes = [(OK, "a"), (OK, "b"), (FAILED, "c"), (OK, None)]
    pending = {7: (2, 0, mine), 8: (1, 0, other), 9: (2, 0, failed), 11: (2, 0, other)}
    left: list[Any] = []
    core.answer(7, entries, outcomes, pending, True, lambda *what: left.append(what))
    assert mine.result(0) == "a" and not other.done() and not failed.done()
    assert left == [
        (8, TRANSITION, 2, (1, 0, other), OK, "b"),
        (9, TRANSITION, 2, (2, 0, failed), FAILED, "c"),
        (10, CONFIGURATION, 2, None, OK, None),
    ]
    assert list(pending) == [11]
    left.clear()
    core.answer(7, entries, outcomes, {}, False, lambda *what: left.append(what))
    assert [what[0] for what in left] == [7, 8, 9, 10]


def test_the_clock_is_the_monotonic_one(core: Any) -> None:
    before = time.monotonic_ns() // 1000
    assert before <= core.now_us() <= time.monotonic_ns() // 1000
