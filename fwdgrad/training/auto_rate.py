"""A learning rate to start from, measured on a few batches."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn

from fwdgrad.estimators import Estimator
from fwdgrad.optim import FactoredSGD
from fwdgrad.randomness import global_random_state

AUTO = "auto"
PROBES = 16
FRACTION = 1 / 8

Batch = tuple[Tensor, Tensor]
MakeClosure = Callable[[Tensor, Tensor], Callable[[nn.Module], Tensor]]


def measure_learning_rate(
    model: nn.Module,
    estimator: Estimator,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Batch],
    make_closure: MakeClosure,
) -> float:
    """Return an eighth of the step along estimates that lowers the loss most in the mean.

    To second order, ``f(p - h u) = f - h g.u + h^2/2 u^T H u`` along an estimate u, which is least at
    ``h* = g.u / u^T H u``. For one direction, u = (g.v) v, this is ``1 / v^T H v``, in the (harmonic) mean ``1 / tr H``
    with the Hessian H; for K directions about K times that; for backpropagation ``|g|^2 / g^T H g``. Instead of
    computing H, sixteen estimates are made, each on a batch, and each is followed until the loss of its batch rises,
    doubling h; a parabola through the losses at 0, h and 2h has its minimum at h*.

    The eighth is by experience, not by theory. A batch of 64 digits finds about twice the h* that other batches find
    for its estimates, and a multilayer perceptron trained for some thousand steps diverged from about a quarter of h*
    on, because curvature grows on the way. It is a guess to start from: larger rates may learn faster.

    For SGD with momentum m the result is times ``1 - m``, since each estimate is then applied ``1 / (1 - m)`` times.
    For Adam the estimates are divided by the root of their mean squares, entry by entry, as it does after some steps.

    Costs sixteen estimates, about 150 forward passes, and the memory of sixteen copies of the parameters.

    Args:
        model: the model as it starts; it is left as it is, like the global random state.
        estimator: an estimator of its own, which accumulates into ``p.grad``.
        optimizer: the optimizer that the rate is for.
        batches: those to measure on, at least one; the first sixteen are used, fewer are used repeatedly.
        make_closure: ``make_closure(inputs, targets)`` is the closure of a batch.

    Raises:
        ValueError: for another optimizer, or if no step lowers the loss.
    """
    factor = _check_optimizer(optimizer)
    params = [param for param in model.parameters() if param.requires_grad]
    restore = global_random_state(params)
    model = copy.deepcopy(model)
    closures = [make_closure(*batch) for batch, _ in zip(batches, range(PROBES), strict=False)]
    updates = [_estimate(model, estimator, closures[i % len(closures)]) for i in range(PROBES)]
    if isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW):
        _divide_by_root_mean_square(updates, optimizer.param_groups[0]["eps"])

    params = [param for param in model.parameters() if param.requires_grad]
    start = [param.detach().clone() for param in params]

    @torch.no_grad()
    def loss_after(probe: int, step: float) -> float:
        for param, value, direction in zip(params, start, updates[probe], strict=True):
            param.copy_(value - step * direction)
        restore()  # the same dropout masks each time
        return closures[probe % len(closures)](model).double().mean().item()

    first = [1e-3 * _norm(start) / max(_norm(update), 1e-30) for update in updates]
    found = [_best_step(partial(loss_after, probe), first[probe]) for probe in range(PROBES)]
    restore()
    inverses = [1 / step for step in found if step is not None]
    if not inverses:
        raise ValueError("learning_rate=auto found no step along the estimates that lowers the loss; give a number")
    return FRACTION * factor * len(inverses) / sum(inverses)


def _best_step(loss_after: Callable[[float], float], step: float) -> float | None:
    """Return the h at which a parabola through the losses at 0, h and 2h, around the minimum, is least; or None."""
    start, here = loss_after(0.0), loss_after(step)
    for _ in range(20):
        if here < start:
            break
        step /= 4
        here = loss_after(step)
    else:
        return None
    for _ in range(80):
        there = loss_after(2 * step)
        if not there < here:  # which a loss that is not finite is not
            break
        step, here = 2 * step, there
    curvature = there - 2 * here + start
    slope = (4 * here - there - 3 * start) / 2
    best = -step * slope / curvature if math.isfinite(there) and curvature > 0 else step
    return min(max(best, step / 2), 2 * step)


def _check_optimizer(optimizer: torch.optim.Optimizer) -> float:
    """Return what the rate of plain SGD, or of Adam without momentum, is multiplied by."""
    settings = optimizer.param_groups[0]
    if isinstance(optimizer, torch.optim.SGD):
        return 1 - settings["momentum"]
    if isinstance(optimizer, FactoredSGD | torch.optim.Adam | torch.optim.AdamW):
        return 1.0
    raise ValueError(
        f"learning_rate=auto knows SGD, FactoredSGD, Adam and AdamW, not {type(optimizer).__name__}; give a number"
    )


def _estimate(model: nn.Module, estimator: Estimator, closure: Callable[[nn.Module], Tensor]) -> list[Tensor]:
    model.zero_grad()
    estimator(model, closure)
    params = [param for param in model.parameters() if param.requires_grad]
    if all(param.grad is None for param in params):
        raise ValueError(f"learning_rate=auto needs a method that fills p.grad, {type(estimator).__name__} does not")
    return [torch.zeros_like(param) if param.grad is None else param.grad.detach().clone() for param in params]


def _divide_by_root_mean_square(updates: list[list[Tensor]], eps: float) -> None:
    for entries in zip(*updates, strict=True):
        root = torch.stack([entry.square() for entry in entries]).mean(0).sqrt() + eps
        for entry in entries:
            entry.div_(root)


def _norm(tensors: list[Tensor]) -> float:
    return math.sqrt(sum(tensor.double().square().sum().item() for tensor in tensors))
