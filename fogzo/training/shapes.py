"""Whether a model takes what a data set holds: channels, pixels, classes, vocabulary, windows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

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


def check_shape(model: nn.Module, data: DataShape) -> None:
    """Refuse a model that cannot take such data, before anything is computed with them.

    Raises:
        ValueError: naming the model's limit and the data's value.
    """
    config = getattr(model, "config", None)  # transformers' models have one
    if (data.image is None) != (config is not None):
        kind, wanted = ("text", "a llama") if data.image is None else ("images", "a resnet, deit or mlp")
        raise ValueError(f"data={data.name} holds {kind}, which this model does not take: choose {wanted} for model=")
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
            raise ValueError(
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
        raise ValueError(
            f"data={data.name} has images of shape {data.image}, which the model does not take "
            f"({str(error).splitlines()[0][:120]}): set model.channels and model.image_size"
        ) from error
    finally:
        model.train(training)
    if data.classes is not None and outputs != data.classes:
        raise ValueError(f"data={data.name} has {data.classes} classes, but the model has {outputs}: set model.classes")
