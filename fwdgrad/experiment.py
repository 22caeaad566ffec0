"""From a configuration to objects to a finished run."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import torch
import torch.nn.functional as F
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from fwdgrad.data import Batches, Dataset, load_dataset
from fwdgrad.diagnosis import Report, check_model
from fwdgrad.diagnostics import Diagnosis, draw
from fwdgrad.estimators import Estimator
from fwdgrad.training import Tracker, Trainer, list_checkpoints, load_checkpoint
from fwdgrad.training.auto_rate import AUTO, measure_learning_rate
from fwdgrad.training.averaging import make_average
from fwdgrad.training.device import check_precision, peak_memory_bytes, resolve_device
from fwdgrad.training.loop import Context, make_closure

log = logging.getLogger("fwdgrad")

# The keys of ``optimization`` that belong to the run; all others are arguments of the method.
LOOP_KEYS = ("learning_rate", "clip_norm")

# The key of ``optimization`` that names a function of the model and example inputs, where a method needs one.
PREPARE_KEY = "prepare"

# Arguments of a scheduler that mean the length of the run, when they are null.
LENGTH_KEYS = ("T_max", "total_steps")


class ConfigError(ValueError):
    """The configuration asks for something that cannot be had; the message says what and what to do."""


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
            "method": _method(cfg),
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
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise ConfigError(f"no value for {', '.join(missing)}; give it on the command line")
    torch.manual_seed(cfg.seed)
    with _section("dataset"):
        dataset = _make_dataset(cfg.dataset, cfg.seed)
        batches = Batches(dataset.train, cfg.dataset.batch_size, seed=cfg.seed)
    model = make_model(cfg, dataset).train(cfg.training)
    inputs, targets = next(batches.epoch(0))
    with _section("model"):
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


def make_trainer(cfg: DictConfig, folder: Path) -> Trainer:
    """Build everything a run consists of, restored from the last checkpoint if ``cfg.resume`` names a run.

    Raises:
        ConfigError: naming the section of the configuration that could not be built.
    """
    check_config(cfg)
    with _section("device"):
        device = resolve_device(cfg.device)
        check_precision(cfg.precision, device)
    torch.manual_seed(cfg.seed)
    with _section("dataset"):
        dataset = _make_dataset(cfg.dataset, cfg.seed).to(device)
        batches = Batches(dataset.train, cfg.dataset.batch_size, seed=cfg.seed, drop_last=cfg.dataset.drop_last)
    max_steps = cfg.max_steps if cfg.max_steps is not None else cfg.epochs * batches.steps_per_epoch
    model = prepare_model(cfg, make_model(cfg, dataset), dataset).to(device)
    with _section("resume"):
        state = load_checkpoint(Path(cfg.resume), device) if cfg.resume else None
    context = partial(torch.autocast, device.type, torch.bfloat16) if cfg.precision == "bfloat16" else nullcontext
    if cfg.optimization.learning_rate == AUTO:
        with _section("optimization"):
            cfg = _with_measured_learning_rate(cfg, model, batches, context, state)
    with _section("optimizer"):
        optimizer = hydra.utils.instantiate(cfg.optimizer, params=_trainable(model))
    with _section("scheduler"):
        scheduler = _make_scheduler(cfg.scheduler, optimizer, max_steps)
    with _section("optimization"):
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
        with _section("resume"):
            trainer.load_state_dict(state)
    return trainer


def make_model(cfg: DictConfig, dataset: Dataset) -> nn.Module:
    """Instantiate ``cfg.model`` and check on two examples that it maps inputs to one logit per class."""
    with _section("model"):
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
                f"{type(model).__name__} does not take {tuple(inputs.shape)} inputs: {_first_line(error)}"
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
    with _section("model"):
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
                raise ConfigError(f"{key}={cfg[key]} has no meaning for {_method(cfg)}; leave {key} out")
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


def check_config(cfg: DictConfig) -> None:
    """Raise ConfigError for a value out of range."""
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise ConfigError(f"no value for {', '.join(missing)}; give it on the command line")
    optimization = cfg.optimization
    for section, key, value, minimum in (
        ("", "epochs", cfg.epochs, 0),
        ("", "max_steps", cfg.max_steps, 0),
        ("", "log_every", cfg.log_every, 1),
        ("", "checkpoint_every", cfg.checkpoint_every, 1),
        ("", "diagnose_every", cfg.diagnose_every, 1),
        ("", "diagnose_samples", cfg.diagnose_samples, 2),
        ("dataset.", "batch_size", cfg.dataset.batch_size, 1),
        ("dataset.", "micro_batch_size", cfg.dataset.micro_batch_size, 1),
        ("dataset.", "eval_batch_size", cfg.dataset.eval_batch_size, 1),
    ):
        if value is not None and value < minimum:
            raise ConfigError(f"{section}{key} must be at least {minimum}, got {value}")
    if cfg.ema_decay is not None and not 0 < cfg.ema_decay < 1:
        raise ConfigError(f"ema_decay must be between 0 and 1, got {cfg.ema_decay}")
    if cfg.diagnose_every is not None and cfg.compile:
        raise ConfigError(
            "diagnose_every works on copies of the model, which compile=true does not serve; leave one out"
        )
    if cfg.epochs is None and cfg.max_steps is None:
        raise ConfigError("epochs or max_steps must be set, both are null")
    for key in LOOP_KEYS:
        value = optimization[key]
        optional = key != "learning_rate"
        if (optional and value is None) or (not optional and value == AUTO):
            continue
        if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
            words = "" if optional else f", or {AUTO}"
            raise ConfigError(f"optimization.{key} must be a positive number{words}, got {value!r}")


@contextmanager
def _section(name: str) -> Iterator[None]:
    """Turn any error while a section is built into one ConfigError that names the section."""
    try:
        yield
    except InstantiationException as error:
        raise ConfigError(_in_section(name, error.__cause__ or error)) from error
    except (ValueError, TypeError, RuntimeError, ImportError, AttributeError, OSError, OmegaConfBaseException) as error:
        raise ConfigError(_in_section(name, error)) from error


def _in_section(name: str, error: BaseException) -> str:
    line = _first_line(error)
    return line if line.startswith(name) else f"{name}: {line}"


def _first_line(error: BaseException) -> str:
    lines = (str(error).strip() or type(error).__name__).splitlines()
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


def _make_dataset(cfg: DictConfig, seed: int) -> Dataset:
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


def _method(cfg: DictConfig) -> str:
    return str(cfg.optimization["_target_"]).rsplit(".", 1)[-1]


def _hparams(cfg: DictConfig) -> dict[str, Any]:
    """Return the settings that make runs differ, flat, for TensorBoard's HParams tab."""
    flat: dict[str, Any] = {"method": _method(cfg), "dataset": cfg.dataset.name, "seed": cfg.seed}
    flat |= {key: str(cfg[key]["_target_"]).rsplit(".", 1)[-1] for key in ("model", "optimizer", "scheduler")}
    flat |= {"dataset.batch_size": cfg.dataset.batch_size, "precision": cfg.precision}
    flat |= {} if cfg.ema_decay is None else {"ema_decay": cfg.ema_decay}
    for section in ("optimization", "optimizer", "scheduler", "model"):
        for key, value in cfg[section].items():
            # The optimizer's rate, the method's seed and the shapes follow from what is shown already.
            if key not in ("_target_", "lr", "seed", "input_shape", "num_classes") and value is not None:
                flat[f"{section}.{key}"] = value if isinstance(value, bool | int | float | str) else str(value)
    return flat
