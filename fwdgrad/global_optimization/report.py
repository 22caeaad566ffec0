"""What is said of the descents: a table, the figures of ``metrics.json`` and TensorBoard's curves."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from fwdgrad.global_optimization.config import GlobalOptimConfig
from fwdgrad.global_optimization.descent import Run
from fwdgrad.global_optimization.problem import Problem, point_text

POINTS_PER_CURVE = 5000


@dataclass(frozen=True)
class Summary:
    """The runs of one method. A run that diverged counts as one that ended at an infinite value."""

    method: str
    runs: int
    diverged: int
    final_value: float | None
    """Median of the last value over the runs; None if it is infinite."""
    distance: float | None
    """Median distance of the last point to the nearest known minimiser; None if unknown or infinite."""
    iterations: int
    seconds: float
    """Median time of a run."""
    seconds_per_iteration: float
    reached: int | None
    """How many runs came down to the target, None if there is none."""
    best: float | None
    """Least last value over the runs."""
    worst: float | None
    """Largest last value over the runs."""


class Writer(Protocol):
    """The part of TensorBoard's ``SummaryWriter`` that is used."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        """Record a number."""

    def close(self) -> None:
        """Flush and close."""


def summarize(problem: Problem, runs: Sequence[Run], target: float | None) -> list[Summary]:
    """Gather the runs by method, in the order of their first appearance."""
    methods = dict.fromkeys(run.method for run in runs)
    return [_summarize([run for run in runs if run.method == method], problem, target) for method in methods]


def _summarize(runs: list[Run], problem: Problem, target: float | None) -> Summary:
    finals = [math.inf if run.diverged else run.values[-1].item() for run in runs]
    distances = [math.inf if run.diverged else problem.distance(run.final) for run in runs]
    known = [distance for distance in distances if distance is not None]
    return Summary(
        method=runs[0].method,
        runs=len(runs),
        diverged=sum(run.diverged for run in runs),
        final_value=_finite(statistics.median(finals)),
        distance=_finite(statistics.median(known)) if len(known) == len(runs) else None,
        iterations=max(run.iterations for run in runs),
        seconds=statistics.median(run.seconds[-1].item() for run in runs),
        seconds_per_iteration=statistics.median(run.seconds[-1].item() / max(run.iterations, 1) for run in runs),
        reached=None if target is None else sum(final <= target for final in finals),
        best=_finite(min(finals)),
        worst=_finite(max(finals)),
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def table(problem: Problem, config: GlobalOptimConfig, summaries: Sequence[Summary]) -> str:
    """Return the heading and one line for each method."""
    header = ["method", "runs", "diverged", "median final f", "distance", "iterations", "seconds", "ms/iteration"]
    if config.target is not None:
        header.append(f"f <= {config.target:g}")
    lines = [header]
    for summary in summaries:
        line = [
            summary.method,
            str(summary.runs),
            str(summary.diverged),
            "diverged" if summary.final_value is None else f"{summary.final_value:.6g}",
            "-" if summary.distance is None else f"{summary.distance:.3g}",
            str(summary.iterations),
            f"{summary.seconds:.2f}",
            f"{1000 * summary.seconds_per_iteration:.3f}",
        ]
        if summary.reached is not None:
            line.append(f"{summary.reached} of {summary.runs}")
        lines.append(line)
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    aligned = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines]
    return "\n".join([_heading(problem, config), "", *aligned])


def _heading(problem: Problem, config: GlobalOptimConfig) -> str:
    minimum = "not known"
    if problem.minimum is not None:
        minimizers = problem.objective.minimizer_points(problem.dim)
        minimum = f"{problem.minimum:.6g} at {' '.join(point_text(x) for x in minimizers)}"
    k = "" if config.num_directions == 1 else f"{config.num_directions} "
    return (
        f"{problem.objective.name}, dimension {problem.dim}, from {point_text(problem.start)}; minimum {minimum}\n"
        f"SGD, learning rate {config.learning_rate:g}; forward gradient with {k}{config.direction} "
        f"direction{'s' if k else ''}, engine {config.engine}"
    )


def metrics(problem: Problem, config: GlobalOptimConfig, summaries: Sequence[Summary]) -> dict[str, Any]:
    """Return the figures, those of a method as ``METHOD_FIELD``, in a flat dict that JSON can hold."""
    figures = {
        f"{summary.method}_{field}": value
        for summary in summaries
        for field, value in asdict(summary).items()
        if field != "method"
    }
    return {
        "function": problem.objective.name,
        "dim": problem.dim,
        "start": problem.start.tolist(),
        "minimum": problem.minimum,
        "learning_rate": config.learning_rate,
        "target": config.target,
        **figures,
    }


def log_curves(name: str, runs: Sequence[Run], make_writer: Callable[[str], Writer]) -> None:
    """Send each run's values by iteration to TensorBoard, as the tag ``NAME/f`` of its own subfolder.

    Runs that share a tag are drawn into one chart. A run of more than ``POINTS_PER_CURVE`` iterations is thinned
    evenly; its last value is always there.

    Args:
        name: of the function.
        runs: the runs.
        make_writer: makes the writer of a subfolder, such as ``forward_gradient/seed_0``.
    """
    for run in runs:
        writer = make_writer(run.method if run.seed is None else f"{run.method}/seed_{run.seed}")
        stride = -(-run.iterations // POINTS_PER_CURVE) or 1
        for i in sorted({*range(0, run.iterations + 1, stride), run.iterations}):
            writer.add_scalar(f"{name}/f", run.values[i].item(), i)
        writer.close()
