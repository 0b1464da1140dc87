"""The command line, as real processes on a real server."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis

sys.path.insert(0, str(Path(__file__).parent))

from processes import LOG_LINE, PEERS, Cluster, Running, raftplug, refused, succeeded, wait_until
from processes import cluster as cluster
from processes import server as server
from raftplug import Client
from raftplug.cli import built_in_commands, main
from raftplug.embedded import EmbeddedServer


@pytest.fixture
def three(cluster: Cluster) -> Cluster:
    """Three nodes that have just been bootstrapped."""
    cluster.start(*PEERS, bootstrap=True)
    return cluster


@pytest.fixture
def one(cluster: Cluster, tmp_path: Path) -> Iterator[tuple[str, ...]]:
    """A group "g" of one node, which is enough where nothing is killed: the options that name it."""
    options = ("--redis", cluster.server.url, "--group", "g")
    where = ("--data-dir", str(tmp_path / "solo"), "--machine", "kv", "--bootstrap", "--peers", "n1")
    running = Running(tmp_path / "solo.log", "node", "--id", "n1", *where, *options)
    try:
        running.wait_for_line("leads")
        yield options
    finally:
        running.end()


def put(key: str, value: Any) -> str:
    return json.dumps({"op": "put", "key": key, "value": value})


def append(key: str, value: str) -> str:
    return json.dumps({"op": "append", "key": key, "value": value})


def get(key: str) -> str:
    return json.dumps({"op": "get", "key": key})


def read(options: tuple[str, ...], key: str) -> Any:
    return json.loads(succeeded(raftplug("read", *options, get(key))).stdout)


# -- the whole story -----------------------------------------------------------------------------------------------


@pytest.mark.timeout(240)
def test_what_was_acknowledged_survives_the_leader_and_its_return(cluster: Cluster, core: SimpleNamespace) -> None:
    cluster.start(*PEERS, bootstrap=True, core=core.name)
    assert cluster.propose({"op": "put", "key": "alice", "value": [1, {"deep": None}]}) is None
    assert cluster.propose({"op": "append", "key": "log", "value": "a"}) == "a"
    assert cluster.read("alice") == [1, {"deep": None}]
    first = cluster.leader()

    cluster.kill(first)
    assert cluster.propose({"op": "append", "key": "log", "value": "b"}) == "ab"
    second = cluster.leader()
    assert second != first

    cluster.start(first, core=core.name)
    assert cluster.propose({"op": "cas", "key": "log", "expect": "ab", "value": "abc"}) is True
    assert cluster.propose({"op": "cas", "key": "log", "expect": "ab", "value": "x"}) is False
    assert cluster.read("log") == "abc"

    def all_caught_up() -> bool:
        status = cluster.status()
        applied = [node["applied"] for node in status["nodes"]]
        return status["quorum"] == {"needed": 2, "reachable": 3} and None not in applied and len(set(applied)) == 1

    wait_until(all_caught_up, "three nodes with the same applied index")
    for node in cluster.nodes.values():
        assert node.end(signal.SIGTERM) == 0, node.stderr()


@pytest.mark.timeout(240)
def test_everything_acknowledged_is_there_after_all_nodes_were_killed(three: Cluster) -> None:
    for number in range(3):
        three.propose({"op": "append", "key": "log", "value": str(number)})
    three.kill(*PEERS)
    three.start(*PEERS)
    assert three.read("log") == "012"


# -- node ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_a_node_cleanly(cluster: Cluster, number: signal.Signals) -> None:
    cluster.start("n1", bootstrap=True)
    node = cluster.nodes["n1"]
    assert node.end(number) == 0
    assert re.fullmatch(rf"{LOG_LINE.pattern}n1: stopped", node.stderr().splitlines()[-1])
    assert "Traceback" not in node.stderr()
    assert node.stdout() == ""


def test_a_node_tells_which_core_it_runs_and_who_leads(three: Cluster) -> None:
    leader = three.leader()
    three.nodes[leader].wait_for_line(rf"^{leader}: leads in term \d+$")
    for name in set(PEERS) - {leader}:
        three.nodes[name].wait_for_line(rf"^{name}: follows {leader} in term \d+$")
    ready = three.nodes[leader].wait_for_line("node of group")
    assert re.fullmatch(rf"{leader}: node of group g, (cython|python) core, .+", ready)


def test_peers_that_differ_from_the_stored_membership_are_warned_of(cluster: Cluster) -> None:
    cluster.start("n1", bootstrap=True)
    cluster.kill("n1")
    where = ("--id", "n1", "--machine", "kv", "--data-dir", str(cluster.directory / "n1"))
    node = cluster.begin("node", *where, "--peers", "n2,n9")
    node.wait_for_line("^n1: .*differs from the stored membership")
    assert re.search(r" WARNING n1: .*membership", node.stderr())
    node.wait_for_line("node of group")


def test_a_second_process_on_a_data_directory_is_refused(cluster: Cluster) -> None:
    cluster.start("n1", bootstrap=True)
    where = ("--id", "n1", "--machine", "kv", "--data-dir", str(cluster.directory / "n1"))
    refused(cluster.run("node", *where), 1, "n1")


def test_a_node_warns_of_a_server_that_evicts_and_goes_on(tmp_path: Path) -> None:
    with EmbeddedServer(arguments=("--maxmemory-policy", "allkeys-lru")) as server:
        cluster = Cluster(server, tmp_path)
        try:
            cluster.start("n1", bootstrap=True)
            cluster.nodes["n1"].wait_for_line("^n1: .*noeviction")
            assert re.search(r" WARNING n1: .*noeviction", cluster.nodes["n1"].stderr())
        finally:
            cluster.end()


def test_a_node_that_stops_by_itself_says_why_in_one_line(server: EmbeddedServer, tmp_path: Path) -> None:
    plugin = tmp_path / "plugin"  # Installed by being on the path: a module, and the metadata that names it.
    metadata = plugin / "broken-1.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text("[raftplug]\nbroken = broken_machine\n")
    (plugin / "broken_machine.py").write_text(
        "import raftplug\n"
        "class Broken(raftplug.StateMachine):\n"
        "    def apply_transition(self, transition):\n"
        "        raise OSError(19, 'no such device')\n"
        "@raftplug.hookimpl\n"
        "def raftplug_state_machines():\n"
        "    return {'broken': Broken}\n"
    )
    path = os.pathsep.join([str(plugin), os.environ.get("PYTHONPATH", "")])
    options = ("--redis", server.url, "--group", "g")
    where = ("--data-dir", str(tmp_path / "n1"), "--machine", "broken", "--bootstrap", "--peers", "n1")
    node = Running(tmp_path / "log", "node", "--id", "n1", *where, *options, PYTHONPATH=path)
    try:
        node.wait_for_line("leads")
        refused(raftplug("propose", *options, "1", "--timeout", "3"), 1, "may have been executed")
        assert node.wait() == 1
    finally:
        node.end()
    lines = node.stderr().splitlines()
    assert [line for line in lines if "no such device" in line] == [
        "Error: the node stopped: OSError: [Errno 19] no such device (group g: Broken raised it here, and perhaps not "
        "on the other replicas, so this one stops: start this node again once the cause is gone)"
    ], lines
    assert "Traceback" not in node.stderr()


# -- propose and read ------------------------------------------------------------------------------------------------


def test_results_are_json_and_wrapped_when_an_object_is_asked_for(one: tuple[str, ...]) -> None:
    assert succeeded(raftplug("propose", *one, append("k", "é"))).stdout == '"\\u00e9"\n'
    assert json.loads(succeeded(raftplug("propose", *one, "--json", append("k", "!"))).stdout) == {"result": "é!"}
    assert json.loads(succeeded(raftplug("read", *one, "--json", get("k"))).stdout) == {"result": "é!"}
    assert read(one, "nothing") is None


def test_bytes_in_a_result_are_shown_in_base64(one: tuple[str, ...]) -> None:
    with Client(one[1], "g") as client:
        client.propose({"op": "put", "key": "k", "value": [b"\x00\xff"]}, timeout=30)
    assert read(one, "k") == [{"base64": "AP8="}]


def test_what_the_machine_raises_is_the_result(one: tuple[str, ...]) -> None:
    refused(raftplug("propose", *one, '{"op":"what"}'), 1, "ValueError", "op must be one of")
    refused(raftplug("read", *one, '{"op":"what"}'), 1, "ValueError", "op must be one of")


def test_a_transition_in_a_named_session_is_executed_once(one: tuple[str, ...]) -> None:
    for _ in range(2):
        succeeded(raftplug("propose", *one, "--session", "s", append("k", "x")))
    assert read(one, "k") == "x"


def test_a_redis_url_may_come_from_the_environment(one: tuple[str, ...]) -> None:
    succeeded(raftplug("propose", *one[2:], put("k", 1), RAFTPLUG_REDIS=one[1]))


# -- propose - -------------------------------------------------------------------------------------------------------


def test_a_load_counts_blank_lines_and_proposes_none(one: tuple[str, ...]) -> None:
    lines = f"{append('k', 'a')}\n\n  \r\n{append('k', 'b')}"
    done = succeeded(raftplug("propose", *one, "--window", "1", "--json", "-", stdin=lines))
    report = json.loads(done.stdout)
    assert report.pop("session").startswith("load-")
    assert report == {"acknowledged": 2, "lines": 4, "failed_line": None, "error": None}
    assert read(one, "k") == "ab"
    assert succeeded(raftplug("propose", *one, "-")).stdout.startswith("0 acknowledged, 0 lines")


def test_a_load_from_a_pipe_stops_at_a_bad_line_and_goes_on_once_it_is_corrected(one: tuple[str, ...]) -> None:
    good = [append("k", f"{number},") for number in range(5)]
    done = raftplug("propose", *one, "--json", "--window", "1", "-", stdin="\n".join([*good[:3], '{"op":', *good[4:]]))
    line = refused(done, 2, "line 4", "not JSON", "column 7", "--session load-")
    report = json.loads(done.stdout)
    assert (report["acknowledged"], report["lines"], report["failed_line"]) == (3, 4, 4)
    session = re.search(r"--session (load-\w+)", line)
    assert session
    assert session[1] == report["session"]
    again = ("--window", "1", "--json", "--session", session[1], "-")
    done = succeeded(raftplug("propose", *one, *again, stdin="\n".join(good)))
    assert json.loads(done.stdout)["acknowledged"] == 5
    assert read(one, "k") == "0,1,2,3,4,"


@pytest.mark.parametrize(
    "bad", ["{", "NaN", "1e999", '"' + "x" * (1 << 20) + '"', str(1 << 70), "9" * 5000, "[" * 5000]
)
def test_a_load_from_a_file_with_a_bad_line_proposes_nothing(tmp_path: Path, bad: str) -> None:
    path = tmp_path / "lines"
    path.write_text(f"{put('k', 1)}\n{bad}\n")
    with path.open() as file:
        done = subprocess.run(  # The address leads nowhere: it must not even be asked.
            [sys.executable, "-m", "raftplug", "propose", "--redis", "redis://127.0.0.1:1", "-"],
            stdin=file,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    refused(done, 2, "line 2", "nothing was proposed")


def test_a_line_that_the_machine_refuses_is_emptied_and_the_load_goes_on(one: tuple[str, ...]) -> None:
    lines = [append("k", "a"), '{"op":"what"}', append("k", "b")]
    load = ("propose", *one, "--session", "s", "--window", "1", "-")
    refused(raftplug(*load, stdin="\n".join(lines)), 1, "line 2", "ValueError", "empty that line")
    lines[1] = ""
    succeeded(raftplug(*load, stdin="\n".join(lines)))
    assert read(one, "k") == "ab"


def feed(load: Any, lines: list[str]) -> None:
    load.process.stdin.write("".join(f"{line}\n" for line in lines).encode())
    load.process.stdin.flush()


def numbers(client: Client, keys: int) -> list[int]:
    values = [client.read({"op": "get", "key": f"k{key}"}, timeout=30) or "" for key in range(keys)]
    return sorted(int(number) for value in values for number in value.split(",") if number)


@pytest.mark.timeout(300)
def test_a_load_whose_leader_is_killed_executes_each_line_once_however_often_it_is_run(cluster: Cluster) -> None:
    for name, core in zip(PEERS, ("auto", "python", "auto"), strict=True):  # A cluster may mix cores.
        cluster.start(name, bootstrap=True, core=core)
    count, keys = 2000, 10
    lines = [append(f"k{number % keys}", f"{number},") for number in range(count)]
    with Client(cluster.server.url, "g") as client:
        load = cluster.begin("propose", "--session", "load", "--json", "-", stdin=subprocess.PIPE)
        feed(load, lines[: count // 2])
        wait_until(lambda: numbers(client, keys), "the first lines to be executed")
        cluster.kill(cluster.leader())
        feed(load, lines[count // 2 :])
        load.process.stdin.close()
        assert load.wait() == 0, load.stderr()
        report = json.loads(load.stdout())
        expected = {"acknowledged": count, "lines": count, "failed_line": None, "error": None, "session": "load"}
        assert report == expected
        assert numbers(client, keys) == list(range(count))

        again = succeeded(cluster.run("propose", "--session", "load", "--json", "-", stdin="\n".join(lines)))
        assert json.loads(again.stdout) == expected
        assert numbers(client, keys) == list(range(count))


@pytest.mark.timeout(300)
def test_a_load_that_lost_its_quorum_says_which_line_and_is_completed_by_a_second_run(three: Cluster) -> None:
    count, keys = 500, 5
    lines = [append(f"k{number % keys}", f"{number},") for number in range(count)]
    with Client(three.server.url, "g") as client:
        load = three.begin("propose", "--timeout", "3", "--json", "-", stdin=subprocess.PIPE)
        feed(load, lines[: count // 2])
        wait_until(lambda: numbers(client, keys), "the first lines to be executed")
        leader = three.leader()
        dead = [leader, next(name for name in PEERS if name != leader)]
        three.kill(*dead)
        feed(load, lines[count // 2 :])
        load.process.stdin.close()
        assert load.wait() == 1, load.stderr()
        report = json.loads(load.stdout())
        assert report["failed_line"] > count // 5
        (line,) = load.stderr().splitlines()
        assert f"line {report['failed_line']}: " in line
        assert f"--session {report['session']}" in line

        three.start(*dead)
        again = ("--session", report["session"], "--json", "-")
        done = succeeded(three.run("propose", *again, stdin="\n".join(lines)))
        assert json.loads(done.stdout)["acknowledged"] == count
        assert numbers(client, keys) == list(range(count))


def test_a_load_shows_its_progress_on_a_terminal_and_only_there(one: tuple[str, ...]) -> None:
    master, slave = pty.openpty()
    try:
        lines = "".join(f"{put('k', number)}\n" for number in range(300))
        done = subprocess.run(
            [sys.executable, "-m", "raftplug", "propose", *one, "--json", "-"],
            input=lines.encode(),
            stdout=subprocess.PIPE,
            stderr=slave,
            timeout=60,
            check=False,
        )
        os.close(slave)
        slave = -1
        shown = os.read(master, 1 << 16)
    finally:
        os.close(master)
        if slave >= 0:
            os.close(slave)
    assert done.returncode == 0
    assert json.loads(done.stdout)["acknowledged"] == 300
    assert b"acknowledged" in shown


def test_an_interrupted_load_says_how_far_it_came_and_how_to_go_on(cluster: Cluster, one: tuple[str, ...]) -> None:
    load = cluster.begin("propose", "--session", "s", "--json", "-", stdin=subprocess.PIPE)
    feed(load, [append("k", "a")])
    wait_until(lambda: read(one, "k") == "a", "the line to be executed")
    assert load.end(signal.SIGINT) == 130
    report = json.loads(load.stdout())
    assert (report["error"], report["lines"]) == ("interrupted", 1)
    (line,) = load.stderr().splitlines()
    assert "--session s:" in line


def test_a_load_without_standard_input_is_refused() -> None:
    command = f"{shlex.quote(sys.executable)} -m raftplug propose --redis redis://127.0.0.1:1 - <&-"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60, check=False)
    refused(done, 2, "standard input")


# -- status ----------------------------------------------------------------------------------------------------------

STATUS = ["group", "leader", "term", "quorum", "nodes"]
NODE = ["id", "role", "term", "last", "commit", "applied", "lag", "contact_ms", "core", "version", "problems"]


@pytest.mark.timeout(240)
def test_status_tells_of_a_healthy_a_degraded_and_a_leaderless_group(three: Cluster) -> None:
    leader = three.leader()

    def healthy() -> bool:
        return all(node["role"] for node in three.status()["nodes"])

    wait_until(healthy, "three nodes in status")
    status = three.status()
    assert list(status) == STATUS
    assert all(list(node) == NODE for node in status["nodes"])
    assert [node["id"] for node in status["nodes"]] == list(PEERS)
    assert status["quorum"] == {"needed": 2, "reachable": 3}
    text = succeeded(three.run("status")).stdout.splitlines()
    assert text[0] == f"group g: leader {leader}, term {status['term']}, quorum 2, 3 of 3 up, survives 1 more failure"
    assert text[1].split() == [name.upper() for name in NODE]
    assert len(text) == 5

    other = next(name for name in PEERS if name != leader)
    three.kill(other)
    wait_until(lambda: three.status()["quorum"]["reachable"] == 2, "the dead node to be missed")
    assert "survives no more failure" in succeeded(three.run("status")).stdout
    row = next(node for node in three.status()["nodes"] if node["id"] == other)
    assert {row[name] for name in ("role", "term", "last", "commit", "applied", "lag")} == {None}

    three.kill(leader)

    def leaderless() -> bool:
        status = three.status()
        return status["leader"] is None and status["quorum"] == {"needed": 2, "reachable": 1}

    wait_until(leaderless, "the last node to notice")
    done = three.run("status")
    assert done.returncode == 1
    text = done.stdout.splitlines()
    assert text[0].startswith("group g: waiting for quorum: 1 of 3 up")
    assert len(text) == 5

    three.kill(*three.nodes)
    done = three.run("status")
    assert done.returncode == 1
    text = done.stdout.splitlines()
    assert text[0] == "group g: waiting for quorum: 0 of 3 up"


def test_status_of_a_group_that_nobody_carries_is_an_error(server: EmbeddedServer) -> None:
    refused(raftplug("status", "--redis", server.url, "--group", "nobody"), 1, "nobody")


def test_status_of_an_unreachable_redis_is_an_error_in_time() -> None:
    refused(raftplug("status", "--redis", "redis://127.0.0.1:1"), 1, "127.0.0.1:1")


# -- doctor ----------------------------------------------------------------------------------------------------------


def doctor(*arguments: str, **environment: str) -> tuple[int, dict[str, dict[str, Any]]]:
    done = raftplug("doctor", "--json", *arguments, **environment)
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["ok"] == (done.returncode == 0)
    return done.returncode, {check["check"]: check for check in report["checks"]}


def test_doctor_checks_server_disk_and_core_and_leaves_nothing_behind(server: EmbeddedServer, tmp_path: Path) -> None:
    code, checks = doctor("--redis", server.url, "--data-dir", str(tmp_path / "new" / "n1"), RAFTPLUG_CORE="python")
    assert code == 0
    assert checks["redis"]["result"] == "ok"
    assert checks["redis version"]["found"] == server.version
    assert checks["maxmemory-policy"]["found"] == "noeviction"
    assert "median" in checks["fsync"]["found"]
    assert checks["core"]["found"].startswith("python: RAFTPLUG_CORE=python")
    assert list(tmp_path.iterdir()) == []
    text = succeeded(raftplug("doctor", "--redis", server.url)).stdout
    assert text.splitlines()[0].split() == ["CHECK", "RESULT", "FOUND", "ADVICE"]


def test_doctor_warns_of_a_server_that_evicts(tmp_path: Path) -> None:
    with EmbeddedServer(arguments=("--maxmemory-policy", "allkeys-lru")) as server:
        code, checks = doctor("--redis", server.url)
    assert code == 1
    assert checks["maxmemory-policy"]["result"] == "warn"
    assert "noeviction" in checks["maxmemory-policy"]["advice"]


def test_doctor_exits_with_1_on_anything_that_needs_action_and_only_then(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    code, checks = doctor(RAFTPLUG_CORE="python")
    assert code == 0, "what was not asked for is a note"
    assert checks["redis"]["result"] == checks["data directory"]["result"] == "note"
    (tmp_path / "site" / "bad-1.0.dist-info").mkdir(parents=True)
    (tmp_path / "site" / "bad-1.0.dist-info" / "entry_points.txt").write_bytes(b"\xff")
    path = os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])
    code, checks = doctor("--redis", server.url, PYTHONPATH=path)
    assert (code, checks["plugins"]["result"]) == (1, "warn")
    with redis.Redis(port=server.port) as control:
        control.config_set("maxmemory", "1")
    code, checks = doctor("--redis", server.url)
    assert (code, checks["redis"]["result"]) == (1, "warn")
    assert "out of memory" in checks["redis"]["found"]


@pytest.mark.parametrize("name", ["node", "status", "doctor"])
def test_the_exit_codes_of_a_command_are_in_its_help(name: str) -> None:
    command = main.get_command(main.make_context("raftplug", ["plugins"], resilient_parsing=True), name)
    assert command is not None
    assert re.search(r"Exit codes: 0 .*; 1 .*; 2 ", command.help or "")


def test_doctor_fails_where_a_node_would(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, checks = doctor("--redis", "redis://127.0.0.1:1", "--data-dir", str(tmp_path / "file"))
    assert code == 1
    assert checks["redis"]["result"] == checks["data directory"]["result"] == "FAIL"


# -- help ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["node", "propose", "read", "status", "doctor"])
def test_the_help_of_a_command_has_an_example(name: str) -> None:
    assert name in built_in_commands()
    command = main.get_command(main.make_context("raftplug", ["plugins"], resilient_parsing=True), name)
    assert command is not None
    assert re.search(rf"Examples?.*\n *raftplug {name} --", command.help or "", re.DOTALL)
