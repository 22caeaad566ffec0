"""Datasets held in memory as tensors, and batches of them. ``load_dataset`` loads one by a word of ``DATASETS``."""

from fwdgrad.data.base import DataError, Dataset, Normalization, Split
from fwdgrad.data.batches import Batches
from fwdgrad.data.catalog import DATASETS, DatasetInfo
from fwdgrad.data.loading import load_dataset

__all__ = ["DATASETS", "Batches", "DataError", "Dataset", "DatasetInfo", "Normalization", "Split", "load_dataset"]
