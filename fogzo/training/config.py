"""The values of a config, held to what each can be: keys that stand in no group here, a group's by its constructor."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import partial
from typing import Any, Literal

from hydra.core.global_hydra import GlobalHydra
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from fogzo.checks import check_arguments, choice, did_you_mean, number, positive, whole
from fogzo.errors import ArgumentError, UserError, keys_of, one_line
from fogzo.training.compilation import How
from fogzo.training.devices import MOST_THREADS
from fogzo.training.overrides import owners
from fogzo.training.schedules import WAYS, over_steps

GROUPS = ("model", "quantizer", "activations", "estimator", "data", "optimizer", "schedule", "logger")


def held(check: Callable[..., Any], default: Any = MISSING, **bounds: Any) -> Any:
    """Return a dataclass field whose values, ``None`` aside, ``check`` of :mod:`fogzo.checks` holds to ``bounds``."""
    return field(default=default, metadata={"check": partial(check, **bounds)})


def filled(value: str, name: str) -> str:
    """Return ``value`` if there is something in it."""
    if not isinstance(value, str) or not value:
        raise ArgumentError(name, value, "is not possible: give text")
    return value


def shared(value: str, name: str) -> str:
    """Return ``value`` if processes can share that."""
    if value == "shard":
        raise UserError(
            "parallel=shard is not possible: torch's fully_shard takes no parameter without a dimension, which "
            "LSQ's steps are, and probes displace no shards: use parallel=data, with more micro_batches"
        )
    return choice(value, name, ("data", "probes"))


def check_values(kind: type, values: Mapping[str, Any]) -> None:
    """Refuse values that the fields of the dataclass ``kind`` cannot take.

    Raises:
        ArgumentError: naming key, value and rule.
    """
    checks = {key.name: key.metadata["check"] for key in fields(kind) if "check" in key.metadata}
    check_arguments(kind, {key: value for key, value in values.items() if value is None or key not in checks})
    for key, check in checks.items():
        if values.get(key) is not None:
            check(values[key], key)


@dataclass(frozen=True)
class Settings:
    """The numbers of a training run.  Intervals are in steps; 0 means only at the end."""

    steps: int = held(whole)
    batch_size: int = held(whole)
    seed: int = held(whole, lowest=0)
    micro_batches: int = held(whole, 1)
    clip_norm: float = held(number, 0.0, lowest=0, hint="; 0 is no clipping")
    precision: Literal["fp32", "bf16"] = "fp32"  # bf16: autocast; weights stay in fp32
    log_every: int = held(whole, 50, lowest=0)
    evaluate_every: int = held(whole, 0, lowest=0)
    checkpoint_every: int = held(whole, 500, lowest=0)
    keep_checkpoints: int = held(whole, 1)
    keep_best: bool = False
    parallel: Literal["data", "probes"] = held(shared, "data")
    spike_factor: float = held(number, 3.0, lowest=0, hint="; 0 is no watch")
    stop_on: Literal["nonfinite", "spike", "never"] = "nonfinite"

    def __post_init__(self) -> None:
        check_values(Settings, vars(self))
        if self.batch_size % self.micro_batches:
            raise UserError(f"micro_batches={self.micro_batches} does not divide batch_size={self.batch_size}")

    def check_ranks(self, ranks: int) -> None:
        """Refuse a number of ranks that cannot share the batch evenly."""
        if self.parallel == "data" and self.batch_size % (ranks * self.micro_batches):
            raise UserError(
                f"batch_size={self.batch_size} cannot be shared by {ranks} ranks, micro_batches={self.micro_batches}: "
                f"make it a multiple of {ranks * self.micro_batches}, or start fewer processes"
            )


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """The other keys: how long, where, on what, and how it is shown; ``configs/train.yaml`` says what they mean."""

    scale: Literal["mini", "paper"]
    epochs: int | None = held(whole)
    steps_factor: float = held(positive)
    device: str = held(filled)
    deterministic: bool
    compile: How
    threads: int = held(whole, lowest=0, highest=MOST_THREADS)
    evaluation_tokens: int = held(whole)
    evaluation_examples: int | None = held(whole)
    training_examples: int | None = held(whole)
    begin_from: str | None = held(filled)
    init_from: str | None = held(filled)
    progress: Literal["auto", "bar", "lines"]
    results_dir: str = held(filled)
    run_dir: str | None = held(filled)
    plan: bool
    sustained_flops: float = held(positive)
    cell: str | None
    setting: str | None
    phase: Literal["confirm", "tune"]


def check_keys(config: Mapping[str, Any]) -> None:
    """Refuse values of ``config``'s keys that stand in no group, and keys that nothing reads.

    Raises:
        UserError: in one sentence.
    """
    keys = {key: value for key, value in config.items() if not isinstance(value, Mapping) and key != "experiment"}
    kind_of = {key.name: kind for kind in (Settings, Surroundings) for key in fields(kind)}
    for key in keys.keys() - kind_of.keys():
        raise UserError(f"{key} is no key of a run{did_you_mean(key, {*config} - {key})}")
    if missing := [key for key in kind_of if key not in keys]:
        if (key := missing[0]) in config:
            raise UserError(f"{key}={config[key]} is not possible: give one value, no keys with values")
        raise UserError(f"{key} was taken out of the config, and a run needs it: leave it in")
    given = {key: value for key, value in keys.items() if (key, value) != ("steps", None)}  # null: from epochs
    for kind in (Settings, Surroundings):
        check_values(kind, {key: value for key, value in given.items() if kind_of[key] is kind})
    quantize = config.get("quantize")
    bits = quantize.get("bits") if isinstance(quantize, Mapping) else None
    if isinstance(bits, Mapping) and (odd := [pattern for pattern in bits if not isinstance(pattern, str)]):
        pattern = f"{{{odd[0]}*: {bits[odd[0]]}}}"
        raise UserError(f"quantize.bits={dict(bits)} has a number for layers: give a pattern such as {pattern}")
    if config.get("experiment") is None:
        for key, default in (("cell", None), ("setting", None), ("phase", "confirm")):
            if keys[key] != default:
                command = f"python train.py -m experiment=NAME {key}={keys[key]}"
                raise UserError(f"{key}={keys[key]} is a part of an experiment, and none was named: {command}")


def check_choices(cfg: DictConfig) -> None:
    """Refuse a group whose ``name`` or constructor is not that of its choice: the record would name another one.

    Where Hydra is not at hand to look the choices up, nothing is known of them.

    Raises:
        UserError: naming the group, and how to choose in it.
    """
    if not (hydra := GlobalHydra.instance()).is_initialized():
        return
    loader: Any = hydra.config_loader()
    for group in GROUPS:
        node, known = cfg.get(group), loader.get_group_options(group)
        values = node if isinstance(node, DictConfig) else {}
        name = values.get("name")
        own = loader.repository.load_config(f"{group}/{name}").config if name in known else {}
        own = own.get(group, own)  # of a choice that sets other groups too
        if any(own.get(key) != values.get(key) for key in ("name", "_target_")) or not own:
            raise UserError(
                f"the name or _target_ of {group} was changed, or is gone: give {group}=NAME, of {', '.join(known)}"
            )


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
                elsewhere = meant or owners(f"{group}.{key}")
                raise UserError(
                    f"{group}.{key} is no key of {group}={name}{elsewhere}; if the recipe set it, '~{group}.{key}' "
                    "leaves it out"
                )
    with keys_of(group):
        check_arguments(make, described)
    return make, described


def asked(make: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the parameters of a constructor by name."""
    return dict(inspect.signature(make).parameters)
