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
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException


def complain(text: str) -> None:
    """Print ``text`` as an error, named after its process unless that is torchrun's first or the only one."""
    rank = os.environ.get("RANK", "0")  # the data, GPU and disk of each are its own, so that each speaks
    with suppress(OSError):  # the terminal may be closed
        print(text if rank == "0" else f"rank {rank}: {text}", file=sys.stderr, flush=True)


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(cfg: DictConfig) -> str | float | None:
    """Carry out one run.  Return its result, or the FLOPs that it is planned to take, for a sweep's table."""
    # torch and all that needs it load here, so that --help and --cfg answer at once
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import CompactHydraException
    from hydra.types import RunMode

    from fogzo.errors import UserError, one_line
    from fogzo.training.compilation import spare_compiler
    from fogzo.training.console import headline, spell_out
    from fogzo.training.launch import train
    from fogzo.training.signals import Interrupted
    from fogzo.training.watch import Diverged

    spell_out()
    spare_compiler()
    hydra_config = HydraConfig.get()
    sweeping = hydra_config.mode == RunMode.MULTIRUN
    job = f"job {hydra_config.job.num} ({' '.join(hydra_config.overrides.task)}): " if sweeping else ""
    try:
        if cfg.get("experiment") is not None and not sweeping:
            chosen = f" cell={cfg.cell} seed={cfg.seed}" if cfg.cell else ""
            raise UserError(
                f"experiment={cfg.experiment.name} is many runs, which a sweep knows: "
                f"python train.py -m experiment={cfg.experiment.name}{chosen}"
            )
        if cfg.plan and os.environ.get("RANK", "0") != "0":  # one process of torchrun prints it for all
            return None
        summary = train(cfg, sweeping=sweeping)
        return float(summary["flops"]) if cfg.plan else headline(summary)
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


def run() -> None:
    """Run ``main``; what Hydra refuses is said in one sentence, where Hydra itself would advise what nothing reads."""
    asked = "HYDRA_FULL_ERROR" in os.environ
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra hands its errors on, instead of printing them
    try:
        main()
    except Exception as error:  # Hydra meets a number where a choice should stand with errors that are not its own
        if asked:
            raise
        from fogzo.errors import one_line
        from fogzo.training.overrides import explanation

        overrides = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
        said = explanation(overrides, Path(__file__).resolve().parent / "configs")
        if said is None and not isinstance(error, HydraException | OmegaConfBaseException):
            raise
        complain(f"error: {said or one_line(error)}")
        sys.exit(1)
    finally:
        if not asked:
            os.environ.pop("HYDRA_FULL_ERROR", None)


if __name__ == "__main__":
    run()
