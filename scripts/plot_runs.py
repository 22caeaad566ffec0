"""Draw the validation curves of runs, by step and by seconds, side by side.

python scripts/plot_runs.py outputs/2026-01-01/*-mnist-mlp-* --out curves.png
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

AXES = (("step", "step"), ("seconds", "seconds of training"))


def read_run(folder: Path) -> tuple[str, list[dict[str, float]]]:
    """Return a run's label and the rows of its metrics.csv."""
    table = folder / "metrics.csv"
    if not table.is_file():
        sys.exit(f"error: {folder} is not a run folder: it has no metrics.csv")
    with table.open(newline="") as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    if not rows:
        sys.exit(f"error: {table} has no row yet")
    name = folder.name.split("-", 3)[-1]
    final = folder / "metrics.json"
    if final.is_file():
        metrics = json.loads(final.read_text())
        name = f"{name.rsplit('-', 1)[-1]} (test {metrics['test_accuracy']:.3f}, seed {metrics['seed']})"
    return name, rows


def main() -> None:
    """Parse the command line and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders")
    parser.add_argument("--field", default="val_accuracy", help="a column of metrics.csv (default: val_accuracy)")
    parser.add_argument("--title", default="")
    parser.add_argument("--labels", nargs="+", help="a name for each run, instead of what its folder says")
    parser.add_argument("--out", type=Path, default=Path("curves.png"))
    arguments = parser.parse_args()
    runs = [read_run(folder) for folder in arguments.runs]
    if arguments.labels:
        if len(arguments.labels) != len(runs):
            sys.exit(f"error: --labels must name all {len(runs)} runs, got {len(arguments.labels)}")
        runs = [(label, rows) for label, (_, rows) in zip(arguments.labels, runs, strict=True)]
    fields = runs[0][1][0]
    if arguments.field not in fields:
        sys.exit(f"error: --field must be one of {', '.join(fields)}, got {arguments.field!r}")
    figure, panels = plt.subplots(1, 2, figsize=(10, 3.6), sharey=True, layout="constrained")
    for panel, (column, label) in zip(panels, AXES, strict=True):
        for name, rows in runs:
            panel.plot([row[column] for row in rows], [row[arguments.field] for row in rows], label=name, linewidth=1.6)
        panel.set_xlabel(label)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel(arguments.field.replace("_", " "))
    panels[1].legend(frameon=False, fontsize=9)
    figure.suptitle(arguments.title)
    figure.savefig(arguments.out, dpi=110)
    print(arguments.out)


if __name__ == "__main__":
    main()
