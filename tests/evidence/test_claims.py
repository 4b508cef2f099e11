"""The paper's claims from made-up records: verdicts, what they rest on, and commands to check them."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.made_up import GONE, dump, edit, experiment, gathered, sign, write

from fogzo.errors import UserError
from fogzo.evidence.claims import claims_of
from fogzo.evidence.equal_loss import Ratio
from fogzo.evidence.report import report
from fogzo.evidence.tables.overview import cases_table, claim_effect, claims_table
from fogzo.evidence.verdicts import Case, verdicts, word_of
from fogzo.evidence.words import Word
from fogzo.runs.files import read_yaml

ROOT = Path(__file__).resolve().parents[2]
ABSTRACT = {"trust": "high", "source": "abstract"}
GIVEN = {"claim": "Nets are better", "method": "fogzo", "experiments": ["twin"], **ABSTRACT}


@pytest.fixture
def made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return experiment()


def the_claim(root, made, effect, **changes):
    write(root, made, effect=effect)
    dump(root / "results/paper/claims.yaml", {"nets": GIVEN | changes})
    (claim,) = claims_of([gathered(made)])
    return claim


def test_a_claim_is_judged_by_all_settings_that_bear_on_it(tmp_path, made):
    claim = the_claim(tmp_path, made, lambda cell: 3 * cell.endswith(".fogzo"))
    assert (claim.words("mini"), claim.words("paper")) == (["confirmed"], ["not run"])
    assert re.fullmatch(r"2\.\d\d to 2\.\d\d points better \[1\.\d\d to 3\.\d\d better\]", claim_effect(claim, "mini"))
    assert claim_effect(claim, "paper") is None
    assert len(cases_table(claim).rows) == 2
    assert cases_table(claim).texts()[0][-1] == "8.00 points better"
    row = claims_table([claim]).texts()[0]
    assert (row[:2], row[3:]) == (["Nets are better", "confirmed"], ["3", "not run", "high: abstract"])


def test_a_claim_may_hold_in_part_and_models_choose_settings(tmp_path, made):
    only_deit = lambda cell: 3 * (cell == "deit.fogzo")  # noqa: E731
    assert the_claim(tmp_path, made, only_deit).words("mini") == ["confirmed in part"]
    dump(tmp_path / "results/paper/claims.yaml", {"nets": GIVEN | {"models": ["deit"]}})
    assert claims_of([gathered(made)])[0].words("mini") == ["confirmed"]


def test_a_claim_about_all_settings_counts_those_that_the_paper_has_no_number_of(tmp_path, made):
    only_deit = lambda cell: 3 * (cell == "deit.fogzo")  # noqa: E731
    assert the_claim(tmp_path, made, only_deit).words("mini") == ["confirmed in part"]
    published = read_yaml(tmp_path / "results/paper/numbers.yaml")
    published["twin"]["rows"]["deit_row"]["fogzo"] = None
    dump(tmp_path / "results/paper/numbers.yaml", published)
    assert claims_of([gathered(made)])[0].words("mini") == ["not to be told apart"]
    dump(tmp_path / "results/paper/claims.yaml", {"nets": GIVEN | {"of_all_settings": True}})
    (claim,) = claims_of([gathered(made)])
    assert claim.words("mini") == ["confirmed in part"]
    assert "not known; the claim says better" in [row[-1] for row in cases_table(claim).texts()]


def test_chance_in_a_few_of_many_settings_makes_no_claim_hold_in_part(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = experiment(settings=[f"s{number}" for number in range(12)])
    write(tmp_path, made, effect=lambda cell: 1.0 * (cell == "s0.fogzo"), rows=2)
    dump(tmp_path / "results/paper/claims.yaml", {"nets": GIVEN})
    (claim,) = claims_of([gathered(made)])
    assert {"better", "worse"} < {case.outcome for case in claim.cases}
    assert claim.words("mini") == [verdicts(claim.cases[0].evidence)[0].word] == ["not to be told apart"]


def test_a_setting_that_could_not_be_compared_is_one_more_chance(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = experiment()
    write(tmp_path, made)
    evidence = gathered(made)
    case = Case(evidence, evidence.cells["deit.fogzo"], evidence.cells["deit.ste"])
    lucky, empty = SimpleNamespace(**vars(case)), SimpleNamespace(**vars(case))
    lucky.outcome, lucky.difference = Word.BETTER, SimpleNamespace(p_t=0.04)
    empty.outcome, empty.difference = Word.TOO_FEW, None
    assert word_of([lucky]) is Word.BETTER
    assert word_of([lucky, empty]) is Word.UNDECIDED  # 2 · 0.04 is too much


@pytest.mark.parametrize(
    ("diverging", "outcome", "word"),
    [
        ({"deit.fogzo": 1}, "not to be told apart", "confirmed in part"),  # resnet stays
        ({"deit.fogzo": 3}, "worse", "mixed"),
        ({"deit.fogzo": 2}, "too few pairs", "confirmed in part"),
        ({"deit.ste": 3}, "better", "confirmed"),
        ({"deit.ste": 3, "deit.fogzo": 3}, "not run", "confirmed"),
    ],
)
def test_what_diverges_is_never_better_and_counts_as_worse_if_it_always_does(
    tmp_path, monkeypatch, diverging, outcome, word
):
    monkeypatch.chdir(tmp_path)
    seeds = 4 if 1 in diverging.values() else 3
    made = experiment(seeds=range(11, 11 + seeds))
    records = write(tmp_path, made, effect=lambda cell: 3 * cell.endswith(".fogzo"))
    for cell, count in diverging.items():
        for seed in range(11, 11 + count):
            edit(records[cell, seed], status="diverged", accuracy=GONE)
            sign(records[cell, seed])
    dump(tmp_path / "results/paper/claims.yaml", {"nets": GIVEN})
    evidence = gathered(made)
    (claim,) = claims_of([evidence])
    assert evidence.outcome(evidence.cells["deit.fogzo"], evidence.cells["deit.ste"]) == outcome
    assert [case.outcome for case in claim.cases] == [outcome, "better"]
    assert claim.words("mini") == [word]
    assert "not run" not in verdicts(evidence)[0].counts or outcome == "not run"
    assert len(cases_table(claim).rows) == 2 - (outcome == "not run")


def test_what_is_checked_prints_what_the_record_has(tmp_path, made):
    claim = the_claim(tmp_path, made, None)
    ste, fogzo = claim.check_commands()
    value = gathered(made).values(claim.cases[0].cell)[11]
    assert fogzo.startswith("python train.py -m experiment=twin cell=deit.fogzo seed=11 results_dir=check   # ")
    assert fogzo.endswith(f"{value:.2f} %")
    assert "cell=deit.ste" in ste


@pytest.mark.parametrize(
    ("published", "ratio", "word"),
    [
        (796, Ratio(500, 400, 900, 3, 3), "confirmed"),
        (796, Ratio(500, 400, 700, 3, 3), "smaller here"),
        (796, Ratio(1000, 900, float("inf"), 3, 3), "larger here"),
        (796, Ratio(1000, 700, 1500, 2, 3), "confirmed in part"),
        (796, Ratio(1000, 900, 1500, 2, 3), "mixed"),
        (796, Ratio(0, 700, 1500, 1, 3), "not reached here"),
        (796, Ratio(0, 0, 1500, 0, 3), "not reached here"),
        (796, Ratio(0, 0, 700, 0, 3), "smaller here"),
        (796, None, "not run"),
    ],
)
def test_a_ratio_is_confirmed_where_the_published_one_lies_in_the_range(tmp_path, made, published, ratio, word):
    write(tmp_path, made)
    ratios = [{"experiment": "twin", "of": "deit.slope", "to": "deit.fogzo", "published": published}]
    dump(tmp_path / "results/paper/claims.yaml", {"r": {"claim": "c", **ABSTRACT, "ratios": ratios}})
    (claim,) = claims_of([gathered(made)])
    claim = replace(claim, ratios=[replace(claim.ratios[0], ratio=ratio)])
    assert claim.words("mini") == [word]
    assert len(cases_table(claim).rows) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"experiments": ["twni"]}, "experiment of nets='twni' is not known: choose one of twin"),
        ({"models": ["vgg"]}, "no setting of twin with model=vgg has the method fogzo"),
        ({"method": "fogoz"}, "has the method fogoz"),
        (
            {"ratios": [{"experiment": "twin", "of": "deit.ste", "to": "x", "published": 2}]},
            "cell of twin='x' is not known",
        ),
        ({"trust": "high: abstract"}, "nets.trust='high: abstract' is not possible"),
    ],
)
def test_a_claim_about_what_there_is_not_is_refused(tmp_path, made, changes, message):
    with pytest.raises(UserError, match=message):
        the_claim(tmp_path, made, None, **changes)


def test_the_report_shows_every_claim_with_its_verdict_and_a_way_to_check_it(tmp_path, made):
    the_claim(tmp_path, made, lambda cell: 3 * cell.endswith(".fogzo"))
    text = report([gathered(made)])
    assert "<h2>The paper's claims, held against the twins</h2>" in text
    assert "<summary>Nets are better</summary>" in text
    assert "results_dir=check" in text


def test_the_report_counts_a_setting_that_is_repeated_on_other_seeds_once(tmp_path, made):
    the_claim(tmp_path, made, lambda cell: 3 * cell.endswith(".fogzo"))
    again = experiment("again", repeats="twin", seeds=(21, 22, 23, 24, 25))
    write(tmp_path, again)
    alone, both = report([gathered(made)]), report([gathered(made), gathered(again)])
    headline = re.search(r"FOGZO beats .*?\.", alone)[0]
    assert headline in both
    assert '<section id="again">' in both


def test_every_claim_of_the_paper_names_experiments_that_there_are():
    claims = read_yaml(ROOT / "results/paper/claims.yaml")
    names = {file.stem for file in (ROOT / "configs/experiment").glob("*.yaml")}
    for given in claims.values():
        assert set(given.get("experiments") or ()) <= names
        assert {ratio["experiment"] for ratio in given.get("ratios") or []} <= names
