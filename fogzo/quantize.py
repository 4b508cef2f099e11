"""Put quantizers on a model's weights, list them, and bake them in."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fogzo.checks import flag
from fogzo.errors import ArgumentError, UserError
from fogzo.quantizers import Quantizer
from fogzo.quantizers.base import check_latent
from fogzo.quantizers.inputs import check_inputs, quantize_inputs
from fogzo.quantizers.layers import Transposed, checked_patterns, is_layer, is_transposed, left_out, matching
from fogzo.quantizers.shared import LastInput
from fogzo.smoothing import Smoothing


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """One quantized tensor of a model: where it lives, its latent parameter and its quantizer."""

    model: nn.Module
    layer_name: str
    tensor_name: str
    chain: parametrize.ParametrizationList
    noise: Smoothing | None = None  # of probes, in place of what the surrogate implies

    @property
    def name(self) -> str:
        """Return the tensor's name before quantization, such as ``"blocks.0.attn.qkv.weight"``."""
        return f"{self.layer_name}.{self.tensor_name}".lstrip(".")

    @property
    def parameter_name(self) -> str:
        """Return the latent's name in ``model.named_parameters()`` and ``model.state_dict()``."""
        return f"{self.layer_name}.parametrizations.{self.tensor_name}.original".lstrip(".")

    @property
    def latent(self) -> nn.Parameter:
        """Return the full-precision parameter that the optimizer updates."""
        return cast(nn.Parameter, self.chain.original)

    @property
    def quantizer(self) -> Quantizer:
        return cast(Quantizer, self.chain[0])

    @property
    def transposed(self) -> bool:
        """Return whether the layer sees (in, out), the latent's transpose."""
        return len(self.chain) > 1

    @property
    def smoothing(self) -> Smoothing:
        """Return what probes draw their noise from."""
        return self.noise or self.quantizer.smoothing

    @torch.no_grad()
    def grid_unit(self) -> Tensor:
        """Return ε̄·α, in weight units: the standard deviation of the noise."""
        return self.smoothing.std * self.quantizer.scale(self.latent)

    def __repr__(self) -> str:
        return f"QuantizedWeight({self.name}, shape={tuple(self.latent.shape)}, {self.quantizer})"


def quantize_model(
    model: nn.Module,
    quantizer: Quantizer | Mapping[str, Quantizer],
    *,
    skip: Iterable[str] = (),
    biases: bool = False,
    activations: Quantizer | None = None,
) -> nn.Module:
    """Quantize the weights of every ``nn.Linear``, ``nn.Conv1d/2d/3d`` and transformers ``Conv1D``, in place.

    Other modules that multiply (recurrent ones, ``nn.MultiheadAttention``'s packed input projection, transposed
    convolutions) stay in full precision, and a warning names those that ``skip`` does not.

    Args:
        model: any module, in fp32 (or fp64), with its initial weights: scales are fitted to them, here and only here.
        quantizer: a prototype such as ``fogzo.LSQ(bits=2)``; each tensor gets its own copy.  A mapping such as
            ``{"blocks.0": LSQ(4), "*": LSQ(2)}`` gives a layer the prototype of the first pattern that matches it, and
            leaves a layer that none matches in full precision.
        skip: patterns (``fnmatch``) of layer names to leave alone, such as ``["head", "blocks.0"]``; a pattern that
            matches a module leaves out all layers inside it, of which there must be one.
        biases: quantize the biases of these layers too.
        activations: ``fogzo.LSQ(bits)`` or ``fogzo.QuEST(bits)`` quantizes the inputs of the same layers; LSQ's
            steps are then to be fitted by ``fogzo.fit_activations``.

    Returns:
        ``model`` itself.  Its ``state_dict`` now holds the latent weights and the quantizers' scales.

    Raises:
        ValueError: for latent weights in 16 bits, a pattern that matches nothing, nothing left to quantize, a
            tensor that has a parametrization or hook already or is shared between layers, and weights that no scale
            can be fitted to.  The model is left as it was.
    """
    patterns = checked_patterns(skip)
    flag(biases, "biases")
    skipped = set().union(*matching(model, patterns, "skip pattern").values())
    prototypes = _prototypes(model, quantizer, skipped)
    found = _fitted(model, prototypes, biases=biases, inputs=activations is not None)
    untouched = [f"{name} ({type(module).__name__})" for name, module in left_out(model) if name not in skipped]
    if not found:
        also = f"; it has {', '.join(untouched)}, which stay in full precision" if untouched else ""
        raise UserError(
            f"nothing to quantize: no linear or convolution layer is left in {type(model).__name__} "
            f"(skip={patterns}){also}"
        )
    if untouched:
        warnings.warn(
            f"{', '.join(untouched)} multiply, but stay in full precision: name them in skip= if that is meant",
            stacklevel=2,
        )
    if activations is not None:
        _check_prototype(activations, "activations")
        activations.for_inputs(channels=1)  # refuses what has no form for activations
    seen = LastInput()
    # only now touch the model, so that a refusal above leaves it whole
    for layer, tensor_name, copied in found:
        if tensor_name == "weight" and is_transposed(layer):
            parametrize.register_parametrization(layer, tensor_name, Transposed())
            cast("dict[str, nn.ModuleList]", layer.parametrizations)[tensor_name].insert(0, copied)
        else:
            parametrize.register_parametrization(layer, tensor_name, copied)
        if activations is not None and tensor_name == "weight":
            quantize_inputs(layer, activations, seen)
    return model


def _fitted(
    model: nn.Module, prototypes: Mapping[str, Quantizer], *, biases: bool, inputs: bool
) -> list[tuple[nn.Module, str, Quantizer]]:
    """Return layer, tensor name and fitted quantizer of each tensor to quantize; the model is not touched."""
    found: list[tuple[nn.Module, str, Quantizer]] = []
    owners = _owners_of_parameters(model)
    for layer_name, layer in model.named_modules():
        if not is_layer(layer) or layer_name not in prototypes:
            continue
        for tensor_name in ("weight", "bias") if biases else ("weight",):
            name = f"{layer_name}.{tensor_name}".lstrip(".")
            if parametrize.is_parametrized(layer, tensor_name):
                raise UserError(f"{name} has a parametrization already: quantize a plain model, or skip this layer")
            if inputs:
                check_inputs(layer, layer_name)
            latent = getattr(layer, tensor_name)
            if latent is not None:
                used_by = owners.get(id(latent), [])
                latent = latent.t() if is_transposed(layer) else latent
                found.append((layer, tensor_name, _fitted_copy(prototypes[layer_name], latent, name, used_by)))
    return found


def quantized_weights(model: nn.Module) -> list[QuantizedWeight]:
    """Return every quantized tensor of ``model``, in the order of ``model.named_modules()``.

    Raises:
        ValueError: if there is none.
    """
    weights = [
        QuantizedWeight(model, layer_name, tensor_name, chain)
        for layer_name, layer in model.named_modules()
        for tensor_name, chain in _quantized_tensors(layer).items()
    ]
    if not weights:
        raise UserError(f"{type(model).__name__} has no quantized weights: call fogzo.quantize_model(model, ...) first")
    return weights


@torch.no_grad()
def bake(model: nn.Module) -> nn.Module:
    """Replace every quantized tensor by its quantized values, in place: a plain model again, for inference.

    The latent weights and the scales are dropped, and an optimizer that holds them is of no more use.  Returns
    ``model``.
    """
    for weight in quantized_weights(model):
        layer = model.get_submodule(weight.layer_name)
        # a deep copy shares the class that torch made for the original, and removal would take the weight off both
        layer.__class__ = type(type(layer).__name__, type(layer).__bases__, dict(vars(type(layer))))
        parametrize.remove_parametrizations(layer, weight.tensor_name, leave_parametrized=True)
    return model


def _quantized_tensors(layer: nn.Module) -> dict[str, parametrize.ParametrizationList]:
    if not parametrize.is_parametrized(layer):
        return {}
    chains = cast(
        "dict[str, parametrize.ParametrizationList]", dict(cast(nn.ModuleDict, layer.parametrizations).items())
    )
    return {name: chain for name, chain in chains.items() if isinstance(chain[0], Quantizer)}


def _check_prototype(quantizer: object, name: str) -> None:
    if not isinstance(quantizer, Quantizer):
        raise ArgumentError(name, quantizer, "is no quantizer: give an object such as fogzo.LSQ(bits=2)")


def _prototypes(
    model: nn.Module, quantizer: Quantizer | Mapping[str, Quantizer], skipped: set[str]
) -> dict[str, Quantizer]:
    """Return the prototype of each layer that gets one."""
    if not isinstance(quantizer, Mapping):
        _check_prototype(quantizer, "quantizer")
        return dict.fromkeys((name for name, _ in model.named_modules() if name not in skipped), quantizer)
    chosen: dict[str, Quantizer] = {}
    for pattern, layers in matching(model, list(quantizer), "quantizer pattern", skipped).items():
        _check_prototype(quantizer[pattern], f"quantizer[{pattern!r}]")
        chosen = dict.fromkeys(layers, quantizer[pattern]) | chosen
    return chosen


def _owners_of_parameters(model: nn.Module) -> dict[int, list[str]]:
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    return owners


def _fitted_copy(prototype: Quantizer, latent: Tensor, name: str, owners: list[str]) -> Quantizer:
    layer = name.rpartition(".")[0]
    if not owners:
        raise UserError(
            f"{name} is computed by a hook (of prune, weight_norm or spectral_norm): remove that first, or skip {layer}"
        )
    if len(owners) > 1:
        others = " and ".join(owner for owner in owners if owner != name)
        raise UserError(f"{name} is one tensor with {others}: untie it, or skip {layer} (and the other, if quantized)")
    quantizer = copy.deepcopy(prototype)
    try:
        check_latent(latent)
        if latent.is_meta:
            raise UserError("a tensor on the meta device holds no values to fit a scale to: load the weights first")
        if not bool(latent.isfinite().all()):
            raise UserError("the initial weights are not finite: a scale is fitted to them, so initialise them first")
        quantizer.fit(latent.detach())
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    return quantizer
