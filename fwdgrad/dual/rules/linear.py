"""The linear layer, y = x W' + b: tangent tx W' + x tW' + tb, with the structure of tW used.

For a low-rank direction, tW = sum_r a_r c_r', the middle term is sum_r (x c_r) a_r': no product with an (n, m) matrix.
For a per-example direction example b has its own factors: (x_b . c_b) a_b. The tangents of all K directions pass
through the weight in one product.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fwdgrad.dual.forms import attach, has_tangent
from fwdgrad.dual.registry import rule
from fwdgrad.dual.rules.products import product
from fwdgrad.dual.tensor import Dual, blocks, dense, dual, structured, tangent
from fwdgrad.tangents import LowRank, PerExample, Tangent


@rule(F.linear)
def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Push tx W' + x tW' + tb."""
    if type(input) is Dual and input._joint is not None and input._joint[1] is input._tangent:
        y = _joint_linear(input, weight, bias)
        if y is not None:
            return y
    y = F.linear(input, weight, bias)
    in_blocks = blocks(input)
    if in_blocks is not None and not has_tangent(weight, bias) and not torch._C._is_any_autocast_enabled():
        t = in_blocks.linear(weight)
        if t is not None:
            return dual(y, t)
    if weight.dim() == 1:
        return attach(y, _sum(product(input, weight), tangent(bias)))
    tx = tangent(input)
    tw = structured(weight)
    tb = structured(bias)
    if tw is None:
        if tx is None and tb is None:
            return y
        t = None
    elif type(tw) is LowRank:
        t = _low_rank(input, tw, None if type(tb) is PerExample else dense(tb))
        tb = tb if type(tb) is PerExample else None
    elif type(tw) is PerExample:
        t = _per_example(input, tw)
    else:
        t = dense(tw)
        if len(t) == 1:
            single = tb is not None and type(tb) is not PerExample
            t = F.linear(input, t[0], dense(tb)[0] if single else None).unsqueeze(0)
            tb = None if single else tb
        else:
            t = torch.matmul(input if input.dim() > 1 else input.unsqueeze(0), _aligned(t.mT, input.dim()))
            t = t if input.dim() > 1 else t.squeeze(-2)
    if tx is not None:
        t = F.linear(tx, weight) if t is None else _add_product(t, tx, weight)
    if tb is not None:
        t = _add_bias(t, tb, y)
    return dual(y, t)


def _joint_linear(x: Dual, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """Do the layer for primal and tangents that lie beside each other, in one product; None where that does not apply.

    Below some hundred rows a product is faster by a tenth than two of half the rows.
    """
    tw, tb = structured(weight), structured(bias)
    assert x._joint is not None
    memory = x._joint[0]
    plain = not torch._C._is_any_autocast_enabled() and memory.dtype is weight.dtype and weight.dim() == 2
    if not plain or type(tw) is not LowRank or type(tb) is PerExample or tw.left.dtype is not memory.dtype:
        return None
    batch = x.shape[0]
    out = torch.empty((memory.shape[0], weight.shape[0]), dtype=memory.dtype, device=memory.device)
    y = out[:batch]
    t = _low_rank(x, tw, dense(tb), out[batch:].view(-1, batch, weight.shape[0]))
    if bias is None:
        y.zero_()
    else:
        y.copy_(bias)
    out.addmm_(memory, weight.t())
    return dual(y, t)


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return a if b is None else b if a is None else a + b


def _aligned(t: Tensor, dim: int) -> Tensor:
    """Insert dimensions behind K so that (K, n, m) multiplies inputs with ``dim`` dimensions."""
    return t.view(t.shape[0], *(1,) * (dim - 2), *t.shape[1:]) if dim > 2 else t


def _low_rank(x: Tensor, tw: LowRank, b: Tensor | None, out: Tensor | None = None) -> Tensor:
    left, right = tw.left, tw.right
    count, rank, n = left.shape
    batch = x.shape[:-1]
    if rank == 1:  # an outer product by broadcasting takes less time than a matrix product with one inner index
        s = F.linear(x, right.view(count, -1))
        s = s.unsqueeze(0) if count == 1 else s.movedim(-1, 0).unsqueeze(-1)
        shape = (count, *(1,) * len(batch), n)
        if b is None:
            return torch.mul(s, left.view(shape), out=out)
        return torch.addcmul(b.view(shape), s, left.view(shape), out=out)
    flat = x.reshape(-1, x.shape[-1])
    s = F.linear(flat, right.flatten(0, 1)).view(-1, count, rank).transpose(0, 1)
    t = torch.bmm(s, left, out=out) if b is None else torch.baddbmm(b.unsqueeze(1), s, left, out=out)
    return t.view(count, *batch, n)


def _per_example(x: Tensor, tw: PerExample) -> Tensor:
    left, right = tw.factors(x.shape[0])
    assert right is not None
    if x.dim() == 2:
        return left * torch.linalg.vecdot(right, x).unsqueeze(-1)
    s = torch.matmul(x.flatten(1, -2), right.permute(1, 2, 0))  # (B, positions, K)
    t = s.permute(2, 0, 1).unsqueeze(-1) * left.unsqueeze(2)
    return t.view(left.shape[0], *x.shape[:-1], left.shape[2])


def _add_product(t: Tensor, tx: Tensor, weight: Tensor) -> Tensor:
    """Return t + tx W', in t's own memory where no cast intervenes."""
    if t.dtype is tx.dtype and t.dtype is weight.dtype and t.is_contiguous() and tx.numel():
        t.view(-1, t.shape[-1]).addmm_(tx.reshape(-1, tx.shape[-1]), weight.t())
        return t
    return t + F.linear(tx, weight)


def _add_bias(t: Tensor | None, tb: Tensor | Tangent, y: Tensor) -> Tensor:
    if type(tb) is PerExample:
        b = tb.factors(y.shape[0])[0]
        b = b.view(*b.shape[:2], *(1,) * (y.dim() - 2), b.shape[2])
    else:
        b = dense(tb)
        b = b.view(b.shape[0], *(1,) * (y.dim() - 1), b.shape[1])
    if t is None:
        return b.expand(b.shape[0], *y.shape).clone()
    return t.add_(b) if t.dtype is b.dtype else t + b
