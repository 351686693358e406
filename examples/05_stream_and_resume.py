"""Stream rows into a file, stop in the middle, run the same call again: nothing twice."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from memstore import MemoryStore


def rows(*, power_cut: bool) -> Iterator[dict[str, str]]:
    for i in range(600):
        if power_cut and i == 400:
            raise RuntimeError("the power went out")
        yield {"text": f"Lap {i} of the pool.", "key": f"lap-{i}"}


with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "laps.db"
    with MemoryStore.open(path) as store:
        try:
            store.insert_many(rows(power_cut=True), on_duplicate="skip")
        except RuntimeError as error:
            print(f"{error}: {store.count()} memories are safe")
    with MemoryStore.open(path) as store:
        store.insert_many(rows(power_cut=False), on_duplicate="skip")
        print(f"after the second run: {store.count()} memories")
