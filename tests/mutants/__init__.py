"""The bugs that `mutation_gate.py` plants, by area: one file, one tuple `MUTANTS`.

A bug is added as one `Mutant` at the end of its file; when a function moves, only its name changes here.
"""

from mutants import client, directory, driver, identity, node, rules, sessions, snapshots, storage, threads, transport
from mutants.mutant import Mutant

AREAS: dict[str, tuple[Mutant, ...]] = {
    "rules": rules.MUTANTS,
    "driver": driver.MUTANTS,
    "node": node.MUTANTS,
    "identity": identity.MUTANTS,
    "sessions": sessions.MUTANTS,
    "snapshots": snapshots.MUTANTS,
    "storage": storage.MUTANTS,
    "directory": directory.MUTANTS,
    "transport": transport.MUTANTS,
    "client": client.MUTANTS,
    "threads": threads.MUTANTS,
}
MUTANTS = tuple(mutant for mutants in AREAS.values() for mutant in mutants)

# These change nothing, and must survive.
EQUIVALENT = (
    Mutant("equivalent: nothing", rules.RAFT, "", "", ""),
    Mutant(
        "equivalent: order of a conjunction",
        rules.RAFT,
        "Raft._on_vote_response",
        "self.role == CANDIDATE and message.flag",
        "message.flag and self.role == CANDIDATE",
    ),
    Mutant(
        "equivalent: max the other way round",
        rules.RAFT,
        "Raft.persisted",
        "max(self.stable, self._writing_last)",
        "max(self._writing_last, self.stable)",
    ),
)
