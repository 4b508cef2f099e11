"""What a run keeps an eye on: losses that jump or are no numbers, running means, and codes that flip."""

import copy
import json
import math
from itertools import pairwise

import pytest
import torch
from helpers.trainers import ESTIMATORS, QUANTIZERS, TIMES, Tell, assert_same_end, assert_same_state, make, tampered
from torch import nn

import fogzo
from fogzo.training import checkpoint
from fogzo.training.resume import resume
from fogzo.training.watch import CodeWatch, Diverged, LossWatch, Means, numbers

COLUMNS = {"step", "loss", "forwards", "backwards", "flops", "forward_equivalents", "examples", *TIMES}


def rows_of(folder):
    return [json.loads(line) for line in folder.metrics_file.read_text().splitlines()]


def event(watch, loss, step):
    """As the trainer does: raise what ends the run."""
    name, stop = watch.event(loss, step)
    if stop is not None:
        raise stop
    return name


def events(watch, losses):
    return [event(watch, loss, step) for step, loss in enumerate(losses, 1)]


@pytest.mark.parametrize("factor", [1.5, 3.0])
def test_a_spike_is_a_loss_above_so_many_times_the_running_mean(factor):
    for loss, expected in ((0.999 * factor, None), (1.001 * factor, "spike")):
        watch = LossWatch(factor, "nonfinite")
        assert events(watch, [1.0] * 20 + [loss]) == [None] * 20 + [expected]
        assert watch.row() == ({"spikes": 1} if expected else {})


def test_the_running_mean_forgets_by_2_percent_a_step():
    losses = [1.0 + 0.1 * (step % 7) for step in range(60)]
    weights = [0.98 ** (59 - step) for step in range(60)]
    mean = sum(w * loss for w, loss in zip(weights, losses, strict=True)) / sum(weights)
    for factor, expected in ((0.999, None), (1.001, "spike")):
        watch = LossWatch(3.0, "nonfinite")
        assert set(events(watch, losses)) == {None}
        assert event(watch, 3.0 * factor * mean, 61) == expected


@pytest.mark.parametrize(("factor", "mean"), [(3.0, 3.5), (1.5, 4.0), (4.0, 2.0)])
def test_a_loss_that_cannot_be_so_many_times_its_mean_jumps_by_so_many_nats(factor, mean):
    for rise, expected in ((0.999 * factor, None), (1.001 * factor, "spike")):
        assert events(LossWatch(factor, "never"), [mean] * 20 + [mean + rise])[-1] == expected


def test_a_language_model_that_falls_back_to_chance_is_noticed():
    healthy = [3.5 + 7.3 * 0.9**step + 0.1 * math.sin(step) for step in range(300)]
    assert events(LossWatch(3.0, "never"), [*healthy, 10.4]) == [None] * 300 + ["spike"]


def test_scatter_is_no_spike_nor_is_a_rise_of_half_a_nat():
    generator = torch.Generator().manual_seed(0)
    scattered = (-torch.rand(1000, 3, generator=generator).log().sum(1) * 0.4 / 3).tolist()
    assert max(scattered) > 3 * sum(scattered) / len(scattered)  # the factor alone would take it for one
    assert set(events(LossWatch(3.0, "never"), scattered)) == {None}
    assert events(LossWatch(3.0, "never"), [*scattered, 2.3])[-1] == "spike"
    for loss, expected in ((0.53, None), (0.55, "spike")):
        assert events(LossWatch(3.0, "never"), [0.04] * 50 + [loss])[-1] == expected


def test_the_deviation_is_that_of_losses_from_the_mean_before_them():
    losses = [1.0 + 0.3 * (-1) ** step for step in range(60)]
    means = [
        None,
        *(sum(0.98 ** (n - 1 - i) * losses[i] for i in range(n)) * 0.02 / (1 - 0.98**n) for n in range(1, 61)),
    ]
    squares = [0.0, *((losses[n] - means[n]) ** 2 for n in range(1, 60))]
    deviation = math.sqrt(sum(0.98 ** (59 - n) * squares[n] for n in range(60)) * 0.02 / (1 - 0.98**60))
    for factor, expected in ((0.999, None), (1.001, "spike")):
        watch = LossWatch(1.1, "never")
        events(watch, losses)
        assert event(watch, means[60] + 6.0 * factor * deviation, 61) == expected


def test_there_are_no_spikes_before_the_20_steps_of_warm_up_nor_without_a_factor():
    assert set(events(LossWatch(3.0, "spike"), [1.0] * 19 + [1e9])) == {None}
    assert set(events(LossWatch(0.0, "spike"), [1.0] * 50 + [1e9])) == {None}


def test_a_loss_that_is_no_number_is_counted_and_leaves_the_mean_alone():
    watch, other = LossWatch(3.0, "never"), LossWatch(3.0, "never")
    losses = [1.0] * 20
    assert events(watch, [*losses, torch.nan, torch.inf, -torch.inf, 2.9, 9.0]) == (
        [None] * 20 + ["nonfinite"] * 3 + [None, "spike"]
    )
    assert events(other, [*losses, 2.9, 9.0])[-2:] == [None, "spike"]
    assert watch.row() == {"spikes": 1, "nonfinite": 3}
    assert (watch.smoothed, watch.squared, watch.seen) == (other.smoothed, other.squared, other.seen)


@pytest.mark.parametrize("stop_on", ["nonfinite", "spike", "never"])
def test_stop_on_says_what_ends_a_run(stop_on):
    watch = LossWatch(3.0, stop_on)
    events(watch, [1.0] * 20)
    if stop_on == "spike":
        with pytest.raises(Diverged, match=r"jumped to 5 at step 21, from a mean of 1 \(spike_factor=3.0\)"):
            event(watch, 5.0, 21)
    else:
        assert event(watch, 5.0, 21) == "spike"
    if stop_on == "never":
        assert event(watch, float("nan"), 22) == "nonfinite"
    else:
        with pytest.raises(Diverged, match="the loss is nan at step 22"):
            event(watch, float("nan"), 22)
    assert (watch.spikes, watch.nonfinite) == (1, 1)


@pytest.mark.parametrize("cut", [0, 5, 20, 23])
def test_a_watch_goes_on_from_its_state(cut):
    losses = [1.0 / (1 + step) for step in range(22)] + [9.0, torch.nan, 9.0, 0.1]
    whole = LossWatch(3.0, "never")
    expected = events(whole, losses)
    first, second = LossWatch(3.0, "never"), LossWatch(3.0, "never")
    got = events(first, losses[:cut])
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert got + events(second, losses[cut:]) == expected
    assert second == whole
    assert {"spike", "nonfinite", None} == set(expected)


def test_means_leave_out_what_is_missing_or_no_number():
    means = Means()
    for loss, beta in ((1.0, None), (torch.nan, 0.5), (4.0, 1.0), (torch.inf, None)):
        means.add(loss=loss, beta=beta)
    assert means.row() == {"loss": 2.5, "beta": 0.75}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_a_step_saw_is_read_at_once_and_to_the_last_bit(dtype, monkeypatch):
    copies = []
    monkeypatch.setattr(torch.Tensor, "tolist", lambda t, read=torch.Tensor.tolist: (copies.append(t), read(t))[1])
    values = {"loss": torch.tensor(1 / 3, dtype=dtype), "beta": 0.1, "agreement": None, "norm": torch.tensor(2 / 7)}
    values["nan"] = torch.tensor(torch.nan)
    read = numbers(values)
    assert list(read) == list(values)
    assert len(copies) == 1
    assert math.isnan(read.pop("nan"))
    assert read == {"loss": values["loss"].item(), "beta": 0.1, "agreement": None, "norm": values["norm"].item()}
    assert numbers({"beta": 0.5, "loss": None}) == {"beta": 0.5, "loss": None}


# ---- the watch in a run


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_spike_is_logged_and_the_run_goes_on_as_if_there_had_been_none(estimator, open_run):
    options = {"estimator": estimator, "steps": 24, "log_every": 12, "quantizer": "lsq"}
    quiet = make(folder=open_run("quiet"), **options)
    quiet.fit()
    trainer = tampered([22], lambda loss: loss + 1000, folder=open_run(), **options)  # the gradient stays as it is
    told = Tell(0, None)
    trainer.reporters = [told]
    trainer.fit()
    rows = rows_of(trainer.folder)
    assert [(row["step"], row.get("event")) for row in rows] == [(12, None), (22, "spike"), (24, None)]
    assert all(row.keys() >= COLUMNS for row in rows)
    assert rows[1]["loss"] > 1000
    assert [row.get("spikes") for row in rows] == [None, 1, 1]
    assert [row["examples"] for row in rows] == [240, 440, 480]
    assert told.rows == rows
    weights = zip(trainer.model.parameters(), quiet.model.parameters(), strict=True)
    if estimator == "ste":  # a probe's small differences lose bits beside 1000
        assert all(torch.equal(p, q) for p, q in weights)


def test_a_spike_ends_the_run_where_stop_on_says_so_and_a_resumed_run_has_not_forgotten_the_mean(open_run):
    options = {"steps": 24, "stop_on": "spike", "checkpoint_every": 10}
    with pytest.raises(Diverged, match=r"jumped to 1.* at step 22, from a mean of"):
        tampered([22], lambda loss: loss + 1000, folder=open_run(), **options).fit()
    assert checkpoint.load(open_run().checkpoint_file)["step"] == 20
    again = tampered([22], lambda loss: loss + 1000, folder=open_run(), **options)
    assert resume(again)
    with pytest.raises(Diverged, match="at step 22"):  # two steps after the start: the warm-up counts on
        again.fit()
    tampered([22], lambda loss: loss + 1000, **options | {"spike_factor": 0.0}).fit()


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_with_stop_on_never_a_step_without_a_finite_loss_changes_no_weight(estimator, optimizer, open_run):
    options = {"estimator": estimator, "optimizer": optimizer, "quantizer": "lsq", "stop_on": "never", "steps": 5}
    for change in (lambda loss: loss * torch.nan, lambda loss: loss + torch.inf):
        trainer = tampered([3], change, folder=open_run(f"{change(torch.tensor(1.0))}"), **options)
        states = []

        def remember(trainer=trainer, states=states):
            kept = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
            states.append({"weights": kept, "optimizer": copy.deepcopy(trainer.optimizer.state_dict()["state"])})

        trainer.reporters = [Tell(step, remember) for step in range(1, 6)]
        metrics = trainer.fit()
        assert_same_state(states[2], states[1])
        for before, after in ((0, 1), (2, 3), (3, 4)):
            assert not torch.equal(states[before]["weights"]["3.weight"], states[after]["weights"]["3.weight"])
        assert all(0 <= value < 1000 for value in metrics.values())
        rows = rows_of(trainer.folder)
        events_seen = [row for row in rows if "event" in row]
        assert [(row["step"], row["event"], row["loss"], row["nonfinite"]) for row in events_seen] == [
            (3, "nonfinite", None, 1)
        ]
        assert all(row.keys() >= COLUMNS for row in rows)
        assert [row["step"] for row in rows if "event" not in row] == [1, 2, 3, 4, 5]


def test_a_run_that_skips_steps_ends_bit_for_bit_the_same_after_a_resume(open_run):
    def start(name, **more):
        options = {"stop_on": "never", "steps": 6, "checkpoint_every": 1, "quantizer": "lsq", "estimator": "fogzo"}
        return tampered([2, 4], lambda loss: loss * torch.nan, folder=open_run(name), **options | more)

    whole = start("whole")
    whole.fit()
    for killed_after in (2, 3, 4, 5):
        first = start(f"{killed_after}", reporters=[Tell(killed_after, lambda: 1 / 0)])
        with pytest.raises(ZeroDivisionError):
            first.fit()
        again = start(f"{killed_after}")
        assert resume(again)
        again.fit()
        assert_same_end(again, whole)
        assert again.diary.watch == whole.diary.watch


# ---- codes that flip


def codes_of(trainer):
    with torch.no_grad():
        weights = fogzo.quantized_weights(trainer.model)
        return torch.cat([weight.quantizer.codes(weight.latent).flatten() for weight in weights])


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_each_row_says_how_many_codes_changed_since_the_row_before(estimator, quantizer, open_run):
    trainer = make(estimator, quantizer, folder=open_run(), steps=7, log_every=3)
    codes = [codes_of(trainer)]
    trainer.reporters = [Tell(step, lambda: codes.append(codes_of(trainer))) for step in (3, 6, 7)]
    trainer.fit()
    changed = [int((before != after).sum()) for before, after in pairwise(codes)]
    rows = rows_of(trainer.folder)
    assert [row["flips"] for row in rows] == changed
    assert [row["flip_share"] for row in rows] == [count / codes[0].numel() for count in changed]
    assert sum(changed) > 0


def test_counting_flips_changes_no_weight_and_without_codes_there_are_none(open_run):
    watched, unwatched = make("fogzo", "quest", folder=open_run("a")), make("fogzo", "quest", folder=open_run("b"))
    unwatched.codes = CodeWatch([])
    assert watched.fit() == unwatched.fit()
    assert_same_state(watched.state_dict()["model"], unwatched.state_dict()["model"])
    counted = {"flips", "flip_share"}
    rows, rows_without = rows_of(watched.folder), rows_of(unwatched.folder)
    assert [row.keys() - counted for row in rows] == [row.keys() for row in rows_without]
    assert all(counted <= row.keys() for row in rows)


def test_a_checkpoint_from_before_flips_were_counted_is_gone_on_from_and_counts_from_its_next_row(open_run):
    whole = make("fogzo", "lsq", folder=open_run("whole"))
    whole.fit()
    with pytest.raises(ZeroDivisionError):
        make("fogzo", "lsq", folder=open_run(), checkpoint_every=2, reporters=[Tell(3, lambda: 1 / 0)]).fit()
    folder = open_run()
    state = checkpoint.load(folder.checkpoint_file)
    assert {codes.dtype for codes in state.pop("codes")} == {torch.int8}
    checkpoint.save(folder.checkpoint_file, state)
    again = make("fogzo", "lsq", folder=folder)
    assert resume(again)
    again.fit()
    flips = [row.get("flips") for row in rows_of(whole.folder)]
    assert [row.get("flips") for row in rows_of(folder)] == [*flips[:2], None, *flips[3:]]
    assert_same_state(again.state_dict()["model"], whole.state_dict()["model"])


@pytest.mark.parametrize("quantizer", [fogzo.FixedScale(8, scale=0.01), fogzo.LSQ(8), fogzo.QuEST(8), fogzo.QuEST(1)])
def test_codes_of_any_width_are_told_apart_in_a_byte(quantizer):
    model = fogzo.quantize_model(nn.Sequential(nn.Linear(64, 64)), quantizer)
    (weight,) = fogzo.quantized_weights(model)
    watch = CodeWatch([weight])
    with torch.no_grad():
        weight.latent.copy_(torch.linspace(-2, 2, 4096).view(64, 64))  # all codes, with many at either end
        before = weight.quantizer.codes(weight.latent)
        assert watch.row() == {}
        weight.latent.copy_(weight.latent.roll(5))
        after = weight.quantizer.codes(weight.latent)
    flips = int((before != after).sum())
    assert watch.row() == {"flips": flips, "flip_share": flips / 4096}
    assert watch.row() == {"flips": 0, "flip_share": 0.0}
