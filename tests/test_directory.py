"""A data directory belongs to one process, and what is done to it behind that process's back is noticed."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import raftplug
from raftplug import errors, plain, storage
from raftplug.backup import Writer, restore
from raftplug.directory import PID_NAME
from raftplug.recovery import recover
from raftplug.rows import SQLiteRows
from raftplug.storage import Piece, SQLiteStorage, StoredSnapshot, Write
from test_backup import written

CLUSTER = b"sixteen bytes id"
GROUP = "default"
NAME = storage.FILE_NAME
WAL = NAME + "-wal"


class Sum(raftplug.StateMachine):
    def __init__(self) -> None:
        self.value = 0

    def apply_transition(self, transition: int) -> int:
        self.value += transition
        return self.value


def founded(path: Path) -> SQLiteStorage:
    opened = SQLiteStorage(path, "n1", cluster=CLUSTER, bootstrap=True)
    opened.create(GROUP, plain.encode(raftplug.core.Configuration(["n1"]).plain()))
    return opened


def term_of(opened: SQLiteStorage) -> int:
    stored = opened.load(GROUP)
    assert stored is not None
    return stored.term


def one_line(caught: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(caught.value)
    assert text and "\n" not in text
    return text


def tree(root: Path) -> dict[str, tuple[Any, ...]]:
    """Everything below a directory: modes, times of the last change, and all bytes."""
    found: dict[str, tuple[Any, ...]] = {}
    for path in [root, *sorted(root.rglob("*"))]:
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        found[str(path.relative_to(root))] = status.st_mode, status.st_mtime_ns, status.st_ino, content
    return found


NODE = """
import json, os, sys
import raftplug
class Sum(raftplug.StateMachine):
    def __init__(self): self.value = 0
    def apply_transition(self, transition):
        self.value += transition
        return self.value
def say(*what): print(json.dumps(what), flush=True)
path, how = sys.argv[1:]
try:
    node = raftplug.Node("n1", peers=["n1"], redis="memory://it", data_dir=path, state_machine=Sum(),
                         bootstrap=how == "new").start()
except raftplug.errors.RaftplugError as error:
    say("refused", type(error).__name__, str(error))
    os._exit(0)
say("started", raftplug.core.name)
for _ in sys.stdin:
    try:
        say("done", node.propose(1, timeout=3).result(5))
    except raftplug.errors.RaftplugError as error:
        say("error", type(error).__name__, str(error))
node.stop()
say("stopped", str(node.failure))
"""


class Process:
    """A process with a node of one, which proposes when it is asked."""

    def __init__(self, path: Path, how: str = "used", core: str = "auto", prefix: tuple[str, ...] = ()) -> None:
        environment = os.environ | {"RAFTPLUG_CORE": core, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [*prefix, sys.executable, "-c", NODE, str(path), how]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, env=environment
        )
        self.said = self._next()

    def _next(self) -> list[Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return list(json.loads(line)) if line else ["ended"]

    def propose(self) -> list[Any]:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self._next()

    def end(self) -> list[Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        if self.process.returncode is None:
            self.process.stdin.close()
            said = self._next()
            self.process.wait(60)
        else:
            said = ["ended"]
        self.process.stdout.close()
        return said

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait(60)


@pytest.fixture
def begin() -> Iterator[Callable[..., Process]]:
    begun: list[Process] = []

    def start(*arguments: Any, **options: Any) -> Process:
        begun.append(Process(*arguments, **options))
        return begun[-1]

    yield start
    for each in begun:
        if each.process.poll() is None:
            each.kill()


# ------------------------------------------------------------------------------------------------------------ the lock


def all_but_the_data(path: Path) -> Path:
    for each in path.iterdir():
        if each.name not in (NAME, WAL):
            each.unlink()
    return path


def by_a_symbolic_link(path: Path) -> Path:
    (path.parent / "link").symlink_to(path)
    return path.parent / "link"


def by_a_hard_link(path: Path) -> Path:
    other = path.parent / "other"
    other.mkdir()
    for each in path.iterdir():
        (other / each.name).hardlink_to(each)
    return other


def by_another_spelling(path: Path) -> Path:
    (path.parent / "x").mkdir()
    return path.parent / "x" / ".." / path.name


WAYS = {each.__name__: each for each in (all_but_the_data, by_a_symbolic_link, by_a_hard_link, by_another_spelling)}


@pytest.mark.parametrize("core", ["python", "cython"])
@pytest.mark.parametrize("way", WAYS)
def test_two_processes_never_have_one_directory(
    tmp_path: Path, begin: Callable[..., Process], way: str, core: str
) -> None:
    first = begin(tmp_path / "n1", "new", core=core)
    assert first.said == ["started", core]
    assert first.propose() == ["done", 1]
    second = begin(WAYS[way](tmp_path / "n1"), core=core)
    assert second.said[:2] == ["refused", "DirectoryInUse"]
    assert "in use by" in second.said[2] and "\n" not in second.said[2]
    assert [first.propose() for _ in range(3)] == [["done", number] for number in (2, 3, 4)]
    assert first.end() == ["stopped", "None"]
    third = begin(tmp_path / "n1", core=core)
    assert third.propose() == ["done", 5]


def test_a_database_with_another_name_gets_a_copy_of_its_own(tmp_path: Path) -> None:
    linked(tmp_path / "n1")
    other = (tmp_path / "other name").read_bytes()
    opened = SQLiteStorage(tmp_path / "n1", "n1")
    opened.commit([Write(GROUP, 7, None)])
    opened.close()
    assert (tmp_path / "other name").read_bytes() == other
    assert term_of(SQLiteStorage(tmp_path / "n1", "n1")) == 7


def test_one_of_many_that_found_a_directory_at_once_has_it(tmp_path: Path) -> None:
    """All have found nothing there before the first of them writes."""
    path = tmp_path / "a" / "n1"
    opened = [SQLiteStorage(path, "n1", cluster=CLUSTER, bootstrap=True, begin=False) for _ in range(4)]
    for each in opened:
        each.create(GROUP, b"configuration")
    opened[2].begin()
    for number in (0, 1, 3):
        with pytest.raises(errors.DirectoryInUse):
            opened[number].begin()
        opened[number].close()
    opened[2].commit([Write(GROUP, 7, None)])
    opened[2].close()
    assert term_of(SQLiteStorage(path, "n1")) == 7
    late = SQLiteStorage(tmp_path / "b", "n1", bootstrap=True, begin=False)
    closed(tmp_path / "b")
    before = tree(tmp_path)
    with pytest.raises(errors.WrongDirectory, match="meanwhile"):
        late.begin()
    late.close()
    assert tree(tmp_path) == before


def test_two_names_of_a_mounted_directory_are_one(tmp_path: Path, begin: Callable[..., Process]) -> None:
    (tmp_path / "mounted").mkdir()
    mount = f'mount --bind {tmp_path / "n1"} {tmp_path / "mounted"} && exec "$0" "$@"'
    prefix = ("unshare", "-m", "sh", "-c", mount)
    first = begin(tmp_path / "n1", "new")
    if shutil.which("unshare") is None or subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip("this user may not mount")
    assert begin(tmp_path / "mounted", prefix=prefix).said[:2] == ["refused", "DirectoryInUse"]
    assert first.propose() == ["done", 1]


def test_a_copy_of_a_running_nodes_directory_in_its_place_is_not_written_to_by_both(
    tmp_path: Path, begin: Callable[..., Process]
) -> None:
    first = begin(tmp_path / "n1", "new")
    assert first.propose() == ["done", 1]
    (tmp_path / "n1").rename(tmp_path / "moved")
    shutil.copytree(tmp_path / "moved", tmp_path / "n1")
    second = begin(tmp_path / "n1")
    assert second.said[0] == "started"
    assert first.propose()[0] == "error"
    assert second.propose() == ["done", 2]
    assert first.end()[0] == "stopped"
    assert second.propose() == ["done", 3], "the end of the first one touched the second one's files"
    assert second.end() == ["stopped", "None"]
    assert begin(tmp_path / "n1").propose() == ["done", 4]


def test_a_program_that_reads_the_database_is_kept_out_while_a_node_runs(tmp_path: Path) -> None:
    opened = founded(tmp_path / "n1")
    look = "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0).execute('SELECT * FROM log')"
    command = [sys.executable, "-c", look, str(tmp_path / "n1" / NAME)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "database is locked" in done.stderr
    opened.close()
    assert subprocess.run(command, capture_output=True).returncode == 0


# ----------------------------------------------------------------------------------------------------------- the watch


def replaced(path: Path) -> None:
    shutil.copy(path, path.with_name("copy"))
    os.replace(path.with_name("copy"), path)


def overwritten(path: Path) -> None:
    path.write_bytes(path.read_bytes())


def renamed(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))


def cut_off(path: Path) -> None:
    os.truncate(path, 0)


def appended_to(path: Path) -> None:
    with path.open("ab") as file:
        file.write(bytes(4096))


def directory_deleted(path: Path) -> None:
    shutil.rmtree(path)


def directory_renamed(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))


def directory_replaced(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    shutil.copytree(path.with_name("elsewhere"), path)


DAMAGES = [
    (name, damage)
    for name, damages in {
        NAME: (Path.unlink, replaced, overwritten, renamed, cut_off, appended_to),
        WAL: (Path.unlink, replaced, overwritten, renamed, cut_off, appended_to),
        "": (directory_deleted, directory_renamed, directory_replaced),
    }.items()
    for damage in damages
]
each_damage = pytest.mark.parametrize(
    ("name", "damage"), [pytest.param(*each, id=f"{each[0]}_{each[1].__name__}") for each in DAMAGES]
)


@each_damage
def test_what_was_done_to_the_files_is_found_before_the_next_commit_ends(
    tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    opened = founded(tmp_path / "n1")
    opened.commit([Write(GROUP, 1, None)])
    damage(tmp_path / "n1" / name)
    with pytest.raises(errors.StorageFailed) as caught:
        opened.commit([Write(GROUP, 2, None)])
    assert str(tmp_path / "n1") in one_line(caught) and "by another process" in one_line(caught)
    with pytest.raises(errors.StorageFailed):
        opened.commit([Write(GROUP, 3, None)])
    opened.close()


@each_damage
def test_what_is_done_to_the_files_during_a_commit_is_found_at_its_end(
    tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    if damage in (overwritten, appended_to, cut_off):
        pytest.skip("the commit itself writes there")
    opened = founded(tmp_path / "n1")
    rows = opened._rows
    assert isinstance(rows, SQLiteRows)
    writer = rows._writer

    class Damaging:
        in_transaction = False

        def execute(self, statement: str, *arguments: Any) -> Any:
            assert writer is not None
            if statement == "COMMIT":
                damage(tmp_path / "n1" / name)
            return writer.execute(statement, *arguments)

        def __getattr__(self, attribute: str) -> Any:
            return getattr(writer, attribute)

    rows._writer = Damaging()  # type: ignore[assignment]
    with pytest.raises(errors.StorageFailed, match="by another process"):
        opened.commit([Write(GROUP, 2, None)])
    rows._writer = writer
    opened.close()


@each_damage
def test_a_node_that_writes_nothing_finds_within_a_second_what_was_done_to_its_files(
    tmp_path: Path, name: str, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    url = f"memory://{tmp_path}"
    node = raftplug.Node("n1", peers=["n1"], redis=url, data_dir=tmp_path / "n1", state_machine=Sum(), bootstrap=True)
    with node, node.subscribe("stopped") as events:
        assert node.propose(1).result(10) == 1
        damage(tmp_path / "n1" / name)
        began = time.monotonic()
        assert node.join(10), "it goes on"
        took = time.monotonic() - began
        assert isinstance(node.failure, errors.StorageFailed)
        assert took < 2, f"it took {took:.2f} s"
        with pytest.raises(errors.Unavailable, match="by another process"):
            node.propose(1)
        assert "node n1 stops: StorageFailed" in caplog.text
        event = events.get(10)
        assert event is not None and event.details["error"] == f"StorageFailed: {node.failure}"


def test_what_else_lies_in_the_directory_may_come_and_go(tmp_path: Path) -> None:
    opened = founded(tmp_path / "n1")
    (tmp_path / "n1" / "theirs").write_text("x")
    (tmp_path / "n1" / PID_NAME).unlink()
    (tmp_path / "n1" / NAME).chmod(0o600)
    opened.verify()
    for term in range(1, 20):
        opened.commit([Write(GROUP, term, None)])
        opened.verify()
    (tmp_path / "n1" / "theirs").unlink()
    opened.commit([Write(GROUP, 20, None)])
    opened.close()
    assert term_of(SQLiteStorage(tmp_path / "n1", "n1")) == 20


def test_checking_the_files_beside_commits_and_checkpoints_finds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raftplug.rows._CHECKPOINT_BYTES", 10_000)
    opened = founded(tmp_path / "n1")
    done, failures = threading.Event(), []

    def verify() -> None:
        while not done.is_set():
            try:
                opened.verify()
            except errors.StorageError as error:
                failures.append(error)
                return

    threads = [threading.Thread(target=verify) for _ in range(2)]
    for thread in threads:
        thread.start()
    for term in range(1, 300):
        opened.commit([Write(GROUP, term, None)])
    done.set()
    for thread in threads:
        thread.join()
    opened.close()
    assert not failures


# ------------------------------------------------------------------------------------------------------ refused starts


def closed(path: Path) -> None:
    founded(path).close()


def killed(path: Path) -> None:
    with_a_snapshot(path, kill=True)


def with_a_snapshot(path: Path, kill: bool = False) -> None:
    code = f"""
import os, sys
sys.path[:0] = {[str(Path(__file__).parent)]!r}
import test_directory
opened = test_directory.founded({str(path)!r})
for term in range(1, 20):
    opened.commit([test_directory.Write("default", term, None)])
if {kill}:
    os._exit(0)
opened.close()
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def empty(path: Path) -> None:
    path.mkdir()


def of_a_founding_that_died(path: Path) -> None:
    path.mkdir()
    (path / (NAME + ".new")).write_bytes(b"something")


def linked(path: Path) -> None:
    closed(path)
    (path.parent / "other name").hardlink_to(path / NAME)


def missing(path: Path) -> None:
    pass


STATES = {each.__name__: each for each in (closed, killed, empty, of_a_founding_that_died, linked, missing)}
USED = ("closed", "killed", "linked")


class Unreadable(Sum):
    def create_snapshot(self, last_included_index: int, last_included_term: int) -> raftplug.Snapshot:
        return raftplug.Snapshot(last_included_index, last_included_term, 1)

    def set_snapshot(self, snapshot: raftplug.Snapshot) -> None:
        raise ValueError("this snapshot is not mine")

    def get_snapshot(self) -> raftplug.Snapshot:
        return raftplug.Snapshot(1, 1, 1)


FOUNDS: dict[str, Any] = {"peers": ["n1"], "bootstrap": True}
REFUSALS: dict[str, tuple[dict[str, Any], type[Exception]]] = {
    "another_id": ({"id": "n2"}, errors.WrongDirectory),
    "another_group": ({"groups": {"other": Sum()}}, errors.InvalidArgument),
    "another_group_too": ({"groups": {"default": Sum(), "other": Sum()}}, errors.InvalidArgument),
    "founded_again": (FOUNDS, errors.WrongDirectory),
    "no_redis": ({"redis": "redis://127.0.0.1:1"}, errors.RaftplugError),
    "no_such_transport": ({"redis": "carrier-pigeon://here"}, errors.RaftplugError),
    "no_such_machine": ({"groups": {"default": "no-such-machine"}}, errors.UnknownMachine),
    "a_machine_that_raises": ({"groups": {"default": Unreadable()}}, Exception),
    "a_new_group_and_one_that_raises": (FOUNDS | {"groups": {"new": Sum(), "default": Unreadable()}}, Exception),
}
NEW_REFUSALS: dict[str, tuple[dict[str, Any], type[Exception]]] = {
    "not_founded": ({}, errors.WrongDirectory),
    "no_redis": (FOUNDS | {"redis": "redis://127.0.0.1:1"}, errors.RaftplugError),
    "a_machine_that_raises": (FOUNDS | {"groups": {"default": Unreadable()}}, Exception),
    "peers_without_itself": ({"peers": ["n2"], "bootstrap": True}, errors.InvalidArgument),
    "nobody_to_join": ({"join": True}, errors.Unavailable),
}


def start(path: Path, options: dict[str, Any]) -> raftplug.Node:
    given: dict[str, Any] = {"redis": f"memory://{path}", "data_dir": path, "groups": {"default": Sum()}}
    given |= options
    return raftplug.Node(given.pop("id", "n1"), **given).start()


@pytest.mark.parametrize(
    ("state", "refusal"),
    [(state, refusal) for state in STATES for refusal in (REFUSALS if state in USED else NEW_REFUSALS)],
)
def test_a_start_that_is_refused_leaves_every_byte_as_it_was(
    tmp_path: Path, state: str, refusal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raftplug.node._FIND_S", 0.1)
    options, error = (REFUSALS if state in USED else NEW_REFUSALS)[refusal]
    STATES[state](tmp_path / "n1")
    before = tree(tmp_path)
    with pytest.raises(error) as caught:
        start(tmp_path / "n1", options).stop()
    text = one_line(caught)
    assert "raises" not in refusal or "not mine" in text
    assert tree(tmp_path) == before


def test_parents_that_were_made_for_a_start_that_is_refused_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()
    before = tree(tmp_path)

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(SQLiteRows, "begin", fail)
    with pytest.raises(errors.StorageFailed):
        start(tmp_path / "there" / "a" / "b" / "n1", FOUNDS)
    after = tree(tmp_path)
    assert after.keys() == before.keys()


def test_a_start_from_a_used_directory_whose_first_write_fails_leaves_it_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed(tmp_path / "n1")
    before = tree(tmp_path)

    def fail(*_: object) -> None:
        raise errors.DiskFull("no space")

    monkeypatch.setattr(SQLiteRows, "_transact", fail)
    with pytest.raises(errors.DiskFull):
        start(tmp_path / "n1", {})
    after = tree(tmp_path)
    assert {name: row[3] for name, row in after.items()} == {name: row[3] for name, row in before.items()}


def test_who_finds_the_directory_in_use_writes_nothing(tmp_path: Path) -> None:
    opened = founded(tmp_path / "n1")
    before = tree(tmp_path)
    for bootstrap in (False, True):
        with pytest.raises(errors.DirectoryInUse):
            SQLiteStorage(tmp_path / "n1", "n1", bootstrap=bootstrap)
    assert tree(tmp_path) == before
    opened.close()


# --------------------------------------------------------------------------------------------- what is given as a path


@pytest.mark.parametrize("given", ["", b"", "a\0b", 0, 1.5, True, ["n1"], "\ud800"], ids=ascii)
def test_what_is_no_path_is_refused_where_it_is_given(
    tmp_path: Path, given: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "file")
    before = tree(tmp_path)
    options: dict[str, Any] = {"redis": "memory://it", "state_machine": Sum(), "data_dir": given}
    calls: list[Callable[[], object]] = [
        lambda: raftplug.Node("n1", **options, **FOUNDS),
        lambda: SQLiteStorage(given, "n1", bootstrap=True),
        lambda: recover(given, "n1"),
        lambda: restore(tmp_path / "file", given, id="n1", peers=["n1"]),
        lambda: Writer(given, "g", StoredSnapshot(1, 1, 1, 1, 1, bytes(32))),
    ]
    for call in calls:
        with pytest.raises(errors.InvalidArgument, match="must be a path") as caught:
            call()
        one_line(caught)
    assert tree(tmp_path) == before


def test_a_node_without_a_data_directory_is_refused() -> None:
    with pytest.raises(errors.InvalidArgument, match="data directory"):
        raftplug.Node("n1", peers=["n1"], redis="memory://it", state_machine=Sum(), bootstrap=True, data_dir=None)


def a_file(path: Path) -> None:
    path.write_text("theirs")


def below_a_file(path: Path) -> None:
    path.parent.write_text("theirs")


def a_link_to_nothing(path: Path) -> None:
    path.symlink_to(path.with_name("nothing"))


def below_a_link_to_nothing(path: Path) -> None:
    path.parent.symlink_to(path.with_name("nothing"))


def a_link_to_itself(path: Path) -> None:
    path.symlink_to(path)


def a_name_that_is_too_long(path: Path) -> None:
    pass


def a_database_that_is_a_link(path: Path) -> None:
    closed(path)
    (path / NAME).rename(path.with_name("elsewhere"))
    (path / NAME).symlink_to(path.with_name("elsewhere"))


def a_database_that_is_a_directory(path: Path) -> None:
    (path / NAME).mkdir(parents=True)


PLACES = {
    each.__name__: each
    for each in (
        a_file,
        below_a_file,
        a_link_to_nothing,
        below_a_link_to_nothing,
        a_link_to_itself,
        a_name_that_is_too_long,
        a_database_that_is_a_link,
        a_database_that_is_a_directory,
    )
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("options", [FOUNDS, {}, {"join": True}], ids=["found", "used", "join"])
def test_a_path_that_cannot_be_a_data_directory_is_refused_in_one_line(
    tmp_path: Path, place: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raftplug.node._FIND_S", 0.1)
    path = tmp_path / "below" / "n1" if place.startswith("below") else tmp_path / "n1"
    path = path.with_name("x" * 300) if "too_long" in place else path
    PLACES[place](path)
    before = tree(tmp_path)
    with pytest.raises(errors.RaftplugError) as caught:
        start(path, options)
    assert one_line(caught)
    if options != {"join": True}:
        assert isinstance(caught.value, errors.StorageError) and str(path.parent) in str(caught.value)
    assert tree(tmp_path) == before


def as_another_user(path: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run code as a user who is not the owner of `path`; it may use what this test's process may import."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    nobody = 65534
    before = f"import os, sys; sys.path[:0] = {sys.path!r}; import raftplug, raftplug.node, raftplug.storage\n"
    before += f"import raftplug.cluster; os.setgroups([]); os.setgid({nobody}); os.setuid({nobody})\n"
    done = subprocess.run([sys.executable, "-c", before + code], capture_output=True, text=True)
    assert "Traceback" not in done.stderr, done.stderr
    return done


TRY = """
class Sum(raftplug.StateMachine):
    def apply_transition(self, transition): return 1
try:
    options = dict(peers=["n1"], redis="memory://it", state_machine=Sum())
    node = raftplug.Node("n1", data_dir={path!r}, bootstrap={how}, **options).start()
except raftplug.errors.StorageError as error:
    print(type(error).__name__, error)
else:
    node.stop()
    print("ran")
"""


def opened_to_all(path: Path) -> None:
    """So that another user reaches what pytest made."""
    for each in [path, *path.parents]:
        if each.owner() == "root" and each not in (Path("/"), Path("/tmp")):
            each.chmod(0o711)


@pytest.mark.parametrize("mode", [0o700, 0o500, 0o555, 0o711])
@pytest.mark.parametrize("how", [True, False])
def test_a_directory_without_permission_is_refused_in_one_line(tmp_path: Path, mode: int, how: bool) -> None:
    opened_to_all(tmp_path)
    path = tmp_path / "n1"
    path.mkdir() if how else closed(path)
    path.chmod(mode)
    before = tree(tmp_path)
    said = as_another_user(path, TRY.format(path=str(path), how=how)).stdout
    assert said.startswith(("StorageFailed", "WrongDirectory")) and said.count("\n") == 1, said
    assert tree(tmp_path) == before


def mounted(path: Path, *options: str) -> None:
    """Mount a file system in memory; the caller unmounts it."""
    path.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", *options, "none", str(path)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"this user may not mount: {done.stderr.strip()}")


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """A function that makes a small file system."""
    made: list[Path] = []

    def make(*options: str) -> Path:
        path = tmp_path / f"mount{len(made)}"
        mounted(path, *options)
        made.append(path)
        return path

    yield make
    for path in made:
        subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.mark.parametrize("state", [closed, killed, missing])
def test_a_file_system_that_can_only_be_read_is_refused_in_one_line(
    mount: Callable[..., Path], state: Callable[[Path], None]
) -> None:
    path = mount()
    state(path / "n1")
    subprocess.run(["mount", "-o", "remount,ro", str(path)], check=True)
    before = tree(path)
    with pytest.raises(errors.StorageFailed, match=r"[Rr]ead-only file system"):
        start(path / "n1", {} if (path / "n1").exists() else FOUNDS)
    assert tree(path) == before


# --------------------------------------------------------------------------------------------------------------- modes


def modes(root: Path) -> dict[str, int]:
    return {str(path.relative_to(root)): stat.S_IMODE(path.lstat().st_mode) for path in [root, *root.rglob("*")]}


@pytest.fixture(params=[0, 0o022, 0o077, 0o277, 0o777], ids=oct)
def umask(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_no_other_user_reads_a_data_directory_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    path = tmp_path / "above" / "n1"
    node = start(path, FOUNDS)
    try:
        assert node.propose(1).result(10) == 1
        found = modes(tmp_path / "above")
        assert set(found) >= {"n1/" + NAME, "n1/" + WAL, "n1/" + PID_NAME}
    finally:
        node.stop()
    for name, mode in (found | modes(tmp_path / "above")).items():
        assert mode == (0o700 if name in (".", "n1") else 0o600), (name, oct(mode))
    with_kill = start(path, {})
    with_kill.stop()


def test_no_other_user_reads_a_backup_or_what_is_restored_from_it_whatever_the_umask(
    tmp_path: Path, umask: int
) -> None:
    written(tmp_path / "file")
    restore(tmp_path / "file", tmp_path / "above" / "n1", id="n1", peers=["n1"])
    assert modes(tmp_path / "file") == {".": 0o600}
    for name, mode in modes(tmp_path / "above").items():
        assert mode == (0o700 if name in (".", "n1") else 0o600), (name, oct(mode))


def test_what_a_killed_process_left_is_copied_with_the_mode_of_a_new_file(tmp_path: Path, umask: int) -> None:
    killed(tmp_path / "n1")
    SQLiteStorage(tmp_path / "n1", "n1").close()
    assert modes(tmp_path / "n1")[NAME] == 0o600


def test_a_directory_that_others_may_open_is_closed_to_them_if_it_is_the_nodes_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "n1"
    path.mkdir(mode=0o755)
    founded(path).close()
    assert modes(path) == {".": 0o700, NAME: 0o600}
    assert caplog.text.count("its mode is 700 now") == 1
    caplog.clear()
    path.chmod(0o750)
    (path / NAME).chmod(0o644)
    (path / "theirs").write_text("x")
    (path / "theirs").chmod(0o644)
    SQLiteStorage(path, "n1").close()
    assert modes(path) == {".": 0o750, NAME: 0o600, "theirs": 0o644}
    assert "other users could read it" in caplog.text and "give the node a directory of its own" in caplog.text
    caplog.clear()
    path.chmod(0o700)
    SQLiteStorage(path, "n1").close()
    assert not caplog.text


# --------------------------------------------------------------------------------------------------- what is not there


@pytest.mark.parametrize("bootstrap", [False, True])
@pytest.mark.parametrize("gone", [NAME, WAL, "both"])
def test_a_deleted_part_of_a_killed_nodes_directory_is_named_and_nothing_is_called_new(
    tmp_path: Path, gone: str, bootstrap: bool
) -> None:
    path = tmp_path / "n1"
    killed(path)
    for name in (NAME, WAL) if gone == "both" else (gone,):
        (path / name).unlink()
    before = tree(tmp_path)
    with pytest.raises(errors.Corrupt) as caught:
        start(path, FOUNDS if bootstrap else {})
    text = one_line(caught)
    assert f"{path / (NAME if gone == 'both' else gone)} is missing" in text and "is new" not in text
    assert tree(tmp_path) == before


@pytest.mark.parametrize("size", [0, 31])
def test_a_write_ahead_log_that_was_cut_off_to_nothing_is_named(tmp_path: Path, size: int) -> None:
    killed(tmp_path / "n1")
    os.truncate(tmp_path / "n1" / WAL, size)
    with pytest.raises(errors.Corrupt, match=r"sqlite3-wal is cut off"):
        start(tmp_path / "n1", {})


def test_a_database_that_was_copied_without_its_log_from_a_running_node_is_refused(tmp_path: Path) -> None:
    opened = founded(tmp_path / "n1")
    opened.commit([Write(GROUP, 7, None)])
    (tmp_path / "copy").mkdir()
    shutil.copy(tmp_path / "n1" / NAME, tmp_path / "copy" / NAME)
    with pytest.raises(errors.Corrupt, match=r"sqlite3-wal is missing"):
        SQLiteStorage(tmp_path / "copy", "n1")
    opened.close()


def test_a_database_is_whole_without_its_log_after_it_was_closed_or_reopened_in_vain(tmp_path: Path) -> None:
    path = tmp_path / "n1"
    opened = founded(path)
    opened.commit([Write(GROUP, 7, None)])
    opened.close()
    assert sorted(each.name for each in path.iterdir()) == [NAME]
    with pytest.raises(errors.WrongDirectory):
        SQLiteStorage(path, "n2")
    unclosed = SQLiteStorage(path, "n1", begin=False)
    assert term_of(unclosed) == 7
    unclosed.close()
    assert term_of(SQLiteStorage(path, "n1")) == 7


def test_what_is_not_finished_keeps_its_log(tmp_path: Path) -> None:
    closed(tmp_path / "n1")
    rows = SQLiteRows(str(tmp_path / "n1" / NAME))
    rows.begin(())
    rows.close()
    assert term_of(SQLiteStorage(tmp_path / "n1", "n1")) == 0


def test_a_storage_that_is_never_closed_keeps_its_log(tmp_path: Path) -> None:
    """What the interpreter closes at its end must not look like a log that was deleted."""
    code = f"""
import sys
sys.path[:0] = {sys.path!r}
import test_directory
from pathlib import Path
opened = test_directory.founded(Path({str(tmp_path / "n1")!r}))
opened.commit([test_directory.Write("default", 7, None)])
"""
    for end in ("", "del opened", "keep = [opened, opened._rows, opened._rows._reader]", "import os; os._exit(0)"):
        shutil.rmtree(tmp_path / "n1", ignore_errors=True)
        subprocess.run([sys.executable, "-c", code + end], check=True)
        opened = SQLiteStorage(tmp_path / "n1", "n1")
        assert term_of(opened) == 7
        opened.close()


PROGRAMS = {
    "founding": "import test_directory as t; t.founded(path).close()",
    "start_after_a_kill": "from raftplug.storage import SQLiteStorage; SQLiteStorage(path, 'n1').close()",
    "backup": "import test_backup as t; t.written(path)",
    "restore": "from raftplug.backup import restore; restore(path + '.backup', path, id='n1', peers=['n1'])",
}


@pytest.mark.parametrize("what", PROGRAMS)
def test_what_gets_a_name_is_on_the_disk_before_and_its_name_is_afterwards(tmp_path: Path, what: str) -> None:
    """A loss of power must take neither the directory of a node that has voted nor what is in a file."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    path = tmp_path / "a" / "b" / "n1"
    if what == "start_after_a_kill":
        killed(path)
    elif what != "founding":
        path.parent.mkdir(parents=True)
    if what == "restore":
        written(Path(f"{path}.backup"))
    code = f"import sys; sys.path[:0] = {sys.path!r}; path = {str(path)!r}; {PROGRAMS[what]}"
    traced = "trace=mkdir,rename,fsync,fdatasync,write,pwrite64"
    strace = ["strace", "-f", "-qq", "-y", "-s", "0", "-o", str(tmp_path / "trace"), "-e", traced]
    subprocess.run([*strace, sys.executable, "-B", "-c", code], check=True)
    calls = (tmp_path / "trace").read_text().splitlines()

    def is_synced(place: str, among: list[str]) -> bool:
        return any(f"<{place}>)" in each and "sync(" in each for each in among)

    named = 0
    for number, call in enumerate(calls):
        made = re.search(r'(mkdir|rename)\("([^"]+)"(?:, "([^"]+)")?.*\) = 0', call)
        if made is None or str(tmp_path) not in made[2]:
            continue
        named += 1
        writes = [at for at in range(number) if re.search(rf"write(64)?\(\d+<{re.escape(made[2])}>", calls[at])]
        assert not writes or is_synced(made[2], calls[writes[-1] : number]), call
        # Its name: before anything is written to what has it, or into it.
        name, later = made[3] or made[2], calls[number + 1 :]
        own = re.compile(rf"write(64)?\(\d+<{re.escape(name)}(-wal|/[^>]*)?>")
        first = next((at for at, each in enumerate(later) if own.search(each)), len(later))
        assert is_synced(os.path.dirname(name), later[:first]), call
    assert named == {"founding": 4, "start_after_a_kill": 2, "backup": 1, "restore": 3}[what]


# -------------------------------------------------------------------------------------------------- a disk that fails


OPEN = """
import os, sys
sys.path[:0] = {path!r}
import test_directory
try:
    opened = test_directory.SQLiteStorage(sys.argv[1], "n1")
    print("value", test_directory.term_of(opened))
    opened.close()
except test_directory.errors.StorageError as error:
    print(type(error).__name__, error)
os._exit(0)
"""


def opened_under(path: Path, *strace: str) -> str:
    """What comes of opening a directory; `strace` says what fails."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    files = [option for name in (NAME, WAL) for option in ("-P", str(path / name))]
    command = ["strace", "-f", "-qq", "-o", str(path.parent / "trace"), *files, *strace] if strace else []
    command += [sys.executable, "-c", OPEN.format(path=sys.path), str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    if "ptrace" in done.stderr.lower():
        pytest.skip(f"strace may not trace here: {done.stderr.splitlines()[0]}")
    return done.stdout.strip() or done.stderr


def failures(call: str, error: str, when: str) -> tuple[str, ...]:
    return "-e", f"trace={call}", "-e", f"inject={call}:error={error}:when={when}"


@pytest.mark.parametrize("when", ["1", "2", "6", "11", "16", "21", "24", "1+", "8+", "20+"])
@pytest.mark.parametrize("state", [closed, killed])
def test_a_disk_that_does_not_give_what_is_there_is_not_called_damage(
    tmp_path: Path, state: Callable[[Path], None], when: str
) -> None:
    path = tmp_path / "n1"
    state(path)
    said = opened_under(path, *failures("pread64", "EIO", when))
    assert "INJECTED" in (tmp_path / "trace").read_text()
    assert said.startswith("StorageFailed") and "damaged" not in said and "look at the disk" in said, said
    assert opened_under(path) == f"value {0 if state is closed else 19}"


@pytest.mark.parametrize("call", ["pread64", "read", "pwrite64", "fdatasync", "ftruncate"])
@pytest.mark.parametrize("state", [closed, killed])
def test_whatever_call_fails_first_the_next_start_finds_everything(
    tmp_path: Path, state: Callable[[Path], None], call: str
) -> None:
    path = tmp_path / "n1"
    state(path)
    said = opened_under(path, *failures(call, "EIO", "1+"))
    assert said.startswith(("StorageFailed", "value")), said
    assert opened_under(path) == f"value {0 if state is closed else 19}"


@pytest.mark.parametrize("when", range(1, 8))
def test_after_a_failed_sync_a_directory_is_as_before_the_start_or_was_not_closed_well(
    tmp_path: Path, when: int
) -> None:
    path = tmp_path / "n1"
    closed(path)
    before = (path / NAME).read_bytes()
    said = opened_under(path, *failures("fdatasync", "EIO", f"{when}+"))
    assert "StorageFailed" in said
    inode = (path / NAME).stat().st_ino
    unchanged = sorted(each.name for each in path.iterdir()) == [NAME] and (path / NAME).read_bytes() == before
    assert unchanged or (path / WAL).exists()
    assert opened_under(path) == "value 0"
    copied = (path / NAME).stat().st_ino != inode
    assert copied != unchanged, "what was not synced is copied before it is believed"


def test_a_disk_that_gives_the_copy_something_else_than_it_gave_before_is_not_believed(tmp_path: Path) -> None:
    """After a failed sync a page may leave the memory between the two, and come back as it was on the disk."""
    path = tmp_path / "n1"
    killed(path)
    opened = SQLiteStorage(path, "n1", begin=False)
    assert term_of(opened) == 19
    os.truncate(path / WAL, (path / WAL).stat().st_size // 2)
    with pytest.raises(errors.StorageFailed, match="two answers"):
        opened.begin()
    with pytest.raises(errors.StorageFailed):
        opened.commit([Write(GROUP, 20, None)])
    opened.close()


def test_damage_is_still_called_damage(tmp_path: Path) -> None:
    path = tmp_path / "n1"
    killed(path)
    with (path / NAME).open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * 20_000)
    (path / WAL).unlink()
    header = bytearray((path / NAME).read_bytes()[:100])
    header[60:64] = (2).to_bytes(4, "big")  # As if it had been closed.
    with (path / NAME).open("r+b") as file:
        file.write(header)
    assert opened_under(path).startswith("Corrupt")


# ------------------------------------------------------------------------------------------------------------- no room


def test_the_copy_of_a_start_that_finds_no_room_is_removed_and_the_error_says_how_much_it_takes(
    mount: Callable[..., Path],
) -> None:
    path = mount("-o", "size=1m")
    killed(path / "n1")
    size = (path / "n1" / NAME).stat().st_size
    needed = max(size, (path / "n1" / WAL).stat().st_size)
    free = shutil.disk_usage(path).free
    (path / "theirs").write_bytes(bytes(free - 20_000))
    before = tree(path)
    with pytest.raises(errors.DiskFull) as caught:
        start(path / "n1", {})
    assert f"{needed:,} bytes are needed for a copy" in one_line(caught) and "are free" in one_line(caught)
    assert tree(path) == before
    (path / "theirs").unlink()
    assert term_of(SQLiteStorage(path / "n1", "n1")) == 19


def test_a_copy_that_fails_in_the_middle_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed(tmp_path / "n1")
    before = tree(tmp_path)

    def fill(old: Any, new: Any, length: int) -> None:
        new.write(old.read(5000))
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(shutil, "copyfileobj", fill)
    with pytest.raises(errors.DiskFull, match="bytes are needed for a copy"):
        start(tmp_path / "n1", {})
    after = tree(tmp_path)
    assert {name: row[3] for name, row in after.items()} == {name: row[3] for name, row in before.items()}


def test_a_checkpoint_that_finds_no_room_is_not_taken_for_another_process(mount: Callable[..., Path]) -> None:
    path = mount("-o", "size=2m")
    opened = founded(path / "n1")
    rows = opened._rows
    assert isinstance(rows, SQLiteRows)
    piece = Piece(0, 0, bytes(300_000))
    opened.commit([Write(GROUP, 1, None, pieces=[piece])])  # In the log: the database has no room for it.
    (path / "theirs").write_bytes(bytes(shutil.disk_usage(path).free - 100_000))
    with pytest.raises(errors.DiskFull):
        rows._checkpoint("PASSIVE")
    opened.verify()
    (path / "theirs").unlink()
    opened.commit([Write(GROUP, 2, None)])
    opened.close()
    assert term_of(SQLiteStorage(path / "n1", "n1")) == 2


@pytest.mark.parametrize("state", [closed, killed])
def test_a_start_and_an_end_on_a_full_disk_lose_nothing(
    mount: Callable[..., Path], state: Callable[[Path], None]
) -> None:
    path = mount("-o", "size=2m")
    state(path / "n1")
    term = 0 if state is closed else 19

    def fill() -> None:
        with contextlib.suppress(OSError), (path / "theirs").open("wb", 0) as file:
            while file.write(bytes(4096)):
                pass

    fill()
    before = tree(path)
    with pytest.raises(errors.DiskFull) as caught:
        start(path / "n1", {})
    one_line(caught)
    assert {name: row[3] for name, row in tree(path).items()} == {name: row[3] for name, row in before.items()}
    (path / "theirs").unlink()
    opened = SQLiteStorage(path / "n1", "n1")
    assert term_of(opened) == term
    fill()
    block = Piece(0, 0, bytes(200_000))
    with pytest.raises(errors.DiskFull):
        opened.commit([Write(GROUP, term + 1, None, pieces=[block])])
    opened.verify()
    with contextlib.suppress(errors.DiskFull):
        opened.close()
    (path / "theirs").unlink()
    assert term_of(SQLiteStorage(path / "n1", "n1")) == term


@pytest.mark.parametrize("pages", range(1, 24, 2))
def test_a_founding_without_room_leaves_nothing(mount: Callable[..., Path], pages: int) -> None:
    path = mount("-o", f"size={pages * 4}k")
    caught: errors.DiskFull | None = None
    try:
        start(path / "a" / "n1", FOUNDS).stop()
    except errors.DiskFull as error:
        caught = error
    if caught is None:
        assert pages > 10
    else:
        assert "no space left" in str(caught) and "\n" not in str(caught)
        assert list(path.iterdir()) == []


def test_a_restore_and_a_backup_without_room_leave_nothing_and_say_how_much_they_take(
    tmp_path: Path, mount: Callable[..., Path]
) -> None:
    snapshot = written(tmp_path / "file")
    path = mount("-o", "size=1m")
    with pytest.raises(errors.DiskFull, match=f"{snapshot.size:,} bytes are needed for what is in the backup"):
        restore(tmp_path / "file", path / "above" / "n1", id="n1", peers=["n1"])
    with pytest.raises(errors.DiskFull, match=f"{snapshot.size:,} bytes are needed for the backup"):
        Writer(path / "file", "g", snapshot)
    assert list(path.iterdir()) == []
    path = mount("-o", f"size={snapshot.size + 50_000}")  # The bytes have room, but not what is written beside them.
    with pytest.raises(errors.DiskFull, match=f"{snapshot.size:,} bytes are needed"):
        restore(tmp_path / "file", path / "above" / "n1", id="n1", peers=["n1"])
    assert list(path.iterdir()) == []


# ------------------------------------------------------------------------------------------------------------- restore


def test_a_restore_takes_the_place_of_one_that_was_killed_and_of_nothing_else(tmp_path: Path) -> None:
    written(tmp_path / "file")
    half = tmp_path / "n1.restoring"
    unfinished = SQLiteStorage(half, "n1", bootstrap=True)
    with pytest.raises(errors.DirectoryInUse):
        restore(tmp_path / "file", tmp_path / "n1", id="n1", peers=["n1"])
    unfinished.close()
    restore(tmp_path / "file", tmp_path / "n1", id="n1", peers=["n1"])
    assert not half.exists()
    half = tmp_path / "n2.restoring"
    half.mkdir()
    (half / "theirs").write_text("keep")
    before = tree(tmp_path)
    with pytest.raises(errors.InvalidArgument, match="holds something else"):
        restore(tmp_path / "file", tmp_path / "n2", id="n1", peers=["n1"])
    with pytest.raises(errors.InvalidArgument, match="not empty"):
        restore(tmp_path / "file", tmp_path / "n1", id="n1", peers=["n1"])
    assert {name: row[3] for name, row in tree(tmp_path).items()} == {name: row[3] for name, row in before.items()}


def test_a_restore_into_an_empty_directory_or_a_link_to_one_fills_that(tmp_path: Path) -> None:
    written(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    restore(tmp_path / "file", tmp_path / "link", id="n1", peers=["n1"])
    assert (tmp_path / "link").is_symlink()
    assert modes(tmp_path / "empty") == {".": 0o700, NAME: 0o600}
    assert SQLiteStorage(tmp_path / "link", "n1").groups() == ["g"]


def test_a_restore_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "file")
    before = tree(tmp_path)

    def fail(*_: object) -> None:
        raise errors.StorageFailed("the disk is gone")

    for name in ("create_all", "commit", "close"):
        with monkeypatch.context() as patch:
            patch.setattr(storage.RecordStorage, name, fail)
            with pytest.raises(errors.StorageFailed):
                restore(tmp_path / "file", tmp_path / "above" / "n1", id="n1", peers=["n1"])
        assert tree(tmp_path).keys() == before.keys()


@pytest.mark.parametrize("state", [closed, killed])
def test_a_recovery_that_is_refused_leaves_every_byte_as_it_was(tmp_path: Path, state: Callable[[Path], None]) -> None:
    state(tmp_path / "n1")
    before = tree(tmp_path)
    with pytest.raises(errors.WrongDirectory):
        recover(tmp_path / "n1", "n2")
    assert tree(tmp_path) == before
    assert recover(tmp_path / "n1", "n1")[0]["voters_before"] == ["n1"]


def test_the_recovery_of_a_witness_leaves_every_byte_as_it_was(tmp_path: Path) -> None:
    opened = SQLiteStorage(tmp_path / "n1", "n1", cluster=CLUSTER, bootstrap=True)
    members = raftplug.core.Configuration(["n1", "n2", "n3"], witnesses=["n1"])
    opened.create(GROUP, plain.encode(members.plain()))
    opened.close()
    before = tree(tmp_path)
    with pytest.raises(errors.InvalidArgument, match="is a witness"):
        recover(tmp_path / "n1", "n1")
    assert tree(tmp_path) == before


WORDS = {
    "node": ("--redis", "memory://it", "--id", "n1", "--machine", "kv"),
    "members recover": ("--id", "n1", "--unsafe"),
    "restore": ("file", "--id", "n1", "--peers", "n1"),
    "doctor": (),
}


@pytest.mark.parametrize("command", WORDS)
def test_an_empty_path_is_refused_on_the_command_line(tmp_path: Path, command: str) -> None:
    (tmp_path / "file").write_text("x")
    words = [sys.executable, "-m", "raftplug", *command.split(), *WORDS[command], "--data-dir", ""]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 2 and "the path is empty" in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
