"""A node: one process's event loop, transport and store, and the replicas they carry.

`NodeLoop` is the loop without a thread: a test or the simulator hands it a clock, a transport, a store and an executor
and calls `turn`.  `Node` is what people use: it opens these for real and runs the loop in a thread.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import shutil
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from raftplug import core as chosen_core
from raftplug import plain
from raftplug.cluster import Cluster, read_record
from raftplug.driver import Driver, Executor, run_here
from raftplug.errors import (
    DiskFull,
    InvalidArgument,
    MalformedMessage,
    Overloaded,
    RaftplugError,
    Removed,
    StorageFailed,
    TooLarge,
    Unavailable,
)
from raftplug.frames import (
    NO_CLUSTER,
    Frame,
    Id,
    Key,
    Sender,
    check_id,
    cluster_uuid,
    decode_frame,
    group_number,
    is_ours,
    sign_record,
)
from raftplug.future import Future
from raftplug.keys import Given, cluster_keys, other_key, require_key
from raftplug.plugins import Plugins, default
from raftplug.settings import Settings
from raftplug.storage import SQLiteStorage, Storage, Write
from raftplug.threads import LoopThread, Worker
from raftplug.version import VERSION

_logger = logging.getLogger("raftplug")
_FRAME_BYTES = 512 << 10
_ANNOUNCE_US = 3_000_000
_RETRY_WRITE_US = 1_000_000
_SENDERS_REMEMBERED = 10_000
_REDIRECT_S = 0.1
_FINISH_S = 5.0  # How long a node that stops waits for its state machines.
_FIND_S = 5.0  # How long a node that joins looks for the cluster.


class NodeLoop:
    """The loop of one node, a turn at a time.

    Args:
        storage: open, with its identity.
        cluster: the transport.
        machines: the state machine of each group that the node carries.
        settings: the limits.
        executor: runs commits of the storage; one is under way at a time.
        clock: monotonic time, µs.
        generator: the source of randomness.
        wall_ms: wall-clock time, only for the directory's readers to tell a record of today from one of yesterday.
        core: one of the two cores; None is the process's.
        on_event: called with a hook's name and its arguments.
        keys: of the cluster: the first signs, all verify; none for frames without a signature.
        apply_executor: runs what state machines have to do; by default at the end of the turn.  It calls its second
            argument at once, or has `call` do so later.
        own_thread: gives the executor for the state machine of a group that is slow; None leaves it where it is.
        is_watched: whether an observer wants to know of every transition.
    """

    def __init__(
        self,
        *,
        storage: Storage,
        cluster: Cluster,
        machines: Mapping[str, Any],
        settings: Settings,
        executor: Executor,
        clock: Callable[[], int],
        generator: random.Random,
        wall_ms: Callable[[], int] = lambda: 0,
        core: Any = None,
        on_event: Callable[..., None] | None = None,
        keys: Sequence[Key] = (),
        apply_executor: Executor = run_here,
        own_thread: Callable[[str], Executor] | None = None,
        is_watched: Callable[[], bool] = lambda: False,
    ) -> None:
        identity = storage.identity
        self.id = identity.node
        self.cluster = cluster
        self.core = core or chosen_core
        self.refused: dict[str, int] = {}
        self._storage = storage
        self._settings = settings
        self._executor = executor
        self._clock = clock
        self._wall_ms = wall_ms
        self._keys = keys
        self._start_thread = own_thread
        key = keys[0] if keys else None
        self._sender = Sender(identity.node, identity.cluster, identity.storage, identity.boot, identity.nonce, key)
        self._calls: deque[tuple[Any, ...]] = deque()
        self._outgoing: dict[Id, list[tuple[int, int, bytes]]] = {}
        self._to_self: list[tuple[int, int, bytes]] = []
        self._seen: OrderedDict[Id, tuple[int, int, int]] = OrderedDict()
        self._writing: list[tuple[Driver, Write]] = []
        self._retry_at: int | None = None
        self._announced: tuple[int, Any] = (-_ANNOUNCE_US, None)
        self._sleeping = False
        self._closed = False
        self.drivers: dict[str, Driver] = {}
        self._by_number: dict[int, Driver] = {}
        for group, machine in machines.items():
            stored = storage.load(group)
            if stored is None:
                raise InvalidArgument(f"group {group!r} is not in this data directory")
            number = group_number(group)
            driver = Driver(
                id=self.id,
                group=group,
                configuration=plain.decode(storage.configuration(group)),
                machine=machine,
                stored=stored,
                read_snapshot=_snapshot_reader(storage, group),
                settings=settings,
                send=self._queue_for(number),
                clock=clock,
                generator=generator,
                nonce=identity.nonce,
                on_event=on_event,
                core=self.core,
                more_status=self._more_status,
                life_of=self._life_of,
                executor=apply_executor,
                own_thread=own_thread and self._own_thread,
                is_watched=is_watched,
            )
            if driver.initial_write is not None:
                storage.commit([driver.initial_write])
            self.drivers[group] = driver
            self._by_number[number] = driver

    def call(self, function: Callable[..., None], *arguments: Any) -> None:
        """Have the loop call `function(*arguments)` in its next turn.  Any thread."""
        self._calls.append((function, *arguments))
        if self._closed:
            self._run_calls()
        elif self._sleeping:
            self.cluster.wake()

    def queued(self) -> int:
        """How many calls wait for the next turn."""
        return len(self._calls)

    def turn(self) -> None:
        """One turn (DESIGN 4): drain, step, send what may leave, hand the writes to the store.

        Raises:
            StorageFailed, InvariantViolated: the node must stop.
            Removed: it is a member no more.
        """
        now = self._clock()
        for driver in self.drivers.values():
            driver.set_time(now)
        for data in self.cluster.receive_messages():
            self._receive(data)
        to_self, self._to_self = self._to_self, []
        for group, kind, body in to_self:
            self._deliver(self.id, self._sender.nonce, group, kind, body)
        self._run_calls()
        may_write = not self._writing
        for driver in self.drivers.values():
            write = driver.turn(now, may_write)
            if write is not None:
                self._writing.append((driver, write))
        if self._writing and (may_write or (self._retry_at is not None and now >= self._retry_at)):
            self._retry_at = None
            self._commit([write for _, write in self._writing])
        self._announce(now)
        # Last, so that another thread can go on with the next turn while a machine that is stuck keeps this one.
        for driver in self.drivers.values():
            driver.apply()
        self._flush()
        for driver in self.drivers.values():
            if driver.raft.removed:
                raise Removed(f"{self.id} was removed from group {driver.group!r}")

    def sleep(self) -> None:
        """Wait until there is something to do."""
        self._sleeping = True  # Before the look at the queue: whoever appends after it sees this, and wakes us.
        self.cluster.wait(max(0.0, (self.due() - self._clock()) / 1e6))
        self._sleeping = False

    def due(self) -> int:
        """When the next turn is due if nothing arrives: microseconds of the clock; 0 is at once."""
        if self._calls or self._to_self:
            return 0
        deadlines = [driver.deadline() for driver in self.drivers.values()]
        if self._retry_at is not None:
            deadlines.append(self._retry_at)
        return min([*deadlines, self._announced[0] + _ANNOUNCE_US])

    def close(self) -> None:
        """Answer what is pending, send those answers, and forget the rest.  Does not close transport or storage."""
        for driver in self.drivers.values():
            driver.close()
        self._flush()
        # Before the look at the queue: whoever appends after it sees this, and looks itself.
        self._closed = True
        self._run_calls()

    def _run_calls(self) -> None:
        """Make the calls that wait; each is taken by one thread.  A closed driver only refuses."""
        for _ in range(len(self._calls)):
            try:
                function, *arguments = self._calls.popleft()
            except IndexError:
                return
            function(*arguments)

    # ------------------------------------------------------------------ disk

    def _commit(self, writes: list[Write]) -> None:
        self._executor(lambda: self._storage.commit(writes), lambda error: self.call(self._committed, error))

    def _own_thread(self, group: str) -> Executor:
        """A thread for a slow state machine; what it did comes back by `call`."""
        if self._start_thread is None:
            return run_here
        submit = self._start_thread(group)
        return lambda job, done: submit(job, lambda error: self.call(done, error))

    def _committed(self, error: BaseException | None) -> None:
        if self._closed:
            return
        if isinstance(error, DiskFull):
            # Rolled back: nothing is durable, nothing is acknowledged.  Somebody with space should lead.
            _logger.error("%s", error)
            self._retry_at = self._clock() + _RETRY_WRITE_US
            self.refused["disk full: this node acknowledges nothing until there is space"] = 1
            for driver, _ in self._writing:
                driver.raft.resign()
            return
        if error is not None:
            raise error if isinstance(error, RaftplugError) else StorageFailed(f"{type(error).__name__}: {error}")
        self.refused.pop("disk full: this node acknowledges nothing until there is space", None)
        done, self._writing = self._writing, []
        for driver, _ in done:
            driver.written()

    # --------------------------------------------------------------- network

    def _receive(self, data: bytes) -> None:
        """Take a frame, or refuse it; what is damaged or foreign is counted, and changes nothing."""
        try:
            frame = decode_frame(data, self._keys)
            refusal = self._refusal(frame)
            if refusal is not None:
                self._refuse(refusal)
                return
            for item in frame.items:
                self._deliver(frame.source, frame.nonce, item.group, item.kind, item.body)
        except MalformedMessage as error:
            self._refuse(str(error))

    def _refusal(self, frame: Frame) -> str | None:
        if frame.target != self.id:
            return f"a frame for {frame.target!r}"
        client = isinstance(frame.source, str) and frame.source.startswith("~")
        if frame.cluster != self._sender.cluster and not (client and frame.cluster == NO_CLUSTER):
            return f"a frame of another cluster, from {frame.source!r}: is its --prefix or --group ours by mistake?"
        if frame.source == self.id and frame.nonce != self._sender.nonce:
            return "a frame of another process with this node's id: stop one of the two"
        boot, nonce, sequence = self._seen.get(frame.source, (0, frame.nonce, 0))
        if frame.boot < boot or (frame.boot == boot and frame.nonce != nonce and not client):
            return f"a frame of an older or copied data directory of {frame.source!r}"
        if frame.boot == boot and frame.nonce == nonce and frame.sequence <= sequence:
            return "a frame that was delivered before"
        self._seen[frame.source] = (frame.boot, frame.nonce, frame.sequence)
        self._seen.move_to_end(frame.source)
        if len(self._seen) > _SENDERS_REMEMBERED:
            self._seen.popitem(last=False)
        return None

    def _life_of(self, id: Id) -> int:
        if id == self.id:
            return self._sender.nonce
        return self._seen[id][1] if id in self._seen else 0

    def _refuse(self, reason: str) -> None:
        if reason not in self.refused:
            if len(self.refused) > 100:
                self.refused.clear()
            _logger.warning("%s: refused %s", self.id, reason)
        self.refused[reason] = self.refused.get(reason, 0) + 1

    def _deliver(self, source: Id, nonce: int, group: int, kind: int, body: bytes) -> None:
        driver = self._by_number.get(group)
        if driver is None:
            self._refuse(f"a message for a group that this node does not carry, from {source!r}")
            return
        driver.receive(source, nonce, kind, body)

    def _queue_for(self, group: int) -> Callable[[Id, int, bytes], None]:
        def queue_item(target: Id, kind: int, body: bytes) -> None:
            if target == self.id:
                self._to_self.append((group, kind, body))
            else:
                self._outgoing.setdefault(target, []).append((group, kind, body))

        return queue_item

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

    def _announce(self, now: int) -> None:
        leaders = {group: driver.leader for group, driver in self.drivers.items()}
        if now - self._announced[0] < _ANNOUNCE_US and leaders == self._announced[1]:
            return
        if leaders != self._announced[1]:
            self.cluster.register_leader(next(iter(leaders.values()), None))
        self._announced = (now, leaders)
        record = {
            "id": self.id,
            "cluster": self._sender.cluster.hex(),
            "groups": list(self.drivers),
            "leader": leaders,
            "core": self.core.name,
            "version": VERSION,
            "boot": self._sender.boot,
            "nonce": self._sender.nonce,
            "at": self._wall_ms(),
        }
        self.cluster.announce(sign_record(record, self._keys))

    def _more_status(self) -> dict[str, Any]:
        problems = [f"{reason} ({count} times)" for reason, count in self.refused.items() if count > 0]
        return {"core": self.core.name, "version": VERSION, "problems": self.cluster.problems() + problems}


class Node:
    """A process's part of a cluster.

    ::

        with raftplug.Node("n1", peers=["n1"], redis="redis://localhost:6379", data_dir="n1",
                           state_machine=Counter(), bootstrap=True) as node:
            node.propose({"add": 1}).result(timeout=5)
            node.read(lambda counter: counter.value)

    Args:
        id: this node: a whole number, or up to 64 letters, digits, '.', '_' and '-'.
        peers: ids of the first voters, itself among them.  Counts only with `bootstrap`; later the log's membership
            wins.
        redis: URL of the Redis that carries the messages: redis://, rediss://, unix://, or another transport's.
        data_dir: the directory that holds this node's durable state; one process at a time.
        state_machine: the machine; or
        machine: the name of an installed plugin's.
        group: the group's name.
        bootstrap: found the cluster: only on a new directory, and the same peers on every node.
        join: on a new directory, become a member of the cluster that serves the group, once `Client.change_members` or
            `raftplug members add` names this node.
        prefix: what every key in Redis begins with.
        settings: the limits; the defaults are for a network of one site.
        key: the cluster's key, at least 16 bytes, the same for every node and client; or two while it is rotated: the
            first signs, both verify.  None takes RAFTPLUG_CLUSTER_KEY.  Without any, a Redis must be on a loopback
            address or a unix socket.
        cluster: a transport, instead of `redis`.
        storage: an open storage, instead of `data_dir`.
        plugins: where machines, transports and observers are found; the installed ones by default.

    Raises:
        InvalidArgument, UnknownMachine: the arguments cannot be.
        WrongDirectory, DirectoryInUse, Corrupt, StorageError: from `start`, the data directory.
        TransportError: from `start`, the Redis cannot be used.
    """

    def __init__(
        self,
        id: Id,
        *,
        peers: Sequence[Id] = (),
        redis: str | None = None,
        data_dir: str | os.PathLike[str] | None = None,
        state_machine: Any = None,
        machine: str | None = None,
        group: str = "default",
        bootstrap: bool = False,
        join: bool = False,
        prefix: str = "raftplug",
        settings: Settings | None = None,
        key: Given | None = None,
        cluster: Cluster | None = None,
        storage: Storage | None = None,
        plugins: Plugins | None = None,
    ) -> None:
        self.id = check_id(id)
        self.group = group
        self._peers = [check_id(peer, "peer") for peer in peers]
        check_id(group, "group")
        if len(set(self._peers)) != len(self._peers):
            raise InvalidArgument("peers: an id stands twice")
        if bootstrap and self.id not in self._peers:
            raise InvalidArgument(
                f"peers: {self.id!r} itself is missing: name every first member, the same on every node"
            )
        if (redis is None) == (cluster is None):
            raise InvalidArgument("give either a Redis URL or a cluster")
        if (data_dir is None) == (storage is None):
            raise InvalidArgument("give a data directory: what a node acknowledged must survive it")
        if (state_machine is None) == (machine is None):
            raise InvalidArgument("give either a state machine or the name of an installed one")
        self._plugins = plugins or default()
        self._machine = state_machine if machine is None else self._plugins.machine(machine)
        self._settings = (settings or Settings()).validate()
        self._keys = cluster_keys(key)
        self._unsigned = redis is not None and require_key(redis, self._keys)
        self._redis = redis
        self._cluster = cluster
        self._data_dir = data_dir
        self._storage = storage
        if bootstrap and join:
            raise InvalidArgument("give bootstrap to found a cluster, or join to become a member of one")
        self._bootstrap = bootstrap
        self._join = join
        self._prefix = prefix
        self._loop: NodeLoop | None = None
        self._thread: LoopThread | None = None
        self._workers: list[Worker] = []
        self._stopping = False
        self.failure: BaseException | None = None
        """Why the node stopped by itself; None while it runs or when it was stopped."""

    # ------------------------------------------------------------------ life

    def start(self) -> Node:
        """Open the store and the transport and run; returns at once, before a leader is elected."""
        if self._thread is not None:
            raise InvalidArgument("a node is started once: make a new one")
        new = self._data_dir is not None and not os.path.lexists(self._data_dir)
        storage = self._storage or self._open_storage()
        store: Worker | None = None
        cluster = self._cluster
        try:
            if cluster is None:
                cluster = self._plugins.open_cluster(
                    self._redis or "",
                    own_id=self.id,
                    cluster=storage.identity.cluster,
                    prefix=self._prefix,
                    settings=self._settings,
                )
                check = getattr(cluster, "check", None)
                if check is not None:
                    for problem in check()["problems"]:
                        _logger.warning("%s", problem)
            # Last, so that what was refused above can be begun again with --bootstrap.
            self._found(storage)
            new = False
            store = Worker(f"raftplug-store-{self.id}")
            loop = self._loop = NodeLoop(
                storage=storage,
                cluster=cluster,
                machines={self.group: self._machine},
                settings=self._settings,
                executor=store.submit,
                clock=lambda: time.monotonic_ns() // 1000,
                generator=random.Random(storage.identity.nonce),
                wall_ms=lambda: time.time_ns() // 1_000_000,
                on_event=self._plugins.events,
                keys=self._keys,
                apply_executor=lambda job, done: thread.execute(job, done),
                own_thread=self._new_worker,
            )
        except BaseException:
            if store is not None:
                store.stop()
            if cluster is not None:
                cluster.close()
            storage.close()
            if new and self._data_dir is not None:
                shutil.rmtree(self._data_dir, ignore_errors=True)  # It was made above, and carries no group.
            raise
        if self._unsigned:
            _logger.warning(
                "no cluster key: frames are not signed, and any process that can write to this Redis is believed"
            )
        self._storage = storage
        self._cluster = cluster
        thread = self._thread = LoopThread(
            f"raftplug-{self.id}",
            run=lambda: self._run(loop),
            end=lambda error: self._end(loop, storage, store, error),
            hand_back=loop.call,
            patience_s=self._settings.heartbeat_ms / 2000,
        )
        thread.start()
        return self

    def stop(self) -> None:
        """Stop cleanly: a leader hands over first.  What is pending gets OutcomeUnknown."""
        thread, loop = self._thread, self._loop
        if thread is not None and loop is not None and not thread.is_current():
            self._hand_over(loop)
        self._stopping = True
        if thread is None or loop is None:
            return
        loop.cluster.wake()
        if not thread.is_current():
            thread.join()

    def _hand_over(self, loop: NodeLoop) -> None:
        """Let somebody else lead, so that stopping costs no election timeout (Ongaro 2014 §3.10)."""
        if self._stopping or self.failure is not None:
            return
        over: list[Driver] = []

        def begin() -> None:
            for driver in loop.drivers.values():
                with contextlib.suppress(RaftplugError):
                    driver.raft.transfer(None)
                    over.append(driver)
            begun.set()

        begun = threading.Event()
        loop.call(begin)
        until = time.monotonic() + self._settings.election_timeout_ms / 1000
        begun.wait(self._settings.election_timeout_ms / 1000)
        while time.monotonic() < until and any(driver.leader in (None, self.id) for driver in over):
            time.sleep(0.002)
        if over:
            time.sleep(_REDIRECT_S)  # Whoever still asks us learns who leads now.

    def join(self, timeout: float | None = None) -> bool:
        """Wait until the node has stopped, at most `timeout` seconds; True if it has."""
        return self._thread is None or self._thread.join(timeout)

    def __enter__(self) -> Node:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    # ------------------------------------------------------------------- use

    def propose(self, transition: Any, *, timeout: float = 10.0) -> Future:
        """Propose a transition; it is executed exactly once, or not at all, whichever node it is proposed on.

        Args:
            transition: plain data.
            timeout: seconds after which the future gets an error at the latest.

        Returns: a future of what `apply_transition` returned.  Its errors: TransitionFailed (the machine raised),
        OutcomeUnknown; and, certainly not executed: NotLeader, Unavailable, Overloaded.

        Raises:
            InvalidTransition, TooLarge, Overloaded, Unavailable: at once; nothing was proposed.
        """
        encoded = plain.encode(transition)
        if len(encoded) > self._settings.max_transition_bytes:
            raise TooLarge(
                f"the transition has {len(encoded)} bytes, the limit is {self._settings.max_transition_bytes} "
                "(max_transition_bytes)"
            )
        return self._enter(self._driver.propose, encoded, timeout)

    def read_async(self, query: Any, *, timeout: float = 5.0) -> Future:
        """Read linearizably: as `read`, but returns a future."""
        machine = self._machine
        look = query if callable(query) else lambda _: machine.query(query)
        return self._enter(self._driver.read, look, timeout)

    def read(self, query: Any, *, timeout: float = 5.0) -> Any:
        """Read linearizably: see everything that was acknowledged before the call, on any node (Ongaro 2014 §6.4).

        Args:
            query: a function of the state machine, which must change nothing and not keep it; or the argument of the
                machine's own `query`.
            timeout: seconds.

        Returns: what the function, or `query`, returned.

        Raises:
            QueryFailed: it raised.
            Unavailable: no leader confirmed the read in time.
        """
        if self._thread is not None and self._thread.is_current():
            raise InvalidArgument("read waits for the node's own thread: use read_async there")
        try:
            return self.read_async(query, timeout=timeout).result(timeout + 1.0)
        except TimeoutError:
            raise Unavailable("this node is too busy to answer the read in time") from None

    def status(self) -> dict[str, Any]:
        """This node's row of `raftplug status`."""
        loop, driver, future = self._running(), self._driver, Future()
        loop.call(lambda: future.set_result(driver.status()))
        try:
            row: dict[str, Any] = future.result(5.0)
        except TimeoutError:
            raise Unavailable("this node is too busy to answer") from None
        return row

    @property
    def leader(self) -> Id | None:
        """Id of the leader as far as this node knows."""
        return self._loop.drivers[self.group].leader if self._loop is not None else None

    @property
    def is_leader(self) -> bool:
        """Whether this node leads, as far as it knows."""
        return self.leader == self.id

    # -------------------------------------------------------------- internal

    @property
    def _driver(self) -> Driver:
        return self._running().drivers[self.group]

    def _running(self) -> NodeLoop:
        if self._loop is None or self._stopping or self.failure is not None:
            raise Unavailable("this node is not running" + (f": {self.failure}" if self.failure else ""))
        return self._loop

    def _enter(self, function: Callable[..., None], argument: Any, timeout: float) -> Future:
        loop = self._running()
        if loop.queued() >= self._settings.max_pending:
            raise Overloaded("too many calls wait for this node's event loop: try again later")
        future = Future()
        loop.call(function, argument, future, time.monotonic_ns() // 1000 + int(timeout * 1e6))
        return future

    def _open_storage(self) -> Storage:
        uuid = cluster_uuid(self.group, self._peers) if self._bootstrap else None
        new = self._bootstrap
        if self._join and not os.path.lexists(self._data_dir or "."):
            uuid, new = self._find_cluster(), True
        return SQLiteStorage(self._data_dir or ".", self.id, cluster=uuid, bootstrap=new)

    def _find_cluster(self) -> bytes:
        """The cluster that serves the group, by the directory."""
        own_id = "~" + os.urandom(8).hex()
        directory = self._cluster or self._plugins.open_cluster(
            self._redis or "", own_id=own_id, cluster=NO_CLUSTER, prefix=self._prefix, settings=self._settings
        )
        strangers = False
        try:
            until = time.monotonic() + _FIND_S
            while time.monotonic() < until:
                named = [
                    (known[0], record) for record in directory.directory() if (known := read_record(record, self.group))
                ]
                found = {uuid for uuid, record in named if is_ours(record, self._keys)}
                strangers = bool(named)
                if len(found) > 1:
                    raise InvalidArgument(f"group {self.group!r} is served by two clusters: give another prefix")
                if found:
                    return found.pop()
                directory.wait(0.05)
        finally:
            if directory is not self._cluster:
                directory.close()
        if strangers:
            raise Unavailable(other_key(self.group, self._keys))
        raise Unavailable(f"no node of group {self.group!r} was found to join: is one running, with this prefix?")

    def _found(self, storage: Storage) -> None:
        """Write the bootstrap configuration into a new storage; in a used one, the stored membership wins."""
        if (self._bootstrap or self._join) and storage.load(self.group) is None:
            configuration = chosen_core.Configuration(tuple(self._peers if self._bootstrap else ()))
            storage.create(self.group, plain.encode(configuration.plain()))
        elif storage.load(self.group) is None:
            others = ", ".join(storage.groups()) or "none"
            raise InvalidArgument(f"the data directory carries no group {self.group!r}; it carries: {others}")
        stored = chosen_core.Configuration.from_plain(plain.decode(storage.configuration(self.group)))
        if self._peers and not self._join and set(self._peers) != set(stored.members()):
            _logger.warning("--peers differs from the stored membership %s, which wins", stored.members())

    def _run(self, loop: NodeLoop) -> None:
        while not self._stopping:
            loop.turn()
            loop.sleep()

    def _end(self, loop: NodeLoop, storage: Storage, store: Worker, error: BaseException | None) -> None:
        """The loop has ended: by `stop`, or by an error."""
        if error is not None:
            self.failure = error
            _logger.critical("node %s stops: %s: %s", self.id, type(error).__name__, error)
        for step in (self._finish_applies, loop.close, store.stop, loop.cluster.close, storage.close):
            try:
                step()
            except Exception as raised:
                _logger.error("while node %s stopped: %s: %s", self.id, type(raised).__name__, raised)

    def _finish_applies(self) -> None:
        """Wait for state machines at work, but not for ever."""
        until = time.monotonic() + _FINISH_S
        done = [worker.stop(max(0.0, until - time.monotonic())) for worker in self._workers]
        if self._thread is not None:
            done.append(self._thread.join_kept(max(0.0, until - time.monotonic())))
        if not all(done):
            _logger.error("node %s: a state machine is still at work after %g s: it is left alone", self.id, _FINISH_S)

    def _new_worker(self, group: str) -> Executor:
        worker = Worker(f"raftplug-apply-{self.id}-{group}")
        self._workers.append(worker)
        return worker.submit


def _snapshot_reader(storage: Storage, group: str) -> Callable[[], Any]:
    return lambda: storage.snapshot(group)
