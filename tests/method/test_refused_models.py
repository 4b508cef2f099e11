"""Networks and state dicts that quantization cannot read, or reads in part: one sentence each, with a way out."""

import copy
import math
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import fogzo
from fogzo.errors import UserError


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
