"""Strongly consistent replicated state for Python programs that already have a Redis.

Write a small `StateMachine`, give it to a `Node`, point nodes at the Redis: every node holds the same state in the
same order, whatever crashes.  `Client` is for processes that are no members; `Replica` is the seed's API, over a
`Cluster` of your own.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from raftplug import errors as errors

if TYPE_CHECKING:
    from raftplug.client import Client as Client
    from raftplug.cluster import Cluster as Cluster
    from raftplug.core import Future as Future
    from raftplug.events import Event as Event
    from raftplug.hooks import hookimpl as hookimpl
    from raftplug.node import Node as Node
    from raftplug.replica import Replica as Replica
    from raftplug.settings import Settings as Settings
    from raftplug.state_machine import Snapshot as Snapshot
    from raftplug.state_machine import StateMachine as StateMachine
    from raftplug.state_machine import TransitionAbandonedReason as TransitionAbandonedReason
    from raftplug.state_machine import TransitionState as TransitionState

_HOMES = {
    "Client": "client",
    "Cluster": "cluster",
    "Event": "events",
    "Future": "core",
    "Node": "node",
    "Replica": "replica",
    "Settings": "settings",
    "Snapshot": "state_machine",
    "StateMachine": "state_machine",
    "TransitionAbandonedReason": "state_machine",
    "TransitionState": "state_machine",
    "hookimpl": "hooks",
}

__all__ = ["errors", *_HOMES]


def __getattr__(name: str) -> Any:
    """Public names are loaded when they are first used, so that a plugin's import, or `--help`, costs little."""
    if name == "__version__":
        from raftplug.version import VERSION

        return VERSION
    if name not in _HOMES:
        raise AttributeError(f"module 'raftplug' has no attribute {name!r}")
    value = getattr(import_module(f"raftplug.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
