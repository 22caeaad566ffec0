"""What is done with what a configuration builds: training, checking, diagnosing."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig

from fwdgrad.data import Batches
from fwdgrad.diagnostics import Diagnosis, draw
from fwdgrad.experiment.building import (
    make_dataset,
    make_estimator,
    make_model,
    make_trainer,
    method_of,
    prepare_model,
)
from fwdgrad.experiment.checks import check_complete
from fwdgrad.experiment.errors import ConfigError, section
from fwdgrad.model_check import Report, check_model
from fwdgrad.training import list_checkpoints
from fwdgrad.training.device import peak_memory_bytes

log = logging.getLogger("fwdgrad")


def run(cfg: DictConfig, folder: Path) -> float:
    """Train and evaluate as configured; return the final validation accuracy, the objective of a sweep.

    Args:
        cfg: a composed ``train`` configuration.
        folder: the run folder, into which everything is written.
    """
    held = list_checkpoints(folder / "checkpoints")
    if held and not cfg.resume:
        raise ConfigError(f"{folder} holds a run already; go on with it by resume={folder}, or name another folder")
    trainer = make_trainer(cfg, folder)
    started = time.perf_counter()
    log.info("%s: %d steps, run folder %s", cfg.name, trainer.max_steps, folder)
    try:
        validation = trainer.run()
        test = trainer.evaluate("test")
        metrics = {
            "test_accuracy": test.accuracy,
            "test_loss": test.loss,
            "val_accuracy": validation.accuracy,
            "val_loss": validation.loss,
            "train_loss": trainer.train_loss,
            "steps": trainer.step,
            "epochs": trainer.step / trainer.batches.steps_per_epoch,
            "seconds": time.perf_counter() - started,
            "seconds_per_step": trainer.seconds / max(trainer.step, 1),
            "examples_per_second": trainer.step * cfg.dataset.batch_size / max(trainer.seconds, 1e-9),
            "peak_memory_bytes": peak_memory_bytes(trainer.dataset.train.inputs.device),
            "seed": cfg.seed,
            "method": method_of(cfg),
        }
        if trainer.average is not None:
            metrics["test_accuracy_without_average"] = trainer.evaluate("test", averaged=False).accuracy
        trainer.tracker.scalars(trainer.step, {"test/accuracy": test.accuracy, "test/loss": test.loss})
        trainer.tracker.finish(metrics, _hparams(cfg))
    finally:
        trainer.tracker.close()
    log.info("test accuracy %.4f  test loss %.4f  after %d steps", test.accuracy, test.loss, trainer.step)
    return validation.accuracy


def check(cfg: DictConfig, methods: Mapping[str, DictConfig]) -> Report:
    """Check the model of a composed ``doctor`` configuration on a batch of its dataset.

    Args:
        cfg: the configuration.
        methods: the methods to try, each as a composed ``train`` configuration, by word.
    """
    check_complete(cfg)
    torch.manual_seed(cfg.seed)
    with section("dataset"):
        dataset = make_dataset(cfg.dataset, cfg.seed)
        batches = Batches(dataset.train, cfg.dataset.batch_size, seed=cfg.seed)
    model = make_model(cfg, dataset).train(cfg.training)
    inputs, targets = next(batches.epoch(0))
    with section("model"):
        return check_model(
            model,
            lambda model: F.cross_entropy(model(inputs), targets, reduction="none"),
            methods={word: partial(make_estimator, method) for word, method in methods.items()},
            prepare={word: partial(prepare_model, method, dataset=dataset) for word, method in methods.items()},
            parts=cfg.parts,
            seed=cfg.seed,
        )


def diagnose(cfg: DictConfig, folder: Path) -> Diagnosis:
    """Measure the configured method on the model as it starts, on the first batch; leave a picture in the folder."""
    trainer = make_trainer(cfg, folder)
    diagnosis = trainer.diagnose(*next(trainer.batches.epoch(0)))
    draw(diagnosis, cfg.name, folder / "diagnosis.png")
    return diagnosis


def _hparams(cfg: DictConfig) -> dict[str, Any]:
    """Return the settings that make runs differ, flat, for TensorBoard's HParams tab."""
    flat: dict[str, Any] = {"method": method_of(cfg), "dataset": cfg.dataset.name, "seed": cfg.seed}
    flat |= {key: str(cfg[key]["_target_"]).rsplit(".", 1)[-1] for key in ("model", "optimizer", "scheduler")}
    flat |= {"dataset.batch_size": cfg.dataset.batch_size, "precision": cfg.precision}
    flat |= {} if cfg.ema_decay is None else {"ema_decay": cfg.ema_decay}
    for group in ("optimization", "optimizer", "scheduler", "model"):
        for key, value in cfg[group].items():
            # The optimizer's rate, the method's seed and the shapes follow from what is shown already.
            if key not in ("_target_", "lr", "seed", "input_shape", "num_classes") and value is not None:
                flat[f"{group}.{key}"] = value if isinstance(value, bool | int | float | str) else str(value)
    return flat
