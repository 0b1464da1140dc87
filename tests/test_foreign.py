"""Text of foreign objects: whatever their `__str__`, `__repr__` and class do, there is one, and it can be sent."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from raftplug import foreign, hookimpl, plain
from raftplug.errors import InvalidArgument, InvalidTransition, TransitionFailed, TransportError
from raftplug.events import Event, Subscription, call_for_each
from raftplug.plugins import Plugins


def _raising(what: BaseException | None) -> Any:
    def text(self: object) -> str:
        if what is not None:
            raise what
        return None  # type: ignore[return-value]

    return type("Odd", (Exception,), {"__str__": text, "__repr__": text})("x")


class Text(str):
    """A str whose methods do something else."""

    def __getitem__(self, key: Any) -> Any:
        raise RuntimeError

    def encode(self, *args: Any) -> Any:
        return None

    def split(self, *args: Any) -> Any:
        raise RuntimeError

    def __format__(self, spec: str) -> str:
        raise RuntimeError


class Meta(type):
    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise RuntimeError

    def __hash__(cls) -> int:
        raise RuntimeError

    def __eq__(cls, other: object) -> bool:
        return True


class Sly(Exception, metaclass=Meta):
    """Its class has no hash, equals every other, and has no name."""


def _subclass_of_text() -> Any:
    return type(
        "Odd", (Exception,), {"__str__": lambda self: Text("a text"), "__repr__": lambda self: Text("a text")}
    )()


ODD = [
    *map(_raising, [None, ValueError("x"), SystemExit(1), KeyboardInterrupt(), RecursionError(), MemoryError()]),
    _raising(asyncio.CancelledError()),
    _raising(GeneratorExit()),
    _subclass_of_text(),
    Sly("x"),
    type("N" * 100_000, (Exception,), {})("x"),
    ValueError("x" * 10_000_000),
    ValueError("\ud800 lone"),
    ValueError("two\nlines"),
    ValueError(),
]


@pytest.mark.parametrize("number", range(len(ODD)))
def test_every_exception_has_a_text_that_can_be_sent_and_has_a_bound(
    number: int, caplog: pytest.LogCaptureFixture
) -> None:
    error = ODD[number]
    name, text = foreign.type_name(error), foreign.text_of(error)
    for found in (name, text, foreign.described(error), foreign.short(error), foreign.short([error, error])):
        assert type(found) is str and found.encode() is not None and len(found) < 1_200
    assert name and "\n" not in foreign.described(error) and "\n" not in foreign.short(error)
    assert len(foreign.trace_of(error)) <= 20_000
    logger = logging.getLogger("raftplug.test")
    foreign.log_raised(logger, error, "it %s", "failed")
    assert caplog.records[-1].getMessage() == "it failed" and len(caplog.text) < 25_000
    assert str(TransitionFailed(name, text))


def test_what_the_text_of_an_exception_raises_passes_where_that_is_wanted() -> None:
    with pytest.raises(MemoryError):
        foreign.text_of(_raising(MemoryError()), passes=lambda raised: isinstance(raised, MemoryError))
    text = foreign.text_of(_raising(ValueError()), passes=lambda raised: isinstance(raised, MemoryError))
    assert text == "its text cannot be made: __str__ raised ValueError"


NOT_PLAIN = [*ODD, Text("x"), {Text("x"): 1}, [Sly()], {"a": Sly()}]
RAISED = [*ODD, SystemExit(), asyncio.CancelledError(), GeneratorExit()]


@pytest.mark.parametrize("number", range(len(NOT_PLAIN)))
def test_what_is_not_plain_data_is_refused_whatever_its_class_does(number: int) -> None:
    value = NOT_PLAIN[number]
    with pytest.raises(InvalidTransition, match=r"is not plain data|cannot be a key"):
        plain.encode(value)
    with pytest.raises(InvalidTransition):
        list(plain.encode_in_parts(value))


@pytest.mark.parametrize("number", range(len(ODD)))
def test_an_odd_exception_of_a_callback_is_logged_and_goes_no_further(
    core: Any, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    error = ODD[number]

    def callback(_: Any) -> None:
        raise error

    future = core.Future()
    future.add_done_callback(callback)
    future.set_result(error)
    future.add_done_callback(callback)
    assert len(caplog.records) == 2 and repr(future).startswith("<Future result=")
    subscription = Subscription("n1")
    subscription.put(Event("peer", None, "n1", {}))
    subscription.close()
    call_for_each(subscription, callback)
    assert len(caplog.records) == 3


@pytest.mark.parametrize("number", range(len(RAISED)))
def test_a_plugin_is_named_with_what_it_raised_whatever_that_is(number: int) -> None:
    raised = RAISED[number]

    def raises(*_: Any, **__: Any) -> Any:
        raise raised

    class Plugin:
        @hookimpl
        def raftplug_state_machines(self) -> Any:
            return {"odd": raises}

        @hookimpl
        def raftplug_clusters(self) -> Any:
            return {"odd": raises}

        @hookimpl
        def raftplug_commands(self) -> Any:
            raise raised

        @hookimpl
        def raftplug_leader_changed(self, leader: Any) -> None:
            raise raised

    plugins = Plugins()
    plugins.register(Plugin(), name="odd one")
    with pytest.raises(InvalidArgument, match="odd one"):
        plugins.machine("odd")
    with pytest.raises(TransportError, match="odd one"):
        plugins.open_cluster("odd://x")
    assert plugins.commands() == {}
    plugins.events("raftplug_leader_changed", leader=1)
    assert len(plugins.problems()) == 2 and all("odd one" in problem for problem in plugins.problems())


class Nameless:
    """A plugin whose name cannot be read."""

    def __getattribute__(self, name: str) -> Any:
        raise SystemExit


def test_a_plugin_object_that_raises_at_every_look_is_named_and_registered_as_broken() -> None:
    plugins = Plugins()
    plugins.register(Nameless())
    assert plugins.problems()
