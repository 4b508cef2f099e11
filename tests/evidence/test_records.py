"""Which record fills which cell, and which is stale; and the command that lists what is missing."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import yaml
from helpers.made_up import edit, sign

from fogzo.evidence.chosen import tuned_under, tuning_fault
from fogzo.evidence.jobs import expand
from fogzo.evidence.parse import parse
from fogzo.evidence.records import records_of
from fogzo.runs.folder import RunError
from fogzo.runs.identity import identity

ROOT = Path(__file__).resolve().parents[2]
LR = [0.01, 0.1]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An experiment of two cells and two seeds in an empty project, the working directory: its definition."""
    experiment = {
        "name": "example",
        "scale": "mini",
        "seeds": [1, 2],
        "overrides": ["steps=30"],
        "settings": {"mlp": {"label": "MLP", "overrides": ["model=mlp"]}},
        "methods": {
            "ste": {"label": "STE", "overrides": ["estimator=ste"]},
            "fogzo": {"label": "FOGZO", "overrides": ["estimator=fogzo", "estimator.epsilon=1e-1"]},
        },
        "tuning": {"seed": 0, "trials": 8, "search": {"optimizer.lr": LR}, "chosen": "chosen.yaml"},
    }
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "configs/experiment/example.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(yaml.safe_dump({"experiment": experiment}))
    tune()
    return experiment


def tune(**values):
    tried = [{"values": {"optimizer.lr": lr}, "train_loss": lr} for lr in LR]
    entries = {cell: {"values": {"optimizer.lr": 0.1}, "tried": tried} for cell in ("mlp.ste", "mlp.fogzo")}
    Path("chosen.yaml").write_text(yaml.safe_dump(entries | values))


def record(method, seed, finished=True, status="finished", folder=None, changes=()):
    estimator = {"name": method} | ({"epsilon": 0.1} if method == "fogzo" else {})
    config = {
        "seed": seed, "cell": f"mlp.{method}", "experiment": "example", "phase": "confirm", "scale": "mini",
        "steps": 30, "model": {"name": "mlp"}, "optimizer": {"lr": 0.1}, "estimator": estimator,
    } | dict(changes)  # fmt: skip
    path = Path("results/runs/example") / (folder or f"mlp.{method}-seed{seed}-{identity(config)}")
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    if finished:
        costs = {"flops": 1e9, "forward_equivalents": 90, "seconds": 1.5, "forwards": 30, "backwards": 30}
        row = {"step": 30, "loss": 0.5, "examples": 600, "train_loss": 0.5, **costs}
        (path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
        same = {key: config[key] for key in ("seed", "cell", "experiment", "phase", "scale", "steps")}
        (path / "summary.json").write_text(json.dumps(same | {"status": status, "train_loss": 0.5, **costs}))
        sign(path)
    return path


def test_records_are_sorted_into_cells(project):
    paths = [record("ste", 1), record("ste", 2, status="diverged"), record("fogzo", 1)]
    begun = record("fogzo", 2, finished=False)
    records = records_of(parse(project), Path("results"))
    assert {cell: {seed: run.path for seed, run in runs.items()} for cell, runs in records.runs.items()} == {
        "mlp.ste": {1: paths[0], 2: paths[1]},
        "mlp.fogzo": {1: paths[2]},
    }
    assert records.unfinished == {"mlp.ste": {}, "mlp.fogzo": {2: begun}}
    assert records.stale == {}


STALE = {
    "steps": ({"steps": 20}, "not run with steps=30"),
    "model": ({"model": {"name": "deit_mini"}}, "model=mlp"),
    "scale": ({"scale": "paper"}, "scale=mini"),
    "epsilon": ({"estimator": {"name": "fogzo", "epsilon": 1.0}}, "estimator.epsilon=1e-1"),
    "tuned value": ({"optimizer": {"lr": 0.01}}, "optimizer.lr=0.1"),
    "cell": ({"cell": "mlp.sted"}, "no cell mlp.sted"),
    "seed": ({"seed": 9}, "seed 9 is not among"),
    "phase": ({"phase": "tune"}, "phase tune"),
    "hash": ({}, "changed by hand"),
}


@pytest.mark.parametrize("kind", STALE)
@pytest.mark.parametrize("finished", [True, False])
def test_a_stale_record_is_named_and_not_used(kind, finished, project):
    changes, reason = STALE[kind]
    folder = "mlp.fogzo-seed1-0123abcd" if kind == "hash" else None
    path = record("fogzo", 1, finished=finished, folder=folder, changes=changes)
    records = records_of(parse(project), Path("results"))
    assert not any(records.runs.values())
    assert not any(records.unfinished.values())
    assert list(records.stale) == [path]
    assert reason in records.stale[path]


def test_a_summary_of_another_run_is_stale(project):
    path = record("ste", 1)
    (path / "summary.json").write_text(json.dumps({"seed": 2, "cell": "mlp.ste", "status": "finished"}))
    assert "another cell or seed" in records_of(parse(project), Path("results")).stale[path]


def test_a_record_whose_config_is_not_that_of_its_siblings_is_stale(project):
    paths = [record("ste", seed) for seed in (1, 2, 3)]
    odd = record("ste", 4, changes=[("clip_norm", 1.0)])
    found = records_of(parse(project | {"seeds": [1, 2, 3, 4]}), Path("results"))
    assert [run.path for run in found.runs["mlp.ste"].values()] == paths
    assert "not that of the cell's other seeds (clip_norm: None → 1.0)" in found.stale[odd]


def test_a_damaged_config_of_a_begun_run_is_named_and_the_rest_read(project):
    path = record("ste", 1)
    begun = record("ste", 2, finished=False)
    (begun / "config.yaml").write_text("a: [")
    problems = {}
    assert records_of(parse(project), Path("results"), problems).runs["mlp.ste"][1].path == path
    assert list(problems) == [begun]
    assert "cannot be read" in problems[begun]


def test_a_record_that_was_changed_by_hand_is_refused_or_named(project):
    path = record("ste", 1)
    edit(path, mean_agreement=55)
    with pytest.raises(RunError, match=r"changed by hand.*remove the folder"):
        records_of(parse(project), Path("results"))
    problems = {}
    assert not any(records_of(parse(project), Path("results"), problems).runs.values())
    assert list(problems) == [path]


def test_two_records_for_one_cell_are_refused_by_name(project):
    first, second = record("ste", 1), record("ste", 1, changes={"batch_size": 7})
    with pytest.raises(RunError, match=r"both claim cell mlp\.ste, seed 1") as caught:
        records_of(parse(project), Path("results"))
    assert str(first) in str(caught.value)
    assert str(second) in str(caught.value)


def test_tuning_that_is_not_what_the_experiment_asks_for_is_named(project):
    experiment = parse(project)
    cell = experiment.cells["mlp.ste"]
    assert tuning_fault(experiment, cell) is None
    good = yaml.safe_load(Path("chosen.yaml").read_text())["mlp.ste"]
    for entry, fault in [
        (good | {"tried": good["tried"][:1]}, "tuned with 1 trials instead of 2"),
        ({"values": good["values"]}, "tuned without a list of what was tried"),
        (good | {"given": ["steps=5"]}, "tuned with steps=5"),
        (good | {"values": {"optimizer.lr": 9}}, "tuned to optimizer.lr=9, which is none of what was tried"),
        (good | {"borrowed": {"a.b": 1}}, "tuned with a.b=1 from another cell, where the experiment now has nothing"),
        (good | {"tried": [{"values": {"optimizer.lr": lr}} for lr in (0.1, 3)]}, "other values of optimizer.lr"),
        (
            good | {"overrides": [word.replace("steps=30", "steps=20") for word in tuned_under(experiment, cell)]},
            "tuned with steps=20, where the experiment now has steps=30",
        ),
        (
            good | {"overrides": [*tuned_under(experiment, cell), "threads=9"]},
            "threads=9, where the experiment now has no",
        ),
    ]:
        tune(**{"mlp.ste": entry})
        assert fault in tuning_fault(experiment, cell)
    with pytest.raises(ValueError, match=r"were tuned with threads=9.*first run `python scripts/tune\.py"):
        expand(experiment, "confirm", ["cell=mlp.ste"])
    Path("chosen.yaml").unlink()
    assert tuning_fault(experiment, cell) == "untuned"


@pytest.fixture
def missing(project, monkeypatch, capsys):
    """Runs the command in the project: its exit code and what it printed."""
    script = ROOT / "scripts" / "missing_runs.py"

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["missing_runs.py", *words])
        monkeypatch.setattr("os.chdir", lambda folder: None)  # stay here
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(script), run_name="__main__")
        return stop.value.code, capsys.readouterr().out

    return run


def test_every_gap_is_listed_with_its_command(project, missing):
    record("ste", 1)
    record("fogzo", 1, finished=False)
    old = record("ste", 2, changes={"steps": 20})
    tune(**{"mlp.fogzo": {"values": {"optimizer.lr": 0.1}, "tried": []}})
    code, out = missing("experiment=example")
    assert code == 1
    lines = [line.strip() for line in out.splitlines()]
    assert lines[0] == "example: 1 of 4 runs"
    train = "python train.py -m experiment=example cell=mlp."
    assert lines[lines.index(f"stale: {old} (it was not run with steps=30, as the experiment now says)") + 1] == (
        f"rm -r {old}"
    )
    assert lines[lines.index("mlp.ste: seed 2 missing") + 1] == f"{train}ste seed=2"
    assert lines[lines.index("mlp.fogzo: seed 1 unfinished") + 1] == f"{train}fogzo seed=1"
    assert lines[lines.index("mlp.fogzo: seed 2 missing") + 1] == f"{train}fogzo seed=2"
    assert lines[lines.index("mlp.fogzo: tuned with 0 trials instead of 2") + 1] == (
        "python scripts/tune.py experiment=example cell=mlp.fogzo"
    )


def test_nothing_is_left_when_all_are_there_though_one_diverged(project, missing):
    for method in ("ste", "fogzo"):
        for seed in (1, 2):
            record(method, seed, status="diverged" if (method, seed) == ("ste", 1) else "finished")
    code, out = missing()
    assert (code, out.splitlines()) == (0, ["example: 4 of 4 runs", "  mlp.ste: seed 1 diverged, which is a result"])


def test_records_that_are_damaged_or_were_edited_have_the_command_that_makes_them_again(project, missing):
    paths = {(method, seed): record(method, seed) for method in ("ste", "fogzo") for seed in (1, 2)}
    edit(paths["ste", 1], train_loss=0.01)
    cut = paths["fogzo", 2] / "summary.json"
    cut.write_text(cut.read_text()[:40])
    foreign = record("fogzo", 2, folder="copy of fogzo; rm")
    (foreign / "config.yaml").write_text("a: [")
    lost = paths["fogzo", 1]
    for name in ("config.yaml", "summary.json"):
        (lost / name).unlink()
    barely = lost.with_name("mlp.fogzo-seed1-0123abcd")  # begun, and killed before there was a config
    barely.mkdir()
    (barely / ".lock").touch()
    code, out = missing("experiment=example")
    lines = [line.strip() for line in out.splitlines()]
    assert (code, lines[0]) == (1, "example: 1 of 4 runs")
    train = "python train.py -m experiment=example cell=mlp."
    for start, command in [
        (f"the record in {foreign} cannot be read", f"rm -r '{foreign}'"),
        (f"{lost} holds files of a run but no config.yaml: remove the", f"rm -r {lost} && {train}fogzo seed=1"),
        (f"the record in {paths['fogzo', 2]} cannot be read", f"rm -r {paths['fogzo', 2]} && {train}fogzo seed=2"),
        (f"{paths['ste', 1]}: train_loss is 0.01 in its", f"rm -r {paths['ste', 1]} && {train}ste seed=1"),
    ]:
        (at,) = [at for at, line in enumerate(lines) if line.startswith(start)]
        assert lines[at + 1] == command
    assert len(lines) == 9  # and none of them a second time as missing


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("chosen.yaml", "<<<<<<< HEAD\na: 1\n=======\n", "chosen.yaml cannot be read"),
        (
            "chosen.yaml",
            "mlp.ste: {tried: []}\n",
            "chosen.yaml: the entry of mlp.ste has no values: remove it and tune",
        ),
        ("configs/experiment/example.yaml", "experiment: [", "configs/experiment/example.yaml cannot be read"),
        ("configs/experiment/example.yaml", "", "example.yaml: experiment: it is None, but it must be keys"),
        (
            "configs/experiment/example.yaml",
            "experiment: {name: a, methods: {ste: }}",
            "a: it has no seeds: give it one",
        ),
        ("configs/experiment/example.yaml", None, "setting mlp: methods='sted' is not known: choose one of"),
    ],
)
def test_a_damaged_or_mistaken_file_is_refused_in_a_sentence(file, text, message, project, missing):
    project["settings"]["mlp"]["methods"] = ["sted"]
    Path(file).write_text(yaml.safe_dump({"experiment": project}) if text is None else text)
    code, out = missing()
    assert message in code
    assert (code.startswith("error: "), code.count("\n"), out) == (True, 0, "")


def test_an_experiment_of_which_nothing_was_run_is_one_line(project, missing):
    Path("chosen.yaml").unlink()
    code, out = missing("experiment=example")
    assert code == 1
    assert out.splitlines()[2].strip() == (
        "python scripts/tune.py experiment=example && python train.py -m experiment=example"
    )
    assert missing("experiment=unheard_of")[0].startswith("error: experiment=unheard_of is not known")
