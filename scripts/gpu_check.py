"""Prove the code on this machine's GPU, and time it:  python -m scripts.gpu_check [--out FOLDER] [--only PART]

First what has to hold (needs torch alone), then what a step costs (all dependencies); at most 8 minutes together.
Leaves gpu_check.json and gpu_check.md in FOLDER.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # where the package is not installed
sys.path.insert(0, str(Path(__file__).resolve().parent))  # by python -m
from gpu_checks import CHECKS

LIMIT = 8 * 60.0  # seconds


def settle(device: torch.device) -> None:
    """Choose kernels that give the same bits each time, as runs do."""
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)


def run_checks(device: torch.device) -> list[dict[str, str]]:
    """Return name, outcome and what was seen of each check; one that fails does not keep others from running."""
    settle(device)
    outcomes = []
    for name, check in CHECKS.items():
        try:
            outcome, seen = "passed", check(device)
        except Exception as error:  # whatever it is, the page says it
            outcome, seen = "FAILED", f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        print(f"{outcome}  {name}: {seen}", flush=True)
        outcomes.append({"check": name, "outcome": outcome, "seen": seen})
    return outcomes


def _driver() -> str:
    """Return the driver's version, or ``unknown`` where nvidia-smi is not there."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with suppress(OSError):
        return (subprocess.run(query, capture_output=True, text=True, check=False).stdout.split() or ["unknown"])[0]
    return "unknown"


def machine(device: torch.device) -> dict[str, Any]:
    """Return card, driver and versions."""
    facts: dict[str, Any] = {"torch": torch.__version__, "python": platform.python_version()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        memory = round(properties.total_memory / 2**30)
        return {"card": properties.name, "memory_gib": memory, "driver": _driver(), "cuda": torch.version.cuda} | facts
    return {"card": f"none, {platform.processor() or platform.machine()}"} | facts


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", default="outputs/gpu_check", help="folder of the page and the JSON")
    parser.add_argument("--only", choices=("checks", "costs"), help="one of the two parts")
    arguments = parser.parse_args(words)
    if not torch.cuda.is_available():
        print("no CUDA device is here: the tests marked gpu have twins on the CPU, which `make test` runs")
        return 1
    begun, device = time.monotonic(), torch.device("cuda", torch.cuda.current_device())
    facts = machine(device)
    found: dict[str, Any] = {"machine": facts}
    pages = []
    if arguments.only != "costs":
        found["checks"] = run_checks(device)
        listed = [f"| {one['check']} | {one['outcome']} | {one['seen']} |" for one in found["checks"]]
        pages.append("\n".join(["# What holds here", "", "| check | outcome | seen |", "|---|---|---|", *listed, ""]))
    if arguments.only != "checks":
        from bench_gpu import ESTIMATORS, NETWORKS, measure, page, ways_on  # needs all dependencies

        left = max(LIMIT - (time.monotonic() - begun), 60.0)
        rows = measure(
            device, NETWORKS, 0.3 * left / (len(ways_on(device)) * len(NETWORKS) * len(ESTIMATORS))
        )  # the rest: building, warm-up
        found["costs"] = [row._asdict() for row in rows]
        pages.append(page(rows, facts))
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "gpu_check.json").write_text(json.dumps(found, indent=1) + "\n")
    (out / "gpu_check.md").write_text("\n".join(pages))
    print(f"{time.monotonic() - begun:.0f} s; {out / 'gpu_check.md'}")
    return int(any(one["outcome"] != "passed" for one in found.get("checks", [])))


if __name__ == "__main__":
    sys.exit(main())
