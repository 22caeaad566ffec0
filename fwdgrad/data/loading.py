"""From a word to a dataset in memory: read, hold out a validation split, normalise."""

from __future__ import annotations

import difflib
import math

import numpy as np
import torch
from torch import Tensor

from fwdgrad.data.base import DataError, Dataset, Normalization, Split
from fwdgrad.data.catalog import DATASETS, DatasetInfo, check_raw
from fwdgrad.data.digits import read_digits
from fwdgrad.data.vision import read_vision

# A dataset whose images take at most this much as float32 is normalised once and kept so (MNIST: 220 MB); a larger one
# stays uint8, a quarter of the size, and is normalised batch by batch (CIFAR-10: 184 MB instead of 737 MB).
FLOAT_BYTES_LIMIT = 512 * 2**20


def load_dataset(
    name: str, root: str | None = None, download: bool = True, validation_size: int | None = None, seed: int = 0
) -> Dataset:
    """Load a dataset into memory, normalised by the mean and standard deviation of its published training images.

    The test split is the published one. The validation split is drawn from the published training set, with every
    class in proportion, and depends on ``validation_size`` and ``seed`` alone.

    Args:
        name: a word of ``DATASETS``.
        root: folder that holds the datasets, in torchvision's layout; None means the environment variable
            ``FWDGRAD_DATA``, else ``data``. The embedded digits need none.
        download: download the dataset if it is missing.
        validation_size: number of training examples held out; None means the dataset's default, 0 none.
        seed: seed of the choice of validation examples.

    Raises:
        ValueError: if the name is not known, or no training example would be left.
        DataError: if the files are missing and cannot be downloaded, or are damaged.
    """
    if name not in DATASETS:
        close = difflib.get_close_matches(str(name), DATASETS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"dataset must be one of {list(DATASETS)}, got {name!r}.{hint}")
    info = DATASETS[name]
    size = info.validation_size if validation_size is None else validation_size
    if not 0 <= size < info.train_size:
        raise ValueError(
            f"validation_size must be between 0 and {info.train_size - 1} for dataset {name!r}, "
            f"which has {info.train_size} training examples, got {size}"
        )
    if info.torchvision_class is None:
        raw = read_digits()
        complaint = check_raw(raw, info)
        if complaint is not None:
            raise DataError(f"the embedded dataset {name!r} is damaged ({complaint}); install fwdgrad again")
    else:
        raw = read_vision(name, info, root, download)
    held_out = stratified_sample(raw.train_targets, size, seed)
    kept = torch.ones(info.train_size, dtype=torch.bool)
    kept[held_out] = False
    return Dataset(
        name=name,
        train=_make_split(raw.train_images[kept], raw.train_targets[kept], info),
        validation=_make_split(raw.train_images[held_out], raw.train_targets[held_out], info),
        test=_make_split(raw.test_images, raw.test_targets, info),
        input_shape=info.input_shape,
        num_classes=info.num_classes,
    )


def stratified_sample(targets: Tensor, size: int, seed: int) -> Tensor:
    """Draw ``size`` examples without replacement, every class in proportion to its share.

    The i-th of the n examples of a class, in random order, is given the place (i + 1/2) / n, and the examples with the
    lowest places are taken.

    Args:
        targets: classes, shape (N,), int64.
        size: number of examples to draw, at most N.
        seed: seed of the random order, whose generator is frozen across library versions.

    Returns:
        Their indices in ascending order, shape (size,), int64.
    """
    classes = targets.numpy()
    shuffled = np.random.RandomState(seed).permutation(len(classes))
    by_class = shuffled[np.argsort(classes[shuffled], kind="stable")]
    counts = np.bincount(classes)
    places = np.concatenate([(np.arange(count) + 0.5) / count for count in counts])
    chosen = by_class[np.argsort(places, kind="stable")[:size]]
    return torch.from_numpy(np.sort(chosen))


def _make_split(images: Tensor, targets: Tensor, info: DatasetInfo) -> Split:
    shape = (-1, 1, 1)
    normalization = Normalization(
        (torch.tensor(info.mean) * info.max_value).view(shape), (torch.tensor(info.std) * info.max_value).view(shape)
    )
    total = (info.train_size + info.test_size) * math.prod(info.input_shape) * 4
    if total > FLOAT_BYTES_LIMIT:
        return Split(images, targets, normalization)
    return Split(normalization(images), targets)
