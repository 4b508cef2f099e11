"""Anybody's network: any of timm by its name, and language models of transformers from a folder."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fogzo.checks import check_sizes
from fogzo.errors import UserError, explained, one_line


def timm_model(
    *, arch: str, channels: int, classes: int, image_size: int, options: Mapping[str, Any] | None = None
) -> nn.Module:
    """Return timm's network ``arch``, with new weights: (B, channels, H, W) → (B, classes).

    Args:
        arch: as ``timm.list_models()`` names it.
        image_size: height and width, in pixels; for networks that are built for one size, such as vision transformers.
        options: further arguments of ``timm.create_model``, such as ``{"drop_path_rate": 0.1}``.

    Raises:
        UserError: for a name that timm does not know, or values that the network cannot take.
    """
    import timm

    check_sizes(channels=channels, classes=classes, image_size=image_size)
    if not timm.is_model(arch):
        near = difflib.get_close_matches(arch, timm.list_models(), 1)
        meant = f"did you mean {near[0]}?" if near else f'timm.list_models("*{arch[:6]}*") lists those like it'
        raise UserError(f"model.arch={arch} is no network of timm {timm.__version__}: {meant}")
    known = timm.get_pretrained_cfg(arch)
    size = {"img_size": image_size} if known is not None and known.fixed_input_size else {}
    try:
        model: nn.Module = timm.create_model(arch, in_chans=channels, num_classes=classes, **size | dict(options or {}))
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        given = f"model.channels={channels} model.image_size={image_size} model.options={dict(options or {})}"
        raise UserError(f"model.arch={arch} cannot be built with {given} ({one_line(error)}): change these") from error
    return model


def hf_causal_lm(*, path: str | None) -> nn.Module:
    """Return a language model of transformers: token ids (B, T) → ``.logits`` (B, T, vocabulary).

    Args:
        path: a folder with ``config.json``, as ``save_pretrained`` leaves it; weights beside it are taken, in fp32, and
            without them new ones are drawn.  Nothing is fetched, and no code in it is run.

    Raises:
        UserError: if the folder or its config is missing, or no language model, or its weights are not whole.
    """
    way_out = "name a folder with config.json, as transformers' save_pretrained leaves it"
    if path is None or not (folder := Path(path)).joinpath("config.json").is_file():
        raise UserError(f"model.path={path} holds no config.json: {way_out}")
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    auto: Any = AutoModelForCausalLM
    quiet: Any = logging.disable_progress_bar  # without annotations, as the other
    quiet()
    with explained(f"model.path={path}", way_out, problem="is no language model", also=(RuntimeError, KeyError)):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if not any(weight_files(folder)):
            made: nn.Module = auto.from_config(config, dtype=torch.float32, trust_remote_code=False)
            return made
        options = {"local_files_only": True, "trust_remote_code": False, "dtype": torch.float32}
        model, found = auto.from_pretrained(folder, config=config, output_loading_info=True, **options)
    if found["missing_keys"]:
        lacking = sorted(found["missing_keys"])
        raise UserError(
            f"model.path={path} has no weights for {lacking[0]} and {len(lacking) - 1} more: put its config.json alone "
            "into a folder, and give the weights as init_from="
        )
    whole: nn.Module = model.train()
    return whole


def weight_files(folder: Path) -> Iterator[Path]:
    """Yield the files of weights in a folder of transformers, in the order of their names."""
    yield from sorted(file for file in folder.iterdir() if file.suffix in (".safetensors", ".bin"))


def outer_layers(model: nn.Module) -> list[str]:
    """Return the layers that recipes leave in full precision, as the library names them: the first and the classifier.

    Of timm's networks the first convolution and the classifiers, of transformers' the head; none of others.
    """
    known: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    ends = [known.get("first_conv") or (), known.get("classifier") or ()]
    names = {name for end in ends for name in ([end] if isinstance(end, str) else end)}
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    modules = model.named_modules()
    return [name for name, module in modules if name in names or (head is not None and module is head)]
