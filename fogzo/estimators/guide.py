"""The guide: the straight-through gradient over all quantized weights, in grid units, scaled to a length."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from fogzo.checks import positive, whole
from fogzo.estimators.base import Closure, Estimate, Estimator, check_weights, first_order
from fogzo.estimators.beta import Beta, beta_at, check_beta, noise_share
from fogzo.estimators.perturb import Generator, Noise, some_at_a_time
from fogzo.estimators.probes import Probes, add_weighted
from fogzo.estimators.replay import RandomState
from fogzo.quantize import QuantizedWeight

GuideNorm = Literal["global", "rms", "per_tensor"]


class Guide:
    """The guide of one step, and G, which takes its place in ``.grad``.

    Args:
        weights: those to estimate; all lists below are weight by weight.
        seed, step: of the noise.
        epsilon: ε as a multiple of the smoothing's own.
        guide_norm: what ĝ is scaled to, as for :class:`fogzo.FOGZO`; ``None`` leaves g in grid units.
        generator: of the noise, as for :class:`Noise`.
        keep: whether ``.grad`` is the guide; without it there is none, and zeros take its place.

    Attributes:
        units: ε·α.
        grads: ``.grad`` of the latents: ĝ, then G, in place.
        norm: ‖g‖ in grid units, of shape ().
        believed_slope: ⟨g, ĝ⟩, the slope along ĝ that the STE believes, of shape ().
        noise: of this step.
    """

    def __init__(
        self,
        weights: Sequence[QuantizedWeight],
        *,
        seed: int,
        step: int,
        epsilon: float = 1.0,
        guide_norm: GuideNorm | None = "global",
        generator: Generator = "mt19937",
        keep: bool = True,
    ) -> None:
        self.weights = weights
        self.units = grid_units(weights, epsilon)
        self.grads = gradients_or_zeros(weights, keep=keep)
        self.norm, self.believed_slope = normalise(self.grads, self.units, guide_norm)
        self.noise = Noise(weights, seed, step, generator)

    def directions(self, samples: range, beta: float, signs: Sequence[int] | None = None) -> Iterator[Tensor]:
        """Yield u_i = √β·ĝ + √(1-β)·z_i weight by weight: shape (len(samples), *weight.shape).

        ``signs``: s_i of one-sided probes, by which the guide's part is multiplied; of one sample at a time.
        """
        length = math.sqrt(beta) * (signs[samples.start] if signs else 1)
        for grads, us in some_at_a_time(self.grads, self.noise.draw(samples)):
            torch._foreach_mul_(us, math.sqrt(1 - beta))
            if beta > 0:
                torch._foreach_add_(us, grads, alpha=length)
            yield from us

    def combine(self, slopes: Tensor, beta: float, *, along: Tensor | None = None) -> None:
        """Turn ĝ into G = 1/n Σ slope_i·u_i in weight units, in place; the noise is drawn once more, not kept.

        ``slopes``: shape (n,); ``along``: the guide's part in place of their mean.
        """
        guided = slopes.mean() if along is None else along
        torch._foreach_mul_(self.grads, math.sqrt(beta) * guided.to(self.grads[0]))
        self.add_noise(math.sqrt(1 - beta) / len(slopes) * slopes)
        self.to_weight_units()

    def agreement(self, along: Tensor, beta: float) -> Tensor:
        """Return the measured slope ``along`` √β·ĝ over the one that the STE believes; nan for a zero guide."""
        return torch.where(self.norm > 0, along / (math.sqrt(beta) * self.believed_slope), torch.nan)

    def seen(self, loss: Tensor, beta: float, *, along: Tensor, measured: Tensor) -> Estimate:
        """Return what a step saw: ``along``, the measured slope along √β·ĝ, and ``measured``, what probes found."""
        return Estimate(
            loss=loss,
            beta=beta,
            noise_share=noise_share(beta, self.weights),
            agreement=self.agreement(along, beta),
            zero_probes=(measured == 0).float().mean(),
            guide_norm=self.norm,
        )

    def add_noise(self, factors: Tensor) -> None:
        """Add Σ_i factors[i]·z_i to what stands in ``.grad``."""
        for i in range(len(factors)):
            add_weighted(self.grads, self.noise.draw(range(i, i + 1)), factors[i : i + 1])

    def to_weight_units(self) -> None:
        """Divide by ε·α what stands in ``.grad``: from ∂L/∂(w/εα) to ∂L/∂w."""
        torch._foreach_div_(self.grads, self.units)


def guide_of(
    closure: Closure,
    weights: Sequence[QuantizedWeight],
    *,
    seed: int,
    step: int,
    epsilon: float = 1.0,
    guide_norm: GuideNorm | None = "global",
) -> tuple[Tensor, Guide, Probes]:
    """Call ``closure`` with its backward pass; return its loss, the guide, and what measures losses around it.

    Raises:
        UserError: when ``.grad`` is not empty on entry, or empty afterwards.
    """
    whole(step, "step", lowest=0)
    random_state = RandomState({weight.latent.device for weight in weights})
    loss, reached = first_order(closure, weights)
    guide = Guide(reached, seed=seed, step=step, epsilon=epsilon, guide_norm=guide_norm)
    return loss, guide, Probes(closure, reached, guide.units, random_state, first_pass_done=True)


class Guided(Estimator):
    """What members share that mix the guide with noise: their arguments, as for :class:`fogzo.FOGZO`; β above 0."""

    def __init__(
        self,
        weights: Sequence[QuantizedWeight],
        *,
        samples: int = 1,
        beta: Beta = 0.999,
        seed: int = 0,
        epsilon: float = 1.0,
    ) -> None:
        self.weights = check_weights(weights)
        self.samples = whole(samples, "samples")
        self.beta = check_beta(beta, guided=True)
        self.seed = whole(seed, "seed", lowest=0)
        self.epsilon = positive(epsilon, "epsilon")

    def first_pass(self, closure: Closure, step: int) -> tuple[float, Tensor, Guide, Probes]:
        """Return β of ``step``, and :func:`guide_of` it."""
        beta = beta_at(self.beta, step, guided=True)
        return beta, *guide_of(closure, self.weights, seed=self.seed, step=step, epsilon=self.epsilon)


def grid_units(weights: Sequence[QuantizedWeight], epsilon: float = 1.0) -> list[Tensor]:
    """Return ε·α of each weight, ``epsilon`` times its grid unit."""
    scales = [weight.quantizer.scale(weight.latent) for weight in weights]
    units = torch._foreach_mul(scales, [weight.smoothing.std for weight in weights])
    torch._foreach_mul_(units, epsilon)
    return list(units)


def gradients_or_zeros(weights: Sequence[QuantizedWeight], *, keep: bool = True) -> list[Tensor]:
    """Return the latents' ``.grad``, zeros in their place where there is none or it is not to be kept."""
    empty = [weight.latent for weight in weights if weight.latent.grad is None or not keep]
    for latent in empty:
        latent.grad = torch.empty_like(latent)
    grads = [weight.latent.grad for weight in weights if weight.latent.grad is not None]
    if empty:
        torch._foreach_zero_([latent.grad for latent in empty if latent.grad is not None])
    return grads


def normalise(
    grads: list[Tensor], units: list[Tensor], guide_norm: GuideNorm | None = "global"
) -> tuple[Tensor, Tensor]:
    """Turn ∂L/∂w into ĝ, in place.  Return ‖g‖ and ⟨g, ĝ⟩, the slope along ĝ that the STE believes, both of shape ().

    ``units``: ε·α of each weight; ``guide_norm``: as for :class:`Guide`.
    """
    torch._foreach_mul_(grads, units)
    norms = torch.stack(torch._foreach_norm(grads))
    g_norm = torch.linalg.vector_norm(norms)
    if guide_norm is None:
        return g_norm, g_norm.square()
    denominators = norms if guide_norm == "per_tensor" else g_norm.expand_as(norms)
    length = math.sqrt(sum(g.numel() for g in grads)) if guide_norm == "rms" else 1.0
    factors = torch.where(denominators > 0, length / denominators, 0.0)  # a zero guide has no direction
    torch._foreach_mul_(grads, list(factors.unbind()))
    return g_norm, (norms.square() * factors).sum()
