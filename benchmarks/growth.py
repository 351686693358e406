"""The neuron index at one and at ten million traces: how each query grows.

    python benchmarks/growth.py [--sizes 1,10] [--rounds 5]

Independent neurons as in index.py --data zipf, one million made and then repeated with activations
shuffled; blocks in memory. Medians over rounds a query, then percentiles over queries.
"""

import argparse
import math
import time

import numpy as np

from memstore.core.expression import NeuronQuery
from memstore.index.blocks import Block
from memstore.index.postings import NeuronIndex
from memstore.index.summary import Summary
from memstore.types import Traces

MILLION, WIDTH, K, ROWS = 1_000_000, 4_096, 32, 62_500
CHANCE = 1 / (np.arange(WIDTH) + 10)


def make() -> Traces:
    dice, neurons = np.random.default_rng(0), np.empty((MILLION, K), np.uint16)
    for start in range(0, MILLION, ROWS):
        keys = np.log(CHANCE) + dice.gumbel(size=(ROWS, WIDTH))
        chosen = np.argpartition(-keys, K, axis=1)[:, :K]
        neurons[start : start + ROWS] = np.sort(chosen, axis=1)
    values = np.maximum(dice.exponential(0.1, MILLION * K), 1e-4).astype(np.float16)
    ids, starts = np.arange(MILLION), np.arange(MILLION + 1) * K
    return Traces(ids, starts, neurons.reshape(-1), values, WIDTH)


def build(traces: Traces, millions: int) -> NeuronIndex:
    blocks = []
    for copy in range(millions):
        dice, values = np.random.default_rng(copy), traces.activations
        values = dice.permutation(values) if copy else values
        for first in range(0, MILLION, ROWS):
            span = slice(first * K, (first + ROWS) * K)
            ids = np.arange(first, first + ROWS) + copy * MILLION + 1
            starts = np.arange(ROWS + 1) * K
            blocks.append(
                Block.build(Traces(ids, starts, traces.neurons[span], values[span], WIDTH))
            )
    return NeuronIndex(WIDTH, 1, tuple(blocks), Summary.of(blocks, WIDTH))


def questions(traces: Traces) -> dict[str, list[NeuronQuery]]:
    dice = np.random.default_rng(1)

    def composite(positive: int, negative: int) -> NeuronQuery:
        chance = CHANCE / CHANCE.sum()
        chosen = dice.choice(WIDTH, positive + negative, replace=False, p=chance)
        terms = [(int(n), 1.0 if i < positive else -1.0) for i, n in enumerate(chosen)]
        return NeuronQuery(tuple(sorted(terms)))

    asked = {
        "one neuron": [composite(1, 0) for _ in range(100)],
        "+a -b": [composite(1, 1) for _ in range(100)],
        "3 positive, 1 negative": [composite(3, 1) for _ in range(100)],
    }
    rows = dice.integers(0, MILLION, 40).tolist()
    whole = [tuple(zip(t.neurons.tolist(), t.activations.tolist(), strict=True))
             for t in (traces[row] for row in rows)]  # fmt: skip
    return asked | {"whole trace": [NeuronQuery(terms) for terms in whole]}


def measure(index: NeuronIndex, asked: list[NeuronQuery], rounds: int) -> tuple[float, float]:
    taken = np.empty((rounds, len(asked)))
    for round_ in range(rounds):
        for number, query in enumerate(asked):
            began = time.perf_counter()
            index.composite(query, 10)
            taken[round_, number] = 1e3 * (time.perf_counter() - began)
    own = np.median(taken, axis=0)
    return float(np.median(own)), float(np.quantile(own, 0.99))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="1,10", help="millions of traces")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    traces, size_before = make(), 0
    before: dict[str, float] = {}
    for size in map(int, arguments.sizes.split(",")):
        index = build(traces, size)
        for name, asked in questions(traces).items():
            median, late = measure(index, asked, arguments.rounds)
            line = f"{size:3} million  {name:<24}{median:8.3f} ms  p99 {late:8.3f} ms"
            if name in before:
                exponent = math.log(median / before[name]) / math.log(size / size_before)
                line += f"  exponent {exponent:.2f}"
            before[name] = median
            print(line, flush=True)
        size_before = size


if __name__ == "__main__":
    main()
