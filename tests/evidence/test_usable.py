"""Which record fills which cell, and which is stale; and the command that lists what is missing."""

import runpy
import sys
from pathlib import Path

import pytest
import yaml
from helpers.made_up import signed

from fogzo.evidence.chosen import tuned_under, tuning_fault
from fogzo.evidence.frame import gather
from fogzo.evidence.jobs import expand
from fogzo.evidence.parse import parse
from fogzo.runs.files import atomic_write
from fogzo.runs.records import read_records

ROOT = Path(__file__).resolve().parents[2]
RECORDS = Path("results/records/example.jsonl")
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


def record(method, seed, status="finished", changes=()):
    """Put a run's line at the end of the records; returns where it stands."""
    estimator = {"name": method} | ({"epsilon": 0.1} if method == "fogzo" else {})
    config = {
        "seed": seed, "cell": f"mlp.{method}", "experiment": "example", "phase": "confirm", "scale": "mini",
        "steps": 30, "model": {"name": "mlp"}, "optimizer": {"lr": 0.1}, "estimator": estimator,
    } | dict(changes)  # fmt: skip
    costs = {"flops": 1e9, "forward_equivalents": 90, "seconds": 1.5, "forwards": 30, "backwards": 30}
    row = {"step": 30, "loss": 0.5, "examples": 600, "train_loss": 0.5, **costs}
    same = {key: config[key] for key in ("seed", "cell", "experiment", "phase", "scale", "steps")}
    line = signed(config, same | {"status": status, "train_loss": 0.5, **costs}, [row])
    RECORDS.parent.mkdir(parents=True, exist_ok=True)
    before = RECORDS.read_text() if RECORDS.exists() else ""
    atomic_write(RECORDS, f"{before}{line}\n".encode())
    return f"{RECORDS}, line {before.count(chr(10)) + 1}"


def reasons(records):
    return {fault.where: fault.reason for fault in records.faults}


def test_records_are_sorted_into_cells(project):
    places = [record("ste", 1), record("ste", 2, status="diverged"), record("fogzo", 1)]
    records = gather(parse(project))
    assert {cell: {seed: run.where for seed, run in runs.items()} for cell, runs in records.runs.items()} == {
        "mlp.ste": {1: places[0], 2: places[1]},
        "mlp.fogzo": {1: places[2]},
    }
    assert records.faults == []


STALE = {
    "steps": ({"steps": 20}, "not run with steps=30"),
    "model": ({"model": {"name": "deit_mini"}}, "model=mlp"),
    "scale": ({"scale": "paper"}, "scale=mini"),
    "epsilon": ({"estimator": {"name": "fogzo", "epsilon": 1.0}}, "estimator.epsilon=1e-1"),
    "tuned value": ({"optimizer": {"lr": 0.01}}, "optimizer.lr=0.1"),
    "cell": ({"cell": "mlp.sted"}, "no cell mlp.sted"),
    "seed": ({"seed": 9}, "seed 9 is not among"),
    "phase": ({"phase": "tune"}, "phase tune"),
}


@pytest.mark.parametrize("kind", STALE)
def test_a_stale_record_is_named_and_not_used(kind, project):
    changes, reason = STALE[kind]
    place = record("fogzo", 1, changes=changes)
    records = gather(parse(project))
    assert not any(records.runs.values())
    (fault,) = records.faults
    assert (fault.where, reason in fault.reason) == (place, True)
    (stale,) = read_records(RECORDS).runs
    assert fault.command == f"python scripts/records.py drop experiment=example run={stale}"


def test_the_one_advice_for_records_stale_alike_leaves_the_fresh_one_of_a_cell_and_seed(project, monkeypatch):
    for cell, seed, changes in (
        ("ste", 1, {"steps": 20}),
        ("ste", 1, {}),
        ("ste", 2, {"steps": 20}),
        ("fogzo", 1, {"steps": 20}),
    ):
        record(cell, seed, changes=changes)
    (fault,) = gather(parse(project)).faults
    assert fault.where == f"{RECORDS}, lines 1, 3 to 4"
    assert "they are not used" in str(fault)
    monkeypatch.setattr(sys, "argv", fault.command.split()[1:])
    monkeypatch.setattr("os.chdir", lambda folder: None)  # stay here
    runpy.run_path(str(ROOT / "scripts/records.py"), run_name="__main__")
    (left,) = read_records(RECORDS).runs.values()
    assert left.config["steps"] == 30


def test_a_record_whose_config_is_not_that_of_its_siblings_is_stale(project):
    places = [record("ste", seed) for seed in (1, 2, 3)]
    odd = record("ste", 4, changes=[("clip_norm", 1.0)])
    found = gather(parse(project | {"seeds": [1, 2, 3, 4]}))
    assert [run.where for run in found.runs["mlp.ste"].values()] == places
    assert "not that of the cell's other seeds (clip_norm: None → 1.0)" in reasons(found)[odd]


def test_a_record_that_was_changed_by_hand_is_named(project):
    place = record("ste", 1)
    RECORDS.write_text(RECORDS.read_text().replace('"forwards": 30', '"forwards": 31'))
    found = gather(parse(project))
    assert not any(found.runs.values())
    assert "it was changed" in reasons(found)[place]


def test_two_records_for_one_cell_are_both_named_and_not_used(project):
    places = [record("ste", 1), record("ste", 1, changes={"batch_size": 7})]
    found = gather(parse(project))
    assert not any(found.runs.values())
    assert reasons(found) == dict.fromkeys(places, "lines 1, 2 all claim cell mlp.ste, seed 1")
    assert len({fault.command for fault in found.faults}) == 2  # one of them may be the one to keep


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
    begun = Path("results/runs/example/begun")
    begun.mkdir(parents=True)
    (begun / "config.yaml").touch()
    old = record("ste", 2, changes={"steps": 20})
    tune(**{"mlp.fogzo": {"values": {"optimizer.lr": 0.1}, "tried": []}})
    code, out = missing("experiment=example")
    assert code == 1
    lines = [line.strip() for line in out.splitlines()]
    assert lines[:2] == [f"not over: {begun}", "example: 1 of 4 runs"]
    train = "python train.py -m experiment=example cell=mlp."
    assert lines[lines.index(f"{old}: not run with steps=30, as the experiment now says") + 1] == (
        f"python scripts/records.py drop experiment=example run={list(read_records(RECORDS).runs)[1]}"
    )
    assert lines[lines.index("mlp.ste: seed 2 missing") + 1] == f"{train}ste seed=2"
    assert lines[lines.index("mlp.fogzo: seed 1,2 missing") + 1] == f"{train}fogzo seed=1,2"
    assert lines[lines.index("mlp.fogzo: tuned with 0 trials instead of 2") + 1] == (
        "python scripts/tune.py experiment=example cell=mlp.fogzo"
    )


def test_nothing_is_left_when_all_are_there_though_one_diverged(project, missing):
    for method in ("ste", "fogzo"):
        for seed in (1, 2):
            record(method, seed, status="diverged" if (method, seed) == ("ste", 1) else "finished")
    code, out = missing()
    assert (code, out.splitlines()) == (0, ["example: 4 of 4 runs", "  mlp.ste: seed 1 diverged, which is a result"])


def test_what_is_damaged_or_was_edited_has_the_command_that_takes_it_away(project, missing):
    for method, seed in [("ste", 1), ("ste", 2), ("fogzo", 1)]:
        record(method, seed)
    lines = RECORDS.read_text().splitlines()
    atomic_write(RECORDS, "\n".join([lines[0].replace("0.5", "0.1"), lines[1][:400], lines[2]]).encode())
    code, out = missing("experiment=example")
    said = [line.strip() for line in out.splitlines()]
    assert (code, said[0]) == (1, "example: 1 of 4 runs")
    drop = "python scripts/records.py drop --unusable experiment=example"
    for start, command in [
        (f"{RECORDS}, line 1: it was changed", drop),
        (f"{RECORDS}, line 2: it is damaged", drop),
        ("mlp.ste: seed 1,2 missing", "python train.py -m experiment=example cell=mlp.ste seed=1,2"),
        ("mlp.fogzo: seed 2 missing", "python train.py -m experiment=example cell=mlp.fogzo seed=2"),
    ]:
        (at,) = [at for at, line in enumerate(said) if line.startswith(start)]
        assert said[at + 1] == command
    assert len(said) == 9


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("chosen.yaml", "<<<<<<< HEAD\na: 1\n=======\n", "chosen.yaml cannot be read"),
        (
            "chosen.yaml",
            "mlp.ste: {tried: []}\n",
            "chosen.yaml: the entry of mlp.ste cannot be used (it has no values): remove",
        ),
        ("configs/experiment/example.yaml", "experiment: [", "configs/experiment/example.yaml cannot be read"),
        ("configs/experiment/example.yaml", "", "example.yaml: experiment: it is None, but it must be keys"),
        (
            "configs/experiment/example.yaml",
            "experiment: {name: a, methods: {ste: }}",
            "a: seeds is missing: give it",
        ),
        ("configs/experiment/example.yaml", None, "methods of setting mlp='sted' is not known: choose one of"),
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
