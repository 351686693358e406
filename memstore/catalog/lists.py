"""Lists as SQL parameters: ``id IN (...)`` for the driver's own statements.

A few go one by one, their number rounded up, so that SQLite's prepared statements are found again;
many go as one JSON text.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

FEW = 256


def places(count: int) -> str:
    """Return what follows IN for a list of ``count`` numbers."""
    if count > FEW:
        return "(SELECT value FROM json_each(?))"
    return f"({','.join('?' * rounded(count))})"


def parameters(numbers: Sequence[int]) -> Sequence[object]:
    """Return the parameters that belong to ``places(len(numbers))``."""
    if len(numbers) > FEW:
        return (json.dumps(list(numbers)),)
    return [*numbers, *[None] * (rounded(len(numbers)) - len(numbers))]


def rounded(count: int) -> int:
    """Return the next of 1, 2, 4, 10, 16, 32, 64, 100, 128, 256."""
    return next(size for size in (1, 2, 4, 10, 16, 32, 64, 100, 128, FEW) if count <= size)
