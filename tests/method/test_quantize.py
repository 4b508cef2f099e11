"""quantize_model, quantized_weights and bake: what they do to a model, and what they refuse without touching it."""

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers.checks import readable
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

from fogzo import LSQ, FixedScale, QuEST, Sign, bake, quantize_model, quantized_weights

PROTOTYPES = [FixedScale(2), FixedScale(3, per_channel=True), Sign("tanh"), LSQ(2), LSQ(3, True), QuEST(2)]
each_quantizer = pytest.mark.parametrize("prototype", PROTOTYPES, ids=readable)
LAYERS = ["stem", "block.conv", "block.down", "blocks.0", "head"]


class Net(nn.Module):
    """Convolutions (one without bias), a norm and linear layers, nested."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3)
        self.block = nn.Sequential()
        self.block.add_module("conv", nn.Conv2d(4, 4, 3, bias=False))
        self.block.add_module("norm", nn.BatchNorm2d(4))
        self.block.add_module("down", nn.Conv2d(4, 4, 2, stride=2))
        self.blocks = nn.Sequential(nn.Linear(16, 8), nn.ReLU())
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.blocks(self.block(self.stem(x).relu()).flatten(1)))


def images(**kwargs):
    return torch.randn(6, 1, 8, 8, **kwargs)


def names(model):
    return [weight.name for weight in quantized_weights(model)]


def net_with(change):
    model = Net()
    change(model)
    return model


def same_state(a, b):
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


@each_quantizer
def test_a_model_is_quantized_in_place_and_computes_with_the_quantized_weights(prototype):
    model, reference, x = Net().eval(), Net().eval(), images()
    reference.load_state_dict(model.state_dict())
    assert quantize_model(model, prototype) is model
    assert names(model) == [f"{layer}.weight" for layer in LAYERS]
    for weight in quantized_weights(model):
        plain = reference.get_parameter(weight.name)
        assert torch.equal(weight.latent, plain)
        quantizer = copy.deepcopy(prototype)
        quantizer.fit(plain.detach())
        plain.data = quantizer(plain.detach())
    assert torch.equal(model(x), reference(x))


@pytest.mark.parametrize(
    ("skip", "left"),
    [
        ((), LAYERS),
        (["head"], LAYERS[:-1]),
        ("head", LAYERS[:-1]),
        (("stem", "head"), LAYERS[1:-1]),
        (["block.*"], ["stem", "blocks.0", "head"]),
        (["block"], ["stem", "blocks.0", "head"]),  # all that is inside
        (["bl?ck", "[s-t]*"], ["blocks.0", "head"]),
        ((pattern for pattern in ["*.conv", "h*"]), ["stem", "block.down", "blocks.0"]),
    ],
    ids=readable,
)
def test_skip_patterns_leave_layers_out_with_all_that_is_inside(skip, left):
    model = quantize_model(Net(), LSQ(2), skip=skip)
    assert names(model) == [f"{layer}.weight" for layer in left]
    assert not any(parametrize.is_parametrized(model.get_submodule(layer)) for layer in set(LAYERS) - set(left))


def test_biases_are_quantized_on_request_and_fitted_whole():
    model = quantize_model(Net(), FixedScale(2, per_channel=True), skip=["head"], biases=True)
    everything = [f"{layer}.{tensor}" for layer in LAYERS[:-1] for tensor in ("weight", "bias")]
    assert names(model) == [name for name in everything if name != "block.conv.bias"]
    for weight in quantized_weights(model):
        channels = 1 if weight.name.endswith("bias") else len(weight.latent)
        assert weight.quantizer.scale(weight.latent).numel() == channels
    assert model.stem.bias.unique().numel() <= 4


def test_weights_are_listed_in_the_model_s_order_and_under_the_model_s_names():
    model = quantize_model(Net(), LSQ(2), biases=True)
    weights, parameters = quantized_weights(model), dict(model.named_parameters())
    order = [name for name, _ in model.named_modules() if name in LAYERS]
    assert [weight.layer_name for weight in weights if weight.tensor_name == "weight"] == order == LAYERS
    for weight in weights:
        assert parameters[weight.parameter_name] is weight.latent
        assert weight.parameter_name in model.state_dict()
        assert torch.equal(weight.grid_unit(), weight.quantizer.smoothing.std * weight.quantizer.scale(weight.latent))


def test_a_single_layer_is_a_model_too():
    (weight,) = quantized_weights(quantize_model(nn.Linear(4, 3), LSQ(2)))
    assert (weight.name, weight.parameter_name) == ("weight", "parametrizations.weight.original")


def test_every_tensor_gets_a_quantizer_of_its_own_and_the_prototype_stays_unfitted():
    prototype = LSQ(2)
    weights = [weight for _ in range(2) for weight in quantized_weights(quantize_model(Net(), prototype))]
    assert len({id(part) for weight in weights for part in (weight.quantizer, weight.quantizer.step)}) == 20
    assert list(prototype.state_dict()) == ["_extra_state"]  # what codes it makes; no scale


def test_parts_of_a_model_can_have_different_quantizers():
    model = quantize_model(Net(), LSQ(2), skip=["head"])
    quantize_model(model, QuEST(4), skip=["stem", "block", "blocks"])
    assert [type(weight.quantizer) for weight in quantized_weights(model)] == [LSQ] * 4 + [QuEST]


def test_a_mapping_gives_each_layer_the_quantizer_of_the_first_pattern_that_matches_it():
    kinds = {"block.conv": LSQ(4), "block": LSQ(3, per_channel=True), "stem": Sign(), "*": LSQ(2)}
    model = quantize_model(Net(), kinds, skip=["head"])
    assert [weight.quantizer.coding.partition(",")[0] for weight in quantized_weights(model)] == ["Sign"] + ["LSQ"] * 3
    assert [weight.quantizer.bits for weight in quantized_weights(model)] == [1, 4, 3, 2]
    assert names(quantize_model(Net(), {"bl*": LSQ(2)})) == [
        "block.conv.weight",
        "block.down.weight",
        "blocks.0.weight",
    ]


def tie(model):
    model.blocks.append(nn.Linear(8, 3))
    model.blocks[2].weight = model.head.weight


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda net: None, {"skip": ["stem", "blocks.9", "head"]}, r"'blocks\.9'"),
        (lambda net: None, {"skip": "head.weight"}, r"'head\.weight'"),
        (lambda net: None, {"skip": ["*"]}, "nothing to quantize"),
        (lambda net: None, {"biases": "maybe"}, "biases='maybe' .*true or false"),
        (tie, {}, r"blocks\.2\.weight is one tensor with head\.weight: untie it, or skip blocks\.2"),
        (lambda net: net.add_module("again", net.head), {}, r"head\.weight is one tensor with again\.weight"),
        (
            lambda net: quantize_model(net, LSQ(2), skip=["stem", "block"]),
            {},
            r"blocks\.0\.weight has a parametrization already",
        ),
        (lambda net: nn.init.zeros_(net.head.weight), {}, r"head\.weight.*constant"),
        (lambda net: nn.init.zeros_(net.head.bias), {"biases": True}, r"head\.bias.*constant"),
        (lambda net: net.bfloat16(), {}, r"stem\.weight.*torch\.float32"),
        (lambda net: net.head.half(), {}, r"head\.weight.*torch\.float32"),
        # quantized_weights would not list it, and the estimators would not know of it
        (lambda net: weight_norm(net.head), {}, r"head\.weight"),
    ],
    ids=[
        "pattern",
        "parameter",
        "all",
        "biases",
        "tied",
        "aliased",
        "twice",
        "constant",
        "bias",
        "bf16",
        "fp16",
        "weight_norm",
    ],
)
def test_a_refusal_names_the_culprit_and_leaves_the_model_as_it_was(change, options, message):
    model = net_with(change)
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        quantize_model(model, FixedScale(2), **options)
    assert same_state(model.state_dict(), state)


def test_a_tied_weight_is_no_obstacle_when_it_is_skipped():
    assert "blocks.0.weight" in names(quantize_model(net_with(tie), LSQ(2), skip=["head", "blocks.2"]))


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        ({"blocks.9": LSQ(4), "*": LSQ(2)}, r"quantizer pattern 'blocks\.9' matches no layer: .*stem"),
        ({"head": LSQ(4), "*": LSQ(2)}, "quantizer pattern 'head' matches no layer"),  # skipped
        ({"stem": 4}, r"quantizer\['stem'\]=4 is no quantizer"),
        ({}, "nothing to quantize"),
    ],
    ids=readable,
)
def test_a_mapping_of_quantizers_that_does_nothing_somewhere_is_refused(kinds, message):
    with pytest.raises(ValueError, match=message):
        quantize_model(Net(), kinds, skip=["head"])


@pytest.mark.parametrize("use", [quantized_weights, bake])
def test_a_plain_model_has_no_quantized_weights_to_list_or_bake(use):
    with pytest.raises(ValueError, match="quantize_model"):
        use(Net())


@each_quantizer
def test_a_baked_model_is_plain_and_computes_the_same_to_the_last_bit(prototype):
    model, x = Net().eval(), images()
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    expected = quantize_model(model, prototype, biases=True)(x)
    assert bake(model) is model
    assert torch.equal(model(x), expected)
    assert {name: value.shape for name, value in model.state_dict().items()} == shapes
    assert [type(model.get_submodule(layer)) for layer in LAYERS] == [nn.Conv2d] * 3 + [nn.Linear] * 2
    assert all(isinstance(parameter, nn.Parameter) and parameter.requires_grad for parameter in model.parameters())
    reloaded = Net().eval()
    reloaded.load_state_dict(model.state_dict())
    assert torch.equal(reloaded(x), expected)


@each_quantizer
def test_a_deep_copy_is_equal_and_independent(prototype):
    model, x = quantize_model(Net().eval(), prototype), images()
    state = copy.deepcopy(model.state_dict())
    twin, expected = copy.deepcopy(model), model(x)
    assert torch.equal(twin(x), expected)
    with torch.no_grad():
        for tensor in [*twin.parameters(), *twin.buffers()]:
            tensor.add_(1)
    assert same_state(model.state_dict(), state)
    assert torch.equal(model(x), expected)
    assert not torch.equal(twin(x), expected)


@each_quantizer
def test_a_saved_state_is_restored_into_a_fresh_model_and_nothing_is_fitted_again(prototype, tmp_path, monkeypatch):
    model, x = quantize_model(Net(), prototype, biases=True), images()
    train(model, x)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    fresh = quantize_model(net_with(lambda net: [p.data.mul_(7) for p in net.parameters()]), prototype, biases=True)
    monkeypatch.setattr(type(prototype), "fit", None)  # calling it would raise
    fresh.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    for ours, theirs in zip(quantized_weights(fresh), quantized_weights(model), strict=True):
        assert torch.equal(ours.quantizer.scale(ours.latent), theirs.quantizer.scale(theirs.latent))
    assert torch.equal(fresh.train()(x), model.train()(x))
    assert torch.equal(fresh.eval()(x), model.eval()(x))
    assert same_state(fresh.state_dict(), model.state_dict())


def test_baking_a_copy_leaves_the_original_as_it_was():
    model = quantize_model(Net(), FixedScale(2), biases=True)
    x = images()
    before, names = model(x).detach(), list(model.state_dict())
    copied = bake(copy.deepcopy(model))
    assert torch.equal(copied(x), before)
    assert torch.equal(model(x), before)
    assert list(model.state_dict()) == names
    assert torch.equal(bake(model)(x), before)


def train(model, x, steps=30):
    """Losses of a plain SGD loop on fixed labels."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), torch.arange(len(x)) % 3)
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    return losses


@each_quantizer
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_ordinary_optimizer_trains_every_parameter_of_a_quantized_model(prototype, dtype):
    model = quantize_model(Net().to(dtype), prototype)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    losses = train(model, images(dtype=dtype))
    assert losses[-1] < 0.7 * losses[0]
    for name, parameter in model.named_parameters():
        assert parameter.dtype == dtype
        assert parameter.grad.isfinite().all()
        assert not torch.equal(parameter, before[name]), name
    assert all(weight.quantizer.scale(weight.latent).dtype == dtype for weight in quantized_weights(model))
