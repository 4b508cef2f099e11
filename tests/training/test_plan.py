"""What plan=true prints is what the run then does, and it needs no data."""

import math
import re
from fnmatch import fnmatch

import pytest
import torch
from helpers.cli import run
from helpers.configs import CONFIGS
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from fogzo.data import DECODING_RATES as DECODED
from fogzo.data.shards import Manifest, Shard, SplitManifest
from fogzo.estimators.guide import normalise
from fogzo.quantize import quantized_weights
from fogzo.training.build import build
from fogzo.training.costs import (
    PeakTensorMemory,
    expected_crossings,
    measure,
    memory_bytes,
    noise_to_guide,
    probes_bytes,
)
from fogzo.training.draft import build_model
from fogzo.training.plan import plan as planned
from fogzo.training.shapes import DataShape, check_shape


def config(*overrides):
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("train", ["threads=1", *overrides])


def plan(cfg):
    return planned(cfg).text


def number(text, pattern):
    return float(re.search(pattern, text).group(1).replace(",", ""))


@pytest.mark.parametrize(
    "overrides",
    [
        "estimator=ste",
        "estimator=fogzo",
        "estimator=fogzo estimator.samples=3 estimator.beta_schedule=constant",
        "estimator=slope",
        "estimator=nspsa estimator.samples=4",
        "estimator=nspsa quantizer=lsq",
        "estimator=phased estimator.ste_share=0.5",
        "estimator=rescaled_ste",
        "estimator=noisy_ste quantizer=lsq activations=lsq",
        "estimator=fogzo model=resnet_mini batch_size=16",
        "estimator=nspsa model=resnet_mini batch_size=16 micro_batches=2",
        "estimator=ste quantizer=quest activations=quest",
        "estimator=fogzo model=deit_mini quantizer=quest micro_batches=2",
    ],
)
def test_the_planned_passes_and_flops_are_those_of_the_run(overrides):
    cfg = config("steps=4", "batch_size=10", *overrides.split())
    trainer = build(cfg)
    trainer.task.evaluate = lambda *_: {"accuracy": 0.0}
    trainer.fit()
    text = plan(cfg)
    done = trainer.ledger.row()
    assert number(text, r"FLOPs in ([\d,]+) forward") == done["forwards"]
    assert number(text, r"and ([\d,]+) backward") == done["backwards"]
    per_pass = done["flops"] / (
        done["forwards"] * trainer.ledger.forward_flops + done["backwards"] * trainer.ledger.backward_flops
    )
    assert per_pass == pytest.approx(cfg.batch_size)
    assert number(text, r"compute: +([\d.e+]+) FLOPs") == pytest.approx(done["flops"], rel=0.01)


def test_rotating_the_weights_costs_the_same_for_any_batch():
    flops = {}
    for quantizer in ("none", "quest"):
        for size in (1, 64):
            text = plan(config("estimator=ste", f"quantizer={quantizer}", f"batch_size={size}", "steps=1"))
            flops[quantizer, size] = number(text, r"compute: +([\d.e+]+) FLOPs")
    rotation = flops["quest", 1] - flops["none", 1]
    assert rotation > 0
    assert flops["quest", 64] - flops["none", 64] == pytest.approx(rotation, rel=0.2)  # of three printed digits


@pytest.mark.parametrize("model", ["deit_tiny", "resnet50", "llama_9m"])
def test_a_plan_at_paper_scale_needs_no_data(model, tmp_path):
    text = plan(config(f"model={model}", "scale=paper", f"data.root={tmp_path}", "sustained_flops=1e12"))
    assert "scale:       paper" in text
    flops, hours = number(text, r"compute: +([\d.e+]+) FLOPs"), number(text, r"time: +([\d.e+]+) hours at 1e\+12")
    assert hours == pytest.approx(flops / 1e12 / 3600, rel=0.01)
    assert number(text, r"memory: +about ([\d.]+) GiB") > 1  # of activations above all
    assert not list(tmp_path.iterdir())


def test_the_ratio_of_noise_to_guide_is_the_papers():
    assert noise_to_guide(0.999, [7840, 10, 100, 10]) == pytest.approx(2.82, abs=0.01)
    assert noise_to_guide(1 - 1e-9, [30_000_000]) == pytest.approx(0.173, abs=0.001)


@pytest.mark.parametrize("guide_norm", ["global", "rms", "per_tensor"])
def test_the_plan_knows_how_long_the_guide_is(guide_norm):
    """As measured: FOGZO's own guide, of made-up gradients, beside noise of deviation 1."""
    beta, sizes = 0.9, [7840, 10, 100, 10]
    cfg = config(f"estimator.guide_norm={guide_norm}", f"estimator.beta_min={beta}")
    model = build_model(cfg)
    weights = quantized_weights(model)
    generator = torch.Generator().manual_seed(0)
    guide = [torch.randn(weight.latent.shape, generator=generator) for weight in weights]
    units = [torch.ones_like(g) for g in guide]
    normalise(guide, units, guide_norm)
    length = math.sqrt(sum(float(g.square().sum()) for g in guide))
    ratio = math.sqrt((1 - beta) * sum(sizes)) / (math.sqrt(beta) * length)
    assert [g.numel() for g in guide] == sizes
    assert number(plan(cfg), r"noise-to-guide ratio ([\d.e+-]+) at") == pytest.approx(ratio, rel=0.01)
    deviations = [((1 - beta) + beta * g.square().mean()).sqrt() for g in guide]
    std = weights[0].quantizer.smoothing.std
    moved = sum(float(deviation) * size * 2 * 0.8 * std for deviation, size in zip(deviations, sizes, strict=True))
    assert expected_crossings(cfg, weights) == pytest.approx(moved, rel=0.01)


@pytest.mark.parametrize(
    ("overrides", "warning"),
    [
        ("estimator.beta_min=1 estimator.epsilon=1e-3 model=deit_mini", None),
        ("estimator=nspsa", "n-SPSA with 1 samples for 7,960 coordinates: its estimate is nearly all noise"),
        (
            "quantizer=quest",
            "Hadamard blocks of 2 only: choose widths that 16 divides for hidden.bias, head.weight, head.bias",
        ),
        ("quantizer=none estimator=ste", None),
    ],
)
def test_it_warns_of_what_will_not_work(overrides, warning):
    text = plan(config(*overrides.split()))
    assert warning in text if warning else "n-SPSA with" not in text


@pytest.mark.parametrize(
    ("quantizers", "kinds"),
    [
        ("quantizer=fixed activations=quest", {"inputs of "}),
        ("quantizer=quest", {"weight"}),
        ("quantizer=quest activations=quest", {"inputs of ", "weight"}),
        ("quantizer=lsq activations=lsq", set()),
    ],
)
def test_small_hadamard_blocks_of_weights_and_inputs_are_one_warning(quantizers, kinds):
    text = plan(config("model=llama_mini", "model.width=132", "model.heads=6", *quantizers.split()))
    lines = re.findall(r"warning: +Hadamard blocks of (\d+) only: .* divides for (.*)", text)
    assert [block for block, _ in lines] == (["4"] if kinds else [])  # 4 divides 132; the gated layer's 512 are fine
    names = lines[0][1].split(", ") if lines else []
    assert {kind for kind in ("inputs of ", "weight") for name in names if kind in name} == kinds
    assert len(names) == 6 * len(kinds)  # all of a block but down_proj
    assert all(name.startswith("4 x ") for name in names)


def test_the_plan_counts_the_cores_that_decode_images(monkeypatch):
    settings = ("scale=paper", "model=resnet_mini", "epochs=1", "batch_size=64", "data.workers=2")
    text = plan(config(*settings))
    needed = number(text, r"([\d,]+) examples/s")
    assert number(text, r"data: +about ([\d,]+) cores decode") == math.ceil(needed / DECODED["resnet"])
    minutes = 1980 * 64 / (2 * DECODED["resnet"]) / 60
    slow = r"warning: +2 workers, as here, decode about 800 images/s: training would take ([\d.]+) minutes and not"
    assert number(text, slow) == pytest.approx(minutes, rel=0.01)
    enough = plan(config(*settings, f"sustained_flops={1e14 * 2 * DECODED['resnet'] / needed / 1.01}"))
    assert "about 2 cores decode" in enough
    assert "workers, as here" not in enough
    assert "cores decode" not in plan(config("model=resnet_mini"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "4 workers, as here" in plan(config(*settings))
    with pytest.raises(ValueError, match=r"data\.workers=-1 is not possible"):
        plan(config(*settings, "data.workers=-1"))
    with pytest.raises(ValueError, match=r"data\.augmentation='mixup' is not known"):
        plan(config(*settings, "data.augmentation=mixup"))


@pytest.mark.parametrize(
    ("overrides", "keys"),
    [
        ("scale=paper model=deit_mini seed=3 quantizer=lsq activations=lsq device=cpu data.root=nowhere", ""),
        ("scale=paper model=resnet_mini data.image_size=32 steps=4", ", but for steps, data.image_size"),
        ("model=deit_mini estimator=phased estimator.beta_min=0.9", ", but for estimator.beta_min"),
        ("model=deit_mini data=fashion_mnist optimizer=sgd optimizer.lr=0.1", ", but for data, optimizer"),
    ],
)
def test_the_plan_names_what_departs_from_the_recipe(overrides, keys):
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        text = plan(compose("train", overrides.split()))
    assert re.match(rf"scale:       (mini|paper){keys}\n", text)


def test_a_batch_that_does_not_divide_the_data_is_a_note_and_no_warning():
    text = plan(config("batch_size=300", "steps=40"))
    assert "note:        batch_size=300 does not divide the 4,000 training examples" in text
    assert "warning:" not in text
    assert "12,000 examples, 3 epochs" in text
    assert "note:" not in plan(config())


def test_the_epochs_of_a_text_are_known_once_it_is_prepared(tmp_path):
    cfg = config("scale=paper", "model=llama_mini", "steps=10", f"data.root={tmp_path}")
    assert "epochs" not in plan(cfg)
    tokens = 512 * 1024 + 1
    split = SplitManifest(1, tokens, (Shard("train-00000.bin", tokens, "0" * 64),))
    (tmp_path / "c4").mkdir()
    tokenizer = {"name": "none", "sha256": "0" * 64, "end_of_text": 0}
    Manifest("c4", tokenizer, 50_257, "uint16", {"train": split, "test": split}, []).save(tmp_path / "c4")
    assert "5,120 examples, 2,621,440 tokens, 5 epochs" in plan(cfg)


def test_a_probe_that_crosses_next_to_nothing_is_warned_of():
    cfg = config("estimator.beta_min=0.9999999999")
    trainer = build(cfg)
    weights = quantized_weights(trainer.model)
    assert expected_crossings(cfg, weights) < expected_crossings(config(), weights)
    tiny = config(
        "estimator.beta_min=1", "estimator.beta_schedule=constant", "model.inputs=784", "estimator.epsilon=0.001"
    )
    assert "codes differ between the probes of a pair" in plan(tiny)
    assert "codes differ" not in plan(config())


def test_epochs_of_a_text_cannot_be_planned_and_the_message_says_why():
    with pytest.raises(
        ValueError, match=r"epochs=2 counts examples, and how many data=pydocs holds is unknown.*steps=N"
    ):
        plan(config("model=llama_mini", "steps=null", "epochs=2"))
    assert "steps of" in plan(config("model=llama_mini", "steps=7", "epochs=2"))  # steps come first, as in the run


@pytest.mark.parametrize("model", ["mlp", "resnet18", "deit_mini", "llama_mini"])
def test_the_table_of_layers_holds_every_tensor(model):
    cfg = config(f"model={model}", "estimator=ste")
    table = re.findall(r"^ +(?:(\d+) x )?(\S+) +([\dx]+)  fixed 2 bits$", plan(cfg), re.MULTILINE)
    left = {weight.name: "x".join(map(str, weight.latent.shape)) for weight in quantized_weights(build_model(cfg))}
    for count, pattern, shape in table:
        names = [name for name in left if fnmatch(name, pattern) and left[name] == shape]
        assert len(names) == int(count or 1), pattern
        for name in names:
            del left[name]
    assert not left
    assert len(table) <= 16


def test_the_plan_counts_the_processes_of_torchrun(monkeypatch):
    plans = {}
    for ranks in (1, 2):
        monkeypatch.setenv("WORLD_SIZE", str(ranks))
        for parallel in ("data", "probes"):
            overrides = ("model=resnet_mini", "estimator.samples=4", "estimator.beta_schedule=constant")
            plans[ranks, parallel] = plan(config(*overrides, f"parallel={parallel}"))
    assert plans[1, "data"] == plans[1, "probes"]
    one, data, probes = plans[1, "data"], plans[2, "data"], plans[2, "probes"]
    assert "GiB in each of 2 processes" in data
    assert "a micro-batch of 32" in data
    assert "a micro-batch of 64" in probes
    memory = r"about ([\d.]+) GiB"
    assert number(data, memory) < number(one, memory) == number(probes, memory)
    flops, hours = r"compute: +([\d.e+]+) FLOPs", r"time: +([\d.e+-]+) seconds"
    assert number(data, flops) == pytest.approx(number(one, flops), rel=0.02)
    assert number(probes, flops) == number(one, flops)
    assert number(data, hours) == pytest.approx(number(one, hours), rel=0.02)
    # both ranks run the forward and backward pass; the four pairs are shared
    assert 1.2 < number(probes, hours) / number(one, hours) < 1.4


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("batch_size=64", "batch_size=64 cannot be shared by 3 ranks"),
        ("parallel=probes estimator.samples=2", "estimator.samples=2 cannot be spread over 3 ranks: raise samples"),
        ("parallel=probes estimator=ste", "estimator=ste has no samples to share"),
    ],
)
def test_the_plan_refuses_what_the_processes_cannot_share(overrides, message, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match=message):
        plan(config(*overrides.split()))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("model=deit_tiny data=imagenet100", r"imagenet100 has images of shape \(3, 224, 224\), which the model does"),
        ("model=resnet_mini data=imagenet100", r"imagenet100 has images of shape \(3, 224, 224\).*set model\.channels"),
        ("scale=paper model=deit_mini data.image_size=256", r"shape \(3, 256, 256\).*set .*model\.image_size"),
        ("scale=paper model=deit_mini data.image_size=abc", "data.image_size='abc' is not possible"),
        ("scale=paper model=deit_mini model.classes=1000", "imagenet100 has 100 classes, but the model has 1000"),
        ("scale=paper model=resnet_mini data=imagenet1k", "imagenet1k has 1000 classes, but the model has 100"),
        ("model=llama_mini data=mnist5k", "data=mnist5k holds images, .*choose a resnet, deit or mlp for model="),
        ("model=resnet_mini data=pydocs", "data=pydocs holds text, .*choose a llama for model="),
        (
            "model=llama_mini data.sequence=256",
            "pydocs has a sequence of 256, more than the model's 128: set model.seq",
        ),
        ("model=llama_mini data.sequence=0", "data.sequence=0 is not possible"),
        ("model=llama_mini data.vocabulary=4096", "pydocs has a vocabulary of 4096, more than the model's 2048"),
        ("steps_factor=1e20", r"a run of 2e\+23 steps is longer than 10,000,000: lower steps"),
        ("steps=2 steps_factor=1e308", "a run of inf steps is longer"),
        ("training_examples=4001", "training_examples=4001 is not possible: give 1 to 4000"),
        ("model=llama_mini data.vocabulary=7", "data.vocabulary=7 is not possible: .* a whole number of at least 257"),
        ("sustained_flops=0", "sustained_flops=0 is not possible: give a positive number"),
        ("sustained_flops=abc", "sustained_flops='abc' is not possible: give a positive number"),
    ],
)
def test_the_plan_refuses_what_the_run_would(overrides, message):
    with pytest.raises(ValueError, match=message):
        plan(config(*overrides.split()))


@pytest.mark.parametrize("activations", ["lsq", "quest"])
def test_looking_at_the_shapes_leaves_the_model_as_it_was(activations):
    """With quantized inputs too, to which no step is fitted yet."""
    model = build_model(config("model=resnet_mini", "quantizer=quest", f"activations={activations}")).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    check_shape(model, DataShape("digits", image=(1, 28, 28), classes=10))
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_one_process_of_torchrun_prints_the_plan():
    printed = []
    for rank in ("0", "1"):
        done = run("train.py", "plan=true", env={"RANK": rank, "WORLD_SIZE": "2"})
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout)
    assert "in each of 2 processes" in printed[0]
    assert not printed[1]


@pytest.mark.parametrize(("estimator", "largest"), [("nspsa", 3), ("fogzo", 8)])
def test_the_planned_memory_holds_probes_that_are_evaluated_together(estimator, largest):
    cfg = config(
        "model=deit_mini",
        f"estimator={estimator}",
        "estimator.samples=3",
        f"estimator.probe_batch={largest}",
        "estimator.beta_schedule=constant" if estimator == "fogzo" else "seed=0",
        "batch_size=16",
    )
    trainer = build(cfg)
    trainer.train_step(0)
    state = [buffer for values in trainer.optimizer.state.values() for buffer in values.values()]
    with PeakTensorMemory([*trainer.model.parameters(), *trainer.model.buffers(), *state]) as peak:
        trainer.train_step(1)
    d = sum(weight.latent.numel() for weight in quantized_weights(trainer.model))
    cost = measure(trainer.model, cfg, 16)
    expected = memory_bytes(trainer.model, trainer.estimator, d, cost, cfg, trainer.settings, 1)
    assert expected == pytest.approx(peak.most, rel=0.3)
    assert probes_bytes(trainer.estimator, d, cost, trainer.settings) > expected / 2


def test_many_copies_of_a_large_model_are_warned_of_and_not_the_default():
    assert config("estimator=nspsa").estimator.probe_batch == 32  # as the records of the MLP have it
    assert config("estimator=nspsa", "model=deit_mini").estimator.probe_batch == 0
    large = ("model=deit_tiny", "estimator=nspsa", "estimator.samples=100", "batch_size=16")
    assert "probe_batch" not in plan(config(*large))
    text = plan(config(*large, "estimator.probe_batch=32"))
    assert re.search(r"warning: +estimator.probe_batch=32: the copies .* take about [\d.]+ GiB", text)
    assert number(text, r"memory: +about ([\d.]+) GiB") > number(text, r"about ([\d.]+) GiB; a smaller")
