"""Which source the compiled core is made from: setup.py stamps this hash into it, core.py compares.

It imports nothing of the package, because setup.py runs it before there is one.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

SOURCES = ("_core.pyx", "configuration.py", "future.py", "hot_path.py", "raft.py")


def source_hash(directory: Path) -> str:
    """A digest of the files in `directory` that `_core.pyx` compiles; a missing one counts as empty."""
    digest = hashlib.blake2b(digest_size=16)
    for name in SOURCES:
        path = directory / name
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        digest.update(f"{name}\0{text}\0".encode())
    return digest.hexdigest()
