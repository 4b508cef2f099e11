"""Stop signals: a run saves first, and goes on from there to the same bits."""

import json
import signal

import pytest
from helpers.trainers import TIMES, Tell, assert_same_end, make

from fogzo.training import checkpoint
from fogzo.training.signals import Interrupted

COLUMNS = {"step", "loss", "forwards", "backwards", "flops", "forward_equivalents", "examples", *TIMES}


def rows_of(folder):
    return [json.loads(line) for line in folder.metrics_file.read_text().splitlines()]


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
@pytest.mark.parametrize("at", [1, 4])
def test_a_stop_signal_saves_first_and_the_run_goes_on_from_there(at, name, code, open_run):
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    whole = make("fogzo", "lsq", folder=open_run("whole"))
    whole.fit()
    stop = Tell(at, lambda: signal.raise_signal(signal.Signals[name]))
    stopped = make("fogzo", "lsq", folder=open_run(), reporters=[stop])
    with pytest.raises(Interrupted, match=f"{name} after step {at}; the same command goes on") as caught:
        stopped.fit()
    assert caught.value.code == code
    assert stop.closed == 1
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
    again = make("fogzo", "lsq", folder=open_run())
    assert again.resume()
    assert again.step == at
    again.fit()
    assert_same_end(again, whole)


def test_a_second_ctrl_c_stops_at_once_and_a_signal_at_the_last_step_ends_the_run(open_run):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        make(folder=open_run(), reporters=[Tell(2, twice)]).fit()
    trainer = make(folder=open_run("last"), reporters=[Tell(6, lambda: signal.raise_signal(signal.SIGTERM))])
    assert trainer.fit().keys() == {"train_loss", "test_loss", "accuracy"}
    assert trainer.step == 6


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no such signals here")
@pytest.mark.parametrize(("name", "at"), [("SIGUSR1", 1), ("SIGUSR1", 4), ("SIGUSR2", 2)])
def test_a_user_signal_saves_first_and_the_run_goes_on_from_there(name, at, open_run):
    number = signal.Signals[name]
    before = signal.getsignal(number)
    whole = make("fogzo", "lsq", folder=open_run("whole"))
    whole.fit()
    stop = Tell(at, lambda: signal.raise_signal(number))
    with pytest.raises(Interrupted, match=f"{name} after step {at}; the same command goes on") as caught:
        make("fogzo", "lsq", folder=open_run(), reporters=[stop]).fit()
    assert caught.value.code == 128 + number
    assert stop.closed == 1
    assert signal.getsignal(number) == before
    again = make("fogzo", "lsq", folder=open_run())
    assert again.resume()
    assert again.step == at
    again.fit()
    assert_same_end(again, whole)


@pytest.fixture
def handler():
    """Sets a handler as submitit does, and puts the one before back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)}
    yield signal.signal
    for number, old in before.items():
        signal.signal(number, old)


@pytest.mark.skipif(not hasattr(signal, "SIGUSR2"), reason="no such signal here")
def test_a_handler_that_requeues_gets_the_signal_when_the_step_is_saved(open_run, handler):
    folder, seen = open_run(), []

    def requeue(number, frame):
        seen.append((number, checkpoint.load(folder.checkpoint_file)["step"]))
        raise SystemExit(144)

    handler(signal.SIGUSR2, requeue)
    stop = Tell(3, lambda: signal.raise_signal(signal.SIGUSR2))
    with pytest.raises(SystemExit, match="144"):
        make("fogzo", "lsq", folder=folder, reporters=[stop], checkpoint_every=0).fit()
    assert seen == [(signal.SIGUSR2, 3)]
    assert signal.getsignal(signal.SIGUSR2) == requeue
    assert stop.closed == 1


def test_a_handler_that_only_notes_the_signal_lets_the_run_go_on_with_its_state_saved(open_run, handler):
    folder, seen = open_run(), []
    handler(signal.SIGTERM, lambda number, frame: seen.append(checkpoint.load(folder.checkpoint_file)["step"]))
    stops = [Tell(step, lambda: signal.raise_signal(signal.SIGTERM)) for step in (2, 4, 6)]
    make(folder=folder, reporters=stops, checkpoint_every=0).fit()
    assert seen == [2, 4]  # the last one came with the end
