"""Settings: one frozen object, a sentence per field."""

from __future__ import annotations

from dataclasses import dataclass, fields

from raftplug.errors import InvalidArgument


@dataclass(frozen=True, slots=True)
class Settings:
    """How a node behaves.  Every node of a cluster should be given the same values; none of them touches safety.

    Raises:
        InvalidArgument: from `validate`, which names the field and says what it must be.
    """

    election_timeout_ms: int = 500
    """E: a follower that hears no leader campaigns after a random time in [E, 2E] (Ongaro 2014 §3.4)."""
    heartbeat_ms: int = 100
    """How often a leader that has nothing to say says so; at most half of E."""
    max_transition_bytes: int = 1 << 20
    """A transition or query whose encoding is larger is refused with TooLarge."""
    max_append_bytes: int = 64 << 10
    """An append message carries whole entries up to this size, and at least one entry."""
    window_bytes: int = 256 << 10
    """Encoded entries in flight to one follower before the leader waits for an acknowledgement."""
    max_pending: int = 100_000
    """Proposals and reads of one process without an answer; one more is refused with Overloaded."""
    max_uncommitted_bytes: int = 64 << 20
    """Encoded entries a leader holds uncommitted; beyond it proposals are refused with Overloaded."""
    snapshot_entries: int = 10_000
    """A snapshot is made, and the log compacted, after this many applied entries; 0 switches compaction off."""
    keep_entries: int = 1_000
    """Entries before a snapshot that stay in the log, so that a slightly slow follower needs no snapshot."""
    apply_budget_us: int = 1_000
    """How long one turn of the event loop may apply entries before it looks at its messages again."""

    def validate(self) -> Settings:
        """Return self, or raise InvalidArgument that names the first field that cannot be."""
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value) is not int or not 0 <= value < 1 << 40:
                raise InvalidArgument(f"settings: {field.name} must be a whole number from 0 on, not {value!r}")
        for name in (
            "max_transition_bytes",
            "max_append_bytes",
            "window_bytes",
            "max_pending",
            "max_uncommitted_bytes",
        ):
            if not getattr(self, name):
                raise InvalidArgument(f"settings: {name} must be at least 1")
        if not 1 <= self.heartbeat_ms <= self.election_timeout_ms // 2:
            raise InvalidArgument("settings: heartbeat_ms must be from 1 to half of election_timeout_ms")
        return self
