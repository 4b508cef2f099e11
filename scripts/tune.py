"""Tune every cell of an experiment over the same grid, on its tuning seed:

    python scripts/tune.py experiment=NAME [KEY=VALUE ...]

Runs the grid (runs that are done are skipped), takes the value with the lowest tuning metric for each cell, and writes
them, with all that was tried, to the experiment's data file.  Says so where the best value lies on the grid's edge.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize
from omegaconf import OmegaConf

from fogzo.files import atomic_write
from fogzo.results import load_runs


def main() -> None:
    root = Path(__file__).resolve().parent.parent
    os.chdir(root)  # as train.py: results_dir and the file of chosen values are relative to the project
    overrides = sys.argv[1:]
    with initialize(version_base="1.3", config_path="../configs"):
        config: Any = OmegaConf.to_container(
            compose("train", [o for o in overrides if not o.startswith(("hydra/", "hydra."))])
        )
    if not config.get("experiment"):
        sys.exit("error: say what to tune, such as `python scripts/tune.py experiment=mlp_compute`")
    experiment = config["experiment"]
    subprocess.run([sys.executable, "train.py", "-m", "phase=tune", *overrides], check=True)
    tuning = experiment["tuning"]
    chosen = choose(experiment, Path(config["results_dir"]))
    text = (
        f"# Written by `python scripts/tune.py experiment={experiment['name']}`: the values of each cell with the\n"
        f"# lowest {tuning['metric']} on seed {tuning['seed']}, and all that was tried.\n"
        + yaml.safe_dump(chosen, sort_keys=False, allow_unicode=True)
    )
    path = Path(tuning["chosen"])
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, text.encode())
    print(f"written: {path}")


def choose(experiment: dict[str, Any], results_dir: Path) -> dict[str, Any]:
    """For each cell the point of the grid with the lowest metric; diverged runs count as infinite."""
    tuning = experiment["tuning"]
    runs = load_runs(results_dir / "runs" / f"{experiment['name']}_tuning")
    chosen: dict[str, Any] = {}
    for cell in experiment["cells"]:
        tried: list[tuple[float, dict[str, Any]]] = []
        for run in runs:
            if run.summary["cell"] == cell:
                metric = run.summary.get(tuning["metric"])
                values = {key: _value(run.config, key) for key in tuning["search"]}
                tried.append((math.inf if metric is None else metric, values))
        expected = math.prod(len(values) for values in tuning["search"].values())
        if len(tried) != expected:
            sys.exit(
                f"error: {cell} has {len(tried)} tuning runs, expected {expected}: remove stale folders, run again"
            )
        _, best = min(tried, key=lambda point: point[0])
        edges = [
            key for key, value in best.items() if value in (min(tuning["search"][key]), max(tuning["search"][key]))
        ]
        tried.sort(key=lambda point: list(point[1].values()))
        record = [{"values": values, tuning["metric"]: metric} for metric, values in tried]
        # copies: YAML would show a shared dict as an anchor
        chosen[cell] = {"values": dict(best), "on_edge_of_grid": edges, "tried": record}
        print(f"{cell}: {best}" + (f"  (on the edge of the grid: {', '.join(edges)})" if edges else ""))
    return chosen


def _value(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = config[part]
    return config


if __name__ == "__main__":
    main()
