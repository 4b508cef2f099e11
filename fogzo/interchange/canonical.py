"""Writing our own file: packed codes and scales, the rest as it is, in one safetensors file (docs/export.md)."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fogzo.errors import UserError
from fogzo.interchange.coded import CodedTensor, coded_tensors, needed, pack
from fogzo.quantize import quantized_weights
from fogzo.quantizers import LSQ, QuEST
from fogzo.quantizers.inputs import InputQuantizer

VERSION = 1
KEY = "fogzo"  # of the metadata
INPUTS = {"LSQ": LSQ, "QuEST": QuEST}  # quantizers of activations
CODES, SCALE = ".codes", ".scale"  # behind a quantized tensor's name


@dataclass(frozen=True)
class Size:
    """Bytes of one quantized tensor, before (as the model holds it) and after (codes and scales)."""

    name: str
    bits: int
    before: int
    after: int

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.bits} bits, {self.before:,} → {self.after:,} bytes ({self.before / self.after:.1f}×)"
        )


@dataclass(frozen=True)
class Exported:
    """What an export has written: the path, bytes of the whole network before and after, and those of its tensors."""

    path: Path
    before: int
    after: int
    tensors: tuple[Size, ...]

    def __str__(self) -> str:
        before, after = (sum(getattr(size, side) for size in self.tensors) for side in ("before", "after"))
        return (
            f"{self.path}: {self.before:,} → {self.after:,} bytes ({self.before / self.after:.1f}×), the "
            f"{len(self.tensors)} quantized tensors {before:,} → {after:,} ({before / after:.1f}×)"
        )


def export(model: nn.Module, path: str | Path, *, run: Mapping[str, Any] | None = None) -> Exported:
    """Write a quantized model to one safetensors file, from which :func:`fogzo.load` gives the same bits.

    Args:
        model: quantized by ``fogzo.quantize_model``; it is left as it is.
        path: of the file; it is replaced whole, or not at all.
        run: what to note about where the weights come from (identity, commit): plain values.

    Returns:
        The sizes before and after, printable.

    Raises:
        UserError: if nothing is quantized, weights are not finite, or are no scale times code.
    """
    path = Path(path)
    coded = coded_tensors(model)
    tensors, entries, sizes = others(model), [], []
    document = {
        "version": VERSION,
        "activations": activations(check_fitted(model)),
        "sha256": digest(tensors),
        "run": dict(run or {}),
    }
    before = sum(tensor.nbytes for tensor in tensors.values())
    for tensor in coded:
        packed = pack(tensor.index, tensor.bits)
        scale = tensor.scale.cpu().contiguous()
        tensors |= {tensor.name + CODES: packed, tensor.name + SCALE: scale}
        entries.append(entry(tensor, packed))
        sizes.append(
            Size(tensor.name, tensor.bits, tensor.index.numel() * scale.itemsize, packed.nbytes + scale.nbytes)
        )
    metadata = {KEY: json.dumps(document | {"codes": entries}, allow_nan=False)}
    temporary = path.with_name(path.name + ".tmp")
    try:
        needed("safetensors.torch").save_file(tensors, temporary, metadata)
        os.replace(temporary, path)  # noqa: PTH105
    finally:
        temporary.unlink(missing_ok=True)
    return Exported(path, before + sum(size.before for size in sizes), path.stat().st_size, tuple(sizes))


def entry(tensor: CodedTensor, packed: Tensor) -> dict[str, Any]:
    """Return what the metadata says of one quantized tensor."""
    return {
        "name": tensor.name,
        "quantizer": tensor.quantizer,
        "bits": tensor.bits,
        "lowest": tensor.lowest,
        "spacing": tensor.spacing,
        "shape": list(tensor.index.shape),
        "rotation": tensor.rotation,
        "sha256": sha256_of(packed),
    }


def others(model: nn.Module) -> dict[str, Tensor]:
    """Return the rest of the state dict, on the CPU: all that belongs to no quantized tensor."""
    inside = tuple(f"{weight.parameter_name.removesuffix('original')}" for weight in quantized_weights(model))
    rest = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(inside)}
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in rest.items()}  # tied ones twice


def check_fitted(model: nn.Module) -> nn.Module:
    """Return ``model``, if the steps of its quantized inputs are fitted to some.

    Raises:
        UserError: if not: a file would hold a step that means nothing.
    """
    for name, module in model.named_modules():
        if isinstance(module, InputQuantizer) and not module.fitted:
            raise UserError(f"{name} has no step yet: call the network on a batch of inputs in training mode first")
    return model


def activations(model: nn.Module) -> list[dict[str, Any]]:
    """Return the layers whose inputs are quantized, and how; the steps are in the state dict.

    Raises:
        UserError: for a quantizer that is not one of ours.
    """
    found = []
    for name, module in model.named_modules():
        if isinstance(module, InputQuantizer):
            quantizer = module.quantizer
            kind = type(quantizer).__name__
            if kind not in INPUTS:
                raise UserError(f"{name} is a {kind}, which no file can name: {' and '.join(INPUTS)} are known")
            options = {"signed": quantizer.signed} if kind == "LSQ" else {}
            found.append({"layer": name.rpartition(".")[0], "quantizer": kind, "bits": quantizer.bits, **options})
    return found


def sha256_of(codes: Tensor) -> str:
    """Return the SHA-256 of packed codes, 64 hexadecimal digits."""
    return hashlib.sha256(codes.numpy().tobytes()).hexdigest()


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of the names and bytes of ``tensors``, in the order of their names."""
    hashed = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        hashed.update(name.encode() + b"\0")
        hashed.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()
