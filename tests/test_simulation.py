"""The simulator: reproducible on both cores, quiet about what is right, and able to find what is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

import mutation_gate
from mutants import EQUIVALENT, MUTANTS
from raftplug.testing.simulation import FAULTS, Register, Simulation

SEEDS = range(10)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_invariant_is_violated_and_a_majority_recovers(core: Any, seed: int) -> None:
    report = Simulation(seed, core=core, events=4_000, nodes=(5, 3, 4)[seed % 3]).run()
    assert report.violation is None, f"{report.violation}; raftplug sim --seed {seed} --events 4000"
    assert report.acknowledged


@pytest.mark.parametrize("seed", range(8))
def test_long_histories_are_linearizable(both_cores: Any, seed: int) -> None:
    report = Simulation(seed, core=both_cores[seed % 2], events=10_000, operations=1_050, clients=6).run()
    assert report.violation is None, f"{report.violation}; raftplug sim --seed {seed} --long"
    assert len(report.history) >= 1_000
    assert sum(each.operation["op"] == "get" for each in report.history) >= 300


def test_the_same_seed_gives_the_same_trace_on_both_cores(both_cores: Any) -> None:
    for seed in range(6):
        python, cython = (Simulation(seed, core=core, events=3_000, keep_trace=True).run() for core in both_cores)
        assert python.trace == cython.trace
        assert (python.trace_sha256, python.faults, python.events) == (
            cython.trace_sha256,
            cython.faults,
            cython.events,
        )


def test_the_trace_does_not_depend_on_the_hash_seed() -> None:
    traces = set()
    for hash_seed in ("0", "1", "12345"):
        done = subprocess.run(
            [sys.executable, "-m", "raftplug", "sim", "--seeds", "3", "--events", "2000", "--json"],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        traces.add(json.loads(done.stdout.splitlines()[-1])["trace_sha256"])
    assert len(traces) == 1


def test_every_fault_happens_and_is_counted() -> None:
    counted: set[str] = set()
    for seed in range(200):
        # All at once, as the seed chooses, and the rarest by themselves or in stories: some need what others hinder.
        chosen = tuple(FAULTS) if seed % 2 else None
        if seed % 5 == 2:
            chosen = tuple(name for name in FAULTS if name not in counted)
        elif seed % 5 == 3:
            chosen = ("crash_in_fetch", "snapshot_piece_rot", "isolate", "operator_snapshot")
        elif seed % 5 == 4:
            chosen = ("older_file", "start_twice", "restart_all", "crash")
        events = 8_000 if seed % 5 == 3 else 4_000  # Who fetches a snapshot must have fallen behind.
        counted |= set(Simulation(seed, events=events, faults=chosen).run().faults)
        if counted == set(FAULTS):
            break
    assert len(FAULTS) >= 30
    assert counted == set(FAULTS)


def test_a_machine_that_is_not_deterministic_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Register.apply_transition

    def moody(self: Register, transition: Any) -> Any:
        return honest(self, {**transition, "value": id(self)} if transition["op"] == "put" else transition)

    monkeypatch.setattr(Register, "apply_transition", moody)
    found = [Simulation(seed).run().violation for seed in range(5)]
    assert any(violation is not None and violation.startswith("state machine safety") for violation in found)


@pytest.mark.parametrize("name", ["ack before fsync", "duplicate sequence executed again"])
def test_a_planted_bug_is_found(name: str) -> None:
    mutant = next(each for each in MUTANTS if each.name == name)
    result = mutation_gate.run(mutant, seeds=20)
    assert result["outcome"] == "killed", result


def test_every_mutant_changes_one_place_of_the_sources_as_they_are() -> None:
    texts = {path: path.read_text() for path in (mutation_gate.SOURCE / "raftplug").rglob("*.py")}
    for mutant in (*MUTANTS, *EQUIVALENT):
        text = texts[mutation_gate.SOURCE / "raftplug" / mutant.module]
        changed = mutant.plant(text)  # Raises, unless the place is there exactly once.
        compile(changed, mutant.name, "exec")
        assert changed != text or not mutant.old, mutant.name


def test_every_mutant_has_a_name_of_its_own_and_names_what_exists() -> None:
    names = [mutant.name for mutant in (*MUTANTS, *EQUIVALENT)]
    assert len(set(names)) == len(names)
    for mutant in MUTANTS:
        assert set(mutant.faults) <= set(FAULTS), mutant.name
        for test in mutant.tests:
            file, _, name = test.partition("::")
            text = (mutation_gate.ROOT / file).read_text()
            # A function, or one of Hypothesis's state machines.
            first = name.partition("::")[0].partition("[")[0]
            assert f"def {first}(" in text or f"\n{first} = " in text or f"\nclass {first}" in text, (mutant.name, test)


def test_sim_prints_one_object_and_names_the_command_that_replays() -> None:
    command = [sys.executable, "-m", "raftplug", "sim", "--seeds", "2", "--events", "1000", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert set(found) == {"seeds", "events", "events_per_s", "violations", "faults", "trace_sha256"}
    assert (found["seeds"], found["violations"]) == (2, [])
    assert set(found["faults"]) == set(FAULTS)


@pytest.mark.parametrize(
    ("seed", "nodes", "events"),
    [(502232, 5, 2_000), (104131, 5, 4_000), (144, 5, 4_000), (70, 5, 8_000), (102945, 5, 8_000)],
)
def test_what_a_seed_once_found_stays_mended(core: Any, seed: int, nodes: int, events: int) -> None:
    report = Simulation(seed, core=core, nodes=nodes, events=events).run()
    assert report.violation is None, f"{report.violation}; raftplug sim --seed {seed} --nodes {nodes} --events {events}"
