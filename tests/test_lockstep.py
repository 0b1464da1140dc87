"""The rules of both cores in lockstep: any operation in any order, garbage included, gives the same bytes and refusals.

Two ways to go: one replica that is told anything, and a whole group whose messages are delivered, lost, repeated and
damaged in any order, so that elections, repairs and snapshots do happen.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import load_core
from raftplug.constants import (
    APPEND,
    APPEND_RESPONSE,
    HIGHEST,
    LEADER,
    LIMIT,
    PRE_CANDIDATE,
    PRE_VOTE_RESPONSE,
    SNAPSHOT,
    TRANSITION,
    VOTE_RESPONSE,
)
from raftplug.errors import InvariantViolated, RaftplugError
from rules import ELECTION, HEARTBEAT, Disk, Net

LOCKSTEP = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None, max_examples=150
)
FIELDS = ("kind", "term", "index", "log_term", "commit", "context", "hint", "flag")
PROGRESS = (
    "peer",
    "match",
    "next",
    "state",
    "pending_snapshot",
    "commit",
    "asked",
    "round",
    "since",
    "doubted",
    "lost",
    "contact",
    "sent",
    "paused",
)


def message_bytes(message: Any) -> Any:
    return None if message is None else (message.peer, message.encode())


def all_of(raft: Any) -> dict[str, Any]:
    """Everything public of a replica's rules, in a form that can be compared across cores."""
    log = raft.log
    return {
        **{
            name: getattr(raft, name)
            for name in ("id", "term", "vote", "role", "leader", "commit", "stable", "now", "contact", "writing")
        },
        "snapshot": (raft.snapshot_index, raft.snapshot_term),
        "installing": message_bytes(raft.installing),
        "configuration": raft.configuration.plain(),
        "log": (log.base_index, log.base_term, log.base_check, log.last_index, log.last_term),
        "entries": log.slice(log.base_index + 1, log.last_index + 1) if len(log) else b"",
        "progress": [(peer, [getattr(each, name) for name in PROGRESS]) for peer, each in raft.progress.items()],
        "deadline": raft.deadline(),
        "applicable": raft.applicable(),
    }


def ready_of(ready: Any) -> tuple[Any, ...]:
    return (
        [message_bytes(message) for message in ready.messages],
        (ready.write, ready.term, ready.vote, ready.first, ready.block),
        message_bytes(ready.snapshot),
        (ready.reads, ready.failed_reads, ready.truncated),
    )


def outcome(call: Any, *arguments: Any) -> Any:
    """What a call gives, or the type and text of its exception."""
    try:
        result = call(*arguments)
    except Exception as error:
        return type(error).__name__, str(error)
    return ready_of(result) if hasattr(result, "failed_reads") else result


# ------------------------------------------------------------ one replica that is told anything
#
# Any value, of the types that the signatures name: a str where `bytes` stands is mypy's to refuse.

small = st.integers(0, 6)
number = st.one_of(small, small, small, st.sampled_from([9, 255, 1 << 32, HIGHEST - 1, HIGHEST, LIMIT - 1]))
peer = st.sampled_from([1, 2, 3, 4, 5, "x", None])
# Entries: their terms, where a bit is turned over (or nowhere), and whether what is there is cut short.
entries = st.one_of(
    st.just(None),
    st.lists(st.integers(1, 4), min_size=1, max_size=4).map(sorted),
    st.tuples(st.lists(st.integers(0, 6), min_size=1, max_size=3), st.integers(0, 80)),
    st.binary(max_size=60),
)
operation = st.one_of(
    *[
        st.tuples(
            st.just("step"), st.integers(1, 7), st.lists(number, min_size=6, max_size=6), st.booleans(), peer, entries
        )
    ]
    * 4,
    st.tuples(
        st.just("likely"), st.integers(1, 7), st.lists(small, min_size=4, max_size=4), st.booleans(), peer, entries
    ),
    *[
        st.tuples(
            st.just("likely"), st.integers(1, 7), st.lists(small, min_size=4, max_size=4), st.booleans(), peer, entries
        )
    ]
    * 8,
    *[st.tuples(st.just("lead"))] * 4,
    *[st.tuples(st.just("acknowledge"), st.sampled_from([2, 3]), st.booleans())] * 3,
    st.tuples(st.just("kind"), st.sampled_from([0, 8, 32, 33, -1])),
    st.tuples(st.just("propose"), st.sampled_from([0, 1, 4, 255, 256, -1]), st.binary(max_size=8)),
    st.tuples(st.just("propose"), st.just(1), st.sampled_from([b"", b"x"])),
    st.tuples(st.just("read"), st.integers(0, 9)),
    st.tuples(st.just("resign")),
    *[st.tuples(st.just("elapse"), st.sampled_from([1, HEARTBEAT, ELECTION, 2 * ELECTION, 3 * ELECTION]))] * 3,
    st.tuples(st.just("tick"), st.sampled_from([-(1 << 62), -1, 0, 1, 1 << 40, 1 << 61])),
    st.tuples(st.just("set_time"), st.integers(-5, 1 << 50)),
    *[st.tuples(st.just("ready"), st.booleans())] * 4,
    *[st.tuples(st.just("persisted"))] * 3,
    *[st.tuples(st.just("settle"))] * 3,
    st.tuples(st.just("snapshot_stored"), number, st.sampled_from([0, 1, 2, 9, 1 << 40])),
    st.tuples(st.just("set_configuration"), st.sampled_from([(1, 2, 3), (1,), (2, 3), (1, 2, 3, 4, 5)])),
)
starts = st.tuples(
    st.sampled_from([(1,), (1, 2), (1, 2, 3), (1, 2, 3), (1, 2, 3), (1, 2, 3, 4, 5), (2, 3)]),
    st.sampled_from([(), (), (), (1, 2), (2, 3)]),
    st.lists(st.integers(0, 4), max_size=5).map(sorted),
    st.sampled_from([0, 0, 0, 1, 3, HIGHEST - 1, HIGHEST]),
    st.sampled_from([None, None, 1, 2]),
    st.sampled_from([(65536, 262144), (60, 100), (1, 1)]),
    st.integers(0, ELECTION),
)


class One:
    """One replica on one core."""

    def __init__(self, core: Any, start: Any) -> None:
        voters, outgoing, terms, term, vote, (append_bytes, window), drawn = start
        self.core = core
        log = core.Log()
        for each in terms:
            log.append(each, TRANSITION, b"old")
        self.raft = core.Raft(
            1,
            core.Configuration(voters, outgoing),
            log,
            log.last_term + term if term < 9 else term,
            vote,
            1_000_000,
            ELECTION,
            HEARTBEAT,
            lambda bound: min(drawn, bound),
            append_bytes,
            window,
        )

    def do(self, operation: tuple[Any, ...]) -> Any:
        name, *arguments = operation
        if hasattr(self, name):
            return outcome(getattr(self, name), *arguments)
        return outcome(getattr(self.raft, name), *arguments)

    def step(self, kind: int, numbers: list[int], flag: bool, peer: Any, entries: Any) -> Any:
        term, index, log_term, commit, context, hint = numbers
        data = self.block(entries, index, log_term)
        message = self.core.Message(kind, term, index, log_term, commit, context, hint, flag, data)
        return self.raft.step(message, peer)

    def likely(self, kind: int, numbers: list[int], flag: bool, peer: Any, entries: Any) -> Any:
        """A message that fits where the replica is: its term or the next one, an index of its log."""
        log = self.raft.log
        term = self.raft.term + (numbers[0] == 6 or kind == 2)
        index = max(0, log.last_index - numbers[1]) if numbers[1] < 6 else log.last_index + 1
        log_term = log.term_at(index) if numbers[2] < 5 else numbers[2]
        hint = max(index, log.last_index - numbers[3]) if kind == APPEND_RESPONSE and flag else numbers[3]
        numbers = [term, index, max(0, log_term), index + numbers[3], numbers[3], hint]
        if kind == APPEND_RESPONSE and self.raft.role == LEADER and peer in self.raft.progress and numbers[1] % 2:
            numbers[1] = self.raft.progress[peer].next - 1
        return self.step(kind, numbers, flag, peer, entries)

    def lead(self) -> Any:
        """All others elect it."""
        seen = [outcome(self.elapse, 3 * ELECTION), outcome(self.settle)]
        for kind in (PRE_VOTE_RESPONSE, VOTE_RESPONSE):
            for peer in (2, 3, 4, 5):
                message = self.core.Message(kind, self.raft.term + (self.raft.role == PRE_CANDIDATE), flag=True)
                seen.append(outcome(self.raft.step, message, peer))
            seen.append(outcome(self.settle))
        return seen

    def acknowledge(self, peer: int, last: bool) -> Any:
        """The answer that a leader waits for: a peer has all, or all but what the leader sent last."""
        log = self.raft.log
        index = log.last_index if last else max(log.last_index - 1, 0)
        message = self.core.Message(APPEND_RESPONSE, self.raft.term, index, hint=log.last_index, context=1, flag=True)
        return self.raft.step(message, peer)

    def block(self, entries: Any, index: int, log_term: int) -> bytes:
        """Entries that continue the replica's log at `index`, perhaps with one bit turned over."""
        if entries is None or isinstance(entries, bytes):
            return entries or b""
        terms, position = entries if isinstance(entries, tuple) else (entries, None)
        check = self.raft.log.check_at(index)
        try:
            log = self.core.Log(index, 0, max(0, check))
            for each in sorted(terms):
                log.append(max(each, log_term if each < log_term < 7 else each), TRANSITION, b"new %d" % each)
        except RaftplugError:
            return b"no log"
        data = log.slice(index + 1, log.last_index + 1)
        if position is not None and position < len(data):
            data = data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]
        return data

    def kind(self, kind: int) -> Any:
        message = self.core.Message(APPEND, self.raft.term)
        message.kind = kind
        return self.raft.step(message, None)

    def elapse(self, microseconds: int) -> Any:
        return self.raft.tick(min(self.raft.now + microseconds, 1 << 62))

    def settle(self) -> Any:
        """Turns until nothing is left to write."""
        seen = []
        for _ in range(9):
            ready = self.raft.ready()
            seen.append(ready_of(ready))
            if not self.raft.writing:
                break
            self.raft.persisted()
        return seen

    def set_configuration(self, voters: tuple[int, ...]) -> Any:
        return self.raft.set_configuration(self.core.Configuration(voters))


@given(start=starts, script=st.lists(operation, min_size=25, max_size=60))
@LOCKSTEP
def test_a_replica_that_is_told_anything_is_the_same_on_both_cores(
    both_cores: tuple[SimpleNamespace, SimpleNamespace], start: Any, script: list[tuple[Any, ...]]
) -> None:
    first, second = (One(core, start) for core in both_cores)
    assert all_of(first.raft) == all_of(second.raft)
    for each in script:
        a, b = first.do(each), second.do(each)
        assert a == b, each
        assert all_of(first.raft) == all_of(second.raft), each


# --------------------------------------------------------------------- a whole group

group_operation = st.one_of(
    *[st.tuples(st.just("deliver"), st.integers(0, 40))] * 12,
    *[st.tuples(st.just("all"))] * 4,
    st.tuples(st.just("lose"), st.integers(0, 40)),
    st.tuples(st.just("repeat"), st.integers(0, 40)),
    st.tuples(st.just("damage"), st.integers(0, 40), st.sampled_from(FIELDS[1:]), number),
    *[st.tuples(st.just("elapse"), st.integers(1, 3), st.sampled_from([HEARTBEAT, ELECTION, 2 * ELECTION]))] * 4,
    *[st.tuples(st.just("beat"))] * 3,
    *[st.tuples(st.just("elect"), st.integers(1, 3))] * 2,
    *[st.tuples(st.just("propose"), st.integers(1, 3), st.integers(0, 300))] * 3,
    st.tuples(st.just("read"), st.integers(1, 3), st.integers(0, 9)),
    st.tuples(st.just("resign"), st.integers(1, 3)),
    st.tuples(st.just("slow"), st.integers(1, 3)),
    *[st.tuples(st.just("sync"), st.integers(1, 3))] * 3,
    st.tuples(st.just("crash"), st.integers(1, 3)),
    st.tuples(st.just("cut"), st.integers(1, 3)),
    st.tuples(st.just("heal")),
    *[st.tuples(st.just("compact"), st.integers(1, 3), st.integers(0, 2))] * 2,
)


class Group(Net):
    """Three replicas on one core; what each operation does is told as data."""

    def __init__(self, core: Any, limits: tuple[int, int], logs: list[list[int]]) -> None:
        self.told: list[Any] = []
        disks = {id: Disk(core, terms) for id, terms in enumerate(logs, 1)}
        super().__init__(core, 3, disks, max_append_bytes=limits[0], window_bytes=limits[1])

    def attempt(self, id: int, action: Any, *arguments: Any) -> None:
        self.told.append(outcome(action, *arguments))
        self.pump(id)

    def pump(self, id: int) -> list[Any]:
        raft = self.rafts[id]
        while True:
            ready = raft.ready()
            self.told.append(ready_of(ready))
            self.sent += [(id, message.peer, message) for message in ready.messages]
            if ready.write:
                self.writing[id] = ready
            if id not in self.writing or id in self.slow:
                return []
            self.sync(id, pump=False)

    def do(self, operation: tuple[Any, ...]) -> Any:
        name, *arguments = operation
        self.told = []
        getattr(self, f"do_{name}")(*arguments)
        return self.told, {id: all_of(raft) for id, raft in self.rafts.items()}

    def do_deliver(self, choice: int) -> None:
        if not self.sent:
            return
        source, target, message = self.sent.pop(choice % len(self.sent))
        if {source, target} & self.cut:
            return
        if message.kind == SNAPSHOT:
            check = self.disks[source].log.check_at(message.index)
            message.hint, message.data = max(check, 0), b"state"
        message = self.core.Message.decode(message.encode())
        self.rafts[target].set_time(self.now)
        self.attempt(target, self.rafts[target].step, message, source)

    def do_all(self) -> None:
        for _ in range(30):
            self.do_deliver(0)

    def do_lose(self, choice: int) -> None:
        if self.sent:
            self.sent.pop(choice % len(self.sent))

    def do_repeat(self, choice: int) -> None:
        if self.sent:
            self.sent.append(self.sent[choice % len(self.sent)])

    def do_damage(self, choice: int, field: str, value: int) -> None:
        """One field is another number: what no check of a frame would let through, and what must not differ even so."""
        if self.sent:
            source, target, old = self.sent[choice % len(self.sent)]
            message = self.core.Message.decode(old.encode())
            setattr(message, field, bool(value % 2) if field == "flag" else value)
            self.sent.append((source, target, message))
            self.do_deliver(len(self.sent) - 1)

    def do_elapse(self, id: int, microseconds: int) -> None:
        self.now += microseconds
        self.attempt(id, self.rafts[id].tick, self.now)

    def do_elect(self, id: int) -> None:
        """Without trouble on the way, that is."""
        self.cut.clear()
        self.do_elapse(id, 2 * ELECTION)
        self.do_all()

    def do_beat(self) -> None:
        self.now += HEARTBEAT
        for id, raft in self.rafts.items():
            if raft.role == LEADER:
                self.attempt(id, raft.tick, self.now)

    def do_propose(self, id: int, size: int) -> None:
        self.attempt(id, self.rafts[id].propose, TRANSITION, b"x" * size)

    def do_read(self, id: int, request: int) -> None:
        self.attempt(id, self.rafts[id].read, request)

    def do_resign(self, id: int) -> None:
        self.attempt(id, self.rafts[id].resign)

    def do_slow(self, id: int) -> None:
        self.slow.symmetric_difference_update({id})
        self.pump(id)

    def do_sync(self, id: int) -> None:
        if id in self.writing:
            self.sync(id, pump=False)
            self.pump(id)

    def do_crash(self, id: int) -> None:
        try:
            self.boot(id)
        except InvariantViolated as error:
            self.told.append(str(error))

    def do_cut(self, id: int) -> None:
        self.cut.add(id)

    def do_heal(self) -> None:
        self.cut.clear()

    def do_compact(self, id: int, keep: int) -> None:
        raft = self.rafts[id]
        self.attempt(id, raft.snapshot_stored, raft.applicable(), keep)


@given(
    limits=st.sampled_from([(65536, 262144), (100, 200), (1, 1)]),
    logs=st.lists(st.lists(st.integers(1, 3), max_size=4).map(sorted), min_size=3, max_size=3),
    script=st.lists(group_operation, min_size=40, max_size=100),
)
@LOCKSTEP
def test_a_group_is_the_same_on_both_cores(
    both_cores: tuple[SimpleNamespace, SimpleNamespace],
    limits: tuple[int, int],
    logs: list[list[int]],
    script: list[tuple[Any, ...]],
) -> None:
    first, second = (Group(core, limits, logs) for core in both_cores)
    for each in script:
        stops = []
        for group in (first, second):
            try:
                stops.append(group.do(each))
            except (RaftplugError, IndexError) as error:  # What must stop a replica ends the story, on both alike.
                stops.append((type(error).__name__, str(error)))
        assert stops[0] == stops[1], each
        if isinstance(stops[0][0], str):
            return


# ------------------------------------------------------------------- the last lines of defence


def test_what_no_message_can_cause_is_still_refused() -> None:
    """Guards that stand behind other guards, on the core where a test can get behind those."""
    core = load_core("python")
    net = Net(core, 3)
    leader = net.elect(1)
    with pytest.raises(InvariantViolated, match="committed"):
        leader._truncate(1)
    leader.log.compact(1)
    with pytest.raises(InvariantViolated, match="compacted beyond"):
        leader._send_snapshot(leader.progress[2])


def test_what_waits_for_the_disk_is_not_sent_in_another_term() -> None:
    core = load_core("python")
    net = Net(core, 3)
    net.slow = {1}
    raft = net.rafts[1]
    net.step(1, 2, net.message(3, 1))
    raft._held[0].term = 0
    assert net.sync(1) == []
