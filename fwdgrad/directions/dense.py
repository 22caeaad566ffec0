"""Directions with one independent number per parameter entry."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fwdgrad.directions.base import Params, real_or_raise
from fwdgrad.randomness import KeyedGenerator
from fwdgrad.tangents import Dense


class Normal:
    """Independent standard normal entries.

    ``E[v v^T] = I`` and ``E|(g.v) v|^2 = (P + 2) |g|^2`` for P entries in all.
    Source: Baydin et al., "Gradients without Backpropagation", 2022, arXiv:2202.08587, definition 1.
    """

    separable = True

    def sample(self, params: Params, generator: KeyedGenerator) -> dict[str, Dense]:
        return {name: Dense(generator.normal(name, real_or_raise(name, param))) for name, param in params.items()}


class Rademacher:
    """Independent signs, +1 or -1.

    ``E[v v^T] = I`` and, since ``|v|^2 = P`` always, ``E|(g.v) v|^2 = P |g|^2``: the least of all directions with
    independent entries.
    """

    separable = True

    def sample(self, params: Params, generator: KeyedGenerator) -> dict[str, Dense]:
        return {name: Dense(_signs_like(name, param, generator)) for name, param in params.items()}


class Sphere:
    """A uniform point on the sphere of radius ``sqrt(P)`` in the space of all P entries.

    ``E[v v^T] = I`` and ``E|(g.v) v|^2 = P |g|^2``.
    """

    def sample(self, params: Params, generator: KeyedGenerator) -> dict[str, Dense]:
        normals = {name: generator.normal(name, real_or_raise(name, param)) for name, param in params.items()}
        squares = torch.stack([_squared_norms(values) for values in normals.values()]).sum(0)
        count = sum(param.numel() for param in params.values())
        scales = math.sqrt(count) / squares.sqrt()
        return {name: Dense(_scale_each(values, scales)) for name, values in normals.items()}


class Sparse:
    """Independent entries, ``+1/sqrt(p)`` or ``-1/sqrt(p)`` with probability p/2 each, and else 0.

    ``E[v v^T] = I`` and ``E|(g.v) v|^2 = (P - 1 + 1/p) |g|^2``, since ``E[v_i^4] = 1/p``. The vectors are kept as plain
    tensors: a few large entries instead of many small ones, which costs what any dense direction costs.

    Args:
        probability: p, above 0 and at most 1; at 1 the entries are those of ``Rademacher``.

    Raises:
        ValueError: if the probability is no such number.
    """

    separable = True

    def __init__(self, probability: float = 0.1) -> None:
        if not isinstance(probability, int | float) or isinstance(probability, bool) or not 0 < probability <= 1:
            raise ValueError(f"probability must be a number above 0 and at most 1, got {probability!r}")
        self.probability = float(probability)

    def sample(self, params: Params, generator: KeyedGenerator) -> dict[str, Dense]:
        return {
            name: Dense(self._entries(name, real_or_raise(name, param), generator)) for name, param in params.items()
        }

    def _entries(self, name: str, param: Tensor, generator: KeyedGenerator) -> Tensor:
        # One uniform number says whether there is an entry and which sign it has; bfloat16 is too coarse to say it.
        uniform = generator.uniform(name, param.to(torch.promote_types(param.dtype, torch.float32)))
        kept = uniform < self.probability
        signs = uniform.sub_(self.probability / 2).sign_()
        return signs.mul_(kept).mul_(1 / math.sqrt(self.probability)).to(param.dtype)


def _signs_like(name: str, param: Tensor, generator: KeyedGenerator) -> Tensor:
    real_or_raise(name, param)
    signs = generator.signs(name, param.numel(), param.dtype, param.device)
    return signs.view(len(generator.indices), *param.shape)


def _squared_norms(values: Tensor) -> Tensor:
    """Return ``|v_k|^2``, shape (K,), in double precision on the CPU, where tensors of several devices can meet."""
    flat = values.reshape(values.shape[0], values.shape[1:].numel())
    return flat.to(torch.promote_types(values.dtype, torch.float32)).square().sum(1).cpu().double()


def _scale_each(values: Tensor, scales: Tensor) -> Tensor:
    return values * scales.to(values).view(-1, *[1] * (values.dim() - 1))
