"""The loss of a TopK SAE: fraction of variance unexplained, AuxK against dead neurons, and a
penalty on neurons that fire for too many texts.

Pure functions of tensors; shapes as in ``model``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from memstore.sae.model import Forward, TopK

#: Weight of the auxiliary loss (Gao et al., arXiv 2406.04093, appendix A.2).
AUXK_WEIGHT = 1 / 32
#: A neuron that fires for more than this share of the texts says little of any one of them; where
#: few neurons share the work, for more than three times the mean rate k/n.
BUSY_RATE = 0.08
BUSY_FACTOR = 3.0
BUSY_WEIGHT = 2.0


def fvu(vectors: Tensor, reconstruction: Tensor, variance: float) -> Tensor:
    """Return mean squared error over ``variance``: E||x - x_hat||^2 / E||x - mean||^2.

    The denominator is fixed over the whole training set, so batches weigh alike.
    """
    return (vectors - reconstruction).pow(2).sum(dim=1).mean() / variance


def auxk(model: TopK, vectors: Tensor, forward: Forward, dead: Tensor) -> Tensor:
    """Return how badly the dead neurons alone explain what the living left over.

    The residual is detached and decoded without bias (it has none left to explain), normalised by
    its own variance, and scaled down while fewer than d/2 neurons are dead.
    """
    count = int(dead.sum())
    if count == 0:
        return torch.zeros((), device=vectors.device)
    k_aux = min(model.config.dimension // 2, count)
    residual = (vectors - forward.reconstruction).detach()
    silent = forward.pre_activations.masked_fill(~dead, 0.0)
    activations, neurons = silent.topk(k_aux, dim=1, sorted=False)
    guess = model.decode(activations, neurons, bias=False)
    variance = (residual - residual.mean(dim=0)).pow(2).sum(dim=1).mean().clamp_min(1e-8)
    scale = min(1.0, count / (model.config.dimension // 2))
    return scale * (residual - guess).pow(2).sum(dim=1).mean() / variance


def busy(model: TopK, forward: Forward, rates: Tensor) -> Tensor:
    """Return the mean activation of neurons that fire too often, weighted by how much too often.

    ``rates`` (n,) is the running share of vectors each neuron fires for. L1 on the offenders alone:
    they lose their place among the k largest where they matter least.
    """
    limit = max(BUSY_RATE, BUSY_FACTOR * model.k / model.config.neurons)
    excess = torch.relu(rates - limit)
    return (forward.activations * excess[forward.neurons]).sum(dim=1).mean()
