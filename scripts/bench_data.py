"""What data on a disk cost a step: made-up JPEG photographs in folders, a made-up text in memory-mapped shards."""

from __future__ import annotations

import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
from bench_tools import of_recipe, waiting
from PIL import Image

from fogzo.data.imagenet.augment import AUGMENTATIONS, read_augmented, training_transform
from fogzo.data.imagenet.tree import class_list
from fogzo.data.shards import TOKENIZER, Manifest, ShardWriter, sha256_of, token_dtype
from fogzo.runs.files import atomic_write
from fogzo.training.trainer import Trainer

PIXELS = (375, 500)  # height and width of many an ImageNet photograph
VOCABULARY = 50_257
AHEAD = 4  # batches, one more than may lie ready: behind them each has to be made


def data(steps: int, images: int, tokens: int) -> None:
    """Both, with so many training steps, images of each class and tokens of text.

    The files have just been written, so they are read from memory: a slow disk would show only in real training.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_photographs(root / "imagenet100", images)
        write_text(root / "c4", tokens)
        for augmentation, rate in decoding(root / "imagenet100" / "train").items():
            print(f"decoding and augmentation of 500x375 JPEGs, {augmentation}: {rate:.0f} images/s of a core's time")
        shared = (f"data.root={root}", "scale=paper", "estimator=ste", "precision=fp32")
        photographs = of_recipe("model=resnet18", *shared, "batch_size=32", "steps=1000000")
        report("JPEG photographs 500x375, resnet18 at paper scale, batch 32", photographs, steps)
        text = of_recipe("model=llama_mini", *shared, "batch_size=8", "micro_batches=1", "steps=1000000")
        report(f"{tokens / 1e6:.0f} M memory-mapped tokens, llama_mini at paper scale, batch 8", text, steps)


def decoding(folder: Path, images: int = 100, rounds: int = 5) -> dict[str, float]:
    """Training images a second of processor time, for each augmentation: those of the fastest round.

    ``fogzo.data.DECODING_RATES`` keeps them for the plan.
    """
    files = [str(file) for file in sorted(folder.rglob("*.JPEG"))[:images]]
    rates = {}
    for augmentation in AUGMENTATIONS:
        read = partial(read_augmented, files, range(len(files)), training_transform(augmentation, 224))
        seconds = []
        for _ in range(rounds):
            begun = time.process_time()  # other processes do not count
            read()
            seconds.append(time.process_time() - begun)
        rates[augmentation] = len(files) / min(seconds)
    return rates


def report(name: str, one: Trainer, steps: int) -> None:
    """Wait and step in training, one step after the other; and how fast batches come if nothing else is to be done."""
    waits, wholes = waiting(one, steps)
    batch = one.settings.batch_size
    first = steps + 2  # goes on where training stopped, as training would
    for step in range(first, first + AHEAD):
        one.feed.batch(step)
    begun = time.perf_counter()
    for step in range(first + AHEAD, first + AHEAD + steps):
        one.feed.batch(step)
    alone = steps * batch / (time.perf_counter() - begun)
    one.feed.close()
    share = statistics.median(wait / whole for wait, whole in zip(waits, wholes, strict=True))
    print(
        f"waiting for data, {name}, STE: {100 * share:.2f} % of a step ({statistics.median(waits) * 1e3:.2f} / "
        f"{statistics.median(wholes) * 1e3:.0f} ms)   limit 5 %; data alone {alone:,.0f} examples/s, which is what the "
        "fastest device could train on"
    )


def write_photographs(folder: Path, images: int) -> None:
    """``images`` JPEG files of about 100 kB for each of the 100 classes to train, and one to test."""
    random = np.random.default_rng(0)
    for part, count in (("train", images), ("val", 1)):
        for name in class_list():
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
                smooth = np.asarray(coarse.resize(PIXELS[::-1], Image.Resampling.BICUBIC), dtype=np.int16)
                grain = random.integers(-12, 13, (*PIXELS, 1), dtype=np.int16)
                photograph = Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8))
                photograph.save(folder / part / name / f"{number}.JPEG", quality=92)


def write_text(folder: Path, tokens: int) -> None:
    """A set of shards with ``tokens`` random tokens to train on."""
    folder.mkdir()
    atomic_write(folder / TOKENIZER, b"{}")
    random = np.random.default_rng(0)
    dtype, splits = token_dtype(VOCABULARY), {}
    for split, count in (("train", tokens), ("test", 10_000)):
        writer = ShardWriter(folder, split, dtype, 2**24)
        for begun in range(0, count, 2**22):
            writer.add(random.integers(0, VOCABULARY, min(2**22, count - begun)).astype(dtype), documents=1)
        splits[split] = writer.finish()
    tokenizer = {"name": "none", "sha256": sha256_of(folder / TOKENIZER), "end_of_text": 0}
    Manifest("random tokens", tokenizer, VOCABULARY, dtype.name, splits, [{"file": "none"}]).save(folder)
