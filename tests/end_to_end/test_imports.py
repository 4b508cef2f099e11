"""Commands that need little load little; who may import whom is import-linter's to check (`make lint`)."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "torchvision", "hydra", "omegaconf", "wandb", "transformers", "timm", "datasets", "mlxtend")


def heavy_modules_loaded_by(statement):
    """Those of HEAVY that a fresh process has loaded after ``statement``."""
    text = f"{statement}; import sys; print(*(name for name in {HEAVY} if name in sys.modules))"
    return set(subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize("module", ["runs.records", "evidence.jobs", "evidence.tuning", "evidence.report"])
def test_reading_records_loads_no_torch(module):
    assert heavy_modules_loaded_by(f"import fogzo.{module}") == set()


def test_the_method_loads_torch_alone():
    assert heavy_modules_loaded_by("import fogzo; fogzo.FOGZO, fogzo.LSQ, fogzo.quantize_model") == {"torch"}


def seconds_of_work(*arguments):
    """CPU time of a Python process: a busy machine does not stretch it."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_help_and_import_answer_at_once():
    assert seconds_of_work("train.py", "--help") < 3  # 0.7 s of a quiet core
    assert seconds_of_work("-c", "import fogzo.runs.records, sys; assert 'torch' not in sys.modules") < 4
