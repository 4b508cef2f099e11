"""Checkpoints: which are kept, which one a run goes on from, and which are refused."""

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.trainers import TIMES, Tell, assert_same_end, assert_same_state, make, outcome

from fogzo.data import TensorSplit
from fogzo.runs.folder import RunError, RunFolder
from fogzo.training import checkpoint
from fogzo.training.resume import resume
from fogzo.training.tasks import Classification
from fogzo.training.watch import Diverged

COLUMNS = {"step", "loss", "forwards", "backwards", "flops", "forward_equivalents", "examples", *TIMES}


def rows_of(folder):
    return [json.loads(line) for line in folder.metrics_file.read_text().splitlines()]


PARTS = ["model", "optimizer", "ledger", "step", "means", "metrics_bytes"]
OTHERS = {"run": {"seed": 6}, "model": {"quantizer": "lsq"}, "optimizer": {"optimizer": "adamw"}}


@pytest.mark.parametrize("kind", [*(f"another {what}" for what in OTHERS), *(f"no {part}" for part in PARTS)])
def test_a_foreign_checkpoint_is_refused_and_the_rows_are_kept(kind, open_run):
    trainer = make(folder=open_run(), steps=2)
    trainer.fit()
    rows = trainer.folder.metrics_file.read_bytes()
    own, what = trainer.folder.checkpoint_file, kind.split()[1]
    if kind.startswith("another"):
        other = make(folder=open_run("other", {"seed": 5} | OTHERS[what]), **OTHERS[what])
        other.save()
        own.write_bytes(other.folder.checkpoint_file.read_bytes())
    else:
        trainer.save()
        checkpoint.save(own, {key: value for key, value in checkpoint.load(own).items() if key != what})
    with pytest.raises(RunError, match=r"checkpoint\.pt .*move it away"):
        resume(make(folder=open_run(), steps=2))
    assert trainer.folder.metrics_file.read_bytes() == rows


def test_lost_rows_are_noticed(open_run):
    trainer = make(folder=open_run(), steps=2)
    trainer.fit()
    trainer.save()
    trainer.folder.metrics_file.unlink()
    with pytest.raises(RunError, match="rows are missing"):
        resume(make(folder=open_run(), steps=2))


def test_rows_that_were_changed_are_noticed_and_given_back_the_run_goes_on(open_run):
    trainer = make(folder=open_run(), steps=2)
    trainer.fit()
    trainer.save()
    rows = trainer.folder.metrics_file.read_bytes()
    changed = rows.replace(b"loss", b"lost", 1)
    trainer.folder.metrics_file.write_bytes(changed)
    with pytest.raises(RunError, match=r"was changed after the checkpoint .*: give back the old file, or remove"):
        resume(make(folder=open_run(), steps=2))
    assert trainer.folder.metrics_file.read_bytes() == changed
    trainer.folder.metrics_file.write_bytes(rows)
    assert resume(make(folder=open_run(), steps=2))


def test_weights_that_a_step_made_infinite_are_no_good_checkpoint(open_run):
    trainer = make(folder=open_run(), checkpoint_every=1)
    trainer.reporters = [Tell(3, lambda: trainer.model[3].weight.data.fill_(torch.inf))]
    with pytest.raises(Diverged):
        trainer.fit()
    state = checkpoint.load(trainer.folder.checkpoint_file)
    assert all(tensor.isfinite().all() for tensor in state["model"].values())


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
    assert resume(again)
    assert again.step == 5
    again.fit()
    assert_same_end(again, whole)
    assert names_in(again.folder) == [f"checkpoint-{step:09d}.pt" for step in (4, 5, 6)] + ["checkpoint.pt"]

    again.folder.checkpoint_file.write_bytes(older)
    once_more = make(folder=open_run(), **options)
    assert resume(once_more)
    assert once_more.step == 3
    once_more.fit()
    assert_same_end(once_more, whole)


@pytest.mark.parametrize("killed", ["before its copy is made", "before the oldest one goes"])
def test_a_kill_while_the_last_checkpoint_is_kept_leaves_the_same_ones_in_the_end(killed, open_run):
    options = {"checkpoint_every": 1, "keep_checkpoints": 3, "steps": 6}
    with pytest.raises(ZeroDivisionError):
        make(folder=open_run(), reporters=[Tell(6, lambda: 1 / 0)], **options).fit()
    newest, oldest = (open_run().path / f"checkpoint-{step:09d}.pt" for step in (5, 2))
    if killed == "before its copy is made":
        newest.unlink()
    else:
        oldest.hardlink_to(newest)
    again = make(folder=open_run(), **options)
    assert resume(again)
    again.fit()
    assert names_in(again.folder) == [f"checkpoint-{step:09d}.pt" for step in (3, 4, 5)] + ["checkpoint.pt"]


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

    def evaluate(self, model, told=None):
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
    resume(trainer)
    trainer.fit()
    kept = torch.load(trainer.folder.path / "best.pt", weights_only=True)
    assert_same_state(dict(kept), states[best])
    assert trainer.best == script[best - 1]


def test_nothing_is_kept_of_the_best_evaluation_unless_asked_for(open_run):
    trainer = make(folder=open_run(), evaluate_every=1)
    trainer.fit()
    assert "best.pt" not in names_in(trainer.folder)
    assert trainer.best == max(row["accuracy"] for row in rows_of(trainer.folder))


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
        resume(again)
    assert again.step == 0
    assert [row | TIMES for row in rows_of(again.folder)] == rows


def test_a_checkpoint_of_another_kind_of_device_is_refused(open_run):
    trainer = make(folder=open_run(), steps=2)
    trainer.save()
    state = checkpoint.load(trainer.folder.checkpoint_file)
    assert state["device"] == "cpu"
    checkpoint.save(trainer.folder.checkpoint_file, state | {"device": "cuda"})
    with pytest.raises(RunError, match=r"another kind of device \(cuda → cpu\).*: choose device=cuda"):
        resume(trainer)


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
        resume(again)
    assert (again.step, again.folder.metrics_file.read_bytes()) == (0, rows)
    assert again.folder.checkpoint_file.read_bytes() == kept

    state = checkpoint.load(again.folder.checkpoint_file)
    del state["data"], state["device"]  # as the first checkpoints were
    checkpoint.save(again.folder.checkpoint_file, state)
    for data in (same, replace(same, sha256="f00")):
        again.task.data = data
        assert resume(again)
    again.fit()
    assert_same_end(again, whole)


def test_a_resumed_run_computes_with_as_many_threads_as_before_and_says_so(open_run):
    with pytest.raises(ZeroDivisionError):
        make(folder=open_run(), steps=4, checkpoint_every=2, reporters=[Tell(3, lambda: 1 / 0)]).fit()
    torch.set_num_threads(2)
    again = make(folder=open_run(), steps=4)
    assert resume(again)
    assert torch.get_num_threads() == 1
    assert again.notes == ["computing with 1 CPU threads, as before, not with 2: the bits would differ"]

    state = checkpoint.load(again.folder.checkpoint_file)
    del state["threads"]  # as the first checkpoints were
    checkpoint.save(again.folder.checkpoint_file, state)
    for count in (1, 2):
        torch.set_num_threads(count)
        old = make(folder=open_run(), steps=4)
        assert resume(old)
        assert (torch.get_num_threads(), old.notes) == (count, [])


@pytest.mark.parametrize("at", [2, 4, 5])
@pytest.mark.parametrize(
    "parts", [{"estimator": "intermittent"}, {"estimator": "guide or noise"}, {"schedule": "steered"}], ids=str
)
def test_what_depends_on_the_steps_before_goes_on_from_a_checkpoint_with_the_same_bits(parts, at, open_run):
    whole = make(**parts, folder=open_run("whole"), steps=8)
    whole.fit()
    with pytest.raises(ZeroDivisionError):
        make(**parts, folder=open_run(), steps=8, checkpoint_every=1, reporters=[Tell(at, lambda: 1 / 0)]).fit()
    again = make(**parts, folder=open_run(), steps=8, checkpoint_every=1)
    assert resume(again)
    assert 0 < again.step < 8
    again.fit()
    assert_same_end(again, whole)


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
    assert resume(other_rank, RunFolder.view(folder.path, folder.config))
    assert {file.name: file.read_bytes() for file in folder.path.glob("*.pt")} == before

    again = make(folder=folder, **options)
    assert resume(again)
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
        resume(again)
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
    assert resume(again) == (earlier > 0)
    assert again.step == earlier
    if good:
        assert again.folder.checkpoint_file.read_bytes() == good[-1]
    again.fit()
    assert_same_end(again, whole)
