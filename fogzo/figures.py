"""Figures from run records.  The same records give the same bytes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from fogzo.results import Run

# one for each of up to 12 cells: black, five blues, red, orange, and what is far from them
COLOURS = (
    "#000000", "#c6dbef", "#9ecae1", "#6baed6", "#2171b5", "#08306b", "#d62728", "#ff7f0e",
    "#2ca02c", "#9467bd", "#8c564b", "#e377c2",
)  # fmt: skip


def loss_against_cost(
    stem: Path, experiment: Mapping[str, Any], cells: Mapping[str, Mapping[int, Run]], metric: str = "train_loss"
) -> Path:
    """Mean curve and range over seeds, against steps and against forward equivalents; ``stem``.svg and ``stem``.png."""
    plt.rcParams.update({"svg.hashsalt": "fogzo", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), sharey=True, layout="constrained")
    for number, (name, cell) in enumerate(experiment["cells"].items()):
        curves = [_curve(run, metric) for run in cells[name].values() if run.summary["status"] == "finished"]
        if not curves:
            continue
        losses = np.array([curve[metric] for curve in curves])
        control = cell["label"].startswith("control")
        style = {"color": COLOURS[number % len(COLOURS)], "lw": 1.2, "ls": "--" if control else "-"}
        for axis, cost in zip(axes, ("step", "forward_equivalents"), strict=True):
            axis.plot(curves[0][cost], losses.mean(0), label=cell["label"], **style)
            axis.fill_between(curves[0][cost], losses.min(0), losses.max(0), color=style["color"], alpha=0.15, lw=0)
    axes[0].set(xlabel="training steps", ylabel="training loss", yscale="log")
    axes[1].set(xlabel="forward equivalents (log scale)", xscale="log")
    for axis in axes:
        axis.grid(alpha=0.25, lw=0.5)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.suptitle(f"{experiment['title']} (mean and range over seeds)", fontsize=10)
    figure.savefig(stem.with_suffix(".svg"), metadata={"Date": None})
    figure.savefig(stem.with_suffix(".png"), dpi=150, metadata={"Software": None})
    plt.close(figure)
    return stem.with_suffix(".svg")


def _curve(run: Run, metric: str) -> dict[str, list[float]]:
    rows = [row for row in run.metrics() if row.get(metric) is not None]
    return {key: [row[key] for row in rows] for key in ("step", "forward_equivalents", metric)}
