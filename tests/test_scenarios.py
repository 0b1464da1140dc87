"""Stories of the protocol as scripts, tests/scenarios/*.txt, each with the output that it must give on both cores.

A line at the margin is a command; the indented lines below it are what it must print; `#` begins a comment.  After a
change of the rules, or for a new script, let the outputs be written anew, and read the difference before you commit:

    RAFTPLUG_REWRITE_SCENARIOS=1 pytest tests/test_scenarios.py

Commands, where N, FROM and TO are replicas (`*` is any) and KIND is a kind of message, as the outputs name it:

    nodes COUNT [NAME=VALUE…]    start replicas 1 to COUNT; NAME is one of MEMBERS (1,2,3), or
                                 max_append_bytes, window_bytes, window_appends; who is named nowhere knows no
                                 members, like a node that waits to join
    disk N TERMS [term=T] [vote=V]   start N anew from a disk whose entries have these terms (`-`: none)
    draw N 250ms                 what N's random source gives: its election timeout is 500 ms more
    wait 100ms                   let time pass
    tick N                       let N look at the clock
    campaign N                   let N's election timer run out, and nobody else's
    heartbeat N                  wait 100ms, tick N
    lead N COUNT                 COUNT heartbeats of N, each delivered with all that it causes
    deliver [FROM TO] [KIND…]    deliver what is in flight and what that causes, until nothing of the kind is left
    next FROM TO [KIND…]         deliver the oldest one only
    drop, repeat, reverse FROM TO [KIND…]   lose what is in flight; send the oldest once more; turn the order round
    cut N…, heal N…              lose what is sent from or to N from now on; no longer
    slow N, sync N, fast N       N's disk takes its time; its write is durable now; it is quick again
    look N                       take what is ready but write nothing
    crash N, restart N           lose what is not on disk; start from it
    propose N PAYLOAD…           (x*100 is a hundred of x)        read N REQUEST        resign N
    change N voters=… [learners=…] [joining=…] [witnesses=…]   change the members to these
    transfer N TO|-              hand leadership over; `-` is to whoever is closest
    rest N, wake N, lost N       N goes quiet, if it is idle; wakes; wakes since its leader's node is lost
    snapshot N INDEX [keep=K]    a snapshot of N up to INDEX is durable
    forge FROM TO KIND NAME=VALUE…   hand TO a message made by hand (KIND may be a number); entries=1,1,2 are terms,
                                 damage=1 breaks them, later=1 adds members as only a later version knows them,
                                 garbage=1 an entry for members that holds none
    configure N voters=…         N's members from now on, as if a snapshot had brought them
    deadline N                   when N wants to look at the clock
    sent, status, progress N     what is in flight; the replicas; what leader N knows of the others
    quietly COMMAND              print nothing

Everything is written index/term: `3/2` is entry 3 of term 2.  Members are shown once they are no longer the first ones.
Safety is checked after every command.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raftplug import plain
from raftplug.constants import (
    APPEND,
    APPEND_RESPONSE,
    CONFIGURATION,
    INSTALL,
    LEADER,
    NOOP,
    ROLE_NAMES,
    SNAPSHOT,
    TIMEOUT_NOW,
    TRANSITION,
)
from raftplug.errors import RaftplugError
from rules import ELECTION, HEARTBEAT, Disk, Net

SCRIPTS = sorted(Path(__file__).parent.joinpath("scenarios").glob("*.txt"))
REWRITE = os.environ.get("RAFTPLUG_REWRITE_SCENARIOS") == "1"
KINDS = {
    "pre-vote": 1,
    "pre-vote-answer": 2,
    "vote": 3,
    "vote-answer": 4,
    "append": 5,
    "answer": 6,
    "snapshot": 7,
    "timeout-now": 8,
}
MEMBERS = ("voters", "outgoing", "learners", "joining", "witnesses")
NAMES = {number: name for name, number in KINDS.items()}
UNREADABLE = plain.encode([[1, 2, 3], [], [], [], [], [], b"", "as a later version writes them"])
STATES = ("probe", "replicate", "install")


class Stage(Net):
    """The replicas of a script.  `lines` is what they did, in words; `raw` is the same in bytes."""

    def __init__(self, core: Any, size: int, **options: Any) -> None:
        self.lines: list[str] = []
        self.raw: list[bytes] = []
        self.down: set[int] = set()
        self.leaders: dict[int, int] = {}
        self.committed: list[int] = []
        self.first: dict[int, Any] = {}  # Who the members were at the start, as a replica knew it …
        self.stored: dict[int, Any] = {}  # … as of its snapshot …
        self.snapshots: dict[int, Any] = {}  # … and as of a snapshot at an index, which is the same for all.
        super().__init__(core, size, **options)
        self.seen = {id: self.facts(id) for id in self.ids}

    # What happens.

    def boot(self, id: int) -> Any:
        """Start a replica: with the members of its snapshot, or the first ones, or knowing none."""
        everyone = self.configuration
        self.first.setdefault(id, everyone if id in everyone.members() else self.core.Configuration(()))
        self.configuration = self.stored.get(id, self.first[id])
        raft = super().boot(id)
        self.configuration = everyone
        return raft

    def sync(self, id: int, pump: bool = True) -> list[Any]:
        snapshot = self.writing[id].snapshot
        if snapshot is not None and snapshot.index in self.snapshots:
            self.stored[id] = self.snapshots[snapshot.index]
        return super().sync(id, pump)

    def receive(self, id: int, source: int, message: Any) -> None:
        """What a driver does with a message."""
        self.rafts[id].step(message, source)
        if self.rafts[id].installing is message and message.index in self.snapshots:
            self.rafts[id].set_configuration(self.snapshots[message.index])

    def snapshot(self, id: int, index: int, keep: int) -> None:
        raft, log = self.rafts[id], self.disks[id].log
        raft.snapshot_stored(index, keep)
        self.stored[id] = self.snapshots[index] = raft.configuration_at(index)
        if raft.log.base_index > log.base_index:
            log.compact(raft.log.base_index)

    def pump(self, id: int) -> list[Any]:
        raft, sent = self.rafts[id], []
        while True:
            ready = raft.ready()
            sent += self.take(id, ready)
            if not ready.write:
                break
            self.writing[id] = ready
            self.say(f"  {id} writes {self.write_text(id, ready)}")
            if id in self.slow:
                break
            self.sync(id, pump=False)
        return sent

    def take(self, id: int, ready: Any) -> list[Any]:
        for message in ready.messages:
            self.sent.append((id, message.peer, message))
            self.raw.append(b"%d>%d:" % (id, message.peer) + message.encode())
        self.raw.append(repr((ready.write, ready.term, ready.vote, ready.first, ready.block)).encode())
        for request, index in ready.reads:
            self.say(f"  {id} may answer {request} at {index}")
        for request in ready.failed_reads:
            self.say(f"  {id} cannot answer {request}")
        for index, kind, term, payload in ready.truncated:
            self.say(f"  {id} drops {index}/{term}{content(index, term, kind, payload)}")
        return list(ready.messages)

    def act(self, id: int, action: Callable[[], object]) -> None:
        """Let a replica do something, and say what it did."""
        try:
            action()
        except RaftplugError as error:
            self.say(f"  {id} refuses: {type(error).__name__}: {error}")
        self.pump(id)
        self.compare(id)

    def arrive(self, position: int) -> None:
        source, target, message = self.sent.pop(position)
        if message.kind == SNAPSHOT:
            message.hint, message.data = self.disks[source].log.check_at(message.index), b"state"
        lost = {source, target} & self.cut or target in self.down
        self.say(f"{self.message_text(source, target, message)}{' LOST' if lost else ''}")
        if lost:
            return
        arrived = self.core.Message.decode(message.encode())
        self.rafts[target].set_time(self.now)
        self.act(target, lambda: self.receive(target, source, arrived))

    # What is said of it.

    def say(self, line: str) -> None:
        self.lines.append(line)

    def facts(self, id: int) -> dict[str, Any]:
        raft = self.rafts[id]
        role = ROLE_NAMES[raft.role]
        if raft.leader is not None and raft.leader != id:
            role += f" of {raft.leader}"
        if raft.removed:
            role += " and removed"
        if raft.quiet:
            role += " and quiet"
        log = " ".join(
            self.entry_text(raft.log, index) for index in range(raft.log.base_index + 1, raft.log.last_index + 1)
        )
        if raft.log.base_index:
            log = f"({raft.log.base_index}/{raft.log.base_term}) {log}".strip()
        return {
            "role": role,
            "term": raft.term,
            "vote": raft.vote,
            "members": members_text(raft.configuration.plain()),
            "handing over to": "nobody" if raft.transferee is None else raft.transferee,
            "commit": raft.commit,
            "stable": raft.stable,
            "log": log,
        }

    def compare(self, id: int) -> None:
        """Say what has changed, and check what must hold."""
        before, now = self.seen[id], self.facts(id)
        self.seen[id] = now
        changes = [f"{name} {now[name]}" for name in now if now[name] != before[name] and name not in ("log", "stable")]
        if changes:
            self.say(f"  {id}: {', '.join(changes)}")
        raft = self.rafts[id]
        if raft.role == LEADER:
            assert self.leaders.setdefault(raft.term, id) == id, f"two leaders in term {raft.term}"
        assert raft.stable <= raft.log.last_index and raft.log.base_index <= raft.commit <= raft.log.last_index
        for index in range(raft.log.base_index + 1, raft.commit + 1):
            check = raft.log.check_at(index)
            self.committed += [-1] * (index - len(self.committed))
            assert self.committed[index - 1] in (-1, check), f"{id} commits another entry {index}"
            self.committed[index - 1] = check

    def entry_text(self, log: Any, index: int) -> str:
        return f"{index}/{log.term_at(index)}"

    def write_text(self, id: int, ready: Any) -> str:
        parts = [f"term {ready.term} vote {ready.vote}"]
        if ready.snapshot is not None:
            parts.append(f"snapshot {ready.snapshot.index}/{ready.snapshot.log_term}")
        if ready.first:
            parts.append(f"log from {ready.first}: {block_text(ready.block)}")
        return ", ".join(parts)

    def message_text(self, source: int, target: int, message: Any) -> str:
        text = f"{source}>{target} {NAMES.get(message.kind, message.kind)} term {message.term}"
        if message.kind in (1, 3):
            text += f", log to {message.index}/{message.log_term}" + (", asked to by the leader" * message.flag)
        elif message.kind in (2, 4):
            text += ", granted" if message.flag else ", refused" + ", a member no more" * bool(message.hint)
        elif message.kind == APPEND:
            text += f", after {message.index}/{message.log_term}: {block_text(message.data)}, commit {message.commit}"
            text += ", a member no more" * message.flag
        elif message.kind == APPEND_RESPONSE and message.flag:
            text += f", durable to {message.index}, verified to {message.hint}"
        elif message.kind == APPEND_RESPONSE:
            text += f", no match at {message.index}, perhaps at {message.hint}/{message.log_term}"
        elif message.kind == SNAPSHOT:
            text += f", {message.index}/{message.log_term}, commit {message.commit}"
        number = "transfer" if message.kind == TIMEOUT_NOW else "round"
        return f"{text}, {number} {message.context}" if message.context else text


class Player:
    """Plays one script, command by command."""

    def __init__(self, core: Any) -> None:
        self.core = core
        self.stage: Any = None

    def play(self, line: str) -> list[str]:
        """Carry out one command; return what it prints."""
        words = line.split()
        quiet = words[0] == "quietly"
        name, *arguments = words[quiet:]
        plain = [word for word in arguments if "=" not in word]
        options = dict(word.split("=", 1) for word in arguments if "=" in word)
        getattr(self, f"do_{name}")(plain, options)
        lines, self.stage.lines = self.stage.lines, []
        return [] if quiet else lines

    def do_nodes(self, plain: list[str], options: dict[str, str]) -> None:
        size = int(plain[0])
        members = {name: ids(options.pop(name)) for name in MEMBERS if name in options}
        members.setdefault("voters", tuple(range(1, size + 1)))
        limits = {name: int(value) for name, value in options.items()}
        self.stage = Stage(self.core, size, configuration=self.core.Configuration(**members), **limits)

    def do_disk(self, plain: list[str], options: dict[str, str]) -> None:
        id = int(plain[0])
        terms = [] if plain[1] == "-" else [int(each) for each in plain[1].split(",")]
        term = int(options["term"]) if "term" in options else None
        vote = int(options["vote"]) if "vote" in options else None
        self.stage.disks[id] = Disk(self.core, terms, term, vote)
        self.stage.boot(id)
        self.stage.seen[id] = self.stage.facts(id)

    def do_draw(self, plain: list[str], options: dict[str, str]) -> None:
        self.stage.draws[int(plain[0])] = duration(plain[1])

    def do_wait(self, plain: list[str], options: dict[str, str]) -> None:
        self.stage.wait(duration(plain[0]))

    def do_tick(self, plain: list[str], options: dict[str, str]) -> None:
        id = int(plain[0])
        self.stage.act(id, lambda: self.stage.rafts[id].tick(self.stage.now))

    def do_campaign(self, plain: list[str], options: dict[str, str]) -> None:
        id = int(plain[0])
        self.stage.now = max(self.stage.now + ELECTION, self.stage.rafts[id].deadline())
        self.do_tick(plain, options)

    def do_rest(self, plain: list[str], options: dict[str, str]) -> None:
        self.stage.act(int(plain[0]), self.stage.rafts[int(plain[0])].rest)

    def do_wake(self, plain: list[str], options: dict[str, str]) -> None:
        self._wake(int(plain[0]), False)

    def do_lost(self, plain: list[str], options: dict[str, str]) -> None:
        self._wake(int(plain[0]), True)

    def _wake(self, id: int, lost: bool) -> None:
        self.stage.rafts[id].set_time(self.stage.now)
        self.stage.act(id, lambda: self.stage.rafts[id].wake(lost))

    def do_heartbeat(self, plain: list[str], options: dict[str, str]) -> None:
        self.stage.wait(HEARTBEAT)
        self.do_tick(plain, options)

    def do_lead(self, plain: list[str], options: dict[str, str]) -> None:
        for _ in range(int(plain[1])):
            self.do_heartbeat(plain[:1], {})
            self.do_deliver([], {})

    def do_deliver(self, plain: list[str], options: dict[str, str]) -> None:
        for position in self.positions(plain):
            self.stage.arrive(position)

    def do_next(self, plain: list[str], options: dict[str, str]) -> None:
        self.stage.arrive(next(self.positions(plain)))

    def do_drop(self, plain: list[str], options: dict[str, str]) -> None:
        for position in self.positions(plain):
            self.stage.say(f"{self.stage.message_text(*self.stage.sent.pop(position))} LOST")

    def do_repeat(self, plain: list[str], options: dict[str, str]) -> None:
        self.stage.sent.append(self.stage.sent[next(self.positions(plain))])

    def do_reverse(self, plain: list[str], options: dict[str, str]) -> None:
        wanted = selector(plain)
        positions = [index for index, each in enumerate(self.stage.sent) if wanted(*each)]
        messages = [self.stage.sent[index] for index in positions]
        for index, message in zip(positions, reversed(messages), strict=True):
            self.stage.sent[index] = message

    def do_cut(self, plain: list[str], options: dict[str, str]) -> None:
        self.stage.cut.update(map(int, plain))

    def do_heal(self, plain: list[str], options: dict[str, str]) -> None:
        self.stage.cut.difference_update(map(int, plain))

    def do_slow(self, plain: list[str], options: dict[str, str]) -> None:
        self.stage.slow.add(int(plain[0]))

    def do_sync(self, plain: list[str], options: dict[str, str]) -> None:
        id = int(plain[0])
        if id in self.stage.writing:
            self.stage.say(f"  {id} has written")
            self.stage.act(id, lambda: self.stage.sync(id, pump=False))
        else:
            self.stage.act(id, self.stage.rafts[id].persisted)

    def do_fast(self, plain: list[str], options: dict[str, str]) -> None:
        self.stage.slow.discard(int(plain[0]))
        if int(plain[0]) in self.stage.writing:
            self.do_sync(plain, options)

    def do_look(self, plain: list[str], options: dict[str, str]) -> None:
        id = int(plain[0])
        self.stage.take(id, self.stage.rafts[id].ready(False))
        self.stage.compare(id)

    def do_crash(self, plain: list[str], options: dict[str, str]) -> None:
        self.stage.down.add(int(plain[0]))

    def do_restart(self, plain: list[str], options: dict[str, str]) -> None:
        id = int(plain[0])
        self.stage.down.discard(id)
        self.stage.boot(id)
        self.stage.seen[id] = self.stage.facts(id)
        self.status(id)

    def do_propose(self, plain: list[str], options: dict[str, str]) -> None:
        id = int(plain[0])

        def propose() -> None:
            for word in plain[1:]:
                text, _, times = word.partition("*")
                self.stage.rafts[id].propose(TRANSITION, text.encode() * int(times or 1))

        self.stage.act(id, propose)

    def do_read(self, plain: list[str], options: dict[str, str]) -> None:
        id = int(plain[0])
        self.stage.act(id, lambda: self.stage.rafts[id].read(plain[1]))

    def do_resign(self, plain: list[str], options: dict[str, str]) -> None:
        id = int(plain[0])
        self.stage.act(id, self.stage.rafts[id].resign)

    def do_snapshot(self, plain: list[str], options: dict[str, str]) -> None:
        id, index, keep = int(plain[0]), int(plain[1]), int(options.get("keep", "0"))
        self.stage.act(id, lambda: self.stage.snapshot(id, index, keep))
        self.stage.say(f"  {id}: log {self.stage.facts(id)['log']}")

    def do_forge(self, plain: list[str], options: dict[str, str]) -> None:
        source, target, kind = int(plain[0]), int(plain[1]), KINDS.get(plain[2], 0)
        fields = {
            name: int(value) for name, value in options.items() if name not in ("entries", "damage", "later", "garbage")
        }
        if "entries" in options:
            index, log_term = fields["index"], fields["log_term"]
            log = self.core.Log(index, log_term, max(0, self.stage.rafts[target].log.check_at(index)))
            for term in ids(options["entries"]):
                log.append(term, TRANSITION, b"%d/%d" % (log.last_index + 1, term))
            if "garbage" in options:
                log.append(log.last_term, CONFIGURATION, b"garbage")
            if "later" in options:
                log.append(log.last_term, CONFIGURATION, UNREADABLE)
            fields["data"] = log.slice(index + 1, log.last_index + 1)
        if "damage" in options:
            fields["data"] = fields["data"][:-1] + b"?"
        message = self.core.Message(kind or APPEND, fields.pop("term"), **fields)
        message.kind = kind or int(plain[2])
        self.stage.say(self.stage.message_text(source, target, message))
        self.stage.rafts[target].set_time(self.stage.now)
        self.stage.act(target, lambda: self.stage.receive(target, source, message))

    def do_configure(self, plain: list[str], options: dict[str, str]) -> None:
        id, members = int(plain[0]), self.members(options)
        self.stage.act(id, lambda: self.stage.rafts[id].set_configuration(members))

    def do_change(self, plain: list[str], options: dict[str, str]) -> None:
        id, members = int(plain[0]), self.members(options)
        self.stage.act(id, lambda: self.stage.rafts[id].change(members))

    def do_transfer(self, plain: list[str], options: dict[str, str]) -> None:
        id, target = int(plain[0]), None if plain[1] == "-" else int(plain[1])
        self.stage.act(id, lambda: self.stage.rafts[id].transfer(target))

    def members(self, options: dict[str, str]) -> Any:
        return self.core.Configuration(**{name: ids(value) for name, value in options.items()})

    def do_deadline(self, plain: list[str], options: dict[str, str]) -> None:
        left = self.stage.rafts[int(plain[0])].deadline() - self.stage.now
        self.stage.say(f"in {left // 1000}ms")

    def do_sent(self, plain: list[str], options: dict[str, str]) -> None:
        for source, target, message in self.stage.sent:
            self.stage.say(self.stage.message_text(source, target, message))

    def do_status(self, plain: list[str], options: dict[str, str]) -> None:
        for id in self.stage.ids:
            self.status(id)

    def status(self, id: int) -> None:
        facts = {name: value for name, value in self.stage.facts(id).items() if value != ""}
        if facts["members"] == members_text(self.stage.first[id].plain()):
            del facts["members"]
        if facts["handing over to"] == "nobody":
            del facts["handing over to"]
        text = ", ".join(f"{name} {value}" for name, value in facts.items() if name != "role")
        self.stage.say(f"{id} {'down' if id in self.stage.down else facts['role']}, {text}")

    def do_progress(self, plain: list[str], options: dict[str, str]) -> None:
        for peer, each in self.stage.rafts[int(plain[0])].progress.items():
            paused = ", paused" if each.paused else ""
            pending = f", snapshot {each.pending_snapshot}" if each.state == INSTALL else ""
            lost = f", lost up to {each.lost}" if each.lost else ""
            self.stage.say(f"{peer} {STATES[each.state]}, match {each.match}, next {each.next}{pending}{paused}{lost}")

    def positions(self, plain: list[str]) -> Iterator[int]:
        """Where the oldest wanted message in flight is, again and again."""
        wanted = selector(plain)
        while True:
            position = next((i for i, each in enumerate(self.stage.sent) if wanted(*each)), None)
            if position is None:
                return
            yield position


def selector(plain: list[str]) -> Callable[[int, int, Any], bool]:
    source, target = plain[:2] if plain and plain[0] not in KINDS else ("*", "*")
    kinds = {KINDS[word] for word in plain if word in KINDS}
    return lambda *each: (
        source in ("*", str(each[0])) and target in ("*", str(each[1])) and (not kinds or each[2].kind in kinds)
    )


def ids(text: str) -> tuple[int, ...]:
    return tuple(int(each) for each in text.split(",") if each)


def duration(text: str) -> int:
    assert text.endswith("ms")
    return int(text[:-2]) * 1000


def members_text(data: list[list[int]]) -> str:
    parts = [
        f"{name}={','.join(map(str, part))}" for name, part in zip(MEMBERS, data[:4] + data[5:], strict=False) if part
    ]
    return " ".join(parts) or "none"


def content(index: int, term: int, kind: int, payload: bytes) -> str:
    if kind == CONFIGURATION and payload == UNREADABLE:
        return " members that cannot be read"
    if kind == CONFIGURATION and payload == b"garbage":
        return " no members"
    if kind == CONFIGURATION:
        return f" members {members_text(plain.decode(payload))}"
    if kind == NOOP:
        return " no-op"
    if payload == b"%d/%d" % (index, term):  # Made by the harness.
        return ""
    return f" {payload.decode()}" if len(payload) < 20 else f" {len(payload)} bytes"


def block_text(block: bytes) -> str:
    """The entries of a block, in words."""
    parts, position = [], 0
    while position < len(block):
        index, term = int.from_bytes(block[position : position + 8], "little"), block[position + 8]
        length = int.from_bytes(block[position + 17 : position + 21], "little")
        payload = block[position + 25 : position + 25 + length]
        parts.append(f"{index}/{term}{content(index, term, block[position + 16], payload)}")
        position += 25 + length
    return "; ".join(parts) or "nothing"


def commands(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.splitlines()):
        if line.strip() and not line.startswith(("#", " ")):
            yield number, line


def told(text: str, core: Any) -> tuple[str, list[bytes]]:
    """The script with the outputs that this core gives, and what was sent and written, in bytes."""
    player, lines, raw = Player(core), [], []
    for line in text.splitlines():
        if line.startswith(" "):
            continue
        lines.append(line.rstrip())
        if line.strip() and not line.startswith("#"):
            lines += [f"    {each}" for each in player.play(line)]
    if player.stage is not None:
        raw = player.stage.raw
    return "\n".join(lines) + "\n", raw


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_story_goes_as_it_is_told(script: Path, core: SimpleNamespace) -> None:
    text = script.read_text()
    now, _ = told(text, core)
    if REWRITE and core.Raft.__module__ == "raftplug.raft":
        script.write_text(now)
    else:
        assert now == text


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_story_sends_and_writes_the_same_bytes_on_both_cores(
    script: Path, both_cores: tuple[SimpleNamespace, SimpleNamespace]
) -> None:
    first, second = (told(script.read_text(), core)[1] for core in both_cores)
    assert first == second


def test_every_branch_of_the_rules_is_in_a_story(tmp_path: Path) -> None:
    """Of the stories, the known bugs and the last lines of defence; what Hypothesis finds by chance does not count."""
    here = Path(__file__).parent
    files = [str(here / name) for name in ("test_scenarios.py", "test_known_bugs.py", "test_lockstep.py")]
    chosen = "not cython and not bytes and not branch and not is_the_same"
    coverage = [sys.executable, "-m", "coverage"]
    data = f"--data-file={tmp_path / 'data'}"
    measured = ["run", "--branch", "--include=*/raftplug/raft.py", data]
    tests = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen, *files]
    result = subprocess.run(
        [*coverage, *measured, *tests], cwd=here.parent, capture_output=True, text=True, timeout=100
    )
    assert result.returncode == 0, result.stdout
    command = [*coverage, "json", "-q", data, "-o", str(tmp_path / "report.json")]
    subprocess.run(command, cwd=here.parent, check=True, timeout=60)
    (path, report), *others = json.loads((tmp_path / "report.json").read_text())["files"].items()
    source = Path(here.parent, path).read_text().splitlines()
    missing = [source[line - 1] for line in report["missing_lines"]]
    # The other way is taken while Cython compiles the rules, and only then.
    branches = {source[start - 1] for start, _ in report["missing_branches"]} - {"if not cython.compiled:"}
    assert not others and missing == [] and not branches


def test_there_are_enough_stories() -> None:
    assert len(SCRIPTS) >= 25
