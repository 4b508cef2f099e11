"""Recipes open with command, expectation, cost and source; the table of networks; and identities of recorded runs."""

import re

import omegaconf._utils
import pytest
import yaml
from helpers.configs import CONFIGS, composed
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from fogzo.evidence.parse import read_experiment
from fogzo.runs.files import read_yaml
from fogzo.runs.identity import identity
from fogzo.runs.records import read_records
from fogzo.training.overrides import cautions
from fogzo.training.record import plain_record

TABLE = yaml.safe_load((CONFIGS / "networks.yaml").read_text(encoding="utf-8"))
ADDED = TABLE["recipes"]  # to the recipes of files
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
        paper = read_yaml(CONFIGS.parent / "results/paper/numbers.yaml")[table]["rows"]
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
    for model, row in ADDED["paper"].items():
        if said := row["expected"]:
            yield model, (said["ste"], said["fogzo"]), ["scale=paper", f"model={model}", *said["overrides"].split()]
    for line in header(LLAMAS):
        if row := re.match(r"# +([\d.]+) +([\d.]+) +(model=(\w+)[\w= ]*)", line):
            yield row[4], row.groups()[:2], ["scale=paper", *row[3].split()]


@pytest.mark.parametrize(("model", "numbers", "overrides"), list(quotes()))
def test_the_command_makes_the_row_of_the_paper_that_it_quotes(model, numbers, overrides):
    made_by = {tuple(published): wanted for published, wanted in published_rows(model)}
    wanted = compose_command(["scale=paper", *made_by[tuple(map(float, numbers))]])
    assert plain_record(compose_command(overrides)) == plain_record(wanted)


def recorded(model):
    """What `recipes.jsonl` has of the mini recipe, as its header or its row says it; None if it lacks FOGZO or STE."""
    runs = read_records(RECORDS).runs.values()
    started = {estimator: f"{model}-fixed-{estimator}-seed0-" for estimator in ("fogzo", "ste")}
    found = {one: run.summary for one, start in started.items() for run in runs if run.name.startswith(start)}
    if len(found) < 2:
        return None
    metric = "accuracy" if "accuracy" in found["ste"] else "perplexity"
    said = {estimator: round(found[estimator][metric], 1) for estimator in started}
    return said | {"minutes": round(found["fogzo"]["seconds"] / 60, 1)}


@pytest.mark.parametrize("file", [file for file in RECIPES if file.parent.name == "mini"], ids=name)
def test_what_a_mini_recipe_expects_was_recorded(file):
    _, _, expected, cost, *_ = header(file)
    said = recorded(file.stem)
    if said is None:
        assert expected == "# Expected: not run by us."
        return
    assert [float(number) for number in re.findall(r"\d+\.\d", expected)] == [said["fogzo"], said["ste"]]
    assert f"{said['minutes']:.1f} minutes of training" in cost


def test_what_the_rows_of_added_mini_recipes_expect_was_recorded():
    said = {model: row["expected"] for model, row in ADDED["mini"].items()} | TABLE["llamas_expected"]
    assert said.keys() >= TABLE["llamas"].keys() - {"llama_mini"}  # which has a file of its own
    assert said == {model: recorded(model) for model in said}


def test_every_recipe_has_its_row_among_the_costs():
    rows = re.findall(r"^\| `scale=(\w+) model=(\w+)` \|", COSTS.read_text(encoding="utf-8"), re.MULTILINE)
    networks = TABLE["estimators"].keys() - TABLE["libraries"]
    assert sorted(rows) == sorted((scale, model) for scale in ("mini", "paper") for model in networks)


@pytest.mark.parametrize(("scale", "model"), [("mini", "mlp"), ("paper", "resnet_mini")])
def test_a_recipe_costs_what_the_page_says(scale, model, monkeypatch):
    monkeypatch.syspath_prepend(str(CONFIGS.parent / "scripts"))
    from make_plans import planned_recipe

    assert planned_recipe(scale, model) in COSTS.read_text(encoding="utf-8").splitlines()


# Runs of any kind, whose records are found by these digits
IDENTITIES = {
    "model=mlp scale=mini estimator=fogzo": "365eb4fb",
    "model=mlp scale=mini estimator=nspsa": "6fab341f",
    "model=mlp scale=paper estimator=ste": "dfe1267f",
    "model=deit_mini scale=mini estimator=slope": "abb1027d",
    "model=deit_tiny scale=mini estimator=rescaled_ste": "5c709b73",
    "model=resnet18 scale=paper estimator=phased": "1feb2b30",
    "model=llama_mini scale=mini estimator=fogzo": "50a2864e",
    "model=llama_mini quantizer=lsq estimator=ste": "d0772117",
    "model=llama_mini scale=paper estimator=noisy_ste": "0768150b",
    "model=llama_9m scale=mini estimator=ste_longer": "eabec23e",
    "model=llama_30m scale=paper estimator=phased": "2c3bd7f6",
    "model=llama_300m scale=paper estimator=fogzo": "d1a30723",
    "model=llama_200m scale=mini estimator=nspsa": "bcc845a0",
}


@pytest.mark.parametrize("overrides", IDENTITIES)
def test_a_config_computes_what_it_computed_when_it_was_recorded(overrides):
    assert identity(plain_record(composed(*overrides.split()))) == IDENTITIES[overrides]


@pytest.mark.parametrize("estimator", ["fogzo", "phased", "noisy_ste", "rescaled_ste"])
def test_an_estimator_takes_beta_from_its_network_and_scale(estimator):
    for overrides, beta in [
        ("model=mlp", 0.999),
        ("model=deit_tiny", 0.9999999),
        ("model=deit_tiny scale=paper", 0.999999999),
        ("model=deit_tiny estimator.beta_min=0.5", 0.5),
    ]:
        assert composed(f"estimator={estimator}", *overrides.split()).estimator.beta_min == beta


def test_an_estimator_without_beta_gets_none_and_beta_1_stays():
    assert "beta_min" not in composed("estimator=ste", "model=deit_mini").estimator
    assert "beta_min" not in composed("estimator=nspsa", "model=deit_mini").estimator
    assert composed("estimator=slope", "model=deit_mini").estimator.beta_min == 1


def test_an_optimizer_that_is_not_the_recipes_has_its_own_values_and_that_is_said_once():
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        own = compose("train", ["model=llama_mini"])
        other = compose("train", ["model=llama_mini", "optimizer=sgd"])
        given = compose("train", ["model=deit_tiny", "optimizer=sgd", "optimizer.lr=0.5"])
        assert (own.optimizer.lr, own.optimizer.weight_decay, cautions(own)) == (2e-3, 0.1, [])
        assert (other.optimizer.lr, other.optimizer.weight_decay) == (0.03, 0.0)
        assert given.optimizer.lr == 0.5
        said = cautions(other)
    assert len(said) == 1
    assert said[0].startswith("the recipe is of optimizer=adamw: its lr=0.002 and weight_decay=0.1 are left out")


def test_only_the_mlp_is_small_enough_that_n_spsa_evaluates_copies_of_it_together():
    assert composed("estimator=nspsa").estimator.probe_batch == 32
    assert composed("estimator=nspsa", "model=llama_9m").estimator.probe_batch == 0
    assert composed("estimator=fogzo").estimator.probe_batch == 0


def test_configs_read_by_libyaml_are_what_omegaconf_reads():
    composed()  # which loads the plugin
    fast = omegaconf._utils.get_yaml_loader()
    own = next(kind for kind in fast.__mro__ if kind.__name__ == "OmegaConfLoader")
    texts = [file.read_text() for file in CONFIGS.rglob("*.yaml")]
    texts.append("a: 1e-3\nb: 2001-01-01\nc: [1, 2e5, .5, inf, .inf]\nd: 0x1F\ne: 1_000\nf: yes")
    for text in texts:
        assert repr(yaml.load(text, fast)) == repr(yaml.load(text, own))
    for loader in (fast, own):
        with pytest.raises(yaml.constructor.ConstructorError, match="duplicate key a"):
            yaml.load("a: 1\na: 2", loader)
