"""Tokenizers: trained ones are reproducible, local ones known by their hash, and absent ones named with a way out."""

import subprocess
import sys

import numpy as np
import pytest
from helpers.text_helpers import ROOT, TEXTS, job_of, refused_with

from fogzo.data.prepare import prepare
from fogzo.data.text import prepared_text
from fogzo.data.tokenize import encode, end_of_text, in_test, train_tokenizer, vocabulary_of
from fogzo.errors import UserError


def test_a_trained_tokenizer_is_reproducible_complete_and_takes_no_orders_from_the_text():
    tokenizer = train_tokenizer(TEXTS, 300)
    assert tokenizer.to_str() == train_tokenizer(iter(TEXTS), 300).to_str()
    assert vocabulary_of(tokenizer) == 300
    end = end_of_text(tokenizer)
    strange = ["\x00\x7f é 漢字 🎈 a<|endoftext|>b", "", "plain"]
    tokens, lengths = encode(tokenizer, strange, end, np.dtype("<u2"))
    rows = np.split(tokens, lengths.cumsum()[:-1])
    assert [tokenizer.decode(list(row[:-1])) for row in rows] == strange
    assert (tokens == end).sum() == 3  # one for each document
    assert [row[-1] for row in rows] == [end] * 3
    with refused_with("vocabulary=256 is not possible", "257, for 256 bytes", error=UserError):
        train_tokenizer(TEXTS, 256)
    with refused_with("no token '</s>'", "--end-of-text"):
        end_of_text(tokenizer, "</s>")


def test_the_test_split_is_a_share_of_the_documents():
    assert sum(in_test(f"document {i}", 0.05) for i in range(4000)) == pytest.approx(200, rel=0.2)
    assert in_test("lone surrogate \ud800", 1.0)


def test_tokenizers_that_cannot_be_had_name_two_ways_out(corpus, tmp_path, monkeypatch):
    def refuse(name):
        raise OSError(f"no network\nfor {name}")

    with refused_with("none.json is not there", "--tokenizer train:32768"):
        prepare(job_of(corpus, tokenizer=f"{tmp_path}/none.json"), tmp_path / "a")
    import tokenizers

    monkeypatch.setattr(tokenizers, "Tokenizer", type("Offline", (), {"from_pretrained": staticmethod(refuse)}))
    with refused_with("gpt2 could not be read or fetched (no network for gpt2)", "tokenizer.json", "train:32768"):
        prepare(job_of(corpus, tokenizer="gpt2"), tmp_path / "b")
    monkeypatch.undo()
    for folder in ("a", "b"):  # a failed start has not claimed the folder: the way out that it names is free
        prepare(job_of(corpus, tokenizer="train:300"), tmp_path / folder)


def test_a_local_tokenizer_is_taken_and_known_by_its_hash(corpus, tmp_path):
    tokenizer = train_tokenizer(TEXTS, 280)
    tokenizer.enable_truncation(3)
    tokenizer.save(str(tmp_path / "own.json"))
    prepare(job_of(corpus, tokenizer=str(tmp_path / "own.json")), tmp_path / "tiny")
    data = prepared_text("tiny", tmp_path, 64)
    assert data.vocabulary == 280
    assert data.tokenizer.startswith("own.json (")
    assert data.train.tokens > 900 * 4  # not truncated
    train_tokenizer(TEXTS, 281).save(str(tmp_path / "own.json"))
    with refused_with("tokenizer: own.json"):
        prepare(job_of(corpus, tokenizer=str(tmp_path / "own.json")), tmp_path / "tiny")


def test_tokenizers_and_datasets_load_only_where_they_are_needed():
    check = "import sys, fogzo.data.pydocs, fogzo.data.text; print({'tokenizers', 'datasets'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
