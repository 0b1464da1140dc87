"""`raftplug doctor`: are disk, Redis and installation fit to run a node, and if not, what is to be done."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import secrets
import shutil
import sqlite3
import statistics
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import click

from raftplug.cli import options, output
from raftplug.errors import InvalidArgument, RaftplugError, TransportError
from raftplug.keys import VARIABLE

_OK: Final = "ok"
_NOTE: Final = "note"  # About speed, or not known: it needs no action.
_WARN: Final = "warn"
_FAIL: Final = "FAIL"

_SYNCS: Final = 50
_SYNC_BYTES: Final = 4096
_SLOW_SYNC_MS: Final = 20.0
_NO_SYNC_MS: Final = 0.02  # No disk is that fast: the file system keeps its files in memory, or ignores the call.
_LEAST_SPACE: Final = 1 << 30
_SLOW_REDIS_MS: Final = 20.0
_LEAST_REDIS: Final = (6, 2)  # XADD NOMKSTREAM.
_LEAST_SQLITE: Final = (3, 35, 0)


@dataclass(frozen=True)
class _Check:
    """What was looked at, how it is, what was found, and what to do about it."""

    check: str
    result: str
    found: str
    advice: str | None = None


@click.command("doctor")
@click.option(
    "--redis",
    metavar="URL",
    envvar="RAFTPLUG_REDIS",
    help="The Redis to check. Also from the environment: RAFTPLUG_REDIS.",
)
@click.option(
    "--data-dir",
    metavar="DIR",
    type=options.NamedPath(path_type=Path),
    help="The data directory whose disk to check; a file is written there and removed again.",
)
@options.prefix
@options.key
@options.as_json
def command(redis: str | None, data_dir: Path | None, prefix: str, key: options.KeyOption, as_json: bool) -> None:
    """Check the Redis, the disk and the core.

    A check FAILs where a node would not run; "warn" is what will go wrong later, and needs action, too; a note is about
    speed, or about what could not be found out.

    \b
    Exit codes: 0 nothing needs action; 1 something does; 2 a wrong option.

    \b
    Example:
      raftplug doctor --redis redis://localhost:6379 --data-dir n1
    """
    own = [_key(redis, key), *_disk(data_dir), _core(), _python(), _sqlite(), *_plugins()]
    checks = [*_redis(redis, prefix, key), *own]
    failed = [check for check in checks if check.result in (_WARN, _FAIL)]
    if as_json:
        output.emit_json({"ok": not failed, "checks": [asdict(check) for check in checks]})
    else:
        columns = ("check", "result", "found", "advice")
        output.table(columns, [[getattr(check, column) for column in columns] for check in checks])
    if failed:
        raise click.exceptions.Exit(1)


def _redis(url: str | None, prefix: str, key: options.KeyOption) -> Iterator[_Check]:
    if url is None:
        yield _Check("redis", _NOTE, "not checked", "give its URL with --redis")
        return
    from raftplug.plugins import default
    from raftplug.settings import Settings

    cluster = default().open_cluster(
        url,
        signed=key is not None or VARIABLE in os.environ,
        own_id=f"~doctor-{secrets.token_hex(8)}",
        cluster=bytes(16),
        prefix=prefix,
        settings=Settings(),
    )
    try:
        look = getattr(cluster, "check", None)
        if look is None:
            yield _Check("transport", _OK, "opened; it has no check of its own")
            return
        try:
            seen = look()
        except TransportError as error:
            yield _Check("redis", _FAIL, str(error), "start it, or correct --redis: a node decides nothing without it")
            return
    finally:
        cluster.close()
    yield from _seen(seen)


def _key(url: str | None, given: options.KeyOption) -> _Check:
    from raftplug.keys import cluster_keys, require_key, unsigned

    try:
        keys = cluster_keys(given)
        warning = None if url is None else unsigned(url, keys)
    except InvalidArgument as error:
        return _Check("cluster key", _FAIL, "none that a node could use", output.with_options(str(error)))
    if keys:
        return _Check("cluster key", _OK, "given" if len(keys) == 1 else "two given: the first signs, both verify")
    if url is None or require_key(url, keys):
        return _Check("cluster key", _OK, "none; a node on this machine's Redis runs without")
    return _Check("cluster key", _WARN, "none", output.with_options(warning or ""))


def _seen(seen: dict[str, Any]) -> Iterator[_Check]:
    latency = seen.get("latency_ms")
    if latency is None:
        yield _Check("redis", _OK, "reachable")
    elif latency > _SLOW_REDIS_MS:
        yield _Check("redis", _NOTE, f"reachable, {latency:.2f} ms", "every write takes several such: use a nearer one")
    else:
        yield _Check("redis", _OK, f"reachable, {latency:.2f} ms")
    server = seen.get("server")
    version = re.search(r"(\d+)\.(\d+)", server or "")
    if version is None:
        yield _Check("redis version", _NOTE, "not known", "it may not be asked: make sure that it is 6.2 or later")
    elif tuple(map(int, version.groups())) < _LEAST_REDIS:
        yield _Check("redis version", _FAIL, str(server), "use Redis 6.2 or later, or Valkey")
    else:
        yield _Check("redis version", _OK, str(server))
    policy = seen.get("maxmemory_policy")
    if policy is None:
        yield _Check("maxmemory-policy", _NOTE, "not known", "it may not be asked: make sure that it is noeviction")
    elif policy == "noeviction":
        yield _Check("maxmemory-policy", _OK, policy)
    else:
        advice = "set it to noeviction: an evicted inbox loses messages, and costs elections"
        yield _Check("maxmemory-policy", _WARN, policy, advice)
    for problem in seen.get("problems", []):
        if "maxmemory-policy" not in problem:  # Told above.
            yield _Check("redis", _WARN, problem, "see above; a node says it in its status, too")


def _disk(data_dir: Path | None) -> Iterator[_Check]:
    if data_dir is None:
        yield _Check("data directory", _NOTE, "not checked", "give it with --data-dir")
        return
    place = data_dir.absolute()
    while not place.exists():  # Nothing is made: its disk is its nearest parent's.
        place = place.parent
    if not place.is_dir():
        yield _Check("data directory", _FAIL, f"{place} is not a directory", "give another --data-dir")
        return
    try:
        times = sorted(_sync_times(place))
        free = shutil.disk_usage(place).free
    except OSError as error:
        yield _Check("data directory", _FAIL, f"{place}: {error.strerror}", "let this user write there, and make room")
        return
    median = statistics.median(times)
    found = f"median {median:.2f} ms, worst {times[-1]:.2f} ms"
    if median < _NO_SYNC_MS:
        advice = "no disk is so fast: files there do not survive a loss of power; use a real disk"
        yield _Check("fsync", _WARN, found, advice)
    elif median > _SLOW_SYNC_MS:
        yield _Check("fsync", _NOTE, found, "every write waits for it on a majority: use a faster disk")
    else:
        yield _Check("fsync", _OK, found)
    space = f"{free / (1 << 30):.1f} GiB free"
    if free < _LEAST_SPACE:
        yield _Check("space", _WARN, space, "a node without space acknowledges nothing: make room")
    else:
        yield _Check("space", _OK, space)


def _sync_times(place: Path) -> list[float]:
    """How long a small write and its fdatasync take, in milliseconds, some fifty times."""
    path = place / f".raftplug-doctor-{secrets.token_hex(8)}"
    sync = getattr(os, "fdatasync", os.fsync)
    times = []
    file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        for _ in range(_SYNCS):
            before = time.perf_counter()
            os.write(file, bytes(_SYNC_BYTES))
            sync(file)
            times.append((time.perf_counter() - before) * 1000)
    finally:
        os.close(file)
        with contextlib.suppress(OSError):
            path.unlink()
    return times


def _core() -> _Check:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # It is told here.
            from raftplug import core
    except RaftplugError as error:
        return _Check("core", _FAIL, str(error), "correct RAFTPLUG_CORE, or install again with a C compiler")
    found = f"{core.name}: {core.why}"
    if core.name == "python" and os.environ.get("RAFTPLUG_CORE") != "python":
        return _Check("core", _NOTE, found, "several times slower: install raftplug again with a C compiler")
    return _Check("core", _OK, found)


def _python() -> _Check:
    return _Check("python", _OK, f"{platform.python_implementation()} {platform.python_version()}")


def _sqlite() -> _Check:
    if sqlite3.sqlite_version_info < _LEAST_SQLITE:
        return _Check("sqlite", _WARN, sqlite3.sqlite_version, "only 3.35 and later are tested: use a newer Python")
    return _Check("sqlite", _OK, sqlite3.sqlite_version)


def _plugins() -> Iterator[_Check]:
    from raftplug.plugins import default

    plugins = default()
    listing = plugins.listing()  # It asks every hook, so that what is wrong is known.
    problems = plugins.problems()
    for problem in problems:
        yield _Check("plugins", _WARN, problem, "mend or uninstall it: `raftplug plugins` lists all")
    if not problems:
        machines = ", ".join(sorted(name for plugin in listing for name in plugin["machines"])) or "none"
        yield _Check("plugins", _OK, f"{len(listing)} loaded; state machines: {machines}")
