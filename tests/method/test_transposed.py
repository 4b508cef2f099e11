"""transformers' Conv1D, GPT-2's linear layer with weights (in, out): quantized as the nn.Linear that it stands for."""

import copy

import pytest
import torch
from helpers.checks import readable
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

import fogzo
from fogzo.interchange.onnx_graph import export_onnx
from fogzo.training.pretrained import initialise

QUANTIZERS = [fogzo.FixedScale(2, per_channel=True), fogzo.Sign(), fogzo.LSQ(3), fogzo.QuEST(2)]


class Net(nn.Module):
    """One hidden layer, of either kind, with the same weights."""

    def __init__(self, transposed):
        super().__init__()
        torch.manual_seed(0)
        body, head = nn.Linear(8, 16), nn.Linear(16, 4)
        self.body, self.head = (self.conv(body), self.conv(head)) if transposed else (body, head)

    @staticmethod
    def conv(linear):
        layer = Conv1D(linear.out_features, linear.in_features)
        layer.weight.data = linear.weight.data.t().contiguous()
        layer.bias.data = linear.bias.data
        return layer

    def forward(self, x):
        return self.head(self.body(x).relu())


def x():
    return torch.randn(32, 8, generator=torch.Generator().manual_seed(1))


def estimated(model):
    def closure(*, backward):
        loss = model(x()).square().mean()
        if backward:
            loss.backward()
        return loss.detach()

    fogzo.FOGZO(fogzo.quantized_weights(model), samples=2, beta=0.9).estimate(closure, step=0)
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=readable)
@pytest.mark.parametrize("activations", [None, fogzo.LSQ(4)], ids=readable)
def test_outputs_and_estimates_are_those_of_the_linear_layer(quantizer, activations):
    linear, conv = (fogzo.quantize_model(Net(which), quantizer, activations=activations) for which in (False, True))
    fogzo.fit_activations(linear, lambda: linear(x()))
    fogzo.fit_activations(conv, lambda: conv(x()))
    torch.testing.assert_close(conv(x()), linear(x()))
    mine, its = estimated(conv), estimated(linear)
    assert mine.keys() == its.keys()
    for name in its:
        torch.testing.assert_close(mine[name], its[name], rtol=1e-3, atol=1e-4)
    assert conv.body.weight.shape == (8, 16)
    before = conv(x())
    assert torch.equal(fogzo.bake(conv)(x()), before)
    assert conv.body.weight.shape == (8, 16)


@pytest.mark.parametrize("quantizer", QUANTIZERS[:3], ids=readable)
def test_it_comes_back_from_a_file_and_runs_elsewhere(quantizer, tmp_path):
    import onnxruntime

    model = fogzo.quantize_model(Net(True), quantizer).eval()
    fogzo.export(model, tmp_path / "m.safetensors")
    assert torch.equal(fogzo.load(tmp_path / "m.safetensors", Net(True))(x()), model(x()))
    export_onnx(model, tmp_path / "m.onnx", x())
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"input": x().numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), model(x()).detach(), rtol=1e-4, atol=1e-4)


def test_a_rotated_one_is_in_no_file(tmp_path):
    with pytest.raises(ValueError, match=r"body\.weight is rotated and stored as \(in, out\), .*: bake it"):
        fogzo.export(fogzo.quantize_model(Net(True), fogzo.QuEST(2)), tmp_path / "m.safetensors")


def test_gpt_2_is_quantized_whole_and_loads_its_state():
    torch.manual_seed(0)
    plain = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_positions=16, n_embd=16, n_layer=1, n_head=2)).eval()
    model, fresh = (fogzo.quantize_model(copy.deepcopy(plain), fogzo.QuEST(4), skip=["lm_head"]) for _ in range(2))
    names = [weight.name.removeprefix("transformer.h.0.") for weight in fogzo.quantized_weights(model)]
    assert names == ["attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight"]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    fresh.load_state_dict(model.state_dict())
    tokens = torch.arange(16)[None]
    assert torch.equal(fresh(tokens).logits, model(tokens).logits)


def test_a_quantized_networks_latents_begin_a_plain_one_the_way_round_that_its_layers_have(tmp_path):
    square = Conv1D(8, 8)
    model = nn.Sequential(square)
    weight = square.weight.detach().clone()
    fogzo.quantize_model(model, fogzo.FixedScale(2))
    torch.save(model.state_dict(), tmp_path / "model.pt")
    fresh = nn.Sequential(Conv1D(8, 8))
    initialise(fresh, tmp_path / "model.pt")
    assert torch.equal(fresh[0].weight, weight)
