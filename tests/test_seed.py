"""The seed's two scenarios and its transition states, on its own API: three threads, a calculator machine."""

from __future__ import annotations

import queue
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from raftplug import Cluster, Replica, Snapshot, StateMachine, TransitionAbandonedReason, TransitionState
from raftplug.frames import cluster_uuid
from raftplug.storage import MemoryStorage

NOOP = {"delta": 0, "id": 0}


class Calculator(StateMachine):
    """The seed's machine: adds deltas, remembers which ids were in which state."""

    def __init__(self) -> None:
        self.value = 0
        self.states: list[tuple[Any, Any]] = []
        self.pending: list[Any] = []
        self.changed = threading.Condition()

    def apply_transition(self, transition: Any) -> int:
        with self.changed:
            self.value += transition["delta"]
            self.changed.notify_all()
        return self.value

    def get_id(self, transition: Any) -> Any:
        return transition["id"]

    def register_transition_state(self, transition_id: Any, state: Any) -> None:
        with self.changed:
            self.states.append((transition_id, state))
            self.changed.notify_all()

    def get_pending_transitions(self) -> list[Any]:
        pending, self.pending = self.pending, []
        return pending

    def create_snapshot(self, last_included_index: int, last_included_term: int) -> Snapshot:
        return Snapshot(last_included_index, last_included_term, self.value)

    def set_snapshot(self, snapshot: Snapshot) -> None:
        with self.changed:
            self.value = snapshot.data
            self.changed.notify_all()

    def in_state(self, state: Any) -> list[Any]:
        return [identity for identity, seen in self.states if seen == state]

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, timeout=30), f"not within 30 s: {what}"


class Network:
    """Inboxes, and the wake-ups of whoever reads them; `deliver` may drop and reorder."""

    def __init__(self, ids: list[int], drop: float = 0.0, shuffle: bool = False) -> None:
        self.lock = threading.Lock()
        self.inboxes: dict[int, list[bytes]] = {i: [] for i in ids}
        self.wake_ups: dict[int, queue.SimpleQueue[Any]] = {i: queue.SimpleQueue() for i in ids}
        self.cut: set[int] = set()
        self.random = random.Random(7)
        self.drop = drop
        self.shuffle = shuffle
        self.halted = threading.Event()


class Link(Cluster):
    def __init__(self, own_id: int, network: Network) -> None:
        self.own_id = own_id
        self.network = network
        self.leaders: list[Any] = []

    def send_message(self, to_id: Any, message: bytes) -> None:
        network = self.network
        with network.lock:
            if {self.own_id, to_id} & network.cut or network.random.random() < network.drop:
                return
            network.inboxes[to_id].append(message)
        network.wake_ups[to_id].put(None)

    def receive_messages(self) -> list[bytes]:
        network = self.network
        with network.lock:
            messages, network.inboxes[self.own_id] = network.inboxes[self.own_id], []
            if network.shuffle:
                network.random.shuffle(messages)
        return messages

    def halt(self) -> bool:
        return self.network.halted.is_set()

    def register_leader(self, leader_id: Any) -> None:
        self.leaders.append(leader_id)


class Group:
    """Three replicas in threads."""

    def __init__(self, core: Any, network: Network, heartbeat: float, election: tuple[float, float]) -> None:
        ids = list(network.inboxes)
        self.network = network
        self.machines = {i: Calculator() for i in ids}
        self.links = {i: Link(i, network) for i in ids}
        self.transitions: dict[int, queue.SimpleQueue[Any]] = {i: queue.SimpleQueue() for i in ids}
        self.replicas = {
            i: Replica(
                id=i,
                peer_ids=[peer for peer in ids if peer != i],
                cluster=self.links[i],
                state_machine=self.machines[i],
                snapshot_delta=1,
                noop_transition=NOOP,
                heartbeat_timeout=heartbeat,
                election_timeout_range=election,
                core=core,
            )
            for i in ids
        }
        self.threads = [
            threading.Thread(target=self.replicas[i].start, args=(network.wake_ups[i], self.transitions[i]))
            for i in ids
        ]
        for thread in self.threads:
            thread.start()

    def submit(self, replica: int, transition: Any) -> None:
        self.machines[replica].pending.append(transition)
        self.transitions[replica].put(None)

    def leader(self) -> int:
        """The replica that leads, once there is one that has committed its no-op."""
        while True:
            for i, machine in self.machines.items():
                if (
                    self.replicas[i].is_leader
                    and i not in self.network.cut
                    and machine.in_state(TransitionState.Committed)
                ):
                    return i
            machine = self.machines[next(iter(self.machines))]
            with machine.changed:
                machine.changed.wait(0.05)

    def stop(self) -> None:
        self.network.halted.set()
        for thread in self.threads:
            thread.join(30)
        assert not any(thread.is_alive() for thread in self.threads)


@pytest.fixture
def start(core: Any) -> Iterator[Callable[..., Group]]:
    groups: list[Group] = []

    def start_group(heartbeat: float = 0.05, election: tuple[float, float] = (0.25, 0.4), **network: Any) -> Group:
        group = Group(core, Network([0, 1, 2], **network), heartbeat, election)
        groups.append(group)
        return group

    yield start_group
    for group in groups:
        group.stop()


OPERATIONS = [(1, 5, 5), (2, -51, -46), (3, -511, -557), (4, 3, -554)]


def test_on_a_stable_network_every_replica_applies_each_transition_once_in_order(start: Callable[..., Group]) -> None:
    group = start()
    leader = group.leader()
    for identity, delta, total in OPERATIONS:
        group.submit(leader, {"delta": delta, "id": identity})
        for machine in group.machines.values():
            machine.wait_for(lambda m=machine, t=total: m.value == t, f"the sum {total}")  # type: ignore[misc]
    group.stop()
    for machine in group.machines.values():
        assert machine.in_state(TransitionState.Applied) == [0, 1, 2, 3, 4]
    assert group.machines[leader].in_state(TransitionState.Queued) == [1, 2, 3, 4]
    assert group.machines[leader].in_state(TransitionState.Committed) == [0, 1, 2, 3, 4]


def test_on_a_lossy_shuffled_network_every_replica_reaches_the_same_sums(start: Callable[..., Group]) -> None:
    group = start(drop=0.25, shuffle=True, election=(0.75, 0.95))
    done = 0
    for identity, delta, total in OPERATIONS:
        # Leaders may change on such a network: submit until somebody has applied it, each attempt under the same id.
        while not any(machine.value == total for machine in group.machines.values()):
            leader = group.leader()
            group.submit(leader, {"delta": delta, "id": identity})
            machine = group.machines[leader]
            machine.wait_for(
                lambda m=machine, i=identity: any(  # type: ignore[misc]
                    seen == i and state != TransitionState.Queued and state != TransitionState.Committed
                    for seen, state in m.states[:]
                ),
                f"an outcome of transition {identity}",
            )
        done += 1
        for machine in group.machines.values():
            machine.wait_for(lambda m=machine, t=total: m.value == t, f"the sum {total}")  # type: ignore[misc]
    assert done == 4


def test_a_transition_handed_to_a_follower_is_abandoned_as_not_leader(start: Callable[..., Group]) -> None:
    group = start()
    leader = group.leader()
    follower = next(i for i in group.machines if i != leader)
    group.submit(follower, {"delta": 9, "id": 77})
    machine = group.machines[follower]
    abandoned = TransitionState.Abandoned(TransitionAbandonedReason.NotLeader)
    machine.wait_for(lambda: machine.in_state(abandoned) == [77], "Abandoned(NotLeader)")
    assert all(m.value == 0 for m in group.machines.values())


def test_an_overwritten_transition_is_abandoned_as_conflict_with_leader(start: Callable[..., Group]) -> None:
    group = start()
    old = group.leader()
    with group.network.lock:
        group.network.cut.add(old)
    group.submit(old, {"delta": 1000, "id": 88})
    machine = group.machines[old]
    machine.wait_for(lambda: machine.in_state(TransitionState.Queued) == [88], "Queued")
    new = group.leader()
    group.submit(new, {"delta": 5, "id": 1})
    group.machines[new].wait_for(lambda: group.machines[new].value == 5, "the new leader's transition")
    with group.network.lock:
        group.network.cut.clear()
    abandoned = TransitionState.Abandoned(TransitionAbandonedReason.ConflictWithLeader)
    machine.wait_for(lambda: machine.in_state(abandoned) == [88], "Abandoned(ConflictWithLeader)")
    for each in group.machines.values():
        each.wait_for(lambda m=each: m.value == 5, "the same sum everywhere")  # type: ignore[misc]
        assert 88 not in each.in_state(TransitionState.Applied)


def test_the_cluster_hears_of_a_leader_only_when_it_changes(start: Callable[..., Group]) -> None:
    group = start()
    leader = group.leader()
    group.submit(leader, {"delta": 5, "id": 1})
    for machine in group.machines.values():
        machine.wait_for(lambda m=machine: m.value == 5, "the sum 5")  # type: ignore[misc]
    for link in group.links.values():
        assert link.leaders[-1] == leader
        assert all(a != b for a, b in zip(link.leaders, link.leaders[1:], strict=False))


def test_one_object_may_be_both_state_machine_and_cluster(core: Any) -> None:
    class Both(Calculator, Link):
        def __init__(self, network: Network) -> None:
            Calculator.__init__(self)
            Link.__init__(self, 0, network)

    network = Network([0])
    both = Both(network)
    replica = Replica(0, [], both, both, 1, NOOP, 0.05, (0.1, 0.2), core=core)
    wake_ups: queue.SimpleQueue[Any] = queue.SimpleQueue()
    thread = threading.Thread(target=replica.start, args=(wake_ups, wake_ups))
    thread.start()
    both.pending.append({"delta": 3, "id": 1})
    wake_ups.put(None)
    try:
        both.wait_for(lambda: 1 in both.in_state(TransitionState.Applied) or _resubmit(both, wake_ups), "applied")
    finally:
        network.halted.set()
        thread.join(30)
    assert both.value == 3


def test_a_replica_on_a_storage_goes_on_with_what_it_applied(core: Any) -> None:
    storage = MemoryStorage(0, cluster=cluster_uuid("replica", [0]))

    def run(submit: bool) -> Calculator:
        network, machine = Network([0]), Calculator()
        link = Link(0, network)
        replica = Replica(0, [], link, machine, 0, NOOP, 0.05, (0.1, 0.2), storage=storage, core=core)
        wake_ups: queue.SimpleQueue[Any] = queue.SimpleQueue()
        thread = threading.Thread(target=replica.start, args=(wake_ups, wake_ups))
        thread.start()
        if submit:
            machine.pending.append({"delta": 3, "id": 1})
            wake_ups.put(None)
        try:
            machine.wait_for(lambda: machine.value == 3 or (submit and _resubmit(machine, wake_ups)), "the sum 3")
        finally:
            network.halted.set()
            thread.join(30)
        return machine

    assert run(submit=True).in_state(TransitionState.Queued) == [1]
    assert run(submit=False).in_state(TransitionState.Queued) == []


def _resubmit(both: Calculator, wake_ups: queue.SimpleQueue[Any]) -> bool:
    """Before it leads, a replica abandons what it is handed: hand it over again."""
    refused = TransitionState.Abandoned(TransitionAbandonedReason.NotLeader)
    if both.in_state(refused) and not both.pending and not both.in_state(TransitionState.Queued):
        both.states.clear()
        both.pending.append({"delta": 3, "id": 1})
        wake_ups.put(None)
    return False
