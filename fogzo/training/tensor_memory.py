"""The most memory that tensors take at one time, on any device, also on torch's meta device, where there is none."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class PeakTensorMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within: follows the storages that operations return, and keeps the most bytes alive at one time in ``most``.

    Tensors ``existing`` count from the start, as an in-place operation returns tensors that were there before; the
    attribute keeps their bytes.
    """

    def __init__(self, existing: Iterable[Any] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive, self.most = 0, 0
        self.seen: dict[int, int] = {}
        for tensor in existing:
            if isinstance(tensor, torch.Tensor):
                self._follow(tensor.untyped_storage())
        self.existing = self.alive

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self._follow(tensor.untyped_storage())
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self.seen:
            self.seen[key] = storage.nbytes()
            self.alive += self.seen[key]
            self.most = max(self.most, self.alive)
            weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.alive -= self.seen.pop(key, 0)
