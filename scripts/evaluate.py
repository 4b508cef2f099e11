"""Evaluate a finished run again, on its own test set or another:

python scripts/evaluate.py RUN_FOLDER                               the summary's numbers, to the last bit
python scripts/evaluate.py RUN_FOLDER --data fashion_mnist          on other data that the network can take
python scripts/evaluate.py RUN_FOLDER --data c4 data.root=/big evaluation_tokens=1000000
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fogzo.runs.folder import RunFolder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN_FOLDER", help="of a finished run, with its model.pt")
    parser.add_argument("--data", metavar="NAME", help="a choice of configs/data (default: the run's own)")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="in place of the run's own values")
    options = parser.parse_args()
    try:
        evaluate(options.run, [f"data={options.data}"] * bool(options.data) + options.overrides)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None


def evaluate(run: Path, overrides: list[str]) -> None:
    """Print the metrics, and whether they are those of the run's summary."""
    from fogzo.training.reload import evaluate_run

    metrics = evaluate_run(run, overrides)
    for name, value in metrics.items():
        print(f"{name}: {value!r}")
    if overrides:
        return
    summary = RunFolder.view(run, {}).summary() or {}
    other = [f"{name} {summary.get(name)!r}" for name, value in metrics.items() if summary.get(name) != value]
    print(f"the run's summary says otherwise: {', '.join(other)}" if other else "the run's summary says the same")


if __name__ == "__main__":
    main()
