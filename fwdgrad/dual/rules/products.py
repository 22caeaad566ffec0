"""Products of matrices and vectors: d(x y) = tx y + x ty, the tangents of all K directions in one product."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fwdgrad.dual.forms import align, attach, composite, multilinear
from fwdgrad.dual.registry import rule
from fwdgrad.dual.tensor import dual, tangent

_VF: Any = torch._VF


@rule(torch.matmul, torch.linalg.matmul)
def matmul(input: Tensor, other: Tensor) -> Tensor:
    """Push tx y + x ty, for vectors, matrices and broadcast batches of them."""
    z = torch.matmul(input, other)
    return dual(z, product(input, other))


@rule(torch.mm, torch.bmm)
def mm(input: Tensor, mat2: Tensor) -> Tensor:
    """Push tx y + x ty."""
    return matmul(input, mat2)


@rule(torch.mv)
def mv(input: Tensor, vec: Tensor) -> Tensor:
    """Push tx y + x ty."""
    return matmul(input, vec)


@rule(Tensor.__rmatmul__)
def rmatmul(input: Tensor, other: Tensor) -> Tensor:
    """Push the tangent of ``other @ input``."""
    return matmul(other, input)


def product(x: Tensor, y: Tensor) -> Tensor | None:
    """Return the tangents tx y + x ty of the matrix product of two arguments."""
    tx, ty = tangent(x), tangent(y)
    if tx is None:
        return None if ty is None else _right(x, ty, y.dim())
    t = _left(tx, x.dim(), y)
    if ty is None:
        return t
    second = _right(x, ty, y.dim())
    return t.add_(second) if t.dtype is second.dtype and t.shape == second.shape else t + second


def _left(tx: Tensor, dim: int, y: Tensor) -> Tensor:
    """Return the products of K left factors, each of ``dim`` dimensions, with y."""
    if y.dim() <= 2:
        return torch.matmul(tx, y)
    if dim == 1:
        return torch.matmul(tx.view(tx.shape[0], *(1,) * (y.dim() - 1), tx.shape[1]), y).squeeze(-2)
    return torch.matmul(align(tx, y.dim()), y)


def _right(x: Tensor, ty: Tensor, dim: int) -> Tensor:
    """Return the products of x with K right factors, each of ``dim`` dimensions."""
    if dim == 1:
        if x.dim() <= 2:
            return torch.matmul(ty, x.mT if x.dim() == 2 else x)
        return torch.matmul(x, ty.view(ty.shape[0], *(1,) * (x.dim() - 2), ty.shape[1], 1)).squeeze(-1)
    return torch.matmul(x, align(ty, x.dim()))


def _affine(name: str) -> Any:
    """Make the rule of beta * input + alpha * (x y), for the product ``name`` of matrices, batches or vectors."""
    function = getattr(torch, name)

    def push(input: Tensor, x: Tensor, y: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
        z = function(input, x, y, beta=beta, alpha=alpha)
        t = product(x, y)
        if t is not None and name == "addbmm":
            t = t.sum(1)
        if t is not None and alpha != 1:
            t = t * alpha
        ti = tangent(input)
        if ti is not None and beta != 0:
            ti = align(ti, z.dim()) * beta
            t = ti if t is None else ti + t
        return attach(z, t)

    return push


for _name in ("addmm", "addbmm", "baddbmm", "addmv"):
    rule(getattr(torch, _name))(_affine(_name))


@composite(torch.addr)
def addr(input: Tensor, vec1: Tensor, vec2: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
    """Write beta * input + alpha * vec1 vec2'."""
    product = alpha * (vec1.unsqueeze(-1) * vec2)
    return product.expand_as(torch.addr(input, vec1, vec2)) if beta == 0 else beta * input + product


@composite(torch.outer, torch.ger)
def outer(input: Tensor, vec2: Tensor) -> Tensor:
    """Write x y'."""
    return input.unsqueeze(-1) * vec2


@composite(torch.dot)
def dot(input: Tensor, tensor: Tensor) -> Tensor:
    """Write sum x y."""
    return torch.matmul(input, tensor)


@composite(torch.vdot)
def vdot(input: Tensor, other: Tensor) -> Tensor:
    """Write sum conj(x) y."""
    return torch.matmul(input.conj(), other)


@composite(torch.linalg.vecdot)
def vecdot(x: Tensor, y: Tensor, *, dim: int = -1) -> Tensor:
    """Write sum conj(x) y over a dimension."""
    return (x.conj() * y).sum(dim)


@composite(torch.inner)
def inner(input: Tensor, other: Tensor) -> Tensor:
    """Write sum_j x[..., j] y[..., j] over all pairs of leading indices."""
    if input.dim() == 0 or other.dim() == 0:
        return input * other
    return torch.tensordot(input, other, dims=([-1], [-1]))


@composite(_VF.tensordot)
def tensordot(a: Tensor, b: Tensor, dims_a: list[int], dims_b: list[int]) -> Tensor:
    """Write a contraction as one matrix product."""
    dims_a, dims_b = [d % a.dim() for d in dims_a], [d % b.dim() for d in dims_b]
    free_a = [d for d in range(a.dim()) if d not in dims_a]
    free_b = [d for d in range(b.dim()) if d not in dims_b]
    inside = 1
    for i, d in enumerate(dims_a):  # a dimension of size 1 is summed over the other's
        e = dims_b[i]
        if a.shape[d] != b.shape[e]:
            a, b = (a.sum(d, keepdim=True), b) if b.shape[e] == 1 else (a, b.sum(e, keepdim=True))
        inside *= a.shape[d]
    left = a.permute(free_a + dims_a).reshape(-1, inside)
    right = b.permute(dims_b + free_b).reshape(inside, -1)
    return (left @ right).reshape([a.shape[d] for d in free_a] + [b.shape[d] for d in free_b])


@rule(_VF.einsum)
def einsum(equation: str, operands: list[Tensor], **kwargs: Any) -> Tensor:
    """Push the sum over the operands of the same contraction with an operand's tangents, K being a leading index."""
    z = _VF.einsum(equation, operands, **kwargs)
    inputs, output = _explicit(equation.replace(" ", ""))
    letter = next(c for c in "ZYXWVUTSRQPONMLKJIHGFEDCBAzyxwvutsrqponmlkjihgfedcba" if c not in equation)
    total = None
    for i, operand in enumerate(operands):
        t = tangent(operand)
        if t is None:
            continue
        terms = [letter + term if j == i else term for j, term in enumerate(inputs)]
        pushed = _VF.einsum(f"{','.join(terms)}->{letter}{output}", [*operands[:i], t, *operands[i + 1 :]])
        total = pushed if total is None else total + pushed
    return dual(z.clone() if z._is_view() and total is not None else z, None if total is None else total + 0)


def _explicit(equation: str) -> tuple[list[str], str]:
    """Split an equation; an implicit output holds the letters that appear once, sorted, behind the ellipsis."""
    left, arrow, right = equation.partition("->")
    if not arrow:
        letters = left.replace("...", "").replace(",", "")
        right = ("..." if "..." in left else "") + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    return left.split(","), right


@composite(torch.bilinear, torch.nn.functional.bilinear)
def bilinear(input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Write y_o = x1' W_o x2 + b_o."""
    y = torch.einsum("...i,oij,...j->...o", input1, weight, input2)
    return y if bias is None else y + bias


multilinear(torch.linalg.cross, torch.cross)
multilinear(torch.kron)
