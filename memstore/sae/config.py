"""What decides how an SAE computes: one frozen dataclass, kept beside the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from memstore.errors import InvalidWeights

Architecture = Literal["topk", "sparse_memory_text"]


@dataclass(frozen=True)
class SAEConfig:
    """Architecture and sizes of a sparse autoencoder."""

    architecture: Architecture
    """``topk``: the k strongest of ReLU pre-activations. ``sparse_memory_text``: the prototype's
    projection + ReLU, encoder + ReLU, decoder + sigmoid."""
    dimension: int
    """Length d of the vectors that go in."""
    neurons: int
    """Number n of neurons."""
    k: int | None = None
    """How many neurons may fire for one vector (``topk``)."""
    event_size: int | None = None
    """Width of the projection (``sparse_memory_text``; 300 in the prototype)."""

    def __post_init__(self) -> None:
        if self.architecture not in get_args(Architecture):
            raise InvalidWeights(
                f"unknown SAE architecture {self.architecture!r}: this memstore knows "
                f"{', '.join(get_args(Architecture))}; update the package for newer ones"
            )
        for name in ("dimension", "neurons"):
            require_size(name, getattr(self, name))
        if self.architecture == "topk":
            require_size("k", self.k)
            if self.k is not None and self.k > self.neurons:
                raise InvalidWeights(f"k = {self.k} exceeds the {self.neurons} neurons: lower k")
        else:
            require_size("event_size", self.event_size)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the tensors a weights file must hold, as torch's Linear layers lay them out."""
        inner = self.dimension if self.event_size is None else self.event_size
        shapes: dict[str, tuple[int, ...]] = {
            "encoder.weight": (self.neurons, inner),
            "encoder.bias": (self.neurons,),
            "decoder.weight": (inner, self.neurons),
            "decoder.bias": (inner,),
        }
        if self.event_size is not None:
            shapes["projection.weight"] = (self.event_size, self.dimension)
            shapes["projection.bias"] = (self.event_size,)
        return shapes

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that apply to this architecture."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> SAEConfig:
        """Return the config of a JSON object; raises ``InvalidWeights`` for anything unexpected."""
        known = set(cls.__dataclass_fields__)
        if not isinstance(fields, Mapping) or not {"architecture", "dimension", "neurons"} <= set(
            fields
        ):
            raise InvalidWeights("config.json lacks architecture, dimension or neurons")
        if unknown := set(fields) - known:
            raise InvalidWeights(
                f"config.json has unknown fields {sorted(unknown)}: update the package"
            )
        return cls(**fields)


def require_size(name: str, value: object) -> None:
    """Raise ``InvalidWeights`` unless ``value`` is a positive whole number of sane size."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= 1 << 24:
        raise InvalidWeights(f"{name} of an SAE is {value!r}: it must be a whole number above 0")
