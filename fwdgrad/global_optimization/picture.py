"""The picture of a comparison: trajectories over contours, and loss by iteration and by seconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from fwdgrad.global_optimization.config import GlobalOptimConfig
from fwdgrad.global_optimization.descent import Run
from fwdgrad.global_optimization.problem import Problem, point_text

Array: TypeAlias = NDArray[Any]

COLORS = {"forward_gradient": "#d1491f", "backprop": "#123f7c"}
LABELS = {"forward_gradient": "forward gradient", "backprop": "backprop"}
GRID = 120
MOST_POINTS = 2000
NEGLIGIBLE = 1e-12
FAR = 1e4
TARGET: dict[str, Any] = {"color": "0.3", "linewidth": 0.8, "linestyle": (0, (4, 3))}


def draw(problem: Problem, config: GlobalOptimConfig, runs: Sequence[Run], path: Path) -> None:
    """Save the picture as a PNG file: the contours, for a function of two variables, and two loss panels."""
    plane = problem.dim == 2
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(12.6 if plane else 8.8, 4.3), dpi=100, layout="constrained")
        axes = figure.subplots(1, 3 if plane else 2, width_ratios=[1.2, 1, 1] if plane else None)
        if plane:
            _draw_plane(axes[0], problem, runs)
        by_iteration, by_seconds = axes[-2:]
        _draw_losses(by_iteration, problem, config, runs, lambda run: np.arange(len(run.values)), "iteration")
        _draw_losses(by_seconds, problem, config, runs, lambda run: run.seconds.numpy(), "seconds")
        figure.legend(handles=_legend(config, runs), loc="outside lower center", ncols=4, frameon=False)
        name, start = problem.objective.name, point_text(problem.start)
        figure.suptitle(f"{name}, dimension {problem.dim}, from {start}: SGD, learning rate {config.learning_rate:g}")
        figure.savefig(path, pil_kwargs={"optimize": True})


def _draw_losses(
    axis: Axes,
    problem: Problem,
    config: GlobalOptimConfig,
    runs: Sequence[Run],
    abscissa: Callable[[Run], Array],
    xlabel: str,
) -> None:
    """Draw ``f`` less its minimum on a logarithmic axis, or ``f`` on a linear one where that cannot be."""
    offset = problem.minimum or 0.0
    shifted = abs(offset) > NEGLIGIBLE
    logarithmic = problem.minimum is not None or all(bool((run.values > 0).all()) for run in runs)
    for run in runs:
        chosen = _drawn(run)
        xs, ys = abscissa(run)[chosen], run.values.numpy()[chosen] - offset
        if logarithmic:
            ys = np.where(ys > 0, ys, np.nan)
        exact = run.seed is None
        axis.plot(xs, ys, color=COLORS[run.method], linewidth=2.2 if exact else 0.8, zorder=2 if exact else 3)
        if run.diverged:
            axis.plot(xs[-1], ys[-1], "x", color=COLORS[run.method], zorder=4)
    if logarithmic:
        axis.set_yscale("log")
        if config.target is not None and config.target > offset:
            axis.axhline(config.target - offset, **TARGET)
    axis.set_xlim(left=0)
    axis.xaxis.set_major_locator(MaxNLocator(6))
    axis.set(xlabel=xlabel, ylabel="f - min f" if shifted else "f")
    axis.grid(True, color="0.92", linewidth=0.6)
    axis.set_axisbelow(True)


def _legend(config: GlobalOptimConfig, runs: Sequence[Run]) -> list[Line2D]:
    """Return what explains the colours and signs of all panels."""
    lines = []
    for method in dict.fromkeys(run.method for run in runs):
        count = sum(run.method == method for run in runs)
        label = LABELS[method] if count == 1 else f"{LABELS[method]}, {count} seeds"
        lines.append(Line2D([], [], color=COLORS[method], linewidth=1.7, label=label))
    if config.target is not None:
        lines.append(Line2D([], [], **TARGET, label=f"target {config.target:g}"))
    if any(run.diverged for run in runs):
        lines.append(Line2D([], [], color="0.3", marker="x", linestyle="", label="diverged"))
    return lines


def _draw_plane(axis: Axes, problem: Problem, runs: Sequence[Run]) -> None:
    """Draw contours, all trajectories, the start and the known minimisers in view."""
    minimizers = problem.objective.minimizer_points(2).numpy()
    low, high = _view(problem, runs)
    xs, ys = np.linspace(low[0], high[0], GRID), np.linspace(low[1], high[1], GRID)
    heights = _values_on_grid(problem, xs, ys)
    heights -= problem.minimum if problem.minimum is not None else heights.min()
    top = heights.max()
    if top > 0:
        lowest = max(float(np.percentile(heights.compressed(), 0.2)), 1e-6 * top)
        heights = np.ma.maximum(heights, 0.5 * lowest)  # the logarithm wants positive numbers
        levels = np.geomspace(lowest, top, 16)
        axis.contourf(xs, ys, heights, levels, norm=LogNorm(), cmap="Blues", alpha=0.45, extend="min")
        axis.contour(xs, ys, heights, levels, colors="0.55", linewidths=0.4)
    for run in runs:
        assert run.path is not None
        points = run.path.numpy()[_drawn(run)]
        exact = run.seed is None
        axis.plot(*points.T, color=COLORS[run.method], linewidth=2.2 if exact else 0.8, zorder=3 if exact else 4)
    axis.plot(*problem.start.numpy(), "o", color="black", markersize=5, zorder=6, linestyle="", label="start")
    axis.plot(*minimizers.T, "*", color="#ffd21f", markeredgecolor="black", markersize=12, zorder=5, label="minimum")
    axis.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), xlabel="$x_1$", ylabel="$x_2$")
    axis.legend(loc="best", framealpha=0.9, numpoints=1)


def _view(problem: Problem, runs: Sequence[Run]) -> tuple[Array, Array]:
    """Return the corners of a rectangle around the start, the nearest minimisers and the trajectories.

    Only points no worse than the start count, so that a diverging run does not set the scale.
    """
    shown = [problem.start.numpy()[None]]
    minimizers = problem.objective.minimizer_points(2)
    for run in runs:
        assert run.path is not None
        shown.append(run.path[run.values <= run.values[0]].numpy())
        if len(minimizers):
            nearest = (minimizers - run.path[run.values.argmin()]).norm(dim=1).argmin()
            shown.append(minimizers[nearest].numpy()[None])
    points = np.concatenate(shown)
    low, high = points.min(0), points.max(0)
    sides = np.maximum(high - low, 1e-3)
    sides = np.maximum(sides, 0.5 * sides.max())
    center = (low + high) / 2
    return center - 0.7 * sides, center + 0.7 * sides


def _values_on_grid(problem: Problem, xs: Array, ys: Array) -> Any:
    """Evaluate the function at one point after the other, since a user's function need not take batches."""
    with torch.no_grad():
        values = [[float(problem.objective(torch.tensor([x, y], dtype=torch.float64))) for x in xs] for y in ys]
    return np.ma.masked_invalid(values)


def _drawn(run: Run) -> Array:
    """Return the indices of the iterations to draw: ``MOST_POINTS`` at most, and none far above the start."""
    count = len(run.values)
    chosen = np.unique(np.linspace(0, count - 1, min(count, MOST_POINTS)).round().astype(int))
    values = run.values.numpy()[chosen]
    return chosen[values <= values[0] + FAR * max(1.0, abs(values[0]))]
