"""The applier: batches, failures, digests; and what the driver does when the machine is slow or has diverged."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from raftplug import plain
from raftplug.apply import Applier
from raftplug.constants import (
    ALREADY,
    CONFIGURATION,
    FAILED,
    NOOP,
    OK,
    SESSION_EXPIRED,
    SESSION_OPEN,
    SESSION_TRANSITION,
    TRANSITION,
    UNKNOWN,
)
from raftplug.core import Future
from raftplug.divergence import KEPT, Digests
from raftplug.errors import Diverged, MachineFailed, Overloaded, TransitionFailed, Unavailable
from raftplug.sessions import SESSION_TIMEOUT_US, encode_open, encode_transition
from raftplug.settings import Settings
from raftplug.state_machine import StateMachine
from raftplug.testing.simulation import Batching
from raftplug.threads import run_here
from test_fake_clock import GROUP, IDS, Counter, World

Entry = tuple[int, int, bytes]
FOREVER = 1 << 62


class Adder(StateMachine):
    """Adds whole numbers; anything else is an error."""

    def __init__(self) -> None:
        self.total = 0
        self.executed: list[Any] = []

    def apply_transition(self, transition: Any) -> Any:
        if type(transition) is not int:
            raise ValueError(f"no number: {transition!r}")
        self.total += transition
        self.executed.append(transition)
        return self.total


class Batcher(Batching, Adder):
    """The same in batches."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def apply_batch(self, transitions: list[Any]) -> list[Any]:
        self.batches.append(len(transitions))
        return super().apply_batch(transitions)


def applier(machine: Any, **limits: Any) -> Applier:
    return Applier(group="g", machine=machine, settings=Settings(**limits), clock=lambda: 0)


def once(session: int, sequence: int, transition: Any, below: int = 0, time_us: int = 0) -> Entry:
    return SESSION_TRANSITION, 1, encode_transition(time_us, session, sequence, below, plain.encode(transition))


def plainly(transition: Any) -> Entry:
    return TRANSITION, 1, plain.encode(transition)


def some_history(seed: int) -> list[Entry]:
    """Entries as clients make them that retry, acknowledge, overlap, fall silent and come back."""
    chance = random.Random(seed)
    entries: list[Entry] = [(SESSION_OPEN, 1, encode_open(0)), (SESSION_OPEN, 1, encode_open(0, "named"))]
    time_us, below = 0, {1: 0, 2: 0, 3: 0}
    for _ in range(chance.randint(5, 120)):
        time_us += chance.choice((0, 1, 1_000, SESSION_TIMEOUT_US // 2 if chance.random() < 0.02 else 0))
        session = chance.choice((1, 1, 1, 2, 3))
        kind = chance.random()
        if kind < 0.7:
            below[session] = max(below[session], chance.choice((0, 0, below[session] + 1, below[session] + 3)))
            sequence = below[session] + chance.randint(0, 4)
            transition = chance.choice((1, 2, "no number", None))
            entries.append(once(session, sequence, transition, below[session], time_us))
        elif kind < 0.8:
            entries.append(plainly(chance.choice((5, "no number"))))
        elif kind < 0.85:
            entries.append((TRANSITION, 1, b"\xc1 these are no plain data"))
        elif kind < 0.9:
            entries.append((SESSION_TRANSITION, 1, encode_transition(time_us, session, 90, 0, b"\xc1")))
        elif kind < 0.95:
            entries.append((NOOP, 1, b""))
        else:
            entries.append((SESSION_OPEN, 1, encode_open(time_us)))
    return entries


def apply_all(machine: Any, entries: list[Entry], cuts: random.Random | None = None, **limits: Any) -> list[Any]:
    """Everything that can be seen of it: outcomes, sessions, state, digests."""
    applying = applier(machine, **limits)
    outcomes: list[Any] = []
    while applying.applied < len(entries):
        first = applying.applied + 1
        end = len(entries) if cuts is None else min(len(entries), first - 1 + cuts.randint(1, 30))
        found = applying.apply(first, entries[first - 1 : end], FOREVER, tell=False)
        for index, (code, value) in enumerate(found, first):
            seen = (value.kind, value.message) if isinstance(value, TransitionFailed) else value
            outcomes.append((index, code, seen))
    return [outcomes, applying.sessions.snapshot(), machine.total, machine.executed, applying.digests]


@pytest.mark.parametrize("seed", range(60))
def test_batches_however_they_are_cut_give_what_one_by_one_gives(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if seed % 2:
        monkeypatch.setattr("raftplug.sessions.MAX_RESULT_BYTES", 4)
        monkeypatch.setattr("raftplug.sessions.MAX_SESSIONS", 2)
    entries = some_history(seed)
    one_by_one = apply_all(Adder(), entries)
    for cut in (None, random.Random(seed), random.Random(seed + 1_000)):
        machine = Batcher()
        assert apply_all(machine, entries, cut) == one_by_one


def test_what_is_committed_together_is_applied_together() -> None:
    machine = Batcher()
    apply_all(machine, [plainly(1) for _ in range(100)])
    assert sum(machine.batches) == 100
    assert max(machine.batches) > 10


def test_a_repetition_within_a_batch_is_executed_once() -> None:
    machine = Batcher()
    entries = [(SESSION_OPEN, 1, encode_open(0)), once(1, 1, 7), once(1, 1, 7), once(1, 2, 7), once(1, 1, 7)]
    outcomes = apply_all(machine, entries)[0]
    assert machine.executed == [7, 7]
    assert [value for _, _, value in outcomes[1:]] == [plain.encode(each) for each in (7, 7, 14, 7)]


def test_a_transitions_exception_in_a_batch_is_its_result_alone() -> None:
    machine = Batcher()
    entries = [(SESSION_OPEN, 1, encode_open(0)), once(1, 1, 1), once(1, 2, "two"), plainly("three"), plainly(4)]
    outcomes = apply_all(machine, entries)[0]
    assert [code for _, code, _ in outcomes] == [OK, OK, FAILED, FAILED, OK]
    assert outcomes[2][2] == ["ValueError", "no number: 'two'"]
    assert outcomes[3][2] == ("ValueError", "no number: 'three'")


@pytest.mark.parametrize("machine", [Adder, Batcher])
def test_who_repeats_what_failed_is_told_the_same_failure(machine: type[Adder]) -> None:
    applying = applier(machine())
    applying.apply(1, [(SESSION_OPEN, 1, encode_open(0))], FOREVER, tell=False)
    told = [applying.apply(index, [once(1, 1, "two")], FOREVER, tell=False) for index in (2, 3)]
    assert told == [[(FAILED, ["ValueError", "no number: 'two'"])]] * 2


class Careless(Batcher):
    """Breaks the contract of apply_batch in one way."""

    def __init__(self, answer: Callable[[list[Any]], Any]) -> None:
        super().__init__()
        self.answer = answer

    def apply_batch(self, transitions: list[Any]) -> Any:
        return self.answer(transitions)


def _raise(error: BaseException) -> Any:
    raise error


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (lambda _: _raise(ValueError("in the middle")), "raised ValueError: in the middle"),
        (lambda _: None, "returned NoneType for 2 transitions"),
        (lambda transitions: transitions[:1], "returned 1 results for 2 transitions"),
        (lambda transitions: (1, 2), "returned tuple for 2 transitions"),
    ],
)
def test_a_batch_that_breaks_the_contract_stops_the_replica_before_anything_is_answered(
    answer: Callable[[list[Any]], Any], text: str
) -> None:
    applying = applier(Careless(answer))
    with pytest.raises(MachineFailed, match=text):
        applying.apply(1, [plainly(1), plainly(2)], FOREVER, tell=False)
    assert applying.applied == 0


@pytest.mark.parametrize("error", [MemoryError(), RecursionError(), OSError(5, "disk")])
def test_no_memory_and_no_disk_are_no_results_of_a_batch(error: Exception) -> None:
    for answer in (lambda transitions: [error for _ in transitions], lambda _: _raise(error)):
        with pytest.raises(type(error)):
            applier(Careless(answer)).apply(1, [plainly(1)], FOREVER, tell=False)


def test_a_session_that_is_gone_and_one_that_goes_on_are_told_apart_in_a_batch() -> None:
    late = SESSION_TIMEOUT_US + 1
    entries = [(SESSION_OPEN, 1, encode_open(0)), once(1, 1, 1), once(1, 2, 1, 0, late), once(1, 1, 1, 1, late)]
    outcomes = apply_all(Batcher(), entries)[0]
    assert [code for _, code, _ in outcomes] == [OK, OK, SESSION_EXPIRED, SESSION_EXPIRED]


def test_a_finished_sequence_is_not_executed_again_and_an_unkept_result_is_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("raftplug.sessions.MAX_RESULT_BYTES", 0)
    machine = Batcher()
    entries = [(SESSION_OPEN, 1, encode_open(0)), once(1, 5, 1, 5), once(1, 4, 1, 4), once(1, 5, 1, 5)]
    outcomes = apply_all(machine, entries)[0]
    assert [code for _, code, _ in outcomes] == [OK, OK, ALREADY, UNKNOWN]
    assert machine.executed == [1]


# ------------------------------------------------------------------- digests


class Digested(Batcher):
    def digest(self) -> bytes:
        return b"%d" % self.total


def test_digests_are_taken_at_the_same_indexes_however_entries_come() -> None:
    entries = [(SESSION_OPEN, 1, encode_open(0))] + [once(1, number, number) for number in range(1, 60)]
    digests = [apply_all(Digested(), entries, cut, digest_entries=7)[4] for cut in (None, random.Random(3))]
    assert [index for index, _ in digests[0]] == [7, 14, 21, 28, 35, 42, 49, 56]
    assert all(each == digests[0] for each in digests)


def test_a_digest_covers_the_sessions_too() -> None:
    def digest(value: int) -> Any:
        applying = applier(Digested(), digest_entries=2)
        applying.machine.apply_batch = lambda transitions: [value for _ in transitions]
        applying.apply(1, [(SESSION_OPEN, 1, encode_open(0)), once(1, 1, 1)], FOREVER, tell=False)
        return applying.digests

    assert digest(1) == digest(1)
    assert digest(1) != digest(2)


@pytest.mark.parametrize("digest", [lambda: "text", lambda: b"x" * 65, lambda: 1 // 0])
def test_a_machine_that_gives_no_digest_is_a_problem_and_nothing_else(digest: Any) -> None:
    machine = Digested()
    machine.digest = digest  # type: ignore[method-assign]
    applying = applier(machine, digest_entries=2)
    applying.apply(1, [plainly(1) for _ in range(10)], FOREVER, tell=False)
    assert applying.applied == 10 and machine.total == 10
    assert applying.digests == []
    assert applying.problem is not None and "digest" in applying.problem


def test_half_of_the_voters_are_no_majority_then_the_leaders_state_is_right() -> None:
    digests = Digests("n1", 1_000)
    for replica in ("n3", "n4", "n2", "n1"):
        digests.add(replica, 10, b"wrong" if replica in ("n3", "n4") else b"right")
    index, wrong, right = digests.judge(["n3", "n4", "n2", "n1"], 0)
    assert (index, {each.replica for each in wrong}, right) == (10, {"n3", "n4"}, {"n1", "n2"})


def test_digests_of_few_indexes_are_remembered() -> None:
    digests = Digests("n1", 1_000)
    for index in range(1, 100):
        digests.add("n2", index, b"x")
        digests.add("n1", index, b"x")
    assert [index for index, _ in digests.latest()] == list(range(100 - KEPT, 100))
    assert len(digests._known) == KEPT


class DigestedCounter(Counter):
    """Its state on one replica can be changed behind everybody's back."""

    flipped = 0

    def digest(self) -> bytes:
        return b"%d %d" % (self.value, self.flipped)


@pytest.fixture
def world(core: Any) -> World:
    return World(core, settings=Settings(digest_entries=10), machine=DigestedCounter)


def work(world: World, count: int) -> None:
    for _ in range(count):
        leader = world.elect()
        world.propose(leader, {"add": 1})
        world.run(3)


def named(world: World) -> set[str]:
    return {arguments["replica"] for name, arguments in world.events if name == "raftplug_diverged"}


def test_equal_states_are_never_named(world: World) -> None:
    world.elect()
    work(world, 60)
    assert named(world) == set()


@pytest.mark.parametrize("leads", [False, True])
def test_the_one_replica_that_has_diverged_is_named_on_it_and_on_the_leader(world: World, leads: bool) -> None:
    leader = world.elect()
    odd = next(id for id in IDS if (id == leader) == leads)
    world.machines[odd].flipped = 1  # type: ignore[attr-defined]
    work(world, 30)
    world.run(1_000)
    assert named(world) == {odd}
    event = next(arguments for name, arguments in world.events if name == "raftplug_diverged")
    assert event["index"] % 10 == 0 and event["digest"] != event["expected"]
    problems = world.nodes[odd].drivers[GROUP].status()["problems"]
    assert any(odd in each and event["digest"] in each and str(event["index"]) in each for each in problems)


def test_a_diverged_replica_serves_nothing_and_the_others_go_on(world: World) -> None:
    leader = world.elect()
    world.machines[leader].flipped = 1  # type: ignore[attr-defined]
    work(world, 30)
    world.until(lambda: world.leader() not in (None, leader))
    for future in (world.read(leader), world.propose(leader, {"add": 1})):
        world.until(future.done)
        error = future.exception(0)
        assert isinstance(error, Diverged) and leader in str(error)
    others = [id for id in IDS if id != leader]
    before = max(world.machines[id].value for id in others)  # A follower hears a little later.
    assert [world.result(world.propose(id, {"add": 1})) for id in others] == [before + 1, before + 2]
    assert [world.result(world.read(id)) for id in others] == [before + 2] * 2
    client = world.client()
    answer = Future()
    client.read(plain.encode(None), answer, world.now + 10_000_000)
    world.until(answer.done)
    assert answer.exception(0) is None


def test_with_two_voters_the_leaders_state_is_right(core: Any) -> None:
    world = World(core, settings=Settings(digest_entries=10), machine=DigestedCounter)
    leader = world.elect()
    follower = next(id for id in IDS if id != leader)
    world.cut.add(next(id for id in IDS if id not in (leader, follower)))
    world.machines[follower].flipped = 1  # type: ignore[attr-defined]
    work(world, 30)
    assert named(world) == set(), "the third has the casting vote, and may yet answer"
    world.run(8_000)
    work(world, 2)
    assert named(world) == {follower}


def test_a_replica_that_comes_back_with_the_right_state_is_no_problem_any_more(world: World) -> None:
    leader = world.elect()
    odd = next(id for id in IDS if id != leader)
    world.machines[odd].flipped = 1  # type: ignore[attr-defined]
    work(world, 30)
    assert named(world) == {odd}
    world.boot(odd)
    # A frame of the new process has no new boot counter here, so its first ones are taken for repetitions.
    for _ in range(20):
        work(world, 30)
        problems = [each for id in IDS for each in world.nodes[id].drivers[GROUP].status()["problems"]]
        if not any("diverged" in each for each in problems):
            break
    else:
        raise AssertionError(problems)
    assert world.result(world.read(odd)) == world.machines[leader].value


# ---------------------------------------------------------------- slow machines


class Slow(Counter):
    """Each transition takes as long as it says."""

    world: Any = None

    def apply_transition(self, transition: Any) -> int:
        type(self).world.now += 1_000 * transition.get("ms", 0)
        return super().apply_transition(transition)


class SlowWorld(World):
    """What machines do is done when the test says so, once they have threads of their own."""

    def __init__(self, core: Any, machine: type[Counter] = Slow, **options: Any) -> None:
        self.jobs: dict[str, list[Callable[[], None]]] = {id: [] for id in IDS}
        self.hold = False
        Slow.world = self
        super().__init__(core, machine=machine, **options)

    def boot(self, id: str, **more: Any) -> None:
        def start(group: str) -> Any:
            assert group == GROUP

            def submit(job: Callable[[], None], done: Callable[[BaseException | None], None]) -> None:
                def run() -> None:
                    job()
                    done(None)

                if self.hold:
                    self.jobs[id].append(run)
                else:
                    run()

            return submit

        super().boot(id, own_thread=start, **more)

    def release(self, id: str | None = None) -> None:
        """Let what the machines do at this moment be done."""
        for each in IDS if id is None else (id,):
            jobs, self.jobs[each] = self.jobs[each], []
            for job in jobs:
                job()

    def modes(self) -> set[str]:
        return {self.nodes[id].drivers[GROUP].status()["apply"] for id in IDS}

    def make_slow(self) -> str:
        leader = self.elect()
        assert self.modes() == {"loop"}
        self.result(self.propose(leader, {"add": 1, "ms": 6}))
        self.until(lambda: self.modes() == {"thread"})
        return leader


def test_a_machine_that_was_held_up_once_in_a_run_stays_in_the_loop(core: Any) -> None:
    """Another thread had the interpreter for 5 ms: that says nothing of the machine."""
    world = SlowWorld(core)
    leader = world.elect()
    for slow in (0, 6):
        proposed = [world.propose(leader, {"add": 1, "ms": slow * (number == 70)}) for number in range(80)]
        assert [world.result(each) for each in proposed] == [world.machines[leader].value - 79 + n for n in range(80)]
    assert world.modes() == {"loop"}


def test_a_quick_machine_stays_in_the_loop(core: Any) -> None:
    world = SlowWorld(core)
    leader = world.elect()
    for _ in range(20):
        world.result(world.propose(leader, {"add": 1, "ms": 1}))
    assert world.modes() == {"loop"}


def test_a_machine_that_took_too_long_once_gets_a_thread_and_an_event_says_so(core: Any) -> None:
    world = SlowWorld(core)
    world.make_slow()
    slow = [arguments for name, arguments in world.events if name == "raftplug_slow_apply"]
    assert {each["node"] for each in slow} == set(IDS)
    assert all(each["took_ms"] >= 5 for each in slow)


class Measured(SlowWorld):
    """What a transition takes by the clock, and what of that its thread computes and waits for, are told apart."""

    def __init__(self, core: Any) -> None:
        self.cpu_us = self.waits = self.held_up_us = 0
        super().__init__(core)

    def boot(self, id: str, **more: Any) -> None:
        super().boot(id, used=lambda: (self.cpu_us, self.waits, self.held_up_us), **more)

    def apply(self, ms: int, *, computes: bool = False, waits: bool = False, held_up_ms: int = 0) -> None:
        leader, machine = self.elect(), type(self.machines[IDS[0]])
        original = machine.apply_transition

        def measured(counter: Any, transition: Any) -> int:
            self.cpu_us += 1_000 * ms * computes
            self.waits += waits
            self.held_up_us += 1_000 * held_up_ms
            return original(counter, transition)

        machine.apply_transition = measured  # type: ignore[method-assign]
        try:
            self.result(self.propose(leader, {"add": 1, "ms": ms}))
            self.until(lambda: len({self.nodes[id].drivers[GROUP].applied for id in IDS}) == 1)
        finally:
            machine.apply_transition = original  # type: ignore[method-assign]


def test_a_machine_is_slow_by_the_cpu_time_of_its_thread_and_not_by_the_clock(core: Any) -> None:
    world = Measured(core)
    for _ in range(20):
        world.apply(30)  # Another process has the CPU.
        world.apply(80, waits=True, held_up_ms=77)  # Another thread has the interpreter.
    assert world.modes() == {"loop"}
    world.apply(6, computes=True)
    world.until(lambda: world.modes() == {"thread"})


def test_a_machine_that_waits_is_slow_once_it_holds_up_the_loop_or_does_so_again_and_again(core: Any) -> None:
    world = Measured(core)
    for _ in range(7):
        world.apply(6, waits=True)
    world.apply(1, waits=True)
    world.apply(6, waits=True)
    assert world.modes() == {"loop"}
    world.apply(50, waits=True)  # Half a heartbeat.
    world.until(lambda: world.modes() == {"thread"})
    world = Measured(core)
    for _ in range(12):  # Some are applied together with an entry of the group's own.
        world.apply(6, waits=True)
    world.until(lambda: world.modes() == {"thread"})


def test_a_machine_that_is_fast_again_comes_back_to_the_loop_and_later_each_time(core: Any) -> None:
    world = Measured(core)
    for away_ms in (5_000, 10_000, 20_000):
        world.apply(6, computes=True)
        world.until(lambda: world.modes() == {"thread"})
        for _ in range(away_ms // 1_000 - 1):
            world.run(800)
            world.apply(1, computes=True)
            world.apply(30)
        assert world.modes() == {"thread"}
        world.run(away_ms)
        assert world.modes() == {"thread"}, "what does nothing is not fast"
        world.apply(1)
        world.until(lambda: world.modes() == {"loop"})
    world.run(60_000)
    world.apply(6, computes=True)
    world.until(lambda: world.modes() == {"thread"})
    world.run(5_000)
    world.apply(1)
    world.until(lambda: world.modes() == {"loop"})


@pytest.mark.parametrize("waits", [False, True])
def test_a_machine_that_stays_slow_stays_away(core: Any, waits: bool) -> None:
    world = Measured(core)
    for _ in range(10):
        world.apply(100, computes=not waits, waits=waits)
        world.until(lambda: world.modes() == {"thread"})
        world.run(4_000)


def test_a_slow_machine_stays_in_the_loop_while_there_is_no_thread_for_it(core: Any) -> None:
    class Poor(SlowWorld):
        rich = False

        def boot(self, id: str, **more: Any) -> None:
            World.boot(self, id, own_thread=self.start, **more)

        def start(self, group: str) -> Any:
            if not self.rich:
                raise Unavailable("no thread could be started")
            return run_here

    world = Poor(core)
    leader = world.elect()
    for _ in range(3):
        world.result(world.propose(leader, {"add": 1, "ms": 6}))
        assert world.modes() == {"loop"}
    assert not [name for name, _ in world.events if name == "raftplug_slow_apply"]
    world.rich = True
    world.run(1_000)
    world.result(world.propose(leader, {"add": 1, "ms": 6}))
    world.until(lambda: world.modes() == {"thread"})


def test_while_a_machine_is_at_work_nobody_is_elected_and_nothing_is_lost(core: Any) -> None:
    world = SlowWorld(core)
    leader = world.make_slow()
    term = world.raft(leader).term
    world.hold = True
    futures = [world.propose(leader, {"add": 1, "tag": number}) for number in range(5)]
    read = world.read(leader)
    world.run(4_000)
    assert world.leader() == leader and world.raft(leader).term == term
    assert world.raft(leader).commit > world.nodes[leader].drivers[GROUP].applied
    assert not any(future.done() for future in futures)
    world.hold = False
    world.release()
    assert [world.result(future) for future in futures] == [2, 3, 4, 5, 6]
    assert world.result(read) in range(1, 7)
    world.until(lambda: all(world.machines[id].executed[1:] == list(range(5)) for id in IDS))
    assert world.raft(leader).term == term


def test_a_change_of_members_is_answered_when_it_is_over_and_not_when_the_one_before_it_is(core: Any) -> None:
    world = SlowWorld(core)
    leader = world.make_slow()
    first, second = (id for id in IDS if id != leader)
    client = world.client()
    world.hold = True
    world.propose(leader, {"add": 1})  # What follows is committed, and not applied.
    answers = []
    for action, id, voters in (("demote", first, 2), ("promote", first, 3), ("demote", second, 2)):
        answers.append(Future())
        client.requester.ask(
            "members", [action, [id], world.raft(leader).configuration_index], answers[-1], world.now + 60_000_000
        )

        def is_committed(voters: int = voters) -> bool:
            raft = world.raft(leader)
            settled = not raft.configuration.outgoing and raft.commit >= raft.configuration_index
            return settled and len(raft.configuration.voters) == voters

        world.until(is_committed)
    assert not any(each.done() for each in answers)
    world.hold = False
    world.release()
    voters, joining = zip(*((set(now[0]), now[3]) for now in map(world.result, answers)), strict=True)
    assert voters == ({leader, second}, {leader, second}, {leader, first})
    assert joining == ([], [first], [])  # To promote begins with that, and is answered then.


def test_who_asks_again_for_a_change_that_is_not_committed_waits_for_it(core: Any) -> None:
    """It may be rolled back yet."""
    world = SlowWorld(core)
    leader = world.elect()
    client = world.client()
    world.result(world.ask(client, {"add": 1}))  # It knows now who leads.
    answers = [Future(), Future()]
    world.cut.update(id for id in IDS if id != leader)
    raft = world.raft(leader)
    for answer in answers:
        client.requester.ask(
            "members", ["learn", ["n4"], world.raft(leader).configuration_index], answer, world.now + 60_000_000
        )
        world.run(20)
    assert "n4" in raft.configuration.learners and raft.commit < raft.configuration_index
    assert not any(each.done() for each in answers)
    world.cut.clear()
    assert [world.result(each)[2] for each in answers] == [["n4"], ["n4"]]


def test_one_job_is_under_way_at_a_time_and_the_order_is_the_logs(core: Any) -> None:
    world = SlowWorld(core)
    leader = world.make_slow()
    world.hold = True
    for number in range(30):
        world.propose(leader, {"add": 1, "tag": number})
        world.run(20)
        assert all(len(jobs) <= 1 for jobs in world.jobs.values())
        if number % 3 == 0:
            world.release()
    for _ in range(200):
        world.release()
        world.run(2)
    assert all(world.machines[id].executed[1:] == list(range(30)) for id in IDS)


def test_a_read_waits_for_the_machine_and_ends_at_its_deadline(core: Any) -> None:
    world = SlowWorld(core)
    leader = world.make_slow()
    world.hold = True
    world.propose(leader, {"add": 1})
    world.run(20)
    future = world.read(leader, timeout_ms=1_000)
    world.run(900)
    assert not future.done()
    world.run(200)
    assert future.done() and future.exception(0) is not None


def test_a_read_index_needs_no_machine(core: Any) -> None:
    """A follower whose own machine is quick answers reads, however far behind the leader's machine is."""
    world = SlowWorld(core)
    leader = world.make_slow()
    other = next(id for id in IDS if id != leader)
    world.hold = True
    world.propose(leader, {"add": 1})
    world.run(50)
    read = world.read(other)
    for _ in range(20):
        world.release(other)
        world.run(10)
    assert read.done() and read.result(0) == 2
    assert world.machines[leader].value == 1


def test_a_snapshot_is_installed_only_once_the_machine_has_finished(core: Any) -> None:
    world = SlowWorld(core, settings=Settings(snapshot_entries=10, keep_entries=0))
    leader = world.make_slow()
    lagging = next(id for id in IDS if id != leader)
    world.hold = True
    world.propose(leader, {"add": 1, "tag": "first"})
    world.until(lambda: bool(world.jobs[lagging]))
    others = [id for id in IDS if id != lagging]
    world.cut.add(lagging)
    for number in range(40):
        world.propose(leader, {"add": 1, "tag": number})
        for _ in range(4):
            world.run(1)
            for id in others:
                world.release(id)
    world.cut.clear()
    driver = world.nodes[lagging].drivers[GROUP]
    for _ in range(3_000):
        world.run(1)
        for id in others:
            world.release(id)
    assert world.raft(lagging).log.base_index > driver.applied, "the snapshot is durable"
    assert world.machines[lagging].executed == [None], "its machine still has its job"
    world.hold = False
    world.release()
    world.until(lambda: world.machines[lagging].executed == [None, "first", *range(40)])
    world.run(1_000)
    assert world.machines[lagging].value == world.machines[leader].value


def test_beyond_what_a_machine_may_be_behind_proposals_are_refused_at_once(core: Any) -> None:
    world = SlowWorld(core, settings=Settings(max_unapplied_bytes=1_000))
    leader = world.make_slow()
    world.hold = True
    refused = []
    for _ in range(100):
        future = world.propose(leader, {"add": 1, "tag": "x" * 50})
        world.run(5)
        if future.done():
            refused.append(future.exception(0))
    assert refused and all(isinstance(error, Overloaded) for error in refused)
    log, driver = world.raft(leader).log, world.nodes[leader].drivers[GROUP]
    assert log.bytes_between(driver.applied + 1, log.last_index + 1) < 1_400
    world.hold = False
    world.release()
    world.run(100)
    assert isinstance(world.result(world.propose(leader, {"add": 1})), int)


def test_a_follower_whose_machine_is_behind_takes_no_more_entries_and_stays_a_follower(core: Any) -> None:
    world = SlowWorld(core, settings=Settings(max_unapplied_bytes=1_000, window_bytes=500, max_append_bytes=200))
    leader = world.make_slow()
    lagging, other = (id for id in IDS if id != leader)
    term = world.raft(leader).term
    world.hold = True
    for _ in range(100):
        future = world.propose(leader, {"add": 1, "tag": "x" * 50})
        while not future.done():
            world.run(5)
            world.release(leader)
            world.release(other)
        assert isinstance(future.result(), int)
    log, driver = world.raft(lagging).log, world.nodes[lagging].drivers[GROUP]
    assert 1_000 < log.bytes_between(driver.applied + 1, log.last_index + 1) < 2_000
    assert world.raft(leader).log.last_index > log.last_index + 50
    assert (world.raft(lagging).term, world.raft(lagging).leader) == (term, leader)
    world.hold = False
    world.release()
    world.until(lambda: driver.applied == world.raft(leader).commit)
    assert world.machines[lagging].value == world.machines[leader].value


def test_a_closed_replica_takes_no_result_any_more(core: Any) -> None:
    world = SlowWorld(core)
    leader = world.make_slow()
    world.hold = True
    future = world.propose(leader, {"add": 1})
    world.until(lambda: bool(world.jobs[leader]))
    world.nodes.pop(leader).close()
    assert future.done()
    world.release()
    world.hold = False
    assert world.elect() != leader


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (SESSION_TRANSITION, b""),
        (SESSION_TRANSITION, b"x"),
        (SESSION_TRANSITION, b"\xff" * 40),
        (SESSION_OPEN, b""),
        (SESSION_OPEN, b"\0" * 8 + b"\xff"),
        (SESSION_OPEN, b"\xff" * 8),
        (CONFIGURATION, b"\xc1"),
        (TRANSITION, b"\xc1"),
        (200, b"\xc1"),
    ],
)
@pytest.mark.parametrize("machine", [Counter, type("BatchCounter", (Batching, Counter), {})])
def test_an_entry_that_cannot_be_decoded_stops_no_replica_also_not_at_a_restart(
    core: Any, machine: Any, kind: int, payload: bytes
) -> None:
    world = World(core, machine=machine)
    leader = world.elect()
    world.raft(leader).propose(kind, payload)
    assert world.result(world.propose(leader, {"add": 1})) == 1
    world.until(lambda: all(world.machines[id].value == 1 for id in IDS))
    for id in IDS:
        world.boot(id)
    assert world.result(world.propose(world.elect(), {"add": 1})) == 2
    world.until(lambda: all(world.machines[id].value == 2 for id in IDS))
    sessions = [world.nodes[id].drivers[GROUP].sessions.snapshot() for id in IDS]
    assert sessions[0] == sessions[1] == sessions[2]
