"""The table of sessions as a whole has one bound, the same on every replica, and tells who was pushed out."""

from __future__ import annotations

import random
from typing import Any

import msgpack
import pytest

from raftplug import plain
from raftplug.client import ClientLoop
from raftplug.cluster import MemoryCluster
from raftplug.constants import OK, REFUSED_OVERLOADED, SESSION_EXPIRED, SESSION_OPEN, UNKNOWN
from raftplug.errors import InvalidArgument, MalformedMessage, OutcomeUnknown, SessionExpired
from raftplug.sessions import SESSION_TIMEOUT_US, Sessions, decode_bounds, decode_open, encode_open
from raftplug.settings import Settings
from test_apply import Adder, Batcher, Entry, applier, apply_all, once, plainly
from test_fake_clock import GROUP, IDS, World


class Sized:
    """Returns as many bytes as it is told, or a few times as many."""

    def apply_transition(self, transition: Any) -> Any:
        total: int = super().apply_transition(transition)  # type: ignore[misc]
        return bytes(total % 7 * transition)


class Texts(Sized, Adder):
    pass


class TextsInBatches(Sized, Batcher):
    pass


@pytest.mark.parametrize("name", [None, "", "a name", "é" * 128])
@pytest.mark.parametrize("bounds", [None, (1, 1), (10_000, 256 << 20), (1 << 40, 1 << 40)])
def test_bounds_travel_in_the_opening_of_a_session(name: str | None, bounds: Any) -> None:
    payload = encode_open(5, name, bounds)
    assert decode_open(payload) == (5, name or "") and decode_bounds(payload) == bounds


@pytest.mark.parametrize("bounds", [(0, 1), (1, 0), ((1 << 40) + 1, 1), (1, 1 << 63)])
def test_bounds_that_no_table_can_have_are_refused(bounds: Any) -> None:
    for decode in (decode_open, decode_bounds):
        with pytest.raises(MalformedMessage):
            decode(encode_open(5, "name", bounds))
    with pytest.raises(InvalidArgument):
        Settings(max_sessions=0).validate()
    with pytest.raises(InvalidArgument):
        Settings(max_session_bytes=0).validate()


def history(seed: int) -> list[Entry]:
    """Clients that retry, acknowledge, fall silent and come back, while the bounds change."""
    chance = random.Random(seed)
    entries: list[Entry] = [(SESSION_OPEN, 1, encode_open(0)), (SESSION_OPEN, 1, encode_open(0, "named"))]
    below: dict[int, int] = {}
    sessions, time_us = [1, 2], 0
    for _ in range(chance.randint(20, 150)):
        time_us += chance.choice((0, 1, 1_000, SESSION_TIMEOUT_US if chance.random() < 0.03 else 0))
        if chance.random() < 0.1:
            bounds = (chance.randint(1, 3), chance.choice((20, 300, 1_000))) if chance.random() < 0.7 else None
            entries.append((SESSION_OPEN, 1, encode_open(time_us, chance.choice((None, "a", "b")), bounds)))
            sessions.append(len(entries))
        elif chance.random() < 0.05:
            entries.append(plainly(1))
        else:
            session = chance.choice(sessions[-3:])
            floor = below[session] = below.get(session, 0) + chance.choice((0, 0, 1, 3))
            transition = b"\xc1" if chance.random() < 0.1 else None
            number = chance.choice((1, 2, 5, 40, "no number"))
            entry = once(session, floor + chance.randint(0, 3), number, floor, time_us)
            entries.append(entry if transition is None else (entry[0], 1, entry[2][:32] + transition))
    return entries


@pytest.mark.parametrize("seed", range(60))
def test_what_is_kept_is_the_same_however_batches_are_cut_and_wherever_it_restarts(seed: int) -> None:
    entries = history(seed)
    alone = apply_all(Texts(), entries)
    for cut in (None, random.Random(seed), random.Random(seed + 1_000)):
        assert apply_all(TextsInBatches(), entries, cut) == alone
    restored = Sessions.restore(msgpack.unpackb(msgpack.packb(alone[1]), strict_map_key=False))
    assert restored.snapshot() == alone[1]
    applying, again, half = applier(Texts()), applier(Texts()), len(entries) // 2
    applying.apply(1, entries[:half], 1 << 62, tell=False)
    again.machine, again.applied = applying.machine, applying.applied
    again.sessions = Sessions.restore(msgpack.unpackb(msgpack.packb(applying.sessions.snapshot())))
    while again.applied < len(entries):
        again.apply(again.applied + 1, entries[again.applied :], 1 << 62, tell=False)
    assert again.sessions.snapshot() == alone[1] or applying.applied < half


def test_what_a_later_request_frees_makes_no_room_for_an_earlier_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a batch the later one is admitted before the earlier one has its result; alone it is not."""
    monkeypatch.setattr("raftplug.sessions.MAX_RESULT_BYTES", 1)
    entries = [(SESSION_OPEN, 1, encode_open(0)), once(1, 1, 1), once(1, 2, 1, 1), once(1, 3, 1, 2), once(1, 2, 1, 2)]
    alone, together = apply_all(Adder(), entries), apply_all(Batcher(), entries)
    assert together == alone
    assert [code for _, code, _ in alone[0]] == [OK, OK, OK, OK, UNKNOWN]


def _filled(bounds: tuple[int, int], size: int) -> Sessions:
    table = Sessions()
    for session in (1, 2, 3):
        table.open(session, session, "", bounds)
        assert table.admit(session, 1, 0, session) is None
        table.record(session, 1, OK, bytes(size))
    return table


def test_the_results_of_all_sessions_together_have_a_bound() -> None:
    table = _filled((10, 400), 90)
    assert table.admit(1, 2, 0, 3) is None
    table.record(1, 2, OK, bytes(20))
    assert table.admit(1, 2, 0, 3) == (UNKNOWN, b""), "more than a quarter for one session is not kept"
    assert table.admit(2, 2, 0, 3) == (REFUSED_OVERLOADED, None), "100 bytes for each that was executed"
    assert table.admit(1, 3, 2, 3) is None, "and one that is finished makes room"


def test_an_opening_drops_what_was_used_least_recently_until_three_quarters_are_enough() -> None:
    table = _filled((10, 400), 90)
    assert table.admit(1, 1, 0, 4) == (OK, bytes(90))  # 2 is the oldest now.
    table.open(4, 5)
    assert [session in table for session in (1, 2, 3, 4)] == [True, True, True, True], "270 of 400 bytes"
    assert table.admit(4, 1, 0, 6) is None
    table.record(4, 1, OK, bytes(40))
    table.open(5, 7, "named")
    assert [session in table for session in (1, 2, 3, 4, 5)] == [True, False, True, True, True]
    assert table.admit(2, 1, 0, 8) == (SESSION_EXPIRED, None)
    assert table.why_gone(2) == "the results of all sessions had more than 400 bytes, and others were used since"


def test_who_was_pushed_out_and_who_was_idle_are_told_apart() -> None:
    table = Sessions()
    table.open(1, 0, "", (1, 1_000))
    table.open(2, 0)
    assert table.why_gone(1) == "more than 1 sessions without a name were used since"
    table.open(3, SESSION_TIMEOUT_US + 1)
    assert table.why_gone(2) == "it was idle for too long"
    restored = Sessions.restore(table.snapshot())
    assert restored.why_gone(1) == "it was idle for too long, or others needed the room"
    assert restored.snapshot() == table.snapshot()


def test_replicas_whose_settings_differ_do_not_diverge_and_a_client_hears_why_its_session_went(core: Any) -> None:
    """The leader's bounds count; whoever leads."""
    world = World(core, settings=Settings(max_sessions=2))
    for number, id in enumerate(IDS):
        world.nodes[id].drivers[GROUP]._bounds = (2, 1_000 * (number + 1))
    world.elect()
    first = world.client()
    world.result(world.ask(first, {"add": 1}))
    for number in range(3):
        other = ClientLoop(
            cluster=MemoryCluster(world.hub, f"~{number}"),
            own_id=f"~{number}",
            group=GROUP,
            settings=world.settings,
            generator=world.random,
        )
        world.clients = [first, other]
        world.result(world.ask(other, {"add": 1, "tag": number}))
    world.clients = [first]
    error = finished(world, world.ask(first, {"add": 1})).exception(0)
    assert isinstance(error, SessionExpired)
    assert "more than 2 sessions without a name were used since" in str(error) and "idle" not in str(error)
    world.run(1_000)
    tables = [plain.encode(world.nodes[id].drivers[GROUP].sessions.snapshot()) for id in IDS]
    assert tables[0] == tables[1] == tables[2]
    assert not isinstance(error, OutcomeUnknown)


def finished(world: World, future: Any) -> Any:
    world.until(future.done)
    return future
