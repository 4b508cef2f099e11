"""Train one network, or with ``-m`` sweep over many:  python train.py [-m] [GROUP=CHOICE ...] [KEY=VALUE ...]

python train.py                                          2-bit MLP on embedded digits with FOGZO
python train.py estimator=ste quantizer=lsq seed=1       any other choice
python train.py -m experiment=mlp_compute                all cells of one figure
"""

from __future__ import annotations

import os
import sys
import traceback
from contextlib import suppress
from pathlib import Path

import hydra
from omegaconf import DictConfig


def complain(text: str) -> None:
    """Print ``text`` as an error, named after its process unless that is torchrun's first or the only one."""
    rank = os.environ.get("RANK", "0")  # the data, GPU and disk of each are its own, so that each speaks
    with suppress(OSError):  # the terminal may be closed
        print(text if rank == "0" else f"rank {rank}: {text}", file=sys.stderr, flush=True)


def check_choices(words: list[str]) -> None:
    """Refuse a number where a config group is chosen, which Hydra meets with a traceback."""
    for word in words:
        group, _, choice = word.partition("=")
        if choice.lstrip("-").isdigit() and (folder := Path(__file__).parent / "configs" / group).is_dir():
            known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
            complain(f"error: {word} is no choice: choose one of {known}")
            sys.exit(1)


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(cfg: DictConfig) -> str | None:
    """Carry out one run.  In a sweep, return its result for the sweep's table."""
    # torch and all that needs it load here, so that --help and --cfg answer at once
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import CompactHydraException
    from hydra.types import RunMode
    from omegaconf.errors import OmegaConfBaseException

    from fogzo.errors import UserError, one_line
    from fogzo.training.console import headline, spell_out
    from fogzo.training.launch import train
    from fogzo.training.signals import Interrupted
    from fogzo.training.watch import Diverged

    spell_out()
    hydra_config = HydraConfig.get()
    sweeping = hydra_config.mode == RunMode.MULTIRUN
    job = f"job {hydra_config.job.num} ({' '.join(hydra_config.overrides.task)}): " if sweeping else ""
    try:
        if cfg.cell and not sweeping:
            raise UserError(
                f"cell={cfg.cell} is filled by a sweep, which knows the cell's settings: "
                f"python train.py -m experiment=NAME cell={cfg.cell} seed={cfg.seed}"
            )
        if cfg.plan and os.environ.get("RANK", "0") != "0":  # one process of torchrun prints it for all
            return None
        return headline(train(cfg, sweeping=sweeping))
    except Interrupted as stop:
        complain(f"{job}{stop}")
        sys.exit(stop.code)
    except KeyboardInterrupt:
        complain(f"{job}interrupted; the same command goes on from the last checkpoint")
        sys.exit(130)
    except Diverged as error:
        complain(f"{job}diverged: {error}")
        if not sweeping:  # in a sweep it is one of the results
            sys.exit(1)
        return "diverged"
    except (ValueError, OmegaConfBaseException) as error:
        reason = str(error) if isinstance(error, ValueError) else f"the config is not whole: {one_line(error)}"
        complain(f"{job}error: {reason}")
        if not sweeping:
            sys.exit(1)
        raise CompactHydraException(reason) from None  # the other jobs go on; the sweep ends with a list
    except Exception:  # a fault of the program
        if sweeping:
            complain(f"{job}{traceback.format_exc()}")
        raise


if __name__ == "__main__":
    check_choices(sys.argv[1:])
    main()
