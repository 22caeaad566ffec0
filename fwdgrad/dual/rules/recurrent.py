"""Recurrent layers and cells: vanilla (tanh, ReLU), LSTM and GRU, several layers, both directions, packed sequences.

A layer runs over its input in the packed form, (rows, features) with ``batch_sizes[t]`` rows at time t (a padded batch
is one in which all are equal). The products with the input weights are one for all times; ``recurrent_cells`` holds
the step of each kind of cell, with its tangent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fwdgrad.dual.forms import has_tangent, per_direction
from fwdgrad.dual.registry import rule
from fwdgrad.dual.rules.recurrent_cells import CELLS, Layer, Pair, affine, make_layer
from fwdgrad.dual.running import current
from fwdgrad.dual.tape.linear_map import linear_map
from fwdgrad.dual.tensor import dual, tangent

VF = torch._C._VariableFunctions


def _tensors(*arguments: Any) -> list[Any]:
    return [x for a in arguments for x in (a if isinstance(a, (tuple, list)) else (a,))]


def _enter_layers(name: str, function: Any) -> None:
    """Enter ``function(input, hx, weights, has_biases, num_layers, dropout, train, bidirectional, batch_first)``.

    For packed sequences it is ``function(data, batch_sizes, hx, weights, has_biases, ...)``, without the last.
    """

    @rule(function)
    def handler(input: Tensor, *args: Any) -> tuple[Tensor, ...]:
        if not has_tangent(*_tensors(input, *args)):
            return function(input, *args)
        count = current().num_directions
        x: Pair = (input.detach(), tangent(input))
        packed = isinstance(args[2], (tuple, list))
        hx, weights, has_biases, num_layers, dropout, train, bidirectional = args[packed : packed + 7]
        batch_first = not packed and args[7]
        if batch_first:
            x = _transposed(x)
        times, batch = x[0].shape[:2]
        sizes = args[0].tolist() if packed else [batch] * times
        size = len(weights) // (num_layers * (2 if bidirectional else 1))
        layers = [make_layer(name, weights[i : i + size], has_biases) for i in range(0, len(weights), size)]
        begin = [_unbound(h, count) for h in (hx if name == "lstm" else [hx])]
        rows = x if packed else _flat(x)
        y, ends = _stack(rows, sizes, begin, layers, num_layers, dropout if train else 0.0, not packed)
        if not packed:
            y = y[0].view(times, batch, -1), y[1].view(count, times, batch, -1)
        if batch_first:
            y = _transposed(y)
        return (dual(*y), *[_joined(end) for end in ends])


def _transposed(x: Pair) -> Pair:
    return x[0].transpose(0, 1), None if x[1] is None else x[1].transpose(1, 2)


def _flat(x: Pair) -> Pair:
    return x[0].flatten(0, 1), None if x[1] is None else x[1].flatten(1, 2)


def _unbound(h: Tensor, count: int) -> list[Pair]:
    """Return the initial state of each layer and direction."""
    return list(zip(h.detach().unbind(0), _filled(tangent(h), h, count).unbind(1), strict=True))


def _filled(t: Tensor | None, h: Tensor, count: int) -> Tensor:
    """Return t, or zeros."""
    if t is not None:
        return t
    if current().taped:
        return current().zeros(h)
    return torch.zeros((), dtype=h.dtype, device=h.device).expand(count, *h.shape)


def _joined(pairs: Sequence[Pair]) -> Tensor:
    return dual(torch.stack([p for p, _ in pairs]), torch.stack([t for _, t in pairs if t is not None], 1))


def _stack(
    x: Pair,
    sizes: list[int],
    begin: list[list[Pair]],
    layers: list[Layer],
    num_layers: int,
    dropout: float,
    padded: bool,
) -> tuple[Any, list[list[Pair]]]:
    """Run the layers, with dropout between them; return the output and, for h (and c), the states at the end."""
    directions = len(layers) // num_layers
    ends: list[list[Pair]] = [[] for _ in begin]
    for depth in range(num_layers):
        outputs = []
        for direction in range(directions):
            i = depth * directions + direction
            y, end = _run(x, sizes, [states[i] for states in begin], layers[i], direction == 1, padded)
            outputs.append(y)
            for collected, state in zip(ends, end, strict=True):
                collected.append(state)
        x = outputs[0]
        if directions == 2:
            x = torch.cat([p for p, _ in outputs], -1), torch.cat([t for _, t in outputs], -1)
        if dropout > 0 and depth < num_layers - 1:
            mask = torch.dropout(torch.ones_like(x[0]), dropout, True)
            x = (x[0] * mask, x[1] * mask)
    return x, ends


def _run(
    x: Pair, sizes: list[int], state: list[Pair], layer: Layer, reverse: bool, padded: bool
) -> tuple[Any, list[Pair]]:
    """Run one direction of a layer; return its outputs, in the order of the input, and its last state.

    With fewer rows at a later time (the batch is sorted by length) the others keep their state.
    """
    count = state[0][1].shape[0]
    g, tg = affine(x, layer, count, sizes[0] if padded else None)
    pieces = list(zip(g.split(sizes), tg.split(sizes, 1), strict=True))
    order = range(len(sizes) - 1, -1, -1) if reverse else range(len(sizes))
    outputs: list[Any] = [None] * len(sizes)
    step = CELLS[layer.kind]
    for time in order:
        n = sizes[time]
        whole = n == state[0][0].shape[0]
        now = state if whole else [(p[:n], t[:, :n]) for p, t in state]
        new = step(pieces[time], now, layer)
        outputs[time] = new[0]
        state = (
            new
            if whole
            else [
                (torch.cat((p, q[n:])), torch.cat((t, u[:, n:]), 1)) for (p, t), (q, u) in zip(new, state, strict=True)
            ]
        )
    return (torch.cat([p for p, _ in outputs]), torch.cat([t for _, t in outputs], 1)), state


for _name in ("rnn_tanh", "rnn_relu", "lstm", "gru"):
    _enter_layers(_name, getattr(VF, _name))


def _enter_cell(name: str, function: Any) -> None:
    """Enter ``function(input, hx, w_ih, w_hh, b_ih, b_hh)``: one step."""

    @rule(function)
    def handler(input: Tensor, hx: Any, w_ih: Tensor, w_hh: Tensor, b_ih: Any = None, b_hh: Any = None) -> Any:
        if not has_tangent(*_tensors(input, hx, w_ih, w_hh, b_ih, b_hh)):
            return function(input, hx, w_ih, w_hh, b_ih, b_hh)
        count = current().num_directions
        weights = (w_ih, w_hh) if b_ih is None else (w_ih, w_hh, b_ih, b_hh)
        layer = make_layer(name, weights, b_ih is not None)
        state = [(h.detach(), _filled(tangent(h), h, count)) for h in _tensors(hx)]
        gates = affine((input.detach(), tangent(input)), layer, count, input.shape[0])
        new = [dual(*s) for s in CELLS[name](gates, state, layer)]
        return tuple(new) if name == "lstm" else new[0]


for _name in ("rnn_tanh", "rnn_relu", "lstm", "gru"):
    _enter_cell(_name, getattr(VF, f"{_name}_cell"))


@rule(VF._pack_padded_sequence)
def pack_padded_sequence(input: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, Tensor]:
    """Push the packed tangents."""
    data, sizes = VF._pack_padded_sequence(input, lengths, batch_first)
    t = tangent(input)
    if t is None:
        return data, sizes
    return dual(data, per_direction(lambda tk: VF._pack_padded_sequence(tk, lengths, batch_first)[0], t)), sizes


@rule(VF._pad_packed_sequence)
def pad_packed_sequence(
    data: Tensor, batch_sizes: Tensor, batch_first: bool, padding_value: float, total_length: int
) -> tuple[Tensor, Tensor]:
    """Push the tangents padded with zeros."""
    padded, lengths = VF._pad_packed_sequence(data, batch_sizes, batch_first, padding_value, total_length)
    t = tangent(data)
    if t is None:
        return padded, lengths
    rest = (batch_sizes, batch_first, 0.0, total_length)

    def push(t: Tensor) -> Tensor:
        return per_direction(lambda tk: VF._pad_packed_sequence(tk, *rest)[0], t)

    def pull(u: Tensor) -> Tensor:
        return VF._pack_padded_sequence(u[0], lengths, batch_first)[0].unsqueeze(0)

    return dual(padded, linear_map(push, pull, t, padded)), lengths
