"""The prototype's experiments: sparsity, L1 per category, three categories, fine-tuning."""

from __future__ import annotations

import numpy as np
import torch

from memstore.experiments import figures
from memstore.experiments.lab import Lab, Result, Run
from memstore.neurons.statistics import category_auc
from memstore.sae.config import SAEConfig
from memstore.sae.measure import measure
from memstore.sae.prototype import SparseMemoryText
from memstore.tables import Row
from memstore.types import Float32, Float64

NEURONS, EVENT_SIZE = 30, 300
KL_WEIGHTS = (0.0005, 0.005, 0.05, 0.5)
L1_WEIGHTS = (0.0001, 0.0003, 0.001, 0.003)
TEXT_L1 = 0.0003


def text_config(lab: Lab) -> SAEConfig:
    """Return the prototype's network for texts."""
    dimension = lab.vectors.shape[1]
    return SAEConfig("sparse_memory_text", dimension, NEURONS, event_size=EVENT_SIZE)


def to_events(vectors: Float32) -> Float32:
    """Return vectors scaled to 0..1, which is all that a sigmoid can reconstruct."""
    low, high = vectors.min(), vectors.max()
    return np.asarray((vectors - low) / (high - low), dtype=np.float32)


def sparsity(lab: Lab) -> Result:
    """Train with the penalty at several weights, KL and L1: fewer fire, less is explained."""
    rows: list[Row] = []
    events = to_events(lab.vectors)
    by_kl = SAEConfig("sparse_memory", lab.vectors.shape[1], NEURONS)
    for penalty, config, inputs, weights in (
        ("KL", by_kl, events, KL_WEIGHTS),
        ("L1", text_config(lab), lab.vectors, L1_WEIGHTS),
    ):
        for weight in weights:
            run = lab.train(f"{penalty}-{weight:g}", config, vectors=inputs, sparsity=weight)
            found = measure(run.sae, inputs)
            activations = run.activations(inputs)
            rows.append(
                {
                    "architecture": config.architecture,
                    "penalty": penalty,
                    "weight": weight,
                    "l0": found.l0,
                    "mean activation": float(activations.mean()),
                    "dead": found.dead,
                    "readout FVU": found.readout_fvu,
                }
            )
    curves = {
        penalty: (
            [float(row["l0"] or 0) for row in rows if row["penalty"] == penalty],
            [float(row["readout FVU"] or 0) for row in rows if row["penalty"] == penalty],
        )
        for penalty in ("KL", "L1")
    }
    frontier = figures.lines(
        "Sparsity against reconstruction", "neurons firing a text (L0)", "read-out FVU", curves
    )
    text = (
        "Thirty neurons, trained at several weights of the sparsity penalty: KL(0.05 : mean "
        "activation) on vectors scaled to 0..1, L1 in the network for texts. More L1 means fewer "
        "neurons firing. KL pulls mean activations towards 0.05, which is not the same as few "
        "firing: neurons may fire for every text, weakly. FVU is that of a linear read-out of the "
        "texts trained on."
    )
    return Result("Sparsity", text, rows, {"frontier": frontier})


def errors_and_norms(run: Run, vectors: Float32) -> tuple[Float64, Float64]:
    """Return each row's squared error against the projection and L1 norm."""
    if not isinstance(run.model, SparseMemoryText):
        raise TypeError("only the network for texts reconstructs a projection")
    with torch.no_grad():
        batch = torch.from_numpy(vectors)
        forward = run.model(batch)
        error = (run.model.project(batch) - forward.reconstruction).pow(2).mean(dim=1)
        norm = forward.activations.sum(dim=1)
    return error.numpy().astype(np.float64), norm.numpy().astype(np.float64)


def l1(lab: Lab) -> Result:
    """Train the network for texts at several L1 weights; error and norm of each category."""
    rows: list[Row] = []
    for weight in L1_WEIGHTS:
        run = lab.train(f"text-{weight:g}", text_config(lab), sparsity=weight)
        error, norm = errors_and_norms(run, lab.vectors)
        for name, inside in lab.members().items():
            rows.append(
                {
                    "weight": weight,
                    "category": name,
                    "squared error": float(error[inside].mean()),
                    "L1 norm": float(norm[inside].mean()),
                }
            )
    curves = {
        name: (
            [float(row["L1 norm"] or 0) for row in rows if row["category"] == name],
            [float(row["squared error"] or 0) for row in rows if row["category"] == name],
        )
        for name in lab.names
    }
    figure = figures.lines(
        "L1 against reconstruction", "L1 norm of a trace", "squared error", curves
    )
    text = (
        "The network for texts at several weights of L1, all categories trained alike. A higher "
        "weight shrinks the traces of every category."
    )
    return Result("L1 against reconstruction, by category", text, rows, {"l1": figure})


def separation(activations: Float32, lab: Lab) -> dict[str, tuple[int, float | None]]:
    """Return ``{category: (neuron, AUC)}`` of the neuron that tells it best from the others.

    Chosen on a random half of each category's texts, its AUC is that on the others, None where
    there are none: the best of many on the texts it is chosen by is above one half for noise too.
    """
    half = np.zeros(len(activations), dtype=np.bool_)
    for own in lab.members().values():
        rows = np.random.default_rng(lab.seed).permutation(np.flatnonzero(own))
        half[rows[::2]] = True
    chosen, other = ({n: own[side] for n, own in lab.members().items()} for side in (half, ~half))
    best = dict.fromkeys(lab.names, (0, 0.0))
    for neuron, column in enumerate(activations[half].T.astype(np.float64)):
        for name, auc in category_auc(column, chosen).items():
            best[name] = max(best[name], (neuron, auc), key=lambda pair: pair[1])
    tested = activations[~half].astype(np.float64)
    aucs = {n: category_auc(tested[:, i], other) for n, (i, _) in best.items()}
    return {n: (i, aucs[n].get(n)) for n, (i, _) in best.items()}


def narratives(lab: Lab) -> Result:
    """Train with equal and with a category's own weights; which neurons tell categories apart."""
    rows: list[Row] = []
    members, favoured = lab.members(), lab.names[0]
    weights = np.ones((len(lab.vectors), 2), dtype=np.float32)
    weights[members[favoured]] = (3.0, 0.3)
    runs = {
        "equal": lab.train("equal", text_config(lab), sparsity=TEXT_L1),
        f"favouring {favoured}": lab.train(
            "favouring", text_config(lab), sparsity=TEXT_L1, row_weights=weights
        ),
    }
    for name, run in runs.items():
        activations = run.activations(lab.vectors)
        error, norm = errors_and_norms(run, lab.vectors)
        for category, (neuron, auc) in separation(activations, lab).items():
            inside = members[category]
            rows.append(
                {
                    "weights": name,
                    "category": category,
                    "best neuron": neuron,
                    "AUC": auc,
                    "squared error": float(error[inside].mean()),
                    "L1 norm": float(norm[inside].mean()),
                }
            )
    activations = runs["equal"].activations(lab.vectors)
    chosen = list(dict.fromkeys(neuron for neuron, _ in separation(activations, lab).values()))
    means = {
        name: activations[inside][:, chosen].mean(axis=0).astype(np.float64)
        for name, inside in members.items()
    }
    drawn = {
        "pca": figures.pca(activations, lab.categories),
        "pca-neuron": figures.pca(activations, lab.categories, chosen[0]),
        "pca-category": figures.pca(activations, lab.categories, favoured),
        "comparison": figures.comparison(means, chosen),
        "fire-rates": figures.fire_rates((activations > 0).mean(axis=0).astype(np.float64)),
    }
    norms = [float(row["L1 norm"] or 0) for row in rows if row["category"] == favoured]
    text = (
        "Thirty neurons on narratives of several categories. For each category the neuron whose "
        "activation tells it best from the others, chosen on half of the texts, and its AUC on the "
        f"other half. With weights that favour a category ({favoured}: reconstruction x 3, "
        f"sparsity x 0.3) the L1 norm of its traces is {norms[1]:.3f}, with equal weights "
        f"{norms[0]:.3f}. Neurons of the two runs have nothing to do with each other, "
        "whatever their numbers."
    )
    return Result("Narratives of several categories", text, rows, drawn)


def finetune(lab: Lab) -> Result:
    """Fine-tune from base weights and from nothing, and with the target left free to collapse."""
    events = np.random.default_rng(lab.seed).random((450, EVENT_SIZE), dtype=np.float32)
    base_config = SAEConfig("sparse_memory", EVENT_SIZE, NEURONS)
    base = lab.train("base", base_config, vectors=events, sparsity=0.0005).model.tensors()
    runs = {
        "from base weights": lab.train("tuned", text_config(lab), base=base, sparsity=TEXT_L1),
        "from nothing": lab.train("scratch", text_config(lab), sparsity=TEXT_L1),
        "learned target": lab.train(
            "collapsed", text_config(lab), sparsity=TEXT_L1, learned_target=True
        ),
    }
    rows: list[Row] = []
    for name, run in runs.items():
        error, _ = errors_and_norms(run, lab.vectors)
        model = run.model
        with torch.no_grad():
            target = model.project(torch.from_numpy(lab.vectors)).numpy()  # type: ignore[operator]
        rows.append(
            {
                "run": name,
                "squared error": float(error.mean()),
                "target varies": float(target.var(axis=0).mean() / target.mean() ** 2),
                "l0": measure(run.sae, lab.vectors).l0,
                "readout FVU": measure(run.sae, lab.vectors).readout_fvu,
            }
        )
    curves = {name: run.curve("loss") for name, run in runs.items()}
    figure = figures.lines("Training curves", "step", "loss", curves, log_y=True)
    text = (
        "Encoder and decoder trained on random events, then on texts with a new projection; the "
        "same from nothing; and with a target that learns along, as in the prototype. How much a "
        "target varies from text to text is its variance over its squared mean: one that hardly "
        "varies is reconstructed with little error, which says little about the traces."
    )
    return Result("Fine-tuning on texts from base weights", text, rows, {"curves": figure})
