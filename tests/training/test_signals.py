"""Stop signals: a run saves first, and goes on from there to the same bits."""

import copy
import json
import signal

import pytest
from helpers.trainers import TIMES, Tell, assert_same_end, assert_same_state, make

from fogzo.training import checkpoint
from fogzo.training.closure import BatchClosure
from fogzo.training.resume import resume
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
    assert resume(again)
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
@pytest.mark.parametrize(("name", "at"), [("SIGUSR1", 1), ("SIGUSR1", 4), ("SIGUSR2", 2), ("SIGHUP", 3)])
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
    assert resume(again)
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


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no terminal closes here")
def test_a_run_that_is_to_outlive_its_terminal_does(open_run):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        trainer = make(folder=open_run(), reporters=[Tell(2, lambda: signal.raise_signal(signal.SIGHUP))])
        trainer.fit()
    finally:
        signal.signal(signal.SIGHUP, before)
    assert trainer.step == 6


@pytest.fixture
def slow_step(monkeypatch):
    """At the ``call``-th pass of step ``at`` a signal comes, and so many seconds go by."""

    def make_slow(trainer, number, at, call, seconds=1000.0):
        true, calls = BatchClosure.__call__, []

        def passing(closure, *, backward):
            if trainer.step == at:
                calls.append(backward)
                if len(calls) == call:
                    signal.raise_signal(number)
                    trainer.stop.asked -= seconds
            return true(closure, backward=backward)

        monkeypatch.setattr(BatchClosure, "__call__", passing)
        return calls

    return make_slow


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    ("estimator", "probing"),
    [("fogzo", {"probe_batch": 0}), ("fogzo", {"probe_batch": 2}), ("nspsa", {"probe_batch": 2}), ("one-sided", {})],
)
def test_a_step_that_takes_too_long_is_given_up_between_probes_and_done_again(
    estimator, probing, number, open_run, slow_step, monkeypatch
):
    options = {"samples": 5, "log_every": 2} | probing
    whole = make(estimator, "lsq", folder=open_run("whole"), **options)
    whole.fit()
    stopped = make(estimator, "lsq", folder=open_run(), **options)
    state = {}
    stopped.reporters = [Tell(3, lambda: state.update(copy.deepcopy(stopped.state_dict()["model"])))]
    calls = slow_step(stopped, number, at=3, call=3)
    with pytest.raises(Interrupted, match=f"{signal.Signals(number).name} after step 3; the same command goes on"):
        stopped.fit()
    assert len(calls) == 3
    assert_same_state(dict(stopped.state_dict()["model"]), state)
    monkeypatch.undo()
    again = make(estimator, "lsq", folder=open_run(), **options)
    assert resume(again)
    assert again.step == 3
    again.fit()
    assert_same_end(again, whole)


def test_a_step_that_ends_soon_is_finished_before_the_run_stops(open_run, slow_step):
    stopped = make("nspsa", folder=open_run(), samples=5)
    slow_step(stopped, signal.SIGTERM, at=3, call=3, seconds=0.0)
    with pytest.raises(Interrupted, match="after step 4"):
        stopped.fit()
