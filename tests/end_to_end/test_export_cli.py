"""The way back from a run folder: its network, its numbers once more, and its files for other tools."""

import re
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import torch
from helpers.configs import composed
from torch import nn

import fogzo
from fogzo.data import mnist5k
from fogzo.runs.folder import RunFolder
from fogzo.training.launch import train
from fogzo.training.reload import evaluate_run

ROOT = Path(__file__).resolve().parents[2]
SHORT = ("steps=6", "evaluate_every=0", "progress=lines", "threads=1")
QUANTIZED = {
    "fixed": ("quantizer=fixed", "quantizer.per_channel=true"),
    "lsq_and_activations": ("quantizer=lsq", "activations=lsq", "estimator=ste"),
    "quest": ("quantizer=quest", "activations=quest", "estimator=ste"),
    "none": ("quantizer=none", "estimator=ste"),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")

    def run(name):
        path = folder / name
        if not path.exists():
            train(composed(*SHORT, *QUANTIZED[name], f"run_dir={path}", "seed=3"))
        return path

    return run


@pytest.fixture
def command(monkeypatch, capsys):
    """Run a script in this process: it loads in seconds what is loaded here already."""

    def run(script, *words):
        monkeypatch.setattr(sys, "argv", [script, *map(str, words)])
        monkeypatch.syspath_prepend(str(ROOT / "scripts"))  # as for a command: what scripts share lies beside them
        runpy.run_path(str(ROOT / "scripts" / f"{script}.py"), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return run


@pytest.mark.parametrize("name", QUANTIZED)
def test_a_run_gives_its_network_and_its_config_back(name, runs):
    folder = runs(name)
    torch.manual_seed(0)
    drawn = torch.rand(3)
    torch.manual_seed(0)
    model, config = fogzo.load_run(folder)
    assert torch.equal(torch.rand(3), drawn)  # nobody else's random numbers are touched
    saved = torch.load(folder / "model.pt", weights_only=True)
    assert all(torch.equal(value, saved[key]) for key, value in model.state_dict().items())
    assert (config.steps, config.seed, config.data.name, model.training) == (6, 3, "mnist5k", False)
    assert config.quantizer.name == composed(*QUANTIZED[name]).quantizer.name
    assert model(mnist5k().test.batch(torch.arange(2))[0]).shape == (2, 10)


@pytest.mark.parametrize("name", QUANTIZED)
def test_evaluating_it_again_gives_the_summarys_numbers_to_the_last_bit(name, runs):
    summary = RunFolder.view(runs(name), {}).summary()
    metrics = evaluate_run(runs(name))
    assert metrics == {key: summary[key] for key in ("train_loss", "test_loss", "accuracy")}


def test_it_can_be_evaluated_on_less_and_refuses_data_that_it_cannot_take(runs):
    whole, some = evaluate_run(runs("fixed")), evaluate_run(runs("fixed"), ["evaluation_examples=100"])
    assert whole["test_loss"] != some["test_loss"]
    with pytest.raises(ValueError, match="imagenet100 is not in /nowhere"):
        evaluate_run(runs("fixed"), ["data=imagenet100", "data.root=/nowhere"])
    with pytest.raises(ValueError, match=r"no config can be made of this run .*Could not find 'data/nonsense'"):
        evaluate_run(runs("fixed"), ["data=nonsense"])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: (run / "model.pt").unlink(), "model.pt cannot be read .*: name the folder"),
        (
            lambda run: (run / "model.pt").write_bytes(b"PK"),
            "model.pt cannot be read .*: name the folder",
        ),
        (
            lambda run: (run / "config.yaml").unlink(),
            "config.yaml cannot be read .*: name the folder",
        ),
        (lambda run: (run / "config.yaml").write_text("7"), "config.yaml holds no config: name the folder"),
        (
            lambda run: torch.save({"weight": torch.ones(1)}, run / "model.pt"),
            "model.pt holds another model .*: evaluate it with the code that made it",
        ),
    ],
)
def test_a_folder_that_holds_no_whole_run_is_refused(spoil, message, runs, tmp_path):
    shutil.copytree(runs("fixed"), tmp_path / "run")
    spoil(tmp_path / "run")
    with pytest.raises(ValueError, match=message) as refusal:
        fogzo.load_run(tmp_path / "run")
    assert "\n" not in str(refusal.value)


def test_the_commands_evaluate_export_and_verify(runs, command):
    assert command("evaluate", runs("fixed"))[-1] == "the run's summary says the same"
    assert "accuracy: " in command("evaluate", runs("fixed"), "evaluation_examples=100")[-1]
    said = command("export", runs("quest"), "--to", "safetensors", "--verify", "--verbose")
    assert "hidden.weight: 2 bits, 31,360 → 2,000 bytes (15.7×)" in said
    assert said[-1] == "verified: the logits of 1,000 test examples are the same, bit for bit"
    said = command("export", runs("fixed"), "--to", "onnx", "--verify")
    assert "of 1,000 test examples 100.00% have the same top-1" in said[-1]
    assert "0.00% of the examples by over 1e-4" in said[-1]


def test_a_refusal_is_one_line(runs, command):
    with pytest.raises(SystemExit, match=r"^error: hidden.weight: ONNX cannot hold QuEST's") as refusal:
        command("export", runs("quest"), "--to", "onnx")
    assert "\n" not in str(refusal.value)
    with pytest.raises(SystemExit, match=r"^error: .*config.yaml cannot be read"):
        command("evaluate", runs("quest") / "nowhere")


PAGE = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
IN_PYTHON, WITHOUT_FOGZO = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_snippet_of_the_page_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(IN_PYTHON, {})
    assert capsys.readouterr().out.startswith(IN_PYTHON.partition("print(written)  # ")[2].partition(" ...")[0])


@pytest.mark.parametrize(
    "quantizer", [fogzo.FixedScale(3, per_channel=True), fogzo.Sign(), fogzo.LSQ(2), fogzo.QuEST(5)]
)
def test_the_layout_is_what_the_page_says(quantizer, tmp_path):
    model = fogzo.quantize_model(nn.Sequential(nn.Linear(12, 7), nn.Linear(7, 3)), quantizer)
    fogzo.export(model, tmp_path / "m.safetensors")
    known = {}
    exec(WITHOUT_FOGZO, known)
    weights = known["weights"](tmp_path / "m.safetensors")
    assert list(weights) == ["0.weight", "1.weight"]
    for number in (0, 1):
        assert torch.allclose(torch.from_numpy(weights[f"{number}.weight"]), model[number].weight, atol=1e-7)


def test_a_strangers_run_folder_runs_no_code(runs, tmp_path):
    folder = tmp_path / "stranger"
    shutil.copytree(runs("fixed"), folder)
    config = (folder / "config.yaml").read_text()
    touched = tmp_path / "touched"
    bad = config.replace("model:\n", f"model:\n  _target_: subprocess.getoutput\n  cmd: touch {touched}\n")
    assert bad != config
    (folder / "config.yaml").write_text(bad)
    with pytest.raises(ValueError, match="cmd"):
        fogzo.load_run(folder)
    assert not touched.exists()
    (folder / "config.yaml").write_text(config.replace("model:\n", "model:\n  width: ${oc.env:HOME}\n"))
    with pytest.raises(ValueError, match="is a reference, which no run writes"):
        fogzo.load_run(folder)
