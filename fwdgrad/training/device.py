"""Which device a run uses, and how much memory it took."""

from __future__ import annotations

import difflib
import sys

import torch

DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("float32", "bfloat16")


def resolve_device(device: str) -> torch.device:
    """Return the device meant by ``auto``, ``cpu``, ``cuda`` (or ``cuda:1``) or ``mps``.

    Raises:
        ValueError: if the word is not known or this machine has no such device.
    """
    kind, _, index = device.partition(":")
    if kind not in DEVICES or (index and not index.isdigit()):
        raise ValueError(
            f"device must be one of {list(DEVICES)} or cuda:<index>, got {device!r}{_nearest(device, DEVICES)}"
        )
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if kind == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    if (kind == "cuda" and not cuda) or (kind == "mps" and not mps):
        raise ValueError(f"device={device} is not available on this machine; use device=auto or device=cpu")
    if kind == "cuda" and index and int(index) >= torch.cuda.device_count():
        raise ValueError(f"device={device} does not exist; this machine has {torch.cuda.device_count()} CUDA devices")
    return torch.device(device)


def check_precision(precision: str, device: torch.device) -> None:
    """Raise ValueError unless the precision is known and the device has it."""
    if precision not in PRECISIONS:
        raise ValueError(
            f"precision must be one of {list(PRECISIONS)}, got {precision!r}{_nearest(precision, PRECISIONS)}"
        )
    if precision == "bfloat16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise ValueError("precision=bfloat16 is not supported by this GPU; use precision=float32")


def peak_memory_bytes(device: torch.device) -> int | None:
    """Return the process's peak memory: allocated on a CUDA device, or resident in main memory (None on Windows)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _nearest(word: str, choices: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(word, choices, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
