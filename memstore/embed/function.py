"""A plain callable as embedder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from memstore.errors import EmbeddingFailed
from memstore.types import Float32


class FunctionEmbedder:
    """Wraps ``function(texts) -> (n, dimension) numbers``.

    Code has no fingerprint, so ``name`` stands for it: give another name when the function's
    vectors change.
    """

    def __init__(
        self, function: Callable[[Sequence[str]], ArrayLike], dimension: int, name: str
    ) -> None:
        self.function, self.name = function, name
        self._dimension = dimension

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return self._dimension

    @property
    def fingerprint(self) -> str:
        """Hex digest of name and dimension."""
        return hashlib.sha256(repr(("function", self.name, self._dimension)).encode()).hexdigest()

    def embed(self, texts: Sequence[str]) -> Float32:
        """Return the function's vectors. Raises ``EmbeddingFailed`` for another shape."""
        vectors = np.asarray(self.function(texts), dtype=np.float32)
        if vectors.shape != (len(texts), self._dimension):
            raise EmbeddingFailed(
                f"the embedder {self.name} answered shape {vectors.shape} for {len(texts)} texts: "
                f"it must be ({len(texts)}, {self._dimension})"
            )
        return vectors
