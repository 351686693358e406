"""Encoder: embedder + SAE under one fingerprint, and how a store finds its own again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memstore import layout
from memstore.core.vectors import unit_vectors
from memstore.errors import RENEW, EncoderMismatch, InvalidWeights, brief
from memstore.types import Embedder, Float32, Trace, Traces

if TYPE_CHECKING:
    from memstore.catalog.neurons import EncoderRecord
    from memstore.sae.encode import SAE

#: A folder with this file, and ``tokenizer.json``, is run by onnxruntime.
ONNX_MODEL = "model.onnx"


@dataclass(frozen=True)
class Encoder:
    """Text -> vector -> trace.

    ``embedder`` and ``sae`` must agree on the dimension. ``Encoder.default()`` is the one that
    ships; ``Encoder.of(...)`` builds one of parts by name.
    """

    embedder: Embedder
    sae: SAE
    name: str
    config: Mapping[str, Any]
    """What ``Encoder.from_config`` needs to build it again; kept in the store."""

    def __post_init__(self) -> None:
        if self.embedder.dimension != self.sae.config.dimension:
            raise InvalidWeights(
                f"the embedder has {self.embedder.dimension} dimensions, the SAE was trained on "
                f"{self.sae.config.dimension}: choose an SAE trained on this embedder"
            )

    @classmethod
    def default(cls) -> Encoder:
        """Return the shipped encoder: all-MiniLM-L6-v2 and its TopK SAE, offline, without torch."""
        return cls.of()

    @classmethod
    def of(cls, embedder: Embedder | str | None = None, sae: Path | str | None = None) -> Encoder:
        """Return an encoder of parts.

        ``embedder`` is an object with ``dimension``, ``fingerprint`` and ``embed``, the name or
        folder of a sentence-transformers model, a folder with ``model.onnx`` and ``tokenizer.json``
        (the model gives token states, their mean is taken here), or None for the shipped one.
        ``sae`` is a weights folder, a prototype's ``.pth`` file, the name of a shipped SAE
        ("sae-3072-k64"), or None for the default one.
        """
        if not isinstance(sae, Path | str | None):
            raise InvalidWeights(f"sae={brief(sae)}: name a weights folder, or 'sae-3072-k64'")
        folder = layout.SAE_FOLDER if sae is None else layout.named_model(sae)
        if embedder is not None and not isinstance(embedder, Embedder | str):
            raise InvalidWeights(
                f"embedder={brief(embedder)}: name a model or a folder, or hand in an object with "
                "dimension, fingerprint and embed"
            )
        if embedder is None or isinstance(embedder, str):
            config = embedder_config(embedder)
            return cls._of(load_embedder(config), config, folder)
        return cls._of(embedder, {"kind": "object", "class": type(embedder).__name__}, folder)

    @classmethod
    def _of(cls, embedder: Embedder, config: Mapping[str, Any], folder: Path) -> Encoder:
        from memstore.sae.encode import SAE

        return cls(
            embedder,
            SAE.load(folder),
            name=f"{embedder_name(config)} + {folder.name}",
            config={"embedder": dict(config), "sae": layout.model_location(folder)},
        )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Encoder:
        """Return the encoder that a store wrote down.

        Raises ``InvalidWeights`` where a part cannot be found on this machine.
        """
        embedder, sae = config["embedder"], layout.resolve_model(config["sae"])
        if config["sae"].startswith(layout.BUILTIN) and not sae.exists():
            raise InvalidWeights(
                f"this store was encoded by the SAE {sae.name}, which this version no longer "
                f"ships: neuron queries still answer; for texts {RENEW}"
            )
        if embedder["kind"] == "object":
            raise InvalidWeights(
                f"this store was made with an embedder of class {embedder['class']}, which only "
                "your program has: hand it in, MemoryStore.open(path, encoder=Encoder.of(...))"
            )
        return cls._of(load_embedder(embedder), embedder, sae)

    @cached_property
    def fingerprint(self) -> str:
        """Hex digest of both parts; two encoders of equal fingerprint give equal traces."""
        both = f"{self.embedder.fingerprint}+{self.sae.fingerprint}"
        return hashlib.sha256(both.encode()).hexdigest()

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return self.sae.config.dimension

    @property
    def neurons(self) -> int:
        """Number of neurons."""
        return self.sae.config.neurons

    def record(self) -> EncoderRecord:
        """Return what a store writes down of it; the catalog gives the id."""
        from memstore.catalog.neurons import EncoderRecord

        return EncoderRecord(
            0, self.fingerprint, self.name, self.dimension, self.neurons, self.config
        )

    def require(self, fingerprint: str, name: str) -> Encoder:
        """Return self, or raise ``EncoderMismatch`` unless this is the store's own encoder."""
        if self.fingerprint != fingerprint:
            raise EncoderMismatch(fingerprint, self.fingerprint, name)
        return self

    def vectors(self, texts: Sequence[str]) -> Float32:
        """Return unit vectors of texts, (n, d) float32."""
        return unit_vectors(self.embedder.embed(texts), len(texts), self.dimension)

    def traces(self, vectors: Float32) -> Traces:
        """Return the traces of (n, d) unit vectors; rows are numbered from 0."""
        return self.sae.encode(vectors)

    def question(self, vector: Float32) -> Trace:
        """Return the trace of a question, a (d,) unit vector: of more neurons than one stored."""
        return self.sae.encode(vector[None], wide=True)[0]


def embedder_config(name: str | None) -> dict[str, Any]:
    """Return what to write down for the shipped embedder, a folder of ONNX, or another model."""
    folder = layout.EMBEDDER_FOLDER if name is None else Path(name)
    if (folder / ONNX_MODEL).is_file():
        return {"kind": "onnx", "folder": layout.model_location(folder)}
    return {"kind": "sentence-transformers", "name": name}


def embedder_name(config: Mapping[str, Any]) -> str:
    """Return what to call an embedder."""
    if config["kind"] == "onnx":
        return layout.resolve_model(config["folder"]).name
    return str(config.get("name") or config["class"])


def load_embedder(config: Mapping[str, Any]) -> Embedder:
    """Return the embedder that was written down."""
    loaders: dict[str, Callable[[], Embedder]] = {
        "onnx": lambda: _onnx(layout.resolve_model(config["folder"])),
        "sentence-transformers": lambda: _sentence_transformers(config["name"]),
    }
    return loaders[config["kind"]]()


def _onnx(folder: Path) -> Embedder:
    from memstore.embed.onnx import OnnxEmbedder

    return OnnxEmbedder(folder)


def _sentence_transformers(name: str) -> Embedder:
    from memstore.embed.sentence_transformers import SentenceTransformerEmbedder

    return SentenceTransformerEmbedder(name)
