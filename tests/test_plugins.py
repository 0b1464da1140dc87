"""A plugin is found, asked and observed; one that is broken is named, and takes nothing else down."""

from __future__ import annotations

import inspect
import json
import logging
import os
import subprocess
import sys
import traceback
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import click
import pytest
from click.testing import CliRunner

import raftplug
from processes import Running, succeeded
from processes import raftplug as raftplug_command
from raftplug import cli, hooks, plugins
from raftplug.cli import output
from raftplug.errors import InvalidArgument, RaftplugError, TransportError, UnknownMachine
from raftplug.hooks import hookimpl
from raftplug.plugins import Plugins
from raftplug.state_machine import StateMachine, TransitionState
from servers import wait_until

SOURCE = Path(cli.__file__).parents[2]
DOCUMENT = Path(__file__).parents[1] / "docs" / "plugins.md"
EVENT = {"group": "g", "node": "n1"}


class Machine(StateMachine):
    def apply_transition(self, transition: Any) -> Any:
        return transition


class Queried(Machine):
    """Keeps what it was given."""

    def __init__(self) -> None:
        self.given: list[Any] = []

    def apply_transition(self, transition: Any) -> Any:
        self.given.append(transition)
        return transition

    def query(self, request: Any) -> Any:
        return self.given


class Mover:
    def __init__(self, url: str, **options: Any) -> None:
        self.url, self.options = url, options

    def send_message(self, to_id: Any, message: bytes) -> None: ...
    def receive_messages(self) -> list[bytes]:
        return []


class Gives:
    """A plugin made of what its hooks shall return."""

    def __init__(self, machines: Any = None, clusters: Any = None, commands: Any = None) -> None:
        self._given = machines, clusters, commands

    @hookimpl
    def raftplug_state_machines(self) -> Any:
        return self._given[0]

    @hookimpl
    def raftplug_clusters(self) -> Any:
        return self._given[1]

    @hookimpl
    def raftplug_commands(self) -> Any:
        return self._given[2]


def registered(*given: Any, **named: Any) -> Plugins:
    found = Plugins()
    for number, plugin in enumerate(given):
        found.register(plugin, name=f"p{number}")
    for name, plugin in named.items():
        found.register(plugin, name=name)
    return found


def row(found: Plugins, name: str) -> dict[str, Any]:
    return next(entry for entry in found.listing() if entry["name"] == name)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Install a fake distribution: `installed("name", "source of its module")`."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(plugins, "_default", None)

    def install(name: str, source: str, module: str | None = None, entries: str | None = None) -> None:
        module = module or name.replace("-", "_")
        (tmp_path / f"{module}.py").write_text(source)
        info = tmp_path / f"{name.replace('-', '_')}-1.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
        (info / "entry_points.txt").write_text(f"[raftplug]\n{entries or f'{name} = {module}'}\n")
        monkeypatch.delitem(sys.modules, module, raising=False)

    yield install
    for module in tmp_path.glob("*.py"):
        sys.modules.pop(module.stem, None)


SOUND = """
import raftplug
from raftplug.state_machine import StateMachine
from raftplug.hooks import hookimpl
import click

class Machine(StateMachine):
    def apply_transition(self, transition):
        return transition

@hookimpl
def raftplug_state_machines():
    return {"sound": Machine}

@click.command("sound-command")
def command():
    '''Make a sound.'''
    click.echo("ping")

@hookimpl
def raftplug_commands():
    return [command]
"""

BROKEN = {
    "cannot-import": ("import no_such_module_anywhere", "No module named"),
    "syntax": ("def (", "SyntaxError"),
    "exits": ("import sys; sys.exit(3)", "SystemExit: 3"),
    "raises": ("1/0", "ZeroDivisionError"),
    "wrong-argument": (
        "from raftplug.hooks import hookimpl\n@hookimpl\ndef raftplug_snapshot(group, indx): pass",
        "indx",
    ),
    "unknown-hook": (
        "from raftplug.hooks import hookimpl\n@hookimpl\ndef raftplug_comands(): return []",
        "raftplug_comands is no hook (did you mean 'raftplug_commands'?)",
    ),
    "unmarked": ("def raftplug_commands(): return []", "raftplug_commands is not marked"),
    "empty": ("x = 1", "it has no hook"),
    "wrapper": (
        "from raftplug.hooks import hookimpl\n@hookimpl(wrapper=True)\ndef raftplug_commands(): return (yield)",
        "must be a plain function",
    ),
    "coroutine": (
        "from raftplug.hooks import hookimpl\n@hookimpl\nasync def raftplug_snapshot(index): pass",
        "must be a plain function",
    ),
    "junk": (
        "from raftplug.hooks import hookimpl\n@hookimpl\ndef raftplug_state_machines(): return 5",
        "a dict of names and factories is wanted, not 5",
    ),
    "hook-raises": (
        "from raftplug.hooks import hookimpl\n@hookimpl\ndef raftplug_clusters(): raise KeyError('oops')",
        "raftplug_clusters: KeyError: 'oops'",
    ),
}


# -- loading -------------------------------------------------------------------------------------------------------


def test_an_installed_plugin_is_found_with_its_name_and_version(installed: Any) -> None:
    installed("sound-plugin", SOUND)
    found = plugins.default()
    assert plugins.default() is found, "it is loaded once"
    assert isinstance(found.machine("sound"), StateMachine)
    assert found.machine("sound") is not found.machine("sound")
    assert row(found, "sound-plugin") == {
        "name": "sound-plugin",
        "version": "1.5",
        "machines": ["sound"],
        "transports": [],
        "commands": ["sound-command"],
        "events": [],
        "errors": [],
    }


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_plugin_is_named_with_its_error_and_the_others_work(installed: Any, name: str) -> None:
    source, text = BROKEN[name]
    installed(name, source)
    installed("sound", SOUND)
    found = Plugins().load()
    errors = row(found, name)["errors"]
    assert len(errors) == 1
    assert text in errors[0]
    assert "\n" not in errors[0]
    assert found.problems() == [f"plugin {name}: {errors[0]}"]
    assert row(found, "sound")["errors"] == []
    assert isinstance(found.machine("sound"), Machine.__base__)
    assert "redis" in found.schemes()
    with pytest.raises(UnknownMachine, match=f"broken plugins: {name}: "):
        found.machine("other")


def test_many_broken_plugins_are_each_named(installed: Any) -> None:
    for name, (source, _) in BROKEN.items():
        installed(name, source)
    found = Plugins().load()
    assert {entry["name"] for entry in found.listing() if entry["errors"]} == set(BROKEN)


@pytest.mark.parametrize(
    ("info", "files"),
    [
        (".dist-info", {}),
        ("bad-1.0.dist-info", {"METADATA": b"Name: bad\n", "entry_points.txt": b"[other]\ncaf\xe9 = cafe\n"}),
        ("bad-1.0.dist-info", {"METADATA": b"Name: caf\xe9\n", "entry_points.txt": b"[raftplug]\na = sound_plugin\n"}),
        ("-.dist-info", {"entry_points.txt": b"[raftplug]\na = sound_plugin\n"}),
        ("bad.egg-info", {"PKG-INFO": b"\xff", "entry_points.txt": b"\xff"}),
    ],
    ids=["nameless", "entry points", "metadata", "empty name", "egg"],
)
@pytest.mark.parametrize("first", [True, False], ids=["before the others", "after them"])
def test_a_distribution_that_cannot_be_read_is_named_by_its_path_and_hides_no_other(
    installed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, info: str, files: dict[str, bytes], first: bool
) -> None:
    installed("sound-plugin", SOUND)
    place = tmp_path / "elsewhere" / info
    place.mkdir(parents=True)
    for name, content in files.items():
        (place / name).write_bytes(content)
    monkeypatch.setattr(sys, "path", [str(place.parent), *sys.path] if first else [*sys.path, str(place.parent)])
    found = Plugins().load()
    assert isinstance(found.machine("sound"), StateMachine)
    if info == "-.dist-info":  # It has no name of its own, and its module is another plugin's.
        return
    problems = [text for text in found.problems() if str(place) in text]
    assert len(problems) == 1 and "install its package again" in problems[0], found.problems()


def test_a_finder_that_raises_hides_no_plugin(installed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Finder:
        def find_spec(self, *_: Any) -> None: ...

        def find_distributions(self, context: Any) -> Any:
            yield from ()
            raise RuntimeError("no")

    installed("sound-plugin", SOUND)
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    monkeypatch.setattr(sys, "path", [b"bytes", *sys.path])
    found = Plugins().load()
    assert isinstance(found.machine("sound"), StateMachine)
    assert any("RuntimeError: no" in text for text in found.problems())


def test_the_first_of_two_distributions_of_a_name_is_used_alone(
    installed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed("sound-plugin", SOUND)
    older = tmp_path / "older" / "Sound.Plugin-1.0.dist-info"
    older.mkdir(parents=True)
    (older / "METADATA").write_text("Metadata-Version: 2.1\nName: Sound.Plugin\nVersion: 1.0\n")
    (older / "entry_points.txt").write_text("[raftplug]\nold = no_such_module_anywhere\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(older.parent)])
    found = Plugins().load()
    assert row(found, "sound-plugin")["version"] == "1.5"
    assert found.problems() == []


def test_an_entry_point_may_name_an_object_and_a_class_is_refused_with_advice(installed: Any) -> None:
    source = SOUND + "\nclass Plugin:\n    @hookimpl\n    def raftplug_snapshot(self, index): ...\nobject_ = Plugin()\n"
    installed("two", source, entries="a = two:object_\nb = two:Plugin")
    found = Plugins().load()
    assert row(found, "two")["events"] == ["snapshot"]
    assert "name a module or object" in row(found, "two:b")["errors"][0]


def test_the_same_object_twice_is_used_once() -> None:
    plugin = Gives(machines={"m": Machine})
    found = registered(first=plugin, second=plugin)
    assert isinstance(found.machine("m"), Machine)
    assert row(found, "second")["errors"] == ["it is the same object as plugin first"]


def test_a_hostile_plugin_object_is_only_an_error() -> None:
    class Hostile:
        def __getattribute__(self, name: str) -> Any:
            raise RuntimeError("no")

        def __dir__(self) -> Any:
            raise RuntimeError("no")

    found = registered(bad=Hostile(), none=None, number=5, good=Gives(machines={"m": Machine}))
    assert [bool(row(found, name)["errors"]) for name in ("bad", "none", "number", "good")] == [True, True, True, False]
    assert found.machines() == ["m"]


# -- machines ------------------------------------------------------------------------------------------------------


def test_an_unknown_machine_is_an_error_that_says_what_there_is() -> None:
    found = registered(Gives(machines={"kv": Machine, "counter": Machine}))
    with pytest.raises(UnknownMachine) as caught:
        found.machine("kvv")
    assert str(caught.value) == ("no plugin gives a state machine 'kvv' (did you mean 'kv'?); installed: counter, kv")
    with pytest.raises(UnknownMachine, match="installed: none"):
        Plugins().machine("kv")
    for junk in (None, [], 5, ""):
        with pytest.raises(UnknownMachine):
            found.machine(junk)  # type: ignore[arg-type]


def test_a_name_given_twice_is_an_error_that_names_both_and_hurts_no_other_name() -> None:
    found = registered(red=Gives({"kv": Machine, "r": Machine}), blue=Gives({"kv": Machine, "b": Machine}))
    with pytest.raises(InvalidArgument, match=r"'kv' is given by plugin (red and plugin blue|blue and plugin red)"):
        found.machine("kv")
    assert isinstance(found.machine("r"), Machine)
    assert isinstance(found.machine("b"), Machine)
    assert "blue" in row(found, "red")["errors"][0]
    assert "red" in row(found, "blue")["errors"][0]
    assert len(row(found, "red")["errors"]) == 1, "listing twice does not repeat it"


def no_machine() -> Any:
    raise ValueError("two\nlines")


@pytest.mark.parametrize(
    ("factory", "text"), [(no_machine, "ValueError: two lines"), (dict, "no method apply_transition")]
)
def test_a_factory_that_fails_is_an_error_that_names_the_plugin(factory: Any, text: str) -> None:
    with pytest.raises(InvalidArgument, match=text) as caught:
        registered(acme=Gives({"m": factory})).machine("m")
    assert "plugin acme" in str(caught.value)


@pytest.mark.parametrize("junk", [5, ["kv"], {"kv": 5}, {5: Machine}, {"a b": Machine}, {"": Machine}, "kv"])
def test_junk_from_a_hook_is_an_error_of_that_plugin_alone(junk: Any) -> None:
    found = registered(acme=Gives(machines=junk), good=Gives({"m": Machine}))
    assert found.machines() == ["m"]
    assert row(found, "acme")["errors"][0].startswith("raftplug_state_machines: ")


# -- transports ----------------------------------------------------------------------------------------------------


def test_a_transport_is_found_by_the_scheme_of_its_url() -> None:
    opened = registered(Gives(clusters={"nats": Mover})).open_cluster("NATS://host/x", own_id="n1", prefix="p")
    assert opened.url == "NATS://host/x"
    assert opened.options == {"own_id": "n1", "prefix": "p"}


def test_the_transports_that_come_with_raftplug_are_there() -> None:
    assert Plugins().schemes() == ["memory", "redis", "redis+cluster", "redis+sentinel", "rediss", "unix"]
    assert Plugins(built_in=False).schemes() == []
    assert callable(Plugins().open_cluster("memory://test_plugins", own_id="n1", cluster=bytes(16)).send_message)


def test_a_plugin_cannot_take_a_built_in_scheme() -> None:
    def fails(url: str, **options: Any) -> Any:
        raise AssertionError

    found = registered(acme=Gives(clusters={"memory": fails, "nats": Mover}))
    assert not isinstance(found.open_cluster("memory://test_plugins", own_id="n1", cluster=bytes(16)), Mover)
    assert isinstance(found.open_cluster("nats://x"), Mover)
    assert row(found, "acme")["errors"] == ["transport 'memory' is built in: rename it"]


def test_a_wrong_url_is_an_error_that_never_repeats_a_password() -> None:
    def fails(url: str, **options: Any) -> Any:
        raise ValueError(f"cannot reach {url} with hunter2")

    found = registered(acme=Gives(clusters={"nats": fails, "junk": lambda url, **options: 5}))
    for url, error, text in (
        ("redsi://:hunter2@host", InvalidArgument, "did you mean 'redis'"),
        ("user:hunter2@host", InvalidArgument, "write it like redis://localhost:6379"),
        ("", InvalidArgument, "write it like"),
        (None, InvalidArgument, "write it like"),
        ("nats://user:hunter2@host", TransportError, "plugin acme cannot open nats://…: ValueError"),
        ("junk://hunter2", TransportError, "no method send_message"),
    ):
        with pytest.raises(error, match=text) as caught:
            found.open_cluster(url)  # type: ignore[arg-type]
        assert "hunter2" not in str(caught.value)


SECRETS = (
    "hunter2",
    "hun@ter2",
    "hun/ter2",
    "hun#ter2",
    "hun:ter2",
    "hun?ter2",
    "hun%ter2",
    "hun%40ter2",
    "12#hunter2",
)


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("kind", [ValueError, InvalidArgument, TransportError])
def test_what_a_transport_raises_tells_no_part_of_a_password_nor_does_its_traceback(
    secret: str, kind: type[Exception]
) -> None:
    def fails(url: str, **options: Any) -> Any:
        try:
            raise OSError(f"no route to {url.partition('://')[2]}")
        except OSError as error:
            raise kind(f"cannot use {unquote(secret)} of {url}: {secret.partition('#')[0]}") from error

    found = registered(acme=Gives(clusters={"nats": fails}))
    with pytest.raises(RaftplugError) as caught:
        found.open_cluster(f"nats://user:{secret}@host/?token={secret}")
    trace = "".join(traceback.format_exception(caught.value))
    for part in (secret, "hun", "ter2", "hun@ter2"):
        assert part not in trace, trace
    assert "plugin acme cannot open nats://…" in str(caught.value)


def test_an_error_of_a_transport_that_tells_no_secret_keeps_its_cause() -> None:
    def fails(url: str, **options: Any) -> Any:
        raise ValueError("no such option")

    with pytest.raises(TransportError, match="no such option") as caught:
        registered(acme=Gives(clusters={"nats": fails})).open_cluster("nats://user:hunter2@host")
    assert isinstance(caught.value.__cause__, ValueError)


# -- observers -----------------------------------------------------------------------------------------------------


class Observes:
    def __init__(self) -> None:
        self.seen: list[Any] = []

    @hookimpl
    def raftplug_leader_changed(self, leader: Any, term: int) -> None:
        self.seen.append((leader, term))

    @hookimpl
    def raftplug_transition_state(self, state: Any, group: str) -> None:
        self.seen.append((group, state))


class Raises:
    @hookimpl
    def raftplug_leader_changed(self) -> None:
        raise ValueError("no")


def test_an_observer_gets_the_arguments_that_it_names() -> None:
    observer = Observes()
    found = registered(observer)
    found.events("raftplug_leader_changed", **EVENT, leader="n2", term=3)
    found.events("raftplug_transition_state", **EVENT, transition_id=(1, 2), state=TransitionState.Applied)
    found.events("raftplug_snapshot", **EVENT, index=1, kind="made")
    assert observer.seen == [("n2", 3), ("g", TransitionState.Applied)]
    assert found.observed("raftplug_leader_changed")
    assert not found.observed("raftplug_snapshot")
    assert row(found, "p0")["events"] == ["leader_changed", "transition_state"]


def test_a_raising_observer_is_logged_once_and_the_others_are_called(caplog: pytest.LogCaptureFixture) -> None:
    first, last = Observes(), Observes()
    found = registered(first=first, bad=Raises(), last=last)
    with caplog.at_level(logging.ERROR, "raftplug.plugins"):
        for term in range(5):
            found.events("raftplug_leader_changed", **EVENT, leader=None, term=term)
    assert first.seen == last.seen == [(None, term) for term in range(5)]
    assert [record.getMessage() for record in caplog.records] == [
        "plugin bad: raftplug_leader_changed raised, and will not be logged again"
    ]
    assert found.problems() == ["plugin bad: raftplug_leader_changed: ValueError: no"]


def test_every_hook_is_documented_with_all_its_arguments_and_has_a_docstring() -> None:
    text = DOCUMENT.read_text()
    specs = {name: spec for name, spec in vars(hooks).items() if name.startswith("raftplug_")}
    assert len(specs) == 12
    for name, spec in specs.items():
        arguments = ", ".join(inspect.signature(spec).parameters)
        assert f"### {name}({arguments})\n" in text, f"docs/plugins.md has no section {name}({arguments})"
        section = text.split(f"### {name}(")[1].split("\n## ")[0].split("\n### ")[0]
        assert f"def {name}(" in section, f"docs/plugins.md shows no example of {name}"
        assert inspect.getdoc(spec), name


def test_every_method_of_a_state_machine_is_documented() -> None:
    text = DOCUMENT.read_text()
    for name, method in vars(StateMachine).items():
        if inspect.isfunction(method):
            arguments = ", ".join(list(inspect.signature(method).parameters)[1:])
            assert f"| `{name}({arguments})` |" in text


def test_the_plugin_of_the_documentation_works() -> None:
    text = DOCUMENT.read_text()
    module = SimpleNamespace()
    exec(text.split("```python\n")[1].split("```")[0], module.__dict__)  # noqa: S102
    found = registered(module)
    assert found.problems() == []
    machine = found.machine("counter")
    assert [machine.apply_transition({"add": n}) for n in (1, 2)] == [1, 3]
    twin = found.machine("counter")
    twin.set_snapshot(machine.create_snapshot(2, 1))
    assert twin.query(None) == 3


EXAMPLES = [text.split("```")[0] for text in DOCUMENT.read_text().split("```python\n")[1:]]
TRANSPORT = next(text for text in EXAMPLES if "(raftplug.Cluster):" in text)


def test_over_the_transport_of_the_documentation_nodes_decide_and_clients_find_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = SimpleNamespace()
    exec(TRANSPORT, module.__dict__)  # noqa: S102
    found = registered(module, machines=Gives({"machine": Queried}))
    assert found.problems() == []
    monkeypatch.setattr(plugins, "_default", found)
    url, peers = f"files://{tmp_path}/messages", ["n1", "n2", "n3"]
    with ExitStack() as stack:
        options: Any = {"redis": url, "machine": "machine", "key": "the-key-of-this-test"}
        nodes = [
            stack.enter_context(raftplug.Node(id, peers=peers, data_dir=tmp_path / id, bootstrap=True, **options))
            for id in peers
        ]
        assert nodes[0].propose("first", timeout=60).result(timeout=61) == "first"
        with raftplug.Client(url, key="the-key-of-this-test") as client:
            assert client.propose("second", timeout=60) == "second"
            assert client.read(None, timeout=60) == ["first", "second"]
            wait_until(lambda: client.status()["quorum"]["reachable"] == 3, "all answer")
            assert [node["problems"] for node in client.status()["nodes"]] == [[], [], []]
            joined = raftplug.Node("n4", data_dir=tmp_path / "n4", join=True, **options)
            stack.enter_context(joined)
            client.change_members("add", "n4", timeout=60)
            wait_until(lambda: joined.leader is not None, "n4 follows")
        nodes[0].stop()
        assert nodes[1].propose("third", timeout=60).result(timeout=61) == "third"
    assert list((tmp_path / "messages" / "raftplug" / "directory").iterdir()) == []


def test_from_the_command_line_the_transport_of_the_documentation_works_too(installed: Any, tmp_path: Path) -> None:
    installed("files-plugin", TRANSPORT)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    where = ("--redis", f"files://{tmp_path}/messages")
    node = Running(
        tmp_path / "log", "node", "--id", "n1", "--peers", "n1", "--machine", "kv", "--data-dir", str(tmp_path / "n1"),
        "--bootstrap", *where, PYTHONPATH=path,
    )  # fmt: skip
    try:
        node.wait_for_line("leads in term 1")
        node.wait_for_line("no cluster key: frames are not signed, and any process that can use this transport")
        put, get = '{"op":"put","key":"a","value":1}', '{"op":"get","key":"a"}'
        succeeded(raftplug_command("propose", *where, put, PYTHONPATH=path))
        assert succeeded(raftplug_command("read", *where, get, PYTHONPATH=path)).stdout == "1\n"
        assert "leader n1" in succeeded(raftplug_command("status", *where, PYTHONPATH=path)).stdout
    finally:
        assert node.end(15) == 0


# -- the command line ----------------------------------------------------------------------------------------------


def run(*arguments: str) -> Any:
    return CliRunner().invoke(cli.main, list(arguments))


def test_the_plugins_command_lists_plugins_and_their_errors(installed: Any) -> None:
    installed("sound-plugin", SOUND)
    installed("cannot-import", "import no_such_module_anywhere")
    result = run("plugins")
    assert result.exit_code == 0
    assert "sound-plugin" in result.stdout
    assert "cannot-import: ModuleNotFoundError" in result.stdout
    result = run("plugins", "--json")
    assert result.exit_code == 0
    assert result.stdout.count("\n") == 1
    listing = {entry["name"]: entry for entry in json.loads(result.stdout)["plugins"]}
    assert listing["sound-plugin"]["machines"] == ["sound"]
    assert listing["raftplug"]["transports"][0] == "memory"
    assert "no_such_module" in listing["cannot-import"]["errors"][0]


def test_a_plugins_command_is_added_and_helped(installed: Any) -> None:
    installed("sound-plugin", SOUND)
    assert run("sound-command").stdout == "ping\n"
    text = run("--help").stdout
    assert "Commands of plugins:" in text
    assert "Make a sound." in text


def test_broken_plugins_never_break_the_command_line(installed: Any) -> None:
    for name, (source, _) in BROKEN.items():
        installed(name, source)
    result = run("--help")
    assert result.exit_code == 0
    assert "problems with plugins: see `raftplug plugins`" in " ".join(result.stdout.split())
    assert run("plugins").exit_code == 0
    result = run("no-such-command")
    assert result.exit_code == 2


def test_a_plugin_can_neither_take_a_built_in_command_nor_share_one() -> None:
    made = [click.Command("plugins"), click.Command("mine"), click.Command("ours")]
    found = registered(a=Gives(commands=made), b=Gives(commands=[click.Command("ours")]), c=Gives(commands=[1]))
    assert list(found.commands(["plugins"])) == ["mine"]
    assert list(found.commands(["plugins"])) == ["mine"]
    assert row(found, "a")["errors"] == [
        "command 'plugins' is built in: rename it",
        row(found, "b")["errors"][0],
    ]
    assert "uninstall one of them" in row(found, "b")["errors"][0]
    assert "a list of click commands is wanted" in row(found, "c")["errors"][0]


@pytest.mark.parametrize("name", cli.built_in_commands())
def test_the_short_help_of_every_command_is_its_own(name: str) -> None:
    command = cli.main.get_command(click.Context(cli.main), name)
    assert command is not None
    assert command.get_short_help_str(200).rstrip(".") == cli._SHORT_HELP[name].rstrip(".")


class Unavailable(RaftplugError):
    pass


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InvalidArgument("that cannot\nbe"), 2, "Error: that cannot be\n"),
        (UnknownMachine("no kv"), 2, "Error: no kv\n"),
        (Unavailable("no leader"), 1, "Error: no leader\n"),
        (Unavailable(), 1, "Error: Unavailable\n"),
        (click.UsageError("use it well."), 2, "Error: use it well (see `raftplug fails --help`)\n"),
        (click.ClickException("click"), 1, "Error: click\n"),
        (Unavailable("\x1b[31mred"), 1, "Error: ?[31mred\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_an_error_is_one_line_on_stderr_and_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, line: str
) -> None:
    @click.command("fails")
    def fails() -> None:
        raise error

    monkeypatch.setattr(plugins, "_default", registered(Gives(commands=[fails])))
    result = run("fails")
    assert (result.exit_code, result.stdout, result.stderr) == (code, "", line)


@pytest.mark.parametrize(
    ("arguments", "start", "end"),
    [
        (["plugns"], "Error: No such command 'plugns': did you mean 'plugins'?", "(see `raftplug --help`)\n"),
        (["--bad"], "Error: No such option", "(see `raftplug --help`)\n"),
        (["plugins", "--bad"], "Error: No such option", "(see `raftplug plugins --help`)\n"),
    ],
)
def test_wrong_usage_is_one_line_too(arguments: list[str], start: str, end: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith(start)
    assert result.stderr.endswith(end)


def python(code: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=environment, text=True, capture_output=True, check=False, **options)


def test_help_and_version_import_no_command_and_no_transport() -> None:
    code = (
        "import sys\nfrom raftplug.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print([m for m in sys.modules if m.startswith(('redis', 'raftplug.cli.', 'raftplug.node', 'rich'))])"
    )
    assert python(code).stdout.splitlines()[-1] == "['raftplug.cli.output']"
    assert run("--version").stdout.startswith("raftplug ")


def test_a_closed_pipe_ends_a_command_quietly() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    code = "from raftplug.cli import main; main(['plugins', '--json'])"
    with os.fdopen(writer, "w") as closed:
        environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
        ended = subprocess.run(
            [sys.executable, "-c", code], env=environment, stdout=closed, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (ended.returncode, ended.stderr) == (1, "")


# -- output --------------------------------------------------------------------------------------------------------


def test_json_is_one_line_of_strict_json(capsys: pytest.CaptureFixture[str]) -> None:
    output.emit_json({"a": float("nan"), "b": [b"\x00", "x\ny\u2028"], "c": {"d": float("inf")}, 5: None})
    text = capsys.readouterr().out
    assert len(text.splitlines()) == 1
    assert text.isascii()
    assert json.loads(text) == {"a": None, "b": [{"base64": "AA=="}, "x\ny\u2028"], "c": {"d": None}, "5": None}


def test_a_table_is_aligned_and_free_of_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(["id", "lag", "problems"], [["n1", 5, []], ["n2\x1b[2J", None, ["a", "b\nc"]], ["n3", 120, True]])
    assert capsys.readouterr().out == ("ID      LAG  PROBLEMS\nn1        5  -\nn2?[2J    -  a, b c\nn3      120  yes\n")
    output.table(["id"], [])
    assert capsys.readouterr().out == "ID\n"


def test_on_a_terminal_rich_draws_the_table_and_no_text_is_taken_for_markup(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("rich")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    output.table(["id"], [["[bold]n1[/bold]"]])
    assert "[bold]n1[/bold]" in capsys.readouterr().out


def test_errors_and_progress_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    output.error("a\nb")
    output.note("half done")
    assert capsys.readouterr() == ("", "Error: a b\nhalf done\n")
