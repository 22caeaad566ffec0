"""One derivative computed four ways: the dual engine, PyTorch's forward mode, reverse mode, central differences."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import fwdgrad.dual
from fwdgrad.dual import fallback_counts
from fwdgrad.randomness import global_random_state

Function = Callable[..., tuple[Tensor, ...]]
"""From tensors, each an argument, to floating-point tensors."""

STEPS = (1e-4, 1e-5, 1e-6, 1e-7)
"""Displacements, relative to the typical size of what is displaced; the smaller ones serve where a kink is near."""
FINER = (1e-8, 1e-9)
"""Taken as well where the others disagree with a derivative; rounding alone costs half of the digits there."""
DIFFERENCE_TOLERANCE = 1e-4
"""How far a derivative may be from the central differences, relative to their size."""
EXACT_TOLERANCE = 1e-6
"""How far two exact derivatives in float64 may be from each other."""


@dataclass
class Comparison:
    """What the four ways gave along one random direction v, and how far they are apart.

    ``reverse`` and ``dual_projection`` are numbers: the derivative of ``<u, f>`` for a random u, since reverse mode
    gives no more. An error is infinite where one of the two is not finite, nan where it could not be told.
    """

    errors: dict[str, Exception] = field(default_factory=dict)
    """What a way raised, by its name: dual, func, reverse."""
    projections: dict[str, float] = field(default_factory=dict)
    """The derivative of <u, f> by each way."""
    dual_reverse: float = math.nan
    dual_func: float = math.nan
    dual_differences: float = math.nan
    func_differences: float = math.nan
    reverse_differences: float = math.nan
    value: float = 0.0
    """Error of the dual engine's primal value."""
    checked: int = 0
    """Number of finite outputs."""
    kinks: int = 0
    """Outputs whose derivatives to the left and to the right differ, so that central differences say nothing."""
    fallbacks: list[str] = field(default_factory=list)
    """Operations that the dual engine left to PyTorch's forward mode."""

    def verdicts(self) -> list[str]:
        """Return what is wrong, in words of the table ``findings.KINDS``; empty where all is well."""
        found = []
        reverse = "reverse" not in self.errors
        dual_off = self.dual_differences > DIFFERENCE_TOLERANCE
        func_off = self.func_differences > DIFFERENCE_TOLERANCE
        apart = self.dual_reverse > EXACT_TOLERANCE
        if "dual" in self.errors:
            found.append("dual refuses")
        elif self.value > EXACT_TOLERANCE or (apart and (dual_off or math.isnan(self.dual_differences))):
            found.append("dual wrong" if not self.reverse_differences > DIFFERENCE_TOLERANCE else "all differ")
        elif apart:
            found.append("reverse wrong")
        elif dual_off:
            found.append("cut" if reverse else "dual wrong")
        if "func" in self.errors:
            found.append("func refuses")
        elif self.dual_func > EXACT_TOLERANCE or ("dual" in self.errors and func_off):
            if not dual_off and "dual" not in self.errors and not apart:
                found.append("func wrong")
            elif "cut" in found:
                found.append("func wrong" if func_off else "func goes on")
            elif "dual" in self.errors or func_off:
                found.append("func wrong")
        if not reverse:
            found.append("reverse refuses")
        return found


def compare(function: Function, primals: Sequence[Tensor], seed: int = 0) -> Comparison:
    """Differentiate ``function(*primals)`` along a random direction in four ways.

    Each evaluation starts from the same global random state, so that all see the same dropout masks; the function
    must not write to its arguments.

    Raises:
        Exception: whatever the plain evaluation raises.
    """
    generator = torch.Generator().manual_seed(seed)
    replay = global_random_state(primals)
    primals = [primal.detach() for primal in primals]
    v = [like_structured(_normal(primal, generator), primal) * typical_size(primal) for primal in primals]

    def evaluate(*arguments: Tensor) -> tuple[Tensor, ...]:
        replay()
        return function(*arguments)

    value = _join(evaluate(*primals))
    u = torch.randn(value.shape, dtype=value.dtype, generator=generator).to(value.device)
    outcome = Comparison()
    pushed = {"dual": _dual(evaluate, primals, v, outcome), "func": _func(evaluate, primals, v, outcome)}
    finite = value.isfinite()
    outcome.checked = int(finite.sum())
    dual, func = ((None if pair is None else pair[1].where(finite, 0)) for pair in (pushed["dual"], pushed["func"]))
    u = u.where(finite, 0)
    reverse = _reverse(evaluate, primals, v, u, outcome)
    differences = _Differences(evaluate, primals, v, value, finite)
    outcome.kinks = int(differences.kinks.sum())
    replay()
    for name, tangents in (("dual", dual), ("func", func)):
        if tangents is not None:
            outcome.projections[name] = float(tangents @ u)
            setattr(outcome, f"{name}_differences", differences.error(tangents))
    if reverse is not None:
        outcome.projections["reverse"] = reverse
    outcome.projections["differences"] = float(differences.best @ u)
    if pushed["dual"] is not None and dual is not None:
        outcome.value = _distance(pushed["dual"][0].where(finite, 0), value.where(finite, 0))
        if reverse is not None:
            outcome.dual_reverse = _relative(outcome.projections["dual"] - reverse, (u * dual).norm().item())
        if func is not None:
            outcome.dual_func = _distance(func, dual)
    if reverse is not None and not differences.kinks.any():
        outcome.reverse_differences = differences.projected_error(reverse, u)
    return outcome


class _Differences:
    """Central differences of several step sizes, and where a kink makes them worthless."""

    def __init__(
        self, function: Function, primals: list[Tensor], v: list[Tensor], value: Tensor, finite: Tensor
    ) -> None:
        self._function, self._primals, self._v = function, primals, v
        self._value, self._finite = value, finite
        self.steps: list[tuple[Tensor, Tensor, Tensor]] = []
        """For each step size the differences, how far they may be off, and where they are worthless."""
        self._take(STEPS)

    @property
    def best(self) -> Tensor:
        """The differences of the step size that leaves least in doubt."""
        return min(self.steps, key=lambda step: step[1].nan_to_num(nan=math.inf).sum().item())[0].nan_to_num()

    def _take(self, sizes: Sequence[float]) -> None:
        value, finite = self._value.where(self._finite, 0), self._finite
        size = value.abs()
        for h in sizes:
            plus, minus = (
                _join(self._function(*[p + sign * h * t for p, t in zip(self._primals, self._v, strict=True)]))
                for sign in (1, -1)
            )
            if plus.shape != value.shape or minus.shape != value.shape:  # the output's size depends on the values
                continue
            plus, minus = plus.where(finite, 0), minus.where(finite, 0)
            central = (plus - minus) / (2 * h)
            noise = 100 * torch.finfo(torch.float64).eps * (size + _rms(size)) / h
            sided = (plus - 2 * value + minus).abs() / h
            kink = sided > 1e-2 * (central.abs() + _rms(central)) + noise
            # Between the derivatives to the left and to the right each is as good as another: a kink may be small.
            self.steps.append((central, noise + sided, kink | ~central.isfinite()))
        if not self.steps:
            self.steps = [(value * math.nan, value * math.nan, torch.ones_like(finite))]
        self.kinks = torch.stack([kink for _, _, kink in self.steps]).all(0)

    def error(self, tangents: Tensor) -> float:
        """Return the largest relative error of the entries that have no kink, each at the step that suits it best."""
        error = self._error(tangents)
        if error > DIFFERENCE_TOLERANCE and len(self.steps) == len(STEPS):
            self._take(FINER)  # thousands of ReLUs have kinks nearer than the smallest of the usual steps
            error = self._error(tangents)
        return error

    def _error(self, tangents: Tensor) -> float:
        if self.kinks.all():
            return math.nan
        errors = []
        for i, (central, noise, kink) in enumerate(self.steps):
            # What another step size tells otherwise is not known so well: many small kinks, or strong curvature.
            others = [other for other, _, _ in self.steps[max(i - 1, 0) : i + 2] if other is not central]
            spread = torch.stack([(central - other).abs() for other in others]).amin(0) if others else 0
            error = ((tangents - central).abs() - noise - 2 * spread) / (central.abs() + _rms(central) + 1e-300)
            errors.append(error.where(~kink, math.inf))
        worst = torch.stack(errors).amin(0)[~self.kinks].nan_to_num(nan=math.inf).amax()
        return max(worst.item(), 0.0)

    def projected_error(self, number: float, u: Tensor) -> float:
        """Return the error of a derivative of <u, f>."""
        along = [float(central @ u) for central, _, _ in self.steps]
        errors = []
        for i, (central, noise, _) in enumerate(self.steps):
            spread = min((abs(along[i] - along[j]) for j in (i - 1, i + 1) if 0 <= j < len(along)), default=0.0)
            error = abs(number - along[i]) - float(noise @ u.abs()) - 2 * spread
            errors.append(_relative(max(error, 0.0), (u * central).norm().item()))
        return min(errors)


def _dual(
    function: Function, primals: list[Tensor], v: list[Tensor], outcome: Comparison
) -> tuple[Tensor, Tensor] | None:
    before = fallback_counts()
    try:
        values, tangents = fwdgrad.dual.jvp(function, tuple(primals), tuple(v), fallback="silent")
    except Exception as error:  # of any kind: it is reported
        outcome.errors["dual"] = error
        return None
    finally:
        outcome.fallbacks = [name for name, count in fallback_counts().items() if count > before.get(name, 0)]
    return _join(values), _join(tangents)


def _func(
    function: Function, primals: list[Tensor], v: list[Tensor], outcome: Comparison
) -> tuple[Tensor, Tensor] | None:
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # as engine="func" does
            values, tangents = torch.func.jvp(function, tuple(primals), tuple(v))  # type: ignore[misc]
    except Exception as error:  # of any kind: it is reported
        outcome.errors["func"] = error
        return None
    return _join(values).detach(), _join(tangents).detach()


def _reverse(
    function: Function, primals: list[Tensor], v: list[Tensor], u: Tensor, outcome: Comparison
) -> float | None:
    leaves = [primal.clone().requires_grad_() for primal in primals]
    try:
        with torch.enable_grad():
            output = _join(function(*leaves))
            if not output.requires_grad:
                return 0.0
            projected = (output.where(u != 0, 0) * u).sum()
            cotangents = torch.autograd.grad(projected, leaves, allow_unused=True)
    except Exception as error:  # of any kind: it is reported
        outcome.errors["reverse"] = error
        return None
    return sum(float((g.conj() * t).sum().real) for g, t in zip(cotangents, v, strict=True) if g is not None)


def _join(values: Sequence[Tensor]) -> Tensor:
    """Return all entries of the tensors in one vector; a complex number is two entries."""
    flat = [(torch.view_as_real(value.resolve_conj()) if value.is_complex() else value).reshape(-1) for value in values]
    return torch.cat([part.to(torch.float64) for part in flat])


def like_structured(v: Tensor, primal: Tensor) -> Tensor:
    """Make a direction symmetric or triangular where the point is a square matrix that is so.

    Functions such as ``cholesky`` read one triangle and take the other for granted.
    """
    if primal.dim() < 2 or primal.shape[-1] != primal.shape[-2] or primal.shape[-1] < 2 or not primal.any():
        return v
    row, column = primal[..., 0, 1:], primal[..., 1:, 0]  # a look at these saves the rest, most often
    if torch.allclose(row, column.conj(), rtol=1e-9) and torch.allclose(primal, primal.mH, rtol=1e-9, atol=1e-12):
        return (v + v.mH) / 2
    if not row.any() and not primal.triu(1).any():
        return v.tril()
    return v.triu() if not column.any() and not primal.tril(-1).any() else v


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, dtype=like.dtype, generator=generator).to(like.device)


def typical_size(x: Tensor) -> float:
    """Return the median size of the entries that are neither zero nor infinite, of at most some thousand; or 1.

    A mean would be that of the huge numbers by which attention is masked.
    """
    sample = x.detach().flatten()[:: max(1, x.numel() // 4096)].abs()
    sample = sample[sample.isfinite() & (sample > 0)]
    return sample.median().item() if sample.numel() else 1.0


def _rms(x: Tensor) -> Tensor:
    x = x[x.isfinite()]
    return x.abs().square().mean().sqrt() if x.numel() else torch.zeros((), dtype=torch.float64)


def _distance(a: Tensor, b: Tensor) -> float:
    if not a.isfinite().all():
        return math.inf
    return float(((a - b).abs() / (b.abs() + _rms(b) + 1e-300)).amax()) if a.numel() else 0.0


def _relative(error: float, scale: float) -> float:
    if not math.isfinite(error):
        return math.inf
    return abs(error) / scale if scale > 0 else (0.0 if abs(error) < 1e-12 else math.inf)
