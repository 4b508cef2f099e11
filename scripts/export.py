"""Write a run's trained network in a form that other tools open (docs/export.md):

python scripts/export.py RUN_FOLDER --to safetensors           our own small file, for fogzo.load
python scripts/export.py RUN_FOLDER --to compressed-tensors    a folder for transformers (language models)
python scripts/export.py RUN_FOLDER --to onnx --verify         for onnxruntime (images); compared on the test set
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from run_exported import BATCH, Array, compare
from torch import Tensor, nn
from torch.nn.utils import parametrize

import fogzo
from fogzo.data import Data, TextData
from fogzo.data.tokenize import end_of_text, load_tokenizer
from fogzo.interchange.compressed import export_compressed
from fogzo.interchange.onnx_graph import export_onnx, export_plain_onnx
from fogzo.runs.folder import RunFolder
from fogzo.runs.identity import identity
from fogzo.training.config import instantiate
from fogzo.training.reload import load_run, read_config

NAMES = {"safetensors": "model.safetensors", "compressed-tensors": "compressed-tensors", "onnx": "model.onnx"}
READER = Path(__file__).with_name("run_exported.py")
MOST_VALUES, WINDOWS = 2**28, 32  # of the test set that is compared: numbers, and windows of text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN_FOLDER", help="of a finished run, with its model.pt")
    parser.add_argument("--to", choices=list(NAMES), required=True, help="the format")
    parser.add_argument("--out", type=Path, help="file or folder to write (default: RUN_FOLDER/export/...)")
    parser.add_argument("--verify", action="store_true", help="read it back with the tool it is for, and compare")
    parser.add_argument("--verbose", action="store_true", help="print the bytes of each quantized tensor")
    options = parser.parse_args()
    try:
        export(**vars(options))
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"error: {error}") from None


def export(run: Path, to: str, out: Path | None, *, verify: bool, verbose: bool) -> None:
    """Write, print the sizes, and compare if asked to."""
    model, config = load_run(run)
    path = out or run / "export" / NAMES[to]
    path.parent.mkdir(parents=True, exist_ok=True)
    needs_data = verify or to != "safetensors"
    data: Any = instantiate(config.data, "data") if needs_data else None
    if to == "safetensors":
        summary = RunFolder.view(run, {}).summary() or {}
        origin = {"identity": identity(read_config(run)), "git_commit": summary.get("git_commit")}
        written = fogzo.export(model, path, run=origin)
    elif to == "onnx":
        written = export_onnx(model, path, examples(data)[:2])
    else:
        written = export_compressed(model, path, **tokenizer_of(data))
    if verbose:
        print("\n".join(str(size) for size in written.tensors))
    print(written)
    if verify:
        inputs = examples(data)
        if len(inputs) < len(data.test):
            print(f"comparing {len(inputs):,} of {len(data.test):,} test examples")
        fresh = fogzo.load(path, instantiate(config.model, "model")).eval() if to == "safetensors" else None
        again = foreign(model, path, inputs) if fresh is None else logits_of(fresh, inputs)
        compare(logits_of(model, inputs), again, exactly=to != "onnx")


def tokenizer_of(data: Data) -> dict[str, Any]:
    """Return the file of the data's tokenizer and the token between texts, as export_compressed takes them."""
    file = getattr(data, "tokenizer_file", None)
    if file is None:
        return {}
    tokenizer = load_tokenizer(str(file))
    return {"tokenizer": file, "end_of_text": tokenizer.id_to_token(end_of_text(tokenizer))}


def examples(data: Data) -> Tensor:
    """Return the inputs of the test set, all of them unless they are too many to hold."""
    most = min(len(data.test), MOST_VALUES // data.test.batch(torch.arange(1))[0].numel())
    return data.test.batch(torch.arange(min(most, WINDOWS) if isinstance(data, TextData) else most))[0]


def logits_of(model: nn.Module, inputs: Tensor) -> Array:
    """Return the logits, computed in the reader's batches."""
    with torch.no_grad(), parametrize.cached():
        outputs = [model(part) for part in torch.split(inputs, BATCH)]
    return torch.cat([getattr(output, "logits", output) for output in outputs]).numpy()


def foreign(model: nn.Module, path: Path, inputs: Tensor) -> Array:
    """Return the logits that the format's own tool computes, in a process without fogzo."""
    with tempfile.TemporaryDirectory() as folder:
        asked = Path(folder, "inputs.npy"), Path(folder, "logits.npy")
        np.save(asked[0], inputs.numpy())
        words = [path, *asked]
        if path.suffix == ".onnx":  # the same network in fp32, to compare time and size with
            plain = Path(folder, "fp32.onnx")
            export_plain_onnx(model, plain, inputs[:2])
            print(f"fp32: {plain.stat().st_size:,} bytes as ONNX")
            words = [plain, asked[0], Path(folder, "plain.npy"), *words]
        environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
        subprocess.run([sys.executable, READER, *words], check=True, env=environment)
        logits: Array = np.load(asked[1])
        return logits


if __name__ == "__main__":
    main()
