"""The cluster's id: what fixes it, and whose frames a node believes before it knows it.

The founders of a cluster know each other by names only: its group, and the ids of the first voters.  Two clusters may
have equal names, on two Redis servers or one after the other.  So the first leader's entry that names the founders'
data directories fixes the *cluster id*, a digest of the names and of those directories.  A node that has seen this
entry committed sends every frame with the id, and refuses every frame with another one.

A node that does not know the id yet (a founder, or a node that joins) believes a process only if that process names
this one's random nonce, in a *greeting*.  A frame that was recorded before this process started names no such nonce.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from raftplug.cluster import is_client
from raftplug.constants import GREETING
from raftplug.frames import NO_CLUSTER, Frame, Id, founding_id

BELIEVED: Final = 0
UNKNOWN: Final = 1  # Not believed: the sender has to learn of this process, or one of the two of the cluster's id.
FOREIGN: Final = 2


class Founding:
    """What a node knows of its cluster's id.

    Args:
        names: digest of the founders' names, which is where messages are addressed to; 16 bytes.
        id: the cluster's id, 16 bytes; zeros while it is unknown.
        group: the group whose leader fixes it.
        nonce: of this process.
    """

    def __init__(self, names: bytes, id: bytes, group: str, nonce: int) -> None:
        self.names = names
        self.group = group
        self.id: bytes | None = id if id != NO_CLUSTER else None
        self._greeting = greeting(nonce)
        self._greeted: dict[Id, int] = {}  # The nonces of the processes that have named ours.
        self._spoken: dict[Id, bytes] = {}  # With what id each of them sent its last frame.

    def fix(self, directories: Mapping[Id, bytes]) -> bytes:
        """The id that a leader fixes by naming the founders' directories."""
        return founding_id(self.names, directories)

    def judge(self, frame: Frame) -> int:
        """Whether a frame is of this cluster: BELIEVED, UNKNOWN or FOREIGN."""
        if self.id is not None:
            if frame.cluster == self.id:
                return BELIEVED
            return UNKNOWN if frame.cluster == self.names else FOREIGN
        if is_client(frame.source):
            return BELIEVED if frame.cluster == self.names else UNKNOWN
        if any(item.kind == GREETING and item.body == self._greeting for item in frame.items):
            self._greeted[frame.source] = frame.nonce
        if self._greeted.get(frame.source) != frame.nonce:
            self._spoken.pop(frame.source, None)  # By the names, so that it greets: it may know the id.
            return UNKNOWN
        self._spoken[frame.source] = frame.cluster
        return BELIEVED

    def id_for(self, target: Id) -> bytes:
        """With what id a frame to `target` is sent: it may know the cluster's id before this node does."""
        return self.id or self._spoken.get(target, self.names)


def greeting(nonce: int) -> bytes:
    """The body of a GREETING for the process with that nonce."""
    return nonce.to_bytes(8, "little")
