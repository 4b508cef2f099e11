"""Run an exported network with the tools that its format is for, and without fogzo (copy this file where you need it):

    python scripts/run_exported.py EXPORTED INPUTS.npy LOGITS.npy [EXPORTED INPUTS.npy LOGITS.npy ...]

EXPORTED is a FILE.onnx, for onnxruntime, or a folder, for transformers with compressed-tensors.  Computes the logits of
the inputs (images, or tokens), prints how long one example takes, and of a language model what it writes by itself.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

BATCH = 8  # examples at a time; bits of a sum may depend on it


def main() -> None:
    words = sys.argv[1:]
    if not words or len(words) % 3:
        raise SystemExit(__doc__)
    for exported, inputs, logits in zip(words[::3], words[1::3], words[2::3], strict=True):
        network = onnx(exported) if exported.endswith(".onnx") else transformers(Path(exported))
        examples = np.load(inputs)
        parts = [network(examples[start : start + BATCH]) for start in range(0, len(examples), BATCH)]
        np.save(logits, np.concatenate(parts))
        print(f"{exported}: {milliseconds(network, examples[:1]):.2f} ms an example")
    assert "fogzo" not in sys.modules


def onnx(path: str) -> Callable[[Any], Any]:
    """Return the network in ``path``, as onnxruntime computes it on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors: it warns of each constant that it cannot compute beforehand
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"input": images})[0]


def transformers(folder: Path) -> Callable[[Any], Any]:
    """Return the language model in ``folder``; print a text of its own if there is a tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    if (folder / "tokenizer.json").exists():
        tokenizer = AutoTokenizer.from_pretrained(folder)
        begun = tokenizer("The function returns", return_tensors="pt")
        print(repr(tokenizer.decode(model.generate(begun.input_ids, max_new_tokens=20, do_sample=False)[0])))

    @torch.no_grad()
    def network(tokens: Any) -> Any:
        return model(input_ids=torch.from_numpy(tokens), use_cache=False).logits.numpy()

    return network


def milliseconds(network: Callable[[Any], Any], example: Any, repeats: int = 20) -> float:
    """Return the median time of one call."""
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        network(example)
        times.append(time.perf_counter() - begun)
    return 1000 * median(times)


if __name__ == "__main__":
    main()
