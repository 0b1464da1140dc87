"""`python -m raftplug` is `raftplug`."""

from __future__ import annotations

from raftplug.cli import main

if __name__ == "__main__":
    main(prog_name="raftplug")
