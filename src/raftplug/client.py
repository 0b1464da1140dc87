"""A client: asks a group from a process that is no member of it, through the same transport.

`ClientLoop` is the loop without a thread: it finds the group's nodes in the transport's directory, puts what its
`Requester` wants to send into frames, and hands it the answers.  A test gives it a clock and calls `turn`.  `Client` is
what people use: it opens a transport, and runs the loop in a thread.
"""

from __future__ import annotations

import logging
import math
import os
import random
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgpack

from raftplug import forks, plain, threads
from raftplug.arguments import ends_at, seconds
from raftplug.backup import Writer
from raftplug.cluster import Cluster, check_cluster, is_client, read_record, room_in_messages
from raftplug.constants import LINEARIZABLE, PIECE, PIECE_REQUEST, RENEW, REPLY, REQUEST
from raftplug.core import Future
from raftplug.errors import ChangeRefused, InvalidArgument, MalformedMessage, RaftplugError, Unavailable
from raftplug.foreign import described, log_raised, short
from raftplug.frames import (
    NO_CLUSTER,
    Id,
    Key,
    Sender,
    address,
    check_group,
    check_id,
    decode_frame,
    group_number,
    is_ours,
)
from raftplug.keys import Given, cluster_keys, other_key, require_key
from raftplug.requester import Requester, check_consistency
from raftplug.senders import boot_to_use
from raftplug.settings import Settings, settings_of
from raftplug.snapshots import Fetch, decode_piece, encode_request, from_fields
from raftplug.status import Gathering
from raftplug.storage import StoredSnapshot

_logger = logging.getLogger("raftplug")

_FRAME_BYTES: Final = 256 << 10
_SEEK_US: Final = 20_000  # How often the directory is looked at while somebody waits for the group to be found.
_LOOK_US: Final = 1_000_000  # And otherwise.
_POLL_S: Final = 0.05
_FINISH_S: Final = 5.0  # How long `close` waits for the callbacks of futures.
_DEAD_MS: Final = 30_000  # A cluster that announced itself last so long before another one did is a thing of the past.


class ClientLoop:
    """The loop of a client, a turn at a time.

    Args:
        cluster: the transport, open under `own_id`.
        own_id: of this client: "~" and something that nobody else uses.
        group: the group's name.
        settings: the election timeout, from which patience follows, and the bounds.
        generator: the source of randomness.
        session: the name of a session that outlives this process; see `Client`.
        keys: of the cluster: the first signs, all verify; none for frames without a signature.
        wall_ms: wall-clock time, only to tell a record of today from one of yesterday.

    Attributes:
        sleeping: True while the owner waits in the transport, so that who adds a `call` must wake it.
    """

    def __init__(
        self,
        *,
        cluster: Cluster,
        own_id: Id,
        group: str,
        settings: Settings,
        generator: random.Random,
        session: str | None = None,
        keys: Sequence[Key] = (),
        wall_ms: Callable[[], int] = lambda: 0,
    ) -> None:
        self.cluster = cluster
        self._wall_ms = wall_ms
        self.sleeping = False
        cluster.believe(lambda record: is_ours(record, keys))
        self._own_id = own_id
        self._group = group
        self._number = group_number(group)
        self._settings = settings
        self._keys = keys
        self._sender = Sender(own_id, NO_CLUSTER, bytes(16), 0, generator.getrandbits(63), keys[0] if keys else None)
        self._names = NO_CLUSTER  # By which the cluster's nodes are addressed.
        self._founded = False  # Whether its id is known, too.
        self._nodes: list[Id] = []
        self._hint: Id | None = None  # The leader that the directory named last.
        self._conflict: str | None = None  # Why the group cannot be told from another of its name.
        self._gone: str | None = None  # The same for a cluster that was found, and has left.
        self._refused: str | None = None  # Why the newest frame was.
        self._lives: dict[Id, int] = {}  # The nonce of each node's process, as far as it is known.
        self._announced_ms: dict[Id, float] = {}  # When each node announced itself last, by its own clock.
        self._look_at = 0
        self._now = 0
        self._calls: deque[tuple[Any, ...]] = deque()
        self._outgoing: dict[Id, list[tuple[int, int, bytes]]] = {}
        self._gatherings: list[Gathering] = []
        self._downloads: list[_Download] = []
        self.requester = Requester(
            settings=settings, generator=generator, send=self._queue, name=session, explain=self._explain
        )

    # -- asking: in the loop's thread, or by `call` from any other ---------------------------------------------------

    def call(self, function: Callable[..., None], *arguments: Any) -> None:
        """Have the loop call `function(*arguments)` in its next turn.  Any thread."""
        self._calls.append((function, *arguments))
        if self.sleeping:
            self.cluster.wake()

    def has_calls(self) -> bool:
        """Whether the next turn has calls to make."""
        return bool(self._calls)

    def propose(self, transition: bytes, future: Future, deadline_us: int, sequence: int | None = None) -> None:
        """Propose an encoded transition; see `Requester.propose`."""
        if self._refuses(future):
            return
        self.requester.propose(transition, future, deadline_us, sequence)

    def read(self, query: bytes, future: Future, deadline_us: int, consistency: str = LINEARIZABLE) -> None:
        """Send an encoded query to the group; see `Requester.read`."""
        if self._refuses(future):
            return
        self.requester.read(query, future, deadline_us, consistency)

    def ask(self, operation: str, future: Future, deadline_us: int, arguments: list[Any], to: Id | None = None) -> None:
        """Ask the leader, or `to`, anything that may be asked twice; see `Requester.ask`."""
        if self._refuses(future):
            return
        self.requester.ask(operation, arguments, future, deadline_us, to)

    def download(
        self, source: Id, future: Future, deadline_us: int, snapshot: StoredSnapshot, write: Callable[[bytes], None]
    ) -> None:
        """Fetch a snapshot from a node, piece by piece: `write` takes its bytes; the future gets None, or an error."""
        if self._refuses(future):
            return
        settings = self._settings
        fetch = Fetch(snapshot, source, 0, settings.snapshot_window_bytes, 1000 * settings.election_timeout_ms)
        self._downloads.append(_Download(fetch, future, deadline_us, write))

    def status(self, future: Future, deadline_us: int) -> None:
        """Ask every node of the group how it is; the future gets what `Client.status` returns, or Unavailable."""
        if self._refuses(future):
            return
        self._gatherings.append(Gathering(self._group, future, deadline_us, 1000 * self._settings.election_timeout_ms))

    # -- a turn ----------------------------------------------------------------------------------------------------

    def turn(self, now: int) -> int:
        """Do what is due at `now`, µs.  Returns: when the next turn is due if nothing happens."""
        self._now = now
        for data in self.cluster.receive_messages():
            self._receive(data)
        for _ in range(len(self._calls)):
            function, *arguments = self._calls.popleft()
            function(*arguments)
        if now >= self._look_at or (not self._founded and self._wanted()):
            self._look(now)
        for gathering in self._gatherings:
            gathering.step(now, self._nodes, self.requester, self._explain, self._ages_ms, self.cluster.problems)
        if self._gatherings:
            self._gatherings = [gathering for gathering in self._gatherings if not gathering.future.done()]
        for download in self._downloads:
            self._outgoing.setdefault(download.source, []).extend(
                (self._number, PIECE_REQUEST, request) for request in download.step(now)
            )
        self._downloads = [download for download in self._downloads if not download.future.done()]
        self.requester.tick(now)
        deadline = self.requester.deadline()
        self._flush()
        if self._calls:
            return now
        for gathering in self._gatherings:
            deadline = min(deadline, gathering.due())
        for download in self._downloads:
            deadline = min(deadline, download.due())
        return min(deadline, now + _SEEK_US if not self._founded and self._wanted() else self._look_at)

    def close(self, reason: str = "the client was closed") -> None:
        """End everything that is pending, truthfully, and refuse what comes later.  The transport stays open."""
        self.requester.close(reason)
        self._abandon_gatherings(Unavailable(reason))
        self._abandon_downloads(Unavailable(reason))

    def abort(self, error: Exception) -> None:
        """A turn raised: end what is pending, so that nobody waits for ever, and go on."""
        reason = f"the transport failed ({described(error)})"
        self.requester.abort(reason)
        self._abandon_gatherings(Unavailable(reason))
        self._abandon_downloads(Unavailable(reason))

    def drain(self) -> None:
        """Hand over what was called after the last turn; after `close` it is refused."""
        while True:
            try:
                function, *arguments = self._calls.popleft()
            except IndexError:
                return
            function(*arguments)
            self._abandon_gatherings(Unavailable("the client was closed"))
            self._abandon_downloads(Unavailable("the client was closed"))

    # -- inside: finding the group ---------------------------------------------------------------------------------

    def _wanted(self) -> bool:
        return bool(self.requester.pending() or self._gatherings or self._downloads)

    def _look(self, now: int) -> None:
        """Learn from the directory who serves the group: hints, from anybody, so they are looked at with care."""
        self._look_at = now + _LOOK_US
        clusters: dict[tuple[bytes, bytes], dict[Id, Any]] = {}  # By names and id.
        lives: dict[Id, int] = {}
        replaced: dict[bytes, tuple[bytes, bytes]] = {}  # By what a cluster that was recovered goes on.
        at: dict[tuple[bytes, bytes], float] = {}
        announced: dict[tuple[bytes, bytes, Id], float] = {}
        strangers = False
        for record in self.cluster.directory():
            known = read_record(record, self._group)
            if known is not None and not is_ours(record, self._keys):
                strangers = True
            elif known is not None:
                lives[known.id] = record["nonce"] if type(record.get("nonce")) is int else 0
                key = known.names, known.cluster
                clusters.setdefault(key, {})[known.id] = known.leader
                at[key] = max(at.get(key, known.when_ms), known.when_ms)
                announced[*key, known.id] = known.when_ms
                for start in range(0, len(known.replaces), 16):
                    replaced[known.replaces[start : start + 16]] = key
        clusters = {key: nodes for key, nodes in clusters.items() if not key[1] or key[1] not in replaced}
        self._conflict = self._gone = None
        if strangers and not clusters:
            # None of them would answer us, nor be believed: why wait?
            if self._names == NO_CLUSTER and self.cluster.directory_is_complete():
                self._end_all(other_key(self._group, self._keys))
            else:
                self._gone = other_key(self._group, self._keys)
            return
        if self._founded and self._sender.cluster in replaced:
            self._bind(*replaced[self._sender.cluster])
        if not self._founded:
            newest = max(at.values(), default=0.0)
            alive = sorted(key for key in clusters if newest - at[key] <= _DEAD_MS)
            # A node that does not know its cluster's id yet says no more than the names.
            alive = [key for key in alive if key[1] or not any(each[0] == key[0] and each[1] for each in alive)]
            if self._names != NO_CLUSTER:
                alive = [key for key in alive if key[0] == self._names]
            if len(alive) > 1:
                one, other = (id or names for names, id in alive[:2])
                self._end_all(
                    f"group {self._group!r} is served by two clusters, {one.hex()} and {other.hex()}: "
                    "give one of them another group= or prefix="
                )
                return
            if alive:
                self._bind(*alive[0])
        bound = self._names, self._sender.cluster if self._founded else b""
        records = clusters.get(bound, {})
        if not records:
            if clusters:
                self._gone = (
                    "the cluster that this client knew is gone, and another serves the group: open a new client"
                )
            return  # The directory may have been lost; who was known may still be there.
        self._lives = {id: self._lives.get(id) or lives[id] for id in records}
        self._announced_ms = {id: announced[*bound, id] for id in records}
        nodes = sorted(records, key=lambda id: (isinstance(id, str), id))
        if nodes != self._nodes:
            self._nodes = nodes
            self.requester.set_nodes(nodes)
        hints = Counter(leader for leader in records.values() if leader in records)
        hint = hints.most_common(1)[0][0] if hints else None
        # Only on a change: an old hint must not outlive what an answer said.
        if hint is None or hint == self._hint or self.requester.suggest_leader(hint, now):
            self._hint = hint

    def _ages_ms(self) -> dict[Id, float]:
        """How long ago each node announced itself; by its own clock, so none where that says nothing."""
        newest = max([*self._announced_ms.values(), self._wall_ms()], default=0)
        return {id: newest - at for id, at in self._announced_ms.items() if at > 0}

    def _bind(self, names: bytes, cluster: bytes) -> None:
        """Speak to this cluster from now on; to one without an id, until it has one, by its names."""
        if names != self._names:
            self._names = names
            self.cluster.set_cluster(names)
        self._founded = bool(cluster)
        self._sender.cluster = cluster or names

    def _end_all(self, conflict: str) -> None:
        """Refuse what waits, and what comes until the directory is looked at again."""
        self._conflict = conflict
        error = InvalidArgument(conflict)
        self.requester.abort("not executed", error)
        self._abandon_gatherings(error)

    def _abandon_gatherings(self, error: RaftplugError) -> None:
        gatherings, self._gatherings = self._gatherings, []
        for gathering in gatherings:
            gathering.abandon(error)

    def _abandon_downloads(self, error: RaftplugError) -> None:
        downloads, self._downloads = self._downloads, []
        for download in downloads:
            download.future.set_exception(error)

    def _refuses(self, future: Future) -> bool:
        if self._conflict is None:
            return False
        future.set_exception(InvalidArgument(self._conflict))
        return True

    def _explain(self) -> str:
        problems = self.cluster.problems()
        if problems:
            return "; ".join(problems[:3])
        if self._gone is not None:
            return self._gone
        if self._refused is not None:
            return f"what arrived was refused: {self._refused}"
        if not self._nodes:
            return f"no node of group {self._group!r} was found: is one running, with this group= and prefix=?"
        return ""

    # -- inside: frames --------------------------------------------------------------------------------------------

    def _receive(self, data: bytes) -> None:
        """Take the replies out of a frame; one that is damaged, foreign or late changes nothing."""
        try:
            frame = decode_frame(data, self._keys)
        except MalformedMessage as error:
            _logger.debug("%s: refused %s", self._own_id, error)
            self._refused = str(error)
            return
        self._refused = None
        if frame.target != self._own_id or self._names == NO_CLUSTER:
            return
        if frame.cluster != self._sender.cluster and not self._founded:
            self._look(self._now)  # It has an id since the last look, or it is another cluster.
        if frame.cluster != self._sender.cluster:
            return
        self._lives[frame.source] = frame.nonce
        for item in frame.items:
            if item.kind == RENEW:
                self._sender.boot = boot_to_use(item.body, self._sender)
            if item.kind == PIECE and item.group == self._number:
                for download in self._downloads:
                    download.take(frame.source, item.body, self._now)
            if item.kind != REPLY or item.group != self._number:
                continue
            try:
                nonce, counter, code, value = msgpack.unpackb(item.body, strict_map_key=False)
            except (ValueError, TypeError, msgpack.UnpackException):
                continue
            if nonce == self._sender.nonce:
                self.requester.on_reply(frame.source, counter, code, value)

    def _queue(self, target: Id, body: bytes) -> bool:
        """Returns whether it is addressed to one life of the target."""
        nonce = self._lives.get(target, 0)
        self._outgoing.setdefault(target, []).append((self._number, REQUEST, address(body, nonce)))
        return nonce != 0

    def _flush(self) -> None:
        """One frame a destination, unless it grew too large."""
        outgoing, self._outgoing = self._outgoing, {}
        for target, items in outgoing.items():
            start = size = 0
            for end, item in enumerate(items):
                if size and size + len(item[2]) > _FRAME_BYTES:
                    self.cluster.send_message(target, self._sender.encode(target, items[start:end]))
                    start, size = end, 0
                size += len(item[2])
            self.cluster.send_message(target, self._sender.encode(target, items[start:]))


class _Download:
    """A snapshot on its way from one node."""

    def __init__(self, fetch: Fetch, future: Future, deadline: int, write: Callable[[bytes], None]) -> None:
        self.source = fetch.source
        self.future = future
        self._fetch = fetch
        self._deadline = deadline
        self._write = write

    def step(self, now: int) -> list[bytes]:
        """The requests that are due."""
        fetch = self._fetch
        if self.future.done():
            return []
        if now >= self._deadline or fetch.gone:
            what = "has the snapshot no more" if fetch.gone else "did not give all of the snapshot in time"
            self.future.set_exception(Unavailable(f"{self.source} {what}: try again"))
            return []
        return [encode_request(fetch.snapshot, number) for number in fetch.wanted(now)]

    def due(self) -> int:
        return min(self._deadline, self._fetch.deadline())

    def take(self, source: Id, body: bytes, now: int) -> None:
        fetch = self._fetch
        try:
            found, number, data = decode_piece(body)
        except MalformedMessage:
            return  # It is asked for again.
        if (source, found) != (fetch.source, fetch.snapshot.digest) or self.future.done():
            return
        fetch.take(number, data, now)
        try:
            for piece in fetch.storable():
                self._write(piece.data)
        except BaseException as error:  # Of the caller's function, too.
            self.future.set_exception(error)
        else:
            if fetch.is_complete():
                self.future.set_result(None)


class Client(forks.OfOneProcess):
    """Asks a group from a process that is no member of it.  Usable from many threads, and from asyncio.

    ::

        with raftplug.Client(redis="redis://localhost:6379", group="accounts") as client:
            client.propose({"add": 1})
            client.read({"op": "get", "key": "alice"})

    Every write is executed at most once, however often it had to be asked.  Writes that are under way at the same time
    may be executed in any order; who needs an order waits for each.

    It is a context manager, also of `async with`.  A forked child makes a client of its own: there every method but
    `close` raises InvalidArgument, at once.  So does each method that waits, called by a state machine.

    Args:
        redis: URL of the Redis: redis://, rediss://, unix://, or another installed transport's.
        group: the group's name.
        prefix: what every key in Redis begins with, as the nodes have it.
        cluster: a transport, instead of `redis`, that was opened under `id`; `close` closes it.
        id: the id under which `cluster` was opened; it begins with "~".
        settings: the election timeout should be the nodes'; the bounds are this client's.
        key: the cluster's key, as `Node` takes it; None takes RAFTPLUG_CLUSTER_KEY.
        session: a name under which this process, or a later one, can repeat what it is not sure of: every write then
            has a `sequence` from 1 on, and what was executed under the same name and sequence is not executed again.
            The group forgets a name that was not used for seven days, or when 10,000 others were used since.

    Raises:
        InvalidArgument: the arguments cannot be.
        TransportError: the Redis cannot be used as it is configured.
        Unavailable: no thread could be started.
    """

    REMEDY = "open a new one after the fork"

    def __init__(
        self,
        redis: str | None = None,
        group: str = "default",
        *,
        prefix: str = "raftplug",
        cluster: Cluster | None = None,
        id: str | None = None,
        settings: Settings | None = None,
        key: Given | None = None,
        session: str | None = None,
    ) -> None:
        check_group(group)
        if (redis is None) == (cluster is None):
            raise InvalidArgument("give either redis=, a Redis URL, or cluster=, an open transport")
        if not isinstance(prefix, str):
            raise InvalidArgument(f"prefix {short(prefix)} cannot be: it must be text")
        settings = settings_of(settings)
        if cluster is None and id is not None:
            raise InvalidArgument("id= belongs to a transport that you opened: leave it out, or give cluster=")
        if cluster is not None and not (isinstance(id, str) and is_client(id) and len(id) > 1):
            raise InvalidArgument("cluster= needs id=, the id under which it was opened: '~' and something unique")
        if cluster is not None:
            check_cluster(cluster)
            room_in_messages(cluster, settings)
        keys = cluster_keys(key)
        if redis is not None:
            require_key(redis, keys)
        own_id = id or "~" + os.urandom(8).hex()
        generator = random.Random(int.from_bytes(os.urandom(16)))
        # Everything that can be refused is refused before anything is opened.
        Requester(settings=settings, generator=generator, send=lambda target, body: None, name=session)
        if cluster is None:
            from raftplug.plugins import default

            cluster = default().open_cluster(
                redis or "",
                signed=bool(keys),
                own_id=own_id,
                cluster=NO_CLUSTER,
                prefix=prefix,
                settings=settings,
            )
        self._loop = ClientLoop(
            cluster=cluster,
            own_id=own_id,
            group=group,
            settings=settings,
            generator=generator,
            session=session,
            keys=keys,
            wall_ms=lambda: time.time_ns() // 1_000_000,
        )
        self._group = group
        self._runner = _Runner(self._loop, group)
        try:
            self._thread = threads.start(f"raftplug-client-{group}", self._runner.run)
        except Unavailable:
            cluster.close()
            raise
        forks.follow(self)
        # A client that was forgotten must not keep its thread; the thread knows the runner, not the client.
        self._finalizer = weakref.finalize(self, self._runner.stop)

    def propose(self, transition: Any, timeout: float | None = 10.0, *, sequence: int | None = None) -> Any:
        """Propose a transition, wait, and return its result (None if it was executed earlier and is not kept).

        Args:
            transition: plain data.
            timeout: seconds; None waits without limit.
            sequence: of a client with `session`: which transition this is, from 1.

        Raises:
            InvalidTransition, InvalidArgument, TooLarge: it cannot be proposed.
            TransitionFailed: the state machine raised; that is its result.
            NotLeader, Unavailable, Overloaded, SessionExpired: certainly not executed.
            OutcomeUnknown: it may or may not have been executed, or may be yet.
        """
        self._may_wait()
        return self.propose_async(transition, timeout, sequence=sequence).result()

    def propose_async(self, transition: Any, timeout: float | None = 10.0, *, sequence: int | None = None) -> Future:
        """Propose a transition; the future gets what `propose` returns or raises.

        Raises:
            InvalidTransition, InvalidArgument: it cannot be proposed.
        """
        return self._submit(self._loop.propose, timeout, plain.encode(transition), sequence)

    def read(self, query: Any, timeout: float | None = 10.0, *, consistency: str = LINEARIZABLE) -> Any:
        """Ask the state machine, linearizably: the answer shows everything acknowledged before the call.

        Args:
            query: plain data.
            timeout: seconds; None waits without limit.
            consistency: weaker by name only: see `Node.read`.

        Raises:
            InvalidTransition, InvalidArgument, TooLarge: it cannot be asked.
            QueryFailed: the state machine raised.
            Unavailable, Overloaded: nobody answered in time.
        """
        self._may_wait()
        return self.read_async(query, timeout, consistency=consistency).result()

    def read_async(self, query: Any, timeout: float | None = 10.0, *, consistency: str = LINEARIZABLE) -> Future:
        """Ask the state machine; the future gets what `read` returns or raises."""
        return self._submit(self._loop.read, timeout, plain.encode(query), check_consistency(consistency))

    def status(self, timeout: float | None = 4.0) -> dict[str, Any]:
        """How the group is: exactly the object that `raftplug status --json` prints.  It needs no leader.

        Args:
            timeout: seconds, of which it takes as many as a node is asked again that does not answer here, and that
                another node hears.  A node that no other one hears is waited for a second.

        Raises:
            Unavailable: no node of the group was found.
            InvalidArgument: two clusters serve a group of that name.
        """
        self._may_wait()
        status: dict[str, Any] = self._submit(self._loop.status, timeout).result()
        return status

    def members(self, timeout: float | None = 10.0) -> dict[str, list[Id]]:
        """Who is a member: {"voters", "outgoing", "learners", "joining", "witnesses"}.

        There are outgoing voters only while the voters change. Witnesses are voters, or joining, as well.

        Raises:
            Unavailable: no leader answered in time.
        """
        return self.change_members("list", timeout=timeout)

    def change_members(self, action: str, *ids: Id, timeout: float | None = 10.0) -> dict[str, list[Id]]:
        """Change the members, one change at a time, and return them as `members` does (Ongaro 2014 §4).

        Args:
            action: "add" (a learner, which becomes a voter by itself once it has caught up), "witness" (likewise, but
                it keeps no state machine and never leads), "learn" (a learner that stays one), "promote" (a learner to
                a voter), "demote" (a voter to a learner), "remove", or "replace": the first of two `ids` by the second,
                which is added, waited for until it votes, and only then is the first one removed.
            ids: whom.  A node that was never a member is started with `join` or `--join`.
            timeout: seconds.

        Raises:
            InvalidArgument: the change cannot be.
            Unavailable: it was not made in time, but may be yet: look at `members`.
        """
        self._may_wait()
        if type(action) is not str:
            raise InvalidArgument(f"action must be one of the texts that `change_members` names, not {short(action)}")
        ids = tuple(check_id(id, "member") for id in ids)
        until = _until(timeout)
        if action == "replace":
            return self._replace(ids, until)
        members, index = self._list_members(until)
        while action != "list":
            try:
                members, _ = self._ask_members(action, ids, index, until)
                break
            except ChangeRefused:  # The members have changed since they were listed: this needs another request.
                time.sleep(_POLL_S)
                members, index = self._list_members(until)
        return members

    def _list_members(self, until: float) -> tuple[dict[str, list[Id]], int]:
        """The members, and the index of their configuration."""
        return self._ask_members("list", (), 0, until)

    def _ask_members(
        self, action: str, ids: tuple[Id, ...], index: int, until: float
    ) -> tuple[dict[str, list[Id]], int]:
        answer = self._submit(self._loop.ask, _left(until), "members", [action, list(ids), index]).result()
        *members, index = answer
        return dict(zip(("voters", "outgoing", "learners", "joining", "witnesses"), members, strict=True)), index

    def wait_for_voter(self, id: Id, timeout: float | None = 60.0) -> dict[str, list[Id]]:
        """Wait until a node that was added, or is to be promoted, has caught up and votes; return the members.

        Raises:
            Unavailable: not in time; it becomes a voter once it has caught up.
        """
        until = _until(timeout)
        check_id(id)
        while True:
            members = self.members(timeout=max(_POLL_S, _left(until)))
            if id in members["voters"] and not members["outgoing"]:
                return members
            if time.monotonic() >= until:
                raise Unavailable(f"{id} has not caught up yet, and becomes a voter when it has: is it running?")
            time.sleep(_POLL_S)

    def _replace(self, ids: tuple[Id, ...], until: float) -> dict[str, list[Id]]:
        if len(ids) != 2 or ids[0] == ids[1]:
            raise InvalidArgument("to replace takes two members: who leaves, and another one that comes")
        old, new = ids
        if old not in (before := self.members(timeout=_left(until)))["voters"]:
            if new in before["voters"] and old not in before["learners"]:
                return before  # That was done before.
            raise InvalidArgument(f"{old!r} is no voter, so nobody can take its place")
        self.change_members("witness" if old in before["witnesses"] else "add", new, timeout=_left(until))
        self.wait_for_voter(new, _left(until))
        return self.change_members("remove", old, timeout=max(1.0, _left(until)))

    def transfer_leadership(self, to: Id | None = None, timeout: float | None = 10.0) -> Id:
        """Have the leader hand over to `to`, or to whom it thinks best; returns whom (Ongaro 2014 §3.10).

        Raises:
            InvalidArgument: `to` is no other voter.
            Unavailable: no leader answered in time.
        """
        self._may_wait()
        if to is not None:
            check_id(to, "to")
        until = _until(timeout)
        first = None
        while True:
            leader: Id
            leader, term, transfers = self._submit(self._loop.ask, _left(until), "leadership", []).result()
            if leader == to or (first is not None and first != leader and to is None):
                return leader  # An earlier attempt did that, or another client.
            try:
                target: Id = self._submit(self._loop.ask, _left(until), "transfer", [to, term, transfers]).result()
                return target
            except ChangeRefused:
                first = first or leader
                time.sleep(_POLL_S)

    def snapshot(self, id: Id | None = None, timeout: float | None = 60.0) -> dict[str, Any]:
        """Have a node make a snapshot of its state now, and wait until it is on that node's disk.

        Args:
            id: the node; None is the leader.
            timeout: seconds.

        Returns: {"id", "index", "term", "bytes", "digest"}; if nothing was applied since the last one, of that.

        Raises:
            InvalidArgument: the state machine makes no snapshots.
            Unavailable: it was not made in time, but may be yet.
        """
        self._may_wait()
        until = _until(timeout)
        node = self._node(id, until)
        snapshot = self._snapshot_at(node, None, until)
        digest = snapshot.digest.hex()
        return {"id": node, "index": snapshot.index, "term": snapshot.term, "bytes": snapshot.size, "digest": digest}

    def backup(
        self,
        file: str | os.PathLike[str],
        *,
        id: Id | None = None,
        overwrite: bool = False,
        timeout: float | None = 600.0,
        progress: Callable[[int, int], None] | None = None,
    ) -> dict[str, Any]:
        """Write the whole group into a file: all that was acknowledged before the call, and perhaps more.

        Args:
            file: where; it appears when it is complete, durable, and its digest was verified.
            id: the node to take it from; None is the leader.
            overwrite: whether it may replace a file.
            timeout: seconds.
            progress: is told how many bytes of how many are there; in another thread.

        Returns: {"file", "group", "index", "term", "bytes", "digest"}.  `raftplug restore` takes it.

        Raises:
            InvalidArgument: there is such a file; the state machine makes no snapshots.
            Unavailable: it was not done in time.
            StorageFailed, DiskFull: the file cannot be written.
        """
        self._may_wait()
        until = _until(timeout)
        if not isinstance(file, str | os.PathLike):
            raise InvalidArgument(f"file must be a path, not {short(file)}")
        if progress is not None and not callable(progress):
            raise InvalidArgument(f"progress must be a function of two numbers, not {short(progress)}")
        if id is not None:
            check_id(id)
        if not overwrite and os.path.lexists(file):
            raise InvalidArgument(f"{os.fspath(file)} is there already: give another name, or overwrite=True")
        index = self._submit(self._loop.ask, _left(until), "index", [False]).result()
        node = self._node(id, until)
        snapshot = self._snapshot_at(node, index, until)
        writer = Writer(file, self._group, snapshot)

        def write(data: bytes) -> None:
            writer.write(data)
            if progress is not None:
                progress(writer.written, snapshot.size)

        try:
            self._submit(self._loop.download, _left(until), node, snapshot, write).result()
            return {**writer.finish().describe(), "file": os.fspath(file)}
        except BaseException:
            writer.abandon()
            raise

    def _node(self, id: Id | None, until: float) -> Id:
        """`id`, or else the leader."""
        if id is not None:
            return check_id(id)
        while id is None:
            id = self.status(min(4.0, _left(until)))["leader"]
            if id is None and time.monotonic() >= until:
                raise Unavailable("nobody leads the group")
        return id

    def _snapshot_at(self, node: Id, index: int | None, until: float) -> StoredSnapshot:
        """A snapshot of `node` at `index` or later, once it is durable there."""
        while True:
            begun = index is not None
            index, fields = self._submit(self._loop.ask, _left(until), "snapshot", [index], node).result()
            if fields is not None:
                return from_fields(fields)
            if not begun:
                continue
            if time.monotonic() >= until:
                raise Unavailable(f"{node} did not make a snapshot in time")
            time.sleep(_POLL_S)

    def forked(self) -> None:
        """In a child: refuse from now on; the thread is the parent's, and so is the connection."""
        super().forked()
        self._finalizer.detach()

    def close(self) -> None:
        """End what is pending (OutcomeUnknown if it may have been executed, else Unavailable), and disconnect.

        It waits for callbacks of futures, 5 seconds at most; in such a callback it does not.  In a forked child it does
        nothing.
        """
        if self._refused is not None:
            return
        self._finalizer()
        if threading.current_thread() is not self._thread:
            self._thread.join()
            if not threads.here.is_own:
                self._runner.callbacks.join(_FINISH_S)

    def __enter__(self) -> Client:
        self._require_own_process()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Client:
        return self.__enter__()

    async def __aexit__(self, *_: object) -> None:
        if self._refused is None:  # Else this is a child, whose asyncio loop is its parent's, too.
            await threads.beside(self.close)

    def _submit(self, function: Callable[..., None], timeout: float | None, *arguments: Any) -> Future:
        """Have the loop call function([first argument,] future, deadline[, other arguments])."""
        self._require_own_process()
        until = ends_at(self._runner.clock(), timeout)
        future = Future()
        first, others = arguments[:1], arguments[1:]
        self._runner.call(function, *first, future, until, *others)
        return future

    def _may_wait(self) -> None:
        """Before anything is sent: an error here means that nothing was."""
        threads.require_waiting("this method of a client", "propose_async or read_async")


def _until(timeout: float | None) -> float:
    limit = seconds(timeout)
    return math.inf if limit is None else time.monotonic() + limit


def _left(until: float) -> float:
    return max(0.0, until - time.monotonic())


class _Runner:
    """The thread of a client: a clock, and the loop's turns.  It does not know the client."""

    def __init__(self, loop: ClientLoop, group: str) -> None:
        self._loop = loop
        self._generation = forks.generation
        self._stopping = False
        self._ended = False
        self.callbacks = threads.Worker(f"raftplug-callbacks-{group}")

    @staticmethod
    def clock() -> int:
        return time.monotonic_ns() // 1000

    def call(self, function: Callable[..., None], *arguments: Any) -> None:
        self._loop.call(function, *arguments)
        if self._ended:  # It ended meanwhile, and may not have seen the call: whoever takes it out refuses it.
            self._loop.drain()

    def stop(self) -> None:
        self._stopping = True
        if not self._ended:
            self._loop.cluster.wake()

    def run(self) -> None:
        here = threads.here
        here.is_own, here.may_wait, here.callbacks = True, False, self.callbacks
        loop, failures = self._loop, 0
        while not self._stopping:
            try:
                self._turn()
                failures = 0
            except Exception as error:
                # Whatever a transport raises: nobody must wait for ever, and the next turn may work.
                failures += 1
                if failures == 1:
                    log_raised(_logger, error, "a turn of a client failed; what was pending was ended")
                loop.abort(error)
                time.sleep(min(1.0, 0.01 * failures))
            if self._generation != forks.generation:
                return  # In a child that was forked in this thread: all this is the parent's.
        self._finish()

    def _turn(self) -> None:
        loop = self._loop
        self.callbacks.tend()
        due = loop.turn(self.clock())
        loop.sleeping = True  # Before the look at the queue: who adds a call after it sees this, and wakes us.
        try:
            timeout = 0.0 if loop.has_calls() or self._stopping else max(0.0, (due - self.clock()) / 1e6)
            loop.cluster.wait(min(timeout, 1.0))
        finally:
            loop.sleeping = False

    def _finish(self) -> None:
        self._loop.close()
        self._ended = True
        self._loop.drain()
        try:
            self._loop.cluster.close()
        except Exception as error:
            _logger.error("while a client was closed: %s", described(error))
        self.callbacks.stop(0)
