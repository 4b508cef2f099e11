"""Models, data and settings that don't fit each other are refused before anything is computed, with the way out."""

import pytest
import torch
from helpers.configs import composed

import fogzo.data
from fogzo.data import TextData, TokenSplit, mnist5k
from fogzo.training.build import build
from fogzo.training.config import Settings


@pytest.fixture(scope="module")
def digits():
    return mnist5k()


@pytest.fixture
def build_trainer(digits, monkeypatch):
    """Builds from overrides; the digits are read from the disk once."""
    monkeypatch.setattr(fogzo.data, "mnist5k", lambda: digits)
    return lambda *overrides: build(composed("batch_size=20", "threads=1", "steps=10", *overrides))


MISFITS = [
    ("model=resnet_mini model.channels=3", r"mnist5k has images of shape \(1, 28, 28\), .*set model\.channels"),
    ("model=deit_mini model.image_size=32 model.patch_size=8", r"images of shape \(1, 28, 28\).*model\.image_size"),
    (
        "model=mlp model.inputs=100",
        r"images of shape \(1, 28, 28\), which the model does not take.*: set model\.inputs=784",
    ),
    ("model=resnet_mini model.classes=7", r"mnist5k has 10 classes, but the model has 7: set model\.classes"),
    ("model=mlp model.classes=11", r"mnist5k has 10 classes, but the model has 11"),
    ("model=mlp quantizer=none estimator=ste activations=lsq", "activations=lsq goes with quantized weights"),
    ("model=mlp quantizer=none estimator=ste activations=quest", "activations=quest goes with quantized weights"),
    ("parallel=pipeline", "parallel='pipeline' is not known: choose one of data, probes"),
    ("parallel=shard", "parallel=shard is not possible: torch's fully_shard takes no parameter without a dimension"),
    ("stop_on=always", "stop_on='always' is not known: choose one of nonfinite, spike, never"),
    ("spike_factor=-1", "spike_factor=-1 is not possible"),
    ("spike_factor=inf", "spike_factor=inf is not possible"),
    ("keep_checkpoints=0", "keep_checkpoints=0 is not possible"),
    ("micro_batches=3", "micro_batches=3 does not divide batch_size=20"),
]


@pytest.mark.parametrize(("overrides", "message"), MISFITS, ids=[overrides for overrides, _ in MISFITS])
def test_what_does_not_fit_is_refused_with_the_way_out(overrides, message, build_trainer):
    with pytest.raises(ValueError, match=message):
        build_trainer(*overrides.split())


def text_data():

    windows = TokenSplit([torch.arange(500).remainder(7).numpy()], sequence=16)
    return TextData("words", windows, windows, vocabulary=300, sequence=16, tokenizer="none", sha256="")


def test_text_is_no_food_for_an_image_model_nor_images_for_a_language_model(build_trainer, monkeypatch):
    import fogzo.data

    monkeypatch.setattr(fogzo.data, "pydocs", lambda **options: text_data())
    with pytest.raises(ValueError, match=r"data=pydocs holds text, .*: choose a llama for model="):
        build_trainer("data=pydocs")
    with pytest.raises(ValueError, match=r"data=mnist5k holds images, .*: choose a resnet, deit or mlp"):
        build_trainer("model=llama_mini", "data=mnist5k")


@pytest.mark.parametrize(
    ("key", "less", "message"),
    [
        ("vocabulary", 257, r"words has a vocabulary of 300, more than the model's 257: set model\.vocabulary=300"),
        ("sequence", 5, r"words has a sequence of 16, more than the model's 5: set model\.sequence=16"),
    ],
)
def test_text_that_is_too_long_or_has_too_many_tokens_for_the_model_is_refused(
    key, less, message, build_trainer, monkeypatch
):
    import fogzo.data

    monkeypatch.setattr(fogzo.data, "pydocs", lambda **options: text_data())
    small = ("model=llama_mini", "model.layers=1", "model.width=32", "model.heads=2")
    with pytest.raises(ValueError, match=message):
        build_trainer(*small, f"model.{key}={less}", f"data.{key}={less}")  # the text itself holds more
    build_trainer(*small)


SHARED = [(20, 1, 1), (20, 1, 4), (20, 5, 4), (24, 2, 3)]


NOT_SHARED = [(20, 1, 3), (20, 5, 3), (20, 2, 20), (2, 1, 4)]


@pytest.mark.parametrize(("batch_size", "micro_batches", "ranks"), SHARED + NOT_SHARED)
def test_ranks_that_cannot_share_the_batch_evenly_are_refused(batch_size, micro_batches, ranks):
    settings = {"steps": 1, "batch_size": batch_size, "seed": 0, "micro_batches": micro_batches}
    Settings(**settings, parallel="probes").check_ranks(ranks)  # each has the whole batch
    if (batch_size, micro_batches, ranks) in SHARED:
        Settings(**settings).check_ranks(ranks)
        return
    with pytest.raises(ValueError, match=rf"batch_size={batch_size} cannot be shared by {ranks} ranks, .*fewer"):
        Settings(**settings).check_ranks(ranks)
    multiple = Settings(**settings | {"batch_size": ranks * micro_batches})
    multiple.check_ranks(ranks)  # the way out that the message names


@pytest.mark.parametrize("activations", ["lsq", "quest"])
@pytest.mark.parametrize("model", ["mlp", "resnet_mini", "deit_mini"])
def test_every_image_model_builds_with_quantized_activations_and_does_a_step(model, activations, build_trainer):
    trainer = build_trainer(f"model={model}", f"activations={activations}", "quantizer=lsq", "batch_size=8")
    assert trainer.train_step(0).loss.isfinite()
    names = [name for name, _ in trainer.model.named_parameters() if "input_quantizer" in name]
    assert bool(names) == (activations == "lsq")
    held = {id(p) for group in trainer.optimizer.param_groups for p in group["params"] if not group["weight_decay"]}
    assert {id(trainer.model.get_parameter(name)) for name in names} <= held
