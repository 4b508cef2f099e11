"""Kill -9 at random moments: each run must end to the bit as it ends undisturbed.

python scripts/campaigns/kills.py [COUNT] [--seed N] [--minutes M]

Over estimators, quantizers, optimizers, images and text.  A kill comes by the clock, or where a process is about to
touch a file (a checkpoint being written, say), at once or a moment later; one run in six has two ranks, of which either
is killed; one kill in eight hits the packing of records.  Runs are forked from a process that has loaded the libraries.
Text needs data/pydocs, which any run of a LLaMA prepares.  Tuning is killed by tests/evidence/test_tuning.py.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import socket
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for hydra_plugins, as train.py has it

from campaign import ROOT, SAID, WHOLE, Outcome, composed, options, warm_up
from killing import tried

from fogzo.runs.records import add
from fogzo.training.launch import train

IMAGES = ["model=mlp", "model.hidden=4", "evaluation_examples=50", "batch_size=8"]
TEXT = ["model=llama_mini", *(f"model.{key}" for key in ("layers=1", "width=16", "heads=2", "sequence=16"))]
TEXT += ["data.sequence=16", "evaluation_tokens=64", "batch_size=4"]


def drawn(dice: random.Random) -> list[str]:
    """Return the overrides of a run of any kind, with checkpoints every one to four steps."""
    parts = [f"{group}={dice.choice(options(group))}" for group in ("estimator", "optimizer")]
    parts.append(f"quantizer={dice.choice(['fixed', 'lsq', 'quest', 'sign'])}")
    counts = {"checkpoint_every": (1, 4), "keep_checkpoints": (1, 3), "log_every": (1, 3), "evaluate_every": (2, 5)}
    parts += [f"{key}={dice.randint(*ends)}" for key, ends in counts.items()]
    return [*dice.choice([IMAGES, TEXT]), *parts, "steps=10", "keep_best=true", "threads=1", "results_dir=results"]


def pack(rank: int) -> Outcome:
    """Pack the finished runs into records."""
    return WHOLE if add(Path("results")).new else SAID, ""


def run(overrides: list[str], ranks: int, port: int, rank: int) -> Outcome:
    """Train as train.py does, as one of so many processes."""
    if ranks > 1:
        values = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": ranks,
            "MASTER_PORT": port,
            "MASTER_ADDR": "127.0.0.1",
        }
        os.environ |= {key: str(value) for key, value in values.items()}
    train(composed(overrides))
    return WHOLE, ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", nargs="?", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=1e9, help="stop then, wherever it is")
    given = parser.parse_args()
    warm_up()
    begun, places, killed, wrong, number, finished = time.monotonic(), Counter[str](), 0, 0, 0, 0
    with tempfile.TemporaryDirectory() as top:
        while killed < given.count and time.monotonic() - begun < 60 * given.minutes:
            number += 1
            dice, folder = random.Random(f"{given.seed} {number}"), Path(top) / str(number)
            overrides, ranks = drawn(dice), dice.choice([1, 1, 1, 1, 1, 2])
            packing = finished > 3 and dice.random() < 0.125
            for place in ("whole", "killed"):
                shutil.copytree(Path(top) / "finished", folder / place) if packing else (folder / place).mkdir(
                    parents=True
                )
                (folder / place / "data").symlink_to(ROOT / "data")
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            case = pack if packing else partial(run, overrides, 1 if packing else ranks, port)
            kills, fault = tried(case, 1 if packing else ranks, dice, folder, places)
            killed += kills
            if fault:
                wrong += 1
                print(
                    f"{number} WRONG: {'packing' if packing else ' '.join(overrides)}, {ranks} ranks: {fault}",
                    flush=True,
                )
            elif not packing and finished < 12 and (folder / "whole/results").exists():  # and not refused
                shutil.copytree(folder / "whole/results", Path(top) / "finished/results", dirs_exist_ok=True)
                finished += 1
            shutil.rmtree(folder)
    print(f"{killed} kills in {number} runs, {wrong} of which ended otherwise; hit: {dict(places.most_common())}")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
