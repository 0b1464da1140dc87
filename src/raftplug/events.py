"""Events for observers: each has a queue of its own, so that one that is slow or raises holds up nobody.

What is told is what the hooks of `hooks` are told, under the same names without `raftplug_`::

    with node.subscribe("leader_changed") as events:
        for event in events:                    # or: async for event in events
            print(event.group, event.details["leader"])
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from raftplug import forks, threads
from raftplug.arguments import seconds, whole
from raftplug.core import Future
from raftplug.errors import InvalidArgument, Unavailable
from raftplug.foreign import log_raised, short, type_name
from raftplug.forks import OfOneProcess, follow
from raftplug.frames import Id
from raftplug.plugins import Plugins

_logger = logging.getLogger("raftplug")
_HOOK = "raftplug_"
_QUEUE: Final = 10_000
_MOST_EVENTS: Final = 10_000_000
_RETRY_S: Final = 1.0  # Where no thread could be started, another attempt is made after so long.
KINDS: Final = (
    "leader_changed",
    "configuration_changed",
    "snapshot",
    "transition_state",
    "slow_apply",
    "diverged",
    "lost_entries",
    "peer",
    "stopped",
)
LOST: Final = "lost"
"""The kind of the event that tells a slow observer how many it missed: details["count"]."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened.

    Args:
        kind: one of `KINDS`, or LOST.
        group: of which group; None for what concerns the node.
        node: id of the node that saw it.
        details: the other arguments of the hook of that name.
    """

    kind: str
    group: str | None
    node: Id
    details: Mapping[str, Any]


class Subscription(OfOneProcess):
    """What an observer has not seen yet; it ends when the node stops or after `close`.

    Iterate over it, in a thread or with `async for`, or call `get`.  At most 10,000 events wait; then the oldest are
    dropped, and an event of kind LOST says how many.

    Raises:
        InvalidArgument: there is no such kind of event; or, from each method in a forked child, the node is its
            parent's.
    """

    REMEDY = "subscribe to a node that was made after the fork"

    def __init__(self, node: Id, kinds: Collection[str] = (), most: int = _QUEUE) -> None:
        for kind in kinds:
            if type(kind) is not str or kind not in KINDS:
                raise InvalidArgument(f"no event {short(kind)}: there are {', '.join(KINDS)}")
        self.kinds = frozenset(kinds or KINDS)
        self._node = node
        self._most = whole(most, "most", 1, _MOST_EVENTS)
        self._waiting: deque[Event] = deque()
        self._dropped = 0
        self._lock = threading.RLock()  # Reentrant, since a signal handler may close what its thread iterates over.
        self._news: Future | None = None  # Who takes events waits for it; done with the next one, or the end.
        self._closed = False
        follow(self)

    def put(self, event: Event) -> None:
        """Add an event; it never waits."""
        with self._lock:
            if self._closed:
                return
            if len(self._waiting) >= self._most:
                self._waiting.popleft()
                self._dropped += 1
            self._waiting.append(event)
            news, self._news = self._news, None
        if news is not None:
            news.set_result(None)

    def get(self, timeout: float | None = None) -> Event | None:
        """The next event; None if none came within `timeout` seconds (None: no limit), or none will come.

        Raises:
            InvalidArgument: `timeout` is no number of seconds.
        """
        limit = seconds(timeout, past=True)
        until = None if limit is None else time.monotonic() + limit
        while isinstance(taken := self._take(), Future):
            try:
                taken.result(None if until is None else max(0.0, until - time.monotonic()))
            except TimeoutError:
                return None
        return taken

    def is_closed(self) -> bool:
        """Whether no more events come."""
        return self._closed

    def close(self) -> None:
        """No more events come; those that wait can still be taken."""
        self._require_own_process()
        with self._lock:
            self._closed = True
            news, self._news = self._news, None
        if news is not None:
            news.set_result(None)

    def _take(self) -> Event | Future | None:
        """The next event, or what to wait for; None at the end."""
        self._require_own_process()
        with self._lock:
            if self._dropped:
                count, self._dropped = self._dropped, 0
                return Event(LOST, None, self._node, {"count": count})
            if self._waiting:
                return self._waiting.popleft()
            self._news = self._news or Future()
            return None if self._closed else self._news  # Looked at last: a signal handler may have closed it just now.

    def __iter__(self) -> Iterator[Event]:
        while (event := self.get()) is not None:
            yield event

    async def __aiter__(self) -> AsyncIterator[Event]:
        while (taken := self._take()) is not None:
            if isinstance(taken, Event):
                yield taken
            else:
                await taken

    def __enter__(self) -> Subscription:
        self._require_own_process()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._refused is None or kind is None:  # A child that leaves by an error, or by sys.exit, still does.
            self.close()


class Events:
    """Passes on what happens in a node.

    Args:
        node: its id.
        plugins: whose hooks are called, those of each plugin in a thread of their own.
    """

    def __init__(self, node: Id, plugins: Plugins) -> None:
        self._node = node
        self._plugins = plugins
        self._lock = threading.RLock()
        self._subscriptions: tuple[Subscription, ...] = ()
        self._of_plugins: dict[str, Subscription] = {}  # Begun with the first event that the plugin observes.
        self._unstarted: dict[str, Subscription] = {}  # Those of them that have no thread yet.
        self._retry_at = 0.0
        self._threads: list[threading.Thread] = []
        self._closed = False

    def publish(self, name: str, **arguments: Any) -> None:
        """Tell of an event by its hook's name; any thread, never waits."""
        kind = name.removeprefix(_HOOK)
        concerned = [each for each in self._subscriptions if kind in each.kinds]
        concerned += [self._of_plugin(plugin) for plugin in self._plugins.observing(name)]
        if concerned:
            details = {key: value for key, value in arguments.items() if key not in ("group", "node")}
            event = Event(kind, arguments.get("group"), self._node, details)
            for each in concerned:
                each.put(event)
        if self._unstarted and time.monotonic() >= self._retry_at:
            self._start_again()

    def is_watched(self) -> bool:
        """Whether anybody wants to know of every transition."""
        for each in self._subscriptions:  # Asked for each proposal: a generator would cost three times as much.
            if "transition_state" in each.kinds and not each.is_closed():
                return True
        return self._plugins.observed("raftplug_transition_state")

    def subscribe(self, kinds: Collection[str], callback: Callable[[Event], object] | None) -> Subscription:
        """A new subscription; with a callback, a thread of its own calls that with each event.

        Raises:
            InvalidArgument: there is no event of such a kind, or the callback cannot be called.
            Unavailable: no thread could be started for the callback.
        """
        if callback is not None and not callable(callback):
            raise InvalidArgument(f"a function of an event is wanted, not {type_name(callback)}")
        subscription = Subscription(self._node, kinds)
        with self._lock:
            if self._closed:
                subscription.close()
            elif callback is not None:
                self._begin(subscription, callback)
            self._subscriptions = (*(each for each in self._subscriptions if not each.is_closed()), subscription)
        return subscription

    def has_threads(self) -> bool:
        """Whether observers have threads."""
        return any(each.is_alive() for each in self._threads)

    def close(self, timeout_s: float = 0.0) -> None:
        """No more events; wait so long, seconds, for observers to see those that wait."""
        with self._lock:
            self._closed = True
            for each in (*self._subscriptions, *self._of_plugins.values()):
                each.close()
        if self._unstarted:
            self._start_again()
        until = time.monotonic() + timeout_s
        for thread in list(self._threads):
            if thread is not threading.current_thread():
                thread.join(max(0.0, until - time.monotonic()))

    def _of_plugin(self, plugin: str) -> Subscription:
        found = self._of_plugins.get(plugin)
        if found is None:
            with self._lock:
                found = self._of_plugins.get(plugin)
                if found is None:
                    found = self._of_plugins[plugin] = self._unstarted[plugin] = Subscription(self._node)
                    if self._closed:
                        found.close()
        return found

    def _start_again(self) -> None:
        """Start the threads of the plugins that have none; while that fails, their events wait."""
        with self._lock:
            for plugin, subscription in list(self._unstarted.items()):
                try:
                    self._begin(subscription, partial(self._tell, plugin))
                except Unavailable as error:
                    if not self._retry_at:
                        _logger.error("node %s: plugin %s observes later: %s", self._node, plugin, error)
                    self._retry_at = time.monotonic() + _RETRY_S
                    return
                del self._unstarted[plugin]
            self._retry_at = 0.0

    def _begin(self, subscription: Subscription, callback: Callable[[Event], object]) -> None:
        name = f"raftplug-events-{self._node}"
        thread = threads.start(name, _observe, subscription, callback)
        self._threads = [*(each for each in self._threads if each.is_alive()), thread]

    def _tell(self, plugin: str, event: Event) -> None:
        if event.kind == LOST:
            text = "node %s: plugin %s observes too slowly: %d events were dropped"
            _logger.error(text, self._node, plugin, event.details["count"])
            return
        more = {} if event.group is None else {"group": event.group}
        self._plugins.events(_HOOK + event.kind, only=plugin, node=event.node, **more, **event.details)


def call_for_each(subscription: Subscription, callback: Callable[[Event], object]) -> None:
    """Call a function with each event until the subscription ends; one that raises gets the next one all the same."""
    generation, has_raised = forks.generation, False
    for event in subscription:
        try:
            callback(event)
        except BaseException as raised:
            if not has_raised:
                has_raised = True
                log_raised(_logger, raised, "an observer of events raised, and will not be logged again")
        if generation != forks.generation:
            return  # In a child that the observer forked.


def _observe(subscription: Subscription, callback: Callable[[Event], object]) -> None:
    threads.here.is_own = True
    call_for_each(subscription, callback)
