"""Figures of whole commands: two processes against one, and the preparation of text."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from fogzo.data.tokenize import train_tokenizer

ROOT = Path(__file__).resolve().parent.parent
# A process of its own, as a command begins with the memory of the one that starts it, which here has loaded torch
MEASURE = """
import os, subprocess, sys
_, status, usage = os.wait4(subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL).pid, 0)
print(os.waitstatus_to_exitcode(status), usage.ru_maxrss)
"""


def processes(steps: int, megabytes: float) -> None:
    """All of them, with runs of ``steps`` and a text of ``megabytes``."""
    with tempfile.TemporaryDirectory() as folder:
        scaling(Path(folder), steps)
        preparing(Path(folder), megabytes)


def scaling(folder: Path, steps: int) -> None:
    """Steps a second of two gloo processes of one thread over those of one, with the same batch in all."""
    for estimator in ("ste", "fogzo"):
        one, two = (steps_a_second(folder / f"{estimator}{ranks}", ranks, estimator, steps) for ranks in (1, 2))
        print(
            f"two gloo processes / one, llama_mini, {estimator}, 1 thread each, {os.cpu_count()} cores: "
            f"{two / one:.2f}x ({two:.2f} / {one:.2f} steps/s)   no limit, 2.00x possible"
        )


def steps_a_second(folder: Path, ranks: int, estimator: str, steps: int) -> float:
    """Of the mini recipe of llama_mini on ``ranks`` processes; the first two steps don't count."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    length = ["log_every=1", "evaluate_every=0", "evaluation_tokens=256", "checkpoint_every=0", f"steps={steps + 2}"]
    run = [
        "model=llama_mini",
        f"estimator={estimator}",
        "device=cpu",
        "threads=1",
        "progress=lines",
        f"run_dir={folder}",
    ]
    subprocess.run(
        [sys.executable, *launcher, "train.py", *run, *length],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
    )
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return steps / float(rows[steps + 1]["seconds"] - rows[1]["seconds"])


def preparing(folder: Path, megabytes: float) -> None:
    """Tokens a second of prepare_text.py on two cores, and its largest process, for a text and for four of it."""
    texts = list(library_sources(megabytes))
    tokenizer = folder / "tokenizer.json"
    train_tokenizer(texts[:200], 4096).save(str(tokenizer))
    tokens, seconds, peaks = [], [], []
    for copies in (1, 4):
        corpus = folder / f"{copies}.jsonl.gz"
        write_corpus(corpus, texts, copies)
        out = folder / str(copies)
        arguments = ["--name", "sources", "--files", corpus, "--tokenizer", tokenizer, "--workers", "2", "--out", out]
        begun = time.perf_counter()
        peaks.append(peak_of([sys.executable, "scripts/prepare_text.py", *map(str, arguments)]))
        seconds.append(time.perf_counter() - begun)
        splits = json.loads((out / "manifest.json").read_text())["splits"].values()
        tokens.append(sum(shard["tokens"] for split in splits for shard in split["shards"]))
    rate = (tokens[1] - tokens[0]) / (seconds[1] - seconds[0])  # without what starting takes
    sizes = [f"{peak:.0f} MiB for {count / 1e6:.1f} M tokens" for peak, count in zip(peaks, tokens, strict=True)]
    print(
        f"prepare_text.py, 2 workers: {rate:,.0f} tokens/s; largest process {sizes[0]}, {sizes[1]}: "
        f"{peaks[1] / peaks[0]:.2f}x   flat is 1.00x"
    )


def library_sources(megabytes: float) -> Iterable[str]:
    """Sources of the standard library, so many megabytes of them at most."""
    left = megabytes * 1e6
    for file in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if "site-packages" in file.parts or left <= 0:
            continue
        if text := file.read_text(encoding="utf-8", errors="replace"):
            left -= len(text)
            yield text


def write_corpus(file: Path, texts: Iterable[str], copies: int) -> None:
    """A .jsonl.gz of ``copies`` of the texts, no two of which are alike."""
    with gzip.open(file, "wt", encoding="utf-8", compresslevel=1) as opened:
        for copy in range(copies):
            for number, text in enumerate(texts):
                opened.write(json.dumps({"text": f"# {number}, copy {copy}\n{text}"}) + "\n")


def peak_of(command: list[str]) -> float:
    """MiB of the largest process of a command: itself, or one that it started."""
    done = subprocess.run(
        [sys.executable, "-S", "-c", MEASURE, *command], cwd=ROOT, check=True, capture_output=True, text=True
    )
    code, peak = map(int, done.stdout.split()[-2:])
    if code:
        raise SystemExit(f"{' '.join(command)} failed with exit code {code}: {done.stderr[-500:]}")
    return peak / 2 ** (20 if sys.platform == "darwin" else 10)
