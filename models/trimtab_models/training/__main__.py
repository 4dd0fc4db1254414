"""The command line of training; also for `accelerate launch -m trimtab_models.training`."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from torch import distributed

from trimtab_models import pretrained
from trimtab_models.training import config
from trimtab_models.training.config import TrainConfig
from trimtab_models.training.grounded import job
from trimtab_models.training.grounded.settings import GroundedConfig
from trimtab_models.training.run import run
from trimtab_models.training.saves import run_directory

INTERRUPTED = 130


def command(objective: str | None, path: Path | None, overrides: Sequence[str]) -> int:
    """Run a training; print errors and interruptions as one line. Returns the exit status."""
    logging.basicConfig(format="trimtab: %(message)s", level=logging.WARNING)
    settings: TrainConfig | GroundedConfig | None = None
    try:
        settings = config.load(path, overrides, objective)
        with pretrained.without_bars():
            if isinstance(settings, GroundedConfig):
                job.run(settings)
            else:
                run(settings)
    except (ValueError, OSError, ImportError) as error:
        sys.stderr.write(f"trimtab: {' '.join(str(error).split())}\n")
        return 1
    except KeyboardInterrupt:
        where = f" from {run_directory(settings.out)}" if settings else ""
        sys.stderr.write(f"\ntrimtab: interrupted; run the same command to resume{where}.\n")
        return INTERRUPTED
    finally:
        # A process that exits while the group's threads run may be aborted.
        if distributed.is_initialized():
            distributed.destroy_process_group()
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m trimtab_models.training", description="Train a scorer."
    )
    parser.add_argument("objective", nargs="?", help=f"one of {', '.join(config.NAMES)}")
    parser.add_argument("--config", type=Path, help="a YAML file")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a setting, as in lora.r=8",
    )
    options = parser.parse_args(arguments)
    return command(options.objective, options.config, options.set)


if __name__ == "__main__":
    sys.exit(main())
