"""The frame: what one process sends another in one piece, and how it is authenticated.

A frame is a fixed header, the two ids, any number of items and a MAC::

    "RP"  version  key id  cluster id  storage uuid  boot  nonce  sequence      struct HEADER
    from  to                                                                    a length byte and msgpack, each
    group  kind  length  body                                                   struct ITEM, once an item
    MAC                                                                         16 bytes, keyed BLAKE2b, over all before

The MAC is verified before anything but magic, version and key id is looked at.  `keys` says where a key comes from.
The records that nodes put into the directory carry a MAC of the same key, in hexadecimal digits.  Frames are the same
on both cores: this module is not compiled.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import msgpack

from raftplug.constants import LIMIT
from raftplug.errors import InvalidArgument, MalformedMessage
from raftplug.foreign import described, short

Id = int | str

_HEADER = struct.Struct("<2sBB16s16sQQQ")
_ITEM = struct.Struct("<QBI")
_HEADER_BYTES, _ITEM_BYTES = _HEADER.size, _ITEM.size
_MAGIC = b"RP"
_VERSION = 1
_MAC_BYTES = 16
_IDS_REMEMBERED = 4_096
_KEYS_REMEMBERED = 16
NO_CLUSTER = bytes(16)
_NO_MAC = bytes(_MAC_BYTES)
_OF_FRAME, _OF_RECORD = b"raftplug frame", b"raftplug record"  # So that neither's MAC can pass for the other's.
_ID_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")


def check_id(value: object, what: str = "id") -> Id:
    """Return `value` if it can name a node: an int in [0, 2^63), or 1 to 64 of the characters A-Z a-z 0-9 . _ -

    A text of digits alone is refused: people, the command line and the names of streams cannot tell it from the int.

    Raises:
        InvalidArgument: it cannot.
    """
    if type(value) is int and 0 <= value < LIMIT:
        return value
    if type(value) is str and 1 <= len(value) <= 64 and _ID_CHARACTERS.issuperset(value):
        if not value.isdigit():
            return value
        raise InvalidArgument(f"{what} {short(value)} cannot be: an id of digits alone is a whole number, give an int")
    raise InvalidArgument(
        f"{what} {short(value)} cannot be: use 1 to 64 letters, digits, '.', '_' or '-', or a whole number"
    )


def parse_id(text: str, what: str = "id") -> Id:
    """The id that `text` says on a command line: digits alone are a whole number.

    Raises:
        InvalidArgument: it says none.
    """
    if text.isascii() and text.isdigit():
        if len(text) > 1 and text.startswith("0"):
            raise InvalidArgument(f"{what} {text} cannot be: a whole number does not begin with 0")
        return check_id(int(text) if len(text) < 20 else -1, what)
    return check_id(text, what)


def check_group(value: object) -> str:
    """Return `value` if it can name a group: 1 to 64 of the characters A-Z a-z 0-9 . _ -

    Raises:
        InvalidArgument: it cannot.
    """
    if type(value) is str and 1 <= len(value) <= 64 and _ID_CHARACTERS.issuperset(value):
        return value
    raise InvalidArgument(f"group {short(value)} cannot be: use 1 to 64 letters, digits, '.', '_' or '-'")


def check_ids(values: object, what: str = "peer") -> list[Id]:
    """Return a list of `values`, each of which can name a node.

    Raises:
        InvalidArgument: one cannot, or they are no list: a text, say, which would be taken for its characters.
    """
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise InvalidArgument(f"{what}s must be a list of ids, not {short(values)}")
    try:
        given = list(values)
    except Exception as error:
        raise InvalidArgument(f"{what}s must be a list of ids, and cannot be read: {described(error)}") from error
    return [check_id(value, what) for value in given]


def address(body: bytes, nonce: int) -> bytes:
    """A request's item for the process with that nonce only; 0 is for whoever has the target's id."""
    return nonce.to_bytes(8, "little") + body


def addressed(item: bytes) -> tuple[int, bytes]:
    """What `address` was given."""
    return int.from_bytes(item[:8], "little"), item[8:]


def group_number(name: str) -> int:
    """The number that stands for the group `name` on the wire: 63 bits of its BLAKE2b digest."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") & (LIMIT - 1)


def cluster_uuid(group: str, peers: Sequence[Id]) -> bytes:
    """The digest of a cluster's names: a pure function, so that independent bootstraps agree (DESIGN 7).

    Messages are addressed by it.  It is not unique: see `founding_id`.

    Args:
        group: the name of the group it is founded with.
        peers: the ids of its first voters, in any order.

    Returns: 16 bytes.
    """
    members = sorted(peers, key=_in_order)
    return hashlib.blake2b(msgpack.packb([group, members]), digest_size=16, person=b"raftplug cluster").digest()


def founding_id(names: bytes, directories: Mapping[Id, bytes]) -> bytes:
    """The id of a cluster, unique per founding.

    Args:
        names: what `cluster_uuid` gave.
        directories: the uuids of the founders' data directories, by id.

    Returns: 16 bytes.
    """
    pairs = [[id, directories[id]] for id in sorted(directories, key=_in_order)]
    return hashlib.blake2b(msgpack.packb([names, pairs]), digest_size=16, person=b"raftplug founded").digest()


def _in_order(id: Id) -> tuple[bool, Id]:
    return isinstance(id, str), id


@dataclass(frozen=True, slots=True)
class Key:
    """A cluster's key: whoever holds it may speak in the cluster.

    Args:
        id: 1 to 255, to tell keys apart while one is rotated; no secret.  0 in a frame is no key.
        secret: 16 to 64 bytes.
    """

    id: int
    secret: bytes = field(repr=False)


class Item(NamedTuple):
    """One message in a frame: for a group (see `group_number`), of a kind of `constants`."""

    group: int
    kind: int
    body: bytes


class Frame(NamedTuple):
    """A frame that was received: its header, checked, and its items."""

    cluster: bytes
    storage: bytes
    boot: int
    nonce: int
    sequence: int
    source: Id
    target: Id
    items: list[Item]


@dataclass(slots=True)
class Sender:
    """Who sends: the constant part of every frame's header.  `sequence` counts the frames of this boot.

    Args:
        source: the sender's id.
        cluster: id of its cluster, 16 bytes; zeros where it belongs to none yet.
        storage: uuid of its data directory, 16 bytes; zeros for a client.
        boot: how often the directory was opened.
        nonce: random, 63 bits, new at every start.
        key: what signs its frames; None leaves them unsigned.
    """

    source: Id
    cluster: bytes
    storage: bytes
    boot: int
    nonce: int
    key: Key | None = None
    sequence: int = field(default=0)

    def encode(self, target: Id, items: Sequence[tuple[int, int, bytes]], cluster: bytes | None = None) -> bytes:
        """The next frame to `target`, of (group, kind, body) items; `cluster` takes the place of the sender's."""
        self.sequence += 1
        key, id = self.key, self.cluster if cluster is None else cluster
        header = _HEADER.pack(
            _MAGIC, _VERSION, key.id if key else 0, id, self.storage, self.boot, self.nonce, self.sequence
        )
        parts = [header, _pack_id(self.source), _pack_id(target)]
        for group, kind, body in items:
            parts += _ITEM.pack(group, kind, len(body)), body
        data = b"".join(parts)
        return data + (_mac(key, data, _OF_FRAME) if key else _NO_MAC)


def decode_frame(data: bytes, keys: Sequence[Key] = ()) -> Frame:
    """Check and parse a received frame.

    Args:
        data: the bytes.
        keys: the accepted keys; none accepts only frames without a key.

    Raises:
        MalformedMessage: it is not a frame, or none of the keys signed it.
    """
    if len(data) < _HEADER_BYTES + _MAC_BYTES:
        raise MalformedMessage("a frame that is too short")
    magic, version, key_id, cluster, storage, boot, nonce, sequence = _HEADER.unpack_from(data)
    if magic != _MAGIC or version != _VERSION:
        raise MalformedMessage("not a frame of this version")
    end = len(data) - _MAC_BYTES
    # One text whoever sent what: nothing of such a frame can be believed, and status shows one line.
    if keys and not _is_signed(data[:end], data[end:], key_id, keys, _OF_FRAME):
        raise MalformedMessage(
            "a frame that our cluster key did not sign: every node and client needs the same RAFTPLUG_CLUSTER_KEY"
        )
    if not keys and key_id:
        raise MalformedMessage("a signed frame, and no cluster key is here: give the others' RAFTPLUG_CLUSTER_KEY")
    if not keys and not data.endswith(_NO_MAC):
        raise MalformedMessage("a frame whose MAC is wrong")
    if boot | nonce | sequence >= LIMIT:
        raise MalformedMessage("a frame with a number out of range")
    middle = _HEADER_BYTES + 1 + data[_HEADER_BYTES]
    at = middle + 1 + data[middle] if middle < end else LIMIT
    if at > end:
        raise MalformedMessage("a frame that ends within an id")
    source, target = _read_id(data[_HEADER_BYTES + 1 : middle]), _read_id(data[middle + 1 : at])
    items = []
    while at < end:
        start = at + _ITEM_BYTES
        if start > end:
            raise MalformedMessage("a frame that ends within an item")
        group, kind, length = _ITEM.unpack_from(data, at)
        at = start + length
        if at > end or group >= LIMIT:
            raise MalformedMessage("a frame whose item is out of bounds")
        items.append(Item(group, kind, data[start:at]))
    return Frame(cluster, storage, boot, nonce, sequence, source, target, items)


def life(storage: bytes, nonce: int) -> bytes:
    """What names one life of one data directory: uuid of the directory and nonce of the process."""
    return storage + nonce.to_bytes(8, "little")


def sign_record(record: dict[str, Any], keys: Sequence[Key]) -> dict[str, Any]:
    """A record for the directory, signed with the first of the keys, if there is one.

    Args:
        record: what JSON can say.
        keys: the cluster's.
    """
    if not keys:
        return record
    return {**record, "key": keys[0].id, "mac": _mac(keys[0], _canonical(record), _OF_RECORD).hex()}


def is_ours(record: Mapping[str, Any], keys: Sequence[Key]) -> bool:
    """Whether one of the keys signed this record of the directory; without keys, whether it is unsigned."""
    if not keys:
        return "mac" not in record
    try:
        mac = bytes.fromhex(record["mac"])
        data = _canonical({name: value for name, value in record.items() if name not in ("key", "mac")})
        return _is_signed(data, mac, record["key"], keys, _OF_RECORD)
    except (KeyError, TypeError, ValueError, RecursionError):
        return False


def _canonical(record: dict[str, Any]) -> bytes:
    """The same bytes however a transport carried the record."""
    return json.dumps(record, sort_keys=True, separators=(",", ":")).encode()


def _is_signed(data: bytes, mac: bytes, key_id: int, keys: Sequence[Key], what: bytes) -> bool:
    for key in keys:  # noqa: SIM110  # `any` would take a frame for each.
        if key.id == key_id and hmac.compare_digest(mac, _mac(key, data, what)):
            return True
    return False


def _mac(key: Key, data: bytes, what: bytes) -> bytes:
    mac = _keyed(key.secret, what).copy()
    mac.update(data)
    return mac.digest()


@lru_cache(_KEYS_REMEMBERED)
def _keyed(secret: bytes, what: bytes) -> hashlib.blake2b:
    """A hash that has taken nothing but its key yet: to copy one takes a third of the time that making it does."""
    return hashlib.blake2b(key=secret, digest_size=_MAC_BYTES, person=what)


@lru_cache(_IDS_REMEMBERED, typed=True)
def _pack_id(value: Id) -> bytes:
    packed: bytes = msgpack.packb(value)
    return bytes((len(packed),)) + packed


@lru_cache(_IDS_REMEMBERED)
def _read_id(data: bytes) -> Id:
    try:
        value = msgpack.unpackb(data)
    except ValueError:
        raise MalformedMessage("a frame with an unreadable id") from None
    if type(value) is int and 0 <= value < LIMIT:
        return value
    if isinstance(value, str) and value:
        return value
    raise MalformedMessage("a frame with an id that cannot be")
