"""Hits: what a query answers with, each saying why it is one.

An answer takes microseconds, and making ten Python objects of it as long again. So ``Hits`` knows
ids and scores at once and makes the hits when somebody first looks at one. All they show was read
in the query's own transaction, unless it was asked not to (``fetch=False``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, overload

from memstore.errors import MissingExtra

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

COLUMNS = ["id", "key", "score", "category", "text", "parts", "metadata", "occurred_at"]


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


class Hits(Sequence[Hit]):
    """Hits in order: score descending, then id ascending. Immutable; slices are Hits too.

    ``ids`` and ``scores`` are tuples beside the hits.
    """

    __slots__ = ("_source", "ids", "scores")

    def __init__(self, hits: Iterable[Hit] = ()) -> None:
        found = tuple(hits)
        #: The hits, or what makes them: one name, so that no thread sees one without the other.
        self._source: tuple[Hit, ...] | Callable[[], Iterable[Hit]] = found
        self.ids = tuple(hit.id for hit in found)
        self.scores = tuple(hit.score for hit in found)

    @classmethod
    def later(
        cls, ids: Iterable[int], scores: Iterable[float], make: Callable[[], Iterable[Hit]]
    ) -> Hits:
        """Return the hits that ``make`` gives, once they are looked at."""
        hits = cls.__new__(cls)
        hits._source, hits.ids, hits.scores = make, tuple(ids), tuple(scores)
        return hits

    def _all(self) -> tuple[Hit, ...]:
        source = self._source
        if not isinstance(source, tuple):
            source = self._source = tuple(source())  # two threads may both get here: the same twice
        return source

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> Hit: ...

    @overload
    def __getitem__(self, index: slice) -> Hits: ...

    def __getitem__(self, index: int | slice) -> Hit | Hits:
        found = self._all()[index]
        return Hits(found) if isinstance(found, tuple) else found

    def __eq__(self, other: object) -> bool:
        return self._all() == other._all() if isinstance(other, Hits) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # hits hold dicts

    def __repr__(self) -> str:
        return f"Hits({list(self._all())!r})"

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return one plain dict a hit."""
        return [hit.to_dict() for hit in self]

    def to_pandas(self) -> pd.DataFrame:
        """Return a DataFrame, one row a hit."""
        try:
            import pandas as pd
        except ImportError as error:
            raise MissingExtra("pandas", "data", "Hits.to_pandas()") from error
        return pd.DataFrame(self.to_dicts(), columns=COLUMNS)

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
        schema = pa.schema([(name, types.get(name, pa.string())) for name in COLUMNS])
        return pa.Table.from_pylist(rows, schema=schema)
