"""transformers' ``Trainer`` with an estimator's gradients in the place of ``backward()``'s (docs/library.md)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from accelerate.utils import DistributedType
from torch import Tensor, nn

from fogzo.errors import UserError
from fogzo.estimators import Estimate, Estimator
from fogzo.quantize import QuantizedWeight, quantized_weights
from fogzo.quantizers import Quantizer

STATE = "fogzo_estimator.pt"  # beside optimizer.pt in a checkpoint's folder
LOGGED = ("agreement", "zero_probes", "guide_norm", "crossings", "beta", "noise_share")  # of an estimate
WHOLE = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)  # the model is whole on each rank

EstimatorOrMaker = Estimator | Callable[[nn.Module], Estimator]


class Trainer(transformers.Trainer):
    """Trains a model that ``fogzo.quantize_model`` has seen; all else is as transformers has it.

    One estimate a step, of the closure over all micro-batches of gradient accumulation, with the parent's loss,
    normalisation, autocast and ``DistributedDataParallel``; it clips, steps, saves and calls callbacks as ever.  A
    checkpoint holds the estimator's state too.  The log gains the means of what the estimates saw: ``agreement`` and
    the other fields of :class:`fogzo.estimators.Estimate`.  Learned steps get no weight decay.

    Args:
        estimator: of this model's weights, such as ``fogzo.FOGZO(fogzo.quantized_weights(model))``; or a function that
            makes one from a model, which ``model_init=`` needs.
        model, args, others, options: as for ``transformers.Trainer``.

    Raises:
        UserError: if nothing is quantized, the estimator is of another model, an optimizer lacks what is to be trained,
            a checkpoint was written by a model quantized otherwise; for fp16 with its ``GradScaler``, and for models
            that are spread over devices.
    """

    def __init__(
        self, model: Any = None, args: Any = None, *others: Any, estimator: EstimatorOrMaker, **options: Any
    ) -> None:
        if not isinstance(estimator, Estimator) and not callable(estimator):
            raise UserError(
                f"estimator is a {type(estimator).__name__}: pass one such as fogzo.FOGZO(fogzo.quantized_weights("
                "model)), or a function that makes one from the model"
            )
        fp16 = "fp16 scales the loss by a GradScaler and leaves out steps: pass bf16=True, or neither for fp32"
        if getattr(args, "fp16", False):
            raise UserError(fp16)
        super().__init__(model, args, *others, **options)
        if self.accelerator.scaler is not None:  # as accelerate's own settings may ask for
            raise UserError(fp16)
        if self.model_init is not None and isinstance(estimator, Estimator):
            raise UserError(
                "estimator is of one model, and model_init makes another: pass a function that makes an estimator, "
                "such as lambda model: fogzo.FOGZO(fogzo.quantized_weights(model))"
            )
        kind = self.accelerator.distributed_type
        if kind not in WHOLE or self.args.n_gpu > 1:
            what = "DataParallel" if kind in WHOLE else kind.value
            raise UserError(
                f"the model is spread over devices by {what}: start one process for each device, with torchrun or "
                "accelerate launch and neither FSDP nor DeepSpeed"
            )
        self._made_from = estimator
        self._micro_batches: list[Any] = []
        self._seen: list[Estimate] = []  # since the last row of the log
        self._adopt_estimator()

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """Fetch the micro-batches of a step, as the parent does, and keep them for the step's closure."""
        samples, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._micro_batches = samples
        return samples, items

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Fill ``.grad`` when the parent comes to the last micro-batch of a step; return the whole step's loss there.

        The loss of the earlier micro-batches is counted there too, so it is 0 here.
        """
        if not self.accelerator.sync_gradients:
            return torch.zeros((), device=self.args.device)
        closure = _StepClosure(self, model, self._micro_batches, num_items_in_batch)
        estimate = self.estimator.estimate(closure, step=self.state.global_step)
        self._seen.append(estimate)
        return estimate.loss.to(self.args.device)

    def micro_loss(self, model: nn.Module, inputs: Any, num_items_in_batch: Any, *, backward: bool) -> Tensor:
        """Return a micro-batch's share of the step's loss, a detached scalar; the parent's own step computes it."""
        if backward:
            loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
            return loss
        undisturbed = self.accelerator.backward
        self.accelerator.backward = lambda loss, **_: None  # a probe needs all of the parent's step but this
        try:
            loss = super().training_step(model, inputs, num_items_in_batch)
        finally:
            self.accelerator.backward = undisturbed
        return loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log, with the means of what was seen since the last row of the training loss."""
        if "loss" in logs:
            logs |= _means(self._seen)
            self._seen = []
        super().log(logs, *args, **kwargs)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Return the parent's list without the quantizers' own parameters."""
        learned = {id(p) for p in _quantizers_own(model)}
        named = dict(model.named_parameters())
        return [name for name in super().get_decay_parameter_names(model) if id(named.get(name)) not in learned]

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Create what the parent would, or check the one that was given."""
        self._adopt_estimator()  # model_init may have made another model
        optimizer = super().create_optimizer(*args, **kwargs)
        model = cast(nn.Module, self.model)
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        latents = (weight.latent for weight in quantized_weights(model))
        if any(p.requires_grad and id(p) not in held for p in (*latents, *_quantizers_own(model))):
            raise UserError(
                "the optimizer lacks latent weights or learned steps: build it after fogzo.quantize_model, from "
                "model.parameters()"
            )
        return optimizer

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            torch.save(self.estimator.state_dict(), Path(output_dir) / STATE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            file = Path(checkpoint) / STATE
            state = torch.load(file, map_location="cpu", weights_only=True) if file.is_file() else None
            if state is None or state.keys() != self.estimator.state_dict().keys():
                raise UserError(
                    f"{checkpoint} does not hold what {type(self.estimator).__name__} goes on from: resume what "
                    "fogzo.hf.Trainer wrote with this estimator, or begin anew from its weights"
                )
            self.estimator.load_state_dict(state)
        super()._load_optimizer_and_scheduler(checkpoint)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        names = [*load_result.missing_keys, *load_result.unexpected_keys]
        if wrong := [name for name in names if "parametrizations." in name or "input_quantizer." in name]:
            raise UserError(
                f"the checkpoint and the model differ in {wrong[0]} and {len(wrong) - 1} more: it was written by a "
                "model that is not quantized alike; load plain weights before fogzo.quantize_model"
            )
        super()._issue_warnings_after_load(load_result)

    def _adopt_estimator(self) -> None:
        """Take the estimator given, or make it for the model that there is now.

        Raises:
            UserError: if it is none, or of another model's weights.
        """
        model, made = cast(nn.Module, self.model), self._made_from
        quantized_weights(model)  # raises, if there are none
        self.estimator = made if isinstance(made, Estimator) else made(model)
        if not isinstance(self.estimator, Estimator):
            raise UserError(f"estimator made a {type(self.estimator).__name__} of the model, which is no estimator")
        if any(weight.model is not model for weight in _weights_of(self.estimator)):
            raise UserError(
                "the estimator is of another model than the Trainer's: pass fogzo.quantized_weights(model) of the "
                "model that you give to Trainer"
            )


class _StepClosure:
    """The loss of all micro-batches of one step, at the current weights, of this rank's part of the batch."""

    def __init__(self, trainer: Trainer, wrapped: nn.Module, batches: list[Any], num_items: Any) -> None:
        self.trainer, self.wrapped, self.batches, self.num_items = trainer, wrapped, batches, num_items
        self.slices = len(batches)

    def __call__(self, *, backward: bool) -> Tensor:
        losses = []
        accelerator = self.trainer.accelerator
        for i, inputs in enumerate(self.batches):
            if backward and i < self.slices - 1:  # gradients are averaged over ranks once, with the last one
                with accelerator.no_sync(self.wrapped):
                    losses.append(self._loss(inputs, backward=True))
            else:
                losses.append(self._loss(inputs, backward=backward))
        # a probe's difference is of the last bits of fp32: they are not rounded once more (MPS has no fp64)
        exact = torch.float32 if losses[0].device.type == "mps" else torch.float64
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum(dtype=exact)

    def slice_loss(self, k: int) -> Tensor:
        return self._loss(self.batches[k], backward=False) * self.slices

    def _loss(self, inputs: Any, *, backward: bool) -> Tensor:
        trainer = self.trainer
        alone = trainer.args.world_size == 1
        # probes run the model itself: around it DistributedDataParallel would broadcast buffers each time
        model: Any = self.wrapped if backward or alone else trainer.model
        return trainer.micro_loss(model, inputs, self.num_items, backward=backward)


def _weights_of(estimator: Estimator) -> list[QuantizedWeight]:
    """Return the weights that an estimator, or those that it is made of, was given."""
    parts = (part for part in vars(estimator).values() if isinstance(part, Estimator))
    return [*(getattr(estimator, "weights", None) or []), *(weight for part in parts for weight in _weights_of(part))]


def _quantizers_own(model: nn.Module) -> Iterator[nn.Parameter]:
    for module in model.modules():
        if isinstance(module, Quantizer):
            yield from module.parameters()


def _means(seen: Iterable[Estimate]) -> dict[str, float]:
    """Return the mean of each field over the steps in which it was measured."""
    means = {}
    for name in LOGGED:
        values = [float(value) for estimate in seen if (value := getattr(estimate, name)) is not None]
        if values := [value for value in values if math.isfinite(value)]:
            means[name] = sum(values) / len(values)
    return means
