"""The shipped graph's weights under the names of a transformers ``BertModel``, for export."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from memstore.embed.onnx import MODEL
from memstore.errors import MissingExtra
from memstore.types import Float32


def bert_weights(folder: Path) -> dict[str, Float32]:
    """Return the tensors of a graph that ``scripts/build_minilm.py`` wrote, as float32.

    Matrices are stored as int8 (inputs, outputs) with one scale an output, the word table as int8
    rows with one scale each; position and type embeddings are one table.
    """
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise MissingExtra("onnx", "train", "reading the shipped embedder's weights") from error

    graph = onnx.load(folder / MODEL).graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    result: dict[str, Float32] = {}
    for name, values in stored.items():
        if name == "words.int8":
            rows = values.astype(np.float32) * stored["words.scale"][:, None]
            result["embeddings.word_embeddings.weight"] = rows
        elif name == "positions":
            result["embeddings.position_embeddings.weight"] = values.copy()
            result["embeddings.token_type_embeddings.weight"] = np.zeros(
                (2, values.shape[1]), np.float32
            )
        elif name.endswith(".int8"):
            layer = name.removesuffix(".int8")
            matrix = values.astype(np.float32) * stored[f"{layer}.scale"]
            result[f"{layer}.weight"] = np.ascontiguousarray(matrix.T)
        elif name.startswith(("embeddings.", "encoder.")) and not name.endswith(".scale"):
            result[name] = values.copy()
    return result
