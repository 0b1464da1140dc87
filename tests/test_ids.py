"""Ids keep their type: what is printed can be given back, and no text can be mistaken for a number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import raftplug
from processes import Cluster, Running, server, succeeded, wait_until
from raftplug.cli import main, options
from raftplug.embedded import EmbeddedServer
from raftplug.errors import InvalidArgument
from raftplug.frames import check_group, check_id, parse_id
from raftplug.state_machine import StateMachine
from raftplug.storage import MemoryStorage

__all__ = ["server"]


class Sum(StateMachine):
    def apply_transition(self, transition: Any) -> Any:
        return transition


@pytest.mark.parametrize("id", [0, 1, 42, (1 << 63) - 1, "n1", "1a", "a1", "1.5", "-1", "1e5", "_", "x" * 64])
def test_what_is_printed_for_an_id_is_read_as_that_id(id: Any) -> None:
    assert check_id(id) == id
    read = parse_id(str(id))
    assert read == id and type(read) is type(id)


@pytest.mark.parametrize("id", ["1", "0", "42", "007", "9" * 19, str(1 << 63), "9" * 64])
def test_a_text_of_digits_is_no_id(id: str) -> None:
    with pytest.raises(InvalidArgument, match="a whole number, give an int"):
        check_id(id)
    storage = MemoryStorage("n1", cluster=bytes(16))
    given: Any = {"redis": "memory://x", "storage": storage, "state_machine": Sum()}
    for make in (
        lambda: raftplug.Node(id, **given),
        lambda: raftplug.Node("n1", peers=["n1", id], **given),
        lambda: raftplug.Replica(0, [id], None, Sum(), 0, 0, 0.1, (0.3, 0.6)),  # type: ignore[arg-type]
        lambda: raftplug.Replica(id, [0], None, Sum(), 0, 0, 0.1, (0.3, 0.6)),  # type: ignore[arg-type]
    ):
        with pytest.raises(InvalidArgument, match="a whole number, give an int"):
            make()


NO_IDS = ["", "007", "00", str(1 << 63), "9" * 70, "9" * 5_000, "\u0661", "a b", "~c", "x" * 65, "1,2"]


@pytest.mark.parametrize("text", NO_IDS)
def test_what_is_no_id_is_refused_on_the_command_line(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_id(text)
    result = CliRunner().invoke(main, ["members", "remove", text, "--redis", "memory://nobody", "--timeout", "1"])
    assert result.exit_code == 2 and result.output.count("\n") == 1


def test_groups_are_texts_of_digits_too() -> None:
    assert check_group("2024") == "2024"
    with pytest.raises(InvalidArgument):
        check_group(2024)


@pytest.mark.parametrize(
    "text", ["1e999", "[-1e999]", "[1e400]", '{"a": [1, 1e309]}', "NaN", "Infinity", "[-Infinity]"]
)
def test_a_number_that_no_float_can_be_is_refused_on_the_command_line(text: str) -> None:
    for what in ("propose", "read"):
        result = CliRunner().invoke(main, [what, text, "--redis", "memory://nobody", "--timeout", "1"])
        assert result.exit_code == 2, result.output
        assert "is not JSON that raftplug takes" in result.output and result.output.count("\n") == 1
    result = CliRunner().invoke(main, ["propose", "-", "--redis", "memory://nobody", "--timeout", "1"], input=text)
    assert result.exit_code == 2 and "is not JSON that raftplug takes" in result.output


def test_every_number_that_a_float_can_be_is_taken_on_the_command_line() -> None:
    for text in ("1e308", "-1.7976931348623157e308", "5e-324", "1e-999", "0.1", "-0.0", "12"):
        assert repr(options.parse_json(text, "x")) == repr(json.loads(text))


def test_members_whose_ids_are_numbers_can_be_listed_removed_and_led(server: EmbeddedServer, tmp_path: Path) -> None:
    cluster = Cluster(server, tmp_path)
    peers = ("1", "2", "n3")
    try:
        for id in peers:
            words = ("--id", id, "--machine", "kv", "--data-dir", str(tmp_path / id), "--peers", ",".join(peers))
            cluster.nodes[id] = Running(tmp_path / f"{id}.log", "node", *words, "--bootstrap", *cluster.options)
        for id in peers:
            cluster.nodes[id].wait_for_line(rf"^{id}: node of group g, ")
        wait_until(lambda: cluster.status()["leader"] is not None, "a leader")
        listed = succeeded(cluster.run("members list"))
        assert [line.split()[0] for line in listed.stdout.splitlines()[1:]] == ["1", "2", "n3"]
        assert json.loads(succeeded(cluster.run("members list", "--json")).stdout)["voters"] == [1, 2, "n3"]
        succeeded(cluster.run("members transfer", "2"))
        assert cluster.status()["leader"] == 2
        succeeded(cluster.run("members remove", "1"))
        cluster.nodes["1"].wait_for_line("removed")
        assert [row["id"] for row in cluster.status()["nodes"]] == [2, "n3"]
        with raftplug.Client(server.url, group="g") as client:
            assert client.members()["voters"] == [2, "n3"]
            with pytest.raises(InvalidArgument, match="give an int"):
                client.change_members("remove", "2")
            assert client.snapshot(2)["id"] == 2
        succeeded(cluster.run("snapshot", "--id", "2"))
        succeeded(cluster.run("backup", str(tmp_path / "backup"), "--id", "2"))
        restored = raftplug_restore(tmp_path)
        assert "node 7 of 7, 8" in restored
    finally:
        cluster.end()


def raftplug_restore(directory: Path) -> str:
    from processes import raftplug as command

    words = (str(directory / "backup"), "--id", "7", "--peers", "7,8", "--data-dir", str(directory / "7"))
    return succeeded(command("restore", *words)).stdout
