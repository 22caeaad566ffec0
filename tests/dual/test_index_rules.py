"""Indexing, scatter and its reductions, sorting: what PyTorch's sample inputs leave out."""

from typing import Any

import pytest
import torch
from checks import check, directions
from torch import Tensor

from fwdgrad.dual.tensor import DualError

pytestmark = [
    pytest.mark.filterwarnings("ignore:index_reduce.. is in beta:UserWarning"),
    pytest.mark.filterwarnings("ignore:The reduce argument of torch.scatter:UserWarning"),
]


def _randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


_I = torch.tensor([2, 0, 2])
_J = torch.tensor([1, 1, 0])
_MASK = torch.tensor([True, False, True])

INDICES: dict[str, Any] = {
    "integers": (1, -1),
    "slices": (slice(None, None, 2), slice(1, 3)),
    "new dimensions": (None, 1, ..., None),
    "tensor": _I,
    "pair": (_I, _J),
    "tensors apart": (_I, slice(None), _J),
    "tensors apart behind": (slice(None), _I, None, _J),
    "integer between tensors": (_I, 1, _J),
    "tensor and integer": (_I, slice(1), 1),
    "mask": _MASK,
    "mask behind": (slice(None), slice(None, 3), torch.tensor([[True, False, True, True, False]] * 3)[0]),
    "list": [0, 2],
    "list and slice": ([0, 2], slice(2)),
    "number as tensor": (torch.tensor(1), _I[:2]),
    "true": (True, 1),
    "matrix of indices": (slice(1, 3), torch.tensor([[0, 1], [2, 2]])),
    "nothing": torch.tensor([], dtype=torch.int64),
}


@pytest.mark.parametrize("name", INDICES)
def test_getitem(name: str) -> None:
    check(lambda x: x[INDICES[name]] * 2, _randn(3, 4, 5))


@pytest.mark.parametrize("name", INDICES)
def test_setitem(name: str) -> None:
    index = INDICES[name]
    distinct = {"tensor": torch.tensor([2, 0]), "pair": (torch.tensor([2, 0]), torch.tensor([1, 1]))}.get(name, index)
    if name in (
        "tensors apart",
        "tensors apart behind",
        "integer between tensors",
        "tensor and integer",
        "matrix of indices",
    ):
        distinct = tuple(torch.tensor([1, 0]) if isinstance(i, Tensor) else i for i in index)

    def function(x: Tensor, y: Tensor) -> Tensor:
        z = x * 1
        z[distinct] = y[distinct].sin() * 3
        z[0, 0] = y[1, 1]
        z[z > 2] = 0.5
        return z

    check(function, _randn(3, 4, 5), _randn(3, 4, 5) * 0.9 + 0.05)


def test_setitem_broadcasts_the_value() -> None:
    def function(x: Tensor, y: Tensor) -> Tensor:
        z = torch.zeros(3, 4, dtype=torch.float64)
        z[:, 1] = y[0]
        z[1:] = x
        z[0, None] = x[None, :]
        return z

    check(function, _randn(4), _randn(2))


ZEROS = {"none": (), "one": (1,), "two in a group": (1, 3), "in two groups": (1, 2), "all": (0, 1, 2, 3, 4)}


@pytest.mark.parametrize("zeros", ZEROS)
@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize("reduce", ["prod", "sum", "mean"])
def test_scatter_reduce_with_zeros(reduce: str, include_self: bool, zeros: str) -> None:
    index = torch.tensor([0, 1, 0, 1, 3])
    x, source = _randn(4) + 0.1, _randn(5) - 0.1
    source[list(ZEROS[zeros])] = 0
    if zeros == "in two groups":
        x[0] = 0

    def function(x: Tensor, source: Tensor) -> Tensor:
        return x.scatter_reduce(0, index, source, reduce, include_self=include_self)

    check(function, x, source)
    check(lambda x, s: x.index_reduce(0, index, s, "prod", include_self=include_self), x, source, reverse=False)


@pytest.mark.parametrize("reduce", ["amax", "amin", "mean", "prod"])
@pytest.mark.parametrize("include_self", [True, False])
def test_index_reduce(reduce: str, include_self: bool) -> None:
    index = torch.tensor([1, 1, 0])
    check(lambda x, s: x.index_reduce(1, index, s, reduce, include_self=include_self), _randn(2, 4), _randn(2, 3) + 0.2)


@pytest.mark.parametrize("reduce", [{}, {"reduce": "add"}, {"reduce": "multiply"}])
def test_scatter_of_values_and_of_less_than_the_source(reduce: dict[str, str]) -> None:
    index = torch.tensor([[0, 2], [1, 0]])
    options = {"reverse": False}  # which wants an index of the source's shape, and no reduce=
    check(lambda x, s: x.scatter(0, index, s, **reduce), _randn(3, 4), _randn(3, 3), **options)
    check(lambda x: x.scatter(1, index, 2.0, **reduce), _randn(3, 4), **options)
    check(lambda x: x.clone().scatter_(1, index, 2.0, **reduce), _randn(3, 4), **options)


def test_index_put_and_its_kind() -> None:
    i, j = torch.tensor([0, 2, 0]), torch.tensor([1, 1, 1])
    check(lambda x, v: x.index_put((i, j), v, accumulate=True), _randn(3, 4), _randn(3))
    check(lambda x, v: x.clone().index_put_((i,), v, accumulate=True), _randn(3, 4), _randn(4))
    check(lambda x, v: x.put(torch.tensor([1, 5, 1]), v, accumulate=True), _randn(3, 4), _randn(3))
    check(lambda x, v: x.index_fill(1, j, v), _randn(3, 4), _randn(1)[0])
    check(lambda x, v: x.masked_fill(_MASK[:, None], v), _randn(3, 4), _randn(1)[0])
    check(lambda x, v: x.masked_scatter(_MASK[:, None], v), _randn(3, 4), _randn(10))
    check(lambda x, v: x.index_add(0, _I[:2], v, alpha=-2), _randn(3, 4), _randn(2, 4))


def test_choices_by_order() -> None:
    x = _randn(4, 5)
    check(lambda x: (x.max(), x.min(), x.median(), x.amax((0, 1), keepdim=True)), x)
    check(lambda x: (x.max(0).values, x.min(-1, True)[0], x.median(1).values, x.kthvalue(2, 0).values), x)
    check(lambda x: (x.sort(0, descending=True).values, x.topk(2, -1, largest=False).values, x.msort()), x)
    check(lambda x: (torch.sort(x, stable=True, dim=1)[0], x.cummax(1).values), x)
    check(lambda x: x.aminmax(dim=1), x, reverse=False)  # which PyTorch 2.11 does not have
    check(lambda x, y: (torch.max(x, y), torch.min(input=x, other=y)), x, _randn(5) + 0.01)


def test_ties_share() -> None:
    x = torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]], dtype=torch.float64)
    check(lambda x: (x.amax(1), x.amin(1), x.max(), x.amax()), x, differences=False)


def test_counts_by_weight() -> None:
    check(lambda w: torch.bincount(torch.tensor([1, 0, 1]), w, 4), _randn(3), reverse=False)
    with pytest.raises(DualError, match="no derivative by its weights"):
        directions(lambda w: torch.histogram(torch.ones(3), 2, weight=w), (_randn(3),), (_randn(1, 3),))


INTERPOLATIONS = ("linear", "lower", "higher", "midpoint", "nearest")


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_quantiles_of_values_and_levels(interpolation: str) -> None:
    levels = torch.tensor([0.13, 0.45, 0.77], dtype=torch.float64)
    check(lambda x, q: torch.quantile(x, q, 1, interpolation=interpolation), _randn(3, 6), levels)
    check(lambda x: x.quantile(0.3, keepdim=True, interpolation=interpolation), _randn(3, 6))
    holes = torch.full((3, 6), torch.nan, dtype=torch.float64)

    def with_holes(x: Tensor, q: Tensor) -> Tensor:
        y = x.where(torch.arange(6) % 3 != 1, holes)
        return y.nanquantile(q, 0, keepdim=True, interpolation=interpolation)[..., ::3]

    check(with_holes, _randn(3, 6), levels)


def test_unique_is_refused() -> None:
    for unique in (torch.unique, Tensor.unique, torch.unique_consecutive):
        with pytest.raises(DualError, match=r"unique\w* has no derivative"):
            directions(lambda x, unique=unique: unique(x), (_randn(4),), (_randn(1, 4),), fallback="silent")
        assert directions(lambda x, unique=unique: x * unique(x.detach()).numel(), (_randn(4),), (_randn(1, 4),))
