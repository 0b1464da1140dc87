"""The demo, for real on both cores; and its judge, on forged histories: each kind of failure must be found."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis as redis_py

from conftest import load_core
from raftplug.cli.ycsb import History, Keys, Load, Write, percentile, value_of, version_of
from raftplug.embedded import EmbeddedServer
from raftplug.errors import OutcomeUnknown, TransitionFailed, Unavailable

KEY = "user0001"


class Past:
    """A history on a fake clock: every call is one second later than the one before."""

    def __init__(self) -> None:
        self.now = 0.0
        self.history = History(clock=self._tick)

    def _tick(self) -> float:
        self.now += 1.0
        return self.now

    def put(self, key: str = KEY) -> Write:
        write = self.history.begin_put(key)
        self.history.acknowledge(write, None)
        return write

    def append(self, token: str, before: str = "", key: str = "tokens") -> None:
        write = self.history.begin_append(key, token)
        self.history.acknowledge(write, before + token)

    def read(self, version: int, key: str = KEY) -> bool:
        return self.history.end_read(self.history.begin_read(key), value_of(key, version) if version else None)


@pytest.fixture
def past() -> Past:
    return Past()


def everywhere(state: dict[str, Any], **others: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {"n1": state, "n2": state, "n3": state} | others


# ------------------------------------------------------------------- the judge


def test_a_faultless_history_is_found_faultless(past: Past) -> None:
    past.put()
    past.put()
    past.append("a;")
    past.append("b;", "a;")
    assert past.read(2)
    verdict = past.history.judge(everywhere({KEY: value_of(KEY, 2), "tokens": "a;b;"}))
    assert (verdict.lost, verdict.duplicated, verdict.equal, past.history.stale_reads) == (0, 0, True, 0)
    assert (past.history.acknowledged, past.history.reads) == (4, 1)


@pytest.mark.parametrize(("held", "lost"), [(None, 3), (1, 2), (2, 1), (3, 0)])
def test_acknowledged_writes_that_the_final_value_lacks_are_lost(past: Past, held: int | None, lost: int) -> None:
    for _ in range(3):
        past.put()
    state = {KEY: value_of(KEY, held)} if held else {}
    assert past.history.judge(everywhere(state)).lost == lost


def test_a_write_that_one_node_lacks_is_lost_and_the_nodes_are_unequal(past: Past) -> None:
    past.put()
    past.put()
    verdict = past.history.judge(everywhere({KEY: value_of(KEY, 2)}, n3={KEY: value_of(KEY, 1)}))
    assert (verdict.lost, verdict.equal) == (1, False)


def test_an_acknowledged_token_that_is_missing_is_lost(past: Past) -> None:
    past.append("a;")
    past.append("b;", "a;")
    assert past.history.judge(everywhere({"tokens": "b;"})).lost == 1
    assert past.history.judge(everywhere({"tokens": "a;b;"}, n2={"tokens": "a;"})).lost == 1
    assert past.history.judge(everywhere({})).lost == 2


def test_a_token_that_stands_twice_is_a_duplicate_on_whichever_node(past: Past) -> None:
    past.append("a;")
    past.append("b;", "a;")
    assert past.history.judge(everywhere({"tokens": "a;b;a;"})).duplicated == 1
    assert past.history.judge(everywhere({"tokens": "a;b;"}, n3={"tokens": "a;b;b;b;"})).duplicated == 2


def test_a_token_that_nobody_proposed_is_one_too_many(past: Past) -> None:
    past.append("a;")
    assert past.history.judge(everywhere({"tokens": "a;z;"})).duplicated == 1


def test_a_damaged_value_holds_nothing(past: Past) -> None:
    past.put()
    damaged = value_of(KEY, 1)[:-1] + "!"
    assert past.history.judge(everywhere({KEY: damaged})).lost == 1
    assert not past.history.end_read(past.history.begin_read(KEY), damaged)


def test_a_read_that_is_older_than_what_was_acknowledged_before_it_is_stale(past: Past) -> None:
    past.put()
    past.put()
    assert not past.read(1)
    assert not past.read(0)
    assert past.read(2)
    assert (past.history.stale_reads, past.history.reads) == (2, 3)


def test_a_read_during_a_write_may_see_either_value_but_never_go_back(past: Past) -> None:
    past.put()
    write = past.history.begin_put(KEY)
    assert past.read(1)
    assert past.read(2)
    assert not past.read(1)
    past.history.acknowledge(write, None)
    assert past.history.stale_reads == 1


def test_writes_at_the_same_time_may_take_effect_in_either_order(past: Past) -> None:
    first, second = past.history.begin_put(KEY), past.history.begin_put(KEY)
    past.history.acknowledge(second, None)
    past.history.acknowledge(first, None)
    assert past.read(1)
    assert past.read(2)
    for version in (1, 2):
        assert past.history.judge(everywhere({KEY: value_of(KEY, version)})).lost == 0


def test_a_read_that_began_before_the_acknowledgement_may_be_older(past: Past) -> None:
    past.put()
    write = past.history.begin_put(KEY)
    read = past.history.begin_read(KEY)
    past.history.acknowledge(write, None)
    assert past.history.end_read(read, value_of(KEY, 1))


def test_a_value_that_was_never_written_is_a_stale_read(past: Past) -> None:
    past.put()
    assert not past.read(7)
    assert not past.history.end_read(past.history.begin_read(KEY), "anything")
    assert not past.history.end_read(past.history.begin_read(KEY), 1)
    assert past.history.stale_reads == 3


def test_a_write_of_unknown_outcome_may_be_there_or_not_but_replaces_nothing_acknowledged_by_less(past: Past) -> None:
    past.put()
    past.history.give_up(past.history.begin_put(KEY))
    past.history.give_up(past.history.begin_append("tokens", "a;"))
    assert past.read(1)
    for version, tokens in ((1, ""), (2, "a;")):
        verdict = past.history.judge(everywhere({KEY: value_of(KEY, version), "tokens": tokens}))
        assert (verdict.lost, verdict.duplicated) == (0, 0)
    assert past.history.judge(everywhere({"tokens": "a;a;"})).duplicated == 1
    assert past.history.judge(everywhere({})).lost == 1
    assert (past.history.acknowledged, past.history.unknown) == (1, 2)


def test_a_refused_write_must_not_be_there(past: Past) -> None:
    past.put()
    past.history.refuse(past.history.begin_put(KEY))
    past.history.refuse(past.history.begin_append("tokens", "a;"))
    assert not past.read(2)
    verdict = past.history.judge(everywhere({KEY: value_of(KEY, 2), "tokens": "a;"}))
    assert (verdict.lost, verdict.duplicated) == (1, 1)
    assert past.history.judge(everywhere({KEY: value_of(KEY, 1)})).lost == 0


def test_a_write_that_was_seen_and_then_refused_is_found(past: Past) -> None:
    write = past.history.begin_put(KEY)
    assert past.read(1)
    past.history.refuse(write)
    assert past.history.stale_reads == 1


def test_an_append_that_is_answered_with_another_ones_result_is_found(past: Past) -> None:
    past.history.acknowledge(past.history.begin_append("tokens", "a;"), "b;")
    past.history.acknowledge(past.history.begin_append("tokens", "aa;"), "a;b;")
    past.history.acknowledge(past.history.begin_put(KEY), "b;")
    assert past.history.stale_reads == 3


def test_nodes_that_differ_are_unequal_though_nothing_is_lost(past: Past) -> None:
    past.put()
    past.history.give_up(past.history.begin_put(KEY))
    verdict = past.history.judge(everywhere({KEY: value_of(KEY, 1)}, n2={KEY: value_of(KEY, 2)}))
    assert (verdict.lost, verdict.duplicated, verdict.equal) == (0, 0, False)


def test_recovery_is_the_first_acknowledged_write_that_began_after_the_kill(past: Past) -> None:
    under_way = past.history.begin_put(KEY)
    origin = past.now
    recovery = past.history.recovery(origin)
    past.history.acknowledge(under_way, None)  # Its answer was on the way when the leader died.
    assert not recovery.done.is_set()
    past.put()
    assert recovery.done.is_set()
    assert recovery.seconds == past.now - origin


def test_every_version_of_a_key_has_a_value_of_its_own_of_1_kb() -> None:
    values = {value_of(key, version) for key in (KEY, "user0002") for version in range(1, 3000)}
    assert len(values) == 2 * 2999
    assert {len(value.encode()) for value in values} == {1024}
    assert version_of(KEY, value_of(KEY, 2999)) == 2999
    assert version_of("user0002", value_of(KEY, 1)) is None


def test_keys_are_drawn_by_a_zipfian_law() -> None:
    keys, generator = Keys(100), random.Random(1)
    drawn = Counter(keys.draw(generator) for _ in range(100_000))
    assert set(drawn) == set(keys.names)
    weights = [rank**-0.99 for rank in range(1, 101)]
    for rank in (0, 1, 9):
        assert drawn[keys.names[rank]] == pytest.approx(100_000 * weights[rank] / sum(weights), rel=0.1)


def test_percentiles_are_of_the_nearest_rank() -> None:
    assert percentile([], 50) is None
    assert percentile([1.0], 99) == 1.0
    assert percentile(list(range(1, 101)), 50) == 50
    assert percentile(list(range(1, 101)), 99) == 99


# -------------------------------------------------------------------- the load


class Shop:
    """A store in memory for the load, with one fault that the judge must find, or none."""

    def __init__(self, fault: str = "") -> None:
        self.state: dict[str, Any] = {}
        self.fault = fault
        self.calls = 0
        self.lock = threading.Lock()

    def propose(self, transition: Any, timeout: float = 0.0) -> Any:
        with self.lock:
            self.calls += 1
            key, value = transition["key"], transition["value"]
            if self.fault == "refuse" and self.calls % 10 == 0:
                raise Unavailable("no")
            if self.fault == "unknown" and self.calls % 10 == 0:
                raise OutcomeUnknown("perhaps")
            if self.fault == "failed":
                raise TransitionFailed("ValueError", "a bug")
            if transition["op"] == "put":
                if not (self.fault == "lose" and self.calls > 2000 and self.calls % 10 == 0):
                    self.state[key] = value
                return None
            twice = 2 if self.fault == "twice" else 1
            self.state[key] = self.state.get(key, "") + value * twice
            return self.state[key]

    def read(self, query: Any, timeout: float = 0.0) -> Any:
        with self.lock:
            if self.fault == "stale" and query["key"] == Keys(100).names[0]:
                return value_of(query["key"], 1)
            return self.state.get(query["key"])


def run_load(shop: Shop, operations: int = 4000) -> History:
    history = History()
    load = Load([shop], 4, history, Keys(100))
    load.insert(shop)
    load.start()
    while load.done() < operations and load.error is None:
        threading.Event().wait(0.005)
    load.stop()
    assert load.join(30)
    if load.error is not None:
        raise load.error
    return history


@pytest.mark.parametrize("fault", ["", "refuse", "unknown"])
def test_a_load_on_a_correct_store_is_found_faultless(fault: str) -> None:
    shop = Shop(fault)
    history = run_load(shop)
    verdict = history.judge(everywhere(shop.state))
    assert (verdict.lost, verdict.duplicated, verdict.equal, history.stale_reads) == (0, 0, True, 0)
    assert history.reads > 1000
    assert history.acknowledged > 1000
    assert (history.refused > 0, history.unknown > 0) == (fault == "refuse", fault == "unknown")


def test_a_store_that_executes_twice_is_found() -> None:
    shop = Shop("twice")
    assert run_load(shop).judge(everywhere(shop.state)).duplicated > 50


def test_a_store_that_answers_old_values_is_found() -> None:
    shop = Shop("stale")
    assert run_load(shop).stale_reads > 0


def test_a_store_that_loses_a_write_now_and_then_is_found() -> None:
    shop = Shop("lose")
    history = run_load(shop)
    assert history.judge(everywhere(shop.state)).lost + history.stale_reads > 0


def test_an_error_that_nobody_expected_ends_the_load_and_is_told() -> None:
    with pytest.raises(TransitionFailed, match="a bug"):
        run_load(Shop("failed"))


# -------------------------------------------------------------------- for real

PATIENCE_S = 100.0
MARK = "RAFTPLUG_DEMO_TEST"


class Demo:
    """`raftplug demo` as a process, with a directory for temporary files and a mark on everything that it starts."""

    def __init__(self, tmp_path: Path) -> None:
        self._tmp = tmp_path / "t"
        self._tmp.mkdir()
        self._errors = tmp_path / "stderr"
        self._mark = f"{MARK}={os.urandom(8).hex()}"
        self.process: subprocess.Popen[str] | None = None

    def start(self, *arguments: str) -> None:
        name, mark = self._mark.split("=")
        with self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "raftplug", "demo", "--json", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, "TMPDIR": str(self._tmp), name: mark},
            )

    def end(self) -> tuple[int, str, str]:
        """Wait for the end: exit code, stdout, stderr."""
        assert self.process is not None
        out, _ = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, out, self.errors()

    def errors(self) -> str:
        return self._errors.read_text()

    def run(self, *arguments: str) -> dict[str, Any]:
        """Run it to its end and return the object that it printed."""
        self.start(*arguments)
        code, out, errors = self.end()
        assert code == 0, f"{out}{errors}"
        assert out.count("\n") == 1
        result: dict[str, Any] = json.loads(out)
        return result

    def wait_for(self, pattern: str) -> None:
        """Wait for a line of progress."""
        assert self.process is not None
        process = self.process
        wait_until(lambda: re.search(pattern, self.errors()) or process.poll() is not None)
        assert re.search(pattern, self.errors()), self.errors()

    def processes(self) -> list[int]:
        """Everything alive that the demo started, itself among it."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                ours = entry.name.isdecimal() and self._mark.encode() in (entry / "environ").read_bytes()
                if ours and "(zombie)" not in (entry / "status").read_text():
                    found.append(int(entry.name))
            except OSError:
                continue  # It has just ended.
        return found

    def files(self) -> list[str]:
        return sorted(str(path.relative_to(self._tmp)) for path in self._tmp.rglob("*"))


def wait_until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    demo = Demo(tmp_path)
    yield demo
    for pid in demo.processes():  # Only after a failure.
        os.kill(pid, signal.SIGKILL)
    if demo.process is not None and demo.process.stdout is not None:
        demo.process.wait()
        demo.process.stdout.close()


FIELDS = (
    "nodes core server embedded acknowledged lost duplicated reads stale_reads leader_kills server_kills failover_ms "
    "throughput_per_s latency_ms replicas_equal"
)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("core_name", ["python", "cython"])
def test_the_demo_loses_nothing_and_leaves_nothing_behind(demo: Demo, core_name: str) -> None:
    load_core(core_name)  # Skips without a compiled one.
    result = demo.run("--seconds", "6", "--core", core_name)
    assert " ".join(result) == FIELDS
    assert (result["lost"], result["duplicated"], result["stale_reads"], result["replicas_equal"]) == (0, 0, 0, True)
    assert (result["nodes"], result["core"], result["embedded"]) == (3, core_name, True)
    assert (result["leader_kills"], result["server_kills"]) == (1, 1)
    assert re.fullmatch(r"(valkey|redis) [0-9.]+", result["server"])
    assert result["acknowledged"] > 1000
    assert result["reads"] > 1000
    assert result["throughput_per_s"] > 0
    assert [value > 0 for value in result["failover_ms"]] == [True]
    assert 0 < result["latency_ms"]["p50"] <= result["latency_ms"]["p99"]
    assert (demo.processes(), demo.files()) == ([], [])


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("number", "moment", "code"),
    [
        (signal.SIGINT, "three nodes", 130),
        (signal.SIGINT, "is killed with SIGKILL", 130),
        (signal.SIGTERM, "YCSB-A", 143),
    ],
)
def test_a_demo_that_is_told_to_end_leaves_nothing_behind(demo: Demo, number: int, moment: str, code: int) -> None:
    demo.start("--seconds", "12")
    demo.wait_for(moment)
    assert demo.process is not None
    demo.process.send_signal(number)
    returned, out, errors = demo.end()
    assert (returned, out) == (code, "")
    assert "Traceback" not in errors
    assert (demo.processes(), demo.files()) == ([], [])


@pytest.mark.timeout(180)
def test_a_demo_that_is_killed_leaves_nothing_behind_for_long(demo: Demo) -> None:
    demo.start("--seconds", "12")
    demo.wait_for("YCSB-A")
    assert demo.process is not None
    demo.process.kill()
    demo.end()
    wait_until(lambda: not demo.processes() and not demo.files())


@pytest.mark.timeout(180)
def test_a_server_of_the_users_is_not_killed_and_its_other_keys_stay(demo: Demo) -> None:
    with EmbeddedServer() as server:
        store = redis_py.Redis.from_url(server.url)
        store.set("mine", "1")
        store.xadd("raftplug:directory", {"r": "another cluster's"})
        pid = server.pid
        result = demo.run("--seconds", "5", "--redis", server.url)
        assert (result["embedded"], result["server_kills"], result["server"]) == (False, 0, server.version)
        assert (result["lost"], result["duplicated"], result["stale_reads"], result["replicas_equal"]) == (
            0,
            0,
            0,
            True,
        )
        assert server.pid == pid
        assert sorted(store.keys()) == [b"mine", b"raftplug:directory"]
        assert (store.get("mine"), store.xlen("raftplug:directory")) == (b"1", 1)
        store.close()
    assert (demo.processes(), demo.files()) == ([], [])


@pytest.mark.timeout(180)
def test_an_interrupted_demo_takes_its_keys_along_also_a_dead_nodes(demo: Demo) -> None:
    with EmbeddedServer() as server:
        demo.start("--seconds", "12", "--redis", server.url)
        demo.wait_for("the others go on")
        assert demo.process is not None
        demo.process.send_signal(signal.SIGINT)
        assert demo.end()[0] == 130
        with redis_py.Redis.from_url(server.url) as store:
            assert store.keys() == []
    assert (demo.processes(), demo.files()) == ([], [])


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("--seconds", "1"), 2, "--seconds must be from 5 to 86400"),
        (("--seconds", "nan"), 2, "--seconds must be from 5 to 86400"),
        (("--core", "rust"), 2, "rust"),
        (("--redis", "nats://127.0.0.1"), 2, "nats"),
        (("--redis", "redis://127.0.0.1:{port}"), 1, "connection refused"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(demo: Demo, arguments: tuple[str, ...], code: int, text: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # Not listening: nobody answers there, and nobody else takes it.
        demo.start(*(argument.format(port=unused.getsockname()[1]) for argument in arguments))
        returned, out, errors = demo.end()
    assert (returned, out) == (code, "")
    assert re.fullmatch(rf"Error: .*{re.escape(text)}.*\n", errors)
    assert (demo.processes(), demo.files()) == ([], [])
