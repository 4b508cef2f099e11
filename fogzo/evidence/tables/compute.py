"""The tables of compute at equal training loss."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from fogzo.evidence.equal_loss import COST, Ratio, Reached, cost_pairs, ratio_of, reached
from fogzo.evidence.frame import Evidence
from fogzo.evidence.published import published_text
from fogzo.evidence.tables import Column, Entry, Row, Table, on_page, quantity


def ratio_table(evidence: Evidence) -> Table:
    """Return how many times the compute of the second method the first one needs for the same training loss."""
    rows = []
    for asked in evidence.experiment.equal_loss.ratios:
        first, second = evidence.cells[asked.of], evidence.cells[asked.to]
        pairs = cost_pairs(evidence, first, second)
        of = {"more compute of": first.label, "than of": second.label, "paper": asked.paper}
        ratio = ratio_entries(ratio_of(pairs), "ratio: median over seeds")
        own, others = (_costs([one[which] for one in pairs]) for which in (0, 1))
        rows.append(on_page(of | ratio | {"cost of the first": own, "cost of the second": others}))
    return Table(rows)


def ratio_entries(ratio: Ratio | None, median: str) -> dict[str, str | None]:
    """Return a ratio's median, under the header ``median``, its range, and how many seeds reach the loss."""
    return {
        median: ratio.median_text if ratio else None,
        "range of all seeds": ratio.range_text if ratio else None,
        "seeds that reach it": f"{ratio.seeds} of {ratio.pairs}" if ratio else None,
    }


def _costs(every: Sequence[Reached]) -> Entry | str:
    costs = [one.at for one in every if one.at < math.inf]
    if len(costs) < len(every):
        return f"reached by {len(costs)} of {len(every)} seeds" if costs else "not reached"
    return quantity(costs, 0)


def equal_loss_table(evidence: Evidence) -> Table:
    """Return the forward equivalents until the training loss is what each of the targets ends with on average."""
    rows = []
    for target, loss in _mean_losses(evidence):
        costs: dict[str, Entry | str] = {}
        for cell in evidence.cells.values():
            runs = evidence.finished(cell)
            whole = quantity([float(run.summary[COST]) for run in runs], 0, " (the whole run)")
            costs[cell.label] = whole if cell.name == target else _costs([reached(run.metrics(), loss) for run in runs])
        rows.append(on_page({"training loss of": evidence.cells[target].label, "value": f"{loss:.4f}", **costs}))
    return Table(rows)


def _mean_losses(evidence: Evidence) -> Iterator[tuple[str, float]]:
    for target in evidence.experiment.equal_loss.targets:
        if (loss := evidence.mean(evidence.cells[target], "train_loss")) is not None:
            yield target, loss


def compute_table(evidence: Evidence) -> Table:
    """Return what else was seen of each cell: steps, learning rate, agreement, zero-difference probes."""
    rows = []
    for cell in evidence.cells.values():
        rates = {run.config["optimizer"]["lr"] for run in evidence.finished(cell)}
        steps = sorted({run.summary["steps"] for run in evidence.finished(cell)})
        zeros = [100 * share for share in evidence.values(cell, "mean_zero_probes").values()]
        entries = {
            "method": cell.label,
            "steps": ", ".join(f"{value:,}" for value in steps) or None,
            "learning rate": ", ".join(f"{rate:g}" for rate in sorted(rates)) or None,
            "agreement": quantity(evidence.values(cell, "mean_agreement").values(), 2),
            "zero-difference probes": quantity(zeros, 2, " %"),
            "paper (compute, training loss)": published_text(evidence, cell),
        }
        rows.append(on_page(entries))
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
    pairs = [(ratio.of, cell) for ratio in evidence.experiment.equal_loss.ratios for cell in (ratio.of, ratio.to)]
    for target, cell in dict.fromkeys(pairs):
        for seed, loss in evidence.values(evidence.cells[target], "train_loss").items():
            rows += _reached_rows(evidence, target, seed, loss, cell)
    return Table(rows)


def _reached_rows(evidence: Evidence, target: str, of_seed: int | str, loss: float, cell: str) -> Iterator[Row]:
    for seed, run in evidence.runs[cell].items():  # of a pair, one that diverged counts too, as in `cost_pairs`
        if of_seed == seed or (of_seed == "mean" and run.summary["status"] == "finished"):
            cost = float(reached(run.metrics(), loss).at)
            entries = {
                "experiment": evidence.name, "loss_of": target, "loss_of_seed": of_seed, "train_loss": loss,
                "cell": cell, "seed": seed, COST: cost if cost < math.inf else None,
            }  # fmt: skip
            yield [(Column(None, name), entry) for name, entry in entries.items()]
