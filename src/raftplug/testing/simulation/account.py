"""What the checks know of a disk."""

from __future__ import annotations

import contextlib
import copy
import struct
from collections import deque
from typing import Any

from raftplug import snapshots
from raftplug.constants import CONFIGURATION
from raftplug.errors import MalformedMessage, RaftplugError
from raftplug.frames import Id
from raftplug.storage import RecordStorage, Write
from raftplug.testing.simulation.plan import GROUP
from raftplug.testing.simulation.report import Violation

_ENTRY = struct.Struct("<QQBII")


class Account:
    """What the checks know of a disk: what it holds, with the checks of entries, and where it cast its votes.

    Args:
        configuration: with which the disk was made.
    """

    def __init__(self, configuration: Any) -> None:
        self.storage = b""  # Its uuid.
        self.durable: dict[int, int] = {}  # Of each entry on it, by index, the check.
        self.base = 0  # The index of its snapshot.
        self.term = 0
        self.last = (0, 0)  # Of the last entry: term, index.
        self.votes: dict[int, Any] = {}  # By term.
        self.configurations: dict[int, Any] = {0: configuration}  # By index.
        self._joined = not configuration.voters
        self.machine: dict[str, Any] = {}  # Of a machine that has a disk of its own.
        # The latest life that it says to have heard, of each directory by id and uuid: boot and nonce.
        self.kept_lives: dict[tuple[Id, bytes], tuple[int, int]] = {}

    def copy(self) -> Account:
        """The same of a copy of the disk."""
        other = copy.copy(self)
        for name in ("durable", "votes", "configurations", "machine", "kept_lives"):
            setattr(other, name, dict(getattr(self, name)))
        return other

    def members(self) -> Any:
        """The last configuration that is on it."""
        return self.configurations[max(self.configurations)]

    def may_vote(self, id: str) -> bool:
        """Whether its node has a part in elections: who joined has once it is known by this disk."""
        known = (members.storages.get(id) for members in self.configurations.values())
        return not self._joined or self.storage in known

    def record(self, id: str, write: Write, storage: RecordStorage, core: Any) -> None:
        """A write of the node `id` is on the disk now."""
        self.term = max(self.term, write.term)
        voted = self.votes.setdefault(write.term, write.vote) if write.vote is not None else None
        if voted != write.vote:
            raise Violation(f"one vote a term: {id} voted for {voted} and {write.vote} in term {write.term}")
        if write.snapshot is not None:
            slot = write.snapshot.slot
            try:
                reader = snapshots.Reader(write.snapshot, lambda number: storage.piece(GROUP, slot, number))
                deque(snapshots.verify(write.snapshot, reader.pieces()), 0)
            except RaftplugError as error:
                raise Violation(f"snapshots: that of {id} at {write.snapshot.index}: {error}") from None
            members = core.Configuration.from_plain(reader.configuration)
        if write.snapshot is not None and write.snapshot_resets_log:
            self.durable.clear()
            self.last = (write.snapshot.term, write.snapshot.index)
            self.configurations = {write.snapshot.index: members}
        elif write.snapshot is not None:
            known = max(index for index in self.configurations if index <= write.snapshot.index)
            if members != self.configurations[known]:
                raise Violation(f"members: a snapshot of {id} holds another configuration than its index had")
        if write.snapshot is not None:
            self.base = max(self.base, write.snapshot.index)
            self.durable[write.snapshot.index] = write.snapshot.check
        if write.first:
            for account in (self.durable, self.configurations):
                for index in [index for index in account if index >= write.first]:
                    del account[index]
            at = 0
            while at < len(write.block):
                index, term, kind, length, check = _ENTRY.unpack_from(write.block, at)
                if kind == CONFIGURATION:
                    start = at + _ENTRY.size
                    with contextlib.suppress(MalformedMessage):
                        self.configurations[index] = core.Configuration.decode(write.block[start : start + length])
                self.durable[index] = check
                self.last = (term, index)
                at += _ENTRY.size + length
