"""One small example of every kind of file that the program reads, and what reads it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from campaign import ROOT, composed
from PIL import Image
from processes import SAID, WHOLE, Outcome, forked

import fogzo
from fogzo.data.imagenet.folder import folder_data
from fogzo.data.pydocs import pydocs
from fogzo.data.shards import Manifest, ShardWriter, sha256_of
from fogzo.data.text import open_text
from fogzo.data.tokenize import load_tokenizer
from fogzo.data.vision import FILES, mnist
from fogzo.evidence.frame import gather
from fogzo.evidence.pages import page
from fogzo.evidence.parse import read_experiment
from fogzo.models import mlp
from fogzo.runs.records import add
from fogzo.training.launch import train

RUN = ["model.hidden=4", "steps=6", "batch_size=8", "log_every=1", "checkpoint_every=2", "evaluation_examples=50"]
EXPERIMENT = "equal_time_mini"


def trained(*more: str, stop: bool = False) -> Outcome:
    if stop:  # with all written but the summary
        sys.addaudithook(lambda event, args: os._exit(0) if event == "open" and "summary" in str(args[0]) else None)
    train(composed([*RUN, "threads=1", *more]))
    return WHOLE, ""


def packed() -> Outcome:
    faults = add(Path("results")).faults
    return (SAID, str(faults[0])) if faults else (WHOLE, "")


def shown() -> Outcome:
    evidence = gather(read_experiment(Path(f"configs/experiment/{EXPERIMENT}.yaml")))
    page(evidence, set())
    return (SAID, str(evidence.problems[0])) if evidence.problems else (WHOLE, "")


def loaded(read: Callable[[], object]) -> Outcome:
    read()
    return WHOLE, ""


def make(top: Path) -> dict[str, tuple[Path, list[str], Callable[[], Outcome]]]:
    """Write what is to be damaged; return, by kind, the folder, patterns of its files, and what reads them."""
    every = {name: top / name for name in ("run", "over", "records", "text", "images", "digits", "export")}
    for folder in every.values():
        folder.mkdir()
    forked(partial(trained, "run_dir=run", "keep_checkpoints=2", stop=True), every["run"])
    forked(partial(trained, "results_dir=results"), every["over"])
    for part in ("configs/experiment", "results/records", "results/tuned", "results/paper"):
        (every["records"] / part).mkdir(parents=True)
        for file in (ROOT / part).glob("numbers.yaml" if part == "results/paper" else "equal_time*"):
            shutil.copy(file, every["records"] / part)
    tokenizer = Path(str(pydocs(ROOT / "data").tokenizer_file))  # a fresh clone has none yet
    shutil.copy(tokenizer, every["text"])
    splits = {}
    for name in ("train", "test"):
        writer = ShardWriter(every["text"], name, np.dtype("uint16"), 400)
        writer.add(np.arange(1000) % 300, documents=3)
        splits[name] = writer.finish()
    facts = {"name": "none", "sha256": sha256_of(tokenizer), "end_of_text": 0}
    Manifest("numbers", facts, 300, "uint16", splits, [{"file": "x"}]).save(every["text"])
    for part in ("train", "val"):
        for name in ("n1", "n2"):
            (folder := every["images"] / part / name).mkdir(parents=True)
            pixels = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{name}_0.JPEG")
    (raw := every["digits"] / "data/MNIST/raw").mkdir(parents=True)
    for file_name in FILES:
        (raw / file_name).write_bytes(bytes(2000))
    model = fogzo.quantize_model(mlp(inputs=16, hidden=8, classes=4), fogzo.LSQ(2))
    fogzo.export(model, every["export"] / "model.safetensors")

    def batch() -> object:
        data = folder_data("small", Path(), image_size=24, augmentation="none", workers=0)
        return data.train.batch(torch.arange(2)), data.test.batch(torch.arange(2))

    def exported() -> object:
        return fogzo.load("model.safetensors", mlp(inputs=16, hidden=8, classes=4))

    return {
        "run that goes on": (every["run"], ["run/*.*"], partial(trained, "run_dir=run", "keep_checkpoints=2")),
        "run that is over": (every["over"], ["results/runs/*/[!m]*.*"], partial(trained, "results_dir=results")),
        "run to be packed": (every["over"], ["results/runs/*/[!m]*.*", "results/runs/*/metrics.jsonl"], packed),
        "evidence": (every["records"], ["*/*/equal*", "results/paper/*"], shown),
        "shards": (
            every["text"],
            ["*.bin", "manifest.json"],
            partial(loaded, partial(open_text, Path(), 16, "mend it")),
        ),
        "tokenizer": (every["text"], ["tokenizer.json"], partial(loaded, partial(load_tokenizer, "tokenizer.json"))),
        "images": (every["images"], ["*/*/*.JPEG"], partial(loaded, batch)),
        "digits": (every["digits"], ["data/MNIST/raw/*"], partial(loaded, mnist)),
        "export": (every["export"], ["*.safetensors"], partial(loaded, exported)),
    }
