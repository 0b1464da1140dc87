"""Going on after a quorum was lost for good, from what one data directory holds.  Offline, and not safe.

The log of the directory gets one more entry, in a term of its own: a configuration whose only voter is this node.  It
then elects itself, commits all that it holds, and takes new members.  What only the lost nodes held is gone; what this
node held, and nobody had acknowledged, comes true.

The cluster gets another id, so that no frame of the nodes that were lost is believed, should one of them run after all.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from raftplug import core, plain, snapshots
from raftplug.constants import CONFIGURATION, HIGHEST
from raftplug.directory import path_of
from raftplug.errors import Corrupt, InvalidArgument, MalformedMessage
from raftplug.frames import Id, founding_id
from raftplug.storage import Identity, RecordStorage, SQLiteStorage, Stored, Write, is_new

_TERMS_AHEAD = 1 << 20
"""How far the new term is ahead: the lost nodes may have been in terms that this one never heard of, and an entry of
ours in one of those would pass for theirs where old frames are still under way (Ongaro 2014 §3.5)."""

_REPLACED_BYTES = 64
_MOST_TERMS = 1 << 62
"""A cluster whose term is above this has been disturbed: elections do not come that far."""


def recover(data_dir: str | os.PathLike[str], id: Id) -> list[dict[str, Any]]:
    """Make the node of a data directory the only voter of each of its groups.

    Args:
        data_dir: the directory; its node must not run.
        id: of the node.

    Returns: for each group {"group", "last", "term", "voters_before"}: its last index and term before, and who voted.

    Raises:
        WrongDirectory, DirectoryInUse, Corrupt, StorageFailed: nothing was changed.
        InvalidArgument: there is no node's data in it, or it is a witness's.
    """
    if is_new(path_of(data_dir)):
        raise InvalidArgument(f"there is nothing to recover in {path_of(data_dir)}: it holds no node's data")
    with contextlib.closing(SQLiteStorage(data_dir, id, begin=False)) as storage:
        writes, told = [], []
        for group in storage.groups():
            write, report = sole_voter(storage, group, id)
            writes.append(write)
            told.append(report)
        commit(storage, writes)
        return told


def commit(storage: RecordStorage, writes: Sequence[Write]) -> None:
    """Write what `sole_voter` gave, and the cluster's new id, at once."""
    identity = storage.identity
    storage.found(recovered_id(identity), (identity.replaced + identity.founded)[-_REPLACED_BYTES:])
    storage.commit(writes, storage.heard)


def recovered_id(identity: Identity) -> bytes:
    """The id of the cluster that one directory goes on as: another one at each recovery, since it counts its boots."""
    return founding_id(identity.founded, {identity.node: identity.storage + identity.boot.to_bytes(8, "little")})


def sole_voter(storage: RecordStorage, group: str, id: Id) -> tuple[Write, dict[str, Any]]:
    """What is to be written to make the node of a storage the only voter of a group, and what `recover` returns of it.

    Terms that leave no room for elections (an attacker forged them) begin again: nothing of the old cluster counts.

    Raises:
        Corrupt: the log cannot be read.
        InvalidArgument: it is a witness's.
    """
    stored = storage.load(group)
    if stored is None:
        raise Corrupt(f"group {group!r} is listed, and is not there")
    members, kind = plain.decode(storage.configuration(group)), snapshots.PLAIN
    if stored.snapshot is not None:
        slot = stored.snapshot.slot
        reader = snapshots.Reader(stored.snapshot, lambda number: storage.piece(group, slot, number))
        members, kind = reader.configuration, reader.kind
    try:
        log = stored.log(core)
    except MalformedMessage as error:
        raise Corrupt(f"group {group!r}: the stored log: {error}") from None
    before = core.Configuration.from_plain(members)
    at = log.find(CONFIGURATION, log.base_index + 1)
    while at:
        with contextlib.suppress(MalformedMessage):  # Such an entry counts for nothing: see `Raft._adopt`.
            before = core.Configuration.decode(log.payload_at(at))
        at = log.find(CONFIGURATION, at + 1)
    if id in before.witnesses or kind == snapshots.WITNESS:
        raise InvalidArgument(f"{id} is a witness of group {group!r}: it has no state; take another node's directory")
    term, last = max(stored.term, log.last_term), log.last_index
    report = {"group": group, "last": last, "term": term, "voters_before": list(before.voters)}
    identity = storage.identity
    alone = core.Configuration([id], storages={id: identity.storage}, cluster=recovered_id(identity)).encode()
    if term > HIGHEST - _MOST_TERMS:
        return _with_low_terms(group, stored, log, alone), report
    index = log.append(term + _TERMS_AHEAD, CONFIGURATION, alone)
    return Write(group, term + _TERMS_AHEAD, None, first=index, block=log.slice(index, index + 1)), report


def _with_low_terms(group: str, stored: Stored, log: Any, alone: bytes) -> Write:
    """The whole log in terms that leave room for elections, with the configuration `alone` as its last entry."""
    snapshot, highest = stored.snapshot, 1
    entries = log.entries(log.base_index + 1, log.last_index + 1)
    for term in (log.base_term, *(term for _, term, _ in entries)):
        if highest < term <= _MOST_TERMS:
            highest = term
    base = min(log.base_term, highest)
    lowered = core.Log(log.base_index, base, log.check_at(log.base_index))
    for kind, term, payload in entries:
        lowered.append(min(term, highest), kind, payload)
    lowered.append(highest + _TERMS_AHEAD, CONFIGURATION, alone)
    first, end = log.base_index + 1, lowered.last_index + 1
    if snapshot is not None:
        first = snapshot.index + 1
        snapshot = replace(snapshot, term=min(snapshot.term, highest), check=lowered.check_at(snapshot.index))
    return Write(
        group,
        highest + _TERMS_AHEAD,
        None,
        first=first,
        block=lowered.slice(first, end),
        snapshot=snapshot,
        snapshot_resets_log=snapshot is not None,
        resets_term=True,
    )
