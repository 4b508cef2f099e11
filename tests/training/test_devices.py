"""Runs of a sweep that go on at the same time have a GPU each (made up: there is none where tests run)."""

import os
import subprocess
import tempfile
import threading
from contextlib import ExitStack

import pytest
import torch
from helpers.cli import Command
from helpers.configs import composed
from helpers.trainers import make

from fogzo.errors import UserError
from fogzo.runs.identity import identity
from fogzo.training import checkpoint, devices, launch
from fogzo.training.closure import BatchClosure
from fogzo.training.devices import choose_device, exclusive_gpu, settle
from fogzo.training.launch import same_start, train


@pytest.fixture
def taken(tmp_path, monkeypatch):
    """Two GPUs; the numbers of those that were chosen, in turn."""
    chosen = []
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(devices, "gpus", lambda: ["GPU-a", "GPU-b"])
    monkeypatch.setattr(devices, "WAIT", 0.01)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    return chosen


def test_runs_at_the_same_time_have_different_gpus_and_give_them_back(taken):
    with exclusive_gpu(), exclusive_gpu():
        assert taken == [0, 1]
    with exclusive_gpu():
        with exclusive_gpu():
            pass
        with exclusive_gpu():
            pass
    assert taken == [0, 1, 0, 1, 1]
    with pytest.raises(ZeroDivisionError), exclusive_gpu():
        print(1 / 0)
    with exclusive_gpu():
        assert taken[5:] == [0, 0]


def test_a_run_that_finds_no_free_gpu_waits_for_one(taken, capsys):
    first, second = ExitStack(), ExitStack()
    first.enter_context(exclusive_gpu()), second.enter_context(exclusive_gpu())

    def run():
        with exclusive_gpu():
            pass

    late = threading.Thread(target=run)
    late.start()
    late.join(0.1)
    assert late.is_alive()
    second.close()
    late.join(10)
    assert taken == [0, 1, 1]
    assert capsys.readouterr().out.count("waiting for one of 2 GPUs") == 1
    first.close()


def test_another_process_that_dies_leaves_its_gpu(taken, tmp_path):
    script, told = tmp_path / "other.py", tmp_path / "told"
    script.write_text(
        "import os, pathlib, time\n"
        "from fogzo.training import devices\n"
        "devices.gpus = lambda: ['GPU-a', 'GPU-b']\n"
        "devices.torch.cuda.set_device = print\n"
        "taken = devices.exclusive_gpu()\n"
        "taken.__enter__()\n"
        "print('has it', flush=True)\n"
        f"while not pathlib.Path({str(told)!r}).exists():\n"
        "    time.sleep(0.01)\n"
        "os._exit(9)\n"
    )
    process = Command(script, env={"TMPDIR": str(tmp_path)})
    process.wait_until(lambda: process.out == "0\nhas it\n")
    with exclusive_gpu():
        assert taken == [1]
    told.touch()
    assert process.wait().returncode == 9
    with exclusive_gpu():
        assert taken == [1, 0]


def test_without_gpus_there_is_nothing_to_share(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with exclusive_gpu():
        assert choose_device("auto").type == "cpu"
    assert not list(tmp_path.iterdir())


def test_an_apple_gpu_is_taken_only_if_asked_for_and_by_one_process(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("auto").type == "cpu"
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert choose_device("auto").type == "cpu"
    with pytest.raises(ValueError, match=r"device=mps is one GPU for 2 processes: choose device=cpu"):
        choose_device("mps")
    with pytest.raises(ValueError, match=r"device=cuda:1 is one GPU for 2 processes: choose device=cuda, one GPU"):
        choose_device("cuda:1")


def test_a_run_without_a_number_of_threads_has_not_that_of_the_run_before(monkeypatch):
    monkeypatch.setattr(devices, "THREADS", 2)
    found = []
    for asked in (3, 0, 0, 1, 0):
        devices.use_threads(asked)
        found.append(torch.get_num_threads())
    assert found == [3, 2, 2, 1, 2]


@pytest.mark.parametrize("count", [-1, 1025, 100_000, 2.5, True])
def test_a_number_of_threads_that_no_machine_starts_is_refused(count):
    with pytest.raises(UserError, match=rf"threads={count} is not possible: give a whole number from 0 to 1024"):
        devices.use_threads(count)


def test_one_process_begins_without_a_sum_in_fp64_which_apple_gpus_lack():
    trainer = make()
    trainer.model.to("meta")  # nothing can be read there
    same_start(trainer)


@pytest.fixture
def kept(monkeypatch):
    """Puts back what :func:`settle` sets for the whole process."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@pytest.mark.parametrize("deterministic", [True, False])
def test_on_cuda_kernels_give_the_same_bits_unless_told_otherwise(deterministic, kept):
    settle(torch.device("cpu"), deterministic=True)
    assert not torch.are_deterministic_algorithms_enabled()
    settle(torch.device("cuda", 1), deterministic=deterministic)
    assert torch.are_deterministic_algorithms_enabled() == deterministic
    assert torch.backends.cudnn.benchmark != deterministic
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_a_run_that_is_deterministic_keeps_the_name_that_it_had_before_there_was_the_key():
    record = {"seed": 0}
    assert identity(record | {"deterministic": True}) == identity(record)
    assert identity(record | {"deterministic": False}) != identity(record)


def test_an_explicit_device_and_a_single_run_take_no_lock(monkeypatch):
    entered = []
    monkeypatch.setattr(launch, "exclusive_gpu", lambda: entered.append(True) or ExitStack())
    monkeypatch.setattr(launch, "_carry_out", lambda *arguments: {})
    for overrides, sweeping in ((("device=cpu",), True), ((), False), ((), True)):
        train(composed("results_dir=nowhere", *overrides), sweeping=sweeping)
    assert entered == [True]


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in (("WORLD_SIZE", "3"), ("RANK", "2"), ("LOCAL_RANK", "2")):
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="more processes on this machine than its 2 GPUs: start fewer"):
        choose_device("cuda")


@pytest.mark.parametrize(
    ("cpuinfo", "commands", "name"),
    [
        ("processor\t: 0\nmodel name\t: AMD EPYC\n", {}, "AMD EPYC"),
        ("processor\t: 0\nCPU part\t: 0xd40\n", {"lscpu": "Vendor ID: ARM\nModel name:  Neoverse-V1\n"}, "Neoverse-V1"),
        (None, {"sysctl": "machdep.cpu.brand_string: Apple M3 Pro\n"}, "Apple M3 Pro"),
        (None, {"lscpu": "Model name: -\n"}, "armv9"),
        (None, {}, "armv9"),
    ],
)
def test_the_processor_is_named_as_its_system_names_it(cpuinfo, commands, name, monkeypatch):
    def read(path, **options):
        if cpuinfo is None:
            raise FileNotFoundError(path)
        return cpuinfo

    def answer(command, **options):
        if command[0] not in commands:
            raise FileNotFoundError(command[0])
        return subprocess.CompletedProcess(command, 0, commands[command[0]].encode())

    monkeypatch.setattr(devices.Path, "read_text", read)
    monkeypatch.setattr(devices.subprocess, "run", answer)
    monkeypatch.setattr(devices.platform, "processor", lambda: "armv9")
    assert devices._processor.__wrapped__() == name


def test_a_device_that_is_not_there_is_named():
    for name in ("cuda:99", "gpu", "cpu:x"):
        with pytest.raises(UserError, match=f"device={name} cannot be used here .*: choose auto or cpu"):
            choose_device(name)


@pytest.mark.parametrize("where", ["step", "probes"])
def test_memory_that_is_full_ends_the_run_in_one_sentence_and_the_last_checkpoint_stays(where, tmp_path, monkeypatch):
    run = [f"run_dir={tmp_path}", "steps=6", "checkpoint_every=2", "evaluate_every=0", "device=cpu", "batch_size=20"]
    whole, calls = BatchClosure.__call__, []

    def full(closure, *, backward):
        calls.append(backward)
        if closure.trainer.step == 3 and backward == (where == "step"):
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")
        return whole(closure, backward=backward)

    monkeypatch.setattr(BatchClosure, "__call__", full)
    rule = "raise micro_batches=1, lower batch_size=20 or estimator.probe_batch=0; a checkpoint that is there stays"
    with pytest.raises(UserError, match=rf"^the memory of cpu is full here, where the plan says [\d.]+ GiB: {rule}$"):
        train(composed(*run))
    assert checkpoint.load(tmp_path / "checkpoint.pt")["step"] == 2
    monkeypatch.setattr(BatchClosure, "__call__", whole)
    assert train(composed(*run))["status"] == "finished"
