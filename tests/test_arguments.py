"""What callers hand in is checked by one rule everywhere: taken as documented, or refused before anything happens."""

from __future__ import annotations

import math
import queue
import sys
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import raftplug
from raftplug import arguments
from raftplug import node as node_module
from raftplug.cli import main
from raftplug.cluster import MemoryCluster, MemoryHub
from raftplug.constants import NEVER
from raftplug.embedded import EmbeddedServer
from raftplug.errors import InvalidArgument
from raftplug.events import Subscription
from raftplug.storage import MemoryStorage


class Float:
    """A number as numpy's are: it can only be made a float."""

    def __float__(self) -> float:
        return 2.5


class Index:
    def __index__(self) -> int:
        return 3


class Raises:
    """Nothing works on it."""

    def __float__(self) -> float:
        raise RuntimeError("no number")

    def __index__(self) -> int:
        raise RuntimeError

    def __repr__(self) -> str:
        raise RuntimeError


class Name(str):
    """Not the str that it seems to be."""


NO_LIMIT = [None, math.inf, sys.maxsize, 2.0**63, 1e300, 10**400, Decimal("Infinity")]
TIMES = [5, 0, 0.0, 2.5, Decimal("2.5"), Fraction(5, 2), Float(), Index()]
NO_TIMES = [math.nan, Decimal("NaN"), True, False, "1", b"1", memoryview(b"1"), [], 1j, object(), Raises()]
NEGATIVE = [-1, -0.001, -math.inf, -(10**400), Decimal(-1)]


class Sum(raftplug.StateMachine):
    def __init__(self) -> None:
        self.value = 0

    def apply_transition(self, transition: Any) -> Any:
        self.value += transition
        return self.value

    def query(self, request: Any) -> Any:
        return self.value


@pytest.fixture
def node(core: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[raftplug.Node]:
    """A cluster of one, in memory, that has decided something."""
    monkeypatch.setattr(node_module, "chosen_core", core)
    monkeypatch.setitem(MemoryHub._named, "arguments", MemoryHub())
    storage = MemoryStorage("n1", cluster=bytes(range(16)))
    with raftplug.Node(
        "n1", peers=["n1"], redis="memory://arguments", storage=storage, state_machine=Sum(), bootstrap=True
    ) as node:
        assert node.propose(1, timeout=30).result(30) == 1
        yield node


@pytest.mark.parametrize("value", NO_LIMIT, ids=repr)
def test_none_infinity_and_what_is_longer_than_a_life_are_no_limit(value: Any) -> None:
    assert arguments.seconds(value) is None
    assert arguments.ends_at(7, value) == NEVER


@pytest.mark.parametrize("value", TIMES, ids=lambda value: type(value).__name__)
def test_whatever_is_a_number_is_a_time(value: Any) -> None:
    number = arguments.seconds(value)
    assert number == (3.0 if isinstance(value, Index) else float(value))
    assert arguments.ends_at(7, value) == 7 + int(number * 1e6)


@pytest.mark.parametrize("value", [*NO_TIMES, *NEGATIVE], ids=lambda value: type(value).__name__)
def test_what_is_no_time_is_refused(value: Any) -> None:
    for check in (arguments.seconds, lambda given: arguments.ends_at(0, given), lambda g: arguments.finite(g, "x")):
        with pytest.raises(InvalidArgument, match="number of seconds"):
            check(value)


@pytest.mark.parametrize("value", NEGATIVE, ids=repr)
def test_what_is_left_of_a_time_that_is_over_is_nothing_where_one_only_waits(value: Any) -> None:
    assert arguments.seconds(value, past=True) == 0


@pytest.mark.parametrize("value", [-1, 11, 5.0, True, "5", None, math.nan, math.inf, sys.maxsize, 10**400, Raises()])
def test_a_count_is_a_whole_number_within_its_bounds(value: Any) -> None:
    with pytest.raises(InvalidArgument, match="x must be a whole number from 0 to 10"):
        arguments.whole(value, "x", 0, 10)


def test_a_count_may_be_of_another_type_of_whole_numbers() -> None:
    assert arguments.whole(Index(), "x", 0, 10) == 3


def test_a_future_takes_every_time_that_the_standard_one_takes(core: Any) -> None:
    future, done = core.Future(), core.Future()
    done.set_result(1)
    for value in (*NO_LIMIT, *TIMES, *NEGATIVE):
        assert done.result(value) == 1 and done.exception(value) is None
    for value in (0, -1, -math.inf, Fraction(1, 1000)):
        for wait in (future.result, future.exception):
            with pytest.raises(TimeoutError):
                wait(value)
    for value in NO_TIMES:
        for each in (future.result, future.exception, done.result, done.exception):
            with pytest.raises(InvalidArgument):
                each(value)


def test_every_time_given_to_a_node_is_taken_or_refused_and_the_node_goes_on(node: raftplug.Node) -> None:
    calls: list[Callable[[Any], Any]] = [
        lambda timeout: node.propose(1, timeout=timeout),
        lambda timeout: node.read(lambda machine: machine.value, timeout=timeout),
        lambda timeout: node.read_async(lambda machine: machine.value, timeout=timeout),
    ]
    for call in calls:
        for value in (*NO_LIMIT, 5, 2.5, Decimal("2.5"), Float(), Index()):
            answer = call(value)
            assert (answer if isinstance(answer, int) else answer.result(30)) > 0
        for value in (*NO_TIMES, *NEGATIVE):
            with pytest.raises(InvalidArgument):
                call(value)
    assert node.join(0) is False and node.join(-1) is False and node.join(Fraction(1, 1000)) is False
    for value in NO_TIMES:
        with pytest.raises(InvalidArgument):
            node.join(value)
    assert node.failure is None
    assert node.propose(0).result(30) > 1


@pytest.fixture
def client(node: raftplug.Node) -> Iterator[raftplug.Client]:
    with raftplug.Client(redis="memory://arguments") as client:
        assert client.read(None, 30) == 1
        yield client


def test_every_time_given_to_a_client_is_taken_or_refused(client: raftplug.Client, tmp_path: Path) -> None:
    calls: dict[str, Callable[[Any], Any]] = {
        "propose": lambda timeout: client.propose(1, timeout),
        "propose_async": lambda timeout: client.propose_async(1, timeout).result(30),
        "read": lambda timeout: client.read(None, timeout),
        "read_async": lambda timeout: client.read_async(None, timeout).result(30),
        "status": lambda timeout: client.status(timeout),
        "members": lambda timeout: client.members(timeout),
        "change_members": lambda timeout: client.change_members("list", timeout=timeout),
        "wait_for_voter": lambda timeout: client.wait_for_voter("n1", timeout),
        "transfer_leadership": lambda timeout: client.transfer_leadership("n1", timeout),
    }
    for name, call in calls.items():
        for value in (*NO_LIMIT, 20, Decimal(20)):
            assert call(value), (name, value)
    calls["replace"] = lambda timeout: client.change_members("replace", "n1", "n2", timeout=timeout)
    calls["snapshot"] = lambda timeout: client.snapshot(timeout=timeout)
    calls["backup"] = lambda timeout: client.backup(tmp_path / "file", timeout=timeout)
    for name, call in calls.items():
        for value in (*NO_TIMES, *NEGATIVE):
            with pytest.raises(InvalidArgument):
                call(value)
            assert client.propose_async(0).result(30) > 0, (name, value)
    assert client.read(None, 30) > 1


def test_no_argument_of_a_clients_request_ends_what_others_wait_for(client: raftplug.Client, tmp_path: Path) -> None:
    odd = [object(), Raises(), 1.5, [], b"n1", "", "a b", "n" * 65, -1, True, 1 << 63, Name("n1")]
    calls: list[Callable[[Any], Any]] = [
        lambda value: client.change_members("add", value),
        lambda value: client.change_members("replace", value, "n2"),
        lambda value: client.change_members(value, "n1"),
        lambda value: client.wait_for_voter(value, 0.1),
        lambda value: client.transfer_leadership(value, 0.1),
        lambda value: client.snapshot(value, 0.1),
        lambda value: client.backup(tmp_path / "file", id=value, timeout=0.1),
        lambda value: client.read(None, consistency=value),
    ]
    for call in calls:
        for value in odd:
            with pytest.raises(InvalidArgument):
                call(value)
    for value in (object(), 1.5, [], -1, True, 1 << 63):
        with pytest.raises(InvalidArgument):
            client.propose(1, 30, sequence=value)
    for value in (object(), 1.5, [], Raises()):
        with pytest.raises(InvalidArgument):
            client.backup(value)
        with pytest.raises(InvalidArgument):
            client.backup(tmp_path / "file", progress=value)
    assert list(tmp_path.iterdir()) == []
    assert client.read(None, 30) == 1


@pytest.mark.parametrize("value", [object(), Raises(), 5, b"n1", "", "a b", [], Name("g")])
def test_what_is_no_name_or_settings_or_list_of_ids_is_refused(value: Any) -> None:
    given: dict[str, Any] = {"redis": "memory://x", "storage": MemoryStorage("n1", cluster=bytes(16))}
    given |= {"state_machine": Sum()}
    if type(value) is not int:
        with pytest.raises(InvalidArgument):
            raftplug.Node(value, **given)
    for more in ({"group": value}, {"settings": value or 1}, {"peers": [value] if type(value) is not int else value}):
        with pytest.raises(InvalidArgument):
            raftplug.Node("n1", **{**given, **more})
    for more in ({"group": value}, {"settings": value or 1}):
        with pytest.raises(InvalidArgument):
            raftplug.Client("memory://x", **more)


class Duck:
    """What was a transport before nodes and clients asked for more."""

    def send_message(self, to_id: Any, message: bytes) -> None:
        pass

    def receive_messages(self) -> list[bytes]:
        return []


def test_a_transport_is_a_cluster_and_a_file_of_settings_a_path() -> None:
    given: Any = {"storage": MemoryStorage("n1", cluster=bytes(16)), "state_machine": Sum()}
    for value in (Duck(), object(), "memory://x", 5, Raises()):
        with pytest.raises(InvalidArgument, match=r"cluster must be a raftplug\.Cluster"):
            raftplug.Node("n1", cluster=value, **given)
        with pytest.raises(InvalidArgument, match=r"cluster must be a raftplug\.Cluster"):
            raftplug.Client(cluster=value, id="~c")
        if not isinstance(value, str):
            with pytest.raises(InvalidArgument, match="settings: file must be a path"):
                raftplug.Settings.load(value)
    for reluctance in (1_001, (1 << 40) - 1):
        with pytest.raises(InvalidArgument, match="lead_reluctance must be at most 1000"):
            raftplug.Settings(lead_reluctance=reluctance).validate()


def test_a_text_is_no_list_of_peers() -> None:
    storage = MemoryStorage("n1", cluster=bytes(16))
    with pytest.raises(InvalidArgument, match="peers must be a list of ids, not 'n1'"):
        raftplug.Node("n1", peers="n1", redis="memory://x", storage=storage, state_machine=Sum(), bootstrap=True)


def test_a_subscription_takes_every_time_or_refuses_it() -> None:
    subscription = Subscription("n1")
    for value in (0, -1, -math.inf, Fraction(1, 1000)):
        assert subscription.get(value) is None
    for value in NO_TIMES:
        with pytest.raises(InvalidArgument):
            subscription.get(value)
    for most in (0, -1, 1.5, None, math.inf, sys.maxsize, True):
        with pytest.raises(InvalidArgument):
            Subscription("n1", most=most)  # type: ignore[arg-type]
    for kind in (1, Raises(), [], "x" * 10_000):
        with pytest.raises(InvalidArgument):
            Subscription("n1", [kind])  # type: ignore[list-item]
    subscription.close()
    for value in (*NO_LIMIT, *TIMES):
        assert subscription.get(value) is None


def _replica(core: Any, **more: Any) -> raftplug.Replica:
    hub = MemoryHub()
    given: dict[str, Any] = {
        "id": 0,
        "peer_ids": [1, 2],
        "cluster": MemoryCluster(hub, 0),
        "state_machine": Sum(),
        "snapshot_delta": 0,
        "noop_transition": 0,
        "heartbeat_timeout": 0.1,
        "election_timeout_range": (0.3, 0.6),
    }
    return raftplug.Replica(core=core, **{**given, **more})


def test_a_replica_takes_or_refuses_every_time_and_count(core: Any) -> None:
    for value in (*NO_TIMES, *NEGATIVE, *NO_LIMIT, 0):
        with pytest.raises(InvalidArgument):
            _replica(core, heartbeat_timeout=value)
        for pair in ((value, 1), (0.3, value), value):
            with pytest.raises(InvalidArgument):
                _replica(core, election_timeout_range=pair)
    for value in (-1, 1.5, None, math.nan, math.inf, sys.maxsize, True, "10", Raises()):
        with pytest.raises(InvalidArgument):
            _replica(core, snapshot_delta=value)
    for value in (None, 1.5, "12", b"12", object(), [None], [1.5]):
        with pytest.raises(InvalidArgument):
            _replica(core, peer_ids=value)
    for given in (
        {"heartbeat_timeout": Fraction(1, 10)},
        {"election_timeout_range": [Decimal("0.3"), 1]},
        {"heartbeat_timeout": 1e-9, "election_timeout_range": (2e-9, 2e-9)},
        {"heartbeat_timeout": 0.0015, "election_timeout_range": (0.003, 0.003)},
        {"snapshot_delta": Index()},
    ):
        replica = _replica(core, **given)
        replica._cluster.halt = lambda: True  # type: ignore[method-assign]
        replica.start(queue.SimpleQueue(), queue.SimpleQueue())


@pytest.mark.parametrize("given", [{"binary": 5}, {"binary": Raises()}, {"arguments": "--x"}, {"arguments": [1]}])
def test_an_embedded_server_refuses_what_is_no_program_or_option(given: Any) -> None:
    with pytest.raises(InvalidArgument):
        EmbeddedServer(**given)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-1", "0", "1e999", "", "1s", "True", "0x10", "1e300"])
@pytest.mark.parametrize(
    "words",
    [
        ("propose", "1", "--timeout"),
        ("read", "1", "--timeout"),
        ("status", "--timeout"),
        ("members", "list", "--timeout"),
        ("members", "remove", "n1", "--timeout"),
        ("snapshot", "--timeout"),
        ("backup", "file", "--timeout"),
        ("bench", "--seconds"),
    ],
    ids=lambda words: " ".join(words),
)
def test_a_time_on_the_command_line_is_a_number_above_0_or_refused(words: tuple[str, ...], value: str) -> None:
    redis = [] if words[0] == "bench" else ["--redis", "memory://nobody"]
    result = CliRunner().invoke(main, [*words, value, *redis])
    assert result.exit_code == 2, result.output
    assert "seconds above 0" in result.output
