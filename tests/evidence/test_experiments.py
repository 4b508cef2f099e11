"""Every experiment file: its cells compose to runs, its tuning is fair, and what it names exists."""

import functools
import re
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from fogzo.evidence.jobs import expand
from fogzo.evidence.parse import parse, read_experiment
from fogzo.training.launch import plain_record, run_path

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
EXPERIMENTS = sorted(file.stem for file in (CONFIGS / "experiment").glob("*.yaml"))


@functools.cache
def composed(*overrides):
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("train", list(overrides))


@pytest.mark.parametrize("phase", ["tune", "confirm"])
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_setting_and_method_of_an_experiment_composes_to_a_run_of_its_own(name, phase, tmp_path):
    given = OmegaConf.to_container(composed(f"experiment={name}").experiment)
    given["tuning"]["chosen"] = str(tmp_path / "chosen.yaml")
    experiment = parse(given)
    cells = experiment.cells
    chosen = {}
    for cell in cells.values():
        borrowed = cells[cell.tuned_as].points()[0] if cell.tuned_as else {}
        tried = [{"values": point} for point in cell.points()[: experiment.tuning.trials]]
        borrowed = {key: value for key, value in borrowed.items() if key not in cell.search}
        chosen[cell.name] = {"values": tried[0]["values"], "tried": tried, "borrowed": borrowed}
    (tmp_path / "chosen.yaml").write_text(yaml.safe_dump(chosen))
    jobs = expand(experiment, phase, [])
    places = sum(len(cell.points()) for cell in cells.values()) if phase == "tune" else len(cells)
    assert len(jobs) == places * len(experiment.tuning.seeds if phase == "tune" else experiment.seeds)
    first_of_each_cell = {job[0]: job for job in reversed(jobs)}
    # composing takes 0.15 s: every setting once, and every method once, is enough, and of tuning one cell
    shown = {cell.setting.name: cell for cell in reversed(list(cells.values()))} | {
        cell.method.name: cell for cell in cells.values()
    }
    names = {f"cell={cell.name}" for cell in (shown.values() if phase == "confirm" else list(shown.values())[:1])}
    first_of_each_cell = {cell: job for cell, job in first_of_each_cell.items() if cell in names}
    paths = set()
    for job in first_of_each_cell.values():
        cfg = composed(f"experiment={name}", f"phase={phase}", *job)
        record = plain_record(cfg)
        assert (record["experiment"], f"cell={record['cell']}") == (name, job[0])
        assert (record["seed"] in experiment.tuning.seeds) == (phase == "tune")
        assert record["estimator"].get("samples", 1) == cells[record["cell"]].method.samples
        paths.add(run_path(cfg, record))
        assert run_path(cfg, record).parent.name == (f"{name}_tuning" if phase == "tune" else name)
    assert len(paths) == len(first_of_each_cell)
    # one tuned for itself may be given the values that another borrows, and be the same run under another name
    others = [path for path in paths if "_own-" not in path.name]
    assert len({path.name.rpartition("-")[2] for path in others}) == len(others)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_is_fair_and_has_its_published_numbers(name):
    file = CONFIGS / "experiment" / f"{name}.yaml"
    text = file.read_text(encoding="utf-8")
    experiment = read_experiment(file)
    assert (experiment.name, experiment.exploratory) == (name, name.endswith("_explore"))
    searched = [cell for cell in experiment.cells.values() if cell.search]  # not: what takes all from another cell
    trials = {min(experiment.tuning.trials, len(cell.points())) for cell in searched}
    assert trials == {experiment.tuning.trials}  # the same number for every cell
    assert experiment.tuning.chosen == f"results/tuned/{name}.yaml"
    for command in re.findall(r"^#   (python \S+.*?)(?:   .*)?$", text, re.MULTILINE):
        assert f"experiment={name}" in command
        assert (CONFIGS.parent / command.split()[1]).exists()
    if experiment.table is not None:
        paper = yaml.safe_load((CONFIGS.parent / f"results/paper/{experiment.table}.yaml").read_text("utf-8"))
        assert {"setting", "claim", "source"} <= paper.keys()
        rows = {row for setting in experiment.settings.values() for row in setting.paper}
        assert rows <= paper["rows"].keys()
        assert rows or not experiment.has_settings
        values = [value for row in paper["rows"].values() for value in (row, *row.values()) if isinstance(value, dict)]
        assert {value.get("direction", "better") for value in values} <= {"better", "worse"}
