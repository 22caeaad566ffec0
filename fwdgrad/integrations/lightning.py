"""Lightning: any ``LightningModule`` trains by any estimator, its ``training_step`` untouched.

    Trainer(callbacks=[TrainWith(fwdgrad.ForwardGradient(engine="dual"))]).fit(module)

For the time of ``fit`` the callback puts a subclass in front of the module's class that runs ``training_step`` inside
the estimator. Lightning calls ``training_step`` first, then ``zero_grad``, then ``backward``: the estimate is kept
aside between the first and the last.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from fwdgrad.estimators import Backprop, Estimator
from fwdgrad.integrations.replicas import reduce_derivatives

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.plugins import MixedPrecision
    from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

    from fwdgrad.integrations.lightning_module import Estimated, Step
except ImportError as error:
    raise ImportError("fwdgrad.integrations.lightning needs Lightning: pip install 'fwdgrad[lightning]'") from error


class TrainWith(Callback):
    """Estimate the gradient by ``estimator`` instead of ``loss.backward()``; ``Backprop()`` leaves Lightning as it is.

    Clipping, accumulation, precision, schedulers, loggers and checkpoints are Lightning's own; the estimator's state is
    saved in its checkpoints. Under DDP a ``ForwardGradient`` exchanges directional derivatives only, any other
    estimator its estimates.

    Raises, when fitting starts:
        ValueError: if the module or the trainer is set up for something that an estimator cannot take part in.
    """

    def __init__(self, estimator: Callable[..., Any]) -> None:  # LightningCLI cannot read a protocol
        self.estimator = cast(Estimator, estimator)
        self._own_class: type[LightningModule] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit" or isinstance(self.estimator, Backprop):
            return
        check_supported(trainer, pl_module, self.estimator)
        exchanged = trainer.world_size == 1 or reduce_derivatives(self.estimator)
        own = self._own_class = type(pl_module)
        pl_module.__class__ = type(own.__name__, (Estimated, own), {"__module__": own.__module__})
        vars(pl_module)["fwdgrad_step"] = Step(self.estimator, average=not exchanged)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._own_class is not None:
            pl_module.__class__ = self._own_class
            del vars(pl_module)["fwdgrad_step"]
            self._own_class = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")

    def state_dict(self) -> dict[str, Any]:
        return self.estimator.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.estimator.load_state_dict(state_dict)


def check_supported(trainer: Trainer, module: LightningModule, estimator: Estimator) -> None:
    """Raise ValueError, with what to do instead, unless the estimator can take part in this fit."""
    name = type(module).__name__
    if not module.automatic_optimization:
        raise ValueError(
            f"{name} has automatic_optimization=False, as several optimizers need it, and TrainWith cannot know which "
            "losses to take; use one optimizer, or call estimator(self, closure) where training_step calls "
            "manual_backward"
        )
    if type(module).backward is not LightningModule.backward:
        raise ValueError(f"{name} overrides backward(), which would never be called; remove it, or remove TrainWith")
    if getattr(estimator, "optimizer", None) is not None:
        raise ValueError(
            "an estimator with optimizer=FactoredSGD deposits its factors before Lightning calls zero_grad, which "
            "would lose them; leave out optimizer=, the estimate is then put into .grad"
        )
    if isinstance(trainer.precision_plugin, MixedPrecision) and trainer.precision_plugin.scaler is not None:
        raise ValueError("precision='16-mixed' scales the loss for a backward pass; use precision='bf16-mixed'")
    if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
        raise ValueError(
            f"{type(trainer.strategy).__name__} shards what an estimator needs whole; use one device, or strategy='ddp'"
        )
