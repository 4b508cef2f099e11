"""Cells as the overrides of their runs, with the values that tuning chose."""

import re
from pathlib import Path

import pytest
import yaml

from fogzo.evidence import jobs
from fogzo.evidence.chosen import tune_command, tuned_values, tuning_faults, whole_commands
from fogzo.evidence.parse import parse
from fogzo.evidence.tuning import tune


def expand(experiment, phase, given):
    return jobs.expand(parse(experiment), phase, given)


def test_confirm_runs_have_tuned_and_borrowed_values(experiment):
    found = expand(experiment, "confirm", ["cell=wide.noisy", "seed=2"])
    assert found == [["cell=wide.noisy", "scale=mini", "steps=200", "model=mlp", "estimator=noisy_ste",
                     "estimator.beta_min=0.99", "optimizer.lr=0.1"]]  # fmt: skip
    assert tuned_values(parse(experiment), parse(experiment).cells["wide.noisy"]) == {
        "estimator.beta_min": 0.99,
        "optimizer.lr": 0.1,
    }
    assert [job[-1] for job in expand(experiment, "confirm", ["cell=wide.ste"])] == ["seed=1", "seed=2"]


def test_a_setting_may_have_seeds_of_its_own_all_of_which_its_table_reports(experiment):
    experiment["settings"]["wide"]["seeds"] = [1, 2, 3]
    assert [job[-1] for job in expand(experiment, "confirm", ["cell=wide.ste"])] == ["seed=1", "seed=2", "seed=3"]
    assert parse(experiment).settings["deep"].seeds == (1, 2)
    experiment["settings"]["wide"]["seeds"] = [0, 1]
    with pytest.raises(ValueError, match="it tunes on seed 0, which its table reports too"):
        parse(experiment)


def test_a_method_may_take_all_tuned_values_from_another(experiment):
    experiment["methods"]["dropin"] = {
        "label": "FOGZO", "overrides": ["estimator=fogzo"], "search": {"optimizer.lr": None}, "tuned_as": "ste",
    }  # fmt: skip
    cell = parse(experiment).cells["wide.dropin"]
    assert (cell.search, cell.tuned_as) == ({}, "wide.ste")
    found = expand(experiment, "confirm", ["cell=wide.dropin"])
    assert [job[-2:] for job in found] == [["optimizer.lr=0.1", f"seed={seed}"] for seed in (1, 2)]
    Path(experiment["tuning"]["chosen"]).unlink()
    with pytest.raises(ValueError, match=r"no tuned values for wide\.ste"):
        expand(experiment, "confirm", ["cell=wide.dropin"])


def test_tuning_runs_try_every_point_on_the_tuning_seed(experiment):
    found = expand(experiment, "tune", ["setting=wide"])
    assert len(found) == 2 + 4 + 2
    assert all(job[-2:] == ["log_every=9", "seed=0"] for job in found)
    assert all("estimator.beta_min=0.99" in job for job in found if job[0] == "cell=wide.noisy")
    experiment["tuning"]["other_seeds"] = [5]
    assert {job[-1] for job in expand(experiment, "tune", ["setting=wide"])} == {"seed=0", "seed=5"}


def test_what_is_given_wins_and_makes_tuning_needless(experiment):
    assert expand(experiment, "confirm", ["cell=deep.ste", "optimizer.lr=5", "seed=7"]) == [
        ["cell=deep.ste", "scale=mini", "steps=300", "model=deit_mini", "estimator=ste"]
    ]
    with pytest.raises(ValueError, match=r"no tuned values for deep\.ste: first run `python scripts/tune\.py exp"):
        expand(experiment, "confirm", ["cell=deep.ste"])


def retune(experiment, name, **changes):
    file = Path(experiment["tuning"]["chosen"])
    entries = yaml.safe_load(file.read_text())
    entries[name].update(changes)
    file.write_text(yaml.safe_dump(entries, sort_keys=False))


def test_values_that_were_tuned_otherwise_than_the_experiment_asks_are_refused(experiment):
    one = [{"values": {"optimizer.lr": 0.1}}]
    retune(experiment, "wide.ste", tried=one)
    message = (
        r"wide\.ste was tuned with 1 trials instead of 2: first run `.* cell=wide\.ste`, or give experiment\.tuning\.tr"
    )
    with pytest.raises(ValueError, match=message):
        expand(experiment, "confirm", ["cell=wide.ste"])
    assert expand(experiment | {"tuning": experiment["tuning"] | {"trials": 1}}, "confirm", ["cell=wide.ste"])
    assert expand(experiment, "confirm", ["cell=wide.ste", "optimizer.lr=0.1"])
    retune(experiment, "wide.ste", tried=[])
    with pytest.raises(ValueError, match=r"first run `[^`]*`$"):  # no number of trials would make it fit
        expand(experiment, "confirm", ["cell=wide.ste"])
    retune(experiment, "wide.ste", tried=one, given=["steps=5"])
    with pytest.raises(ValueError, match=r"first run `[^`]*`$"):
        expand(experiment, "confirm", ["cell=wide.ste"])


def test_a_cell_that_borrows_is_as_faulty_as_what_it_borrows(experiment):
    cell = parse(experiment).cells["wide.noisy"]
    assert tuning_faults(parse(experiment), cell) == {}
    retune(experiment, "wide.fogzo", values={"optimizer.lr": 0.1, "estimator.beta_min": 0.9})
    then = "estimator.beta_min=0.99 from another cell, where the experiment now has estimator.beta_min=0.9"
    assert tuning_faults(parse(experiment), cell) == {"wide.noisy": f"tuned with {then}"}
    retune(experiment, "wide.fogzo", values={"optimizer.lr": 7, "estimator.beta_min": 0.99})
    said = "tuned to optimizer.lr=7, estimator.beta_min=0.99, which is none of what was tried"
    assert tuning_faults(parse(experiment), cell) == {"wide.fogzo": said}
    with pytest.raises(ValueError, match=r"first run `.*cell=wide\.fogzo,wide\.noisy`"):
        expand(experiment, "confirm", ["cell=wide.noisy"])


def test_the_commands_for_all_tune_first_what_still_needs_it(experiment):
    tune, train = "python scripts/tune.py experiment=example", "python train.py -m experiment=example"
    assert whole_commands(parse(experiment)) == [f"{tune} cell=deep.ste", train]
    Path(experiment["tuning"]["chosen"]).unlink()
    assert whole_commands(parse(experiment)) == [tune, train]
    experiment["tuning"]["search"], experiment["methods"] = {}, {"ste": experiment["methods"]["ste"]}
    del experiment["settings"]["wide"]["search"]
    assert whole_commands(parse(experiment)) == [train]


def test_a_cell_without_a_search_needs_no_tuning(experiment):
    experiment["tuning"]["search"] = {}
    assert expand(experiment, "confirm", ["cell=deep.ste", "seed=1"])


@pytest.mark.parametrize(
    ("phase", "given", "message"),
    [
        ("rehearse", [], "phase=rehearse is not known: choose confirm or tune"),
        ("tune", ["cell=ste"], "cell of experiment example='ste' is not known: choose one of wide.ste, wide.fogzo"),
        ("tune", ["setting=high"], "setting of experiment example='high' is not known: choose one of wide, deep"),
    ],
)
def test_what_the_experiment_lacks_is_refused(phase, given, message, experiment):
    with pytest.raises(ValueError, match=message):
        expand(experiment, phase, given)


def test_the_command_that_tunes_a_borrowing_cell_tunes_what_it_borrows_from_too(experiment):
    cells = parse(experiment).cells
    assert tune_command("x", cells["wide.noisy"]) == "python scripts/tune.py experiment=x cell=wide.fogzo,wide.noisy"
    experiment["methods"]["fogzo_dropin"] = None
    dropped_in = parse(experiment).cells["wide.fogzo_dropin"]
    assert tune_command("x", dropped_in) == "python scripts/tune.py experiment=x cell=wide.ste"


def test_the_command_that_a_refusal_names_keeps_what_was_given(experiment):
    experiment["methods"]["fogzo_dropin"] = {
        "label": "FOGZO", "overrides": ["estimator=fogzo"], "search": {"optimizer.lr": None}, "tuned_as": "ste",
    }  # fmt: skip
    Path(experiment["tuning"]["chosen"]).unlink()
    file = f"experiment.tuning.chosen={experiment['tuning']['chosen']}"
    command = "python scripts/tune.py experiment=example cell=wide.ste"
    asked = ["cell=wide.fogzo_dropin", "steps=5", file]
    # a run's steps are not its tuning's
    with pytest.raises(ValueError, match=re.escape(f"first run `{command} {file}`")):
        expand(experiment, "confirm", asked)
    with pytest.raises(ValueError, match=re.escape(f"first run `{command} experiment.tuning.trials=9`")):
        expand(experiment, "confirm", [asked[0], "experiment.tuning.trials=9"])
    with pytest.raises(ValueError, match=re.escape(f"first run `{command} steps=5 {file}`")):
        expand(experiment, "tune", asked)
    with pytest.raises(ValueError, match=re.escape(f"run `{command} steps=5 {file}`")):
        tune(parse(experiment), Path("results"), asked, jobs=1)
