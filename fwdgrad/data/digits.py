"""The embedded dataset: handwritten digits that need no download. See ``embedded/README.md`` for source and licence."""

from __future__ import annotations

import io
from importlib.resources import files

import numpy as np
import torch
from torch import Tensor

from fwdgrad.data.base import DataError
from fwdgrad.data.catalog import RawImages


def read_digits() -> RawImages:
    """Read the 1297 training and 500 test images of shape (1, 8, 8), values 0..16.

    Raises:
        DataError: if the file is not part of the installation or is damaged.
    """
    file = files("fwdgrad.data").joinpath("embedded/digits.npz")
    try:
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as arrays:
            images = torch.from_numpy(arrays["images"]).unsqueeze(1)
            labels = torch.from_numpy(arrays["labels"]).long()
            test = torch.from_numpy(arrays["test"]).long()
    except Exception as error:  # a damaged archive raises whatever its first wrong byte leads to
        raise DataError(
            f"the embedded file {file} cannot be read ({type(error).__name__}: {error}); install fwdgrad again"
        ) from error
    train = _complement(test, len(labels))
    return RawImages(images[train], labels[train], images[test], labels[test])


def _complement(indices: Tensor, size: int) -> Tensor:
    mask = torch.ones(size, dtype=torch.bool)
    mask[indices] = False
    return mask.nonzero().squeeze(1)
