"""ONNX and compressed-tensors: what onnxruntime and transformers compute from a file is what the network computes."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import fogzo
from fogzo.data.tokenize import train_tokenizer
from fogzo.interchange.compressed import export_compressed
from fogzo.interchange.onnx_graph import export_onnx, export_plain_onnx
from fogzo.models import llama, mlp


def a_little_vit():
    return VisionTransformer(img_size=8, patch_size=4, in_chans=1, num_classes=4, embed_dim=16, depth=1, num_heads=2)


def a_little_resnet():
    return ResNet(BasicBlock, layers=(1, 1, 1, 1), num_classes=4, channels=(4, 8, 8, 8), in_chans=1)


# a network, and what it quantizes which layers with
NETWORKS = {
    "mlp": (lambda: mlp(inputs=64, hidden=12, classes=4), fogzo.FixedScale(2), {"biases": True}),
    "mlp with steps": (lambda: mlp(inputs=64, hidden=12, classes=4), fogzo.LSQ(2), {"activations": fogzo.LSQ(2)}),
    "vit": (a_little_vit, fogzo.LSQ(2), {"skip": ["patch_embed", "head"], "activations": fogzo.LSQ(5)}),
    "vit of 8 bits": (a_little_vit, fogzo.LSQ(8), {}),
    "resnet": (a_little_resnet, fogzo.Sign(per_channel=True), {"skip": ["conv1", "fc"]}),
    "resnet with steps": (a_little_resnet, fogzo.LSQ(4), {"activations": fogzo.LSQ(3, signed=False)}),
}
WIDTHS = [
    *(fogzo.FixedScale(bits, per_channel=each) for bits in range(1, 8) for each in (False, True)),
    *(fogzo.FixedScale(bits, grid="twos_complement") for bits in range(1, 9)),
    *(fogzo.LSQ(bits) for bits in range(2, 9)),
    fogzo.Sign(),
]


def quantized(make, quantizer, options):
    torch.manual_seed(0)
    model, x = make(), torch.randn(40, 1, 8, 8)
    for module in model.modules():
        if getattr(module, "bias", None) is not None:
            nn.init.normal_(module.bias, std=0.1)
    fogzo.quantize_model(model, quantizer, **options)
    fogzo.fit_activations(model.eval(), lambda: model(x))
    return model, x


def test_a_language_model_goes_too_at_the_length_of_the_example(tmp_path):
    tokens = torch.randint(50, (5, 8))
    model = llama(layers=1, width=16, heads=2, vocabulary=50, sequence=8).eval()
    fogzo.quantize_model(model, fogzo.LSQ(2), skip=["lm_head"])
    export_onnx(model, tmp_path / "m.onnx", tokens[:2])
    assert torch.allclose(run(tmp_path / "m.onnx", tokens), model(input_ids=tokens).logits, atol=1e-6)


def run(path, x):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"input": x.numpy()})[0])


@pytest.mark.parametrize("network", NETWORKS)
def test_onnxruntime_computes_the_same(network, tmp_path):
    model, x = quantized(*NETWORKS[network])
    with torch.no_grad():
        expected = model(x)
    export_onnx(model, tmp_path / "m.onnx", x[:2])
    logits = run(tmp_path / "m.onnx", x)
    far = (logits - expected).abs().max(1).values / (expected.max() - expected.min())
    # where inputs are rounded, the last bit of a sum decides a code now and then
    assert (far <= 1e-4).float().mean() >= (0.9 if "activations" in NETWORKS[network][2] else 1)
    assert torch.equal(logits.argmax(1), expected.argmax(1)) or "activations" in NETWORKS[network][2]
    assert torch.equal(model(x), expected)  # left as it was


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """A layer for each width, in one file."""
    torch.manual_seed(0)
    layers = {str(i): nn.Linear(6, 6, bias=False) for i in range(len(WIDTHS))}
    model = nn.Sequential()
    for name, layer in layers.items():
        model.add_module(name, fogzo.quantize_model(nn.Sequential(layer), WIDTHS[int(name)])[0])
    path = tmp_path_factory.mktemp("chain") / "m.onnx"
    sizes = export_onnx(model, path, torch.randn(2, 6))
    return model, onnx.load(path), sizes


def test_codes_of_every_width_are_packed_and_give_the_weights_to_the_bit(chain):
    model, file, sizes = chain
    held = {initializer.name: initializer for initializer in file.graph.initializer}
    for number, size in enumerate(sizes.tensors):
        codes, scale = (numpy_helper.to_array(held[f"{number}.weight.{part}"]) for part in ("codes", "scale"))
        weights = codes.astype(np.float32)[..., 0] * (scale.reshape(-1, 1) if scale.ndim else scale)
        assert np.array_equal(weights, model[number].weight.detach().numpy()), WIDTHS[number]
        assert held[f"{number}.weight.codes"].data_type == getattr(onnx.TensorProto, f"INT{size.bits}")
        assert len(held[f"{number}.weight.codes"].raw_data) == -(-36 * size.bits // 8)
    assert {size.bits for size in sizes.tensors} == {2, 4, 8}


def test_the_oldest_version_that_holds_it_is_written_and_no_path_of_this_machine(chain, tmp_path):
    _, two_bits, _ = chain
    assert two_bits.opset_import[0].version == 25
    model, x = quantized(NETWORKS["mlp"][0], fogzo.LSQ(4), {})
    export_onnx(model, tmp_path / "m.onnx", x[:2])
    assert onnx.load(tmp_path / "m.onnx").opset_import[0].version == 21
    export_plain_onnx(model, tmp_path / "plain.onnx", x[:2])
    assert torch.allclose(run(tmp_path / "plain.onnx", x), model(x), atol=1e-5)
    for file in tmp_path.glob("*.onnx"):
        assert b"site-packages" not in file.read_bytes()
    assert (tmp_path / "plain.onnx").stat().st_size > 1.5 * (tmp_path / "m.onnx").stat().st_size


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 64)

    def forward(self, x):
        return self.layer(self.layer(x.flatten(1)))


@pytest.mark.parametrize(
    ("make", "quantizer", "options", "message"),
    [
        (
            NETWORKS["mlp"][0],
            fogzo.QuEST(2),
            {},
            "hidden.weight: ONNX cannot hold QuEST's Hadamard rotation: export to",
        ),
        (NETWORKS["mlp"][0], fogzo.FixedScale(8), {}, "hidden.weight: ONNX would need 9 bits for its codes, and has 8"),
        (
            NETWORKS["mlp"][0],
            fogzo.LSQ(2),
            {"activations": fogzo.QuEST(2)},
            "the inputs of hidden: ONNX cannot hold QuEST's changing scales: export to safetensors",
        ),
        (
            lambda: NETWORKS["mlp"][0]().double(),
            fogzo.LSQ(2),
            {},
            "ONNX gets scales in fp32, and these are",
        ),
        (Twice, fogzo.LSQ(2), {"activations": fogzo.LSQ(2)}, "layer is used 2 times"),
    ],
)
def test_what_onnx_cannot_hold_is_refused_by_name(make, quantizer, options, message, tmp_path):
    model, x = make(), torch.randn(4, 1, 8, 8)
    fogzo.quantize_model(model, quantizer, **options)
    with pytest.raises(ValueError, match=message):
        export_onnx(model, tmp_path / "m.onnx", x)
    assert not list(tmp_path.iterdir())


READER = Path(__file__).resolve().parents[2] / "scripts" / "run_exported.py"
TWOS = {"grid": "twos_complement"}
QUANTIZERS = {
    "4 bits per row": fogzo.FixedScale(4, per_channel=True, **TWOS),
    "2 bits per row": fogzo.FixedScale(2, per_channel=True, **TWOS),
    "2 bits per tensor": fogzo.LSQ(2),
    "8 bits": fogzo.LSQ(8),
    "1 bit, integers": fogzo.FixedScale(1, **TWOS),
    "sign": fogzo.Sign(),
    "half-integers of 2 bits": fogzo.FixedScale(2),
    "half-integers of 7 bits per row": fogzo.FixedScale(7, per_channel=True),
}


def little(quantizer=None, **options):
    torch.manual_seed(0)
    model = llama(layers=1, width=32, heads=2, vocabulary=300, sequence=16).eval()
    return fogzo.quantize_model(model, quantizer, skip=["lm_head"], **options) if quantizer else model


def mixed():
    model = fogzo.quantize_model(little(), fogzo.LSQ(2), skip=["lm_head", "*mlp*"])
    return fogzo.quantize_model(model, fogzo.FixedScale(4, per_channel=True, **TWOS), skip=["lm_head", "*self_attn*"])


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Every network as a folder, and the logits and words of a process that reads them all."""
    root = tmp_path_factory.mktemp("compressed")
    tokens = torch.randint(300, (10, 16), generator=torch.Generator().manual_seed(0))
    np.save(root / "tokens.npy", tokens.numpy())
    tokenizer = train_tokenizer(["def it(returns): return it"] * 9, 300)
    (root / "tokenizer.json").write_text(tokenizer.to_str())
    models = {name: little(quantizer) for name, quantizer in QUANTIZERS.items()} | {"mixed": mixed()}
    words, sizes = [], {}
    for number, (name, model) in enumerate(models.items()):
        text = {"tokenizer": root / "tokenizer.json", "end_of_text": "<|endoftext|>"} if name == "sign" else {}
        sizes[name] = export_compressed(model, root / str(number), **text)
        words += [root / str(number), root / "tokens.npy", root / f"{number}.npy"]
    done = subprocess.run([sys.executable, READER, *words], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    logits = {name: np.load(root / f"{number}.npy") for number, name in enumerate(models)}
    return models, tokens, logits, sizes, root, done.stdout


@pytest.mark.parametrize("name", [*QUANTIZERS, "mixed"])
def test_transformers_computes_the_same_bits_without_fogzo(name, exported):
    models, tokens, logits, *_ = exported
    with torch.no_grad():
        expected = torch.cat([models[name](input_ids=part, use_cache=False).logits for part in tokens.split(8)])
    assert np.array_equal(logits[name], expected.numpy())


def test_the_tokenizer_lies_beside_it_and_generate_prints_text(exported):
    *_, root, words = exported
    number = list(QUANTIZERS).index("sign")
    assert (root / str(number) / "tokenizer_config.json").exists()
    assert json.loads((root / str(number) / "config.json").read_text())["eos_token_id"] == 0
    assert words.splitlines()[number][1:].startswith("The function returns")


def test_codes_are_packed_to_the_width_that_the_config_names(exported):
    *_, sizes, root, _ = exported
    number = list(QUANTIZERS).index("half-integers of 2 bits")
    scheme = json.loads((root / str(number) / "config.json").read_text())["quantization_config"]
    (group,) = scheme["config_groups"].values()
    assert (group["targets"], group["weights"]["num_bits"], scheme["ignore"]) == (["Linear"], 3, ["lm_head"])
    first = sizes["half-integers of 2 bits"].tensors[0]
    assert (first.before, first.after) == (32 * 32 * 4, 32 * 32 * 3 // 8 + 4 + 16)


@pytest.mark.parametrize("full", ["safetensors.torch.save_file", "transformers.PretrainedConfig.save_pretrained"])
def test_an_export_that_fails_leaves_what_was_there(full, tmp_path, monkeypatch):
    export_compressed(little(fogzo.LSQ(2)), tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def fails(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(full, fails)
    with pytest.raises(OSError, match="No space left"):
        export_compressed(little(fogzo.LSQ(4)), tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def biased():
    model = little()
    layer = model.model.layers[0].mlp.down_proj
    layer.bias = nn.Parameter(torch.randn(32))
    return fogzo.quantize_model(model, fogzo.LSQ(2), skip=["lm_head"], biases=True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: little(fogzo.QuEST(2)), "q_proj.weight: compressed-tensors cannot hold QuEST's Hadamard rotation"),
        (lambda: little(fogzo.FixedScale(8)), "compressed-tensors would need 9 bits for its codes, and has 8"),
        (lambda: little(fogzo.LSQ(2), activations=fogzo.LSQ(2)), "cannot hold quantized activations: export to"),
        (lambda: little(fogzo.LSQ(2), activations=fogzo.QuEST(2)), "cannot hold quantized activations: export to"),
        (biased, "down_proj.bias: compressed-tensors holds weights of linear layers alone"),
        (
            lambda: fogzo.quantize_model(nn.Sequential(nn.Linear(4, 4)), fogzo.LSQ(2)),
            "Sequential is no model of transformers",
        ),
    ],
)
def test_what_the_format_cannot_hold_is_refused_by_name(make, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_compressed(make(), tmp_path / "m")
    assert not list(tmp_path.iterdir())
