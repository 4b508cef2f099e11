"""Carry out one run, from its config to its summary: from the start, from a checkpoint, or not at all if it is over."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from fogzo.data import known
from fogzo.data.shards import sha256_of
from fogzo.errors import UserError
from fogzo.models.libraries import weight_files
from fogzo.ranks import announced, barrier, check_same, gather
from fogzo.runs.folder import RunError, RunFolder
from fogzo.runs.identity import run_name
from fogzo.runs.packed import Run
from fogzo.runs.provenance import provenance
from fogzo.runs.records import drop_command, find
from fogzo.training import checkpoint, compilation
from fogzo.training.build import build, reporters
from fogzo.training.closure import choose_probes
from fogzo.training.config import check_keys
from fogzo.training.console import advice_on_divergence, announcement, headline, say
from fogzo.training.devices import choose_device, exclusive_gpu, gpu_facts, memory_explained
from fogzo.training.distributed import process_group
from fogzo.training.draft import draft
from fogzo.training.groups import check_choices
from fogzo.training.ledger import PEAK
from fogzo.training.plan import plan
from fogzo.training.pretrained import weights_file
from fogzo.training.resume import named_checkpoint, resume, warm_start
from fogzo.training.shapes import follow_data
from fogzo.training.trainer import Trainer
from fogzo.training.watch import Diverged

OWN_DATA = ("imagefolder", "text")  # names that say nothing of what is in them


def train(cfg: DictConfig, *, sweeping: bool = False) -> dict[str, Any]:
    """Carry out the run that ``cfg`` describes, as far as it is not done, and return its summary.

    With ``sweeping`` there may be other runs at the same time: ``device=auto`` is then a GPU for this run alone.  With
    ``plan`` the plan is printed, and the summary is empty.

    Raises:
        ValueError: for anything in the config, the data or the run folder that will not do, before training starts.
        Interrupted: after a stop signal, with a checkpoint saved.
        Diverged: when a loss is not finite.
    """
    check_choices(cfg)
    check_keys(cfg)
    follow_data(cfg)
    if cfg.plan:
        if cfg.begin_from is not None:
            named_checkpoint(cfg.begin_from)
        say(plan(cfg).text)
        return {}
    record = plain_record(cfg)
    path = run_path(cfg, record)
    if (summary := RunFolder.finished(path, record)) is not None:
        finished_before(record, summary, path)
        with suppress(OSError):  # it stays where a run is killed just after its summary
            (path / "checkpoint.pt").unlink()
        return summary
    if (run := _packed(cfg, record)) is not None:
        return finished_before(record, dict(run.summary), path, run)
    alone = exclusive_gpu() if sweeping and cfg.device == "auto" and announced()[2] == 1 else nullcontext()
    device = choose_device(cfg.device)
    with alone, process_group(device), memory_explained(cfg, device, lambda: plan(cfg).memory):
        return _carry_out(cfg, record, path)


def _packed(cfg: DictConfig, record: Mapping[str, Any]) -> Run | None:
    """Return the run of ``record`` from the packed records, if it is there and may stand for the run asked for."""
    if cfg.run_dir or record["phase"] == "tune":
        return None
    return find(record, Path(cfg.results_dir) / "records")


def check(cfg: DictConfig) -> tuple[str, list[str]] | None:
    """Refuse what the run of ``cfg`` would refuse before its data are read, or say that it is finished.

    Returns the headline of a run that is finished, and what it lacks; ``None`` for one to launch: also where one has
    diverged, which the launched job says.

    Raises:
        ValueError: as :func:`train` would.
    """
    check_choices(cfg)
    check_keys(cfg)
    follow_data(cfg)
    record = plain_record(cfg)
    path = run_path(cfg, record)
    if cfg.plan:
        return None
    packed, summary = None, RunFolder.finished(path, record)
    if summary is None and (packed := _packed(cfg, record)) is not None:
        summary = dict(packed.summary)
    if summary is None:
        draft(cfg, announced()[2])
    elif summary.get("status") != "diverged":
        finished_before(record, summary, path, packed, notes=False)
        return headline(summary), _missing_weights(record, path, packed)
    return None


def _carry_out(cfg: DictConfig, record: dict[str, Any], path: Path) -> dict[str, Any]:
    PEAK.next_run()
    trainer = build(cfg)
    return _lead(cfg, record, trainer, path) if trainer.rank == 0 else _follow(record, trainer, path)


def _lead(cfg: DictConfig, record: dict[str, Any], trainer: Trainer, path: Path) -> dict[str, Any]:
    """Train as rank 0, which alone holds the folder, writes and speaks.  Returns the summary."""
    code = provenance() | gpu_facts(trainer.device)  # before training: the files may change while it goes on
    new = not (path / "config.yaml").exists()
    folder = RunFolder(path, record, place="run_dir" if cfg.run_dir else "results_dir")
    try:
        if (summary := folder.summary()) is not None:  # another process was faster
            return finished_before(record, summary, path)
        barrier()
        trainer.folder = folder
        with _not_kept_if_refused(folder, new):
            resumed = _start(trainer, folder, record)
        trainer.reporters = reporters(cfg, path, record)
        say(announcement(cfg, record, trainer, path, resumed))
        try:
            metrics = trainer.fit()
        except Diverged as error:
            folder.finish(summary_of(record, trainer, {}) | code | {"status": "diverged", "message": str(error)})
            barrier()
            raise Diverged(f"{error}: {advice_on_divergence(path)}") from None
        folder.keep("model.pt", checkpoint.weights(trainer.model))
        summary = summary_of(record, trainer, metrics) | code
        folder.finish(summary)  # last: from here on the run is over
        folder.checkpoint_file.unlink(missing_ok=True)
        say(f"finished: {headline(summary)}", f"result:   {path}")
        return summary
    finally:
        folder.close()


@contextmanager
def _not_kept_if_refused(folder: RunFolder, new: bool) -> Iterator[None]:
    """Within: what is refused leaves no ``config.yaml`` in a ``new`` folder, which would refuse the mended command."""
    try:
        yield
    except UserError:
        if new:
            folder.config_file.unlink()
        raise


def _follow(record: dict[str, Any], trainer: Trainer, path: Path) -> dict[str, Any]:
    """Train as any other rank: read rank 0's checkpoint, once it has checked the folder, and write nothing."""
    barrier()
    _start(trainer, RunFolder.view(path, record), record)
    try:
        return summary_of(record, trainer, trainer.fit())
    except Diverged:
        barrier()  # until rank 0 has written so: torchrun ends the others when one leaves
        raise


def _start(trainer: Trainer, folder: RunFolder, record: Mapping[str, Any]) -> bool:
    """Bring ``trainer`` to where it begins: to ``folder``'s checkpoint (returns ``True``), another run's, or step 0."""
    resumed = resume(trainer, folder)
    if not resumed:
        warm_start(trainer, record)
    choose_probes(trainer)
    same_start(trainer)
    return resumed


def same_start(trainer: Trainer) -> None:
    """Make sure that all ranks begin at the same step with the same weights."""
    if trainer.ranks == 1:
        return
    total = sum(float(parameter.detach().double().sum()) for parameter in trainer.model.parameters())
    start = torch.tensor([trainer.step, total], dtype=torch.float64, device=trainer.device)
    rows = gather(start)
    check_same(rows[:, 0], "the step at which it begins")
    check_same(rows[:, 1], "the weights with which it begins")


def plain_record(cfg: DictConfig) -> dict[str, Any]:
    """Return the config as ``config.yaml`` keeps it: plain values, no code or places, and of an experiment its name."""
    record: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    record["experiment"] = (record.get("experiment") or {}).get("name")
    if content := outside(cfg):
        record["content"] = content
    dropped = ("results_dir", "run_dir", "plan", "sustained_flops", "setting")
    for group in record.values():
        if isinstance(group, dict):
            group.pop("_target_", None)
    return {key: value for key, value in record.items() if key not in dropped}


def outside(cfg: DictConfig) -> dict[str, str]:
    """Return the SHA-256 of what the run computes with that stands in no config: part of its identity."""
    content = {} if cfg.init_from is None else {"init_from": sha256_of(weights_file(cfg.init_from))}
    if cfg.data.name in OWN_DATA and (sha256 := known(cfg.data).sha256):
        content["data"] = sha256
    if cfg.model.get("path") and (folder := Path(cfg.model.path)).is_dir():
        files = [file for file in (folder / "config.json", *weight_files(folder)) if file.is_file()]
        content["model"] = hashlib.sha256("".join(map(sha256_of, files)).encode()).hexdigest()
    return content


def run_path(cfg: DictConfig, record: Mapping[str, Any]) -> Path:
    """Return the run folder of a config: readable first, then the hash of all that changes the result."""
    if cfg.run_dir:
        return Path(cfg.run_dir)
    folder = Path(cfg.results_dir) / "runs"
    if record["experiment"]:
        folder /= record["experiment"] + ("_tuning" if record["phase"] == "tune" else "")
    return folder / run_name(record)


def finished_before(
    record: Mapping[str, Any], summary: dict[str, Any], folder: Path, packed: Run | None = None, *, notes: bool = True
) -> dict[str, Any]:
    """Say what the run of ``record`` ended with, and return its summary.

    Args:
        packed: its packed record; without one, its record is in ``folder``.
        notes: say what it lacks too.

    Raises:
        RunError: if the run was of other data than those that are there now.
        Diverged: if it had diverged.
    """
    where = packed.where if packed else folder
    data, asked = summary.get("data") or {}, record["data"]
    here = known(asked).sha256
    if here and data.get("sha256") and here != data["sha256"]:
        raise RunError(
            f"the finished run in {where} was of other data called {asked['name']} (sha256: {data['sha256'][:12]} → "
            f"{here[:12]}): give back the old data, or choose another results_dir or run_dir"
        )
    if summary.get("status") == "diverged":
        raise Diverged(f"this run has diverged ({summary.get('message')}): {advice_on_divergence(folder)}")
    say(
        f"finished already: {headline(summary)}",
        f"data:     {data.get('name', asked['name'])} (sha256 {str(data.get('sha256', 'unknown'))[:12]})",
        f"result:   {where}",
        *(f"note:     {note}" for note in (_missing_weights(record, folder, packed) if notes else ())),
    )
    return summary


def _missing_weights(record: Mapping[str, Any], folder: Path, packed: Run | None) -> list[str]:
    """Say how to get weights that are asked for and not there."""
    wanted = ["model.pt", *(["best.pt"] if record.get("keep_best") else [])]
    missing = [name for name in wanted if not (folder / name).exists()]
    if not missing:
        return []
    again = f"after `{drop_command(packed)}`" if packed else f"with {folder}/summary.json removed"
    return [f"{' and '.join(missing)} not kept here: {again}, the same command trains again"]


def summary_of(record: Mapping[str, Any], trainer: Trainer, metrics: dict[str, float]) -> dict[str, Any]:
    """Return what ``summary.json`` holds of a run that is over, but for the versions of the code."""
    means = {f"mean_{name}": value for name, value in trainer.whole_run.row().items() if name != "beta"}
    return {
        "status": "finished",
        "scale": record["scale"],
        "experiment": record["experiment"],
        "cell": record["cell"],
        "phase": record["phase"],
        "seed": record["seed"],
        "train_loss": None,
        **metrics,
        **means,
        "steps": trainer.step,
        **trainer.ledger.row(),
        **trainer.watch.row(),
        **({"begun_from": trainer.begun_from} if trainer.begun_from else {}),
        "ranks": trainer.ranks,
        "forward_flops_per_example": trainer.ledger.forward_flops,
        "backward_flops_per_example": trainer.ledger.backward_flops,
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "data": trainer.task.data.describe(),
        "device": str(trainer.device),
        "threads": torch.get_num_threads(),
        **{
            key: value for key, value in trainer.estimator.state_dict().items() if key == "probe_batch"
        },  # auto's choice
        **(compilation.outcome() if record["compile"] else {}),
    }
