"""Tuning: the command that carries searches out, killed and started again, and what it refuses."""

import errno
import os
import signal

import pytest
import yaml
from helpers.cli import Command, run

from fogzo.errors import UserError
from fogzo.evidence.chosen import Choice, write_chosen
from fogzo.evidence.parse import parse
from fogzo.evidence.tuning import check_own_file


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
        (["experiment=mlp_compute", "steps=5"], "steps=5 would leave values in results/tuned/mlp_compute.yaml"),
        (["experiment=mlp_compute", "experiment.tuning.seed=21"], "tunes on seed 21, which its table reports too"),
    ],
)
def test_a_mistaken_command_is_refused_in_one_line(given, message, tmp_path):
    done = run("scripts/tune.py", *given, f"results_dir={tmp_path}")
    assert (done.returncode, done.stderr.count("\n"), message in done.stderr) == (1, 1, True), done.stderr
