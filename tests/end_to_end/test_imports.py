"""Commands that need little load little; who may import whom is import-linter's to check (`make lint`)."""

import resource
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "torchvision", "hydra", "omegaconf", "wandb", "transformers", "tokenizers", "timm", "datasets")
HEAVY += ("mlxtend",)


def heavy_modules_loaded_by(*statements):
    """Those of HEAVY that a fresh process has loaded after each of ``statements`` in turn: a list of sets."""
    shown = f"print(*(name for name in {HEAVY} if name in sys.modules))"
    text = "import sys\n" + "".join(f"{statement}; {shown}\n" for statement in statements)
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    return [set(line.split()) for line in done.stdout.splitlines()]


def test_reading_records_loads_no_torch():
    modules = ("runs.records", "evidence.jobs", "evidence.tuning", "evidence.report")
    assert heavy_modules_loaded_by(*(f"import fogzo.{module}" for module in modules)) == [set()] * 4


def test_the_method_loads_torch_alone_and_data_no_more():
    """What tokenizes and fetches text loads where it is needed."""
    names = "import fogzo; fogzo.FOGZO, fogzo.LSQ, fogzo.quantize_model"
    assert heavy_modules_loaded_by(names, "import fogzo.data.pydocs, fogzo.data.text") == [{"torch"}] * 2


def seconds_of_work(*arguments):
    """CPU time of a Python process: a busy machine does not stretch it."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_help_and_import_answer_at_once():
    assert seconds_of_work("train.py", "--help") < 3  # 0.7 s of a quiet core
    assert seconds_of_work("-c", "import fogzo.runs.records") < 4
