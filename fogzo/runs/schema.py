"""The numbers of a record, once: how each is called, its unit, how many digits are shown, and which way is better.

A row of ``metrics.jsonl`` has them under ``key``.  A summary has those of the last row; of diagnostics, which are means
over the steps since the row before, it has those over the whole run, as ``mean_KEY``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# what the task is about; losses; what training costs; what an estimate saw; what else is counted
Kind = Literal["task", "loss", "cost", "diagnostic", "count"]


@dataclass(frozen=True)
class Metric:
    """A number of rows and summaries.

    Attributes:
        unit: of a difference, and of a cost.
        sign: what stands behind a value where metrics stand side by side.
        digits: how many are shown behind the point.
        higher_is_better: ``None``: neither, so that nothing is compared by it.
        scale: what its values are, where they stand without a sign.
        shown: whether a line of progress has it.
    """

    key: str
    kind: Kind
    name: str
    unit: str = ""
    sign: str = ""
    digits: int = 0
    higher_is_better: bool | None = None
    scale: str = ""
    shown: bool = True

    @property
    def label(self) -> str:
        """The head of its values in a table, or the words along an axis."""
        return f"{self.name}, {self.scale}" if self.scale else self.name

    @property
    def summary_key(self) -> str:
        return f"mean_{self.key}" if self.kind == "diagnostic" else self.key


# In the order in which a line of progress shows them, and a row holds those of a kind
COLUMNS = (
    Metric("loss", "diagnostic", "loss of the batches", digits=4),
    Metric("train_loss", "loss", "training loss", "nats", " nats", 4, False),
    Metric("test_loss", "loss", "test loss", "nats", " nats", 4, False),
    Metric("accuracy", "task", "test accuracy", "points", " %", 2, True, scale="%"),
    Metric("perplexity", "task", "test perplexity", "ppl", " ppl", 2, False),
    Metric("beta", "diagnostic", "β", digits=6, shown=False),
    Metric("noise_share", "diagnostic", "noise in a probe", digits=4, scale="share", shown=False),
    Metric("agreement", "diagnostic", "agreement", digits=2),
    Metric("zero_probes", "diagnostic", "zero-difference probes", digits=4, scale="share"),
    Metric("guide_norm", "diagnostic", "norm of the STE gradient", digits=4, shown=False),
    Metric("crossings", "diagnostic", "codes that a pair of probes changes"),
    Metric("flips", "count", "codes that flipped"),
    Metric("flip_share", "count", "codes that flipped", digits=4, scale="share", shown=False),
    Metric("forwards", "cost", "forward passes", shown=False),
    Metric("backwards", "cost", "backward passes", shown=False),
    Metric("flops", "cost", "FLOPs", "FLOPs", shown=False),
    Metric("forward_equivalents", "cost", "forward equivalents", "forward equivalents"),
    Metric("examples", "cost", "examples", "examples", shown=False),
    Metric("seconds", "cost", "seconds", "s", digits=1),
    Metric("cpu_seconds", "cost", "seconds of the CPU", "s", digits=1, shown=False),
    Metric("data_seconds", "cost", "seconds of waiting for data", "s", digits=1, shown=False),
    Metric("peak_memory_bytes", "cost", "most memory", "bytes", shown=False),
)


def keys_of_kind(kind: Kind) -> tuple[str, ...]:
    """Return the keys of one kind, in order."""
    return tuple(column.key for column in COLUMNS if column.kind == kind)


LOGGED = {column.key: column for column in COLUMNS}
COSTS = {column.key: column for column in COLUMNS if column.kind == "cost"}
# what tables show of a summary, by its key there; and of rows, which alone have it, the mean of
FLIPS = "flip_share"
METRICS = {c.summary_key: c for c in COLUMNS if c.kind in ("task", "loss", "diagnostic") or c.key == FLIPS}
COMPARED = [key for key, metric in METRICS.items() if metric.higher_is_better is not None]
