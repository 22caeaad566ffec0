"""Shuffled batches whose order is a pure function of (seed, epoch), so that a run can stop and go on anywhere."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fwdgrad.data.base import Split
from fwdgrad.randomness import KeyedGenerator


class Batches:
    """The batches of a split, epoch by epoch.

    Nothing is kept between epochs: ``epoch(e, start=k)`` yields what ``epoch(e)`` yields from batch k on, bit by bit.
    The order is drawn on the CPU whatever the split's device, and PyTorch's global generator is neither read nor
    advanced. A batch costs one ``index_select``, that is one copy of its examples; without shuffling it is a view of
    the split (or its normalised copy, for uint8 inputs) and must not be written to.

    Args:
        split: the examples.
        batch_size: examples a batch, at least 1.
        seed: seed of the order.
        shuffle: if False, the examples come in the order of the split in every epoch.
        drop_last: leave out the last batch of an epoch if it is smaller than ``batch_size``.

    Raises:
        ValueError: if ``batch_size`` is below 1, the split is empty, or ``drop_last`` would leave no batch.
    """

    def __init__(
        self, split: Split, batch_size: int, seed: int = 0, shuffle: bool = True, drop_last: bool = False
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if len(split) == 0:
            raise ValueError("batches need a split with at least one example, got an empty one")
        if drop_last and batch_size > len(split):
            raise ValueError(
                f"batch_size must be at most {len(split)}, the size of the split, with drop_last=True, "
                f"got {batch_size}: every batch would be dropped"
            )
        self.split = split
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.steps_per_epoch = len(split) // batch_size if drop_last else -(-len(split) // batch_size)

    def __len__(self) -> int:
        return self.steps_per_epoch

    def order(self, epoch: int) -> Tensor:
        """Return the indices of the examples in the order of an epoch, shape (N,), int64, on the CPU."""
        if not self.shuffle:
            return torch.arange(len(self.split))
        generator = KeyedGenerator(self.seed, epoch).torch_generator("data/order", 0, torch.device("cpu"))
        return torch.randperm(len(self.split), generator=generator)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the (inputs, targets) batches of an epoch from position ``start`` on.

        Args:
            epoch: number of the epoch, from 0; there is no last one.
            start: how many batches of the epoch to skip, from 0 to ``steps_per_epoch``.

        Raises:
            ValueError: if ``epoch`` is negative or ``start`` lies outside the epoch.
        """
        if epoch < 0:
            raise ValueError(f"epoch must be 0 or more, got {epoch}")
        if not 0 <= start <= self.steps_per_epoch:
            raise ValueError(
                f"start must be between 0 and {self.steps_per_epoch}, the number of batches in an epoch, got {start}"
            )
        return self._shuffled(epoch, start) if self.shuffle else self._in_order(start)

    def _shuffled(self, epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = self.order(epoch)[start * self.batch_size :].to(self.split.targets.device)
        parts = zip(
            order.split(self.batch_size), self.split.targets.index_select(0, order).split(self.batch_size), strict=True
        )
        for _, (indices, targets) in zip(range(start, self.steps_per_epoch), parts, strict=False):
            yield self.split.take(indices), targets

    def _in_order(self, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        for position in range(start, self.steps_per_epoch):
            first, last = position * self.batch_size, (position + 1) * self.batch_size
            yield self.split.narrow(first, last), self.split.targets[first:last]
