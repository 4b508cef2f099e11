"""The tables of compute at equal training loss."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence

from fogzo.evidence.equal_loss import COST, Ratio, Reached, cost_pairs, ratio_of, reached
from fogzo.evidence.experiment import EqualLoss
from fogzo.evidence.frame import Evidence
from fogzo.evidence.published import published_text
from fogzo.evidence.tables import Column, Entry, Row, Table, Value, on_page, quantity


def ratio_table(evidence: Evidence) -> Table:
    """Return how many times the compute of the second method the first one needs for the same training loss."""
    headers = [
        "more compute of", "than of", "paper", "ratio: median over seeds", "range of all seeds", "seeds that reach it",
        "cost of the first", "cost of the second",
    ]  # fmt: skip
    rows = []
    for asked in _asked(evidence).ratios:
        first, second = evidence.cells[asked.of], evidence.cells[asked.to]
        pairs = cost_pairs(evidence, first, second)
        costs = [quantity([at.at for at, _ in pairs], 0), _costs([at for _, at in pairs])]
        ratio = ratio_texts(ratio_of(pairs))
        rows.append(on_page(headers, [first.label, second.label, asked.paper, *ratio, *costs]))
    return Table(rows)


def ratio_texts(ratio: Ratio | None) -> list[str | None]:
    """Return a ratio's median, its range, and how many seeds reach the loss."""
    return [ratio.median_text, ratio.range_text, f"{ratio.seeds} of {ratio.pairs}"] if ratio else [None, None, None]


def _costs(every: Sequence[Reached]) -> Entry | str | None:
    costs = [one.at for one in every if one.at < math.inf]
    if len(costs) < len(every):
        return f"reached by {len(costs)} of {len(every)} seeds" if costs else "not reached"
    return quantity(costs, 0)


def equal_loss_table(evidence: Evidence) -> Table:
    """Return the forward equivalents until the training loss is what each of the targets ends with on average."""
    headers = ["training loss of", "value", *(cell.label for cell in evidence.cells.values())]
    rows = []
    for target, loss in _mean_losses(evidence):
        costs: list[Entry | Value] = []
        for cell in evidence.cells.values():
            runs = evidence.finished(cell)
            if cell.name == target:
                costs.append(quantity([float(run.summary[COST]) for run in runs], 0, " (the whole run)"))
            else:
                costs.append(_costs([reached(run.metrics(), loss) for run in runs]))
        rows.append(on_page(headers, [evidence.cells[target].label, f"{loss:.4f}", *costs]))
    return Table(rows)


def _asked(evidence: Evidence) -> EqualLoss:
    return evidence.experiment.equal_loss or EqualLoss((), ())


def _mean_losses(evidence: Evidence) -> Iterator[tuple[str, float]]:
    for target in _asked(evidence).targets:
        if ends := evidence.values(evidence.cells[target], "train_loss"):
            yield target, statistics.fmean(ends.values())


def compute_table(evidence: Evidence) -> Table:
    """Return what else was seen of each cell: steps, learning rate, agreement, zero-difference probes."""
    headers = [
        "method", "steps", "learning rate", "agreement", "zero-difference probes", "paper (compute, training loss)"
    ]  # fmt: skip
    rows = []
    for name, cell in evidence.cells.items():
        rate = evidence.tuned[name].values.get("optimizer.lr") if name in evidence.tuned else None
        steps = sorted({run.summary["steps"] for run in evidence.finished(cell)})
        agreement = quantity(evidence.values(cell, "mean_agreement").values(), 2)
        zeros = quantity([100 * share for share in evidence.values(cell, "mean_zero_probes").values()], 2, " %")
        tuned = [", ".join(f"{value:,}" for value in steps) or None, None if rate is None else f"{rate:g}"]
        rows.append(on_page(headers, [cell.label, *tuned, agreement, zeros, published_text(evidence, cell)]))
    return Table(rows)


def reached_table(evidence: Evidence) -> Table:
    """Return what the ratios and costs of the page follow from, for a CSV file: a row a run and a loss.

    ``loss_of_seed`` is the seed whose final loss is to be reached by the run of that seed, as ratios pair them, or
    ``mean`` for the mean of all seeds; the cost is empty where the run never logged a loss as low.
    """
    rows: list[Row] = []
    for target, loss in _mean_losses(evidence):
        for cell in evidence.cells:
            rows += _reached_rows(evidence, target, "mean", loss, cell)
    pairs = [(ratio.of, cell) for ratio in _asked(evidence).ratios for cell in (ratio.of, ratio.to)]
    for target, cell in dict.fromkeys(pairs):
        for seed, loss in evidence.values(evidence.cells[target], "train_loss").items():
            rows += _reached_rows(evidence, target, seed, loss, cell)
    return Table(rows)


def _reached_rows(evidence: Evidence, target: str, of_seed: int | str, loss: float, cell: str) -> Iterator[Row]:
    names = ("experiment", "loss_of", "loss_of_seed", "train_loss", "cell", "seed", COST)
    for run in evidence.finished(evidence.cells[cell]):
        seed = run.summary["seed"]
        if of_seed in ("mean", seed):
            cost = float(reached(run.metrics(), loss).at)
            entries = [evidence.name, target, of_seed, loss, cell, seed, cost if cost < math.inf else None]
            yield [(Column(None, name), entry) for name, entry in zip(names, entries, strict=True)]
