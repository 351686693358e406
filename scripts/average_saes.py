"""Average SAEs fine-tuned from one another: weight by weight, each alike.

What is tuned from the same weights lies in one valley, and the mean of several tunings has less of
what each learned of its own rows alone (Wortsman et al., "Model soups", arXiv 2203.05482; with the
weights they started from among them, "Robust fine-tuning", arXiv 2109.01903). SAEs trained from
different first weights have other neurons: their mean is nothing.

    python scripts/average_saes.py OUT FOLDER FOLDER... --texts FILE...

The FILEs are what the first FOLDER was trained on; what it held out, no other may have seen.
Measures in OUT are of that.
"""

import argparse
from pathlib import Path

import numpy as np

from memstore.cli.lab import read_texts
from memstore.core.vectors import unit_rows
from memstore.encoder import Encoder
from memstore.neurons.match import SAME
from memstore.sae import weights
from memstore.sae.encode import SAE
from memstore.sae.measure import measure
from memstore.training import (
    METRICS,
    TRAINING,
    cached_vectors,
    held_out_of,
    text_digest,
    write_json,
)
from memstore.types import Float32

#: Share of the neurons, number by number, that tunings of the same weights have in common.
KEPT = 0.95


def agreement(one: dict[str, Float32], other: dict[str, Float32]) -> Float32:
    """Return each neuron's cosine to the one of its number, of encoder row and decoder column."""
    both = [
        (unit_rows(a) * unit_rows(b)).sum(axis=1)
        for a, b in (
            (one["encoder.weight"], other["encoder.weight"]),
            (one["decoder.weight"].T, other["decoder.weight"].T),
        )
    ]
    return np.asarray(np.mean(both, axis=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--texts", nargs="+", required=True, metavar="FILE")
    parser.add_argument("--cache", type=Path, default=Path("build/vectors"))
    arguments = parser.parse_args()
    first, *others = arguments.folders
    (config, own), *rest = map(weights.load, arguments.folders)
    for folder, (its, tensors) in zip(others, rest, strict=True):
        if its != config:
            parser.error(f"{folder} has another architecture or other sizes than {first}")
        if (kept := np.mean(agreement(own, tensors) >= SAME)) < KEPT:
            parser.error(f"{folder} has {kept:.0%} of the neurons of {first}: tune both from one")
    texts, _ = read_texts(tuple(arguments.texts), "text", "text")
    vectors = cached_vectors(texts, Encoder.default().embedder, arguments.cache)
    held_out = held_out_of(first, vectors, text_digest(texts))
    mean = {name: np.mean([t[name] for _, t in ((config, own), *rest)], axis=0) for name in own}
    # A mean of unit vectors is shorter than one; activations are in units of a decoder column.
    mean["decoder.weight"] /= np.linalg.norm(mean["decoder.weight"], axis=0)
    weights.save(arguments.out, config, mean, np.float16)
    settings = [weights.read_json(folder / TRAINING) for folder in arguments.folders]
    same = {name: settings[0][name] for name in ("split", "texts")}
    write_json(arguments.out / TRAINING, {**same, "mean_of": settings})
    write_json(
        arguments.out / METRICS, measure(SAE.load(arguments.out), vectors[held_out]).to_dict()
    )


if __name__ == "__main__":
    main()
