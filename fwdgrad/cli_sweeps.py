"""The jobs of a sweep, gathered from their folders in one table."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf


@dataclass
class Job:
    """One job of a sweep, as its folder tells."""

    name: str
    overrides: list[str]
    status: str = "unknown"
    reason: str = ""
    metrics: dict[str, Any] = field(default_factory=dict)


class SweepFolder(Callback):
    """Notes the folder of the sweep under way, for the process that started it."""

    current: Path | None = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        SweepFolder.current = Path(config.hydra.sweep.dir).absolute()


def read_sweep(sweep: Path) -> list[Job]:
    """Return the jobs whose folders lie in the folder of a sweep, by number."""
    jobs = []
    for path in sweep.rglob(".hydra/overrides.yaml"):
        folder = path.parent.parent
        job = Job(folder.relative_to(sweep).as_posix(), [str(item) for item in OmegaConf.load(path)])
        if (status := _read_json(folder / "status.json")) is not None:
            job.status, job.reason = status["status"], " ".join(status.get("reason", "").split())
        if job.status == "finished":
            job.metrics = _read_json(folder / "metrics.json") or {}
        jobs.append(job)
    return sorted(jobs, key=lambda job: (len(job.name), job.name))


def write_sweep_results(sweep: Path) -> None:
    """Write ``results.csv`` into the folder of a sweep: a row per job with its overrides, status and final figures."""
    rows: list[dict[str, Any]] = []
    for job in read_sweep(sweep):
        overrides = dict(item.partition("=")[::2] for item in job.overrides)
        rows.append(
            {"job": job.name}
            | overrides
            | {"status": job.status}
            | job.metrics
            | {"reason": " ".join(job.reason.split())}
        )
    # The columns of the overrides come first, whichever job has them.
    fields = list(dict.fromkeys(key for row in rows for key in row))
    sweep.mkdir(parents=True, exist_ok=True)
    partial = sweep / f".results.csv.{os.getpid()}"
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, fields)
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(sweep / "results.csv")


def failures(sweep: Path) -> str | None:
    """Return one line that names the failed jobs of a sweep, or None if there are none."""
    jobs = read_sweep(sweep)
    failed = [job for job in jobs if job.status == "failed"]
    if not failed:
        return None
    named = [f"job {job.name} ({' '.join(job.overrides)}): {job.reason}" for job in failed[:3]]
    more = f"; and {len(failed) - 3} more" if len(failed) > 3 else ""
    return (
        f"{len(failed)} of {len(jobs)} jobs failed: {'; '.join(named)}{more}; "
        f"see results.csv and each job's traceback.txt in {sweep}"
    )


def _read_json(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.is_file() else None
