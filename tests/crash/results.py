"""Figures of the long proofs, kept for docs/guarantees.md: one JSON file a proof."""

import json
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "build" / "crash"


def record(name: str, figures: dict) -> None:
    """Write what a proof measured to ``build/crash/NAME.json``."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{name}.json").write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
