"""One step of each recurrent cell, with its tangent; what a layer does with its weights.

With the affine parts ``g = x W_ih' + b_ih`` of the input and ``a = h W_hh' + b_hh`` of the state:

    vanilla   h' = f(g + a)
    LSTM      i, f, o = sigmoid, z = tanh of the parts of g + a;  c' = f c + i z,  h' = o tanh(c')  (times W_hr')
    GRU       r, u = sigmoid of parts of g + a,  n = tanh(g_n + r a_n);  h' = n + u (h - n)

Tangents are (K, rows, features).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fwdgrad.dual.folding import total
from fwdgrad.dual.tensor import dense, structured
from fwdgrad.tangents import LowRank, PerExample

_aten = torch.ops.aten

Pair = tuple[Any, Any]
"""A primal and its tangents."""


@dataclass
class Weight:
    """A matrix (n, m) that multiplies rows, with a bias, and the tangents of both."""

    values: Tensor
    bias: Tensor | None
    t: Any
    tb: Any

    def __call__(self, x: Tensor, tx: Tensor | None, times: int | None = None) -> Pair:
        """Return x W' + b and ``tx W' + x tW' + tb``; rows are ``times`` times a whole batch, or, if None, packed."""
        y = F.linear(x, self.values, self.bias)
        t = None if tx is None else F.linear(tx, self.values)
        if t is not None and isinstance(self.t, LowRank) and t.dtype is self.t.left.dtype:
            t.baddbmm_(torch.matmul(x, self.t.right.mT), self.t.left)
        else:
            t = total(t, self._product(x, times))
        return y, total(t, self._shift(y, times))

    def _product(self, x: Tensor, times: int | None) -> Tensor | None:
        if self.t is None:
            return None
        if isinstance(self.t, LowRank):
            return torch.matmul(torch.matmul(x, self.t.right.mT), self.t.left)
        if isinstance(self.t, PerExample):
            left, right = self._factors(self.t, x.shape[0], times)
            rows = x.view(-1, left.shape[1], x.shape[1])
            scaled = (rows * right.unsqueeze(1)).sum(-1, keepdim=True) * left.unsqueeze(1)
            return scaled.flatten(1, 2)
        return torch.matmul(x, dense(self.t).mT)

    def _shift(self, y: Tensor, times: int | None) -> Tensor | None:
        if self.tb is None:
            return None
        if isinstance(self.tb, PerExample):
            left, _ = self._factors(self.tb, y.shape[0], times)
            return left.repeat(1, times or 1, 1)
        t = dense(self.tb)
        return None if t is None else t.unsqueeze(1)

    @staticmethod
    def _factors(t: PerExample, rows: int, times: int | None) -> tuple[Tensor, Any]:
        if times is None:
            dense(t)  # refuses: packing has reordered the examples
        return t.factors(rows // (times or 1))


@dataclass
class Layer:
    """The weights of one direction of a layer."""

    kind: str
    input: Weight
    hidden: Weight
    projection: Weight | None
    padded: bool = True

    def state(self, h: Pair) -> Pair:
        """Return the affine part of the state."""
        return self.hidden(*h, times=1 if self.padded else None)


def make_layer(kind: str, weights: Sequence[Tensor], has_biases: bool) -> Layer:
    """Read (w_ih, w_hh[, b_ih, b_hh][, w_hr])."""
    w_ih, w_hh, *rest = weights
    b_ih, b_hh = (rest[0], rest[1]) if has_biases else (None, None)
    last = rest[2 if has_biases else 0 :]
    return Layer(kind, _weight(w_ih, b_ih), _weight(w_hh, b_hh), _weight(last[0], None) if last else None)


def _weight(w: Tensor, b: Tensor | None) -> Weight:
    return Weight(w.detach(), None if b is None else b.detach(), structured(w), structured(b))


def affine(x: Pair, layer: Layer, count: int, batch: int | None) -> Pair:
    """Return the affine part of the inputs of all times; ``batch`` is None where the rows are packed."""
    layer.padded = batch is not None
    times = None if batch is None else x[0].shape[0] // max(batch, 1)
    g, tg = layer.input(*x, times=times)
    if tg is None or tg.shape[1] != g.shape[0]:
        base = torch.zeros((count, *g.shape), dtype=g.dtype, device=g.device)
        tg = base if tg is None else base + tg
    return g, tg


def _vanilla(function: Callable[[Tensor], Tensor], slope: Callable[[Tensor], Tensor]) -> Callable[..., list[Pair]]:
    def step(g: Pair, state: list[Pair], layer: Layer) -> list[Pair]:
        a, ta = layer.state(state[0])
        h = function(a.add_(g[0]))
        return [(h, ta.add_(g[1]).mul_(slope(h)))]

    return step


def _lstm(g: Pair, state: list[Pair], layer: Layer) -> list[Pair]:
    (h, th), (c, tc) = state
    a, ta = layer.state((h, th))
    a, ta = a.add_(g[0]), ta.add_(g[1])
    size = c.shape[-1]
    gates = torch.sigmoid(a)
    tgates = _aten.sigmoid_backward(ta, gates)
    i, f, _, o = gates.split(size, -1)
    ti, tf, _, to = tgates.split(size, -1)
    z = torch.tanh(a[:, 2 * size : 3 * size])
    tz = _aten.tanh_backward(ta[..., 2 * size : 3 * size], z)
    tc = (f * tc).addcmul_(tf, c).addcmul_(ti, z).addcmul_(tz, i)
    c = (f * c).addcmul_(i, z)
    bounded = torch.tanh(c)
    h = o * bounded
    th = (to * bounded).addcmul_(o, _aten.tanh_backward(tc, bounded))
    if layer.projection is not None:
        h, th = layer.projection(h, th, times=1 if layer.padded else None)
    return [(h, th), (c, tc)]


def _gru(g: Pair, state: list[Pair], layer: Layer) -> list[Pair]:
    h, th = state[0]
    a, ta = layer.state((h, th))
    split = 2 * h.shape[-1]
    gates = torch.sigmoid(g[0][:, :split] + a[:, :split])
    tgates = _aten.sigmoid_backward(g[1][..., :split] + ta[..., :split], gates)
    (r, u), (tr, tu) = gates.chunk(2, -1), tgates.chunk(2, -1)
    last, tlast = a[:, split:], ta[..., split:]
    n = torch.tanh(torch.addcmul(g[0][:, split:], r, last))
    tn = _aten.tanh_backward(torch.addcmul(g[1][..., split:], tr, last).addcmul_(r, tlast), n)
    away = h - n
    return [(torch.addcmul(n, u, away), torch.addcmul(tn, tu, away).addcmul_(u, th - tn))]


CELLS: dict[str, Callable[..., list[Pair]]] = {
    "rnn_tanh": _vanilla(torch.tanh, lambda h: 1 - h * h),
    "rnn_relu": _vanilla(torch.relu, lambda h: (h > 0).to(h.dtype)),
    "lstm": _lstm,
    "gru": _gru,
}
"""By kind: ``step(affine part of the input, state, layer) -> new state``, the output first."""
