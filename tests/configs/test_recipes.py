"""Every recipe opens with its command, what to expect, where its cost stands, and source; the costs are the plan's."""

import re

import pytest
import yaml
from helpers.configs import CONFIGS
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from fogzo.evidence.parse import read_experiment
from fogzo.runs.records import read_records
from fogzo.training.record import plain_record

RECIPES = sorted(file for file in CONFIGS.glob("recipe/*/*.yaml") if file.stem != "llama")
LLAMAS = CONFIGS / "recipe" / "paper" / "llama.yaml"
RECORDS = CONFIGS.parent / "results" / "records" / "recipes.jsonl"
COSTS = CONFIGS.parent / "docs" / "costs.md"
PUBLISHED = [file for file in RECIPES if "# Expected (the paper's" in file.read_text(encoding="utf-8")]


def name(file):
    return f"{file.parent.name}/{file.stem}"


def compose_command(overrides):
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("train", list(overrides))


def published_rows(model):
    """Of the experiments at the paper's scale: STE's and the method's number, and the overrides of the method's run."""
    for table in ("fixed_alpha", "lsq", "w2a2", "equal_time"):
        experiment = read_experiment(CONFIGS / "experiment" / f"{table}.yaml")
        paper = yaml.safe_load((CONFIGS.parent / f"results/paper/{table}.yaml").read_text(encoding="utf-8"))["rows"]
        method = "phased" if table == "equal_time" else "fogzo"
        for setting in experiment.settings.values():
            numbers = [paper[setting.paper[0]][one] for one in ("ste", method)]
            numbers = [one["accuracy"] if isinstance(one, dict) else one for one in numbers]
            if f"model={model}" in setting.overrides:
                yield numbers, [*setting.overrides, *experiment.methods[method].overrides]


def header(file):
    lines = file.read_text(encoding="utf-8").splitlines()
    return [line for line in lines[: lines.index("defaults:")] if line.startswith("# ")]


@pytest.mark.parametrize("file", RECIPES, ids=name)
def test_a_recipe_opens_with_command_expectation_cost_and_source(file):
    package, command, expected, cost, source, *_ = header(file)
    assert package == "# @package _global_"
    assert command.startswith("# python train.py")
    assert expected.startswith("# Expected")
    assert cost.startswith("# Cost: docs/costs.md")
    assert source.startswith("# Source: ")


def test_perplexities_of_the_paper_are_named_as_of_another_split_than_ours():
    (expected,) = (line for line in header(LLAMAS) if line.startswith("# Expected (the paper's"))
    assert "perplexity" in expected
    assert "on its split of C4" in expected
    assert "The test split is ours" in (CONFIGS.parent / "docs" / "training.md").read_text(encoding="utf-8")


def quotes():
    """Each quoted row of the paper: network, numbers of STE and FOGZO, and the overrides that make the latter."""
    for file in PUBLISHED:
        _, command, expected, *_ = header(file)
        yield file.stem, re.findall(r"\d+\.\d+", expected), command.split()[3:]
    for line in header(LLAMAS):
        if row := re.match(r"# +([\d.]+) +([\d.]+) +(model=(\w+)[\w= ]*)", line):
            yield row[4], row.groups()[:2], ["scale=paper", *row[3].split()]


@pytest.mark.parametrize(("model", "numbers", "overrides"), list(quotes()))
def test_the_command_makes_the_row_of_the_paper_that_it_quotes(model, numbers, overrides):
    made_by = {tuple(published): wanted for published, wanted in published_rows(model)}
    wanted = compose_command(["scale=paper", *made_by[tuple(map(float, numbers))]])
    assert plain_record(compose_command(overrides)) == plain_record(wanted)


@pytest.mark.parametrize("file", [file for file in RECIPES if file.parent.name == "mini"], ids=name)
def test_what_a_mini_recipe_expects_was_recorded(file):
    _, _, expected, cost, *_ = header(file)
    summaries = {}
    for estimator in ("fogzo", "ste"):
        for run in read_records(RECORDS).runs.values():
            if run.name.startswith(f"{file.stem}-fixed-{estimator}-seed0-"):
                summaries[estimator] = run.summary
    if len(summaries) < 2:
        assert expected == "# Expected: not run by us."
        return
    metric = "accuracy" if "accuracy" in summaries["ste"] else "perplexity"
    said = [float(number) for number in re.findall(r"\d+\.\d", expected)]
    assert said == [round(summaries[estimator][metric], 1) for estimator in ("fogzo", "ste")]
    assert f"{summaries['fogzo']['seconds'] / 60:.1f} minutes of training" in cost


def test_every_recipe_has_its_row_among_the_costs():
    rows = re.findall(r"^\| `scale=(\w+) model=(\w+)` \|", COSTS.read_text(encoding="utf-8"), re.MULTILINE)
    table = yaml.safe_load((CONFIGS / "networks.yaml").read_text(encoding="utf-8"))
    networks = table["estimators"].keys() - table["libraries"]
    assert sorted(rows) == sorted((scale, model) for scale in ("mini", "paper") for model in networks)


@pytest.mark.parametrize(("scale", "model"), [("mini", "mlp"), ("paper", "resnet_mini")])
def test_a_recipe_costs_what_the_page_says(scale, model, monkeypatch):
    monkeypatch.syspath_prepend(str(CONFIGS.parent / "scripts"))
    from make_plans import planned_recipe

    assert planned_recipe(scale, model) in COSTS.read_text(encoding="utf-8").splitlines()
