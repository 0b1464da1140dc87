"""Who has diverged: digests of the replicas' states at the same indexes, and a verdict.

Replicas that applied the same entries hold the same state, unless a state machine is not deterministic.  Each sends the
digests of its state to the leader, and the leader judges: right is what a majority of the voters has; if no majority
has the same, though all have answered or had the time to, right is what the leader has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgpack

from raftplug.constants import LIMIT
from raftplug.errors import MalformedMessage
from raftplug.frames import Id

KEPT: Final = 8
"""Of so many indexes, the newest, digests are remembered; and so many are sent at once, since one may be lost."""
_NEVER: Final = 1 << 62


@dataclass(frozen=True, slots=True)
class Divergence:
    """A replica whose state at `index` has another digest than it should have."""

    replica: Id
    index: int
    digest: bytes
    expected: bytes

    def __str__(self) -> str:
        return (
            f"{self.replica} has diverged: after entry {self.index} its state has the digest {self.digest.hex()}, "
            f"right is {self.expected.hex()}"
        )


class Digests:
    """What is known of the digests of a group's replicas.

    Args:
        id: this replica.
        patience_us: how long the leader waits for voters that have not answered, when others differ.
    """

    def __init__(self, id: Id, patience_us: int) -> None:
        self._id = id
        self._patience_us = patience_us
        self._known: dict[int, dict[Id, bytes]] = {}  # index -> replica -> digest
        self._judge_at = _NEVER
        self._waited = 0  # Up to this index nobody is waited for any more.

    def add(self, replica: Id, index: int, digest: bytes) -> None:
        """The state of `replica` after entry `index` has this digest; what is known of it there already stands."""
        self._known.setdefault(index, {}).setdefault(replica, digest)
        while len(self._known) > KEPT:
            del self._known[min(self._known)]

    def own(self, index: int) -> bytes | None:
        """Our own digest there, if it is known."""
        return self._known.get(index, {}).get(self._id)

    def forget(self) -> None:
        """Our own state was replaced: what was known of it does not count."""
        for known in self._known.values():
            known.pop(self._id, None)

    def latest(self) -> list[tuple[int, bytes]]:
        """Our own digests, the oldest first."""
        return [(index, known[self._id]) for index, known in sorted(self._known.items()) if self._id in known]

    def deadline(self) -> int:
        """When `judge` should be called, if nothing comes before: microseconds."""
        return self._judge_at

    def wait_no_more(self) -> None:
        """Somebody else judges."""
        self._judge_at = _NEVER

    def judge(self, voters: Sequence[Id], now: int) -> tuple[int, list[Divergence], set[Id]]:
        """The leader's verdict: the newest index that can be judged, who has diverged there, and who has not.

        Args:
            voters: whose majority is right.
            now: microseconds.
        """
        if now >= self._judge_at:
            self._waited, self._judge_at = max(self._known, default=0), _NEVER
        for index, known in sorted(self._known.items(), reverse=True):
            digests = Counter(known[voter] for voter in voters if voter in known)
            if not digests:
                continue
            right, count = digests.most_common(1)[0]
            if 2 * count <= len(voters):
                if len(set(known.values())) == 1 or self._id not in known:
                    continue
                if sum(digests.values()) < len(voters) and index > self._waited:
                    self._judge_at = min(self._judge_at, now + self._patience_us)
                    continue
                right = known[self._id]
            wrong = [Divergence(id, index, digest, right) for id, digest in known.items() if digest != right]
            return index, wrong, {id for id, digest in known.items() if digest == right}
        return 0, [], set()


def encode_digests(digests: Sequence[tuple[int, bytes]], verdict: bool) -> bytes:
    """The body of an item: our digests by index; or, as a verdict, what they should be."""
    return bytes(msgpack.packb([verdict, [list(each) for each in digests]]))


def decode_digests(body: bytes) -> tuple[list[tuple[int, bytes]], bool]:
    """The digests, and whether they are a verdict.

    Raises:
        MalformedMessage: they are none.
    """
    try:
        verdict, pairs = msgpack.unpackb(body)
        digests: list[tuple[int, Any]] = [(index, digest) for index, digest in pairs]
    except (ValueError, TypeError, msgpack.exceptions.UnpackException):
        raise MalformedMessage("digests that cannot be read") from None
    for index, digest in digests:
        if type(index) is not int or not 0 < index < LIMIT or type(digest) is not bytes or len(digest) > 64:
            raise MalformedMessage("digests that cannot be")
    if type(verdict) is not bool or len(digests) > KEPT:
        raise MalformedMessage("digests that cannot be")
    return digests, verdict
