"""Does the flip rate, or the revival of dead weights, explain where FOGZO wins?   python scripts/mechanism.py [--draw]

Trains STE, STE + noise, FOGZO and the displaced STE on the MLP's hardtanh settings, with the values that mlp_factors
tuned (the displaced STE with the STE's), looks into their checkpoints, and writes results/diagnosis/mechanism.csv and
.svg; what is in the CSV is not measured again.  --draw draws only.  A seed takes about 5 minutes of a core.
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
BASE = "model=mlp data=mnist5k optimizer=sgd batch_size=64 steps=1000 threads=1 log_every=50 quantizer=sign"
SETTINGS = {
    "hardtanh": ("FOGZO wins: hardtanh, α = 1 std", ["quantizer.surrogate=hardtanh"]),
    "hardtanh2": ("FOGZO loses: α = 2 std", ["quantizer.surrogate=hardtanh", "quantizer.scale_in_std=2.0"]),
}
# label, whose tuned values, estimator, colour
METHODS = {
    "ste": ("STE", "ste", "ste", "#000000"),
    "noisy_ste_own": ("STE + noise", "noisy_ste_own", "noisy_ste", "#A65628"),
    "fogzo": ("FOGZO", "fogzo", "fogzo", "#D55E00"),
    "displaced_ste": ("displaced STE", "ste", "displaced_ste", "#0072B2"),
}
STEPS, SEEDS = (100, 300, 600, 900), (11, 12, 13)
HEADS = {"flip_share": "codes flipped in 50 steps, share", "dead": "dead weights, share", "cosine": "cosine, STE (K)"}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--draw", action="store_true", help="draw what is measured already")
    os.chdir(ROOT)
    given = parser.parse_args()
    rows = pd.read_csv(DATA).to_dict("records") if DATA.exists() else []
    have = {(row["seed"], row["setting"], row["method"]) for row in rows}
    try:
        for key in product(SEEDS, SETTINGS, METHODS):
            if key not in have and not given.draw:
                rows += look(*key)
                DATA.parent.mkdir(parents=True, exist_ok=True)
                pd.DataFrame(rows).to_csv(DATA, index=False, float_format="%.4g")
        draw(pd.DataFrame(rows))
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error


def look(seed: int, setting: str, method: str) -> list[dict[str, Any]]:
    """Train one run, and return a row for each of its checkpoints that are looked into."""
    import yaml
    from hydra import compose, initialize_config_dir

    from fogzo.diagnosis.subject import Options, Subject
    from fogzo.diagnosis.summary import diagnose
    from fogzo.training.launch import train

    tuned = yaml.safe_load(Path("results/tuned/mlp_factors.yaml").read_text(encoding="utf-8"))
    _, source, estimator, _ = METHODS[method]
    values = [f"{key}={value}" for key, value in tuned[f"{setting}.{source}"]["values"].items()]
    folder = Path(f"outputs/mechanism/{setting}.{method}-seed{seed}")
    kept = ["checkpoint_every=100", "keep_checkpoints=10", "progress=lines", f"run_dir={folder}", f"seed={seed}"]
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg = compose("train", [*BASE.split(), *SETTINGS[setting][1], f"estimator={estimator}", *values, *kept])
    summary = train(cfg)
    subject, rows = Subject(folder), []
    for step in STEPS:
        subject.open(folder / f"checkpoint-{step:09d}.pt")
        found = diagnose(subject, Options(probes=32, seed=seed), brief=True)
        network = found.rows[-1]
        flips = next(row["flip_share"] for row in found.logged if row["step"] == step)
        numbers = {"flip_share": flips, "dead": network.dead, "cosine": network.matched.value}
        interval = {"low": network.matched.low, "high": network.matched.high, "train_loss": summary["train_loss"]}
        rows.append({"setting": setting, "method": method, "seed": seed, "step": step, **numbers, **interval})
    return rows


def draw(rows: Any) -> None:
    """Draw flips, dead weights and cosine along training: means over seeds, and between which values they lie."""
    import matplotlib.pyplot as plt

    from fogzo.evidence.figures.style import RC, save

    rows.loc[rows.high - rows.low > 1, "cosine"] = float("nan")  # nothing is known
    with plt.rc_context(RC):
        figure, grid = plt.subplots(len(SETTINGS), 3, figsize=(10.5, 5.0), layout="constrained", sharex=True)
        for (setting, (title, _)), axes in zip(SETTINGS.items(), grid, strict=True):
            for axis, (column, head) in zip(axes, HEADS.items(), strict=True):
                for method, (label, _, _, colour) in METHODS.items():
                    own = rows[(rows.setting == setting) & (rows.method == method)]
                    ends = own.groupby("step")[column].agg(["mean", "min", "max"]).dropna()
                    axis.plot(ends.index, ends["mean"], "o-", color=colour, ms=4, lw=1.4, label=label)
                    axis.fill_between(ends.index, ends["min"], ends["max"], color=colour, alpha=0.12, lw=0)
                axis.set(ylabel=head, title=title if axis is axes[0] else "")
            axes[-1].axhline(0, color="#7F7F7F", lw=0.8)
        for axis in grid[-1]:
            axis.set_xlabel("training step")
        figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside upper left", ncols=4, frameon=False)
        save(figure, DATA.with_suffix(".svg"))
    print(DATA.with_suffix(".svg"))


if __name__ == "__main__":
    main()
