"""What is evaluated: the same numbers in batches of any size, which the memory of a device bounds."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fogzo.data import TextData, TokenSplit
from fogzo.models import llama
from fogzo.training.tasks import LanguageModelling


def text(vocabulary, sequence, tokens=700):
    shard = np.random.default_rng(0).integers(0, min(vocabulary, 64), tokens).astype(np.uint16)
    splits = TokenSplit([shard], sequence), TokenSplit([shard[::-1].copy()], sequence)
    return TextData("made up", *splits, vocabulary=vocabulary, sequence=sequence, tokenizer="", sha256="")


@pytest.mark.parametrize(("vocabulary", "sequence", "windows"), [(2048, 128, 128), (50304, 512, 8), (200_000, 4096, 8)])
def test_evaluation_takes_several_windows_at_a_time(vocabulary, sequence, windows):
    assert LanguageModelling(text(vocabulary, sequence)).evaluation_batch == windows


def test_evaluation_does_not_depend_on_how_many_windows_are_taken_at_a_time():
    model = llama(layers=1, width=16, heads=2, vocabulary=64, sequence=16)
    data = text(64, 16)
    found = [LanguageModelling(data, 16 * 30, evaluation_batch=size).evaluate(model) for size in (1, 8, 7, 1000)]
    for metrics in found[1:]:
        assert metrics == pytest.approx(found[0], rel=1e-6)
    inputs, targets = data.test.batch(torch.arange(30) * len(data.test) // 30)
    logits = model(input_ids=inputs).logits.detach()
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    assert found[0]["test_loss"] == pytest.approx(float(loss), rel=1e-6)
    assert found[0]["perplexity"] == pytest.approx(float(loss.exp()), rel=1e-5)
