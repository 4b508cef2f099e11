"""Every boolean, number and choice of every group is refused in one sentence where it is of another kind."""

import functools
import math
import re

import pytest
from helpers.configs import CONFIGS, composed
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from torch import nn

from fogzo.checks import did_you_mean
from fogzo.errors import UserError
from fogzo.training.config import arguments, check_keys
from fogzo.training.draft import build_optimizer, check_data, total_steps
from fogzo.training.launch import train
from fogzo.training.overrides import cautions, explanation

CHECKED_BY_ARGUMENTS = ("model", "quantizer", "activations", "estimator", "data", "optimizer", "schedule", "logger")
WRONG = ("no", "off", "nein", "maybe", 1)


@functools.cache
def flags():
    """The choices and keys of all booleans, with the overrides that compose them."""
    choices = [f"{group}={file.stem}" for group in CHECKED_BY_ARGUMENTS for file in (CONFIGS / group).glob("*.yaml")]
    choices += ["model=llama_9m", "model=mlp"]
    found = [("model=mlp", key) for key, value in composed().items() if isinstance(value, bool)]
    for choice in sorted(set(choices)):
        group = choice.partition("=")[0]
        found += [
            (choice, f"{group}.{key}") for key, value in composed(choice)[group].items() if isinstance(value, bool)
        ]
    return found


def check(cfg, key):
    """What ``draft`` does with a key of a group, without building a network."""
    group, dot, _ = key.partition(".")
    if not dot:
        check_keys(cfg)
    elif group == "data":
        check_data(cfg, 1, None)
    else:
        arguments(cfg[group], group)


def test_hydra_hands_yes_and_no_on_as_text():
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        given = [compose("train", [f"compile={text}"]).compile for text in ("no", "off", "yes", "true", "False")]
    assert given == ["no", "off", "yes", True, False]


@pytest.mark.parametrize(("choice", "key"), flags(), ids=[f"{choice} {key}" for choice, key in flags()])
def test_a_boolean_takes_true_and_false_alone(choice, key):
    cfg = OmegaConf.create(OmegaConf.to_container(composed(choice)))
    check(cfg, key)
    for value in WRONG:
        OmegaConf.update(cfg, key, value)
        with pytest.raises(UserError, match=rf"^{key}={value!r} is not possible: give true or false") as refusal:
            check(cfg, key)
        assert "\n" not in str(refusal.value)


def test_the_booleans_are_those_that_were_once_taken_for_true():
    keys = {key for _, key in flags()}
    assert keys >= {"compile", "keep_best", "plan", "deterministic", "quantizer.per_channel", "optimizer.nesterov"}
    assert keys >= {"quantizer.clip_surrogate", "activations.signed", "model.small_stem", "data.mixing"}


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ("beta_min=0.9", "beta_min is no key of this run: did you mean estimator.beta_min?"),
        ("estimator=ste estimator.epsilon=4", "estimator.epsilon is no key of estimator=ste: .*estimator=fogzo"),
        ("optimizer.betas=[1,2]", "optimizer.betas is no key of optimizer=sgd: optimizer=adamw would have it"),
        (
            "estimator=ste estimator.samples=4",
            "estimator.samples is no key of estimator=ste: .*estimator=fogzo, .*nspsa",
        ),
        ("~optimizer", "~optimizer leaves nothing to train with: choose one of adamw, sgd"),
        ("estimator=ste,fgzo", "estimator=fgzo is not known: choose one of .*; did you mean fogzo?"),
        ("a=b=c", "mismatched input '='"),
        ("optimizer=1e30", r"optimizer=1e\+30 is not known: choose one of adamw, sgd"),
        ("data=[1,2]", r"data=\[1, 2\] is not known: choose one of c4, fashion_mnist"),
    ],
)
def test_what_does_not_compose_is_explained(overrides, said):
    text = explanation(overrides.split(), CONFIGS)
    assert text is not None
    assert re.match(said, text)


def test_what_composes_needs_no_explanation():
    assert explanation(["seed=0,1", "optimizer.lr=0.1,0.2", "estimator=ste,fogzo", "+new=1"], CONFIGS) is None


def test_keys_resemble_those_of_their_group_first():
    known = ["steps", "optimizer.lr", "estimator.beta_min", "estimator.name"]
    assert did_you_mean("step", known) == ": did you mean steps?"
    assert did_you_mean("beta_mn", known) == ": did you mean estimator.beta_min?"
    assert did_you_mean("optimizer.nam", known) == ""


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("results_dir=", "results_dir='' is not possible"),
        ("phase=rehearse", "phase='rehearse' is not known: choose one of confirm, tune"),
        ("steps=2.5", "steps=2.5 is not possible: give a whole number of at least 1"),
        ("clip_norm=-1", "clip_norm=-1 is not possible: give a number of at least 0; 0 is no clipping"),
        ("+stps=3", "stps is no key of a run: did you mean steps?"),
        ("threads=100000", "threads=100000 is not possible"),
    ],
)
def test_a_key_outside_the_groups_is_held_to_its_kind_and_range(overrides, message):
    with pytest.raises(UserError, match=message):
        check_keys(composed(overrides))


@pytest.mark.parametrize("override", ["quantizer.name=nan", "quantizer.name=lsq", "quantizer._target_=0", "~data.name"])
def test_a_choice_keeps_its_name_and_its_constructor(override, tmp_path):
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        for more in ([], ["plan=true"]):
            cfg = compose("train", [override, f"results_dir={tmp_path}", *more])
            with pytest.raises(UserError, match=r"the name or _target_ of .* was changed, or is gone: give"):
                train(cfg)


@pytest.mark.parametrize("override", ["run_dir=3", "device=0", "results_dir=7"])
def test_a_run_and_its_plan_refuse_a_key_of_another_kind_in_the_same_words(override):
    said = []
    for more in ([], ["plan=true"]):
        with pytest.raises(UserError) as refusal:
            train(composed(override, *more))
        said.append(str(refusal.value))
    assert said[0] == said[1] == f"{override} is not possible: give text"


@pytest.mark.parametrize(
    ("overrides", "rule"),
    [
        ("device=cuda:77", "device=cuda:77"),
        ("batch_size=4001", "batch_size=4001"),
        ("schedule.warmup=2", "schedule.warmup=2"),
        ("optimizer=adamw optimizer.betas=[0.9,1.5]", "optimizer.betas=.* is not possible: give two numbers"),
        ("optimizer.weight_decay=-1", "optimizer.weight_decay=-1 is not possible"),
        ("optimizer.lr=0", "optimizer.lr=0 is not possible"),
        ("optimizer.lr=", "optimizer.lr=.* is not possible: give a"),
        ("estimator.beta_min=1-1e-9", "estimator.beta_min='1-1e-9' is not possible: give a number"),
        ("quantize.biases=no", "quantize.biases='no' is not possible: give true or false"),
    ],
)
def test_a_plan_refuses_what_the_run_refuses(overrides, rule):
    for more in ([], ["plan=true"]):
        with pytest.raises(UserError, match=rule) as refusal:
            train(composed(*overrides.split(), *more))
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("override", "said"),
    [("optimizer.lr=1e30", "will hardly do other than diverge"), ("optimizer.momentum=1.5", "never forgets a step")],
)
def test_what_can_be_trained_and_hardly_ever_should_is_said(override, said):
    (caution,) = cautions(composed("optimizer=sgd", override))
    assert said in caution


@pytest.mark.parametrize(
    ("override", "rule"),
    [
        ("quantize.skip=7", "give a list of names or patterns"),
        ("model.hidden=99999999999", "give a whole number from 1 to"),
    ],
)
def test_what_builds_the_network_refuses_other_kinds_and_sizes_beyond_any_memory(override, rule):
    with pytest.raises(UserError, match=f"^{override} is not possible: {rule}"):
        train(composed(override, "plan=true"))


def test_a_plan_looks_for_the_checkpoint_to_begin_from(tmp_path):
    for given, said in ((tmp_path / "no.pt", "is not there"), (tmp_path, "is a folder")):
        with pytest.raises(UserError, match=f"^begin_from={given} {said}: name another checkpoint"):
            train(composed(f"begin_from={given}", "plan=true"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data=imagefolder", "data.augmentation=nope"], "data.augmentation='nope' is not known"),
        (["data=imagefolder", "+data.mixing={mixup: -1}"], "data.mixing.mixup=-1 is not possible"),
    ],
)
def test_a_value_of_the_data_is_named_by_its_key(overrides, message):
    with pytest.raises(UserError) as refusal:
        train(composed("model=resnet_mini", *overrides, "plan=true"))
    assert str(refusal.value).startswith(message)


def test_a_key_that_was_taken_out_is_named():
    with pytest.raises(
        UserError, match=r"^beta_min was taken out of the config, but beta_schedule needs it: leave it in"
    ):
        train(composed("estimator=fogzo", "~estimator.beta_min", "plan=true"))
    with pytest.raises(UserError, match=r"^results_dir was taken out of the config, and a run needs it: leave it in"):
        train(composed("~results_dir", "plan=true"))
    with pytest.raises(UserError, match=r"^data\.root=7 is not possible: give text"):
        train(composed("model=llama_mini", "data.root=7", "plan=true"))


def test_a_key_that_is_appended_is_refused_with_the_choices_that_have_it():
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose("train", ["estimator=ste", "+estimator.samples=4"])
        said = r"^estimator\.samples is no key of estimator=ste: .*estimator=fogzo, .*estimator=nspsa.* would have it; "
        with pytest.raises(UserError, match=said):
            arguments(cfg.estimator, "estimator")


def test_a_key_of_the_recipe_that_another_choice_does_not_have_is_refused_with_the_way_to_leave_it_out():
    chosen = ("model=deit_mini", "schedule=transition_rate", "plan=true")
    with pytest.raises(
        UserError,
        match=r"^schedule\.warmup is no key of schedule=transition_rate; if the recipe set it, '~schedule\.warmup'",
    ):
        train(composed(*chosen))
    assert train(composed(*chosen, "~schedule.warmup"))["flops"] > 0


@pytest.mark.parametrize(
    ("override", "rule"),
    [
        ("optimizer=adamw optimizer.betas=[0.9,1.5]", "give two numbers of at least 0, below 1"),
        ("optimizer=adamw optimizer.weight_decay=-1", "give a number of at least 0"),
        ("optimizer.momentum=-1", "give a number of at least 0"),
    ],
)
def test_an_optimizers_values_outside_its_range_are_refused_with_the_range(override, rule):
    key = override.split()[-1].partition("=")[0]
    with pytest.raises(UserError, match=f"^{key}=.* is not possible: {rule}$"):
        build_optimizer(composed(*override.split()), nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("epochs", "batch_size", "steps"), [(2, 3999, 3), (10, 3000, 14), (1, 4000, 1), (2, 4000, 2), (0.5, 100, 20)]
)
def test_epochs_take_as_many_steps_as_it_takes_to_see_all_examples_so_often(epochs, batch_size, steps):
    cfg = composed("steps=null", f"epochs={epochs}", f"batch_size={batch_size}")
    assert total_steps(cfg, 4000) == math.ceil(epochs * 4000 / batch_size) == steps


def test_nspsa_with_quest_is_told_to_clip():
    said = [cautions(composed("estimator=nspsa", "quantizer=quest", *more)) for more in ([], ["clip_norm=1"])]
    assert [len(one) for one in said] == [1, 0]
    assert "give clip_norm=1" in said[0][0]
