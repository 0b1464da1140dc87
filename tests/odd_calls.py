"""Calls that no correct program makes, of everything that a core shows: for each a Python exception or an answer.

    python tests/odd_calls.py CORE CLASS [FILE]    # one JSON object: what each call did
    python tests/odd_calls.py CORE --all           # every class, and only counts: for a run under a sanitizer

Each class of `SUBJECTS` is made in several ways (as meant, by `__new__` alone, initialised twice, used for a while) and
each of its public methods is called with each argument replaced by each odd value, with too few, too many and unknown
arguments; each public attribute is read, set to each odd value, and deleted.  The arguments of every method are in
`METHODS`; a public method that is missing there is an error, so that a new one joins.

FILE holds the call that is under way, so that the reason of a crash can be told.  The caller sets the limit of time.
"""

from __future__ import annotations

import copy
import inspect
import json
import mmap
import pickle
import re
import sys
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from raftplug import core as cores
from raftplug.constants import APPEND, LIMIT, TRANSITION

_WATCHED_BYTES = 4096

# ------------------------------------------------------------------ odd values


class Odd(Exception):
    """What an odd object raises when it is looked at."""


class Raises:
    """An object that refuses every look at it."""

    def _raise(self, *_: Any) -> Any:
        raise Odd("do not look")

    __index__ = __int__ = __bool__ = __eq__ = __lt__ = __le__ = __gt__ = __ge__ = __len__ = __iter__ = _raise
    __hash__ = __getitem__ = __contains__ = __call__ = __bytes__ = __float__ = __or__ = __getattr__ = _raise

    def __repr__(self) -> str:
        return "Raises()"


class RaisingInt(int):
    """An int whose every conversion raises; its digits are 1."""

    def _raise(self, *_: Any) -> Any:
        raise Odd("do not look")

    __index__ = __int__ = __eq__ = __lt__ = __le__ = __gt__ = __ge__ = __bool__ = __or__ = __add__ = _raise
    __radd__ = __sub__ = __rsub__ = __hash__ = __format__ = _raise

    def __repr__(self) -> str:
        return "RaisingInt()"


class Index:
    """No int, but it converts to one."""

    def __index__(self) -> int:
        return 1


class Meddler:
    """An object that changes the subject of the call each time that it is looked at."""

    meddle: Callable[[], object] = staticmethod(lambda: None)

    def _one(self, *_: Any) -> Any:
        Meddler.meddle()
        return 1

    def _true(self, *_: Any) -> Any:
        Meddler.meddle()
        return True

    def _iterate(self) -> Iterator[Any]:
        Meddler.meddle()
        return iter(())

    __index__ = __int__ = __hash__ = __len__ = __call__ = _one
    __bool__ = __eq__ = __lt__ = __le__ = __gt__ = __ge__ = __contains__ = _true
    __iter__ = _iterate


class MeddlingInt(int):
    """An int, 1, that changes the subject of the call each time that it is looked at."""

    def _one(self, *_: Any) -> Any:
        Meddler.meddle()
        return 1

    def _true(self, other: Any) -> Any:
        Meddler.meddle()
        return True

    __index__ = __int__ = __hash__ = _one
    __eq__ = __lt__ = __le__ = __gt__ = __ge__ = _true


class MeddlingStr(str):
    """An id, "a", that changes the subject of the call each time that it is compared."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        Meddler.meddle()
        return str.__eq__(self, other)

    def __hash__(self) -> int:
        Meddler.meddle()
        return str.__hash__(self)


class Bytes(bytes):
    """A subclass of bytes."""


ODD: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "True": lambda: True,
    "0": lambda: 0,
    "1": lambda: 1,
    "2": lambda: 2,
    "3": lambda: 3,
    "-1": lambda: -1,
    "-7": lambda: -7,
    "255": lambda: 255,
    "256": lambda: 256,
    "2^31": lambda: 1 << 31,
    "2^32-1": lambda: (1 << 32) - 1,
    "2^32": lambda: 1 << 32,
    "2^62": lambda: 1 << 62,
    "2^63-2": lambda: LIMIT - 2,
    "2^63-1": lambda: LIMIT - 1,
    "2^63": lambda: LIMIT,
    "2^64-1": lambda: (1 << 64) - 1,
    "2^70": lambda: 1 << 70,
    "-2^62": lambda: -(1 << 62),
    "-2^63": lambda: -LIMIT,
    "-2^63-1": lambda: -LIMIT - 1,
    "-2^70": lambda: -(1 << 70),
    "1.0": lambda: 1.0,
    "nan": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "str": lambda: "x",
    "surrogate": lambda: "\ud800",
    "b''": lambda: b"",
    "bytes": lambda: b"\xff" * 100,
    "Bytes": lambda: Bytes(b"\x01" * 60),
    "bytearray": lambda: bytearray(b"x" * 60),
    "memoryview": lambda: memoryview(b"x" * 60),
    "[]": list,
    "[None]": lambda: [None],
    "[['a']]": lambda: [["a"]],
    "()": lambda: (),
    "(1, 2, 3)": lambda: (1, 2, 3),
    "{}": dict,
    "{'a': None}": lambda: {"a": None},
    "set": lambda: {"a"},
    "frozenset": lambda: frozenset({"a"}),
    "deque": deque,
    "object": object,
    "type": lambda: int,
    "lambda": lambda: lambda *_: None,
    "raising lambda": lambda: Raises()._raise,
    "Index": Index,
    "Raises": Raises,
    "RaisingInt": lambda: RaisingInt(1),
    "Meddler": Meddler,
    "MeddlingInt": lambda: MeddlingInt(1),
    "MeddlingStr": lambda: MeddlingStr("a"),
    "self": lambda: SELF[0],
}
SELF: list[Any] = [None]  # The subject of the call that is under way.

# ---------------------------------------------------------------- the subjects


def a_log(core: Any) -> Any:
    log = core.Log()
    for i in range(5):
        log.append(1 + i // 2, TRANSITION, b"payload %d" % i)
    return log


def a_block(core: Any) -> bytes:
    return bytes(a_log(core).slice(1, 6))


def a_raft(core: Any, id: Any = "a", members: Any = ("a",), log: Any = None) -> Any:
    configuration = core.Configuration(list(members))
    return core.Raft(id, configuration, log or core.Log(), 1 << 4, None, 0, 1000, 100, lambda n: 0)


def a_leader(core: Any) -> Any:
    """The leader of three, one of which answers."""
    raft = a_raft(core, members=("a", "b", "c"))
    raft.tick(10**6)
    raft.step(core.Message(2, raft.term + 1, flag=True), "b")
    raft.ready()
    raft.persisted()
    raft.step(core.Message(4, raft.term, flag=True), "b")
    raft.ready()
    raft.persisted()
    raft.step(core.Message(6, raft.term, index=1, hint=1, flag=True), "b")
    if raft.role != 3 or raft.commit != 1:
        raise AssertionError(raft.role)
    return raft


def a_calls(core: Any) -> Any:
    calls = core.Calls(lambda: 5, lambda: None, lambda: None)
    calls.add(("a", b"x", core.Future(), 1))
    calls.add((None, 1))
    return calls


def a_used_future(core: Any) -> Any:
    future = core.Future()
    future.set_result(1)
    return future


# How each is made, besides by `__new__` alone; the first one is initialised a second time with odd values, too.
SUBJECTS: dict[str, dict[str, Callable[[Any], Any]]] = {
    "Log": {
        "used": a_log,
        "empty": lambda c: c.Log(),
        "at the end": lambda c: c.Log(LIMIT - 3, 5, 1),
        "compacted": lambda c: (log := a_log(c), log.compact(4))[0],
    },
    "Progress": {
        "made": lambda c: c.Progress("b", 1, 0),
        "used": lambda c: (p := c.Progress("b", 1, 0), p.advance(5), p.advance(9))[0],
        "at the end": lambda c: c.Progress("b", LIMIT - 1, LIMIT - 1),
    },
    "Message": {
        "made": lambda c: c.Message(APPEND, 1, 2, 3, 4, 5, 6, True, b"data"),
        "decoded": lambda c: c.Message.decode(c.Message(APPEND, LIMIT - 1).encode()),
    },
    "Configuration": {
        "made": lambda c: c.Configuration(["a", "b", "c"], learners=["d"], joining=["d"], storages={"a": b"disk"}),
        "joint": lambda c: c.Configuration(["a", "b"]).towards(c.Configuration(["c"])),
        "empty": lambda c: c.Configuration([]),
    },
    "Raft": {
        "alone": a_raft,
        "leads": a_leader,
        "follows": lambda c: (r := a_raft(c, members=("a", "b")), r.step(c.Message(APPEND, 99), "b"))[0],
        "full": lambda c: a_raft(c, log=c.Log(LIMIT - 2, 5, 1)),
    },
    "Ready": {
        "made": lambda c: c.Ready(),
        "of a turn": lambda c: (r := a_raft(c), r.tick(10**6), r.ready())[2],
    },
    "Future": {"pending": lambda c: c.Future(), "done": a_used_future},
    "Calls": {"used": a_calls},
    "functions": {"module": lambda c: c},
}

# Arguments with which each method does something, made for each call: some of the methods change them.
METHODS: dict[str, dict[str, Callable[[Any], tuple[Any, ...]]]] = {
    "Log": {
        "append": lambda c: (3, TRANSITION, b"new"),
        "bytes_between": lambda c: (5, 6),
        "check_at": lambda c: (5,),
        "check_block": lambda c: (a_block(c), 0, 9),
        "compact": lambda c: (5,),
        "entries": lambda c: (5, 6),
        "extend": lambda c: (a_block(c) + a_long_log(c).slice(6, 9), 6),
        "find": lambda c: (TRANSITION, 5),
        "fit": lambda c: (5, 100),
        "kind_at": lambda c: (5,),
        "payload_at": lambda c: (5,),
        "reset": lambda c: (3, 2, 1),
        "restore": lambda c: (a_long_log(c).slice(1, 9),),
        "slice": lambda c: (5, 6),
        "term_at": lambda c: (5,),
        "truncate": lambda c: (5,),
    },
    "Progress": {"advance": lambda c: (7,), "in_flight": lambda c: ()},
    "Message": {"decode": lambda c: (c.Message(APPEND, 1).encode(),), "encode": lambda c: ()},
    "Configuration": {
        "decode": lambda c: (c.Configuration(["a"]).encode(),),
        "encode": lambda c: (),
        "from_plain": lambda c: (c.Configuration(["a"]).plain(),),
        "has_quorum": lambda c: ({"a", "b"},),
        "is_voter": lambda c: ("a",),
        "left": lambda c: (),
        "may_lead": lambda c: ("a",),
        "members": lambda c: (),
        "plain": lambda c: (),
        "towards": lambda c: (c.Configuration(["b"]),),
    },
    "Raft": {
        "applicable": lambda c: (),
        "change": lambda c: (c.Configuration(["a", "b"]),),
        "configuration_at": lambda c: (1,),
        "deadline": lambda c: (),
        "draw_election_timer": lambda c: (),
        "is_displaced": lambda c: (),
        "is_early": lambda c: (c.Message(APPEND, 1), "b"),
        "is_idle": lambda c: (),
        "persisted": lambda c: (),
        "propose": lambda c: (TRANSITION, b"x"),
        "read": lambda c: ("request", True),
        "ready": lambda c: (True,),
        "resign": lambda c: (),
        "rest": lambda c: (),
        "set_configuration": lambda c: (c.Configuration(["a", "b"]),),
        "set_time": lambda c: (10**7,),
        "snapshot_stored": lambda c: (1, 0),
        "step": lambda c: (c.Message(APPEND, 99, 0, 0, 1, 0, 0, False, a_block(c)), "b"),
        "tick": lambda c: (10**7,),
        "transfer": lambda c: ("b",),
        "wake": lambda c: (True,),
    },
    "Ready": {},
    "Future": {
        "add_done_callback": lambda c: (lambda future: None,),
        "cancel": lambda c: (),
        "cancelled": lambda c: (),
        "done": lambda c: (),
        "exception": lambda c: (0.0,),
        "result": lambda c: (0.0,),
        "running": lambda c: (),
        "set_exception": lambda c: (ValueError("set"),),
        "set_result": lambda c: (1,),
        "when_done": lambda c: (lambda future: None,),
    },
    "Calls": {
        "add": lambda c: (("a", b"x", c.Future(), 1),),
        "propose": lambda c: ("a", b"x", 1.5),
        "put_back": lambda c: ([(None, 1)],),
        "take": lambda c: (2, deque()),
    },
    "functions": {
        "answer": lambda c: (1, [(1, 1, b"x")], [(0, "result")], {1: (1, 5, c.Future())}, True, lambda *_: None),
        "append_proposals": lambda c: (a_leader(c), deque([("d", b"x", c.Future(), 5)]), {}, 1, 99, lambda *_: None),
        "execute": lambda c: (
            *(1, [(1, 1, b"x")], 0, 1, lambda transition: 5, lambda payload: payload, lambda value: (0, value)),
            *(lambda error: "failed", lambda *_: (0, None), []),
        ),
        "now_us": lambda c: (),
    },
}
FOREVER = {("Future", "exception"), ("Future", "result")}  # Whose odd timeouts may wait: only on one that is done.


def a_long_log(core: Any) -> Any:
    log = a_log(core)
    for _ in range(3):
        log.append(9, TRANSITION, b"more")
    return log


def public(thing: Any) -> set[str]:
    return {name for name in dir(thing) if not name.startswith("_")}


def attributes(core: Any, name: str) -> list[str]:
    """The public attributes of a class that are no methods; on the Python core annotations tell some."""
    if name == "functions":
        return []
    annotated = inspect.get_annotations(getattr(cores.load("python"), name))
    shown = public(getattr(core, name)) | {key for key in annotated if not key.startswith("_")}
    return sorted(shown - METHODS[name].keys())


def meddling(core: Any, name: str, subject: Any) -> Callable[[], object]:
    """What changes the subject while a call of it looks at its arguments."""
    steps = 0

    def meddle() -> None:
        nonlocal steps
        steps += 1
        if steps > 20:
            return
        if name == "Log":
            [lambda: subject.append(9, 1, b"y" * 5000), lambda: subject.reset(0, 0, 0)][steps % 2]()
        elif name == "Progress":
            subject.__init__("c", 1, 0)
            subject.advance(3)
        elif name == "Message":
            subject.__init__(APPEND, 1)
        elif name == "Configuration":
            subject.__init__(["x"])
        elif name == "Raft":
            if steps % 2:
                subject.set_configuration(core.Configuration(["z"]))
            else:
                subject.__init__("z", core.Configuration(["z"]), core.Log(), 0, None, 0, 1000, 100, lambda n: 0)
        elif name == "Future":
            subject.__init__()
        elif name == "Calls":
            subject.take(9, deque())

    return meddle


def words(value: Any) -> str:
    """An answer in a form that can be compared across cores."""
    if isinstance(value, (type(None), int, float, str, bytes, list, tuple, dict, set)):
        return re.sub(r" at 0x\w+", "", repr(value))
    return type(value).__name__


def result_of(call: Callable[[], Any]) -> str:
    """What the call returned, or the name of the exception and an exclamation mark."""
    try:
        return words(call())
    except Exception as error:
        return f"{type(error).__name__}!"


def a_turn(raft: Any) -> list[Any]:
    """Three turns of a replica that nobody answers."""
    for _ in range(3):
        ready = raft.ready()
        if ready.write:
            raft.persisted()
        raft.tick(min(raft.now + 1000, LIMIT - 1))
    return [raft.role, raft.term, raft.commit, raft.log.last_index, len(raft.progress)]


def all_of(log: Any) -> list[Any]:
    lo, hi = log.base_index + 1, log.last_index + 1
    return [repr(log), len(log), log.slice(lo, hi), log.entries(lo, hi)]


# What a subject is like, by a use of all that it holds: memory that is not its own would show here.
USES: dict[str, Callable[[Any], Any]] = {
    "Log": all_of,
    "Progress": lambda s: [s.in_flight(), repr(s)],
    "Message": lambda s: s.encode(),
    "Configuration": lambda s: [repr(s), s.has_quorum(set(s.members()))],
    "Raft": a_turn,
    "Ready": lambda s: [s.write, s.term, s.first, s.block],
    "Future": lambda s: [s.done(), repr(s)],
    "Calls": lambda s: [len(s), s.sleeping, s.closed],
    "functions": lambda s: None,
}
# What any object can be asked.
ASKED: dict[str, Callable[[Any], Any]] = {
    "nothing": lambda s: None,
    "repr": lambda s: type(repr(s)),
    "str": lambda s: type(str(s)),
    "format": lambda s: format(s, "x"),
    "hash": lambda s: type(hash(s)),
    "len": lambda s: len(s),
    "bool": lambda s: type(bool(s)),
    "iter": lambda s: type(iter(s)),
    "index": lambda s: s[0],
    "call": lambda s: s(),
    "await": lambda s: next(s.__await__()),
    "with": lambda s: s.__enter__(),
    "copy": lambda s: type(copy.copy(s)),
    "deepcopy": lambda s: type(copy.deepcopy(s)),
    "pickle": lambda s: type(pickle.loads(pickle.dumps(s))),  # noqa: S301  # What was pickled one line before.
    "pickle 0": lambda s: type(pickle.loads(pickle.dumps(s, 0))),  # noqa: S301
    "reduce": lambda s: type(s.__reduce__()),
    "setstate None": lambda s: s.__setstate__(None),
    "setstate ()": lambda s: s.__setstate__(()),
    "setstate {}": lambda s: s.__setstate__({"a": None}),
    "setstate_cython None": lambda s: s.__setstate_cython__(None),
    "setstate_cython ()": lambda s: s.__setstate_cython__(()),
    "class": lambda s: setattr(s, "__class__", object),
    "dict": lambda s: type(s.__dict__),
    "surplus": lambda s: setattr(s, "surplus", 1),
    "equal": lambda s: s == s,
    "equal to None": lambda s: s == None,  # noqa: E711
    "equal to new": lambda s: type(s == type(s).__new__(type(s))),
    "less": lambda s: s < s,
    "in a set": lambda s: type({s}),
    "subclass": lambda s: type(type("Sub", (type(s),), {})),
}
CONSTRUCTORS: dict[str, Callable[[Any], tuple[Any, ...]]] = {
    "Log": lambda c: (3, 2, 1),
    "Progress": lambda c: ("b", 1, 0),
    "Message": lambda c: (APPEND, 1, 2, 3, 4, 5, 6, True, b"data"),
    "Configuration": lambda c: (["a", "b"], ["a"], ["d"], ["d"], {"a": b"disk"}, ["b"]),
    "Raft": lambda c: (
        *("a", c.Configuration(["a"]), c.Log(), 1, None, 0, 1000, 100, lambda n: 0),
        *(65536, 1 << 18, 128, b"disk" * 4, 0, False),
    ),
    "Ready": lambda c: (),
    "Future": lambda c: (),
    "Calls": lambda c: (lambda: 5, lambda: None, lambda: None),
}


class Run:
    """Makes the calls of one class of one core, one after the other.

    Args:
        core: a namespace of `raftplug.core.load`.
        name: of the class, or "functions".
        watch: a file that holds the call under way; None if nothing is to be written.

    Attributes:
        outcomes: of each call what it did, and what its subject was like afterwards, as text.
    """

    def __init__(self, core: Any, name: str, watch: str | None = None) -> None:
        self.core = core
        self.name = name
        self.outcomes: dict[str, tuple[str, str]] = {}
        self._watch: mmap.mmap | None = None
        if watch is not None:
            Path(watch).write_bytes(bytes(_WATCHED_BYTES))
            with open(watch, "r+b") as file:
                self._watch = mmap.mmap(file.fileno(), _WATCHED_BYTES)

    def all(self) -> dict[str, tuple[str, str]]:
        """Make every call.

        Raises:
            LookupError: the class has a public method that METHODS does not name.
        """
        core, name = self.core, self.name
        for way, make in SUBJECTS[name].items():
            self._way(way, partial(make, core))
        if name != "functions":
            made = getattr(core, name)
            methods = {key for key in public(made) if callable(getattr(made, key))}
            if methods - METHODS[name].keys():
                raise LookupError(f"{name} has methods that METHODS does not name: {methods - METHODS[name].keys()}")
            self._way("new", partial(made.__new__, made))
            self._constructor(made)
        return self.outcomes

    def _way(self, way: str, make: Callable[[], Any]) -> None:
        """All calls of an object that is made one way."""
        for method, arguments in METHODS[self.name].items():
            self._method(way, make, method, arguments)
        for attribute in attributes(self.core, self.name):
            self._try(f"{way}: get {attribute}", make, partial(_get, attribute))
            self._try(f"{way}: delete {attribute}", make, partial(_delete, attribute))
            for odd, value in ODD.items():
                self._try(f"{way}: set {attribute} to {odd}", make, partial(_set, attribute, value))
        for what, call in ASKED.items():
            if self.name != "functions":
                self._try(f"{way}: {what}", make, call)

    def _method(
        self, way: str, make: Callable[[], Any], method: str, arguments: Callable[[Any], tuple[Any, ...]]
    ) -> None:
        given = partial(arguments, self.core)

        def called(change: Callable[[tuple[Any, ...]], tuple[Any, ...]], **named: Any) -> Callable[[Any], Any]:
            return lambda subject: getattr(subject, method)(*change(given()), **named)

        self._try(f"{way}: {method} as meant", make, called(lambda a: a))
        if (self.name, method) in FOREVER and way != "done":
            return
        self._try(f"{way}: {method} too few", make, called(lambda a: a[:-1]))
        self._try(f"{way}: {method} too many", make, called(lambda a: (*a, 1, 2, 3, 4)))
        self._try(f"{way}: {method} unknown", make, called(lambda a: a, surplus=1))
        if self.name != "functions":
            self._try(f"{way}: {method} of no object", make, lambda s: getattr(type(s), method)())
            self._try(f"{way}: {method} of another", make, lambda s: getattr(type(s), method)(5, *given()))
        for place in range(len(given())):
            for odd, value in ODD.items():
                changed = called(partial(_replaced, place, value))
                self._try(f"{way}: {method} argument {place} is {odd}", make, changed)

    def _constructor(self, made: Any) -> None:
        """The constructor, as any method; and once more on an object that is in use."""
        given = partial(CONSTRUCTORS[self.name], self.core)
        first = partial(next(iter(SUBJECTS[self.name].values())), self.core)
        changes: dict[str, Callable[[tuple[Any, ...]], tuple[Any, ...]]] = {
            "as meant": lambda a: a,
            "without arguments": lambda a: (),
            "too many": lambda a: (*a, *range(20)),
        }
        for place in range(len(given())):
            for odd, value in ODD.items():
                changes[f"argument {place} is {odd}"] = partial(_replaced, place, value)
        for what, change in changes.items():
            self._try(f"constructor: {what}", lambda: None, lambda _, c=change: USES[self.name](made(*c(given()))))
            self._try(f"again: {what}", first, lambda s, c=change: s.__init__(*c(given())))
            self._try(f"new again: {what}", partial(made.__new__, made), lambda s, c=change: s.__init__(*c(given())))

    def _try(self, what: str, make: Callable[[], Any], call: Callable[[Any], Any]) -> None:
        """One call on a new subject, and a use of the subject afterwards."""
        if self._watch is not None:
            self._watch[:] = what.encode("ascii", "replace")[:_WATCHED_BYTES].ljust(_WATCHED_BYTES, b"\0")
        if what in self.outcomes:
            raise LookupError(f"{what} was tried already")
        try:
            subject = make()
        except Exception as error:
            self.outcomes[what] = (f"{type(error).__name__}!", "")
            return
        SELF[0] = subject
        Meddler.meddle = staticmethod(meddling(self.core, self.name, subject))
        outcome = result_of(lambda: call(subject))
        Meddler.meddle = staticmethod(lambda: None)
        self.outcomes[what] = (outcome, result_of(lambda: USES[self.name](subject)) if subject is not None else "")
        SELF[0] = None


def _get(attribute: str, subject: Any) -> Any:
    return getattr(subject, attribute)


def _delete(attribute: str, subject: Any) -> None:
    delattr(subject, attribute)


def _set(attribute: str, value: Callable[[], Any], subject: Any) -> None:
    setattr(subject, attribute, value())


def _replaced(place: int, value: Callable[[], Any], arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return (*arguments[:place], value(), *arguments[place + 1 :])


def main() -> None:
    core = cores.load(sys.argv[1])
    if sys.argv[2] == "--all":
        for name in SUBJECTS:
            print(f"{name}: {len(Run(core, name).all())} calls", flush=True)
        return
    json.dump(Run(core, *sys.argv[2:4]).all(), sys.stdout)


if __name__ == "__main__":
    main()
