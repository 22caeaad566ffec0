"""A progress bar for a terminal, and a line an epoch for a log file."""

from __future__ import annotations

import sys

from tqdm import tqdm


class Progress:
    """Shows the step, the loss, the accuracy, steps a second and the time left.

    Args:
        total: steps of the whole run.
        initial: steps done before, when a run is resumed.
        show: whether to draw a bar; by default, whether the standard error is a terminal.
    """

    def __init__(self, total: int, initial: int = 0, show: bool | None = None) -> None:
        show = sys.stderr.isatty() if show is None else show
        self._bar = tqdm(
            total=total, initial=initial, disable=not show, unit="step", dynamic_ncols=True, smoothing=0.05, leave=False
        )
        self._figures: dict[str, str] = {}

    def advance(self, steps: int, **figures: float) -> None:
        """Move on by some steps and show the figures beside those shown before."""
        self._figures |= {name: f"{value:.4f}" for name, value in figures.items()}
        self._bar.set_postfix(self._figures, refresh=False)
        self._bar.update(steps)

    def line(self, text: str) -> None:
        """Print a line above the bar."""
        self._bar.write(text)

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()
