"""The frozen types that memstore hands out, and the protocol it asks of an embedder.

Nothing here reads a file, a database or a network. Vectors are float32, activations float16 as
stored; scores are float64, and higher is nearer, always.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol, SupportsIndex, overload, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from memstore.errors import MissingExtra

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from scipy.sparse import csr_matrix

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]


@runtime_checkable
class Embedder(Protocol):
    """Text -> vector. Anything with these three members serves."""

    @property
    def dimension(self) -> int:
        """Length d of every vector."""

    @property
    def fingerprint(self) -> str:
        """Hex digest of all that decides a vector: weights, tokenizer, pooling, normalisation."""

    def embed(self, texts: Sequence[str]) -> Float32:
        """Return one vector a text, (n, d) float32, in the order given."""


@dataclass(frozen=True)
class Memory:
    """One stored thing. Times are UTC; ``occurred_at`` is None where nobody said when."""

    id: int
    text: str
    category: str | None
    key: str | None
    metadata: Mapping[str, Any]
    occurred_at: datetime | None
    created_at: datetime
    updated_at: datetime

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; times as ISO 8601."""
        return {
            "id": self.id,
            "key": self.key,
            "text": self.text,
            "category": self.category,
            "metadata": dict(self.metadata),
            "occurred_at": self.occurred_at.isoformat() if self.occurred_at else None,
            "created_at": self.created_at.isoformat(),
            "updated_at": self.updated_at.isoformat(),
        }


@dataclass(frozen=True)
class Trace:
    """The neurons that fire for one memory (ascending) and their activations (> 0)."""

    neurons: NDArray[np.int64]
    activations: Float64

    def __len__(self) -> int:
        return len(self.neurons)

    def to_dict(self) -> dict[int, float]:
        """Return ``{neuron: activation}``, strongest first."""
        order = np.argsort(-self.activations, kind="stable")
        return {int(self.neurons[i]): float(self.activations[i]) for i in order}


@dataclass(frozen=True)
class Traces:
    """Many traces as CSR arrays: row r is ``neurons[indptr[r]:indptr[r + 1]]`` and its activations.

    Shapes: ``ids`` (n,), ``indptr`` (n + 1,), ``neurons`` and ``activations`` (nnz,); neurons
    ascend within a row. ``width`` is the number of neurons the SAE has.
    """

    ids: Int64
    indptr: Int64
    neurons: NDArray[np.unsignedinteger[Any]]
    activations: NDArray[np.float16]
    width: int

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Trace]:
        return (self[row] for row in range(len(self)))

    def __getitem__(self, row: int) -> Trace:
        if not -len(self) <= row < len(self):
            raise IndexError(row)
        row %= len(self)
        span = slice(int(self.indptr[row]), int(self.indptr[row + 1]))
        return Trace(self.neurons[span].astype(np.int64), self.activations[span].astype(np.float64))

    def to_dense(self) -> Float64:
        """Return the (n, width) matrix of activations. Mind its size: 8 x n x width bytes."""
        dense = np.zeros((len(self), self.width))
        rows = np.repeat(np.arange(len(self)), np.diff(self.indptr))
        dense[rows, self.neurons] = self.activations
        return dense

    def to_scipy(self) -> csr_matrix:
        """Return a ``scipy.sparse.csr_matrix`` of shape (n, width), float64."""
        try:
            from scipy.sparse import csr_matrix
        except ImportError as error:
            raise MissingExtra("scipy", "train", "Traces.to_scipy()") from error
        data = self.activations.astype(np.float64)
        return csr_matrix(
            (data, self.neurons.astype(np.int64), self.indptr), shape=(len(self), self.width)
        )


@dataclass(frozen=True)
class Hit:
    """One answer and why it is one.

    ``parts`` names each share of the score and sums to it. ``N15`` is neuron 15; ``dense``,
    ``trace``, ``words`` and ``steer`` are the sides of a text search. ``reasons`` has a sentence
    a part, in the same order, as ``why()`` prints them; they are written when asked for.
    """

    id: int
    key: str | None
    text: str
    category: str | None
    score: float
    parts: Mapping[str, float]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    occurred_at: datetime | None = None
    explain: Callable[[], tuple[str, ...]] = field(default=tuple, repr=False, compare=False)

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Hit:
        """Return the hit of all its fields, in a third of the time of freezing them one by one."""
        hit = cls.__new__(cls)
        hit.__dict__.update(fields)
        return hit

    @property
    def reasons(self) -> tuple[str, ...]:
        """A sentence a part of the score, in the same order."""
        return self.explain()

    def why(self) -> str:
        """Return the score taken apart, a line a part."""
        lines = [f"score {self.score:.4f}"]
        for (name, share), reason in zip(self.parts.items(), self.reasons, strict=True):
            lines.append(f"  {share:+.4f}  {name}: {reason}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "id": self.id,
            "key": self.key,
            "score": self.score,
            "category": self.category,
            "text": self.text,
            "parts": dict(self.parts),
            "metadata": dict(self.metadata),
            "occurred_at": self.occurred_at.isoformat() if self.occurred_at else None,
        }


class Hits(tuple[Hit, ...]):
    """Hits in order: score descending, then id ascending."""

    __slots__ = ()

    @overload
    def __getitem__(self, index: SupportsIndex) -> Hit: ...

    @overload
    def __getitem__(self, index: slice) -> Hits: ...

    def __getitem__(self, index: SupportsIndex | slice) -> Hit | Hits:
        """Return one hit, or several as Hits."""
        if isinstance(index, slice):
            return Hits(super().__getitem__(index))
        return super().__getitem__(index)

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return one plain dict a hit."""
        return [hit.to_dict() for hit in self]

    def to_pandas(self) -> pd.DataFrame:
        """Return a DataFrame, one row a hit."""
        try:
            import pandas as pd
        except ImportError as error:
            raise MissingExtra("pandas", "data", "Hits.to_pandas()") from error
        return pd.DataFrame(self.to_dicts(), columns=HIT_COLUMNS)

    def to_arrow(self) -> pa.Table:
        """Return a pyarrow Table; ``parts`` and ``metadata`` as JSON text, for want of a schema."""
        try:
            import pyarrow as pa
        except ImportError as error:
            raise MissingExtra("pyarrow", "data", "Hits.to_arrow()") from error
        import json

        rows = [
            {**row, "parts": json.dumps(row["parts"]), "metadata": json.dumps(row["metadata"])}
            for row in self.to_dicts()
        ]
        types = {"id": pa.int64(), "score": pa.float64()}
        schema = pa.schema([(name, types.get(name, pa.string())) for name in HIT_COLUMNS])
        return pa.Table.from_pylist(rows, schema=schema)


@dataclass(frozen=True)
class Step:
    """One part of a query: what it did, what it read, how long it took.

    ``postings`` are entries of neurons' lists, ``rows`` memories whose score was computed.
    """

    name: str
    plan: str
    postings: int
    rows: int
    milliseconds: float

    def __str__(self) -> str:
        read = f"{self.postings:,} postings, " if self.postings else ""
        return f"{self.name}: {self.plan} ({read}{self.rows:,} rows, {self.milliseconds:.3f} ms)"


@dataclass(frozen=True)
class Explanation:
    """How a query was answered: its steps, and the hits it gave."""

    steps: tuple[Step, ...]
    hits: Hits
    milliseconds: float

    def __str__(self) -> str:
        lines = [str(step) for step in self.steps]
        return "\n".join([*lines, f"{len(self.hits)} hits in {self.milliseconds:.3f} ms"])

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "steps": [vars(step).copy() for step in self.steps],
            "milliseconds": self.milliseconds,
            "hits": self.hits.to_dicts(),
        }


HIT_COLUMNS = ["id", "key", "score", "category", "text", "parts", "metadata", "occurred_at"]


@dataclass(frozen=True)
class Neuron:
    """What is known of one neuron in one store.

    ``fire_rate`` is the share of live memories it fires for. ``histogram`` counts activations in
    ten equal bins from 0 to ``maximum``. ``categories`` maps a category to the AUC of this
    neuron's activation for it (0.5 says nothing, 1.0 always stronger inside; Mann-Whitney, ties
    count half), best first. ``grade`` is how far the label could be trusted when it was tested,
    None where it never was.
    """

    id: int
    label: str | None
    grade: float | None
    fires: int
    fire_rate: float
    mean: float
    maximum: float
    histogram: tuple[int, ...]
    categories: Mapping[str, float]
    top: Hits

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "id": self.id,
            "label": self.label,
            "grade": self.grade,
            "fires": self.fires,
            "fire_rate": self.fire_rate,
            "mean": self.mean,
            "maximum": self.maximum,
            "histogram": list(self.histogram),
            "categories": dict(self.categories),
            "top": self.top.to_dicts(),
        }
