"""Random and damaged frames, messages and blocks, on their way into a replica: refused by a typed error, or taken.

    python tests/fuzz.py CORE SEED COUNT

Each case begins with what a replica may really send (or with noise), damages it in some places, and hands it to
`decode_frame`, `Message.decode`, `Raft.step` or the log.  What is refused changes nothing in a log; what is taken is
encoded again to the same bytes.
"""

from __future__ import annotations

import random
import struct
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

from raftplug import core as cores
from raftplug import frames
from raftplug.constants import LIMIT
from raftplug.errors import InvariantViolated, MalformedBlock, MalformedMessage, RaftplugError

KEY = frames.Key(1, b"sixteen bytes or")
EDGES = (0, 1, 2, 3, 127, 255, (1 << 31) - 1, (1 << 32) - 1, LIMIT - 2, LIMIT - 1, LIMIT, (1 << 64) - 1)


def a_log(core: Any, rng: random.Random, kinds: tuple[int, ...] = (0, 1, 2, 3, 4, 200)) -> Any:
    """A log of a few entries; one of kind 4 holds no configuration."""
    log = core.Log(rng.choice((0, 0, 3, 1 << 40)), 2, rng.getrandbits(32))
    term = 2
    for _ in range(rng.randrange(12)):
        term += rng.random() < 0.2
        log.append(term, rng.choice(kinds), rng.randbytes(rng.choice((0, 1, 10, 11, 12, 40, 3000))))
    return log


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Flip, insert, drop, repeat or overwrite with a number at an edge, some times; often nothing at all."""
    changed = bytearray(data)
    for _ in range(rng.choice((0, 0, 1, 1, 1, 2, 5))):
        at = rng.randrange(len(changed) + 1)
        how = rng.randrange(6)
        if how == 0 and changed:
            changed[at % len(changed)] ^= 1 << rng.randrange(8)
        elif how == 1:
            changed[at:at] = rng.randbytes(rng.randrange(1, 30))
        elif how == 2:
            del changed[at : at + rng.randrange(1, 30)]
        elif how == 3:
            changed[at : at + 8] = struct.pack("<Q", rng.choice(EDGES))
        elif how == 4:
            changed[at : at + 4] = struct.pack("<I", rng.choice(EDGES) & 0xFFFFFFFF)
        else:
            changed += changed[at : at + 60]
    return bytes(changed)


def noise(rng: random.Random) -> bytes:
    return rng.randbytes(rng.choice((0, 1, 24, 25, 26, 49, 50, 51, 80, 300)))


def fuzz_messages(core: Any, rng: random.Random) -> str:
    numbers = [rng.choice(EDGES[:-2]) for _ in range(6)]
    whole = core.Message(rng.randint(1, 8), *numbers, rng.random() < 0.5, noise(rng)).encode()
    data = damaged(whole, rng) if rng.random() < 0.9 else noise(rng)
    try:
        message = core.Message.decode(data)
    except MalformedMessage:
        return "refused"
    if message.encode() != data:
        raise AssertionError("what was decoded is encoded otherwise")
    return "taken"


def fuzz_blocks(core: Any, rng: random.Random) -> str:
    """A block for a log that holds the beginning of it, or something else."""
    source = a_log(core, rng)
    log = core.Log(source.base_index, source.base_term, source.base_check)
    shared = rng.randint(source.base_index, source.last_index)
    log.extend(source.slice(source.base_index + 1, shared + 1), log.last_index + 1) if shared > log.last_index else None
    if rng.random() < 0.3:
        log.append(log.last_term + 1, 1, b"another")
    if rng.random() < 0.3:
        log.compact(rng.randint(log.base_index, log.last_index))
    lo = rng.randint(source.base_index + 1, source.last_index + 1)
    block = damaged(source.slice(lo, source.last_index + 1), rng) if rng.random() < 0.9 else noise(rng)
    before = whole_of(log)
    use: Callable[[], Any] = rng.choice(
        (
            lambda: log.restore(block),
            lambda: log.extend(block, log.last_index + 1),
            lambda: taken_as_a_follower(log, block, rng.choice((lo - 1, log.last_index, log.base_index))),
        )
    )
    try:
        use()
    except (MalformedBlock, InvariantViolated):
        if whole_of(log) != before:
            raise AssertionError("a block that was refused has changed the log") from None
        return "refused"
    whole_of(log)
    return "taken"


def taken_as_a_follower(log: Any, block: bytes, previous: int) -> None:
    first, last = log.check_block(block, previous, LIMIT - 1)
    if first:
        if first <= log.last_index:
            log.truncate(first)
        log.extend(block, first)
        if log.last_index != last:
            raise AssertionError("a checked block was not taken whole")


def whole_of(log: Any) -> list[Any]:
    """All that a log holds, read in every way."""
    lo, hi = log.base_index + 1, log.last_index + 1
    block = log.slice(lo, hi)
    if log.bytes_between(lo, hi) != len(block):
        raise AssertionError("the log's bytes are not as many as it says")
    one_by_one = [(log.kind_at(i), log.term_at(i), log.payload_at(i)) for i in range(lo, hi)]
    if one_by_one != log.entries(lo, hi):
        raise AssertionError("the log's entries are not what it says one by one")
    return [repr(log), block, one_by_one, [log.check_at(i) for i in range(lo, hi)]]


def fuzz_frames(core: Any, rng: random.Random) -> str:
    """A frame with messages for a replica, damaged before it is signed, or after."""
    raft = core.Raft(
        "a",
        core.Configuration(["a", "b", "c"]),
        a_log(core, rng, (0, 1, 2)),
        1 << 10,
        None,
        0,
        1000,
        100,
        lambda n: n // 2,
    )
    for _ in range(rng.randrange(4)):
        raft.tick(raft.now + 1500)
        if raft.ready().write:
            raft.persisted()
        raft.step(core.Message(rng.choice((2, 4)), raft.term + rng.randrange(2), flag=True), "b")
    items = []
    for _ in range(rng.randrange(1, 4)):
        log = a_log(core, rng) if rng.random() < 0.5 else raft.log
        block = log.slice(log.base_index + 1, log.last_index + 1)
        kind, term = rng.randint(1, 8), raft.term + rng.randrange(2)
        near = [raft.log.last_index, raft.log.base_index, raft.commit, *EDGES[:-2]]
        numbers = [rng.choice(near) for _ in range(5)]
        body = core.Message(kind, term, *numbers, rng.random() < 0.5, block if kind == 5 else b"").encode()
        items.append((7, kind, damaged(body, rng)))
    signed = rng.random() < 0.5
    sender = frames.Sender(rng.choice(("b", "c", 5)), bytes(16), bytes(16), 1, 2, KEY if signed else None)
    data = sender.encode("a", items)
    data = damaged(data, rng) if rng.random() < 0.3 else data
    taken = 0
    try:
        for item in frames.decode_frame(data, [KEY] if signed else []).items:
            raft.step(core.Message.decode(item.body), "b")
            taken += 1
            if raft.ready().write:
                raft.persisted()
    except RaftplugError:
        whole_of(raft.log)
        return "refused after some" if taken else "refused"
    whole_of(raft.log)
    return "taken"


def run(core: Any, seed: int, count: int) -> Counter[str]:
    """Try so many cases of each kind.

    Returns: how often each end came.
    """
    ends: Counter[str] = Counter()
    for number in range(count):
        for fuzz in (fuzz_messages, fuzz_blocks, fuzz_frames):
            rng = random.Random(f"{seed} {number} {fuzz.__name__}")
            try:
                ends[f"{fuzz.__name__} {fuzz(core, rng)}"] += 1
            except Exception as error:
                error.add_note(f"seed {seed}, case {number} of {fuzz.__name__}, {core.name} core")
                raise
    return ends


def main() -> None:
    for end, times in sorted(run(cores.load(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])).items()):
        print(f"{end}: {times}")


if __name__ == "__main__":
    main()
