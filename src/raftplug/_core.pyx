# cython: language_level=3, binding=False, embedsignature=True, embedsignature.format=clinic
# cython: nonecheck=True, auto_pickle=False
"""The compiled core: `_core_py.py` over again as typed classes, and the rules of raft.py compiled over them.

Entries lie one after the other in memory of our own, as they go over the wire; so replicating a range is one copy, and
no Python object is made per entry but where a caller asks for a payload.  Little-endian is written out byte by byte
(compilers make one instruction of it), so the bytes are the same on every machine.

The docstrings of `_core_py.py` hold here too.  Directives are safe ones: they govern the included rules as well, where
an unchecked index, or an attribute of None taken for one of an object, would be memory corruption.

No call from Python ends the process, however odd it is (tests/odd_calls.py).  `__cinit__` runs once for each object,
also for one that is made by `__new__` alone: it leaves a state in which every method answers or raises.  `__init__` may
run again at any time.  No Python code runs between the look at a bound and the use of it.
"""

from __future__ import annotations

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.long cimport PyLong_AsLongLongAndOverflow, PyLong_CheckExact
from cpython.mem cimport PyMem_RawFree, PyMem_RawRealloc
from cpython.object cimport PyObject
from libc.string cimport memcpy, memmove, memset

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
    #if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    #define RAFTPLUG_LITTLE_ENDIAN 1
    #else
    #define RAFTPLUG_LITTLE_ENDIAN 0
    #endif
    """
    const char *RAFTPLUG_SOURCE_HASH
    const bint LITTLE_ENDIAN "RAFTPLUG_LITTLE_ENDIAN"

SOURCE_HASH = RAFTPLUG_SOURCE_HASH.decode("ascii")

ctypedef unsigned long long u64
ctypedef unsigned int u32
ctypedef unsigned char u8

cdef enum:
    HEADER_BYTES = 25
    CHECKED_BYTES = 21
    MESSAGE_BYTES = 50
    START_BYTES = 5

cdef long long LARGEST = 0x7FFFFFFFFFFFFFFF
cdef u64 LARGEST_POSITION = (1ULL << 8 * START_BYTES) - 1
cdef long long LARGEST_INDEX = refusals.LARGEST_INDEX


# Bytes.

cdef inline u32 load32(const u8 *p) noexcept nogil:
    return p[0] | <u32>p[1] << 8 | <u32>p[2] << 16 | <u32>p[3] << 24


cdef inline u64 load64(const u8 *p) noexcept nogil:
    return load32(p) | <u64>load32(p + 4) << 32


cdef inline void store32(u8 *p, u32 value) noexcept nogil:
    if LITTLE_ENDIAN:  # Compilers make one instruction of loads that are written out, but not of stores.
        memcpy(p, &value, 4)
        return
    p[0] = <u8>value
    p[1] = <u8>(value >> 8)
    p[2] = <u8>(value >> 16)
    p[3] = <u8>(value >> 24)


cdef inline void store64(u8 *p, u64 value) noexcept nogil:
    if LITTLE_ENDIAN:
        memcpy(p, &value, 8)
        return
    store32(p, <u32>value)
    store32(p + 4, <u32>(value >> 32))


# CRC-32 (zlib's), sixteen bytes at a time: Kounavis and Berry 2005, "slicing-by-8", and once more.

cdef u32[16][256] TABLE


cdef void make_table() noexcept nogil:
    cdef u32 value
    cdef int i, k, _
    for i in range(256):
        value = <u32>i
        for _ in range(8):
            value = value >> 1 ^ (<u32>0xEDB88320 if value & 1 else 0)
        TABLE[0][i] = value
    for i in range(256):
        for k in range(1, 16):
            TABLE[k][i] = TABLE[k - 1][i] >> 8 ^ TABLE[0][TABLE[k - 1][i] & 0xFF]


make_table()


cdef inline u32 crc4(u32 word, int after) noexcept nogil:
    """What four bytes contribute that have `after` bytes after them in their round."""
    return (
        TABLE[after + 3][word & 0xFF] ^ TABLE[after + 2][word >> 8 & 0xFF]
        ^ TABLE[after + 1][word >> 16 & 0xFF] ^ TABLE[after][word >> 24]
    )


cdef inline u32 crc_end(const u8 *p, size_t size, u32 check) noexcept nogil:
    """The last bytes; `check` is as it is between rounds, complemented."""
    while size >= 16:
        check = crc4(load32(p + 4), 8) ^ crc4(load32(p + 8), 4) ^ crc4(load32(p + 12), 0) ^ crc4(check ^ load32(p), 12)
        p += 16
        size -= 16
    if size >= 8:
        check = crc4(load32(p + 4), 0) ^ crc4(check ^ load32(p), 4)
        p += 8
        size -= 8
    if size >= 4:
        check = crc4(check ^ load32(p), 0)
        p += 4
        size -= 4
    while size:
        check = check >> 8 ^ TABLE[0][(check ^ p[0]) & 0xFF]
        p += 1
        size -= 1
    return ~check


cdef struct Alike:
    # What entries in a row have in common, and what that contributes to their checks; all 0 is true as well.
    u32 index_high, part
    u64 term


cdef inline u32 entry_check(const u8 *entry, u32 length, u32 check, Alike *alike) noexcept nogil:
    """The check of an entry whose header (but the check) and payload are in place."""
    cdef const u8 *payload = entry + HEADER_BYTES
    cdef u32 index_high = load32(entry + 4)
    cdef u64 term = load64(entry + 8)
    if index_high != alike.index_high or term != alike.term:
        alike.index_high, alike.term = index_high, term
        alike.part = crc4(index_high, 8) ^ crc4(<u32>term, 4) ^ crc4(<u32>(term >> 32), 0)
    # The 21 bytes of the header, and 11 of the payload, are two rounds.
    check = crc4(~check ^ load32(entry), 12) ^ alike.part
    if length < 11:
        check = crc4(check ^ load32(entry + 16), 0)
        return crc_end(payload, length, check >> 8 ^ TABLE[0][(check ^ entry[20]) & 0xFF])
    check = (
        crc4(entry[20] | load32(payload) << 8, 8) ^ crc4(load32(payload + 3), 4) ^ crc4(load32(payload + 7), 0)
        ^ crc4(check ^ load32(entry + 16), 12)
    )
    return crc_end(payload + 11, length - 11, check)


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
    cdef int overflow = 0
    cdef long long number
    if not isinstance(value, int):
        refusals.whole(name, value)
    number = PyLong_AsLongLongAndOverflow(value, &overflow)
    return -1 if overflow or number < 0 else number


cdef struct Entry:
    u64 term
    u32 check
    u32 length
    Py_ssize_t end  # where the entry ends in its block


cdef inline int read_entry(
    const u8 *block, Py_ssize_t size, Py_ssize_t position, u64 index, u64 lowest, u64 highest, Entry *entry
) except -1:
    """Fill `entry` from the bytes at `position`, which must be entry `index`; return 0, or raise MalformedBlock."""
    cdef Py_ssize_t left = size - position - HEADER_BYTES
    cdef const u8 *p = block + position
    if left < 0 or load64(p) != index or index > <u64>LARGEST_INDEX:
        raise malformed(p, left, index, lowest, highest)
    entry.term = load64(p + 8)
    entry.length = load32(p + 17)
    if entry.term < lowest or entry.term > highest or entry.length > <u64>left:
        raise malformed(p, left, index, lowest, highest)
    entry.check = load32(p + CHECKED_BYTES)
    entry.end = position + HEADER_BYTES + <Py_ssize_t>entry.length
    return 0


cdef object malformed(const u8 *p, Py_ssize_t left, u64 index, u64 lowest, u64 highest):
    """What is wrong with an entry, `left` bytes after whose header are in its block."""
    if left < 0:
        return refusals.header_cut(index, left + HEADER_BYTES)
    if load64(p) != index or index > <u64>LARGEST_INDEX:
        return refusals.wrong_index(index, load64(p))
    if load64(p + 8) < lowest or load64(p + 8) > highest:
        return refusals.wrong_term(index, load64(p + 8), lowest, highest)
    return refusals.payload_cut(index, load32(p + 17), left)


@cython.final
cdef class Log:
    """The entries of one replica that are not yet compacted away, base_index + 1 to last_index."""

    cdef readonly long long base_index, base_term, base_check, last_index, last_term
    cdef u32 check  # the chain value of the last entry
    cdef Alike alike
    # Positions count bytes since the last reset, modulo 2^40, in 5 bytes each: a log is for payloads.  memory[0] is
    # position `origin`; entry i begins at position start(head + i - base_index - 1), and the last one ends at the
    # position after, which is memory[used].  What lies before is dead: compaction moves the rest down only when the
    # dead part is larger, so that it costs O(dropped), not O(log).
    cdef u8 *memory
    cdef u8 *starts
    cdef size_t memory_size, starts_size, head, used
    cdef u64 origin
    # No entry of kind k lies above latest[k & 7]: the rules look for rare ones among the new ones.
    cdef long long[8] latest
    # The last slice that was cut, [cut_lo, cut_hi): what goes to one peer goes to the others and to the disk too.
    cdef bytes cut
    cdef long long cut_lo, cut_hi

    def __cinit__(self):
        """An empty log: what is not named here is 0 and None."""
        self.resize_starts(16)
        self.set_start(0, 0)

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
        self.base_index = self.last_index = new_index
        self.base_term = self.last_term = new_term
        self.base_check = new_check
        self.check = <u32>new_check
        PyMem_RawFree(self.memory)
        self.memory = NULL
        self.memory_size = self.head = self.used = 0
        self.origin = 0
        self.cut = None
        memset(self.latest, 0, sizeof(self.latest))
        self.set_start(0, 0)
        self.resize_starts(16)

    def __len__(self):
        return self.last_index - self.base_index

    def __repr__(self):
        return refusals.describe(self, ("base_index", "base_term", "base_check", "last_index", "last_term"))

    def __reduce__(self):
        raise refusals.copied(self)

    # Memory.

    cdef int resize_starts(self, size_t size) except -1:
        cdef void *memory = PyMem_RawRealloc(self.starts, size * START_BYTES)
        if memory == NULL:
            raise MemoryError()
        self.starts = <u8 *>memory
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

    cdef inline u64 start(self, size_t slot) noexcept nogil:
        cdef const u8 *p = self.starts + slot * START_BYTES
        return load32(p) | <u64>p[4] << 32

    cdef inline void set_start(self, size_t slot, u64 position) noexcept nogil:
        cdef u8 *p = self.starts + slot * START_BYTES
        store32(p, <u32>position)
        p[4] = <u8>(position >> 32)

    cdef inline size_t offset(self, size_t slot) noexcept nogil:
        """Where in `memory` the entry of a slot begins."""
        return <size_t>((self.start(slot) - self.origin) & LARGEST_POSITION)

    cdef inline u8 *at(self, long long index) noexcept nogil:
        """The bytes of entry `index`, which must be here."""
        return self.memory + self.offset(self.slot(index))

    cdef inline int reserve(self, size_t entries, size_t size) except -1:
        """Make room for so many more entries and bytes.  Growth is by half at least, so appending is O(1)."""
        cdef size_t slots = self.slot(self.last_index + 1) + 1 + entries
        cdef size_t used = self.used + size
        if slots > self.starts_size:
            self.resize_starts(max(slots, self.starts_size + self.starts_size // 2))
        if used > self.memory_size:
            if used > LARGEST_POSITION:
                raise MemoryError()
            self.resize_memory(max(used, self.memory_size + self.memory_size // 2, <size_t>1024))
        return 0

    # Each method that the rules call has a twin for them, with an underscore: its numbers are C integers.

    # Writing.

    cpdef long long append(self, term, kind, bytes payload) except -1:
        """Add one entry of the leader's own and return its index."""
        if payload is None:
            raise refusals.not_bytes("payload", payload)
        return self._append(whole("term", term), whole("kind", kind), payload)

    cdef long long _append(self, long long term, long long kind, bytes payload) except -1:
        cdef size_t length = PyBytes_GET_SIZE(payload)
        cdef u8 *p
        if not 0 <= kind < 256:
            raise refusals.kind_too_large(whole("kind", kind))
        if term < self.last_term:
            raise refusals.term_goes_back(term, self.last_term)
        if length >= 1ULL << 32:
            raise refusals.payload_too_long(length)
        if self.last_index == LARGEST_INDEX:
            raise refusals.log_full()
        self.reserve(1, HEADER_BYTES + length)
        p = self.memory + self.used
        store64(p, <u64>self.last_index + 1)
        store64(p + 8, <u64>term)
        p[16] = <u8>kind
        store32(p + 17, <u32>length)
        memcpy(p + HEADER_BYTES, PyBytes_AS_STRING(payload), length)
        self.check = entry_check(p, <u32>length, self.check, &self.alike)
        store32(p + CHECKED_BYTES, self.check)
        self.used += HEADER_BYTES + length
        self.last_index += 1
        self.last_term = term
        self.latest[kind & 7] = self.last_index
        self.set_start(self.slot(self.last_index + 1), self.origin + self.used)
        return self.last_index

    cpdef (long long, long long) check_block(self, bytes block, prev_index, max_term) except *:
        """Validate a received block, whose entries follow our entry `prev_index`, and change nothing."""
        if block is None:
            raise refusals.not_bytes("block", block)
        return self._check_block(block, whole("prev_index", prev_index), whole("max_term", max_term))

    cdef (long long, long long) _check_block(self, bytes block, long long index, long long max_term) except *:
        if not self.base_index <= index <= self.last_index:
            raise refusals.outside("prev_index", index, self.base_index, self.last_index)
        cdef const u8 *p = <const u8 *>PyBytes_AS_STRING(block)
        cdef Py_ssize_t size = PyBytes_GET_SIZE(block)
        cdef Py_ssize_t position = 0
        cdef u64 next_index = <u64>index
        cdef u64 first = 0
        cdef u32 check = <u32>self._check_at(index)
        cdef Entry entry
        entry.term = <u64>self._term_at(index)
        if not size:
            raise refusals.empty_block()
        while position < size:
            next_index += 1
            read_entry(p, size, position, next_index, entry.term, <u64>max_term, &entry)
            if entry_check(p + position, entry.length, check, &self.alike) != entry.check:
                raise refusals.wrong_check(next_index)
            # What is stated, not the same number as it was computed: so the processor need not finish one to begin
            # the next.
            check = entry.check
            if not first:
                if next_index > <u64>self.last_index or self._term_at(<long long>next_index) != <long long>entry.term:
                    first = next_index
                elif self._check_at(<long long>next_index) != check:
                    raise refusals.other_content(next_index, entry.term)
            position = entry.end
        return <long long>first, <long long>next_index

    cpdef extend(self, bytes block, first):
        """Append the entries from index `first` on of a block that `check_block` found good."""
        if block is None:
            raise refusals.not_bytes("block", block)
        self._extend(block, whole("first", first))

    cdef int _extend(self, bytes block, long long wanted) except -1:
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
        if not position:  # A follower writes and applies just what came: so that slice is there already.
            self.cut, self.cut_lo, self.cut_hi = block, wanted, self.last_index + 1
        return 0

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
        already = self.origin + self.used
        entry.term = <u64>self.last_term
        entry.check = self.check
        while position < size:
            index += 1
            read_entry(block, size, position, index, entry.term, <u64>LARGEST, &entry)
            self.latest[block[position + 16] & 7] = <long long>index
            position = entry.end
            slot += 1
            if slot == self.starts_size:
                self.resize_starts(self.starts_size + self.starts_size // 2)
            # Beyond the end: it means nothing until last_index moves.
            self.set_start(slot, already + <u64>(position - begin))
        memcpy(self.memory + self.used, block + begin, <size_t>(size - begin))
        self.used += <size_t>(size - begin)
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
        check = self._check_at(<long long>(index - 1))
        entry.term = <u64>max(self._term_at(<long long>(index - 1)), 0)
        while position < size:
            read_entry(p, size, position, index, entry.term, <u64>LARGEST, &entry)
            if check >= 0 and entry_check(p + position, entry.length, <u32>check, &self.alike) != entry.check:
                raise refusals.wrong_check(index)
            if index == base and (entry.check != <u32>self.base_check or entry.term != <u64>self.base_term):
                raise refusals.base_differs(index)
            if base < index <= last and (
                entry.check != <u32>self._check_at(<long long>index)
                or entry.term != <u64>self._term_at(<long long>index)
            ):
                raise refusals.other_content(index, entry.term)
            check = entry.check
            position = entry.end
            if index <= last:
                fresh = position
            index += 1
        self.take(p, size, fresh)

    # Reading.

    cpdef long long term_at(self, index) except? -1:
        """The term of entry `index`, also of the base; -1 if it is compacted away or beyond the end."""
        return self._term_at(place("index", index))

    cdef inline long long _term_at(self, long long index) noexcept nogil:
        if self.base_index < index < self.last_index:
            return <long long>load64(self.at(index) + 8)
        return self.last_term if index == self.last_index else self.base_term if index == self.base_index else -1

    cpdef long long check_at(self, index) except? -1:
        """The chain value of entry `index`, also of the base; -1 if it is compacted away or beyond the end."""
        return self._check_at(place("index", index))

    cdef inline long long _check_at(self, long long index) noexcept nogil:
        if self.base_index < index < self.last_index:
            return load32(self.at(index) + CHECKED_BYTES)
        return self.check if index == self.last_index else self.base_check if index == self.base_index else -1

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

    cdef int require(self, object lo, object hi) except -1:
        """Refuse a range that is not here in the caller's own numbers, however large."""
        cdef long long first = place("lo", lo)
        cdef long long end = place("hi", hi)
        if not self.base_index < first <= end or end > self.last_index + 1:
            raise refusals.no_entries(lo, hi, self.base_index, self.last_index)
        return 0

    cdef inline int bounds(self, long long lo, long long hi) except -1:
        """Refuse a range that is not here."""
        if not self.base_index < lo <= hi or hi > self.last_index + 1:
            raise refusals.no_entries(lo, hi, self.base_index, self.last_index)
        return 0

    cpdef bytes slice(self, lo, hi):
        """Entries lo to hi - 1 as a block."""
        cdef long long first = place("lo", lo)
        cdef long long end = place("hi", hi)
        if not self.base_index < first <= end or end > self.last_index + 1:
            raise refusals.no_entries(lo, hi, self.base_index, self.last_index)
        return self._slice(first, end)

    cdef bytes _slice(self, long long lo, long long hi):
        cdef size_t begin
        self.bounds(lo, hi)
        if lo == hi:
            return b""
        if self.cut is None or lo != self.cut_lo or hi != self.cut_hi:
            begin = self.offset(self.slot(lo))
            self.cut = PyBytes_FromStringAndSize(
                <char *>self.memory + begin, <Py_ssize_t>(self.offset(self.slot(hi)) - begin)
            )
            self.cut_lo, self.cut_hi = lo, hi
        return self.cut

    cpdef long long fit(self, lo, max_bytes) except -1:
        """The end (exclusive) of the longest run of entries from `lo` on that takes at most `max_bytes` as a block."""
        cdef long long most = whole("max_bytes", max_bytes)
        cdef long long first = place("lo", lo)
        if not self.base_index < first <= self.last_index:
            raise refusals.no_entry(lo, self.base_index, self.last_index)
        return self._fit(first, most)

    cdef long long _fit(self, long long lo, long long max_bytes) except -1:
        cdef size_t start, low, high, middle, most
        if not self.base_index < lo <= self.last_index:
            raise refusals.no_entry(lo, self.base_index, self.last_index)
        start = self.slot(lo)
        most = self.offset(start) + <size_t>max_bytes
        if self.used <= most:
            return self.last_index + 1
        low = start + 1  # within, because one entry always is; `high` is beyond
        high = start + <size_t>(self.last_index + 1 - lo)
        while high - low > 1:
            middle = low + (high - low) // 2
            if self.offset(middle) > most:
                high = middle
            else:
                low = middle
        return lo + <long long>(low - start)

    cpdef long long bytes_between(self, lo, hi) except -1:
        """How many bytes entries lo to hi - 1 take as a block, in constant time."""
        self.require(lo, hi)
        return self._bytes_between(place("lo", lo), place("hi", hi))

    cdef inline long long _bytes_between(self, long long lo, long long hi) except -1:
        self.bounds(lo, hi)
        return <long long>(self.offset(self.slot(hi)) - self.offset(self.slot(lo)))

    cpdef list entries(self, lo, hi):
        """Kind, term and payload of entries lo to hi - 1."""
        cdef long long index, end
        cdef list found = []
        cdef u8 *p
        self.require(lo, hi)
        index, end = place("lo", lo), place("hi", hi)
        while index < end:
            self.bounds(index, end)  # Making a tuple may run the collector, and that any finalizer.
            p = self.at(index)
            found.append((
                p[16],
                <long long>load64(p + 8),
                PyBytes_FromStringAndSize(<char *>p + HEADER_BYTES, <Py_ssize_t>load32(p + 17)),
            ))
            index += 1
        return found

    cpdef long long find(self, kind, lo) except -1:
        """The first entry of `kind` from index `lo` on; 0 if there is none."""
        cdef long long wanted = whole("kind", kind)
        self.require(lo, self.last_index + 1)
        return self._find(wanted, place("lo", lo))

    cdef long long _find(self, long long kind, long long lo) except -1:
        self.bounds(lo, self.last_index + 1)
        while lo <= self.latest[kind & 7] and lo <= self.last_index:
            if self.at(lo)[16] == kind:
                return lo
            lo += 1
        return 0

    # Dropping.

    cpdef truncate(self, index):
        """Drop entry `index` and all after it."""
        cdef long long first = whole("index", index)
        if first <= self.base_index:
            raise refusals.outside("index", first, self.base_index + 1, LARGEST)
        if first > self.last_index:
            return
        cdef long long term = self._term_at(first - 1)
        self.check = <u32>self._check_at(first - 1)
        self.cut = None
        self.used = self.offset(self.slot(first))
        self.last_term = term
        self.last_index = first - 1

    cpdef compact(self, index):
        """Drop all entries up to `index`, which becomes the base; nothing happens if it is not above base_index."""
        cdef long long base = whole("index", index)
        cdef size_t dead, live, count
        if base <= self.base_index:
            return
        if base > self.last_index:
            raise refusals.outside("index", base, 0, self.last_index)
        self.cut = None
        self.base_term, self.base_check, self.head = self._term_at(base), self._check_at(base), self.slot(base + 1)
        self.base_index = base
        # Memory goes back when what was in use until now needs a quarter of it: a log that is compacted time and again
        # keeps what it will need until the next time.
        count = <size_t>(self.last_index - base)
        if self.head > count:
            dead = self.head
            memmove(self.starts, self.starts + dead * START_BYTES, (count + 1) * START_BYTES)
            self.head = 0
            if self.starts_size > 64 and self.starts_size > 4 * (dead + count + 1):
                self.resize_starts(2 * (dead + count + 1))
        dead = self.offset(self.head)
        live = self.used - dead
        if dead > live:
            memmove(self.memory, self.memory + dead, live)
            self.origin += dead
            self.used = live
            if self.memory_size > 4096 and self.memory_size > 4 * (dead + live):
                self.resize_memory(max(2 * (dead + live), <size_t>1024))


@cython.final
@cython.trashcan(True)  # A chain of them, however long, is freed without recursion.
cdef class Progress:
    """What a leader knows of one peer.  All numbers are ints in [0, 2^63); times are microseconds."""

    cdef public object peer
    cdef public long long match, next, state, pending_snapshot, commit, asked, round, since, contact, sent
    cdef public long long doubted, lost
    cdef public bint paused
    # Where the appends on their way there end: `_count` numbers from `_first` on, ascending.
    cdef long long *_ends
    cdef Py_ssize_t _first, _count, _room

    def __cinit__(self):
        """About nobody: what is not named here is 0 and None."""
        self._ends = NULL

    def __dealloc__(self):
        PyMem_RawFree(self._ends)

    def __init__(self, peer, next, now):
        cdef long long first = whole("next", next)
        cdef long long time = whole("now", now)
        self.peer = peer
        self.match = 0
        self.next = first
        self.state = PROBE
        self.pending_snapshot = 0
        self.commit = 0
        self.asked = 0
        self.round = 0
        self.since = 0
        self.doubted = 0
        self.lost = 0
        self.contact = self.sent = time
        self.paused = False
        self._first = self._count = 0

    cpdef advance(self, end):
        """An append with the entries up to `end`, exclusive, is on its way."""
        self._advance(whole("end", end))

    cdef int _advance(self, long long end) except -1:
        cdef long long *ends
        self.in_flight()
        if self._first + self._count == self._room:
            if self._first:
                memmove(self._ends, self._ends + self._first, self._count * sizeof(long long))
                self._first = 0
            else:
                ends = <long long *>PyMem_RawRealloc(self._ends, (2 * self._room + 2) * sizeof(long long))
                if ends == NULL:
                    raise MemoryError()
                self._ends = ends
                self._room = 2 * self._room + 2
        self._ends[self._first + self._count] = end
        self._count += 1
        self.next = end
        return 0

    cpdef long long in_flight(self) except -1:
        """How many appends are on their way whose entries are not known to be durable there."""
        while self._count and self._ends[self._first + self._count - 1] > self.next:
            self._count -= 1  # It was lost: everything from `next` on is sent again.
        while self._count and self._ends[self._first] - 1 <= self.match:
            self._first += 1
            self._count -= 1
        if not self._count:
            self._first = 0
        return self._count

    def __repr__(self):
        return refusals.describe(self, refusals.PROGRESS_FIELDS)

    def __reduce__(self):
        raise refusals.copied(self)


@cython.final
@cython.no_gc  # It holds bytes, an id and numbers: no cycle can go through it.
@cython.freelist(64)
cdef class Message:
    """What one replica tells another: one flat record for every kind."""

    cdef public long long kind, term, index, log_term, commit, context, hint
    cdef public bint flag
    cdef public bytes data
    cdef readonly object peer

    def __cinit__(self):
        """Of no kind, so that it is not encoded: what is not named here is 0 and None."""
        self.data = b""

    def __init__(
        self, kind, term, index=0, log_term=0, commit=0, context=0, hint=0, flag=False, bytes data not None=b""
    ):
        cdef long long[7] numbers = [
            small(kind), small(term), small(index), small(log_term), small(commit), small(context), small(hint)
        ]
        cdef bint is_set = flag
        if (
            (numbers[1] | numbers[2] | numbers[3] | numbers[4] | numbers[5] | numbers[6]) < 0
            or not 1 <= numbers[0] <= LAST_MESSAGE_KIND
        ):
            numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], numbers[5], numbers[6] = (
                refusals.message_fields(kind, term, index, log_term, commit, context, hint)
            )
        self.kind = numbers[0]
        self.term = numbers[1]
        self.index = numbers[2]
        self.log_term = numbers[3]
        self.commit = numbers[4]
        self.context = numbers[5]
        self.hint = numbers[6]
        self.flag = is_set
        self.data = data
        self.peer = None

    cdef inline bint in_range(self) noexcept nogil:
        return (
            (self.term | self.index | self.log_term | self.commit | self.context | self.hint) >= 0
            and 1 <= self.kind <= LAST_MESSAGE_KIND
        )

    cdef int require_range(self) except -1:
        if not self.in_range():
            refusals.message_fields(
                self.kind, self.term, self.index, self.log_term, self.commit, self.context, self.hint
            )
        return 0

    def __repr__(self):
        return refusals.describe(self, (*refusals.MESSAGE_FIELDS, "flag", "data", "peer"))

    def __reduce__(self):
        raise refusals.copied(self)

    cpdef bytes encode(self):
        """The bytes that `decode` reads: struct `<BBQQQQQQ` and the data."""
        cdef Py_ssize_t length = PyBytes_GET_SIZE(self.data)
        cdef bytes encoded
        cdef u8 *p
        self.require_range()
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


# For the rules.

@cython.nonecheck(False)  # It is made here.
cdef Message new_message(
    long long kind, long long term, long long index, long long log_term, long long commit, long long context,
    long long hint, bint flag, bytes data
):
    """A message from numbers that are C integers already."""
    cdef Message message = Message.__new__(Message)
    message.kind = kind
    message.term = term
    message.index = index
    message.log_term = log_term
    message.commit = commit
    message.context = context
    message.hint = hint
    message.flag = flag
    message.data = data
    if (term | index | log_term | commit | context | hint) < 0 or not 1 <= kind <= LAST_MESSAGE_KIND:
        message.require_range()
    return message


@cython.boundscheck(False)  # Every index is one that a loop here counts.
@cython.wraparound(False)
cdef long long quorum_match(tuple voters, dict peers, object own_id, long long stable) except -1:
    """The last index that a majority of `voters` is known to have on disk."""
    cdef Py_ssize_t count = len(voters)
    cdef Py_ssize_t i, place
    cdef Progress progress
    cdef object voter, known
    cdef long long match
    cdef long long[16] few  # Sorted, and almost always enough.
    cdef long long *matches = few
    if count > 16:
        matches = <long long *>PyMem_RawRealloc(NULL, <size_t>count * sizeof(long long))
        if matches == NULL:
            raise MemoryError()
    try:
        for i in range(count):
            voter = voters[i]
            known = None if voter is own_id else peers.get(voter)  # Which we are not in: comparing ids costs more.
            if known is not None:
                progress = known
                match = progress.match
            elif voter is own_id or voter == own_id:
                match = stable
            else:
                raise KeyError(voter)
            place = i
            while place > 0 and matches[place - 1] > match:
                matches[place] = matches[place - 1]
                place -= 1
            matches[place] = match
        return matches[(count - 1) // 2]
    finally:
        if matches != few:
            PyMem_RawFree(matches)


@cython.final
@cython.no_gc  # Nothing that it holds refers to it.
@cython.freelist(8)
cdef class Ready:
    """What must happen now, and only once: see `_core_py.Ready`."""

    cdef readonly object messages, write, vote, snapshot, reads, failed_reads, truncated
    cdef readonly long long term, first
    cdef readonly bytes block

    def __cinit__(self):
        self.messages = self.reads = self.failed_reads = self.truncated = ()
        self.write = False
        self.block = b""  # And 0 and None in what is not named here.

    def __init__(self):
        pass  # So that it takes no arguments.

    def __reduce__(self):
        raise refusals.copied(self)


cdef inline Ready new_ready():
    return Ready.__new__(Ready)


# What a driver reads of every Ready and every message becomes what `__slots__` makes in Python: the interpreter fetches
# it itself, while the getters that Cython writes cost it a look-up and a call, some 150 instructions.

cdef extern from *:
    """
    #include <structmember.h>
    #define RAFTPLUG_OFFSET(type, name) offsetof(struct __pyx_obj_8raftplug_5_core_##type, name)
    static int raftplug_slot(PyTypeObject *owner, const char *name, Py_ssize_t offset) {
        PyMemberDef *member = (PyMemberDef *)PyMem_RawCalloc(1, sizeof(PyMemberDef));  // It stays as long as the type.
        PyObject *descriptor;
        int failed;
        if (member == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        member->name = name;
        member->type = T_OBJECT_EX;
        member->offset = offset;
        member->flags = READONLY;
        descriptor = PyDescr_NewMember(owner, member);
        if (descriptor == NULL) return -1;
        failed = PyDict_SetItemString(owner->tp_dict, name, descriptor);
        Py_DECREF(descriptor);
        PyType_Modified(owner);
        return failed;
    }
    """
    int make_slot "raftplug_slot"(type owner, const char *name, Py_ssize_t offset) except -1
    const Py_ssize_t PEER "RAFTPLUG_OFFSET(Message, peer)"
    const Py_ssize_t MESSAGES "RAFTPLUG_OFFSET(Ready, messages)"
    const Py_ssize_t WRITE "RAFTPLUG_OFFSET(Ready, write)"
    const Py_ssize_t READS "RAFTPLUG_OFFSET(Ready, reads)"
    const Py_ssize_t FAILED_READS "RAFTPLUG_OFFSET(Ready, failed_reads)"
    const Py_ssize_t TRUNCATED "RAFTPLUG_OFFSET(Ready, truncated)"

# What may be set from Python is checked: the setters that Cython writes take None for bytes, raise OverflowError, and
# turn `del` into None.  Getters stay as they are.

cdef extern from *:
    """
    static int raftplug_guard(PyTypeObject *owner, const char *name, setter guard) {
        PyObject *old = PyDict_GetItemString(owner->tp_dict, name);
        PyGetSetDef *changed;
        PyObject *descriptor;
        int failed;
        if (old == NULL || Py_TYPE(old) != &PyGetSetDescr_Type) {
            PyErr_Format(PyExc_SystemError, "%s has no attribute %s", owner->tp_name, name);
            return -1;
        }
        changed = (PyGetSetDef *)PyMem_RawCalloc(1, sizeof(PyGetSetDef));  // It stays as long as the type.
        if (changed == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        *changed = *((PyGetSetDescrObject *)old)->d_getset;
        changed->closure = ((PyGetSetDescrObject *)old)->d_getset;  // What it was, for the new setter.
        changed->set = guard;
        descriptor = PyDescr_NewGetSet(owner, changed);
        if (descriptor == NULL) return -1;
        failed = PyDict_SetItemString(owner->tp_dict, name, descriptor);
        Py_DECREF(descriptor);
        PyType_Modified(owner);
        return failed;
    }
    """
    ctypedef int (*setter)(object, PyObject *, void *) except -1
    ctypedef struct PyGetSetDef:
        const char *name
        setter set
    int guard "raftplug_guard"(type owner, const char *name, setter guard) except -1


cdef int set_number(object self, PyObject *value, void *closure) except -1:
    """Set an int of 64 bits; whether one in use is in its range is looked at where it is used."""
    cdef PyGetSetDef *was = <PyGetSetDef *>closure
    cdef str name = was.name.decode()
    cdef int overflow = 0
    if value == NULL:
        raise refusals.deleted(name)
    number = refusals.place(name, <object>value)
    PyLong_AsLongLongAndOverflow(number, &overflow)
    if overflow:
        refusals.whole(name, number)
    return was.set(self, <PyObject *>number, NULL)


cdef int set_bytes(object self, PyObject *value, void *closure) except -1:
    """Set bytes."""
    cdef PyGetSetDef *was = <PyGetSetDef *>closure
    if value == NULL:
        raise refusals.deleted(was.name.decode())
    if type(<object>value) is not bytes:
        raise refusals.not_bytes(was.name.decode(), <object>value)
    return was.set(self, value, NULL)


cdef int set_any(object self, PyObject *value, void *closure) except -1:
    """Set what any object is good for, as a truth value say."""
    cdef PyGetSetDef *was = <PyGetSetDef *>closure
    if value == NULL:
        raise refusals.deleted(was.name.decode())
    return was.set(self, value, NULL)


cdef void guard_attributes() except *:
    for name in refusals.MESSAGE_FIELDS:
        guard(Message, name.encode(), set_number)
    for name in refusals.PROGRESS_FIELDS:
        guard(Progress, name.encode(), set_any if name in ("peer", "paused") else set_number)
    guard(Message, "flag", set_any)
    guard(Message, "data", set_bytes)
    guard(Calls, "sleeping", set_any)
    guard(Calls, "closed", set_any)
    guard(Future, "transition_id", set_any)


make_slot(Message, "peer", PEER)
make_slot(Ready, "messages", MESSAGES)
make_slot(Ready, "write", WRITE)
make_slot(Ready, "reads", READS)
make_slot(Ready, "failed_reads", FAILED_READS)
make_slot(Ready, "truncated", TRUNCATED)


include "configuration.py"
include "raft.py"
include "future.py"
include "hot_path.py"

guard_attributes()
