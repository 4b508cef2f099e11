"""A run that begins where another one stands: what it takes over, what its own config says, and what is refused."""

import json

import pytest
import torch
from helpers.text_helpers import ROOT
from helpers.trainers import TIMES, Tell, assert_same_end, assert_same_state, make, tampered
from hydra import compose, initialize_config_dir

from fogzo.errors import UserError
from fogzo.runs.identity import identity
from fogzo.training import checkpoint
from fogzo.training.launch import train
from fogzo.training.resume import resume, warm_start
from fogzo.training.watch import Diverged, LossWatch

OPTIONS = {"estimator": "fogzo", "quantizer": "lsq", "checkpoint_every": 2}


@pytest.fixture
def good(open_run):
    """The last good checkpoint of a run that diverged: it stands at step 4 of 6."""
    folder = open_run("diverged")
    with pytest.raises(Diverged, match="at step 5"):
        tampered([5], lambda loss: loss * torch.nan, folder=folder, **OPTIONS).fit()
    return folder.checkpoint_file


def begun(open_run, good, name="begun", **options):
    trainer = make(folder=open_run(name, {"seed": 5, "begin_from": str(good)}), **OPTIONS | options)
    if not resume(trainer):
        warm_start(trainer, trainer.folder.config)
    return trainer


def test_under_the_same_config_it_ends_bit_for_bit_where_the_run_would_have(open_run, good):
    whole = make(folder=open_run("whole"), **OPTIONS)
    whole.fit()
    before = good.read_bytes()
    trainer = begun(open_run, good)
    assert trainer.step == trainer.begun_from["step"] == 4
    assert trainer.notes == [f"begun at step 4 of {good}"]
    trainer.fit()
    rows = [json.loads(line) | TIMES for line in trainer.folder.metrics_file.read_text().splitlines()]
    expected = [json.loads(line) | TIMES for line in whole.folder.metrics_file.read_text().splitlines()]
    assert rows == expected[4:]  # the rows before are the other run's
    for part in ("model", "optimizer", "means"):
        assert_same_state(trainer.state_dict()[part], whole.state_dict()[part])
    assert good.read_bytes() == before


def test_it_resumes_from_its_own_checkpoints_also_where_the_other_one_is_gone(open_run, good):
    whole = begun(open_run, good, "whole", steps=9)
    whole.fit()
    first = begun(open_run, good, steps=9)
    first.reporters = [Tell(7, lambda: 1 / 0)]
    with pytest.raises(ZeroDivisionError):
        first.fit()
    good.unlink()
    again = begun(open_run, good, steps=9)
    assert (again.step, again.begun_from) == (6, whole.begun_from)
    again.fit()
    assert_same_end(again, whole)


def test_from_there_on_its_own_config_holds(open_run, good):
    trainer = make(**OPTIONS | {"spike_factor": 2.0, "stop_on": "never"})
    own = [{"lr": 0.01, "weight_decay": 0.5}, {"momentum": 0.3}]
    for group, values in zip(trainer.optimizer.param_groups, own, strict=False):
        group.update(values)
    warm_start(trainer, {"begin_from": str(good)})
    for group, values in zip(trainer.optimizer.param_groups, own, strict=False):
        assert group.items() >= values.items()
    watch = trainer.diary.watch
    assert (watch.factor, watch.stop_on, watch.seen) == (2.0, "never", 4)
    assert trainer.ledger.examples == 80


def test_what_a_pass_costs_is_its_own_and_what_was_spent_the_other_ones(good):
    trainer = make(**OPTIONS)
    trainer.ledger.forward_flops = 13.0  # of another batch size
    warm_start(trainer, {"begin_from": str(good)})
    assert (trainer.ledger.forward_flops, trainer.ledger.backward_flops) == (13.0, 7.0)
    assert trainer.ledger.flops == 20 * (12 * 10 + 4 * 7)


def test_a_schedule_that_the_other_run_did_not_have_counts_flips_from_the_weights_that_it_begins_with(good):
    trainer = make(**OPTIONS, schedule="steered")
    with torch.no_grad():
        for weight in trainer.codes.weights:
            weight.latent.neg_()  # far from the checkpoint's
    warm_start(trainer, {"begin_from": str(good)})
    trainer.schedule.observe(trainer.step)
    assert trainer.schedule(trainer.step + 1) > 1  # nothing has flipped since


def test_a_config_that_names_no_checkpoint_begins_at_the_beginning_and_keeps_its_identity():
    trainer = make()
    for config in ({}, {"begin_from": None}):
        warm_start(trainer, config)
        assert (trainer.step, trainer.begun_from, trainer.notes) == (0, None, [])
        assert identity({"seed": 5} | config) == identity({"seed": 5})
    assert identity({"seed": 5, "begin_from": "x"}) != identity({"seed": 5})


REFUSED = {
    "missing": (lambda path: path.unlink(), {}, "is not there: name another checkpoint"),
    "damaged": (lambda path: path.write_bytes(b"no"), {}, "cannot be read .*: name another checkpoint"),
    "at the end": (lambda path: None, {"steps": 4}, "stands at step 4 of 4: raise steps"),
    "another optimizer": (lambda path: None, {"optimizer": "adamw"}, "made with another optimizer: give back"),
    "another model": (lambda path: None, {"quantizer": "fixed"}, "holds another model .*: name another checkpoint"),
    "other ranks": (
        lambda path: checkpoint.save(path, checkpoint.load(path) | {"ranks": 2}),
        {},
        "made by 2 ranks, but there are 1 now: .* or name another checkpoint",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_checkpoint_that_will_not_do_is_refused(kind, good):
    act, options, message = REFUSED[kind]
    act(good)
    with pytest.raises(UserError, match=message) as caught:
        warm_start(make(**OPTIONS | options), {"begin_from": str(good)})
    assert "\n" not in str(caught.value)


def test_a_folder_is_told_of_its_checkpoint_and_that_is_gone_on_from(open_run, good):
    with pytest.raises(UserError, match=rf"begin_from={good.parent} is a folder: name its begin_from={good}") as caught:
        begun(open_run, good.parent, "refused")
    trainer = begun(open_run, str(caught.value).partition("its begin_from=")[2])
    assert trainer.step == 4
    good.unlink()
    with pytest.raises(UserError, match=r"is a folder: name another checkpoint, or begin_from=null"):
        begun(open_run, good.parent, "empty")


def test_where_there_are_weights_alone_the_key_that_takes_them_is_named(tmp_path):
    over = ["threads=1", "estimator=ste", "steps=2"]
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        assert train(compose("train", [*over, f"run_dir={tmp_path}/first"])) is not None
        for place in (tmp_path / "first", tmp_path / "first" / "model.pt"):
            with pytest.raises(UserError, match="weights alone") as caught:
                train(compose("train", [*over, f"begin_from={place}", f"run_dir={tmp_path}/second"]))
            advised = next(word for word in str(caught.value).split() if word.startswith("init_from="))
            assert train(compose("train", [*over, advised, f"run_dir={tmp_path}/{len(advised)}"])) is not None


def test_what_a_diverged_run_advises_goes_on_and_its_summary_says_from_where(tmp_path, capsys, monkeypatch):
    def run(name, *overrides):
        chosen = ["threads=1", "batch_size=20", "steps=40", "estimator=ste", f"run_dir={tmp_path / name}", *overrides]
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            return train(compose("train", overrides=chosen))

    with monkeypatch.context() as patched:
        patched.setattr(LossWatch, "least", -1e9)  # any loss is a spike
        patched.setattr(LossWatch, "deviations", -1e9)
        for _ in range(2):
            with pytest.raises(Diverged, match=r"last good checkpoint is .*, from which another config goes") as caught:
                run("wild", "stop_on=spike", "spike_factor=0.01", "checkpoint_every=1")
    advised = str(caught.value).split()[-1]
    assert advised == f"begin_from={tmp_path / 'wild' / 'checkpoint.pt'}"
    summary = run("tame", advised)
    assert summary["status"] == "finished"
    assert summary["begun_from"]["step"] == 20
    assert f"note:     begun at step 20 of {tmp_path}" in capsys.readouterr().out
