"""Where text comes from, and the tokenizers that cut it: positions to go on from, and what is refused by name."""

import gzip
import json

import numpy as np
import pytest
from helpers.checks import refused_with
from helpers.text_helpers import TEXTS, job_of, words

from fogzo.data.prepare import Job, prepare
from fogzo.data.sources import Files, Streamed, chunks
from fogzo.data.text import prepared_text
from fogzo.data.tokenize import encode, end_of_text, in_test, train_tokenizer, vocabulary_of
from fogzo.errors import UserError


def test_text_files_hold_documents_between_separators(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("one\r\ntwo\n<|endoftext|>\n\n<|endoftext|>\nthree", newline="")
    with gzip.open(tmp_path / "b.txt.gz", "wt") as file:
        file.write("line\n" * 10)
    source = Files([f"{tmp_path}/*.txt*"])
    (chunk,) = chunks(source, None)
    assert chunk.texts == ["one\ntwo\n", "three", "line\n" * 10]
    monkeypatch.setattr("fogzo.data.sources.LONGEST", 16)
    (chunk,) = chunks(source, None)
    assert chunk.texts == ["one\ntwo\n", "three", *["line\n" * 4] * 2, "line\n" * 2]


def test_a_source_goes_on_from_any_of_its_positions(corpus, tmp_path):
    whole = list(chunks(Files([f"{corpus}/*"]), None))
    assert len(whole) > 10
    for i in range(len(whole)):
        rest = list(chunks(Files([f"{corpus}/*"]), json.loads(json.dumps(whole[i].position))))
        texts = [text for chunk in rest for text in chunk.texts]
        assert texts == [text for chunk in whole[i + 1 :] for text in chunk.texts]


def test_a_streamed_data_set_gives_its_texts_and_goes_on_from_any_position(corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    (corpus / "part-0.jsonl").unlink()
    source = Streamed(str(corpus), None, "train")
    whole = list(chunks(source, None))
    assert [text for chunk in whole for text in chunk.texts] == [text for i in (1, 2) for text in words(i, 300)]
    for i in (0, 3, len(whole) - 1):
        rest = list(chunks(source, json.loads(json.dumps(whole[i].position))))
        assert [c.texts for c in rest] == [c.texts for c in whole[i + 1 :]] or rest[0].texts == []
        assert rest[-1].position["record"] == 600
    with refused_with("record 1, has no text under 'body'", "text", "--text-field"):
        list(Streamed(str(corpus), None, "train", "body").documents(None))
    with refused_with(f"{corpus}/none could not be read", "--files"):
        list(Streamed(f"{corpus}/none", None, "train").documents(None))


BAD_LINES = {
    "no json": ('{"text": "a"', "line 2, is not JSON", "one object a line"),
    "an array": ("[", "line 2, is not JSON", "one object a line"),
    "no field": ('{"body": "a", "url": "b"}', "line 2, has no text under 'text', but fields body, url", "--text-field"),
    "a number": ('{"text": 3}', "line 2, has no text under 'text'"),
    "a list": ('["a"]', "line 2, is a list", "write one object a line"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_a_bad_line_is_refused_by_file_and_number(case, tmp_path):
    line, *expected = BAD_LINES[case]
    (tmp_path / "x.jsonl").write_text(f'{{"text": "fine"}}\n{line}\n')
    with refused_with(f"{tmp_path}/x.jsonl", *expected):
        prepare(Job("x", Files([f"{tmp_path}/x.jsonl"]), "train:300"), tmp_path / "out")


def test_half_a_surrogate_pair_becomes_a_question_mark_and_work_goes_on(tmp_path):
    (tmp_path / "x.jsonl").write_text(
        '{"text": "fine"}\n{"text": "half \\ud83d of a pair"}\n{"text": "\\ud83c\\udf88"}\n'
    )
    (chunk,) = chunks(Files([f"{tmp_path}/x.jsonl"]), None)
    assert chunk.texts == ["fine", "half ? of a pair", "🎈"]
    prepare(Job("x", Files([f"{tmp_path}/x.jsonl"]), "train:300", test_share=0.5), tmp_path / "out")


def test_bad_files_and_values_are_refused(corpus, tmp_path):
    with refused_with("no file fits", "none/*.jsonl"):
        Files([f"{corpus}/*", f"{tmp_path}/none/*.jsonl"])
    (tmp_path / "x.pdf").write_text("")
    with refused_with("x.pdf is none of .jsonl"):
        Files([f"{tmp_path}/x.pdf"])
    (tmp_path / "latin.txt").write_bytes("é".encode("latin1"))
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(b"text" * 1000)[:-12])
    (tmp_path / "no.txt.gz").write_text("text")
    for name in ("latin.txt", "cut.txt.gz", "no.txt.gz"):
        with refused_with(f"{name} cannot be read to its end"):
            list(Files([f"{tmp_path}/{name}"]).documents(None))
    bad = {"test_share": 0, "shard_tokens": 0, "max_tokens": -1, "training_megabytes": -1, "tokenizer": "train:many"}
    for key, value in bad.items():
        with refused_with(f"{key}={value}", kind=UserError):
            job_of(corpus, **{key: value})


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
    with refused_with("vocabulary=256 is not possible", "257, for 256 bytes", kind=UserError):
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
