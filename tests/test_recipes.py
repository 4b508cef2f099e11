"""Every recipe opens with its command, what to expect, its cost and source; the cost is what plan=true computes."""

import re

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from test_configs import CONFIGS

from fogzo.plan import plan

LARGE = {"llama_95m", "llama_200m", "llama_300m", "resnet50"}  # their weights take seconds to make
RECIPES = sorted(CONFIGS.glob("recipe/*/*.yaml"))
COST = re.compile(r"# Cost with FOGZO, n = 1: (\S+) FLOPs(?:, (\S+) hours on an RTX 5090 at 1e14 FLOP/s)?")


def name(file):
    return f"{file.parent.name}/{file.stem}"


def header(file):
    lines = file.read_text(encoding="utf-8").splitlines()
    return [line for line in lines[: lines.index("defaults:")] if line.startswith("# ")]


@pytest.mark.parametrize("file", RECIPES, ids=name)
def test_a_recipe_opens_with_command_expectation_cost_and_source(file):
    package, command, expected, cost, source, *_ = header(file)
    assert package == "# @package _global_"
    assert command.startswith("# python train.py")
    assert expected.startswith("# Expected")
    assert COST.match(cost)
    assert "plan=true" in cost
    assert source.startswith("# Source: ")


def test_perplexities_of_the_paper_are_named_as_of_another_split_than_ours():
    expected = [line for file in RECIPES for line in header(file) if line.startswith("# Expected (the paper's")]
    perplexities = [line for line in expected if "perplexity" in line]
    assert perplexities
    assert all("on its split of C4" in line for line in perplexities)
    assert "The test split is ours" in (CONFIGS.parent / "docs" / "training.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "file",
    [pytest.param(file, marks=[pytest.mark.slow] if file.stem in LARGE else [], id=name(file)) for file in RECIPES],
)
def test_a_recipe_costs_what_it_says(file):
    _, command, _, cost, *_ = header(file)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose("train", command.split()[3:])
    assert f"{cfg.scale}/{cfg.model.name}" == name(file)
    text = plan(cfg)
    flops, hours = (float(re.search(rf"{word}: +(\S+) ", text)[1]) for word in ("compute", "time"))
    said = COST.match(cost)
    assert float(said[1]) == pytest.approx(flops, rel=0.1)
    assert said[2] is None or float(said[2]) == pytest.approx(hours, rel=0.1, abs=0.05)
