"""What a direction is made of: for each parameter, K tangents with the same structure.

A tangent stands for ``K`` vectors ``v_1, ..., v_K``, each of the shape of one parameter. It is dense, or it keeps a
structure that an engine may use and an update can be applied from, so that the vectors need never exist in memory.
Every kind answers the same questions: how many directions (``num_directions``), of what shape (``shape``), as plain
tensors (``materialize``), against a gradient (``dot``), among each other (``gram``), and as an update (``add_to_``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Tangent(Protocol):
    """K vectors of the shape of one parameter."""

    @property
    def shape(self) -> torch.Size:
        """Shape of the parameter, without the leading K."""

    @property
    def num_directions(self) -> int:
        """K, the number of vectors."""

    def materialize(self) -> Tensor:
        """Return the vectors as one tensor of shape (K, *shape)."""

    def dot(self, other: Tensor) -> Tensor:
        """Return the inner products ``v_k . other``, shape (K,), of the vectors with a tensor of shape ``shape``."""

    def gram(self) -> Tensor:
        """Return the inner products ``v_j . v_k`` of the vectors with each other, shape (K, K)."""

    def add_to_(self, target: Tensor, alpha: Tensor) -> None:
        """Do ``target += sum_k alpha_k v_k`` in place; ``alpha`` has shape (K,)."""


def check_coefficients(alpha: Tensor, expected: tuple[int, ...]) -> None:
    """Raise ValueError unless ``alpha`` has the expected shape."""
    if tuple(alpha.shape) != expected:
        raise ValueError(f"alpha must have shape {expected}, got {tuple(alpha.shape)}")


@dataclass(frozen=True)
class Dense:
    """K plain tensors: ``values`` has shape (K, *shape)."""

    values: Tensor

    @property
    def shape(self) -> torch.Size:
        return self.values.shape[1:]

    @property
    def num_directions(self) -> int:
        return self.values.shape[0]

    def materialize(self) -> Tensor:
        return self.values

    def dot(self, other: Tensor) -> Tensor:
        return self._flat() @ other.reshape(-1)

    def gram(self) -> Tensor:
        flat = self._flat()
        return flat @ flat.T

    def add_to_(self, target: Tensor, alpha: Tensor) -> None:
        check_coefficients(alpha, (self.num_directions,))
        alpha = alpha.to(target.dtype)
        if self.num_directions == 1 and target.is_cpu:
            target.add_(self.values[0], alpha=alpha.item())
        elif self.num_directions == 1:  # reading the number would make the host wait for the device
            target.addcmul_(self.values[0], alpha.view(()).expand_as(target))
        else:
            target.add_(torch.tensordot(alpha, self.values.to(target.dtype), dims=1))

    def _flat(self) -> Tensor:
        # The size is spelt out for the parameters without dimensions and without entries.
        return self.values.reshape(self.num_directions, self.shape.numel())


@dataclass(frozen=True)
class LowRank:
    """K sums of r outer products: ``v_k = sum_r left[k, r] (x) right[k, r]``.

    ``left`` has shape (K, r, n) and ``right`` (K, r, *rest), for a parameter of shape (n, *rest): a linear weight
    (out, in), a convolution's (out, in, height, width), an embedding's (tokens, features). A scale such as
    ``1 / sqrt(r)`` belongs to one of the factors.
    """

    left: Tensor
    right: Tensor

    @property
    def shape(self) -> torch.Size:
        return torch.Size((self.left.shape[2], *self.right.shape[2:]))

    @property
    def num_directions(self) -> int:
        return self.left.shape[0]

    @property
    def rank(self) -> int:
        return self.left.shape[1]

    def materialize(self) -> Tensor:
        flat = self.left.transpose(1, 2) @ self.right.flatten(2)
        return flat.view(self.num_directions, *self.shape)

    def dot(self, other: Tensor) -> Tensor:
        rows = self.left @ other.reshape(other.shape[0], -1)
        return (rows * self.right.flatten(2)).sum((1, 2))

    def gram(self) -> Tensor:
        # <a c', b d'> = (a.b)(c.d), summed over the ranks of both sides.
        k, r = self.left.shape[:2]
        left = self.left.flatten(0, 1)
        right = self.right.reshape(k * r, -1)
        return ((left @ left.T) * (right @ right.T)).view(k, r, k, r).sum((1, 3))

    def add_to_(self, target: Tensor, alpha: Tensor) -> None:
        check_coefficients(alpha, (self.num_directions,))
        if self.left.shape[:2] == (1, 1) and target.dim() == 2 and target.is_cpu and self.left.dtype == target.dtype:
            target.addr_(self.left.view(-1), self.right.view(-1), alpha=alpha.item())
            return
        left = (self.left * alpha.to(self.left.dtype).view(-1, 1, 1)).flatten(0, 1)
        right = self.right.flatten(0, 1)
        if left.dtype != target.dtype:
            left, right = left.to(target.dtype), right.to(target.dtype)
        if target.dim() != 2:
            if not target.is_contiguous():  # a channels_last weight cannot be viewed as a matrix in this order
                target.add_((left.T @ right.flatten(1)).view(self.shape))
                return
            target, right = target.view(target.shape[0], -1), right.flatten(1)
        if left.shape[0] == 1:
            target.addr_(left[0], right[0])
        else:
            target.addmm_(left.T, right)


class PerExample:
    """K directions in which every example of the batch has its own vector, drawn when the batch size is known.

    For a parameter of shape (n, *rest) with at least two dimensions the vector of example b in direction k is the
    outer product ``left[k, b] (x) right[k, b]``, with ``left`` of shape (K, B, n) and ``right`` (K, B, *rest); for a
    vector parameter it is ``left[k, b]`` itself and ``right`` is None.

    Args:
        shape: shape of the parameter.
        num_directions: K.
        draw: ``draw(batch_size) -> (left, right)``, called at most once.
    """

    def __init__(
        self, shape: torch.Size, num_directions: int, draw: Callable[[int], tuple[Tensor, Tensor | None]]
    ) -> None:
        self.shape = shape
        self.num_directions = num_directions
        self._draw = draw
        self._factors: tuple[Tensor, Tensor | None] | None = None

    @property
    def drawn(self) -> bool:
        """Whether the factors were asked for: whether the parameter took part in what was computed."""
        return self._factors is not None

    def factors(self, batch_size: int) -> tuple[Tensor, Tensor | None]:
        """Return (left, right) for a batch, drawing them at the first call.

        Raises:
            ValueError: if another batch size was asked for before.
        """
        if self._factors is None:
            self._factors = self._draw(batch_size)
        drawn = self._factors[0].shape[1]
        if drawn != batch_size:
            raise ValueError(
                f"per-example directions were drawn for {drawn} examples and are now applied to {batch_size}; "
                "the first dimension of every activation must be the batch"
            )
        return self._factors

    def materialize(self) -> Tensor:
        raise TypeError(
            "per-example directions have no single tensor per parameter; use engine='dual', or a shared direction "
            "such as direction='low_rank'"
        )

    def dot(self, other: Tensor) -> Tensor:
        """Return ``v_{k,b} . other``, shape (K, B)."""
        left, right = self._drawn()
        if right is None:
            return left @ other
        rows = left @ other.reshape(other.shape[0], -1)
        return (rows * right.flatten(2)).sum(-1)

    def gram(self) -> Tensor:
        raise TypeError("per-example directions have one Gram matrix per example; use aggregation='mean'")

    def add_to_(self, target: Tensor, alpha: Tensor) -> None:
        """Do ``target += sum_{k,b} alpha_{k,b} v_{k,b}``: one matrix product; ``alpha`` has shape (K, B)."""
        left, right = self._drawn()
        check_coefficients(alpha, tuple(left.shape[:2]))
        weights = alpha.to(target.dtype)
        if right is None:
            target.add_(torch.tensordot(weights, left.to(target.dtype), dims=2))
            return
        scaled = (left.to(target.dtype) * weights.unsqueeze(-1)).flatten(0, 1)
        flat = right.to(target.dtype).flatten(0, 1).flatten(1)
        if target.dim() == 2:
            target.addmm_(scaled.T, flat)
        else:
            target.add_((scaled.T @ flat).view(self.shape))

    def _drawn(self) -> tuple[Tensor, Tensor | None]:
        if self._factors is None:
            raise RuntimeError("this per-example direction was never used: its parameter took no part in the loss")
        return self._factors
