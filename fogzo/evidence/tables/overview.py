"""The tables over all experiments: the paper's claims, members of the family at equal compute, and decisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from fogzo.evidence.claims import Claim, RatioCase
from fogzo.evidence.compare import LEVEL, holm
from fogzo.evidence.experiment import Cell
from fogzo.evidence.frame import Evidence
from fogzo.evidence.numbers import Effect, from_to, short
from fogzo.evidence.published import published_difference, published_direction
from fogzo.evidence.tables import Entry, Row, Span, Table, link, on_page, quantity, verdict, whole_effect
from fogzo.evidence.tables.compute import ratio_entries
from fogzo.evidence.verdicts import Case, effects_of, run_of
from fogzo.evidence.words import Word
from fogzo.runs.schema import METRICS

SAME = 0.02  # costs that differ by less than this share are the same
CLAIMS_RULE = (
    "A claim is *confirmed* (or *opposite*) where our experiments of the same comparison come out as the paper says "
    "(or the other way round) beyond the seeds' spread, *in part* where only some of them do, *mixed* where they "
    "disagree; for these two a setting counts if it stands after Holm's correction for all settings of the claim. The "
    "abstract's claims are held against all settings of their networks; for the other claims, settings whose "
    "published direction is not known are shown and not counted. A ratio of compute is confirmed where the published "
    "one lies in the range of ours; where the second method does not get to the loss on some seeds, in part if the "
    "others' range holds it, and mixed if they lie above it. Twins are far smaller than the paper's networks: they "
    "can speak for or against a direction, not a size."
)
DECISIONS_RULE = (
    "In brackets p after Holm's correction over {family}: exact, of sign flips, with 6 pairs of seeds "
    "or more, else of the paired t-test. *Open*: not told apart by the rule of the pages, or not after the correction."
)
IN_SEVERAL_TABLES = "all comparisons of a setting, here and in the other tables of the same metric"


def claims_table(claims: Sequence[Claim]) -> Table:
    """Return a row a claim: the twins' verdict, how large, from how many seeds, and that at the paper's scale."""
    rows = []
    for claim in claims:
        entries = {
            "the paper's claim": claim.said.claim,
            "at laptop scale": verdict(*claim.words("mini")),
            "difference to STE [ends of all 95 % intervals], or ratio": claim_effect(claim, "mini"),
            "seeds": _seeds(claim, "mini"),
            "at paper scale": verdict(*claim.words("paper")),
            "trust that it is the paper's": f"{claim.said.trust}: {claim.said.source}",
        }
        rows.append(on_page(entries))
    return Table(rows, [CLAIMS_RULE])


def claim_effect(claim: Claim, scale: str) -> str | None:
    """Return how large the differences that count are, and how far their intervals reach; or the ratios."""
    if not claim.ratios:
        return ", ".join(effect.directed() for effect in effects_of(claim.judged(scale), intervals=True)) or None
    ratios = [case.ratio for case in claim.judged_ratios(scale) if case.ratio is not None]
    return " or ".join(f"{r.median_text}{'×' if r.median else ''} ({r.range_text})" for r in ratios) or None


def _seeds(claim: Claim, scale: str) -> str | None:
    """Return how many pairs of seeds the settings have."""
    found = [case.difference for case in claim.judged(scale)] + [case.ratio for case in claim.judged_ratios(scale)]
    pairs = {one.pairs for one in found if one is not None}
    return from_to(pairs) if pairs else None


def cases_table(claim: Claim) -> Table:
    """Return what bears on one claim: a row a setting that was run, or a row a ratio."""
    if claim.ratios:
        return Table(list(map(_ratio_row, claim.ratios)))
    run = run_of(claim.cases)
    unrun = len(claim.cases) - len(run)
    return Table(list(map(_case_row, run)), [f"Settings that bear on it and were not run: {unrun}."] if unrun else [])


def _case_row(case: Case) -> Row:
    metric, setting = METRICS[case.metric], case.cell.setting
    other, own = (
        quantity(case.evidence.values(cell).values(), metric.digits, metric.sign) for cell in (case.other, case.cell)
    )
    entries = {
        "experiment": link(case.evidence.title, f"#{case.evidence.name}"),
        "setting": setting.label if setting.name else None,
        "baseline": other,
        "with the method": own,
        "difference [95 %]; p": whole_effect(case.difference, metric),
        "outcome": verdict(case.outcome),
        "the paper's difference": _published_difference(case),
    }
    return on_page(entries)


def _published_difference(case: Case) -> str:
    difference = published_difference(case.evidence, case.cell)
    if difference is not None:
        return Effect([difference], METRICS[case.metric]).directed()
    if case.direction and not published_direction(case.evidence, case.cell):  # the paper says it of all settings alone
        return "not known; the claim says better"
    return {1: "better", -1: "worse", 0: "not known"}[case.direction]


def _ratio_row(case: RatioCase) -> Row:
    of = {"more compute of": case.first.label, "than of": case.second.label, "published": short(case.published)}
    return on_page(of | ratio_entries(case.ratio, "ours: median"))


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
            pairs = [(cell, equal_baseline(evidence, cell)) for cell in cells]
            cases = [case for cell, other in pairs if other and (case := Case(evidence, cell, other)).difference]
            by_key = {(case.cell.method.family, case.cell.method.samples): case for case in cases}
            for key, case in by_key.items():
                labels.setdefault(key, case.cell.method.label)
            if by_key:
                label = cells[0].setting.label if cells[0].setting.name else ""  # all cells share the title's
                rows.append(MemberRow(evidence.title, label, by_key))
    settings = {key: sum(key in row.cases for row in rows) for key in labels}
    return {key: labels[key] for key in sorted(labels, key=lambda key: -settings[key])}, rows


def equal_baseline(evidence: Evidence, cell: Cell) -> Cell | None:
    """Return the baseline of ``cell``'s setting, or its kin of other steps, that cost what ``cell`` cost.

    By passes or by FLOPs: the two differ where a backward pass is not two forward ones, as on an MLP, whose first layer
    needs no gradient of its input.  ``None`` if there is none, or for one of that family itself.
    """
    family = evidence.experiment.methods[evidence.experiment.baseline].family
    if cell.method.family == family:
        return None
    apart = {}
    for other in evidence.settings()[cell.setting.name]:
        costs = [[evidence.mean(one, cost) for one in (cell, other)] for cost in ("forward_equivalents", "flops")]
        if other.method.family == family and (shares := [abs(its / own - 1) for own, its in costs if own and its]):
            apart[other.name] = min(shares)
    nearest = min(apart, key=lambda name: apart[name], default=None)
    return evidence.cells[nearest] if nearest is not None and apart[nearest] <= SAME else None


def members_table(every: Sequence[Evidence]) -> Table:
    """Return a row a setting, a column a member of the family: its difference to an STE of the same compute."""
    labels, settings = member_rows(every)
    blocks = [at for at, row in enumerate(settings) if at == 0 or row.experiment != settings[at - 1].experiment]
    rows = []
    for at, row in enumerate(settings):
        place = {"experiment": row.experiment if at in blocks else "", "setting": row.setting}
        rows.append(on_page(place | {label: row.text(key) for key, label in labels.items()}))
    return Table(rows, blocks=blocks)


def decisions_table(
    every: Sequence[Evidence],
    asked: Mapping[str, tuple[str, str]],
    by: str = "",
    also: Mapping[str, tuple[str, str]] = MappingProxyType({}),
) -> Table:
    """Return a row a setting that was run, a column a comparison: the difference, its p, and whether it stands.

    Args:
        asked: the method and what it is held against, by the header of the column.
        by: the metric, if not the one that the cells are compared by.
        also: comparisons that another table shows, and that count in the correction here too.
    """
    rows = []
    for evidence in every:
        for cells in evidence.settings().values():
            by_method = {cell.method.name: cell for cell in cells}
            cases = {
                header: Case(evidence, by_method[method], by_method[against], by=by)
                for header, (method, against) in {**also, **asked}.items()
                if {method, against} <= by_method.keys()
            }
            run = {header: case for header, case in cases.items() if case.outcome is not Word.NOT_RUN}
            pairs = [found.pairs for header in asked if header in run and (found := run[header].difference)]
            if pairs:
                seeds = from_to(pairs)
                shown = {header: entry for header, entry in _decided(run).items() if header in asked}
                place = {"experiment": evidence.title, "setting": cells[0].setting.label, "seeds": seeds}
                rows.append(on_page(place | dict.fromkeys(asked) | shown))
    compared = f"Compared by {METRICS[by].name}. " if by else ""
    rule = DECISIONS_RULE.format(family=IN_SEVERAL_TABLES if also else "the comparisons of a row")
    return Table(rows, [compared + rule] if rows else [])


def _decided(cases: Mapping[str, Case]) -> dict[str, Entry]:
    """Return the entry of each comparison of a setting."""
    apart = {header: case.outcome in (Word.BETTER, Word.WORSE) for header, case in cases.items()}
    # where no seed was finished by both, an outcome is certain, and none is one more chance
    p_values = [case.difference.p_decides if case.difference else float(not apart[key]) for key, case in cases.items()]
    entries = {}
    for (header, case), p in zip(cases.items(), holm(p_values), strict=True):
        stands = apart[header] and p <= LEVEL
        effect = Effect([case.difference.mean], METRICS[case.metric]).directed() if case.difference else case.outcome
        text = f"{'' if stands else 'open: '}{effect} ({p:.2g})"
        entries[header] = Entry([Span(text, "word", word=case.outcome if stands else Word.UNDECIDED)])
    return entries
