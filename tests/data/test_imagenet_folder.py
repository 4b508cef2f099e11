"""Trees of images: what is in them, what a bad one says, and images that were cut short, found before training."""

import hashlib
import shutil
from importlib.resources import files

import numpy as np
import pytest
import torch
import yaml
from helpers.checks import refused_with
from helpers.configs import composed
from helpers.images import ROOT, cut, data, picture, write_tree
from PIL import Image

from fogzo.data.imagenet import tree as trees
from fogzo.data.imagenet.augment import evaluation_transform
from fogzo.data.imagenet.folder import folder_data, imagenet1k, imagenet100
from fogzo.data.imagenet.tree import class_list, class_list_sha256
from fogzo.training.build import build


def test_labels_and_record_follow_the_sorted_folders(small):
    found = data(small)
    assert (len(found.train), len(found.test), found.classes) == (18, 6, 3)
    assert found.train.targets.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    listed = sorted(f"{file.relative_to(small)} {file.stat().st_size}\n" for file in small.rglob("*.JPEG"))
    assert found.describe() == {
        "name": "small",
        "train": 18,
        "test": 6,
        "classes": 3,
        "sha256": hashlib.sha256("".join(listed).encode()).hexdigest(),
        "class_list": "all",
        "class_list_sha256": hashlib.sha256(b"n001\nn002\nn003\n").hexdigest(),
    }
    moved = found.to(torch.device("meta"))
    assert moved.describe() == found.describe()
    assert moved.test.batch(torch.tensor([0]))[0].device.type == "meta"


def test_evaluation_resizes_crops_the_centre_and_normalises(small):
    found = data(small, image_size=21)
    inputs, targets = found.test.batch(torch.tensor([5, 0, 5]))
    assert (inputs.shape, inputs.dtype, targets.tolist()) == ((3, 3, 21, 21), torch.float32, [2, 0, 2])
    with Image.open(small / "val" / "n003" / "n003_1.JPEG") as image:  # 40 x 52 pixels; 24 = 21/0.875
        resized = np.asarray(image.resize((31, 24), Image.Resampling.BICUBIC), dtype=np.float32)
    crop = resized[2:23, 5:26]  # torchvision rounds 1.5 to 2
    expected = (crop / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    torch.testing.assert_close(inputs[0], torch.from_numpy(expected).permute(2, 0, 1).float())
    assert torch.equal(inputs[0], inputs[2])
    train = found.train.batch(torch.tensor([11]))  # training images are evaluated without augmentation
    assert torch.equal(train[0], data(small, image_size=21, workers=3).train.batch(torch.tensor([11]))[0])
    with Image.open(small / "train" / "n002" / "n002_5.JPEG") as image:
        assert torch.equal(train[0][0], evaluation_transform("deit", 21)(image))


def test_other_kinds_of_pictures_become_rgb(tree):
    for index, mode in enumerate(("L", "CMYK")):
        picture(0, (40, 52)).convert(mode).save(tree / "val" / "n001" / f"n001_{index}.JPEG")
    picture(0, (40, 52)).convert("RGBA").save(tree / "val" / "n001" / "n001_2.png")
    assert data(tree).test.batch(torch.arange(3))[0].shape == (3, 3, 24, 24)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"augmentation": "heavy"}, "data.augmentation='heavy'"),
        ({"image_size": 0}, "data.image_size=0"),
        ({"image_size": 24.0}, "data.image_size=24.0"),
        ({"workers": -1}, "data.workers=-1"),
        ({"workers": True}, "data.workers=True"),
    ],
)
def test_impossible_options_are_refused(small, options, part):
    with refused_with(part, kind=ValueError):
        data(small, **options)


def test_a_damaged_tree_is_refused_by_what_is_wrong(tree):
    (tree / "val" / "n002").rename(tree / "val" / "n009")
    with refused_with(f"{tree}/val has 3 class folders, 2 of the 3", "n002 is missing", "n009 is not one of them"):
        data(tree)
    (tree / "val" / "n009").rename(tree / "val" / "n002")
    with refused_with(f"{tree}/train has 3 class folders where small has 1000"):
        data(tree, wanted=1000)
    empty = tree / "train" / "n001" / "n001_0.JPEG"
    empty.write_bytes(b"")
    with refused_with(f"{empty} is empty"):
        data(tree)
    for file in (tree / "train" / "n001").iterdir():
        file.unlink()
    with refused_with(f"{tree}/train/n001 holds no images"):
        data(tree)
    (tree / "train" / "n001").rmdir()
    (tree / "train" / "n001").symlink_to(tree / "gone")
    with refused_with(f"{tree}/train/n001 links to {tree}/gone, which is not there"):
        data(tree)
    shutil.rmtree(tree / "val")
    (tree / "train" / "n001").unlink()
    with refused_with(f"{tree}/val cannot be read"):
        data(tree)
    (tree / "val").mkdir()
    (tree / "val" / "ILSVRC2012_val_00000001.JPEG").write_text("flat")
    with refused_with(f"{tree}/val has no class folders (1 other entries)", f"{tree}/val/CLASS/"):
        data(tree)


def test_missing_sets_name_folder_and_ways_out(tmp_path):
    with refused_with(tmp_path / "imagenet100", "scripts/prepare_imagenet100.py --imagenet FOLDER", "scale=mini"):
        imagenet100(tmp_path)
    with refused_with(tmp_path / "imagenet:", "train/ and val/", "scale=mini", "data=fashion_mnist", "data=mnist5k"):
        imagenet1k(tmp_path)


def test_the_shipped_list_is_cmc_s_and_in_imagenet():
    file = files("fogzo.data.imagenet").joinpath("imagenet100_cmc.txt").read_bytes()
    ids = file.decode().split()
    assert hashlib.sha256(file).hexdigest() == class_list_sha256(class_list())
    assert class_list_sha256(class_list()) == "79f3f1552ccc478ce24bd934b4573625db584ddc1f4643ae23c994a94cb11397"
    assert len(ids) == len(set(ids)) == 100
    assert set(ids) <= set(files("timm.data._info").joinpath("imagenet_synsets.txt").read_text().split())


@pytest.mark.parametrize("name", ["imagenet100", "imagenet1k"])
def test_configs_hold_the_options(name, small, monkeypatch):
    config = yaml.safe_load((ROOT / "configs" / "data" / f"{name}.yaml").read_text())
    assert config.pop("_target_") == f"fogzo.data.{config.pop('name')}"
    assert config.pop("root") == "data"
    found = folder_data("small", small, **config)
    assert (found.train.image_size, found.train.augmentation, found.train.mixing) == (224, "resnet", None)


def test_an_image_that_was_cut_short_is_refused_when_the_tree_is_opened(tree, reads):
    damaged = cut(tree / "val" / "n002" / "n002_1.JPEG")
    with refused_with(f"{damaged} cannot be read as an image", "truncated", "fetch that file again"):
        data(tree)
    assert (len(reads[0]), reads[1]) == (24, [damaged])  # only what looks odd is decoded
    cut(tree / "train" / "n001" / "n001_0.JPEG")
    with refused_with("n001_0.JPEG cannot be read", "fetch that file again (1 more cannot be read either)"):
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


@pytest.mark.parametrize("workers", [0, 1])
def test_what_the_ends_do_not_show_is_found_by_decoding(tree, workers, monkeypatch):
    monkeypatch.setattr(trees, "CHUNK", 10)
    damaged = tree / "train" / "n003" / "n003_2.JPEG"
    content = damaged.read_bytes()
    damaged.write_bytes(content[:60] + content[-2:])
    data(tree)
    with refused_with(f"{damaged} cannot be read as an image"):
        data(tree, verify=True, workers=workers)
    damaged.write_bytes(content)
    data(tree, verify=True, workers=workers)


def test_of_a_large_tree_the_same_sample_is_looked_at_each_time(tree, reads, monkeypatch):
    monkeypatch.setattr(trees, "ALL_UP_TO", 23)
    monkeypatch.setattr(trees, "SAMPLE", 5)
    data(tree), data(tree)
    assert reads[0][:5] == reads[0][5:]
    assert len(set(reads[0])) == 5


def test_a_run_is_refused_before_its_first_step(tmp_path):
    tree = write_tree(tmp_path / "imagenet100", class_list(), 1, (32, 32))
    damaged = cut(tree / "train" / class_list()[5] / f"{class_list()[5]}_0.JPEG", 40)
    network = ("model=resnet_mini", "model.channels=3", "model.classes=100")
    with refused_with(damaged, "truncated", kind=ValueError):
        build(composed(*network, "data=imagenet100", f"data.root={tmp_path}", "data.image_size=32", "data.workers=0"))
