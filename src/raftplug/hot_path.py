"""What is done once for each transition besides the rules: it is queued, taken, appended, executed and answered.

Like the rules this is written in Cython's pure-Python mode, and each core has it.  Whatever is not the usual case is
left to whom it concerns, by a callable.
"""

from collections import deque
from collections.abc import Callable
from time import monotonic_ns
from typing import Any, Final

from raftplug import _cy as cython
from raftplug import _refusals as refusals
from raftplug.arguments import Seconds, ends_at
from raftplug.constants import CONFIGURATION, ENTRY_HEADER_BYTES, FAILED, OK, TRANSITION

if not cython.compiled:
    from raftplug.future import Future
    from raftplug.raft import Raft


_DONE: Final = (OK, None)


def now_us() -> cython.longlong:
    """Monotonic time, microseconds."""
    now: cython.longlong = monotonic_ns()
    return now // 1000


@cython.final
@cython.cclass
class Calls:
    """What is wanted of a loop, in the order in which it came.  Any thread adds, the loop takes.

    A call is a tuple: a driver, a transition for it, its future, and when that ends at the latest (microseconds); or
    None, a function and its arguments.

    Args:
        clock: monotonic time, microseconds.
        wake: wakes the loop.
        late: called with each call that comes too late for the loop.

    Attributes:
        sleeping: whether the loop must be woken for what is added.
        closed: whether the loop has ended.
    """

    sleeping: bool = cython.declare(cython.bint, visibility="public")
    closed: bool = cython.declare(cython.bint, visibility="public")
    _queue: Any
    _add: Any
    _clock: Any
    _wake: Any
    _late: Any

    def __init__(self, clock: Callable[[], int], wake: Callable[[], None], late: Callable[[], None]) -> None:
        self._queue = deque()
        self._add = self._queue.append
        self._clock = clock
        self._wake = wake
        self._late = late
        self.sleeping = False
        self.closed = False

    def __len__(self) -> int:
        return len(self._queue)

    def __reduce__(self) -> Any:
        raise refusals.copied(self)

    @cython.ccall
    def add(self, call: tuple[Any, ...]) -> None:
        """Add a call."""
        self._add(call)
        if self.closed:
            self._late()
        elif self.sleeping:
            self._wake()

    def propose(self, driver: Any, transition: bytes, timeout: Seconds) -> Future:
        """Add a proposal that ends after so many seconds at the latest; None is no limit.

        Raises:
            InvalidArgument: `timeout` is no number of seconds; nothing was added.
        """
        until: Any = ends_at(self._clock(), timeout)
        future = Future()
        self.add((driver, transition, future, until))
        return future

    def take(self, most: cython.longlong, proposals: Any) -> Any:
        """Move the proposals to one driver that come next, at most `most`, to the deque `proposals`.

        Each call is taken by one thread.

        Returns: the call after them, which is taken too; None if there is none, or enough were taken.
        """
        driver: Any = None
        call: Any
        while most > 0:
            most -= 1
            try:
                call = self._queue.popleft()
            except IndexError:
                return None
            if call[0] is None or (driver is not None and call[0] is not driver):
                return call
            driver = call[0]
            proposals.append(call)
        return None

    def put_back(self, calls: Any) -> None:
        """Let calls that were taken be the next ones."""
        self._queue.extendleft(reversed(calls))


def append_proposals(
    raft: Raft,
    proposals: Any,
    pending: dict[int, Any],
    places: cython.longlong,
    room: cython.longlong,
    queued: Callable[[int, bytes], None] | None,
) -> cython.longlong:
    """Append proposals, which are taken out of their deque, while the leader has places and bytes for them.

    Args:
        raft: it leads.
        proposals: of each the driver, the transition, its future, and its deadline in microseconds.
        pending: gets for each index the term, the deadline and the future.
        places, room: see `Driver._room`.
        queued: is told of each index and transition; None if nobody wants to know.

    Returns: the earliest deadline.
    """
    soonest: cython.longlong = 1 << 62
    until: cython.longlong
    index: Any
    transition: bytes
    future: Any
    append: Any = raft.propose
    term: Any = raft.term
    while places > 0 and room >= 0 and proposals:
        _, transition, future, deadline = proposals.popleft()
        index = append(TRANSITION, transition)
        places -= 1
        room -= len(transition) + ENTRY_HEADER_BYTES
        future.transition_id = (term, index)
        pending[index] = (term, deadline, future)
        until = deadline
        if until < soonest:
            soonest = until
        if queued is not None:
            queued(index, transition)
    return soonest


def execute(
    index: cython.longlong,
    entries: list[Any],
    first: cython.longlong,
    end: cython.longlong,
    machine: Callable[[Any], Any],
    decode: Callable[[bytes], Any],
    kept: Callable[[Any], Any],
    failed: Callable[[Exception], Any],
    otherwise: Callable[[int, int, bytes], Any],
    outcomes: list[Any],
) -> None:
    """Have a machine execute the transitions among entries, and add what became of each entry to `outcomes`.

    Args:
        index: of the first of `entries`.
        entries: kind, term and payload of each.
        first, end: places of those that are to be executed.
        machine: executes a transition.
        decode: gives it of a payload.
        kept: makes an outcome of what it returned; None is one already.
        failed: makes a result of what it raised, or raises.
        otherwise: gives the outcome of an entry of another kind: of its index, kind and payload.
        outcomes: of the entries before `first`.
    """
    at: cython.longlong
    kind: cython.longlong
    payload: Any
    value: Any
    for at in range(first, end):
        kind, _, payload = entries[at]
        if kind != TRANSITION:
            outcomes.append(otherwise(index + at, kind, payload))
            continue
        try:
            value = machine(decode(payload))
        except Exception as raised:
            outcomes.append((FAILED, failed(raised)))
        else:
            outcomes.append(_DONE if value is None else kept(value))


def answer(
    first: cython.longlong,
    entries: list[Any],
    outcomes: list[Any],
    pending: dict[int, Any],
    usual: cython.bint,
    otherwise: Callable[..., None],
) -> None:
    """Answer those who wait for entries that were applied.

    Args:
        first: index of the first entry.
        entries: kind, term and payload of each; as many were applied as there are outcomes.
        outcomes: what became of each.
        pending: loses those who were answered.
        usual: False leaves all to `otherwise`.
        otherwise: called with index, kind, term, who is pending or None, and the outcome: for what is no transition
            that was executed for a future, in the term in which it was proposed.
    """
    at: cython.longlong
    pended: Any
    future: Future
    for at in range(len(outcomes)):
        kind, term, _ = entries[at]
        code, value = outcomes[at]
        pended = pending.pop(first + at, None) if pending else None
        if usual and pended is not None and code == OK and pended[0] == term and type(pended[2]) is Future:
            future = pended[2]
            future.set_result(value)
        elif pended is not None or kind == CONFIGURATION or not usual:
            otherwise(first + at, kind, term, pended, code, value)
