"""Training loop, evaluation, checkpoints and tracking."""

from fwdgrad.training.checkpoint import CheckpointError, list_checkpoints, load_checkpoint, save_checkpoint
from fwdgrad.training.evaluation import Score, evaluate
from fwdgrad.training.loop import NonFiniteLossError, Trainer
from fwdgrad.training.schedules import exponential_decay
from fwdgrad.training.tracking import Tracker, write_status

__all__ = [
    "CheckpointError",
    "NonFiniteLossError",
    "Score",
    "Tracker",
    "Trainer",
    "evaluate",
    "exponential_decay",
    "list_checkpoints",
    "load_checkpoint",
    "save_checkpoint",
    "write_status",
]
