"""The embedder that ships: all-MiniLM-L6-v2 as ONNX, run by onnxruntime and tokenizers.

Mean pooling over all tokens, then unit L2 norm, as sentence-transformers does it. A text longer
than 256 tokens is not cut: it is split into windows of equal length, and its vector is the mean
over the tokens of all windows.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from memstore.errors import InvalidWeights
from memstore.types import Float32

MODEL, TOKENIZER = "model.onnx", "tokenizer.json"
#: Tokens the model was trained to see at once, [CLS] and [SEP] included.
WINDOW = 256
#: Padded tokens in a batch: enough to fill the cores, small enough for their caches.
BATCH_TOKENS = 4096
#: Texts tokenised at a time, so that memory does not grow with the input.
CHUNK = 1024
#: Everything but the two files that decides a vector; part of the fingerprint.
RECIPE = {"pooling": "mean over tokens of all windows", "norm": "l2", "window": WINDOW}

Window = list[int]


class OnnxEmbedder:
    """Runs the model of a folder with ``model.onnx`` and ``tokenizer.json`` on the CPU.

    ``threads`` is the number of cores to use, 0 for all.
    """

    def __init__(self, folder: Path, threads: int = 0) -> None:
        self.folder, self.threads = folder, threads

    @property
    def dimension(self) -> int:
        """Length of a vector, 384."""
        return int(self._session.get_outputs()[0].shape[-1])

    @cached_property
    def fingerprint(self) -> str:
        """Hex digest of model, tokenizer, pooling, normalisation and window."""
        digest = hashlib.sha256(json.dumps(RECIPE, sort_keys=True).encode())
        for name in (MODEL, TOKENIZER):
            digest.update(self._read(name))
        return digest.hexdigest()

    def _read(self, name: str) -> bytes:
        try:
            return (self.folder / name).read_bytes()
        except OSError as error:
            raise InvalidWeights(
                f"{self.folder / name} cannot be read: reinstall memstore-sae, or name the folder "
                "of an ONNX embedder"
            ) from error

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(self._read(TOKENIZER).decode("utf-8"))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer

    @cached_property
    def _session(self) -> Any:
        # Its builds send usage events to their maker unless told not to, and keep a device id in
        # the home folder; the variable is read once, at import. People put diaries in here.
        os.environ["ORT_DISABLE_TELEMETRY"] = "1"
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.log_severity_level = 3
        model = self._read(MODEL)
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def embed(self, texts: Sequence[str]) -> Float32:
        """Return unit vectors, (n, 384) float32, in the order given."""
        chunks = [
            self._embed_chunk(texts[start : start + CHUNK]) for start in range(0, len(texts), CHUNK)
        ]
        return np.concatenate(chunks) if chunks else np.empty((0, self.dimension), np.float32)

    def windows(self, text: str) -> list[Window]:
        """Return the token ids of each window of a text, [CLS] and [SEP] around every one."""
        return split(self._tokenizer.encode(text).ids)

    def _embed_chunk(self, texts: Sequence[str]) -> Float32:
        owners: list[int] = []
        windows: list[Window] = []
        for owner, encoding in enumerate(self._tokenizer.encode_batch(list(texts))):
            for window in split(encoding.ids):
                owners.append(owner)
                windows.append(window)
        sums = np.zeros((len(texts), self.dimension), dtype=np.float64)
        for rows in batches([len(window) for window in windows]):
            for row, states in zip(rows, self._states([windows[r] for r in rows]), strict=True):
                # Summed here, token after token: a sum within the graph came out otherwise in its
                # last bit for a text alone than for the same text in a batch.
                sums[owners[row]] += states.sum(axis=0, dtype=np.float64)
        return np.asarray(sums / np.linalg.norm(sums, axis=1, keepdims=True), dtype=np.float32)

    def _states(self, windows: list[Window]) -> list[Float32]:
        """Return the (tokens, d) token states of each window, one batch of the model."""
        shape = (len(windows), max(len(window) for window in windows))
        ids, mask = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        for row, window in enumerate(windows):
            ids[row, : len(window)] = window
            mask[row, : len(window)] = 1
        states = self._session.run(None, {"input_ids": ids, "attention_mask": mask})[0]
        return [own[: len(window)] for own, window in zip(states, windows, strict=True)]


def split(ids: list[int]) -> list[Window]:
    """Return the windows of a tokenised text; one where it fits, else several of even length."""
    if len(ids) <= WINDOW:
        return [ids]
    first, inner, last = ids[0], ids[1:-1], ids[-1]
    count = -(-len(inner) // (WINDOW - 2))
    bounds = [len(inner) * i // count for i in range(count + 1)]
    return [[first, *inner[a:b], last] for a, b in pairwise(bounds)]


def batches(lengths: list[int]) -> list[list[int]]:
    """Return row numbers in batches of like length, so that little of a batch is padding."""
    result: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        # Rows come by ascending length, so this one sets the width of the batch.
        if not result or lengths[row] * (len(result[-1]) + 1) > BATCH_TOKENS:
            result.append([])
        result[-1].append(row)
    return result
