"""Commands of the project in this process, since one of its own takes seconds to start; and how a command refuses."""

import logging
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run_script(script, *words):
    """Run ``python SCRIPT WORDS`` here, with Hydra and logging as they were afterwards; returns the exit code."""
    from hydra.core.global_hydra import GlobalHydra

    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    GlobalHydra.instance().clear()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", [script, *words])
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as stop:
            return stop.code or 0
        finally:
            GlobalHydra.instance().clear()
            root.handlers[:], root.level = handlers, level
    return 0


def assert_refused(answer, *named, by="error: "):
    """Exit code 1 and one line, which names the value, the rule or the way out."""
    code, _, err = answer
    assert (code, err.count("\n"), err[: len(by)]) == (1, 1, by), err
    assert [part for part in named if part not in err] == [], err
