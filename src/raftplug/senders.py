"""Whose frames are believed: of each data directory, those of its latest life (DESIGN 7).

A life is one opening of a directory: its boot counter says which, its nonce tells it from every other.  Whoever hears
a life keeps that on its own disk.  A directory that is put back as it was, or copied, may lack what the original
acknowledged.  Its boots are below those that were heard, or are the same with other nonces; and when it has been
started often enough to be above them, it cannot say what nonce the life had that was heard.  So a new life is believed
once its directory has told that: it does so in its first frame to anybody, and whenever it is asked.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

from raftplug.constants import DISPLACED, LIVES, LIVES_WANTED
from raftplug.errors import MalformedMessage
from raftplug.frames import Frame, Id, life
from raftplug.storage import Heard, Identity

_CLIENTS_REMEMBERED = 10_000
_NODES_REMEMBERED = 1_000  # Also on the disk.
_TOLD = 100  # Lives that are told unasked.
_BOOT = struct.Struct("<Q")


ABOUT_LIVES = frozenset({DISPLACED, LIVES_WANTED, LIVES})
"""Items that are read whoever's life says them, each of them being true for ever, or asked in vain."""


class Verdict(NamedTuple):
    """Whether a frame is believed; and what its sender is to be told, if anything: kind and body of an item.

    Args:
        reason: why it is not, for people; None if this is nothing that they need to know.
    """

    believed: bool
    reason: str | None = None
    kind: int = 0
    body: bytes = b""


_BELIEVED = Verdict(True)


class Senders:
    """What is known of everybody who was heard.

    Args:
        heard: what the disk remembers.
    """

    def __init__(self, heard: Iterable[Heard]) -> None:
        self.unkept = False
        """Whether another life of a node was heard than the disk remembers."""
        # By id and directory: boot, nonce and sequence of the last frame.  A client has no directory, and is not kept.
        self._nodes: OrderedDict[tuple[Id, bytes], tuple[int, int, int]] = OrderedDict()
        self._clients: OrderedDict[tuple[Id, bytes], tuple[int, int, int]] = OrderedDict()
        for node, storage, boot, nonce in heard:
            self._nodes[node, storage] = (boot, nonce, 0)
        self.forgotten: Id | None = None
        """Whom the last frame that was accepted made us forget: the one that was silent longest."""

    def judge(self, frame: Frame, is_client: bool) -> Verdict:
        """Believe a frame, and remember it, or refuse it."""
        known, sender = self._clients if is_client else self._nodes, (frame.source, frame.storage)
        last = known.get(sender)
        if last is not None and last[0] == frame.boot and last[1] == frame.nonce and last[2] < frame.sequence:
            known[sender] = (frame.boot, frame.nonce, frame.sequence)
            known.move_to_end(sender)
            self.forgotten = None
            return _BELIEVED
        boot, nonce, sequence = last or (0, frame.nonce, 0)
        verdict = _BELIEVED
        if is_client and frame.boot < boot:
            return Verdict(False, "a frame of an earlier process of a client")
        if not is_client and (frame.boot, frame.nonce) != (boot, nonce):
            if sender in known:
                verdict = self._judge_life(frame, boot, nonce)
            self.unkept = self.unkept or verdict.believed
        elif frame.boot == boot and frame.nonce == nonce and frame.sequence <= sequence:
            return Verdict(False, "a frame that was delivered before")
        if verdict.believed:
            known[sender] = (frame.boot, frame.nonce, frame.sequence)
            known.move_to_end(sender)
            self.forgotten = None
            if len(known) > (_CLIENTS_REMEMBERED if is_client else _NODES_REMEMBERED):
                self.forgotten = known.popitem(last=False)[0][0]
        elif all(item.kind in ABOUT_LIVES for item in frame.items):
            return verdict._replace(kind=0)  # Else two who do not believe each other would go on for ever.
        return verdict

    def lives(self) -> list[Heard]:
        """What the disk is to remember."""
        return [Heard(*sender, boot, nonce) for sender, (boot, nonce, _) in self._nodes.items()]

    @staticmethod
    def _judge_life(frame: Frame, boot: int, nonce: int) -> Verdict:
        """Whether another life than the one of `boot` and `nonce`, which was the latest, can be believed."""
        told = _nonce_told(frame, boot) if frame.boot > boot else -1
        if told == nonce:
            # If that one is no memory, but the process whose directory was copied, it has to know.
            return Verdict(True, None, DISPLACED, life(frame.storage, nonce))
        if told is None:
            return Verdict(False, None, LIVES_WANTED, life(frame.storage, frame.nonce) + _BOOT.pack(boot))
        # It has to know; whoever lives there now does not mind, if this is an old frame.
        reason = f"a frame of an older or copied data directory of {frame.source!r}"
        return Verdict(False, reason, DISPLACED, life(frame.storage, frame.nonce))


def _nonce_told(frame: Frame, boot: int) -> int | None:
    """The nonce of that boot, if the frame tells it."""
    for item in frame.items:
        if item.kind == LIVES:
            if len(item.body) % _BOOT.size or not item.body:
                raise MalformedMessage("an item about lives that cannot be read")
            first, *nonces = struct.unpack(f"<{len(item.body) // _BOOT.size}Q", item.body)
            if first <= boot < first + len(nonces):
                return int(nonces[boot - first])
    return None


def tell_lives(identity: Identity, boot: int | None = None) -> bytes:
    """The item that says what nonces our lives had: the last ones before this one, or that of `boot` only."""
    if boot is None:
        told = identity.past[-_TOLD:]
        return struct.pack(f"<{1 + len(told)}Q", identity.boot - len(told), *told)
    first = identity.boot - len(identity.past)
    known = first <= boot < identity.boot
    return struct.pack("<2Q", boot, identity.past[boot - first] if known else 0)  # No life has that nonce.


def boot_wanted(identity: Identity, body: bytes) -> int | None:
    """The boot whose nonce an item asks for; None if it asks another life of ours.

    Raises:
        MalformedMessage: it cannot be read.
    """
    own = life(identity.storage, identity.nonce)
    if len(body) != len(own) + _BOOT.size:
        raise MalformedMessage("an item that asks for lives, and cannot be read")
    return int(_BOOT.unpack_from(body, len(own))[0]) if body.startswith(own) else None
