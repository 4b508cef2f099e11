"""What the benchmarks measure with: tensors that are alive, processes and their memory, texts of a given size."""

import gzip
import json
import sys
from pathlib import Path

import pytest
import torch

from fogzo.data.mnist5k import mnist5k
from fogzo.tensor_memory import PeakTensorMemory

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import bench_processes
    import bench_tools

    return bench_tools, bench_processes


def test_peak_memory_is_of_tensors_that_are_alive_together():
    before = torch.zeros(1000)
    with PeakTensorMemory([before]) as peak:
        before.add_(1)
        first = torch.ones(500)
        del first
        second = before.view(10, 100) * 2  # the view is no memory of its own
        assert peak.alive == 4 * 2000
    assert peak.most == 4 * 2000
    assert second.shape == (10, 100)


def test_the_trainers_overhead_is_of_its_whole_loop(scripts, monkeypatch, capsys):
    import bench_method

    seen = []
    whole = bench_method.Trainer._observe
    monkeypatch.setattr(bench_method.Trainer, "_observe", lambda one, estimate: seen.append(0) or whole(one, estimate))
    monkeypatch.setattr(bench_method, "vit", bench_method.quantized_mlp)  # fast
    bench_method.trainer_overhead(mnist5k(), 2, steps=3)
    assert len(seen) == (2 + 2) * 3
    assert "fit / bare loop, 3 steps" in capsys.readouterr().out


def test_functions_take_turns_and_the_first_two_rounds_do_not_count(scripts):
    tools, _ = scripts
    seen = []
    times = tools.alternate([lambda: seen.append("a"), lambda: seen.append("b")], 3)
    assert "".join(seen) == "ab" * 5
    assert [len(own) for own in times] == [3, 3]


def test_the_text_has_the_size_and_no_document_twice(scripts, tmp_path):
    _, processes = scripts
    texts = list(processes.library_sources(0.2))
    assert 0.2e6 <= sum(map(len, texts)) < 0.6e6
    processes.write_corpus(tmp_path / "x.jsonl.gz", texts, 3)
    with gzip.open(tmp_path / "x.jsonl.gz", "rt") as file:
        documents = [json.loads(line)["text"] for line in file]
    assert len(set(documents)) == len(documents) == 3 * len(texts)


def test_the_largest_process_counts_also_if_a_command_started_it(scripts):
    _, processes = scripts
    inner = "x = b'1' * (200 << 20)"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}], check=True)"
    small, large = (processes.peak_of([sys.executable, "-c", text]) for text in ("pass", outer))
    assert small < 200 < large < 200 + small
    with pytest.raises(SystemExit, match="exit code 3"):
        processes.peak_of([sys.executable, "-c", "raise SystemExit(3)"])
