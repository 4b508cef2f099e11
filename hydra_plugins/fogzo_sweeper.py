"""Hydra sweeper that reads an experiment's grid: ``python train.py -m experiment=NAME`` runs all its cells.

Without an experiment it is Hydra's basic sweeper.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from fogzo.evidence.jobs import expand
from fogzo.evidence.parse import parse


class ExperimentSweeper(BasicSweeper):
    """Crosses what was given on the command line with the experiment's cells and seeds."""

    def sweep(self, arguments: list[str]) -> Any:
        assert self.config is not None
        folder = Path(self.config.hydra.sweep.dir)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return super().sweep(arguments)
        except OSError as error:
            reason = error.strerror or error
            message = f"{folder} cannot be written ({reason}): choose another place with results_dir=FOLDER"
        except ValueError as error:
            message = str(error)
        print(f"error: {message}", file=sys.stderr)  # one line, where Hydra would add its own
        sys.exit(1)

    def split_arguments(  # type: ignore[override]  # the base class has it as a static method
        self, overrides: list[Override], max_batch_size: int | None
    ) -> list[list[list[str]]]:
        batches = BasicSweeper.split_arguments(overrides, None)
        assert self.config is not None
        jobs = [job for batch in batches for job in batch]
        if (given := self.config.get("experiment")) is not None:
            experiment = parse(OmegaConf.to_container(given))
            jobs = [cell + _without(job, cell) for job in jobs for cell in expand(experiment, self.config.phase, job)]
        return list(self.split_overrides_to_chunks(jobs, max_batch_size))


def _without(job: list[str], cell: list[str]) -> list[str]:
    taken = {*(override.partition("=")[0] for override in cell), "setting"}  # which has chosen the cells already
    return [override for override in job if override.partition("=")[0] not in taken]
