"""Noise for the quantized weights, and moving them away from a kept copy and back, bit for bit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType

import torch
from torch import Tensor

from fogzo.checks import whole
from fogzo.quantize import QuantizedWeight
from fogzo.seeding import derive_seed


class Noise:
    """The z_i of one step: a fixed sequence of tensors for each sample i, drawn again whenever asked for, never stored.

    Private generators are seeded from (seed, step, i): nothing to checkpoint, the same on every rank, and the global
    generators are not touched.
    """

    def __init__(self, weights: Sequence[QuantizedWeight], seed: int, step: int) -> None:
        self.latents = [weight.latent.detach() for weight in weights]
        self.weights = {id(latent): weight for latent, weight in zip(self.latents, weights, strict=True)}
        self.seed, self.step = seed, whole(step, "step", lowest=0)

    def draw(self, samples: range) -> Iterator[Tensor]:
        """For each weight in turn, z of these samples: shape (len(samples), *weight.shape), mean 0, variance 1.

        Lazy: small tensors are drawn in one go, but no more noise exists at a time than for one large weight.
        """
        generators: dict[torch.device, list[torch.Generator]] = {}
        for group in _groups(self.latents):
            device = group[0].device
            if device not in generators:
                generators[device] = [self._generator(i, device) for i in samples]
            c = _uniform(sum(latent.numel() for latent in group), generators[device])
            for latent, part in zip(group, torch.split(c, [latent.numel() for latent in group], dim=1), strict=True):
                weight = self.weights[id(latent)]
                # fp32 draws whatever the weights are: a model in fp64 sees the noise that its fp32 twin sees
                z = weight.smoothing.from_uniform(part.to(latent.dtype))
                yield weight.quantizer.unrotate(z.reshape(-1, *latent.shape))

    def _generator(self, i: int, device: torch.device) -> torch.Generator:
        return torch.Generator(device).manual_seed(derive_seed("probe", self.seed, self.step, i))


def _groups(latents: Sequence[Tensor], largest: int = 2**16) -> Iterator[list[Tensor]]:
    """Neighbours on one device, up to ``largest`` elements together."""
    group: list[Tensor] = []
    for latent in latents:
        size = sum(other.numel() for other in group) + latent.numel()
        if group and (size > largest or latent.device != group[0].device):
            yield group
            group = []
        group.append(latent)
    yield group


def _uniform(length: int, generators: Sequence[torch.Generator]) -> Tensor:
    """One row a generator, from U(0, 1): shape (len(generators), length), fp32."""
    device = generators[0].device
    if device.type != "cpu":
        c = torch.empty(len(generators), length, device=device)
        for row, generator in zip(c, generators, strict=True):
            row.uniform_(generator=generator)
        return c
    # the CPU generator is serial: one 64-bit draw for two numbers takes 0.6 of the time of uniform_
    bits = torch.empty(len(generators), (length + 1) // 2, dtype=torch.int64)
    for row, generator in zip(bits, generators, strict=True):
        row.random_(-(2**63), None, generator=generator)
    c = bits.view(torch.float32)  # in the same bytes: noise takes no more room than the weight it is for
    torch.mul(bits.view(torch.int32), 2.0**-32, out=c)
    return c[:, :length].add_(0.5)


class Displacement:
    """Context in which latent weights may be moved; on the way out, however that happens, they are put back.

    Adding and subtracting in place would drift (paper.md, section 2, "Exact restoration"): the weights are displaced
    from a kept copy, the one weight-sized buffer of an estimate, and copied back.
    """

    def __init__(self, latents: Sequence[Tensor]) -> None:
        self.latents = [latent.detach() for latent in latents]
        self.kept: list[Tensor] = []

    def __enter__(self) -> Displacement:
        self.kept = [latent.clone() for latent in self.latents]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._restore()
        except BaseException:  # Ctrl-C in the middle of the copying: finish it first
            self._restore()
            raise

    def move(self, directions: Iterable[Tensor], units: Iterable[Tensor]) -> None:
        """w = kept + unit·u.  The directions are taken one at a time."""
        for latent, kept, u, unit in zip(self.latents, self.kept, directions, units, strict=True):
            torch.addcmul(kept, u, unit, out=latent)

    def reflect(self) -> None:
        """From kept + unit·u to kept - unit·u.

        Computed as 2 kept - w: the pair stays symmetric about the kept weights where w has lost bits of unit·u, and the
        noise need not be drawn again.
        """
        for latent, kept in zip(self.latents, self.kept, strict=True):
            latent.neg_().add_(kept, alpha=2)

    def _restore(self) -> None:
        for latent, kept in zip(self.latents, self.kept, strict=True):
            latent.copy_(kept)
