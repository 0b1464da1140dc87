"""What operators ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raftplug.core import Future
from raftplug.errors import OutcomeUnknown
from raftplug.frames import Id
from raftplug.testing.simulation.faults.kind import Kind
from raftplug.testing.simulation.keys import CLIENTS
from raftplug.testing.simulation.plan import MS
from raftplug.testing.simulation.report import Violation

if TYPE_CHECKING:
    from raftplug.testing.simulation.world import Simulation


class Operators(Kind):
    """What operators ask for, by way of a client."""

    def __init__(self, world: Simulation) -> None:
        super().__init__(world)
        self._changes: dict[Future, int] = {}  # What was asked for and is not known to be over, and when that was.

    def do_change_members(self) -> None:
        """By way of a client.  Whoever is added is running."""
        leading = self.world.leaders()
        if not leading or self.world.originals or any(each.displaced for each in self.world.processes.values()):
            return
        members = leading[-1].configuration
        id = self.random.choice([*self.plan.ids, *self.plan.witnesses])
        strangers = [id for id in self.plan.ids if not members.is_voter(id)]
        if strangers and self.is_ending() and self.random.random() < 0.5:
            id, action = self.random.choice(strangers), "add"
        elif id in members.learners:
            action = self.random.choice(("promote", "remove"))
        elif members.is_voter(id):
            few = len(members.voters) < 2 + (self.random.random() < 0.5)  # Of two, one may go, too.
            action = "add" if few else self.random.choice(("remove", "demote"))
        else:
            action = self.random.choice(("add", "add", "learn"))
        if id in self.plan.witnesses:  # The same node always: what is on its disk tells what it is.
            action = "witness" if action in ("add", "learn") else self.random.choice((action, "remove"))
        self.world.fault("change_members", action, id)
        self.world.processes[id].boot_if_down()
        self.ask("members", [action, [id]])

    def is_ending(self) -> bool:
        """Whether the next change of the members is where the faults end."""
        return self.plan.ends_in_change and 2 * self.world.report.events > self.world.events and not self.world.quiet

    def may_be_changing(self) -> bool:
        """Whether a change of the members may be on its way, or under way."""
        return any(self.world.now - at < 4_000 * MS for at in self._changes.values())

    def do_operator_snapshot(self) -> None:
        target = self.random.choice(self.plan.ids)
        self.world.fault("operator_snapshot", target)
        self.snapshot(target)

    def do_rotate_keys(self) -> None:
        if self.world.originals:  # A copy's original is no process of which an operator knows.
            return
        id = self.world.keys.advance()
        self.world.fault("rotate_keys", id)
        if id == CLIENTS:
            for client in self.world.clients:
                client.crash()
        elif self.world.processes[str(id)].node is not None:
            self.world.processes[str(id)].kill(self.down_for())

    def do_transfer_leadership(self) -> None:
        target = self.random.choice([None, self.random.choice(self.plan.ids)])
        self.world.fault("transfer_leadership", target)
        self.ask("transfer", [target])

    def snapshot(self, node: Id) -> None:
        """Ask a node for a snapshot: how far it is, and then for one there."""
        found = self.ask("snapshot", [None], node)

        def ask_there(index: int) -> None:
            self.ask("snapshot", [index], node)

        def ask_again(_: Future) -> None:
            if found.exception(0) is None and found.result(0)[1] is None:
                self.world.after(1, ask_there, found.result(0)[0])

        found.add_done_callback(ask_again)

    def ask(self, operation: str, arguments: list[Any], to: Id | None = None) -> Future:
        """Ask the group, or the node `to`, for something; an operator has looked at the group before."""
        client, future = self.random.choice(self.world.clients), Future()
        leading = self.world.leading()
        driver = leading.driver() if leading is not None else None
        asked = arguments
        if operation == "members":
            self._changes[future] = self.world.now
            future.add_done_callback(lambda _: self._check_change(arguments, future))
            asked = [*arguments, driver.raft.configuration_index if driver is not None else 0]
        elif operation == "transfer":
            asked = [*arguments, *((driver.raft.term, driver._transfers) if driver is not None else (0, 0))]
        deadline = self.world.now + 3_000 * MS
        client.deadlines.add(f"a request for {operation}", future, deadline)
        client.loop.requester.ask(operation, asked, future, deadline, to)
        client.turn()
        return future

    def _check_change(self, arguments: list[Any], answer: Future) -> None:
        """Whoever is told that a change is over is told of the members after it."""
        error = answer.exception(0)
        if not isinstance(error, OutcomeUnknown):
            del self._changes[answer]
        if error is not None:
            return
        action, (id,) = arguments
        if action == "remove" and self.world.may("come_back"):
            self.world.after(self.random.choice((1, 20, 200)) * MS, self.world.faults.directories.come_back, id)
        voters, outgoing, learners, joining, _, _ = answer.result(0)
        votes, learns = id in voters or id in outgoing, id in learners
        made = {
            "remove": not votes and not learns,
            "demote": learns and not votes,
            "learn": learns and not votes,
            "promote": votes or id in joining,
            "add": votes or id in joining,
            "witness": votes or id in joining,
        }
        if not made[action]:
            text = f"members: {action} {id} was answered with {voters}, {outgoing}, {learners}, {joining}"
            self.world.raise_soon(Violation(text))
