"""A tiny Llama on embedded text under fogzo.hf.Trainer; as a script, in each rank: what it comes to."""

import argparse
import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

import fogzo
from fogzo.hf import Trainer


def llama(quantizer=None, **options):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=128, **sizes | options))
    return fogzo.quantize_model(model, quantizer or fogzo.LSQ(bits=2), skip=["lm_head"])


def text(examples=48, length=24):
    """Sequences of bytes out of the standard library, some of their ends padded away."""
    data = torch.frombuffer(bytearray(Path(argparse.__file__).read_bytes()), dtype=torch.uint8).long()
    rows = data[: examples * length].view(examples, length).clamp(max=127)
    return [
        {"input_ids": row, "labels": torch.where(torch.arange(length) < length - i % 5, row, -100)}
        for i, row in enumerate(rows)
    ]


def estimator_of(model):
    return fogzo.FOGZO(fogzo.quantized_weights(model), samples=2, beta=0.9, seed=3, crossings_every=2)


def arguments(folder, **changes):
    given = {"max_steps": 6, "learning_rate": 1e-2, "optim": "adamw_torch", "per_device_train_batch_size": 4}
    given |= {"logging_steps": 2, "save_strategy": "no", "report_to": "none", "use_cpu": True, "disable_tqdm": True}
    given["dataloader_pin_memory"] = False  # it warns where there is no GPU
    return TrainingArguments(str(folder), **given | changes)


def trainer(folder, model=None, make=estimator_of, callbacks=(), **changes):
    model = model or llama()
    return Trainer(
        model, arguments(folder, **changes), train_dataset=text(), callbacks=[*callbacks], estimator=make(model)
    )


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    own = trainer(sys.argv[1], save_strategy="steps", save_steps=3)
    own.train()
    torch.save({"state": state(own.model), "log": own.state.log_history}, f"{sys.argv[1]}/{own.args.process_index}.pt")
    torch.distributed.destroy_process_group()
