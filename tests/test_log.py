"""The log, the progress and the message, on each core: what is appended is there, what is damaged is refused."""

from __future__ import annotations

import contextlib
import struct
import zlib
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raftplug.constants import APPEND, ENTRY_HEADER_BYTES, LAST_MESSAGE_KIND, LIMIT, PROBE
from raftplug.errors import InvariantViolated, MalformedBlock, MalformedMessage

# The fixture is the same for every example: a core holds no state.
SHARED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)

payloads = st.binary(max_size=40)
term_steps = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 255), payloads), max_size=20)


def encode(index: int, term: int, kind: int, payload: bytes, check: int) -> bytes:
    """An entry as DESIGN has it, written a second time and independently."""
    head = struct.pack("<QQBI", index, term, kind, len(payload))
    return head + struct.pack("<I", zlib.crc32(head + payload, check)) + payload


def fill(log: Any, steps: list[tuple[int, int, bytes]]) -> list[tuple[int, int, bytes]]:
    """Append to `log`; return the model: kind, term, payload of each entry."""
    model = []
    for step, kind, payload in steps:
        term = log.last_term + step
        log.append(term, kind, payload)
        model.append((kind, term, payload))
    return model


def block_of(log: Any, lo: int | None = None, hi: int | None = None) -> bytes:
    return log.slice(lo or log.base_index + 1, hi or log.last_index + 1)


# ------------------------------------------------------------------ entries


def test_an_entry_has_the_documented_bytes(core: SimpleNamespace) -> None:
    log = core.Log(7, 3, 0x12345678)
    assert log.append(5, 1, b"payload") == 8
    assert log.append(5, 255, b"") == 9
    first = encode(8, 5, 1, b"payload", 0x12345678)
    second = encode(9, 5, 255, b"", zlib.crc32(first[:21] + b"payload", 0x12345678))
    assert log.slice(8, 10) == first + second
    assert log.slice(8, 9) == first
    assert log.check_at(8) == int.from_bytes(first[21:25], "little")


@pytest.mark.parametrize("length", [*range(40), 255, 256, 4095, 65537])
def test_the_check_is_zlibs_crc32_at_every_length(core: SimpleNamespace, length: int) -> None:
    payload = bytes(i * 37 % 251 for i in range(length))
    log = core.Log(0, 0, 0xDEADBEEF)
    log.append(1, 2, payload)
    assert log.slice(1, 2) == encode(1, 1, 2, payload, 0xDEADBEEF)


@given(steps=term_steps, base=st.integers(0, LIMIT - 100))
@SHARED
def test_what_was_appended_can_be_read(core: SimpleNamespace, steps: Any, base: int) -> None:
    log = core.Log(base, 4, 9)
    model = fill(log, steps)
    assert len(log) == len(model) == log.last_index - log.base_index
    assert log.entries(base + 1, log.last_index + 1) == model
    total = 0
    for offset, (kind, term, payload) in enumerate(model):
        index = base + 1 + offset
        assert (log.kind_at(index), log.term_at(index), log.payload_at(index)) == (kind, term, payload)
        assert log.bytes_between(base + 1, index) == total
        total += ENTRY_HEADER_BYTES + len(payload)
    assert log.bytes_between(base + 1, log.last_index + 1) == total == len(block_of(log))


def test_outside_the_log_there_is_nothing(core: SimpleNamespace) -> None:
    log = core.Log(5, 2, 77)
    log.append(3, 1, b"x")
    assert (log.term_at(5), log.check_at(5)) == (2, 77)
    for index in (-1, 0, 4, 7, LIMIT - 1, LIMIT, 1 << 80, -(1 << 80)):
        assert log.term_at(index) == log.check_at(index) == -1
        for read in (log.kind_at, log.payload_at):
            with pytest.raises(IndexError, match="the log holds 6 to 6"):
                read(index)
    for lo, hi in ((5, 6), (6, 8), (7, 6), (8, 8), (-1, 6), (6, 1 << 70)):
        for read in (log.slice, log.bytes_between, log.entries):
            with pytest.raises(IndexError):
                read(lo, hi)
    assert log.slice(6, 6) == log.slice(7, 7) == b""
    for index in (5, 7, -1, 1 << 70):
        with pytest.raises(IndexError):
            log.fit(index, 100)


@given(steps=term_steps.filter(bool), budget=st.integers(0, 300), data=st.data())
@SHARED
def test_a_run_fits_its_budget_and_has_at_least_one_entry(
    core: SimpleNamespace, steps: Any, budget: int, data: st.DataObject
) -> None:
    log = core.Log()
    fill(log, steps)
    dropped = data.draw(st.integers(0, log.last_index - 1))
    log.compact(dropped)
    lo = data.draw(st.integers(dropped + 1, log.last_index))
    end = log.fit(lo, budget)
    assert lo < end <= log.last_index + 1
    assert end == lo + 1 or log.bytes_between(lo, end) <= budget
    assert end == log.last_index + 1 or log.bytes_between(lo, end + 1) > budget


# ------------------------------------------------------------------- blocks


@given(steps=term_steps.filter(bool), data=st.data())
@SHARED
def test_a_follower_that_takes_a_leaders_blocks_has_the_leaders_bytes(
    core: SimpleNamespace, steps: Any, data: st.DataObject
) -> None:
    leader, follower = core.Log(), core.Log()
    fill(leader, steps)
    previous = 0
    while previous < leader.last_index:
        lo = data.draw(st.integers(0, previous))  # late duplicates overlap what is there
        hi = data.draw(st.integers(previous + 1, leader.last_index))
        block = leader.slice(lo + 1, hi + 1)
        assert follower.check_block(block, lo, leader.last_term) == (previous + 1, hi)
        follower.extend(block, previous + 1)
        assert follower.check_block(block, lo, leader.last_term) == (0, hi)
        previous = hi
    assert block_of(follower) == block_of(leader)
    assert (follower.last_index, follower.last_term) == (leader.last_index, leader.last_term)
    assert follower.append(leader.last_term, 1, b"next") == leader.append(leader.last_term, 1, b"next")
    assert block_of(follower) == block_of(leader)


def test_a_conflict_is_found_at_the_first_entry_of_another_term(core: SimpleNamespace) -> None:
    ours, theirs = core.Log(), core.Log()
    for log in (ours, theirs):
        log.append(1, 1, b"same")
    ours.append(2, 1, b"ours")
    ours.append(2, 1, b"ours")
    theirs.append(3, 1, b"theirs")
    block = block_of(theirs)
    assert ours.check_block(block, 0, 3) == (2, 2)
    ours.truncate(2)
    ours.extend(block, 2)
    assert block_of(ours) == block


def test_two_entries_of_one_term_and_index_are_refused(core: SimpleNamespace) -> None:
    ours, theirs = core.Log(), core.Log()
    ours.append(1, 1, b"one")
    theirs.append(1, 1, b"two")
    with pytest.raises(MalformedBlock, match="entry 1: differs"):
        ours.check_block(block_of(theirs), 0, 1)


def state(log: Any) -> tuple[Any, ...]:
    return (repr(log), block_of(log), len(log))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda b: b"", "empty"),
        (lambda b: b[:24], "entry 3: its header is cut off after 24 of 25 bytes"),
        (lambda b: b[:-1], "entry 4: its payload is cut off after 2 of 3 bytes"),
        (lambda b: b + b"\0", "entry 5: its header is cut off after 1 of 25 bytes"),
        (lambda b: b"\x04" + b[1:], "entry 3: the block says index 4"),
        (lambda b: b[:7] + b"\xff" + b[8:], "entry 3: the block says index 18374686479671623683"),
        (lambda b: b[:8] + b"\x00" + b[9:], "entry 3: term 0 is not in"),
        (lambda b: b[:8] + b"\x07" + b[9:], "entry 3: term 7 is not in"),
        (lambda b: b[:16] + b"\x09" + b[17:], "entry 3: its checksum is wrong"),
        (lambda b: b[:20] + b"\xff" + b[21:], "entry 3: its payload is cut off"),
        (lambda b: b[:21] + b"\xff" + b[22:], "entry 3: its checksum is wrong"),
        (lambda b: b[:25] + b"z" + b[26:], "entry 3: its checksum is wrong"),
        (lambda b: b[28:], "entry 3: the block says index 4"),
        (lambda b: b[:28] + b[:28], "entry 4: the block says index 3"),
    ],
)
def test_a_damaged_block_is_refused_and_changes_nothing(core: SimpleNamespace, damage: Any, words: str) -> None:
    leader, follower = core.Log(), core.Log()
    for log in (leader, follower):
        log.append(1, 1, b"one")
        log.append(2, 1, b"two")
    leader.append(2, 1, b"abc")
    leader.append(3, 1, b"def")
    block = damage(leader.slice(3, 5))
    before = state(follower)
    with pytest.raises(MalformedBlock, match=words):
        follower.check_block(block, 2, 3)
    assert state(follower) == before


@given(garbage=st.binary(max_size=200), flips=st.lists(st.tuples(st.integers(0, 149), st.integers(1, 255))))
@SHARED
def test_garbage_raises_malformed_block_and_nothing_else(core: SimpleNamespace, garbage: bytes, flips: Any) -> None:
    log = core.Log()
    for _ in range(5):
        log.append(1, 1, b"entry")
    damaged = bytearray(block_of(log))
    for position, mask in flips:
        damaged[position] ^= mask
    before = state(log)
    for block in (garbage, bytes(damaged), bytes(damaged[:100]) + garbage):
        for previous in (0, 3, 5):
            with contextlib.suppress(MalformedBlock):
                log.check_block(block, previous, LIMIT - 1)
            assert state(log) == before
        for call in (lambda b: log.extend(b, 6), log.restore):
            try:
                call(block)
            except (MalformedBlock, InvariantViolated):
                assert state(log) == before
            else:
                log.truncate(6)  # what it took was well formed and came after
                assert state(log) == before


def test_extend_refuses_what_does_not_follow(core: SimpleNamespace) -> None:
    log, leader = core.Log(), core.Log()
    for _ in range(3):
        leader.append(1, 1, b"x")
    log.extend(leader.slice(1, 2), 1)
    for block, first in (
        (leader.slice(2, 4), 3),
        (leader.slice(2, 4), 1),
        (leader.slice(3, 4), 2),
        (leader.slice(1, 2), 2),
        (b"", 2),
    ):
        before = state(log)
        with pytest.raises(InvariantViolated):
            log.extend(block, first)
        assert state(log) == before


# -------------------------------------------------------- restore and compact


@given(steps=term_steps.filter(bool), data=st.data())
@SHARED
def test_a_log_restored_from_its_blocks_is_the_same_log(core: SimpleNamespace, steps: Any, data: st.DataObject) -> None:
    log = core.Log()
    fill(log, steps)
    cuts = sorted({0, log.last_index, *data.draw(st.lists(st.integers(0, log.last_index), max_size=4))})
    blocks = [log.slice(lo + 1, hi + 1) for lo, hi in pairwise(cuts)]
    base = data.draw(st.integers(0, log.last_index))
    restored = core.Log(base, log.term_at(base), log.check_at(base))
    for block in blocks:
        restored.restore(block)
        restored.restore(block)  # again: skipped
    log.compact(base)
    assert state(restored) == state(log)


def test_restore_refuses_a_gap_a_foreign_base_and_a_contradiction(core: SimpleNamespace) -> None:
    log = core.Log()
    for i in range(5):
        log.append(1, 1, b"%d" % i)
    whole = block_of(log)
    with pytest.raises(MalformedBlock, match="entry 3: does not follow entry 0"):
        core.Log().restore(log.slice(3, 6))
    with pytest.raises(MalformedBlock, match="entry 2: is not the entry that the snapshot ends with"):
        core.Log(2, 1, log.check_at(2) ^ 1).restore(whole)
    with pytest.raises(MalformedBlock, match="entry 2: is not the entry that the snapshot ends with"):
        core.Log(2, 9, log.check_at(2)).restore(whole)
    with pytest.raises(MalformedBlock, match="entry 3: its checksum is wrong"):
        core.Log(2, 1, log.check_at(2) ^ 1).restore(log.slice(3, 6))
    with pytest.raises(MalformedBlock, match="entry 0: does not follow"):
        core.Log().restore(bytes(25))
    other = core.Log(1, 1, log.check_at(1) ^ 1)
    other.append(1, 1, b"other")
    forged = core.Log(1, 1, other.base_check)
    forged.append(1, 1, b"forged")
    before = state(other)
    with pytest.raises(MalformedBlock, match="entry 2: differs"):
        other.restore(block_of(forged))
    assert state(other) == before
    kept = core.Log(9, 1, 5)
    kept.restore(whole)  # all of it is covered by the snapshot
    assert (kept.base_index, len(kept)) == (9, 0)


@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("append"), st.integers(0, 2), payloads),
            st.tuples(st.sampled_from(["compact", "truncate", "fit"]), st.floats(0, 1), st.just(b"")),
        ),
        max_size=60,
    )
)
@SHARED
def test_any_mix_of_operations_leaves_what_a_plain_list_would_hold(core: SimpleNamespace, steps: Any) -> None:
    log, base, model = core.Log(), 0, []
    for name, number, payload in steps:
        last = base + len(model)
        if name == "append":
            term = log.last_term + number
            assert log.append(term, 1, payload) == last + 1
            model.append((1, term, payload))
        elif name == "compact":
            index = base + int(number * len(model))
            term, check = log.term_at(index), log.check_at(index)
            log.compact(index)
            model, base = model[index - base :], index
            assert (log.base_index, log.base_term, log.base_check) == (index, term, check)
        elif name == "truncate":
            index = base + 1 + int(number * len(model))
            log.truncate(index)
            model = model[: index - base - 1]
        elif model:
            index = base + 1 + int(number * (len(model) - 1))
            assert index < log.fit(index, 50) <= last + 1
        assert (log.base_index, log.last_index) == (base, base + len(model))
        assert log.last_term == (model[-1][1] if model else log.base_term)
        assert log.entries(base + 1, log.last_index + 1) == model
        twin = core.Log(log.base_index, log.base_term, log.base_check)
        if model:
            assert twin.check_block(block_of(log), base, LIMIT - 1) == (base + 1, log.last_index)


def test_a_long_log_survives_growth_and_compaction(core: SimpleNamespace) -> None:
    log = core.Log()
    for i in range(1, 20_001):
        log.append(1, 1, i.to_bytes(8, "little") * (i % 7))
        if i % 100 == 0:
            log.compact(i - 50)
    assert (log.base_index, log.last_index) == (19_950, 20_000)
    for i in range(19_951, 20_001):
        assert log.payload_at(i) == i.to_bytes(8, "little") * (i % 7)


def test_reset_makes_an_empty_log_of_that_base(core: SimpleNamespace) -> None:
    log = core.Log()
    log.append(1, 1, b"x")
    log.reset(10, 4, 99)
    assert state(log) == state(core.Log(10, 4, 99))
    assert log.append(4, 1, b"y") == 11
    assert log.slice(11, 12) == encode(11, 4, 1, b"y", 99)


def test_the_last_possible_index_is_reached_and_not_passed(core: SimpleNamespace) -> None:
    log = core.Log(LIMIT - 3, LIMIT - 1, 0)
    before = state(log)
    assert log.append(LIMIT - 1, 1, b"x") == LIMIT - 2
    with pytest.raises(InvariantViolated, match="last possible index"):
        log.append(LIMIT - 1, 1, b"x")
    beyond = encode(LIMIT - 1, LIMIT - 1, 1, b"", log.check_at(LIMIT - 2))
    with pytest.raises(MalformedBlock, match="below 2"):
        log.check_block(beyond, LIMIT - 2, LIMIT - 1)
    with pytest.raises(MalformedBlock, match="below 2"):
        log.restore(beyond)
    with pytest.raises(InvariantViolated):
        log.extend(beyond, LIMIT)
    with pytest.raises(MalformedBlock, match="below 2"):
        log.extend(beyond, LIMIT - 1)
    log.truncate(LIMIT - 2)
    assert state(log) == before


@pytest.mark.parametrize(
    "misuse",
    [
        lambda c: c.Log(-1),
        lambda c: c.Log(LIMIT),
        lambda c: c.Log(LIMIT - 1),
        lambda c: c.Log(0, 1 << 80),
        lambda c: c.Log(0, 0, 1 << 32),
        lambda c: c.Log().append(-1, 0, b""),
        lambda c: c.Log().append(LIMIT, 0, b""),
        lambda c: c.Log().append(0, 256, b""),
        lambda c: c.Log().append(0, -1, b""),
        lambda c: c.Log(0, 5).append(4, 0, b""),
        lambda c: c.Log().check_block(b"", 1, 1),
        lambda c: c.Log(5).check_block(b"", 4, 1),
        lambda c: c.Log().check_block(b"", 0, LIMIT),
        lambda c: c.Log().check_block(b"", -1, 0),
        lambda c: c.Log(5).truncate(5),
        lambda c: c.Log().truncate(0),
        lambda c: c.Log().truncate(-1),
        lambda c: c.Log().compact(1),
        lambda c: c.Log().reset(0, 0, 1 << 40),
        lambda c: c.Progress(2, -1, 0),
        lambda c: c.Progress(2, 1, LIMIT),
        lambda c: c.Message(0, 1),
        lambda c: c.Message(LAST_MESSAGE_KIND + 1, 1),
        lambda c: c.Message(APPEND, -1),
        lambda c: c.Message(APPEND, 1, hint=LIMIT),
    ],
)
def test_our_own_misuse_is_an_invariant_violated(core: SimpleNamespace, misuse: Any) -> None:
    with pytest.raises(InvariantViolated):
        misuse(core)


# ----------------------------------------------------- progress and messages


def test_a_new_progress_probes_and_counts_as_heard(core: SimpleNamespace) -> None:
    progress = core.Progress(2, 7, 1_000)
    assert (progress.match, progress.next, progress.state, progress.contact) == (0, 7, PROBE, 1_000)
    assert (progress.commit, progress.asked, progress.round, progress.paused, progress.peer) == (0, 0, 0, False, 2)


@given(st.lists(st.one_of(st.integers(1, 5), st.tuples(st.integers(0, 30)), st.none()), max_size=60))
@SHARED
def test_what_is_in_flight_was_sent_last_and_is_not_acknowledged(core: SimpleNamespace, deeds: Any) -> None:
    """A number is an append of so many entries, a tuple an acknowledgement; None: all that is in flight was lost."""
    progress = core.Progress(2, 1, 0)
    ends: list[int] = []
    for deed in deeds:
        if deed is None:
            progress.next = progress.match + 1
        elif isinstance(deed, tuple):
            progress.match = max(progress.match, *deed)
            progress.next = max(progress.next, progress.match + 1)
        else:
            progress.advance(progress.next + deed)
            ends.append(progress.next)
        ends = [end for end in ends if progress.match + 1 < end <= progress.next]
        assert progress.in_flight() == len(ends)


numbers = st.integers(0, LIMIT - 1)


@given(
    kind=st.integers(1, LAST_MESSAGE_KIND),
    fields=st.tuples(numbers, numbers, numbers, numbers, numbers, numbers),
    flag=st.booleans(),
    data=st.binary(max_size=50),
)
@SHARED
def test_a_message_decodes_to_what_was_encoded(
    core: SimpleNamespace, kind: int, fields: tuple[int, ...], flag: bool, data: bytes
) -> None:
    message = core.Message(kind, *fields, flag, data)
    encoded = message.encode()
    assert encoded == struct.pack("<BBQQQQQQ", kind, flag, *fields) + data
    again = core.Message.decode(encoded)
    assert repr(again) == repr(message)
    assert again.encode() == encoded
    assert again.flag is flag
    assert again.peer is None


@given(garbage=st.binary(max_size=80), head=st.integers(1, LAST_MESSAGE_KIND), flag=st.integers(0, 2))
@SHARED
def test_garbage_is_a_message_or_malformed(core: SimpleNamespace, garbage: bytes, head: int, flag: int) -> None:
    for data in (garbage, bytes([head, flag]) + garbage):
        try:
            message = core.Message.decode(data)
        except MalformedMessage:
            pass
        else:
            assert message.encode() == data


@pytest.mark.parametrize("field", range(6))
def test_a_decoded_number_of_64_bits_is_refused_by_name(core: SimpleNamespace, field: int) -> None:
    name = ("term", "index", "log_term", "commit", "context", "hint")[field]
    values = [0] * 6
    values[field] = LIMIT
    with pytest.raises(MalformedMessage, match=f"the {name} of a message must be below"):
        core.Message.decode(struct.pack("<BBQQQQQQ", APPEND, 0, *values))
    values[field] = LIMIT - 1
    assert getattr(core.Message.decode(struct.pack("<BBQQQQQQ", APPEND, 0, *values)), name) == LIMIT - 1


def test_an_attribute_set_out_of_range_is_not_encoded(core: SimpleNamespace) -> None:
    message = core.Message(APPEND, 1)
    message.term = -1
    with pytest.raises(InvariantViolated, match="term"):
        message.encode()
