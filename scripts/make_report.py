"""Build the report, every figure and the tables for LaTeX from the records in results/:  python scripts/make_report.py

What is made lies in site/, which git ignores: report.html, one file that needs nothing else; figures/*.svg and *.png;
tables/*.tex.  Trains nothing, needs no torch.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from fogzo.evidence.figures import drawings
from fogzo.evidence.figures.style import save
from fogzo.evidence.frame import gather
from fogzo.evidence.pages import footer
from fogzo.evidence.parse import confirmed_experiments
from fogzo.evidence.render import latex
from fogzo.evidence.report import report
from fogzo.evidence.tables.comparison import comparison_table, control_table
from fogzo.runs.files import atomic_write

ROOT = Path(__file__).resolve().parent.parent
SITE = Path("site")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", type=Path, default=ROOT, help="a folder with configs/experiment/ and results/")
    os.chdir(parser.parse_args().root)  # so that no page names a path of this machine
    try:
        for folder in ("figures", "tables"):
            (SITE / folder).mkdir(parents=True, exist_ok=True)
        every = [gather(experiment) for experiment in confirmed_experiments()]
        for name, draw in drawings(every).items():
            save(draw(), *(SITE / "figures" / f"{name}.{ending}" for ending in ("svg", "png")))
        for evidence in every:
            source = f"% {footer(evidence)}\n"
            tables = {evidence.name: comparison_table(evidence), f"{evidence.name}_controls": control_table(evidence)}
            for name, table in tables.items():
                if table and evidence.all_runs():
                    atomic_write(SITE / "tables" / f"{name}.tex", (latex(table) + source).encode())
        atomic_write(SITE / "report.html", report(every).encode())
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    except OSError as error:  # what cannot be read says so itself
        reason = f"{error.filename} cannot be written ({error.strerror})"
        raise SystemExit(f"error: {reason}: make room, and run it again") from error
    print(SITE / "report.html")


if __name__ == "__main__":
    main()
