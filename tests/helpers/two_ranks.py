"""Small trainings for one process or two: as a script, in each rank, ``FOLDER CASE|NORM ...`` saves what each left."""

import sys
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

import fogzo
from fogzo.data import ImageData, TensorSplit
from fogzo.estimators import (
    EWGS,
    ControlVariate,
    DisplacedStraightThrough,
    ExactDirectional,
    GuideOrNoise,
    IntermittentFOGZO,
    NoisyStraightThrough,
    OneSidedFOGZO,
    Phased,
    RescaledStraightThrough,
    SplitFOGZO,
)
from fogzo.ranks import RanksDiffer, barrier, sum_over_ranks, world
from fogzo.training.config import Settings
from fogzo.training.distributed import process_group, synchronise_norms
from fogzo.training.ledger import ComputeLedger
from fogzo.training.schedules import GridPull, LearningRate, TransitionRate
from fogzo.training.tasks import Classification
from fogzo.training.trainer import Trainer


@dataclass(frozen=True)
class Case:
    """What is trained, what ranks share (``parallel``), and in what rank 1 is made to differ from rank 0."""

    estimator: str
    quantizer: str = "fixed"
    norm: bool = False
    micro_batches: int = 1
    parallel: str = "data"
    rank_1_differs_in: str = ""
    ranks_are_slices: bool = False  # one process with twice the micro-batches computes what two ranks do
    beside: str = ""  # the gradient: a rate that is steered by flips, or a pull toward the grid


CASES = {
    "ste": Case("ste"),
    "ste in micro-batches": Case("ste", micro_batches=2),
    "ste with batch norm": Case("ste", norm=True),
    "fogzo": Case("fogzo"),
    "fogzo with lsq in micro-batches": Case("fogzo", "lsq", micro_batches=2),
    "fogzo with lsq and batch norm": Case("fogzo", "lsq", norm=True),
    "fogzo in batched probes": Case("fogzo_batched"),
    "nspsa": Case("nspsa"),
    "nspsa with batch norm, sharing probes": Case("nspsa", norm=True, parallel="probes"),
    "fogzo sharing probes": Case("fogzo", parallel="probes"),
    "fogzo in batched probes with lsq, sharing probes": Case("fogzo_batched", "lsq", parallel="probes"),
    **{
        f"{estimator} sharing probes, other last bits": Case(estimator, "fixed", True, 2, "probes", "last bits")
        for estimator in ("rescaled", "phased", "nspsa")
    },
    "split": Case("split", ranks_are_slices=True),
    "split with lsq in micro-batches": Case("split", "lsq", micro_batches=2, ranks_are_slices=True),
    **{
        f"{estimator} with lsq in micro-batches": Case(estimator, "lsq", micro_batches=2)
        for estimator in (
            "one_sided",
            "control_variate",
            "intermittent",
            "displaced",
            "noisy",
            "exact",
            "guide_or_noise",
            "ewgs",
        )
    },
    "one-sided control variate": Case("control_variate_one_sided", "lsq"),
    "steered rate": Case("ste", beside="steered rate"),
    "pull toward the grid": Case("fogzo", "lsq", beside="pull"),
    "other weights": Case("fogzo", rank_1_differs_in="weights"),
    "other noise": Case("fogzo", rank_1_differs_in="noise"),
    "other weights in batched probes": Case("fogzo_batched", rank_1_differs_in="weights"),
    "other noise in batched probes": Case("fogzo_batched", rank_1_differs_in="noise"),
    "other weights, sharing probes": Case("fogzo", parallel="probes", rank_1_differs_in="weights"),
    "other weights in batched probes, sharing them": Case("fogzo_batched", "fixed", False, 1, "probes", "weights"),
}

ESTIMATORS = {
    "ste": lambda weights, spread: fogzo.StraightThrough(),
    "fogzo": lambda weights, spread: fogzo.FOGZO(weights, samples=3, beta=0.99, spread=spread),
    "fogzo_batched": lambda weights, spread: fogzo.FOGZO(weights, samples=3, beta=0.99, probe_batch=2, spread=spread),
    "rescaled": lambda weights, spread: RescaledStraightThrough(weights, samples=3, beta=0.99, spread=spread),
    "phased": lambda weights, spread: Phased(
        fogzo.StraightThrough(weights), fogzo.FOGZO(weights, samples=3, beta=0.99, spread=spread), switch_step=4
    ),
    "nspsa": lambda weights, spread: fogzo.NSPSA(weights, samples=4, spread=spread),
    "split": lambda weights, spread: SplitFOGZO(weights, beta=0.99),
    "one_sided": lambda weights, spread: OneSidedFOGZO(weights, samples=2, beta=0.99),
    "control_variate": lambda weights, spread: ControlVariate(weights, samples=2, trust=0.1),
    "control_variate_one_sided": lambda weights, spread: ControlVariate(weights, trust=0.1, sides="one"),
    "intermittent": lambda weights, spread: IntermittentFOGZO(fogzo.FOGZO(weights, beta=0.99), every=2),
    "displaced": lambda weights, spread: DisplacedStraightThrough(weights),
    "noisy": lambda weights, spread: NoisyStraightThrough(weights, beta=0.99),
    "exact": lambda weights, spread: ExactDirectional(weights, beta=0.99),
    "guide_or_noise": lambda weights, spread: GuideOrNoise(weights),
    "ewgs": lambda weights, spread: EWGS(weights),
}


class Rounded(torch.autograd.Function):
    """As on another GPU: the last bits of an activation and of its gradient are other ones."""

    @staticmethod
    def forward(ctx, x):
        return x * (1 + 1e-6)

    @staticmethod
    def backward(ctx, grad):
        return grad * (1 + 1e-6)


class Network(nn.Sequential):
    def __init__(self, norm):
        super().__init__(
            nn.Conv2d(1, 4, 3, padding=1, bias=False),
            *([nn.BatchNorm2d(4)] if norm else []),
            nn.ReLU(),
            nn.AvgPool2d(4),
            nn.Flatten(),
            nn.Linear(16, 8),
            nn.GELU(),
            nn.Linear(8, 3),
        )


def make(case, *, seed):
    generator = torch.Generator().manual_seed(7)
    inputs, targets = torch.randn(65, 1, 8, 8, generator=generator), torch.randint(3, (65,), generator=generator)
    data = ImageData(
        "noise", TensorSplit(inputs[:48], targets[:48]), TensorSplit(inputs[48:], targets[48:]), classes=3, sha256=""
    )
    torch.manual_seed(seed)
    model = Network(case.norm)
    shares_batch = world()[1] > 1 and case.parallel == "data"
    if shares_batch:
        synchronise_norms(model, torch.device("cpu"))
    parts = case.micro_batches * (2 if case.ranks_are_slices and world()[1] == 1 else 1)
    fogzo.quantize_model(model, {"fixed": fogzo.FixedScale(2), "lsq": fogzo.LSQ(2)}[case.quantizer])
    weights, steps = fogzo.quantized_weights(model), 6
    steered, pulled = case.beside == "steered rate", case.beside == "pull"
    return Trainer(
        model=model,
        task=Classification(data, evaluation_batch=5),
        estimator=ESTIMATORS[case.estimator](weights, case.parallel == "probes"),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        schedule=TransitionRate(steps=steps, target=0.05) if steered else LearningRate(steps=1, shape="constant"),
        ledger=ComputeLedger(1.0, 2.0),
        weights=weights,
        pull=GridPull(weights, start=0.2, steps=steps) if pulled else None,
        settings=Settings(steps=steps, batch_size=16, seed=0, micro_batches=parts, parallel=case.parallel),
        reduced=nn.parallel.DistributedDataParallel(model, broadcast_buffers=False) if shares_batch else None,
    )


def train(case):
    """What each step left and what the run ended with; or the ``error`` with which the ranks found that they differ."""
    rank, differs_in = world()[0], case.rank_1_differs_in
    trainer = make(case, seed=rank if differs_in == "weights" else 0)
    if rank and differs_in == "weights":  # DistributedDataParallel has made them the same
        trainer.estimator.weights[0].latent.data.view(-1)[0] += 0.25
    if differs_in == "noise":
        trainer.estimator.seed = rank
    if rank and differs_in == "last bits":
        trainer.model[0].register_forward_hook(lambda module, inputs, output: Rounded.apply(output))
    rows = []
    try:
        for step in range(trainer.settings.steps):
            estimate = trainer.train_step(step)
            state = {name: value.clone() for name, value in trainer.model.state_dict().items()}
            loss = sum_over_ranks([float(estimate.loss)], trainer.device)[0] / trainer.ranks
            rows.append({"loss": loss, "state": state})
    except RanksDiffer as error:
        return {"error": str(error)}
    return {"rows": rows, "metrics": trainer.evaluate(), "ledger": trainer.ledger.row()}


class NormAct(nn.BatchNorm2d):
    """As timm's: a subclass whose forward does more."""

    def forward(self, x):
        return nn.functional.gelu(super().forward(x))


NORMS = {  # what makes a layer, and an input's shape
    "1d": (nn.BatchNorm1d, (8, 3)),
    "1d of sequences": (nn.BatchNorm1d, (8, 3, 5)),
    "2d": (nn.BatchNorm2d, (8, 3, 4, 4)),
    "3d": (nn.BatchNorm3d, (8, 3, 2, 4, 4)),
    "a subclass": (NormAct, (8, 3, 4, 4)),
    "cumulative": (partial(nn.BatchNorm2d, momentum=None), (8, 3, 4, 4)),
    "momentum 0": (partial(nn.BatchNorm2d, momentum=0.0), (8, 3, 4, 4)),
    "plain": (partial(nn.BatchNorm2d, affine=False), (8, 3, 4, 4)),
    "untracked": (partial(nn.BatchNorm1d, track_running_stats=False), (8, 3)),
}


def normalise(name):
    """What this rank's part of three batches becomes, its gradients, and the layer's buffers and output afterwards."""
    make_norm, shape = NORMS[name]
    generator = torch.Generator().manual_seed(1)
    inputs, weights = (torch.randn(3, *shape, generator=generator, dtype=torch.float64) for _ in range(2))
    layer = synchronise_norms(nn.Sequential(make_norm(3)).double(), torch.device("cpu"))
    if layer[0].weight is not None:
        with torch.no_grad():
            layer[0].weight.copy_(torch.tensor([0.5, 1.0, 2.0]))
    rank, ranks = world()
    part = slice(rank * 8 // ranks, (rank + 1) * 8 // ranks)
    x = inputs[:, part].clone().requires_grad_()
    outputs = torch.stack([layer(batch) for batch in x])
    (outputs * weights[:, part]).sum().backward()
    buffers = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    after = layer.eval()(inputs[0]).detach()
    return {
        "shared": {"outputs": outputs.detach(), "gradients": x.grad},
        "summed": {name: parameter.grad for name, parameter in layer.named_parameters()},
        "same": buffers | ({"after": after} if layer[0].track_running_stats else {}),
    }


def main(out, *names):
    torch.set_num_threads(1)
    with process_group(torch.device("cpu")):
        for name in names:
            result = train(CASES[name]) if name in CASES else normalise(name)
            torch.save(result, Path(out) / f"{name} {world()[0]}.pt")
        barrier()  # a rank that tears gloo down while the other still talks to it may abort


if __name__ == "__main__":
    warnings.simplefilter("error", RuntimeWarning)
    main(*sys.argv[1:])
