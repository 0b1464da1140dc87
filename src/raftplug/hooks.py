"""The hooks: every point at which a plugin joins in.

A plugin is a module or object named by an entry point of the group "raftplug".  It writes functions with these names,
marks them with `hookimpl`, and may leave out arguments that it does not need.  docs/plugins.md shows each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import pluggy

from raftplug.state_machine import TransitionState

if TYPE_CHECKING:
    import click

PROJECT: Final = "raftplug"
"""The pluggy project, and the entry-point group."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def raftplug_state_machines() -> Mapping[str, Callable[[], Any]]:  # type: ignore[empty-body]
    """Name state machines: `{"kv": KV}`.

    Returns:
        For each name what makes a new machine (a class, say), called once a replica, without arguments.  A name is
        1 to 64 letters, digits, dots, underscores or dashes.
    """


@hookspec
def raftplug_clusters() -> Mapping[str, Callable[..., Any]]:  # type: ignore[empty-body]
    """Name transports by URL scheme: `{"nats": NatsCluster}`.

    Returns:
        For each scheme what opens a Cluster, called as `factory(url, own_id=…, cluster=…, prefix=…, settings=…)`:
        the id of this node or client, 16 bytes that identify the cluster, the prefix of all names on the server, and
        the `raftplug.settings.Settings`; take `**options` too, for later ones.
    """


@hookspec
def raftplug_commands() -> Sequence[click.Command]:  # type: ignore[empty-body]
    """Add commands to the command line: `[export]`.

    Returns:
        click commands.  The name of a built-in command cannot be taken.
    """


@hookspec
def raftplug_leader_changed(group: str, node: int | str, leader: int | str | None, term: int) -> None:
    """Observe that a replica sees another leader.

    Args:
        group: name of the group.
        node: id of the node whose replica sees it.
        leader: id of the leader; None while there is none.
        term: the replica's term.
    """


@hookspec
def raftplug_configuration_changed(group: str, node: int | str, configuration: Any) -> None:
    """Observe that a replica uses another configuration.

    Args:
        group: name of the group.
        node: id of the node.
        configuration: five lists of ids: voters, outgoing voters (while they change), learners, voters to be, and
            those of all these that are witnesses.
    """


@hookspec
def raftplug_snapshot(group: str, node: int | str, index: int, kind: str) -> None:
    """Observe a snapshot.

    Args:
        group: name of the group.
        node: id of the node.
        index: index of the last entry in it.
        kind: "made" of the node's own state, "installed" from the leader, or "refused": what was fetched from the
            leader had another digest, and is fetched anew.
    """


@hookspec
def raftplug_transition_state(group: str, node: int | str, transition_id: Any, state: TransitionState) -> None:
    """Observe how far each transition has come.  It is called for every one, so it must be quick.

    Args:
        group: name of the group.
        node: id of the node.
        transition_id: what the machine's `get_id` says, else the pair (term, index).
        state: `TransitionState.Queued`, `.Committed`, `.Applied` or `.Abandoned(reason)`.
    """


@hookspec
def raftplug_slow_apply(group: str, node: int | str, index: int, took_ms: int) -> None:
    """Observe that a state machine was slow, and has a thread of its own from now on.

    Args:
        group: name of the group.
        node: id of the node.
        index: index of the last entry that was applied.
        took_ms: how long one thing took, milliseconds.
    """


@hookspec
def raftplug_diverged(group: str, node: int | str, replica: int | str, index: int, digest: str, expected: str) -> None:
    """Observe that a replica's state differs from the others' (see `Settings.digest_entries`).

    Args:
        group: name of the group.
        node: id of the node that noticed: the leader, or the replica itself.
        replica: id of the node whose replica has diverged.
        index: index of the entry after which the digests were taken.
        digest: the replica's, in hexadecimal digits.
        expected: the others'.
    """


@hookspec
def raftplug_lost_entries(group: str, node: int | str, replica: int | str, acknowledged: int) -> None:
    """Observe that a replica has lost entries that it had acknowledged: its disk is not what it was.

    Its node stops, and must be replaced: remove the member, then add it with a new data directory.

    Args:
        group: name of the group.
        node: id of the node that noticed: the leader.
        replica: id of the node whose disk lost entries.
        acknowledged: index of the last entry that it had acknowledged to this leader.
    """


@hookspec
def raftplug_peer(node: int | str, peer: int | str, reachable: bool) -> None:
    """Observe that another node has not been heard for an election timeout, or is heard again.

    Args:
        node: id of the node that sees it.
        peer: id of the other one.
        reachable: whether it is heard now.
    """


@hookspec
def raftplug_stopped(node: int | str, error: str) -> None:
    """Observe that a node stops by itself: its disk failed, another process took its files, it was removed.

    Args:
        node: id of the node.
        error: the class and the text of the error, as `Node.failure` has it.
    """
