"""What is acknowledged survives kill -9 of every node, and nothing that depends on a write leaves before its sync."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from struct import Struct
from typing import Any

import hiredis
import pytest

import raftplug
from processes import PEERS, Cluster, cluster, server, wait_until  # noqa: F401
from raftplug import core as chosen_core
from raftplug.constants import APPEND, APPEND_RESPONSE, PRE_VOTE_RESPONSE, VOTE, VOTE_RESPONSE
from raftplug.embedded import EmbeddedServer
from raftplug.errors import MalformedMessage, RaftplugError
from raftplug.frames import decode_frame

CORES = ["python", "cython"]
_ENTRY = Struct("<QQBII")


@pytest.mark.parametrize("core_name", CORES)
def test_what_was_acknowledged_survives_kill_9_of_all_nodes_under_load(
    cluster: Cluster,  # noqa: F811
    core_name: str,
) -> None:
    cluster.start(*PEERS, bootstrap=True, core=core_name)
    acknowledged: list[int] = []
    stop = threading.Event()

    def write(client: raftplug.Client, writer: int) -> None:
        number = writer
        while not stop.is_set():
            try:
                client.propose({"op": "put", "key": f"k{number}", "value": number}, timeout=10)
            except RaftplugError:
                return
            acknowledged.append(number)
            number += 4

    cluster.leader()
    with raftplug.Client(redis=cluster.server.url, group="g") as client:
        writers = [threading.Thread(target=write, args=(client, writer)) for writer in range(4)]
        for writer in writers:
            writer.start()
        wait_until(lambda: len(acknowledged) > 500, "500 acknowledged writes")
        cluster.kill(*PEERS)
        stop.set()
    for writer in writers:
        writer.join()
    terms = {row["id"]: row["term"] for row in _votes(cluster)}
    cluster.start(*PEERS, core=core_name)
    cluster.leader()
    with raftplug.Client(redis=cluster.server.url, group="g") as client:
        for number in acknowledged:
            assert client.read({"op": "get", "key": f"k{number}"}, timeout=30) == number
        for row in client.status()["nodes"]:
            assert row["term"] >= terms[row["id"]]


def _votes(cluster: Cluster) -> list[dict[str, Any]]:  # noqa: F811
    """Term and vote on each node's disk."""
    from raftplug.storage import SQLiteStorage

    rows = []
    for name in PEERS:
        storage = SQLiteStorage(cluster.directory / name, name)
        stored = storage.load("g")
        assert stored is not None
        rows.append({"id": name, "term": stored.term, "vote": stored.vote})
        storage.close()
    return rows


# What a node does, as the kernel saw it.

NODE = """
import random, sys, time
from raftplug.node import Node
from raftplug.storage import SQLiteStorage
from raftplug.frames import cluster_uuid
directory, name, url, synchronous = sys.argv[1:]
peers = ["n1", "n2"]
storage = SQLiteStorage(directory, name, cluster=cluster_uuid("g", peers), bootstrap=True, synchronous=synchronous)
with Node(name, peers=peers, redis=url, storage=storage, machine="kv", group="g", bootstrap=True) as node:
    sys.stdin.read()
"""


class Trace:
    """What a node did, in order: ("write", its bytes), ("sync", when it began), ("sent" or "received", message)."""

    def __init__(self, text: str) -> None:
        self.events: list[tuple[str, Any]] = []
        # On one connection requests are a stream of RESP; both directions parse with the same reader.
        self._readers: dict[tuple[str, str], hiredis.Reader] = {}
        unfinished: dict[str, tuple[str, int]] = {}
        for line in text.splitlines():
            found = re.match(r"(\d+)\s+(.*)", line)
            if found is None:
                continue
            thread, rest = found.groups()
            if rest.endswith("<unfinished ...>"):
                begun = rest.removesuffix("<unfinished ...>").rstrip()
                unfinished[thread] = begun, len(self.events)
                if begun.startswith(("sendto", "pwrite64")):
                    self._take(begun, len(self.events))  # What it begins to send has left.
                continue
            since = len(self.events)
            resumed = re.match(r"<\.\.\. (\w+) resumed>(.*)", rest)
            if resumed is not None:
                begun, since = unfinished.pop(thread, ("", since))
                if begun.startswith(("sendto", "pwrite64")):
                    continue
                rest = begun + resumed.group(2)
            self._take(rest, since)

    def _take(self, call: str, since: int) -> None:
        found = re.match(r'(\w+)\((\d+)<([^>]*)>(?:, ?"((?:\\x[0-9a-f]{2})*)")?', call)
        if found is None:
            return
        name, descriptor, path, data = found.groups()
        on_wal = _unescaped(path).endswith(b"-wal")
        if name in ("fsync", "fdatasync") and on_wal and call.endswith("= 0"):
            self.events.append(("sync", since))
        elif name == "pwrite64" and on_wal:
            self.events.append(("write", _unescaped(data)))
        elif name in ("sendto", "recvfrom") and data:
            reader = self._readers.setdefault((name, descriptor), hiredis.Reader())
            reader.feed(_unescaped(data))
            try:
                while (value := reader.gets()) is not False:
                    for frame in _blobs(value):
                        self._frame("sent" if name == "sendto" else "received", frame)
            except hiredis.ProtocolError:
                self._readers[name, descriptor] = hiredis.Reader()  # A wake-up of the node's own, not a connection.

    def _frame(self, direction: str, data: bytes) -> None:
        try:
            frame = decode_frame(data)
        except MalformedMessage:
            return
        for item in frame.items:
            if item.kind < 32:
                self.events.append((direction, chosen_core.Message.decode(item.body)))

    def claims(self) -> dict[str, list[bool]]:
        """For each kind of claim that depends on a write, whether that was synced before the claim left."""
        claims: dict[str, list[bool]] = {"vote request": [], "vote": [], "ack": [], "own count": []}
        synced = written = False
        acked = committed = 0
        entries: dict[int, bytes] = {}  # What goes over the wire goes to the disk, byte for byte.
        for number, (what, value) in enumerate(self.events):
            if what in ("sent", "received") and value.kind == APPEND:
                entries.update(_entries(value.data))
            if what == "write":
                written, synced = True, False
            elif what == "sync":
                synced = written
            elif what == "received":
                if value.kind in (PRE_VOTE_RESPONSE, VOTE):
                    written = synced = False  # A cause: what follows from it must be written, and synced, anew.
            elif value.kind == VOTE:
                claims["vote request"].append(synced)
            elif value.kind == VOTE_RESPONSE and value.flag:
                claims["vote"].append(synced)
            elif value.kind == APPEND_RESPONSE and value.flag and value.index > acked:
                acked = value.index
                claims["ack"].append(self._is_synced(entries[acked], number))
            elif value.kind == APPEND and value.commit > committed:
                committed = value.commit  # Of two voters both are needed: the leader has counted itself.
                claims["own count"].append(self._is_synced(entries[committed], number))
        return claims

    def _is_synced(self, entry: bytes, until: int) -> bool:
        """Whether a sync that began after the write of `entry` ended before event `until`."""
        events = self.events[:until]
        written = next(
            (number for number, (what, value) in enumerate(events) if what == "write" and entry in value), until
        )
        return any(what == "sync" and since > written for what, since in events)


def _entries(block: bytes) -> Iterator[tuple[int, bytes]]:
    """Index and bytes of each entry in a block: a header of index, term, kind, length and check, then the payload."""
    at = 0
    while at < len(block):
        index, _, _, length, _ = _ENTRY.unpack_from(block, at)
        yield index, block[at : at + _ENTRY.size + length]
        at += _ENTRY.size + length


def _unescaped(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


def _blobs(value: Any) -> Iterator[bytes]:
    if isinstance(value, bytes):
        if value.startswith(b"RP\x01"):
            yield value
    elif isinstance(value, list | dict):  # What is read from streams is a map in RESP3.
        for each in value.values() if isinstance(value, dict) else value:
            yield from _blobs(each)


def _trace(server: EmbeddedServer, directory: Path, synchronous: str) -> dict[str, list[bool]]:  # noqa: F811
    """Run two nodes under strace through an election and writes, and merge what both of them claimed."""
    processes = []
    files = []
    try:
        for name in ("n1", "n2"):
            files.append(directory / f"{name}.trace")
            strace = ["strace", "-f", "-qq", "-y", "-xx", "-s", "1000000", "-o", str(files[-1])]
            calls = ["-e", "trace=pwrite64,fsync,fdatasync,sendto,recvfrom"]
            node = [sys.executable, "-c", NODE, str(directory / name), name, server.url, synchronous]
            processes.append(
                subprocess.Popen([*strace, *calls, *node], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
            )
        with raftplug.Client(redis=server.url, group="g") as client:
            for number in range(20):
                client.propose({"op": "put", "key": "k", "value": number}, timeout=60)
    finally:
        for process in processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in processes:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
    merged: dict[str, list[bool]] = {}
    for file in files:
        for claim, outcomes in Trace(file.read_text()).claims().items():
            merged.setdefault(claim, []).extend(outcomes)
    return merged


needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not on PATH")


@needs_strace
@pytest.mark.parametrize("core_name", CORES)
def test_every_vote_ack_and_self_count_follows_a_completed_sync_of_its_data(
    server: EmbeddedServer,  # noqa: F811
    tmp_path: Path,
    core_name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAFTPLUG_CORE", core_name)
    claims = _trace(server, tmp_path, "FULL")
    for claim, outcomes in claims.items():
        assert outcomes, f"no {claim} was seen"
        assert all(outcomes), f"{outcomes.count(False)} of {len(outcomes)}: {claim} before the sync of its data"


@needs_strace
def test_the_watch_on_syncs_notices_when_they_are_off(server: EmbeddedServer, tmp_path: Path) -> None:  # noqa: F811
    claims = _trace(server, tmp_path, "OFF")
    assert all(outcomes for outcomes in claims.values())
    assert not any(any(outcomes) for outcomes in claims.values())


def test_a_second_process_is_refused_the_data_directory(cluster: Cluster) -> None:  # noqa: F811
    cluster.start("n1", "n2", bootstrap=True)
    options = ("--id", "n1", "--machine", "kv", "--data-dir", str(cluster.directory / "n1"))
    second = cluster.begin("node", *options)
    assert second.wait() == 1
    assert "in use" in second.stderr()
    assert os.path.exists(cluster.directory / "n1")
