"""The TopK SAE as a torch module; ``forward`` equals ``sae.encode`` (a test)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from memstore.sae.config import SAEConfig
from memstore.types import Float32


class Forward(NamedTuple):
    """One forward pass over a batch of b vectors."""

    pre_activations: Tensor
    """ReLU pre-activations before the k largest are chosen, (b, n)."""
    activations: Tensor
    """The k largest of each row, (b, k)."""
    neurons: Tensor
    """Their neurons, (b, k)."""
    reconstruction: Tensor
    """Decoded vectors, (b, d)."""


class TopK(nn.Module):
    """The k-sparse autoencoder (arXiv 1312.5663, 2406.04093).

    ::

        z = ReLU(W_e (x - b_d) + b_e)       a = the k largest of z, the others 0
        x_hat = W_d a + b_d

    Decoder columns have unit norm; the encoder starts as the decoder's transpose, then goes free.
    ``b_d`` starts at the mean of the data: centring keeps neurons from dying, or firing always.
    """

    def __init__(self, config: SAEConfig, mean: Tensor, generator: torch.Generator) -> None:
        super().__init__()
        if config.architecture != "topk" or config.k is None:
            raise ValueError(f"{config.architecture} has no trainer: use architecture='topk'")
        self.config, self.k = config, config.k
        directions = torch.randn(config.neurons, config.dimension, generator=generator)
        directions /= directions.norm(dim=1, keepdim=True)
        self.encoder_weight = nn.Parameter(directions.clone())
        self.encoder_bias = nn.Parameter(torch.zeros(config.neurons))
        #: One row a neuron, so that decoding is an embedding-bag over the k rows that fire.
        self.directions = nn.Parameter(directions)
        self.decoder_bias = nn.Parameter(mean.clone())

    def forward(self, vectors: Tensor) -> Forward:
        """Return activations and reconstruction of (b, d) vectors."""
        centred = vectors - self.decoder_bias
        pre = torch.relu(nn.functional.linear(centred, self.encoder_weight, self.encoder_bias))
        activations, neurons = pre.topk(self.k, dim=1, sorted=False)
        return Forward(pre, activations, neurons, self.decode(activations, neurons))

    def decode(self, activations: Tensor, neurons: Tensor, *, bias: bool = True) -> Tensor:
        """Return the weighted sum of the decoder rows of the given neurons."""
        bag = nn.functional.embedding_bag(
            neurons, self.directions, per_sample_weights=activations, mode="sum"
        )
        return bag + self.decoder_bias if bias else bag

    @torch.no_grad()
    def normalise_decoder(self) -> None:
        """Bring every decoder row back to unit norm."""
        self.directions.div_(self.directions.norm(dim=1, keepdim=True).clamp_min(1e-8))

    @torch.no_grad()
    def remove_parallel_gradient(self) -> None:
        """Drop the part of each row's gradient that would only change its norm."""
        if self.directions.grad is not None:
            along = (self.directions.grad * self.directions).sum(dim=1, keepdim=True)
            self.directions.grad -= along * self.directions

    def tensors(self) -> dict[str, Float32]:
        """Return the weights as ``sae.weights`` stores them."""
        named = {
            "encoder.weight": self.encoder_weight,
            "encoder.bias": self.encoder_bias,
            "decoder.weight": self.directions.T,
            "decoder.bias": self.decoder_bias,
        }
        return {n: t.detach().cpu().numpy().astype(np.float32) for n, t in named.items()}
