"""A cheap guess of the gradient, which an estimate starts from instead of from nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from fwdgrad.tangents import PerExample, Tangent
from fwdgrad.words import check_word

Params = Mapping[str, Tensor]
GuessFunction = Callable[[Params], Mapping[str, Tensor]]


class ControlVariate(Protocol):
    """A guess c of the gradient, made before the step's directions are drawn.

    The estimate ``c + (g.v - c.v) v`` is unbiased for every such c, and its variance is that of the estimate of
    ``g - c``: ``|g - c|^2`` takes the place of ``|g|^2``.
    """

    def guess(self, params: Params, num_directions: int) -> Mapping[str, Tensor]:
        """Return c on the parameters' names; it is not changed afterwards."""

    def observe(self, tangents: Mapping[str, Tangent], coefficients: Tensor) -> None:
        """Learn a part ``sum_k alpha_k v_k`` of the estimate's difference from the guess."""

    def state_dict(self) -> dict[str, Any]:
        """Return what has to be restored."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""


class Momentum:
    """The exponential average of past estimates: ``c' = decay c + (1 - decay) estimate``.

    For a gradient that stands still, ``E|c' - g|^2 = (1 - 2 a + a^2 M) |c - g|^2`` with ``a = 1 - decay`` and the
    second moment M of the mean of K directions, ``1 + (P + 1)/K`` for normals. This shrinks only for ``a < 2/M``: a
    decay such as 0.9 lets the noise of the guess outgrow the gradient. It shrinks fastest for ``a = 1/M = K/(P + K +
    1)``, the value that is used if no decay is given: the guess then learns the gradient within ``P/K`` steps, and what
    is left of the variance is that between batches, times M. It pays where ``P/K`` steps are few and batches are large.

    Args:
        decay: from ``1 - 2/M`` to 1, both excluded; None for ``1 - 1/M``.

    Raises:
        ValueError: if the decay is not between 0 and 1; when called, if it is too small for the guess to settle.

    Source: Hanzely et al., "SEGA: Variance Reduction via Gradient Sketching", 2018, arXiv:1809.03054, who project.
    """

    def __init__(self, decay: float | None = None) -> None:
        if decay is not None and not 0 < decay < 1:
            raise ValueError(f"decay must be between 0 and 1, got {decay!r}")
        self.decay = decay
        self._average: dict[str, Tensor] = {}
        self._rate = 0.0

    def guess(self, params: Params, num_directions: int) -> Mapping[str, Tensor]:
        best = num_directions / (sum(param.numel() for param in params.values()) + num_directions + 1)
        self._rate = best if self.decay is None else 1 - self.decay
        if self._rate >= 2 * best:
            raise ValueError(
                f"decay must be above {1 - 2 * best:.8g} for an average of estimates from {num_directions} directions "
                f"in {sum(param.numel() for param in params.values())} parameters to settle, got {self.decay}; leave "
                "it out to have it chosen"
            )
        for name, param in params.items():
            if name not in self._average:
                self._average[name] = torch.zeros_like(param)
        return {name: self._average[name] for name in params}

    def observe(self, tangents: Mapping[str, Tangent], coefficients: Tensor) -> None:
        for name, tangent in tangents.items():
            if not (isinstance(tangent, PerExample) and not tangent.drawn):
                # A copy: an optimizer may still hold the guess of this step.
                self._average[name] = self._average[name].clone()
                tangent.add_to_(self._average[name], coefficients * self._rate)

    def state_dict(self) -> dict[str, Any]:
        return dict(self._average)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._average = dict(state)


class FromCallable:
    """A user's function ``fn(params) -> {name: tensor}``, checked."""

    def __init__(self, fn: GuessFunction) -> None:
        self.fn = fn

    def guess(self, params: Params, num_directions: int) -> Mapping[str, Tensor]:
        guess = self.fn(params)
        if not isinstance(guess, Mapping) or set(guess) != set(params):
            arrived = sorted(guess) if isinstance(guess, Mapping) else type(guess).__name__
            raise ValueError(f"control_variate must return a tensor for each of {sorted(params)}, got {arrived}")
        for name, param in params.items():
            if guess[name].shape != param.shape:
                raise ValueError(
                    f"control_variate's {name!r} must have shape {tuple(param.shape)}, got {tuple(guess[name].shape)}"
                )
        return {name: guess[name].detach().to(param) for name, param in params.items()}

    def observe(self, tangents: Mapping[str, Tangent], coefficients: Tensor) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


CONTROL_VARIATES: dict[str, Callable[..., ControlVariate]] = {"momentum": Momentum}


def make_control_variate(given: str | ControlVariate | GuessFunction) -> ControlVariate:
    """Return the control variate meant by a word (``momentum``, ``momentum:0.999``), an object, or a function.

    Raises:
        ValueError: if the word is not known or what follows it is no number.
        TypeError: if it is none of the three.
    """
    if isinstance(given, str):
        word, colon, number = given.partition(":")
        check_word("control_variate", word, CONTROL_VARIATES)
        if not colon:
            return CONTROL_VARIATES[word]()
        try:
            value = float(number)
        except ValueError:
            raise ValueError(
                f"control_variate {word!r} takes a number after the colon, its decay; got {given!r}"
            ) from None
        return CONTROL_VARIATES[word](value)
    if callable(getattr(given, "guess", None)):
        return given  # type: ignore[return-value]
    if callable(given):
        return FromCallable(given)
    raise TypeError(
        f"control_variate must be one of {list(CONTROL_VARIATES)}, an object with guess(params, num_directions), or a "
        f"function of the parameters; got {type(given).__name__}"
    )


def dots(tangents: Mapping[str, Tangent], guess: Mapping[str, Tensor]) -> Tensor:
    """Return ``v_k . c``, shape (K,), or (K, B) where each example has its own directions."""
    used = [name for name, tangent in tangents.items() if not (isinstance(tangent, PerExample) and not tangent.drawn)]
    products = [tangents[name].dot(guess[name]) for name in used]
    return torch.stack([product.to(products[0]) for product in products]).sum(0)
