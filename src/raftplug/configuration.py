"""Who votes: a configuration is a pure value, and so are the quorums of it.

A configuration has one set of voters, or two while it changes (joint consensus, Ongaro 2014 §4.3): what is decided must
then be decided by a quorum of each.  Learners receive everything and decide nothing.
"""

from typing import Any

from raftplug import _cy as cython
from raftplug import plain
from raftplug.errors import InvalidArgument, MalformedMessage

_FIELDS = 7  # Of `Configuration.plain`.


@cython.cclass
class Configuration:
    """The members of a group.

    Args:
        voters: ids of the voters; sorted, so that equal configurations have equal bytes.
        outgoing: the voters of the configuration that a joint one leaves; empty when it is not joint.
        learners: ids of members that do not vote; of a joint one, as soon as it is left.
        joining: ids of learners that become voters once they have caught up (Ongaro 2014 §4.2.1).
        storages: by which data directory the group knows a member: its uuid, bytes; those of others are left out.
        witnesses: ids of voters, or of who is to become one, that vote and acknowledge but never lead; those of others
            are left out.
        cluster: the id of the cluster, 16 bytes; empty until the first leader has fixed it: see `founding`.

    Raises:
        InvalidArgument: an id stands twice, is voter and learner, or joins without being a learner; or a uuid is none.
    """

    voters: tuple[Any, ...] = cython.declare(tuple, visibility="readonly")
    outgoing: tuple[Any, ...] = cython.declare(tuple, visibility="readonly")
    learners: tuple[Any, ...] = cython.declare(tuple, visibility="readonly")
    joining: tuple[Any, ...] = cython.declare(tuple, visibility="readonly")
    storages: dict[Any, Any] = cython.declare(dict, visibility="readonly")
    witnesses: tuple[Any, ...] = cython.declare(tuple, visibility="readonly")
    cluster: bytes = cython.declare(bytes, visibility="readonly")
    _electable: set[Any]

    def __init__(
        self,
        voters: object,
        outgoing: object = (),
        learners: object = (),
        joining: object = (),
        storages: dict[Any, Any] | None = None,
        witnesses: object = (),
        cluster: object = b"",
    ) -> None:
        self.voters = _ids(voters)
        self.outgoing = _ids(outgoing)
        self.learners = _ids(learners)
        self.joining = _ids(joining)
        if set(self.learners) & set(self.voters):
            raise InvalidArgument("configuration: a member is voter and learner at once")
        if set(self.joining) - set(self.learners):
            raise InvalidArgument("configuration: only a learner can be joining")
        self.witnesses = tuple([w for w in _ids(witnesses) if w in self.voters + self.outgoing + self.joining])
        self._electable = set(self.voters + self.outgoing) - set(self.witnesses)
        known: dict[Any, Any] = storages or {}
        self.storages = {member: known[member] for member in self.members() if member in known}
        for uuid in self.storages.values():
            if not isinstance(uuid, bytes):
                raise InvalidArgument("configuration: the uuid of a data directory must be bytes")
        if not isinstance(cluster, bytes) or len(cluster) not in (0, 16):
            raise InvalidArgument("configuration: the id of a cluster has 16 bytes")
        self.cluster = cluster

    def plain(self) -> list[Any]:
        """Plain data for the log, the snapshot and the disk; `from_plain` is its inverse."""
        storages: list[Any] = [[member, uuid] for member, uuid in self.storages.items()]
        data: list[Any] = [list(self.voters), list(self.outgoing), list(self.learners), list(self.joining), storages]
        if self.cluster:
            return [*data, list(self.witnesses), self.cluster]
        return [*data, list(self.witnesses)] if self.witnesses else data  # As it was before there were any.

    def encode(self) -> bytes:
        """The payload of a log entry; `decode` is its inverse."""
        return plain.encode(self.plain())

    @staticmethod
    def decode(payload: bytes) -> "Configuration":
        """The configuration in a log entry.

        Raises:
            MalformedMessage: it holds none; so every replica goes on as if the entry were not there.
            InvalidArgument: a later version wrote it: this one must not take it.
        """
        data: object = plain.decode(payload)
        try:
            return Configuration.from_plain(data)
        except InvalidArgument as error:
            if isinstance(data, list) and len(data) > _FIELDS:
                raise
            raise MalformedMessage(str(error)) from None

    @staticmethod
    def from_plain(data: object) -> "Configuration":
        """The configuration that `plain` gave.

        Raises:
            InvalidArgument: `data` is none.
        """
        if not isinstance(data, list) or len(data) not in (5, 6, 7) or not isinstance(data[4], list):
            raise InvalidArgument("configuration: not the plain data of one")
        for pair in data[4]:
            if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[0], (int, str)):
                raise InvalidArgument("configuration: not the plain data of one")
        return Configuration(data[0], data[1], data[2], data[3], dict(data[4]), *data[5:])

    def towards(self, target: "Configuration") -> "Configuration":
        """The next configuration on the way to `target`: the joint one if the voters differ (Ongaro 2014 §4.3)."""
        outgoing: tuple[Any, ...] = () if target.voters == self.voters else self.voters
        storages: dict[Any, Any] = {**self.storages, **target.storages}
        witnesses: list[Any] = list({*self.witnesses, *target.witnesses})
        cluster: bytes = self.cluster or target.cluster  # Fixed once.
        return Configuration(target.voters, outgoing, target.learners, target.joining, storages, witnesses, cluster)

    def left(self) -> "Configuration":
        """The configuration that follows this joint one."""
        return Configuration(self.voters, (), self.learners, self.joining, self.storages, self.witnesses, self.cluster)

    def members(self) -> list[Any]:
        """Every id in it, each once: voters first."""
        return list(dict.fromkeys(self.voters + self.outgoing + self.learners))

    @cython.ccall
    def is_voter(self, member: object) -> cython.bint:
        """Whether `member` has a vote in either half."""
        return member in self.voters or member in self.outgoing

    @cython.ccall
    def may_lead(self, member: object) -> cython.bint:
        """Whether `member` has a vote, and a state machine: a witness that led could answer nobody."""
        return member in self._electable

    def has_quorum(self, supporters: set[Any]) -> cython.bint:
        """Whether `supporters` hold a strict majority of the voters, and of the outgoing ones while joint.

        Supporters are a set: a vote that arrives twice is one vote.
        """
        return _majority(self.voters, supporters) and (not self.outgoing or _majority(self.outgoing, supporters))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Configuration) and self.plain() == other.plain()

    def __hash__(self) -> int:
        return hash((self.voters, self.outgoing, self.learners, self.joining))

    def __repr__(self) -> str:
        return (
            f"Configuration(voters={self.voters!r}, outgoing={self.outgoing!r}, learners={self.learners!r}, "
            f"joining={self.joining!r}, storages={self.storages!r}, witnesses={self.witnesses!r}, "
            f"cluster={self.cluster!r})"
        )


@cython.cfunc
def _majority(voters: tuple[Any, ...], supporters: set[Any]) -> cython.bint:
    count: cython.longlong = 0
    for voter in voters:
        if voter in supporters:
            count += 1
    return 2 * count > len(voters)


def _ids(members: object) -> tuple[Any, ...]:
    if not isinstance(members, (list, tuple)):
        raise InvalidArgument("configuration: members must be a list of ids")
    for member in members:
        if type(member) is not int and not isinstance(member, str):
            raise InvalidArgument(f"configuration: {member!r} is not an id")
    if len(set(members)) != len(members):
        raise InvalidArgument("configuration: an id stands twice")
    return tuple(sorted(members, key=_sort_key))


def _sort_key(member: object) -> tuple[Any, ...]:
    return (isinstance(member, str), member)
