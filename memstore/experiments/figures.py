"""Figures, as PNG and SVG: colours that colour-blind people tell apart, shapes beside colours.

Nothing here uses pyplot: a figure is an object, and drawing one changes nothing elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from memstore.types import Float32, Float64

#: Okabe and Ito's palette, without its yellow, which is too pale for points on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "^", "s", "D", "v", "P", "X")
GREY = "#BBBBBB"
SIZE = (7.0, 4.5)


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write a figure as PNG and SVG; returns the files. The same figure gives the same SVG."""
    import matplotlib as mpl

    paths = [folder / f"{name}.png", folder / f"{name}.svg"]
    with mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure.savefig(paths[0], dpi=150)
        figure.savefig(paths[1], metadata={"Date": None})
    return paths


def blank(title: str, x: str, y: str) -> tuple[Figure, Any]:
    """Return a figure and its axes."""
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def pca(
    activations: Float32, groups: Sequence[str], highlighted: int | str | None = None
) -> Figure:
    """Return the first two principal components of (n, neurons) activations, coloured by group.

    ``highlighted``: a neuron, shown by its activation, or a group, the others grey.
    """
    centred = activations.astype(np.float64) - activations.mean(axis=0)
    _, spread, axes_of = np.linalg.svd(centred, full_matrices=False)
    points = centred @ axes_of[:2].T
    shares = spread[:2] ** 2 / max(float((spread**2).sum()), 1e-12)
    title = "PCA of activations"
    if highlighted is not None:
        title += f", N{highlighted}" if isinstance(highlighted, int) else f", {highlighted}"
    figure, axes = blank(title, f"component 1 ({shares[0]:.0%})", f"component 2 ({shares[1]:.0%})")
    if isinstance(highlighted, int):
        shown = axes.scatter(
            points[:, 0], points[:, 1], c=activations[:, highlighted], cmap="viridis", s=14
        )
        figure.colorbar(shown, ax=axes, label=f"activation of N{highlighted}")
        return figure
    names = list(dict.fromkeys(groups))
    for number, name in enumerate(names):
        inside = np.array([group == name for group in groups])
        faded = highlighted is not None and name != highlighted
        axes.scatter(
            points[inside, 0],
            points[inside, 1],
            s=14,
            color=GREY if faded else COLOURS[number % len(COLOURS)],
            marker=MARKERS[number % len(MARKERS)],
            label=name,
            zorder=1 if faded else 2,
        )
    axes.legend(frameon=False)
    return figure


def comparison(means: Mapping[str, Float64], neurons: Sequence[int]) -> Figure:
    """Return bars of each group's mean activation, a cluster a neuron."""
    figure, axes = blank("Mean activation by category", "neuron", "mean activation")
    width = 0.8 / max(len(means), 1)
    for number, (name, values) in enumerate(means.items()):
        at = np.arange(len(neurons)) + (number - (len(means) - 1) / 2) * width
        axes.bar(at, values, width, label=name, color=COLOURS[number % len(COLOURS)])
    axes.set_xticks(np.arange(len(neurons)), [f"N{neuron}" for neuron in neurons])
    axes.legend(frameon=False)
    return figure


def lines(
    title: str,
    x: str,
    y: str,
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    log_x: bool = False,
    log_y: bool = False,
) -> Figure:
    """Return curves, each (x values, y values), with a marker where something was measured."""
    figure, axes = blank(title, x, y)
    for number, (name, (across, up)) in enumerate(curves.items()):
        axes.plot(
            across,
            up,
            color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[number % len(MARKERS)] if len(across) < 30 else None,
            label=name,
        )
    if log_x:
        axes.set_xscale("log")
    if log_y:
        axes.set_yscale("log")
    axes.legend(frameon=False)
    return figure


def fire_rates(rates: Float64) -> Figure:
    """Return a histogram of the share of texts that each neuron fires for."""
    figure, axes = blank("Fire rates", "share of texts a neuron fires for", "neurons")
    edges = np.linspace(0.0, max(float(rates.max(initial=0.0)), 0.01), 31)
    axes.hist(rates, bins=edges, color=COLOURS[0])
    silent = int(np.count_nonzero(rates == 0))
    axes.annotate(f"{silent} never fire", (0.98, 0.95), xycoords="axes fraction", ha="right")
    return figure
