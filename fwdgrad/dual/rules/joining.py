"""Several tensors made into one, and grids and pairs of several vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fwdgrad.dual.forms import composite, shift
from fwdgrad.dual.registry import register, rule
from fwdgrad.dual.tensor import dispatching, dual, tangent


def _pieces(tensors: Sequence[Tensor]) -> list[Tensor] | None:
    """Return the tangents of all tensors, with zeros for those that have none, or None if no tensor has."""
    tangents = [tangent(x) for x in tensors]
    count = next((t.shape[0] for t in tangents if t is not None), None)
    if count is None:
        return None
    return [
        x.detach().new_zeros(()).expand(count, *x.shape) if t is None else t
        for x, t in zip(tensors, tangents, strict=True)
    ]


@rule(torch.cat)
def cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Join the tangents. Empty vectors among tensors of more dimensions are passed over, as torch.cat does."""
    y = torch.cat(list(tensors), dim)
    pieces = _pieces(tensors)
    if pieces is None:
        return y
    kept = [t for t in pieces if t.dim() == y.dim() + 1]
    return dual(y, torch.cat(kept, shift(dim)) if kept else None)


@rule(torch.stack)
def stack(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Stack the tangents."""
    y = torch.stack(list(tensors), dim)
    pieces = _pieces(tensors)
    return y if pieces is None else dual(y, torch.stack(pieces, shift(dim)))


def _at_least(function: Callable[..., Any]) -> Callable[..., Any]:
    def handler(*tensors: Any) -> Any:
        if len(tensors) == 1 and isinstance(tensors[0], Tensor):
            with dispatching():
                return tensors[0].reshape(function(tensors[0].detach()).shape)
        listed = tensors[0] if len(tensors) == 1 else tensors
        return tuple([handler(x) for x in listed])

    return handler


for _name in ("atleast_1d", "atleast_2d", "atleast_3d"):
    register(_at_least(getattr(torch._VF, _name)), getattr(torch._VF, _name))


@composite(torch.hstack)
def hstack(tensors: Sequence[Tensor]) -> Tensor:
    """Write the concatenation of columns."""
    tensors = torch.atleast_1d(*tensors) if len(tensors) > 1 else [torch.atleast_1d(tensors[0])]
    return torch.cat(tensors, 0 if tensors[0].dim() == 1 else 1)


@composite(torch.vstack)
def vstack(tensors: Sequence[Tensor]) -> Tensor:
    """Write the concatenation of rows."""
    return torch.cat([torch.atleast_2d(x) for x in tensors], 0)


@composite(torch.dstack)
def dstack(tensors: Sequence[Tensor]) -> Tensor:
    """Write the concatenation in depth."""
    return torch.cat([torch.atleast_3d(x) for x in tensors], 2)


@composite(torch.column_stack)
def column_stack(tensors: Sequence[Tensor]) -> Tensor:
    """Write the concatenation of columns, with vectors as columns."""
    return torch.cat([x.reshape(x.numel(), 1) if x.dim() <= 1 else x for x in tensors], 1)


@composite(getattr(torch._VF, "block_diag"))  # noqa: B009 - mypy does not know it
def block_diag(tensors: Sequence[Tensor]) -> Tensor:
    """Write the matrices on the diagonal of a matrix of zeros."""
    blocks = [torch.atleast_2d(x) for x in tensors]
    width = sum(x.shape[1] for x in blocks)
    rows, left = [], 0
    dtype = torch.cat([x.detach().flatten()[:0] for x in blocks]).dtype
    for x in blocks:
        rows.append(torch.constant_pad_nd(x.to(dtype), (left, width - left - x.shape[1])))
        left += x.shape[1]
    return torch.cat(rows, 0)


@composite(torch.meshgrid, getattr(torch._VF, "meshgrid"))  # noqa: B009
def meshgrid(*tensors: Any, indexing: str | None = None) -> tuple[Tensor, ...]:
    """Write each vector as expanded along the dimensions of the others; "xy" has the second in front of the first."""
    listed = tensors[0] if len(tensors) == 1 and not isinstance(tensors[0], Tensor) else tensors
    vectors = [x.reshape(-1) for x in listed]
    swap = indexing == "xy" and len(vectors) >= 2
    if swap:
        vectors[:2] = vectors[1], vectors[0]
    shape = [x.shape[0] for x in vectors]
    grids = [x.reshape([-1 if i == j else 1 for j in range(len(vectors))]).expand(shape) for i, x in enumerate(vectors)]
    if swap:
        grids[:2] = grids[1], grids[0]
    return tuple(grids)


@composite(getattr(torch._VF, "cartesian_prod"))  # noqa: B009
def cartesian_prod(tensors: Sequence[Tensor]) -> Tensor:
    """Write all tuples of entries, one from each vector."""
    if len(tensors) == 1:
        return tensors[0].view_as(tensors[0])
    return torch.stack(torch.meshgrid(*tensors, indexing="ij"), dim=-1).reshape(-1, len(tensors))


@composite(torch.combinations)
def combinations(input: Tensor, r: int = 2, with_replacement: bool = False) -> Tensor:
    """Write all combinations of r entries of a vector."""
    places = torch.combinations(torch.arange(input.shape[0], device=input.device), r, with_replacement)
    return input[places]


@composite(torch._C._nn.pad_sequence)
def pad_sequence(
    sequences: Sequence[Tensor], batch_first: bool = False, padding_value: float = 0.0, padding_side: str = "right"
) -> Tensor:
    """Write sequences (L, *) of several lengths as one tensor, padded to the longest."""
    longest = max(x.shape[0] for x in sequences)
    padded = []
    for x in sequences:
        lacking = longest - x.shape[0]
        sides = (0, lacking) if padding_side == "right" else (lacking, 0)
        padded.append(torch.constant_pad_nd(x, (*(0, 0) * (x.dim() - 1), *sides), padding_value))
    return torch.stack(padded, 0 if batch_first else 1)
