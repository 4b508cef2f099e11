"""What the benchmarks measure with: tensors that are alive, processes and their memory, texts of a given size."""

import gzip
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from fogzo.data import imagenet100, mnist5k
from fogzo.data.text import c4
from fogzo.training.costs import PeakTensorMemory

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


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


def test_members_cost_what_they_claim_within_two_percent(scripts, capsys):
    import bench_models

    bench_models.members(1)
    for line in capsys.readouterr().out.splitlines():
        flops, limit = re.search(r": ([0-9.]+)x of its FLOPs.* limit ([0-9.]+)x", line).groups()
        assert float(limit) * 0.98 / 1.02 < float(flops) < float(limit), line


def test_the_trainers_overhead_is_of_its_whole_loop(scripts, monkeypatch, capsys):
    import bench_method

    from fogzo.training.trainer import Trainer

    seen = []
    whole = Trainer._finish_step
    monkeypatch.setattr(Trainer, "_finish_step", lambda one: seen.append(0) or whole(one))
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


def test_what_a_tree_says_while_it_prepares_its_data_is_no_figure(scripts, tmp_path):
    import bench_against

    (tmp_path / "configs").symlink_to(SCRIPTS.parent / "configs")
    package = tmp_path / "fogzo" / "training"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()  # else an installed package of that name comes first
    (package / "build.py").write_text(
        """from types import SimpleNamespace
def build(config):
    print("preparing the embedded text, once")
    ledger = SimpleNamespace(forward_flops=1.0, backward_flops=2.0)
    return SimpleNamespace(ledger=ledger, train_step=lambda step: print("a step"))
"""
    )
    limit, times = bench_against.measured({"here": tmp_path}, "model=mlp", rounds=3)
    assert limit == pytest.approx(5 / 3)
    assert [len(own) for own in times["here"]] == [3, 3]


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
    assert small < 200 < large < 200 + 1.5 * small  # the two together would be 200 + 2 * small
    with pytest.raises(SystemExit, match="exit code 3"):
        processes.peak_of([sys.executable, "-c", "raise SystemExit(3)"])


def test_photographs_and_text_of_the_benchmark_are_opened_as_real_ones_are(scripts, tmp_path):
    import bench_data

    bench_data.write_photographs(tmp_path / "imagenet100", 1)
    tree = imagenet100(tmp_path, workers=1)
    assert (len(tree.train), len(tree.test), tree.classes) == (100, 100, 100)
    sizes = [file.stat().st_size for file in (tmp_path / "imagenet100" / "train").rglob("*.JPEG")]
    assert 50_000 < sum(sizes) / len(sizes) < 200_000
    bench_data.write_text(tmp_path / "c4", 20_000)
    text = c4(tmp_path, sequence=512)
    assert text.train.tokens == 20_000
    assert isinstance(text.train.shards[0], np.memmap)


def test_a_step_that_waits_for_its_batch_is_timed_so(scripts):
    tools, _ = scripts

    class Feed:
        def batch(self, step):
            time.sleep(0.02)

    class Slow:
        feed = Feed()

        def train_step(self, step):
            self.feed.batch(step)
            time.sleep(0.02)

    waits, wholes = tools.waiting(Slow(), 3)
    assert len(waits) == len(wholes) == 3
    assert all(0.02 <= wait <= whole - 0.02 for wait, whole in zip(waits, wholes, strict=True))


TOLD = """
import sys
from pathlib import Path
print(1.6, flush=True)
slower = 1.7 if Path.cwd().name == "tree" else 1.65
for line in sys.stdin:
    print(slower if int(line) else 1.0, flush=True)
"""


def test_steps_of_another_commit_are_measured_beside_those_here(scripts, monkeypatch, capsys):
    import bench_against

    monkeypatch.setattr(bench_against, "WORKER", TOLD)
    bench_against.against("HEAD", 3, {"mlp": 1})
    here, there = capsys.readouterr().out.splitlines()
    assert "mlp, CPU time, 1 thread, here: 1.650x (1650 / 1000 ms)   limit 1.648x" in here
    assert "in HEAD: 1.700x" in there
    with bench_against.tree_of("HEAD") as tree:
        assert (tree / "fogzo" / "estimators").is_dir()
    assert not tree.exists()
    assert str(tree) not in subprocess.run(["git", "worktree", "list"], capture_output=True, text=True).stdout
