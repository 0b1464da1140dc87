"""Settings: where their values come from, what wins, and what is said of those that cannot be."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest

from raftplug.errors import InvalidArgument
from raftplug.settings import Settings

sys.path.insert(0, str(Path(__file__).parent))

from processes import Running, raftplug, refused, succeeded
from processes import server as server
from raftplug.embedded import EmbeddedServer

FIELDS = [field.name for field in dataclasses.fields(Settings)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "raftplug.toml"
    path.write_text("[raftplug]\nelection_timeout_ms = 1_000\nheartbeat_ms = 50\nmax_pending = 5\n[other]\nx = 1\n")
    return path


def test_without_anything_the_defaults_hold() -> None:
    assert Settings.load(environ={}) == Settings()


def test_arguments_win_over_variables_over_the_file_over_the_defaults(file: Path) -> None:
    environ = {"RAFTPLUG_HEARTBEAT_MS": " 60 ", "RAFTPLUG_MAX_PENDING": "6"}
    expected = Settings(election_timeout_ms=1000, heartbeat_ms=60, max_pending=7)
    assert Settings.load(file, environ, max_pending=7) == expected
    assert Settings.load(str(file), {}) == Settings(election_timeout_ms=1000, heartbeat_ms=50, max_pending=5)


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_has_a_variable_and_a_key(name: str, tmp_path: Path) -> None:
    value = getattr(Settings(), name) + 1
    expected = Settings(**{name: value})
    assert Settings.load(environ={f"RAFTPLUG_{name.upper()}": str(value)}) == expected
    (tmp_path / "file").write_text(f"[raftplug]\n{name} = {value}")
    assert Settings.load(tmp_path / "file", {}) == expected


def test_the_environment_of_the_process_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAFTPLUG_MAX_PENDING", "17")
    assert Settings.load().max_pending == 17


def test_variables_that_are_no_settings_are_left_alone() -> None:
    others = ["CORE", "NO_EXT", "REQUIRE_EXT", "CLUSTER_KEY", "REDIS", "REWRITE_SCENARIOS", "DEMO_TEST"]
    others += ["SERVICE_HOST", "PORT", "PORT_6379_TCP_ADDR"]  # What Kubernetes tells of a service named raftplug.
    assert Settings.load(environ={f"RAFTPLUG_{name}": "x" for name in others} | {"PATH": "/bin"}) == Settings()


@pytest.mark.parametrize(
    ("variable", "text", "words"),
    [
        ("RAFTPLUG_ELECTION_TIMEOUT_MS", "soon", ["election_timeout_ms", "whole number", "'soon'"]),
        ("RAFTPLUG_ELECTION_TIMEOUT_MS", "", ["election_timeout_ms", "whole number"]),
        ("RAFTPLUG_ELECTION_TIMEOUT_MS", "-5", ["election_timeout_ms", "whole number"]),
        ("RAFTPLUG_ELECTION_TIMEOUT_MS", "1e3", ["election_timeout_ms", "whole number"]),
        ("RAFTPLUG_ELECTION_TIMEOUT_MS", "9" * 5000, ["election_timeout_ms", "whole number"]),
        ("RAFTPLUG_MAX_PENDING", "0", ["max_pending", "at least 1"]),
        ("RAFTPLUG_HEARTBEAT_MS", "400", ["heartbeat_ms", "half of election_timeout_ms"]),
        ("RAFTPLUG_ELECTION_TIMOUT_MS", "500", ["did you mean RAFTPLUG_ELECTION_TIMEOUT_MS"]),
        ("RAFTPLUG_HEARTBEAT", "50", ["did you mean RAFTPLUG_HEARTBEAT_MS"]),
    ],
)
def test_a_variable_that_cannot_be_is_named(variable: str, text: str, words: list[str]) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Settings.load(environ={variable: text})
    for word in [variable, *words]:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[raftplug]\nheartbeat_ms = '50'", ["heartbeat_ms", "'50'"]),
        ("[raftplug]\nheartbeat_ms = true", ["heartbeat_ms", "True"]),
        ("[raftplug]\nheartbeat_ms = 50.0", ["heartbeat_ms", "50.0"]),
        ("[raftplug]\nheartbeat_ms = 251", ["heartbeat_ms", "251", "half of election_timeout_ms"]),
        ("[raftplug]\nhartbeat_ms = 50", ["'hartbeat_ms'", "did you mean heartbeat_ms?"]),
        ("[raftplug]\nx = 1", ["'x'", "there are election_timeout_ms, heartbeat_ms"]),
        ("[raftplug.heartbeat_ms]\nx = 1", ["heartbeat_ms"]),
        ("heartbeat_ms = 50", ["no table [raftplug]"]),
        ("raftplug = 5", ["no table [raftplug]"]),
        ("", ["no table [raftplug]"]),
        ("[raftplug]\nx = = 1", ["not TOML", "line 2"]),
        ("x = " + "[" * 5000, ["not TOML"]),
    ],
)
def test_a_file_that_cannot_be_is_named(tmp_path: Path, content: str, words: list[str]) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(content)
    with pytest.raises(InvalidArgument) as caught:
        Settings.load(path, {})
    for word in [str(path), *words]:
        assert word in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"[raftplug]\n# \xe9")
    for path, why in ((tmp_path / "none", "No such file"), (tmp_path, "directory"), (tmp_path / "latin", "not TOML")):
        with pytest.raises(InvalidArgument, match=why) as caught:
            Settings.load(path, {})
        assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("given", "why"), [({"nonesuch": 1}, "'nonesuch' is no field"), ({"max_pending": None}, "max_pending.*an argument")]
)
def test_an_argument_that_cannot_be_is_named(given: dict[str, Any], why: str) -> None:
    with pytest.raises(InvalidArgument, match=why):
        Settings.load(environ={}, **given)


def test_whoever_gave_each_of_two_values_that_do_not_fit_is_named(file: Path) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Settings.load(file, {"RAFTPLUG_ELECTION_TIMEOUT_MS": "60"})
    for word in (f"heartbeat_ms = 50 from {file}", "election_timeout_ms = 60 from RAFTPLUG_ELECTION_TIMEOUT_MS"):
        assert word in str(caught.value)


def test_a_node_takes_its_settings_from_file_and_environment(server: EmbeddedServer, tmp_path: Path) -> None:
    file = tmp_path / "raftplug.toml"
    file.write_text("[raftplug]\nmax_transition_bytes = 40\nmax_pending = 5\n")
    options = ("--redis", server.url, "--group", "g")
    more = ("--id", "n1", "--peers", "n1", "--machine", "kv", "--data-dir", str(tmp_path / "n1"), "--bootstrap")
    put = '{"op":"put","key":"k","value":"%s"}'
    running = Running(tmp_path / "log", "node", *options, *more, "--config", str(file))
    try:
        running.wait_for_line("leads")
        succeeded(raftplug("propose", *options, put % "x"))
        refused(raftplug("propose", *options, put % ("x" * 40)), 1, "may have 40 bytes")
        # A client has the same variables.
        refused(raftplug("propose", *options, put % "x", RAFTPLUG_MAX_TRANSITION_BYTES="10"), 1, "at most 10")
    finally:
        running.end()
    refused(raftplug("node", *options, *more, "--config", str(tmp_path / "none")), 2, "none", "No such file")
    file.write_text("[raftplug]\nheartbeat_ms = 0\n")
    refused(raftplug("node", *options, *more, "--config", str(file)), 2, "raftplug.toml", "heartbeat_ms")
    line = refused(raftplug("read", *options, "{}", RAFTPLUG_HEARTBEAT_MS="x"), 2, "RAFTPLUG_HEARTBEAT_MS")
    assert "heartbeat_ms must be" in line
