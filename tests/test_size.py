"""The house stays small, and its imports point down."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

from raftplug import constants
from raftplug.settings import Settings
from raftplug.testing.simulation import FAULTS

SOURCE = Path(__file__).parent.parent / "src" / "raftplug"

# From the ground up; a file may import only files of lower floors.
FLOORS = (
    {"_cy", "_source", "constants", "errors", "version"},
    {"forks", "foreign", "stream_ids", "_refusals"},
    {"arguments", "threads"},
    {
        "settings",
        "plain",
        "agenda",
        "pace",
        "future",
        "frames",
        "state_machine",
        "redis_connection",
        "embedded",
    },
    {"directory", "configuration", "sessions", "results", "cluster", "keys", "divergence", "_core_py"},
    {"redis_directory", "redis_check"},
    {"raft", "requester", "quiescence", "stuck", "hooks", "redis_streams", "founding"},
    {"hot_path"},
    {"core", "plugins"},
    {"rows"},
    {"storage"},
    {"snapshots", "senders"},
    {"apply"},
    {"driver", "events", "backup", "status"},
    {"replica", "node", "client", "recovery"},
    {"testing", "benchmarks"},
    {"cli"},
    {"__main__"},
)
FACES = {"__init__"}  # Hands names on, lazily.
FORBIDDEN_IN_RULES = {"time", "datetime", "socket", "threading", "random", "secrets", "logging", "pluggy", "asyncio"}


def _lines_of_code(path: Path) -> int:
    """Physical lines without blanks, comments, docstrings and declarations of attributes."""
    text = path.read_text()
    left_out: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef):
            for each in node.body:
                if isinstance(each, ast.AnnAssign):
                    left_out.update(range(each.lineno, (each.end_lineno or each.lineno) + 1))
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                left_out.update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    code: set[int] = set()
    skipped = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in skipped:
            code.update(range(token.start[0], token.end[0] + 1))
    return len(code - left_out)


def _imports(path: Path) -> set[str]:
    """The modules that a file imports when it is loaded or later; type-checking imports do not count."""
    tree = ast.parse(path.read_text())
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            if node.module == "raftplug":
                found.update(f"raftplug.{alias.name}" for alias in node.names)
            else:
                found.add(node.module)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree)
    return found


def _room(module: str) -> str:
    """The file, or the whole of a package in ours, that a module's name stands for."""
    return module.split(".")[1]


def _rooms() -> dict[str, set[str]]:
    """Each room and the other rooms that it imports."""
    found: dict[str, set[str]] = {}
    for path in SOURCE.rglob("*.py"):
        own = path.relative_to(SOURCE).with_suffix("").parts[0]
        found.setdefault(own, set()).update(
            _room(module) for module in _imports(path) if module.startswith("raftplug.") and _room(module) != own
        )
    # `from raftplug import Node` names no room; nobody inside may write that.
    return {own: others for own, others in found.items() if own not in FACES}


def _files(package: str) -> dict[str, set[str]]:
    """Each file of a package, and the other files of it that it imports."""
    root = SOURCE.parent
    modules = {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
        for path in (root / package.replace(".", "/")).rglob("*.py")
    }
    return {own: {each for each in _imports(path) if each in modules} - {own} for own, path in modules.items()}


def test_the_rules_hold_fewer_than_1000_lines_of_code() -> None:
    lines = {name: _lines_of_code(SOURCE / name) for name in ("raft.py", "configuration.py")}
    assert sum(lines.values()) < 1000, lines


def test_the_rules_import_no_clock_socket_thread_chance_or_logging() -> None:
    for name in ("raft.py", "configuration.py"):
        outside = {module.split(".")[0] for module in _imports(SOURCE / name)}
        assert not outside & FORBIDDEN_IN_RULES


def test_imports_point_down_only() -> None:
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    floor["_core"] = floor["core"]  # The compiled one, that only core.py loads.
    for own, others in _rooms().items():
        assert own in floor, f"{own} has no floor: give it one"
        for room in others:
            assert room in floor, f"{own} imports {room}, which is no room of this house"
            assert floor[room] < floor[own] or (own, room) in SIDEWAYS, f"{own} imports {room}, which is not below it"


@pytest.mark.parametrize("graph", [_rooms(), _files("raftplug.testing")], ids=["rooms", "testing"])
def test_imports_go_in_no_circle(graph: dict[str, set[str]]) -> None:
    left = dict(graph)
    while True:  # Take away whatever imports nothing that is left, until nothing is.
        ground = [own for own, others in left.items() if not others & left.keys()]
        if not ground:
            break
        for own in ground:
            del left[own]
    assert not left, f"these import each other in a circle: {sorted(left)}"


# On one floor, and never back: there are no circles.
SIDEWAYS = {("redis_connection", "embedded"), ("storage", "frames")}


def test_nothing_pickles() -> None:
    for path in SOURCE.rglob("*.py"):
        assert not {"pickle", "marshal", "shelve", "dill"} & {module.split(".")[0] for module in _imports(path)}


def test_the_table_of_features_names_what_exists() -> None:
    """Each test, scenario, fault and setting that docs/features.md names."""
    tests = Path(__file__).parent
    text = (tests.parent / "docs" / "features.md").read_text()
    for file, _, name in re.findall(r"`(test_\w+\.py)(::(\w+))?`", text):
        assert f"def {name}" in (tests / file).read_text(), (file, name)
    for line in re.findall(r"`test_scenarios.py` \(([^)]*)\)", text):
        assert all((tests / "scenarios" / f"{name}.txt").exists() for name in re.findall(r"`(\w+)`", line)), line
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| ") and "`" in line]
    assert len(rows) > 15
    for row in rows:
        assert set(re.findall(r"`(\w+)`", row[4])) <= set(FAULTS), row
        for name in re.findall(r"`Settings\.(\w+)`|`(max_\w+|keep_\w+)`", row[2]):
            field = "".join(name)
            assert field == "load" or field in Settings.__dataclass_fields__, field


ROOT = Path(__file__).parent.parent


def test_contributing_names_every_module_and_nothing_that_is_not_there() -> None:
    text = (ROOT / "docs" / "CONTRIBUTING.md").read_text().split("## Where things are")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("|")]
    named = {path for row in rows for path in re.findall(r"`([^`]+)`", row)}
    assert len(named) > 20
    missing = [path for path in named if not (ROOT / path).exists() or (ROOT / path).is_dir() != path.endswith("/")]
    assert not missing
    folders = tuple(path for path in named if path.endswith("/"))
    for module in [*SOURCE.rglob("*.py"), *SOURCE.rglob("*.py[ix]")]:
        path = str(module.relative_to(ROOT))
        assert path in named or path.startswith(folders), path


def test_the_protocol_names_each_kind_and_code_by_its_number() -> None:
    rows = (ROOT / "docs" / "protocol.md").read_text().splitlines()
    found = [re.match(r"\| (\d+) (?:\| )?`([A-Z_]+)`", row) for row in rows]
    named = {(match[2], int(match[1])) for match in found if match is not None}
    assert named == {(name, vars(constants)[name]) for name, _ in named}
    first, last = list(vars(constants)).index("NOOP"), list(vars(constants)).index("UNDELIVERABLE")
    known = set(list(vars(constants))[first : last + 1]) - {"LAST_MESSAGE_KIND", "NO_GROUP"}
    assert {name for name, _ in named} == known


@pytest.mark.parametrize("page", ["concepts.md", "protocol.md"])
def test_the_code_that_a_page_names_is_there(page: str) -> None:
    names = set(re.findall(r"`([^`\s]+)`", (ROOT / "docs" / page).read_text()))
    files = [path for path in SOURCE.rglob("*.py*") if path.suffix in (".py", ".pyx")]
    texts = [path.read_text() for path in files]
    for name in names:
        if name.endswith((".py", ".pyx")):
            assert any(str(path).endswith(f"/{name}") for path in files), name
        elif match := re.fullmatch(r"([A-Z]\w+)\.(\w+)", name):
            owner, member = re.compile(rf"^(cdef )?class {match[1]}\b", re.MULTILINE), match[2]
            is_there = re.compile(rf"def {member}\b|\b{member}: |self\.{member} = ")
            assert any(owner.search(text) and is_there.search(text) for text in texts), name
