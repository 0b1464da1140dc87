"""The version of the installed package."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("raftplug")
except PackageNotFoundError:  # Run from a source tree that is not installed.
    VERSION = "0"
