"""Sets of directions that are orthogonal to each other."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fwdgrad.directions.base import Params, real_or_raise
from fwdgrad.randomness import KeyedGenerator
from fwdgrad.tangents import Dense


class Orthogonal:
    """Normals made orthogonal to each other and of norm ``sqrt(P)``: the columns of a uniformly random rotation.

    ``E[v v^T] = I`` and ``E|(g.v) v|^2 = P |g|^2`` for one direction. The mean over K <= P directions of a step has the
    second moment ``P/K |g|^2``, where that over K independent ones has at least ``(P + K - 1)/K |g|^2``; over K = P it
    is the exact gradient. Direction P begins another set.

    Each vector is made orthogonal to those before it, so it does not depend on those after it; a chunk draws all
    directions before its own again. That costs about ``4 K^2 P`` operations and the memory of K dense directions.
    """

    def sample(self, params: Params, generator: KeyedGenerator) -> dict[str, Dense]:
        likes = {name: _at_least_float32(real_or_raise(name, param)) for name, param in params.items()}
        total = max(sum(param.numel() for param in params.values()), 1)
        first, stop = generator.indices[0], generator.indices[-1] + 1
        parts: dict[str, list[Tensor]] = {name: [] for name in params}
        for begin in range(first // total * total, stop, total):
            indices = range(begin, min(begin + total, stop))
            rows = _orthogonalised(likes, KeyedGenerator(generator.seed, generator.step, indices))
            for name, param in params.items():
                wanted = rows[name][max(first - begin, 0) :].mul_(math.sqrt(total))
                parts[name].append(wanted.view(len(wanted), *param.shape).to(param.dtype))
        return {name: Dense(torch.cat(each) if len(each) > 1 else each[0]) for name, each in parts.items()}


def _at_least_float32(param: Tensor) -> Tensor:
    return param.to(torch.promote_types(param.dtype, torch.float32))


def _orthogonalised(likes: Params, generator: KeyedGenerator) -> dict[str, Tensor]:
    """Return orthonormal vectors, name -> (K', entries), each in the span of as many normals (Gram and Schmidt)."""
    count = len(generator.indices)
    rows = {name: generator.normal(name, like).view(count, like.numel()) for name, like in likes.items()}
    for k in range(count):
        for _ in range(2):  # once leaves the rounding of what was subtracted, twice is enough
            if k > 0:
                overlaps = _sum([flat[:k] @ flat[k] for flat in rows.values()])
                for flat in rows.values():
                    flat[k].sub_(flat[:k].T @ overlaps.to(flat))
            norm = _sum([flat[k].square().sum() for flat in rows.values()]).sqrt()
            for flat in rows.values():
                flat[k].div_(norm.to(flat))
    return rows


def _sum(values: list[Tensor]) -> Tensor:
    """Add up in double precision on the CPU, where tensors of several devices can meet."""
    return torch.stack([value.cpu().double() for value in values]).sum(0)
