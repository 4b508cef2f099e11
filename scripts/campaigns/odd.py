"""Overrides that may not suit a run, drawn from the keys of its own config."""

from __future__ import annotations

import random
from typing import Any

from campaign import composed, options
from omegaconf import OmegaConf

from fogzo.training.config import check_choices
from fogzo.training.overrides import recipe_of

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
