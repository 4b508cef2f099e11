"""Speed and memory, each figure beside its limit:  python scripts/bench.py [--quick] [--only PART] [--against COMMIT]

Steps that are compared run in one process, alternating, and medians are quoted: this is about ratios, not about the
machine.  The FLOP limit is what torch's flop counter says the ratio would be if time were FLOPs.
"""

from __future__ import annotations

import argparse


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few repetitions: checks that it runs, not how fast")
    parser.add_argument(
        "--only", choices=("steps", "method", "models", "data", "processes"), help="one part of the figures"
    )
    parser.add_argument("--against", metavar="COMMIT", help="measure the steps of that commit too, in alternation")
    arguments = parser.parse_args()

    import torch  # with what follows it takes a second, which --help need not
    from bench_against import against
    from bench_data import data
    from bench_method import method
    from bench_models import models
    from bench_processes import processes

    from fogzo.data import mnist5k

    rounds = 3 if arguments.quick else 40
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads unless said otherwise, {rounds} rounds or more\n"
    )
    if arguments.only in (None, "steps"):
        against(arguments.against, rounds)
    if arguments.only in (None, "method"):
        method(mnist5k(), rounds)
    if arguments.only in (None, "models"):
        models(max(rounds // 4, 2))
    if arguments.only in (None, "data"):
        data(max(rounds // 4, 2), images=1 if arguments.quick else 8, tokens=10**6 if arguments.quick else 10**8)
    if arguments.only in (None, "processes"):
        processes(steps=rounds, megabytes=2 if arguments.quick else 20)


if __name__ == "__main__":
    main()
