"""Checkpoints that survive an interrupted write and notice a damaged file."""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

_NAME = re.compile(r"step-(\d+)\.([0-9a-f]{16})\.pt")


class CheckpointError(RuntimeError):
    """A checkpoint is missing, damaged, or belongs to another model."""


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int = 2) -> Path:
    """Write ``state`` as ``folder/step-<step>.<digest>.pt`` and delete all but the newest ``keep`` checkpoints.

    The file appears under its name only when it is complete and on disk, so an interruption never costs the checkpoint
    before it. The first 16 hexadecimal digits of its SHA-256 are in the name, so that damage is noticed on loading.
    """
    folder.mkdir(parents=True, exist_ok=True)
    payload = io.BytesIO()
    torch.save(state, payload)
    data = payload.getbuffer()
    path = folder / f"step-{step:09d}.{_digest(data)}.pt"
    partial = folder / f".{path.name}.partial"
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    same_step = [other for other in folder.glob(f"step-{step:09d}.*.pt") if other != path]
    for old in same_step + list_checkpoints(folder)[: -keep - len(same_step)]:
        old.unlink(missing_ok=True)
    return path


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, oldest step first."""
    found = [(int(match[1]), path) for path in folder.glob("step-*.pt") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def load_checkpoint(path: Path, map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """Load a checkpoint file, or the newest one of a run folder.

    Raises:
        CheckpointError: if there is none, or the file is damaged.
    """
    if path.is_dir():
        candidates = list_checkpoints(path / "checkpoints")
        if not candidates:
            raise CheckpointError(f"no checkpoint in {path / 'checkpoints'}; name a run folder that has saved one")
        path = candidates[-1]
    match = _NAME.fullmatch(path.name)
    if not path.is_file() or match is None:
        raise CheckpointError(f"{path} is not a checkpoint; they are called step-<step>.<digest>.pt")
    data = path.read_bytes()
    if _digest(data) != match[2]:
        raise CheckpointError(
            f"checkpoint {path} is damaged: its content does not match the digest in its name; "
            "delete it to resume from the one before it"
        )
    state: dict[str, Any] = torch.load(io.BytesIO(data), map_location=map_location, weights_only=True)
    return state


def check_same_model(state: dict[str, Any], model: torch.nn.Module) -> None:
    """Raise CheckpointError, naming the first difference, unless the saved model state fits the model."""
    saved, present = state["model"], model.state_dict()
    for name in [*saved, *present]:
        if name not in present or name not in saved:
            where = "checkpoint" if name in saved else "model"
            raise CheckpointError(f"the checkpoint is of another model: {name!r} exists only in the {where}")
        if saved[name].shape != present[name].shape:
            raise CheckpointError(
                f"the checkpoint is of another model: {name!r} has shape {tuple(saved[name].shape)} in the "
                f"checkpoint and {tuple(present[name].shape)} in the model"
            )


def check_same_kinds(saved: Mapping[str, str], present: Mapping[str, str]) -> None:
    """Raise CheckpointError if a part of the run is of another class than when its state was saved."""
    for part, kind in present.items():
        if saved[part] != kind:
            raise CheckpointError(f"the checkpoint is of another {part}: {saved[part]}, not {kind}")


def _digest(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
