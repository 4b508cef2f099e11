"""Imports run one way, as the source says; and commands that need little load little."""

import ast
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# from the bottom up; a module imports from its own layer's package and from below
LAYERS = (
    "smoothing",
    "quantizers",
    "quantize",
    "perturb",
    "estimators",
    "factories",
    "settings",
    "trainer",
    "shapes",
    "begin",
    "build",
    "costs",
    "plan",
    "launch",
    "workers",
)
# what each leaf needs of the others ("compute tasks data models runs are leaves; results knows only runs")
LEAVES = {
    "compute": {"memory"},
    "data": {"files", "seeding"},
    "files": set(),
    "devices": {"distributed"},
    "distributed": set(),
    "memory": set(),
    "monitor": set(),
    "models": set(),
    "provenance": set(),
    "replay": set(),
    "reporters": {"files", "runs"},
    "identity": set(),
    "runs": {"files", "identity"},
    "schedules": set(),
    "seeding": set(),
    "signals": set(),
    "cells": {"results", "runs"},
    "tuned": {"cells", "results"},
    "sweep": {"cells", "tuned"},
    "checkpoint": {"files", "runs"},
    "results": {"identity", "runs"},
    "comparison": set(),
    "evidence": {"cells", "comparison", "records", "results", "runs", "tuned"},
    "tables": {"comparison"},
    "published": {"comparison", "evidence", "cells"},
    "verdicts": {"comparison", "evidence", "published", "cells", "tables"},
    "pages": {"cells", "comparison", "evidence", "published", "results", "tables", "tuned", "verdicts"},
    "equal_loss": {"evidence", "published", "results", "cells", "tables", "verdicts"},
    "claims": {"comparison", "equal_loss", "evidence", "published", "results", "runs", "cells", "tables", "verdicts"},
    "values": {"comparison", "equal_loss", "evidence", "pages", "published", "results", "cells", "tables", "verdicts"},
    "style": {"verdicts"},
    "figures": {"comparison", "evidence", "files", "results", "style", "cells", "tables"},
    "sensitivity": {"evidence", "figures", "style", "cells"},
    "markup": set(),
    "members": {"comparison", "evidence", "pages", "cells", "tables", "verdicts"},
    "members_figure": {"comparison", "evidence", "figures", "members", "style", "tables"},
    "summary": {
        "claims",
        "equal_loss",
        "evidence",
        "files",
        "members",
        "pages",
        "published",
        "results",
        "runs",
        "cells",
        "tables",
        "verdicts",
    },
    "report": {
        "claims",
        "comparison",
        "equal_loss",
        "evidence",
        "markup",
        "pages",
        "published",
        "summary",
        "tables",
        "verdicts",
    },
    "tuning": {"cells"},
    "records": {"cells", "identity", "results", "runs", "tuned"},
    "tasks": {"data", "distributed"},
    "tensor_memory": set(),
}
LIGHT = (
    "runs",
    "results",
    "cells",
    "tuned",
    "sweep",
    "tuning",
    "records",
    "report",
    "figures",
)  # for these torch must not load
HYDRA = {"hydra", "omegaconf"}


def name_of(file):
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(file): file for file in sorted((ROOT / "fogzo").rglob("*.py"))}
OUTSIDE = [ROOT / "train.py", *sorted((ROOT / "hydra_plugins").glob("*.py")), *sorted((ROOT / "scripts").glob("*.py"))]


def is_for_the_type_checker(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def statements(node, *, deferred):
    """All statements below ``node``; with ``deferred`` also those that run when a function is called."""
    for child in ast.iter_child_nodes(node):
        if is_for_the_type_checker(child):
            continue
        yield child
        if deferred or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from statements(child, deferred=deferred)


def imports(file, *, deferred=True):
    """Full names of the modules that ``file`` imports."""
    found = set()
    for node in statements(ast.parse(file.read_text(encoding="utf-8")), deferred=deferred):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import in line {node.lineno}: this test does not follow it"
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & FILES.keys()
            outer = {node.module} if len(inner) < len(node.names) else set()
            found |= inner | outer
    return found


def parts_of_fogzo(file):
    """First-level names inside fogzo that ``file`` imports."""
    return {name.split(".")[1] for name in imports(file) if name.startswith("fogzo.")}


MODULES = [name for name in FILES if name != "fogzo"]


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_from_below(name):
    part = name.split(".")[1]
    assert part in LEAVES or part in LAYERS, f"{name} is new: give it a place in LAYERS or LEAVES"
    found = parts_of_fogzo(FILES[name]) - {part}
    if part in LEAVES:
        assert found <= LEAVES[part]
    else:
        assert found <= {*LAYERS[: LAYERS.index(part)], *LEAVES}


def test_leaves_and_layers_are_all_there_and_leaves_have_no_cycle():
    parts = {name.split(".")[1] for name in MODULES}
    assert {*LAYERS, *LEAVES} <= parts
    settled = set()
    while ready := {leaf for leaf, needs in LEAVES.items() if needs <= settled} - settled:
        settled |= ready
    assert settled == LEAVES.keys()


def test_inside_a_package_nothing_imports_the_package_itself():
    for name, file in FILES.items():
        package = name.rpartition(".")[0]
        if package != "fogzo":
            assert package not in imports(file), f"{name} imports {package}, whose __init__ imports it"


def test_nobody_imports_the_commands():
    for file in [*FILES.values(), *OUTSIDE]:
        assert not {name.split(".")[0] for name in imports(file)} & {"train", "scripts", "hydra_plugins", "tests"}


@pytest.mark.parametrize("name", MODULES)
def test_only_build_knows_hydra(name):
    knows = {module.split(".")[0] for module in imports(FILES[name])} & HYDRA
    assert knows <= {
        "fogzo.build": HYDRA,
        "fogzo.workers": {"hydra"},
        "fogzo.launch": {"omegaconf"},
        "fogzo.costs": {"omegaconf"},
        "fogzo.plan": {"omegaconf"},
    }.get(name, set())


def test_the_commands_know_hydra_and_reach_the_rest_through_build():
    assert "hydra" in imports(ROOT / "train.py")
    assert parts_of_fogzo(ROOT / "train.py") == {"launch", "monitor", "signals"}
    assert parts_of_fogzo(ROOT / "hydra_plugins" / "fogzo_sweeper.py") == {"sweep"}


def loaded_by(name):
    """The modules that load when ``name`` is imported, packages above it included."""
    loaded, waiting = set(), {name}
    while waiting:
        module = waiting.pop()
        loaded.add(module)
        if module in FILES:
            above = {module.rpartition(".")[0]} - {""}
            waiting |= (imports(FILES[module], deferred=False) | above) - loaded
    return loaded


@pytest.mark.parametrize("name", [f"fogzo.{part}" for part in LIGHT])
def test_reading_records_loads_no_torch(name):
    heavy = {"torch", "torchvision", "hydra", "omegaconf", "wandb", "transformers", "timm", "datasets", "mlxtend"}
    assert not {module.split(".")[0] for module in loaded_by(name)} & heavy
    assert loaded_by("fogzo.quantize") >= {"torch", "fogzo.quantizers.lsq", "fogzo.smoothing"}  # this test can see


def test_help_and_import_load_nothing_heavy():
    light = {"__future__", "importlib", "typing"}
    assert loaded_by("fogzo") <= {"fogzo", *light}
    at_the_top = imports(ROOT / "train.py", deferred=False)
    assert {module.split(".")[0] for module in at_the_top} <= {"__future__", "os", "sys", "hydra", "omegaconf"}
    for file in FILES.values():
        heavy = {"torchvision", "timm", "transformers", "datasets", "wandb", "mlxtend", "scipy"}
        assert not {module.split(".")[0] for module in imports(file, deferred=False)} & heavy, file


def seconds_of_work(*arguments):
    """CPU time of a Python process: a busy machine does not stretch it."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_help_and_import_answer_at_once():
    assert seconds_of_work("train.py", "--help") < 4
    assert seconds_of_work("-c", "import fogzo.results, sys; assert 'torch' not in sys.modules") < 4
