"""Fixtures that several tests of data share."""

import pytest
from helpers.text_helpers import jsonl, words


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """Three files of 300 documents; small chunks, so that many of them pass."""
    monkeypatch.setattr("fogzo.data.sources.CHUNK", 2000)
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(3):
        jsonl(folder / f"part-{i}.jsonl{'.gz' if i else ''}", words(i, 300))
    return folder
