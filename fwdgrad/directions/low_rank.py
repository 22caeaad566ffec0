"""Directions made of outer products of signs, kept as factors."""

from __future__ import annotations

import math

from torch import Tensor

from fwdgrad import tangents
from fwdgrad.directions.base import Params, real_or_raise
from fwdgrad.randomness import KeyedGenerator


class LowRank:
    """For a weight of shape (n, m): ``v = sum_i a_i c_i^T / sqrt(r)`` with independent signs ``a_i``, ``c_i``.

    The second index runs over all remaining dimensions, so that a convolution weight (out, in, height, width) gets
    ``v[o] = a[o] C`` with one pattern ``C`` for all output channels. Parameters with fewer than two dimensions, or in
    which the factors would hold as many numbers as the weight, get independent signs.

    ``E[v v^T] = I``: ``E[a_i a_j] E[c_k c_l]`` vanishes unless i = j and k = l. At rank 1 ``|v|^2 = P`` always, and
    ``E|(g.v) v|^2 = P |g|^2``, as for dense signs. At rank r it is ``P |g|^2 + 2 (1 - 1/r) |h|^2``, where h is the
    part of g that belongs to the weights with factors: ``|v|^2`` then has ``r (r - 1)`` terms
    ``(a_i.a_j)(c_i.c_j) / r`` with i != j, and each meets ``2 (a_i^T G c_i)(a_j^T G c_j) / r`` in ``(g.v)^2``: their
    product has the mean ``2 |G|^2 / r^2``. Drawing costs ``r (n + m)`` signs instead of ``n m``.

    Args:
        rank: r, at least 1.

    Raises:
        ValueError: if the rank is not a positive integer.
    """

    def __init__(self, rank: int = 1) -> None:
        if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
            raise ValueError(f"rank must be a positive integer, got {rank!r}")
        self.rank = rank

    def sample(self, params: Params, generator: KeyedGenerator) -> dict[str, tangents.Tangent]:
        return {name: self._sample_one(name, param, generator) for name, param in params.items()}

    def _sample_one(self, name: str, param: Tensor, generator: KeyedGenerator) -> tangents.Tangent:
        real_or_raise(name, param)
        r, size = self.rank, param.numel()
        n = param.shape[0] if param.dim() > 1 else 0
        if n == 0 or r * (n + size // n) >= size:
            signs = generator.signs(name, size, param.dtype, param.device)
            return tangents.Dense(signs.view(len(generator.indices), *param.shape))
        signs = generator.signs(name, r * (n + size // n), param.dtype, param.device)
        left, right = signs[:, : r * n], signs[:, r * n :]
        if r > 1:
            left = left / math.sqrt(r)
        return tangents.LowRank(left.unflatten(1, (r, n)), right.unflatten(1, (r, *param.shape[1:])))
