"""What decides how an SAE computes: one frozen dataclass, kept beside the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from memstore.errors import InvalidWeights, brief

Architecture = Literal[
    "topk",
    "batch_topk",
    "jump_relu",
    "matryoshka",
    "relu",
    "sparse_memory",
    "sparse_memory_text",
]
#: Those in which k says how many neurons fire: for each vector, or on average.
WITH_K = ("topk", "batch_topk", "jump_relu", "matryoshka")
#: The research prototype's: a sigmoid behind the decoder, and nothing centred.
PROTOTYPES = ("sparse_memory", "sparse_memory_text")


@dataclass(frozen=True)
class SAEConfig:
    """Architecture and sizes of a sparse autoencoder."""

    architecture: Architecture
    """``sae.encode.SAE`` has the equations."""
    dimension: int
    """Length d of the vectors that go in."""
    neurons: int
    """Number n of neurons."""
    k: int | None = None
    """How many neurons may fire for one vector (``topk``, ``matryoshka``), or do on average
    (``batch_topk``, ``jump_relu``)."""
    event_size: int | None = None
    """Width of the projection (``sparse_memory_text``; 300 in the prototype)."""
    prefixes: tuple[int, ...] | None = None
    """How many first neurons reconstruct alone (``matryoshka``), ascending, all of them last."""

    def __post_init__(self) -> None:
        if self.architecture not in get_args(Architecture):
            raise InvalidWeights(
                f"unknown SAE architecture {brief(self.architecture)}: this memstore knows "
                f"{', '.join(get_args(Architecture))}; update the package for newer ones"
            )
        for name in ("dimension", "neurons"):
            require_size(name, getattr(self, name))
        if self.architecture in WITH_K:
            require_size("k", self.k)
            if self.k is not None and self.k > self.neurons:
                raise InvalidWeights(f"k = {self.k} exceeds the {self.neurons} neurons: lower k")
        if self.architecture == "sparse_memory_text":
            require_size("event_size", self.event_size)
        self._check_prefixes()
        for name, fits in (
            ("k", self.architecture in WITH_K),
            ("event_size", self.architecture == "sparse_memory_text"),
            ("prefixes", self.architecture == "matryoshka"),
        ):
            if getattr(self, name) is not None and not fits:
                raise InvalidWeights(f"{name} says nothing to {self.architecture}: leave it out")

    def _check_prefixes(self) -> None:
        if self.architecture != "matryoshka":
            return
        if self.prefixes is None:
            sizes = {max(1, self.neurons // part) for part in (16, 8, 4, 2, 1)}
            object.__setattr__(self, "prefixes", tuple(sorted(sizes)))
        prefixes = tuple(self.prefixes or ())
        for size in prefixes:
            require_size("a prefix", size)
        if not prefixes or list(prefixes) != sorted(set(prefixes)) or prefixes[-1] != self.neurons:
            raise InvalidWeights(
                f"prefixes {brief(prefixes)} must ascend and end with all {self.neurons} neurons"
            )
        object.__setattr__(self, "prefixes", prefixes)

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
        if self.architecture == "batch_topk":
            shapes["threshold"] = (1,)
        if self.architecture == "jump_relu":
            shapes["threshold"] = (self.neurons,)
        return shapes

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that apply to this architecture."""
        fields = {name: value for name, value in asdict(self).items() if value is not None}
        if self.prefixes is not None:
            fields["prefixes"] = list(self.prefixes)
        return fields

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
                f"config.json has unknown fields {brief(sorted(unknown))}: update the package"
            )
        prefixes = fields.get("prefixes")
        if prefixes is not None and not isinstance(prefixes, list):
            raise InvalidWeights(f"prefixes of an SAE are a list of numbers, not {brief(prefixes)}")
        return cls(**{**fields, "prefixes": None if prefixes is None else tuple(prefixes)})


def require_size(name: str, value: object) -> None:
    """Raise ``InvalidWeights`` unless ``value`` is a positive whole number of sane size."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= 1 << 24:
        raise InvalidWeights(
            f"{name} of an SAE is {brief(value)}: it must be a whole number above 0"
        )
