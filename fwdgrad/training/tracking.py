"""What a run leaves behind: TensorBoard events, metrics.csv, metrics.json, status.json."""

from __future__ import annotations

import csv
import json
import math
import os
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams as hparams_summary

FIELDS = ("step", "epoch", "train_loss", "val_loss", "val_accuracy", "learning_rate", "seconds")


class Tracker:
    """Writes a run's numbers into its folder, from ``start`` on.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._table = folder / "metrics.csv"
        self._writer: SummaryWriter | None = None

    def start(self, step: int = 0) -> None:
        """Begin to record after a step; what an earlier attempt recorded of later steps is dropped."""
        self.folder.mkdir(parents=True, exist_ok=True)
        rows = _rows_until(self._table, step) if step else []
        partial = self._table.with_name(f".{self._table.name}.{os.getpid()}")
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            writer.writeheader()
            writer.writerows(rows)
        partial.replace(self._table)
        # An event at the step itself belongs to the past: purge_step hides events of that step and later ones.
        self._writer = SummaryWriter(str(self.folder), purge_step=step + 1 if step else None)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Send scalars, tag -> value, to TensorBoard."""
        assert self._writer is not None
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step)

    def row(self, values: Mapping[str, float]) -> None:
        """Append a row to metrics.csv."""
        with self._table.open("a", newline="") as file:
            csv.DictWriter(file, FIELDS).writerow(dict(values))

    def finish(self, metrics: Mapping[str, Any], hparams: Mapping[str, Any]) -> None:
        """Write metrics.json, and the hyper-parameters to TensorBoard's HParams tab, beside the scalars of the run."""
        assert self._writer is not None
        write_json(self.folder / "metrics.json", metrics)
        # Without a summary of the "experiment" TensorBoard gathers the columns from all runs and shows first those that
        # differ; with one it would take the columns of whichever run it reads first.
        _, *session = hparams_summary(dict(hparams), {})
        for summary in session:
            self._writer._get_file_writer().add_summary(summary)
        # The table shows the first tags in the alphabet: these.
        for key in ("test_accuracy", "val_accuracy"):
            self._writer.add_scalar(f"final/{key}", metrics[key], metrics["steps"])

    def close(self) -> None:
        """Flush what TensorBoard has not yet written."""
        if self._writer is not None:
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
    """Write a JSON file that is never seen half-written; numbers that are not finite, which JSON lacks, become null."""
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in record.items()
    }
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(finite, indent=2, allow_nan=False) + "\n")
    partial.replace(path)


def _rows_until(table: Path, step: int) -> list[dict[str, str]]:
    if not table.is_file():
        return []
    with table.open(newline="") as file:
        return [row for row in csv.DictReader(file) if int(row["step"]) <= step]
