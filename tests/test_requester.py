"""A requester tells the truth about every call, whatever the network and the leaders do to its attempts."""

from __future__ import annotations

import random
from typing import Any

import msgpack
import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from raftplug import plain
from raftplug.constants import (
    ALREADY,
    FAILED,
    LIMIT,
    MALFORMED,
    OK,
    REFUSED_NOT_LEADER,
    REFUSED_OVERLOADED,
    REFUSED_TOO_LARGE,
    REFUSED_UNAVAILABLE,
    SESSION_EXPIRED,
    UNKNOWN,
)
from raftplug.core import Future
from raftplug.errors import (
    InvalidArgument,
    NotLeader,
    OutcomeUnknown,
    Overloaded,
    QueryFailed,
    RaftplugError,
    SessionExpired,
    TooLarge,
    TransitionFailed,
    Unavailable,
)
from raftplug.requester import ATTEMPTS, SPAN, WINDOW, Requester
from raftplug.sessions import SESSION_TIMEOUT_US, Sessions
from raftplug.settings import Settings

SECOND = 1_000_000
SESSION = 77


class Wire:
    """A requester whose requests are laid out on a table, and whose answers are written by hand."""

    def __init__(self, nodes: tuple[Any, ...] = ("a", "b", "c"), leader: Any = "a", **options: Any) -> None:
        self.sent: list[tuple[Any, int, str, list[Any]]] = []
        limits = options.pop("settings", Settings())
        self.requester = Requester(settings=limits, generator=random.Random(1), send=self._send, **options)
        self.requester.set_nodes(nodes)
        self.requester.set_leader(leader)
        self.now = 0

    known = True  # Whether requests are addressed to one life of their target.

    def _send(self, target: Any, body: bytes) -> bool:
        self.sent.append((target, *msgpack.unpackb(body)))
        return self.known

    def take(self, seconds: float = 0.0) -> list[tuple[Any, int, str, list[Any]]]:
        """Let time pass, and return what was sent then."""
        self.now += int(seconds * SECOND)
        self.requester.tick(self.now)
        sent, self.sent = self.sent, []
        return sent

    def open_session(self, session: int = SESSION) -> None:
        """Answer the opening that the first write needs; that write is then sent."""
        ((target, counter, op, _),) = self.take()
        assert op == "open"
        self.requester.on_reply(target, counter, OK, session)

    def propose(self, value: Any = 1, seconds: float = 10.0, **options: Any) -> Future:
        future = Future()
        self.requester.propose(plain.encode(value), future, self.now + int(seconds * SECOND), **options)
        return future

    def read(self, value: Any = 1, seconds: float = 10.0) -> Future:
        future = Future()
        self.requester.read(plain.encode(value), future, self.now + int(seconds * SECOND))
        return future

    def proposed(self, **options: Any) -> tuple[Future, Any, int]:
        """A write whose first attempt is under way: its future, whom it was sent to, and the attempt's counter."""
        future = self.propose(**options)
        self.open_session()
        ((target, counter, op, _),) = self.take()
        assert op == "propose"
        return future, target, counter


def error_of(future: Future) -> BaseException | None:
    assert future.done()
    return future.exception(0)


def test_the_first_write_opens_a_session_and_all_of_them_use_it_in_the_order_of_the_calls() -> None:
    wire = Wire()
    futures = [wire.propose(number) for number in range(3)]
    wire.open_session()
    sent = wire.take()
    assert [(op, args) for _, _, op, args in sent] == [
        ("propose", [SESSION, number + 1, 1, plain.encode(number)]) for number in range(3)
    ]
    for target, counter, _, args in reversed(sent):
        wire.requester.on_reply(target, counter, OK, plain.encode(args[1] * 10))
    assert [future.result(0) for future in futures] == [10, 20, 30]
    wire.propose()
    assert wire.take()[0][3][:3] == [SESSION, 4, 4]  # Everything below 4 is finished.


def test_a_failure_of_the_machine_is_the_result() -> None:
    wire = Wire()
    future, target, counter = wire.proposed()
    wire.requester.on_reply(target, counter, FAILED, ["KeyError", "'x'"])
    error = error_of(future)
    assert isinstance(error, TransitionFailed)
    assert (error.kind, error.message) == ("KeyError", "'x'")
    future = wire.read()
    ((target, counter, *_),) = wire.take()
    wire.requester.on_reply(target, counter, FAILED, ["KeyError", "'x'"])
    assert isinstance(error_of(future), QueryFailed)


def test_a_transition_that_was_executed_before_ends_with_none() -> None:
    wire = Wire()
    future, target, counter = wire.proposed()
    wire.requester.on_reply(target, counter, ALREADY, None)
    assert future.result(0) is None


def test_a_hint_is_followed_at_once() -> None:
    wire = Wire()
    future, target, counter = wire.proposed()
    wire.requester.on_reply(target, counter, REFUSED_NOT_LEADER, "c")
    ((target, counter, op, args),) = wire.take()
    assert (target, op, args[:2]) == ("c", "propose", [SESSION, 1])
    wire.requester.on_reply(target, counter, OK, plain.encode("done"))
    assert future.result(0) == "done"
    assert wire.requester.leader == "c"


def test_two_nodes_that_point_at_each_other_are_not_asked_without_pause() -> None:
    wire = Wire()
    future, target, counter = wire.proposed()
    asked = 0
    while asked < 100:
        wire.requester.on_reply(target, counter, REFUSED_NOT_LEADER, "b" if target == "a" else "a")
        sent = wire.take()
        if not sent:
            break
        asked += 1
        ((target, counter, *_),) = sent
    assert asked == 3
    assert not future.done()
    assert wire.take(1)  # After a pause it goes on.


def test_without_a_hint_the_next_node_is_tried_after_a_pause() -> None:
    wire = Wire()
    _, target, counter = wire.proposed()
    wire.requester.on_reply(target, counter, REFUSED_NOT_LEADER, None)
    assert wire.take() == []
    assert wire.requester.deadline() <= wire.now + SECOND // 10
    ((target, *_),) = wire.take(0.1)
    assert target == "b"


@pytest.mark.parametrize(
    ("code", "value", "error"),
    [
        (REFUSED_NOT_LEADER, None, NotLeader),
        (REFUSED_NOT_LEADER, "b", NotLeader),
        (REFUSED_OVERLOADED, "full", Overloaded),
        (REFUSED_OVERLOADED, None, Overloaded),
        (REFUSED_UNAVAILABLE, "no disk", Unavailable),
    ],
)
def test_a_write_that_was_only_ever_refused_certainly_did_not_happen(
    code: int, value: Any, error: type[RaftplugError]
) -> None:
    wire = Wire()
    future, target, counter = wire.proposed(seconds=3)
    wire.requester.on_reply(target, counter, code, value)
    for _ in range(100):
        for target, counter, *_ in wire.take(0.05):
            wire.requester.on_reply(target, counter, code, value)
    assert type(error_of(future)) is error


def test_a_refusal_is_certain_only_if_no_later_process_of_that_id_can_take_the_request() -> None:
    """Found by `raftplug sim`: a node refused, restarted, met the request again in its inbox, and led."""
    wire = Wire()
    wire.known = False
    future, target, counter = wire.proposed(seconds=3)
    wire.requester.on_reply(target, counter, REFUSED_NOT_LEADER, None)
    for _ in range(100):
        for target, counter, *_ in wire.take(0.05):
            wire.requester.on_reply(target, counter, REFUSED_NOT_LEADER, None)
    assert type(error_of(future)) is OutcomeUnknown


@pytest.mark.parametrize("code", [REFUSED_NOT_LEADER, REFUSED_OVERLOADED, REFUSED_UNAVAILABLE, REFUSED_TOO_LARGE])
@pytest.mark.parametrize("first", [None, UNKNOWN, 99])
def test_once_an_attempt_is_unsettled_every_later_failure_is_outcome_unknown(code: int, first: int | None) -> None:
    wire = Wire()
    future, target, counter = wire.proposed(seconds=3)
    if first is not None:
        wire.requester.on_reply(target, counter, first, "stepped down")
    answered = 0
    for _ in range(100):
        for target, counter, *_ in wire.take(0.05):
            wire.requester.on_reply(target, counter, code, "some text")
            answered += 1
    assert answered
    assert isinstance(error_of(future), OutcomeUnknown)


def test_a_late_refusal_settles_the_attempt_that_it_answers() -> None:
    wire = Wire()
    future, target, first = wire.proposed(seconds=3)
    sent = wire.take(1.6)
    assert [op for _, _, op, _ in sent] == ["propose"]
    wire.requester.on_reply(sent[0][0], sent[0][1], REFUSED_OVERLOADED, "full")
    wire.requester.on_reply(target, first, REFUSED_NOT_LEADER, None)
    while not future.done():
        for target, counter, *_ in wire.take(0.05):
            wire.requester.on_reply(target, counter, REFUSED_OVERLOADED, "full")
    assert isinstance(error_of(future), Overloaded)


def test_a_late_result_is_as_good_as_an_early_one() -> None:
    wire = Wire()
    future, target, first = wire.proposed()
    ((_, second, *_),) = wire.take(1.6)
    wire.requester.on_reply(target, first, OK, plain.encode(5))
    assert future.result(0) == 5
    wire.requester.on_reply(target, second, OK, plain.encode(6))  # Ignored: nobody waits for it.
    assert future.result(0) == 5


def test_unknown_answers_are_asked_again_with_the_same_sequence() -> None:
    wire = Wire()
    future, target, counter = wire.proposed()
    wire.requester.on_reply(target, counter, UNKNOWN, "stepped down")
    ((target, counter, _, args),) = wire.take(0.2)
    assert args[:2] == [SESSION, 1]
    wire.requester.on_reply(target, counter, OK, plain.encode(1))
    assert future.result(0) == 1


def test_a_call_whose_timer_was_put_off_is_looked_at_again() -> None:
    wire = Wire()
    future, target, counter = wire.proposed(seconds=5)
    wire.take(0.3)
    wire.requester.on_reply(target, counter, REFUSED_NOT_LEADER, "b")
    assert [target for target, *_ in wire.take()] == ["b"]  # Its patience ends later than the first attempt's would.
    assert wire.take(0.4) == []
    assert len(wire.take(2.5)) == 1
    wire.take(5)
    assert isinstance(error_of(future), OutcomeUnknown)


def test_an_old_refusal_does_not_disturb_the_attempt_under_way() -> None:
    wire = Wire()
    _, target, first = wire.proposed()
    assert len(wire.take(1.6)) == 1
    wire.requester.on_reply(target, first, REFUSED_NOT_LEADER, "c")
    assert wire.take() == []


def test_an_expired_session_is_a_typed_error_and_later_writes_get_a_new_one() -> None:
    wire = Wire()
    future, target, counter = wire.proposed()
    wire.requester.on_reply(target, counter, SESSION_EXPIRED, None)
    assert isinstance(error_of(future), SessionExpired)
    assert wire.take(20) == []  # Never sent again.
    wire.propose()
    wire.open_session(78)
    assert wire.take()[0][3][:3] == [78, 1, 1]


def test_a_session_that_expired_behind_an_unsettled_attempt_is_outcome_unknown() -> None:
    wire = Wire()
    future, _, _ = wire.proposed()
    ((target, counter, *_),) = wire.take(1.6)
    wire.requester.on_reply(target, counter, SESSION_EXPIRED, None)
    assert isinstance(error_of(future), OutcomeUnknown)


def test_a_session_that_has_been_idle_is_replaced_before_it_can_expire() -> None:
    wire = Wire()
    _, target, counter = wire.proposed()
    wire.requester.on_reply(target, counter, OK, plain.encode(1))
    wire.take(SESSION_TIMEOUT_US / SECOND / 2 + 1)
    wire.propose()
    assert wire.take()[0][2] == "open"


def test_a_write_that_was_never_sent_is_unavailable() -> None:
    wire = Wire(nodes=(), leader=None)
    future = wire.propose(seconds=2)
    read = wire.read(seconds=2)
    assert wire.take(1) == []
    assert wire.requester.deadline() == 2 * SECOND
    wire.take(1)
    assert isinstance(error_of(future), Unavailable)
    assert "no node" in str(error_of(future))
    assert isinstance(error_of(read), Unavailable)


def test_a_write_that_waits_for_its_session_ends_with_what_the_opening_met() -> None:
    wire = Wire()
    future = wire.propose(seconds=2)
    while not future.done():
        for target, counter, *_ in wire.take(0.05):
            wire.requester.on_reply(target, counter, REFUSED_OVERLOADED, "full")
    assert isinstance(error_of(future), Overloaded)
    wire.take(60)
    assert wire.requester.deadline() == LIMIT  # The opening does not go on for nobody.


def test_what_waits_is_sent_as_soon_as_a_node_is_known() -> None:
    wire = Wire(nodes=(), leader=None)
    wire.propose()
    wire.read()
    assert wire.take() == []
    wire.requester.set_nodes(["x"])
    assert wire.requester.deadline() == 0
    assert sorted(op for _, _, op, _ in wire.take()) == ["open", "read"]


def test_a_new_leader_is_asked_at_once_for_what_the_old_one_left_unanswered() -> None:
    wire = Wire()
    wire.proposed()
    wire.take(0.2)
    wire.requester.set_leader("b")
    ((target, _, op, args),) = wire.take()
    assert (target, op, args[:2]) == ("b", "propose", [SESSION, 1])


def test_an_old_directory_takes_nobody_away_from_a_leader_that_answers() -> None:
    """In a rolling restart who has just stopped may have led when the directory was read."""
    wire = Wire()
    _, target, counter = wire.proposed()
    wire.take(0.2)
    wire.requester.on_reply(target, counter, OK, plain.encode(1))
    assert not wire.requester.suggest_leader("b", wire.now + SECOND // 4)
    wire.propose(2)
    assert [target for target, *_ in wire.take(0.25)] == ["a"]
    assert wire.requester.suggest_leader("b", wire.now + SECOND), "it has been silent for long enough"
    assert {target for target, *_ in wire.take(0.1)} == {"b"}


def test_quick_refusals_do_not_make_it_wait_longer_for_who_is_silent() -> None:
    """A leader that hands over refuses, and who follows it does; then one of them is gone."""
    wire = Wire()
    _, target, counter = wire.proposed(seconds=60)
    for _ in range(10):
        wire.requester.on_reply(target, counter, REFUSED_NOT_LEADER, None)
        while not (sent := wire.take(0.01)):
            pass
        ((target, counter, *_),) = sent
    asked = wire.now
    while not (sent := wire.take(0.01)):
        pass
    assert sent[0][0] != target and wire.now - asked < SECOND


def test_a_silent_node_is_left_for_the_next_one() -> None:
    wire = Wire()
    wire.proposed(seconds=60)
    targets = [target for _ in range(200) for target, *_ in wire.take(0.1)]
    assert set(targets) == {"a", "b", "c"}
    assert len(targets) < 15  # Its patience grows.


def test_a_slow_node_that_answers_others_is_not_left() -> None:
    wire = Wire()
    wire.proposed()
    read = wire.read()
    ((target, counter, *_),) = wire.take(0.3)
    wire.requester.on_reply(target, counter, OK, plain.encode(1))
    assert read.done()
    ((target, *_),) = wire.take(1.2)
    assert target == "a"


def test_a_hint_at_a_node_that_has_just_been_silent_is_not_followed_for_a_while() -> None:
    wire = Wire()
    wire.proposed(seconds=60)
    ((target, counter, *_),) = wire.take(0.6)
    assert target == "b"  # "a" is dead, and "b" does not know it yet.
    targets = []
    while "a" not in targets:
        wire.requester.on_reply(target, counter, REFUSED_NOT_LEADER, "a")
        ((target, counter, *_),) = (sent := wire.take()) or wire.take(0.4)
        targets.append(target)
        assert sent or wire.now < 10 * SECOND
    assert len(targets) >= 2
    assert wire.now >= 1.1 * SECOND


def test_a_read_that_a_dead_leader_left_unanswered_goes_to_its_successor_at_once() -> None:
    wire = Wire()
    wire.proposed()
    wire.read()
    assert [op for _, _, op, _ in wire.take()] == ["read"]
    wire.take(0.2)
    wire.requester.set_leader("b")
    assert sorted((target, op) for target, _, op, _ in wire.take()) == [("b", "propose"), ("b", "read")]


def test_an_answer_that_reveals_the_leader_brings_everything_else_there() -> None:
    wire = Wire()
    wire.proposed(seconds=60)
    wire.propose(2, seconds=60)
    ((_, _, _, args),) = wire.take(0.1)
    late = args[1]
    ((target, counter, *_),) = wire.take(0.45)  # The first is asked of the next node; the second waits for "a".
    assert target == "b"
    wire.requester.on_reply(target, counter, OK, plain.encode(1))
    ((target, _, _, args),) = wire.take()
    assert (target, args[1]) == ("b", late)


def test_the_window_and_the_span_bound_what_is_under_way() -> None:
    wire = Wire()
    futures = [wire.propose(number, seconds=10_000) for number in range(WINDOW + 10)]
    wire.open_session()
    sent = wire.take()
    assert len(sent) == WINDOW
    assert wire.requester.deadline() > 0  # The rest waits for answers, not for time.
    oldest, *others = sent
    rounds = 0
    while others:
        rounds += 1
        for target, counter, op, args in others:
            if args[1] != 1:
                wire.requester.on_reply(target, counter, OK, plain.encode(None))
            assert op == "propose"
        futures += [wire.propose(number, seconds=10_000) for number in range(WINDOW)]
        others = [request for request in wire.take() if request[3][1] != 1]
        assert wire.requester._session is not None
        assert wire.requester._session.next - wire.requester._session.below <= SPAN
    assert rounds > SPAN // WINDOW  # It stopped for the oldest alone.
    wire.requester.on_reply(oldest[0], oldest[1], OK, plain.encode(None))
    assert wire.take()


def test_too_many_calls_too_many_bytes_and_too_large_ones_are_refused_at_once() -> None:
    wire = Wire(settings=Settings(max_pending=2, max_transition_bytes=100, max_uncommitted_bytes=150))
    big = wire.propose(b"x" * 90)
    assert isinstance(error_of(wire.propose(b"x" * 90)), Overloaded)
    assert isinstance(error_of(wire.propose(b"x" * 101)), TooLarge)
    assert isinstance(error_of(wire.read(b"x" * 101)), TooLarge)
    wire.read()
    assert isinstance(error_of(wire.read()), Overloaded)
    assert not big.done()
    wire.requester.close()
    assert wire.requester.pending() == 0
    assert wire.requester._bytes == 0


@pytest.mark.parametrize(("code", "error"), [(REFUSED_TOO_LARGE, TooLarge), (MALFORMED, InvalidArgument)])
def test_what_would_be_refused_again_is_not_asked_again(code: int, error: type[RaftplugError]) -> None:
    wire = Wire()
    future, target, counter = wire.proposed()
    wire.requester.on_reply(target, counter, code, "no")
    assert type(error_of(future)) is error
    future = wire.read()
    ((target, counter, *_),) = wire.take()
    wire.requester.on_reply(target, counter, code, "no")
    assert type(error_of(future)) is error
    wire = Wire()
    futures = [wire.propose(), wire.propose()]
    ((target, counter, *_),) = wire.take()
    wire.requester.on_reply(target, counter, code, "no such opening")
    assert [type(error_of(future)) for future in futures] == [error, error]


def test_a_read_is_asked_again_and_ends_as_unavailable() -> None:
    wire = Wire()
    future = wire.read(seconds=3)
    asked = 0
    while not future.done():
        for target, counter, *_ in wire.take(0.05):
            asked += 1
            wire.requester.on_reply(target, counter, REFUSED_NOT_LEADER, None)
    assert asked > 3
    assert type(error_of(future)) is Unavailable


def test_a_question_for_one_node_goes_to_no_other() -> None:
    wire = Wire()
    future = Future()
    wire.requester.ask("status", [], future, 5 * SECOND, to="b")
    targets = [(target, op) for _ in range(100) for target, _, op, _ in wire.take(0.1)]
    assert len(targets) > 1
    assert set(targets) == {("b", "status")}
    assert isinstance(error_of(future), Unavailable)


def test_closing_ends_everything_truthfully_and_what_comes_later_too() -> None:
    wire = Wire()
    sent, _, _ = wire.proposed()
    wire.requester.set_leader(None)
    read, queued = wire.read(), []
    sent.add_done_callback(lambda _: queued.append(wire.propose()))  # A callback that asks again meets a closed door.
    wire.requester.close("the client was closed")
    assert isinstance(error_of(sent), OutcomeUnknown)
    assert isinstance(error_of(read), Unavailable)
    assert isinstance(error_of(queued[0]), Unavailable)
    assert isinstance(error_of(wire.propose()), Unavailable)
    assert wire.take(100) == []
    assert wire.requester.deadline() == LIMIT


@pytest.mark.parametrize(
    ("code", "value"),
    [
        (OK, None),
        (OK, "text"),
        (OK, b"\xc1"),
        (FAILED, None),
        (FAILED, ["one"]),
        ("0", b""),
        (None, None),
        (True, None),
    ],
)
def test_an_answer_that_makes_no_sense_is_no_answer(code: Any, value: Any) -> None:
    wire = Wire()
    future, target, counter = wire.proposed()
    wire.requester.on_reply(target, counter, code, value)
    wire.requester.on_reply(target, [counter], OK, b"\xc0")
    wire.requester.on_reply(target, counter + 1000, OK, b"\xc0")
    assert not future.done()
    wire.requester.on_reply(target, counter, OK, b"\xc0")
    assert future.result(0) is None


def test_a_hint_that_makes_no_sense_is_no_hint() -> None:
    for hint in ([], -1, 2**64, {"a": 1}, True):
        wire = Wire()
        future, target, counter = wire.proposed()
        wire.requester.on_reply(target, counter, REFUSED_NOT_LEADER, hint)
        assert not future.done()
        assert {target for _ in range(50) for target, *_ in wire.take(0.1)} <= {"a", "b", "c"}


def test_memory_does_not_grow_with_calls_that_ended() -> None:
    wire = Wire(nodes=(), leader=None)
    for _ in range(50):
        for _ in range(100):
            wire.propose(seconds=0.5)
            wire.read(seconds=0.5)
        wire.take(1)
    requester = wire.requester
    assert len(requester._writes) + len(requester._reads) + len(requester._ready) + len(requester._timers) < 500
    wire = Wire()
    wire.propose(seconds=1e6)
    wire.open_session()
    wire.take()
    for _ in range(5_000):
        wire.propose(seconds=1e6)
        for target, counter, *_ in wire.take():
            wire.requester.on_reply(target, counter, OK, b"\xc0")
    assert len(wire.requester._timers) < 500
    assert len(wire.requester._counters) == 1


def test_calls_that_ended_all_at_once_leave_little_behind() -> None:
    wire = Wire()
    futures = [wire.propose(number, seconds=10_000) for number in range(WINDOW)]
    wire.open_session()
    for target, counter, *_ in wire.take():
        wire.requester.on_reply(target, counter, OK, plain.encode(1))
    assert all(future.done() for future in futures)
    wire.take(0.1)  # Nothing is under way any more.
    assert len(wire.requester._timers) <= 200


def test_a_call_without_a_deadline_keeps_few_counters() -> None:
    wire = Wire()
    future = Future()
    wire.requester.propose(b"\xc0", future, LIMIT)
    wire.open_session()
    for _ in range(2_000):
        wire.take(1)
    assert not future.done()
    assert len(wire.requester._counters) == ATTEMPTS
    for counter in list(wire.requester._counters):
        wire.requester.on_reply("a", counter, REFUSED_OVERLOADED, "full")
    wire.requester.close()
    assert isinstance(error_of(future), OutcomeUnknown)  # The forgotten attempts may have been executed.


# -- sessions with a name ----------------------------------------------------------------------------------------------


def test_a_sequence_and_a_name_belong_together() -> None:
    assert isinstance(error_of(Wire().propose(sequence=1)), InvalidArgument)
    for sequence in (None, 0, -1, True, 2**63, "1"):
        assert isinstance(error_of(Wire(name="job").propose(sequence=sequence)), InvalidArgument)
    with pytest.raises(InvalidArgument):
        Wire(name="x" * 300)


def test_a_named_watermark_never_passes_what_the_caller_may_come_back_with() -> None:
    wire = Wire(name="job")
    futures = [wire.propose(number, seconds=3, sequence=number) for number in (1, 2, 3, 4)]
    ((target, counter, op, args),) = wire.take()
    assert (op, args) == ("open", ["job"])
    wire.requester.on_reply(target, counter, OK, SESSION)
    sent = {args[1]: (target, counter) for target, counter, _, args in wire.take()}
    for sequence in (1, 2, 4):
        wire.requester.on_reply(*sent[sequence], OK, b"\xc0")
    wire.requester.on_reply(*sent[3], REFUSED_TOO_LARGE, "no")
    assert isinstance(error_of(futures[2]), TooLarge)
    wire.propose(8, sequence=8)
    assert wire.take()[0][3][:3] == [SESSION, 8, 3]
    wire.propose(3, sequence=3)
    ((target, counter, _, args),) = wire.take()
    assert args[:3] == [SESSION, 3, 3]  # Not 5: what was refused may come again, and has come.
    wire.requester.on_reply(target, counter, OK, b"\xc0")
    wire.propose(9, sequence=9)
    assert wire.take()[0][3][:3] == [SESSION, 9, 5]
    wire.propose(2, sequence=2)
    assert wire.take()[0][3][:3] == [SESSION, 2, 2]


def test_a_named_session_that_expired_is_not_opened_again_behind_the_callers_back() -> None:
    wire = Wire(name="job")
    first = wire.propose(1, sequence=1)
    wire.open_session()
    ((target, counter, *_),) = wire.take()
    waiting = wire.propose(2, sequence=2)
    wire.requester.on_reply(target, counter, SESSION_EXPIRED, None)
    for future in (first, waiting, wire.propose(1, sequence=1)):
        assert isinstance(error_of(future), SessionExpired)
    assert wire.take(60) == []


# -- against a model of the group, with a network that does its worst -------------------------------------------------

CERTAIN = (NotLeader, Overloaded, Unavailable, TooLarge, SessionExpired)
NODES = ("a", "b", "c")


class Group:
    """Three nodes and their log, as far as a requester can see: what a node took may be committed, lost or unknown."""

    def __init__(self) -> None:
        self.sessions = Sessions(max_results=12)
        self.leader: str | None = "a"
        self.index = 0
        self.time_us = 0
        self.seen: set[int] = set()
        self.taken: list[tuple[str, int, str, list[Any]]] = []  # Appended somewhere, not applied.
        self.executions: dict[int, int] = {}
        self.replies: list[tuple[str, int, int, Any]] = []

    def receive(self, node: str, body: bytes, refusal: int | None, hint: str | None) -> None:
        counter, op, args = msgpack.unpackb(body)
        if counter in self.seen:
            return  # Receivers drop what they have seen.
        self.seen.add(counter)
        if refusal is not None:
            self.replies.append((node, counter, refusal, "refused"))
        elif op == "read":
            self.replies.append((node, counter, OK, plain.encode(len(self.executions))))
        elif node != self.leader:
            self.replies.append((node, counter, REFUSED_NOT_LEADER, hint))
        else:
            self.taken.append((node, counter, op, args))

    def apply(self, at: int, answered: bool = True) -> None:
        node, counter, op, args = self.taken.pop(at)
        self.index += 1
        code, value = self._apply(op, args)
        if answered:
            self.replies.append((node, counter, code, value))

    def _apply(self, op: str, args: list[Any]) -> tuple[int, Any]:
        if op == "open":
            return OK, self.sessions.open(self.index, self.time_us, args[0] or "")
        session, sequence, below, transition = args
        known = self.sessions.admit(session, sequence, below, self.time_us)
        if known is not None:
            return known
        number = plain.decode(transition)
        self.executions[number] = self.executions.get(number, 0) + 1
        value = plain.encode([number, self.index])
        self.sessions.record(session, sequence, OK, value)
        return OK, value


class TruthUnderFaults(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.group = Group()
        self.requests: list[tuple[str, bytes]] = []
        self.old_requests: list[tuple[str, bytes]] = []
        self.old_replies: list[tuple[str, int, int, Any]] = []
        self.requester = Requester(
            settings=Settings(max_pending=50),
            generator=random.Random(3),
            send=lambda target, body: self.requests.append((target, body)),
        )
        self.requester.set_nodes(NODES)
        self.now = 0
        self.writes: list[Future] = []
        self.reads: list[Future] = []
        self.resolved: list[int] = []

    AT = st.integers(0, 1_000)

    def pick(self, rows: list[Any], at: int) -> int:
        return at % len(rows)

    @rule(count=st.integers(1, 4), seconds=st.sampled_from([0, 0.5, 3, 10, 60]))
    def propose(self, count: int, seconds: float) -> None:
        for _ in range(count):
            future, number = Future(), len(self.writes)
            future.add_done_callback(lambda _, number=number: self.resolved.append(number))
            self.writes.append(future)
            self.requester.propose(plain.encode(number), future, self.now + int(seconds * SECOND))
        self.requester.tick(self.now)

    @rule(seconds=st.sampled_from([0.5, 10]))
    def read(self, seconds: float) -> None:
        self.reads.append(Future())
        self.requester.read(plain.encode(None), self.reads[-1], self.now + int(seconds * SECOND))
        self.requester.tick(self.now)

    @rule(
        at=AT,
        refusal=st.sampled_from([None] * 12 + [REFUSED_OVERLOADED, REFUSED_UNAVAILABLE, REFUSED_TOO_LARGE]),
        hint=st.sampled_from([None, "leader", "leader", "b"]),
    )
    def a_request_arrives(self, at: int, refusal: int | None, hint: str | None) -> None:
        if self.requests:
            request = self.requests.pop(self.pick(self.requests, at))
            self.old_requests.append(request)
            self.group.receive(*request, refusal, self.group.leader if hint == "leader" else hint)

    @rule()
    def all_requests_arrive_and_all_is_answered(self) -> None:
        while self.requests:
            self.a_request_arrives(0, None, "leader")
        while self.group.taken:
            self.group.apply(0)
        while self.group.replies:
            self.a_reply_arrives(0)

    @rule(at=AT)
    def a_request_is_lost(self, at: int) -> None:
        if self.requests:
            self.requests.pop(self.pick(self.requests, at))

    @rule(at=AT)
    def a_request_arrives_again(self, at: int) -> None:
        if self.old_requests:
            self.group.receive(*self.old_requests[self.pick(self.old_requests, at)], None, None)

    @rule(at=AT, answered=st.booleans())
    def an_entry_is_applied(self, at: int, answered: bool) -> None:
        if self.group.taken:
            self.group.apply(self.pick(self.group.taken, at), answered)

    @rule(at=AT)
    def an_entry_is_overwritten(self, at: int) -> None:
        if self.group.taken:
            self.group.taken.pop(self.pick(self.group.taken, at))

    @rule(at=AT, forgets=st.booleans())
    def a_reply_arrives(self, at: int, forgets: bool = False) -> None:
        if self.group.replies:
            reply = self.group.replies.pop(self.pick(self.group.replies, at))
            if not forgets:
                self.old_replies.append(reply)
            self.requester.on_reply(*reply)
            self.requester.tick(self.now)

    @rule(at=AT)
    def a_reply_is_lost(self, at: int) -> None:
        if self.group.replies:
            self.group.replies.pop(self.pick(self.group.replies, at))

    @rule(at=AT)
    def a_reply_arrives_again(self, at: int) -> None:
        if self.old_replies:
            self.requester.on_reply(*self.old_replies[self.pick(self.old_replies, at)])

    @rule(leader=st.sampled_from([None, *NODES]), tells=st.booleans(), says=st.booleans())
    def the_leader_changes(self, leader: str | None, tells: bool, says: bool) -> None:
        if tells:  # What the old one took may still be applied, by anybody, or be lost.
            for node, counter, *_ in self.group.taken:
                self.group.replies.append((node, counter, UNKNOWN, "stepped down"))
        self.group.leader = leader
        if says:
            self.requester.set_leader(leader)

    @rule(seconds=st.sampled_from([0.02, 0.2, 1.1, 5]))
    def time_passes(self, seconds: float) -> None:
        self.now += int(seconds * SECOND)
        self.group.time_us += int(seconds * SECOND)
        self.requester.tick(self.now)

    @rule(share=st.sampled_from([1, 2, 4]))
    def logged_time_leaps(self, share: int) -> None:
        self.group.time_us += SESSION_TIMEOUT_US // share + 1

    @rule()
    def the_requester_is_closed(self) -> None:
        self.requester.abort("it was closed")

    def teardown(self) -> None:
        end = self.now + 100 * SECOND
        self.requester.tick(self.now)
        while self.now < end:
            assert self.requester.deadline() > self.now  # What is due was done.
            self.now = min(end, self.requester.deadline())
            self.requester.tick(self.now)
        # Whatever is still somewhere comes to light: what was called certain must hold even then.
        while self.requests:
            self.group.receive(*self.requests.pop(), None, None)
        while self.group.taken:
            self.group.apply(0)
        for number, future in enumerate(self.writes):
            assert future.done(), "a future was forgotten"
            executed = self.group.executions.get(number, 0)
            error = future.exception(0)
            if error is None:
                assert executed == 1
                assert future.result(0)[0] == number
            elif isinstance(error, CERTAIN):
                assert executed == 0, f"{error!r}, and yet it was executed"
            else:
                assert isinstance(error, OutcomeUnknown)
                assert executed <= 1
        acknowledged = sum(future.exception(0) is None for future in self.writes)
        unknown = sum(isinstance(future.exception(0), OutcomeUnknown) for future in self.writes)
        assert acknowledged <= sum(self.group.executions.values()) <= acknowledged + unknown
        assert all(future.done() for future in self.reads)
        assert sorted(self.resolved) == list(range(len(self.writes)))
        requester = self.requester
        assert requester.pending() == 0
        assert not requester._counters
        assert requester._writes_sent == requester._reads_sent == requester._bytes == 0
        assert requester.deadline() == LIMIT


TestTruthUnderFaults = TruthUnderFaults.TestCase
TestTruthUnderFaults.settings = hypothesis_settings(max_examples=200, stateful_step_count=60, deadline=None)
