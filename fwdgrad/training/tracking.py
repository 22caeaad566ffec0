"""What a run leaves behind: TensorBoard events, metrics.csv, metrics.json, status.json."""

from __future__ import annotations

import csv
import json
import os
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams as hparams_summary

FIELDS = ("step", "epoch", "train_loss", "val_loss", "val_accuracy", "learning_rate", "seconds")


class Tracker:
    """Writes a run's numbers into its folder.

    Args:
        folder: the run folder.
        resume_step: when a run is resumed, the step it goes on from: what was recorded after it is dropped.
    """

    def __init__(self, folder: Path, resume_step: int | None = None) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._table = folder / "metrics.csv"
        rows = _rows_until(self._table, resume_step) if resume_step is not None else []
        with self._table.open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            writer.writeheader()
            writer.writerows(rows)
        # An event at step s belongs to the past; purge_step hides events of that step and later ones.
        purge_step = None if resume_step is None else resume_step + 1
        self._writer = SummaryWriter(str(folder), purge_step=purge_step)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Send scalars, tag -> value, to TensorBoard."""
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step)

    def row(self, values: Mapping[str, float]) -> None:
        """Append a row to metrics.csv."""
        with self._table.open("a", newline="") as file:
            csv.DictWriter(file, FIELDS).writerow(dict(values))

    def finish(self, metrics: Mapping[str, Any], hparams: Mapping[str, Any]) -> None:
        """Write metrics.json, and the hyper-parameters with the final figures to TensorBoard's HParams tab."""
        write_json(self.folder / "metrics.json", metrics)
        figures = {f"hparam/{key}": value for key, value in metrics.items() if key in ("test_accuracy", "test_loss")}
        for summary in hparams_summary(dict(hparams), figures):
            self._writer.file_writer.add_summary(summary)
        for tag, value in figures.items():
            self._writer.add_scalar(tag, value, metrics["steps"])

    def close(self) -> None:
        """Flush what TensorBoard has not yet written."""
        self._writer.close()


def write_status(folder: Path, status: str, error: BaseException | None = None) -> None:
    """Write status.json (``running``, ``finished``, ``interrupted`` or ``failed``) and, on failure, traceback.txt."""
    record: dict[str, Any] = {"status": status}
    (folder / "traceback.txt").unlink(missing_ok=True)
    if error is not None:
        record["reason"] = f"{type(error).__name__}: {error}"
    if status == "failed" and error is not None:
        (folder / "traceback.txt").write_text("".join(traceback.format_exception(error)))
    write_json(folder / "status.json", record)


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write a JSON file that is never seen half-written."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(record, indent=2) + "\n")
    partial.replace(path)


def write_sweep_results(sweep: Path, overrides: Mapping[str, list[str]]) -> None:
    """Gather the jobs of a sweep in ``sweep/results.csv``: a row per job with its overrides, status and final figures.

    Args:
        sweep: folder whose subfolders are the jobs.
        overrides: the ``key=value`` overrides of each job, by the name of its folder.
    """
    rows: list[dict[str, Any]] = []
    for job in sorted(overrides, key=lambda name: (len(name), name)):
        row: dict[str, Any] = {"job": job, **dict(item.split("=", 1) for item in overrides[job])}
        for name in ("status.json", "metrics.json"):
            if (sweep / job / name).is_file():
                row |= json.loads((sweep / job / name).read_text())
        rows.append(row)
    fields = list(dict.fromkeys(key for row in rows for key in row))
    partial = sweep / f".results.csv.{os.getpid()}"
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, fields)
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(sweep / "results.csv")


def _rows_until(table: Path, step: int) -> list[dict[str, str]]:
    if not table.is_file():
        return []
    with table.open(newline="") as file:
        return [row for row in csv.DictReader(file) if int(row["step"]) <= step]
