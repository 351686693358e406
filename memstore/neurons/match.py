"""Which neuron of one SAE is which of another: one-to-one matching by their directions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from memstore.core.vectors import unit_rows
from memstore.types import Float32, Float64, Int64

#: A pair whose directions agree less than this is not the same neuron (arXiv 2501.16615).
SAME = 0.7


@dataclass(frozen=True)
class Match:
    """The pairing of the neurons of two SAEs: pair i is (left[i], right[i]) with its cosine."""

    left: Int64
    right: Int64
    cosines: Float64

    @property
    def share(self) -> float:
        """Share of the pairs that are the same neuron: cosine ``SAME`` or more."""
        return float(np.mean(self.cosines >= SAME)) if len(self.cosines) else 0.0


def match(encoder_a: Float32, decoder_a: Float32, encoder_b: Float32, decoder_b: Float32) -> Match:
    """Return the pairing of largest total cosine, each array (neurons, d).

    The cosine of a pair is the mean of those of their encoder rows and decoder columns; the pairing
    is the Hungarian one (Kuhn 1955), as Paulo and Belrose match SAEs of two seeds (arXiv
    2501.16615).
    """
    from scipy.optimize import linear_sum_assignment

    of_encoders = unit_rows(encoder_a) @ unit_rows(encoder_b).T
    cosines = (of_encoders + unit_rows(decoder_a) @ unit_rows(decoder_b).T) / 2
    left, right = linear_sum_assignment(cosines, maximize=True)
    return Match(left, right, cosines[left, right].astype(np.float64))
