"""Reading our own file back: every field is checked before it is used, and nothing in it is code (docs/export.md)."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fogzo.errors import UserError, one_line
from fogzo.interchange.canonical import CODES, INPUTS, KEY, SCALE, VERSION, digest, sha256_of
from fogzo.interchange.coded import CodedTensor, needed, packed_size, unpack
from fogzo.quantizers import Quantizer
from fogzo.quantizers.grid import MAX_BITS
from fogzo.quantizers.inputs import NAME, InputQuantizer, input_quantizer, put_in_front
from fogzo.quantizers.layers import is_layer
from fogzo.quantizers.quest import MAX_BLOCK

LONGEST_HEADER = 2**24  # bytes; that of a network with ten thousand tensors is a fifth of it
ENTRY = {"name": str, "quantizer": str, "bits": int, "lowest": float, "spacing": float, "shape": list}
ENTRY |= {"rotation": int, "sha256": str}
DOCUMENT = {"version": int, "codes": list, "activations": list, "sha256": str, "run": dict}


def load(path: str | Path, model: nn.Module) -> nn.Module:
    """Put the weights of a file that :func:`fogzo.export` wrote into ``model``, in place.

    Args:
        path: of the file, from anywhere: it cannot run code, and is refused if it does not fit ``model`` exactly.
        model: the plain network of the same architecture, as before ``fogzo.quantize_model``.

    Returns:
        ``model`` itself: a plain network with quantized weights, and with its activation quantizers if it had any.

    Raises:
        UserError: if the file is missing, damaged, of another version, or another network's; ``model`` is then as it
            was.
    """
    path = Path(path)
    if any(isinstance(module, Quantizer | InputQuantizer) for module in model.modules()):
        raise UserError(f"{path} is for a plain network: give load one that quantize_model has not seen")
    try:
        state, inputs = _read(path, model)
    except _Unfit as error:
        raise UserError(f"{path} cannot be loaded: {error}") from None
    for name, quantizer in inputs.items():
        put_in_front(model.get_submodule(name), quantizer)
    model.load_state_dict(state)
    return model


class _Unfit(Exception):
    """Why a file is refused; it becomes the end of a sentence."""


def _read(path: Path, model: nn.Module) -> tuple[dict[str, Tensor], dict[str, InputQuantizer]]:
    """Return the whole state dict, and the activation quantizers by layer, all of it checked against ``model``."""
    safetensors = needed("safetensors")
    _check_header(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            document = _document((file.metadata() or {}).get(KEY))
            inputs = dict(_input_quantizers(document["activations"], model))
            wanted = model.state_dict()
            for layer, quantizer in inputs.items():
                wanted |= {f"{layer}.{NAME}.{key}".lstrip("."): value for key, value in quantizer.state_dict().items()}
            entries = {entry["name"]: entry for entry in document["codes"]}
            if len(entries) < len(document["codes"]):
                raise _Unfit("a quantized tensor is listed twice")
            if within := next((name for name in entries if f"{NAME}." in name), None):
                raise _Unfit(f"{within} belongs to quantized inputs, which have no codes")
            coded = {key for name in entries for key in (name + CODES, name + SCALE)}
            plain = wanted.keys() - entries.keys()
            _check_names(set(file.keys()), coded | plain)
            tensors = {name: _tensor(file, name, wanted[name].dtype, tuple(wanted[name].shape)) for name in plain}
            if digest(tensors) != document["sha256"]:
                raise _Unfit("its tensors have another SHA-256 than it says: get a fresh copy")
            _check_inputs(tensors, wanted)
            _check_steps({name: tensors[name] for name in plain if f"{NAME}.quantizer." in name})
            for name, entry in entries.items():
                tensors[name] = _weights(file, entry, wanted.get(name))
            return tensors, inputs
    except safetensors.SafetensorError as error:
        raise _Unfit(f"it is damaged, or no safetensors file ({one_line(error, 80)})") from None
    except OSError as error:
        raise _Unfit(f"it cannot be read ({one_line(error)})") from None


def _check_inputs(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Refuse quantized inputs of another kind than the metadata say, or without a step."""
    for name in tensors:
        if name.endswith(f"{NAME}.quantizer._extra_state") and not torch.equal(tensors[name], wanted[name]):
            raise _Unfit(f"{name} is of another quantizer than its metadata say")
        if name.endswith(f"{NAME}._extra_state") and not tensors[name].all():
            raise _Unfit(f"{name.removesuffix('._extra_state')} was written before its step was fitted to inputs")


def _check_header(path: Path) -> None:
    """Refuse a header that would take the memory of a network to parse."""
    if not path.is_file():
        raise _Unfit("it is not there, or no file")
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
    except OSError as error:
        raise _Unfit(f"it cannot be read ({one_line(error)})") from None
    if length > LONGEST_HEADER:
        raise _Unfit(f"its header claims {length:,} bytes, more than {LONGEST_HEADER:,}: it is no file of fogzo.export")


def _document(text: str | None) -> dict[str, Any]:
    if text is None:
        raise _Unfit("it was not written by fogzo.export (it has no metadata of ours)")
    try:
        document: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _Unfit(f"its metadata are no JSON ({one_line(error, 80)})") from None
    version = document.get("version") if isinstance(document, dict) else None
    if version != VERSION or isinstance(version, bool):
        raise _Unfit(f"it has version {_short(version)} of the format, and this program reads version {VERSION}")
    _check_fields(document, DOCUMENT, "the metadata")
    for entry in document["codes"]:
        _check_fields(entry, ENTRY, "a quantized tensor")
    checked: dict[str, Any] = document
    return checked


def _check_fields(fields: Any, kinds: Mapping[str, type], whose: str) -> None:
    if not isinstance(fields, dict) or fields.keys() != kinds.keys():
        raise _Unfit(f"{whose} must have the fields {', '.join(kinds)}")
    for key, kind in kinds.items():
        value = fields[key]
        if type(value) is not kind or (isinstance(value, float) and not math.isfinite(value)):
            raise _Unfit(f"{key} of {whose} is {_short(value)}, and must be a {kind.__name__}")


def _input_quantizers(listed: list[Any], model: nn.Module) -> Iterator[tuple[str, InputQuantizer]]:
    layers = {name: layer for name, layer in model.named_modules() if is_layer(layer)}
    for entry in listed:
        kind = entry.get("quantizer") if isinstance(entry, dict) else None
        signed = {"signed": bool} if kind == "LSQ" else {}
        _check_fields(entry, {"layer": str, "quantizer": str, "bits": int, **signed}, "a layer's inputs")
        if kind not in INPUTS:
            raise _Unfit(f"the inputs of a layer are quantized by {_short(kind)}: {' and '.join(INPUTS)} are known")
        layer = layers.pop(entry["layer"], None)
        if layer is None:
            raise _Unfit(f"it quantizes the inputs of {_short(entry['layer'])}, which is no such layer, or twice")
        try:
            prototype = INPUTS[kind](entry["bits"], **{option: entry[option] for option in signed})
        except ValueError as error:
            raise _Unfit(str(error)) from None
        yield entry["layer"], input_quantizer(layer, prototype)


def _check_names(have: set[str], wanted: set[str]) -> None:
    for names, what in ((wanted - have, "lacks"), (have - wanted, "holds, beyond the model's,")):
        if names:
            raise _Unfit(f"it {what} {_short(min(names))} and {len(names) - 1} more: is it another network's?")


def _check_steps(tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()) or (name.endswith(".floor") and not bool((tensor > 0).all())):
            raise _Unfit(f"{name} is {_short(tensor.tolist())}, from which no step of activations follows")


def _tensor(file: Any, name: str, dtype: torch.dtype, shape: tuple[int, ...] | None) -> Tensor:
    """Return one tensor; its size is that of the model, or known to be small, before a byte is read."""
    stored = tuple(file.get_slice(name).get_shape())
    if shape is not None and stored != shape:
        raise _Unfit(f"{name} has the shape {_short(stored)}, and the model needs {shape}")
    tensor: Tensor = file.get_tensor(name)
    if tensor.dtype != dtype:
        raise _Unfit(f"{name} is {tensor.dtype}, and the model needs {dtype}")
    return tensor


def _weights(file: Any, entry: Mapping[str, Any], target: Tensor | None) -> Tensor:
    """Return quantized weights for ``target``, on its device, of its shape and dtype."""
    name, bits, rotation = entry["name"], entry["bits"], entry["rotation"]
    if target is None or target.dtype not in (torch.float32, torch.float64):
        raise _Unfit(f"the quantized tensor {_short(name)} is none of the model's, or not in fp32")
    shape = tuple(target.shape)
    if entry["shape"] != list(shape):
        raise _Unfit(f"{name} has the shape {_short(entry['shape'])}, and the model needs {shape}")
    if not 1 <= bits <= MAX_BITS:
        raise _Unfit(f"{name} has {_short(bits)} bits: 1 to {MAX_BITS} are possible")
    for key, least in (("lowest", -(2.0**MAX_BITS)), ("spacing", 0.5)):
        if not least <= entry[key] <= 2**MAX_BITS or 2 * entry[key] % 1:
            raise _Unfit(f"{key} of {name} is {_short(entry[key])}: multiples of 1/2 up to {2**MAX_BITS} are possible")
    width = shape[0] if len(shape) == 1 else math.prod(shape[1:])
    if not 1 <= rotation <= MAX_BLOCK or rotation & (rotation - 1) or width % rotation:
        raise _Unfit(f"{name} is rotated in blocks of {_short(rotation)}, which do not tile rows of {width}")
    packed = _tensor(file, name + CODES, torch.uint8, (packed_size(bits, shape),))
    if sha256_of(packed) != entry["sha256"]:
        raise _Unfit(f"the codes of {name} have another SHA-256 than it says: get a fresh copy")
    if (rest := bits * math.prod(shape) % 8) and int(packed[-1]) >> rest:
        raise _Unfit(f"the codes of {name} go on behind its last one")
    scale = _tensor(file, name + SCALE, target.dtype, None)
    if scale.dim() > len(shape) or any(a not in (1, b) for a, b in zip(scale.shape[::-1], shape[::-1], strict=False)):
        raise _Unfit(f"the scale of {name} has the shape {tuple(scale.shape)}, which does not fit {shape}")
    if not bool(((scale > 0) & scale.isfinite()).all()):
        raise _Unfit(f"the scale of {name} must be positive and finite")
    index, scale = (tensor.to(target.device) for tensor in (unpack(packed, bits, shape), scale))
    return CodedTensor(name, "", bits, entry["lowest"], entry["spacing"], index, scale, rotation).weights()


def _short(value: object) -> str:
    """Return ``value`` for a sentence: on one line, and cut."""
    return " ".join(value[:80].split()) if isinstance(value, str) else reprlib.repr(value)
