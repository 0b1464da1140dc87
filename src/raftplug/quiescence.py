"""Groups in which nothing happens go quiet, so that a node of thousands of them costs what its busy ones cost.

A quiet group sends no heartbeats, checks no quorum and has no election timer.  Instead the *nodes* watch each other:
with each heartbeat a node sends every other one with which it shares a group one empty item, for all groups together,
unless heartbeats of busy groups go there anyway (`NodeLoop`).  The protocol, of which nothing decides about terms,
votes or entries:

* A leader that was idle for a while (`Raft.is_idle`: all committed, no read, transfer or change under way) asks every
  follower that holds its whole log, with each heartbeat: QUIET, with its term and last index.
* A follower of that leader and term agrees if its log ends there, is on its disk and known to be committed.  It goes
  quiet and says so: QUIET_RESPONSE.
* Once all have agreed, before its next heartbeat, the leader goes quiet.  A follower that lags, or does not answer,
  keeps it awake.  Only a member whose *node* is lost to the leader's is left out; those that agreed are a quorum.

What wakes:

* any message of the rules that arrives, and whatever a leader has to do: a proposal, a read, a change, a transfer;
* a node that is lost (not heard for an election timeout), comes back, or is another process than before (its frames
  carry another nonce): all groups that it leads here, and all that are led here and have it as a member.

So who was left out is found again: its node's first frame is a return, and the leader's heartbeats follow.  Who missed
that it should wake (a message was lost) at worst campaigns by pre-vote, which wakes the leader.  A follower that is
quiet under a leader which was deposed without its knowledge is lagging for the new leader, which therefore stays awake
and keeps telling it, unless it does not hear its node; and once it does, it wakes.

A quiet leader may have been deposed, as any leader may: it answers reads only after a round of a quorum, as always, and
holds no lease.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Any

from raftplug.constants import FOLLOWER, LEADER, QUIET, QUIET_RESPONSE
from raftplug.errors import MalformedMessage
from raftplug.frames import Id
from raftplug.settings import Settings

_BODY = Struct("<QQ")  # term, last index


class Quiescence:
    """Whether one replica's group is quiet.

    Args:
        raft: its rules.
        settings: when a group goes quiet, the heartbeat and the election timeout.
        send: queues an item for another process.
        heard_at: when a node was last heard, microseconds; None where nobody watches the nodes: then the group never
            goes quiet.
        is_lost: whether a node has not been heard for an election timeout, and its return will be noticed.
    """

    __slots__ = ("_agreed", "_ask_at", "_asked", "_heard_at", "_is_lost", "_raft", "_send", "_settings")

    def __init__(
        self,
        raft: Any,
        settings: Settings,
        send: Callable[[Id, int, bytes], None],
        heard_at: Callable[[Id], int] | None,
        is_lost: Callable[[Id], bool],
    ) -> None:
        self._raft = raft
        self._settings = settings
        self._send = send
        self._heard_at = heard_at if settings.quiet_after_ms else None
        self._is_lost = is_lost
        self._ask_at = 0
        self._agreed: dict[Id, int] | None = None  # Who agreed, and when.
        self._asked: tuple[Id, bytes] | None = None  # Who asked in this turn, and what.

    def turn(self, now: int) -> None:
        """After each turn of the rules, and what they send: agree, or ask if idle for long enough; microseconds."""
        raft = self._raft
        if self._asked is not None:
            (source, body), self._asked = self._asked, None
            if raft.role == FOLLOWER and raft.leader == source and self._is_so(body):
                raft.rest()
                self._send(source, QUIET_RESPONSE, body)
        if raft.role != LEADER or raft.quiet or self._heard_at is None:
            return
        if not raft.is_idle():
            self._postpone(now, self._settings.quiet_after_ms)
            self._agreed = None
        elif now >= self._ask_at:
            self._postpone(now, 0)
            last = raft.log.last_index
            body = _BODY.pack(raft.term, last)
            for peer, progress in raft.progress.items():
                if progress.match == last:
                    self._send(peer, QUIET, body)
            self._consider(now)

    def receive(self, source: Id, kind: int, body: bytes) -> None:
        """Take a QUIET or a QUIET_RESPONSE.

        Raises:
            MalformedMessage: it is not one.
        """
        if len(body) != _BODY.size:
            raise MalformedMessage("an item about going quiet that is too short or too long")
        raft = self._raft
        if self._heard_at is None:
            return
        if kind == QUIET:
            self._asked = source, body  # The answer follows those of the messages before: a later one would wake.
        elif raft.role == LEADER and source in raft.progress and self._is_so(body):
            raft.progress[source].contact = raft.now
            if not raft.quiet:
                self._agreed = self._agreed or {}
                self._agreed[source] = raft.now
                self._consider(raft.now)

    def _postpone(self, now: int, wait_ms: int) -> None:
        """Ask with the first heartbeat after so long: one that follows before the answers would wake who agreed."""
        heartbeat = 1000 * self._settings.heartbeat_ms
        self._ask_at = ((now + 1000 * wait_ms) // heartbeat + 1) * heartbeat

    def _is_so(self, body: bytes) -> bool:
        """Whether the sender's term and log's end are ours, and nothing is under way here."""
        raft = self._raft
        return _BODY.unpack(body) == (raft.term, raft.log.last_index) and bool(raft.is_idle())

    def _consider(self, now: int) -> None:
        """Go quiet once every member has agreed whose node is heard."""
        raft, oldest = self._raft, now - 1000 * self._settings.election_timeout_ms
        agreed = {peer for peer, at in (self._agreed or {}).items() if at > oldest}
        awaited = [peer for peer in raft.progress if peer not in agreed and not self._is_lost(peer)]
        if not awaited and raft.configuration.has_quorum(agreed | {raft.id}):
            self._agreed = None
            raft.rest()

    def look(self) -> None:
        """Before anything happens to a quiet group: its members were heard whenever their nodes were."""
        if self._raft.quiet and self._heard_at is not None:
            self._postpone(self._raft.now, self._settings.quiet_after_ms)
            for peer, progress in self._raft.progress.items():
                progress.contact = max(progress.contact, self._heard_at(peer))

    def contact(self) -> int:
        """When the leader was last heard, microseconds; of a quiet group its node."""
        raft = self._raft
        return int(self._heard_at(raft.leader) if raft.quiet and self._heard_at is not None else raft.contact)

    def concerns(self, node: Id) -> bool:
        """Whether the group is quiet, or about to be, and the loss or return of `node` must wake it."""
        raft = self._raft
        about = raft.quiet or self._asked is not None or self._agreed is not None
        return bool(about) and (raft.leader == node or node in raft.progress)

    def wake(self) -> None:
        """A node that concerns us was lost, has returned, or is another process than before."""
        self._asked = self._agreed = None  # What its earlier life asked for, or agreed to, is over.
        self._raft.wake(True)
