"""Where a cluster's key comes from, and when there must be one (DESIGN 7).

A key signs every frame of the cluster's nodes and clients.  It is given to each of them: to `Node` and `Client` as
`key=`, to a command in a file with `--key-file`, or, where it is not given, in the environment::

    python -c "import secrets; print(secrets.token_hex(32))" > cluster.key
    RAFTPLUG_CLUSTER_KEY=$(cat cluster.key) raftplug node …

To rotate it, give every process both keys, the old one first; then to each the new one first; then the new one alone.
In a file or the environment a comma, a blank or a line's end separates two.  A colon, a semicolon or a bar in a
key that is text is refused: two keys that are taken for one sign nothing that others accept.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from typing import Final

from raftplug.errors import InvalidArgument
from raftplug.foreign import type_name
from raftplug.frames import Key

VARIABLE: Final = "RAFTPLUG_CLUSTER_KEY"
LEAST_BYTES: Final = 16
_MOST: Final = 2
_FILE_CHARACTERS: Final = 4096
_MAKE: Final = 'make one with: python -c "import secrets; print(secrets.token_hex(32))"'
_BETWEEN: Final = re.compile(r"[,\s]+")
_NOT_BETWEEN: Final = re.compile(r"[:;|]")
_REDIS: Final = frozenset(("redis", "rediss", "unix", "redis+sentinel", "redis+cluster"))

Given = bytes | str | Sequence[bytes | str]
"""A key, or two while one is rotated: the first signs, both verify.  Text is taken as UTF-8."""


def cluster_keys(given: Given | None = None, environ: Mapping[str, str] = os.environ) -> tuple[Key, ...]:
    """The keys of a process, the one that signs first; none if there is none.

    Args:
        given: a key, at least 16 bytes, or a sequence of two; None takes what RAFTPLUG_CLUSTER_KEY says, where a comma,
            a blank or a line's end stands between two.
        environ: the environment.

    Raises:
        InvalidArgument: one is too short, or is no key; the message does not repeat it.
    """
    if given is not None:
        several = [given] if isinstance(given, bytes | str) else given
        if not isinstance(several, Sequence):
            raise InvalidArgument("key must be bytes or text, or a sequence of two")
        return _made(several, "key")
    text = environ.get(VARIABLE)
    return () if text is None else _made(_split(text), VARIABLE)


def read_key_file(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """The keys in a file: one, or two with a comma, a blank or a line's end between.

    Raises:
        InvalidArgument: it cannot be read, or holds no key.
    """
    where = f"key file {os.fspath(path)}"
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(_FILE_CHARACTERS + 1)
    except OSError as error:
        raise InvalidArgument(f"{where}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidArgument(f"{where}: it is no text; {_MAKE}") from None
    if len(text) > _FILE_CHARACTERS:
        raise InvalidArgument(f"{where}: it is too long for a key; {_MAKE}")
    words = _split(text)
    _made(words, where)
    return words


def require_key(url: str, keys: Sequence[Key]) -> bool:
    """Refuse a Redis that others reach, too, unless there is a key.

    Args:
        url: where the transport is.  Only Redis is judged: another transport may know its peers by other means.
        keys: of this process.

    Returns: whether it goes on without a key, on a Redis of this machine.

    Raises:
        InvalidArgument: there must be a key, or the URL cannot be.
    """
    if keys or not isinstance(url, str) or url.partition("://")[0].lower() not in _REDIS:
        return False
    from raftplug.redis_connection import route  # Not needed, and not loaded, for the other transports.

    if not route(url).is_local:
        raise InvalidArgument(
            "a Redis that is not on this machine's loopback or a unix socket needs a cluster key, the same for every "
            f"node and client, in {VARIABLE} or key=; {_MAKE}"
        )
    return True


def unsigned(url: str, keys: Sequence[Key]) -> str | None:
    """What the operator of a process without a key is warned of; None if there is nothing.

    Args:
        url: of the transport.
        keys: of this process.

    Raises:
        InvalidArgument: as `require_key`.
    """
    scheme = url.partition("://")[0].lower() if isinstance(url, str) else ""
    if keys or scheme == "memory":
        return None
    to = "can write to this Redis" if require_key(url, keys) else f"can use this transport ({scheme}://)"
    return (
        f"no cluster key: frames are not signed, and any process that {to} is believed; {_MAKE}; give it as {VARIABLE}"
    )


def other_key(group: str, keys: Sequence[Key]) -> str:
    """What to say where the nodes of a group are found, and none of the `keys` signed what they say."""
    how = f"give theirs as {VARIABLE} or key="
    if keys:
        return f"the nodes of group {group!r} have another cluster key, or none: {how}"
    return f"the nodes of group {group!r} have a cluster key, and none was given here: {how}"


def _split(text: str) -> tuple[str, ...]:
    return tuple(filter(None, _BETWEEN.split(text)))


def _made(given: Sequence[bytes | str], where: str) -> tuple[Key, ...]:
    if not 1 <= len(given) <= _MOST:
        raise InvalidArgument(f"{where}: give one key, or two while one is rotated, not {len(given)}; {_MAKE}")
    return tuple(_key(value, where) for value in given)


def _key(given: bytes | str, where: str) -> Key:
    if not isinstance(given, bytes | str):
        raise InvalidArgument(f"{where}: a key must be bytes or text, not {type_name(given)}")
    if isinstance(given, str):
        given = given.strip()
        if len(_split(given)) > 1:  # In a file, these would be two.
            raise InvalidArgument(f"{where}: a key has no comma or white space in it: give two as a list; {_MAKE}")
        found = _NOT_BETWEEN.search(given)
        if found is not None:
            raise InvalidArgument(
                f"{where}: {found[0]!r} separates no keys, and no key has one in it: write a comma between two; {_MAKE}"
            )
    data = given if isinstance(given, bytes) else given.encode("utf-8", "surrogatepass")
    if len(data) < LEAST_BYTES:
        raise InvalidArgument(f"{where}: a key of {len(data)} bytes is too short, at least {LEAST_BYTES}; {_MAKE}")
    # Hashed, so that a key may have any length, and that the id says nothing about the secret.
    secret = hashlib.blake2b(data, digest_size=32, person=b"raftplug secret").digest()
    number = hashlib.blake2b(data, digest_size=8, person=b"raftplug key id").digest()
    return Key(1 + int.from_bytes(number, "little") % 255, secret)
