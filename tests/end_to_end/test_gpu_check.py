"""What has to hold on a GPU, there and on the CPU; and the cost table at sizes for which any machine has the time."""

import json
import subprocess
import sys
from functools import partial

import pytest
import torch
from helpers.cli import ROOT, run_alone

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, GPU])]


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import bench_gpu
    import gpu_check
    import gpu_checks

    return gpu_checks, gpu_check, bench_gpu


def names():
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(str(ROOT / "scripts"))
        import gpu_checks
    return list(gpu_checks.CHECKS)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", names())
def test_it_holds(name, device, scripts):
    check = scripts[0].CHECKS[name]
    if name.startswith("compile") and device == "cpu":
        check = partial(check, backend="aot_eager")  # no C++ is compiled: seconds less
    assert check(torch.device(device))


TINY = {
    "DeiT": ("model=deit_mini", "data.image=[3,32,32]", "model.image_size=32"),
    "LLaMA": ("model=llama_mini", "data.sequence=16", "data.vocabulary=64", "model.vocabulary=64"),
}


def test_the_cost_table_has_a_row_for_each_network_and_estimator(scripts):
    _, check, bench = scripts
    small = ("batch_size=2", "micro_batches=1", "precision=fp32")
    rows = bench.measure(torch.device("cpu"), TINY, 0.0, *small, ways=[False])
    assert [row.note for row in rows] == [""] * 8
    assert all(row.seconds > 0 and row.kernels > 100 and row.utilisation > 0 for row in rows)
    limits = {row.estimator: row.flop_limit for row in rows}
    assert limits["ste"] == 1
    assert 1 < limits["one_sided"] < limits["fogzo"] < 1.75
    assert abs(bench.PAPERS_RATIO - 1.58) < 0.005
    text = bench.page(rows, check.machine(torch.device("cpu")))
    assert text.count("\n| DeiT | ") == text.count("\n| LLaMA | ") == 4
    assert json.loads(json.dumps([row._asdict() for row in rows]))[0]["network"] == "DeiT"


def test_a_row_that_does_not_fit_says_so_and_the_others_stay(scripts, monkeypatch):
    _, _, bench = scripts

    def full(*overrides):
        raise torch.OutOfMemoryError("CUDA out of memory.\nmore")

    monkeypatch.setattr(bench, "of_recipe", full)
    rows = bench.measure(torch.device("cpu"), TINY, 0.0)
    assert len(rows) == 2 * 2 * 4
    assert {row.note for row in rows} == {"CUDA out of memory."}
    assert "not run: CUDA out of memory." in bench.page(rows, {"card": "none"})


ALONE = """
import sys
import torch
from scripts import gpu_check
names = ["trains fogzo, lsq", "trains fogzo batched, quest", "bf16 autocast", "kill and resume, fogzo", "two ranks"]
gpu_check.CHECKS = {name: gpu_check.CHECKS[name] for name in names}
outcomes = gpu_check.run_checks(torch.device("cpu"))
sys.exit(any(one["outcome"] != "passed" for one in outcomes))
"""


def test_the_checks_need_torch_alone_and_no_make():
    done = run_alone(ALONE)
    assert (done.returncode, done.stdout.count("passed")) == (0, 5), done.stdout + done.stderr
    plain = subprocess.run([sys.executable, "-m", "scripts.gpu_check"], cwd=ROOT, capture_output=True, text=True)
    if not torch.cuda.is_available():
        assert (plain.returncode, plain.stdout.count("no CUDA device is here")) == (1, 1), plain.stderr


def test_without_a_gpu_the_command_says_so(scripts, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert scripts[1].main([]) == 1
    assert capsys.readouterr().out.startswith("no CUDA device is here")


def test_a_check_that_fails_is_named_and_the_others_run(scripts, monkeypatch, capsys):
    def broken(device):
        raise AssertionError("a weight has moved")

    monkeypatch.setattr(scripts[1], "CHECKS", {"broken": broken, "fine": lambda device: "bit for bit"})
    outcomes = scripts[1].run_checks(torch.device("cpu"))
    assert [one["outcome"] for one in outcomes] == ["FAILED", "passed"]
    assert "FAILED  broken: AssertionError: a weight has moved" in capsys.readouterr().out
