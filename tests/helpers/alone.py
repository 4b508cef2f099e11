"""A Python in which nothing of the extras can be imported, as where torch alone is installed."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODULES = {"hydra-core": "hydra", "pillow": "PIL", "pyyaml": "yaml", "markdown-it-py": "markdown_it"}


def run_alone(code):
    """Run ``code`` in it, in the project's folder."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    lines = extras["train"] + extras["evidence"] + extras["export"] + extras["hf"]
    names = [re.match(r"[\w-]+", line)[0] for line in lines]
    absent = {MODULES.get(name, name.replace("-", "_")) for name in names} | {"omegaconf"}
    blocked = f"import sys\nsys.modules.update(dict.fromkeys({sorted(absent)}))\n"
    command = [sys.executable, "-W", "ignore", "-c", blocked + code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
