"""Both cores are one: the same operations, sense or garbage, give the same bytes, results and refusals."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import raftplug
from raftplug import _source
from raftplug import core as cores
from raftplug.constants import LIMIT
from raftplug.errors import InvalidArgument

SHARED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
CLASSES = ("Log", "Progress", "Message", "Configuration", "Raft", "Ready")


def outcome(call: Any, *arguments: Any) -> tuple[str, Any]:
    """What a call does, in a form that can be compared across cores."""
    try:
        return "result", call(*arguments)
    except Exception as error:
        return type(error).__name__, str(error)


# -------------------------------------------------------------------- lockstep

# Small numbers find the edges of a short log; the large ones are out of range for one type or another.
large = [255, 256, (1 << 32) - 1, 1 << 32, LIMIT - 2, LIMIT - 1, LIMIT, 1 << 64, 1 << 80]
ints = st.one_of(st.integers(-1, 12), st.sampled_from([*large, -LIMIT, -LIMIT - 1, -(1 << 80)]))
blocks = st.one_of(
    st.binary(max_size=60),
    st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(0, 200), st.integers(0, 255)),
)
operations = st.one_of(
    st.tuples(st.just("append"), ints, ints, st.binary(max_size=12)),
    st.tuples(st.just("append"), st.integers(0, 3), st.just(1), st.binary(max_size=12)),
    st.tuples(st.sampled_from(["check_block"]), blocks, ints, ints),
    st.tuples(st.just("extend"), blocks, ints),
    st.tuples(st.just("restore"), blocks),
    st.tuples(st.sampled_from(["term_at", "check_at", "kind_at", "payload_at", "truncate", "compact"]), ints),
    st.tuples(st.sampled_from(["slice", "bytes_between", "entries", "fit"]), ints, ints),
    st.tuples(st.just("reset"), ints, ints, ints),
)


def cut(log: Any, choice: Any) -> Any:
    """A block for an operation: garbage as it is, or a piece of another log of the same history, perhaps damaged."""
    if isinstance(choice, bytes):
        return choice
    lo, hi, position, mask = choice
    lo = min(max(lo, log.base_index + 1), log.last_index + 1)
    block = bytearray(log.slice(lo, max(min(hi, log.last_index) + 1, lo)))
    if position < len(block):
        block[position] ^= mask
    return bytes(block)


@given(steps=st.lists(operations, max_size=40))
@settings(parent=SHARED, max_examples=300)
def test_the_logs_agree_on_every_operation(both_cores: tuple[Any, Any], steps: list[Any]) -> None:
    logs = [core.Log() for core in both_cores]
    # Blocks come from a longer log that began the same way, so that some of them fit.
    source = both_cores[0].Log()
    for i in range(12):
        source.append(i // 4, 1, b"%d" % i)
    for log in logs:
        log.extend(source.slice(1, 4), 1)
    for name, *arguments in steps:
        if name in ("check_block", "extend", "restore"):
            arguments[0] = cut(source, arguments[0])
        results = [outcome(getattr(log, name), *arguments) for log in logs]
        assert results[0] == results[1], (name, arguments)
        states = [(repr(log), len(log), log.slice(log.base_index + 1, log.last_index + 1)) for log in logs]
        assert states[0] == states[1], (name, arguments)


@given(arguments=st.tuples(ints, ints, ints, ints, ints, ints, ints, st.booleans(), st.binary(max_size=9)))
@SHARED
def test_the_messages_agree_on_every_field(both_cores: tuple[Any, Any], arguments: Any) -> None:
    results = [outcome(lambda c=core: c.Message(*arguments).encode()) for core in both_cores]
    assert results[0] == results[1]


@given(data=st.one_of(st.binary(max_size=70), st.binary(min_size=50, max_size=70).map(lambda b: b"\x05\x01" + b[2:])))
@SHARED
def test_the_cores_decode_alike(both_cores: tuple[Any, Any], data: bytes) -> None:
    results = [outcome(lambda c=core: repr(c.Message.decode(data))) for core in both_cores]
    assert results[0] == results[1]


@given(arguments=st.tuples(ints, ints, ints))
@SHARED
def test_the_progresses_agree(both_cores: tuple[Any, Any], arguments: Any) -> None:
    results = [outcome(lambda c=core: repr(c.Progress(*arguments))) for core in both_cores]
    assert results[0] == results[1]


@pytest.mark.parametrize(
    "misuse",
    [
        lambda c: c.Log().append(1, 1, "text"),
        lambda c: c.Log().append(1, 1, None),
        lambda c: c.Log().append(1, 1, bytearray(b"x")),
        lambda c: c.Log().append("1", 1, b""),
        lambda c: c.Log().append(1, None, b""),
        lambda c: c.Log().check_block("text", 0, 0),
        lambda c: c.Log().check_block(b"x", "0", 0),
        lambda c: c.Log().extend(None, 1),
        lambda c: c.Log().restore([1]),
        lambda c: c.Log().truncate(1.5),
        lambda c: c.Log("0"),
        lambda c: c.Message("1", 1),
        lambda c: c.Message(5, 1, None),
        lambda c: c.Message(5, 1, data="text"),
        lambda c: c.Message(5, 1, data=None),
        lambda c: c.Message.decode("text"),
        lambda c: c.Message.decode(None),
        lambda c: c.Progress(2, "1", 1),
    ],
)
def test_a_wrong_type_is_refused_in_the_same_words(both_cores: tuple[Any, Any], misuse: Any) -> None:
    results = [outcome(misuse, core) for core in both_cores]
    assert results[0] == results[1]
    assert results[0][0] == "TypeError"


def test_an_int_subclass_counts_as_its_number(core: SimpleNamespace) -> None:
    log = core.Log(True, True)
    assert log.append(True, True, b"") == 2
    assert (log.base_index, log.last_term, log.kind_at(2)) == (1, 1, 1)


# ----------------------------------------------------------------- appearances


def public(thing: Any) -> set[str]:
    return {name for name in dir(thing) if not name.startswith("_")}


@pytest.mark.parametrize("name", CLASSES)
def test_the_cores_show_the_same_attributes(both_cores: tuple[Any, Any], name: str) -> None:
    python, compiled = (getattr(core, name) for core in both_cores)
    shown = set(public(python))
    # Attributes of the rules are declared, not listed in __slots__: annotations tell them.
    shown |= {key for key in getattr(python, "__annotations__", {}) if not key.startswith("_")}
    assert shown == public(compiled)


@pytest.mark.parametrize("name", CLASSES)
def test_the_cores_take_the_same_arguments(both_cores: tuple[Any, Any], name: str) -> None:
    python, compiled = (getattr(core, name) for core in both_cores)
    methods = [key for key in public(python) if callable(getattr(python, key))]
    for key in methods:
        ours = [(p.name, p.default) for p in inspect.signature(getattr(python, key)).parameters.values()]
        theirs = [(p.name, p.default) for p in inspect.signature(getattr(compiled, key)).parameters.values()]
        assert ours == theirs, key


@pytest.mark.parametrize(
    ("name", "arguments"), [("Log", (3, 2, 1)), ("Progress", (4, 3, 2)), ("Message", (5, 2, 3, 4))]
)
def test_the_constructors_take_the_same_names(both_cores: tuple[Any, Any], name: str, arguments: Any) -> None:
    python, compiled = (getattr(core, name) for core in both_cores)
    names = list(inspect.signature(python).parameters)
    by_name = dict(zip(names, arguments, strict=False))
    assert repr(python(**by_name)) == repr(compiled(**by_name)) == repr(compiled(*arguments))
    for core in both_cores:
        for wrong in (dict.fromkeys([*names, "surplus"], 1), {}):
            if wrong or name != "Log":
                with pytest.raises(TypeError):
                    getattr(core, name)(**wrong)


@pytest.mark.parametrize("name", ["Log", "Progress", "Message"])
def test_the_structures_take_no_other_attributes(core: SimpleNamespace, name: str) -> None:
    thing = {"Log": core.Log, "Progress": lambda: core.Progress(2, 1, 1), "Message": lambda: core.Message(5, 1)}[name]()
    with pytest.raises(AttributeError):
        thing.surplus = 1


@pytest.mark.parametrize("name", ["Log", "Progress", "Message"])
def test_the_docstrings_begin_alike(both_cores: tuple[Any, Any], name: str) -> None:
    python, compiled = (getattr(core, name) for core in both_cores)
    for key in ["", *public(python)]:
        texts = [inspect.getdoc(getattr(c, key) if key else c) for c in (python, compiled)]
        if key and not callable(getattr(python, key)):
            continue
        assert texts[0]
        assert texts[1]
        assert texts[0].splitlines()[0] == texts[1].splitlines()[0], key


# -------------------------------------------------------------------- choosing


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a new interpreter that finds the same raftplug."""
    paths = [str(Path(raftplug.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAFTPLUG_")}
    return subprocess.run(
        [sys.executable, "-W", "always", "-c", code],
        env={**kept, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


NO_CYTHON = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('Cython', 'cython'):
            raise ImportError('Cython must not be needed')
sys.meta_path.insert(0, Refuse())
"""
NO_EXTENSION = """
import sys
sys.modules['raftplug._core'] = None
"""
SAY = "import sys; from raftplug import core; print(core.name, 'raftplug._core_py' in sys.modules, sep=',')\n"


def test_nothing_needs_cython_at_run_time(core: SimpleNamespace) -> None:
    result = run(NO_CYTHON + SAY, RAFTPLUG_CORE=core.name)
    assert result.stdout.startswith(core.name), result.stderr


def test_a_compiled_process_never_loads_the_python_core(both_cores: tuple[Any, Any]) -> None:
    everything = """
import importlib, pkgutil, raftplug
not_ours = ['raftplug.' + name for name in ('raft', 'configuration', 'future', 'hot_path', '_core_py', '__main__')]
for module in pkgutil.walk_packages(raftplug.__path__, 'raftplug.'):
    if module.name not in not_ours:
        try:
            importlib.import_module(module.name)
        except ImportError as error:
            if (error.name or 'raftplug').split('.')[0] == 'raftplug':
                raise
"""
    result = run(everything + SAY)
    assert result.stdout == "cython,False\n", result.stderr


def test_without_the_extension_python_is_used_with_one_warning() -> None:
    result = run(NO_EXTENSION + SAY + "print(core.why)")
    assert result.stdout.startswith("python,True\nthe compiled core is not installed")
    assert result.stderr.count("RuntimeWarning") == 1


def test_insisting_on_a_missing_extension_is_an_error() -> None:
    result = run(NO_EXTENSION + SAY, RAFTPLUG_CORE="cython")
    assert result.returncode == 1
    assert "InvalidArgument: core 'cython' cannot be used: the compiled core is not installed" in result.stderr


def test_a_core_that_does_not_exist_is_refused() -> None:
    result = run(SAY, RAFTPLUG_CORE="rust")
    assert "InvalidArgument: RAFTPLUG_CORE=rust cannot be: use auto, cython or python" in result.stderr
    with pytest.raises(InvalidArgument, match="'rust'"):
        cores.load("rust")


def test_asking_for_python_gives_python_without_a_warning() -> None:
    result = run(SAY + "print(core.why)", RAFTPLUG_CORE="python")
    assert result.stdout == "python,True\nRAFTPLUG_CORE=python asks for it\n"
    assert "Warning" not in result.stderr


def test_the_module_has_the_classes_of_the_chosen_core() -> None:
    chosen = cores.load(cores.name)
    for name in CLASSES:
        assert getattr(cores, name) is getattr(chosen, name)


def test_the_extension_knows_its_source_and_a_stale_one_is_not_used(
    both_cores: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Path(raftplug.__file__).parent
    if not (here / "_core.pyx").exists():
        pytest.skip("no source tree: an installed package cannot be stale")
    from raftplug import _core

    assert _source.source_hash(here) == _core.SOURCE_HASH
    monkeypatch.setattr(cores, "source_hash", lambda directory: "another")
    monkeypatch.delenv("RAFTPLUG_CORE", raising=False)
    with pytest.warns(RuntimeWarning, match="older than its source"):
        assert cores._choose()[0] == "python"
    cores.load.cache_clear()
    with pytest.raises(InvalidArgument, match="install raftplug again"):
        cores.load("cython")


def test_the_source_hash_covers_every_included_file(tmp_path: Path) -> None:
    hashes = {_source.source_hash(tmp_path)}
    for name in _source.SOURCES:
        (tmp_path / name).write_text("changed")
        hashes.add(_source.source_hash(tmp_path))
    assert len(hashes) == 1 + len(_source.SOURCES)


def test_optimised_bytecode_changes_no_refusal(core: SimpleNamespace) -> None:
    code = """
from raftplug import core, errors
log = core.Log()
for misuse in (lambda: log.append(-1, 0, b''), lambda: log.truncate(0), lambda: core.Message(0, 0)):
    try:
        misuse()
    except errors.InvariantViolated as error:
        print(error)
"""
    plain = run(code, RAFTPLUG_CORE=core.name)
    optimised = run(code, RAFTPLUG_CORE=core.name, PYTHONOPTIMIZE="2")
    assert plain.stdout.count("\n") == 3, plain.stderr
    assert plain.stdout == optimised.stdout
