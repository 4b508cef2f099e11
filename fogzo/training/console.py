"""What a run says to people: its announcement, its result, and where to go on from."""

from __future__ import annotations

import codecs
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from fogzo.data import TextData
from fogzo.quantize import quantized_weights
from fogzo.runs.schema import COSTS, METRICS, keys_of_kind
from fogzo.training import checkpoint
from fogzo.training.draft import cautions, departures
from fogzo.training.trainer import Trainer

SCALES = {
    "mini": "embedded data and a short run, not the paper's setting",
    "paper": "the paper's setting as far as it is known",
}
# for terminals that cannot show them
PLAIN = str.maketrans(
    {"α": "alpha", "β": "beta", "ε": "eps", "√": "sqrt", "ĝ": "g", "·": "*", "×": "x", "→": "->", "–": "-", "±": "+-"}
)


def say(*lines: str) -> None:
    """Print ``lines`` at once, also into a file or a pipe."""
    print("\n".join(lines), flush=True)


def spell_out() -> None:
    """Let letters that the terminal cannot show be spelt in ASCII: ``β_min`` as ``beta_min``, anything unknown as ?."""

    def spelt(error: UnicodeError) -> tuple[str, int]:
        if not isinstance(error, UnicodeEncodeError):
            raise error
        text = error.object[error.start : error.end].translate(PLAIN)
        return text.encode("ascii", "replace").decode(), error.end

    codecs.register_error("spelt", spelt)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="spelt")


def announcement(cfg: DictConfig, record: Mapping[str, Any], trainer: Trainer, folder: Path, resumed: bool) -> str:
    """Return what a run that is about to train says: scale, model, what is quantized, length, data and folder."""
    quantized = quantized_weights(trainer.model) if record["quantizer"]["name"] != "none" else []
    latent = sum(weight.latent.numel() for weight in quantized)
    total = sum(p.numel() for p in trainer.model.parameters())
    chosen = {group: record[group]["name"] for group in ("model", "quantizer", "estimator", "activations")}
    how = chosen["quantizer"] + ("" if chosen["activations"] == "none" else f", activations {chosen['activations']}")
    settings = trainer.settings
    ranks = f", {trainer.ranks} processes that share the {settings.parallel}" if trainer.ranks > 1 else ""
    other = departures(cfg) if record["scale"] == "paper" else []
    but = f", but for {', '.join(other)}" if other else ""
    skip = record["quantize"]["skip"]
    names = (
        "the first convolution and the head" if skip == "auto" else ", ".join([skip] if isinstance(skip, str) else skip)
    )
    left_out = f"all linear and convolution layers but {names}"
    lines = (
        f"scale:    {record['scale']} ({SCALES[record['scale']]}{but})",
        f"model:    {chosen['model']}, {total:,} parameters, {latent:,} of them quantized ({how})",
        f"layers:   {len({w.layer_name for w in quantized})} quantized: "
        + (left_out if skip else "all")
        + "".join(f", {pattern} with {bits} bits" for pattern, bits in (record["quantize"]["bits"] or {}).items()),
        f"training: {chosen['estimator']}, {settings.steps} steps of {settings.batch_size} examples of "
        f"{trainer.task.data.name}, seed {record['seed']}, on {trainer.device}{ranks}",
        *_epochs(trainer),
        f"folder:   {folder} ({f'going on from step {trainer.step}' if resumed else 'from the beginning'})",
        *(f"warning:  {caution}" for caution in cautions(cfg)),
        *(f"note:     {note}" for note in trainer.notes),
    )
    return "\n".join(lines)


def _epochs(trainer: Trainer) -> list[str]:
    """Return how often training goes through a text, which may be shorter than the run that a recipe asks for."""
    data, settings = trainer.task.data, trainer.settings
    if not isinstance(data, TextData):
        return []
    asked, there = settings.steps * settings.batch_size * data.sequence, len(data.train) * data.sequence
    return [f"tokens:   {asked:,} = {asked / there:.4g} epochs of the {there:,} of {data.name}"]


def headline(summary: Mapping[str, Any]) -> str:
    """Return a finished run's result in a line: its metric, its training loss, and what it cost."""
    known = {key: summary[key] for key in (*METRICS, *COSTS) if summary.get(key) is not None}
    metrics = [METRICS[key] for key in (*keys_of_kind("task"), "train_loss") if key in known]
    costs = [COSTS[key] for key in ("forward_equivalents", "seconds") if key in known]
    return ", ".join(
        [f"{of.name} {known[of.key]:.{of.digits}f} {of.scale}".rstrip() for of in metrics]
        + [f"{known[of.key]:,.{of.digits}f} {of.unit}" for of in costs]
    )


def advice_on_divergence(folder: Path) -> str:
    """Return what to do about a run that diverged in ``folder``."""
    saved = checkpoint.existing(folder / "checkpoint.pt")
    last = (
        f"the last good checkpoint is {saved[0]}, from which another config goes on with begin_from={saved[0]}"
        if saved
        else "it had saved no checkpoint yet"
    )
    return f"lower optimizer.lr or change the config; {last}"
