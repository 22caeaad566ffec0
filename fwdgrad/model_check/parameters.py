"""What each parameter is to the loss: frozen, shared, without influence, or cut off from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from fwdgrad.model_check.compare import STEPS
from fwdgrad.model_check.report import Finding

_ONE_BY_ONE = 64
"""Up to so many parameters without gradient are looked at singly."""


def declared(model: nn.Module) -> list[Finding]:
    """Return what can be told of the parameters without running the model."""
    found = []
    names = dict(model.named_parameters())
    frozen = [name for name, p in names.items() if not p.requires_grad and _is_real(p)]
    integer = [name for name, p in names.items() if not _is_real(p)]
    if frozen:
        text = (
            f"{len(frozen)} of {len(names)} parameters have requires_grad=False: they get no direction and no gradient"
        )
        found.append(Finding("note", "frozen parameters", "", tuple(frozen), text))
    if integer:
        found.append(
            Finding(
                "warning",
                "integer parameters",
                "",
                tuple(integer),
                "they have no derivative and are never trained",
                "register them as buffers",
            )
        )
    shared: dict[int, list[str]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        shared.setdefault(id(p), []).append(name)
    for places in shared.values():
        if len(places) > 1:
            text = "one tensor under several names: it gets one direction and one gradient, the sum over its uses"
            found.append(Finding("note", "shared parameter", "", tuple(places), text))
    return found


def without_gradient(
    loss: Callable[[dict[str, Tensor]], Tensor], params: Mapping[str, Tensor], seed: int = 0
) -> tuple[list[str], list[str]]:
    """Return the parameters on which the loss does not depend, and those on which it does with a gradient of zero.

    ``loss`` maps parameters to a scalar. Central differences along random directions tell the two apart. Both are
    empty where reverse mode fails.
    """
    leaves = {name: p.clone().requires_grad_() for name, p in params.items()}
    try:
        value = loss(leaves)
        grads: tuple[Tensor | None, ...] = (None,) * len(leaves)
        if value.requires_grad:
            grads = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    except Exception:  # told elsewhere
        return [], []
    dead = [name for name, g in zip(leaves, grads, strict=True) if g is None or not g.any()]
    generator = torch.Generator().manual_seed(seed)
    v = {n: torch.randn(params[n].shape, dtype=params[n].dtype, generator=generator).to(params[n].device) for n in dead}
    noise = 1e4 * torch.finfo(torch.float64).eps * (1 + value.abs().item())

    def influential(names: list[str]) -> bool:
        ends = [
            loss({n: p + h * v[n] if n in names else p for n, p in params.items()}).item()
            for h in (-STEPS[0], STEPS[0], -STEPS[1], STEPS[1])
        ]
        return abs(ends[1] - ends[0]) > noise and abs(ends[3] - ends[2]) > noise

    if not dead or not influential(dead):
        return dead, []
    cut = [name for name in dead if influential([name])] if len(dead) <= _ONE_BY_ONE else dead
    return [name for name in dead if name not in cut], cut


def _is_real(p: Tensor) -> bool:
    return p.is_floating_point() or p.is_complex()
