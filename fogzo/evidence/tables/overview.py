"""The tables over all experiments: the paper's claims, and members of the family at equal compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fogzo.evidence.claims import Claim, RatioCase
from fogzo.evidence.experiment import Cell
from fogzo.evidence.frame import Evidence
from fogzo.evidence.numbers import Effect, short
from fogzo.evidence.published import published_difference, published_direction
from fogzo.evidence.tables import Entry, Row, Table, Value, link, on_page, quantity, verdict, whole_effect
from fogzo.evidence.tables.compute import ratio_texts
from fogzo.evidence.verdicts import Case, effects_of, run_of
from fogzo.evidence.words import Word
from fogzo.runs.schema import METRICS

SAME = 0.02  # costs that differ by less than this share are the same


def claims_table(claims: Sequence[Claim]) -> Table:
    """Return a row a claim: the twins' verdict, how large, from how many seeds, and that at the paper's scale."""
    headers = [
        "the paper's claim", "at laptop scale", "difference to STE [ends of all 95 % intervals], or ratio", "seeds",
        "at paper scale", "trust that it is the paper's",
    ]  # fmt: skip
    rows = []
    for claim in claims:
        twins = [verdict(*claim.words("mini")), claim_effect(claim, "mini"), _seeds(claim, "mini")]
        paper = [verdict(*claim.words("paper")), f"{claim.said.trust}: {claim.said.source}"]
        rows.append(on_page(headers, [claim.said.claim, *twins, *paper]))
    return Table(rows)


def claim_effect(claim: Claim, scale: str) -> str | None:
    """Return how large the differences that count are, and how far their intervals reach; or the ratios."""
    if not claim.ratios:
        return ", ".join(effect.directed() for effect in effects_of(claim.judged(scale), intervals=True)) or None
    ratios = [case.ratio for case in claim.judged_ratios(scale) if case.ratio is not None]
    return " or ".join(f"{r.median_text}{'×' if r.median else ''} ({r.range_text})" for r in ratios) or None


def _seeds(claim: Claim, scale: str) -> str | None:
    """Return how many pairs of seeds the settings have."""
    pairs = {case.difference.pairs for case in claim.judged(scale) if case.difference}
    pairs |= {case.ratio.pairs for case in claim.judged_ratios(scale) if case.ratio}
    return " to ".join(map(str, sorted({min(pairs), max(pairs)}))) if pairs else None


def cases_table(claim: Claim) -> Table:
    """Return what bears on one claim: a row a setting that was run, or a row a ratio."""
    if claim.ratios:
        return Table(list(map(_ratio_row, claim.ratios)))
    run = run_of(claim.cases)
    unrun = len(claim.cases) - len(run)
    return Table(list(map(_case_row, run)), [f"Settings that bear on it and were not run: {unrun}."] if unrun else [])


def _case_row(case: Case) -> Row:
    headers = [
        "experiment", "setting", "baseline", "with the method", "difference [95 %]; p", "outcome",
        "the paper's difference",
    ]  # fmt: skip
    evidence, metric = case.evidence, METRICS[case.metric]
    entries: list[Entry | Value] = [
        link(evidence.title, f"#{evidence.name}"),
        case.cell.setting.label if case.cell.setting.name else None,
        *(quantity(evidence.values(cell).values(), metric.digits, metric.sign) for cell in (case.other, case.cell)),
        whole_effect(case.difference, metric),
        verdict(case.outcome),
        _published_difference(case),
    ]
    return on_page(headers, entries)


def _published_difference(case: Case) -> str:
    difference = published_difference(case.evidence, case.cell)
    if difference is not None:
        return Effect([difference], METRICS[case.metric]).directed()
    if case.direction and not published_direction(case.evidence, case.cell):  # the paper says it of all settings alone
        return "not known; the claim says better"
    return {1: "better", -1: "worse", 0: "not known"}[case.direction]


def _ratio_row(case: RatioCase) -> Row:
    headers = [
        "more compute of", "than of", "published", "ours: median", "range of all seeds", "seeds that reach it"
    ]  # fmt: skip
    labels = [case.first.label, case.second.label, short(case.published)]
    return on_page(headers, [*labels, *ratio_texts(case.ratio)])


MemberKey = tuple[str, int]  # a method's family and its samples: experiments call one method by several names


@dataclass(frozen=True)
class MemberRow:
    """One setting: the comparisons of the members that were run in it."""

    experiment: str
    setting: str
    cases: Mapping[MemberKey, Case]

    def text(self, member: MemberKey) -> str | None:
        """Return a member's difference, and its outcome where the direction in words does not say it."""
        if member not in self.cases:
            return None
        (effect,), outcome = effects_of([self.cases[member]]), self.cases[member].outcome
        return effect.directed() + ("" if outcome in (Word.BETTER, Word.WORSE) else f", {outcome.short}")


def member_rows(every: Sequence[Evidence]) -> tuple[dict[MemberKey, str], list[MemberRow]]:
    """Return the members by label, those run most often first, and the settings where one can be compared."""
    labels: dict[MemberKey, str] = {}
    rows = []
    for evidence in every:
        for cells in evidence.settings().values():
            of_setting = {}
            for cell in cells:
                other = equal_baseline(evidence, cell)
                case = Case(evidence, cell, other) if other else None
                if case is not None and case.difference is not None:
                    key = (cell.method.family, cell.method.samples)
                    labels.setdefault(key, cell.method.label)
                    of_setting[key] = case
            if of_setting:
                label = cells[0].setting.label if cells[0].setting.name else ""  # all cells share the title's
                rows.append(MemberRow(evidence.title, label, of_setting))
    settings = {key: sum(key in row.cases for row in rows) for key in labels}
    return {key: labels[key] for key in sorted(labels, key=lambda key: -settings[key])}, rows


def equal_baseline(evidence: Evidence, cell: Cell) -> Cell | None:
    """Return the baseline of ``cell``'s setting, or its kin of other steps, that cost what ``cell`` cost.

    ``None`` if there is none, or for one of that family itself.
    """
    cost = evidence.mean(cell, "forward_equivalents")
    family = evidence.experiment.methods[evidence.experiment.baseline].family
    if cell.method.family == family or not cost:
        return None
    shares = {}
    for other in evidence.settings()[cell.setting.name]:
        of_other = evidence.mean(other, "forward_equivalents")
        if other.method.family == family and of_other:
            shares[other.name] = abs(of_other / cost - 1)
    nearest = min(shares, key=lambda name: shares[name], default=None)
    return evidence.cells[nearest] if nearest is not None and shares[nearest] <= SAME else None


def members_table(every: Sequence[Evidence]) -> Table:
    """Return a row a setting, a column a member of the family: its difference to an STE of the same compute."""
    labels, settings = member_rows(every)
    rows: list[Row] = []
    blocks = []
    for number, row in enumerate(settings):
        new = number == 0 or row.experiment != settings[number - 1].experiment
        blocks += [number] if new else []
        headers = ["experiment", "setting", *labels.values()]
        rows.append(on_page(headers, [row.experiment if new else "", row.setting, *map(row.text, labels)]))
    return Table(rows, blocks=blocks)
