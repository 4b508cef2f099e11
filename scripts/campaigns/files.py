"""Damage every kind of file that the program reads: it is read all the same, or refused in a sentence; nothing is lost.

python scripts/campaigns/files.py [COUNT] [--seed N] [--only NUMBER]

A file is cut short, has bytes flipped, is emptied, replaced by a folder, or cannot be read.  What is refused leaves
every file as it was.  Prints what fails, and of each kind of file how many cases were refused and how many were read.
"""

from __future__ import annotations

import ctypes
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for hydra_plugins, as train.py has it

from campaign import Campaign
from processes import FAULT, SAID, Outcome, forked, warm_up
from readers import make


def damage(file: Path, dice: random.Random) -> str:
    """Damage a file, and say how."""
    content, kind = bytearray(file.read_bytes()), dice.choice(["cut", "flipped", "emptied", "a folder", "unreadable"])
    file.unlink()
    if kind == "a folder":
        file.mkdir()
        return kind
    if kind == "flipped":
        for _ in range(dice.choice([1, 1, 4, 64]) if content else 0):
            content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
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


def as_anybody(case: Callable[[], Outcome]) -> Outcome:
    """Carry out ``case`` without a superuser's right to read what may not be read."""
    libc, header = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0)
    rights = (ctypes.c_uint32 * 6)()  # effective, permitted and inheritable, twice
    libc.capget(header, rights)
    rights[0] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    libc.capset(header, rights)
    return case()


def main() -> None:
    campaign = Campaign("files", __doc__, 500)
    warm_up()
    with tempfile.TemporaryDirectory() as top:
        kinds = make(Path(top))
        for number in campaign.numbers():
            dice = random.Random(f"{campaign.seed} {number}")
            kind = list(kinds)[number % len(kinds)]
            template, patterns, read = kinds[kind]
            folder = shutil.copytree(template, Path(top) / "case")
            file = dice.choice(sorted(path for pattern in patterns for path in folder.glob(pattern)))
            how = damage(file, dice)
            before = held(folder)
            word, text = forked(partial(as_anybody, read), folder)
            after = held(folder)
            written = ["run/metrics.jsonl"] if kind == "run that goes on" else []  # it may end with a later refusal
            lost = [name for name in before if word == SAID and after.get(name) != before[name] and name not in written]
            wrong = "lost: " + ", ".join(lost) if lost else text if word == FAULT else ""
            what = f"{kind}, {file.suffix or 'file'}, {how}: {word}"
            campaign.note(wrong, {"kind": what}, file=str(file.relative_to(folder)), said=text)
            shutil.rmtree(folder)
    sys.exit(campaign.summary())


if __name__ == "__main__":
    main()
