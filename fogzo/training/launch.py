"""Carry out one run, from its config to its summary: from the start, from a checkpoint, or not at all if it is over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import torch
from omegaconf import DictConfig

from fogzo.errors import UserError
from fogzo.ranks import announced, barrier, check_same, gather, largest
from fogzo.runs.folder import RunFolder
from fogzo.runs.provenance import provenance
from fogzo.training import checkpoint
from fogzo.training.build import build, reporters
from fogzo.training.closure import choose_probes
from fogzo.training.config import check_choices, check_keys
from fogzo.training.console import advice_on_divergence, announcement, headline, say
from fogzo.training.devices import choose_device, device_facts, exclusive_gpu, memory_explained
from fogzo.training.distributed import process_group
from fogzo.training.draft import draft
from fogzo.training.ledger import PEAK
from fogzo.training.plan import plan
from fogzo.training.record import Asked, finished_before, look_up, missing_weights, summary_of
from fogzo.training.resume import named_checkpoint, resume, warm_start
from fogzo.training.shapes import follow_data
from fogzo.training.trainer import Trainer
from fogzo.training.watch import Diverged


def train(cfg: DictConfig, *, sweeping: bool = False) -> dict[str, Any]:
    """Carry out the run that ``cfg`` describes, as far as it is not done, and return its summary.

    With ``sweeping`` there may be other runs at the same time: ``device=auto`` is then a GPU for this run alone.  With
    ``plan`` the plan is printed, and the summary has its FLOPs alone.

    Raises:
        ValueError: for anything in the config, the data or the run folder that will not do, before training starts.
        Interrupted: after a stop signal, with a checkpoint saved.
        Diverged: when a loss is not finite.
    """
    check_config(cfg)
    if cfg.plan:
        if cfg.begin_from is not None:
            named_checkpoint(cfg.begin_from)
        planned = plan(cfg)
        say(planned.text)
        return {"flops": planned.flops}
    asked = look_up(cfg)
    if asked.summary is not None:
        finished_before(asked)
        with suppress(OSError):  # it stays where a run is killed just after its summary
            (asked.path / "checkpoint.pt").unlink()
        return asked.summary
    alone = exclusive_gpu() if sweeping and cfg.device == "auto" and announced()[2] == 1 else nullcontext()
    device = choose_device(cfg.device)
    with alone, process_group(device), memory_explained(cfg, device, lambda: plan(cfg).memory):
        return _carry_out(cfg, asked)


def check(cfg: DictConfig) -> tuple[str, list[str]] | None:
    """Refuse what the run of ``cfg`` would refuse before its data are read, or say that it is finished.

    Returns the headline of a run that is finished, and what it lacks; ``None`` for one to launch or to plan: also where
    one has diverged, which the launched job says, and which is planned as if it had not been run.

    Raises:
        ValueError: as :func:`train` would.
    """
    check_config(cfg)
    asked = look_up(cfg)
    if asked.summary is None:
        if not cfg.plan:  # which makes a draft of its own
            draft(cfg, announced()[2])
    elif asked.summary.get("status") != "diverged":
        finished_before(asked, notes=False)
        return headline(asked.summary), missing_weights(asked)
    return None


def check_config(cfg: DictConfig) -> None:
    """Check choices and keys, and fill in what follows the data."""
    check_choices(cfg)
    check_keys(cfg)
    follow_data(cfg)


def _carry_out(cfg: DictConfig, asked: Asked) -> dict[str, Any]:
    PEAK.next_run()
    trainer = build(cfg)
    return _lead(cfg, trainer, asked) if trainer.rank == 0 else _follow(trainer, asked)


def _lead(cfg: DictConfig, trainer: Trainer, asked: Asked) -> dict[str, Any]:
    """Train as rank 0, which alone holds the folder, writes and speaks.  Returns the summary."""
    record, path = asked.record, asked.path
    code = provenance() | device_facts(trainer.device)  # before training: the files may change while it goes on
    new = not (path / "config.yaml").exists()
    folder = RunFolder(path, record, place="run_dir" if cfg.run_dir else "results_dir")
    try:
        over = folder.summary()
        largest(int(over is not None))  # the other ranks wait for this, and then for nothing if the run is over
        if over is not None:  # another process was faster
            return finished_before(asked._replace(summary=over))
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
        folder.keep("model.pt", checkpoint.saved(trainer.model.state_dict()))
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


def _follow(trainer: Trainer, asked: Asked) -> dict[str, Any]:
    """Train as any other rank: read rank 0's checkpoint, once it has checked the folder, and write nothing."""
    if largest(0):  # rank 0 has found the run over
        return finished_before(asked._replace(summary=RunFolder.finished(asked.path, asked.record)))
    _start(trainer, RunFolder.view(asked.path, asked.record), asked.record)
    try:
        return summary_of(asked.record, trainer, trainer.fit())
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
