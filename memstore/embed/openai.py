"""Any OpenAI-compatible embeddings endpoint, through the openai client."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from memstore.errors import EmbeddingFailed, MissingExtra
from memstore.types import Float32

#: Inputs a request; the API allows 2,048 inputs and 300,000 tokens.
BATCH = 256


class OpenAIEmbedder:
    """Embeds through ``POST {base_url}/embeddings``.

    The key comes from ``OPENAI_API_KEY`` alone and is never stored. A server can change the weights
    behind a name, so the fingerprint can only hold what we asked for: model, dimensions and server.
    """

    def __init__(self, model: str, dimension: int, base_url: str | None = None) -> None:
        self.model, self.base_url = model, base_url
        self._dimension = dimension

    @property
    def dimension(self) -> int:
        """Length of a vector, as asked of the server."""
        return self._dimension

    @property
    def fingerprint(self) -> str:
        """Hex digest of model name, dimension and server."""
        asked = repr(("openai", self.model, self._dimension, self.base_url))
        return hashlib.sha256(asked.encode()).hexdigest()

    @cached_property
    def _client(self) -> Any:
        try:
            import openai
        except ImportError as error:
            raise MissingExtra("openai", "openai", f"the embedding model {self.model}") from error
        try:
            return openai.OpenAI(base_url=self.base_url)
        except openai.OpenAIError as error:
            raise EmbeddingFailed(f"{error}") from error

    def embed(self, texts: Sequence[str]) -> Float32:
        """Return one vector a text, (n, d) float32. Raises ``EmbeddingFailed``."""
        pages = [self._request(texts[i : i + BATCH]) for i in range(0, len(texts), BATCH)]
        return np.concatenate(pages) if pages else np.empty((0, self._dimension), np.float32)

    def _request(self, texts: Sequence[str]) -> Float32:
        client = self._client
        import openai

        try:
            answer = client.embeddings.create(model=self.model, input=list(texts))
        except openai.OpenAIError as error:
            raise EmbeddingFailed(
                f"the endpoint refused to embed with {self.model}: {error}"
            ) from error
        # The API may answer in any order; each entry carries its place.
        vectors = [entry.embedding for entry in sorted(answer.data, key=lambda entry: entry.index)]
        if [len(v) for v in vectors] != [self._dimension] * len(texts):
            raise EmbeddingFailed(
                f"{self.model} answered {len(vectors)} vectors of other length than "
                f"{self._dimension} for {len(texts)} texts: check model and dimension"
            )
        return np.asarray(vectors, dtype=np.float32)
