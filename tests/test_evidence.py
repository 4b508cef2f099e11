"""Which numbers come into a table: none of a damaged, edited, stale, diverged or infinite record."""

import json
import math
import shutil

import pytest
from made_up import dump, edit, experiment, write

from fogzo.evidence import gather
from fogzo.results import read_yaml
from fogzo.runs import RunError, identity


@pytest.fixture
def made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return experiment()


def test_values_are_read_by_cell_and_seed(made, tmp_path):
    folders = write(tmp_path, made)
    found = gather(made)
    assert list(found.settings()) == ["deit", "resnet"]
    cell = found.cells["deit.fogzo"]
    accuracy = json.loads((folders["deit.fogzo", 12] / "summary.json").read_text())["accuracy"]
    assert found.values(cell)[12] == accuracy
    assert found.values(cell, "train_loss").keys() == {11, 12, 13}
    assert found.baseline(cell) == found.cells["deit.ste"]
    assert found.baseline(found.cells["deit.ste"]) is None
    assert found.commands(cell) == found.problems == []


BAD = {
    "no JSON": (lambda f: (f / "summary.json").write_text('{"seed": 11,'), "cannot be read"),
    "truncated metrics": (lambda f: cut(f / "metrics.jsonl"), "damaged"),
    "no metrics": (lambda f: (f / "metrics.jsonl").unlink(), "metrics are missing"),
    "no seed": (lambda f: edit(f, seed=None), "lacks its seed"),
    "another seed": (lambda f: edit(f, seed=12), "another cell or seed"),
    "another scale": (lambda f: edit(f, scale="paper"), "scale is paper in its summary, mini in its config"),
    "edited result": (lambda f: edit(f, accuracy=99.0), "accuracy is 99.0 in its summary"),
    "edited config": (lambda f: (f / "config.yaml").write_text("seed: 11\n"), "changed by hand"),
    "unknown status": (lambda f: edit(f, status="fine"), "neither finished nor diverged"),
    "NaN": (lambda f: not_finite(f, math.nan), "accuracy is nan, no finite number"),
    "infinite": (lambda f: not_finite(f, math.inf), "accuracy is inf, no finite number"),
    "a word": (lambda f: not_finite(f, "high"), "accuracy is high, no finite number"),
    "none": (lambda f: not_finite(f, None), "accuracy is None, no finite number"),
}


def cut(file):
    file.write_text(file.read_text()[:-30])


def not_finite(folder, value):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    last = json.dumps(json.loads(lines[-1]) | {"accuracy": value})
    (folder / "metrics.jsonl").write_text("\n".join([*lines[:-1], last]) + "\n")
    edit(folder, accuracy=value)
    if isinstance(value, float) and math.isnan(value):  # NaN differs from itself
        (folder / "metrics.jsonl").write_text("\n".join(lines[:-1]) + "\n")
        row = {key: value for key, value in json.loads(lines[-1]).items() if key != "accuracy"}
        (folder / "metrics.jsonl").write_text("\n".join([*lines[:-1], json.dumps(row)]) + "\n")


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_record_is_named_and_its_number_is_in_no_mean(kind, made, tmp_path):
    folders = write(tmp_path, made)
    spoil, reason = BAD[kind]
    spoil(folders["deit.fogzo", 11])
    found = gather(made)
    assert set(found.values(found.cells["deit.fogzo"])) == {12, 13}
    assert len(found.problems) == 1
    assert folders["deit.fogzo", 11].name in found.problems[0]
    assert reason in found.problems[0]


def test_a_diverged_run_is_over_and_in_no_mean(made, tmp_path):
    folders = write(tmp_path, made)
    edit(folders["deit.fogzo", 11], status="diverged")
    found = gather(made)
    cell = found.cells["deit.fogzo"]
    assert set(found.values(cell)) == {12, 13}
    assert found.diverged(cell) == [11]
    assert found.missing(cell) == found.problems == []
    assert found.difference(cell, found.baseline(cell)).pairs == 2


def test_two_runs_for_one_cell_are_refused(made, tmp_path):
    folders = write(tmp_path, made)
    copy = tmp_path / "copy"
    shutil.copytree(folders["deit.fogzo", 11], copy)
    config = read_yaml(copy / "config.yaml") | {"steps": 1001}
    dump(copy / "config.yaml", config)
    shutil.move(copy, folders["deit.fogzo", 11].with_name(f"deit.fogzo-seed11-{identity(config)}"))
    with pytest.raises(RunError, match=r"both claim cell deit\.fogzo, seed 11"):
        gather(made)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": "accurracy"}, "compares by accurracy: choose one of accuracy"),
        ({"metric": "mean_agreement"}, "compares by mean_agreement"),
        ({"axes": [{"label": "ε", "settings": {"vit": 1}}]}, "axes holds .*: give a label"),
        ({"also": ["loss_of_hair"]}, "also shows loss_of_hair: choose from"),
    ],
)
def test_an_unknown_column_is_refused_by_name(changes, message, made, tmp_path):
    write(tmp_path, made)
    with pytest.raises(RunError, match=message):
        gather(made | changes)


def test_missing_runs_have_a_command_and_untuned_cells_one_before_it(made, tmp_path):
    folders = write(tmp_path, made)
    for seed in (11, 13):
        shutil.rmtree(folders["deit.fogzo", seed])
    found = gather(made)
    train = "python train.py -m experiment=twin cell=deit.fogzo seed="
    assert found.commands(found.cells["deit.fogzo"]) == [train + "11,13"]
    dump(tmp_path / "results/tuned/twin.yaml", {})
    found = gather(made)
    assert found.commands(found.cells["deit.fogzo"]) == [
        "python scripts/tune.py experiment=twin cell=deit.fogzo",
        train + "11,12,13",
    ]


def test_a_setting_may_have_a_metric_of_its_own(made, tmp_path):
    made["settings"]["resnet"]["metric"] = "perplexity"
    write(tmp_path, made)
    found = gather(made)
    assert found.metrics() == ["accuracy", "perplexity"]
    ste, fogzo = (found.values(found.cells[f"resnet.{method}"]) for method in ("ste", "fogzo"))
    mean = sum(ste[seed] - fogzo[seed] for seed in (11, 12, 13)) / 3  # lower is better
    assert found.difference(found.cells["resnet.fogzo"], found.cells["resnet.ste"]).mean == pytest.approx(mean)
