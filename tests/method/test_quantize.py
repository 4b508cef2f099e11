"""quantize_model, quantized_weights, bake: what they do to a model, and the models and state dicts that they refuse."""

import copy
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from helpers.checks import readable
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.parametrizations import weight_norm

import fogzo
from fogzo import LSQ, FixedScale, QuEST, Sign, bake, quantize_model, quantized_weights
from fogzo.errors import UserError

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


def test_a_state_dict_of_other_codes_is_refused_by_name_and_an_old_one_is_not():
    def made(quantizer, activations=None):
        torch.manual_seed(0)
        return fogzo.quantize_model(nn.Sequential(nn.Linear(8, 4)), quantizer, activations=activations)

    kinds = [fogzo.FixedScale(2), fogzo.FixedScale(4), fogzo.FixedScale(2, grid="twos_complement"), fogzo.Sign()]
    for own in kinds:
        for other in kinds:
            state = dict(made(other).state_dict())  # a plain one, as from a file of another library
            if own is other:
                made(own).load_state_dict(state)
            else:
                with pytest.raises(
                    RuntimeError, match=r"0\.parametrizations\.weight\.0: its codes are .*: quantize it"
                ):
                    made(own).load_state_dict(state)
    rounding = made(fogzo.LSQ(2), fogzo.LSQ(4, signed=False))
    with pytest.raises(RuntimeError, match=r"LSQ, 8 bits.*LSQ, 4 bits"):
        rounding.load_state_dict(made(fogzo.LSQ(2), fogzo.LSQ(8, signed=False)).state_dict())
    old = {
        name: value
        for name, value in rounding.state_dict().items()
        if not name.endswith((".quantizer._extra_state", ".0._extra_state"))
    }
    made(fogzo.LSQ(2), fogzo.LSQ(4, signed=False)).load_state_dict(old)


@pytest.mark.parametrize(
    "layer",
    [nn.LSTM(8, 8), nn.GRUCell(8, 8), nn.MultiheadAttention(8, 2), nn.ConvTranspose1d(8, 8, 3)],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_that_multiply_in_full_precision_are_named(layer):
    kind = type(layer).__name__
    model = nn.Sequential(nn.Linear(8, 8), layer)
    with pytest.warns(UserWarning, match=rf"1 \({kind}\) multiply, but stay in full precision: name them in skip="):
        fogzo.quantize_model(copy.deepcopy(model), fogzo.LSQ(2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fogzo.quantize_model(model, fogzo.LSQ(2), skip=["1"])


def test_where_nothing_is_left_to_quantize_the_layers_that_were_passed_over_are_named():
    with pytest.raises(UserError, match=r"nothing to quantize: .*it has 0 \(LSTM\), which stay in full precision"):
        fogzo.quantize_model(nn.Sequential(nn.LSTM(8, 8)), fogzo.LSQ(2))


def old_weight_norm(layer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(layer)


@pytest.mark.parametrize(
    ("arguments", "change", "message"),
    [
        (
            {"quantizer": fogzo.LSQ},
            None,
            r"quantizer=<class .*LSQ'> is no quantizer: give an object such as fogzo\.LSQ",
        ),
        ({"quantizer": "lsq"}, None, "quantizer='lsq' is no quantizer"),
        ({"activations": "lsq"}, None, "activations='lsq' is no quantizer"),
        ({"skip": None}, None, r"skip=None is not possible: give a list of names or patterns, such as \[\"head\"\]"),
        ({"skip": [0]}, None, r"skip=\[0\] is not possible"),
        ({}, lambda layer: layer.to("meta"), "0.weight: a tensor on the meta device holds no values"),
        ({}, lambda layer: layer.weight.data.fill_(math.nan), "0.weight: the initial weights are not finite"),
        ({}, lambda layer: layer.weight.data[0].fill_(math.inf), "0.weight: the initial weights are not finite"),
        ({}, lambda layer: prune.l1_unstructured(layer, "weight", 0.5), "0.weight is computed by a hook .*skip 0"),
        ({}, old_weight_norm, "0.weight is computed by a hook"),
        ({}, lambda layer: nn.utils.spectral_norm(layer), "0.weight is computed by a hook"),
    ],
)
def test_what_cannot_be_quantized_is_refused_in_one_sentence(arguments, change, message):
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    if change:
        change(model[0])
    names = list(model.state_dict())
    with pytest.raises(UserError, match=message):
        fogzo.quantize_model(model, **{"quantizer": fogzo.LSQ(2)} | arguments)
    assert list(model.state_dict()) == names


def test_the_way_out_of_a_tied_embedding_works():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed_tokens, self.body, self.lm_head = (
                nn.Embedding(9, 8),
                nn.Linear(8, 8),
                nn.Linear(8, 9, bias=False),
            )
            self.lm_head.weight = self.embed_tokens.weight

    with pytest.raises(
        UserError, match=r"lm_head\.weight is one tensor with embed_tokens\.weight: .*skip lm_head"
    ) as said:
        fogzo.quantize_model(Tied(), fogzo.LSQ(2))
    way_out = str(said.value).rpartition("skip ")[2].split()[0]
    assert [w.name for w in fogzo.quantized_weights(fogzo.quantize_model(Tied(), fogzo.LSQ(2), skip=[way_out]))] == [
        "body.weight"
    ]
