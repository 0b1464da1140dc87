"""Events for observers: each has a queue of its own, so that one that is slow or raises holds up nobody.

What is told is what the hooks of `hooks` are told, under the same names without `raftplug_`::

    with node.subscribe("leader_changed") as events:
        for event in events:
            print(event.group, event.details["leader"])
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from raftplug.errors import InvalidArgument
from raftplug.frames import Id

_logger = logging.getLogger("raftplug")
_HOOK = "raftplug_"
_QUEUE: Final = 10_000
KINDS: Final = (
    "leader_changed",
    "configuration_changed",
    "snapshot",
    "transition_state",
    "slow_apply",
    "diverged",
    "peer",
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


class Subscription:
    """What an observer has not seen yet: an iterator that waits, and ends when the node stops or after `close`.

    At most 10,000 events wait; then the oldest are dropped, and an event of kind LOST says how many.
    """

    def __init__(self, node: Id, kinds: Collection[str] = (), most: int = _QUEUE) -> None:
        for kind in kinds:
            if kind not in KINDS:
                raise InvalidArgument(f"no event {kind!r}: there are {', '.join(KINDS)}")
        self.kinds = frozenset(kinds or KINDS)
        self._node = node
        self._most = most
        self._waiting: deque[Event] = deque()
        self._dropped = 0
        self._changed = threading.Condition()
        self._closed = False

    def put(self, event: Event) -> None:
        """Add an event; it never waits."""
        with self._changed:
            if self._closed:
                return
            if len(self._waiting) >= self._most:
                self._waiting.popleft()
                self._dropped += 1
            self._waiting.append(event)
            self._changed.notify()

    def get(self, timeout: float | None = None) -> Event | None:
        """The next event; None if none came within `timeout` seconds, or none will come."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed, timeout)
            if self._dropped:
                count, self._dropped = self._dropped, 0
                return Event(LOST, None, self._node, {"count": count})
            return self._waiting.popleft() if self._waiting else None

    def close(self) -> None:
        """No more events come; those that wait can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def __iter__(self) -> Iterator[Event]:
        while (event := self.get()) is not None:
            yield event

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Events:
    """Passes on what happens in a node.

    Args:
        node: its id.
        hooks: called in a thread of its own with a hook's name and arguments.
        observed: whether any plugin has that hook.
    """

    def __init__(self, node: Id, hooks: Callable[..., None], observed: Callable[[str], bool]) -> None:
        self._node = node
        self._hooks = hooks
        self._observed = observed
        self._lock = threading.Lock()
        self._subscriptions: tuple[Subscription, ...] = ()
        self._of_hooks: Subscription | None = None  # Begun with the first event that a plugin observes.
        self._threads: list[threading.Thread] = []

    def publish(self, name: str, **arguments: Any) -> None:
        """Tell of an event by its hook's name; any thread, never waits."""
        kind = name.removeprefix(_HOOK)
        concerned = [each for each in self._subscriptions if kind in each.kinds]
        if self._observed(name):
            self._of_hooks = self._of_hooks or self._start(Subscription(self._node), self._tell_hooks)
            concerned.append(self._of_hooks)
        if concerned:
            details = {key: value for key, value in arguments.items() if key not in ("group", "node")}
            event = Event(kind, arguments.get("group"), self._node, details)
            for each in concerned:
                each.put(event)

    def is_watched(self) -> bool:
        """Whether anybody wants to know of every transition."""
        return self._observed(_HOOK + "transition_state") or any(
            "transition_state" in each.kinds for each in self._subscriptions
        )

    def subscribe(self, kinds: Collection[str], callback: Callable[[Event], None] | None) -> Subscription:
        """A new subscription; with a callback, a thread of its own calls that with each event.

        Raises:
            InvalidArgument: there is no event of such a kind.
        """
        subscription = Subscription(self._node, kinds)
        with self._lock:
            self._subscriptions = (*self._subscriptions, subscription)
        return subscription if callback is None else self._start(subscription, callback)

    def _start(self, subscription: Subscription, callback: Callable[[Event], None]) -> Subscription:
        name = f"raftplug-events-{self._node}"
        thread = threading.Thread(target=_call_for_each, args=(subscription, callback), name=name, daemon=True)
        self._threads.append(thread)
        thread.start()
        return subscription

    def close(self, timeout_s: float) -> None:
        """No more events; wait so long for observers to see those that wait."""
        until = time.monotonic() + timeout_s
        for each in (*self._subscriptions, self._of_hooks):
            if each is not None:
                each.close()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, until - time.monotonic()))

    def _tell_hooks(self, event: Event) -> None:
        if event.kind == LOST:
            text = "node %s: observers of plugins are slow: %d events were dropped"
            _logger.error(text, self._node, event.details["count"])
            return
        more = {} if event.group is None else {"group": event.group}
        self._hooks(_HOOK + event.kind, node=event.node, **more, **event.details)


def _call_for_each(subscription: Subscription, callback: Callable[[Event], None]) -> None:
    for event in subscription:
        try:
            callback(event)
        except Exception:
            _logger.exception("an observer of events raised")
