"""fogzo.report: what is quantized of a model, layer by layer."""

import pytest
import torch
from torch import nn

import fogzo


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.body = nn.Embedding(10, 8), nn.Linear(8, 64)
        self.recurrent, self.attention = nn.LSTM(8, 4), nn.MultiheadAttention(8, 2)
        self.norm, self.head = nn.LayerNorm(64), nn.Linear(64, 10, bias=False)
        self.head_again = self.head


def quantized(**options):
    skip = ["recurrent", "attention", "head*"]
    return fogzo.quantize_model(Net(), {"body": fogzo.FixedScale(4)}, skip=skip, **options)


def test_the_table_counts_each_parameter_once_and_names_what_is_left():
    model = quantized(biases=True, activations=fogzo.LSQ(8))
    with pytest.warns(UserWarning, match=r"29\.8% of the parameters are quantized; head \(Linear\) alone has 33\.1%"):
        report = fogzo.report(model)
    assert report.quantized == 64 * 8 + 64
    assert report.parameters == sum(p.numel() for p in Net().parameters())
    assert report.share == report.quantized / report.parameters
    assert [(row.layer, row.kind, row.bits, row.input_bits) for row in report.rows] == [
        ("embed", "Embedding", 32, 32),
        ("body", "Linear", 4, 8),
        ("recurrent", "LSTM", 32, 32),
        ("attention", "MultiheadAttention", 32, 32),
        ("attention.out_proj", "NonDynamicallyQuantizableLinear", 32, 32),
        ("head", "Linear", 32, 32),
    ]
    printed = str(report).splitlines()
    assert printed[2].split()[:5] == ["body", "Linear", "576", "4", "8"]
    assert printed[2].endswith("FixedScale, 4 bits, codes -7.5 to 7.5")
    assert printed[-2:] == [
        "and 128 parameters in norms and the like, in full precision",
        f"quantized: 576 of {report.parameters:,} parameters ({report.share:.1%})",
    ]


def test_a_model_that_is_quantized_for_the_most_part_gets_no_warning():
    model = fogzo.quantize_model(nn.Linear(8, 8), fogzo.LSQ(2))
    report = fogzo.report(model)
    assert (report.quantized, report.parameters) == (64, 72)
    assert report.rows[0].kind == "Linear"


def test_a_plain_model_is_refused():
    with pytest.raises(ValueError, match=r"no quantized weights: call fogzo\.quantize_model"):
        fogzo.report(torch.nn.Linear(2, 2))


def test_what_no_matrix_is_needs_no_name_in_the_warning():
    model = nn.Sequential(fogzo.quantize_model(nn.Linear(1, 8), fogzo.FixedScale(2)), nn.LayerNorm(8))
    with pytest.warns(UserWarning, match=r"^25\.0% of the parameters are quantized$"):
        fogzo.report(model)
