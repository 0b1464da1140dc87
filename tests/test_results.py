"""What a state machine returns or raises: the same result everywhere, or the replica stops and says why."""

from __future__ import annotations

import asyncio
import datetime
import math
import queue
import re
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from enum import IntEnum
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import raftplug
from raftplug import node as node_module
from raftplug import plain, results
from raftplug.apply import Applier
from raftplug.cluster import Cluster, MemoryCluster, MemoryHub
from raftplug.constants import FAILED, LARGEST_RESULT, OK, SESSION_OPEN, TRANSITION, UNDELIVERABLE
from raftplug.core import Future
from raftplug.errors import (
    InvalidArgument,
    InvalidTransition,
    MachineFailed,
    QueryFailed,
    TooLarge,
    TransitionFailed,
)
from raftplug.events import Event
from raftplug.sessions import encode_open
from raftplug.settings import Settings
from raftplug.state_machine import Snapshot, StateMachine, abilities
from raftplug.storage import MemoryStorage
from test_apply import FOREVER, once
from test_fake_clock import GROUP, IDS, Counter, World

DOCUMENT = Path(__file__).parent.parent / "docs" / "plugins.md"


class Sly(OSError):
    @property
    def errno(self) -> Any:  # type: ignore[override]
        raise RuntimeError


def _raised(do: Callable[[], Any]) -> BaseException:
    try:
        do()
    except BaseException as raised:
        return raised
    raise AssertionError


def _while_handling(handled: BaseException, raised: BaseException, cause: BaseException | None = None) -> Any:
    def do() -> None:
        try:
            raise handled
        except BaseException:
            raise raised from cause

    return _raised(do)


def _endless() -> Any:
    return _endless() + 1


RESULTS: dict[str, Callable[[], BaseException]] = {
    "ValueError": lambda: ValueError("no"),
    "PermissionError without errno": lambda: PermissionError("no"),
    "OSError of two texts": lambda: OSError("alice", "may not"),
    "OSError without an errno that can be seen": lambda: Sly("no"),
    "TimeoutError": lambda: TimeoutError(),
    "StopIteration": lambda: StopIteration(1),
    "RuntimeError": lambda: RuntimeError("no"),
    "an error of raftplug": lambda: raftplug.errors.Unavailable("no"),
    "a failure": lambda: TransitionFailed("A", "b"),
    "a group": lambda: ExceptionGroup("g", [ValueError("a"), KeyError("b")]),
    "a ValueError for a KeyError": lambda: _while_handling(KeyError("k"), ValueError("no")),
    "a circle": lambda: _circle(),
}
STOPS: dict[str, Callable[[], BaseException]] = {
    "MemoryError": lambda: MemoryError(),
    "RecursionError": lambda: RecursionError("raised"),
    "too deep": lambda: _raised(_endless),
    "OSError": lambda: OSError(5, "Input/output error"),
    "FileNotFoundError": lambda: _raised(lambda: Path("/no/such/file").stat()),
    "OSError whose errno is hidden": lambda: Sly(5, "Input/output error"),
    "SystemExit": lambda: SystemExit(1),
    "GeneratorExit": lambda: GeneratorExit(),
    "CancelledError": lambda: asyncio.CancelledError(),
    "KeyboardInterrupt": lambda: KeyboardInterrupt(),
    "a group of groups": lambda: ExceptionGroup("g", [ValueError(), ExceptionGroup("h", [MemoryError()])]),
    "a group of others": lambda: BaseExceptionGroup("g", [SystemExit()]),
    "a ValueError for a RecursionError": lambda: _while_handling(_raised(_endless), ValueError("too deep")),
    "from None": lambda: _while_handling(OSError(28, "No space left"), ValueError("full"), None),
    "from another": lambda: _while_handling(KeyError(), ValueError(), _while_handling(MemoryError(), KeyError())),
    "its text is too deep": lambda: type("Odd", (Exception,), {"__str__": lambda self: _endless()})(),
    "its text takes too much": lambda: type("Odd", (Exception,), {"__str__": lambda self: bytes(1 << 62)})(),
}


def _circle() -> BaseException:
    one, other = ValueError("one"), ValueError("other")
    one.__context__, other.__context__ = other, one
    return one


class Raising(StateMachine):
    """Raises what the transition names."""

    def __init__(self) -> None:
        self.executed: list[Any] = []

    def apply_transition(self, transition: Any) -> Any:
        make = {**RESULTS, **STOPS}.get(transition)
        if make is not None:
            raise make()
        self.executed.append(transition)
        return len(self.executed)


class RaisingInBatches(Raising):
    """Puts what it raises into its list, whatever that is."""

    def apply_batch(self, transitions: list[Any]) -> list[Any]:
        answers = []
        for transition in transitions:
            try:
                answers.append(self.apply_transition(transition))
            except BaseException as raised:
                answers.append(raised)
        return answers


WAYS = {
    "alone": (Raising, lambda name: [(TRANSITION, 1, plain.encode(name))]),
    "in a session": (Raising, lambda name: [(SESSION_OPEN, 1, encode_open(0)), once(1, 1, name)]),
    "in a batch": (RaisingInBatches, lambda name: [(TRANSITION, 1, plain.encode(name))]),
    "in a batch, in a session": (RaisingInBatches, lambda name: [(SESSION_OPEN, 1, encode_open(0)), once(1, 1, name)]),
}


def applier(machine: Any, core: Any) -> Applier:
    return Applier(group="g", machine=machine, settings=Settings(), clock=lambda: 0, core=core)


def outcome_of(core: Any, way: str, name: str) -> Any:
    machine, entries = WAYS[way]
    code, value = applier(machine(), core).apply(1, entries(name), FOREVER, tell=False)[-1]
    if isinstance(value, TransitionFailed):
        value = [value.kind, value.message]
    return code, value


@pytest.mark.parametrize("name", RESULTS)
def test_an_exception_is_the_same_result_however_its_transition_came(core: Any, name: str) -> None:
    outcomes = [outcome_of(core, way, name) for way in WAYS]
    assert all(outcome == outcomes[0] for outcome in outcomes), outcomes
    error = RESULTS[name]()
    assert outcomes[0] == (FAILED, [type(error).__name__, str(error)])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", STOPS)
def test_what_tells_of_this_process_alone_is_never_a_result(core: Any, name: str, way: str) -> None:
    assert results.stops(_raised(lambda: outcome_of(core, way, name)))


def test_what_the_caller_of_a_replica_handles_is_no_fault_of_its_machine(core: Any) -> None:
    try:
        raise OSError(2, "No such file")
    except OSError:
        for way in WAYS:
            assert outcome_of(core, way, "ValueError") == (FAILED, ["ValueError", "no"])
            with pytest.raises(MemoryError):
                outcome_of(core, way, "MemoryError")


@pytest.mark.parametrize("name", ["too deep", "SystemExit", "CancelledError", "OSError", "a group of groups"])
def test_a_replica_that_stops_says_what_was_raised_and_what_to_do(core: Any, name: str) -> None:
    class Named(Counter):
        def apply_transition(self, transition: Any) -> int:
            if transition["add"] is None:
                raise STOPS[name]()
            return super().apply_transition(transition)

    world = World(core, machine=Named)
    leader = world.elect()
    world.result(world.propose(leader, {"add": 1}))
    world.propose(leader, {"add": None})
    raised = _raised(lambda: world.run(1_000))
    text = " ".join([str(raised), *getattr(raised, "__notes__", [])])
    assert f"group {GROUP}: Named raised" in text and "start this node again" in text
    assert ("sys.setrecursionlimit" in text) is (name == "too deep")
    if name in ("SystemExit", "CancelledError", "a group of groups"):
        assert isinstance(raised, MachineFailed)


class Number(IntEnum):
    ONE = 1


class Text(str):
    pass


def _deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def _holding_itself() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


PLAIN: list[Any] = [
    *(None, True, 0, -(1 << 63), (1 << 64) - 1, 1.5, math.nan, math.inf, "text", "\0é", b"", b"bytes", [], {}),
    *([1, [2, {"a": None}]], {"a": [1], 2: b"b"}, _deep(100)),
]
NOT_PLAIN: list[Callable[[], Any]] = [
    *(lambda value=value: value for value in ((1, 2), {1}, frozenset(), datetime.date(2000, 1, 1), 1 << 70, 1j)),
    *(lambda value=value: value for value in (-(1 << 63) - 1, 1 << 64, Number.ONE, Text("x"), OrderedDict(), object)),
    *(lambda value=value: value for value in ("\ud800", ["\ud800"], {"\ud800": 1}, {1 << 64: 1}, {(1,): 1}, {None: 1})),
    *(lambda value=value: value for value in ({True: 1}, {1.5: 1}, bytearray(b"x"), [(1,)], {"a": {1}})),
    lambda: (number for number in (1, 2)),
    lambda: iter([1]),
    lambda: {}.items(),
    lambda: print,
    lambda: ValueError("an exception that is returned"),
    lambda: TransitionFailed("A", "b"),
    lambda: TransitionFailed,
    lambda: _deep(101),
    _holding_itself,
    lambda: partial(int),
]


class Returning(StateMachine):
    def __init__(self, value: Any) -> None:
        self.value = value

    def apply_transition(self, transition: Any) -> Any:
        return self.value

    def query(self, request: Any) -> Any:
        return self.value


class ReturningInBatches(Returning):
    def apply_batch(self, transitions: list[Any]) -> list[Any]:
        return [self.value for _ in transitions]


def returned(core: Any, value: Any) -> list[Any]:
    """The outcome of each way in which a transition can come, as the one who proposed it sees it."""
    seen = []
    for machine in (Returning(value), ReturningInBatches(value)):
        for entries in ([(TRANSITION, 1, b"\x01")], [(SESSION_OPEN, 1, encode_open(0)), once(1, 1, 1)]):
            code, found = applier(machine, core).apply(1, entries, FOREVER, tell=False)[-1]
            if len(entries) == 2 and code == OK:
                found = plain.decode(found)
            elif code == FAILED and isinstance(found, TransitionFailed):
                found = [found.kind, found.message]
            seen.append((code, found))
    return seen


@pytest.mark.parametrize("number", range(len(PLAIN)))
def test_plain_data_is_a_result_and_comes_as_it_was(core: Any, number: int) -> None:
    for code, found in returned(core, PLAIN[number]):
        assert code == OK and type(found) is type(PLAIN[number]) and repr(found) == repr(PLAIN[number])


@pytest.mark.parametrize("number", range(len(NOT_PLAIN)))
def test_what_is_not_plain_data_is_the_same_failure_however_its_transition_came(core: Any, number: int) -> None:
    value = NOT_PLAIN[number]()
    if isinstance(value, BaseException):  # In a batch it is what its transition raised.
        found = applier(Returning(value), core).apply(1, [(TRANSITION, 1, b"\x01")], FOREVER, tell=False)
        assert found[0][0] == FAILED and found[0][1].kind == "InvalidTransition"
        return
    seen = returned(core, value)
    assert all(each == seen[0] for each in seen), seen
    code, (kind, message) = seen[0]
    assert (code, kind) == (FAILED, "InvalidTransition") and message.startswith("the result: ")


def test_a_result_is_a_copy_as_of_its_transition_also_for_who_is_in_the_same_process(core: Any) -> None:
    class Growing(StateMachine):
        def __init__(self) -> None:
            self.items: list[int] = []

        def apply_transition(self, transition: Any) -> Any:
            self.items.append(transition)
            return self.items

    machine = Growing()
    entries = [(TRANSITION, 1, plain.encode(number)) for number in range(3)]
    found = applier(machine, core).apply(1, entries, FOREVER, tell=False)
    assert [value for _, value in found] == [[0], [0, 1], [0, 1, 2]]
    found[2][1].append("by who proposed it")
    assert machine.items == [0, 1, 2]


def test_a_result_for_which_nobody_waits_is_not_even_looked_at(core: Any) -> None:
    machine = Returning(object())
    found = applier(machine, core).apply(1, [(TRANSITION, 1, b"\x01")] * 2, FOREVER, tell=False, wanted=False)
    assert found == [(OK, None)] * 2


@pytest.mark.parametrize("value", ["x", b"x"])
def test_a_result_that_cannot_be_delivered_is_told_as_such_to_everybody(core: Any, value: Any) -> None:
    fits = LARGEST_RESULT - 5
    for code, _ in returned(core, value * fits):
        assert code == OK
    plainly, once_only, *batches = returned(core, value * (fits + 1))
    assert plainly[0] == FAILED and isinstance(plainly[1], TooLarge) and plainly[1].executed
    assert once_only == (UNDELIVERABLE, b"%d" % (LARGEST_RESULT + 1))
    assert [code for code, _ in batches] == [FAILED, UNDELIVERABLE]


class Large(Counter):
    def apply_transition(self, transition: Any) -> Any:
        super().apply_transition(transition)
        return bytes(transition["size"])

    def query(self, request: Any) -> Any:
        return bytes(request)


@pytest.mark.parametrize("where", ["leader", "follower", "client"])
def test_who_proposes_hears_at_once_that_it_was_executed_and_its_result_is_too_large(core: Any, where: str) -> None:
    world = World(core, machine=Large)
    leader = world.elect()
    follower = next(id for id in IDS if id != leader)
    client = world.client()

    def propose(size: int) -> Future:
        transition = {"add": 1, "size": size}
        if where == "client":
            return world.ask(client, transition)
        return world.propose(leader if where == "leader" else follower, transition)

    assert world.result(propose(1 << 20)) == bytes(1 << 20)
    began = world.now
    error = propose_until_done(world, propose(9 << 20)).exception(0)
    assert isinstance(error, TooLarge) and error.executed and "executed" in str(error)
    assert world.now - began < 1_000_000
    assert world.machines[leader].value == 2, "it was executed once"
    assert world.result(propose(10)) == bytes(10), "and what follows is not held up"


def propose_until_done(world: World, future: Future) -> Future:
    world.until(future.done)
    return future


def test_an_answer_that_cannot_be_delivered_is_answered_at_once_and_made_once(core: Any) -> None:
    asked: list[int] = []

    class Counting(Large):
        def query(self, request: Any) -> Any:
            asked.append(request)
            return super().query(request)

    world = World(core, machine=Counting)
    world.elect()
    client = world.client()
    began, future = world.now, Future()
    client.read(plain.encode(9 << 20), future, world.now + 10_000_000)
    error = propose_until_done(world, future).exception(0)
    assert isinstance(error, TooLarge) and not error.executed and "the answer has" in str(error)
    assert world.now - began < 1_000_000 and len(asked) == 1


class Narrow(MemoryCluster):
    largest_message = 2 << 20


def test_a_transport_that_delivers_less_says_so_and_is_not_asked_for_more(core: Any) -> None:
    hub = MemoryHub()
    with pytest.raises(InvalidArgument, match="max_transition_bytes must be at most"):
        raftplug.Client(cluster=Narrow(hub, "~c"), id="~c", settings=Settings(max_transition_bytes=2 << 20))
    world = World(core, machine=Large)
    leader = world.elect()
    world.nodes[leader]._room = (2 << 20) - 4096
    client = world.client()
    error = propose_until_done(world, world.ask(client, {"add": 1, "size": 3 << 20})).exception(0)
    assert isinstance(error, TooLarge) and error.executed


@pytest.mark.parametrize("name", ["max_transition_bytes", "max_append_bytes"])
def test_settings_that_allow_what_no_transport_delivers_are_refused(name: str) -> None:
    class Ours(Cluster):
        def send_message(self, to_id: Any, message: bytes) -> None:
            pass

        def receive_messages(self) -> list[bytes]:
            return []

    settings = Settings(**{name: 9 << 20})
    with pytest.raises(InvalidArgument, match=f"{name} must be at most"):
        raftplug.Client(cluster=Ours(), id="~c", settings=settings)
    with pytest.raises(InvalidArgument, match=f"{name} must be at most"):
        raftplug.Client("memory://results", settings=settings)
    node = alone("results", Counter(), settings=settings)
    with pytest.raises(InvalidArgument, match=f"{name} must be at most"):
        node.start()


# ------------------------------------------------------------------- reads


def alone(hub: str, machine: Any, **more: Any) -> raftplug.Node:
    """A node that is a cluster of its own, in memory."""
    storage = MemoryStorage("n1", cluster=bytes(range(16)))
    given: Any = {"peers": ["n1"], "redis": f"memory://{hub}", "storage": storage, "bootstrap": True, **more}
    return raftplug.Node("n1", state_machine=machine, **given)


@pytest.fixture
def node(core: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[raftplug.Node]:
    monkeypatch.setattr(node_module, "chosen_core", core)
    monkeypatch.setitem(MemoryHub._named, "results", MemoryHub())
    with alone("results", Asked()) as node:
        assert node.propose("a", timeout=30).result(30) == 1
        yield node


class Asked(Raising):
    def __init__(self) -> None:
        super().__init__()
        self.given: Any = None

    def query(self, request: Any) -> Any:
        self.given = request
        if isinstance(request, str) and request in STOPS | RESULTS:
            raise (STOPS | RESULTS)[request]()
        return NOT_PLAIN[request]() if type(request) is int else self.executed


def test_whatever_a_read_raises_or_returns_is_its_answer_and_stops_nothing(node: raftplug.Node) -> None:
    client = raftplug.Client("memory://results")
    with client:
        for ask in (partial(node.read, timeout=30), partial(client.read, timeout=30)):
            for name in (*STOPS, *RESULTS):
                with pytest.raises(QueryFailed):
                    ask(name)
            for number in range(len(NOT_PLAIN)):
                with pytest.raises(QueryFailed, match="InvalidTransition"):
                    ask(number)
            assert ask("other") == ["a"]
    for name in STOPS:
        with pytest.raises(QueryFailed):
            node.read(lambda machine, name=name: machine.apply_transition(name), timeout=30)
    assert node.failure is None and node.propose("b").result(30) == 2


def test_what_is_asked_and_answered_in_the_same_process_is_a_copy(node: raftplug.Node) -> None:
    request: list[Any] = [1]
    answer = node.read(request, timeout=30)
    answer.append("mine")
    request.append("changed")
    assert node.read(lambda machine: (list(machine.executed), machine.given), timeout=30) == (["a"], [1])
    for number in range(len(NOT_PLAIN)):
        with pytest.raises(InvalidTransition):
            node.read(NOT_PLAIN[number]() if not callable(NOT_PLAIN[number]()) else (1,))

    async def look(machine: Any) -> Any:
        return machine

    with pytest.raises(InvalidArgument, match="async"):
        node.read(look)


def test_a_machine_without_query_says_so_to_everybody(core: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Mute:
        def apply_transition(self, transition: Any) -> Any:
            return transition

    monkeypatch.setattr(node_module, "chosen_core", core)
    monkeypatch.setitem(MemoryHub._named, "mute", MemoryHub())
    with alone("mute", Mute()) as node, raftplug.Client("memory://mute") as client:
        assert client.propose(5, 30) == 5
        for ask in (node.read, client.read):
            with pytest.raises(QueryFailed, match="answers no queries"):
                ask(1)


# ----------------------------------------------------------------- loading


class Duck:
    """A state machine that is no StateMachine, with the one method that there must be."""

    def apply_transition(self, transition: Any) -> Any:
        return transition


async def _coroutine(*_: Any) -> Any:
    return None


def _generator(*_: Any) -> Any:
    yield None


async def _asynchronous_generator(*_: Any) -> Any:
    yield None


class _AsyncCallable:
    async def __call__(self, *_: Any) -> Any:
        return None


class _Odd:
    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)


class _NoMethod:
    apply_transition = None


METHODS = [name for name in vars(StateMachine) if not name.startswith("_")]


@pytest.mark.parametrize("method", METHODS)
def test_a_machine_with_a_method_that_does_nothing_when_it_is_called_is_refused(method: str) -> None:
    for does_nothing in (_coroutine, _generator, _asynchronous_generator, _AsyncCallable(), partial(_coroutine, 1)):
        for base in (Duck, Counter):
            machine = type("Machine", (base,), {method: does_nothing})()
            if method == "get_pending_transitions" and does_nothing is _generator:
                abilities(machine)
                continue
            with pytest.raises(InvalidArgument, match=rf"Machine\.{method} is (async|a generator function)"):
                abilities(machine)


@pytest.mark.parametrize("make", [lambda: Duck, object, lambda: 5, _Odd, lambda: _NoMethod()])
def test_what_is_no_machine_is_refused_by_node_and_replica_before_anything_is_opened(make: Any) -> None:
    machine = make()
    storage = MemoryStorage("n1", cluster=bytes(range(16)))
    for given in ({"state_machine": machine}, {"groups": {"g": machine}}):
        with pytest.raises(InvalidArgument):
            raftplug.Node("n1", redis="memory://none", storage=storage, **given)
    with pytest.raises(InvalidArgument):
        raftplug.Replica(0, [], MemoryCluster(MemoryHub(), 0), machine, 0, 0, 0.1, (0.3, 0.6))


class Takes(Duck):
    def set_snapshot(self, snapshot: Any) -> None:
        pass


class Makes(Duck):
    def create_snapshot(self, index: int, term: int) -> Any:
        return Snapshot(index, term, 1)


class Both(Takes, Makes):
    pass


class Streams(Duck):
    def stream_snapshot(self, index: int, term: int) -> Any:
        return iter([b"x"])

    def load_snapshot(self, index: int, term: int, pieces: Any) -> None:
        list(pieces)


class Pends(Duck):
    def __init__(self) -> None:
        self.left = [1, (2,), 3]

    def get_pending_transitions(self) -> Any:
        left, self.left = self.left, []
        yield from left


@pytest.mark.parametrize("kind", [Duck, Takes, Makes, Both, Streams, Pends])
def test_a_machine_need_have_no_method_that_is_optional(core: Any, kind: Any) -> None:
    """As a replica of little-raft's API, and as one of a node."""
    machine = kind()
    executed: list[Any] = []
    machine.apply_transition = executed.append
    turns = iter(range(400))
    cluster = MemoryCluster(MemoryHub(), 0)
    cluster.halt = lambda: next(turns, None) is None or 3 in executed  # type: ignore[method-assign]
    wake_ups: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for _ in range(400):
        wake_ups.put(None)
    replica = raftplug.Replica(0, [], cluster, machine, 2, "noop", 0.002, (0.004, 0.004), core=core)
    replica.start(wake_ups, wake_ups)
    assert executed[:1] in (["noop"], [])
    world = World(core, machine=kind, settings=Settings(snapshot_entries=5, keep_entries=1))
    leader = world.elect()
    for _ in range(12):
        world.result(world.propose(leader, 1))
    world.run(1_000)
    assert world.nodes[leader].drivers[GROUP].status()["applied"] > 12


def test_pending_transitions_that_are_not_plain_data_are_named_and_hold_up_no_other(
    core: Any, caplog: pytest.LogCaptureFixture
) -> None:
    machine = Pends()
    executed: list[Any] = []
    machine.apply_transition = executed.append  # type: ignore[assignment]
    cluster = MemoryCluster(MemoryHub(), 0)
    replica = raftplug.Replica(0, [], cluster, machine, 0, "noop", 0.002, (0.004, 0.004), core=core)
    cluster.halt = lambda: 3 in executed  # type: ignore[method-assign]
    machine.left = []
    wake_ups: queue.SimpleQueue[Any] = queue.SimpleQueue()
    cluster.register_leader = lambda leader: setattr(machine, "left", [1, (2,), 3])  # type: ignore[method-assign]
    replica.start(wake_ups, wake_ups)
    assert executed == ["noop", 1, 3]
    assert "a pending transition was not proposed: tuple is not plain data" in caplog.text


def test_a_machine_that_fails_to_give_what_is_pending_is_named(core: Any) -> None:
    class Fails(Duck):
        def get_pending_transitions(self) -> Any:
            raise SystemExit

    replica = raftplug.Replica(0, [], MemoryCluster(MemoryHub(), 0), Fails(), 0, 0, 0.1, (0.3, 0.6), core=core)
    with pytest.raises(MachineFailed, match="get_pending_transitions of Fails raised SystemExit"):
        replica.start(queue.SimpleQueue(), queue.SimpleQueue())


# --------------------------------------------------------------- snapshots


class Kept(Counter):
    """Keeps its value in snapshots of either kind."""

    def set_snapshot(self, snapshot: Snapshot) -> None:
        self.value = snapshot.data[0]


class Piecewise(Counter):
    def stream_snapshot(self, index: int, term: int) -> Any:
        return iter([b"%d" % self.value])

    def load_snapshot(self, index: int, term: int, pieces: Any) -> None:
        self.value = int(b"".join(pieces))


def _refuses(raised: Callable[[], BaseException], base: type) -> type:
    def refuse(self: Any, *_: Any) -> None:
        raise raised()

    return type("Refuses", (base,), {"set_snapshot": refuse, "load_snapshot": refuse})


@pytest.mark.parametrize("base", [Kept, Piecewise])
@pytest.mark.parametrize("name", [*STOPS, *RESULTS])
def test_a_machine_that_cannot_read_its_snapshot_is_a_typed_error_of_start(
    core: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, base: type
) -> None:
    if name == "KeyboardInterrupt":
        pytest.skip("in the main thread it is Ctrl-C")
    monkeypatch.setattr(node_module, "chosen_core", core)
    settings = Settings(snapshot_entries=3, keep_entries=1)

    def make(machine: Any, **more: Any) -> raftplug.Node:
        monkeypatch.setitem(MemoryHub._named, "snapshots", MemoryHub())
        return raftplug.Node(
            "n1", redis="memory://snapshots", data_dir=tmp_path / "n1", state_machine=machine, settings=settings, **more
        )

    with make(base(), peers=["n1"], bootstrap=True) as node:
        for _ in range(10):
            node.propose({"add": 1}, timeout=30).result(30)
        with node.subscribe("snapshot") as events:
            node.propose({"add": 1}, timeout=30).result(30)
            node.propose({"add": 1}, timeout=30).result(30)
            node.propose({"add": 1}, timeout=30).result(30)
            assert isinstance(events.get(30), Event)
    with pytest.raises(MachineFailed) as caught:
        make(_refuses({**STOPS, **RESULTS}[name], base)()).start()
    method = "set_snapshot" if base is Kept else "load_snapshot"
    text = str(caught.value)
    assert str(tmp_path / "n1") in text and f"{method} of Refuses raised" in text and "for the snapshot at" in text
    assert "start this node with the state machine that made the snapshot" in text
    with make(base()) as node:
        assert node.read(lambda machine: machine.value, timeout=30) == 13


def test_a_machine_that_cannot_read_what_the_leader_sent_stops_its_node_with_a_typed_error(core: Any) -> None:
    class Picky(Counter):
        refuses = False

        def set_snapshot(self, snapshot: Snapshot) -> None:
            if self.refuses:
                raise KeyError("count")
            super().set_snapshot(snapshot)

    world = World(core, machine=Picky, settings=Settings(snapshot_entries=5, keep_entries=1))
    leader = world.elect()
    behind = next(id for id in IDS if id != leader)
    world.machines[behind].refuses = True  # type: ignore[attr-defined]
    world.cut.add(behind)
    for _ in range(30):
        world.result(world.propose(leader, {"add": 1}))
    world.cut.clear()
    with pytest.raises(MachineFailed, match="set_snapshot of Picky raised KeyError: 'count', for the snapshot at"):
        world.run(20_000)


@pytest.mark.parametrize(
    "give",
    [
        lambda: 5,
        lambda: Snapshot(0, 0, 1),
        lambda: Snapshot(-1, 0, 1),
        lambda: Snapshot("1", 0, 1),  # type: ignore[arg-type]
        lambda: Snapshot(1 << 63, 0, 1),
        lambda: Snapshot(5, 1, {1, 2}),
        lambda: Snapshot(True, 1, 1),
        lambda: _raised(_endless),
    ],
)
def test_a_snapshot_that_a_machine_brings_along_and_that_is_none_is_a_typed_error(core: Any, give: Any) -> None:
    class Brings(Counter):
        def get_snapshot(self) -> Any:
            value = give()
            if isinstance(value, BaseException):
                raise value
            return value

    with pytest.raises(MachineFailed, match="get_snapshot of Brings raised"):
        World(core, machine=Brings)


@pytest.mark.parametrize("method", ["create_snapshot", "stream_snapshot", "pieces", "digest", "get_id"])
@pytest.mark.parametrize("name", ["ValueError", "PermissionError without errno", "RecursionError"])
def test_what_fails_beside_the_transitions_costs_no_more_than_itself(core: Any, method: str, name: str) -> None:
    def refuse(*_: Any) -> Any:
        raise {**STOPS, **RESULTS}[name]()

    def pieces(*_: Any) -> Any:
        return map(refuse, [1])

    base = Piecewise if method in ("stream_snapshot", "pieces") else Counter
    written = {"stream_snapshot": pieces} if method == "pieces" else {method: refuse}
    machine = type("Refuses", (base,), written)
    world = World(core, machine=machine, settings=Settings(snapshot_entries=5, digest_entries=3))
    leader = world.elect()
    for number in range(1, 21):
        assert world.result(world.propose(leader, {"add": 1})) == number
    world.run(500)
    assert world.result(world.read(leader)) == 20


@pytest.mark.parametrize("part", [5, "text", [1, 2], None, (1,), {1: 2}, object()])
def test_a_part_of_a_snapshot_that_is_no_bytes_makes_no_snapshot(core: Any, part: Any) -> None:
    machine = type("Wrong", (Piecewise,), {"stream_snapshot": lambda self, index, term: iter([b"x", part])})
    world = World(core, machine=machine, settings=Settings(snapshot_entries=5))
    leader = world.elect()
    for _ in range(12):
        world.result(world.propose(leader, {"add": 1}))
    world.run(500)
    assert "the state machine failed to make a snapshot" in world.nodes[leader].drivers[GROUP].status()["problems"]


# --------------------------------------------------------------------- docs


def test_the_table_of_what_is_a_result_names_every_kind() -> None:
    text = DOCUMENT.read_text()
    table = text[text.index("### What is a result, and what stops the replica") :]
    for word in ("RecursionError", "MemoryError", "OSError", "errno", "SystemExit", "CancelledError", "apply_batch"):
        assert word in table, word
    for method in METHODS:
        assert f"`{method}" in text, method
    assert re.search(r"get_pending_transitions.*Replica", text)
    assert sys.getrecursionlimit() > 0
