"""Look inside a trained network: where its straight-through gradient is biased, and what its codes do.

python scripts/diagnose.py RUN_FOLDER                     a finished run, or the newest checkpoint of one that goes on
python scripts/diagnose.py RUN_FOLDER/checkpoint-000000500.pt        also replays 20 steps, to see codes flip
python scripts/diagnose.py RUN_A RUN_B                    two runs side by side
python scripts/diagnose.py RUN_FOLDER --batches 8 --probes 500       more probes: shorter intervals, more time

Prints a table and one sentence, and writes a page (--page, default RUN_FOLDER/diagnosis.html) with a JSON beside it.
Ctrl-C ends the measurement, and says what is known by then.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN_FOLDER|CHECKPOINT", help="one or two")
    parser.add_argument("--batches", type=int, default=8, help="of training data (default 8)")
    parser.add_argument("--probes", type=int, help="pairs a batch (default: what 3 minutes hold, from 8 to 1,024)")
    parser.add_argument("--beta", type=float, help="FOGZO's β (default: the run's own at its end)")
    parser.add_argument("--seed", type=int, default=0, help="of the probes")
    parser.add_argument("--page", type=Path, help="where the page goes (FILE.html; its JSON is FILE.json)")
    options = parser.parse_args()
    try:
        carry_out(options)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        print("interrupted before anything was measured", file=sys.stderr)
        raise SystemExit(130) from None


def carry_out(given: argparse.Namespace) -> None:
    """Diagnose the runs, and print and write what came out."""
    from tqdm import tqdm

    from fogzo.diagnosis.page import page, text
    from fogzo.diagnosis.subject import Options, Subject
    from fogzo.diagnosis.summary import diagnose
    from fogzo.errors import UserError, explained
    from fogzo.runs.files import atomic_write

    if len(given.runs) > 2:
        raise UserError(f"{len(given.runs)} runs do not fit side by side: name one or two")
    options = Options(given.batches, given.probes, given.beta, given.seed)
    subjects = [Subject(place) for place in given.runs]  # all of them, before anything long
    for subject in subjects:
        subject.check(options)
    file = given.page or subjects[0].folder / "diagnosis.html"
    found = []
    for subject in subjects:
        with tqdm(desc=subject.folder.name[:40], unit="pair", disable=not sys.stderr.isatty()) as bar:
            found.append(diagnose(subject, options, partial(_told, bar)))
        print(text(found[-1]), end="\n\n", flush=True)
        if found[-1].interrupted:
            break
    with explained(file, "choose another place with --page", problem="cannot be written"):
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(file.with_suffix(".json"), (json.dumps([one.plain() for one in found], indent=1) + "\n").encode())
        atomic_write(file, page(found).encode())
    print(f"page: {file}")


def _told(bar: object, done: int, of: int) -> None:
    bar.total, bar.n = of, done  # type: ignore[attr-defined]
    bar.refresh()  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
