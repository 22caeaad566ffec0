"""Values that no part of a run could be built from, named before anything is."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from fwdgrad.experiment.errors import ConfigError
from fwdgrad.training.auto_rate import AUTO

# The keys of ``optimization`` that belong to the run; all others are arguments of the method.
LOOP_KEYS = ("learning_rate", "clip_norm")


def check_config(cfg: DictConfig) -> None:
    """Raise ConfigError for a value out of range."""
    check_complete(cfg)
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


def check_complete(cfg: DictConfig) -> None:
    """Raise ConfigError for keys without a value."""
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise ConfigError(f"no value for {', '.join(missing)}; give it on the command line")
