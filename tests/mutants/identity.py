"""Whose frames and requests count: the cluster's id, recorded requests, lost acknowledgements."""

from mutants.mutant import Mutant

FOUNDING = "founding.py"
SENDERS = "senders.py"
DRIVER = "driver.py"
NODE = "node.py"
RAFT = "raft.py"
RECOVERY = "recovery.py"
APPLY = "apply.py"

_FOREIGN = ("foreign_frames", "crash")
_TESTS = "tests/test_founding.py::test_"

MUTANTS = (
    Mutant(
        "a frame of another cluster is believed",
        FOUNDING,
        "Founding.judge",
        "return UNKNOWN if frame.cluster == self.names else FOREIGN",
        "return BELIEVED",
        faults=_FOREIGN,
    ),
    Mutant(
        "a founder believes processes that did not greet it",
        FOUNDING,
        "Founding.judge",
        "if self._greeted.get(frame.source) != frame.nonce:",
        "if False:",
        faults=_FOREIGN,
    ),
    Mutant(
        "a greeting of an earlier process counts",
        FOUNDING,
        "Founding.judge",
        "item.kind == GREETING and item.body == self._greeting",
        "item.kind == GREETING",
        faults=_FOREIGN,
    ),
    Mutant(
        "a founder does not ask a node that has restarted to greet it",
        FOUNDING,
        "Founding.judge",
        "self._spoken.pop(frame.source, None)",
        "pass",
        tests=(_TESTS + "a_founder_that_knows_no_id_hears_a_node_that_knows_it_again_after_its_restart[python]",),
    ),
    Mutant(
        "a founder answers with the names only",
        FOUNDING,
        "Founding.id_for",
        "return self.id or self._spoken.get(target, self.names)",
        "return self.id or self.names",
        tests=(_TESTS + "a_founder_that_knows_no_id_makes_a_quorum_with_one_that_does[python]",),
    ),
    Mutant(
        "an id that the cluster had before a recovery is taken",
        DRIVER,
        "Driver._learn_cluster",
        "if cluster and (leader == self.id or founding.id_for(leader) in (founding.names, cluster)):",
        "if cluster:",
        tests=(_TESTS + "a_node_that_joins_a_recovered_cluster_takes_its_last_id[python]",),
    ),
    Mutant(
        "transitions are acknowledged before the cluster has an id",
        DRIVER,
        "Driver._is_founding",
        "return self._founding is not None and self._founding.id is None",
        "return False",
        tests=(_TESTS + "nothing_is_acknowledged_before_the_cluster_has_an_id[python]",),
    ),
    Mutant(
        "a founder takes part in a cluster with another directory under its id",
        DRIVER,
        "Driver._check_founding",
        "if not self._joined and",
        "if self._joined and",
        tests=(_TESTS + "a_new_directory_that_is_founded_under_a_known_id_stops_and_says_what_to_do[python]",),
    ),
    Mutant(
        "the cluster's id is not on the disk",
        NODE,
        "NodeLoop._learn_cluster",
        "self._storage.found(id)",
        "pass",
        tests=(_TESTS + "the_id_is_known_after_a_restart_and_no_other_is_taken[python]",),
    ),
    Mutant(
        "a recovered cluster keeps its id",
        RECOVERY,
        "recovered_id",
        'return founding_id(identity.founded, {identity.node: identity.storage + identity.boot.to_bytes(8, "little")})',
        "return identity.founded",
        tests=(_TESTS + "a_cluster_that_is_recovered_has_another_id_and_hears_the_lost_nodes_no_more[python]",),
    ),
    Mutant(
        "members are changed for any configuration",
        DRIVER,
        "Driver._change_members",
        "if target != now and index != self.raft.configuration_index:",
        "if False:",
        tests=(_TESTS + "a_recorded_request_to_change_members_changes_nothing_again[python-False]",),
    ),
    Mutant(
        "a request hands leadership over again within its term",
        DRIVER,
        "Driver._on_request",
        "if (term, transfers) == (self.raft.term, self._transfers):",
        "if term == self.raft.term:",
        tests=(_TESTS + "a_recorded_request_to_hand_over_moves_no_leadership_again[python]",),
    ),
    Mutant(
        "a client that was forgotten raises no floor",
        SENDERS,
        "Senders.judge",
        "self._floor = max(self._floor, boot)",
        "pass",
        tests=(_TESTS + "a_client_that_was_forgotten_is_asked_to_count_on_and_goes_on[python]",),
    ),
    Mutant(
        "one message raises a term to the end",
        RAFT,
        "Raft._become_follower",
        "self._enter_term(term if term - self.term < TERMS_AHEAD else self.term + TERMS_AHEAD, None)",
        "self._enter_term(term, None)",
        tests=("tests/test_rules.py::test_one_message_does_not_use_up_the_terms[python-6]",),
    ),
    Mutant(
        "what a message of a term far ahead says counts",
        RAFT,
        "Raft.step",
        "return  # Its term is reached in steps: see `_become_follower`.",
        "pass",
        tests=("tests/test_scenarios.py::test_a_story_goes_as_it_is_told[python-forged_term]",),
    ),
    Mutant(
        "a late rejection is taken for a loss",
        RAFT,
        "Raft._doubt",
        "elif context >= progress.doubted:",
        "else:",
        tests=("tests/test_scenarios.py::test_a_story_goes_as_it_is_told[python-acknowledged_entries_are_lost]",),
    ),
    Mutant(
        "a node that lost what it acknowledged is not told",
        DRIVER,
        "Driver._notice_loss",
        "self._send(source, DISPLACED, life(storage, nonce))",
        "pass",
        tests=("tests/test_identity.py::test_a_follower_that_lost_what_it_acknowledged_is_reported_and_stops[python]",),
    ),
    Mutant(
        "an entry that cannot be decoded stops the replica",
        APPLY,
        "Applier._take",
        "except MalformedMessage as error:",
        "except KeyError as error:",
        tests=("tests/test_apply.py::test_an_entry_that_cannot_be_decoded_stops_no_replica_also_not_at_a_restart",),
    ),
    Mutant(
        "members that no version can read stop the replica",
        RAFT,
        "Raft._adopt",
        "except MalformedMessage:",
        "except KeyError:",
        tests=("tests/test_scenarios.py::test_a_story_goes_as_it_is_told[python-entry_without_members]",),
    ),
    Mutant(
        "who is refused for what it answered is not told why",
        SENDERS,
        "Senders.judge",
        "item.kind in ABOUT_LIVES and item.kind != LIVES for item",
        "item.kind in ABOUT_LIVES for item",
        faults=("older_file", "start_twice", "restart_all", "crash"),
    ),
)
