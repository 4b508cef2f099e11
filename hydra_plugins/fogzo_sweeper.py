"""Hydra sweeper that reads an experiment's grid: ``python train.py -m experiment=NAME`` runs all its cells.

Without an experiment it crosses the values that commas separate, as Hydra's basic sweeper does.  All jobs are checked
before the first starts, and it ends with a line for each.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from omegaconf import OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from fogzo.errors import UserError, one_line

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
Job = list[str]  # its overrides


class ExperimentSweeper(BasicSweeper):
    """Crosses what was given on the command line with the experiment's cells and seeds."""

    def sweep(self, arguments: list[str]) -> Any:
        try:
            jobs = self._jobs(arguments)
            names = names_of(jobs)
            finished = self._check(jobs, names)
            launched = iter(self._launch([job for number, job in enumerate(jobs) if number not in finished]))
            results = [finished[number] if number in finished else next(launched) for number in range(len(jobs))]
        except (ValueError, HydraException) as error:
            print(f"error: {error}", file=sys.stderr)  # one line, where Hydra would add its own
            sys.exit(1)
        print(table(names, results), flush=True)
        failures = [f"{name}: {one_line(result._return_value)}" for name, result in zip(names, results, strict=True)]
        failed = [text for text, result in zip(failures, results, strict=True) if result.status != JobStatus.COMPLETED]
        if failed:
            print(f"error: {len(failed)} of {len(jobs)} jobs failed", *failed, sep="\n  ", file=sys.stderr)
            sys.exit(1)
        return results

    def _jobs(self, arguments: list[str]) -> list[Job]:
        assert self.config is not None
        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        (jobs,) = self.split_arguments(parser.parse_overrides(arguments), None)
        return jobs

    def _check(self, jobs: list[Job], names: list[str]) -> dict[int, JobReturn]:
        """Refuse the whole sweep for a job that will not do, as far as that is known before data are read.

        Returns what became of those that are finished already, by number: to launch them would compose them twice.

        Raises:
            UserError: naming each such job and its reason.
        """
        from fogzo.training.launch import check  # torch loads here, not for --help
        from fogzo.training.overrides import explanation

        assert self.config is not None
        assert self.hydra_context is not None
        if str(self.config.hydra.launcher._target_).endswith("SlurmLauncher") and shutil.which("srun") is None:
            raise UserError(
                "hydra/launcher=slurm needs SLURM, whose command srun is not here: start the sweep where it is, or "
                "choose hydra/launcher=local"
            )
        refused: dict[str, list[str]] = {}
        of_hydra: dict[str, Job] = {}  # its sentences, whose advice is for other programs, and a job that each is about
        finished: dict[int, JobReturn] = {}
        notes: list[str] = []
        for number, (job, name) in enumerate(zip(jobs, names, strict=True)):
            try:
                cfg = self.hydra_context.config_loader.load_sweep_config(self.config, job)
                with open_dict(cfg):
                    del cfg["hydra"]
                if (result := check(cfg)) is not None:
                    finished[number] = JobReturn(overrides=job, status=JobStatus.COMPLETED)
                    finished[number].return_value, lacks = result
                    notes += lacks
            except (ValueError, HydraException, OmegaConfBaseException) as error:
                refused.setdefault(one_line(error), []).append(name)
                if isinstance(error, HydraException | OmegaConfBaseException):
                    of_hydra.setdefault(one_line(error), job)
        if refused:  # to explain takes a second, and Hydra's own state
            ours = {said: explanation(job, CONFIGS) or said for said, job in of_hydra.items()}
            reasons = (f"{', '.join(some)}: {ours.get(reason, reason)}" for reason, some in refused.items())
            count = sum(map(len, refused.values()))
            raise UserError(f"{count} of {len(jobs)} jobs will not do, and none was started; " + "; ".join(reasons))
        if notes:
            others = f", and {len(notes) - 1} others alike" if len(notes) > 1 else ""
            print(f"note:     {notes[0]}{others}")
        self._make_folder()
        return finished

    def _launch(self, jobs: list[Job]) -> Sequence[JobReturn]:
        """Return what became of each job; jobs keep their own errors.

        Raises:
            UserError: for the launcher's, such as a value of its own that it cannot work with.
        """
        assert self.launcher is not None
        assert self.config is not None
        if not jobs:
            return []
        try:
            return self.launcher.launch(jobs, initial_job_idx=0)
        except Exception as error:
            if os.environ.get("HYDRA_FULL_ERROR"):
                raise
            raise UserError(
                f"{type(self.launcher).__name__} cannot launch the jobs, or lost one ({type(error).__name__}: "
                f"{one_line(error)}): look at its hydra.launcher values, or at its log in {self.config.hydra.sweep.dir}"
            ) from error

    def _make_folder(self) -> None:
        assert self.config is not None
        folder = Path(self.config.hydra.sweep.dir)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{folder} cannot be written ({one_line(error)}): choose another place with results_dir=FOLDER"
            ) from error

    def split_arguments(  # type: ignore[override]  # the base class has it as a static method
        self, overrides: list[Override], max_batch_size: int | None
    ) -> list[list[Job]]:
        batches = BasicSweeper.split_arguments(overrides, None)
        assert self.config is not None
        jobs = [job for batch in batches for job in batch]
        if (given := self.config.get("experiment")) is not None:
            from fogzo.evidence.jobs import expand  # and numpy, not for --help
            from fogzo.evidence.parse import parse

            experiment = parse(OmegaConf.to_container(given))
            jobs = [cell + _without(job, cell) for job in jobs for cell in expand(experiment, self.config.phase, job)]
        return [jobs]


def _without(job: Job, cell: Job) -> Job:
    taken = {*(override.partition("=")[0] for override in cell), "setting"}  # which has chosen the cells already
    return [override for override in job if override.partition("=")[0] not in taken]


def names_of(jobs: Sequence[Job]) -> list[str]:
    """Return what tells each job from the others: its cell and seed, or the overrides that not all jobs have.

    >>> names_of([["model=mlp", "seed=0"], ["model=mlp", "seed=1"]])
    ['seed=0', 'seed=1']
    """
    shared = set.intersection(*map(set, jobs)) if len(jobs) > 1 else set()
    names = []
    for job in jobs:
        placed = [override for override in job if override.startswith(("cell=", "seed="))]
        telling = placed if len(placed) == 2 else [override for override in job if override not in shared]
        names.append(" ".join(telling) or "the job")
    return names


def table(names: Sequence[str], results: Sequence[JobReturn]) -> str:
    """Return a line for each job: what tells it from the others, and what it ended with, or is planned to take."""
    width = max(map(len, names))
    done = [result._return_value if result.status == JobStatus.COMPLETED else "failed" for result in results]
    planned = [value for value in done if isinstance(value, float)]
    which = "in all" if len(planned) == len(done) else "for what is not finished"
    in_all = f", planned {sum(planned):.3g} FLOPs {which}" if planned else ""
    texts = [f"{value:.3g} FLOPs" if isinstance(value, float) else value for value in done]
    lines = [f"  {name:{width}}  {text}" for name, text in zip(names, texts, strict=True) if text]
    return "\n".join([f"sweep:    {len(names)} jobs{in_all}", *lines])
