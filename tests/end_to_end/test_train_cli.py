"""``python train.py``: runs that are killed, stopped, finished or mistaken, and sweeps."""

import contextlib
import io
import itertools
import json
import random
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from helpers.checks import assert_refused
from helpers.cli import ROOT, Command, run_script

import fogzo.data
from fogzo.errors import UserError
from fogzo.runs.records import add, drop, read_records

LSQ = "quantizer=lsq"
NO_PARAMETERS = ("floor", "_extra_state")
TIME_AND_PLACE = {"seconds", "cpu_seconds", "data_seconds", "peak_memory_bytes", "git_commit", "git_dirty", "digest"}


def words(folder, *overrides):
    defaults = ["steps=400", "batch_size=20", "log_every=5", "evaluate_every=50", "checkpoint_every=20"]
    defaults += ["evaluation_examples=200", "progress=lines", "threads=1"]
    return ["train.py", *defaults, *overrides, f"run_dir={folder}"]


def run_to_the_end(folder, *overrides):
    """A run in a process of its own; returns what it printed."""
    done = Command(*words(folder, *overrides)).wait()
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_here(folder, *overrides):
    """A run to its end in this process; returns what it printed."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert run_script(*words(folder, *overrides)) == 0
    return out.getvalue()


def interrupt(number, after_step, folder, *overrides):
    """Send a signal once the metrics have reached a step; returns the exit code and what the run complained."""
    process, metrics = Command(*words(folder, *overrides)), folder / "metrics.jsonl"

    def reached():
        with contextlib.suppress(OSError, IndexError, ValueError):  # no row yet, or half of one
            return json.loads(metrics.read_text().splitlines()[-1])["step"] >= after_step

    process.wait_until(reached)
    if process.poll() is None:
        process.send_signal(number)
    done = process.wait()
    assert not (folder / "summary.json").exists(), "the run ended before the signal: give it more steps"
    return done.returncode, done.stderr


def result(folder):
    """All that a run leaves behind, times and memory left out: (summary, rows, weights)."""
    lines = [(folder / "summary.json").read_text(), *(folder / "metrics.jsonl").read_text().splitlines()]
    summary, *rows = [{k: v for k, v in json.loads(line).items() if k not in TIME_AND_PLACE} for line in lines]
    return summary, rows, torch.load(folder / "model.pt", weights_only=True)


def assert_same_result(folder, expected):
    (*records, model), (*records_expected, model_expected) = result(folder), result(expected)
    assert records == records_expected
    assert model.keys() == model_expected.keys()
    assert all(torch.equal(model[name], tensor) for name, tensor in model_expected.items())


def contents(folder):
    files = [file for file in folder.rglob("*") if file.is_file() and file.name != ".lock"]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run: (its folder, what it printed)."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, run_here(folder, LSQ)


def test_a_finished_run_leaves_its_record(whole):
    folder, out = whole
    summary, rows, model = result(folder)
    assert {"config.yaml", "metrics.jsonl", "summary.json", "model.pt"} == set(contents(folder))
    assert [row["step"] for row in rows] == list(range(5, 401, 5))
    assert [row["step"] for row in rows if "accuracy" in row] == list(range(50, 401, 50))
    needed = {"step", "loss", "forwards", "backwards", "flops", "forward_equivalents", "examples"}
    assert all(row.keys() >= needed for row in rows)
    assert all(0 < row["crossings"] < 7960 for row in rows), "of the probes of one pair, in the step that is logged"
    assert summary["mean_crossings"] == pytest.approx(sum(row["crossings"] for row in rows) / len(rows))
    assert summary.keys() >= {"accuracy", "train_loss", "seed", "scale", "data", "versions", "status"}
    assert json.loads((folder / "summary.json").read_text()).keys() >= TIME_AND_PLACE
    assert (
        summary["parameters"] == sum(t.numel() for name, t in model.items() if not name.endswith(NO_PARAMETERS)) == 7964
    )
    assert (summary["forwards"], summary["backwards"], summary["examples"]) == (1200, 400, 8000)
    assert "mini (embedded data and a short run, not the paper's setting)" in out
    assert f"result:   {folder}" in out


def test_a_finished_run_says_so_and_changes_nothing(whole):
    folder, _ = whole
    before = contents(folder)
    out = run_here(folder, LSQ)
    assert out.startswith("finished already: test accuracy")
    assert str(folder) in out
    assert contents(folder) == before


def test_a_run_killed_at_a_random_step_ends_where_the_unkilled_one_ends(whole, tmp_path):
    code, _ = interrupt(signal.SIGKILL, random.randrange(30, 350), tmp_path / "run", LSQ)
    assert code == -signal.SIGKILL
    assert "going on from step" in run_here(tmp_path / "run", LSQ)
    assert_same_result(tmp_path / "run", whole[0])


@pytest.mark.slow
@pytest.mark.parametrize("quantizer", ["fixed", "lsq"])
@pytest.mark.parametrize("estimator", ["ste", "fogzo", "nspsa"])
def test_a_run_killed_again_and_again_ends_where_the_unkilled_one_ends(estimator, quantizer, tmp_path):
    overrides = (f"estimator={estimator}", f"quantizer={quantizer}", "steps=1000")
    run_to_the_end(tmp_path / "whole", *overrides)
    for at in sorted(random.sample(range(10, 900), 3)):
        code, _ = interrupt(signal.SIGKILL, at, tmp_path / "run", *overrides)
        assert code == -signal.SIGKILL
    run_to_the_end(tmp_path / "run", *overrides)
    assert_same_result(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize(
    "overrides",
    [
        ("model=resnet_mini", "estimator=fogzo", "batch_size=16"),
        ("model=deit_mini", "estimator=ste", "quantizer=lsq", "activations=lsq", "batch_size=16"),
        ("model=llama_mini", "estimator=fogzo", "quantizer=quest", "activations=quest", "batch_size=2"),
    ],
    ids=lambda overrides: overrides[0],
)
def test_every_family_stopped_at_random_ends_where_the_whole_run_ends(overrides, number, tmp_path):
    overrides = (*overrides, "steps=60", "evaluate_every=0", "evaluation_tokens=1024", "log_every=5")
    run_to_the_end(tmp_path / "whole", *overrides)
    for at in sorted(random.sample(range(5, 50), 2)):
        code, _ = interrupt(number, at, tmp_path / "run", *overrides)
        assert code == (-signal.SIGKILL if number == signal.SIGKILL else 143)
    run_to_the_end(tmp_path / "run", *overrides)
    assert_same_result(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGUSR2"), reason="no such signal here")
def test_a_job_of_submitit_that_reaches_its_time_limit_goes_on_where_it_was(tmp_path):
    launcher = ("hydra/launcher=local", "hydra.launcher.timeout_min=1")  # the signal comes 30 seconds before
    run = ["threads=1", "batch_size=20", "steps=20000", "log_every=1000", "evaluate_every=0", "checkpoint_every=0"]
    run += ["spike_factor=0"]
    command = [sys.executable, "train.py", "-m", *launcher, *run, f"results_dir={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    printed = "".join(file.read_text() for file in (tmp_path / "sweeps").rglob("*.out"))
    steps = [int(step) for step in re.findall(r"going on from step (\d+)\)", printed)]  # saved by the signal alone
    assert steps == sorted(steps) != []
    (folder,) = (tmp_path / "runs").iterdir()
    assert [row["step"] for row in result(folder)[1]] == list(range(1000, 20001, 1000))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The same run with W&B, stopped by SIGTERM and started again: (folder, code, complaint, output, W&B ids)."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    code, err = interrupt(signal.SIGTERM, 100, folder, LSQ, "logger=wandb")
    first_id = (folder / "wandb_id").read_text()
    out = run_to_the_end(folder, LSQ, "logger=wandb")
    return folder, code, err, out, {first_id, (folder / "wandb_id").read_text()}


def test_a_stopped_run_exits_with_143_and_ends_where_the_unstopped_one_ends(stopped, whole):
    folder, code, err, out, _ = stopped
    assert (code, "Traceback" in err) == (143, False)
    step = re.search(r"stopped by SIGTERM after step (\d+); the same command goes on from there", err)[1]
    assert f"(going on from step {step})" in out
    assert_same_result(folder, whole[0])


def test_wandb_stays_offline_and_goes_on_with_the_same_run(stopped):
    folder, *_, ids = stopped
    (only,) = ids
    mirrors = [path.parent.name for path in (folder / "wandb").rglob("*.wandb")]
    assert mirrors
    assert all(name.startswith("offline-run-") and name.endswith(only.strip()) for name in mirrors)


BAD = {  # overrides: what the message names
    "quantizer.bits=9": ["bits=9", "1 to 8"],
    "+quantizer.clip=true": ["quantizer.clip", "quantizer=fixed"],
    "estimator.beta_min=1.5": ["beta_min=1.5", "[0, 1]"],
    "estimator.samples=0": ["samples=0", "at least 1"],
    "+estimator.sampels=2": ["estimator.sampels", "did you mean estimator.samples"],
    "quantizer=none": ["quantizer=none", "estimator=ste"],
    "quantize.skip=[heads]": ["'heads'", "hidden, head"],
    "quantize.bits={hidn:4}": ["'hidn'", "hidden, head"],
    "quantize.bits={hidden:9}": ["quantize.bits=9", "1 to 8"],
    "quantize.bits=3": ["quantize.bits=3", "patterns of layers"],
    "quantize.bits={hidden:2} quantizer=sign": ["quantize.bits", "quantizer=sign"],
    "device=nonsense": ["device=nonsense", "auto or cpu"],
    "threads=-1": ["threads=-1"],
    "seed={a:1}": ["seed={'a': 1}", "give one value"],
    "deterministic=perhaps": ["deterministic='perhaps'", "true or false"],
    "steps=0": ["steps=0", "at least 1"],
    "steps=ten": ["steps='ten'"],
    "batch_size=4001": ["batch_size=4001", "1 to 4000"],
    "steps=null": ["steps and epochs"],
    "micro_batches=3": ["micro_batches=3", "batch_size=20"],
    "optimizer.lr=-1": ["optimizer.lr=-1"],
    "+optimizer.betta=1": ["optimizer.betta", "optimizer=sgd"],
    "optimizer.momentum=99999999999999999999": ["optimizer.momentum=99999999999999999999", "smaller"],
    "schedule.shape=step": ["shape='step'", "cosine"],
    "progress=dots": ["progress='dots'", "lines"],
    "logger=wandb logger.mode=cloud": ["logger.mode='cloud'", "offline"],
    "run_dir=/proc/run": ["/proc/run", "cannot be written", "run_dir="],
    "results_dir=null": ["results_dir=None", "give text"],
    "results_dir=''": ["results_dir=''", "give text"],
    "model.hidden=-3": ["model.hidden=-3", "whole number from 1"],
    "threads=100000": ["threads=100000", "from 0 to 1024"],
    "~optimizer": ["optimizer"],
    "hydra/launcher=3": ["hydra/launcher=3", "local, slurm"],
    "begin_from=.": ["begin_from=.", "is a folder"],
    "results_dir=file": ["file/runs", "cannot be written", "results_dir="],
}


@pytest.mark.parametrize("overrides", BAD)
def test_a_bad_value_gives_one_clear_line_and_code_1_before_training(overrides, train, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert_refused(train(*overrides.split()), *BAD[overrides])
    assert not list(tmp_path.rglob("metrics.jsonl")) + list(tmp_path.rglob("summary.json"))
    assert (tmp_path / "file").read_text() == "mine"


UNKNOWN = {  # overrides: what the message names
    "model=resnet99": ["model=resnet99", "choose one of", "did you mean resnet"],
    "quantizer=null": ["quantizer=null is not known", "choose one of fixed, lsq"],
    "quantizer=lqs": ["quantizer=lqs", "did you mean lsq?"],
    "estimator.sampels=2": ["estimator.sampels", "did you mean estimator.samples?"],
    "estimatr=ste": ["estimatr", "did you mean estimator?"],
    "beta_min=0.9": ["beta_min", "did you mean estimator.beta_min?"],
    "experiment=mlp_compute": ["experiment=mlp_compute", "python train.py -m experiment=mlp_compute"],
    "setting=wide": ["setting=wide", "-m experiment=NAME setting=wide"],
    "epochs=1": ["steps=20 and epochs=1", "steps=null epochs=1"],
}


@pytest.mark.parametrize("overrides", UNKNOWN)
def test_what_no_config_knows_is_refused_by_name_with_what_was_meant(overrides, train, tmp_path):
    assert_refused(train(*overrides.split()), *UNKNOWN[overrides])
    assert not (tmp_path / "results").exists()


def test_an_existing_run_is_neither_changed_nor_overwritten(train, tmp_path):
    run = tmp_path / "run"
    assert train("run_dir=run", "seed=3")[0] == 0
    assert {path.name for path in tmp_path.iterdir()} == {"run"}  # nor is anything written beside it
    for prepare, overrides, named in [
        (lambda: None, ["seed=4", LSQ], "seed: 3 → 4"),
        ((run / "summary.json").unlink, ["optimizer.lr=0.5"], "optimizer.lr: 0.03 → 0.5"),
        (lambda: (run / "checkpoint.pt").write_bytes(b"mine"), [], "checkpoint.pt cannot be read"),
        ((run / "config.yaml").unlink, [], "no config.yaml"),
    ]:
        prepare()
        before = contents(run)
        assert_refused(train("run_dir=run", "seed=3", *overrides), "run", named)
        assert contents(run) == before


@pytest.mark.parametrize("overrides", ["evaluate_every=0", "evaluate_every=1", "steps=1"])
def test_a_run_that_diverges_says_so_each_time_and_exits_with_1(overrides, train, tmp_path):
    for _ in range(2):
        answer = train("quantizer=none", "estimator=ste", "optimizer.lr=1e30", *overrides.split())
        assert_refused(answer, "optimizer.lr", by="diverged: ")
    (summary,) = tmp_path.rglob("summary.json")
    assert json.loads(summary.read_text())["status"] == "diverged"


def test_a_refused_checkpoint_to_begin_from_leaves_the_folder_to_the_mended_command(train):
    assert_refused(train("run_dir=run", "begin_from=nowhere.pt"), "begin_from=nowhere.pt", "is not there")
    assert train("run_dir=run")[0] == 0


def test_a_finished_run_whose_weights_are_gone_says_how_to_get_them(train, tmp_path):
    assert train("run_dir=run", "keep_best=true")[0] == 0
    assert "note:" not in train("run_dir=run", "keep_best=true")[1]
    (tmp_path / "run" / "model.pt").unlink()
    (tmp_path / "run" / "best.pt").unlink()
    code, out, _ = train("run_dir=run", "keep_best=true")
    assert (code, out.startswith("finished already")) == (0, True)
    assert "note:     model.pt and best.pt not kept here: with run/summary.json removed, the same command" in out
    (tmp_path / "run" / "summary.json").unlink()
    assert train("run_dir=run", "keep_best=true")[0] == 0
    assert {"model.pt", "best.pt"} <= set(contents(tmp_path / "run"))


def test_a_terminal_that_knows_ascii_alone_reads_greek_letters_spelt_out(train, monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", out)
        code, _, err = train("plan=true")
    assert (code, err) == (0, "")
    out.seek(0)
    assert "ratio" in (text := out.read())
    assert "at beta_min = " in text


def test_a_sweep_checks_all_jobs_before_the_first_starts(train, tmp_path):
    answer = train("quantizer.bits=2,99,3", flags=["-m"])
    assert_refused(answer, "1 of 3 jobs will not do, and none was started", "quantizer.bits=99: ", "1 to 8")
    answer = train("estimator=ste,foo", flags=["-m"])
    assert_refused(answer, "1 of 2 jobs will not do", "estimator=foo is not known: choose one of control_variate")
    answer = train("estimator=ste,fogzo", "estimator.samples=4", flags=["-m"])
    assert_refused(answer, "1 of 2 jobs will not do", "estimator=ste: estimator.samples is no key of", "=fogzo, ")
    assert "+" not in answer[2]  # Hydra's own advice: what is appended nothing reads
    answer = train("hydra/launcher=slurm", flags=["-m"])
    assert_refused(answer, "needs SLURM", "hydra/launcher=local")
    assert not list(tmp_path.rglob("config.yaml"))


def test_a_sweep_ends_with_a_line_for_each_job_and_names_each_that_failed_at_once_and_at_the_end(
    train, tmp_path, monkeypatch
):
    real = fogzo.data.mnist5k
    unread = itertools.count()

    def lost(*given, **named):
        if next(unread) in (1, 2):
            raise UserError("the disk is gone")
        return real(*given, **named)

    monkeypatch.setattr(fogzo.data, "mnist5k", lost)
    code, out, err = train("seed=0,1,2,3", "estimator=ste", flags=["-m"])
    assert (code, "Traceback" in err) == (1, False), err
    assert [re.sub(r"\(.*\)", "(...)", line) for line in err.splitlines()] == [
        "job 1 (...): error: the disk is gone",
        "job 2 (...): error: the disk is gone",
        "error: 2 of 4 jobs failed",
        "  seed=1: the disk is gone",
        "  seed=2: the disk is gone",
    ]
    rows = out.splitlines()[-5:]
    assert rows[0] == "sweep:    4 jobs"
    assert [row.split()[:2] for row in rows[1:]] == [
        ["seed=0", "test"],
        ["seed=1", "failed"],
        ["seed=2", "failed"],
        ["seed=3", "test"],
    ]
    assert sorted(json.loads(file.read_text())["seed"] for file in tmp_path.rglob("summary.json")) == [0, 3]


def test_a_sweep_with_plan_adds_up_what_its_jobs_would_take(train):
    code, out, err = train("estimator=ste,fogzo", "steps=7", "plan=true", flags=["-m"])
    assert code == 0, err
    each = [float(found) for found in re.findall(r"^compute: +(\S+) FLOPs", out, re.MULTILINE)]
    total, *rows = out.splitlines()[-3:]
    assert re.sub(r"planned \S+ FLOPs", "planned ... FLOPs", total) == "sweep:    2 jobs, planned ... FLOPs in all"
    assert float(total.split()[4]) == pytest.approx(sum(each), rel=0.01)
    assert [float(row.split()[1]) for row in rows] == pytest.approx(each, rel=0.01)


def test_a_sweep_with_plan_does_not_plan_what_is_finished(train):
    assert train("estimator=ste", "steps=7")[0] == 0
    code, out, err = train("estimator=ste,fogzo", "steps=7", "plan=true", flags=["-m"])
    assert code == 0, err
    (each,) = re.findall(r"^compute: +(\S+) FLOPs", out, re.MULTILINE)
    total, *rows = out.splitlines()[-3:]
    assert total == f"sweep:    2 jobs, planned {float(each):.3g} FLOPs for what is not finished"
    assert [row.split()[0] for row in rows] == ["estimator=ste", "estimator=fogzo"]
    assert "test accuracy" in rows[0]


@pytest.fixture
def experiment(tmp_path):
    chosen = {cell: {"values": {"optimizer.lr": 0.1}} for cell in ("ste", "slope")}
    (tmp_path / "chosen.yaml").write_text(yaml.safe_dump(chosen))
    return ["experiment=mlp_compute", "experiment.tuning.chosen=chosen.yaml", "steps=5"]


def test_an_experiment_runs_its_cells_once(train, experiment, tmp_path):
    runs = tmp_path / "results" / "runs" / "mlp_compute"
    code, out, err = train(*experiment, "cell=ste,slope", "seed=1,2", flags=["-m"])
    assert (code, out.count("finished: ")) == (0, 4), err
    before = contents(runs)
    costs = [json.loads(text) for name, text in before.items() if name.endswith("summary.json")]
    found = {(summary["cell"], summary["seed"], summary["forwards"]) for summary in costs}
    assert found == {("ste", 1, 5), ("ste", 2, 5), ("slope", 1, 15), ("slope", 2, 15)}
    code, out, _ = train(*experiment, "cell=ste,slope", "seed=1,2", flags=["-m"])
    assert (code, out.count("finished already"), contents(runs)) == (0, 4, before)


UNREADY = [("cell=unheard_of", "ste, nspsa_1"), ("cell=nspsa_1", "tune.py"), ("phase=rehearse", "confirm or tune")]


@pytest.mark.parametrize(("override", "named"), UNREADY)
def test_a_sweep_that_cannot_start_says_why_in_one_line(override, named, train, experiment):
    assert_refused(train(*experiment, override, flags=["-m"]), override.partition("=")[2], named)


def test_a_sweep_into_a_place_that_cannot_be_written_is_refused(train):
    assert_refused(train("seed=0,1", "results_dir=/proc/runs", flags=["-m"]), "/proc/runs", "results_dir=")


def test_a_run_that_claims_a_cell_is_what_the_cell_says(train, experiment, tmp_path):
    code, _, _ = train(*experiment, "cell=ste", "seed=1")  # without -m: it runs as the cell says, or is refused
    estimators = [yaml.safe_load(file.read_text())["estimator"]["name"] for file in tmp_path.rglob("config.yaml")]
    assert (code, estimators) in [(0, ["ste"]), (1, [])]


def test_a_packed_run_is_found_finished_and_runs_again_with_the_same_result_once_it_is_dropped(train, experiment):
    results, words = Path("results"), [*experiment, "cell=ste,slope", "seed=1"]
    assert train(*words, flags=["-m"])[0] == 0
    assert len(add(results).new) == 2
    shutil.rmtree(results / "runs")
    file = results / "records/mlp_compute.jsonl"
    before = {name: run.summary for name, run in read_records(file).runs.items()}
    _, out, err = train(*words, flags=["-m"])
    assert out.count("finished already") == 2, err
    assert f"result:   {file}, line 1" in out
    (dropped,) = drop(results, lambda run: run.config["cell"] == "ste")
    _, out, err = train(*words, flags=["-m"])
    assert (out.count("finished already"), out.count("finished: ")) == (1, 1), err
    assert add(results).new == [dropped.name]
    after = {name: run.summary for name, run in read_records(file).runs.items()}
    assert list(after) == list(before)
    for name, summary in before.items():
        same = {key: value for key, value in summary.items() if key not in TIME_AND_PLACE}
        assert same == {key: value for key, value in after[name].items() if key not in TIME_AND_PLACE}
