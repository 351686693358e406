"""The weights folder: ``weights.safetensors`` + ``config.json``, loaded, saved, fingerprinted.

Nothing here can execute anything: safetensors holds numbers, JSON holds names. The prototype's
``.pth`` files are read through torch's restricted unpickler.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memstore.durable import appearing, medium
from memstore.errors import InvalidWeights, MissingExtra
from memstore.sae.config import SAEConfig
from memstore.types import Float32

WEIGHTS, CONFIG = "weights.safetensors", "config.json"

Tensors = Mapping[str, NDArray[np.floating]]


def load(path: Path) -> tuple[SAEConfig, dict[str, Float32]]:
    """Return config and float32 tensors of a weights folder, or of a prototype's ``.pth`` file.

    Raises ``InvalidWeights`` for anything missing, of another shape, or not finite.
    """
    if path.is_file():
        return load_prototype(path)
    if not path.is_dir():
        raise InvalidWeights(f"no weights at {path}: name a folder with {WEIGHTS} and {CONFIG}")
    config = SAEConfig.from_dict(read_json(path / CONFIG))
    return config, checked(config, read_tensors(path / WEIGHTS))


def read_json(path: Path) -> Any:
    """Return the content of a JSON file. Raises ``InvalidWeights``."""
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise InvalidWeights(f"{path} is missing: copy the whole weights folder") from error
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidWeights(f"{path} cannot be read: {error}") from error


def read_tensors(path: Path) -> dict[str, NDArray[Any]]:
    """Return the tensors of a safetensors file. Raises ``InvalidWeights``."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return dict(load_file(path))
    except FileNotFoundError as error:
        raise InvalidWeights(f"{path} is missing: copy the whole weights folder") from error
    except (TypeError, AttributeError) as error:  # what numpy has no type for
        raise InvalidWeights(f"{path} holds bfloat16 or float8: save it as float32") from error
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise InvalidWeights(f"{path} cannot be read: {error}") from error


def checked(config: SAEConfig, tensors: Tensors) -> dict[str, Float32]:
    """Return exactly the tensors the config asks for, as float32. Raises ``InvalidWeights``."""
    result = {}
    for name, shape in config.shapes().items():
        if name not in tensors:
            raise InvalidWeights(f"the weights lack {name}: they are not those of {config}")
        tensor = tensors[name]
        if tensor.shape != shape:
            raise InvalidWeights(f"{name} has shape {tensor.shape}, the config says {shape}")
        result[name] = np.ascontiguousarray(tensor, dtype=np.float32)
        if not np.isfinite(result[name]).all():
            raise InvalidWeights(f"{name} has NaN or infinity: train again with a lower rate")
        if name == "threshold" and (result[name] < 0).any():
            raise InvalidWeights("a threshold is below 0: activations could be negative")
    return result


def load_prototype(path: Path) -> tuple[SAEConfig, dict[str, Float32]]:
    """Return config and tensors of a ``SparseMemoryText`` state dict saved with ``torch.save``.

    Sizes are read off the tensors. ``weights_only=True`` keeps the file from running code.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingExtra("torch", "train", f"reading {path.name}") from error
    import pickle

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        tensors = {name: tensor.numpy() for name, tensor in state.items()}
        event_size, dimension = tensors["projection.weight"].shape
        neurons = tensors["encoder.weight"].shape[0]
    except (
        OSError,
        RuntimeError,
        KeyError,
        ValueError,
        AttributeError,
        TypeError,
        EOFError,
        pickle.UnpicklingError,
    ) as error:
        raise InvalidWeights(
            f"{path} is not a SparseMemoryText state dict ({type(error).__name__}): "
            "it needs projection, encoder and decoder weights"
        ) from error
    config = SAEConfig("sparse_memory_text", dimension, neurons, event_size=event_size)
    return config, checked(config, tensors)


def save(
    folder: Path, config: SAEConfig, tensors: Tensors, dtype: type[np.floating] = np.float32
) -> None:
    """Write a weights folder; ``dtype`` float16 halves the file for shipping.

    Raises ``InvalidWeights`` for numbers that are none, before anything is written.
    """
    from safetensors.numpy import save as packed

    with np.errstate(over="ignore"):  # what half precision cannot hold is refused below
        stored = {n: np.ascontiguousarray(tensors[n], dtype=dtype) for n in config.shapes()}
    checked(config, stored)
    with medium(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with appearing(folder / WEIGHTS, over=True) as part:
        part.write_bytes(packed(stored))
    with appearing(folder / CONFIG, over=True) as part:
        part.write_text(json.dumps(config.to_dict(), indent=2) + "\n", "utf-8")


def fingerprint(config: SAEConfig, tensors: Tensors) -> str:
    """Return the SHA-256 of all that decides a trace: config, encoder and centring.

    Decoder weights are part of it too: explanations and similarity read them.
    """
    digest = hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode())
    for name in sorted(config.shapes()):
        digest.update(name.encode() + b"\0")
        digest.update(np.ascontiguousarray(tensors[name], dtype="<f4").tobytes())
    return digest.hexdigest()
