"""Two gloo processes compute what one does, step by step; and they notice when they no longer do."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers.text_helpers import write_set

from fogzo.ranks import share

SCRIPT = Path(__file__).resolve().parents[1] / "helpers" / "two_ranks.py"
# estimator, quantizer, model, micro-batches, what ranks share
CASES = [
    ("ste", "fixed", "plain", 1, "data"),
    ("fogzo", "fixed", "plain", 1, "data"),
    ("nspsa", "fixed", "plain", 1, "data"),
    ("fogzo", "lsq", "plain", 2, "data"),
    ("fogzo", "lsq", "norm", 1, "data"),
    ("nspsa", "fixed", "norm", 1, "probes"),
    *(
        pytest.param(case, marks=pytest.mark.slow)
        for case in (
            ("ste", "fixed", "plain", 2, "data"),
            ("ste", "fixed", "norm", 1, "data"),
            ("fogzo_batched", "fixed", "plain", 1, "data"),
            ("fogzo", "fixed", "plain", 1, "probes"),
            ("fogzo_batched", "lsq", "plain", 1, "probes"),
        )
    ),
]


def start(ranks, out, estimator, quantizer, model, micro_batches, parallel, disagree="no"):
    out.mkdir()
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    arguments = [estimator, quantizer, model, str(micro_batches), parallel, disagree, str(out)]
    return subprocess.run(
        [*(launcher if ranks > 1 else [sys.executable]), str(SCRIPT), *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def torchrun(ranks, script, *words):
    """A script under torchrun, with the project as working directory."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    return subprocess.run(
        [*launcher, script, *words],
        cwd=SCRIPT.parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def differences(one, other):
    """The largest difference of weights and of losses, in units of their size, of each step."""
    for mine, its in zip(one["rows"], other["rows"], strict=True):
        weights = max(
            float(
                (mine["state"][name].double() - its["state"][name].double()).abs().max() / value.abs().max().clamp(1e-9)
            )
            for name, value in its["state"].items()
            if value.is_floating_point()
        )
        yield weights, abs(mine["loss"] - its["loss"]) / abs(its["loss"])


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_two_processes_equal_one(case, tmp_path):
    for ranks in (1, 2):
        done = start(ranks, tmp_path / str(ranks), *case)
        assert done.returncode == 0, done.stderr[-3000:]
    whole = torch.load(tmp_path / "1" / "0.pt")
    first, second = (torch.load(tmp_path / "2" / f"{rank}.pt") for rank in (0, 1))
    for mine, its in zip(first["rows"], second["rows"], strict=True):  # to the last bit
        assert all(torch.equal(value, its["state"][name]) for name, value in mine["state"].items())
    worst = [max(values) for values in zip(*differences(first, whole), strict=True)]
    print(f"{'-'.join(map(str, case))}: weights {worst[0]:.1e}, loss {worst[1]:.1e}")
    assert max(worst) < 2e-5
    assert first["ledger"]["forwards"] == whole["ledger"]["forwards"]
    assert first["ledger"]["backwards"] == whole["ledger"]["backwards"]
    assert first["metrics"] == second["metrics"]
    for name, value in whole["metrics"].items():
        assert first["metrics"][name] == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("estimator", ["rescaled", "phased", pytest.param("nspsa", marks=pytest.mark.slow)])
def test_processes_that_share_probes_stay_the_same_where_their_last_bits_differ(estimator, tmp_path):
    done = start(2, tmp_path / "out", estimator, "fixed", "norm", 2, "probes", "rounding")
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(tmp_path / "out" / f"{rank}.pt") for rank in (0, 1))
    for mine, its in zip(first["rows"], second["rows"], strict=True):
        assert [name for name, value in mine["state"].items() if not torch.equal(value, its["state"][name])] == []


@pytest.mark.parametrize("what", ["weights", "noise"])
def test_ranks_that_no_longer_agree_stop_with_a_message(what, tmp_path):
    done = start(2, tmp_path / "out", "fogzo", "fixed", "plain", 1, "data", what)
    assert done.returncode != 0
    assert "rank 1 differs from rank 0 in the weights, guides or noise of the probes" in done.stderr


def test_more_ranks_than_samples_are_refused(tmp_path):
    done = start(5, tmp_path / "out", "nspsa", "fixed", "plain", 1, "probes")
    assert done.returncode != 0
    assert "samples=4 cannot be spread over 5 ranks: raise samples" in done.stderr


def test_more_processes_than_samples_are_refused_in_one_line_before_data_are_read(tmp_path):
    chosen = ["estimator=nspsa", "estimator.samples=2", "parallel=probes", "device=cpu"]
    nowhere = ["data=imagenet1k", f"data.root={tmp_path / 'missing'}", f"results_dir={tmp_path / 'results'}"]
    done = torchrun(3, "train.py", *chosen, *nowhere)
    assert done.returncode == 1
    complaints = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(complaints) == 1
    assert "samples=2 cannot be spread over 3 ranks: raise samples" in complaints[0]
    assert not list(tmp_path.iterdir())


def test_an_error_that_only_one_rank_meets_is_said_with_its_rank(tmp_path):
    write_set(tmp_path / "here" / "c4")
    own = tmp_path / "own_data.py"  # as on two nodes, of which the second lacks the data
    own.write_text(
        "import os, runpy, sys\n"
        f"place = {str(tmp_path)!r} + ('/here', '/nowhere')[int(os.environ['RANK'])]\n"
        "sys.argv[1:1] = ['data.root=' + place]\n"
        "runpy.run_path('train.py', run_name='__main__')\n"
    )
    chosen = ["model=llama_mini", "data=c4", "data.sequence=8", "steps=2", "estimator=ste", "device=cpu"]
    done = torchrun(2, str(own), *chosen, f"run_dir={tmp_path / 'run'}")
    assert done.returncode == 1
    assert [line for line in done.stderr.splitlines() if line.startswith("error:")] == []
    (said,) = [line for line in done.stderr.splitlines() if "error: " in line and "data" in line]
    assert said.startswith(f"rank 1: error: the text set c4 in {tmp_path}/nowhere/c4 is not there")


def test_torchrun_passes_sigusr1_on_where_it_is_told_to_as_the_pages_say(tmp_path):
    page = (SCRIPT.parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    (option,) = re.findall(r"torchrun .*(--signals-to-handle=\S+)", page)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", option]
    length = ["device=cpu", "threads=1", "steps=1000000", "log_every=1", "checkpoint_every=0", f"run_dir={tmp_path}"]
    run = subprocess.Popen(
        [*launcher, "train.py", *length],
        cwd=SCRIPT.parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics, begun = tmp_path / "metrics.jsonl", time.monotonic()
    while run.poll() is None and time.monotonic() < begun + 120 and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.1)
    run.send_signal(signal.SIGUSR1)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 1, said
    stops = re.findall(r"stopped by SIGUSR1 after step (\d+)", said)
    assert len(stops) == 2
    assert len(set(stops)) == 1
    assert (tmp_path / "checkpoint.pt").exists()


@pytest.mark.parametrize(("total", "ranks"), [(7, 2), (3, 3), (10, 4)])
def test_shares_are_in_order_whole_and_nearly_equal(total, ranks):
    shares = [share(total, rank, ranks) for rank in range(ranks)]
    assert [i for part in shares for i in part] == list(range(total))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
