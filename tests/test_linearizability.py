"""The checker of histories says what trying every order says, and says why."""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, permutations
from typing import Any

import pytest

from raftplug.errors import InvalidArgument
from raftplug.testing.linearizability import Operation, Verdict, check

NOTHING: Any = object()


def put(value: Any, called: float, returned: float | None, client: str = "a", key: str = "k") -> Operation:
    return Operation(client, key, "put", value, called=called, returned=returned, known=returned is not None)


def get(result: Any, called: float, returned: float, client: str = "b", key: str = "k") -> Operation:
    return Operation(client, key, "get", called=called, returned=returned, result=result)


def delete(result: bool | None, called: float, returned: float | None, client: str = "c") -> Operation:
    return Operation(client, "k", "delete", called=called, returned=returned, result=result, known=returned is not None)


def append(value: str, result: Any, called: float, returned: float | None, client: str = "d") -> Operation:
    known = returned is not None
    return Operation(client, "k", "append", value, called=called, returned=returned, result=result, known=known)


def cas(
    expect: Any, value: Any, result: bool | None, called: float, returned: float | None, client: str = "e"
) -> Operation:
    known = returned is not None
    return Operation(client, "k", "cas", value, expect, called=called, returned=returned, result=result, known=known)


LEGAL: dict[str, list[Operation]] = {
    "nothing happened": [],
    "an absent key reads as None": [get(None, 0, 1)],
    "a read sees the last put": [put(1, 0, 1), put(2, 2, 3), get(2, 4, 5)],
    "a read during a put sees the old value": [put(1, 0, 1), put(2, 2, 5), get(1, 3, 4)],
    "a read during a put sees the new value": [put(1, 0, 1), put(2, 2, 5), get(2, 3, 4)],
    "equal times are concurrent": [put(1, 0, 1), get(None, 1, 2)],
    "concurrent puts, ordered by two reads": [put(1, 0, 9), put(2, 0, 9, "z"), get(2, 1, 2), get(1, 3, 4)],
    "a put of what is there already brings it back later": [
        put(1, 0, 1),
        put(1, 2, 9, "x"),
        put(2, 2, 9, "y"),
        get(2, 3, 4),
        get(1, 5, 6),
    ],
    "a put of a value nobody reads hides one that a cas was refused for": [
        put("x", 0, 1),
        put("y", 2, 9, "x"),
        put("seen", 2, 9, "y"),
        get("seen", 3, 4),
        cas("seen", "z", False, 5, 6),
    ],
    "a put of unknown outcome happened": [put(1, 0, None), get(1, 1, 2)],
    "a put of unknown outcome did not happen": [put(1, 0, None), get(None, 1, 2)],
    "a put of unknown outcome is seen after it was not": [put(1, 0, None), get(None, 1, 2), get(1, 3, 4)],
    "a put of unknown outcome took effect after a much later put": [
        put(1, 0, None),
        *(put(at, at, at + 0.5) for at in range(2, 40)),
        get(39, 41, 42),
        get(1, 43, 44),
    ],
    "two puts of unknown outcome bring the same value twice": [
        put(1, 0, None),
        put(1, 0, None, "z"),
        get(1, 1, 2),
        put(2, 3, 4),
        get(2, 5, 6),
        get(1, 7, 8),
    ],
    "a delete tells whether the key was there": [delete(False, 0, 1), put(1, 2, 3), delete(True, 4, 5)],
    "None put is there, though it reads as absent": [put(None, 0, 1), get(None, 2, 3), delete(True, 4, 5)],
    "a delete of unknown outcome happened": [put(1, 0, 1), delete(None, 2, None), get(None, 3, 4), delete(False, 5, 6)],
    "an append starts from nothing": [append("a", "a", 0, 1), append("b", "ab", 2, 3)],
    "an append to None": [put(None, 0, 1), append("a", "a", 2, 3)],
    "an append of nothing makes the key be there": [append("", "", 0, 1), get("", 2, 3), delete(True, 4, 5)],
    "concurrent appends in the order of their results": [append("a", "ba", 0, 9), append("b", "b", 0, 9, "z")],
    "appends of unknown outcome, one after another": [
        append("c", None, 0, None),
        append("b", None, 0, None, "z"),
        append("a", "a", 1, 2),
        get("abc", 3, 4),
    ],
    "an append of unknown outcome between known ones": [
        append("a", "a", 0, 1),
        append("x", None, 2, None),
        append("b", "axb", 3, 4),
    ],
    "an append of unknown outcome would have failed, so did not happen": [put(1, 0, 1), append("a", None, 2, None)],
    "a cas of an absent key expects None": [cas(None, 1, True, 0, 1), get(1, 2, 3)],
    "of two cas from the same value one succeeds": [
        put(1, 0, 1),
        cas(1, 2, True, 2, 5),
        cas(1, 3, False, 2, 5, "z"),
        get(2, 6, 7),
    ],
    "both cas succeed after the value was put back": [
        put(1, 0, 1),
        cas(1, 2, True, 2, 9),
        cas(1, 3, True, 2, 9, "z"),
        put(1, 2, 9, "y"),
    ],
    "a cas that changes nothing": [put(1, 0, 1), cas(1, 1, True, 2, 3), get(1, 4, 5)],
    "a cas of unknown outcome happened": [put(1, 0, 1), cas(1, 2, None, 2, None), get(2, 3, 4)],
    "two cas of unknown outcome, the later called first": [
        put(1, 0, 1),
        cas(2, 3, None, 2, None),
        cas(1, 2, None, 3, None, "z"),
        get(3, 4, 5),
    ],
    "which of two of unknown outcome was seen shows only later": [
        put(1, 0, None),
        cas(None, 1, None, 0, None),
        get(1, 1, 2),
        put(2, 3, 4),
        get(2, 5, 6),
        get(1, 7, 8),
    ],
    "True is not 1": [put(1, 0, 1), cas(True, 2, False, 2, 3), get(1, 4, 5)],
    "1.0 is not 1": [put([1], 0, 1), cas([1.0], 2, False, 2, 3)],
    "0.0 is -0.0, and NaN is NaN": [put({"a": [0.0, float("nan")]}, 0, 1), get({"a": [-0.0, float("nan")]}, 2, 3)],
    "keys have nothing to do with each other": [put(1, 0, 1, key="x"), get(None, 2, 3, key="y"), get(1, 2, 3, key="x")],
    "a get of unknown outcome": [Operation("a", "k", "get", called=0, known=False), put(1, 1, 2), get(1, 3, 4)],
}

ILLEGAL: dict[str, list[Operation]] = {
    "a value that nobody wrote": [put(1, 0, 1), get(7, 2, 3)],
    "a stale read": [put(1, 0, 1), put(2, 2, 3), get(1, 4, 5)],
    "a read from the future": [get(1, 0, 1), put(1, 2, 3)],
    "a read that goes back": [put(1, 0, 1), put(2, 2, 9), get(2, 3, 4), get(1, 5, 6)],
    "two readers see two puts in different orders": [
        put(1, 0, 9),
        put(2, 0, 9, "z"),
        get(1, 1, 2),
        get(2, 3, 4),
        get(1, 5, 6),
    ],
    "a lost update": [put(1, 0, 1), get(None, 2, 3)],
    "a lost append": [append("a", "a", 0, 1), append("b", "ab", 2, 3), get("a", 4, 5)],
    "two appends from the same value": [append("a", "a", 0, 9), append("b", "b", 0, 9, "z")],
    "one append done twice": [append("a", "a", 0, 1), get("aa", 2, 3)],
    "one append of unknown outcome done twice": [append("a", None, 0, None), get("aa", 2, 3)],
    "one put of unknown outcome done twice": [put(1, 0, None), get(1, 1, 2), put(2, 3, 4), get(2, 5, 6), get(1, 7, 8)],
    "an append that gives what does not end with it": [append("a", "b", 0, 1)],
    "an append that succeeds on a number": [put(1, 0, 1), append("a", "a", 2, 3)],
    "both cas succeed": [put(1, 0, 1), cas(1, 2, True, 2, 5), cas(1, 3, True, 2, 5, "z")],
    "a cas fails though the value was there all the time": [put(1, 0, 1), cas(1, 2, False, 2, 3)],
    "a cas succeeds though the value was never there": [put(1, 0, 1), cas(2, 3, True, 2, 3)],
    "a cas that succeeded is not seen": [put(1, 0, 1), cas(1, 2, True, 2, 3), get(1, 4, 5)],
    "a cas that failed is seen": [put(1, 0, 1), cas(2, 3, False, 2, 3), get(3, 4, 5)],
    "one cas of unknown outcome done twice": [
        put(1, 0, 1),
        cas(1, 2, None, 2, None),
        get(2, 3, 4),
        put(1, 5, 6),
        get(1, 7, 8),
        get(2, 9, 10),
    ],
    "a put of unknown outcome seen, then not": [put(1, 0, None), get(1, 1, 2), get(None, 3, 4)],
    "a put of unknown outcome seen before its call": [get(1, 0, 1), put(1, 2, None)],
    "a delete found nothing where something was": [put(1, 0, 1), delete(False, 2, 3)],
    "a delete found something where nothing was": [delete(True, 0, 1)],
    "both deletes found the same": [put(1, 0, 1), delete(True, 2, 5), delete(True, 2, 5, "z")],
    "a deleted value is read": [put(1, 0, 1), delete(True, 2, 3), get(1, 4, 5)],
    "a delete of unknown outcome seen, then not": [
        put(1, 0, 1),
        delete(None, 2, None),
        get(None, 3, 4),
        get(1, 5, 6),
    ],
    "None put counts as there": [put(None, 0, 1), delete(False, 2, 3)],
    "1 is read where True was put": [put(True, 0, 1), get(1, 2, 3)],
    "a put that gave something": [Operation("a", "k", "put", 1, called=0, returned=1, result=True)],
    "a delete that gave nothing": [Operation("a", "k", "delete", called=0, returned=1)],
    "a cas that gave nothing": [Operation("a", "k", "cas", 1, None, called=0, returned=1)],
    "only one key of two": [put(1, 0, 1, key="x"), get(1, 2, 3, key="x"), get(2, 2, 3, key="y")],
}


@pytest.mark.parametrize("name", LEGAL)
def test_linearizable(name: str) -> None:
    verdict = check(LEGAL[name])
    assert verdict.linearizable is True, str(verdict)
    assert verdict and brute(LEGAL[name])


@pytest.mark.parametrize("name", ILLEGAL)
def test_not_linearizable(name: str) -> None:
    verdict = check(ILLEGAL[name])
    assert verdict.linearizable is False and not verdict
    assert not brute(ILLEGAL[name])
    assert_explained(ILLEGAL[name], verdict)


def step(state: Any, operation: Operation) -> tuple[Any, Any]:
    """(state, result) of a store of one key, NOTHING for absent; the result is NOTHING if it fails."""
    value = None if state is NOTHING else state
    if operation.kind == "get":
        return state, value
    if operation.kind == "put":
        return operation.value, None
    if operation.kind == "delete":
        return NOTHING, state is not NOTHING
    if operation.kind == "append":
        if value is not None and type(value) is not str:
            return state, NOTHING
        return (value or "") + operation.value, (value or "") + operation.value
    return (operation.value, True) if same(value, operation.expect) else (state, False)


def same(a: Any, b: Any) -> bool:
    return repr(a).replace("-0.0", "0.0") == repr(b).replace("-0.0", "0.0")


def brute(history: list[Operation]) -> bool:
    """Try every order of every choice of the unknown ones."""
    keys = {each.key for each in history}
    return all(any(map(fits, orders([each for each in history if each.key == key]))) for key in keys)


def orders(history: list[Operation]) -> Iterator[tuple[Operation, ...]]:
    known = [each for each in history if each.known]
    unknown = [each for each in history if not each.known]
    if len(history) > 8:  # Too many to try all: the last calls of those that are known are in order.
        for some in (some for count in range(len(unknown) + 1) for some in combinations(unknown, count)):
            for places in permutations(range(len(known) + 1), len(some)):
                merged = list(known)
                for place, each in sorted(zip(places, some, strict=True), key=lambda pair: -pair[0]):
                    merged.insert(place, each)
                yield tuple(merged)
        return
    for count in range(len(unknown) + 1):
        for some in combinations(unknown, count):
            yield from permutations([*known, *some])


def fits(order: tuple[Operation, ...]) -> bool:
    """Is the order one of real time, and does it explain every result?"""
    latest, state = float("-inf"), NOTHING
    for each in order:
        latest = max(latest, each.called)
        if each.known and (each.returned or 0) < latest:
            return False
        state, result = step(state, each)
        if each.known and not same(result, each.result):
            return False
    return True


def assert_explained(history: list[Operation], verdict: Verdict) -> None:
    """What is said to fit does, and what is said not to makes the difference."""
    misplaced = verdict.misplaced
    assert verdict.linearizable is False and misplaced is not None and misplaced.returned is not None
    assert fits(verdict.order), str(verdict)
    of_key = [each for each in history if each.key == verdict.key]
    before = [each for each in of_key if each.known and (each.returned or 0) < misplaced.returned]
    assert all(each in verdict.order for each in before)
    until = [each for each in of_key if each.kind != "get" and each.called <= misplaced.returned]
    later = [each for each in until if not each.known or (each.returned or 0) > misplaced.returned]
    assert set(map(id, later)) == set(map(id, verdict.pending))
    text = str(verdict)
    assert f"key {verdict.key!r} is not linearizable" in text and str(misplaced) in text


def simulate(
    seed: int, count: int, keys: int = 20, clients: int = 8, values: int = 0, unknown: float = 0.01
) -> list[Operation]:
    """What clients see of a true store: linearizable, since every operation happens at one instant of its call.

    Args:
        seed, count, keys, clients: of it.
        values: how many different ones there are; 0 is a new one each time.
        unknown: share of the operations whose outcome is; half of them happen, some of them much later.
    """
    chance = random.Random(seed)
    stored: dict[str, Any] = {}
    history: list[Operation] = []
    # (when, tie, operation, what happens then).
    events: list[tuple[float, int, Operation | None, str]] = [(at, at, None, "call") for at in range(clients)]
    called, ties = 0, clients

    def later(at: float, operation: Operation | None, what: str) -> None:
        nonlocal ties
        ties += 1
        heapq.heappush(events, (at, ties, operation, what))

    while events:
        now, _, operation, what = heapq.heappop(events)
        if what == "call":
            if called == count:
                continue
            called += 1
            key = f"k{chance.randrange(keys)}"
            kind = chance.choice(("get", "get", "get", "put", "put", "append", "cas", "delete"))
            value = f"{chance.randrange(values)}" if values else f"{called};"
            there = stored.get(key, NOTHING)
            expect = chance.choice((None if there is NOTHING else there, "0", None))
            if kind == "append" and type(there) is str and len(there) > 100:
                kind = "put"
            operation = Operation(called, key, kind, value, expect, called=now)
            if chance.random() < unknown:
                operation = replace(operation, known=False)
                history.append(operation)
                if chance.random() < 0.5:
                    later(now + chance.expovariate(1 / chance.choice((10, 10_000))), operation, "happen")
                later(now + 50, None, "call")
            else:
                later(now + chance.uniform(0, 10), operation, "happen")
        elif what == "happen" and operation is not None:
            state, result = step(stored.get(operation.key, NOTHING), operation)
            stored[operation.key] = state
            if operation.known:
                later(now + chance.uniform(0, 10), replace(operation, result=result), "return")
        elif operation is not None:
            history.append(replace(operation, returned=now))
            later(now + chance.uniform(0, 5), None, "call")
    return history


def arbitrary(chance: random.Random) -> list[Operation]:
    """A short history of few values, whose results come from a true store, now and then with another one instead."""
    count = chance.randint(1, 6)
    happen = sorted(range(count), key=lambda _: chance.random())
    spread = chance.choice((0.5, 2, 4))
    times = {
        at: (place - chance.random() * spread, place + chance.random() * spread) for place, at in enumerate(happen)
    }
    values: tuple[Any, ...] = chance.choice((("a", "b", "ab"), (None, "", "a"), (1, True, "a", None), (1, 2)))
    state, history = NOTHING, []
    for at in happen:
        kind = chance.choice(("get", "get", "put", "delete", "append", "cas"))
        value = chance.choice(("", "a", "b")) if kind == "append" else chance.choice(values)
        called, returned = map(round, times[at])
        known = chance.random() < 0.7
        operation = Operation(at, "k", kind, value, chance.choice(values), called, returned, known=known)
        after, result = step(state, operation)
        if known or chance.random() < 0.5:
            state = after
        if chance.random() < 0.35 or result is NOTHING:
            result = chance.choice(
                {"get": values, "put": (None, None, 1), "append": ("a", "b", "ab")}.get(kind, (True, False))
            )
        history.append(replace(operation, result=result) if known else replace(operation, returned=None))
    chance.shuffle(history)
    return history


def test_it_says_what_trying_every_order_says() -> None:
    chance = random.Random(7)
    linearizable = 0
    for _ in range(4000):
        history = arbitrary(chance)
        expected = brute(history)
        verdict = check(history)
        assert verdict.linearizable is expected, "\n".join(map(str, history))
        linearizable += expected
        if not expected:
            assert_explained(history, verdict)
    assert 1000 < linearizable < 3000


@pytest.mark.parametrize("values", [0, 3])
@pytest.mark.parametrize(("keys", "clients"), [(1, 1), (1, 4), (3, 8), (20, 8)])
def test_what_a_true_store_did_is_linearizable_and_with_a_value_nobody_wrote_is_not(
    keys: int, clients: int, values: int
) -> None:
    for seed in range(5):
        history = simulate(seed, 400, keys, clients, values, unknown=0.03)
        verdict = check(history)
        assert verdict.linearizable is True, str(verdict)
        reads = [at for at, each in enumerate(history) if each.known and each.kind == "get"]
        wrong = random.Random(seed).choice(reads)
        history[wrong] = replace(history[wrong], result="never written")
        verdict = check(history)
        assert verdict.linearizable is False
        assert verdict.misplaced == history[wrong]
        assert fits(verdict.order)


def test_a_stale_read_late_in_a_long_history_is_found_and_named() -> None:
    history = simulate(1, 3000, keys=1, clients=3)
    end = max(each.returned or each.called for each in history)
    stale = get("x", end + 5, end + 6, key="k0")
    history += [put("x", end + 1, end + 2, key="k0"), put("y", end + 3, end + 4, key="k0"), stale]
    verdict = check(history)
    assert verdict.linearizable is False and verdict.misplaced == stale


@pytest.mark.parametrize("keys", [20, 1000])
def test_a_hundred_thousand_operations_are_checked(keys: int) -> None:
    history = simulate(keys, 100_000, keys)
    assert len(history) > 99_000
    assert 500 < sum(not each.known for each in history) < 2000
    verdict = check(history)
    assert verdict.linearizable is True, str(verdict)
    assert str(verdict) == f"linearizable ({verdict.steps} steps)"


def test_it_gives_up_after_so_many_steps_for_a_key() -> None:
    history = simulate(1, 200, keys=2)
    verdict = check(history, steps=3)
    assert verdict.linearizable is None and not verdict
    assert set(verdict.undecided) == {"k0", "k1"} and verdict.steps == 6
    assert "undecided after 6 steps: key 'k" in str(verdict)
    assert check([*history, put(1, 0, 1), get(2, 2, 3)], steps=3).linearizable is False  # Another key, and certain.


def test_a_verdict_shows_what_fits_what_does_not_and_what_might_have() -> None:
    verdict = check([put(1, 0, 1), put(2, 2, 3), get(1, 4, 5), put(3, 2, None, "z")])
    assert str(verdict).splitlines() == [
        "key 'k' is not linearizable",
        "no place for    b: get k [4, 5] gave 1",
        "after           a: put k 1 [0, 1] gave None",
        "after           a: put k 2 [2, 3] gave None",
        "in spite of     z: put k 3 [2, …) unknown",
    ]


def test_a_long_verdict_shows_the_last_operations_and_the_ends_of_long_values() -> None:
    history = [put("x" * 100 + str(at), at, at + 0.5) for at in range(30)]
    text = str(check([*history, get(1, 40, 41)]))
    assert "after           18 more" in text and text.count("after") == 13
    assert " … xxx" in text and max(map(len, text.splitlines())) < 120


@pytest.mark.parametrize(
    ("operation", "text"),
    [
        (Operation("a", "k", "add", called=0, returned=1), "'add' is none of append, cas, delete, get, put"),
        (append("a", "a", 2, 1), "must have returned"),
        (Operation("a", "k", "get", called=0), "must have returned"),
        (Operation("a", "k", "append", 1, called=0, returned=1, result="1"), "append adds a str, not 1"),
        (get({1}, 0, 1), "no plain data"),
    ],
)
def test_what_no_kv_machine_did_is_refused(operation: Operation, text: str) -> None:
    with pytest.raises(InvalidArgument, match=text):
        check([operation])
