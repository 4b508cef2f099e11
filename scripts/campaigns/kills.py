"""Kill -9 at random moments: each run must end to the bit as it ends undisturbed.

python scripts/campaigns/kills.py [COUNT] [--seed N] [--only NUMBER]

Over estimators, quantizers, optimizers, images and text.  A kill comes by the clock, or where a process is about to
touch a file (a checkpoint being written, say), at once or a moment later; one run in six has two ranks, of which either
is killed; one case in eight is the packing of records, one in sixteen tuning, whose trials train in another process.
Each line of the results is a case with its kills; once there are COUNT kills, it says what was hit how often.
Text needs data/pydocs, which any run of a LLaMA prepares.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import socket
import sys
import tempfile
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for hydra_plugins, as train.py has it
sys.path.append(str(Path(__file__).resolve().parents[1]))  # for tune

from campaign import DATA, Campaign, composed, options
from hydra.core.global_hydra import GlobalHydra
from killing import Case, tried
from omegaconf import DictConfig
from processes import SAID, WHOLE, Outcome, warm_up
from tune import compose_experiment

from fogzo.evidence.tuning import tune
from fogzo.runs.records import add
from fogzo.training.launch import train

IMAGES = ["model=mlp", "model.hidden=4", "evaluation_examples=50", "batch_size=8"]
TEXT = ["model=llama_mini", *(f"model.{key}" for key in ("layers=1", "width=16", "heads=2", "sequence=16"))]
TEXT += ["data.sequence=16", "evaluation_tokens=64", "batch_size=4"]
TUNING = ["experiment=mlp_compute", "cell=fogzo_1", "steps=5", "batch_size=20", "model.hidden=4", "checkpoint_every=2"]
TUNING += ["evaluation_examples=50", "results_dir=results", "experiment.tuning.chosen=results/chosen.yaml"]


def drawn(dice: random.Random) -> dict[str, str]:
    """Return of what kinds a run is."""
    choices = {group: dice.choice(options(group)) for group in ("estimator", "optimizer")}
    quantizer, data = dice.choice(["fixed", "lsq", "quest", "sign"]), dice.choice(["images", "text"])
    return {**choices, "quantizer": quantizer, "data": data, "ranks": str(dice.choice([1, 1, 1, 1, 1, 2]))}


def config(kind: dict[str, str], dice: random.Random) -> DictConfig:
    """Return the config of a small run of that kind, with checkpoints every one to four steps."""
    counts = {"checkpoint_every": (1, 4), "keep_checkpoints": (1, 3), "log_every": (1, 3), "evaluate_every": (2, 5)}
    parts = [f"{key}={dice.randint(*ends)}" for key, ends in counts.items()]
    parts += [f"{group}={kind[group]}" for group in ("estimator", "optimizer", "quantizer")]
    parts += ["steps=10", "keep_best=true", "threads=1", "results_dir=results"]
    cfg = composed([*(IMAGES if kind["data"] == "images" else TEXT), *parts])
    GlobalHydra.instance().clear()  # so that no process holds the choices against what Hydra composes: it takes longest
    return cfg


def pack(rank: int) -> Outcome:
    """Pack the finished runs into records."""
    faults = add(Path("results")).faults
    return (SAID, str(faults[0])) if faults else (WHOLE, "")


def run(cfg: DictConfig, ranks: int, port: int, rank: int) -> Outcome:
    """Train as train.py does, as one of so many processes."""
    if ranks > 1:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_PORT": port}
        os.environ |= {key: str(value) for key, value in place.items()} | {"MASTER_ADDR": "127.0.0.1"}
    train(cfg)
    return WHOLE, ""


def tune_a_cell(rank: int) -> Outcome:
    """Carry out a search of three trials, as scripts/tune.py does; its worker is forked and killed in turn."""
    fresh = multiprocessing.get_context
    multiprocessing.get_context = lambda method=None: fresh("fork")  # type: ignore[assignment]
    GlobalHydra.instance().clear()
    experiment, results = compose_experiment(TUNING)
    try:
        tune(experiment, Path(results), TUNING, jobs=1, trials=3)
    except BrokenProcessPool as error:  # a RuntimeError, which scripts/tune.py prints
        return SAID, str(error)
    return WHOLE, ""


def case_of(kind: dict[str, str], dice: random.Random) -> Case:
    if kind.get("work") == "packing":
        return pack
    if kind.get("work") == "tuning":
        return tune_a_cell
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return partial(run, config(kind, dice), int(kind["ranks"]), port)


def main() -> None:
    campaign = Campaign("kills", __doc__, 1000)
    warm_up()
    finished = 0
    with tempfile.TemporaryDirectory() as top:
        for number in campaign.numbers():
            dice, folder = random.Random(f"{campaign.seed} {number}"), Path(top) / str(number)
            kind = drawn(dice)
            if (lot := dice.random()) < 3 / 16 and finished > 3:
                kind = {"work": "packing" if lot < 2 / 16 else "tuning"}
            whole, killed = folder / "whole", folder / "killed"
            for place in (whole, killed):
                place.mkdir(parents=True)
                (place / "data").symlink_to(DATA)
                if kind.get("work") == "packing":
                    shutil.copytree(Path(top) / "finished", place / "results")
            places, wrong = tried(case_of(kind, dice), int(kind.get("ranks", 1)), dice, whole, killed)
            campaign.note(wrong, kind, counts=len(places), places=places)
            if "ranks" in kind and finished < 12 and (whole / "results").exists():  # and not refused
                shutil.copytree(whole / "results", Path(top) / "finished", dirs_exist_ok=True)
                finished += 1
            shutil.rmtree(folder)
    sys.exit(campaign.summary())


if __name__ == "__main__":
    main()
