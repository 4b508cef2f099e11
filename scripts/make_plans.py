"""Write docs/costs.md: what every recipe costs with FOGZO, n = 1, by the plan that plan=true prints.

python scripts/make_plans.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from fogzo.training.plan import Plan, duration, plan

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "costs.md"
HEAD = """# What the recipes cost

With `estimator=fogzo`, n = 1, and the default quantizer, without evaluation, as `plan=true` computes it; time at
1e14 FLOP/s, an RTX 5090 by the paper's timing row; memory of one process in GiB. `make plans` writes this page.

| command: `python train.py` | parameters | quantized (d) | FLOPs | time | memory |
|---|---:|---:|---:|---:|---:|
"""


def row(scale: str, model: str, planned: Plan) -> str:
    """Return the line of one recipe."""
    cells = (
        f"`scale={scale} model={model}`",
        f"{planned.parameters:,}",
        f"{planned.perturbed:,}",
        f"{planned.flops:.2g}",
        duration(planned.seconds),
        f"{planned.memory / 2**30:.2f}",
    )
    return f"| {' | '.join(cells)} |"


def planned_recipe(scale: str, model: str) -> str:
    """Return the line of the recipe of ``model`` at ``scale``, planned afresh."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return row(scale, model, plan(compose("train", [f"scale={scale}", f"model={model}", "device=cpu"])))


def main() -> None:
    """Plan all recipes, and write the page."""
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        models = GlobalHydra.instance().config_loader().get_group_options("model")
    libraries = OmegaConf.load(ROOT / "configs" / "networks.yaml").libraries  # their size is the user's choice
    lines = [planned_recipe(scale, model) for scale in ("mini", "paper") for model in models if model not in libraries]
    PAGE.write_text(HEAD + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
