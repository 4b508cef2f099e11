"""Tokenize text into the shards that data=c4 and other sets of text are read from.

    python scripts/prepare_text.py --name c4 --dataset allenai/c4 --config en --out data/c4 --max-tokens 3_100_000_000
    python scripts/prepare_text.py --name mine --files 'texts/*.jsonl.gz' --tokenizer train:8192 --out data/mine

The same command goes on where it was cut (Ctrl-C, kill, full disk), and ends with the same bytes as if it had not been;
when all is done it says so.  Take gpt2 (50,257 tokens) for models with the paper's vocabulary of 50,304.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from fogzo.checks import whole
from fogzo.data.prepare import Job, prepare
from fogzo.data.sources import Files, Streamed, TextSource
from fogzo.errors import UserError


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--dataset", metavar="NAME", help="a data set of the Hugging Face hub, streamed; or its folder")
    source.add_argument("--files", nargs="+", metavar="PATTERN", help="local .jsonl, .json or .txt files, also .gz")
    add("--config", help="of the data set, such as en")
    add("--split", default="train", help="of the data set (default: train)")
    add("--revision", help="of the data set: a commit, to get the same text later")
    add("--text-field", default="text", metavar="FIELD", help="where a record keeps its text (default: text)")
    add("--tokenizer", default="gpt2", help="name on the hub, tokenizer.json, or train:VOCABULARY (default: gpt2)")
    add("--end-of-text", metavar="TOKEN", help="what separates documents (default: the tokenizer's own)")
    add("--training-megabytes", type=float, default=100, help="text that train:VOCABULARY trains on (default: 100)")
    add("--name", required=True, help="of the set, in records")
    add("--out", type=Path, help="folder (default: data/NAME)")
    add("--max-tokens", type=int, default=0, help="stop behind the document that reaches it (default: 0, all)")
    add("--test-share", type=float, default=0.001, help="documents of the test split (default: 0.001)")
    add("--shard-tokens", type=int, default=2**26, help="of a full shard (default: 67,108,864)")
    add("--workers", type=int, metavar="N", help="cores that tokenize (default: all)")
    return parser.parse_args()


def main() -> None:
    options = parse()
    try:
        os.environ["TOKENIZERS_PARALLELISM"] = "true"  # also where something forked before
        if options.workers is not None:
            os.environ["RAYON_NUM_THREADS"] = str(whole(options.workers, "workers"))
        source: TextSource = (
            Files(options.files, options.text_field)
            if options.files
            else Streamed(options.dataset, options.config, options.split, options.text_field, options.revision)
        )
        job = Job(
            name=options.name,
            source=source,
            tokenizer=options.tokenizer,
            end_of_text=options.end_of_text,
            test_share=options.test_share,
            shard_tokens=options.shard_tokens,
            max_tokens=options.max_tokens,
            training_megabytes=options.training_megabytes,
        )
        print(prepare(job, options.out or Path("data") / options.name))
    except UserError as error:
        raise SystemExit(f"error: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit("stopped: the same command goes on from the last complete shard") from None


if __name__ == "__main__":
    main()
