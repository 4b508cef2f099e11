"""Plant single-line faults in the method, one at a time, in a copy of the project: each must turn a test red.

python scripts/mutants.py [PATTERN ...]     all faults of scripts/mutants.toml, or those whose description has PATTERN

Each fault runs the tests that should notice it, and stops at the first that fails.  Exits with 1 if a fault survives.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

ROOT = Path(__file__).resolve().parents[1]
FOLDERS, FILES = ("fogzo", "tests", "configs", "hydra_plugins"), ("pyproject.toml", "train.py")
LONGEST = 1200  # seconds that the tests of one fault may take; a fault that hangs is noticed too


@dataclass(frozen=True)
class Fault:
    """One line of the method, what it becomes, and the tests (a file, or ``file::name``) that should turn red."""

    what: str
    file: str
    old: str
    new: str
    test: str

    def planted(self, source: str) -> str:
        """Return ``source`` with the fault in it.

        Raises:
            ValueError: if its line is not there exactly once.
        """
        lines = source.splitlines()
        places = [number for number, line in enumerate(lines) if line.strip() == self.old]
        if len(places) != 1:
            raise ValueError(f"{self.what}: {self.file} has {len(places)} lines {self.old!r}, and must have one")
        (place,) = places
        indent = lines[place][: len(lines[place]) - len(lines[place].lstrip())]
        lines[place] = indent + self.new
        return "\n".join(lines) + "\n"


def faults() -> list[Fault]:
    """Return the faults of ``scripts/mutants.toml``."""
    text = (ROOT / "scripts" / "mutants.toml").read_text(encoding="utf-8")
    return [Fault(**entry) for entry in tomllib.loads(text)["fault"]]


def outcome(fault: Fault | None, tests: Sequence[str], copy: Path) -> str:
    """Return ``killed``, ``survived`` or what else happened to ``tests`` in ``copy`` with ``fault`` in it."""
    target = copy / fault.file if fault else None
    source = target.read_text(encoding="utf-8") if target else ""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:xdist", "-p", "no:cacheprovider", "-m", "", *tests]
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    try:
        if fault and target:
            target.write_text(fault.planted(source), encoding="utf-8")
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=LONGEST)
    except subprocess.TimeoutExpired:
        return "killed"
    finally:
        if target:
            target.write_text(source, encoding="utf-8")
    last = (done.stdout.strip().splitlines() or done.stderr.strip().splitlines() or ["nothing was said"])[-1]
    return {0: "survived", 1: "killed"}.get(done.returncode, f"broken ({last})")


def main() -> None:
    """Plant the faults that are asked for, two at a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patterns", nargs="*")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    chosen = [f for f in faults() if not options.patterns or any(pattern in f.what for pattern in options.patterns)]
    begun, copies = time.monotonic(), SimpleQueue[Path]()

    def tried(fault: Fault | None, tests: Sequence[str]) -> str:
        copy = copies.get()
        try:
            return outcome(fault, tests, copy)
        finally:
            copies.put(copy)

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:
        for name in range(options.jobs):
            (copy := Path(folder) / str(name)).mkdir()
            for part in FOLDERS:
                shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
            for part in FILES:
                shutil.copy(ROOT / part, copy / part)
            copies.put(copy)
        unharmed = pool.submit(tried, None, sorted({fault.test for fault in chosen}))  # else every fault seems noticed
        found = []
        for fault, result in zip(chosen, pool.map(lambda f: tried(f, [f.test]), chosen), strict=True):
            found.append(result)
            print(f"{result:10s}{fault.what}  ({fault.file}, {fault.test})", flush=True)
    print(f"{found.count('killed')} of {len(found)} faults noticed in {(time.monotonic() - begun) / 60:.0f} minutes")
    if unharmed.result() != "survived":
        print("the same tests do not pass without a fault, so that says nothing")
    sys.exit(found.count("killed") < len(found) or unharmed.result() != "survived")


if __name__ == "__main__":
    main()
