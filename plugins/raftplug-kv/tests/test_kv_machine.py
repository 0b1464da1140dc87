"""The kv machine behaves like a dict, keeps its values to itself, and refuses before it changes anything."""

from __future__ import annotations

import contextlib
import copy
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from raftplug_kv import KV, raftplug_state_machines, same

from raftplug import Snapshot

scalars = st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=3) | st.binary(max_size=3)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3)
)
keys = st.sampled_from(["a", "b", ""])
transitions = st.one_of(
    st.fixed_dictionaries({"op": st.just("put"), "key": keys, "value": values}),
    st.fixed_dictionaries({"op": st.just("delete"), "key": keys}),
    st.fixed_dictionaries({"op": st.just("append"), "key": keys, "value": st.text(max_size=3)}),
    st.fixed_dictionaries({"op": st.just("cas"), "key": keys, "expect": values, "value": values}),
    st.builds(lambda key, value: {"op": "cas", "key": key, "expect": None, "value": value}, keys, values),
)


def model(state: dict[str, Any], transition: dict[str, Any]) -> Any:
    """What the README says, over a plain dict; equality is that of repr, as plain data has no other surprises."""
    op, key, value = transition["op"], transition["key"], transition.get("value")
    if op == "put":
        state[key] = value
        return None
    if op == "delete":
        return state.pop(key, state) is not state
    if op == "append":
        old = state.get(key)
        if old is not None and not isinstance(old, str):
            raise ValueError
        state[key] = (old or "") + value
        return state[key]
    if canonical(state.get(key)) != canonical(transition["expect"]):
        return False
    state[key] = value
    return True


def canonical(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ",".join(sorted(f"{key!r}:{canonical(item)}" for key, item in value.items())) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(canonical, value)) + "]"
    return repr(0.0) if type(value) is float and value == 0 else repr(value)


def outcome(function: Any, *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except ValueError:
        return "refused"


@given(st.lists(transitions, max_size=30), st.integers(0, 30))
def test_it_behaves_like_a_dict_also_when_restored_from_a_snapshot_at_any_point(
    history: list[dict[str, Any]], restored_at: int
) -> None:
    machine, state = KV(), {}
    for index, transition in enumerate(history):
        if index == restored_at:
            snapshot, machine = machine.create_snapshot(index, 1), KV()
            machine.apply_transition({"op": "put", "key": "old", "value": 1})
            machine.set_snapshot(snapshot)
        assert canonical(outcome(machine.apply_transition, transition)) == canonical(
            outcome(model, state, copy.deepcopy(transition))
        )
        for key in ("a", "b", "", "old"):
            assert canonical(machine.query({"op": "get", "key": key})) == canonical(state.get(key))


@given(st.lists(transitions, max_size=10), st.lists(transitions, max_size=10))
def test_a_snapshot_does_not_change_when_the_machine_that_made_it_goes_on(
    before: list[dict[str, Any]], after: list[dict[str, Any]]
) -> None:
    machine, twin = KV(), KV()
    for transition in before:
        outcome(machine.apply_transition, transition)
    snapshot = machine.create_snapshot(7, 2)
    assert (snapshot.last_included_index, snapshot.last_included_term) == (7, 2)
    kept = canonical(snapshot.data)
    twin.set_snapshot(snapshot)
    for transition in after:
        outcome(machine.apply_transition, transition)
        outcome(twin.apply_transition, transition)
    assert canonical(snapshot.data) == kept


@given(st.lists(transitions), st.lists(st.booleans()), st.integers(0, 5))
def test_the_digest_is_the_same_wherever_the_items_are_whenever_it_was_asked_for(
    history: list[dict[str, Any]], asked: list[bool], restored_at: int
) -> None:
    machine, silent, restored = KV(), KV(), KV()
    for number, transition in enumerate(history):
        for each in (machine, silent, restored):
            with contextlib.suppress(ValueError):
                each.apply_transition(copy.deepcopy(transition))
        if number == restored_at:
            restored.set_snapshot(silent.create_snapshot(1, 1))
        if asked[number : number + 1] == [True]:
            assert machine.digest() == restored.digest()
    assert machine.digest() == silent.digest() == restored.digest()
    before = machine.digest()
    machine.apply_transition({"op": "put", "key": "c", "value": "another"})
    assert machine.digest() != before
    machine.apply_transition({"op": "delete", "key": "c"})
    assert machine.digest() == before


def test_what_a_caller_does_to_a_value_or_an_answer_does_not_reach_the_state() -> None:
    machine, value = KV(), {"list": [1]}
    machine.apply_transition({"op": "put", "key": "k", "value": value})
    value["list"].append(2)
    machine.query({"op": "get", "key": "k"})["list"].append(3)
    assert machine.query({"op": "get", "key": "k"}) == {"list": [1]}
    assert machine.apply_transition({"op": "cas", "key": "k", "expect": {"list": [1]}, "value": value})
    value["list"].append(4)
    assert machine.query({"op": "get", "key": "k"}) == {"list": [1, 2]}


@pytest.mark.parametrize(
    ("transition", "text"),
    [
        (None, "not null"),
        (["put", "k", 1], "not list"),
        ({}, "op must be one of append, cas, delete, put, not None"),
        ({"op": ["put"], "key": "k"}, "op must be"),
        ({"op": "get", "key": "k"}, "op must be"),
        ({"op": "put", "key": "k"}, "put: 'value' is missing"),
        ({"op": "cas", "key": "k", "value": 1}, "cas: 'expect' is missing"),
        ({"op": "delete", "key": "k", "value": 1}, "delete: unknown field 'value'"),
        ({"op": "put", "key": "k", "value": 1, 5: 6}, "put: unknown field 5"),
        ({"op": "put", "key": 5, "value": 1}, "put: key must be a string, not int"),
        ({"op": "put", "key": None, "value": 1}, "put: key must be a string, not null"),
        ({"op": "append", "key": "k", "value": 1}, "append: value must be a string, not int"),
        ({"op": "append", "key": "n", "value": "x"}, "append: the value of 'n' is not a string but int"),
        ({"op": "x" * 1000, "key": "k"}, r"\.\.\.$"),
    ],
)
def test_a_bad_transition_is_refused_and_changes_nothing(transition: Any, text: str) -> None:
    machine = KV()
    machine.apply_transition({"op": "put", "key": "n", "value": 1})
    before = machine.create_snapshot(1, 1)
    with pytest.raises(ValueError, match=text) as caught:
        machine.apply_transition(transition)
    assert "\n" not in str(caught.value)
    assert machine.create_snapshot(1, 1) == before


@pytest.mark.parametrize(
    "query", [None, {}, {"op": "put", "key": "k", "value": 1}, {"op": "get"}, {"op": "get", "key": 1}]
)
def test_a_bad_query_is_refused(query: Any) -> None:
    with pytest.raises(ValueError, match=r"wanted|must be|missing"):
        KV().query(query)


@pytest.mark.parametrize("data", [None, [], {1: 2}, "x"])
def test_a_snapshot_of_something_else_is_refused_and_changes_nothing(data: Any) -> None:
    machine = KV()
    machine.apply_transition({"op": "put", "key": "k", "value": 1})
    with pytest.raises(ValueError, match="no snapshot of a kv machine"):
        machine.set_snapshot(Snapshot(1, 1, data))
    assert machine.query({"op": "get", "key": "k"}) == 1


@given(values, values)
def test_same_means_the_same_plain_data(a: Any, b: Any) -> None:
    assert same(a, copy.deepcopy(a))
    assert same(a, b) is same(b, a) is (canonical(a) == canonical(b))


@pytest.mark.parametrize(
    ("a", "b"),
    [(True, 1), (1, 1.0), ("1", b"1"), ([True], [1]), ([], {}), (None, False), ({"a": None}, {"b": None})],
)
def test_types_count_when_values_are_compared(a: Any, b: Any) -> None:
    assert not same(a, b)


@pytest.mark.parametrize(("a", "b"), [(math.nan, math.nan), ({"a": 1, "b": [2]}, {"b": [2], "a": 1}), (0.0, -0.0)])
def test_the_same_data_is_the_same_in_any_order(a: Any, b: Any) -> None:
    assert same(a, b)


def test_the_plugin_names_its_machine() -> None:
    assert raftplug_state_machines() == {"kv": KV}


@given(st.lists(transitions, max_size=20), st.lists(transitions, max_size=10), st.integers(1, 30))
def test_what_was_streamed_is_the_state_when_it_was_asked_for_however_it_is_cut(
    before: list[dict[str, Any]], after: list[dict[str, Any]], size: int
) -> None:
    machine, twin, restored = KV(), KV(), KV()
    for transition in before:
        outcome(machine.apply_transition, copy.deepcopy(transition))
        outcome(twin.apply_transition, copy.deepcopy(transition))
    stream = machine.stream_snapshot(7, 2)
    for transition in after:
        outcome(machine.apply_transition, transition)
    data = b"".join(stream)
    restored.apply_transition({"op": "put", "key": "old", "value": 1})
    restored.load_snapshot(7, 2, (data[at : at + size] for at in range(0, len(data), size)))
    assert canonical(restored.create_snapshot(7, 2).data) == canonical(twin.create_snapshot(7, 2).data)
    assert restored.digest() == twin.digest()


@pytest.mark.parametrize("data", [b"\x01\x02", b"\xa1a", b"\xc0\xc0"])
def test_a_stream_of_something_else_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="kv machine"):
        KV().load_snapshot(1, 1, iter([data]))
