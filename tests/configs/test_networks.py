"""What the table of networks makes of its rows, and that the configs compose what records were made of."""

import pytest
from helpers.configs import CONFIGS, composed
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from fogzo.runs.identity import identity
from fogzo.training.overrides import cautions
from fogzo.training.record import plain_record

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
    "model=llama_9m scale=mini estimator=ste_longer": "7098efd4",
    "model=llama_30m scale=paper estimator=phased": "2c3bd7f6",
    "model=llama_300m scale=paper estimator=fogzo": "d1a30723",
    "model=llama_200m scale=mini estimator=nspsa": "e72747e3",
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
