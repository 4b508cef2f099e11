"""Does the flip rate, or the revival of dead weights, explain where FOGZO wins?   python scripts/mechanism.py [--draw]

Trains methods of the long twins of the MLP with their tuned values, on seeds of its own, looks into their checkpoints,
and writes results/diagnosis/mechanism.csv and .svg; what is in the CSV is not measured again.  --draw draws only.
"""

from __future__ import annotations

import argparse
import os
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
DATA = Path("results/diagnosis/mechanism.csv")
SETTINGS = {  # experiment and title
    "alpha1": ("long_mlp", "FOGZO wins: round, α = 1 std, clipped"),
    "tanh": ("long_mlp_tanh", "FOGZO does not: sign, tanh"),
}
METHODS = ("ste", "noisy_ste_own", "fogzo", "displaced_ste")
SEEDS, EVERY, LOOKED = (61, 62, 63), 100, (100, 500, 1500)  # steps of checkpoints, and of cosines
HEADS = {
    "flip_share": "codes flipped in 50 steps, share",
    "dead": "dead weights, share",
    "revived": "revived in 100 steps, share",
    "cosine": "cosine of the STE (K)",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--draw", action="store_true", help="draw what is measured already")
    os.chdir(ROOT)
    given = parser.parse_args()
    rows = pd.read_csv(DATA).to_dict("records") if DATA.exists() else []
    have = {(row["seed"], row["setting"], row["method"]) for row in rows}
    try:
        for setting, seed, method in product(SETTINGS, SEEDS, METHODS):
            if (seed, setting, method) not in have and not given.draw:
                rows += look(seed, setting, method)
                DATA.parent.mkdir(parents=True, exist_ok=True)
                pd.DataFrame(rows).to_csv(DATA, index=False, float_format="%.4g")
        draw(pd.read_csv(DATA))  # as it will be drawn again: rounded
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error


def look(seed: int, setting: str, method: str) -> list[dict[str, Any]]:
    """Train one run, and return a row for each of its checkpoints."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from fogzo.diagnosis.subject import Options, Subject
    from fogzo.diagnosis.summary import diagnose
    from fogzo.evidence.experiment import last_of_each
    from fogzo.evidence.jobs import expand
    from fogzo.evidence.parse import parse
    from fogzo.training.launch import train

    folder = Path(f"outputs/mechanism/{setting}.{method}-seed{seed}")
    kept = [f"checkpoint_every={EVERY}", "keep_checkpoints=20", "progress=lines", f"run_dir={folder}", f"seed={seed}"]
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        whole: Any = OmegaConf.to_container(compose("train", [f"experiment={SETTINGS[setting][0]}"]))
        ((_, *job),) = expand(parse(whole["experiment"]), "confirm", [f"cell={setting}.{method}", f"seed={seed}"])
        cfg = compose("train", list(last_of_each([*job, *kept])))
    summary = train(cfg)
    subject = Subject(folder)
    flips = {row["step"]: row["flip_share"] for row in subject.logged()}
    rows = []
    for point in subject.path():
        own = {"setting": setting, "method": method, "seed": seed, "step": point.step}
        rows.append(own | {"flip_share": flips[point.step], "dead": point.dead, "revived": point.revived})
        if point.step in LOOKED:
            subject.open(folder / f"checkpoint-{point.step:09d}.pt")
            cosine = diagnose(subject, Options(batches=8, probes=32, seed=seed), brief=True).rows[-1].matched
            rows[-1] |= {"cosine": cosine.value, "low": cosine.low, "high": cosine.high}
        rows[-1]["train_loss"] = summary["train_loss"]
    return rows


def draw(rows: Any) -> None:
    """Draw what the rows hold along training: means over seeds, and between which values they lie."""
    import matplotlib.pyplot as plt

    from fogzo.evidence.experiment import Method
    from fogzo.evidence.figures.style import RC, colour, save
    from fogzo.evidence.parse import standard_methods

    with plt.rc_context(RC):
        figure, grid = plt.subplots(len(SETTINGS), len(HEADS), figsize=(12.5, 5.2), sharex=True)
        for (setting, (_, title)), axes in zip(SETTINGS.items(), grid, strict=True):
            for axis, (column, head) in zip(axes, HEADS.items(), strict=True):
                for method in METHODS:
                    own = rows[(rows.setting == setting) & (rows.method == method)]
                    ends = own.groupby("step")[column].agg(["mean", "min", "max"]).dropna()
                    given = standard_methods()[method]
                    own_colour = colour(Method(method, given["label"], colour=given.get("colour", "")))
                    axis.plot(ends.index, ends["mean"], ".-", color=own_colour, lw=1.4, label=given["label"])
                    axis.fill_between(ends.index, ends["min"], ends["max"], color=own_colour, alpha=0.12, lw=0)
                axis.set(ylabel=head, title=title if axis is axes[0] else "")
            axes[-1].axhline(0, color="#7F7F7F", lw=0.8)
        for axis in grid[-1]:
            axis.set_xlabel("training step")
        figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside upper left", ncols=4, frameon=False)
        save(figure, DATA.with_suffix(".svg"))
    print(DATA.with_suffix(".svg"))


if __name__ == "__main__":
    main()
