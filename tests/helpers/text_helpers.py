"""What the tests of text share: small corpora and sets of shards."""

import gzip
import json
from pathlib import Path

import numpy as np

from fogzo.data.prepare import Job
from fogzo.data.shards import Manifest, ShardWriter, sha256_of, token_dtype
from fogzo.data.sources import Files
from fogzo.runs.files import atomic_write

ROOT = Path(__file__).resolve().parents[2]


def write_set(folder, *, vocabulary=300, train=100, test=30, shard_tokens=40):
    """Shards of the tokens 0, 1, 2, ... (modulo the vocabulary)."""
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / "tokenizer.json", b"{}")
    splits = {}
    for name, count in (("train", train), ("test", test)):
        writer = ShardWriter(folder, name, token_dtype(vocabulary), shard_tokens)
        writer.add(np.arange(count) % vocabulary, documents=3)
        splits[name] = writer.finish()
    tokenizer = {"name": "none", "sha256": sha256_of(folder / "tokenizer.json"), "end_of_text": 0}
    Manifest("numbers", tokenizer, vocabulary, token_dtype(vocabulary).name, splits, [{"file": "x"}]).save(folder)
    return folder


def flip(path):
    content = bytearray(path.read_bytes())
    content[10] ^= 1
    path.write_bytes(content)


TEXTS = [
    f"document {i}: the quick brown fox jumps over {i * i} lazy dogs, ünïcödé\n\tand tabs\n" * 3 for i in range(60)
]


def jsonl(path, texts, field="text"):
    lines = "".join(json.dumps({field: text, "url": "x"}) + "\n" for text in texts)
    path.write_bytes(gzip.compress(lines.encode()) if path.suffix == ".gz" else lines.encode())
    return path


def words(seed, count):
    rng = np.random.default_rng(seed)
    vocabulary = [*(f"{i * i:x}{'aeiou'[i % 5]}" for i in range(3, 300)), "naïve", "漢字", "\n", "x = 1"]
    return [" ".join(rng.choice(vocabulary, int(length))) + f" {seed}" for length in rng.integers(1, 60, count)]


def job_of(corpus, **changes):
    values = {"tokenizer": "train:400", "test_share": 0.1, "shard_tokens": 3000, "training_megabytes": 0.02}
    return Job(name="tiny", source=Files([f"{corpus}/*"]), **values | changes)


def content_of(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != ".lock"}


class CutError(Exception):
    pass
