"""Figures of the mini recipes, and of the members of the family, and what goes beside them, on the smallest."""

from __future__ import annotations

import statistics
from functools import partial

import torch
import torch._dynamo.utils
from bench_tools import alternate, extra_memory, of_recipe, step_times, waiting
from torch.utils.flop_counter import FlopCounterMode

from fogzo.training.trainer import Trainer

MINI_RECIPES = ("deit_mini", "deit_small", "deit_tiny", "llama_mini", "mlp", "resnet18", "resnet50", "resnet_mini")
ALONE = ("displaced_ste", "ewgs", "one_sided", "control_variate", "intermittent", "exact", "guide_or_noise")
MEMBERS = {  # by their overrides; the last two go beside the STE and take no pass
    **{name: [f"estimator={name}"] for name in ALONE},
    "split": ["estimator=split", "micro_batches=4"],
    "STE with transition_rate": ["estimator=ste", "schedule=transition_rate"],
    "STE with pull": ["estimator=ste", "pull.strength=10", "pull.start=0"],
}
STEPS = 20  # of each: intermittent probes in every 10th
LARGE = 2e7  # parameters; above, where a step takes up to a minute, one is timed, and none before it


def models(rounds: int) -> None:
    """Figures of the mini recipes: memory, compiled and W2A2 steps, and what data loading takes."""
    members(rounds)
    for name in MINI_RECIPES:
        loading_share(name, rounds)
    for name in ("deit_tiny", "resnet18", "llama_mini"):
        ste, own = (of_recipe(f"model={name}", f"estimator={estimator}") for estimator in ("ste", "fogzo"))
        print(f"peak tensor memory, {name}, mini recipe: {extra_memory(ste, own)}")
    for estimator in ("ste", "fogzo"):
        eager, compiled = (
            of_recipe("model=llama_mini", f"estimator={estimator}", f"compile={on}") for on in (False, True)
        )
        for step in range(3):
            compiled.train_step(step)
        compilations = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        ratio, (before, after) = step_times(eager, compiled, rounds)
        again = torch._dynamo.utils.counters["stats"]["unique_graphs"] - compilations
        print(
            f"compiled / eager step, llama_mini, {estimator}: {ratio:.2f}x ({after:.0f} / {before:.0f} ms), "
            f"{again} recompilations after step 3   limit 1.00x, 0"
        )
    plain, quest = (
        of_recipe("model=llama_mini", "estimator=ste", f"quantizer={quantizer}", f"activations={quantizer}")
        for quantizer in ("none", "quest")
    )
    ratio, (before, after) = step_times(plain, quest, rounds)
    print(f"W2A2 QuEST / full-precision step, llama_mini: {ratio:.2f}x ({after:.0f} / {before:.0f} ms)   limit 2.0x")


def members(rounds: int) -> None:
    """What 20 steps of each member take in FLOPs, beside the passes that it claims, and in time, beside the STE."""
    ste = of_recipe("model=mlp", "estimator=ste")
    passes = ste.ledger.forward_flops + ste.ledger.backward_flops
    for name, overrides in MEMBERS.items():
        own = of_recipe("model=mlp", *overrides)
        with FlopCounterMode(display=False) as counter:
            steps(own)
        claimed = forwards_and_backwards(own) / (STEPS * passes)
        flops = counter.get_total_flops() / (STEPS * own.settings.batch_size * passes)
        times = alternate([partial(steps, ste), partial(steps, own)], rounds)
        ratio = statistics.median(b / a for a, b in zip(*times, strict=True))
        print(
            f"{name} / STE step, MLP: {flops:.3f}x of its FLOPs, {ratio:.2f}x of its time   "
            f"limit {1.02 * claimed:.3f}x (2 % above the {claimed:.3f}x of the passes that it claims)"
        )


def steps(one: Trainer) -> None:
    """Train for STEPS steps."""
    for step in range(STEPS):
        one.train_step(step)


def forwards_and_backwards(one: Trainer) -> float:
    """Return the FLOPs per example of the passes that the estimator claims for STEPS steps."""
    forwards, backwards = one.estimator.passes(STEPS)
    return forwards * one.ledger.forward_flops + backwards * one.ledger.backward_flops


def loading_share(name: str, rounds: int) -> None:
    """What a step of ``estimator=ste``, the shortest there is, waits for its batch."""
    one = of_recipe(f"model={name}", "estimator=ste")
    large = sum(parameter.numel() for parameter in one.model.parameters()) > LARGE
    waits, wholes = waiting(one, 1, first=0) if large else waiting(one, rounds)
    share = statistics.median(wait / whole for wait, whole in zip(waits, wholes, strict=True))
    wait, whole = (statistics.median(times) * 1e3 for times in (waits, wholes))
    print(
        f"data loading, {name}, mini recipe: {100 * share:.2f} % of an STE step ({wait:.2f} / {whole:.1f} ms, "
        f"{len(wholes)} steps)   limit 5 %"
    )
