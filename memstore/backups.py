"""Backups: a copy of a live store, a manifest that says what is in it, and the way back.

The manifest lies beside the copy, ``FILE.manifest.json``. It is there whenever the copy is, but for
those that ``upgrade`` makes.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from memstore import __version__, durable
from memstore.catalog import memories, migrate, neurons
from memstore.catalog.engine import Database
from memstore.catalog.files import HELD, inspect_file, require_new, usable
from memstore.errors import StoreDamaged, StoreError, StoreNotFound

HEADING, FORMAT = "memstore_backup", 1
#: What every manifest says.
FIELDS = {
    HEADING, "memstore", "made_at", "store_id", "change", "schema", "memories", "labels", "encoder",
    "fingerprint", "bytes", "sha256",
}  # fmt: skip
#: Bytes hashed at a time, and the most that a manifest has.
PIECE, MOST = 1 << 20, 1 << 20
BUSY_TIMEOUT = 5.0

Facts = dict[str, Any]


def manifest_path(backup: Path) -> Path:
    """Return where the manifest of a backup lies."""
    return backup.with_name(backup.name + ".manifest.json")


def make(database: Database, target: Path) -> Facts:
    """Copy a live store to a new file, with its manifest; returns what that says.

    Writers go on meanwhile; the copy shows one moment. Both files appear whole or not at all.
    """
    require_new(target, "the backup")
    require_own(manifest_path(target))
    with durable.appearing(target) as part:
        migrate.copy_into(database, part)
        found = {
            HEADING: FORMAT,
            "memstore": __version__,
            "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
            **contents(part),
            **seal(part),
        }
        # What a backup that was killed between the two left of this is written over.
        with durable.appearing(manifest_path(target), over=True) as manifest:
            manifest.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return found


def require_own(manifest: Path) -> None:
    """Raise ``StoreError`` where something else is in the place of a manifest."""
    with usable(manifest):
        found = manifest.exists() or manifest.is_symlink()
    if found:
        try:
            read_manifest(manifest)
        except StoreDamaged as error:
            raise StoreError(f"{manifest} exists and is no manifest: move it away first") from error


def contents(file: Path) -> Facts:
    """Return what a copy holds."""
    with closing(Database(file, "r", BUSY_TIMEOUT)) as database, database.read() as connection:
        state, record = neurons.state(connection), neurons.require_encoder(connection)
        return {
            "store_id": state.store_id,
            "change": state.change,
            "schema": migrate.revision(connection),
            "memories": memories.count(connection),
            "labels": len(neurons.all_labels(connection, record.id)),
            "encoder": record.name,
            "fingerprint": record.fingerprint,
        }


def seal(file: Path) -> Facts:
    """Return size and SHA-256 of a file that no store has open."""
    digest, size = hashlib.sha256(), 0
    HELD.refuse(file)
    with durable.medium(file, "read"), file.open("rb") as source:
        while piece := source.read(PIECE):
            digest.update(piece)
            size += len(piece)
    return {"bytes": size, "sha256": digest.hexdigest()}


def read_manifest(path: Path) -> Facts:
    """Return what a manifest says. Raises ``StoreDamaged`` where it says nothing."""
    try:
        with path.open("rb") as source:
            found = json.loads(source.read(MOST))
    except FileNotFoundError:
        raise StoreDamaged(
            f"no manifest at {path.name}: it is not known what was backed up"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise StoreDamaged(f"the manifest {path.name} cannot be read ({error})") from error
    if not isinstance(found, dict) or not found.keys() >= FIELDS or found[HEADING] != FORMAT:
        raise StoreDamaged(f"{path.name} is no manifest that this version reads")
    return found


def verify(backup: Path) -> list[str]:
    """Return what is wrong with a backup, a sentence each; an empty list is well.

    Compares size and SHA-256 with the manifest, has SQLite check every page, and looks at the
    counts and at the size of every vector and trace. Restores nothing and changes nothing. Raises
    ``StoreNotFound``.
    """
    with usable(backup):
        found_file = backup.is_file()
    if not found_file:
        raise StoreNotFound(f"no backup at {backup}: check the path")
    problems = []
    said: Facts = {}
    try:
        said = read_manifest(manifest_path(backup))
    except StoreDamaged as error:
        problems.append(str(error))
    return problems + differences(seal(backup), said) + inner_problems(backup, said)


def differences(found: Facts, said: Facts) -> list[str]:
    """Return where what was found is not what the manifest says, a sentence each."""
    return [
        f"{name} is {value}, the manifest says {said[name]}"
        for name, value in found.items()
        if name in said and said[name] != value
    ]


def inner_problems(backup: Path, said: Facts) -> list[str]:
    """Return what is wrong inside a copy, or differs from what was said of it."""
    try:
        inspect_file(backup)
        with closing(Database(backup, "r", BUSY_TIMEOUT)) as copy, copy.read() as connection:
            problems = neurons.integrity(connection)
            # An older schema stored them in another way; SHA-256 has been compared.
            is_current = migrate.revision(connection) == migrate.HEAD
            if is_current and (broken := neurons.broken(connection)):
                problems.append(f"{len(broken)} memories have a broken vector or trace")
        found = contents(backup)
    except StoreError as error:
        return [str(error)]
    return problems + differences(found, said)


def restore(backup: Path, target: Path) -> Facts:
    """Copy a backup that is well to a new store; returns what it holds.

    Raises ``StoreDamaged`` where anything is wrong with it, ``StoreError`` where something is at
    ``target``: nothing is ever written over.
    """
    require_new(target, "the store")
    if problems := verify(backup):
        raise StoreDamaged(
            f"{backup} is not restored: {problems[0]}; take an older backup, or read what can be "
            "read of it with `memstore recover`"
        )
    with (
        closing(Database(backup, "r", BUSY_TIMEOUT)) as database,
        durable.appearing(target) as part,
    ):
        migrate.copy_into(database, part, "WAL")
    return contents(target)
