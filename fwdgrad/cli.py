"""The command line: Hydra with errors of one line, resumption, and a record of how each job ended."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from fwdgrad import cli_errors, experiment
from fwdgrad.config import TrainConfig
from fwdgrad.training import write_status, write_sweep_results

log = logging.getLogger("fwdgrad")

_PACKAGED = Path(__file__).parent / "configs"
CONFIGS = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parent.parent / "configs"


def register_schema(name: str, node: type) -> None:
    """Make a dataclass available to the configuration files as ``- name`` in their defaults list."""
    ConfigStore.instance().store(name, node)


def hydra_main(config_name: str) -> Callable[[Callable[[DictConfig, Path], float]], Callable[[], None]]:
    """Turn ``task(cfg, folder) -> objective`` into a command.

    A wrong key, choice or value ends in one line on the standard error and exit code 2; a task that fails leaves
    ``status.json`` and ``traceback.txt`` in its run folder, one line on the standard error and exit code 1. Set
    ``HYDRA_FULL_ERROR=1`` to see tracebacks. ``resume=FOLDER`` runs that folder's configuration again, in that folder,
    with any further overrides.

    Args:
        config_name: the file in ``configs/`` without its ending.
    """

    def decorate(task: Callable[[DictConfig, Path], float]) -> Callable[[], None]:
        @wraps(task)
        def job(cfg: DictConfig) -> float:
            return _run_job(task, cfg)

        def command() -> None:
            full_error = os.environ.get("HYDRA_FULL_ERROR") == "1"
            # Hydra then raises what went wrong, instead of printing it and ending the process.
            os.environ["HYDRA_FULL_ERROR"] = "1"
            # Raised by PyTorch about itself when its own forward-mode formulas are loaded.
            warnings.filterwarnings("ignore", message=r"`torch\.jit", category=FutureWarning)
            arguments = sys.argv
            try:
                sys.argv = [arguments[0], *cli_errors.with_resumed(arguments[1:])]
                hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=config_name)(job)()
            except KeyboardInterrupt:
                print("interrupted; go on with resume=<run folder>", file=sys.stderr)
                sys.exit(130)
            except Exception as error:
                if full_error:
                    raise
                print(f"error: {cli_errors.explain(error, CONFIGS, config_name, sys.argv[1:])}", file=sys.stderr)
                sys.exit(2 if cli_errors.is_usage(error) else 1)
            finally:
                sys.argv = arguments

        return command

    return decorate


def _run_job(task: Callable[[DictConfig, Path], float], cfg: DictConfig) -> float:
    """Run one job and record in its folder, and in its sweep's table, how it ended."""
    settings = HydraConfig.get()
    folder = Path(settings.runtime.output_dir)
    write_status(folder, "running")
    try:
        objective = task(cfg, folder)
    except KeyboardInterrupt as interrupt:
        write_status(folder, "interrupted", interrupt)
        raise
    except Exception as error:
        write_status(folder, "failed", error)
        log.error("job failed, see %s: %s", folder / "status.json", str(error).splitlines()[0] if str(error) else error)
        raise
    else:
        write_status(folder, "finished")
    finally:
        if settings.mode == RunMode.MULTIRUN:
            sweep = Path(settings.sweep.dir)
            write_sweep_results(sweep, dict(_jobs(sweep)))
    return objective


def _jobs(sweep: Path) -> Iterable[tuple[str, list[str]]]:
    for path in sweep.glob("*/.hydra/overrides.yaml"):
        yield path.parent.parent.name, [str(item) for item in OmegaConf.load(path)]


register_schema("train_schema", TrainConfig)


@hydra_main(config_name="train")
def train(cfg: Any, folder: Path) -> float:
    """Train a model as configured by ``configs/train.yaml`` and the command line."""
    return experiment.run(cfg, folder)
