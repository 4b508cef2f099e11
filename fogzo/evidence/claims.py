"""The paper's claims, one by one: what our records say to each, and how to check it.

``results/paper/claims.yaml`` lists them, with the experiments that bear on each.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from fogzo.evidence.compare import Difference
from fogzo.evidence.equal_loss import Ratio, cost_pairs, median_text, range_text, ratio_of
from fogzo.evidence.experiment import Cell
from fogzo.evidence.frame import Evidence, ForestRow
from fogzo.evidence.published import NOT_RUN, at_published_steps, published_difference, published_direction
from fogzo.evidence.tables import DASH, Table, difference_text, short, signed
from fogzo.evidence.verdicts import word_of
from fogzo.runs.folder import RunError
from fogzo.runs.records import read_yaml, spread
from fogzo.runs.schema import METRICS, Metric

CLAIMS = Path("results/paper/claims.yaml")
RULE = (
    "A claim is *confirmed* (or *opposite*) where our experiments of the same comparison come out as the paper says "
    "(or the other way round) beyond the seeds' spread, *in part* where only some of them do, *mixed* where they "
    "disagree; for these two a setting counts if it stands after Holm's correction for all settings of the claim. "
    "The abstract's claims are held against all settings of their networks; for the other claims, settings whose "
    "published direction is not known are shown and not counted. A ratio of compute is confirmed where the published "
    "one lies in the range of ours; where the second method does not get to the loss on some seeds, in part if the "
    "others' range holds it, and mixed if they lie above it. Twins are far smaller than the paper's networks: they can "
    "speak for or against a direction, not a size."
)


@dataclass(frozen=True)
class Case:
    """One setting of one experiment that bears on a claim."""

    evidence: Evidence
    cell: Cell
    baseline: Cell
    difference: Difference | None
    sign: int  # of the paper's difference; 0: not known

    @property
    def outcome(self) -> str:
        return self.evidence.outcome(self.cell, self.baseline) or NOT_RUN


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, and what bears on it.

    Attributes:
        name: its key in the file.
        text, trust: what the paper says, and how sure it is that it does.
        cases: settings in which a method is compared with the baseline.
        ratios: of compute: experiment, cells ``of`` and ``to``, the published ratio, and ours.
    """

    name: str
    text: str
    trust: str
    cases: Sequence[Case]
    ratios: Sequence[tuple[Evidence, Cell, Cell, float, Ratio | None]]

    def word(self, scale: str) -> str:
        """The verdict at a scale, mini or paper."""
        if self.ratios:
            return self._word_of_ratios(scale)
        judged = self._judged(scale)
        found = [(case.outcome, case.difference) for case in judged]
        return word_of(found, [case.sign for case in judged]) if judged else NOT_RUN

    def _judged(self, scale: str) -> list[Case]:
        """The cases that count: run at this scale, and of a direction that the paper gives."""
        cases = [case for case in self.cases if case.evidence.scale == scale and case.sign]
        return [case for case in cases if case.outcome != NOT_RUN]

    def _word_of_ratios(self, scale: str) -> str:
        words = []
        for evidence, _, _, published, ratio in self.ratios:
            if evidence.scale == scale and ratio is not None:
                words.append(_word_of_ratio(ratio, published))
        return "; ".join(dict.fromkeys(words)) or NOT_RUN

    def effect(self, scale: str) -> str:
        """Smallest to greatest difference of the settings that count, how far intervals reach; or the ratios."""
        if self.ratios:
            medians = [ratio for evidence, _, _, _, ratio in self.ratios if evidence.scale == scale and ratio]
            return " or ".join(
                f"{median_text(ratio)}{'×' if ratio.median else ''} ({range_text(ratio)})" for ratio in medians
            )
        found: dict[str, list[Difference]] = {}
        for case in self._judged(scale):
            if case.difference is not None:
                found.setdefault(case.evidence.metric_of(case.cell), []).append(case.difference)
        return ", ".join(_reach(those, METRICS[key]) for key, those in found.items())

    def shown_in(self) -> dict[str, str]:
        """Names and titles of the experiments with runs that bear on the claim."""
        found = [case.evidence for case in self.cases if case.outcome != NOT_RUN] + [ratio[0] for ratio in self.ratios]
        return {evidence.name: evidence.title for evidence in found}

    def seeds(self, scale: str) -> str:
        """How many pairs of seeds the settings have."""
        pairs = [case.difference.pairs for case in self._judged(scale) if case.difference]
        pairs += [ratio.pairs for evidence, _, _, _, ratio in self.ratios if evidence.scale == scale and ratio]
        return " to ".join(map(str, sorted({min(pairs), max(pairs)}))) if pairs else DASH


def _reach(found: Sequence[Difference], metric: Metric) -> str:
    """What may be hidden where nothing is told apart: the ends of all intervals."""
    means = [difference.mean for difference in found]
    ends = list(dict.fromkeys(signed(value, metric.digits) for value in (min(means), max(means))))
    text = f"{' to '.join(ends)} {metric.unit}"
    low, high = min(one.interval[0] for one in found), max(one.interval[1] for one in found)
    return text if high == math.inf else f"{text} [{signed(low, metric.digits)}, {signed(high, metric.digits)}]"


def _word_of_ratio(ratio: Ratio, published: float) -> str:
    if published > ratio.high:
        return "smaller here"
    if not ratio.median:
        return "not reached here"
    whole = ratio.seeds == ratio.pairs
    if published >= ratio.low:
        return "confirmed" if whole else "confirmed in part"
    return "larger here" if whole else "mixed"  # larger on some seeds; on the others the loss was not reached


def claims_of(found: Sequence[Evidence]) -> list[Claim]:
    """The claims in their file's order; none if there is no such file.

    Raises:
        RunError: if a claim names an experiment, a setting, a method or a cell that there is not.
    """
    return [_claim(name, given, {e.name: e for e in found}) for name, given in (read_yaml(CLAIMS) or {}).items()]


def _claim(name: str, given: Mapping[str, Any], known: Mapping[str, Evidence]) -> Claim:
    where = f"{CLAIMS}, {name}"

    def experiment(of: str) -> Evidence:
        if of not in known:
            raise RunError(f"{where}: experiment {of} is not known: choose from {', '.join(known)}")
        return known[of]

    cases: list[Case] = []
    for of, pattern in (given.get("settings") or {}).items():
        fitting = list(_cases(experiment(of), pattern, given))
        if not fitting:
            raise RunError(f"{where}: no setting of {of} that {pattern} fits has the method {given['method']}")
        cases += fitting
    ratios = []
    for ratio in given.get("ratios") or []:
        evidence = experiment(ratio["experiment"])
        if missing := [cell for cell in (ratio["of"], ratio["to"]) if cell not in evidence.cells]:
            raise RunError(f"{where}: {evidence.name} has no cell {missing[0]}")
        first, second = evidence.cells[ratio["of"]], evidence.cells[ratio["to"]]
        ratios.append((evidence, first, second, ratio["published"], ratio_of(cost_pairs(evidence, first, second))))
    return Claim(name, given["claim"], given["trust"], cases, ratios)


def _cases(evidence: Evidence, pattern: str, given: Mapping[str, Any]) -> Iterator[Case]:
    for cell in evidence.cells.values():
        base = evidence.baseline(cell)
        if cell.method.name == given["method"] and base is not None and fnmatchcase(cell.setting.name, pattern):
            sign = published_direction(evidence, cell)
            if given.get("of_all_settings") and at_published_steps(evidence, cell, base):
                sign = 1
            difference = evidence.difference(cell, base)
            yield Case(evidence, cell, base, difference, sign)


def forest_of(claim: Claim) -> dict[str, list[ForestRow]]:
    """The claim's settings by the metric they are compared by, for a forest plot, under their experiments' titles."""
    found: dict[str, list[ForestRow]] = {}
    for case in claim.cases:
        if case.difference is not None:
            entries = found.setdefault(case.evidence.metric_of(case.cell), [])
            if not any(shown is None and text == case.evidence.title for text, shown in entries):
                entries.append((case.evidence.title, None))
            label = case.cell.setting.label if case.cell.setting.name else case.cell.label
            entries.append((label, (case.evidence, case.cell, case.difference)))
    return found


def claims_table(claims: Sequence[Claim]) -> Table:
    """A row a claim: the verdict of the twins, how large, from how many seeds; and the verdict at the paper's scale."""
    header = [
        "the paper's claim", "at laptop scale", "difference to STE [ends of all 95 % intervals], or ratio", "seeds",
        "at paper scale", "trust that it is the paper's",
    ]  # fmt: skip
    rows = []
    for claim in claims:
        twin = [claim.word("mini"), claim.effect("mini") or DASH, claim.seeds("mini")]
        rows.append([claim.text, *twin, claim.word("paper"), claim.trust])
    return Table(header, rows, [RULE])


def cases_table(claim: Claim) -> Table:
    """What bears on one claim: a row a setting that was run, or a row a ratio."""
    if claim.ratios:
        header = [
            "more compute of",
            "than of",
            "published",
            "ours: median",
            "range of all seeds",
            "seeds that reach it",
        ]
        return Table(header, [_ratio_row(*ratio) for ratio in claim.ratios])
    header = [
        "experiment", "setting", "baseline", "with the method", "difference [95 %]; p", "outcome",
        "the paper's difference",
    ]  # fmt: skip
    rows = [_case_row(case, case.difference) for case in claim.cases if case.outcome != NOT_RUN]
    unrun = sum(case.outcome == NOT_RUN for case in claim.cases)
    notes = [f"Settings that bear on it and were not run: {unrun}."] if unrun else []
    return Table(header, rows, notes)


def _case_row(case: Case, difference: Difference | None) -> list[str]:
    evidence, metric = case.evidence, METRICS[case.evidence.metric_of(case.cell)]
    values = [list(evidence.values(cell).values()) for cell in (case.baseline, case.cell)]
    published = published_difference(evidence, case.cell)
    known = {1: "better", -1: "worse", 0: "not known"}[case.sign]
    if case.sign and not published_direction(evidence, case.cell):  # the paper says it of all settings alone
        known = "not known; the claim says better"
    return [
        f"[{evidence.title}](#{evidence.name})",
        case.cell.setting.label if case.cell.setting.name else DASH,
        *(spread(those, metric.digits) + metric.sign for those in values),
        difference_text(difference, metric.digits),
        case.outcome,
        known if published is None else f"{signed(published, metric.digits)} {metric.unit}",
    ]


def _ratio_row(evidence: Evidence, first: Cell, second: Cell, published: float, ratio: Ratio | None) -> list[str]:
    if ratio is None:
        return [first.label, second.label, short(published), DASH, DASH, DASH]
    ours = [median_text(ratio), range_text(ratio), f"{ratio.seeds} of {ratio.pairs}"]
    return [first.label, second.label, short(published), *ours]


def check_commands(claim: Claim) -> list[str]:
    """Commands that make one run of each method anew, beside the records, and what they print."""
    run = next((case for case in claim.cases if case.difference is not None), None)
    if run is not None:
        evidence, cells = run.evidence, [run.baseline, run.cell]
    else:
        ratio = next((ratio for ratio in claim.ratios if ratio[-1] is not None), None)
        if ratio is None:
            return []
        evidence, cells = ratio[0], [ratio[1], ratio[2]]
    lines = []
    for cell in cells:
        seed, value = next(iter(evidence.values(cell).items()))
        metric = METRICS[evidence.metric_of(cell)]
        command = f"python train.py -m experiment={evidence.name} cell={cell.name} seed={seed} results_dir=check"
        lines.append(f"{command}   # {metric.label.removesuffix(', %')} {value:.{metric.digits}f}{metric.sign}")
    return lines
