"""Buffers that forward passes write: the same for both probes of a pair, and written once a step."""

import pytest
import torch
from helpers.small_loop import closure_for, estimate, network
from torch import nn

import fogzo
from fogzo.errors import UserError


class Moving(nn.Module):
    """Writes a buffer in every forward pass, in place or by a new tensor, and computes with it."""

    def __init__(self, in_place):
        super().__init__()
        self.in_place = in_place
        self.register_buffer("seen", torch.ones(()))

    def forward(self, x):
        moved = self.seen + 0.25 + x.detach().mean()
        x = x * self.seen.clone()
        if self.in_place:
            self.seen.copy_(moved)
        else:
            self.seen = moved
        return x


WRITERS = {
    "in place": lambda: Moving(True),
    "by a new tensor": lambda: Moving(False),
    "instance norm": lambda: nn.Sequential(
        nn.Unflatten(1, (3, 4)), nn.InstanceNorm1d(3, track_running_stats=True), nn.Flatten()
    ),
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(12, 12)),
}


@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("name", ["fogzo", "fogzo, 3 samples", "nspsa", "rescaled"])
def test_a_buffer_that_forward_passes_write_is_the_same_for_the_pair_and_written_once_a_step(name, writer, biases):
    def made():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(8, 12, bias=biases), WRITERS[writer](), nn.Tanh(), nn.Linear(12, 4, bias=biases)
        )
        return fogzo.quantize_model(model, fogzo.FixedScale(2), skip=["1"] if writer == "spectral norm" else [])

    model, twin = made(), made()
    places = {name: id(buffer) for name, buffer in model.named_buffers()}
    estimate(name, model, closure_for(model))
    closure_for(twin)(backward=False)
    for (buffer, mine), its in zip(model.named_buffers(), twin.buffers(), strict=True):
        assert torch.equal(mine, its), buffer
        assert id(mine) == places[buffer] or writer == "by a new tensor"
    still = fogzo.FOGZO(fogzo.quantized_weights(model), beta=0.9, samples=3, epsilon=1e-12)  # w ± 1e-12 u = w
    model.zero_grad()
    assert still.estimate(closure_for(model), step=1).zero_probes == 1


def test_batched_probes_say_what_they_cannot_run():
    model = network(Moving(True))
    with pytest.raises(UserError, match=r"cannot run with many weights at once .*: set probe_batch=0"):
        estimate("fogzo, batched", model, closure_for(model))
    seen = model[1].seen.clone()
    twin = network(Moving(True))
    closure_for(twin)(backward=False)
    assert torch.equal(seen, twin[1].seen)
