"""Compile the network afresh for each run, and say what became of it: torch falls back to eager in silence."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fogzo.errors import UserError, one_line


def compiled(network: nn.Module) -> Callable[..., Any]:
    """Return ``network`` through ``torch.compile``, with nothing left of the runs that this process had before.

    torch counts how often it compiles a piece of code, in all networks of a process, and then runs it uncompiled.
    """
    from torch._dynamo.utils import counters  # a part of start-up that others are spared
    from torch._inductor.exc import InductorError

    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it misses CUDA where there is none
    torch.compiler.reset()
    counters.clear()
    inner = torch.compile(network)

    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return inner(*args, **kwargs)
        except InductorError as error:
            raise UserError(
                f"compile=true: torch cannot compile this network here ({one_line(error)}): choose compile=false, or "
                "(on the CPU) install a C++ compiler such as g++"
            ) from error

    return run


def outcome() -> dict[str, Any]:
    """Return what a summary says of the last network that was compiled in this process.

    ``compiled``: whether all of it was; ``eager_because``, if not: torch's reasons, each in a line.
    """
    from torch._dynamo.utils import counters

    reasons = [*counters["graph_break"], *counters["unimplemented"]]
    graphs = counters["stats"]["unique_graphs"]
    if graphs and not reasons:
        return {"compiled": True}
    return {"compiled": False, "eager_because": sorted({reason.splitlines()[0] for reason in reasons})}
