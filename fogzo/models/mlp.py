"""The paper's multi-layer perceptron (paper.md, section 4: 784-10-10, 7,960 parameters with biases)."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from fogzo.checks import check_sizes


def mlp(inputs: int = 784, hidden: int = 10, classes: int = 10) -> nn.Sequential:
    """Return two linear layers with a ReLU between: (B, 1, 28, 28) or (B, 784) → (B, classes).

    Raises:
        ValueError: for a size that is no positive whole number.
    """
    check_sizes(inputs=inputs, hidden=hidden, classes=classes)
    return nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            hidden=nn.Linear(inputs, hidden),
            activation=nn.ReLU(),
            head=nn.Linear(hidden, classes),
        )
    )
