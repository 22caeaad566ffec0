"""From a configuration to objects: dataset, model, method, optimizer, scheduler, and the trainer that holds them."""

from __future__ import annotations

import inspect
import logging
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from fwdgrad.data import Batches, Dataset, load_dataset
from fwdgrad.estimators import Estimator
from fwdgrad.experiment.checks import LOOP_KEYS, check_config
from fwdgrad.experiment.errors import ConfigError, first_line, section
from fwdgrad.training import Tracker, Trainer, load_checkpoint
from fwdgrad.training.auto_rate import AUTO, measure_learning_rate
from fwdgrad.training.averaging import make_average
from fwdgrad.training.device import check_precision, resolve_device
from fwdgrad.training.estimation import Context, make_closure

log = logging.getLogger("fwdgrad")

# The key of ``optimization`` that names a function of the model and example inputs, where a method needs one.
PREPARE_KEY = "prepare"

# Arguments of a scheduler that mean the length of the run, when they are null.
LENGTH_KEYS = ("T_max", "total_steps")


def make_trainer(cfg: DictConfig, folder: Path) -> Trainer:
    """Build everything a run consists of, restored from the last checkpoint if ``cfg.resume`` names a run.

    Raises:
        ConfigError: naming the section of the configuration that could not be built.
    """
    check_config(cfg)
    with section("device"):
        device = resolve_device(cfg.device)
        check_precision(cfg.precision, device)
    torch.manual_seed(cfg.seed)
    with section("dataset"):
        dataset = make_dataset(cfg.dataset, cfg.seed).to(device)
        batches = Batches(dataset.train, cfg.dataset.batch_size, seed=cfg.seed, drop_last=cfg.dataset.drop_last)
    max_steps = cfg.max_steps if cfg.max_steps is not None else cfg.epochs * batches.steps_per_epoch
    model = prepare_model(cfg, make_model(cfg, dataset), dataset).to(device)
    with section("resume"):
        state = load_checkpoint(Path(cfg.resume), device) if cfg.resume else None
    context = partial(torch.autocast, device.type, torch.bfloat16) if cfg.precision == "bfloat16" else nullcontext
    if cfg.optimization.learning_rate == AUTO:
        with section("optimization"):
            cfg = _with_measured_learning_rate(cfg, model, batches, context, state)
    with section("optimizer"):
        optimizer = hydra.utils.instantiate(cfg.optimizer, params=_trainable(model))
    with section("scheduler"):
        scheduler = _make_scheduler(cfg.scheduler, optimizer, max_steps)
    with section("optimization"):
        estimator = make_estimator(cfg, optimizer)

    trainer = Trainer(
        model=model,
        dataset=dataset,
        batches=batches,
        estimator=estimator,
        optimizer=optimizer,
        scheduler=scheduler,
        tracker=Tracker(folder),
        folder=folder,
        max_steps=max_steps,
        eval_batch_size=cfg.dataset.eval_batch_size,
        context=context,
        micro_batch_size=cfg.dataset.micro_batch_size,
        clip_norm=cfg.optimization.clip_norm,
        average=make_average(model, cfg.ema_decay) if cfg.ema_decay is not None else None,
        log_every=cfg.log_every,
        checkpoint_every=cfg.checkpoint_every,
        diagnose_every=cfg.diagnose_every,
        diagnose_samples=cfg.diagnose_samples,
        show_progress=cfg.progress,
        schedule=_schedule(cfg, max_steps),
    )
    if state is not None:
        with section("resume"):
            trainer.load_state_dict(state)
    return trainer


def make_model(cfg: DictConfig, dataset: Dataset) -> nn.Module:
    """Instantiate ``cfg.model`` and check on two examples that it maps inputs to one logit per class."""
    with section("model"):
        model = hydra.utils.instantiate(cfg.model)
        if not isinstance(model, nn.Module):
            raise ConfigError(f"_target_ must build a torch.nn.Module, got {type(model).__name__}")
        model.eval()
        inputs = next(Batches(dataset.train, 2, shuffle=False).epoch(0))[0].cpu()
        expected = (2, dataset.num_classes)
        try:
            with torch.no_grad():
                outputs = model(inputs)
        except Exception as error:  # whatever a user's forward raises
            raise ConfigError(
                f"{type(model).__name__} does not take {tuple(inputs.shape)} inputs: {first_line(error)}"
            ) from error
        if not isinstance(outputs, torch.Tensor) or tuple(outputs.shape) != expected:
            arrived = tuple(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs).__name__
            raise ConfigError(
                f"{type(model).__name__} must map {tuple(inputs.shape)} inputs to {expected} logits for "
                f"dataset={dataset.name}, got {arrived}; pass it num_classes: ${{dataset.num_classes}}"
            )
        return model.train()


def prepare_model(cfg: DictConfig, model: nn.Module, dataset: Dataset) -> nn.Module:
    """Turn the model into one that the method can train, where the method names a function that does."""
    if PREPARE_KEY not in cfg.optimization or cfg.optimization[PREPARE_KEY] is None:
        return model
    with section("model"):
        inputs = next(Batches(dataset.train, 2, shuffle=False).epoch(0))[0].cpu()
        return hydra.utils.get_method(cfg.optimization[PREPARE_KEY])(model.eval(), inputs).train()


def make_estimator(cfg: DictConfig, optimizer: torch.optim.Optimizer | None = None) -> Estimator:
    """Instantiate the method of ``cfg.optimization``, with ``cfg.engine`` and ``cfg.compile`` where they are set.

    An estimator with an ``optimizer`` argument is given the optimizer that will apply its estimate.
    """
    arguments = {key: value for key, value in cfg.optimization.items() if key not in (*LOOP_KEYS, PREPARE_KEY)}
    accepted = inspect.signature(hydra.utils.get_object(arguments["_target_"])).parameters
    for key, given in (("engine", cfg.engine is not None), ("compile", cfg.compile)):
        if given:
            if key not in accepted:
                raise ConfigError(f"{key}={cfg[key]} has no meaning for {method_of(cfg)}; leave {key} out")
            arguments[key] = cfg[key]
    injected = {"optimizer": optimizer} if "optimizer" in accepted else {}
    return hydra.utils.instantiate(arguments, **injected)


def _with_measured_learning_rate(
    cfg: DictConfig, model: nn.Module, batches: Batches, context: Context, state: dict[str, Any] | None
) -> DictConfig:
    """Return the configuration with a number in the place of ``learning_rate=auto``; a resumed run keeps its number."""
    cfg = cfg.copy()
    if state is not None:
        cfg.optimization.learning_rate = state["schedule"]["optimizer"]["lr"]
        return cfg
    cfg.optimization.learning_rate = 1.0  # any, to build the optimizer with
    optimizer = hydra.utils.instantiate(cfg.optimizer, params=_trainable(model))
    closure = partial(make_closure, context)
    rate = measure_learning_rate(model.train(), make_estimator(cfg), optimizer, batches.epoch(0), closure)
    log.info("optimization.learning_rate=auto: %.3g", rate)
    cfg.optimization.learning_rate = rate
    return cfg


def make_dataset(cfg: DictConfig, seed: int) -> Dataset:
    """Load the dataset of ``cfg``, a ``dataset`` section, and check that it has the shapes that it is said to have."""
    dataset = load_dataset(cfg.name, cfg.root, cfg.download, cfg.validation_size, seed)
    for key in ("input_shape", "num_classes"):
        configured = tuple(cfg[key]) if key == "input_shape" else cfg[key]
        if configured != getattr(dataset, key):
            raise ConfigError(f"{key} is {getattr(dataset, key)} in {cfg.name}, but {configured} is configured")
    return dataset


def _make_scheduler(cfg: DictConfig, optimizer: torch.optim.Optimizer, max_steps: int) -> Any:
    """Instantiate the scheduler; ``T_max`` or ``total_steps`` left null means the length of the run."""
    arguments = {
        key: max(max_steps, 1) if key in LENGTH_KEYS and value is None else value for key, value in cfg.items()
    }
    return hydra.utils.instantiate(arguments, optimizer=optimizer)


def _schedule(cfg: DictConfig, max_steps: int) -> dict[str, Any]:
    """Return all that the learning rate and the optimizer's other settings follow from, as plain values."""
    of_length = any(key in LENGTH_KEYS and value is None for key, value in cfg.scheduler.items())
    sections = {name: OmegaConf.to_container(cfg[name], resolve=True) for name in ("optimizer", "scheduler")}
    return {**sections, "steps": max_steps if of_length else None}


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    trainable = [param for param in model.parameters() if param.requires_grad]
    if not trainable:
        raise ConfigError("the model has no parameter with requires_grad=True, so there is nothing to train")
    return trainable


def method_of(cfg: DictConfig) -> str:
    """Return the name of the estimator of ``cfg.optimization``."""
    return str(cfg.optimization["_target_"]).rsplit(".", 1)[-1]
