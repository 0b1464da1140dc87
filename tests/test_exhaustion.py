"""A small group in every interleaving, to a small bound; and wrong rules, to see that the search would find them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from exhaustion import Exhaustion, Violation
from raftplug.constants import SNAPSHOT
from raftplug.raft import Raft


def test_no_interleaving_breaks_safety_to_a_small_bound() -> None:
    """Checked to bound 20,000 distinct states: the first ones that follow any point of an eventful run."""
    search = Exhaustion()
    search.run(20_000)
    report = search.report(1)
    assert report["states"] == 20_000
    assert report["terms_led"] == 2 and report["committed"] >= 3


def test_no_interleaving_of_a_first_term_breaks_safety() -> None:
    """All the states there are of one term's elections and no-op, on quick disks and without heartbeats."""
    search = Exhaustion(terms=1, entries=0, crashes=0, faults=0, beats=0, from_start=True, quick=True)
    search.run(1_000_000)
    assert search.exhausted and search.report(1)["committed"] == 1


def test_no_interleaving_with_a_snapshot_breaks_safety_to_a_small_bound() -> None:
    search = Exhaustion(compactions=2, crashes=0, faults=0, quick=True)
    search.run(30_000)
    assert any(message.kind == SNAPSHOT for _, _, message in search.messages)
    assert any(local.disk.base for local in search.locals)


def test_the_search_is_the_same_each_time() -> None:
    first, second = Exhaustion(quick=True), Exhaustion(quick=True)
    first.run(3_000)
    second.run(3_000)
    assert first.parents == second.parents


class VotesTwice(Raft):
    def _on_vote(self, message: Any) -> None:
        self.vote = None
        super()._on_vote(message)


class ForgetsItsVote(Raft):
    def ready(self, may_write: bool = True) -> Any:
        result = super().ready(may_write)
        result.vote = None
        return result


class VotesForAnyLog(Raft):
    def _may_elect(self, message: Any) -> bool:
        return True


class AcknowledgesBeforeTheDisk(Raft):
    def _acknowledge(self, leader: Any) -> None:
        durable, self.stable = self.stable, self.log.last_index
        super()._acknowledge(leader)
        self.stable = durable


class CommitsWithoutAQuorum(Raft):
    def _advance_commit(self) -> None:
        if self.log.last_term == self.term:
            self.commit = self.log.last_index


class CommitsWhatIsNotVerified(Raft):
    def _on_append(self, message: Any) -> None:
        super()._on_append(message)
        self.commit = max(self.commit, min(message.commit, self.log.last_index))


class TakesAnyPreviousEntry(Raft):
    def _on_append(self, message: Any) -> None:
        if 0 <= message.index <= self.log.last_index:
            message.log_term = self.log.term_at(message.index)
        super()._on_append(message)


class SendsBeforeTheDisk(Raft):
    def _send(self, peer: Any, message: Any) -> None:
        self._emit(peer, message)


class LeadsWithoutAQuorum(Raft):
    def _count_vote(self, voter: Any) -> None:
        if self._durable_term == self.term:
            self._become_leader()


@pytest.mark.parametrize(
    ("rules", "bound"),
    [
        (VotesTwice, {}),
        (ForgetsItsVote, {}),
        (VotesForAnyLog, {"quick": True, "crashes": 0, "faults": 0, "entries": 1}),
        (AcknowledgesBeforeTheDisk, {}),
        (CommitsWithoutAQuorum, {}),
        (CommitsWhatIsNotVerified, {"quick": True}),
        (TakesAnyPreviousEntry, {"quick": True, "crashes": 0, "faults": 0, "entries": 3}),
        (SendsBeforeTheDisk, {}),
        (LeadsWithoutAQuorum, {}),
    ],
)
def test_wrong_rules_are_found(rules: Any, bound: dict[str, Any]) -> None:
    search = Exhaustion(rules=rules, **bound)
    with pytest.raises(Violation) as found:
        search.run(100_000)
    print(len(search.parents), str(found.value).splitlines()[0])


def test_the_tool_tells_its_bound() -> None:
    tool = Path(__file__).with_name("exhaustion.py")
    command = [sys.executable, str(tool), "--states", "2000"]
    text = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert text.startswith("checked to bound 2,000")
    output = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=60, check=True).stdout
    report = json.loads(output.splitlines()[-1])
    assert report["states"] == 2000 and report["violations"] == [] and not report["exhausted"]
