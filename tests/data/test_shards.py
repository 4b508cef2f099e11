"""Shards of tokens: they come back as written, and a set that is damaged is refused by file, reason and way out."""

import json
import os

import numpy as np
import pytest
import torch
from helpers.text_helpers import flip, refused_with, write_set

from fogzo.data.shards import ShardWriter, sha256_of, token_dtype
from fogzo.data.text import open_text


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
        writer.add(stream[:lost], 1)  # here it was cut
        writer = ShardWriter(tmp_path / name, "test", token_dtype(300), 120, **state)
        assert (writer.tokens, writer.documents) == (committed, 1)
        writer.add(stream[committed:], 1)
        split = writer.finish()
        found = np.concatenate([np.fromfile(tmp_path / name / shard.file, "<u2") for shard in split.shards])
        assert np.array_equal(found, stream)
        assert all(sha256_of(tmp_path / name / shard.file) == shard.sha256 for shard in split.shards)
        assert len(list((tmp_path / name).iterdir())) == 5


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
    "missing": (lambda f: (f / "train-00000.bin").unlink(), "train-00000.bin cannot be read (No such file"),
    "a folder": (lambda f: ((f / "test-00000.bin").unlink(), (f / "test-00000.bin").mkdir()), "test-00000.bin has"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "manifest.json is not a manifest", "No such file"),
    "no json": (lambda f: (f / "manifest.json").write_text('{"format":\n'), "manifest.json is not a manifest"),
    "a list": (lambda f: (f / "manifest.json").write_text("[]"), "manifest.json is not a manifest"),
    "no text": (lambda f: (f / "manifest.json").write_bytes(b"\xff\xfe"), "manifest.json is not a manifest"),
    "other format": (manifest_with(format="fogzo-tokens-9"), "of format 'fogzo-tokens-9'", "reads 'fogzo-tokens-1'"),
    "no vocabulary": (manifest_with(vocabulary=None), "manifest.json is not a manifest", "'vocabulary'"),
    "other vocabulary": (manifest_with(vocabulary=70_000), "dtype uint16", "70000 takes uint32"),
    "no splits": (manifest_with(splits={}), "manifest.json is not a manifest", "'train'"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_set_is_refused_by_file_reason_and_way_out(damage, tmp_path):
    act, *expected = DAMAGES[damage]
    act(write_set(tmp_path))
    with refused_with(str(tmp_path), *expected, ": mend it"):
        open_text(tmp_path, 8, "mend it")


def test_small_sets_are_hashed_at_every_opening_unless_told_otherwise(tmp_path):
    write_set(tmp_path)
    for _ in range(2):
        open_text(tmp_path, 8, "mend it")
        assert not (tmp_path / ".verified").exists()
    flip(tmp_path / "train-00001.bin")
    with refused_with("SHA-256"):
        open_text(tmp_path, 8, "mend it")
    assert len(open_text(tmp_path, 8, "mend it", verify=False).train) == 12


def test_large_sets_are_hashed_once_and_again_when_a_shard_or_the_manifest_changes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("fogzo.data.shards.VERIFIED_BYTES", 259)  # it has 260
    hashed = []
    monkeypatch.setattr("fogzo.data.shards.sha256_of", lambda path: hashed.append(path.name) or sha256_of(path))
    shards = [f"train-{i:05d}.bin" for i in range(3)] + ["test-00000.bin"]

    def opened(**options):
        hashed.clear()
        open_text(tmp_path, 8, "mend it", **options)
        return list(hashed)

    write_set(tmp_path)
    assert opened(verify=False) == []
    assert opened() == shards
    assert "hashing 0.0 GB of tokens" in capsys.readouterr().out
    assert opened() == []
    assert opened(verify=True) == shards
    assert opened() == []
    os.utime(tmp_path / "train-00002.bin", ns=(0, 1))
    assert opened() == shards
    assert opened() == []
    (tmp_path / ".verified").write_bytes(b"\xff")
    assert opened() == shards
    flip(tmp_path / "train-00001.bin")
    for _ in range(2):
        with refused_with("train-00001.bin has SHA-256"):
            open_text(tmp_path, 8, "mend it")


def test_a_large_set_in_a_folder_that_cannot_be_written_is_hashed_each_time(tmp_path, monkeypatch):
    def refuse(path, data):
        raise PermissionError(13, "Permission denied")

    write_set(tmp_path)
    monkeypatch.setattr("fogzo.data.shards.VERIFIED_BYTES", 259)
    monkeypatch.setattr("fogzo.data.shards.atomic_write", refuse)
    for _ in range(2):
        assert len(open_text(tmp_path, 8, "mend it").train) == 12
        assert not (tmp_path / ".verified").exists()
