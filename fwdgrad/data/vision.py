"""Datasets read through torchvision's classes, with every way they can be missing or damaged told in one line."""

from __future__ import annotations

import hashlib
import http.client
import os
import socket
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from fwdgrad.data.base import DataError
from fwdgrad.data.catalog import DatasetInfo, RawImages, check_raw

ROOT_VARIABLE = "FWDGRAD_DATA"
DEFAULT_ROOT = "data"
DOWNLOAD_TIMEOUT = 30.0  # seconds without an answer


def resolve_root(root: str | None) -> Path:
    """Return the folder that holds the datasets: ``root``, else the variable FWDGRAD_DATA, else ``data``."""
    return Path(root or os.environ.get(ROOT_VARIABLE) or DEFAULT_ROOT).expanduser().absolute()


def read_vision(name: str, info: DatasetInfo, root: str | None, download: bool) -> RawImages:
    """Read a dataset through its torchvision class, downloading it first if it is missing and ``download`` is set.

    Raises:
        DataError: if the files are missing and cannot be downloaded, or one of them is damaged.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torchvision's own use of torch.jit
            from torchvision import datasets
    except ImportError as error:
        raise DataError(
            f"dataset {name!r} is read through torchvision, which cannot be imported ({error}); "
            "install torchvision, or use dataset=digits"
        ) from error
    constructor = getattr(datasets, str(info.torchvision_class))
    base = resolve_root(root)
    folder = base / info.folder
    expected = _expected_files(constructor, info)
    if _missing(folder, expected) and download:
        _download(name, constructor, base, info)
    missing = _missing(folder, expected)
    if missing:
        reason = f"{missing[0]} is not there{'' if download else ', and dataset.download is false'}"
        raise _missing_error(name, folder, info, reason)
    for file, (header, size, md5) in expected.items():
        _check_file(name, folder / file, header, size, md5)
    try:
        train, test = constructor(str(base), train=True), constructor(str(base), train=False)
        raw = RawImages(*_images_and_targets(train), *_images_and_targets(test))
    except Exception as error:  # torchvision asserts, unpickles and reshapes: a damaged file may raise anything
        raise _damage_error(name, folder, f"{type(error).__name__}: {error}") from error
    complaint = check_raw(raw, info)
    if complaint is not None:
        raise _damage_error(name, folder, complaint)
    return raw


def _expected_files(constructor: Any, info: DatasetInfo) -> dict[str, tuple[bytes, int | None, str | None]]:
    """Return what is known of each file: its first bytes, its size and its MD5 sum."""
    if hasattr(constructor, "train_list"):  # CIFAR: torchvision knows the sums of the extracted files
        pairs = [
            *constructor.train_list,
            *constructor.test_list,
            (constructor.meta["filename"], constructor.meta["md5"]),
        ]
        return {file: (b"", None, md5) for file, md5 in pairs}
    md5 = dict(info.md5)
    files: dict[str, tuple[bytes, int | None, str | None]] = {}
    for prefix, count in (("train", info.train_size), ("t10k", info.test_size)):
        _, height, width = info.input_shape
        # An IDX file starts with a magic number (8: unsigned bytes; 3 or 1: dimensions) and its sizes, big-endian.
        images, labels = struct.pack(">4I", 0x803, count, height, width), struct.pack(">2I", 0x801, count)
        for file, header, payload in (
            (f"{prefix}-images-idx3-ubyte", images, count * height * width),
            (f"{prefix}-labels-idx1-ubyte", labels, count),
        ):
            files[file] = (header, len(header) + payload, md5.get(file))
    return files


def _missing(folder: Path, files: dict[str, Any]) -> list[str]:
    return [file for file in files if not (folder / file).is_file()]


def _check_file(name: str, path: Path, header: bytes, size: int | None, md5: str | None) -> None:
    try:
        actual = path.stat().st_size
        if size is not None and actual != size:
            raise _damage_error(name, path, f"it has {actual} bytes, {size} are required")
        with path.open("rb") as stream:
            if stream.read(len(header)) != header:
                raise _damage_error(name, path, "its header does not match its contents")
            stream.seek(0)
            if md5 is not None and hashlib.md5(stream.read(), usedforsecurity=False).hexdigest() != md5:
                raise _damage_error(name, path, f"its MD5 sum is not the published {md5}")
    except OSError as error:
        raise _damage_error(name, path, f"it cannot be read: {error.strerror}") from error


def _download(name: str, constructor: Any, base: Path, info: DatasetInfo) -> None:
    try:
        with _socket_timeout(DOWNLOAD_TIMEOUT):
            constructor(str(base), train=True, download=True)
    except (RuntimeError, OSError, EOFError, http.client.HTTPException) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise _missing_error(name, base / info.folder, info, f"it cannot be downloaded: {lines[-1]}") from error


def _missing_error(name: str, folder: Path, info: DatasetInfo, reason: str) -> DataError:
    return DataError(
        f"dataset {name!r} is not in {folder} ({reason}). Set dataset.download=true on a machine with network access, "
        f"point dataset.root or the environment variable {ROOT_VARIABLE} at the folder that holds {info.folder}, "
        "or use dataset=digits, which needs no download"
    )


def _damage_error(name: str, path: Path, reason: str) -> DataError:
    return DataError(
        f"dataset {name!r}: {path} is damaged ({reason}). Delete it and run again with dataset.download=true, "
        "or use dataset=digits, which needs no download"
    )


def _images_and_targets(dataset: Any) -> tuple[torch.Tensor, torch.Tensor]:
    images, targets = torch.as_tensor(dataset.data), torch.as_tensor(dataset.targets, dtype=torch.int64)
    return (images.permute(0, 3, 1, 2).contiguous() if images.dim() == 4 else images.unsqueeze(1)), targets


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """Let no connection opened inside wait longer than ``seconds`` for an answer; torchvision sets no limit."""
    previous = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(previous)
