"""The method needs torch alone: the README's snippet runs where nothing of the extras can be imported."""

import re
import tomllib

from helpers.alone import ROOT, run_alone


def test_the_readmes_snippet_runs_without_any_of_the_extras():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert [name.partition(">")[0] for name in project["dependencies"]] == ["torch"]
    (snippet,) = (text for text in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL))
    done = run_alone(snippet)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 10
