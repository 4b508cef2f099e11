"""FOGZO and the family it belongs to (paper.md, section 2).

    u_i     = √β·ĝ + √(1-β)·z_i                            ĝ = g/‖g‖ over all quantized weights;  z_i ~ smoothing
    slope_i = ( L(w + ε·α·u_i) - L(w - ε·α·u_i) ) / 2ε      ε = smoothing.std
    G       = 1/n Σ slope_i·u_i,   divided by α for weight units

The code works in *grid units* w/(εα), in which the noise of every coordinate has variance 1, so that tensors with other
scales (or other smoothings) behave as one.  There g = εα·∂L/∂w, the pair is w ± u_i, slope_i is half the difference of
its losses, and G is divided by εα at the end.  Where ε is the same everywhere this is the formula above.

``paper.md`` writes v_i for u_i, and u_i for z_i.  The paper gives ĝ a random sign s_i.  As z is symmetric, (s ĝ, z) is
as likely as s·(ĝ, z), which only turns u_i round as a whole, and G doesn't see that: the sign is left out, and a test
compares the two.

β = 0 is n-SPSA.  β = 1 leaves the direction ĝ with a measured slope.  The STE believes that slope.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from fogzo.checks import choice, choices_of, flag, options_of, positive, whole
from fogzo.errors import UserError
from fogzo.estimators.base import (
    Closure,
    Estimate,
    Estimator,
    check_gradients_empty,
    check_weights,
    first_order,
    loss_of,
    trains_others,
)
from fogzo.estimators.beta import Beta, beta_at, check_beta, noise_share
from fogzo.estimators.guide import Guide, GuideNorm
from fogzo.estimators.perturb import Generator
from fogzo.estimators.probes import Probes, codes_crossed, slopes_of
from fogzo.estimators.replay import RandomState, tracking_norms
from fogzo.quantize import QuantizedWeight
from fogzo.quantizers.base import check_latent
from fogzo.ranks import share, world
from fogzo.smoothing import Rademacher

NoiseKind = Literal["smoothing", "rademacher"]


class FOGZO(Estimator):
    """First-order-guided zeroth-order estimate: one forward and backward pass, then two forward passes a sample.

    Args:
        weights: ``fogzo.quantized_weights(model)``, of the whole model that the closure runs: its other parameters keep
            their first-order gradient and stay where they are in the probes, its batch-norm statistics stand still.
        samples: n, pairs of probes.  At β = 1 all pairs are alike, and one is evaluated.
        beta: β in [0, 1], or a callable of the step.  It must move toward 1 as the model grows: the noise-to-signal
            ratio of a pair is about √((1-β) d/β), d the number of quantized weights.
        seed: of the noise, which is a function of (seed, step, sample).
        guide_norm: what ĝ is scaled to, and with it what β means.  ``"global"`` (the paper's): ‖ĝ‖ = 1 over all
            tensors together.  ``"rms"``: ‖ĝ‖ = √d, so that β is the guide's share of a coordinate's variance (G along ĝ
            is then d times as long).  ``"per_tensor"``: ‖ĝ‖ = 1 in each tensor.
        noise: of z.  ``"smoothing"`` (the paper's): what the STE implies.  ``"rademacher"``: ±1, with ε̄ = 1/2 in code
            units; an ablation (docs/theory.md).
        epsilon: ε as a multiple of the noise's ε̄; 1 is what the STE implies.
        probe_batch: 0 evaluates one loss at a time, with one weight-sized buffer.  k > 0 evaluates k pairs together by
            ``torch.func.vmap`` over the closure (which then may not branch on values or call ``.item()``): the same
            noise, the same estimate to floating-point tolerance, and memory for 2k copies of the weights and of a
            forward pass.  ``"auto"`` is 0 until somebody has timed both and set it, as the trainer does before the
            first step; the choice is in the state.
        spread: with several ranks (``torch.distributed``), evaluate each sample on one of them instead of all samples
            on all: the closure must then be the same, of the whole batch, everywhere, its gradients to the last bit (on
            GPUs give all ranks those of rank 0, inside the closure, as ``Trainer.closure`` does).  Without it each
            rank's closure is of its part of the batch (as with ``DistributedDataParallel``), and losses are averaged.
        crossings_every: k > 0 counts in steps k-1, 2k-1, ... the codes that the first pair changes, by two more
            quantizations of the weights; the estimate is the same.  0 never counts.
        generator: of the noise: ``"mt19937"`` is fastest on the CPU, ``"philox"`` draws the same on every device.

    Raises:
        ValueError: for arguments outside the above; from ``estimate`` when ``.grad`` is not empty on entry.
        RanksDiffer: from ``estimate``, if ranks that share a batch have other weights, guides or noise.
    """

    def __init__(
        self,
        weights: Sequence[QuantizedWeight],
        *,
        samples: int = 1,
        beta: Beta = 0.999,
        seed: int = 0,
        guide_norm: GuideNorm = "global",
        noise: NoiseKind = "smoothing",
        epsilon: float = 1.0,
        probe_batch: int | Literal["auto"] = 0,
        spread: bool = False,
        crossings_every: int = 0,
        generator: Generator = "mt19937",
    ) -> None:
        self.weights = check_weights(weights)
        if choice(noise, "noise", choices_of(NoiseKind)) == "rademacher":
            self.weights = [replace(weight, noise=Rademacher()) for weight in self.weights]
        self.samples = whole(samples, "samples")
        self.beta = check_beta(beta)
        self.seed = whole(seed, "seed", lowest=0)
        self.guide_norm = choice(guide_norm, "guide_norm", choices_of(GuideNorm))
        self.epsilon = positive(epsilon, "epsilon", hint="; 1 is the smoothing that the STE implies")
        self.undecided = self.auto = probe_batch == "auto"
        hint = ", or auto"
        self.probe_batch = 0 if probe_batch == "auto" else whole(probe_batch, "probe_batch", lowest=0, hint=hint)
        self.crossings_every = whole(crossings_every, "crossings_every", lowest=0)
        self.spread = flag(spread, "spread")
        self.generator = choice(generator, "generator", choices_of(Generator))
        if spread and self.samples < world()[1]:
            raise UserError(
                f"samples={samples} cannot be spread over {world()[1]} ranks: raise samples, start fewer processes, or "
                "leave spread out and let each rank's closure be of its part of the batch"
            )

    @property
    def together(self) -> int:  # type: ignore[override]
        return 2 * self._pairs_together or 1

    @property
    def buffers(self) -> int:  # type: ignore[override]
        """Count the kept weights; or, of batched probes, each one's weights, their directions and the sum over them."""
        k = self._pairs_together
        return (2 if self.samples == 1 else 3 * k + 1) if k else 1

    @property
    def _pairs_together(self) -> int:
        ranks = world()[1] if self.spread else 1
        return min(self.probe_batch, len(share(self.samples, ranks - 1, ranks)))

    def passes(self, steps: int, *, first: int = 0) -> tuple[int, int]:
        every = range(first, first + steps)
        betas = [beta_at(self.beta, step) for step in every] if callable(self.beta) else [self.beta] * steps
        guided, alone = sum(beta > 0 for beta in betas), sum(beta == 1 for beta in betas)
        forward, backward = self._first_pass(guided=False)
        probes = 2 * (alone + (steps - alone) * self.samples)
        return guided + (steps - guided) * forward + probes, guided + (steps - guided) * backward

    @torch.no_grad()
    def estimate(self, closure: Closure, *, step: int) -> Estimate:
        """Fill ``.grad`` by G, and with what the first-order pass gave parameters that are not quantized."""
        beta = beta_at(self.beta, step)
        for weight in self.weights:
            check_latent(weight.latent)
        random_state = RandomState({weight.latent.device for weight in self.weights})
        loss, weights = self._first_order(closure, beta)
        guide = Guide(
            weights,
            seed=self.seed,
            step=step,
            epsilon=self.epsilon,
            guide_norm=self.guide_norm,
            generator=self.generator,
            keep=beta > 0,
        )
        directions = partial(guide.directions, beta=beta)
        n = self.samples if beta < 1 else 1
        counted = self.crossings_every and (step + 1) % self.crossings_every == 0
        crossings = codes_crossed(weights, guide.units, (u[0] for u in directions(range(1)))) if counted else None
        probes = Probes(closure, weights, guide.units, random_state, loss is not None, self.spread)
        if n == 1:
            losses = self._one_pair(probes, guide, beta)
        elif self.probe_batch:
            sums = [torch.zeros_like(g) for g in guide.grads]
            losses = probes.together(directions, n, self.probe_batch, sums)
            torch._foreach_copy_(guide.grads, sums)
            torch._foreach_div_(guide.grads, float(n))
            guide.to_weight_units()
        else:
            losses = probes.one_by_one(directions, n)
            guide.combine(slopes_of(losses), beta)
        return Estimate(
            loss=losses.mean() if loss is None else loss,
            beta=beta,
            noise_share=noise_share(beta, weights, self.guide_norm),
            agreement=guide.agreement(slopes_of(losses).mean(), beta) if beta > 0 else None,
            zero_probes=(slopes_of(losses) == 0).float().mean(),
            guide_norm=guide.norm if beta > 0 else None,
            crossings=crossings,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what ``probe_batch="auto"`` has come to; nothing where it was given."""
        return {"probe_batch": self.probe_batch, "undecided": self.undecided} if self.auto else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)

    def _one_pair(self, probes: Probes, guide: Guide, beta: float) -> Tensor:
        """Return the losses of the case n = 1: u takes ĝ's place in ``.grad``, where it becomes G."""
        torch._foreach_mul_(guide.grads, math.sqrt(beta))
        if beta < 1:
            guide.add_noise(guide.grads[0].new_full((1,), math.sqrt(1 - beta)))

        def direction(samples: range) -> Iterator[Tensor]:
            return (g.unsqueeze(0) for g in guide.grads)

        losses = probes.together(direction, 1, 1) if self.probe_batch else probes.one_by_one(direction, 1)
        torch._foreach_mul_(guide.grads, slopes_of(losses)[0].to(guide.grads[0]))
        guide.to_weight_units()
        return losses

    def _first_order(self, closure: Closure, beta: float) -> tuple[Tensor | None, list[QuantizedWeight]]:
        """Make the passes at the undisplaced weights that anything needs; return the loss, and what to estimate."""
        forward, backward = self._first_pass(guided=beta > 0)
        if backward:
            loss, reached = first_order(closure, self.weights)
            return loss, reached if beta > 0 else self.weights
        check_gradients_empty(self.weights[0].model)
        return loss_of(closure, backward=False) if forward else None, self.weights

    def _first_pass(self, *, guided: bool) -> tuple[bool, bool]:
        """Return whether a step needs a forward, and a backward, pass at the undisplaced weights."""
        backward = guided or trains_others(self.weights)
        # the probes leave running statistics alone, so somebody has to update them
        return backward or bool(tracking_norms(self.weights[0].model)), backward


class NSPSA(FOGZO):
    """n-SPSA, the β = 0 member of the family: 2n forward passes a step, u_i = z_i.

    A backward pass runs only if the model has trainable parameters that are not quantized (norms, float biases, learned
    step sizes), which keep their first-order gradient.  Arguments as for :class:`fogzo.FOGZO`.
    """

    @options_of(FOGZO, without=("beta", "guide_norm"))
    def __init__(self, weights: Sequence[QuantizedWeight], **options: Any) -> None:
        if wrong := options.keys() & {"beta", "guide_norm"}:
            raise TypeError(f"NSPSA has no {min(wrong)}: it has no guide")
        super().__init__(weights, beta=0.0, **options)
