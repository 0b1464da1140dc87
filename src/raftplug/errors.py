"""Every error that raftplug raises, whose fault it was in its class::

RaftplugError
├── CallerError                 the caller can mend it
│   ├── InvalidArgument         a name, option or setting that cannot be
│   │   └── UnknownMachine      no installed plugin gives a state machine of that name
│   ├── InvalidTransition       not plain data
│   ├── TooLarge                a transition above the limit, or a result that cannot be delivered
│   ├── MachineFailed           the state machine broke its contract: its replica stops rather than diverge
│   ├── TransitionFailed        the state machine raised; that is the transition's result, on every replica
│   ├── QueryFailed             the state machine raised while it answered a read
│   └── SessionExpired          the session is unknown or expired; nothing was executed twice
├── ClusterError                the cluster, or the way to it
│   ├── NotLeader               certainly not executed; `leader` is a hint
│   ├── Unavailable             certainly not executed; no leader could be reached
│   │   ├── ChangeRefused       the members cannot change, or leadership move, right now
│   │   └── Diverged            this replica's state is not the others': it serves nothing
│   ├── Overloaded              certainly not executed; a queue is full
│   ├── OutcomeUnknown          may or may not have been executed
│   ├── Removed                 this node is a member no more, and stops
│   ├── TransportError          the transport cannot be used as it is configured
│   └── MalformedMessage        bytes from outside that are not ours
│       └── MalformedBlock      … in a block of log entries
├── StorageError                the disk, or what lies on it
│   ├── Corrupt                 a checksum or a structure is wrong
│   ├── DirectoryInUse          another process holds the data directory
│   ├── WrongDirectory          the directory belongs to another node or cluster, or is new, or is used
│   ├── DiskFull                no space: nothing was written
│   └── StorageFailed           a write or a sync failed; never retried
└── InvariantViolated           a bug of raftplug: the replica stops rather than go on
"""

from __future__ import annotations


class RaftplugError(Exception):
    """The root: nothing else leaves a public function.  Every one can be copied, and pickled for another process."""


class CallerError(RaftplugError):
    """The caller can mend it."""


class InvalidArgument(CallerError):
    """A name, option or setting that cannot be."""


class UnknownMachine(InvalidArgument):
    """No installed plugin gives a state machine of that name."""


class InvalidTransition(CallerError):
    """Not plain data: None, bool, int, float, str, bytes, list or dict."""


class TooLarge(CallerError):
    """A transition or query above `Settings.max_transition_bytes`; or a result or answer that cannot be delivered.

    Attributes:
        executed: True if the transition was executed, and only its result is too large.
    """

    def __init__(self, message: str = "", executed: bool = False) -> None:
        super().__init__(message)
        self.executed = executed


class MachineFailed(CallerError):
    """The state machine broke its contract: its replica stops, since it might diverge."""


class TransitionFailed(CallerError):
    """The state machine raised: the same error is the transition's result on every replica.

    Attributes:
        kind: name of the class of what it raised.
        message: its text.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(kind, message)  # As they came, so that a pickle or a copy is made of the same arguments.
        self.kind = kind
        self.message = message

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"


class QueryFailed(CallerError):
    """The state machine raised while it answered a read."""


class SessionExpired(CallerError):
    """The session is unknown or expired; nothing was executed twice."""


class ClusterError(RaftplugError):
    """The cluster, or the way to it."""


class NotLeader(ClusterError):
    """Certainly not executed.  `leader` is the id of the leader, if one is known."""

    def __init__(self, message: str = "this replica is not the leader", leader: int | str | None = None) -> None:
        super().__init__(message)
        self.leader = leader


class Unavailable(ClusterError):
    """Certainly not executed: no leader could be reached in time."""


class ChangeRefused(Unavailable):
    """Certainly not executed: another change of the members, or of who leads, is under way.  Try again later."""


class Diverged(Unavailable):
    """Certainly not executed: this replica's state differs from the others', so it serves nothing."""


class Overloaded(ClusterError):
    """Certainly not executed: a bounded queue is full.  Try again later."""


class OutcomeUnknown(ClusterError):
    """The transition may or may not have been executed."""


class Removed(ClusterError):
    """This node was removed from its group: it stops."""


class TransportError(ClusterError):
    """The transport cannot be used as it is configured, or not yet."""

    may_pass = False
    """Whether that may pass by itself, such as a server that does not run yet."""


class MalformedMessage(ClusterError):
    """Bytes from outside that are not a message of ours."""


class MalformedBlock(MalformedMessage):
    """Bytes from outside that are not a valid block of log entries."""


class StorageError(RaftplugError):
    """The disk, or what lies on it."""


class Corrupt(StorageError):
    """A checksum or a structure on disk is wrong; the message names file and index."""


class DirectoryInUse(StorageError):
    """Another process holds the data directory."""


class WrongDirectory(StorageError):
    """The data directory is another node's or cluster's, or new where a used one is wanted, or the other way round."""


class DiskFull(StorageError):
    """No space left: the transaction was rolled back, nothing was written."""


class StorageFailed(StorageError):
    """A write or a sync failed.  It is never retried: what the disk holds is unknown until it is read again."""


class InvariantViolated(RaftplugError):
    """A bug of raftplug: the replica stops rather than go on."""
