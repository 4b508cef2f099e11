"""The keys of ``configs/train.yaml`` that stand in no group: what each is, in one place that checks them all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import partial
from typing import Any, Literal

from fogzo.checks import check_arguments, choice, did_you_mean, number, positive, whole
from fogzo.errors import ArgumentError, UserError
from fogzo.training.compilation import How
from fogzo.training.devices import MOST_THREADS


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
    if values.get("parallel") == "shard":
        raise UserError(
            "parallel=shard is not possible: torch's fully_shard takes no parameter without a dimension, which "
            "LSQ's steps are, and probes displace no shards: use parallel=data, with more micro_batches"
        )
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
    known = {kind: {one.name for one in fields(kind)} for kind in (Settings, Surroundings)}
    for key in keys.keys() - known[Settings] - known[Surroundings]:
        raise UserError(f"{key} is no key of a run{did_you_mean(key, {*config} - {key})}")
    for kind, names in known.items():
        if missing := sorted(names - keys.keys()):
            raise UserError(f"{missing[0]} was taken out of the config, and a run needs it: leave it in")
        given = {key: value for key, value in keys.items() if key in names}
        if kind is Settings and given["steps"] is None:  # from epochs
            del given["steps"]
        check_values(kind, given)
    if config.get("experiment") is None:
        for key, default in (("cell", None), ("setting", None), ("phase", "confirm")):
            if keys[key] != default:
                command = f"python train.py -m experiment=NAME {key}={keys[key]}"
                raise UserError(f"{key}={keys[key]} is a part of an experiment, and none was named: {command}")
