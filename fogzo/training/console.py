"""What a run says to people: its announcement, its progress, its result, and where to go on from."""

from __future__ import annotations

import codecs
import secrets
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from omegaconf import DictConfig
from tqdm import tqdm

from fogzo.data import TextData
from fogzo.errors import UserError, one_line
from fogzo.quantize import quantized_weights
from fogzo.runs.files import atomic_write
from fogzo.runs.schema import COLUMNS, COSTS, METRICS, keys_of_kind
from fogzo.training import checkpoint
from fogzo.training.overrides import cautions, departures

if TYPE_CHECKING:
    from fogzo.training.trainer import Trainer

Row = Mapping[str, Any]
SHOWN = [column.key for column in COLUMNS if column.shown]
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


class Reporter:
    """Told of every step, every logged row and each batch of an evaluation; the record itself is ``metrics.jsonl``."""

    def start(self, step: int, steps: int) -> None: ...
    def step(self, step: int, loss: float) -> None: ...
    def row(self, row: Row) -> None: ...
    def evaluating(self, done: int, batches: int) -> None: ...
    def close(self) -> None: ...


class Progress(Reporter):
    """A bar with loss, metric, speed and time left on a terminal; lines elsewhere.

    A line comes with each logged row, with the first step, and wherever none came for ``every`` seconds.
    """

    def __init__(self, *, bar: bool | None = None, every: float = 10.0) -> None:
        self.use_bar = sys.stderr.isatty() if bar is None else bar
        self.every = every
        self.bar: tqdm[Any] | None = None
        self.metric = ""
        self.steps = self.at_step = 0
        self.printed: float | None = None  # when the last line was

    def start(self, step: int, steps: int) -> None:
        self.steps, self.at_step, self.printed = steps, step, None
        if self.use_bar:
            self.bar = tqdm(total=steps, initial=step, unit="step", dynamic_ncols=True, mininterval=0.2)

    def step(self, step: int, loss: float) -> None:
        self.at_step = step
        if self.bar is not None:
            self.bar.set_postfix_str(f"loss {loss:.3f}{self.metric}", refresh=False)
            self.bar.update(1)
        elif self._silent():
            self._print(f"loss {loss:.4g}")

    def evaluating(self, done: int, batches: int) -> None:
        if self.bar is not None:
            self.bar.set_postfix_str(f"evaluating: {done} of {batches} batches", refresh=False)
            self.bar.update(0)
        elif self._silent():
            self._print(f"evaluating: {done} of {batches} batches")

    def row(self, row: Row) -> None:
        """Show a logged row: its metric in the bar, or all of it as a line."""
        if "accuracy" in row:
            self.metric = f", accuracy {row['accuracy']:.1f} %"
        elif "perplexity" in row:
            self.metric = f", perplexity {row['perplexity']:.1f}"
        if self.bar is None:
            values = "  ".join(f"{name} {row[name]:.4g}" for name in SHOWN if row.get(name) is not None)
            self.at_step = row["step"]
            self._print(f"{row['event']}: {values}" if "event" in row else values)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def _silent(self) -> bool:
        return self.printed is None or time.monotonic() - self.printed >= self.every

    def _print(self, text: str) -> None:
        self.printed = time.monotonic()
        with suppress(OSError):  # a closed terminal or pipe ends no run
            print(f"step {self.at_step}/{self.steps}  {text}", flush=True)


class WandbMirror(Reporter):
    """Copies every row to Weights & Biases.  Offline by default: no account, and ``wandb sync`` later if wanted.

    The run's id is kept in the run folder, so that a resumed run continues the same W&B run: offline, each start leaves
    one folder, and syncing them one after the other makes one run of them.
    """

    def __init__(
        self, folder: Path, config: Row, *, project: str = "fogzo", mode: Literal["offline", "online"] = "offline"
    ) -> None:
        try:
            import wandb
        except ImportError as error:
            raise UserError("logger=wandb needs the package wandb: pip install wandb, or choose logger=none") from error
        id_file = folder / "wandb_id"
        if not id_file.exists():
            atomic_write(id_file, secrets.token_hex(4).encode())
        try:
            self.run = wandb.init(
                id=id_file.read_text().strip(),
                project=project,
                name=folder.name,
                dir=str(folder),
                config=dict(config),
                mode=mode,
                resume="allow",
                settings=wandb.Settings(silent=True, disable_git=True),
            )
        except wandb.Error as error:
            raise UserError(f"W&B cannot start ({one_line(error)}): choose logger.mode=offline, or log in") from error

    def row(self, row: Row) -> None:
        self.run.log({name: value for name, value in row.items() if value is not None}, step=int(row["step"]))

    def close(self) -> None:
        self.run.finish()
