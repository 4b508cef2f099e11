"""What a run keeps an eye on: losses that jump or are no numbers, and the checkpoints that it can go back to."""

import copy
import errno
import json
import math
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.tampered import tampered
from helpers.trainers import ESTIMATORS, TIMES, Tell, assert_same_end, assert_same_state, make, outcome

from fogzo.data import TensorSplit
from fogzo.runs.folder import RunError, RunFolder
from fogzo.training import checkpoint
from fogzo.training.signals import Interrupted
from fogzo.training.tasks import Classification
from fogzo.training.watch import STOP_ON, Diverged, LossWatch, Means, numbers

COLUMNS = {"step", "loss", "forwards", "backwards", "flops", "forward_equivalents", "examples", *TIMES}


def rows_of(folder):
    return [json.loads(line) for line in folder.metrics_file.read_text().splitlines()]


# ---- the watch


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


@pytest.mark.parametrize("stop_on", STOP_ON)
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
    read = numbers(**values)
    assert list(read) == list(values)
    assert len(copies) == 1
    assert math.isnan(read.pop("nan"))
    assert read == {"loss": values["loss"].item(), "beta": 0.1, "agreement": None, "norm": values["norm"].item()}
    assert numbers(beta=0.5, loss=None) == {"beta": 0.5, "loss": None}


@pytest.mark.parametrize("estimator", ["fogzo", "nspsa"])
def test_a_step_reads_one_tensor(estimator, monkeypatch):
    trainer = make(estimator)
    trainer.fit()
    reads = []
    for name in ("__bool__", "__float__", "item", "tolist"):
        true = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda t, true=true, name=name: (reads.append(name), true(t))[1])
    estimate = trainer.train_step(0)
    assert [read for read in reads if read != "item"] == []  # the seeds of dropout and order are on the CPU
    reads.clear()
    trainer._observe(estimate)
    assert reads == ["tolist"]


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
    assert again.resume()
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
        assert again.resume()
        again.fit()
        assert_same_end(again, whole)
        assert again.watch == whole.watch


# ---- checkpoints


def names_in(folder):
    return sorted(file.name for file in folder.path.glob("*.pt"))


def test_the_last_three_checkpoints_are_kept_and_a_run_goes_on_from_the_newest_or_an_older_one(open_run):
    options = {"quantizer": "lsq", "estimator": "fogzo", "steps": 7}
    whole = make(folder=open_run("whole"), **options)
    whole.fit()
    options |= {"checkpoint_every": 1, "keep_checkpoints": 3}
    first = make(folder=open_run(), reporters=[Tell(6, lambda: 1 / 0)], **options)
    with pytest.raises(ZeroDivisionError):
        first.fit()
    kept = [f"checkpoint-{step:09d}.pt" for step in (3, 4, 5)]
    assert names_in(first.folder) == [*kept, "checkpoint.pt"]
    assert [checkpoint.load(first.folder.path / name)["step"] for name in kept] == [3, 4, 5]
    newest = first.folder.checkpoint_file.read_bytes()
    assert (first.folder.path / kept[-1]).read_bytes() == newest
    older = (first.folder.path / kept[0]).read_bytes()

    again = make(folder=open_run(), **options)
    assert again.resume()
    assert again.step == 5
    again.fit()
    assert_same_end(again, whole)
    assert names_in(again.folder) == [f"checkpoint-{step:09d}.pt" for step in (4, 5, 6)] + ["checkpoint.pt"]

    again.folder.checkpoint_file.write_bytes(older)
    once_more = make(folder=open_run(), **options)
    assert once_more.resume()
    assert once_more.step == 3
    once_more.fit()
    assert_same_end(once_more, whole)


def test_checkpoints_are_kept_on_file_systems_without_hard_links(open_run, monkeypatch):
    def refuse(self, target):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    trainer = make(folder=open_run(), checkpoint_every=2, keep_checkpoints=2, steps=7)
    trainer.fit()
    assert names_in(trainer.folder) == ["checkpoint-000000004.pt", "checkpoint-000000006.pt", "checkpoint.pt"]
    assert [checkpoint.load(trainer.folder.path / f"checkpoint-00000000{step}.pt")["step"] for step in (4, 6)] == [4, 6]


class Scripted(Classification):
    """Evaluations whose metric is given, step by step."""

    def __init__(self, data, script, higher_is_better):
        super().__init__(data)
        self.script, self.higher_is_better, self.trainer = script, higher_is_better, None

    def evaluate(self, model):
        return super().evaluate(model) | {"accuracy": self.script[self.trainer.step - 1]}


# after step 1, 2, ...: the best one comes before, at, and after the steps where the run is cut; ties keep the first
SCRIPTS = [([1, 9, 3, 9, 5, 6], True, 2), ([1, 2, 3, 9, 5, 6], True, 4), ([1, 2, 3, 4, 5, 6], True, 6)]
SCRIPTS += [([1, 9, 3, 9, 5, 1], False, 1), ([9, 9, 3, 2, 5, 6], False, 4)]


@pytest.mark.parametrize(("script", "higher_is_better", "best"), SCRIPTS)
@pytest.mark.parametrize("killed_after", [None, 2, 3, 5])
def test_the_weights_of_the_best_evaluation_are_kept_also_over_a_resume(
    killed_after, script, higher_is_better, best, open_run
):
    states = {}

    def start(name, kill=None):
        trainer = make("fogzo", "lsq", folder=open_run(name), evaluate_every=1, checkpoint_every=2, keep_best=True)
        trainer.task = Scripted(trainer.task.data, script, higher_is_better)
        trainer.task.trainer = trainer

        def remember():
            states[trainer.step] = {name: value.clone() for name, value in trainer.model.state_dict().items()}

        trainer.reporters = [Tell(step, remember) for step in range(1, 7)] + [Tell(kill, lambda: 1 / 0)]
        return trainer

    if killed_after is not None:
        with pytest.raises(ZeroDivisionError):
            start("run", killed_after).fit()
    trainer = start("run")
    trainer.resume()
    trainer.fit()
    kept = torch.load(trainer.folder.path / "best.pt", weights_only=True)
    assert_same_state(dict(kept), states[best])
    assert trainer.best == script[best - 1]


def test_nothing_is_kept_of_the_best_evaluation_unless_asked_for(open_run):
    trainer = make(folder=open_run(), evaluate_every=1)
    trainer.fit()
    assert "best.pt" not in names_in(trainer.folder)
    assert trainer.best == max(row["accuracy"] for row in rows_of(trainer.folder))


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no such signals here")
@pytest.mark.parametrize(("name", "at"), [("SIGUSR1", 1), ("SIGUSR1", 4), ("SIGUSR2", 2)])
def test_a_user_signal_saves_first_and_the_run_goes_on_from_there(name, at, open_run):
    number = signal.Signals[name]
    before = signal.getsignal(number)
    whole = make("fogzo", "lsq", folder=open_run("whole"))
    whole.fit()
    stop = Tell(at, lambda: signal.raise_signal(number))
    with pytest.raises(Interrupted, match=f"{name} after step {at}; the same command goes on") as caught:
        make("fogzo", "lsq", folder=open_run(), reporters=[stop]).fit()
    assert caught.value.code == 128 + number
    assert stop.closed == 1
    assert signal.getsignal(number) == before
    again = make("fogzo", "lsq", folder=open_run())
    assert again.resume()
    assert again.step == at
    again.fit()
    assert_same_end(again, whole)


@pytest.fixture
def handler():
    """Sets a handler as submitit does, and puts the one before back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)}
    yield signal.signal
    for number, old in before.items():
        signal.signal(number, old)


@pytest.mark.skipif(not hasattr(signal, "SIGUSR2"), reason="no such signal here")
def test_a_handler_that_requeues_gets_the_signal_when_the_step_is_saved(open_run, handler):
    folder, seen = open_run(), []

    def requeue(number, frame):
        seen.append((number, checkpoint.load(folder.checkpoint_file)["step"]))
        raise SystemExit(144)

    handler(signal.SIGUSR2, requeue)
    stop = Tell(3, lambda: signal.raise_signal(signal.SIGUSR2))
    with pytest.raises(SystemExit, match="144"):
        make("fogzo", "lsq", folder=folder, reporters=[stop], checkpoint_every=0).fit()
    assert seen == [(signal.SIGUSR2, 3)]
    assert signal.getsignal(signal.SIGUSR2) == requeue
    assert stop.closed == 1


def test_a_handler_that_only_notes_the_signal_lets_the_run_go_on_with_its_state_saved(open_run, handler):
    folder, seen = open_run(), []
    handler(signal.SIGTERM, lambda number, frame: seen.append(checkpoint.load(folder.checkpoint_file)["step"]))
    stops = [Tell(step, lambda: signal.raise_signal(signal.SIGTERM)) for step in (2, 4, 6)]
    make(folder=folder, reporters=stops, checkpoint_every=0).fit()
    assert seen == [2, 4]  # the last one came with the end


def test_a_checkpoint_of_another_number_of_ranks_is_refused_and_the_rows_are_kept(open_run):
    trainer = make(folder=open_run(), steps=2)
    trainer.fit()
    trainer.save()
    state = checkpoint.load(trainer.folder.checkpoint_file)
    assert state["ranks"] == 1
    checkpoint.save(trainer.folder.checkpoint_file, state | {"ranks": 2})
    rows = outcome(trainer)[0]
    again = make(folder=open_run(), steps=2)
    with pytest.raises(RunError, match=r"made by 2 ranks, but there are 1 now: start the run with as many processes"):
        again.resume()
    assert again.step == 0
    assert [row | TIMES for row in rows_of(again.folder)] == rows


def test_a_checkpoint_of_another_kind_of_device_is_refused(open_run):
    trainer = make(folder=open_run(), steps=2)
    trainer.save()
    state = checkpoint.load(trainer.folder.checkpoint_file)
    assert state["device"] == "cpu"
    checkpoint.save(trainer.folder.checkpoint_file, state | {"device": "cuda"})
    with pytest.raises(RunError, match=r"another kind of device \(cuda → cpu\).*: choose device=cuda"):
        trainer.resume()


def test_a_checkpoint_made_with_other_data_is_refused_by_what_differs(open_run):
    whole = make(folder=open_run("whole"), steps=4)
    whole.fit()
    with pytest.raises(ZeroDivisionError):
        make(folder=open_run(), steps=4, checkpoint_every=2, reporters=[Tell(3, lambda: 1 / 0)]).fit()
    kept = open_run().checkpoint_file.read_bytes()
    again = make(folder=open_run(), steps=4)
    same = again.task.data
    again.task.data = replace(same, train=TensorSplit(same.train.inputs[:50], same.train.targets[:50]), sha256="f00")
    rows = again.folder.metrics_file.read_bytes()
    with pytest.raises(RunError, match=r"made with other data \(train: 60 → 50; sha256:  → f00\): give back the old"):
        again.resume()
    assert (again.step, again.folder.metrics_file.read_bytes()) == (0, rows)
    assert again.folder.checkpoint_file.read_bytes() == kept

    state = checkpoint.load(again.folder.checkpoint_file)
    del state["data"], state["device"]  # as the first checkpoints were
    checkpoint.save(again.folder.checkpoint_file, state)
    for data in (same, replace(same, sha256="f00")):
        again.task.data = data
        assert again.resume()
    again.fit()
    assert_same_end(again, whole)


def test_a_resumed_run_computes_with_as_many_threads_as_before_and_says_so(open_run):
    with pytest.raises(ZeroDivisionError):
        make(folder=open_run(), steps=4, checkpoint_every=2, reporters=[Tell(3, lambda: 1 / 0)]).fit()
    torch.set_num_threads(2)
    again = make(folder=open_run(), steps=4)
    assert again.resume()
    assert torch.get_num_threads() == 1
    assert again.notes == ["computing with 1 CPU threads, as before, not with 2: the bits would differ"]

    state = checkpoint.load(again.folder.checkpoint_file)
    del state["threads"]  # as the first checkpoints were
    checkpoint.save(again.folder.checkpoint_file, state)
    for count in (1, 2):
        torch.set_num_threads(count)
        old = make(folder=open_run(), steps=4)
        assert old.resume()
        assert (torch.get_num_threads(), old.notes) == (count, [])


DAMAGE = {
    "some bytes": lambda data: data[:5000] + bytes(byte ^ 255 for byte in data[5000:5200]) + data[5200:],
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "text": lambda data: b"not a checkpoint",
}


def replace_by(content, *files):
    for file in files:
        file.unlink()  # not through the hard link
        if content is not None:
            file.write_bytes(content)


@pytest.mark.parametrize("kind", [*DAMAGE, "gone"])
def test_a_run_goes_on_from_the_newest_checkpoint_that_can_be_read_and_ends_with_the_same_bits(kind, open_run):
    options = {"quantizer": "lsq", "checkpoint_every": 1, "keep_checkpoints": 3}
    whole = make(folder=open_run("whole"), **options)
    whole.fit()
    with pytest.raises(ZeroDivisionError):
        make(folder=open_run(), reporters=[Tell(5, lambda: 1 / 0)], **options).fit()
    folder = open_run()
    damaged = None if kind == "gone" else DAMAGE[kind](folder.checkpoint_file.read_bytes())
    third, fourth = (folder.path / f"checkpoint-{step:09d}.pt" for step in (3, 4))
    replace_by(damaged, folder.checkpoint_file, fourth)

    other_rank = make(**options)  # it reads the folder, and leaves it as it is
    before = {file.name: file.read_bytes() for file in folder.path.glob("*.pt")}
    assert other_rank.resume(RunFolder.view(folder.path, folder.config))
    assert {file.name: file.read_bytes() for file in folder.path.glob("*.pt")} == before

    again = make(folder=folder, **options)
    assert again.resume()
    assert again.step == other_rank.step == 3
    (note,) = again.notes
    assert note.endswith(f"going on from {third.name}, the newest that can be read")
    assert ("there is no checkpoint.pt" in note) == (kind == "gone")
    if kind != "gone":
        assert f"checkpoint.pt, {fourth.name} cannot be read" in note
        for name in ("checkpoint.pt", fourth.name):
            assert (folder.path / f"{name}.damaged").read_bytes() == damaged
    assert third.exists()
    again.fit()
    assert_same_end(again, whole)
    assert names_in(folder) == [f"checkpoint-{step:09d}.pt" for step in (3, 4, 5)] + ["checkpoint.pt"]


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_run_whose_checkpoints_are_all_damaged_is_refused_and_nothing_is_touched(kind, open_run):
    options = {"checkpoint_every": 1, "keep_checkpoints": 2}
    with pytest.raises(ZeroDivisionError):
        make(folder=open_run(), reporters=[Tell(4, lambda: 1 / 0)], **options).fit()
    folder = open_run()
    files = [folder.path / name for name in names_in(folder)]
    assert len(files) == 3
    replace_by(DAMAGE[kind](folder.checkpoint_file.read_bytes()), *files)
    before = {file.name: file.read_bytes() for file in folder.path.iterdir()}
    again = make(folder=folder, **options)
    with pytest.raises(RunError, match=r"checkpoint\.pt cannot be read \(.*\): move it away, and any checkpoint-STEP"):
        again.resume()
    assert {file.name: file.read_bytes() for file in folder.path.iterdir()} == before
    assert again.step == 0


@pytest.mark.parametrize("earlier", [0, 1, 3])
def test_a_disk_that_fills_up_leaves_the_last_good_checkpoint(earlier, open_run, monkeypatch):
    whole = make(folder=open_run("whole"))
    whole.fit()
    good, write = [], checkpoint.atomic_write

    def fill_up(path, data):
        if len(good) == earlier:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, data)
        good.append(data)

    kept = "the checkpoint before it is still in" if earlier else "there is no earlier one"
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "atomic_write", fill_up)
        with pytest.raises(RunError, match=rf"cannot be written \(No space left on device\); {kept}.*: make room"):
            make(folder=open_run(), checkpoint_every=1).fit()
    again = make(folder=open_run(), checkpoint_every=1)
    assert again.resume() == (earlier > 0)
    assert again.step == earlier
    if good:
        assert again.folder.checkpoint_file.read_bytes() == good[-1]
    again.fit()
    assert_same_end(again, whole)
