"""Hugging Face: a ``Trainer`` that trains by any estimator.

    EstimatorTrainer(model, args, train_dataset=data, estimator=fwdgrad.ForwardGradient(engine="dual")).train()

The Trainer's own ``training_step`` runs inside the estimator, up to where it would call ``backward``: how it prepares
inputs, computes and scales the loss stays its business. Adapters of ``peft`` need nothing: frozen parameters get no
direction. ``accelerate`` in a loop of one's own needs nothing either: call the estimator instead of
``accelerator.backward``.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from fwdgrad.estimators import Backprop, Estimator
from fwdgrad.integrations.replicas import mean_over_ranks, reduce_derivatives

try:
    from accelerate import Accelerator
    from accelerate.utils import DistributedType
    from transformers import Trainer
except ImportError as error:
    raise ImportError(
        "fwdgrad.integrations.transformers needs transformers and accelerate: pip install 'fwdgrad[transformers]'"
    ) from error


class EstimatorMixin(Trainer):
    """Put in front of a ``Trainer`` class, estimates the gradient by ``estimator`` instead of ``loss.backward()``.

    Only ``training_step`` is overridden. Directions follow from the Trainer's global step, so that a resumed run draws
    those it would have drawn. Between processes a ``ForwardGradient`` exchanges directional derivatives only, any other
    estimator its estimates. ``Backprop()`` leaves the Trainer as it is.

    Args:
        estimator: any estimator.

    Raises:
        ValueError: if the Trainer is set up for something that an estimator cannot take part in.
    """

    def __init__(self, *args: Any, estimator: Estimator, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.estimator = estimator
        self._substep = (-1, 0)
        if not isinstance(estimator, Backprop):
            check_supported(self.accelerator, self.args.n_gpu, estimator)
            self._exchanged = self.accelerator.num_processes == 1 or reduce_derivatives(estimator)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        if isinstance(self.estimator, Backprop):
            return super().training_step(model, inputs, *args, **kwargs)
        if isinstance(model, DistributedDataParallel):
            model = model.module

        def closure(model: nn.Module) -> Tensor:
            taken: list[Tensor] = []
            self.accelerator.backward = lambda loss, **_: taken.append(loss)
            try:
                super(EstimatorMixin, self).training_step(model, dict(inputs), *args, **kwargs)
            finally:
                del self.accelerator.backward  # the method of its class again
            return taken[0]

        self._set_step()
        loss = self.estimator(model, closure)
        if not self._exchanged and self.accelerator.sync_gradients:
            for param in model.parameters():
                if param.grad is not None:
                    param.grad = mean_over_ranks(param.grad)
        return loss

    def _set_step(self) -> None:
        """Number the estimator's steps by the Trainer's."""
        before, count = self._substep
        self._substep = (self.state.global_step, count + 1 if before == self.state.global_step else 0)
        number = self.state.global_step * self.args.gradient_accumulation_steps + self._substep[1]
        self.estimator.load_state_dict(self.estimator.state_dict() | {"step": number})


class EstimatorTrainer(EstimatorMixin):
    """The ``Trainer`` of transformers, with ``estimator=``."""


def check_supported(accelerator: Accelerator, num_gpus: int, estimator: Estimator) -> None:
    """Raise ValueError, with what to do instead, unless the estimator can take part in this training."""
    if getattr(estimator, "optimizer", None) is not None:
        raise ValueError(
            "an estimator with optimizer=FactoredSGD deposits factors, which the Trainer neither clips nor clears; "
            "leave out optimizer=, the estimate is then put into .grad"
        )
    if accelerator.mixed_precision == "fp16":
        raise ValueError("fp16=True scales the loss for a backward pass; use bf16=True")
    if accelerator.distributed_type not in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        raise ValueError(
            f"{accelerator.distributed_type} shards what an estimator needs whole; use one device or plain DDP"
        )
    if num_gpus > 1:
        raise ValueError(
            f"{num_gpus} GPUs in one process would use {DataParallel.__name__}; start one process per GPU with "
            "torchrun, or make one visible by CUDA_VISIBLE_DEVICES"
        )
