"""Every command of the README does what it says, for a step."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from command import Train, train  # noqa: F401
from test_configs import _small_data, run_steps  # noqa: F401
from test_doctor import run_doctor

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
COMMANDS = [line.partition("#")[0].strip() for block in BLOCKS for line in block.splitlines() if line.strip()]
RUNS = [command for command in COMMANDS if command.startswith("python train.py") and "-m" not in command.split()]
TRAINS = [command for command in COMMANDS if command.startswith("python train.py")]
SWEEPS = [command for command in TRAINS if "-m" in command.split() and "hydra" not in command.replace("hparams", "")]
CHECKS = [command for command in COMMANDS if command.startswith("python -m fwdgrad.doctor")]


@pytest.mark.parametrize("command", [command for command in RUNS if "resume=" not in command])
def test_a_run_of_the_readme(command: str, tmp_path: Path) -> None:
    run_steps(tmp_path, *shlex.split(command)[2:], "dataset.download=false")


@pytest.mark.parametrize("command", [command for command in SWEEPS if "hparams_search" not in command])
def test_a_sweep_of_the_readme(command: str, train: Train, tmp_path: Path) -> None:  # noqa: F811
    outcome = train(*shlex.split(command)[2:], "epochs=null", "max_steps=1")
    assert outcome.code == 0, outcome.err
    assert len(list(tmp_path.glob("outputs/multirun/*/*/results.csv"))) == 1


@pytest.mark.parametrize("command", CHECKS)
def test_a_check_of_the_readme(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = run_doctor(monkeypatch, capsys, *shlex.split(command)[3:])
    assert outcome.code == 0, outcome.err
    shown = re.findall(r"```text\n(.*?)```", README, re.DOTALL)[0].splitlines()
    assert shown[0].partition(",")[0] in outcome.out and shown[-1] in outcome.out


def test_the_readme_names_what_exists() -> None:
    assert len(RUNS) >= 4 and len(SWEEPS) >= 1 and len(CHECKS) == 1
    for path in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / path).exists(), path
    for script in re.findall(r"python (scripts/\w+\.py)", README):
        assert (ROOT / script).is_file(), script
    for target in re.findall(r"^make (\w+)", "\n".join(COMMANDS), re.MULTILINE):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target
    for name in re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE):
        assert (ROOT / "configs" / "optimization" / f"{name}.yaml").is_file(), name
