"""Going on after a quorum was lost for good, from what one data directory holds.  Offline, and not safe.

The log of the directory gets one more entry, in a term of its own: a configuration whose only voter is this node.  It
then elects itself, commits all that it holds, and takes new members.  What only the lost nodes held is gone; what this
node held, and nobody had acknowledged, comes true.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from raftplug import core, plain, snapshots
from raftplug.constants import CONFIGURATION, HIGHEST
from raftplug.errors import Corrupt, InvalidArgument, MalformedMessage
from raftplug.frames import Id
from raftplug.storage import FILE_NAME, RecordStorage, SQLiteStorage, Write

_TERMS_AHEAD = 1 << 20
"""How far the new term is ahead: the lost nodes may have been in terms that this one never heard of, and an entry of
ours in one of those would pass for theirs where old frames are still under way (Ongaro 2014 §3.5)."""


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
    if not any(Path(data_dir).glob(f"{FILE_NAME}*")):
        raise InvalidArgument(f"there is nothing to recover in {data_dir}: it holds no node's data")
    with contextlib.closing(SQLiteStorage(data_dir, id)) as storage:
        writes, told = [], []
        for group in storage.groups():
            write, report = sole_voter(storage, group, id)
            writes.append(write)
            told.append(report)
        storage.commit(writes)
        return told


def sole_voter(storage: RecordStorage, group: str, id: Id) -> tuple[Write, dict[str, Any]]:
    """What is to be written to make the node of a storage the only voter of a group, and what `recover` returns of it.

    Raises:
        Corrupt: the log cannot be read.
        InvalidArgument: it is a witness's, or there is no term left.
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
    at = log.find(CONFIGURATION, log.base_index + 1)
    while at:
        members = plain.decode(log.payload_at(at))
        at = log.find(CONFIGURATION, at + 1)
    term, last = max(stored.term, log.last_term), log.last_index
    if term > HIGHEST - _TERMS_AHEAD:
        raise InvalidArgument(f"group {group!r} has no term left")
    alone = core.Configuration([id], storages={id: storage.identity.storage})
    index = log.append(term + _TERMS_AHEAD, CONFIGURATION, alone.encode())
    before = core.Configuration.from_plain(members)
    if id in before.witnesses or kind == snapshots.WITNESS:
        raise InvalidArgument(f"{id} is a witness of group {group!r}: it has no state; take another node's directory")
    voters = list(before.voters)
    report = {"group": group, "last": last, "term": term, "voters_before": voters}
    return Write(group, term + _TERMS_AHEAD, None, first=index, block=log.slice(index, index + 1)), report
