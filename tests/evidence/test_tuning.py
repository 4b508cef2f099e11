"""Tuning: a cell's search, fair and reproducible; the command, killed and started again; and what it refuses."""

import errno
import json
import math
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import pytest
import yaml
from helpers.cli import Command, run

from fogzo.errors import UserError
from fogzo.evidence.chosen import Choice, skipped, tuning_faults, write_chosen
from fogzo.evidence.experiment import Cell, Method, Setting
from fogzo.evidence.parse import parse
from fogzo.evidence.search import CellSearch
from fogzo.evidence.tuning import check_own_file, tune

LR = [0.001, 0.01, 0.1, 1.0]
BETA = [0.9, 0.99, 0.999, 0.9999]


def cell_of(name, search):
    return Cell(name, Setting("", "", ("ste",), "train_loss", (1,)), Method("ste", "STE"), search=search)


SMALL = cell_of("small", {"optimizer.lr": LR})
LARGE = cell_of("large", {"optimizer.lr": LR, "estimator.beta_min": BETA})


def search_of(cell, **changes):
    return CellSearch(cell, **{"trials": 8, "metric": "train_loss", "depends_on": ["seed=0"]} | changes)


def loss_at(point):
    """Least at a learning rate of 0.1 and β_min = 0.999."""
    return abs(math.log10(point["optimizer.lr"]) + 1) + abs(math.log10(1 - point.get("estimator.beta_min", 0.999)) + 3)


def carry_on(search, at_most=100, metric="train_loss", sign=1):
    tried = []
    while len(tried) < at_most and (point := search.next_point()):
        search.tell(point, {metric: sign * loss_at(point)})
        tried.append(point)
    return tried


def test_a_small_space_is_tried_completely_in_order():
    search = search_of(SMALL)
    assert carry_on(search) == [{"optimizer.lr": lr} for lr in LR]
    outcome = search.outcome()
    assert (outcome.values, outcome.on_edge_of_grid, outcome.trials) == ({"optimizer.lr": 0.1}, [], 4)
    assert outcome.tried[2] == {"values": {"optimizer.lr": 0.1}, "train_loss": pytest.approx(0)}


def test_a_large_space_gets_its_trials_and_no_point_twice():
    search = search_of(LARGE)
    tried = carry_on(search)
    assert len({json.dumps(point) for point in tried}) == len(tried) == 8
    assert search.outcome().trials == 8
    assert len(carry_on(search_of(LARGE, trials=15))) == 15  # all but one, still none twice


def test_the_search_finds_the_region_of_the_best_point():
    values = [10**-i for i in range(9, 0, -1)]
    cell = cell_of("cell", {"optimizer.lr": values, "estimator.beta_min": [0.9, 0.99, 0.999, 0.9999]})
    losses = [loss_at(point) for point in carry_on(search_of(cell, trials=18))]
    assert min(losses[9:]) <= 1
    assert sum(losses[9:]) < sum(losses[:9])


def test_the_same_points_come_in_the_same_order_of_what_the_outcome_depends_on():
    whole, search = carry_on(search_of(LARGE)), search_of(LARGE)
    assert carry_on(search, at_most=3) + carry_on(search) == whole
    assert search.next_point() is None
    assert carry_on(search_of(LARGE, depends_on=["seed=0", "steps=9"])) != whole


def places_tried(start, best, trials=13):
    """Where a search on a line of 12 rates goes from a start to the best, after the knob's values at the start."""
    rates = [float(place) for place in range(12)]
    cell = cell_of("cell", {"optimizer.lr": rates, "estimator.beta_min": BETA})
    search = search_of(cell, start={"optimizer.lr": float(start)}, trials=trials)
    tried = []
    while (point := search.next_point()) is not None:
        away = abs(point["optimizer.lr"] - best) + 10 * (point["estimator.beta_min"] != 0.999)
        search.tell(point, {"train_loss": away})
        tried.append((point["optimizer.lr"], point["estimator.beta_min"]))
    assert tried[:4] == [(start, beta) for beta in BETA]
    assert {beta for _, beta in tried[4:6]} == {0.999}
    return [rate for rate, _ in tried[4:]], search.outcome()


def test_a_search_with_a_start_tries_the_whole_knob_there_then_brackets_the_best_rate_and_closes_the_bracket():
    tried, outcome = places_tried(2, best=8)
    assert tried[:6] == [3, 5, 9, 11, 7, 8]  # upward in steps that double, beyond the best; then what lies between
    assert (outcome.values["optimizer.lr"], outcome.start, outcome.on_edge_of_grid) == (8, {"optimizer.lr": 2}, [])
    assert places_tried(6, best=1)[0][:5] == [7, 4, 0, 2, 1]
    assert places_tried(5, best=5)[0][:4] == [6, 3, 4, 4]  # and then neighbours of the best, nearest first
    assert places_tried(11, best=11)[1].on_edge_of_grid == ["optimizer.lr"]


def test_an_edge_of_a_search_with_a_start_is_one_of_what_was_tried():
    outcome = places_tried(2, best=5, trials=6)[1]
    assert (outcome.values["optimizer.lr"], outcome.on_edge_of_grid) == (5, ["optimizer.lr"])
    assert places_tried(2, best=5, trials=8)[1].on_edge_of_grid == []
    assert len(carry_on(search_of(LARGE, start={"optimizer.lr": 1.0}, trials=15))) == 15


def test_a_search_with_several_starts_tries_the_whole_knob_at_each_and_then_the_neighbours_of_the_best():
    cell = cell_of("cell", {"optimizer.lr": [float(place) for place in range(12)], "estimator.beta_min": BETA})
    search = search_of(cell, start={"optimizer.lr": 2.0}, start_also={"optimizer.lr": [8.0, 2.0]}, trials=10)
    tried = []
    while (point := search.next_point()) is not None:
        tried.append((point["optimizer.lr"], point["estimator.beta_min"]))
        search.tell(point, {"train_loss": abs(tried[-1][0] - 9) + (tried[-1][1] != 0.999)})
    assert tried[:8] == [(rate, beta) for rate in (2, 8) for beta in BETA]
    assert tried[8:] == [(7, 0.999), (9, 0.999)]
    assert (search.outcome().values["optimizer.lr"], search.outcome().start) == (9, {"optimizer.lr": 2})


def test_a_value_beside_the_best_that_a_search_with_a_start_left_out_is_named():
    cell = cell_of("cell", {"optimizer.lr": [float(place) for place in range(12)], "estimator.beta_min": BETA})
    tried, outcome = places_tried(5, best=5, trials=6)
    assert tried == [6, 3]
    assert skipped(cell, outcome) == {"optimizer.lr": [4.0]}
    assert skipped(cell, places_tried(5, best=5, trials=7)[1]) == {}  # the bracket is closed
    elsewhere = [*outcome.tried, {"values": {"optimizer.lr": 7.0, "estimator.beta_min": 0.9}}]
    best = {"optimizer.lr": 6.0, "estimator.beta_min": 0.999}
    assert skipped(cell, replace(outcome, values=best, tried=elsewhere)) == {"optimizer.lr": [7.0]}
    assert skipped(cell, places_tried(2, best=3, trials=5)[1]) == {}  # an edge
    assert skipped(cell, places_tried(2, best=7, trials=8)[1]) == {"optimizer.lr": [6.0, 8.0]}
    assert skipped(cell_of("cell", {"optimizer.lr": [0.5]}), outcome) == {}  # of another grid


def test_a_diverged_run_is_infinitely_bad_and_an_edge_is_named():
    search = search_of(SMALL)
    outcomes = [{"train_loss": 2.0}, {"train_loss": None, "status": "diverged"}, None, {"train_loss": 1.0}]
    values = [search.tell(search.next_point(), outcome) for outcome in outcomes]
    assert values == [2, math.inf, math.inf, 1]
    outcome = search.outcome()
    assert (outcome.values, outcome.on_edge_of_grid) == ({"optimizer.lr": 1.0}, ["optimizer.lr"])
    hopeless = search_of(SMALL)
    for _ in LR:
        hopeless.tell(hopeless.next_point(), None)
    assert hopeless.outcome() is None


@pytest.mark.parametrize(
    ("key", "values", "best", "edges"),
    [
        ("estimator.beta_min", [0.999, 0.9999, 1.0], 1.0, []),
        ("estimator.beta_min", [0.999, 0.9999, 0.99999], 0.99999, ["estimator.beta_min"]),
        ("estimator.sigma", [0.0, 0.5, 1.0], 0.0, []),
        ("estimator.sigma", [0.0, 0.5, 1.0], 1.0, ["estimator.sigma"]),
        ("estimator.delta", [0.0, 0.5, 1.0], 1.0, []),
    ],
)
def test_the_end_of_a_keys_range_is_no_edge_since_no_grid_goes_on_there(key, values, best, edges):
    search = search_of(cell_of("closed", {key: values}))
    for value in values:
        search.tell(search.next_point(), {"train_loss": abs(value - best)})
    assert search.outcome().on_edge_of_grid == edges


def test_a_trial_on_several_seeds_counts_by_its_mean_and_not_at_all_where_one_has_diverged():
    search = search_of(SMALL)
    outcomes = [({"train_loss": 2.0}, {"train_loss": 1.0}), ({"train_loss": 0.5}, None)]
    assert [search.tell(search.next_point(), *seeds) for seeds in outcomes] == [1.5, math.inf]


def test_accuracy_is_maximised():
    search = search_of(SMALL, metric="accuracy")
    carry_on(search, metric="accuracy", sign=-1)
    assert search.outcome().values == {"optimizer.lr": 0.1}
    assert search.outcome().tried[0] == {"values": {"optimizer.lr": 0.001}, "accuracy": pytest.approx(-2)}


def test_mistakes_are_refused():
    search = search_of(SMALL)
    with pytest.raises(ValueError, match=r"tuning\.metric=train_loss is not in the summary"):
        search.tell(search.next_point(), {"accuracy": 1.0})


def test_values_of_other_trials_go_over_the_tables_own_with_a_note_and_of_a_changed_config_not_at_all(capsys):
    tuning = {"seed": 0, "trials": 12, "chosen": "x.yaml"}
    experiment = parse({"name": "x", "seeds": [1], "methods": {"ste": None}, "tuning": tuning})
    for quiet in ([], 12), (["experiment=x", "progress=false", "device=cpu"], 12):
        check_own_file(experiment, *quiet)
    assert capsys.readouterr().err == ""
    check_own_file(experiment, [], 3)
    assert "note: x.yaml will hold values of 3 trials, where the experiment asks for 12" in capsys.readouterr().err
    with pytest.raises(
        ValueError, match=r"steps=5 would leave values in x\.yaml .* with experiment\.tuning\.chosen=FILE"
    ):
        check_own_file(experiment, ["experiment=x", "steps=5"], 12)


def test_a_full_disk_is_said_with_the_file_of_chosen_values_that_it_leaves_as_it_was(tmp_path, monkeypatch):
    file = tmp_path / "chosen.yaml"
    tuning = {"seed": 0, "trials": 1, "chosen": str(file)}
    experiment = parse({"name": "x", "seeds": [1], "methods": {"ste": None}, "tuning": tuning})
    (cell,) = experiment.cells.values()
    write_chosen(experiment, cell, Choice({"optimizer.lr": 0.1}, [], 1, []))
    before = file.read_bytes()

    def full(path, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("fogzo.evidence.chosen.atomic_write", full)
    with pytest.raises(
        UserError, match=r"chosen\.yaml cannot be written \(No space left on device\): make room, and tune"
    ):
        write_chosen(experiment, cell, Choice({"optimizer.lr": 0.2}, [], 1, []))
    assert file.read_bytes() == before


@pytest.fixture
def quick(tmp_path, monkeypatch):
    """An experiment whose chains are two long, and threads that train at once: the loss is least at a rate of 2."""
    search = {"optimizer.lr": [1.0, 2.0, 3.0]}
    methods = {"ste": None, "noisy_ste": None, "fogzo": {"search": {"estimator.beta_min": [0.9, 0.99, 0.999]}}}
    tuning = {"seed": 0, "other_seeds": [5], "trials": 5, "search": search, "chosen": str(tmp_path / "chosen.yaml")}
    settings = {"one": {"label": "One", "start_from": "ste"}}
    made = {"name": "quick", "seeds": [1], "methods": methods, "settings": settings, "tuning": tuning}
    trained = []

    def train(overrides):
        trained.append(list(overrides))
        rate = float(next(word.partition("=")[2] for word in overrides if word.startswith("optimizer.lr=")))
        return quick.outcome(rate, overrides)

    quick = SimpleNamespace(
        experiment=parse(made), trained=trained, outcome=lambda rate, _: {"train_loss": abs(rate - 2)}
    )
    monkeypatch.setattr("fogzo.evidence.tuning.workers.pool", ThreadPoolExecutor)
    monkeypatch.setattr("fogzo.evidence.tuning.workers.run", train)
    return quick


@pytest.mark.timeout(30)
def test_a_search_that_starts_from_another_may_go_on_to_values_beyond_that_ones(quick, tmp_path):
    whole = (0.25, 0.5, 1.0, 2.0, 3.0)
    fogzo = quick.experiment.methods["fogzo"]
    wider = replace(fogzo, search={**fogzo.search, "optimizer.lr": whole})
    made = replace(quick.experiment, methods={**quick.experiment.methods, "fogzo": wider})
    quick.outcome = lambda rate, given: {"train_loss": abs(rate - (0.25 if "estimator=fogzo" in given else 1))}
    tune(made, tmp_path, ["cell=one.ste,one.fogzo"], jobs=1)
    chosen = yaml.safe_load((tmp_path / "chosen.yaml").read_text())
    assert chosen["one.fogzo"]["start"] == chosen["one.ste"]["values"] == {"optimizer.lr": 1.0}
    assert chosen["one.fogzo"]["values"]["optimizer.lr"] == 0.25  # none that the STE may try


@pytest.mark.timeout(30)
@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("order", ["one.noisy_ste,one.fogzo,one.ste", "one.ste,one.noisy_ste,one.fogzo"])
def test_each_search_waits_for_those_it_rests_on_however_they_are_named(quick, jobs, order, tmp_path):
    stale = Choice({"optimizer.lr": 3.0}, [], 3, [{"values": {"optimizer.lr": 3.0}}])
    write_chosen(quick.experiment, quick.experiment.cells["one.ste"], stale)
    tune(quick.experiment, tmp_path, [f"cell={order}"], jobs=jobs)
    chosen = yaml.safe_load((tmp_path / "chosen.yaml").read_text())
    assert (chosen["one.ste"]["values"], chosen["one.fogzo"]["start"]) == ({"optimizer.lr": 2.0}, {"optimizer.lr": 2.0})
    assert chosen["one.noisy_ste"]["borrowed"] == {"estimator.beta_min": 0.9}
    assert len(quick.trained) == 2 * (3 + 3 + 5)  # two seeds; FOGZO's knob at the start, and two rates beside it
    assert tuning_faults(quick.experiment, quick.experiment.cells["one.noisy_ste"]) == {}


@pytest.mark.timeout(30)
def test_where_all_trials_of_the_start_diverge_nothing_starts_from_an_older_value(quick, tmp_path):
    write_chosen(quick.experiment, quick.experiment.cells["one.ste"], Choice({"optimizer.lr": 3.0}, [], 3, []))
    quick.outcome = lambda rate, overrides: None
    with pytest.raises(UserError, match=r"every trial of one\.ste has diverged"):
        tune(quick.experiment, tmp_path, ["cell=one.ste,one.fogzo"], jobs=2)
    assert len(quick.trained) == 2 * 3


def test_a_start_that_was_not_tuned_is_said_with_the_command_that_tunes_it(quick, tmp_path):
    with pytest.raises(UserError, match=r"no tuned values for one\.ste: first run `.* cell=one\.ste experiment\.x=y "):
        tune(quick.experiment, tmp_path, ["cell=one.fogzo", "experiment.x=y", "experiment.tuning.chosen=z"], jobs=1)


def words(folder, jobs):
    given = ["experiment=mlp_compute", "cell=ste,fogzo_1", "steps=5", "batch_size=20", f"results_dir={folder}"]
    own = [f"experiment.tuning.chosen={folder}/chosen.yaml", "+experiment.tuning.other_seeds=[9]"]
    return [*given, *own, "--trials", "2", "--jobs", str(jobs)]


def test_a_killed_tuning_goes_on_and_ends_as_with_any_number_of_workers(tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = Command("scripts/tune.py", *words(killed, 1))
    process.wait_until(lambda: "[1/4]" in process.out)
    process.send_signal(signal.SIGKILL)
    assert process.wait().returncode == -signal.SIGKILL
    for folder, jobs in ((killed, 1), (whole, 2)):
        done = run("scripts/tune.py", *words(folder, jobs))
        assert done.returncode == 0, done.stderr
        assert "[4/4]" in done.stdout
    chosen = [(folder / "chosen.yaml").read_text() for folder in (killed, whole)]
    assert chosen[0] == chosen[1]
    entries = yaml.safe_load(chosen[0])
    assert {cell: entry["trials"] for cell, entry in entries.items()} == {"ste": 2, "fogzo_1": 2}
    assert {"estimator=ste", "seed=0,9", "evaluate_every=0"} <= set(entries["ste"]["overrides"])
    runs = [sorted(path.name for path in (f / "runs/mlp_compute_tuning").glob("*-seed[09]-*")) for f in (killed, whole)]
    assert len(runs[0]) == 8
    assert runs[0] == runs[1]
    # they are the runs of the sweep
    rate = entries["ste"]["tried"][0]["values"]["optimizer.lr"]
    given = [word for word in words(whole, 1)[:-4] if not word.startswith("cell=")]
    done = run("train.py", "-m", *given, "phase=tune", "cell=ste", f"optimizer.lr={rate}")
    assert "finished already" in done.stdout, done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="process groups as on Unix")
def test_workers_end_with_their_parent(tmp_path):
    process = Command("scripts/tune.py", *words(tmp_path, 1), "steps=100000")
    process.wait_until(lambda: list(tmp_path.rglob("metrics.jsonl")))
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.wait_for_its_processes()
    assert list(tmp_path.rglob("checkpoint.pt"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "say what to tune"),
        (
            ["experiment=mlp_compute", "cell=sted"],
            "cell of experiment mlp_compute='sted' is not known: choose one of ste",
        ),
        (["experiment=mlp_compute", "--jobs", "0"], "jobs=0 is not possible"),
        (["experiment=mlp_compute", "--trials", "0"], "trials=0 is not possible: give each cell at least 1"),
        (
            ["experiment=mlp_factors", "cell=base.ste,base.fogzo_dropin"],
            "base.fogzo_dropin searches nothing, it takes the values of base.ste: run `python scripts/tune.py "
            "experiment=mlp_factors cell=base.ste results_dir=",
        ),
        (["experiment=mlp_factors", "setting=lsq", "cell=base.ste"], "setting=lsq has no cell=base.ste"),
        (["experiment=mlp_compute", "hydra/launcher=joblib"], "hydra/launcher=joblib is for sweeps"),
        (["experiment=nonsense"], "experiment/nonsense"),
        (
            ["experiment=mlp_compute", "plan=true"],
            "`python train.py -m experiment=mlp_compute phase=tune plan=true results_dir=",
        ),
        (["experiment=mlp_compute", "steps=5"], "steps=5 would leave values in results/tuned/mlp_compute.yaml"),
        (["experiment=mlp_compute", "experiment.tuning.seed=21"], "tunes on seed 21, which its table reports too"),
    ],
)
def test_a_mistaken_command_is_refused_in_one_line(given, message, tmp_path):
    done = run("scripts/tune.py", *given, f"results_dir={tmp_path}")
    assert (done.returncode, done.stderr.count("\n"), message in done.stderr) == (1, 1, True), done.stderr
