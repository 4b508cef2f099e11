"""Makes configs of the rows of ``configs/networks.yaml``, which read better as a table than as one file a choice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import omegaconf._utils
import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

CONFIGS = Path(__file__).resolve().parents[1] / "configs"

# Hydra copies all its sources, and this store with them, for each group that --help lists: seconds.  One store will do,
# as it hands out copies of what it holds.
ConfigStore.__deepcopy__ = lambda self, memo: self  # type: ignore[attr-defined]


def read_by_libyaml() -> None:
    """Have OmegaConf read files by libyaml, where it is there, into the same values: a config is made of 17 files."""
    own: Any = omegaconf._utils.get_yaml_loader()
    cyaml: Any = yaml.cyaml if yaml.__with_libyaml__ else None
    if cyaml is None or issubclass(own, cyaml.CParser):
        return

    class Loader(cyaml.CParser, own):  # type: ignore[misc]
        def __init__(self, stream: Any) -> None:
            cyaml.CParser.__init__(self, stream)
            yaml.constructor.SafeConstructor.__init__(self)
            yaml.resolver.Resolver.__init__(self)

    omegaconf._utils.get_yaml_loader = lambda: Loader


def _store_recipe(scale: str, name: str, of: str, values: dict[str, Any]) -> None:
    """Store the recipe of ``of`` at ``scale`` with other values as that of ``name``."""
    recipe = {"defaults": [f"/recipe/{scale}/{of}", "_self_"], **values}
    ConfigStore.instance().store(name, recipe, group=f"recipe/{scale}", package="_global_")


def register(table: dict[str, Any]) -> None:
    """Store a model and its recipes for each row, and for each network what estimators and optimizers take."""
    store = ConfigStore.instance().store
    rates: dict[str, dict[str, float]] = {}
    for name, row in table["llamas"].items():
        lr, steps, short = row.pop("lr"), row.pop("steps"), row.pop("mini", {})
        rates[name] = {"mini": row.pop("lr_mini", lr), "paper": lr}
        store(name, {"name": name, **table["llama"], **row}, group="model")
        long = {"steps": steps}
        if name == "llama_mini":
            long["model"] = {key: table["llama"][key] for key in ("vocabulary", "sequence")}
        for scale, values in (("mini", short), ("paper", long)):
            if not (CONFIGS / "recipe" / scale / f"{name}.yaml").exists():  # llama_mini has one of its own
                _store_recipe(scale, name, "llama", values)
    for scale, recipes in table["recipes"].items():
        for name, row in recipes.items():
            _store_recipe(scale, name, row["of"], row["values"])
    for name, row in table["libraries"].items():
        store(name, {"name": name, **row["model"]}, group="model")
        for scale in ("mini", "paper"):
            _store_recipe(scale, name, row["recipe"][scale], row["recipe"]["values"])
    for name, row in table["estimators"].items():
        for scale, beta in row["beta_min"].items():
            store(name, {"beta_min": beta}, group=f"network/beta/{scale}")
        betas = {"betas": table["betas"]["llamas" if name in table["llamas"] else "others"]}
        of_recipe = row.get("optimizer", {})
        for scale in ("mini", "paper"):
            lr = {"lr": rates[name][scale]} if name in rates else {}
            for optimizer, always in (("adamw", betas | lr), ("sgd", {})):
                store(name, always | of_recipe.get(optimizer, {}).get(scale, {}), group=f"network/{optimizer}/{scale}")
        store(name, {"probe_batch": row["probe_batch"]}, group="network/probes")


read_by_libyaml()
register(OmegaConf.to_container(OmegaConf.load(CONFIGS / "networks.yaml")))  # type: ignore[arg-type]
