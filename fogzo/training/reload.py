"""From a finished run's folder back to its network: to go on working with it, and to evaluate it again."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from torch import nn

from fogzo.errors import UserError, explained, one_line
from fogzo.runs.folder import RunError, RunFolder, parse_config
from fogzo.training.build import check_fit, read_data
from fogzo.training.devices import choose_device, settle, use_threads
from fogzo.training.draft import build_model, place
from fogzo.training.ledger import autocast
from fogzo.training.resume import restore_model
from fogzo.training.tasks import task_of

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FINISHED = "name the folder of a finished run, which holds config.yaml and model.pt"


class LoadedRun(NamedTuple):
    """A run's quantized network with its trained weights, on the CPU and in evaluation mode, and the run's config."""

    model: nn.Module
    config: DictConfig


def load_run(folder: str | Path, overrides: Sequence[str] = (), *, weights: str = "model.pt") -> LoadedRun:
    """Return the quantized network of a run with its trained weights, and the run's config: ``model, config = ...``.

    Args:
        folder: of a finished run.
        overrides: ``data=NAME`` and ``KEY=VALUE`` in place of what the run was made with.
        weights: the file to take, ``best.pt`` of a run with ``keep_best=true``.

    Raises:
        UserError: if the folder holds no finished run, or one that the configs of this checkout cannot build.
    """
    folder = Path(folder)
    config = config_of(read_config(folder), overrides)
    with explained(folder / weights, FINISHED, also=(RuntimeError, pickle.UnpicklingError)):
        state = torch.load(folder / weights, map_location="cpu", weights_only=True)
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn, and then replaced
        model = build_model(OmegaConf.merge(config, {"init_from": None}))  # type: ignore[arg-type]
    restore_model(model, state, folder / weights, "evaluate it with the code that made it")
    return LoadedRun(model.eval(), config)


def read_config(folder: Path) -> dict[str, Any]:
    """Return what the ``config.yaml`` of a run folder says."""
    file = folder / "config.yaml"
    with explained(file, FINISHED):
        record = parse_config(file.read_text(encoding="utf-8"))
    if not isinstance(record, dict):
        raise RunError(f"{file} holds no config: {FINISHED}")
    return record


def config_of(record: Mapping[str, Any], overrides: Sequence[str] = ()) -> DictConfig:
    """Return the whole config of a record, which keeps names of choices and values, and no names of code.

    Raises:
        UserError: for overrides that no config has.
    """
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            loader = GlobalHydra.instance().config_loader()
            chosen = [word for word in overrides if word.partition("=")[0] in loader.list_groups("")]
            again = {word.partition("=")[0] for word in chosen}
            kept = {key: _plain(value) for key, value in record.items() if key not in {"experiment", "content", *again}}
            names = {group: value.get("name") for group, value in kept.items() if isinstance(value, dict)}
            known = [f"{group}={name}" for group, name in names.items() if name in loader.get_group_options(group)]
            config = compose("train", [f"scale={record['scale']}", *known, *chosen])
        OmegaConf.set_struct(config, False)
        config.merge_with(kept, OmegaConf.from_dotlist([word for word in overrides if word not in chosen]))
    except (HydraException, KeyError) as error:
        way_out = "give other values, or take the code that made the run"
        raise UserError(f"no config can be made of this run ({one_line(error, 120)}): {way_out}") from error
    return config


def _plain(value: Any) -> Any:
    """Return ``value`` of a record without what Hydra would call: a stranger's folder runs no code.

    Raises:
        UserError: for a reference, which could name anything; records have none.
    """
    if isinstance(value, dict):
        return {key: _plain(of_key) for key, of_key in value.items() if not str(key).startswith("_")}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, str) and "${" in value:
        raise UserError(f"{value!r} in a record's config is a reference, which no run writes: take the run's own file")
    return value


def evaluate_run(folder: str | Path, overrides: Sequence[str] = ()) -> dict[str, float]:
    """Return the metrics of a run's trained network: on its own data and kind of device the summary's, to the last bit.

    Args:
        overrides: as in :func:`load_run`: ``data=fashion_mnist``, ``data.root=FOLDER``, ``evaluation_tokens=1000000``.

    Raises:
        UserError: as :func:`load_run`, and for data that the network cannot take.
    """
    summary = RunFolder.view(Path(folder), {}).summary() or {}
    model, config = load_run(folder, overrides)
    device = device_of(summary)
    use_threads(summary.get("threads", config.threads))  # the order of sums depends on their number
    settle(device, deterministic=config.deterministic)
    model = place(model, device)
    data = read_data(config, device)
    check_fit(model, data)
    task = task_of(data, config.evaluation_tokens, config.evaluation_examples)
    with autocast(config.precision, device):
        return task.evaluate(model)


def device_of(summary: Mapping[str, Any]) -> torch.device:
    """Return the kind of device that a run used, or the CPU where there is none."""
    kind = str(summary.get("device", "cpu")).partition(":")[0]
    try:
        return choose_device(kind)
    except ValueError:
        return torch.device("cpu")
