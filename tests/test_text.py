"""Windows of tokens, and how a set of text is found: side by side wherever the shards are cut, and named if absent."""

import numpy as np
import pytest
import torch
from text_helpers import flip, refused_with, write_set

from fogzo.data.present import present_sha256
from fogzo.data.text import TokenSplit, c4, open_text, prepared_text


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
    with refused_with("sequence=0", error=ValueError):
        open_text(tmp_path, 0, "")


def test_the_hash_of_a_set_is_known_without_opening_it(tmp_path):
    write_set(tmp_path / "mine")
    assert present_sha256("mine", tmp_path) == prepared_text("mine", tmp_path, 4).describe()["sha256"]
    assert present_sha256("c4", tmp_path) is None


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
