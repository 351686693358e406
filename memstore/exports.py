"""Every memory in a file that other programs can read: JSON Lines or Parquet.

A plain export holds what people wrote. An encoded one leaves nothing out: ids and times, vectors
and traces, labels, lenses and links, and the fingerprint of the encoder that all this is of. Loaded
into a new store of the same encoder (``memstore.loading``) it is the same store; no text is
embedded for it.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, cast

from sqlalchemy import ColumnElement, Connection

from memstore import durable
from memstore.catalog import lenses, links, memories, neurons, traces
from memstore.catalog.files import require_new
from memstore.catalog.neurons import EncoderRecord
from memstore.errors import InvalidFile, StoreDamaged
from memstore.files import MAX_LINE, format_of, load_arrow

#: The first line of an encoded export says so; in Parquet it is the schema's metadata.
HEADING = "memstore_export"
FORMAT = 1
#: Higher levels take three times as long for a hundredth of the size.
GZIP_LEVEL = 6
TIMES = ("occurred_at", "created_at", "updated_at")
#: Memories read, and rows written, at a time.
PAGE = 2_048

Row = dict[str, Any]


def export(
    connection: Connection, condition: ColumnElement[bool] | None, target: Path, encoded: bool
) -> int:
    """Write the memories that pass, all of one moment; the file appears whole or not at all.

    The moment is that of the read transaction handed in. Returns how many. Raises ``StoreError``
    where something is at ``target`` already.
    """
    require_new(target, "the export")
    kind = format_of(target.name, None)
    if kind not in ("jsonl", "parquet") or target.name.lower().endswith(".parquet.gz"):
        raise InvalidFile(f"{target}: name it .jsonl, .jsonl.gz or .parquet")
    write = write_parquet if kind == "parquet" else write_lines
    with durable.appearing(target) as part:
        record = neurons.require_encoder(connection)
        heading = heading_of(connection, record, condition) if encoded else None
        return write(part, target.name, heading, rows(connection, record, condition, encoded))


def heading_of(
    connection: Connection, record: EncoderRecord, condition: ColumnElement[bool] | None
) -> Row:
    """Return what an encoded export says once, before its memories."""
    return {
        HEADING: FORMAT,
        "encoder": {
            "name": record.name,
            "fingerprint": record.fingerprint,
            "dimension": record.dimension,
            "neurons": record.neurons,
        },
        "memories": memories.count(connection, condition),
        "last_id": memories.last_id(connection),
        "labels": [named._asdict() for named in neurons.label_rows(connection, record.id)],
        "lenses": [lens.to_dict() for lens in lenses.all_lenses(connection, record.id)],
    }


def rows(
    connection: Connection,
    record: EncoderRecord,
    condition: ColumnElement[bool] | None,
    encoded: bool,
) -> Iterator[Row]:
    """Yield each memory as plain JSON values, by ascending id."""
    last = 0
    linked = links.all_links(connection) if encoded else {}
    there = None if condition is None else set(memories.ids(connection, condition))
    while page := memories.page(connection, last, PAGE, condition):
        last = page[-1].id
        found = [memory.to_dict() for memory in page]
        if encoded:
            add_codes(connection, record, found)
            for row in found:
                other, cosine = linked.get(row["id"], (None, None))
                come = there is None or other in there
                row["link_id"], row["link_cosine"] = (other, cosine) if come else (None, None)
        yield from found


def add_codes(connection: Connection, record: EncoderRecord, found: list[Row]) -> None:
    """Add vector and trace to the rows of some memories, exactly as they are stored."""
    ids = [row["id"] for row in found]
    coded, vectors = traces.vectors_by_ids(connection, record.id, ids, record.dimension)
    kept = traces.by_ids(connection, record.id, ids, record.neurons)
    if coded != ids or kept.ids.tolist() != ids:
        raise StoreDamaged("memories have no vector or trace: run `memstore check --repair` first")
    for row, vector, trace in zip(found, vectors, kept, strict=True):
        row["vector"] = vector.tolist()
        row["neurons"] = trace.neurons.tolist()
        row["activations"] = trace.activations.tolist()


# --- writing -------------------------------------------------------------------------------------


def write_lines(part: Path, name: str, heading: Row | None, found: Iterable[Row]) -> int:
    """Write JSON Lines, compressed where the name ends in ``.gz``; equal rows, equal bytes."""
    count = 0
    with part.open("wb") as raw, packed(raw, name) as binary, text_of(binary) as file:
        if heading is not None:
            line = json.dumps(heading, ensure_ascii=False)
            if len(line.encode()) > MAX_LINE:
                raise InvalidFile(
                    f"{name}: its labels and lenses are too many for a line: name it .parquet"
                )
            file.write(line + "\n")
        for row in found:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def packed(raw: BinaryIO, name: str) -> AbstractContextManager[BinaryIO]:
    """Return what compresses into a file, without the time of day, or the file itself."""
    if not name.lower().endswith(".gz"):
        return nullcontext(raw)
    return cast(BinaryIO, gzip.GzipFile("", "wb", GZIP_LEVEL, raw, mtime=0))


def text_of(binary: BinaryIO) -> io.TextIOWrapper:
    """Return a file of bytes as one of text."""
    return io.TextIOWrapper(binary, encoding="utf-8", newline="\n")


def write_parquet(part: Path, _: str, heading: Row | None, found: Iterable[Row]) -> int:
    """Write Parquet. Metadata is a column of JSON text: its fields differ from row to row."""
    arrow, parquet = load_arrow()
    fields = {
        "id": arrow.int64(),
        "key": arrow.string(),
        "text": arrow.string(),
        "category": arrow.string(),
        "metadata": arrow.string(),
        **dict.fromkeys(TIMES, arrow.timestamp("us", tz="UTC")),
    }
    if heading is not None:
        fields |= {
            "vector": arrow.list_(arrow.float32()),
            "neurons": arrow.list_(arrow.uint32()),
            "activations": arrow.list_(arrow.float32()),
            "link_id": arrow.int64(),
            "link_cosine": arrow.float64(),
        }
    schema = arrow.schema(fields)
    if heading is not None:
        schema = schema.with_metadata({HEADING: json.dumps(heading, ensure_ascii=False)})
    source, count = iter(found), 0
    with parquet.ParquetWriter(part, schema, compression="zstd") as writer:
        while page := list(islice(source, PAGE)):
            for row in page:
                row["metadata"] = json.dumps(row["metadata"], ensure_ascii=False)
                for name in TIMES:
                    row[name] = row[name] and datetime.fromisoformat(row[name])
            writer.write_table(arrow.Table.from_pylist(page, schema))
            count += len(page)
    return count
