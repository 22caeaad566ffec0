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

    separable = True

    def __init__(self, rank: int = 1) -> None:
        if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
            raise ValueError(f"rank must be a positive integer, got {rank!r}")
        self.rank = rank

    def sample(self, params: Params, generator: KeyedGenerator) -> dict[str, tangents.Tangent]:
        signs: dict[str, Tensor] = {}
        for dtype, device in dict.fromkeys((param.dtype, param.device) for param in params.values()):
            counts: dict[str, int] = {}
            for name, param in params.items():
                if param.dtype == dtype and param.device == device:
                    counts |= self._counts(name, real_or_raise(name, param))
            signs |= generator.all_signs(counts, dtype, device)
        return {name: self._tangent(name, param, signs, len(generator.indices)) for name, param in params.items()}

    def _counts(self, name: str, param: Tensor) -> dict[str, int]:
        """Return how many signs a parameter takes: for two factors, unless these would be as large as the weight."""
        size = param.numel()
        if param.dim() > 1 and size > 0:
            left, right = self.rank * param.shape[0], self.rank * (size // param.shape[0])
            if left + right < size:
                return {f"{name}/left": left, f"{name}/right": right}
        return {name: size}

    def _tangent(self, name: str, param: Tensor, signs: dict[str, Tensor], k: int) -> tangents.Tangent:
        if name in signs:
            return tangents.Dense(signs[name].view(k, *param.shape))
        left, right = signs[f"{name}/left"], signs[f"{name}/right"]
        if self.rank > 1:
            left = left / math.sqrt(self.rank)
        return tangents.LowRank(left.view(k, self.rank, -1), right.view(k, self.rank, *param.shape[1:]))
