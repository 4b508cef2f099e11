"""One thread a test process: timings are steadier and `pytest -n 2` uses both cores."""

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
