"""Exactly-once: the replicated table, and who asks again."""

from mutants.mutant import Mutant

SESSIONS = "sessions.py"
REQUESTER = "requester.py"

MUTANTS = (
    Mutant(
        "duplicate remembered by a maximum",
        SESSIONS,
        "Sessions.admit",
        "result = found.results.get(sequence)",
        "newest = max(found.results, default=0)\n        result = found.results[newest] if 0 < sequence <= newest else None",
    ),
    Mutant(
        "a transition of a session that has ended is executed",
        SESSIONS,
        "Sessions.admit",
        "                return SESSION_EXPIRED, None",
        "                return None",
    ),
    Mutant(
        "a session that has ended begins anew",
        SESSIONS,
        "Sessions.admit",
        "self._drop(session)\n            return SESSION_EXPIRED, None",
        "found.results.clear()",
    ),
    Mutant(
        "calls under way unbounded",
        REQUESTER,
        "Requester._begin",
        "len(self._calls) >= self._settings.max_pending",
        "False",
    ),
    Mutant(
        "a client goes on with a session that has ended",
        REQUESTER,
        "Requester._on_session_expired",
        "if call.session is self._session:\n            self._session = None",
        "if call.session is self._session:",
    ),
    Mutant(
        "what an ended session may have executed passes for not executed",
        REQUESTER,
        "Requester._on_session_expired",
        "if call.unsettled():",
        "if False:",
    ),
)
