"""From a config group to the object that it describes, its values held against the constructor's own annotations."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from fogzo.checks import check_arguments, did_you_mean
from fogzo.errors import ArgumentError, UserError, keys_of, one_line
from fogzo.training.schedules import WAYS, over_steps

GROUPS = ("model", "quantizer", "activations", "estimator", "data", "optimizer", "schedule", "logger")


def check_choices(cfg: DictConfig) -> None:
    """Refuse a group whose ``name`` or constructor is not that of its choice: the record would name another one.

    Where Hydra is not at hand to compose the choices, nothing is known of them.

    Raises:
        UserError: naming the group, and how to choose in it.
    """
    if not (hydra := GlobalHydra.instance()).is_initialized():
        return
    made = {group: cfg.get(group) for group in GROUPS}
    given = {
        key: (node.get("name"), node.get("_target_")) for key, node in made.items() if isinstance(node, DictConfig)
    }
    chosen = _composed(tuple(f"{group}={name}" for group, (name, _) in given.items()))
    for group in GROUPS:
        if chosen.get(group, ()) != given.get(group):
            known = hydra.config_loader().get_group_options(group)
            if chosen or given.get(group, ("",))[0] not in known:
                way_out = f"give {group}=NAME, of {', '.join(known)}"
                raise UserError(f"the name or _target_ of {group} was changed, or is gone: {way_out}")


@cache
def _composed(choices: tuple[str, ...]) -> dict[str, tuple[str, str | None]]:
    """Return the names and constructors that choices have of their own; of none if one of them does not exist."""
    try:
        cfg = compose("train", list(choices))
    except Exception:  # Hydra's are of many kinds
        return {}
    return {group: (cfg[group].name, cfg[group].get("_target_")) for group in GROUPS}


def instantiate(node: DictConfig, group: str, *positional: Any, **known: Any) -> Any:
    """Return what the config group ``node`` describes, made from its values and from what is ``known`` beside them.

    A constructor is handed what it asks for by name: an estimator for the run's ``weights``, ``seed`` or ``steps``.

    Raises:
        UserError: for values that its constructor does not take, by their keys: ``estimator.samples``.
    """
    make, values = arguments(node, group, **known)
    try:
        return make(*positional, **{name: known[name] for name in known.keys() & asked(make)}, **values)
    except ArgumentError as error:
        keys = (key for key, (argument, _) in WAYS.items() if argument == error.key and key in node)
        raise ArgumentError(f"{group}.{next(keys, error.key)}", error.value, error.rule) from None
    except UserError:
        raise
    except (ValueError, TypeError, RuntimeError) as error:  # of constructors that are not ours, and of sizes too large
        said = one_line(error)
        raise UserError(said if f"{group}." in said else f"{group}={node.name}: {said}") from error


def arguments(node: DictConfig, group: str, **known: Any) -> tuple[Any, dict[str, Any]]:
    """Return the constructor that ``node`` names and its arguments, held against their annotations."""
    described: dict[str, Any] = OmegaConf.to_container(node, resolve=True)  # type: ignore[assignment]
    make = get_object(described.pop("_target_"))
    name = described.pop("name", group)  # for people and folders
    with keys_of(group):
        described = over_steps(described, known.get("steps", 1))
    parameters = inspect.signature(make).parameters.values()
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        free = [parameter for parameter in asked(make) if parameter not in known]
        for key in described:
            if key not in free:
                written = {argument: config_key for config_key, (argument, _) in WAYS.items()}
                meant = did_you_mean(f"{group}.{key}", [f"{group}.{written.get(one, one)}" for one in free])
                raise UserError(f"{group}.{key} is no key of {group}={name}{meant}")
    with keys_of(group):
        check_arguments(make, described)
    return make, described


def asked(make: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the parameters of a constructor by name."""
    return dict(inspect.signature(make).parameters)
