"""Where a real node applies its state machine: a busy process makes none slow, and one that is slow comes back."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import raftplug
import servers
from raftplug import pace
from raftplug.embedded import EmbeddedServer

valkey_server = servers.valkey_server
PATIENCE_S = 60.0


class Counter(raftplug.StateMachine):
    def __init__(self) -> None:
        self.value = 0

    def apply_transition(self, transition: Any) -> int:
        if transition == "compute":
            began = time.thread_time()
            while time.thread_time() - began < 0.02:
                pass
        elif transition == "wait":
            time.sleep(0.2)
        self.value += 1
        return self.value


@contextmanager
def busy_host() -> Iterator[None]:
    """More processes than there are processors compute, and threads of this one, too."""
    stopping = threading.Event()

    def compute() -> None:
        while not stopping.is_set():
            sum(range(1_000))

    others = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"], stdin=subprocess.DEVNULL)
        for _ in range(2 * (os.cpu_count() or 1))
    ]
    threads = [threading.Thread(target=compute) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopping.set()
        for thread in threads:
            thread.join()
        for other in others:
            other.kill()
            other.wait()


@pytest.fixture
def node(valkey_server: EmbeddedServer, tmp_path: Path) -> Iterator[raftplug.Node]:
    options: Any = {"redis": valkey_server.url, "data_dir": tmp_path / "n1", "state_machine": Counter()}
    with raftplug.Node("n1", peers=["n1"], bootstrap=True, **options) as node:
        node.propose(1, timeout=PATIENCE_S).result()
        yield node


def test_a_busy_host_and_a_busy_process_make_no_machine_slow(node: raftplug.Node) -> None:
    slow = node.subscribe("slow_apply")
    with busy_host():
        until = time.monotonic() + 8
        while time.monotonic() < until:
            node.propose(1, timeout=PATIENCE_S).result()
        assert node.status()["apply"] == "loop"
    assert slow.get(0) is None


@pytest.mark.parametrize("how", ["compute", "wait"])
def test_a_machine_that_computes_or_waits_gets_a_thread_and_comes_back_when_it_is_fast(
    node: raftplug.Node, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "BACK_US", 1_000_000)
    for _ in range(2):
        node.propose(how, timeout=PATIENCE_S).result()
        servers.wait_until(lambda: node.status()["apply"] == "thread", "it has a thread of its own")
        servers.wait_until(
            lambda: node.propose(1).result(PATIENCE_S) and node.status()["apply"] == "loop", "it is back in the loop"
        )
    named = [each.name for each in threading.enumerate() if each.name.startswith("raftplug-apply")]
    assert named == ["raftplug-apply-n1-default"], "one thread, however often"


def test_what_a_thread_computes_and_how_often_it_waits_is_told_apart() -> None:
    used = pace.used_by_thread(lambda: 7)
    cpu, waits, held_up_us = used()
    assert held_up_us == 7
    began = time.monotonic()
    while time.thread_time() < cpu / 1e6 + 0.05 and time.monotonic() - began < PATIENCE_S:
        pass
    computed, _, _ = used()
    assert 45_000 < computed - cpu < 80_000
    time.sleep(0.05)
    slept, later, _ = used()
    assert slept - computed < 20_000 and later > waits
