"""Small-scope exhaustion: every interleaving of a small group over the real rules, breadth first, up to a bound.

    python tests/exhaustion.py --states 1000000 [--json]

Three replicas run `Raft` of the Python core, unchanged.  In each state any one of these may happen:

* a message in flight arrives, in any order; once in a run (`--faults`) one is lost, or delivered and still in flight;
* an election timer runs out, while that can lead to no term above `--terms`;
* a follower stops hearing its leader (time passes, and nobody campaigns yet);
* a leader's clock goes on by half an election timeout: heartbeats, and each second time check-quorum;
  `--beats` times in a run;
* a client proposes to a leader, `--entries` times in a run;
* the write that is under way on a disk becomes durable;
* `--compactions` times in a run (0 unless asked) a replica stores a snapshot and compacts its log behind it;
* once in a run (`--crashes`) a replica crashes, before or after the write that is under way, and starts from its disk.

After each of them this must hold, of the whole run and not only of what is in memory: election safety, log matching,
leader completeness, state machine safety; a committed entry is on the disks of a majority; no vote, term or
acknowledgement leaves that is not on disk; on one replica term and commit index never go back but by a crash, and a
vote never changes within its term, even by a crash.

Breadth first from an empty group alone would spend a million states on first elections.  So the search begins in every
state of one run at once: an election, a transition committed, another that reaches nobody, a second leader that
replaces it (`--start` leaves these out).  A bound of depth D is then: any D events in any order, after any point of
that run.  `--quick` goes deeper by leaving out two kinds of interleavings: each write is durable at once, and a
campaign begins by an exchange of pre-votes with one peer that nothing comes between.

What makes it smaller, and loses nothing: an answer that its receiver must ignore whatever still happens (a vote of a
term that its disk has left, say) is forgotten at once; in the first state of all, only replica 1 acts.

What makes it small, and what it therefore does not cover: identical messages in flight are one; times are counted in
halves of election timeouts (a heartbeat is one, and there is no random delay); each input is a turn of its own; no
reads or changes of members.  So the result is "checked to this bound", and nothing more.

How it is fast: a replica's rules depend on nothing but its own state and the input.  Each distinct local state and
message gets a number, each (local state, input) is computed once by the rules, and the search itself handles numbers.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
import time
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

from raftplug import core as cores
from raftplug.constants import (
    APPEND_RESPONSE,
    CANDIDATE,
    LEADER,
    PRE_CANDIDATE,
    PRE_VOTE,
    PRE_VOTE_RESPONSE,
    SNAPSHOT,
    TRANSITION,
    VOTE,
    VOTE_RESPONSE,
)


def copy(thing: Any) -> Any:
    """Another object with the same attributes: those of the core refuse `copy.copy`, since they would share parts."""
    made = object.__new__(type(thing))
    for each in type(thing).__mro__:
        for name in getattr(each, "__slots__", ()):
            slot = each.__dict__[name]
            slot.__set__(made, slot.__get__(thing))
    return made


NODES = (1, 2, 3)
MAJORITY = 2
ELECTION = 1_000
HEARTBEAT = ELECTION // 2
LONG_AGO = 100 * ELECTION  # where each replica's clock stands between two inputs

# What may happen.
ARRIVE, LOSE, REPEAT, CAMPAIGN, LAPSE, LEAD, PROPOSE, SYNC, CRASH, CRASH_DURABLE, COMPACT, ASK = range(12)
VERBS = (
    "arrives",
    "is lost",
    "arrives and stays in flight",
    "election timer runs out",
    "hears its leader no more",
    "clock goes on by a heartbeat",
    "is given a transition",
    "has written",
    "crashes before its write",
    "crashes after its write",
    "has stored a snapshot and compacts its log",
    "exchanges pre-votes with",
)


class Violation(Exception):
    """A property does not hold."""


class Disk(NamedTuple):
    """What is durable of one replica."""

    term: int
    vote: int | None
    entries: tuple[tuple[int, bytes], ...]  # of its snapshot, and then of its log
    base: int = 0  # how many of them the snapshot stands for


class Local(NamedTuple):
    """One replica: its rules, its disk, the write that is under way (or None), and what the checks look at."""

    raft: Any
    disk: Disk
    writing: Any
    term: int
    role: int
    commit: int
    log: tuple[tuple[int, bytes], ...]


class Budget(NamedTuple):
    """What a run has used up, and what must be remembered of it to check it."""

    crashes: int
    faults: int
    proposals: int
    beats: int
    compactions: int
    leaders: tuple[int, ...]  # of each term, 0 for none
    committed: tuple[tuple[int, bytes], ...]


class Step(NamedTuple):
    """What an input does to a replica: its next local state, and the numbers of what it sends; or what it violates."""

    local: int
    sent: tuple[int, ...]
    violation: str


State = tuple[int, ...]  # budget, local states of 1, 2 and 3, then the messages in flight, in order


class Exhaustion:
    """One search.

    Args:
        terms, entries, crashes, faults, beats, compactions: the bounds.
        rules: the class `Raft` of the Python core, or one that is to be shown wrong.
        from_start: begin with an empty group only.
        quick: quick disks and quick pre-votes.
    """

    def __init__(
        self,
        terms: int = 2,
        entries: int = 2,
        crashes: int = 1,
        faults: int = 1,
        beats: int = 2,
        compactions: int = 0,
        rules: Any = None,
        from_start: bool = False,
        quick: bool = False,
    ) -> None:
        self.core = cores.load("python")
        self.rules = rules or self.core.Raft
        self.terms, self.entries, self.crashes, self.faults, self.beats = terms, entries, crashes, faults, beats
        self.compactions = compactions
        self.locals: list[Local] = []
        self.local_numbers: dict[Any, int] = {}
        self.messages: list[tuple[int, int, Any]] = []
        self.message_numbers: dict[tuple[int, int, bytes], int] = {}
        self.budgets: list[Budget] = []
        self.budget_numbers: dict[Budget, int] = {}
        self.steps: dict[tuple[int, int, int], Step] = {}
        self.after: dict[tuple[int, int, int], int] = {}
        self.matching: set[tuple[int, int]] = set()
        self.depth = 0
        self.exhausted = False
        self.transitions = 0
        start = [self.number_local(id, *self.boot(id, Disk(0, None, ()))) for id in NODES]
        budget = self.number_budget(Budget(0, 0, 0, 0, 0, (0,) * (terms + 1), ()))
        self.start: State = (budget, *start)
        self.parents: dict[State, tuple[State, int, int] | None] = {self.start: None}
        self.ignored: dict[tuple[int, int], bool] = {}
        self.from_start, self.quick = from_start, quick

    # ------------------------------------------------------------- one replica

    def boot(self, id: int, disk: Disk) -> tuple[Any, Disk, Any, Any]:
        """A replica as it starts from its disk."""
        log = self.core.Log()
        for term, payload in disk.entries:
            log.append(term, TRANSITION if payload else 0, payload)
        log.compact(disk.base)
        configuration = self.core.Configuration(NODES)
        raft = self.rules(
            id, configuration, log, disk.term, disk.vote, LONG_AGO, ELECTION, HEARTBEAT, _no_delay, 65536, 262144
        )
        return raft, disk, None, disk.entries[: disk.base]

    def clone(self, raft: Any) -> Any:
        """Another Raft in the same state, which shares with the first only what neither changes."""
        other = object.__new__(type(raft))
        fields = other.__dict__
        fields.update(raft.__dict__)
        for name, value in raft.__dict__.items():
            if type(value) in (list, set):
                fields[name] = value.copy()
        log = copy(raft.log)
        log._entries, log._terms, log._ends = log._entries[:], log._terms[:], log._ends[:]
        fields["log"] = log
        fields["progress"] = {peer: copy(each) for peer, each in raft.progress.items()}
        for progress in other.progress.values():
            progress._ends = progress._ends[:]
        return other

    def number_local(self, id: int, raft: Any, disk: Disk, writing: Any, compacted: tuple[Any, ...]) -> int:
        """The number of a local state; its clock is set back, so that the same situation later is the same state."""
        late = raft.now - LONG_AGO
        raft.now = LONG_AGO
        raft.contact = max(raft.contact - late, LONG_AGO - ELECTION)
        raft._election_deadline -= late
        leads = raft.role == LEADER
        raft._heartbeat_deadline = raft._heartbeat_deadline - late if leads else 0
        raft._quorum_deadline = raft._quorum_deadline - late if leads else 0
        if leads:
            raft._election_deadline = 0
        elif raft.leader is None:
            raft.contact = LONG_AGO - ELECTION  # It counts only together with a leader.
            raft._election_deadline = LONG_AGO + ELECTION
        if raft.role not in (PRE_CANDIDATE, CANDIDATE):
            raft._votes = set()  # Emptied at the next campaign anyway.
        for progress in raft.progress.values():
            progress.contact = max(progress.contact - late, LONG_AGO - ELECTION)
            progress.sent = max(progress.sent - late, LONG_AGO - 2 * ELECTION)
            progress.in_flight()  # Forgets what is acknowledged.
        key = (id, _frozen(raft), disk, _frozen_ready(writing), compacted)
        number = self.local_numbers.get(key)
        if number is None:
            number = self.local_numbers[key] = len(self.locals)
            log = raft.log
            here = log.entries(log.base_index + 1, log.last_index + 1) if len(log) else ()
            entries = (*compacted, *((term, payload) for _, term, payload in here))
            assert len(entries) == log.last_index
            self.locals.append(Local(raft, disk, writing, raft.term, raft.role, raft.commit, entries))
        return number

    def number_message(self, source: int, target: int, message: Any) -> int:
        key = (source, target, message.encode())
        number = self.message_numbers.get(key)
        if number is None:
            number = self.message_numbers[key] = len(self.messages)
            self.messages.append((source, target, message))
        return number

    def number_budget(self, budget: Budget) -> int:
        number = self.budget_numbers.get(budget)
        if number is None:
            number = self.budget_numbers[budget] = len(self.budgets)
            self.budgets.append(budget)
        return number

    def step(self, id: int, number: int, verb: int, message: int) -> Step:
        """What an input does to a replica; computed once."""
        key = (number, verb, message)
        found = self.steps.get(key)
        if found is None:
            try:
                found = self.compute(id, self.locals[number], verb, message)
            except Exception as error:  # The rules found it themselves, or broke down.
                found = Step(number, (), f"{type(error).__name__}: {error}")
            self.steps[key] = found
        return found

    def compute(self, id: int, local: Local, verb: int, message: int) -> Step:
        disk, writing = local.disk, local.writing
        if verb in (CRASH, CRASH_DURABLE):
            if verb == CRASH_DURABLE:
                disk = self.written(disk, writing)
            return Step(self.number_local(id, *self.boot(id, disk)), (), "")
        raft = self.clone(local.raft)
        compacted = local.log[: raft.log.base_index]
        if verb == ARRIVE:
            source, _, original = self.messages[message]
            arrived = copy(original)
            raft.step(arrived, source)
            if raft.installing is arrived:
                compacted = _state(arrived.data)
        elif verb == CAMPAIGN:
            raft.tick(raft._election_deadline)
        elif verb == LAPSE:
            raft.set_time(raft.contact + ELECTION)
        elif verb == LEAD:
            raft.tick(raft.now + HEARTBEAT)
        elif verb == COMPACT:
            index = raft.applicable()
            raft.snapshot_stored(index, 0)
            disk = disk._replace(base=index)
        elif verb == PROPOSE:
            raft.propose(TRANSITION, b"%d" % message)
        else:
            disk = self.written(disk, writing)
            raft.persisted()
            writing = None
        if verb == COMPACT:
            compacted = local.log[: raft.log.base_index]
        messages = []
        while True:
            ready = raft.ready()
            messages += ready.messages
            if not ready.write:
                break
            if not self.quick:
                writing = ready
                break
            disk = self.written(disk, ready)
            raft.persisted()
        for each in messages:
            if each.kind == SNAPSHOT:
                each.hint, each.data = raft.log.check_at(each.index), repr(compacted[: each.index]).encode()
        sent = tuple(sorted({self.number_message(id, each.peer, each) for each in messages}))
        after = self.number_local(id, raft, disk, writing, compacted)
        new = self.locals[after]
        problem = ""
        if new.term < local.term or new.commit < local.commit:
            problem = f"replica {id}: its term or its commit index goes back"
        elif new.raft.term == local.raft.term and local.raft.vote not in (None, new.raft.vote):
            problem = f"replica {id} takes its vote back"
        elif disk.term < local.disk.term or (disk.term == local.disk.term and local.disk.vote not in (None, disk.vote)):
            problem = f"replica {id}: its disk forgets its term or vote"
        for each in messages:
            problem = problem or _promise(id, each, disk, new.log)
        return Step(after, sent, problem)

    def written(self, disk: Disk, ready: Any) -> Disk:
        entries, base = disk.entries, disk.base
        if ready.snapshot is not None:
            entries, base = _state(ready.snapshot.data), ready.snapshot.index
        if ready.first:
            log = self.core.Log(ready.first - 1)
            block, position, fresh = ready.block, 0, []
            while position < len(block):
                length = int.from_bytes(block[position + 17 : position + 21], "little")
                term = int.from_bytes(block[position + 8 : position + 16], "little")
                fresh.append((term, block[position + 25 : position + 25 + length]))
                position += 25 + length
            assert ready.first <= len(entries) + 1 and log.base_index == ready.first - 1, "a write leaves a gap"
            entries = (*entries[: ready.first - 1], *fresh)
        return Disk(ready.term, ready.vote, entries, base)

    # -------------------------------------------------------------- the group

    def moves(self, state: State) -> Iterator[tuple[int, int]]:
        """All that may happen: pairs (verb, message or replica)."""
        if state == self.start:
            yield (ASK, 12) if self.quick else (CAMPAIGN, 1)
            return
        budget = self.budgets[state[0]]
        for message in state[4:]:
            yield ARRIVE, message
            if budget.faults < self.faults:
                yield LOSE, message
                yield REPEAT, message
        for id in NODES:
            local = self.locals[state[id]]
            if local.role == LEADER:
                if budget.beats < self.beats:
                    yield LEAD, id
                if budget.proposals < self.entries:
                    yield PROPOSE, id
            else:
                if local.term < self.terms:
                    if self.quick:
                        for peer in NODES:
                            if peer != id:
                                yield ASK, 10 * id + peer
                    else:
                        yield CAMPAIGN, id
                if local.raft.leader is not None and local.raft.now < local.raft.contact + ELECTION:
                    yield LAPSE, id
            if local.writing is not None:
                yield SYNC, id
            if budget.compactions < self.compactions and local.raft.applicable() > local.raft.snapshot_index:
                yield COMPACT, id
            if budget.crashes < self.crashes:
                yield CRASH, id
                if local.writing is not None:
                    yield CRASH_DURABLE, id

    def move(self, state: State, verb: int, what: int) -> State:
        """The state that follows.

        Raises:
            Violation: a property does not hold in it.
        """
        if verb == ASK:
            return self.ask(state, *divmod(what, 10))
        flight: tuple[int, ...] = state[4:]
        number, argument = state[0], 0
        if verb <= REPEAT:
            id = self.messages[what][1]
            if verb != REPEAT:
                position = flight.index(what)
                flight = flight[:position] + flight[position + 1 :]
            if verb != ARRIVE:
                number = self.spend(number, 1)
                if verb == LOSE:
                    return (number, *state[1:4], *flight)
            verb, argument = ARRIVE, what
        else:
            id = what
            if verb == PROPOSE:
                argument = self.budgets[number].proposals + 1
                number = self.spend(number, 2)
            elif verb == LEAD:
                number = self.spend(number, 3)
            elif verb == COMPACT:
                number = self.spend(number, 4)
            elif verb >= CRASH:
                number = self.spend(number, 0)
        step = self.step(id, state[id], verb, argument)
        if step.violation:
            raise Violation(step.violation)
        ids = [*state[1:4]]
        ids[id - 1] = step.local
        if step.sent:
            flight = tuple(sorted({*flight, *step.sent}))
        flight = tuple([each for each in flight if not self.is_ignored(ids, each)])
        if step.local == state[id]:
            return (number, *ids, *flight)
        self.check(id, ids)
        number = self.remember(number, id, step.local, ids)
        return (number, *ids, *flight)

    def ask(self, state: State, id: int, peer: int) -> State:
        """A campaign whose pre-vote one peer answers at once; the other's answer is lost, or is the same."""
        after = self.move(state, CAMPAIGN, id)
        for source, target, kind in ((id, peer, PRE_VOTE), (peer, id, PRE_VOTE_RESPONSE)):
            for each in after[4:]:
                if self.messages[each][:2] == (source, target) and self.messages[each][2].kind == kind:
                    after = self.move(after, ARRIVE, each)
                    break
        kinds = (PRE_VOTE, PRE_VOTE_RESPONSE)
        return (*after[:4], *[each for each in after[4:] if self.messages[each][2].kind not in kinds])

    def is_ignored(self, ids: list[int], message: int) -> bool:
        """Whether a message is an answer that its receiver will ignore, whatever happens before it arrives."""
        local = ids[self.messages[message][1] - 1]
        found = self.ignored.get((local, message))
        if found is None:
            each, receiver = self.messages[message][2], self.locals[local]
            term = receiver.disk.term  # The receiver's term can never be below it again.
            if each.kind == PRE_VOTE_RESPONSE:
                found = each.term <= term
            elif each.kind in (VOTE_RESPONSE, APPEND_RESPONSE):
                wanted = (CANDIDATE,) if each.kind == VOTE_RESPONSE else (CANDIDATE, LEADER)
                found = each.term < term or (each.term == term == receiver.term and receiver.role not in wanted)
            else:
                found = False
            self.ignored[local, message] = found
        return found

    def spend(self, number: int, field: int) -> int:
        """The budget with one more crash (0), fault (1), proposal (2), leader's clock (3) or compaction (4)."""
        key = (number, -1, field)
        found = self.after.get(key)
        if found is None:
            budget = list(self.budgets[number])
            budget[field] += 1  # type: ignore[operator]
            found = self.after[key] = self.number_budget(Budget(*budget))  # type: ignore[arg-type]
        return found

    def check(self, id: int, ids: list[int]) -> None:
        """Log matching, of the replica that has moved with the two others (Ongaro 2014, figure 3.2)."""
        mine = ids[id - 1]
        for other in ids:
            if other != mine and (mine, other) not in self.matching:
                ours, theirs = self.locals[mine].log, self.locals[other].log
                same = True
                for a, b in zip(reversed(ours[: len(theirs)]), reversed(theirs[: len(ours)]), strict=True):
                    if a[0] == b[0]:
                        same = False
                    if not same and a != b:
                        raise Violation("log matching: the same index and term, and another log up to there")
                self.matching.add((mine, other))
                self.matching.add((other, mine))

    def remember(self, number: int, id: int, local: int, ids: list[int]) -> int:
        """The budget after a replica has moved: who has led and what is committed, checked against what was."""
        key = (number, id, local)
        found = self.after.get(key)
        if found is None:
            budget, new = self.budgets[number], self.locals[local]
            leaders, committed = budget.leaders, budget.committed
            if new.role == LEADER:
                if leaders[new.term] not in (0, id):
                    raise Violation(f"election safety: {leaders[new.term]} and {id} lead term {new.term}")
                leaders = (*leaders[: new.term], id, *leaders[new.term + 1 :])
            prefix = new.log[: new.commit]
            if prefix[: len(committed)] != committed[: len(prefix)]:
                raise Violation(f"state machine safety: {id} commits {prefix}, where {committed} is committed")
            if len(prefix) > len(committed):
                committed = prefix
            if (
                new.role == LEADER
                and committed
                and new.term >= committed[-1][0]
                and new.log[: len(committed)] != committed
            ):
                raise Violation(f"leader completeness: {id} leads term {new.term} without {committed}")
            found = self.number_budget(Budget(*budget[:5], leaders, committed))
            self.after[key] = found
        committed = self.budgets[found].committed
        if committed and found != number:
            size = len(committed)
            if sum(self.locals[each].disk.entries[:size] == committed for each in ids) < MAJORITY:
                raise Violation(f"{committed} is committed, and not on the disks of a majority")
            for each in ids:
                leader = self.locals[each]
                if leader.role == LEADER and leader.term >= committed[-1][0] and leader.log[:size] != committed:
                    raise Violation(f"leader completeness: the leader of term {leader.term} is without {committed}")
        return found

    def run(self, states: int, progress: Any = None) -> None:
        """Search until `states` distinct states are known, or there are no more.

        Raises:
            Violation: with the shortest way there, one event a line.
        """
        parents = self.parents
        if not self.from_start:
            self.follow_run()
        queue = deque(parents)
        ends, count = len(queue), 0  # how many of the queue's states are of the present depth
        while queue:
            state = queue.popleft()
            for verb, what in self.moves(state):
                self.transitions += 1
                try:
                    new = self.move(state, verb, what)
                except Violation as error:
                    raise Violation(f"{error}\n{self.way(state, verb, what)}") from None
                if new not in parents:
                    parents[new] = (state, verb, what)
                    queue.append(new)
                    if len(parents) >= states:
                        return
            count += 1
            if count == ends:
                self.depth, ends, count = self.depth + 1, len(queue), 0
            if progress is not None and not self.transitions & 0x3FF:
                progress(len(parents))
        self.exhausted = True

    def follow_run(self) -> None:
        """One run to begin in: 1 leads and commits, then is heard by nobody; 2 leads the next term, with 3."""
        state = self.start

        def go(verb: int, what: int) -> None:
            nonlocal state
            new = self.move(state, verb, what)
            if new not in self.parents:
                self.parents[new] = (state, verb, what)
            state = new

        def settle(alive: set[int]) -> None:
            while True:
                writing = [id for id in NODES if id in alive and self.locals[state[id]].writing is not None]
                arriving = [each for each in state[4:] if {*self.messages[each][:2]} <= alive]
                if writing:
                    go(SYNC, writing[0])
                elif arriving:
                    go(ARRIVE, arriving[0])
                else:
                    return

        def campaign(id: int, peer: int) -> None:
            go(ASK, 10 * id + peer) if self.quick else go(CAMPAIGN, id)

        campaign(1, 2)
        settle({1, 2, 3})
        if self.entries > 1:
            go(PROPOSE, 1)
            settle({1, 2, 3})
        if self.entries:
            go(PROPOSE, 1)
            settle({1})
        if self.terms > 1:
            go(LAPSE, 3)
            campaign(2, 3)
            settle({2, 3})
            settle({1, 2, 3})

    def way(self, state: State, verb: int, what: int) -> str:
        """How the search came to this event."""
        events = [(verb, what)]
        while True:
            parent = self.parents[state]
            if parent is None:
                break
            state = parent[0]
            events.append(parent[1:])
        return "\n".join(f"{number:3} {self.told(*each)}" for number, each in enumerate(reversed(events), 1))

    def told(self, verb: int, what: int) -> str:
        if verb <= REPEAT:
            source, target, message = self.messages[what]
            return f"{source}>{target} {VERBS[verb]}: {message!r}"
        if verb == ASK:
            return f"{what // 10} {VERBS[verb]} {what % 10}"
        return f"{what} {VERBS[verb]}"

    def report(self, seconds: float) -> dict[str, Any]:
        """Figures of the search."""
        return {
            "states": len(self.parents),
            "states_per_s": round(len(self.parents) / max(seconds, 1e-9)),
            "transitions": self.transitions,
            "depth": self.depth,
            "exhausted": self.exhausted,
            "local_states": len(self.locals),
            "messages": len(self.messages),
            "committed": max((len(each.committed) for each in self.budgets), default=0),
            "terms_led": max(sum(map(bool, each.leaders)) for each in self.budgets),
            "bound": {
                "nodes": len(NODES),
                "terms": self.terms,
                "entries": self.entries,
                "crashes": self.crashes,
                "faults": self.faults,
                "beats": self.beats,
                "compactions": self.compactions,
                "from": "start" if self.from_start else "run",
                "quick": self.quick,
            },
            "seconds": round(seconds, 1),
        }


def _promise(id: int, message: Any, disk: Disk, log: tuple[tuple[int, bytes], ...]) -> str:
    """What is wrong with a message that leaves now: it promises what is not on the disk.  Empty if nothing is."""
    if message.kind in (PRE_VOTE, PRE_VOTE_RESPONSE):
        return ""
    if message.term > disk.term:
        return f"replica {id} speaks of term {message.term} before it is on its disk"
    vote = {VOTE: id, VOTE_RESPONSE: message.peer}.get(message.kind) if message.flag or message.kind == VOTE else None
    if vote is not None and (message.term, vote) != (disk.term, disk.vote):
        return f"replica {id} gives a vote that is not on its disk"
    if message.kind == APPEND_RESPONSE and message.flag and disk.entries[: message.index] != log[: message.index]:
        return f"replica {id} acknowledges entry {message.index}, which is not on its disk"
    return ""


def _no_delay(bound: int) -> int:
    return 0


def _frozen(value: Any) -> Any:
    """A state in a form that can be hashed, of the same value for the same state."""
    if hasattr(value, "log"):
        return tuple(
            (name, _frozen(each))
            for name, each in sorted(value.__dict__.items())
            if name not in ("configuration", "_configurations", "_draw")
        )
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(each) for each in value)
    if isinstance(value, set):
        return tuple(sorted(value))
    if isinstance(value, dict):
        return tuple((key, _frozen(each)) for key, each in value.items())
    if hasattr(value, "encode") and not isinstance(value, str):
        return value.peer, value.encode()
    if hasattr(value, "base_index"):
        entries = value.slice(value.base_index + 1, value.last_index + 1) if len(value) else b""
        return value.base_index, value.base_term, value.base_check, entries
    if hasattr(value, "__slots__"):
        return tuple(_frozen(getattr(value, name)) for name in value.__slots__)
    return value


def _frozen_ready(ready: Any) -> Any:
    return None if ready is None else (ready.term, ready.vote, ready.first, ready.block, _frozen(ready.snapshot))


def _state(data: bytes) -> Any:
    """What a snapshot of this tool holds: the entries it stands for."""
    return ast.literal_eval(data.decode())


def main() -> None:
    parser = argparse.ArgumentParser(description="Small-scope exhaustion over the real rules, checked to a bound.")
    parser.add_argument("--states", type=int, default=1_000_000, help="stop at so many distinct states")
    parser.add_argument("--terms", type=int, default=2)
    parser.add_argument("--entries", type=int, default=2, help="transitions that are proposed; no-ops come on top")
    parser.add_argument("--crashes", type=int, default=1)
    parser.add_argument("--faults", type=int, default=1, help="losses and duplicates together")
    parser.add_argument("--beats", type=int, default=2, help="how often a leader's clock goes on")
    parser.add_argument("--compactions", type=int, default=0, help="snapshots that are stored")
    parser.add_argument("--start", action="store_true", help="begin with an empty group only")
    parser.add_argument(
        "--quick", action="store_true", help="quick disks, quick pre-votes: fewer interleavings, deeper"
    )
    parser.add_argument("--json", action="store_true", help="one object on the last line of stdout")
    options = parser.parse_args()
    search = Exhaustion(
        options.terms,
        options.entries,
        options.crashes,
        options.faults,
        options.beats,
        options.compactions,
        from_start=options.start,
        quick=options.quick,
    )
    began = time.monotonic()
    problem = ""
    with _bar(options.states) as update:
        try:
            search.run(options.states, update)
        except Violation as error:
            problem = str(error)
    report = search.report(time.monotonic() - began)
    report["violations"] = [problem] if problem else []
    if options.json:
        print(json.dumps(report))
    elif problem:
        print(problem)
    else:
        what = "all the states there are" if report["exhausted"] else "distinct states, breadth first; more lie beyond"
        print(
            f"checked to bound {report['states']:,} ({what}; complete to depth {report['depth']}), "
            f"{report['transitions']:,} transitions, {report['states_per_s']:,} states/s: no violation"
        )
    sys.exit(1 if problem else 0)


class _bar:
    """A progress bar on stderr if that is a terminal; plain without rich."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.shown: Any = None

    def __enter__(self) -> Any:
        if not sys.stderr.isatty():
            return None
        try:
            from rich.console import Console
            from rich.progress import Progress
        except ImportError:
            return lambda done: sys.stderr.write(f"\r{done:,} of {self.total:,} states")
        self.shown = Progress(console=Console(stderr=True))
        self.shown.start()
        task = self.shown.add_task("states", total=self.total)
        return lambda done: self.shown.update(task, completed=done)

    def __exit__(self, *error: object) -> None:
        if self.shown is not None:
            self.shown.stop()


if __name__ == "__main__":
    main()
