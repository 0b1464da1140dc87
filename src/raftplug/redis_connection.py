"""A connection to a Redis: which server, by redis-py's handshake, and then a non-blocking socket with its parser.

Everything that can go wrong on the way is put into our words here: a `Lost`, whose text never repeats the URL.
"""

from __future__ import annotations

import errno
import inspect
import ipaddress
import re
import socket
import ssl
from typing import Any, Final

import hiredis
import redis
from redis.connection import AbstractConnection, Connection, parse_url

from raftplug.errors import InvalidArgument

_CONNECT_S: Final = 1.0
_KEYS_REMEMBERED: Final = 10_000
READ_BYTES: Final = 1 << 16
PARTIAL: Final = object()
"""What a parser returns when the reply is not complete yet."""
_WOULD_BLOCK: Final = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)

NO_REDIS: Final = "what answers there is no Redis: check host and port"
_REFUSED: Final = "connection refused: is the server running, and are host and port right?"
_WRITE_URLS: Final = (
    "write it like redis://HOST:6379, rediss://USER:PASSWORD@HOST:6379, unix:///run/redis.sock, "
    "redis+sentinel://HOST:26379/SERVICE or redis+cluster://HOST:6379"
)

_ENCODE: Final = (
    "the Redis URL cannot be read for certain: if a password or user name holds a character such as @ : / ? # % or a "
    "blank, percent-encode it (@ is %40, : is %3A, / is %2F, ? is %3F, # is %23, % is %25, a blank is %20)"
)
_RAW: Final = re.compile(r"[\s\[\]:@]|%(?![0-9A-Fa-f]{2})")
_FAR: Final = "names {host}, which other machines can reach: that needs a cluster key, in RAFTPLUG_CLUSTER_KEY or key="

# What an error reply means, by its first word, and what to do about it.
REPLIES: Final = {
    "WRONGTYPE": "{key} holds another type: another program uses that name; choose another prefix, or delete the key",
    "OOM": "the server is out of memory and refuses writes: raise its maxmemory, or make room",
    "READONLY": "the server is a read-only replica: give the address of the primary",
    "MOVED": "the server is part of a Redis Cluster: use redis+cluster:// instead of redis://",
    "ASK": "the server is moving {key} to another node of its Redis Cluster: messages flow again when that is done",
    "LOADING": "the server is still loading its data: wait until it has",
    "MISCONF": "the server refuses writes since it cannot save its data: see its log, and make room on its disk",
    "NOREPLICAS": "the server refuses writes since it has too few replicas: start them, or lower min-replicas-to-write",
    "MASTERDOWN": "the server is a replica that has lost its primary: give the address of the new primary",
    "CLUSTERDOWN": "the Redis Cluster is down: start its servers (CLUSTER INFO says what is missing)",
    "UNBLOCKED": "the server became a replica: give the address of the new primary",
    "NOAUTH": "the server wants a password: put it into the URL, as in redis://USER:PASSWORD@HOST",
    "WRONGPASS": "the server refuses the user name or password of the URL: correct it, or the user on the server",
    "NOPERM": "the user may not do what raftplug needs (python -m pydoc raftplug.redis_streams prints the ACL): {text}",
}
# The same for those that begin like many others, by a part of them.
_BY_PART: Final = {
    "max number of clients": "the server has as many clients as it allows: close some, or raise its maxclients",
    "exhausted the last possible ID": "{key} has an entry of the far future, so that nothing can be added: "
    "its owner makes it again when it runs",
}


class Lost(Exception):
    """A connection ended; the text says why."""


class Wire:
    """One connection after its handshake: a non-blocking socket, what waits to be sent, and an incremental parser."""

    __slots__ = ("_buffer", "_connection", "_ending", "_reader", "_socket", "fd", "moved", "out")

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._socket: socket.socket = connection._sock  # The one thing here that redis-py does not make public.
        self._socket.setblocking(False)
        self._reader = hiredis.Reader(notEnoughData=PARTIAL)
        self._buffer = bytearray(READ_BYTES)
        self._ending = ""
        self.fd = self._socket.fileno()
        self.moved = False  # Bytes came, or went that had been waiting: slow, perhaps, but no silence.
        self.out = bytearray()

    def flush(self) -> None:
        """Send what can be sent without blocking."""
        out = self.out
        while out:
            try:
                count = self._socket.send(out)
            except _WOULD_BLOCK:
                return
            except OSError as error:
                raise Lost(_os_text(error)) from None
            del out[:count]
            self.moved |= bool(out)

    def read(self) -> list[Any]:
        """The whole replies that have arrived.  What came before the end of a connection is still returned."""
        while not self._ending:
            try:
                count = self._socket.recv_into(self._buffer)
            except _WOULD_BLOCK:
                break
            except OSError as error:
                self._ending = _os_text(error)
                break
            if not count:
                self._ending = "the server closed the connection"
                break
            self.moved = True
            self._reader.feed(self._buffer, 0, count)  # type: ignore[arg-type]  # Its stub forgets bytearray.
            if count < READ_BYTES and not isinstance(self._socket, ssl.SSLSocket):
                break  # The socket is empty: one system call less.
        replies = []
        try:
            while (reply := self._reader.gets()) is not PARTIAL:
                if not isinstance(reply, hiredis.PushNotification):
                    replies.append(reply)
        except hiredis.ProtocolError:
            raise Lost(NO_REDIS) from None
        if self._ending and not replies:
            raise Lost(self._ending)
        return replies

    def close(self) -> None:
        self._connection.disconnect()

    def forked(self) -> None:
        """In a child: close its copy of the socket, and say nothing to the server."""
        self._socket.close()


def pack(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join([b"$%d\r\n%b\r\n" % (len(word), word) for word in words])


def pack_beginning(*words: bytes) -> bytes:
    """A command that lacks its last word."""
    return b"*%d\r\n" % (len(words) + 1) + b"".join([b"$%d\r\n%b\r\n" % (len(word), word) for word in words])


def pack_last(word: bytes) -> bytes:
    """The word that the command lacks."""
    return b"$%d\r\n%b\r\n" % (len(word), word)


class Route:
    """One server, and how to connect to it; the other kinds of URL refine it."""

    clustered = False
    only_local = False
    """Whether to connect to no server that other machines can reach, whoever names it: set where there is no key."""

    def __init__(self, url: str) -> None:
        try:
            options: dict[str, Any] = dict(parse_url(url))  # type: ignore[no-untyped-call]
            self._class: Any = options.pop("connection_class", Connection)
            for name in ("max_connections", "timeout", "retry", "retry_on_error", "health_check_interval"):
                options.pop(name, None)
            options.update(socket_timeout=_CONNECT_S, socket_connect_timeout=_CONNECT_S, retry_on_timeout=False)
            # CLIENT SETINFO is a right that the minimal ACL does not give.
            if "driver_info" in inspect.signature(AbstractConnection.__init__).parameters:
                options["driver_info"] = None
            else:
                options.update(lib_name=None, lib_version=None)
            self._options = options
            self._class(**options)
        except Exception as error:  # Whatever redis-py makes of a text that a user typed; it may hold a password.
            raise InvalidArgument(f"the Redis URL cannot be ({type(error).__name__}): {_WRITE_URLS}") from None
        self.has_password = bool(options.get("password"))
        self._address = str(options.get("path") or _join(options.get("host", "localhost"), options.get("port", 6379)))
        self.is_local = bool(options.get("path")) or _is_loopback(str(options.get("host", "localhost")))
        """Whether only this machine's processes can reach it, by a unix socket or a loopback address."""

    def address(self, key: bytes) -> str:
        """host:port, or a socket's path, of the server that holds `key`."""
        return self._address

    def moved(self, key: bytes, text: str) -> bool:
        """Take note of a MOVED or ASK; False if this kind of server has no business saying so."""
        return False

    def knows(self, key: bytes) -> bool:
        """Whether `address` is right for `key`, as far as the servers have said."""
        return True

    def settle(self, key: bytes, address: str) -> None:
        """Take note that the server at `address` has `key`."""

    def failed(self, address: str) -> None:
        """Take note that a server cannot be used."""

    def connect(self, address: str) -> Any:
        """Connect and authenticate; it blocks.  Raises Lost."""
        return self._open({})

    def _open(self, place: dict[str, Any]) -> Any:
        connection = self._class(**{**self._options, **place})
        try:
            connection.connect()
        except (redis.RedisError, OSError, hiredis.HiredisError) as error:
            connection.disconnect()
            raise Lost(connect_text(error, self.has_password)) from None
        made = connection._sock
        if made.family != socket.AF_UNIX and made.getsockname() == made.getpeername():
            # The kernel gave our end the very port that we looked for: nobody listens there but we.
            connection.disconnect()
            raise Lost(_REFUSED)
        return connection


class _SentinelRoute(Route):
    """redis+sentinel://HOST:PORT,HOST:PORT/SERVICE/DB: each connect asks a sentinel for the primary."""

    def __init__(self, url: str) -> None:
        before, self._sentinels, path, query = _split(url, 26379)
        service, _, database = path.partition("/")
        if not service:
            raise InvalidArgument(f"a redis+sentinel:// URL needs the service's name: {_WRITE_URLS}")
        self._service = service
        super().__init__(f"redis://{before}sentinel/{database}{query}")
        self.is_local = all(_is_loopback(host) for host, _ in self._sentinels)  # See `only_local`.
        self._sentinel_options = {
            "username": self._options.pop("sentinel_username", None),
            "password": self._options.pop("sentinel_password", None),
        }

    def address(self, key: bytes) -> str:
        return self._service

    def connect(self, address: str) -> Any:
        text = "no sentinel"
        for host, port in list(self._sentinels):
            try:
                sentinel = self._open({"host": host, "port": port, "db": 0, **self._sentinel_options})
            except Lost as error:
                text = f"sentinel {_join(host, port)}: {error}"
                continue
            try:
                sentinel.send_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._service)
                found = sentinel.read_response()
            except redis.RedisError as error:
                text = f"sentinel {_join(host, port)}: {connect_text(error, self.has_password)}"
                continue
            finally:
                sentinel.disconnect()
            if not found:
                text = f"sentinel {_join(host, port)} knows no service {self._service}"
                continue
            if self.only_local and not _is_loopback(as_text(found[0])):
                raise Lost(f"the sentinel {_FAR.format(host=as_text(found[0]))}")
            return self._open({"host": as_text(found[0]), "port": int(found[1])})
        raise Lost(text)


class _ClusterRoute(Route):
    """redis+cluster://HOST:PORT,HOST:PORT: where a key is, the servers' MOVED replies tell; no map is fetched."""

    clustered = True

    def __init__(self, url: str) -> None:
        before, self._seeds, _, query = _split(url, 6379)
        super().__init__(f"redis://{before}{self._seeds[0][0]}{query}")
        self.is_local = all(_is_loopback(host) for host, _ in self._seeds)  # See `only_local`.
        self._places: dict[bytes, str] = {}

    def address(self, key: bytes) -> str:
        return self._places.get(key) or _join(*self._seeds[0])

    def moved(self, key: bytes, text: str) -> bool:
        word, _, place = text.split(" ")[:3]
        if word != "MOVED" or ":" not in place:
            return False
        if place.startswith(":"):  # An old server that does not know its own name: the one we asked.
            place = self._seeds[0][0] + place
        self.settle(key, place)
        return True

    def knows(self, key: bytes) -> bool:
        return key in self._places

    def settle(self, key: bytes, address: str) -> None:
        if len(self._places) > _KEYS_REMEMBERED:
            self._places.clear()
        self._places[key] = address

    def failed(self, address: str) -> None:
        self._places = {key: place for key, place in self._places.items() if place != address}
        if address == _join(*self._seeds[0]):
            self._seeds.append(self._seeds.pop(0))

    def connect(self, address: str) -> Any:
        host, _, port = address.rpartition(":")
        if self.only_local and not _is_loopback(host.strip("[]")):
            raise Lost(f"the Redis Cluster {_FAR.format(host=host)}")
        return self._open({"host": host.strip("[]"), "port": int(port)})


def route(url: str) -> Route:
    """How to connect to the server, or servers, that a URL names.

    Raises:
        InvalidArgument: it is no such URL; the message does not repeat it.
    """
    scheme, _, rest = url.partition("://")
    scheme = scheme.lower()
    _check_encoding(scheme, rest)
    kinds = {"redis+sentinel": _SentinelRoute, "redis+cluster": _ClusterRoute}
    return kinds.get(scheme, Route)(url)


def _check_encoding(scheme: str, rest: str) -> None:
    """Refuse a URL in which a password was not percent-encoded: a part of it would be taken for host, port or path.

    Args:
        scheme: in lower case.
        rest: what follows ://
    """
    place = re.split(r"[/?]", rest, maxsplit=1)[0]
    user, _, host = place.rpartition("@")
    after = rest[len(place) :]
    if scheme == "unix" and not host:
        after = after.partition("?")[2]  # The path of a socket may well have an @.
    name, _, password = user.partition(":")
    if "#" in rest or "@" in after or any(map(_RAW.search, (name, password))) or re.search(r"\s", place + after):
        raise InvalidArgument(_ENCODE)


def _split(url: str, port: int) -> tuple[str, list[tuple[str, int]], str, str]:
    """Of a URL with several hosts: the user's part with its @, the hosts, the path, and the query with its ?."""
    rest, mark, query = url.partition("://")[2].partition("?")
    place, _, path = rest.partition("/")
    before, at, hosts = place.rpartition("@")
    found = []
    for text in hosts.split(","):
        host, colon, number = text.rpartition(":")
        if colon and not number.isdecimal():
            raise InvalidArgument(f"the Redis URL cannot be: {_WRITE_URLS}")
        found.append((host.strip("[]"), int(number)) if colon else (text, port))
    if not all(host for host, _ in found):
        raise InvalidArgument(f"the Redis URL has no host: {_WRITE_URLS}")
    return before + at, found, path, mark + query


def _join(host: Any, port: Any) -> str:
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"  # Any other name may be anywhere, now or tomorrow.


def reply_text(text: str, key: bytes = b"the key") -> str:
    """What an error reply means, and what to do about it.

    Args:
        text: of the reply.
        key: what was asked about.
    """
    name = key.decode(errors="replace")
    for part, meaning in _BY_PART.items():
        if part in text:
            return meaning.format(key=name)
    return REPLIES.get(text.partition(" ")[0], "the server says: {text}").format(key=name, text=text)


_TLS: Final = "TLS failed: does the server speak TLS on that port? (rediss:// does, redis:// does not)"
_NOT_TRUSTED: Final = "its TLS certificate is not trusted: "
_LASTING: Final = (
    NO_REDIS,
    _TLS,
    _NOT_TRUSTED,
    *(REPLIES[word].partition("{")[0] for word in ("NOAUTH", "WRONGPASS", "NOPERM")),
)


def may_pass(text: str) -> bool:
    """Whether what kept a connection from being made may pass by itself: not if only a human can mend it."""
    return not text.startswith(_LASTING) and _FAR.partition("{host}")[2] not in text


def as_text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _os_text(error: OSError) -> str:
    if isinstance(error, ConnectionRefusedError):
        return _REFUSED
    if isinstance(error, ssl.SSLCertVerificationError):
        return _NOT_TRUSTED + error.verify_message
    if isinstance(error, ssl.SSLError):
        return _TLS
    if isinstance(error, socket.gaierror):
        return "the host's name is unknown"
    if isinstance(error, ConnectionResetError | BrokenPipeError):
        return "the server closed the connection"
    if isinstance(error, TimeoutError):
        return (
            f"no answer within {_CONNECT_S:g} s: is it a Redis, does it run, and is redis:// or rediss:// (TLS) right?"
        )
    if error.errno == errno.ENOENT:
        return "there is no such socket: is the server running?"
    return error.strerror or type(error).__name__


def connect_text(error: BaseException, has_password: bool) -> str:
    """Why connecting, or asking, failed: our words, never the URL's."""
    cause: BaseException | None = error
    for _ in range(8):
        if isinstance(cause, OSError) and not isinstance(cause, redis.RedisError):
            return _os_text(cause)
        if cause is None:
            break
        cause = cause.__cause__ or cause.__context__
    text = str(error)
    if isinstance(error, redis.AuthenticationError):
        return REPLIES["WRONGPASS" if has_password else "NOAUTH"]
    if text.partition(" ")[0] in REPLIES or any(part in text for part in _BY_PART):
        return reply_text(text)
    if isinstance(error, redis.exceptions.NoPermissionError):
        return REPLIES["NOPERM"].format(text=text)
    if isinstance(error, redis.BusyLoadingError):
        return REPLIES["LOADING"]
    if isinstance(error, redis.InvalidResponse | hiredis.ProtocolError):
        return NO_REDIS
    if isinstance(error, redis.TimeoutError):
        return _os_text(TimeoutError())
    if isinstance(error, redis.ResponseError):
        return f"the server says: {text}"
    return "the connection was closed: is it a Redis, and is redis:// or rediss:// (TLS) right?"
