"""Experiments as cells, and cells as the overrides of their runs."""

import copy
from pathlib import Path

import pytest
import yaml

from fogzo.evidence import jobs
from fogzo.evidence.chosen import tune_command, tuned_values, tuning_faults, whole_commands
from fogzo.evidence.parse import parse

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


def expand(experiment, phase, given):
    return jobs.expand(parse(experiment), phase, given)


def test_cells_are_settings_times_methods_in_order(experiment):
    cells = parse(experiment).cells
    assert list(cells) == ["wide.ste", "wide.fogzo", "wide.noisy", "deep.ste"]
    cell = cells["wide.fogzo"]
    assert (cell.setting.label, cell.method.name, cell.label) == ("Wide", "fogzo", "FOGZO")
    assert cell.overrides == ("scale=mini", "steps=200", "model=mlp", "estimator=fogzo")  # the setting's steps win
    assert cell.search == {"optimizer.lr": (0.1, 0.2), "estimator.beta_min": (0.9, 0.99)}  # with the setting's values
    assert cells["wide.ste"].search == {"optimizer.lr": (0.1, 0.2)}
    assert len(cell.points()) == 4


def test_without_settings_the_methods_are_the_cells(experiment):
    del experiment["settings"]
    experiment["methods"]["dropin"] = {
        "label": "D", "overrides": [], "search": {"optimizer.lr": None}, "tuned_as": "ste",
    }  # fmt: skip
    read = parse(experiment)
    cell = read.cells["ste"]
    assert (read.has_settings, cell.name, cell.setting.label, cell.method.name) == (False, "ste", "example", "ste")
    assert cell.overrides == ("scale=mini", "steps=300", "estimator=ste")
    assert read.cells["noisy"].tuned_as == "fogzo"
    assert (read.cells["dropin"].search, read.cells["dropin"].points()) == ({}, [{}])
    experiment["methods"]["noisy"]["tuned_as"] = "fogz"
    with pytest.raises(ValueError, match="noisy is tuned as fogz, which is no method: choose from ste"):
        parse(experiment)


def test_standard_methods_need_only_their_names_and_can_be_refined(experiment):
    experiment["settings"] = {"wide": {"overrides": ["steps=200"]}}
    experiment["methods"] = {
        "ste": {"label": "STE, longer", "overrides": ["steps_factor=1.2"]},
        "fogzo": {"search": {"estimator.beta_min": [0.5]}},
        "fogzo_dropin": {"detail": "as it comes"},
        "slope": None,
        "noisy_ste": {"tuned_as": None},
    }
    cells = parse(experiment).cells
    assert {cell.method.name: cell.label for cell in cells.values()} == {
        "ste": "STE, longer",
        "fogzo": "FOGZO, n = 1",
        "fogzo_dropin": "FOGZO, n = 1, dropped in: as it comes",
        "slope": "control: β = 1 (measured slope, no noise)",
        "noisy_ste": "control: STE + noise of FOGZO's size",
    }
    assert cells["wide.ste"].overrides == ("scale=mini", "steps=200", "estimator=ste", "steps_factor=1.2")
    assert (cells["wide.fogzo_dropin"].search, cells["wide.fogzo_dropin"].tuned_as) == ({}, "wide.ste")
    assert cells["wide.noisy_ste"].tuned_as is None
    assert not cells["wide.ste"].method.is_control
    assert cells["wide.slope"].method.is_control


def test_confirm_runs_have_tuned_and_borrowed_values(experiment):
    found = expand(experiment, "confirm", ["cell=wide.noisy", "seed=2"])
    assert found == [["cell=wide.noisy", "scale=mini", "steps=200", "model=mlp", "estimator=noisy_ste",
                     "estimator.beta_min=0.99", "optimizer.lr=0.1"]]  # fmt: skip
    assert tuned_values(parse(experiment), parse(experiment).cells["wide.noisy"]) == {
        "estimator.beta_min": 0.99,
        "optimizer.lr": 0.1,
    }
    assert [job[-1] for job in expand(experiment, "confirm", ["cell=wide.ste"])] == ["seed=1", "seed=2"]


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
        ("tune", ["cell=ste"], "cell=ste is not in experiment example: choose one of wide.ste, wide.fogzo"),
        ("tune", ["setting=high"], "setting=high is not in experiment example: choose one of wide, deep"),
    ],
)
def test_what_the_experiment_lacks_is_refused(phase, given, message, experiment):
    with pytest.raises(ValueError, match=message):
        expand(experiment, phase, given)


def broken(experiment, path, value):
    made = copy.deepcopy(experiment)
    place = made
    for key in path[:-1]:
        place = place.setdefault(key, {})
    place[path[-1]] = value
    if value is GONE:
        del place[path[-1]]
    return made


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("seeds",), [0, 1], "experiment example: it tunes on seed 0, which its table reports too"),
        (("seeds",), ["1"], r"seeds=\['1'\] is not possible: give a list"),
        (("sedes",), [1], "experiment example: key='sedes' is not known: choose one of name, title, "),
        (("name",), GONE, "experiment: it has no name: give it one"),
        (("scale",), "huge", "scale='huge' is not known: choose one of mini, paper"),
        (("stage",), "later", "stage='later' is not known: choose one of confirm, explore"),
        (("metric",), "accurracy", "metric='accurracy' is not known: choose one of "),
        (("metric",), "mean_agreement", "metric='mean_agreement' is not known"),  # neither way is better
        (("also",), ["loss_of_hair"], "also='loss_of_hair' is not known: choose one of "),
        (("baseline",), "stee", "baseline='stee' is not known: choose one of ste, fogzo, noisy"),
        (("methods",), GONE, "it has no methods: give it one"),
        (("methods",), {}, "experiment example: it has no methods: give it some"),
        (("methods",), ["ste"], r"methods=\['ste'\] is not possible: give keys with values"),
        (("methods", "fogz"), None, "method fogz: it has no label: give it one, or take one of the standard methods"),
        (("methods", "noisy", "label"), GONE, "method noisy: it has no label: give it one"),
        (("methods", "noisy", "overrides"), GONE, "method noisy: it has no overrides: give it one"),
        (("methods", "noisy", "tuned_as"), "noisy", "noisy is tuned as noisy, which is tuned as another itself"),
        (("methods", "noisy", "role"), "helper", "method noisy: role='helper' is not known: choose one of method, con"),
        (("methods", "noisy", "sample"), 1, "method noisy: key='sample' is not known: choose one of label"),
        (("methods", "noisy", "samples"), "4", "method noisy: samples='4' is not possible: give a whole number"),
        (("settings", "deep", "methods"), ["sted"], "setting deep: methods='sted' is not known: choose one of ste"),
        (("settings", "deep", "methods"), ["noisy"], "noisy is tuned as fogzo, which its setting deep lacks"),
        (("settings", "deep", "overrides"), [1], r"setting deep: overrides=\[1\] is not possible: give a list"),
        (("settings", "deep", "search"), {"estimator.beta_min": [1]}, "estimator.beta_min is searched by none"),
        (("settings", "deep"), None, "setting deep: it is None, but it must be keys with values"),
        (("tuning",), GONE, "it has no tuning: give it one"),
        (("tuning", "trials"), 0, "tuning: trials=0 is not possible: give a whole number of at least 1"),
        (("tuning", "seed"), "zero", "tuning: seed='zero' is not possible: give a whole number"),
        (("tuning", "search", "optimizer.lr"), 0.1, r"search\.optimizer\.lr=0\.1 is not possible: give a list of numb"),
        (("tuning", "search", "optimizer.lr"), [0.2, 0.1], "give a list of numbers that rise"),
        (("tuning", "search", "optimizer.lr"), [0.1, 0.1], "give a list of numbers that rise"),
        (("tuning", "search", "optimizer.lr"), None, "give a list of numbers that rise"),  # a method may leave it alone
        (("tuning", "search", "optimizer.lr"), [], "give a list of numbers that rise"),
        (("tuning", "search", "optimizer.lr"), ["1e-3"], "give a list of numbers that rise"),  # a word to YAML 1.1
        (
            ("axes",),
            [{"label": "ε", "settings": {"vit": 1}}],
            "axes: ε needs numbers or words for some of",
        ),
        (("axes",), [{"settings": {"wide": 1}}], "axes: it has no label"),
        (("axes",), [{"label": "ε", "settings": {"wide": 1}, "metric": "los"}], "axes: metric='los' is not known"),
        (("equal_loss",), {"targets": ["deep.zz"], "ratios": []}, r"equal_loss='deep\.zz' is not known: choose one of"),
        (("equal_loss",), {"targets": [], "ratios": [{"of": "deep.ste"}]}, "equal_loss: it has no to: give it one"),
        (("equal_loss",), {"ratios": []}, "equal_loss: it has no targets: give it one"),
    ],
)
def test_mistaken_experiments_are_refused(path, value, message, experiment):
    with pytest.raises(ValueError, match=message):
        parse(broken(experiment, path, value))


def test_the_command_that_tunes_a_borrowing_cell_tunes_what_it_borrows_from_too(experiment):
    cells = parse(experiment).cells
    assert tune_command("x", cells["wide.noisy"]) == "python scripts/tune.py experiment=x cell=wide.fogzo,wide.noisy"
    experiment["methods"]["fogzo_dropin"] = None
    dropped_in = parse(experiment).cells["wide.fogzo_dropin"]
    assert tune_command("x", dropped_in) == "python scripts/tune.py experiment=x cell=wide.ste"
