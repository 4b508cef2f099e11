"""The peak of memory is a run's own, in a process that has had others, and of all processes of a resumed run."""

import json
import sys

import pytest
import torch
from helpers.trainers import Tell, make

from fogzo.training import ledger
from fogzo.training.ledger import ComputeLedger, PeakMemory
from fogzo.training.resume import resume

CPU = torch.device("cpu")
MIB = 2**20


def fill(mebibytes):
    torch.ones(mebibytes * MIB, dtype=torch.uint8)  # large enough to go back to the system when it is freed


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can forget a peak")
def test_a_run_does_not_inherit_the_peak_of_the_run_before():
    peak = PeakMemory()
    peak.forget(CPU)
    at_rest = peak.read(CPU)
    fill(200)
    large = peak.read(CPU)
    peak.forget(CPU)
    fill(20)
    small = peak.read(CPU)
    assert large - at_rest > 190 * MIB
    assert large - small > 150 * MIB


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can forget a peak")
@pytest.mark.parametrize("place", ["step", "evaluation"])
def test_the_peak_of_a_run_is_that_of_its_training_steps_and_not_of_its_evaluations(place):
    trainer = make(steps=4, evaluate_every=2)
    hungry, name = (trainer.task, "evaluate") if place == "evaluation" else (trainer.estimator, "estimate")
    inner = getattr(hungry, name)
    setattr(hungry, name, lambda *given, **named: (fill(300), inner(*given, **named))[1])
    ledger.PEAK.forget(CPU)
    at_rest = ledger.PEAK.read(CPU)
    trainer.fit()
    grown = trainer.ledger.row()["peak_memory_bytes"] - at_rest
    assert (grown > 290 * MIB) == (place == "step"), grown / MIB


def test_where_the_system_cannot_forget_only_the_first_run_of_a_process_is_known(monkeypatch, tmp_path):
    monkeypatch.setattr(ledger, "PROC", tmp_path / "none")
    peak = PeakMemory()
    peak.next_run()
    peak.forget(CPU)
    assert peak.read(CPU) > 10 * MIB
    peak.next_run()
    assert peak.read(CPU) is None


def test_on_cuda_the_counter_of_tensors_begins_anew(monkeypatch):
    gpu, reset = torch.device("cuda", 1), []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset.append)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 7 * (device == gpu))
    peak = PeakMemory()
    peak.forget(gpu)
    assert (reset, peak.read(gpu)) == ([gpu], 7)


def test_a_resumed_run_keeps_the_larger_peak_in_rows_and_state(open_run, monkeypatch):
    monkeypatch.setattr("fogzo.training.ledger.PEAK.read", lambda device: 900)
    with pytest.raises(ZeroDivisionError):
        make(folder=open_run(), checkpoint_every=2, reporters=[Tell(3, lambda: 1 / 0)]).fit()
    monkeypatch.setattr("fogzo.training.ledger.PEAK.read", lambda device: 500)
    again = make(folder=open_run())
    assert resume(again)
    again.fit()
    rows = [json.loads(line) for line in again.folder.metrics_file.read_text().splitlines()]
    assert [row["peak_memory_bytes"] for row in rows] == [900] * 6
    assert again.ledger.state_dict()["peak_memory_bytes"] == 900


def test_a_ledger_from_before_there_was_a_peak_in_it_is_read():
    now = ComputeLedger(1.0, 2.0)
    added = ("cpu_seconds", "data_seconds", "peak_memory_bytes")
    old = {name: value for name, value in now.state_dict().items() if name not in added}
    now.load_state_dict(old | {"forwards": 3})
    assert (now.forwards, now.data_seconds, now.peak_memory_bytes) == (3, 0.0, None)
