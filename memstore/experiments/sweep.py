"""How wide, and how many may fire: TopK over k and width."""

from __future__ import annotations

from memstore.core.vectors import NEAR_COPY
from memstore.experiments import figures
from memstore.experiments.lab import Lab, Result
from memstore.sae.config import SAEConfig
from memstore.sae.measure import held_out_rows, measure
from memstore.tables import Row

#: Neurons a dimension would be the field's way to say it; texts a neuron is what decides here.
FEWEST_TEXTS_A_NEURON = 5
WIDTHS = (32, 64, 128, 256, 512, 1024, 2048, 3072)
KS = (4, 8, 16, 32, 64)
#: Rows seen by each SAE, at most.
ROWS_SEEN = 400_000


def sweep(lab: Lab) -> Result:
    """Train a TopK SAE for each k and width that the texts can feed; FVU on held-out texts."""
    held_out = held_out_rows(lab.vectors, 0.1, NEAR_COPY, lab.seed)
    training, rows = lab.vectors[~held_out], []
    widths = [w for w in WIDTHS if w * FEWEST_TEXTS_A_NEURON <= len(training)][-3:] or [WIDTHS[0]]
    batch = min(1024, max(50, len(training) // 20))
    epochs = max(1, min(100, ROWS_SEEN // len(training)))
    for neurons in widths:
        for k in (k for k in KS if 4 * k <= neurons):
            config = SAEConfig("topk", training.shape[1], neurons, k=k)
            name = f"topk-{neurons}-{k}"
            run = lab.train(
                name, config, vectors=training, epochs=epochs, batch=batch, dead_rows=len(training)
            )
            found = measure(run.sae, lab.vectors[held_out])
            row: Row = {
                "neurons": neurons,
                "k": k,
                "l0": found.l0,
                "FVU": found.fvu,
                "dead share": found.dead_share,
                "busiest": found.max_fire_rate,
            }
            rows.append(row)
    curves = {
        f"{neurons} neurons": (
            [float(row["l0"] or 0) for row in rows if row["neurons"] == neurons],
            [float(row["FVU"] or 0) for row in rows if row["neurons"] == neurons],
        )
        for neurons in widths
    }
    figure = figures.lines(
        "L0 against FVU, held out", "neurons firing a text (L0)", "FVU", curves, log_x=True
    )

    def spread(same: str) -> float:
        """Return the largest difference in FVU between rows with the same value of a column."""
        groups = {
            row[same]: [float(r["FVU"] or 0) for r in rows if r[same] == row[same]] for row in rows
        }
        return max(max(values) - min(values) for values in groups.values())

    text = (
        f"TopK SAEs on {len(training):,} texts, {epochs} passes, measured on "
        f"{int(held_out.sum()):,} others. From the fewest to the most that fire, at one width, FVU "
        f"falls by up to {spread('neurons'):.3f}; between widths, at one k, it differs by up to "
        f"{spread('k'):.3f}."
    )
    return Result("k and width", text, rows, {"frontier": figure})
