"""A group goes into a file, and a cluster comes out of it that holds the same."""

from __future__ import annotations

import contextlib
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from processes import PEERS, Cluster, cluster, raftplug, refused, server, succeeded, wait_until
from raftplug import Client, core, errors, plain, snapshots
from raftplug.backup import Backup, Writer, restore
from raftplug.sessions import Sessions
from raftplug.snapshots import PLAIN, Making, Reader
from raftplug.storage import SQLiteStorage, StoredSnapshot

__all__ = ["cluster", "server"]

DATA = {"a": 1, "b": ["two", {"three": 3.0}], "long": "x" * 2_000_000}


def written(path: Path, data: Any = DATA, group: str = "g") -> StoredSnapshot:
    """A backup, as a client writes it."""
    sessions = Sessions()
    sessions.open(3, 1_000, "named")
    configuration = core.Configuration(["old1", "old2"]).plain()
    stream = snapshots.contents(configuration, sessions.snapshot(), PLAIN, plain.encode_in_parts(data))
    making = Making(9, 4, 1234, 0, stream, 100_000)
    pieces = []
    while (piece := making.next()) is not None:
        pieces.append(piece.data)
    writer = Writer(path, group, making.made())
    for piece in pieces:
        writer.write(piece)
    writer.finish()
    return making.made()


def verified(path: Path) -> None:
    with Backup(path) as backup:
        backup.verify()


def test_a_backup_says_what_it_is_of_and_holds_it(tmp_path: Path) -> None:
    snapshot = written(tmp_path / "file")
    with Backup(tmp_path / "file") as backup:
        backup.verify()
        assert (backup.group, backup.snapshot.index, backup.snapshot.digest) == ("g", 9, snapshot.digest)
        assert backup.reader().data() == DATA
        assert backup.reader().sessions.snapshot()[2][0][1] == "named"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_no_bit_of_a_backup_can_be_changed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    written(path, data="small")
    good = path.read_bytes()
    for at in range(len(good)):
        path.write_bytes(good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :])
        with pytest.raises(errors.MalformedMessage, match=r"/file is "):
            verified(path)


@pytest.mark.parametrize(
    "change", [lambda data: data[:-1], lambda data: data + b"x", lambda data: b"", lambda data: b"RAFTPLUG"]
)
def test_a_file_that_is_cut_off_or_something_else_is_refused_and_makes_no_directory(
    tmp_path: Path, change: Any
) -> None:
    path = tmp_path / "file"
    written(path)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(errors.MalformedMessage) as caught:
        restore(path, tmp_path / "n1", id="n1", peers=["n1"])
    assert "file" in str(caught.value) and "\n" not in str(caught.value)
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_a_writer_that_was_given_something_else_gives_no_file_its_name(tmp_path: Path) -> None:
    snapshot = written(tmp_path / "file", data="small")
    writer = Writer(tmp_path / "other", "g", snapshot)
    writer.write(bytes(snapshot.size))
    with pytest.raises(errors.MalformedMessage, match="digest"):
        writer.finish()
    writer.abandon()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_nodes_restored_from_one_file_hold_the_same_and_are_one_new_cluster(tmp_path: Path) -> None:
    written(tmp_path / "file")
    made = [restore(tmp_path / "file", tmp_path / id, id=id, peers=["n1", "n2"]) for id in ("n1", "n2")]
    assert made[0].cluster == made[1].cluster
    assert made[0].snapshot == made[1].snapshot
    other = restore(tmp_path / "file", tmp_path / "m1", id="m1", peers=["m1"])
    assert other.cluster != made[0].cluster
    with contextlib.closing(SQLiteStorage(tmp_path / "n2", "n2")) as storage:
        stored = storage.load("g")
        assert stored is not None and stored.snapshot is not None
        assert (stored.term, stored.vote, stored.blocks, stored.leftovers) == (4, None, [], ())
        slot = stored.snapshot.slot
        reader = Reader(stored.snapshot, lambda number: storage.piece("g", slot, number))
        assert core.Configuration.from_plain(reader.configuration).voters == ("n1", "n2")
        assert storage.identity.cluster == made[0].cluster
        assert len(reader.sessions) == 1
        assert reader.data() == DATA


def test_restore_refuses_what_cannot_be_and_changes_nothing(tmp_path: Path) -> None:
    written(tmp_path / "file")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("keep")
    for id, peers, directory, group in (
        ("n1", ["n2"], "new", None),
        ("n1", ["n1", "n1"], "new", None),
        ("n1", ["n1"], "new", "other"),
        ("n1", ["n1"], "full", None),
        ("n1", ["n1"], "file", None),
    ):
        with pytest.raises(errors.InvalidArgument):
            restore(tmp_path / "file", tmp_path / directory, id=id, peers=peers, group=group)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full"]
    assert (tmp_path / "full" / "mine").read_text() == "keep"


# ------------------------------------------------------------------------------------------------------ real processes


@pytest.fixture
def three(cluster: Cluster) -> Cluster:
    cluster.start(*PEERS, bootstrap=True)
    for number in range(50):
        propose(cluster, {"op": "put", "key": f"k{number}", "value": "v" * number})
    return cluster


def propose(cluster: Cluster, transition: Any) -> None:
    with Client(cluster.server.url, group="g") as client:
        client.propose(transition)


def last_object(stdout: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(stdout.splitlines()[-1])
    return found


def test_a_snapshot_is_made_on_every_node_when_it_is_asked_for(three: Cluster) -> None:
    made = last_object(succeeded(three.run("snapshot", "--json")).stdout)["snapshots"]
    assert sorted(each["id"] for each in made) == list(PEERS)
    assert all(each["index"] >= 51 and each["bytes"] > 50 * 49 // 2 and len(each["digest"]) == 64 for each in made)
    again = last_object(succeeded(three.run("snapshot", "--id", "n2", "--json")).stdout)["snapshots"]
    assert [each for each in made if each["id"] == "n2"] == again, "nothing was applied since"
    propose(three, {"op": "put", "key": "more", "value": 1})
    with Client(three.server.url, group="g") as client:
        wait_until(lambda: client.snapshot("n2")["index"] > again[0]["index"], "a newer one")
    refused(three.run("snapshot", "--id", "n9", "--timeout", "2"), 1, "n9")


def test_what_was_acknowledged_before_a_backup_is_in_the_cluster_that_is_restored_from_it(
    three: Cluster, tmp_path: Path
) -> None:
    file = tmp_path / "backups" / "g.backup"
    file.parent.mkdir()
    stopping, acknowledged = threading.Event(), []

    def write() -> None:
        with Client(three.server.url, group="g") as client:
            while not stopping.is_set():
                number = len(acknowledged)
                client.propose({"op": "put", "key": f"w{number}", "value": number})
                acknowledged.append(number)

    writer = threading.Thread(target=write)
    writer.start()
    wait_until(lambda: len(acknowledged) > 20, "some are acknowledged")
    before = len(acknowledged)
    done = last_object(succeeded(three.run("backup", str(file), "--json")).stdout)
    stopping.set()
    writer.join()
    assert done["bytes"] > 0 and list(file.parent.iterdir()) == [file]
    with Backup(file) as backup:
        backup.verify()
        assert backup.snapshot.digest.hex() == done["digest"]
    refused(three.run("backup", str(file)), 2, "is there already")
    propose(three, {"op": "put", "key": "after", "value": "the backup"})
    succeeded(three.run("backup", str(file), "--force"))
    with Backup(file) as backup:
        assert backup.snapshot.index > done["index"]
    three.kill(*PEERS)
    new = Cluster(three.server, tmp_path / "restored", prefix="restored")
    try:
        digests = set()
        for id in ("m1", "m2", "m3"):
            directory = tmp_path / "restored" / id
            directory.parent.mkdir(exist_ok=True)
            arguments = (
                "restore",
                str(file),
                "--id",
                id,
                "--peers",
                "m1,m2,m3",
                "--data-dir",
                str(directory),
                "--json",
            )
            digests.add(last_object(succeeded(raftplug(*arguments)).stdout)["digest"])
        assert len(digests) == 1
        new.start("m1", "m2", "m3")
        assert new.read("after") == "the backup"
        assert [new.read(f"w{number}") for number in range(0, before, 5)] == list(range(0, before, 5))
        new.propose({"op": "put", "key": "new", "value": "life"})
        assert new.read("new") == "life"
        assert new.read("k7") == "v" * 7
    finally:
        new.end()


def test_a_restore_into_a_used_directory_or_from_no_backup_is_one_line(three: Cluster, tmp_path: Path) -> None:
    file = tmp_path / "g.backup"
    succeeded(three.run("backup", str(file)))
    arguments = ("--id", "n1", "--peers", "n1", "--data-dir")
    refused(raftplug("restore", str(file), *arguments, str(tmp_path / "n1")), 2, "is not empty")
    file.write_bytes(b"something else")
    refused(raftplug("restore", str(file), *arguments, str(tmp_path / "new")), 1, "no backup")
    assert not (tmp_path / "new").exists()


def test_the_help_of_restore_says_that_clients_do_not_follow() -> None:
    """Why: see test_client.py::test_a_client_stays_with_the_cluster_that_it_found."""
    text = " ".join(succeeded(raftplug("restore", "--help")).stdout.split())
    assert "an id of its own" in text and "start every client anew that ran before" in text
