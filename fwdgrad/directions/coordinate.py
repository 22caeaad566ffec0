"""Directions along single coordinates, without replacement."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fwdgrad import tangents
from fwdgrad.directions.base import Params, real_or_raise
from fwdgrad.randomness import KeyedGenerator


class Coordinate:
    """``v_k = sqrt(P) e_i`` with a coordinate ``i = i(k)`` among all P entries; the first P directions use each once.

    ``E[v v^T] = I`` and ``E|(g.v) v|^2 = P |g|^2`` for one direction. The mean over K <= P directions of a step has the
    second moment ``P/K |g|^2``, because they are orthogonal; over K = P it is the exact gradient. Direction P begins
    another round. A weight's vectors are kept as factors, two unit vectors each, at a cost of n + m numbers.
    """

    def sample(self, params: Params, generator: KeyedGenerator) -> dict[str, tangents.Tangent]:
        sizes = {name: real_or_raise(name, param).numel() for name, param in params.items()}
        chosen = _coordinates(generator, sum(sizes.values()))
        drawn, first = {}, 0
        for name, param in params.items():
            drawn[name] = _unit_vectors(param, chosen - first, math.sqrt(sum(sizes.values())))
            first += sizes[name]
        return drawn


def _coordinates(generator: KeyedGenerator, total: int) -> Tensor:
    """Return the coordinates of the generator's directions, shape (K',)."""
    orders: dict[int, list[int]] = {}
    chosen = []
    for index in generator.indices:
        round_, place = divmod(index, max(total, 1))
        if round_ not in orders:
            orders[round_] = _distinct(generator, round_, total, min(total, generator.indices[-1] + 1 - round_ * total))
        chosen.append(orders[round_][place])
    return torch.tensor(chosen)


def _distinct(generator: KeyedGenerator, round_: int, total: int, count: int) -> list[int]:
    """Return the beginning of a random order of 0, ..., total - 1.

    The order in which the values of an endless row of independent draws appear first is uniformly random, and its
    beginning does not depend on how much of it is asked for.
    """
    source = generator.torch_generator("", round_, torch.device("cpu"))
    seen: dict[int, None] = {}
    while len(seen) < count:
        uniform = torch.rand(256, dtype=torch.float64, generator=source)
        seen |= dict.fromkeys((uniform * total).long().tolist())
    return list(seen)[:count]


def _unit_vectors(param: Tensor, at: Tensor, scale: float) -> tangents.Tangent:
    """Return ``scale e_at`` of the parameter's shape for each entry of ``at``, and zero where that is outside."""
    inside = (at >= 0) & (at < param.numel())
    values = scale * inside.to(param.dtype)
    at = torch.where(inside, at, 0)
    if param.dim() < 2 or param.numel() == 0:
        entries = torch.zeros(len(at), param.numel(), dtype=param.dtype)
        return tangents.Dense(_put(entries, at, values).view(len(at), *param.shape).to(param.device))
    rest = param[0].numel()
    left = _put(torch.zeros(len(at), len(param), dtype=param.dtype), at // rest, values)
    right = _put(torch.zeros(len(at), rest, dtype=param.dtype), at % rest, torch.ones_like(values))
    return tangents.LowRank(left.unsqueeze(1).to(param.device), right.view(-1, 1, *param.shape[1:]).to(param.device))


def _put(rows: Tensor, at: Tensor, values: Tensor) -> Tensor:
    return rows.scatter_(1, at.unsqueeze(1), values.unsqueeze(1)) if rows.numel() else rows
