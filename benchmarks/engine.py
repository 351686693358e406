"""What a benchmark asks of an engine, memstore or peer: one contract, the same batches for all."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Found = list[tuple[int, float]]

SPARSE = frozenset({"one", "1+1-", "3+1-", "trace"})
#: Kind of dense query -> the shades that pass its filter are those below this bound.
BOUNDS: dict[str, int | None] = {"dense": None, "dense 1%": 1, "dense 10%": 10, "dense 50%": 50}
DENSE = frozenset(BOUNDS)


class MissingPeer(Exception):
    """A peer cannot run here; the message says what to install."""


@dataclass(frozen=True)
class Batch:
    """Some consecutive rows of the data: ``first`` is the number of the first one.

    Shapes: ``vectors`` (n, d) of unit length or None, ``indptr`` (n + 1,) from 0, ``neurons`` and
    ``activations`` (nnz,), ``shade`` (n,) with values 0 to 99, the attribute that filters go by.
    """

    first: int
    texts: list[str]
    vectors: Float32 | None
    indptr: NDArray[np.int64]
    neurons: NDArray[np.uint16]
    activations: NDArray[np.float16]
    shade: NDArray[np.uint8]

    @property
    def numbers(self) -> range:
        """The row numbers."""
        return range(self.first, self.first + len(self.texts))


class Engine(Protocol):
    """What is measured. ``kinds`` are the queries it can do at all, ``holds`` what it stores."""

    name: str
    kinds: frozenset[str]
    holds: str

    def __init__(self, folder: Path, width: int, dimension: int) -> None:
        """Open what the folder holds, or create it. Raises ``MissingPeer``."""

    def insert(self, batch: Batch) -> None:
        """Take in rows."""

    def finish(self) -> None:
        """Make all durable and fully indexed; insert time ends here."""

    def close(self) -> None:
        """Let go of the files."""

    def sparse(self, weights: Mapping[int, float], k: int) -> Found:
        """Return the k best (row, sum of weight x activation) with a score above 0.

        Activations are positive, so such a row has a positively weighted neuron that fires.
        """
        raise NotImplementedError(f"{self.name} has no traces")

    def dense(self, vector: Float32, k: int, below: int | None) -> Found:
        """Return the k nearest (row, cosine) among the rows whose shade is below the bound."""
        raise NotImplementedError(f"{self.name} has no vectors")


def need(module: str, package: str) -> ModuleType:
    """Return a peer's module. Raises ``MissingPeer``."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingPeer(
            f"{package} is not installed: pip install 'memstore-sae[bench]' ({error})"
        ) from error
