"""A data directory belongs to one process, and what is done to it behind that process's back is noticed."""

from __future__ import annotations

import json
import os
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
from raftplug import errors, storage
from raftplug.storage import SQLiteRows, SQLiteStorage, Write

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
    opened.create(GROUP, b"configuration")
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
    with node:
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


def test_what_else_lies_in_the_directory_may_come_and_go(tmp_path: Path) -> None:
    opened = founded(tmp_path / "n1")
    (tmp_path / "n1" / "theirs").write_text("x")
    (tmp_path / "n1" / storage.PID_NAME).unlink()
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
    monkeypatch.setattr(storage, "_CHECKPOINT_BYTES", 10_000)
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
