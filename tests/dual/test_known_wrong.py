"""PyTorch's forward mode is still wrong where ``fwdgrad.dual.known_wrong`` says so, and where it is, ours is right."""

# ruff: noqa: N803, N806 - matrices have capital letters, as in PyTorch's signatures.

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from linalg_inputs import cholesky_factor, general, triangular
from torch import Tensor
from torch.autograd import forward_ad

import fwdgrad.dual
from fwdgrad.dual.known_wrong import KNOWN_WRONG, WHERE
from fwdgrad.dual.tensor import DualError


def _null_space(A: Tensor) -> Tensor:
    U = torch.linalg.svd(A, full_matrices=True)[0][..., A.shape[-1] :]
    return U @ U.mH


def _scatter_prod(x: Tensor, source: Tensor) -> Tensor:
    return x.scatter_reduce(0, torch.tensor([0, 1, 0, 2, 1]), source, "prod")


def _in_chunks(x: Tensor, weight: Tensor) -> Tensor:
    from torch.nn.modules.linear_cross_entropy_options import LinearCrossEntropyOptions

    options = LinearCrossEntropyOptions(batch_chunk_size=2)
    return torch.nn.functional.linear_cross_entropy(x, weight, torch.tensor([0, 3, 1, 1]), options=options)


def _of_rank_two(dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    return torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]], dtype=dtype)  # a pivot is zero, not merely small


SHOWN: list[tuple[str, Callable[..., Any], tuple[Any, ...]]] = [
    ("cholesky_inverse", lambda A: torch.cholesky_inverse(cholesky_factor(A, False)), (triangular(3, 3),)),
    ("cholesky_inverse", lambda A: torch.cholesky_inverse(cholesky_factor(A, True), True), (triangular(2, 3, 3),)),
    ("cholesky_solve", lambda B, A: torch.cholesky_solve(B, A.tril()), (general(3, 3), triangular(3, 3, 3))),
    ("cholesky_solve", torch.cholesky_solve, (general(3, 2), triangular(3, 3))),
    (
        "triangular_solve",
        lambda b, A: torch.triangular_solve(b, A.triu(), transpose=True)[0],
        (general(3, 2), triangular(3, 3)),
    ),
    (
        "triangular_solve",
        lambda b, A: torch.triangular_solve(b, A.triu(), unitriangular=True)[0],
        (general(3, 2), triangular(3, 3)),
    ),
    ("triangular_solve", lambda b, A: torch.triangular_solve(b, A)[0], (general(3, 2), triangular(3, 3))),
    ("scatter_reduce", _scatter_prod, (general(4), general(5))),
    ("linalg.det", torch.linalg.det, (_of_rank_two,)),
    ("linalg.svd", _null_space, (general(4, 2),)),
    ("logcumsumexp", lambda x: torch.logcumsumexp(torch.complex(x, x) + 800, 0), (general(4),)),
    ("logcumsumexp", lambda x: torch.logcumsumexp(torch.complex(x, x) - 800, 0), (general(4),)),
]
if hasattr(torch.nn.functional, "linear_cross_entropy"):
    SHOWN.append(("nn.functional.linear_cross_entropy", _in_chunks, (general(4, 3), general(5, 3))))
pytestmark = pytest.mark.filterwarnings("ignore:torch.* is deprecated")
IDS = [f"{name}-{i}" for i, (name, _, _) in enumerate(SHOWN)]


def _at(makers: tuple[Any, ...]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(0)
    inputs = tuple(make(torch.float64, generator) for make in makers)
    return inputs, tuple(torch.randn(x.shape, dtype=x.dtype, generator=generator) for x in inputs)


def _error(tangent: Tensor, function: Any, inputs: tuple[Tensor, ...], vs: tuple[Tensor, ...]) -> float:
    """Return how far a tangent is from central differences, relative to their size."""
    h = 1e-5
    plus = function(*[x + h * v for x, v in zip(inputs, vs, strict=True)])
    minus = function(*[x - h * v for x, v in zip(inputs, vs, strict=True)])
    quotient = (plus - minus) / (2 * h)
    return float((tangent - quotient).norm() / quotient.norm())


@pytest.mark.parametrize(("name", "function", "makers"), SHOWN, ids=IDS)
def test_pytorch_is_still_wrong(name: str, function: Any, makers: Any) -> None:
    inputs, vs = _at(makers)
    with forward_ad.dual_level():  # torch.func.jvp does the same, but refuses some singular matrices
        result = function(*[forward_ad.make_dual(x, v) for x, v in zip(inputs, vs, strict=True)])
        value, theirs = forward_ad.unpack_dual(result)
    theirs = torch.zeros_like(value) if theirs is None else theirs
    assert not _error(theirs, function, inputs, vs) <= 1e-2, (  # nan is wrong, too
        f"PyTorch {torch.__version__} computes the forward-mode derivative of torch.{name} right ({WHERE[name]}): "
        "say so in fwdgrad/dual/known_wrong.py, and drop the function from its list once no supported version is wrong"
    )


@pytest.mark.parametrize(("name", "function", "makers"), SHOWN, ids=IDS)
def test_ours_is_right_there(name: str, function: Any, makers: Any) -> None:
    inputs, vs = _at(makers)
    ours = fwdgrad.dual.jvp(function, inputs, vs, fallback="error")[1]
    assert _error(ours, function, inputs, vs) < 1e-6


def test_every_function_of_the_list_is_shown() -> None:
    listed = {function.__name__.rstrip("_") for function in KNOWN_WRONG}
    shown = {name for name, _, _ in SHOWN}
    assert listed <= shown <= set(WHERE)


def test_without_a_rule_a_function_of_the_list_is_refused() -> None:
    from fwdgrad.dual.known_wrong import make_refusal

    refuse = make_refusal(torch.triangular_solve, KNOWN_WRONG[torch.triangular_solve])
    with pytest.raises(DualError, match=r"triangular_solve: PyTorch's forward-mode formula .* torch.linalg.solve_tri"):
        refuse(torch.ones(2, 2), torch.ones(2, 2))
