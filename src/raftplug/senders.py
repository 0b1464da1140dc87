"""Whose frames are believed: of each data directory, those of its latest life (DESIGN 7).

A life is one opening of a directory: its boot counter says which, its nonce tells it from every other.  Whoever hears
a life keeps that on its own disk.  A directory that is put back as it was, or copied, may lack what the original
acknowledged.  Its boots are below those that were heard, or are the same with other nonces; and when it has been
started often enough to be above them, it cannot say what nonce the life had that was heard.  So a new life is believed
once its directory has told that: it does so in its first frame to anybody, and whenever it is asked.

Clients have no directory, and count no boots.  A node that forgets the client that was silent longest raises a floor:
from then on it believes an unknown client only with a boot above all that it has forgotten, and tells it which one.
A recorded frame has none.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

from raftplug.constants import DISPLACED, GREETING, LIMIT, LIVES, LIVES_WANTED, RENEW
from raftplug.errors import MalformedMessage
from raftplug.frames import Frame, Id, Sender, life
from raftplug.storage import Heard, Identity

_CLIENTS_REMEMBERED = 10_000
_NODES_REMEMBERED = 1_000  # Also on the disk.
_TOLD = 100  # Lives that are told unasked.
_BOOT = struct.Struct("<Q")
_RENEWAL = struct.Struct("<2Q")  # A client's nonce, and the boot that it is to count from now on.
_BOOTS_AHEAD = 1 << 32  # How far beyond all that were forgotten a client's boot may be: one frame uses up no numbers.


ABOUT_LIVES = frozenset({DISPLACED, LIVES_WANTED, LIVES, GREETING})
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
        self._floor = -1
        """No client that was forgotten had a higher boot, so a frame of an unknown one must have."""
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
        if is_client and last is None and not self._floor < frame.boot <= self._floor + _BOOTS_AHEAD:
            return Verdict(False, None, RENEW, _RENEWAL.pack(frame.nonce, min(self._floor + 1, LIMIT - 1)))
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
                forgotten, (boot, _, _) = known.popitem(last=False)
                self.forgotten = forgotten[0]
                if is_client:
                    self._floor = max(self._floor, boot)
        elif all(item.kind in ABOUT_LIVES and item.kind != LIVES for item in frame.items):
            # Else two that refuse each other's frames would answer for ever.  LIVES is an answer, and gets one.
            return verdict._replace(kind=0)
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


def boot_to_use(body: bytes, sender: Sender) -> int:
    """The boot that a client counts from now on, after a node asked it to count further; never below the present one.

    The client's requests go out again by themselves.
    """
    if len(body) == _RENEWAL.size:
        nonce, boot = _RENEWAL.unpack(body)
        if nonce == sender.nonce and sender.boot < boot <= sender.boot + _BOOTS_AHEAD:
            return int(boot)
    return sender.boot
