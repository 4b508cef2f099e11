"""Trees of images: what is in them, and what a bad one says."""

import hashlib
import shutil
from importlib.resources import files

import numpy as np
import pytest
import torch
import yaml
from helpers.images import ROOT, data, picture, refused_with
from PIL import Image

from fogzo.data.imagenet.augment import evaluation_transform
from fogzo.data.imagenet.classes import class_list, class_list_sha256
from fogzo.data.imagenet.folder import folder_data, imagenet1k, imagenet100


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
