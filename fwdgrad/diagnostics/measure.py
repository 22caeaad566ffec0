"""Bias, variance and angle of a gradient estimate. Beside ``Backprop`` the only place that uses autograd."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fwdgrad.directions import PerExample
from fwdgrad.directions.theory import expected_variance
from fwdgrad.estimators import Backprop, Estimator, ForwardGradient, StepRecord
from fwdgrad.functional import Closure, check_loss, check_trainable
from fwdgrad.optim import FactoredSGD
from fwdgrad.randomness import global_random_state
from fwdgrad.replay import entries, layers

Vector = Mapping[str, Tensor]
ROUNDING = torch.finfo(torch.float32).eps ** 0.5
COLUMNS = ("layer", "entries", "|g|", "cosine", "along g", "bias z", "variance", "theory", "signal/noise")


@dataclass
class Part:
    """What was measured in one layer, or in all parameters together. Figures are relative to the exact gradient g."""

    name: str
    names: tuple[str, ...]
    """Its parameters."""
    count: int
    """Their entries."""
    square: float
    """``|g|^2`` in this part."""
    expected_variance: float | None = None
    """``E|e - g|^2 / |g|^2`` by the stated theory, or None where there is none."""
    cosines: list[float] = field(default_factory=list)
    """``e.g / |e||g|`` of each estimate e."""
    projections: list[float] = field(default_factory=list)
    """``e.g / |g|^2`` of each, 1 in the mean of an unbiased estimate."""
    errors: list[float] = field(default_factory=list)
    """``|e - g|^2 / |g|^2`` of each."""

    @property
    def cosine(self) -> float:
        """Mean cosine of the angle between an estimate and the gradient."""
        return _mean(self.cosines)

    @property
    def projection(self) -> float:
        """Mean length of the estimates along the gradient."""
        return _mean(self.projections)

    @property
    def standard_error(self) -> float:
        """Standard error of ``projection``, at least the rounding that an exact estimate may have."""
        count, mean = len(self.projections), self.projection
        squares = sum((value - mean) ** 2 for value in self.projections)
        return max(math.sqrt(squares / max(count - 1, 1) / count), ROUNDING)

    @property
    def bias_z(self) -> float:
        """Standard errors by which ``projection`` differs from 1; a bias at right angles to g does not show in it."""
        return (self.projection - 1) / self.standard_error

    @property
    def variance(self) -> float:
        """Mean squared distance of an estimate from the gradient."""
        return _mean(self.errors)

    @property
    def signal_to_noise(self) -> float:
        """``|g|^2 / E|e - g|^2``."""
        return 1 / self.variance if self.variance > 0 else math.inf


@dataclass
class Diagnosis:
    """An estimator measured on one batch."""

    method: str
    total: Part
    parts: list[Part]
    """One for each layer with a gradient."""

    def __str__(self) -> str:
        rows = [COLUMNS, *(_row(part) for part in (*self.parts, self.total))]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(pairs))
            for pairs in (list(zip(row, widths, strict=True)) for row in rows)
        ]
        rule = "-" * len(lines[0])
        return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])

    def scalars(self) -> dict[str, float]:
        """Return the figures by TensorBoard tag."""
        figures = {}
        for part in (self.total, *self.parts):
            suffix = "" if part is self.total else f"/{part.name}"
            for key in ("cosine", "bias_z", "variance", "signal_to_noise"):
                figures[f"diagnostics/{key}{suffix}"] = getattr(part, key)
            if part.expected_variance:
                figures[f"diagnostics/variance_over_theory{suffix}"] = part.variance / part.expected_variance
        return figures


class NoGradientError(ValueError):
    """The exact gradient is zero or not finite."""


def diagnose(model: nn.Module, closure: Closure, estimator: Estimator, samples: int = 32) -> Diagnosis:
    """Measure estimates of the gradient of ``closure(model)`` against the exact gradient, which autograd computes.

    Everything happens on copies: the model, the estimator, an optimizer it holds, ``.grad``, buffers and the global
    random state are left as they are. The estimates are those that the estimator would make in its next steps if the
    model stayed where it is; all see the same dropout masks.

    Args:
        model: the model.
        closure: as for the estimator.
        estimator: any, in the state to be measured.
        samples: number of estimates, at least 2. From N of them figures are uncertain by some ``1/sqrt(N)``.

    Raises:
        ValueError: if there are fewer than two samples, or nothing is trainable.
        NoGradientError: if the exact gradient is zero or not finite.
    """
    if samples < 2:
        raise ValueError(f"samples must be at least 2, got {samples}")
    check_trainable(model)
    restore = global_random_state(model.parameters())
    twin, probe = copy.deepcopy((model, estimator))  # together, so that what one holds of the other stays consistent
    for name, value in list(vars(probe).items()):
        if isinstance(value, FactoredSGD):
            setattr(probe, name, None)  # the estimates are wanted in .grad
    try:
        exact = _exact_gradient(twin, closure)
        parts, records = _parts(exact), []
        for _ in range(samples):
            restore()
            twin.zero_grad()
            probe(twin, closure)
            records.append(probe.last)
            estimate = _gradient(twin)
            for part in parts:
                _measure(part, estimate, exact)
    finally:
        restore()
    for part in parts:
        expected = _expected_variance(probe, records, part, parts[0])
        part.expected_variance = None if expected is None else expected / part.square
    return Diagnosis(type(estimator).__name__, parts[0], parts[1:])


def _exact_gradient(model: nn.Module, closure: Closure) -> Vector:
    params = {name: param for name, param in model.named_parameters() if param.requires_grad}
    with torch.enable_grad():
        loss = check_loss(closure(model)).mean()
        gradients = torch.autograd.grad(loss, list(params.values()), materialize_grads=True)
    return dict(zip(params, gradients, strict=True))


def _gradient(model: nn.Module) -> Vector:
    params = {name: param for name, param in model.named_parameters() if param.requires_grad}
    return {name: torch.zeros_like(param) if param.grad is None else param.grad for name, param in params.items()}


def _parts(exact: Vector) -> list[Part]:
    """Return the parts to be measured, all parameters first."""
    groups = {"all": exact, **{layer or "(model)": members for layer, members in layers(exact).items()}}
    parts = [
        Part(name, tuple(members), entries(members), _dot(exact, exact, members)) for name, members in groups.items()
    ]
    if not 0 < parts[0].square < math.inf:
        raise NoGradientError(
            f"|g|^2 of the exact gradient g is {parts[0].square}: there is nothing to compare an estimate with"
        )
    return [part for part in parts if part.square > 0]


def _expected_variance(probe: Estimator, records: Iterable[StepRecord | None], part: Part, whole: Part) -> float | None:
    if isinstance(probe, Backprop):
        return 0.0
    if not isinstance(probe, ForwardGradient) or probe.aggregation != "mean":
        return None
    if probe.control_variate is not None or probe.safeguard.clip is not None:
        return None
    count, square = whole.count, whole.square
    if not isinstance(probe.direction, PerExample):
        return expected_variance(probe.direction, probe.num_directions, part.count, part.square, count, square)
    if part is not whole:
        return None
    # (P - 1) / B mean |g_b|^2, where the derivative of an example has |g_b|^2 as its mean square.
    derivatives = [record.per_example_derivatives for record in records if record is not None]
    squares = torch.stack([each.square().mean() for each in derivatives if each is not None])
    batch = next(each.shape[1] for each in derivatives if each is not None)
    return (count - 1) / batch * squares.mean().item() / probe.num_directions


def _measure(part: Part, estimate: Vector, exact: Vector) -> None:
    product, square = _dot(estimate, exact, part.names), _dot(estimate, estimate, part.names)
    difference = {name: estimate[name] - exact[name] for name in part.names}
    part.cosines.append(product / math.sqrt(square * part.square) if square > 0 else 0.0)
    part.projections.append(product / part.square)
    part.errors.append(_dot(difference, difference, part.names) / part.square)


def _dot(a: Vector, b: Vector, names: Iterable[str]) -> float:
    return sum((a[name] * b[name]).sum(dtype=torch.float64).item() for name in names)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _row(part: Part) -> tuple[str, ...]:
    theory = "" if part.expected_variance is None else f"{part.expected_variance:.3g}"
    figures = (f"{part.cosine:.3g}", f"{part.projection:.3f}", f"{part.bias_z:+.1f}", f"{part.variance:.3g}", theory)
    return (part.name, str(part.count), f"{math.sqrt(part.square):.3g}", *figures, f"{part.signal_to_noise:.2g}")
