"""Search the learning rate, and β_min where there is one, of all cells of an experiment, each with as many trials:

    python scripts/tune.py experiment=NAME [--jobs N] [--trials N] [cell=NAME | setting=NAME] [KEY=VALUE ...]

What is searched stands in the experiment's file.  Trials are runs on the tuning seed, which the table's seeds exclude;
finished ones are never run again, and after a kill the same command goes on.  When a cell is done, its best values and
all that was tried go into the experiment's data file, from which `python train.py -m experiment=NAME` reads them, or
into experiment.tuning.chosen=FILE: what changes the trials, such as steps=5, asks for a file of its own.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf

from fogzo.errors import UserError
from fogzo.evidence.experiment import Experiment, key_of
from fogzo.evidence.parse import CONFIGS, parse
from fogzo.evidence.tuning import tune


def main() -> None:
    os.chdir(CONFIGS.parent)  # as train.py: paths of the config are relative to the project
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="worker processes (default: all cores)")
    parser.add_argument("--trials", type=int, help="trials of each cell (default: the experiment's)")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="experiment=NAME, and any of train.py's")
    arguments = parser.parse_intermixed_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        experiment, results = compose_experiment(arguments.overrides)
        tune(experiment, results, arguments.overrides, jobs=arguments.jobs, trials=arguments.trials)
    except (ValueError, RuntimeError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on from there")


def compose_experiment(given: Sequence[str]) -> tuple[Experiment, Path]:
    """Return the experiment that the command names, and where its results go."""
    if launching := [override for override in given if override.startswith(("hydra/", "hydra."))]:
        raise UserError(f"{launching[0]} is for sweeps: tuning has worker processes of its own, give --jobs N")
    known = [override for override in given if key_of(override) not in ("cell", "setting")]
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            config: Any = OmegaConf.to_container(compose("train", known))
    except HydraException as error:
        raise UserError(" ".join(str(error).split())) from None
    if not config.get("experiment"):
        raise UserError("say what to tune, such as `python scripts/tune.py experiment=mlp_compute`")
    return parse(config["experiment"]), Path(config["results_dir"])


if __name__ == "__main__":
    main()
