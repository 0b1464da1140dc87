"""What moves bytes."""

from mutants.mutant import Mutant

STREAM_IDS = "stream_ids.py"
REDIS_STREAMS = "redis_streams.py"
CLUSTER = "cluster.py"

MUTANTS = (
    Mutant(
        "cursor not reset",
        STREAM_IDS,
        "Cursor.compare",
        "if self.id is not None and number(last) < number(self.id):",
        "if False:",
    ),
    Mutant(
        "the inbox's expiry is not refreshed",
        REDIS_STREAMS,
        "RedisStreams._keep",
        "elif self._inbox_state == _READY and now >= self._refresh_at:",
        "elif False:",
        tests=("tests/test_redis_streams.py::test_an_inbox_in_use_does_not_expire[valkey]",),
    ),
    Mutant(
        "the inbox's expiry is refreshed once only",
        REDIS_STREAMS,
        "RedisStreams._keep",
        "self._refresh_at = now + _REFRESH_S",
        "self._refresh_at = now + 1e9",
        tests=("tests/test_redis_streams.py::test_an_inbox_in_use_does_not_expire[valkey]",),
    ),
    Mutant(
        "a new inbox has no end",
        REDIS_STREAMS,
        "RedisStreams._answer",
        '            # Only now: a key that refuses an XADD is somebody else\'s, and must not be given an end.\n            self._command(slot, _KEPT, self._inbox, b"EXPIRE", self._inbox, b"%d" % TTL_S)\n',
        "",
        tests=("tests/test_redis_streams.py::test_an_inbox_that_is_gone_is_made_again_when_idle[valkey-RESP2]",),
    ),
    Mutant(
        "the directory has no end",
        REDIS_STREAMS,
        "RedisStreams._answer",
        'self._command(slot, _KEPT, self._list, b"EXPIRE", self._list, b"%d" % TTL_S)',
        "pass",
        tests=("tests/test_redis_streams.py::test_every_key_expires_by_itself[valkey]",),
    ),
    Mutant(
        "an inbox that is gone is not made again",
        REDIS_STREAMS,
        "RedisStreams._gone",
        "        if not self._making(slot):\n            self._make_inbox(slot, now)",
        "        pass",
        tests=("tests/test_redis_streams.py::test_messages_flow_again_after_flushall[valkey]",),
    ),
    Mutant(
        "a full inbox takes more",
        CLUSTER,
        "MemoryCluster.send_message",
        " or len(target._inbox) >= hub.inbox_messages",
        "",
        tests=("tests/test_cluster.py::test_a_receiver_that_never_looks_costs_a_bounded_number_of_messages",),
    ),
    Mutant(
        "an old process closes its successor's inbox",
        CLUSTER,
        "MemoryCluster.close",
        "if self._hub.members.get(self._address) is self:",
        "if True:",
        tests=("tests/test_cluster.py::test_a_restarted_process_takes_its_inbox_over_and_the_old_one_cannot_close_it",),
    ),
    Mutant(
        "a message changes after it was sent",
        CLUSTER,
        "MemoryCluster.send_message",
        "bytes(message)",
        "message",
        tests=("tests/test_cluster.py::test_a_message_is_the_bytes_of_the_moment_it_was_sent",),
    ),
)
