"""Clients: what they ask, of whom, and what they are told."""

from mutants.mutant import Mutant

CLIENT = "client.py"


MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "replies to another process are taken",
        CLIENT,
        "ClientLoop._receive",
        "if nonce == self._sender.nonce:",
        "if True:",
        tests=("tests/test_client.py::test_frames_and_replies_that_are_not_for_us_change_nothing",),
    ),
    Mutant(
        "frames of another cluster are taken",
        CLIENT,
        "ClientLoop._receive",
        "        if frame.cluster != self._sender.cluster:\n            return\n        self._lives",
        "        self._lives",
        tests=("tests/test_client.py::test_frames_and_replies_that_are_not_for_us_change_nothing",),
    ),
    Mutant(
        "frames to others are taken",
        CLIENT,
        "ClientLoop._receive",
        "frame.target != self._own_id or ",
        "",
        tests=("tests/test_client.py::test_frames_and_replies_that_are_not_for_us_change_nothing",),
    ),
    Mutant(
        "replies of another group are taken",
        CLIENT,
        "ClientLoop._receive",
        "item.kind != REPLY or item.group != self._number",
        "item.kind != REPLY",
        tests=("tests/test_client.py::test_frames_and_replies_that_are_not_for_us_change_nothing",),
    ),
    Mutant(
        "two clusters of a group: one is taken",
        CLIENT,
        "ClientLoop._look",
        "if len(alive) > 1:",
        "if len(alive) > 9:",
        tests=("tests/test_client.py::test_two_clusters_of_one_group_name_are_refused_by_name",),
    ),
    Mutant(
        "dead clusters are in the way",
        CLIENT,
        "ClientLoop._look",
        "if newest - at[key] <= _DEAD_MS",
        "if True",
        tests=("tests/test_client.py::test_a_cluster_that_has_not_been_heard_of_for_long_is_no_conflict",),
    ),
    Mutant(
        "a client changes its cluster",
        CLIENT,
        "ClientLoop._look",
        "alive = [key for key in alive if key[0] == self._names]",
        "pass",
        tests=("tests/test_client.py::test_a_client_stays_with_the_cluster_that_it_found",),
    ),
    Mutant(
        "recovered clusters' old records count",
        CLIENT,
        "ClientLoop._look",
        "if not key[1] or key[1] not in replaced",
        "if True",
        tests=("tests/test_founding.py::test_a_node_that_joins_a_recovered_cluster_takes_its_last_id[python]",),
    ),
    Mutant(
        "records are believed without a signature",
        CLIENT,
        "ClientLoop._look",
        "if known is not None and not is_ours(record, self._keys):",
        "if False:",
        tests=("tests/test_key.py::test_the_key_of_the_environment_is_taken",),
    ),
    Mutant(
        "a frame grows without limit",
        CLIENT,
        "ClientLoop._flush",
        "if size and size + len(item[2]) > _FRAME_BYTES:",
        "if False:",
        tests=("tests/test_client.py::test_what_is_asked_in_one_turn_travels_in_one_frame_unless_it_is_large",),
    ),
    Mutant(
        "a split frame loses what is over the limit",
        CLIENT,
        "ClientLoop._flush",
        "start, size = end, 0",
        "start, size = end + 1, 0",
        tests=("tests/test_client.py::test_what_is_asked_in_one_turn_travels_in_one_frame_unless_it_is_large",),
    ),
)
