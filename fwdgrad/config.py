"""The typed shape of the configuration: every key of ``configs/train.yaml`` with its type.

A value of ``"???"`` must come from a file in ``configs/`` or from the command line.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

MISSING: Any = "???"


@dataclass
class DatasetConfig:
    """Which data, in which batches."""

    name: str = MISSING
    root: str | None = None
    download: bool = True
    batch_size: int = 64
    micro_batch_size: int | None = None
    eval_batch_size: int = 1000
    validation_size: int = MISSING
    drop_last: bool = False
    input_shape: list[int] = MISSING
    num_classes: int = MISSING


@dataclass
class TrainConfig:
    """A training run. ``epochs`` or ``max_steps`` says how long."""

    dataset: DatasetConfig = MISSING
    model: dict[str, Any] = field(default_factory=dict)
    optimization: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    scheduler: dict[str, Any] = field(default_factory=dict)
    engine: str | None = None
    epochs: int | None = 10
    max_steps: int | None = None
    seed: int = 0
    device: str = "auto"
    precision: str = "float32"
    compile: bool = False
    ema_decay: float | None = None
    log_every: int = 10
    checkpoint_every: int | None = None
    diagnose_every: int | None = None
    diagnose_samples: int = 32
    progress: bool | None = None
    name: str = MISSING
    resume: str | None = None


@dataclass
class DoctorConfig:
    """A check of a model on a batch of a dataset."""

    dataset: DatasetConfig = MISSING
    model: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    training: bool = True
    parts: bool = True
    json: str | None = None
    name: str = MISSING
