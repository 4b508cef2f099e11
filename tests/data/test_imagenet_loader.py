"""What training reads of images is a function of (selection, seed) alone, whatever befalls the processes that read."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch
from helpers.checks import refused_with
from helpers.images import cut, data, equal, global_generators_untouched, picture, selections

from fogzo.data.base import Selection
from fogzo.data.imagenet.augment import Mixing, evaluation_transform, own_cores, posterize, training_transform


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
        ("mixup", -1.0): ("data.mixing.mixup=-1.0", "at least 0"),
        ("mixup", float("inf")): ("data.mixing.mixup=inf",),
        ("switch", 1.5): ("data.mixing.switch=1.5", "[0, 1]"),
        ("smoothing", "much"): ("data.mixing.smoothing='much'",),
        ("alpha", 1.0): ("data.mixing='alpha'", "mixup, cutmix, switch, smoothing"),
    }.items():
        with refused_with(*parts, kind=ValueError):
            data(small, mixing=dict([values]))
    with refused_with("data.mixing=None", kind=ValueError):
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
