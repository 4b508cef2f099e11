"""Begin from weights that exist: full-precision ones, put into the network before it is quantized."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fogzo.errors import UserError, explained
from fogzo.quantizers.layers import is_transposed

WAY_OUT = (
    "name a state dict that torch.save wrote, a .safetensors file or a run's folder, or init_from=null for new weights"
)
WRAPPED = (
    "state_dict",
    "model",
    "model_state_dict",
    "module",
)  # what files keep a state dict under, beside other things
PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.")  # of DistributedDataParallel, torch.compile and wrappers
WRAPPERS = re.compile(r"^((module|_orig_mod)\.)+")  # several at once
LATENT = re.compile(r"parametrizations\.(\w+)\.original$")  # of a network that was quantized when it was saved
QUANTIZERS = re.compile(r"(^|\.)(parametrizations|input_quantizer)\.")
SHOWN = 3  # names


def weights_file(path: str | Path) -> Path:
    """Return the file of ``init_from=path``: itself, or the weights in a folder of a run.

    Raises:
        UserError: if there is none.
    """
    file = Path(path)
    if file.is_dir():  # of a run, or of transformers
        of_library = file / "model.safetensors"
        file = of_library if of_library.is_file() else file / "model.pt"
    if not file.is_file():
        raise UserError(f"init_from={path}: {file} is not there: {WAY_OUT}")
    return file


def initialise(model: nn.Module, path: str | Path) -> list[str]:
    """Put the weights of ``init_from=path`` into ``model``, in place, where names and shapes are the same.

    Args:
        model: plain: before ``fogzo.quantize_model``, which fits the scales to them.

    Returns:
        What matched, and what did not, in a line each.

    Raises:
        UserError: if the file cannot be read, or nothing in it fits the model.
    """
    there, latents = read_weights(weights_file(path))
    turned = [name + ".weight" for name, module in model.named_modules() if is_transposed(module)]
    for name in latents:  # which are (out, in) of every layer
        if any(f".{name}".endswith(f".{one}") or f".{one}".endswith(f".{name}") for one in turned):
            there[name] = there[name].t()
    own = model.state_dict()
    named = max(_namings(there, model), key=lambda names: len(_fitting(names, own)))
    fitting = _fitting(named, own)
    if not fitting & {name for name, _ in model.named_parameters(remove_duplicate=False)}:
        raise UserError(
            f"init_from={path} has nothing of {type(model).__name__}: it holds {_listed(list(there))}, the model has "
            f"{_listed(list(own))}: name the weights of this model, or choose the model that they are of"
        )
    with torch.no_grad():
        for name in fitting:
            own[name].copy_(named[name])
    filled = {own[name].data_ptr() for name in fitting}  # a tied tensor may be saved under one of its names
    sizes = [
        f"{name} ({_shape(named[name])} there, {_shape(own[name])} here)" if name in named else name
        for name in own
        if name not in fitting and own[name].data_ptr() not in filled
    ]
    unused = [name for name in named if name not in own]
    left = [f"left at their initial values: {_listed(sizes)}"] if sizes else []
    left += [f"not used: {_listed(unused)}"] if unused else []
    return [f"weights of {path}: {len(fitting)} of {len(own)} tensors taken over", *(["; ".join(left)] if left else [])]


def read_weights(file: Path) -> tuple[dict[str, Tensor], set[str]]:
    """Return the full-precision weights in ``file`` by name, and which are latent ones of a quantized network.

    Nothing in the file is run: it is safetensors, or read with ``weights_only``.

    Raises:
        UserError: if it is damaged, or holds no state dict.
    """
    unreadable = (RuntimeError, pickle.UnpicklingError, SafetensorError, KeyError, AttributeError)
    with explained(file, WAY_OUT, problem="cannot be read as weights", also=unreadable):
        if file.suffix == ".safetensors":
            content: Any = load_file(file)
        else:
            content = torch.load(file, map_location="cpu", weights_only=True)
    while isinstance(content, Mapping) and (key := next((k for k in WRAPPED if _is_state(content.get(k))), None)):
        content = content[key]
    state = {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, Mapping) else {}
    if not state:
        raise UserError(f"{file} holds no tensors by name: {WAY_OUT}")
    if any(name.endswith(".codes") for name in state):
        raise UserError(f"{file} holds codes, which fogzo.export wrote, and no full-precision weights: {WAY_OUT}")
    latents = {LATENT.sub(r"\1", name) for name in state if LATENT.search(name)}
    named = {LATENT.sub(r"\1", name): tensor for name, tensor in state.items()}
    return {name: tensor for name, tensor in named.items() if not QUANTIZERS.search(name)}, latents


def _is_state(value: object) -> bool:
    return isinstance(value, Mapping) and any(isinstance(tensor, Tensor) for tensor in value.values())


def _namings(state: dict[str, Tensor], model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Yield ``state`` as it is, without a wrapper's prefix, and with that of transformers' models that have a head."""
    yield state
    for prefix in PREFIXES:
        yield {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    yield {WRAPPERS.sub("", name): tensor for name, tensor in state.items()}
    if base := getattr(model, "base_model_prefix", ""):
        yield {f"{base}.{name}": tensor for name, tensor in state.items()}


def _fitting(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> set[str]:
    return {name for name, tensor in state.items() if name in own and tensor.shape == own[name].shape}


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
