"""Trees of images: what a bad one says, what training reads whatever befalls its processes, and ImageNet-100."""

import hashlib
import importlib.util
import multiprocessing
import os
import shutil
import signal
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers.checks import refused_with
from helpers.configs import composed
from helpers.images import CLASSES, ROOT, cut, data, equal, global_generators_untouched, picture, selections, write_tree
from PIL import Image

from fogzo.data.base import Selection
from fogzo.data.imagenet import tree as trees
from fogzo.data.imagenet.augment import Mixing, evaluation_transform, own_cores, posterize, training_transform
from fogzo.data.imagenet.folder import folder_data, imagenet1k, imagenet100
from fogzo.data.imagenet.tree import class_list, class_list_sha256
from fogzo.training.build import build


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    return write_tree(tmp_path_factory.mktemp("small"), CLASSES, 6, (40, 52))


@pytest.fixture(scope="session")
def hundred(tmp_path_factory):
    """Parent of a full "ImageNet" of 102 classes, two images of 32 pixels each."""
    root = tmp_path_factory.mktemp("hundred")
    write_tree(root / "full", ("n00000001", *class_list(), "n99999999"), 2, (32, 32))
    return root


@pytest.fixture
def tree(small, tmp_path):
    """A copy to damage."""
    return shutil.copytree(small, tmp_path / "tree")


@pytest.fixture(scope="session")
def script():
    spec = importlib.util.spec_from_file_location("prepare", ROOT / "scripts" / "prepare_imagenet100.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def reads(monkeypatch):
    """The files whose ends were looked at, and those that were decoded."""
    seen = ([], [])
    for name, into in (("looks_whole", seen[0]), ("opened_image", seen[1])):
        real = getattr(trees, name)
        monkeypatch.setattr(trees, name, lambda file, real=real, into=into: into.append(file) or real(file))
    return seen


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
        ({"augmentation": "heavy"}, "augmentation='heavy'"),
        ({"image_size": 0}, "image_size=0"),
        ({"image_size": 24.0}, "image_size=24.0"),
        ({"workers": -1}, "workers=-1"),
        ({"workers": True}, "workers=True"),
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


@pytest.mark.parametrize("augmentation", ["deit", "resnet"])
def test_training_sees_each_position_augmented_anew_and_again_the_same(small, augmentation):
    found = data(small, augmentation=augmentation).train
    with global_generators_untouched():
        batches = list(found.load(selections(), seed=5))
    assert [inputs.shape for inputs, _ in batches] == [(4, 3, 24, 24)] * 6
    assert all(torch.equal(b[1], found.targets[s.indices]) for b, s in zip(batches, selections(), strict=True))
    torch.manual_seed(7)  # the global generators do not matter
    assert equal(list(found.load(selections(4), seed=5)), batches[4:])  # from the middle on
    assert not torch.equal(next(found.load(selections(), seed=6))[0], batches[0][0])
    again = Selection(torch.tensor([3, 3, 3]), torch.tensor([8, 9, 8]))  # repeated augmentation
    one, other, same = next(found.load([again], seed=0))[0]
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_one_image_does_not_depend_on_its_neighbours(small):
    found = data(small).train
    whole = next(found.load(selections(batch_size=8), seed=0))
    half = next(found.load([Selection(*(part[4:] for part in next(selections(batch_size=8))))], seed=0))
    assert torch.equal(whole[0][4:], half[0])  # as when ranks share a batch


def test_no_augmentation_is_evaluation(small):
    found = data(small, augmentation="none").train
    selection = next(selections())
    assert equal([next(found.load([selection], seed=0))], [found.batch(selection.indices)])


def test_mixing_makes_soft_targets_once_a_batch(small):
    plain = data(small).train
    mixed = data(small, mixing=True).train
    with global_generators_untouched():
        batches = list(mixed.load(selections(last=12), seed=2))
    kinds = set()
    for (inputs, targets), (raw, labels) in zip(batches, plain.load(selections(last=12), seed=2), strict=True):
        assert (targets.shape, targets.dtype) == ((4, 3), torch.float32)
        torch.testing.assert_close(targets.sum(1), torch.ones(4))
        assert targets.min() >= 0.1 / 3 - 1e-6  # smoothing
        pasted = ((inputs == raw) | (inputs == raw.flip(0))).all()  # cutmix takes every pixel from one of two images
        kinds.add("cutmix" if pasted else "mixup")
        share = targets.gather(1, labels[:, None])[:, 0]
        torch.testing.assert_close(share[labels == labels.flip(0)], share.new_tensor(1 - 0.2 / 3).expand(
            int((labels == labels.flip(0)).sum())
        ))  # fmt: skip
    assert kinds == {"cutmix", "mixup"}
    assert equal(list(mixed.load(selections(7, 12), seed=2)), batches[7:])
    assert mixed.batch(torch.arange(2))[1].dtype == torch.int64
    assert data(small, mixing=True).test.mixing is None


def test_mixing_takes_values_and_refuses_others(small):
    assert data(small, mixing={"cutmix": 0.0, "smoothing": 0}).train.mixing == Mixing(3, cutmix=0.0, smoothing=0)
    assert data(small, mixing=False).train.mixing is None
    for values, parts in {
        ("mixup", -1.0): ("mixing.mixup=-1.0", "at least 0"),
        ("mixup", float("inf")): ("mixing.mixup=inf",),
        ("switch", 1.5): ("mixing.switch=1.5", "[0, 1]"),
        ("smoothing", "much"): ("mixing.smoothing='much'",),
        ("alpha", 1.0): ("data.mixing='alpha'", "mixup, cutmix, switch, smoothing"),
    }.items():
        with refused_with(*parts, kind=ValueError):
            data(small, mixing=dict([values]))
    with refused_with("mixing=None", kind=ValueError):
        data(small, mixing=None)
    with refused_with("both 0", kind=ValueError):
        data(small, mixing={"mixup": 0, "cutmix": 0})
    with refused_with("a batch of 3", "even batch_size", "data.mixing=false", kind=ValueError):
        next(data(small, mixing=True).train.load(selections(batch_size=3), seed=0))


def test_augmentations_are_those_of_the_papers():
    deit, resnet = str(training_transform("deit", 224)), str(training_transform("resnet", 224))
    for part in ("RandAugment(n=2", "m=9, mstd=0.5", "RandomErasing(p=0.25, mode=pixel", "bicubic", "Flip(p=0.5)"):
        assert part in deit
    assert "ColorJitter" not in deit  # timm: not beside RandAugment
    assert [part for part in ("RandAugment", "ColorJitter", "Erasing", "bicubic") if part in resnet] == []
    assert "scale=(0.08, 1.0)" in resnet
    assert "size=256" in str(evaluation_transform("deit", 224))


def test_the_highest_level_of_randaugment_makes_no_pillow_stop():
    (operations,) = (step.ops for step in training_transform("deit", 24).transforms if hasattr(step, "ops"))
    image = picture(0, (24, 24))
    for operation in operations:
        operation.magnitude, operation.magnitude_std, operation.prob = 10, 0, 1.0
        assert operation(image).size == (24, 24)
    assert posterize(image, 0).getextrema() == ((0, 0),) * 3
    assert posterize(image, 4).getextrema() == tuple((low & 240, high & 240) for low, high in image.getextrema())


def test_processes_change_nothing_survive_signals_that_stop_a_run_and_name_an_image_that_is_cut_short(tree):
    expected = list(data(tree, mixing=True).train.load(selections(), seed=5))
    before = set(multiprocessing.active_children())
    with global_generators_untouched():
        stream = data(tree, mixing=True, workers=2).train.load(selections(last=10**9), seed=5)
        batches = [next(stream)]
        workers = set(multiprocessing.active_children()) - before
        for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM):
            for worker in workers:
                os.kill(worker.pid, number)
        batches += [next(stream) for _ in expected[1:]]
    assert equal(batches, expected)
    assert len(workers) == 2
    damaged = cut(tree / "train" / "n002" / "n002_3.JPEG")  # after the tree was looked at
    with refused_with(f"{damaged} cannot be read as an image", "truncated", "fetch that file again"):
        list(stream)
    assert not set(multiprocessing.active_children()) - before


def test_a_process_that_the_system_kills_ends_the_run_in_one_sentence(small):
    stream = data(small, workers=1).train.load(selections(last=10**9), seed=5)
    before = set(multiprocessing.active_children())
    next(stream)
    (worker,) = set(multiprocessing.active_children()) - before
    os.kill(worker.pid, signal.SIGKILL)  # as when memory is short
    with refused_with("a process that reads images was killed", "data.workers"):
        list(stream)
    assert not set(multiprocessing.active_children()) - before


DAMAGES = {"truncated": cut, "cannot identify": lambda file: file.write_text("no image"), "No such file": Path.unlink}


@pytest.mark.parametrize("reason", DAMAGES)
def test_an_image_that_cannot_be_read_is_named_with_the_reason(tree, reason):
    damaged = tree / "train" / "n002" / "n002_3.JPEG"
    found = data(tree).train
    DAMAGES[reason](damaged)
    with refused_with(f"{damaged} cannot be read as an image", reason, "fetch that file again"):
        list(found.load(selections(), seed=0))
    with refused_with(f"{damaged} cannot be read as an image", reason):
        found.batch(torch.arange(18))


def test_workers_are_the_cores_of_this_process(small, monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert data(small, workers=None).train.workers == own_cores() >= 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "100000")
    assert own_cores() == 1


@pytest.mark.parametrize("copy", [False, True])
def test_prepare_builds_the_subset_and_changes_nothing_a_second_time(hundred, tmp_path, script, monkeypatch, copy):
    monkeypatch.chdir(hundred)  # the folder is given relative to here, and links must not be
    out = tmp_path / "imagenet100"
    for _ in range(2):
        assert script.prepare(Path("full"), out, class_list(), copy=copy) == {"train": 200, "val": 200}
    monkeypatch.chdir("/")
    assert {link.is_symlink() for link in (out / "train").iterdir()} == {not copy}
    found = imagenet100(tmp_path, image_size=32, workers=0)
    assert (found.classes, len(found.train), len(found.test)) == (100, 200, 200)
    assert found.describe()["class_list"] == "imagenet100_cmc"
    assert found.describe()["class_list_sha256"] == class_list_sha256(class_list())
    assert found.train.batch(torch.tensor([0, 199]))[1].tolist() == [0, 99]
    (out / "train" / "n00000001").mkdir()
    (out / "val" / class_list()[3]).rename(out / "val" / "n00000002")
    with refused_with("101 class folders, 100 of the 100", "n00000001 is not one of them", "prepare_imagenet100.py"):
        imagenet100(tmp_path)


def test_prepare_refuses_what_it_cannot_use_before_it_writes(hundred, tmp_path, script):
    out = tmp_path / "out"
    with refused_with("lacks 2 of the 3 classes (n1, n2)", f"{hundred}/full/train"):
        script.prepare(hundred / "full", out, ("n1", "n2", class_list()[0]))
    with refused_with(f"{tmp_path}/gone/train cannot be read"):
        script.prepare(tmp_path / "gone", out, class_list())
    assert not out.exists()
    (out / "val").mkdir(parents=True)
    (out / "val" / "mine").write_text("mine")
    with refused_with(f"{out}/val/mine is none of the 100 classes"):
        script.prepare(hundred / "full", out, class_list())
    (out / "val" / "mine").unlink()
    (out / "val" / class_list()[0]).symlink_to(hundred / "full" / "val" / class_list()[1])
    with refused_with(f"{out}/val/{class_list()[0]} is neither a link to {hundred}/full/val/{class_list()[0]}"):
        script.prepare(hundred / "full", out, class_list())
    assert not (out / "train").exists()
    (tmp_path / "file").write_text("mine")
    with refused_with(tmp_path / "file", "--out"):
        script.prepare(hundred / "full", tmp_path / "file", class_list())


def test_prepare_as_a_command(hundred, tmp_path, script, monkeypatch, capsys):
    chosen = tmp_path / "classes.txt"
    chosen.write_text("\n".join(class_list()[:2]))
    call = ["prepare", "--imagenet", f"{hundred}/full", "--out", f"{tmp_path}/two", "--classes", str(chosen)]
    monkeypatch.setattr(sys, "argv", call)
    script.main()
    printed = capsys.readouterr().out
    assert f"{tmp_path}/two/train: 2 classes, 4 images" in printed
    assert class_list_sha256(class_list()[:2]) in printed
    for text, part in {"n1 n2 n1": "n1 more than once", "": "no classes", "../n1": "no name of a folder"}.items():
        chosen.write_text(text)
        with pytest.raises(SystemExit, match=f"^error: {chosen} holds .*{part}"):
            script.main()


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
    with refused_with(f"{damaged} cannot be read as an image", "1 more cannot"):
        script.prepare(full, tmp_path / "out", class_list())
    assert not (tmp_path / "out").exists()
