"""Random numbers without a state: Philox4x32-10 (Salmon et al., SC 2011), as integer operations of torch.

Number i of a key is a function of both and of nothing before it: any part is drawn alone.  The integers, and the
uniform numbers made of them, are the same to the last bit on any device.  What a smoothing makes of those is, for sums,
products and square roots, which IEEE 754 rounds in one way; an atanh (the tanh surrogate's noise) is the library's own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

MULTIPLIERS, WEYL = (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85)
WORD, ROUNDS = 0xFFFFFFFF, 10
Key = tuple[int, int] | tuple[Tensor, Tensor]  # tensors where the code is compiled: it would be anew for other ints
BLOCKS = 2**13  # that the CPU handles at a time: what ten rounds work on stays in its cache


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: Key) -> tuple[Tensor, ...]:
    """Return four words of 32 bits for each counter of four; all int64, of one shape.

    >>> zero = torch.zeros(1, dtype=torch.int64)
    >>> [f"{int(word):08x}" for word in philox((zero, zero, zero, zero), (0, 0))]     # Random123's known answer
    ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    a, b, c, d = counter
    k, l = key  # noqa: E741
    for _ in range(ROUNDS):
        p, q = a * MULTIPLIERS[0], c * MULTIPLIERS[1]  # 64 bits, of which int64 keeps each, whatever their sign
        a, b, c, d = (q >> 32 & WORD) ^ b ^ k, q & WORD, (p >> 32 & WORD) ^ d ^ l, p & WORD
        k, l = (k + WEYL[0]) & WORD, (l + WEYL[1]) & WORD  # noqa: E741
    return a, b, c, d


def _blocks(first: int | Tensor, count: int, key: Key, device: torch.device) -> Tensor:
    """Return the uniform numbers of ``count`` counters from ``first`` on, fp32, shape (4·count,)."""
    index = torch.arange(count, device=device) + first
    low, high = index & WORD, index >> 32
    words = torch.stack(philox((low, high, torch.zeros_like(low), torch.zeros_like(low)), key), 1)
    # 23 bits and a half: exact in fp32, and never 0 or 1
    return ((words >> 9).float() + 0.5).mul_(2.0**-23).flatten()


@cache
def _fused() -> Callable[..., Tensor]:
    """Return :func:`_blocks` as one kernel where torch can make one of it, on a GPU with triton."""
    return torch.compile(_blocks, dynamic=True) if find_spec("triton") else _blocks


def uniform(seed: int, start: int, count: int, device: torch.device) -> Tensor:
    """Return numbers ``start`` to ``start + count - 1`` of ``seed`` (up to 64 bits) in (0, 1): fp32, shape (count,).

    >>> whole = uniform(7, 0, 100, torch.device("cpu"))
    >>> torch.equal(uniform(7, 33, 5, torch.device("cpu")), whole[33:38])
    True
    """
    key = (seed & WORD, seed >> 32 & WORD)
    first, last = start // 4, -(-(start + count) // 4)
    if device.type == "cuda":
        at, *words = (torch.full((), number, dtype=torch.int64, device=device) for number in (first, *key))
        numbers = _fused()(at, last - first, tuple(words), device)
    else:
        parts = [_blocks(at, min(BLOCKS, last - at), key, device) for at in range(first, last, BLOCKS)]
        numbers = torch.cat(parts) if len(parts) > 1 else parts[0]
    return numbers[start - 4 * first : start - 4 * first + count]
