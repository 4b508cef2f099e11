"""Compile the network afresh for each run, and say what became of it: torch falls back to eager in silence."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fogzo.data import Batch
from fogzo.errors import UserError, one_line
from fogzo.quantize import QuantizedWeight

# reduce-overhead is torch's mode that records passes as CUDA graphs, and replays them while shapes stand still
How = bool | Literal["reduce-overhead"]
Loss = Callable[[Callable[..., Any], Batch], Tensor]


def check_compile(how: How, device: torch.device) -> None:
    """Refuse CUDA graphs where there is no CUDA, with the way out."""
    if how == "reduce-overhead" and device.type != "cuda":
        raise UserError(
            f"compile={how} replays CUDA graphs, which device={device.type} does not have: choose compile=true"
        )


class Compiled:
    """A network through ``torch.compile``, with nothing left of the runs that this process had before.

    torch counts how often it compiles a piece of code, in all networks of a process, and then runs it uncompiled.

    Args:
        network: what is compiled; calling this object calls it.
        loss: of the network and a batch, for :meth:`losses`.
        how: ``compile`` of the config.
    """

    def __init__(self, network: nn.Module, loss: Loss | None = None, how: How = True) -> None:
        from torch._dynamo.utils import counters  # a part of start-up that others are spared

        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it misses CUDA where there is none
        torch.compiler.reset()
        counters.clear()
        self.network, self.loss, self.how = network, loss, how
        self.forward, self.stacked = self.through(network), self.through(self._stacked)

    def through(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``function`` through ``torch.compile``, as the network."""
        inner: Callable[..., Any] = torch.compile(function, mode=None if self.how is True else str(self.how))
        return inner

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._run(self.forward, *args, **kwargs)

    def losses(self, weights: Sequence[QuantizedWeight], stacks: Sequence[Tensor], batch: Batch) -> Tensor:
        """Return the loss of ``batch`` at each of the stacked weights: stacks of shape (K, *weight.shape) give (K,).

        What ``torch.func.vmap`` makes of the network is compiled as one; batch norms are to leave their statistics
        alone meanwhile.
        """
        names = (weight.parameter_name for weight in weights)
        losses: Tensor = self._run(self.stacked, dict(zip(names, stacks, strict=True)), batch)
        return losses

    def begin_step(self) -> None:
        """Say that what CUDA graphs have returned is used up; within a step gradients outlive its other passes."""
        if self.how == "reduce-overhead":
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]

    def _stacked(self, stacks: dict[str, Tensor], batch: Batch) -> Tensor:
        assert self.loss is not None
        network, loss = self.network, self.loss

        def at(parameters: dict[str, Tensor]) -> Tensor:
            return loss(lambda *args, **kwargs: torch.func.functional_call(network, parameters, args, kwargs), batch)

        losses: Tensor = torch.func.vmap(at, randomness="same")(stacks)
        return losses

    def _run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        from torch._inductor.exc import InductorError

        try:
            return function(*args, **kwargs)
        except InductorError as error:
            raise UserError(
                f"compile=true: torch cannot compile this network here ({one_line(error)}): choose compile=false, or "
                "(on the CPU) install a C++ compiler such as g++"
            ) from error


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


class CompilerOnDemand(ModuleType):
    """Stands for ``torch._dynamo`` until more of it is asked for than what optimizers ask, who import it in any case.

    Outside of compiled code ``graph_break`` does nothing, and ``disable`` changes nothing.
    """

    @staticmethod
    def graph_break(*args: Any, **kwargs: Any) -> None: ...

    @staticmethod
    def disable(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[..., Any]:
        return function

    def __getattr__(self, name: str) -> Any:
        if name == "__file__":  # ``inspect`` asks all modules, also while torch.distributed is half imported
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


class LoadedMeanwhile(MetaPathFinder, Loader):
    """Finds the parts of ``torch._dynamo`` that are there by the time they are looked for.

    Asked for a part, Python asks what stands for the whole where parts lie, which loads them all, and would then load
    this one again: a second ``torch._dynamo.utils``, whose counters stay at zero.
    """

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        there = target is None and fullname.startswith("torch._dynamo.") and fullname in sys.modules
        return spec_from_loader(fullname, self) if there else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        spec.loader_state = sys.modules[spec.name].__spec__
        return sys.modules[spec.name]

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None and module.__spec__.loader is self:
            vars(module)["__spec__"] = module.__spec__.loader_state  # its own, past what a module of settings refuses


def spare_compiler() -> None:
    """Load torch's compiler, which is half of the time that a small run takes to start, when somebody needs it."""
    if "torch._dynamo" not in sys.modules:
        sys.modules["torch._dynamo"] = CompilerOnDemand("torch._dynamo")
        sys.meta_path.insert(0, LoadedMeanwhile())
