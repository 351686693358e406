"""How to train an SAE: the settings of a run, and the defaults of the recipe."""

from __future__ import annotations

import math
from dataclasses import dataclass

from memstore.errors import InvalidInput
from memstore.sae.config import PROTOTYPES, SAEConfig
from memstore.types import Float32

#: Adam's rate, falling with 1 / sqrt(neurons) beyond so many of them. Far above what is usual for
#: the activations of language models: at 3,072 neurons, k = 32 and 1.4 million rows of sentence
#: vectors, held-out FVU was .334 at 4.6e-4, .285 at 1e-3, .256 at 2e-3, .244 at 4e-3; over 11
#: million rows 4e-3 let 30 neurons die and, kept flat, stood still at .265 until it fell.
RATE, RATE_NEURONS = 2e-3, 3072
#: Adam's rate for the prototype's networks, theirs.
PROTOTYPE_RATE = 1e-3
SEEDS = 1 << 32


@dataclass(frozen=True)
class TrainConfig:
    """How to train. The defaults are the recipe of docs/encoder.md."""

    epochs: int = 20
    """Passes over the training vectors; each in a new random order, less what fills no batch."""
    batch: int = 1024
    """Vectors a step, all of them where they are fewer."""
    learning_rate: float | None = None
    """Adam's rate; None for ``RATE``, or ``PROTOTYPE_RATE`` for the prototype's networks."""
    warmup: float = 0.05
    """Share of the steps over which the rate rises from 0."""
    decay: float = 0.95
    """Share of the steps, at the end, over which it falls to 0."""
    dead_rows: int = 5_000
    """A neuron silent for this many rows counts as dead and gets the auxiliary loss: one that fires
    less often has too few texts to mean anything."""
    seed: int = 0
    """Decides initial weights and data order."""
    sparsity: float | None = None
    """Weight of the sparsity penalty; None for the architecture's own (``Model.SPARSITY``)."""
    learned_target: bool = False
    """``sparse_memory_text``: let the loss change its own target, as the prototype's did."""
    frozen_decoder: bool = False
    """Keep the decoder as it was drawn: the baseline of arXiv 2602.14111."""
    patience: int | None = None
    """Stop once so many epochs have not lowered the FVU of the held-out vectors; None: never."""
    device: str = "cpu"
    """Where to train: "cpu", "cuda"."""

    def __post_init__(self) -> None:
        counts = (self.epochs, self.batch, self.dead_rows, self.patience)
        weights = (self.learning_rate, self.sparsity)
        if (
            any(count is not None and count < 1 for count in counts)
            or not 0 <= self.warmup + self.decay <= 1
            or not 0 <= self.seed < SEEDS
            or not all(weight is None or 0 <= weight < math.inf for weight in weights)
            or self.learning_rate == 0
        ):
            raise InvalidInput(f"not a training schedule: {self}")

    def rate(self, config: SAEConfig) -> float:
        """Return the peak learning rate for an SAE of this size."""
        if self.learning_rate is not None:
            return self.learning_rate
        if config.architecture in PROTOTYPES:
            return PROTOTYPE_RATE
        return RATE * min(1.0, math.sqrt(RATE_NEURONS / config.neurons))

    def require_sense(
        self,
        config: SAEConfig,
        penalty: float,
        row_weights: Float32 | None,
        held_out: Float32 | None,
    ) -> None:
        """Raise ``InvalidInput`` for a setting that would change nothing for this SAE.

        ``penalty`` is the architecture's own weight of a sparsity penalty, 0 where it has none.
        """
        name = config.architecture
        prototype, text = name in PROTOTYPES, name == "sparse_memory_text"
        senseless = {
            f"frozen_decoder says nothing to {name}": self.frozen_decoder and prototype,
            f"sparsity says nothing to {name}, where k decides": self.sparsity is not None
            and not penalty,
            f"learned_target says nothing to {name}": self.learned_target and not text,
            "patience says nothing without held-out vectors whose FVU can be told": self.patience
            is not None
            and (held_out is None or text),
            f"weights of rows say nothing to {name}": row_weights is not None and not prototype,
            f"{name} is sparse in the mean over all rows, and a weight of a row's sparsity says "
            "nothing": row_weights is not None
            and not text
            and bool((row_weights[:, 1] != 1).any()),
        }
        for complaint, given in senseless.items():
            if given:
                raise InvalidInput(f"{complaint}: leave it out")
