"""Rebuild every table from the records in results/, and the figures that pages show:  python scripts/make_tables.py

Packs finished run folders, then reads configs/experiment/*.yaml, records, tuned values and published numbers; trains
nothing, needs no torch.  The same records give the same bytes.  What is written: results/tables/*.md and *.csv, the
tables in README.md and docs/*.md, and the SVG figures that those show.  ``make report`` makes the report, all figures
and the tables for LaTeX.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from fogzo.evidence.figures import drawings
from fogzo.evidence.figures.style import save
from fogzo.evidence.fills import fill_pages, linked_figures
from fogzo.evidence.frame import Evidence, gather
from fogzo.evidence.pages import page
from fogzo.evidence.parse import confirmed_experiments
from fogzo.evidence.render import to_csv
from fogzo.evidence.tables import Table
from fogzo.evidence.tables.comparison import comparison_table, control_table
from fogzo.evidence.tables.compute import reached_table
from fogzo.runs.files import atomic_write
from fogzo.runs.records import add

ROOT = Path(__file__).resolve().parent.parent
TABLES, FIGURES = Path("results/tables"), Path("results/figures")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", type=Path, default=ROOT, help="a folder with configs/experiment/ and results/")
    os.chdir(parser.parse_args().root)  # so that no page names a path of this machine
    try:
        unpacked = add(Path("results")).faults
        every = [gather(experiment) for experiment in confirmed_experiments()]
        figures = draw_linked(every)
        TABLES.mkdir(exist_ok=True)
        for evidence in every:
            write_tables(evidence, figures)
        tables = [control_table(evidence) for evidence in every if evidence.all_runs()]
        rows = [row for table in tables if table for row in table.rows]
        write(TABLES / "controls.csv", to_csv(Table(rows)) if rows else "")
        fill_pages(every)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    except OSError as error:  # what cannot be read says so itself
        reason = f"{error.filename} cannot be written ({error.strerror})"
        raise SystemExit(f"error: {reason}: make room, and run it again") from error
    of_evidence = [problem for evidence in every for problem in [*evidence.problems, *evidence.tuning_faults()]]
    problems = [*map(str, unpacked), *of_evidence]
    if problems:  # all the rest is written; but a record that is not used, or not to be, must not go unnoticed
        sys.exit("".join(f"error: {problem}\n" for problem in problems).rstrip())


def write_tables(evidence: Evidence, figures: set[str]) -> None:
    """Write one experiment's page, and, where there are runs, its tables in full as CSV, but for the controls'."""
    any_runs, stem = bool(evidence.all_runs()), TABLES / evidence.name
    costs = reached_table(evidence) if any_runs and evidence.experiment.equal_loss else None
    write(stem.with_suffix(".md"), page(evidence, figures))
    write(stem.with_suffix(".csv"), to_csv(comparison_table(evidence)) if any_runs else "")
    write(TABLES / f"{evidence.name}_equal_loss.csv", to_csv(costs) if costs else "")
    print(stem.with_suffix(".md"))


def draw_linked(every: list[Evidence]) -> set[str]:
    """Draw the figures that pages show, remove all others, and return the names of those that are drawn."""
    FIGURES.mkdir(exist_ok=True)
    drawn = {name: draw for name, draw in drawings(every).items() if name in linked_figures()}
    for name, draw in drawn.items():
        save(draw(), FIGURES / f"{name}.svg")
    for file in FIGURES.iterdir():
        if file.stem not in drawn:  # a figure of runs that are gone would be a lie
            file.unlink()
    return set(drawn)


def write(path: Path, text: str) -> None:
    """Write the file, or remove what stood there of runs that are gone."""
    if text:
        atomic_write(path, text.encode())
    else:
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
