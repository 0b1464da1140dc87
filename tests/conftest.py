"""Fixtures that all tests share."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace

import pytest

from raftplug import core as cores
from raftplug.errors import InvalidArgument

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A shell has what it runs in the background ignore it, and the processes that tests start would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(params=["python", "cython"])
def core(request: pytest.FixtureRequest) -> SimpleNamespace:
    """Each core in turn; never "whatever got imported"."""
    return load_core(request.param)


@pytest.fixture
def both_cores() -> tuple[SimpleNamespace, SimpleNamespace]:
    """The Python core and the compiled one, for tests that compare them."""
    return load_core("python"), load_core("cython")


def load_core(name: str) -> SimpleNamespace:
    """The core `name`; without it the test is skipped, but under RAFTPLUG_REQUIRE_EXT=1 it fails."""
    try:
        return cores.load(name)
    except InvalidArgument as error:
        if os.environ.get("RAFTPLUG_REQUIRE_EXT") == "1":
            pytest.fail(str(error))
        pytest.skip(str(error))
