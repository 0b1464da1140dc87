"""No call of a core ends the process, however odd it is; and both cores answer odd calls alike."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import fuzz
import odd_calls
import raftplug

LIMIT_S = 100
LOOKED_AT = ("Raises", "RaisingInt", "Meddler", "MeddlingInt", "MeddlingStr", "self")
"""Objects that notice being looked at: how often, and in which order, is not the same."""
EXACT = ("Log", "Message", "Progress")
"""Whose arguments both cores check by hand; elsewhere the compiled core's types do it, and the Python core does not."""
SET_LATER = ("Message", "Progress")
"""Whose attributes may be set; the Python core looks at them where they are used."""
TRUTHS = ("set flag", "set paused", "set sleeping", "set closed")


def in_a_process(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python, which finds the same raftplug, with these arguments."""
    paths = [str(Path(raftplug.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


@cache
def outcomes(core: str, name: str, watch: Path) -> dict[str, tuple[str, str]]:
    """What each odd call did, in a process of its own; the test fails if that is ended."""
    done = in_a_process(odd_calls.__file__, core, name, str(watch))
    if done.returncode:
        ended = signal.Signals(-done.returncode).name if done.returncode < 0 else f"exit code {done.returncode}"
        call = watch.read_bytes().rstrip(b"\0").decode() if watch.exists() else "no call yet"
        pytest.fail(f"{core} core, {name}: {ended} at: {call}\n{done.stderr[-2000:]}")
    return {what: (did, after) for what, (did, after) in json.loads(done.stdout).items()}


@pytest.fixture(scope="session")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("odd_calls") / "call"


@pytest.mark.parametrize("name", odd_calls.SUBJECTS)
def test_an_odd_call_raises_or_answers(core: Any, name: str, watched: Path) -> None:
    found = outcomes(core.name, name, watched)
    assert len(found) > 500
    for what, (did, after) in found.items():
        assert "SystemError" not in did + after, what
        if what.endswith("as meant") and not what.startswith("new"):
            assert "TypeError" not in did + after, what


@pytest.mark.parametrize("name", odd_calls.SUBJECTS)
def test_the_cores_refuse_odd_calls_alike(both_cores: tuple[Any, Any], name: str, watched: Path) -> None:
    """The same answer or the same error, and the same object afterwards."""
    python, compiled = (outcomes(core.name, name, watched) for core in both_cores)
    assert python.keys() == compiled.keys()
    different = {
        what: (python[what], compiled[what])
        for what in python
        if not what.startswith("new") and not alike(name, what, python, compiled)
    }
    assert not different


def alike(name: str, what: str, python: dict[str, tuple[str, str]], compiled: dict[str, tuple[str, str]]) -> bool:
    """Whether both cores did the same, as far as that can be wanted."""
    if what.endswith(LOOKED_AT) or what.startswith("module: now_us"):
        return True
    (did, after), (compiled_did, compiled_after) = python[what], compiled[what]
    if kind(did) == kind(compiled_did) and kind(after) == kind(compiled_after):
        return True
    way, _, call = what.partition(": ")
    if way == "again":
        way = next(iter(odd_calls.SUBJECTS[name]))
    untouched = compiled.get(f"{way}: nothing", ("", compiled_after))[1]
    refused = compiled_did in ("TypeError!", "AttributeError!", "OverflowError!", "ValueError!", "InvariantViolated!")
    if call.startswith(("set ", "delete ")):
        # An assignment that is refused changes nothing; on the Python core slots take anything.
        if compiled_did == did == "None":
            return call.endswith(" to True") or call.startswith(TRUTHS)  # Of which only the truth value is kept.
        if not refused or compiled_after != untouched:
            return False
        return not after.endswith("!") or kind(after) == kind(compiled_did) or name not in SET_LATER
    if call in ("subclass", "copy", "deepcopy", "pickle", "pickle 0", "reduce", "dict", "surplus"):
        return compiled_did in ("TypeError!", "AttributeError!")
    if name in EXACT:
        return False
    if what.endswith(("is 1.0", "is Index")):
        return True  # C integers are made of them.
    return refused and compiled_after == untouched


def kind(outcome: str) -> str:
    """What is no such object, or has no such attribute, may be said either way."""
    return "TypeError!" if outcome == "AttributeError!" else outcome


def test_damaged_frames_messages_and_blocks_are_refused_alike(both_cores: tuple[Any, Any]) -> None:
    python, compiled = (fuzz.run(core, seed=1, count=1_000) for core in both_cores)
    assert python == compiled
    assert len(python) == 7 and min(python.values()) > 50


CHAINS = {
    "Future": "future = core.Future(); future.set_result(chain); chain = future",
    "Progress": "chain = core.Progress(chain, 1, 0)",
}


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_of_any_length_is_freed(core: Any, name: str) -> None:
    code = f"from raftplug.core import load; core = load({core.name!r}); chain = None\n"
    code += f"for _ in range(300_000): {CHAINS[name]}\ndel chain\nprint('freed')"
    assert in_a_process("-c", code).stdout == "freed\n"
