"""Train one network, or with ``-m`` sweep over many:  python train.py [-m] [GROUP=CHOICE ...] [KEY=VALUE ...]

python train.py                                          2-bit MLP on embedded digits with FOGZO
python train.py estimator=ste quantizer=lsq seed=1       any other choice
python train.py -m experiment=mlp_compute                all cells of one figure
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress

import hydra
from omegaconf import DictConfig


def complain(text: str) -> None:
    """Print ``text`` as an error, named after its process unless that is torchrun's first or the only one."""
    rank = os.environ.get("RANK", "0")  # the data, GPU and disk of each are its own, so that each speaks
    with suppress(OSError):  # the terminal may be closed
        print(text if rank == "0" else f"rank {rank}: {text}", file=sys.stderr, flush=True)


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(cfg: DictConfig) -> None:
    # torch and all that needs it load here, so that --help and --cfg answer at once
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import CompactHydraException
    from hydra.types import RunMode

    from fogzo.training.console import spell_out
    from fogzo.training.launch import train
    from fogzo.training.signals import Interrupted
    from fogzo.training.watch import Diverged

    spell_out()
    sweeping = HydraConfig.get().mode == RunMode.MULTIRUN
    try:
        if cfg.cell and not sweeping:
            raise ValueError(
                f"cell={cfg.cell} is filled by a sweep, which knows the cell's settings: "
                f"python train.py -m experiment=NAME cell={cfg.cell} seed={cfg.seed}"
            )
        if cfg.plan and os.environ.get("RANK", "0") != "0":  # one process of torchrun prints it for all
            return
        train(cfg, sweeping=sweeping)
    except Interrupted as stop:
        complain(str(stop))
        sys.exit(stop.code)
    except KeyboardInterrupt:
        complain("interrupted; the same command goes on from the last checkpoint")
        sys.exit(130)
    except Diverged as error:
        complain(f"diverged: {error}")
        if not sweeping:  # in a sweep it is one of the results
            sys.exit(1)
    except ValueError as error:
        if sweeping:  # the other jobs go on; Hydra reports this one at the end
            raise CompactHydraException(f"error: {error}") from None
        complain(f"error: {error}")
        sys.exit(1)


if __name__ == "__main__":
    main()
