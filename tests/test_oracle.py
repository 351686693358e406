"""Every query equals brute force, over random stores with random histories."""

import functools
import itertools
import re
import sqlite3
import tempfile
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import oracle
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import Asked, Row, assert_ranking, composite_scores, dense_scores, trace_scores

from memstore import MemoryStore, N
from memstore.embed.function import FunctionEmbedder
from memstore.encoder import Encoder
from memstore.sae.config import SAEConfig
from memstore.sae.encode import SAE

CONFIG = SAEConfig("topk", dimension=6, neurons=10, k=4)
DENSE, TRACE, WORD = 1e-6, 1e-9, 1e-12  # how near the scores must be
UNHURRIED = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
budget = settings(deadline=None, max_examples=50, suppress_health_check=UNHURRIED)

# --- the encoder: words on a small integer grid, so that texts tie exactly ---------------------

WORDS = {
    "rain": (1, 1, 0, 0, 0, 0),
    "walk": (1, 0, 1, 0, 0, 0),
    "joy": (0, 1, 1, 0, 0, -1),
    "quiet": (-1, -1, 0, 0, 0, 0),
    "café": (0, 0, 0, 1, 1, 0),
    "letter": (0, 0, 0, 1, 0, 1),
}
random = np.random.default_rng(0)  # SEED
TENSORS = {name: random.normal(size=shape) for name, shape in CONFIG.shapes().items()}
TENSORS["encoder.bias"] -= 0.5  # so that some texts fire few neurons, or none


def meaning(text):
    """Return the sum of the vectors of a text's words; never zero."""
    total = np.sum([WORDS[word] for word in re.findall(r"\w+", text.lower())], axis=0)
    return total if total.any() else np.ones(CONFIG.dimension)


@functools.cache
def unit(text):
    return (meaning(text) / np.linalg.norm(meaning(text))).tolist()


@functools.cache
def trace_of(text):
    """Return the k strongest of ReLU(W (x - b_d) + b_e), as the float16 that is stored."""
    centred = np.array(unit(text)) - TENSORS["decoder.bias"]
    z = TENSORS["encoder.weight"] @ centred + TENSORS["encoder.bias"]
    strongest = np.sort(np.argsort(-z)[: CONFIG.k])
    return {n: float(np.float16(z[n])) for n in strongest.tolist() if z[n] > 0}


ENCODER = Encoder(
    FunctionEmbedder(lambda texts: [meaning(t) for t in texts], CONFIG.dimension, name="test"),
    SAE(CONFIG, {name: tensor.astype(np.float32) for name, tensor in TENSORS.items()}),
    name="test",
    config={"embedder": {"kind": "object", "class": "test"}, "sae": "test"},
)
