"""What is asked of a tensor that has no derivative: its properties, comparisons, integer results, copies as plain."""

from __future__ import annotations

import copy
import functools
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from fwdgrad.dual.forms import nondifferentiable
from fwdgrad.dual.registry import rule
from fwdgrad.dual.tensor import RULES, Dual, DualError, dense, structured, tangent

_PROPERTIES = """
shape dtype device layout ndim is_leaf is_sparse is_sparse_csr is_cuda is_cpu is_meta is_mps is_xpu is_mkldnn is_nested
is_quantized is_ipu is_maia is_mtia is_vulkan is_xla is_hpu is_ort itemsize nbytes names
name output_nr data grad grad_fn
_base _version _backward_hooks retains_grad _grad volatile _cdata _grad_fn
"""
_METHODS = """
size dim ndimension stride storage_offset numel nelement element_size is_contiguous is_floating_point is_complex
is_signed is_conj is_neg is_same_size is_set_to is_inference get_device data_ptr untyped_storage storage dim_order
is_pinned is_shared has_names item tolist detach __len__ __bool__ __float__ __int__ __index__ __complex__ __format__
__contains__ __hash__ __dir__ _is_view _is_zerotensor storage_type is_nonzero __nonzero__ is_distributed
new_tensor new_empty new_zeros new_ones new_full new_empty_strided
eq ne gt ge lt le equal isclose allclose isnan isinf isfinite isposinf isneginf isreal signbit
logical_and logical_or logical_xor logical_not any all argmax argmin argsort argwhere nonzero count_nonzero searchsorted
bucketize histc isin result_type promote_types can_cast is_tensor
zeros_like ones_like empty_like full_like rand_like randn_like randint_like
floor ceil round trunc fix sign heaviside floor_divide bernoulli multinomial normal
byte char short int long bool
"""


def _enter() -> None:
    for name in _PROPERTIES.split():
        attribute = getattr(Tensor, name, None)
        if attribute is not None and hasattr(attribute, "__get__"):
            RULES[attribute.__get__] = attribute.__get__
    for name in _METHODS.split():
        for owner in (Tensor,) if name.startswith("__") else (Tensor, torch):
            function = getattr(owner, name, None)
            if callable(function):
                nondifferentiable(function)
    for name in ("__eq__", "__ne__", "__gt__", "__ge__", "__lt__", "__le__"):
        nondifferentiable(getattr(Tensor, name))


_enter()


@rule(Tensor.requires_grad.__get__)  # type: ignore[attr-defined]
def requires_grad(x: Tensor) -> bool:
    """A Dual takes part in differentiation, as a tensor that requires a gradient does in reverse mode."""
    return type(x) is Dual


@rule(Tensor.register_hook, Tensor.register_post_accumulate_grad_hook)
def register_hook(x: Tensor, hook: Any) -> RemovableHandle:
    """Forget a hook that a backward pass would run: there will be none."""
    return RemovableHandle(OrderedDict())


@rule(Tensor.__repr__, Tensor.__str__)
def represent(x: Tensor, **kwargs: Any) -> str:
    """Show the primal and K."""
    t = structured(x)
    text = Tensor.__repr__(x.detach())
    if t is None:
        return text
    count = t.shape[0] if isinstance(t, Tensor) else t.num_directions
    return f"Dual({text}, num_directions={count})"


@rule(Tensor.__format__)
def formatted(x: Tensor, specification: str) -> str:
    """Format the primal."""
    return format(x.detach(), specification)


@rule(Tensor.__deepcopy__)
def deepcopy(x: Any, memo: dict[int, Any]) -> Any:
    """Copy primal and tangents."""
    if id(x) not in memo:
        out = copy.deepcopy(x.detach(), memo)
        if type(x) is Dual and (t := dense(structured(x))) is not None:
            out.__class__ = Dual
            out._tangent = t.clone()
        memo[id(x)] = out
    return memo[id(x)]


def _refuse_numpy(name: str, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    if tangent(x) is not None:
        raise DualError(f"Tensor.{name}: leaving PyTorch would drop the tangent silently; use x.detach().{name}(...)")
    return getattr(x.detach(), name)(*args, **kwargs)


for _name in ("numpy", "__array__", "__reduce_ex__"):
    RULES[getattr(Tensor, _name)] = functools.partial(_refuse_numpy, _name)
