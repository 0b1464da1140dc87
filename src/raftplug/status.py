"""The status of a group: every node is asked, and what the nodes say is merged into one object.

Three things are known of a node that did not answer: whether the nodes that did answer hear it, when it last announced
itself in the directory, and what is wrong with the client's own way to the Redis.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from raftplug.core import Future
from raftplug.errors import RaftplugError, Unavailable
from raftplug.frames import Id
from raftplug.requester import Requester

COLUMNS: Final = ("id", "role", "term", "last", "commit", "applied", "lag", "contact_ms", "core", "version")
"""What the row of a node holds besides "problems", and "notes" where there are any."""
_FRESH_MS: Final = 5_000.0  # A node announces itself every 3 s.
_SINCE_MS: Final = 1_000.0  # An announcement so much later than the last contact is of a node that runs: clocks differ.
_NAMED: Final = 3
_OURS: Final = "this client: "


class Gathering:
    """One `status`: asks every node, again and again, and merges what they say.

    It ends when every node has answered, at the deadline, or when those that are silent are not heard by the others,
    either: a node that is there answers within an election timeout.

    Args:
        group: the group's name.
        future: gets the object, or Unavailable.
        deadline: on the owner's clock, microseconds.
        timeout_us: an election timeout.
    """

    def __init__(self, group: str, future: Future, deadline: int, timeout_us: int) -> None:
        self.future = future
        self._group = group
        self._deadline = deadline
        self._timeout_us = timeout_us
        self._rows: dict[Id, dict[str, Any]] = {}
        self._silent: set[Id] = set()  # Asked, and not heard yet.
        self._asked_at: dict[Id, int] = {}
        self._heard = False
        self._give_up_at = deadline

    def due(self) -> int:
        """When `step` is due, microseconds."""
        again = min(self._asked_at.values(), default=self._deadline) + self._timeout_us
        return min(self._deadline, again, self._give_up_at if not self._is_any_silent_heard() else self._deadline)

    def step(
        self,
        now: int,
        nodes: Sequence[Id],
        requester: Requester,
        explain: Callable[[], str],
        ages_ms: Callable[[], Mapping[Id, float]],
        problems: Callable[[], list[str]],
    ) -> None:
        """Ask what is due, and end when there is nothing to wait for.

        Args:
            now: microseconds.
            nodes: that the directory names.
            requester: asks.
            explain: says why no node was found.
            ages_ms: how long ago each node announced itself.
            problems: of the client's transport.
        """
        if self.future.done():
            return
        voters = [id for row in self._rows.values() for id in _members(row, "voters")]
        wanted = dict.fromkeys([*nodes, *voters])
        self._asked_at = {id: at for id, at in self._asked_at.items() if id in wanted}
        for id in wanted:
            if id not in self._rows:
                self._silent.add(id)
            if now - self._asked_at.get(id, now - self._timeout_us) >= self._timeout_us:
                # Also one that has answered: whether it hears the silent ones changes.
                self._asked_at[id] = now
                self._ask(id, requester)
        if self._heard:
            self._heard = False
            self._give_up_at = min(self._deadline, now + 2 * self._timeout_us)
        if self._is_over(now):
            if self._rows or self._silent:
                merged = merge_status(self._group, self._rows, self._silent, ages_ms(), problems())
                self.future.set_result(merged)
            else:
                self.future.set_exception(Unavailable(explain()))

    def abandon(self, error: RaftplugError) -> None:
        """End with an error."""
        if not self.future.done():
            self.future.set_exception(error)

    def _is_over(self, now: int) -> bool:
        if now >= self._deadline or (self._rows and not self._silent):
            return True
        return bool(self._rows) and now >= self._give_up_at and not self._is_any_silent_heard()

    def _is_any_silent_heard(self) -> bool:
        return any(_witnesses(self._rows, id)[0] for id in self._silent)

    def _ask(self, id: Id, requester: Requester) -> None:
        answer = Future()

        def heard(_: Future) -> None:
            if answer.exception(0) is None:
                row = answer.result(0)
                if isinstance(row, dict) and row.get("id") == id and isinstance(row.get("leader"), int | str | None):
                    self._heard = self._heard or id not in self._rows
                    self._rows[id] = row
                    self._silent.discard(id)

        answer.when_done(heard)
        requester.ask("status", [], answer, self._deadline, to=id)


def merge_status(
    group: str,
    rows: Mapping[Id, dict[str, Any]],
    silent: set[Id],
    ages_ms: Mapping[Id, float] | None = None,
    problems: Sequence[str] = (),
) -> dict[str, Any]:
    """One object, as `raftplug status --json` prints it, from the rows of the nodes that answered.

    Args:
        group: the group's name.
        rows: what each node said of itself, by its id.
        silent: who was asked and said nothing; such a node is shown if it is a voter, or if no node answered.
        ages_ms: how long ago each node announced itself, where that is known.
        problems: of the client's own transport: perhaps why nothing is heard of those that are silent.
    """
    leaders = [row for row in rows.values() if row.get("role") == "leader"]
    leader = max(leaders, key=lambda row: _measured(row, "term"), default=None)
    reference = leader or max(
        rows.values(), key=lambda row: (_measured(row, "term"), _measured(row, "commit")), default={}
    )
    voters, learners = _members(reference, "voters"), _members(reference, "learners")
    needed = len(voters) // 2 + 1 if voters else None
    leader_id = leader.get("id") if leader else None
    term = reference.get("term")
    if leader is None and needed is not None:
        # It may be that only we cannot hear the leader: a quorum that follows it in this term knows better.
        followed = Counter(row.get("leader") for row in rows.values() if row.get("term") == term)
        name, count = followed.most_common(1)[0]
        if name is not None and name not in rows and count >= needed:
            leader_id = name
    nodes = []
    for id in sorted({*rows, *voters} if rows else silent, key=_order):
        row = rows.get(id)
        if row is None:
            nodes.append(_silent_row(id, rows, (ages_ms or {}).get(id), problems))
            continue
        shown = {column: row.get(column) for column in COLUMNS}
        if shown["role"] == "follower":  # What an operator wants to know of it: whether it votes, and holds a state.
            shown["role"] = "witness" if row.get("witness") else "learner" if id in learners else "follower"
        if (
            shown["lag"] is None
            and leader is not None
            and _measured(leader, "commit") >= 0 <= _measured(row, "applied")
        ):
            # Entries that the leader knows to be committed, and that have not been applied here.
            shown["lag"] = max(0, _measured(leader, "commit") - _measured(row, "applied"))
        shown["problems"] = _texts(row, "problems")
        if notes := _texts(row, "notes"):
            shown["notes"] = notes
        nodes.append(shown)
    # A node that one other hears is there, even if the rest do not hear it.
    reachable = sum(id in rows or bool(_witnesses(rows, id)[0]) for id in voters) if voters or not rows else None
    return {
        "group": group,
        "leader": leader_id,
        "term": term,
        "quorum": {"needed": needed, "reachable": reachable},
        "nodes": nodes,
    }


def has_quorum(status: Mapping[str, Any]) -> bool:
    """Whether the group can decide anything, by what `merge_status` returned."""
    needed, reachable = status["quorum"]["needed"], status["quorum"]["reachable"]
    return needed is not None and reachable is not None and reachable >= needed


def own_problems(status: Mapping[str, Any]) -> list[str]:
    """What is wrong with the client's own way, by what `merge_status` returned for nodes that did not answer."""
    texts = [text for node in status["nodes"] if node["role"] is None for text in node["problems"]]
    return list(dict.fromkeys(text.removeprefix(_OURS) for text in texts if text.startswith(_OURS)))


def _silent_row(
    id: Id, rows: Mapping[Id, dict[str, Any]], age_ms: float | None, problems: Sequence[str]
) -> dict[str, Any]:
    """The row of a node that did not answer: "no answer" says no more than that, "down" that no other hears it."""
    hear, miss, contact_ms = _witnesses(rows, id)
    fresh = age_ms is not None and age_ms <= _FRESH_MS
    announced = f"it announced itself {(age_ms or 0) / 1000:.0f} s ago"
    if hear:
        text = f"no answer here, but {_named(hear, True)}: it runs, and this client does not hear it"
    elif miss:
        text = f"down: no answer, and {_named(miss, False)}, either"
        if fresh and contact_ms is not None and (age_ms or 0) + _SINCE_MS < contact_ms:
            text = f"no answer, and {_named(miss, False)}; but {announced}: it is cut off from them"
    else:
        text = f"no answer; {announced}" if fresh else "no answer"
    about_us = [f"{_OURS}{problem}" for problem in problems]
    return {**dict.fromkeys(COLUMNS), "id": id, "contact_ms": contact_ms, "problems": [text, *about_us]}


def _named(ids: list[Id], hear: bool) -> str:
    names = [str(id) for id in sorted(ids, key=_order)]
    text = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
    if hear:
        return f"{text} {'hear' if len(names) > 1 else 'hears'} it"
    return f"{text} {'do' if len(names) > 1 else 'does'} not hear it"


def _witnesses(rows: Mapping[Id, dict[str, Any]], id: Id) -> tuple[list[Id], list[Id], int | None]:
    """Of the nodes that answered: those that hear the node, those that do not, and how long ago one last heard it."""
    hear, miss, contacts = list[Id](), list[Id](), list[int]()
    for witness, row in rows.items():
        peers = row.get("peers")
        for peer in peers if isinstance(peers, list) else []:
            match peer:
                case [other, int(ms), bool(lost)] if other == id and type(other) is type(id) and witness != id:
                    (miss if lost else hear).append(witness)
                    contacts.append(ms)
    return hear, miss, min(contacts, default=None)


def _measured(row: Mapping[str, Any], column: str) -> int:
    value = row.get(column)
    return value if isinstance(value, int) else -1


def _members(row: Mapping[str, Any], kind: str) -> list[Id]:
    ids = row.get(kind)
    return [id for id in ids if isinstance(id, int | str)] if isinstance(ids, list) else []


def _texts(row: Mapping[str, Any], column: str) -> list[str]:
    texts = row.get(column)
    return [str(text) for text in texts] if isinstance(texts, list) else []


def _order(id: Id) -> tuple[bool, Id]:
    return isinstance(id, str), id
