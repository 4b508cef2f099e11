"""compressed-tensors: transformers opens the folder in a process without fogzo, and computes the same bits."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fogzo
from fogzo.data.tokenize import train_tokenizer
from fogzo.interchange.compressed import export_compressed
from fogzo.models import llama

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
