"""Images that were cut short are found before training: by their ends, by decoding, or by a mark not again."""

import shutil

import pytest
import test_imagefolder
import test_train_cli
from helpers.cli import assert_refused
from helpers.images import data, picture, refused_with, write_tree

from fogzo.data.imagenet import whole as verify
from fogzo.data.imagenet.classes import class_list
from fogzo.data.imagenet.folder import imagenet100

hundred, script, small, tree = (getattr(test_imagefolder, name) for name in ("hundred", "script", "small", "tree"))
digits, train = test_train_cli.digits, test_train_cli.train


def cut(file, size=200):
    file.write_bytes(file.read_bytes()[:-size])
    return file


@pytest.fixture
def reads(monkeypatch):
    """The files whose ends were looked at, and those that were decoded."""
    seen = ([], [])
    for name, into in (("looks_whole", seen[0]), ("damage", seen[1])):
        real = getattr(verify, name)
        monkeypatch.setattr(verify, name, lambda file, real=real, into=into: into.append(file) or real(file))
    return seen


def test_an_image_that_was_cut_short_is_refused_when_the_tree_is_opened(tree, reads):
    damaged = cut(tree / "val" / "n002" / "n002_1.JPEG")
    with refused_with(f"{damaged} cannot be read as an image", "truncated", "fetch that file again"):
        data(tree)
    assert (len(reads[0]), reads[1]) == (24, [damaged])  # only what looks odd is decoded
    cut(tree / "train" / "n001" / "n001_0.JPEG")
    with refused_with("n001_0.JPEG cannot be read", "nor can 1 more: fetch them again"):
        data(tree)
    assert data(tree, verify=False).classes == 3


def test_whole_files_of_other_kinds_are_taken(tree, reads):
    folder = tree / "train" / "n001"
    with (folder / "n001_0.JPEG").open("ab") as file:
        file.write(b"\0padding")  # as some cameras leave
    picture(0, (40, 52)).save(folder / "more.png")
    picture(0, (40, 52)).save(folder / "more.bmp")
    picture(0, (40, 52)).convert("CMYK").save(folder / "n001_1.JPEG")
    (folder / "png.JPEG").write_bytes((folder / "more.png").read_bytes())  # ImageNet has one of these
    data(tree)
    assert sorted(file.name for file in reads[1]) == ["more.bmp", "n001_0.JPEG"]


@pytest.mark.parametrize("workers", [0, 2])
def test_what_the_ends_do_not_show_is_found_by_decoding(tree, workers, monkeypatch):
    monkeypatch.setattr(verify, "CHUNK", 10)
    damaged = tree / "train" / "n003" / "n003_2.JPEG"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:60] + whole[-2:])
    data(tree)
    with refused_with(f"{damaged} cannot be read as an image"):
        data(tree, verify=True, workers=workers)
    damaged.write_bytes(whole)
    data(tree, verify=True, workers=workers)


def test_of_a_large_tree_the_same_sample_is_looked_at_each_time(tree, reads, monkeypatch):
    monkeypatch.setattr(verify, "ALL_UP_TO", 23)
    monkeypatch.setattr(verify, "SAMPLE", 5)
    data(tree), data(tree)
    assert reads[0][:5] == reads[0][5:]
    assert len(set(reads[0])) == 5


@pytest.mark.parametrize("copy", [False, True])
def test_what_prepare_has_decoded_is_not_read_again_until_it_changes(hundred, tmp_path, script, reads, copy):
    full = shutil.copytree(hundred / "full", tmp_path / "full")
    out = tmp_path / "imagenet100"
    for _ in range(2):
        script.prepare(full, out, class_list(), copy=copy)
        assert (len(reads[0]), len(reads[1])) == (0, 400)
    imagenet100(tmp_path, image_size=32, workers=0)
    assert (len(reads[0]), len(reads[1])) == (0, 400)
    damaged = out / "train" / class_list()[7]
    cut(damaged / f"{class_list()[7]}_1.JPEG", 30)
    with refused_with(f"{damaged}/{class_list()[7]}_1.JPEG cannot be read as an image"):
        imagenet100(tmp_path, image_size=32, workers=0)


def test_prepare_names_damaged_images_and_links_nothing(hundred, tmp_path, script):
    full = shutil.copytree(hundred / "full", tmp_path / "full")
    name = class_list()[3]
    damaged = cut(full / "val" / name / f"{name}_0.JPEG", 40)
    cut(full / "val" / name / f"{name}_1.JPEG", 40)
    with refused_with(f"{damaged} cannot be read as an image", "nor can 1 more"):
        script.prepare(full, tmp_path / "out", class_list())
    assert not (tmp_path / "out").exists()


def test_training_is_refused_before_its_first_step(train, tmp_path):
    tree = write_tree(tmp_path / "data" / "imagenet100", class_list(), 1, (32, 32))
    damaged = cut(tree / "train" / class_list()[5] / f"{class_list()[5]}_0.JPEG", 40)
    overrides = ("model=resnet_mini", "data=imagenet100", "data.image_size=32", "model.channels=3", "model.classes=100")
    assert_refused(train(*overrides, "data.workers=0"), f"data/imagenet100/{damaged.relative_to(tree)}", "truncated")
    assert not list(tmp_path.rglob("metrics.jsonl"))
