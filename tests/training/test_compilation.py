"""What becomes of ``compile=true``: each run compiles afresh, and its record says whether it did."""

from functools import partial

import pytest
import torch
from torch import nn
from torch._inductor.exc import InductorError

import fogzo
from fogzo.errors import UserError
from fogzo.models import llama
from fogzo.training.compilation import compiled, outcome


@pytest.fixture
def quick(monkeypatch):
    """torch traces and counts as ever, but no C++ is compiled: seconds less."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    yield
    torch.compiler.reset()


def steps(network):
    """A pass with gradients and one without, as a step with probes has."""
    x = torch.randn(3, 4)
    network(x).sum().backward()
    with torch.no_grad():
        return network(x)


def test_every_run_of_a_process_compiles_its_network(quick):
    for _ in range(6):
        network = fogzo.quantize_model(nn.Sequential(nn.Linear(4, 4)), fogzo.FixedScale(2))
        expected = steps(network)
        torch.manual_seed(0)
        through = compiled(network)
        assert outcome()["compiled"] is False  # so far
        assert steps(through).shape == expected.shape
        assert outcome() == {"compiled": True}


def test_a_network_that_is_not_compiled_whole_says_why(quick):
    class Broken(nn.Module):
        def forward(self, x):
            torch._dynamo.graph_break()
            return x * 2

    with torch.no_grad():
        compiled(nn.Sequential(nn.Linear(4, 4), Broken()))(torch.randn(3, 4))
    said = outcome()
    assert said["compiled"] is False
    assert any("graph_break" in reason for reason in said["eager_because"])


def test_a_machine_without_a_compiler_is_told_so_in_a_sentence(monkeypatch):
    def no_compiler(network):
        def run(*args):
            raise InductorError(RuntimeError("No working C++ compiler found"), None)

        return run

    monkeypatch.setattr(torch, "compile", no_compiler)
    with pytest.raises(UserError, match=r"compile=true: .*No working C\+\+ compiler found.*: choose compile=false"):
        compiled(nn.Linear(4, 4))(torch.randn(1, 4))


def test_a_compiled_llama_keeps_the_fast_path_of_causal_attention():
    seen = []

    def look(graph, inputs):
        for node in graph.graph.nodes:
            if "scaled_dot_product_attention" in str(node.target):
                seen.append((node.kwargs["attn_mask"], node.kwargs["is_causal"]))
        return graph.forward

    model = llama(layers=1, width=32, heads=2, vocabulary=64, sequence=16)
    tokens = torch.arange(32).view(2, 16)
    through = torch.compile(model, backend=look)
    with torch.no_grad():
        pair = [network(input_ids=tokens, use_cache=False).logits for network in (through, model)]
    torch.testing.assert_close(*pair)
    assert seen == [(None, True)]
    torch.compiler.reset()
