"""Plants one bug at a time in a copy of the sources, and asks whether the simulator finds it.

    python tests/mutation_gate.py --json            # the whole gate
    python tests/mutation_gate.py --sample 4        # a few of them, as the suite does
    python tests/mutation_gate.py --only "no no-op"

Each mutant is a change of one place.  It runs on the Python core, from a copied tree that is first on the path (the
child says where its modules came from, and that is checked).  Killed means that a named invariant or the liveness phase
failed, with a seed; an import error, a crash of the harness or a time-out is an error, and no kill.  The unmutated
source and two changes that change nothing must survive.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parent.parent / "src"
SEEDS = 500
PATIENCE_S = 900


@dataclass(frozen=True)
class Mutant:
    """One planted bug: in `file`, the only `old` becomes `new`."""

    name: str
    file: str
    old: str
    new: str


EQUIVALENT = (
    Mutant("equivalent: nothing", "raft.py", "", ""),
    Mutant(
        "equivalent: order of a conjunction",
        "raft.py",
        "self.role == CANDIDATE and message.flag",
        "message.flag and self.role == CANDIDATE",
    ),
    Mutant(
        "equivalent: max the other way round",
        "raft.py",
        "self.stable = max(self.stable, self._writing_last)",
        "self.stable = max(self._writing_last, self.stable)",
    ),
)

MUTANTS = (
    Mutant(
        "quiet although a follower lags",
        "quiescence.py",
        "        if not awaited and raft.configuration.has_quorum(",
        "        if raft.configuration.has_quorum(",
    ),
    Mutant(
        "quiet without knowing what is committed",
        "raft.py",
        "self.leader is not None and self.commit == self.stable == self.log.last_index",
        "self.leader is not None and self.stable == self.log.last_index",
    ),
    Mutant(
        "quiet group not woken when a node restarts",
        "node.py",
        "        if is_new or id in self._lost:",
        "        if id in self._lost:",
    ),
    Mutant(
        "quiet group not woken when a node is lost",
        "node.py",
        "peer=id, reachable=False)\n                self._wake(id)",
        "peer=id, reachable=False)",
    ),
    Mutant(
        "quiet group not woken when a node is back",
        "node.py",
        "            self._lost.discard(id)\n            self._wake(id)",
        "            self._lost.discard(id)\n            if is_new:\n                self._wake(id)",
    ),
    Mutant(
        "quiet leader not woken by what it has to do",
        "raft.py",
        "            if self.quiet and not self.is_idle():\n                self.wake()\n",
        "",
    ),
    Mutant("no vote persisted", "driver.py", "            vote=self.raft.vote,\n", "            vote=None,\n"),
    Mutant(
        "vote before fsync",
        "raft.py",
        "        if self._hard_durable:\n            self._out.append(message)\n        else:\n            self._held.append(message)",
        "        self._out.append(message)",
    ),
    Mutant(
        "ack before fsync",
        "raft.py",
        "durable: cython.longlong = min(self._verified, self.stable)",
        "durable: cython.longlong = self._verified",
    ),
    Mutant(
        "leader counts itself before fsync",
        "raft.py",
        "= quorum_match(self.configuration.voters, self.progress, self.id, self.stable)",
        "= quorum_match(self.configuration.voters, self.progress, self.id, self.log.last_index)",
    ),
    Mutant(
        "commit by counting an old-term entry",
        "raft.py",
        "if index > self.commit and self.log._term_at(index) == self.term:",
        "if index > self.commit:",
    ),
    Mutant(
        "log comparison by index only",
        "raft.py",
        "        if message.log_term != self.log.last_term:\n            return message.log_term > self.log.last_term\n",
        "",
    ),
    Mutant(
        "log comparison left out",
        "raft.py",
        "        return message.index >= self.log.last_index",
        "        return True",
    ),
    Mutant(
        "quorum n/2 for elections",
        "configuration.py",
        "    return 2 * count > len(voters)",
        "    return 2 * count >= len(voters) - 1",
    ),
    Mutant(
        "quorum n/2 for commits",
        "_core_py.py",
        "    return matches[(len(matches) - 1) // 2]",
        "    return matches[(len(matches) + 1) // 2]",
    ),
    Mutant(
        "votes counted as a number, not a set",
        "raft.py",
        "        self._votes.add(voter)  # A set",
        "        self._votes.add(next((each for each in self.configuration.voters if each not in self._votes), voter))  # A set",
    ),
    Mutant(
        "stale vote response counted",
        "raft.py",
        "        elif message.term < self.term:\n            self._refuse_stale(message)\n            return\n",
        "        elif message.term < self.term and message.kind != VOTE_RESPONSE:\n            self._refuse_stale(message)\n            return\n",
    ),
    Mutant(
        "messages of older terms accepted",
        "raft.py",
        "        elif message.term < self.term:\n            self._refuse_stale(message)\n            return\n",
        "",
    ),
    Mutant(
        "second vote in a term",
        "raft.py",
        "            self.vote == message.peer or (self.vote is None and self.leader is None)\n        ) and self",
        "            True\n        ) and self",
    ),
    Mutant(
        "truncate always on append",
        "raft.py",
        "            if first:  # Only",
        "            first = previous + 1\n            if first:  # Only",
    ),
    Mutant(
        "truncate committed",
        "raft.py",
        "        self._term_start = self.log.append(",
        "        self._truncate(self.commit + 1)\n        self._term_start = self.log.append(",
    ),
    Mutant(
        "conflict not truncated",
        "raft.py",
        "                if first <= self.log.last_index:\n                    self._truncate(first)\n                self.log._extend(message.data, first)",
        "                if first > self.log.last_index:\n                    self.log._extend(message.data, first)",
    ),
    Mutant(
        "previous-term check skipped",
        "raft.py",
        "        if self.log._term_at(previous) != message.log_term:",
        "        if self.log._term_at(previous) < 0:",
    ),
    Mutant(
        "commit not clamped to what was verified",
        "raft.py",
        "self.commit = max(self.commit, min(message.commit, verified))",
        "self.commit = max(self.commit, min(message.commit, self.log.last_index))",
    ),
    Mutant(
        "match index from the follower's last index",
        "raft.py",
        "        verified: cython.longlong = previous\n",
        "        verified: cython.longlong = self.log.last_index\n",
    ),
    Mutant(
        "no no-op",
        "raft.py",
        'self._term_start = self.log.append(self.term, NOOP, b"")',
        "self._term_start = self.log.last_index",
    ),
    Mutant(
        "read without a quorum round",
        "raft.py",
        "            if not self.configuration.has_quorum(answered):\n                return\n",
        "",
    ),
    Mutant("read acknowledged without round id", "raft.py", "if progress.round >= number:", "if progress.contact > 0:"),
    Mutant(
        "read before the no-op commits",
        "raft.py",
        "if self._new_reads and self.commit >= self._term_start:",
        "if self._new_reads:",
    ),
    Mutant(
        "read answered before its index is applied",
        "driver.py",
        "return bool(self._reads) and self._reads[0].index <= self._applied",
        "return bool(self._reads)",
    ),
    Mutant(
        "pre-vote raises the term",
        "raft.py",
        "        # Nothing of ours changes: no term, no vote, no timer.\n",
        "        if message.term > self.term:\n            self._become_follower(message.term, None)\n",
    ),
    Mutant(
        "older snapshot installed",
        "raft.py",
        "        if message.index > self.commit:\n            if self",
        "        if message.index > 0:\n            if self",
    ),
    Mutant(
        "snapshot without its index",
        "apply.py",
        "        self.sessions = reader.sessions\n        self.applied = index\n",
        "        self.sessions = reader.sessions\n",
    ),
    Mutant(
        "snapshot without configuration",
        "driver.py",
        "contents(configuration, self.sessions.snapshot(), kind, machine)",
        "contents([['n1'], [], [], [], []], self.sessions.snapshot(), kind, machine)",
    ),
    Mutant(
        "session table not in the snapshot",
        "driver.py",
        "contents(configuration, self.sessions.snapshot(), kind, machine)",
        "contents(configuration, Sessions().snapshot(), kind, machine)",
    ),
    Mutant(
        "duplicate sequence executed again",
        "apply.py",
        "            return self._join(transition, (session, sequence)) if known is None else _as_reply(*known)\n",
        "            if known is None or known[0] == OK:\n"
        "                return self._join(transition, (session, sequence) if known is None else None)\n"
        "            return _as_reply(*known)\n",
    ),
    Mutant(
        "a batch executes duplicates again",
        "apply.py",
        "                self._execute_run()\n                known = self.sessions.admit(session, sequence, below, time_us)\n",
        "                return self._join(transition, None)\n",
    ),
    Mutant("digests not compared", "divergence.py", "known.items() if digest != right]", "known.items() if False]"),
    Mutant(
        "snapshot installed during apply",
        "driver.py",
        "            self._loading = install  # Not now: the machine may be at work, and has to finish that first.\n",
        "            self.applier.load(install)\n            self._loaded(install)\n",
    ),
    Mutant(
        "duplicate remembered by a maximum",
        "sessions.py",
        "        result = found.results.get(sequence)\n",
        "        newest = max(found.results, default=0)\n        result = found.results[newest] if 0 < sequence <= newest else None\n",
    ),
    Mutant(
        "checksum unchecked",
        "storage.py",
        "        if value[: _SEAL.size] != _SEAL.pack(crc32(body, _place_check(table, name, number))):",
        "        if False:",
    ),
    Mutant(
        "cursor not reset",
        "redis_streams.py",
        "        if self.id is not None and _number(last) < _number(self.id):",
        "        if False:",
    ),
    Mutant("queue unbounded", "driver.py", "settings.max_pending - len(self._pending)", "1 << 40"),
    Mutant("calls under way unbounded", "requester.py", "len(self._calls) >= self._settings.max_pending", "False"),
    Mutant(
        "a follower takes entries though its machine is too far behind",
        "driver.py",
        "        if kind == APPEND and self._is_behind():\n",
        "        if False:\n",
    ),
    Mutant(
        "a leader takes transitions though its machine is too far behind",
        "driver.py",
        '        if self._is_behind():\n            return "the leader',
        '        if False:\n            return "the leader',
    ),
    Mutant(
        "who prefers not to lead campaigns as soon as the others",
        "driver.py",
        "lambda _: reluctance + generator.randint(",
        "lambda _: generator.randint(",
    ),
    Mutant(
        "appends in flight unbounded",
        "raft.py",
        "return size < self._window_bytes and progress.in_flight() < self._window_appends",
        "return size < self._window_bytes",
    ),
    Mutant("apply beyond what is on disk", "raft.py", "return min(self.commit, self.stable)", "return self.commit"),
    Mutant(
        "completion of an old write counts for new entries",
        "raft.py",
        "        self._writing_last = min(self._writing_last, index - 1)\n",
        "",
    ),
    Mutant(
        "no step-down without a quorum",
        "raft.py",
        "        if not self.configuration.has_quorum(heard):\n            self._become_follower(self.term, None)\n",
        "",
    ),
    Mutant("step-down keeps the reads", "raft.py", "            self._failed_reads.extend(self._new_reads)\n", ""),
    Mutant(
        "no back-off on a rejection",
        "raft.py",
        "                progress.next = lower\n",
        "",
    ),
    Mutant(
        "lost frames are never sent again",
        "raft.py",
        "                progress.state = PROBE\n                progress.next = progress.match + 1\n                progress.paused = False",
        "                pass",
    ),
    Mutant(
        "a lost snapshot is never sent again",
        "raft.py",
        "        if self.now - progress.sent >= 2 * self._election_timeout:\n            progress.state = PROBE\n",
        "        if False:\n            progress.state = PROBE\n",
    ),
    Mutant(
        "a full disk acknowledges",
        "node.py",
        "        if isinstance(error, DiskFull):\n",
        "        if isinstance(error, DiskFull):\n            error = None\n        if isinstance(error, DiskFull):\n",
    ),
    Mutant(
        "a failed write acknowledges",
        "node.py",
        "        if error is not None:\n            raise error if",
        "        if error is not None and not isinstance(error, StorageFailed):\n            raise error if",
    ),
    Mutant(
        "log not compacted in order",
        "driver.py",
        "            self.raft.snapshot_stored(own.index, self._entries_to_keep(own.index))",
        "            self.raft.snapshot_stored(own.index, -1)",
    ),
    Mutant(
        "two changes of the members in flight",
        "raft.py",
        " or self.commit < self.configuration_index or self.configuration.outgoing:",
        ":",
    ),
    Mutant(
        "members change before the no-op is committed",
        "raft.py",
        "        if self.commit < self._term_start or self.commit < self.configuration_index or self",
        "        if self.commit < self.configuration_index or self",
    ),
    Mutant(
        "learner counted in the quorum",
        "raft.py",
        "= quorum_match(self.configuration.voters, ",
        "= quorum_match(self.configuration.voters + self.configuration.learners, ",
    ),
    Mutant(
        "leader counts itself after its removal",
        "_core_py.py",
        "for voter in voters])\n",
        "for voter in (voters if own_id in voters else (*voters, own_id))])\n",
    ),
    Mutant(
        "configuration not rolled back",
        "raft.py",
        "        if self.configuration_index >= index:\n",
        "        if False:\n",
    ),
    Mutant(
        "joint configuration elects with one majority",
        "configuration.py",
        " and (not self.outgoing or _majority(self.outgoing, supporters))",
        "",
    ),
    Mutant(
        "joint configuration commits with one majority",
        "raft.py",
        "            index = min(index, quorum_match(self.configuration.outgoing, self.progress, self.id, self.stable))\n",
        "            pass\n",
    ),
    Mutant(
        "promoted learner refuses to vote",
        "raft.py",
        "        ) and self._may_elect(message)\n        if granted:",
        "        ) and self._may_elect(message) and self.configuration.is_voter(self.id)\n        if granted:",
    ),
    Mutant(
        "a frame's signature is not verified",
        "frames.py",
        "if keys and not _is_signed(data[:end]",
        "if keys and False and not _is_signed(data[:end]",
    ),
    Mutant(
        "only the first of two keys is accepted",
        "frames.py",
        "    for key in keys:  # noqa: SIM110",
        "    for key in keys[:1]:  # noqa: SIM110",
    ),
    Mutant(
        "a change of the members is answered when the one before it is over",
        "driver.py",
        "            if first <= index:\n",
        "            if True:\n",
    ),
    Mutant(
        "uncommitted bytes unbounded",
        "driver.py",
        "settings.max_uncommitted_bytes - uncommitted",
        "1 << 40",
    ),
    Mutant(
        "lease kept over a transfer",
        "raft.py",
        "not (self.quiet or self._transferred)",
        "not self.quiet",
    ),
    Mutant(
        "lease from the answer on",
        "raft.py",
        "self._lease_until = began + self._lease",
        "self._lease_until = self.now + self._lease",
    ),
    Mutant(
        "newer term ends the promise behind a lease",
        "raft.py",
        "(heard and (self.leader is not None or self._lease > 0))",
        "(heard and self.leader is not None)",
    ),
    Mutant(
        "answers of a lost disk are counted",
        "driver.py",
        "        if kind in _COUNTED and storage is not None and not self._is_known(message, source, storage):",
        "        if kind in _COUNTED and storage is not None and not self._is_known(message, source, storage) and False:",
    ),
    Mutant(
        "an older boot is accepted",
        "senders.py",
        "told = _nonce_told(frame, boot) if frame.boot > boot else -1",
        "told = _nonce_told(frame, boot) if frame.boot > boot else nonce if frame.boot < boot else -1",
    ),
    Mutant(
        "a copy is accepted",
        "senders.py",
        "told = _nonce_told(frame, boot) if frame.boot > boot else -1",
        "told = _nonce_told(frame, boot) if frame.boot > boot else nonce if frame.boot == boot else -1",
    ),
    Mutant(
        "an older file is accepted once it was started often",
        "senders.py",
        "told = _nonce_told(frame, boot) if frame.boot > boot else -1",
        "told = nonce if frame.boot > boot else -1",
    ),
    Mutant(
        "whose directory is older is not told",
        "senders.py",
        "return Verdict(False, reason, DISPLACED, life(frame.storage, frame.nonce))",
        "return Verdict(False, reason)",
    ),
    Mutant(
        "the highest boot is not kept on disk",
        "node.py",
        "            self._storage.commit(writes, heard)",
        "            self._storage.commit(writes)",
    ),
    Mutant(
        "the highest boot is not read from the disk",
        "storage.py",
        "            cluster, self.heard = found.cluster, heard\n",
        "            cluster = found.cluster\n",
    ),
    Mutant(
        "who lost its disk campaigns",
        "raft.py",
        "        return len(voting) > 0 and not self.is_displaced() and self._may_vote()\n",
        "        return len(voting) > 0 and self._may_vote()\n",
    ),
    Mutant(
        "who joined votes before the log names its directory",
        "raft.py",
        "return not self._joined or self.storage in",
        "return True or self.storage in",
    ),
    Mutant(
        "promoted before it knows that it is known",
        "raft.py",
        "if not heard or not named or progress.match < self.configuration_index:",
        "if not heard:",
    ),
    Mutant(
        "a snapshot is loaded while a newer one takes its place",
        "driver.py",
        "return self._loading is not None and (self._installing is not None or self._writing_install is not None)",
        "return False",
    ),
    Mutant(
        "a new member is known by its old disk",
        "driver.py",
        "                self._heard_storages.pop(member, None)  # Who comes back may have a new disk.\n",
        "                pass\n",
    ),
    Mutant(
        "who leaves never campaigns",
        "raft.py",
        "        if not self._may_campaign() or",
        "        if not self.configuration.is_voter(self.id) or",
    ),
    Mutant(
        "a change of the leader is not told",
        "driver.py",
        "        if raft.leader != self.leader:\n            self.leader = raft.leader\n",
        "        if raft.leader is not None and raft.leader != self.leader:\n            self.leader = raft.leader\n",
    ),
    Mutant(
        "an observer that raises ends what tells it",
        "events.py",
        "        except Exception:\n            if not has_raised:",
        "        except LookupError:\n            if not has_raised:",
    ),
    Mutant(
        "an observer is not told how many events it lost",
        "events.py",
        "                self._dropped += 1\n",
        "",
    ),
    Mutant(
        "a late answer tells by which directory a member is known",
        "driver.py",
        "answer.term != self.raft.term or ",
        "",
    ),
    Mutant(
        "what a removed directory said tells by which one its member is known",
        "driver.py",
        "(answer.term != self.raft.term or self.raft.is_early(answer, source))",
        "answer.term != self.raft.term",
    ),
    Mutant(
        "what was said before a member came counts",
        "raft.py",
        "if progress is None or self.is_early(message, message.peer):",
        "if progress is None:",
    ),
    Mutant(
        "recovery in the next term only",
        "recovery.py",
        "_TERMS_AHEAD = 1 << 20\n",
        "_TERMS_AHEAD = 1\n",
    ),
    Mutant(
        "recovery keeps the lost voters",
        "recovery.py",
        "core.Configuration([id], storages",
        "core.Configuration(sorted({id, *plain.decode(storage.configuration(group))[0]}), storages",
    ),
    Mutant(
        "transfer never times out",
        "raft.py",
        "if self.transferee is not None and self.now >= self._transfer_deadline:",
        "if False:",
    ),
    Mutant(
        "snapshot with a later configuration",
        "driver.py",
        "configuration = self.raft.configuration_at(index).plain()",
        "configuration = self.raft.configuration.plain()",
    ),
    Mutant(
        "configuration of the log ignored at the start",
        "raft.py",
        "        self._adopt(log.base_index + 1)\n",
        "        self._use_last_configuration()\n",
    ),
    Mutant("learner campaigns", "raft.py", "if not self._may_campaign() or self.term", "if self.term"),
    Mutant(
        "snapshot shown to the rules before its digest is verified",
        "driver.py",
        "snapshots.verify(fetched, map(read, range(fetched.count)))",
        "iter(())",
    ),
    Mutant(
        "number of a piece ignored",
        "snapshots.py",
        "            self._arrived.setdefault(number, data)",
        "            self._arrived.setdefault(next(each for each in self._asked if each not in self._arrived), data)",
    ),
    Mutant(
        "damaged piece taken",
        "snapshots.py",
        " or crc32(data, number) != check",
        "",
    ),
    Mutant(
        "pieces count as stored before they are",
        "snapshots.py",
        "        if writing is not None and writing is self.fetch:\n            self._notice_end(writing)\n",
        "        if self.fetch is not None:\n            self.fetch.have = self.fetch.snapshot.count\n"
        "            self._notice_end(self.fetch)\n",
    ),
    Mutant(
        "current snapshot dropped while it is fetched",
        "snapshots.py",
        "        if self._is_fetched(before, now):\n",
        "        if False:\n",
    ),
    Mutant(
        "snapshot that grows while it is written",
        "testing/simulation/machines.py",
        "        return (captured[at : at + 50] for at in range(0, len(captured), 50))",
        "        return (plain.encode(self.create_snapshot(index, term).data)[at : at + 50] for at in range(0, len(captured), 50))",
    ),
    Mutant(
        "what a machine has on its disk applied again",
        "apply.py",
        "        if index <= self.on_disk:\n            return self._take_again",
        "        if False:\n            return self._take_again",
    ),
    Mutant(
        "logged time runs before the election is noticed",
        "driver.py",
        "        if self.raft.term != self._elected_term:\n",
        "        if self.raft.term != self._elected_term and self._role_term[0] == LEADER:\n",
    ),
    Mutant(
        "a transition of a session that has ended is executed",
        "sessions.py",
        "            if found is None:\n                return SESSION_EXPIRED, None\n",
        "            if found is None:\n                return None\n",
    ),
    Mutant(
        "a session that has ended begins anew",
        "sessions.py",
        "            self._drop(session)\n            return SESSION_EXPIRED, None\n",
        "            found.results.clear()\n",
    ),
    Mutant(
        "a client goes on with a session that has ended",
        "requester.py",
        "        if call.session is self._session:\n            self._session = None\n",
        "        if call.session is self._session:\n",
    ),
    Mutant(
        "what an ended session may have executed passes for not executed",
        "requester.py",
        '        if call.unsettled():\n            text = "the session expired before',
        '        if False:\n            text = "the session expired before',
    ),
    Mutant(
        "who is restored is of the old cluster",
        "backup.py",
        '    return hashlib.blake2b(told, digest_size=16, person=b"raftplug restore").digest()',
        "    from raftplug.frames import cluster_uuid\n\n    return cluster_uuid(group, voters)",
    ),
    Mutant(
        "restored with the old members",
        "backup.py",
        "    stream = snapshots.contents(configuration, ",
        "    stream = snapshots.contents(reader.configuration, ",
    ),
    Mutant(
        "a witness campaigns",
        "raft.py",
        "if each.may_lead(self.id)]",
        "if each.is_voter(self.id)]",
    ),
    Mutant(
        "leadership handed to a witness",
        "raft.py",
        "if p != self.id and self.configuration.may_lead(p)]",
        "if p != self.id]",
    ),
    Mutant(
        "a witness is sent what its leader has not on disk",
        "raft.py",
        "if self.stable < last and not self.configuration.may_lead(progress.peer):",
        "if False:",
    ),
    Mutant(
        "a witness that is removed is sent what its leader has not on disk",
        "raft.py",
        "not self.configuration.may_lead(progress.peer):",
        "progress.peer in self.configuration.witnesses:",
    ),
    Mutant(
        "a witness executes",
        "driver.py",
        "found = self.id in configuration.witnesses\n",
        "found = False\n",
    ),
    Mutant(
        "a new member executes before it knows whether it is a witness",
        "driver.py",
        "elif self.raft.applicable() > self._applied and self.is_witness is False:",
        "elif self.raft.applicable() > self._applied:",
    ),
    Mutant(
        "truncation not written",
        "storage.py",
        "            if write.first <= last:\n                check = self._cut(group, write.first, base_check, changes)\n",
        "",
    ),
)

CHILD = """
import gc, json, sys
import raftplug
from raftplug import core
from raftplug.testing import simulation
import logging
logging.disable(logging.CRITICAL)
gc.set_threshold(50_000, 20, 100)
first, count = int(sys.argv[1]), int(sys.argv[2])
namespace = core.load("python")
for seed in range(first, first + count):
    report = simulation.Simulation(seed, core=namespace, nodes=[5, 3][seed % 2]).run()
    if report.violation is not None:
        break
print(json.dumps({"path": raftplug.__file__, "seeds": seed - first + 1, "violation": report.violation}))
"""


def run(mutant: Mutant, seeds: int) -> dict[str, Any]:
    """Plant a bug and run seeds until it is found: {"name", "outcome": killed | survived | error, "seeds", "why"}."""
    with tempfile.TemporaryDirectory() as directory:
        tree = Path(directory) / "src"
        shutil.copytree(SOURCE, tree, ignore=shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info"))
        path = tree / "raftplug" / mutant.file
        text = path.read_text()
        if mutant.old and text.count(mutant.old) != 1:
            return _outcome(mutant, "error", 0, f"the place to change stands {text.count(mutant.old)} times")
        path.write_text(text.replace(mutant.old, mutant.new) if mutant.old else text)
        environment = {**os.environ, "PYTHONPATH": str(tree), "RAFTPLUG_CORE": "python", "PYTHONHASHSEED": "0"}
        try:
            done = subprocess.run(
                [sys.executable, "-c", CHILD, "0", str(seeds)],
                env=environment,
                capture_output=True,
                text=True,
                timeout=PATIENCE_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return _outcome(mutant, "error", 0, "time-out")
        try:
            found = json.loads(done.stdout.splitlines()[-1])
        except (IndexError, ValueError):
            return _outcome(mutant, "error", 0, (done.stderr.strip().splitlines() or ["no output"])[-1])
        if not found["path"].startswith(directory):
            return _outcome(mutant, "error", 0, f"ran from {found['path']}")
        outcome = "killed" if found["violation"] else "survived"
        return _outcome(mutant, outcome, found["seeds"], found["violation"])


def _outcome(mutant: Mutant, outcome: str, seeds: int, why: str | None) -> dict[str, Any]:
    return {"name": mutant.name, "outcome": outcome, "seeds": seeds, "why": why}


def gate(mutants: tuple[Mutant, ...], seeds: int, jobs: int) -> dict[str, Any]:
    """Run mutants and the equivalent ones; the report of `--json`."""

    def one(mutant: Mutant) -> dict[str, Any]:
        result = run(mutant, seeds if mutant not in EQUIVALENT else min(seeds, 30))
        print(f"{result['outcome']:9} {mutant.name}: {result['why']} (seeds: {result['seeds']})", file=sys.stderr)
        return result

    with ThreadPoolExecutor(jobs) as pool:
        same = list(pool.map(one, EQUIVALENT))
        results = list(pool.map(one, mutants))
    killed = [result for result in results if result["outcome"] == "killed"]
    return {
        "planted": len(results),
        "killed": len(killed),
        "survivors": [result["name"] for result in results if result["outcome"] == "survived"],
        "errors": [result for result in [*results, *same] if result["outcome"] == "error"],
        "median_seeds_to_kill": statistics.median([result["seeds"] for result in killed]) if killed else None,
        "equivalent_survived": sum(result["outcome"] == "survived" for result in same),
        "equivalent": len(same),
    }


def main() -> int:
    """Run the gate; 0 if everything planted was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the report as one object")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="how many seeds each may take")
    parser.add_argument("--sample", type=int, help="only so many, chosen by chance")
    parser.add_argument("--only", action="append", help="only those with this in their name; may be repeated")
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    mutants = tuple(each for each in MUTANTS if any(part in each.name for part in arguments.only or [""]))
    if arguments.sample is not None:
        mutants = tuple(random.sample(mutants, min(arguments.sample, len(mutants))))
    report = gate(mutants, arguments.seeds, arguments.jobs)
    print(json.dumps(report) if arguments.json else json.dumps(report, indent=2))
    return int(report["killed"] != report["planted"] or report["equivalent_survived"] != report["equivalent"])


if __name__ == "__main__":
    sys.exit(main())
