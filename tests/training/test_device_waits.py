"""Between two logged rows nothing on the host waits for the device: no value is read, and nothing is sent to it."""

import json
from collections import Counter

import pytest
import torch
from helpers.configs import composed
from helpers.trainers import QUANTIZERS, make, tampered
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import fogzo
from fogzo.training import checkpoint, watch
from fogzo.training.build import build
from fogzo.training.watch import Diverged

# what reads a value or a shape that depends on values; lift_fresh makes a tensor of Python numbers, and sends it there
WAITS = ("_local_scalar_dense", "is_nonzero", "item", "nonzero", "masked_select", "equal", "_unique2", "lift_fresh")
READS = ("tolist", "numpy", "__array__", "cpu", "__bool__", "__float__", "__int__", "__index__")


class Waits(TorchDispatchMode):
    """Counts what would wait for a GPU, but for what is on the host there too: an optimizer's count of steps."""

    def __init__(self, optimizer):
        super().__init__()
        self.seen, self.on_host = (
            Counter(),
            {id(state["step"]) for state in optimizer.state.values() if "step" in state},
        )

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().split("::")[1].split(".")[0]
        masks = (
            [i for i in args[1] if i is not None and i.dtype == torch.bool]
            if name.startswith("index") and (isinstance(args[1], list | tuple))
            else []
        )
        if (name in WAITS or masks) and id(args[0]) not in self.on_host:
            self.seen[name] += 1
        return func(*args, **(kwargs or {}))


class Reads(TorchFunctionMode):
    """Counts methods that read a tensor on the CPU without an operation."""

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in READS:
            self.seen[func.__name__] += 1
        return func(*args, **(kwargs or {}))


def waits(one, steps=2):
    """What ``steps`` steps of ``one`` wait for, after a first and before a row."""
    assert one.settings.log_every > steps + 1
    one._finish_step()
    with Reads() as reads, Waits(one.optimizer) as dispatched:
        for _ in range(steps):
            one._finish_step()
    return dict(reads.seen + dispatched.seen)


MEMBERS = {
    "ste": [], "fogzo": [], "nspsa": ["estimator.samples=2"], "slope": [], "noisy_ste": [], "rescaled_ste": [],
    "exact": [], "guide_or_noise": [], "displaced_ste": [], "one_sided": [], "split": ["micro_batches=2"],
    "control_variate": [], "ewgs": [], "intermittent": ["estimator.every=2"], "phased": ["estimator.ste_share=0.0"],
}  # fmt: skip


@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize("name", MEMBERS)
def test_no_step_of_any_estimator_waits(name, clip):
    keys = [f"estimator={name}", f"clip_norm={clip}", "batch_size=8", "steps=8", "log_every=8", "device=cpu"]
    assert waits(build(composed(*keys, *MEMBERS[name]))) == {}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("estimator", ["ste", "fogzo", "nspsa"])
def test_no_step_waits_whatever_quantizer_and_optimizer(estimator, quantizer, optimizer):
    assert waits(make(estimator, quantizer, optimizer, clip_norm=1.0, log_every=8, steps=8)) == {}


@pytest.mark.parametrize("more", [["probe_batch=2", "samples=3"], ["samples=3"]], ids=" ".join)
def test_no_step_of_many_samples_waits(more):
    options = {name: int(value) for name, value in (word.split("=") for word in more)}
    assert waits(make("fogzo", log_every=8, steps=8, **options)) == {}


@pytest.mark.parametrize(
    ("model", "activations"),
    [("deit_mini", "lsq"), ("resnet_mini", "none"), ("llama_mini", "none"), ("llama_mini", "quest")],
)
def test_no_step_of_a_network_waits(model, activations):
    keys = [f"model={model}", "estimator=fogzo", "quantizer=lsq", f"activations={activations}", "device=cpu"]
    length = ["batch_size=2", "micro_batches=1", "steps=8", "log_every=8", "precision=bf16"]
    if model == "llama_mini":
        keys += ["data=synthetic", "data.sequence=16", "data.vocabulary=64", "model.vocabulary=64"]
    assert waits(build(composed(*keys, *length)), steps=1) == {}


@pytest.mark.parametrize("read", [torch.Tensor.item, bool, torch.Tensor.tolist], ids=["item", "bool", "tolist"])
def test_one_value_that_is_read_is_counted(read):
    one = make("fogzo", log_every=8, steps=8)
    whole = one.estimator.estimate

    def reading(closure, *, step):
        estimate = whole(closure, step=step)
        read(estimate.loss)
        return estimate

    one.estimator.estimate = reading
    assert sum(waits(one, steps=2).values()) >= 2


def rows_of(one):
    return [json.loads(line) for line in one.folder.metrics_file.read_text().splitlines()]


@pytest.mark.parametrize("checkpoint_every", [0, 2, 5])
def test_a_loss_that_is_no_number_ends_the_run_no_later_than_at_the_next_row(checkpoint_every, open_run):
    options = {"steps": 12, "log_every": 6, "checkpoint_every": checkpoint_every, "folder": open_run()}
    one = tampered([8], lambda loss: loss * torch.nan, **options)
    with pytest.raises(Diverged, match="the loss is nan at step 8"):
        one.fit()
    assert one.step == 8  # what the record says; the steps after it count for nothing
    assert one.ledger.examples == 8 * 20
    assert [(row["step"], row.get("event"), row["examples"]) for row in rows_of(one)] == [
        (6, None, 120), (8, "nonfinite", 160)
    ]  # fmt: skip
    if checkpoint_every:
        kept = checkpoint.load(one.folder.checkpoint_file)
        assert kept["step"] == {2: 6, 5: 5}[checkpoint_every]
        assert all(bool(value.isfinite().all()) for value in kept["model"].values() if value.is_floating_point())


def test_rows_that_are_far_apart_do_not_keep_a_loss_unread_for_long(monkeypatch):
    monkeypatch.setattr(watch, "MOST_UNREAD", 5)
    one = tampered([8], lambda loss: loss * torch.nan, steps=100, log_every=0)
    with pytest.raises(Diverged, match="step 8"):
        one.fit()
    monkeypatch.setattr(watch, "LONGEST_UNREAD", 0.0)
    one = tampered([8], lambda loss: loss * torch.nan, steps=100, log_every=0)
    with pytest.raises(Diverged, match="step 8"):
        one.fit()
    assert one.diary.unread == []


def test_gradients_left_on_entry_are_looked_at_all_at_once():
    one = make("ste", log_every=8, steps=8)
    weights = fogzo.quantized_weights(one.model)
    for parameter in one.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with Reads() as reads:
        fogzo.estimators.base.check_gradients_empty(weights[0].model)
    assert dict(reads.seen) == {"tolist": 1}
