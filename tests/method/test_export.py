"""fogzo.export and fogzo.load: the same bits come back, from a file of the size that the bits say."""

import itertools
import json

import pytest
import torch
from helpers.checks import readable
from safetensors import safe_open
from torch import nn

import fogzo
from fogzo.interchange.coded import pack, packed_size, unpack
from fogzo.quantizers import Quantizer
from fogzo.smoothing import Uniform

GRANULARITY = [False, True]
QUANTIZERS = [
    *(fogzo.FixedScale(bits, per_channel=each) for bits, each in itertools.product(range(1, 9), GRANULARITY)),
    *(
        fogzo.FixedScale(bits, grid="twos_complement", per_channel=each)
        for bits in (1, 2, 5, 8)
        for each in GRANULARITY
    ),
    *(fogzo.Sign(per_channel=each) for each in GRANULARITY),
    *(fogzo.LSQ(bits, each) for bits, each in itertools.product(range(2, 9), GRANULARITY)),
    *(fogzo.LSQ(bits, signed=False) for bits in (2, 4)),
    *(fogzo.QuEST(bits) for bits in range(1, 9)),
]
ACTIVATIONS = {
    "no": lambda: None,
    "lsq": lambda: fogzo.LSQ(2),
    "lsq, unsigned": lambda: fogzo.LSQ(4, signed=False),
    "quest": lambda: fogzo.QuEST(3),
}
NETWORKS = {
    "linear": (lambda: nn.Sequential(nn.Linear(24, 12), nn.ReLU(), nn.Linear(12, 5, bias=False)), (6, 24)),
    "all layers": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 8, 3, groups=2, bias=False),
            nn.Flatten(2),
            nn.Conv1d(8, 8, 3, groups=8),
            nn.Flatten(1),
            nn.Linear(112, 5),
        ),
        (3, 2, 8, 8),
    ),
}


def trained(network, quantizer, *, biases=True, activations=None, dtype=torch.float32):
    """A quantized network whose weights have left those that its scales were fitted to, and its inputs."""
    make, shape = NETWORKS[network]
    torch.manual_seed(1)
    model, x = make().to(dtype), torch.randn(shape, dtype=dtype)
    for module in model.modules():  # a bias of zeros has no scale
        if getattr(module, "bias", None) is not None:
            nn.init.normal_(module.bias)
    fogzo.quantize_model(model, quantizer, biases=biases, activations=activations)
    fogzo.fit_activations(model, lambda: model(x))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * parameter.std(correction=0) * torch.randn_like(parameter)
    return model.eval(), x


def quantized(model):
    return {weight.name: weight.quantizer(weight.latent) for weight in fogzo.quantized_weights(model)}


def assert_comes_back(model, x, network, path):
    fogzo.export(model, path)
    plain = NETWORKS[network][0]().to(x.dtype).eval()
    assert fogzo.load(path, plain) is plain
    state = plain.state_dict()
    for name, weights in quantized(model).items():
        assert torch.equal(state[name], weights)
    assert torch.equal(plain(x), model(x))


@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=readable)
def test_weights_and_logits_come_back_bit_for_bit(quantizer, tmp_path):
    for activations in ACTIVATIONS.values():
        model, x = trained("all layers", quantizer, activations=activations())
        assert_comes_back(model, x, "all layers", tmp_path / "model.safetensors")
    model, x = trained("all layers", quantizer, biases=False)
    assert_comes_back(model, x, "all layers", tmp_path / "model.safetensors")


def test_a_network_in_double_precision_comes_back_too(tmp_path):
    model, x = trained("linear", fogzo.QuEST(2), dtype=torch.float64)
    assert_comes_back(model, x, "linear", tmp_path / "model.safetensors")


@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_of_any_width_are_packed_without_a_gap(bits):
    index = torch.randint(2**bits, (3, 7), dtype=torch.uint8)
    packed = pack(index, bits)
    assert len(packed) == packed_size(bits, (3, 7)) == -(-21 * bits // 8)
    assert torch.equal(unpack(packed, bits, (3, 7)), index)
    stream = sum(int(code) << (i * bits) for i, code in enumerate(index.flatten()))
    assert bytes(packed.tolist()) == stream.to_bytes(len(packed), "little")


def test_the_file_says_what_it_holds_and_where_it_comes_from(tmp_path):
    model, _ = trained("linear", fogzo.FixedScale(2))
    fogzo.export(model, tmp_path / "m.safetensors", run={"identity": "01234567"})
    with safe_open(tmp_path / "m.safetensors", framework="pt") as file:
        document = json.loads(file.metadata()["fogzo"])
    assert document["version"] == 1
    assert document["run"] == {"identity": "01234567"}
    first = document["codes"][0]
    assert (first["name"], first["quantizer"], first["bits"]) == ("0.weight", "FixedScale", 2)
    assert (first["lowest"], first["spacing"], first["shape"], first["rotation"]) == (-1.5, 1.0, [12, 24], 1)


def test_sizes_before_and_after_are_those_of_the_bytes(tmp_path):
    model, _ = trained("linear", fogzo.LSQ(2), biases=False)
    sizes = fogzo.export(model, tmp_path / "m.safetensors")
    assert [(size.name, size.before, size.after) for size in sizes.tensors] == [
        ("0.weight", 12 * 24 * 4, 12 * 24 // 4 + 4),
        ("2.weight", 5 * 12 * 4, 5 * 12 // 4 + 4),
    ]
    assert sizes.before == (12 * 24 + 12 + 5 * 12) * 4
    assert sizes.after == (tmp_path / "m.safetensors").stat().st_size
    assert "1,392" in str(sizes)
    assert "0.weight: 2 bits, 1,152 → 76 bytes (15.2×)" in str(sizes.tensors[0])


@pytest.mark.parametrize("quantizer", [fogzo.LSQ(2), fogzo.Sign(), fogzo.QuEST(2)], ids=readable)
def test_the_quantized_layers_of_a_two_bit_deit_tiny_shrink_fifteen_times(quantizer, tmp_path):
    from fogzo.models import deit_tiny

    model = fogzo.quantize_model(deit_tiny(), quantizer, skip=["patch_embed", "head"])
    sizes = fogzo.export(model, tmp_path / "deit.safetensors")
    assert sum(size.before for size in sizes.tensors) == 12 * 442_368 * 4
    assert sum(size.before for size in sizes.tensors) >= 15 * sum(size.after for size in sizes.tensors)


def test_loading_puts_the_codes_on_no_latents_and_keeps_what_is_trainable(tmp_path):
    model, _ = trained("linear", fogzo.LSQ(2), activations=fogzo.LSQ(2))
    fogzo.export(model, tmp_path / "m.safetensors")
    plain = fogzo.load(tmp_path / "m.safetensors", NETWORKS["linear"][0]())
    with pytest.raises(ValueError, match="has no quantized weights"):
        fogzo.quantized_weights(plain)


class Halves(Quantizer):
    """A user's own: no scale times code."""

    bits, smoothing = 1, Uniform(0.5)

    def fit(self, latent): ...

    def scale(self, latent):
        return torch.ones(())

    def encode(self, x):
        return x.clamp(-1, 1).round()

    def unrotate(self, w):
        return w + 0.25

    def surrogate_derivative(self, x):
        return None


def not_finite():
    model, _ = trained("linear", fogzo.Sign())
    with torch.no_grad():
        fogzo.quantized_weights(model)[0].latent[0, 0] = torch.nan
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (NETWORKS["linear"][0], "has no quantized weights: call fogzo.quantize_model"),
        (not_finite, "0.weight is not finite: export a run that has not diverged"),
        (lambda: fogzo.quantize_model(NETWORKS["linear"][0](), Halves()), "0.weight: Halves is no scale times code"),
    ],
)
def test_what_no_file_can_hold_is_refused(make, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        fogzo.export(make(), tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_failed_export_leaves_the_file_before_it(tmp_path, monkeypatch):
    model, _ = trained("linear", fogzo.LSQ(2))
    path = tmp_path / "m.safetensors"
    fogzo.export(model, path)
    before = path.read_bytes()

    def full(tensors, target, metadata):
        target.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="no space"):
        fogzo.export(model, path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["m.safetensors"]


def test_steps_that_were_never_fitted_go_into_no_file(tmp_path):
    model = fogzo.quantize_model(nn.Sequential(nn.Linear(8, 8)), fogzo.LSQ(2), activations=fogzo.LSQ(2))
    with pytest.raises(ValueError, match="has no step yet: call the network on a batch of inputs in training mode"):
        fogzo.export(model, tmp_path / "x.safetensors")
    assert not any(tmp_path.iterdir())
