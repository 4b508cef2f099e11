"""Batches as a function of the step, shared out to ranks; and refusals of models, data and settings that don't fit."""

import itertools

import pytest
import test_configs
import torch

from fogzo.data import DataOrder, Feed, TensorSplit
from fogzo.data.base import Split
from fogzo.ranks import share
from fogzo.training.config import Settings

digits, build_trainer, composed = test_configs.digits, test_configs.build_trainer, test_configs.composed


def numbers(examples=50):
    return TensorSplit(torch.arange(examples * 2.0).view(examples, 2), torch.arange(examples))


class Streamed(Split):
    """A split that tells which streams were opened and closed, and what they were asked for."""

    def __init__(self, examples=50):
        self.split, self.opened, self.closed, self.selections = numbers(examples), 0, 0, []

    def __len__(self):
        return len(self.split)

    def batch(self, indices):
        return self.split.batch(indices)

    def to(self, device):
        return self

    def load(self, selections, *, seed):
        self.opened += 1
        try:
            for selection in selections:
                self.selections.append((selection, seed))
                yield self.batch(selection.indices)
        finally:
            self.closed += 1


def assert_same_batch(a, b):
    assert len(a) == len(b) == 2
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# in turn, from the middle, again and again, backwards, and jumping about
@pytest.mark.parametrize("steps", [range(8), range(5, 9), [3, 3, 3], range(6, -1, -1), [0, 1, 7, 8, 2, 3, 100, 0]])
@pytest.mark.parametrize(("batch_size", "repeats"), [(20, 1), (7, 1), (50, 1), (20, 3)])
@pytest.mark.parametrize("make", [numbers, Streamed])
def test_a_feed_gives_the_batch_of_any_step_whatever_was_asked_before(make, batch_size, repeats, steps):
    split = make()
    feed = Feed(split, DataOrder(50, batch_size, seed=3, repeats=repeats), seed=3, share=range(batch_size))
    for step in steps:
        expected = split.batch(DataOrder(50, batch_size, seed=3, repeats=repeats).batch(step))
        assert_same_batch(feed.batch(step), expected)


def test_a_feed_reads_on_in_one_stream_and_opens_another_only_for_a_jump():
    split = Streamed()
    feed = Feed(split, DataOrder(50, 20, seed=3), seed=7, share=range(20))
    for step, streams in ((4, 1), (5, 1), (6, 1), (6, 2), (7, 2), (2, 3), (3, 3)):
        feed.batch(step)
        assert (split.opened, split.closed) == (streams, streams - 1)
    steps = [4, 5, 6, 6, 7, 2, 3]
    for step, (selection, seed) in zip(steps, split.selections, strict=True):
        assert selection.positions.tolist() == list(range(20 * step, 20 * step + 20))
        assert seed == 7


def test_closing_stops_the_stream_and_the_feed_can_go_on_afterwards():
    split = Streamed()
    feed = Feed(split, DataOrder(50, 20, seed=3), seed=3, share=range(20))
    feed.close()  # nothing to close yet
    assert split.opened == 0
    feed.batch(0)
    feed.close()
    feed.close()
    assert (split.opened, split.closed) == (1, 1)
    assert_same_batch(feed.batch(1), split.batch(DataOrder(50, 20, seed=3).batch(1)))
    assert split.opened == 2


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 20])
def test_the_shares_of_all_ranks_are_the_batch(ranks):
    split = Streamed()
    order = DataOrder(50, 20, seed=3)
    feeds = [Feed(split, DataOrder(50, 20, seed=3), seed=3, share=share(20, rank, ranks)) for rank in range(ranks)]
    for step in (0, 1, 2, 9):
        split.selections.clear()
        parts = [feed.batch(step) for feed in feeds]
        joined = tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))
        assert_same_batch(joined, split.batch(order.batch(step)))
        # an example is augmented as it would be in the whole batch
        positions = torch.cat([selection.positions for selection, _ in split.selections])
        assert positions.tolist() == list(range(20 * step, 20 * step + 20))
        assert max(len(part[1]) for part in parts) - min(len(part[1]) for part in parts) <= 1


# ---- the order


@pytest.mark.parametrize(("examples", "repeats"), [(60, 3), (50, 3), (60, 1), (7, 2), (5, 9)])
def test_repeats_show_each_example_so_many_times_in_a_row_and_a_part_of_them_an_epoch(examples, repeats):
    order = DataOrder(examples, batch_size=1, seed=0, repeats=repeats)
    epochs = [[int(order.batch(epoch * examples + i)) for i in range(examples)] for epoch in range(3)]
    for epoch in epochs:
        runs = [(example, len(list(group))) for example, group in itertools.groupby(epoch)]
        assert len({example for example, _ in runs}) == len(runs) == -(-examples // repeats)
        assert all(length == repeats for _, length in runs[:-1])
        assert runs[-1][1] == examples - repeats * (len(runs) - 1)
    assert len({tuple(epoch) for epoch in epochs}) == 3


@pytest.mark.parametrize("batch_size", [1, 7, 20, 50])
@pytest.mark.parametrize("repeats", [1, 3])
def test_batches_cut_the_same_sequence_whatever_their_size_and_order(batch_size, repeats):
    singles = DataOrder(50, 1, seed=4, repeats=repeats)
    sequence = [int(singles.batch(i)) for i in range(200)]
    order = DataOrder(50, batch_size, seed=4, repeats=repeats)
    for step in reversed(range(200 // batch_size)):
        assert order.batch(step).tolist() == sequence[step * batch_size : (step + 1) * batch_size]


# ---- what does not fit is refused before anything is computed

MISFITS = [
    ("model=resnet_mini model.channels=3", r"mnist5k has images of shape \(1, 28, 28\), .*set model\.channels"),
    ("model=deit_mini model.image_size=32 model.patch_size=8", r"images of shape \(1, 28, 28\).*model\.image_size"),
    ("model=mlp model.inputs=100", r"images of shape \(1, 28, 28\), which the model does not take"),
    ("model=resnet_mini model.classes=7", r"mnist5k has 10 classes, but the model has 7: set model\.classes"),
    ("model=mlp model.classes=11", r"mnist5k has 10 classes, but the model has 11"),
    ("model=mlp quantizer=none estimator=ste activations=lsq", "activations=lsq goes with quantized weights"),
    ("model=mlp quantizer=none estimator=ste activations=quest", "activations=quest goes with quantized weights"),
    ("parallel=pipeline", "parallel='pipeline' is not known: choose one of data, probes"),
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
    from fogzo.data import TextData, TokenSplit

    windows = TokenSplit([torch.arange(500).remainder(7).numpy()], sequence=16)
    return TextData("words", windows, windows, vocabulary=7, sequence=16, tokenizer="none", sha256="")


def test_text_is_no_food_for_an_image_model_nor_images_for_a_language_model(build_trainer, monkeypatch):
    import fogzo.data

    monkeypatch.setattr(fogzo.data, "pydocs", lambda **options: text_data())
    with pytest.raises(ValueError, match=r"data=words holds text, .*: choose a llama for model="):
        build_trainer("data=pydocs")
    with pytest.raises(ValueError, match=r"data=mnist5k holds images, .*: choose a resnet, deit or mlp"):
        build_trainer("model=llama_mini", "data=mnist5k")


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("vocabulary", r"words has a vocabulary of 7, more than the model's 5: set model\.vocabulary=7"),
        ("sequence", r"words has a sequence of 16, more than the model's 5: set model\.sequence=16"),
    ],
)
def test_text_that_is_too_long_or_has_too_many_tokens_for_the_model_is_refused(
    key, message, build_trainer, monkeypatch
):
    import fogzo.data

    monkeypatch.setattr(fogzo.data, "pydocs", lambda **options: text_data())
    small = ("model=llama_mini", "model.layers=1", "model.width=32", "model.heads=2")
    with pytest.raises(ValueError, match=message):
        build_trainer(*small, f"model.{key}=5")
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


def test_a_compiled_model_without_a_length_is_taken_as_it_is(build_trainer):
    trainer = build_trainer("model=resnet_mini", "compile=true")
    assert trainer.forward is not trainer.model
    assert trainer.forward._orig_mod is trainer.model
