"""SAEs over one dictionary as torch modules; ``forward`` equals ``sae.encode`` (a test).

What an architecture must say is ``Model``; the trainer knows nothing else of it. The prototype's
two are in ``sae.prototype``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from memstore.errors import InvalidWeights
from memstore.sae.config import SAEConfig
from memstore.sae.loss import AUXK_WEIGHT, BUSY_WEIGHT, auxk, busy, fvu, jump, l1, step
from memstore.types import Float32

UNIT = 1e-2  # how far from 1 half precision brings a norm
#: Share of the steps over which a sparsity penalty rises to its weight.
SPARSITY_WARMUP = 0.05


class Forward(NamedTuple):
    """One forward pass over a batch of b vectors."""

    pre_activations: Tensor
    """What the activations were chosen from, (b, n)."""
    activations: Tensor
    """(b, n), or (b, k) where ``neurons`` names them."""
    neurons: Tensor | None
    """Neurons of the activations, (b, k); None where those are of all neurons."""
    reconstruction: Tensor
    """Decoded vectors, (b, d)."""

    def fires(self) -> Tensor:
        """Return how many rows each neuron fires for, (n,)."""
        if self.neurons is None:
            return (self.activations > 0).sum(dim=0)
        fired = self.neurons[self.activations > 0]
        return torch.bincount(fired, minlength=self.pre_activations.shape[1])


@dataclass(frozen=True)
class Standing:
    """What a loss may look at beside the batch."""

    variance: float
    """Of the training vectors: mean squared distance to their mean."""
    dead: Tensor
    """(n,) which neurons have not fired for long."""
    rates: Tensor
    """(n,) running share of rows each fires for."""
    done: float
    """Share of the steps already taken."""
    sparsity: float
    """Weight of the sparsity penalty."""
    row_weights: Tensor | None = None
    """(b, 2) weights of each row's reconstruction and sparsity."""

    @property
    def warm_sparsity(self) -> float:
        """The weight of the sparsity penalty at this step, rising at first."""
        return self.sparsity * min(1.0, self.done / SPARSITY_WARMUP)


class Model(nn.Module):
    """What the trainer asks of an architecture: forward, loss, and the weights to keep."""

    #: Weight of the sparsity penalty where nobody says otherwise; 0 where there is none.
    SPARSITY = 0.0

    def __init__(self, config: SAEConfig) -> None:
        super().__init__()
        self.config = config

    def loss(self, vectors: Tensor, forward: Forward, standing: Standing) -> Tensor:
        """Return what a step minimises."""
        raise NotImplementedError

    def before_step(self) -> None:
        """Change gradients before the optimiser sees them."""

    def after_step(self) -> None:
        """Change weights after the optimiser did."""

    def named_weights(self) -> dict[str, Tensor]:
        """Return the weights under the names of ``SAEConfig.shapes``."""
        raise NotImplementedError

    @torch.no_grad()
    def start_from(self, base: Mapping[str, Float32]) -> None:
        """Take over the weights of another network that have the same names: fine-tuning.

        Raises ``InvalidWeights`` where a size differs, or nothing has the same name.
        """
        own = self.named_weights()
        shared = own.keys() & base.keys()
        if not shared:
            raise InvalidWeights("the base weights have nothing that this architecture has")
        for name in shared:
            if tuple(own[name].shape) != base[name].shape:
                raise InvalidWeights(
                    f"{name} of the base weights has shape {base[name].shape}, not "
                    f"{tuple(own[name].shape)}: choose the same sizes"
                )
            own[name].copy_(torch.from_numpy(base[name]))

    def tensors(self) -> dict[str, Float32]:
        """Return the weights as ``sae.weights`` stores them."""
        named = self.named_weights().items()
        return {n: t.detach().cpu().numpy().astype(np.float32) for n, t in named}


class Dictionary(Model):
    """Linear encoder and decoder around the mean of the data.

    ::

        z = W_e (x - b_d) + b_e       x_hat = W_d a + b_d

    and a is chosen from z as the architecture says. Decoder columns have unit norm; the encoder
    starts as the decoder's transpose, then goes free. ``b_d`` starts at the mean of the data:
    centring keeps neurons from dying, or firing always.
    """

    def __init__(self, config: SAEConfig, mean: Tensor, generator: torch.Generator) -> None:
        super().__init__(config)
        directions = torch.randn(config.neurons, config.dimension, generator=generator)
        directions /= directions.norm(dim=1, keepdim=True)
        self.encoder_weight = nn.Parameter(directions.clone())
        self.encoder_bias = nn.Parameter(torch.zeros(config.neurons))
        #: One row a neuron, so that decoding is an embedding-bag over the k rows that fire.
        self.directions = nn.Parameter(directions)
        self.decoder_bias = nn.Parameter(mean.clone())

    @torch.no_grad()
    def start_from(self, base: Mapping[str, Float32]) -> None:
        """Take over weights, brought to a decoder of unit norm: what a neuron fires grows by it."""
        super().start_from(base)
        norms = self.directions.norm(dim=1).clamp_min(1e-8)
        if bool(((norms - 1).abs() > UNIT).any()):
            self.directions.div_(norms[:, None])
            self.encoder_weight.mul_(norms[:, None])
            self.encoder_bias.mul_(norms)
            self.grow(norms)

    def grow(self, norms: Tensor) -> None:
        """Bring along what activations are compared with, (n,) of them grown by ``norms``."""

    def before_relu(self, vectors: Tensor) -> Tensor:
        """Return z of (b, d) vectors, (b, n)."""
        centred = vectors - self.decoder_bias
        return nn.functional.linear(centred, self.encoder_weight, self.encoder_bias)

    def decode(self, activations: Tensor, neurons: Tensor, *, bias: bool = True) -> Tensor:
        """Return the weighted sum of the decoder rows of the given neurons, (b, k) each."""
        bag = nn.functional.embedding_bag(
            neurons, self.directions, per_sample_weights=activations, mode="sum"
        )
        return bag + self.decoder_bias if bias else bag

    def decode_all(self, activations: Tensor) -> Tensor:
        """Return the reconstruction of (b, n) activations."""
        return activations @ self.directions + self.decoder_bias

    def revival(self, vectors: Tensor, forward: Forward, standing: Standing) -> Tensor:
        """Return the weighted auxiliary loss that lets dead neurons learn."""
        residual = vectors - forward.reconstruction
        alive = torch.relu(forward.pre_activations)
        guess = auxk(alive, standing.dead, residual, lambda a, n: self.decode(a, n, bias=False))
        return AUXK_WEIGHT * guess

    @torch.no_grad()
    def before_step(self) -> None:
        """Drop the part of each decoder row's gradient that would only change its norm."""
        if self.directions.grad is not None:
            along = (self.directions.grad * self.directions).sum(dim=1, keepdim=True)
            self.directions.grad -= along * self.directions

    @torch.no_grad()
    def after_step(self) -> None:
        """Bring every decoder row back to unit norm."""
        if not self.directions.requires_grad:
            return  # drawn so, and frozen
        self.directions.div_(self.directions.norm(dim=1, keepdim=True).clamp_min(1e-8))

    def named_weights(self) -> dict[str, Tensor]:
        """Return the weights under their stored names."""
        return {
            "encoder.weight": self.encoder_weight,
            "encoder.bias": self.encoder_bias,
            "decoder.weight": self.directions.T,
            "decoder.bias": self.decoder_bias,
        }


class TopK(Dictionary):
    """The k-sparse autoencoder (arXiv 1312.5663, 2406.04093): a = the k largest of ReLU(z)."""

    def forward(self, vectors: Tensor) -> Forward:
        """Return activations and reconstruction of (b, d) vectors."""
        pre = torch.relu(self.before_relu(vectors))
        activations, neurons = pre.topk(self.config.k or 0, dim=1, sorted=False)
        return Forward(pre, activations, neurons, self.decode(activations, neurons))

    def loss(self, vectors: Tensor, forward: Forward, standing: Standing) -> Tensor:
        """Return FVU, with what revives dead neurons and quiets busy ones."""
        error = fvu(vectors, forward.reconstruction, standing.variance)
        return error + self.revival(vectors, forward, standing) + quiet(forward, standing)


class Matryoshka(TopK):
    """TopK whose first m neurons reconstruct alone, for each m of ``prefixes`` (arXiv 2503.17547).

    The loss is the mean FVU over the prefixes, so that early neurons learn the broad concepts.
    Bussmann et al. choose activations by BatchTopK; here by TopK, so that a trace depends on its
    text alone.
    """

    def loss(self, vectors: Tensor, forward: Forward, standing: Standing) -> Tensor:
        """Return the mean FVU over the prefixes, and the rest of TopK's loss."""
        neurons = forward.neurons
        if neurons is None:
            raise ValueError("a Matryoshka forward names its neurons")
        errors = []
        for size in self.config.prefixes or (self.config.neurons,):
            inside = forward.activations * (neurons < size)
            errors.append(fvu(vectors, self.decode(inside, neurons), standing.variance))
        error = torch.stack(errors).mean()
        return error + self.revival(vectors, forward, standing) + quiet(forward, standing)


class ReLU(Dictionary):
    """a = ReLU(z), sparse through an L1 penalty: loss = FVU + weight x E||a||_1.

    Decoder columns of unit norm keep the penalty honest: it cannot be met by shrinking activations
    and growing the decoder. Bricken et al., "Towards Monosemanticity", 2023.
    """

    SPARSITY = 0.02

    def forward(self, vectors: Tensor) -> Forward:
        """Return activations and reconstruction of (b, d) vectors."""
        pre = torch.relu(self.before_relu(vectors))
        return Forward(pre, pre, None, self.decode_all(pre))

    def loss(self, vectors: Tensor, forward: Forward, standing: Standing) -> Tensor:
        """Return FVU and the L1 penalty, which rises over the first steps."""
        error = fvu(vectors, forward.reconstruction, standing.variance)
        return error + standing.warm_sparsity * l1(forward.activations)


class BatchTopK(Dictionary):
    """The k x b largest activations of a batch of b stay (Bussmann et al., arXiv 2412.06410).

    A text may use more neurons than another. After training a must not depend on the batch:
    a = z where z > t, with one threshold t, the running mean of the smallest activation kept.
    """

    threshold: Tensor

    def __init__(self, config: SAEConfig, mean: Tensor, generator: torch.Generator) -> None:
        super().__init__(config, mean, generator)
        self.register_buffer("threshold", torch.zeros(1))

    def forward(self, vectors: Tensor) -> Forward:
        """Return activations and reconstruction; in training those the batch chooses."""
        pre = torch.relu(self.before_relu(vectors))
        edge = self.threshold
        if self.training:
            kept = min((self.config.k or 0) * len(vectors), pre.numel())
            edge = pre.detach().flatten().topk(kept).values[-1:]
            self._follow(edge)
            activations = pre * (pre >= edge)
        else:
            activations = pre * (pre > edge)
        return Forward(pre, activations, None, self.decode_all(activations))

    def grow(self, norms: Tensor) -> None:
        """Look for the threshold anew: one cannot grow by several factors."""
        self.threshold.zero_()

    @torch.no_grad()
    def _follow(self, edge: Tensor) -> None:
        if self.threshold.item() == 0:
            self.threshold.copy_(edge)
        self.threshold.lerp_(edge, 0.01)

    def loss(self, vectors: Tensor, forward: Forward, standing: Standing) -> Tensor:
        """Return FVU and what revives dead neurons."""
        error = fvu(vectors, forward.reconstruction, standing.variance)
        return error + self.revival(vectors, forward, standing)

    def named_weights(self) -> dict[str, Tensor]:
        """Return the weights and the threshold."""
        return super().named_weights() | {"threshold": self.threshold}


class JumpReLU(Dictionary):
    """a = z where z > t_j, a learned threshold a neuron (Rajamanoharan et al., arXiv 2407.14435).

    Thresholds learn through straight-through gradients. The penalty is ((L0 / k) - 1)^2, the form
    with a target that the authors suggest (their appendix), so that k says how many fire.
    """

    SPARSITY = 0.3
    START, BANDWIDTH = 0.05, 0.05

    def __init__(self, config: SAEConfig, mean: Tensor, generator: torch.Generator) -> None:
        super().__init__(config, mean, generator)
        self.threshold = nn.Parameter(torch.full((config.neurons,), self.START))

    def forward(self, vectors: Tensor) -> Forward:
        """Return activations and reconstruction of (b, d) vectors."""
        pre = self.before_relu(vectors)  # as it is: ReLU(z) = 0 would look near a threshold
        activations = jump(pre, self.threshold, self.BANDWIDTH)
        return Forward(pre, activations, None, self.decode_all(activations))

    def grow(self, norms: Tensor) -> None:
        """Bring the thresholds along."""
        self.threshold.mul_(norms)

    def loss(self, vectors: Tensor, forward: Forward, standing: Standing) -> Tensor:
        """Return FVU, the penalty on L0, and what revives dead neurons."""
        error = fvu(vectors, forward.reconstruction, standing.variance)
        fires = step(forward.pre_activations.detach(), self.threshold, self.BANDWIDTH)
        over = fires.sum(dim=1).mean() / (self.config.k or 1) - 1
        penalty = standing.warm_sparsity * over.pow(2)
        return error + penalty + self.revival(vectors, forward, standing)

    @torch.no_grad()
    def after_step(self) -> None:
        """Keep the decoder at unit norm and thresholds from going below 0."""
        super().after_step()
        self.threshold.clamp_(min=0)

    def named_weights(self) -> dict[str, Tensor]:
        """Return the weights and the thresholds."""
        return super().named_weights() | {"threshold": self.threshold}


def quiet(forward: Forward, standing: Standing) -> Tensor:
    """Return the weighted penalty on neurons that fire for too many rows."""
    if forward.neurons is None:
        raise ValueError("the busy penalty is for the k largest")
    return BUSY_WEIGHT * busy(forward.activations, forward.neurons, standing.rates)
