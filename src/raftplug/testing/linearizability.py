"""Was every operation of a history as if it had happened at one instant between its call and its return?

A history is what clients saw of a key-value store: the operations of the kv machine, get, put, delete, append and cas.
It is linearizable if and only if that of each key is (Herlihy and Wing 1990, theorem 1), so each key is searched by
itself for an order that explains every result, and never twice from the same place (Wing and Gong 1993; Lowe 2017,
"Testing for linearizability").  An operation of unknown outcome may be placed anywhere after its call, or nowhere.

::

    verdict = check([
        Operation("a", "k", "put", value=1, called=0, returned=5),
        Operation("b", "k", "get", result=None, called=6, returned=9),
    ])
    assert verdict.linearizable, str(verdict)

The search goes from return to return.  Whatever returns next must be placed, and others that are pending only for its
sake: what is not needed yet can as well be placed later (Lowe's just-in-time linearization).  A place is (how many have
returned, which of the others are placed, which unknown ones were used, state).  The furthest is tried first, so a
history that is linearizable is mostly walked straight through.  What keeps the search small, and why nothing is lost:

- A pending operation that never changes the state is placed as soon as its result fits: in any order from here on it
  can be moved to here, and no other operation can tell.
- Of pending operations that do the same, the one that returns first is placed first, and unknown ones last: in any
  order that has them the other way round they can be exchanged.
- A place is skipped if another differed only in having used fewer of the unknown ones: every order from here is one
  from there.
- A value that is still to be seen is not left if nothing that is left can make it: it would never be seen.
- Values that nobody saw, and that no append can make into one that somebody saw, are one state: no result can tell
  them apart, neither now nor later.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from typing import Any, Final, NamedTuple

from raftplug.errors import InvalidArgument

KINDS: Final = frozenset({"get", "put", "delete", "append", "cas"})


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of a client, and what it saw.  One that certainly did not happen is left out of a history.

    Args:
        client: who called; only shown.
        key: of the store.
        kind: "get", "put", "delete", "append" or "cas".
        value: what was put or appended (a str), or what cas stores.
        expect: what cas compares with.
        called, returned: when; any unit, one clock for the whole history.  An operation comes before another only if it
            returned before the other was called: equal times are concurrent.
        result: as the kv machine gives it: get the value or None, put None, delete whether the key was there, append
            the new value, cas whether it stored.
        known: False if nobody can say whether it happened, or it has not returned; then `returned` and `result` do not
            count.
    """

    client: Hashable
    key: str
    kind: str
    value: Any = None
    expect: Any = None
    called: float = 0
    returned: float | None = None
    result: Any = None
    known: bool = True

    def __str__(self) -> str:
        arguments = {
            "put": f" {_short(self.value)}",
            "append": f" {_short(self.value)}",
            "cas": f" {_short(self.expect)} to {_short(self.value)}",
        }.get(self.kind, "")
        outcome = f"{self.returned}] gave {_short(self.result)}" if self.known else "…) unknown"
        return f"{self.client}: {self.kind} {self.key}{arguments} [{self.called}, {outcome}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check found.  It is true only if the whole history is linearizable.

    Args:
        linearizable: True; False; or None, if the limit was reached before either was certain.
        key: the first key whose history is not linearizable, or could not be decided.
        order: of a key that is not: how everything that returned before `misplaced` can be ordered.
        misplaced: with this one, the first by return for which that is so, there is no order.  None if not known.
        pending: what was called but had not returned when `misplaced` did, and might have explained it, but does not.
        undecided: every key that could not be decided.
        steps: places searched.
    """

    linearizable: bool | None
    key: str | None = None
    order: tuple[Operation, ...] = ()
    misplaced: Operation | None = None
    pending: tuple[Operation, ...] = ()
    undecided: tuple[str, ...] = ()
    steps: int = 0

    def __bool__(self) -> bool:
        return self.linearizable is True

    def __str__(self) -> str:
        if self.linearizable:
            return f"linearizable ({self.steps} steps)"
        if self.linearizable is None:
            keys = ", ".join(map(_short, self.undecided[:5])) + (", …" if len(self.undecided) > 5 else "")
            return f"undecided after {self.steps} steps: key {keys}; allow more steps"
        lines = [f"key {_short(self.key)} is not linearizable"]
        if self.misplaced is not None:
            lines.append(f"no place for    {self.misplaced}")
            if len(self.order) > _SHOWN:
                lines.append(f"after           {len(self.order) - _SHOWN} more")
            lines += [f"after           {each}" for each in self.order[-_SHOWN:]]
            lines += [f"in spite of     {each}" for each in self.pending[-_SHOWN:]]
        return "\n".join(lines)


def check(history: Iterable[Operation], steps: int | None = None) -> Verdict:
    """Search an order for every key, all keys absent at first.

    Args:
        history: the operations, in any order.
        steps: places to search at most for each key; None is no limit.

    Raises:
        InvalidArgument: an operation is none of the kv machine's, or returned before it was called.
    """
    keys: dict[str, list[Operation]] = {}
    for operation in history:
        _validate(operation)
        keys.setdefault(operation.key, []).append(operation)
    taken = 0
    undecided: list[str] = []
    for key, operations in keys.items():
        search = _Search(operations)
        linearizable = search.run(steps)
        taken += search.steps
        if linearizable is False:
            more, order, misplaced, pending = _explain(operations, steps)
            return Verdict(False, key, order, misplaced, pending, tuple(undecided), taken + more)
        if linearizable is None:
            undecided.append(key)
    if undecided:
        return Verdict(None, undecided[0], undecided=tuple(undecided), steps=taken)
    return Verdict(True, steps=taken)


_SHOWN: Final = 12

# States are canonical values or one of these, which are no canonical values: the key is absent, or holds a string or
# something else that nobody saw.
_ABSENT: Final = ("absent",)
_STRING: Final = ("string",)
_OTHER: Final = ("other",)
_SAME: Final = ("same",)
_REFUSED: Final = ("refused",)


class _Effect(NamedTuple):
    """What an operation with a certain result does; equal for operations that do the same."""

    inside: bool  # It can happen only in, or only not in, …
    states: frozenset[Hashable]  # … these states …
    then: Hashable = _SAME  # … and makes this one …
    addition: str | None = None  # … or adds this.


class _Values:
    """Which values of a key can be told apart."""

    def __init__(self, operations: Iterable[Operation]) -> None:
        self._seen: set[Hashable] = set()
        self._strings: list[str] = []
        grows = False
        for each in operations:
            if each.kind == "get":
                self._seen.add(_canonical(each.result))
            elif each.kind == "cas":
                self._seen.add(_canonical(each.expect))
            elif each.kind == "append" and not each.known:
                grows = True
            elif each.kind == "append" and _fits(each):
                self._seen.add(_before(each))
        if grows:
            self._strings = sorted(value for value in self._seen if type(value) is str)

    def state(self, value: Any) -> Hashable:
        canonical = _canonical(value)
        if canonical is None or canonical in self._seen:
            return canonical
        if type(value) is not str:
            return _OTHER
        # The beginning of a string that was seen can be appended to until it is that string.
        at = bisect_left(self._strings, value)
        return value if at < len(self._strings) and self._strings[at].startswith(value) else _STRING

    def effect(self, each: Operation) -> _Effect:
        if each.kind == "get":
            return _Effect(True, self._read(each.result))
        if each.kind == "put" and (not each.known or each.result is None):
            return _Effect(False, frozenset(), self.state(each.value))
        if each.kind == "delete" and not each.known:
            return _Effect(False, frozenset(), _ABSENT)
        if each.kind == "delete" and type(each.result) is bool:
            return _Effect(not each.result, frozenset({_ABSENT}), _ABSENT if each.result else _SAME)
        if each.kind == "cas" and (not each.known or each.result is True):
            return _Effect(True, self._read(each.expect), self.state(each.value))
        if each.kind == "cas" and each.result is False:
            return _Effect(False, self._read(each.expect))
        if each.kind == "append" and not each.known:
            return _Effect(False, frozenset(), addition=each.value)
        if each.kind == "append" and _fits(each):
            before = _before(each)
            return _Effect(True, frozenset({before} if before else {_ABSENT, None, ""}), self.state(each.result))
        return _Effect(True, frozenset())  # No kv machine gives such a result.

    def _read(self, value: Any) -> frozenset[Hashable]:
        return frozenset({_ABSENT, None} if value is None else {_canonical(value)})

    def after(self, effect: _Effect, state: Hashable) -> Hashable:
        inside, states, then, addition = effect
        if (state in states) is not inside:
            return _REFUSED
        if addition is None:
            return state if then is _SAME else then
        if state is _ABSENT or state is None:
            return self.state(addition)
        if type(state) is str:
            return self.state(state + addition)
        return _STRING if state is _STRING else _REFUSED


def _fits(append: Operation) -> bool:
    return type(append.result) is str and append.result.endswith(append.value)


def _before(append: Operation) -> str:
    result: str = append.result
    return result[: len(result) - len(append.value)]


class _Trail(NamedTuple):
    """What was placed, last first."""

    operation: Operation
    before: _Trail | None


class _Search:
    """The search for one key."""

    def __init__(self, operations: Iterable[Operation]) -> None:
        # Nobody can tell whether a get of unknown outcome happened.
        operations = sorted((each for each in operations if each.known or each.kind != "get"), key=_called)
        self._values = _Values(operations)
        self._known = sorted((each for each in operations if each.known), key=_returned)
        self._does = [self._values.effect(each) for each in self._known]
        self._unknown = [each for each in operations if not each.known]
        self._may_do = [self._values.effect(each) for each in self._unknown]
        self._calls = sorted(range(len(self._known)), key=lambda at: self._known[at].called)
        self._arrived = 0
        self._pending: list[list[int]] = []  # For each return, by return: what was called before it, and returns later.
        self._seen: dict[tuple[int, int, Hashable], list[int]] = {}
        # Furthest first, then the fewest unknown ones, then the first found.
        self._open: list[tuple[int, int, int, int, Hashable, int, _Trail | None]] = []
        self._furthest: tuple[int, _Trail | None] = (-1, None)
        self._pushed = 0
        # For each state, a bit for each operation that can happen in no other, and for each that may make it.
        self._needs: dict[Hashable, int] = {}
        self._makes: dict[Hashable, int] = {}
        self._may_make: dict[Hashable, int] = {}
        for at, effect in enumerate(self._does):
            if effect.inside and len(effect.states) == 1:
                _mark(self._needs, next(iter(effect.states)), at)
            _mark(self._makes, effect.then, at)
        for at, effect in enumerate(self._may_do):
            if effect.addition is None:
                _mark(self._may_make, effect.then, at)
            else:
                for state in self._needs:
                    if type(state) is str and state.endswith(effect.addition):
                        _mark(self._may_make, state, at)
        self.steps = 0

    def run(self, limit: int | None) -> bool | None:
        """True, False, or None if the limit was reached."""
        values, does, may_do = self._values, self._does, self._may_do
        self._enter(0, 0, _ABSENT, 0, None)
        while self._furthest[0] < len(self._known):
            if not self._open:
                return False
            if self.steps == limit:
                return None
            self.steps += 1
            behind, cost, _, placed, state, used, trail = heappop(self._open)
            returned = -behind
            pending = [at for at in self._pending[returned] if not placed >> (at - returned) & 1]
            if cost == used.bit_count():
                tried: set[_Effect] = set()
                for at in pending:
                    if does[at] not in tried and (after := values.after(does[at], state)) is not _REFUSED:
                        tried.add(does[at])
                        after_it = _Trail(self._known[at], trail)
                        place = placed | 1 << (at - returned)
                        if after == state or not self._is_lost(state, returned, place, used):
                            self._enter(returned, place, after, used, after_it)
                if self._unknown:  # They are tried only if this led nowhere.
                    self._push(returned, cost + 1, placed, state, used, trail)
                continue
            tried = {does[at] for at in pending}
            for at in range(bisect_right(self._unknown, _returned(self._known[returned]), key=_called)):
                if not used >> at & 1 and may_do[at] not in tried:
                    tried.add(may_do[at])
                    after = values.after(may_do[at], state)
                    if after not in (_REFUSED, state) and not self._is_lost(state, returned, placed, used | 1 << at):
                        self._enter(returned, placed, after, used | 1 << at, _Trail(self._unknown[at], trail))
        return True

    def _is_lost(self, state: Hashable, returned: int, placed: int, used: int) -> bool:
        """Is this state, which was left, still needed, though nothing makes it again?"""
        return (
            bool(self._needs.get(state, 0) >> returned & ~placed)
            and not self._makes.get(state, 0) >> returned & ~placed
            and not self._may_make.get(state, 0) & ~used
        )

    def _enter(self, returned: int, placed: int, state: Hashable, used: int, trail: _Trail | None) -> None:
        """Place what never changes the state, pass the returns of what is placed, and remember to go on from there."""
        known, does, count = self._known, self._does, len(self._known)
        while returned < count:
            for at in self._pending_at(returned):
                if not placed >> (at - returned) & 1:
                    inside, states, then, _ = does[at]
                    if then is _SAME and (state in states) is inside:
                        placed |= 1 << (at - returned)
                        trail = _Trail(known[at], trail)
            if not placed & 1:
                break
            placed >>= 1
            returned += 1
        if returned > self._furthest[0]:
            self._furthest = returned, trail
        if returned < count:
            fewest = self._seen.setdefault((returned, placed, state), [])
            if not any(used & each == each for each in fewest):
                fewest.append(used)
                self._push(returned, used.bit_count(), placed, state, used, trail)

    def _push(self, returned: int, cost: int, placed: int, state: Hashable, used: int, trail: _Trail | None) -> None:
        self._pushed += 1
        heappush(self._open, (-returned, cost, self._pushed, placed, state, used, trail))

    def _pending_at(self, returned: int) -> list[int]:
        if returned == len(self._pending):
            pending = self._pending[-1][1:] if self._pending else []
            last = _returned(self._known[returned])
            while self._arrived < len(self._calls) and self._known[self._calls[self._arrived]].called <= last:
                pending.append(self._calls[self._arrived])
                self._arrived += 1
            self._pending.append(sorted(pending))
        return self._pending[returned]

    def order(self) -> tuple[Operation, ...]:
        """Of a search that found one."""
        order: list[Operation] = []
        trail = self._furthest[1]
        while trail is not None:
            order.append(trail.operation)
            trail = trail.before
        return tuple(reversed(order))


def _explain(
    operations: list[Operation], limit: int | None
) -> tuple[int, tuple[Operation, ...], Operation | None, tuple[Operation, ...]]:
    """(steps, order, misplaced, pending) of a key that is not linearizable.

    A history cut short is linearizable if the whole is, so the first return that cannot be explained is found by
    halving.
    """
    returns = sorted((each for each in operations if each.known), key=_returned)
    low, high, steps = 0, len(returns), 0
    order: tuple[Operation, ...] = ()
    while high - low > 1:
        middle = (low + high) // 2
        last = _returned(returns[middle - 1])
        maybe = [each for each in operations if each.called <= last and not each.known]
        maybe += [replace(each, known=False) for each in returns[middle:] if each.called <= last]
        search = _Search([*returns[:middle], *maybe])
        linearizable = search.run(limit)
        steps += search.steps
        if linearizable is None:
            return steps, order, None, ()
        if linearizable:
            low, order = middle, search.order()
        else:
            high = middle
    last = _returned(returns[low])
    changing = [each for each in operations if each.kind != "get" and each.called <= last]
    pending = tuple(each for each in changing if not each.known or _returned(each) > last)
    return steps, order, returns[low], pending


def _mark(bits: dict[Hashable, int], state: Hashable, at: int) -> None:
    bits[state] = bits.get(state, 0) | 1 << at


def _called(operation: Operation) -> float:
    return operation.called


def _returned(operation: Operation) -> float:
    assert operation.returned is not None
    return operation.returned


def _canonical(value: Any) -> Hashable:
    """Equal for values that the kv machine takes for the same, and for no others."""
    kind = type(value)
    if value is None or kind is str:
        return value  # type: ignore[no-any-return]
    if kind is list:
        return (kind, tuple(map(_canonical, value)))
    if kind is dict:
        return (kind, frozenset((type(key), key, _canonical(item)) for key, item in value.items()))
    if kind is float and value != value:
        return (kind, "nan")
    if kind in (bool, int, float, bytes):
        return (kind, value)
    raise InvalidArgument(f"{_short(value)} is no plain data, so no kv machine stored or gave it")


def _validate(operation: Operation) -> None:
    if operation.kind not in KINDS:
        raise InvalidArgument(f"{_short(operation.kind)} is none of {', '.join(sorted(KINDS))}")
    if operation.kind == "append" and type(operation.value) is not str:
        raise InvalidArgument(f"append adds a str, not {_short(operation.value)}")
    if operation.known and (operation.returned is None or operation.returned < operation.called):
        raise InvalidArgument(f"{operation}: it must have returned, and not before it was called; or known=False")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:28] + " … " + text[-28:]
