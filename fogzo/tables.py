"""Tables from run records: what ran, how well, at what cost, and for what is missing the command that runs it."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fogzo.results import Run, cost_to_reach, spread

Cells = Mapping[str, Mapping[int, Run]]


@dataclass(frozen=True)
class Table:
    """Rows of text under a header; ``notes`` stand below."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()

    def markdown(self) -> str:
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        text = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        return text + "\n" + "".join(f"\n{note}\n" for note in self.notes)


def compute_table(
    experiment: Mapping[str, Any], cells: Cells, tuned: Mapping[str, Any], paper: Mapping[str, Any]
) -> Table:
    """One row a cell: final training loss and accuracy over seeds, and what they cost."""
    header = [
        "method", "steps", "learning rate", "training loss", "test accuracy, %", "seeds",
        "forward equivalents", "FLOPs", "agreement", "zero-difference probes", "paper (compute, training loss)",
    ]  # fmt: skip
    rows, notes = [], []
    for name, cell in experiment["cells"].items():
        runs = [run for _, run in sorted(cells[name].items())]
        finished = [run.summary for run in runs if run.summary["status"] == "finished"]
        rate = tuned.get(name, {}).get("values", {}).get("optimizer.lr")
        edge = "*" if tuned.get(name, {}).get("on_edge_of_grid") else ""
        known = paper["rows"].get(name)
        rows.append(
            [
                cell["label"],
                _common(finished, "steps"),
                "–" if rate is None else f"{rate:g}{edge}",
                spread([s["train_loss"] for s in finished], 4),
                spread([s["accuracy"] for s in finished], 1),
                f"{len(finished)} of {len(experiment['seeds'])}",
                _common(finished, "forward_equivalents"),
                f"{finished[0]['flops']:.2e}" if finished else "–",
                spread([s["mean_agreement"] for s in finished if "mean_agreement" in s], 2),
                spread([100 * s["mean_zero_probes"] for s in finished if "mean_zero_probes" in s], 2)
                + _percent(finished),
                f"{known['compute']}, {known['training_loss']}" if known else "–",
            ]
        )
        missing = [seed for seed in experiment["seeds"] if seed not in cells[name]]
        if missing:
            seeds = ",".join(map(str, missing))
            notes.append(f"Missing: `python train.py -m experiment={experiment['name']} cell={name} seed={seeds}`")
        diverged = len(runs) - len(finished)
        if diverged:
            notes.append(f"{cell['label']}: {diverged} of {len(runs)} runs diverged and are not in the mean.")
    if any("*" in row[2] for row in rows):
        notes.append("\\* the best learning rate lies on the edge of the grid.")
    return Table(header, rows, notes)


def equal_loss_table(experiment: Mapping[str, Any], cells: Cells) -> Table:
    """Forward equivalents until the training loss is down to what each n-SPSA cell ends with."""
    targets = {
        name: sum(run.summary["train_loss"] for run in runs.values()) / len(runs)
        for name, runs in cells.items()
        if name.startswith("nspsa") and runs and all(run.summary["status"] == "finished" for run in runs.values())
    }
    curves = {name: [run.metrics() for run in runs.values()] for name, runs in cells.items()}
    labels = {name: cell["label"] for name, cell in experiment["cells"].items()}
    header = ["training loss of", "value", *(labels[name] for name in cells)]
    rows = []
    for target, loss in targets.items():
        row = [labels[target], f"{loss:.4f}"]
        for name in cells:
            costs = [cost_to_reach(curve, loss, "forward_equivalents") for curve in curves[name]]
            reached = [cost for cost in costs if cost is not None]
            if name == target:
                row.append(spread([float(run.summary["forward_equivalents"]) for run in cells[name].values()], 0))
            elif not costs:
                row.append("–")
            elif len(reached) < len(costs):
                row.append("not reached" if not reached else f"reached by {len(reached)} of {len(costs)} seeds")
            else:
                row.append(spread(reached, 0))
        rows.append(row)
    return Table(header, rows)


def footer(cells: Cells) -> str:
    """Which seeds, commits and versions stand behind a table."""
    runs = [run for cell in cells.values() for run in cell.values()]
    if not runs:
        return "No runs yet."
    seeds = sorted({run.summary["seed"] for run in runs})
    commits = sorted({str(run.summary["git_commit"])[:10] + ("+" if run.summary["git_dirty"] else "") for run in runs})
    versions = sorted({f"torch {run.summary['versions']['torch']}" for run in runs})
    scales = sorted({run.summary["scale"] for run in runs})
    return (
        f"{len(runs)} runs, scale {', '.join(scales)}, seeds {', '.join(map(str, seeds))}, "
        f"commit {', '.join(commits)}, {', '.join(versions)}. Spread: sample standard deviation over seeds."
    )


def write_csv(path: Path, table: Table) -> None:
    """The table as comma-separated values."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerows([table.header, *table.rows])
    path.write_text(buffer.getvalue(), encoding="utf-8")


def write_markdown(
    path: Path, experiment: Mapping[str, Any], paper: Mapping[str, Any], table: Table, equal_loss: Table, foot: str
) -> None:
    """The page of one experiment: what the paper says, what came out, cost at equal loss, and the figure."""
    name = experiment["name"]
    text = f"""# {experiment["title"]}

Made by `make tables` from `results/runs/{name}`; not typed.

The paper: {paper["setting"]}. {paper["claim"]}. No loss values are known.

{table.markdown()}
Forward equivalents count a backward pass as two forward passes, the convention behind "5/3 of an STE step"; the paper's
own MLP table counts an STE step as 1x. FLOPs are measured by torch's flop counter. Agreement is the measured slope
along ĝ over the slope that the STE believes, a mean over the run.

## Cost at equal training loss

Forward equivalents until the training loss, as evaluated on the way, first is at most the value that n-SPSA ended
with.

{equal_loss.markdown()}
![Training loss against steps and against compute](../figures/{name}.svg)

{foot}
"""
    path.write_text(text, encoding="utf-8")


def _common(summaries: Sequence[Mapping[str, Any]], key: str) -> str:
    values = sorted({summary[key] for summary in summaries})
    return ", ".join(f"{value:,}" for value in values) or "–"


def _percent(summaries: Sequence[Mapping[str, Any]]) -> str:
    return " %" if any("mean_zero_probes" in summary for summary in summaries) else ""
