"""What has no rule: one operation in PyTorch's own forward mode, once for each direction.

Counted by name (``fallback_counts``), and reported at the first use of each.
"""

from __future__ import annotations

import collections
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._pytree import tree_flatten, tree_unflatten

from fwdgrad.dual.inplace import write
from fwdgrad.dual.running import current
from fwdgrad.dual.tensor import Dual, DualError, dual, tangent, view_of

_counts: collections.Counter[str] = collections.Counter()
_warned: set[str] = set()


def fallback_counts() -> dict[str, int]:
    """Return how often each operation fell back to PyTorch's forward mode in this process, by name."""
    return dict(_counts)


def _report(name: str) -> None:
    mode = current().fallback
    if mode == "error":
        raise DualError(f"{name}: no rule, and fallback='error'; write one with @fwdgrad.dual.rule")
    _counts[name] += 1
    if mode == "warn" and name not in _warned:
        _warned.add(name)
        warnings.warn(
            f"{name} has no rule in fwdgrad.dual and falls back to PyTorch's forward mode, which is slower; "
            "write one with @fwdgrad.dual.rule, or pass fallback='silent'",
            stacklevel=6,
        )


def make_fallback(function: Any, name: str) -> Callable[..., Any]:
    """Return the handler of a function without a rule."""
    short = getattr(function, "__name__", "")
    writes = short.endswith("_") and not short.endswith("__")

    def run(*args: Any, **kwargs: Any) -> Any:
        leaves, spec = tree_flatten((args, kwargs))
        tangents = {i: t for i, leaf in enumerate(leaves) if (t := tangent(leaf)) is not None}
        if not tangents:
            return function(*args, **kwargs)
        if current().taped:
            raise DualError(
                f"{name}: no rule, and reverse mode has none to fall back to; write one with @fwdgrad.dual.rule"
            )
        _report(name)
        target = leaves[0] if writes else None
        count = next(iter(tangents.values())).shape[0]
        collected: list[list[Tensor | None]] = []
        state = torch.get_rng_state()
        for k in reversed(range(count)):  # the last run, k = 0, is the one that writes to buffers and to the generator
            torch.set_rng_state(state)
            plain = [_argument(leaf, copy=k > 0 or leaf is target) for leaf in leaves]
            out, derivatives = _forward_mode(function, name, plain, {i: t[k] for i, t in tangents.items()}, spec)
            collected.insert(0, derivatives)
        result = _attach(out, collected, [leaves[i] for i in tangents])
        return write(target, result[0] if isinstance(result, tuple) else result, name) if writes else result

    return run


def _argument(leaf: Any, copy: bool) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    leaf = leaf.detach()
    return leaf.clone() if copy else leaf


def _forward_mode(
    function: Any, name: str, leaves: list[Any], tangents: dict[int, Tensor], spec: Any
) -> tuple[Any, list[Tensor | None]]:
    with torch.no_grad(), forward_ad.dual_level():
        try:
            for i, t in tangents.items():
                leaves[i] = forward_ad.make_dual(leaves[i], t)
            args, kwargs = tree_unflatten(leaves, spec)
            out = function(*args, **kwargs)
        except (NotImplementedError, RuntimeError) as error:
            raise DualError(
                f"{name}: no rule, and PyTorch's forward mode fails on it ({str(error).splitlines()[0]}); "
                "write a rule with @fwdgrad.dual.rule"
            ) from error
        flat, out_spec = tree_flatten(out)
        derivatives: list[Tensor | None] = []
        for i, value in enumerate(flat):
            if isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex()):
                flat[i], derivative = forward_ad.unpack_dual(value)
                if derivative is None and "::" in name and not name.startswith("aten::"):
                    raise DualError(
                        f"{name}: no rule, and PyTorch's forward mode drops the tangent of this custom operator; "
                        "write a rule with @fwdgrad.dual.rule"
                    )
                derivatives.append(None if derivative is None else derivative.clone())
            else:
                derivatives.append(None)
        return tree_unflatten(flat, out_spec), derivatives


def _attach(out: Any, collected: list[list[Tensor | None]], sources: list[Dual]) -> Any:
    """Attach the derivatives of each direction to the outputs; an output that views a source stays its view."""
    flat, spec = tree_flatten(out)
    for i, value in enumerate(flat):
        parts = [derivatives[i] for derivatives in collected]
        if not any(part is not None for part in parts):
            continue
        filled = torch.stack([torch.zeros_like(value) if part is None else part for part in parts])
        memory = value.untyped_storage()._cdata
        source = next((x for x in sources if x.untyped_storage()._cdata == memory), None)
        if source is not None:
            flat[i] = view_of(source, value.view_as(value), filled)
        else:
            flat[i] = dual(value.detach(), filled)
    return tree_unflatten(flat, spec)
