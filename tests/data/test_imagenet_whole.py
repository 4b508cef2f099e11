"""Images that were cut short are found before training: by their ends, by decoding, or by a mark not again."""

import pytest
from helpers.configs import composed
from helpers.images import cut, data, picture, refused_with, write_tree

from fogzo.data.imagenet import whole
from fogzo.data.imagenet.classes import class_list
from fogzo.training.build import build


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
    monkeypatch.setattr(whole, "CHUNK", 10)
    damaged = tree / "train" / "n003" / "n003_2.JPEG"
    content = damaged.read_bytes()
    damaged.write_bytes(content[:60] + content[-2:])
    data(tree)
    with refused_with(f"{damaged} cannot be read as an image"):
        data(tree, verify=True, workers=workers)
    damaged.write_bytes(content)
    data(tree, verify=True, workers=workers)


def test_of_a_large_tree_the_same_sample_is_looked_at_each_time(tree, reads, monkeypatch):
    monkeypatch.setattr(whole, "ALL_UP_TO", 23)
    monkeypatch.setattr(whole, "SAMPLE", 5)
    data(tree), data(tree)
    assert reads[0][:5] == reads[0][5:]
    assert len(set(reads[0])) == 5


def test_a_run_is_refused_before_its_first_step(tmp_path):
    tree = write_tree(tmp_path / "imagenet100", class_list(), 1, (32, 32))
    damaged = cut(tree / "train" / class_list()[5] / f"{class_list()[5]}_0.JPEG", 40)
    network = ("model=resnet_mini", "model.channels=3", "model.classes=100")
    with refused_with(damaged, "truncated", kind=ValueError):
        build(composed(*network, "data=imagenet100", f"data.root={tmp_path}", "data.image_size=32", "data.workers=0"))
