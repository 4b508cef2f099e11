"""Damage every kind of file that the program reads: it is read all the same, or refused in a sentence; nothing is lost.

python scripts/campaigns/files.py [COUNT] [--seed N]

A file is cut short, has bytes flipped, is emptied, replaced by a folder, or cannot be read.  What is refused leaves
every file as it was.  Prints what fails, and for each kind of file how many cases were refused and how many were read.
"""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for hydra_plugins, as train.py has it

from campaign import FAULT, SAID, as_anybody, asked, forked, warm_up
from readers import make


def damage(file: Path, dice: random.Random) -> str:
    """Damage a file, and say how."""
    content, kind = bytearray(file.read_bytes()), dice.choice(["cut", "flipped", "emptied", "a folder", "unreadable"])
    file.unlink()
    if kind == "a folder":
        file.mkdir()
        return kind
    if kind == "flipped":
        for _ in range(dice.choice([1, 1, 4, 64])):
            content[dice.randrange(len(content) or 1)] ^= 1 << dice.randrange(8)
    file.write_bytes(content if kind in ("flipped", "unreadable") else content[: dice.randrange(len(content) or 1)])
    if kind == "emptied":
        file.write_bytes(b"")
    if kind == "unreadable":
        file.chmod(0)
    return kind


def held(folder: Path) -> dict[str, bytes]:
    """Return what the files in a folder hold."""
    files = [file for file in folder.rglob("*") if file.is_file() and file.name not in (".lock", ".hashed")]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def main() -> None:
    given = asked(__doc__, 500)
    warm_up()
    counts, wrong = Counter[str](), 0
    with tempfile.TemporaryDirectory() as top:
        kinds = make(Path(top))
        for number in range(given.count):
            dice = random.Random(f"{given.seed} {number}")
            kind = dice.choice(list(kinds))
            template, patterns, read = kinds[kind]
            folder = shutil.copytree(template, Path(top) / "case")
            file = dice.choice(sorted(path for pattern in patterns for path in folder.glob(pattern)))
            how = damage(file, dice)
            before = held(folder)
            word, text = forked(partial(as_anybody, read), folder)
            lost = (
                [name for name, content in before.items() if held(folder).get(name) != content] if word == SAID else []
            )
            counts[f"{kind}, {file.suffix or 'file'}, {how}: {word}"] += 1
            if word == FAULT or lost:
                wrong += 1
                print(f"{number} {word}: {kind}, {file.relative_to(folder)} {how}: {text}; lost: {lost}", flush=True)
            shutil.rmtree(folder)
    print("\n".join(f"  {count:4d} {what}" for what, count in sorted(counts.items())))
    print(f"{given.count} damaged files, seed {given.seed}: {wrong} wrong")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
