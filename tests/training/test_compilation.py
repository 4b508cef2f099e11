"""What becomes of ``compile=true``: each run compiles afresh, and its record says whether it did."""

import json
import subprocess
import sys
import textwrap
from functools import partial

import pytest
import torch
import torch._dynamo.utils
from helpers.configs import composed
from torch import nn
from torch._inductor.exc import InductorError

import fogzo
from fogzo.errors import UserError
from fogzo.models import llama
from fogzo.training.build import build
from fogzo.training.compilation import Compiled, check_compile, outcome
from fogzo.training.launch import train


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
        through = Compiled(network)
        assert outcome()["compiled"] is False  # so far
        assert steps(through).shape == expected.shape
        assert outcome() == {"compiled": True}


def test_a_network_that_is_not_compiled_whole_says_why(quick):
    class Broken(nn.Module):
        def forward(self, x):
            torch._dynamo.graph_break()
            return x * 2

    with torch.no_grad():
        Compiled(nn.Sequential(nn.Linear(4, 4), Broken()))(torch.randn(3, 4))
    said = outcome()
    assert said["compiled"] is False
    assert any("graph_break" in reason for reason in said["eager_because"])


SMALL = {
    "mlp": [],
    "deit_mini": ["model.blocks=1"],
    "llama_mini": ["model.layers=1", "data=synthetic", "data.sequence=16", "data.vocabulary=64", "model.vocabulary=64"],
}


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # the CPU's fused attention takes its turn K times
@pytest.mark.parametrize("model", SMALL)
def test_batched_probes_are_compiled_and_after_the_first_steps_nothing_is_again(quick, model):
    sizes = ["batch_size=4", f"micro_batches={1 + (model == 'mlp')}", "estimator.samples=3", "estimator.probe_batch=2"]
    keys = [f"model={model}", "quantizer=lsq", "estimator=fogzo", "device=cpu", "steps=4", *sizes, *SMALL[model]]
    plain = build(composed(*keys))
    one = build(composed(*keys, "compile=true"))
    losses = [[] for _ in range(2)]
    for step in range(4):
        if step == 2:
            graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        for trainer, seen in zip((plain, one), losses, strict=True):
            seen.append(float(trainer.train_step(step).loss))
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs >= 3
    assert outcome() == {"compiled": True}
    assert one.ledger.forwards == plain.ledger.forwards == 3 + 3 * 7  # β is 1 in the first step


@pytest.mark.parametrize("compiled", [True, False])
def test_a_summary_says_of_a_run_that_was_to_be_compiled_whether_it_was(quick, compiled, tmp_path):
    keys = ["estimator=ste", "steps=1", f"run_dir={tmp_path}"]
    train(composed(*keys, *(["compile=true"] if compiled else [])))
    said = json.loads((tmp_path / "summary.json").read_text())
    assert said.get("compiled") == (True if compiled else None)


def test_cuda_graphs_are_asked_of_torch_and_refused_elsewhere(monkeypatch):
    asked, begun = [], []
    monkeypatch.setattr(torch, "compile", lambda function, mode: asked.append(mode) or function)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: begun.append(0))
    for how in (True, "reduce-overhead"):
        Compiled(nn.Linear(4, 4), how=how).begin_step()
    assert asked == [None, None, "reduce-overhead", "reduce-overhead"]
    assert len(begun) == 1
    check_compile("reduce-overhead", torch.device("cuda"))
    with pytest.raises(UserError, match="compile=reduce-overhead replays CUDA graphs, which device=cpu does not have"):
        build(composed("compile=reduce-overhead", "device=cpu"))


def test_a_machine_without_a_compiler_is_told_so_in_a_sentence(monkeypatch):
    def no_compiler(network, mode):
        def run(*args):
            raise InductorError(RuntimeError("No working C++ compiler found"), None)

        return run

    monkeypatch.setattr(torch, "compile", no_compiler)
    with pytest.raises(UserError, match=r"compile=true: .*No working C\+\+ compiler found.*: choose compile=false"):
        Compiled(nn.Linear(4, 4))(torch.randn(1, 4))


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


def test_the_compiler_loads_when_it_is_needed_and_not_for_an_optimizer():
    text = """
        import sys, torch
        from fogzo.training.compilation import spare_compiler
        spare_compiler()
        layer = torch.nn.Linear(2, 2)
        for kind in (torch.optim.SGD, torch.optim.AdamW):
            optimizer = kind(layer.parameters(), lr=0.1)
            optimizer.zero_grad()
            layer(torch.ones(1, 2)).sum().backward()
            optimizer.step()
            optimizer.load_state_dict(optimizer.state_dict())
        assert "torch._dynamo.convert_frame" not in sys.modules
        run = torch.compile(layer, backend="eager")
        assert torch.equal(run(torch.ones(1, 2)), layer(torch.ones(1, 2)))
        import torch._dynamo.utils
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
        optimizer.step()
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(text)], check=True)


@pytest.mark.parametrize("part", ["utils", "config", "variables"])
def test_a_part_of_the_compiler_that_is_asked_for_first_is_loaded_once(part):
    text = """
        import sys
        from fogzo.training.compilation import Compiled, outcome, spare_compiler
        spare_compiler()
        import torch._dynamo.PART
        import torch._dynamo.output_graph
        assert torch._dynamo.output_graph.counters is torch._dynamo.utils.counters
        assert torch._dynamo.output_graph.config is sys.modules["torch._dynamo.config"]
        assert sys.modules["torch._dynamo.PART"].__spec__.origin.endswith(("PART.py", "PART/__init__.py"))
        through = Compiled(torch.nn.Linear(2, 2))
        through.forward = torch.compile(through.network, backend="eager")
        through(torch.ones(1, 2))
        assert outcome() == {"compiled": True}
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(text).replace("PART", part)], check=True)


def test_a_library_that_looks_through_all_modules_while_it_loads_still_loads():
    text = """
        from fogzo.training.compilation import spare_compiler
        spare_compiler()
        from transformers import LlamaForCausalLM  # by torch.distributed.tensor, whose operations name their source
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(text)], check=True)
