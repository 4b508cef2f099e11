"""What a run that is refused advises is followed, word for word where it is a command, and the run then trains."""

import re

import pytest
from helpers.text_helpers import ROOT
from hydra import compose, initialize_config_dir

import fogzo.data
from fogzo.errors import UserError
from fogzo.training.launch import train

SHORT = ("steps=2", "batch_size=4", "evaluation_examples=4", "log_every=1", "threads=1", "progress=lines")


@pytest.fixture
def run(digits, monkeypatch, tmp_path):
    """Carries out a run of two steps below ``tmp_path``, with overrides."""
    monkeypatch.setattr(fogzo.data, "mnist5k", lambda: digits)

    def carry_out(*overrides):
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            return train(compose("train", [*SHORT, f"results_dir={tmp_path}", *overrides]))

    return carry_out


# what is refused, what a pattern finds of the way out in the message, and what else the mended command has
ADVISED = {
    "model.inputs=100": (r"model\.inputs=\d+", ()),
    "model=resnet_mini model.channels=3": (r"set model\.channels()", ("model=resnet_mini", "model.channels=1")),
    "model.classes=7": (r"set model\.classes()", ("model.classes=10",)),
    "epochs=1 training_examples=8": (r"steps=null epochs=1", ("training_examples=8", "steps=null", "epochs=1")),
    "batch_size=100000": (r"from 1 to (\d+)", ()),
    "quantizer.bits=99": (r"from 1 to (\d)", ()),
    "quantizer=none": (r"estimator=ste", ("quantizer=none",)),
    "activations=quest quantizer=none estimator=ste": (r"activations=none", ("quantizer=none", "estimator=ste")),
    "quantize.bits={0: 4}": (r"\{0\*: 4\}()", ("quantize.bits={hid*: 4}",)),
    "+estimator.sampels=1": (r"did you mean (estimator\.samples)\?", ("estimator.samples=1",)),
    "schedule.warmup=2": (r"number in \[0, (1)\]", ("schedule.warmup=1",)),
    "parallel=shard": (r"parallel=data", ()),
    "device=cuda:77": (r"auto or (cpu)", ("device=cpu",)),
    "run_dir=/proc/foo": (r"with run_dir=FOLDER()", ("run_dir=RUNS/mine",)),
    "results_dir=/proc/foo": (r"with results_dir=FOLDER()", ()),
    "init_from=nothing.pt": (r"init_from=null", ()),
    "begin_from=nothing.pt": (r"begin_from=null", ()),
}


@pytest.mark.parametrize("refused", ADVISED)
def test_the_way_out_that_a_refusal_names_is_one(refused, run, tmp_path):
    pattern, more = ADVISED[refused]
    split = [refused] if "{" in refused else refused.split()
    with pytest.raises(ValueError, match=pattern) as said:
        run(*split)
    assert "\n" not in str(said.value)
    words = re.search(pattern, str(said.value))
    advised = [words[0]] if "=" in words[0] and not words.groups() and " " not in words[0] else []
    if words.groups() and words[1].isdigit() and not more:
        advised = [f"{refused.partition('=')[0]}={words[1]}"]
    assert run(*advised, *(word.replace("RUNS", str(tmp_path)) for word in more))["status"] == "finished"


def test_a_refused_begin_from_leaves_nothing_that_would_refuse_the_mended_command(run, tmp_path):
    (tmp_path / "damaged.pt").write_bytes(b"no checkpoint")
    folder = tmp_path / "mine"
    with pytest.raises(UserError, match=r"name another checkpoint, or (begin_from=null)"):
        run(f"begin_from={tmp_path / 'damaged.pt'}", f"run_dir={folder}")
    assert not (folder / "config.yaml").exists()
    assert run("begin_from=null", f"run_dir={folder}")["status"] == "finished"


def test_an_init_from_and_a_begin_from_together_name_one(run, tmp_path):
    assert run("quantizer=none", "estimator=ste", f"run_dir={tmp_path / 'twin'}")["status"] == "finished"
    with pytest.raises(UserError, match="name one"):
        run(f"init_from={tmp_path / 'twin'}", "begin_from=checkpoint.pt")
    assert run(f"init_from={tmp_path / 'twin'}")["status"] == "finished"
