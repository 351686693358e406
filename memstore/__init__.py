"""memstore: an embedded memory database whose memories can be read.

Names are imported on first use, so that ``import memstore`` costs nothing: a neuron query
from the shell must not pay for an embedder it never asks.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from memstore.core.expression import Expression, N
    from memstore.encoder import Encoder
    from memstore.errors import MemstoreError
    from memstore.hits import Hit, Hits
    from memstore.narrative_api import NarrativeMemoryAPI
    from memstore.store import MemoryStore
    from memstore.types import Memory, Neuron, Trace, Traces

_HOME = {
    "Encoder": "memstore.encoder",
    "Expression": "memstore.core.expression",
    "Hit": "memstore.hits",
    "Hits": "memstore.hits",
    "Memory": "memstore.types",
    "MemoryStore": "memstore.store",
    "MemstoreError": "memstore.errors",
    "N": "memstore.core.expression",
    "NarrativeMemoryAPI": "memstore.narrative_api",
    "Neuron": "memstore.types",
    "Trace": "memstore.types",
    "Traces": "memstore.types",
}

__all__ = [
    "Encoder",
    "Expression",
    "Hit",
    "Hits",
    "Memory",
    "MemoryStore",
    "MemstoreError",
    "N",
    "NarrativeMemoryAPI",
    "Neuron",
    "Trace",
    "Traces",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'memstore' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
