"""Many groups on one node: one loop, store and inbox for all; each with a log and a leader of its own."""

from __future__ import annotations

import contextlib
import json
import random
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import processes
import raftplug
from processes import PEERS, Cluster, refused, wait_until
from processes import server as server
from raftplug import plain
from raftplug.agenda import NEVER, Agenda
from raftplug.cluster import MemoryCluster, MemoryHub
from raftplug.constants import LEADER, QUIET, QUIET_RESPONSE
from raftplug.core import Future
from raftplug.driver import Driver
from raftplug.embedded import EmbeddedServer
from raftplug.errors import InvalidArgument, MalformedMessage, WrongDirectory
from raftplug.frames import cluster_uuid, group_number
from raftplug.node import NodeLoop
from raftplug.settings import Settings
from raftplug.state_machine import StateMachine
from raftplug.storage import MemoryStorage

MS = 1_000


class Adder(StateMachine):
    def __init__(self) -> None:
        self.value = 0

    def apply_transition(self, transition: Any) -> int:
        self.value += transition
        return self.value


class World:
    """Three whole nodes with some groups each, in one thread, on a clock that only the test moves."""

    def __init__(self, core: Any, groups: int = 2, settings: Settings | None = None) -> None:
        self.core = core
        self.now = 1_000 * MS
        self.names = [f"g{number}" for number in range(groups)]
        self.settings = settings or Settings()
        self.random = random.Random(1)
        self.cut: set[Any] = set()
        self.frames: Counter[tuple[Any, Any]] = Counter()
        self.visits: Counter[str] = Counter()  # How often a driver of the group had a turn, on any node.
        self.hub = MemoryHub(self._lost)
        self.uuid = cluster_uuid(",".join(self.names), PEERS)
        self.storages = {id: MemoryStorage(id, self.uuid) for id in PEERS}
        self.nodes: dict[str, NodeLoop] = {}
        for id in PEERS:
            self.storages[id].create_all(self.names, plain.encode(core.Configuration(PEERS).plain()))
            self.boot(id)

    def _lost(self, source: Any, target: Any, message: bytes) -> bool:
        self.frames[source, target] += 1
        return source in self.cut or target in self.cut

    def boot(self, id: str) -> None:
        """Start a node, or start it anew: another boot of the same directory."""
        if id in self.nodes:
            self.storages[id] = MemoryStorage(id, self.uuid, rows=self.storages[id]._rows)
        loop = self.nodes[id] = NodeLoop(
            storage=self.storages[id],
            cluster=MemoryCluster(self.hub, id, self.uuid),
            machines={name: Adder() for name in self.names},
            settings=self.settings,
            executor=done_at_once,
            clock=lambda: self.now,
            generator=self.random,
            core=self.core,
        )
        for driver in loop.drivers.values():
            driver.turn = self._counted(driver, driver.turn)  # type: ignore[method-assign]

    def _counted(self, driver: Driver, turn: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            self.visits[driver.group] += 1
            return turn(*arguments)

        return counted

    def run(self, milliseconds: int) -> None:
        for _ in range(milliseconds):
            self.now += MS
            for loop in list(self.nodes.values()):
                loop.turn()

    def until(self, condition: Callable[[], Any], milliseconds: int = 20_000) -> None:
        for _ in range(milliseconds):
            if condition():
                return
            self.run(1)
        raise AssertionError("it did not happen in time")

    def driver(self, id: str, group: str) -> Driver:
        return self.nodes[id].drivers[group]

    def leader(self, group: str) -> str | None:
        """Who leads in the highest term, of the nodes that are not cut off."""
        leading = [
            id
            for id, loop in self.nodes.items()
            if id not in self.cut and group in loop.drivers and loop.drivers[group].raft.role == LEADER
        ]
        return max(leading, key=lambda id: self.driver(id, group).raft.term) if leading else None

    def elect(self) -> None:
        def led(group: str) -> bool:
            leader = self.leader(group)
            return leader is not None and self.nodes[leader].cluster_id is not None

        self.until(lambda: all(led(group) for group in self.names))

    def propose(self, id: str, group: str, transition: int) -> Future:
        future = Future()
        loop = self.nodes[id]
        loop.call(loop.drivers[group].propose, plain.encode(transition), future, self.now + 10_000 * MS)
        return future

    def result(self, future: Future) -> Any:
        self.until(future.done)
        return future.result(0)


def done_at_once(job: Callable[[], None], done: Callable[[BaseException | None], None]) -> None:
    job()
    done(None)


class SlowWorld(World):
    """As on a machine that is too small, or has other things to do: each turn of a driver takes time of its node."""

    VISIT_US = 2_500

    def __init__(self, core: Any, groups: int) -> None:
        self.busy_until = dict.fromkeys(PEERS, 0)
        super().__init__(core, groups=groups)

    def run(self, milliseconds: int) -> None:
        for _ in range(milliseconds):
            self.now += MS
            for id, loop in self.nodes.items():
                if self.now >= self.busy_until[id]:
                    before = self.visits.total()
                    loop.turn()
                    self.busy_until[id] = self.now + self.VISIT_US * (self.visits.total() - before)


@pytest.fixture
def world(core: Any) -> World:
    world = World(core)
    world.elect()
    return world


# ------------------------------------------------------------------------------------------------------------ the loop


def test_an_agenda_gives_each_group_once_at_its_time_and_not_before() -> None:
    agenda = Agenda()
    deadlines = {"a": 30, "b": 20, "c": NEVER}
    for group, at in deadlines.items():
        agenda.arm(group, at)
    agenda.arm("a", 10)
    assert agenda.next() == 10
    assert agenda.take(5, deadlines.__getitem__) == []
    assert agenda.take(25, deadlines.__getitem__) == ["b"]  # a's has moved to 30 meanwhile.
    assert agenda.next() == 30
    assert agenda.take(1_000, deadlines.__getitem__) == ["a"]
    assert agenda.next() == NEVER


def test_an_agenda_says_the_same_as_looking_at_every_group(core: Any) -> None:
    chance, agenda, deadlines = random.Random(3), Agenda(), {f"g{number}": NEVER for number in range(20)}
    for now in range(2_000):
        for group in chance.sample(sorted(deadlines), 3):
            deadlines[group] = now + chance.choice((0, 1, 5, 50, 300))
            agenda.arm(group, deadlines[group])
        due = [group for group, at in deadlines.items() if at <= now]
        assert sorted(agenda.take(now, deadlines.__getitem__)) == sorted(due)
        for group in due:
            deadlines[group] = NEVER


def test_a_turn_visits_only_the_groups_that_have_something_to_do(core: Any) -> None:
    world = World(core, groups=20)
    world.elect()
    world.run(1_000)
    before = world.visits.copy()
    for _ in range(10):
        world.result(world.propose("n1", "g7", 1))
    others = [world.visits[group] - before[group] for group in world.names if group != "g7"]
    assert world.visits["g7"] - before["g7"] > 10 * max(others)


def test_groups_commit_apart_from_each_other(world: World) -> None:
    assert world.result(world.propose("n1", "g0", 5)) == 5
    assert world.result(world.propose("n2", "g1", 7)) == 7
    assert world.result(world.propose("n3", "g0", 1)) == 6
    world.until(lambda: all(world.driver(id, "g0").machine.value == 6 for id in PEERS))
    assert all(world.driver(id, "g1").machine.value == 7 for id in PEERS)


def test_what_waited_for_the_disk_is_written_when_the_write_before_it_is_done(world: World) -> None:
    jobs: list[Callable[[], None]] = []
    leader = world.leader("g0")
    assert leader is not None
    loop = world.nodes[leader]
    loop._executor = lambda job, done: jobs.append(lambda: done_at_once(job, done))
    first, second = world.propose(leader, "g0", 1), world.propose(leader, "g0", 2)
    world.run(1)
    third = world.propose(leader, "g0", 3)  # While the others' write is under way.
    world.run(2)
    assert len(jobs) == 1
    last = world.driver(leader, "g0").raft.log.last_index
    assert world.driver(leader, "g0").raft.stable < last
    while world.driver(leader, "g0").raft.stable < last:
        assert jobs, "nobody asked for the second write"
        jobs.pop(0)()
        loop.turn()
    world.until(lambda: first.done() and second.done() and third.done())


def test_who_is_removed_from_one_group_goes_on_with_the_others(core: Any) -> None:
    world = World(core)
    world.elect()
    leader = world.leader("g0")
    assert leader is not None
    removed = next(id for id in PEERS if id != leader)
    rest = core.Configuration([id for id in PEERS if id != removed])
    assert world.result(world.propose(leader, "g0", 1)) == 1
    loop = world.nodes[leader]
    raft = loop.drivers["g0"].raft
    world.until(lambda: set(raft.configuration.storages) == set(PEERS) and raft.commit >= raft.configuration_index)
    loop.call(lambda: (loop.attend(loop.drivers["g0"]), raft.change(rest)))
    world.until(lambda: "g0" not in world.nodes[removed].drivers)
    assert world.result(world.propose(removed, "g1", 2)) == 2
    assert world.result(world.propose(leader, "g0", 1)) == 2


# --------------------------------------------------------------------------------------------------------------- quiet


def leader_and_led(world: World) -> tuple[str, list[str]]:
    """Who leads the first group, and all groups that it leads."""
    leader = world.leader("g0")
    assert leader is not None
    return leader, [group for group in world.names if world.leader(group) == leader]


@pytest.fixture
def quiet(core: Any) -> World:
    """Five groups that have gone quiet."""
    world = World(core, groups=5)
    world.elect()
    world.until(lambda: all_quiet(world))
    return world


def all_quiet(world: World, *ids: str) -> bool:
    return all(driver.raft.quiet for id in ids or PEERS for driver in world.nodes[id].drivers.values())


def test_idle_groups_cost_nothing_but_one_frame_from_node_to_node_a_heartbeat(quiet: World) -> None:
    quiet.visits.clear()
    quiet.frames.clear()
    quiet.run(5_000)
    assert not quiet.visits
    assert all_quiet(quiet)
    assert set(quiet.frames) == {(a, b) for a in PEERS for b in PEERS if a != b}
    assert set(quiet.frames.values()) == {5_000 // quiet.settings.heartbeat_ms}


def test_the_heartbeats_of_busy_groups_share_a_frame(core: Any) -> None:
    world = World(core, groups=20, settings=Settings(quiet_after_ms=0))
    world.elect()
    world.run(1_000)
    world.frames.clear()
    world.run(1_000)
    # A frame with the heartbeats of all groups, and one with the answers to the other's.
    assert max(world.frames.values()) <= 2 * 1_000 // world.settings.heartbeat_ms + 2


def test_a_quiet_group_wakes_on_a_proposal_and_the_others_sleep_on(quiet: World) -> None:
    leader = quiet.leader("g3")
    follower = next(id for id in PEERS if id != leader)
    for id in (leader, follower):
        assert id is not None
        quiet.visits.clear()
        assert quiet.result(quiet.propose(id, "g3", 2)) in (2, 4)
        assert set(quiet.visits) == {"g3"}
        quiet.until(lambda: all_quiet(quiet))
        assert quiet.leader("g3") == leader
    assert all(quiet.driver(id, "g3").machine.value == 4 for id in PEERS)


def test_a_read_at_a_quiet_leader_asks_a_quorum(quiet: World) -> None:
    leader = quiet.leader("g2")
    assert leader is not None
    loop, futures = quiet.nodes[leader], [Future(), Future()]
    loop.call(loop.drivers["g2"].read, lambda machine: machine.value, futures[0], quiet.now + 1_000 * MS)
    assert quiet.result(futures[0]) == 0
    quiet.until(lambda: all_quiet(quiet))
    quiet.cut.update(PEERS)
    loop.call(loop.drivers["g2"].read, lambda machine: machine.value, futures[1], quiet.now + 1_000 * MS)
    quiet.until(futures[1].done)
    assert futures[1].exception(0) is not None


def test_a_group_with_leases_goes_quiet_too_and_holds_none_then(core: Any) -> None:
    world = World(core, settings=Settings(lease_ms=450))
    world.elect()
    world.until(lambda: all_quiet(world))
    leader = world.leader("g0")
    assert leader is not None
    loop, future = world.nodes[leader], Future()
    world.cut.update(PEERS)
    loop.call(loop.drivers["g0"].read, lambda machine: machine.value, future, world.now + 1_000 * MS, "lease")
    world.until(future.done)
    assert future.exception(0) is not None


def test_a_quiet_group_whose_leaders_node_is_lost_elects_within_three_election_timeouts(quiet: World) -> None:
    lost, led = leader_and_led(quiet)
    quiet.cut.add(lost)
    quiet.run(3 * quiet.settings.election_timeout_ms)
    assert all(quiet.leader(group) not in (None, lost) for group in led)
    assert quiet.result(quiet.propose(str(quiet.leader("g0")), "g0", 3)) == 3
    # Those left go quiet without it; when it is back it hears who leads, and what it missed.
    quiet.until(lambda: all_quiet(quiet, *(id for id in PEERS if id != lost)))
    quiet.cut.clear()
    quiet.until(lambda: quiet.driver(lost, "g0").machine.value == 3)
    quiet.until(lambda: all_quiet(quiet))
    assert len({quiet.driver(id, group).raft.term for group in led for id in PEERS}) <= len(led)


def test_a_restart_of_the_leaders_node_wakes_what_it_led_at_once(quiet: World) -> None:
    restarted, led = leader_and_led(quiet)
    others = [id for id in PEERS if id != restarted]
    quiet.boot(restarted)
    quiet.run(5)
    assert not any(quiet.driver(id, group).raft.quiet for id in others for group in led)
    rest = [group for group in quiet.names if group not in led]
    assert not any(quiet.driver(str(quiet.leader(group)), group).raft.quiet for group in rest)
    quiet.until(lambda: all(quiet.leader(group) for group in quiet.names) and all_quiet(quiet))


def test_a_follower_that_lags_keeps_its_group_awake_and_one_whose_node_is_lost_does_not(quiet: World) -> None:
    leader = quiet.leader("g0")
    assert leader is not None
    behind = next(id for id in PEERS if id != leader)
    driver = quiet.driver(behind, "g0")
    driver.receive, receive = (lambda *_: None), driver.receive  # type: ignore[method-assign]
    quiet.result(quiet.propose(leader, "g0", 1))
    quiet.run(5_000)
    assert not quiet.driver(leader, "g0").raft.quiet
    quiet.cut.add(behind)
    quiet.until(lambda: bool(quiet.driver(leader, "g0").raft.quiet), 2_000)
    driver.receive = receive  # type: ignore[method-assign]
    quiet.cut.clear()
    quiet.until(lambda: driver.machine.value == 1, 2_000)


def test_a_minority_leader_of_quiet_groups_steps_down(quiet: World) -> None:
    leader, led = leader_and_led(quiet)
    quiet.cut.update(PEERS)
    quiet.run(3 * quiet.settings.election_timeout_ms)
    assert not any(quiet.driver(leader, group).raft.role == LEADER for group in led)


def test_quiet_status_tells_when_the_leaders_node_was_heard(quiet: World) -> None:
    quiet.run(3_000)
    follower = next(id for id in PEERS if id != quiet.leader("g0"))
    assert quiet.driver(follower, "g0").status()["contact_ms"] <= 2 * quiet.settings.heartbeat_ms


def test_nodes_that_cannot_keep_up_elect_one_group_after_another_and_not_all_again_and_again(core: Any) -> None:
    """More would answer each other too late, never go quiet, and leave ever less time for the rest."""
    world = SlowWorld(core, groups=300)
    world.until(lambda: all(world.leader(group) for group in world.names) and all_quiet(world), 30_000)
    terms = [max(world.driver(id, group).raft.term for id in PEERS) for group in world.names]
    assert sum(terms) <= 1.1 * len(world.names), "hardly any election was held twice"


def test_groups_stay_awake_where_that_is_wanted(core: Any) -> None:
    world = World(core, settings=Settings(quiet_after_ms=0))
    world.elect()
    world.run(3_000)
    assert not any(driver.raft.quiet for loop in world.nodes.values() for driver in loop.drivers.values())


@pytest.mark.parametrize("body", [b"", bytes(15), bytes(17)])
def test_an_item_about_going_quiet_that_is_malformed_changes_nothing(world: World, body: bytes) -> None:
    for kind in (QUIET, QUIET_RESPONSE):
        with pytest.raises(MalformedMessage):
            world.driver("n1", "g0").receive("n2", 1, kind, body)


def test_only_the_leader_of_the_term_can_ask_for_quiet(core: Any) -> None:
    world = World(core, settings=Settings(quiet_after_ms=0))
    world.elect()
    world.run(1_000)
    leader = world.leader("g0")
    follower, other = (id for id in PEERS if id != leader)
    world.settings = Settings()
    driver = world.driver(follower, "g0")
    driver.quiescence._heard_at = lambda id: world.now
    raft = driver.raft
    for source, term, last in ((other, 0, 0), (leader, 1, 0), (leader, 0, 1)):
        assert source is not None
        driver.receive(source, 1, QUIET, struct.pack("<QQ", raft.term + term, raft.log.last_index + last))
        driver.turn(world.now, True)
        assert not raft.quiet
    assert leader is not None
    driver.receive(leader, 1, QUIET, struct.pack("<QQ", raft.term, raft.log.last_index))
    driver.turn(world.now, True)
    assert raft.quiet


def test_nobody_goes_quiet_for_a_leader_that_has_restarted_since_it_asked(core: Any) -> None:
    """Frames of both lives in one turn: after a pause of ours, say (sim seed 40)."""
    world = World(core, settings=Settings(quiet_after_ms=100_000))
    world.elect()
    world.run(1_000)
    leader = world.leader("g0")
    follower = next(id for id in PEERS if id != leader)
    assert leader is not None
    raft, old = world.driver(follower, "g0").raft, world.nodes[leader]
    old._outgoing[follower] = [(group_number("g0"), QUIET, struct.pack("<QQ", raft.term, raft.log.last_index))]
    old._flush()
    world.boot(leader)
    world.nodes[leader].turn()
    world.now += MS
    world.nodes[follower].turn()
    assert raft.leader == leader and not raft.quiet


# -------------------------------------------------------------------------------------------------------- Node and CLI


@contextlib.contextmanager
def running(server: EmbeddedServer, directory: Path, **options: Any) -> Iterator[raftplug.Node]:
    node = raftplug.Node("n1", peers=["n1"], redis=server.url, data_dir=directory / "n1", **options)
    with node:
        yield node


def test_a_node_carries_groups_with_machines_of_their_own(server: EmbeddedServer, tmp_path: Path) -> None:
    with running(server, tmp_path, groups={"sums": Adder(), "names": "kv"}, bootstrap=True) as node:
        assert node.propose(3).result(10) == 3
        assert node.propose(4, group="sums").result(10) == 7
        node.propose({"op": "put", "key": "a", "value": 1}, group="names").result(10)
        assert node.read({"op": "get", "key": "a"}, group="names") == 1
        assert node.read(lambda adder: adder.value) == 7
        assert node.leaders() == {"sums": "n1", "names": "n1"}
        assert node.status("names")["applied"] < node.status()["applied"] + 2
        for ask in (node.propose, node.read):
            with pytest.raises(InvalidArgument, match=r"carries no group 'other'; it carries: names, sums"):
                ask(1, group="other")
        with raftplug.Client(server.url, group="names") as client:
            assert client.read({"op": "get", "key": "a"}) == 1
        with raftplug.Client(server.url, group="sums") as client:
            assert client.propose(1) == 8


def test_a_group_can_be_founded_in_a_used_directory(server: EmbeddedServer, tmp_path: Path) -> None:
    with running(server, tmp_path, groups={"a": Adder()}, bootstrap=True) as node:
        node.propose(1).result(10)
        uuid = node._storage.identity.cluster if node._storage else b""
    with pytest.raises(InvalidArgument, match=r"carries no group 'b'; it carries: a; .* bootstrap"):
        running(server, tmp_path, groups={"a": Adder(), "b": Adder()}).__enter__()
    with pytest.raises(WrongDirectory, match="in use already"):
        running(server, tmp_path, groups={"b": Adder()}, bootstrap=True).__enter__()
    with running(server, tmp_path, groups={"a": Adder(), "b": Adder()}, bootstrap=True) as node:
        assert node.propose(1, group="a").result(10) == 2
        assert node.propose(5, group="b").result(10) == 5
        assert node._storage is not None and node._storage.identity.cluster == uuid
    with running(server, tmp_path, groups={"a": Adder(), "b": Adder()}) as node:
        assert node.propose(5, group="b").result(10) == 10


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"groups": {}}, "of one group at least"),
        ({"groups": {"a": Adder()}, "machine": "kv"}, "give the state machine of each group in groups="),
        ({"groups": {"a b": Adder()}}, "group 'a b' cannot be"),
        ({}, "give either state_machine=, a state machine, or machine="),
    ],
)
def test_groups_that_cannot_be_are_refused_at_once(tmp_path: Path, options: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidArgument, match=text):
        raftplug.Node("n1", peers=["n1"], redis="redis://localhost", data_dir=tmp_path / "n1", **options)
    assert not (tmp_path / "n1").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--group", "a=kv", "--group", "a=kv"), ("--group a stands twice",)),
        (("--group", "a=kv", "--group", "b"), ("group b has no state machine", "--group b=kv")),
        (("--group", "a="), ("group a has no state machine",)),
        (("--group", "a b=kv"), ("'a b' cannot be",)),
        (("--group", "a=nothing"), ("nothing",)),
    ],
)
def test_the_command_refuses_groups_that_cannot_be(tmp_path: Path, options: tuple[str, ...], words: Any) -> None:
    more = ("--id", "n1", "--peers", "n1", "--redis", "redis://localhost", "--data-dir", str(tmp_path / "n1"))
    done = processes.raftplug("node", *more, *options, "--bootstrap")
    assert done.returncode != 0
    assert all(word in done.stderr for word in words), done.stderr
    assert not (tmp_path / "n1").exists()


class TwoGroups(Cluster):
    """Three nodes, each with the groups a and b."""

    def start(self, *names: str, bootstrap: bool = False, join: bool = False, core: str = "auto") -> None:
        """Start nodes, and wait until each is ready."""
        for name in names:
            more = ("--peers", ",".join(PEERS), "--bootstrap") if bootstrap else ()
            more += () if core == "auto" else ("--core", core)
            options = ("--id", name, "--data-dir", str(self.directory / name), "--redis", self.server.url)
            self.nodes[name] = processes.Running(
                self.directory / f"{name}.log", "node", *options, "--group", "a=kv", "--group", "b=kv", *more
            )
        for name in names:
            self.nodes[name].wait_for_line(rf"^{name}: node of 2 groups, ")

    def client(self, group: str) -> raftplug.Client:
        return raftplug.Client(self.server.url, group=group)

    def leader_of(self, group: str) -> str:
        """Wait until there is one that runs, and return its id."""

        def look() -> str | None:
            done = processes.raftplug("status", "--redis", self.server.url, "--group", group, "--json")
            leader = json.loads(done.stdout.splitlines()[-1])["leader"] if done.returncode == 0 else None
            return leader if leader in self.nodes else None

        return str(wait_until(look, f"a leader of {group}"))


@pytest.fixture
def two(server: EmbeddedServer, tmp_path: Path) -> Iterator[TwoGroups]:
    cluster = TwoGroups(server, tmp_path)
    try:
        yield cluster
    finally:
        cluster.end()


@pytest.mark.parametrize("core_name", ["python", "cython"])
def test_two_groups_have_leaders_of_their_own_and_both_outlive_a_kill(two: TwoGroups, core_name: str) -> None:
    two.start(*PEERS, bootstrap=True, core=core_name)
    with two.client("a") as a, two.client("b") as b:
        a.propose({"op": "put", "key": "k", "value": "of a"})
        b.propose({"op": "put", "key": "k", "value": "of b"})
        a.transfer_leadership("n1")
        b.transfer_leadership("n2")
        wait_until(lambda: (two.leader_of("a"), two.leader_of("b")) == ("n1", "n2"), "two leaders")
        two.kill("n1")
        b.propose({"op": "put", "key": "more", "value": 1})
        a.propose({"op": "put", "key": "more", "value": 2}, 30)
        assert two.leader_of("a") != "n1"
        assert (a.read({"op": "get", "key": "k"}), b.read({"op": "get", "key": "k"})) == ("of a", "of b")
        two.start("n1", core=core_name)
        two.kill("n2")
        a.propose({"op": "put", "key": "last", "value": 3}, 30)
        b.propose({"op": "put", "key": "last", "value": 4}, 30)
        assert (a.read({"op": "get", "key": "more"}), b.read({"op": "get", "key": "more"})) == (2, 1)


def test_the_directory_must_carry_each_group_that_is_given(two: TwoGroups) -> None:
    two.start(*PEERS, bootstrap=True)
    two.kill(*PEERS)
    options = ("--id", "n1", "--data-dir", str(two.directory / "n1"), "--redis", two.server.url)
    refused(
        processes.raftplug("node", *options, "--group", "a=kv", "--group", "c=kv"),
        2,
        "no group 'c'",
        "a, b",
        "bootstrap",
    )


@contextlib.contextmanager
def two_in_sight(two: TwoGroups, core_name: str) -> Iterator[tuple[raftplug.Node, raftplug.Node]]:
    """n1 and n2 in this process, where one can see whether they are quiet, and n3, which leads, in its own core's."""
    with contextlib.ExitStack() as stack:
        nodes = []
        for id in ("n1", "n2"):
            options: Any = {"redis": two.server.url, "data_dir": two.directory / id, "bootstrap": True}
            nodes.append(raftplug.Node(id, peers=PEERS, groups={"a": "kv", "b": "kv"}, **options))
            stack.enter_context(nodes[-1])
        two.start("n3", bootstrap=True, core=core_name)
        for group in ("a", "b"):
            with two.client(group) as client:
                client.propose({"op": "put", "key": "k", "value": 0}, 30)
                client.transfer_leadership("n3", 30)
        wait_until(lambda: all(node.leaders() == {"a": "n3", "b": "n3"} for node in nodes), "n3 leads both")
        sleep_well(*nodes)
        yield nodes[0], nodes[1]


def sleep_well(*nodes: raftplug.Node) -> None:
    wait_until(lambda: all(node.status(group)["quiet"] for node in nodes for group in ("a", "b")), "all quiet")


CORES = pytest.mark.parametrize("core_name", ["python", "cython"])


@CORES
def test_over_a_real_server_groups_go_quiet_and_each_wakes_on_its_own(two: TwoGroups, core_name: str) -> None:
    with two_in_sight(two, core_name) as (n1, n2):
        term = n1.status("b")["term"]
        for value in (1, 2):
            n1.propose({"op": "put", "key": "k", "value": value}, group="a").result(10)
            assert n2.read({"op": "get", "key": "k"}, group="a") == value
            sleep_well(n1, n2)
        assert n1.status("b")["term"] == term and n1.leaders() == {"a": "n3", "b": "n3"}


@CORES
def test_over_a_real_server_quiet_groups_outlive_the_kill_of_their_leaders_node(two: TwoGroups, core_name: str) -> None:
    with two_in_sight(two, core_name) as (n1, n2):
        two.kill("n3")
        wait_until(lambda: not {"n3", None} & {*n1.leaders().values(), *n2.leaders().values()}, "new leaders of both")
        for group in ("a", "b"):
            n1.propose({"op": "put", "key": "k", "value": 3}, group=group).result(10)
        sleep_well(n1, n2)  # Without n3, whose return wakes them.
        two.start("n3", core=core_name)
        with two.client("a") as client:
            wait_until(lambda: client.status()["nodes"][2]["applied"] == n1.status("a")["applied"], "n3 has caught up")
        sleep_well(n1, n2)


@CORES
def test_over_a_real_server_a_restart_of_the_leaders_node_wakes_its_groups(two: TwoGroups, core_name: str) -> None:
    with two_in_sight(two, core_name) as (n1, n2):
        terms = {group: n1.status(group)["term"] for group in ("a", "b")}
        two.kill("n3")
        two.start("n3", core=core_name)
        wait_until(lambda: all(n1.status(group)["term"] > terms[group] for group in terms), "both have elected anew")
        for group in ("a", "b"):
            n2.propose({"op": "put", "key": "k", "value": 4}, group=group).result(10)
        sleep_well(n1, n2)


def test_over_a_real_server_the_heartbeats_of_many_groups_share_their_frames(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    groups, awake = 50, Settings(quiet_after_ms=0)
    with contextlib.ExitStack() as stack:
        nodes = [
            raftplug.Node(
                id,
                peers=PEERS,
                redis=server.url,
                data_dir=tmp_path / id,
                groups={f"g{number}": Adder() for number in range(groups)},
                bootstrap=True,
                settings=awake,
            )
            for id in PEERS
        ]
        for node in nodes:
            stack.enter_context(node)
        wait_until(lambda: all(None not in node.leaders().values() for node in nodes), "leaders of all")

        def frames() -> int:
            return sum(node._loop._sender.sequence for node in nodes if node._loop is not None)

        before, began = frames(), time.monotonic()
        time.sleep(3)
        beats = (time.monotonic() - began) / (awake.heartbeat_ms / 1000)
        # Of each group two heartbeats and two answers: 200 messages a beat.  Three nodes have six frames for the
        # heartbeats and, where these are not read at one time, a few more for the answers.
        assert frames() - before < 30 * beats
