"""Fill the disk under what writes, and start two processes at one place: a sentence, and afterwards the same end.

python scripts/campaigns/disk.py [COUNT] [--seed N] [--only NUMBER]    as root on Linux, for small tmpfs

A run, the packing of records, or an export finds less room than it needs, says so or gets by, and with room again the
same command ends as on a disk that was never full.  Then two of the same at once: one waits, or says who is at work.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for hydra_plugins, as train.py has it

from campaign import Campaign, differing
from processes import FAULT, SAID, WHOLE, Outcome, ended, forked, started, told, warm_up
from readers import trained

import fogzo
from fogzo.models import mlp
from fogzo.runs.records import add


def run() -> Outcome:
    return trained("results_dir=results", "keep_best=true", "keep_checkpoints=2")


def pack() -> Outcome:
    faults = add(Path("results")).faults
    return (SAID, str(faults[0])) if faults else (WHOLE, "")


def export() -> Outcome:
    model = fogzo.quantize_model(mlp(inputs=64, hidden=64, classes=4), fogzo.LSQ(2))
    fogzo.export(model, "results/model.safetensors")
    return WHOLE, ""


CASES = {"run": run, "records": pack, "export": export}


PAGE = 4  # kilobytes


def mounted(folder: Path, kilobytes: int, *more: str) -> None:
    options = ",".join([f"size={max(kilobytes, 1)}k", *more])
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(folder)], check=True)


def pages(file: Path) -> int:
    """Return the pages of memory that a file takes on a tmpfs."""
    return -(-file.stat().st_size // (1024 * PAGE)) if file.is_file() else 0


def filled(name: str, whole: Path, before: Path, folder: Path, dice: random.Random) -> tuple[str, str]:
    """Carry out a case on a disk too small, then with room; return what it came to at first, and what is wrong."""
    needed, there = (sum(pages(file) for file in place.rglob("*")) for place in (whole, before))
    (results := folder / "results").mkdir(parents=True)
    mounted(results, PAGE * (there + dice.randint(0, needed - there + 1)))
    try:
        shutil.copytree(before / "results", results, dirs_exist_ok=True)
        word, text = forked(CASES[name], folder)
        if word == FAULT:
            return word, text
        mounted(results, 65536, "remount")
        again, fault = forked(CASES[name], folder)
        return word, differing(
            whole / "results", folder / "results"
        ) if again == WHOLE else f"{text}; then {again}: {fault}"
    finally:
        subprocess.run(["umount", str(results)], check=True)


def together(name: str, whole: Path, before: Path, folder: Path) -> tuple[str, str]:
    """Start two at one place; return what became of the second, and what is wrong."""
    shutil.copytree(before, folder)
    outcomes = [ended(*process) for process in [started(partial(told, CASES[name]), folder) for _ in range(2)]]
    odd = [text for word, text in outcomes if word != WHOLE and "another process is at work" not in text]
    return " and ".join(sorted(word for word, _ in outcomes)), "; ".join(odd) or differing(
        whole / "results", folder / "results"
    )


def main() -> None:
    campaign = Campaign("disk", __doc__, 100)
    warm_up()
    with tempfile.TemporaryDirectory() as top:
        before, whole = ({name: Path(top) / place / name for name in CASES} for place in ("before", "whole"))
        for name, case in CASES.items():
            (before[name] / "results").mkdir(parents=True)
            if name == "records":
                shutil.copytree(whole["run"] / "results", before[name] / "results", dirs_exist_ok=True)
            shutil.copytree(before[name], whole[name])
            print(name, *forked(case, whole[name]), flush=True)
        for number in campaign.numbers():
            dice, name, folder = (
                random.Random(f"{campaign.seed} {number}"),
                list(CASES)[number % len(CASES)],
                Path(top) / "case",
            )
            both = dice.random() < 0.3
            place = (name, whole[name], before[name], folder)
            word, wrong = together(*place) if both else filled(*place, dice)
            campaign.note(wrong, {"case": f"{name}, {'two at once' if both else 'a full disk'}: {word}"})
            shutil.rmtree(folder)
    sys.exit(campaign.summary())


if __name__ == "__main__":
    main()
