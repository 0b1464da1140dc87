"""The cluster's key: who holds it is believed, everybody else changes nothing and is noticed."""

from __future__ import annotations

import logging
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import raftplug
from raftplug import errors, frames
from raftplug.cluster import MemoryCluster, MemoryHub
from raftplug.embedded import EmbeddedServer
from raftplug.frames import Key, Sender, decode_frame, is_ours, sign_record
from raftplug.keys import VARIABLE, cluster_keys, read_key_file, require_key
from raftplug.plugins import Plugins

sys.path.insert(0, str(Path(__file__).parent))

import servers
from processes import raftplug as run
from processes import refused, succeeded
from servers import Sum, wait_until

valkey_server = servers.valkey_server
OLD, NEW = "the-old-key-of-this-cluster", b"\x00the new key of this cluster "
PEERS = ("n1", "n2", "n3")
OURS = "our cluster key did not sign"
GROUP, KIND = 7, 1


@pytest.fixture(autouse=True)
def no_key_around(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


Start = Callable[..., raftplug.Node]


@pytest.fixture
def start(valkey_server: EmbeddedServer, tmp_path: Path) -> Iterator[Start]:
    """A function that starts the node `id`, or starts it again, on one server; all end with the test."""
    with ExitStack() as stack:

        def start(id: str, key: Any = None, peers: tuple[str, ...] = PEERS, **more: Any) -> raftplug.Node:
            options = {"peers": peers, "bootstrap": not (tmp_path / id).exists(), **more}
            node = raftplug.Node(
                id, redis=valkey_server.url, data_dir=tmp_path / id, state_machine=Sum(), key=key, **options
            )
            return stack.enter_context(node)

        yield start


@pytest.fixture
def connect(valkey_server: EmbeddedServer) -> Iterator[Callable[..., raftplug.Client]]:
    with ExitStack() as stack:
        yield lambda key=None: stack.enter_context(raftplug.Client(valkey_server.url, key=key))


def problems(node: raftplug.Node) -> list[str]:
    found: list[str] = node.status()["problems"]
    return found


def leader(*nodes: raftplug.Node) -> raftplug.Node:
    """Wait until one of them leads and the others know it."""
    wait_until(lambda: {node.leader for node in nodes} in [{node.id} for node in nodes], "one leader that all know")
    return next(node for node in nodes if node.is_leader)


# -- frames and records ----------------------------------------------------------------------------------------------


def sender(key: Key | None = None) -> Sender:
    return Sender("n1", b"c" * 16, b"s" * 16, 1, 2, key)


def test_a_frame_is_read_with_the_key_that_signed_it_and_with_no_other() -> None:
    (old,), (new,) = cluster_keys(OLD), cluster_keys(NEW)
    data = sender(old).encode("n2", [(GROUP, KIND, b"body")])
    for keys in ((old,), (old, new), (new, old)):
        assert decode_frame(data, keys).items[0].body == b"body"
    for keys in ((new,), (new, new), (Key(old.id, new.secret),)):
        with pytest.raises(errors.MalformedMessage, match=OURS):
            decode_frame(data, keys)
    with pytest.raises(errors.MalformedMessage, match="no cluster key is here"):
        decode_frame(data)
    with pytest.raises(errors.MalformedMessage, match=OURS):
        decode_frame(sender().encode("n2", []), (old,))


def test_no_bit_of_a_signed_frame_can_be_changed() -> None:
    keys = cluster_keys(OLD)
    data = sender(keys[0]).encode("n2", [(GROUP, KIND, b"body")])
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(errors.MalformedMessage):
            decode_frame(bytes(changed), keys)


def test_nothing_of_a_frame_is_parsed_before_its_signature_was_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    def parse(*_: Any) -> Any:
        raise AssertionError("parsed")

    monkeypatch.setattr(frames, "_read_id", parse)
    (old,), (new,) = cluster_keys(OLD), cluster_keys(NEW)
    for key in (None, new):
        with pytest.raises(errors.MalformedMessage):
            decode_frame(sender(key).encode("n2", []), (old,))


def test_a_record_is_believed_if_one_of_the_keys_signed_it_as_it_is() -> None:
    old, new = cluster_keys([OLD, NEW])
    record = {"id": "n1", "groups": ["g"], "leader": {"g": None}, "at": 5}
    signed = sign_record(record, [old])
    assert is_ours(signed, [old]) and is_ours(signed, [new, old])
    assert is_ours(dict(reversed(signed.items())), [old])  # A transport may carry it in another order.
    assert not is_ours(signed, [new]) and not is_ours(signed, [])
    assert sign_record(record, []) == record and is_ours(record, []) and not is_ours(record, [old])
    for name in signed:
        assert not is_ours({**signed, name: "else"}, [old]), name
        assert not is_ours({**signed, name: b"\xff"}, [old]), name
    assert not is_ours({**signed, "more": 1}, [old])


# -- where a key comes from ------------------------------------------------------------------------------------------


def test_a_key_is_the_same_from_an_argument_a_file_or_the_environment(tmp_path: Path) -> None:
    words = "0123456789abcdef", "a-second-key-for-the-rotation"
    (tmp_path / "key").write_text(f"{words[0]}\n{words[1]}\n")
    given = cluster_keys([words[0], words[1].encode()])
    assert given == cluster_keys(read_key_file(tmp_path / "key")) == cluster_keys(None, {VARIABLE: "\n".join(words)})
    assert len({key.secret for key in given}) == 2
    for between in (",", ", ", " ,\r\n", " ", "\t", "\n\n", ",\n"):
        assert given == cluster_keys(None, {VARIABLE: f"{words[0]}{between}{words[1]}\n"})
        (tmp_path / "key").write_text(f"{words[0]}{between}{words[1]},\n")
        assert given == cluster_keys(read_key_file(tmp_path / "key"))
    assert cluster_keys(None, {}) == ()
    assert cluster_keys(f"{words[0]}\n", {VARIABLE: words[1]}) == given[:1]
    assert words[0] not in repr(given) and given[0].secret.hex() not in repr(given)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("x" * 15, "15 bytes is too short"),
        (b"", "0 bytes is too short"),
        ([], "not 0"),
        (["x" * 16] * 3, "not 3"),
        (["x" * 16, "short"], "5 bytes is too short"),
        (5, "bytes or text"),
        ([5], "bytes or text, not int"),
        ("x" * 16 + " " + "y" * 16, "white space"),
        ("x" * 16 + "," + "y" * 16, "give two as a list"),
        ("x" * 16 + ":" + "y" * 16, "':' separates no keys.*write a comma"),
        ("x" * 16 + ";" + "y" * 16, "';' separates no keys"),
        (["x" * 16 + "|" + "y" * 16], r"'\|' separates no keys"),
    ],
)
def test_what_cannot_be_a_key_is_refused_and_never_repeated(given: Any, why: str) -> None:
    with pytest.raises(errors.InvalidArgument, match=why) as caught:
        cluster_keys(given)
    assert "xx" not in str(caught.value) and "short;" not in str(caught.value).replace("too short", "")


def test_two_keys_with_a_wrong_separator_are_refused_at_once_wherever_they_stand(
    tmp_path: Path, start: Start, connect: Callable[..., raftplug.Client]
) -> None:
    other = "another-key-of-this-one"
    both = f"{OLD}:{other}"
    with pytest.raises(errors.InvalidArgument, match="separates no keys"):
        start("n1", both, peers=("n1",))
    with pytest.raises(errors.InvalidArgument, match="separates no keys"):
        connect(both)
    (tmp_path / "key").write_text(both)
    options = ("--redis", "redis://127.0.0.1:1")
    for more, environment in ((("--key-file", str(tmp_path / "key")), {}), ((), {VARIABLE: both})):
        text = refused(run("status", *options, *more, **environment), 2, "separates no keys", "comma")
        assert OLD not in text and other not in text


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"tooshort\n", "too short"),
        (b"\xff" * 32, "no text"),
        (b"", "not 0"),
        (b"x" * 5000, "too long"),
        (None, "No su"),
    ],
)
def test_a_file_without_a_key_is_named(tmp_path: Path, content: bytes | None, why: str) -> None:
    if content is not None:
        (tmp_path / "key").write_bytes(content)
    options = ("--redis", "redis://127.0.0.1:1", "--key-file", str(tmp_path / "key"))
    refused(run("read", *options, "{}"), 2, str(tmp_path / "key"), why)


def test_an_empty_variable_is_refused_rather_than_taken_for_no_key() -> None:
    refused(run("read", "--redis", "redis://127.0.0.1:1", "{}", RAFTPLUG_CLUSTER_KEY=""), 2, VARIABLE, "token_hex")


# -- when there must be one ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost",
        "redis://user:secret@127.0.0.1:6379/0",
        "rediss://[::1]:6379",
        "unix:///run/redis.sock",
        "redis://",
        "redis+sentinel://localhost:26379,[::1]:26379/main",
        "redis+cluster://user:secret@127.0.0.1:7000,localhost:7001",
        "memory://x",
        "nats://far.example",
    ],
)
def test_without_a_key_a_redis_of_this_machine_will_do(url: str) -> None:
    assert require_key(url, ()) == (not url.startswith(("memory", "nats")))


@pytest.mark.parametrize(
    "url",
    [
        "redis://10.1.2.3",
        "rediss://user:secret@redis.example:6379",
        "redis://localhost.example",
        "redis://0.0.0.0",
        "redis://[2001:db8::1]:6379",
        "redis:///0?host=redis.example",
        "redis+sentinel://localhost:26379,10.1.2.3:26379/main",
        "redis+cluster://localhost:7000,redis.example:7000",
    ],
)
def test_without_a_key_any_other_redis_is_refused_before_it_is_connected_to(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect(*_: Any, **__: Any) -> Any:
        raise AssertionError("connected")

    monkeypatch.setattr(socket, "create_connection", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)
    options: Any = {"redis": url, "data_dir": tmp_path / "n1", "state_machine": Sum(), "bootstrap": True}
    for begin in (lambda: raftplug.Node("n1", peers=["n1"], **options), lambda: raftplug.Client(url)):
        with pytest.raises(errors.InvalidArgument, match=r"needs a cluster key.*secrets.token_hex\(32\)") as caught:
            begin()
        assert "secret@" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert not require_key(url, cluster_keys(OLD))


def test_a_command_without_a_key_is_refused_in_one_line(tmp_path: Path) -> None:
    options = ("--redis", "redis://192.0.2.1", "--group", "g")
    more = ("--id", "n1", "--peers", "n1", "--machine", "kv", "--data-dir", str(tmp_path / "n1"), "--bootstrap")
    refused(run("node", *options, *more), 2, "needs a cluster key", VARIABLE, "--key-file", "token_hex")
    refused(run("status", *options), 2, "needs a cluster key")
    assert list(tmp_path.iterdir()) == []


class Mover(raftplug.Cluster):
    """A transport of somebody's own that reaches nobody."""

    def __init__(self, url: str = "", **options: Any) -> None:
        self.options = options

    def send_message(self, to_id: Any, message: bytes) -> None: ...

    def receive_messages(self) -> list[bytes]:
        return []


class GivesMover:
    @raftplug.hookimpl
    def raftplug_clusters(self) -> Any:
        return {"nats": Mover}


def test_a_node_over_another_transport_without_a_key_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plugins = Plugins()
    plugins.register(GivesMover())
    options: Any = {"peers": ["n1"], "state_machine": Sum(), "bootstrap": True, "plugins": plugins}
    for number, (where, warns) in enumerate(
        [
            ({"redis": "nats://far"}, True),
            ({"cluster": Mover()}, True),
            ({"redis": "nats://far", "key": OLD}, False),
            ({"redis": "memory://test_key"}, False),
            ({"cluster": MemoryCluster(MemoryHub(), "n1")}, False),
        ]
    ):
        caplog.clear()
        with raftplug.Node("n1", data_dir=tmp_path / str(number), **where, **options) as node:
            assert "signed" not in getattr(node._cluster, "options", {})
        lines = [text for text in caplog.messages if "no cluster key: frames are not signed" in text]
        assert len(lines) == warns
        assert all("secrets.token_hex" in text and VARIABLE in text for text in lines)


def test_a_node_that_runs_without_a_key_says_so_once(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "raftplug"):
        start("n1", peers=("n1",))
        start("n2", key=OLD, peers=("n2",), group="other")
    assert len([text for text in caplog.messages if "no cluster key" in text]) == 1


# -- whole nodes -----------------------------------------------------------------------------------------------------


def test_nodes_and_clients_with_the_same_key_agree(start: Start, connect: Callable[..., raftplug.Client]) -> None:
    nodes = [start(id, OLD) for id in PEERS]
    for number, node in enumerate(nodes):
        assert node.propose(1).result(timeout=30) == number + 1
    client = connect(OLD)
    assert client.propose(1) == 4
    assert client.read(None) == 4
    status = client.status()
    assert status["quorum"] == {"needed": 2, "reachable": 3}
    assert [row["problems"] for row in status["nodes"]] == [[], [], []]


def test_the_key_of_the_environment_is_taken(
    start: Start, connect: Callable[..., raftplug.Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, OLD)
    start("n1", peers=("n1",))
    assert connect().propose(1) == 1
    with pytest.raises(errors.InvalidArgument, match="another cluster key"):
        connect(NEW).propose(1, timeout=30)


@pytest.mark.parametrize("other", [NEW, None], ids=["another key", "no key"])
def test_a_node_that_has_not_the_key_changes_nothing_and_is_noticed(start: Start, other: Any) -> None:
    two = [start("n1", OLD), start("n2", OLD)]
    assert two[0].propose(1).result(timeout=30) == 1
    term, first = leader(*two).status()["term"], leader(*two).id
    stranger = start("n3", other)
    refused_lines = wait_until(lambda: [text for text in problems(two[0]) if OURS in text], "a refusal is shown")
    assert len(refused_lines) == 1 and VARIABLE in refused_lines[0] and "times)" in refused_lines[0]
    seen = wait_until(lambda: [text for text in problems(stranger) if "cluster key" in text], "it notices itself")
    assert len(seen) == 1
    time.sleep(2.0)  # Several election timeouts, in which it campaigns.
    assert stranger.leader is None and stranger.status()["term"] <= 1
    assert stranger.status()["commit"] == 0
    assert two[1].propose(1).result(timeout=30) == 2
    status = leader(*two).status()
    assert (status["term"], leader(*two).id) == (term, first)


def test_a_key_is_rotated_while_the_cluster_works(start: Start, connect: Callable[..., raftplug.Client]) -> None:
    nodes = {id: start(id, OLD) for id in PEERS}
    count = 0
    for step in ([OLD, NEW], [NEW, OLD], NEW):
        for id in PEERS:
            nodes[id].stop()
            nodes[id] = start(id, step)
            for node in nodes.values():
                count += 1
                assert node.propose(1, timeout=30).result(timeout=31) == count
            count += 1
            assert connect(step).propose(1, timeout=30) == count
    assert connect(NEW).read(None) == count
    with pytest.raises(errors.InvalidArgument, match="another cluster key"):
        connect(OLD).read(None, timeout=30)


def test_a_client_that_has_not_the_key_is_told_at_once(
    start: Start, connect: Callable[..., raftplug.Client], valkey_server: EmbeddedServer, tmp_path: Path
) -> None:
    node = start("n1", OLD, peers=("n1",))
    assert node.propose(1).result(timeout=30) == 1
    for client, why in ((connect(), "and none was given here"), (connect(NEW), "have another cluster key")):
        begun = time.monotonic()
        for ask in (partial(client.propose, 1), partial(client.read, None), client.status):
            with pytest.raises(errors.InvalidArgument, match=f"{why}.*{VARIABLE}"):
                ask(timeout=60)
        assert time.monotonic() - begun < 20
    assert node.read(lambda machine: machine.value) == 1
    options = ("--redis", valkey_server.url)
    refused(run("read", *options, "null"), 2, "none was given here", VARIABLE, "--key-file")
    key_file = tmp_path / "key"
    key_file.write_text(f"not-{OLD}")
    refused(run("status", *options, "--key-file", str(key_file)), 2, "another cluster key")


def test_a_client_with_a_key_is_told_that_the_nodes_have_none(
    start: Start, connect: Callable[..., raftplug.Client]
) -> None:
    assert start("n1", peers=("n1",)).propose(1).result(timeout=30) == 1
    with pytest.raises(errors.InvalidArgument, match="another cluster key, or none"):
        connect(OLD).read(None, timeout=60)


def test_records_that_others_wrote_mislead_no_client_and_no_node_that_joins(
    start: Start, connect: Callable[..., raftplug.Client], valkey_server: EmbeddedServer
) -> None:
    first = start("n1", OLD, peers=("n1",))
    assert first.propose(1).result(timeout=30) == 1
    # Another cluster of the same name, without the key: two that are indistinguishable, were it believed.
    stranger = start("n2", None, peers=("n2",))
    assert stranger.propose(5).result(timeout=30) == 5
    assert connect(OLD).read(None) == 1
    joining = start("n4", OLD, peers=(), bootstrap=False, join=True)
    connect(OLD).change_members("add", "n4")
    wait_until(lambda: joining.leader == "n1", "n4 follows n1")


def test_a_node_that_joins_without_the_key_is_told(start: Start) -> None:
    assert start("n1", OLD, peers=("n1",)).propose(1).result(timeout=30) == 1
    with pytest.raises(errors.Unavailable, match="have a cluster key"):
        start("n2", peers=(), bootstrap=False, join=True)


def test_the_commands_take_the_key_from_a_file(start: Start, valkey_server: EmbeddedServer, tmp_path: Path) -> None:
    key_file = tmp_path / "key"
    succeeded(run("doctor", "--redis", valkey_server.url))
    key_file.write_text("a-key-that-is-long-enough\n")
    start("n1", read_key_file(key_file), peers=("n1",))
    options = ("--redis", valkey_server.url, "--key-file", str(key_file))
    assert succeeded(run("propose", *options, "1")).stdout == "1\n"
    assert succeeded(run("propose", *options, "--session", "s", "-", stdin="1\n1\n")).stdout.startswith("2 ack")
    assert succeeded(run("read", *options, "null")).stdout == "3\n"
    assert "leader n1" in succeeded(run("status", *options)).stdout
    assert "n1" in succeeded(run("members", "list", *options)).stdout
    assert "given" in succeeded(run("doctor", *options)).stdout


def test_doctor_says_that_a_key_is_missing() -> None:
    done = run("doctor", "--redis", "redis://192.0.2.1")
    assert done.returncode == 1
    assert "needs a cluster key" in done.stdout
