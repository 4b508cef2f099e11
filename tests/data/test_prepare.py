"""Preparing text: its sources, its tokenizers, and whatever cuts it, with any number of workers, the same bytes."""

import gzip
import json
import os
import runpy
import signal

import numpy as np
import pytest
from helpers.checks import refused_with
from helpers.cli import Command
from helpers.text_helpers import ROOT, TEXTS, CutError, content_of, job_of, jsonl, words

from fogzo.data import prepare as prepare_module
from fogzo.data.prepare import Job, prepare
from fogzo.data.shards import ShardWriter, sha256_of
from fogzo.data.sources import Files, Streamed, chunks
from fogzo.data.text import prepared_text
from fogzo.data.tokenize import encode, end_of_text, in_test, load_tokenizer, train_tokenizer, vocabulary_of
from fogzo.errors import UserError
from fogzo.runs.files import locked


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """Three files of 300 documents; small chunks, so that many of them pass."""
    monkeypatch.setattr("fogzo.data.sources.CHUNK", 2000)
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(3):
        jsonl(folder / f"part-{i}.jsonl{'.gz' if i else ''}", words(i, 300))
    return folder


def test_prepared_text_is_the_documents_in_order_split_by_their_hash(corpus, tmp_path):
    message = prepare(job_of(corpus), tmp_path / "tiny")
    data = prepared_text("tiny", tmp_path, 16)
    manifest = json.loads((tmp_path / "tiny" / "manifest.json").read_text())
    tokenizer = load_tokenizer(str(tmp_path / "tiny" / "tokenizer.json"))
    texts = [text for i in range(3) for text in words(i, 300)]
    for split, testing in (("train", False), ("test", True)):
        expected = [text for text in texts if in_test(text, 0.1) == testing]
        shards = [np.fromfile(tmp_path / "tiny" / s["file"], "<u2") for s in manifest["splits"][split]["shards"]]
        ends = np.flatnonzero(np.concatenate(shards) == end_of_text(tokenizer))
        found = [tokenizer.decode(row[row != 0]) for row in np.split(np.concatenate(shards), ends + 1)]
        assert found == [*expected, ""]
        assert manifest["splits"][split]["documents"] == len(expected)
        assert [len(shard) for shard in shards[:-1]] == [3000] * (len(shards) - 1)
        assert f"{split} {manifest['splits'][split]['tokens']:,} tokens" in message
    assert len(manifest["splits"]["train"]["shards"]) > 5
    assert [source["file"] for source in manifest["sources"]] == [f.name for f in sorted(corpus.iterdir())]
    assert [source["sha256"] for source in manifest["sources"]] == [sha256_of(f) for f in sorted(corpus.iterdir())]
    assert str(tmp_path) not in (tmp_path / "tiny" / "manifest.json").read_text()
    assert data.vocabulary == 400
    assert "tokens/s" in message


def test_a_second_call_does_nothing(corpus, tmp_path):
    prepare(job_of(corpus), tmp_path / "one")
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "one").iterdir() if file.name != ".lock"}
    assert "finished already" in prepare(job_of(corpus), tmp_path / "one")
    assert {file: file.stat().st_mtime_ns for file in times} == times


@pytest.mark.parametrize("max_tokens", [0, 14_321])
def test_whatever_cuts_it_a_rerun_ends_with_the_bytes_of_an_uncut_run(max_tokens, corpus, tmp_path, monkeypatch):
    prepare(job_of(corpus, max_tokens=max_tokens), tmp_path / "uncut")
    expected = content_of(tmp_path / "uncut")
    add, save, calls = ShardWriter.add, prepare_module.atomic_write, []

    def count_down(*arguments):
        calls.append(None)
        if len(calls) == cut:
            raise CutError

    def cut_add(writer, tokens, documents):
        add(writer, tokens, documents)
        count_down()

    def cut_save(path, data):
        count_down()
        save(path, data)
        count_down()

    monkeypatch.setattr(ShardWriter, "add", cut_add)
    monkeypatch.setattr(prepare_module, "atomic_write", cut_save)
    monkeypatch.setattr("fogzo.data.shards.atomic_write", cut_save)  # the manifest's
    for folder, cuts in (("often", [2, 5, 9, 4, 30, 30, 26, 40, 55]), ("late", [10**9])):
        for cut in cuts:  # noqa: B007  (the patches above read it)
            calls.clear()
            try:
                prepare(job_of(corpus, max_tokens=max_tokens), tmp_path / folder)
            except CutError:
                assert not (tmp_path / folder / "manifest.json").exists() or len(calls) > 1
        cut = 10**9
        prepare(job_of(corpus, max_tokens=max_tokens), tmp_path / folder)
        assert content_of(tmp_path / folder) == expected


def test_cut_at_every_write_it_still_ends_with_the_same_bytes(corpus, tmp_path, monkeypatch):
    prepare(job_of(corpus, max_tokens=7000), tmp_path / "uncut")
    expected = content_of(tmp_path / "uncut")
    save, left = prepare_module.atomic_write, [0]

    def cut_save(path, data):
        if left[0] == 0:
            raise CutError
        left[0] -= 1
        save(path, data)

    monkeypatch.setattr(prepare_module, "atomic_write", cut_save)
    monkeypatch.setattr("fogzo.data.shards.atomic_write", cut_save)
    cuts = 0
    while True:
        left[0] = cuts
        try:
            prepare(job_of(corpus, max_tokens=7000), tmp_path / f"cut-{cuts}")
            break
        except CutError:
            left[0] = 10**9
            prepare(job_of(corpus, max_tokens=7000), tmp_path / f"cut-{cuts}")
            assert content_of(tmp_path / f"cut-{cuts}") == expected
            cuts += 1
    assert cuts >= 6  # journal, tokenizer, two shards, manifest, end


def test_the_script_survives_kill_9_and_leaves_no_workers(tmp_path):
    for i in range(4):
        jsonl(tmp_path / f"part-{i}.jsonl.gz", [f"{i} " + text * 40 for text in words(i, 120)])
    arguments = ["--name", "tiny", "--files", f"{tmp_path}/*.jsonl.gz", "--tokenizer", "train:300", "--workers", "2"]
    arguments += ["--training-megabytes", "0.1", "--shard-tokens", "20000", "--test-share", "0.05", "--out"]
    killed = Command("scripts/prepare_text.py", *arguments, tmp_path / "killed")
    killed.wait_until((tmp_path / "killed" / "train-00002.bin").exists)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    killed.wait_for_its_processes(20)
    assert not (tmp_path / "killed" / "manifest.json").exists()
    job = Job(
        name="tiny",
        source=Files([f"{tmp_path}/*.jsonl.gz"]),
        tokenizer="train:300",
        training_megabytes=0.1,
        shard_tokens=20_000,
        test_share=0.05,
    )
    prepare(job, tmp_path / "killed")
    prepare(job, tmp_path / "uncut")
    assert content_of(tmp_path / "killed") == content_of(tmp_path / "uncut")


def test_other_values_into_the_same_folder_are_refused_with_the_difference(corpus, tmp_path):
    prepare(job_of(corpus), tmp_path / "tiny")
    before = content_of(tmp_path / "tiny")
    others = {"max_tokens": 500, "test_share": 0.2, "shard_tokens": 4000, "tokenizer": "train:500"}
    for key, value in others.items():
        with refused_with(str(tmp_path / "tiny"), f"{key}: ", f"→ {value}"):
            prepare(job_of(corpus, **{key: value}), tmp_path / "tiny")
    jsonl(corpus / "part-3.jsonl", ["more"])
    with refused_with("files: [] → ['part-3.jsonl (29 bytes)']"):
        prepare(job_of(corpus), tmp_path / "tiny")
    assert content_of(tmp_path / "tiny") == before


def test_a_limit_ends_with_the_document_that_reaches_it(corpus, tmp_path):
    prepare(job_of(corpus, max_tokens=5000), tmp_path / "tiny")
    manifest = json.loads((tmp_path / "tiny" / "manifest.json").read_text())
    tokens = sum(split["tokens"] for split in manifest["splits"].values())
    assert 5000 <= tokens < 5000 + 60 * 7
    assert [source["file"] for source in manifest["sources"]] == ["part-0.jsonl"]


def test_folders_that_cannot_be_used_are_refused(corpus, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with refused_with(f"{tmp_path}/file", "--out"):
        prepare(job_of(corpus), tmp_path / "file")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with refused_with("other holds thesis.txt but no journal.json"):
        prepare(job_of(corpus), tmp_path / "other")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "journal.json").write_text("{}")
    with refused_with("journal.json is damaged"):
        prepare(job_of(corpus), tmp_path / "damaged")
    (tmp_path / "held").mkdir()
    with locked(tmp_path / "held", wait=False), refused_with("another process is at work in"):
        prepare(job_of(corpus), tmp_path / "held")


def test_a_full_disk_is_named_and_work_goes_on_when_there_is_room(corpus, tmp_path, monkeypatch):
    add, calls = ShardWriter.add, []

    def full(writer, tokens, documents):
        calls.append(None)
        if len(calls) == 30:
            raise OSError(28, "No space left on device")
        add(writer, tokens, documents)

    monkeypatch.setattr(ShardWriter, "add", full)
    with refused_with(str(tmp_path / "tiny"), "No space left", "same command goes on"):
        prepare(job_of(corpus), tmp_path / "tiny")
    prepare(job_of(corpus), tmp_path / "tiny")
    prepare(job_of(corpus), tmp_path / "uncut")
    assert content_of(tmp_path / "tiny") == content_of(tmp_path / "uncut")


def test_shards_that_are_not_as_the_journal_says_are_refused(corpus, tmp_path, monkeypatch):
    add, calls = ShardWriter.add, []

    def cut_add(writer, tokens, documents):
        add(writer, tokens, documents)
        calls.append(None)
        if len(calls) == 30:
            raise CutError

    monkeypatch.setattr(ShardWriter, "add", cut_add)
    with pytest.raises(CutError):
        prepare(job_of(corpus), tmp_path / "tiny")
    (tmp_path / "tiny" / "train-00000.bin").unlink()
    with refused_with("train-00000.bin has 0 bytes, but 6,000", f"remove {tmp_path}/tiny"):
        prepare(job_of(corpus), tmp_path / "tiny")


def test_the_script_says_in_one_line_what_is_wrong(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["prepare_text.py", "--name", "x", "--files", f"{tmp_path}/*.jsonl"])
    with pytest.raises(SystemExit, match=r"^error: no file fits .*\.txt\.gz files$"):
        runpy.run_path(str(ROOT / "scripts" / "prepare_text.py"), run_name="__main__")


@pytest.mark.slow
def test_an_interrupt_is_answered_with_the_way_on(tmp_path):
    jsonl(tmp_path / "part.jsonl.gz", [text * 40 for text in words(0, 1500)])
    arguments = ["--name", "x", "--files", tmp_path / "part.jsonl.gz", "--tokenizer", "train:300", "--workers", "2"]
    process = Command("scripts/prepare_text.py", *arguments, "--shard-tokens", "20000", "--out", tmp_path / "out")
    process.wait_until((tmp_path / "out" / "train-00002.bin").exists)
    os.killpg(process.pid, signal.SIGINT)
    done = process.wait()
    assert done.stderr == "stopped: the same command goes on from the last complete shard\n"
    assert done.returncode == 1


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
