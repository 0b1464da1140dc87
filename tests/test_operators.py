"""What operators are told: by `status`, by logs, by errors; over real servers."""

from __future__ import annotations

import ast
import contextlib
import json
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgpack
import pytest
import redis

import raftplug
import servers
from processes import LOG_LINE, Running, installed
from processes import raftplug as run_raftplug
from raftplug.cli import output
from raftplug.embedded import EmbeddedServer
from raftplug.errors import InvalidArgument, TransportError, Unavailable
from raftplug.redis_streams import RedisStreams
from raftplug.status import has_quorum

valkey_server = servers.valkey_server
redis_server = servers.redis_server
start_server = servers.start_server
http_server = servers.http_server
start_redis_cluster = servers.start_redis_cluster
wait_until = servers.wait_until
Sum = servers.Sum

KEY = "the-key-of-these-tests"
PEERS = ("n1", "n2", "n3")


Start = Callable[..., raftplug.Node]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """A function that starts the node `id` on the Redis at `url`; all end with the test."""
    with ExitStack() as stack:

        def start(id: str, url: str, peers: tuple[str, ...] = PEERS, place: str | None = None, **more: Any) -> Any:
            data_dir = tmp_path / (place or id)
            options = {"peers": peers, "bootstrap": not data_dir.exists(), "key": KEY, **more}
            node = raftplug.Node(id, redis=url, data_dir=data_dir, state_machine=Sum(), **options)
            return stack.enter_context(node)

        yield start


def test_over_a_redis_cluster_status_hears_every_node_at_once(
    start: Start, start_redis_cluster: Callable[..., servers.RedisCluster]
) -> None:
    url = start_redis_cluster(3).url
    nodes = [start(id, url) for id in PEERS]
    assert nodes[0].propose(1, timeout=30).result(timeout=31) == 1
    for _ in range(12):
        began = time.monotonic()
        with raftplug.Client(url, key=KEY) as client:
            status = client.status(timeout=10)
        assert status["quorum"] == {"needed": 2, "reachable": 3}
        assert [node["problems"] for node in status["nodes"]] == [[], [], []]
        assert time.monotonic() - began < 5, "nobody was waited for"


# -- what others write into the Redis --------------------------------------------------------------------------------

FAR = ("9999999999999-0", "18446744073709551615-0", "18446744073709551615-18446744073709551615")


@pytest.mark.parametrize("far", FAR)
def test_an_entry_of_the_far_future_stops_neither_nodes_nor_clients_and_is_told(
    start: Start, redis_server: EmbeddedServer, far: str
) -> None:
    nodes = [start(id, redis_server.url) for id in PEERS]
    assert nodes[0].propose(1, timeout=30).result(timeout=31) == 1
    with (
        redis.Redis.from_url(redis_server.url) as control,
        raftplug.Client(redis_server.url, key=KEY) as client,
    ):
        assert client.propose(1, timeout=30) == 2
        keys = list(control.scan_iter(match="raftplug:*"))
        assert len(keys) == 5, "three inboxes of nodes, one of a client, and the directory"
        for key in keys:
            control.xadd(key, {"x": "y"}, id=far)
        for count in range(3, 6):
            assert client.propose(1, timeout=30) == count
        assert nodes[1].propose(1, timeout=30).result(timeout=31) == 6

        def is_sane(key: bytes) -> bool:
            try:
                last = control.xinfo_stream(key)["last-generated-id"]
            except redis.ResponseError:
                return False  # Deleted, and not made again yet.
            return int(last.partition(b"-")[0]) < (time.time() + 3600) * 1000

        wait_until(lambda: all(map(is_sane, keys)), "every stream is made again")
        told = [text for node in nodes for text in node.status()["problems"] if "far future" in text]
        assert {text.split()[1] for text in told} >= {"inbox"}, told
        with raftplug.Client(redis_server.url, key=KEY) as late:
            assert late.read(None, timeout=30) == 6
            wait_until(lambda: late.status()["quorum"]["reachable"] == 3, "all are found")


def test_a_clock_of_ours_that_is_wrong_has_no_stream_made_again_twice(
    redis_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    streams = RedisStreams(redis_server.url, own_id="n1", cluster=bytes(16))
    streams.announce({"id": "n1", "cluster": "00" * 16})
    with redis.Redis.from_url(redis_server.url) as control:
        try:
            wait_until(lambda: control.exists("raftplug:directory"), "it is announced", lambda: streams.wait(0.01))
            first = control.xinfo_stream("raftplug:{0000000000000000/n1}:inbox")["recorded-first-entry-id"]
            until = time.monotonic() + 3
            while time.monotonic() < until:
                streams.announce({"id": "n1", "cluster": "00" * 16})
                streams.wait(0.05)
            assert control.xinfo_stream("raftplug:{0000000000000000/n1}:inbox")["recorded-first-entry-id"] == first
            assert control.xlen("raftplug:directory") > 10
        finally:
            streams.close()


def flood(control: Any, records: int) -> None:
    """Announce so many processes that are not ours, each once."""
    for begin in range(0, records, 5_000):
        with control.pipeline(transaction=False) as pipe:
            for number in range(begin, min(records, begin + 5_000)):
                record = {"id": f"x{number}", "cluster": f"{number:032x}", "groups": ["default"], "leader": {}, "at": 1}
                pipe.xadd("raftplug:directory", {"r": msgpack.packb({**record, "key": 1, "mac": "00" * 16})})
            pipe.execute()


def test_100_000_foreign_records_keep_no_client_and_no_new_node_from_the_group(
    start: Start, redis_server: EmbeddedServer
) -> None:
    nodes = [start(id, redis_server.url) for id in PEERS]
    assert nodes[0].propose(1, timeout=30).result(timeout=31) == 1
    with (
        redis.Redis.from_url(redis_server.url) as control,
        raftplug.Client(redis_server.url, key=KEY) as client,
    ):
        assert client.propose(1, timeout=30) == 2
        flood(control, 100_000)
        assert client.propose(1, timeout=30) == 3
        for _ in range(3):
            flood(control, 1_500)  # So that the nodes' own records were trimmed when a client comes.
            control.xtrim("raftplug:directory", maxlen=1_000, approximate=False)
            with raftplug.Client(redis_server.url, key=KEY) as late:
                assert late.read(None, timeout=30) == 3
                wait_until(lambda c=late: c.status()["quorum"]["reachable"] == 3, "all are found")
        assert len(client._loop.cluster.directory()) < 1_000, "what is not believed is bounded"
        flood(control, 1_500)
        with (
            pytest.raises(InvalidArgument, match="another cluster key"),
            raftplug.Client(redis_server.url, key="a-key-that-is-not-theirs") as stranger,
        ):
            stranger.read(None, timeout=60)
        joining = start("n4", redis_server.url, peers=(), bootstrap=False, join=True)
        client.change_members("add", "n4", timeout=30)
        wait_until(lambda: joining.leader is not None, "n4 follows")


def test_two_live_nodes_of_one_id_both_say_so_within_seconds(start: Start, valkey_server: EmbeddedServer) -> None:
    first = start("n1", valkey_server.url, peers=("n1",))
    assert first.propose(1, timeout=30).result(timeout=31) == 1
    second = start("n1", valkey_server.url, peers=("n1",), place="elsewhere")
    began = time.monotonic()
    for node in (first, second):
        wait_until(lambda node=node: [t for t in node.status()["problems"] if "uses the id n1" in t], "it says so")
    assert time.monotonic() - began < 5
    second.stop()
    wait_until(lambda: not first.status()["problems"], "it is over")


def test_a_node_that_is_started_again_is_taken_for_no_second_one(start: Start, valkey_server: EmbeddedServer) -> None:
    for _ in range(3):
        node = start("n1", valkey_server.url, peers=("n1",))
        assert node.propose(1, timeout=30).result(timeout=31)
        with redis.Redis.from_url(valkey_server.url) as control:
            control.client_kill_filter(_type="normal", skipme=True)
        assert node.propose(1, timeout=30).result(timeout=31)
        time.sleep(0.5)
        assert not [text for text in node.status()["problems"] if "uses the id" in text]
        node.stop()


# -- a Redis that refuses --------------------------------------------------------------------------------------------

ADMIN = "admin-s3cret"


# What makes a server refuse what nodes and clients do, and what undoes that.
REFUSALS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "full": (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0")),
    "read-only": (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE")),
    "password": (("CONFIG", "SET", "requirepass", "s3cret"), ("CONFIG", "SET", "requirepass", "")),
    "rights": (("ACL", "SETUSER", "default", "-xadd"), ("ACL", "SETUSER", "default", "+@all")),
    "clients": (("CONFIG", "SET", "maxclients", "1"), ("CONFIG", "SET", "maxclients", "1000")),
}


def restrict(control: Any, what: str) -> None:
    """Have the server refuse what nodes and clients do; all that they open from now on meets it."""
    control.execute_command(*REFUSALS[what][0])
    for kind in ("normal", "replica"):
        control.client_kill_filter(_type=kind, skipme=True)


def allow(control: Any, what: str) -> None:
    control.execute_command(*REFUSALS[what][1])


WHAT = {
    "full": "out of memory and refuses writes: raise its maxmemory, or make room",
    "read-only": "read-only replica: give the address of the primary",
    "password": "wants a password: put it into the URL",
    "rights": "may not do what raftplug needs",
    "clients": "as many clients as it allows: close some, or raise its maxclients",
}


def what_status_says(client: raftplug.Client) -> list[str]:
    """The problems of each node's row, or the error."""
    try:
        status = client.status(timeout=5)
    except Unavailable as error:
        return [str(error)]
    assert not has_quorum(status)
    return [" ".join(node["problems"]) for node in status["nodes"]]


@pytest.mark.parametrize("what", WHAT)
def test_a_redis_that_refuses_is_named_by_nodes_their_logs_and_status_with_what_to_do(
    start: Start, valkey_server: EmbeddedServer, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    nodes = [start(id, valkey_server.url) for id in PEERS]
    assert nodes[0].propose(1, timeout=30).result(timeout=31) == 1
    control = redis.Redis.from_url(valkey_server.url, single_connection_client=True)
    control.execute_command("ACL", "SETUSER", "admin", "on", f">{ADMIN}", "~*", "&*", "+@all")
    control.execute_command("AUTH", "admin", ADMIN)
    text = WHAT[what]
    with caplog.at_level(logging.INFO, "raftplug"):
        restrict(control, what)
        try:
            for node in nodes:
                wait_until(lambda node=node: [t for t in node.status()["problems"] if text in t], f"{node.id} says so")
                line = f"{node.id}: redis 127.0.0.1:{valkey_server.port}: .*{re.escape(text)}"
                wait_until(lambda line=line: [t for t in caplog.messages if re.match(line, t)], f"the log has {line}")
            with raftplug.Client(valkey_server.url, key=KEY) as client:
                assert all(text in said for said in what_status_says(client))
                with pytest.raises(Unavailable, match=re.escape(text)):
                    client.read(None, timeout=2)
        finally:
            allow(control, what)
        assert nodes[1].propose(1, timeout=30).result(timeout=31) == 2
        wait_until(lambda: not any(node.status()["problems"] for node in nodes), "it is over")
        wait_until(lambda: [t for t in caplog.messages if "it is over: redis" in t], "the log says so")
    assert len([t for t in caplog.messages if text in t]) < 60, "it is not told again and again"
    control.close()


# -- the log of a node, and its start --------------------------------------------------------------------------------


def one_node(server: EmbeddedServer | str, directory: Path, *more: str, **environment: str) -> Running:
    url = server if isinstance(server, str) else server.url
    options = ("--id", "n1", "--peers", "n1", "--machine", "kv", "--data-dir", str(directory / "n1"), "--bootstrap")
    return Running(directory / "log", "node", *options, "--redis", url, *more, **environment)


def test_every_line_of_a_nodes_log_has_time_level_and_node(valkey_server: EmbeddedServer, tmp_path: Path) -> None:
    node = one_node(valkey_server, tmp_path)
    try:
        node.wait_for_line("^n1: leads in term 1$")
        node.wait_for_line("^n1: node of group default, ")
    finally:
        assert node.end(signal.SIGTERM) == 0
    lines = node.stderr().splitlines()
    assert len(lines) >= 4
    assert all(re.match(LOG_LINE.pattern + "n1: ", line) for line in lines), lines
    assert not any("n1: n1: " in line for line in lines)
    times = [line.split(" ")[0] for line in lines]
    written = datetime.fromisoformat(times[0])
    assert abs((datetime.now(UTC) - written).total_seconds()) < 120
    assert node.stdout() == ""


def test_a_verbose_log_in_json_is_one_object_a_line_to_the_end(valkey_server: EmbeddedServer, tmp_path: Path) -> None:
    node = one_node(valkey_server, tmp_path, "-v", "--log-format", "json")
    try:
        node.wait_for_line("leads in term 1")
        second = one_node(valkey_server, tmp_path, "--log-format", "json")
        assert second.wait() == 1, "its data directory is in use"
    finally:
        assert node.end(signal.SIGTERM) == 0
    for process in (node, second):
        lines = [json.loads(line) for line in process.stderr().splitlines()]
        assert all(list(line) == ["time", "level", "node", "logger", "message"] for line in lines)
        assert {line["node"] for line in lines} == {"n1"}
    assert (lines[-1]["level"], "in use" in lines[-1]["message"]) == ("CRITICAL", True)
    lines = [json.loads(line) for line in node.stderr().splitlines()]
    assert {"DEBUG", "INFO"} <= {line["level"] for line in lines}
    assert any("election_timeout_ms 500" in line["message"] for line in lines)
    assert lines[-1]["message"] == "stopped"


def test_what_a_plugin_logs_has_the_same_format(valkey_server: EmbeddedServer, tmp_path: Path) -> None:
    source = (
        "import logging, raftplug\n"
        "logging.getLogger('noisy').warning('two\\nlines')\n"
        "class Noisy(raftplug.StateMachine):\n"
        "    def apply_transition(self, transition): ...\n"
        "@raftplug.hookimpl\n"
        "def raftplug_state_machines(): return {'noisy': Noisy}\n"
    )
    node = one_node(
        valkey_server, tmp_path, "--machine", "noisy", "--log-format", "json",
        PYTHONPATH=installed(tmp_path, "noisy", source),
    )  # fmt: skip
    try:
        node.wait_for_line("leads in term")
    finally:
        node.end(signal.SIGTERM)
    lines = [json.loads(line) for line in node.stderr().splitlines()]
    assert {"logger": "noisy", "level": "WARNING", "message": "two lines"}.items() <= lines[0].items()


def test_a_node_waits_for_its_redis_at_the_start_and_says_so(valkey_server: EmbeddedServer, tmp_path: Path) -> None:
    valkey_server.kill()
    node = one_node(valkey_server, tmp_path)
    try:
        node.wait_for_line("^n1: waits for its Redis: redis 127.0.0.1:.*connection refused")
        time.sleep(1.0)
        assert node.process.poll() is None
        assert not (tmp_path / "n1").exists(), "a start that has not happened writes nothing"
        valkey_server.start()
        node.wait_for_line("^n1: leads in term 1$")
        assert len(re.findall("waits for its Redis", node.stderr())) == 1
    finally:
        assert node.end(signal.SIGTERM) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_node_that_waits_for_its_redis_can_be_stopped(tmp_path: Path, number: signal.Signals) -> None:
    node = one_node("redis://127.0.0.1:1", tmp_path)
    try:
        node.wait_for_line("waits for its Redis")
    finally:
        assert node.end(number) == 0
    assert node.stderr().splitlines()[-1].endswith(" INFO n1: stopped")


def test_a_node_does_not_wait_for_what_only_a_human_can_mend(
    start_server: Callable[..., EmbeddedServer], tmp_path: Path, http_server: servers.TcpServer
) -> None:
    locked = start_server("--requirepass", "s3cret")
    for url, text in (
        (locked.url, "wants a password"),
        (locked.url.replace("//", "//:wr0ng@"), "refuses the user name or password"),
        (f"redis://127.0.0.1:{http_server.port}", "is no Redis"),
    ):
        node = one_node(url, tmp_path)
        try:
            assert node.wait() == 1
        finally:
            node.end()
        assert re.search(f"^Error: redis 127.0.0.1:.*{text}", node.stderr(), re.MULTILINE), node.stderr()


def test_the_start_of_a_node_in_a_program_raises_at_once_and_says_whether_to_wait(tmp_path: Path) -> None:
    options: Any = {"data_dir": tmp_path / "n1", "state_machine": Sum(), "bootstrap": True}
    node = raftplug.Node("n1", peers=["n1"], redis="redis://127.0.0.1:1", **options)
    for _ in range(2):  # It may be tried again.
        with pytest.raises(TransportError, match="connection refused") as caught:
            node.start()
        assert caught.value.may_pass
    assert list(tmp_path.iterdir()) == []


# -- arguments and options -------------------------------------------------------------------------------------------

SOURCE = Path(raftplug.__file__).parent


def texts(path: Path) -> Iterator[str]:
    """The strings in a file's code, less its docstrings."""
    tree = ast.parse(path.read_text())
    documentation = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and isinstance(node.body[0], ast.Expr)
    }
    alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation | alone:
            yield node.value


def test_no_error_of_the_library_names_an_option() -> None:
    programs = {"cli", "benchmarks", "testing", "embedded.py"}
    files = [path for path in SOURCE.rglob("*.py") if path.relative_to(SOURCE).parts[0] not in programs]
    assert len(files) > 40
    found = [(path.name, text) for path in files for text in texts(path) if re.search(r"(^|\s)--[a-z]", text)]
    assert found == []


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (
            ("node", "--id", "n1", "--bootstrap", "--join", "--peers", "n1"),
            "give --bootstrap to found a cluster, or --join",
        ),
        (("node", "--id", "n1", "--bootstrap", "--peers", "n2"), "'n1' itself is missing in --peers: name every"),
        (("node", "--id", "n1", "--bootstrap", "--peers", "n1,n1"), "an id stands twice in --peers"),
        (
            ("node", "--id", "n1"),
            "is new: start with --bootstrap and --peers to found a cluster, or with --join to become",
        ),
        (("status", "--redis", "redis://192.0.2.1"), "in RAFTPLUG_CLUSTER_KEY or --key-file; make one with"),
        (("status", "--timeout", "0.5"), "is one running, with this --group and --prefix?"),
    ],
)
def test_an_error_of_a_command_names_its_options(
    valkey_server: EmbeddedServer, tmp_path: Path, arguments: tuple[str, ...], option: str
) -> None:
    more = () if "--redis" in arguments else ("--redis", valkey_server.url)
    if arguments[0] == "node":
        more += ("--machine", "kv", "--data-dir", str(tmp_path / "n1"))
    done = run_raftplug(*arguments, *more)
    assert done.returncode in (1, 2)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert option in line
    assert not re.search(r"[a-z]=", line)


def test_a_backup_over_a_file_names_the_option_and_the_argument(
    start: Start, valkey_server: EmbeddedServer, tmp_path: Path
) -> None:
    start("n1", valkey_server.url, peers=("n1",)).propose(1, timeout=30).result(timeout=31)
    (tmp_path / "file").write_text("mine")
    with raftplug.Client(valkey_server.url, key=KEY) as client, pytest.raises(InvalidArgument, match="overwrite=True"):
        client.backup(tmp_path / "file")
    done = run_raftplug("backup", str(tmp_path / "file"), "--redis", valkey_server.url, RAFTPLUG_CLUSTER_KEY=KEY)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "or --force" in done.stderr
    assert (tmp_path / "file").read_text() == "mine"


def test_what_a_state_machine_said_keeps_its_words() -> None:
    assert output.with_options("give key= or bootstrap=True: or data_dir=, and group=?") == (
        "give --key-file or --bootstrap: or --data-dir, and --group?"
    )
    assert output.with_options("monkey= my_id= key=5 id=x bootstrap=Truely") == (
        "monkey= my_id= key=5 id=x bootstrap=Truely"
    )


# -- the documentation, as it stands ---------------------------------------------------------------------------------

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/plugins.md", "docs/groups.md", "plugins/raftplug-kv/README.md")


def test_the_start_of_three_nodes_in_the_readme_can_be_pasted(valkey_server: EmbeddedServer, tmp_path: Path) -> None:
    block = next(each for each in (ROOT / "README.md").read_text().split("```") if "for n in n1 n2 n3" in each)
    lines = block.replace("redis://localhost:6379", valkey_server.url).strip().splitlines()
    pasted = lines[: next(at for at, line in enumerate(lines) if "members replace" in line)]
    assert len(pasted) >= 7
    command, here = tmp_path / "bin" / "raftplug", tmp_path / "here"
    command.parent.mkdir()
    here.mkdir()
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m raftplug "$@"\n')
    command.chmod(0o755)
    script = "\n".join(["trap 'kill $(jobs -p); wait' EXIT", *pasted[:2], "set -e", *pasted[2:]])
    environment = {**os.environ, "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}"}
    shell = subprocess.Popen(
        ["bash", "-c", script],
        cwd=here,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        said, errors = shell.communicate(timeout=100)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGKILL)  # What it started is in a session of its own.
    assert shell.returncode == 0, (said, errors)
    words = said.splitlines()
    assert words[:2] == ["null", "1"]
    assert any(line.startswith("group kv: leader ") for line in words)
    assert sorted(path.name for path in here.iterdir()) == ["kv-n1", "kv-n2", "kv-n3"]


def test_no_two_examples_of_the_documentation_share_a_data_directory() -> None:
    directories: list[str] = []
    for page in PAGES:
        text = (ROOT / page).read_text()
        directories += re.findall(r"raftplug node [^\n]*--data-dir (\S+)", text)
        directories += [found for found in re.findall(r'data_dir="([^"]+)"', text) if page == "README.md"]
    assert len(directories) >= 5
    assert len(set(directories)) == len(directories), directories
