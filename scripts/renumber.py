"""Give the neurons of an SAE the numbers that they have in an earlier one.

Which neuron comes first means nothing, so one that both SAEs have can keep its number, and with
it its label, once a second reading has found that it still holds. The others take what numbers are
left.

    python scripts/renumber.py EARLIER TRAINED OUT
"""

import argparse
from pathlib import Path

import numpy as np

from memstore.neurons.match import SAME, match
from memstore.sae import weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("earlier", "trained", "out"):
        parser.add_argument(name, type=Path)
    arguments = parser.parse_args()
    (_, earlier), (config, trained) = map(weights.load, (arguments.earlier, arguments.trained))
    found = match(
        earlier["encoder.weight"],
        earlier["decoder.weight"].T,
        trained["encoder.weight"],
        trained["decoder.weight"].T,
    )
    order = np.empty(config.neurons, dtype=np.int64)
    order[found.left] = found.right
    axes = {"encoder.weight": 0, "encoder.bias": 0, "decoder.weight": 1}
    moved = {name: trained[name].take(order, axis) for name, axis in axes.items()}
    weights.save(arguments.out, config, {**trained, **moved}, np.float16)
    same = int(np.count_nonzero(found.cosines >= SAME))
    print(f"{same} of {config.neurons} neurons keep their number")  # noqa: T201 - a script reports on stdout


if __name__ == "__main__":
    main()
