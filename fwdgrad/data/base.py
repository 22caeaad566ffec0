"""What a dataset is: three splits of examples held in memory as tensors."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


class DataError(RuntimeError):
    """A dataset is missing, cannot be downloaded, or is damaged."""


@dataclass(frozen=True, eq=False)
class Normalization:
    """The affine map ``(x - mean) / std`` from stored values to what a model sees.

    ``mean`` and ``std`` are float32, in the units of the stored values, and broadcast against one example.
    """

    mean: Tensor
    std: Tensor

    def __call__(self, stored: Tensor) -> Tensor:
        return stored.to(self.mean.dtype, copy=True).sub_(self.mean).div_(self.std)

    def to(self, device: torch.device | str) -> Normalization:
        return Normalization(self.mean.to(device), self.std.to(device))


@dataclass(frozen=True, eq=False)
class Split:
    """Examples and their classes.

    Args:
        inputs: shape (N, C, H, W) or (N, *features). Normalised float32, or uint8 with a ``normalization`` that is
            applied whenever examples are taken out.
        targets: classes, shape (N,), int64.
        normalization: what turns uint8 inputs into normalised ones; None if ``inputs`` are ready for a model.

    Raises:
        ValueError: if there are not as many targets as inputs, or uint8 inputs come without a normalization.
    """

    inputs: Tensor
    targets: Tensor
    normalization: Normalization | None = None

    def __post_init__(self) -> None:
        if self.targets.dim() != 1 or self.inputs.dim() < 2 or len(self.inputs) != len(self.targets):
            raise ValueError(
                "a split needs inputs of shape (N, *features) and targets of shape (N,), "
                f"got {tuple(self.inputs.shape)} and {tuple(self.targets.shape)}"
            )
        if (self.inputs.dtype == torch.uint8) != (self.normalization is not None):
            raise ValueError(
                f"inputs of {self.inputs.dtype} {'come with' if self.normalization else 'need'} a normalization; "
                "uint8 inputs must have one, inputs of any other type must already be normalised"
            )

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, indices: Tensor) -> Tensor:
        """Return a copy of the inputs at ``indices``, shape (B, *features), normalised; indices on the same device."""
        taken = self.inputs.index_select(0, indices)
        return taken if self.normalization is None else self.normalization(taken)

    def narrow(self, start: int, stop: int) -> Tensor:
        """Return the inputs from ``start`` up to ``stop``, normalised; a view of ``inputs`` if they are float."""
        part = self.inputs[start:stop]
        return part if self.normalization is None else self.normalization(part)

    def to(self, device: torch.device | str) -> Split:
        normalization = None if self.normalization is None else self.normalization.to(device)
        return Split(self.inputs.to(device), self.targets.to(device), normalization)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A classification dataset in memory.

    Args:
        name: the word it was loaded by.
        train: what a model is trained on.
        validation: carved out of the published training set, for choosing settings; may be empty.
        test: the published test set, for the final figures.
        input_shape: shape of one example, such as (1, 28, 28).
        num_classes: number of classes; targets lie in [0, num_classes).

    Raises:
        ValueError: if a split's examples are not of ``input_shape``.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    input_shape: tuple[int, ...]
    num_classes: int

    def __post_init__(self) -> None:
        for word in ("train", "validation", "test"):
            shape = tuple(getattr(self, word).inputs.shape[1:])
            if shape != self.input_shape:
                raise ValueError(
                    f"dataset {self.name!r}: {word} inputs must have shape {self.input_shape} each, got {shape}"
                )

    def to(self, device: torch.device | str) -> Dataset:
        """Return the dataset with all its tensors on ``device``."""
        return replace(
            self, train=self.train.to(device), validation=self.validation.to(device), test=self.test.to(device)
        )
