"""Any sentence-transformers model, by name or folder: how the prototype embedded."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from memstore.errors import InvalidWeights, MissingExtra
from memstore.types import Float32


class SentenceTransformerEmbedder:
    """Wraps ``SentenceTransformer(name)``; its own pooling, normalisation and length limit apply.

    Texts longer than the model's ``max_seq_length`` are cut by sentence-transformers. The
    fingerprint covers weights, tokenizer and module settings, never the name.
    """

    def __init__(self, name: str, device: str | None = None) -> None:
        self.name, self.device = name, device

    @cached_property
    def _model(self) -> Any:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise MissingExtra(
                "sentence-transformers", "train", f"the model {self.name}"
            ) from error
        try:
            return SentenceTransformer(self.name, device=self.device)
        except (OSError, ValueError) as error:
            raise InvalidWeights(
                f"sentence-transformers cannot load {self.name!r}: {str(error).splitlines()[0]} "
                "(name a model on disk, or one that can be downloaded)"
            ) from error

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return int(self._model.get_sentence_embedding_dimension())

    @cached_property
    def fingerprint(self) -> str:
        """Hex digest of weights, tokenizer and module settings."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self._model.state_dict().items()):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(tensor.cpu().float().numpy()).tobytes())
        for module in self._model:
            settings = module.get_config_dict() if hasattr(module, "get_config_dict") else {}
            digest.update(repr((type(module).__name__, sorted(settings.items()))).encode())
        tokenizer = self._model.tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        vocabulary = sorted(tokenizer.get_vocab().items()) if backend is None else backend.to_str()
        digest.update(repr((vocabulary, self._model.max_seq_length)).encode())
        return digest.hexdigest()

    def embed(self, texts: Sequence[str]) -> Float32:
        """Return one vector a text, (n, d) float32, as the model gives them."""
        vectors = self._model.encode(list(texts), convert_to_numpy=True, show_progress_bar=False)
        return np.asarray(vectors, dtype=np.float32).reshape(len(texts), -1)
