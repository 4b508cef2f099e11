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
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for hydra_plugins, as train.py has it

from campaign import CONFIGS, DATA, Campaign, composed, options
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from processes import FAULT, SAID, WHOLE, Outcome, forked, warm_up

from fogzo.errors import one_line
from fogzo.training.config import check_choices
from fogzo.training.launch import train
from fogzo.training.overrides import explanation, recipe_of

GROUPS = ("estimator", "quantizer", "activations", "optimizer", "schedule", "model", "data", "scale", "logger")
MODELS = {
    "mlp": ["model.hidden=4"],
    "llama_mini": ["model.layers=1", "model.width=16", "model.heads=2", "model.sequence=16", "data.sequence=16"],
    "resnet_mini": ["evaluation_examples=2"],
    "deit_mini": [],
}
SMALL = ["steps=2", "batch_size=4", "evaluation_examples=4", "evaluation_tokens=64", "log_every=1", "threads=1"]
LITERALS = [
    *("true", "false", "null", "''", "foo", "'two words'", "no", "ÅÄÖ", "'a\\nb'", "[]", "[1,2]", "[a]", "{}", "{a:1}"),
    *("-1", "0", "1", "2", "3", "7", "64", "-0.1", "0.5", "1.5", "0.9999999999", "1e-30", "1e30", "nan", "inf", "-inf"),
    *("1000000", "10000000000", "99999999999999999999", "/dev/null", "/no/such/file", "/proc", "."),
]


def leaves(node: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Return every key of a composed config with its value."""
    if not isinstance(node, dict):
        return [(prefix[:-1], node)]
    left_out = ("experiment", "plan", "root")  # in another root a text is prepared anew, for a minute
    kept = {key: value for key, value in node.items() if key not in left_out}
    return [leaf for key, value in kept.items() for leaf in leaves(value, f"{prefix}{key}.")]


def drawn(dice: random.Random) -> list[str]:
    """Return overrides: a small run of any parts, one to three of whose keys get what may not suit them."""
    model = dice.choices(list(MODELS), [8, 2, 1, 1])[0]
    parts = [f"{group}={dice.choice(options(group))}" for group in dice.sample(GROUPS[:5], dice.randint(1, 4))]
    try:
        cfg = composed([f"model={model}", *parts])
        check_choices(cfg)  # so that no process has to compose what these two do
        recipe_of(cfg)
    except Exception:
        return [f"model={model}", *parts]
    keys = leaves(OmegaConf.to_container(cfg))
    odd = []
    for key, value in dice.sample(keys, dice.choice([1, 1, 1, 2, 3])):
        near = [f"{2 * value}", f"{-value}", f"{value + 1}", f"[{value}]"] if isinstance(value, int | float) else []
        odd.append(dice.choice(["", "", "", "", "", "", "~", "+", "++"]) + f"{key}={dice.choice(LITERALS + near)}")
    if dice.random() < 0.1:
        odd.append(f"{(group := dice.choice(GROUPS))}={dice.choice([*options(group), *LITERALS])}")
    return [f"model={model}", *MODELS[model], *SMALL, *parts, *odd]


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
