"""Learn the lenses that ship from the sample narratives: ``python scripts/make_lenses.py``.

By traces and of neurons that speak for their category alone, so that "+grief -routine" takes
something away and adds nothing.
"""

from __future__ import annotations

import json

from memstore import MemoryStore, layout

#: Category -> what people call it.
NAMES = {"Routine": "routine", "Strong Emotional": "emotional", "Complex/Chaotic": "chaotic"}
#: More neurons told no more.
SIZE = 20


def main() -> None:
    """Write ``lenses.jsonl`` beside the shipped SAE."""
    with MemoryStore.open(":memory:") as store:
        store.insert_many(json.loads(layout.NARRATIVES.read_text("utf-8")))
        heading = {"memstore": "lenses", "encoder": store.stats()["fingerprint"]}
        lines = [json.dumps(heading)]
        for category, name in NAMES.items():
            lens = store.lenses.learn(category, name=name, neurons=SIZE, by="trace", positive=True)
            row = lens.to_dict()
            del row["created_at"]
            lines.append(json.dumps(row))
    layout.LENSES.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
