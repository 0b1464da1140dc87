"""A process: its turn, its peers, what it sends and tells."""

from mutants.mutant import Mutant

NODE = "node.py"
FRAMES = "frames.py"
SENDERS = "senders.py"
EVENTS = "events.py"

MUTANTS = (
    Mutant(
        "quiet group not woken when a node restarts",
        NODE,
        "NodeLoop._hear",
        "if is_new or id in self._lost:",
        "if id in self._lost:",
    ),
    Mutant(
        "quiet group not woken when a node is lost",
        NODE,
        "NodeLoop._watch_nodes",
        "peer=id, reachable=False)\n                self._wake(id)",
        "peer=id, reachable=False)",
    ),
    Mutant(
        "quiet group not woken when a node is back",
        NODE,
        "NodeLoop._hear",
        "self._wake(id)",
        "if is_new:\n                self._wake(id)",
    ),
    Mutant(
        "a full disk acknowledges",
        NODE,
        "NodeLoop._committed",
        "if isinstance(error, DiskFull):",
        "if isinstance(error, DiskFull):\n            error = None\n        if isinstance(error, DiskFull):",
    ),
    Mutant(
        "a failed write acknowledges",
        NODE,
        "NodeLoop._committed",
        "if error is not None:",
        "if error is not None and not isinstance(error, StorageFailed):",
    ),
    Mutant(
        "the highest boot is not kept on disk",
        NODE,
        "NodeLoop._commit.commit",
        "self._storage.commit(writes, heard)",
        "self._storage.commit(writes)",
    ),
    Mutant(
        "a frame's signature is not verified",
        FRAMES,
        "decode_frame",
        "if keys and not _is_signed(data[:end]",
        "if keys and False and not _is_signed(data[:end]",
    ),
    Mutant(
        "only the first of two keys is accepted",
        FRAMES,
        "_is_signed",
        "for key in keys:",
        "for key in keys[:1]:",
    ),
    Mutant(
        "an older boot is accepted",
        SENDERS,
        "Senders._judge_life",
        "told = _nonce_told(frame, boot) if frame.boot > boot else -1",
        "told = _nonce_told(frame, boot) if frame.boot > boot else nonce if frame.boot < boot else -1",
    ),
    Mutant(
        "a copy is accepted",
        SENDERS,
        "Senders._judge_life",
        "told = _nonce_told(frame, boot) if frame.boot > boot else -1",
        "told = _nonce_told(frame, boot) if frame.boot > boot else nonce if frame.boot == boot else -1",
    ),
    Mutant(
        "an older file is accepted once it was started often",
        SENDERS,
        "Senders._judge_life",
        "told = _nonce_told(frame, boot) if frame.boot > boot else -1",
        "told = nonce if frame.boot > boot else -1",
    ),
    Mutant(
        "whose directory is older is not told",
        SENDERS,
        "Senders._judge_life",
        "return Verdict(False, reason, DISPLACED, life(frame.storage, frame.nonce))",
        "return Verdict(False, reason)",
    ),
    Mutant(
        "an observer that raises ends what tells it",
        EVENTS,
        "call_for_each",
        "except BaseException:",
        "except LookupError:",
    ),
    Mutant(
        "an observer is not told how many events it lost",
        EVENTS,
        "Subscription.put",
        "                self._dropped += 1\n",
        "",
    ),
)
