"""One thread a test process: timings are steadier and `pytest -n 2` uses both cores.  And `train.py` as a fixture."""

import os

import pytest

collect_ignore_glob = ["*/conftest.py"]  # no doctests in there, and modules of one name would get into each other's way

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _fixed_seed_and_threads():
    import torch

    torch.set_grad_enabled(True)  # an interrupt that a test provokes may fall into the end of a no_grad block
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_command_outlives_its_test():
    from helpers.cli import STARTED

    yield
    while STARTED:
        STARTED.pop().end()


@pytest.fixture(scope="session")
def digits():
    """The embedded digits, read once."""
    from fogzo.data import mnist5k

    return mnist5k()


@pytest.fixture
def train(tmp_path, monkeypatch, capsys, digits):
    """``python train.py`` in an empty folder: returns its exit code, what it printed, and what it complained."""
    from helpers.cli import run_script

    import fogzo.data

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fogzo.data, "mnist5k", lambda: digits)

    def run(*overrides, flags=()):
        defaults = ("progress=lines", "threads=1", "batch_size=20", "steps=20", "results_dir=results")
        code = run_script("train.py", *flags, *defaults, *overrides)
        return code, *capsys.readouterr()

    return run
