"""A progress bar for a terminal."""

from __future__ import annotations

import sys
from contextlib import ExitStack

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm


class Progress:
    """Shows the step, the loss, the accuracy, steps a second and the time left; log lines appear above the bar.

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
        self._redirection = ExitStack()
        if show:
            self._redirection.enter_context(logging_redirect_tqdm())

    def update(self, step: int, **figures: float) -> None:
        """Move on to a step and show the figures beside those shown before."""
        if self._bar.disable:
            return
        self._figures |= {name: f"{value:.4f}" for name, value in figures.items()}
        self._bar.set_postfix(self._figures, refresh=False)
        self._bar.update(step - self._bar.n)

    def close(self) -> None:
        """Remove the bar."""
        self._redirection.close()
        self._bar.close()
