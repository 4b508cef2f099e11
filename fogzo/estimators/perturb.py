"""Noise for the quantized weights, and moving them away from a kept copy and back, bit for bit, even at Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Literal

import torch
from torch import Tensor

from fogzo.checks import whole
from fogzo.estimators import philox
from fogzo.quantize import QuantizedWeight
from fogzo.seeding import derive_seed

Generator = Literal["mt19937", "philox"]


def most(device: torch.device) -> int:
    """Return how many elements tensors have at most that are handled in one call; a larger one has its own.

    Of small tensors it is the call that takes time.  The CPU's noise is drawn in such groups, so 2^16 stays there.
    """
    return 2**16 if device.type == "cpu" else 2**24


def some_at_a_time(*columns: Iterable[Tensor]) -> Iterator[tuple[list[Tensor], ...]]:
    """Yield neighbours, column by column, until the last column's are :func:`most` elements.

    Of large tensors that are made on the way no two need to be there at once.
    """
    rows: list[tuple[Tensor, ...]] = []
    size = 0
    for row in zip(*columns, strict=True):
        rows.append(row)
        size += row[-1].numel()
        if size >= most(row[-1].device):
            yield tuple(map(list, zip(*rows, strict=True)))
            rows, size = [], 0
    if rows:
        yield tuple(map(list, zip(*rows, strict=True)))


def copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return a copy of each."""
    made = [torch.empty_like(tensor) for tensor in tensors]
    if made:
        torch._foreach_copy_(made, list(tensors))
    return made


class Noise:
    """The z_i of one step: a fixed sequence of tensors for each sample i, drawn again whenever asked for, never stored.

    Seeds are of (seed, step, i): nothing to checkpoint, the same on every rank, and the global generators are not
    touched.

    Args:
        generator: ``"mt19937"``: the device's own ``torch.Generator``, the fastest on the CPU; on CUDA it draws other
            numbers.  ``"philox"``: :mod:`fogzo.estimators.philox`, the same on every device, a function of the
            coordinate's place too; 8 to 11 times as slow on the CPU.
    """

    def __init__(
        self, weights: Sequence[QuantizedWeight], seed: int, step: int, generator: Generator = "mt19937"
    ) -> None:
        self.latents = [weight.latent.detach() for weight in weights]
        self.weights = {id(latent): weight for latent, weight in zip(self.latents, weights, strict=True)}
        self.seed, self.step, self.generator = seed, whole(step, "step", lowest=0), generator

    def draw(self, samples: range) -> Iterator[Tensor]:
        """Yield, for each weight in turn, z of these samples: shape (len(samples), *weight.shape), mean 0, variance 1.

        Lazy: small tensors are drawn in one go, but no more noise exists at a time than for one large weight.
        """
        generators: dict[torch.device, list[torch.Generator]] = {}
        start = 0  # of the group, among all coordinates
        for group in _groups(self.latents):
            device, length = group[0].device, sum(latent.numel() for latent in group)
            if self.generator == "philox":
                c = torch.stack([philox.uniform(self._seed(i), start, length, device) for i in samples])
            else:
                if device not in generators:
                    generators[device] = [torch.Generator(device).manual_seed(self._seed(i)) for i in samples]
                c = _uniform(length, generators[device])
            start += length
            # fp32 draws whatever the weights are: a model in fp64 sees the noise that its fp32 twin sees
            first = self.weights[id(group[0])].smoothing
            alike = all(str(self.weights[id(other)].smoothing) == str(first) for other in group)
            whole_group = alike and first.exact and len({other.dtype for other in group}) == 1
            if whole_group:  # one call for all small tensors: the same numbers, as each operation rounds exactly
                c = first.from_uniform(c.to(group[0].dtype))
            for latent, part in zip(group, torch.split(c, [latent.numel() for latent in group], dim=1), strict=True):
                weight = self.weights[id(latent)]
                z = part if whole_group else weight.smoothing.from_uniform(part.to(latent.dtype))
                yield weight.quantizer.unrotate(z.reshape(-1, *latent.shape))

    def _seed(self, i: int) -> int:
        return derive_seed("probe", self.seed, self.step, i)


def _groups(latents: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield neighbours on one device, up to :func:`most` elements together."""
    group: list[Tensor] = []
    for latent in latents:
        size = sum(other.numel() for other in group) + latent.numel()
        if group and (size > most(latent.device) or latent.device != group[0].device):
            yield group
            group = []
        group.append(latent)
    yield group


def _uniform(length: int, generators: Sequence[torch.Generator]) -> Tensor:
    """Draw one row a generator, from U(0, 1): shape (len(generators), length), fp32."""
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
        self.moved = False

    def __enter__(self) -> Displacement:
        self.kept = copies(self.latents)
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
        """Set w = kept + unit·u.  Of large directions, one at a time is taken."""
        for factors, latents, kept, us in some_at_a_time(units, self.latents, self.kept, directions):
            if self.moved:
                torch._foreach_copy_(latents, kept)
            torch._foreach_addcmul_(latents, us, factors)
        self.moved = True

    def reflect(self) -> None:
        """Go from kept + unit·u to kept - unit·u.

        Computed as 2 kept - w: the pair stays symmetric about the kept weights where w has lost bits of unit·u, and the
        noise need not be drawn again.
        """
        torch._foreach_neg_(self.latents)
        torch._foreach_add_(self.latents, self.kept, alpha=2)

    def _restore(self) -> None:
        torch._foreach_copy_(self.latents, self.kept)


@contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Within: Ctrl-C waits until the end, where it is delivered as it would have been; a second one strikes at once.

    Without this a KeyboardInterrupt could fall between the lines that put weights back.  A handler whose ``only_notes``
    is true is left in place: it does not raise at the first Ctrl-C.
    """
    before = signal.getsignal(signal.SIGINT)
    if getattr(before, "only_notes", False):
        yield
        return
    if threading.current_thread() is not threading.main_thread() or before in (None, signal.SIG_IGN):
        yield  # only the main thread gets Ctrl-C; a handler that was not set from Python could not be set again
        return
    pending: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        if pending:
            raise KeyboardInterrupt
        pending.append(number)

    signal.signal(signal.SIGINT, remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if pending:
            signal.raise_signal(signal.SIGINT)
