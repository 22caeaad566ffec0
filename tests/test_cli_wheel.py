"""The wheel brings all that the command needs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fwdgrad

ROOT = Path(fwdgrad.__file__).parent.parent


def run(*command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | environment
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=280, check=False)


@pytest.mark.slow
def test_the_console_script_runs_from_an_empty_folder(tmp_path: Path) -> None:
    pip = (sys.executable, "-m", "pip", "--quiet")
    built = run(*pip, "wheel", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT), cwd=tmp_path)
    if built.returncode and "hatchling" in built.stderr:
        pytest.skip("the build backend cannot be fetched here")
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    installed = run(*pip, "install", "--no-deps", "--target", str(site), str(wheel), cwd=tmp_path)
    assert installed.returncode == 0, installed.stderr

    where = run(sys.executable, "-c", "import fwdgrad; print(fwdgrad.__file__)", cwd=empty, PYTHONPATH=str(site))
    assert Path(where.stdout.strip()).is_relative_to(site)
    trained = run(str(site / "bin" / "fwdgrad-train"), "max_steps=5", cwd=empty, PYTHONPATH=str(site))
    assert trained.returncode == 0, trained.stderr
    assert "test accuracy" in trained.stdout
    assert list(empty.glob("outputs/2*/*/metrics.json"))
