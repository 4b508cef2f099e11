"""What the records say about the published numbers, by rule: statuses of cells, and verdicts in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fogzo.comparison import BETTER, TOO_FEW, UNDECIDED, WORSE, Difference, one_more_run
from fogzo.evidence import METRICS, Evidence
from fogzo.sweep import Cell
from fogzo.tables import signed

NOT_RUN = "not run"
TWIN = "scaled-down twin"
SHORT = {UNDECIDED: "open"}
FOGZO = ("fogzo", "phased")  # methods that are compared with every control
DESCRIPTIVE = (
    "model",
    "data",
    "quantizer",
    "metric",
    "setting",
    "source",
    "note",
    "also",
)  # the other keys of a row are methods

STATUS_RULE = (
    "A published cell is *reproduced* if runs at `scale=paper` gave values among which the published number could be "
    "one more (95 % prediction interval), else it *deviates*; a *scaled-down twin* is a smaller network on smaller "
    "data, of which only the direction of the difference to the STE can be compared."
)


def paper_row(evidence: Evidence, cell: Cell) -> Mapping[str, Any]:
    """The published row that a cell belongs to; empty if there is none."""
    rows = evidence.paper.get("rows") or {}
    if not cell.setting:
        return rows
    key = (evidence.experiment["settings"][cell.setting] or {}).get("paper")
    return rows.get(key) or {}


def is_published(evidence: Evidence, cell: Cell) -> bool:
    """Whether the paper has this cell, whatever is known of its value."""
    return cell.method in paper_row(evidence, cell)


def published_text(evidence: Evidence, cell: Cell) -> str:
    """The published value as it is known."""
    if not is_published(evidence, cell):
        return "–"
    return value_text(paper_row(evidence, cell)[cell.method])


def value_text(value: Any) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {value_text(part)}".replace("_", " ") for key, part in value.items())
    return str(value)


def published_number(evidence: Evidence, cell: Cell) -> float | None:
    """The published value of the row's metric, if it is a number."""
    row = paper_row(evidence, cell)
    value = row.get(cell.method)
    if isinstance(value, Mapping):
        value = value.get(row.get("metric", evidence.metric_of(cell)))
    return float(value) if isinstance(value, int | float) else None


def published_direction(evidence: Evidence, cell: Cell) -> int:
    """+1: better than the baseline in the paper, -1: worse, 0: not known.  Words count if they say so."""
    base = evidence.baseline(cell)
    if base is None or not is_published(evidence, cell) or not at_equal_steps(evidence, cell, base):
        return 0
    own, other = published_number(evidence, cell), published_number(evidence, base)
    if own is not None and other is not None:
        metric = METRICS.get(paper_row(evidence, cell).get("metric", evidence.metric_of(cell)))
        higher = 1 if metric is not None and metric.higher_is_better else -1
        return higher * ((own > other) - (own < other))
    words = published_text(evidence, cell)
    return ("better than STE" in words) - ("worse than STE" in words)


def at_equal_steps(evidence: Evidence, cell: Cell, base: Cell) -> bool:
    """Whether two cells trained for equally many steps, as the paper compares; also where one has no runs yet."""
    own, other = ({run.summary.get("steps") for run in evidence.finished(one)} for one in (cell, base))
    return not own or not other or own == other


def status(evidence: Evidence, cell: Cell) -> str:
    """Where a published cell stands; a dash for one that the paper does not have."""
    if not is_published(evidence, cell):
        return "–"
    if not evidence.values(cell):
        return "diverged" if evidence.diverged(cell) else NOT_RUN
    known = published_direction(evidence, cell)
    if evidence.scale == "paper":
        return _status_at_paper_scale(evidence, cell, known)
    base = evidence.baseline(cell)
    if base is None:
        return TWIN
    if not at_equal_steps(evidence, cell, base):
        return f"{TWIN}: not at equal steps, not judged"
    return f"{TWIN}: {_direction(evidence.difference(cell, evidence.baseline(cell)), known)}"


def _status_at_paper_scale(evidence: Evidence, cell: Cell, known: int) -> str:
    number = published_number(evidence, cell)
    if number is None:
        direction = _direction(evidence.difference(cell, evidence.baseline(cell)), known)
        return {"same direction": "reproduced", "opposite direction": "deviates"}.get(direction, direction)
    key = paper_row(evidence, cell).get("metric", evidence.metric_of(cell))
    interval = one_more_run(list(evidence.values(cell, key).values()))
    if interval is None:
        return "run once: not judged"
    return "reproduced" if interval[0] <= number <= interval[1] else "deviates"


def _direction(difference: Difference | None, known: int) -> str:
    if difference is None:
        return "nothing to compare with"
    if difference.outcome in (UNDECIDED, TOO_FEW):
        return difference.outcome
    if known == 0:
        return f"{difference.outcome} than the baseline; the paper's direction is not known"
    return "same direction" if (difference.mean > 0) == (known > 0) else "opposite direction"


@dataclass(frozen=True)
class Verdict:
    """What the settings together say of one method against another.

    Attributes:
        method, against: the methods; ``labels`` are how a reader knows them.
        word: confirmed, opposite (either may be "in part"), mixed, not to be told apart, too few pairs or not run;
            where the paper makes no such comparison better and worse stand for the first two.
        counts: in how many settings which outcome; ``tally`` is the same in short, empty for one setting.
        effect: smallest to greatest paired difference of the settings.
    """

    method: str
    against: str
    labels: tuple[str, str]
    word: str
    counts: str
    tally: str
    effect: str

    @property
    def sentence(self) -> str:
        """The comparison with its numbers, to stand after the word."""
        said = [part for part in (self.counts if self.counts != self.word else "", self.effect) if part]
        return f"{self.labels[0]} against {self.labels[1]}" + (f": {'; '.join(said)}" if said else "") + "."


def verdicts(evidence: Evidence) -> list[Verdict]:
    """Every published method against the baseline, then FOGZO against every control, over all settings."""
    return [
        _verdict(evidence, method, against, claimed=against == evidence.experiment.get("baseline", "ste"))
        for method, against in comparisons(evidence)
    ]


def comparisons(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """Pairs of methods: published ones and the baseline, every FOGZO and each control."""
    cells = list(evidence.cells.values())
    baseline = evidence.experiment.get("baseline", "ste")
    methods = list(dict.fromkeys(cell.method for cell in cells))
    published = {cell.method for cell in cells if is_published(evidence, cell)}
    controls = [m for m in methods if any(c.label.startswith("control") for c in cells if c.method == m)]
    fogzos = [m for m in methods if family(m) in FOGZO]
    for method in methods:
        if method != baseline and (method in published or method in fogzos):
            yield method, baseline
    for method in fogzos:
        for control in controls:
            yield method, control


def family(method: str) -> str:
    """A method without the number of its samples.

    >>> family("nspsa_7960"), family("noisy_ste")
    ('nspsa', 'noisy_ste')
    """
    head, _, tail = method.rpartition("_")
    return head if head and tail.isdigit() else method


def pairs_of(evidence: Evidence, method: str, against: str) -> list[tuple[Cell, Cell]]:
    """The cells of two methods in every setting that has both."""
    pairs = []
    for cell in evidence.cells.values():
        other = evidence.sibling(cell, against) if cell.method == method else None
        if other is not None:
            pairs.append((cell, other))
    return pairs


def _verdict(evidence: Evidence, method: str, against: str, *, claimed: bool) -> Verdict:
    pairs = pairs_of(evidence, method, against)
    found = [(cell, evidence.difference(cell, other)) for cell, other in pairs]
    judged = [(cell, difference) for cell, difference in found if difference is not None]
    first, second = (next(c.label for c in evidence.cells.values() if c.method == m) for m in (method, against))
    if not judged:
        return Verdict(method, against, (first, second), NOT_RUN, NOT_RUN, "", "")
    counts = Counter(difference.outcome for _, difference in judged)
    signs = [published_direction(evidence, cell) for cell, _ in judged] if claimed else []
    expected = -1 if signs and all(sign < 0 for sign in signs) else 1
    word = _word(counts, len(judged), expected=expected, claimed=any(signs))
    seen = [outcome for outcome in (BETTER, WORSE, UNDECIDED, TOO_FEW) if counts[outcome]]
    unrun = len(pairs) - len(judged)
    text = ", ".join(f"{outcome} in {counts[outcome]}" for outcome in seen)
    text += f" of {len(judged)} settings" + (f", {unrun} not run" if unrun else "")
    tally = ", ".join(f"{counts[outcome]} {SHORT.get(outcome, outcome)}" for outcome in seen)
    tally += f", {unrun} not run" if unrun else ""
    if len(pairs) == 1:
        text, tally = seen[0], ""
    return Verdict(method, against, (first, second), word, text, tally, _effect(evidence, judged))


def _effect(evidence: Evidence, found: Sequence[tuple[Cell, Difference]]) -> str:
    """Smallest to greatest difference, metric by metric: accuracies and perplexities have no common mean."""
    means: dict[str, list[float]] = {}
    for cell, difference in found:
        means.setdefault(evidence.metric_of(cell), []).append(difference.mean)
    texts = []
    for key, values in means.items():
        metric = METRICS[key]
        low, high = signed(min(values), metric.digits), signed(max(values), metric.digits)
        size = low if len(values) == 1 else f"{low} to {high}"
        texts.append(f"{size} {metric.unit}")
    return ", ".join(texts)


def _word(counts: Mapping[str, int], settings: int, *, expected: int, claimed: bool) -> str:
    with_it, against_it = (BETTER, WORSE) if expected > 0 else (WORSE, BETTER)
    same, opposite = counts.get(with_it, 0), counts.get(against_it, 0)
    words = ("confirmed", "opposite") if claimed else (with_it, against_it)
    if same and opposite:
        return "mixed"
    if same:
        return words[0] if same == settings else f"{words[0]} in part"
    if opposite:
        return words[1] if opposite == settings else f"{words[1]} in part"
    return UNDECIDED if counts.get(UNDECIDED) else TOO_FEW
