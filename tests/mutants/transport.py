"""What moves bytes."""

from mutants.mutant import Mutant

REDIS_STREAMS = "redis_streams.py"

MUTANTS = (
    Mutant(
        "cursor not reset",
        REDIS_STREAMS,
        "Cursor.compare",
        "if self.id is not None and _number(last) < _number(self.id):",
        "if False:",
    ),
)
