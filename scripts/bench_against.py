"""What a FOGZO step costs over one of the STE, here and in another commit, measured in alternation.

A process for each tree takes a step whenever it is told to: their packages have the same names.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NETWORKS = {"deit_mini": 1, "llama_mini": 2, "resnet18": 8}  # one round in so many: their steps are longer
ALLOWED = 1.03  # times what FLOPs alone would give
WORKER = """
import sys, time, warnings
from pathlib import Path
import torch
from hydra import compose, initialize_config_dir
warnings.simplefilter("ignore")
torch.set_num_threads(1)
figures, sys.stdout = sys.stdout, sys.stderr  # a data set that is prepared says so
from fogzo.training.build import build
with initialize_config_dir(str(Path.cwd() / "configs"), version_base="1.3"):
    trainers = [build(compose("train", [sys.argv[1], f"estimator={name}", "threads=1"])) for name in ("ste", "fogzo")]
forward, backward = trainers[0].ledger.forward_flops, trainers[0].ledger.backward_flops
print((3 * forward + backward) / (forward + backward), file=figures, flush=True)
for step, line in enumerate(sys.stdin):
    begun = time.process_time()  # what other processes take does not count
    trainers[int(line)].train_step(step)
    print(time.process_time() - begun, file=figures, flush=True)
"""
Times = dict[str, list[list[float]]]  # of each tree: seconds of the STE's steps, and of FOGZO's


def against(commit: str | None, rounds: int, networks: Mapping[str, int] = NETWORKS) -> None:
    """Print the figures of each network; ``commit``: what else is measured, if anything."""
    with tree_of(commit) as there:
        trees = {"here": ROOT} | ({f"in {commit}": there} if there else {})
        for network, longer in networks.items():
            limit, times = measured(trees, f"model={network}", max(rounds // longer, 3))
            for name, (ste, fogzo) in times.items():
                ratio = statistics.median(b / a for a, b in zip(ste, fogzo, strict=True))
                each = " / ".join(f"{1e3 * statistics.median(one):.0f}" for one in (fogzo, ste))
                print(
                    f"FOGZO n=1 / STE step, {network}, CPU time, 1 thread, {name}: {ratio:.3f}x ({each} ms)   "
                    f"limit {ALLOWED * limit:.3f}x, 3 % above the FLOP limit of {limit:.3f}x",
                    flush=True,
                )


def measured(trees: Mapping[str, Path], key: str, rounds: int) -> tuple[float, Times]:
    """Return the FLOP limit, and the CPU seconds of steps taken in turn; the first two rounds do not count."""
    times: Times = {name: [[], []] for name in trees}
    with ExitStack() as stack:
        workers = {name: stack.enter_context(worker(tree, key)) for name, tree in trees.items()}
        limit = max(float(one.stdout.readline()) for one in workers.values() if one.stdout)
        for number in range(rounds + 2):
            for name, one in workers.items():
                for estimator in range(2):
                    assert one.stdin
                    assert one.stdout
                    one.stdin.write(f"{estimator}\n")
                    one.stdin.flush()
                    seconds = float(one.stdout.readline())
                    if number >= 2:
                        times[name][estimator].append(seconds)
    return limit, times


@contextmanager
def worker(tree: Path, key: str) -> Iterator[subprocess.Popen[str]]:
    """Yield a process in which ``tree``'s trainers wait."""
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tree)!r})\n{WORKER}", key]
    with subprocess.Popen(command, cwd=tree, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def tree_of(commit: str | None) -> Iterator[Path | None]:
    """Yield a folder with the files of ``commit``, which is gone afterwards."""
    if commit is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--detach", "--quiet", str(tree), commit], check=True)
        try:
            if (data := ROOT / "data").is_dir():  # prepared once: the embedded text
                (tree / "data").symlink_to(data)
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)
