"""ImageNet-100 out of ImageNet: links or copies, checked once, and nothing written that cannot be used."""

import shutil
import sys
from pathlib import Path

import pytest
import torch
from helpers.checks import refused_with
from helpers.images import cut

from fogzo.data.imagenet.folder import imagenet100
from fogzo.data.imagenet.tree import class_list, class_list_sha256


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
