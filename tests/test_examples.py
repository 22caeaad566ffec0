"""Every example runs, short of its full length, and prints its table."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
# The arguments that make it short, what it needs besides, and a row of its table.
SHORT: dict[str, tuple[list[str], tuple[str, ...], str]] = {
    "plain_loop.py": (["--epochs=1"], (), "activity perturbation"),
    "custom_direction.py": (["--epochs=1", "--draws=4"], (), "650 orthogonal"),
    "custom_rule.py": (["--epochs=1"], (), "with the rule"),
    "lightning_mnist.py": (["--epochs=1"], ("lightning",), "activity perturbation"),
    "lightning_finetune.py": (["--epochs=1"], ("lightning",), "forward gradient, K = 64"),
    "hf_lora_text.py": (["--base-steps=1", "--steps=1"], ("transformers", "accelerate", "peft"), "MeZO"),
}


def test_every_example_is_run() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(SHORT)


@pytest.mark.parametrize("name", SHORT)
def test_example(name: str, tmp_path: Path) -> None:
    arguments, needs, row = SHORT[name]
    for library in needs:
        if importlib.util.find_spec(library) is None:
            pytest.skip(f"needs {library}")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "FWDGRAD_DATA": str(tmp_path)}
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=280)
    assert run.returncode == 0, run.stderr
    assert row in run.stdout
    assert not list(tmp_path.iterdir())
