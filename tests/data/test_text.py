"""Sets of token shards: windows side by side wherever they are cut; an absent or damaged set is refused by name."""

import json
import os
import re

import numpy as np
import pytest
import torch
from helpers.checks import refused_with
from helpers.text_helpers import ROOT, flip, write_set
from hydra import compose, initialize_config_dir

from fogzo.data import Known, known
from fogzo.data.shards import ShardWriter, sha256_of, token_dtype
from fogzo.data.text import C4, LONGER, TokenSplit, c4, open_text, own_text, prepared_text
from fogzo.errors import UserError
from fogzo.training.launch import train


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


def test_a_sequence_longer_than_a_split_is_refused(tmp_path):
    write_set(tmp_path)
    assert len(open_text(tmp_path, 29, "").test) == 1
    with refused_with("sequence=30 is too long for the test split", "30 tokens", "up to 29"):
        open_text(tmp_path, 30, "")
    with refused_with("sequence=0", kind=UserError):
        open_text(tmp_path, 0, "")


def test_the_hash_of_a_set_is_known_without_opening_it(tmp_path):
    write_set(tmp_path / "mine")
    data = prepared_text("mine", tmp_path, 4)
    for values in ({"name": "mine", "root": tmp_path}, {"name": "text", "root": tmp_path / "mine"}):
        assert known(values) == Known(tokens=data.train.tokens, vocabulary=data.vocabulary, sha256=data.sha256)
    assert known({"name": "c4", "root": tmp_path}) == Known()
    assert own_text(tmp_path / "mine", 4).describe() == data.describe() | {"name": "text"}


C4_COMMAND = f"python scripts/prepare_text.py --name c4 {C4} --out"


def test_an_absent_set_names_folder_command_and_the_embedded_one(tmp_path):
    with refused_with(f"{tmp_path}/c4 is not there", f"{C4_COMMAND} {tmp_path}/c4", "data.root=", "data=pydocs"):
        c4(tmp_path, 512)
    with refused_with("13_400_000_000 for llama_20m, 10_300_000_000 for llama_200m, 20_600_000_000 for llama_300m"):
        c4(tmp_path, 512)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "journal.json").write_text("{}")
    with refused_with(f"{tmp_path}/mine is unfinished", "--name mine --files"):
        prepared_text("mine", tmp_path, 512)
    write_set(tmp_path / "c4")
    (tmp_path / "c4" / "manifest.json").write_text("{}")
    with refused_with(f"remove {tmp_path}/c4 and make it again, with `{C4_COMMAND}"):
        c4(tmp_path, 8)


@pytest.mark.parametrize(
    ("model", "tokens"), [("llama_95m", C4), *((f"llama_{m}", LONGER) for m in ("20m", "200m", "300m"))]
)
def test_the_tokens_that_are_advised_are_enough_for_the_recipes(model, tokens):
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg = compose("train", overrides=["scale=paper", f"model={model}"])
    (advised,) = re.findall(rf"([\d_]+) for {model}" if tokens is LONGER else r"--max-tokens ([\d_]+)", tokens)
    trained = cfg.steps * cfg.batch_size * cfg.data.sequence
    assert trained < 0.99 * int(advised) < 1.05 * trained


def test_a_run_says_how_often_it_goes_through_its_text(tmp_path, capsys):
    write_set(tmp_path / "c4")  # 12 windows of 8 tokens
    chosen = ["model=llama_mini", "data=c4", f"data.root={tmp_path}", "data.sequence=8", "estimator=ste", "device=cpu"]
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg = compose("train", overrides=[*chosen, "steps=2", "batch_size=9", f"run_dir={tmp_path / 'run'}"])
    train(cfg)
    assert "tokens:   144 = 1.5 epochs of the 96 of c4\n" in capsys.readouterr().out
