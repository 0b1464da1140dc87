"""Each (session, sequence) is executed at most once, whatever comes twice, late or out of order."""

from __future__ import annotations

import random
import struct
import time
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from processes import server as server
from raftplug import Client, Node, StateMachine
from raftplug import sessions as module
from raftplug.constants import ALREADY, FAILED, OK, REFUSED_OVERLOADED, SESSION_EXPIRED, UNKNOWN
from raftplug.embedded import EmbeddedServer
from raftplug.errors import InvalidArgument, InvariantViolated, MalformedMessage, SessionExpired
from raftplug.sessions import (
    MAX_RESULT_BYTES,
    NAMED_SESSION_TIMEOUT_US,
    SESSION_TIMEOUT_US,
    UNDER_WAY,
    Sessions,
    decode_open,
    decode_transition,
    encode_open,
    encode_transition,
)

NUMBER = st.integers(0, 2**63 - 1)


def run(table: Sessions, session: int, sequence: int, below: int = 0, time_us: int = 0) -> tuple[int, bytes | None]:
    """Apply one entry as a replica does; a result says how often its sequence was executed, so far and in all."""
    answer = table.admit(session, sequence, below, time_us)
    if answer is not None:
        return answer
    table.record(session, sequence, OK, b"result %d" % sequence)
    return OK, b"new"


@given(NUMBER, NUMBER, NUMBER, NUMBER, st.binary())
def test_a_transition_is_decoded_as_it_was_encoded(
    time_us: int, session: int, sequence: int, below: int, data: bytes
) -> None:
    sequence, below = max(sequence, below), min(sequence, below)
    payload = encode_transition(time_us, session, sequence, below, data)
    assert decode_transition(payload) == (time_us, session, sequence, below, data)


@given(NUMBER, st.text(max_size=50))
def test_an_opening_is_decoded_as_it_was_encoded(time_us: int, name: str) -> None:
    assert decode_open(encode_open(time_us, name)) == (time_us, name)
    assert decode_open(encode_open(time_us)) == (time_us, "")


@given(st.binary(max_size=60))
def test_bytes_from_outside_are_decoded_or_refused(data: bytes) -> None:
    for decode in (decode_open, decode_transition):
        try:
            decoded = decode(data)
        except MalformedMessage:
            continue
        assert all(0 <= number < 2**63 for number in decoded if isinstance(number, int))


@pytest.mark.parametrize(
    "payload",
    [
        struct.pack("<qQQQ", -1, 1, 1, 1),
        struct.pack("<qQQQ", 1, 2**63, 1, 1),
        struct.pack("<qQQQ", 1, 1, 2**63, 1),
        struct.pack("<qQQQ", 1, 1, 1, 2**63),
        struct.pack("<qQQQ", 1, 1, 1, 2),
        b"",
    ],
)
def test_numbers_out_of_range_are_refused(payload: bytes) -> None:
    with pytest.raises(MalformedMessage):
        decode_transition(payload)


@pytest.mark.parametrize("payload", [b"", struct.pack("<q", -1), bytes(8) + b"\xff", bytes(8) + b"x" * 257])
def test_openings_that_cannot_be_are_refused(payload: bytes) -> None:
    with pytest.raises(MalformedMessage):
        decode_open(payload)


def test_what_cannot_be_encoded_is_refused() -> None:
    for bad in (lambda: encode_open(-1), lambda: encode_open(0, "x" * 257), lambda: encode_open(0, "\ud800")):
        with pytest.raises(InvalidArgument):
            bad()
    for numbers in ((2**63, 0, 0, 0), (0, 2**63, 0, 0), (0, 0, 2**63, 0), (0, 0, 0, 1)):
        with pytest.raises(InvalidArgument):
            encode_transition(*numbers, b"")


def test_sequences_out_of_order_are_each_executed_once_and_each_retry_gets_its_own_result() -> None:
    table = Sessions()
    session = table.open(1, 0)
    order = list(range(500))
    random.Random(2).shuffle(order)
    assert [run(table, session, sequence) for sequence in order] == [(OK, b"new")] * 500
    random.Random(3).shuffle(order)
    for sequence in order:
        assert run(table, session, sequence) == (OK, b"result %d" % sequence)


def test_a_failure_is_a_result_too() -> None:
    table = Sessions()
    assert table.admit(table.open(1, 0), 1, 0, 0) is None
    table.record(1, 1, FAILED, b"why")
    assert table.admit(1, 1, 0, 0) == (FAILED, b"why")


def test_below_the_watermark_nothing_is_executed_and_nothing_is_kept() -> None:
    table = Sessions()
    table.open(1, 0)
    for sequence in (1, 2, 3, 5):
        run(table, 1, sequence)
    assert run(table, 1, 9, below=4) == (OK, b"new")
    assert [run(table, 1, sequence) for sequence in (1, 2, 3)] == [(ALREADY, None)] * 3
    assert run(table, 1, 5, below=0) == (OK, b"result 5")  # A late, lower watermark changes nothing.
    assert run(table, 1, 3) == (ALREADY, None)
    assert [row[0] for row in table.snapshot()[1][0][4]] == [5, 9]


def test_a_watermark_that_leaps_costs_the_table_and_not_the_leap() -> None:
    table = Sessions()
    table.open(1, 0)
    run(table, 1, 1)
    assert run(table, 1, 2**62, below=2**62) == (OK, b"new")
    assert run(table, 1, 1) == (ALREADY, None)


def test_an_unknown_session_is_told_so() -> None:
    assert Sessions().admit(7, 1, 0, 0) == (SESSION_EXPIRED, None)


@pytest.mark.parametrize(("name", "timeout_us"), [("", SESSION_TIMEOUT_US), ("load", NAMED_SESSION_TIMEOUT_US)])
def test_an_idle_session_expires_by_logged_time_and_is_never_executed_again(name: str, timeout_us: int) -> None:
    table = Sessions()
    table.open(1, 0, name)
    assert run(table, 1, 1, time_us=timeout_us) == (OK, b"new")  # Idle for exactly the limit: alive.
    assert run(table, 1, 2, time_us=2 * timeout_us + 1) == (SESSION_EXPIRED, None)
    assert run(table, 1, 3, time_us=0) == (SESSION_EXPIRED, None)
    assert len(table) == 0
    assert table.open(9, 0, name) == 9  # Its name is free again, its id is not.
    assert run(table, 1, 1) == (SESSION_EXPIRED, None)


def test_opening_a_session_drops_those_that_were_idle_too_long() -> None:
    table = Sessions()
    table.open(1, 0)
    table.open(2, SESSION_TIMEOUT_US)
    assert len(table) == 2
    table.open(3, SESSION_TIMEOUT_US + 1)
    assert 1 not in table
    assert 2 in table
    assert 3 in table


def test_logged_time_never_goes_back() -> None:
    table = Sessions()
    table.open(1, 5_000)
    run(table, 1, 1, time_us=3)
    assert table.now_us == 5_000
    assert table.snapshot()[1][0][2] == 5_000


def test_the_least_recently_used_session_makes_room_and_names_have_a_room_of_their_own() -> None:
    table = Sessions(max_sessions=2)
    table.open(1, 0, "job")
    table.open(2, 1)
    table.open(3, 2)
    run(table, 2, 1, time_us=3)
    table.open(4, 4)
    assert [session in table for session in (1, 2, 3, 4)] == [True, True, False, True]


def test_a_name_finds_its_session_again() -> None:
    table = Sessions()
    session = table.open(1, 0, "nightly load")
    run(table, session, 1)
    assert table.open(2, 1, "nightly load") == session
    assert run(table, session, 1) == (OK, b"result 1")
    assert table.open(3, 1, "another") == 3
    assert table.open(4, 1) == 4
    assert table.open(5, 1) == 5


def test_a_replayed_opening_makes_no_old_command_run_again() -> None:
    table = Sessions()
    table.open(1, 0)
    named = table.open(2, 0, "job")
    for session in (1, named):
        run(table, session, 1)
    assert table.open(3, 0) == 3  # The same two requests, appended a second time.
    assert table.open(4, 0, "job") == named
    assert run(table, 1, 1) == (OK, b"result 1")
    assert run(table, named, 1) == (OK, b"result 1")


def test_a_session_that_keeps_too_much_is_refused_until_its_watermark_rises() -> None:
    table = Sessions(max_results=3)
    table.open(1, 0)
    for sequence in (1, 2, 3):
        run(table, 1, sequence)
    assert run(table, 1, 4) == (REFUSED_OVERLOADED, None)
    assert run(table, 1, 2) == (OK, b"result 2")
    assert run(table, 1, 4, below=2) == (OK, b"new")


def test_a_result_beyond_the_bytes_that_a_session_keeps_is_not_kept_and_not_executed_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert MAX_RESULT_BYTES == 64 << 20
    monkeypatch.setattr(module, "MAX_RESULT_BYTES", 16)
    table = Sessions()
    table.open(1, 0)
    for sequence in (1, 2, 3):
        assert run(table, 1, sequence)[1] == b"new"
    for found in (table, Sessions.restore(table.snapshot())):
        assert [run(found, 1, sequence)[0] for sequence in (1, 2, 3)] == [OK, OK, UNKNOWN]
    assert run(table, 1, 4, below=2) == (OK, b"new")
    assert run(table, 1, 4) == (OK, b"result 4")


def test_what_is_under_way_counts_as_if_it_had_its_result() -> None:
    def decisions(together: bool) -> tuple[list[object], object]:
        """Entries decided one after the other, their results recorded at once, or all of them later."""
        table, found, waiting = Sessions(max_results=3), [], []
        table.open(1, 0)
        for sequence, below, time_us in [(1, 0, 0), (2, 0, 0), (3, 0, 0), (4, 0, 0), (5, 3, 0), (6, 6, 1), (7, 6, 1)]:
            known = table.admit(1, sequence, below, time_us)
            found.append(known)
            if known is None:
                waiting.append(sequence)
            for each in [] if together else waiting:
                table.record(1, each, OK, b"result")
            waiting = waiting if together else []
        for each in waiting:
            table.record(1, each, OK, b"result")
        return found, table.snapshot()

    assert decisions(together=True) == decisions(together=False)


def test_a_repetition_of_what_is_under_way_waits_for_its_result() -> None:
    table = Sessions()
    table.open(1, 0)
    assert table.admit(1, 1, 0, 0) is None
    assert table.admit(1, 1, 0, 0) is UNDER_WAY
    table.record(1, 1, OK, b"result")
    assert table.admit(1, 1, 0, 0) == (OK, b"result")


def test_a_result_for_a_session_that_ended_meanwhile_is_dropped() -> None:
    table = Sessions()
    table.open(1, 0)
    assert table.admit(1, 1, 0, 0) is None
    assert table.admit(1, 2, 0, SESSION_TIMEOUT_US + 1) == (SESSION_EXPIRED, None)
    table.record(1, 1, OK, b"result")
    assert len(table) == 0


def test_only_what_was_admitted_is_recorded() -> None:
    table = Sessions()
    table.open(1, 0)
    run(table, 1, 1)
    assert table.admit(1, 3, 0, 0) is None
    for sequence, code in ((1, OK), (2, OK), (3, ALREADY)):
        with pytest.raises(InvariantViolated):
            table.record(1, sequence, code, b"")


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        [0, []],
        [-1, [], []],
        [0, [[1, "", 1, 0, []]], []],
        [5, [[1, "", 5, 0, []], [2, "", 4, 0, []]], []],
        [5, [[1, "", 5, 0, []], [1, "", 5, 0, []]], []],
        [5, [[1, "named", 5, 0, []]], []],
        [5, [], [[1, "", 5, 0, []]]],
        [5, [], [[1, "a", 5, 0, []], [2, "a", 5, 0, []]]],
        [5, [[1, "", 5, 3, [[2, OK, b""]]]], []],
        [5, [[1, "", 5, 0, [[2, ALREADY, b""]]]], []],
        [5, [[1, "", 5, 0, [[2, OK, "text"]]]], []],
        [5, [[2**63, "", 5, 0, []]], []],
        [5, [[[], "", 5, 0, []]], []],
    ],
)
def test_a_snapshot_that_is_no_table_is_refused(data: object) -> None:
    with pytest.raises(MalformedMessage):
        Sessions.restore(data)


class TableAgainstModel(RuleBasedStateMachine):
    """The model: what was ever executed, and by which rules a session lives."""

    MAX_SESSIONS = 3
    MAX_RESULTS = 4

    def __init__(self) -> None:
        super().__init__()
        self.table = Sessions(max_sessions=self.MAX_SESSIONS, max_results=self.MAX_RESULTS)
        self.twin = Sessions(max_sessions=self.MAX_SESSIONS, max_results=self.MAX_RESULTS)  # Never restored.
        self.index = 0
        self.now = 0
        self.executed: dict[tuple[int, int], bytes] = {}
        self.alive: dict[int, list] = {}  # id -> [name, used, use order, watermark, {sequence}]

    def timeout(self, session: int) -> int:
        return NAMED_SESSION_TIMEOUT_US if self.alive[session][0] else SESSION_TIMEOUT_US

    @initialize(name=st.sampled_from(["", "a"]))
    def first(self, name: str) -> None:
        self.open(name, 0)

    TIME = st.sampled_from([0, 1, SESSION_TIMEOUT_US // 2, SESSION_TIMEOUT_US + 1, -5, NAMED_SESSION_TIMEOUT_US // 2])

    @rule(name=st.sampled_from(["", "", "a", "b"]), passed=TIME)
    def open(self, name: str, passed: int) -> None:
        self.index += 1
        time_us = max(0, self.now + passed)
        self.now = max(self.now, time_us)
        session = self.table.open(self.index, time_us, name)
        assert self.twin.open(self.index, time_us, name) == session
        for known in list(self.alive):
            if self.now - self.alive[known][1] > self.timeout(known):
                del self.alive[known]
        by_name = [known for known, state in self.alive.items() if name and state[0] == name]
        if by_name:
            assert session == by_name[0]
            self.alive[session][1:3] = [self.now, self.index]
            return
        assert session == self.index
        kind = [known for known, state in self.alive.items() if bool(state[0]) == bool(name)]
        while len(kind) >= self.MAX_SESSIONS:
            oldest = min(kind, key=lambda known: (self.alive[known][1], self.alive[known][2]))
            kind.remove(oldest)
            del self.alive[oldest]
        self.alive[session] = [name, self.now, self.index, 0, set()]

    @rule(back=st.integers(0, 6), sequence=st.integers(0, 12), margin=st.integers(0, 12), passed=TIME)
    def transition(self, back: int, sequence: int, margin: int, passed: int) -> None:
        session = max(0, self.index - back)
        below = max(0, sequence - margin)
        self.index += 1
        time_us = max(0, self.now + passed)
        self.now = max(self.now, time_us)
        answer = self.table.admit(session, sequence, below, time_us)
        assert self.twin.admit(session, sequence, below, time_us) == answer
        state = self.alive.get(session)
        if state is not None and self.now - state[1] > self.timeout(session):
            del self.alive[session]
            state = None
        if state is None:
            assert answer == (SESSION_EXPIRED, None)
            return
        state[1:3] = [self.now, self.index]
        state[3] = max(state[3], below)
        state[4] = {kept for kept in state[4] if kept >= state[3]}
        if answer is None:
            assert (session, sequence) not in self.executed
            assert sequence >= state[3]
            assert len(state[4]) < self.MAX_RESULTS
            value = self.executed[session, sequence] = b"%d" % self.index
            state[4].add(sequence)
            for table in (self.table, self.twin):
                table.record(session, sequence, OK, value)
        elif answer[0] == OK:
            assert answer[1] == self.executed[session, sequence]
        elif answer[0] == ALREADY:
            assert sequence < state[3]
        else:
            assert answer == (REFUSED_OVERLOADED, None)
            assert len(state[4]) == self.MAX_RESULTS

    @rule()
    def restart_from_a_snapshot(self) -> None:
        data = msgpack.unpackb(msgpack.packb(self.table.snapshot()))
        self.table = Sessions.restore(data, max_sessions=self.MAX_SESSIONS, max_results=self.MAX_RESULTS)

    @invariant()
    def a_restored_table_and_one_that_never_was_are_the_same_bytes(self) -> None:
        assert msgpack.packb(self.table.snapshot()) == msgpack.packb(self.twin.snapshot())
        assert len(self.table) == len(self.alive)


TestTableAgainstModel = TableAgainstModel.TestCase
TestTableAgainstModel.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_over_a_real_server_an_expired_session_is_a_typed_error_and_nothing_is_executed_twice(
    server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "NAMED_SESSION_TIMEOUT_US", 300_000)
    executed = []

    class Machine(StateMachine):
        def apply_transition(self, transition: Any) -> Any:
            executed.append(transition)
            return transition

    options: Any = {"redis": server.url, "data_dir": tmp_path / "n1", "state_machine": Machine(), "bootstrap": True}
    with Node("n1", peers=["n1"], **options), Client(server.url, session="a load") as client:
        assert [client.propose("one", 30, sequence=1) for _ in range(3)] == ["one"] * 3
        time.sleep(0.5)
        for _ in range(2):
            with pytest.raises(SessionExpired):
                client.propose("one", 30, sequence=1)
    assert executed == ["one"]
