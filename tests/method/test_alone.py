"""The method needs torch alone: the README's snippet runs where nothing of the extras can be imported."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODULES = {"hydra-core": "hydra", "pillow": "PIL", "pyyaml": "yaml", "markdown-it-py": "markdown_it"}


def test_the_readmes_snippet_runs_without_any_of_the_extras():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert [name.partition(">")[0] for name in project["dependencies"]] == ["torch"]
    extras = project["optional-dependencies"]
    names = [
        re.match(r"[\w-]+", line)[0]
        for line in (extras["train"] + extras["evidence"] + extras["export"] + extras["hf"])
    ]
    absent = {MODULES.get(name, name.replace("-", "_")) for name in names} | {"omegaconf"}
    (snippet,) = (text for text in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL))
    blocked = f"import sys\nsys.modules.update(dict.fromkeys({sorted(absent)}))\n"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", blocked + snippet], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 10
