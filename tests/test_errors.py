"""The errors: each survives what Python's own survive."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Iterator
from typing import Any

import pytest

import raftplug.cli
import raftplug.client
import raftplug.node
import raftplug.redis_streams
import raftplug.replica
from raftplug.errors import NotLeader, RaftplugError, TransitionFailed


def _tree(root: type[RaftplugError]) -> Iterator[type[RaftplugError]]:
    yield root
    for each in root.__subclasses__():
        yield from _tree(each)


def _made(kind: type[RaftplugError]) -> RaftplugError:
    """One with another value for each argument of its own."""
    own = "__init__" in vars(kind)
    count = len(inspect.signature(kind).parameters) if own else 1
    return kind(*(f"argument {number}" for number in range(count)))


KINDS = [kind for kind in dict.fromkeys(_tree(RaftplugError)) if kind.__module__.startswith("raftplug.")]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_can_be_pickled_and_copied(kind: type[RaftplugError]) -> None:
    error = _made(kind)
    error.add_note("a note")
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        _compare(_pickled(error, protocol), error)
    _compare(copy.copy(error), error)
    _compare(copy.deepcopy(error), error)


def _pickled(error: RaftplugError, protocol: int = pickle.HIGHEST_PROTOCOL) -> Any:
    return pickle.loads(pickle.dumps(error, protocol))  # noqa: S301  (Of our own.)


def _compare(found: BaseException, error: RaftplugError) -> None:
    assert type(found) is type(error) and found is not error
    assert (str(found), repr(found), found.args, vars(found)) == (str(error), repr(error), error.args, vars(error))


def test_what_an_error_tells_beside_its_text_survives() -> None:
    failed = _pickled(TransitionFailed("ValueError", "no: such account"))
    assert (failed.kind, failed.message) == ("ValueError", "no: such account")
    assert str(failed) == "ValueError: no: such account"
    assert copy.copy(NotLeader(leader="n2")).leader == "n2"
    assert _pickled(NotLeader("not here", 7)).leader == 7


def test_every_class_of_the_module_of_errors_is_in_the_tree() -> None:
    classes = [each for each in vars(raftplug.errors).values() if isinstance(each, type)]
    assert set(classes) <= set(KINDS) and len(KINDS) > 25
