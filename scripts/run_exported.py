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

Array = np.ndarray[Any, Any]
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


def compare(own: Array, others: Array, *, exactly: bool) -> None:
    """Print how far two sets of logits agree; end with an error if that is not as far as the format promises."""
    if own.shape != others.shape or not np.isfinite(others).all():
        raise SystemExit(f"error: the file gives logits of shape {others.shape}, {own.shape} were to come, all finite")
    if np.array_equal(own, others):
        print(f"verified: the logits of {len(own):,} test examples are the same, bit for bit")
        return
    far = (np.abs(own - others).reshape(len(own), -1).max(1) / (own.max() - own.min())).astype(np.float64)
    top = (own.argmax(-1) == others.argmax(-1)).mean()
    print(
        f"compared: of {len(own):,} test examples {top:.2%} have the same top-1; logits differ by {far.max():.1e} of "
        f"their range (median {np.median(far):.1e}; {(far > 1e-4).mean():.2%} of the examples by over 1e-4)"
    )
    if not exactly and (top < 0.99 or np.median(far) > 1e-4):  # of rounded inputs single ones may fall the other way
        raise SystemExit("error: that is too far: please report it, with the versions in constraints.txt")
    if exactly:
        raise SystemExit("error: the bits were to be the same: please report it, with the versions in constraints.txt")


if __name__ == "__main__":
    main()
