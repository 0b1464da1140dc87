"""The transport contract's defaults, and the transport in memory."""

from __future__ import annotations

import threading
import uuid

import pytest

from raftplug.cluster import Cluster, MemoryCluster, MemoryHub, open_memory
from raftplug.errors import InvalidArgument

ONE, OTHER = bytes(15) + b"1", bytes(15) + b"2"


class Plain(Cluster):
    """The smallest transport: two methods, and an __init__ that forgets its base."""

    def __init__(self) -> None:
        self.sent: list[tuple[object, bytes]] = []

    def send_message(self, to_id: object, message: bytes) -> None:
        self.sent.append((to_id, message))

    def receive_messages(self) -> list[bytes]:
        return []


def test_two_methods_are_a_whole_transport() -> None:
    cluster = Plain()
    cluster.announce({"id": "n1", "cluster": "00"})
    cluster.register_leader("n1")
    cluster.set_cluster(ONE)
    cluster.wait(0.001)
    assert (cluster.halt(), cluster.directory(), cluster.problems()) == (False, [], [])
    cluster.close()


def test_the_default_wait_ends_by_itself_since_it_cannot_know_of_arrivals() -> None:
    Plain().wait(3600)


def test_a_transport_without_its_two_methods_says_which_to_override() -> None:
    with pytest.raises(NotImplementedError, match="send_message"):
        Cluster().send_message("n1", b"")
    with pytest.raises(NotImplementedError, match="receive_messages"):
        Cluster().receive_messages()


def test_messages_arrive_once_in_order_and_nowhere_else() -> None:
    hub = MemoryHub()
    first, second, third = (MemoryCluster(hub, id, ONE) for id in ("n1", 2, "n3"))
    for number in range(100):
        first.send_message(2, b"%d" % number)
    assert second.receive_messages() == [b"%d" % number for number in range(100)]
    assert second.receive_messages() == []
    assert third.receive_messages() == first.receive_messages() == []


def test_a_message_is_the_bytes_of_the_moment_it_was_sent() -> None:
    hub = MemoryHub()
    first, second = MemoryCluster(hub, "n1", ONE), MemoryCluster(hub, "n2", ONE)
    message = bytearray(b"before")
    first.send_message("n2", message)  # type: ignore[arg-type]
    message[:] = b"after!"
    assert second.receive_messages() == [b"before"]


def test_what_is_sent_to_nobody_is_lost_quietly() -> None:
    hub = MemoryHub()
    MemoryCluster(hub, "n1", ONE).send_message("n2", b"lost")
    assert MemoryCluster(hub, "n2", ONE).receive_messages() == []


def test_nodes_of_different_clusters_do_not_meet_but_clients_are_reached_from_each() -> None:
    hub = MemoryHub()
    ours, theirs = MemoryCluster(hub, "n1", ONE), MemoryCluster(hub, "n1", OTHER)
    client = MemoryCluster(hub, "~client")
    ours.send_message("n1", b"to ours")
    theirs.send_message("~client", b"from theirs")
    ours.send_message("~client", b"from ours")
    client.set_cluster(OTHER)
    client.send_message("n1", b"to theirs")
    assert ours.receive_messages() == [b"to ours"]
    assert theirs.receive_messages() == [b"to theirs"]
    assert client.receive_messages() == [b"from theirs", b"from ours"]


def test_a_receiver_that_never_looks_costs_a_bounded_number_of_messages() -> None:
    hub = MemoryHub(inbox_messages=10)
    first, second = MemoryCluster(hub, "n1", ONE), MemoryCluster(hub, "n2", ONE)
    for number in range(100):
        first.send_message("n2", b"%d" % number)
    assert second.receive_messages() == [b"%d" % number for number in range(10)]


def test_a_test_can_lose_the_messages_it_chooses() -> None:
    hub = MemoryHub(drop=lambda source, target, message: message.endswith(b"5"))
    first, second = MemoryCluster(hub, "n1", ONE), MemoryCluster(hub, "n2", ONE)
    for number in range(10):
        first.send_message("n2", b"%d" % number)
    assert b"5" not in second.receive_messages()


@pytest.mark.parametrize("wakes", ["wake", "message"])
def test_a_wait_of_an_hour_ends_when_there_is_something(wakes: str) -> None:
    hub = MemoryHub()
    first, second = MemoryCluster(hub, "n1", ONE), MemoryCluster(hub, "n2", ONE)
    thread = threading.Thread(target=second.wait, args=(3600,))
    thread.start()
    if wakes == "wake":
        second.wake()
    else:
        first.send_message("n2", b"!")
    thread.join(30)
    assert not thread.is_alive()


def test_a_wake_before_the_wait_is_not_lost() -> None:
    cluster = MemoryCluster(MemoryHub(), "n1", ONE)
    cluster.wake()
    cluster.wait(3600)


def test_no_message_is_lost_between_two_threads() -> None:
    hub = MemoryHub()
    first, second = MemoryCluster(hub, "n1", ONE), MemoryCluster(hub, "n2", ONE)
    received: list[bytes] = []

    def receive() -> None:
        while len(received) < 20_000:
            second.wait(30)
            received.extend(second.receive_messages())

    thread = threading.Thread(target=receive)
    thread.start()
    for number in range(20_000):
        first.send_message("n2", b"%d" % number)
    thread.join(60)
    assert received == [b"%d" % number for number in range(20_000)]


def test_the_directory_holds_the_newest_record_of_each_until_it_closes() -> None:
    hub = MemoryHub()
    first, second = MemoryCluster(hub, "n1", ONE), MemoryCluster(hub, "n2", ONE)
    first.announce({"id": "n1", "cluster": ONE.hex(), "leader": None})
    second.announce({"id": "n2", "cluster": ONE.hex(), "leader": None})
    first.announce({"id": "n1", "cluster": ONE.hex(), "leader": "n2"})
    records = {record["id"]: record["leader"] for record in second.directory()}
    assert records == {"n1": "n2", "n2": None}
    first.close()
    assert [record["id"] for record in second.directory()] == ["n2"]


def test_a_restarted_process_takes_its_inbox_over_and_the_old_one_cannot_close_it() -> None:
    hub = MemoryHub()
    old, sender = MemoryCluster(hub, "n1", ONE), MemoryCluster(hub, "n2", ONE)
    sender.send_message("n1", b"to the old one")
    new = MemoryCluster(hub, "n1", ONE)
    old.close()
    sender.send_message("n1", b"to the new one")
    assert new.receive_messages() == [b"to the new one"]


def test_memory_urls_of_one_name_meet_and_others_do_not() -> None:
    name = uuid.uuid4().hex
    first = open_memory(f"memory://{name}", own_id="n1", cluster=ONE, prefix="raftplug", settings=None)
    second = open_memory(f"memory://{name}", own_id="n2", cluster=ONE, prefix="raftplug", settings=None)
    stranger = open_memory(f"memory://{name}-2", own_id="n2", cluster=ONE, prefix="raftplug", settings=None)
    first.send_message("n2", b"hello")
    assert (second.receive_messages(), stranger.receive_messages()) == ([b"hello"], [])


def test_a_memory_url_needs_a_name() -> None:
    with pytest.raises(InvalidArgument, match="name"):
        open_memory("memory://", own_id="n1", cluster=ONE)
