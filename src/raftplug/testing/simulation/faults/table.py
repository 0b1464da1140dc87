"""Each fault by its name, and the stories that some of them tell together."""

from __future__ import annotations

FAULTS: dict[str, str] = {
    "drop": "a frame is lost",
    "frame_damaged": "a bit of a signed frame flips on its way",
    "duplicate": "a frame is delivered twice",
    "delay": "a frame takes up to two seconds",
    "reorder": "a frame overtakes those before it",
    "replay": "an old frame is delivered again",
    "foreign_frames": "frames of another cluster of the same names, and of its founding, are delivered",
    "resend": "a node says something again, up to two seconds later, as if it were new",
    "late_vote": "the answer to a vote request takes up to two seconds",
    "lose_snapshot": "a snapshot that a leader offers is not heard of",
    "snapshot_piece_lost": "a piece of a snapshot, or the request for it, is lost",
    "snapshot_piece_damaged": "a piece of a snapshot arrives as something else",
    "snapshot_piece_rot": "a bit of what a process has fetched of a snapshot flips on its disk",
    "operator_snapshot": "an operator has some node make a snapshot now",
    "crash_in_fetch": "a process is killed while it fetches a snapshot",
    "overtake_snapshot": "a new node whose first snapshot says nothing of it is cut off until there is a newer one",
    "cut_one_way": "a link loses everything in one direction for a while",
    "cut_both_ways": "a link loses everything in both directions for a while",
    "clog": "a link holds everything for a while, then delivers it at once",
    "isolate": "a node is cut off from all others for a while",
    "partition": "the nodes fall into two halves for a while",
    "redis_down": "the Redis takes and gives nothing for a while",
    "redis_flush": "everything that was under way is gone",
    "redis_lose_suffix": "one inbox loses what came last",
    "redis_full": "the Redis refuses every write for a while",
    "redis_rewind": "a successor of the Redis lacks an inbox's last entries, and its clock is behind",
    "old_inbox": "a process that starts reads again what its inbox still holds",
    "crash": "a process is killed; a write under way is lost",
    "stop": "a process is stopped: a leader hands over, and each caller that waits is answered",
    "crash_after_sync": "a process is killed after a sync and before it heard of it",
    "crash_new_leader": "a leader is killed a moment after its election",
    "cut_off_new_leader": "a leader loses some of its links a moment after its election",
    "restart_all": "all processes are killed at once",
    "pause": "a process stands still for a while, then goes on",
    "clock_fast": "a process's clock runs up to twice as fast",
    "clock_slow": "a process's clock runs two or ten times too slow",
    "clock_jump": "a process's monotonic clock leaps ahead",
    "session_expiry": "a leader's clock leaps so far that sessions end which nobody has used since",
    "slow_disk": "a process's writes take up to three seconds each for a while",
    "write_error": "a write fails, and nobody can say how much of it is on disk",
    "disk_full": "a disk has no space for a while",
    "bit_flip": "a bit on the disk of a dead process flips; its restart must notice",
    "row_loss": "a row on the disk of a dead process is gone; its restart must notice",
    "row_swap": "two rows on the disk of a dead process change places; its restart must notice",
    "lose_disk": "a node's disk is lost; it starts on an empty one, and an operator makes it a new member",
    "lose_quorum": "all disks but one are lost; its node becomes the only voter, and the others are added as new ones",
    "restore_backup": "all disks are lost; the founders start on what a backup holds, and are another cluster",
    "older_file": "a dead node's disk is put back as it was before its last start; the others must refuse it",
    "start_twice": "a copy of a running node's directory is started; the original must stop",
    "node_burst": "a node's own process proposes many transitions at once",
    "early_request": "a candidate hears its voters, and of clients that count on it, all at once",
    "mute_candidate": "a candidate is not heard by some any more once it has asked for votes",
    "strand_leader": "a leader is cut off from all others, and its clock hardly runs",
    "change_members": "an operator adds, removes, promotes or demotes a node, or adds a witness",
    "come_back": "a node that was just removed is added again, with an empty disk",
    "crash_in_change": "a leader is killed a moment after it began to change the members",
    "cut_off_newcomer": "a node is cut off from all others the moment it is to become a voter",
    "rotate_keys": "an operator rotates the cluster's key: the processes start anew with other keys, one by one",
    "transfer_leadership": "an operator moves leadership to some node",
    "quiet_wanted": "nobody asks anything for a while, so that groups go quiet",
    "slow_apply": "a state machine takes up to ten seconds for whatever it does, for a while",
    "diverge": "a state machine's state changes by itself; its replica must be named",
    "reluctant_node": "a node that starts prefers not to lead, and waits longer before it campaigns",
    "deaf_leader": "a leader that hands over hears nobody any more once its successor campaigns, and is asked",
    "late_answers": "answers to a leader come up to a second late, and nothing else does; it is asked meanwhile",
    "early_rival": "all who hear a leader start anew while one who does not campaigns; the leader is asked meanwhile",
    "slow_observer": "an observer of a node's events takes none for a while; it is told how many it missed",
    "raising_observer": "an observer of a node's events raises at each of them",
    "client_crash": "a client is gone, with everything that it waited for",
    "little_room": "a leader may hold a few uncommitted transitions only, and refuses more",
    "client_burst": "a client begins many operations at once",
}


# What a seed may be about, beside what chance brings: nothing, elections that half succeed, snapshots, members, slow
# and broken state machines.
THEMES: tuple[tuple[tuple[str, ...], dict[str, int]], ...] = (
    ((), {}),
    (
        ("mute_candidate", "cut_off_new_leader", "crash_new_leader", "node_burst", "late_vote", "resend", "isolate"),
        {"max_append_bytes": 200, "max_pending": 100_000},
    ),
    (
        ("lose_snapshot", "resend", "old_inbox", "redis_rewind", "crash", "cut_both_ways"),
        {"snapshot_entries": 20, "keep_entries": 0},
    ),
    (
        (
            "snapshot_piece_lost",
            "snapshot_piece_damaged",
            "snapshot_piece_rot",
            "crash_in_fetch",
            "operator_snapshot",
            "isolate",
            "cut_both_ways",
            "restart_all",
        ),
        {"snapshot_entries": 20, "keep_entries": 0, "snapshot_piece_bytes": 60, "snapshot_window_bytes": 150},
    ),
    (
        (
            "change_members",
            "come_back",
            "cut_off_newcomer",
            "crash_in_change",
            "transfer_leadership",
            "lose_disk",
            "cut_off_new_leader",
            "crash",
        ),
        {},
    ),
    (
        ("overtake_snapshot", "come_back", "crash", "operator_snapshot"),
        {"snapshot_entries": 20, "keep_entries": 0, "snapshot_piece_bytes": 60},
    ),
    (
        ("quiet_wanted", "crash", "isolate", "cut_one_way", "pause", "clock_jump", "session_expiry"),
        {"quiet_after_ms": 200},
    ),
    (
        ("slow_apply", "node_burst", "diverge", "lose_snapshot", "old_inbox", "cut_both_ways", "isolate"),
        {"snapshot_entries": 20, "keep_entries": 0, "digest_entries": 8, "max_unapplied_bytes": 500},
    ),
    (("lose_disk", "lose_quorum", "restore_backup", "old_inbox", "replay", "isolate"), {}),
    (("older_file", "start_twice", "restart_all", "crash"), {}),
)
# Those of them that are long stories: mostly they are told where little else happens.
LONG = tuple(
    theme
    for theme in THEMES
    if theme[0][:1] in (("lose_disk",), ("older_file",), ("overtake_snapshot",)) or "crash_in_fetch" in theme[0]
)
CLOCKS = frozenset({"clock_fast", "clock_slow", "clock_jump", "session_expiry", "strand_leader"})
OF_DIRECTORIES = frozenset(
    {"lose_disk", "lose_quorum", "restore_backup", "older_file", "start_twice", "overtake_snapshot", "come_back"}
)
THEMED = frozenset({"diverge"})  # Faults that happen only where a seed is about them.
# Somebody else leads while a leader may think that it has a lease: only where there are any.
LEASED = ("deaf_leader", "late_answers", "early_rival")
