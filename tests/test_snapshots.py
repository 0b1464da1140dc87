"""Snapshots go in pieces from disk to disk, and whatever happens to the pieces, what is installed is what was made."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftplug import plain, snapshots
from raftplug.apply import Applier
from raftplug.constants import OK, PIECE, PIECE_REQUEST, SESSION_OPEN, SESSION_TRANSITION, SNAPSHOT, UNKNOWN
from raftplug.core import Future
from raftplug.errors import InvalidTransition, MalformedMessage, OutcomeUnknown, WrongDirectory
from raftplug.sessions import Sessions, encode_open, encode_transition
from raftplug.settings import Settings
from raftplug.snapshots import PLAIN, STREAM, Fetch, Making, Reader
from raftplug.storage import MemoryStorage, Stored, StoredSnapshot
from raftplug.threads import run_here
from test_fake_clock import GROUP, IDS, Counter, World

PIECE_BYTES = 50
SMALL = Settings(snapshot_entries=10, keep_entries=0, snapshot_piece_bytes=PIECE_BYTES, snapshot_window_bytes=150)

PLAIN_DATA = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(0, 9), inner),
    max_leaves=30,
)


def made(
    data: bytes, piece_bytes: int = 10, place: tuple[int, int, int] = (7, 2, 99)
) -> tuple[StoredSnapshot, list[bytes]]:
    """A snapshot of these bytes, and its pieces."""
    making = Making(*place, 0, iter([data]), piece_bytes)
    pieces = []
    while (piece := making.next()) is not None:
        pieces.append(piece.data)
    return making.made(), pieces


# ------------------------------------------------------------------------------------------------------------ the bytes


@given(PLAIN_DATA)
def test_data_encoded_in_parts_has_the_same_bytes(value: Any) -> None:
    assert b"".join(plain.encode_in_parts(value)) == plain.encode(value)


@pytest.mark.parametrize("value", [(1, 2), {1.5: 1}, 1 << 64, "\ud800", [object()], {"a": {"b": {1, 2}}}])
def test_what_is_no_plain_data_is_refused_in_parts_too(value: Any) -> None:
    with pytest.raises(InvalidTransition):
        list(plain.encode_in_parts(value))


@given(PLAIN_DATA, st.lists(st.binary(max_size=40)), st.integers(1, 50))
def test_a_snapshot_is_read_as_it_was_made_however_it_was_cut(data: Any, parts: list[bytes], piece_bytes: int) -> None:
    configuration, sessions = [["n1"], [], [], [], {}], [0, [], []]
    for kind, machine in ((PLAIN, plain.encode_in_parts(data)), (STREAM, iter(parts))):
        stream = snapshots.contents(configuration, sessions, kind, machine)
        making = Making(7, 2, 99, 0, stream, piece_bytes)
        pieces = []
        while (piece := making.next()) is not None:
            assert piece.number == len(pieces)
            pieces.append(piece.data)
        snapshot = making.made()
        assert {len(piece) for piece in pieces[:-1]} <= {piece_bytes}
        assert list(snapshots.verify(snapshot, pieces)) == [None] * snapshot.count
        reader = Reader(snapshot, pieces.__getitem__)
        assert (reader.kind, reader.configuration) == (kind, configuration)
        assert reader.sessions.snapshot() == sessions
        if kind == PLAIN:
            assert plain.encode(reader.data()) == plain.encode(data)
        else:
            assert b"".join(reader.stream()) == b"".join(parts)


def test_a_digest_is_of_the_place_too() -> None:
    digests = {made(b"state", place=place)[0].digest for place in ((7, 2, 99), (8, 2, 99), (7, 3, 99), (7, 2, 98))}
    assert len(digests) == 4


@pytest.mark.parametrize("damage", ["flipped", "missing", "repeated", "exchanged"])
def test_other_bytes_have_another_digest(damage: str) -> None:
    snapshot, pieces = made(bytes(range(50)))
    if damage == "flipped":
        pieces[2] = bytes([pieces[2][0] ^ 1]) + pieces[2][1:]
    elif damage == "missing":
        del pieces[3]
    elif damage == "repeated":
        pieces.append(pieces[0])
    else:
        pieces[0], pieces[1] = pieces[1], pieces[0]
    with pytest.raises(MalformedMessage, match="digest of the snapshot at index 7 is wrong"):
        list(snapshots.verify(snapshot, pieces))


@pytest.mark.parametrize(
    "change",
    [
        {"index": 0},
        {"index": 1 << 63},
        {"check": 1 << 32},
        {"size": 0},
        {"count": 0},
        {"count": 51},
        {"size": 6 << 20},
        {"digest": b"short"},
    ],
)
def test_an_offer_that_cannot_be_is_refused(change: dict[str, Any]) -> None:
    good = {"index": 7, "term": 2, "check": 99, "size": 50, "count": 5, "digest": bytes(32)}
    snapshots.checked(StoredSnapshot(**good))
    with pytest.raises(MalformedMessage):
        snapshots.checked(StoredSnapshot(**{**good, **change}))


@given(st.binary(max_size=80))
def test_bytes_that_are_no_piece_are_refused(body: bytes) -> None:
    with pytest.raises(MalformedMessage):
        snapshots.decode_piece(body)


# ------------------------------------------------------------------------------------------------------------ the fetch


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(1, 200))
def test_pieces_are_stored_once_in_order_whatever_becomes_of_them(seed: int, count: int, window: int) -> None:
    chance, patience = random.Random(seed), 100
    snapshot, pieces = made(bytes(index % 251 for index in range(10 * count)))
    fetch = Fetch(snapshot, "n2", 0, window, patience)
    stored: list[bytes] = []
    on_their_way: list[tuple[int, int]] = []
    now = 0
    while not fetch.is_complete():
        assert now < 1_000_000, "it ends"
        for number in fetch.wanted(now):
            assert len(stored) <= number < len(stored) + max(1, window // 10), "no more than the window holds"
            for _ in range(chance.choice((0, 1, 1, 1, 2))):  # Lost, or doubled …
                on_their_way.append((now + chance.randint(1, 150), number))  # … or late, or overtaken.
        now = min([at for at, _ in on_their_way] + [fetch.deadline()])
        for at, number in sorted(on_their_way):
            if at <= now:
                fetch.take(number, pieces[number], now)
        on_their_way = [each for each in on_their_way if each[0] > now]
        for piece in fetch.storable():
            assert piece.number == len(stored)
            stored.append(piece.data)
    assert stored == pieces


def test_a_piece_that_came_before_another_source_was_asked_is_stored_all_the_same() -> None:
    """Simulator seeds 7036 and 7303: it was lost, and the pieces after it stood in its place."""
    snapshot = StoredSnapshot(20, 2, 7, 6, 3, bytes(32), slot=4)
    fetch = Fetch(snapshot, "n1", 0, 1_000, 500)
    assert fetch.wanted(0) == [0, 1, 2]
    fetch.take(1, b"cd", 1)
    assert fetch.storable() == []
    fetch.turn_to("n2")
    assert fetch.wanted(600) == [0, 2]
    fetch.take(0, b"ab", 601)
    assert [(piece.number, piece.data) for piece in fetch.storable()] == [(0, b"ab"), (1, b"cd")]
    fetch.take(2, b"ef", 602)
    assert [(piece.number, piece.data) for piece in fetch.storable()] == [(2, b"ef")]
    assert fetch.is_complete()


def test_who_turns_to_another_source_asks_it_though_the_first_one_has_nothing_more() -> None:
    snapshot, pieces = made(bytes(100))
    fetch = Fetch(snapshot, "n1", 0, 20, 500)
    assert fetch.wanted(0) == [0, 1]
    fetch.take(0, None, 1)
    assert fetch.gone and fetch.wanted(2) == [] and fetch.is_silent(2, 1_000)
    fetch.turn_to("n2")
    assert fetch.wanted(3) == [0, 1] and not fetch.is_silent(3, 1_000)
    fetch.take(0, pieces[0], 4)
    assert [piece.data for piece in fetch.storable()] == pieces[:1]


def test_no_snapshot_is_made_while_the_one_before_and_the_current_one_are_fetched() -> None:
    """A third one would take the first away from who fetches it."""
    first, second = (StoredSnapshot(index, 1, 7, 6, 3, bytes([index]) * 32, slot=index) for index in (10, 20))
    stored = Stored(1, None, first, [], 11)
    kept = snapshots.Snapshots(
        stored=stored, settings=SMALL, send=lambda target, kind, body: None, read=lambda slot, number: b"ab"
    )
    kept.on_request("n2", snapshots.encode_request(first, 0), 1)
    assert kept.may_make(2)
    kept.adopt(second, 3)
    kept.on_request("n3", snapshots.encode_request(second, 0), 4)
    assert not kept.may_make(5)
    later = kept.deadline()
    kept.tick(later)
    assert kept.may_make(later)


def test_what_was_not_asked_for_changes_nothing() -> None:
    snapshot, pieces = made(bytes(100))
    fetch = Fetch(snapshot, "n2", 0, 20, 100)
    assert fetch.wanted(0) == [0, 1]
    for number in (5, 9, 10, 1 << 31):
        fetch.take(number, b"forged", 1)
        fetch.take(number, None, 1)
    assert not fetch.gone and fetch.storable() == []
    fetch.take(1, pieces[1], 2)
    fetch.take(1, b"another", 2)
    fetch.take(0, pieces[0], 2)
    assert [piece.data for piece in fetch.storable()] == pieces[:2]


# ---------------------------------------------------------------------------------------------------- between the nodes


class Traffic:
    """Sees, and may lose or change, what nodes say to each other; counts the pieces that are asked for."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.asked: list[tuple[str, Any, int]] = []  # Who, whom, which.
        self.lose: Any = lambda source, target, kind, body: False
        self.change: Any = lambda source, kind, body: body
        for id in IDS:
            self.watch(id)

    def watch(self, id: str) -> None:
        driver = self.world.nodes[id].drivers[GROUP]
        send = driver._send

        def say(target: Any, kind: int, body: bytes) -> None:
            if kind == PIECE_REQUEST:
                self.asked.append((id, target, snapshots._REQUEST.unpack(body)[1]))
            if not self.lose(id, target, kind, body):
                send(target, kind, self.change(id, kind, body))

        driver._send = say

    def numbers(self, id: str) -> list[int]:
        return [number for asker, _, number in self.asked if asker == id]


def behind(core: Any, limits: Settings = SMALL, machine: type[Counter] = Counter) -> tuple[World, Traffic, str, str]:
    """Three nodes of which one, the last result, needs a snapshot of some twenty pieces, which is on its way."""
    world = World(core, settings=limits, machine=machine)
    traffic = Traffic(world)
    leader = world.elect()
    lagging = next(id for id in IDS if id != leader)
    world.cut.add(lagging)
    for number in range(50):
        world.result(world.propose(leader, {"add": 1, "tag": f"tag number {number:10}"}))
    world.cut.clear()
    return world, traffic, leader, lagging


def snapshots_of(world: World, id: str) -> snapshots.Snapshots:
    found: snapshots.Snapshots = world.nodes[id].drivers[GROUP].snapshots
    return found


def in_the_middle(world: World, id: str) -> snapshots.Fetch:
    """Go on until `id` has fetched some pieces, and not all."""

    def some() -> bool:
        fetch = snapshots_of(world, id).fetch
        return fetch is not None and 5 <= fetch.have < fetch.snapshot.count

    world.until(some)
    fetch = snapshots_of(world, id).fetch
    assert fetch is not None
    return fetch


def caught_up(world: World, id: str) -> None:
    most = max(len(machine.executed) for machine in world.machines.values())
    world.until(lambda: len(world.machines[id].executed) >= most, 30_000)
    assert len({tuple(machine.executed[:most]) for machine in world.machines.values()}) == 1


def nothing_is_left(world: World, *ids: str) -> None:
    """Each disk holds its snapshot, and no piece of another one."""
    for id in ids:
        stored = world.storages[id].load(GROUP)
        assert stored is not None and stored.snapshot is not None
        assert (stored.leftovers, stored.incoming) == ((), None)


def kinds(world: World, id: str) -> list[str]:
    return [each["kind"] for name, each in world.events if name == "raftplug_snapshot" and each["node"] == id]


def test_each_piece_is_asked_for_once_and_no_more_than_the_window_at_a_time(core: Any) -> None:
    world, traffic, _, lagging = behind(core)
    caught_up(world, lagging)
    numbers = traffic.numbers(lagging)
    assert numbers == list(range(len(numbers))) and len(numbers) > 15
    assert kinds(world, lagging)[-1] == "installed"


def test_lost_pieces_are_asked_for_again(core: Any) -> None:
    world, traffic, _, lagging = behind(core)
    chance = random.Random(4)
    traffic.lose = lambda source, target, kind, body: kind in (PIECE, PIECE_REQUEST) and chance.random() < 0.3
    caught_up(world, lagging)
    assert len(traffic.numbers(lagging)) > len(set(traffic.numbers(lagging)))


def test_a_damaged_piece_is_as_good_as_lost(core: Any) -> None:
    world, traffic, _, lagging = behind(core)
    chance = random.Random(5)

    def change(source: str, kind: int, body: bytes) -> bytes:
        return body[:-1] + bytes([body[-1] ^ 1]) if kind == PIECE and chance.random() < 0.3 else body

    traffic.change = change
    caught_up(world, lagging)
    assert "refused" not in kinds(world, lagging)
    assert any("piece of a snapshot that is damaged" in reason for reason in world.nodes[lagging].refused)


def test_a_snapshot_with_another_digest_is_refused_and_fetched_anew(core: Any) -> None:
    world, traffic, _, lagging = behind(core)
    forged: list[int] = []

    def change(source: str, kind: int, body: bytes) -> bytes:
        if kind != PIECE or forged:
            return body
        found, number, data = snapshots.decode_piece(body)
        if number != 7 or data is None:
            return body
        forged.append(number)
        return snapshots._encode_piece(found, number, bytes(len(data)))

    traffic.change = change
    before = list(world.machines[lagging].executed)
    world.until(lambda: "refused" in kinds(world, lagging))
    assert forged and world.machines[lagging].executed == before, "the machine has seen nothing of it"
    caught_up(world, lagging)
    assert kinds(world, lagging)[-2:] == ["refused", "installed"]
    world.run(1_000)
    nothing_is_left(world, lagging)


def test_a_fetch_goes_on_after_a_restart_where_it_stopped(core: Any) -> None:
    world, traffic, _, lagging = behind(core)
    have = in_the_middle(world, lagging).have
    traffic.asked.clear()
    world.boot(lagging)
    traffic.watch(lagging)
    caught_up(world, lagging)
    assert min(traffic.numbers(lagging)) >= have, "what was stored is not asked for again"


def test_a_fetch_that_a_restart_finds_complete_is_taken_over(core: Any) -> None:
    """Nothing else is written on that disk, so nothing else notices."""
    world, _, leader, lagging = behind(core)
    fetch = in_the_middle(world, lagging)
    jobs = world.stuck[lagging] = []
    while not (jobs and fetch.is_complete()):
        while jobs:
            jobs.pop()()
        world.run(1)
    jobs.pop()()  # Its last pieces are durable, and it dies before it hears of that.
    del world.stuck[lagging]
    stored = world.storages[lagging].load(GROUP)
    assert stored is not None and stored.incoming is not None
    assert stored.incoming.have == stored.incoming.snapshot.count
    world.boot(lagging)
    most = len(world.machines[leader].executed)
    world.until(lambda: len(world.machines[lagging].executed) == most, 3_000)


def test_a_fetch_goes_on_while_another_leader_offers_another_snapshot(core: Any) -> None:
    world, traffic, old, lagging = behind(core)
    fetch = in_the_middle(world, lagging)
    new = next(id for id in IDS if id not in (old, lagging))
    world.nodes[old].drivers[GROUP].raft.transfer(new)
    offers: list[Any] = []

    def lose(source: str, target: Any, kind: int, body: bytes) -> bool:
        if kind == SNAPSHOT and source == new:
            offers.append(target)
        return kind == PIECE_REQUEST and not offers  # So slow that the other one leads, and offers its own, meanwhile.

    traffic.lose = lose
    world.until(lambda: bool(offers))
    assert snapshots_of(world, lagging).fetch is fetch and fetch.source == old
    caught_up(world, lagging)
    assert {whom for who, whom, _ in traffic.asked if who == lagging} == {old}


def test_a_fetch_ends_though_newer_snapshots_are_offered_all_the_time(core: Any) -> None:
    """A leader that is fast must not keep away for ever who fetches slowly."""
    world, traffic, leader, lagging = behind(core)
    fetch = in_the_middle(world, lagging)
    offered: set[int] = set()
    given: list[int] = [world.now]

    def lose(source: str, target: Any, kind: int, body: bytes) -> bool:
        if kind == SNAPSHOT and target == lagging:
            offered.add(core.Message.decode(body).index)
        if kind == PIECE_REQUEST and world.now - given[-1] > 700_000:
            given.append(world.now)  # One piece now and then.
            return False
        return kind == PIECE_REQUEST

    traffic.lose = lose
    for number in range(70):
        world.propose(leader, {"add": 1, "tag": f"more {number}"})
        world.run(50)
        assert snapshots_of(world, lagging).fetch is fetch
    assert offered - {fetch.snapshot.index}, "another one was offered meanwhile"
    traffic.lose = lambda source, target, kind, body: False
    caught_up(world, lagging)


def test_a_fetch_turns_to_the_new_leader_when_the_old_one_is_dead(core: Any) -> None:
    world, traffic, old, lagging = behind(core)
    in_the_middle(world, lagging)
    world.cut.add(old)
    most = world.machines[old].executed
    world.until(lambda: world.machines[lagging].executed == most, 30_000)
    assert {whom for who, whom, _ in traffic.asked if who == lagging} == set(IDS) - {lagging}


def test_a_snapshot_stays_while_it_is_fetched_and_so_does_the_log_after_it(core: Any) -> None:
    world, traffic, leader, lagging = behind(core)
    fetch = in_the_middle(world, lagging)
    traffic.lose = lambda source, target, kind, body: kind == PIECE_REQUEST and world.random.random() < 0.6
    for number in range(60):  # Enough for several snapshots: the leader makes one, and waits with the next.
        world.result(world.propose(leader, {"add": 1, "tag": f"more {number}"}))
    kept = snapshots_of(world, leader)
    assert kept.current is not None and kept.current.index > fetch.snapshot.index
    assert kept._previous is not None and kept._previous.digest == fetch.snapshot.digest
    assert world.raft(leader).log.base_index <= fetch.snapshot.index
    traffic.lose = lambda source, target, kind, body: False
    caught_up(world, lagging)
    assert [each for each in kinds(world, lagging) if each == "installed"] == ["installed"], "one was enough"
    world.run(15_000)
    assert snapshots_of(world, leader)._previous is None, "it is kept no longer than somebody needs it"
    world.run(1_000)
    nothing_is_left(world, *IDS)


def test_what_is_overtaken_leaves_nothing_on_any_disk(core: Any) -> None:
    world, _, leader, lagging = behind(core)
    caught_up(world, lagging)
    world.run(15_000)
    for number in range(100):
        world.result(world.propose(leader, {"add": 1, "tag": f"more {number}"}))
    world.run(1_000)
    nothing_is_left(world, *IDS)


def test_a_snapshot_is_not_loaded_while_a_newer_one_takes_its_place(core: Any) -> None:
    """A new node waits with its first one, which says nothing of it; its machine takes its time over the second."""
    world, jobs = World(core, settings=SMALL), []
    leader = world.elect()
    for number in range(25):
        world.result(world.propose(leader, {"add": 1, "tag": number}))
    world.storages["n4"] = MemoryStorage("n4", cluster=world.uuid)
    world.storages["n4"].create(GROUP, plain.encode(core.Configuration(()).plain()))
    world.boot("n4", apply_executor=lambda job, done: jobs.append((job, done)))
    driver = world.nodes["n4"].drivers[GROUP]
    world.client().requester.ask(
        "members", ["add", ["n4"], world.raft(leader).configuration_index], Future(), world.now + 60_000_000
    )
    world.until(lambda: driver._loading is not None)
    first = driver._loading.snapshot
    assert driver.is_witness is None
    world.cut.add("n4")
    world.boot(leader)  # It had kept for the new node what follows that snapshot.
    leader = world.elect()
    for number in range(25, 50):
        world.result(world.propose(leader, {"add": 1, "tag": number}))
    world.cut.clear()

    def is_gone() -> bool:
        stored = world.storages["n4"].load(GROUP)
        assert stored is not None and stored.snapshot is not None
        return stored.snapshot.index > first.index and not stored.leftovers

    world.until(is_gone)

    def has_all() -> bool:
        while jobs:
            job, done = jobs.pop(0)
            run_here(job, lambda error: world.nodes["n4"].call(done, error))  # noqa: B023
        return world.machines["n4"].value == 50

    world.until(has_all)
    assert world.machines["n4"].executed == list(range(50))


class Slow(Counter):
    """Streams as slowly as one part in two milliseconds."""

    world: Any = None

    def stream_snapshot(self, last_included_index: int, last_included_term: int) -> Iterator[bytes]:
        captured = plain.encode([self.value, self.executed[:]])

        def part(at: int) -> bytes:
            self.world.now += 2_000
            return captured[at : at + 20]

        return map(part, range(0, len(captured), 20))

    def load_snapshot(self, last_included_index: int, last_included_term: int, pieces: Iterator[bytes]) -> None:
        self.value, self.executed = plain.decode(b"".join(pieces))


def test_a_snapshot_in_the_making_that_is_overtaken_leaves_nothing_on_the_disk(core: Any) -> None:
    world = Slow.world = World(core, settings=SMALL, machine=Slow)
    leader = world.elect()
    lagging = next(id for id in IDS if id != leader)

    def write(count: int) -> None:
        for number in range(count):
            world.result(world.propose(leader, {"add": 1, "tag": f"tag number {number:10}"}))

    write(8)
    own = snapshots_of(world, lagging)
    while own.making is None or own.making.count < 2:
        write(1)
    world.cut.add(lagging)
    world.stuck[lagging] = []  # Its disk hangs before all of the snapshot is there.
    write(60)
    world.run(2_000)
    assert own.making is not None and own.making.count >= 2
    world.cut.clear()
    world.until(lambda: own.fetch is not None)
    assert own.making is None
    for job in world.stuck.pop(lagging):
        job()
    caught_up(world, lagging)
    world.run(15_000)
    nothing_is_left(world, lagging)


def test_what_a_restart_finds_of_a_snapshot_in_the_making_goes_and_harms_no_other(core: Any) -> None:
    world = Slow.world = World(core, settings=SMALL, machine=Slow)
    leader = world.elect()
    other = next(id for id in IDS if id != leader)

    def write(count: int) -> None:
        for number in range(count):
            world.result(world.propose(leader, {"add": 1, "tag": f"tag number {number:500}"}))

    write(10)
    world.until(lambda: (making := snapshots_of(world, other).making) is not None and making.count > 75)
    world.boot(other)
    stored = world.storages[other].load(GROUP)
    assert stored is not None and stored.leftovers
    own = snapshots_of(world, other)
    world.stuck[other] = []
    world.until(lambda: own.making is not None)  # It begins before all that was left over is gone.
    for job in world.stuck.pop(other):
        job()
    write(5)
    world.until(lambda: own.making is None and own.current is not None and not own.is_at_work(), 5_000)
    nothing_is_left(world, other)
    world.boot(other)
    caught_up(world, other)


def test_any_number_may_fetch_at_once_each_at_its_own_pace(core: Any) -> None:
    world, _, leader, lagging = behind(core)
    caught_up(world, lagging)
    driver = world.nodes[leader].drivers[GROUP]
    snapshot = snapshots_of(world, leader).current
    assert snapshot is not None
    answers: dict[Any, list[bytes]] = {"~quick": [], "~slow": []}

    def say(target: Any, kind: int, body: bytes) -> None:
        if target in answers:
            assert kind == PIECE
            found, number, data = snapshots.decode_piece(body)
            assert (found, number) == (snapshot.digest, len(answers[target])) and data is not None
            answers[target].append(data)

    driver._send = say
    for number in range(snapshot.count):
        driver.receive("~quick", 1, PIECE_REQUEST, snapshots.encode_request(snapshot, number))
        if number % 3 == 0:
            driver.receive("~slow", 1, PIECE_REQUEST, snapshots.encode_request(snapshot, number // 3))
    list(snapshots.verify(snapshot, answers["~quick"]))
    assert answers["~slow"] == answers["~quick"][: len(answers["~slow"])]
    with pytest.raises(MalformedMessage, match="a request for piece"):
        driver.receive("~quick", 1, PIECE_REQUEST, snapshots.encode_request(snapshot, snapshot.count))


class Streaming(Counter):
    """The counter, as bytes."""

    def stream_snapshot(self, last_included_index: int, last_included_term: int) -> Iterator[bytes]:
        captured = [self.value, self.executed[:]]
        return plain.encode_in_parts(captured)

    def load_snapshot(self, last_included_index: int, last_included_term: int, pieces: Iterator[bytes]) -> None:
        self.value, self.executed = plain.decode(b"".join(pieces))


def test_transitions_go_on_while_a_snapshot_is_written_and_are_not_in_it(core: Any) -> None:
    world = World(core, settings=SMALL, machine=Streaming)
    leader = world.elect()
    for number in range(8):
        world.result(world.propose(leader, {"add": 1, "tag": number}))
    world.stuck[leader] = []  # Its disk: so a snapshot stays in the making for as long as the test says.
    futures = [world.propose(leader, {"add": 1, "tag": number}) for number in range(8, 30)]
    world.run(300)
    for job in world.stuck.pop(leader):
        job()
    for future in futures:
        world.result(future)
    world.until(lambda: snapshots_of(world, leader).current is not None)
    snapshot = snapshots_of(world, leader).current
    assert snapshot is not None
    reader = Reader(snapshot, snapshots_of(world, leader).reader(snapshot))
    value, executed = plain.decode(b"".join(reader.stream()))
    assert (value, executed) == (len(executed), world.machines[leader].executed[: len(executed)])
    assert world.machines[leader].value == 30


def test_a_machine_that_streams_is_restored_by_what_it_streamed(core: Any) -> None:
    world, _, _, lagging = behind(core, machine=Streaming)
    caught_up(world, lagging)
    assert kinds(world, lagging)[-1] == "installed"
    for id in IDS:
        world.boot(id)
    world.elect()
    world.until(lambda: all(len(world.machines[id].executed) == 50 for id in IDS))


def test_a_machine_whose_stream_fails_is_told_of_and_costs_nothing_but_space(core: Any) -> None:
    class Broken(Counter):
        def stream_snapshot(self, last_included_index: int, last_included_term: int) -> Iterator[bytes]:
            def parts() -> Iterator[bytes]:
                yield b"something"
                raise ValueError("no more")

            return parts()

        def load_snapshot(self, last_included_index: int, last_included_term: int, pieces: Iterator[bytes]) -> None:
            raise AssertionError

    world = World(core, settings=SMALL, machine=Broken)
    leader = world.elect()
    for number in range(30):
        world.result(world.propose(leader, {"add": 1, "tag": number}))
    assert "the state machine failed to make a snapshot" in world.nodes[leader].drivers[GROUP].status()["problems"]
    assert world.raft(leader).log.base_index == 0


def test_an_offer_to_a_machine_that_takes_no_snapshots_changes_nothing(core: Any) -> None:
    world, _, leader, lagging = behind(core)
    driver = world.nodes[lagging].drivers[GROUP]
    current = snapshots_of(world, leader).current
    assert current is not None
    for data in (b"", b"x" * 44, snapshots.encode_offer(current)[:-1]):
        message = core.Message(SNAPSHOT, driver.raft.term, index=9, log_term=1, hint=5, data=data)
        with pytest.raises(MalformedMessage):
            driver.receive(leader, 1, SNAPSHOT, message.encode())
    assert snapshots_of(world, lagging).fetch is None


# ------------------------------------------------------------------------------------- machines with disks of their own


class OnDisk(Streaming):
    """The counter with a disk of its own, which outlives it, and on which it commits every few entries."""

    disks: dict[int, dict[str, Any]] = {}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.disk: dict[str, Any] = {"index": 0, "state": [0, []]}
        self.given = 0
        self.told: list[int] = []

    def open(self, disk: dict[str, Any]) -> None:
        self.disk = disk
        self.value, self.executed = disk["state"][0], disk["state"][1][:]

    def apply_transition(self, transition: Any) -> int:
        self.given += 1
        return super().apply_transition(transition)

    def load_snapshot(self, last_included_index: int, last_included_term: int, pieces: Iterator[bytes]) -> None:
        self.given += 1_000
        super().load_snapshot(last_included_index, last_included_term, pieces)

    def digest(self) -> bytes:
        return b"%d" % self.value

    def applied_index(self) -> int:
        return int(self.disk["index"])

    def set_applied_index(self, index: int) -> None:
        self.told.append(index)
        if index % 7 == 0:
            self.disk.update(index=index, state=[self.value, self.executed[:]])


class DiskWorld(World):
    """Nodes whose machines find their disks again."""

    def __init__(self, core: Any, limits: Settings) -> None:
        self.disks: dict[str, dict[str, Any]] = {id: {"index": 0, "state": [0, []]} for id in IDS}
        self.opened: list[str] = []
        machines = iter([*IDS])

        def machine() -> OnDisk:
            made = OnDisk()
            made.open(self.disks[next(machines, None) or self.opened.pop()])
            return made

        super().__init__(core, settings=limits, machine=machine)  # type: ignore[arg-type]

    def boot(self, id: str) -> None:
        if id in self.nodes:
            self.opened.append(id)
        super().boot(id)


def on_disk(world: World, id: str) -> OnDisk:
    machine = world.machines[id]
    assert isinstance(machine, OnDisk)
    return machine


@pytest.mark.parametrize("every", [0, 10])
def test_a_machine_on_disk_is_given_only_what_it_does_not_have(core: Any, every: int) -> None:
    limits = Settings(snapshot_entries=every, keep_entries=0, snapshot_piece_bytes=PIECE_BYTES)
    world = DiskWorld(core, limits)
    leader = world.elect()
    total = 0

    def is_ahead(id: str) -> bool:
        snapshot = snapshots_of(world, id).current
        return on_disk(world, id).applied_index() > (snapshot.index if snapshot is not None else 0)

    while total < 50 or not all(map(is_ahead, IDS)):
        world.result(world.propose(leader, {"add": 1, "tag": total}))
        world.run(200)
        total += 1
    for id in IDS:
        assert (snapshots_of(world, id).current is not None) == bool(every)
        has = on_disk(world, id).disk["state"][0]
        assert 40 < has <= total
        world.boot(id)
        assert on_disk(world, id).value == has, "no snapshot was loaded over it"
    world.elect()
    world.until(lambda: all(on_disk(world, id).value == total for id in IDS))
    for id in IDS:
        assert on_disk(world, id).executed == list(range(total))
        assert on_disk(world, id).given < 10


def test_a_state_that_is_ahead_of_the_entries_is_neither_saved_nor_compared(core: Any) -> None:
    """After a restart a machine on disk holds more than the entries that it is taken through, some at a time."""
    world = DiskWorld(core, Settings(snapshot_entries=0, max_append_bytes=200))
    leader = world.elect()
    lagging = next(id for id in IDS if id != leader)
    indexes = []
    for number in range(40):
        if number == 20:
            world.run(200)
            world.cut.add(lagging)
        future = world.propose(leader, {"add": 1, "tag": number})
        world.result(future)
        indexes.append(future.transition_id[1])
    world.run(200)
    world.cut.clear()
    assert on_disk(world, lagging).applied_index() < on_disk(world, leader).applied_index() - 10
    world.settings = Settings(snapshot_entries=10, keep_entries=0, max_append_bytes=200, digest_entries=5)
    for id in IDS:
        world.boot(id)
    world.elect()
    world.until(lambda: all(snapshots_of(world, id).current is not None for id in IDS))
    for id in IDS:
        current = snapshots_of(world, id).current
        assert current is not None
        reader = Reader(current, snapshots_of(world, id).reader(current))
        value, _ = plain.decode(b"".join(reader.stream()))
        assert value == sum(index <= current.index for index in indexes), "what was executed up to its index"
    for _ in range(10):
        world.result(world.propose(world.elect(), {"add": 1}))
    world.run(1_000)
    assert not any(name == "raftplug_diverged" for name, _ in world.events)


def test_a_transition_that_a_machine_on_disk_has_is_not_executed_again_for_who_repeats_it(core: Any) -> None:
    world = DiskWorld(core, Settings(snapshot_entries=0))
    world.elect()
    client = world.client(session="mine")
    for sequence in range(1, 31):
        future = Future()
        client.propose(plain.encode({"add": 1, "tag": sequence}), future, world.now + 10_000_000, sequence)
        assert world.result(future) == sequence
    client.close()
    for id in IDS:
        world.boot(id)
    world.elect()
    client = world.client(session="mine")
    for sequence in (30, 1, 7):
        again = Future()
        client.propose(plain.encode({"add": 1, "tag": sequence}), again, world.now + 3_000_000, sequence)
        world.until(again.done)
        error = again.exception(0)
        assert error is None or isinstance(error, OutcomeUnknown)
    world.run(500)
    assert all(on_disk(world, id).executed == list(range(1, 31)) for id in IDS)


def test_what_a_machine_on_disk_has_is_executed_for_good_and_its_table_of_sessions_can_be_read() -> None:
    machine = OnDisk()
    machine.disk["index"] = 3
    applying = Applier(group="g", machine=machine, settings=Settings(), clock=lambda: 0)
    applying.start(3)

    def once(sequence: int) -> tuple[int, int, bytes]:
        return SESSION_TRANSITION, 1, encode_transition(0, 1, sequence, 1, plain.encode({"add": 1}))

    for first, entries in ((1, [(SESSION_OPEN, 1, encode_open(0)), once(1), once(2)]), (4, [once(1), once(2)])):
        outcomes = applying.apply(first, entries, 1 << 62, tell=False)
        assert [code for code, _ in outcomes[-2:]] == [UNKNOWN, UNKNOWN], "nobody kept what they returned"
        table = applying.sessions.snapshot()
        assert Sessions.restore(table).snapshot() == table
    assert machine.given == 0
    assert applying.apply(6, [once(3)], 1 << 62, tell=False) == [(OK, plain.encode(1))]


def test_a_machine_on_disk_that_is_far_behind_is_given_a_snapshot_and_told_its_index(core: Any) -> None:
    world = DiskWorld(core, SMALL)
    leader = world.elect()
    lagging = next(id for id in IDS if id != leader)
    world.cut.add(lagging)
    for number in range(60):
        world.result(world.propose(leader, {"add": 1, "tag": number}))
    world.cut.clear()
    caught_up(world, lagging)
    assert on_disk(world, lagging).given > 1_000
    current = snapshots_of(world, lagging).current
    assert current is not None and current.index in on_disk(world, lagging).told
    world.propose(leader, {"add": 1, "tag": "more"})
    world.run(1_000)
    assert all(on_disk(world, id).value == 61 for id in IDS)


def test_a_machine_that_is_ahead_of_the_log_is_refused(core: Any) -> None:
    world = DiskWorld(core, SMALL)
    world.elect()
    world.disks["n1"]["index"] = 1_000
    with pytest.raises(WrongDirectory, match="has applied entry 1000 already, and the log here ends at"):
        world.boot("n1")
