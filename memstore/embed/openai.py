"""Any OpenAI-compatible embeddings endpoint, through the openai client."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from memstore.embed.batch import ENDPOINT, vectors_of
from memstore.errors import EmbeddingFailed, JobError
from memstore.jobs.server import Server
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
    def _server(self) -> Server:
        return Server(self.base_url)

    def embed(self, texts: Sequence[str]) -> Float32:
        """Return one vector a text, (n, d) float32. Raises ``EmbeddingFailed``."""
        pages = [self._request(texts[i : i + BATCH]) for i in range(0, len(texts), BATCH)]
        return np.concatenate(pages) if pages else np.empty((0, self._dimension), np.float32)

    def _request(self, texts: Sequence[str]) -> Float32:
        body = {"model": self.model, "input": list(texts), "encoding_format": "base64"}
        try:
            vectors = vectors_of(self._server.ask(ENDPOINT, body))
        except JobError as error:
            raise EmbeddingFailed(f"no embeddings of {self.model}: {error}") from error
        if vectors.shape != (len(texts), self._dimension):
            raise EmbeddingFailed(
                f"{self.model} answered vectors of shape {vectors.shape}, not "
                f"{(len(texts), self._dimension)}: check model and dimension"
            )
        return vectors
