"""Plugins: found, loaded, asked; one that is broken is named, and never takes the others down.

Everything that a plugin does runs behind a guard here: its import, its registration, what its hooks return, its
factories and its observers.  The built-in transports are registered by the same hooks as a third party's.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import metadata
from inspect import iscoroutinefunction, isgeneratorfunction
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

import pluggy

from raftplug import hooks
from raftplug.cluster import room_in_messages
from raftplug.errors import InvalidArgument, RaftplugError, TransportError, UnknownMachine
from raftplug.foreign import described, is_interrupt, log_raised, short, trace_of, type_name
from raftplug.forks import follow
from raftplug.settings import Settings
from raftplug.state_machine import abilities
from raftplug.version import VERSION

if TYPE_CHECKING:
    import click

_logger = logging.getLogger("raftplug.plugins")

_MACHINES: Final = "raftplug_state_machines"
_CLUSTERS: Final = "raftplug_clusters"
_COMMANDS: Final = "raftplug_commands"
_GIVING: Final = (_MACHINES, _CLUSTERS, _COMMANDS)
_HOOKS: Final = tuple(name for name in vars(hooks) if name.startswith("raftplug_"))
_OBSERVERS: Final = tuple(name for name in _HOOKS if name not in _GIVING)

# What a hook gives: how its names must look, and what they are called in messages.
_MACHINE_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SCHEME: Final = re.compile(r"[a-z][a-z0-9+.-]{0,63}")
_TELLING: Final = 4  # A shorter part of a password is looked for as a word only.
_KINDS: Final = {_MACHINES: "state machine", _CLUSTERS: "transport", _COMMANDS: "command"}


class _BuiltIn:
    """The transports that come with raftplug."""

    @hooks.hookimpl
    def raftplug_clusters(self) -> dict[str, Callable[..., Any]]:
        schemes = ("redis", "rediss", "unix", "redis+sentinel", "redis+cluster")
        return {"memory": _open_memory, **dict.fromkeys(schemes, _open_redis)}


def _open_redis(url: str, **options: Any) -> Any:
    from raftplug.redis_streams import RedisStreams  # Here, since redis-py takes 100 ms to import.

    return RedisStreams(url, **options)


def _open_memory(url: str, **options: Any) -> Any:
    from raftplug.cluster import open_memory

    return open_memory(url, **options)


@dataclass
class _Plugin:
    """What is known of one plugin, sound or broken."""

    name: str
    version: str | None
    plugin: object = None
    errors: list[str] = field(default_factory=list)
    observes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Observer:
    plugin: _Plugin
    function: Callable[..., object]
    names: tuple[str, ...]


class Plugins:
    """The plugins of a process, or, in tests and for embedders, a set of one's own.

    Methods may be called from any thread.

    Args:
        built_in: whether the transports that come with raftplug are among them.
    """

    def __init__(self, *, built_in: bool = True) -> None:
        self._lock = threading.RLock()
        self._pluggy = pluggy.PluginManager(hooks.PROJECT)
        self._pluggy.add_hookspecs(hooks)
        self._plugins: list[_Plugin] = []
        self._sound: dict[int, _Plugin] = {}
        self._given: dict[str, dict[str, list[tuple[_Plugin, Any]]]] = {}
        self._observers: dict[str, tuple[_Observer, ...]] = {}
        self._raised: set[tuple[int, str]] = set()
        follow(self)
        if built_in:
            self.register(_BuiltIn(), name="raftplug", version=VERSION)

    def forked(self) -> None:
        """In a child: another thread may have held the lock."""
        self._lock = threading.RLock()

    # -- loading ---------------------------------------------------------------------------------------------------

    def load(self) -> Plugins:
        """Load every installed plugin: the entry points of the group "raftplug".  Never raises; returns self."""
        found = []
        for distribution in self._distributions():
            try:
                found += [(entry, distribution) for entry in distribution.entry_points if entry.group == hooks.PROJECT]
            except Exception as error:
                self._unreadable(_place(distribution), error)
        for entry, distribution in sorted(found, key=lambda pair: (pair[0].name, pair[0].value)):
            name, version = entry.name, None
            try:
                name, version = str(distribution.name), distribution.version
            except Exception as error:
                self._unreadable(_place(distribution), error)  # But its module may be sound.
            if any(plugin.name == name for plugin in self._plugins):
                name = f"{name}:{entry.name}"
            try:
                loaded = entry.load()
            except BaseException as error:
                if is_interrupt(error):
                    raise
                self._broken(name, version, error)
                continue
            self.register(loaded, name=name, version=version)
        return self

    def _distributions(self) -> Iterator[metadata.Distribution]:
        """The installed distributions, the first of each name; each is looked at by itself, so that one that cannot be
        read is named and hides no other."""
        seen = set()
        for distribution in self._found_distributions():
            try:
                # As importlib.metadata compares them: by the name in the path, without reading the metadata.
                name = getattr(distribution, "_normalized_name", None) or distribution.name
            except Exception as error:
                self._unreadable(_place(distribution), error)
                continue
            if name not in seen:
                seen.add(name)
                yield distribution

    def _found_distributions(self) -> Iterator[metadata.Distribution]:
        places = [place for place in sys.path if isinstance(place, str)]  # Imports ignore what is no text, too.
        for finder in sys.meta_path:
            find = getattr(finder, "find_distributions", None)
            if find is None:
                continue
            try:
                yield from list(find(metadata.DistributionFinder.Context(path=places)))
            except Exception as error:
                self._unreadable(f"finder {_name_of(finder)}", error)

    def _unreadable(self, place: str, error: Exception) -> None:
        text = f"its metadata cannot be read ({described(error)}): remove it, or install its package again"
        self._broken(place, None, InvalidArgument(text))

    def register(self, plugin: object, *, name: str | None = None, version: str | None = None) -> None:
        """Add `plugin`, a module or object.  Never raises: what is wrong with it is in `listing` and `problems`."""
        with self._lock:
            record = _Plugin(name or _name_of(plugin), version, plugin)
            self._plugins.append(record)
            if id(plugin) in self._sound:
                record.errors.append(f"it is the same object as plugin {self._sound[id(plugin)].name}")
                return
            try:
                self._register(record)
                self._sound[id(plugin)] = record
            except BaseException as error:  # pluggy's validation, ours, or a hostile attribute.
                if is_interrupt(error):
                    raise
                record.errors.append(described(error))
                try:
                    self._pluggy.unregister(plugin)
                except Exception:
                    _logger.debug("plugin %s was not registered at all", record.name, exc_info=True)
            self._given.clear()
            self._observers = self._collect_observers()

    def _register(self, record: _Plugin) -> None:
        if isinstance(record.plugin, type):
            raise InvalidArgument(f"the entry point names the class {_name_of(record.plugin)}: name a module or object")
        self._pluggy.register(record.plugin, name=f"{len(self._plugins)} {record.name}")
        callers = (record.plugin is not None and self._pluggy.get_hookcallers(record.plugin)) or []
        known = {caller.name for caller in callers if caller.name in _HOOKS}
        for caller in callers:
            if caller.name not in _HOOKS:
                raise InvalidArgument(f"{caller.name} is no hook{_near(caller.name, _HOOKS)}")
            for impl in caller.get_hookimpls():
                function = impl.function
                if impl.plugin is record.plugin and (isgeneratorfunction(function) or iscoroutinefunction(function)):
                    raise InvalidArgument(f"{caller.name} must be a plain function: no wrapper, generator or async def")
        for name in dir(record.plugin):
            if name.startswith("raftplug_") and name not in known and callable(getattr(record.plugin, name, None)):
                raise InvalidArgument(f"{name} is not marked: write @raftplug.hookimpl above it")
        if not known:
            raise InvalidArgument("it has no hook: write at least one, such as raftplug_state_machines")
        record.observes.extend(name for name in _OBSERVERS if name in known)

    def _broken(self, name: str, version: str | None, error: BaseException) -> None:
        with self._lock:
            self._plugins.append(_Plugin(name, version, None, [described(error)]))

    def _collect_observers(self) -> dict[str, tuple[_Observer, ...]]:
        return {
            name: tuple(
                _Observer(self._sound[id(impl.plugin)], impl.function, tuple(impl.argnames))
                for impl in reversed(getattr(self._pluggy.hook, name).get_hookimpls())
            )
            for name in _OBSERVERS
        }

    # -- what plugins give -----------------------------------------------------------------------------------------

    def machine(self, name: str) -> Any:
        """Make a new state machine of that name.

        Raises:
            UnknownMachine: no plugin gives it; the message lists those that are given, and the broken plugins.
            InvalidArgument: two plugins give it, or its factory failed, or made no state machine.
        """
        plugin, factory = self._one(_MACHINES, name, UnknownMachine)
        try:
            machine = factory()
            abilities(machine)
        except RaftplugError as error:
            raise InvalidArgument(f"state machine {name!r} of plugin {plugin.name}: {described(error)}") from error
        except BaseException as error:
            if is_interrupt(error):
                raise
            why = described(error)
            raise InvalidArgument(f"plugin {plugin.name} cannot make state machine {name!r}: {why}") from error
        return machine

    def machines(self) -> list[str]:
        """The names of the state machines that can be made."""
        return sorted(self._gather(_MACHINES))

    def open_cluster(self, url: str, *, signed: bool = True, **options: Any) -> Any:
        """Open the transport that `url` names by its scheme.

        Args:
            url: such as redis://localhost:6379 or memory://test.
            signed: whether a cluster key signs what is sent; only for the transports that come with raftplug.
            options: see `hooks.raftplug_clusters`.

        Raises:
            InvalidArgument: no plugin, or two, give that scheme, or it is no URL.
            TransportError: the transport could not be opened as it is configured.
        """
        scheme, separator, _ = url.partition("://") if isinstance(url, str) else ("", "", "")
        if not separator:  # The text itself may hold a password: it is not repeated.
            raise InvalidArgument("the transport's address is no URL: write it like redis://localhost:6379")
        plugin, factory = self._one(_CLUSTERS, scheme.lower(), InvalidArgument)
        if isinstance(plugin.plugin, _BuiltIn):
            options["signed"] = signed
        try:
            cluster = factory(url, **options)
        except BaseException as error:
            if is_interrupt(error):
                raise
            # What a log shows of it, its causes too, may repeat the URL.
            trace = trace_of(error, sys.maxsize)
            tells = trace != _without_secrets(trace, url)
            if isinstance(error, RaftplugError) and not tells:
                raise
            refusal = InvalidArgument if isinstance(error, InvalidArgument) else TransportError
            text = f"plugin {plugin.name} cannot open {scheme}://…: {_without_secrets(described(error), url)}"
            raise refusal(text) from (None if tells else error)
        for method in ("send_message", "receive_messages"):
            if not callable(getattr(cluster, method, None)):
                kind = type_name(cluster)
                raise TransportError(f"plugin {plugin.name}: what {scheme}:// opens, {kind}, has no method {method}")
        if isinstance(options.get("settings"), Settings):
            try:
                room_in_messages(cluster, options["settings"])
            except InvalidArgument:
                cluster.close()
                raise
        return cluster

    def schemes(self) -> list[str]:
        """The URL schemes of the transports that can be opened."""
        return sorted(self._gather(_CLUSTERS))

    def commands(self, taken: Iterable[str] = ()) -> dict[str, click.Command]:
        """The commands that plugins add, by name.

        Args:
            taken: names of built-in commands; a plugin's command of such a name, or of another plugin's, is left out.
        """
        taken = frozenset(taken)
        commands = {}
        with self._lock:
            for name, givers in self._gather(_COMMANDS).items():
                if name in taken:
                    problem = f"command {name!r} is built in: rename it"
                elif len(givers) > 1:
                    problem = f"command {name!r} is given by {_both(givers)}: uninstall one of them"
                else:
                    commands[name] = givers[0][1]
                    continue
                for plugin, _ in givers:
                    if problem not in plugin.errors:
                        plugin.errors.append(problem)
        return commands

    def _one(self, hook: str, name: str, unknown: type[RaftplugError]) -> tuple[_Plugin, Any]:
        kind = _KINDS[hook]
        given = self._gather(hook)
        givers = given.get(name, []) if isinstance(name, str) else []
        if len(givers) > 1:
            raise InvalidArgument(f"{kind} {name!r} is given by {_both(givers)}: uninstall one of them")
        if givers:
            return givers[0]
        names = ", ".join(sorted(given)) or "none"
        broken = "; ".join(f"{record.name}: {record.errors[0]}" for record in self._plugins if record.errors)
        raise unknown(
            f"no plugin gives a {kind} {short(name)}{_near(name, given)}; installed: {names}"
            + (f"; broken plugins: {broken}" if broken else "")
        )

    def _gather(self, hook: str) -> dict[str, list[tuple[_Plugin, Any]]]:
        """Ask every plugin once for what `hook` gives, and keep what can be used."""
        with self._lock:
            if hook not in self._given:
                given: dict[str, list[tuple[_Plugin, Any]]] = {}
                for impl in getattr(self._pluggy.hook, hook).get_hookimpls():
                    record = self._sound[id(impl.plugin)]
                    try:
                        pairs = _usable(hook, impl.function())
                    except BaseException as error:
                        if is_interrupt(error):
                            raise
                        record.errors.append(f"{hook}: {described(error)}")
                        continue
                    for name, value in pairs:
                        given.setdefault(name, []).append((record, value))
                for name, givers in given.items():
                    self._prefer_built_in(hook, name, givers)
                self._given[hook] = given
            return self._given[hook]

    @staticmethod
    def _prefer_built_in(hook: str, name: str, givers: list[tuple[_Plugin, Any]]) -> None:
        """A plugin that takes a built-in name loses it: it must not be able to stop redis:// from working."""
        built_in = [giver for giver in givers if isinstance(giver[0].plugin, _BuiltIn)]
        if built_in and len(givers) > 1:
            for record, _ in givers:
                if record is not built_in[0][0]:
                    record.errors.append(f"{_KINDS[hook]} {name!r} is built in: rename it")
            givers[:] = built_in

    # -- observers -------------------------------------------------------------------------------------------------

    def observed(self, name: str) -> bool:
        """True if any plugin observes the event `name`: who would have to prepare its arguments can ask first."""
        return bool(self._observers.get(name))

    def observing(self, name: str) -> tuple[str, ...]:
        """The names of the plugins that observe the event `name`."""
        return tuple(dict.fromkeys(observer.plugin.name for observer in self._observers.get(name, ())))

    def events(self, name: str, *, only: str | None = None, **arguments: Any) -> None:
        """Call the observers of the hook `name`, here and now.  One that raises is logged once, and hurts nobody.

        Args:
            name: of the hook.
            only: the plugin whose observers are called; all of them unless given.
            arguments: the hook's.
        """
        for observer in self._observers.get(name, ()):
            if only is not None and observer.plugin.name != only:
                continue
            try:
                observer.function(*[arguments[key] for key in observer.names])
            except BaseException as error:
                if is_interrupt(error):
                    raise
                self._observer_raised(observer, name, error)

    def _observer_raised(self, observer: _Observer, name: str, error: BaseException) -> None:
        with self._lock:
            key = (id(observer.plugin), name)
            if key in self._raised:
                return
            self._raised.add(key)
            observer.plugin.errors.append(f"{name}: {described(error)}")
        log_raised(_logger, error, "plugin %s: %s raised, and will not be logged again", observer.plugin.name, name)

    # -- telling ---------------------------------------------------------------------------------------------------

    def listing(self) -> list[dict[str, Any]]:
        """Each plugin as `{"name", "version", "machines", "transports", "commands", "events", "errors"}`."""
        with self._lock:
            given = {hook: self._gather(hook) for hook in _GIVING}
            for hook in (_MACHINES, _CLUSTERS):
                for name, givers in given[hook].items():
                    problem = f"{_KINDS[hook]} {name!r} is given by {_both(givers)}: uninstall one of them"
                    for record, _ in givers:
                        if len(givers) > 1 and problem not in record.errors:
                            record.errors.append(problem)

            def names(hook: str, record: _Plugin) -> list[str]:
                return sorted(name for name, givers in given[hook].items() if any(g[0] is record for g in givers))

            return [
                {
                    "name": record.name,
                    "version": record.version,
                    "machines": names(_MACHINES, record),
                    "transports": names(_CLUSTERS, record),
                    "commands": names(_COMMANDS, record),
                    "events": [name.removeprefix("raftplug_") for name in record.observes],
                    "errors": list(record.errors),
                }
                for record in self._plugins
            ]

    def problems(self) -> list[str]:
        """What is wrong with which plugin, one line each, as far as it is known by now."""
        with self._lock:
            return [f"plugin {record.name}: {error}" for record in self._plugins for error in record.errors]


def _usable(hook: str, value: Any) -> Sequence[tuple[str, Any]]:
    """What a hook gave as pairs of name and value, or an error that says what it should have given."""
    if value is None:
        return []
    if hook == _COMMANDS:
        import click

        if not isinstance(value, Sequence) or not all(isinstance(item, click.Command) and item.name for item in value):
            raise InvalidArgument(f"a list of click commands is wanted, not {short(value)}")
        return [(str(item.name), item) for item in value]
    pattern = _MACHINE_NAME if hook == _MACHINES else _SCHEME
    if not isinstance(value, Mapping):
        raise InvalidArgument(f"a dict of names and factories is wanted, not {short(value)}")
    for name, factory in value.items():
        if not isinstance(name, str) or not pattern.fullmatch(name):
            raise InvalidArgument(f"{short(name)} cannot be the name of a {_KINDS[hook]}")
        if not callable(factory):
            raise InvalidArgument(f"what makes {name!r} must be callable: {short(factory)} is not")
        if iscoroutinefunction(factory) or isgeneratorfunction(factory):
            raise InvalidArgument(f"what makes {name!r} must be a plain function: no generator or async def")
    return list(value.items())


def _name_of(thing: object) -> str:
    """What a module, class or function is called; of any other object the class."""
    try:
        return str(getattr(thing, "__name__", None) or type_name(thing))
    except BaseException:
        return type_name(thing)


def _place(distribution: metadata.Distribution) -> str:
    """Where the metadata of a distribution lies; for people."""
    place = getattr(distribution, "_path", None)  # No public attribute says it.
    try:
        return str(distribution.locate_file("") if place is None else place)
    except Exception:
        return f"an installed distribution ({type_name(distribution)})"


def _near(name: str, names: Iterable[str]) -> str:
    near = get_close_matches(str(name), list(names), 1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _without_secrets(text: str, url: str) -> str:
    """`text` without what `url` may keep secret: its password, encoded or not, each part of it, the query's values."""
    scheme, _, rest = url.partition("://")
    text = text.replace(url, f"{scheme}://…")
    user = rest.rpartition("@")[0]
    password = user.partition(":")[2] or user
    values = [pair.partition("=")[2] for pair in rest.partition("?")[2].split("&")]
    secrets = {user, password, *re.split("[:@/?#]", password), *values}
    for secret in sorted(secrets | set(map(unquote, secrets)), key=len, reverse=True):
        if len(secret) >= _TELLING:
            text = text.replace(secret, "…")
        elif secret:
            text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", "…", text)
    return text


def _both(givers: Sequence[tuple[_Plugin, Any]]) -> str:
    return " and ".join(f"plugin {record.name}" for record, _ in givers)


_default: Plugins | None = None
_default_lock = threading.Lock()


def _forked() -> None:
    global _default_lock
    _default_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def default() -> Plugins:
    """The installed plugins, loaded when first asked for, once a process."""
    global _default
    with _default_lock:
        if _default is None:
            _default = Plugins().load()
        return _default
