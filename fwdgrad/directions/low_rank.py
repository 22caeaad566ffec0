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
        counts = {name: self._count(real_or_raise(name, param)) for name, param in params.items()}
        signs: dict[str, Tensor] = {}
        for kind in dict.fromkeys((param.dtype, param.device) for param in params.values()):
            group = {name: counts[name] for name, param in params.items() if (param.dtype, param.device) == kind}
            signs |= generator.all_signs(group, *kind)
        return {name: self._tangent(param, signs[name]) for name, param in params.items()}

    def _count(self, param: Tensor) -> int:
        """Return how many signs a parameter takes: those of its factors, unless they are as many as its entries."""
        size = param.numel()
        if param.dim() < 2 or size == 0:
            return size
        n = param.shape[0]
        return min(self.rank * (n + size // n), size)

    def _tangent(self, param: Tensor, signs: Tensor) -> tangents.Tangent:
        k, count = signs.shape
        if count == param.numel():
            return tangents.Dense(signs.view(k, *param.shape))
        n, r = param.shape[0], self.rank
        left, right = signs.split([r * n, count - r * n], 1)
        if r > 1:
            left = left / math.sqrt(r)
        return tangents.LowRank(left.view(k, r, n), right.view(k, r, *param.shape[1:]))
