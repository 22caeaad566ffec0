"""The class that stands in front of a module's own while Lightning fits it with an estimator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torchmetrics import Metric

from fwdgrad.estimators import Estimator
from fwdgrad.integrations.replicas import mean_over_ranks
from fwdgrad.integrations.values import plain, plain_copy


@dataclass
class Step:
    """What a module keeps from ``training_step`` to ``backward``."""

    estimator: Estimator
    average: bool
    """Whether the processes average their estimates."""
    logged: list[Any] | None = None
    """Calls of ``log`` in the present evaluation; None outside of one."""
    estimates: list[Tensor | None] = field(default_factory=list)


class SkipStepError(Exception):
    """``training_step`` returned None."""


class Estimated(LightningModule):
    """Runs ``training_step`` inside an estimator, and adds the estimate to ``.grad`` in ``backward``.

    An estimator may evaluate ``training_step`` several times, on tensors that carry tangents. The first evaluation is
    at the parameters themselves: what it returned, logged and counted in its metrics is what Lightning gets to see.
    """

    fwdgrad_step: Step

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        step = self.fwdgrad_step
        first: dict[str, Any] = {}

        def closure(module: LightningModule) -> Tensor:
            step.logged = []
            with self.trainer.precision_plugin.train_step_context():
                result = super(Estimated, self).training_step(*args, **kwargs)
            if result is None:
                raise SkipStepError
            if not first:
                metrics = [metric for metric in self.modules() if isinstance(metric, Metric)]
                states = [(metric, plain_copy(vars(metric))) for metric in metrics]
                first.update(output=plain(result), logged=step.logged, states=states)
            return result["loss"] if isinstance(result, Mapping) else result

        params = [param for param in self.parameters() if param.requires_grad]
        earlier = [param.grad for param in params]
        for param in params:
            param.grad = None
        try:
            # Autocast belongs to the forward pass alone: the estimate is put together in the parameters' precision.
            with torch.autocast(self.device.type, enabled=False):
                loss = step.estimator(self, closure)
        except SkipStepError:
            return None
        finally:
            step.logged = None
            step.estimates = [param.grad for param in params]
            for param, grad in zip(params, earlier, strict=True):
                param.grad = grad
        for metric, state in first["states"]:
            vars(metric).update(state)
        for positional, named in first["logged"]:
            self.log(*positional, **named)
        return {**first["output"], "loss": loss} if isinstance(first["output"], Mapping) else loss

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        step = self.fwdgrad_step
        params = (param for param in self.parameters() if param.requires_grad)
        for param, estimate in zip(params, step.estimates, strict=True):
            if estimate is not None:
                estimate = mean_over_ranks(estimate) if step.average else estimate
                estimate.div_(self.trainer.accumulate_grad_batches)  # as Lightning has divided the loss
                param.grad = estimate if param.grad is None else param.grad.add_(estimate)
        step.estimates = []

    def log(self, *args: Any, **kwargs: Any) -> None:
        logged = self.fwdgrad_step.logged
        if logged is None:
            super().log(*args, **kwargs)
        else:
            logged.append(plain((args, kwargs)))
