"""Tuning: the command that carries searches out, killed and started again, and what it refuses."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from fogzo.evidence.parse import parse
from fogzo.evidence.tuning import check_own_file

ROOT = Path(__file__).resolve().parents[2]


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
    words += [
        f"experiment.tuning.chosen={folder}/chosen.yaml",
        "+experiment.tuning.other_seeds=[9]",
        "--trials",
        "2",
        "--jobs",
        str(jobs),
    ]
    return [sys.executable, "scripts/tune.py", *words]


def test_a_killed_tuning_goes_on_and_ends_as_with_any_number_of_workers(tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen(command(killed, 1), cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert "[1/4]" in process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    for folder, jobs in ((killed, 1), (whole, 2)):
        done = subprocess.run(command(folder, jobs), cwd=ROOT, capture_output=True, text=True)
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
        (
            ["experiment=mlp_compute", "cell=sted"],
            "cell of experiment mlp_compute='sted' is not known: choose one of ste",
        ),
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
