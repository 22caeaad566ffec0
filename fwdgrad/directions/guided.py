"""Directions biased toward where past estimates pointed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fwdgrad.directions.base import Direction, Params
from fwdgrad.directions.per_example import PerExample
from fwdgrad.randomness import KeyedGenerator
from fwdgrad.tangents import Dense, Tangent

SIGN = "/guide"  # no parameter of a module has such a name


class Guided:
    """Mix a direction u with the running mean m of past estimates: ``v = sqrt(1 - a) u + sqrt(a P) e m / |m|``.

    e is an independent sign for each direction, P the number of entries. **Biased, on purpose**: with ``c = m / |m|``

        E[v v^T] = (1 - a) I + a P c c^T,

    so that given m the estimate ``(g.v) v`` has the mean ``(1 - a) g + a P (g.c) c``: the part of the gradient along m
    is worth ``1 - a + a P`` times itself, every other part ``1 - a``. The length stays what it was, ``E|v|^2 = P``, and
    so does the learning rate that one can afford. The squared cosine of the angle between v and g is, in the mean and
    up to how far ``|v|^2`` is from P, ``E(g.v)^2 / (P |g|^2) = (1 - a) / P + a cos^2(m, g)``: m helps as soon as its
    own squared cosine is above the ``1/P`` of a random direction, and is in the way otherwise. Until an estimate has
    been made m is zero, and v is u.

    ``m' = decay m + (1 - decay) estimate``, of which only the direction matters. The directions are dense, whatever u
    is made of, and m takes the memory of the parameters, twice during a step.

    Args:
        direction: the distribution of u, with ``E[u u^T] = I``.
        bias: a, between 0 and 1, both excluded.
        decay: of the running mean, from 0 to 1, 1 excluded.

    Raises:
        ValueError: if a number is out of range, or the directions are per-example.

    Source: Maheswaran et al., "Guided evolutionary strategies: augmenting random search with surrogate gradients",
    2019, arXiv:1806.10230, whose covariance this is for one surrogate gradient, m; times P, and with a sign where they
    draw a normal number. Fournier et al., "Can Forward Gradient Match Backpropagation?", 2023, arXiv:2306.06968,
    follow guesses alone (a = 1).
    """

    def __init__(self, direction: Direction, bias: float, decay: float = 0.99) -> None:
        if isinstance(bias, bool) or not isinstance(bias, int | float) or not 0 < bias < 1:
            raise ValueError(f"momentum_bias must be between 0 and 1, both excluded, got {bias!r}")
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be from 0 to 1, 1 excluded, got {decay!r}")
        if isinstance(direction, PerExample):
            raise ValueError(
                "momentum_bias mixes each direction with one vector, and per-example directions are many; use another "
                "direction, such as 'low_rank', or leave momentum_bias out"
            )
        self.direction = direction
        self.bias = bias
        self.decay = decay
        self._mean: dict[str, Tensor] = {}
        self._next: dict[str, Tensor] = {}

    def sample(self, params: Params, generator: KeyedGenerator) -> dict[str, Dense]:
        drawn = self.direction.sample(params, generator)
        means = {name: self._mean[name] for name in params if name in self._mean}
        if not means:
            return {name: Dense(tangent.materialize()) for name, tangent in drawn.items()}
        base, toward = self._weights(params, means)
        signs: dict[tuple[torch.dtype, torch.device], Tensor] = {}
        guided = {}
        for name, tangent in drawn.items():
            values = tangent.materialize()
            values = values * base.to(values)
            if name in means:
                key = values.dtype, values.device
                if key not in signs:
                    signs[key] = generator.signs(SIGN, 1, *key) * toward.to(values)
                values.addcmul_(signs[key].view(-1, *(1,) * means[name].dim()), means[name].unsqueeze(0))
            guided[name] = Dense(values)
        return guided

    def _weights(self, params: Params, means: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the factors of u and of m, as tensors: to read them would make the host wait for the device."""
        dtype = torch.promote_types(next(iter(means.values())).dtype, torch.float32)
        norms = [torch.linalg.vector_norm(mean, dtype=dtype) for mean in means.values()]
        norm = torch.linalg.vector_norm(torch.stack([each.to(norms[0].device) for each in norms]))
        count = sum(param.numel() for param in params.values())
        base = torch.where(norm > 0, norm.new_full((), math.sqrt(1 - self.bias)), norm.new_full((), 1.0))
        return base, torch.where(norm > 0, math.sqrt(self.bias * count) / norm, norm)

    def start(self, params: Params) -> None:
        """Begin to learn a step's estimate; the directions stay as they are until ``finish``."""
        self._next = {
            name: self.decay * self._mean[name] if name in self._mean else torch.zeros_like(param)
            for name, param in params.items()
        }

    def observe(self, tangents: Mapping[str, Tangent], coefficients: Tensor) -> None:
        """Learn a part ``sum_k alpha_k v_k`` of the estimate."""
        for name, tangent in tangents.items():
            tangent.add_to_(self._next[name], coefficients * (1 - self.decay))

    def finish(self) -> None:
        """End the step that ``start`` began."""
        self._mean |= self._next
        self._next = {}

    def state_dict(self) -> dict[str, Any]:
        return dict(self._mean)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._mean = dict(state)
