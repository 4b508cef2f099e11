"""Why a command line does not compose, in one sentence: Hydra's own answers advise to append what nothing reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from fogzo.checks import did_you_mean
from fogzo.errors import one_line


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
                return _missing(config, key, choices, loader)
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


def _missing(config: DictConfig, key: str, choices: list[str], loader: ConfigLoader) -> str:
    if meant := did_you_mean(key, _keys(OmegaConf.to_container(config), "")):
        return f"{key} is no key of this run{meant}"
    group = key.partition(".")[0]
    if not (options := loader.get_group_options(group)) or "." not in key:
        return f"{key} is no key of a run: python train.py --cfg job prints those that there are"
    others = [choice for choice in choices if not choice.startswith(f"{group}=")]
    owners = [option for option in options if _has(compose("train", [*others, f"{group}={option}"]), key)]
    has_not = f"{key} is no key of {group}={config[group].name}"
    return f"{has_not}: {', '.join(f'{group}={owner}' for owner in owners)} would have it" if owners else has_not


def _keys(node: Any, prefix: str) -> Iterator[str]:
    for key, value in node.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{key}.")
