"""Made-up data of any shape, for timing."""

import pytest
import torch
from helpers.configs import composed

from fogzo.data import synthetic
from fogzo.errors import UserError
from fogzo.training.build import build
from fogzo.training.plan import plan

IMAGES = ["model=deit_tiny", "scale=paper", "data=synthetic", "estimator=fogzo", "precision=fp32", "micro_batches=1"]
TOKENS = ["model=llama_mini", "data=synthetic", "data.sequence=16", "data.vocabulary=64", "model.vocabulary=64"]
SHORT = ["batch_size=2", "epochs=null", "steps=2", "evaluate_every=0", "evaluation_examples=2", "evaluation_tokens=32"]


def test_images_and_tokens_have_the_shape_asked_for_and_repeat_so_that_none_takes_memory():
    images = synthetic((1, 4, 6), classes=3, examples=1000)
    inputs, targets = images.train.batch(torch.tensor([0, 64, 999]))
    assert inputs.shape == (3, 1, 4, 6)
    assert torch.equal(inputs[0], inputs[1])
    assert set(targets.tolist()) <= {0, 1, 2}
    assert (len(images.train), images.train.inputs.shape[0]) == (1000, 64)
    text = synthetic(sequence=5, vocabulary=7, examples=100)
    inputs, targets = text.train.batch(torch.tensor([3, 67]))
    assert inputs.shape == targets.shape == (2, 5)
    assert torch.equal(inputs[0], inputs[1])
    assert torch.equal(inputs[0, 1:], targets[0, :-1])
    assert (len(text.train), int(inputs.max()) < 7) == (100, True)
    assert images.describe()["sha256"] != synthetic((1, 4, 4), classes=3).describe()["sha256"]


@pytest.mark.parametrize(
    "keys", [[*IMAGES, "data.image=[3,32,32]", "model.image_size=32"], TOKENS], ids=["deit", "llama"]
)
def test_a_recipe_takes_them_in_the_place_of_its_own_data(keys):
    one = build(composed(*keys, *SHORT, "device=cpu"))
    assert set(one.fit()) >= {"train_loss", "test_loss"}
    assert one.task.data.describe()["name"] == "synthetic"


@pytest.mark.parametrize("keys", [["model=deit_tiny", "scale=paper"], TOKENS], ids=["deit", "llama"])
def test_a_plan_counts_them(keys):
    assert "decode" not in plan(composed(*keys, "data=synthetic", "epochs=null", "steps=5", "plan=true")).text


@pytest.mark.parametrize(
    "wrong", [{"image": (3, 0, 4)}, {"image": (3, 4)}, {"sequence": 2.5}, {"vocabulary": 1}, {"examples": 0}]
)
def test_a_shape_that_is_not_possible_is_refused(wrong):
    with pytest.raises(UserError):
        synthetic(**wrong)
