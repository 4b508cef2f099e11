"""fogzo.export and fogzo.load: the same bits come back, and a stranger's file is refused and leaves the model alone."""

import io
import itertools
import json
import pickle
import resource
import struct

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


HUGE = 2**45


def plain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


class Good:
    """The header, metadata and bytes of a sound file, to be spoiled."""

    def __init__(self, folder):
        model, x = fogzo.quantize_model(plain(), fogzo.LSQ(2), activations=fogzo.LSQ(2)), torch.randn(4, 6)
        fogzo.fit_activations(model, lambda: model(x))
        fogzo.export(model, folder / "good.safetensors")
        raw = (folder / "good.safetensors").read_bytes()
        (length,) = struct.unpack("<Q", raw[:8])
        self.header, self.data = json.loads(raw[8 : 8 + length]), bytearray(raw[8 + length :])
        self.document = json.loads(self.header["__metadata__"]["fogzo"])

    @property
    def first(self):
        return self.document["codes"][0]

    def bytes_of(self, name):
        return slice(*self.header[name]["data_offsets"])

    def raw(self):
        self.header["__metadata__"] = {"fogzo": json.dumps(self.document)}
        return self.with_header(json.dumps(self.header).encode())

    def with_header(self, header, length=None):
        return struct.pack("<Q", len(header) if length is None else length) + header + bytes(self.data)


def told(**fields):
    """Metadata of the first quantized tensor that say something else."""

    def spoil(good):
        good.first.update(fields)
        return good.raw()

    return spoil


def document(**fields):
    def spoil(good):
        good.document.update(fields)
        return good.raw()

    return spoil


def tensor(name, **fields):
    """A tensor of the safetensors header that says something else."""

    def spoil(good):
        good.header[name].update(fields)
        return good.raw()

    return spoil


def metadata(text):
    def spoil(good):
        good.header["__metadata__"] = text if isinstance(text, dict) else {"fogzo": text}
        return good.with_header(json.dumps(good.header).encode())

    return spoil


def overwritten(name, values):
    """The bytes of a tensor replaced; the tensors' SHA-256 is then what it should be if it were a stranger's own."""

    def spoil(good):
        where = good.bytes_of(name)
        good.data[where] = values
        good.document["sha256"] = _digest(good)
        return good.raw()

    return spoil


def inputs_of_another_quantizer(good):
    good.data[good.bytes_of("0.input_quantizer.quantizer._extra_state").start] ^= 1
    good.document["sha256"] = _digest(good)
    return good.raw()


def _digest(good):
    from fogzo.interchange.canonical import digest

    kinds = {"F32": torch.float32, "BOOL": torch.bool, "U8": torch.uint8}
    names = [n for n in good.header if not n.endswith((".codes", ".scale")) and n != "__metadata__"]
    return digest(
        {
            n: torch.frombuffer(bytearray(good.data[good.bytes_of(n)]), dtype=kinds[good.header[n]["dtype"]])
            for n in names
        }
    )


def activation(**fields):
    def spoil(good):
        good.document["activations"][0].update(fields)
        return good.raw()

    return spoil


def without(name):
    def spoil(good):
        del good.header[name]
        start, end, shift = 0, len(good.data), bytearray()
        for other in sorted((k for k in good.header if k != "__metadata__"), key=lambda k: good.bytes_of(k).start):
            part = good.data[good.bytes_of(other)]
            good.header[other]["data_offsets"] = [len(shift), len(shift) + len(part)]
            shift += part
        assert start < end
        good.data = shift
        return good.raw()

    return spoil


def another(name, dtype="F32", size=4):
    def spoil(good):
        good.header[name] = {"dtype": dtype, "shape": [1], "data_offsets": [len(good.data), len(good.data) + size]}
        good.data += bytes(size)
        return good.raw()

    return spoil


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('code has run')",)


def torch_file(good):
    buffer = io.BytesIO()
    torch.save({"weight": torch.ones(3)}, buffer)
    return buffer.getvalue()


def repeated_tensor(good):
    good.document["codes"].append(good.first)
    return good.raw()


def repeated_layer(good):
    good.document["activations"].append(good.document["activations"][0])
    return good.raw()


def endless_name(good):
    good.first["name"] = "x" * 10**6
    return good.raw()


def set_behind_the_end(good):  # 5 x 3 codes of 2 bits end within a byte
    where = good.bytes_of("2.weight.codes")
    good.data[where.stop - 1] |= 0b11000000
    import hashlib

    good.document["codes"][1]["sha256"] = hashlib.sha256(good.data[where]).hexdigest()
    return good.raw()


NAN, NEGATIVE, ZERO = (struct.pack("<f", value) for value in (float("nan"), -1.0, 0.0))
SPOILT = {
    "empty": (lambda good: b"", "no safetensors file"),
    "seven bytes": (lambda good: b"fogzo!!", "its header claims"),
    "text": (lambda good: b"hello, this is a text file " * 40, "its header claims"),
    "pickle that runs code": (lambda good: pickle.dumps(Bomb()), "its header claims"),
    "torch.save": (torch_file, "its header claims"),
    "header longer than memory": (lambda good: good.with_header(b"{}", HUGE), "its header claims"),
    "header longer than the file": (lambda good: good.with_header(b"{}", 10_000), "no safetensors file"),
    "header no JSON": (lambda good: good.with_header(b"{[}"), "no safetensors file"),
    "header nested deeply": (lambda good: good.with_header(b'{"a":' * 50_000), "no safetensors file"),
    "truncated in the tensors": (lambda good: good.raw()[:-9], "no safetensors file"),
    "longer than it says": (lambda good: good.raw() + b"more", "no safetensors file"),
    "tensor of terabytes": (tensor("0.bias", shape=[HUGE]), "no safetensors file"),
    "tensor beyond the file": (tensor("0.bias", data_offsets=[0, HUGE], shape=[HUGE // 4]), "no safetensors file"),
    "overflowing shape": (tensor("0.bias", shape=[2**63, 2**63]), "no safetensors file"),
    "unknown type of numbers": (tensor("0.bias", dtype="F31"), "no safetensors file"),
    "overlapping tensors": (tensor("0.bias", data_offsets=[8, 28]), "no safetensors file"),
    "another type of numbers": (tensor("0.bias", dtype="I32"), "0.bias is torch.int32, and the model needs"),
    "reshaped": (tensor("0.bias", shape=[5, 1]), r"0.bias has the shape \(5, 1\), and the model needs \(5,\)"),
    "reshaped codes": (tensor("0.weight.codes", shape=[2, 4]), r"0.weight.codes has the shape \(2, 4\), and .* \(8,\)"),
    "codes of signed bytes": (tensor("0.weight.codes", dtype="I8"), "0.weight.codes is torch.int8"),
    "no metadata": (metadata({"format": "pt"}), "it was not written by fogzo.export"),
    "metadata no JSON": (metadata("{nonsense"), "its metadata are no JSON"),
    "metadata nested deeply": (metadata("[" * 500_000), "its metadata are no JSON"),
    "metadata a number": (metadata("7"), "it has version None of the format"),
    "number with a million digits": (metadata('{"version": ' + "9" * 10**6 + "}"), "its metadata are no JSON"),
    "later version": (document(version=2), "it has version 2 of the format, and this program reads version 1"),
    "version true": (document(version=True), "it has version True"),
    "a field more": (
        document(code="import os"),
        "the metadata must have the fields version, codes, activations, sha256, run",
    ),
    "codes no list": (document(codes={}), r"codes of the metadata is \{\}, and must be a list"),
    "a tensor that says less": (document(codes=[{"name": "0.weight"}]), "a quantized tensor must have the fields"),
    "a tensor listed twice": (repeated_tensor, "listed twice"),
    "another SHA-256": (told(sha256="0" * 64), "the codes of 0.weight have another SHA-256"),
    "bits of terabytes": (told(bits=HUGE), "0.weight has 35184372088832 bits"),
    "no bits": (told(bits=0), "0.weight has 0 bits"),
    "bits as a word": (told(bits="2"), "bits of a quantized tensor is 2, and must be a int"),
    "other bits": (told(bits=3), r"0.weight.codes has the shape \(8,\), and the model needs \(12,\)"),
    "shape of terabytes": (told(shape=[HUGE, HUGE]), "0.weight has the shape"),
    "another shape": (told(shape=[6, 5]), r"0.weight has the shape \[6, 5\], and the model needs \(5, 6\)"),
    "codes nowhere": (told(lowest=float("1e30")), "lowest of 0.weight is 1e"),
    "infinite codes": (told(lowest=float("inf")), "lowest of a quantized tensor is inf"),
    "codes that fall together": (told(spacing=0.0), "spacing of 0.weight is 0.0"),
    "codes between codes": (told(spacing=0.3), "spacing of 0.weight is 0.3"),
    "rotation that does not fit": (told(rotation=4), "0.weight is rotated in blocks of 4, which do not tile rows of 6"),
    "rotation of terabytes": (told(rotation=HUGE), "0.weight is rotated in blocks of"),
    "rotation of nothing": (told(rotation=0), "0.weight is rotated in blocks of 0"),
    "quantized tensor of no model": (told(name="9.weight"), "it lacks 0.weight and 3 more|it lacks 0.weight"),
    "name without end": (endless_name, "is it another network's"),
    "quantized and plain": (told(name="0.bias"), "is it another network's"),
    "codes behind the last": (set_behind_the_end, "the codes of 2.weight go on behind its last one"),
    "scale not a number": (overwritten("0.weight.scale", NAN), "the scale of 0.weight must be positive and finite"),
    "scale negative": (overwritten("0.weight.scale", NEGATIVE), "the scale of 0.weight must be positive and finite"),
    "scale zero": (overwritten("0.weight.scale", ZERO), "the scale of 0.weight must be positive and finite"),
    "bias changed": (lambda good: good.raw()[:-1] + b"\x7f", "its tensors have another SHA-256|SHA-256"),
    "step of inputs not a number": (overwritten("0.input_quantizer.quantizer.step", NAN), "no step of activations"),
    "inputs of another quantizer": (inputs_of_another_quantizer, "is of another quantizer than its metadata say"),
    "floor of inputs negative": (overwritten("0.input_quantizer.quantizer.floor", NEGATIVE), "no step of activations"),
    "a tensor less": (without("0.bias"), "it lacks 0.bias and 0 more: is it another network's"),
    "a tensor more": (another("extra"), "it holds, beyond the model's, extra and 0 more"),
    "inputs of no layer": (activation(layer="1"), "it quantizes the inputs of 1, which is no such layer"),
    "inputs twice": (repeated_layer, "it quantizes the inputs of 0, which is no such layer, or twice"),
    "inputs by a stranger": (activation(quantizer="os.system"), "inputs of a layer is|must have the fields"),
    "inputs with too many bits": (activation(bits=40), "bits=40 is not possible"),
    "inputs no list of layers": (document(activations=["0"]), "a layer's inputs must have the fields"),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    return lambda: Good(folder)


@pytest.mark.parametrize("kind", SPOILT)
def test_a_hostile_or_broken_file_is_refused_in_one_sentence(kind, good, tmp_path):
    spoil, message = SPOILT[kind]
    path = tmp_path / "stranger.safetensors"
    path.write_bytes(spoil(good()))
    model = plain()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=message) as refusal:
        fogzo.load(path, model)
    assert str(refusal.value).startswith(f"{path} cannot be loaded: ")
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 400
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - highest < 2**18  # KiB
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_the_file_that_they_are_made_of_is_sound(good, tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(good().raw())
    assert fogzo.load(path, plain())(torch.ones(1, 6)).isfinite().all()


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir()], ids=["missing", "a folder"])
def test_what_is_no_file_is_refused(make, tmp_path):
    make(tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match="it is not there, or no file"):
        fogzo.load(tmp_path / "m.safetensors", plain())


def test_the_model_must_be_the_plain_one_of_the_same_shape(tmp_path):
    model = fogzo.quantize_model(plain(), fogzo.LSQ(2))
    fogzo.export(model, tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match="give load one that quantize_model has not seen"):
        fogzo.load(tmp_path / "m.safetensors", model)
    with pytest.raises(ValueError, match=r"0.weight has the shape|0.bias has the shape"):
        fogzo.load(tmp_path / "m.safetensors", nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 3)))
    with pytest.raises(ValueError, match="is it another network's"):
        fogzo.load(tmp_path / "m.safetensors", nn.Linear(6, 5))
    with pytest.raises(ValueError, match=r"the model needs torch.float64"):
        fogzo.load(tmp_path / "m.safetensors", plain().double())
