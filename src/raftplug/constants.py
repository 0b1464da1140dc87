"""Numbers that both cores, the wire and the disk share.

Defined once: a class of its own on each core would not compare equal.
"""

from __future__ import annotations

from typing import Final

LIMIT: Final = 1 << 63
"""Every decoded integer lies in [0, LIMIT)."""
NEVER: Final = 1 << 62
"""A point in time, in microseconds of any clock, that does not come."""
HIGHEST: Final = LIMIT - 2
"""The highest term and index, so that the next one, and one more, are still in range."""

TERMS_AHEAD: Final = 1 << 32
"""How far one message raises a term at most: a forged one must not use up all terms; a true one is reached in steps."""

ENTRY_HEADER_BYTES: Final = 25
"""Of an entry besides its payload: see `_core_py`.  `_core.pyx` has it as HEADER_BYTES, known when it is compiled."""

LARGEST_MESSAGE: Final = 8 << 20
"""Bytes of the largest message that a transport delivers; see `Cluster.largest_message`."""
MESSAGE_OVERHEAD: Final = 4 << 10
"""Bytes of a message besides one item in it, amply: header, ids, MAC, and what the item says besides its data."""
LARGEST_RESULT: Final = LARGEST_MESSAGE - MESSAGE_OVERHEAD
"""Bytes of the largest result that is kept and sent.  Part of the replicated state: a constant of this version."""

# Kinds of log entries.  The rules know only NOOP and CONFIGURATION.
NOOP: Final = 0
TRANSITION: Final = 1
SESSION_TRANSITION: Final = 2
SESSION_OPEN: Final = 3
CONFIGURATION: Final = 4

# Kinds of messages between replicas (Ongaro 2014, figures 3.1, 5.3, §3.10 and §9.6).
PRE_VOTE: Final = 1
PRE_VOTE_RESPONSE: Final = 2
VOTE: Final = 3
VOTE_RESPONSE: Final = 4
APPEND: Final = 5
APPEND_RESPONSE: Final = 6
SNAPSHOT: Final = 7
TIMEOUT_NOW: Final = 8
LAST_MESSAGE_KIND: Final = 8

# Kinds of other items in a frame: a process asks a group …
REQUEST: Final = 32
REPLY: Final = 33
# … a leader asks to go quiet, and a follower agrees: see `quiescence` …
QUIET: Final = 34
QUIET_RESPONSE: Final = 35
# … replicas compare the digests of their states …
DIGESTS: Final = 37
# … whoever fetches a snapshot asks for its pieces …
PIECE_REQUEST: Final = 38
PIECE: Final = 39
# … a member tells a process that the group knows it by another data directory (see `frames.life`) …
DISPLACED: Final = 40
# … or asks it which lives its directory had, and is told: see `senders` …
LIVES_WANTED: Final = 41
LIVES: Final = 42
# … a process names the nonce of another one that has to know it: see `founding` …
GREETING: Final = 43
# … a node that has forgotten a client asks it to count its boots further: see `senders` …
RENEW: Final = 44
# … and a node that has nothing else to say is there; it belongs to no group.
NODE_HEARTBEAT: Final = 36
NO_GROUP: Final = 0

# Outcomes in a REPLY.
OK: Final = 0
FAILED: Final = 1
REFUSED_NOT_LEADER: Final = 2
REFUSED_OVERLOADED: Final = 3
SESSION_EXPIRED: Final = 4
REFUSED_TOO_LARGE: Final = 5
REFUSED_UNAVAILABLE: Final = 6
UNKNOWN: Final = 7
MALFORMED: Final = 8
ALREADY: Final = 9
MOVED: Final = 10
"""The request names a configuration, or a leadership, that is over: it was not executed, and never will be."""
UNDELIVERABLE: Final = 11
"""Executed, or answered; but the result is larger than what can be sent, and its size is told instead."""

# What a read may be (DESIGN 1.4).
LINEARIZABLE: Final = "linearizable"
LEASE: Final = "lease"
STALE: Final = "stale"

# Roles.
FOLLOWER: Final = 0
PRE_CANDIDATE: Final = 1
CANDIDATE: Final = 2
LEADER: Final = 3
ROLE_NAMES: Final = ("follower", "pre-candidate", "candidate", "leader")

# States of a Progress (etcd's names).
PROBE: Final = 0
REPLICATE: Final = 1
INSTALL: Final = 2
