"""What moves bytes."""

from mutants.mutant import Mutant

STREAM_IDS = "stream_ids.py"

MUTANTS = (
    Mutant(
        "cursor not reset",
        STREAM_IDS,
        "Cursor.compare",
        "if self.id is not None and number(last) < number(self.id):",
        "if False:",
    ),
)
