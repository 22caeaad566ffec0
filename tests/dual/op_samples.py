"""The sample inputs of PyTorch's operator database as functions of the tensors that they are differentiated by."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils._pytree import tree_flatten, tree_unflatten

POOLED = 40  # a limited number of samples is drawn evenly from the first so many of an entry


@dataclass
class Sample:
    """A function of some differentiable tensors, as an entry's sample input and a way to call it define it."""

    function: Callable[..., Any]
    inputs: tuple[Tensor, ...]
    text: str


def entries() -> list[Any]:
    """Return the entries of the database that are differentiable in float64 or complex128 on the CPU."""
    return [op for op in op_db if op.supports_autograd and dtypes_of(op)]


def dtypes_of(op: Any) -> list[torch.dtype]:
    """Return those of float64 and complex128 that an entry can be differentiated in."""
    supported = op.supported_backward_dtypes("cpu")
    return [dtype for dtype in (torch.float64, torch.complex128) if dtype in supported]


def name_of(op: Any) -> str:
    """Return the name of an entry with that of its variant."""
    return str(op.name + (f".{op.variant_test_name}" if op.variant_test_name else ""))


def samples_of(op: Any, dtype: torch.dtype, limit: int | None, variants: bool = True) -> Iterator[Sample]:
    """Yield the samples of an entry, each called as a function, as a method and in place where these exist.

    Args:
        op: the entry.
        dtype: of the inputs.
        limit: how many sample inputs to take, evenly from the first 40; None: all.
        variants: whether to add methods and in-place calls.
    """
    torch.manual_seed(0)
    found = op.sample_inputs_func(op, "cpu", dtype, True)  # op.sample_inputs looks for its test in the stack each time
    if limit is not None:
        found = list(itertools.islice(found, POOLED))
        found = [found[i * len(found) // limit] for i in range(limit)] if len(found) > limit else found
    for i, sample in enumerate(found):
        for kind, call in _calls(op, sample, variants and (limit is not None or i < 10)):
            made = _as_function(op, call, sample, kind)
            if made is not None:
                yield made


def _calls(op: Any, sample: Any, variants: bool) -> Iterator[tuple[str, Callable[..., Any]]]:
    yield "function", lambda *args, **kwargs: op.gradcheck_wrapper(op.op, *args, **kwargs)
    if not variants or not isinstance(sample.input, Tensor):
        return
    if op.method_variant is not None and op.method_variant is not op.op:
        yield "method", lambda *args, **kwargs: op.gradcheck_wrapper(op.method_variant, *args, **kwargs)
    if op.inplace_variant is not None and not sample.broadcasts_input and op.supports_inplace_autograd:

        def in_place(input: Tensor, *args: Any, **kwargs: Any) -> Any:
            return op.gradcheck_wrapper(op.inplace_variant, input.clone(), *args, **kwargs)

        yield "in place", in_place


def _as_function(op: Any, call: Callable[..., Any], sample: Any, kind: str) -> Sample | None:
    flat, spec = tree_flatten((sample.input, sample.args, sample.kwargs))
    places = [i for i, leaf in enumerate(flat) if isinstance(leaf, Tensor) and leaf.requires_grad]
    if not places or any(flat[i].layout is not torch.strided for i in places):
        return None
    constants = [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in flat]

    def function(*inputs: Tensor) -> Any:
        leaves = list(constants)
        for place, value in zip(places, inputs, strict=True):
            leaves[place] = value
        for i, leaf in enumerate(leaves):
            if i not in places and isinstance(leaf, Tensor):
                leaves[i] = leaf.clone()  # running statistics and the like are written to
        input, args, kwargs = tree_unflatten(leaves, spec)
        torch.manual_seed(0)
        return sample.output_process_fn_grad(call(input, *args, **kwargs))

    shapes = ", ".join(str(tuple(flat[i].shape)) for i in places)
    rest = [leaf for i, leaf in enumerate(flat) if i not in places and not isinstance(leaf, Tensor)]
    return Sample(function, tuple(constants[i] for i in places), f"{kind} {shapes} {rest}")
