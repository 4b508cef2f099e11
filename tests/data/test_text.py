"""Windows of tokens, and how a set of text is found: side by side wherever the shards are cut, and named if absent."""

import re

import numpy as np
import pytest
import torch
from helpers.text_helpers import ROOT, refused_with, write_set
from hydra import compose, initialize_config_dir

from fogzo.data import Known, known
from fogzo.data.text import C4, LONGER, TokenSplit, c4, open_text, own_text, prepared_text
from fogzo.errors import UserError
from fogzo.training.launch import train


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
    with refused_with("sequence=0", error=UserError):
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
