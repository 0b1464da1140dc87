"""Witnesses: voters that never lead."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from raftplug.errors import InvalidArgument


def test_a_configuration_with_a_witness_comes_back_as_it_was(core: SimpleNamespace) -> None:
    first = core.Configuration(("a", "b", "w"), storages={"a": b"1"}, witnesses=("w",))
    again = core.Configuration.decode(first.encode())
    assert again == first
    assert again.witnesses == ("w",)
    assert again.is_voter("w") and not again.may_lead("w") and again.may_lead("a")


def test_a_configuration_without_witnesses_has_the_bytes_it_always_had(core: SimpleNamespace) -> None:
    assert core.Configuration((1, 2)).plain() == [[1, 2], [], [], [], []]


@pytest.mark.parametrize("witnesses", [(3, 3), 3, (True,)], ids=["twice", "one", "bool"])
def test_witnesses_that_cannot_be_are_refused(core: SimpleNamespace, witnesses: Any) -> None:
    data = [[1, 2, 3], [], [4], [], [], list(witnesses) if isinstance(witnesses, tuple) else witnesses]
    with pytest.raises(InvalidArgument):
        core.Configuration.from_plain(data)


def test_a_change_passes_through_every_witness_of_both_halves(core: SimpleNamespace) -> None:
    before = core.Configuration((1, 2, 3), witnesses=(3,))
    joint = before.towards(core.Configuration((1, 2, 4), witnesses=(4,)))
    assert joint.witnesses == (3, 4)
    assert joint.left().witnesses == (4,)


def test_who_neither_votes_nor_is_to_is_no_witness(core: SimpleNamespace) -> None:
    assert core.Configuration((1, 2, 3), learners=(4,), witnesses=(3, 4, 9)).witnesses == (3,)
