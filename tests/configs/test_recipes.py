"""Every recipe opens with its command, what to expect, its cost and source; the cost is what plan=true computes."""

import re

import pytest
import yaml
from helpers.configs import CONFIGS
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from fogzo.evidence.parse import read_experiment
from fogzo.runs.records import read_records
from fogzo.training.launch import plain_record
from fogzo.training.plan import plan

LARGE = {"llama_95m", "llama_200m", "llama_300m", "resnet50"}  # their weights take seconds to make
RECIPES = sorted(file for file in CONFIGS.glob("recipe/*/*.yaml") if file.stem != "llama")
LLAMAS = CONFIGS / "recipe" / "paper" / "llama.yaml"
RECORDS = CONFIGS.parent / "results" / "records" / "recipes.jsonl"
COST = re.compile(
    r"# Cost with (?:FOGZO, n = 1|70 % STE \+ 30 % FOGZO): (\S+) FLOPs(?:, (\S+) hours on an RTX 5090 at 1e14 FLOP/s)?"
)
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
    assert "not measured" not in cost
    assert COST.match(cost)
    assert "plan=true" in cost
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


def check_data_line(lines, planned):
    """What a header says of decoding, which the plan says of folders of images and of nothing else."""
    said = re.findall(r"# Data: at that speed (\S+) images/s, .* about (\d+) cores \((\d+)/s each\)", "\n".join(lines))
    cores = re.search(r"data: +about (\S+) cores decode .*, (\d+) each", planned)
    assert len(said) == (cores is not None)
    if cores:
        rate = float(re.search(r"([\d,]+) examples/s", planned)[1].replace(",", ""))
        assert float(said[0][0].replace(",", "")) == pytest.approx(rate, rel=0.05)
        assert int(said[0][1]) == pytest.approx(int(cores[1]), rel=0.05)
        assert said[0][2] == cores[2]


@pytest.mark.parametrize(
    "file",
    [pytest.param(file, marks=[pytest.mark.slow] if file.stem in LARGE else [], id=name(file)) for file in RECIPES],
)
def test_a_recipe_costs_what_it_says(file):
    _, command, _, cost, *others = header(file)
    cfg = compose_command(command.split()[3:])
    assert f"{cfg.scale}/{cfg.model.name}" == name(file)
    text = plan(cfg).text
    flops, hours = (float(re.search(rf"{word}: +(\S+) ", text)[1]) for word in ("compute", "time"))
    said = COST.match(cost)
    assert float(said[1]) == pytest.approx(flops, rel=0.1)
    assert said[2] is None or float(said[2]) == pytest.approx(hours, rel=0.1, abs=0.05)
    check_data_line(others, text)
