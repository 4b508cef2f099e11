"""Draw odd and wrong configs: each trains two steps or is refused in one sentence, in 15 s, and its plan says the same.

python scripts/campaigns/configs.py [COUNT] [--seed N] [--only NUMBER]

Each case is a process of its own, forked from one that has loaded the libraries, so that a hang, a crash or a gigabyte
asked for is seen too.  Prints what fails, and counts; exits with 1 if anything does.
"""

from __future__ import annotations

import random
import sys
import tempfile
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for hydra_plugins, as train.py has it

from campaign import CONFIGS, DATA, Campaign, composed
from hydra.errors import HydraException
from odd import GROUPS, drawn
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException
from processes import FAULT, SAID, WHOLE, Outcome, forked, warm_up

from fogzo.errors import one_line
from fogzo.training.launch import train
from fogzo.training.overrides import explanation


def composed_or_said(overrides: list[str]) -> DictConfig | Outcome:
    """Return the config of ``overrides``, or why there is none, as train.py says it."""
    try:
        return composed(overrides)
    except Exception as error:
        said = explanation(overrides, CONFIGS)
        if said is None and not isinstance(error, HydraException | OmegaConfBaseException):
            return FAULT, f"{type(error).__name__}: {error}"
        return SAID, said or one_line(error)


def trained(cfg: DictConfig, *, plan: bool) -> Outcome:
    """Train as train.py does, or plan it."""
    with open_dict(cfg):
        cfg.plan = plan or cfg.get("plan", False)
    train(cfg)
    return WHOLE, ""


def verdict(run: Outcome, plan: Outcome) -> str:
    """Return what is wrong with what a run and its plan came to, or ``""``."""
    if FAULT in (run[0], plan[0]):
        return FAULT
    if run[0] != plan[0]:
        return "plan and run differ"
    return "" if run[1].replace("plan=False", "plan=True") == plan[1] else "two sentences"


def main() -> None:
    campaign = Campaign("configs", __doc__, 2000)
    warm_up()
    for number in campaign.numbers():
        overrides = drawn(random.Random(f"{campaign.seed} {number}"))
        with tempfile.TemporaryDirectory() as folder:
            place = [f"results_dir={folder}"]  # before what is drawn, which may name another
            (Path(folder) / "data").symlink_to(DATA)
            if isinstance(cfg := composed_or_said(place + overrides), tuple):
                run = plan = cfg
            else:
                run, plan = (forked(partial(trained, cfg, plan=only), Path(folder)) for only in (False, True))
        kind = {
            "outcome": run[0],
            **{part.split("=")[0]: part for part in overrides if part.partition("=")[0] in GROUPS},
        }
        campaign.note(verdict(run, plan), kind, overrides=" ".join(overrides), run=run[1], plan=plan[1])
    sys.exit(campaign.summary())


if __name__ == "__main__":
    main()
