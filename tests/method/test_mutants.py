"""The faults of ``make mutants`` are still faults of this source: their lines are there, once, and there are enough."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "mutants.py"))
FAULTS = SCRIPT["faults"]()
ROOMS = ("smoothing", "quantizers", "estimators/perturb", "estimators/replay", "estimators/fogzo", "estimators/probes")


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.what)
def test_a_fault_still_has_its_line_and_its_tests(fault):
    source = (ROOT / fault.file).read_text(encoding="utf-8")
    changed = fault.planted(source).splitlines()
    assert [old == new for old, new in zip(source.splitlines(), changed, strict=True)].count(False) == 1
    compile("\n".join(changed), fault.file, "exec")
    path, _, name = fault.test.partition("::")
    assert name in (ROOT / path).read_text(encoding="utf-8")


def test_there_are_enough_faults_in_every_room():
    assert len(FAULTS) >= 30
    assert len({fault.what for fault in FAULTS}) == len(FAULTS)
    for room in ROOMS:
        assert any(fault.file.startswith(f"fogzo/{room}") for fault in FAULTS), room


def test_a_line_that_is_gone_or_there_twice_is_named():
    fault = SCRIPT["Fault"]("nothing", "a.py", "x = 1", "x = 2", "b.py")
    assert fault.planted("if y:\n    x = 1\n") == "if y:\n    x = 2\n"
    for source in ("x = 3\n", "x = 1\nx = 1\n"):
        with pytest.raises(ValueError, match=r"a\.py has [02] lines 'x = 1', and must have one"):
            fault.planted(source)
