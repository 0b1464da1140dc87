"""The group goes on while one part of it stays broken.

Once it has settled, everybody returns, and then one thing breaks and stays so: a leader's disk is full, or hangs; a
leader's state machine is stuck; a node hears nothing, or is heard by nobody; it starts again and again; or it fetches
snapshots more slowly than they are made.  Which of these it is depends on the faults that the seed has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from raftplug.core import Future
from raftplug.stuck import TIMEOUTS
from raftplug.testing.simulation.client import Client
from raftplug.testing.simulation.invariants import is_quorum
from raftplug.testing.simulation.part import Part
from raftplug.testing.simulation.plan import KEYS, MS, NEVER
from raftplug.testing.simulation.report import Violation

if TYPE_CHECKING:
    from raftplug.testing.simulation.process import Process
    from raftplug.testing.simulation.world import Simulation

_RETURN_TIMEOUTS = 60
_TIMEOUTS = 24  # Election timeouts for which it stays broken …
_SOON_TIMEOUTS = 6  # … and after so many at the latest a write succeeds …
_STUCK_TIMEOUTS = TIMEOUTS + 8  # … or after so many, where a leader must wait whether its disk or machine is only slow.
_KEY = f"c{KEYS}"


class Broken(Part):
    """Breaks one thing, and watches the others."""

    def __init__(self, world: Simulation) -> None:
        super().__init__(world)
        # By the fault that chooses it: what breaks it, whether it is a leader's, and how soon a write must succeed.
        self._ways: dict[str, tuple[Callable[[Process], None], bool, int]] = {
            "disk_full": (self._fill_disk, True, _SOON_TIMEOUTS),
            "slow_disk": (self._hang_disk, True, _STUCK_TIMEOUTS),
            "slow_apply": (self._stick_machine, True, _STUCK_TIMEOUTS),
            "cut_one_way": (self._deafen, self.random.random() < 0.5, _SOON_TIMEOUTS),
            "mute_candidate": (self._mute, self.random.random() < 0.5, _SOON_TIMEOUTS),
            "crash": (self._restart, False, _SOON_TIMEOUTS),
        }

    def reach(self, client: Client) -> None:
        """The group has settled; `client` asks nothing any more."""
        chosen = [name for name in self._ways if name in self.plan.faults and self.plan.breaks]
        if not chosen or not self._return():
            return
        leader = self.world.leading()
        name = self.random.choice(chosen)
        breaks, leads, soon = self._ways[name]
        if leader is None:
            return
        members = leader.driver().raft.configuration
        others = [each for each in self.world.processes.values() if each.id in members.voters and each is not leader]
        if not others:
            return
        victim = leader if leads else self.random.choice(others)
        rest = {each.id for each in self.world.processes.values() if each.node is not None and each is not victim}
        if not is_quorum(members, rest) or not any(members.may_lead(id) for id in rest):
            return
        self.world.note("breaks", name, victim.id)
        breaks(victim)
        self._watch(client, f"{name} of {victim.id}", soon)

    def _return(self) -> bool:
        """Everybody comes back, and catches up; False if some disk is another one than the others know."""
        world = self.world
        world.network.cut_until.clear()
        if world.originals or any(each.displaced or each.outdated for each in world.processes.values()):
            return False
        leader = world.leading()
        members = leader.driver().raft.configuration.members() if leader is not None else []
        back = [each for each in world.processes.values() if each.id in members]
        for each in back:
            each.set_rate(1.0)
            if each.node is None:
                if each.good_rows is not None:
                    each.rows.put_back(each.good_rows)
                    each.good_rows = None
                each.rows.full = each.rows.failing = False
                each.boot()
                each.disk_us = 300
        limit = world.now + self._for(_RETURN_TIMEOUTS)
        while not world.liveness.converged(back):
            if world.now > limit:
                raise Violation(f"liveness: {', '.join(each.id for each in back)} came back, and did not converge")
            self._step(20 * MS)
        return True

    def _watch(self, client: Client, what: str, soon: int) -> None:
        """Writes succeed, each a while after the one before."""
        world, succeeded = self.world, self.world.now
        until, future = world.now + self._for(_TIMEOUTS), Future()
        future.set_result(None)
        while world.now < until:
            if future.done():
                if future.exception(0) is None:
                    succeeded = world.now
                self._step(200 * MS)
                future = client.propose({"op": "add", "key": _KEY, "value": 1})
            if world.now - succeeded > self._for(soon):
                raise Violation(f"liveness: no write succeeds for {soon} election timeouts, with {what}")
            self._step(20 * MS)

    def _step(self, time: int) -> None:
        until = self.world.now + time
        self.world.after(time, _nothing)  # Time passes also where nothing happens.
        while self.world.now < until:
            self.world.step()

    def _for(self, timeouts: int) -> int:
        return timeouts * self.plan.settings.election_timeout_ms * MS

    # -- what breaks ---------------------------------------------------------------------------------------------------

    def _fill_disk(self, victim: Process) -> None:
        victim.rows.full = True

    def _hang_disk(self, victim: Process) -> None:
        victim.disk_us = NEVER

    def _stick_machine(self, victim: Process) -> None:
        victim.apply_us = NEVER

    def _deafen(self, victim: Process) -> None:
        """It hears nobody, not even clients, and is heard."""
        for id in [*self.plan.ids, *(client.id for client in self.world.clients)]:
            self.world.network.cut_until[id, victim.id] = NEVER

    def _mute(self, victim: Process) -> None:
        """It hears everybody, and is not heard."""
        for id in [*self.plan.ids, *(client.id for client in self.world.clients)]:
            self.world.network.cut_until[victim.id, id] = NEVER

    def _restart(self, victim: Process) -> None:
        """It starts again and again, mostly before it could take part in much."""
        if victim.node is not None:
            victim.kill(self.random.choice((1, 100)) * MS)
        self.world.after(self.random.choice((50, 400, 1_200)) * MS, self._restart, victim)


def _nothing() -> None:
    """Time passes."""
