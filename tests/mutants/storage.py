"""What is on disk, also after a repair or a restore."""

from mutants.mutant import Mutant

STORAGE = "storage.py"
RECOVERY = "recovery.py"
BACKUP = "backup.py"

MUTANTS = (
    Mutant(
        "checksum unchecked",
        STORAGE,
        "RecordStorage._unsealed",
        "if value[: _SEAL.size] != _SEAL.pack(crc32(body, _place_check(table, name, number))):",
        "if False:",
    ),
    Mutant(
        "the highest boot is not read from the disk",
        STORAGE,
        "RecordStorage._identify",
        "cluster, self.heard = found.cluster, heard",
        "cluster = found.cluster",
    ),
    Mutant(
        "truncation not written",
        STORAGE,
        "RecordStorage._plan",
        "            if write.first <= last:\n                check = self._cut(group, write.first, base_check, changes)\n",
        "",
    ),
    Mutant(
        "recovery keeps the lost voters",
        RECOVERY,
        "sole_voter",
        "core.Configuration([id], storages",
        "core.Configuration(sorted({id, *plain.decode(storage.configuration(group))[0]}), storages",
    ),
    Mutant(
        "who is restored is of the old cluster",
        BACKUP,
        "restored_cluster",
        'return hashlib.blake2b(told, digest_size=16, person=b"raftplug restore").digest()',
        "from raftplug.frames import cluster_uuid\n\n    return cluster_uuid(group, voters)",
    ),
    Mutant(
        "restored with the old members",
        BACKUP,
        "fill",
        "stream = snapshots.contents(configuration, ",
        "stream = snapshots.contents(reader.configuration, ",
    ),
)
