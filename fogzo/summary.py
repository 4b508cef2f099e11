"""What of a model is quantized, and what is left in full precision: layer by layer, and as a share."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

from torch import nn

from fogzo.quantize import QuantizedWeight, quantized_weights
from fogzo.quantizers import Quantizer
from fogzo.quantizers.inputs import NAME


@dataclass(frozen=True)
class Row:
    """One layer: name, class, number of parameters, bits of weights and inputs (32: not quantized), and codes."""

    layer: str
    kind: str
    parameters: int
    bits: int
    input_bits: int
    codes: str


@dataclass(frozen=True, repr=False)
class Report:
    """What :func:`report` returns; printed, it is a table.

    Attributes:
        rows: every layer that holds a matrix, quantized or not, in the model's order.
        quantized: how many parameters are quantized.
        parameters: how many the model has, but for the quantizers' own; a shared one counts once.
    """

    rows: tuple[Row, ...]
    quantized: int
    parameters: int

    @property
    def share(self) -> float:
        """Return ``quantized`` over ``parameters``."""
        return self.quantized / self.parameters

    def __repr__(self) -> str:
        lines = [("layer", "kind", "parameters", "bits", "inputs", "codes")]
        lines += [(r.layer, r.kind, f"{r.parameters:,}", str(r.bits), str(r.input_bits), r.codes) for r in self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
        rest = self.parameters - sum(row.parameters for row in self.rows)
        return "\n".join(
            [
                *table,
                f"and {rest:,} parameters in norms and the like, in full precision",
                f"quantized: {self.quantized:,} of {self.parameters:,} parameters ({self.share:.1%})",
            ]
        )


def report(model: nn.Module) -> Report:
    """Return what of ``model`` is quantized, and how; print it to see the table.

    Warns if less than half of the parameters are quantized, and says where most of the others are.

    Raises:
        ValueError: if nothing is quantized.
    """
    quantized = {weight.parameter_name: weight for weight in quantized_weights(model)}
    own = {id(p) for module in model.modules() if isinstance(module, Quantizer) for p in module.parameters()}
    sizes = {name: p.numel() for name, p in model.named_parameters() if id(p) not in own}
    matrices = {name for name, p in model.named_parameters() if p.dim() > 1}
    by_layer: dict[str, list[str]] = {}
    for name in sizes:
        layer = quantized[name].layer_name if name in quantized else name.rpartition(".")[0]
        by_layer.setdefault(layer, []).append(name)
    rows = [
        _row(model, layer, [quantized[name] for name in names if name in quantized], sum(map(sizes.__getitem__, names)))
        for layer, names in by_layer.items()
        if matrices.intersection(names)
    ]
    found = Report(tuple(rows), sum(sizes[name] for name in quantized), sum(sizes.values()))
    if 2 * found.quantized < found.parameters:
        largest = max((row for row in rows if row.bits == 32), key=lambda row: row.parameters, default=None)
        rest = largest and (
            f"; {largest.layer} ({largest.kind}) alone has {largest.parameters / found.parameters:.1%} in full "
            "precision"
        )
        warnings.warn(f"{found.share:.1%} of the parameters are quantized{rest or ''}", stacklevel=2)
    return found


def _row(model: nn.Module, name: str, weights: list[QuantizedWeight], parameters: int) -> Row:
    layer = model.get_submodule(name)
    inputs: Any = layer.get_submodule(NAME) if hasattr(layer, NAME) else None
    return Row(
        layer=name,
        kind=type(layer).__mro__[1 if weights else 0].__name__,  # parametrized, it has a class of its own
        parameters=parameters,
        bits=weights[0].quantizer.bits if weights else 32,
        input_bits=32 if inputs is None else inputs.quantizer.bits,
        codes=weights[0].quantizer.coding if weights else "",
    )
