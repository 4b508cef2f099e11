"""The model family: sizes, which layers are quantized, errors, and that library models stay library models."""

import functools
import math
import socket

import pytest
import torch
import torch.nn.functional as F
import yaml
from helpers.configs import CONFIGS
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

import fogzo
from fogzo.models import deit_mini, deit_small, deit_tiny, llama, resnet18, resnet50, resnet_mini

NETWORKS = yaml.safe_load((CONFIGS / "networks.yaml").read_text(encoding="utf-8"))
NAMES = sorted(NETWORKS["estimators"].keys() - NETWORKS["libraries"])  # those have test_libraries.py
FILES = sorted(file.stem for file in (CONFIGS / "model").glob("*.yaml"))  # the LLaMAs' sizes stand in a table
MINIS = ("deit_mini", "resnet_mini", "llama_mini")
SKIP = {"deit": ["patch_embed", "head"], "resnet": ["conv1", "fc"], "llama": ["lm_head"]}
DIGITS = {"image_size": 28, "patch_size": 7, "channels": 1, "classes": 10, "drop_path": 0.0}
SMALL_IMAGES = {"channels": 1, "classes": 10, "small_stem": True}


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("a model was about to call the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@functools.cache
def chosen(name):
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose(overrides=[f"+model={name}"]).model


def config(name, **overrides):
    cfg = chosen(name)
    assert overrides.keys() <= cfg.keys()
    return OmegaConf.merge(cfg, overrides)


def made(cfg):
    return instantiate({key: value for key, value in cfg.items() if key != "name"})


def built(name, **overrides):
    return made(config(name, **overrides))


def on_meta(name, **overrides):
    """Shapes without numbers: the largest has 1.3 GB of them."""
    with torch.device("meta"):
        return built(name, **overrides)


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def skip_of(name):
    return SKIP[name.rstrip("0123456789").partition("_")[0]]


def logits(model, x):
    return model(x) if x.is_floating_point() else model(input_ids=x, use_cache=False).logits


def examples(**sizes):
    """Inputs and targets of the size that the model's config names."""
    if "vocabulary" in sizes:
        tokens = torch.randint(sizes["vocabulary"], (4, 17))
        return tokens[:, :-1], tokens[:, 1:]
    return torch.randn(4, sizes["channels"], 28, 28), torch.randint(sizes["classes"], (4,))


def loss_of(model, x, y):
    return F.cross_entropy(logits(model, x).flatten(0, -2), y.flatten())


@pytest.mark.parametrize("name", NAMES)
def test_a_config_bears_its_own_name(name):
    assert config(name).name == name


COUNTS = {
    "mlp": 7_960,
    "deit_tiny": 5_543_716,
    "deit_small": 21_704_164,
    "deit_mini": 803_338,
    "resnet18": 11_227_812,
    "resnet50": 23_712_932,
    "resnet_mini": 308_538,
    "llama_9m": 47_485_056,
    "llama_20m": 71_965_184,
    "llama_30m": 94_871_680,
    "llama_95m": 94_871_680,
    "llama_200m": 205_800_448,
    "llama_300m": 331_966_720,
    "llama_mini": 1_574_016,
}


@pytest.mark.parametrize("name", NAMES)
def test_parameter_counts_are_those_that_the_config_names(name):
    model = on_meta(name)
    assert count(model) == COUNTS[name]
    if name in FILES:
        comment = (CONFIGS / "model" / f"{name}.yaml").read_text(encoding="utf-8").partition("\nname:")[0]
        assert comment.startswith("# ")
        assert f"{COUNTS[name]:,} " in comment


# in millions, as the issue and the paper's facts state them: with and without embedding and head
LLAMAS = [("9m", 47.5, 8.85), ("20m", 72.0, 20.45), ("30m", 94.9, 30.5), ("95m", 94.9, 30.5), ("200m", 205.8, 102.8)]


@pytest.mark.parametrize(("size", "total", "inner"), [*LLAMAS, ("300m", 332.0, 203.2)])
def test_llama_sizes(size, total, inner):
    model = on_meta(f"llama_{size}")
    assert count(model) / 1e6 == pytest.approx(total, abs=0.05)
    assert count(model.model.layers) / 1e6 == pytest.approx(inner, abs=0.05)


def test_defaults_are_the_libraries_own_models():
    import timm
    from torchvision import models

    with torch.device("meta"):
        pairs = [
            (deit_tiny(), timm.create_model("deit_tiny_patch16_224"), 5_717_416),
            (deit_small(), timm.create_model("deit_small_patch16_224"), 22_050_664),
            (resnet18(), models.resnet18(), 11_689_512),
            (resnet50(), models.resnet50(), 25_557_032),
        ]
    for ours, theirs, parameters in pairs:
        assert type(ours) is type(theirs)
        assert str(ours) == str(theirs)
        assert [(k, v.shape) for k, v in ours.state_dict().items()] == [
            (k, v.shape) for k, v in theirs.state_dict().items()
        ]
        assert count(ours) == parameters
    torch.manual_seed(1)
    ours = resnet18()
    torch.manual_seed(1)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), models.resnet18().parameters(), strict=True))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "mlp"])
def test_models_are_the_libraries_classes_through_and_through(name):
    libraries = {"torch", "timm", "torchvision", "transformers"}
    for module in on_meta(name).modules():
        assert type(module).__module__.partition(".")[0] in libraries
    assert type(on_meta(name)).__name__ in ("VisionTransformer", "ResNet", "LlamaForCausalLM")


BLOCK = {
    "deit": ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"],
    "llama": [
        *(f"self_attn.{part}_proj" for part in "qkvo"),
        *(f"mlp.{part}_proj" for part in ("gate", "up", "down")),
    ],
}


@pytest.mark.parametrize("name", ["deit_mini", "deit_tiny", "llama_mini"])
def test_of_a_transformer_the_blocks_linear_layers_are_quantized(name):
    small = DIGITS if name == "deit_tiny" else {}
    model = fogzo.quantize_model(built(name, **small), fogzo.LSQ(2), skip=skip_of(name))
    family = name.partition("_")[0]
    path, depth = ("blocks", len(model.blocks)) if family == "deit" else ("model.layers", len(model.model.layers))
    expected = [f"{path}.{i}.{layer}.weight" for i in range(depth) for layer in BLOCK[family]]
    assert [weight.name for weight in fogzo.quantized_weights(model)] == expected


@pytest.mark.parametrize(("name", "quantized", "shortcuts"), [("resnet18", 19, 3), ("resnet_mini", 11, 3)])
def test_of_a_resnet_all_but_first_convolution_and_classifier_are_quantized(name, quantized, shortcuts):
    model = fogzo.quantize_model(built(name, **SMALL_IMAGES), fogzo.LSQ(2), skip=skip_of(name))
    names = {weight.layer_name for weight in fogzo.quantized_weights(model)}
    layers = {name for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}
    assert layers - names == {"conv1", "fc"}
    assert len(names) == quantized
    assert sum("downsample" in name for name in names) == shortcuts


@pytest.mark.parametrize("name", [*MINIS, "deit_tiny", "resnet18"])
def test_every_parameter_of_a_quantized_model_learns(name, capfd):
    cfg = config(name, **{"deit_tiny": DIGITS, "resnet18": SMALL_IMAGES}.get(name, {}))
    model = fogzo.quantize_model(made(cfg), fogzo.LSQ(2), skip=skip_of(name))
    x, y = examples(**cfg)
    loss = loss_of(model, x, y)
    loss.backward()
    outputs = cfg.get("vocabulary", cfg.get("classes"))
    assert logits(model, x).shape == (*y.shape, outputs)
    if not name.startswith("resnet"):  # whose classifier begins with larger weights
        assert loss.item() == pytest.approx(math.log(outputs), rel=0.2)
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.any(), parameter_name
    assert capfd.readouterr() == ("", "")  # no advice, no warnings from the libraries


@pytest.mark.parametrize("name", MINIS)
def test_a_mini_learns_a_batch_by_heart(name):
    cfg = config(name)
    model = fogzo.quantize_model(made(cfg), fogzo.LSQ(2), skip=skip_of(name))
    x, y = examples(**cfg)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        losses.append(loss_of(model, x, y))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0] / 2


def test_quest_fits_the_widths_that_128_does_not_divide():
    for width, heads in ((192, 3), (576, 9)):
        model = built("llama_mini", width=width, heads=heads, layers=1, vocabulary=64)
        plain = [weight.detach().clone() for weight in model.model.layers.parameters() if weight.dim() == 2]
        fogzo.quantize_model(model, fogzo.QuEST(2), skip=SKIP["llama"])
        assert len(plain) == 7
        for weight, before in zip(fogzo.quantized_weights(model), plain, strict=True):
            after = weight.quantizer(before)
            assert after.shape == before.shape
            # a Gaussian on the best 4-level grid keeps 88 % of its power
            assert (after - before).square().mean() / before.square().mean() == pytest.approx(0.119, abs=0.01)
        x, y = examples(vocabulary=64)
        loss_of(model, x, y).backward()
        assert all(weight.latent.grad.any() for weight in fogzo.quantized_weights(model))


def test_llama_is_built_as_quests_code_builds_it():
    model = built("llama_mini")
    c = model.config
    assert (c._attn_implementation, c.hidden_act, c.use_cache) == ("causal_sdpa", "silu", False)
    assert (c.attention_dropout, c.tie_word_embeddings, c.max_position_embeddings) == (0.0, False, 128)
    assert not any("bias" in name for name, _ in model.named_parameters())
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32
        if parameter.dim() == 2:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.02), name
    assert built("llama_mini", init_std=0.1).lm_head.weight.std().item() == pytest.approx(0.1, rel=0.02)


def test_a_token_sees_none_after_it():
    model = built("llama_mini")
    x, _ = examples(vocabulary=2048)
    changed = x.clone()
    changed[:, 9] = (x[:, 9] + 1) % 2048
    with torch.no_grad():
        before, after = logits(model, x), logits(model, changed)
    torch.testing.assert_close(before[:, :9], after[:, :9], rtol=0, atol=1e-5)
    assert (before[:, 9:] - after[:, 9:]).abs().amax(-1).min() > 1e-4


def test_the_small_stem_keeps_the_image_whole():
    x = torch.empty(2, 1, 28, 28, device="meta")
    for make in (resnet18, resnet50, resnet_mini):
        for small, side in ((True, 28), (False, 7)):
            with torch.device("meta"):
                model = make(channels=1, classes=10, small_stem=small)
            sizes = []
            model.layer1.register_forward_pre_hook(lambda _, inputs, sizes=sizes: sizes.append(inputs[0].shape[-2:]))
            assert model(x).shape == (2, 10)
            assert sizes == [(side, side)]


def test_the_first_gradients_of_a_resnet50_are_no_longer_than_a_step_can_take():
    # with torchvision's default, whose branches begin at full strength, the norm is above 50, and SGD diverges
    torch.manual_seed(0)
    model = resnet50(channels=1, classes=10)
    x = torch.randn(8, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    F.cross_entropy(model(x), torch.arange(8)).backward()
    assert torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]) < 10


def test_drop_path_rises_over_the_blocks_and_draws_from_the_global_generator():
    model = deit_mini(drop_path=0.3)
    rates = [getattr(block.drop_path2, "drop_prob", 0.0) for block in model.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3])
    x = torch.randn(8, 1, 28, 28)
    state = torch.get_rng_state()
    first, second = model(x), model(x)
    torch.set_rng_state(state)
    assert torch.equal(model(x), first)
    assert not torch.equal(first, second)
    assert torch.equal(model.eval()(x), model(x))


SIZES = {"layers": 1, "width": 64, "heads": 2, "vocabulary": 64, "sequence": 16}
REFUSED = [
    (deit_tiny, {"image_size": 28}, r"image_size=28 .*patch_size=16.* \(2, 4, 7, 14\)"),
    (deit_small, {"image_size": 29, "patch_size": 4}, r"image_size=29 .*patch_size=4.* \(1\)"),
    (deit_mini, {"patch_size": 0}, "patch_size=0"),
    (deit_mini, {"channels": 1.0}, r"channels=1\.0"),
    (deit_mini, {"drop_path": 1.0}, r"drop_path=1\.0"),
    (deit_mini, {"drop_path": "much"}, "drop_path='much'"),
    (resnet18, {"classes": -1}, "classes=-1"),
    (resnet50, {"channels": True}, "channels=True"),
    (resnet_mini, {"classes": "ten"}, "classes='ten'"),
    (llama, SIZES | {"heads": 5}, "width=64 .*heads=5.*divides the width"),
    (llama, SIZES | {"width": 66, "heads": 2}, r"heads 33 wide, which is odd.*multiple of 2 \* heads"),
    (llama, SIZES | {"layers": 0}, "layers=0"),
    (llama, SIZES | {"init_std": 0}, "init_std=0 "),
]


@pytest.mark.parametrize(("make", "arguments", "message"), REFUSED, ids=[case[2] for case in REFUSED])
def test_impossible_sizes_are_refused_by_name(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)
