"""Which numbers come into a table: none of a damaged, edited, stale, diverged or infinite record."""

import json
import re

import pytest
from helpers.made_up import GONE, change, dump, edit, experiment, gathered, remove, sign, signed, write

from fogzo.errors import UserError
from fogzo.evidence.words import Word
from fogzo.runs.files import read_yaml


@pytest.fixture
def made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return experiment()


def test_values_are_read_by_cell_and_seed(made, tmp_path):
    records = write(tmp_path, made)
    found = gathered(made)
    assert list(found.settings()) == ["deit", "resnet"]
    cell = found.cells["deit.fogzo"]
    line = records["deit.fogzo", 12].file.read_text().splitlines()[records["deit.fogzo", 12].number - 1]
    assert {"accuracy": found.values(cell)[12]} == json.loads(line)["metric"]
    assert found.values(cell, "train_loss").keys() == {11, 12, 13}
    assert found.baseline(cell) == found.cells["deit.ste"]
    assert found.baseline(found.cells["deit.ste"]) is None
    assert found.commands(cell) == found.problems == []


def test_a_bad_record_is_named_and_its_number_is_in_no_mean(made, tmp_path):
    bad = write(tmp_path, made)["deit.fogzo", 11]
    edit(bad, accuracy=99.0)
    found = gathered(made)
    assert set(found.values(found.cells["deit.fogzo"])) == {12, 13}
    (problem,) = found.problems
    assert problem.startswith(f"results/records/twin.jsonl, line {bad.number}: it was changed: its summary or its")


@pytest.mark.parametrize("value", [None, "high", GONE], ids=["null", "a word", "gone"])
def test_a_metric_that_is_no_number_is_named_and_is_in_no_mean(value, made, tmp_path):
    change(write(tmp_path, made)["deit.fogzo", 11], 20, accuracy=value)
    found = gathered(made)
    assert set(found.values(found.cells["deit.fogzo"])) == {12, 13}
    assert re.search(r"twin\.jsonl, line \d+: accuracy is .*, no finite number: it is in no mean", found.problems[0])


def test_a_diverged_run_is_over_and_in_no_mean(made, tmp_path):
    records = write(tmp_path, made)
    change(records["deit.fogzo", 11], 20, loss=None, accuracy=GONE)
    edit(records["deit.fogzo", 11], status="diverged")
    sign(records["deit.fogzo", 11])
    found = gathered(made)
    cell = found.cells["deit.fogzo"]
    assert set(found.values(cell)) == {12, 13}
    assert found.diverged(cell) == [11]
    assert found.commands(cell) == found.problems == []
    assert found.difference(cell, found.baseline(cell)).pairs == 2


def test_two_methods_that_diverged_on_different_seeds_are_not_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = experiment(seeds=(11, 12, 13, 14))
    records = write(tmp_path, made)
    for record in [*(records["deit.ste", seed] for seed in (11, 12, 13)), records["deit.fogzo", 14]]:
        edit(record, status="diverged", accuracy=GONE)
        sign(record)
    found = gathered(made)
    assert found.difference(found.cells["deit.fogzo"], found.cells["deit.ste"]) is None
    assert found.outcome(found.cells["deit.fogzo"], found.cells["deit.ste"]) is Word.UNDECIDED


def test_two_runs_for_one_cell_are_both_named_and_not_used(made, tmp_path):
    record = write(tmp_path, made)["deit.fogzo", 11]

    def twice(said):
        other = signed(said["config"] | {"steps": 1001}, said["summary"], [])
        return f"{json.dumps(said)}\n{other}"

    record.replace(twice)
    found = gathered(made)
    assert set(found.values(found.cells["deit.fogzo"])) == {12, 13}
    for place, problem in zip((record.number, record.number + 1), found.problems, strict=True):
        assert problem.startswith(f"results/records/twin.jsonl, line {place}: lines ")
        assert "all claim cell deit.fogzo, seed 11" in problem


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"table": "nope"},
            r"table nope is not in results/paper/numbers\.yaml: write it there, or give table: null",
        ),
        (
            {"settings": {"vit": {"label": "ViT", "paper": ["deit_row", "vit_row"]}}},
            r"setting vit: results/paper/numbers\.yaml, twin, has no row vit_row: choose one of deit_row, resnet_row",
        ),
    ],
)
def test_what_is_not_there_is_refused_by_name(changes, message, made, tmp_path):
    write(tmp_path, made)
    with pytest.raises(UserError, match=message):
        gathered(made | changes)


def test_a_published_metric_that_is_not_known_is_refused_by_row(made, tmp_path):
    write(tmp_path, made)
    numbers = tmp_path / "results/paper/numbers.yaml"
    numbers.write_text(numbers.read_text().replace("metric: accuracy", "metric: accurracy", 1))
    with pytest.raises(UserError, match=r"numbers\.yaml: metric of \w+_row='accurracy' is not known: choose one of "):
        gathered(made)


def test_an_experiment_may_have_no_published_table(made, tmp_path):
    write(tmp_path, made)
    assert gathered(made | {"table": None}).paper == {}


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("tuned/twin", "<<<<<<< HEAD\na: 1\n=======\n", "cannot be read"),
        ("tuned/twin", "- 1\n", "holds '[1]', no keys with values"),
        ("tuned/twin", "deit.ste: {trials: 2}\n", "the entry of deit.ste cannot be used (it has no values)"),
        (
            "tuned/twin",
            "deit.ste: {values: {}, tried: [1]}\n",
            "(tried=[1] is not possible: give a list",
        ),
        ("tuned/twin", "deit.ste: {values: {}, given: [1]}\n", "(given=[1] is not possible: give a list, each text)"),
        ("tuned/twin", "deit.ste: {values: {}, borrowed: 1}\n", "(borrowed=1 is not possible: give keys with values)"),
        ("paper/numbers", "rows: {a: [}\n", "cannot be read"),
    ],
)
def test_a_damaged_file_is_refused_by_name_with_the_way_out(file, text, message, made, tmp_path):
    write(tmp_path, made)
    (tmp_path / f"results/{file}.yaml").write_text(text)
    with pytest.raises(ValueError, match=rf"results/{file}\.yaml.*{re.escape(message)}.*: (mend|remove) it"):
        gathered(made)


def test_missing_runs_have_a_command_and_untuned_cells_one_before_it(made, tmp_path):
    records = write(tmp_path, made)
    for seed in (11, 13):
        remove(records["deit.fogzo", seed])
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
    records = write(tmp_path, made)
    file = tmp_path / "results/tuned/twin.yaml"
    tuned = read_yaml(file)
    assert gathered(made).tuning_faults() == []
    tuned["deit.ste"] |= {"tried": tuned["deit.ste"]["tried"][-1:], "given": ["steps=5"]}
    dump(file, tuned)
    remove(records["deit.ste", 11])
    found = gathered(made)
    tune = "python scripts/tune.py experiment=twin cell=deit.ste"
    assert found.tuning_faults() == [
        f"twin, deit.ste: tuned with 1 trials instead of 2, and runs rest on that: run `{tune}`"
    ]
    train = "python train.py -m experiment=twin cell=deit.ste seed=11"
    assert found.commands(found.cells["deit.ste"]) == [tune, train]
    for seed in (12, 13):
        remove(records["deit.ste", seed])
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


def test_a_setting_with_more_seeds_than_the_others_lacks_its_own_alone(made, tmp_path):
    write(tmp_path, made)
    made["settings"]["deit"]["seeds"] = [11, 12, 13, 14]
    evidence = gathered(made, tmp_path / "results")
    missing = {name: evidence.gaps(cell) for name, cell in evidence.cells.items() if evidence.gaps(cell)}
    assert set(missing) == {name for name in evidence.cells if name.startswith("deit.")}
    assert missing["deit.ste"][-1][1] == "python train.py -m experiment=twin cell=deit.ste seed=14"
    assert not evidence.problems


def test_a_setting_may_have_a_metric_of_its_own(made, tmp_path):
    made["settings"]["resnet"]["metric"] = "perplexity"
    write(tmp_path, made)
    found = gathered(made)
    assert found.metrics() == ["accuracy", "perplexity"]
    ste, fogzo = (found.values(found.cells[f"resnet.{method}"]) for method in ("ste", "fogzo"))
    mean = sum(ste[seed] - fogzo[seed] for seed in (11, 12, 13)) / 3  # lower is better
    assert found.difference(found.cells["resnet.fogzo"], found.cells["resnet.ste"]).mean == pytest.approx(mean)
