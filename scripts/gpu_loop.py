"""A user's own loop on any device, which needs torch alone: what the checks of a GPU train."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fogzo
from fogzo.estimators import Estimator

Weights = list[fogzo.quantize.QuantizedWeight]
ESTIMATORS: dict[str, Callable[[Weights], Estimator]] = {
    "ste": fogzo.StraightThrough,
    "fogzo": partial(fogzo.FOGZO, beta=0.999),
    "nspsa": partial(fogzo.NSPSA, samples=4),
    "fogzo batched": partial(fogzo.FOGZO, samples=3, beta=0.99, probe_batch=3),
}
QUANTIZERS = {"fixed": fogzo.FixedScale(2), "lsq": fogzo.LSQ(2), "quest": fogzo.QuEST(2), "sign": fogzo.Sign()}
WIDTH = 256


class Loop:
    """A user's own loop: a small quantized network, its optimizer, and batches that are functions of the step."""

    def __init__(
        self,
        device: torch.device,
        estimator: str = "fogzo",
        quantizer: str = "lsq",
        precision: str = "fp32",
        **more: Any,
    ) -> None:
        torch.manual_seed(0)
        layers = [nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH), nn.Dropout(0.1)]
        self.model = fogzo.quantize_model(nn.Sequential(*layers), QUANTIZERS[quantizer]).to(device)
        self.device, self.precision, self.forward = device, precision, more.get("forward", self.model)
        self.part = more.get("part", slice(None))
        self.weights = fogzo.quantized_weights(self.model)
        self.estimator = ESTIMATORS[estimator](self.weights)
        fused = device.type == "cuda" or None
        self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, fused=fused)

    def step(self, step: int) -> Tensor:
        generator = torch.Generator().manual_seed(step)
        x, y = torch.randn(64, WIDTH, generator=generator), torch.randint(WIDTH, (64,), generator=generator)
        x, y = x[self.part].to(self.device), y[self.part].to(self.device)
        torch.manual_seed(step)

        def closure(*, backward: bool) -> Tensor:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                loss = F.cross_entropy(self.forward(x).float(), y)
            if backward:
                loss.backward()  # type: ignore[no-untyped-call]
            return loss.detach()

        self.optimizer.zero_grad()
        estimate = self.estimator.estimate(closure, step=step)
        self.optimizer.step()
        return estimate.loss

    def state(self) -> dict[str, Any]:
        return copy.deepcopy({"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()})


def same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Return whether all tensors of two state dicts agree to the last bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
