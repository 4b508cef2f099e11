"""Who is told about a run while it goes on: a progress bar or plain lines, and Weights & Biases if asked."""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from fogzo.errors import one_line
from fogzo.runs.files import atomic_write
from fogzo.runs.schema import COLUMNS

Row = Mapping[str, Any]
SHOWN = [column.key for column in COLUMNS if column.shown]


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
            raise ValueError(
                "logger=wandb needs the package wandb: pip install wandb, or choose logger=none"
            ) from error
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
            raise ValueError(f"W&B cannot start ({one_line(error)}): choose logger.mode=offline, or log in") from error

    def row(self, row: Row) -> None:
        self.run.log({name: value for name, value in row.items() if value is not None}, step=int(row["step"]))

    def close(self) -> None:
        self.run.finish()
