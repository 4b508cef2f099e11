"""An experiment of two settings and three methods, and its file of chosen values."""

import copy

import pytest
import yaml

EXPERIMENT = {
    "name": "example",
    "scale": "mini",
    "seeds": [1, 2],
    "overrides": ["steps=300"],
    "settings": {
        "wide": {
            "label": "Wide",
            "overrides": ["model=mlp", "steps=200"],
            "search": {"estimator.beta_min": [0.9, 0.99]},
        },
        "deep": {"label": "Deep", "overrides": ["model=deit_mini"], "methods": ["ste"]},
    },
    "methods": {
        "ste": {"label": "STE", "overrides": ["estimator=ste"]},
        "fogzo": {"label": "FOGZO", "overrides": ["estimator=fogzo"], "search": {"estimator.beta_min": [0.5]}},
        "noisy": {"label": "Noise", "overrides": ["estimator=noisy_ste"], "tuned_as": "fogzo"},
    },
    "tuning": {"seed": 0, "trials": 2, "search": {"optimizer.lr": [0.1, 0.2]}, "overrides": ["log_every=9"]},
}


@pytest.fixture
def experiment(tmp_path):
    made = copy.deepcopy(EXPERIMENT)
    made["tuning"]["chosen"] = str(tmp_path / "chosen.yaml")
    values = {
        "wide.ste": {"optimizer.lr": 0.1},
        "wide.fogzo": {"optimizer.lr": 0.2, "estimator.beta_min": 0.99},
        "wide.noisy": {"optimizer.lr": 0.1},
    }
    other = {
        "wide.ste": [{"optimizer.lr": 0.2}],
        "wide.noisy": [{"optimizer.lr": 0.2}],
        "wide.fogzo": [values["wide.ste"] | {"estimator.beta_min": 0.9}],
    }
    entries = {
        cell: {"values": v, "tried": [{"values": one} for one in [v, *other[cell]]]} for cell, v in values.items()
    }
    entries["wide.noisy"]["borrowed"] = {"estimator.beta_min": 0.99}
    (tmp_path / "chosen.yaml").write_text(yaml.safe_dump(entries))
    return made
