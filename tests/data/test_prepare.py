"""Preparing text: whatever cuts it, and however many workers there are, it ends with the same bytes."""

import json
import os
import runpy
import signal

import numpy as np
import pytest
from helpers.checks import refused_with
from helpers.cli import Command
from helpers.text_helpers import ROOT, CutError, content_of, job_of, jsonl, words

from fogzo.data import prepare as prepare_module
from fogzo.data.prepare import Job, prepare
from fogzo.data.shards import ShardWriter, sha256_of
from fogzo.data.sources import Files
from fogzo.data.text import prepared_text
from fogzo.data.tokenize import end_of_text, in_test, load_tokenizer


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
    with prepare_module.locked(tmp_path / "held", wait=False), refused_with("another process is at work in"):
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
