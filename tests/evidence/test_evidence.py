"""Which numbers come into a table: none of a damaged, edited, stale, diverged or infinite record."""

import json
import math
import re
import shutil

import pytest
from helpers.made_up import GONE, change, dump, edit, experiment, gathered, lines, sign, write

from fogzo.runs.folder import RunError
from fogzo.runs.identity import identity
from fogzo.runs.records import read_yaml


@pytest.fixture
def made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return experiment()


def test_values_are_read_by_cell_and_seed(made, tmp_path):
    folders = write(tmp_path, made)
    found = gathered(made)
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
    "NaN": (lambda f: change(f, 20, accuracy=math.nan), "in row 20 of its metrics accuracy is nan, no finite number"),
    "infinite": (lambda f: change(f, 20, accuracy=math.inf), "accuracy is inf, no finite number"),
    "a word": (lambda f: change(f, 20, accuracy="high"), "accuracy is high, no finite number"),
    "null": (lambda f: change(f, 20, accuracy=None), "accuracy is None, no finite number"),
    "not measured": (lambda f: change(f, 20, accuracy=GONE), "accuracy is None, no finite number: it is in no mean"),
    "a loss within": (lambda f: change(f, 3, loss=math.nan), "in row 3 of its metrics loss is nan, no finite number"),
    "a row without its cost": (lambda f: change(f, 3, seconds=GONE), "row 3 of its metrics has no seconds"),
    "a cost in words": (lambda f: change(f, 20, flops="many"), "flops is many in its summary, no finite number"),
    "a cost in words within": (lambda f: change(f, 3, flops="many"), "in row 3 of its metrics flops is many"),
    "no cost": (lambda f: edit(f, seconds=GONE), "seconds is None in its summary, no finite number"),
    "no steps": (lambda f: edit(f, steps=GONE), "steps is None in its summary, no finite number"),
    "other steps": (lambda f: edit(f, steps=999), "step is 999 in its summary, 1000 in its last row"),
    "edited agreement": (lambda f: edit(f, mean_agreement=55.0), "changed by hand"),
    "edited in both": (lambda f: change(f, 20, signed=False, accuracy=99.0), "changed by hand"),
    "a row deleted": (lambda f: lines(f, lambda rows: rows[:2] + rows[3:]), "changed by hand"),
    "a number as a key": (lambda f: append(f / "config.yaml", "3: 4\n"), "3 is a key that is no word"),
    "one below a group": (lambda f: append(f / "config.yaml", "data: {1: 2}\n"), "data.1 is a key that is no word"),
    "a date": (lambda f: append(f / "config.yaml", "day: 2026-01-31\n"), "day is 2026-01-31, no number, word"),
    "larger than a float": (lambda f: edit(f, seconds=10**400), "seconds is 1000"),
    "no digest": (lambda f: edit(f, digest=GONE), "no digest"),
}


def cut(file):
    file.write_text(file.read_text()[:-30])


def append(file, text):
    file.write_text(file.read_text() + text)


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_record_is_named_and_its_number_is_in_no_mean(kind, made, tmp_path):
    folders = write(tmp_path, made)
    spoil, reason = BAD[kind]
    spoil(folders["deit.fogzo", 11])
    found = gathered(made)
    assert set(found.values(found.cells["deit.fogzo"])) == {12, 13}
    assert len(found.problems) == 1
    assert folders["deit.fogzo", 11].name in found.problems[0]
    assert reason in found.problems[0]


def test_a_diverged_run_is_over_and_in_no_mean(made, tmp_path):
    folders = write(tmp_path, made)
    change(folders["deit.fogzo", 11], 20, loss=None, accuracy=GONE)
    edit(folders["deit.fogzo", 11], status="diverged")
    sign(folders["deit.fogzo", 11])
    found = gathered(made)
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
        gathered(made)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"table": "nope"},
            r"table nope needs results/paper/nope\.yaml, which is not there: write it, or give table: null",
        ),
        (
            {"settings": {"vit": {"label": "ViT", "paper": ["deit_row", "vit_row"]}}},
            r"setting vit: results/paper/twin\.yaml has no row vit_row: choose one of deit_row, resnet_row",
        ),
    ],
)
def test_what_is_not_there_is_refused_by_name(changes, message, made, tmp_path):
    write(tmp_path, made)
    with pytest.raises(RunError, match=message):
        gathered(made | changes)


def test_an_experiment_may_have_no_published_table(made, tmp_path):
    write(tmp_path, made)
    assert gathered(made | {"table": None}).paper == {}


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("tuned", "<<<<<<< HEAD\na: 1\n=======\n", "cannot be read"),
        ("tuned", "- 1\n", "holds '[1]', no keys with values"),
        ("tuned", "deit.ste: {trials: 2}\n", "the entry of deit.ste has no values"),
        ("tuned", "deit.ste: {values: {}, tried: [1]}\n", "the entry of deit.ste has a trial without values"),
        ("tuned", "deit.ste: {values: {}, given: [1]}\n", "the entry of deit.ste has something else than KEY=VALUE"),
        ("tuned", "deit.ste: {values: {}, borrowed: 1}\n", "has 1 as borrowed, which must be keys with values"),
        ("paper", "rows: {a: [}\n", "cannot be read"),
    ],
)
def test_a_damaged_file_is_refused_by_name_with_the_way_out(file, text, message, made, tmp_path):
    write(tmp_path, made)
    (tmp_path / f"results/{file}/twin.yaml").write_text(text)
    with pytest.raises(ValueError, match=rf"results/{file}/twin\.yaml.*{re.escape(message)}.*: (mend|remove) it"):
        gathered(made)


def test_missing_runs_have_a_command_and_untuned_cells_one_before_it(made, tmp_path):
    folders = write(tmp_path, made)
    for seed in (11, 13):
        shutil.rmtree(folders["deit.fogzo", seed])
    found = gathered(made)
    train = "python train.py -m experiment=twin cell=deit.fogzo seed="
    assert found.commands(found.cells["deit.fogzo"]) == [train + "11,13"]
    dump(tmp_path / "results/tuned/twin.yaml", {})
    found = gathered(made)
    assert found.commands(found.cells["deit.fogzo"]) == [
        "python scripts/tune.py experiment=twin cell=deit.fogzo",
        train + "11,12,13",
    ]


def test_tuned_values_that_are_not_as_the_experiment_asks_are_named_where_runs_rest_on_them(made, tmp_path):
    made["methods"]["dropin"] = {
        "label": "dropped in", "overrides": ["estimator=fogzo"], "tuned_as": "ste",
        "search": dict.fromkeys(made["tuning"]["search"]),
    }  # fmt: skip
    folders = write(tmp_path, made)
    file = tmp_path / "results/tuned/twin.yaml"
    tuned = read_yaml(file)
    assert gathered(made).tuning_faults() == []
    tuned["deit.ste"] |= {"tried": tuned["deit.ste"]["tried"][-1:], "given": ["steps=5"]}
    dump(file, tuned)
    shutil.rmtree(folders["deit.ste", 11])
    found = gathered(made)
    tune = "python scripts/tune.py experiment=twin cell=deit.ste"
    assert found.tuning_faults() == [
        f"twin, deit.ste: tuned with 1 trials instead of 2, and runs rest on that: run `{tune}`"
    ]
    train = "python train.py -m experiment=twin cell=deit.ste seed=11"
    assert found.commands(found.cells["deit.ste"]) == [tune, train]
    for seed in (12, 13):
        shutil.rmtree(folders["deit.ste", seed])
    assert gathered(made).runs["deit.dropin"] == {}  # its records have no learning rate
    assert gathered(made).tuning_faults() == []


def test_a_cell_that_borrows_everything_asks_for_the_tuning_of_the_other(made, tmp_path):
    made["methods"]["fogzo_dropin"] = None
    write(tmp_path, made)
    tuned = read_yaml(tmp_path / "results/tuned/twin.yaml")
    del tuned["deit.ste"]
    dump(tmp_path / "results/tuned/twin.yaml", tuned)
    found = gathered(made)
    assert found.commands(found.cells["deit.fogzo_dropin"])[0] == "python scripts/tune.py experiment=twin cell=deit.ste"


def test_a_setting_may_have_a_metric_of_its_own(made, tmp_path):
    made["settings"]["resnet"]["metric"] = "perplexity"
    write(tmp_path, made)
    found = gathered(made)
    assert found.metrics() == ["accuracy", "perplexity"]
    ste, fogzo = (found.values(found.cells[f"resnet.{method}"]) for method in ("ste", "fogzo"))
    mean = sum(ste[seed] - fogzo[seed] for seed in (11, 12, 13)) / 3  # lower is better
    assert found.difference(found.cells["resnet.fogzo"], found.cells["resnet.ste"]).mean == pytest.approx(mean)
