"""Checkpoints: complete or absent, damage noticed, nothing in them but tensors and plain values."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from fwdgrad.training import CheckpointError, list_checkpoints, load_checkpoint, save_checkpoint
from fwdgrad.training.checkpoint import check_same_model

STATE = {"step": 3, "model": {"weight": torch.arange(6.0).view(2, 3)}, "rate": 0.1, "betas": [0.9, 0.99]}


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "checkpoints", 3, STATE)
    for source in (path, tmp_path):
        loaded = load_checkpoint(source)
        assert torch.equal(loaded.pop("model")["weight"], STATE["model"]["weight"])
        assert loaded == {key: value for key, value in STATE.items() if key != "model"}


def test_it_loads_with_weights_only(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 3, STATE)
    assert torch.load(path, weights_only=True)["step"] == 3


def test_objects_of_other_classes_are_refused(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 3, {"object": Path("anything")})
    with pytest.raises(Exception, match="Weights only load failed"):
        load_checkpoint(path)


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    for step in (1, 9, 10, 100):
        save_checkpoint(tmp_path, step, {"step": step})
    assert [load_checkpoint(path)["step"] for path in list_checkpoints(tmp_path)] == [10, 100]
    save_checkpoint(tmp_path, 100, {"step": 100, "again": True})
    assert [load_checkpoint(path) for path in list_checkpoints(tmp_path)] == [
        {"step": 10},
        {"step": 100, "again": True},
    ]


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_an_interrupted_write_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    def fail(*arguments: Any) -> None:
        raise KeyboardInterrupt

    before = save_checkpoint(tmp_path, 1, {"step": 1})
    with monkeypatch.context() as patch:
        patch.setattr(*((os, "fsync") if moment == "fsync" else (Path, "replace")), fail)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(tmp_path, 2, {"step": 2})
    assert list_checkpoints(tmp_path) == [before]
    assert load_checkpoint(before) == {"step": 1}
    assert load_checkpoint(save_checkpoint(tmp_path, 2, {"step": 2})) == {"step": 2}


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 3, STATE)
    content = path.read_bytes()
    for position in range(0, len(content), 97):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="is damaged: its content does not match the digest in its name"):
            load_checkpoint(path)
    path.write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match="is damaged"):
        load_checkpoint(path)


def test_files_and_folders_without_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint in .*; name a run folder that has saved one"):
        load_checkpoint(tmp_path)
    other = tmp_path / "model.pt"
    torch.save({}, other)
    with pytest.raises(CheckpointError, match=r"is not a checkpoint; they are called step-<step>.<digest>.pt"):
        load_checkpoint(other)


def test_another_model_is_named_by_its_first_difference() -> None:
    saved = {"model": torch.nn.Linear(3, 2).state_dict()}
    check_same_model(saved, torch.nn.Linear(3, 2))
    with pytest.raises(CheckpointError, match=r"'weight' has shape \(2, 3\) in the checkpoint and \(2, 4\)"):
        check_same_model(saved, torch.nn.Linear(4, 2))
    with pytest.raises(CheckpointError, match="another model: 'bias' exists only in the checkpoint"):
        check_same_model(saved, torch.nn.Linear(3, 2, bias=False))
    with pytest.raises(CheckpointError, match="another model: 'running_mean' exists only in the model"):
        check_same_model({"model": {"weight": torch.ones(2), "bias": torch.ones(2)}}, torch.nn.BatchNorm1d(2))
