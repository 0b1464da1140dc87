"""Settings: one frozen object, a sentence per field, and where its values may come from."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any, Final

from raftplug.errors import InvalidArgument
from raftplug.foreign import short

_TABLE: Final = "raftplug"
_VARIABLE: Final = "RAFTPLUG_"
MOST: Final = (1 << 40) - 1
"""No setting is larger."""
_NEAR: Final = (
    0.8  # Other RAFTPLUG_ variables are somebody else's, but one so much like a field's is a slip of the pen.
)


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
    quiet_after_ms: int = 200
    """A group in which nothing has happened for so long goes quiet: no heartbeats of its own; 0 keeps it awake."""
    max_transition_bytes: int = 1 << 20
    """A transition or query whose encoding is larger is refused with TooLarge."""
    max_append_bytes: int = 64 << 10
    """An append message carries whole entries up to this size, and at least one entry."""
    window_bytes: int = 256 << 10
    """Encoded entries in flight to one follower before the leader waits for an acknowledgement."""
    window_appends: int = 128
    """Append messages in flight to one follower before the leader waits for an acknowledgement."""
    max_pending: int = 100_000
    """Proposals and reads of one process without an answer; one more is refused with Overloaded."""
    max_uncommitted_bytes: int = 64 << 20
    """Encoded entries a leader holds uncommitted; beyond it proposals are refused with Overloaded."""
    max_sessions: int = 10_000
    """Sessions of clients without a name, and again with one, that a group keeps; one more drops the one that was used
    least recently.  The leader's value counts, on every replica: it travels in the log."""
    max_session_bytes: int = 256 << 20
    """Results that a group keeps for clients that ask again, and again 100 bytes for each; likewise."""
    max_unapplied_bytes: int = 64 << 20
    """Committed entries a state machine may be behind; beyond it a leader refuses proposals with Overloaded, and a
    follower takes no entries before the machine has caught up."""
    snapshot_entries: int = 10_000
    """A snapshot is made, and the log compacted, after this many applied entries; 0 switches compaction off."""
    keep_entries: int = 1_000
    """Entries before a snapshot that stay in the log, so that a slightly slow follower needs no snapshot."""
    digest_entries: int = 4_096
    """State machines that have a digest are compared after every so many entries; 0 switches it off."""
    lease_ms: int = 0
    """How long a leader may answer reads by lease after a quorum answered it, on every node, at most 0.9 E; 0 is never.
    Safe only if clocks run alike to a tenth, and no machine stands still as a whole (Ongaro 2014 §6.4.1)."""
    lead_reluctance: int = 0
    """So many election timeouts longer this node waits before it campaigns: 1 or 2 for one that prefers not to lead."""
    apply_budget_us: int = 1_000
    """How long one turn of the event loop may apply entries before it looks at its messages again."""
    snapshot_piece_bytes: int = 64 << 10
    """Snapshots are stored and sent in pieces of this size; at most 1 MB."""
    snapshot_window_bytes: int = 1 << 20
    """How much of a snapshot a follower has asked for and not received yet; also what it holds in memory meanwhile."""

    @classmethod
    def load(
        cls, file: str | os.PathLike[str] | None = None, environ: Mapping[str, str] = os.environ, **given: Any
    ) -> Settings:
        """Put settings together: arguments win over the environment, which wins over the file, over the defaults.

        Args:
            file: TOML with a table [raftplug], whose keys are the fields; other tables are left alone.
            environ: variables such as RAFTPLUG_ELECTION_TIMEOUT_MS; RAFTPLUG_ variables that resemble no field are not
                looked at.
            given: fields by name.

        Raises:
            InvalidArgument: the file cannot be read, a name is unknown, or a value cannot be; the message names the
                file or variable, and the field.
        """
        names = [field.name for field in fields(cls)]
        values: dict[str, Any] = {}
        origins: dict[str, str] = {}
        if file is not None:
            for name, value in _table(file).items():
                _check_name(name, names, f"{os.fspath(file)}: {name!r}")
                values[name], origins[name] = value, os.fspath(file)
        variables = {_VARIABLE + name.upper(): name for name in names}
        for variable, text in environ.items():
            if variable in variables:
                name = variables[variable]
                values[name], origins[name] = _number(text), variable
            elif variable.startswith(_VARIABLE) and get_close_matches(variable, variables, 1, _NEAR):
                _check_name(variable, list(variables), f"the variable {variable}")
        for name, value in given.items():
            _check_name(name, names, repr(name))
            values[name], origins[name] = value, "an argument"
        try:
            return cls(**values).validate()
        except InvalidArgument as error:
            named = [name for name in origins if re.search(rf"\b{name}\b", str(error))]
            where = ", ".join(f"{name} = {short(values[name])} from {origins[name]}" for name in named)
            raise InvalidArgument(f"{error} ({where})") from None

    def validate(self) -> Settings:
        """Return self, or raise InvalidArgument that names the first field that cannot be."""
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value) is not int or not 0 <= value <= MOST:
                raise InvalidArgument(f"settings: {field.name} must be a whole number from 0 on, not {short(value)}")
        for name in (
            "max_transition_bytes",
            "max_append_bytes",
            "window_bytes",
            "window_appends",
            "max_pending",
            "max_uncommitted_bytes",
            "max_sessions",
            "max_session_bytes",
            "max_unapplied_bytes",
            "snapshot_piece_bytes",
            "snapshot_window_bytes",
        ):
            if not getattr(self, name):
                raise InvalidArgument(f"settings: {name} must be at least 1")
        if self.lead_reluctance > 1_000:
            raise InvalidArgument("settings: lead_reluctance must be at most 1000 election timeouts")
        if self.snapshot_piece_bytes > 1 << 20:
            raise InvalidArgument("settings: snapshot_piece_bytes must be at most 1 MB (1048576)")
        if not 1 <= self.heartbeat_ms <= self.election_timeout_ms // 2:
            raise InvalidArgument("settings: heartbeat_ms must be from 1 to half of election_timeout_ms")
        if 10 * self.lease_ms > 9 * self.election_timeout_ms:
            raise InvalidArgument("settings: lease_ms must be at most nine tenths of election_timeout_ms")
        return self


def settings_of(given: object) -> Settings:
    """What a caller gave as settings; the defaults for None.

    Raises:
        InvalidArgument: it is no `Settings`, or a field of it cannot be.
    """
    if given is None:
        return Settings()
    if not isinstance(given, Settings):
        raise InvalidArgument(f"settings must be a raftplug.Settings, not {short(given)}")
    return given.validate()


def _table(file: str | os.PathLike[str]) -> dict[str, Any]:
    """The table [raftplug] of a TOML file."""
    import tomllib  # Loaded where there is a file, and not by every command.

    if not isinstance(file, str | os.PathLike):
        raise InvalidArgument(f"settings: file must be a path, not {short(file)}")
    where = os.fspath(file)
    try:
        with open(file, "rb") as opened:
            content = tomllib.load(opened)
    except OSError as error:
        raise InvalidArgument(f"settings: {where}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"settings: {where} is not TOML: {error}") from None
    table = content.get(_TABLE)
    if not isinstance(table, dict):
        raise InvalidArgument(f"settings: {where} has no table [{_TABLE}]")
    return table


def _check_name(name: str, names: list[str], what: str) -> None:
    if name not in names:
        near = get_close_matches(name, names, 1)
        raise InvalidArgument(
            f"settings: {what} is no field; "
            + (f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}")
        )


def _number(text: str) -> int | str:
    """The whole number that a variable says; any other text stays as it is, to be refused with its field's name."""
    if re.fullmatch(r"[0-9]{1,20}", text.strip()):
        return int(text)
    return text
