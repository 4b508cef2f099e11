"""Rebuild every table and figure from the records in results/:  python scripts/make_tables.py

Reads run folders and configs/experiment/*.yaml, trains nothing, needs no torch.  The same records give the
same bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from fogzo.figures import loss_against_cost
from fogzo.results import by_cell, load_runs
from fogzo.runs import RunError
from fogzo.tables import compute_table, equal_loss_table, footer, write_csv, write_markdown

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    for file in sorted((ROOT / "configs" / "experiment").glob("*.yaml")):
        experiment = yaml.safe_load(file.read_text(encoding="utf-8"))["experiment"]
        try:
            render(experiment, ROOT / "results")
        except RunError as error:
            raise SystemExit(f"error: {error}") from error


def render(experiment: dict[str, Any], results: Path) -> None:
    """Write the experiment's table (Markdown, CSV) and figure (SVG, PNG) below ``results``."""
    name = experiment["name"]
    runs = load_runs(results / "runs" / name)
    cells = by_cell(runs, experiment["cells"], experiment["seeds"])
    tuned_file = ROOT / experiment["tuning"]["chosen"]
    tuned = yaml.safe_load(tuned_file.read_text(encoding="utf-8")) if tuned_file.exists() else {}
    paper = yaml.safe_load((results / "paper" / f"{experiment['table']}.yaml").read_text(encoding="utf-8"))
    table = compute_table(experiment, cells, tuned, paper)
    equal_loss = equal_loss_table(experiment, cells)
    (results / "tables").mkdir(exist_ok=True)
    (results / "figures").mkdir(exist_ok=True)
    write_csv(results / "tables" / f"{name}.csv", table)
    write_markdown(results / "tables" / f"{name}.md", experiment, paper, table, equal_loss, footer(cells))
    print(results / "tables" / f"{name}.md")
    if any(cells.values()):
        print(loss_against_cost(results / "figures" / name, experiment, cells))


if __name__ == "__main__":
    main()
