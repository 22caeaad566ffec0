"""Runs the training command within the test's process, as a shell would run it."""

from __future__ import annotations

import csv
import json
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fwdgrad import cli


@dataclass
class Outcome:
    """How a command ended: exit code and what it wrote to the standard output and the standard error."""

    code: int
    out: str
    err: str

    def error_line(self) -> str:
        """Return the one line on the standard error; there must be no more, and none of a traceback."""
        lines = self.err.strip().splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("error: ") and "Traceback" not in self.out, self.err
        return lines[0].removeprefix("error: ")


Train = Callable[..., Outcome]


def make_train(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Train:
    """Return ``train(*overrides)``, which runs the command in the current folder."""

    def train(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        capsys.readouterr()
        code = 0
        try:
            cli.train()
        except SystemExit as end:
            assert isinstance(end.code, int)
            code = end.code
        finally:
            close_logs()
        return Outcome(code, *capsys.readouterr())

    return train


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Train:
    """Give the command, to be run in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return make_train(monkeypatch, capsys)


def close_logs() -> None:
    """Close what Hydra's logging has opened, for the next command of this process."""
    root = logging.getLogger()
    for handler in root.handlers[:]:
        # Pytest's own handlers stay.
        if type(handler).__module__ == "logging":
            root.removeHandler(handler)
            handler.close()


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def run_folders(base: Path = Path()) -> list[Path]:
    """Return the folders of the single runs under ``outputs``, oldest first."""
    return sorted(path.parent for path in base.glob("outputs/2*/*/status.json"))


def sweep_folders(base: Path = Path()) -> list[Path]:
    return sorted(base.glob("outputs/multirun/*/*"))
