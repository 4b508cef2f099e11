"""What is known of a data set before it is read, and whether a model takes what it holds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from omegaconf import DictConfig
from torch import nn

from fogzo.checks import whole
from fogzo.data import known
from fogzo.data.base import check_part
from fogzo.errors import UserError
from fogzo.estimators.replay import frozen_statistics
from fogzo.quantizers.inputs import unrounded
from fogzo.training.config import instantiate


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
    name, there = cfg.data.name, known(cfg.data)
    if there.image is not None:
        channels, height, width = there.image
        if "image_size" in cfg.data:
            height = width = whole(cfg.data.image_size, "data.image_size", lowest=8)
        return DataShape(name, image=(channels, height, width), classes=there.classes)
    if name == "synthetic" and not cfg.data.sequence:
        return DataShape(name, image=tuple(cfg.data.image), classes=cfg.data.classes)
    if "sequence" not in cfg.data:
        return None
    vocabulary = cfg.data.get("vocabulary", there.vocabulary)
    if vocabulary is not None:
        whole(vocabulary, "data.vocabulary")
    return DataShape(name, vocabulary=vocabulary, sequence=whole(cfg.data.sequence, "data.sequence"))


def known_examples(cfg: DictConfig) -> int | None:
    """Return the images or windows of the training set; ``None`` where only reading it tells, as of embedded text."""
    examples, part = _whole_set(cfg), cfg.get("training_examples")
    if examples is not None and part is not None:
        check_part(part, examples)
    return examples if part is None else int(part)


def _whole_set(cfg: DictConfig) -> int | None:
    if cfg.data.name == "synthetic":
        return int(whole(cfg.data.examples, "data.examples"))
    there = known(cfg.data)
    return (there.tokens - 1) // int(cfg.data.sequence) if there.tokens else there.examples


def follow_data(cfg: DictConfig) -> None:
    """Fill in what of ``cfg`` is null because the data tell it: ``model.classes``, ``channels`` and ``image_size``.

    Raises:
        UserError: where they do not tell.
    """
    empty = [key for key in ("image_size", "channels", "classes") if cfg.model.get(key, 0) is None]
    if not empty:
        return
    shape = known_shape(cfg)
    if shape is None or shape.image is None:
        if "augmentation" in cfg.data:
            instantiate(cfg.data, "data")  # which says what is not as it must be
        raise UserError(
            f"model.{empty[0]}=null follows the data, and data={cfg.data.name} holds no images: choose other data, or "
            f"another model than {cfg.model.name}"
        )
    values = {"image_size": shape.image[-1], "channels": shape.image[0], "classes": shape.classes}
    for key in empty:
        cfg.model[key] = values[key]


def check_shape(model: nn.Module, data: DataShape) -> None:
    """Refuse a model that cannot take such data, before anything is computed with them.

    Raises:
        UserError: naming the model's limit and the data's value.
    """
    config = getattr(model, "config", None) if hasattr(model, "get_output_embeddings") else None  # of transformers
    if (data.image is None) != (config is not None):
        kind, wanted = ("text", "a llama") if data.image is None else ("images", "a resnet, deit or mlp")
        raise UserError(f"data={data.name} holds {kind}, which this model does not take: choose {wanted} for model=")
    if config is None:
        _check_image(model, data)
        return
    for name, limit, value in (
        ("vocabulary", config.vocab_size, data.vocabulary),
        ("sequence", getattr(config, "max_position_embeddings", None), data.sequence),
    ):
        if value is not None and limit is not None and value > limit:
            prepared = name == "vocabulary" and data.name != "pydocs"  # fixed when the text was tokenized
            other = "prepare the text with a smaller tokenizer" if prepared else f"data.{name}={limit}"
            raise UserError(
                f"data={data.name} has a {name} of {value}, more than the model's {limit}: set model.{name}={value} "
                f"(of a llama), or {other}"
            )


def _check_image(model: nn.Module, data: DataShape) -> None:
    assert data.image is not None
    image = torch.zeros(1, *data.image, device=next(model.parameters()).device)
    training = model.training
    try:
        with torch.no_grad(), unrounded(model), frozen_statistics(model.eval()):
            outputs = model(image).shape[-1]
    except (RuntimeError, AssertionError) as error:
        of_images = any(weight.dim() == 4 for weight in model.parameters())  # not of an MLP, which flattens them
        keys = "model.channels and model.image_size" if of_images else f"model.inputs={image.numel()}"
        raise UserError(
            f"data={data.name} has images of shape {data.image}, which the model does not take "
            f"({str(error).splitlines()[0][:120]}): set {keys}"
        ) from error
    finally:
        model.train(training)
    if data.classes is not None and outputs != data.classes:
        raise UserError(f"data={data.name} has {data.classes} classes, but the model has {outputs}: set model.classes")
