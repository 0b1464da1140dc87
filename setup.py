"""Builds the compiled core if it can: everything else about the package is in pyproject.toml.

RAFTPLUG_REQUIRE_EXT=1 makes a failure an error; RAFTPLUG_NO_EXT=1 asks for pure Python.
"""

import os
import runpy
import sys
import sysconfig
import tempfile
from pathlib import Path

from setuptools import Extension, setup

PACKAGE = Path("src/raftplug")


def why_not() -> str:
    """Why no extension can be built here; empty if it can.

    A compiler is tried before setup() runs: an extension that is merely optional would still make pip cache a wheel
    that claims to hold it.
    """
    try:
        import Cython.Build  # noqa: F401
    except ImportError:
        return "Cython is not installed"
    from distutils.ccompiler import new_compiler
    from distutils.sysconfig import customize_compiler

    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory, "probe.c")
        source.write_text("#include <Python.h>\nint probe(void) { return Py_IsInitialized(); }\n")
        try:
            compiler = new_compiler()
            customize_compiler(compiler)
            includes = [sysconfig.get_path("include"), sysconfig.get_path("platinclude")]
            objects = compiler.compile([str(source)], output_dir=directory, include_dirs=includes)
            compiler.link_shared_object(objects, str(Path(directory, "probe.out")))
        except Exception as error:  # each compiler class has its own
            return f"no working C compiler with Python's headers ({error})"
    return ""


def compile_arguments() -> list[str]:
    """Of the compiler.  Without debug information the build takes a fifth less time, and a seventh of the space.

    Python's own flags ask for it; CFLAGS="-g" keeps it.
    """
    if sys.platform == "win32":
        return []
    return ["-O3"] if "-g" in os.environ.get("CFLAGS", "").split() else ["-O3", "-g0"]


def extensions() -> list[Extension]:
    """The compiled core, or nothing."""
    if os.environ.get("RAFTPLUG_NO_EXT") == "1":
        # An old one of an editable install would still be found, and be used.
        for old in [*PACKAGE.glob("_core.*.so"), *PACKAGE.glob("_core.so"), *PACKAGE.glob("_core.*.pyd")]:
            old.unlink()
        return []
    reason = why_not()
    if reason:
        if os.environ.get("RAFTPLUG_REQUIRE_EXT") == "1":
            raise SystemExit(f"raftplug: RAFTPLUG_REQUIRE_EXT=1, but the compiled core cannot be built: {reason}")
        print(f"\n*** raftplug: PURE PYTHON, several times slower: {reason} ***\n", file=sys.stderr)
        return []
    from Cython.Build import cythonize

    source = runpy.run_path(str(PACKAGE / "_source.py"))
    extension = Extension(
        "raftplug._core",
        [str(PACKAGE / "_core.pyx")],
        define_macros=[("RAFTPLUG_SOURCE_HASH", f'"{source["source_hash"](PACKAGE)}"')],
        depends=[str(PACKAGE / name) for name in source["SOURCES"] if (PACKAGE / name).exists()],
        extra_compile_args=compile_arguments(),
    )
    return cythonize([extension], build_dir="build/cython")


setup(ext_modules=extensions())
