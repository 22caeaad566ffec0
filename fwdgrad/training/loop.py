"""The training loop: the same for every estimator."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel

from fwdgrad.data import Batches, Dataset
from fwdgrad.diagnostics import Diagnosis, NoGradientError, diagnose
from fwdgrad.estimators import Estimator
from fwdgrad.training.checkpoint import check_same_kinds, check_same_model, list_checkpoints, save_checkpoint
from fwdgrad.training.estimation import Context, estimate, make_closure
from fwdgrad.training.evaluation import Score, evaluate
from fwdgrad.training.gradients import clip_gradients, gradient_norm
from fwdgrad.training.interrupts import Interrupts
from fwdgrad.training.progress import Progress
from fwdgrad.training.schedules import advance_schedule, load_optimizer_buffers
from fwdgrad.training.tracking import Tracker

log = logging.getLogger("fwdgrad")


class NonFiniteLossError(RuntimeError):
    """The loss became infinite or not a number."""


@dataclass
class Trainer:
    """Trains a classifier with any estimator, evaluates, records and checkpoints it.

    The state of a run is a function of its settings and its step: the batches follow from (seed, epoch), the directions
    from (seed, step). A checkpoint therefore holds the step and everything that changes, and a resumed run ends as the
    run that was never stopped.
    """

    model: nn.Module
    dataset: Dataset
    batches: Batches
    estimator: Estimator
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    tracker: Tracker
    folder: Path
    max_steps: int
    eval_batch_size: int
    context: Context
    """Entered around every forward pass: autocast, or nothing."""
    micro_batch_size: int | None = None
    """Examples in a forward pass, if not all of a batch."""
    clip_norm: float | None = None
    average: AveragedModel | None = None
    """Of the weights; evaluated in their place."""
    log_every: int = 10
    checkpoint_every: int | None = None
    """In steps; besides, a checkpoint is written after every evaluation."""
    diagnose_every: int | None = None
    """In steps: measure the estimates against the exact gradient, which leaves the run as it is."""
    diagnose_samples: int = 32
    show_progress: bool | None = None
    schedule: dict[str, Any] = field(default_factory=dict)
    """The settings of the optimizer and the scheduler; a run resumed with others uses those from its first step on."""

    step: int = 0
    seconds: float = 0.0
    """Spent in training steps, without evaluation and checkpoints."""
    train_loss: float = math.nan
    """Mean over the steps of the last epoch, or of what was run of it."""
    _loss_sum: float = 0.0
    _loss_count: int = 0
    _pending: list[Tensor] = field(default_factory=list)
    _started: float = 0.0
    _last_line: float = -math.inf

    def run(self) -> Score:
        """Train up to ``max_steps``; return the score on the validation split."""
        self.tracker.start(self.step)
        self.model.train()
        validation = None
        progress = Progress(self.max_steps, self.step, self.show_progress)
        try:
            with Interrupts() as interrupts:
                while self.step < self.max_steps:
                    epoch, position = divmod(self.step, self.batches.steps_per_epoch)
                    self._started = time.perf_counter()
                    for inputs, targets in self.batches.epoch(epoch, position):
                        self._train_step(inputs, targets, progress)
                        if self.step == self.max_steps or (interrupts.requested and not self._at_epoch_end()):
                            break
                    if self._at_epoch_end():
                        validation = self._end_epoch(progress)
                    else:
                        self._stop_clock()
                        self.save()
                    if interrupts.requested:
                        raise KeyboardInterrupt
        finally:
            progress.close()
        return validation or self.evaluate("validation")

    def diagnose(self, inputs: Tensor, targets: Tensor) -> Diagnosis:
        """Measure the next estimates of a batch's gradient against the exact gradient."""
        closure = make_closure(self.context, inputs, targets)
        return diagnose(self.model, closure, self.estimator, self.diagnose_samples)

    def evaluate(self, split: str, averaged: bool = True) -> Score:
        """Score the model, or where there is one its average, on the ``train``, ``validation`` or ``test`` split."""
        model = self.average.module if self.average is not None and averaged else self.model
        return evaluate(model, getattr(self.dataset, split), self.eval_batch_size, self.context())

    def save(self) -> Path:
        """Write a checkpoint of the present step.

        Raises:
            NonFiniteLossError: if a loss since the last check, or a parameter, is not finite.
        """
        self._check_losses()
        for name, param in self.model.named_parameters():
            if not torch.isfinite(param).all():
                raise self._non_finite(f"parameter {name!r} is not finite after step {self.step}")
        return save_checkpoint(self.folder / "checkpoints", self.step, self.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """Return everything a run needs to go on."""
        return {
            "kinds": self._kinds(),
            "schedule": self.schedule,
            "step": self.step,
            "seconds": self.seconds,
            "loss": [self._loss_sum, self._loss_count, self.train_loss],
            "model": self.model.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "estimator": self.estimator.state_dict(),
            "random": torch.get_rng_state(),
            "cuda_random": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned.

        Raises:
            CheckpointError: if it is the state of another model, optimizer or method.
        """
        check_same_model(state, self.model)
        check_same_kinds(state["kinds"], self._kinds())
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            if state.get("average") is None:  # the run had none so far: it begins here
                self.average.module.load_state_dict(state["model"])
            else:
                self.average.load_state_dict(state["average"])
        if state["schedule"] == self.schedule:
            self.optimizer.load_state_dict(state["optimizer"])
            self.scheduler.load_state_dict(state["scheduler"])
        else:
            load_optimizer_buffers(self.optimizer, state["optimizer"])
            advance_schedule(self.scheduler, state["step"])
        self.estimator.load_state_dict(state["estimator"])
        self.step, self.seconds = state["step"], state["seconds"]
        self._loss_sum, self._loss_count, self.train_loss = state["loss"]
        torch.set_rng_state(state["random"].cpu())
        if state["cuda_random"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all([generator.cpu() for generator in state["cuda_random"]])

    def _kinds(self) -> dict[str, str]:
        return {"method": type(self.estimator).__name__, "optimizer": type(self.optimizer).__name__}

    def _train_step(self, inputs: Tensor, targets: Tensor, progress: Progress) -> None:
        self.optimizer.zero_grad()
        if self.diagnose_every is not None and (self.step + 1) % self.diagnose_every == 0:
            self._log_diagnosis(inputs, targets)
        loss = estimate(self.estimator, self.model, self.context, inputs, targets, self.micro_batch_size)
        norm = clip_gradients(self.optimizer, self.clip_norm) if self.clip_norm is not None else None
        # Parameters are changed only after this step's figures could be read off the estimate.
        log_now = (self.step + 1) % self.log_every == 0
        if log_now and norm is None:
            norm = gradient_norm(self.optimizer)
        learning_rate = self.optimizer.param_groups[0]["lr"]
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        if not isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step()
        self.step += 1
        self._pending.append(loss)
        if log_now:
            self._log(loss.item(), norm, learning_rate, progress)
        if self.checkpoint_every is not None and self.step % self.checkpoint_every == 0 and not self._at_epoch_end():
            self._stop_clock()
            self.save()
            self._started = time.perf_counter()

    def _log(self, loss: float, norm: Tensor | None, learning_rate: float, progress: Progress) -> None:
        self._stop_clock()
        self._check_losses()
        figures = {"train/loss": loss, "optim/lr": learning_rate, "perf/steps_per_second": self.step / self.seconds}
        if norm is not None:
            figures["grad/norm"] = norm.item()
        record = self.estimator.last
        if record is not None and record.directional_derivatives is not None:
            # The root mean square over the directions: its square estimates |gradient|^2.
            figures["grad/directional_derivative"] = record.directional_derivatives.square().mean().sqrt().item()
        if record is not None and record.skipped > 0:
            figures["grad/skipped"] = float(record.skipped)
        self.tracker.scalars(self.step, figures)
        progress.update(self.step, loss=loss)
        self._started = time.perf_counter()

    def _log_diagnosis(self, inputs: Tensor, targets: Tensor) -> None:
        self._stop_clock()
        try:
            self.tracker.scalars(self.step + 1, self.diagnose(inputs, targets).scalars())
        except NoGradientError as error:
            log.warning("no diagnosis at step %d: %s", self.step + 1, error)
        self._started = time.perf_counter()

    def _end_epoch(self, progress: Progress) -> Score:
        """Evaluate on the validation split, record a row and write a checkpoint."""
        self._stop_clock()
        self._check_losses()
        epoch = self.step / self.batches.steps_per_epoch
        score = self.evaluate("validation")
        self.train_loss = self._loss_sum / max(self._loss_count, 1)
        self._loss_sum, self._loss_count = 0.0, 0
        learning_rate = self.optimizer.param_groups[0]["lr"]
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(score.loss)
        self.tracker.row(
            {
                "step": self.step,
                "epoch": round(epoch, 4),
                "train_loss": self.train_loss,
                "val_loss": score.loss,
                "val_accuracy": score.accuracy,
                "learning_rate": learning_rate,
                "seconds": round(self.seconds, 3),
            }
        )
        self.tracker.scalars(self.step, {"val/loss": score.loss, "val/accuracy": score.accuracy})
        progress.update(self.step, accuracy=score.accuracy)
        # A line a second is enough to read; metrics.csv has every epoch.
        now = time.monotonic()
        last = self.step == self.max_steps
        level = logging.INFO if last or now - self._last_line >= 1.0 else logging.DEBUG
        self._last_line = now if level == logging.INFO else self._last_line
        log.log(
            level,
            "epoch %.4g  step %d  train loss %.4f  val loss %.4f  val accuracy %.4f  %.0f steps/s",
            *(epoch, self.step, self.train_loss, score.loss, score.accuracy, self.step / self.seconds),
        )
        self.save()
        return score

    def _at_epoch_end(self) -> bool:
        """Say whether an epoch, or the run, ends with the present step."""
        return self.step % self.batches.steps_per_epoch == 0 or self.step == self.max_steps

    def _stop_clock(self) -> None:
        self.seconds += time.perf_counter() - self._started

    def _check_losses(self) -> None:
        """Add the pending losses to the epoch's sum, or stop at the first that is not finite."""
        if not self._pending:
            return
        first = self.step - len(self._pending) + 1
        for offset, loss in enumerate(torch.stack(self._pending).tolist()):
            if not math.isfinite(loss):
                raise self._non_finite(f"the loss is {loss} at step {first + offset}")
            self._loss_sum += loss
            self._loss_count += 1
        self._pending.clear()

    def _non_finite(self, what: str) -> NonFiniteLossError:
        kept = list_checkpoints(self.folder / "checkpoints")
        return NonFiniteLossError(
            f"{what}; lower optimization.learning_rate or set optimization.clip_norm. "
            f"Last good checkpoint: {kept[-1] if kept else 'none yet'}"
        )
