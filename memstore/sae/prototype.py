"""The research prototype's two networks, trainable, with what is known of their weak points.

Thirty neurons are fewer than the dimensions that sentence vectors use (even the first thirty
principal components leave half of the variance), so their traces gauge topics; they do not find
texts as a wide dictionary does. Categories trained with weights of their own give neurons that
other weights number otherwise.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from memstore.sae.config import SAEConfig
from memstore.sae.loss import kl_sparsity, l1, squared_error
from memstore.sae.model import Forward, Model, Standing

#: The mean activation that the KL penalty pulls each neuron to.
SPARSITY_TARGET = 0.05


def linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """Return a layer started as torch starts it, uniform within 1 / sqrt(inputs), from a seed."""
    layer = nn.Linear(inputs, outputs)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(-(inputs**-0.5), inputs**-0.5, generator=generator)
    return layer


class SparseMemory(Model):
    """The proof of concept.

    ::

        a = ReLU(W_e x + b_e)       x_hat = sigmoid(W_d a + b_d)
        loss = mean (x_hat - x)^2 + beta sum_j KL(0.05 || mean a_j)

    beta is the weight of the sparsity penalty, 1 in the prototype. The sigmoid reaches (0, 1) only:
    bring what goes in to that range first. ``loss.kl_sparsity`` says how means that the penalty
    is not defined for are handled.
    """

    SPARSITY = 1.0

    def __init__(self, config: SAEConfig, mean: Tensor, generator: torch.Generator) -> None:
        super().__init__(config)
        self.encoder = linear(config.dimension, config.neurons, generator)
        self.decoder = linear(config.neurons, config.dimension, generator)

    def forward(self, vectors: Tensor) -> Forward:
        """Return activations and reconstruction of (b, d) events."""
        activations = torch.relu(self.encoder(vectors))
        decoded = torch.sigmoid(self.decoder(activations))
        return Forward(activations, activations, None, decoded)

    def loss(self, vectors: Tensor, forward: Forward, standing: Standing) -> Tensor:
        """Return the squared error and the KL penalty."""
        penalty = kl_sparsity(forward.activations, SPARSITY_TARGET)
        error = squared_error(vectors, forward.reconstruction, reconstruction_weights(standing))
        return error + standing.sparsity * penalty

    def named_weights(self) -> dict[str, Tensor]:
        """Return the weights under their stored names."""
        return {
            "encoder.weight": self.encoder.weight,
            "encoder.bias": self.encoder.bias,
            "decoder.weight": self.decoder.weight,
            "decoder.bias": self.decoder.bias,
        }


class SparseMemoryText(Model):
    """The prototype's network for texts.

    ::

        p = ReLU(W_p x + b_p)    a = ReLU(W_e p + b_e)    p_hat = sigmoid(W_d a + b_d)
        loss = mean over rows of  u_r mean (p_hat - p)^2 + weight v_r ||a||_1

    u_r and v_r are the weights of the row's category. The target p is learned, too. Left free, the
    projection goes where the decoder is anyway, the same for every text, and the error falls even
    if no neuron fires. So the target is taken as given (``detach``), unless ``learned_target`` is
    set to see that happen.
    """

    SPARSITY = 0.001

    def __init__(self, config: SAEConfig, mean: Tensor, generator: torch.Generator) -> None:
        super().__init__(config)
        event_size = config.event_size or 0
        self.projection = linear(config.dimension, event_size, generator)
        self.encoder = linear(event_size, config.neurons, generator)
        self.decoder = linear(config.neurons, event_size, generator)
        self.learned_target = False

    def forward(self, vectors: Tensor) -> Forward:
        """Return activations and the reconstruction of the projected vectors, (b, event_size)."""
        activations = torch.relu(self.encoder(self.project(vectors)))
        decoded = torch.sigmoid(self.decoder(activations))
        return Forward(activations, activations, None, decoded)

    def project(self, vectors: Tensor) -> Tensor:
        """Return the projected vectors, (b, event_size)."""
        return torch.relu(self.projection(vectors))

    def loss(self, vectors: Tensor, forward: Forward, standing: Standing) -> Tensor:
        """Return the squared error against the projection, and L1."""
        target = self.project(vectors)
        if not self.learned_target:
            target = target.detach()
        error = squared_error(target, forward.reconstruction, reconstruction_weights(standing))
        penalty = l1(forward.activations, sparsity_weights(standing))
        return error + standing.sparsity * penalty

    def named_weights(self) -> dict[str, Tensor]:
        """Return the weights under their stored names."""
        layers = {
            "projection": self.projection,
            "encoder": self.encoder,
            "decoder": self.decoder,
        }
        named: dict[str, Tensor] = {}
        for name, layer in layers.items():
            named |= {f"{name}.weight": layer.weight, f"{name}.bias": layer.bias}
        return named


def reconstruction_weights(standing: Standing) -> Tensor | None:
    """Return the weight of each row's reconstruction, None where all weigh 1."""
    return None if standing.row_weights is None else standing.row_weights[:, 0]


def sparsity_weights(standing: Standing) -> Tensor | None:
    """Return the weight of each row's sparsity, None where all weigh 1."""
    return None if standing.row_weights is None else standing.row_weights[:, 1]
