"""Run by torchrun in test_distributed.py: trains a small model for some steps and saves what each step left."""

import sys
import warnings
from pathlib import Path

import torch
from torch import nn

import fogzo
from fogzo.data import ImageData, TensorSplit
from fogzo.estimators import Phased, RescaledStraightThrough
from fogzo.ranks import barrier, world
from fogzo.training.config import Settings
from fogzo.training.distributed import process_group, synchronise_norms
from fogzo.training.ledger import ComputeLedger
from fogzo.training.tasks import Classification
from fogzo.training.trainer import Trainer

ESTIMATORS = {
    "ste": lambda weights, spread: fogzo.StraightThrough(),
    "fogzo": lambda weights, spread: fogzo.FOGZO(weights, samples=3, beta=0.99, spread=spread),
    "fogzo_batched": lambda weights, spread: fogzo.FOGZO(weights, samples=3, beta=0.99, probe_batch=2, spread=spread),
    "rescaled": lambda weights, spread: RescaledStraightThrough(weights, samples=3, beta=0.99, spread=spread),
    "phased": lambda weights, spread: Phased(
        fogzo.StraightThrough(weights), fogzo.FOGZO(weights, samples=3, beta=0.99, spread=spread), switch_step=4
    ),
    "nspsa": lambda weights, spread: fogzo.NSPSA(weights, samples=4, spread=spread),
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


def make(estimator, quantizer, *, norm, micro_batches, parallel, seed):
    generator = torch.Generator().manual_seed(7)
    inputs, targets = torch.randn(65, 1, 8, 8, generator=generator), torch.randint(3, (65,), generator=generator)
    data = ImageData(
        "noise", TensorSplit(inputs[:48], targets[:48]), TensorSplit(inputs[48:], targets[48:]), classes=3, sha256=""
    )
    torch.manual_seed(seed)
    model = Network(norm)
    ranks = world()[1]
    if ranks > 1 and parallel == "data":
        synchronise_norms(model, torch.device("cpu"))
    fogzo.quantize_model(model, quantizer)
    reduced = None
    if ranks > 1 and parallel == "data":
        reduced = nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
    return Trainer(
        model=model,
        task=Classification(data, evaluation_batch=5),
        estimator=ESTIMATORS[estimator](fogzo.quantized_weights(model), parallel == "probes"),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        schedule=lambda step: 1.0,
        ledger=ComputeLedger(1.0, 2.0),
        settings=Settings(steps=6, batch_size=16, seed=0, micro_batches=micro_batches, parallel=parallel),
        reduced=reduced,
    )


def main():
    torch.set_num_threads(1)
    with process_group(torch.device("cpu")):
        train(
            *sys.argv[1:]
        )  # in a function of its own, as in training/launch.py: what it holds is gone before the group
        barrier()  # a rank that tears gloo down while the other still talks to it may abort


def train(estimator, quantizer, norm, micro_batches, parallel, disagree, out):
    rank = world()[0]
    prototype = {"fixed": fogzo.FixedScale(2), "lsq": fogzo.LSQ(2)}[quantizer]
    trainer = make(
        estimator, prototype, norm=norm == "norm", micro_batches=int(micro_batches), parallel=parallel,
        seed=0 if disagree != "weights" else rank,
    )  # fmt: skip
    if disagree == "weights" and rank:  # DistributedDataParallel has made them the same
        trainer.estimator.weights[0].latent.data.view(-1)[0] += 0.25
    if disagree == "noise":
        trainer.estimator.seed = rank
    if disagree == "rounding" and rank:
        trainer.model[0].register_forward_hook(lambda module, inputs, output: Rounded.apply(output))
    rows = []
    for step in range(trainer.settings.steps):
        estimate = trainer.train_step(step)
        state = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        rows.append({"loss": trainer._over_ranks(float(estimate.loss))[0], "state": state})
    torch.save({"rows": rows, "metrics": trainer.evaluate(), "ledger": trainer.ledger.row()}, Path(out) / f"{rank}.pt")


if __name__ == "__main__":
    warnings.simplefilter("error", RuntimeWarning)
    main()
