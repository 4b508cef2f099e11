"""compressed-tensors' "pack-quantized" for transformers' language models: the folder that from_pretrained opens."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fogzo.errors import UserError
from fogzo.interchange.canonical import Exported, Size, activations, others
from fogzo.interchange.coded import WAY_OUT, CodedTensor, coded_tensors, needed

FORMAT = "compressed-tensors"


def export_compressed(
    model: nn.Module, folder: str | Path, *, tokenizer: str | Path | None = None, end_of_text: str | None = None
) -> Exported:
    """Write a quantized language model as a folder for ``AutoModelForCausalLM.from_pretrained``.

    The reader computes whole number times scale in fp32, so its logits have the bits of the fake-quantized network.

    Args:
        model: of transformers, quantized by ``fogzo.quantize_model``; it is left as it is.
        folder: is made if it is missing; files of the same names are replaced.
        tokenizer: a ``tokenizer.json`` to put beside it, and the token that ends a text.

    Returns:
        The sizes before and after, printable.

    Raises:
        UserError: for what the format cannot hold exactly: quantized activations and biases, QuEST's rotation, scales
            in fp64; and for a model that is not of transformers.
    """
    if not hasattr(model, "config") or not hasattr(model, "save_pretrained"):
        raise UserError(f"{type(model).__name__} is no model of transformers, which {FORMAT} is for: take ONNX")
    if found := activations(model):
        raise UserError(f"the inputs of {found[0]['layer']}: {FORMAT} cannot hold quantized activations: {WAY_OUT}")
    coded = [tensor.integers(FORMAT) for tensor in coded_tensors(model)]
    folder, state, sizes = Path(folder), others(model), []
    before = sum(tensor.nbytes for tensor in state.values())
    for tensor in coded:
        parts = _parts(model, tensor)
        state |= parts
        whole = 4 * tensor.index.numel()
        sizes.append(Size(tensor.name, tensor.bits, whole, sum(part.nbytes for part in parts.values())))
    config: Any = copy.deepcopy(model.config)
    config.architectures, config.dtype = [type(model).__name__], torch.float32
    config.quantization_config = _scheme(model, coded)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as made:  # a full disk leaves what was there
        written = Path(made)
        if tokenizer is not None:
            config.eos_token_id = _save_tokenizer(written, Path(tokenizer), end_of_text)
        needed("safetensors.torch").save_file(state, written / "model.safetensors", {"format": "pt"})
        if (generation := getattr(model, "generation_config", None)) is not None and tokenizer is None:
            generation.save_pretrained(written)
        config.save_pretrained(written)
        for file in written.iterdir():
            file.replace(folder / file.name)
    after = (folder / "model.safetensors").stat().st_size
    return Exported(folder, before + sum(size.before for size in sizes), after, tuple(sizes))


def _parts(model: nn.Module, tensor: CodedTensor) -> dict[str, Tensor]:
    """Return what the format keeps in the place of one weight; the packing is the library's own."""
    layer, _, kind = tensor.name.rpartition(".")
    if kind != "weight" or not isinstance(model.get_submodule(layer), nn.Linear):
        raise UserError(f"{tensor.name}: {FORMAT} holds weights of linear layers alone: {WAY_OUT}")
    pack = needed("compressed_tensors.compressors.pack_quantized").pack_to_int32
    scale = tensor.scale.detach().cpu().reshape(1 if tensor.scale.numel() == 1 else (-1, 1))
    return {
        f"{layer}.weight_packed": pack(tensor.codes().to(torch.int8).cpu(), tensor.bits),
        f"{layer}.weight_scale": scale.clone(),
        f"{layer}.weight_shape": torch.tensor(tensor.index.shape),
    }


def _scheme(model: nn.Module, coded: list[CodedTensor]) -> dict[str, Any]:
    """Return the ``quantization_config`` of ``config.json``: a group of layers for each width and granularity."""
    groups: dict[tuple[int, str], list[str]] = {}
    for tensor in coded:
        strategy = "tensor" if tensor.scale.numel() == 1 else "channel"
        groups.setdefault((tensor.bits, strategy), []).append(tensor.name.removesuffix(".weight"))
    quantized = {layer for layers in groups.values() for layer in layers}
    plain = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and name not in quantized]
    return {
        "quant_method": FORMAT,
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "ignore": plain,
        "config_groups": {
            f"group_{number}": {
                "targets": ["Linear"] if len(groups) == 1 else layers,
                "weights": {"num_bits": bits, "type": "int", "symmetric": True, "strategy": strategy},
            }
            for number, ((bits, strategy), layers) in enumerate(groups.items())
        },
    }


def _save_tokenizer(folder: Path, file: Path, end_of_text: str | None) -> int | None:
    from transformers import PreTrainedTokenizerFast

    make: Any = PreTrainedTokenizerFast  # without annotations
    tokenizer = make(tokenizer_file=str(file), eos_token=end_of_text)
    tokenizer.save_pretrained(folder)
    number: int | None = tokenizer.eos_token_id
    return number
