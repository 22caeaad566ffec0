"""A survey by the doctor: one row for each model, and the page that shows them."""

from __future__ import annotations

import datetime
import gc
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

import fwdgrad
from fwdgrad.model_check import Report

METHODS: dict[str, Callable[[], Any]] = {
    "fwdgrad": fwdgrad.ForwardGradient,
    "fwdgrad_fast": lambda: fwdgrad.ForwardGradient(direction="low_rank", engine="dual"),
    "activity": lambda: fwdgrad.ActivityPerturbation(num_directions=1, exact_output=False),
    "backprop": fwdgrad.Backprop,
}


LARGEST = 5_000_000
"""Of a model with more parameters only the whole is compared."""


ABOUT = """\
Random weights, training mode, batches of two or three, the smallest inputs that the models take; of a family that
differs in size alone, one. Each is checked by `fwdgrad.check_model`: the whole, every kind of leaf module and every
distinct operation, by the dual engine, `torch.func.jvp`, reverse mode and central differences in float64 (of a model
with more than {limit} million parameters only the whole). *Healthy* means that no problem was found: our engine,
reverse mode and, away from kinks, central differences agree. Notes are left out (shared weights, BatchNorm in
training mode, frozen parameters). A method's "no" is explained where it is not that BatchNorm mixes examples or that
the model returns one loss.
"""


@dataclass
class Row:
    """What the doctor said of one model."""

    name: str
    report: Report | None
    error: str
    seconds: float

    @property
    def verdict(self) -> str:
        if self.report is None:
            return "not built"
        return "healthy" if self.report.ok else "problem"

    def methods(self) -> str:
        if self.report is None:
            return ""
        return " ".join("yes" if line.works else "no" for line in self.report.methods)

    def line(self) -> str:
        found = "; ".join(_short(finding) for finding in self.report.findings) if self.report else self.error
        return f"{self.name:<50} {self.verdict:<9} {self.seconds:6.1f} s  {self.methods()}  {found}"


def survey(name: str, make: Callable[[], Any]) -> Row:
    """Build a model and check it in training mode."""
    started = time.perf_counter()
    torch.manual_seed(0)
    report, error = None, ""
    try:
        model, closure = make()
        size = sum(p.numel() for p in model.parameters())
        report = fwdgrad.check_model(model.train(), closure, methods=METHODS, parts=size <= LARGEST)
    except Exception as reason:  # whatever a library raises: it is a line of the page
        error = f"{type(reason).__name__}: {(str(reason).strip().splitlines() or [''])[0]}"
    gc.collect()
    return Row(name, report, error, time.perf_counter() - started)


def read_rows(page: str) -> dict[str, str]:
    """Return the lines of the table of an earlier page, by the name of the model."""
    return {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}


def table_row(row: Row) -> str:
    """Return the line of one model."""
    report = row.report
    if report is None:
        return f"| `{row.name}` | | | {row.verdict} |{' |' * len(METHODS)} {row.seconds:.0f} | {row.error} |"
    said = [
        _short(finding) for level in ("problem", "warning") for finding in report.findings if finding.level == level
    ]
    said += [f"{line.method}: {line.reason}" for line in report.methods if not line.works and _unexpected(line.reason)]
    methods = " | ".join("yes" if line.works else "no" for line in report.methods)
    operations = report.operations or ""
    return (
        f"| `{row.name}` | {report.parameters:,} | {operations} | {row.verdict} | {methods} | "
        f"{row.seconds:.0f} | {'<br>'.join(said).replace('|', chr(92) + '|')} |"
    )


def page(rows: Mapping[str, str], names: Iterable[str], command: str) -> str:
    """Return the page in Markdown.

    Args:
        rows: the lines of the table by model.
        names: all models that there are, in the order of the page.
        command: what makes the page.
    """
    versions = [f"PyTorch {torch.__version__.partition('+')[0]}"]
    for package in ("torchvision", "transformers"):
        try:
            versions.append(f"{package} {__import__(package).__version__.partition('+')[0]}")
        except ImportError:
            versions.append(f"no {package}")
    missing = [name for name in names if name not in rows]
    healthy = sum("| healthy |" in line for line in rows.values())
    lines = [
        "# The doctor on models that nobody here wrote",
        "",
        *ABOUT.format(limit=LARGEST // 10**6).splitlines(),
        "",
        f"Made by `{command}` on {datetime.date.today().isoformat()} with {', '.join(versions)}.",
        "",
        f"**{healthy} of {len(rows)} healthy.** The methods are tried for a step in float32: "
        f"{', '.join(f'`{word}`' for word in METHODS)}.",
        *(["", f"Not checked: {', '.join(f'`{name}`' for name in missing)}."] if missing else []),
        "",
        f"| model | trainable values | operations | | {' | '.join(METHODS)} | seconds | what was found |",
        f"| --- | ---: | ---: | --- | {' | '.join('---' for _ in METHODS)} | ---: | --- |",
        *(rows[name] for name in names if name in rows),
    ]
    return "\n".join([*lines, ""])


def _unexpected(reason: str) -> bool:
    """Leave out what the footnote says: BatchNorm or a single loss where per-example losses are needed."""
    return "BatchNorm in training mode" not in reason and "needs per-example losses" not in reason


def _short(finding: Any) -> str:
    where = f" in `{finding.places[0]}`" if finding.places else ""
    more = f" and {len(finding.places) - 1} more" if len(finding.places) > 1 else ""
    return f"{finding.level}, {finding.kind}: {finding.subject}{where}{more}: {finding.text}".replace(": :", ":")
