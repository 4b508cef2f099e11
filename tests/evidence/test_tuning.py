"""The search of tuned values: fair, reproducible, restartable; and the command that carries it out."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from fogzo.evidence.experiment import Cell, Method, Setting
from fogzo.evidence.parse import parse
from fogzo.evidence.search import CellSearch, open_journal
from fogzo.evidence.tuning import check_own_file

ROOT = Path(__file__).resolve().parents[2]
LR = [0.001, 0.01, 0.1, 1.0]
BETA = [0.9, 0.99, 0.999, 0.9999]


def cell_of(name, search):
    return Cell(name, Setting("", "", ("ste",), "train_loss"), Method("ste", "STE"), search=search)


SMALL = cell_of("small", {"optimizer.lr": LR})
LARGE = cell_of("large", {"optimizer.lr": LR, "estimator.beta_min": BETA})


def search_of(cell, folder, **changes):
    options = {"trials": 8, "metric": "train_loss", "depends_on": ["seed=0"]} | changes
    return CellSearch(cell, storage=open_journal(folder / "journal.log"), **options)


def loss_at(point):
    """Least at a learning rate of 0.1 and β_min = 0.999."""
    return abs(math.log10(point["optimizer.lr"]) + 1) + abs(math.log10(1 - point.get("estimator.beta_min", 0.999)) + 3)


def carry_on(search, at_most=100, metric="train_loss", sign=1):
    tried = []
    while len(tried) < at_most and (trial := search.next_trial()):
        number, point = trial
        search.tell(number, {metric: sign * loss_at(point)})
        tried.append(point)
    return tried


def test_a_small_space_is_tried_completely_in_order(tmp_path):
    search = search_of(SMALL, tmp_path)
    assert carry_on(search) == [{"optimizer.lr": lr} for lr in LR]
    outcome = search.outcome()
    assert (outcome.values, outcome.on_edge_of_grid, outcome.trials) == ({"optimizer.lr": 0.1}, [], 4)
    assert outcome.tried[2] == {"values": {"optimizer.lr": 0.1}, "train_loss": pytest.approx(0)}


def test_a_large_space_gets_its_trials_and_no_point_twice(tmp_path):
    search = search_of(LARGE, tmp_path)
    tried = carry_on(search)
    assert len({json.dumps(point) for point in tried}) == len(tried) == 8
    assert search.outcome().trials == 8
    assert len(carry_on(search_of(LARGE, tmp_path, trials=15))) == 15  # all but one, still none twice


def test_the_search_finds_the_region_of_the_best_point(tmp_path):
    values = [10**-i for i in range(9, 0, -1)]
    cell = cell_of("cell", {"optimizer.lr": values, "estimator.beta_min": [0.9, 0.99, 0.999, 0.9999]})
    losses = [loss_at(point) for point in carry_on(search_of(cell, tmp_path, trials=18))]
    assert min(losses[9:]) <= 1
    assert sum(losses[9:]) < sum(losses[:9])


def test_the_same_points_come_in_the_same_order_whatever_happens_between(tmp_path):
    whole = carry_on(search_of(LARGE, tmp_path / "whole"))
    parts = carry_on(search_of(LARGE, tmp_path / "parts"), at_most=3)
    number, point = search_of(LARGE, tmp_path / "parts").next_trial()  # begun and killed
    journal = tmp_path / "parts" / "journal.log"
    journal.write_bytes(journal.read_bytes() + b'{"op_code": 5, "wor')  # killed while writing
    search = search_of(LARGE, tmp_path / "parts")
    assert search.next_trial() == (number, point)
    assert parts + carry_on(search) == whole
    assert search.next_trial() is None


def test_what_the_outcome_depends_on_starts_another_search(tmp_path):
    assert len(carry_on(search_of(SMALL, tmp_path))) == 4
    assert carry_on(search_of(SMALL, tmp_path)) == []
    assert len(carry_on(search_of(SMALL, tmp_path, depends_on=["seed=0", "steps=9"]))) == 4


def test_a_diverged_run_is_infinitely_bad_and_an_edge_is_named(tmp_path):
    search = search_of(SMALL, tmp_path)
    outcomes = [{"train_loss": 2.0}, {"train_loss": None, "status": "diverged"}, None, {"train_loss": 1.0}]
    values = [search.tell(search.next_trial()[0], outcome) for outcome in outcomes]
    assert values == [2, math.inf, math.inf, 1]
    outcome = search.outcome()
    assert (outcome.values, outcome.on_edge_of_grid) == ({"optimizer.lr": 1.0}, ["optimizer.lr"])
    hopeless = search_of(SMALL, tmp_path / "other")
    for _ in LR:
        hopeless.tell(hopeless.next_trial()[0], None)
    assert hopeless.outcome() is None


def test_accuracy_is_maximised(tmp_path):
    search = search_of(SMALL, tmp_path, metric="accuracy")
    carry_on(search, metric="accuracy", sign=-1)
    assert search.outcome().values == {"optimizer.lr": 0.1}
    assert search.outcome().tried[0] == {"values": {"optimizer.lr": 0.001}, "accuracy": pytest.approx(-2)}


def test_mistakes_are_refused(tmp_path):
    search = search_of(SMALL, tmp_path)
    with pytest.raises(ValueError, match=r"tuning\.metric=train_loss is not in the summary"):
        search.tell(search.next_trial()[0], {"accuracy": 1.0})


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


def command(folder, jobs):
    words = ["experiment=mlp_compute", "cell=ste,fogzo_1", "steps=5", "batch_size=20", f"results_dir={folder}"]
    words += [f"experiment.tuning.chosen={folder}/chosen.yaml", "--trials", "3", "--jobs", str(jobs)]
    return [sys.executable, "scripts/tune.py", *words]


def test_a_killed_tuning_goes_on_and_ends_as_with_any_number_of_workers(tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen(command(killed, 1), cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert "[1/6]" in process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    for folder, jobs in ((killed, 1), (whole, 2)):
        done = subprocess.run(command(folder, jobs), cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "[6/6]" in done.stdout
    chosen = [(folder / "chosen.yaml").read_text() for folder in (killed, whole)]
    assert chosen[0] == chosen[1]
    entries = yaml.safe_load(chosen[0])
    assert {cell: entry["trials"] for cell, entry in entries.items()} == {"ste": 3, "fogzo_1": 3}
    assert {"estimator=ste", "seed=0", "evaluate_every=0"} <= set(entries["ste"]["overrides"])
    runs = [sorted(path.name for path in (f / "runs/mlp_compute_tuning").glob("*-seed0-*")) for f in (killed, whole)]
    assert len(runs[0]) == 6
    assert runs[0] == runs[1]
    # they are the runs of the sweep
    rate = entries["ste"]["tried"][0]["values"]["optimizer.lr"]
    words = ["-m", *command(whole, 1)[2:7], "phase=tune", "cell=ste", f"optimizer.lr={rate}"]
    words.remove("cell=ste,fogzo_1")
    done = subprocess.run([sys.executable, "train.py", *words], cwd=ROOT, capture_output=True, text=True)
    assert "finished already" in done.stdout, done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="process groups as on Unix")
def test_workers_end_with_their_parent(tmp_path):
    words = [*command(tmp_path, 1), "steps=100000"]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)
    metrics = []
    while not metrics and process.poll() is None:
        metrics = list(tmp_path.rglob("metrics.jsonl"))
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.1)
    else:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail("a worker goes on without its parent")
    assert list(tmp_path.rglob("checkpoint.pt"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "say what to tune"),
        (["experiment=mlp_compute", "cell=sted"], "cell=sted is not in experiment mlp_compute: choose one of ste"),
        (["experiment=mlp_compute", "--jobs", "0"], "jobs=0 is not possible"),
        (["experiment=mlp_compute", "--trials", "0"], "trials=0 is not possible: give each cell at least 1"),
        (
            ["experiment=mlp_factors", "cell=base.ste,base.fogzo_dropin"],
            "base.fogzo_dropin searches nothing, it takes the values of base.ste: run `python scripts/tune.py "
            "experiment=mlp_factors cell=base.ste`",
        ),
        (["experiment=mlp_factors", "setting=lsq", "cell=base.ste"], "setting=lsq has no cell=base.ste"),
        (["experiment=mlp_compute", "hydra/launcher=joblib"], "hydra/launcher=joblib is for sweeps"),
        (["experiment=nonsense"], "experiment/nonsense"),
        (["experiment=mlp_compute", "steps=5"], "steps=5 would leave values in results/tuned/mlp_compute.yaml"),
        (["experiment=mlp_compute", "experiment.tuning.seed=21"], "tunes on seed 21, which its table reports too"),
    ],
)
def test_a_mistaken_command_is_refused_in_one_line(words, message, tmp_path):
    words = [sys.executable, "scripts/tune.py", *words, f"results_dir={tmp_path}"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n"), message in done.stderr) == (1, 1, True), done.stderr
