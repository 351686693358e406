"""Training an SAE on cached vectors: minutes on two cores, resumable, the same for a seed."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from memstore.progress import Report
from memstore.sae.config import PROTOTYPES, SAEConfig
from memstore.sae.loss import fvu
from memstore.sae.model import (
    BatchTopK,
    Dictionary,
    Forward,
    JumpReLU,
    Matryoshka,
    Model,
    ReLU,
    Standing,
    TopK,
)
from memstore.sae.prototype import SparseMemory, SparseMemoryText
from memstore.types import Float32

CHECKPOINT = "checkpoint.safetensors"
CHECKPOINT_META = "checkpoint.json"
LOG = "log.jsonl"
#: Steps between two checkpoints: about a minute on two cores.
CHECKPOINT_STEPS = 250
#: Steps between two lines of the log.
LOG_STEPS = 25
#: Steps over which a fire rate is averaged.
RATE_STEPS = 100
#: Adam's rate, falling with 1 / sqrt(neurons) beyond so many of them. Far above what is usual for
#: the activations of language models: at 3,072 neurons, k = 32 and 1.4 million rows of sentence
#: vectors, held-out FVU was .334 at 4.6e-4, .285 at 1e-3, .256 at 2e-3, .244 at 4e-3; over 11
#: million rows 4e-3 let 30 neurons die and, kept flat, stood still at .265 until it fell.
RATE, RATE_NEURONS = 2e-3, 3072
#: Adam's rate for the prototype's networks, theirs.
PROTOTYPE_RATE = 1e-3

MODELS: dict[str, Callable[[SAEConfig, Tensor, torch.Generator], Model]] = {
    "topk": TopK,
    "batch_topk": BatchTopK,
    "jump_relu": JumpReLU,
    "matryoshka": Matryoshka,
    "relu": ReLU,
    "sparse_memory": SparseMemory,
    "sparse_memory_text": SparseMemoryText,
}


@dataclass(frozen=True)
class TrainConfig:
    """How to train. The defaults are the recipe of docs/encoder.md."""

    epochs: int = 20
    """Passes over the training vectors; each in a new random order."""
    batch: int = 1024
    """Vectors a step."""
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
        if (
            min(self.epochs, self.batch, self.dead_rows, self.patience or 1) < 1
            or not 0 <= self.warmup + self.decay <= 1
        ):
            raise ValueError(f"not a training schedule: {self}")

    def rate(self, config: SAEConfig) -> float:
        """Return the peak learning rate for an SAE of this size."""
        if self.learning_rate is None and config.architecture in PROTOTYPES:
            return PROTOTYPE_RATE
        return self.learning_rate or RATE * min(1.0, math.sqrt(RATE_NEURONS / config.neurons))


class Trainer:
    """One training run over (n, d) vectors, which may stop and go on at any step.

    State lives in ``folder`` as safetensors and JSON, beside a log with a JSON line every
    ``LOG_STEPS`` steps and every epoch. A resumed run takes the same steps in the same order as one
    that was never stopped. ``row_weights``, (n, 2), weigh each row's reconstruction and sparsity
    (the prototype's networks); ``base`` are weights to start from; ``held_out`` vectors are
    measured after every epoch.
    """

    def __init__(
        self,
        vectors: Float32,
        config: SAEConfig,
        schedule: TrainConfig,
        folder: Path,
        *,
        row_weights: Float32 | None = None,
        base: Mapping[str, Float32] | None = None,
        held_out: Float32 | None = None,
    ) -> None:
        self.config, self.schedule, self.folder = config, schedule, folder
        self.vectors = self._on_device(vectors)
        self.row_weights = None if row_weights is None else self._on_device(row_weights)
        self.held_out = None if held_out is None else self._on_device(held_out)
        mean = self.vectors.mean(dim=0)
        self.variance = float((self.vectors - mean).pow(2).sum(dim=1).mean())
        generator = torch.Generator().manual_seed(schedule.seed)
        self.model = MODELS[config.architecture](config, mean.cpu(), generator).to(schedule.device)
        if base is not None:
            self.model.start_from(base)
        if isinstance(self.model, Dictionary):
            self.model.directions.requires_grad_(not schedule.frozen_decoder)
        if isinstance(self.model, SparseMemoryText):
            self.model.learned_target = schedule.learned_target
        self.base = 0.0 if base is None else sum(float(t.sum()) for t in base.values())
        self.sparsity = self.model.SPARSITY if schedule.sparsity is None else schedule.sparsity
        self.optimiser = torch.optim.Adam(self.trained().values(), lr=0.0)
        self.silent_rows = torch.zeros(config.neurons, dtype=torch.int64, device=schedule.device)
        self.fire_rates = torch.zeros(config.neurons, device=schedule.device)
        self.step = 0
        self.history: list[float] = []
        self.steps_an_epoch = max(1, len(vectors) // schedule.batch)
        self.steps = schedule.epochs * self.steps_an_epoch

    def _on_device(self, array: Float32) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.schedule.device)

    def trained(self) -> dict[str, torch.nn.Parameter]:
        """Return the parameters that learn."""
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad}

    def run(self, report: Report | None = None) -> Model:
        """Train to the end, from the checkpoint in ``folder`` where one fits."""
        self.restore()
        self.model.train()
        self._trim_log()
        try:
            while self.step < self.steps and not self.has_stalled():
                order = self.order(self.step // self.steps_an_epoch)
                for place in range(self.step % self.steps_an_epoch, self.steps_an_epoch):
                    start = place * self.schedule.batch
                    self.take_step(order[start : start + self.schedule.batch])
                    if self.step % CHECKPOINT_STEPS == 0:
                        self.checkpoint()
                    if report is not None:
                        report(self.step * self.schedule.batch, self.steps * self.schedule.batch)
                self.end_epoch()
        except KeyboardInterrupt:
            self.checkpoint()
            raise
        self.checkpoint()
        return self.model.eval()

    def order(self, epoch: int) -> Tensor:
        """Return the order of the rows in one epoch, a function of seed and epoch alone."""
        generator = torch.Generator().manual_seed(self.schedule.seed * 1_000_003 + epoch + 1)
        return torch.randperm(len(self.vectors), generator=generator).to(self.schedule.device)

    def rate(self) -> float:
        """Return the learning rate of the current step: linear up, flat, linear down."""
        done = self.step / self.steps
        up = min(1.0, (done + 1 / self.steps) / max(self.schedule.warmup, 1 / self.steps))
        down = min(1.0, (1.0 - done) / max(self.schedule.decay, 1e-9))
        return self.schedule.rate(self.config) * min(up, down)

    def take_step(self, rows: Tensor) -> None:
        """Take one step of Adam on some rows."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate()
        batch = self.vectors[rows]
        forward: Forward = self.model(batch)
        standing = Standing(
            self.variance,
            self.silent_rows >= self.schedule.dead_rows,
            self.fire_rates,
            self.step / self.steps,
            self.sparsity,
            None if self.row_weights is None else self.row_weights[rows],
        )
        loss = self.model.loss(batch, forward, standing)
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch publishes no type for it
        self.model.before_step()
        torch.nn.utils.clip_grad_norm_(self.trained().values(), 1.0)
        self.optimiser.step()
        self.model.after_step()
        self.count_firings(forward, len(batch))
        self.step += 1
        if self.step % LOG_STEPS == 0:
            self.log(self.figures(batch, forward, standing, float(loss.detach())))

    def count_firings(self, forward: Forward, rows: int) -> None:
        """Bring the rows since each neuron fired, and its running fire rate, up to date."""
        counts = forward.fires()
        self.silent_rows += rows
        self.silent_rows[counts > 0] = 0
        self.fire_rates.lerp_(counts / rows, 1 / RATE_STEPS)

    # --- what it says of itself ------------------------------------------------------------

    def figures(
        self, batch: Tensor, forward: Forward, standing: Standing, loss: float
    ) -> dict[str, float]:
        """Return what the log holds of one step."""
        found = {
            "loss": loss,
            "l0": float(forward.fires().sum()) / len(batch),
            "dead": int(standing.dead.sum()),
            "rate": self.rate(),
        }
        if forward.reconstruction.shape == batch.shape:
            found["fvu"] = float(fvu(batch, forward.reconstruction.detach(), self.variance))
        return found

    def log(self, figures: dict[str, float]) -> None:
        """Append a line to the log; a plot reads it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        line = {"step": self.step, "rows": self.step * self.schedule.batch, **figures}
        with (self.folder / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps({**line, "time": round(time.time(), 3)}) + "\n")

    def _trim_log(self) -> None:
        """Drop lines of steps that are taken once more, or of another run."""
        path = self.folder / LOG
        if path.exists():
            lines = path.read_text("utf-8").splitlines(keepends=True)
            kept = [line for line in lines if json.loads(line)["step"] <= self.step]
            path.write_text("".join(kept) if self.step else "", "utf-8")

    @torch.no_grad()
    def end_epoch(self) -> None:
        """Measure the held-out vectors, where there are some whose FVU can be told."""
        if self.held_out is None or self.config.architecture == "sparse_memory_text":
            return
        self.model.eval()
        spread = (self.held_out - self.held_out.mean(dim=0)).pow(2).sum()
        parts = torch.split(self.held_out, self.schedule.batch)
        error = sum(float((part - self.model(part).reconstruction).pow(2).sum()) for part in parts)
        self.model.train()
        self.history.append(error / float(spread))
        self.log({"epoch": self.step // self.steps_an_epoch, "held_out_fvu": self.history[-1]})

    def has_stalled(self) -> bool:
        """Return whether the held-out FVU has not fallen for ``patience`` epochs."""
        patience = self.schedule.patience
        if patience is None or len(self.history) <= patience:
            return False
        return min(self.history[-patience:]) >= min(self.history[:-patience])

    # --- checkpoints -----------------------------------------------------------------------

    def meta(self) -> dict[str, object]:
        """Return what a checkpoint must agree on to be taken up."""
        weights = self.row_weights
        return {
            "config": self.config.to_dict(),
            "schedule": asdict(self.schedule),
            "rows": len(self.vectors),
            # A cheap mark of the data: other vectors of the same number would go unnoticed else.
            "mean": [round(float(value), 6) for value in self.vectors.mean(dim=0)[:8]],
            "row_weights": None if weights is None else round(float(weights.sum()), 4),
            "base": round(self.base, 4),
        }

    def checkpoint(self) -> None:
        """Write the state of the run aside and rename it into place."""
        from safetensors.torch import save_file

        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            "silent_rows": self.silent_rows,
            "fire_rates": self.fire_rates,
            "step": torch.tensor(self.step),
            "history": torch.tensor(self.history, dtype=torch.float64),
        }
        for name, tensor in self.model.state_dict().items():
            tensors[f"model.{name}"] = tensor
        for name, parameter in self.trained().items():
            for key, value in self.optimiser.state.get(parameter, {}).items():
                tensors[f"adam.{name}.{key}"] = value
        part = self.folder / f"{CHECKPOINT}.part"
        save_file({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, part)
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
        tensors = load_file(self.folder / CHECKPOINT, device=self.schedule.device)
        self.step = int(tensors["step"])
        self.history = tensors["history"].tolist()
        self.silent_rows, self.fire_rates = tensors["silent_rows"], tensors["fire_rates"]
        own = {n[len("model.") :]: t for n, t in tensors.items() if n.startswith("model.")}
        self.model.load_state_dict(own)
        for name, parameter in self.trained().items():
            keys = ("step", "exp_avg", "exp_avg_sq")
            if f"adam.{name}.step" in tensors:
                state = {key: tensors[f"adam.{name}.{key}"] for key in keys}
                self.optimiser.state[parameter] = state
