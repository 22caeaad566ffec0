"""What load_dataset returns: splits that are disjoint, cover the published images, and are normalised."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from fwdgrad.data import DATASETS, Dataset, Split, load_dataset
from fwdgrad.data.loading import stratified_sample

CONFIGS = Path(__file__).parents[1] / "configs" / "dataset"


def digit_pixels(split: Split) -> np.ndarray:
    info = DATASETS["digits"]
    return ((split.inputs * info.std[0] + info.mean[0]) * 16).round().to(torch.uint8).squeeze(1).numpy()


def splits(dataset: Dataset) -> tuple[Split, Split, Split]:
    return dataset.train, dataset.validation, dataset.test


def equal(left: Split, right: Split) -> bool:
    return torch.equal(left.inputs, right.inputs) and torch.equal(left.targets, right.targets)


def test_digits_have_the_promised_shape_and_types():
    dataset = load_dataset("digits")
    assert (dataset.name, dataset.input_shape, dataset.num_classes) == ("digits", (1, 8, 8), 10)
    assert [len(split) for split in splits(dataset)] == [1097, 200, 500]
    for split in splits(dataset):
        assert split.inputs.shape == (len(split), 1, 8, 8)
        assert split.inputs.dtype == torch.float32
        assert split.targets.dtype == torch.int64
        assert split.targets.unique().tolist() == list(range(10))


def test_digits_are_those_of_scikit_learn():
    datasets = pytest.importorskip("sklearn.datasets")
    published = datasets.load_digits()
    ours = [(*digit_pixels(split),) for split in splits(load_dataset("digits"))]
    labels = torch.cat([split.targets for split in splits(load_dataset("digits"))]).tolist()
    pixels = [image.tobytes() for part in ours for image in part]
    expected = [image.astype(np.uint8).tobytes() for image in published.images]
    assert sorted(zip(pixels, labels, strict=True)) == sorted(zip(expected, published.target.tolist(), strict=True))


def test_digits_splits_are_disjoint_and_cover_everything():
    # All 1797 images differ, so that disjoint splits have no image in common.
    images = [{image.tobytes() for image in digit_pixels(split)} for split in splits(load_dataset("digits"))]
    assert sum(len(part) for part in images) == len(set.union(*images)) == 1797


def test_digits_are_normalised_by_the_training_images():
    dataset = load_dataset("digits", validation_size=0)
    assert dataset.train.inputs.mean().abs() < 1e-3
    assert (dataset.train.inputs.std() - 1).abs() < 1e-3


def test_the_seed_moves_validation_examples_and_leaves_the_test_split():
    first, again, other = (load_dataset("digits", seed=seed) for seed in (0, 0, 1))
    assert all(equal(a, b) for a, b in zip(splits(first), splits(again), strict=True))
    assert equal(first.test, other.test)
    assert not equal(first.validation, other.validation)


@pytest.mark.parametrize("size", [0, 1, 200, 1296])
def test_validation_size_is_kept(size):
    dataset = load_dataset("digits", validation_size=size)
    assert [len(split) for split in splits(dataset)] == [1297 - size, size, 500]


@pytest.mark.parametrize("size", [-1, 1297])
def test_validation_size_out_of_range_is_refused(size):
    with pytest.raises(
        ValueError, match=rf"validation_size must be between 0 and 1296 for dataset 'digits'.*got {size}"
    ):
        load_dataset("digits", validation_size=size)


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"dataset must be one of \['digits', .*got 'fashion'. Did you mean 'fashion_"):
        load_dataset("fashion")


def test_loading_leaves_the_global_generators_alone():
    torch.manual_seed(0)
    np.random.seed(0)
    expected = torch.get_rng_state(), np.random.get_state()[1].tolist()
    load_dataset("digits", seed=5)
    assert torch.equal(torch.get_rng_state(), expected[0])
    assert np.random.get_state()[1].tolist() == expected[1]


@pytest.mark.parametrize("size", [0, 1, 37, 100, 199, 200])
def test_a_stratified_sample_has_every_class_in_proportion(size):
    targets = torch.cat([torch.full((count,), label) for label, count in enumerate([10, 0, 60, 130])])
    targets = targets[torch.randperm(200, generator=torch.Generator().manual_seed(0))]
    sample = stratified_sample(targets, size, seed=3)
    assert len(set(sample.tolist())) == size
    assert sample.tolist() == sorted(sample.tolist())
    shares = torch.tensor([10, 0, 60, 130]) * size / 200
    assert ((targets[sample].bincount(minlength=4) - shares).abs() <= 1).all()


def test_a_small_stratified_sample_is_of_the_large_classes():
    targets = torch.cat([torch.full((count,), label) for label, count in enumerate([10, 0, 60, 130])])
    assert targets[stratified_sample(targets, 3, seed=0)].bincount(minlength=4).tolist() == [0, 0, 1, 2]


def test_a_dataset_moves_to_a_device_and_keeps_its_facts():
    dataset = load_dataset("digits").to("cpu")
    assert (dataset.name, dataset.input_shape, dataset.num_classes) == ("digits", (1, 8, 8), 10)
    assert all(equal(a, b) for a, b in zip(splits(dataset), splits(load_dataset("digits")), strict=True))


def test_a_dataset_refuses_a_split_of_another_shape():
    good, bad = Split(torch.zeros(3, 4), torch.zeros(3).long()), Split(torch.zeros(3, 5), torch.zeros(3).long())
    with pytest.raises(ValueError, match=r"dataset 'mine': test inputs must have shape \(4,\) each, got \(5,\)"):
        Dataset("mine", good, good, bad, (4,), 2)


@pytest.mark.parametrize("name", DATASETS)
def test_the_shipped_configuration_agrees_with_the_data(name):
    config = OmegaConf.load(CONFIGS / f"{name}.yaml")
    info = DATASETS[name]
    assert config.name == name
    assert tuple(config.input_shape) == info.input_shape
    assert config.num_classes == info.num_classes
    assert config.validation_size == info.validation_size
    assert config.root is None
    assert len(info.mean) == len(info.std) == info.input_shape[0]


def test_every_configuration_is_a_known_dataset():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == set(DATASETS)


@pytest.mark.slow
def test_mnist_is_whole_and_normalised():
    root = next((r for r in (os.environ.get("FWDGRAD_DATA"), "data") if r and (Path(r) / "MNIST/raw").is_dir()), None)
    if root is None:
        pytest.skip("MNIST is neither in $FWDGRAD_DATA nor in data/")
    dataset = load_dataset("mnist", root=root, download=False)
    assert [len(split) for split in splits(dataset)] == [55000, 5000, 10000]
    assert dataset.input_shape == tuple(dataset.train.inputs.shape[1:]) == (1, 28, 28)
    assert dataset.train.inputs.dtype == torch.float32
    assert dataset.train.inputs.mean().abs() < 1e-3
    assert (dataset.train.inputs.std() - 1).abs() < 1e-3
    everything = load_dataset("mnist", root=root, download=False, validation_size=0)
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert everything.train.targets.bincount().tolist() == counts
    assert (dataset.train.targets.bincount() + dataset.validation.targets.bincount()).tolist() == counts
