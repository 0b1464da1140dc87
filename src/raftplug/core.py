"""Chooses a core, once: the compiled one if it is there and up to date, else the Python one, and says which and why.

RAFTPLUG_CORE=cython insists on the compiled core, RAFTPLUG_CORE=python on the other, auto (or nothing) chooses.  Both
speak the same bytes, so a cluster may mix them.  `name`, `why` and the classes of the chosen core are attributes of
this module; `load` gives either core by name, whatever was chosen.

Nothing else imports what both are made of (raft.py, configuration.py, future.py, hot_path.py, `_core_py.py`): a process
that runs compiled never loads it.
"""

from __future__ import annotations

import os
import warnings
from functools import cache
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

from raftplug._source import source_hash
from raftplug.errors import InvalidArgument

if TYPE_CHECKING:  # One set of types for both cores; the module globals below are those of the chosen one.
    from raftplug._core_py import Log as Log
    from raftplug._core_py import Message as Message
    from raftplug._core_py import Progress as Progress
    from raftplug._core_py import Ready as Ready
    from raftplug.configuration import Configuration as Configuration
    from raftplug.future import Future as Future
    from raftplug.hot_path import Calls as Calls
    from raftplug.hot_path import answer as answer
    from raftplug.hot_path import append_proposals as append_proposals
    from raftplug.hot_path import execute as execute
    from raftplug.hot_path import now_us as now_us
    from raftplug.raft import Raft as Raft

_NAMES = (
    *("Log", "Progress", "Message", "Configuration", "Raft", "Ready", "Future", "Calls"),
    *("now_us", "append_proposals", "execute", "answer"),
)


class _Unusable(Exception):
    """There is no compiled core, or it was compiled from other source than what lies here."""


def _compiled() -> SimpleNamespace:
    try:
        module = import_module("raftplug._core")
    except ImportError as error:
        raise _Unusable(f"the compiled core is not installed ({error})") from None
    here = Path(__file__).parent
    # Only a source tree has the .pyx; an installed package cannot be stale.
    if (here / "_core.pyx").exists() and source_hash(here) != module.SOURCE_HASH:
        raise _Unusable("the compiled core is older than its source: install raftplug again")
    return _namespace("cython", module)


def _python() -> SimpleNamespace:
    modules = [
        import_module(f"raftplug.{name}") for name in ("_core_py", "configuration", "raft", "future", "hot_path")
    ]
    return _namespace("python", *modules)


def _namespace(name: str, *modules: object) -> SimpleNamespace:
    # The rules import what they use, so the last module that has a name may not be its home: take the first.
    found = {key: next(getattr(m, key) for m in modules if hasattr(m, key)) for key in _NAMES}
    return SimpleNamespace(name=name, **found)


@cache
def load(name: str) -> SimpleNamespace:
    """The core "cython" or "python": a namespace with `name` and the classes that this module has, too.

    Raises:
        InvalidArgument: there is no such core, or the compiled one is missing or older than its source.
    """
    if name == "python":
        return _python()
    if name != "cython":
        raise InvalidArgument(f"core {name!r} cannot be: use 'cython' or 'python'")
    try:
        return _compiled()
    except _Unusable as reason:
        raise InvalidArgument(f"core 'cython' cannot be used: {reason}") from None


def _choose() -> tuple[str, str]:
    """The name of the core to use, and the reason in a sentence."""
    wanted = os.environ.get("RAFTPLUG_CORE") or "auto"
    if wanted not in ("auto", "cython", "python"):
        raise InvalidArgument(f"RAFTPLUG_CORE={wanted} cannot be: use auto, cython or python")
    if wanted != "auto":
        return wanted, f"RAFTPLUG_CORE={wanted} asks for it"
    try:
        _compiled()
    except _Unusable as reason:
        warnings.warn(f"raftplug runs in pure Python, several times slower: {reason}", RuntimeWarning, stacklevel=2)
        return "python", str(reason)
    return "cython", "the compiled core is installed"


name, why = _choose()
globals().update(vars(load(name)))
