"""The state of a training run in one file, which appears whole or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from memstore.durable import appearing, medium
from memstore.errors import InvalidWeights
from memstore.types import Float32

FILE = "checkpoint.safetensors"
#: Where the file's header keeps whose state it is.
RUN = "run"


def run_mark(settings: Mapping[str, Any], arrays: Mapping[str, Float32 | None]) -> str:
    """Return the SHA-256 of all that decides how a run goes: settings, and the data bit for bit."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        if array is not None:
            digest.update(json.dumps([name, array.shape]).encode())
            digest.update(np.ascontiguousarray(array, dtype="<f4").data)
    return digest.hexdigest()


def save(folder: Path, run: str, tensors: Mapping[str, Tensor]) -> None:
    """Write the state of a run over an older one, of this run or of another."""
    from safetensors.torch import save as packed

    state = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with medium(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with appearing(folder / FILE, over=True) as part:
        part.write_bytes(packed(state, metadata={RUN: run}))


def load(folder: Path, run: str, device: str) -> dict[str, Tensor] | None:
    """Return the state of this very run, None where there is none, or another's.

    Raises ``InvalidWeights`` for a file that cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / FILE
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt", device=device) as file:
            if (file.metadata() or {}).get(RUN) != run:
                return None
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError) as error:
        raise InvalidWeights(
            f"{path} cannot be read ({error}): remove it, and training begins anew"
        ) from error
