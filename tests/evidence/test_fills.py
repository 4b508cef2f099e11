"""Numbers in the sentences of docs/replication.md and docs/choosing.md: filled in from the records, never typed."""

import re
from pathlib import Path

import pytest

from fogzo.evidence.fills import FILL, fill
from fogzo.evidence.frame import gather
from fogzo.evidence.parse import confirmed_experiments

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "replication.md"
CHOOSING = ROOT / "docs" / "choosing.md"
# What describes a setting, a method or a claim of the paper; none is a result of ours
OF_THE_DESIGN = {
    *(
        "2-bit",
        "two bits",
        "1 bit",
        "2 bits",
        "4 bits",
        "n = 1",
        "n = 7960",
        "5/3",
        "0.999",
        "0.99999",
        "0.01 ε̄",
        "β = 1",
        "796",
    ),
    *(
        "1 to 8 %",
        "1 to 2 %",
        "1.174",
        "nearer to 1",
        "70 % STE + 30 % FOGZO",
        "256",
        "100 passes",
        "1,000",
        "4,000",
        "15 passes",
        "5 to 100 passes",
        "10,000 images",
        "σ = 0",
        "1.6 million",
        "near 1",
        "toward 0",
        "question 1",
    ),
}


@pytest.fixture(scope="module")
def every():
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        yield [gather(experiment) for experiment in confirmed_experiments()]


@pytest.mark.parametrize(("page", "fewest"), [(PAGE, 40), (CHOOSING, 10), (ROOT / "README.md", 3)])
def test_a_page_says_what_the_records_say(every, page, fewest):
    text = page.read_text(encoding="utf-8")
    assert len(FILL.findall(text)) >= fewest
    assert fill(text, every, page.name) == text


@pytest.mark.parametrize("page", [PAGE, CHOOSING])
def test_no_number_of_a_result_is_typed(page):
    text = FILL.sub("", page.read_text(encoding="utf-8"))
    text = re.sub(r"`[^`]*`|!?\[[^\]]*\]\([^)]*\)|^#+ .*$|^\| [1-7]\. ", "", text, flags=re.MULTILINE)
    for known in sorted(OF_THE_DESIGN, key=len, reverse=True):
        text = text.replace(known, "")
    assert re.findall(r"[^\n]{0,30}\d[^\n]{0,20}", text) == []


def test_the_page_is_short():
    text = re.sub(r"<!--.*?-->", "", PAGE.read_text(encoding="utf-8"))
    assert len(text.split()) <= 1500


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ('value(lsq_mini, "llama.ste")', r"[\d,.]+ ppl"),
        ('value(mlp_factors, "base.fogzo", "mean_agreement")', r"[\d.]+"),
        ('difference(lsq_mini, "llama.fogzo")', r"[\d.]+ ppl worse"),
        ('difference(lsq_mini, "llama.fogzo", "ste_longer")', r"[\d.]+ ppl worse"),
        ('range([lsq_mini, w2a2_mini], "fogzo", "ste", model="llama_mini")', r"[\d.]+ to [\d.]+ ppl worse"),
        ('reach([lsq_mini], "fogzo", "ste", model="deit_mini")', r"[\d.]+ points better"),
        ('count([mlp_factors], "fogzo", "ste", "open")', r"\d+"),
        ('count([lsq_mini], "fogzo", "ste", "open", by="test_loss")', r"\d+"),
        ('difference(lsq_mini, "deit.fogzo", by="test_loss")', r"\d\.\d{4} nats (better|worse)"),
        ('settings([mlp_factors], "fogzo", "ste")', r"\d+"),
        ('ratio(mlp_compute, "nspsa_796", "fogzo_1")', r"[\d,]+"),
        ("seeds([lsq_mini, mlp_factors])", "5 to 8"),
        ("runs([lsq_mini])", r"\d+"),
    ],
)
def test_each_kind_gives_its_number_or_words(every, asked, says):
    filled = fill(f"<!--= {asked} -->old<!--/-->", every, "a page")
    assert re.fullmatch(rf"<!--= {re.escape(asked)} -->{says}<!--/-->", filled), filled


@pytest.mark.parametrize(
    "asked",
    [
        'mean(lsq_mini, "llama.ste")',
        'value(lsq_minni, "llama.ste")',
        'value(lsq_mini, "llama.sgd")',
        'value(lsq_mini, "llama.ste"',
        "difference(lsq_mini)",
        'count([lsq_mini], "fogzo", "ste", "bad")',
        'range([lsq_mini], "fogzo", "ste", model="vgg")',
    ],
)
def test_what_is_not_known_is_named_with_its_page(every, asked):
    with pytest.raises(ValueError, match=re.escape(f"a page asks for `{asked}`")):
        fill(f"<!--= {asked} --><!--/-->", every, "a page")
