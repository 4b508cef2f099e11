"""Small trainers, some whose losses are tampered with, and whether two of them ended bit for bit alike."""

import json

import torch
from torch import nn

import fogzo
from fogzo.data import ImageData, TensorSplit
from fogzo.estimators import GuideOrNoise, IntermittentFOGZO, OneSidedFOGZO
from fogzo.models import mlp
from fogzo.training.config import Settings
from fogzo.training.ledger import ComputeLedger
from fogzo.training.schedules import LearningRate, TransitionRate
from fogzo.training.tasks import Classification
from fogzo.training.trainer import Trainer

TIMES = {
    "seconds": 0,
    "cpu_seconds": 0,
    "data_seconds": 0,
    "peak_memory_bytes": 0,
}  # in place of what differs between equal runs


QUANTIZERS = {
    "fixed": lambda: fogzo.FixedScale(2, scale_in_std=2.0),
    "lsq": lambda: fogzo.LSQ(2),
    "quest": lambda: fogzo.QuEST(2),
    "sign": lambda: fogzo.Sign(),
}


ESTIMATORS = {
    "ste": lambda weights, **options: fogzo.StraightThrough(),
    "fogzo": lambda weights, **options: fogzo.FOGZO(weights, **{"beta": 0.9} | options),
    "nspsa": lambda weights, **options: fogzo.NSPSA(weights, **options),
    "one-sided": lambda weights, **options: OneSidedFOGZO(weights, **{"beta": 0.9} | options),  # has a state
}


STATEFUL = {  # besides "one-sided", those whose next step depends on what they have seen
    "intermittent": lambda weights, **options: IntermittentFOGZO.with_fogzo(
        weights, **{"beta": 0.9, "every": 4} | options
    ),
    "guide or noise": lambda weights, **options: GuideOrNoise(weights, **options),
}


SCHEDULES = {
    "cosine": lambda steps: LearningRate(steps, warmup=0.2),
    "steered": lambda steps: TransitionRate(steps=steps, target=0.05),
}


OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1),
}


def blobs(examples, dtype):
    generator = torch.Generator().manual_seed(examples)
    targets = torch.arange(examples) % 4
    inputs = torch.randn(examples, 1, 4, 4, generator=generator, dtype=dtype)
    return TensorSplit(inputs + targets.view(-1, 1, 1, 1), targets)


def make(
    estimator="ste", quantizer="fixed", optimizer="sgd", schedule="cosine", *,
    folder=None, reporters=(), dtype=torch.float32, **options
):  # fmt: skip
    """A small trainer; options are those of the settings, else of the estimator."""
    torch.manual_seed(0)
    data = ImageData("blobs", blobs(60, dtype), blobs(25, dtype), classes=4, sha256="")
    model = nn.Sequential(mlp(inputs=16, hidden=8, classes=8), nn.BatchNorm1d(8), nn.Dropout(0.1), nn.Linear(8, 4))
    fogzo.quantize_model(model.to(dtype), QUANTIZERS[quantizer](), skip=["3"], biases=True)
    given = {name: options.pop(name) for name in list(options) if name in Settings.__dataclass_fields__}
    settings = Settings(**{"steps": 6, "batch_size": 20, "seed": 5, "log_every": 1} | given)
    return Trainer(
        model=model,
        task=Classification(data),
        estimator=(ESTIMATORS | STATEFUL)[estimator](fogzo.quantized_weights(model), **options),
        optimizer=OPTIMIZERS[optimizer](model.parameters()),
        schedule=SCHEDULES[schedule](settings.steps),
        ledger=ComputeLedger(forward_flops=10.0, backward_flops=7.0),
        settings=settings,
        weights=fogzo.quantized_weights(model),
        folder=folder,
        reporters=reporters,
    )


class Tell:
    """A reporter that calls ``action`` after training step ``at``."""

    def __init__(self, at, action):
        self.at, self.action, self.closed, self.rows = at, action, 0, []

    def start(self, step, steps): ...

    def step(self, step, loss):
        if step == self.at:
            self.action()

    def row(self, row):
        self.rows.append(row)

    def evaluating(self, done, batches): ...

    def close(self):
        self.closed += 1


def outcome(trainer):
    """All that a run ends with, its times left out."""
    rows = [json.loads(line) for line in trainer.folder.metrics_file.read_text().splitlines()]
    state = trainer.state_dict()
    return [row | TIMES for row in rows], state["ledger"] | TIMES, state["means"], state["step"]


def assert_same_state(a, b):
    """Two checkpoints' nested states agree to the last bit."""
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same_state(a[key], b[key])
    else:
        assert a == b


def assert_same_end(ended, expected):
    assert outcome(ended) == outcome(expected)
    assert_same_state(ended.state_dict()["model"], expected.state_dict()["model"])
    assert_same_state(ended.state_dict()["optimizer"]["state"], expected.state_dict()["optimizer"]["state"])


class Tampered(Classification):
    """The loss goes through ``change`` in the training steps ``at`` (from 1), once a step."""

    def __init__(self, data, at, change):
        super().__init__(data)
        self.at, self.change, self.trainer = at, change, None

    def loss(self, model, batch):
        loss = super().loss(model, batch)
        return self.change(loss) if self.trainer.step + 1 in self.at else loss


def tampered(at, change, estimator="ste", **options):
    trainer = make(estimator, **options)
    trainer.task = Tampered(trainer.task.data, at, change)
    trainer.task.trainer = trainer
    return trainer
