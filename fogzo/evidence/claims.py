"""The paper's claims, one by one: what our records say to each, and how to check it.

``results/paper/claims.yaml`` lists them, with the experiments that bear on each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic.dataclasses import dataclass as part

from fogzo.checks import choice
from fogzo.errors import UserError
from fogzo.evidence.equal_loss import Ratio, cost_pairs, ratio_of
from fogzo.evidence.experiment import CHECKED, Cell
from fogzo.evidence.frame import Evidence
from fogzo.evidence.parse import checked
from fogzo.evidence.published import at_published_steps, published_direction
from fogzo.evidence.verdicts import Case, pairs_of, rerun, run_of, word_of
from fogzo.evidence.words import Word
from fogzo.runs.files import read_yaml

CLAIMS = Path("results/paper/claims.yaml")


@dataclass(frozen=True)
class RatioCase:
    """A ratio of compute, of one cell to another: as published, and ours; ``None`` if there are no runs."""

    evidence: Evidence
    first: Cell
    second: Cell
    published: float
    ratio: Ratio | None

    @property
    def word(self) -> Word:
        """Return what the claim came to, by where the published ratio lies in the measured one's interval."""
        ratio = self.ratio
        if ratio is None:
            return Word.NOT_RUN
        if self.published > ratio.high:
            return Word.SMALLER_HERE
        if not ratio.median:
            return Word.NOT_REACHED_HERE
        whole = ratio.seeds == ratio.pairs
        if self.published >= ratio.low:
            return Word.CONFIRMED if whole else Word.CONFIRMED_IN_PART
        # larger on some seeds; on the others the loss was not reached
        return Word.LARGER_HERE if whole else Word.MIXED


@part(frozen=True, config=CHECKED)
class SaidRatio:
    """A ratio of compute at equal training loss that the paper gives, of two cells of an experiment."""

    experiment: str
    of: str
    to: str
    published: float


@part(frozen=True, config=CHECKED)
class Said:
    """What ``claims.yaml`` says of a claim.

    Attributes:
        method: is compared with the baseline in all settings of the ``experiments``, or in those of the ``models``.
        of_all_settings: the paper says it of these networks in general, so that every setting of them counts.
    """

    claim: str
    trust: Literal["high", "medium", "low"]
    source: str
    method: str = ""
    experiments: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    of_all_settings: bool = False
    ratios: tuple[SaidRatio, ...] = ()


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, and what bears on it.

    Attributes:
        name: its key in the file.
        cases: settings in which a method is compared with the baseline.
        ratios: of compute.
    """

    name: str
    said: Said
    cases: Sequence[Case]
    ratios: Sequence[RatioCase]

    def words(self, scale: str) -> list[Word]:
        """Return the verdict at a scale, mini or paper; several words for ratios that differ."""
        if self.ratios:
            return list(dict.fromkeys(ratio.word for ratio in self.judged_ratios(scale))) or [Word.NOT_RUN]
        return [word_of(self.judged(scale))]

    def judged(self, scale: str) -> list[Case]:
        """Return the cases that count: run at this scale, and of a direction that the paper gives."""
        return run_of([case for case in self.cases if case.evidence.experiment.scale == scale and case.direction])

    def judged_ratios(self, scale: str) -> list[RatioCase]:
        """Return the ratios of which there are runs at this scale."""
        return [ratio for ratio in self.ratios if ratio.evidence.experiment.scale == scale and ratio.ratio is not None]

    def check_commands(self) -> list[str]:
        """Return commands that make one run of each method anew, beside the records, and what they print."""
        for case in self.cases:
            if case.difference is not None:
                return [rerun(case.evidence, cell) for cell in (case.other, case.cell)]
        for ratio in self.ratios:
            if ratio.ratio is not None:
                return [rerun(ratio.evidence, cell) for cell in (ratio.first, ratio.second)]
        return []


def claims_of(every: Sequence[Evidence]) -> list[Claim]:
    """Return the claims in their file's order; none if there is no such file.

    Raises:
        UserError: if the file is not as ``Said`` has it, or a claim names an experiment, a method or a cell that there
            is not.
    """
    known = {evidence.name: evidence for evidence in every}
    given = checked(dict[str, Said], read_yaml(CLAIMS) or {}, {"": Said, "ratios": SaidRatio})
    return [_claim(name, said, known) for name, said in given.items()]


def _claim(name: str, said: Said, known: Mapping[str, Evidence]) -> Claim:
    for experiment in (*said.experiments, *(ratio.experiment for ratio in said.ratios)):
        choice(experiment, f"{CLAIMS}: experiment of {name}", known)
    cases: list[Case] = []
    for experiment in said.experiments:
        evidence = known[experiment]
        pairs = pairs_of(evidence, said.method, evidence.experiment.baseline, said.models)
        if not pairs:
            of_models = f"with model={' or '.join(said.models)} " if said.models else ""
            raise UserError(f"{CLAIMS}, {name}: no setting of {experiment} {of_models}has the method {said.method}")
        for cell, baseline in pairs:
            of_all = said.of_all_settings and at_published_steps(evidence, cell, baseline)
            cases.append(Case(evidence, cell, baseline, 1 if of_all else published_direction(evidence, cell)))
    return Claim(name, said, cases, [_ratio(known[ratio.experiment], ratio) for ratio in said.ratios])


def _ratio(evidence: Evidence, said: SaidRatio) -> RatioCase:
    first, second = (
        evidence.cells[choice(cell, f"{CLAIMS}: cell of {evidence.name}", evidence.cells)]
        for cell in (said.of, said.to)
    )
    return RatioCase(evidence, first, second, said.published, ratio_of(cost_pairs(evidence, first, second)))
