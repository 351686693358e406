"""Training a TopK SAE on cached vectors: minutes on two cores, resumable, the same for a seed."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from memstore.progress import Report
from memstore.sae.config import SAEConfig
from memstore.sae.loss import AUXK_WEIGHT, BUSY_WEIGHT, auxk, busy, fvu
from memstore.sae.model import Forward, TopK
from memstore.types import Float32

CHECKPOINT = "checkpoint.safetensors"
CHECKPOINT_META = "checkpoint.json"
#: Steps between two checkpoints: about a minute on two cores.
CHECKPOINT_STEPS = 250
#: Steps over which a fire rate is averaged.
RATE_STEPS = 100


@dataclass(frozen=True)
class TrainConfig:
    """How to train. The defaults are the recipe of docs/encoder.md."""

    epochs: int = 20
    """Passes over the training vectors; each in a new random order."""
    batch: int = 1024
    """Vectors a step."""
    learning_rate: float | None = None
    """Adam's rate; None for 2e-4 / sqrt(neurons / 16384)."""
    warmup: float = 0.05
    """Share of the steps over which the rate rises from 0."""
    decay: float = 0.5
    """Share of the steps, at the end, over which it falls to 0."""
    dead_rows: int = 30_000
    """A neuron silent for this many rows counts as dead and gets the auxiliary loss."""
    seed: int = 0
    """Decides initial weights and data order."""

    def __post_init__(self) -> None:
        if (
            min(self.epochs, self.batch, self.dead_rows) < 1
            or not 0 <= self.warmup + self.decay <= 1
        ):
            raise ValueError(f"not a training schedule: {self}")

    def rate(self, config: SAEConfig) -> float:
        """Return the peak learning rate for an SAE of this size."""
        return self.learning_rate or 2e-4 / math.sqrt(config.neurons / 16_384)


class Trainer:
    """One training run over (n, d) vectors, which may stop and go on at any step.

    State lives in ``folder`` as safetensors and JSON. A resumed run takes the same steps in the
    same order as one that was never stopped.
    """

    def __init__(
        self, vectors: Float32, config: SAEConfig, schedule: TrainConfig, folder: Path
    ) -> None:
        self.vectors = torch.from_numpy(np.ascontiguousarray(vectors))
        self.config, self.schedule, self.folder = config, schedule, folder
        mean = self.vectors.mean(dim=0)
        self.variance = float((self.vectors - mean).pow(2).sum(dim=1).mean())
        self.model = TopK(config, mean, torch.Generator().manual_seed(schedule.seed))
        self.optimiser = torch.optim.Adam(self.model.parameters(), lr=0.0)
        self.silent_rows = torch.zeros(config.neurons, dtype=torch.int64)
        self.fire_rates = torch.zeros(config.neurons)
        self.step = 0
        self.steps_an_epoch = max(1, len(vectors) // schedule.batch)
        self.steps = schedule.epochs * self.steps_an_epoch

    def run(self, report: Report | None = None) -> TopK:
        """Train to the end, from the checkpoint in ``folder`` where one fits."""
        self.restore()
        try:
            for epoch in range(self.step // self.steps_an_epoch, self.schedule.epochs):
                order = self.order(epoch)
                for place in range(self.step % self.steps_an_epoch, self.steps_an_epoch):
                    start = place * self.schedule.batch
                    self.take_step(self.vectors[order[start : start + self.schedule.batch]])
                    if self.step % CHECKPOINT_STEPS == 0:
                        self.checkpoint()
                    if report is not None:
                        report(self.step * self.schedule.batch, self.steps * self.schedule.batch)
        except KeyboardInterrupt:
            self.checkpoint()
            raise
        self.checkpoint()
        return self.model

    def order(self, epoch: int) -> Tensor:
        """Return the order of the rows in one epoch, a function of seed and epoch alone."""
        generator = torch.Generator().manual_seed(self.schedule.seed * 1_000_003 + epoch + 1)
        return torch.randperm(len(self.vectors), generator=generator)

    def rate(self) -> float:
        """Return the learning rate of the current step: linear up, flat, linear down."""
        done = self.step / self.steps
        up = min(1.0, (done + 1 / self.steps) / max(self.schedule.warmup, 1 / self.steps))
        down = min(1.0, (1.0 - done) / max(self.schedule.decay, 1e-9))
        return self.schedule.rate(self.config) * min(up, down)

    def take_step(self, batch: Tensor) -> None:
        """Take one step of Adam on a batch."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate()
        forward = self.model(batch)
        dead = self.silent_rows >= self.schedule.dead_rows
        loss = fvu(batch, forward.reconstruction, self.variance)
        loss = loss + AUXK_WEIGHT * auxk(self.model, batch, forward, dead)
        loss = loss + BUSY_WEIGHT * busy(self.model, forward, self.fire_rates)
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch publishes no type for it
        self.model.remove_parallel_gradient()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.model.normalise_decoder()
        self.count_firings(forward)
        self.step += 1

    def count_firings(self, forward: Forward) -> None:
        """Bring the rows since each neuron fired, and its running fire rate, up to date."""
        fired = forward.neurons[forward.activations > 0]
        counts = torch.bincount(fired, minlength=self.config.neurons)
        batch = len(forward.neurons)
        self.silent_rows += batch
        self.silent_rows[counts > 0] = 0
        self.fire_rates.lerp_(counts / batch, 1 / RATE_STEPS)

    def meta(self) -> dict[str, object]:
        """Return what a checkpoint must agree on to be taken up."""
        return {
            "config": self.config.to_dict(),
            "schedule": asdict(self.schedule),
            "rows": len(self.vectors),
            # A cheap mark of the data: other vectors of the same number would go unnoticed else.
            "mean": [round(float(value), 6) for value in self.vectors.mean(dim=0)[:8]],
        }

    def checkpoint(self) -> None:
        """Write the state of the run aside and rename it into place."""
        from safetensors.torch import save_file

        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            "silent_rows": self.silent_rows,
            "fire_rates": self.fire_rates,
            "step": torch.tensor(self.step),
        }
        for name, parameter in self.model.named_parameters():
            tensors[f"model.{name}"] = parameter.detach()
            for key, value in self.optimiser.state.get(parameter, {}).items():
                tensors[f"adam.{name}.{key}"] = value
        part = self.folder / f"{CHECKPOINT}.part"
        save_file({n: t.contiguous() for n, t in tensors.items()}, part)
        (self.folder / CHECKPOINT_META).write_text(json.dumps(self.meta()), "utf-8")
        os.replace(part, self.folder / CHECKPOINT)

    def restore(self) -> None:
        """Take up the checkpoint in ``folder``, if there is one of this very run."""
        from safetensors.torch import load_file

        meta = self.folder / CHECKPOINT_META
        if not (self.folder / CHECKPOINT).exists() or not meta.exists():
            return
        if json.loads(meta.read_text("utf-8")) != self.meta():
            return
        tensors = load_file(self.folder / CHECKPOINT)
        self.step = int(tensors["step"])
        self.silent_rows = tensors["silent_rows"]
        self.fire_rates = tensors["fire_rates"]
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(tensors[f"model.{name}"])
                self.optimiser.state[parameter] = {
                    key: tensors[f"adam.{name}.{key}"] for key in ("step", "exp_avg", "exp_avg_sq")
                }
