"""A quantized tensor as whole numbers and a scale: what every file format is written from, and read back into."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fogzo.errors import UserError
from fogzo.quantize import QuantizedWeight, quantized_weights
from fogzo.quantizers.grid import MAX_BITS
from fogzo.quantizers.quest import hadamard, rotated

WAY_OUT = "export to safetensors, which holds it, or take fogzo.bake's full-precision weights"


@dataclass(frozen=True)
class CodedTensor:
    """w_q = α · R (lowest + spacing · index), R block-diagonal Hadamard (QuEST) or the identity.

    Attributes:
        name: of the tensor in the plain model's state dict.
        quantizer: the class that made it, for people.
        bits: ``index`` lies in 0 ... 2^bits - 1 (of :meth:`integers`: the codes fit into so many signed bits).
        index: uint8, the shape of the weights.
        scale: α, in the dtype of the weights, broadcastable against them.
        rotation: width of the blocks of R; 1 is no rotation.
    """

    name: str
    quantizer: str
    bits: int
    lowest: float
    spacing: float
    index: Tensor
    scale: Tensor
    rotation: int = 1

    def codes(self) -> Tensor:
        """Return the codes, exact in the scale's dtype: they are small multiples of 1/2."""
        return self.index.to(self.scale.dtype).mul_(self.spacing).add_(self.lowest)

    def weights(self) -> Tensor:
        """Return the quantized weights, by the operations of ``Quantizer.forward`` and hence with its bits."""
        weights = self.codes().mul_(self.scale)
        if self.rotation == 1:
            return weights
        return rotated(weights, hadamard(self.rotation).to(weights))

    def integers(self, format: str) -> CodedTensor:
        """Return the same weights on whole numbers around 0, for formats that have no other codes.

        Half-integers ±1/2, ±3/2, ... become the odd numbers ±1, ±3, ... at half the scale, which is exact and needs one
        bit more; so does the sign, whose -1 and +1 do not fit the one-bit range -1, 0.

        Raises:
            UserError: where ``format`` cannot hold the tensor exactly, with the way out.
        """
        if self.rotation > 1:
            raise UserError(f"{self.name}: {format} cannot hold {self.quantizer}'s Hadamard rotation: {WAY_OUT}")
        if self.scale.dtype != torch.float32:
            raise UserError(f"{self.name}: {format} gets scales in fp32, and these are {self.scale.dtype}: {WAY_OUT}")
        factor = 1 if float(self.lowest).is_integer() and float(self.spacing).is_integer() else 2
        whole = replace(
            self, lowest=self.lowest * factor, spacing=self.spacing * factor, scale=self.scale.detach() / factor
        )
        highest = whole.lowest + whole.spacing * (2**self.bits - 1)
        bits = 1 + math.ceil(math.log2(max(-whole.lowest, highest + 1)))
        if bits > MAX_BITS:
            raise UserError(f"{self.name}: {format} would need {bits} bits for its codes, and has 8: {WAY_OUT}")
        return replace(whole, bits=bits)


def needed(module: str) -> Any:
    """Return a module of the extra ``export``.

    Raises:
        UserError: if it is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed, which this needs: pip install 'fogzo[export]'") from None


def coded(weight: QuantizedWeight) -> CodedTensor:
    """Return what ``weight`` is rounded to.

    Raises:
        UserError: if the weights are not finite, or are no scale times code.
    """
    quantizer, latent = weight.quantizer, weight.latent.detach()
    with torch.no_grad():
        scale, codes = quantizer.scale(latent).detach(), quantizer.codes(latent)
        lowest, highest = quantizer.encode(torch.tensor([-math.inf, math.inf], dtype=latent.dtype)).tolist()
        effective = getattr(weight.model.get_submodule(weight.layer_name), weight.tensor_name)
    if not bool(effective.isfinite().all()):
        raise UserError(f"{weight.name} is not finite: export a run that has not diverged")
    spacing = (highest - lowest) / (2**quantizer.bits - 1)
    block = getattr(quantizer, "block", None)
    tensor = CodedTensor(
        name=weight.name,
        quantizer=type(quantizer).__name__,
        bits=quantizer.bits,
        lowest=lowest,
        spacing=spacing,
        index=((codes - lowest) / spacing).to(torch.uint8),
        scale=scale,
        rotation=1 if block is None else len(block),
    )
    if weight.transposed:
        if tensor.rotation > 1:
            raise UserError(f"{weight.name} is rotated and stored as (in, out), which no file can hold: bake it")
        tensor = replace(tensor, index=tensor.index.t().contiguous(), scale=scale.t() if scale.dim() else scale)
    if not torch.equal(tensor.weights(), effective):  # a quantizer or parametrization of another kind
        raise UserError(f"{weight.name}: {tensor.quantizer} is no scale times code, so no file can hold it: bake it")
    return tensor


def coded_tensors(model: nn.Module) -> list[CodedTensor]:
    """Return all quantized tensors of ``model``.

    Raises:
        UserError: if there is none, or one cannot be coded.
    """
    return [coded(weight) for weight in quantized_weights(model)]


def pack(index: Tensor, bits: int) -> Tensor:
    """Return ``index`` (uint8) as a stream of ``bits`` bits each, least significant first, in whole bytes.

    >>> [f"{byte:08b}" for byte in pack(torch.tensor([0, 1, 2, 3, 3], dtype=torch.uint8), 2).tolist()]
    ['11100100', '00000011']
    """
    rows = index.detach().cpu().contiguous().view(-1, 1).numpy()
    return torch.from_numpy(np.packbits(np.unpackbits(rows, axis=1, count=bits, bitorder="little"), bitorder="little"))


def unpack(packed: Tensor, bits: int, shape: tuple[int, ...]) -> Tensor:
    """Return the inverse of :func:`pack`; ``packed`` has ``packed_size(bits, shape)`` bytes.

    >>> unpack(torch.tensor([0b11100100, 0b11], dtype=torch.uint8), 2, (5,)).tolist()
    [0, 1, 2, 3, 3]
    """
    stream = np.unpackbits(packed.numpy(), count=bits * math.prod(shape), bitorder="little")
    return torch.from_numpy(np.packbits(stream.reshape(-1, bits), axis=1, bitorder="little")).view(shape)


def packed_size(bits: int, shape: tuple[int, ...]) -> int:
    """Return the bytes that codes of ``shape`` take."""
    return -(-bits * math.prod(shape) // 8)
