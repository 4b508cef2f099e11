"""Two gloo processes compute what one does, step by step; and they notice when they no longer do."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from helpers.cli import ROOT, Command, run
from helpers.text_helpers import write_set
from helpers.two_ranks import CASES, NORMS, normalise, train
from torch import nn

import fogzo
from fogzo.ranks import share

EQUAL = [name for name, case in CASES.items() if not case.rank_1_differs_in]
# what the ranks share makes up for a difference; or they notice it
MENDED = [name for name, case in CASES.items() if case.rank_1_differs_in == "last bits"]
NOTICED = [name for name, case in CASES.items() if case.rank_1_differs_in in ("weights", "noise")]


def trained_by_two(folder, names):
    """What either rank had of each case; the ranks start once for all of them."""
    done = run("tests/helpers/two_ranks.py", folder, *names, ranks=2)
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: [torch.load(folder / f"{name} {rank}.pt") for rank in (0, 1)] for name in names}


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


def other_tensors(one, other):
    """Steps and names of the tensors of which the two don't hold the same bits."""
    for step, (mine, its) in enumerate(zip(one["rows"], other["rows"], strict=True)):
        yield from ((step, name) for name, value in mine["state"].items() if not torch.equal(value, its["state"][name]))


def assert_equal_one_process(name, first, second):
    whole = train(CASES[name])
    assert list(other_tensors(first, second)) == []
    worst = [max(values) for values in zip(*differences(first, whole), strict=True)]
    print(f"{name}: weights {worst[0]:.1e}, loss {worst[1]:.1e}")
    assert max(worst) < 2e-5
    assert first["ledger"]["forwards"] == whole["ledger"]["forwards"]
    assert first["ledger"]["backwards"] == whole["ledger"]["backwards"]
    assert first["metrics"] == second["metrics"]
    for metric, value in whole["metrics"].items():
        assert first["metrics"][metric] == pytest.approx(value, rel=1e-5)


def assert_norm_of_one_process(name, *parts):
    whole = normalise(name)
    for key, value in whole["shared"].items():
        torch.testing.assert_close(torch.cat([part["shared"][key] for part in parts], dim=1), value)
    for key, value in whole["summed"].items():
        torch.testing.assert_close(sum(part["summed"][key] for part in parts), value)
    for part in parts:
        assert part["same"].keys() == whole["same"].keys()
        for key, value in whole["same"].items():
            torch.testing.assert_close(part["same"][key], value)


def test_two_processes_equal_one_and_mend_or_notice_what_differs(tmp_path, subtests):
    ranks = trained_by_two(tmp_path, [*EQUAL, *MENDED, *NOTICED, *NORMS])
    for name in NORMS:
        with subtests.test("batch norm", kind=name):
            assert_norm_of_one_process(name, *ranks[name])
    for name in EQUAL:
        with subtests.test(name):
            assert_equal_one_process(name, *ranks[name])
    for name in MENDED:
        with subtests.test(name):
            assert list(other_tensors(*ranks[name])) == []
    for name in NOTICED:
        for rank in (0, 1):
            with subtests.test(name, rank=rank):
                error = ranks[name][rank]["error"]
                what = "weights that it trains" if "sharing" in name else "weights, guides or noise of the probes"
                assert f"rank 1 differs from rank 0 in the {what}" in error


def test_more_ranks_than_samples_are_refused(monkeypatch):
    monkeypatch.setattr("fogzo.estimators.fogzo.world", lambda: (0, 5))
    weights = fogzo.quantized_weights(fogzo.quantize_model(nn.Sequential(nn.Linear(4, 4)), fogzo.FixedScale(2)))
    with pytest.raises(ValueError, match=r"samples=4 cannot be spread over 5 ranks: raise samples"):
        fogzo.NSPSA(weights, samples=4, spread=True)


def test_more_processes_than_samples_are_refused_in_one_line_before_data_are_read(tmp_path):
    chosen = ["estimator=nspsa", "estimator.samples=1", "parallel=probes", "device=cpu"]
    nowhere = ["data=imagenet1k", f"data.root={tmp_path / 'missing'}", f"results_dir={tmp_path / 'results'}"]
    done = run("train.py", *chosen, *nowhere, ranks=2)
    assert done.returncode == 1
    complaints = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(complaints) == 1
    assert "samples=1 cannot be spread over 2 ranks: raise samples" in complaints[0]
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
    chosen += ["batch_size=4"]  # as much as there is
    done = run(own, *chosen, f"run_dir={tmp_path / 'run'}", ranks=2)
    assert done.returncode == 1
    assert [line for line in done.stderr.splitlines() if line.startswith("error:")] == []
    (said,) = [line for line in done.stderr.splitlines() if "error: " in line and "data" in line]
    assert said.startswith(f"rank 1: error: the text set c4 in {tmp_path}/nowhere/c4 is not there")


def test_all_ranks_leave_in_peace_when_another_process_was_faster(tmp_path):
    own = tmp_path / "too_late.py"  # the run ended after both ranks had looked for it
    own.write_text(
        "import runpy\n"
        "from fogzo.training import launch\n"
        "look_up = launch.look_up\n"
        "launch.look_up = lambda cfg: look_up(cfg)._replace(summary=None)\n"
        "runpy.run_path('train.py', run_name='__main__')\n"
    )
    chosen = ["device=cpu", "threads=1", "steps=2", "evaluation_examples=10", f"run_dir={tmp_path / 'run'}"]
    assert run("train.py", *chosen, ranks=2).returncode == 0
    done = run(own, *chosen, ranks=2)
    assert (done.returncode, done.stdout.count("finished already:")) == (0, 2), done.stderr  # each rank says so


UNENDING = ["device=cpu", "threads=1", "steps=1000000", "log_every=1", "checkpoint_every=0"]


def same_step_of_both(said):
    stops = re.findall(r"stopped by SIGUSR1 after step (\d+)", said)
    return len(stops) == 2 and len(set(stops)) == 1


def test_ranks_that_get_sigusr1_save_and_stop_after_the_same_step(tmp_path):
    process = Command("train.py", *UNENDING, f"run_dir={tmp_path}", ranks=2)
    process.wait_until(lambda: logged(tmp_path))
    os.killpg(process.pid, signal.SIGUSR1)  # to what waits for the ranks too, which dies of it
    process.wait_for_its_processes()
    assert same_step_of_both(process.err), process.err
    assert (tmp_path / "checkpoint.pt").exists()


def logged(folder):
    metrics = folder / "metrics.jsonl"
    return metrics.exists() and metrics.stat().st_size > 0


@pytest.mark.slow
def test_torchrun_passes_sigusr1_on_where_it_is_told_to_as_the_pages_say(tmp_path):
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    (option,) = re.findall(r"torchrun .*(--signals-to-handle=\S+)", page)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", option]
    process = subprocess.Popen(
        [*launcher, "train.py", *UNENDING, f"run_dir={tmp_path}"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    begun = time.monotonic()
    while not logged(tmp_path):
        assert process.poll() is None
        assert time.monotonic() < begun + 120
        time.sleep(0.1)
    process.send_signal(signal.SIGUSR1)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1, said
    assert same_step_of_both(said), said
    assert (tmp_path / "checkpoint.pt").exists()


@pytest.mark.parametrize(("total", "ranks"), [(7, 2), (3, 3), (10, 4)])
def test_shares_are_in_order_whole_and_nearly_equal(total, ranks):
    shares = [share(total, rank, ranks) for rank in range(ranks)]
    assert [i for part in shares for i in part] == list(range(total))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
