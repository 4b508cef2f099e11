"""What is known of a data set before it is read, and whether a model takes what it holds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from omegaconf import DictConfig
from torch import nn

from fogzo.checks import whole
from fogzo.data import FACTS
from fogzo.data.text import prepared_tokens
from fogzo.errors import UserError
from fogzo.estimators.replay import frozen_statistics
from fogzo.quantizers.inputs import unrounded


@dataclass(frozen=True)
class DataShape:
    """What a model has to know of a data set, read off the data or, without them, off a config."""

    name: str
    image: tuple[int, ...] | None = None  # (channels, height, width); None: the data are text
    classes: int | None = None  # of images; None: unknown
    vocabulary: int | None = None  # of text; None: unknown until the text is read
    sequence: int | None = None  # tokens of a window


def known_shape(cfg: DictConfig) -> DataShape | None:
    """Return the shape of the data that ``cfg`` names as far as the config tells; ``None`` for a set that is not ours.

    Raises:
        ArgumentError: for a size that is not possible.
    """
    name = cfg.data.name
    if name in FACTS:
        channels, height, width = FACTS[name].image
        if "image_size" in cfg.data:
            height = width = whole(cfg.data.image_size, "data.image_size", lowest=8)
        return DataShape(name, image=(channels, height, width), classes=FACTS[name].classes)
    if name == "synthetic" and not cfg.data.sequence:
        return DataShape(name, image=tuple(cfg.data.image), classes=cfg.data.classes)
    if "sequence" not in cfg.data:
        return None
    vocabulary = cfg.data.get("vocabulary")
    if vocabulary is not None:
        whole(vocabulary, "data.vocabulary")
    return DataShape(name, vocabulary=vocabulary, sequence=whole(cfg.data.sequence, "data.sequence"))


def known_examples(cfg: DictConfig) -> int | None:
    """Return the images or windows of the training set; ``None`` where only reading it tells, as of embedded text."""
    if cfg.get("training_examples") is not None:
        return int(cfg.training_examples)
    if cfg.data.name == "synthetic":
        return int(whole(cfg.data.examples, "data.examples"))
    if "sequence" not in cfg.data:
        return FACTS[cfg.data.name].train if cfg.data.name in FACTS else None
    tokens = prepared_tokens(cfg.data.name, cfg.data.get("root", "data"))
    return (tokens - 1) // int(cfg.data.sequence) if tokens else None


def check_shape(model: nn.Module, data: DataShape) -> None:
    """Refuse a model that cannot take such data, before anything is computed with them.

    Raises:
        UserError: naming the model's limit and the data's value.
    """
    config = getattr(model, "config", None)  # transformers' models have one
    if (data.image is None) != (config is not None):
        kind, wanted = ("text", "a llama") if data.image is None else ("images", "a resnet, deit or mlp")
        raise UserError(f"data={data.name} holds {kind}, which this model does not take: choose {wanted} for model=")
    if config is None:
        _check_image(model, data)
        return
    for name, limit, value in (
        ("vocabulary", config.vocab_size, data.vocabulary),
        ("sequence", config.max_position_embeddings, data.sequence),
    ):
        if value is not None and value > limit:
            prepared = name == "vocabulary" and data.name != "pydocs"  # fixed when the text was tokenized
            other = "prepare the text with a smaller tokenizer" if prepared else f"data.{name}={limit}"
            raise UserError(
                f"data={data.name} has a {name} of {value}, more than the model's {limit}: set model.{name}={value}, "
                f"or {other}"
            )


def _check_image(model: nn.Module, data: DataShape) -> None:
    assert data.image is not None
    image = torch.zeros(1, *data.image, device=next(model.parameters()).device)
    training = model.training
    try:
        with torch.no_grad(), unrounded(model), frozen_statistics(model.eval()):
            outputs = model(image).shape[-1]
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"data={data.name} has images of shape {data.image}, which the model does not take "
            f"({str(error).splitlines()[0][:120]}): set model.channels and model.image_size"
        ) from error
    finally:
        model.train(training)
    if data.classes is not None and outputs != data.classes:
        raise UserError(f"data={data.name} has {data.classes} classes, but the model has {outputs}: set model.classes")
