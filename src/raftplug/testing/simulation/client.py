"""A client that keeps a few operations under way."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from raftplug import plain
from raftplug.client import ClientLoop
from raftplug.constants import LEASE, LINEARIZABLE
from raftplug.core import Future
from raftplug.errors import OutcomeUnknown, SessionExpired
from raftplug.frames import Id
from raftplug.testing.simulation.deadlines import Deadlines
from raftplug.testing.simulation.machines import is_wrong
from raftplug.testing.simulation.network import Link
from raftplug.testing.simulation.plan import GROUP, KEYS, MS, NEVER
from raftplug.testing.simulation.report import Recorded, Violation

if TYPE_CHECKING:
    from raftplug.testing.simulation.world import Simulation


class Client:
    """Somebody outside the group.

    Args:
        world: in which it lives.
        number: tells it from the others.
        idle: whether it does nothing unless told to.
    """

    def __init__(self, world: Simulation, number: int, idle: bool = False) -> None:
        self.world = world
        self.id: Id = f"~c{number}"
        self._number = number
        self._idle = idle
        self._lives = 0
        self._wake_at = -1
        self._got: dict[str, Any] = {}  # What the last get of a key gave.
        self._start()

    def _start(self) -> None:
        world = self.world
        self._lives += 1
        self._wake_at = -1
        self.id = f"~c{self._number}.{self._lives}"
        link = Link(world, self.id, self.turn)
        world.network.links[self.id] = link
        self.loop = ClientLoop(
            cluster=link,
            own_id=self.id,
            group=GROUP,
            settings=world.plan.settings,
            generator=random.Random(world.random.getrandbits(32)),
            session=self.session(),
            keys=world.keys.of(self.id),
        )
        self.deadlines = Deadlines(self.id)
        self._pending = 0
        self._expired_after = -1  # How many faults had ended sessions when it began what it was told was too late.
        if not self._idle:
            world.after(world.random.randint(0, 100 * MS), self._next, self._lives)

    def session(self) -> str | None:
        """The name of its session."""
        return None

    def crash(self) -> None:
        """Be gone; another client takes over.  What was under way is unknown."""
        self.world.network.links.pop(self.id, None)
        self.loop.close()
        self.deadlines.check_closed()
        self._start()

    def expect(self, leader: Id) -> None:
        """Ask `leader`, and it only, from now on."""
        self.loop.requester.set_leader(leader)
        self.turn()

    def turn(self) -> None:
        """Take what has arrived, and what is due."""
        deadline = self.loop.turn(self.world.now)
        self.deadlines.check(self.world.now)
        at = max(self.world.now + 1, deadline)
        if deadline < NEVER and (self._wake_at <= self.world.now or at < self._wake_at):
            self._wake_at = at
            self.world.after(at - self.world.now, self._timer, self._lives, at)

    def _timer(self, life: int, at: int) -> None:
        if life == self._lives and at == self._wake_at:
            self._wake_at = -1
            self.turn()

    def _next(self, life: int) -> None:
        world = self.world
        if life != self._lives or world.quiet:
            return
        world.after(world.random.randint(1, 40) * MS * world.plan.pace, self._next, life)
        if self._pending < 4 and world.now >= world.silent_until:
            self.propose(self.operation(world.random))

    def operation(self, chance: random.Random) -> dict[str, Any]:
        """Any operation."""
        key, token = f"k{chance.randrange(KEYS)}", chance.randrange(1_000_000)
        kind = chance.choice(("get", "get", "get", "get", "put", "append", "cas", "delete", "add", "add", "fail"))
        if kind == "get":
            return {"op": "get", "key": chance.choice((key, f"c{key[1:]}"))}
        if kind == "put":
            return {"op": "put", "key": key, "value": f"{token};"}
        if kind == "append":
            return {"op": "append", "key": key, "value": f"{token};"}
        if kind == "cas":
            return {"op": "cas", "key": key, "expect": chance.choice((None, self._got.get(key))), "value": f"{token};"}
        if kind == "delete":
            return {"op": "delete", "key": key}
        if kind == "fail":
            return {"op": "fail", "key": "failed", "value": str(token)}
        return {"op": "add", "key": f"c{chance.randrange(KEYS)}", "value": 1}

    def propose(self, operation: dict[str, Any]) -> Future:
        """Begin an operation, and keep its history."""
        world, report = self.world, self.world.report
        future = Future()
        recorded = Recorded(self.id, operation, world.now)
        key, counts = operation["key"], operation["key"].startswith("c")
        low = world.answers.adds_acknowledged[key]
        if operation["op"] == "add":
            world.answers.adds_begun[key] += 1
        world.answers.reads += operation["op"] == "get"
        self._pending += 1
        ended_sessions = report.faults["session_expiry"]
        opens_another = self._expired_after == ended_sessions

        def ended(_: Future) -> None:
            self._pending -= 1
            error = future.exception(0)
            if error is None and is_wrong(future.result(0)):
                report.unknown += 1  # What became of it is known; what it returned would explain nothing.
            elif error is None:
                recorded.answered, recorded.result = world.now, future.result(0)
                if operation["op"] == "get":
                    self._got[key] = recorded.result
                report.acknowledged += 1
                if counts:
                    world.answers.found(key, low + (operation["op"] == "add"), recorded.result, self.id)
                if operation["op"] == "add":
                    world.answers.adds_acknowledged[key] += 1
            elif isinstance(error, OutcomeUnknown):
                report.unknown += 1
            else:
                if isinstance(error, SessionExpired):
                    if opens_another and ended_sessions == report.faults["session_expiry"]:
                        world.raise_soon(Violation(f"sessions: {self.id} goes on with one that has ended"))
                    self._expired_after = ended_sessions
                report.history.remove(recorded)  # It certainly did not happen.
                world.answers.reads -= operation["op"] == "get"
            world.note(self.id, operation["op"], operation["key"], type(error).__name__ if error else "ok")

        report.history.append(recorded)
        future.add_done_callback(ended)
        deadline = world.now + world.random.choice((100, 1_000, 5_000, 5_000)) * MS
        self.deadlines.add("a call", future, deadline)
        if operation["op"] == "get":
            consistency = LEASE if world.plan.settings.lease_ms and world.random.random() < 0.7 else LINEARIZABLE
            self.loop.read(plain.encode(operation), future, deadline, consistency)
        else:
            self.loop.propose(world.ledger.encode(self.id, operation, future), future, deadline)
        world.invariants.check_calls(self.id, self.loop.requester)
        self.turn()
        return future
