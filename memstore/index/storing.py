"""A neuron index in files: blocks and summary as they are, a manifest that names them.

Each block and each summary lies in a file of its own under a random name and is never changed, so
saving writes only what is new. The manifest, ``manifest-TOKEN.idx``, names the files, says which
rows are dead and what change they show. It counts only while the catalog holds its token: files
that no manifest in force names are swept away by the next save.
"""

from __future__ import annotations

import math
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memstore import durable
from memstore.core.traces import neuron_dtype
from memstore.errors import IndexDamaged
from memstore.index import files, scan
from memstore.index.blocks import BLOCK_ROWS, CHUNK_ROWS, Block, Runs, Sums
from memstore.index.postings import NeuronIndex
from memstore.index.summary import HEADS, LEVELS, Summary

BLOCK, SUMMARY, VECTORS, MANIFEST = "traces", "neurons", "vectors", "manifest"
#: The offsets of ids without gaps, which no file repeats.
COUNTING = np.arange(BLOCK_ROWS, dtype=np.uint32)
#: Read piece by piece, each piece with a checksum of its own; the rest is checked when mapped.
BY_PARTS = ("starts", "neurons", "activations", "norms", "run_rows", "run_codes")


@dataclass(frozen=True)
class Stamp:
    """What a manifest must match to be believed.

    ``token`` is the one the catalog holds for it, so that a manifest of another store, or of a
    future that a restored backup has undone, is not taken for its own. ``change`` is the state
    shown.
    """

    token: str
    fingerprint: str
    change: int


def new_name(kind: str) -> str:
    """Return a file name that no other save will choose."""
    return f"{kind}-{uuid.uuid4().hex}.idx"


def manifest_path(folder: Path, token: str) -> Path:
    """Return where the manifest with this token lies."""
    return folder / f"{MANIFEST}-{token}.idx"


def save_block(folder: Path, block: Block) -> Block:
    """Write a block to a new file; returns it, mapped from there."""
    name = new_name(BLOCK)
    of_runs, of_rows = scan.sums(block)
    arrays: dict[str, NDArray[Any]] = {
        "starts": block.starts,
        "neurons": block.neurons,
        "activations": block.activations,
        "norms": block.norm_codes,
        "row_sums": of_rows,
    }
    if not block.is_gapless:
        arrays["offsets"] = block.offsets
    if block.runs is not None:
        arrays |= {
            "run_starts": block.runs.starts,
            "run_rows": block.runs.rows,
            "run_codes": block.runs.codes,
            "maxima": block.runs.maxima,
            "run_sums": of_runs,
        }
    fields = {
        "width": block.width,
        "rows": len(block),
        "first_id": block.first_id,
        "norm_scale": block.norm_scale,
        "smallest_norm": block.smallest_norm,
        "mean_norm": block.mean_norm,
    }
    files.write(folder / name, BLOCK, fields, arrays, BY_PARTS)
    return replace(load_block(folder, name), alive=block.alive)


def load_block(folder: Path, name: str) -> Block:
    """Return a mapped block. Raises ``IndexDamaged`` or ``FileNotFoundError``."""
    file = files.read(folder / name, BLOCK)
    width, rows, first = (file.field(field, int) for field in ("width", "rows", "first_id"))
    norms = [file.field(field, float) for field in ("norm_scale", "smallest_norm", "mean_norm")]
    if not (width > 0 and 0 < rows <= BLOCK_ROWS and first >= 0 and all(map(math.isfinite, norms))):
        raise IndexDamaged(f"{name} does not hold what a block holds")
    offsets: NDArray[Any] = COUNTING[:rows]
    if "offsets" in file.arrays:
        offsets = file.array("offsets", "<u4 <i8", rows)
    if offsets[0] != 0 or first + int(offsets[-1]) >= 2**63 or np.any(offsets[1:] <= offsets[:-1]):
        raise IndexDamaged(f"the ids of {name} do not ascend")
    neurons = file.array("neurons", neuron_dtype(width).str, None)
    starts = file.array("starts", "<u4", rows + 1)
    if starts[0] != 0 or starts[-1] != len(neurons):
        raise IndexDamaged(f"the rows of {name} do not fit together")
    row_sums = file.array("row_sums", "<u8", -(-rows // CHUNK_ROWS))
    has_runs = "run_starts" in file.arrays
    run_sums = file.array("run_sums", "<u8", width) if has_runs else np.empty(0, dtype=np.uint64)
    return Block(
        width=width,
        first_id=first,
        offsets=offsets,
        starts=starts,
        neurons=neurons,
        activations=file.array("activations", "<f2", len(neurons)),
        norm_codes=file.array("norms", "|u1", rows),
        norm_scale=norms[0],
        smallest_norm=norms[1],
        mean_norm=norms[2],
        runs=load_runs(file, width, len(neurons)) if has_runs else None,
        sums=Sums(
            run_sums,
            row_sums,
            np.zeros(len(run_sums), dtype=np.uint8),
            np.zeros(len(row_sums), dtype=np.uint8),
        ),
        name=name,
    )


def load_runs(file: files.IndexFile, width: int, postings: int) -> Runs:
    """Return the runs of a block."""
    edges = file.array("run_starts", "<u4", width + 1)
    if edges[0] != 0 or edges[-1] != postings or np.any(edges[1:] < edges[:-1]):
        raise IndexDamaged(f"the runs of {file.name} do not fit together")
    return Runs(
        edges,
        file.array("run_rows", "<u2", postings),
        file.array("run_codes", "|u1", postings),
        file.array("maxima", "<f2", width),
    )


def save_summary(folder: Path, summary: Summary) -> str:
    """Write a summary to a new file; returns its name."""
    name = new_name(SUMMARY)
    arrays = {field: getattr(summary, field) for field in Summary.__dataclass_fields__}
    files.write(folder / name, SUMMARY, {}, arrays)
    return name


def load_summary(folder: Path, name: str, width: int) -> Summary:
    """Return a mapped summary. Raises ``IndexDamaged`` or ``FileNotFoundError``."""
    file = files.read(folder / name, SUMMARY)
    return Summary(
        places=file.array("places", "<u4", width, HEADS),
        bounds=file.array("bounds", "<f4", width, HEADS),
        counts=file.array("counts", "<u4", width),
        maxima=file.array("maxima", "<f2", width, None),
        histogram=file.array("histogram", "<u4", width, LEVELS),
    )


def save_blocks(folder: Path, index: NeuronIndex) -> NeuronIndex:
    """Write the blocks that are in no file yet; returns the index over the files."""
    folder.mkdir(mode=0o700, exist_ok=True)
    blocks = [
        block if block.name is not None and (folder / block.name).exists()
        else save_block(folder, block)
        for block in index.blocks
        if block.live
    ]  # fmt: skip
    if len(blocks) != len(index.blocks):
        covered = sum(1 for block in index.blocks[: index.covered] if block.live)
        summary = Summary.of(blocks[:covered], index.width) if covered else None
        return replace(index, blocks=tuple(blocks), summary=summary)
    return replace(index, blocks=tuple(blocks))


def save_manifest(
    folder: Path, index: NeuronIndex, stamp: Stamp, others: Mapping[str, Any]
) -> None:
    """Write the manifest of an index whose blocks are in files, and its summary.

    ``others`` are fields for files that are not of this index (the vectors').
    """
    dead = {f"alive-{n}": b.alive for n, b in enumerate(index.blocks) if b.alive is not None}
    fields = {
        "fingerprint": stamp.fingerprint,
        "change": stamp.change,
        "width": index.width,
        "blocks": [block.name for block in index.blocks],
        "summary": None if index.summary is None else save_summary(folder, index.summary),
        **others,
    }
    files.write(manifest_path(folder, stamp.token), MANIFEST, fields, dead)
    durable.sync(folder)


def read_manifest(folder: Path, stamp: Stamp) -> files.IndexFile:
    """Return the manifest in force. Raises ``IndexDamaged`` or ``FileNotFoundError``."""
    manifest = files.read(manifest_path(folder, stamp.token), MANIFEST)
    if manifest.field("fingerprint", str) != stamp.fingerprint:
        raise IndexDamaged("the index was made by another encoder")
    if not 0 <= manifest.field("change", int) <= stamp.change:
        raise IndexDamaged("the index is from a future of this store")
    manifest.field("width", int)
    blocks, summary = manifest.field("blocks", list), manifest.fields.get("summary")
    vectors = manifest.fields.get("vectors")
    sound = (
        all(is_name(name, BLOCK) for name in blocks)
        and (summary is None or is_name(summary, SUMMARY))
        and (vectors is None or are_vectors(vectors, stamp.change))
    )
    if not sound:
        raise IndexDamaged(f"{manifest.name} names what no index file is called")
    return manifest


def is_name(name: object, kind: str) -> bool:
    """Return whether a file of this kind may have this name."""
    return isinstance(name, str) and re.fullmatch(rf"{kind}-[0-9a-f]{{32}}\.idx", name) is not None


def are_vectors(told: object, change: int) -> bool:
    """Return whether this is what a manifest tells of vectors from no later than a change."""
    if not isinstance(told, dict) or not is_name(told.get("name"), VECTORS):
        return False
    shown, trained_for = told.get("change"), told.get("trained_for")
    return type(shown) is type(trained_for) is int and 0 <= shown <= change and trained_for >= 0


def load_neurons(folder: Path, manifest: files.IndexFile) -> NeuronIndex:
    """Return the mapped index of a manifest. Raises ``IndexDamaged`` or ``FileNotFoundError``."""
    width, blocks = manifest.fields["width"], []
    for number, name in enumerate(manifest.fields["blocks"]):
        block = load_block(folder, name)
        if block.width != width:
            raise IndexDamaged(f"{name} does not belong to this manifest")
        if f"alive-{number}" in manifest.arrays:
            alive = manifest.array(f"alive-{number}", "|u1", -(-len(block) // 8))
            block = replace(block, alive=alive)
        blocks.append(block)
    summary = None
    if manifest.fields.get("summary") is not None:
        summary = load_summary(folder, manifest.fields["summary"], width)
        if summary.blocks > len(blocks) or any(b.runs is None for b in blocks[: summary.blocks]):
            raise IndexDamaged("the summary covers more blocks than there are")
    return NeuronIndex(width, manifest.fields["change"], tuple(blocks), summary)


def sweep(folder: Path, token: str | None) -> None:
    """Delete every index file that the manifest with this token does not name."""
    kept = set()
    if token is not None:
        fields = files.read(manifest_path(folder, token), MANIFEST).fields
        kept = {*fields["blocks"], fields["summary"], (fields["vectors"] or {}).get("name")}
        kept.add(manifest_path(folder, token).name)
    for pattern in ("*.idx", "*.part", "*.seg"):
        for file in folder.glob(pattern):
            if file.name not in kept:
                file.unlink(missing_ok=True)
