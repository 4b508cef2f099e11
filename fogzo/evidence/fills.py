"""Numbers inside sentences of hand-written pages, from the records: ``<!--= WHAT -->…<!--/-->``.

    value EXPERIMENT CELL [KEY]                mean over seeds, of the metric or of another column
    difference EXPERIMENT CELL [AGAINST]       paired difference to the baseline, or to another method, in words
    range EXPERIMENTS METHOD AGAINST PATTERN   smallest to greatest difference of the settings that fit (fnmatch)
    reach EXPERIMENTS METHOD AGAINST PATTERN   up to how much better the intervals reach
    count EXPERIMENTS METHOD AGAINST OUTCOME   in how many settings the outcome is better, worse or open
    settings EXPERIMENTS METHOD AGAINST        in how many settings both were run
    ratio EXPERIMENT CELL CELL                 times the second cell's compute that the first needs, at equal loss
    seeds EXPERIMENTS / runs EXPERIMENTS       numbers of seeds, or of runs

EXPERIMENTS are names with commas between them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase

from fogzo.errors import UserError
from fogzo.evidence.equal_loss import cost_pairs, ratio_of
from fogzo.evidence.frame import Evidence
from fogzo.evidence.numbers import directed_range, directed_text, mean_std
from fogzo.evidence.verdicts import Case, case_of, effects_of, pairs_of, run_of
from fogzo.evidence.words import Word
from fogzo.runs.schema import METRICS

FILL = re.compile(r"(<!--= (.+?) -->).*?(<!--/-->)", re.DOTALL)
OUTCOMES = {"better": Word.BETTER, "worse": Word.WORSE, "open": Word.UNDECIDED}


def fill(text: str, every: Sequence[Evidence], source: str) -> str:
    """Return ``text`` with every number filled in anew.

    Raises:
        UserError: naming ``source``, for something that is not known.
    """
    known = {evidence.name: evidence for evidence in every}
    return FILL.sub(lambda mark: f"{mark[1]}{_filled(mark[2], known, source)}{mark[3]}", text)


def _filled(what: str, known: Mapping[str, Evidence], source: str) -> str:
    kind, *words = what.split()
    try:
        make = KINDS[kind]
        return make([known[name] for name in words[0].split(",")], *words[1:])
    except (KeyError, TypeError, IndexError, ValueError) as error:
        reason = f"{error} is not known" if isinstance(error, KeyError) else error
        raise UserError(
            f"{source} asks for `{what}` ({reason}): see fogzo/evidence/fills.py for what there is"
        ) from None


def _value(of: Sequence[Evidence], cell: str, key: str = "") -> str:
    evidence, place = of[0], of[0].cells[cell]
    metric = METRICS[key or place.metric]
    mean, _ = mean_std(list(evidence.values(place, key or None).values()))
    if mean is None:
        raise UserError(f"{cell} has no values")
    return f"{mean:,.{metric.digits}f}{metric.sign}"


def _difference(of: Sequence[Evidence], cell: str, against: str = "") -> str:
    evidence, place = of[0], of[0].cells[cell]
    other = evidence.sibling(place, against or evidence.experiment.baseline)
    difference = evidence.difference(place, other)
    if difference is None:
        raise UserError(f"{cell} has nothing to compare with")
    metric = METRICS[place.metric]
    return directed_text(difference.mean, metric.digits, metric.unit)


def cases_of(of: Sequence[Evidence], method: str, against: str, pattern: str = "*") -> list[Case]:
    """Return the comparisons of two methods in every setting that was run and whose name fits ``pattern``."""
    cases = [
        case_of(evidence, cell, other)
        for evidence in of
        for cell, other in pairs_of(evidence, method, against)
        if fnmatchcase(cell.setting.name, pattern)
    ]
    if not (run := run_of(cases)):
        raise UserError(f"no setting that {pattern} fits has {method} and {against}")
    return run


def _range(of: Sequence[Evidence], method: str, against: str, pattern: str = "*") -> str:
    texts = []
    for effect in effects_of(cases_of(of, method, against, pattern)):
        texts.append(directed_range(min(effect.means), max(effect.means), effect.metric.digits, effect.metric.unit))
    return " and ".join(texts)


def _reach(of: Sequence[Evidence], method: str, against: str, pattern: str = "*") -> str:
    (effect,) = effects_of(cases_of(of, method, against, pattern), intervals=True)
    assert effect.interval is not None
    return directed_text(effect.interval[1], effect.metric.digits, effect.metric.unit)


def _count(of: Sequence[Evidence], method: str, against: str, outcome: str) -> str:
    return str(sum(case.outcome is OUTCOMES[outcome] for case in cases_of(of, method, against)))


def _settings(of: Sequence[Evidence], method: str, against: str) -> str:
    return str(len(cases_of(of, method, against)))


def _ratio(of: Sequence[Evidence], first: str, second: str) -> str:
    evidence = of[0]
    found = ratio_of(cost_pairs(evidence, evidence.cells[first], evidence.cells[second]))
    if found is None:
        raise UserError(f"{first} and {second} have no common seed")
    return found.median_text


def _seeds(of: Sequence[Evidence]) -> str:
    counts = sorted({len(evidence.experiment.seeds) for evidence in of})
    return " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))


def _runs(of: Sequence[Evidence]) -> str:
    return f"{sum(len(evidence.all_runs()) for evidence in of):,}"


KINDS: dict[str, Callable[..., str]] = {
    "value": _value,
    "difference": _difference,
    "range": _range,
    "reach": _reach,
    "count": _count,
    "settings": _settings,
    "ratio": _ratio,
    "seeds": _seeds,
    "runs": _runs,
}
