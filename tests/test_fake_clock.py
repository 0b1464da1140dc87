"""Three whole nodes and a client in one thread, on a clock that only the test moves: no sleep, no socket, no disk."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgpack
import pytest

from raftplug import plain
from raftplug.client import ClientLoop
from raftplug.cluster import MemoryCluster, MemoryHub
from raftplug.constants import LEADER, LEASE, LINEARIZABLE, REQUEST, STALE, UNKNOWN
from raftplug.core import Future
from raftplug.errors import InvalidArgument, NotLeader, OutcomeUnknown, Overloaded, Unavailable
from raftplug.frames import address, cluster_uuid
from raftplug.node import NodeLoop
from raftplug.settings import Settings
from raftplug.state_machine import Snapshot, StateMachine
from raftplug.storage import MemoryStorage
from raftplug.threads import run_here

GROUP = "counters"
IDS = ("n1", "n2", "n3")


class Counter(StateMachine):
    def __init__(self) -> None:
        self.value = 0
        self.executed: list[Any] = []

    def apply_transition(self, transition: Any) -> int:
        self.value += transition["add"]
        self.executed.append(transition.get("tag"))
        return self.value

    def query(self, request: Any) -> int:
        return self.value

    def create_snapshot(self, last_included_index: int, last_included_term: int) -> Snapshot:
        return Snapshot(last_included_index, last_included_term, [self.value, self.executed[:]])

    def set_snapshot(self, snapshot: Snapshot) -> None:
        self.value, self.executed = snapshot.data[0], snapshot.data[1][:]


class World:
    """A clock, a network, and three nodes whose disks complete at once or when the test says so."""

    def __init__(
        self,
        core: Any,
        seed: int = 1,
        settings: Settings | None = None,
        machine: type[Counter] = Counter,
        witnesses: tuple[str, ...] = (),
    ) -> None:
        self.machine = machine
        self.core = core
        self.now = 1_000_000
        self.random = random.Random(seed)
        self.settings = settings or Settings()
        self.hub = MemoryHub(drop=self._drop)
        self.cut: set[Any] = set()
        self.uuid = cluster_uuid(GROUP, IDS)
        self.storages: dict[str, MemoryStorage] = {}
        self.nodes: dict[str, NodeLoop] = {}
        self.machines: dict[str, Counter] = {}
        self.stuck: dict[str, list[Callable[[], None]]] = {}
        self.events: list[tuple[str, dict[str, Any]]] = []
        for id in IDS:
            self.storages[id] = MemoryStorage(id, cluster=self.uuid)
            self.storages[id].create(GROUP, plain.encode(core.Configuration(IDS, witnesses=witnesses).plain()))
            self.boot(id)

    def boot(self, id: str, **more: Any) -> None:
        self.machines[id] = self.machine()

        def execute(job: Callable[[], None], done: Callable[[BaseException | None], None]) -> None:
            def run() -> None:
                job()
                done(None)

            if id in self.stuck:
                self.stuck[id].append(run)
            else:
                run()

        self.nodes[id] = NodeLoop(
            storage=self.storages[id],
            cluster=MemoryCluster(self.hub, id, self.uuid),
            machines={GROUP: self.machines[id]},
            settings=self.settings,
            executor=execute,
            clock=lambda: self.now,
            generator=self.random,
            core=self.core,
            on_event=lambda name, **arguments: self.events.append((name, arguments)),
            **more,
        )

    def client(self, **options: Any) -> ClientLoop:
        client = ClientLoop(
            cluster=MemoryCluster(self.hub, "~client"),
            own_id="~client",
            group=GROUP,
            settings=self.settings,
            generator=self.random,
            **options,
        )
        self.clients = [client]
        return client

    clients: list[ClientLoop] = []  # noqa: RUF012

    def _drop(self, source: Any, target: Any, message: bytes) -> bool:
        return source in self.cut or target in self.cut

    def run(self, milliseconds: int) -> None:
        for _ in range(milliseconds):
            self.now += 1_000
            for node in self.nodes.values():
                node.turn()
            for client in self.clients:
                client.turn(self.now)

    def until(self, condition: Callable[[], bool], milliseconds: int = 20_000) -> None:
        for _ in range(milliseconds):
            if condition():
                return
            self.run(1)
        raise AssertionError("it did not happen in time")

    def leader(self) -> str | None:
        leading = [id for id in self.nodes if self.raft(id).role == LEADER and id not in self.cut]
        return max(leading, key=lambda id: self.raft(id).term) if leading else None

    def elect(self) -> str:
        def leads() -> bool:
            leader = self.leader()
            return leader is not None and self.nodes[leader].cluster_id is not None

        self.until(leads)
        leader = self.leader()
        assert leader is not None
        return leader

    def raft(self, id: str) -> Any:
        return self.nodes[id].drivers[GROUP].raft

    def propose(self, id: str, transition: Any, timeout_ms: int = 10_000) -> Future:
        future = Future()
        driver = self.nodes[id].drivers[GROUP]
        self.nodes[id].propose(driver, plain.encode(transition), future, self.now + 1000 * timeout_ms)
        return future

    def ask(self, client: ClientLoop, transition: Any) -> Future:
        """Propose through a client."""
        future = Future()
        client.propose(plain.encode(transition), future, self.now + 10_000_000)
        return future

    def read(self, id: str, timeout_ms: int = 5_000, consistency: str = LINEARIZABLE) -> Future:
        future = Future()
        driver = self.nodes[id].drivers[GROUP]
        deadline = self.now + 1000 * timeout_ms
        self.nodes[id].call(driver.read, lambda machine: machine.value, future, deadline, consistency)
        return future

    def result(self, future: Future) -> Any:
        self.until(future.done)
        return future.result(0)


@pytest.fixture
def world(core: Any) -> World:
    return World(core)


def test_a_transition_proposed_on_any_node_is_applied_on_every_node(world: World) -> None:
    world.elect()
    results = [world.result(world.propose(id, {"add": 1, "tag": id})) for id in IDS]
    assert results == [1, 2, 3]
    world.run(300)
    assert [world.machines[id].executed for id in IDS] == [list(IDS)] * 3


@pytest.mark.parametrize(
    ("limits", "taken"), [({"max_pending": 5}, 5), ({"max_uncommitted_bytes": 100}, 3), ({"max_pending": 100}, 12)]
)
def test_of_what_is_proposed_together_a_leader_takes_the_first_as_many_as_it_may(
    core: Any, limits: dict[str, int], taken: int
) -> None:
    world = World(core, settings=Settings(**limits))
    leader = world.elect()
    world.run(100)
    world.nodes[leader].turn()
    futures = [world.propose(leader, {"add": 1, "tag": number}) for number in range(12)]
    assert [world.result(future) for future in futures[:taken]] == list(range(1, taken + 1))
    assert all(isinstance(future.exception(0), Overloaded) for future in futures[taken:])
    assert world.machines[leader].executed == list(range(taken))


def test_what_was_proposed_with_what_stopped_a_node_is_not_left_without_an_answer(world: World) -> None:
    leader = world.elect()
    node = world.nodes[leader]
    first, last = world.propose(leader, {"add": 1}), Future()
    for transition, future in (("no bytes", Future()), (plain.encode({"add": 1}), last)):
        node.propose(node.drivers[GROUP], transition, future, world.now + 1_000_000)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        node.turn()
    node.close()
    assert isinstance(first.exception(0), OutcomeUnknown)
    assert isinstance(last.exception(0), Unavailable)


def test_a_read_on_any_node_sees_what_was_acknowledged_before_it(world: World) -> None:
    leader = world.elect()
    assert world.result(world.propose(leader, {"add": 7})) == 7
    for id in IDS:
        assert world.result(world.read(id)) == 7


def test_a_client_writes_and_reads_without_being_a_member(world: World) -> None:
    world.elect()
    client = world.client()
    write = world.ask(client, {"add": 3})
    assert (
        plain.decode(world.result(write)) == 3 if isinstance(world.result(write), bytes) else world.result(write) == 3
    )
    read = Future()
    client.read(plain.encode(None), read, world.now + 10_000_000)
    value = world.result(read)
    assert (plain.decode(value) if isinstance(value, bytes) else value) == 3


def test_after_the_leader_is_cut_off_the_others_go_on_and_it_catches_up(world: World) -> None:
    old = world.elect()
    world.result(world.propose(old, {"add": 1}))
    world.cut.add(old)
    lost = world.propose(old, {"add": 100, "tag": "lost"})
    new = world.elect()
    assert new != old
    assert world.result(world.propose(new, {"add": 1})) == 2
    world.cut.clear()
    world.until(lambda: world.machines[old].value == 2)
    world.run(2000)
    assert isinstance(lost.exception(0), Exception)
    assert all("lost" not in world.machines[id].executed for id in IDS)


def test_a_leader_whose_disk_takes_three_seconds_keeps_leading(world: World) -> None:
    leader = world.elect()
    world.result(world.propose(leader, {"add": 1}))
    term = world.raft(leader).term
    world.stuck[leader] = []
    slow = world.propose(leader, {"add": 1})
    world.run(3000)
    assert world.leader() == leader and world.raft(leader).term == term
    assert not slow.done()
    for job in world.stuck.pop(leader):
        job()
    assert world.result(slow) == 2


def test_what_is_asked_while_leadership_moves_waits_for_the_successor(world: World) -> None:
    """It is not sent back and forth meanwhile, and does not rest for longer than the handing over takes."""
    leader = world.elect()
    client = world.client()
    world.result(world.ask(client, {"add": 1}))
    asked: list[Any] = []

    def heard(source: Any, target: Any, message: bytes) -> bool:
        if source == "~client":
            asked.append(target)
        return False

    world.hub.drop = heard
    target = next(id for id in IDS if id != leader)
    world.stuck[target] = []
    world.raft(leader).transfer(target)
    second = world.ask(client, {"add": 1})
    world.run(50)
    assert asked == [leader] and not second.done()
    for job in world.stuck.pop(target):
        job()
    world.run(20)
    assert world.leader() == target and second.done()
    assert asked == [leader, target]


def test_what_waits_for_a_successor_is_taken_when_none_takes_over(world: World) -> None:
    leader = world.elect()
    client = world.client()
    world.result(world.ask(client, {"add": 1}))
    target = next(id for id in IDS if id != leader)
    world.cut = {target}
    world.raft(leader).transfer(target)
    second = world.ask(client, {"add": 1})
    world.run(400)
    assert not second.done()
    world.run(400)
    assert world.leader() == leader and second.done()


def test_a_turn_that_ends_in_its_apply_leaves_its_write_to_the_next_one(world: World) -> None:
    """As where a machine that takes long keeps the thread: another one goes on with the loop."""

    class Taken(BaseException):
        pass

    kept: list[tuple[Callable[[], None], Callable[[BaseException | None], None]]] = []
    keeps: set[str] = set()

    def boot(id: str) -> None:
        def apply(job: Callable[[], None], done: Callable[[BaseException | None], None]) -> None:
            if id in keeps:
                kept.append((job, done))
                raise Taken
            run_here(job, done)

        world.boot(id, apply_executor=apply, own_executor=run_here)

    for id in IDS:
        boot(id)
    leader = world.elect()
    futures = [world.propose(leader, {"add": 1})]
    keeps.add(leader)

    def go_on() -> None:
        for _ in range(100):
            world.run(1)
            futures.append(world.propose(leader, {"add": 1}))

    with pytest.raises(Taken):
        go_on()
    raft = world.raft(leader)
    assert raft.writing, "what was proposed in that turn is not written yet"
    world.until(lambda: raft.stable == raft.log.last_index and raft.commit == raft.log.last_index)
    assert not any(future.done() for future in futures)
    keeps.clear()
    ((job, done),) = kept
    job()
    world.nodes[leader].call(done, None)
    assert [world.result(future) for future in futures] == list(range(1, 1 + len(futures)))


def test_followers_with_stuck_disks_acknowledge_nothing_and_elect_nobody(world: World) -> None:
    leader = world.elect()
    term = world.raft(leader).term
    followers = [id for id in IDS if id != leader]
    for id in followers:
        world.stuck[id] = []
    future = world.propose(leader, {"add": 1})
    world.run(3000)
    assert not future.done()
    assert world.raft(leader).term == term and world.leader() == leader
    for id in followers:
        for job in world.stuck.pop(id):
            job()
    assert world.result(future) == 1


def test_a_restarted_node_has_everything_it_acknowledged(world: World) -> None:
    leader = world.elect()
    for number in range(20):
        world.result(world.propose(leader, {"add": 1, "tag": number}))
    for id in IDS:
        world.boot(id)
    world.elect()
    world.until(lambda: all(world.machines[id].executed == list(range(20)) for id in IDS))


def test_a_node_that_lags_behind_the_compacted_log_is_sent_a_snapshot(core: Any) -> None:
    world = World(core, settings=Settings(snapshot_entries=10, keep_entries=2))
    leader = world.elect()
    lagging = next(id for id in IDS if id != leader)
    world.cut.add(lagging)
    for number in range(50):
        world.result(world.propose(leader, {"add": 1, "tag": number}))
    world.cut.clear()
    world.until(lambda: world.machines[lagging].executed == list(range(50)))
    installed = [arguments for name, arguments in world.events if name == "raftplug_snapshot"]
    assert any(event["kind"] == "installed" and event["node"] == lagging for event in installed)
    assert world.raft(lagging).log.base_index > 0
    world.boot(lagging)
    world.until(lambda: world.machines[lagging].executed == list(range(50)))


def test_a_future_whose_outcome_nobody_can_know_says_so_in_time(world: World) -> None:
    leader = world.elect()
    world.cut.update(IDS)
    future = world.propose(leader, {"add": 1}, timeout_ms=2_000)
    world.run(2_100)
    assert isinstance(future.exception(0), OutcomeUnknown)


def test_an_answer_is_not_lost_when_an_index_is_proposed_for_again(world: World) -> None:
    """Found by `raftplug sim --seed 2 --faults deaf_leader`: the second future took the first one's place."""
    first = world.elect()
    world.cut = {first}
    lost = [world.propose(first, {"add": 100}) for _ in range(8)]  # On its own disk, and nowhere else.
    world.until(lambda: world.leader() not in (None, first))
    second = world.elect()
    world.cut = set()
    world.until(
        lambda: world.raft(first).commit == world.raft(second).log.last_index == world.raft(first).log.last_index
    )
    assert not all(future.done() for future in lost)  # Some of their places were taken, the others are free again.
    world.raft(second).transfer(first)
    world.until(lambda: world.leader() == first)
    futures = [world.propose(first, {"add": 1}) for _ in range(4)]
    assert [world.result(future) for future in futures] == [1, 2, 3, 4]
    for _ in range(4):
        world.result(world.propose(first, {"add": 1}))
    assert [type(future.exception(0)) for future in lost] == [NotLeader] * 8


def test_the_same_seed_gives_the_same_history(core: Any) -> None:
    def history() -> list[Any]:
        world = World(core, seed=5)
        leader = world.elect()
        world.result(world.propose(leader, {"add": 1}))
        world.cut.add(leader)
        world.elect()
        return [world.now, world.events]

    assert history() == history()


def test_a_snapshot_that_every_machine_brings_along_is_where_a_new_group_begins(core: Any) -> None:
    class Brought(Counter):
        def get_snapshot(self) -> Snapshot:
            return Snapshot(5, 1, [50, ["brought"]])

    world = World(core, machine=Brought)
    leader = world.elect()
    assert world.result(world.propose(leader, {"add": 1, "tag": "new"})) == 51
    world.until(lambda: all(world.machines[id].executed == ["brought", "new"] for id in IDS))
    for id in IDS:
        world.boot(id)
    world.elect()
    world.until(lambda: all(world.machines[id].value == 51 for id in IDS))


def test_a_request_to_an_earlier_life_of_a_node_is_not_taken_and_its_outcome_is_unknown(world: World) -> None:
    """Found by `raftplug sim --seed 113`: the earlier life may have taken it, or refused it for certain."""
    leader = world.elect()
    driver, last = world.nodes[leader].drivers[GROUP], world.raft(leader).log.last_index
    sent: list[bytes] = []
    driver._send = lambda target, kind, body: sent.append(body)
    request = msgpack.packb([1, "open", [None]])
    driver.receive("~client", 9, REQUEST, address(request, driver._nonce + 1))
    assert world.raft(leader).log.last_index == last
    assert msgpack.unpackb(sent[0])[:3] == [9, 1, UNKNOWN]
    driver.receive("~client", 9, REQUEST, address(request, driver._nonce))
    assert world.raft(leader).log.last_index == last + 1


def test_no_time_passes_for_sessions_when_a_leader_takes_a_request_in_the_turn_of_its_election(world: World) -> None:
    """Found by the demo, on a machine that had been on for a day: its whole uptime passed, and all sessions ended."""
    world.now += 30 * 24 * 3_600 * 1_000_000
    for id in IDS:
        world.boot(id)
    taken = set()
    for id, node in world.nodes.items():
        driver = node.drivers[GROUP]

        def receive(*arguments: Any, id: str = id, driver: Any = driver, on_message: Any = driver._on_message) -> None:
            on_message(*arguments)
            if driver.raft.role == LEADER and id not in taken:  # Its turn has not looked at that yet.
                taken.add(id)
                request = msgpack.packb([1, "open", [None]])
                driver.receive("~client", 9, REQUEST, address(request, driver._nonce))

        driver._on_message = receive
    leader = world.elect()
    driver = world.nodes[leader].drivers[GROUP]
    world.until(lambda: len(driver.sessions) == 1)
    assert taken == {leader}
    assert driver.sessions.now_us < 1_000_000


def test_a_read_that_a_cut_off_leader_cannot_confirm_ends_at_its_deadline(world: World) -> None:
    leader = world.elect()
    world.cut = {leader}
    future = world.read(leader, timeout_ms=50)
    world.run(49)
    assert not future.done()
    world.run(1)
    assert isinstance(future.exception(0), Unavailable)
    assert world.leader() is None and world.raft(leader).role == LEADER  # It has not noticed yet that it is alone.


def test_a_read_whose_index_never_comes_ends_at_its_deadline(world: World) -> None:
    """Found by `raftplug sim --seed 400`: a member that was removed waited for ever."""
    leader = world.elect()
    other = next(id for id in IDS if id != leader)
    world.stuck[other] = []  # Its disk hangs: what is committed is not applied here.
    world.result(world.propose(leader, {"add": 1}))
    future = world.read(other, timeout_ms=1_000)
    world.run(1_500)
    assert isinstance(future.exception(0), Unavailable)


@pytest.fixture
def settled(core: Any) -> tuple[World, str, list[str]]:
    """A leader with a committed transition that everybody has applied, and the two others."""
    world = World(core)
    leader = world.elect()
    others = [id for id in IDS if id != leader]
    world.propose(leader, {"add": 1})
    world.until(lambda: all(world.machines[id].value == 1 for id in IDS))
    return world, leader, others


def _commit(world: World, leader: str) -> None:
    """One more transition, committed without any time passing."""
    future = world.propose(leader, {"add": 1})
    for _ in range(20):
        if future.done():
            return
        for node in world.nodes.values():
            node.turn()
    raise AssertionError("it was not committed")


def test_a_follower_hears_of_a_commit_with_the_next_append(settled: tuple[World, str, list[str]]) -> None:
    world, leader, others = settled
    world.run(200)
    before = {id: world.machines[id].value for id in others}
    _commit(world, leader)
    assert {id: world.machines[id].value for id in others} == before
    _commit(world, leader)
    assert all(world.machines[id].value == before[id] + 1 for id in others)


def test_a_follower_hears_of_the_last_commit_long_before_a_heartbeat(settled: tuple[World, str, list[str]]) -> None:
    world, leader, others = settled
    world.until(lambda: world.raft(leader).deadline() - world.now > 80_000)
    _commit(world, leader)
    world.run(20)
    assert all(world.machines[id].value == 2 for id in others)


def test_a_read_on_a_follower_does_not_wait_for_the_notice(settled: tuple[World, str, list[str]]) -> None:
    world, leader, others = settled
    _commit(world, leader)
    future = world.read(others[0])
    for _ in range(20):  # The clock stands still.
        for node in world.nodes.values():
            node.turn()
    assert future.done() and future.result(0) == 2


def test_a_lease_answers_without_a_round_until_it_ends(core: Any) -> None:
    world = World(core, settings=Settings(lease_ms=450, quiet_after_ms=0))
    leader = world.elect()
    assert world.result(world.propose(leader, {"add": 7})) == 7
    world.run(300)
    world.cut = set(IDS)
    read = world.read(leader, consistency=LEASE)
    world.run(2)
    assert read.result(0) == 7
    world.run(450)
    late = world.read(leader, consistency=LEASE)
    world.run(2)
    assert not late.done()


def test_a_lease_read_on_a_follower_shows_what_was_acknowledged(core: Any) -> None:
    world = World(core, settings=Settings(lease_ms=450))
    leader = world.elect()
    assert world.result(world.propose(leader, {"add": 7})) == 7
    for id in IDS:
        assert world.result(world.read(id, consistency=LEASE)) == 7


def test_a_stale_read_needs_nobody(world: World) -> None:
    leader = world.elect()
    assert world.result(world.propose(leader, {"add": 7})) == 7
    world.run(500)
    world.cut = set(IDS)
    world.run(3_000)
    for id in IDS:
        waiting, stale = world.read(id), world.read(id, consistency=STALE)
        world.run(2)
        assert stale.result(0) == 7
        assert not waiting.done()


def test_without_leases_a_lease_read_is_refused(world: World) -> None:
    leader = world.elect()
    with pytest.raises(InvalidArgument, match="lease_ms"):
        world.result(world.read(leader, consistency=LEASE))


def test_a_client_chooses_the_consistency_of_a_read(core: Any) -> None:
    world = World(core, settings=Settings(lease_ms=450))
    leader = world.elect()
    assert world.result(world.propose(leader, {"add": 7})) == 7
    world.run(500)
    client = world.client()
    for consistency in (LINEARIZABLE, LEASE, STALE):
        read = Future()
        client.read(plain.encode(None), read, world.now + 10_000_000, consistency)
        world.until(read.done)
        assert read.result(0) == 7


def test_who_is_reluctant_leaves_the_election_to_the_others(core: Any) -> None:
    for seed in range(20):
        world = World(core, seed=seed)
        world.nodes.clear()
        for id in IDS:
            world.settings = Settings(lead_reluctance=2 if id == "n1" else 0)
            world.boot(id)
        assert world.elect() != "n1"


def test_a_leader_takes_its_own_write_and_its_followers_answers_together(world: World) -> None:
    for id in IDS:
        world.boot(id, own_executor=run_here)
    leader = world.elect()
    world.run(100)
    driver = world.nodes[leader].drivers[GROUP]
    visits, turn = [], driver.turn

    def counted(now: int, may_write: bool) -> Any:
        visits.append(now)
        return turn(now, may_write)

    driver.turn = counted  # type: ignore[method-assign]
    future = world.propose(leader, {"add": 1})
    for id in (leader, *(id for id in IDS if id != leader), leader):
        world.nodes[id].turn()
    assert future.done() and len(visits) == 2


def test_a_leader_that_was_idle_for_long_does_not_take_its_disk_for_stuck(world: World) -> None:
    leader = world.elect()
    assert world.result(world.propose(leader, {"add": 1})) == 1
    for idle_ms in (5_000, 60_000):
        world.run(1_000)
        world.now += 1_000 * idle_ms  # No group has a turn while it is quiet.
        term = world.raft(leader).term
        world.stuck[leader] = []  # It takes as long as others take to answer.
        future = world.propose(leader, {"add": 1})
        world.run(20)
        for write in world.stuck.pop(leader):
            write()
        world.run(50)
        assert future.done() and future.exception(0) is None
        assert (world.raft(leader).role, world.raft(leader).term) == (LEADER, term)
