"""What the records say of one method against another, by rule: verdicts in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fogzo.evidence.compare import BETTER, TOO_FEW, UNDECIDED, WORSE, Difference, holm
from fogzo.evidence.experiment import Cell, Method
from fogzo.evidence.frame import Evidence
from fogzo.evidence.published import NOT_RUN, is_published, published_direction
from fogzo.evidence.tables import signed
from fogzo.runs.schema import METRICS

OUTCOMES = (BETTER, WORSE, UNDECIDED, TOO_FEW)
SHORT = {UNDECIDED: "open"}
FOGZO = ("fogzo", "fogzo_dropin", "phased")  # methods that are compared with the controls
# controls with the noise, the norm or the compute of FOGZO with n = 1: no match for more samples
OF_ONE_SAMPLE = ("noisy_ste", "rescaled_ste", "ste_longer")


@dataclass(frozen=True)
class Verdict:
    """What the settings together say of one method against another.

    Attributes:
        method, against: the methods; ``labels`` are how a reader knows them.
        word: confirmed, opposite (either may be "in part"), mixed, not to be told apart, too few pairs or not run;
            where the paper makes no such comparison better and worse stand for the first two.
        counts: in how many settings which outcome; ``tally`` is the same in short, empty for one setting.
        effect: smallest to greatest paired difference of the settings.
        aside: the same by another metric that the experiment shows: its name, the outcomes and the effect.
    """

    method: str
    against: str
    labels: tuple[str, str]
    word: str
    counts: str
    tally: str
    effect: str
    aside: str = ""

    @property
    def sentence(self) -> str:
        """The comparison with its numbers, to stand after the word."""
        said = [part for part in (self.counts if self.counts != self.word else "", self.effect, self.aside) if part]
        return f"{self.labels[0]} against {self.labels[1]}" + (f": {'; '.join(said)}" if said else "") + "."


def verdicts(evidence: Evidence) -> list[Verdict]:
    """Every published method against the baseline, then FOGZO against every control, over all settings."""
    return [
        _verdict(evidence, method, against, claimed=against == evidence.experiment.baseline)
        for method, against in comparisons(evidence)
    ]


def comparisons(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """Pairs of methods: published ones and the baseline, every FOGZO, also β = 1, and each control that matches."""
    cells = list(evidence.cells.values())
    baseline = evidence.experiment.baseline
    methods = list({cell.method.name: cell.method for cell in cells}.values())
    published = {cell.method.name for cell in cells if is_published(evidence, cell)}
    controls = [method.name for method in methods if method.is_control]
    fogzos = [method for method in methods if method.family in FOGZO]
    for method in methods:
        if method.name != baseline and (method.name in published or method in fogzos):
            yield method.name, baseline
    for method in fogzos:
        for control in controls:
            if _matches(control, method):
                yield method.name, control
    if {"slope", "ste_longer"} <= set(controls):  # FOGZO without noise, at FOGZO's cost
        yield "slope", "ste_longer"


def _matches(control: str, method: Method) -> bool:
    """Whether a control has what it is to have in common with ``method``: noise, norm, compute or tuning."""
    if method.name == "fogzo_dropin":
        return control == "ste_longer"  # the others are tuned, or of the noise that was tuned
    return method.samples == 1 or control not in OF_ONE_SAMPLE


def pairs_of(evidence: Evidence, method: str, against: str) -> list[tuple[Cell, Cell]]:
    """The cells of two methods in every setting that has both."""
    pairs = []
    for cell in evidence.cells.values():
        other = evidence.sibling(cell, against) if cell.method.name == method else None
        if other is not None:
            pairs.append((cell, other))
    return pairs


def _verdict(evidence: Evidence, method: str, against: str, *, claimed: bool) -> Verdict:
    pairs = pairs_of(evidence, method, against)
    judged = _judged(evidence, pairs)
    first, second = (next(c.label for c in evidence.cells.values() if c.method.name == m) for m in (method, against))
    if not judged:
        return Verdict(method, against, (first, second), NOT_RUN, NOT_RUN, "", "")
    signs = {one.cell.name: published_direction(evidence, one.cell) for one in judged} if claimed else {}
    # where the paper says something of some settings, those alone can confirm it
    said = [one for one in judged if signs.get(one.cell.name)] or judged
    word = word_of([(one.outcome, one.difference) for one in said], [signs.get(one.cell.name, 0) for one in said])
    counts = Counter(one.outcome for one in judged)
    unrun = len(pairs) - len(judged)
    text = _outcomes(counts) + f" of {len(judged)} settings" + (f", {unrun} not run" if unrun else "")
    if said != judged and any(signs.values()):
        text += f" (of {len(judged) - len(said)} the paper's direction is not known)"
    tally = ", ".join(f"{counts[outcome]} {SHORT.get(outcome, outcome)}" for outcome in OUTCOMES if counts[outcome])
    tally += f", {unrun} not run" if unrun else ""
    if len(pairs) == 1:
        text, tally = next(iter(counts)), ""
    effect, aside = _effect(evidence, judged), _aside(evidence, pairs)
    return Verdict(method, against, (first, second), word, text, tally, effect, aside)


@dataclass(frozen=True)
class _Judged:
    """One setting's comparison; without a difference where one of the methods diverged on every seed."""

    cell: Cell
    outcome: str
    difference: Difference | None


def _judged(evidence: Evidence, pairs: Sequence[tuple[Cell, Cell]], key: str | None = None) -> list[_Judged]:
    found = []
    for cell, other in pairs:
        if (outcome := evidence.outcome(cell, other, key)) is not None:
            found.append(_Judged(cell, outcome, evidence.difference(cell, other, key)))
    return found


def _outcomes(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{outcome} in {counts[outcome]}" for outcome in OUTCOMES if counts[outcome])


def _aside(evidence: Evidence, pairs: Sequence[tuple[Cell, Cell]]) -> str:
    """The outcomes by the first metric that is shown too and that cells can be compared by."""
    also = evidence.experiment.also
    key = next((key for key in also if METRICS[key].higher_is_better is not None), None)
    judged = _judged(evidence, pairs, key) if key else []
    if key is None or not judged:
        return ""
    counts = Counter(one.outcome for one in judged)
    said = next(iter(counts)) if len(pairs) == 1 else _outcomes(counts)
    return f"by {METRICS[key].label.removesuffix(', %')} {said}, {_effect(evidence, judged, key)}"


def _effect(evidence: Evidence, found: Sequence[_Judged], key: str | None = None) -> str:
    """Smallest to greatest difference, metric by metric: accuracies and perplexities have no common mean."""
    means: dict[str, list[float]] = {}
    for one in found:
        if one.difference is not None:
            means.setdefault(key or evidence.metric_of(one.cell), []).append(one.difference.mean)
    texts = []
    for name, values in means.items():
        metric = METRICS[name]
        low, high = signed(min(values), metric.digits), signed(max(values), metric.digits)
        size = low if len(values) == 1 else f"{low} to {high}"
        texts.append(f"{size} {metric.unit}")
    return ", ".join(texts)


def word_of(found: Sequence[tuple[str, Difference | None]], signs: Sequence[int]) -> str:
    """One word for the outcomes of several settings, given what the paper says of each.

    Where they don't all agree only those count that stand after Holm's correction of the paired t-tests of all of them:
    of a dozen settings in which nothing differs, some would otherwise make a claim true "in part" every second time.

    Args:
        found: outcome and difference of each; without a difference where one method diverged throughout.
        signs: +1: better in the paper, -1: worse, all 0: the paper makes no such comparison.

    >>> from fogzo.evidence.compare import paired_difference
    >>> better, open = (paired_difference(dict(enumerate(values)), dict.fromkeys(range(3), 0.0), higher_is_better=True)
    ...                 for values in ([3.0, 3.1, 3.2], [1.0, -1.0, 0.2]))
    >>> one, other = (better.outcome, better), (open.outcome, open)
    >>> word_of([one, one], [1, 1]), word_of([one, other], [1, 1]), word_of([one, other], [0, 0])
    ('confirmed', 'confirmed in part', 'better in part')
    """
    words = ("confirmed", "opposite") if any(signs) else (BETTER, WORSE)
    directions = [
        {BETTER: 1, WORSE: -1}.get(outcome, 0) * (-1 if sign < 0 else 1)
        for (outcome, _), sign in zip(found, signs, strict=True)
    ]
    for direction, word in ((1, words[0]), (-1, words[1])):
        if all(one == direction for one in directions):
            return word
    stands = holm([0.0 if difference is None else difference.p_t for _, difference in found])
    left = {direction for direction, holds in zip(directions, stands, strict=True) if direction and holds}
    if len(left) == 2:
        return "mixed"
    if left:
        return f"{words[0] if left == {1} else words[1]} in part"
    return UNDECIDED if any(outcome != TOO_FEW for outcome, _ in found) else TOO_FEW
