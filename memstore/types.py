"""The frozen types that memstore hands out, and the protocol it asks of an embedder.

Nothing here reads a file, a database or a network. Vectors are float32, activations float16 as
stored; scores are float64, and higher is nearer, always.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from memstore.errors import MissingExtra
from memstore.hits import Hits

if TYPE_CHECKING:
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


@dataclass(frozen=True)
class Lens:
    """A neuron expression saved under a name, which makes a category of whatever fits it.

    ``by`` says what it scores: "trace" the activations stored, "dense" how far a memory's vector
    points the way of the neurons (``MemoryStore.composite``). It holds for the memories that score
    above ``threshold``. One that was learned knows the ``category`` it tells, and its ``grade``:
    the AUC on memories it was not learned from, mean of five parts.
    """

    name: str
    expression: str
    by: Literal["trace", "dense"] = "trace"
    threshold: float = 0.0
    grade: float | None = None
    category: str | None = None
    created_at: datetime | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        made = None if self.created_at is None else self.created_at.isoformat()
        return {**vars(self), "created_at": made}


@dataclass(frozen=True)
class Telling:
    """What one neuron tells of one category."""

    category: str
    auc: float
    lift: float
    """How many times as common the category is where the neuron fires."""
    precision: float
    """Its share among the (at most 20) memories for which the neuron fires strongest."""
    adjusted_p: float
    """Of the AUC, adjusted by Benjamini and Hochberg over the categories."""


@dataclass(frozen=True)
class Company:
    """A neuron that fires together with another."""

    neuron: int
    memories: int
    """For how many both fire."""
    lift: float
    """How many times as many that is as if they fired independently."""


@dataclass(frozen=True)
class Neuron:
    """What is known of one neuron in one store.

    ``fire_rate`` is the share of live memories it fires for. ``histogram`` counts activations in
    ten equal bins from 0 to ``maximum``. ``categories`` maps a category to the AUC of this
    neuron's activation for it (0.5 says nothing, 1.0 always stronger inside; Mann-Whitney, ties
    count half), best first; ``tells`` says more of each. ``months`` counts the memories it fires
    for by when they happened, or else were stored. ``company`` are the neurons that fire together
    with it. ``top`` are its strongest memories, ``strata`` one from the middle of each tenth of all
    it fires for: what the top shows is not what most firings are. ``label`` is the one given here,
    or else the dictionary's; ``grade`` is how far it could be trusted when it was tested, None
    where it never was. ``sentence`` is what the dictionary says of the neuron, None for an encoder
    that has none.
    """

    id: int
    label: str | None
    grade: float | None
    sentence: str | None
    fires: int
    fire_rate: float
    mean: float
    maximum: float
    histogram: tuple[int, ...]
    categories: Mapping[str, float]
    tells: tuple[Telling, ...]
    months: Mapping[str, int]
    company: tuple[Company, ...]
    top: Hits
    strata: Hits

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "id": self.id,
            "label": self.label,
            "grade": self.grade,
            "sentence": self.sentence,
            "fires": self.fires,
            "fire_rate": self.fire_rate,
            "mean": self.mean,
            "maximum": self.maximum,
            "histogram": list(self.histogram),
            "categories": dict(self.categories),
            "tells": [vars(one).copy() for one in self.tells],
            "months": dict(self.months),
            "company": [vars(one).copy() for one in self.company],
            "top": self.top.to_dicts(),
            "strata": self.strata.to_dicts(),
        }
