# cython: language_level=3, binding=True
"""The compiled core: `_core_py.py` over again as typed classes, and the rules of raft.py compiled over them.

Entries lie one after the other in memory of our own, as they go over the wire; so replicating a range is one copy, and
no Python object is made per entry but where a caller asks for a payload.  Little-endian is written out byte by byte
(compilers make one instruction of it), so the bytes are the same on every machine.

The docstrings of `_core_py.py` hold here too.  Directives are left at their safe defaults: they govern the included
rules as well, where an unchecked index would be memory corruption.
"""

from __future__ import annotations

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.long cimport PyLong_AsLongLongAndOverflow, PyLong_CheckExact
from libc.string cimport memcpy, memmove
from cpython.mem cimport PyMem_RawFree, PyMem_RawRealloc

from raftplug import _refusals as refusals

# The constants become C integers, here and in the included rules: comparing with them costs no look-up.
cdef int NOOP, TRANSITION, SESSION_TRANSITION, SESSION_OPEN, CONFIGURATION
cdef int PRE_VOTE, PRE_VOTE_RESPONSE, VOTE, VOTE_RESPONSE, APPEND, APPEND_RESPONSE, SNAPSHOT, TIMEOUT_NOW
cdef int LAST_MESSAGE_KIND
cdef int FOLLOWER, PRE_CANDIDATE, CANDIDATE, LEADER
cdef int PROBE, REPLICATE, INSTALL
cdef long long HIGHEST
from raftplug.constants import LAST_MESSAGE_KIND, PROBE

cdef extern from *:
    """
    #ifndef RAFTPLUG_SOURCE_HASH
    #define RAFTPLUG_SOURCE_HASH ""
    #endif
    """
    const char *RAFTPLUG_SOURCE_HASH

SOURCE_HASH = RAFTPLUG_SOURCE_HASH.decode("ascii")

ctypedef unsigned long long u64
ctypedef unsigned int u32
ctypedef unsigned char u8

cdef enum:
    HEADER_BYTES = 25
    CHECKED_BYTES = 21
    MESSAGE_BYTES = 50

cdef long long LARGEST = 0x7FFFFFFFFFFFFFFF
cdef long long LARGEST_INDEX = refusals.LARGEST_INDEX


# Bytes.

cdef inline u32 load32(const u8 *p) noexcept nogil:
    return p[0] | <u32>p[1] << 8 | <u32>p[2] << 16 | <u32>p[3] << 24


cdef inline u64 load64(const u8 *p) noexcept nogil:
    return load32(p) | <u64>load32(p + 4) << 32


cdef inline void store32(u8 *p, u32 value) noexcept nogil:
    p[0] = <u8>value
    p[1] = <u8>(value >> 8)
    p[2] = <u8>(value >> 16)
    p[3] = <u8>(value >> 24)


cdef inline void store64(u8 *p, u64 value) noexcept nogil:
    store32(p, <u32>value)
    store32(p + 4, <u32>(value >> 32))


# CRC-32 (zlib's), eight bytes at a time: Kounavis and Berry 2005, "slicing-by-8".

cdef u32[8][256] TABLE


cdef void make_table() noexcept nogil:
    cdef u32 value
    cdef int i, k, _
    for i in range(256):
        value = <u32>i
        for _ in range(8):
            value = value >> 1 ^ (<u32>0xEDB88320 if value & 1 else 0)
        TABLE[0][i] = value
    for i in range(256):
        for k in range(1, 8):
            TABLE[k][i] = TABLE[k - 1][i] >> 8 ^ TABLE[0][TABLE[k - 1][i] & 0xFF]


make_table()


cdef u32 crc32(const u8 *p, size_t size, u32 check) noexcept nogil:
    cdef u32 low, high
    check = ~check
    while size >= 8:
        low = check ^ load32(p)
        high = load32(p + 4)
        check = (
            TABLE[7][low & 0xFF] ^ TABLE[6][low >> 8 & 0xFF] ^ TABLE[5][low >> 16 & 0xFF] ^ TABLE[4][low >> 24]
            ^ TABLE[3][high & 0xFF] ^ TABLE[2][high >> 8 & 0xFF] ^ TABLE[1][high >> 16 & 0xFF] ^ TABLE[0][high >> 24]
        )
        p += 8
        size -= 8
    while size:
        check = check >> 8 ^ TABLE[0][(check ^ p[0]) & 0xFF]
        p += 1
        size -= 1
    return ~check


cdef inline u32 entry_check(const u8 *entry, u32 length, u32 check) noexcept nogil:
    """The check of an entry whose header (but the check) and payload are in place."""
    return crc32(entry + HEADER_BYTES, length, crc32(entry, CHECKED_BYTES, check))


# Numbers that come in.  They are taken as objects, not as C integers, so that one that is out of range is refused in
# the same words as on the other core; that costs the compiled caller 5 to 12 ns.

cdef inline long long small(object value) noexcept:
    """The value, or -1 if it is no int in [0, 2^63)."""
    cdef int overflow = 0
    cdef long long number
    if not PyLong_CheckExact(value):
        return -1
    number = PyLong_AsLongLongAndOverflow(value, &overflow)
    return -1 if overflow or number < 0 else number


cdef inline long long whole(str name, object value) except -1:
    cdef long long number = small(value)
    return number if number >= 0 else refusals.whole(name, value)


cdef long long place(str name, object value) except? -1:
    """The value of an int, or -1 if it can be no index: for methods that say themselves what is outside."""
    cdef long long number = small(value)
    if number < 0 and not isinstance(value, int):
        refusals.whole(name, value)
    return number


cdef struct Entry:
    u64 term
    u32 check
    u32 length
    Py_ssize_t end  # where the entry ends in its block


cdef Py_ssize_t read_entry(
    const u8 *block, Py_ssize_t size, Py_ssize_t position, u64 index, u64 lowest, u64 highest, Entry *entry
) except -1:
    """Fill `entry` from the bytes at `position`, which must be entry `index`; return 0, or raise MalformedBlock."""
    cdef Py_ssize_t left = size - position - HEADER_BYTES
    cdef const u8 *p = block + position
    if left < 0:
        raise refusals.header_cut(index, left + HEADER_BYTES)
    if load64(p) != index or index > <u64>LARGEST_INDEX:
        raise refusals.wrong_index(index, load64(p))
    entry.term = load64(p + 8)
    if entry.term < lowest or entry.term > highest:
        raise refusals.wrong_term(index, entry.term, lowest, highest)
    entry.length = load32(p + 17)
    if entry.length > <u64>left:
        raise refusals.payload_cut(index, entry.length, left)
    entry.check = load32(p + CHECKED_BYTES)
    entry.end = position + HEADER_BYTES + <Py_ssize_t>entry.length
    return 0


@cython.final
@cython.auto_pickle(False)
cdef class Log:
    """The entries of one replica that are not yet compacted away, base_index + 1 to last_index."""

    cdef readonly long long base_index, base_term, base_check, last_index, last_term
    cdef u32 check  # the chain value of the last entry
    # Positions count bytes since the last reset.  memory[0] is position `origin`; entry i begins at position
    # starts[head + i - base_index - 1] and the last one ends at the position after.  What lies before is dead:
    # compaction moves the rest down only when the dead part is larger, so that it costs O(dropped), not O(log).
    cdef u8 *memory
    cdef u64 *starts
    cdef size_t memory_size, starts_size, head
    cdef u64 origin

    def __cinit__(self, *args, **kwargs):
        self.memory = NULL
        self.starts = NULL
        self.memory_size = self.starts_size = 0

    def __init__(self, base_index=0, base_term=0, base_check=0):
        self.reset(base_index, base_term, base_check)

    def __dealloc__(self):
        PyMem_RawFree(self.memory)
        PyMem_RawFree(self.starts)

    cpdef reset(self, index, term, check):
        """Forget everything: an empty log that follows entry `index`, of term `term` and chain value `check`."""
        cdef long long new_index = whole("index", index)
        cdef long long new_term = whole("term", term)
        cdef long long new_check = whole("check", check)
        if new_index > LARGEST_INDEX:
            raise refusals.base_index_too_large(new_index)
        if new_check >= 1LL << 32:
            raise refusals.base_check_too_large(new_check)
        if not self.starts_size:
            self.resize_starts(16)
        self.base_index = self.last_index = new_index
        self.base_term = self.last_term = new_term
        self.base_check = new_check
        self.check = <u32>new_check
        PyMem_RawFree(self.memory)
        self.memory = NULL
        self.memory_size = self.head = 0
        self.origin = 0
        self.starts[0] = 0
        self.resize_starts(16)

    def __len__(self):
        return self.last_index - self.base_index

    def __repr__(self):
        return refusals.describe(self, ("base_index", "base_term", "base_check", "last_index", "last_term"))

    # Memory.

    cdef int resize_starts(self, size_t size) except -1:
        cdef void *memory = PyMem_RawRealloc(self.starts, size * sizeof(u64))
        if memory == NULL:
            raise MemoryError()
        self.starts = <u64 *>memory
        self.starts_size = size
        return 0

    cdef int resize_memory(self, size_t size) except -1:
        cdef void *memory = PyMem_RawRealloc(self.memory, size)
        if memory == NULL:
            raise MemoryError()
        self.memory = <u8 *>memory
        self.memory_size = size
        return 0

    cdef inline size_t slot(self, long long index) noexcept nogil:
        return self.head + <size_t>(index - self.base_index - 1)

    cdef inline u8 *at(self, long long index) noexcept nogil:
        """The bytes of entry `index`, which must be here; for last_index + 1, where they will be."""
        return self.memory + (self.starts[self.slot(index)] - self.origin)

    cdef inline int reserve(self, size_t entries, size_t size) except -1:
        """Make room for so many more entries and bytes.  Growth is by half at least, so appending is O(1)."""
        cdef size_t slots = self.slot(self.last_index + 1) + 1 + entries
        cdef size_t used = <size_t>(self.starts[self.slot(self.last_index + 1)] - self.origin) + size
        if slots > self.starts_size:
            self.resize_starts(max(slots, self.starts_size + self.starts_size // 2))
        if used > self.memory_size:
            self.resize_memory(max(used, self.memory_size + self.memory_size // 2, <size_t>1024))
        return 0

    # Writing.

    cpdef long long append(self, term, kind, bytes payload) except -1:
        """Add one entry of the leader's own and return its index."""
        if payload is None:
            raise refusals.not_bytes("payload", payload)
        cdef long long new_term = whole("term", term)
        cdef long long new_kind = whole("kind", kind)
        if new_kind >= 256:
            raise refusals.kind_too_large(new_kind)
        if new_term < self.last_term:
            raise refusals.term_goes_back(new_term, self.last_term)
        cdef size_t length = PyBytes_GET_SIZE(payload)
        if length >= 1ULL << 32:
            raise refusals.payload_too_long(length)
        if self.last_index == LARGEST_INDEX:
            raise refusals.log_full()
        self.reserve(1, HEADER_BYTES + length)
        cdef size_t slot = self.slot(self.last_index + 1)
        cdef u8 *p = self.memory + (self.starts[slot] - self.origin)
        store64(p, <u64>self.last_index + 1)
        store64(p + 8, <u64>new_term)
        p[16] = <u8>new_kind
        store32(p + 17, <u32>length)
        memcpy(p + HEADER_BYTES, PyBytes_AS_STRING(payload), length)
        self.check = entry_check(p, <u32>length, self.check)
        store32(p + CHECKED_BYTES, self.check)
        self.starts[slot + 1] = self.starts[slot] + HEADER_BYTES + length
        self.last_index += 1
        self.last_term = new_term
        return self.last_index

    cpdef (long long, long long) check_block(self, bytes block, prev_index, max_term) except *:
        """Validate a received block, whose entries follow our entry `prev_index`, and change nothing."""
        if block is None:
            raise refusals.not_bytes("block", block)
        cdef long long index = whole("prev_index", prev_index)
        cdef u64 highest = <u64>whole("max_term", max_term)
        if not self.base_index <= index <= self.last_index:
            raise refusals.outside("prev_index", index, self.base_index, self.last_index)
        cdef const u8 *p = <const u8 *>PyBytes_AS_STRING(block)
        cdef Py_ssize_t size = PyBytes_GET_SIZE(block)
        cdef Py_ssize_t position = 0
        cdef u64 next_index = <u64>index
        cdef u64 first = 0
        cdef u32 check = <u32>self.check_of(index)
        cdef Entry entry
        entry.term = <u64>self.term_of(index)
        if not size:
            raise refusals.empty_block()
        while position < size:
            next_index += 1
            read_entry(p, size, position, next_index, entry.term, highest, &entry)
            check = entry_check(p + position, entry.length, check)
            if check != entry.check:
                raise refusals.wrong_check(next_index)
            if not first:
                if next_index > <u64>self.last_index or self.term_of(<long long>next_index) != <long long>entry.term:
                    first = next_index
                elif self.check_of(<long long>next_index) != check:
                    raise refusals.other_content(next_index, entry.term)
            position = entry.end
        return <long long>first, <long long>next_index

    cpdef extend(self, bytes block, first):
        """Append the entries from index `first` on of a block that `check_block` found good."""
        if block is None:
            raise refusals.not_bytes("block", block)
        cdef long long wanted = whole("first", first)
        if wanted != self.last_index + 1:
            raise refusals.not_next(wanted, self.last_index)
        cdef const u8 *p = <const u8 *>PyBytes_AS_STRING(block)
        cdef Py_ssize_t size = PyBytes_GET_SIZE(block)
        if size < HEADER_BYTES:
            raise refusals.not_in_block(wanted)
        cdef u64 index = load64(p)
        cdef Py_ssize_t position = 0
        cdef Entry entry
        while index < <u64>wanted:
            read_entry(p, size, position, index, 0, <u64>LARGEST, &entry)
            position = entry.end
            index += 1
            if position == size:
                break
        if index != <u64>wanted or position == size:
            raise refusals.not_in_block(wanted)
        self.take(p, size, position)

    cdef int take(self, const u8 *block, Py_ssize_t size, Py_ssize_t position) except -1:
        """Append the entries from `position` on; nothing has changed if this raises."""
        cdef u64 index = <u64>self.last_index
        cdef Entry entry
        cdef Py_ssize_t begin = position
        cdef size_t slot
        cdef u64 already
        if position == size:
            return 0
        self.reserve(1, <size_t>(size - position))
        slot = self.slot(self.last_index + 1)
        already = self.starts[slot]
        entry.term = <u64>self.last_term
        entry.check = self.check
        while position < size:
            index += 1
            read_entry(block, size, position, index, entry.term, <u64>LARGEST, &entry)
            position = entry.end
            slot += 1
            if slot == self.starts_size:
                self.resize_starts(self.starts_size + self.starts_size // 2)
            # Beyond the end: it means nothing until last_index moves.
            self.starts[slot] = already + <u64>(position - begin)
        memcpy(self.memory + (already - self.origin), block + begin, <size_t>(size - begin))
        self.last_index = <long long>index
        self.last_term = <long long>entry.term
        self.check = entry.check
        return 0

    cpdef restore(self, bytes block):
        """Append a block from storage at start-up; entries that are here already, or compacted away, are skipped."""
        if block is None:
            raise refusals.not_bytes("block", block)
        cdef const u8 *p = <const u8 *>PyBytes_AS_STRING(block)
        cdef Py_ssize_t size = PyBytes_GET_SIZE(block)
        cdef u64 last = <u64>self.last_index
        cdef u64 base = <u64>self.base_index
        cdef u64 index = load64(p) if size >= HEADER_BYTES else last + 1
        cdef Py_ssize_t position = 0
        cdef Py_ssize_t fresh = 0
        cdef long long check
        cdef Entry entry
        if not size:
            return
        if index == 0 or index > last + 1:
            raise refusals.gap(index, last)
        check = self.check_of(<long long>(index - 1))
        entry.term = <u64>max(self.term_of(<long long>(index - 1)), 0)
        while position < size:
            read_entry(p, size, position, index, entry.term, <u64>LARGEST, &entry)
            if check >= 0 and entry_check(p + position, entry.length, <u32>check) != entry.check:
                raise refusals.wrong_check(index)
            if index == base and (entry.check != <u32>self.base_check or entry.term != <u64>self.base_term):
                raise refusals.base_differs(index)
            if base < index <= last and (
                entry.check != <u32>self.check_of(<long long>index)
                or entry.term != <u64>self.term_of(<long long>index)
            ):
                raise refusals.other_content(index, entry.term)
            check = entry.check
            position = entry.end
            if index <= last:
                fresh = position
            index += 1
        self.take(p, size, fresh)

    # Reading.

    cdef inline long long term_of(self, long long index) noexcept nogil:
        if self.base_index < index <= self.last_index:
            return <long long>load64(self.at(index) + 8)
        return self.base_term if index == self.base_index else -1

    cdef inline long long check_of(self, long long index) noexcept nogil:
        if self.base_index < index <= self.last_index:
            return load32(self.at(index) + CHECKED_BYTES)
        return self.base_check if index == self.base_index else -1

    cpdef long long term_at(self, index) except? -1:
        """The term of entry `index`, also of the base; -1 if it is compacted away or beyond the end."""
        return self.term_of(place("index", index))

    cpdef long long check_at(self, index) except? -1:
        """The chain value of entry `index`, also of the base; -1 if it is compacted away or beyond the end."""
        return self.check_of(place("index", index))

    cdef u8 *entry(self, object index) except NULL:
        cdef long long wanted = place("index", index)
        if not self.base_index < wanted <= self.last_index:
            raise refusals.no_entry(index, self.base_index, self.last_index)
        return self.at(wanted)

    cpdef int kind_at(self, index) except -1:
        """The kind of entry `index`."""
        return self.entry(index)[16]

    cpdef bytes payload_at(self, index):
        """The payload of entry `index`."""
        cdef u8 *p = self.entry(index)
        return PyBytes_FromStringAndSize(<char *>p + HEADER_BYTES, <Py_ssize_t>load32(p + 17))

    cdef int bounds(self, object lo, object hi, size_t *start, size_t *stop) except -1:
        """Where entries lo to hi - 1 lie in `starts`."""
        cdef long long first = place("lo", lo)
        cdef long long end = place("hi", hi)
        if not self.base_index < first <= end or end > self.last_index + 1:
            raise refusals.no_entries(lo, hi, self.base_index, self.last_index)
        start[0] = self.slot(first)
        stop[0] = self.slot(end)
        return 0

    cpdef bytes slice(self, lo, hi):
        """Entries lo to hi - 1 as a block."""
        cdef size_t start, stop
        self.bounds(lo, hi, &start, &stop)
        if start == stop:
            return b""
        cdef u64 begin = self.starts[start]
        return PyBytes_FromStringAndSize(
            <char *>self.memory + (begin - self.origin), <Py_ssize_t>(self.starts[stop] - begin)
        )

    cpdef long long fit(self, lo, max_bytes) except -1:
        """The end (exclusive) of the longest run of entries from `lo` on that takes at most `max_bytes` as a block."""
        cdef u64 most = <u64>whole("max_bytes", max_bytes)
        cdef long long first = place("lo", lo)
        cdef size_t start, low, high, middle
        cdef u64 begin
        if not self.base_index < first <= self.last_index:
            raise refusals.no_entry(lo, self.base_index, self.last_index)
        start = self.slot(first)
        begin = self.starts[start]
        high = start + <size_t>(self.last_index + 1 - first)
        if self.starts[high] - begin <= most:
            return self.last_index + 1
        low = start + 1  # within, because one entry always is; `high` is beyond
        while high - low > 1:
            middle = low + (high - low) // 2
            if self.starts[middle] - begin > most:
                high = middle
            else:
                low = middle
        return first + <long long>(low - start)

    cpdef long long bytes_between(self, lo, hi) except -1:
        """How many bytes entries lo to hi - 1 take as a block, in constant time."""
        cdef size_t start, stop
        self.bounds(lo, hi, &start, &stop)
        return <long long>(self.starts[stop] - self.starts[start])

    cpdef list entries(self, lo, hi):
        """Kind, term and payload of entries lo to hi - 1."""
        cdef size_t start, stop
        cdef list found = []
        cdef u8 *p
        self.bounds(lo, hi, &start, &stop)
        while start < stop:
            p = self.memory + (self.starts[start] - self.origin)
            found.append((
                p[16],
                <long long>load64(p + 8),
                PyBytes_FromStringAndSize(<char *>p + HEADER_BYTES, <Py_ssize_t>load32(p + 17)),
            ))
            start += 1
        return found

    cpdef long long find(self, kind, lo) except -1:
        """The first entry of `kind` from index `lo` on; 0 if there is none."""
        cdef size_t start, stop, slot
        cdef int wanted = kind
        self.bounds(lo, self.last_index + 1, &start, &stop)
        for slot in range(start, stop):
            if self.memory[self.starts[slot] - self.origin + 16] == wanted:
                return <long long>lo + <long long>(slot - start)
        return 0

    # Dropping.

    cpdef truncate(self, index):
        """Drop entry `index` and all after it."""
        cdef long long first = whole("index", index)
        if first <= self.base_index:
            raise refusals.outside("index", first, self.base_index + 1, LARGEST)
        if first > self.last_index:
            return
        self.last_term = self.term_of(first - 1)
        self.check = <u32>self.check_of(first - 1)
        self.last_index = first - 1

    cpdef compact(self, index):
        """Drop all entries up to `index`, which becomes the base; nothing happens if it is not above base_index."""
        cdef long long base = whole("index", index)
        cdef size_t rest, dead, live, count
        if base <= self.base_index:
            return
        if base > self.last_index:
            raise refusals.outside("index", base, 0, self.last_index)
        self.base_term, self.base_check, self.head = self.term_of(base), self.check_of(base), self.slot(base + 1)
        self.base_index = base
        count = <size_t>(self.last_index - base)
        rest = self.head + count
        if self.head > count:
            memmove(self.starts, self.starts + self.head, (count + 1) * sizeof(u64))
            self.head = 0
            rest = count
            if self.starts_size > 64 and self.starts_size > 4 * (count + 1):
                self.resize_starts(2 * (count + 1))
        dead = <size_t>(self.starts[self.head] - self.origin)
        live = <size_t>(self.starts[rest] - self.starts[self.head])
        if dead > live:
            memmove(self.memory, self.memory + dead, live)
            self.origin += dead
            if self.memory_size > 4096 and self.memory_size > 4 * live:
                self.resize_memory(max(2 * live, <size_t>1024))


@cython.final
@cython.auto_pickle(False)
cdef class Progress:
    """What a leader knows of one peer.  All numbers are ints in [0, 2^63); times are microseconds."""

    cdef public object peer
    cdef public long long match, next, state, pending_snapshot, commit, asked, round, contact, sent
    cdef public bint paused

    def __init__(self, next, now):
        self.peer = None
        self.match = 0
        self.next = whole("next", next)
        self.state = PROBE
        self.pending_snapshot = 0
        self.commit = 0
        self.asked = 0
        self.round = 0
        self.contact = whole("now", now)
        self.sent = self.contact
        self.paused = False

    def __repr__(self):
        return refusals.describe(self, refusals.PROGRESS_FIELDS)


@cython.final
@cython.freelist(64)
@cython.auto_pickle(False)
cdef class Message:
    """What one replica tells another: one flat record for every kind."""

    cdef public long long kind, term, index, log_term, commit, context, hint
    cdef public bint flag
    cdef public bytes data
    cdef public object peer

    def __init__(
        self, kind, term, index=0, log_term=0, commit=0, context=0, hint=0, flag=False, bytes data not None=b""
    ):
        self.kind = small(kind)
        self.term = small(term)
        self.index = small(index)
        self.log_term = small(log_term)
        self.commit = small(commit)
        self.context = small(context)
        self.hint = small(hint)
        self.flag = flag
        self.data = data
        self.peer = None
        if not self.in_range():
            (
                self.kind, self.term, self.index, self.log_term, self.commit, self.context, self.hint
            ) = refusals.message_fields(kind, term, index, log_term, commit, context, hint)

    cdef inline bint in_range(self) noexcept nogil:
        return (
            (self.term | self.index | self.log_term | self.commit | self.context | self.hint) >= 0
            and 1 <= self.kind <= LAST_MESSAGE_KIND
        )

    def __repr__(self):
        return refusals.describe(self, (*refusals.MESSAGE_FIELDS, "flag", "data", "peer"))

    cpdef bytes encode(self):
        """The bytes that `decode` reads: struct `<BBQQQQQQ` and the data."""
        cdef Py_ssize_t length = PyBytes_GET_SIZE(self.data)
        cdef bytes encoded
        cdef u8 *p
        if not self.in_range():
            refusals.message_fields(
                self.kind, self.term, self.index, self.log_term, self.commit, self.context, self.hint
            )
        encoded = PyBytes_FromStringAndSize(NULL, MESSAGE_BYTES + length)
        p = <u8 *>PyBytes_AS_STRING(encoded)
        p[0] = <u8>self.kind
        p[1] = 1 if self.flag else 0
        store64(p + 2, <u64>self.term)
        store64(p + 10, <u64>self.index)
        store64(p + 18, <u64>self.log_term)
        store64(p + 26, <u64>self.commit)
        store64(p + 34, <u64>self.context)
        store64(p + 42, <u64>self.hint)
        memcpy(p + MESSAGE_BYTES, PyBytes_AS_STRING(self.data), length)
        return encoded

    @staticmethod
    def decode(bytes data not None):
        """Read what `encode` wrote."""
        cdef Py_ssize_t size = PyBytes_GET_SIZE(data)
        cdef const u8 *p = <const u8 *>PyBytes_AS_STRING(data)
        cdef u64[6] numbers
        cdef u64 any_bit = 0
        cdef int i
        cdef Message message
        if size < MESSAGE_BYTES:
            raise refusals.message_cut(size)
        if not 1 <= p[0] <= LAST_MESSAGE_KIND:
            raise refusals.unknown_kind(p[0])
        if p[1] > 1:
            raise refusals.wrong_flag(p[1])
        for i in range(6):
            numbers[i] = load64(p + 2 + 8 * i)
            any_bit |= numbers[i]
        if any_bit > <u64>LARGEST:
            raise refusals.number_too_large(
                numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], numbers[5]
            )
        message = Message.__new__(Message)
        message.kind = p[0]
        message.flag = p[1]
        message.term = <long long>numbers[0]
        message.index = <long long>numbers[1]
        message.log_term = <long long>numbers[2]
        message.commit = <long long>numbers[3]
        message.context = <long long>numbers[4]
        message.hint = <long long>numbers[5]
        message.data = PyBytes_FromStringAndSize(<const char *>p + MESSAGE_BYTES, size - MESSAGE_BYTES)
        return message


include "configuration.py"
include "raft.py"
