"""What training an SAE minimises: pure functions of tensors, each with its source.

b rows, d dimensions, n neurons. Errors and penalties are means over rows.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

#: Weight of the auxiliary loss (Gao et al., arXiv 2406.04093, appendix A.2).
AUXK_WEIGHT = 1 / 32
#: A neuron that fires for more than this share of the texts says little of any one of them; where
#: few neurons share the work, for more than three times the mean rate k/n.
BUSY_RATE = 0.08
BUSY_FACTOR = 3.0
BUSY_WEIGHT = 2.0
#: Mean activations between which the KL penalty is taken as written; beyond, along its tangent.
KL_BOUNDS = (1e-3, 1 - 1e-3)


def fvu(vectors: Tensor, reconstruction: Tensor, variance: float) -> Tensor:
    """Return mean squared error over ``variance``: E||x - x_hat||^2 / E||x - mean||^2.

    The denominator is fixed over the whole training set, so batches weigh alike.
    """
    return (vectors - reconstruction).pow(2).sum(dim=1).mean() / variance


def auxk(
    pre_activations: Tensor,
    dead: Tensor,
    residual: Tensor,
    decode: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Return how badly the dead neurons alone explain what the living left over (``residual``).

    ``decode(activations, neurons)`` adds no bias: the detached residual has none left to explain.
    Normalised by the residual's own variance, scaled down while fewer than d/2 neurons are dead
    (Gao et al., arXiv 2406.04093, appendix A.2).
    """
    count, half = int(dead.sum()), max(1, residual.shape[1] // 2)
    if count == 0:
        return torch.zeros((), device=residual.device)
    residual = residual.detach()
    silent = pre_activations.masked_fill(~dead, 0.0)
    activations, neurons = silent.topk(min(half, count), dim=1, sorted=False)
    guess = decode(activations, neurons)
    variance = (residual - residual.mean(dim=0)).pow(2).sum(dim=1).mean().clamp_min(1e-8)
    return min(1.0, count / half) * (residual - guess).pow(2).sum(dim=1).mean() / variance


def busy(activations: Tensor, neurons: Tensor, rates: Tensor) -> Tensor:
    """Return the mean activation of neurons that fire too often, weighted by how much too often.

    ``activations`` and ``neurons`` are (b, k), ``rates`` (n,) the running share of vectors each
    neuron fires for. L1 on the offenders alone: they lose their place among the k largest where
    they matter least.
    """
    limit = max(BUSY_RATE, BUSY_FACTOR * activations.shape[1] / len(rates))
    excess = torch.relu(rates - limit)
    return (activations * excess[neurons]).sum(dim=1).mean()


def l1(activations: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the mean L1 norm of rows of activations, each row's times its weight if given."""
    norms = activations.abs().sum(dim=1)
    return (norms if weights is None else norms * weights).mean()


def squared_error(target: Tensor, guess: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the mean squared error over rows and dimensions, each row's times its weight."""
    errors = (target - guess).pow(2).mean(dim=1)
    return (errors if weights is None else errors * weights).mean()


def kl_sparsity(activations: Tensor, target: float) -> Tensor:
    """Return the KL divergence of each neuron's mean activation from ``target``, summed.

    ::

        sum_j  t log(t / r_j) + (1 - t) log((1 - t) / (1 - r_j)),      r_j = mean_b a_bj

    of two Bernoulli variables (Ng, "Sparse autoencoder", CS294A notes, 2011), so a mean activation
    must lie between 0 and 1. Activations of a ReLU need not: at 0 and 1 the formula is infinite and
    above 1 there is none. Beyond ``KL_BOUNDS`` it goes on along its tangent: finite, and still
    pulling towards the target.
    """
    mean = activations.mean(dim=0)
    inside = mean.clamp(*KL_BOUNDS)
    divergence = target * torch.log(target / inside)
    divergence = divergence + (1 - target) * torch.log((1 - target) / (1 - inside))
    edge = inside.detach()
    slope = (1 - target) / (1 - edge) - target / edge
    return (divergence + slope * (mean - inside)).sum()


def step(values: Tensor, thresholds: Tensor, bandwidth: float) -> Tensor:
    """Return H(z - t), 1 where z exceeds its threshold, with a straight-through gradient for t.

    The step's derivative is taken as a box of width ``bandwidth`` around t, as in JumpReLU
    (Rajamanoharan et al., arXiv 2407.14435, section 3); z gets none.
    """
    return (values > thresholds).to(values.dtype) - pull(values, thresholds, bandwidth)


def jump(values: Tensor, thresholds: Tensor, bandwidth: float) -> Tensor:
    """Return z H(z - t), with the straight-through gradient of arXiv 2407.14435 for t."""
    moved = thresholds.detach() * pull(values, thresholds, bandwidth)
    return values * (values > thresholds) - moved


def pull(values: Tensor, thresholds: Tensor, bandwidth: float) -> Tensor:
    """Return zeros whose gradient for t is the box: 1 / bandwidth where z is near t."""
    near = ((values - thresholds).abs() < bandwidth / 2).to(values.dtype).detach()
    return near / bandwidth * (thresholds - thresholds.detach())
