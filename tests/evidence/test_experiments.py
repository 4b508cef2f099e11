"""Experiments as files describe them, their cells as the overrides of runs, what is refused; and every file."""

import copy
import functools
import re
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from fogzo.evidence.chosen import (
    other_starts,
    start_values,
    tune_command,
    tuned_values,
    tuning_fault,
    tuning_faults,
    whole_commands,
)
from fogzo.evidence.jobs import expand
from fogzo.evidence.parse import parse, read_experiment
from fogzo.evidence.tuning import tune
from fogzo.runs.files import read_yaml
from fogzo.training.record import plain_record, run_path

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
EXPERIMENTS = sorted(file.stem for file in (CONFIGS / "experiment").glob("*.yaml"))
GONE = object()  # a value to take away
EXAMPLE = {
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
    made = copy.deepcopy(EXAMPLE)
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
    assert (cell.setting.name, cell.name, cell.setting.label, cell.method.name) == ("", "ste", "example", "ste")
    assert cell.overrides == ("scale=mini", "steps=300", "estimator=ste")
    assert read.cells["noisy"].tuned_as == "fogzo"
    assert (read.cells["dropin"].search, read.cells["dropin"].points()) == ({}, [{}])
    experiment["methods"]["noisy"]["tuned_as"] = "fogz"
    with pytest.raises(ValueError, match="noisy is tuned as='fogz' is not known: choose one of ste"):
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
        (("seeds",), [], r"seeds=\[\] is not possible: give one or more, each once"),
        (("settings", "deep", "seeds"), [1, 1], r"seeds=\[1, 1\] is not possible: give one or more, each once"),
        (("seeds",), ["1"], "seeds.0='1' is not possible: Input should be a valid integer"),
        (("sedes",), [1], "experiment example: sedes is not known: choose one of name, title, "),
        (("name",), GONE, "experiment: name is missing: give it"),
        (("scale",), "huge", "scale='huge' is not possible: Input should be 'mini' or 'paper'"),
        (("exploratory",), "no", "exploratory='no' is not possible: Input should be a valid boolean"),
        (("metric",), "accurracy", "metric='accurracy' is not known: choose one of "),
        (("metric",), "mean_agreement", "metric='mean_agreement' is not known"),  # neither way is better
        (("also",), ["loss_of_hair"], "also: metric='loss_of_hair' is not known: choose one of "),
        (("baseline",), "stee", "baseline='stee' is not known: choose one of ste, fogzo, noisy"),
        (("methods",), GONE, "it has no methods: give it some"),
        (("methods",), {}, "experiment example: it has no methods: give it some"),
        (("methods",), ["ste"], r"methods is \['ste'\], but it must be keys with values"),
        (("methods", "fogz"), None, "method fogz has no label: give it one, or take a standard method"),
        (("methods", "noisy", "label"), GONE, "method noisy has no label: give it one"),
        (("methods", "noisy", "overrides"), GONE, "method noisy has no overrides: give it one"),
        (("methods", "noisy", "tuned_as"), "noisy", "noisy is tuned as noisy, which is tuned as another itself"),
        (
            ("methods", "noisy", "role"),
            "helper",
            "methods.noisy.role='helper' is not possible: Input should be 'method', 'subject' or 'con",
        ),
        (("methods", "noisy", "sample"), 1, "methods.noisy.sample is not known: choose one of name, label"),
        (
            ("methods", "noisy", "samples"),
            "4",
            "methods.noisy.samples='4' is not possible: Input should be a valid integer",
        ),
        (
            ("settings", "deep", "start_from"),
            "ste",
            "start_from of setting deep=ste is not possible: name a method that",
        ),
        (("settings", "wide", "start_from"), "noisy", "start_from of setting wide=noisy is not possible: name a meth"),
        (
            ("settings", "wide", "start_also"),
            {"optimizer.lr": [0.1]},
            "start_also of setting wide needs start_from: na",
        ),
        (("settings", "deep", "methods"), ["sted"], "methods of setting deep='sted' is not known: choose one of ste"),
        (("settings", "deep", "methods"), ["ste", "noisy"], "noisy is tuned as='fogzo' is not known: choose one"),
        (
            ("settings", "deep", "overrides"),
            [1],
            "settings.deep.overrides.0=1 is not possible: Input should be a valid string",
        ),
        (
            ("settings", "deep", "search"),
            {"estimator.beta_min": [1]},
            "what setting deep searches='estimator.beta_min' is not known",
        ),
        (
            ("settings", "deep", "methods"),
            [],
            "methods of setting deep lack the baseline ste, they are none: name it too",
        ),
        (("settings", "deep", "methods"), ["fogzo"], "deep lack the baseline ste, they are fogzo: name it too"),
        (("methods", "ste", "overrides"), "steps=5", "overrides of method ste is steps=5, but it must be a list"),
        (("methods", "ste", "overrides"), None, "overrides of method ste is None, but it must be a list"),
        (("methods", "ste", "search"), None, "search of method ste is None, but it must be keys with values"),
        (("settings", "deep"), None, "setting deep is None, but it must be keys with values"),
        (("tuning",), GONE, "tuning is missing: give it"),
        (("tuning", "trials"), 0, "tuning.trials=0 is not possible: Input should be greater than or equal to 1"),
        (("tuning", "seed"), "zero", "tuning.seed='zero' is not possible: Input should be a valid integer"),
        (
            ("tuning", "search", "optimizer.lr"),
            0.1,
            r"search\.optimizer\.lr=0\.1 is not possible: Input should be a valid array",
        ),
        (("tuning", "search", "optimizer.lr"), [0.2, 0.1], "give numbers that rise"),
        (("tuning", "search", "optimizer.lr"), [0.1, 0.1], "give numbers that rise"),
        (("tuning", "search", "optimizer.lr"), None, "Input should be a valid array"),  # a method may leave it alone
        (("tuning", "search", "optimizer.lr"), [], "give numbers that rise"),
        (("tuning", "search", "optimizer.lr"), ["1e-3"], "Input should be a valid"),  # a word to YAML 1.1
        (
            ("axes",),
            [{"label": "ε", "settings": {"vit": 1}}],
            "axes: ε='vit' is not known: choose one of wide",
        ),
        (("axes",), [{"settings": {"wide": 1}}], "axes.0.label is missing"),
        (("axes",), [{"label": "ε", "settings": {"wide": 1}, "metric": "los"}], "axes.0: metric='los' is not known"),
        (("equal_loss",), {"targets": ["deep.zz"], "ratios": []}, r"equal_loss='deep\.zz' is not known: choose one of"),
        (
            ("equal_loss",),
            {"targets": [], "ratios": [{"of": "deep.ste"}]},
            "equal_loss.ratios.0.to is missing: give it",
        ),
        (("equal_loss",), {"ratios": []}, "equal_loss.targets is missing: give it"),
    ],
)
def test_mistaken_experiments_are_refused(path, value, message, experiment):
    with pytest.raises(ValueError, match=message):
        parse(broken(experiment, path, value))


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
        borrowed = {key: value for key, value in borrowed.items() if key not in cell.search}
        start = chosen[cell.start_from]["values"] if cell.start_from else {}
        others = other_starts(start, cell.setting.start_also)
        first, *rest = cell.points()
        rest.sort(key=lambda point: not any(other.items() <= point.items() for other in others))
        tried = [{"values": point} for point in [first, *rest][: experiment.tuning.trials]]
        chosen[cell.name] = {"values": tried[0]["values"], "tried": tried, "borrowed": borrowed, "start": start}
    (tmp_path / "chosen.yaml").write_text(yaml.safe_dump(chosen))
    jobs = expand(experiment, phase, [])
    places = sum(len(cell.points()) for cell in cells.values())
    runs = sum(len(cell.setting.seeds) for cell in cells.values())
    assert len(jobs) == (places * len(experiment.tuning.seeds) if phase == "tune" else runs)
    first_of_each_cell = {job[0]: job for job in reversed(jobs)}
    # composing takes 0.15 s: cells that show every setting and every method are enough, and of tuning one cell
    shown, seen = [], set()
    for fewest in (2, 1):
        for cell in cells.values():
            new = {("setting", cell.setting.name), ("method", cell.method.name)} - seen
            if len(new) >= fewest:
                shown.append(f"cell={cell.name}")
                seen |= new
    names = shown if phase == "confirm" else shown[:1]
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
    assert not searched or trials == {experiment.tuning.trials}  # the same number for every cell
    assert experiment.tuning.chosen == f"results/tuned/{name}.yaml"
    for command in re.findall(r"^#   (python \S+.*?)(?:   .*)?$", text, re.MULTILINE):
        assert f"experiment={name}" in command
        assert (CONFIGS.parent / command.split()[1]).exists()
    if experiment.table is not None:
        paper = read_yaml(CONFIGS.parent / "results/paper/numbers.yaml")[experiment.table]
        assert {"setting", "claim", "source"} <= paper.keys()
        rows = {row for setting in experiment.settings.values() for row in setting.paper}
        assert rows <= paper["rows"].keys()
        assert rows or "" in experiment.settings
        values = [value for row in paper["rows"].values() for value in (row, *row.values()) if isinstance(value, dict)]
        assert {value.get("direction", "better") for value in values} <= {"better", "worse"}


REPEATS = [name for name in EXPERIMENTS if read_experiment(CONFIGS / "experiment" / f"{name}.yaml").repeats]


@pytest.mark.parametrize("name", REPEATS)
def test_what_repeats_an_experiment_has_its_tuned_values_and_other_seeds(name):
    repeated = read_experiment(CONFIGS / "experiment" / f"{name}.yaml")
    first = read_experiment(CONFIGS / "experiment" / f"{repeated.repeats}.yaml")
    tuned = read_yaml(CONFIGS.parent / first.tuning.chosen)
    assert not set(repeated.seeds) & {*first.seeds, *first.tuning.seeds}
    for cell in repeated.cells.values():
        values = tuned[cell.tuned_as or cell.name]["values"]
        assert {f"{key}={value}" for key, value in values.items()} <= set(cell.overrides)
        assert set(first.cells[cell.name].overrides) <= set(cell.overrides)


def expanded(experiment, phase, given):
    return expand(parse(experiment), phase, given)


def test_confirm_runs_have_tuned_and_borrowed_values(experiment):
    found = expanded(experiment, "confirm", ["cell=wide.noisy", "seed=2"])
    assert found == [["cell=wide.noisy", "scale=mini", "steps=200", "model=mlp", "estimator=noisy_ste",
                     "estimator.beta_min=0.99", "optimizer.lr=0.1"]]  # fmt: skip
    assert tuned_values(parse(experiment), parse(experiment).cells["wide.noisy"]) == {
        "estimator.beta_min": 0.99,
        "optimizer.lr": 0.1,
    }
    assert [job[-1] for job in expanded(experiment, "confirm", ["cell=wide.ste"])] == ["seed=1", "seed=2"]


def test_a_setting_may_have_seeds_of_its_own_all_of_which_its_table_reports(experiment):
    experiment["settings"]["wide"]["seeds"] = [1, 2, 3]
    assert [job[-1] for job in expanded(experiment, "confirm", ["cell=wide.ste"])] == ["seed=1", "seed=2", "seed=3"]
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
    found = expanded(experiment, "confirm", ["cell=wide.dropin"])
    assert [job[-2:] for job in found] == [["optimizer.lr=0.1", f"seed={seed}"] for seed in (1, 2)]
    Path(experiment["tuning"]["chosen"]).unlink()
    with pytest.raises(ValueError, match=r"no tuned values for wide\.ste"):
        expanded(experiment, "confirm", ["cell=wide.dropin"])


def test_values_that_were_tuned_without_a_second_start_are_stale_where_the_trials_reach_it(experiment):
    experiment["settings"]["wide"] |= {"start_from": "ste", "start_also": {"optimizer.lr": [0.2]}}
    experiment["tuning"]["search"] = {"optimizer.lr": [0.1, 0.2, 0.4]}
    file = Path(experiment["tuning"]["chosen"])
    entries = yaml.safe_load(file.read_text())
    cell = parse(experiment).cells["wide.fogzo"]
    points = [point for point in cell.points() if point["optimizer.lr"] != 0.2]
    for trials, said in ((2, None), (3, "tuned without a start at optimizer.lr=0.2, where the experiment now has one")):
        tried = [{"values": point} for point in points[:trials]]
        entries["wide.fogzo"] |= {"values": points[0], "tried": tried, "start": {"optimizer.lr": 0.1}}
        file.write_text(yaml.safe_dump(entries))
        experiment["tuning"]["trials"] = trials
        assert tuning_fault(parse(experiment), cell) == said


def test_searches_of_a_setting_may_start_from_a_method_whose_tuned_values_they_then_rest_on(experiment):
    experiment["settings"]["wide"]["start_from"] = "ste"
    cells = parse(experiment).cells
    assert {cell.name for cell in cells.values() if cell.start_from == "wide.ste"} == {"wide.fogzo"}  # it has a knob
    stale = r"tuned from nothing on, .* now starts from optimizer\.lr=0\.1.* cell=wide\.fogzo"
    with pytest.raises(ValueError, match=stale):
        expanded(experiment, "confirm", ["cell=wide.fogzo"])
    file = Path(experiment["tuning"]["chosen"])
    entries = yaml.safe_load(file.read_text())
    entries["wide.fogzo"]["start"] = {"optimizer.lr": 0.1}
    file.write_text(yaml.safe_dump(entries))
    assert len(expanded(experiment, "confirm", ["cell=wide.fogzo"])) == 2
    del entries["wide.fogzo"]["start"]
    entries["wide.fogzo"]["tried"] = [{"values": point} for point in cells["wide.fogzo"].points()]
    file.write_text(yaml.safe_dump(entries))
    experiment["tuning"]["trials"] = 4  # enough for all of its points, so that it starts nowhere
    assert tuning_faults(parse(experiment), parse(experiment).cells["wide.fogzo"]) == {}
    experiment["tuning"]["trials"] = 2
    entries["wide.ste"] |= {"values": {"optimizer.lr": 5}}
    file.write_text(yaml.safe_dump(entries))
    with pytest.raises(ValueError, match=r"whose optimizer\.lr=5 is not among .* first run .* cell=wide\.ste x=1`"):
        start_values(parse(experiment), cells["wide.fogzo"], ["x=1"])
    experiment["methods"]["fogzo"]["search"]["optimizer.lr"] = [0.1, 0.4]
    with pytest.raises(
        ValueError, match=r"starts from wide\.ste, which may choose optimizer\.lr=0\.2, but does not search"
    ):
        parse(experiment)
    experiment["settings"]["wide"]["start_also"] = {"optimizer.lr": [0.3]}
    experiment["methods"]["fogzo"]["search"]["optimizer.lr"] = [0.1, 0.2]
    with pytest.raises(
        ValueError, match=r"start_also of setting wide: optimizer\.lr=0\.3 is not known: choose one of 0"
    ):
        parse(experiment)
    experiment["settings"]["wide"]["start_also"] = {"estimator.beta_min": [0.99]}
    with pytest.raises(
        ValueError, match=r"start_also of setting wide='estimator\.beta_min' is not known: choose one of"
    ):
        parse(experiment)
    experiment["settings"]["wide"]["start_from"] = "stee"
    with pytest.raises(ValueError, match="start_from of setting wide='stee' is not known: choose one of ste"):
        parse(experiment)


def test_tuning_runs_try_every_point_on_the_tuning_seed(experiment):
    found = expanded(experiment, "tune", ["setting=wide"])
    assert len(found) == 2 + 4 + 2
    assert all(job[-2:] == ["log_every=9", "seed=0"] for job in found)
    assert all("estimator.beta_min=0.99" in job for job in found if job[0] == "cell=wide.noisy")
    experiment["tuning"]["other_seeds"] = [5]
    assert {job[-1] for job in expanded(experiment, "tune", ["setting=wide"])} == {"seed=0", "seed=5"}


def test_an_experiment_is_planned_before_it_is_tuned_with_as_many_points_as_tuning_tries(experiment):
    Path(experiment["tuning"]["chosen"]).unlink()
    trials = expanded(experiment, "tune", ["setting=wide", "plan=true"])
    assert len(trials) == 2 + 2 + 2  # of FOGZO's 4 points too
    table = expanded(experiment, "confirm", ["setting=wide", "plan=true"])
    assert len(table) == 3 * 2
    assert all(any(word.startswith("optimizer.lr=") for word in job) for job in table)


def test_what_is_given_wins_and_makes_tuning_needless(experiment):
    assert expanded(experiment, "confirm", ["cell=deep.ste", "optimizer.lr=5", "seed=7"]) == [
        ["cell=deep.ste", "scale=mini", "steps=300", "model=deit_mini", "estimator=ste"]
    ]
    with pytest.raises(ValueError, match=r"no tuned values for deep\.ste: first run `python scripts/tune\.py exp"):
        expanded(experiment, "confirm", ["cell=deep.ste"])


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
        expanded(experiment, "confirm", ["cell=wide.ste"])
    assert expanded(experiment | {"tuning": experiment["tuning"] | {"trials": 1}}, "confirm", ["cell=wide.ste"])
    assert expanded(experiment, "confirm", ["cell=wide.ste", "optimizer.lr=0.1"])
    retune(experiment, "wide.ste", tried=[])
    with pytest.raises(ValueError, match=r"first run `[^`]*`$"):  # no number of trials would make it fit
        expanded(experiment, "confirm", ["cell=wide.ste"])
    retune(experiment, "wide.ste", tried=one, given=["steps=5"])
    with pytest.raises(ValueError, match=r"first run `[^`]*`$"):
        expanded(experiment, "confirm", ["cell=wide.ste"])


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
        expanded(experiment, "confirm", ["cell=wide.noisy"])


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
    assert expanded(experiment, "confirm", ["cell=deep.ste", "seed=1"])


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
        expanded(experiment, phase, given)


def test_the_command_that_tunes_a_cell_tunes_what_it_rests_on_too_where_that_needs_it(experiment):
    experiment["methods"]["fogzo_dropin"] = None
    experiment["settings"]["wide"]["start_from"] = "ste"
    read = parse(experiment)

    def cells(name):
        command = tune_command(read, read.cells[name])
        return command.removeprefix("python scripts/tune.py experiment=example cell=").split(",")

    assert cells("wide.noisy") == ["wide.fogzo", "wide.noisy"]  # FOGZO's search does not begin at the STE's values
    assert cells("wide.fogzo") == ["wide.fogzo"]
    assert cells("wide.fogzo_dropin") == ["wide.ste"]  # which is all that there is
    Path(experiment["tuning"]["chosen"]).unlink()
    assert cells("wide.fogzo") == ["wide.ste", "wide.fogzo"]
    assert whole_commands(read)[0].endswith("experiment=example")


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
        expanded(experiment, "confirm", asked)
    with pytest.raises(ValueError, match=re.escape(f"first run `{command} experiment.tuning.trials=9`")):
        expanded(experiment, "confirm", [asked[0], "experiment.tuning.trials=9"])
    with pytest.raises(ValueError, match=re.escape(f"first run `{command} steps=5 {file}`")):
        expanded(experiment, "tune", asked)
    with pytest.raises(ValueError, match=re.escape(f"run `{command} steps=5 {file}`")):
        tune(parse(experiment), Path("results"), asked, jobs=1)
