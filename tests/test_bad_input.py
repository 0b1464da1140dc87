"""Bad input: one line on stderr that says what and what to do, exit code 1 or 2, no traceback, nothing half done."""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import redis

sys.path.insert(0, str(Path(__file__).parent))

from processes import Cluster, Running, raftplug, refused, succeeded
from processes import cluster as cluster
from processes import server as server
from raftplug.embedded import EmbeddedServer
from raftplug.frames import cluster_uuid

NOWHERE = "redis://127.0.0.1:1"
CLIENTS = [
    ("propose", '{"op":"delete","key":"k"}', "--timeout", "2"),
    ("read", '{"op":"get","key":"k"}', "--timeout", "2"),
    ("status", "--timeout", "2"),
]


def node(directory: Path, url: str, *more: str, id: str = "n1", peers: str = "n1", group: str = "g") -> Any:
    """Run a node that is to be bootstrapped, unless `more` says otherwise, and must refuse."""
    bootstrap = () if "--used" in more else ("--bootstrap",)
    more = tuple(word for word in more if word != "--used")
    machine = () if "--machine" in more else ("--machine", "kv")
    options = ("--id", id, "--peers", peers, "--redis", url, "--group", group, "--data-dir", str(directory))
    return raftplug("node", *options, *machine, *bootstrap, *more)


def database(directory: Path) -> Path:
    """The file that holds a node's durable state."""
    (path,) = directory.glob("*.sqlite3")
    return path


def rows(directory: Path) -> list[str]:
    """Everything in a node's database."""
    with closing(sqlite3.connect(database(directory))) as connection:
        return list(connection.iterdump())


@pytest.fixture
def used(cluster: Cluster) -> Path:
    """The data directory of n1 of group "g", stopped."""
    options = (
        "--id",
        "n1",
        "--peers",
        "n1",
        "--bootstrap",
        "--machine",
        "kv",
        "--data-dir",
        str(cluster.directory / "n1"),
    )
    running = cluster.begin("node", *options)
    running.wait_for_line("leads")
    assert running.end(15) == 0
    return cluster.directory / "n1"


@pytest.fixture
def http_server() -> Iterator[str]:
    """Something that listens and is no Redis."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"redis://127.0.0.1:{http.server_port}"
        finally:
            http.shutdown()
            thread.join()


# -- what a node is told ---------------------------------------------------------------------------------------------


def test_an_unknown_machine_is_named_with_those_that_there_are(server: EmbeddedServer, tmp_path: Path) -> None:
    refused(node(tmp_path / "n1", server.url, "--machine", "kvs"), 2, "'kvs'", "did you mean 'kv'?", "installed: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("peers", ["n2,n3", "n1,n1", "n1,,n2", "n1,n/2", ""])
def test_peers_that_cannot_be_are_refused(server: EmbeddedServer, tmp_path: Path, peers: str) -> None:
    line = refused(node(tmp_path / "n1", server.url, peers=peers), 2)
    if peers == "n2,n3":
        assert "'n1' itself is missing" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("option", "value"), [("--id", "~n"), ("--group", "a b"), ("--prefix", "a{b"), ("--core", "c")]
)
def test_names_that_cannot_be_are_refused(server: EmbeddedServer, tmp_path: Path, option: str, value: str) -> None:
    refused(node(tmp_path / "n1", server.url, option, value), 2, value)
    assert list(tmp_path.iterdir()) == []


def test_a_new_directory_without_bootstrap_is_refused_and_not_made(server: EmbeddedServer, tmp_path: Path) -> None:
    refused(node(tmp_path / "n1", server.url, "--used"), 1, "n1", "--bootstrap")
    assert list(tmp_path.iterdir()) == []


def test_a_data_directory_that_is_a_file_is_refused(server: EmbeddedServer, tmp_path: Path) -> None:
    (tmp_path / "n1").write_text("mine")
    refused(node(tmp_path / "n1", server.url), 2, "n1")
    assert (tmp_path / "n1").read_text() == "mine"


@pytest.mark.parametrize("missing", ["--id", "--redis", "--machine", "--data-dir"])
def test_a_missing_option_is_named(missing: str, tmp_path: Path) -> None:
    given = {"--id": "n1", "--redis": NOWHERE, "--machine": "kv", "--data-dir": str(tmp_path / "n1")}
    del given[missing]
    refused(raftplug("node", *[word for pair in given.items() for word in pair]), 2, missing)
    assert list(tmp_path.iterdir()) == []


# -- the data directory ----------------------------------------------------------------------------------------------


def test_a_data_directory_of_another_node_is_refused_unchanged(server: EmbeddedServer, used: Path) -> None:
    before = rows(used)
    refused(node(used, server.url, "--used", id="n2"), 1, "'n1'", "'n2'")
    assert rows(used) == before


def test_a_used_directory_with_bootstrap_is_refused_unchanged(server: EmbeddedServer, used: Path) -> None:
    before = rows(used)
    refused(node(used, server.url), 1, "without --bootstrap")
    assert rows(used) == before


def test_a_directory_without_the_group_is_refused(server: EmbeddedServer, used: Path) -> None:
    refused(node(used, server.url, "--used", group="h"), 2, "'h'", "it carries: g")


@pytest.mark.parametrize("damage", ["header", "cut", "empty", "garbage", "bit"])
def test_a_corrupt_database_is_named_and_left_alone(server: EmbeddedServer, used: Path, damage: str) -> None:
    path = database(used)
    data = bytearray(path.read_bytes())
    if damage == "header":
        data[:16] = bytes(16)
    elif damage == "cut":
        del data[len(data) // 2 :]
    elif damage == "empty":
        data.clear()
    elif damage == "garbage":
        data[:] = b"\x5a" * len(data)
    else:
        data[data.rindex(b"n1")] ^= 1  # In a row: SQLite itself does not notice.
    path.write_bytes(data)
    refused(node(used, server.url, "--used"), 1, str(path), "replace this node")
    if (
        damage != "bit"
    ):  # There SQLite is sound: that the node was started once more is written down before the rest is read.
        assert path.read_bytes() == data


# -- the Redis -------------------------------------------------------------------------------------------------------


def test_a_node_does_not_begin_without_its_redis_and_waits_for_it(tmp_path: Path) -> None:
    options = ("--id", "n1", "--peers", "n1", "--bootstrap", "--machine", "kv", "--data-dir", str(tmp_path / "n1"))
    waiting = Running(tmp_path / "log", "node", *options, "--redis", NOWHERE)
    try:
        waiting.wait_for_line("^n1: waits for its Redis: redis 127.0.0.1:1: ")
    finally:
        assert waiting.end(15) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_a_node_does_not_begin_at_a_port_that_is_no_redis(http_server: str, tmp_path: Path) -> None:
    refused(node(tmp_path / "n1", http_server), 1, "Redis", http_server.removeprefix("redis://"))
    assert list(tmp_path.iterdir()) == []


def test_a_node_does_not_begin_with_a_wrong_password(tmp_path: Path) -> None:
    with EmbeddedServer(arguments=("--requirepass", "right")) as server:
        line = refused(node(tmp_path / "n1", f"redis://:wrong@127.0.0.1:{server.port}"), 1, "password")
        assert "wrong@" not in line
        refused(node(tmp_path / "n1", server.url), 1, "password")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("where", ["inbox", "directory"])
def test_a_key_of_another_type_is_named_and_left_alone(server: EmbeddedServer, tmp_path: Path, where: str) -> None:
    inbox = f"raftplug:{{{cluster_uuid('g', ['n1']).hex()[:16]}/n1}}:inbox"
    key = inbox if where == "inbox" else "raftplug:directory"
    with redis.Redis(port=server.port) as client:
        client.set(key, "mine")
        refused(node(tmp_path / "n1", server.url), 1, key, "another type", "prefix")
        assert client.get(key) == b"mine"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["localhost", "nats://localhost", "redis://localhost:port", "redis://[::1"])
@pytest.mark.parametrize("command", ["node", "read"])
def test_an_address_that_cannot_be_is_refused(tmp_path: Path, url: str, command: str) -> None:
    if command == "node":
        refused(node(tmp_path / "n1", url), 2)
    else:
        refused(raftplug("read", "--redis", url, "{}"), 2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", CLIENTS, ids=lambda arguments: arguments[0])
def test_a_client_says_that_its_redis_is_unreachable(arguments: tuple[str, ...]) -> None:
    command, *more = arguments
    refused(raftplug(command, "--redis", NOWHERE, *more), 1, "127.0.0.1:1")


@pytest.mark.parametrize("arguments", CLIENTS, ids=lambda arguments: arguments[0])
def test_a_client_says_that_it_talks_to_no_redis(arguments: tuple[str, ...], http_server: str) -> None:
    command, *more = arguments
    refused(raftplug(command, "--redis", http_server, *more), 1, "Redis")


@pytest.mark.parametrize("arguments", CLIENTS, ids=lambda arguments: arguments[0])
def test_a_client_says_that_its_password_is_wrong_and_does_not_repeat_it(arguments: tuple[str, ...]) -> None:
    command, *more = arguments
    with EmbeddedServer(arguments=("--requirepass", "right")) as server:
        line = refused(raftplug(command, "--redis", f"redis://:wrong@127.0.0.1:{server.port}", *more), 1, "password")
    assert ":wrong" not in line


@pytest.mark.parametrize("arguments", CLIENTS, ids=lambda arguments: arguments[0])
def test_a_client_says_that_the_directory_is_a_key_of_another_type(
    arguments: tuple[str, ...], server: EmbeddedServer
) -> None:
    command, *more = arguments
    with redis.Redis(port=server.port) as client:
        client.set("raftplug:directory", "mine")
        refused(raftplug(command, "--redis", server.url, *more), 1, "raftplug:directory", "another type")


@pytest.mark.parametrize("arguments", CLIENTS, ids=lambda arguments: arguments[0])
def test_a_client_says_that_nobody_carries_the_group(arguments: tuple[str, ...], server: EmbeddedServer) -> None:
    command, *more = arguments
    refused(raftplug(command, "--redis", server.url, "--group", "nobody", *more), 1, "'nobody'", "prefix")


# -- transitions and queries -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["propose", "read"])
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"op":', ("not JSON", "column 7")),
        ("{'op': 1}", ("not JSON", "column 2")),
        ("[1,\n2,]", ("not JSON", "line 2, column ")),
        ("", ("not JSON", "column 1")),
        ("NaN", ("NaN",)),
        ("[" * 100_000, ("nested too deep",)),
        ("9" * 5000, ("digits",)),
    ],
    ids=["cut", "quotes", "comma", "empty", "nan", "deep", "long"],
)
def test_malformed_json_is_refused_with_its_position(command: str, text: str, words: tuple[str, ...]) -> None:
    refused(raftplug(command, "--redis", NOWHERE, "--", text), 2, *words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (str(1 << 64), ("2^64",)),
        ('["\\ud800"]', ("surrogate",)),
        ("[" * 101 + "]" * 101, ("nested too deep",)),
        (json.dumps({"key": "x" * (100 << 10), "more": ["y" * (100 << 10)] * 10}), ("1048576",)),
    ],
    ids=["large-int", "surrogate", "deep", "over-the-limit"],
)
def test_a_transition_that_cannot_be_encoded_or_is_over_the_limit_is_refused(
    text: str, words: tuple[str, ...], tmp_path: Path
) -> None:
    done = raftplug("propose", "--redis", NOWHERE, "--json", "-", stdin=f"{text}\n")
    line = refused(done, 1, "line 1: ", *words)
    assert json.loads(done.stdout)["acknowledged"] == 0
    assert "--session load-" in line
    if len(text) < 1000:
        refused(raftplug("propose", "--redis", NOWHERE, text), 1, *words)


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon"])
def test_a_time_that_cannot_be_is_refused(value: str) -> None:
    refused(raftplug("read", "--redis", NOWHERE, "--timeout", value, "{}"), 2, "--timeout", value)


def test_a_session_name_that_cannot_be_is_refused() -> None:
    refused(raftplug("propose", "--redis", NOWHERE, "--session", "", "{}"), 2, "session")
    refused(raftplug("propose", "--redis", NOWHERE, "--session", "x" * 300, "{}"), 2, "session")


def test_an_unknown_core_in_the_environment_is_refused(server: EmbeddedServer, tmp_path: Path) -> None:
    options = ("--id", "n1", "--peers", "n1", "--redis", server.url, "--data-dir", str(tmp_path / "n1"))
    refused(raftplug("node", *options, "--machine", "kv", "--bootstrap", RAFTPLUG_CORE="rust"), 2, "RAFTPLUG_CORE=rust")
    assert list(tmp_path.iterdir()) == []


def test_what_was_refused_once_works_when_it_is_mended(cluster: Cluster, http_server: str) -> None:
    refused(node(cluster.directory / "n1", http_server), 1)
    cluster.start("n1", "n2", "n3", bootstrap=True)
    succeeded(cluster.run("propose", '{"op":"put","key":"k","value":1}'))
