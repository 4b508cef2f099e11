"""The columns of a record: what each is called, its unit, how many digits are shown, and which way is better."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A number of ``summary.json``: how it is called, how many digits are shown, and which way is better."""

    name: str
    unit: str  # of a difference
    sign: str  # of a value, where metrics stand side by side
    digits: int
    higher_is_better: bool | None = None  # None: neither, it cannot be compared by
    scale: str = ""  # what its values are, where they stand without a sign

    @property
    def label(self) -> str:
        """The head of its values in a table, or the words along an axis."""
        return f"{self.name}, {self.scale}" if self.scale else self.name


METRICS = {
    "accuracy": Metric("test accuracy", "points", " %", 2, True, scale="%"),
    "perplexity": Metric("test perplexity", "ppl", " ppl", 2, False),
    "train_loss": Metric("training loss", "nats", " nats", 4, False),
    "test_loss": Metric("test loss", "nats", " nats", 4, False),
    "mean_agreement": Metric("agreement", "", "", 2),
    "mean_zero_probes": Metric("zero-difference probes", "", "", 4, scale="share"),
    "mean_crossings": Metric("codes that a pair of probes changes", "", "", 0),
    "mean_guide_norm": Metric("norm of the STE gradient", "", "", 4),
}
COMPARED = [name for name, metric in METRICS.items() if metric.higher_is_better is not None]
