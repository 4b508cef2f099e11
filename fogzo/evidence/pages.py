"""The Markdown page of an experiment: verdicts, tables, and the runs behind them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from fogzo.evidence.compare import METHOD
from fogzo.evidence.frame import Evidence
from fogzo.evidence.published import STATUS_RULE
from fogzo.evidence.render import markdown
from fogzo.evidence.tables.comparison import comparison_table, control_table, tuned_table
from fogzo.evidence.tables.compute import compute_table, equal_loss_table, ratio_table
from fogzo.evidence.verdicts import rerun, verdicts

PACKAGES = ("python", "torch", "torchvision", "timm", "transformers", "numpy")  # whose versions are shown
COST_NOTE = (
    "Costs are means over the finished runs. Forward equivalents count a backward pass as two forward passes (in "
    'brackets: times the baseline), the convention behind "5/3 of an STE step"; FLOPs are measured by torch\'s flop '
    "counter. Seconds are training time on a machine that was busy with other runs, and no evidence: compare methods "
    "by FLOPs."
)
FIGURES = {  # an experiment's figures by the end of their names
    "": "against steps and cost",
    "_differences": "paired differences to the baseline",
    "_sensitivity": "sensitivity",
}


def page(evidence: Evidence, figures: Collection[str] = ()) -> str:
    """Return an experiment's page.

    Args:
        figures: the names of those that are drawn beside it.
    """
    name, paper, any_runs = evidence.name, evidence.paper, bool(evidence.all_runs())
    said = f"The paper: {sentences(paper, 'setting', 'claim')}\n\n" if paper else ""
    heading = f"## What came out\n\n{verdict_list(evidence)}" if any_runs else "## Not run yet\n"
    controls = control_table(evidence) if any_runs else None
    tuned = tuned_table(evidence)
    shown = [(f"{name}{end}", what) for end, what in FIGURES.items() if f"{name}{end}" in figures]
    parts = [
        f"# {evidence.title}\n\nMade by `make tables` from `results/records/{name}.jsonl`; not typed. "
        f"Scale: {evidence.scale}.\n\n{said}",
        f"{heading}\n{markdown(comparison_table(evidence))}\n{METHOD}\n\n{COST_NOTE}\n\n{STATUS_RULE}\n\n",
        f"## FOGZO against the controls\n\n{markdown(controls)}\n" if controls else "",
        equal_loss_section(evidence),
        f"## What tuning chose\n\n{markdown(tuned)}\n" if tuned else "",
        "## Figures\n\n" if shown else "",
        *(f"![{evidence.title}: {what}](../figures/{figure}.svg)\n\n" for figure, what in shown),
        rerun_section(evidence),
        f"{footer(evidence)}\n",
    ]
    return "".join(parts)


def verdict_list(evidence: Evidence, *, directed: bool = False) -> str:
    """Return the verdicts as a list in Markdown; ``directed``: with the direction of differences in words."""
    return "".join(f"* **{verdict.word}**: {verdict.sentence(directed=directed)}\n" for verdict in verdicts(evidence))


def rerun_section(evidence: Evidence) -> str:
    """Return the commands that make a run of each cell anew, but for the controls'; empty if none was run."""
    cells = [cell for cell in evidence.cells.values() if not cell.method.is_control and evidence.values(cell)]
    commands = "\n".join(rerun(evidence, cell) for cell in cells)
    said = "With the record's packages and kind of CPU, bit for bit; elsewhere sums are rounded otherwise."
    return f"## Run a cell again\n\n{said}\n\n```bash\n{commands}\n```\n\n" if cells else ""


def equal_loss_section(evidence: Evidence, *, level: int = 2) -> str:
    """Return the part of a page about compute at equal loss, with a heading of a level; empty if none is asked for."""
    asked = evidence.experiment.equal_loss
    if not asked:
        return ""
    return f"""{"#" * level} Compute at equal training loss

How many times the forward equivalents of the second method the first one needs for the training loss that it ends with,
both read off the runs of the same seed, at the first evaluation at which the loss is down to that. Evaluations lie
apart, so that a cost is known only to lie between two of them: hence the range beside the median, over all seeds. A
seed at which the second method does not get to that loss has a ratio below what its whole run allows; it counts too.

{markdown(ratio_table(evidence, asked.ratios))}
Forward equivalents until the training loss first is at most the value that a method ended with, mean over seeds:

{markdown(equal_loss_table(evidence, asked.targets))}
The paper's own MLP table counts an STE step as 1x. Agreement is the measured slope along ĝ over the slope that the STE
believes, a mean over the run.

{markdown(compute_table(evidence))}
"""


def footer(evidence: Evidence) -> str:
    """Return which runs, seeds, commits and versions stand behind a table."""
    runs = evidence.all_runs()
    if not runs:
        return "No runs yet."
    commits = {str(run.summary.get("git_commit"))[:10] + ("+" if run.summary.get("git_dirty") else "") for run in runs}
    changed = " (+: with changes that were not committed)" if any(run.summary.get("git_dirty") for run in runs) else ""
    installed = [run.summary.get("versions") or {} for run in runs]
    named = [package for package in PACKAGES if any(package in versions for versions in installed)]
    versions = [
        f"{package} {_list(str(versions.get(package, 'not recorded')) for versions in installed)}" for package in named
    ]
    return (
        f"{len(runs)} runs in results/records/{evidence.name}.jsonl, scale {evidence.scale}, "
        f"data {_list(str((run.summary.get('data') or {}).get('name')) for run in runs)}, "
        f"seeds {_list(run.summary['seed'] for run in runs)}, commit {_list(commits)}{changed}, "
        f"{', '.join(versions)}, {_list(str(run.summary.get('device')) for run in runs)}. "
        "Spread: sample standard deviation over seeds; n: finished runs."
    )


def _list(values: Iterable[Any]) -> str:
    return ", ".join(map(str, sorted(set(values))))


def sentences(paper: Mapping[str, Any], *keys: str) -> str:
    """Return what a published table says of itself, as sentences."""
    said = [str(paper[key]).strip().rstrip(".") for key in keys if paper.get(key)]
    return " ".join(f"{text[:1].upper()}{text[1:]}." for text in said)
