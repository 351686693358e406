"""A neuron index in files: blocks and summary as they are, a manifest that names them.

Each block and each summary lies in a file of its own under a random name and is never changed, so
saving writes only what is new. The manifest, ``manifest-TOKEN.idx``, names the files, says which
rows are dead and what change they show. It counts only while the catalog holds its token: files
that no manifest in force names are swept away by the next save.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memstore import durable
from memstore.errors import IndexDamaged
from memstore.index import files, scan
from memstore.index.blocks import BLOCK_ROWS, CHUNK_ROWS, Block, Runs, Sums
from memstore.index.postings import NeuronIndex
from memstore.index.summary import HEADS, LEVELS, Summary

BLOCK, SUMMARY, MANIFEST = "traces", "neurons", "manifest"
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
    fields, arrays = file.fields, file.arrays
    rows, postings = fields["rows"], len(arrays["neurons"])
    offsets = arrays.get("offsets", COUNTING[:rows])
    sound = (
        0 <= rows == len(offsets) <= BLOCK_ROWS
        and len(arrays["starts"]) == rows + 1
        and len(arrays["activations"]) == postings
        and len(arrays["norms"]) == rows
        and len(arrays["row_sums"]) == -(-rows // CHUNK_ROWS)
        and ("offsets" not in arrays or bool(np.all(offsets[1:] > offsets[:-1])))
    )
    runs = load_runs(fields["width"], arrays) if "run_starts" in arrays else None
    if not sound or (runs is not None and len(runs.rows) != postings):
        raise IndexDamaged(f"{name} does not hold what a block holds")
    run_sums = arrays.get("run_sums", np.empty(0, dtype=np.uint64))
    return Block(
        width=fields["width"],
        first_id=fields["first_id"],
        offsets=offsets,
        starts=arrays["starts"],
        neurons=arrays["neurons"],
        activations=arrays["activations"],
        norm_codes=arrays["norms"],
        norm_scale=fields["norm_scale"],
        smallest_norm=fields["smallest_norm"],
        mean_norm=fields["mean_norm"],
        runs=runs,
        sums=Sums(
            run_sums,
            arrays["row_sums"],
            np.zeros(len(run_sums), dtype=np.uint8),
            np.zeros(len(arrays["row_sums"]), dtype=np.uint8),
        ),
        name=name,
    )


def load_runs(width: int, arrays: Mapping[str, NDArray[Any]]) -> Runs:
    """Return the runs among a block's arrays."""
    runs = Runs(arrays["run_starts"], arrays["run_rows"], arrays["run_codes"], arrays["maxima"])
    edges = runs.starts
    sound = (
        len(edges) == width + 1
        and edges[0] == 0
        and edges[-1] == len(runs.rows) == len(runs.codes)
        and bool(np.all(edges[1:] >= edges[:-1]))
        and len(runs.maxima) == len(arrays["run_sums"]) == width
    )
    if not sound:
        raise IndexDamaged("the runs of a block do not fit together")
    return runs


def save_summary(folder: Path, summary: Summary) -> str:
    """Write a summary to a new file; returns its name."""
    name = new_name(SUMMARY)
    arrays = {field: getattr(summary, field) for field in Summary.__dataclass_fields__}
    files.write(folder / name, SUMMARY, {}, arrays)
    return name


def load_summary(folder: Path, name: str, width: int) -> Summary:
    """Return a mapped summary. Raises ``IndexDamaged`` or ``FileNotFoundError``."""
    arrays = files.read(folder / name, SUMMARY).arrays
    summary = Summary(**{field: arrays[field] for field in Summary.__dataclass_fields__})
    shapes = (
        summary.places.shape == summary.bounds.shape == (width, HEADS)
        and summary.counts.shape == (width,)
        and summary.histogram.shape == (width, LEVELS)
        and summary.maxima.shape[:1] == (width,)
    )
    if not shapes:
        raise IndexDamaged(f"{name} does not hold what a summary holds")
    return summary


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
    if manifest.fields["fingerprint"] != stamp.fingerprint:
        raise IndexDamaged("the index was made by another encoder")
    if not 0 <= manifest.fields["change"] <= stamp.change:
        raise IndexDamaged("the index is from a future of this store")
    return manifest


def load_neurons(folder: Path, manifest: files.IndexFile) -> NeuronIndex:
    """Return the mapped index of a manifest. Raises ``IndexDamaged`` or ``FileNotFoundError``."""
    fields = manifest.fields
    blocks = []
    for number, name in enumerate(fields["blocks"]):
        block = load_block(folder, Path(name).name)
        alive = manifest.arrays.get(f"alive-{number}")
        if block.width != fields["width"] or (
            alive is not None and alive.shape != (-(-len(block) // 8),)
        ):
            raise IndexDamaged(f"{name} does not belong to this manifest")
        blocks.append(replace(block, alive=alive))
    summary = None
    if fields["summary"] is not None:
        summary = load_summary(folder, Path(fields["summary"]).name, fields["width"])
        if summary.blocks > len(blocks) or any(b.runs is None for b in blocks[: summary.blocks]):
            raise IndexDamaged("the summary covers more blocks than there are")
    return NeuronIndex(fields["width"], fields["change"], tuple(blocks), summary)


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
