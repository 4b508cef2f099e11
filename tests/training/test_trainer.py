"""The loop: what a step costs, what is evaluated, and a stopped run that ends bit for bit where a whole one ends."""

import copy
import json
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.configs import composed
from helpers.trainers import (
    ESTIMATORS,
    OPTIMIZERS,
    QUANTIZERS,
    TIMES,
    Tell,
    assert_same_end,
    assert_same_state,
    make,
    outcome,
)
from torch import nn

from fogzo.data import TensorSplit, TextData, TokenSplit, mnist5k
from fogzo.errors import UserError
from fogzo.estimators.probes import Probes
from fogzo.models import llama, mlp
from fogzo.training import checkpoint
from fogzo.training import closure as closure_module
from fogzo.training.build import build
from fogzo.training.launch import train
from fogzo.training.resume import resume
from fogzo.training.tasks import Classification, LanguageModelling, task_of
from fogzo.training.watch import Diverged


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("quantizer", ["fixed", "lsq"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_killed_run_ends_bit_for_bit_where_the_unkilled_one_ends(estimator, quantizer, optimizer, open_run):
    settings = {"evaluate_every": 4, "log_every": 3, "steps": 7}
    chosen = (estimator, quantizer, optimizer)
    whole = make(*chosen, folder=open_run("whole"), **settings)
    metrics = whole.fit()
    for saved, (killed_after, every) in enumerate([(1, 1), (2, 1), (3, 1), (6, 3), (5, 1), (7, 5), (7, 1)]):
        first = make(*chosen, folder=open_run(f"{saved}"), reporters=[Tell(killed_after, lambda: 1 / 0)], **settings)
        first.settings = replace(first.settings, checkpoint_every=every)
        with pytest.raises(ZeroDivisionError):
            first.fit()
        again = make(*chosen, folder=open_run(f"{saved}"), **settings)
        assert resume(again) == (saved > 0)
        assert again.step == saved
        assert again.fit() == metrics
        assert_same_end(again, whole)


def test_a_run_without_a_checkpoint_begins_anew_and_drops_old_rows(open_run):
    folder = open_run()
    folder.log({"step": 99})
    trainer = make(folder=folder)
    assert not resume(trainer)
    trainer.fit()
    assert [row["step"] for row in outcome(trainer)[0]] == [1, 2, 3, 4, 5, 6]
    assert not resume(make())  # nor is there one without a folder


def test_the_time_that_steps_wait_for_data_is_kept_apart_and_goes_on_with_the_run(open_run):
    def slow(trainer):
        batch = trainer.feed.batch
        trainer.feed.batch = lambda step: (time.sleep(0.02), batch(step))[1]
        return trainer

    with pytest.raises(ZeroDivisionError):
        slow(make(folder=open_run(), checkpoint_every=2, reporters=[Tell(3, lambda: 1 / 0)])).fit()
    again = make(folder=open_run())
    resume(again)
    waited = again.ledger.data_seconds
    assert 0.04 <= waited < again.ledger.seconds
    slow(again).fit()
    last = json.loads(again.folder.metrics_file.read_text().splitlines()[-1])
    assert waited + 0.08 <= last["data_seconds"] == again.ledger.data_seconds < last["seconds"]


def test_the_time_that_a_process_computes_is_recorded_and_goes_on_with_the_run(open_run, monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr("fogzo.training.trainer.time.process_time", lambda: next(clock))
    with pytest.raises(ZeroDivisionError):
        make(folder=open_run(), checkpoint_every=2, reporters=[Tell(3, lambda: 1 / 0)]).fit()
    again = make(folder=open_run())
    resume(again)
    assert again.ledger.cpu_seconds == 2
    again.fit()
    assert json.loads(again.folder.metrics_file.read_text().splitlines()[-1])["cpu_seconds"] == 6


@pytest.mark.parametrize("place", ["loss", "evaluation"])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(place, open_run):
    trainer = make(folder=open_run(), checkpoint_every=1, evaluate_every=3)
    data = trainer.task.data
    part, example = (data.train, trainer.order.batch(2)[0]) if place == "loss" else (data.test, 0)
    part.inputs[example] = torch.nan  # seen by the third step, or by the evaluation after it
    with pytest.raises(Diverged, match=r"nan.*step 3"):
        trainer.fit()
    assert [row["step"] for row in outcome(trainer)[0]][:2] == [1, 2]
    assert checkpoint.load(trainer.folder.checkpoint_file)["step"] == 2


def test_the_losses_of_micro_batches_are_added_in_fp64():
    trainer = make(micro_batches=4)
    split = trainer.task.data.train
    batches = [split.batch(torch.arange(first, first + 20)) for first in range(0, 40, 4)]
    losses = [closure_module.BatchClosure(trainer, batch)(backward=False) for batch in batches]
    assert {loss.dtype for loss in losses} == {torch.float64}
    assert any(float(loss) != float(loss.float()) for loss in losses)  # fp32 would have lost a bit


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_micro_batches_give_the_step_of_the_whole_batch(estimator):
    def train(micro_batches):
        trainer = make(estimator, dtype=torch.float64, micro_batches=micro_batches, clip_norm=0.5)
        trainer.model[1], trainer.model[2] = nn.Identity(), nn.Identity()  # these look at batches as a whole
        estimates = [trainer.train_step(step) for step in range(3)]
        return trainer, torch.stack([estimate.loss for estimate in estimates])

    (whole, losses), (pieces, losses_of_pieces) = train(1), train(5)
    torch.testing.assert_close(losses_of_pieces, losses, rtol=1e-9, atol=0)
    for p, q in zip(whole.model.parameters(), pieces.model.parameters(), strict=True):
        torch.testing.assert_close(q, p, rtol=1e-6, atol=1e-9)
    assert pieces.ledger.row() | TIMES == whole.ledger.row() | TIMES


def test_clipping_bounds_the_norm_of_all_gradients_together():
    lengths = {}
    for clip_norm in (0.0, 0.01):
        trainer = make(clip_norm=clip_norm)
        trainer.train_step(0)
        lengths[clip_norm] = torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in trainer.model.parameters()]))
    assert lengths[0.0] > 0.1
    assert lengths[0.01].item() == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("probe_batch", [0, 2])
@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("estimator", ["fogzo", "nspsa"])
def test_bf16_runs_near_fp32_and_keeps_the_weights_in_fp32(estimator, quantizer, probe_batch):
    losses = []
    for precision in ("fp32", "bf16"):
        trainer = make(estimator, quantizer, precision=precision, samples=3, probe_batch=probe_batch)
        losses.append(trainer.train_step(0).loss)
        tensors = [*trainer.model.parameters(), *(p.grad for p in trainer.model.parameters())]
        assert {tensor.dtype for tensor in tensors} == {torch.float32}
    assert losses[0] != losses[1]
    torch.testing.assert_close(losses[1].float(), losses[0], rtol=0.05, atol=0.05)


def test_evaluation_leaves_the_training_state_untouched(open_run):
    trainer = make("fogzo", "lsq")
    trainer.train_step(0)
    before, generator = copy.deepcopy(trainer.state_dict()), torch.get_rng_state()
    first = trainer.task.evaluate(trainer.model)
    assert trainer.model.training
    assert_same_state(trainer.state_dict(), before)
    assert torch.equal(torch.get_rng_state(), generator)
    assert trainer.task.evaluate(trainer.model) == first
    assert Classification(trainer.task.data, evaluation_batch=7).evaluate(trainer.model) == pytest.approx(first)
    often, seldom = make(folder=open_run("often"), evaluate_every=1), make(folder=open_run("seldom"))
    assert often.fit() == seldom.fit()
    assert_same_state(often.state_dict()["model"], seldom.state_dict()["model"])


@pytest.mark.parametrize(("examples", "train", "test"), [(None, 4_000, 1_000), (100, 100, 100), (2_000, 2_000, 1_000)])
def test_as_many_images_are_evaluated_as_asked_for(examples, train, test, monkeypatch):
    data = mnist5k()
    task = task_of(data, evaluation_examples=examples)
    seen = []
    take = TensorSplit.batch
    monkeypatch.setattr(TensorSplit, "batch", lambda split, indices: (seen.append(indices), take(split, indices))[1])
    task.evaluate(mlp())
    training, tested = (sorted(i for part in seen[:-1] for i in part.tolist()), seen[-1].tolist())
    assert (len(set(training)), len(set(tested))) == (train, test)


@pytest.mark.parametrize("faster", ["one by one", "together"])
def test_auto_times_both_ways_of_probing_once_and_keeps_the_faster_in_state_and_record(faster, tmp_path, monkeypatch):
    clock, slow = [0.0], {"one by one": "together", "together": "one_by_one"}[faster]
    whole = getattr(Probes, slow)
    monkeypatch.setattr(closure_module, "time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def slowly(*given, **named):
        clock[0] += 1.0
        return whole(*given, **named)

    monkeypatch.setattr(Probes, slow, slowly)
    keys = ["estimator.samples=3", "batch_size=20", "steps=4", "evaluate_every=0", "device=cpu", "checkpoint_every=2"]
    chosen = {"one by one": 0, "together": 3}[faster]
    auto = train(composed(*keys, "estimator.probe_batch=auto", f"run_dir={tmp_path / 'auto'}"))
    given = train(composed(*keys, f"estimator.probe_batch={chosen}", f"run_dir={tmp_path / 'given'}"))
    assert auto["probe_batch"] == chosen
    assert "probe_batch" not in given
    assert [auto[key] for key in ("train_loss", "forwards", "flops")] == [
        given[key] for key in ("train_loss", "forwards", "flops")
    ]
    one = build(composed(*keys, "estimator.probe_batch=auto"))
    one.estimator.load_state_dict({"probe_batch": chosen, "undecided": False})
    clock[0] = 0.0
    closure_module.choose_probes(one)  # a resumed run measures nothing
    assert (clock[0], one.estimator.probe_batch) == (0.0, chosen)


def test_auto_is_refused_where_nobody_could_choose():
    with pytest.raises(UserError, match="probe_batch=auto: estimator=phased cannot choose; give a number"):
        build(composed("estimator=phased", "estimator.probe_batch=auto"))


def text(vocabulary, sequence, tokens=700):
    shard = np.random.default_rng(0).integers(0, min(vocabulary, 64), tokens).astype(np.uint16)
    splits = TokenSplit([shard], sequence), TokenSplit([shard[::-1].copy()], sequence)
    return TextData("made up", *splits, vocabulary=vocabulary, sequence=sequence, tokenizer="", sha256="")


@pytest.mark.parametrize(("vocabulary", "sequence", "windows"), [(2048, 128, 128), (50304, 512, 8), (200_000, 4096, 8)])
def test_evaluation_takes_several_windows_at_a_time(vocabulary, sequence, windows):
    assert LanguageModelling(text(vocabulary, sequence)).evaluation_batch == windows


def test_evaluation_does_not_depend_on_how_many_windows_are_taken_at_a_time():
    model = llama(layers=1, width=16, heads=2, vocabulary=64, sequence=16)
    data = text(64, 16)
    found = [LanguageModelling(data, 16 * 30, evaluation_batch=size).evaluate(model) for size in (1, 8, 7, 1000)]
    for metrics in found[1:]:
        assert metrics == pytest.approx(found[0], rel=1e-6)
    inputs, targets = data.test.batch(torch.arange(30) * len(data.test) // 30)
    logits = model(input_ids=inputs).logits.detach()
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    assert found[0]["test_loss"] == pytest.approx(float(loss), rel=1e-6)
    assert found[0]["perplexity"] == pytest.approx(float(loss.exp()), rel=1e-5)
