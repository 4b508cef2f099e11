"""Experiments as cells, and cells as the overrides of their runs."""

import copy
from pathlib import Path

import pytest
import yaml

from fogzo.evidence.chosen import tune_command, tuned_values, tuning_faults, whole_commands
from fogzo.evidence.experiment import Cell, cells_of, points_of
from fogzo.evidence.jobs import expand

GONE = object()  # a value to take away
EXPERIMENT = {
    "name": "example",
    "scale": "mini",
    "seeds": [1, 2],
    "overrides": ["steps=300"],
    "settings": {
        "wide": {
            "label": "Wide",
            "overrides": ["model=mlp", "steps=200"],
            "search": {"estimator.beta_min": [0.9, 0.99]},
        },
        "deep": {"label": "Deep", "overrides": ["model=deit_mini"], "methods": ["ste"]},
    },
    "methods": {
        "ste": {"label": "STE", "overrides": ["estimator=ste"]},
        "fogzo": {"label": "FOGZO", "overrides": ["estimator=fogzo"], "search": {"estimator.beta_min": [0.5]}},
        "noisy": {"label": "Noise", "overrides": ["estimator=noisy_ste"], "tuned_as": "fogzo"},
    },
    "tuning": {"seed": 0, "trials": 2, "search": {"optimizer.lr": [0.1, 0.2]}, "overrides": ["log_every=9"]},
}


@pytest.fixture
def experiment(tmp_path):
    made = copy.deepcopy(EXPERIMENT)
    made["tuning"]["chosen"] = str(tmp_path / "chosen.yaml")
    values = {
        "wide.ste": {"optimizer.lr": 0.1},
        "wide.fogzo": {"optimizer.lr": 0.2, "estimator.beta_min": 0.99},
        "wide.noisy": {"optimizer.lr": 0.1},
    }
    other = {
        "wide.ste": [{"optimizer.lr": 0.2}],
        "wide.noisy": [{"optimizer.lr": 0.2}],
        "wide.fogzo": [values["wide.ste"] | {"estimator.beta_min": 0.9}],
    }
    entries = {
        cell: {"values": v, "tried": [{"values": one} for one in [v, *other[cell]]]} for cell, v in values.items()
    }
    entries["wide.noisy"]["borrowed"] = {"estimator.beta_min": 0.99}
    (tmp_path / "chosen.yaml").write_text(yaml.safe_dump(entries))
    return made


def test_cells_are_settings_times_methods_in_order(experiment):
    cells = cells_of(experiment)
    assert list(cells) == ["wide.ste", "wide.fogzo", "wide.noisy", "deep.ste"]
    cell = cells["wide.fogzo"]
    assert (cell.setting, cell.method, cell.label) == ("wide", "fogzo", "FOGZO")
    assert cell.overrides == ("scale=mini", "steps=200", "model=mlp", "estimator=fogzo")  # the setting's steps win
    assert cell.search == {"optimizer.lr": [0.1, 0.2], "estimator.beta_min": [0.9, 0.99]}  # with the setting's values
    assert cells["wide.ste"].search == {"optimizer.lr": [0.1, 0.2]}
    assert len(points_of(cell)) == 4


def test_an_experiment_may_list_its_cells(experiment):
    for key in ("settings", "methods"):
        del experiment[key]
    experiment["cells"] = {"ste": {"label": "STE", "overrides": ["estimator=ste"]}}
    (cell,) = cells_of(experiment).values()
    assert (cell.name, cell.setting, cell.method) == ("ste", "", "ste")
    assert cell.overrides == ("scale=mini", "steps=300", "estimator=ste")


def test_listed_cells_may_borrow_and_leave_a_key_alone_as_methods_may(experiment):
    listed = {key: value for key, value in experiment.items() if key not in ("settings", "methods")}
    listed["cells"] = experiment["methods"] | {
        "dropin": {"label": "D", "overrides": [], "search": {"optimizer.lr": None}, "tuned_as": "ste"}
    }
    cells = cells_of(listed)
    assert cells["noisy"].tuned_as == "fogzo"
    assert (cells["dropin"].search, points_of(cells["dropin"])) == ({}, [{}])
    listed["cells"]["noisy"] = listed["cells"]["noisy"] | {"tuned_as": "fogz"}
    with pytest.raises(
        ValueError, match="experiment example: noisy is tuned as fogz, which is no cell: choose from ste"
    ):
        expand(listed, "confirm", [])


def test_confirm_runs_have_tuned_and_borrowed_values(experiment):
    jobs = expand(experiment, "confirm", ["cell=wide.noisy", "seed=2"])
    assert jobs == [["cell=wide.noisy", "scale=mini", "steps=200", "model=mlp", "estimator=noisy_ste",
                     "estimator.beta_min=0.99", "optimizer.lr=0.1"]]  # fmt: skip
    assert tuned_values(experiment, cells_of(experiment)["wide.noisy"]) == {
        "estimator.beta_min": 0.99,
        "optimizer.lr": 0.1,
    }
    assert [job[-1] for job in expand(experiment, "confirm", ["cell=wide.ste"])] == ["seed=1", "seed=2"]


def test_a_method_may_take_all_tuned_values_from_another(experiment):
    experiment["methods"]["dropin"] = {
        "label": "FOGZO", "overrides": ["estimator=fogzo"], "search": {"optimizer.lr": None}, "tuned_as": "ste",
    }  # fmt: skip
    cell = cells_of(experiment)["wide.dropin"]
    assert (cell.search, cell.tuned_as) == ({}, "wide.ste")
    jobs = expand(experiment, "confirm", ["cell=wide.dropin"])
    assert [job[-2:] for job in jobs] == [["optimizer.lr=0.1", f"seed={seed}"] for seed in (1, 2)]
    Path(experiment["tuning"]["chosen"]).unlink()
    with pytest.raises(ValueError, match=r"no tuned values for wide\.ste"):
        expand(experiment, "confirm", ["cell=wide.dropin"])


def test_tuning_runs_try_every_point_on_the_tuning_seed(experiment):
    jobs = expand(experiment, "tune", ["setting=wide"])
    assert len(jobs) == 2 + 4 + 2
    assert all(job[-2:] == ["log_every=9", "seed=0"] for job in jobs)
    assert all("estimator.beta_min=0.99" in job for job in jobs if job[0] == "cell=wide.noisy")


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
    retune(experiment, "wide.ste", given=["steps=5"])
    with pytest.raises(ValueError, match=r"first run `[^`]*`$"):
        expand(experiment, "confirm", ["cell=wide.ste"])


def test_a_cell_that_borrows_is_as_faulty_as_what_it_borrows(experiment):
    cell = cells_of(experiment)["wide.noisy"]
    assert tuning_faults(experiment, cell) == {}
    retune(experiment, "wide.fogzo", values={"optimizer.lr": 0.1, "estimator.beta_min": 0.9})
    then = "estimator.beta_min=0.99 from another cell, where the experiment now has estimator.beta_min=0.9"
    assert tuning_faults(experiment, cell) == {"wide.noisy": f"tuned with {then}"}
    retune(experiment, "wide.fogzo", values={"optimizer.lr": 7, "estimator.beta_min": 0.99})
    said = "tuned to optimizer.lr=7, estimator.beta_min=0.99, which is none of what was tried"
    assert tuning_faults(experiment, cell) == {"wide.fogzo": said}
    with pytest.raises(ValueError, match=r"first run `.*cell=wide\.fogzo,wide\.noisy`"):
        expand(experiment, "confirm", ["cell=wide.noisy"])


def test_the_commands_for_all_tune_first_what_still_needs_it(experiment):
    tune, train = "python scripts/tune.py experiment=example", "python train.py -m experiment=example"
    assert whole_commands(experiment) == [f"{tune} cell=deep.ste", train]
    Path(experiment["tuning"]["chosen"]).unlink()
    assert whole_commands(experiment) == [tune, train]
    experiment["tuning"]["search"], experiment["methods"] = {}, {"ste": experiment["methods"]["ste"]}
    del experiment["settings"]["wide"]["search"]
    assert whole_commands(experiment) == [train]


def test_a_cell_without_a_search_needs_no_tuning(experiment):
    experiment["tuning"]["search"] = {}
    assert expand(experiment, "confirm", ["cell=deep.ste", "seed=1"])


@pytest.mark.parametrize(
    ("phase", "given", "message"),
    [
        ("rehearse", [], "phase=rehearse is not known: choose confirm or tune"),
        ("tune", ["cell=ste"], "cell=ste is not in experiment example: choose one of wide.ste, wide.fogzo"),
        ("tune", ["setting=high"], "setting=high is not in experiment example: choose one of wide, deep"),
    ],
)
def test_what_the_experiment_lacks_is_refused(phase, given, message, experiment):
    with pytest.raises(ValueError, match=message):
        expand(experiment, phase, given)


def test_mistaken_experiments_are_refused(experiment):
    def broken(*path, value):
        made = copy.deepcopy(experiment)
        place = made
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        if value is GONE:
            del place[path[-1]]
        return made

    with pytest.raises(ValueError, match="tunes on seed 0, which its table reports too"):
        expand(broken("seeds", value=[0, 1]), "tune", [])
    for path, value, message in [
        (("settings", "deep", "methods"), ["sted"], "setting deep: method sted is not known"),
        (("settings", "deep", "methods"), ["noisy"], "noisy is tuned as fogzo, which the setting lacks"),
        (("settings", "deep", "search"), {"estimator.beta_min": [1]}, "estimator.beta_min is searched by none"),
        (("methods", "noisy", "tuned_as"), "noisy", "noisy is tuned as noisy, which is tuned as another itself"),
        (("methods", "noisy", "label"), GONE, "setting wide: noisy has no label: give it one"),
        (("tuning", "search", "optimizer.lr"), 0.1, r"wide\.ste: the search of optimizer\.lr is 0\.1: give it a list"),
        (("methods",), GONE, "experiment example has no cells: give it settings and methods, or cells"),
    ]:
        with pytest.raises(ValueError, match=message):
            cells_of(broken(*path, value=value))


def test_the_command_that_tunes_a_borrowing_cell_tunes_what_it_borrows_from_too():
    cell = Cell("a.noisy_ste", "a", "noisy_ste", "noise", search={"optimizer.lr": [1, 2]}, tuned_as="a.fogzo")
    assert tune_command("x", cell) == "python scripts/tune.py experiment=x cell=a.fogzo,a.noisy_ste"
    dropped_in = Cell("a.dropin", "a", "dropin", "dropped in", tuned_as="a.ste")
    assert tune_command("x", dropped_in) == "python scripts/tune.py experiment=x cell=a.ste"
