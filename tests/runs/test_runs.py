"""Run folders: named by their config, held by one process, written whole or not at all, and read back as results."""

import errno
import io
import json
import os
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from fogzo.errors import UserError
from fogzo.runs.files import atomic_write, read_yaml
from fogzo.runs.folder import RunError, RunFolder
from fogzo.runs.identity import ADDED, PRESENTATION, differences, digest_of, identity
from fogzo.runs.records import read_records
from fogzo.training import checkpoint
from fogzo.training.resume import restore_model

CONFIG = {
    "seed": 0,
    "optimizer": {"name": "sgd", "lr": 1e-9},
    "quantize": {"skip": [], "biases": True},
    "steps": None,
    "data": {"name": "mnist5k", "root": "here"},
    "progress": "bar",
    "cell": "fogzo, β = 1",
}
NO_SPACE = OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def open_run():
    """Opens run folders, and closes them after the test."""
    opened = []

    def open_one(path, config=CONFIG):
        opened.append(RunFolder(path, config))
        return opened[-1]

    yield open_one
    for folder in opened:
        folder.close()


@pytest.fixture
def fail_to_write(monkeypatch):
    """Once called, no byte reaches the disk."""

    def fail(error=NO_SPACE):
        monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(error))

    return fail


@pytest.mark.parametrize("key", ADDED)
def test_a_difference_shows_what_a_key_meant_before_it_was_there(key):
    group, _, name = key.rpartition(".")
    plain = {group: {"other": 1}} if group else {}
    asked = {group: {"other": 1, name: "new"}} if group else {key: "new"}
    meant = {group: {"other": 1, name: ADDED[key]}} if group else {key: ADDED[key]}
    for without in (plain, meant):
        assert differences(CONFIG | without, CONFIG | asked) == [f"{key}: {ADDED[key]} → new"]
        assert differences(CONFIG | asked, CONFIG | without) == [f"{key}: new → {ADDED[key]}"]
    assert differences(CONFIG | plain, CONFIG | meant) == []


def contents(path):
    return {file.name: file.read_bytes() for file in path.iterdir() if file.is_file() and file.name != ".lock"}


def changed(key, value):
    """CONFIG with another value at a dotted key."""
    group, _, name = key.rpartition(".")
    return CONFIG | ({group: CONFIG.get(group, {}) | {name: value}} if group else {name: value})


def test_identity_is_eight_digits_that_name_every_value_and_no_order():
    assert identity(CONFIG) == identity(dict(reversed(CONFIG.items())))
    others = [changed("seed", 1), changed("optimizer.lr", 2e-9), changed("quantize.skip", ["head"]), CONFIG | {"a": 0}]
    names = {identity(config) for config in [CONFIG, *others]}
    assert len(names) == 5
    assert all(len(name) == 8 and int(name, 16) >= 0 for name in names)


@pytest.mark.parametrize("key", PRESENTATION)
def test_what_only_changes_the_presentation_changes_neither_identity_nor_config(key):
    other = changed(key, "another")
    assert identity(other) == identity(CONFIG)
    assert list(differences(CONFIG, other)) == []


def test_differences_name_key_old_and_new_value():
    other = changed("optimizer.lr", 0.5) | {"seed": 2, "new": True, "steps": 10}
    lines = {"optimizer.lr: 1e-09 → 0.5", "seed: 0 → 2", "new: None → True", "steps: None → 10"}
    assert set(differences(CONFIG, other)) == lines
    assert list(differences(CONFIG, dict(reversed(CONFIG.items())))) == []


def test_a_folder_keeps_its_config_and_opens_again_with_the_same(tmp_path, open_run):
    path = tmp_path / "a" / "b"
    open_run(path).close()
    before = contents(path)
    assert set(before) == {"config.yaml"}
    assert "β" in before["config.yaml"].decode()
    open_run(path, json.loads(json.dumps(CONFIG)) | {"progress": "lines"}).close()
    assert contents(path) == before


def test_another_config_is_refused_by_its_differences_and_changes_nothing(tmp_path, open_run):
    folder = open_run(tmp_path / "run")
    folder.log({"step": 1})
    folder.close()
    before = contents(folder.path)
    with pytest.raises(RunError, match=r"run holds .*optimizer\.lr: 1e-09 → 0\.1.*run_dir"):
        open_run(folder.path, changed("optimizer.lr", 0.1))
    assert contents(folder.path) == before


@pytest.mark.parametrize("text", ["[unclosed", "\x00", "- a\n- list\n", "", "5", "3: 4", "a: 2026-01-31"], ids=range(7))
def test_a_config_that_cannot_be_read_is_refused_and_kept(text, tmp_path, open_run):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(RunError, match="run_dir") as caught:
        open_run(tmp_path)
    assert "\n" not in str(caught.value)
    assert contents(tmp_path) == {"config.yaml": text.encode()}


@pytest.mark.parametrize("name", ["summary.json", "metrics.jsonl", "weights.pt"])
def test_a_folder_of_something_else_is_refused_and_kept(name, tmp_path, open_run):
    (tmp_path / name).write_text("mine")
    for place, message in [("", r"no config\.yaml.*run_dir"), (name, "is a file"), (f"{name}/run", "results_dir")]:
        with pytest.raises(RunError, match=message):
            open_run(tmp_path / place)
    assert contents(tmp_path) == {name: b"mine"}


@pytest.mark.parametrize("place", ["/proc/run", "/sys/run"])
def test_a_place_that_cannot_be_written_is_refused(place, open_run):
    with pytest.raises(RunError, match=rf"{place} cannot be written.*results_dir"):
        open_run(Path(place))


def test_a_full_disk_is_refused_before_training(tmp_path, open_run, fail_to_write):
    fail_to_write()
    with pytest.raises(RunError, match=r"No space left on device.*results_dir"):
        open_run(tmp_path / "run")
    assert contents(tmp_path / "run") == {}


def test_a_disk_that_fills_up_while_rows_or_the_summary_are_written_gives_a_message(tmp_path, open_run, fail_to_write):
    folder = open_run(tmp_path)
    folder.metrics_file.symlink_to("/dev/full")
    with pytest.raises(RunError, match=r"metrics\.jsonl.*No space left"):
        folder.log({"step": 1})
    folder.metrics_file.unlink()  # who reads it never comes to an end
    fail_to_write()
    with pytest.raises(RunError, match=r"summary\.json.*No space left"):
        folder.finish({"seed": 0})


def test_one_process_at_a_time(tmp_path, open_run):
    first = open_run(tmp_path)
    with pytest.raises(RunError, match="another process is at work"):
        open_run(tmp_path)
    first.close()
    open_run(tmp_path)


def test_metrics_are_appended_and_cut_back_to_a_checkpoint(tmp_path, open_run):
    folder = open_run(tmp_path)
    assert folder.metrics_state()[0] == 0
    folder.log({"step": 1, "loss": 0.1})
    size = folder.metrics_state()[0]
    folder.log({"step": 2, "loss": None})
    folder.truncate_metrics(size)
    assert folder.metrics_file.read_text() == '{"step": 1, "loss": 0.1}\n'
    with pytest.raises(RunError, match=r"rows are missing.*remove the folder"):
        folder.truncate_metrics(size + 1)
    assert folder.metrics_state()[0] == size


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00"], ids=range(4))
def test_a_damaged_summary_gives_a_message(text, tmp_path, open_run):
    folder = open_run(tmp_path)
    assert folder.summary() is None
    folder.finish({"seed": 0, "name": "β"})
    summary = folder.summary()
    assert summary == {"seed": 0, "name": "β", "digest": summary["digest"]}
    folder.summary_file.write_text(text)
    with pytest.raises(RunError, match=r"summary\.json.*remove that file"):
        folder.summary()


def test_a_digest_is_of_every_byte_of_the_metrics_and_every_value_of_the_summary(tmp_path, open_run):
    folder = open_run(tmp_path)
    folder.finish({"seed": 0, "accuracy": 80.1, "steps": 2})  # it diverged before its first row
    folder.log({"step": 1, "loss": 0.1})
    folder.log({"step": 2, "loss": 0.1})
    folder.finish({"seed": 0, "accuracy": 80.1, "steps": 2})
    summary = folder.summary()
    assert re.fullmatch("[0-9a-f]{64}", summary["digest"])
    assert digest_of(dict(reversed(summary.items())), folder.metrics_file.read_bytes()) == summary["digest"]
    changed = [summary | {"accuracy": 80.2}, {key: value for key, value in summary.items() if key != "steps"}]
    assert all(digest_of(other, folder.metrics_file.read_bytes()) != summary["digest"] for other in changed)
    folder.truncate_metrics(folder.metrics_state()[0] - 25)
    assert digest_of(summary, folder.metrics_file.read_bytes()) != summary["digest"]


@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt()], ids=["full disk", "Ctrl-C"])
def test_an_atomic_write_leaves_the_new_file_or_the_old_one(error, tmp_path, fail_to_write):
    path = tmp_path / "file"
    atomic_write(path, b"first")
    atomic_write(path, b"second")
    fail_to_write(error)
    with pytest.raises(type(error)):
        atomic_write(path, b"third")
    assert contents(tmp_path) == {"file": b"second"}


MODEL_STATE = {"step": 3, "model": nn.Linear(4, 2).state_dict(), "means": [({"loss": 0.1 + 0.2}, {"loss": 2})]}


def test_a_checkpoint_comes_back_to_the_last_bit(tmp_path):
    checkpoint.save(tmp_path / "checkpoint.pt", MODEL_STATE)
    loaded = checkpoint.load(tmp_path / "checkpoint.pt")
    assert (loaded["step"], loaded["means"]) == (3, MODEL_STATE["means"])
    assert all(torch.equal(loaded["model"][name], tensor) for name, tensor in MODEL_STATE["model"].items())
    assert set(contents(tmp_path)) == {"checkpoint.pt"}


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before_it(tmp_path, fail_to_write):
    checkpoint.save(tmp_path / "checkpoint.pt", MODEL_STATE)
    before = contents(tmp_path)
    fail_to_write()
    for name, state in [("checkpoint.pt", "the checkpoint before it is still in"), ("new.pt", "no earlier one")]:
        with pytest.raises(RunError, match=rf"{name} cannot be written.*{state}.*make room"):
            checkpoint.save(tmp_path / name, MODEL_STATE)
    assert contents(tmp_path) == before


class Malicious:
    def __reduce__(self):
        return Path.touch, (Path("executed"),)


def saved(state):
    torch.save(state, buffer := io.BytesIO())
    return buffer.getvalue()


def with_a_bit_flipped(data, weights):
    place = data.index(weights.numpy().tobytes()) + 40
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


WEIGHTS = torch.arange(64) / 7
GOOD = saved({"format": checkpoint.FORMAT, "step": 1, "weights": WEIGHTS})
BAD = {
    "empty": b"",
    "cut short": GOOD[: len(GOOD) // 2],
    "last bytes missing": GOOD[:-10],
    "a bit flipped": with_a_bit_flipped(GOOD, WEIGHTS),
    "text": b"weights of mine\n",
    "another format": saved({"format": checkpoint.FORMAT + 1, "step": 1}),
    "bare weights": saved(nn.Linear(2, 2).state_dict()),
    "a tensor": saved(WEIGHTS),
    "code": saved({"format": checkpoint.FORMAT, "model": Malicious()}),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_damaged_or_foreign_checkpoint_is_refused_kept_and_never_executed(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoint.pt").write_bytes(BAD[kind])
    with pytest.raises(RunError, match=r"checkpoint\.pt .*move it away"):
        checkpoint.load(Path("checkpoint.pt"))
    assert contents(tmp_path) == {"checkpoint.pt": BAD[kind]}


OTHERS = {"width": nn.Linear(5, 2), "tensors": nn.Linear(4, 2, bias=False), "names": nn.Sequential(nn.Linear(4, 2))}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS.keys())
def test_the_checkpoint_of_another_model_is_refused(other, tmp_path):
    with pytest.raises(RunError, match=r"c\.pt holds another model \(.+\): move it away"):
        restore_model(other, MODEL_STATE["model"], tmp_path / "c.pt")


def test_a_folder_in_the_place_of_a_file_is_named_in_a_sentence(tmp_path):
    file = tmp_path / "file"
    file.mkdir()
    folder = RunFolder(tmp_path / "run", CONFIG)
    folder.metrics_file.mkdir()
    reads = [lambda: read_yaml(file), lambda: read_records(file), folder.metrics_state, lambda: folder.finish({})]
    for read in (*reads, lambda: folder.truncate_metrics(0)):
        with pytest.raises(UserError, match=r"^\S+ cannot be read \(Is a directory\): (mend it|make it readable)"):
            read()
    folder.close()
