"""What the state machine's author relies on: plain data keeps its bytes and types, abilities are found by method."""

from __future__ import annotations

import copy
import enum
import math
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftplug import plain
from raftplug.errors import InvalidArgument, InvalidTransition, MalformedMessage
from raftplug.state_machine import (
    Abilities,
    Snapshot,
    StateMachine,
    TransitionAbandonedReason,
    TransitionState,
    abilities,
)

keys = st.text(max_size=5) | st.integers(-(1 << 63), (1 << 64) - 1)
data = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(keys, inner, max_size=5),
)


def alike(a: Any, b: Any) -> bool:
    """Equal, and of the same types all the way down."""
    if type(a) is not type(b):
        return False
    if isinstance(a, list):
        return len(a) == len(b) and all(map(alike, a, b))
    if isinstance(a, dict):
        return alike(list(a), list(b)) and alike(list(a.values()), list(b.values()))
    return a == b or (a != a and b != b)


def nested(depth: int) -> Any:
    value: Any = 1
    for level in range(depth):
        value = [value] if level % 2 else {"k": value}
    return value


# -- plain data ----------------------------------------------------------------------------------------------------


@given(data)
def test_plain_data_comes_back_from_its_bytes_as_it_was(value: Any) -> None:
    assert alike(plain.decode(plain.encode(value)), value)


@given(data)
def test_encoding_changes_nothing_and_is_always_the_same(value: Any) -> None:
    before = copy.deepcopy(value)
    assert plain.encode(value) == plain.encode(before)
    assert alike(value, before)


class Loud(str):
    __slots__ = ()


class Level(enum.IntEnum):
    HIGH = 1


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({1, 2}, "^set is not plain data; use None, bool"),
        ({"a": [0, 1, 2, {3}]}, r"^at \['a'\]\[3\]: set is not plain data"),
        ((1, 2), "^tuple is not plain data: use a list"),
        ([[(1,)]], r"^at \[0\]\[0\]: tuple is not plain data: use a list"),
        (bytearray(b"x"), "bytearray is not plain data"),
        ([memoryview(b"x")], "memoryview is not plain data"),
        (object(), "object is not plain data"),
        (Loud("x"), "Loud is not plain data"),
        ([Level.HIGH], "Level is not plain data"),
        (1j, "complex is not plain data"),
        (msgpack.ExtType(1, b"x"), "ExtType is not plain data"),
        ([msgpack.Timestamp(1)], "Timestamp is not plain data"),
        ({"a": 1 << 64}, r"^at \['a'\]: an int outside"),
        (-(1 << 63) - 1, "^an int outside"),
        ({"k": ["\ud800"]}, r"^at \['k'\]\[0\]: a str with a lone surrogate"),
        ({None: 1}, "^in the keys: NoneType cannot be a key"),
        ([{"x": {1.5: 1}}], r"^in the keys at \[0\]\['x'\]: float cannot be a key"),
        ({True: 1}, "bool cannot be a key"),
        ({b"k": 1}, "bytes cannot be a key"),
        ({(1,): 1}, "in the keys: tuple"),
        ({"\ud800": 1}, "in the keys: a str with a lone surrogate"),
        ({1 << 64: 1}, "in the keys: an int outside"),
        (nested(plain.DEPTH + 1), "nested too deep"),
        ({"x" * 10_000: {1}}, "set is not plain data"),
    ],
    ids=lambda value: None if isinstance(value, str) else type(value).__name__,
)
def test_what_is_not_plain_data_is_refused_in_one_line_that_says_where(value: Any, text: str) -> None:
    with pytest.raises(InvalidTransition, match=text) as caught:
        plain.encode(value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_list_that_holds_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(InvalidTransition, match="nested too deep"):
        plain.encode(loop)


def test_a_snapshot_may_be_nested_deeper_than_what_it_was_made_of() -> None:
    plain.encode(nested(plain.DEPTH))
    deep = nested(plain.SNAPSHOT_DEPTH)
    with pytest.raises(InvalidTransition):
        plain.encode(deep)
    encoded = plain.encode(deep, plain.SNAPSHOT_DEPTH)
    with pytest.raises(MalformedMessage):
        plain.decode(encoded)
    assert plain.decode(encoded, plain.SNAPSHOT_DEPTH) == deep


@given(
    st.binary(max_size=50) | data.map(plain.encode).flatmap(lambda whole: st.sampled_from([whole[:-1], whole + b"x"]))
)
def test_bytes_are_decoded_to_plain_data_or_refused_and_nothing_else(garbage: bytes) -> None:
    try:
        value = plain.decode(garbage)
    except MalformedMessage:
        return
    plain.encode(value)


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"\xc1",
        b"\xdd\xff\xff\xff\xff",  # A list that claims four billion items.
        b"\xdf\xff\xff\xff\xff\x01",
        b"\xc6\xff\xff\xff\xffx",
        b"\x91" * 100_000 + b"\xc0",
        b"\x91" * (plain.DEPTH + 1) + b"\xc0",
        b"\xc0\xc0",
        b"\xa1\xff",  # A str that is not UTF-8.
        b"\x81\x90\x01",  # A list as a key.
        b"\x81\xc0\x01",
        b"\xc7\x01\x05x",  # An extension type.
        b"\xc7\x03\xffxxx",
    ],
)
def test_malformed_bytes_are_refused(garbage: bytes) -> None:
    with pytest.raises(MalformedMessage, match="bytes are not plain data"):
        plain.decode(garbage)


# -- states and snapshots ------------------------------------------------------------------------------------------


def test_a_state_can_be_compared_hashed_matched_and_read() -> None:
    def told(state: TransitionState) -> str:
        match state:
            case TransitionState.Applied:
                return "applied"
            case TransitionState.Abandoned(TransitionAbandonedReason.NotLeader):
                return "not the leader"
            case TransitionState.Abandoned(reason):
                return reason.name
        return "other"

    conflict = TransitionState.Abandoned(TransitionAbandonedReason.ConflictWithLeader)
    refused = TransitionState.Abandoned(TransitionAbandonedReason.NotLeader)
    every = [TransitionState.Queued, TransitionState.Committed, TransitionState.Applied, conflict, refused]
    assert [told(state) for state in every] == ["other", "other", "applied", "ConflictWithLeader", "not the leader"]
    assert len(set(every)) == 5
    assert all(isinstance(state, TransitionState) for state in every)
    assert every == copy.deepcopy(every)
    assert conflict == TransitionState.Abandoned(TransitionAbandonedReason.ConflictWithLeader)
    assert conflict.reason is TransitionAbandonedReason.ConflictWithLeader
    assert [repr(state) for state in every[2:4]] == [
        "TransitionState.Applied",
        "TransitionState.Abandoned(ConflictWithLeader)",
    ]


def test_a_state_cannot_be_changed_nor_abandoned_for_no_reason() -> None:
    with pytest.raises(AttributeError):
        TransitionState.Queued.name = "Applied"  # type: ignore[misc]
    with pytest.raises(AttributeError):
        Snapshot(1, 1, None).data = 2  # type: ignore[misc]
    with pytest.raises(InvalidArgument, match="TransitionAbandonedReason"):
        TransitionState.Abandoned("NotLeader")  # type: ignore[arg-type]


# -- machines ------------------------------------------------------------------------------------------------------


class Smallest(StateMachine):
    def apply_transition(self, transition: Any) -> Any:
        return transition


class Whole(Smallest):
    def register_transition_state(self, transition_id: Any, state: TransitionState) -> None: ...
    def get_pending_transitions(self) -> list[Any]:
        return [1]

    def get_snapshot(self) -> Snapshot | None:
        return None

    def create_snapshot(self, last_included_index: int, last_included_term: int) -> Snapshot:
        return Snapshot(last_included_index, last_included_term, None)

    def set_snapshot(self, snapshot: Snapshot) -> None: ...
    def get_id(self, transition: Any) -> Any:
        return 1

    def query(self, request: Any) -> Any:
        return request


class Duck:
    def apply_transition(self, transition: Any) -> Any: ...
    def query(self, request: Any) -> Any: ...
    def create_snapshot(self, last_included_index: int, last_included_term: int) -> Any: ...


NONE = Abilities(
    snapshots=False, initial_snapshot=False, observes_states=False, has_pending=False, has_ids=False, has_query=False
)


def test_all_but_apply_transition_has_a_default() -> None:
    machine = Smallest()
    machine.register_transition_state((1, 1), TransitionState.Queued)
    assert machine.get_pending_transitions() == []
    assert machine.get_snapshot() is None
    assert machine.get_id({}) is None
    with pytest.raises(TypeError, match="apply_transition"):
        StateMachine()  # type: ignore[abstract]


def test_no_default_pretends_to_make_a_snapshot_or_to_answer() -> None:
    machine = Smallest()
    for call in (
        lambda: machine.create_snapshot(1, 1),
        lambda: machine.set_snapshot(Snapshot(1, 1, None)),
        lambda: machine.query(1),
        lambda: machine.apply_batch([1]),
        machine.digest,
    ):
        with pytest.raises(NotImplementedError, match=r"Smallest .*: write") as caught:
            call()
        assert isinstance(caught.value, InvalidArgument)


def test_abilities_are_what_the_author_has_written() -> None:
    assert abilities(Smallest()) == NONE
    assert abilities(Whole()) == Abilities(
        snapshots=True, initial_snapshot=True, observes_states=True, has_pending=True, has_ids=True, has_query=True
    )


def test_an_object_of_any_class_will_do() -> None:
    found = abilities(Duck())
    assert found.has_query
    assert not found.snapshots, "half of the pair is not enough"
    assert not found.has_pending


def test_one_object_may_be_more_than_a_state_machine() -> None:
    class Transport:
        def get_id(self, transition: Any) -> Any: ...

    class Both(Transport, Smallest): ...

    assert abilities(Both()).has_ids


def test_a_method_may_be_set_on_the_object() -> None:
    machine = Smallest()
    machine.query = lambda request: request  # type: ignore[method-assign]
    assert abilities(machine).has_query
    machine.query = None  # type: ignore[assignment, method-assign]
    assert not abilities(machine).has_query


@pytest.mark.parametrize("thing", [None, 5, object(), Smallest, "kv"])
def test_what_cannot_apply_is_no_state_machine(thing: object) -> None:
    with pytest.raises(InvalidArgument, match=r"no method apply_transition|is a class"):
        abilities(thing)


def test_nan_and_infinity_are_plain_data() -> None:
    assert math.isnan(plain.decode(plain.encode(math.nan)))
    assert plain.decode(plain.encode([math.inf, -math.inf])) == [math.inf, -math.inf]
