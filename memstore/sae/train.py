"""Training an SAE on cached vectors: minutes on two cores, resumable, the same for a seed."""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from torch import Tensor

from memstore.durable import appearing
from memstore.errors import InvalidInput
from memstore.progress import Report
from memstore.sae import checkpoint
from memstore.sae.config import SAEConfig
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
from memstore.sae.schedule import TrainConfig
from memstore.types import Float32

LOG = "log.jsonl"
#: Steps between two checkpoints: about a minute on two cores.
CHECKPOINT_STEPS = 250
#: Steps between two lines of the log.
LOG_STEPS = 25
#: Steps over which a fire rate is averaged.
RATE_STEPS = 100
MODELS: dict[str, Callable[[SAEConfig, Tensor, torch.Generator], Model]] = {
    "topk": TopK,
    "batch_topk": BatchTopK,
    "jump_relu": JumpReLU,
    "matryoshka": Matryoshka,
    "relu": ReLU,
    "sparse_memory": SparseMemory,
    "sparse_memory_text": SparseMemoryText,
}


class Trainer:
    """One training run over (n, d) vectors, which may stop and go on at any step.

    State lives in ``folder`` as safetensors and JSON, beside a log with a JSON line every
    ``LOG_STEPS`` steps and every epoch. A resumed run takes the same steps in the same order as one
    that was never stopped. ``row_weights``, (n, 2), weigh each row's reconstruction and sparsity
    (the prototype's networks); ``base`` are weights to start from; ``held_out`` vectors are
    measured after every epoch.

    Raises ``InvalidInput`` for settings that say nothing to the architecture, ``InvalidWeights``
    for a base that does not fit.
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
        self._data = {"vectors": vectors, "row_weights": row_weights, "held_out": held_out}
        self._data |= {f"base.{name}": tensor for name, tensor in (base or {}).items()}
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
        schedule.require_sense(config, self.model.SPARSITY, row_weights, held_out)
        self.sparsity = self.model.SPARSITY if schedule.sparsity is None else schedule.sparsity
        self.optimiser = torch.optim.Adam(self.trained().values(), lr=0.0)
        self.silent_rows = torch.zeros(config.neurons, dtype=torch.int64, device=schedule.device)
        self.fire_rates = torch.zeros(config.neurons, device=schedule.device)
        self.step = 0
        self.history: list[float] = []
        self.whole = True
        """Whether all of the state is of the same step."""
        self.batch = min(schedule.batch, len(vectors))
        self.steps_an_epoch = len(vectors) // self.batch
        self.steps = schedule.epochs * self.steps_an_epoch

    def _on_device(self, array: Float32) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.schedule.device)

    def trained(self) -> dict[str, torch.nn.Parameter]:
        """Return the parameters that learn."""
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad}

    def run(self, report: Report | None = None) -> Model:
        """Train to the end, from the checkpoint in ``folder`` where one fits.

        Ctrl-C waits for the step to end and leaves a checkpoint.
        """
        self.restore()
        self.model.train()
        self._trim_log()
        try:
            with held_back() as let_through:
                self.end_epoch()  # which a checkpoint can lie before
                while self.step < self.steps and not self.has_stalled():
                    epoch, done = divmod(self.step, self.steps_an_epoch)
                    batches = torch.split(self.order(epoch), self.batch)
                    for rows in batches[done : self.steps_an_epoch]:
                        self.take_step(rows)
                        let_through()
                        if self.step % CHECKPOINT_STEPS == 0:
                            self.checkpoint()
                        if report is not None:
                            report(self.step * self.batch, self.steps * self.batch)
                    self.end_epoch()
        except KeyboardInterrupt:
            if self.whole:
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
        self.whole = False
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
        self.whole = True
        if self.step % LOG_STEPS == 0:
            self.log(self.figures(batch, forward, standing, require_finite(loss.item(), self.step)))

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
        if self.config.event_size is None:
            found["fvu"] = float(fvu(batch, forward.reconstruction.detach(), self.variance))
        return found

    def log(self, figures: dict[str, float]) -> None:
        """Append a line to the log; a plot reads it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        line = {"step": self.step, "rows": self.step * self.batch, **figures}
        with (self.folder / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps({**line, "time": round(time.time(), 3)}) + "\n")

    def _trim_log(self) -> None:
        """Drop lines of steps that are taken once more, or of another run, or cut short."""
        path = self.folder / LOG
        if path.exists():
            lines = path.read_text("utf-8", "replace").splitlines(keepends=True)
            # An epoch that a checkpoint lies before is measured once more.
            kept = [line for line in lines if goes_before(line, self.step, len(self.history))]
            with appearing(path, over=True) as part:
                part.write_text("".join(kept) if self.step else "", "utf-8")

    @torch.no_grad()
    def end_epoch(self) -> None:
        """Measure the held-out vectors of an epoch that is over, once, where FVU can be told."""
        measured = len(self.history) >= self.step // self.steps_an_epoch
        if measured or self.held_out is None or self.config.architecture == "sparse_memory_text":
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

    @cached_property
    def mark(self) -> str:
        """What a checkpoint must agree on to be taken up: settings and data."""
        settings = {"config": self.config.to_dict(), "schedule": asdict(self.schedule)}
        return checkpoint.run_mark(settings, self._data)

    def checkpoint(self) -> None:
        """Write the state of the run."""
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
        checkpoint.save(self.folder, self.mark, tensors)

    def restore(self) -> None:
        """Take up the checkpoint in ``folder``, if there is one of this very run."""
        tensors = checkpoint.load(self.folder, self.mark, self.schedule.device)
        if tensors is None:
            return
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


@contextmanager
def held_back() -> Iterator[Callable[[], None]]:
    """Hold Ctrl-C back; what is lent raises ``KeyboardInterrupt`` if it was pressed meanwhile.

    Cut in its middle, a step would leave weights of which some have moved and some have not. An
    application's own handler stays, and only the main thread is ever interrupted.
    """
    pressed = threading.Event()

    def press(number: int, frame: FrameType | None) -> None:
        pressed.set()

    def let_through() -> None:
        if pressed.is_set():
            raise KeyboardInterrupt

    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if ours:
        signal.signal(signal.SIGINT, press)
    try:
        yield let_through
        let_through()
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def goes_before(line: str, step: int, epochs: int) -> bool:
    """Return whether a line of the log is about a step, or epoch, already taken; no, if cut."""
    try:
        found = json.loads(line)
        return int(found["step"]) <= step and int(found.get("epoch", 0)) <= epochs
    except (ValueError, TypeError, KeyError, AttributeError):
        return False


def require_finite(loss: float, step: int) -> float:
    """Return the loss. Raises ``InvalidInput`` once it is no number any more."""
    if not math.isfinite(loss):
        raise InvalidInput(f"the loss is {loss} at step {step}: train with a lower learning rate")
    return loss
