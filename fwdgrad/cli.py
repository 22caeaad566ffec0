"""The command line: Hydra with errors of one line, resumption, and a record of how each job ended."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from fwdgrad import cli_errors, experiment
from fwdgrad.cli_resume import Resumption, find_resumption
from fwdgrad.cli_sweeps import SweepFolder, failures, write_sweep_results
from fwdgrad.config import TrainConfig
from fwdgrad.training import write_status

log = logging.getLogger("fwdgrad")

_PACKAGED = Path(__file__).parent / "configs"
CONFIGS = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parent.parent / "configs"

Task = Callable[[DictConfig, Path], float]


def register_schema(name: str, node: type) -> None:
    """Make a dataclass available to the configuration files as ``- name`` in their defaults list."""
    ConfigStore.instance().store(name, node)


def hydra_main(config_name: str, resumable: bool = True) -> Callable[[Task], Callable[[], None]]:
    """Turn ``task(cfg, folder) -> objective`` into a command.

    A wrong key, choice or value ends in one line on the standard error and exit code 2; a task that fails leaves
    ``status.json`` and ``traceback.txt`` in its run folder, one line on the standard error and exit code 1. Set
    ``HYDRA_FULL_ERROR=1`` to see tracebacks. ``resume=FOLDER`` runs that folder's configuration again, in that folder,
    with any further overrides.

    Args:
        config_name: the file in ``configs/`` without its ending.
        resumable: whether the task can go on with a run.
    """

    def decorate(task: Task) -> Callable[[], None]:
        def command() -> None:
            arguments = sys.argv
            full_error = os.environ.get("HYDRA_FULL_ERROR") == "1"
            try:
                with _quiet():
                    _run(task, config_name, resumable)
            except KeyboardInterrupt as interrupt:
                print("; ".join(["interrupted", *getattr(interrupt, "__notes__", [])]), file=sys.stderr)
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


class JobsFailedError(RuntimeError):
    """One or more jobs of a sweep failed."""


def _run(task: Task, config_name: str, resumable: bool) -> None:
    """Run the task as the command line says; raise what went wrong."""
    cli_errors.check_flags(sys.argv[1:])
    resumption = find_resumption(sys.argv[1:])
    if resumption is not None and not resumable:
        raise experiment.ConfigError("resume has no meaning here; name the dataset, the model and the method")
    if resumption is not None:
        sys.argv = [sys.argv[0], *resumption.arguments]
    errors: list[Exception] = []
    SweepFolder.current = None

    @wraps(task)
    def job(cfg: DictConfig) -> float | None:
        # An error is kept, not raised: Hydra would print it in its own way, and end a sweep that has more to do.
        return _run_job(task, cfg, resumption, errors)

    try:
        hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=config_name)(job)()
    except Exception as error:
        _check_sweep(error)
        raise
    _check_sweep()
    if errors and SweepFolder.current is None:
        raise errors[0]


def _check_sweep(cause: Exception | None = None) -> None:
    """Complete the table of the sweep that was run, if one was, and raise if a job of it failed."""
    sweep = SweepFolder.current
    if sweep is not None and sweep.is_dir():
        write_sweep_results(sweep)
        if (named := failures(sweep)) is not None:
            raise JobsFailedError(named) from cause


def _run_job(task: Task, cfg: DictConfig, resumption: Resumption | None, errors: list[Exception]) -> float | None:
    """Run one job; record in its folder, and in its sweep's table, how it ended. Return None if it failed."""
    settings = HydraConfig.get()
    folder = Path(settings.runtime.output_dir)
    sweep = Path(settings.sweep.dir) if settings.mode == RunMode.MULTIRUN else None
    if resumption is not None:
        sweep = resumption.sweep
        for line in resumption.differences(cfg):
            log.warning("%s", line)
    write_status(folder, "running")
    try:
        with warnings.catch_warnings():
            # Raised by PyTorch about itself when its own forward-mode formulas are loaded.
            warnings.filterwarnings("ignore", message=r"`torch\.jit", category=FutureWarning)
            warnings.showwarning = lambda message, *_: log.warning("%s", message)
            objective = task(cfg, folder)
        write_status(folder, "finished")
        return objective
    except KeyboardInterrupt as interrupt:
        write_status(folder, "interrupted")
        interrupt.add_note(f"go on with resume={folder}")
        raise
    except Exception as error:
        write_status(folder, "failed", error)
        error.add_note(f"see {folder / 'traceback.txt'}")
        errors.append(error)
        if resumption is not None and cli_errors.is_usage(error):
            resumption.restore()
        if settings.mode == RunMode.MULTIRUN:
            log.error("job %s failed: %s", folder.name, cli_errors.sentence(error))
        return None
    finally:
        if sweep is not None:
            write_sweep_results(sweep)


@contextmanager
def _quiet() -> Iterator[None]:
    """Let Hydra raise what went wrong, instead of printing it and ending the process."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = before


register_schema("train_schema", TrainConfig)


@hydra_main(config_name="train")
def train(cfg: Any, folder: Path) -> float:
    """Train a model as configured by ``configs/train.yaml`` and the command line."""
    return experiment.run(cfg, folder)
