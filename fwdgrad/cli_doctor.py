"""The doctor's command: compose a model and a dataset, check, print the report, and end with its exit code."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from hydra import compose

from fwdgrad import experiment
from fwdgrad.cli import CONFIGS, hydra_main, register_schema
from fwdgrad.config import DoctorConfig
from fwdgrad.model_check import Report

register_schema("doctor_schema", DoctorConfig)


def doctor() -> None:
    """Check a model as configured by ``configs/doctor.yaml`` and the command line.

    Exit code 0: healthy; 1: problems were found, or the check failed; 2: the command line asks for what there is not.
    """
    reports: list[Report] = []

    @hydra_main(config_name="doctor")
    def command(cfg: Any, folder: Path) -> float:
        words = sorted(path.stem for path in (CONFIGS / "optimization").glob("*.yaml"))
        report = experiment.check(cfg, {word: compose("train", overrides=[f"optimization={word}"]) for word in words})
        reports.append(report)
        print(report, flush=True)
        target = Path(cfg.json) if cfg.json else folder / "report.json"
        target.write_text(json.dumps(report.to_dict(), indent=2) + "\n")
        return float(len(report.problems))

    command()
    if not all(report.ok for report in reports):
        sys.exit(1)
