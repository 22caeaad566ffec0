"""The table of methods. A new one is a row here and inherits every test that takes a ``method``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fwdgrad import Backprop, Estimator, ForwardGradient, LocalBlocks, LocalLosses, ZerothOrder
from fwdgrad.directions import DIRECTIONS
from fwdgrad.engines import ENGINES
from fwdgrad.estimators import ActivityPerturbation
from fwdgrad.functional import Closure


@dataclass(frozen=True)
class Method:
    """An estimator, and what is known about the estimates it makes."""

    make: Callable[..., Estimator]
    """``make(num_directions=1, chunk_size=None, seed=0)``."""
    second_moment: Callable[[Tensor], Tensor]
    """``E |estimate|^2`` with one direction, or a bound of it, given the per-example gradients (B, P)."""
    samples: int = 16384
    """How many directions the test of unbiasedness can afford."""
    steps: int = 1
    """Over how many steps it draws them."""
    tolerance: float = 1e-10
    """Relative error of one derivative in float64."""
    uses_autograd: bool = False
    exact: bool = False
    """The gradient itself, the same at each call."""
    per_example: bool = False
    """Every example of the batch has its own direction, so that none may depend on another."""


def shared_second_moment(excess: float, per_example: Tensor) -> Tensor:
    """Return ``(P + excess) |g|^2`` for the mean gradient g."""
    return (per_example.shape[1] + excess) * per_example.mean(0).square().sum()


def per_example_second_moment(per_example: Tensor) -> Tensor:
    batch, count = per_example.shape
    return per_example.mean(0).square().sum() + (count - 1) / batch * per_example.square().sum(1).mean()


SECOND_MOMENTS = {
    "normal": partial(shared_second_moment, 2.0),
    "rademacher": partial(shared_second_moment, 0.0),
    "sphere": partial(shared_second_moment, 0.0),
    "sparse": partial(shared_second_moment, 1 / 0.1 - 1),
    "coordinate": partial(shared_second_moment, 0.0),
    "orthogonal": partial(shared_second_moment, 0.0),
    "low_rank": partial(shared_second_moment, 0.0),
    "per_example": per_example_second_moment,
}
# A central difference costs two evaluations for each direction, and has an error of its own.
DIFFERENCES = {"samples": 256, "tolerance": 1e-6}


def _backprop(
    num_directions: int = 1, chunk_size: int | None = None, seed: int = 0, engine: str = "autograd"
) -> Estimator:
    return Backprop(engine)


def _activity(num_directions: int = 1, chunk_size: int | None = None, seed: int = 0, space: str = "auto") -> Estimator:
    return ActivityPerturbation(num_directions, exact_output=False, space=space, seed=seed)


def _zeroth_order(
    direction: str, antithetic: bool, num_directions: int = 1, chunk_size: int | None = None, seed: int = 0
) -> Estimator:
    return ZerothOrder(direction, num_directions, step_size=None, antithetic=antithetic, seed=seed)


class OneBlock:
    """``LocalLosses`` for any model and closure: the whole of them is the one block, its losses are the prediction."""

    def __init__(self, estimator: LocalLosses) -> None:
        self.estimator = estimator
        self.blocks: LocalBlocks | None = None

    def __call__(self, model: nn.Module, closure: Closure) -> Tensor:
        if self.blocks is None or self.blocks.blocks[0].model is not model:
            self.blocks = LocalBlocks([LossBlock(model)], [nn.Identity()])
        self.blocks.blocks[0].closure = closure
        return self.estimator(self.blocks, lambda blocks: blocks(torch.zeros(())).squeeze(1))

    @property
    def last(self) -> Any:
        return self.estimator.last

    def state_dict(self) -> dict[str, Any]:
        return self.estimator.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.estimator.load_state_dict(state)


class LossBlock(nn.Module):
    """Returns the losses (B, 1) of a model."""

    closure: Closure

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.closure(self.model).unsqueeze(1)


def _local(num_directions: int = 1, chunk_size: int | None = None, seed: int = 0) -> OneBlock:
    return OneBlock(LocalLosses(num_directions=num_directions, exact_output=False, seed=seed))


def _forward_gradient(direction: str, engine: str, replay: bool = False) -> Method:
    limits = DIFFERENCES if engine == "finite_difference" else {}
    if direction in ("coordinate", "orthogonal"):  # as many in one step as there are entries would be exact
        samples = limits.get("samples", 512)
        limits = limits | {"steps": samples // 2, "samples": samples}
    make = partial(ForwardGradient, direction=direction, engine=engine, replay=replay)
    per_example = direction == "per_example"
    return Method(make, SECOND_MOMENTS[direction], per_example=per_example, **limits)


METHODS: dict[str, Method] = {
    "backprop": Method(_backprop, lambda g: g.mean(0).square().sum(), samples=1, uses_autograd=True, exact=True),
    "backprop-tape": Method(
        partial(_backprop, engine="tape"), lambda g: g.mean(0).square().sum(), samples=1, exact=True
    ),
    # Signs on n outputs of each example instead of P weights: the second moment has n in the place of P.
    "activity": Method(_activity, per_example_second_moment, samples=1024, steps=1024, per_example=True),
    "activity-everywhere": Method(
        partial(_activity, space="activity"), per_example_second_moment, samples=1024, steps=1024, per_example=True
    ),
    "activity-weights": Method(
        partial(_activity, space="weight"), per_example_second_moment, samples=1024, steps=1024, per_example=True
    ),
    "local": Method(_local, per_example_second_moment, samples=1024, steps=1024, per_example=True),
    **{
        f"forward_gradient-{direction}-{engine}": _forward_gradient(direction, engine)
        for engine in ENGINES
        for direction in DIRECTIONS
        if direction != "per_example" or engine == "dual"
    },
    **{f"replay-normal-{engine}": _forward_gradient("normal", engine, replay=True) for engine in ENGINES},
    "replay-low_rank-dual": _forward_gradient("low_rank", "dual", replay=True),
    **{
        f"zeroth_order-{direction}": Method(
            partial(_zeroth_order, direction, True), SECOND_MOMENTS[direction], **DIFFERENCES
        )
        for direction in ("normal", "rademacher", "low_rank")
    },
    "zeroth_order-one_sided": Method(
        partial(_zeroth_order, "rademacher", False), SECOND_MOMENTS["rademacher"], **DIFFERENCES
    ),
}
# Unbiased over the steps, whatever the guess has learnt from those before.
METHODS["forward_gradient-momentum"] = Method(
    partial(ForwardGradient, direction="normal", control_variate="momentum"),
    SECOND_MOMENTS["normal"],
    samples=512,
    steps=256,
)
# Unbiased in the first step, when nothing has been learnt; tests/test_momentum_bias.py states the bias of the others.
for _direction, _engine in (("normal", "func"), ("low_rank", "dual")):
    METHODS[f"forward_gradient-guided-{_direction}-{_engine}"] = Method(
        partial(ForwardGradient, direction=_direction, engine=_engine, momentum_bias=0.5), SECOND_MOMENTS[_direction]
    )
for _direction, _engine in (("normal", "func"), ("low_rank", "dual")):
    METHODS[f"forward_gradient-projection-{_direction}-{_engine}"] = Method(
        partial(ForwardGradient, direction=_direction, engine=_engine, aggregation="projection"),
        SECOND_MOMENTS[_direction],
        samples=768,
        steps=256,
    )
FORWARD_METHODS = {name: method for name, method in METHODS.items() if not method.uses_autograd}
SHARED_METHODS = {name: method for name, method in METHODS.items() if not method.per_example}

every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
every_forward_method = pytest.mark.parametrize("method", FORWARD_METHODS.values(), ids=FORWARD_METHODS)
# For models with BatchNorm, in which each example's loss depends on the others.
every_shared_method = pytest.mark.parametrize("method", SHARED_METHODS.values(), ids=SHARED_METHODS)
