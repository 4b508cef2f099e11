"""Every config composes, builds and does a step; what a step costs; and values that are refused where they stand."""

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from helpers.configs import CONFIGS, composed
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from torch.utils.flop_counter import FlopCounterMode

import fogzo.data
import fogzo.runs.provenance
import fogzo.training.launch
from fogzo.data import mnist5k
from fogzo.estimators.beta import Ramp
from fogzo.quantize import quantized_weights
from fogzo.runs.folder import RunError, RunFolder
from fogzo.runs.provenance import provenance
from fogzo.training.build import build
from fogzo.training.config import Settings
from fogzo.training.devices import device_facts
from fogzo.training.record import plain_record, run_path
from fogzo.training.schedules import LearningRate

GROUPS = ("quantizer", "activations", "estimator", "scale", "optimizer", "schedule", "data", "logger", "experiment")
CHOICES = {group: sorted(file.stem for file in (CONFIGS / group).glob("*.yaml")) for group in GROUPS}
NETWORKS = yaml.safe_load((CONFIGS / "networks.yaml").read_text(encoding="utf-8"))  # its numbers such as 1e-3 are text
CHOICES["model"] = sorted(NETWORKS["estimators"])
WITHOUT_PROBES = {"ste", "ste_longer"}  # the estimators that a float network can be trained with


@pytest.fixture(scope="module")
def digits():
    return mnist5k()


@pytest.fixture
def build_trainer(digits, monkeypatch):
    """Builds from overrides; the digits are read from the disk once."""
    monkeypatch.setattr(fogzo.data, "mnist5k", lambda: digits)

    def build_one(*overrides):
        return build(composed("batch_size=20", "threads=1", "steps=10", *overrides))

    return build_one


@pytest.mark.parametrize("scale", CHOICES["scale"])
@pytest.mark.parametrize("model", CHOICES["model"])
def test_every_combination_composes_and_has_a_folder_of_its_own_name(model, scale):
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        # composing takes 0.2 s: every estimator at both scales, each with an eighth of the models
        some = CHOICES["estimator"][(CHOICES["model"].index(model) + 4 * (scale == "paper")) % 8 :: 8]
        for estimator, quantizer in zip(some, itertools.cycle(CHOICES["quantizer"]), strict=False):
            overrides = (f"model={model}", f"quantizer={quantizer}", f"estimator={estimator}", f"scale={scale}")
            cfg = compose("train", list(overrides))
            record = plain_record(cfg)
            names = [record[group]["name"] for group in ("model", "quantizer", "estimator")]
            assert names == [model, quantizer, estimator]
            assert record["scale"] == scale
            assert (record["data"]["name"] in ("mnist5k", "pydocs")) == (scale == "mini")  # without a download
            assert (record["steps"] is None) != (record["epochs"] is None)
            path = run_path(cfg, record)
            assert path.parent == Path("outputs/runs")
            assert path.name.startswith(f"{model}-{quantizer}-{estimator}-seed0-")


@pytest.mark.parametrize(
    "choice",
    [
        f"{group}={name}"
        for group in ("activations", "optimizer", "schedule", "data", "logger")
        for name in CHOICES[group]
    ],
)
def test_every_other_choice_composes_over_the_recipe(choice):
    group, name = choice.split("=")
    assert plain_record(composed(choice))[group]["name"] == name


# each with half of the others, as the black squares of a chessboard
PAIRS = [(q, e) for i, q in enumerate(CHOICES["quantizer"]) for e in CHOICES["estimator"][i % 2 :: 2]]


@pytest.mark.parametrize(("quantizer", "estimator"), PAIRS)
def test_every_quantizer_and_estimator_build_and_do_a_step(quantizer, estimator, build_trainer):
    overrides = (f"quantizer={quantizer}", f"estimator={estimator}")
    if quantizer == "none" and estimator not in WITHOUT_PROBES:
        with pytest.raises(ValueError, match="quantizer=none leaves no quantized weights to perturb: choose"):
            build_trainer(*overrides)
        return
    trainer = build_trainer(*overrides)
    before = [p.detach().clone() for p in trainer.model.parameters()]
    estimate = trainer.train_step(0)
    assert estimate.loss.isfinite()
    assert all(p.isfinite().all() for p in trainer.model.parameters())
    moved = [not torch.equal(p, old) for p, old in zip(trainer.model.parameters(), before, strict=True)]
    assert all(moved)
    assert trainer.settings.steps == (17 if estimator == "ste_longer" else 10)


def test_some_layers_have_other_bits_and_lsq_a_step_for_each_channel(build_trainer):
    trainer = build_trainer("quantizer=lsq", "quantizer.per_channel=true", "quantize.bits={hidden:4,h*:3}")
    trainer.train_step(0)
    bits = {weight.name: weight.quantizer.bits for weight in quantized_weights(trainer.model)}
    assert bits == {"hidden.weight": 4, "hidden.bias": 4, "head.weight": 3, "head.bias": 3}
    assert [weight.quantizer.step.numel() for weight in quantized_weights(trainer.model)] == [10, 1, 10, 1]


FORWARD, BACKWARD = 2 * (784 * 10 + 10 * 10), 2 * (784 * 10 + 2 * 10 * 10)  # multiplications and additions an example
COSTS = [  # overrides, forward and backward passes of the first step
    ("estimator=ste", 1, 1),
    ("estimator=ste micro_batches=4", 1, 1),
    ("estimator=noisy_ste", 1, 1),
    ("estimator=phased", 1, 1),
    ("estimator=phased estimator.ste_share=0", 3, 1),
    ("estimator=slope", 3, 1),
    ("estimator=rescaled_ste", 3, 1),
    ("estimator=fogzo", 3, 1),
    ("estimator=fogzo estimator.samples=3", 3, 1),  # β begins at 1, where one pair is enough
    ("estimator=fogzo estimator.samples=3 estimator.beta_schedule=constant", 7, 1),
    ("estimator=fogzo estimator.samples=3 estimator.beta_schedule=constant micro_batches=2", 7, 1),
    ("estimator=fogzo estimator.samples=3 estimator.beta_schedule=constant estimator.probe_batch=2", 7, 1),
    ("estimator=nspsa estimator.samples=3 estimator.probe_batch=0", 6, 0),
    ("estimator=nspsa estimator.samples=3 estimator.probe_batch=2", 6, 0),
    ("estimator=nspsa estimator.samples=3 quantizer=lsq", 7, 1),  # learned steps keep their first-order gradient
    ("estimator=nspsa estimator.samples=3 quantize.biases=false", 7, 1),  # and so do float biases
]


@pytest.mark.parametrize(("overrides", "forwards", "backwards"), COSTS, ids=[cost[0] for cost in COSTS])
def test_the_ledger_counts_what_a_step_does(overrides, forwards, backwards, build_trainer):
    trainer = build_trainer(*overrides.split())
    assert (trainer.ledger.forward_flops, trainer.ledger.backward_flops) == (FORWARD, BACKWARD)
    trainer.train_step(0)
    row = trainer.ledger.row()
    assert (row["forwards"], row["backwards"], row["examples"]) == (forwards, backwards, 20)
    assert row["flops"] == 20 * (forwards * FORWARD + backwards * BACKWARD)
    assert row["forward_equivalents"] == forwards + 2 * backwards
    trainer.ledger.load_state_dict(trainer.ledger.state_dict() | {"forwards": 100})
    assert trainer.ledger.row() == row | {"forwards": 100, "forward_equivalents": 100 + 2 * backwards}


@pytest.mark.parametrize("quantizer", CHOICES["quantizer"])
@pytest.mark.parametrize("batch_size", [20, 500])
def test_the_ledgers_flops_are_those_that_torch_counts_in_a_step(quantizer, batch_size, build_trainer):
    trainer = build_trainer(f"quantizer={quantizer}", "estimator=ste", f"batch_size={batch_size}")
    with FlopCounterMode(display=False) as counter:
        trainer.train_step(0)
    assert trainer.ledger.row()["flops"] == pytest.approx(counter.get_total_flops(), rel=0.01)


@pytest.mark.parametrize(
    "override",
    [
        "estimatr=ste",
        "estimator.sampels=2",
        "optimizer.learning_rate=1",
        "quantizer.bit=2",
        "stepps=3",
        "model=mpl",
        "beta_min=1",
    ],
)
def test_a_misspelt_key_or_choice_fails_at_compose_time(override):
    with pytest.raises(HydraException, match=override.partition("=")[0].rpartition(".")[2]):
        composed(override)


@pytest.fixture
def train(digits, monkeypatch, tmp_path):
    """Carries out a short run below ``tmp_path``."""
    monkeypatch.setattr(fogzo.data, "mnist5k", lambda: digits)
    cfg = composed("batch_size=20", "threads=1", "steps=10", "progress=lines", f"results_dir={tmp_path}")
    return lambda: fogzo.training.launch.train(cfg)


def test_the_summary_appears_when_all_else_is_there(train, monkeypatch):
    there, finish = [], RunFolder.finish

    def look_first(folder, summary):  # a run killed here counts as finished
        there.append((folder.path / "model.pt").exists())
        finish(folder, summary)

    monkeypatch.setattr(RunFolder, "finish", look_first)
    assert train()["status"] == "finished"
    assert there == [True]


def test_a_checkpoint_that_a_kill_left_beside_a_summary_goes_when_the_run_is_asked_for_again(train, tmp_path):
    train()
    (summary,) = tmp_path.rglob("summary.json")
    left = summary.with_name("checkpoint.pt")
    left.write_bytes(b"")
    assert train()["status"] == "finished"
    assert not left.exists()


def test_a_run_that_another_process_finishes_meanwhile_is_left_alone(train, tmp_path, monkeypatch, capsys):
    records = []

    def build_slowly(cfg):
        monkeypatch.setattr(fogzo.training.launch, "build", build)
        train()  # the other process
        records.extend((file, file.read_bytes()) for file in tmp_path.rglob("*.json*"))
        return build(cfg)

    monkeypatch.setattr(fogzo.training.launch, "build", build_slowly)
    train()
    assert len(records) == 2
    assert all(file.read_bytes() == content for file, content in records)
    assert "finished already" in capsys.readouterr().out


def test_a_finished_run_names_its_data_and_is_not_taken_for_one_of_other_data(train, tmp_path, capsys):
    train()
    capsys.readouterr()
    train()
    assert "data:     mnist5k (sha256 1b845fda5282)" in capsys.readouterr().out
    (file,) = tmp_path.rglob("summary.json")
    edited = file.read_text().replace("1b845fda5282", "f00f00f00f00")
    file.write_text(edited)
    with pytest.raises(
        RunError, match=r"changed after the run had ended \(its digest differs\): give back the old file"
    ):
        train()
    file.write_text(json.dumps({key: value for key, value in json.loads(edited).items() if key != "digest"}))
    with pytest.raises(RunError, match=r"other data called mnist5k \(sha256: f00f00f00f00 → 1b845fda5282\): give back"):
        train()


def test_a_record_says_what_computed_it(monkeypatch):
    here = provenance()
    assert here["versions"].keys() >= {"torch", "timm", "transformers", "tokenizers", "datasets", "pillow"}
    processor = device_facts(torch.device("cpu"))["processor"]
    assert processor["instructions"] == torch.backends.cpu.get_cpu_capability()
    assert processor["name"]
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    monkeypatch.setattr(fogzo.runs.provenance, "PACKAGES", ("torch", "no-such-package"))
    assert provenance()["versions"].keys() == {"python", "torch"}
    assert device_facts(torch.device("cuda", 1))["gpu"] == {
        "name": "GPU 1",
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


BAD_SETTINGS = [
    *((name, value) for name in ("steps", "batch_size", "micro_batches") for value in (0, -1, 1.5, "ten")),
    *((name, value) for name in ("log_every", "evaluate_every", "checkpoint_every") for value in (-1, "ten")),
    *(("clip_norm", value) for value in (-0.1, "ten", math.nan)),
    ("micro_batches", 3),
    ("precision", "fp16"),
]


@pytest.mark.parametrize(("name", "value"), BAD_SETTINGS, ids=[f"{name}={value}" for name, value in BAD_SETTINGS])
def test_bad_settings_are_refused_by_name_and_value(name, value):
    with pytest.raises(ValueError, match=f"{name}={value!r}"):
        Settings(**{"steps": 1, "batch_size": 20, "seed": 0} | {name: value})


def test_the_learning_rate_warms_up_and_falls_to_its_share(build_trainer):
    for shape, middle, last in [("constant", 1, 1), ("linear", 0.6, 0.2), ("cosine", 0.6, 0.2)]:
        schedule = LearningRate(steps=110, shape=shape, warmup=10 / 110, final=0.2)
        assert [schedule(step) for step in (0, 4, 9, 10)] == pytest.approx([0.1, 0.5, 1, 1])
        assert (schedule(60), schedule(110)) == (pytest.approx(middle), pytest.approx(last))
    for bad in ({"shape": "step"}, {"warmup": 1.1}, {"final": -0.1}):
        with pytest.raises(ValueError, match=rf"^{next(iter(bad))}="):
            LearningRate(steps=10, **bad)
    trainer = build_trainer("schedule=linear", "optimizer.lr=0.1")
    for step in range(4):
        trainer.train_step(step)
        assert trainer.optimizer.param_groups[0]["lr"] == 0.1 * trainer.schedule(step)


def test_beta_falls_from_one_and_keeps_the_digits_of_one_minus_beta():
    beta = Ramp(1.0, 1 - 1e-9, steps=5)
    assert [1 - beta(step) for step in range(6)] == pytest.approx([0, 2.5e-10, 5e-10, 7.5e-10, 1e-9, 1e-9], rel=1e-6)
    assert Ramp(1.0, 0.5, steps=1)(0) == 1


def test_the_slurm_preset_asks_for_its_jobs_to_be_put_back_into_the_queue(tmp_path):
    from submitit.slurm.slurm import _make_sbatch_string

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose("train", ["hydra/launcher=slurm"], return_hydra_config=True)
    launcher = cfg.hydra.launcher
    assert launcher._target_.endswith("SlurmLauncher")
    assert launcher.max_num_timeout > 0
    script = _make_sbatch_string("true", tmp_path, additional_parameters=dict(launcher.additional_parameters))
    assert "#SBATCH --requeue\n" in script
