"""What a command line asks for: why it does not compose, in one sentence, and what it has otherwise than its recipe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from fogzo.checks import did_you_mean
from fogzo.errors import UserError, one_line
from fogzo.runs.identity import differences

# What a recipe sets; the rest (estimator, quantizer, seed, device) is nobody's setting in particular
OF_RECIPE = (
    *("data.", "model.", "optimizer.", "schedule.", "quantize.", "steps", "epochs", "batch_size", "micro_batches"),
    *("clip_norm", "precision", "estimator.beta_min"),
)


def explanation(overrides: Sequence[str], configs: Path) -> str | None:
    """Return what is wrong with the first of ``overrides`` that ``configs`` does not know; ``None`` if it knows all."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(configs), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        try:
            parsed = OverridesParser.create(config_loader=loader).parse_overrides(list(overrides))
        except HydraException as error:
            return one_line(error)
        of_run = [one for one in parsed if one.key_or_group.partition(".")[0] != "hydra"]
        groups = {one.key_or_group: loader.get_group_options(one.key_or_group) for one in of_run}
        choices = []
        for override in (one for one in of_run if groups[one.key_or_group]):
            group, options = override.key_or_group, groups[override.key_or_group]
            if override.is_delete():
                return f"{override.input_line} leaves nothing to train with: choose one of {', '.join(options)}"
            for value in ("null" if value is None else str(value) for value in _values(override)):
                if value not in options:
                    meant = did_you_mean(value, options).replace(":", ";")
                    return f"{group}={value} is not known: choose one of {', '.join(options)}{meant}"
            if not group.startswith("hydra/"):
                choices.append(f"{group}={value}")
        config = compose("train", choices)
        given = [one.key_or_group for one in of_run if not (one.is_add() or one.is_force_add())]
        for key in given:
            if not groups[key] and not _has(config, key):
                return _missing(config, key, choices)
    return None


def _values(override: Override) -> Iterator[Any]:
    """Yield the values that an override gives a key, several in a sweep."""
    if override.is_sweep_override():
        yield from override.sweep_iterator()
    else:
        yield override.value()


def _has(config: DictConfig, key: str) -> bool:
    parent = OmegaConf.select(config, key.rpartition(".")[0]) if "." in key else config
    return isinstance(parent, DictConfig) and key.rpartition(".")[2] in parent


def _missing(config: DictConfig, key: str, choices: Sequence[str]) -> str:
    if meant := did_you_mean(key, _keys(OmegaConf.to_container(config), "")):
        return f"{key} is no key of this run{meant}"
    group = key.partition(".")[0]
    if "." not in key or not GlobalHydra.instance().config_loader().get_group_options(group):
        return f"{key} is no key of a run: python train.py --cfg job prints those that there are"
    return f"{key} is no key of {group}={config[group].name}{owners(key, choices)}"


def owners(key: str, choices: Sequence[str] = ()) -> str:
    """Return ``: GROUP=CHOICE, ... would have it``, of ``key``; nothing if none has, or where Hydra is not at hand."""
    if not GlobalHydra.instance().is_initialized():
        return ""
    group = key.partition(".")[0]
    given = [choice for choice in choices if not choice.startswith(f"{group}=")]
    every = [f"{group}={option}" for option in GlobalHydra.instance().config_loader().get_group_options(group)]
    having = [choice for choice in every if _has(compose("train", [*given, choice]), key)]
    return f": {', '.join(having)} would have it" if having else ""


def _keys(node: Any, prefix: str) -> Iterator[str]:
    for key, value in node.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{key}.")


def check_length(cfg: DictConfig) -> None:
    """Refuse a run without a length, and one with two, unless ``steps`` takes the place of the recipe's ``epochs``."""
    if cfg.steps is None and cfg.epochs is None:
        raise UserError("steps and epochs are both null: give one of them")
    if cfg.steps is not None and cfg.epochs is not None:
        recipe = recipe_of(cfg)
        if recipe is None or (recipe.epochs, recipe.steps) == (cfg.epochs, None):
            return
        raise UserError(
            f"steps={cfg.steps} and epochs={cfg.epochs} both say how long the run is: give steps=null epochs="
            f"{cfg.epochs}, or epochs=null steps={cfg.steps}"
        )


def recipe_of(cfg: DictConfig) -> DictConfig | None:
    """Return the recipe that ``cfg`` began from, or ``None`` where Hydra is not at hand to compose it."""
    if not GlobalHydra.instance().is_initialized():
        return None
    return _composed(f"scale={cfg.scale}", f"model={cfg.model.name}", f"estimator={cfg.estimator.name}")


@cache
def _composed(*choices: str) -> DictConfig:
    return compose("train", list(choices))


def departures(cfg: DictConfig) -> list[str]:
    """Return the keys of the recipe whose values ``cfg`` has otherwise; none where Hydra is not at hand."""
    if (recipe := recipe_of(cfg)) is None:
        return []
    plain, asked_for = (OmegaConf.to_container(one, resolve=True) for one in (recipe, cfg))
    keys = [line.partition(":")[0] for line in differences(plain, asked_for)]  # type: ignore[arg-type]
    other = {key.removesuffix(".name") for key in keys if key.endswith(".name")}  # choices of whole groups
    named = (group if (group := key.partition(".")[0]) in other else key for key in keys if key.startswith(OF_RECIPE))
    return list(dict.fromkeys(named))


def cautions(cfg: DictConfig) -> list[str]:
    """Return what can be trained, and hardly ever should, or is not what a recipe's reader would expect."""
    said = []
    recipe = recipe_of(cfg) if _may_choose("optimizer") else None
    if recipe is not None and (was := recipe.optimizer).name != cfg.optimizer.name:
        said.append(
            f"the recipe is of optimizer={was.name}: its lr={was.lr:g} and weight_decay={was.weight_decay:g} are left "
            f"out, and {cfg.optimizer.name} has lr={cfg.optimizer.lr:g} and weight_decay={cfg.optimizer.weight_decay:g}"
        )
    if cfg.optimizer.lr > 10:
        said.append(f"optimizer.lr={cfg.optimizer.lr:g} is so large that training will hardly do other than diverge")
    if (momentum := cfg.optimizer.get("momentum", 0)) >= 1:
        said.append(f"optimizer.momentum={momentum:g} never forgets a step: below 1 steps stay bounded")
    if (cfg.estimator.name, cfg.quantizer.name) == ("nspsa", "quest") and not cfg.clip_norm:
        said.append(
            "n-SPSA's steps grow with QuEST's scale, which follows the weights, until the loss overflows: give "
            "clip_norm=1"
        )
    return said


def _may_choose(group: str) -> bool:
    """Return whether this run's command line has a choice of ``group``; to compose its recipe takes a while."""
    if not HydraConfig.initialized():
        return True
    return any(override.startswith(f"{group}=") for override in HydraConfig.get().overrides.task)
