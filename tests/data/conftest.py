"""Fixtures that several tests of data share."""

import importlib.util
import shutil

import pytest
from helpers.images import CLASSES, ROOT, write_tree
from helpers.text_helpers import jsonl, words

from fogzo.data.imagenet import tree as trees
from fogzo.data.imagenet.tree import class_list


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """Three files of 300 documents; small chunks, so that many of them pass."""
    monkeypatch.setattr("fogzo.data.sources.CHUNK", 2000)
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(3):
        jsonl(folder / f"part-{i}.jsonl{'.gz' if i else ''}", words(i, 300))
    return folder


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
