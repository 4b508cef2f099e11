"""The embedded corpus: what it is made of, made once, and never half."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers.checks import refused_with
from helpers.text_helpers import CutError, flip

from fogzo.data.pydocs import Source, docstrings, documents, installed_sources, pydocs
from fogzo.data.shards import Manifest, sha256_of
from fogzo.errors import UserError

MODULE = '''"""About {name}, at some length: {filler}"""


class Thing:
    """A thing of {name}."""

    def method(self, x, *, key=1):
        """Does {name} to x."""

        def inner():
            "said inside"


async def later():
    """Comes later."""
'''


@pytest.fixture
def sources(tmp_path):
    found = []
    for package, whole in (("python", True), ("extra", False)):
        root = tmp_path / package
        for folder in ("", "sub", "tests", "__pycache__"):
            (root / folder).mkdir(exist_ok=True)
            for i in range(12):
                name = f"{package} {folder} {i}"
                (root / folder / f"m{i}.py").write_text(MODULE.format(name=name, filler=f"words {i} " * 40))
        (root / "latin.py").write_bytes(b"# -*- coding: latin-1 -*-\n" + "# é\r\n".encode("latin1") * 100)
        (root / "broken.py").write_bytes(b"\xff\xfe def (:\n" * 100)
        (root / "copy.py").write_bytes((root / "m3.py").read_bytes())
        (root / "__init__.py").write_text("")
        found.append(Source(package, "1.2", root, whole))
    return found


def test_documents_are_sources_or_docstrings_of_each_module_once(sources):
    found = {document.name: document.text for document in documents(sources)}
    assert [name for name in found if "test" in name or "pycache" in name] == []
    assert len(found) == 12 * 4 + 1
    assert found["python/latin.py"].endswith("# é\n")
    assert found["python/m0.py"] == (sources[0].root / "m0.py").read_text()
    assert ("python/copy.py" in found) != ("python/m3.py" in found)
    assert (
        found["extra/sub/m1.py"].split("\n\n")
        == [
            f"About extra sub 1, at some length: {'words 1 ' * 40}".strip() + "\n",
            *("class Thing:\nA thing of extra sub 1.\n", "def method(self, x, *, key=1):\nDoes extra sub 1 to x.\n"),
        ]
        or found["extra/sub/m1.py"].count("\n\n") == 2
    )


def test_docstrings_come_in_the_order_of_the_file_with_their_owners():
    text = MODULE.format(name="it", filler="so")
    assert list(docstrings(text)) == [
        "About it, at some length: so\n",
        "class Thing:\nA thing of it.\n",
        "def method(self, x, *, key=1):\nDoes it to x.\n",
        "def inner():\nsaid inside\n",
        "def later():\nComes later.\n",
    ]


def test_the_corpus_is_prepared_once_and_found_again(sources, tmp_path, monkeypatch, capsys):
    first = pydocs(tmp_path / "data", 16, 300, sources)
    assert "preparing the embedded text" in capsys.readouterr().out
    (folder,) = (tmp_path / "data" / "pydocs").glob("*-300")
    assert first.sha256 == sha256_of(folder / "manifest.json")
    assert (first.name, first.vocabulary, first.sequence) == ("pydocs", 300, 16)
    made_of = first.describe()["sources"]
    assert [(s["name"], s["version"], s["kind"]) for s in made_of] == [
        ("python", "1.2", "sources"),
        ("extra", "1.2", "docstrings"),
    ]
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules[documents.__module__], "documents", None)  # not read again
        again = pydocs(tmp_path / "data", 8, 300, sources)
    assert again.sha256 == first.sha256
    assert capsys.readouterr().out == ""
    assert len(again.train) > len(first.train)
    # touched files are read again, and the set is the same to the byte
    os.utime(sources[0].root / "m0.py", ns=(1, 1))
    assert pydocs(tmp_path / "data", 16, 300, sources).sha256 == first.sha256
    assert len(list((tmp_path / "data" / "pydocs").glob("*-300"))) == 2
    # on another machine, in another folder, the set is the same to the byte
    other = [source._replace(root=source.root.rename(tmp_path / f"moved-{source.name}")) for source in sources]
    assert pydocs(tmp_path / "elsewhere", 16, 300, other).sha256 == first.sha256


def test_a_changed_environment_makes_a_set_of_its_own(sources, tmp_path):
    first = pydocs(tmp_path, 16, 300, sources)
    with (sources[1].root / "m0.py").open("a") as file:
        file.write("\ndef new():\n    '''New in 1.3.'''\n")
    changed = pydocs(tmp_path, 16, 300, [sources[0], sources[1]._replace(version="1.3")])
    larger = pydocs(tmp_path, 16, 320, sources)
    assert len({first.sha256, changed.sha256, larger.sha256}) == 3
    assert (changed.sources[1]["version"], larger.sources[1]["version"], larger.vocabulary) == ("1.3", "1.2", 320)
    assert len(list((tmp_path / "pydocs").glob("*-3?0"))) == 3


def test_a_kill_leaves_nothing_half_made_and_the_next_use_clears_up(sources, tmp_path, monkeypatch):
    def cut(*arguments):
        raise CutError

    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "save", cut)
        with pytest.raises(CutError):
            pydocs(tmp_path / "data", 16, 300, sources)
    assert [f.suffix for f in (tmp_path / "data" / "pydocs").glob("*-300*")] == [".partial"]
    data = pydocs(tmp_path / "data", 16, 300, sources)
    assert list((tmp_path / "data" / "pydocs").glob("*.partial")) == []
    (shard,) = (tmp_path / "data" / "pydocs").glob("*-300/train-00000.bin")
    flip(shard)
    with refused_with(f"remove {shard.parent}, and it is made again"):
        pydocs(tmp_path / "data", 16, 300, sources)
    for file in shard.parent.iterdir():
        file.unlink()
    shard.parent.rmdir()
    assert pydocs(tmp_path / "data", 16, 300, sources).sha256 == data.sha256


def test_first_uses_at_the_same_time_end_with_one_set(sources, tmp_path, capsys):
    with ThreadPoolExecutor(2) as uses:
        made = list(uses.map(lambda _: pydocs(tmp_path / "data", 16, 300, sources).sha256, range(2)))
    assert made[0] == made[1]
    assert capsys.readouterr().out.count("preparing the embedded text") == 1
    assert len(list((tmp_path / "data" / "pydocs").glob("*-300*"))) == 1


def test_an_embedded_corpus_that_cannot_be_made_says_why(sources, tmp_path):
    (tmp_path / "file").write_text("")
    with refused_with(f"{tmp_path}/file", "cannot be prepared", "data.root="):
        pydocs(tmp_path / "file", 16, 300, sources)
    (tmp_path / "empty").mkdir()
    with refused_with(f"no Python sources were found in {tmp_path}/empty"):
        pydocs(tmp_path, 16, 300, [Source("python", "3", tmp_path / "empty", whole=True)])
    with refused_with("vocabulary=100", kind=UserError):
        pydocs(tmp_path, 16, 100, sources)
    with refused_with("sequence=100000000 is too long for the train split"):
        pydocs(tmp_path, 100_000_000, 300, sources)


def test_this_installation_has_the_sources_and_a_part_of_them_is_learnable(tmp_path):
    installed = {source.name: source for source in installed_sources()}
    assert installed.keys() >= {"python", "numpy", "scipy", "matplotlib"}
    part = [Source("python", "3", installed["python"].root / "json", whole=True)]
    part.append(Source("numpy", "2", installed["numpy"].root / "lib", whole=False))
    data = pydocs(tmp_path, 32, 1000, part)
    assert data.vocabulary == 1000
    assert data.train.tokens > 50_000
    tokens = data.train.batch(torch.arange(len(data.train)))[1].flatten()
    assert (torch.bincount(tokens, minlength=1000) > 0).float().mean() > 0.8  # the vocabulary is used
