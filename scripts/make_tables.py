"""Rebuild every table, figure and the report from the records in results/:  python scripts/make_tables.py

Reads configs/experiment/*.yaml, run folders, tuned values and published numbers; trains nothing, needs no torch.  The
same records give the same bytes.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from fogzo.evidence.claims import claims_of, forest_of
from fogzo.evidence.equal_loss import section
from fogzo.evidence.experiment import Experiment
from fogzo.evidence.figures.curves import curves, differences, forest, remove
from fogzo.evidence.figures.family import members
from fogzo.evidence.figures.sensitivity import sensitivity
from fogzo.evidence.frame import Evidence, gather
from fogzo.evidence.pages import comparison_table, control_table, footer, page
from fogzo.evidence.parse import read_experiment
from fogzo.evidence.report.report import report
from fogzo.evidence.summary import fill_pages
from fogzo.evidence.values import controls_values, equal_loss_values, values_table
from fogzo.runs.files import atomic_write

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path("results")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--root", type=Path, default=ROOT, help="a project folder with configs/experiment/ and results/"
    )
    os.chdir(parser.parse_args().root)  # so that no page names a path of this machine
    try:
        found = [gather(experiment) for experiment in experiments()]
        for evidence in found:
            render(evidence)
        members(RESULTS / "figures" / "members", [evidence for evidence in found if evidence.all_runs()])
        for claim in claims_of(found):
            stem, panels = RESULTS / "figures" / f"claim_{claim.name}", forest_of(claim)
            if panels:
                forest(stem, panels)
            else:
                remove(stem)
        fill_pages(found)  # before the report, which has docs/replication.md in it
        atomic_write(RESULTS / "report.html", report(found).encode())
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    print(RESULTS / "report.html")
    problems = [problem for evidence in found for problem in [*evidence.problems, *evidence.tuning_faults()]]
    if problems:  # all the rest is written; but a record that is not used, or not to be, must not go unnoticed
        sys.exit("".join(f"error: {problem}\n" for problem in problems).rstrip())


def experiments() -> list[Experiment]:
    """Every experiment whose runs are results: those of stage explore are not."""
    files = sorted(Path("configs/experiment").glob("*.yaml"))
    every = [read_experiment(file) for file in files]
    return [experiment for experiment in every if experiment.stage == "confirm"]


def render(evidence: Evidence) -> None:
    """Write one experiment's tables and figures."""
    tables, figures = RESULTS / "tables", RESULTS / "figures"
    tables.mkdir(exist_ok=True)
    figures.mkdir(exist_ok=True)
    table, any_runs = comparison_table(evidence), bool(evidence.all_runs())
    controls = control_table(evidence) if any_runs else None
    source = f"% {footer(evidence)}\n"
    _write(tables / f"{evidence.name}.md", page(evidence, table, section(evidence)))
    _write(tables / f"{evidence.name}.tex", table.latex() + source)
    _write(tables / f"{evidence.name}.csv", values_table(evidence).csv())
    _write(tables / f"{evidence.name}_controls.tex", controls.latex() + source if controls else "")
    _write(tables / f"{evidence.name}_controls.csv", controls_values(evidence).csv() if controls else "")
    equal_loss = any_runs and evidence.experiment.equal_loss
    _write(tables / f"{evidence.name}_equal_loss.csv", equal_loss_values(evidence).csv() if equal_loss else "")
    print(tables / f"{evidence.name}.md")
    drawn = {"": curves, "_differences": differences}
    if evidence.experiment.axes:
        drawn["_sensitivity"] = sensitivity
    for suffix, draw in drawn.items():
        stem = figures / f"{evidence.name}{suffix}"
        if any(evidence.finished(cell) for cell in evidence.cells.values()):
            draw(stem, evidence)
        else:  # figures of runs that are gone would be a lie
            remove(stem)


def _write(path: Path, text: str) -> None:
    """Write the file, or remove what stood there of runs that are gone."""
    if text:
        atomic_write(path, text.encode())
    else:
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
