"""The demo's load and its judge: YCSB-A over the kv machine, with every operation written down.

Half of the operations read, half update, over keys that are drawn by a zipfian law, with values of 1 KB, as YCSB's
workload A has it (Cooper 2010 §4).  Every value names its key and version, so that a reader knows which write it sees;
a tenth of the updates append a token of their own to a few shared keys, where a second execution shows for ever.

The judge needs no order of the writes but real time: an operation takes effect between its begin and its end.  So a
value is too old where it was acknowledged before another write of the key began that is known to have taken effect,
because it was acknowledged, or seen by a read that had ended.  A write of unknown outcome may take effect at any time.
"""

from __future__ import annotations

import bisect
import itertools
import math
import random
import threading
import time
from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from raftplug.errors import CallerError, NotLeader, Overloaded, RaftplugError, Unavailable

RECORDS: Final = 1000
VALUE_BYTES: Final = 1024
_ZIPFIAN: Final = 0.99
_READS: Final = 0.5
_APPENDS: Final = 0.1  # Of the updates.
_TOKENS_A_KEY: Final = 100  # Of one worker: what is appended to must not grow without end.
_TIMEOUT_S: Final = 30.0
_PAUSE_S: Final = 0.05  # After a refusal.
_FILLER: Final = "".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz0123456789", k=2 * VALUE_BYTES))


def value_of(key: str, version: int) -> str:
    """The value of 1 KB that version `version` of `key` has, and no other."""
    start = version % VALUE_BYTES
    return f"{key} {version} {_FILLER[start : start + VALUE_BYTES]}"[:VALUE_BYTES]


def version_of(key: str, value: Any) -> int | None:
    """Which version of `key` a value is: 0 for an absent one, None if nobody ever wrote it."""
    if value is None:
        return 0
    if not isinstance(value, str):
        return None
    words = value.split(" ", 2)
    if len(words) < 3 or not words[1].isdecimal() or len(words[1]) > 15:
        return None
    version = int(words[1])
    return version if version > 0 and value == value_of(key, version) else None


@dataclass(slots=True)
class Write:
    """A write under way: a version of a key, or a token for one."""

    key: str
    version: int
    token: str | None
    begun: float

    def transition(self) -> dict[str, Any]:
        """What to propose."""
        if self.token is not None:
            return {"op": "append", "key": self.key, "value": self.token}
        return {"op": "put", "key": self.key, "value": value_of(self.key, self.version)}


@dataclass(slots=True)
class Read:
    """A read under way."""

    key: str
    floor: float
    """When the latest write began that is known to have taken effect before this read did."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the final states say about the writes."""

    lost: int
    """Acknowledged writes whose effect is missing on some node."""
    duplicated: int
    """Executions too many: tokens that stand more than once, or that stand although they were refused."""
    equal: bool
    """Whether all nodes hold the same."""


class _Key:
    """The writes of one key; version v is at v - 1."""

    __slots__ = ("acked", "begun", "floor", "seen")

    def __init__(self) -> None:
        self.begun = array("d")
        self.acked = array("d")  # inf until it is acknowledged, for ever if nobody knows; -inf once it was refused
        self.floor = -math.inf
        self.seen: set[int] = set()  # Versions that were read before they were answered.


class Recovery:
    """The first acknowledged write that began after a moment: that the cluster works again, and not only answers.

    Attributes:
        seconds: from `origin` to that acknowledgement, once `done` is set.
    """

    def __init__(self, origin: float, since: float) -> None:
        self.origin = origin
        self.since = since
        self.done = threading.Event()
        self.seconds = math.nan


class History:
    """Every operation of the load.  Any thread.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.acknowledged = 0
        self.reads = 0
        self.stale_reads = 0
        """Answers that are older than they may be, or that nobody wrote, or that answer another write."""
        self.unknown = 0
        self.refused = 0
        self._clock = clock
        self._lock = threading.Lock()
        self._keys: dict[str, _Key] = {}
        self._tokens: dict[str, dict[str, float]] = {}  # key -> token -> as _Key.acked
        self._recovery: Recovery | None = None

    def written(self) -> list[str]:
        """All keys that anything was written to."""
        with self._lock:
            return [*self._keys, *self._tokens]

    def recovery(self, origin: float) -> Recovery:
        """Watch, from now on, for the first acknowledged write; its time counts from `origin` on, a little earlier."""
        with self._lock:
            self._recovery = Recovery(origin, self._clock())
            return self._recovery

    def begin_put(self, key: str) -> Write:
        """The next version of `key` is about to be written."""
        with self._lock:
            entry = self._keys.setdefault(key, _Key())
            now = self._clock()
            entry.begun.append(now)
            entry.acked.append(math.inf)
            return Write(key, len(entry.begun), None, now)

    def begin_append(self, key: str, token: str) -> Write:
        """`token`, which must be new and end with ";", is about to be appended to `key`."""
        with self._lock:
            self._tokens.setdefault(key, {})[token] = math.inf
            return Write(key, 0, token, self._clock())

    def acknowledge(self, write: Write, result: Any) -> None:
        """It was acknowledged, with this result."""
        with self._lock:
            now = self._clock()
            self.acknowledged += 1
            if write.token is None:
                entry = self._keys[write.key]
                entry.acked[write.version - 1] = now
                entry.floor = max(entry.floor, write.begun)
            else:
                self._tokens[write.key][write.token] = now
            if not _answers(write, result):
                self.stale_reads += 1
            recovery = self._recovery
            if recovery is not None and write.begun > recovery.since:
                self._recovery = None
                recovery.seconds = now - recovery.origin
                recovery.done.set()

    def refuse(self, write: Write) -> None:
        """It certainly was not executed, says the cluster."""
        with self._lock:
            self.refused += 1
            if write.token is not None:
                self._tokens[write.key][write.token] = -math.inf
                return
            entry = self._keys[write.key]
            entry.acked[write.version - 1] = -math.inf
            if write.version in entry.seen:
                self.stale_reads += 1

    def give_up(self, write: Write) -> None:
        """Nobody knows whether it was, or will be, executed."""
        with self._lock:
            self.unknown += 1

    def begin_read(self, key: str) -> Read:
        """`key` is about to be read."""
        with self._lock:
            entry = self._keys.get(key)
            return Read(key, entry.floor if entry is not None else -math.inf)

    def end_read(self, read: Read, value: Any) -> bool:
        """The answer to a read.  Returns: whether it may be."""
        with self._lock:
            self.reads += 1
            allowed = self._allowed(read, value)
            self.stale_reads += not allowed
            return allowed

    def _allowed(self, read: Read, value: Any) -> bool:
        entry = self._keys.get(read.key)
        version = version_of(read.key, value)
        if version is None or version > (len(entry.begun) if entry is not None else 0):
            return False
        if version == 0 or entry is None:
            return read.floor == -math.inf
        acked = entry.acked[version - 1]
        if acked == math.inf:
            entry.seen.add(version)
        # That it was seen establishes it, also for those who read after us.
        if acked != -math.inf:
            entry.floor = max(entry.floor, entry.begun[version - 1])
        return acked >= read.floor and acked != -math.inf

    def judge(self, states: Mapping[Any, Mapping[str, Any]]) -> Verdict:
        """Hold the final states, node -> key -> value, against what was acknowledged.  Nothing may be under way.

        A write that is missing, or executed twice, on several nodes counts once.
        """
        lost = duplicated = 0
        with self._lock:
            for key, entry in self._keys.items():
                lost += max(_missing(entry, version_of(key, state.get(key))) for state in states.values())
            for key, tokens in self._tokens.items():
                found = [Counter(_tokens_in(state.get(key))) for state in states.values()]
                for token, acked in tokens.items():
                    lost += math.isfinite(acked) and any(not count[token] for count in found)
                    duplicated += max(0, max(count[token] for count in found) - (acked != -math.inf))
                # What was appended and never proposed was not executed once too often: it was made up.
                duplicated += max(sum(n for token, n in count.items() if token not in tokens) for count in found)
        first, *others = states.values()
        keys = self.written()
        return Verdict(lost, duplicated, all(other.get(key) == first.get(key) for other in others for key in keys))


def _missing(entry: _Key, version: int | None) -> int:
    """How many acknowledged writes of a key a final value lacks."""
    held = -math.inf  # What nobody wrote, or was refused, holds nothing.
    if version is not None and 0 < version <= len(entry.acked):
        held = entry.acked[version - 1]
    return sum(math.isfinite(acked) and begun > held for begun, acked in zip(entry.begun, entry.acked, strict=True))


def _tokens_in(value: Any) -> list[str]:
    return [f"{word};" for word in value.split(";") if word] if isinstance(value, str) else []


def _answers(write: Write, result: Any) -> bool:
    """Whether a result can be this write's: an append returns the new value, which ends with its token."""
    if write.token is None:
        return result is None
    tokens = _tokens_in(result)
    return bool(tokens) and tokens[-1] == write.token


class Store(Protocol):
    """What the load needs of a client."""

    def propose(self, transition: Any, timeout: float = ...) -> Any:
        """Propose a transition and wait for its result."""

    def read(self, query: Any, timeout: float = ...) -> Any:
        """Read linearizably."""


class Keys:
    """Keys by a zipfian law: the one of rank r is drawn in proportion to r^-0.99; ranks are scattered over the names.

    Args:
        count: how many there are.
    """

    def __init__(self, count: int = RECORDS) -> None:
        self.names = [f"user{number:04d}" for number in range(count)]
        random.Random(0).shuffle(self.names)
        self._sums = list(itertools.accumulate(rank**-_ZIPFIAN for rank in range(1, count + 1)))

    def draw(self, generator: random.Random) -> str:
        """The key of the next operation."""
        return self.names[bisect.bisect(self._sums, generator.random() * self._sums[-1])]


class Load:
    """Workers, each with one operation under way, over several clients.

    Args:
        clients: they share the workers.
        workers: how many operations are under way at most.
        history: where everything is written down.
        keys: what is read and updated.
    """

    def __init__(self, clients: Sequence[Store], workers: int, history: History, keys: Keys) -> None:
        self.history = history
        self.error: BaseException | None = None
        """What no worker expected; the load has stopped."""
        self._keys = keys
        self._stopping = threading.Event()
        self._latencies = [array("d") for _ in range(workers)]
        self._threads = [
            threading.Thread(target=self._guard, args=(number, clients[number % len(clients)]), daemon=True)
            for number in range(workers)
        ]
        self._begun = self._ended = 0.0

    def insert(self, client: Store) -> None:
        """Write every key once, as YCSB's load phase does, from as many threads as there are workers."""
        names = iter(self._keys.names)
        lock = threading.Lock()

        def work() -> None:
            while not self._stopping.is_set() and self.error is None:
                with lock:
                    name = next(names, None)
                if name is None:
                    return
                try:
                    self._write(client, self.history.begin_put(name))
                except BaseException as error:
                    self.error = error

        threads = [threading.Thread(target=work, daemon=True) for _ in self._threads]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self.error is not None:
            raise self.error

    def start(self) -> None:
        """Begin."""
        self._begun = time.monotonic()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Begin no more operations.  Returns at once."""
        self._stopping.set()

    def join(self, timeout: float) -> bool:
        """Wait until all operations have ended, at most `timeout` seconds; True if they have."""
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))
        self._ended = time.monotonic()
        return not any(thread.is_alive() for thread in self._threads)

    def done(self) -> int:
        """How many operations ended well so far."""
        return sum(map(len, self._latencies))

    def seconds(self) -> float:
        """How long the load ran, or runs."""
        return (self._ended or time.monotonic()) - self._begun

    def latencies_ms(self) -> tuple[float | None, float | None]:
        """The median and the 99th percentile, in ms, of all operations that ended well."""
        return self.recent_ms([])

    def recent_ms(self, marks: list[int]) -> tuple[float | None, float | None]:
        """The same, of what ended since the last call with the same `marks`, an empty list at first."""
        lengths = [len(latencies) for latencies in self._latencies]
        begins = marks or [0] * len(lengths)
        recent = sorted(
            itertools.chain.from_iterable(
                latencies[begin:end] for latencies, begin, end in zip(self._latencies, begins, lengths, strict=True)
            )
        )
        marks[:] = lengths
        return percentile(recent, 50), percentile(recent, 99)

    # ------------------------------------------------------------------------

    def _guard(self, number: int, client: Store) -> None:
        try:
            self._work(number, client)
        except BaseException as error:
            self.error = error
            self._stopping.set()

    def _work(self, number: int, client: Store) -> None:
        generator = random.Random()
        latencies = self._latencies[number]
        tokens = 0
        while not self._stopping.is_set():
            begun = time.monotonic()
            if generator.random() < _READS:
                done = self._read(client, self._keys.draw(generator))
            elif generator.random() < _APPENDS:
                # Workers of several clients share a key, and go on to the next one now and then.
                key = f"tokens{number % 4}.{tokens // _TOKENS_A_KEY}"
                done = self._write(client, self.history.begin_append(key, f"{number}.{tokens};"))
                tokens += 1
            else:
                done = self._write(client, self.history.begin_put(self._keys.draw(generator)))
            if done:
                latencies.append((time.monotonic() - begun) * 1000.0)
            else:
                self._stopping.wait(_PAUSE_S)

    def _write(self, client: Store, write: Write) -> bool:
        try:
            result = client.propose(write.transition(), timeout=_TIMEOUT_S)
        except (NotLeader, Overloaded, Unavailable):
            self.history.refuse(write)
            return False
        except CallerError:
            raise  # The demo asks for nothing that could be wrong.
        except RaftplugError:
            self.history.give_up(write)
            return False
        self.history.acknowledge(write, result)
        return True

    def _read(self, client: Store, key: str) -> bool:
        read = self.history.begin_read(key)
        try:
            value = client.read({"op": "get", "key": key}, timeout=_TIMEOUT_S)
        except CallerError:
            raise
        except RaftplugError:
            return False
        self.history.end_read(read, value)
        return True


def percentile(ascending: Sequence[float], percent: float) -> float | None:
    """The smallest value that `percent` % of the values do not exceed; None of nothing."""
    if not ascending:
        return None
    return ascending[max(0, math.ceil(len(ascending) * percent / 100.0) - 1)]
