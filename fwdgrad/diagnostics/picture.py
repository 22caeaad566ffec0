"""The picture of a diagnosis: angle, bias and variance, layer by layer."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from fwdgrad.diagnostics.measure import Diagnosis, Part

MEASURED, THEORY = "#d1491f", "#123f7c"
MOST_LAYERS = 40
EXACT = 1e-9  # a variance that is rounding


def draw(diagnosis: Diagnosis, title: str, path: Path) -> None:
    """Save the picture as a PNG file: cosine, length along the gradient and variance, a row for each layer.

    Of more than forty layers those with the largest gradients are shown.
    """
    shown = sorted(diagnosis.parts, key=lambda part: part.square)[-MOST_LAYERS:]
    rows = [*(part for part in diagnosis.parts if any(part is each for each in shown)), diagnosis.total]
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(11, 1.6 + 0.32 * len(rows)), dpi=110, layout="constrained")
        cosine, projection, variance = figure.subplots(1, 3, sharey=True)
        places = list(range(len(rows)))
        _draw_cosines(cosine, rows)
        cosine.set_yticks(places, [f"{part.name}  ({_short(part.count)})" for part in rows])
        cosine.invert_yaxis()
        _draw_projections(projection, rows)
        _draw_variances(variance, rows)
        for axis in (cosine, projection, variance):
            axis.grid(True, axis="x", color="0.92", linewidth=0.6)
            axis.set_axisbelow(True)
            axis.axhline(len(rows) - 1.5, color="0.6", linewidth=0.8, linestyle=(0, (4, 3)))
        figure.suptitle(f"{title}: {len(diagnosis.total.errors)} estimates of one batch's gradient", fontsize=10)
        figure.savefig(path, pil_kwargs={"optimize": True})


def _draw_cosines(axis: Axes, rows: list[Part]) -> None:
    values = [part.cosine for part in rows]
    axis.barh(range(len(rows)), values, height=0.6, color=MEASURED)
    for place, value in enumerate(values):
        at = (max(value, 0), place)
        axis.annotate(f"{value:.2g}", at, (3, 0), textcoords="offset points", va="center", color="0.3")
    axis.axvline(0, color="0.3", linewidth=0.8)
    low, high = 1.25 * min(0.0, *values), 1.25 * max(0.0, *values)
    axis.set(xlim=(low, max(high, -0.3 * low, 1e-6)), title="cosine to the gradient", xlabel="mean")
    axis.xaxis.set_major_locator(MaxNLocator(4))


def _draw_projections(axis: Axes, rows: list[Part]) -> None:
    """Draw the mean length along the gradient with two standard errors; an unbiased estimate has 1."""
    errors = [2 * part.standard_error for part in rows]
    axis.axvline(1, color=THEORY, linewidth=1)
    axis.errorbar(
        [part.projection for part in rows], range(len(rows)), xerr=errors, fmt="o", color=MEASURED, markersize=4
    )
    axis.xaxis.set_major_locator(MaxNLocator(5))
    axis.set(title="length along the gradient", xlabel="mean ± 2 standard errors")


def _draw_variances(axis: Axes, rows: list[Part]) -> None:
    noisy = [(part.variance, place) for place, part in enumerate(rows) if part.variance > EXACT]
    known = [(part.expected_variance, place) for place, part in enumerate(rows) if part.expected_variance]
    axis.set(title="variance / |gradient|²", xlabel="mean squared distance from the gradient")
    for place, part in enumerate(rows):
        if part.variance <= EXACT:
            axis.text(0.02, place, "exact", transform=axis.get_yaxis_transform(), va="center", color="0.3")
    if not noisy:
        axis.set_xticks([])
        return
    axis.plot(*zip(*noisy, strict=True), "o", color=MEASURED, label="measured")
    if known:
        axis.plot(*zip(*known, strict=True), "|", color=THEORY, markersize=14, markeredgewidth=2, label="theory")
        axis.legend(loc="best", frameon=False)
    figures = [figure for figure, _ in (*noisy, *known)]
    axis.set_xscale("log")
    axis.set_xlim(10 ** math.floor(math.log10(min(figures)) - 0.05), 10 ** math.ceil(math.log10(max(figures)) + 0.05))
    axis.xaxis.set_minor_formatter(NullFormatter())


def _short(count: int) -> str:
    """Write a number of entries with three digits at most."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return str(count)
