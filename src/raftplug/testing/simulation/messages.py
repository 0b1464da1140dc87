"""What nodes say to each other: repeated, late or lost above the frames; and that nobody believes an earlier life."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from raftplug.cluster import is_client
from raftplug.constants import PIECE, PIECE_REQUEST, REQUEST, SNAPSHOT, VOTE, VOTE_RESPONSE
from raftplug.frames import Id
from raftplug.testing.simulation.disk import flipped
from raftplug.testing.simulation.part import Part
from raftplug.testing.simulation.plan import MS
from raftplug.testing.simulation.report import Violation

if TYPE_CHECKING:
    from raftplug.testing.simulation.process import Process
    from raftplug.testing.simulation.world import Simulation


_FAULTS = {"resend", "late_vote", "lose_snapshot", "snapshot_piece_lost", "snapshot_piece_damaged"}
_Send = Callable[[Id, int, bytes], None]


class Messages(Part):
    """What each node says and hears."""

    def __init__(self, world: Simulation) -> None:
        super().__init__(world)
        self.boots: dict[int, int] = {}  # Of each nonce that a node had: its boot.
        self.false: set[int] = set()  # Nonces of lives on disks that were put back, or before a backup was.

    def speech(self, process: Process, send: _Send) -> _Send:
        """What a node says, sometimes late or twice.

        Frames are numbered, so what is repeated or overtaken on the way is dropped there: the rules must bear it all
        the same, so this lies above the numbers.
        """
        life, has_faults = process.life, bool(self.plan.faults & _FAULTS)

        def later(target: Id, kind: int, body: bytes) -> None:
            if process.life == life and process.node is not None:
                send(target, kind, body)
                process.wake()

        def say(target: Id, kind: int, body: bytes) -> None:
            if kind == PIECE:
                self.world.invariants.check_given(process, body)
            # A request that was refused must not be executed later: that it arrives once, its frame's number sees to.
            if not has_faults or self.world.quiet or kind == REQUEST:
                send(target, kind, body)
                return
            chance, faults, election = self.random, self.plan.faults, kind in (VOTE, VOTE_RESPONSE, SNAPSHOT)
            if kind in (PIECE, PIECE_REQUEST):
                if "snapshot_piece_lost" in faults and chance.random() < 0.2:
                    self.world.fault("snapshot_piece_lost", process.id, target)
                    return
                if kind == PIECE and "snapshot_piece_damaged" in faults and chance.random() < 0.2:
                    self.world.fault("snapshot_piece_damaged", process.id, target)
                    body = flipped(body, chance)
            if "resend" in faults and chance.random() < (0.2 if election else 0.05):
                self.world.fault("resend", process.id, target)
                self.world.after(chance.choice((1, 100, 700, 2_000)) * MS, later, target, kind, body)
            if "late_vote" in faults and kind == VOTE_RESPONSE and chance.random() < 0.3:
                self.world.fault("late_vote", process.id, target)
                self.world.after(chance.randint(1, 2_000) * MS, later, target, kind, body)
            elif "lose_snapshot" in faults and kind == SNAPSHOT and chance.random() < 0.5:
                self.world.fault("lose_snapshot", process.id, target)
            else:
                send(target, kind, body)

        return say

    def hearing(self, process: Process, receive: Callable[..., None]) -> Callable[..., None]:
        """What a node hears: never an earlier life, or a copy, of a directory of which it took something already."""

        def hear(source: Id, nonce: int, kind: int, body: bytes, storage: bytes) -> None:
            boot = self.boots.get(nonce)
            if boot is None and not is_client(source):
                raise Violation(f"identity: {process.id} takes what {source} of another cluster says")
            if boot is not None and source != process.id:
                last, known = process.heard_lives.get((source, storage), (0, 0))
                if boot < last or (boot == last and nonce != known):
                    raise Violation(f"identity: {process.id} takes what boot {boot} of {source} says, after {last}")
                if nonce in self.false:
                    raise Violation(f"identity: {process.id} takes what {source} says in a life that counts no more")
                if nonce != known:
                    process.heard_lives[source, storage] = (boot, nonce)
            receive(source, nonce, kind, body, storage)

        return hear
