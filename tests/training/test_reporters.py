"""What a run says while it goes on, where there is no terminal."""

import errno

import pytest
from helpers.trainers import make

from fogzo.training import console
from fogzo.training.console import Progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is told the seconds to go on."""
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return lambda seconds: now.__setitem__(0, now[0] + seconds)


def test_off_a_terminal_the_first_step_has_a_line_and_then_every_ten_seconds_also_in_an_evaluation(clock, capsys):
    progress = Progress(bar=False)
    progress.start(0, 1000)
    for step in range(1, 26):
        clock(1)
        progress.step(step, 2.0 / step)
    for batch in range(1, 16):
        clock(1)
        progress.evaluating(batch, 15)
    progress.row({"step": 25, "loss": 0.5, "accuracy": 81.25, "flips": 7})
    clock(9)
    progress.step(26, 0.25)
    assert capsys.readouterr().out.splitlines() == [
        "step 1/1000  loss 2",
        "step 11/1000  loss 0.1818",
        "step 21/1000  loss 0.09524",
        "step 25/1000  evaluating: 6 of 15 batches",
        "step 25/1000  loss 0.5  accuracy 81.25  flips 7",
    ]


def test_an_evaluation_says_how_far_it_is_and_counts_each_batch_once():
    trainer = make()
    trainer.task.evaluation_batch = 10  # of 60 examples to train, and of 25 to test
    heard = []
    quiet = trainer.task.evaluate(trainer.model)
    assert trainer.task.evaluate(trainer.model, [lambda done, of: heard.append((done, of))]) == quiet
    assert heard == [(done, 9) for done in range(1, 10)]


def test_an_output_that_is_closed_ends_no_run(monkeypatch):
    def closed(*words, **options):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("builtins.print", closed)
    trainer = make(reporters=[Progress(bar=False, every=0.0)])
    trainer.fit()
    assert trainer.step == 6
