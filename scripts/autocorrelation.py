"""How well a logged diagnostic is predicted by its value a row before:  python scripts/autocorrelation.py [COLUMN]

Prints, for every method and setting that logs COLUMN (default: agreement), its mean, its standard deviation and its
autocorrelation from row to row, after a straight line is taken out of each run; means over seeds.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fogzo.evidence.frame import gather
from fogzo.evidence.parse import confirmed_experiments

FEWEST_ROWS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("column", nargs="?", default="agreement", metavar="COLUMN", help="of metrics.jsonl")
    column = parser.parse_args().column
    os.chdir(Path(__file__).resolve().parent.parent)
    print(f"{'cell':44s} {'seeds':>5s} {'mean':>7s} {'std':>6s} {'lag 1':>6s}   of {column}")
    for evidence in map(gather, confirmed_experiments()):
        for cell in evidence.cells.values():
            logged = [[row.get(column) for row in run.metrics()] for run in evidence.finished(cell)]
            series = [[value for value in values if value is not None] for values in logged]
            series = [values for values in series if len(values) >= FEWEST_ROWS]
            if series:
                mean, std, lag = np.mean([moments(values) for values in series], axis=0)
                name = f"{evidence.name} {cell.name}"
                print(f"{name:44s} {len(series):5d} {mean:7.2f} {std:6.2f} {lag:6.2f}")


def moments(values: Sequence[float]) -> tuple[float, float, float]:
    """Return mean, standard deviation and lag-1 autocorrelation, the last without the series' straight line.

    >>> [round(value, 2) for value in moments([1.0, 2.0, 1.0, 2.0, 1.0, 2.0, 1.0, 2.0])]
    [1.5, 0.5, -1.0]
    """
    places = np.arange(len(values))
    left = np.asarray(values) - np.polyval(np.polyfit(places, values, 1), places)
    variance = left.var()
    lag = float((left[1:] * left[:-1]).mean() / variance) if variance > 0 else 0.0
    return float(np.mean(values)), float(np.std(values)), lag


if __name__ == "__main__":
    main()
