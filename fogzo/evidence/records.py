"""Which record fills which cell of an experiment, and which no longer does: nothing stale is used in silence.

A record is stale when its config is not the one that its folder is named after, or when the experiment's file, or the
file of tuned values, has changed since; one that is damaged, or was changed by hand, is a problem.  No torch here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from fogzo.evidence.chosen import read_chosen, tune_command, tuned_values, tuning_faults
from fogzo.evidence.experiment import Cell, Experiment, key_of
from fogzo.runs.folder import FIRST_FILES, RunError, one_line, parse_config
from fogzo.runs.identity import differences, identity
from fogzo.runs.records import Run, fault, load_runs


@dataclass(frozen=True)
class Records:
    """The records of one experiment.

    Attributes:
        runs: what fills each cell, by seed; finished or diverged.
        unfinished: runs that have begun and are not over, by cell and seed.
        stale: records that are not to be used, and why.
    """

    runs: Mapping[str, Mapping[int, Run]]
    unfinished: Mapping[str, Mapping[int, Path]]
    stale: Mapping[Path, str]


def records_of(experiment: Experiment, results_dir: Path, problems: dict[Path, str] | None = None) -> Records:
    """Every record below ``results_dir/runs/NAME``, sorted into cells.

    Args:
        problems: if given, what is wrong with a record that cannot be read or believed (``fogzo.runs.records.fault``)
            is added to it, a sentence by folder, and the record left out.

    Raises:
        RunError: if a record cannot be read or believed, and ``problems`` is not given; or two records that are not
            stale claim one cell and seed.
    """
    cells, folder = experiment.cells, results_dir / "runs" / experiment.name
    values = {name: known_values(experiment, cell) for name, cell in cells.items()}
    runs: dict[str, dict[int, Run]] = {name: {} for name in cells}
    unfinished: dict[str, dict[int, Path]] = {name: {} for name in cells}
    stale = {}
    for run in [*load_runs(folder, problems), *_begun(folder, problems)]:
        reason = staleness(run, experiment, values)
        if reason is not None:
            stale[run.path] = reason
            continue
        cell, seed = run.config["cell"], run.config["seed"]
        if not run.summary:
            unfinished[cell][seed] = run.path
            continue
        if (reason := fault(run)) is not None:
            if problems is None:
                raise RunError(reason)
            problems[run.path] = reason
            continue
        if seed in runs[cell]:
            other = runs[cell][seed].path
            raise RunError(f"{run.path} and {other} both claim cell {cell}, seed {seed}: remove the one that is wrong")
        runs[cell][seed] = run
    for those in runs.values():
        for seed, reason in _strangers(those).items():
            stale[those.pop(seed).path] = reason
    return Records(runs, unfinished, stale)


def _strangers(runs: Mapping[int, Run]) -> dict[int, str]:
    """Of one cell's runs, by seed, those whose config differs from that of most of them in more than the seed."""
    configs = {seed: {key: value for key, value in run.config.items() if key != "seed"} for seed, run in runs.items()}
    names = {seed: identity(config) for seed, config in configs.items()}
    usual, _ = Counter(names.values()).most_common(1)[0] if names else ("", 0)
    pattern = next((configs[seed] for seed, name in names.items() if name == usual), {})
    return {
        seed: f"its config is not that of the cell's other seeds ({'; '.join(differences(pattern, configs[seed])[:3])})"
        for seed, name in names.items()
        if name != usual
    }


def staleness(run: Run, experiment: Experiment, values: Mapping[str, Mapping[str, Any] | None]) -> str | None:
    """Why ``run`` may not stand for the cell that it names; ``None``: it may.

    Args:
        values: ``known_values`` of each cell.
    """
    config, name = run.config, run.path.name
    cell, seed = str(config.get("cell")), config.get("seed")
    if name.rpartition("-")[2] != identity(config):
        return f"its config gives the hash {identity(config)}, not the one in its name: it was changed by hand"
    if run.summary and (str(run.summary.get("cell")), run.summary.get("seed")) != (cell, seed):
        return "its summary names another cell or seed than its config"
    if config.get("experiment") != experiment.name or config.get("phase") != "confirm":
        return f"it is of experiment {config.get('experiment')}, phase {config.get('phase')}"
    if cell not in experiment.cells:
        return f"the experiment has no cell {cell}"
    if seed not in experiment.seeds:
        return f"seed {seed} is not among the experiment's"
    wrong = [override for override in experiment.cells[cell].overrides if not _holds(config, override)]
    tuned = values[cell]
    if tuned is None:
        return "its cell has no tuned values"
    wrong += [f"{key}={value}" for key, value in tuned.items() if _found(config, key) != value]
    return f"it was not run with {', '.join(wrong)}, as the experiment now says" if wrong else None


def known_values(experiment: Experiment, cell: Cell) -> dict[str, Any] | None:
    """The tuned values of a cell; ``None`` if it was not tuned yet."""
    read_chosen(experiment)  # where that file is damaged, no cell counts as untuned
    try:
        return tuned_values(experiment, cell)
    except ValueError:
        return None


def gaps_of(
    experiment: Experiment, cell: Cell, missing: Sequence[int], begun: Sequence[int] = ()
) -> list[tuple[str, str]]:
    """What a cell lacks, each with the command that fills it: tuning first, without which its runs are refused.

    Args:
        missing: the seeds that were not run, or are not over.
        begun: those among them whose runs have begun.
    """
    name, found = experiment.name, []
    if faults := tuning_faults(experiment, cell):
        found.append(("; ".join(f"{of}: {fault}" for of, fault in faults.items()), tune_command(name, cell)))
    for what, seeds in (
        ("unfinished", [seed for seed in missing if seed in begun]),
        ("missing", [seed for seed in missing if seed not in begun]),
    ):
        if seeds:
            numbers = ",".join(map(str, seeds))
            command = f"python train.py -m experiment={name} cell={cell.name} seed={numbers}"
            found.append((f"{cell.name}: seed {numbers} {what}", command))
    return found


def _begun(folder: Path, problems: dict[Path, str] | None) -> Iterable[Run]:
    """The runs that are not over; of a folder that a run would refuse, what is wrong goes to ``problems``."""
    for path in sorted(path for path in folder.glob("*") if path.is_dir()):
        if (path / "summary.json").exists():
            continue
        try:
            if (config := _config_of(path)) is not None:
                yield Run(path, config, {})
        except RunError as error:
            if problems is None:
                raise
            problems[path] = str(error)


def _config_of(path: Path) -> Mapping[str, Any] | None:
    """The config of a run that has begun; ``None`` where a run was stopped before it wrote that."""
    file = path / "config.yaml"
    if not file.exists():
        if all(other.name in FIRST_FILES for other in path.iterdir()):
            return None
        raise RunError(f"{path} holds files of a run but no config.yaml: remove the folder and run it again")
    try:
        config = parse_config(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RunError(f"{file} cannot be read ({one_line(error)}): remove its folder") from error
    return config if isinstance(config, Mapping) else {}


def _holds(config: Mapping[str, Any], override: str) -> bool:
    value = _found(config, key_of(override))
    text = override.partition("=")[2]
    # a group's choice is recorded as its name
    return bool(value.get("name") == text if isinstance(value, Mapping) else value == _parsed(text))


def _found(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = config.get(part) if isinstance(config, Mapping) else None
    return config


@cache
def _parsed(text: str) -> Any:
    value = yaml.safe_load(text)
    try:
        return float(value) if isinstance(value, str) else value  # 1e-3: a number to Hydra, a word to YAML 1.1
    except ValueError:
        return value
