"""Plants one bug at a time in a copy of the sources, and asks whether the simulator, or a test, finds it.

    python tests/mutation_gate.py --json                      # the whole gate
    python tests/mutation_gate.py --sample 4                  # a few of them, as the suite does
    python tests/mutation_gate.py --area driver --jobs 1      # those of tests/mutants/driver.py
    python tests/mutation_gate.py --only "no no-op"

`mutants/` holds the bugs.  Each runs on the Python core, from a copied tree that is first on the path (the child says
where its modules came from, and that is checked).  First come seeds with only the faults that the bug is about, if it
names some; then its tests, if it names some, else seeds that choose their own faults.

Killed means that a named invariant or the liveness phase of the simulator failed, with a seed that finds nothing on the
tree without the bug; or that a named test failed by an assertion, by `pytest.fail` or by an error of `raftplug.errors`,
and passes on the tree without the bug.  An import error, a crash of the harness or a time-out is an error, and no kill.
The unmutated source and two changes that change nothing must survive.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from mutants import AREAS, EQUIVALENT
from mutants.mutant import Mutant

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src"
SEEDS = 500
FAULT_SEEDS = 100  # Of those with only the faults that a mutant names.
PATIENCE_S = 900

SEEDS_CHILD = """
import gc, json, sys
import raftplug
from raftplug import core
from raftplug.testing import simulation
import logging
logging.disable(logging.CRITICAL)
gc.set_threshold(50_000, 20, 100)
first, count, faults = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:] or None
namespace = core.load("python")
for seed in range(first, first + count):
    report = simulation.Simulation(seed, core=namespace, nodes=[5, 3][seed % 2], faults=faults).run()
    if report.violation is not None:
        break
print(json.dumps({"path": raftplug.__file__, "seeds": seed - first + 1, "violation": report.violation}))
"""

TESTS_CHILD = """
import json, sys
import pytest
import raftplug
from raftplug.errors import RaftplugError

passed, failed, errors = [], [], []

def judged(error):
    if isinstance(error, BaseExceptionGroup):  # Of Hypothesis: several ways to fail.
        return all(map(judged, error.exceptions))
    timed_out = isinstance(error, pytest.fail.Exception) and str(error).startswith("Timeout")
    return isinstance(error, (AssertionError, pytest.fail.Exception, RaftplugError)) and not timed_out

class Judge:
    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        if report.passed and report.when == "call":
            passed.append(item.nodeid)
        elif report.failed:
            error = call.excinfo.value
            text = f"{item.nodeid}: {type(error).__name__}: {error}".splitlines()[0][:300]
            (failed if report.when == "call" and judged(error) else errors).append(text)
        return report

    def pytest_collectreport(self, report):
        if report.failed:
            errors.append(f"{report.nodeid}: not collected")

pytest.main(["-q", "-p", "no:cacheprovider", "-k", "not cython", *sys.argv[1:]], plugins=[Judge()])
print(json.dumps({"path": raftplug.__file__, "passed": passed, "failed": failed, "errors": errors}))
"""


def run(mutant: Mutant, seeds: int = SEEDS) -> dict[str, Any]:
    """Plant a bug and look for it.

    Args:
        mutant: the bug.
        seeds: how many seeds it may take that choose their own faults.

    Returns:
        {"name", "outcome": killed | survived | error, "by": simulator | tests | None, "seeds", "why", "took_s"}
    """
    began = time.monotonic()
    result: dict[str, Any] = {"name": mutant.name, "outcome": "survived", "by": None, "seeds": 0, "why": None}
    try:
        with _planted(mutant) as tree:
            if mutant.faults:
                _run_seeds(tree, min(seeds, FAULT_SEEDS), mutant.faults, result)
            if result["outcome"] == "survived" and mutant.tests:
                _run_tests(tree, mutant.tests, result)
            elif result["outcome"] == "survived":
                _run_seeds(tree, seeds, (), result)
    except (_Failed, LookupError) as error:
        result |= {"outcome": "error", "why": str(error)}
    return result | {"took_s": round(time.monotonic() - began, 1)}


class _Failed(Exception):
    """Says nothing about the bug: the harness did not come to an end."""


@contextmanager
def _planted(mutant: Mutant | None) -> Iterator[Path]:
    """A copy of the sources, with a bug in it."""
    with tempfile.TemporaryDirectory() as directory:
        tree = Path(directory).resolve() / "src"
        shutil.copytree(SOURCE, tree, ignore=shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info"))
        if mutant is not None:
            path = tree / "raftplug" / mutant.module
            path.write_text(mutant.plant(path.read_text()))
        yield tree


def _run_seeds(tree: Path, count: int, faults: Sequence[str], result: dict[str, Any]) -> None:
    """Run seeds until one finds something, which it must not find without the bug."""
    found = _child(tree, SEEDS_CHILD, ["0", str(count), *faults])
    result["seeds"] += found["seeds"]
    if found["violation"]:
        seed = found["seeds"] - 1
        with _planted(None) as clean:
            violation = _child(clean, SEEDS_CHILD, [str(seed), "1", *faults])["violation"]
        if violation is not None:
            raise _Failed(f"without the bug, seed {seed}, faults {','.join(faults) or 'its own'}: {violation}")
        result |= {"outcome": "killed", "by": "simulator", "why": found["violation"]}


def _run_tests(tree: Path, tests: tuple[str, ...], result: dict[str, Any]) -> None:
    """Run tests, which must pass without the bug."""
    _must_pass(tests)
    found = _child(tree, TESTS_CHILD, list(tests))
    if found["failed"]:
        result |= {"outcome": "killed", "by": "tests", "why": found["failed"][0]}
    elif found["errors"]:
        raise _Failed(found["errors"][0])


@cache
def _must_pass(tests: tuple[str, ...]) -> None:
    """Each of these runs and passes without a bug; raises _Failed."""
    with _planted(None) as tree:
        found = _child(tree, TESTS_CHILD, list(tests))
    if found["failed"] or found["errors"]:
        raise _Failed(f"without the bug: {[*found['failed'], *found['errors']][0]}")
    for test in tests:
        if not any(each.startswith(test) for each in found["passed"]):
            raise _Failed(f"without the bug: {test} does not run")


def _child(tree: Path, program: str, arguments: list[str]) -> dict[str, Any]:
    """What a program printed that ran over a tree; raises _Failed."""
    path = os.pathsep.join(map(str, [tree, *sorted(ROOT.glob("plugins/*/src"))]))
    environment = {**os.environ, "PYTHONPATH": path, "RAFTPLUG_CORE": "python", "PYTHONHASHSEED": "0"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _Failed("time-out") from None
    try:
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        raise _Failed((done.stderr.strip().splitlines() or ["no output"])[-1]) from None
    if not found["path"].startswith(str(tree)):
        raise _Failed(f"ran from {found['path']}")
    return found


def gate(mutants: Sequence[Mutant], seeds: int, jobs: int) -> dict[str, Any]:
    """Run mutants and the equivalent ones; the report of `--json`."""

    def one(mutant: Mutant) -> dict[str, Any]:
        result = run(mutant, seeds if mutant not in EQUIVALENT else min(seeds, 30))
        found = f"{result['why']} (seeds: {result['seeds']}, {result['took_s']} s)"
        print(f"{result['outcome']:9} {mutant.name}: {found}", file=sys.stderr, flush=True)
        return result

    began = time.monotonic()
    with ThreadPoolExecutor(jobs) as pool:
        same = list(pool.map(one, EQUIVALENT))
        results = list(pool.map(one, mutants))
    killed = [result for result in results if result["outcome"] == "killed"]
    simulated = [result["seeds"] for result in killed if result["by"] == "simulator"]
    return {
        "planted": len(results),
        "killed": len(killed),
        "killed_by_simulator": len(simulated),
        "killed_by_tests": len(killed) - len(simulated),
        "survivors": [result["name"] for result in results if result["outcome"] == "survived"],
        "errors": [result for result in [*results, *same] if result["outcome"] == "error"],
        "median_seeds_to_kill": statistics.median(simulated) if simulated else None,
        "equivalent_survived": sum(result["outcome"] == "survived" for result in same),
        "equivalent": len(same),
        "took_s": round(time.monotonic() - began),
    }


def main() -> int:
    """Run the gate; 0 if everything planted was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the report as one object")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="how many seeds each may take")
    parser.add_argument("--sample", type=int, help="only so many, chosen by chance")
    parser.add_argument("--only", action="append", help="only those with this in their name; may be repeated")
    parser.add_argument("--area", action="append", choices=AREAS, help="only those of this area; may be repeated")
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    mutants = [mutant for area in arguments.area or AREAS for mutant in AREAS[area]]
    mutants = [each for each in mutants if any(part in each.name for part in arguments.only or [""])]
    if arguments.sample is not None:
        mutants = random.sample(mutants, min(arguments.sample, len(mutants)))
    report = gate(mutants, arguments.seeds, arguments.jobs)
    print(json.dumps(report) if arguments.json else json.dumps(report, indent=2))
    return int(report["killed"] != report["planted"] or report["equivalent_survived"] != report["equivalent"])


if __name__ == "__main__":
    sys.exit(main())
