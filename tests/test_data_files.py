"""Datasets read from files: what is right is read, and each way of being missing or damaged is told in one line."""

from __future__ import annotations

import hashlib
import pickle
import socket
import struct
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision

from fwdgrad.data import DATASETS, DataError, load_dataset
from fwdgrad.data import digits as digits_module
from fwdgrad.data import loading as loading_module
from fwdgrad.data.vision import resolve_root

TRAIN, TEST = 60, 20


def write_idx(folder: Path, prefix: str, images: np.ndarray, labels: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    header = struct.pack(">4I", 0x803, *images.shape)
    (folder / f"{prefix}-images-idx3-ubyte").write_bytes(header + images.tobytes())
    (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, len(labels)) + labels.tobytes())


@pytest.fixture
def kmnist(tmp_path, monkeypatch):
    """A root with a small KMNIST, and the images and labels in it."""
    monkeypatch.setitem(
        DATASETS, "kmnist", replace(DATASETS["kmnist"], train_size=TRAIN, test_size=TEST, validation_size=10)
    )
    random = np.random.RandomState(0)
    images = random.randint(0, 256, (TRAIN + TEST, 28, 28), dtype=np.uint8)
    labels = (np.arange(TRAIN + TEST) % 10).astype(np.uint8)
    write_idx(tmp_path / "KMNIST/raw", "train", images[:TRAIN], labels[:TRAIN])
    write_idx(tmp_path / "KMNIST/raw", "t10k", images[TRAIN:], labels[TRAIN:])
    return tmp_path, images, labels


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """A root with a small CIFAR-10, and the images and labels in it."""
    monkeypatch.setitem(
        DATASETS, "cifar10", replace(DATASETS["cifar10"], train_size=TRAIN, test_size=TEST, validation_size=10)
    )
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    random = np.random.RandomState(0)
    images = random.randint(0, 256, (TRAIN + TEST, 3, 32, 32), dtype=np.uint8)
    labels = [index % 10 for index in range(TRAIN + TEST)]

    def write(name: str, content: dict) -> list[str]:
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return [name, hashlib.md5(data).hexdigest()]

    def batch(start: int, stop: int) -> dict:
        return {"data": images[start:stop].reshape(stop - start, -1), "labels": labels[start:stop]}

    constructor = torchvision.datasets.CIFAR10
    parts = [write("data_batch_1", batch(0, 30)), write("data_batch_2", batch(30, TRAIN))]
    monkeypatch.setattr(constructor, "train_list", parts)
    monkeypatch.setattr(constructor, "test_list", [write("test_batch", batch(TRAIN, TRAIN + TEST))])
    name, md5 = write("batches.meta", {"label_names": list("abcdefghij")})
    monkeypatch.setattr(constructor, "meta", {"filename": name, "key": "label_names", "md5": md5})
    return tmp_path, images, labels


@pytest.fixture
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise URLError("Name or service not known")

    monkeypatch.setattr(torchvision.datasets.mnist, "download_and_extract_archive", refuse)
    monkeypatch.setattr(torchvision.datasets.cifar, "download_and_extract_archive", refuse)


def test_idx_files_are_read_and_normalised(kmnist):
    root, images, labels = kmnist
    dataset = load_dataset("kmnist", root=str(root), download=False)
    assert [len(dataset.train), len(dataset.validation), len(dataset.test)] == [50, 10, 20]
    info = DATASETS["kmnist"]
    expected = (torch.from_numpy(images[TRAIN:]).float() / 255 - info.mean[0]) / info.std[0]
    torch.testing.assert_close(dataset.test.inputs.squeeze(1), expected)
    assert dataset.test.targets.tolist() == labels[TRAIN:].tolist()
    assert dataset.validation.targets.bincount().tolist() == [1] * 10


@pytest.mark.parametrize("limit", [2**30, 0], ids=["float32", "uint8"])
def test_cifar_is_read_channels_first_and_normalised_either_way(cifar, monkeypatch, limit):
    monkeypatch.setattr(loading_module, "FLOAT_BYTES_LIMIT", limit)
    root, images, labels = cifar
    test = load_dataset("cifar10", root=str(root), download=False).test
    assert test.inputs.dtype == (torch.float32 if limit else torch.uint8)
    info = DATASETS["cifar10"]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (info.mean, info.std))
    expected = (torch.from_numpy(images[TRAIN:]).float() / 255 - mean) / std
    torch.testing.assert_close(test.take(torch.arange(TEST)), expected)
    torch.testing.assert_close(test.narrow(3, 9), expected[3:9])
    assert test.targets.tolist() == labels[TRAIN:]


def test_published_mnist_is_kept_as_float_and_cifar_as_bytes():
    sizes = {
        name: (info.train_size + info.test_size) * np.prod(info.input_shape) * 4 for name, info in DATASETS.items()
    }
    assert {name for name, size in sizes.items() if size > loading_module.FLOAT_BYTES_LIMIT} == {"cifar10"}


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("mnist", "MNIST/raw"),
        ("fashion_mnist", "FashionMNIST/raw"),
        ("kmnist", "KMNIST/raw"),
        ("cifar10", "cifar-10-batches-py"),
    ],
)
@pytest.mark.parametrize("download", [True, False])
def test_a_missing_dataset_offline_gives_one_line_with_the_remedies(name, folder, download, tmp_path, offline):
    with pytest.raises(DataError) as caught:
        load_dataset(name, root=str(tmp_path), download=download)
    message = str(caught.value)
    assert "\n" not in message
    for part in (repr(name), str(tmp_path / folder), "FWDGRAD_DATA", "dataset.root", "dataset=digits", "download"):
        assert part in message
    assert ("Name or service not known" in message) == download
    assert ("dataset.download is false" in message) != download


def test_no_download_is_tried_where_the_files_are(kmnist, offline):
    assert len(load_dataset("kmnist", root=str(kmnist[0])).train) == 50


def test_a_download_has_a_time_limit_that_ends_with_it(tmp_path, monkeypatch):
    limits = []

    def refuse(*args, **kwargs):
        limits.append(socket.getdefaulttimeout())
        raise TimeoutError("timed out")

    monkeypatch.setattr(torchvision.datasets.cifar, "download_and_extract_archive", refuse)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(7.0)
    try:
        with pytest.raises(DataError, match=r"it cannot be downloaded: timed out"):
            load_dataset("cifar10", root=str(tmp_path))
        assert limits == [30.0]
        assert socket.getdefaulttimeout() == 7.0
    finally:
        socket.setdefaulttimeout(before)


def test_one_missing_file_is_named(kmnist):
    (kmnist[0] / "KMNIST/raw/t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte is not there, and dataset.download is false"):
        load_dataset("kmnist", root=str(kmnist[0]), download=False)


@pytest.mark.parametrize(
    "file", ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]
)
@pytest.mark.parametrize("download", [True, False])
def test_a_truncated_file_is_named_with_the_remedy(kmnist, offline, file, download):
    path = kmnist[0] / "KMNIST/raw" / file
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(DataError) as caught:
        load_dataset("kmnist", root=str(kmnist[0]), download=download)
    message = str(caught.value)
    assert f"{path} is damaged (it has {size - 7} bytes, {size} are required)" in message
    assert "Delete it and run again with dataset.download=true, or use dataset=digits" in message
    assert "\n" not in message


def test_an_empty_file_is_named(kmnist):
    (kmnist[0] / "KMNIST/raw/train-labels-idx1-ubyte").write_bytes(b"")
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte is damaged \(it has 0 bytes, 68 are required\)"):
        load_dataset("kmnist", root=str(kmnist[0]))


def test_a_wrong_header_is_named(kmnist):
    path = kmnist[0] / "KMNIST/raw/t10k-images-idx3-ubyte"
    path.write_bytes(b"\x00\x00\x0d\x03" + path.read_bytes()[4:])
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte is damaged \(its header does not match"):
        load_dataset("kmnist", root=str(kmnist[0]))


def test_a_label_out_of_range_is_refused(kmnist):
    path = kmnist[0] / "KMNIST/raw/train-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1] + b"\x63")
    with pytest.raises(DataError, match=r"KMNIST/raw is damaged \(training labels must lie in 0..9, got 0..99\)"):
        load_dataset("kmnist", root=str(kmnist[0]))


def test_a_flipped_bit_is_found_where_the_sum_is_known(kmnist, monkeypatch):
    path = kmnist[0] / "KMNIST/raw/train-images-idx3-ubyte"
    content = path.read_bytes()
    sums = ((path.name, hashlib.md5(content).hexdigest()),)
    monkeypatch.setitem(DATASETS, "kmnist", replace(DATASETS["kmnist"], md5=sums))
    load_dataset("kmnist", root=str(kmnist[0]))
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte is damaged \(its MD5 sum is not the published"):
        load_dataset("kmnist", root=str(kmnist[0]))


def test_a_damaged_cifar_file_is_named(cifar):
    path = cifar[0] / "cifar-10-batches-py/data_batch_2"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(DataError, match=r"data_batch_2 is damaged \(its MD5 sum .* dataset.download=true"):
        load_dataset("cifar10", root=str(cifar[0]))


def test_whatever_the_reader_raises_becomes_one_error(kmnist, monkeypatch):
    def fail(path):
        raise AssertionError("odd")

    monkeypatch.setattr(torchvision.datasets.mnist, "read_image_file", fail)
    with pytest.raises(DataError, match=r"KMNIST/raw is damaged \(AssertionError: odd\)"):
        load_dataset("kmnist", root=str(kmnist[0]))


def test_a_root_that_is_a_file_gives_the_same_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"dataset 'mnist' is not in .*file/MNIST/raw \(it cannot be downloaded"):
        load_dataset("mnist", root=str(tmp_path / "file"))


@pytest.mark.parametrize("content", [b"", b"not an archive"])
def test_damaged_embedded_digits_are_refused(content, tmp_path, monkeypatch):
    (tmp_path / "embedded").mkdir()
    (tmp_path / "embedded/digits.npz").write_bytes(content)
    monkeypatch.setattr(digits_module, "files", lambda package: tmp_path)
    with pytest.raises(DataError, match=r"embedded/digits.npz cannot be read \(.*install fwdgrad again"):
        load_dataset("digits")


def test_incomplete_embedded_digits_are_refused(monkeypatch):
    raw = digits_module.read_digits()
    monkeypatch.setattr(loading_module, "read_digits", lambda: replace(raw, test_targets=raw.test_targets[:-1]))
    with pytest.raises(DataError, match=r"there must be 500 test labels, got \(499,\)"):
        load_dataset("digits")


def test_the_root_comes_from_the_argument_then_the_variable_then_the_default(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FWDGRAD_DATA", "/somewhere")
    assert resolve_root("here") == tmp_path / "here"
    assert resolve_root(None) == Path("/somewhere")
    monkeypatch.setenv("FWDGRAD_DATA", "")
    assert resolve_root(None) == tmp_path / "data"
    monkeypatch.setenv("HOME", "/home/me")
    assert resolve_root("~/sets") == Path("/home/me/sets")
