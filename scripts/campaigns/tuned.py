"""The tuning of a cell as a case to be killed: its worker is forked, not begun afresh, and killed in turn."""

from __future__ import annotations

import multiprocessing
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from campaign import ROOT
from hydra.core.global_hydra import GlobalHydra
from processes import SAID, WHOLE, Outcome

from fogzo.evidence.tuning import tune

sys.path.append(str(ROOT / "scripts"))
from tune import compose_experiment

WORDS = ["experiment=mlp_compute", "cell=fogzo_1", "steps=5", "batch_size=20", "model.hidden=4", "checkpoint_every=2"]
WORDS += ["evaluation_examples=50", "results_dir=results", "experiment.tuning.chosen=results/chosen.yaml"]


def tune_a_cell(rank: int) -> Outcome:
    """Carry out a search of three trials, as scripts/tune.py does."""
    fresh = multiprocessing.get_context
    multiprocessing.get_context = lambda method=None: fresh("fork")  # type: ignore[assignment]
    GlobalHydra.instance().clear()
    experiment, results = compose_experiment(WORDS)
    try:
        tune(experiment, Path(results), WORDS, jobs=1, trials=3)
    except BrokenProcessPool as error:  # a RuntimeError, which scripts/tune.py prints
        return SAID, str(error)
    return WHOLE, ""
