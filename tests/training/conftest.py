"""Fixtures that the tests of training share."""

import pytest

from fogzo.runs.folder import RunFolder


@pytest.fixture
def open_run(tmp_path):
    """Opens one process's hold on a run folder after another's."""
    opened = []

    def open_one(name="run", config=None):
        for folder in opened:
            folder.close()
        opened.append(RunFolder(tmp_path / name, {"seed": 5} if config is None else config))
        return opened[-1]

    yield open_one
    for folder in opened:
        folder.close()
