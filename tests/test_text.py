"""Text: windows and targets, shards and what damaged ones say, preparing that survives cuts, the embedded corpus."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from fogzo.data import prepare as prepare_module
from fogzo.data.base import DataError
from fogzo.data.prepare import Job, prepare
from fogzo.data.pydocs import Source, docstrings, documents, installed_sources, pydocs
from fogzo.data.shards import Manifest, ShardWriter, SplitManifest, atomic_write, sha256_of, token_dtype
from fogzo.data.sources import Files, Streamed
from fogzo.data.text import TokenSplit, c4, open_text, prepared_text
from fogzo.data.tokenizing import encode, end_of_text, in_test, load_tokenizer, train_tokenizer, vocabulary_of

ROOT = Path(__file__).resolve().parent.parent


@contextmanager
def refused_with(*parts, error=DataError):
    """Within: an error whose message is one line and holds ``parts``."""
    with pytest.raises(error) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    assert [part for part in parts if part not in message] == [], message


# --- windows


@pytest.mark.parametrize("cuts", [[], [1], [4], [5], [6, 7], [1, 2, 3, 13], [10]])
def test_windows_lie_side_by_side_in_the_joined_stream_wherever_it_is_cut(cuts):
    stream = np.arange(100, 114, dtype=np.uint16)
    split = TokenSplit(np.split(stream, cuts), sequence=4)
    assert (len(split), split.tokens) == (3, 14)  # the fourth window would need token 16
    inputs, targets = split.batch(torch.tensor([2, 0, 1, 0]))
    assert inputs.dtype == targets.dtype == torch.int64
    assert inputs.tolist() == [[108, 109, 110, 111], [100, 101, 102, 103], [104, 105, 106, 107], [100, 101, 102, 103]]
    assert torch.equal(targets, inputs + 1)
    assert inputs.is_contiguous()
    assert targets.is_contiguous()
    moved = split.to(torch.device("cpu"))
    assert torch.equal(moved.batch(torch.tensor([1]))[0], inputs[2:3])


@pytest.mark.parametrize(("tokens", "windows"), [(0, 0), (1, 0), (4, 0), (5, 1), (8, 1), (9, 2)])
def test_every_window_needs_the_token_behind_it(tokens, windows):
    split = TokenSplit([np.arange(tokens, dtype=np.uint32)] if tokens else [], sequence=4)
    assert len(split) == windows
    with pytest.raises(IndexError, match=f"window {windows} is not among the {windows}"):
        split.batch(torch.tensor([windows]))


def test_a_batch_is_put_on_the_splits_device():
    split = TokenSplit([np.arange(9, dtype=np.uint16)], sequence=4).to(torch.device("meta"))
    inputs, targets = split.batch(torch.arange(2))
    assert inputs.device.type == targets.device.type == "meta"
    assert inputs.shape == targets.shape == (2, 4)


# --- shards


def write_set(folder, *, vocabulary=300, train=100, test=30, shard_tokens=40):
    """Shards of the tokens 0, 1, 2, ... (modulo the vocabulary)."""
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / "tokenizer.json", b"{}")
    splits = {}
    for name, count in (("train", train), ("test", test)):
        writer = ShardWriter(folder, name, token_dtype(vocabulary), shard_tokens)
        writer.add(np.arange(count) % vocabulary, documents=3)
        splits[name] = writer.finish()
    tokenizer = {"name": "none", "sha256": sha256_of(folder / "tokenizer.json"), "end_of_text": 0}
    Manifest("numbers", tokenizer, vocabulary, token_dtype(vocabulary).name, splits, [{"file": "x"}]).save(folder)
    return folder


@pytest.mark.parametrize(("vocabulary", "bytes_each"), [(65_536, 2), (65_537, 4)])
def test_the_vocabulary_decides_the_type_and_every_token_comes_back(vocabulary, bytes_each, tmp_path):
    folder = write_set(tmp_path, vocabulary=vocabulary, train=vocabulary, test=vocabulary, shard_tokens=50_000)
    assert (folder / "train-00000.bin").stat().st_size == 50_000 * bytes_each
    data = open_text(folder, vocabulary - 1, "mend it")
    inputs, targets = data.train.batch(torch.tensor([0]))
    assert torch.equal(inputs[0], torch.arange(vocabulary - 1))
    assert targets[0, -1] == vocabulary - 1
    assert data.vocabulary == vocabulary


def test_the_record_of_a_set(tmp_path):
    data = open_text(write_set(tmp_path), 8, "mend it")
    sha = sha256_of(tmp_path / "manifest.json")
    assert data.describe() == {
        "name": "numbers",
        **{"train": 12, "test": 3, "train_tokens": 100, "test_tokens": 30, "vocabulary": 300, "sequence": 8},
        "tokenizer": f"none ({sha256_of(tmp_path / 'tokenizer.json')[:12]})",
        "sha256": sha,
        "sources": [{"file": "x"}],
    }
    json.dumps(data.describe())
    moved = data.to(torch.device("cpu"))
    assert moved.describe() == data.describe()


def test_shards_do_not_depend_on_how_tokens_were_handed_over(tmp_path):
    stream = np.random.default_rng(0).integers(0, 300, 1000)
    pieces = {"whole": [], "bits": [3, 4, 120, 240, 241, 999], "shards": [120, 240, 360]}
    seen = []
    for name, cuts in pieces.items():
        (tmp_path / name).mkdir()
        writer = ShardWriter(tmp_path / name, "train", token_dtype(300), 120)
        for part in np.split(stream, cuts):
            writer.add(part, 1)
        split = writer.finish()
        assert split.tokens == 1000
        assert [shard.tokens for shard in split.shards] == [120] * 8 + [40]
        assert all(sha256_of(tmp_path / name / shard.file) == shard.sha256 for shard in split.shards)
        seen.append(split.shards)
    assert seen[0] == seen[1] == seen[2]


def test_a_writer_goes_on_from_what_was_committed(tmp_path):
    stream = np.arange(500) % 300
    for name, committed, lost in [("a", 130, 0), ("b", 130, 17), ("c", 240, 300), ("d", 0, 250)]:
        (tmp_path / name).mkdir()
        writer = ShardWriter(tmp_path / name, "test", token_dtype(300), 120)
        writer.add(stream[:committed], 1)
        state = json.loads(json.dumps(writer.commit()))
        writer.add(stream[:lost], 1)
        writer.close()  # here it was cut
        writer = ShardWriter(tmp_path / name, "test", token_dtype(300), 120, state)
        assert (writer.tokens, writer.documents) == (committed, 1)
        writer.add(stream[committed:], 1)
        split = writer.finish()
        found = np.concatenate([np.fromfile(tmp_path / name / shard.file, "<u2") for shard in split.shards])
        assert np.array_equal(found, stream)
        assert all(sha256_of(tmp_path / name / shard.file) == shard.sha256 for shard in split.shards)
        assert len(list((tmp_path / name).iterdir())) == 5


def flip(path):
    content = bytearray(path.read_bytes())
    content[10] ^= 1
    path.write_bytes(content)


def manifest_with(**changes):
    def change(folder):
        record = json.loads((folder / "manifest.json").read_text())
        for key, value in changes.items():
            if value is None:
                del record[key]
            else:
                record[key] = value
        (folder / "manifest.json").write_text(json.dumps(record))

    return change


DAMAGES = {
    "a byte changed": (lambda f: flip(f / "train-00001.bin"), "train-00001.bin has SHA-256 "),
    "cut short": (lambda f: os.truncate(f / "train-00002.bin", 38), "train-00002.bin has 38 bytes", "says 40"),
    "too long": (lambda f: (f / "test-00000.bin").write_bytes(bytes(62)), "test-00000.bin has 62 bytes", "says 60"),
    "missing": (lambda f: (f / "train-00000.bin").unlink(), "train-00000.bin is missing"),
    "a folder": (lambda f: ((f / "test-00000.bin").unlink(), (f / "test-00000.bin").mkdir()), "test-00000.bin is miss"),
    "other tokenizer": (lambda f: (f / "tokenizer.json").write_text("{ }"), "tokenizer.json has SHA-256"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json is missing"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "manifest.json is not a manifest", "No such file"),
    "no json": (lambda f: (f / "manifest.json").write_text('{"format":\n'), "manifest.json is not a manifest"),
    "a list": (lambda f: (f / "manifest.json").write_text("[]"), "manifest.json is not a manifest"),
    "no text": (lambda f: (f / "manifest.json").write_bytes(b"\xff\xfe"), "manifest.json is not a manifest"),
    "other format": (manifest_with(format="fogzo-tokens-9"), "of format 'fogzo-tokens-9'", "reads 'fogzo-tokens-1'"),
    "no vocabulary": (manifest_with(vocabulary=None), "'vocabulary' is missing"),
    "other vocabulary": (manifest_with(vocabulary=70_000), "dtype uint16", "70000 takes uint32"),
    "no splits": (manifest_with(splits={}), "'train' is missing"),
    "wrong sum": (
        manifest_with(splits={s: {"documents": 1, "tokens": 9, "shards": []} for s in ("train", "test")}),
        "do not add up",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_set_is_refused_by_file_reason_and_way_out(damage, tmp_path):
    act, *expected = DAMAGES[damage]
    act(write_set(tmp_path))
    with refused_with(str(tmp_path), *expected, ": mend it"):
        open_text(tmp_path, 8, "mend it")


def test_large_sets_are_hashed_on_demand_and_small_ones_always(tmp_path, monkeypatch):
    flip(write_set(tmp_path) / "train-00001.bin")
    with refused_with("SHA-256"):
        open_text(tmp_path, 8, "mend it")
    assert len(open_text(tmp_path, 8, "mend it", verify=False).train) == 12
    monkeypatch.setattr("fogzo.data.shards.VERIFIED_BYTES", 259)  # it has 260
    assert len(open_text(tmp_path, 8, "mend it").train) == 12
    with refused_with("SHA-256"):
        open_text(tmp_path, 8, "mend it", verify=True)


def test_a_sequence_longer_than_a_split_is_refused(tmp_path):
    write_set(tmp_path)
    assert len(open_text(tmp_path, 29, "").test) == 1
    with refused_with("sequence=30 is too long for the test split", "30 tokens", "up to 29"):
        open_text(tmp_path, 30, "")
    with refused_with("sequence=0", error=ValueError):
        open_text(tmp_path, 0, "")


def test_an_absent_set_names_folder_command_and_the_embedded_one(tmp_path):
    command = (
        "python scripts/prepare_text.py --name c4 --dataset allenai/c4 --config en --max-tokens 3_100_000_000 --out"
    )
    with refused_with(f"{tmp_path}/c4 is not there", f"{command} {tmp_path}/c4", "data.root=", "data=pydocs"):
        c4(tmp_path, 512)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "journal.json").write_text("{}")
    with refused_with(f"{tmp_path}/mine is unfinished", "--name mine --files"):
        prepared_text("mine", tmp_path, 512)
    flip(write_set(tmp_path / "c4") / "test-00000.bin")
    with refused_with("c4/test-00000.bin has SHA-256", f"remove {tmp_path}/c4 and make it again with `{command}"):
        c4(tmp_path, 8)


# --- tokenizer

TEXTS = [
    f"document {i}: the quick brown fox jumps over {i * i} lazy dogs, ünïcödé\n\tand tabs\n" * 3 for i in range(60)
]


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
    with refused_with("vocabulary=256 is too small", "257", error=ValueError):
        train_tokenizer(TEXTS, 256)
    with refused_with("no token '</s>'", "--end-of-text"):
        end_of_text(tokenizer, "</s>")


def test_the_test_split_is_a_share_of_the_documents():
    assert sum(in_test(f"document {i}", 0.05) for i in range(4000)) == pytest.approx(200, rel=0.2)
    assert in_test("lone surrogate \ud800", 1.0)


# --- preparing


def jsonl(path, texts, field="text"):
    lines = "".join(json.dumps({field: text, "url": "x"}) + "\n" for text in texts)
    path.write_bytes(gzip.compress(lines.encode()) if path.suffix == ".gz" else lines.encode())
    return path


def words(seed, count):
    rng = np.random.default_rng(seed)
    vocabulary = [*(f"{i * i:x}{'aeiou'[i % 5]}" for i in range(3, 300)), "naïve", "漢字", "\n", "x = 1"]
    return [" ".join(rng.choice(vocabulary, int(length))) + f" {seed}" for length in rng.integers(1, 60, count)]


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """Three files of 300 documents; small chunks, so that many of them pass."""
    monkeypatch.setattr("fogzo.data.sources.CHUNK", 2000)
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(3):
        jsonl(folder / f"part-{i}.jsonl{'.gz' if i else ''}", words(i, 300))
    return folder


def job_of(corpus, **changes):
    values = {"tokenizer": "train:400", "test_share": 0.1, "shard_tokens": 3000, "training_megabytes": 0.02}
    return Job(name="tiny", source=Files([f"{corpus}/*"]), **values | changes)


def content_of(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != ".lock"}


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


def test_two_workers_write_the_bytes_of_one_and_a_second_call_does_nothing(corpus, tmp_path):
    prepare(job_of(corpus), tmp_path / "one")
    before = content_of(tmp_path / "one")
    prepare(job_of(corpus), tmp_path / "two", workers=2)
    assert content_of(tmp_path / "two") == before
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "one").iterdir() if file.name != ".lock"}
    assert "finished already" in prepare(job_of(corpus), tmp_path / "one", workers=2)
    assert {file: file.stat().st_mtime_ns for file in times} == times


class CutError(Exception):
    pass


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
    assert cuts >= 6  # settings, tokenizer, its hash, two shards, manifest, end


def script(*arguments, **options):
    command = [sys.executable, str(ROOT / "scripts" / "prepare_text.py"), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, **options)


def test_the_script_survives_kill_9_and_leaves_no_workers(tmp_path):
    for i in range(4):
        jsonl(tmp_path / f"part-{i}.jsonl.gz", [f"{i} " + text * 40 for text in words(i, 120)])
    arguments = ["--name", "tiny", "--files", f"{tmp_path}/*.jsonl.gz", "--tokenizer", "train:300", "--workers", "2"]
    arguments += ["--training-megabytes", "0.1", "--shard-tokens", "20000", "--test-share", "0.05", "--out"]
    killed = script(*arguments, tmp_path / "killed", start_new_session=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "killed" / "train-00002.bin").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    killed.kill()
    killed.communicate(timeout=20)  # its output closes when the last worker has gone
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


def test_text_files_hold_documents_between_separators(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("one\r\ntwo\n<|endoftext|>\n\n<|endoftext|>\nthree", newline="")
    with gzip.open(tmp_path / "b.txt.gz", "wt") as file:
        file.write("line\n" * 10)
    source = Files([f"{tmp_path}/*.txt*"])
    (chunk,) = source.chunks(None)
    assert chunk.texts == ["one\ntwo\n", "three", "line\n" * 10]
    monkeypatch.setattr("fogzo.data.sources.LONGEST", 16)
    (chunk,) = source.chunks(None)
    assert chunk.texts == ["one\ntwo\n", "three", *["line\n" * 4] * 2, "line\n" * 2]


def test_a_source_goes_on_from_any_of_its_positions(corpus, tmp_path):
    whole = list(Files([f"{corpus}/*"]).chunks(None))
    assert len(whole) > 10
    for i in range(len(whole)):
        rest = list(Files([f"{corpus}/*"]).chunks(json.loads(json.dumps(whole[i].position))))
        texts = [text for chunk in rest for text in chunk.texts]
        assert texts == [text for chunk in whole[i + 1 :] for text in chunk.texts]


def test_a_streamed_data_set_gives_its_texts_and_goes_on_from_any_position(corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    (corpus / "part-0.jsonl").unlink()
    source = Streamed(str(corpus), None, "train")
    whole = list(source.chunks(None))
    assert [text for chunk in whole for text in chunk.texts] == [text for i in (1, 2) for text in words(i, 300)]
    for i in (0, 3, len(whole) - 1):
        rest = list(source.chunks(json.loads(json.dumps(whole[i].position))))
        assert [c.texts for c in rest] == [c.texts for c in whole[i + 1 :]] or rest[0].texts == []
        assert rest[-1].position["record"] == 600
    with refused_with("record 1, has no text under 'body'", "text", "--text-field"):
        list(Streamed(str(corpus), None, "train", "body").chunks(None))
    with refused_with(f"{corpus}/none could not be read", "--files"):
        list(Streamed(f"{corpus}/none", None, "train").chunks(None))


BAD_LINES = {
    "no json": ('{"text": "a"', "line 2, is not JSON"),
    "no field": ('{"body": "a", "url": "b"}', "line 2, has no text under 'text', but fields body, url", "--text-field"),
    "a number": ('{"text": 3}', "line 2, has no text under 'text'"),
    "a list": ('["a"]', "line 2, has no text under 'text', but a list"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_a_bad_line_is_refused_by_file_and_number(case, tmp_path):
    line, *expected = BAD_LINES[case]
    (tmp_path / "x.jsonl").write_text(f'{{"text": "fine"}}\n{line}\n')
    with refused_with(f"{tmp_path}/x.jsonl", *expected):
        prepare(Job("x", Files([f"{tmp_path}/x.jsonl"]), "train:300"), tmp_path / "out")


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
        with refused_with(f"{name} cannot be read behind record 0"):
            list(Files([f"{tmp_path}/{name}"]).chunks(None))
    bad = {"test_share": 0, "shard_tokens": 0, "max_tokens": -1, "training_megabytes": -1, "tokenizer": "train:many"}
    for key, value in bad.items():
        with refused_with(f"{key}={value}"):
            job_of(corpus, **{key: value})
    with refused_with("workers=0"):
        prepare(job_of(corpus), tmp_path / "out", workers=0)


def test_tokenizers_that_cannot_be_had_name_two_ways_out(corpus, tmp_path, monkeypatch):
    def refuse(name):
        raise OSError(f"no network\nfor {name}")

    with refused_with("none.json is not there", "--tokenizer train:32768"):
        prepare(job_of(corpus, tokenizer=f"{tmp_path}/none.json"), tmp_path / "a")
    import tokenizers

    monkeypatch.setattr(tokenizers, "Tokenizer", type("Offline", (), {"from_pretrained": staticmethod(refuse)}))
    with refused_with("gpt2 could not be read or fetched (no network for gpt2)", "tokenizer.json", "train:32768"):
        prepare(job_of(corpus, tokenizer="gpt2"), tmp_path / "b")


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


def test_the_script_says_in_one_line_what_is_wrong(tmp_path):
    process = script("--name", "x", "--files", f"{tmp_path}/*.jsonl", "--out", tmp_path / "x")
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (1, "")
    assert errors.startswith("error: no file fits")
    assert errors.count("\n") == 1


# --- the embedded corpus

MODULE = '''"""About {name}, at some length: {filler}"""


class Thing:
    """A thing of {name}."""

    def method(self, x, *, key=1):
        """Does {name} to x."""

        def inner():
            "said inside"


async def later():
    """Comes later."""
'''


@pytest.fixture
def sources(tmp_path):
    found = []
    for package, whole in (("python", True), ("extra", False)):
        root = tmp_path / package
        for folder in ("", "sub", "tests", "__pycache__"):
            (root / folder).mkdir(exist_ok=True)
            for i in range(12):
                name = f"{package} {folder} {i}"
                (root / folder / f"m{i}.py").write_text(MODULE.format(name=name, filler=f"words {i} " * 40))
        (root / "latin.py").write_bytes(b"# -*- coding: latin-1 -*-\n" + "# é\r\n".encode("latin1") * 100)
        (root / "broken.py").write_bytes(b"\xff\xfe def (:\n" * 100)
        (root / "copy.py").write_bytes((root / "m3.py").read_bytes())
        (root / "__init__.py").write_text("")
        found.append(Source(package, "1.2", root, whole))
    return found


def test_documents_are_sources_or_docstrings_of_each_module_once(sources):
    found = {document.name: document.text for document in documents(sources)}
    assert [name for name in found if "test" in name or "pycache" in name] == []
    assert len(found) == 12 * 4 + 1
    assert found["python/latin.py"].endswith("# é\n")
    assert found["python/m0.py"] == (sources[0].root / "m0.py").read_text()
    assert ("python/copy.py" in found) != ("python/m3.py" in found)
    assert (
        found["extra/sub/m1.py"].split("\n\n")
        == [
            f"About extra sub 1, at some length: {'words 1 ' * 40}".strip() + "\n",
            *("class Thing:\nA thing of extra sub 1.\n", "def method(self, x, *, key=1):\nDoes extra sub 1 to x.\n"),
        ]
        or found["extra/sub/m1.py"].count("\n\n") == 2
    )


def test_docstrings_come_in_the_order_of_the_file_with_their_owners():
    text = MODULE.format(name="it", filler="so")
    assert list(docstrings(text)) == [
        "About it, at some length: so\n",
        "class Thing:\nA thing of it.\n",
        "def method(self, x, *, key=1):\nDoes it to x.\n",
        "def inner():\nsaid inside\n",
        "def later():\nComes later.\n",
    ]


def test_the_corpus_is_prepared_once_and_found_again(sources, tmp_path, monkeypatch, capsys):
    first = pydocs(tmp_path / "data", 16, 300, sources)
    assert "preparing the embedded text" in capsys.readouterr().out
    (folder,) = (tmp_path / "data" / "pydocs").glob("*-300")
    assert first.sha256 == sha256_of(folder / "manifest.json")
    assert (first.name, first.vocabulary, first.sequence) == ("pydocs", 300, 16)
    made_of = first.describe()["sources"]
    assert [(s["name"], s["version"], s["kind"]) for s in made_of] == [
        ("python", "1.2", "sources"),
        ("extra", "1.2", "docstrings"),
    ]
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules[documents.__module__], "documents", None)  # not read again
        again = pydocs(tmp_path / "data", 8, 300, sources)
    assert again.sha256 == first.sha256
    assert capsys.readouterr().out == ""
    assert len(again.train) > len(first.train)
    # touched files are read again, and found to be the same
    os.utime(sources[0].root / "m0.py", ns=(1, 1))
    assert pydocs(tmp_path / "data", 16, 300, sources).sha256 == first.sha256
    # on another machine, in another folder, the set is the same to the byte
    other = [source._replace(root=source.root.rename(tmp_path / f"moved-{source.name}")) for source in sources]
    assert pydocs(tmp_path / "elsewhere", 16, 300, other).sha256 == first.sha256


def test_a_changed_environment_makes_a_set_of_its_own(sources, tmp_path):
    first = pydocs(tmp_path, 16, 300, sources)
    with (sources[1].root / "m0.py").open("a") as file:
        file.write("\ndef new():\n    '''New in 1.3.'''\n")
    changed = pydocs(tmp_path, 16, 300, [sources[0], sources[1]._replace(version="1.3")])
    larger = pydocs(tmp_path, 16, 320, sources)
    assert len({first.sha256, changed.sha256, larger.sha256}) == 3
    assert (changed.sources[1]["version"], larger.sources[1]["version"], larger.vocabulary) == ("1.3", "1.2", 320)
    assert len(list((tmp_path / "pydocs").glob("*-3?0"))) == 3


def test_a_kill_leaves_nothing_half_made_and_the_next_use_clears_up(sources, tmp_path, monkeypatch):
    def cut(*arguments):
        raise CutError

    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "save", cut)
        with pytest.raises(CutError):
            pydocs(tmp_path / "data", 16, 300, sources)
    assert [f.suffix for f in (tmp_path / "data" / "pydocs").glob("*-300*")] == [".partial"]
    data = pydocs(tmp_path / "data", 16, 300, sources)
    assert list((tmp_path / "data" / "pydocs").glob("*.partial")) == []
    (shard,) = (tmp_path / "data" / "pydocs").glob("*-300/train-00000.bin")
    flip(shard)
    with refused_with(f"remove {shard.parent}, and it is made again"):
        pydocs(tmp_path / "data", 16, 300, sources)
    for file in shard.parent.iterdir():
        file.unlink()
    shard.parent.rmdir()
    assert pydocs(tmp_path / "data", 16, 300, sources).sha256 == data.sha256


FIRST_USE = """
import sys
from pathlib import Path
from fogzo.data.pydocs import Source, pydocs
root = Path(sys.argv[1])
found = [Source(name, "1.2", root / name, name == "python") for name in ("python", "extra")]
print(pydocs(root / "data", 16, 300, found).sha256)
"""


def test_first_uses_at_the_same_time_end_with_one_set(sources, tmp_path):
    command = [sys.executable, "-c", FIRST_USE, str(tmp_path)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    processes = [subprocess.Popen(command, **pipes) for _ in range(2)]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert len({output.splitlines()[-1] for output, _ in outputs}) == 1
    assert sum("preparing" in output for output, _ in outputs) == 1
    assert len(list((tmp_path / "data" / "pydocs").glob("*-300*"))) == 1


def test_an_embedded_corpus_that_cannot_be_made_says_why(sources, tmp_path):
    (tmp_path / "file").write_text("")
    with refused_with(f"prepared in {tmp_path}/file/pydocs", "data.root="):
        pydocs(tmp_path / "file", 16, 300, sources)
    (tmp_path / "empty").mkdir()
    with refused_with(f"no Python sources were found in {tmp_path}/empty"):
        pydocs(tmp_path, 16, 300, [Source("python", "3", tmp_path / "empty", whole=True)])
    with refused_with("vocabulary=100", error=ValueError):
        pydocs(tmp_path, 16, 100, sources)
    with refused_with("sequence=100000000 is too long for the train split"):
        pydocs(tmp_path, 100_000_000, 300, sources)


def test_this_installation_has_the_sources_and_a_part_of_them_is_learnable(tmp_path):
    installed = {source.name: source for source in installed_sources()}
    assert installed.keys() >= {"python", "numpy", "scipy", "matplotlib"}
    part = [Source("python", "3", installed["python"].root / "json", whole=True)]
    part.append(Source("numpy", "2", installed["numpy"].root / "lib", whole=False))
    data = pydocs(tmp_path, 32, 1000, part)
    assert data.vocabulary == 1000
    assert data.train.tokens > 50_000
    tokens = data.train.batch(torch.arange(len(data.train)))[1].flatten()
    assert (torch.bincount(tokens, minlength=1000) > 0).float().mean() > 0.8  # the vocabulary is used


def test_tokenizers_and_datasets_load_only_where_they_are_needed():
    check = "import sys, fogzo.data.pydocs, fogzo.data.text; print({'tokenizers', 'datasets'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.slow
def test_an_interrupt_is_answered_with_the_way_on(tmp_path):
    jsonl(tmp_path / "part.jsonl.gz", [text * 40 for text in words(0, 1500)])
    arguments = ["--name", "x", "--files", tmp_path / "part.jsonl.gz", "--tokenizer", "train:300", "--workers", "2"]
    process = script(*arguments, "--shard-tokens", "20000", "--out", tmp_path / "out", start_new_session=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "out" / "train-00002.bin").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert errors == "stopped: the same command goes on from the last complete shard\n"
    assert process.returncode == 1


def test_a_split_manifest_keeps_its_sums():
    assert SplitManifest.read({"documents": 0, "tokens": 0, "shards": []}) == SplitManifest(0, 0, ())
