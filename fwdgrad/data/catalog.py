"""The datasets that can be loaded by a word, and the published facts about each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class DatasetInfo:
    """The published facts about a dataset.

    Args:
        input_shape: shape (C, H, W) of one image.
        num_classes: number of classes.
        train_size: images in the published training set, validation included.
        test_size: images in the published test set.
        max_value: the largest value a pixel can have as stored; 0 is the smallest.
        mean: mean of each channel over the published training images, with pixels divided by ``max_value``.
        std: standard deviation of each channel, likewise.
        validation_size: default number of training images held out for validation.
        torchvision_class: name of the class in ``torchvision.datasets``; None for embedded data.
        folder: where that class keeps its files below the root.
        md5: MD5 sums of the uncompressed files by name, where they are known.
    """

    input_shape: tuple[int, int, int]
    num_classes: int
    train_size: int
    test_size: int
    max_value: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    validation_size: int
    torchvision_class: str | None = None
    folder: str = ""
    md5: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class RawImages:
    """Images (N, C, H, W) uint8 and classes (N,) int64 as published, before normalisation and validation split."""

    train_images: Tensor
    train_targets: Tensor
    test_images: Tensor
    test_targets: Tensor


def check_raw(raw: RawImages, info: DatasetInfo) -> str | None:
    """Return what contradicts the published facts, in words, or None."""
    for word, images, targets, size in (
        ("training", raw.train_images, raw.train_targets, info.train_size),
        ("test", raw.test_images, raw.test_targets, info.test_size),
    ):
        expected = (size, *info.input_shape)
        if tuple(images.shape) != expected or images.dtype != torch.uint8:
            return f"{word} images must be {expected} uint8, got {tuple(images.shape)} {images.dtype}"
        if tuple(targets.shape) != (size,):
            return f"there must be {size} {word} labels, got {tuple(targets.shape)}"
        low, high = int(targets.min()), int(targets.max())
        if low < 0 or high >= info.num_classes:
            return f"{word} labels must lie in 0..{info.num_classes - 1}, got {low}..{high}"
    return None


MNIST_MD5 = (
    ("train-images-idx3-ubyte", "6bbc9ace898e44ae57da46a324031adb"),
    ("train-labels-idx1-ubyte", "a25bea736e30d166cdddb491f175f624"),
    ("t10k-images-idx3-ubyte", "2646ac647ad5339dbf082846283269ea"),
    ("t10k-labels-idx1-ubyte", "27ae3e4e09519cfbb04c329615203637"),
)


DATASETS: dict[str, DatasetInfo] = {
    "digits": DatasetInfo((1, 8, 8), 10, 1297, 500, 16, (0.3057,), (0.3765,), validation_size=200),
    "mnist": DatasetInfo(
        (1, 28, 28), 10, 60000, 10000, 255, (0.1307,), (0.3081,), 5000, "MNIST", "MNIST/raw", MNIST_MD5
    ),
    "fashion_mnist": DatasetInfo(
        (1, 28, 28), 10, 60000, 10000, 255, (0.2860,), (0.3530,), 5000, "FashionMNIST", "FashionMNIST/raw"
    ),
    "kmnist": DatasetInfo((1, 28, 28), 10, 60000, 10000, 255, (0.1918,), (0.3483,), 5000, "KMNIST", "KMNIST/raw"),
    "cifar10": DatasetInfo(
        (3, 32, 32),
        10,
        50000,
        10000,
        255,
        (0.4914, 0.4822, 0.4465),
        (0.2470, 0.2435, 0.2616),
        5000,
        "CIFAR10",
        "cifar-10-batches-py",
    ),
}
