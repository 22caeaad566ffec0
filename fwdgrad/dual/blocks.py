"""Directions that share out the entries of one value among them: tangents that are zero outside of their own block."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fwdgrad.dual.correlation import unfold
from fwdgrad.dual.masking import Masked


def even_blocks(entries: int, count: int) -> tuple[int, int]:
    """Return how many blocks of one size, about ``count``, the entries are cut into, and the size; the last is filled.

    The number is at most ``count``, and no block is empty.
    """
    size = -(-entries // min(count, entries))
    return -(-entries // size), size


class Blocks:
    """K tangents (K, B, ...) of a value: vectors that are zero but for a block of each example's entries.

    ``values`` (B, ...) holds the blocks one behind the other: with n entries of an example, in their order, direction k
    is ``values`` from entry ``k size`` to ``(k + 1) size`` and zero elsewhere. What acts on each entry by itself leaves
    them so. A product sums over the entries, so that a linear layer takes all K directions at the price of one, and so
    does a convolution if a block is some whole channels.

    Args:
        values: the entries of all directions.
        size: entries in a block; the last may have fewer.
        earlier: tangents (K', B, ...) of directions that come before these, dense; none if None.

    Raises:
        ValueError: if an example has no dimension of entries, or a block no entries.
    """

    __slots__ = ("count", "earlier", "size", "values")

    def __init__(self, values: Tensor, size: int, earlier: Tensor | Masked | None = None) -> None:
        if values.dim() < 2 or size < 1:
            raise ValueError(
                f"Blocks needs values of shape (B, ...) and a size of at least 1, got shape {tuple(values.shape)} "
                f"and size {size}"
            )
        self.values = values
        self.size = size
        self.count = -(-values.shape[1:].numel() // size)
        self.earlier = earlier

    def __len__(self) -> int:
        return self.count

    @property
    def dtype(self) -> torch.dtype:
        return self.values.dtype

    def after(self, earlier: Tensor) -> Blocks:
        """Return these tangents behind dense ones of directions that come before them."""
        return Blocks(self.values, self.size, earlier)

    def relu(self, y: Tensor) -> Blocks:
        """Return the tangents behind a ReLU with result y; the dense ones are masked when they are asked for."""
        earlier = None if self.earlier is None else Masked(self.settled(), y._version)
        return Blocks(torch.ops.aten.threshold_backward(self.values, y, 0), self.size, earlier)

    def map(self, push: Callable[[Tensor], Tensor]) -> Blocks:
        """Return what an elementwise function makes of the tangents; ``push`` takes some, (K, B, ...)."""
        earlier = None if self.earlier is None else push(self.settled())
        return Blocks(push(self.values.unsqueeze(0)).squeeze(0), self.size, earlier)

    def flatten(self) -> Blocks:
        """Return the tangents of ``x.flatten(1)``."""
        earlier = None if self.earlier is None else self.settled().flatten(2)
        return Blocks(self.values.flatten(1), self.size, earlier)

    def by_channel(self, push: Callable[[Tensor], Tensor]) -> Blocks | None:
        """Return what a function of each channel makes of the tangents, or None where blocks cut through channels.

        Args:
            push: takes tangents (K, B, channels, ...) to (K, B, channels, ...).
        """
        channels, rest = divmod(self.size, self.values.shape[2:].numel())
        if rest or self.values.dim() < 3:
            return None
        values = push(self.values.unsqueeze(0)).squeeze(0)
        earlier = None if self.earlier is None else push(self.settled())
        return Blocks(values, channels * values.shape[2:].numel(), earlier)

    def linear(self, weight: Tensor) -> Tensor | None:
        """Return the tangents of ``x W'``, (K' + K, B, m), for a value with two dimensions, or None."""
        if self.values.dim() != 2 or weight.dim() != 2 or weight.dtype is not self.dtype:
            return None
        out = self._empty(weight.shape[0])
        batch, entries = self.values.shape
        if self.earlier is not None:
            rows = self.settled().reshape(-1, entries)
            torch.mm(rows, weight.t(), out=out[: -self.count].view(-1, weight.shape[0]))
        if self.size == 1:
            torch.mul(self.values.t().unsqueeze(2), weight.t().unsqueeze(1), out=out[-self.count :])
            return out
        values, missing = self.values, self.count * self.size - entries
        if missing:
            values, weight = F.pad(values, (0, missing)), F.pad(weight, (0, missing))
        left = values.view(batch, self.count, self.size).transpose(0, 1)
        right = weight.view(-1, self.count, self.size).permute(1, 2, 0)
        torch.bmm(left, right, out=out[-self.count :])
        return out

    def convolve(
        self, function: Callable[..., Tensor], weight: Tensor, out: torch.Size, *geometry: object
    ) -> Tensor | None:
        """Return the tangents of ``function(x, weight, None, *geometry, 1)``, (K' + K, B, channels, *out), or None.

        Each block is a group of channels with a weight of its own, all in one grouped convolution. Where a group is one
        channel, libraries are slow, and a product for each block takes a third of the time.
        """
        channels, positions = self.values.shape[1], self.values.shape[2:].numel()
        group, rest = divmod(self.size, positions)
        whole = rest == 0 and self.count * group == channels == weight.shape[1]
        if not whole or weight.dtype is not self.dtype:
            return None
        columns = unfold(self.values, weight.shape[2:], *geometry) if group == 1 else None
        if columns is None:
            kernels = weight.unflatten(1, (self.count, group)).transpose(0, 1).flatten(0, 1)
            moved = function(self.values, kernels, None, *geometry, self.count).unflatten(1, (self.count, -1))
            moved = moved.transpose(0, 1)
        else:
            batch, _, positions = columns.shape
            moved = columns.new_empty((self.count, batch, len(weight), positions))
            pairs = zip(weight.unbind(1), columns.unflatten(1, (self.count, -1)).unbind(1), moved, strict=True)
            for kernel, seen, target in pairs:
                torch.matmul(kernel.flatten(1), seen, out=target)
            moved = moved.unflatten(3, out)
        if self.earlier is None:
            return moved
        earlier = function(self.settled().flatten(0, 1), weight, None, *geometry, 1)
        return torch.cat([earlier.unflatten(0, (-1, moved.shape[1])), moved])

    def materialize(self) -> Tensor:
        """Return all tangents as one tensor (K' + K, B, ...)."""
        out = self._empty(*self.values.shape[1:])
        if self.earlier is not None:
            out[: -self.count] = self.settled()
        own, values = out[-self.count :].zero_().flatten(2), self.values.flatten(1)
        for k in range(self.count):
            block = slice(k * self.size, (k + 1) * self.size)
            own[k, :, block] = values[:, block]
        return out

    def settle(self, y: Tensor) -> Blocks:
        """Mask the dense tangents that wait for it, given the value whose tangents these are."""
        if type(self.earlier) is Masked:
            self.earlier = self.earlier.apply(y)
        return self

    def settled(self) -> Tensor:
        assert isinstance(self.earlier, Tensor)
        return self.earlier

    def _empty(self, *rest: int) -> Tensor:
        before = 0 if self.earlier is None else len(self.settled())
        shape = (before + self.count, self.values.shape[0], *rest)
        return torch.empty(shape, dtype=self.dtype, device=self.values.device)
